"""Packing: nothing is lost, nothing is seen twice, and a batch depends on its number alone."""

from itertools import islice

import numpy as np
import pytest
import torch

from llama2_lib.training.batches import PackedCorpus, apart, isolate

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


def test_the_corpus_knows_its_size(corpus):
    assert (corpus.n_documents, corpus.n_tokens) == (12, 80)


@pytest.mark.parametrize("offsets", [[0], [0, 4], [1, 5], [0, 2, 6]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    PackedCorpus(np.arange(5), np.array([0, 2, 5]))
    with pytest.raises(ValueError, match=f"offsets must run from 0 to 5.*got {len(offsets)}"):
        PackedCorpus(np.arange(5), np.array(offsets))


def test_an_epoch_holds_every_document_whole_and_once(corpus):
    ids, document = corpus.epoch(0, 0)
    begins = np.flatnonzero(np.diff(document, prepend=-1))
    pieces = [piece.tolist() for piece in np.split(ids, begins[1:])]
    whole = [
        list(range(end - length, end))
        for end, length in zip(np.cumsum(LENGTHS), LENGTHS, strict=True)
    ]
    assert sorted(pieces) == whole
    assert pieces != whole, "the documents were not shuffled"
    assert document.tolist() == [n for n, piece in enumerate(pieces) for _ in piece]


def test_epochs_and_seeds_shuffle_differently_and_repeatably(corpus):
    orders = {key: tuple(corpus.epoch(*key)[0]) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(corpus.epoch(0, 1)[0])


def test_every_token_is_a_target_once_an_epoch_but_for_the_tail(corpus):
    per_epoch = (80 - 1) // (BATCH * SEQ)
    assert per_epoch == 5
    batches = take(corpus, 2 * per_epoch)
    for epoch in range(2):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        targets = torch.cat([batch.ids[:, 1:].flatten() for batch in part]).tolist()
        assert targets == corpus.epoch(0, epoch)[0][1 : 1 + 75].tolist()
        assert len(set(targets)) == 75


def test_a_row_begins_with_the_last_token_of_the_row_before(corpus):
    rows = torch.cat([batch.ids for batch in take(corpus, 5)])
    assert rows.shape == (15, SEQ + 1)
    assert torch.equal(rows[1:, 0], rows[:-1, -1])


def test_each_token_carries_its_document(corpus):
    owner = np.repeat(np.arange(12), LENGTHS)
    batches = take(corpus, 5)
    for batch in batches:
        for ids, document in zip(batch.ids, batch.document, strict=True):
            true = torch.from_numpy(owner[ids.numpy()])
            same = true[:, None] == true[None, :]
            assert torch.equal(document[:, None] == document[None, :], same)
    assert max(len(row.unique()) for batch in batches for row in batch.document) >= 3


@pytest.mark.parametrize("start", [1, 4, 5, 6, 17])
def test_starting_late_is_skipping(corpus, start):
    skipped = take(corpus, start + 3)[start:]
    for late, batch in zip(take(corpus, 3, start=start), skipped, strict=True):
        assert torch.equal(late.ids, batch.ids)
        assert torch.equal(late.document, batch.document)
    assert not torch.equal(skipped[0].ids, take(corpus, 1)[0].ids)


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
    packed = model(ids, positions=positions, visible=visible)
    alone = torch.cat([model(part) for part in ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model(ids, **apart(document)), alone, rtol=1e-9, atol=1e-10)
    plain = model(ids)
    torch.testing.assert_close(plain[:, :6], alone[:, :6], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(plain[:, 6:], alone[:, 6:], rtol=1e-3, atol=1e-3)


def test_documents_are_read_apart_by_their_lengths_and_elsewhere_by_a_mask_of_one_shape():
    """A number that comes again, in the next row or the same one, is another document."""
    document = torch.tensor([[0, 0, 1, 1, -1], [-1, 2, 2, 2, -1]])
    assert apart(document) == {"lengths": [2, 2, 1, 1, 3, 1]}
    elsewhere = {name: tuple(given.shape) for name, given in apart(document.to("meta")).items()}
    assert elsewhere == {"positions": (2, 5), "visible": (2, 5, 5)}
