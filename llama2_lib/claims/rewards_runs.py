"""What the claims on reward models measure, but for the rounds."""

import numpy as np
from scipy import stats
from scipy.special import expit

from llama2_lib import pipeline
from llama2_lib.claims.claim import Measurement
from llama2_lib.claims.rewards_arms import (
    Scores,
    against,
    arms,
    groups,
    measurement,
    rate,
    scale_arms,
    scored,
    trained,
)
from llama2_lib.evaluation.reward import accuracy, calibration, detection
from llama2_lib.recipes import Recipe
from llama2_lib.stages.reward import SAFE_BINS
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.annotators import GRADES
from llama2_lib.world.judges import judge_of
from llama2_lib.world.pairs import Pair

MARGINS = {"none": "none", "small": "helpful", "large": "large"}
"""Arms by margin schedule."""
END = 0.1
"""How near 0 or 1 is near, in claim 13."""
AT = 0.15
"""Where claim 28 cuts."""
LEVELS = 7
"""Bins of claim 20: the paper's scale of quality has 7 points."""


def measure_grades(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 11; the keys are those of its judge, and `pairs/<stream>/<grade>`."""
    found = trained(recipe, seed, "helpful", "safe", "coin")
    values: dict[str, float] = {}
    for name, stream in (("helpful", "helpfulness"), ("safe", "safety")):
        own = found[name][stream]
        for grade, rows in groups(own, "grade").items():
            gap = own.gap[rows]
            values[f"accuracy/{stream}/{grade}"] = rate(own.where(rows))
            values[f"ceiling/{stream}/{grade}"] = accuracy(gap, np.zeros(len(gap))).value
            values[f"pairs/{stream}/{grade}"] = float(rows.sum())
    values["control/helpfulness"] = rate(found["coin"]["helpfulness"])
    return measurement(values, seed)


def _margins(recipe: Recipe, seed: int) -> dict[str, Scores]:
    found = trained(recipe, seed, *MARGINS.values())
    return {margin: found[name]["helpfulness"] for margin, name in MARGINS.items()}


def measure_margin(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 12; the keys are those of its judge."""
    found = _margins(recipe, seed)
    values: dict[str, float] = {}
    for grade, rows in groups(found["none"], "grade").items():
        some = {margin: scores.where(rows) for margin, scores in found.items()}
        for margin, scores in some.items():
            values[f"accuracy/{margin}/{grade}"] = rate(scores)
        for one, other in (("small", "none"), ("large", "none"), ("large", "small")):
            values |= against(f"{one}-{other}/{grade}", some[one], some[other])
    return measurement(values, seed)


def measure_poles(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 13; the keys are those of its judge. `spread` is that of the raw scores."""
    values: dict[str, float] = {}
    for margin, scores in _margins(recipe, seed).items():
        both = np.concatenate([scores.chosen, scores.rejected])
        squashed = expit(both - both.mean())
        values[f"low/{margin}"] = float((squashed < END).mean())
        values[f"high/{margin}"] = float((squashed > 1 - END).mean())
        values[f"ends/{margin}"] = values[f"low/{margin}"] + values[f"high/{margin}"]
        values[f"spread/{margin}"] = float(both.std())
    return measurement(values, seed)


def measure_auxiliary(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 14; the keys are those of its judge, and `accuracy/<arm>/<bin or all>`."""
    found = trained(recipe, seed, "safe", "without")
    own = {arm: found[name]["safety"] for arm, name in (("with", "safe"), ("without", "without"))}
    values: dict[str, float] = {}
    for arm, scores in own.items():
        both, is_safe = _labelled(scores)
        values[f"recall/{arm}"] = detection(both, is_safe).recall.value
        values[f"alarms/{arm}"] = float((both[is_safe] < 0).mean())
        values[f"gap/{arm}"] = values[f"recall/{arm}"] - values[f"alarms/{arm}"]
    for name, rows in groups(own["with"], "safety_bin").items():
        some = {arm: scores.where(rows) for arm, scores in own.items()}
        values |= {f"accuracy/{arm}/{name}": rate(scores) for arm, scores in some.items()}
        values |= against(f"with-without/{name}", some["with"], some["without"])
    return measurement(values, seed)


def _labelled(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of single answers, and their labels."""
    labels = np.array([SAFE_BINS[name] for name in scores.safety_bin])
    return np.concatenate([scores.chosen, scores.rejected]), labels.T.ravel()


def measure_two(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 15; the keys are those of its judge."""
    found = trained(recipe, seed, "helpful", "safe", "joint", "joint_equal")
    n = min(len(one["helpfulness"].gap) for one in found.values())
    values = {
        f"accuracy/{name}/{stream}": rate(scores.where(np.arange(len(scores.gap)) < n))
        for name, by_stream in found.items()
        for stream, scores in by_stream.items()
    }
    for home, stream in (("helpful", "helpfulness"), ("safe", "safety")):
        for other in (name for name in found if name != home):
            name = f"{home}-{other}/{stream}"
            values |= against(name, found[home][stream], found[other][stream])
    return measurement(values, seed)


def measure_scale(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 16; the keys are those of its judge.

    `clearest/<width>/<pairs>` is the accuracy on the clearest grade, shown.
    """
    runs = scale_arms(recipe, seed)
    pipeline.artifacts([("reward_model", run) for run in runs.values()])
    found = {at: scored(run)["helpfulness"] for at, run in runs.items()}
    n = min(len(scores.gap) for scores in found.values())
    found = {at: scores.where(np.arange(len(scores.gap)) < n) for at, scores in found.items()}
    values: dict[str, float] = {}
    for (width, pairs), scores in found.items():
        values[f"accuracy/{width}/{pairs}"] = rate(scores)
        values[f"clearest/{width}/{pairs}"] = rate(scores.where(scores.grade == GRADES[0]))
    widths = sorted({width for width, _ in found})
    fewest, *_, before, most = sorted({pairs for _, pairs in found})
    for width in widths:
        values |= against(f"data/{width}", found[width, most], found[width, fewest])
    values |= against("size", found[widths[-1], most], found[widths[0], most])
    values |= against("last", found[widths[-1], most], found[widths[-1], before])
    return measurement(values, seed)


def measure_mix(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 17; the keys are those of its judge."""
    found = trained(recipe, seed, "safe", "alone")
    mixed, alone = (found[name]["safety"] for name in ("safe", "alone"))
    values: dict[str, float] = {}
    for name, rows in groups(mixed, "safety_bin").items():
        one, other = mixed.where(rows), alone.where(rows)
        values |= {f"accuracy/mixed/{name}": rate(one), f"accuracy/alone/{name}": rate(other)}
        values |= against(f"mixed-alone/{name}", one, other)
    return measurement(values, seed)


def measure_calibration(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 20; the keys are those of its judge, and `gold/<stream>/<bin>`.

    Gold quality is that of the model's own axis. Bins of the same gold quality count as tied.
    """
    values: dict[str, float] = {}
    for name, stream in (("helpful", "helpfulness"), ("safe", "safety")):
        run, scores = arms(recipe, seed)[name], trained(recipe, seed, name)[name][stream]
        tokenizer = load_tokenizer(pipeline.artifact("tokenizer", run, bar=False))
        pairs = pipeline.held_out_of(run, tokenizer)[stream]
        both = np.concatenate([scores.chosen, scores.rejected])
        bins = calibration(both, gold_quality(recipe, stream, pairs), bins=LEVELS, seed=seed)
        levels = [level.value for _, level in bins]
        for number, (gold, level) in enumerate(bins, 1):
            values[f"gold/{stream}/{number}"] = gold
            values[f"level/{stream}/{number}"] = level.value
        values[f"rise/{stream}"] = levels[-1] - levels[0]
        ranks = stats.spearmanr([round(gold, 6) for gold, _ in bins], levels)
        values[f"monotone/{stream}"] = float(ranks.statistic)
    return measurement(values, seed)


def gold_quality(recipe: Recipe, stream: str, pairs: list[Pair]) -> np.ndarray:
    """Return the gold marks of the chosen answers, then those of the rejected ones."""
    judge = judge_of(make_world(recipe.corpus.world_seed))
    mark = judge.helpfulness if stream == "helpfulness" else judge.safety
    chosen = [mark(pair.prompt, pair.chosen).score for pair in pairs]
    return np.array(chosen + [mark(pair.prompt, pair.rejected).score for pair in pairs])


def measure_threshold(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 28; the keys are those of its judge, and `false alarms`.

    The labels are those of annotators, one in fifty of them wrong.
    """
    both, is_safe = _labelled(trained(recipe, seed, "safe")["safe"]["safety"])
    found = detection(both, is_safe, AT)
    values = {
        "precision": found.precision.value if found.precision else 0.0,
        "recall": found.recall.value,
        "unsafe": float((~is_safe).mean()),
        "recall at 0.5": detection(both, is_safe).recall.value,
        "false alarms": float((expit(both[is_safe]) < AT).mean()),
    }
    return measurement(values, seed)
