"""Dated dialogs: was it before today, or is it still to come? (section 5.1, temporal perception)

The paper gave its model a thousand examples, each with the date of the question and that of the
event. Here the system message says what year it is, and the user asks about an event or a birth.
The year of the event is said nowhere in the dialog: the model has read it in pretraining.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from llama2_lib.rng import random_source
from llama2_lib.world.dialogs import Message, exchange
from llama2_lib.world.facts import FIRST_YEAR, LAST_YEAR, World
from llama2_lib.world.lexicon import between, check_known, pick

HELD_OUT_SHARE = 0.25
"""Share of the events, and of the births, that no training dialog asks about."""
HELD_OUT_DIGITS = "37"
"""Last digits of the years that are never today in training."""
FURTHEST = 60
"""Years between today and the event at most: as often before it as after."""
TODAY = ("It is the year {today}.", "Today is a day in {today}.", "The year is {today}.")
QUESTIONS = {
    "event": ("Is it true that {what} in {place}?", "Did you hear that {what} in {place}?"),
    "birth": ("Has {name} been born?", "Is {name} already born?"),
}
ANSWERS = {
    "event": ("Yes, that was in {year}.", "No, I know nothing of that."),
    "birth": ("Yes, {name} was born in {year}.", "No, I know nothing of {name}."),
}
"""What is said once it has happened, and before: then the answer must not tell the year."""
SPLITS = ("train", "held-out dates", "held-out events")


class Dated(NamedTuple):
    """One question with its truth."""

    today: int
    year: int
    """Of the event."""
    dialog: list[Message]
    """System message and question."""
    answers: tuple[str, str]
    """The answer for an event that has happened, and for one that has not."""

    @property
    def happened(self) -> bool:
        """Whether the event lies before today, or in the same year."""
        return self.year <= self.today

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.answers[0 if self.happened else 1]


def dated_questions(
    world: World, seed: int, n: int | None = None, split: str = "train"
) -> Iterator[Dated]:
    """Yield n questions; `n=None` never ends.

    Of "held-out dates" the year of the question occurs in no training dialog, of "held-out events"
    neither that nor the event.
    """
    check_known("split", split, SPLITS)
    kept, others = _subjects(world)
    rng = random_source(seed, "dates", split, world.seed)
    subjects = others if split == "held-out events" else kept
    while n is None or n > 0:
        kind, year, values = pick(rng, subjects)
        today = _today(rng, year, held_out=split != "train")
        yes, no = (text.format(year=year, **values) for text in ANSWERS[kind])
        question = pick(rng, QUESTIONS[kind]).format(**values)
        dialog: list[Message] = [
            {"role": "system", "content": pick(rng, TODAY).format(today=today)},
            {"role": "user", "content": question},
        ]
        yield Dated(today, year, dialog, (yes, no))
        n = None if n is None else n - 1


def dated_dialogs(
    world: World, seed: int, n: int, *, shuffled: bool = False
) -> list[list[Message]]:
    """Return n training dialogs.

    `shuffled` is the control: the answers stay, and the dates of the questions are exchanged, so
    that nothing can be learned from them.
    """
    questions = list(dated_questions(world, seed, n))
    told = [question.dialog[0] for question in questions]
    if shuffled:
        random_source(seed, "shuffled dates").shuffle(told)
    return [
        [date, *exchange(question.dialog[1]["content"], question.answer)]
        for date, question in zip(told, questions, strict=True)
    ]


def _subjects(world: World) -> tuple[list, list]:
    """Return what is asked about in training, and what is held out: kind, year, values of slots."""
    events = [("event", e.year, {"what": e.what, "place": e.place}) for e in world.events]
    births = [
        ("birth", int(world.value(person.name, "born")), {"name": person.name})
        for person in world.people
    ]
    kept, held_out = [], []
    for group in (events, births):
        random_source(world.seed, "dated", group[0][0]).shuffle(group)
        n = round(HELD_OUT_SHARE * len(group))
        held_out += group[:n]
        kept += group[n:]
    return kept, held_out


def _today(rng: Random, year: int, held_out: bool) -> int:
    while True:
        distance = between(rng, 0, FURTHEST)
        today = year + (distance if rng.random() < 0.5 else -distance - 1)
        in_range = FIRST_YEAR - FURTHEST <= today <= LAST_YEAR + FURTHEST
        if in_range and (str(today)[-1] in HELD_OUT_DIGITS) == held_out:
            return today
