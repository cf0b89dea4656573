"""Rows laid out for PPO: what masks mark, what shares a mini-batch, whitening over all."""

import pytest
import torch

from llama2_lib.objectives.rlhf import whiten
from llama2_lib.stages.ppo import Sampled, layout, whiten_together

EOS = 2
LENGTHS = [(3, 4), (9, 2), (2, 1), (6, 7), (4, 11), (8, 8), (1, 5)]  # prompt, answer; sums differ


def sampled(row, n_prompt, n_answer):
    prompt = [100 * row + 10 + i for i in range(n_prompt)]
    return Sampled(prompt, [100 * row + 50 + i for i in range(n_answer - 1)] + [EOS], True)


SAMPLES = [sampled(row, *lengths) for row, lengths in enumerate(LENGTHS)]


def test_every_row_comes_once_with_its_ids_before_the_padding():
    parts = layout(SAMPLES, 3, seed=0)
    assert sorted(len(part.rows) for part in parts) == [2, 2, 3]
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(7))
    for part in parts:
        longest = max(len(SAMPLES[row].ids) for row in part.rows.tolist())
        assert part.ids.shape == (len(part.rows), longest)
        assert part.response_mask.shape == (len(part.rows), longest - 1)
        for ids, row in zip(part.ids.tolist(), part.rows.tolist(), strict=True):
            n = len(SAMPLES[row].ids)
            assert ids == SAMPLES[row].ids + [0] * (longest - n)


def test_the_mask_marks_exactly_the_answer_as_targets_eos_included():
    for part in layout(SAMPLES, 3, seed=0):
        for ids, mask, row in zip(part.ids, part.response_mask, part.rows.tolist(), strict=True):
            assert ids[1:][mask].tolist() == SAMPLES[row].answer
            assert int(ids[1:][mask][-1]) == EOS
            assert mask.nonzero()[0, 0] == len(SAMPLES[row].prompt) - 1


def test_an_answer_that_did_not_end_is_marked_to_its_last_token():
    (part,) = layout([Sampled([7, 8], [5, 6, 4], False)], 1, seed=0)
    assert part.ids.tolist() == [[7, 8, 5, 6, 4]]
    assert part.response_mask.tolist() == [[False, True, True, True]]


def test_rows_of_similar_length_share_a_minibatch():
    parts = layout(SAMPLES, 3, seed=0)
    lengths = sorted(sorted(len(SAMPLES[row].ids) for row in part.rows.tolist()) for part in parts)
    assert lengths == [[3, 6, 7], [11, 13], [15, 16]]


def test_the_order_of_minibatches_depends_on_the_seed_and_nothing_else_does():
    def found(seed):
        return [part.rows.tolist() for part in layout(SAMPLES, 7, seed)]

    assert found(0) == found(0)
    orders = [found(seed) for seed in range(5)]
    assert len({str(order) for order in orders}) > 1
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_permuted_samples_make_the_same_minibatches_under_other_numbers():
    order = [4, 2, 6, 0, 3, 5, 1]
    plain = layout(SAMPLES, 3, seed=0)
    permuted = layout([SAMPLES[row] for row in order], 3, seed=0)
    for one, other in zip(plain, permuted, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.response_mask, other.response_mask)
        assert one.rows.tolist() == [order[row] for row in other.rows.tolist()]
        assert one.rows.tolist() != other.rows.tolist()


@pytest.mark.parametrize("n", [0, 8, -1])
def test_as_many_minibatches_as_rows_at_most(n):
    assert len(layout(SAMPLES, 7, seed=0)) == 7
    with pytest.raises(AssertionError):
        layout(SAMPLES, n, seed=0)


def test_an_empty_answer_is_refused():
    broken = [*SAMPLES[:2], SAMPLES[2]._replace(answer=[]), *SAMPLES[3:]]
    with pytest.raises(AssertionError):
        layout(broken, 3, seed=0)


def parts_and_masks(pad=0.0):
    source = torch.Generator().manual_seed(0)
    masks = [
        torch.tensor([[True, True, False], [True, False, False]]),
        torch.tensor([[False, True, True, True, False]] * 4),
    ]
    parts = [
        (3 + 2 * torch.randn(mask.shape, generator=source, dtype=torch.float64)).masked_fill(
            ~mask, pad
        )
        for mask in masks
    ]
    return parts, masks


def test_all_counted_values_are_whitened_as_one_set():
    parts, masks = parts_and_masks()
    together = whiten_together(parts, masks)
    flat = torch.cat([part[mask] for part, mask in zip(parts, masks, strict=True)])
    got = torch.cat([part[mask] for part, mask in zip(together, masks, strict=True)])
    torch.testing.assert_close(got, whiten(flat), rtol=0, atol=1e-12)
    assert abs(got.mean().item()) < 1e-12
    assert abs(got.square().mean().item() - 1) < 1e-10
    # each by itself is another thing
    alone = torch.cat([whiten(p, m)[m] for p, m in zip(parts, masks, strict=True)])
    assert (alone - got).abs().max() > 0.1
    for part, mask in zip(together, masks, strict=True):
        assert part.shape == mask.shape
        assert part[~mask].abs().max() == 0


@pytest.mark.parametrize("pad", [1e30, float("nan"), float("inf")])
def test_what_stands_at_pads_does_not_matter(pad):
    clean, spoiled = (whiten_together(*parts_and_masks(p)) for p in (0.0, pad))
    for one, other in zip(clean, spoiled, strict=True):
        assert torch.equal(one, other)
    parts, masks = parts_and_masks()
    parts[1][2, 3] += 1  # counted
    assert not torch.equal(whiten_together(parts, masks)[0], clean[0])


def test_equal_values_give_zeros():
    _, masks = parts_and_masks()
    for part in whiten_together([torch.full(mask.shape, 7.5) for mask in masks], masks):
        assert part.abs().max() == 0
