"""Check of generalised advantages, and the mistakes it recognises (used in section 3.2.3)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from llama2_lib import rng
from llama2_lib.objectives.policy_gradient import gae as right_gae
from llama2_lib.objectives.reward import whiten
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.teaching.diagnosis import diagnose

Advantages = Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]


def _advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float,
    *, blind: bool = False, terminal: str = "zero", decay: float | None = None,
    carry_gamma: bool = True, baseline: float = 1.0, shift: int = 0, forwards: bool = False,
    ahead: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Generalised advantages with flaws; `blind` walks through pads as if they were tokens."""
    use = torch.ones_like(mask) if blind else mask
    rewards, values = rewards.masked_fill(~use, 0.0), values.masked_fill(~use, 0.0)
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    final = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    if terminal == "own":
        after = torch.where(final, values, after)
    delta = rewards + ahead * gamma * after - baseline * values
    if shift:
        delta = rewards + gamma * values - torch.cat([values[:, :1] * 0, values[:, :-1]], dim=1)
    rate = (gamma if carry_gamma else 1.0) * (lam if decay is None else decay)
    found, carry = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    steps = range(rewards.shape[1])
    for t in steps if forwards else reversed(steps):
        carry = torch.where(use[:, t], delta[:, t] + rate * carry, 0.0)
        found[:, t] = carry
    found = found.masked_fill(~mask, 0.0)
    return found, (found + values).masked_fill(~mask, 0.0)


def _bootstrapped(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Read the value behind the last token, which is that of a pad, and walk on from there."""
    final = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    extra = gamma * after * final
    return _advantages(rewards + extra, values, mask, gamma, lam)


def _with_returns(
    change: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Advantages:
    """Right advantages, then `change(advantages, rewards, values, mask)`."""

    def function(
        rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
    ) -> tuple[Tensor, Tensor]:
        found = _advantages(rewards, values, mask, gamma, lam)[0]
        pair = change(found, rewards, values, mask)
        return pair[0], pair[1].masked_fill(~mask, 0.0)

    return function


GAE_MISTAKES: dict[str, Advantages] = {
    "the sum is carried through the pads, whose rewards and values count as if they were tokens; "
    "use the mask inside the recursion": partial(_advantages, blind=True),
    "the value behind the last token is read, which is a pad's; the answer is over, so it is 0": (
        _bootstrapped
    ),
    "the last token's own value stands for the value behind it; the answer is over, so it is 0": (
        partial(_advantages, terminal="own")
    ),
    "values are one place too late: values[t] is that of the state before token t": partial(
        _advantages, shift=1
    ),
    "the value of the next state is left out of delta": partial(_advantages, ahead=0.0),
    "the own value is added in delta; subtract it": partial(_advantages, baseline=-1.0),
    "no value is subtracted: there is no baseline": partial(_advantages, baseline=0.0),
    "lambda is not used (it is 1): this is reward-to-go less the value": partial(
        _advantages, decay=1.0
    ),
    "nothing is carried (lambda is 0): this is delta alone": partial(_advantages, decay=0.0),
    "the sum decays by lambda alone; it decays by gamma * lambda": partial(
        _advantages, carry_gamma=False
    ),
    "the sum runs forwards; advantages look ahead, so begin at the end": partial(
        _advantages, forwards=True
    ),
    "returns are computed from whitened advantages; take them before": _with_returns(
        lambda a, r, v, mask: (a, whiten(a, mask) + v)
    ),
    "advantages come back whitened; the caller whitens them after the returns are computed": (
        _with_returns(lambda a, r, v, mask: (whiten(a, mask), a + v))
    ),
    "advantages come back whitened, and the returns are computed from those": _with_returns(
        lambda a, r, v, mask: (whiten(a, mask), whiten(a, mask) + v)
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


def gae(candidate: Advantages) -> None:
    """Check `candidate(rewards, values, mask, gamma, lam)`: advantages and returns of each token.

    `mask` is True on the answers' tokens, which stand between prompt and padding. Elsewhere
    rewards and values hold any number, and both results must be 0.
    """
    rewards, values = torch.randn(2, 3, 8, generator=rng.generator(0, "check", "gae"))
    places = torch.arange(8)
    mask = (places >= torch.tensor([[2], [0], [1]])) & (places < torch.tensor([[6], [8], [4]]))

    def run(function: Advantages) -> Tensor:
        parts = function(rewards.clone(), values.clone(), mask, 0.9, 0.7)
        if [tuple(torch.as_tensor(part).shape) for part in parts] != [(3, 8)] * 2:
            raise CheckFailed("two tensors must come back, advantages and returns of every token.")
        return torch.stack([torch.as_tensor(part) for part in parts])

    actual, expected = (
        run(candidate),
        torch.stack(right_gae(rewards, values, mask, gamma=0.9, lam=0.7)),
    )
    outside = ~mask.expand_as(actual)
    inside = actual.masked_fill(outside, 0.0)
    if torch.allclose(inside, expected, rtol=1e-4, atol=1e-5) and not torch.equal(inside, actual):
        raise CheckFailed(
            "advantages and returns are right on the tokens, but they are not 0 where the mask is "
            "False; set them to 0 there."
        )
    wrong = {name: partial(run, f) for name, f in GAE_MISTAKES.items()}
    diagnose(inside, expected, wrong)
