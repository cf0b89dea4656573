"""Packing of dialogs: nothing is cut inside, nothing is left out silently, nothing leaks."""

from itertools import islice

import numpy as np
import pytest
import torch

from llama2_lib.model.transformer import masked
from llama2_lib.objectives.language import masked_loss
from llama2_lib.training.batches import (
    DialogBatch,
    PackedDialogs,
    check_example,
    first_fit,
    isolate,
    shorten,
    shorten_all,
)

BOS, EOS, SEQ = 1, 2, 18
TURNS = [[(3, 2)], [(2, 4), (3, 1)], [(5, 5)], [(1, 1)], [(4, 2), (2, 2)], [(2, 6)], [(6, 3)]]
"""Of each dialog the turns: tokens of the prompt without BOS, tokens of the answer without EOS."""


def example_of(turns, source):
    """BOS, prompt, answer, EOS for each turn; words are drawn from 3 to 52."""
    ids, mask = [], []
    for n_prompt, n_answer in turns:
        words = torch.randint(3, 53, (n_prompt + n_answer,), generator=source).tolist()
        ids += [BOS, *words, EOS]
        mask += [False] * (1 + n_prompt) + [True] * (n_answer + 1)
    return ids, mask


@pytest.fixture
def examples():
    source = torch.Generator().manual_seed(3)
    return [example_of(turns, source) for turns in TURNS]


def members(packed):
    """Every example in the rows, as (ids, mask), with padding left out."""
    found = []
    for ids, mask, document in zip(packed.ids, packed.loss_mask, packed.document, strict=True):
        for number in sorted(set(document.tolist()) - {-1}):
            inside = document == number
            begin, end = np.flatnonzero(inside)[[0, -1]]
            assert inside[begin : end + 1].all(), "an example lies in two pieces"
            found.append((tuple(ids[inside].tolist()), tuple(mask[inside].tolist())))
    return found


def frozen(examples):
    return sorted((tuple(ids), tuple(mask)) for ids, mask in examples)


def whole_batch(packed):
    arrays = (packed.ids, packed.loss_mask, packed.document)
    return DialogBatch(*(torch.from_numpy(array) for array in arrays))


def test_every_example_lies_whole_in_a_row_once_and_several_share_one(examples):
    packed = PackedDialogs(examples, seq_len=SEQ)
    assert packed.ids.shape == (packed.n_rows, SEQ + 1)
    assert sorted(members(packed)) == frozen(examples)
    assert packed.n_rows < len(examples) == packed.n_dialogs
    assert packed.counts()["targets"] == sum(sum(mask) for _, mask in examples)
    other = PackedDialogs(examples, seq_len=SEQ, seed=1)
    assert sorted(members(other)) == frozen(examples)
    assert members(other) != members(packed), "the examples were not shuffled"


def test_no_example_begins_with_a_target(examples):
    packed = PackedDialogs(examples, seq_len=SEQ)
    begins = np.diff(packed.document, axis=1, prepend=-2) != 0
    assert not packed.loss_mask[begins].any()
    assert begins.sum() > packed.n_rows, "no row holds two examples: vacuous"


def test_rows_are_full_to_the_last_token():
    ids, mask = [BOS, 5, 6, EOS], [False, False, True, True]
    packed = PackedDialogs([(ids, mask)] * 6, seq_len=11)
    assert packed.ids.tolist() == [ids * 3] * 2
    assert packed.counts() == {
        "dialogs": 6, "shortened": 0, "dropped": 0, "rows": 2, "targets": 12, "padding": 0,
    }  # fmt: skip
    assert PackedDialogs([(ids, mask)] * 6, seq_len=10).n_rows == 3


def test_first_fit_by_hand():
    assert first_fit([4, 3, 3, 2, 6, 1], 7) == [[0, 1], [2, 3, 5], [4]]
    assert first_fit([7, 7], 7) == [[0], [1]]
    assert first_fit([], 7) == []
    with pytest.raises(AssertionError, match="longer than a row of 7"):
        first_fit([2, 8], 7)


def test_only_the_last_answer_marked_is_lost_with_it(examples):
    ids, _ = examples[4]
    last = [False] * 11 + [True] * 3
    assert shorten((ids, last), 13) is None
    assert shorten((ids, last), 14) == (ids, last)


def test_what_is_cut_or_dropped_is_counted(examples):
    kept, n_shortened, n_dropped = shorten_all(examples, 9)
    lengths = [sum(p + a + 2 for p, a in turns) for turns in TURNS]
    assert lengths == [7, 14, 12, 4, 14, 10, 11]
    assert [len(ids) for ids, _ in kept] == [7, 8, 4, 8]
    assert (n_shortened, n_dropped) == (2, 3)
    packed = PackedDialogs(examples, seq_len=8)
    counts = packed.counts()
    assert [counts[name] for name in ("dialogs", "shortened", "dropped")] == [4, 2, 3]
    assert sorted(members(packed)) == frozen(kept)
    assert PackedDialogs(examples, seq_len=13).counts()["dropped"] == 0


def test_if_nothing_fits_it_is_said(examples):
    with pytest.raises(ValueError, match=r"of 7 examples none.*within 3 tokens.*Raise seq_len"):
        PackedDialogs(examples, seq_len=2)
    assert PackedDialogs(examples, seq_len=3).n_dialogs == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([False] * 5, "example 1 marks none of 5 tokens. Drop the example"),
        ([True] * 5, "example 1 marks all 5 tokens, so the model would learn to ask"),
        ([True, False, False, True, True], "first token of an example cannot be a target"),
    ],
)
def test_a_mask_that_cannot_be_right_is_refused(examples, mask, message):
    bad = ([BOS, 5, 6, 7, EOS], mask)
    check_example((bad[0], [False, False, True, True, True]))
    with pytest.raises(ValueError, match=message):
        PackedDialogs([examples[0], bad], seq_len=SEQ)
    with pytest.raises(ValueError, match=message.replace("example 1", "example 0")):
        check_example(bad)


def take(packed, n, start=0):
    return list(islice(packed.batches(batch_size=2, start=start), n))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_row_comes_once_an_epoch_in_batches_of_nearly_one_size(examples):
    packed = PackedDialogs([*examples * 3, examples[2]], seq_len=SEQ)
    per_epoch = packed.batches_per_epoch(2)
    assert packed.n_rows % 2 == 1, "no batch is short: vacuous"
    assert per_epoch == (packed.n_rows + 1) // 2
    orders = []
    for epoch in range(2):
        part = take(packed, per_epoch, epoch * per_epoch)
        assert {len(batch.ids) for batch in part} == {1, 2}
        rows = [tuple(row.tolist()) for batch in part for row in batch.ids]
        assert sorted(rows) == sorted(tuple(row) for row in packed.ids.tolist())
        orders.append(rows)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("start", [1, 7, 8, 9, 19])
def test_starting_late_is_skipping(examples, start):
    packed = PackedDialogs(examples * 3, seq_len=SEQ)
    skipped = take(packed, start + 3)[start:]
    again = PackedDialogs(examples * 3, seq_len=SEQ)
    assert all(same(a, b) for a, b in zip(take(again, 3, start), skipped, strict=True))
    assert not same(skipped[0], take(packed, 1)[0])
    other = PackedDialogs(examples * 3, seq_len=SEQ, seed=1)
    assert not all(same(a, b) for a, b in zip(take(other, 3, start), skipped, strict=True))


def nats_of(model, ids, mask):
    """Summed loss of one example by itself."""
    ids, mask = torch.tensor([ids]), torch.tensor([mask])
    return masked_loss(model(ids[:, :-1]), ids, mask)


def logits(model, batch, isolated):
    if not isolated:
        return model(batch.ids[:, :-1])
    positions, visible = isolate(batch.document[:, :-1])
    return model(batch.ids[:, :-1], positions=positions, attend=masked(visible))


def packed_nats(model, batch, isolated=True):
    return masked_loss(logits(model, batch, isolated), batch.ids, batch.loss_mask)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_the_packed_loss_is_the_token_weighted_mean_of_the_dialogs(random_model, examples):
    """Invariant 11: loss and gradient; the mean of the dialogs' means is another number."""
    model = random_model()
    term = packed_nats(model, whole_batch(PackedDialogs(examples, seq_len=SEQ)))
    terms = [nats_of(model, *example) for example in examples]
    count = sum(alone.count for alone in terms)
    assert term.count == count
    packed, alone = term.total / term.count, sum(alone.total for alone in terms) / count
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        gradients(model, packed), gradients(model, alone), rtol=0, atol=1e-10
    )
    naive = sum(alone.total / alone.count for alone in terms) / len(terms)
    assert abs(naive - packed) > 0.01
    plain = packed_nats(model, whole_batch(PackedDialogs(examples, seq_len=SEQ)), isolated=False)
    assert abs(plain.total - term.total) > 0.1


def test_single_precision_is_near_enough(random_model, examples):
    batch = whole_batch(PackedDialogs(examples, seq_len=SEQ))
    exact, single = (
        packed_nats(random_model(dtype=t), batch) for t in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(single.total.double(), exact.total, rtol=1e-5, atol=0)


def test_another_dialog_in_the_row_changes_nothing_when_isolated(random_model, examples):
    """Invariants 12 and 13: logits are those of the dialog alone, whatever stands before it."""
    model = random_model()
    batch = whole_batch(PackedDialogs(examples, seq_len=SEQ))
    changed = torch.where(batch.document == 0, 3 + (batch.ids + 7) % 50, batch.ids)
    later = (batch.document > 0)[:, :-1]
    assert later.any()
    before, after = (
        logits(model, batch._replace(ids=ids), isolated=True)[later] for ids in (batch.ids, changed)
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    before, after = (
        logits(model, batch._replace(ids=ids), isolated=False)[later]
        for ids in (batch.ids, changed)
    )
    assert (after - before).abs().amax(-1).min() > 1e-3, "every later token must see the change"


def test_padding_and_labels_that_are_no_targets_change_nothing(random_model, examples):
    """Invariant 9: the id of padding never matters, a word of the user does as input."""
    model = random_model()
    batch = whole_batch(PackedDialogs(examples, seq_len=SEQ))
    padding = batch.document < 0
    for isolated in (True, False):
        before = packed_nats(model, batch, isolated)
        other = batch._replace(ids=batch.ids.masked_fill(padding, 41))
        assert torch.equal(packed_nats(model, other, isolated).total, before.total), "bit for bit"
        user = (~batch.loss_mask) & (batch.ids > EOS)
        asked = batch._replace(ids=torch.where(user, 3 + (batch.ids + 7) % 50, batch.ids))
        assert abs(packed_nats(model, asked, isolated).total - before.total) > 0.1


def test_padding_gets_no_gradient(random_model, examples):
    model = random_model()
    batch = whole_batch(PackedDialogs(examples, seq_len=SEQ))
    batch = batch._replace(ids=batch.ids.masked_fill(batch.document < 0, 0))
    assert not (batch.ids[batch.document >= 0] == 0).any()
    packed_nats(model, batch).total.backward()
    assert (model.tok_embeddings.weight.grad[0] == 0).all()
    assert (model.tok_embeddings.weight.grad[BOS] != 0).any()


def test_how_rows_are_split_into_micro_batches_changes_nothing(random_model, examples):
    """Invariant 14, on rows with unequal numbers of targets."""
    model = random_model()
    whole = whole_batch(PackedDialogs(examples, seq_len=SEQ))
    counts = whole.loss_mask.sum(dim=1)
    assert counts.unique().numel() > 1
    parts = [DialogBatch(*(t[rows] for t in whole)) for rows in (slice(0, 1), slice(1, None))]
    term, split = packed_nats(model, whole), [packed_nats(model, part) for part in parts]
    together = sum(part.total for part in split) / sum(part.count for part in split)
    torch.testing.assert_close(together, term.total / term.count, rtol=1e-10, atol=0)
    naive = sum(part.total / part.count for part in split) / 2
    assert abs(naive - together) > 1e-3
