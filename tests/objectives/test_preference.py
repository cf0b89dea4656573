"""Losses of reward models: invariants 25 to 30 and 35, gradients by finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from llama2_lib.objectives.rlhf import (
    margins,
    pairwise_accuracy,
    ranking_loss,
    safety_auxiliary_loss,
)
from llama2_lib.stages.reward import MARGINS
from llama2_lib.world.pairs import GRADES

PAIRS = 6


def scores(seed=0, n=PAIRS):
    source = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, generator=source, dtype=torch.float64)


CHOSEN, REJECTED = scores(0), scores(1)


def table(schedule):
    return dict(zip(GRADES, MARGINS[schedule], strict=True))


MARGIN = margins([*GRADES, "better", "slightly better"], table("small")).double()


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_without_margin_it_is_softplus_of_the_negative_gap():
    gap = CHOSEN - REJECTED
    term = ranking_loss(CHOSEN, REJECTED)
    exact(term.total, F.softplus(-gap).sum())
    exact(term.total, ranking_loss(CHOSEN, REJECTED, torch.zeros(PAIRS)).total)
    assert term.count.item() == PAIRS


def test_a_gap_equal_to_the_margin_costs_ln_2():
    term = ranking_loss(REJECTED + MARGIN, REJECTED, MARGIN)
    exact(term.total, torch.tensor(PAIRS * math.log(2), dtype=torch.float64))
    assert abs(ranking_loss(REJECTED, REJECTED).total.item() / PAIRS - math.log(2)) < 1e-12
    assert ranking_loss(REJECTED + MARGIN, REJECTED).total < PAIRS * math.log(2) - 0.5


def test_the_gradient_is_minus_sigmoid_of_margin_minus_gap():
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    ranking_loss(chosen, rejected, MARGIN).total.backward()
    wanted = -torch.sigmoid(MARGIN - (CHOSEN - REJECTED))
    exact(chosen.grad, wanted)
    exact(rejected.grad, -wanted)
    assert wanted.max() < 0, "a larger gap always helps"


def test_the_gradient_agrees_with_finite_differences():
    inputs = (CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda c, r: ranking_loss(c, r, MARGIN).total, inputs)
    safe = torch.tensor([True, False, True, True, False, False])
    assert torch.autograd.gradcheck(lambda s: safety_auxiliary_loss(s, safe).total, inputs[0])


def test_a_constant_changes_the_safety_loss_and_not_the_ranking_loss():
    exact(
        ranking_loss(CHOSEN + 3, REJECTED + 3, MARGIN).total,
        ranking_loss(CHOSEN, REJECTED, MARGIN).total,
    )
    safe = torch.tensor([True, False, True, True, False, False])
    moved = safety_auxiliary_loss(CHOSEN + 3, safe).total
    assert (moved - safety_auxiliary_loss(CHOSEN, safe).total).abs() > 0.5


def test_exchanging_the_answers_costs_the_gap():
    gap = (CHOSEN - REJECTED).sum()
    there, back = ranking_loss(CHOSEN, REJECTED).total, ranking_loss(REJECTED, CHOSEN).total
    exact(there - back, -gap)
    assert gap.abs() > 0.1


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_far_scores_stay_finite(gap):
    chosen = torch.tensor([gap], requires_grad=True)
    term = ranking_loss(chosen, torch.zeros(1))
    term.total.backward()
    assert term.total.item() == max(0.0, -gap)
    assert chosen.grad.item() == (-1.0 if gap < 0 else 0.0)


def test_margins_are_those_of_table_27():
    assert margins(GRADES, table("large")).tolist() == [3, 2, 1, 0]
    torch.testing.assert_close(
        margins(GRADES, table("small")), torch.tensor([1, 2 / 3, 1 / 3, 0]), rtol=0, atol=1e-7
    )
    assert margins([GRADES[3], GRADES[0]], table("large")).tolist() == [0, 3]
    assert not any(MARGINS["none"])


def test_grades_that_have_no_margin_are_refused():
    with pytest.raises(ValueError, match=r"a grade must be one of .*got .'much better'."):
        margins(["much better"], table("small"))


def test_a_comparison_needs_pairs_of_numbers():
    nothing = torch.zeros(0)
    for compare in (ranking_loss, pairwise_accuracy):
        with pytest.raises(ValueError, match="at least one pair; got none"):
            compare(nothing, nothing)
    assert pairwise_accuracy(torch.tensor([1.0, math.nan]), torch.zeros(2)).isnan()


def test_accuracy_counts_a_tie_half_and_knows_no_margin():
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert pairwise_accuracy(chosen, rejected).item() == 2.5 / 4
    term = ranking_loss(chosen, rejected, torch.full((4,), 9.0))
    assert term.metrics["accuracy"].item() == 2.5 / 4


def test_the_safety_loss_is_cross_entropy_and_counts_unsafe_answers_found():
    raw = torch.tensor([2.0, -1.0, 0.5, -3.0], dtype=torch.float64)
    safe = torch.tensor([True, False, False, True])
    wanted = [
        -math.log(1 / (1 + math.exp(-s if ok else s))) for s, ok in zip(raw, safe, strict=True)
    ]
    term = safety_auxiliary_loss(raw, safe)
    assert abs(term.total.item() - sum(wanted)) < 1e-12
    assert term.metrics["unsafe_recall"].item() == 0.5  # -1 is found, 0.5 is not
    for unsafe, share in (([-1.0, -2.0, 3.0], 2 / 3), ([-1.0, 0.0], 0.5), ([0.1], 0.0)):
        raw = torch.tensor([*unsafe, -4.0])
        recall = safety_auxiliary_loss(raw, torch.arange(len(raw)) == len(unsafe)).metrics
        assert recall["unsafe_recall"].item() == pytest.approx(share, rel=1e-6)
    alone = safety_auxiliary_loss(raw, torch.ones(len(raw), dtype=torch.bool))
    assert alone.metrics["unsafe_recall"].isfinite()
