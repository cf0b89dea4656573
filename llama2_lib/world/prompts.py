"""Prompts: helpful, adversarial and borderline ones, for training and for testing.

Each generator yields an endless stream that depends on the world, the seed and its arguments;
the first prompts do not depend on how many are asked for. No held-out prompt can occur among
the training prompts, whatever the seeds, because its last request uses a wording, a question or
a sum that no training prompt uses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

from llama2_lib.rng import random_source
from llama2_lib.world.dialogs import Message, asks, exchange
from llama2_lib.world.facts import World
from llama2_lib.world.lexicon import between, check_known, chooser, pick, stream
from llama2_lib.world.risks import (
    ATTACKS,
    BORDERLINE_SHARES,
    CATEGORY_SHARES,
    JOINT,
    RiskMaker,
    borderline_maker,
    risk_maker,
)
from llama2_lib.world.tasks import HELPFUL_SHARES, SPLITS, Split, Task, answer_writer, task_maker

KINDS = (*HELPFUL_SHARES, "adversarial", "borderline")
PROMPT_SHARES = {"helpful": 0.7, "adversarial": 0.2, "borderline": 0.1}

MULTI_TURN_FRACTION = 0.3
"""Prompts with earlier turns; the paper's safety evaluation has 623 of 1,974."""
MOST_EARLIER_TURNS = 3
HARMLESS_LEAD = 0.5
"""Share of the attacks over several turns that talk of something harmless first; the others gain
trust."""

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
        check_known("kind", self.kind, KINDS)
        roles = [message["role"] for message in self.dialog]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise ValueError(
                "a prompt's roles must be system (or none), then user and assistant in turn, "
                f"and end with user; got {roles}; mend the dialog"
            )

    @property
    def request(self) -> str:
        """What the user said last."""
        return self.dialog[-1]["content"]


def helpful_prompts(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    shares: Mapping[str, float] = HELPFUL_SHARES,
    multi_turn: float = MULTI_TURN_FRACTION,
) -> Iterator[Prompt]:
    """Yield n requests for help; `shares` are by kind, `n=None` never ends."""
    draw_kind = chooser(shares, tuple(HELPFUL_SHARES))
    maker = task_maker(world, _checked(split, multi_turn))
    rng = random_source(seed, "prompts", "helpful", split, world.seed)

    def draw() -> Prompt:
        kind = draw_kind(rng)
        earlier = harmless_turns(world, rng) if rng.random() < multi_turn else []
        request, task = maker.draw(rng, kind)
        return Prompt(dialog=[*earlier, asks(request)], kind=kind, task=task)

    return stream(n, draw)


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
    """
    draw_category = chooser(categories, tuple(CATEGORY_SHARES))
    draw_attack = chooser(dict.fromkeys(attacks, 1.0), ATTACKS)
    maker = risk_maker(world, _checked(split, multi_turn))
    rng = random_source(seed, "prompts", "adversarial", split, world.seed)

    def draw() -> Prompt:
        category, attack = draw_category(rng), draw_attack(rng)
        earlier = []
        if rng.random() < multi_turn:
            harmless = rng.random() < HARMLESS_LEAD
            earlier = harmless_turns(world, rng) if harmless else exchange(*maker.lead_in(rng))
        return adversarial_prompt(rng, maker, earlier, (attack,), category)

    return stream(n, draw)


def adversarial_prompt(
    rng: Random, maker: RiskMaker, earlier: list[Message], vectors: Sequence[str], category: str
) -> Prompt:
    """Draw a request of this category with some attack vectors at once."""
    request, task, hazard = maker.compose(rng, vectors, category)
    return Prompt(
        dialog=[*earlier, asks(request)],
        kind="adversarial",
        task=task,
        is_safety=True,
        category=category,
        attack=JOINT.join(vectors),
        hazard=hazard,
    )


def borderline_prompts(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    shares: Mapping[str, float] = BORDERLINE_SHARES,
    multi_turn: float = MULTI_TURN_FRACTION,
) -> Iterator[Prompt]:
    """Yield n harmless requests that look unsafe (paper section 4.2.3, false refusal)."""
    draw_kind = chooser(shares, tuple(BORDERLINE_SHARES))
    maker = borderline_maker(world, _checked(split, multi_turn))
    rng = random_source(seed, "prompts", "borderline", split, world.seed)

    def draw() -> Prompt:
        earlier = harmless_turns(world, rng) if rng.random() < multi_turn else []
        request, task = maker.draw(rng, draw_kind(rng))
        return Prompt(dialog=[*earlier, asks(request)], kind="borderline", task=task)

    return stream(n, draw)


def prompts(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    shares: Mapping[str, float] = PROMPT_SHARES,
) -> Iterator[Prompt]:
    """Yield n prompts of all three families, mixed by `shares`."""
    draw_family = chooser(shares, tuple(PROMPT_SHARES))
    check_known("split", split, SPLITS)
    families = {
        "helpful": helpful_prompts,
        "adversarial": adversarial_prompts,
        "borderline": borderline_prompts,
    }
    streams = {name: family(world, seed, split=split) for name, family in families.items()}
    rng = random_source(seed, "prompts", "family", split, world.seed)
    return stream(n, lambda: next(streams[draw_family(rng)]))


def _checked(split: str, multi_turn: float) -> Split:
    check_known("split", split, SPLITS)
    if not 0 <= multi_turn <= 1:
        raise ValueError(f"multi_turn must be a fraction from 0 to 1; got {multi_turn}")
    return cast(Split, split)


def harmless_turns(world: World, rng: Random) -> list[Message]:
    """Return one to three harmless turns with good answers; all of them from the training side."""
    maker, writer = task_maker(world, "train"), answer_writer(world)
    turns: dict[str, str] = {}
    for _ in range(between(rng, 1, MOST_EARLIER_TURNS)):
        request, task = maker.draw(rng, pick(rng, _EARLIER_KINDS))
        turns[request] = writer.good(rng, task)
    return [message for turn in turns.items() for message in exchange(*turn)]
