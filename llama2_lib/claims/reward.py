"""Claims on reward models (paper sections 3.2.1 to 3.2.3, appendix A.3), but for rounds.

They compare models of the grid's size that were trained on the world's pairs. What their intervals
can resolve, reckoned before any run: with 2,500 held-out pairs a seed, 3 seeds, and one pair in ten
that two models disagree on, about 0.7 points over pairs; over seeds, if only the pairs vary, 1.6
points; in one grade about twice as much. Claim 12 has 5,000 pairs a seed.

Seeds 0 to 2 left claims 11 and 13 to 17 open. Seeds 3 to 7 were then added to all that compare
models of the grid's size, once, by the same rules: `llama2 claims 11 12 13 14 15 16 17 20 28
--seeds 8`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit

from llama2_lib import pipeline
from llama2_lib.claims.claim import (
    PAIRED,
    SHARE,
    SIGNED,
    Check,
    Claim,
    Fact,
    Measurement,
    Measurements,
    Must,
    Outcome,
    Proviso,
    Trust,
    all_paired_gains,
    bounded,
    column,
    decide,
    mean,
    minus,
    of_stage,
    paired_gain,
    wins,
)
from llama2_lib.claims.variants import (
    Scores,
    against,
    arms,
    by_group,
    groups,
    of_stream,
    rate,
    scale_arms,
    scored,
    trained,
)
from llama2_lib.config import Recipe
from llama2_lib.evaluation.reward import accuracy, calibration, detection
from llama2_lib.evaluation.statistics import Estimate, ordering
from llama2_lib.stages.reward import SAFE_BINS, held_out_of
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.judges import judge_of
from llama2_lib.world.pairs import GRADES, STREAMS, Pair

MARGINS = {"none": "none", "small": "helpful", "large": "large"}
"""Arms by margin schedule."""
END = 0.1
"""How near 0 or 1 is near, in claim 13."""
AT = 0.15
"""Where claim 28 cuts."""
LEVELS = 7
"""Bins of claim 20: the paper's scale of quality has 7 points."""
WORST_FIRST = GRADES[::-1]
CHANCE = 0.05
"""How often chance alone may bring as many seeds into the order of the grades, in claim 11."""
RESOLVE = 0.016
"""The paper's gain on the clearest pairs, which claim 12 must be able to see."""


# ------------------------------------------------------------- measures


def measure_grades(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 11.

    Keys: `accuracy/<stream>/<grade>` of each model on its own stream; `ceiling/...` the same of
    the gold judge, shown; `control/helpfulness`, accuracy of the model that learned from coins;
    `pairs/<stream>/<grade>`.
    """
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
    return values


def measure_margin(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 12.

    Keys: those of `against` for `<schedule>-none/<grade or all>` and `large-small/...`;
    `accuracy/<schedule>/<grade or all>`, shown.
    """
    pairs = (("small", "none"), ("large", "none"), ("large", "small"))
    return by_group("grade", of_stream(recipe, seed, "helpfulness", MARGINS), pairs)


def measure_poles(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 13.

    Keys: `low/<schedule>` and `high/<schedule>`, shares of answers below `END` and above
    1 - `END` after the sigmoid; `ends/<schedule>`, their sum; `spread/...`, of raw scores, shown.
    """
    values: dict[str, float] = {}
    for margin, scores in of_stream(recipe, seed, "helpfulness", MARGINS).items():
        both = np.concatenate([scores.chosen, scores.rejected])
        squashed = expit(both - both.mean())
        values[f"low/{margin}"] = float((squashed < END).mean())
        values[f"high/{margin}"] = float((squashed > 1 - END).mean())
        values[f"ends/{margin}"] = values[f"low/{margin}"] + values[f"high/{margin}"]
        values[f"spread/{margin}"] = float(both.std())
    return values


def measure_auxiliary(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 14.

    Keys: `recall/<arm>`, share of unsafe answers below one half after the sigmoid, and
    `alarms/<arm>`, the same of safe ones, for the arms `with` and `without`; `gap/<arm>`, the
    first less the second; those of `against` for `with-without/<bin or all>`; shown,
    `accuracy/<arm>/<bin or all>`.
    """
    own = of_stream(recipe, seed, "safety", {"with": "safe", "without": "without"})
    values: dict[str, float] = {}
    for arm, scores in own.items():
        both, is_safe = _labelled(scores)
        values[f"recall/{arm}"] = detection(both, is_safe).recall.value
        values[f"alarms/{arm}"] = float((both[is_safe] < 0).mean())
        values[f"gap/{arm}"] = values[f"recall/{arm}"] - values[f"alarms/{arm}"]
    return values | by_group("safety_bin", own, [("with", "without")])


def _labelled(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of single answers, and their labels."""
    labels = np.array([SAFE_BINS[name] for name in scores.safety_bin])
    return np.concatenate([scores.chosen, scores.rejected]), labels.T.ravel()


def measure_two(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 15.

    Keys: those of `against` for `<one>-<other>/<stream>` of the models helpful, safe, joint and
    joint_equal; `accuracy/<model>/<stream>`, shown.
    """
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
    return values


def measure_scale(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 16.

    Keys: those of `against` for `data/<width>` (most pairs against fewest), `size` (widest against
    narrowest, most pairs) and `last` (widest, most pairs against the number before);
    `accuracy/<width>/<pairs>`, shown.
    `clearest/<width>/<pairs>` is the accuracy on the clearest grade, shown.
    """
    runs = scale_arms(recipe, seed)
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
    return values


def measure_mix(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 17: the keys of `against` for `mixed-alone/<bin or all>`, and accuracies."""
    own = of_stream(recipe, seed, "safety", {"mixed": "safe", "alone": "alone"})
    return by_group("safety_bin", own, [("mixed", "alone")])


def measure_calibration(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 20.

    Keys, by stream: `rise`, mean of sigmoid(score) in the last bin of gold quality less that in
    the first; `monotone`, rank correlation of both over the bins; `level/<stream>/<bin>` and
    `gold/<stream>/<bin>`, shown.
    Gold quality is that of the model's own axis. Bins of the same gold quality count as tied.
    """
    values: dict[str, float] = {}
    for name, stream in (("helpful", "helpfulness"), ("safe", "safety")):
        run, scores = arms(recipe, seed)[name], trained(recipe, seed, name)[name][stream]
        tokenizer = load_tokenizer(pipeline.artifact("tokenizer", run, bar=False))
        pairs = held_out_of(run, tokenizer)[stream]
        both = np.concatenate([scores.chosen, scores.rejected])
        bins = calibration(both, gold_quality(recipe, stream, pairs), bins=LEVELS, seed=seed)
        levels = [level.value for _, level in bins]
        for number, (gold, level) in enumerate(bins, 1):
            values[f"gold/{stream}/{number}"] = gold
            values[f"level/{stream}/{number}"] = level.value
        values[f"rise/{stream}"] = levels[-1] - levels[0]
        ranks = stats.spearmanr([round(gold, 6) for gold, _ in bins], levels)
        values[f"monotone/{stream}"] = float(ranks.statistic)
    return values


def gold_quality(recipe: Recipe, stream: str, pairs: list[Pair]) -> np.ndarray:
    """Return the gold marks of the chosen answers, then those of the rejected ones."""
    judge = judge_of(make_world(recipe.corpus.world_seed))
    mark = judge.helpfulness if stream == "helpfulness" else judge.safety
    chosen = [mark(pair.prompt, pair.chosen).score for pair in pairs]
    return np.array(chosen + [mark(pair.prompt, pair.rejected).score for pair in pairs])


def measure_threshold(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 28.

    Keys: `precision` and `recall` of sigmoid(score) < 0.15 as a test for unsafe answers (a test
    that calls nothing unsafe has 0 of both); `unsafe`, their share, `recall at 0.5` and
    `false alarms`, shown.
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
    return values


# ------------------------------------------------------------- quantities


def _slope(stream: str, measurement: Measurement) -> float:
    rising = [measurement[f"accuracy/{stream}/{grade}"] for grade in WORST_FIRST]
    return float(np.polyfit(range(len(rising)), rising, deg=1)[0])


def _off_half(key: str) -> Any:
    return mean(lambda measurement: measurement[key] - 0.5, confidence=0.9)


def _ordered(stream: str, measurements: Measurements) -> Any:
    keys = [f"accuracy/{stream}/{grade}" for grade in WORST_FIRST]
    return ordering(list(zip(*(column(measurements, key) for key in keys), strict=True)))


def _in_order(stream: str, measurements: Measurements) -> list[Check]:
    order = _ordered(stream, measurements)
    text = f"{stream}: {order.estimate.value:.0%} of seeds in the order of the grades"
    # too few seeds in order do not show the contrary; a falling slope would
    return [Check(text=text, holds=True if order.p_value < CHANCE else None)]


def _orders(measurements: Measurements) -> dict[str, Estimate]:
    return {f"in order/{stream}": _ordered(stream, measurements).estimate for stream in STREAMS}


def _too_coarse(measurements: Measurements, checks: Sequence[Check]) -> tuple[Outcome, str] | None:
    """Tell whether claim 12 is undecided, and could not have seen what the paper saw."""
    top, verdict = paired_gain(measurements, f"large-none/{GRADES[0]}"), decide(checks, {})
    half = top.high - top.value
    if verdict.outcome != Outcome.INCONCLUSIVE or half <= RESOLVE:
        return None
    return Outcome.CANNOT_SHOW, (
        f"the interval is +-{half:.1%} wide on the clearest pairs, the paper's gain there "
        f"{RESOLVE:.1%}; {verdict.reason}"
    )


CLAIMS = (
    Claim(
        id=11,
        section="3.2.2",
        statement="A reward model is the more accurate, the clearer the preference.",
        paper_value="80.7, 67.5, 60.9, 54.7 % from clearest to unsure; safety 94.3, 76.3, 65.7, "
        "55.3 %",
        paper_trust=Trust.PRINTED,
        prediction="Accuracy rises from grade to grade for both models, from near chance on ties; "
        "a model that learned from tossed coins stays at one half.",
        where="Each model on its own stream",
        tests=(
            *(
                test
                for stream in STREAMS
                for test in (
                    Must(
                        f"{stream}: accuracy a grade",
                        mean(partial(_slope, stream)),
                        above=0.03,
                        named=f"rise a grade/{stream}",
                    ),
                    Fact(
                        f"{stream}: seeds in the order of the grades more often than by chance (p "
                        f"< {CHANCE:g})",
                        partial(_in_order, stream),
                    ),
                    Must(
                        f"{stream}: accuracy on ties minus one half",
                        _off_half(f"accuracy/{stream}/{WORST_FIRST[0]}"),
                        within=0.1,
                        named="",
                        says=f"{stream}: accuracy on ties minus one half (90 %)",
                    ),
                )
            ),
            Must(
                "control minus one half",
                _off_half("control/helpfulness"),
                within=0.1,
                named="",
                # what it learned from chance may be right or wrong by chance
                says="the control, whose labels were exchanged by coins, minus one half (90 %)",
            ),
        ),
        shown=(bounded("accuracy", "ceiling", "control"), _orders),
        measured_by=measure_grades,
        runs=of_stage("reward_model", arms, "helpful", "safe", "coin"),
    ),
    Claim(
        id=12,
        section="A.3.3",
        statement="A margin that grows with the grade makes the model better on clear pairs.",
        paper_value="no, small, large margin: 79.1, 80.4, 80.7 % on the clearest pairs; 54.5, "
        "55.0, 54.3 % on unsure ones; 62.5, 63.0, 62.9 % on all",
        paper_trust=Trust.PRINTED,
        prediction="The large margin gains on the clearest pairs, the small one on average. What "
        "the large one loses on ties, 0.2 points in the paper, is shown and not judged: it would "
        "take a hundred thousand pairs.",
        where="Right more often than without a margin",
        tests=(
            wins("large margin, clearest pairs", f"large-none/{GRADES[0]}", above=0),
            wins("small margin, all pairs", "small-none/all", above=0),
        ),
        proviso=Proviso(
            "If that is undecided and the interval on the clearest pairs reaches further than "
            f"{RESOLVE:g} from its middle, the paper's own gain there, it cannot be shown at this "
            "scale.",
            _too_coarse,
        ),
        shown=(bounded("accuracy"),),
        measured_by=measure_margin,
        runs=of_stage("reward_model", arms, "none", "helpful", "large"),
    ),
    Claim(
        id=13,
        section="A.3.3",
        statement="The margin drives scores towards 0 and 1.",
        paper_value="figure 27: without a margin below 2 % of answers in any bin; with the large "
        "one about 8.3 % near 1 and 3.7 % near 0",
        paper_trust=Trust.FIGURE,
        prediction="After the sigmoid more answers lie at both ends with the large margin than "
        "without; with the small one it is between.",
        where="Scores of all held-out answers, shifted to mean 0, since comparisons leave the zero "
        f"free: the share within {END:g} of 0 or 1 after the sigmoid",
        tests=tuple(
            Must(
                f"{where}: {more} minus none",
                mean(minus(f"{where}/{more}", f"{where}/none")),
                above=bound,
            )
            for where, more, bound in (
                ("ends", "large", 0.05),
                ("ends", "small", 0.0),
                ("low", "large", 0.0),
                ("high", "large", 0.0),
            )
        ),
        shown=(bounded("low", "high", "ends"), "spread"),
        measured_by=measure_poles,
        runs=of_stage("reward_model", arms, "none", "helpful", "large"),
    ),
    Claim(
        id=14,
        section="A.3.4",
        statement="An auxiliary safety loss lifts the recall of unsafe answers.",
        paper_value="recall at 0.5 from 73.0 to 90.4 %, accuracy on pairs from 63.7 to 64.5 %",
        paper_trust=Trust.PRINTED,
        prediction="Recall rises much, and not by calling everything unsafe; accuracy on pairs "
        "does not fall. The loss is our reconstruction: the paper gives no formula.",
        where="With the loss less without",
        tests=(
            Must("gain of recall", mean(minus("recall/with", "recall/without")), above=0.05),
            Must(
                "gain of recall less false alarms",
                mean(minus("gap/with", "gap/without")),
                above=0,
                says="gain of recall less false alarms (both 95 % over seeds)",
            ),
            wins("gain of accuracy on pairs", "with-without/all", above=-0.01),
        ),
        shown=(bounded("recall", "alarms", "accuracy"),),
        measured_by=measure_auxiliary,
        runs=of_stage("reward_model", arms, "safe", "without"),
    ),
    Claim(
        id=15,
        section="3.2.2",
        statement="Two reward models, for helpfulness and for safety, beat a single one.",
        paper_value="helpfulness model 63.2 % on helpfulness and 62.8 % on safety, safety model "
        "56.2 and 64.5 %; no number for a single model",
        paper_trust=Trust.PRINTED,
        prediction="Each model is best at home, and there better than one model of the same size "
        "that learned from the own pairs of both. Shown beside: one model with as many pairs as "
        "each of the two, half of each stream.",
        where="Right more often, one model less another",
        tests=tuple(
            wins(name, name, above=0)
            for name in (
                "helpful-safe/helpfulness",
                "safe-helpful/safety",
                "helpful-joint/helpfulness",
                "safe-joint/safety",
            )
        ),
        shown=(bounded("accuracy"),),
        measured_by=measure_two,
        runs=of_stage("reward_model", arms, "helpful", "safe", "joint", "joint_equal"),
    ),
    Claim(
        id=16,
        section="3.2.2",
        statement="Accuracy grows with data and with the size of the reward model, and no end is "
        "in sight.",
        paper_value="figure 6, batches 1 to 14: from about 0.51 to 0.610, 0.614, 0.634 for 7B, "
        "13B, 70B",
        paper_trust=Trust.FIGURE,
        prediction="Eight times the pairs helps every width, four times the width helps with most "
        "pairs, and the last step of data still helps the widest.",
        where="Right more often",
        tests=(
            Must(
                "at each width most pairs less fewest, with most pairs widest less narrowest, at "
                "the widest the last step of data, each",
                all_paired_gains,
                above=0,
                intervals=PAIRED,
            ),
        ),
        shown=(bounded("accuracy", "clearest"),),
        measured_by=measure_scale,
        runs=of_stage("reward_model", scale_arms),
    ),
    Claim(
        id=17,
        section="3.2.2",
        statement="A tenth of helpfulness pairs helps the safety model where both answers are "
        "safe.",
        paper_value="90/10 mix; said to help most where both answers are safe; no number",
        paper_trust=Trust.DESIGN,
        prediction="With as many pairs in all, 90/10 is better than 100/0 on pairs of safe "
        "answers. About 1,200 such pairs a seed: less than one to three points cannot be seen.",
        where="On held-out pairs, mixed less alone",
        tests=(wins("gain where both are safe", "mixed-alone/both safe", above=0),),
        shown=(bounded("accuracy"),),
        measured_by=measure_mix,
        runs=of_stage("reward_model", arms, "safe", "alone"),
    ),
    Claim(
        id=20,
        section="3.3",
        statement="Trained on comparisons, scores rise with the quality of single answers, too.",
        paper_value="figure 29, quality 1 to 7: helpfulness from about .24 to .55, safety from "
        "about .29 to .78",
        paper_trust=Trust.FIGURE,
        prediction="The mean of sigmoid(score) rises with gold quality, for both models.",
        where="Over seven bins of equal numbers of held-out answers in the order of gold quality, "
        "rise of the mean of sigmoid(score) from first to last, and its rank correlation with them",
        tests=tuple(
            Must(
                f"{name} of {stream}",
                mean(f"{name}/{stream}", bounds=SIGNED),
                above=bound,
                named=f"{name}/{stream}",
            )
            for stream in STREAMS
            for name, bound in (("rise", 0.1), ("monotone", 0.8))
        ),
        shown=(bounded("level"),),
        measured_by=measure_calibration,
        runs=of_stage("reward_model", arms, "helpful", "safe"),
    ),
    Claim(
        id=28,
        section="3.2.3",
        statement="A safety score below 0.15 nearly always means unsafe, but many are missed.",
        paper_value="precision 0.89, recall 0.55 at 0.15",
        paper_trust=Trust.PRINTED,
        prediction="High precision at a moderate recall.",
        where=f"Held-out answers with sigmoid(score) below {AT:g} as a test for unsafe ones",
        tests=(
            Must("precision", mean("precision", bounds=SHARE), above=0.8),
            Must("recall", mean("recall", bounds=SHARE), above=0.3),
        ),
        shown=(bounded("unsafe", "recall at 0.5"),),
        measured_by=measure_threshold,
        runs=of_stage("reward_model", arms, "safe"),
    ),
)
