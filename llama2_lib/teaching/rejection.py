"""Checks of rejection sampling (paper section 3.2.3), and the mistakes they recognise.

The choice among samples and rounds, and the arithmetic of the best of N (figures 7 and 8).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llama2_lib import rng
from llama2_lib.evaluation.reward import best_of_n, best_of_n_kl
from llama2_lib.teaching.check import Code, diagnose, diagnose_choice, on, slips

Answers = Sequence[Sequence[tuple[int, ...]]]
Round = Mapping[str, Sequence[tuple[str, float]]]


def _best(s: Tensor, f: Tensor) -> Tensor:
    return s.masked_fill(~f, -torch.inf).argmax(dim=1)


PICK_MISTAKES = slips(_best)("""
a sample without EOS is picked; leave unfinished samples out || s.argmax(1)
unfinished samples get the score 0, which beats every negative score; give them -inf
    || -torch.inf => 0
the place is counted among the finished samples only; count it among all
    || torch.stack([row[keep].argmax() for row, keep in zip(s, f)])
of equal scores the last sample is taken; take the first, so that a second run agrees
    || s.shape[1] - 1 - _best(s.flip(1), f.flip(1))
the lowest score is taken || -torch.inf).argmax => torch.inf).argmin
the score comes back, not the sample's place; use argmax || argmax => amax
the best is searched over the prompts, not over the samples of each; use dim=1 || dim=1 => dim=0
one place is taken for all prompts, that of the best sample of all
    || (_best(s.flatten()[None], f.flatten()[None]) % s.shape[1]).expand(len(s))
one place is taken for all prompts, that of the best mean score || s.mean(0).argmax().expand(len(s))
the score's size counts and not its sign || s.masked => s.abs().masked
the median sample is taken, which more samples do not improve
    || s.masked_fill(~f, torch.nan).nanmedian(dim=1).indices
the scores are not used: the first finished sample is taken, the random control || f.int().argmax(1)
the scores are rounded, which makes ties that are none || s.masked => s.round().masked
""")


def pick_best(candidate: Code) -> None:
    """Check `candidate(scores, finished)`: the place of each prompt's best sample.

    Both are prompts x samples; `finished` is True where a sample ended with EOS. Of equal scores
    the first wins.
    """
    scores = torch.tensor(
        [
            [-1.6, -0.75, -3.0, -0.75, -2.0, 2.0],
            [0.3, 1.4, 0.9, 1.2, -2.4, 1.2],
            [-2.0, -4.0, -1.4, -1.1, -3.0, -2.5],
            [0.6, 3.5, -1.0, 0.7, 2.1, 1.9],
        ]
    )
    finished = torch.ones_like(scores, dtype=torch.bool)
    finished[0, 5] = finished[1, 1] = finished[2, 0] = finished[2, 1] = finished[3, 1] = False
    run = on(scores, finished, then=lambda places: torch.as_tensor(places).tolist())
    diagnose_choice(run, candidate, _best, PICK_MISTAKES)


def _distinct(answers: Answers) -> list[list[int]]:
    """Return the places of the first of equal answers, in order."""
    keys = [list(map(tuple, row)) for row in answers]
    return [[at for at, own in enumerate(row) if row.index(own) == at] for row in keys]


DISTINCT_MISTAKES = slips(_distinct)("""
answers of one length count as copies; compare all tokens || tuple => len
the order of the tokens is not looked at; compare the sequences || tuple => sorted
how often a token comes is not looked at; compare the sequences || tuple => frozenset
the beginning of an answer counts as its copy; compare to the end || tuple => lambda a: a[:2]
nothing is dropped || tuple => lambda answer: object()
the last of equal answers is kept; keep the first
    || [sorted({answer: at for at, answer in enumerate(row)}.values()) for row in answers]
all copies are dropped, the first too; keep one of each || index(own) == at => count(own) == 1
only neighbours are compared; a copy may come later
    || row.index(own) == at => at == 0 or row[at - 1] != own
the answers are sorted, so their order is lost
    || [[row.index(answer) for answer in sorted(set(row))] for row in answers]
answers to other prompts count as copies; compare within one prompt || row.index(own) == at
    => row.index(own) == at and not any(own in other for other in keys[: keys.index(row)])
""")


def distinct(candidate: Code) -> None:
    """Check `candidate(answers)`: for each prompt the places of its distinct answers, in order.

    `answers` holds for each prompt a list of tuples of ids; the first of equal ones is kept.
    """
    answers = [
        [(5, 6), (5, 6), (7,), (6, 5), (5, 6), (4, 4, 6)],
        [(9, 3, 3), (3, 9), (9, 3, 3), (7,), (9, 3), (8, 1, 4)],
    ]
    run = on(answers, then=lambda rows: [[int(place) for place in row] for row in rows])
    diagnose_choice(run, candidate, _distinct, DISTINCT_MISTAKES)


def _pooled(rounds: Sequence[Round], score: Code) -> dict[str, str]:
    """Pick each prompt's best answer of all rounds by its new score."""
    best: dict[str, tuple[float, str]] = {}
    for samples in rounds:
        for prompt, answers in samples.items():
            for answer, _old in answers:
                value = score(prompt, answer)
                if prompt not in best or value > best[prompt][0]:
                    best[prompt] = (value, answer)
    return {prompt: answer for prompt, (_, answer) in sorted(best.items())}


POOL_MISTAKES = slips(_pooled)("""
the scores of earlier rounds are used as they are; another model gave them, so score all samples
    again || = score(prompt, answer) => = _old
the better of old and new score counts; only the new model's scores compare
    || = score(prompt, answer) => = max(_old, score(prompt, answer))
old and new score are averaged; only the new model's scores compare || = score => = _old + score
the lowest score is taken || = score => = -score
only the last round is used, so what came earlier is forgotten; use the pool of all
    || in rounds: => in rounds[-1:]:
only the first round is used || in rounds: => in rounds[:1]:
only the best of each round, by its old score, is scored again; score all samples again
    || in answers: => in [max(answers, key=lambda sample: sample[1])]:
each prompt's samples of its newest round replace the older ones; keep them all
    || in rounds: => in [{prompt: row for samples in rounds for prompt, row in samples.items()}]:
of equal scores the newest sample is taken; take the earliest || in rounds: => in rounds[::-1]:
prompts that the last round left out are dropped
    || sorted(best.items()) => sorted(best.items()) if prompt in rounds[-1]
""")


def pool(candidate: Code) -> None:
    """Check `candidate(rounds, score)`: each prompt's best answer of all rounds, as a dict.

    A round maps a prompt to its samples, pairs of answer and the score that it got then.
    `score(prompt, answer)` is the newest reward model. Of equal scores the earliest sample wins.
    """
    rounds: list[Round] = [
        {
            "cheese": [("a", 0.5), ("b", 0.9), ("c", 0.3)],
            "moon": [("k", 0.7), ("l", 0.9)],
            "well": [("s", 0.2), ("t", 0.6)],
            "rain": [("g", 0.1), ("h", 0.2)],
        },
        {
            "cheese": [("d", 0.8), ("e", 0.75)],
            "moon": [("m", 0.2), ("n", 0.55)],
            "rain": [("i", 0.35), ("j", 0.95)],
        },
        {
            "cheese": [("f", 0.6)],
            "moon": [("o", 0.65), ("p", 0.4)],
            "sheep": [("x", 0.1), ("y", 0.3)],
        },
    ]
    now = {
        **{"a": 0.6, "b": 0.4, "c": 0.85, "d": 0.62, "e": 0.2, "f": 0.3},
        **{"k": 0.64, "l": 0.1, "m": 0.55, "n": 0.35, "o": 0.64, "p": 0.2},
        **{"s": 0.7, "t": 0.25, "x": 0.4, "y": 0.1, "g": 0.3, "h": 0.05, "i": 0.6, "j": 0.5},
    }
    run = on(
        rounds,
        lambda prompt, answer: now[answer],
        then=lambda chosen: dict(sorted(chosen.items())),
    )
    diagnose_choice(run, candidate, _pooled, POOL_MISTAKES)


def _exact(proxy: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
    """The library's answer for one n; beyond the samples drawn, that for all of them."""
    return best_of_n(proxy, value)[:, min(max(n, 1), proxy.shape[1]) - 1]


def _weighed(
    proxy: np.ndarray, value: np.ndarray, share: Callable[[int, int], float]
) -> np.ndarray:
    """Sum values in rising order of the proxy, the i-th of k weighed by `share(i, k)`."""
    k = proxy.shape[1]
    ranked = np.take_along_axis(value, proxy.argsort(axis=1), axis=1)
    return ranked @ np.array([share(i, k) for i in range(1, k + 1)])


def _chosen(proxy: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.take_along_axis(value, proxy.argmax(axis=1)[:, None], axis=1)[:, 0]


EXPECTED_MISTAKES = slips(_exact)("""
only the first n samples are looked at, which is one draw; average over all subsets of n
    || _chosen(proxy[:, :n], value[:, :n])
the samples are cut into groups of n, which wastes most subsets; average over all
    || sum(_chosen(proxy[:, b : b + n], value[:, b : b + n])
    for b in range(0, proxy.shape[1] - n + 1, n)) / (proxy.shape[1] // n)
the samples are averaged, whatever n is || value.mean(axis=1)
all samples compete, whatever n is || _chosen(proxy, value)
the n are drawn with replacement: (i / K)^n - ((i - 1) / K)^n; subsets have no sample twice
    || _weighed(proxy, value, lambda i, k: (i / k) ** n - ((i - 1) / k) ** n)
the i-th sample is counted in C(i, n) subsets; it is the best of C(i - 1, n - 1)
    || _weighed(proxy, value, lambda i, k: math.comb(i, n) / math.comb(k, n))
the subsets are counted but not divided by their number, C(K, n)
    || _weighed(proxy, value, lambda i, k: float(math.comb(i - 1, n - 1)))
the n best samples are averaged; one sample is kept
    || _weighed(proxy, value, lambda i, k: float(i > k - n) / n)
the order is turned round: this is the worst of n
    || _weighed(proxy, value, lambda i, k: math.comb(k - i, n - 1) / math.comb(k, n))
the sample is chosen by its value; choose by the proxy, the value is only reported
    || proxy, value)[ => value, value)[
the proxy's score comes back; what the chosen sample is worth is asked for
    || proxy, value)[ => proxy, proxy)[
this is the best of n - 1 || _exact(proxy, value, n - 1)
this is the best of n + 1 || _exact(proxy, value, n + 1)
the samples are ranked by their mean over prompts; rank them prompt by prompt
    || _exact(np.broadcast_to(proxy.mean(axis=0), proxy.shape), value, n)
the prompts are averaged; give one number a prompt
    || np.full(len(proxy), _exact(proxy, value, n).mean())
""")


def expected_best(candidate: Code) -> None:
    """Check `candidate(proxy, value, n)`: for each prompt the expected value of the sample with
    the highest proxy score among n, exact over all subsets of the samples drawn.

    `proxy` and `value` are arrays of prompts x samples; no two scores are equal.
    """
    generator = rng.generator(0, "check", "best of n")
    noise = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    proxy, value = noise[0].numpy(), (0.6 * noise[0] + noise[1]).numpy()

    def run(function: Code) -> Tensor:
        values = [torch.as_tensor(on(proxy, value, n)(function)) for n in (1, 3, 5, 7)]
        return torch.stack(values).double()

    diagnose(run, candidate, run(_exact), EXPECTED_MISTAKES)


def _kl(n: int) -> float:
    return math.log(n) - (n - 1) / n


KL_MISTAKES = slips(_kl)("""
(N - 1) / N is not taken off: ln N is only a bound || math.log(n)
1 is taken off, which (N - 1) / N only approaches || math.log(n) - 1
(N - 1) / N is added; take it off || math.log(n) + (n - 1) / n
N - 1 is not divided by N || math.log(n) - (n - 1)
1 / N is taken off; take off (N - 1) / N || math.log(n) - 1 / n
the logarithm is to base 2; use nats || log => log2
the logarithm is to base 10; use nats || log => log10
the result is in bits; give nats || _kl(n) / math.log(2)
the sign is wrong; a divergence is never negative || -_kl(n)
this is the divergence of the sampler from the best of N; exchange the two || n - 1 - math.log(n)
the root is taken; that comes later, on the axis of the figure || _kl(n) ** 0.5
the number of samples is one too small || _kl(max(n - 1, 1))
""")


def kl_of_best_of_n(candidate: Code) -> None:
    """Check `candidate(n)`: KL(best of n || sampler) in nats, for samples that all differ."""

    def run(function: Code) -> Tensor:
        return torch.tensor([float(function(n)) for n in (1, 2, 4, 64)], dtype=torch.float64)

    diagnose(run, candidate, run(best_of_n_kl), KL_MISTAKES)
