"""Pretraining from scratch (paper section 2.2)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama2_lib.evaluation.language import document_nats
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.objectives.language import masked_loss, next_token_loss
from llama2_lib.objectives.terms import LossTerm
from llama2_lib.stages.corpus import CorpusSplit
from llama2_lib.stages.fit import Report, fit
from llama2_lib.training.batches import PackedBatch, apart
from llama2_lib.training.schedule import warmup_then_cosine


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """One pretraining run. The paper's numbers are in brackets where they transfer."""

    steps: int
    batch_size: int
    """Rows per micro-batch."""
    seq_len: int
    """Tokens per row [4096]."""
    accumulate: int = 1
    """Micro-batches per step."""
    peak_lr: float = 3e-3
    """[3e-4 for 7B]; small models stand, and need, more."""
    warmup: int = 20
    """Steps [2,000, which is 0.4 % of the run]."""
    floor: float = 0.1
    """Final rate as a fraction of the peak [0.1]."""
    weight_decay: float = 0.1
    """[0.1]"""
    clip_norm: float = 1.0
    """[1.0]"""
    isolate_documents: bool = False
    """Whether documents in a pack are hidden from each other; the paper does not say."""
    precision: str = "fp32"
    """fp32 or bf16; of matrix products only."""
    compile: bool = False
    """Whether to compile the model; pays on a GPU."""
    eval_every: int = 100
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seq_len", "accumulate", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16; got {self.precision!r}.")
        warmup_then_cosine(
            peak=self.peak_lr, steps=self.steps, warmup=self.warmup, floor=self.floor
        )

    @property
    def n_tokens(self) -> int:
        """Tokens trained on."""
        return self.steps * self.accumulate * self.batch_size * self.seq_len


def packed_loss(isolate_documents: bool) -> Callable[[Callable[..., Any], PackedBatch], LossTerm]:
    """Return the loss of a packed batch, with documents that see each other or do not."""

    def plain(model: Callable[..., Any], batch: PackedBatch) -> LossTerm:
        return next_token_loss(model(batch.ids[:, :-1]), batch.ids)

    def isolated(model: Callable[..., Any], batch: PackedBatch) -> LossTerm:
        logits = model(batch.ids[:, :-1], **apart(batch.document[:, :-1]))
        targets = torch.zeros_like(batch.ids, dtype=torch.bool)
        targets[:, 1:] = batch.document[:, 1:] == batch.document[:, :-1]
        return masked_loss(logits, batch.ids, targets)

    return isolated if isolate_documents else plain


def pretrain(
    config: PretrainConfig,
    model_config: ModelConfig,
    train: CorpusSplit,
    validation: CorpusSplit,
    folder: Path,
    device: torch.device,
    report: Report = lambda done, words: None,
) -> Transformer:
    """Train a model from scratch, or go on from the newest checkpoint in `folder`.

    Leaves `model.safetensors`, `config.json` and `metrics.jsonl`. Killed at any moment and
    started again, it ends with the same bits.

    Raises:
        ValueError: `seq_len` exceeds the model's context.
        FloatingPointError: The loss is not finite.
    """
    if config.seq_len > model_config.max_seq_len:
        raise ValueError(
            f"seq_len must fit the model's max_seq_len; got {config.seq_len} and "
            f"{model_config.max_seq_len}."
        )
    model = initialise(Transformer(model_config), config.seed).to(device)
    probe = [validation.document(i) for i in range(min(200, validation.packed.n_documents))]

    def batches(start: int) -> Iterator[PackedBatch]:
        return train.packed.batches(
            seed=config.seed, batch_size=config.batch_size, seq_len=config.seq_len, start=start
        )

    def measure(model: Transformer) -> dict[str, float]:
        nats = document_nats(model, probe, max_len=config.seq_len)
        return {"validation_loss": nats.nats.sum() / nats.tokens.sum()}

    return fit(
        config,
        model,
        batches,
        packed_loss(config.isolate_documents),
        measure,
        folder,
        report,
        steps=config.steps,
        accumulate=config.accumulate,
    )
