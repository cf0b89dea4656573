"""Every known mistake in PPO's rewards, advantages and losses is rejected and named; right code
passes."""

import math

import pytest
import torch

from llama2_lib.objectives import policy_gradient, reward
from llama2_lib.teaching import ppo, ppo_advantages, ppo_rewards
from llama2_lib.teaching.check import CheckFailed


def cases(*pairs):
    return [
        pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
        for check, mistakes in pairs
        for name, wrong in mistakes.items()
    ]


@pytest.mark.parametrize(
    ("check", "name", "wrong"),
    cases(
        (ppo_rewards.combined_reward, ppo_rewards.COMBINE_MISTAKES),
        (ppo_rewards.whiten, ppo_rewards.WHITEN_MISTAKES),
        (ppo_rewards.shaped_rewards, ppo_rewards.SHAPE_MISTAKES),
        (ppo.kl_estimates, ppo.ESTIMATE_MISTAKES),
        (ppo_advantages.gae, ppo_advantages.GAE_MISTAKES),
        (ppo.ppo_policy_loss, ppo.POLICY_MISTAKES),
        (ppo.ppo_value_loss, ppo.VALUE_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


def combined_by_probability(safety, helpfulness, is_safety_prompt):
    """The paper's own form decides, the raw scores come back."""
    unsafe = safety.sigmoid() < 0.15
    return safety * (is_safety_prompt | unsafe) + helpfulness * ~(is_safety_prompt | unsafe)


def combined_in_a_loop(safety, helpfulness, is_safety_prompt):
    rows = zip(safety, helpfulness, is_safety_prompt, strict=True)
    threshold = torch.tensor(0.15).logit()
    return torch.stack([s if tagged or s < threshold else h for s, h, tagged in rows])


def test_right_combined_rewards_pass():
    for right in (reward.combined_reward, combined_by_probability, combined_in_a_loop):
        ppo_rewards.combined_reward(right)


def whitened_by_selection(x, mask):
    kept = x[mask]
    out = torch.zeros_like(x)
    out[mask] = (kept - kept.mean()) / (kept.var(correction=0) + 1e-8).sqrt()
    return out


def test_right_whitening_passes():
    for right in (reward.whiten, whitened_by_selection):
        ppo_rewards.whiten(right)


def shaped_in_a_loop(score, logprobs, reference_logprobs, mask, beta):
    out = torch.zeros(mask.shape)
    for row in range(len(score)):
        tokens = mask[row].nonzero()[:, 0].tolist()
        for t in tokens:
            out[row, t] = beta * (reference_logprobs[row, t] - logprobs[row, t]).item()
        out[row, tokens[-1]] += score[row]
    return out


def shaped_by_counting(score, logprobs, reference_logprobs, mask, beta):
    is_last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    penalty = beta * (logprobs.detach() - reference_logprobs)
    return mask * (is_last * score[:, None] - penalty)


def test_right_shaped_rewards_pass():
    for right in (reward.shaped_rewards, shaped_in_a_loop, shaped_by_counting):
        ppo_rewards.shaped_rewards(right)


def test_a_reward_with_a_gradient_is_rejected():
    def attached(score, logprobs, reference_logprobs, mask, beta):
        is_last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        return mask * (is_last * score[:, None] - beta * (logprobs - reference_logprobs))

    with pytest.raises(CheckFailed, match="carry a gradient"):
        ppo_rewards.shaped_rewards(attached)


def estimates_by_ratio(logprobs, reference_logprobs):
    ratio = (reference_logprobs - logprobs).exp()  # pi_0 / pi
    return -ratio.log(), ratio.log().square() * 0.5, ratio - 1 - ratio.log()


def test_right_estimates_pass():
    for right in (policy_gradient.kl_estimates, estimates_by_ratio):
        ppo.kl_estimates(right)


def library_gae(rewards, values, mask, gamma, lam):
    return policy_gradient.gae(rewards, values, mask, gamma=gamma, lam=lam)


def gae_by_double_sum(rewards, values, mask, gamma, lam):
    advantages = torch.zeros_like(rewards)
    for row, places in enumerate(mask):
        tokens = places.nonzero()[:, 0].tolist()
        v = [*values[row, tokens].tolist(), 0.0]
        delta = [rewards[row, t].item() + gamma * v[i + 1] - v[i] for i, t in enumerate(tokens)]
        for i, t in enumerate(tokens):
            advantages[row, t] = sum(d * (gamma * lam) ** n for n, d in enumerate(delta[i:]))
    return advantages, torch.where(mask, advantages + values, 0.0)


def gae_by_lambda_returns(rewards, values, mask, gamma, lam):
    """Returns first, G_t = r_t + gamma ((1 - lam) V_(t+1) + lam G_(t+1)); advantages from them."""
    returns = torch.zeros(len(mask), mask.shape[1] + 1)
    after = torch.cat([values * mask, torch.zeros(len(mask), 1)], dim=1)
    for t in range(mask.shape[1] - 1, -1, -1):
        target = (1 - lam) * after[:, t + 1] + lam * returns[:, t + 1]
        returns[:, t] = mask[:, t] * (rewards[:, t] + gamma * target)
    return mask * (returns[:, :-1] - values), returns[:, :-1]


def test_right_advantages_pass():
    for right in (library_gae, gae_by_double_sum, gae_by_lambda_returns):
        ppo_advantages.gae(right)


def test_numbers_at_pads_are_named():
    def unmasked(rewards, values, mask, gamma, lam):
        advantages = library_gae(rewards, values, mask, gamma, lam)[0]
        return advantages, advantages + values

    with pytest.raises(CheckFailed, match="not 0 where the mask is False"):
        ppo_advantages.gae(unmasked)

    def blind(rewards, values, mask, gamma, lam):
        return library_gae(rewards, values, torch.ones_like(mask), gamma, lam)

    with pytest.raises(CheckFailed, match="the sum is carried through the pads"):
        ppo_advantages.gae(blind)


def mean_of(term):
    return term.total / term.count


def library_policy_loss(*given):
    return mean_of(policy_gradient.ppo_policy_loss(*given))


def policy_loss_by_cases(logprobs, old_logprobs, advantages, mask, clip):
    """Beyond the limit in the direction of the advantage the gain is constant."""
    log_ratio, gain = (logprobs - old_logprobs)[mask], advantages[mask]
    over = (gain > 0) & (log_ratio > math.log1p(clip))
    under = (gain < 0) & (log_ratio < math.log1p(-clip))
    ratio = log_ratio.exp()
    ratio = torch.where(over, torch.tensor(1 + clip), ratio)
    ratio = torch.where(under, torch.tensor(1 - clip), ratio)
    return -(ratio * gain).mean()


def policy_loss_by_maximum(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    losses = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    return (losses * mask).sum() / mask.sum()


def test_right_policy_losses_pass():
    for right in (library_policy_loss, policy_loss_by_cases, policy_loss_by_maximum):
        ppo.ppo_policy_loss(right)


def library_value_loss(*given):
    return mean_of(policy_gradient.ppo_value_loss(*given))


def value_loss_by_selection(values, old_values, returns, mask, clip):
    values, old_values, returns = values[mask], old_values[mask], returns[mask]
    near = torch.max(torch.min(values, old_values + clip), old_values - clip)
    worse = torch.stack([(values - returns).abs(), (near - returns).abs()]).amax(0)
    return (worse**2).mean() / 2


def test_right_value_losses_pass():
    for right in (library_value_loss, value_loss_by_selection):
        ppo.ppo_value_loss(right)


def test_what_is_no_known_mistake_is_rejected_as_well():
    with pytest.raises(CheckFailed, match="like no mistake known"):
        ppo.ppo_policy_loss(lambda *given: 3 * library_policy_loss(*given))
    with pytest.raises(CheckFailed, match="without axes; got LossTerm"):
        ppo.ppo_value_loss(policy_gradient.ppo_value_loss)
    with pytest.raises(CheckFailed, match="three tensors"):
        ppo.kl_estimates(lambda p, q: (p - q, (p - q).square()))
    with pytest.raises(CheckFailed, match="two tensors"):
        ppo_advantages.gae(lambda *given: (library_gae(*given)[0][0], given[1]))
    with pytest.raises(CheckFailed, match="a tensor must come back; got tuple"):
        ppo_rewards.combined_reward(lambda *given: given)
