"""What the stages that train a model have in common: resume, log, measure, save, in this order.

They differ in their batches, in their loss and in what they measure.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from llama2_lib import storage
from llama2_lib.device import autocast
from llama2_lib.model.heads import ScalarModel
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import save_model
from llama2_lib.objectives.terms import LossTerm
from llama2_lib.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint
from llama2_lib.training.loop import Step, optimize
from llama2_lib.training.schedule import NO_RATES, adamw, warmup_then_cosine

Batch = TypeVar("Batch", bound=tuple[Tensor, ...])
Model = TypeVar("Model", Transformer, ScalarModel)
Report = Callable[[int, str], None]
"""Called after every step with the steps done and a few words for the progress bar."""


@runtime_checkable
class FitConfig(Protocol):
    """Settings that every run has, see `PretrainConfig`."""

    @property
    def peak_lr(self) -> float:
        """Highest learning rate."""
        ...

    @property
    def warmup(self) -> int:
        """Steps up to it."""
        ...

    @property
    def floor(self) -> float:
        """Final rate as a fraction of the peak."""
        ...

    @property
    def weight_decay(self) -> float:
        """Of matrices."""
        ...

    @property
    def clip_norm(self) -> float:
        """Largest norm of a gradient."""
        ...

    @property
    def precision(self) -> str:
        """fp32 or bf16, of matrix products only."""
        ...

    @property
    def compile(self) -> bool:
        """Whether to compile the model."""
        ...

    @property
    def eval_every(self) -> int:
        """Steps between measurements."""
        ...

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""
        ...


def fit(
    config: FitConfig,
    model: Model,
    batches: Callable[[int], Iterator[Batch]],
    loss_fn: Callable[[Callable[..., Any], Batch], LossTerm],
    measure: Callable[[Model], Mapping[str, float]],
    folder: Path,
    report: Report,
    *,
    steps: int,
    accumulate: int = 1,
    rates: Mapping[str, float] = NO_RATES,
    before: Callable[[Model], Mapping[str, float]] | None = None,
) -> Model:
    """Train `model` in place, or go on from the newest checkpoint in `folder`, to the same bits.

    Leaves `model.safetensors`, `config.json` and `metrics.jsonl`. A loss that is not finite is a
    FloatingPointError.

    Args:
        config: Rate, decay, precision, and how often to measure and to save.
        model: On its device, with the weights to start from.
        batches: Returns the micro-batches from a number on.
        loss_fn: The loss of a micro-batch.
        measure: What is logged every `eval_every` steps and at the end.
        folder: The run's.
        report: Hears of every step.
        steps: Optimiser steps of the whole run, of `accumulate` micro-batches each.
        rates: See `adamw`.
        before: What is logged as step 0.
    """
    optimizer = adamw(model, weight_decay=config.weight_decay, rates=rates)
    start = load_checkpoint(folder, model, optimizer)
    log = storage.MetricsLog(folder / "metrics.jsonl")
    log.keep_up_to(start or -1)  # a run from the start writes its step 0 again
    if start == 0 and before is not None:
        log.write(0, **before(model))
    for step in optimize(
        model,
        optimizer,
        batches(start * accumulate),
        _forward(config, model, loss_fn),
        warmup_then_cosine(
            peak=config.peak_lr, steps=steps, warmup=config.warmup, floor=config.floor
        ),
        steps=range(start, steps),
        accumulate=accumulate,
        clip_norm=config.clip_norm,
    ):
        done = step.index + 1
        log.write(done, **_logged(step))
        if done % config.eval_every == 0 or done == steps:
            log.write(done, **measure(model))
        if done % config.save_every == 0 and done < steps:
            save_checkpoint(folder, done, model, optimizer)
        report(done, f"loss {step.loss:.3f}")
    save_model(model, folder)
    clear_checkpoints(folder)
    return model.eval()


def _forward(
    config: FitConfig,
    model: nn.Module,
    loss_fn: Callable[[Callable[..., Any], Batch], LossTerm],
) -> Callable[[nn.Module, Batch], LossTerm]:
    """Return the loss on the model's device, in the precision and compiled form asked for."""
    device = next(model.parameters()).device
    fast: Callable[..., Any] = torch.compile(model) if config.compile else model

    def forward(_: nn.Module, batch: Batch) -> LossTerm:
        with autocast(device, config.precision):
            return loss_fn(fast, type(batch)(*(t.to(device) for t in batch)))

    return forward


def _logged(step: Step) -> dict[str, float]:
    return {
        "loss": step.loss,
        "grad_norm": step.grad_norm,
        "lr": step.lr,
        "tokens": step.count,
        **step.metrics,
    }
