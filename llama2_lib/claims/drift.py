"""Claims 18 and 19: reward models and comparisons from round to round of one chain (3.2.1, A.3.1).

There is one chain, whatever the seed, so the first measurement is all there is.
"""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from llama2_lib import pipeline
from llama2_lib.claims.claim import (
    Claim,
    Measurements,
    Must,
    Trust,
    Z,
    averages,
    keys_under,
    paired_gain,
)
from llama2_lib.claims.variants import Scores, against
from llama2_lib.config import ROUNDS, Recipe
from llama2_lib.device import choose_device
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.pipeline import JUDGE
from llama2_lib.stages.reward import encode_pairs, load_rewards, scores_of
from llama2_lib.storage import read_rows
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.world.pairs import GRADES, STREAMS, TAU, Pair, bayes_accuracy


def rounds(recipe: Recipe) -> dict[int, Path]:
    """Return the folders of the chain's reward models, by round."""
    pipeline.artifact(JUDGE, recipe)
    numbers = range(1, ROUNDS + 2)
    return {n: pipeline.artifact(f"rewards_v{n}", recipe, bar=False) for n in numbers}


def summary(folder: Path, stream: str) -> dict[str, Any]:
    """Return the summary that a round left of one stream."""
    return json.loads((folder / stream / "summary.json").read_text(encoding="utf-8"))


def measure_drift(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 18.

    Keys: `right/<when>`, `pairs/<when>` and `ceiling/<when>` for `own` (answers like those it
    was trained on) and `next` (of the next policy, before the refresh): pairs that the model has
    right, all, and the mean noise ceiling; those of `against` for `refreshed-next`.

    Comparisons that were held back in a round are scored by the model of that round and by that
    of the round before, which has not seen such answers. `accuracy/<stream>/<round>/before` and
    `.../after` are the shares that the rounds themselves have noted, shown.
    """
    folders, values = rounds(recipe), dict[str, float]()
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", recipe, bar=False))
    device = choose_device()
    models = {n: load_rewards(folder, device) for n, folder in folders.items()}
    seen: dict[str, list[Scores]] = {"own": [], "next": [], "refreshed": []}
    for stream in STREAMS:
        held = {n: read_rows(folder / stream / "held.jsonl", Pair) for n, folder in folders.items()}
        for number in range(1, len(folders)):
            old, new = (getattr(models[n], stream) for n in (number, number + 1))
            seen["own"].append(say(old, held[number], tokenizer))
            seen["next"].append(say(old, held[number + 1], tokenizer))
            seen["refreshed"].append(say(new, held[number + 1], tokenizer))
            noted = summary(folders[number + 1], stream)
            for word, key in (("before", "accuracy before"), ("after", "accuracy")):
                values[f"accuracy/{stream}/{number + 1}/{word}"] = noted[key]["all"]["value"]
    pooled = {when: together(parts) for when, parts in seen.items()}
    for when in ("own", "next"):
        values[f"right/{when}"] = float(pooled[when].right.sum())
        values[f"pairs/{when}"] = float(len(pooled[when].gap))
        values[f"ceiling/{when}"] = bayes_accuracy(pooled[when].gap.tolist(), TAU)
    values |= against("refreshed-next", pooled["refreshed"], pooled["next"])
    return values


def say(model: Any, pairs: Sequence[Pair], tokenizer: Tokenizer) -> Scores:
    """Score pairs with a reward model."""
    chosen, rejected = scores_of(model, encode_pairs(pairs, tokenizer, "none"))
    return Scores(
        chosen,
        rejected,
        np.array([pair.gap for pair in pairs]),
        np.array([pair.grade for pair in pairs]),
        np.array([pair.safety_bin for pair in pairs]),
    )


def together(parts: Sequence[Scores]) -> Scores:
    """Return all pairs of several lists."""
    return Scores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def measure_shares(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 19: `count/<stream>/<round>/<grade>`, comparisons with that grade."""
    values: dict[str, float] = {}
    for number, folder in rounds(recipe).items():
        for stream in STREAMS:
            noted = summary(folder, stream)
            for grade in GRADES:
                n = round(noted[f"share of {grade}"] * noted["fresh pairs"])
                values[f"count/{stream}/{number}/{grade}"] = float(n)
    return values


def _drop(measurements: Measurements) -> Estimate:
    one = measurements[0]
    n = {when: one[f"pairs/{when}"] for when in ("own", "next")}
    share = {when: one[f"right/{when}"] / n[when] for when in n}
    short = {when: one[f"ceiling/{when}"] - share[when] for when in n}
    drop = short["next"] - short["own"]
    half = Z * math.sqrt(sum(share[when] * (1 - share[when]) / n[when] for when in n))
    return Estimate(value=drop, low=drop - half, high=drop + half, n=int(n["next"]))


def _refreshed(measurements: Measurements) -> Estimate:
    return paired_gain(measurements[:1], "refreshed-next")


def _accuracies(measurements: Measurements) -> dict[str, Estimate]:
    return averages(measurements[:1], "accuracy")


def slope(stream: str, grade: str, measurements: Measurements, *, sign: int = 1) -> Estimate:
    """Return by how much the share of a grade rises a round: least squares over comparisons."""
    one, rounds_, is_it = measurements[0], list[int](), list[bool]()
    for key in keys_under([one], f"count/{stream}"):
        number, other = key.split("/")
        n = round(one[f"count/{stream}/{key}"])
        rounds_ += [int(number)] * n
        is_it += [other == grade] * n
    line = stats.linregress(rounds_, np.array(is_it, dtype=float))
    half = float(stats.t.ppf(0.975, len(rounds_) - 2) * line.stderr)
    value = sign * float(line.slope)
    return Estimate(value=value, low=value - half, high=value + half, n=len(rounds_))


def _shares(measurements: Measurements) -> dict[str, Estimate]:
    one, shown = measurements[0], dict[str, Estimate]()
    for key in keys_under([one], "count"):
        total = sum(one[f"count/{key.rpartition('/')[0]}/{other}"] for other in GRADES)
        share = one[f"count/{key}"] / total
        shown[f"share/{key}"] = Estimate(value=share, low=share, high=share, n=int(total))
    return shown | {
        f"slope/{stream}/{grade}": slope(stream, grade, measurements)
        for stream in STREAMS
        for grade in (GRADES[0], GRADES[-1])
    }


CLAIMS = (
    Claim(
        id=18,
        section="3.2.1",
        statement="A reward model is worse on answers of the next policy, until it is refreshed.",
        paper_value="accuracy degrades quickly without fresh comparisons; no number",
        paper_trust=Trust.DESIGN,
        prediction="Before the refresh the model lies further below the noise ceiling on the next "
        "policy's answers than on those it was trained for; the refresh gains part of it. One "
        "chain, both streams together: about 650 pairs, so that less than some 5 points of drop "
        "and 3 of gain cannot be seen.",
        where="Of accuracy on held-out pairs",
        tests=(
            Must("drop below the ceiling", _drop, above=0),
            Must("gain of the refresh", _refreshed, above=0),
        ),
        intervals="(95 % over pairs, all rounds pooled)",
        shown=(_accuracies,),
        recorded=False,
        measured_by=measure_drift,
        runs=lambda recipe, seed: {JUDGE: (JUDGE, recipe)},
        min_seeds=1,
    ),
    Claim(
        id=19,
        section="A.3.1",
        statement="As models improve, fewer comparisons are clear and more are unsure.",
        paper_value="figure 25: clearest from about 18 to 9 %, unsure from about 25 to 38 % over "
        "14 batches",
        paper_trust=Trust.FIGURE,
        prediction="From round to round the clearest grade gets rarer and the least clear one more "
        "frequent. One chain of five rounds; a slope of less than about a point a round cannot be "
        "seen.",
        where="Shares of comparisons in the helpfulness stream",
        tests=(
            Must(
                "fall of the clearest grade a round",
                partial(slope, "helpfulness", GRADES[0], sign=-1),
                above=0,
                named="",
            ),
            Must(
                "rise of the least clear grade a round",
                partial(slope, "helpfulness", GRADES[-1]),
                above=0,
                named="",
            ),
        ),
        intervals="(95 % over comparisons)",
        shown=(_shares,),
        recorded=False,
        measured_by=measure_shares,
        runs=lambda recipe, seed: {JUDGE: (JUDGE, recipe)},
        min_seeds=1,
    ),
)
