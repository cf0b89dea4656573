"""The paper's optimiser and learning-rate schedule (section 2.2)."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

BETAS, EPS = (0.9, 0.95), 1e-5
"""Those of AdamW [0.9, 0.95, 1e-5]."""
NO_RATES: Mapping[str, float] = MappingProxyType({})


def adamw(
    model: nn.Module, *, weight_decay: float = 0.1, rates: Mapping[str, float] = NO_RATES
) -> torch.optim.AdamW:
    """Return AdamW with the paper's settings: betas 0.9 and 0.95, eps 1e-5.

    Matrices decay, gains of norms do not: a choice of ours, the paper does not say. The rate
    is set by the loop at every step. The fused kernel updates all weights in one call.
    `rates` lets weights whose name begins so learn at a multiple of the loop's rate; of several
    beginnings that fit, the longest counts.
    """
    names = [name for name, _ in model.named_parameters()]
    unknown = [prefix for prefix in rates if not any(n.startswith(prefix) for n in names)]
    assert not unknown, f"no weight begins with {unknown}; the first is {names[0]!r}"
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        prefix = max((each for each in rates if name.startswith(each)), key=len, default="")
        key = (parameter.dim() >= 2, rates.get(prefix, 1.0))
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "weight_decay": weight_decay if decays else 0.0, "rate": rate}
            for (decays, rate), params in sorted(groups.items(), key=lambda item: item[0])[::-1]
        ],
        lr=0.0,
        betas=BETAS,
        eps=EPS,
        fused=True,
    )


def warmup_then_cosine(
    *, peak: float, steps: int, warmup: int, floor: float = 0.1
) -> Callable[[int], float]:
    """Return the rate at each step: linear up to `peak`, then a cosine down to `floor * peak`.

    The peak is reached at step `warmup` (0 starts there); the last of `steps` has exactly
    `floor * peak`, in the paper a tenth of it.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must lie in 0...steps - 1; got {warmup} of {steps} steps.")
    if not (peak > 0 and 0 <= floor <= 1):
        raise ValueError(f"need peak > 0 and 0 <= floor <= 1; got {peak} and {floor}.")

    def lr_at(index: int) -> float:
        if index < warmup:
            return peak * (index + 1) / (warmup + 1)
        progress = (index - warmup) / max(1, steps - 1 - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return peak * (floor + (1 - floor) * cosine)

    return lr_at
