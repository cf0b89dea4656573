"""Documents and pairs: nothing is lost or seen twice, and a batch depends on its number alone."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise, masked, scalar_model
from llama2_lib.training import batches
from llama2_lib.training.batches import (
    EncodedPair,
    PackedCorpus,
    PairedAnswers,
    apart,
    collate,
    epochs,
    isolate,
)

LENGTHS = [7, 2, 11, 5, 3, 9, 4, 6, 13, 8, 2, 10]
BATCH, SEQ = 3, 5


def corpus_of(lengths):
    """Documents in which no two tokens are alike, so that every one can be followed."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return PackedCorpus(np.arange(offsets[-1], dtype=np.uint16), offsets)


@pytest.fixture
def corpus():
    return corpus_of(LENGTHS)


def take(corpus, n, *, seed=0, start=0):
    return list(islice(corpus.batches(seed=seed, batch_size=BATCH, seq_len=SEQ, start=start), n))


def test_epochs_and_seeds_shuffle_differently_and_repeatably(corpus):
    orders = {key: tuple(corpus.epoch(*key)[1]) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(corpus.epoch(0, 1)[1])


def test_a_corpus_on_disk_gives_the_same_batches(corpus, tmp_path):
    corpus.ids.tofile(tmp_path / "ids")
    stored = PackedCorpus(np.memmap(tmp_path / "ids", np.uint16, "r"), corpus.offsets)
    for own, other in zip(take(corpus, 9), take(stored, 9), strict=True):
        assert (own.ids == other.ids).all()
        assert (own.document == other.document).all()


@pytest.mark.parametrize("start", [0, 1, 2, 5])
def test_every_third_batch_is_whole_wherever_one_starts(corpus, start):
    plain = take(corpus, 7, start=start)
    mixed = list(islice(
        corpus.batches(seed=0, batch_size=BATCH, seq_len=SEQ, start=start, whole_every=3), 7
    ))  # fmt: skip
    for number, (one, other) in enumerate(zip(plain, mixed, strict=True), start):
        assert torch.equal(one.ids, other.ids)
        if number % 3 == 2:
            assert not other.document.any()
            assert one.document.any()
        else:
            assert torch.equal(one.document, other.document)


def test_ids_come_as_int64_whatever_the_file_holds(corpus):
    batch = take(corpus, 1)[0]
    assert batch.ids.dtype == batch.document.dtype == torch.int64
    large = PackedCorpus(np.arange(80, dtype=np.uint32) + 2**31, corpus.offsets)
    assert take(large, 1)[0].ids.min() >= 2**31


def test_a_corpus_smaller_than_a_batch_is_refused():
    corpus_of([8, 8]).batches(seed=0, batch_size=3, seq_len=5).__next__()
    with pytest.raises(ValueError, match="must fill one batch of 3 x 5 tokens; this one has 15"):
        next(corpus_of([8, 7]).batches(seed=0, batch_size=3, seq_len=5))


def test_a_document_in_a_pack_gets_the_logits_it_would_get_alone(random_model):
    model = random_model()
    source = torch.Generator().manual_seed(1)
    lengths = [6, 1, 9, 4]
    ids = torch.randint(3, 53, (2, sum(lengths)), generator=source)
    document = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).repeat(2, 1)
    positions, visible = isolate(document)
    packed = model(ids, positions=positions, attend=masked(visible))
    alone = torch.cat([model(part) for part in ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model(ids, **apart(document)), alone, rtol=1e-9, atol=1e-10)
    plain = model(ids)
    torch.testing.assert_close(plain[:, :6], alone[:, :6], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(plain[:, 6:], alone[:, 6:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_documents_are_read_apart_by_their_lengths_or_by_a_mask_of_one_shape(device, monkeypatch):
    """A number that comes again, in the next row or the same one, is another document."""
    document = torch.tensor([[0, 0, 1, 1, -1], [-1, 2, 2, 2, -1]], device=device)
    seen = []
    for name in ("packed", "masked"):
        monkeypatch.setattr(batches, name, lambda given, name=name: seen.append((name, given)))
    assert set(arguments := apart(document)) == {"positions", "attend"}
    ((name, given),) = seen
    if device == "cpu":
        assert (name, given) == ("packed", [2, 2, 1, 1, 3, 1])
        assert arguments["positions"].tolist() == [[0, 1, 0, 1, 0], [0, 0, 1, 2, 0]]
    else:
        assert (name, given.shape, arguments["positions"].shape) == ("masked", (2, 5, 5), (2, 5))


@pytest.mark.parametrize("start", [0, 5, 6, 14])
def test_an_epoch_is_prepared_once_and_a_number_names_a_batch(start):
    prepared = []
    stream = epochs(lambda number: prepared.append(number) or f"epoch {number}", 3, start)
    places = [(f"epoch {number // 3}", number % 3) for number in range(start, start + 8)]
    assert list(islice(stream, 8)) == places
    assert prepared == sorted({number // 3 for number in range(start, start + 8)})


ONE = EncodedPair([1, 5, 6, 2], [1, 5, 2], 0.5, (True, False))
TWO = EncodedPair([1, 7, 2], [1, 7, 8, 9, 2], 1.0, None)


def many(n, longest=30):
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, longest, (n, 2), generator=source).tolist()
    return [EncodedPair([i + 3] * a, [i + 4] * b, i / 10) for i, (a, b) in enumerate(lengths)]


def chosen_of(batch):
    return batch.ids[:, 0].tolist()


def test_a_row_holds_the_beginning_once_and_then_both_rests():
    batch = collate([ONE, TWO])
    assert batch.lengths.tolist() == [[2, 2, 1], [2, 1, 3]]
    assert [row[:n] for row, n in zip(batch.ids.tolist(), (5, 6), strict=True)] == [
        [1, 5, 6, 2, 2],
        [1, 7, 2, 8, 9, 2],
    ]
    assert batch.ends().tolist() == [[3, 4], [2, 5]]
    assert batch.margin.tolist() == [0.5, 1.0]
    assert batch.is_safe.tolist() == [[True, False], [False, False]]
    assert batch.labelled.tolist() == [True, False]
    assert batch.per_label.tolist() == [1.0, 1.0], "two pairs for two labelled answers"


def test_an_answer_that_begins_the_other_keeps_a_token_of_its_own():
    batch = collate([EncodedPair([1, 5, 6], [1, 5, 6, 7, 2])])
    assert batch.lengths.tolist() == [[2, 1, 3]]
    assert batch.ids.tolist() == [[1, 5, 6, 6, 7, 2]]


@pytest.fixture(scope="module")
def judge():
    config = ModelConfig(vocab_size=31, dim=24, n_layers=3, n_heads=6, n_kv_heads=2, max_seq_len=12)
    return scalar_model(initialise(Transformer(config), seed=1), seed=2).double()


def random_pairs(n, longest=14):
    source = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(n):
        common, one, other = torch.randint(1, longest // 2, (3,), generator=source).tolist()
        ids = torch.randint(3, 31, (common + one + other,), generator=source).tolist()
        pairs.append(EncodedPair(ids[: common + one], ids[:common] + ids[common + one :]))
    return pairs


@pytest.mark.parametrize("path", ["branched", "masked"], ids=["on a CPU", "on a GPU"])
def test_answers_read_behind_one_beginning_have_the_scores_and_gradients_they_have_alone(
    judge, path
):
    """A row may be longer than the context: each answer for itself fits."""
    pairs = random_pairs(7)
    batch = collate(pairs)
    assert batch.ids.shape[1] > judge.config.max_seq_len
    options = batch.branches()
    if path == "masked":
        options["attend"] = masked(batch.visible())
    scores = judge(batch.ids, **options).gather(1, batch.ends())
    alone = torch.stack([
        torch.cat([judge(torch.tensor([ids]))[:, -1] for ids in (p.chosen, p.rejected)])
        for p in pairs
    ])  # fmt: skip
    torch.testing.assert_close(scores, alone, rtol=1e-10, atol=1e-12)
    weights = torch.linspace(-1, 2, 14, dtype=torch.float64).view(7, 2)
    got, expected = (
        torch.autograd.grad((weights * x).sum(), judge.backbone.layers[0].attention.wq.weight)[0]
        for x in (scores, alone)
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_an_answer_does_not_see_the_other(judge):
    pairs = random_pairs(3)
    changed = [p._replace(chosen=[*p.chosen[:-1], (p.chosen[-1] + 1) % 31]) for p in pairs]
    before, after = (
        judge(b.ids, **b.branches()).gather(1, b.ends()) for b in map(collate, (pairs, changed))
    )
    assert torch.equal(before[:, 1], after[:, 1])
    assert (before[:, 0] != after[:, 0]).all()


def test_every_pair_comes_once_an_epoch_in_another_order():
    pairs = PairedAnswers(many(50), longest=40)
    stream = list(islice(pairs.batches(batch_size=8), 14))
    first, second = (
        [index for batch in part for index in chosen_of(batch)] for part in (stream[:7], stream[7:])
    )
    assert sorted(first) == sorted(second) == list(range(3, 53))
    assert first != second
    assert {len(batch.margin) for batch in stream} == {7, 8}


def test_a_batch_is_named_by_its_number():
    pairs = PairedAnswers(many(50), longest=40)
    stream = list(islice(pairs.batches(batch_size=8), 12))
    for start in (1, 6, 9):
        again = next(pairs.batches(batch_size=8, start=start))
        assert torch.equal(again.ids, stream[start].ids)
    other = next(PairedAnswers(many(50), longest=40, seed=1).batches(batch_size=8))
    assert chosen_of(other) != chosen_of(stream[0])


def test_pairs_of_a_batch_have_similar_lengths():
    pairs = PairedAnswers(many(640), longest=40)
    batches = list(islice(pairs.batches(batch_size=10), 64))
    padded = sum(batch.ids.numel() for batch in batches)
    real = sum(int(batch.lengths.sum()) for batch in batches)
    unsorted = sum(collate(pairs.pairs[i : i + 10]).ids.numel() for i in range(0, 640, 10))
    assert padded < 0.8 * unsorted
    # no two answers of `many` have a token in common
    assert real == sum(len(p.chosen) + len(p.rejected) for p in pairs.pairs)


def test_batches_of_an_epoch_come_in_no_order_of_length():
    pairs = PairedAnswers(many(200), longest=40)
    widths = [batch.ids.shape[1] for batch in islice(pairs.batches(batch_size=10), 20)]
    steps = [later - earlier for earlier, later in pairwise(widths)]
    assert min(steps) < -5
    assert max(steps) > 5
    assert sum(step < 0 for step in steps) > 5


def test_what_teaches_nothing_is_counted():
    same, long = EncodedPair([1, 2], [1, 2]), EncodedPair([1] * 9, [1, 2])
    assert (same.margin, same.safe) == (0.0, None), "what nobody said"
    pairs = PairedAnswers([ONE, same, long, TWO, same], longest=8)
    assert pairs.counts() == {"pairs": 2, "identical": 2, "too_long": 1}
    assert PairedAnswers([ONE, long], longest=9).counts()["too_long"] == 0
    with pytest.raises(ValueError, match="1 have twice the same answer and 1 exceed 8 tokens"):
        PairedAnswers([same, long], longest=8)
