"""Facts in many wordings: biographies, single statements, and the dated chronicle."""

from collections.abc import Callable
from itertools import permutations
from random import Random

from llama2_lib.world.facts import RELATIONS, Fact, Person, World
from llama2_lib.world.wording import Template, capitalised, pick, with_articles

Writer = Callable[[Random], str]

_SLOTS = ("name", "value", "they", "them", "their", "They", "Their")


def _render(templates: tuple[Template, ...], person: Person, value: str) -> tuple[str, ...]:
    values = person.slots() | with_articles(name=person.name, value=value)
    return tuple(template.fill(values | person.agreement(template.slots)) for template in templates)


def statements(world: World) -> dict[Fact, tuple[str, ...]]:
    """Return every wording of every fact that names the person."""
    templates = world.lexicon.templates("statements", _SLOTS)
    people = {person.name: person for person in world.people}
    return {
        fact: _render(templates[fact.relation], people[fact.subject], fact.value)
        for fact in world.facts
    }


def pronoun_statements(world: World) -> dict[Fact, tuple[str, ...]]:
    """Return every wording of every fact that says she, he or they."""
    templates = world.lexicon.templates("statements", _SLOTS)
    people = {person.name: person for person in world.people}
    return {
        fact: _render(templates[f"{fact.relation} pronoun"], people[fact.subject], fact.value)
        for fact in world.facts
    }


def biography_writer(world: World) -> Writer:
    """Write three to five facts of one person in random order."""
    named, later = statements(world), pronoun_statements(world)
    orders = list(permutations(range(len(RELATIONS))))
    by_person = [
        [
            (named[fact], named[fact] + 2 * later[fact])  # mostly pronouns after the first
            for fact in world.facts
            if fact.subject == person.name
        ]
        for person in world.people
    ]

    def write(rng: Random) -> str:
        facts = pick(rng, by_person)
        order = pick(rng, orders)[: 3 + int(3 * rng.random())]
        first = pick(rng, facts[order[0]][0])
        return " ".join([first, *(pick(rng, facts[index][1]) for index in order[1:])])

    return write


def fact_writer(world: World) -> Writer:
    """Write one to four facts of different people, one on each line."""
    wordings = list(statements(world).values())

    def write(rng: Random) -> str:
        drawn = dict.fromkeys([pick(rng, wordings) for _ in range(1 + int(4 * rng.random()))])
        return "\n".join([pick(rng, options) for options in drawn])

    return write


def chronicle_writer(world: World) -> Writer:
    """Write four to eight events and births, in the order of their years."""
    slots = ("year", "place", "what", "What", "name")
    templates = world.lexicon.templates("chronicle", slots)
    headings = [heading.text for heading in templates["heading"]]
    entries = []
    for event in world.events:
        values = {"year": str(event.year), "place": event.place, "what": event.what}
        values["What"] = capitalised(event.what)
        entries.append((event.year, [item.fill(values) for item in templates["event"]]))
    for fact in world.facts:
        if fact.relation == "born":
            values = {"year": fact.value, "name": fact.subject}
            entries.append((int(fact.value), [item.fill(values) for item in templates["birth"]]))

    def write(rng: Random) -> str:
        chosen = sorted(rng.sample(entries, 4 + int(5 * rng.random())))
        return "\n".join([pick(rng, headings), *(pick(rng, wordings) for _, wordings in chosen)])

    return write
