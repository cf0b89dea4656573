"""Rejection-sampling fine-tuning, rounds V1 to V4 (paper section 3.2.3).

For every prompt K answers are drawn from the newest policy, the reward models score them, and
the best one becomes a new gold answer. The pool keeps the best answers of all rounds, scored
again by the newest reward models, and each round fine-tunes the base model on it, from the start.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float

from llama2_lib import rng, storage
from llama2_lib.evaluation.best_of_n import best_of_n
from llama2_lib.evaluation.chat import Answer, answer
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import Encoder, Message, encode_example
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.dialog_batches import Example
from llama2_lib.training.schedule import warmup_then_cosine

SELECTIONS = ("best", "random")
KEPT = ("all rounds", "last round")
Rewards = Callable[[Sequence["Entry"]], Float[np.ndarray, " answers"]]
"""Scores answers with the newest reward models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectionConfig:
    """One round of rejection sampling. The paper states none of these but the method."""

    n_prompts: int
    """New prompts a round."""
    n_samples: int = 8
    """Answers drawn for each [the paper plots 1 to 100]."""
    temperatures: tuple[float, ...] = (0.6, 0.8, 1.0)
    """Tried every round; the one with the best max-of-K is used [best for its RLHF models: 1.2 to
    1.3; ours picks out what its reward model overrates among such hot samples, see the log]."""
    n_probe: int = 40
    """Prompts on which temperatures are tried."""
    select: str = "best"
    """best by reward, or random: the control that shows what the selection is worth."""
    keep: str = "all rounds"
    """Whether the pool keeps all rounds or the last one only, as the paper did up to V3."""
    n_demonstrations: int = 0
    """Demonstrations of fine-tuning mixed in, so that skills no prompt asks for stay."""
    max_new_tokens: int = 96
    steps: int = 150
    """Optimiser steps of every round alike, from the base model."""
    batch_size: int = 4
    seq_len: int = 512
    peak_lr: float = 2e-3
    warmup: int = 10
    floor: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    isolate_documents: bool = True
    precision: str = "fp32"
    compile: bool = False
    eval_every: int = 75
    save_every: int = 75
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "n_prompts", "n_samples", "n_probe", "max_new_tokens", "steps", "batch_size",
            "seq_len", "eval_every", "save_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.n_demonstrations < 0:
            raise ValueError(f"n_demonstrations must be 0 or more; got {self.n_demonstrations}.")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(
                f"temperatures must be one or more numbers above 0; got {self.temperatures}. At 0 "
                "all samples of a prompt are the same."
            )
        for name, known in (("select", SELECTIONS), ("keep", KEPT)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}.")
        warmup_then_cosine(  # refuses what is out of range
            peak=self.peak_lr, steps=self.steps, warmup=self.warmup, floor=self.floor
        )


class Entry(NamedTuple):
    """One answer to a prompt; a pool is a list of these."""

    dialog: list[Message]
    """The prompt, ending with the user."""
    is_safety: bool
    answer: str
    round: int
    """In which it was drawn."""
    score: float
    """By the reward models of the round that scored it last."""

    @property
    def key(self) -> str:
        """Names the prompt."""
        return json.dumps(self.dialog, sort_keys=True)


def draw(
    policy: Transformer,
    tokenizer: Tokenizer,
    dialogs: Sequence[Sequence[Message]],
    k: int,
    temperature: float,
    *,
    seed: int,
    max_new_tokens: int,
) -> list[list[Answer]]:
    """Return K answers to each dialog, each from a seed of its own."""
    repeated = [dialog for dialog in dialogs for _ in range(k)]
    said = answer(
        policy, tokenizer, repeated, max_new_tokens=max_new_tokens, temperature=temperature,
        seed=seed,
    )  # fmt: skip
    return [said[begin : begin + k] for begin in range(0, len(said), k)]


def distinct(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers that ended, each text once, in the order they were drawn.

    One that was cut at the limit would teach never to stop.
    """
    kept: dict[str, Answer] = {}
    for said in answers:
        if said.ended and said.text:
            kept.setdefault(said.text, said)
    return list(kept.values())


def best(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entry with the highest score of every prompt; of equal ones the first.

    Prompts stand in the order in which they first occur.
    """
    tops: dict[str, Entry] = {}
    for entry in entries:
        top = tops.get(entry.key)
        if top is None or entry.score > top.score:
            tops[entry.key] = entry
    return list(tops.values())


def chosen(entries: Sequence[Entry], select: str, seed: int) -> list[Entry]:
    """Return one entry a prompt: the best, or one at random.

    Raises:
        ValueError: `select` is neither.
    """
    if select == "best":
        return best(entries)
    if select != "random":
        raise ValueError(f"select must be one of {SELECTIONS}; got {select!r}.")
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.key, []).append(entry)
    source = rng.random_source(seed, "random selection")
    return [group[source.randrange(len(group))] for group in grouped.values()]


def rescored(entries: Sequence[Entry], rewards: Rewards) -> list[Entry]:
    """Return the entries with scores of the newest reward models.

    Scores of different models have different zeros and must never be ranked together.
    """
    if not entries:
        return []
    values = rewards(entries)
    return [entry._replace(score=float(v)) for entry, v in zip(entries, values, strict=True)]


def temperature_curve(
    policy: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Entry],
    config: RejectionConfig,
    rewards: Rewards,
    *,
    seed: int,
) -> dict[float, list[float]]:
    """Return for each temperature the expected maximum of N = 1 ... K rewards (figure 8).

    All samples count here, those that did not end included: they are what a temperature costs.
    """
    curves = {}
    for temperature in config.temperatures:
        said = draw(
            policy, tokenizer, [p.dialog for p in prompts], config.n_samples, temperature,
            seed=seed, max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
        rows = [
            prompt._replace(answer=reply.text)
            for prompt, replies in zip(prompts, said, strict=True)
            for reply in replies
        ]
        scores = rewards(rows).reshape(len(prompts), config.n_samples)
        curves[temperature] = best_of_n(scores).mean(axis=0).tolist()
    return curves


def hottest_peak(curves: dict[float, list[float]]) -> float:
    """Return the temperature whose best-of-K is highest; of equal ones the lowest."""
    return max(sorted(curves), key=lambda temperature: curves[temperature][-1])


def examples(
    entries: Sequence[Entry], demonstrations: Sequence[Example], tok: Encoder
) -> list[Example]:
    """Return what a round trains on: the chosen answers, and demonstrations as they are."""
    answered = [
        [*entry.dialog, cast(Message, {"role": "assistant", "content": entry.answer})]
        for entry in entries
    ]
    return [encode_example(dialog, tok, loss_on="last") for dialog in answered] + [*demonstrations]


def write_pool(path: Path, entries: Sequence[Entry]) -> None:
    """Write a pool as JSON lines."""
    storage.write_atomically(path, "".join(json.dumps(e._asdict()) + "\n" for e in entries))


def read_pool(path: Path) -> list[Entry]:
    """Return what `write_pool` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not an entry.
    """
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} line {number} must be an entry of a pool; {error!r}."
            ) from None
    return entries
