"""Safety context distillation and its data (paper section 4.2.2 to 4.2.4).

A preprompt such as "You are a safe and responsible assistant." makes answers safer. The model is
fine-tuned on (prompt WITHOUT the preprompt, answer given behind it), so that it answers as if the
preprompt were there. An answer is kept only if the safety reward model prefers it to what the
model says without a preprompt: the gate.

No code of the paper's method is public. This module holds every step of it as a pure function.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float

from llama2_lib import storage
from llama2_lib.rng import random_source
from llama2_lib.stages.instructed import check_mixed_in
from llama2_lib.text.dialog import Message
from llama2_lib.training.schedule import warmup_then_cosine
from llama2_lib.world.answers import CATEGORIES, answer_writer
from llama2_lib.world.facts import World
from llama2_lib.world.prompts import Prompt, prompts
from llama2_lib.world.tasks import Task

PREPROMPTS = ("none", "generic", "template")
APPLIED = ("adversarial", "all", "all as risky")

ADJECTIVES = ("safe", "responsible", "respectful", "wise", "careful", "kind")
GENERIC = (
    "You are a {first} and {second} assistant.",
    "You are a {first} assistant and never hurt anyone.",
    "Answer as a {first} and {second} helper would.",
)
"""Templates of generic preprompts, filled with two adjectives, as the paper made its own."""

DECLINE = "Say that you cannot help."
EXPLAIN = {
    "illicit": "Say that it is dangerous.",
    "hateful": "Say that it would be unkind.",
    "advice": "Say that it could make you ill.",
}
OFFER = {
    "illicit": "Tell something else instead.",
    "hateful": "Tell a story instead.",
    "advice": "Name a doctor instead.",
}
MOST_PARTS = 3
"""Parts of a full answer template: decline, explain, offer (paper section 4.2.1)."""
HEED_SHARES = {"adversarial": 0.7, "helpful": 0.3}
"""Prompts in the dialogs that teach what preprompts mean: help stays help behind one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """Safety context distillation. The paper states none of these but the method."""

    n_prompts: int
    """Adversarial prompts that are answered with and without the preprompt."""
    preprompt: str = "template"
    """template by risk category, generic, or none: the control that trains on its own answers."""
    gate: bool = True
    """Whether an answer must score higher than the original one to be kept."""
    apply_to: str = "adversarial"
    """adversarial, or all: as many helpful prompts, too, behind generic preprompts. The paper warns
    of that. In "all as risky" helpful prompts get answer templates as if they were risky."""
    n_heed: int = 400
    """Dialogs that teach a copy of the model what preprompts mean. A large model has read what a
    responsible assistant says; ours never has, and left alone its answers behind a preprompt are
    no better than without (see the log). The copy is thrown away once it has answered."""
    heed_steps: int = 80
    """Optimiser steps of that copy."""
    heed_lr: float = 1e-3
    temperature: float = 0.7
    """Of all answers: cooler than the model is used, as slips pass the gate too easily."""
    n_replay: int = 350
    """Other prompts mixed in, with the policy's own answers, so that nothing is forgotten."""
    n_demonstrations: int = 350
    """Demonstrations mixed in, most of them of prompts that only sound dangerous."""
    n_ghosts: int = 200
    """Dialogs of Ghost Attention mixed in."""
    max_new_tokens: int = 96
    steps: int = 80
    batch_size: int = 4
    seq_len: int = 512
    peak_lr: float = 3e-4
    """A tenth of fine-tuning's: the model is nearly finished."""
    warmup: int = 5
    floor: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    isolate_documents: bool = True
    precision: str = "fp32"
    compile: bool = False
    eval_every: int = 40
    save_every: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "n_prompts", "n_heed", "heed_steps", "max_new_tokens", "steps", "batch_size",
            "seq_len", "eval_every", "save_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        check_mixed_in(self, "n_replay", "n_demonstrations", "n_ghosts")
        for name, known in (("preprompt", PREPROMPTS), ("apply_to", APPLIED)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}.")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0; got {self.temperature}. Greedy answers would make "
                "the two sides of the gate the same again and again."
            )
        for peak, steps in ((self.peak_lr, self.steps), (self.heed_lr, self.heed_steps)):
            warmup_then_cosine(  # refuses what is out of range
                peak=peak, steps=steps, warmup=self.warmup, floor=self.floor
            )


def generic_preprompt(source: Random) -> str:
    """Return a generic preprompt: a template with two different adjectives (section 4.2.4)."""
    first, second = source.sample(ADJECTIVES, 2)
    return GENERIC[source.randrange(len(GENERIC))].format(first=first, second=second)


def answer_template(category: str, parts: int = MOST_PARTS) -> str:
    """Return the answer template of a risk category: decline, explain, offer, in this order.

    Raises:
        ValueError: The category is unknown, or parts is not 1, 2 or 3.
    """
    if category not in CATEGORIES or not 1 <= parts <= MOST_PARTS:
        raise ValueError(
            f"category must be one of {CATEGORIES} and parts 1 to {MOST_PARTS}; got {category!r} "
            f"and {parts}."
        )
    return " ".join((DECLINE, EXPLAIN[category], OFFER[category])[:parts])


def preprompt_for(prompt: Prompt, kind: str, source: Random, as_risky: bool = False) -> str:
    """Return the preprompt of one prompt; "" for none.

    Prompts without a risk category get a generic one where templates are asked for: only a
    risk-labelled prompt has a template (section 4.2.4). `as_risky` gives them one by mistake.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind not in PREPROMPTS:
        raise ValueError(f"preprompt must be one of {PREPROMPTS}; got {kind!r}.")
    if kind == "none":
        return ""
    if kind == "template" and prompt.category:
        return answer_template(prompt.category)
    if kind == "template" and as_risky:
        return answer_template(source.choice(CATEGORIES))
    return generic_preprompt(source)


def with_preprompt(dialog: Sequence[Message], preprompt: str) -> list[Message]:
    """Return the dialog behind a preprompt, which goes into the system message.

    It stands before what an earlier system message says. "" changes nothing.
    """
    if not preprompt:
        return list(dialog)
    if dialog and dialog[0]["role"] == "system":
        text, rest = f"{preprompt} {dialog[0]['content']}", dialog[1:]
    else:
        text, rest = preprompt, dialog
    return [cast(Message, {"role": "system", "content": text}), *rest]


class Distilled(NamedTuple):
    """Two answers to one prompt, scored by the safety reward model WITHOUT the preprompt."""

    prompt: Prompt
    preprompt: str
    original: str
    """What the model says to the prompt alone."""
    again: str
    """What the model says to the prompt alone when asked once more: what luck alone changes."""
    answer: str
    """What is said behind the preprompt."""
    original_score: float
    again_score: float
    answer_score: float

    @property
    def increase(self) -> float:
        """Score of the distilled answer less that of the original (figure 16b)."""
        return self.answer_score - self.original_score


def gate(
    original: Float[np.ndarray, " answers"], distilled: Float[np.ndarray, " _"]
) -> Bool[np.ndarray, " answers"]:
    """Return which distilled answers are kept: those that score strictly higher (section 4.2.4).

    Args:
        original: Safety scores of the model's own answers.
        distilled: Safety scores of the answers behind a preprompt, read without it.

    Raises:
        ValueError: The lengths differ, or a score is not finite.
    """
    if len(original) != len(distilled):
        raise ValueError(
            f"every prompt needs both scores; got {len(original)} and {len(distilled)}."
        )
    if not (np.isfinite(original).all() and np.isfinite(distilled).all()):
        raise ValueError("scores must be finite; got one that is not. Did the model diverge?")
    return distilled > original


def targets(rows: Sequence[Distilled], gated: bool, anchored: bool = False) -> list[list[Message]]:
    """Return the dialogs to train on: the prompt WITHOUT its preprompt, and the distilled answer.

    Empty answers are never targets.

    Args:
        rows: Prompts with both answers.
        gated: Leave out prompts whose original answer was as good.
        anchored: Or rather keep the original answer there, so that a model that is safe already
            stays as it is.
    """
    scores = [[getattr(row, name) for row in rows] for name in ("original_score", "answer_score")]
    kept = gate(*(np.array(column, dtype=float) for column in scores)) if gated else None
    dialogs = []
    for index, row in enumerate(rows):
        passes = kept is None or kept[index]
        text = row.answer if passes else row.original if anchored else ""
        if text:
            said = cast(Message, {"role": "assistant", "content": text})
            dialogs.append([*cast(list[Message], row.prompt.dialog), said])
    return dialogs


def heeding_dialogs(world: World, seed: int, n: int) -> list[list[Message]]:
    """Return dialogs in which answers heed the preprompt.

    Behind an answer template stand exactly the parts that it asks for. A generic preprompt does
    not say how an answer is to look, so behind it stand as many parts as a writer fancies. What
    is harmless is answered as always.
    """
    source = random_source(seed, "heeding", world.seed)
    writer = answer_writer(world)
    dialogs = []
    for prompt in prompts(world, source.getrandbits(60), n, shares=HEED_SHARES):
        if not prompt.category:
            preprompt = generic_preprompt(source)
            text = writer.demonstration(source, prompt.task)
        else:
            parts = 1 + source.randrange(MOST_PARTS)
            template = source.random() < 0.5
            preprompt = (
                answer_template(prompt.category, parts) if template else generic_preprompt(source)
            )
            text = writer.safe(source, prompt.category, parts)
        asked = with_preprompt(cast(list[Message], prompt.dialog), preprompt)
        dialogs.append([*asked, cast(Message, {"role": "assistant", "content": text})])
    return dialogs


def write_distilled(path: Path, rows: Sequence[Distilled]) -> None:
    """Write rows as JSON lines that people can read and `read_distilled` can, too."""
    lines = (json.dumps(row._asdict() | {"prompt": asdict(row.prompt)}) for row in rows)
    storage.write_atomically(path, "".join(f"{line}\n" for line in lines))


def read_distilled(path: Path) -> list[Distilled]:
    """Return what `write_distilled` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not such a row.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row: dict[str, Any] = json.loads(line)
            rows.append(Distilled(**row | {"prompt": prompt_from(row["prompt"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} line {number} must be a distilled row; {error!r}.") from None
    return rows


def prompt_from(document: dict[str, Any]) -> Prompt:
    """Return the prompt that `dataclasses.asdict` took apart."""
    return Prompt(**document | {"task": Task(**document["task"])})
