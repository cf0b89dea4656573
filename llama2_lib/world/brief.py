"""Long dialogs in few words: twenty turns that fit a context of 512 tokens.

The tags of one turn cost about ten tokens, so a turn must say little: a question on a fact in the
shortest of its wordings that is ever asked, and the bare value as the answer; now and then a
greeting. Every answer can be checked.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.questions import held_out_forms, question_forms
from llama2_lib.world.wording import article, capitalised, pick

MOST_TURNS = 20
TALK_FRACTION = 0.1
TALK = (("Hello!", "Hello!"), ("Good night.", "Good night!"), ("Thank you.", "You are welcome!"))
_WITH_ARTICLE = ("trade", "pet")
_LEFT_OUT = ("born",)  # a year costs five tokens, and has no capital letters


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """One short turn: what the user says, the right answer, and how to know it.

    `value` is the word that a right answer names; `others` are the values it must not name.
    """

    request: str
    answer: str
    value: str = ""
    others: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def is_right(self, answer: str) -> bool:
        """Say whether an answer is right, whatever instructions it obeys besides."""
        words = set(re.findall(r"\w+", answer.casefold()))
        if not self.value:
            return set(re.findall(r"\w+", self.answer.casefold())) <= words
        return self.value in words and not words & self.others


class BriefMaker:
    """Draws short turns of a world. Facts that are never asked stay so."""

    def __init__(self, world: World) -> None:
        forms, held_out = question_forms(world), held_out_forms(world)
        self.facts = []
        for fact, form in held_out.items():
            if form is None or fact.relation in _LEFT_OUT:
                continue
            asked = [text for index, text in enumerate(forms[fact]) if index != form]
            words = fact.value
            if fact.relation in _WITH_ARTICLE:
                words = f"{article(words)} {words}"
            value = fact.value.casefold()
            others = frozenset(map(str.casefold, world.choices(fact.relation))) - {value}
            self.facts.append(
                Brief(
                    request=min(asked, key=lambda text: (len(text.split()), len(text))),
                    answer=f"{capitalised(words)}.",
                    value=value,
                    others=others,
                )
            )
        self.talk = [Brief(request=request, answer=answer) for request, answer in TALK]

    def make(self, rng: Random, n_turns: int) -> list[Brief]:
        """Return turns, none of them twice."""
        drawn: dict[str, Brief] = {}
        while len(drawn) < n_turns:
            turn = pick(rng, self.talk if rng.random() < TALK_FRACTION else self.facts)
            drawn.setdefault(turn.request, turn)
        return list(drawn.values())


@lru_cache(maxsize=4)
def brief_maker(world: World) -> BriefMaker:
    """Return the maker of a world's short turns; built once."""
    return BriefMaker(world)


def briefs(
    world: World, seed: int, n: int | None = None, *, fewest: int = 1, most: int = MOST_TURNS
) -> Iterator[list[Brief]]:
    """Yield the turns of n dialogs, `fewest` to `most` each, evenly; `n=None` never ends.

    Raises:
        ValueError: n is negative, or the numbers of turns are out of range.
    """
    maker = brief_maker(world)
    limit = len(maker.facts) + len(maker.talk)
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more dialogs.")
    if not 1 <= fewest <= most <= limit:
        raise ValueError(
            f"turns must lie within 1 and {limit}, fewest first; got {fewest} to {most}."
        )
    rng = random_source(seed, "briefs", world.seed)
    span = most - fewest + 1
    numbers = count() if n is None else range(n)
    return (maker.make(rng, fewest + int(span * rng.random())) for _ in numbers)


def as_dialog(turns: Sequence[Brief], *, open_end: bool = False) -> list[Message]:
    """Return the turns as messages with the plain answers; `open_end` leaves out the last one."""
    dialog = [
        message
        for turn in turns
        for message in (
            {"role": "user", "content": turn.request},
            {"role": "assistant", "content": turn.answer},
        )
    ]
    return dialog[:-1] if open_end else dialog
