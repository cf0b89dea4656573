"""From two reward models to rewards of single tokens (paper section 3.2.3).

Scores are raw, the models' logits, throughout. The paper writes sigmoid(score) and takes the
logit of it again; doing so in numbers gives infinity from a score of 17 on in fp32, 7 in bf16.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SAFETY_THRESHOLD = 0.15
"""Below it an answer is treated as unsafe: precision 0.89, recall 0.55 in the paper."""
SAFETY_LOGIT = math.log(SAFETY_THRESHOLD / (1 - SAFETY_THRESHOLD))


def combined_reward(
    safety: Float[Tensor, " answers"],
    helpfulness: Float[Tensor, " answers"],
    is_safety_prompt: Bool[Tensor, " answers"],
) -> Float[Tensor, " answers"]:
    """Return R_c as a raw score: safety where it matters, helpfulness elsewhere.

    R_c = R_s if is_safety(prompt) or R_s < 0.15, else R_h. The function has a hole: where a safe
    answer is less helpful than 0.15, making it slightly unsafe raises R_c, from R_h up to 0.15.

    Args:
        safety: Raw score of the safety reward model.
        helpfulness: Raw score of the helpfulness reward model.
        is_safety_prompt: True for prompts tagged in advance as apt to elicit unsafe answers.
    """
    return torch.where(is_safety_prompt | (safety < SAFETY_LOGIT), safety, helpfulness)


def whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*shape"]:
    """Shift and scale the counted values to mean 0 and (population) variance 1.

    What does not count becomes 0 and influences nothing. Values that are all equal give zeros.
    Note that libraries differ: in some, whitened values keep their mean. Here they never do.
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    count = mask.sum().clamp(min=1)
    kept = x.masked_fill(~mask, 0.0)
    centred = (kept - kept.sum() / count).masked_fill(~mask, 0.0)
    variance = centred.square().sum() / count
    # Equal values leave a variance of rounding errors, which must not be blown up to 1.
    tiny = (torch.finfo(x.dtype).eps * kept.abs().max()).square()
    return torch.where(variance > 4 * tiny, centred * variance.clamp(min=1e-30).rsqrt(), 0.0)


def shaped_rewards(
    score: Float[Tensor, " answers"],
    logprobs: Float[Tensor, "answers tokens"],
    reference_logprobs: Float[Tensor, "answers tokens"],
    response_mask: Bool[Tensor, "answers tokens"],
    beta: float,
) -> Float[Tensor, "answers tokens"]:
    """Return the reward of every token: -beta times its log-ratio, and the score at the end.

    The sum over a row is score - beta * (log pi(answer) - log pi_0(answer)), one sample of
    equation 4. The log-ratio (k1) is a reward and not a loss: the gradient of a k1 loss is zero
    in expectation.

    Args:
        score: Whitened score of each answer.
        logprobs: Of the sampled tokens, under the policy that sampled them.
        reference_logprobs: Of the same tokens, under the frozen reference.
        response_mask: True on the answer's tokens, the final EOS included.
        beta: Weight of the divergence (paper: 0.01 for 7B and 13B, 0.005 for 34B and 70B).

    Raises:
        ValueError: An answer has no token.
    """
    if not bool(response_mask.any(dim=1).all()):
        rows = (~response_mask.any(dim=1)).nonzero()[:5, 0].tolist()
        raise ValueError(
            f"every answer needs at least one token for its score to stand on; rows {rows} have "
            "none. Drop them before rewards are assigned, and count them."
        )
    rewards = (-beta * (logprobs - reference_logprobs)).masked_fill(~response_mask, 0.0)
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = (positions * response_mask).argmax(dim=1, keepdim=True)
    return rewards.scatter_add(1, last, score[:, None].to(rewards)).detach()
