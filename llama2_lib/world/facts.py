"""The ground truth: people, their facts, and the dated events, all drawn from one seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.lexicon import Lexicon, default_lexicon
from llama2_lib.world.wording import with_articles

RELATIONS = ("home", "trade", "pet", "food", "born")
N_PEOPLE = 30
N_EVENTS = 24
FIRST_YEAR, LAST_YEAR = 1800, 1999

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
    drawn: list[str] = []
    while len(drawn) < n:
        drawn += rng.sample(values, len(values))
    drawn = drawn[:n]
    rng.shuffle(drawn)
    return drawn


def _people(rng: Random, lexicon: Lexicon) -> tuple[Person, ...]:
    known = lexicon.pairs("names")
    for name, pronoun in known:
        if pronoun not in _PRONOUNS:
            raise ValueError(
                f"names.txt must give she, he or they after each name; "
                f"{name} has {pronoun!r}; mend that line"
            )
    if len(known) < N_PEOPLE:
        raise ValueError(f"names.txt must hold {N_PEOPLE} names or more; it holds {len(known)}")
    return tuple(Person(name, pronoun) for name, pronoun in rng.sample(known, N_PEOPLE))


def _events(rng: Random, lexicon: Lexicon, places: Sequence[str]) -> tuple[Event, ...]:
    whats = lexicon.sections("events")["event"]
    if len(whats) < N_EVENTS:
        raise ValueError(f"events.txt must hold {N_EVENTS} events or more; it holds {len(whats)}")
    years = sorted(rng.sample(range(FIRST_YEAR, LAST_YEAR + 1), N_EVENTS))
    chosen = rng.sample(whats, N_EVENTS)
    where = _balanced(rng, places, N_EVENTS)
    return tuple(map(Event, years, where, chosen))


def make_world(seed: int = 0, lexicon: Lexicon | None = None) -> World:
    """Draw the one world that belongs to a seed.

    Thirty people times five relations are 150 facts. Each value list has about twenty values,
    drawn almost evenly, so a guess is right about one time in twenty.
    """
    lexicon = lexicon or default_lexicon()
    rng = random_source(seed, "world")
    people = _people(rng, lexicon)
    names = ("places", "trades", "animals", "foods")
    lists = {name: lexicon.words(name, at_least=10) for name in names}
    drawn = [_balanced(rng, values, N_PEOPLE) for values in lists.values()]
    drawn.append(list(map(str, rng.sample(range(FIRST_YEAR, LAST_YEAR + 1), N_PEOPLE))))
    facts = tuple(
        Fact(person.name, relation, values[index])
        for index, person in enumerate(people)
        for relation, values in zip(RELATIONS, drawn, strict=True)
    )
    events = _events(rng, lexicon, lists["places"])
    return World(seed=seed, people=people, facts=facts, events=events, lexicon=lexicon, **lists)
