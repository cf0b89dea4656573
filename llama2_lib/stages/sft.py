"""Supervised fine-tuning on dialogs (paper section 3.1)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from llama2_lib.evaluation.chat import answer_loss
from llama2_lib.model.transformer import Transformer
from llama2_lib.objectives.language import masked_loss
from llama2_lib.objectives.terms import LossTerm
from llama2_lib.stages.fit import Report, fit
from llama2_lib.text.dialog import Encoder, Message, encode_example, render
from llama2_lib.training.batches import apart
from llama2_lib.training.dialog_batches import DialogBatch, Example, PackedDialogs, shorten_all
from llama2_lib.training.schedule import warmup_then_cosine
from llama2_lib.world import make_world
from llama2_lib.world.demonstrations import GRADES, demonstrations

TOKENS_PER_DIALOG = 115
"""About; only the progress bar rests on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SftConfig:
    """One fine-tuning run. The paper's numbers are in brackets."""

    n_dialogs: int
    """Training dialogs [27,540]."""
    batch_size: int
    """Rows per step [64], each of which holds several dialogs."""
    seq_len: int
    """Tokens per row [4096]."""
    n_validation: int = 200
    """Dialogs kept for the loss on answers, none of which is a copy of a training dialog."""
    grade: str = "clean"
    """Of the demonstrations: clean, mixed or noisy; those of validation are always clean."""
    epochs: int = 2
    """[2]"""
    peak_lr: float = 2e-3
    """[2e-5]; half of our own pretraining rate, where the paper's is a fifteenth. More of it
    teaches the answers better and forgets more of the facts that no dialog asks for."""
    warmup: int = 10
    """Steps; the paper states none."""
    floor: float = 0.1
    """Final rate as a fraction of the peak; the paper states none."""
    weight_decay: float = 0.1
    """[0.1]"""
    clip_norm: float = 1.0
    """The paper states none; that of its pretraining."""
    isolate_documents: bool = True
    """Whether dialogs in a row are hidden from each other. The paper packs and does not say. They
    are by default: each dialog then gets the logits that it gets alone, which is how the model
    will be asked."""
    precision: str = "fp32"
    """fp32 or bf16; of matrix products only."""
    compile: bool = False
    """Whether to compile the model; pays on a GPU."""
    eval_every: int = 100
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "n_dialogs", "batch_size", "seq_len", "n_validation", "epochs", "eval_every",
            "save_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16; got {self.precision!r}.")
        if self.grade not in GRADES:
            raise ValueError(f"grade must be one of {', '.join(GRADES)}; got {self.grade!r}.")
        warmup_then_cosine(  # refuses what is out of range; the number of steps is known later
            peak=self.peak_lr, steps=self.warmup + 1, warmup=self.warmup, floor=self.floor
        )


def estimated_steps(config: SftConfig) -> int:
    """Return about how many steps a run takes; how many exactly depends on the packing."""
    rows = -(-config.n_dialogs * TOKENS_PER_DIALOG // config.seq_len)
    return config.epochs * -(-rows // config.batch_size)


def training_dialogs(config: SftConfig, world_seed: int) -> list[list[Message]]:
    """Return the training dialogs; fewer of them are a beginning of more."""
    stream = demonstrations(make_world(world_seed), world_seed, config.n_dialogs, config.grade)
    return cast(list[list[Message]], list(stream))


def validation_dialogs(
    config: SftConfig, world_seed: int, train: Sequence[Sequence[Message]]
) -> list[list[Message]]:
    """Return clean dialogs of another stream, none of which is in `train`, and none twice.

    Raises:
        ValueError: The world has too few.
    """
    seen = {render(dialog) for dialog in train}
    fresh: dict[str, list[Message]] = {}
    tries = 20 * config.n_validation
    stream = demonstrations(make_world(world_seed), world_seed + 1_000_003, tries)
    for dialog in cast(Iterator[list[Message]], stream):
        text = render(dialog)
        if text not in seen:
            fresh.setdefault(text, dialog)
        if len(fresh) == config.n_validation:
            return list(fresh.values())
    raise ValueError(
        f"n_validation={config.n_validation} unseen dialogs were asked for; the world gave "
        f"{len(fresh)} in {tries} tries. Ask for fewer."
    )


def examples(dialogs: Sequence[Sequence[Message]], tok: Encoder) -> list[Example]:
    """Return ids and loss masks; every answer of a dialog is a target."""
    return [encode_example(dialog, tok) for dialog in dialogs]


def dialog_loss(isolate_documents: bool) -> Callable[[Callable[..., Any], DialogBatch], LossTerm]:
    """Return the loss on the answers of a batch, with dialogs that see each other or do not."""

    def loss(model: Callable[..., Any], batch: DialogBatch) -> LossTerm:
        seen = apart(batch.document[:, :-1]) if isolate_documents else {}
        return masked_loss(model(batch.ids[:, :-1], **seen), batch.ids, batch.loss_mask)

    return loss


def sft(
    config: SftConfig,
    model: Transformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    device: torch.device,
    report: Report = lambda done, words: None,
) -> Transformer:
    """Fine-tune a pretrained `model` in place, or go on from the newest checkpoint in `folder`.

    Leaves `model.safetensors`, `config.json` and `metrics.jsonl`, whose step 0 says how many
    dialogs were shortened or dropped and how well the model predicted answers before. Killed at
    any moment and started again, it ends with the same bits.

    Raises:
        ValueError: `seq_len` exceeds the model's context, an example teaches nothing, or there
            are fewer steps than the warm-up takes.
        FloatingPointError: The loss is not finite.
    """
    if config.seq_len > model.config.max_seq_len:
        raise ValueError(
            f"seq_len must fit the model's max_seq_len; got {config.seq_len} and "
            f"{model.config.max_seq_len}."
        )
    packed = PackedDialogs(train, seq_len=config.seq_len, seed=config.seed)
    probe = shorten_all(validation, config.seq_len + 1)

    def batches(start: int) -> Iterator[DialogBatch]:
        return packed.batches(batch_size=config.batch_size, start=start)

    def measure(model: Transformer) -> dict[str, float]:
        return {"validation_loss": answer_loss(model, probe.examples).value}

    def before(model: Transformer) -> dict[str, float]:
        counts = packed.counts() | {
            "validation_dialogs": len(probe.examples),
            "validation_shortened": probe.n_shortened,
            "validation_dropped": probe.n_dropped,
        }
        return counts | measure(model)

    return fit(
        config,
        model.to(device),
        batches,
        dialog_loss(config.isolate_documents),
        measure,
        folder,
        report,
        steps=config.epochs * packed.batches_per_epoch(config.batch_size),
        before=before,
    )
