"""What a stage is: a node of the graph, and what it gets to do its work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama2_lib import storage
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import load_model
from llama2_lib.recipes import Recipe
from llama2_lib.stages.fit import Report
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class Job:
    """What a stage gets to do its work."""

    recipe: Recipe
    folder: Path
    inputs: dict[str, Path]
    device: torch.device
    report: Report

    @property
    def tokenizer(self) -> Tokenizer:
        """The chain's tokenizer."""
        return load_tokenizer(self.inputs["tokenizer"])

    def model(self, stage: str) -> Transformer:
        """Return the language model of an input, on the job's device."""
        return load_model(self.inputs[stage], self.device)[0]

    def write_beside(self, samples: str) -> None:
        """Put the tokenizer and samples for people to read beside a trained model."""
        tokenizer = (self.inputs["tokenizer"] / "tokenizer.model").read_bytes()
        storage.write_atomically(self.folder / "tokenizer.model", tokenizer)
        storage.write_atomically(self.folder / "samples.txt", samples)


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
