import math

import pytest

from llama2_lib.world.pairs import (
    GRADE_FROM,
    GRADES,
    TAU,
    Annotator,
    bayes_accuracy,
    expected_agreement,
    grade_of,
    preference_probability,
)

N = 20_000


def preferred(gap, tau, n=N, name="first"):
    annotator = Annotator(3, name, tau)
    return sum(annotator.compare(gap).prefers_first for _ in range(n)) / n


@pytest.mark.parametrize("gap", [-0.4, -0.1, 0.0, 0.05, 0.3])
def test_choices_follow_bradley_terry(gap):
    expected = 1 / (1 + math.exp(-gap / 0.2))
    assert preference_probability(gap, 0.2) == pytest.approx(expected, rel=1e-12, abs=0)
    assert preferred(gap, 0.2) == pytest.approx(expected, rel=0, abs=0.015)  # four sigma


def test_grades_by_hand():
    gaps = (0.9, 0.6, 0.59, 0.35, 0.34, 0.15, 0.14, 0.0)
    places = (0, 0, 1, 1, 2, 2, 3, 3)
    assert [grade_of(gap) for gap in gaps] == [GRADES[place] for place in places]
    assert [grade_of(-gap) for gap in gaps] == [grade_of(gap) for gap in gaps]
    assert list(GRADE_FROM) == sorted(GRADE_FROM, reverse=True)


def test_wider_gaps_get_clearer_grades():
    means = []
    for gap in (0.0, 0.1, 0.3, 0.5, 0.8):
        annotator = Annotator(3)
        places = [GRADES.index(annotator.compare(gap).grade) for _ in range(2000)]
        means.append(sum(places) / len(places))
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 1.5


def test_clearer_grades_are_righter():
    annotator = Annotator(3)
    right = {grade: [] for grade in GRADES}
    for index in range(N):
        verdict = annotator.compare(0.4 * (index % 3) / 2)
        if index % 3:
            right[verdict.grade].append(verdict.prefers_first)
    accuracies = [sum(found) / len(found) for found in right.values()]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.95 > 0.75 > accuracies[-1]


def test_annotators_are_seeded_and_named():
    def verdicts(seed, name):
        annotator = Annotator(seed, name)
        return [annotator.compare(0.1) for _ in range(200)]

    assert verdicts(1, "first") == verdicts(1, "first")
    assert verdicts(1, "first") != verdicts(1, "second")
    assert verdicts(1, "first") != verdicts(2, "first")


def test_without_noise_the_better_answer_wins_and_ties_are_tossed():
    assert preferred(0.01, 0.0, 500) == 1
    assert preferred(-0.01, 0.0, 500) == 0
    assert preferred(0.0, 0.0, 4000) == pytest.approx(0.5, rel=0, abs=0.04)
    assert Annotator(1, tau=0.0).compare(0.2).grade == "slightly better"


GAPS = [-0.7, -0.35, -0.1, 0.0, 0.02, 0.2, 0.5]


@pytest.mark.parametrize("tau", [0.05, TAU, 0.6])
def test_the_ceiling_and_agreement_fit_a_simulation(tau):
    first, second = Annotator(5, "first", tau), Annotator(5, "second", tau)
    right = agreed = 0.0
    for index in range(28_000):
        gap = GAPS[index % len(GAPS)]
        one, two = first.compare(gap).prefers_first, second.compare(gap).prefers_first
        right += 0.5 if gap == 0 else one == (gap > 0)
        agreed += one == two
    assert right / 28_000 == pytest.approx(bayes_accuracy(GAPS, tau), rel=0, abs=0.012)
    assert agreed / 28_000 == pytest.approx(expected_agreement(GAPS, tau), rel=0, abs=0.012)


def test_more_noise_lowers_ceiling_and_agreement():
    taus = (0.0, 0.05, 0.15, 0.5, 5.0)
    ceilings = [bayes_accuracy(GAPS, tau) for tau in taus]
    agreements = [expected_agreement(GAPS, tau) for tau in taus]
    for values in (ceilings, agreements):
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.53
    assert ceilings[0] == pytest.approx(6.5 / 7, rel=1e-12, abs=0)
    assert all(a < c for a, c in zip(agreements[1:], ceilings[1:], strict=True))


def test_ceilings_by_hand():
    assert bayes_accuracy([0.0, 0.0], 0.3) == 0.5
    assert bayes_accuracy([0.3], 0.3) == pytest.approx(0.7310585786300049, rel=1e-12, abs=0)
    assert bayes_accuracy([-0.3], 0.3) == bayes_accuracy([0.3], 0.3)
    assert bayes_accuracy([50.0], 0.001) == 1  # no overflow
    p = 0.7310585786300049
    assert expected_agreement([0.3], 0.3) == pytest.approx(p * p + (1 - p) ** 2, rel=1e-12, abs=0)


def test_labels_err_at_the_given_rate():
    annotator = Annotator(1)
    assert all(annotator.label(True, 0.0) for _ in range(50))
    assert not any(annotator.label(True, 1.0) for _ in range(50))
    wrong = sum(annotator.label(False, 0.1) for _ in range(5000)) / 5000
    assert wrong == pytest.approx(0.1, rel=0, abs=0.02)


def test_bad_numbers_are_named():
    for tau in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="tau must be 0 or more"):
            Annotator(0, tau=tau)
    with pytest.raises(ValueError, match="a gap must be a finite"):
        Annotator(0).compare(math.nan)
    with pytest.raises(ValueError, match="tau must be 0 or more; got -1"):
        preference_probability(0.2, -1.0)
    for ceiling in (bayes_accuracy, expected_agreement):
        with pytest.raises(ValueError, match="at least one"):
            ceiling([], 0.1)
