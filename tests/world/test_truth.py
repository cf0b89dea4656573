"""Read the documents back: nothing in them may contradict the world."""

import re
from collections import Counter

import pytest

from llama2_lib.world import documents, make_world
from llama2_lib.world.facts import (
    RELATIONS,
    held_out_forms,
    is_correct,
    question_forms,
    recall_items,
)
from llama2_lib.world.lexicon import default_lexicon


@pytest.fixture(scope="module")
def world():
    return make_world(4)


@pytest.fixture(scope="module")
def sample(world):
    return list(documents(world, 1, 6000))


def pattern(template):
    """Turn a line of the lexicon into a regular expression, apart from the library's code."""
    text = re.escape(template)
    text = re.sub(r"\\{name\\}", r"(?P<name>[A-Z][a-z]+)", text, count=1)
    text = re.sub(r"\\{name\\}", r"(?P=name)", text)
    text = re.sub(r"\\{(?:an?\\ )?value\\}", r"(?:an? )?(?P<value>\\w+)", text)
    text = re.sub(r"\\{They\\}", r"(?P<pronoun>She|He|They)", text)
    text = re.sub(r"\\{they\\}", r"(?P<pronoun>she|he|they)", text)
    text = re.sub(r"\\{(Their|their|them)\\}", r"(?P<\1>[Hh]er|[Hh]is|him|[Tt]heir|them)", text)
    text = re.sub(r"\\{(\w+)\\\|(\w+)\\}", r"(?P<verb>\1|\2)", text)
    return re.compile(text)


def readers(sections):
    return [(relation, pattern(line)) for relation, lines in sections.items() for line in lines]


NAMED = {r: default_lexicon().sections("statements")[r] for r in RELATIONS}
LATER = {r: default_lexicon().sections("statements")[f"{r} pronoun"] for r in RELATIONS}


def parse(sentence, table):
    found = {
        (relation, match["value"], match.groupdict().get("name"))
        for relation, reader in table
        if (match := reader.fullmatch(sentence))
    }
    return found


def allowed(world, found, name):
    return any(
        value == world.value(who or name, relation) and (who or name) == name
        for relation, value, who in found
    )


def test_every_stated_fact_is_true(world, sample):
    named, later = readers(NAMED), readers(LATER)
    stated = Counter()
    texts = [d for d in sample if d.kind in ("biography", "facts")][:1500]
    for document in texts:
        subject = None
        for sentence in re.split(r"(?<=\.)\s", document.text):
            found = parse(sentence, later)
            if not found:
                found = parse(sentence, named)
                name = next((who for _, _, who in found), None)
                assert document.kind == "facts" or subject in (None, name), document
                subject = name
            assert found, f"not understood: {sentence}"
            assert allowed(world, found, subject), f"untrue: {sentence}"
            stated[subject] += 1
    assert len(stated) == 30


def test_the_reader_rejects_a_false_statement(world):
    fact = next(fact for fact in world.facts if fact.relation == "home")
    wrong = next(place for place in world.places if place != fact.value)
    found = parse(f"{fact.subject} lives in {wrong}.", readers(NAMED))
    assert found
    assert not allowed(world, found, fact.subject)


def test_pronouns_in_biographies_belong_to_the_person(world, sample):
    forms = {"she": {"She", "she", "her", "Her"}, "he": {"He", "he", "him", "his", "His"}}
    forms["they"] = {"They", "they", "them", "their", "Their"}
    pronoun = {person.name: person.pronoun for person in world.people}
    every = set.union(*forms.values())
    seen = Counter()
    for document in sample:
        if document.kind == "biography":
            words = set(re.findall(r"\w+", document.text))
            name = next(word for word in words if word in pronoun)
            assert words & every <= forms[pronoun[name]], document
            seen[pronoun[name]] += bool(words & every)
    assert min(seen[p] for p in forms) > 50
    they = [d.text for d in sample if d.kind == "biography" and " They " in d.text]
    assert not [t for t in they if re.search(r"They (is|was|has|lives|works|likes)\b", t)]


def test_every_answer_in_documents_is_true(world, sample):
    asked = {text: fact for fact, forms in question_forms(world).items() for text in forms}
    assert len(asked) == 600
    n_answers = 0
    for document in sample:
        if document.kind == "questions":
            lines = document.text.split("\n")
            assert len(lines) % 2 == 0
            for question, answer in zip(lines[::2], lines[1::2], strict=True):
                fact = asked[question.removeprefix("Question: ")]
                assert re.fullmatch(rf"Answer: {fact.subject} .*\b{fact.value}\.", answer), answer
                n_answers += 1
    assert n_answers > 4000


def test_stories_and_chronicles_tell_true_facts(world, sample):
    events = {(event.what.lower(), event.place): event.year for event in world.events}
    names = [person.name for person in world.people]
    checked = Counter()
    for document in sample:
        for match in re.finditer(r"(\w+) was born in (\d{4})", document.text):
            name, year = match.groups()
            if world.lexicon and name in {person.name for person in world.people}:
                assert world.value(name, "born") == year, document
                checked[document.kind, "born"] += 1
        if document.kind == "story":
            for name, trade in re.findall(rf"({'|'.join(names)}) was an? (\w+) in", document.text):
                assert world.value(name, "trade") == trade, document
                checked["story", "trade"] += 1
        if document.kind == "chronicle":
            years = [int(line_year(line)) for line in document.text.split("\n")[1:]]
            assert years == sorted(years), document
            for line in document.text.split("\n")[1:]:
                for (what, place), year in events.items():
                    if what in line.lower():
                        assert place in line, line
                        assert year == line_year(line), line
                        checked["chronicle", "event"] += 1
    assert len(checked) >= 5, checked
    assert min(checked.values()) > 10, checked


def line_year(line):
    return int(re.search(r"\b(1[89]\d\d)\b", line)[1])


def test_held_out_questions_never_occur(world, run_plainly):
    # in a process of its own: 50,000 documents take too long under pytest's type checker
    code = (
        "from llama2_lib.world import *; from llama2_lib.world.dialogs import dialogs;"
        "w = make_world(4); print('\\n'.join(d.text for d in documents(w, 1, 50_000)));"
        "print('\\n'.join(m['content'] for d in dialogs(w, 1, 5000) for m in d))"
    )
    said = run_plainly(code)
    lines = Counter(line.removeprefix("Question: ") for line in said.split("\n"))
    held_out = held_out_forms(world)
    n_seen = 0
    for fact, questions in question_forms(world).items():
        for form, question in enumerate(questions):
            if held_out[fact] is None or form == held_out[fact]:
                assert question not in said, question
            else:
                assert lines[question] > 20, question
                n_seen += 1
    assert n_seen == 120 * 3


def test_one_fact_in_five_is_never_asked_in_each_relation(world):
    held_out = held_out_forms(world)
    for relation in RELATIONS:
        forms = Counter(h for fact, h in held_out.items() if fact.relation == relation)
        assert forms == {None: 6, 0: 6, 1: 6, 2: 6, 3: 6}
    assert held_out != held_out_forms(make_world(5))


def test_recall_items_cover_every_fact_and_tell_the_exposure(world, sample):
    items = recall_items(world)
    text = "\n".join(document.text for document in sample if document.kind == "questions")
    count = Counter(item.exposure for item in items)
    assert count == {"seen form": 120, "unseen form": 120, "never asked": 30}
    assert {item.fact for item in items} == set(world.facts)
    for item in items:
        assert re.fullmatch(r"Question: [^\n]*\?\nAnswer:", item.prompt)
        assert item.answer == item.fact.value
        assert (item.prompt in text) == (item.exposure == "seen form"), item
    # an unseen form is seen for other facts
    for item in items:
        others = [o for o in items if o.fact.relation == item.fact.relation and o.form == item.form]
        assert {o.exposure for o in others} >= {"seen form", "unseen form"}


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (" {name} lives in {value}.", True),
        (" {value}", True),
        ("\n{name} lives in {value}.\nQuestion: and {other}?", True),
        (" {VALUE}!", True),
        (" {name} lives in {other}.", False),
        (" {name} lives in {value} or {other}.", False),
        (" {name} lives in {value}ton.", False),
        (" {name} lives here.\n{value}", False),
        ("", False),
        ("  \n ", False),
    ],
)
def test_an_answer_is_right_only_with_the_one_value(world, completion, right):
    item = next(item for item in recall_items(world) if item.fact.relation == "home")
    other = next(place for place in world.places if place != item.answer)
    text = completion.format(
        name=item.fact.subject, value=item.answer, VALUE=item.answer.upper(), other=other
    )
    assert is_correct(item, text) is right


def test_a_wrong_year_beside_the_right_one_is_wrong(world):
    item = next(item for item in recall_items(world) if item.fact.relation == "born")
    other = "1900" if item.answer != "1900" else "1901"
    assert is_correct(item, f" {item.answer}.")
    assert not is_correct(item, f" {item.answer} or {other}.")
    assert not is_correct(item, f" {other}.")
