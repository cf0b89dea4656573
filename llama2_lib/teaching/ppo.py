"""Checks of PPO (paper section 3.2.3), and the mistakes they recognise.

From two scores to one reward a token, then KL estimates, advantages and the two losses. Scores are
raw, the models' logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2_lib import rng
from llama2_lib.objectives import rlhf
from llama2_lib.objectives.rlhf import SAFETY_LOGIT
from llama2_lib.teaching.check import CheckFailed, Code, diagnose, on, parts, slips, with_gradient


def _combined(s: Tensor, h: Tensor, tagged: Tensor) -> Tensor:
    return torch.where(tagged | (s < SAFETY_LOGIT), s, h)


COMBINE_MISTAKES = slips(_combined)("""
a score exactly at the threshold counts as unsafe; the paper has a strict < || < => <=
a raw score is compared with 0.15; compare it with logit(0.15) = -1.73
    || SAFETY_LOGIT => rlhf.SAFETY_THRESHOLD
the threshold is 0.5, a raw score of 0; the paper has 0.15 || SAFETY_LOGIT => 0
the comparison is turned round: safe answers get the safety score || < => >
the helpfulness score is compared with the threshold; compare the safety score || (s < => (h <
the tag of the prompt is not used || tagged | =>
only the tag of the prompt is used, so unsafe answers to other prompts go free
    || tagged | (s < SAFETY_LOGIT) => tagged
tag AND low safety are asked for; either is enough || tagged | => tagged &
the tag is upside down || tagged | => ~tagged |
safety and helpfulness are exchanged in the result || s, h) => h, s)
the smaller of the two scores is taken || torch.minimum(s, h)
the larger of the two scores is taken || torch.maximum(s, h)
the helpfulness score is always taken || h
the safety score is always taken || s
the scores are added || s + h
the scores are averaged || (s + h) / 2
sigmoid and logit are both taken, which gives infinity for high scores; keep raw scores
    || torch.logit(rlhf.combined_reward(s, h, tagged).sigmoid())
probabilities come back; give raw scores || rlhf.combined_reward(s, h, tagged).sigmoid()
""")


def combined_reward(candidate: Code) -> None:
    """Check `candidate(safety, helpfulness, is_safety_prompt)`: the raw score R_c of each answer.

    Scores are raw too, some of them large, and one lies exactly at the threshold.
    """
    safety = torch.tensor([2.0, -3.0, -2.0, SAFETY_LOGIT, 1.0, -0.5, -1.0, 40.0, -1.5, 3.0, 0.1])
    helpfulness = torch.tensor([-1.0, 0.5, 1.5, 0.25, -2.5, 0.75, 35.0, -2.0, 2.5, 0.2, 1.75])
    tagged = torch.tensor([place in (0, 1, 7, 8) for place in range(11)])
    run = on(safety, helpfulness, tagged)
    diagnose(run, candidate, run(rlhf.combined_reward), COMBINE_MISTAKES)


def _whitened(x: Tensor, mask: Tensor, axes: tuple[int, ...] = (0, 1)) -> Tensor:
    use = mask
    n = use.sum(axes, keepdim=True)
    mean = (x * use).sum(axes, keepdim=True) / n
    squares = ((x - mean).square() * use).sum(axes, keepdim=True)
    white = (x - mean) / ((squares / n).sqrt() + 1e-8)
    return white.masked_fill(~mask, 0.0)


WHITEN_MISTAKES = slips(_whitened)("""
pads count in mean and variance; use the mask || use = mask => use = torch.ones_like(mask)
pads count in mean and variance, which is divided by n - 1; use the mask
    || use = mask => use = torch.ones_like(mask) ;; squares / n => squares / (n - 1)
the values are summed with the pads, then divided by the count without them
    || (x * use) => x ;; .square() * use) => .square())
the mean is added back, as in libraries that keep it; here the mean must be 0
    || 1e-8) => 1e-8) + mean
the values are divided by their deviation but not shifted to mean 0 || = (x - mean) => = x
the values are shifted but not divided by their deviation || / ((squares / n).sqrt() + 1e-8) =>
the values are divided by the variance; divide by its root || (squares / n).sqrt() => squares / n
the variance is divided by n - 1, which fails for one value; divide by n
    || squares / n => squares / (n - 1)
each row is whitened by itself, so all answers have the same mean; use the whole batch
    || (0, 1) => (1,)
each column is whitened by itself; use the whole batch || (0, 1) => (0,)
equal values give NaN, 0 / 0; they must give zeros || + 1e-8 =>
equal values give NaN, 0 / 0, and the variance is divided by n - 1, not by n
    || + 1e-8 => ;; squares / n => squares / (n - 1)
what does not count keeps a number; it must become 0 || white
the mask is upside down || use = mask => use = mask = ~mask
the mask is applied and then forgotten: zeros in place of the pads still count
    || use = mask => x, use = x * mask, torch.ones_like(mask)
""")


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


def _shaped(
    score: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, beta: float
) -> Tensor:
    last = (torch.arange(mask.shape[1]) * mask).argmax(1)
    rewards = (-beta * (logprobs - reference)).masked_fill(~mask, 0.0)
    rewards[torch.arange(len(score)), last] += score
    return rewards


SHAPE_MISTAKES = slips(_shaped)("""
the divergence is added, so drifting away is paid for; subtract it || -beta => beta
the size of the log-ratio is taken; its sign belongs to it (k1) || reference)) => reference).abs())
the ratio is taken, not its logarithm || reference)) => reference).exp())
k2 is taken, whose mean is not the divergence || reference)) => reference).square() / 2)
k3 is taken; equation 4 has the log-ratio itself (k1) || (logprobs - reference)
    => (torch.expm1(reference - logprobs) + logprobs - reference)
the score stands in the last column, which is a pad in shorter answers; put it on the last token
    || last] => -1]
the score stands one place after the last token, where nothing was chosen
    || last] => (last + 1).clamp(max=mask.shape[1] - 1)]
the score stands one place before the last token || last] => last - 1]
the score stands on the first token of the answer || last] => mask.int().argmax(1)]
the score stands at the place `number of tokens - 1`, as if no prompt came before
    || last] => mask.sum(1) - 1]
the divergence is summed over the answer and taken off at its end; take it off token by token
    || 0.0) => 0.0).sum(1, keepdim=True) * F.one_hot(last, mask.shape[1])
the mean divergence of the answer is taken off at its end, so long answers pay less
    || 0.0) => 0.0).sum(1, keepdim=True) / mask.sum(1)[:, None] * F.one_hot(last, mask.shape[1])
pads are punished too; the divergence there must be 0 || .masked_fill(~mask, 0.0) =>
every token gets the whole score; only the last does
    || rewards[torch.arange(len(score)), last] += score => rewards += score[:, None] * mask
the score is divided among the tokens; only the last has it
    || rewards[torch.arange(len(score)), last] += score
    => rewards += (score / mask.sum(1))[:, None] * mask
beta is not used || -beta * =>  -
beta multiplies the score as well || += score => += beta * score
the score is subtracted || += => -=
the score is left out || += score => += 0
the divergence is left out || -beta => 0
the rewards are whitened after the divergence is taken off; whiten the scores before
    || rlhf.whiten(rewards, mask)
""")


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


def _estimates(logprobs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r = logprobs - reference
    return r, r.square() / 2, torch.expm1(-r) + r


ESTIMATE_MISTAKES = slips(_estimates)("""
reference and policy are exchanged: r = log pi - log pi_0 for samples of pi
    || logprobs - reference => reference - logprobs
the sign of k1 is turned || return r, => return -r,
the sign of r is turned in k3: e^r - 1 - r estimates something else, for samples of pi
    || expm1(-r) + r => expm1(r) - r
the size of k1 is taken; some of its samples must be negative || return r, => return r.abs(),
the half is missing in k2 || / 2 =>
k2 is halved before it is squared || r.square() / 2 => (r / 2).square()
the -1 is missing in k3, so it is 1 where the policies agree || torch.expm1(-r) => (-r).exp()
the + r is missing in k3, so its mean is 0 || + r =>
the sign of the last term of k3 is turned: e^-r - 1 - r || + r => - r
k1, k2 and k3 come back in reverse order || torch.expm1(-r) + r, r.square() / 2, r
k2 and k3 are exchanged || r, torch.expm1(-r) + r, r.square() / 2
the log-ratio is weighed by the probability, though samples carry that weight already
    || tuple(logprobs.exp() * part for part in (r, r.square() / 2, torch.expm1(-r) + r))
the ratio is taken of the log-probabilities; subtract them || logprobs - => logprobs /
""")


def kl_estimates(candidate: Code) -> None:
    """Check `candidate(logprobs, reference_logprobs)`: k1, k2 and k3 of each sampled token."""
    logprobs, reference = -3 * torch.rand(2, 3, 4, generator=rng.generator(0, "check", "kl"))
    run = on(logprobs, reference, then=lambda k: torch.stack(parts(k, *[(3, 4)] * 3)))
    diagnose(run, candidate, run(rlhf.kl_estimates), ESTIMATE_MISTAKES)


def _advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    use = mask
    rewards, own = rewards.masked_fill(~use, 0.0), values.masked_fill(~use, 0.0)
    after = F.pad(own[:, 1:], (0, 1))
    delta = rewards + gamma * after - own
    advantages, carry = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        carry = torch.where(use[:, t], delta[:, t] + gamma * lam * carry, 0.0)
        advantages[:, t] = carry
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, (advantages + own).masked_fill(~mask, 0.0)


GAE_MISTAKES = slips(_advantages)("""
the sum is carried through the pads, whose rewards and values count as if they were tokens; use the
    mask inside the recursion || use = mask => use = torch.ones_like(mask)
the value behind the last token is read, which is a pad's; the answer is over, so it is 0
    || own[:, 1:] => values[:, 1:]
the last token's own value stands for the value behind it; the answer is over, so it is 0
    || F.pad(own[:, 1:], (0, 1))
    => torch.where(F.pad(mask[:, 1:], (0, 1)), F.pad(own[:, 1:], (0, 1)), own)
values are one place too late: values[t] is that of the state before token t
    || gamma * after - own => gamma * own - F.pad(own[:, :-1], (1, 0))
the value of the next state is left out of delta || + gamma * after =>
the own value is added in delta; subtract it || after - own => after + own
no value is subtracted: there is no baseline || after - own => after
lambda is not used (it is 1): this is reward-to-go less the value || gamma * lam => gamma
gamma is not used (it is 1) || use = mask => use, gamma = mask, 1.0
gamma and lambda are exchanged || gamma: float, lam: float => lam: float, gamma: float
advantages and returns are exchanged || (advantages + own).masked_fill(~mask, 0.0), advantages
nothing is carried (lambda is 0): this is delta alone || gamma * lam => 0
the sum decays by lambda alone; it decays by gamma * lambda || gamma * lam => lam
the sum runs forwards; advantages look ahead, so begin at the end || in reversed => in iter
returns are computed from whitened advantages; take them before
    || (advantages + own) => (rlhf.whiten(advantages, mask) + own)
advantages come back whitened; the caller whitens them after the returns are computed
    || return advantages => return rlhf.whiten(advantages, mask)
advantages come back whitened, and the returns are computed from those
    || = advantages.masked_fill(~mask, 0.0) => = rlhf.whiten(advantages, mask)
returns lack the values: returns are advantages + values || advantages + own => advantages
returns are advantages - values; add the values || advantages + own => advantages - own
returns are advantages + rewards; add the values || advantages + own => advantages + rewards
""")


def gae(candidate: Code) -> None:
    """Check `candidate(rewards, values, mask, gamma, lam)`: advantages and returns of each token.

    `mask` is True on the answers' tokens, which stand between prompt and padding. Elsewhere
    rewards and values hold any number, and both results must be 0.
    """
    rewards, values = torch.randn(2, 3, 8, generator=rng.generator(0, "check", "gae"))
    places = torch.arange(8)
    mask = (places >= torch.tensor([[2], [0], [1]])) & (places < torch.tensor([[6], [8], [4]]))
    given = rewards, values, mask, 0.9, 0.7
    run = on(*given, then=lambda both: torch.stack(parts(both, *[(3, 8)] * 2)))

    def inside(function: Code) -> Tensor:
        return run(function).masked_fill(~mask, 0.0)

    expected = torch.stack(rlhf.gae(rewards, values, mask, gamma=0.9, lam=0.7))
    diagnose(inside, candidate, expected, GAE_MISTAKES)
    if not torch.equal(inside(candidate), run(candidate)):
        raise CheckFailed(
            "advantages and returns are right on the tokens, but they are not 0 where the mask is "
            "False; set them to 0 there."
        )


WRONG_MEANS = """
pads are counted in sum and divisor || each.mean()
the sum is divided by all places, pads included; divide by the counted tokens
    || (each * mask).mean()
each answer is averaged by itself, so a token of a short one weighs more
    || ((each * mask).sum(1) / mask.sum(1)).mean()
the loss is summed, not averaged over the counted tokens || (each * mask).sum()
"""


def _surrogate(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    rho = (new - old).exp()
    near = rho.clamp(1 - clip, 1 + clip)
    each = -torch.minimum(rho * advantages, near * advantages)
    return (each * mask).sum() / mask.sum()


POLICY_MISTAKES = slips(_surrogate)("""
the larger of clipped and unclipped gain is taken, which rewards going too far; take the minimum,
    and turn the sign after it || minimum => maximum
the sign is wrong: this is the gain, and training would lower it || -torch => torch
the log-ratio is clipped to -eps...eps; clip the ratio to 1 - eps...1 + eps
    || rho.clamp(1 - clip, 1 + clip) => (new - old).clamp(-clip, clip).exp()
the gain is clipped; clip the ratio, then multiply by the advantage
    || near * advantages => (rho * advantages).clamp(1 - clip, 1 + clip)
nothing is clipped || near = rho.clamp(1 - clip, 1 + clip) => near = rho
only the clipped gain is used, which has no gradient beyond the limit even to come back; take the
    smaller of both || rho * advantages, near => near * advantages, near
the ratio is clipped above only || 1 - clip, => max=
the ratio is clipped below only || 1 - clip, 1 + clip => min=1 - clip
the ratio is upside down; divide new by old || new - old => old - new
the exponential is missing: the difference of log-probabilities is used as a ratio || .exp() =>
the log-probabilities are divided; subtract them and take exp || (new - old).exp() => new / old
the old log-probabilities are the new ones, gradient and all, so the ratio is 1 and nothing moves;
    take those stored when the answers were sampled || new - old => new - new
the old log-probabilities are the new ones, detached, so nothing is ever clipped; take those stored
    when the answers were sampled || new - old => new - new.detach()
the log-probability is used without a ratio (REINFORCE), right for the first step only
    || torch.minimum(rho * advantages, near * advantages) => new * advantages
one ratio is made of the whole answer; each token has its own
    || (new - old).exp() => ((new - old) * mask).sum(1, keepdim=True).exp()
the sum is divided by the answers; divide by the counted tokens || (each * mask).sum() / len(mask)
""") | slips(_surrogate)(WRONG_MEANS)


def ppo_policy_loss(candidate: Code) -> None:
    """Check `candidate(logprobs, old_logprobs, advantages, mask, clip)`: the mean over counted
    tokens, and its gradient. Ratios lie on both sides of both limits."""
    source = rng.generator(0, "check", "policy loss")
    new, noise, advantages = torch.randn(3, 4, 9, generator=source)
    new = -1.5 - new.abs()
    old = new - 0.35 * noise
    mask = torch.arange(9) < torch.tensor([[6], [9], [3], [7]])
    run = with_gradient(new, old, advantages, mask, 0.2)
    diagnose(run, candidate, run(_surrogate), POLICY_MISTAKES)


def _error(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    near = old + (values - old).clamp(-clip, clip)
    each = 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
    return (each * mask).sum() / mask.sum()


VALUE_MISTAKES = slips(_error)("""
the smaller of the two errors is taken, which rewards going too far; take the larger
    || maximum => minimum
the value is clipped around the returns, so the error itself is; clip it around the old value
    || old + (values - old) => returns + (values - returns)
    ;; (values - returns).square(), => (near - returns).square(),
the ratio of the values is clipped; clip their difference
    || old + (values - old).clamp(-clip, clip) => old * (values / old).clamp(1 - clip, 1 + clip)
the half is missing || 0.5 * =>
nothing is clipped || near - returns => values - returns
only the clipped value is used, which has no gradient beyond the limit even to come back; take the
    larger error || (values - returns) => (near - returns)
the errors are not squared
    || returns).square(), => returns).abs(), ;; returns).square()) => returns).abs())
old values and returns are exchanged || old: Tensor, returns: Tensor => returns: Tensor, old: Tensor
the values are pulled to the old ones, the returns are not used || near = => returns = old; near =
the sign is wrong || 0.5 => -0.5
""") | slips(_error)(WRONG_MEANS)


def ppo_value_loss(candidate: Code) -> None:
    """Check `candidate(values, old_values, returns, mask, clip)`: half the mean squared error,
    the worse of clipped and unclipped value, and its gradient."""
    source = rng.generator(0, "check", "value loss")
    values, moved, missed = torch.randn(3, 4, 9, generator=source)
    old, returns = values - 0.4 * moved, values + missed
    mask = torch.arange(9) < torch.tensor([[6], [9], [3], [7]])
    run = with_gradient(values, old, returns, mask, 0.2)
    diagnose(run, candidate, run(_error), VALUE_MISTAKES)
