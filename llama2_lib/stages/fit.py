"""What the stages that train a model have in common: resume, log, measure, save, in this order.

They differ in their batches, in their loss and in what they measure. PPO alone has a loop of its
own: its data come from the model that it trains.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llama2_lib import storage
from llama2_lib.config import DialogTrainConfig, TrainConfig
from llama2_lib.device import autocast
from llama2_lib.evaluation.language import answer_loss
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import ScalarModel, Transformer
from llama2_lib.model.weights import save_model
from llama2_lib.objectives.language import LossTerm, target_loss, targets_of
from llama2_lib.training import sharded
from llama2_lib.training.batches import DialogBatch, Example, PackedDialogs, apart, shorten_all
from llama2_lib.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import NO_RATES, adamw, warmup_then_cosine

Batch = TypeVar("Batch", bound=tuple[Tensor, ...])
Model = TypeVar("Model", Transformer, ScalarModel)
Forward = Callable[..., Any]
"""The model, compiled or not: calling it is all that both can do."""
STORED = torch.float16
"""Precision of finished weights, half of the bytes. (A bf16 has 3 bits less for the number.)"""
Report = Callable[[float, str], None]
"""Hears what share of a run is done, 0 to 1, and a few words for the progress bar."""


def fit(
    config: TrainConfig, model: Model, batches: Callable[[int], Iterator[Batch]],
    loss_fn: Callable[[Forward, Batch], LossTerm], measure: Callable[[Model], Mapping[str, float]],
    folder: Path, report: Report, *, steps: int, accumulate: int = 1,
    rates: Mapping[str, float] = NO_RATES,
    before: Callable[[Model], Mapping[str, float]] | None = None,
) -> Model:  # fmt: skip
    """Train `model` in place, or continue from the newest checkpoint in `folder`, to the same bits.

    A step takes `accumulate` micro-batches; `batches` returns those from a number on. What `before`
    returns is logged as step 0, what `measure` returns every `eval_every` steps and at the end.
    Leaves `model.safetensors`, `config.json` and `metrics.jsonl`. A loss that is not finite is a
    FloatingPointError.
    """
    sharded.shard(model)
    optimizer = adamw(model, weight_decay=config.weight_decay, rates=rates)
    start = load_checkpoint(folder, model, optimizer)
    log = storage.MetricsLog(folder / "metrics.jsonl")
    log.keep_up_to(start or -1)  # a run from the start writes its step 0 again
    if start == 0 and before is not None:
        log.write(0, **before(sharded.whole(model)))
    for step in optimize(
        model,
        optimizer,
        batches(start * accumulate),
        _forward(config, model, loss_fn),
        warmup_then_cosine(
            peak=config.peak_lr, steps=steps, warmup=config.warmup, floor=config.min_lr_ratio
        ),
        steps=range(start, steps),
        accumulate=accumulate,
        clip_norm=config.clip_norm,
    ):
        done = step.index + 1
        numbers = {"loss": step.loss, "grad_norm": step.grad_norm, "lr": step.lr}
        log.write(done, **numbers, tokens=step.count, **step.metrics)
        if done == steps:
            round_weights(model)  # what is measured last is what is saved
        if done % config.eval_every == 0 or done == steps:
            log.write(done, **measure(sharded.whole(model)))
        if done % config.save_every == 0 and done < steps:
            save_checkpoint(folder, done, model, optimizer)
        report(done / steps, f"loss {step.loss:.3f}")
    model = sharded.whole(model)
    finish(model, folder)
    clear_checkpoints(folder)
    return model.eval()


def finish(model: Model, folder: Path) -> None:
    """Save a trained model, and go on with the rounded weights that whoever loads it will have."""
    round_weights(model)
    save_model(model, folder, STORED)


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Round every weight in place to the nearest that is stored."""
    for weight in model.parameters():
        weight.copy_(weight.to(STORED))


def _forward(
    config: TrainConfig, model: nn.Module, loss_fn: Callable[[Forward, Batch], LossTerm]
) -> Callable[[nn.Module, Batch], LossTerm]:
    """Return the loss on the model's device, in the precision and compiled form asked for."""
    device = next(model.parameters()).device
    fast: Forward = torch.compile(model) if config.compile else model

    def forward(_: nn.Module, batch: Batch) -> LossTerm:
        # The loop passes the plain model; the compiled one shares its weights.
        with autocast(device, config.precision):
            return loss_fn(fast, type(batch)(*(t.to(device) for t in batch)))

    return forward


def check_rows(seq_len: int, model: ModelConfig) -> None:
    """Refuse rows that are longer than the model's context."""
    if seq_len > model.max_seq_len:
        raise ValueError(
            f"seq_len must fit the model's max_seq_len; got {seq_len} and {model.max_seq_len}."
        )


def fit_dialogs(
    config: DialogTrainConfig, model: Transformer, packed: PackedDialogs,
    measure: Callable[[Transformer], Mapping[str, float]], folder: Path, report: Report, *,
    steps: int, before: Callable[[Transformer], Mapping[str, float]] | None = None,
) -> Transformer:  # fmt: skip
    """Fine-tune `model` in place on packed dialogs; see `fit`."""
    check_rows(config.seq_len, model.config)
    return fit(
        config, model, lambda start: packed.batches(batch_size=config.batch_size, start=start),
        dialog_loss(config.isolate_documents), measure, folder, report, steps=steps, before=before,
    )  # fmt: skip


def dialog_loss(isolate_documents: bool) -> Callable[[Forward, DialogBatch], LossTerm]:
    """Return the loss on the answers of a batch, with dialogs that see each other or do not."""

    def loss(model: Forward, batch: DialogBatch) -> LossTerm:
        options = apart(batch.document[:, :-1]) if isolate_documents else {}
        at, targets = targets_of(batch.ids, batch.loss_mask)
        return target_loss(model(batch.ids[:, :-1], at=at, **options), targets)

    return loss


def loss_on(
    validation: Sequence[Example], seq_len: int
) -> Callable[[Transformer], dict[str, float]]:
    """Return the measure of a run on dialogs: nats per answer token of held-out examples."""
    probe = shorten_all(validation, seq_len + 1)
    return lambda model: {"validation_loss": answer_loss(model, probe.examples).value}
