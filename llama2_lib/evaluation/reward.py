"""How good a reward model is, and what the best of N samples is worth by it.

Paper sections 3.2.2 (tables 7 and 8, figure 29), A.3.4 (table 29) and 3.2.3 (figures 7 and 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit, gammaln

from llama2_lib.evaluation import statistics
from llama2_lib.evaluation.statistics import Estimate, bootstrap_mean, proportion


def accuracy(
    chosen: Float[np.ndarray, " pairs"], rejected: Float[np.ndarray, " pairs"]
) -> Estimate:
    """Return how often the chosen answer scores higher, with Wilson's interval over pairs.

    A tie counts half; of an odd number of ties one half is rounded down. No margin is used:
    models that were trained with different margins stay comparable.
    """
    hits, ties = int((chosen > rejected).sum()), int((chosen == rejected).sum())
    share = proportion(hits + ties // 2, len(chosen))
    return replace(share, value=(hits + ties / 2) / len(chosen))


def accuracy_by_grade(
    chosen: Float[np.ndarray, " pairs"],
    rejected: Float[np.ndarray, " pairs"],
    grades: Sequence[str],
) -> dict[str, Estimate]:
    """Return `accuracy` for each grade that occurs, and for `all` pairs (table 8)."""
    labels = np.array(grades)
    rows = {grade: labels == grade for grade in dict.fromkeys(grades)}
    shares = {grade: accuracy(chosen[row], rejected[row]) for grade, row in rows.items()}
    return shares | {"all": accuracy(chosen, rejected)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """How well a threshold on the safety score finds unsafe answers."""

    precision: Estimate | None
    """Share of those it calls unsafe that are; None if it calls none so."""
    recall: Estimate
    """Share of the unsafe answers that it calls so."""
    auc: float
    """Chance that a safe answer scores higher than an unsafe one, whatever the threshold."""


def detection(
    scores: Float[np.ndarray, " answers"],
    is_safe: Bool[np.ndarray, " answers"],
    threshold: float = 0.5,
) -> Detection:
    """Judge `sigmoid(score) < threshold` as a test for unsafe answers.

    The paper: recall 90.4 % at 0.5 with the auxiliary loss, 73.0 % without (table 29); precision
    0.89 and recall 0.55 at 0.15 (section 3.2.3).
    """
    n_safe = int(is_safe.sum())
    if not 0 < n_safe < len(is_safe):
        raise ValueError(
            f"safe and unsafe answers are needed; got {n_safe} safe of {len(is_safe)}. Take more."
        )
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1; got {threshold}.")
    from sklearn.metrics import roc_auc_score  # half a second, which the chat need not wait for

    called = expit(scores) < threshold
    hits, n_called = int((called & ~is_safe).sum()), int(called.sum())
    return Detection(
        precision=proportion(hits, n_called) if n_called else None,
        recall=proportion(hits, len(is_safe) - n_safe),
        auc=float(roc_auc_score(is_safe, scores)),
    )


def calibration(
    scores: Float[np.ndarray, " answers"], gold: Float[np.ndarray, " answers"], *, bins: int = 7,
    seed: int = 0,
) -> list[tuple[float, Estimate]]:  # fmt: skip
    """Return the mean sigmoid(score) in bins of equal numbers of gold scores (figure 29).

    A model that was trained on comparisons alone may be used on single answers if its mean
    rises with quality. See `binned_means` for what comes back.
    """
    return statistics.binned_means(gold, expit(scores), bins, seed)


def best_of_n(
    proxy: Float[np.ndarray, "prompts samples"],
    value: Float[np.ndarray, "_ _"] | None = None,
) -> Float[np.ndarray, "prompts samples"]:
    """Return the expected value of the sample that scores best among N, for N = 1, 2, ...

    Exact over all subsets of the K samples drawn: with samples sorted by score, the i-th is the
    best of C(i - 1, N - 1) of the C(K, N) subsets. Among equal scores the earliest sample wins.
    Column N - 1 holds the best of N. `proxy` chooses, such as a reward model's score; `value` is
    what the chosen sample is worth, such as the gold judge's. Without it the result is the
    expected maximum of `proxy`.
    """
    value = proxy if value is None else value
    assert proxy.shape == value.shape, "one score and one value a sample"
    # Backwards first, so that among equal scores the earliest stands last, which is best.
    order = np.argsort(proxy[:, ::-1], axis=1, kind="stable")
    ranked = np.take_along_axis(value[:, ::-1], order, axis=1)
    # In row i, column n: the share of subsets of n + 1 whose best is the i-th of k.
    k = proxy.shape[1]
    rank, size = np.arange(1, k + 1)[:, None], np.arange(1, k + 1)[None, :]
    possible = rank >= size
    left = np.where(possible, rank - size, 0)
    log_share = gammaln(rank) - gammaln(size) - gammaln(left + 1)
    log_share = log_share - (gammaln(k + 1) - gammaln(size + 1) - gammaln(k - size + 1))
    return ranked @ np.where(possible, np.exp(log_share), 0.0)


def best_of_n_interval(
    proxy: Float[np.ndarray, "prompts samples"],
    value: Float[np.ndarray, "prompts samples"] | None = None,
    *,
    n: int,
) -> Estimate:
    """Return the mean over prompts of `best_of_n` at one N, with a bootstrap over prompts."""
    if not 1 <= n <= proxy.shape[1]:
        raise ValueError(f"n must lie in 1...{proxy.shape[1]}, the samples drawn; got {n}.")
    return bootstrap_mean(best_of_n(proxy, value)[:, n - 1].tolist(), seed=0)


def best_of_n_kl(n: int) -> float:
    """Return ln N - (N - 1) / N, the KL divergence in nats of best-of-N from the sampler.

    Exact if all samples differ in score, else an upper bound.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}.")
    return float(np.log(n) - (n - 1) / n)
