"""Losses of reward models and of proximal policy optimisation (paper section 3.2, A.3.3, A.3.4).

In the order of use: the ranking loss of a reward model and its auxiliary loss; log-probabilities
and divergences, the reward from two reward models, its whitening and shaping, advantages, and the
two clipped losses of PPO. The paper says that it uses PPO with a clip of 0.2 and leaves the rest to
Schulman et al., 2017. Generalised advantages are Schulman et al., 2015.

Scores are raw, the models' logits, throughout. The paper writes sigmoid(score) and takes the
logit of it again; doing so in numbers gives infinity from a score of 17 on in fp32, 7 in bf16.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llama2_lib.objectives.language import LossTerm

Pairs = Float[Tensor, " pairs"]
Scores = Float[Tensor, " answers"]
Tokens = Float[Tensor, "answers tokens"]
Mask = Bool[Tensor, "answers tokens"]
"""True on the tokens that were sampled, the final EOS included."""

SAFETY_THRESHOLD = 0.15
"""Below it an answer is treated as unsafe: precision 0.89, recall 0.55 in the paper."""
SAFETY_LOGIT = math.log(SAFETY_THRESHOLD / (1 - SAFETY_THRESHOLD))


def margins(grades: Sequence[str], table: Mapping[str, float]) -> Pairs:
    """Return m(r) of equation 2 for each pair: the margin of its grade."""
    if unknown := sorted(set(grades) - set(table)):
        raise ValueError(f"a grade must be one of {[*table]}; got {unknown}.")
    return torch.tensor([table[grade] for grade in grades])


def ranking_loss(chosen: Pairs, rejected: Pairs, margin: Pairs | None = None) -> LossTerm:
    """Binary ranking loss, -log sigmoid(r_chosen - r_rejected - m) (paper equations 1 and 2).

    The margin m(r) belongs to training. Evaluate without it, or models trained with different
    margins cannot be compared. Scores are raw, as the model gives them.
    """
    gap = chosen - rejected
    # logsigmoid and not log(sigmoid): the latter is -inf from a gap of -104 on in fp32.
    loss = -F.logsigmoid(gap if margin is None else gap - margin.to(gap))
    metrics = {"accuracy": pairwise_accuracy(chosen, rejected), "gap": gap.detach().mean()}
    return LossTerm(loss.sum(), loss.new_tensor(len(loss)), metrics)


def pairwise_accuracy(chosen: Pairs, rejected: Pairs) -> Float[Tensor, ""]:
    """Return the share of pairs in which the chosen answer scores higher; a tie counts half.

    A score that is not a number makes the share none either.
    """
    gap = (chosen - rejected).detach()
    if not len(gap):
        raise ValueError("a comparison needs at least one pair; got none.")
    wins = (gap > 0).to(gap.dtype) + 0.5 * (gap == 0).to(gap.dtype)
    return wins.masked_fill(gap.isnan(), float("nan")).mean()


def safety_auxiliary_loss(
    scores: Float[Tensor, " answers"], is_safe: Bool[Tensor, " answers"]
) -> LossTerm:
    """Cross-entropy of each answer's own score against its safety label.

    OUR reconstruction. The paper reports what an auxiliary safety loss gains (table 29: 73.0 to
    90.4 % of unsafe answers below 0.5) but not its formula. It is needed: a ranking loss does not
    change when a constant is added to all scores, so without an absolute term the threshold of
    0.15 in section 3.2.3 has no meaning.
    """
    loss = F.binary_cross_entropy_with_logits(scores, is_safe.to(scores), reduction="none")
    unsafe = ~is_safe
    recall = (unsafe & (scores < 0)).sum() / unsafe.sum().clamp(min=1)
    metrics = {"unsafe_recall": recall.detach().to(scores.dtype)}
    return LossTerm(loss.sum(), loss.new_tensor(len(loss)), metrics)


# --- PPO


def token_logprobs(
    logits: Float[Tensor, "batch seq vocab"], ids: Int[Tensor, "batch seq+1"]
) -> Float[Tensor, "batch seq"]:
    """Return the log-probability of each next token under `softmax(logits)`."""
    return logits.log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]


def exact_kl(
    logits: Float[Tensor, "*batch vocab"], reference_logits: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """Return KL(policy || reference) of the next-token distributions, in nats, summed exactly."""
    logp, logq = logits.log_softmax(dim=-1), reference_logits.log_softmax(dim=-1)
    return (logp.exp() * (logp - logq)).sum(dim=-1)


class KLEstimates(NamedTuple):
    """Three estimates of KL(policy || reference): k2 is biased, k1 alone has negative samples."""

    k1: Tensor
    k2: Tensor
    k3: Tensor


def kl_estimates(
    logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"]
) -> KLEstimates:
    """Return k1 = r, k2 = r^2 / 2, k3 = e^-r - 1 + r of sampled tokens, r = log pi - log pi_0.

    With the sign of r turned, k3 estimates the chi-squared divergence minus the KL.
    """
    r = logprobs - reference_logprobs
    return KLEstimates(r, 0.5 * r.square(), torch.expm1(-r) + r)


def combined_reward(
    safety: Scores, helpfulness: Scores, is_safety_prompt: Bool[Tensor, " answers"]
) -> Scores:
    """Return R_c as a raw score: safety where it matters, helpfulness elsewhere.

    R_c = R_s if is_safety(prompt) or R_s < 0.15, else R_h. The function has a hole: where a safe
    answer is less helpful than 0.15, making it slightly unsafe raises R_c, from R_h up to 0.15.
    Prompts apt to elicit unsafe answers are tagged in advance: `is_safety_prompt`.
    """
    # "not at least" and not "below": a score that is no number must not pass for a safe one.
    return torch.where(is_safety_prompt | ~(safety >= SAFETY_LOGIT), safety, helpfulness)


def whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*shape"]:
    """Shift and scale the counted values to mean 0 and (population) variance 1.

    What does not count becomes 0 and influences nothing. Values that are all equal give zeros.
    In some libraries whitened values keep their mean. Here they never do.
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    count = mask.sum().clamp(min=1)
    counted = x.masked_fill(~mask, 0.0)
    if n_bad := int((~counted.isfinite()).sum()):
        raise FloatingPointError(
            f"values to whiten must be finite; {n_bad} of {int(count)} are not. Have the policy, "
            "its value function or a reward model diverged?"
        )
    centred = (counted - counted.sum() / count).masked_fill(~mask, 0.0)
    variance = centred.square().sum() / count
    # Equal values leave a variance of rounding errors, which must not be blown up to 1.
    scaled = centred * variance.clamp(min=1e-30).rsqrt()
    return torch.where(variance > _rounding(counted), scaled, 0.0)


def _rounding(x: Tensor) -> Tensor:
    """Return the variance that rounding errors alone can have among equal values like these."""
    return 4 * (torch.finfo(x.dtype).eps * x.abs().max()).square()


def shaped_rewards(
    score: Scores, logprobs: Tokens, reference_logprobs: Tokens, response_mask: Mask, beta: float
) -> Tokens:
    """Return the reward of every token: -beta times its log-ratio, and the score at the end.

    The sum over a row is score - beta * (log pi(answer) - log pi_0(answer)), one sample of
    equation 4. The log-ratio (k1) is a reward and not a loss: the gradient of a k1 loss is zero
    in expectation.

    Args:
        score: Whitened score of each answer.
        logprobs: Of the sampled tokens, under the policy that sampled them.
        reference_logprobs: Under the frozen reference.
        beta: Weight of the divergence (paper: 0.01 for 7B and 13B, 0.005 for 34B and 70B).
    """
    assert response_mask.any(dim=1).all(), "every answer needs a token for its score to stand on"
    rewards = (-beta * (logprobs - reference_logprobs)).masked_fill(~response_mask, 0.0)
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = (positions * response_mask).argmax(dim=1, keepdim=True)
    return rewards.scatter_add(1, last, score[:, None].to(rewards)).detach()


def gae(
    rewards: Tokens, values: Tokens, mask: Mask, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tokens, Tokens]:
    """Return advantages and returns; both 0 where the mask is False.

    A_t = sum over l of (gamma * lam)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t. The
    next counted token is the successor, the value after the last one is 0. Nothing at masked
    tokens is read. Returns are advantages + values: what the value function should have said.
    A lambda of 0 trusts the values (of the state before each token), 1 the rewards alone.
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
    logprobs: Tokens, old_logprobs: Tokens, advantages: Tokens, mask: Mask, clip: float = 0.2
) -> LossTerm:
    """Clipped surrogate, -min(rho A, clip(rho, 1 - eps, 1 + eps) A), summed over tokens.

    Of the metrics, `clip_fraction` is the share of tokens with |rho - 1| > eps. Others count only
    those of them where the clipped term is the smaller one, so that no gradient is left: theirs
    is lower. `approx_kl` is k3 of KL(old policy || policy), `ratio` the mean of rho.

    Args:
        logprobs: Of the sampled tokens, under the policy being trained.
        old_logprobs: Under the policy that sampled them.
        advantages: Whitened over the whole batch of rollouts.
        mask: At least one token must count.
        clip: eps [0.2].
    """
    assert mask.any(), "a loss needs at least one token that counts"
    count = mask.sum().to(logprobs)
    # Masked first: a pad may hold any number, and inf - inf would poison the gradient.
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    gain = advantages.masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip) & mask
        metrics = {
            "clip_fraction": outside.sum() / count,
            # of old against new, for the tokens were sampled from the old policy
            "approx_kl": (torch.expm1(log_ratio) - log_ratio).sum() / count,
            "ratio": ratio.masked_fill(~mask, 0.0).sum() / count,
        }
    return LossTerm(loss.masked_fill(~mask, 0.0).sum(), count, metrics)


def ppo_value_loss(
    values: Tokens, old_values: Tokens, returns: Tokens, mask: Mask, clip: float | None = 0.2
) -> LossTerm:
    """Half the squared error against the returns, the worse of clipped and unclipped values.

    `old_values` are those of the time when the rollouts were made. `clip` is how far a value may
    move from them and still gain (None: any distance); it must fit the scale of the returns.
    """
    assert mask.any(), "a loss needs at least one token that counts"
    count = mask.sum().to(values)
    values, old_values, returns = (x.masked_fill(~mask, 0.0) for x in (values, old_values, returns))
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    metrics = {"explained_variance": explained_variance(values[mask], returns[mask])}
    return LossTerm(0.5 * error.sum(), count, metrics)


@torch.no_grad()
def explained_variance(
    values: Float[Tensor, " tokens"], returns: Float[Tensor, " tokens"]
) -> Float[Tensor, ""]:
    """Return which share of the variance of the returns the values foresaw; 0 where there is none.

    Of a batch as a whole: it is no mean over the parts of one.
    """
    spread, missed = ((x - x.mean()).square().sum() for x in (returns, returns - values))
    # Equal returns leave a spread of rounding errors, of which nothing can be explained.
    explained = 1 - missed / spread.clamp(min=1e-30)
    return torch.where(spread > len(returns) * _rounding(returns), explained, 0.0)
