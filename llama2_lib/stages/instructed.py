"""Teaching the newest model to obey an instruction in the message that it stands in.

A step of ours before Ghost Attention, see `world.instructed`: the paper's models can do it already.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from llama2_lib.evaluation.chat import answer_loss
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.fit import FitConfig, Report, fit
from llama2_lib.stages.sft import dialog_loss, examples
from llama2_lib.text.dialog import Encoder, Message
from llama2_lib.training.dialog_batches import Example, PackedDialogs, shorten_all
from llama2_lib.training.schedule import warmup_then_cosine
from llama2_lib.world import make_world
from llama2_lib.world.instructed import instructed_dialogs

VALIDATION_SEED = 1_000_003


@runtime_checkable
class TuneConfig(FitConfig, Protocol):
    """Settings of a fine-tuning run on dialogs."""

    @property
    def epochs(self) -> int:
        """How often every dialog is seen."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows per step."""
        ...

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        ...

    @property
    def seed(self) -> int:
        """Of the order of the rows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructedConfig:
    """One run. Nothing of it is in the paper."""

    n_dialogs: int
    """With instructions or without."""
    n_replay: int
    """Other prompts mixed in, with the model's own answers, so that nothing is forgotten."""
    n_demonstrations: int
    """Demonstrations mixed in, most of them of prompts that only sound dangerous."""
    n_validation: int = 60
    epochs: int = 2
    batch_size: int = 4
    seq_len: int = 512
    peak_lr: float = 1e-3
    warmup: int = 10
    floor: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    precision: str = "fp32"
    compile: bool = False
    eval_every: int = 100
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "n_dialogs", "n_validation")
        check_tuning(self)
        check_mixed_in(self, "n_replay", "n_demonstrations")


def check_counts(config: object, *names: str) -> None:
    """Refuse a setting that counts something and is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}.")


def check_mixed_in(config: object, *names: str) -> None:
    """Refuse a number of dialogs mixed in that is negative."""
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be 0 or more; got {getattr(config, name)}.")


def check_tuning(config: TuneConfig) -> None:
    """Refuse settings of a fine-tuning run that are out of range."""
    check_counts(config, "epochs", "batch_size", "seq_len", "eval_every", "save_every")
    if config.precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16; got {config.precision!r}.")
    warmup_then_cosine(  # refuses what is out of range; the number of steps is known later
        peak=config.peak_lr, steps=config.warmup + 1, warmup=config.warmup, floor=config.floor
    )


def instructed_examples(
    config: InstructedConfig, world_seed: int, tok: Encoder
) -> tuple[list[Example], list[Example]]:
    """Return training and validation dialogs, encoded; every answer is a target."""
    world = make_world(world_seed)
    train = instructed_dialogs(world, config.seed, config.n_dialogs)
    unseen = instructed_dialogs(world, config.seed + VALIDATION_SEED, config.n_validation)
    encoded = [
        examples(cast(list[list[Message]], list(dialogs)), tok) for dialogs in (train, unseen)
    ]
    return encoded[0], encoded[1]


def tune(
    config: TuneConfig,
    model: Transformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    report: Report = lambda done, words: None,
    *,
    counts: Mapping[str, float] | None = None,
    measure: Callable[[Transformer], Mapping[str, float]] | None = None,
) -> Transformer:
    """Fine-tune `model` in place, or go on from the newest checkpoint in `folder`.

    Args:
        config: The run's settings.
        model: On its device, with the weights to start from.
        train: Examples; those that do not fit a row are shortened or dropped, and counted.
        validation: Examples whose loss is measured.
        folder: The run's.
        report: Hears of every step.
        counts: Logged as step 0 with the counts of the packing.
        measure: Measured beside the loss.
    """
    packed = PackedDialogs(train, seq_len=config.seq_len, seed=config.seed)
    probe = shorten_all(validation, config.seq_len + 1)

    def measured(model: Transformer) -> dict[str, float]:
        more = measure(model) if measure else {}
        return {"validation_loss": answer_loss(model, probe.examples).value, **more}

    return fit(
        config,
        model,
        lambda start: packed.batches(batch_size=config.batch_size, start=start),
        dialog_loss(isolate_documents=True),
        measured,
        folder,
        report,
        steps=config.epochs * packed.batches_per_epoch(config.batch_size),
        before=lambda model: {**(counts or {}), **packed.counts(), **measured(model)},
    )
