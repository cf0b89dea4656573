"""Prompts: helpful, adversarial and borderline ones, for training and for testing.

Each generator yields an endless stream that depends on the world, the seed and its arguments;
the first prompts do not depend on how many are asked for. No held-out prompt can occur among
the training prompts, whatever the seeds, because its last request uses a wording, a question or
a sum that no training prompt uses.
"""

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from random import Random
from typing import cast

from llama2_lib.rng import random_source
from llama2_lib.world.answers import answer_writer
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.risks import (
    ATTACKS,
    BORDERLINE_SHARES,
    CATEGORY_SHARES,
    borderline_maker,
    risk_maker,
)
from llama2_lib.world.tasks import HELPFUL_SHARES, Split, Task, check_split, task_maker
from llama2_lib.world.wording import pick

KINDS = (*HELPFUL_SHARES, "adversarial", "borderline")
PROMPT_SHARES = {"helpful": 0.7, "adversarial": 0.2, "borderline": 0.1}

MULTI_TURN_FRACTION = 0.3
"""Prompts with earlier turns; the paper's safety evaluation has 623 of 1,974."""
MOST_EARLIER_TURNS = 3

_EARLIER_KINDS = ("question", "question", "sum", "talk", "list")  # short ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A dialog that ends with the user, and what a judge must know to mark the next answer.

    `kind` is what is asked for, or "adversarial" or "borderline". `is_safety` is the tag that
    a prompt may elicit unsafe answers, given in advance (paper section 3.2.3): adversarial
    prompts have it, borderline ones do not. `category`, `attack` and `hazard` are those of an
    adversarial prompt and empty otherwise.
    """

    dialog: list[Message]
    kind: str
    task: Task
    is_safety: bool = False
    category: str = ""
    attack: str = ""
    hazard: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {list(KINDS)}; got {self.kind!r}")
        roles = [message["role"] for message in self.dialog]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        n_answers = len(turns) // 2
        if turns != ["user", "assistant"] * n_answers + ["user"]:
            raise ValueError(
                "a prompt's roles must be system (or none), then user and assistant in turn, "
                f"and end with user; got {roles}; mend the dialog"
            )

    @property
    def request(self) -> str:
        """What the user said last."""
        return self.dialog[-1]["content"]


def chooser(shares: Mapping[str, float], known: Sequence[str]) -> Callable[[Random], str]:
    """Return a function that draws a key by its share; shares need not sum to 1.

    Raises:
        ValueError: If a key is not known, a share is negative, or all are 0.
    """
    unknown = sorted(set(shares) - set(known))
    if unknown or min(shares.values(), default=-1) < 0 or sum(shares.values()) <= 0:
        raise ValueError(
            f"shares must be 0 or more, not all 0, for some of {list(known)}; got {dict(shares)}"
        )
    keys = [key for key in shares if shares[key] > 0]
    if len(keys) == 1:
        return lambda rng: keys[0]
    bounds = list(accumulate(shares[key] for key in keys))
    return lambda rng: keys[min(bisect(bounds, rng.random() * bounds[-1]), len(keys) - 1)]


def helpful_prompts(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    shares: Mapping[str, float] = HELPFUL_SHARES,
    multi_turn: float = MULTI_TURN_FRACTION,
) -> Iterator[Prompt]:
    """Yield n requests for help; `shares` are by kind, `n=None` never ends.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """
    draw_kind = chooser(shares, tuple(HELPFUL_SHARES))
    part = _checked(split, n, multi_turn)
    maker = task_maker(world, part)
    rng = random_source(seed, "prompts", "helpful", split, world.seed)

    def draw() -> Prompt:
        kind = draw_kind(rng)
        earlier = harmless_turns(world, rng) if rng.random() < multi_turn else []
        request, task = maker.draw(rng, kind)
        return Prompt(dialog=[*earlier, _user(request)], kind=kind, task=task)

    return (draw() for _ in _numbers(n))


def adversarial_prompts(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    attacks: Sequence[str] = ATTACKS,
    categories: Mapping[str, float] = CATEGORY_SHARES,
    multi_turn: float = MULTI_TURN_FRACTION,
) -> Iterator[Prompt]:
    """Yield n requests that no assistant should fulfil (paper section 4.2.1).

    Attack vectors are drawn evenly, categories by their shares. Over several turns the user
    first gains trust, or talks of something harmless.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """
    draw_category = chooser(categories, tuple(CATEGORY_SHARES))
    draw_attack = chooser(dict.fromkeys(attacks, 1.0), ATTACKS)
    part = _checked(split, n, multi_turn)
    maker = risk_maker(world, part)
    rng = random_source(seed, "prompts", "adversarial", split, world.seed)

    def draw() -> Prompt:
        category, attack = draw_category(rng), draw_attack(rng)
        earlier = []
        if rng.random() < multi_turn:
            earlier = (
                harmless_turns(world, rng) if rng.random() < 0.5 else _exchange(*maker.lead_in(rng))
            )
        request, task, hazard = maker.draw(rng, attack, category)
        return Prompt(
            dialog=[*earlier, _user(request)],
            kind="adversarial",
            task=task,
            is_safety=True,
            category=category,
            attack=attack,
            hazard=hazard,
        )

    return (draw() for _ in _numbers(n))


def borderline_prompts(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    shares: Mapping[str, float] = BORDERLINE_SHARES,
    multi_turn: float = MULTI_TURN_FRACTION,
) -> Iterator[Prompt]:
    """Yield n harmless requests that look unsafe (paper section 4.2.3, false refusal).

    Raises:
        ValueError: If an argument is unknown or out of range.
    """
    draw_kind = chooser(shares, tuple(BORDERLINE_SHARES))
    part = _checked(split, n, multi_turn)
    maker = borderline_maker(world, part)
    rng = random_source(seed, "prompts", "borderline", split, world.seed)

    def draw() -> Prompt:
        earlier = harmless_turns(world, rng) if rng.random() < multi_turn else []
        request, task = maker.draw(rng, draw_kind(rng))
        return Prompt(dialog=[*earlier, _user(request)], kind="borderline", task=task)

    return (draw() for _ in _numbers(n))


def prompts(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    shares: Mapping[str, float] = PROMPT_SHARES,
) -> Iterator[Prompt]:
    """Yield n prompts of all three families, mixed by `shares`.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """
    draw_family = chooser(shares, tuple(PROMPT_SHARES))
    check_split(split)
    streams = {
        "helpful": helpful_prompts(world, seed, split=split),
        "adversarial": adversarial_prompts(world, seed, split=split),
        "borderline": borderline_prompts(world, seed, split=split),
    }
    rng = random_source(seed, "prompts", "family", split, world.seed)
    return (next(streams[draw_family(rng)]) for _ in _numbers(n))


def _checked(split: str, n: int | None, multi_turn: float) -> Split:
    check_split(split)
    if not 0 <= multi_turn <= 1:
        raise ValueError(f"multi_turn must be a fraction from 0 to 1; got {multi_turn}")
    _numbers(n)
    return cast(Split, split)


def _numbers(n: int | None) -> Iterator[int] | range:
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more prompts")
    return count() if n is None else range(n)


def _user(request: str) -> Message:
    return {"role": "user", "content": request}


def _exchange(request: str, answer: str) -> list[Message]:
    return [_user(request), {"role": "assistant", "content": answer}]


def harmless_turns(world: World, rng: Random) -> list[Message]:
    """Return one to three harmless turns with good answers; all of them from the training side."""
    maker, writer = task_maker(world, "train"), answer_writer(world)
    turns: dict[str, str] = {}
    for _ in range(1 + int(MOST_EARLIER_TURNS * rng.random())):
        request, task = maker.draw(rng, pick(rng, _EARLIER_KINDS))
        turns[request] = writer.good(rng, task)
    return [message for turn in turns.items() for message in _exchange(*turn)]
