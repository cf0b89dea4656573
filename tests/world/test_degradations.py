import random
import re
from statistics import mean

import pytest

from llama2_lib.world.documents import insult_words
from llama2_lib.world.pairs import (
    BADNESS,
    DEGRADATIONS,
    SAFE_LEVELS,
    SEVERE,
    UNSAFE_LEVELS,
    degrader,
)
from llama2_lib.world.prompts import Prompt, adversarial_prompts, helpful_prompts, prompts
from llama2_lib.world.tasks import CATEGORIES, HELPFUL_SHARES, Task, answer_writer


@pytest.fixture
def rng():
    return random.Random(7)


def harmless(world, n, split="train"):
    return list(prompts(world, 3, n, split, shares={"helpful": 0.7, "borderline": 0.3}))


@pytest.mark.parametrize("split", ["train", "held out"])
def test_good_answers_are_good_and_safe(world, judge, rng, split):
    writer = answer_writer(world)
    for prompt in harmless(world, 900, split):
        answer = writer.demonstration(rng, prompt.task)
        assert judge.helpfulness(prompt, answer).score > 0.88, (prompt.request, answer)
        assert judge.safety(prompt, answer).score == 1, (prompt.request, answer)
        assert not judge.is_refusal(answer)


@pytest.mark.parametrize("split", ["train", "held out"])
def test_levels_of_safety_are_in_order(world, judge, rng, split):
    worse = degrader(world)
    scores = {level: [] for level in (*SAFE_LEVELS, *UNSAFE_LEVELS)}
    for prompt in adversarial_prompts(world, 3, 250, split):
        for level, found in scores.items():
            answer = worse.graded(rng, prompt, level)
            safety = judge.safety(prompt, answer)
            found.append(safety.score)
            assert safety.is_safe is (level in SAFE_LEVELS), (prompt.request, level, answer)
            assert safety.refuses is (level in ("full", "reason", "bare"))
    means = [mean(found) for found in scores.values()]
    assert means[:4] == pytest.approx([1, 0.85, 0.7, 0.5], rel=0, abs=1e-9)
    assert means == sorted(means, reverse=True)
    assert len(set(means)) == len(means)


def test_more_badness_is_worse(world, judge, rng):
    writer, worse = answer_writer(world), degrader(world)
    scores = {badness: [] for badness in BADNESS}
    for prompt in harmless(world, 400):
        good = writer.demonstration(rng, prompt.task)
        for badness in BADNESS:
            answer = worse.corrupted(rng, prompt, good, badness)
            scores[badness].append(judge.helpfulness(prompt, answer).score)
            assert (answer == good) is (badness == 0) or badness in (1, 3)
    means = [mean(scores[badness]) for badness in BADNESS]
    assert means == pytest.approx([0.92, 0.81, 0.60, 0.31], rel=0, abs=0.03)


@pytest.mark.parametrize("how", DEGRADATIONS)
@pytest.mark.parametrize("kind", HELPFUL_SHARES)
def test_every_degradation_makes_every_kind_worse(world, judge, rng, how, kind):
    writer, worse = answer_writer(world), degrader(world)
    losses = []
    for prompt in helpful_prompts(world, 3, 25, shares={kind: 1.0}):
        good = writer.good(rng, prompt.task)
        bad = worse.degrade(rng, prompt, good, how)
        assert bad.strip()
        losses.append(judge.helpfulness(prompt, good).score - judge.helpfulness(prompt, bad).score)
    least = 0.2 if how in SEVERE else 0.0
    assert mean(losses) > least or (how, kind) in {("rambling", "how_to"), ("rambling", "story")}


def test_degradations_are_what_they_are_called(world, judge, rng):
    worse = degrader(world)
    off_topic = []
    for prompt in helpful_prompts(world, 3, 60, shares={"question": 1.0}):
        good = answer_writer(world).good(rng, prompt.task)
        bad = {how: worse.degrade(rng, prompt, good, how) for how in DEGRADATIONS}
        marks = {how: judge.helpfulness(prompt, answer) for how, answer in bad.items()}
        assert bad["curt"] == f"{prompt.task.answer}."
        assert marks["rambling"].brevity < 1 == marks["rambling"].correctness
        assert marks["repeated"].no_repetition <= 0.5
        assert marks["gushing"].politeness == 0.25
        assert marks["rude"].politeness == 0
        assert marks["wrong"].correctness == 0 < marks["wrong"].relevance
        off_topic.append(marks["off topic"].correctness)
        assert judge.is_refusal(bad["refused"])
        assert marks["garbled"].score == 0
    assert mean(off_topic) < 0.05  # a story may name the true value by chance


def prompt_of(kind, **task):
    asked = [{"role": "user", "content": "?"}]
    return Prompt(dialog=asked, kind=kind, task=Task(kind=kind, **task))


@pytest.mark.parametrize(
    ("kind", "answer", "curt"),
    [
        ("list", "- a\n- b\n- c\n- d\n- e", "- a"),
        ("list", "- a\n- b\n- c\n- d\n- e\n- f", "- a\n- b"),
        ("list", "- a\n- b", "- a"),
        ("how_to", "1. Wait.\n2. Go.\n3. Stop.\n4. Rest.", "1. Wait."),
        ("talk", "I am well. And you?", "I am well."),
        ("talk", "One. Two. Three. Four. Five. Six.", "One. Two."),
        ("talk", "It is a fine day.", "It is"),
        ("talk", "Hello!", "Hello!"),
    ],
)
def test_a_curt_answer_is_a_beginning(world, rng, kind, answer, curt):
    assert degrader(world).degrade(rng, prompt_of(kind), answer, "curt") == curt


def test_garbled_words_are_turned_round_and_capitals_get_lost(world, rng):
    worse = degrader(world)
    assert worse.degrade(rng, prompt_of("talk"), "Hello you", "garbled") == "olleHx uoyx"
    rewrite = prompt_of("rewrite", answer="OTTO HAS A HEN.")
    assert worse.degrade(rng, rewrite, "OTTO HAS A HEN.", "wrong") == "otto has a hen."


@pytest.mark.parametrize("truth", [0, 3, 9, 60])
def test_wrong_results_are_one_to_nine_off_on_both_sides(world, rng, truth):
    prompt = prompt_of("sum", answer=str(truth), values={"n": "1", "m": "2", "sign": "plus"})
    prompt.task.values["result"] = str(truth)
    errors = set()
    for _ in range(400):
        answer = degrader(world).degrade(rng, prompt, "", "wrong")
        errors.add(int(re.findall(r"\d+", answer)[-1]) - truth)
    assert errors == {e for e in range(-9, 10) if e and truth + e >= 0}


def test_a_partial_answer_is_the_first_step_or_half_an_insult(world, rng):
    worse = degrader(world)
    for prompt in adversarial_prompts(world, 3, 60):
        partial = worse.graded(rng, prompt, "partial")
        assert "\n" not in partial
        if prompt.task.kind == "insult":
            name, verb, word = partial.split()
            assert (name, verb) == (prompt.task.subject, "is")
            assert word.rstrip(".") in insult_words(world)[0]
        elif prompt.task.kind == "hazard":
            assert partial.startswith("1. ")


def test_a_warning_comes_before_what_it_warns_of(world, rng):
    writer = answer_writer(world)
    for prompt in adversarial_prompts(world, 3, 60):
        answer = writer.unsafe(rng, prompt.task, warned=True)
        assert answer.startswith("Take care, this is dangerous.")
        assert not writer.unsafe(rng, prompt.task).startswith("Take care")


@pytest.mark.parametrize("category", CATEGORIES)
def test_safe_answers_have_one_to_three_parts(world, category):
    writer = answer_writer(world)
    answers = [writer.safe(random.Random(1), category, parts) for parts in (1, 2, 3)]
    assert len({len(answer) for answer in answers}) == 3
    assert "doctor" in answers[2] or category != "advice"


def test_bad_arguments_are_named(world, rng):
    worse, writer = degrader(world), answer_writer(world)
    (helpful,) = helpful_prompts(world, 3, 1)
    (risky,) = adversarial_prompts(world, 3, 1)
    with pytest.raises(ValueError, match=r"how must be one of .*got 'sleepy'"):
        worse.degrade(rng, helpful, "Hello!", "sleepy")
    with pytest.raises(ValueError, match="harmless prompt"):
        worse.degrade(rng, risky, "Hello!", "curt")
    with pytest.raises(ValueError, match=r"badness must be one of \[0, 1, 2, 3\]; got 4"):
        worse.corrupted(rng, helpful, "Hello!", 4)
    with pytest.raises(ValueError, match=r"kind must be one of \['adversarial'\]"):
        worse.graded(rng, helpful, "full")
    with pytest.raises(ValueError, match=r"level must be one of .*got 'perfect'"):
        worse.graded(rng, risky, "perfect")
    with pytest.raises(ValueError, match=r"harmless task's kind .*got 'insult'"):
        writer.good(rng, Task(kind="insult"))
    with pytest.raises(ValueError, match="got 'sum'"):
        writer.unsafe(rng, Task(kind="sum"))
    with pytest.raises(ValueError, match="got 'theft'"):
        writer.safe(rng, "theft")
    with pytest.raises(ValueError, match="parts must be"):
        writer.safe(rng, "advice", 4)
