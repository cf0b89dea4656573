"""Numbers with their uncertainty: intervals and tests, all from scipy.

Every function returns an `Estimate`, alone or inside a result. Intervals cover 95 % unless said
otherwise. What is resampled or repeated is the caller's choice (seeds, items, prompts), and the
interval speaks about exactly that source of variation.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit, logit


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
class Difference:
    """The mean of paired differences and the two-sided p-value of `no difference`."""

    estimate: Estimate
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Equivalence:
    """The outcome of two one-sided tests. `estimate` holds the 1 - 2 * alpha interval."""

    estimate: Estimate
    margin: float
    alpha: float
    p_value: float

    @property
    def holds(self) -> bool:
        """Whether the difference is shown to lie within the margin.

        False does not show that it lies outside.
        """
        return self.p_value < self.alpha


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordering:
    """The share of rows in the declared order, and how likely chance alone does as well."""

    estimate: Estimate
    chance: float
    """Share of rows in order if every order were equally likely: 1 / k!."""
    p_value: float


def proportion(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Return a share with Wilson's interval, whose coverage is right on average."""
    return _share(successes, n, confidence, "wilson")


def proportion_exact(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Return a share with Clopper and Pearson's interval, which never covers too rarely."""
    return _share(successes, n, confidence, "exact")


def _share(successes: int, n: int, confidence: float, method: str) -> Estimate:
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"a share needs n of at least 1 and 0 <= successes <= n; got {successes} of {n}. "
            "Give the counts, not the share."
        )
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method)
    return Estimate(value=successes / n, low=float(interval.low), high=float(interval.high), n=n)


def shares(hits: Iterable[tuple[str, bool]]) -> dict[str, Estimate]:
    """Return the share of hits of each group that occurs, by name, with Wilson's interval."""
    groups: dict[str, list[bool]] = {}
    for name, hit in hits:
        groups.setdefault(name, []).append(hit)
    return {name: proportion(sum(group), len(group)) for name, group in sorted(groups.items())}


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, bounds: tuple[float, float] | None = None
) -> Estimate:
    """Return the mean with Student's t interval.

    Equal values give an interval of zero width: the measurement did not vary.

    Args:
        values: One a seed or an item, two or more.
        confidence: How often such intervals cover the truth.
        bounds: What no value can exceed, (0, 1) for a share and (-1, 1) for a correlation. The
            interval is then made on the logit scale (of a correlation: Fisher's z) and never
            leaves them.
    """
    data = _checked(values, "values")
    mean, error = float(data.mean()), _standard_error(data)
    half = float(stats.t.ppf((1 + confidence) / 2, data.size - 1)) * error
    low, high = mean - half, mean + half
    if bounds is not None and half:
        low, high = _inside(data, mean, half, bounds)
    return Estimate(value=mean, low=low, high=high, n=data.size)


def _inside(
    data: np.ndarray, mean: float, half: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Return mean -+ half as it comes back from the logit scale of a range."""
    lowest, highest = bounds
    if not lowest <= data.min() <= data.max() <= highest:
        raise ValueError(
            f"values must lie within their bounds {bounds}; got {data.min()} to {data.max()}."
        )
    width = highest - lowest
    share = (mean - lowest) / width
    half /= width * share * (1 - share)  # over the derivative, so values on a bound do no harm
    low, high = expit(logit(share) + np.array([-half, half]))
    return lowest + width * float(low), lowest + width * float(high)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Difference:
    """Return the mean of a - b over pairs (one seed or one item), by the paired t-test.

    `bounds` are those of a difference, (-1, 1) for one of two shares; see `mean_interval`.
    """
    differences = _differences(a, b)
    estimate = mean_interval(differences.tolist(), confidence, bounds)
    t = _t_statistic(estimate.value, _standard_error(differences))
    return Difference(estimate=estimate, p_value=float(2 * stats.t.sf(abs(t), estimate.n - 1)))


def equivalent(
    a: Sequence[float], b: Sequence[float], margin: float, alpha: float = 0.05
) -> Equivalence:
    """Test whether the mean of a - b over pairs lies within +-margin (two one-sided t-tests).

    A large p-value of an ordinary test is no evidence for `the same`; this is. The test holds
    exactly when the 1 - 2 * alpha interval lies inside the margin.
    """
    if not margin > 0:
        raise ValueError(
            f"margin must be positive; got {margin}. Declare the largest difference that would "
            "not matter, in the unit of the values."
        )
    differences = _differences(a, b)
    estimate = mean_interval(differences.tolist(), confidence=1 - 2 * alpha)
    error = _standard_error(differences)
    nearest = margin - abs(estimate.value)  # distance to the closer border, negative outside
    p_value = float(stats.t.sf(_t_statistic(nearest, error), estimate.n - 1))
    return Equivalence(estimate=estimate, margin=margin, alpha=alpha, p_value=p_value)


def bootstrap_mean(
    values: Sequence[float], seed: int, confidence: float = 0.95, n_resamples: int = 9_999
) -> Estimate:
    """Return the mean with a bootstrap interval, for skewed values; 20 or more are wanted."""
    data = _checked(values, "values")
    value = float(data.mean())
    if np.ptp(data) == 0:
        return Estimate(value=value, low=value, high=value, n=data.size)
    return _bootstrap((data,), np.mean, value, seed, confidence, n_resamples)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return sum(numerator) / sum(denominator) with a 95 % bootstrap interval over documents.

    With nats and tokens it is the loss per token; with nats and characters, per character,
    which compares models whose tokenizers differ.
    """
    value = float(numerator.sum() / denominator.sum())
    if np.allclose(numerator, value * denominator, rtol=1e-12, atol=0):  # one document, too
        return Estimate(value=value, low=value, high=value, n=len(numerator))
    return _bootstrap((numerator, denominator), _ratio, value, seed, 0.95, 999)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, axis: int = -1) -> Any:
    return numerator.sum(axis=axis) / denominator.sum(axis=axis)


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
    data: tuple[np.ndarray, ...],
    statistic: Callable[..., Any],
    value: float,
    seed: int,
    confidence: float,
    n_resamples: int,
) -> Estimate:
    """Resample observations: the bias-corrected and accelerated interval."""
    result = stats.bootstrap(
        data,
        statistic,
        paired=len(data) > 1,
        confidence_level=confidence,
        n_resamples=n_resamples,
        batch=1000,  # bounds the memory, and changes no number
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Estimate(value=value, low=float(low), high=float(high), n=len(data[0]))


def ordering(rows: Sequence[Sequence[float]], confidence: float = 0.95) -> Ordering:
    """Return the share of rows that strictly increase, with Clopper and Pearson's interval.

    One row holds one seed's values in the order that was declared before the run; negate them to
    declare a decrease. The p-value is that of at least as many rows in order by chance.
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths[0] < 2:
        raise ValueError(
            f"ordering needs one row per seed, all of one length of at least 2; got {len(rows)} "
            f"rows of lengths {lengths}. Give every seed the same settings."
        )
    for index, row in enumerate(rows):
        _checked(row, f"row {index}")
    in_order = sum(bool(np.all(np.diff(row) > 0)) for row in rows)
    chance = 1 / math.factorial(lengths[0])
    test = stats.binomtest(in_order, len(rows), chance, alternative="greater")
    return Ordering(
        estimate=proportion_exact(in_order, len(rows), confidence),
        chance=chance,
        p_value=float(test.pvalue),
    )


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


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    if len(a) != len(b):
        raise ValueError(
            f"paired values must have the same length; got {len(a)} and {len(b)}. Pair them by "
            "seed or by item first."
        )
    return _checked(a, "the first values") - _checked(b, "the second values")


def _standard_error(data: np.ndarray) -> float:
    # Equal numbers can have a mean that is off by one rounding, so look at the range first.
    return float(stats.sem(data)) if np.ptp(data) > 0 else 0.0


def _t_statistic(distance: float, error: float) -> float:
    if error > 0:
        return distance / error
    return math.copysign(math.inf, distance) if distance else 0.0
