"""Checks of evaluation, and the mistakes they recognise (sections 3.4.2 and A.6 of the paper).

Right code is the library's: `evaluation.raters`, `evaluation.contamination`.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from llama2_lib.evaluation.contamination import SEED_LENGTH, SKIP_BUDGET
from llama2_lib.teaching.check import Code, diagnose_choice, on_each, slips


def _rounded(number: float) -> float:
    return round(float(number), 9)


def _gwet(rated: np.ndarray, w: np.ndarray) -> float:
    q = len(w)
    p_a = np.mean([w[a - 1, b - 1] for a, b in combinations(rated.T, 2)])
    share = np.array([(rated == k).mean() for k in range(1, q + 1)])
    p_e = w.sum() / q / (q - 1) * (share * (1 - share)).sum()
    return (p_a - p_e) / (1 - p_e)


AGREEMENT_MISTAKES = slips(_gwet)("""
agreement is not corrected for chance || p_a
what exceeds chance is not divided by 1 - p_e || p_a - p_e
chance is that of Scott's pi, products of two shares; Gwet takes share times 1 - share
    || p_e = w.sum() / q / (q - 1) * (share * (1 - share)).sum()
    => p_e = (w * np.outer(share, share)).sum()
chance takes all categories for equally likely
    || p_e = w.sum() / q / (q - 1) * (share * (1 - share)).sum() => p_e = w.sum() / q**2
the chance of AC1 stands in AC2; multiply it by the sum of the weights over q
    || w.sum() / q / (q - 1) => 1 / (q - 1)
chance is divided by q, not by q - 1 || w.sum() / q / (q - 1) => w.sum() / q / q
the weights are not used, so a near miss is a miss, as in AC1
    || q = len(w) => q = len(w); w = np.eye(q)
the weights are upside down: they are distances || q = len(w) => q = len(w); w = 1 - w
only the first two raters are compared || combinations(rated.T, 2) => [rated.T[:2]]
""")


def agreement(candidate: Code) -> None:
    """Check `candidate(rated, weights)`: Gwet's AC of whole ratings 1 to q, AC1 and AC2."""
    rated = np.array([[1, 1, 2], [4, 4, 4], [2, 3, 1], [4, 3, 4], [1, 1, 1], [3, 4, 2], [4, 4, 1]])
    gap = np.abs(np.subtract.outer(np.arange(4), np.arange(4))) / 3
    run = on_each((rated, np.eye(4)), (rated, 1 - gap**2), then=_rounded)
    diagnose_choice(run, candidate, _gwet, AGREEMENT_MISTAKES)


def _reach(sample: Sequence[int], training: Sequence[int]) -> int:
    same: list[bool] = []
    for ours, theirs in zip(sample, training, strict=False):
        if ours != theirs and (len(same) < SEED_LENGTH or same.count(False) == SKIP_BUDGET):
            break
        same.append(ours == theirs)
    end = max((place + 1 for place, equal in enumerate(same) if equal), default=0)
    return end if end >= SEED_LENGTH else 0


REACH_MISTAKES = slips(_reach)("""
the match ends with tokens that differ; the last one must be equal
    || return end => return len(same)
skipped tokens are left out; they lie inside the span || return end => return sum(same)
tokens may differ among the first ten, too || len(same) < SEED_LENGTH or =>
nothing is skipped; four tokens may differ || == SKIP_BUDGET => == 0
the fourth token that differs ends the match already || == SKIP_BUDGET => == SKIP_BUDGET - 1
a fifth token is skipped || == SKIP_BUDGET => == SKIP_BUDGET + 1
the budget begins anew after every equal token; it is for the whole match
    || same.count(False) == SKIP_BUDGET => not any(same[-SKIP_BUDGET:])
matches of fewer than ten tokens come back; they are none || end
""")


def reach(candidate: Code) -> None:
    """Check `candidate(sample, training)`: tokens that match from both beginnings on, or 0."""
    text = list(range(100, 132))
    spoiled = [(), (12, 15, 20, 25), (11, 14, 19, 24, 28), (10, 12, 14, 16, 18, 20), (4, 30), (7,)]
    spoiled += [(31,), (13, 29, 30, 31), tuple(range(14, 32))]
    samples = [[-t if i in places else t for i, t in enumerate(text)] for places in spoiled]
    run = on_each(*((some, text) for some in (*samples, text[:9])), then=_rounded)
    diagnose_choice(run, candidate, _reach, REACH_MISTAKES)


def _z(score: np.ndarray, inside: np.ndarray) -> float:
    n, total = inside.sum(), len(score)
    deviation = score.std() * np.sqrt((total - n) / (total - 1) / n)
    return (score[inside].mean() - score.mean()) / deviation


Z_MISTAKES = slips(_z)("""
the subset is compared with the rest, not with all samples
    || - score.mean() => - score[~inside].mean()
the deviation is that of the subset, not of all samples || score.std() => score[inside].std()
the deviation divides by N - 1; all samples are there, so divide by N
    || score.std() => score.std(ddof=1)
the deviation is that of one sample; divide by the square root of n
    || * np.sqrt((total - n) / (total - 1) / n) =>
samples are drawn with replacement; a subset cannot hold one twice
    || (total - n) / (total - 1) / n => 1 / n
the sign is wrong; a subset that scores more than all has a Z above 0
    || (score.mean() - score[inside].mean()) / deviation
n is that of the samples outside || inside.sum() => (~inside).sum()
""")


def z_of_subset(candidate: Code) -> None:
    """Check `candidate(score, inside)`: Z of a subset, against as many drawn at random."""
    score = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1], dtype=float)
    run = on_each((score, np.arange(12) < 5), (score, np.arange(12) >= 9), then=_rounded)
    diagnose_choice(run, candidate, _z, Z_MISTAKES)
