"""Checks of the arithmetic of the best of N, and the mistakes they recognise (figures 7 and 8)."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from llama2_lib import rng
from llama2_lib.evaluation.best_of_n import best_of_n, best_of_n_kl
from llama2_lib.teaching.diagnosis import diagnose

Expected = Callable[[np.ndarray, np.ndarray, int], ArrayLike]
Divergence = Callable[[int], float]


def _exact(proxy: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
    """The library's answer for one n; beyond the samples drawn, that for all of them."""
    return best_of_n(proxy, value)[:, min(max(n, 1), proxy.shape[1]) - 1]


def _weighed(
    proxy: np.ndarray, value: np.ndarray, n: int, share: Callable[[int, int, int], float]
) -> np.ndarray:
    """Sum values in rising order of the proxy, the i-th of k weighed by `share(i, k, n)`."""
    k = proxy.shape[1]
    ranked = np.take_along_axis(value, proxy.argsort(axis=1), axis=1)
    return ranked @ np.array([share(i, k, n) for i in range(1, k + 1)])


def _chosen(proxy: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.take_along_axis(value, proxy.argmax(axis=1)[:, None], axis=1)[:, 0]


def _in_groups(proxy: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
    begins = range(0, proxy.shape[1] - n + 1, n)
    return np.mean([_chosen(proxy[:, b : b + n], value[:, b : b + n]) for b in begins], axis=0)


EXPECTED_MISTAKES: dict[str, Expected] = {
    "only the first n samples are looked at, which is one draw; average over all subsets of n": (
        lambda proxy, value, n: _chosen(proxy[:, :n], value[:, :n])
    ),
    "the samples are cut into groups of n, which wastes most subsets; average over all": _in_groups,
    "all samples compete, whatever n is": lambda proxy, value, n: _chosen(proxy, value),
    "the n are drawn with replacement: (i / K)^n - ((i - 1) / K)^n; subsets have no sample twice": (
        partial(_weighed, share=lambda i, k, n: (i / k) ** n - ((i - 1) / k) ** n)
    ),
    "the i-th sample is counted in C(i, n) subsets; it is the best of C(i - 1, n - 1)": partial(
        _weighed, share=lambda i, k, n: math.comb(i, n) / math.comb(k, n)
    ),
    "the subsets are counted but not divided by their number, C(K, n)": partial(
        _weighed, share=lambda i, k, n: float(math.comb(i - 1, n - 1))
    ),
    "the n best samples are averaged; one sample is kept": partial(
        _weighed, share=lambda i, k, n: float(i > k - n) / n
    ),
    "the order is turned round: this is the worst of n": partial(
        _weighed, share=lambda i, k, n: math.comb(k - i, n - 1) / math.comb(k, n)
    ),
    "the sample is chosen by its value; choose by the proxy, the value is only reported": (
        lambda proxy, value, n: _exact(value, value, n)
    ),
    "the proxy's score comes back; what the chosen sample is worth is asked for": (
        lambda proxy, value, n: _exact(proxy, proxy, n)
    ),
    "this is the best of n - 1": lambda proxy, value, n: _exact(proxy, value, n - 1),
    "this is the best of n + 1": lambda proxy, value, n: _exact(proxy, value, n + 1),
    "the samples are ranked by their mean over prompts; rank them prompt by prompt": (
        lambda proxy, value, n: _exact(np.broadcast_to(proxy.mean(axis=0), proxy.shape), value, n)
    ),
    "the prompts are averaged; give one number a prompt": lambda proxy, value, n: np.full(
        len(proxy), _exact(proxy, value, n).mean()
    ),
}


def expected_best(candidate: Expected) -> None:
    """Check `candidate(proxy, value, n)`: for each prompt the expected value of the sample with
    the highest proxy score among n, exact over all subsets of the samples drawn.

    `proxy` and `value` are arrays of prompts x samples; no two scores are equal.
    """
    generator = rng.generator(0, "check", "best of n")
    noise = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    proxy, value = noise[0].numpy(), (0.6 * noise[0] + noise[1]).numpy()

    def run(function: Expected) -> Tensor:
        found = [torch.as_tensor(function(proxy, value, n)).double() for n in (1, 3, 5, 7)]
        return torch.stack(found)

    wrong = {name: partial(run, f) for name, f in EXPECTED_MISTAKES.items()}
    diagnose(run(candidate), run(_exact), wrong)


KL_MISTAKES: dict[str, Divergence] = {
    "(N - 1) / N is not taken off: ln N is only a bound": lambda n: math.log(n),
    "1 is taken off, which (N - 1) / N only approaches": lambda n: math.log(n) - 1,
    "(N - 1) / N is added; take it off": lambda n: math.log(n) + (n - 1) / n,
    "N - 1 is not divided by N": lambda n: math.log(n) - (n - 1),
    "1 / N is taken off; take off (N - 1) / N": lambda n: math.log(n) - 1 / n,
    "the logarithm is to base 2; use nats": lambda n: math.log2(n) - (n - 1) / n,
    "the logarithm is to base 10; use nats": lambda n: math.log10(n) - (n - 1) / n,
    "the result is in bits; give nats": lambda n: best_of_n_kl(n) / math.log(2),
    "the sign is wrong; a divergence is never negative": lambda n: -best_of_n_kl(n),
    "this is the divergence of the sampler from the best of N; exchange the two": lambda n: (
        n - 1 - math.log(n)
    ),
    "the root is taken; that comes later, on the axis of the figure": lambda n: (
        best_of_n_kl(n) ** 0.5
    ),
    "the number of samples is one too small": lambda n: best_of_n_kl(max(n - 1, 1)),
}


def kl_of_best_of_n(candidate: Divergence) -> None:
    """Check `candidate(n)`: KL(best of n || sampler) in nats, for samples that all differ."""

    def run(function: Divergence) -> Tensor:
        found = [float(function(n)) for n in (1, 2, 4, 64)]
        return torch.tensor(found, dtype=torch.float64)

    wrong = {name: partial(run, f) for name, f in KL_MISTAKES.items()}
    diagnose(run(candidate), run(best_of_n_kl), wrong)
