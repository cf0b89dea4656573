"""Supervised fine-tuning on dialogs (paper section 3.1).

1. Draw demonstrations from the source, and unseen ones for validation.
2. Encode them in the chat format; the loss is on the answers only.
3. Pack whole dialogs into rows, hidden from each other, and train for two epochs.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from llama2_lib.config import SftConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.fit import Report, fit_dialogs, loss_on
from llama2_lib.stages.job import Job, write_answers
from llama2_lib.text.dialog import Encoder, encode_example, render
from llama2_lib.training.batches import Example, PackedDialogs, shorten_all
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message
from llama2_lib.world.source import WorldSource

VALIDATION_SEED = 1_000_003
"""Added to the seed of the training dialogs: another stream of the same source."""
MOST_TRIES = 20
"""Dialogs looked at for one that is unseen, on average, before it is an error."""
N_MEASURED = 100
"""Validation dialogs whose answer loss is measured during later fine-tuning."""


def run(job: Job) -> None:
    """Fine-tune the pretrained model on demonstrations."""
    config, tokenizer = job.recipe.sft, job.tokenizer
    train = training_dialogs(config, job.recipe.corpus.world_seed)
    validation = validation_dialogs(config, job.recipe.corpus.world_seed, train)
    model = sft(
        config,
        job.model("pretrain"),
        examples(train, tokenizer),
        examples(validation, tokenizer),
        job.folder,
        job.device,
        job.report,
    )
    job.write_beside(write_answers(model, tokenizer, validation, job.recipe))


def training_dialogs(config: SftConfig, world_seed: int) -> list[list[Message]]:
    """Return the training dialogs; fewer of them are a beginning of more."""
    source = WorldSource(make_world(world_seed))
    return list(source.dialogs(world_seed, config.n_dialogs, config.grade))


def validation_dialogs(
    config: SftConfig, world_seed: int, train: Sequence[Sequence[Message]]
) -> list[list[Message]]:
    """Return clean dialogs of another stream, none of which is in `train`, and none twice.

    Raises:
        ValueError: The world has too few.
    """
    seen = {render(dialog) for dialog in train}
    fresh: dict[str, list[Message]] = {}
    tries = MOST_TRIES * config.n_validation
    source = WorldSource(make_world(world_seed))
    for dialog in source.dialogs(world_seed + VALIDATION_SEED, tries):
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


def sft(
    config: SftConfig,
    model: Transformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    device: torch.device,
    report: Report = lambda done, words: None,
) -> Transformer:
    """Fine-tune a pretrained `model` in place, or continue from the newest checkpoint in `folder`.

    Leaves `model.safetensors`, `config.json` and `metrics.jsonl`, whose step 0 says how many
    dialogs were shortened or dropped and how well the model predicted answers before. Killed at
    any moment and started again, it ends with the same bits.

    Raises:
        ValueError: `seq_len` exceeds the model's context, an example teaches nothing, or there
            are fewer steps than the warm-up takes.
        FloatingPointError: The loss is not finite.
    """
    packed = PackedDialogs(train, seq_len=config.seq_len, seed=config.seed)
    probe = shorten_all(validation, config.seq_len + 1)
    measure = loss_on(validation, config.seq_len)
    counts = packed.counts() | {
        "validation_dialogs": len(probe.examples),
        "validation_shortened": probe.n_shortened,
        "validation_dropped": probe.n_dropped,
    }
    return fit_dialogs(
        config,
        model.to(device),
        packed,
        measure,
        folder,
        report,
        steps=config.epochs * packed.batches_per_epoch(config.batch_size),
        before=lambda model: counts | measure(model),
    )


# --- what later fine-tuning takes from here


def unseen_dialogs(job: Job) -> list[list[Message]]:
    """Return dialogs that fine-tuning never saw, to measure later stages and for people to read."""
    config, world_seed = job.recipe.sft, job.recipe.corpus.world_seed
    return validation_dialogs(config, world_seed, training_dialogs(config, world_seed))


def first_demonstrations(job: Job, n: int) -> list[Example]:
    """Return n of the demonstrations of fine-tuning, encoded."""
    dialogs = job.source.dialogs(job.recipe.corpus.world_seed, n, job.recipe.sft.grade)
    return examples(list(dialogs), job.tokenizer)
