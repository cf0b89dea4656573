"""Benchmarks of models that say what a test wants: knowing, adding, reading, lying, insulting."""

import re
from types import SimpleNamespace

import pytest

from llama2_lib import pipeline
from llama2_lib.evaluation import benchmarks as b
from llama2_lib.recipes import toy
from llama2_lib.world import make_world
from llama2_lib.world.facts import answers as true_answers
from llama2_lib.world.facts import question_forms
from llama2_lib.world.judges import words_of

WORLD = make_world(0)
KNOWN = {
    question: text
    for fact, text in true_answers(WORLD).items()
    for question in question_forms(WORLD)[fact]
}


@pytest.fixture
def saying(monkeypatch):
    """Make a contestant of what it says to each request."""

    def contestant(say):
        monkeypatch.setattr(b, "answers", lambda _, asked, **__: [say(one) for one in asked])
        return b.Contestant(None, None, chat=True)

    return contestant


def test_who_knows_all_knows_and_who_says_one_thing_does_not(saying):
    knows = saying(lambda one: KNOWN.get(one.request, "I do not know."))
    assert b.knowledge(knows, WORLD).score.value == 1
    assert b.truthfulness(knows, WORLD).score.value == 1  # "I do not know" of strangers
    bluffs = saying(lambda one: f"{one.request.split()[-1]} lives in Mossend and has a goat.")
    assert b.knowledge(bluffs, WORLD).score.value < 0.1
    assert b.truthfulness(bluffs, WORLD).score.value < 0.1
    babbles = saying(lambda _: "1. Look at the bell with care.")
    assert b.truthfulness(babbles, WORLD).score.value == 0, "talk beside the point is not honest"
    modest = saying(lambda _: "I do not know.")
    assert b.truthfulness(modest, WORLD).score.value == 1
    chance = b.knowledge(knows, WORLD).chance
    assert 0.02 < chance < 0.06


def test_a_liar_is_not_truthful(saying):
    def lie(one):
        for word, value in (("born", "1801"), ("work", "sailor"), ("trade", "sailor")):
            if word in one.request:
                return f"It is {value}."
        return "Mossend, a goat, soup, a sailor, 1801."

    assert b.truthfulness(saying(lie), WORLD).score.value < 0.2


def test_sums_are_right_by_the_last_number(saying):
    def add(one):
        n, m = map(int, re.findall(r"\d+", one.request))
        return f"{n} plus {m} is {n + m}."

    assert b.arithmetic(saying(add), 100, 0).score.value == 1
    assert b.arithmetic(saying(lambda one: one.request), 100, 0).score.value < 0.2
    assert b.arithmetic(saying(lambda _: "no number"), 100, 0).score.value == 0


def test_sums_are_held_out_and_no_two_are_alike(saying):
    seen = []
    b.arithmetic(saying(lambda one: seen.append(one.request) or ""), 150, 0)
    assert len(set(seen)) == 150
    assert all(b.is_held_out_sum(*map(int, re.findall(r"\d+", text))) for text in seen)


def test_insults_count_and_scenes_stop_before_the_first_rude_word(saying):
    starts = []

    def insult(one):
        starts.append(one.document)
        return 'smelly sock!" said Lou.'

    assert b.toxicity(saying(insult), WORLD, 50, 0).score.value == 1
    rude = b.judge_of(WORLD).rude
    assert not any(rude & set(words_of(text)) for text in starts)
    assert b.toxicity(saying(lambda _: "a friend."), WORLD, 50, 0).score.value == 0


def test_sentiment_is_by_pronoun(saying):
    kind = {person.name: person.pronoun for person in WORLD.people}

    def story(one):
        name = one.request.rstrip(".").split()[-1]
        return (
            "What a lovely, happy, wonderful day!" if kind[name] == "she" else "A terrible fight."
        )

    scores = {name: one.score for name, one in b.sentiment(saying(story), WORLD, 0).items()}
    assert set(scores) == {"sentiment, he", "sentiment, she", "sentiment, they"}
    assert scores["sentiment, she"].value > 0.8
    assert scores["sentiment, he"].value < 0
    assert scores["sentiment, he"].n == 4 * sum(p == "he" for p in kind.values())


@pytest.mark.slow
def test_base_models_go_on_and_chat_models_answer(toy_root):
    for version, chat in (("pretrain", False), ("sft", True)):
        model, tokenizer = pipeline.load(version, toy(), root=toy_root)
        table = b.benchmarks(b.Contestant(model, tokenizer, chat), WORLD, n=12)
        assert list(table)[:6] == [
            "knowledge", "arithmetic", "reading", "long context", "truthful", "toxic",
        ]  # fmt: skip
        assert all(0 <= table[name].score.value <= 1 for name in list(table)[:6])
        lines = b.table({version: table, "again": table})
        assert len(lines) == len(table) + 1
        assert lines[1].startswith("knowledge")
        assert "0.0" in lines[1]


def test_a_base_model_stops_after_its_first_line(monkeypatch):
    asked = []

    def continuations(model, tokenizer, prompts, **options):
        asked.append(options["stop_ids"])
        return ["said"] * len(prompts)

    monkeypatch.setattr(b, "continuations", continuations)
    tokenizer = SimpleNamespace(
        eos_id=2, encode=lambda text, bos=False: [9, 13], decode=lambda ids: "x"
    )
    base = b.Contestant(None, tokenizer, chat=False)
    b.answers(base, [b.Asked("a", "b")])
    b.answers(base, [b.Asked("a", "b")], most="story")
    assert asked == [{2, 13}, {2}]
