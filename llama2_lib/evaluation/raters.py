"""People's evaluation in miniature: raters who differ, how they agree, who wins (3.4.2, A.3.7).

A rater sees two answers in random order and says on a scale of seven which is better, and how much
[the paper: a seven-point Likert scale, three raters, agreement by Gwet's AC2 with ordinal weights].
What people differ in is drawn here as numbers; the truth between the answers is the gold judge's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import evalica
import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr

from llama2_lib.evaluation.statistics import Estimate, bootstrap_mean

POINTS = 7
"""Steps of the scale; the middle one is a tie."""
STEP = 0.1
"""The unit of what raters feel: a difference of gold marks of this size."""
Weights = Literal["identity", "linear", "quadratic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rater:
    """A simulated person."""

    name: str
    noise: float
    """Standard deviation of what is felt beside the gap, in units of `STEP`. Who feels nothing else
    uses all steps of the scale alike, as people do who were asked not to call everything a tie."""
    sharpness: float = 1.0
    """How much of the gap is seen: 1 all of it, 0 nothing."""
    first: float = 0.0
    """In favour of the answer that is read first."""
    wordy: float = 0.0
    """In favour of the longer answer, for twice as many words."""


RATERS = (
    Rater(name="careful", noise=1.0),
    Rater(name="hasty", noise=2.0, first=0.8),
    Rater(name="fond of length", noise=1.0, wordy=1.0),
)
COINS = tuple(Rater(name=f"coin {n}", noise=1.0, sharpness=0.0) for n in range(3))
"""The control: raters who see nothing."""


def ratings(
    gaps: Float[np.ndarray, " pairs"],
    raters: Sequence[Rater] = RATERS,
    *,
    seed: int,
    longer: Float[np.ndarray, " pairs"] | None = None,
    shuffled: bool = True,
) -> Int[np.ndarray, "pairs raters"]:
    """Return where each rater places each pair, 1 to `POINTS`: above the middle the first wins.

    `gaps` are gold marks, first answer minus second; `longer` the log2 of the ratio of their
    lengths. `shuffled` is whether the answers are shown in random order, as they must be: a rater
    who likes what comes first would else like one model.
    """
    rng, n = np.random.default_rng(seed), len(gaps)
    length = np.zeros(n) if longer is None else longer
    columns = []
    for rater in raters:
        order = rng.choice([-1, 1], n) if shuffled else np.ones(n)
        felt = rater.sharpness * gaps / STEP + rater.wordy * length + rater.first * order
        felt = felt / rater.noise + rng.normal(size=n)
        columns.append(1 + np.floor(POINTS * ndtr(felt)))  # who feels nothing uses all steps alike
    return np.clip(np.stack(columns, axis=1), 1, POINTS).astype(int)


def agreement(
    rated: Int[np.ndarray, "items raters"],
    weights: Weights = "identity",
) -> float:
    """Return Gwet's agreement coefficient: AC1, or AC2 with weights of near misses (Gwet, 2008).

    (p_a - p_e) / (1 - p_e): p_a is how often two raters of an item agree, p_e how often they would
    by chance. A near miss counts as agreement in part; 1 is perfect and 0 what chance gives.
    """
    steps = np.abs(np.subtract.outer(np.arange(POINTS), np.arange(POINTS)))
    share = steps / (POINTS - 1)
    w = {"identity": steps == 0, "linear": 1 - share, "quadratic": 1 - share**2}[weights]
    counts = (rated[:, :, None] == np.arange(1, POINTS + 1)).sum(axis=1)
    raters = counts.sum(axis=1)
    p_a = ((counts * (counts @ w - 1)).sum(axis=1) / (raters * (raters - 1))).mean()
    prevalence = (counts / raters[:, None]).mean(axis=0)
    p_e = w.sum() / (POINTS * (POINTS - 1)) * (prevalence * (1 - prevalence)).sum()
    return float((p_a - p_e) / (1 - p_e))


def majority(rated: Int[np.ndarray, "pairs raters"]) -> Float[np.ndarray, " pairs"]:
    """Return 1 where more raters prefer the first answer, 0 where fewer, 0.5 for a tie."""
    votes = np.sign(rated - (POINTS + 1) // 2).sum(axis=1)
    return (np.sign(votes) + 1) / 2


def games(points: Float[np.ndarray, " pairs"], *, seed: int = 0) -> dict[str, Estimate]:
    """Return shares of `wins`, `ties`, `losses`, and `win rate`, in which a tie counts one half.

    Intervals are bootstraps over prompts.
    """
    parts = {"wins": points == 1, "ties": points == 0.5, "losses": points == 0, "win rate": points}
    return {name: bootstrap_mean(part.astype(float).tolist(), seed) for name, part in parts.items()}


def ranked(
    marks: Mapping[str, Float[np.ndarray, " prompts"]],
    *,
    method: Literal["bradley_terry", "elo"] = "bradley_terry",
    tie: float = 1e-9,
) -> dict[str, float]:
    """Return one score for each version from all pairs of them on the same prompts, best first.

    By Bradley and Terry (maximum likelihood, which orders of games cannot change) or by `elo`
    (one pass over the games, which they do). Both by evalica. A Bradley-Terry score is given as
    log-odds against the mean version; Elo's in its own points, 1,000 at the start.
    """
    names = list(marks)
    played = [
        (a, b, np.sign(x - y) if abs(x - y) > tie else 0.0)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        for x, y in zip(marks[a], marks[b], strict=True)
    ]
    winner = {1: evalica.Winner.X, -1: evalica.Winner.Y, 0: evalica.Winner.Draw}
    columns = zip(*((a, b, winner[int(sign)]) for a, b, sign in played), strict=True)
    scores = getattr(evalica, method)(*map(list, columns)).scores.to_dict()
    if method == "bradley_terry":
        logs = {name: float(np.log(score)) for name, score in scores.items()}
        middle = np.mean(list(logs.values()))
        scores = {name: value - middle for name, value in logs.items()}
    return {name: float(scores[name]) for name in sorted(scores, key=lambda n: -scores[n])}
