"""The paper's optimiser and learning-rate schedule (section 2.2)."""

import math
from collections.abc import Callable

import torch
from torch import nn


def adamw(model: nn.Module, *, weight_decay: float = 0.1) -> torch.optim.AdamW:
    """Return AdamW with the paper's settings: betas 0.9 and 0.95, eps 1e-5.

    Matrices decay, gains of norms do not: a choice of ours, the paper does not say. The rate
    is set by the loop at every step. The fused kernel updates all weights in one call.
    """
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-5, fused=True)


def warmup_then_cosine(
    *, peak: float, steps: int, warmup: int, floor: float = 0.1
) -> Callable[[int], float]:
    """Return the rate at each step: linear up to `peak`, then a cosine down to `floor * peak`.

    Args:
        peak: Highest rate, reached at step `warmup`.
        steps: Length of the run; the last step has exactly `floor * peak`.
        warmup: Steps before the peak; 0 starts there.
        floor: Final rate as a fraction of the peak; the paper uses 0.1.

    Raises:
        ValueError: The warm-up is longer than the run, or a number is out of range.
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
