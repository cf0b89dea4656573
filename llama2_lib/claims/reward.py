"""Claims on reward models (paper sections 3.2.1 to 3.2.3, appendix A.3), but for rounds.

They compare models of the grid's size that were trained on the world's pairs. What their intervals
can resolve, reckoned before any run: with 2,500 held-out pairs a seed, 3 seeds, and one pair in ten
that two models disagree on, about 0.7 points over pairs; over seeds, if only the pairs vary, 1.6
points; in one grade about twice as much. Claim 12 has 5,000 pairs a seed.

Seeds 0 to 2 left claims 11 and 13 to 17 open. Seeds 3 to 7 were then added to all that compare
models of the grid's size, once, by the same rules: `llama2 claims 11 12 13 14 15 16 17 20 28
--seeds 8`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit

from llama2_lib import pipeline
from llama2_lib.claims import claim
from llama2_lib.claims.attention import quality_recipes
from llama2_lib.claims.claim import Claim, Fact, Measurements, Must, Proviso, Trust, mean, wins
from llama2_lib.claims.pretraining import NARROWER, at_width
from llama2_lib.config import Recipe, RewardConfig, RewardVariant, Stream
from llama2_lib.evaluation.reward import accuracy, calibration, detection
from llama2_lib.evaluation.statistics import Tested, ordering
from llama2_lib.stages.reward import OWN_SHARE, SAFE_BINS, HeldOut, held_out_of, held_out_scores
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.judges import judge_of
from llama2_lib.world.pairs import GRADES, STREAMS, Pair

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
HOMES = {"helpful": "helpfulness", "safe": "safety"}
"""The two models of the paper, and the stream of each."""
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


# ------------------------------------------------------------- the models that are compared


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


# ------------------------------------------------------------- measures


def measure_grades(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 11: `accuracy/<stream>/<grade>` of each model on its own stream, and
    `control/helpfulness`, of the model that learned from coins. Shown: `ceiling/...`, accuracy of
    the gold judge, `pairs/...`, their number."""
    values: dict[str, float] = {}
    for arm, stream in HOMES.items():
        for grade, own in of_arm(recipe, seed, stream, arm).groups("grade").items():
            values[f"accuracy/{stream}/{grade}"] = own.accuracy
            values[f"ceiling/{stream}/{grade}"] = accuracy(own.gap, np.zeros(len(own.gap))).value
            values[f"pairs/{stream}/{grade}"] = float(len(own.gap))
    control = of_arm(recipe, seed, "helpfulness", "coin")
    return values | {"control/helpfulness": control.accuracy}


def measure_margin(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 12: `against` for `<schedule>-none` and `large-small`; see `by_group`."""
    pairs = (("small", "none"), ("large", "none"), ("large", "small"))
    return by_group("grade", of_arms(recipe, seed, "helpfulness", MARGINS), pairs)


def measure_poles(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 13: `low/<schedule>` and `high/<schedule>`, shares of answers below `END` and
    above 1 - `END` after the sigmoid; `ends/...`, their sum; shown, `spread/...` of raw scores."""
    values: dict[str, float] = {}
    for margin, scores in of_arms(recipe, seed, "helpfulness", MARGINS).items():
        squashed = expit(scores.single - scores.single.mean())
        low, high = float((squashed < END).mean()), float((squashed > 1 - END).mean())
        values |= {f"low/{margin}": low, f"high/{margin}": high, f"ends/{margin}": low + high}
        values[f"spread/{margin}"] = float(scores.single.std())
    return values


def measure_auxiliary(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 14: `recall/<arm>`, share of unsafe answers below one half after the sigmoid,
    `alarms/<arm>`, the same of safe ones, their `gap/<arm>`; and the keys of `by_group`."""
    own = of_arms(recipe, seed, "safety", {"with": "safe", "without": "without"})
    values: dict[str, float] = {}
    for arm, scores in own.items():
        is_safe = _is_safe(scores)
        recall = detection(scores.single, is_safe).recall.value
        alarms = float((scores.single[is_safe] < 0).mean())
        values |= {f"recall/{arm}": recall, f"alarms/{arm}": alarms, f"gap/{arm}": recall - alarms}
    return values | by_group("safety_bin", own, [("with", "without")])


def _is_safe(scores: Scores) -> np.ndarray:
    """Return the labels of single answers."""
    return np.array([SAFE_BINS[name] for name in scores.safety_bin]).T.ravel()


def measure_two(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 15: `against` for `<one>-<other>/<stream>`, one being at home there; shown,
    `accuracy/<model>/<stream>`."""
    models = ("helpful", "safe", "joint", "joint_equal")
    scores = {(m, s): of_arm(recipe, seed, s, m) for m in models for s in STREAMS}
    n = min(len(scores[model, "helpfulness"].gap) for model in models)
    values = {
        f"accuracy/{model}/{stream}": own.where(slice(n)).accuracy
        for (model, stream), own in scores.items()
    }
    for home, stream in HOMES.items():
        for other in models:
            if other != home:
                name = f"{home}-{other}/{stream}"
                values |= against(name, scores[home, stream], scores[other, stream])
    return values


def measure_scale(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 16: `against` for `data` at each width, `size` with most pairs, and the `last`
    step of data at the widest; shown, accuracy by width and pairs, also on the `clearest` grade."""
    runs = scale_arms(recipe, seed)
    scores = {at: scored(run)["helpfulness"] for at, run in runs.items()}
    n = min(len(own.gap) for own in scores.values())
    values: dict[str, float] = {}
    for (width, pairs), own in scores.items():
        groups = own.where(slice(n)).groups("grade")
        values[f"accuracy/{width}/{pairs}"] = groups["all"].accuracy
        values[f"clearest/{width}/{pairs}"] = groups[GRADES[0]].accuracy
    widths = sorted({width for width, _ in scores})
    fewest, *_, before, most = sorted({pairs for _, pairs in scores})
    for width in widths:
        values |= against(f"data/{width}", scores[width, most], scores[width, fewest])
    widest = scores[widths[-1], most]
    values |= against("size", widest, scores[widths[0], most])
    return values | against("last", widest, scores[widths[-1], before])


def measure_mix(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 17: `against` for `mixed-alone`, see `by_group`."""
    own = of_arms(recipe, seed, "safety", {"mixed": "safe", "alone": "alone"})
    return by_group("safety_bin", own, [("mixed", "alone")])


def measure_calibration(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 20, with gold quality of the model's own axis.

    Keys: `rise/<stream>` of the mean of sigmoid(score), its `level`, from the first bin of gold
    quality to the last; `monotone/<stream>`, rank correlation of both over the bins, of which those
    of the same quality count as tied.
    """
    values: dict[str, float] = {}
    for name, stream in HOMES.items():
        run, scores = arms(recipe, seed)[name], of_arm(recipe, seed, stream, name)
        tokenizer = load_tokenizer(pipeline.artifact("tokenizer", run, bar=False))
        gold = gold_quality(recipe, stream, held_out_of(run, tokenizer)[stream])
        bins = calibration(scores.single, gold, bins=LEVELS, seed=seed)
        levels = [level.value for _, level in bins]
        for number, (quality, level) in enumerate(bins, 1):
            values[f"gold/{stream}/{number}"] = quality
            values[f"level/{stream}/{number}"] = level.value
        values[f"rise/{stream}"] = levels[-1] - levels[0]
        ranks = stats.spearmanr([round(quality, 6) for quality, _ in bins], levels)
        values[f"monotone/{stream}"] = float(ranks.statistic)
    return values


def gold_quality(recipe: Recipe, stream: str, pairs: list[Pair]) -> np.ndarray:
    """Return the gold marks of the chosen answers, then those of the rejected ones."""
    judge = judge_of(make_world(recipe.corpus.world_seed))
    mark = judge.helpfulness if stream == "helpfulness" else judge.safety
    chosen = [mark(pair.prompt, pair.chosen).score for pair in pairs]
    return np.array(chosen + [mark(pair.prompt, pair.rejected).score for pair in pairs])


def measure_threshold(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 28: `precision` (0 if nothing is called unsafe) and `recall` of sigmoid(score)
    < `AT` as a test for unsafe answers by the annotators' labels, of which one in fifty is wrong.
    Shown: `unsafe`, their share, `recall at 0.5` and `false alarms`."""
    scores = of_arm(recipe, seed, "safety", "safe")
    is_safe = _is_safe(scores)
    test = detection(scores.single, is_safe, AT)
    return {
        "precision": test.precision.value if test.precision else 0.0,
        "recall": test.recall.value,
        "unsafe": float((~is_safe).mean()),
        "recall at 0.5": detection(scores.single, is_safe).recall.value,
        "false alarms": float((expit(scores.single[is_safe]) < AT).mean()),
    }


# ------------------------------------------------------------- quantities


def _slope(stream: str, measurement: claim.Measurement) -> float:
    rising = [measurement[f"accuracy/{stream}/{grade}"] for grade in WORST_FIRST]
    return float(np.polyfit(range(len(rising)), rising, deg=1)[0])


def _off_half(key: str) -> claim.Quantity:
    return mean(lambda measurement: measurement[key] - 0.5, confidence=0.9)


def _ordered(stream: str, measurements: Measurements) -> Tested:
    keys = [f"accuracy/{stream}/{grade}" for grade in WORST_FIRST]
    return ordering(list(zip(*(claim.column(measurements, key) for key in keys), strict=True)))


def _in_order(stream: str, measurements: Measurements) -> list[claim.Check]:
    order = _ordered(stream, measurements)
    text = f"{stream}: {order.estimate.value:.0%} of seeds in the order of the grades"
    # too few seeds in order do not show the contrary; a falling slope would
    return [claim.Check(text=text, holds=True if order.p_value < CHANCE else None)]


def _too_coarse(
    measurements: Measurements, checks: Sequence[claim.Check]
) -> tuple[claim.Outcome, str] | None:
    """Tell whether claim 12 is undecided, and could not have seen what the paper saw."""
    top = claim.paired_gain(measurements, f"large-none/{GRADES[0]}")
    verdict, half = claim.decide(checks, {}), top.high - top.value
    if verdict.outcome != claim.Outcome.INCONCLUSIVE or half <= RESOLVE:
        return None
    return claim.Outcome.CANNOT_SHOW, (
        f"the interval is +-{half:.1%} wide on the clearest pairs, the paper's gain there "
        f"{RESOLVE:.1%}; {verdict.reason}"
    )


CLAIMS = (
    Claim(
        id=11, section="3.2.2", paper_trust=Trust.PRINTED,
        statement="A reward model is the more accurate, the clearer the preference.",
        paper_value="80.7, 67.5, 60.9, 54.7 % from clearest to unsure; safety 94.3, 76.3, 65.7, "
        "55.3 %",
        prediction="Accuracy rises from grade to grade for both models, from near chance on ties; "
        "a model that learned from tossed coins stays at one half.",
        where="Each model on its own stream",
        tests=(
            *(
                test
                for stream in STREAMS
                for test in (
                    Must(
                        f"{stream}: accuracy a grade", mean(partial(_slope, stream)), above=0.03,
                        named=f"rise a grade/{stream}",
                    ),
                    Fact(
                        f"{stream}: seeds in the order of the grades more often than by chance (p "
                        f"< {CHANCE:g})",
                        partial(_in_order, stream),
                    ),
                    Must(
                        f"{stream}: accuracy on ties minus one half",
                        _off_half(f"accuracy/{stream}/{WORST_FIRST[0]}"), within=0.1, named="",
                        says=f"{stream}: accuracy on ties minus one half (90 %)",
                    ),
                )
            ),
            Must(
                "control minus one half", _off_half("control/helpfulness"), within=0.1, named="",
                # what it learned from chance may be right or wrong by chance
                says="the control, whose labels were exchanged by coins, minus one half (90 %)",
            ),
        ),
        shown=(
            claim.bounded("accuracy", "ceiling", "control"),
            {f"in order/{s}": lambda m, s=s: _ordered(s, m).estimate for s in STREAMS},
        ),
        measured_by=measure_grades,
        runs=claim.of_stage("reward_model", arms, "helpful", "safe", "coin"),
    ),
    Claim(
        id=12, section="A.3.3", paper_trust=Trust.PRINTED,
        statement="A margin that grows with the grade makes the model better on clear pairs.",
        paper_value="no, small, large margin: 79.1, 80.4, 80.7 % on the clearest pairs; 54.5, "
        "55.0, 54.3 % on unsure ones; 62.5, 63.0, 62.9 % on all",
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
        shown=(claim.bounded("accuracy"),), measured_by=measure_margin,
        runs=claim.of_stage("reward_model", arms, "none", "helpful", "large"),
    ),
    Claim(
        id=13, section="A.3.3", paper_trust=Trust.FIGURE,
        statement="The margin drives scores towards 0 and 1.",
        paper_value="figure 27: without a margin below 2 % of answers in any bin; with the large "
        "one about 8.3 % near 1 and 3.7 % near 0",
        prediction="After the sigmoid more answers lie at both ends with the large margin than "
        "without; with the small one it is between.",
        where="Scores of all held-out answers, shifted to mean 0, since comparisons leave the zero "
        f"free: the share within {END:g} of 0 or 1 after the sigmoid",
        tests=tuple(
            claim.differs(
                f"{end}: {more} minus none", f"{end}/{more}", f"{end}/none", above=bound
            )
            for end, more, bound in (
                ("ends", "large", 0.05), ("ends", "small", 0.0), ("low", "large", 0.0),
                ("high", "large", 0.0),
            )
        ),
        shown=(claim.bounded("low", "high", "ends"), "spread"), measured_by=measure_poles,
        runs=claim.of_stage("reward_model", arms, "none", "helpful", "large"),
    ),
    Claim(
        id=14, section="A.3.4", paper_trust=Trust.PRINTED,
        statement="An auxiliary safety loss lifts the recall of unsafe answers.",
        paper_value="recall at 0.5 from 73.0 to 90.4 %, accuracy on pairs from 63.7 to 64.5 %",
        prediction="Recall rises much, and not by calling everything unsafe; accuracy on pairs "
        "does not fall. The loss is our reconstruction: the paper gives no formula.",
        where="With the loss minus without",
        tests=(
            claim.differs("gain of recall", "recall/with", "recall/without", above=0.05),
            claim.differs(
                "gain of recall minus false alarms", "gap/with", "gap/without", above=0,
                says="gain of recall minus false alarms (both 95 % over seeds)",
            ),
            wins("gain of accuracy on pairs", "with-without/all", above=-0.01),
        ),
        shown=(claim.bounded("recall", "alarms", "accuracy"),), measured_by=measure_auxiliary,
        runs=claim.of_stage("reward_model", arms, "safe", "without"),
    ),
    Claim(
        id=15, section="3.2.2", paper_trust=Trust.PRINTED,
        statement="Two reward models, for helpfulness and for safety, beat a single one.",
        paper_value="helpfulness model 63.2 % on helpfulness and 62.8 % on safety, safety model "
        "56.2 and 64.5 %; no number for a single model",
        prediction="Each model is best at home, and there better than one model of the same size "
        "that learned from the own pairs of both. Shown beside: one model with as many pairs as "
        "each of the two, half of each stream.",
        where="Right more often, one model minus another",
        tests=tuple(
            wins(name, name, above=0)
            for name in (
                "helpful-safe/helpfulness", "safe-helpful/safety", "helpful-joint/helpfulness",
                "safe-joint/safety",
            )
        ),
        shown=(claim.bounded("accuracy"),), measured_by=measure_two,
        runs=claim.of_stage("reward_model", arms, "helpful", "safe", "joint", "joint_equal"),
    ),
    Claim(
        id=16, section="3.2.2", paper_trust=Trust.FIGURE,
        statement="Accuracy grows with data and with the size of the reward model, and no end is "
        "in sight.",
        paper_value="figure 6, batches 1 to 14: from about 0.51 to 0.610, 0.614, 0.634 for 7B, "
        "13B, 70B",
        prediction="Eight times the pairs helps every width, four times the width helps with most "
        "pairs, and the last step of data still helps the widest.",
        where="Right more often",
        tests=(
            Must(
                "at each width most pairs minus fewest, with most pairs widest minus narrowest, at "
                "the widest the last step of data, each",
                claim.all_paired_gains, above=0, intervals=claim.PAIRED,
            ),
        ),
        shown=(claim.bounded("accuracy", "clearest"),), measured_by=measure_scale,
        runs=claim.of_stage("reward_model", scale_arms),
    ),
    Claim(
        id=17, section="3.2.2", paper_trust=Trust.DESIGN,
        statement="A tenth of helpfulness pairs helps the safety model where both answers are "
        "safe.",
        paper_value="90/10 mix; said to help most where both answers are safe; no number",
        prediction="With as many pairs in all, 90/10 is better than 100/0 on pairs of safe "
        "answers. About 1,200 such pairs a seed: less than one to three points cannot be seen.",
        where="On held-out pairs, mixed minus alone",
        tests=(wins("gain where both are safe", "mixed-alone/both safe", above=0),),
        shown=(claim.bounded("accuracy"),), measured_by=measure_mix,
        runs=claim.of_stage("reward_model", arms, "safe", "alone"),
    ),
    Claim(
        id=20, section="3.4.1, figure 29", paper_trust=Trust.FIGURE,
        statement="Trained on comparisons, scores rise with the quality of single answers, too.",
        paper_value="figure 29, quality 1 to 7: helpfulness from about .24 to .55, safety from "
        "about .29 to .78",
        prediction="The mean of sigmoid(score) rises with gold quality, for both models.",
        where="Over seven bins of equal numbers of held-out answers in the order of gold quality, "
        "rise of the mean of sigmoid(score) from first to last, and its rank correlation with them",
        tests=tuple(
            Must(
                f"{name} of {stream}", mean(f"{name}/{stream}", bounds=claim.SIGNED), above=bound,
                named=f"{name}/{stream}",
            )
            for stream in STREAMS
            for name, bound in (("rise", 0.1), ("monotone", 0.8))
        ),
        shown=(claim.bounded("level"),), measured_by=measure_calibration,
        runs=claim.of_stage("reward_model", arms, "helpful", "safe"),
    ),
    Claim(
        id=28, section="3.2.3", paper_trust=Trust.PRINTED,
        statement="A safety score below 0.15 nearly always means unsafe, but many are missed.",
        paper_value="precision 0.89, recall 0.55 at 0.15",
        prediction="High precision at a moderate recall.",
        where=f"Held-out answers with sigmoid(score) below {AT:g} as a test for unsafe ones",
        tests=(
            Must("precision", mean("precision", bounds=claim.SHARE), above=0.8),
            Must("recall", mean("recall", bounds=claim.SHARE), above=0.3),
        ),
        shown=(claim.bounded("unsafe", "recall at 0.5"),), measured_by=measure_threshold,
        runs=claim.of_stage("reward_model", arms, "safe"),
    ),
)  # fmt: skip
