"""The stages as a graph: what each depends on, and how it is run."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from llama2_lib import storage
from llama2_lib.model.weights import load_model
from llama2_lib.pipeline.samples import write_answers, write_samples
from llama2_lib.recipes import Recipe
from llama2_lib.stages import corpus as corpus_stage
from llama2_lib.stages import tokenizer as tokenizer_stage
from llama2_lib.stages.fit import Report
from llama2_lib.stages.pretrain import pretrain
from llama2_lib.stages.sft import (
    SftConfig,
    estimated_steps,
    examples,
    sft,
    training_dialogs,
    validation_dialogs,
)
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.lexicon import lexicon_folder

N_FINGERPRINTED = 512
StageName = Literal["tokenizer", "corpus", "pretrain", "sft"]


@dataclass(frozen=True, slots=True)
class Job:
    """What a stage gets to do its work."""

    recipe: Recipe
    folder: Path
    inputs: dict[str, Path]
    device: torch.device
    report: Report


@dataclass(frozen=True, slots=True)
class Stage:
    """One node of the graph."""

    version: int
    """Raised by hand, with a line in CHANGELOG, when the same settings give another result."""
    inputs: tuple[str, ...]
    settings: Callable[[Recipe], dict[str, Any]]
    """The part of a recipe that this stage depends on."""
    work: Callable[[Recipe], int]
    """Steps for the progress bar, each about as long as a pretraining step of that recipe."""
    run: Callable[[Job], None]


def _run_tokenizer(job: Job) -> None:
    tokenizer_stage.run(job.recipe.tokenizer, job.recipe.corpus, job.folder)


def _run_corpus(job: Job) -> None:
    tokenizer = load_tokenizer(job.inputs["tokenizer"])
    corpus_stage.build_corpus(job.recipe.corpus, tokenizer, job.folder)


def _run_pretrain(job: Job) -> None:
    tokenizer = load_tokenizer(job.inputs["tokenizer"])
    model = pretrain(
        job.recipe.pretrain,
        job.recipe.model,
        corpus_stage.load_corpus(job.inputs["corpus"], "train"),
        corpus_stage.load_corpus(job.inputs["corpus"], "validation"),
        job.folder,
        job.device,
        job.report,
    )
    _write_beside(job, write_samples(model, tokenizer, job.recipe))


def _run_sft(job: Job) -> None:
    tokenizer = load_tokenizer(job.inputs["tokenizer"])
    config, world_seed = job.recipe.sft, job.recipe.corpus.world_seed
    train = training_dialogs(config, world_seed)
    validation = validation_dialogs(config, world_seed, train)
    model = sft(
        config,
        load_model(job.inputs["pretrain"], job.device)[0],
        examples(train, tokenizer),
        examples(validation, tokenizer),
        job.folder,
        job.device,
        job.report,
    )
    _write_beside(job, write_answers(model, tokenizer, validation, job.recipe))


def _write_beside(job: Job, samples: str) -> None:
    """Put the tokenizer and the samples beside a trained model."""
    storage.write_atomically(
        job.folder / "tokenizer.model", (job.inputs["tokenizer"] / "tokenizer.model").read_bytes()
    )
    storage.write_atomically(job.folder / "samples.txt", samples)


STAGES: dict[str, Stage] = {
    "tokenizer": Stage(
        version=1,
        inputs=(),
        settings=lambda r: {
            "tokenizer": dataclasses.asdict(r.tokenizer),
            "corpus": _corpus_settings(r),
            "n_documents": min(tokenizer_stage.N_DOCUMENTS, r.corpus.n_documents),
        },
        work=lambda r: 10,
        run=_run_tokenizer,
    ),
    "corpus": Stage(
        version=1,
        inputs=("tokenizer",),
        settings=lambda r: {
            "corpus": _corpus_settings(r),
            "n_documents": r.corpus.n_documents,
            "n_validation": r.corpus.n_validation,
        },
        work=lambda r: 20,
        run=_run_corpus,
    ),
    "pretrain": Stage(
        version=1,
        inputs=("tokenizer", "corpus"),
        settings=lambda r: {
            "model": r.model.to_json(),
            "pretrain": dataclasses.asdict(r.pretrain),
        },
        work=lambda r: r.pretrain.steps,
        run=_run_pretrain,
    ),
    "sft": Stage(
        version=1,
        inputs=("tokenizer", "pretrain"),
        settings=lambda r: {
            "sft": dataclasses.asdict(r.sft),
            "world_seed": r.corpus.world_seed,
            "lexicon": _lexicon_fingerprint("**/*.txt"),
            "dialogs": _dialogs_fingerprint(r.sft, r.corpus.world_seed),
        },
        work=lambda r: estimated_steps(r.sft),
        run=_run_sft,
    ),
}


def _corpus_settings(recipe: Recipe) -> dict[str, Any]:
    """What the texts depend on: the settings of the world, or the bytes of a folder."""
    config = recipe.corpus
    document: dict[str, Any] = {"world_seed": config.world_seed, "shares": config.shares}
    if config.data is not None:
        paths = sorted(p for p in Path(config.data).rglob("*") if p.suffix in (".txt", ".jsonl"))
        document["data"] = [storage.file_sha256(path) for path in paths]
        document["n_validation"] = config.n_validation  # the first documents are kept out
    else:
        document["lexicon"] = _lexicon_fingerprint()
        document["text"] = _text_fingerprint(config)
    return document


@cache
def _text_fingerprint(config: corpus_stage.CorpusConfig) -> str:
    """What the world's code writes: a changed template or writer makes another corpus."""
    first = corpus_stage.training_documents(
        dataclasses.replace(config, n_documents=N_FINGERPRINTED)
    )
    return storage.fingerprint([document.text for document in first])


@cache
def _dialogs_fingerprint(config: SftConfig, world_seed: int) -> str:
    """What the world's code says in dialogs."""
    few = dataclasses.replace(config, n_dialogs=N_FINGERPRINTED)
    return storage.fingerprint(training_dialogs(few, world_seed))


def _lexicon_fingerprint(pattern: str = "*.txt") -> str:
    """What the word lists hold; those of the chat lie in a folder of their own."""
    paths = sorted(lexicon_folder().glob(pattern))
    return storage.fingerprint({path.name: storage.file_sha256(path) for path in paths})


def fingerprint(stage: str, recipe: Recipe) -> str:
    """Return the 12 hex digits that name `stage` of `recipe`.

    Raises:
        ValueError: There is no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    node = STAGES[stage]
    inputs = {name: fingerprint(name, recipe) for name in node.inputs}
    return storage.fingerprint(
        {"stage": stage, "version": node.version, "config": node.settings(recipe), "inputs": inputs}
    )
