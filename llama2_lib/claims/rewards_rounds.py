"""Claims 18 and 19: reward models and comparisons from round to round of one chain."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from llama2_lib import pipeline
from llama2_lib.claims.claim import (
    Measurement,
    Threshold,
    Verdict,
    above,
    decide,
    keys_under,
)
from llama2_lib.claims.rewards_arms import Scores, against, measurement
from llama2_lib.claims.rewards_judges import Z, averages, paired_gain
from llama2_lib.device import choose_device
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.recipes import Recipe
from llama2_lib.stages.preferences import read_pairs
from llama2_lib.stages.reward import encode_pairs, scores_of
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.world.annotators import GRADES, TAU, bayes_accuracy
from llama2_lib.world.pairs import STREAMS, Pair

LAST = f"rewards_v{pipeline.ROUNDS + 1}"


def round_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the last reward models of the recipe's own chain, whatever the seed."""
    return [(LAST, recipe)]


def rounds(recipe: Recipe) -> dict[int, Path]:
    """Return the folders of the chain's reward models, by round."""
    pipeline.artifact(LAST, recipe)
    numbers = range(1, pipeline.ROUNDS + 2)
    return {n: pipeline.artifact(f"rewards_v{n}", recipe, bar=False) for n in numbers}


def summary(folder: Path, stream: str) -> dict[str, Any]:
    """Return the summary that a round left of one stream."""
    return json.loads((folder / stream / "summary.json").read_text(encoding="utf-8"))


def measure_drift(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 18; the keys are those of its judge. The seed changes nothing.

    Comparisons that were held back in a round are scored by the model of that round and by that
    of the round before, which has not seen such answers. `accuracy/<stream>/<round>/before` and
    `.../after` are the shares that the rounds themselves have noted, shown.
    """
    folders, values = rounds(recipe), dict[str, float]()
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", recipe, bar=False))
    device = choose_device()
    models = {n: pipeline.load_rewards(folder, device) for n, folder in folders.items()}
    seen: dict[str, list[Scores]] = {"own": [], "next": [], "refreshed": []}
    for stream in STREAMS:
        held = {n: read_pairs(folder / stream / "held.jsonl") for n, folder in folders.items()}
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
    return measurement(values, seed)


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


def measure_shares(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 19; the keys are those of its judge. The seed changes nothing."""
    values: dict[str, float] = {}
    for number, folder in rounds(recipe).items():
        for stream in STREAMS:
            noted = summary(folder, stream)
            for grade in GRADES:
                n = round(noted[f"share of {grade}"] * noted["fresh pairs"])
                values[f"count/{stream}/{number}/{grade}"] = float(n)
    return measurement(values, seed)


def judge_drift(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 18: one chain, so the first measurement is all there is.

    Keys: `right/<when>`, `pairs/<when>` and `ceiling/<when>` for `own` (answers like those it
    was trained on) and `next` (of the next policy, before the refresh): pairs that the model has
    right, all, and the mean noise ceiling; those of `paired_gain` for `refreshed-next`.
    """
    (one,) = measurements[:1]
    values, short = one.values, {}
    variance = 0.0
    for when in ("own", "next"):
        n = values[f"pairs/{when}"]
        share = values[f"right/{when}"] / n
        short[when] = values[f"ceiling/{when}"] - share
        variance += share * (1 - share) / n
    drop, half = short["next"] - short["own"], Z * math.sqrt(variance)
    estimates = {
        "drop below the ceiling": Estimate(
            value=drop, low=drop - half, high=drop + half, n=int(values["pairs/next"])
        ),
        "gain of the refresh": paired_gain([one], "refreshed-next"),
    }
    checks = [above(name, value, limit["gain"]) for name, value in estimates.items()]
    return decide(checks, estimates | averages([one], "accuracy"))


def judge_shares(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 19: one chain, so the first measurement is all there is.

    Keys: `count/<stream>/<round>/<grade>`, comparisons with that grade. The slope is that of
    least squares over single comparisons; helpfulness is judged, safety shown.
    """
    (one,) = measurements[:1]
    estimates = {}
    for key in keys_under([one], "count"):
        stream, number, _ = key.split("/")
        total = sum(one.values[f"count/{stream}/{number}/{other}"] for other in GRADES)
        share = one.values[f"count/{key}"] / total
        estimates[f"share/{key}"] = Estimate(value=share, low=share, high=share, n=int(total))
    slopes = {
        f"slope/{stream}/{grade}": _slope(one, stream, grade)
        for stream in STREAMS
        for grade in (GRADES[0], GRADES[-1])
    }
    falls, rises = (slopes[f"slope/helpfulness/{grade}"] for grade in (GRADES[0], GRADES[-1]))
    fall = Estimate(value=-falls.value, low=-falls.high, high=-falls.low, n=falls.n)
    checks = [
        above("fall of the clearest grade a round", fall, limit["slope"]),
        above("rise of the least clear grade a round", rises, limit["slope"]),
    ]
    return decide(checks, estimates | slopes)


def _slope(one: Measurement, stream: str, grade: str) -> Estimate:
    rounds: list[int] = []
    is_it: list[bool] = []
    for key in keys_under([one], f"count/{stream}"):
        number, other = key.split("/")
        n = round(one.values[f"count/{stream}/{key}"])
        rounds += [int(number)] * n
        is_it += [other == grade] * n
    line = stats.linregress(rounds, np.array(is_it, dtype=float))
    half = float(stats.t.ppf(0.975, len(rounds) - 2) * line.stderr)
    slope = float(line.slope)
    return Estimate(value=slope, low=slope - half, high=slope + half, n=len(rounds))
