"""Proximal policy optimisation: log-probabilities, advantages and the two clipped losses.

The paper (section 3.2.3) says that it uses PPO with a clip of 0.2 and leaves the rest to
Schulman et al., 2017. Generalised advantages are Schulman et al., 2015.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llama2_lib.objectives.terms import LossTerm


def token_logprobs(
    logits: Float[Tensor, "batch seq vocab"],
    ids: Int[Tensor, "batch seq+1"],
    temperature: float = 1.0,
) -> Float[Tensor, "batch seq"]:
    """Return the log-probability of each next token under `softmax(logits / temperature)`.

    For policy gradients the temperature must be the one that was sampled with.
    """
    logprobs = (logits / temperature).log_softmax(dim=-1)
    return logprobs.gather(-1, ids[:, 1:, None])[..., 0]


def exact_kl(
    logits: Float[Tensor, "*batch vocab"], reference_logits: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Return KL(policy || reference) of the next-token distributions, in nats, summed exactly."""
    logp, logq = logits.log_softmax(dim=-1), reference_logits.log_softmax(dim=-1)
    return (logp.exp() * (logp - logq)).sum(dim=-1)


class KLEstimates(NamedTuple):
    """Three estimates of KL(policy || reference) from samples of the policy.

    Their means: k1 and k3 are unbiased, k2 is biased. k1 has negative samples, the others none.
    """

    k1: Tensor
    k2: Tensor
    k3: Tensor


def kl_estimates(
    logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"]
) -> KLEstimates:
    """Return the estimates for tokens sampled from the policy, r = log pi - log pi_0.

    k1 = r, k2 = r^2 / 2, k3 = e^-r - 1 + r. With the sign of r turned, k3 estimates something
    else (the chi-squared divergence minus the KL).
    """
    r = logprobs - reference_logprobs
    return KLEstimates(r, 0.5 * r.square(), torch.expm1(-r) + r)


def gae(
    rewards: Float[Tensor, "batch tokens"],
    values: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
    """Return advantages and returns; both 0 where the mask is False.

    A_t = sum over l of (gamma * lam)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t. The
    next counted token is the successor, the value after the last one is 0. Nothing at masked
    tokens is read. Returns are advantages + values: what the value function should have said.

    Args:
        rewards: See `shaped_rewards`.
        values: Of the state before each token.
        mask: True on the tokens that were sampled.
        gamma: Discount; 1 for answers, which are short and end.
        lam: 0 trusts the values, 1 the rewards alone.
    """
    advantages = torch.zeros_like(rewards)
    ahead, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        counted = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        ahead = torch.where(counted, delta + gamma * lam * ahead, ahead)
        next_value = torch.where(counted, values[:, t], next_value)
        advantages[:, t] = ahead.masked_fill(~counted, 0.0)
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def ppo_policy_loss(
    logprobs: Float[Tensor, "batch tokens"],
    old_logprobs: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    clip: float = 0.2,
) -> LossTerm:
    """Clipped surrogate, -min(rho A, clip(rho, 1 - eps, 1 + eps) A), summed over tokens.

    Args:
        logprobs: Of the sampled tokens, under the policy being trained.
        old_logprobs: Of the same tokens, under the policy that sampled them.
        advantages: Whitened over the whole batch of rollouts.
        mask: True on the tokens that were sampled.
        clip: eps [0.2].

    Raises:
        ValueError: No token counts.
    """
    count = _count(mask, "ppo_policy_loss").to(logprobs)
    # Masked first: a pad may hold any number, and inf - inf would poison the gradient.
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    gain = advantages.masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip) & mask
        metrics = {
            "clip_fraction": outside.sum() / count,
            # k3 of old against new: the tokens were sampled from the old policy.
            "approx_kl": (torch.expm1(log_ratio) - log_ratio).sum() / count,
            "ratio": ratio.masked_fill(~mask, 0.0).sum() / count,
        }
    return LossTerm(loss.masked_fill(~mask, 0.0).sum(), count, metrics)


def ppo_value_loss(
    values: Float[Tensor, "batch tokens"],
    old_values: Float[Tensor, "batch tokens"],
    returns: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    clip: float | None = 0.2,
) -> LossTerm:
    """Half the squared error against the returns, the worse of clipped and unclipped values.

    Args:
        values: Of the value function being trained.
        old_values: What it said when the rollouts were made.
        returns: See `gae`.
        mask: True on the tokens that were sampled.
        clip: How far a value may move from the old one and still gain; None: any distance. It
            must fit the scale of the returns.

    Raises:
        ValueError: No token counts.
    """
    count = _count(mask, "ppo_value_loss").to(values)
    values, old_values, returns = (x.masked_fill(~mask, 0.0) for x in (values, old_values, returns))
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    with torch.no_grad():
        spread = (returns - returns.sum() / count).masked_fill(~mask, 0.0).square().sum()
        residual = returns - values
        missed = (residual - residual.sum() / count).masked_fill(~mask, 0.0).square().sum()
        # Equal returns leave a spread of rounding errors, of which nothing can be explained.
        tiny = (torch.finfo(returns.dtype).eps * returns.abs().max()).square()
        explained = torch.where(
            spread > 4 * count * tiny, 1 - missed / spread.clamp(min=1e-30), 0.0
        )
    return LossTerm(0.5 * error.sum(), count, {"explained_variance": explained})


def _count(mask: Tensor, name: str) -> Tensor:
    count = mask.sum()
    if count == 0:
        raise ValueError(
            f"{name} needs at least one counted token; the mask marks none of {mask.numel()}. "
            "Were all answers empty?"
        )
    return count
