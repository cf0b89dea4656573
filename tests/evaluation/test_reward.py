"""Measures of a reward model, against counts by hand and sampled truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit

from llama2_lib.evaluation.reward import (
    accuracy,
    accuracy_by_grade,
    best_of_n,
    best_of_n_interval,
    best_of_n_kl,
    calibration,
    detection,
)
from llama2_lib.evaluation.statistics import proportion

GRADES = ["better", "slightly better", "better", "slightly better", "better"]
CHOSEN = np.array([2.0, 0.0, 1.0, 3.0, 1.0])
REJECTED = np.array([1.0, 1.0, 1.0, 0.0, 0.0])


def test_accuracy_by_grade_counts_a_tie_half():
    by_grade = accuracy_by_grade(CHOSEN, REJECTED, GRADES)
    assert {grade: (e.value, e.n) for grade, e in by_grade.items()} == {
        "better": (2.5 / 3, 3),
        "slightly better": (0.5, 2),
        "all": (3.5 / 5, 5),
    }
    for e, hits in ((by_grade["all"], 3), (by_grade["better"], 2)):  # half a tie is rounded down
        assert (e.low, e.high) == (proportion(hits, e.n).low, proportion(hits, e.n).high)
    even = accuracy(np.array([1.0, 1.0, 2.0, 0.0]), np.ones(4))
    assert (even.value, even.low) == (0.5, proportion(2, 4).low)
    ties = np.ones(10)
    assert accuracy(ties, ties).value == 0.5
    assert accuracy(CHOSEN, REJECTED).value + accuracy(REJECTED, CHOSEN).value == 1.0


def test_the_interval_narrows_with_the_number_of_pairs():
    source = np.random.default_rng(0)
    widths = []
    for n in (100, 10_000):
        gap = source.normal(0.5, 1.0, n)
        estimate = accuracy(gap, np.zeros(n))
        assert estimate.low < 0.6915 < estimate.high  # Phi(0.5)
        widths.append(estimate.high - estimate.low)
    assert widths[1] < widths[0] / 8


def test_detection_by_hand():
    scores = np.array([logit(p) for p in (0.1, 0.14, 0.16, 0.4, 0.6, 0.9)])
    safe = np.array([False, True, False, False, True, True])
    low, half = detection(scores, safe, 0.15), detection(scores, safe, 0.5)
    assert (low.precision.value, low.recall.value) == (0.5, 1 / 3)
    assert (half.precision.value, half.recall.value) == (0.75, 1.0)
    assert low.auc == half.auc == 7 / 9  # of nine pairs the safe 0.14 loses two
    assert detection(scores, safe, 0.05).precision is None
    on = detection(np.array([0.0, 0.0, -1.0]), np.array([True, False, False]))
    assert (on.precision.n, on.recall.value) == (1, 0.5)  # what stands on the threshold is safe


def test_a_shift_moves_what_the_threshold_finds_and_not_the_ranking():
    source = np.random.default_rng(1)
    safe = source.random(500) < 0.6
    scores = source.normal(2.0 * safe - 1.0, 1.0)
    here, there = detection(scores, safe), detection(scores + 3, safe)
    assert here.auc == there.auc
    assert here.recall.value > 0.8 > 0.2 > there.recall.value


def test_calibration_rises_for_an_informed_model_and_is_flat_for_a_blind_one():
    source = np.random.default_rng(2)
    gold = source.random(1400)
    informed = calibration(logit(0.1 + 0.8 * gold), gold)
    assert len(informed) == 7
    means = [estimate.value for _, estimate in informed]
    assert means == sorted(means)
    for mean_gold, estimate in informed:
        assert abs(estimate.value - (0.1 + 0.8 * mean_gold)) < 1e-9
        assert estimate.n == 200
    blind = [e.value for _, e in calibration(source.normal(size=1400), gold)]
    assert max(blind) - min(blind) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(np.array([]), np.array([])), "n of at least 1"),
        (lambda: detection(CHOSEN, np.ones(5, bool)), "got 5 safe of 5"),
        (lambda: detection(CHOSEN, CHOSEN > 1, 1.0), "between 0 and 1; got 1.0"),
        (lambda: calibration(CHOSEN, CHOSEN, bins=3), "need 6 values or more; got 5"),
        (lambda: best_of_n_interval(np.zeros((2, 3)), n=4), "n must lie in 1...3"),
        (lambda: best_of_n_kl(0), "at least 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def by_enumeration(proxy, value, n):
    total = 0.0
    subsets = list(itertools.combinations(range(len(proxy)), n))
    for subset in subsets:
        best = max(subset, key=lambda i: (proxy[i], -i))  # the earliest of equals
        total += value[best]
    return total / len(subsets)


@pytest.mark.parametrize("ties", [False, True])
def test_it_is_the_mean_over_all_subsets(ties):
    proxy, value = draw(3, 6), draw(3, 6, seed=1)
    if ties:
        proxy = proxy.round(0)
        assert len(np.unique(proxy[0])) < 6
    got = best_of_n(proxy, value)
    for row, n in itertools.product(range(3), range(1, 7)):
        assert abs(got[row, n - 1] - by_enumeration(proxy[row], value[row], n)) < 1e-12


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_the_expected_maximum_starts_at_the_mean_ends_at_the_maximum_and_never_falls(scores):
    curve = best_of_n(np.array([scores]))[0]
    assert abs(curve[0] - np.mean(scores)) < 1e-9
    assert abs(curve[-1] - max(scores)) < 1e-9
    assert (np.diff(curve) > -1e-9).all()


def test_maxima_of_normal_numbers_are_those_of_the_tables():
    curve = best_of_n(draw(4000, 100)).mean(axis=0)
    known = {2: 0.5642, 4: 1.0294, 8: 1.4236, 16: 1.7660, 32: 2.0697, 64: 2.3437, 100: 2.5076}
    for n, wanted in known.items():
        assert abs(curve[n - 1] - wanted) < 0.025, n  # three standard errors of 4000 prompts


def test_a_useless_proxy_gains_nothing_and_a_wrong_one_loses():
    value = draw(2000, 16)
    assert abs(best_of_n(draw(2000, 16, seed=1), value)[:, -1].mean()) < 0.1
    assert best_of_n(-value, value)[:, -1].mean() < -1.6
    assert best_of_n(value)[:, -1].mean() > 1.6


def test_the_order_of_samples_and_prompts_does_not_matter():
    proxy, value = draw(4, 7), draw(4, 7, seed=1)
    wanted = best_of_n(proxy, value)
    samples, prompts = np.random.default_rng(2).permutation(7), [2, 0, 3, 1]
    got = best_of_n(proxy[prompts][:, samples], value[prompts][:, samples])
    np.testing.assert_allclose(got, wanted[prompts], rtol=0, atol=1e-12)


def test_the_divergence_is_that_of_an_enumerated_policy():
    for n in (1, 2, 3, 5):
        # A policy of 400 equally likely answers, all of different score.
        p = np.full(400, 1 / 400)
        below = np.arange(1, 401) / 400
        best = below**n - (below - 1 / 400) ** n
        exact = (best * np.log(best / p)).sum()
        assert exact <= best_of_n_kl(n) + 1e-12
        assert abs(exact - best_of_n_kl(n)) < 0.01
        # Equal scores bring best-of-N nearer to the policy: the formula is an upper bound.
        pairs = best.reshape(200, 2).sum(axis=1)
        assert (pairs * np.log(pairs * 200)).sum() <= exact + 1e-12


def test_with_two_answers_the_better_one_comes_unless_all_miss_it():
    hits = np.random.default_rng(0).random((20_000, 8)) < 0.3
    curve = best_of_n(hits.astype(float)).mean(axis=0)
    for n in (1, 3, 8):
        assert abs(curve[n - 1] - (1 - 0.7**n)) < 0.01


def test_the_interval_is_over_prompts():
    proxy = draw(200, 8)
    estimate, mean = best_of_n_interval(proxy, n=4), best_of_n(proxy)[:, 3].mean()
    assert estimate.n == 200
    assert estimate.low < mean < estimate.high
    assert math.isclose(estimate.value, mean, rel_tol=0, abs_tol=1e-12)
