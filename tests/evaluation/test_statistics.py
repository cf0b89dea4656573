"""Intervals and tests against values worked out by hand, and their coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from llama2_lib.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    holm,
    mean_interval,
    ordering,
    paired_difference,
    proportion,
    proportion_exact,
    ratio_interval,
)

EXACT = {"rtol": 0, "atol": 1e-12}


def bounds_of(estimate):
    return np.array([estimate.value, estimate.low, estimate.high])


def test_wilson_by_its_formula():
    z, n, p = 1.959963984540054, 25, 8 / 25
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    estimate = proportion(8, 25)
    np.testing.assert_allclose(bounds_of(estimate), [p, centre - half, centre + half], **EXACT)
    assert estimate.n == 25


def test_clopper_pearson_by_its_closed_forms():
    # With no success in n the upper bound solves (1 - p)^n = 0.025.
    low = 0.025 ** (1 / 7)
    none, all_ = bounds_of(proportion_exact(0, 7)), bounds_of(proportion_exact(7, 7))
    np.testing.assert_allclose(none, [0, 0, 1 - low], rtol=0, atol=1e-9)
    np.testing.assert_allclose(all_, [1, low, 1], rtol=0, atol=1e-9)
    assert proportion_exact(3, 9).low < proportion(3, 9).low
    assert proportion_exact(3, 9).high > proportion(3, 9).high


@pytest.mark.parametrize("share", [proportion, proportion_exact])
@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_counts_are_refused(share, successes, n):
    with pytest.raises(ValueError, match=f"got {successes} of {n}. Give the counts"):
        share(successes, n)


def test_mean_interval_by_hand():
    # mean 3, standard deviation sqrt(2.5), t(4; 0.975) = 2.7764451052
    half = 2.7764451051977987 * math.sqrt(2.5 / 5)
    wide = bounds_of(mean_interval([1, 2, 3, 4, 5]))
    np.testing.assert_allclose(wide, [3, 3 - half, 3 + half], **EXACT)
    narrower = mean_interval([1, 2, 3, 4, 5], confidence=0.5)
    assert 3 - half < narrower.low < 3 < narrower.high < 3 + half


def test_equal_values_have_no_width():
    mean = float(np.mean([0.1] * 3))  # off by one rounding
    assert mean_interval([0.1] * 3) == Estimate(value=mean, low=mean, high=mean, n=3)
    assert mean_interval([1.0, 1.0], bounds=(0, 1)) == Estimate(value=1, low=1, high=1, n=2)
    assert bootstrap_mean([2.0, 2.0, 2.0], seed=1) == Estimate(value=2.0, low=2.0, high=2.0, n=3)


def test_an_interval_ends_where_the_range_of_what_it_measures_does():
    values = [0.9, 0.99, 1.0]  # a recall
    plain, cut = mean_interval(values), mean_interval(values, bounds=(0, 1))
    assert plain.high > cut.high == 1.0
    assert (cut.value, cut.low, cut.n) == (plain.value, plain.low, plain.n)
    assert mean_interval([-v for v in values], bounds=(-1, 0)).low == -1.0
    pairs = [0.9, 0.8, 0.95], [0.0, 0.1, 0.0]
    bounded, free = paired_difference(*pairs, bounds=(-1, 1)), paired_difference(*pairs)
    assert bounded.estimate.high == 1 < free.estimate.high
    assert bounded.p_value == free.p_value


@pytest.mark.parametrize("function", [mean_interval, lambda values: bootstrap_mean(values, seed=0)])
@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_value_shows_no_spread(function, values):
    with pytest.raises(ValueError, match=r"at least 2 numbers.*Measure more"):
        function(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(bad):
    with pytest.raises(ValueError, match="at index 1"):
        mean_interval([1.0, bad, 2.0])
    with pytest.raises(ValueError, match="the second values must be finite"):
        paired_difference([1.0, 2.0], [1.0, bad])


def test_paired_difference_agrees_with_scipys_own_test():
    a, b = [3.1, 2.9, 3.4, 3.0, 3.3], [2.8, 3.0, 3.0, 2.7, 3.1]
    ours, theirs = paired_difference(a, b), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(
        bounds_of(ours.estimate), [0.22, interval.low, interval.high], rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(ours.p_value, theirs.pvalue, rtol=1e-9, atol=0)
    assert paired_difference(b, a).estimate.value < 0
    # Pairing matters: unpaired, the same numbers are far less certain.
    assert ours.p_value < 0.7 * stats.ttest_ind(a, b).pvalue


def test_differences_without_spread_are_certain():
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).p_value == 0.0
    assert paired_difference([2.0, 3.0], [2.0, 3.0]).p_value == 1.0
    with pytest.raises(ValueError, match="broadcast"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_ordering_counts_rows_in_the_declared_order():
    rows = [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [0.5, 0.6, 0.9], [1.0, 1.0, 2.0]]
    result = ordering(rows)
    assert result.estimate == proportion_exact(2, 4)
    # P(at least 2 of 4 at 1/6) by hand
    expected = 1 - (5 / 6) ** 4 - 4 * (1 / 6) * (5 / 6) ** 3
    np.testing.assert_allclose(result.p_value, expected, rtol=1e-9, atol=0)
    # few rows in order are no evidence for the order
    rows = [[2.0, 1.0]] * 7 + [[1.0, 2.0]]
    np.testing.assert_allclose(ordering(rows).p_value, 1 - 0.5**8, rtol=1e-9, atol=0)


def test_bootstrap_is_seeded_and_near_the_t_interval_on_bell_shaped_values():
    values = np.random.default_rng(3).normal(5, 2, 80).tolist()
    first = bootstrap_mean(values, seed=0)
    assert first == bootstrap_mean(values, seed=0)
    assert first != bootstrap_mean(values, seed=1)
    by_t = bounds_of(mean_interval(values))
    np.testing.assert_allclose(bounds_of(first), by_t, rtol=0, atol=0.08)


def test_the_bootstrap_leans_to_the_long_tail():
    # BCa leans by a factor of 1.9 here, the plain percentile interval by 1.2.
    tokens, nats = np.full(40, 2), np.random.default_rng(4).lognormal(0, 1, 40)
    ratio, mean = ratio_interval(nats, tokens), bootstrap_mean((nats / 2).tolist(), seed=0)
    for estimate in (ratio, mean):
        assert estimate.high - estimate.value > 1.6 * (estimate.value - estimate.low)
    mean = bootstrap_mean((nats / 2).tolist(), seed=0, n_resamples=999)
    np.testing.assert_allclose(bounds_of(ratio), bounds_of(mean), **EXACT)


def test_the_ratio_is_of_sums_and_not_the_mean_of_ratios():
    nats, tokens = np.array([10.0, 2.0, 9.0]), np.array([2, 4, 9])
    result = ratio_interval(nats, tokens)
    assert result.value == pytest.approx(21 / 15, rel=1e-12, abs=0)
    assert result.value != pytest.approx((nats / tokens).mean(), rel=1e-3, abs=0)
    assert result.n == 3
    assert 0.5 <= result.low <= result.value <= result.high <= 5.0
    assert result == ratio_interval(nats, tokens, seed=0)
    many = np.arange(40.0), np.arange(40) % 7 + 1
    assert ratio_interval(*many, seed=0).low != ratio_interval(*many, seed=1).low
    for same in (tokens * 0.3, tokens * 0.0):
        assert ratio_interval(same, tokens).low == ratio_interval(same, tokens).high
    assert ratio_interval(nats[:1], tokens[:1]) == Estimate(value=5.0, low=5.0, high=5.0, n=1)


def covered(estimate, truth):
    return estimate.low <= truth <= estimate.high


@pytest.mark.slow
def test_coverage_of_the_intervals():
    source = np.random.default_rng(20)
    runs = 1500
    t = sum(covered(mean_interval(source.normal(1, 3, 5).tolist()), 1) for _ in range(runs))
    counts = source.binomial(30, 0.1, size=runs).tolist()
    wilson = sum(covered(proportion(k, 30), 0.1) for k in counts)
    exact = sum(covered(proportion_exact(k, 30), 0.1) for k in counts)
    high = source.beta(18, 2, size=(runs, 5)).tolist()  # mean 0.9
    shares = sum(covered(mean_interval(row, bounds=(0, 1)), 0.9) for row in high)
    # 1500 runs at 95 % scatter by 0.6 points; a normal interval in place of t would cover 88 %.
    assert 0.93 < t / runs < 0.97
    assert 0.93 < shares / runs < 0.97
    assert 0.93 < wilson / runs < 0.99
    assert exact / runs > 0.95


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    source = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        tokens = source.integers(5, 60, 80)
        nats = 2.5 * tokens + source.normal(0.0, 8.0, 80)
        result = ratio_interval(nats, tokens, seed=trial)
        hits += covered(result, 2.5)
        assert 0 < result.high - result.low < 0.25
    assert 0.88 <= hits / 200 <= 0.99


def test_a_difference_is_found_by_chance_as_often_as_declared():
    source = np.random.default_rng(21)
    runs = 1500
    false_alarms = sum(
        paired_difference(*source.normal(0, 1, (2, 6)).tolist()).p_value < 0.05 for _ in range(runs)
    )
    assert 0.03 < false_alarms / runs < 0.07


def test_an_estimate_prints_its_interval():
    assert str(Estimate(value=0.32, low=0.17214, high=0.51592, n=25)) == "0.32 [0.1721, 0.5159]"
    assert str(Estimate(value=327680, low=327680, high=327680, n=2)) == "327,680"
    assert str(Estimate(value=1200.4, low=980.26, high=1420.5, n=3)) == "1,200 [980.3, 1,420]"


def test_holm_is_stepwise_and_never_falls():
    # by hand: 0.01 * 3; 0.03 * 2; then 0.04 * 1 may not fall below 0.06
    adjusted = holm({7: 0.04, 1: 0.01, 4: 0.03})
    assert adjusted == pytest.approx({1: 0.03, 4: 0.06, 7: 0.06}, rel=1e-12)
    assert list(adjusted) == [1, 4, 7]
    assert holm({1: 0.9, 2: 0.8}) == {2: 1.0, 1: 1.0}
    assert holm({}) == {}
