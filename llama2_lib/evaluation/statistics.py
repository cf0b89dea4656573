"""Numbers with their uncertainty: intervals and tests, all from scipy.

Intervals cover 95 % unless said otherwise. What is resampled or repeated is the caller's choice
(seeds, items, prompts), and the interval speaks about exactly that source of variation.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # its parts are imported on first use: `scipy.stats` takes most of a second


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value with an interval, from `n` independent observations."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.value)
        return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tested:
    """An estimate, and how likely chance alone gives as much where there is nothing to find."""

    estimate: Estimate
    p_value: float


def proportion(successes: int, n: int, method: str = "wilson") -> Estimate:
    """Return a share with Wilson's interval, whose coverage is right on average."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"a share needs n of at least 1 and 0 <= successes <= n; got {successes} of {n}. "
            "Give the counts, not the share."
        )
    low, high = scipy.stats.binomtest(successes, n).proportion_ci(method=method)
    return Estimate(value=successes / n, low=float(low), high=float(high), n=n)


def proportion_exact(successes: int, n: int) -> Estimate:
    """Return a share with Clopper and Pearson's interval, which never covers too rarely."""
    return proportion(successes, n, method="exact")


def shares(hits: Iterable[tuple[str, bool]]) -> dict[str, Estimate]:
    """Return the share of hits of each group that occurs, by name, with Wilson's interval."""
    groups: dict[str, list[bool]] = {}
    for name, hit in hits:
        groups.setdefault(name, []).append(hit)
    return {name: proportion(sum(group), len(group)) for name, group in sorted(groups.items())}


Bounds = tuple[float, float] | None
"""What no value can exceed: (0, 1) for a share, (-1, 1) for a correlation. None: no range."""


def inside(estimate: Estimate, bounds: Bounds) -> Estimate:
    """Cut an interval where the range of what it estimates ends, which Student's t may leave.

    The truth cannot lie beyond: what is left covers it as often, and decides the same.
    """
    if bounds is None:
        return estimate
    low, high = max(estimate.low, bounds[0]), min(estimate.high, bounds[1])
    return replace(estimate, low=low, high=high)


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, bounds: Bounds = None
) -> Estimate:
    """Return the mean with Student's t interval, cut at the bounds.

    Equal values give an interval of zero width: the measurement did not vary.
    """
    data = _checked(values, "values")
    mean = float(data.mean())
    # Equal numbers can have a mean that is off by one rounding, so look at the range first.
    error = float(scipy.stats.sem(data)) if np.ptp(data) > 0 else 0.0
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, data.size - 1)) * error
    return inside(Estimate(value=mean, low=mean - half, high=mean + half, n=data.size), bounds)


def paired_difference(a: Sequence[float], b: Sequence[float], bounds: Bounds = None) -> Tested:
    """Return the mean of a - b over pairs (one seed or one item), by the paired t-test.

    The p-value is two-sided; without spread all is certain. See `mean_interval` for the bounds.
    """
    gaps = _checked(a, "the first values") - _checked(b, "the second values")
    estimate = mean_interval(gaps.tolist(), bounds=bounds)
    if np.ptp(gaps) == 0:
        return Tested(estimate=estimate, p_value=float(estimate.value == 0))
    return Tested(estimate=estimate, p_value=float(scipy.stats.ttest_1samp(gaps, 0.0).pvalue))


def bootstrap_mean(values: Sequence[float], seed: int, n_resamples: int = 9_999) -> Estimate:
    """Return the mean with a bootstrap interval, for skewed values; 20 or more are wanted."""
    data = _checked(values, "values")
    value = float(data.mean())
    if np.ptp(data) == 0:
        return Estimate(value=value, low=value, high=value, n=data.size)
    return _bootstrap((data,), np.mean, value, seed, n_resamples)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return sum(numerator) / sum(denominator) with a 95 % bootstrap interval over documents.

    With nats and tokens it is the loss per token; with nats and characters, per character,
    which compares models whose tokenizers differ.
    """
    value = float(numerator.sum() / denominator.sum())
    if np.allclose(numerator, value * denominator, rtol=1e-12, atol=0):  # one document, too
        return Estimate(value=value, low=value, high=value, n=len(numerator))
    return _bootstrap(
        (numerator, denominator), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), value,
        seed, n_resamples=999,
    )  # fmt: skip


def binned_means(
    by: np.ndarray, values: np.ndarray, bins: int, seed: int = 0
) -> list[tuple[float, Estimate]]:
    """Return the mean of `by` and of `values`, with a bootstrap, in bins of equal numbers."""
    if bins < 1 or len(by) < 2 * bins:
        raise ValueError(f"{bins} bins need {2 * bins} values or more; got {len(by)}.")
    return [
        (float(by[rows].mean()), bootstrap_mean(values[rows].tolist(), seed))
        for rows in np.array_split(np.argsort(by, kind="stable"), bins)
    ]


def _bootstrap(
    data: tuple[np.ndarray, ...], statistic: Callable[..., Any], value: float, seed: int,
    n_resamples: int,
) -> Estimate:  # fmt: skip
    """Resample observations: the bias-corrected and accelerated interval."""
    result = scipy.stats.bootstrap(
        data, statistic, paired=len(data) > 1, n_resamples=n_resamples,
        batch=1000,  # bounds the memory, and changes no number
        method="BCa",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Estimate(value=value, low=float(low), high=float(high), n=len(data[0]))


def holm(p_values: Mapping[int, float]) -> dict[int, float]:
    """Return p-values that hold for all together, by Holm's step-down rule, smallest first.

    The k-th smallest of m counts m - k + 1 times, and no value lies below one before it.
    """
    adjusted: dict[int, float] = {}
    largest = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = largest
    return adjusted


def ordering(rows: Sequence[Sequence[float]]) -> Tested:
    """Return the share of rows that strictly increase, with Clopper and Pearson's interval.

    One row holds one seed's values in the order that was declared before the run; negate them to
    declare a decrease. The p-value is that of as many rows in order if all orders, k! of k values,
    were equally likely.
    """
    [length] = {len(row) for row in rows}  # every seed has the same settings
    in_order = sum(bool(np.all(np.diff(row) > 0)) for row in rows)
    chance = 1 / math.factorial(length)
    test = scipy.stats.binomtest(in_order, len(rows), chance, alternative="greater")
    return Tested(estimate=proportion_exact(in_order, len(rows)), p_value=float(test.pvalue))


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _checked(values: Sequence[float], name: str) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size < 2:
        raise ValueError(
            f"{name} must be a list of at least 2 numbers, since one shows no spread; got shape "
            f"{data.shape}. Measure more seeds or items."
        )
    if not np.isfinite(data).all():
        index = int(np.flatnonzero(~np.isfinite(data))[0])
        raise ValueError(
            f"{name} must be finite; got {data[index]} at index {index}. Find out why that "
            "measurement failed; do not drop it."
        )
    return data
