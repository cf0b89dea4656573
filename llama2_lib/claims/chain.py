"""Claims on whole chains: what becomes of reward models, comparisons and answers round by round.

Claims 23, 26 and 49 compare SFT, rejection sampling and PPO. Their chains share one pretrained
model; fine-tuning, reward models, rounds and PPO have seeds of their own. They take about eleven
minutes each, so the course makes the first one only, and the ledger holds all. Seed 0 was seen
while settings were chosen, the others were not. Seeds 0 to 2 left claims 26 and 49 open: V5's wins
by gold, less one half, were 0.12, -0.04 to 0.29, and V2's low tail -0.019, -0.032 to -0.006. Seeds
3 and 4 were then added to all three claims, once, by the same rules: `llama2 claims 23 26 49
--seeds 5`.

Claims 18 and 19 look at the one chain of the course, whatever the seed, so the first measurement is
all there is.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from llama2_lib import pipeline, rng
from llama2_lib.claims import claim
from llama2_lib.claims.claim import Claim, Measurements, Must, Trust, gains
from llama2_lib.claims.reward import Scores, against
from llama2_lib.config import ROUNDS, VERSIONS, Recipe
from llama2_lib.device import choose_device
from llama2_lib.evaluation.judged import gold_marks
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.model.chat import answer_room, reply, room
from llama2_lib.model.transformer import ScalarModel
from llama2_lib.pipeline import JUDGE
from llama2_lib.stages.ppo import ppo_prompts
from llama2_lib.stages.prompts import PromptSet, sample_prompts
from llama2_lib.stages.rejection import round_prompts
from llama2_lib.stages.reward import encode_pairs, load_rewards, scores_of, text_rows
from llama2_lib.storage import read_rows
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message
from llama2_lib.world.pairs import GRADES, STREAMS, TAU, Pair, bayes_accuracy
from llama2_lib.world.source import WorldSource

RLHF_VERSIONS = {
    name: stage for name, stage in VERSIONS.items() if name == "SFT" or name.startswith("V")
}
"""SFT, and V1 to V5, with their stages. One pair of reward models judges them all: the newest,
which no round of rejection sampling has climbed. PPO has."""
N_PROMPTS = 800
"""Of each of the two kinds of prompts."""
SPLITS = {"train": "", "held out": ", new wordings"}
"""Prompts that no round and no iteration asked, in wordings that they know, as the paper's test
prompts come from the writers of its training prompts; and in wordings that they do not. What is
added to the name of a quality."""
TAIL = 0.1
"""Share of the first version's answers that is called its low tail."""
V4, V5 = list(RLHF_VERSIONS)[-2:]
BEFORE = [("SFT", name) for name in list(RLHF_VERSIONS)[1:]] + [(V4, V5)]
"""Pairs of versions that are compared."""
REWARDS = ("reward helpfulness", "reward safety")
GOLDS = ("gold helpfulness", "gold safety")

Marked = dict[str, Float[np.ndarray, " prompts"]]
"""What is said of the answers of one version, by quality."""


# ------------------------------------------------------------- claims 18 and 19: rounds of rewards


def rounds(recipe: Recipe) -> dict[int, Path]:
    """Return the folders of the chain's reward models, by round."""
    pipeline.artifact(JUDGE, recipe)
    numbers = range(1, ROUNDS + 2)
    return {n: pipeline.artifact(f"rewards_v{n}", recipe, bar=False) for n in numbers}


def summary(folder: Path, stream: str) -> dict[str, Any]:
    """Return the summary that a round left of one stream."""
    return json.loads((folder / stream / "summary.json").read_text(encoding="utf-8"))


def measure_drift(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 18 on the comparisons that were held back in each round.

    A model judges those of its `own` round, then those of the `next`, whose answers it has not
    seen; so does the `refreshed` model. `ceiling` is the mean noise ceiling, `pairs` are all.
    Shown: accuracy before and after the refresh, as the rounds noted it.
    """
    folders, values = rounds(recipe), dict[str, float]()
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", recipe, bar=False))
    models = {n: load_rewards(folder, choose_device()) for n, folder in folders.items()}
    parts: dict[str, list[Scores]] = {"own": [], "next": [], "refreshed": []}
    for stream in STREAMS:
        held = {
            n: read_rows(folder / stream / "held.jsonl.gz", Pair) for n, folder in folders.items()
        }
        for number in range(1, len(folders)):
            old, new = (getattr(models[n], stream) for n in (number, number + 1))
            parts["own"].append(_scored(old, held[number], tokenizer))
            parts["next"].append(_scored(old, held[number + 1], tokenizer))
            parts["refreshed"].append(_scored(new, held[number + 1], tokenizer))
            noted = summary(folders[number + 1], stream)
            for word, key in (("before", "accuracy before"), ("after", "accuracy")):
                values[f"accuracy/{stream}/{number + 1}/{word}"] = noted[key]["all"]["value"]
    pooled = {
        when: Scores(*(np.concatenate(columns) for columns in zip(*some, strict=True)))
        for when, some in parts.items()
    }
    for when in ("own", "next"):
        values[f"right/{when}"] = float(pooled[when].right.sum())
        values[f"pairs/{when}"] = float(len(pooled[when].gap))
        values[f"ceiling/{when}"] = bayes_accuracy(pooled[when].gap.tolist(), TAU)
    return values | against("refreshed-next", pooled["refreshed"], pooled["next"])


def _scored(model: ScalarModel, pairs: Sequence[Pair], tokenizer: Tokenizer) -> Scores:
    chosen, rejected = scores_of(model, encode_pairs(pairs, tokenizer, "none"))
    truth = ("gap", "grade", "safety_bin")
    return Scores(
        chosen, rejected, *(np.array([getattr(pair, name) for pair in pairs]) for name in truth)
    )


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
    half = claim.Z * math.sqrt(sum(share[when] * (1 - share[when]) / n[when] for when in n))
    return Estimate(value=drop, low=drop - half, high=drop + half, n=int(n["next"]))


def slope(stream: str, grade: str, measurements: Measurements, *, sign: int = 1) -> Estimate:
    """Return by how much the share of a grade rises a round: least squares over comparisons."""
    one, at_round, is_it = measurements[0], list[int](), list[float]()
    for key in claim.keys_under([one], f"count/{stream}"):
        number, other = key.split("/")
        n = round(one[f"count/{stream}/{key}"])
        at_round += [int(number)] * n
        is_it += [float(other == grade)] * n
    line = stats.linregress(at_round, is_it)
    half = float(stats.t.ppf(0.975, len(is_it) - 2) * line.stderr)
    value = sign * float(line.slope)
    return Estimate(value=value, low=value - half, high=value + half, n=len(is_it))


def _shares(measurements: Measurements) -> dict[str, Estimate]:
    one, shown = measurements[0], dict[str, Estimate]()
    for key in claim.keys_under([one], "count"):
        total = sum(one[f"count/{key.rpartition('/')[0]}/{other}"] for other in GRADES)
        share = one[f"count/{key}"] / total
        shown[f"share/{key}"] = Estimate(value=share, low=share, high=share, n=int(total))
    return shown | {
        f"slope/{stream}/{grade}": slope(stream, grade, measurements)
        for stream in STREAMS
        for grade in (GRADES[0], GRADES[-1])
    }


# ------------------------------------------------------------- claims 23, 26 and 49: versions


def chain(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with another seed from fine-tuning on; the pretrained model is shared."""
    parts = ("sft", "helpfulness", "safety", "rejection", "ppo")
    return replace(recipe, **{p: replace(getattr(recipe, p), seed=seed) for p in parts})


def chain_runs(recipe: Recipe, seed: int) -> dict[str, tuple[str, Recipe]]:
    """Return the last stage of the chain of a seed; all others are made on the way."""
    return {V5: ("ppo", chain(recipe, seed))}


@cache  # three claims read it
def measure_versions(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claims 23, 26 and 49: an answer of each version to each prompt, at temperature 1.

    Keys: `mean/<quality>/<version>`, `gain/<quality>/<after> over <before>` and `error/...`, in
    known and in new wordings. Qualities are those of `_marks`, `low tail`, whether the reward is
    among the lowest of the first version's, and `win by <judge>`, the share of prompts on which
    the later version is preferred, less one half.
    """
    values: dict[str, float] = {}
    for split, suffix in SPLITS.items():
        own = chain(recipe, seed)
        marks = {name: _marks(own, stage, seed, split) for name, stage in RLHF_VERSIONS.items()}
        values |= _compared(marks, suffix)
    return values


def new_prompts(
    recipe: Recipe, seed: int, split: str, tokenizer: Tokenizer, n: int | None = None
) -> PromptSet:
    """Return prompts that rejection sampling and PPO never asked.

    A world of this size has few questions: in known wordings about half of what is drawn anew was
    asked before, word for word.
    """
    n = N_PROMPTS if n is None else n
    numbers = range(1, ROUNDS + 1)
    before = {tuple(ids) for i in numbers for ids in round_prompts(i, recipe, tokenizer).ids}
    before |= {tuple(ids) for ids, _ in ppo_prompts(recipe, tokenizer)}
    source, model = WorldSource(make_world(recipe.corpus.world_seed)), recipe.model
    drawn = sample_prompts(
        source, rng.seed_from(seed, "versions"), 4 * n, tokenizer, split=split,
        longest=room(model, answer_room(model, recipe.rejection.max_new_tokens)),
    )  # fmt: skip
    pairs = zip(drawn.prompts, drawn.ids, strict=True)
    fresh = [(prompt, ids) for prompt, ids in pairs if tuple(ids) not in before][:n]
    assert len(fresh) == n, f"of {len(drawn.ids)} prompts drawn {len(fresh)} are new, not {n}"
    return replace(drawn, prompts=[prompt for prompt, _ in fresh], ids=[ids for _, ids in fresh])


def said(recipe: Recipe, stage: str, seed: int, dialogs: Sequence[Sequence[Message]]) -> list[str]:
    """Return an answer of a stage's model to each dialog, at temperature 1."""
    model, tokenizer = pipeline.load(stage, recipe)
    most = answer_room(model, recipe.rejection.max_new_tokens)
    replies = reply(model, tokenizer, dialogs, temperature=1.0, seed=seed, max_new_tokens=most)
    return [one.text for one in replies]


def _marks(recipe: Recipe, stage: str, seed: int, split: str) -> Marked:
    """Let gold judges and reward models mark one answer of a version to each prompt."""
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", recipe, bar=False))
    new = new_prompts(recipe, seed, split, tokenizer)
    texts = said(recipe, stage, seed, new.dialogs)
    rows = text_rows(new.dialogs, texts, tokenizer, room(recipe.model, 0))
    judge = load_rewards(pipeline.artifact(JUDGE, recipe, bar=False), choose_device())
    scores = judge(rows, new.tags)
    gold = gold_marks(make_world(recipe.corpus.world_seed), new.prompts, texts)
    return {
        "gold": gold.quality,
        "gold helpfulness": gold.helpfulness[gold.helpful],
        "gold safety": gold.safety[gold.adversarial],
        "reward": scores.combined,
        "reward helpfulness": scores.helpfulness[gold.helpful],
        "reward safety": scores.safety[gold.adversarial],
        "refused": gold.refuses[gold.borderline].astype(float),
    }


def _compared(marks: dict[str, Marked], suffix: str) -> dict[str, float]:
    """Return means of all versions and differences of those in `BEFORE`."""
    values: dict[str, float] = {}
    floor = np.quantile(marks["SFT"]["reward"], TAIL)
    for name, own in marks.items():
        own["low tail"] = (own["reward"] < floor).astype(float)
        values |= {f"mean/{quality}{suffix}/{name}": float(v.mean()) for quality, v in own.items()}
    for before, after in BEFORE:
        gaps = {quality: new - marks[before][quality] for quality, new in marks[after].items()}
        for judge in ("gold", "reward"):
            gaps[f"win by {judge}"] = np.sign(gaps[judge].round(9)) / 2
        for quality, gap in gaps.items():
            values |= claim.paired(f"{quality}{suffix}/{after} over {before}", gap)
    return values


def _means(*qualities: str) -> dict[str, claim.Quantity]:
    """Return the means of some qualities, without the `mean/` of their keys."""
    pairs = ((quality, name) for quality in qualities for name in RLHF_VERSIONS)
    return {f"{q}/{name}": claim.mean(f"mean/{q}/{name}") for q, name in pairs}


def _less(after: str, before: str, *qualities: str) -> dict[str, claim.Quantity]:
    """Return the gains of some qualities from one version to another."""
    return {
        f"{q}, {after} minus {before}": partial(claim.gain, name=f"{q}/{after} over {before}")
        for q in qualities
    }


def _rises(quality: str, after: str, before: str) -> Must:
    text = f"{quality}, {after} minus {before}"
    return gains(text, f"{quality}/{after} over {before}", above=0, named=text)


CLAIMS = (
    Claim(
        id=18, section="3.2.1", paper_trust=Trust.DESIGN,
        statement="A reward model is worse on answers of the next policy, until it is refreshed.",
        paper_value="accuracy degrades quickly without fresh comparisons; no number",
        prediction="Before the refresh the model lies further below the noise ceiling on the next "
        "policy's answers than on those it was trained for; the refresh gains part of it. One "
        "chain, both streams together: about 650 pairs, so that less than some 5 points of drop "
        "and 3 of gain cannot be seen.",
        where="Of accuracy on held-out pairs",
        tests=(
            Must("drop below the ceiling", _drop, above=0),
            Must(
                "gain of the refresh",
                lambda measurements: claim.paired_gain(measurements[:1], "refreshed-next"),
                above=0,
            ),
        ),
        intervals="(95 % over pairs, all rounds pooled)",
        shown=(lambda measurements: claim.averages(measurements[:1], "accuracy"),),
        measured_by=measure_drift,
        runs=lambda recipe, seed: {JUDGE: (JUDGE, recipe)}, min_seeds=1,
    ),
    Claim(
        id=19, section="A.3.1", paper_trust=Trust.FIGURE,
        statement="As models improve, fewer comparisons are clear and more are unsure.",
        paper_value="figure 25: clearest from about 18 to 9 %, unsure from about 25 to 38 % over "
        "14 batches",
        prediction="From round to round the clearest grade gets rarer and the least clear one more "
        "frequent. One chain of five rounds; a slope of less than about a point a round cannot be "
        "seen.",
        where="Shares of comparisons in the helpfulness stream",
        tests=(
            Must(
                "fall of the clearest grade a round",
                partial(slope, "helpfulness", GRADES[0], sign=-1), above=0, named="",
            ),
            Must(
                "rise of the least clear grade a round", partial(slope, "helpfulness", GRADES[-1]),
                above=0, named="",
            ),
        ),
        intervals="(95 % over comparisons)", shown=(_shares,),
        measured_by=measure_shares, runs=lambda recipe, seed: {JUDGE: (JUDGE, recipe)}, min_seeds=1,
    ),
    Claim(
        id=23, section="3.2.3", paper_trust=Trust.FIGURE,
        statement="Round after round of rejection sampling raises the reward.",
        paper_value="figure 11, win rate by reward models against ChatGPT, V1 to V4: about 61 to "
        "67 % helpful, 48 to 59 % harmless, with a dip at V2",
        prediction="By one judge for all versions, the newest reward models, the mean reward of "
        "V4 lies above that of SFT in helpfulness and in safety, not necessarily rising in every "
        "round. The gold judges' marks are shown.",
        where="Means on new prompts", tests=tuple(_rises(name, V4, "SFT") for name in REWARDS),
        shown=(_less(V4, "SFT", *GOLDS), _means(*REWARDS, *GOLDS)), measured_by=measure_versions,
        runs=chain_runs,
    ),
    Claim(
        id=26, section="3.2.3; 3.4.1, figure 11", paper_trust=Trust.FIGURE,
        statement="PPO after rejection sampling makes answers better still.",
        paper_value="figure 11, V5 without and with PPO: about 70, 67 to 78, 76 % by reward "
        "models, 55, 55 to 67, 61 % by GPT-4",
        prediction="V5 is preferred to V4, by the reward models that it climbed and less so by the "
        "gold judges; against SFT its gold marks are higher in helpfulness and in safety. What is "
        "left of it in wordings that training never had is shown, and how many borderline prompts "
        "are declined.",
        where="Shares and means on new prompts",
        tests=(
            *(
                gains(
                    f"wins of {V5} against {V4} by {who}, minus one half",
                    f"win by {who}/{V5} over {V4}", above=0, named=f"wins minus one half, by {who}",
                )
                for who in ("reward", "gold")
            ),
            *(_rises(name, V5, "SFT") for name in GOLDS),
        ),
        shown=(
            _less(V5, V4, *GOLDS),
            _less(V5, "SFT", *(f"{name}, new wordings" for name in GOLDS)),
            _means("refused", "refused, new wordings"),
        ),
        measured_by=measure_versions, runs=chain_runs,
    ),
    Claim(
        id=49, section="5.1", paper_trust=Trust.FIGURE,
        statement="RLHF takes away the low tail of the rewards, and shifts the rest.",
        paper_value="figure 20, SFT, V1, V2: the distribution of reward scores moves right; no "
        "number",
        prediction="From SFT to V2 the mean reward rises, and fewer answers fall among what were "
        "the worst tenth.",
        where="On new prompts, mean and share",
        tests=(
            gains("mean reward, V2 minus SFT", "reward/V2 over SFT", above=0, named=None),
            gains(
                "share in the low tail, V2 minus SFT", "low tail/V2 over SFT", below=-0.02,
                named="low tail, V2 minus SFT",
                says=f"share below the {TAIL:g} quantile of SFT, V2 minus SFT,",
            ),
        ),
        shown=(_means("reward", "low tail"),), measured_by=measure_versions, runs=chain_runs,
    ),
)  # fmt: skip
