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
    base: Recipe, stream: Stream, tested: Mapping[str, int], own_share: float | None = None,
    coin_toss: bool = False, **changes: Any,
) -> Recipe:  # fmt: skip
    """Return a recipe with one reward model; `changes` are of its `RewardConfig`."""
    config = RewardConfig(
        stream=stream, n_pairs=N_PAIRS, peak_lr=PEAK_LR, n_validation=100, eval_every=10_000,
        save_every=10_000, seed=base.pretrain.seed,
    )  # fmt: skip
    described = RewardVariant(
        reward=replace(config, **changes),
        own_share=own_share or OWN_SHARE[stream],
        coin_toss=coin_toss,
        **tested,
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
    many, safety = {"n_helpfulness": N_MARGIN}, {"n_safety": N_HELD_OUT}
    helpfulness = {"n_helpfulness": N_HELD_OUT}
    both = helpfulness | safety
    return {
        "helpful": variant(base, "helpfulness", many | safety),
        "none": variant(base, "helpfulness", many, margin="none"),
        "large": variant(base, "helpfulness", many, margin="large"),
        "coin": variant(base, "helpfulness", helpfulness, coin_toss=True),
        "safe": variant(base, "safety", both),
        "without": variant(base, "safety", safety, safety_weight=0.0),
        "alone": variant(base, "safety", safety, own_share=1.0),
        "joint": variant(base, "safety", both, n_pairs=union, own_share=n_own["safety"] / union),
        "joint_equal": variant(base, "safety", both, own_share=0.5),
    }


def scale_arms(recipe: Recipe, seed: int) -> dict[tuple[int, int], Recipe]:
    """Return what claim 16 compares for one seed, by width and number of pairs.

    The widest with most pairs is the model `helpful` of `arms`.
    """
    base, tested = quality_recipes(recipe, seed)["gqa"], {"n_helpfulness": N_HELD_OUT}
    sizes = [at_width(base.model, narrower) for narrower in sorted(NARROWER, reverse=True)]
    runs = {
        (size.dim, n): variant(replace(base, model=size), "helpfulness", tested, n_pairs=n)
        for size in sizes
        for n in DATA
    }
    return runs | {(base.model.dim, DATA[-1]): arms(recipe, seed)["helpful"]}


class Scores(HeldOut):
    """The same, and what the claims ask of it."""

    @property
    def right(self) -> np.ndarray:
        """1 for every pair in which the chosen answer scores higher, 0.5 for a tie."""
        return (self.chosen > self.rejected) + 0.5 * (self.chosen == self.rejected)

    @property
    def accuracy(self) -> float:
        """The share of pairs that it has right."""
        return accuracy(self.chosen, self.rejected).value

    @property
    def single(self) -> np.ndarray:
        """The scores of single answers, all chosen ones first."""
        return np.concatenate([self.chosen, self.rejected])

    def where(self, rows: np.ndarray | slice) -> "Scores":
        """Return some of the pairs."""
        return Scores(*(values[rows] for values in self))

    def groups(self, by: str) -> dict[str, "Scores"]:
        """Return the pairs of each grade or each safety bin, and `all`."""
        labels, names = getattr(self, by), GRADES if by == "grade" else SAFE_BINS
        return {name: self.where(labels == name) for name in names} | {"all": self}


def scored(run: Recipe) -> dict[str, Scores]:
    """Return what a finished model says, by stream."""
    held_out = held_out_scores(pipeline.artifact("reward_model", run))
    return {stream: Scores(*values) for stream, values in held_out.items()}


def of_arm(recipe: Recipe, seed: int, stream: str, arm: str) -> Scores:
    """Return what one of the `arms` says of a stream."""
    return scored(arms(recipe, seed)[arm])[stream]


def of_arms(recipe: Recipe, seed: int, stream: str, named: Mapping[str, str]) -> dict[str, Scores]:
    """Return what some of the `arms` say of a stream, under other names."""
    return {name: of_arm(recipe, seed, stream, arm) for name, arm in named.items()}


def against(name: str, one: Scores, other: Scores) -> dict[str, float]:
    """Compare two models on the pairs that both have scored."""
    n = min(len(one.gap), len(other.gap))
    assert np.array_equal(one.gap[:n], other.gap[:n]), f"{name}: not the same held-out pairs"
    gain = one.right[:n] - other.right[:n]
    return {
        f"gained/{name}": float(gain[gain > 0].sum()),
        f"lost/{name}": float(-gain[gain < 0].sum()),
        f"pairs/{name}": float(n),
    }


def by_group(
    by: str, arms_: Mapping[str, Scores], pairs: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Return `accuracy/<arm>/<group>`, and what `against` says of pairs of arms, by group."""
    grouped = {arm: scores.groups(by) for arm, scores in arms_.items()}
    values: dict[str, float] = {}
    for group in next(iter(grouped.values())):
        values |= {f"accuracy/{arm}/{group}": own[group].accuracy for arm, own in grouped.items()}
        for one, other in pairs:
            values |= against(f"{one}-{other}/{group}", grouped[one][group], grouped[other][group])
    return values
