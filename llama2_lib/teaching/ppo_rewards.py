"""Checks of PPO's rewards, from two scores to one number a token, and the mistakes they recognise.

Paper section 3.2.3. Scores are raw, the models' logits.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from llama2_lib import rng
from llama2_lib.objectives.reward import SAFETY_LOGIT, SAFETY_THRESHOLD
from llama2_lib.objectives.reward import combined_reward as right_reward
from llama2_lib.objectives.reward import shaped_rewards as right_shaped
from llama2_lib.objectives.reward import whiten as right_whiten
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.teaching.diagnosis import diagnose

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]
Whiten = Callable[[Tensor, Tensor], Tensor]
Shape = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]

COMBINE_MISTAKES: dict[str, Combine] = {
    "a score exactly at the threshold counts as unsafe; the paper has a strict <": (
        lambda s, h, tagged: torch.where(tagged | (s <= SAFETY_LOGIT), s, h)
    ),
    "a raw score is compared with 0.15; compare it with logit(0.15) = -1.73": (
        lambda s, h, tagged: torch.where(tagged | (s < SAFETY_THRESHOLD), s, h)
    ),
    "the threshold is 0.5, a raw score of 0; the paper has 0.15": lambda s, h, tagged: torch.where(
        tagged | (s < 0), s, h
    ),
    "the comparison is turned round: safe answers get the safety score": (
        lambda s, h, tagged: torch.where(tagged | (s > SAFETY_LOGIT), s, h)
    ),
    "the helpfulness score is compared with the threshold; compare the safety score": (
        lambda s, h, tagged: torch.where(tagged | (h < SAFETY_LOGIT), s, h)
    ),
    "the tag of the prompt is not used": lambda s, h, tagged: torch.where(s < SAFETY_LOGIT, s, h),
    "only the tag of the prompt is used, so unsafe answers to other prompts go free": (
        lambda s, h, tagged: torch.where(tagged, s, h)
    ),
    "tag AND low safety are asked for; either is enough": lambda s, h, tagged: torch.where(
        tagged & (s < SAFETY_LOGIT), s, h
    ),
    "the tag is upside down": lambda s, h, tagged: torch.where(~tagged | (s < SAFETY_LOGIT), s, h),
    "safety and helpfulness are exchanged in the result": lambda s, h, tagged: torch.where(
        tagged | (s < SAFETY_LOGIT), h, s
    ),
    "the smaller of the two scores is taken": lambda s, h, tagged: torch.minimum(s, h),
    "the scores are added": lambda s, h, tagged: s + h,
    "the scores are averaged": lambda s, h, tagged: (s + h) / 2,
    "sigmoid and logit are both taken, which gives infinity for high scores; keep raw scores": (
        lambda s, h, tagged: torch.logit(right_reward(s, h, tagged).sigmoid())
    ),
    "probabilities come back; give raw scores": lambda s, h, tagged: right_reward(
        s, h, tagged
    ).sigmoid(),
}


def combined_reward(candidate: Combine) -> None:
    """Check `candidate(safety, helpfulness, is_safety_prompt)`: the raw score R_c of each answer.

    Scores are raw too, some of them large, and one lies exactly at the threshold.
    """
    safety = torch.tensor([2.0, -3.0, -2.0, SAFETY_LOGIT, 1.0, -0.5, -1.0, 40.0, -1.5, 3.0, 0.1])
    helpfulness = torch.tensor([-1.0, 0.5, 1.5, 0.25, -2.5, 0.75, 35.0, -2.0, 2.5, 0.2, 1.75])
    tagged = torch.tensor([place in (0, 1, 7, 8) for place in range(11)])
    given = (safety, helpfulness, tagged)
    wrong = {name: partial(f, *given) for name, f in COMBINE_MISTAKES.items()}
    diagnose(candidate(*given), right_reward(*given), wrong)


def _whitened(
    x: Tensor,
    mask: Tensor,
    *,
    counted: Callable[[Tensor], Tensor] = lambda mask: mask,
    dim: int | None = None,
    correction: int = 0,
    root: bool = True,
    floor: float = 1e-8,
    kept: bool = False,
) -> Tensor:
    """Whiten with the flaws that are asked for; `kept` leaves numbers where the mask is False."""
    use = counted(mask).to(x.dtype)
    axes = tuple(range(x.dim())) if dim is None else (dim,)
    count = use.sum(axes, keepdim=True)
    mean = (x * use).sum(axes, keepdim=True) / count
    variance = ((x - mean).square() * use).sum(axes, keepdim=True) / (count - correction)
    scale = variance.sqrt() + floor if root else variance + floor
    return ((x - mean) / scale).masked_fill(~(mask | kept), 0.0)


def _scaled_only(x: Tensor, mask: Tensor, factor: float) -> Tensor:
    """Divide by the deviation; the mean stays as it was (factor 1) or comes back later."""
    mean, deviation = x[mask].mean(), x[mask].std(correction=0)
    return ((x - mean) / (deviation + 1e-8) + factor * mean).masked_fill(~mask, 0.0)


def _unmasked_sum(x: Tensor, mask: Tensor) -> Tensor:
    mean = x.sum() / mask.sum()
    variance = (x - mean).square().sum() / mask.sum()
    return ((x - mean) / (variance.sqrt() + 1e-8)).masked_fill(~mask, 0.0)


WHITEN_MISTAKES: dict[str, Whiten] = {
    "pads count in mean and variance; use the mask": partial(_whitened, counted=torch.ones_like),
    "the values are summed with the pads, then divided by the count without them": _unmasked_sum,
    "the mean is added back, as in libraries that keep it; here the mean must be 0": (
        lambda x, mask: _scaled_only(x, mask, 1.0)
    ),
    "the values are divided by their deviation but not shifted to mean 0": lambda x, mask: (
        x / (x[mask].std(correction=0) + 1e-8)
    ).masked_fill(~mask, 0.0),
    "the values are shifted but not divided by their deviation": lambda x, mask: (
        x - x[mask].mean()
    ).masked_fill(~mask, 0.0),
    "the values are divided by the variance; divide by its root": partial(_whitened, root=False),
    "the variance is divided by n - 1, which fails for one value; divide by n": partial(
        _whitened, correction=1
    ),
    "each row is whitened by itself, so all answers have the same mean; use the whole batch": (
        partial(_whitened, dim=1)
    ),
    "each column is whitened by itself; use the whole batch": partial(_whitened, dim=0),
    "equal values give NaN, 0 / 0; they must give zeros": partial(_whitened, floor=0.0),
    "what does not count keeps a number; it must become 0": partial(_whitened, kept=True),
    "the mask is upside down": lambda x, mask: _whitened(x, ~mask),
    "the mask is applied and then forgotten: zeros in place of the pads still count": (
        lambda x, mask: _whitened(x * mask, mask, counted=torch.ones_like)
    ),
}


def whiten(candidate: Whiten) -> None:
    """Check `candidate(x, mask)`: mean 0 and (population) variance 1 over what counts, 0 elsewhere.

    Tried on a batch with large numbers at the pads, on equal values, and on a single value.
    """
    source = rng.generator(0, "check", "whiten")
    x = 3 + 2 * torch.randn(3, 5, generator=source, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[3], [5], [2]])
    x = torch.where(mask, x, 50 + x)
    equal = torch.full((2, 4), 1.5, dtype=torch.float64)
    single = torch.zeros(2, 4, dtype=torch.bool)
    single[1, 2] = True

    def run(function: Whiten) -> Tensor:
        cases = [(x, mask), (equal, torch.ones(2, 4, dtype=torch.bool)), (equal, single)]
        return torch.cat([function(values, keep).flatten() for values, keep in cases])

    wrong = {name: partial(run, f) for name, f in WHITEN_MISTAKES.items()}
    diagnose(run(candidate), run(right_whiten), wrong)


def _last(mask: Tensor) -> Tensor:
    return (torch.arange(mask.shape[1]) * mask).argmax(1)


def _shaped(
    score: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, beta: float,
    *, penalty: Callable[[Tensor], Tensor] = lambda r: r,
    at: Callable[[Tensor], Tensor] = _last, everywhere: bool = False, total: str = "",
) -> Tensor:  # fmt: skip
    """Shape rewards with another penalty, another place of the score, or one KL an answer."""
    divergence = penalty(logprobs - reference).masked_fill(~(mask | everywhere), 0.0)
    rewards = -beta * divergence
    rows = torch.arange(len(score))
    if total:
        whole = rewards.sum(1) / (mask.sum(1) if total == "mean" else 1)
        rewards = torch.zeros_like(rewards)
        rewards[rows, _last(mask)] = whole
    rewards[rows, at(mask)] += score
    return rewards


SHAPE_MISTAKES: dict[str, Shape] = {
    "the divergence is added, so drifting away is paid for; subtract it": partial(
        _shaped, penalty=torch.neg
    ),
    "pads are punished too; the divergence there must be 0": partial(_shaped, everywhere=True),
    "the score stands in the last column, which is a pad in shorter answers; put it on the last "
    "token": partial(_shaped, at=lambda mask: torch.full((len(mask),), mask.shape[1] - 1)),
    "the score stands one place after the last token, where nothing was chosen": partial(
        _shaped, at=lambda mask: (_last(mask) + 1).clamp(max=mask.shape[1] - 1)
    ),
    "the score stands one place before the last token": partial(
        _shaped, at=lambda mask: _last(mask) - 1
    ),
    "the score stands on the first token of the answer": partial(
        _shaped, at=lambda mask: mask.int().argmax(1)
    ),
    "the score stands at the place `number of tokens - 1`, as if no prompt came before": partial(
        _shaped, at=lambda mask: mask.sum(1) - 1
    ),
    "every token gets the whole score; only the last does": lambda s, p, q, mask, beta: (
        _shaped(0 * s, p, q, mask, beta) + s[:, None] * mask
    ),
    "the score is divided among the tokens; only the last has it": lambda s, p, q, mask, beta: (
        _shaped(0 * s, p, q, mask, beta) + (s / mask.sum(1))[:, None] * mask
    ),
    "the divergence is summed over the answer and taken off at its end; take it off token by "
    "token": partial(_shaped, total="sum"),
    "the mean divergence of the answer is taken off at its end, so long answers pay less": partial(
        _shaped, total="mean"
    ),
    "beta is not used": lambda s, p, q, mask, beta: _shaped(s, p, q, mask, 1.0),
    "beta multiplies the score as well": lambda s, p, q, mask, beta: _shaped(
        beta * s, p, q, mask, beta
    ),
    "the score is left out": lambda s, p, q, mask, beta: _shaped(0 * s, p, q, mask, beta),
    "the divergence is left out": lambda s, p, q, mask, beta: _shaped(s, p, q, mask, 0.0),
    "the size of the log-ratio is taken; its sign belongs to it (k1)": partial(
        _shaped, penalty=torch.abs
    ),
    "the ratio is taken, not its logarithm": partial(_shaped, penalty=torch.exp),
    "k2 is taken, whose mean is not the divergence": partial(
        _shaped, penalty=lambda r: r.square() / 2
    ),
    "k3 is taken; equation 4 has the log-ratio itself (k1)": partial(
        _shaped, penalty=lambda r: torch.expm1(-r) + r
    ),
    "the rewards are whitened after the divergence is taken off; whiten the scores before": (
        lambda s, p, q, mask, beta: right_whiten(_shaped(s, p, q, mask, beta), mask)
    ),
}


def shaped_rewards(candidate: Shape) -> None:
    """Check `candidate(score, logprobs, reference_logprobs, mask, beta)`: the reward of each token.

    `mask` is True on the answer's tokens, which stand between prompt and padding. Scores are
    whitened already.
    """
    source = rng.generator(0, "check", "shaped")
    score = torch.tensor([1.25, -0.5, -0.75])
    logprobs, reference = -2 * torch.rand(2, 3, 8, generator=source)
    places = torch.arange(8)
    mask = (places >= torch.tensor([[2], [1], [3]])) & (places < torch.tensor([[6], [8], [5]]))
    given = (score, logprobs.requires_grad_(), reference, mask, 0.3)
    wrong = {name: partial(f, *given) for name, f in SHAPE_MISTAKES.items()}
    actual = candidate(*given)
    diagnose(actual, right_shaped(*given), wrong)
    if actual.requires_grad:
        raise CheckFailed(
            "the values are right, but they carry a gradient; a reward is a number, so detach it. "
            "The gradient of the log-ratio (k1) as a loss is zero in expectation."
        )
