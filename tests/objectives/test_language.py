"""Next-token losses: values by a loop, gradients by finite differences, masks bit for bit."""

import math

import pytest
import torch

from llama2_lib.objectives.language import masked_loss, next_token_loss

BATCH, SEQ, VOCAB = 3, 5, 7


def logits_and_ids(dtype=torch.float64, batch=BATCH, seq=SEQ, seed=0):
    source = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, seq, VOCAB, generator=source, dtype=dtype)
    return logits, torch.randint(0, VOCAB, (batch, seq + 1), generator=source)


def mask_of(*rows):
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


MASK = mask_of("..x.xx", "......", ".xx...")
"""Five targets; the middle row has none. The first column can never be one."""


def nats(logits, ids, row, t):
    """Negative log-softmax of the token after position `t`, one number at a time."""
    scores = logits[row, t].tolist()
    return math.log(sum(math.exp(s) for s in scores)) - scores[ids[row, t + 1]]


def test_the_loss_is_the_sum_over_every_next_token():
    logits, ids = logits_and_ids()
    term = next_token_loss(logits, ids)
    wanted = sum(nats(logits, ids, b, t) for b in range(BATCH) for t in range(SEQ))
    assert abs(term.total.item() - wanted) < 1e-12
    assert (term.count.item(), term.metrics) == (15, {})
    assert (term.count.dtype, term.count.shape) == (term.total.dtype, ())


def test_the_masked_loss_is_the_sum_over_the_marked_tokens():
    logits, ids = logits_and_ids()
    term = masked_loss(logits, ids, MASK)
    marked = [(0, 2), (0, 4), (0, 5), (2, 1), (2, 2)]
    wanted = sum(nats(logits, ids, row, column - 1) for row, column in marked)
    assert abs(term.total.item() - wanted) < 1e-12
    assert (term.count.item(), term.metrics) == (5, {})


def test_single_precision_is_near_enough():
    logits, ids = logits_and_ids()
    single, exact = masked_loss(logits.float(), ids, MASK), masked_loss(logits, ids, MASK)
    torch.testing.assert_close(single.total.double(), exact.total, rtol=1e-6, atol=0)


def test_all_tokens_marked_is_the_plain_loss():
    logits, ids = logits_and_ids()
    mask = mask_of(*[".xxxxx"] * BATCH)
    plain, masked = next_token_loss(logits, ids), masked_loss(logits, ids, mask)
    torch.testing.assert_close(masked.total, plain.total, rtol=1e-14, atol=0)
    assert masked.count == plain.count


def test_equal_logits_cost_the_logarithm_of_the_vocabulary():
    _, ids = logits_and_ids()
    term = next_token_loss(torch.zeros(BATCH, SEQ, VOCAB, dtype=torch.float64), ids)
    assert abs((term.total / term.count).item() - math.log(VOCAB)) < 1e-14


def test_the_target_is_the_next_token_and_not_the_same_one():
    _, ids = logits_and_ids()
    sure = 50.0 * torch.nn.functional.one_hot(ids[:, 1:], VOCAB).double()
    assert next_token_loss(sure, ids).total < 1e-10
    late = 50.0 * torch.nn.functional.one_hot(ids[:, :-1], VOCAB).double()
    assert next_token_loss(late, ids).total > 100


def test_labels_that_are_not_marked_do_not_matter():
    logits, ids = logits_and_ids()
    before = masked_loss(logits, ids, MASK)
    changed = torch.where(MASK, ids, (ids + 3) % VOCAB)
    assert (changed != ids).sum() == 13
    after = masked_loss(logits, changed, MASK)
    assert torch.equal(after.total, before.total), "bit for bit"
    other = torch.where(MASK, (ids + 3) % VOCAB, ids)
    assert masked_loss(logits, other, MASK).total != before.total


def test_logits_that_are_not_scored_do_not_matter_even_when_infinite():
    logits, ids = logits_and_ids()
    before = masked_loss(logits, ids, MASK)
    wild = torch.where(MASK[:, 1:, None], logits, torch.tensor(float("inf"), dtype=torch.float64))
    assert torch.equal(masked_loss(wild, ids, MASK).total, before.total), "bit for bit"


def test_the_gradient_is_zero_where_nothing_is_scored():
    logits, ids = logits_and_ids()
    masked_loss(logits.requires_grad_(), ids, MASK).total.backward()
    scored = MASK[:, 1:]
    assert (logits.grad[~scored] == 0).all()
    assert (logits.grad[scored].abs().amax(-1) > 1e-3).all()
    onehot = torch.nn.functional.one_hot(ids[:, 1:], VOCAB)
    wanted = (logits.softmax(-1) - onehot) * scored[..., None]
    torch.testing.assert_close(logits.grad, wanted.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("loss", [
    lambda logits, ids: next_token_loss(logits, ids).total,
    lambda logits, ids: masked_loss(logits, ids, MASK).total,
], ids=["next_token_loss", "masked_loss"])  # fmt: skip
def test_gradients_agree_with_finite_differences(loss):
    logits, ids = logits_and_ids()
    checked = torch.autograd.gradcheck(
        lambda x: loss(x, ids), logits.requires_grad_(), eps=1e-6, atol=1e-7, rtol=1e-6
    )
    assert checked
    assert loss(logits, ids).requires_grad


def test_unequal_micro_batches_add_up_exactly():
    """Invariant 14, on rows with unequal numbers of targets."""
    logits, ids = logits_and_ids()
    whole = masked_loss(logits, ids, MASK)
    parts = [
        masked_loss(logits[rows], ids[rows], MASK[rows]) for rows in (slice(0, 2), slice(2, 3))
    ]
    total, count = (sum(getattr(part, name) for part in parts) for name in ("total", "count"))
    torch.testing.assert_close(total / count, whole.total / whole.count, rtol=1e-14, atol=0)
    naive = sum(part.total / part.count for part in parts) / 2
    assert abs(naive - total / count) > 0.01, "the mean of means is right here: vacuous test"


def test_padding_changes_nothing():
    logits, ids = logits_and_ids()
    wide, padded = (
        torch.zeros(BATCH, SEQ + 2, VOCAB, dtype=torch.float64),
        torch.zeros(BATCH, SEQ + 3),
    )
    wide[:, :SEQ], padded[:, : SEQ + 1] = logits, ids
    mask = torch.nn.functional.pad(MASK, (0, 2))
    before, after = masked_loss(logits, ids, MASK), masked_loss(wide, padded.long(), mask)
    torch.testing.assert_close(after.total, before.total, rtol=1e-14, atol=0)
    assert after.count == before.count


def test_masks_that_cannot_be_right_are_refused():
    logits, ids = logits_and_ids()
    with pytest.raises(ValueError, match=r"marks none of 15 tokens.*Were the answers cut off"):
        masked_loss(logits, ids, torch.zeros_like(MASK))
    first = MASK.clone()
    first[[0, 2], 0] = True
    with pytest.raises(ValueError, match=r"first token of a row cannot be a target.*rows \[0, 2\]"):
        masked_loss(logits, ids, first)
