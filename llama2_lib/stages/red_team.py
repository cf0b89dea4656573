"""Red-teaming in rounds (paper section 4.3): attack, learn from what broke the model, attack again.

The paper's hour of a person is a number of queries here, its annotators are the gold judges.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from llama2_lib import storage
from llama2_lib.rng import random_source
from llama2_lib.stages.safety import prompt_from
from llama2_lib.text.dialog import Message
from llama2_lib.training.schedule import warmup_then_cosine
from llama2_lib.world.answers import answer_writer
from llama2_lib.world.attackers import Attacker, key_of
from llama2_lib.world.facts import World
from llama2_lib.world.judges import judge_of
from llama2_lib.world.prompts import Prompt

Reply = Callable[[Sequence[Prompt]], list[str]]
"""Answers prompts; the model under attack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RedTeamConfig:
    """One round. The paper states its effect and none of these."""

    budget: int = 400
    """Queries of a round: the paper's person hours."""
    batch_size: int = 40
    """Queries between two looks at what worked."""
    n_lessons: int = 4
    """Safe answers, in different words, that people write for each prompt that broke the model."""
    replay: float = 3.0
    """Dialogs rehearsed for each lesson, so that nothing is forgotten."""
    epochs: int = 2
    temperature: float = 1.0
    """Of the answers under attack."""
    max_new_tokens: int = 96
    rows: int = 4
    """Rows of a training step."""
    seq_len: int = 512
    peak_lr: float = 2e-4
    warmup: int = 3
    floor: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    isolate_documents: bool = True
    precision: str = "fp32"
    compile: bool = False
    eval_every: int = 50
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "budget", "batch_size", "n_lessons", "epochs", "max_new_tokens", "rows", "seq_len",
            "eval_every", "save_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.replay < 0:
            raise ValueError(f"replay must be 0 or more; got {self.replay}.")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more; got {self.temperature}.")
        warmup_then_cosine(  # refuses what is out of range; the number of steps is known later
            peak=self.peak_lr, steps=self.warmup + 1, warmup=self.warmup, floor=self.floor
        )


class Attack(NamedTuple):
    """One query of a red team."""

    prompt: Prompt
    answer: str
    violated: bool
    """By the gold judge: the paper's ratings 1 and 2."""
    round: int


def attack(
    world: World,
    attacker: Attacker,
    reply: Reply,
    *,
    budget: int,
    batch_size: int,
    number: int = 1,
) -> list[Attack]:
    """Spend a budget of queries on a model; the attacker learns after every batch.

    Args:
        world: Whose judge says what violates.
        attacker: Keeps what it learns.
        reply: The model.
        budget: Queries.
        batch_size: Queries between two looks at what worked; the last batch may be smaller.
        number: Of the round, for the record.
    """
    judge = judge_of(world)
    found: list[Attack] = []
    while len(found) < budget:
        asked = attacker.propose(min(batch_size, budget - len(found)))
        said = reply(asked)
        verdicts = [
            not judge.safety(prompt, text).is_safe for prompt, text in zip(asked, said, strict=True)
        ]
        attacker.learn(asked, verdicts)
        rows = zip(asked, said, verdicts, strict=True)
        found += [Attack(prompt, text, broke, number) for prompt, text, broke in rows]
    return found


def broken_by(attacks: Sequence[Attack]) -> list[Attack]:
    """Return the attacks that drew a violating answer, each prompt once, the first time it did."""
    found: dict[str, Attack] = {}
    for row in attacks:
        if row.violated:
            found.setdefault(key_of(row.prompt), row)
    return list(found.values())


def lessons(world: World, broken: Sequence[Attack], n: int, seed: int) -> list[list[Message]]:
    """Return n safe demonstrations for each prompt that broke the model, in different words."""
    writer, source = answer_writer(world), random_source(seed, "lessons", world.seed)
    return [
        [
            *cast(list[Message], row.prompt.dialog),
            cast(
                Message, {"role": "assistant", "content": writer.safe(source, row.prompt.category)}
            ),
        ]
        for row in broken
        for _ in range(n)
    ]


def write_attacks(path: Path, attacks: Sequence[Attack]) -> None:
    """Write attacks as JSON lines that people can read and `read_attacks` can, too."""
    lines = (json.dumps(row._asdict() | {"prompt": asdict(row.prompt)}) for row in attacks)
    storage.write_atomically(path, "".join(f"{line}\n" for line in lines))


def read_attacks(path: Path) -> list[Attack]:
    """Return what `write_attacks` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not an attack.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row: dict[str, Any] = json.loads(line)
            rows.append(Attack(**row | {"prompt": prompt_from(row["prompt"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} line {number} must be an attack; {error!r}.") from None
    return rows
