"""The ground truth: people, their facts, dated events, and how facts are said and asked.

Everything is drawn from one seed. Which questions are ever asked is decided here as well, and
whether an answer is right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from random import Random
from typing import Literal

from llama2_lib.rng import random_source
from llama2_lib.world.lexicon import Lexicon, default_lexicon, pick, pick_other, with_articles

Exposure = Literal["seen form", "unseen form", "never asked"]

RELATIONS = ("home", "trade", "pet", "food", "born")
N_PEOPLE = 30
N_EVENTS = 24
FIRST_YEAR, LAST_YEAR = 1800, 1999
LEAST_VALUES = 10  # values that a relation must have; guessing would pay if there were fewer
N_FORMS = 4
NEVER_ASKED_FRACTION = 0.2

_STATEMENT_SLOTS = ("name", "value", "they", "them", "their", "They", "Their")
_PRONOUNS = {  # subject, object, possessive
    "she": ("she", "her", "her"),
    "he": ("he", "him", "his"),
    "they": ("they", "them", "their"),
}


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a first name and a pronoun."""

    name: str
    pronoun: str

    def slots(self) -> dict[str, str]:
        """Return the pronouns for the slots {they} {them} {their} {They} {Their}."""
        subject, them, their = _PRONOUNS[self.pronoun]
        return {
            "they": subject,
            "them": them,
            "their": their,
            "They": subject.capitalize(),
            "Their": their.capitalize(),
        }

    def agreement(self, slots: Sequence[str]) -> dict[str, str]:
        """Return for each `works|work` the form that follows this person's pronoun."""
        plural = self.pronoun == "they"
        return {slot: slot.split("|")[plural] for slot in slots if "|" in slot}


@dataclass(frozen=True, slots=True)
class Fact:
    """One true statement: the relation of the subject has this value."""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once."""

    year: int
    place: str
    what: str


@dataclass(frozen=True)
class World:
    """Everything that is true. Built by `make_world`."""

    seed: int
    people: tuple[Person, ...]
    places: tuple[str, ...]
    trades: tuple[str, ...]
    animals: tuple[str, ...]
    foods: tuple[str, ...]
    facts: tuple[Fact, ...]
    events: tuple[Event, ...]
    lexicon: Lexicon = field(repr=False)

    def __hash__(self) -> int:
        return hash((self.seed, self.lexicon))

    def value(self, name: str, relation: str) -> str:
        """Return the true value; a year comes as its four digits."""
        return self._values[name, relation]

    def choices(self, relation: str) -> tuple[str, ...]:
        """Return every value the relation can take, true or not."""
        years = tuple(map(str, range(FIRST_YEAR, LAST_YEAR + 1)))
        lists = (self.places, self.trades, self.animals, self.foods, years)
        return dict(zip(RELATIONS, lists, strict=True))[relation]

    def person_slots(self, person: Person) -> dict[str, str]:
        """Return a person's pronouns and true facts as values for templates."""
        facts = {relation: self.value(person.name, relation) for relation in RELATIONS}
        return person.slots() | with_articles(name=person.name, **facts)

    @cached_property
    def _values(self) -> dict[tuple[str, str], str]:
        return {(fact.subject, fact.relation): fact.value for fact in self.facts}


def _balanced(rng: Random, values: Sequence[str], n: int) -> list[str]:
    """Draw n values so that none is much more common than another: guessing must not pay."""
    choices: list[str] = []
    while len(choices) < n:
        choices += rng.sample(values, len(values))
    choices = choices[:n]
    rng.shuffle(choices)
    return choices


def _people(rng: Random, lexicon: Lexicon) -> tuple[Person, ...]:
    known = lexicon.pairs("names")
    for name, pronoun in known:
        if pronoun not in _PRONOUNS:
            raise ValueError(f"names.txt must give she, he or they after {name}; got {pronoun!r}")
    if len(known) < N_PEOPLE:
        raise ValueError(f"names.txt must hold {N_PEOPLE} names or more; it holds {len(known)}")
    return tuple(Person(name, pronoun) for name, pronoun in rng.sample(known, N_PEOPLE))


def make_world(seed: int = 0, lexicon: Lexicon | None = None) -> World:
    """Return the one world that belongs to a seed; drawn once.

    Thirty people times five relations are 150 facts. Each value list has about twenty values,
    drawn almost evenly, so a guess is right about one time in twenty.
    """
    # Lists of the reader's own may be edited between two calls.
    return _known_world(seed) if lexicon is None else _world(seed, lexicon)


@cache
def _known_world(seed: int) -> World:
    return _world(seed, default_lexicon())


def _world(seed: int, lexicon: Lexicon) -> World:
    rng = random_source(seed, "world")
    people = _people(rng, lexicon)
    names = ("places", "trades", "animals", "foods")
    lists = {name: lexicon.words(name, at_least=LEAST_VALUES) for name in names}
    columns = [_balanced(rng, values, N_PEOPLE) for values in lists.values()]
    columns.append(list(map(str, rng.sample(range(FIRST_YEAR, LAST_YEAR + 1), N_PEOPLE))))
    facts = tuple(
        Fact(person.name, relation, values[index])
        for index, person in enumerate(people)
        for relation, values in zip(RELATIONS, columns, strict=True)
    )
    known = lexicon.sections("events")["event"]
    if len(known) < N_EVENTS:
        raise ValueError(f"events.txt must hold {N_EVENTS} events or more; it holds {len(known)}")
    years = sorted(rng.sample(range(FIRST_YEAR, LAST_YEAR + 1), N_EVENTS))
    whats = rng.sample(known, N_EVENTS)
    events = tuple(map(Event, years, _balanced(rng, lists["places"], N_EVENTS), whats))
    return World(seed=seed, people=people, facts=facts, events=events, lexicon=lexicon, **lists)


def statements(world: World, kind: str = "") -> dict[Fact, tuple[str, ...]]:
    """Return every wording of every fact: with the name, or (" pronoun") with she, he or they."""
    templates = world.lexicon.templates("statements", _STATEMENT_SLOTS)
    people = {person.name: person for person in world.people}

    def worded(fact: Fact) -> tuple[str, ...]:
        person = people[fact.subject]
        values = person.slots() | with_articles(name=person.name, value=fact.value)
        return tuple(
            line.fill(values | person.agreement(line.slots))
            for line in templates[f"{fact.relation}{kind}"]
        )

    return {fact: worded(fact) for fact in world.facts}


class Slots:
    """Draws what a text may name beside people and their facts: a value for each of some slots.

    A slot `a trade` is filled without and with the article.
    """

    def __init__(self, world: World, *order: str) -> None:
        words = world.lexicon.words
        self.words: dict[str, Sequence[str]] = {
            "name": [person.name for person in world.people],
            "place": world.places,
            "trade": world.trades,
            "animal": world.animals,
            "food": world.foods,
            "number": words("numbers")[2:11],
            "thing": words("things"),
            "adjective": words("adjectives"),
            "look": words("looks"),
            "weather": words("weather"),
            "time": words("times"),
            "spot": words("spots"),
        }
        self._options = {
            slot: [
                {slot: word} if slot == name else with_articles(**{name: word})
                for word in self.words[name.removeprefix("other ")]
            ]
            for slot in order
            for name in [slot.removeprefix("a ")]
        }

    def draw(self, rng: Random) -> dict[str, str]:
        """Draw the slots in their order; the other spot is not the spot."""
        values: dict[str, str] = {}
        for slot, options in self._options.items():
            if slot == "other spot":
                values[slot] = pick_other(rng, self.words["spot"], values["spot"])
            else:
                values.update(pick(rng, options))
        return values


@dataclass(frozen=True, slots=True)
class RecallItem:
    """One question for a model: does it know the fact, and in which way was it asked before?

    `choices` are all values the relation can take, the answer among them.
    """

    prompt: str
    answer: str
    fact: Fact
    form: int
    exposure: Exposure
    choices: tuple[str, ...] = field(repr=False)


def held_out_forms(world: World) -> dict[Fact, int | None]:
    """Return for each fact the one form in which it is never asked; None: it is never asked at all.

    One fact in five of each relation is never asked. The held-out forms are spread evenly.
    """
    held_out: dict[Fact, int | None] = {}
    for relation in RELATIONS:
        facts = [fact for fact in world.facts if fact.relation == relation]
        random_source(world.seed, "exposure", relation).shuffle(facts)
        n_never = round(NEVER_ASKED_FRACTION * len(facts))
        for index, fact in enumerate(facts):
            held_out[fact] = None if index < n_never else index % N_FORMS
    return {fact: held_out[fact] for fact in world.facts}


def question_forms(world: World) -> dict[Fact, tuple[str, ...]]:
    """Return the four questions for every fact."""
    templates = world.lexicon.templates("questions", ("name", "value"))
    for relation in RELATIONS:
        n_forms = len(templates[relation])
        if n_forms != N_FORMS:
            raise ValueError(f"questions.txt needs {N_FORMS} forms of [{relation}]; got {n_forms}")
    return {
        fact: tuple(form.fill({"name": fact.subject}) for form in templates[fact.relation])
        for fact in world.facts
    }


def answers(world: World) -> dict[Fact, str]:
    """Return the true answer to every fact's questions, one sentence."""
    templates = world.lexicon.templates("questions", ("name", "value"))
    return {
        fact: templates[f"{fact.relation} answer"][0].fill(
            with_articles(name=fact.subject, value=fact.value)
        )
        for fact in world.facts
    }


def asked_pairs(world: World) -> list[list[tuple[str, str]]]:
    """Return for each fact that is ever asked its seen questions, each with the answer."""
    forms, answer, held_out = question_forms(world), answers(world), held_out_forms(world)
    return [
        [(text, answer[fact]) for form, text in enumerate(forms[fact]) if form != held_out[fact]]
        for fact in world.facts
        if held_out[fact] is not None
    ]


def recall_items(world: World) -> list[RecallItem]:
    """Return one item per fact in a seen and one in the unseen form; one if it is never asked."""
    forms, held_out = question_forms(world), held_out_forms(world)
    choices = {relation: world.choices(relation) for relation in RELATIONS}
    items = []
    for index, fact in enumerate(world.facts):
        unseen = held_out[fact]
        exposures: dict[int, Exposure] = {index % N_FORMS: "never asked"}
        if unseen is not None:
            seen = (unseen + 1 + index % (N_FORMS - 1)) % N_FORMS
            exposures = {seen: "seen form", unseen: "unseen form"}
        for form, exposure in exposures.items():
            prompt = f"Question: {forms[fact][form]}\nAnswer:"
            values = choices[fact.relation]
            items.append(RecallItem(prompt, fact.value, fact, form, exposure, values))
    return items


def is_correct(item: RecallItem, completion: str) -> bool:
    """Say whether the first line names the true value and no other value of its relation."""
    first_line = completion.strip().split("\n", 1)[0]
    named = set(re.findall(r"\w+", first_line.lower()))
    possible = {value.lower() for value in item.choices}
    return named & possible == {item.answer.lower()}
