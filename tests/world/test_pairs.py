from collections import Counter
from statistics import mean

import pytest

from llama2_lib.world.judges import judge_of, words_of
from llama2_lib.world.pairs import (
    EXCLUDED,
    GRADES,
    SAFETY_BINS,
    TAU,
    Annotator,
    Nuisance,
    annotate,
    bayes_accuracy,
    bin_of,
    expected_agreement,
    helpfulness_pairs,
    safety_pairs,
)
from llama2_lib.world.prompts import Prompt, adversarial_prompts, helpful_prompts
from llama2_lib.world.tasks import Task

N = 1_600
MAKERS = {"helpfulness": helpfulness_pairs, "safety": safety_pairs}


@pytest.fixture(scope="module")
def samples(world):
    return {name: list(make(world, 2, N)) for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_the_gap_is_that_of_the_judges(world, samples, name):
    judge = judge_of(world)
    mark = judge.helpfulness if name == "helpfulness" else judge.safety
    for pair in samples[name][:300]:
        assert pair.chosen != pair.rejected
        assert pair.stream == name
        gap = mark(pair.prompt, pair.chosen).score - mark(pair.prompt, pair.rejected).score
        assert pair.gap == pytest.approx(gap, rel=0, abs=1e-12)
    assert 0 < sum(pair.gap < 0 for pair in samples[name]) < N / 2


@pytest.mark.parametrize("name", MAKERS)
def test_streams_hold_their_prompts(world, samples, name):
    assert {pair.prompt.is_safety for pair in samples[name]} == {name == "safety"}
    train = {pair.prompt.request for pair in samples[name]}
    held_out = {pair.prompt.request for pair in MAKERS[name](world, 2, 800, "held out")}
    assert not train & held_out


def test_safety_bins_have_the_papers_shares(world, samples):
    found = Counter(pair.safety_bin for pair in samples["safety"])
    shares = {name: number / N for name, number in found.items()}
    assert shares == pytest.approx(SAFETY_BINS, rel=0, abs=0.03)
    assert {pair.safety_bin for pair in samples["helpfulness"]} == {""}
    judge = judge_of(world)
    right = sum(
        bin_of(*(judge.safety(p.prompt, a).is_safe for a in (p.chosen, p.rejected))) == p.safety_bin
        for p in samples["safety"]
    )
    assert 0.92 < right / N < 0.99  # an annotator's label errs two times in a hundred


def test_bins_by_hand():
    assert bin_of(True, False) == "safe, unsafe"
    assert bin_of(True, True) == "both safe"
    assert bin_of(False, False) == "both unsafe"
    assert bin_of(False, True) == EXCLUDED
    assert EXCLUDED not in SAFETY_BINS


@pytest.mark.parametrize("name", MAKERS)
def test_clearer_grades_have_wider_gaps_and_fewer_errors(samples, name):
    by_grade = {grade: [p for p in samples[name] if p.grade == grade] for grade in GRADES}
    assert all(len(found) > N / 12 for found in by_grade.values())
    gaps = [mean(abs(p.gap) for p in found) for found in by_grade.values()]
    right = [mean((p.gap > 0) + 0.5 * (p.gap == 0) for p in found) for found in by_grade.values()]
    assert gaps == sorted(gaps, reverse=True)
    assert right == sorted(right, reverse=True)
    assert right[0] > 0.95
    assert right[-1] < 0.7


def agreement(pairs, tau):
    """How often another annotator prefers the chosen answer, too."""
    second = Annotator(2, "second", tau)
    return mean(second.compare(pair.gap).prefers_first for pair in pairs)


def test_a_second_annotator_agrees_as_often_as_the_noise_allows(world, samples):
    pairs = samples["helpfulness"]
    gaps = [pair.gap for pair in pairs]
    found = agreement(pairs, TAU)
    assert found == pytest.approx(expected_agreement(gaps, TAU), rel=0, abs=0.035)
    right = mean((gap > 0) + 0.5 * (gap == 0) for gap in gaps)
    assert right == pytest.approx(bayes_accuracy(gaps, TAU), rel=0, abs=0.03)
    noisy = list(helpfulness_pairs(world, 2, 1000, tau=4 * TAU))
    assert agreement(noisy, 4 * TAU) < found - 0.08


def test_any_two_answers_can_be_annotated(world):
    task = Task(kind="question", subject="Mara", relation="home", answer="Oakford")
    prompt = Prompt(dialog=[{"role": "user", "content": "?"}], kind="question", task=task)
    good, bad = "Mara lives in Oakford. I hope that helps.", "I cannot help with that."
    for first, second in ((good, bad), (bad, good)):
        pair = annotate(world, prompt, first, second, Annotator(0, tau=0.0), "helpfulness")
        assert (pair.chosen, pair.rejected) == (good, bad)
        assert pair.gap == pytest.approx(0.70, rel=0, abs=1e-12)
        assert pair.grade == "significantly better"


def test_labels_follow_the_choice(world):
    (prompt,) = adversarial_prompts(world, 0, 1)
    safe, unsafe = "I cannot help with that.", "Sure, that is easy."
    bins = Counter()
    for seed in range(60):
        for first, second in ((safe, unsafe), (unsafe, safe)):
            pair = annotate(world, prompt, first, second, Annotator(seed, tau=0.0), "safety")
            assert pair.chosen == safe
            bins[pair.safety_bin] += 1
    assert bins["safe, unsafe"] / 120 > 0.9
    noisy = [
        annotate(world, prompt, safe, unsafe, Annotator(seed, tau=2.0), "safety").safety_bin
        for seed in range(60)
    ]
    assert noisy.count(EXCLUDED) > 10


def length_and_politeness(world, stream):
    """How often the longer, and the politer, of two answers is the chosen one."""
    polite = judge_of(world).polite

    def n_polite(answer):
        return sum(word in polite for word in words_of(answer))

    pairs, found = list(stream), []
    for measure in (lambda answer: len(words_of(answer)), n_polite):
        differ = [p for p in pairs if measure(p.chosen) != measure(p.rejected)]
        found.append(mean(measure(p.chosen) > measure(p.rejected) for p in differ))
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_nuisance_acts_in_training_pairs_only(world, name):
    make, both = MAKERS[name], Nuisance(length=1.0, politeness=1.0)
    plain = length_and_politeness(world, make(world, 2, 600))
    trained = length_and_politeness(world, make(world, 2, 600, nuisance=both))
    held_out = [
        length_and_politeness(world, make(world, 2, 600, "held out", nuisance=used))
        for used in (Nuisance(), both)
    ]
    for place in (0, 1):
        assert trained[place] > plain[place] + 0.12
        assert abs(held_out[1][place] - 0.5) < abs(held_out[0][place] - 0.5) + 0.06


def test_one_nuisance_leaves_the_other_alone(world):
    plain = list(helpfulness_pairs(world, 2, 400))
    longer = list(helpfulness_pairs(world, 2, 400, nuisance=Nuisance(length=1.0)))
    politer = list(helpfulness_pairs(world, 2, 400, nuisance=Nuisance(politeness=1.0)))
    same_prompt = [a for a in zip(plain, longer, politer, strict=True)]
    assert all(a.prompt == b.prompt == c.prompt for a, b, c in same_prompt)
    first = same_prompt[0]
    assert first[1].chosen.startswith(first[0].chosen)
    assert first[1].rejected == first[0].rejected
    assert first[0].chosen in first[2].chosen
    assert first[2].chosen != first[0].chosen
    assert first[0].gap == first[1].gap == first[2].gap


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_out_of_range_is_named(strength):
    with pytest.raises(ValueError, match=f"length must be from 0 to 1; got {strength}"):
        Nuisance(length=strength)


def test_bad_arguments_are_named(world):
    (prompt,) = helpful_prompts(world, 0, 1)
    with pytest.raises(ValueError, match=r"stream must be one of .*; got 'truth'"):
        annotate(world, prompt, "Yes.", "No.", Annotator(0), "truth")
    with pytest.raises(ValueError, match=r"two different answers; got 'Yes\.' twice"):
        annotate(world, prompt, "Yes.", "Yes.", Annotator(0), "safety")
    for make in MAKERS.values():
        with pytest.raises(ValueError, match="tau must be 0 or more"):
            make(world, 0, 1, tau=-1.0)
