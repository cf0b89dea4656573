"""Checks of PPO's KL estimates and two losses, and the mistakes they recognise (section 3.2.3).

Rewards have their checks in `ppo_rewards`, advantages in `ppo_advantages`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from llama2_lib import rng
from llama2_lib.objectives.policy_gradient import kl_estimates as right_estimates
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.teaching.diagnosis import diagnose
from llama2_lib.teaching.gradient import value_and_gradient

Estimate = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def _estimates(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return r, r.square() / 2, torch.expm1(-r) + r


ESTIMATE_MISTAKES: dict[str, Estimate] = {
    "reference and policy are exchanged: r = log pi - log pi_0 for samples of pi": lambda p, q: (
        _estimates(q - p)
    ),
    "the sign of k1 is turned": lambda p, q: (q - p, *_estimates(p - q)[1:]),
    "the sign of r is turned in k3: e^r - 1 - r estimates something else, for samples of pi": (
        lambda p, q: (*_estimates(p - q)[:2], _estimates(q - p)[2])
    ),
    "the size of k1 is taken; some of its samples must be negative": lambda p, q: (
        (p - q).abs(),
        *_estimates(p - q)[1:],
    ),
    "the half is missing in k2": lambda p, q: (p - q, (p - q).square(), _estimates(p - q)[2]),
    "k2 is halved before it is squared": lambda p, q: (
        p - q,
        ((p - q) / 2).square(),
        _estimates(p - q)[2],
    ),
    "the -1 is missing in k3, so it is 1 where the policies agree": lambda p, q: (
        *_estimates(p - q)[:2],
        (q - p).exp() + (p - q),
    ),
    "the + r is missing in k3, so its mean is 0": lambda p, q: (
        *_estimates(p - q)[:2],
        torch.expm1(q - p),
    ),
    "the sign of the last term of k3 is turned: e^-r - 1 - r": lambda p, q: (
        *_estimates(p - q)[:2],
        torch.expm1(q - p) - (p - q),
    ),
    "k2 and k3 are exchanged": lambda p, q: tuple(_estimates(p - q)[i] for i in (0, 2, 1)),
    "the log-ratio is weighed by the probability, though samples carry that weight already": (
        lambda p, q: tuple(p.exp() * part for part in _estimates(p - q))
    ),
    "the ratio is taken of the log-probabilities; subtract them": lambda p, q: _estimates(p / q),
}


def kl_estimates(candidate: Estimate) -> None:
    """Check `candidate(logprobs, reference_logprobs)`: k1, k2 and k3 of each sampled token."""
    logprobs, reference = -3 * torch.rand(2, 3, 4, generator=rng.generator(0, "check", "kl"))

    def run(function: Estimate) -> Tensor:
        parts = [torch.as_tensor(part) for part in function(logprobs, reference)]
        if [part.shape for part in parts] != [logprobs.shape] * 3:
            raise CheckFailed("three tensors must come back, k1, k2 and k3, one number a token.")
        return torch.stack(parts)

    wrong = {name: partial(run, f) for name, f in ESTIMATE_MISTAKES.items()}
    diagnose(run(candidate), run(right_estimates), wrong)


def _mean(loss: Tensor, mask: Tensor, by: str = "tokens") -> Tensor:
    """Average over the counted tokens, or in a wrong way."""
    kept = loss.masked_fill(~mask, 0.0)
    if by == "rows":
        return (kept.sum(1) / mask.sum(1)).mean()
    return {
        "tokens": kept.sum() / mask.sum(),
        "places": kept.mean(),
        "all": loss.mean(),
        "rows only": kept.sum() / len(mask),
        "none": kept.sum(),
    }[by]


def _surrogate(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float,
    *, ratio: Callable[[Tensor, Tensor], Tensor] = lambda new, old: (new - old).exp(),
    limit: tuple[float, float] = (1.0, 1.0), by: str = "tokens",
    choose: Callable[[Tensor, Tensor], Tensor] = torch.minimum,
) -> Tensor:  # fmt: skip
    """The clipped surrogate with another ratio, other limits (in clips), choice or mean."""
    rho = ratio(new, old)
    near = rho.clamp(1 - limit[0] * clip, 1 + limit[1] * clip)
    return _mean(-choose(rho * advantages, near * advantages), mask, by)


def _log_clipped(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    rho, near = (new - old).exp(), (new - old).clamp(-clip, clip).exp()
    return _mean(-torch.minimum(rho * advantages, near * advantages), mask)


def _gain_clipped(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    gain = (new - old).exp() * advantages
    return _mean(-torch.minimum(gain, gain.clamp(1 - clip, 1 + clip)), mask)


def _of_answers(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    whole = ((new - old) * mask).sum(1, keepdim=True)
    return _surrogate(whole.expand_as(new), torch.zeros_like(old), advantages, mask, clip)


POLICY_MISTAKES: dict[str, Loss] = {
    "the larger of clipped and unclipped gain is taken, which rewards going too far; take the "
    "minimum, and turn the sign after it": partial(_surrogate, choose=torch.maximum),
    "the sign is wrong: this is the gain, and training would lower it": lambda n, o, a, m, c: (
        -_surrogate(n, o, a, m, c)
    ),
    "the log-ratio is clipped to -eps...eps; clip the ratio to 1 - eps...1 + eps": _log_clipped,
    "the gain is clipped; clip the ratio, then multiply by the advantage": _gain_clipped,
    "nothing is clipped": partial(_surrogate, choose=lambda gain, near: gain),
    "only the clipped gain is used, which has no gradient beyond the limit even to come back; take "
    "the smaller of both": partial(_surrogate, choose=lambda gain, near: near),
    "the ratio is clipped above only": partial(_surrogate, limit=(1e9, 1.0)),
    "the ratio is clipped below only": partial(_surrogate, limit=(1.0, 1e9)),
    "the ratio is upside down; divide new by old": partial(
        _surrogate, ratio=lambda new, old: (old - new).exp()
    ),
    "the exponential is missing: the difference of log-probabilities is used as a ratio": partial(
        _surrogate, ratio=lambda new, old: new - old
    ),
    "the log-probabilities are divided; subtract them and take exp": partial(
        _surrogate, ratio=lambda new, old: new / old
    ),
    "the old log-probabilities are the new ones, gradient and all, so the ratio is 1 and nothing "
    "moves; take those stored when the answers were sampled": partial(
        _surrogate, ratio=lambda new, old: (new - new).exp()
    ),
    "the old log-probabilities are the new ones, detached, so nothing is ever clipped; take those "
    "stored when the answers were sampled": partial(
        _surrogate, ratio=lambda new, old: (new - new.detach()).exp()
    ),
    "the log-probability is used without a ratio (REINFORCE), right for the first step only": (
        lambda n, o, a, m, c: _mean(-n * a, m)
    ),
    "one ratio is made of the whole answer; each token has its own": _of_answers,
    "pads are counted in sum and divisor": partial(_surrogate, by="all"),
    "the sum is divided by all places, pads included; divide by the counted tokens": partial(
        _surrogate, by="places"
    ),
    "each answer is averaged by itself, so a token of a short one weighs more": partial(
        _surrogate, by="rows"
    ),
    "the sum is divided by the answers; divide by the counted tokens": partial(
        _surrogate, by="rows only"
    ),
    "the loss is summed, not averaged over the counted tokens": partial(_surrogate, by="none"),
}


def ppo_policy_loss(candidate: Loss) -> None:
    """Check `candidate(logprobs, old_logprobs, advantages, mask, clip)`: the mean over counted
    tokens, and its gradient. Ratios lie on both sides of both limits."""
    source = rng.generator(0, "check", "policy loss")
    new, noise, advantages = torch.randn(3, 4, 9, generator=source)
    new = -1.5 - new.abs()
    old = new - 0.35 * noise
    mask = torch.arange(9) < torch.tensor([[6], [9], [3], [7]])

    def run(loss: Loss) -> Tensor:
        return value_and_gradient(lambda x: loss(x, old, advantages, mask, 0.2), new)

    wrong = {name: partial(run, f) for name, f in POLICY_MISTAKES.items()}
    diagnose(run(candidate), run(_surrogate), wrong)


def _error(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float,
    *, choose: Callable[[Tensor, Tensor], Tensor] = torch.maximum, half: float = 0.5,
    by: str = "tokens", power: int = 2, around: str = "old",
) -> Tensor:  # fmt: skip
    """The value loss with another choice, factor, mean, power or centre of the clip."""
    centre = returns if around == "returns" else old
    near = centre + (values - centre).clamp(-clip, clip)
    if around == "ratio":
        near = old * (values / old).clamp(1 - clip, 1 + clip)
    errors = [(x - returns).abs() ** power for x in (values, near)]
    return half * _mean(choose(*errors), mask, by)


VALUE_MISTAKES: dict[str, Loss] = {
    "the smaller of the two errors is taken, which rewards going too far; take the larger": partial(
        _error, choose=torch.minimum
    ),
    "the value is clipped around the returns, so the error itself is; clip it around the old "
    "value": partial(_error, around="returns", choose=lambda error, near: near),
    "the ratio of the values is clipped; clip their difference": partial(_error, around="ratio"),
    "the half is missing": partial(_error, half=1.0),
    "nothing is clipped": partial(_error, choose=lambda error, near: error),
    "only the clipped value is used, which has no gradient beyond the limit even to come back; "
    "take the larger error": partial(_error, choose=lambda error, near: near),
    "the errors are not squared": partial(_error, power=1),
    "old values and returns are exchanged": lambda v, o, r, m, c: _error(v, r, o, m, c),
    "the values are pulled to the old ones, the returns are not used": lambda v, o, r, m, c: (
        0.5 * _mean((v - o).square(), m)
    ),
    "the sign is wrong": partial(_error, half=-0.5),
    "pads are counted in sum and divisor": partial(_error, by="all"),
    "the sum is divided by all places, pads included; divide by the counted tokens": partial(
        _error, by="places"
    ),
    "each answer is averaged by itself, so a token of a short one weighs more": partial(
        _error, by="rows"
    ),
    "the loss is summed, not averaged over the counted tokens": partial(_error, by="none"),
}


def ppo_value_loss(candidate: Loss) -> None:
    """Check `candidate(values, old_values, returns, mask, clip)`: half the mean squared error,
    the worse of clipped and unclipped value, and its gradient."""
    source = rng.generator(0, "check", "value loss")
    values, moved, missed = torch.randn(3, 4, 9, generator=source)
    old, returns = values - 0.4 * moved, values + missed
    mask = torch.arange(9) < torch.tensor([[6], [9], [3], [7]])

    def run(loss: Loss) -> Tensor:
        return value_and_gradient(lambda x: loss(x, old, returns, mask, 0.2), values)

    wrong = {name: partial(run, f) for name, f in VALUE_MISTAKES.items()}
    diagnose(run(candidate), run(_error), wrong)
