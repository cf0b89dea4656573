"""The combined reward: invariants 50 to 52, 64 to 67."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2_lib.objectives.reward import (
    SAFETY_LOGIT,
    SAFETY_THRESHOLD,
    combined_reward,
    shaped_rewards,
    whiten,
)

ANSWERS, TOKENS = 3, 5
MASK = torch.tensor(
    [[False, True, True, True, False], [True] * 5, [False, False, True] + [False] * 2]
)
LAST = [3, 4, 2]


def draw(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def test_the_threshold_is_the_logit_of_0_15():
    assert abs(SAFETY_LOGIT - -1.7346010553881064) < 1e-12
    assert abs(1 / (1 + math.exp(-SAFETY_LOGIT)) - SAFETY_THRESHOLD) < 1e-12


def test_the_truth_table():
    below, at = math.log(0.1499 / 0.8501), SAFETY_LOGIT
    safety = torch.tensor([5.0, -5.0, below, at, 2.0], dtype=torch.float64)
    helpfulness = torch.full((5,), 0.25, dtype=torch.float64)
    tagged = torch.tensor([True, True, False, False, False])
    got = combined_reward(safety, helpfulness, tagged)
    assert got.tolist() == [5.0, -5.0, below, 0.25, 0.25]
    # the same decisions as in the paper's form, on (0, 1)
    s, h = torch.sigmoid(safety), torch.sigmoid(helpfulness)
    paper = torch.where(tagged | (s < SAFETY_THRESHOLD - 1e-12), s, h)
    torch.testing.assert_close(torch.sigmoid(got), paper, rtol=0, atol=1e-12)


def test_extreme_scores_stay_finite_where_the_logit_of_a_sigmoid_does_not():
    raw = torch.tensor([100.0, -100.0])
    assert combined_reward(raw, raw, torch.tensor([True, True])).tolist() == [100.0, -100.0]
    assert torch.logit(torch.sigmoid(raw[:1])).isinf()


def test_the_hole_less_safe_can_pay():
    helpfulness = torch.tensor([math.log(0.05 / 0.95)])  # a safe answer of little help
    normal = torch.tensor([False])
    safe = combined_reward(torch.tensor([0.0]), helpfulness, normal)
    unsafe = combined_reward(torch.tensor([SAFETY_LOGIT - 1e-6]), helpfulness, normal)
    assert unsafe > safe
    torch.testing.assert_close(unsafe - safe, SAFETY_LOGIT - helpfulness, rtol=0, atol=1e-5)


def test_whitened_values_have_mean_0_and_variance_1_over_the_mask():
    x = 3 * draw(ANSWERS, TOKENS) + 7
    white = whiten(x, MASK)
    assert white[~MASK].abs().max() == 0
    assert abs(white[MASK].mean().item()) < 1e-12
    assert abs(white[MASK].var(correction=0).item() - 1) < 1e-12
    poisoned = x.masked_fill(~MASK, 1e30)
    assert torch.equal(whiten(poisoned, MASK), white)
    assert not torch.equal(whiten(x), white)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 12345.678])
def test_equal_values_whiten_to_zero(value, dtype):
    assert whiten(torch.full((7,), value, dtype=dtype)).abs().max() == 0
    near = torch.full((7,), value, dtype=dtype)
    near[3] += 1.0
    assert whiten(near).abs().max() > 1


@given(st.floats(0.1, 50), st.floats(-50, 50))
def test_whitening_ignores_a_scale_and_a_shift_of_all_and_not_of_some(scale, shift):
    x = draw(8)
    torch.testing.assert_close(whiten(scale * x + shift), whiten(x), rtol=0, atol=1e-6)
    some = torch.cat([x[:4], x[4:] + 10])
    assert (whiten(some) - whiten(x)).abs().max() > 0.1


def test_the_rewards_of_a_row_sum_to_its_penalised_score():
    score, logp, ref = draw(ANSWERS), draw(ANSWERS, TOKENS, seed=1), draw(ANSWERS, TOKENS, seed=2)
    rewards = shaped_rewards(score, logp, ref, MASK, 0.3)
    for row in range(ANSWERS):
        ratio = sum((logp - ref)[row, MASK[row]].tolist())
        assert abs(rewards[row].sum().item() - (score[row].item() - 0.3 * ratio)) < 1e-10
    assert rewards[~MASK].abs().max() == 0


def test_the_score_stands_on_the_last_token_only():
    score, logp = draw(ANSWERS), draw(ANSWERS, TOKENS, seed=1)
    rewards = shaped_rewards(score, logp, logp, MASK, 0.3)
    for row, last in enumerate(LAST):
        assert rewards[row, last] == score[row]
        assert rewards[row].count_nonzero() == 1


def test_beta_0_forgets_the_reference_and_nothing_is_differentiated():
    score = draw(ANSWERS)
    logp = draw(ANSWERS, TOKENS, seed=1).requires_grad_()
    ref, other = draw(ANSWERS, TOKENS, seed=2), draw(ANSWERS, TOKENS, seed=3)
    free = shaped_rewards(score, logp, ref, MASK, 0.0)
    assert torch.equal(free, shaped_rewards(score, logp, other, MASK, 0.0))
    tied = [shaped_rewards(score, logp, r, MASK, 0.1) for r in (ref, other)]
    assert not torch.equal(*tied)
    assert not tied[0].requires_grad


def test_what_lies_outside_the_mask_is_not_read():
    score, logp, ref = draw(ANSWERS), draw(ANSWERS, TOKENS, seed=1), draw(ANSWERS, TOKENS, seed=2)
    wanted = shaped_rewards(score, logp, ref, MASK, 0.3)
    spoiled = logp.masked_fill(~MASK, float("inf"))
    assert torch.equal(shaped_rewards(score, spoiled, ref, MASK, 0.3), wanted)


def test_an_answer_without_tokens_is_refused():
    mask = MASK.clone()
    mask[1] = False
    with pytest.raises(ValueError, match=r"rows \[1\] have none"):
        shaped_rewards(draw(3), draw(3, 5), draw(3, 5), mask, 0.1)
