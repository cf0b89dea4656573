"""Pretraining from scratch (paper section 2.2).

1. Initialise a model from the seed.
2. Cut the stream of documents into rows of equal length; every token is a target.
3. Train with AdamW, warm-up and cosine; measure nats per token of unseen documents meanwhile.
4. Write a few generations for people to read.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from llama2_lib.config import PretrainConfig
from llama2_lib.evaluation.language import document_nats
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.objectives.language import LossTerm, next_token_loss, target_loss, targets_of
from llama2_lib.stages.corpus import CorpusSplit, load_corpus
from llama2_lib.stages.fit import Forward, Report, check_rows, fit
from llama2_lib.stages.job import Job
from llama2_lib.training.batches import PackedBatch, apart

N_MEASURED = 200
"""Validation documents whose loss is measured during training."""


def run(job: Job) -> None:
    """Pretrain the base model."""
    recipe = job.recipe
    train, validation = (load_corpus(job.inputs["corpus"], n) for n in ("train", "validation"))
    model = pretrain(
        recipe.pretrain, recipe.model, train, validation, job.folder, job.device, job.report
    )
    job.write_samples(model)


def pretrain(
    config: PretrainConfig, model_config: ModelConfig, train: CorpusSplit, validation: CorpusSplit,
    folder: Path, device: torch.device, report: Report = lambda done, words: None,
) -> Transformer:  # fmt: skip
    """Train a model from scratch, or continue from the newest checkpoint in `folder`; see `fit`."""
    check_rows(config.seq_len, model_config)
    n_measured = min(N_MEASURED, validation.packed.n_documents)
    probe = [validation.document(number) for number in range(n_measured)]
    names = ("seed", "batch_size", "seq_len", "whole_every")
    rows = {name: getattr(config, name) for name in names}

    def measure(model: Transformer) -> dict[str, float]:
        nats = document_nats(model, probe, max_len=config.seq_len)
        return {"validation_loss": nats.nats.sum() / nats.tokens.sum()}

    return fit(
        config, initialise(Transformer(model_config), config.seed).to(device),
        lambda start: train.packed.batches(start=start, **rows),
        packed_loss(config.isolate_documents), measure, folder, report, steps=config.steps,
        accumulate=config.accumulate,
    )  # fmt: skip


def packed_loss(isolate_documents: bool) -> Callable[[Forward, PackedBatch], LossTerm]:
    """Return the loss of a packed batch, with documents that see each other or do not."""

    def plain(model: Forward, batch: PackedBatch) -> LossTerm:
        return next_token_loss(model(batch.ids[:, :-1]), batch.ids)

    def isolated(model: Forward, batch: PackedBatch) -> LossTerm:
        # The first token of a document would have to be guessed from the document before.
        follows = torch.zeros_like(batch.ids, dtype=torch.bool)
        follows[:, 1:] = batch.document[:, 1:] == batch.document[:, :-1]
        at, targets = targets_of(batch.ids, follows)
        logits = model(batch.ids[:, :-1], at=at, **apart(batch.document[:, :-1]))
        return target_loss(logits, targets)

    return isolated if isolate_documents else plain
