"""Checks of PPO (paper section 3.2.3), and the mistakes they recognise.

From two scores to one reward a token, then KL estimates, advantages and the two losses. Scores are
raw, the models' logits.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2_lib import rng
from llama2_lib.objectives.rlhf import SAFETY_LOGIT, SAFETY_THRESHOLD
from llama2_lib.objectives.rlhf import combined_reward as right_reward
from llama2_lib.objectives.rlhf import gae as right_gae
from llama2_lib.objectives.rlhf import kl_estimates as right_estimates
from llama2_lib.objectives.rlhf import shaped_rewards as right_shaped
from llama2_lib.objectives.rlhf import whiten as right_whiten
from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, diagnose, on, value_and_gradient

COMBINE_MISTAKES: Mistakes = {
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
    "the larger of the two scores is taken": lambda s, h, tagged: torch.maximum(s, h),
    "the helpfulness score is always taken": lambda s, h, tagged: h,
    "the safety score is always taken": lambda s, h, tagged: s,
    "the scores are added": lambda s, h, tagged: s + h,
    "the scores are averaged": lambda s, h, tagged: (s + h) / 2,
    "sigmoid and logit are both taken, which gives infinity for high scores; keep raw scores": (
        lambda s, h, tagged: torch.logit(right_reward(s, h, tagged).sigmoid())
    ),
    "probabilities come back; give raw scores": lambda s, h, tagged: right_reward(
        s, h, tagged
    ).sigmoid(),
}


def combined_reward(candidate: Code) -> None:
    """Check `candidate(safety, helpfulness, is_safety_prompt)`: the raw score R_c of each answer.

    Scores are raw too, some of them large, and one lies exactly at the threshold.
    """
    safety = torch.tensor([2.0, -3.0, -2.0, SAFETY_LOGIT, 1.0, -0.5, -1.0, 40.0, -1.5, 3.0, 0.1])
    helpfulness = torch.tensor([-1.0, 0.5, 1.5, 0.25, -2.5, 0.75, 35.0, -2.0, 2.5, 0.2, 1.75])
    tagged = torch.tensor([place in (0, 1, 7, 8) for place in range(11)])
    run = on(safety, helpfulness, tagged)
    diagnose(run, candidate, run(right_reward), COMBINE_MISTAKES)


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


WHITEN_MISTAKES: Mistakes = {
    "pads count in mean and variance; use the mask": partial(_whitened, counted=torch.ones_like),
    "pads count in mean and variance, which is divided by n - 1; use the mask": partial(
        _whitened, counted=torch.ones_like, correction=1
    ),
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
    "equal values give NaN, 0 / 0, and the variance is divided by n - 1, not by n": partial(
        _whitened, floor=0.0, correction=1
    ),
    "what does not count keeps a number; it must become 0": partial(_whitened, kept=True),
    "the mask is upside down": lambda x, mask: _whitened(x, ~mask),
    "the mask is applied and then forgotten: zeros in place of the pads still count": (
        lambda x, mask: _whitened(x * mask, mask, counted=torch.ones_like)
    ),
}


def whiten(candidate: Code) -> None:
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

    def run(function: Code) -> Tensor:
        cases = [(x, mask), (equal, torch.ones(2, 4, dtype=torch.bool)), (equal, single)]
        parts = [(on(values, keep)(function), keep) for values, keep in cases]
        # NaN times a mask is NaN everywhere: the same mistake as NaN where the mask is True
        return torch.cat(
            [w.masked_fill(~keep & w[keep].isnan().any(), 0.0).flatten() for w, keep in parts]
        )

    diagnose(run, candidate, run(right_whiten), WHITEN_MISTAKES)


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


SHAPE_MISTAKES: Mistakes = {
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
    "the score is subtracted": lambda s, p, q, mask, beta: _shaped(-s, p, q, mask, beta),
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


def shaped_rewards(candidate: Code) -> None:
    """Check `candidate(score, logprobs, reference_logprobs, mask, beta)`: the reward of each token.

    `mask` is True on the answer's tokens, which stand between prompt and padding. Scores are
    whitened already.
    """
    source = rng.generator(0, "check", "shaped")
    score = torch.tensor([1.25, -0.5, -0.75])
    logprobs, reference = -2 * torch.rand(2, 3, 8, generator=source)
    places = torch.arange(8)
    mask = (places >= torch.tensor([[2], [1], [3]])) & (places < torch.tensor([[6], [8], [5]]))
    run = on(score, logprobs.requires_grad_(), reference, mask, 0.3)
    diagnose(run, candidate, run(right_shaped), SHAPE_MISTAKES)
    if run(candidate).requires_grad:
        raise CheckFailed(
            "the values are right, but they carry a gradient; a reward is a number, so detach it. "
            "The gradient of the log-ratio (k1) as a loss is zero in expectation."
        )


def _estimates(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return r, r.square() / 2, torch.expm1(-r) + r


def _but(number: int, wrong: Code) -> Code:
    """Return the three estimates, of which one is `wrong(r)`."""
    return lambda p, q: tuple(
        wrong(p - q) if k == number else right for k, right in enumerate(_estimates(p - q), start=1)
    )


ESTIMATE_MISTAKES: Mistakes = {
    "reference and policy are exchanged: r = log pi - log pi_0 for samples of pi": lambda p, q: (
        _estimates(q - p)
    ),
    "the sign of k1 is turned": _but(1, torch.neg),
    "the sign of r is turned in k3: e^r - 1 - r estimates something else, for samples of pi": _but(
        3, lambda r: torch.expm1(r) - r
    ),
    "the size of k1 is taken; some of its samples must be negative": _but(1, torch.abs),
    "the half is missing in k2": _but(2, torch.square),
    "k2 is halved before it is squared": _but(2, lambda r: (r / 2).square()),
    "the -1 is missing in k3, so it is 1 where the policies agree": _but(
        3, lambda r: (-r).exp() + r
    ),
    "the + r is missing in k3, so its mean is 0": _but(3, lambda r: torch.expm1(-r)),
    "the sign of the last term of k3 is turned: e^-r - 1 - r": _but(
        3, lambda r: torch.expm1(-r) - r
    ),
    "k1, k2 and k3 come back in reverse order": lambda p, q: _estimates(p - q)[::-1],
    "k2 and k3 are exchanged": lambda p, q: tuple(_estimates(p - q)[i] for i in (0, 2, 1)),
    "the log-ratio is weighed by the probability, though samples carry that weight already": (
        lambda p, q: tuple(p.exp() * part for part in _estimates(p - q))
    ),
    "the ratio is taken of the log-probabilities; subtract them": lambda p, q: _estimates(p / q),
}


def kl_estimates(candidate: Code) -> None:
    """Check `candidate(logprobs, reference_logprobs)`: k1, k2 and k3 of each sampled token."""
    logprobs, reference = -3 * torch.rand(2, 3, 4, generator=rng.generator(0, "check", "kl"))

    def run(function: Code) -> Tensor:
        parts = [torch.as_tensor(part) for part in on(logprobs, reference)(function)]
        if [part.shape for part in parts] != [logprobs.shape] * 3:
            raise CheckFailed("three tensors must come back, k1, k2 and k3, one number a token.")
        return torch.stack(parts)

    diagnose(run, candidate, run(right_estimates), ESTIMATE_MISTAKES)


def _advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float,
    *, blind: bool = False, terminal: str = "zero", decay: float | None = None,
    carry_gamma: bool = True, baseline: float = 1.0, shift: bool = False, forwards: bool = False,
    ahead: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Generalised advantages with flaws; `blind` walks through pads as if they were tokens."""
    use = torch.ones_like(mask) if blind else mask
    of_the_pad = F.pad(values[:, 1:], (0, 1))
    rewards, values = rewards.masked_fill(~use, 0.0), values.masked_fill(~use, 0.0)
    after = F.pad(values[:, 1:], (0, 1))
    final = mask & ~F.pad(mask[:, 1:], (0, 1))
    if terminal != "zero":
        after = torch.where(final, values if terminal == "own" else of_the_pad, after)
    delta = rewards + ahead * gamma * after - baseline * values
    if shift:
        delta = rewards + gamma * values - F.pad(values[:, :-1], (1, 0))
    rate = (gamma if carry_gamma else 1.0) * (lam if decay is None else decay)
    advantages, carry = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    steps = range(rewards.shape[1])
    for t in steps if forwards else reversed(steps):
        carry = torch.where(use[:, t], delta[:, t] + rate * carry, 0.0)
        advantages[:, t] = carry
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def _with_returns(change: Code) -> Code:
    """Right advantages, then `change(advantages, rewards, values, mask)`."""

    def gae(
        rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
    ) -> tuple[Tensor, Tensor]:
        advantages = _advantages(rewards, values, mask, gamma, lam)[0]
        advantages, returns = change(advantages, rewards, values, mask)
        return advantages, returns.masked_fill(~mask, 0.0)

    return gae


GAE_MISTAKES: Mistakes = {
    "the sum is carried through the pads, whose rewards and values count as if they were tokens; "
    "use the mask inside the recursion": partial(_advantages, blind=True),
    "the value behind the last token is read, which is a pad's; the answer is over, so it is 0": (
        partial(_advantages, terminal="pad")
    ),
    "the last token's own value stands for the value behind it; the answer is over, so it is 0": (
        partial(_advantages, terminal="own")
    ),
    "values are one place too late: values[t] is that of the state before token t": partial(
        _advantages, shift=True
    ),
    "the value of the next state is left out of delta": partial(_advantages, ahead=0.0),
    "the own value is added in delta; subtract it": partial(_advantages, baseline=-1.0),
    "no value is subtracted: there is no baseline": partial(_advantages, baseline=0.0),
    "lambda is not used (it is 1): this is reward-to-go less the value": partial(
        _advantages, decay=1.0
    ),
    "gamma is not used (it is 1)": lambda r, v, mask, gamma, lam: _advantages(r, v, mask, 1.0, lam),
    "gamma and lambda are exchanged": lambda r, v, mask, gamma, lam: _advantages(
        r, v, mask, lam, gamma
    ),
    "advantages and returns are exchanged": lambda r, v, mask, gamma, lam: _advantages(
        r, v, mask, gamma, lam
    )[::-1],
    "nothing is carried (lambda is 0): this is delta alone": partial(_advantages, decay=0.0),
    "the sum decays by lambda alone; it decays by gamma * lambda": partial(
        _advantages, carry_gamma=False
    ),
    "the sum runs forwards; advantages look ahead, so begin at the end": partial(
        _advantages, forwards=True
    ),
    "returns are computed from whitened advantages; take them before": _with_returns(
        lambda a, r, v, mask: (a, right_whiten(a, mask) + v)
    ),
    "advantages come back whitened; the caller whitens them after the returns are computed": (
        _with_returns(lambda a, r, v, mask: (right_whiten(a, mask), a + v))
    ),
    "advantages come back whitened, and the returns are computed from those": _with_returns(
        lambda a, r, v, mask: (right_whiten(a, mask), right_whiten(a, mask) + v)
    ),
    "returns lack the values: returns are advantages + values": _with_returns(
        lambda a, r, v, mask: (a, a)
    ),
    "returns are advantages - values; add the values": _with_returns(
        lambda a, r, v, mask: (a, a - v)
    ),
    "returns are advantages + rewards; add the values": _with_returns(
        lambda a, r, v, mask: (a, a + r)
    ),
}


def gae(candidate: Code) -> None:
    """Check `candidate(rewards, values, mask, gamma, lam)`: advantages and returns of each token.

    `mask` is True on the answers' tokens, which stand between prompt and padding. Elsewhere
    rewards and values hold any number, and both results must be 0.
    """
    rewards, values = torch.randn(2, 3, 8, generator=rng.generator(0, "check", "gae"))
    places = torch.arange(8)
    mask = (places >= torch.tensor([[2], [0], [1]])) & (places < torch.tensor([[6], [8], [4]]))

    def run(function: Code) -> Tensor:
        parts = on(rewards, values, mask, 0.9, 0.7)(function)
        if [tuple(torch.as_tensor(part).shape) for part in parts] != [(3, 8)] * 2:
            raise CheckFailed("two tensors must come back, advantages and returns of every token.")
        return torch.stack([torch.as_tensor(part) for part in parts])

    def inside(function: Code) -> Tensor:
        return run(function).masked_fill(~mask, 0.0)

    expected = torch.stack(right_gae(rewards, values, mask, gamma=0.9, lam=0.7))
    diagnose(inside, candidate, expected, GAE_MISTAKES)
    if not torch.equal(inside(candidate), run(candidate)):
        raise CheckFailed(
            "advantages and returns are right on the tokens, but they are not 0 where the mask is "
            "False; set them to 0 there."
        )


def _mean(loss: Tensor, mask: Tensor, by: str = "tokens") -> Tensor:
    """Average over the counted tokens, or in a wrong way."""
    counted = loss.masked_fill(~mask, 0.0)
    if by == "rows":
        return (counted.sum(1) / mask.sum(1)).mean()
    return {
        "tokens": counted.sum() / mask.sum(),
        "places": counted.mean(),
        "all": loss.mean(),
        "rows only": counted.sum() / len(mask),
        "none": counted.sum(),
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


POLICY_MISTAKES: Mistakes = {
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


def ppo_policy_loss(candidate: Code) -> None:
    """Check `candidate(logprobs, old_logprobs, advantages, mask, clip)`: the mean over counted
    tokens, and its gradient. Ratios lie on both sides of both limits."""
    source = rng.generator(0, "check", "policy loss")
    new, noise, advantages = torch.randn(3, 4, 9, generator=source)
    new = -1.5 - new.abs()
    old = new - 0.35 * noise
    mask = torch.arange(9) < torch.tensor([[6], [9], [3], [7]])

    def run(loss: Code) -> Tensor:
        return value_and_gradient(lambda x: loss(x, old, advantages, mask, 0.2), new)

    diagnose(run, candidate, run(_surrogate), POLICY_MISTAKES)


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


VALUE_MISTAKES: Mistakes = {
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


def ppo_value_loss(candidate: Code) -> None:
    """Check `candidate(values, old_values, returns, mask, clip)`: half the mean squared error,
    the worse of clipped and unclipped value, and its gradient."""
    source = rng.generator(0, "check", "value loss")
    values, moved, missed = torch.randn(3, 4, 9, generator=source)
    old, returns = values - 0.4 * moved, values + missed
    mask = torch.arange(9) < torch.tensor([[6], [9], [3], [7]])

    def run(loss: Code) -> Tensor:
        return value_and_gradient(lambda x: loss(x, old, returns, mask, 0.2), values)

    diagnose(run, candidate, run(_error), VALUE_MISTAKES)
