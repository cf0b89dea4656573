from collections import Counter

import pytest

from llama2_lib.world import make_world
from llama2_lib.world.facts import FIRST_YEAR, LAST_YEAR, RELATIONS


def test_the_world_has_thirty_people_and_150_facts(world):
    assert len(world.people) == len({person.name for person in world.people}) == 30
    assert len(world.facts) == len(set(world.facts)) == 150
    pairs = {(fact.subject, fact.relation) for fact in world.facts}
    assert pairs == {(person.name, relation) for person in world.people for relation in RELATIONS}
    assert {person.pronoun for person in world.people} == {"she", "he", "they"}


def test_values_come_from_their_lists_and_guessing_does_not_pay(world):
    for relation in RELATIONS:
        values = [fact.value for fact in world.facts if fact.relation == relation]
        assert set(values) <= set(world.choices(relation))
        # the best constant guess is right for two of thirty people
        assert Counter(values).most_common(1)[0][1] <= 2


def test_events_are_dated_and_differ(world):
    assert len(world.events) == 24
    years = [event.year for event in world.events]
    assert years == sorted(set(years))
    assert FIRST_YEAR <= years[0] < years[-1] <= LAST_YEAR
    assert len({event.what for event in world.events}) == 24


def test_value_looks_facts_up(world):
    assert all(world.value(fact.subject, fact.relation) == fact.value for fact in world.facts)
    with pytest.raises(KeyError):
        world.value("Nobody", "home")


def test_one_seed_gives_one_world(world):
    assert make_world(0) == world
    other = make_world(1)
    assert other.facts != world.facts
    assert other.people != world.people
    assert other.events != world.events


def test_seed_zero_is_the_world_of_the_lessons(world):
    # a change here changes every artifact and every notebook
    assert [(p.name, p.pronoun) for p in world.people[:2]] == PINNED_PEOPLE
    assert [fact.value for fact in world.facts[:5]] == PINNED_VALUES


PINNED_PEOPLE = [("Toni", "they"), ("Jules", "they")]
PINNED_VALUES = ["Windle", "carpenter", "duck", "toast", "1835"]


def test_pronouns_agree_with_their_verbs(world):
    by_pronoun = {person.pronoun: person for person in world.people}
    assert by_pronoun["she"].slots()["Their"] == "Her"
    assert by_pronoun["he"].slots()["them"] == "him"
    assert by_pronoun["they"].slots()["They"] == "They"
    assert by_pronoun["she"].agreement(["was|were", "name"]) == {"was|were": "was"}
    assert by_pronoun["they"].agreement(["was|were", "name"]) == {"was|were": "were"}
