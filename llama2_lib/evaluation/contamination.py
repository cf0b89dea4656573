"""Was the test in the training data? Token spans that occur in both (appendix A.6).

1. A suffix array of the training tokens finds every place where ten tokens of a sample stand.
2. From there the match goes on and may skip up to four tokens that differ, none of them among the
   first ten and none at its end. All tokens of a match that is long enough are contaminated.
3. The share of them divides the samples into four overlapping subsets.
4. A score of a subset is compared with what samples drawn by chance would score: Z. Contamination
   has helped only if all four are further than 2 from 0, the clean ones lower, the dirty higher.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from pydivsufsort import divsufsort

SEED_LENGTH = 10
"""Tokens that must be equal at the beginning of a match."""
SKIP_BUDGET = 4
"""Tokens that may differ after them."""
CLEAN, DIRTY = 0.2, 0.8
"""A sample is clean below the first share of contaminated tokens, dirty from the second on."""
FAR = 2.0
"""|Z| that all four subsets must exceed."""


@dataclass(frozen=True, slots=True)
class Index:
    """All places of the training tokens in the order of what follows them."""

    ids: Integer[np.ndarray, " tokens"]
    suffixes: Integer[np.ndarray, " tokens"]

    def places(self, seed: list[int]) -> Int[np.ndarray, " places"]:
        """Return every place where the tokens of `seed` stand."""
        low, high = (
            end(self.suffixes, seed, key=lambda place: self.ids[place : place + len(seed)].tolist())
            for end in (bisect_left, bisect_right)
        )
        return self.suffixes[low:high]


def index(ids: Integer[np.ndarray, " tokens"]) -> Index:
    """Return the index of the training tokens; 2.8 million take about four seconds."""
    return Index(ids, divsufsort(np.ascontiguousarray(ids.astype(np.uint16))))


def contaminated(
    sample: Sequence[int], known: Index, *, longer_than: int = SEED_LENGTH
) -> Bool[np.ndarray, " tokens"]:
    """Return which tokens of a sample lie in a match of more than `longer_than` tokens."""
    tokens, hit = np.asarray(sample, dtype=np.int64), np.zeros(len(sample), dtype=bool)
    for begin in range(len(tokens) - SEED_LENGTH + 1):
        length = longest_match(tokens[begin:], known)
        if length > longer_than:
            hit[begin : begin + length] = True
    return hit


def longest_match(tokens: Int[np.ndarray, " tokens"], known: Index) -> int:
    """Return how many tokens from the first on stand somewhere in training, with skips; or 0."""
    places = known.places(tokens[:SEED_LENGTH].tolist())
    if len(tokens) < SEED_LENGTH or not len(places):
        return 0
    reach = np.arange(len(tokens))
    at = places[:, None] + reach
    inside = at < len(known.ids)
    same = inside & (known.ids[np.minimum(at, len(known.ids) - 1)] == tokens)
    allowed = (~same).cumsum(axis=1) <= SKIP_BUDGET
    # The last equal token within the budget ends a match: no skip trails.
    return int(np.where(same & allowed, reach + 1, 0).max())


def shares(
    samples: Sequence[Sequence[int]], known: Index, *, longer_than: int = SEED_LENGTH
) -> Float[np.ndarray, " samples"]:
    """Return the share of contaminated tokens of each sample."""
    return np.array([contaminated(s, known, longer_than=longer_than).mean() for s in samples])


class Subset(NamedTuple):
    """One line of the paper's table 51."""

    name: str
    n: int
    contamination: float
    """Mean share of contaminated tokens."""
    score: float
    expected: float
    """Score of as many samples drawn by chance."""
    z: float
    """By how many standard deviations the score is off; nan for an empty or a whole subset."""


def subsets(share: Float[np.ndarray, " samples"], score: Float[np.ndarray, " _"]) -> list[Subset]:
    """Return the four subsets: `clean`, `not clean`, `not dirty`, `dirty`.

    Mean and deviation of a subset drawn without replacement are exact, so nothing is resampled.
    """
    rows = {
        "clean": share < CLEAN,
        "not clean": share >= CLEAN,
        "not dirty": share < DIRTY,
        "dirty": share >= DIRTY,
    }
    found, total, expected, nan = [], len(score), float(score.mean()), float("nan")
    for name, mask in rows.items():
        n = int(mask.sum())
        deviation = score.std() * np.sqrt((total - n) / (total - 1) / n) if n else 0.0
        own, dirt = (float(each[mask].mean()) if n else nan for each in (score, share))
        z = (own - expected) / deviation if deviation else nan
        found.append(Subset(name, n, dirt, own, expected, z))
    return found


def has_helped(found: Sequence[Subset]) -> bool:
    """Return whether contamination has raised the score: all four subsets are far from chance."""
    return all(s.z < -FAR if s.name in ("clean", "not dirty") else s.z > FAR for s in found)
