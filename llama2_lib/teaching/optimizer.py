"""Checks of the optimiser's parts: AdamW, what decays, clipping, the schedule."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.teaching.diagnosis import diagnose
from llama2_lib.training.schedule import warmup_then_cosine

Update = Callable[..., tuple[Tensor, Tensor, Tensor]]
Groups = Callable[[nn.Module], Sequence[dict[str, Any]]]
Clip = Callable[[Sequence[Tensor], float], tuple[Sequence[Tensor], Any]]
Rate = Callable[..., float]

STEPS, LR, BETAS, EPS, DECAY = 4, 0.05, (0.9, 0.95), 1e-2, 0.5
"""Unlike the paper's eps and decay, these are large enough to show in four steps."""


def _adamw(
    p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float,
    betas: tuple[float, float] = BETAS, eps: float = EPS, weight_decay: float = DECAY,
    *, corrected: bool = True, root: bool = True, eps_inside: bool = False, swapped: bool = False,
    decay: str = "weights",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of AdamW, step counted from 1, with the flaws that are asked for."""
    b1, b2 = betas[::-1] if swapped else betas
    if decay == "gradient":
        grad = grad + weight_decay * p
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad * grad
    m_hat, v_hat = (m / (1 - b1**step), v / (1 - b2**step)) if corrected else (m, v)
    size = v_hat
    if root:
        size = (v_hat + eps).sqrt() if eps_inside else v_hat.sqrt() + eps
    shrink = {"weights": lr * weight_decay, "full": weight_decay}.get(decay, 0.0)
    return p * (1 - shrink) - lr * m_hat / size, m, v


UPDATE_MISTAKES: dict[str, Update] = {
    "the averages are not corrected for their start at zero": partial(_adamw, corrected=False),
    "the decay is added to the gradient, as in Adam with L2, not taken off the weights": partial(
        _adamw, decay="gradient"
    ),
    "the decay is not multiplied by the learning rate": partial(_adamw, decay="full"),
    "there is no decay": partial(_adamw, decay="none"),
    "eps stands inside the root": partial(_adamw, eps_inside=True),
    "the second average is used without its root": partial(_adamw, root=False),
    "beta 1 and beta 2 are exchanged": partial(_adamw, swapped=True),
}


def adamw_step(candidate: Update) -> None:
    """Check `candidate(p, grad, m, v, step, lr, betas, eps, weight_decay)` over four steps.

    It returns the new p, m and v; `step` counts from 1. The reference is PyTorch's AdamW.
    """
    start, *gradients = torch.randn(STEPS + 1, 3, 5, generator=rng.generator(0, "check", "adamw"))
    weight = nn.Parameter(start.clone())
    reference = torch.optim.AdamW([weight], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for gradient in gradients:
        weight.grad = gradient.clone()
        reference.step()

    def run(update: Update) -> Tensor:
        p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for step, gradient in enumerate(gradients, start=1):
            p, m, v = update(p, gradient.clone(), m, v, step, LR, BETAS, EPS, DECAY)
        return p

    wrong = {name: partial(run, update) for name, update in UPDATE_MISTAKES.items()}
    diagnose(run(candidate), weight.detach(), wrong)


def _groups(decays: Callable[[str, nn.Parameter], bool]) -> Groups:
    def split(model: nn.Module) -> list[dict[str, Any]]:
        named = list(model.named_parameters())
        return [
            {"params": [p for n, p in named if decays(n, p)], "weight_decay": 0.1},
            {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
        ]

    return split


GROUP_MISTAKES: dict[str, Groups] = {
    "everything decays, the gains of the norms too": _groups(lambda name, p: True),
    "nothing decays": _groups(lambda name, p: False),
    "the two groups are exchanged: gains decay, matrices do not": _groups(
        lambda name, p: p.dim() < 2
    ),
    "the final norm is missed: its name does not end in _norm": _groups(
        lambda name, p: not name.endswith("_norm.weight")
    ),
    "the embedding table does not decay; it is a matrix like the others": _groups(
        lambda name, p: p.dim() >= 2 and "embeddings" not in name
    ),
    "some parameters are in no group, so they are never trained": lambda model: _groups(
        lambda name, p: p.dim() >= 2
    )(model)[:1],
}


def decay_groups(candidate: Groups) -> None:
    """Check `candidate(model)`: groups for PyTorch's AdamW, in which matrices decay by 0.1 and
    the gains of norms do not."""
    config = ModelConfig(vocab_size=31, dim=24, n_layers=2, n_heads=3, n_kv_heads=1, multiple_of=5)
    model = Transformer(config)

    def decay(groups: Sequence[dict[str, Any]]) -> dict[int, float]:
        listed = [(id(p), float(g["weight_decay"])) for g in groups for p in g["params"]]
        if len(dict(listed)) < len(listed):
            raise CheckFailed("a parameter stands in two groups; each must be updated once.")
        return dict(listed)

    actual = decay(list(candidate(model)))
    if actual == decay(_groups(lambda name, p: p.dim() >= 2)(model)):
        return
    for mistake, wrong in GROUP_MISTAKES.items():
        if actual == decay(wrong(model)):
            raise CheckFailed(f"the groups are not right: it looks as if {mistake}.")
    names = [n for n, p in model.named_parameters() if actual.get(id(p)) != 0.1 * (p.dim() >= 2)]
    raise CheckFailed(f"these parameters decay by another amount than wanted: {names[:3]}.")


def _scaled(gradients: Sequence[Tensor], factor: Tensor | float) -> list[Tensor]:
    return [gradient * factor for gradient in gradients]


def _norm(gradients: Sequence[Tensor], power: float = 2.0) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients]).norm(power)


def _clipped(
    gradients: Sequence[Tensor], limit: float, *, power: float = 2.0, always: bool = False
) -> tuple[list[Tensor], Tensor]:
    norm = _norm(gradients, power)
    factor = limit / norm if always or norm > limit else 1.0
    return _scaled(gradients, factor), norm


def _each_alone(gradients: Sequence[Tensor], limit: float) -> tuple[list[Tensor], Tensor]:
    clipped = [_clipped([gradient], limit)[0][0] for gradient in gradients]
    return clipped, _norm(gradients)


CLIP_MISTAKES: dict[str, Clip] = {
    "each tensor is clipped by its own norm, which bends the direction": _each_alone,
    "each number is cut off at the limit, which bends the direction": lambda g, limit: (
        [gradient.clamp(-limit, limit) for gradient in g],
        _norm(g),
    ),
    "small gradients are stretched to the limit; they must stay": partial(_clipped, always=True),
    "the norm is a sum of sizes, not the root of a sum of squares": partial(_clipped, power=1.0),
    "nothing is clipped": lambda g, limit: (list(g), _norm(g)),
    "the norm returned is that after clipping; the one before tells of trouble": lambda g, limit: (
        _clipped(g, limit)[0],
        _norm(_clipped(g, limit)[0]),
    ),
}


def clipping(candidate: Clip) -> None:
    """Check `candidate(gradients, limit)`: the list scaled to a common norm of at most `limit`,
    and the norm before. Tried on a large and on a small gradient."""
    generator = rng.generator(0, "check", "clipping")
    large = [3 * torch.randn(shape, generator=generator) for shape in [(4, 3), (5,), (2, 2)]]
    both = [large, _scaled(large, 0.01)]

    def run(clip: Clip) -> Tensor:
        found = []
        for gradients in both:
            clipped, norm = clip([gradient.clone() for gradient in gradients], 1.0)
            found += [*(g.flatten() for g in clipped), torch.as_tensor(norm).flatten().float()]
        return torch.cat(found)

    wrong = {name: partial(run, clip) for name, clip in CLIP_MISTAKES.items()}
    diagnose(run(candidate), run(_clipped), wrong)


def _cosine(
    index: int, peak: float, steps: int, warmup: int, floor: float,
    *, first: int = 1, clock: int = 0, last: int = 1, waves: float = 0.5,
) -> float:  # fmt: skip
    """The schedule with another first step, start of the cosine, end, or number of waves."""
    if index < warmup:
        return peak * (index + first) / (warmup + first)
    begin = warmup if clock == 0 else 0
    progress = min(1.0, (index - begin) / (steps - last - begin))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(2 * math.pi * waves * progress)))


def _linear(index: int, peak: float, steps: int, warmup: int, floor: float) -> float:
    if index < warmup:
        return peak * (index + 1) / (warmup + 1)
    return peak * (1 - (1 - floor) * (index - warmup) / (steps - 1 - warmup))


RATE_MISTAKES: dict[str, Rate] = {
    "the cosine falls to zero, not to the floor": lambda i, peak, steps, warmup, floor: _cosine(
        i, peak, steps, warmup, 0.0
    ),
    "the floor cuts the cosine off, instead of the cosine ending there": (
        lambda i, peak, steps, warmup, floor: max(
            _cosine(i, peak, steps, warmup, 0.0), floor * peak if i >= warmup else 0.0
        )
    ),
    "the floor is taken as a rate, not as a fraction of the peak": (
        lambda i, peak, steps, warmup, floor: _cosine(i, peak, steps, warmup, floor / peak)
    ),
    "the first step has rate 0 and learns nothing": partial(_cosine, first=0),
    "there is no warm-up": lambda i, peak, steps, warmup, floor: _cosine(i, peak, steps, 0, floor),
    "the cosine starts at step 0, not where the warm-up ends, so the rate drops there": partial(
        _cosine, clock=1
    ),
    "the last step is one short of the floor": partial(_cosine, last=0),
    "the cosine runs through a whole wave and comes back to the peak": partial(_cosine, waves=1.0),
    "the rate falls along a line, not a cosine": _linear,
}


def schedule(candidate: Rate) -> None:
    """Check `candidate(index, peak, steps, warmup, floor)`: a line up to `peak` at step `warmup`,
    the first step at peak / (warmup + 1), then half a cosine to `floor * peak` at the last."""
    settings = (3.0, 40, 6, 0.2)
    lr_at = warmup_then_cosine(peak=3.0, steps=40, warmup=6, floor=0.2)

    def run(rate: Rate) -> Tensor:
        return torch.tensor([float(rate(index, *settings)) for index in range(40)])

    wrong = {name: partial(run, rate) for name, rate in RATE_MISTAKES.items()}
    diagnose(run(candidate), torch.tensor([lr_at(index) for index in range(40)]), wrong)
