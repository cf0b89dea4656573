"""The reward models that the claims compare, and what they say of the same held-out pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llama2_lib import pipeline
from llama2_lib.claims.attention import quality_recipes
from llama2_lib.claims.pretraining import NARROWER, at_width
from llama2_lib.config import Recipe, RewardConfig, RewardVariant, Stream
from llama2_lib.evaluation.reward import accuracy
from llama2_lib.stages.reward import OWN_SHARE, SAFE_BINS, HeldOut, held_out_scores
from llama2_lib.world.pairs import GRADES, STREAMS

N_PAIRS = 2000
"""Training pairs of every variant, unless data is what is varied."""
DATA = (250, 700, 2000)
"""Training pairs of claim 16."""
N_HELD_OUT, N_MARGIN = 2500, 5000
"""Held-out pairs of a stream, and those of claims 12 and 13."""
PEAK_LR = 1e-3
"""Twice nano's, for a model of half the width, as the grid is pretrained at 2.5 times nano's rate.
One pilot seed (7), which counts nowhere, was no better at three times as much: accuracy 0.671 and
0.678 on 5,000 helpfulness pairs."""


def variant(
    base: Recipe,
    stream: Stream,
    *,
    n_pairs: int | None = None,
    own_share: float | None = None,
    coin_toss: bool = False,
    n_helpfulness: int = 0,
    n_safety: int = 0,
    **changes: Any,
) -> Recipe:
    """Return a recipe with one reward model; `changes` are of its `RewardConfig`."""
    config = RewardConfig(
        stream=stream,
        n_pairs=n_pairs or N_PAIRS,
        peak_lr=PEAK_LR,
        n_validation=100,
        eval_every=10_000,
        save_every=10_000,
        seed=base.pretrain.seed,
    )
    described = RewardVariant(
        reward=replace(config, **changes),
        own_share=own_share or OWN_SHARE[stream],
        coin_toss=coin_toss,
        n_helpfulness=n_helpfulness,
        n_safety=n_safety,
    )
    return replace(base, reward_model=described)


def arms(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return the reward models of one seed, by name, but for those of claim 16.

    All start from the fine-tuned model of the grid. With the same number of pairs of a stream
    they learn from the same ones. `joint` has the own pairs of both specialists, `joint_equal`
    as many pairs as each of them.
    """
    base = quality_recipes(recipe, seed)["gqa"]
    n_own = {stream: round(OWN_SHARE[stream] * N_PAIRS) for stream in STREAMS}
    union = sum(n_own.values())
    of_helpfulness = {"n_helpfulness": N_MARGIN}
    of_safety = {"n_safety": N_HELD_OUT}
    both = {"n_helpfulness": N_HELD_OUT, **of_safety}
    return {
        "helpful": variant(base, "helpfulness", **of_helpfulness, **of_safety),
        "none": variant(base, "helpfulness", margin="none", **of_helpfulness),
        "large": variant(base, "helpfulness", margin="large", **of_helpfulness),
        "coin": variant(base, "helpfulness", coin_toss=True, n_helpfulness=N_HELD_OUT),
        "safe": variant(base, "safety", **both),
        "without": variant(base, "safety", safety_weight=0.0, **of_safety),
        "alone": variant(base, "safety", own_share=1.0, **of_safety),
        "joint": variant(base, "safety", n_pairs=union, own_share=n_own["safety"] / union, **both),
        "joint_equal": variant(base, "safety", own_share=0.5, **both),
    }


def scale_arms(recipe: Recipe, seed: int) -> dict[tuple[int, int], Recipe]:
    """Return what claim 16 compares for one seed, by width and number of pairs.

    The widest with most pairs is the model `helpful` of `arms`.
    """
    base = quality_recipes(recipe, seed)["gqa"]
    found = {}
    for narrower in sorted(NARROWER, reverse=True):
        at = replace(base, model=at_width(base.model, narrower))
        for n in DATA:
            found[at.model.dim, n] = variant(at, "helpfulness", n_pairs=n, n_helpfulness=N_HELD_OUT)
    found[base.model.dim, DATA[-1]] = arms(recipe, seed)["helpful"]
    return found


class Scores(HeldOut):
    """The same, and what the claims ask of it."""

    @property
    def right(self) -> np.ndarray:
        """1 for every pair in which the chosen answer scores higher, 0.5 for a tie."""
        return (self.chosen > self.rejected) + 0.5 * (self.chosen == self.rejected)

    def where(self, rows: np.ndarray) -> "Scores":
        """Return some of the pairs."""
        return Scores(*(values[rows] for values in self))


def scored(run: Recipe) -> dict[str, Scores]:
    """Return what a finished model says, by stream."""
    found = held_out_scores(pipeline.artifact("reward_model", run))
    return {stream: Scores(*values) for stream, values in found.items()}


def rate(scores: Scores) -> float:
    """Return the accuracy on some pairs."""
    return accuracy(scores.chosen, scores.rejected).value


def groups(scores: Scores, by: str) -> dict[str, np.ndarray]:
    """Return which pairs have each grade or each safety bin, and `all`."""
    labels = getattr(scores, by)
    names = GRADES if by == "grade" else SAFE_BINS
    every = np.ones(len(labels), dtype=bool)
    return {name: labels == name for name in names} | {"all": every}


def against(name: str, one: Scores, other: Scores) -> dict[str, float]:
    """Compare two models on the pairs that both have scored."""
    n = min(len(one.gap), len(other.gap))
    if not np.array_equal(one.gap[:n], other.gap[:n]):
        raise ValueError(
            f"{name}: two models must be compared on the same held-out pairs; the pairs differ. "
            "Give both the seed of one run."
        )
    gain = one.right[:n] - other.right[:n]
    return {
        f"gained/{name}": float(gain[gain > 0].sum()),
        f"lost/{name}": float(-gain[gain < 0].sum()),
        f"pairs/{name}": float(n),
    }


def trained(recipe: Recipe, seed: int, *names: str) -> dict[str, dict[str, Scores]]:
    """Return what some arms say, by name and stream, after training those that are missing."""
    return {name: scored(arms(recipe, seed)[name]) for name in names}


def of_stream(
    recipe: Recipe, seed: int, stream: str, named: Mapping[str, str]
) -> dict[str, Scores]:
    """Return what some arms say of one stream, under other names."""
    return {name: scored(arms(recipe, seed)[arm])[stream] for name, arm in named.items()}


def by_group(
    by: str, arms_: Mapping[str, Scores], pairs: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Return `accuracy/<arm>/<group>`, and what `against` says of pairs of arms, by group."""
    values: dict[str, float] = {}
    for group, rows in groups(next(iter(arms_.values())), by).items():
        some = {arm: scores.where(rows) for arm, scores in arms_.items()}
        values |= {f"accuracy/{arm}/{group}": rate(scores) for arm, scores in some.items()}
        for one, other in pairs:
            values |= against(f"{one}-{other}/{group}", some[one], some[other])
    return values
