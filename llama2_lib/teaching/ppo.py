"""Checks of PPO (paper section 3.2.3), and the mistakes they recognise.

From two scores to one reward a token, then KL estimates, advantages and the two losses. Scores are
raw, the models' logits.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2_lib import rng
from llama2_lib.objectives import rlhf
from llama2_lib.objectives.rlhf import SAFETY_LOGIT, SAFETY_THRESHOLD
from llama2_lib.teaching.check import CheckFailed, Code, diagnose, flawed, on, value_and_gradient

COMBINE_MISTAKES = {
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
        lambda s, h, tagged: torch.logit(rlhf.combined_reward(s, h, tagged).sigmoid())
    ),
    "probabilities come back; give raw scores": lambda s, h, tagged: rlhf.combined_reward(
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
    diagnose(run, candidate, run(rlhf.combined_reward), COMBINE_MISTAKES)


def _whitened(x: Tensor, mask: Tensor, flaw: str) -> Tensor:
    """Whiten with a flaw; "n - 1" at its end divides the variance by that."""
    mask = ~mask if flaw == "upside down" else mask
    x = x * mask if flaw == "lost" else x
    use = mask.to(x.dtype)
    if flaw in ("pads", "pads, n - 1", "lost"):
        use = torch.ones_like(x)
    summed = torch.ones_like(x) if flaw == "padded sum" else use
    axes = {"rows": 1, "columns": 0}.get(flaw, (0, 1))
    count = use.sum(axes, keepdim=True)
    mean = (x * summed).sum(axes, keepdim=True) / count
    variance = ((x - mean).square() * summed).sum(axes, keepdim=True)
    variance = variance / (count - int(flaw.endswith("n - 1")))
    floor = 0.0 if flaw.startswith("0/0") else 1e-8
    scale = (variance if flaw == "variance" else variance.sqrt()) + floor
    white = {"restored": (x - mean) / scale + mean, "only scaled": x / scale, "shifted": x - mean}
    result = white.get(flaw, (x - mean) / scale)
    return result if flaw == "number kept" else result.masked_fill(~mask, 0.0)


WHITEN_MISTAKES = flawed(
    _whitened,
    flaw={
        "pads count in mean and variance; use the mask": "pads",
        "pads count in mean and variance, which is divided by n - 1; use the mask": "pads, n - 1",
        "the values are summed with the pads, then divided by the count without them": "padded sum",
        "the mean is added back, as in libraries that keep it; here the mean must be 0": "restored",
        "the values are divided by their deviation but not shifted to mean 0": "only scaled",
        "the values are shifted but not divided by their deviation": "shifted",
        "the values are divided by the variance; divide by its root": "variance",
        "the variance is divided by n - 1, which fails for one value; divide by n": "n - 1",
        "each row is whitened by itself, so all answers have the same mean; use the whole batch": (
            "rows"
        ),
        "each column is whitened by itself; use the whole batch": "columns",
        "equal values give NaN, 0 / 0; they must give zeros": "0/0",
        "equal values give NaN, 0 / 0, and the variance is divided by n - 1, not by n": "0/0 n - 1",
        "what does not count keeps a number; it must become 0": "number kept",
        "the mask is upside down": "upside down",
        "the mask is applied and then forgotten: zeros in place of the pads still count": "lost",
    },
)


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

    diagnose(run, candidate, run(rlhf.whiten), WHITEN_MISTAKES)


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


SHAPE_MISTAKES = flawed(
    _shaped,
    penalty={
        "the divergence is added, so drifting away is paid for; subtract it": torch.neg,
        "the size of the log-ratio is taken; its sign belongs to it (k1)": torch.abs,
        "the ratio is taken, not its logarithm": torch.exp,
        "k2 is taken, whose mean is not the divergence": lambda r: r.square() / 2,
        "k3 is taken; equation 4 has the log-ratio itself (k1)": lambda r: torch.expm1(-r) + r,
    },
    at={
        "the score stands in the last column, which is a pad in shorter answers; put it on the "
        "last token": lambda mask: torch.full((len(mask),), mask.shape[1] - 1),
        "the score stands one place after the last token, where nothing was chosen": lambda mask: (
            _last(mask) + 1
        ).clamp(max=mask.shape[1] - 1),
        "the score stands one place before the last token": lambda mask: _last(mask) - 1,
        "the score stands on the first token of the answer": lambda mask: mask.int().argmax(1),
        "the score stands at the place `number of tokens - 1`, as if no prompt came before": (
            lambda mask: mask.sum(1) - 1
        ),
    },
    total={
        "the divergence is summed over the answer and taken off at its end; take it off token by "
        "token": "sum",
        "the mean divergence of the answer is taken off at its end, so long answers pay less": (
            "mean"
        ),
    },
    everywhere={"pads are punished too; the divergence there must be 0": True},
) | {
    "every token gets the whole score; only the last does": lambda s, p, q, mask, beta: (
        _shaped(0 * s, p, q, mask, beta) + s[:, None] * mask
    ),
    "the score is divided among the tokens; only the last has it": lambda s, p, q, mask, beta: (
        _shaped(0 * s, p, q, mask, beta) + (s / mask.sum(1))[:, None] * mask
    ),
    "beta is not used": lambda s, p, q, mask, beta: _shaped(s, p, q, mask, 1.0),
    "beta multiplies the score as well": lambda s, p, q, mask, beta: _shaped(
        beta * s, p, q, mask, beta
    ),
    "the score is subtracted": lambda s, p, q, mask, beta: _shaped(-s, p, q, mask, beta),
    "the score is left out": lambda s, p, q, mask, beta: _shaped(0 * s, p, q, mask, beta),
    "the divergence is left out": lambda s, p, q, mask, beta: _shaped(s, p, q, mask, 0.0),
    "the rewards are whitened after the divergence is taken off; whiten the scores before": (
        lambda s, p, q, mask, beta: rlhf.whiten(_shaped(s, p, q, mask, beta), mask)
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
    diagnose(run, candidate, run(rlhf.shaped_rewards), SHAPE_MISTAKES)
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


ESTIMATE_MISTAKES = {
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

    diagnose(run, candidate, run(rlhf.kl_estimates), ESTIMATE_MISTAKES)


def _advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, flaw: str
) -> tuple[Tensor, Tensor]:
    """Generalised advantages with a flaw; "blind" walks through pads as if they were tokens."""
    gamma, lam = {"gamma": (1.0, lam), "exchanged": (lam, gamma)}.get(flaw, (gamma, lam))
    use = torch.ones_like(mask) if flaw == "blind" else mask
    of_the_pad = F.pad(values[:, 1:], (0, 1))
    rewards, values = rewards.masked_fill(~use, 0.0), values.masked_fill(~use, 0.0)
    final = mask & ~F.pad(mask[:, 1:], (0, 1))
    after = F.pad(values[:, 1:], (0, 1))
    behind = {"pad's": of_the_pad, "own": values}.get(flaw, after)
    after = torch.zeros_like(after) if flaw == "no next" else torch.where(final, behind, after)
    delta = rewards + gamma * after - {"added": -1.0, "no baseline": 0.0}.get(flaw, 1.0) * values
    if flaw == "late":
        delta = rewards + gamma * values - F.pad(values[:, :-1], (1, 0))
    rate = {"lambda": gamma, "lambda alone": lam, "delta": 0.0}.get(flaw, gamma * lam)
    advantages, carry = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    steps = range(rewards.shape[1])
    for t in steps if flaw == "forwards" else reversed(steps):
        carry = torch.where(use[:, t], delta[:, t] + rate * carry, 0.0)
        advantages[:, t] = carry
    advantages = advantages.masked_fill(~mask, 0.0)
    white = rlhf.whiten(advantages, mask) if "white" in flaw else advantages
    addends = {"no values": 0.0 * values, "values subtracted": -values, "rewards": rewards}
    returns = white if flaw in ("white returns", "both white") else advantages
    returns = (returns + addends.get(flaw, values)).masked_fill(~mask, 0.0)
    if flaw == "pair exchanged":
        return returns, advantages
    return white if flaw in ("white advantages", "both white") else advantages, returns


GAE_MISTAKES = flawed(
    _advantages,
    flaw={
        "the sum is carried through the pads, whose rewards and values count as if they were "
        "tokens; use the mask inside the recursion": "blind",
        "the value behind the last token is read, which is a pad's; the answer is over, so it is "
        "0": "pad's",
        "the last token's own value stands for the value behind it; the answer is over, so it is "
        "0": "own",
        "values are one place too late: values[t] is that of the state before token t": "late",
        "the value of the next state is left out of delta": "no next",
        "the own value is added in delta; subtract it": "added",
        "no value is subtracted: there is no baseline": "no baseline",
        "lambda is not used (it is 1): this is reward-to-go less the value": "lambda",
        "gamma is not used (it is 1)": "gamma",
        "gamma and lambda are exchanged": "exchanged",
        "advantages and returns are exchanged": "pair exchanged",
        "nothing is carried (lambda is 0): this is delta alone": "delta",
        "the sum decays by lambda alone; it decays by gamma * lambda": "lambda alone",
        "the sum runs forwards; advantages look ahead, so begin at the end": "forwards",
        "returns are computed from whitened advantages; take them before": "white returns",
        "advantages come back whitened; the caller whitens them after the returns are computed": (
            "white advantages"
        ),
        "advantages come back whitened, and the returns are computed from those": "both white",
        "returns lack the values: returns are advantages + values": "no values",
        "returns are advantages - values; add the values": "values subtracted",
        "returns are advantages + rewards; add the values": "rewards",
    },
)


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

    expected = torch.stack(rlhf.gae(rewards, values, mask, gamma=0.9, lam=0.7))
    diagnose(inside, candidate, expected, GAE_MISTAKES)
    if not torch.equal(inside(candidate), run(candidate)):
        raise CheckFailed(
            "advantages and returns are right on the tokens, but they are not 0 where the mask is "
            "False; set them to 0 there."
        )


def _mean(loss: Tensor, mask: Tensor, flaw: str) -> Tensor:
    """Average over the counted tokens, or in a wrong way."""
    counted = loss.masked_fill(~mask, 0.0)
    if flaw == "rows":
        return (counted.sum(1) / mask.sum(1)).mean()
    if flaw == "pads":
        return loss.mean()
    divisors = {"places": mask.numel(), "answers": len(mask), "none": 1}
    return counted.sum() / divisors.get(flaw, mask.sum())


WRONG_MEANS = {
    "pads are counted in sum and divisor": "pads",
    "the sum is divided by all places, pads included; divide by the counted tokens": "places",
    "each answer is averaged by itself, so a token of a short one weighs more": "rows",
    "the loss is summed, not averaged over the counted tokens": "none",
}


def _surrogate(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float, flaw: str = ""
) -> Tensor:
    """The clipped surrogate, with the flaw that is asked for."""
    log_ratio = new - old
    rho = {
        "upside down": (old - new).exp(),
        "no exp": log_ratio,
        "quotient": new / old,
        "undetached": (new - new).exp(),
        "detached": (new - new.detach()).exp(),
        "whole answer": (log_ratio * mask).sum(1, keepdim=True).exp().expand_as(new),
    }.get(flaw, log_ratio.exp())
    near = {
        "above": rho.clamp(max=1 + clip),
        "below": rho.clamp(min=1 - clip),
        "log-ratio": log_ratio.clamp(-clip, clip).exp(),
    }.get(flaw, rho.clamp(1 - clip, 1 + clip))
    gain, clipped = rho * advantages, near * advantages
    if flaw == "gain":
        clipped = gain.clamp(1 - clip, 1 + clip)
    smaller = torch.minimum(gain, clipped)
    loss = -{
        "larger": torch.maximum(gain, clipped),
        "unclipped": gain,
        "clipped": clipped,
        "REINFORCE": new * advantages,
        "sign": -smaller,
    }.get(flaw, smaller)
    return _mean(loss, mask, flaw)


POLICY_MISTAKES = flawed(
    _surrogate,
    flaw={
        "the larger of clipped and unclipped gain is taken, which rewards going too far; take the "
        "minimum, and turn the sign after it": "larger",
        "the sign is wrong: this is the gain, and training would lower it": "sign",
        "the log-ratio is clipped to -eps...eps; clip the ratio to 1 - eps...1 + eps": "log-ratio",
        "the gain is clipped; clip the ratio, then multiply by the advantage": "gain",
        "nothing is clipped": "unclipped",
        "only the clipped gain is used, which has no gradient beyond the limit even to come back; "
        "take the smaller of both": "clipped",
        "the ratio is clipped above only": "above",
        "the ratio is clipped below only": "below",
        "the ratio is upside down; divide new by old": "upside down",
        "the exponential is missing: the difference of log-probabilities is used as a ratio": (
            "no exp"
        ),
        "the log-probabilities are divided; subtract them and take exp": "quotient",
        "the old log-probabilities are the new ones, gradient and all, so the ratio is 1 and "
        "nothing moves; take those stored when the answers were sampled": "undetached",
        "the old log-probabilities are the new ones, detached, so nothing is ever clipped; take "
        "those stored when the answers were sampled": "detached",
        "the log-probability is used without a ratio (REINFORCE), right for the first step only": (
            "REINFORCE"
        ),
        "one ratio is made of the whole answer; each token has its own": "whole answer",
        "the sum is divided by the answers; divide by the counted tokens": "answers",
        **WRONG_MEANS,
    },
)


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
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float, flaw: str = ""
) -> Tensor:
    """The value loss, with the flaw that is asked for."""
    old, returns = {"exchanged": (returns, old), "to old": (old, old)}.get(flaw, (old, returns))
    near = {
        "error clipped": returns + (values - returns).clamp(-clip, clip),
        "ratio": old * (values / old).clamp(1 - clip, 1 + clip),
    }.get(flaw, old + (values - old).clamp(-clip, clip))
    power = 1 if flaw == "not squared" else 2
    error, clipped = ((x - returns).abs() ** power for x in (values, near))
    chosen = {
        "smaller": torch.minimum(error, clipped),
        "unclipped": error,
        "clipped": clipped,
        "error clipped": clipped,
    }.get(flaw, torch.maximum(error, clipped))
    return {"no half": 1.0, "sign": -0.5}.get(flaw, 0.5) * _mean(chosen, mask, flaw)


VALUE_MISTAKES = flawed(
    _error,
    flaw={
        "the smaller of the two errors is taken, which rewards going too far; take the larger": (
            "smaller"
        ),
        "the value is clipped around the returns, so the error itself is; clip it around the old "
        "value": "error clipped",
        "the ratio of the values is clipped; clip their difference": "ratio",
        "the half is missing": "no half",
        "nothing is clipped": "unclipped",
        "only the clipped value is used, which has no gradient beyond the limit even to come back; "
        "take the larger error": "clipped",
        "the errors are not squared": "not squared",
        "old values and returns are exchanged": "exchanged",
        "the values are pulled to the old ones, the returns are not used": "to old",
        "the sign is wrong": "sign",
        **WRONG_MEANS,
    },
)


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
