"""The one training loop: a generator that yields after every optimiser step.

The stage owns the `for`: evaluation, sampling, logging, saving and early stopping stand there,
in the order in which they happen.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from llama2_lib import parallel
from llama2_lib.objectives.language import LossTerm
from llama2_lib.training import sharded

Batch = TypeVar("Batch")


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
            gradient.div_(count)
        norm: Any = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        norm = norm.full_tensor() if sharded.is_sharded(model) else norm
        # All numbers at once: each look at one makes the host wait for a GPU.
        looks = [total / count, norm, count, *(each / count for each in sums.values())]
        loss, grad_norm, n, *means = torch.stack(looks).tolist()
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

        yield Step(index, loss, grad_norm, lr, int(n), dict(zip(sums, means, strict=True)))
