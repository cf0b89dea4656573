"""The paper's optimiser and learning-rate schedule (section 2.2), and the one training loop.

The loop is a generator that yields after every optimiser step. The stage owns the `for`:
evaluation, sampling, logging, saving and early stopping stand there, in the order in which they
happen.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from llama2_lib import parallel
from llama2_lib.objectives.language import LossTerm
from llama2_lib.training import sharded

Batch = TypeVar("Batch")

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


class Step(NamedTuple):
    """What one optimiser step did; plain numbers, ready for a log or a plot."""

    index: int
    loss: float
    """Per counted item."""
    grad_norm: float
    """Before clipping."""
    lr: float
    count: int
    """Counted items: tokens for a language model."""
    metrics: dict[str, float]


def optimize(
    model: nn.Module, optimizer: Optimizer, batches: Iterator[Batch],
    loss_fn: Callable[[nn.Module, Batch], LossTerm], lr_at: Callable[[int], float], *, steps: range,
    accumulate: int = 1, clip_norm: float = 1.0,
) -> Iterator[Step]:  # fmt: skip
    """Take one optimiser step per item of `steps`, yielding after each.

    Each step sums the gradients of `accumulate` micro-batches, and of all processes' rows of them,
    and divides once by what they counted: how the data is split changes nothing but memory and
    time. It ends early when the batches run out.

    Raises:
        FloatingPointError: The loss or gradient is not finite; the weights are untouched.
    """
    for index in steps:
        micro_batches = list(islice(batches, accumulate))
        if len(micro_batches) < accumulate:
            return  # a partial step would be noisier than the rest
        model.train()
        terms = []
        for micro_batch in micro_batches:
            term = loss_fn(model, parallel.own_rows(micro_batch))
            term.total.backward()
            terms.append(LossTerm(term.total.detach(), term.count, term.metrics))

        sums = {
            name: torch.stack([term.metrics[name] * term.count for term in terms]).sum()
            for name in terms[0].metrics
        }
        total = torch.stack([term.total for term in terms]).sum()
        count = torch.stack([term.count for term in terms]).sum()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not sharded.is_sharded(model):  # else they were added up on the way back
            parallel.add_up(gradients)
        parallel.add_up([total, count, *sums.values()])
        for gradient in gradients:
            gradient.div_(count.item())
        loss = (total / count).item()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm).item()
        if not (abs(loss) < float("inf") and grad_norm < float("inf")):
            optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(
                f"step {index}: loss and gradient must be finite; got loss={loss:.4g}, "
                f"grad_norm={grad_norm:.4g}. The weights are those of the step before; try a "
                "lower learning rate."
            )
        lr = lr_at(index)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("rate", 1.0)  # see `adamw`
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        metrics = {name: (value / count).item() for name, value in sums.items()}
        yield Step(index, loss, grad_norm, lr, int(count), metrics)
