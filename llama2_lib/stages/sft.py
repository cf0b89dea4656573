"""Supervised fine-tuning on dialogs (paper section 3.1).

1. Draw demonstrations from the source, and unseen ones for validation.
2. Encode them in the chat format; the loss is on the answers only.
3. Pack whole dialogs into rows, hidden from each other, and train for two epochs.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from llama2_lib.config import DialogTrainConfig, SftConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.fit import Report, fit_dialogs, loss_on
from llama2_lib.stages.folder import at_most, source_of
from llama2_lib.stages.job import Job, unseen
from llama2_lib.text.dialog import Encoder, encode_example, render
from llama2_lib.training.batches import Example, PackedDialogs, shorten_all
from llama2_lib.world.dialogs import Message

VALIDATION_SEED = 1_000_003
"""Added to the seed of the training dialogs: another stream of the same source."""
MOST_TRIES = 20
"""Dialogs looked at for one that is unseen, on average, before it is an error."""
N_MEASURED = 100
"""Validation dialogs whose answer loss is measured during later fine-tuning."""


def run(job: Job) -> None:
    """Fine-tune the pretrained model on demonstrations."""
    corpus = job.recipe.corpus
    sft_on(job, training_dialogs(job.recipe.sft, corpus.world_seed, corpus.data))


def sft_on(job: Job, train: Sequence[Sequence[Message]]) -> None:
    """Fine-tune the pretrained model on these dialogs."""
    config, tokenizer, corpus = job.recipe.sft, job.tokenizer, job.recipe.corpus
    validation = validation_dialogs(config, corpus.world_seed, train, corpus.data)
    model = sft(
        config, job.model("pretrain"), examples(train, tokenizer), examples(validation, tokenizer),
        job.folder, job.device, job.report,
    )  # fmt: skip
    job.write_answers(model, validation)


def training_dialogs(
    config: SftConfig, world_seed: int, data: str | None = None
) -> list[list[Message]]:
    """Return the training dialogs; fewer of them are a beginning of more."""
    source = source_of(world_seed, data)
    n = at_most(source, "dialogs", config.n_dialogs)
    return list(source.dialogs(world_seed, n, config.grade))


def validation_dialogs(
    config: SftConfig, world_seed: int, train: Sequence[Sequence[Message]], data: str | None = None
) -> list[list[Message]]:
    """Return clean dialogs of another stream, none of which is in `train`, and none twice.

    A folder may hold fewer than are asked for; then they are all that it holds out.
    """
    n, tries = config.n_validation, MOST_TRIES * config.n_validation
    source, seed = source_of(world_seed, data, "held out"), world_seed + VALIDATION_SEED
    stream = source.dialogs(seed, at_most(source, "dialogs", tries))
    if data is not None:
        return list({render(dialog): dialog for dialog in stream}.values())[:n]
    return unseen("dialogs", stream, n, tries, {render(dialog) for dialog in train}, render)


def examples(
    dialogs: Iterable[Sequence[Message]], tok: Encoder, loss_on: str = "all"
) -> list[Example]:
    """Return ids and loss masks: every answer of a dialog is a target, or the last one alone."""
    return [encode_example(dialog, tok, loss_on=loss_on) for dialog in dialogs]


def sft(
    config: SftConfig, model: Transformer, train: Sequence[Example], validation: Sequence[Example],
    folder: Path, device: torch.device, report: Report = lambda done, words: None,
) -> Transformer:  # fmt: skip
    """Fine-tune a pretrained `model` in place, or continue from the newest checkpoint in `folder`.

    Leaves what `fit` leaves. Step 0 of the metrics says how many dialogs were shortened or dropped
    and how well the model predicted answers before.
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
        config, model.to(device), packed, measure, folder, report,
        steps=config.epochs * packed.batches_per_epoch(config.batch_size),
        before=lambda model: counts | measure(model),
    )  # fmt: skip


# --- later fine-tuning, of whatever stage


def fine_tune(
    job: Job, config: DialogTrainConfig, model: Transformer, train: Sequence[Example],
    counts: Mapping[str, float], *, steps: int = 0, epochs: int = 0, begin: float = 0.0,
    end: float = 1.0, validation: Sequence[Example] | None = None,
) -> Transformer:  # fmt: skip
    """Fine-tune `model` in place and leave it, its metrics and its answers to unseen dialogs.

    It takes so many steps and epochs at least, from `begin` to `end` of the stage. Step 0 of the
    metrics are the counts. `validation` is measured before, too; left out, the loss on unseen
    demonstrations is measured meanwhile.
    """
    packed = PackedDialogs(train, seq_len=config.seq_len, seed=config.seed)
    dialogs = unseen_dialogs(job)
    probe = examples(dialogs[:N_MEASURED], job.tokenizer) if validation is None else validation
    measure = loss_on(probe, config.seq_len)

    def before(model: Transformer) -> dict[str, float]:
        return {**counts, **packed.counts(), **(measure(model) if validation else {})}

    model = fit_dialogs(
        config, model, packed, measure, job.folder, job.part(begin, end),
        steps=max(steps, epochs * packed.batches_per_epoch(config.batch_size)), before=before,
    )  # fmt: skip
    job.write_answers(model, dialogs)
    return model


def unseen_dialogs(job: Job) -> list[list[Message]]:
    """Return dialogs that fine-tuning never saw, to measure later stages and for people to read."""
    config, seed, data = job.recipe.sft, job.recipe.corpus.world_seed, job.recipe.corpus.data
    return validation_dialogs(config, seed, training_dialogs(config, seed, data), data)
