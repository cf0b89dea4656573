"""Annotators: a forced choice between two answers, with the paper's four grades (section 3.2.1).

An annotator perceives the gold gap plus logistic noise of scale tau. The sign of what is
perceived is the choice, so P(first preferred) = sigmoid(gap / tau), the Bradley-Terry model; its
size is the grade.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llama2_lib.rng import random_source

Grade = Literal["significantly better", "better", "slightly better", "negligibly better or unsure"]
GRADES: tuple[Grade, ...] = (
    "significantly better",
    "better",
    "slightly better",
    "negligibly better or unsure",
)
TAU = 0.15
"""Noise of an annotator, in units of the gold score (0 to 1)."""
GRADE_FROM = (0.60, 0.35, 0.15)
"""Perceived gaps, in absolute value, from which a pair has the first, second, third grade."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of two answers is preferred, and how clearly."""

    prefers_first: bool
    grade: Grade


def grade_of(perceived_gap: float) -> Grade:
    """Return the grade of a perceived gap; its sign does not matter."""
    size = abs(perceived_gap)
    for grade, least in zip(GRADES, GRADE_FROM, strict=False):
        if size >= least:
            return grade
    return GRADES[-1]


class Annotator:
    """Compares answers by their gold gap plus noise. Two names are two independent people."""

    def __init__(self, seed: int, name: str = "first", tau: float = TAU) -> None:
        if not 0 <= tau < math.inf:
            raise ValueError(f"tau must be 0 or more and finite; got {tau}")
        self.name, self.tau = name, tau
        self._rng = random_source(seed, "annotator", name)

    def compare(self, gap: float) -> Verdict:
        """Compare two answers whose gold scores differ by `gap`, first less second.

        Raises:
            ValueError: If the gap is not finite.
        """
        if not math.isfinite(gap):
            raise ValueError(f"a gap must be a finite difference of gold scores; got {gap}")
        perceived = gap + self.tau * self._noise()
        # without noise a tie is still a forced choice
        first = perceived > 0 if perceived else self._rng.random() < 0.5
        return Verdict(first, grade_of(perceived))

    def label(self, is_safe: bool, error: float) -> bool:
        """Return a safety label that is wrong with probability `error`."""
        return is_safe != (self._rng.random() < error)

    def _noise(self) -> float:
        share = self._rng.random()
        while not 0 < share < 1:
            share = self._rng.random()
        return math.log(share / (1 - share))  # logistic, scale 1


def preference_probability(gap: float, tau: float) -> float:
    """Return P(first preferred) = sigmoid(gap / tau); for tau = 0 a step, and 0.5 at a tie."""
    if tau < 0 or math.isnan(tau):
        raise ValueError(f"tau must be 0 or more; got {tau}")
    if gap == 0:
        return 0.5
    if tau == 0:
        return float(gap > 0)
    return 0.5 * (1 + math.tanh(gap / (2 * tau)))


def bayes_accuracy(gaps: Iterable[float], tau: float) -> float:
    """Return the noise ceiling: how often the better answer is the preferred one.

    No reward model can agree with annotators of this noise more often, E[sigmoid(|gap| / tau)].

    Raises:
        ValueError: If there is no gap, or tau is negative.
    """
    return _mean(preference_probability(abs(gap), tau) for gap in gaps)


def expected_agreement(gaps: Iterable[float], tau: float) -> float:
    """Return how often two annotators of this noise prefer the same answer, E[p^2 + (1-p)^2].

    Raises:
        ValueError: If there is no gap, or tau is negative.
    """
    return _mean((2 * preference_probability(gap, tau) - 1) ** 2 / 2 + 0.5 for gap in gaps)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    if not listed:
        raise ValueError("the mean over pairs needs at least one gap; got none")
    return math.fsum(listed) / len(listed)
