"""What the best of N samples is worth (paper section 3.2.3, figures 7 and 8)."""

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln

from llama2_lib.evaluation.statistics import Estimate, bootstrap_mean


def best_of_n(
    proxy: Float[np.ndarray, "prompts samples"],
    value: Float[np.ndarray, "_ _"] | None = None,
) -> Float[np.ndarray, "prompts samples"]:
    """Return the expected value of the sample that scores best among N, for N = 1, 2, ...

    Exact over all subsets of the K samples drawn: with samples sorted by score, the i-th is the
    best of C(i - 1, N - 1) of the C(K, N) subsets. Among equal scores the earliest sample wins.

    Args:
        proxy: Score by which the best sample is chosen, such as a reward model's.
        value: What the chosen sample is worth, such as the gold judge's score; `proxy` itself
            if left out, which gives the expected maximum.

    Returns:
        Column N - 1 holds the best of N.
    """
    value = proxy if value is None else value
    if proxy.shape != value.shape or proxy.shape[1] < 1:
        raise ValueError(
            f"scores and values must be one number a sample, of at least one sample; got shapes "
            f"{proxy.shape} and {value.shape}."
        )
    # Backwards first, so that among equal scores the earliest stands last, which is best.
    backwards = proxy[:, ::-1]
    order = np.argsort(backwards, axis=1, kind="stable")
    ranked = np.take_along_axis(value[:, ::-1], order, axis=1)
    return ranked @ _shares(proxy.shape[1])


def _shares(k: int) -> Float[np.ndarray, "k k"]:
    """Return in row i, column n the share of subsets of n + 1 whose best is the i-th of k."""
    rank, size = np.arange(1, k + 1)[:, None], np.arange(1, k + 1)[None, :]
    possible = rank >= size
    left = np.where(possible, rank - size, 0)
    log_share = gammaln(rank) - gammaln(size) - gammaln(left + 1)
    log_share = log_share - (gammaln(k + 1) - gammaln(size + 1) - gammaln(k - size + 1))
    return np.where(possible, np.exp(log_share), 0.0)


def best_of_n_interval(
    proxy: Float[np.ndarray, "prompts samples"],
    value: Float[np.ndarray, "prompts samples"] | None = None,
    *,
    n: int,
    seed: int = 0,
) -> Estimate:
    """Return the mean over prompts of `best_of_n` at one N, with a bootstrap over prompts.

    Raises:
        ValueError: There are fewer than N samples.
    """
    if not 1 <= n <= proxy.shape[1]:
        raise ValueError(f"n must lie in 1...{proxy.shape[1]}, the samples drawn; got {n}.")
    return bootstrap_mean(best_of_n(proxy, value)[:, n - 1].tolist(), seed)


def best_of_n_kl(n: int) -> float:
    """Return ln N - (N - 1) / N, the KL divergence in nats of best-of-N from the sampler.

    Exact if all samples differ in score, else an upper bound.

    Raises:
        ValueError: N is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}.")
    return float(np.log(n) - (n - 1) / n)
