"""Rewards and PPO's parts: invariants 44 to 57, 60, 61 and 63 to 67, by enumeration."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2_lib.objectives.rlhf import (
    SAFETY_LOGIT,
    SAFETY_THRESHOLD,
    combined_reward,
    exact_kl,
    gae,
    kl_estimates,
    ppo_policy_loss,
    ppo_value_loss,
    shaped_rewards,
    token_logprobs,
    whiten,
)

BATCH, TOKENS, VOCAB = 3, 6, 7
MASK = torch.tensor(
    [
        [False, True, True, True, False, False],  # a prompt before, pads behind
        [True] * 6,
        [False, False, True, True, True, False],
    ]
)
LAST = [3, 5, 4]


def draw(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def exact(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_log_probabilities_by_hand():
    logits, ids = draw(2, 4, VOCAB), torch.randint(0, VOCAB, (2, 5))
    got = token_logprobs(logits, ids)
    for b, t in itertools.product(range(2), range(4)):
        p = logits[b, t].exp()
        assert abs(got[b, t].item() - math.log(p[ids[b, t + 1]] / p.sum())) < 1e-12


def test_estimates_of_kl_by_enumeration():
    logits, reference = draw(VOCAB), draw(VOCAB, seed=1)
    p, q = logits.softmax(-1), reference.softmax(-1)
    k1, k2, k3 = kl_estimates(p.log(), q.log())
    kl = exact_kl(logits, reference)
    exact(kl, (p * (p / q).log()).sum())
    exact((p * k1).sum(), kl)
    exact((p * k3).sum(), kl)
    assert ((p * k2).sum() - kl).abs() > 1e-3
    assert min(k2.min(), k3.min()) >= 0 > k1.min()
    flipped = kl_estimates(q.log(), p.log()).k3  # the sign of r turned
    chi_squared = (p.square() / q).sum() - 1
    exact((p * flipped).sum(), chi_squared - kl)
    exact(exact_kl(logits, logits), torch.zeros((), dtype=torch.float64))


def test_k1_belongs_in_the_reward_and_not_in_the_loss():
    reference = draw(VOCAB, seed=1).log_softmax(-1)
    logits = draw(VOCAB).requires_grad_()
    (wanted,) = torch.autograd.grad(exact_kl(logits, reference), logits)

    def expected_gradient(loss_of_sample):
        logp = logits.log_softmax(-1)
        total = (logp.detach().exp() * loss_of_sample(logp)).sum()
        return torch.autograd.grad(total, logits)[0]

    def reinforce(logp):
        return kl_estimates(logp, reference).k1.detach() * logp

    exact(expected_gradient(reinforce), wanted)
    exact(expected_gradient(lambda logp: kl_estimates(logp, reference).k2), wanted)
    as_loss = expected_gradient(lambda logp: kl_estimates(logp, reference).k1)
    exact(as_loss, torch.zeros_like(as_loss))
    assert wanted.abs().max() > 0.01


def test_advantages_are_the_double_sum():
    rewards, values = draw(BATCH, TOKENS), draw(BATCH, TOKENS, seed=1)
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, lam=0.8)
    for row in range(BATCH):
        at = MASK[row].nonzero()[:, 0].tolist()
        v = [*values[row, at].tolist(), 0.0]
        r = rewards[row, at].tolist()
        delta = [r[i] + 0.9 * v[i + 1] - v[i] for i in range(len(at))]
        for i, t in enumerate(at):
            wanted = sum((0.9 * 0.8) ** (j - i) * delta[j] for j in range(i, len(at)))
            assert abs(advantages[row, t].item() - wanted) < 1e-12
    exact((returns - values)[MASK], advantages[MASK])
    assert advantages[~MASK].abs().max() == returns[~MASK].abs().max() == 0


def test_lambda_1_is_reward_to_go_and_lambda_0_one_step():
    rewards, values = draw(1, TOKENS), draw(1, TOKENS, seed=1)
    everything = torch.ones(1, TOKENS, dtype=torch.bool)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    exact(gae(rewards, values, everything, lam=1.0)[0], to_go - values)
    following = torch.cat([values[:, 1:], torch.zeros(1, 1)], dim=1)
    exact(gae(rewards, values, everything, lam=0.0)[0], rewards + following - values)


def test_what_is_masked_is_not_read():
    rewards, values = draw(BATCH, TOKENS), draw(BATCH, TOKENS, seed=1)
    wanted = gae(rewards, values, MASK)
    spoiled = [x.masked_fill(~MASK, float("nan")) for x in (rewards, values)]
    for got, right in zip(gae(*spoiled, MASK), wanted, strict=True):
        assert torch.equal(got, right)
    changed = rewards.clone()
    changed[0, 2] += 1  # counted
    assert not torch.equal(gae(changed, values, MASK)[0], wanted[0])


def test_a_gap_in_the_mask_is_stepped_over():
    rewards, values = draw(1, 4), draw(1, 4, seed=1)
    apart = torch.tensor([[True, True, False, False, True, True]])
    close = torch.ones(1, 4, dtype=torch.bool)
    wide = [
        torch.full((1, 6), 9.0, dtype=torch.float64).masked_scatter(apart, x)
        for x in (rewards, values)
    ]
    for got, wanted in zip(gae(*wide, apart), gae(rewards, values, close), strict=True):
        exact(got[apart], wanted[0])


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_with_exact_values_the_advantages_average_to_zero(lam):
    policy, reward = draw(2, 3).softmax(-1), draw(2, 3, 3, seed=1)  # two tokens out of three
    # V before the second token depends on the first one
    second = torch.stack([(policy[1] * reward[1, a]).sum() for a in range(3)])
    first = (policy[0] * (reward[0, 0] + second)).sum()
    mean = torch.zeros(2, dtype=torch.float64)
    for a, b in itertools.product(range(3), range(3)):
        rewards = torch.stack([reward[0, 0, a], reward[1, a, b]])[None]
        values = torch.stack([first, second[a]])[None]
        advantages, _ = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), lam=lam)
        mean += policy[0, a] * policy[1, b] * advantages[0]
    exact(mean, torch.zeros(2, dtype=torch.float64), atol=1e-10)


def test_at_ratio_1_the_loss_is_minus_the_advantages_and_the_gradient_reinforce():
    logits, ids = draw(BATCH, TOKENS, VOCAB).requires_grad_(), torch.randint(0, VOCAB, (BATCH, 7))
    advantages = draw(BATCH, TOKENS, seed=2)
    logprobs = token_logprobs(logits, ids)
    term = ppo_policy_loss(logprobs, logprobs.detach(), advantages, MASK)
    exact(term.total.detach(), -advantages[MASK].sum())
    (got,) = torch.autograd.grad(term.total, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(-(advantages * logprobs)[MASK].sum(), logits)
    exact(got, wanted, atol=1e-10)
    assert term.count.item() == int(MASK.sum()) == 12
    assert [term.metrics[name].item() for name in ("clip_fraction", "approx_kl")] == [0, 0]
    assert term.metrics["ratio"].item() == 1


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"),
    [(1, 1.25, False), (-1, 1.25, True), (-1, 0.75, False), (1, 0.75, True), (1, 1.15, True)],
)
def test_the_clip_stops_what_would_go_too_far(advantage, ratio, moves):
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    old, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    term = ppo_policy_loss(logprobs, old, torch.full((1, 1), float(advantage)).double(), one)
    term.total.backward()
    assert (logprobs.grad.item() != 0) is moves
    far = abs(ratio - 1) > 0.2
    assert term.metrics["clip_fraction"].item() == float(far)
    if not far:
        assert abs(term.total.item() + ratio * advantage) < 1e-12


def test_gradients_agree_with_finite_differences():
    old, advantages, returns = (draw(BATCH, TOKENS, seed=s) for s in (1, 2, 3))
    moved = (old + 0.3 * draw(BATCH, TOKENS, seed=4)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ppo_policy_loss(x, old, advantages, MASK).total, moved
    )
    assert torch.autograd.gradcheck(lambda x: ppo_value_loss(x, old, returns, MASK).total, moved)


def test_the_value_loss_is_at_least_the_unclipped_one():
    old, returns = draw(BATCH, TOKENS), draw(BATCH, TOKENS, seed=1)
    near, far = old + 0.1, old + draw(BATCH, TOKENS, seed=2)
    pairs = {}
    for name, values in (("near", near), ("far", far)):
        clipped = ppo_value_loss(values, old, returns, MASK).total
        plain = ppo_value_loss(values, old, returns, MASK, clip=None).total
        exact(plain, 0.5 * (values - returns)[MASK].square().sum())
        pairs[name] = clipped - plain
    exact(pairs["near"], torch.zeros_like(pairs["near"]))
    assert pairs["far"] > 1e-3


def test_returns_that_are_equal_up_to_rounding_cannot_be_explained():
    returns = 0.1 + torch.tensor([[0, 1e-8, 0], [0, 0, 1e-8]])
    values = torch.tensor([[0.0, 0.1, 0.2]]).expand(2, 3)
    found = ppo_value_loss(values, values, returns, torch.ones(2, 3, dtype=torch.bool))
    assert found.metrics["explained_variance"] == 0.0


def test_explained_variance_is_1_for_the_truth_and_0_for_the_mean():
    returns = draw(BATCH, TOKENS)
    mean = torch.full_like(returns, returns[MASK].mean().item())
    # a value function that is off by a constant explains all that varies
    for values, wanted in ((returns, 1.0), (returns + 3, 1.0), (mean, 0.0), (mean - 2, 0.0)):
        metrics = ppo_value_loss(values, values, returns, MASK).metrics
        assert abs(metrics["explained_variance"].item() - wanted) < 1e-12


def test_pads_order_and_micro_batches_change_nothing():
    inputs = [draw(BATCH, TOKENS, seed=s) for s in range(3)]
    for loss in (ppo_policy_loss, ppo_value_loss):
        whole = loss(*inputs, MASK)
        parts = [loss(*(x[rows] for x in inputs), MASK[rows]) for rows in ([0], [1, 2])]
        exact(sum(p.total for p in parts), whole.total, atol=1e-10)
        assert sum(p.count.item() for p in parts) == whole.count.item()
        order = torch.tensor([2, 0, 1])
        exact(loss(*(x[order] for x in inputs), MASK[order]).total, whole.total, atol=1e-10)
        wide = [torch.cat([x, torch.full((BATCH, 2), float("inf"))], dim=1) for x in inputs]
        mask = torch.cat([MASK, torch.zeros(BATCH, 2, dtype=torch.bool)], dim=1)
        exact(loss(*wide, mask).total, whole.total, atol=1e-10)
        naive = sum(p.total / p.count for p in parts) / 2  # a mean of means is another loss
        assert (naive - whole.total / whole.count).abs() > 1e-3


def test_pads_send_no_gradient_back():
    logprobs = draw(BATCH, TOKENS).masked_fill(~MASK, float("inf")).requires_grad_()
    old = draw(BATCH, TOKENS, seed=1)
    ppo_policy_loss(logprobs, old, draw(BATCH, TOKENS, seed=2), MASK).total.backward()
    assert logprobs.grad[~MASK].abs().max() == 0
    assert logprobs.grad[MASK].isfinite().all()


@pytest.mark.parametrize("loss", [ppo_policy_loss, ppo_value_loss])
def test_a_mask_that_counts_nothing_is_refused(loss):
    x = draw(BATCH, TOKENS)
    with pytest.raises(AssertionError, match="one token that counts"):
        loss(x, x, x, torch.zeros_like(MASK))


def test_on_a_bandit_the_optimum_is_the_reference_tilted_by_the_reward():
    score = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    reference, beta = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 0.7
    wanted = reference * (score / beta).exp()
    wanted = wanted / wanted.sum()
    logits = reference.log().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    source = torch.Generator().manual_seed(0)
    mask = torch.ones(2000, 1, dtype=torch.bool)
    for _ in range(150):
        with torch.no_grad():
            p = logits.softmax(-1)
            action = torch.multinomial(p, 2000, replacement=True, generator=source)
            old = p.log()[action]
            reward = score[action] - beta * (old - reference.log()[action])
            advantages, _ = gae(reward[:, None], reward.mean().expand(2000, 1), mask)
        for _ in range(4):
            logprobs = logits.log_softmax(-1)[action]
            term = ppo_policy_loss(logprobs[:, None], old[:, None], advantages, mask)
            optimizer.zero_grad()
            (term.total / term.count).backward()
            optimizer.step()
    assert (logits.softmax(-1) - wanted).abs().max() < 0.02
    assert (wanted - reference).abs().max() > 0.2


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
    x = 3 * draw(BATCH, TOKENS) + 7
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


@settings(deadline=None)  # a busy machine is no failure
@given(st.floats(0.1, 50), st.floats(-50, 50))
def test_whitening_ignores_a_scale_and_a_shift_of_all_and_not_of_some(scale, shift):
    x = draw(8)
    torch.testing.assert_close(whiten(scale * x + shift), whiten(x), rtol=0, atol=1e-6)
    some = torch.cat([x[:4], x[4:] + 10])
    assert (whiten(some) - whiten(x)).abs().max() > 0.1


def test_the_rewards_of_a_row_sum_to_its_penalised_score():
    score, logp, ref = draw(BATCH), draw(BATCH, TOKENS, seed=1), draw(BATCH, TOKENS, seed=2)
    rewards = shaped_rewards(score, logp, ref, MASK, 0.3)
    for row in range(BATCH):
        ratio = sum((logp - ref)[row, MASK[row]].tolist())
        assert abs(rewards[row].sum().item() - (score[row].item() - 0.3 * ratio)) < 1e-10
    assert rewards[~MASK].abs().max() == 0


def test_the_score_stands_on_the_last_token_only():
    score, logp = draw(BATCH), draw(BATCH, TOKENS, seed=1)
    rewards = shaped_rewards(score, logp, logp, MASK, 0.3)
    for row, last in enumerate(LAST):
        assert rewards[row, last] == score[row]
        assert rewards[row].count_nonzero() == 1


def test_beta_0_forgets_the_reference_and_nothing_is_differentiated():
    score = draw(BATCH)
    logp = draw(BATCH, TOKENS, seed=1).requires_grad_()
    ref, other = draw(BATCH, TOKENS, seed=2), draw(BATCH, TOKENS, seed=3)
    free = shaped_rewards(score, logp, ref, MASK, 0.0)
    assert torch.equal(free, shaped_rewards(score, logp, other, MASK, 0.0))
    tied = [shaped_rewards(score, logp, r, MASK, 0.1) for r in (ref, other)]
    assert not torch.equal(*tied)
    assert not tied[0].requires_grad


def test_what_lies_outside_the_mask_is_not_read():
    score, logp, ref = draw(BATCH), draw(BATCH, TOKENS, seed=1), draw(BATCH, TOKENS, seed=2)
    wanted = shaped_rewards(score, logp, ref, MASK, 0.3)
    spoiled = logp.masked_fill(~MASK, float("inf"))
    assert torch.equal(shaped_rewards(score, spoiled, ref, MASK, 0.3), wanted)


def test_an_answer_without_tokens_is_refused():
    mask = MASK.clone()
    mask[1] = False
    with pytest.raises(AssertionError, match="needs a token"):
        shaped_rewards(draw(BATCH), *(draw(BATCH, TOKENS, seed=s) for s in (1, 2)), mask, 0.1)


def test_metrics_of_the_policy_loss_are_means_over_the_counted_tokens():
    """By enumeration: approx_kl is that of the old policy, which sampled, from the new one."""
    old = draw(VOCAB).log_softmax(-1)
    new = (old + 0.3 * draw(VOCAB, seed=1)).log_softmax(-1)
    ids = torch.arange(VOCAB)  # every token once, and pads that are out of any range
    rows = [torch.cat([x, torch.full((3,), 9.0)])[None] for x in (new[ids], old[ids])]
    mask = torch.arange(VOCAB + 3)[None] < VOCAB
    metrics = ppo_policy_loss(rows[0], rows[1] - 5 * ~mask, torch.zeros_like(rows[0]), mask).metrics
    ratio = (new - old).exp()
    exact(metrics["ratio"], ratio.mean())
    far = (ratio - 1).abs() > 0.2
    assert 0 < far.sum() < VOCAB
    exact(metrics["clip_fraction"], far.double().mean())
    one = torch.ones(1, 1, dtype=torch.bool)
    divergence = sum(
        old[token].exp()
        * ppo_policy_loss(
            new[token].view(1, 1), old[token].view(1, 1), torch.zeros(1, 1).double(), one
        ).metrics["approx_kl"]
        for token in ids
    )
    exact(divergence, exact_kl(old, new))
    assert (exact_kl(old, new) - exact_kl(new, old)).abs() > 1e-3
    exact(metrics["approx_kl"], (ratio - 1 - (new - old)).mean())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_whitened_away(bad):
    x = draw(BATCH, TOKENS)
    x[1, 2] = bad
    with pytest.raises(FloatingPointError, match="must be finite; 1 of 12 are not"):
        whiten(x, MASK)
    assert whiten(x, MASK & (torch.arange(TOKENS) != 2)).isfinite().all()
    # nor does a safety score that is no number let an answer pass for safe
    scores = combined_reward(x[1], torch.zeros(TOKENS).double(), torch.zeros(TOKENS).bool())
    assert scores.isnan().any() == math.isnan(bad)


def test_spreads_of_rounding_errors_are_told_from_small_ones():
    eps = torch.finfo(torch.float64).eps
    sides = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    assert whiten(1 + eps * sides).abs().max() == 0
    torch.testing.assert_close(whiten(1 + 3 * eps * sides), sides, rtol=0, atol=0.4)
    assert whiten(1e6 * (1 + eps * sides)).abs().max() == 0
