"""Claims on whole chains: rejection sampling, PPO, and what becomes of the low tail.

The chains share one pretrained model; fine-tuning, reward models, rounds and PPO have seeds of
their own. They take about eleven minutes each, so the course makes the first one only, and the
ledger holds all. Seed 0 was seen while settings were chosen, the others were not. Seeds 0 to 2
left claims 26 and 49 open: V5's wins by gold, less one half, were 0.12, -0.04 to 0.29, and V2's
low tail -0.019, -0.032 to -0.006. Seeds 3 and 4 were then added to all three claims, once, by the
same rules: `llama2 claims 23 26 49 --seeds 5`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from jaxtyping import Float

from llama2_lib import pipeline, rng
from llama2_lib.claims.claim import (
    Claim,
    Measurements,
    Must,
    Trust,
    averages,
    gain,
    gains,
    paired,
)
from llama2_lib.config import ROUNDS, VERSIONS, Recipe
from llama2_lib.device import choose_device
from llama2_lib.evaluation.judged import gold_marks
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.model.chat import reply, scored_row
from llama2_lib.pipeline import JUDGE
from llama2_lib.stages.ppo import ppo_prompts
from llama2_lib.stages.prompts import PromptSet, sample_prompts
from llama2_lib.stages.rejection import round_prompts
from llama2_lib.stages.reward import load_rewards
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
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

Marked = dict[str, Float[np.ndarray, " prompts"]]
"""What is said of the answers of one version, by quality."""


def chain(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with another seed from fine-tuning on; the pretrained model is shared."""
    parts = ("sft", "helpfulness", "safety", "rejection", "ppo")
    return replace(recipe, **{p: replace(getattr(recipe, p), seed=seed) for p in parts})


def chain_runs(recipe: Recipe, seed: int) -> dict[str, tuple[str, Recipe]]:
    """Return the last stage of the chain of a seed; all others are made on the way."""
    return {V5: ("ppo", chain(recipe, seed))}


def measure_versions(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claims 23, 26 and 49.

    One answer of each version to the same held-out prompts, at temperature 1. Keys:
    `mean/<quality>/<version>`; and for two versions, from the same prompts,
    `gain/<quality>/<after> over <before>` with its standard error `error/...`. Qualities:
    `gold helpfulness` and `reward helpfulness` on helpful prompts, `gold safety` and `reward
    safety` on adversarial ones, `reward`, combined, and `gold` on all; `refused`, the share of
    borderline prompts that are declined; `low tail`, whether the reward is below the tenth part
    of those of the first version; `win by gold` and `win by reward`, the share of prompts on
    which the later version is preferred, less one half. Each once more for `SPLITS`, shown only.
    """
    return _measured(chain(recipe, seed), seed)


@cache
def _measured(recipe: Recipe, seed: int) -> dict[str, float]:
    values: dict[str, float] = {}
    for split, suffix in SPLITS.items():
        found = {name: _marked(recipe, stage, seed, split) for name, stage in RLHF_VERSIONS.items()}
        values |= _compared(found, suffix)
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
    before = {tuple(ids) for n in numbers for ids in round_prompts(n, recipe, tokenizer).ids}
    before |= {tuple(ids) for ids, _ in ppo_prompts(recipe, tokenizer)}
    drawn = sample_prompts(
        WorldSource(make_world(recipe.corpus.world_seed)), rng.seed_from(seed, "versions"), 4 * n,
        tokenizer, longest=recipe.model.max_seq_len - _room(recipe), split=split,
    )  # fmt: skip
    places = [i for i, ids in enumerate(drawn.ids) if tuple(ids) not in before][:n]
    if len(places) < n:
        raise ValueError(
            f"{n} new prompts are needed; of {len(drawn.ids)} drawn {len(places)} are new."
        )
    return PromptSet(
        prompts=[drawn.prompts[i] for i in places],
        ids=[drawn.ids[i] for i in places],
        n_too_long=drawn.n_too_long,
    )


def _room(recipe: Recipe) -> int:
    return min(recipe.rejection.max_new_tokens, recipe.model.max_seq_len // 2)


def _compared(found: dict[str, Marked], suffix: str) -> dict[str, float]:
    """Return means of all versions and differences of those in `BEFORE`."""
    values: dict[str, float] = {}
    floor = np.quantile(found["SFT"]["reward"], TAIL)
    for name, marks in found.items():
        marks["low tail"] = (marks["reward"] < floor).astype(float)
        values |= {
            f"mean/{quality}{suffix}/{name}": float(v.mean()) for quality, v in marks.items()
        }
    for before, after in BEFORE:
        old, new = found[before], found[after]
        gaps = {quality: new[quality] - old[quality] for quality in new}
        for judge in ("gold", "reward"):
            gaps[f"win by {judge}"] = np.sign(gaps[judge].round(9)) / 2
        for quality, gap in gaps.items():
            values |= paired(f"{quality}{suffix}/{after} over {before}", gap)
    return values


def _marked(recipe: Recipe, stage: str, seed: int, split: str) -> Marked:
    """Let gold judges and reward models mark one answer of a version to each prompt."""
    model, tokenizer = pipeline.load(stage, recipe)
    context = model.config.max_seq_len
    room = _room(recipe)
    world = make_world(recipe.corpus.world_seed)
    asked = new_prompts(recipe, seed, split, tokenizer)
    said = reply(model, tokenizer, asked.dialogs, temperature=1.0, seed=seed, max_new_tokens=room)
    rows = [
        scored_row(dialog, reply.text, tokenizer, context)
        for dialog, reply in zip(asked.dialogs, said, strict=True)
    ]
    judge = load_rewards(pipeline.artifact(JUDGE, recipe, bar=False), choose_device())
    scored = judge(rows, asked.tags)
    gold = gold_marks(world, asked.prompts, [reply.text for reply in said])
    return {
        "gold": gold.quality,
        "gold helpfulness": gold.helpfulness[gold.helpful],
        "gold safety": gold.safety[gold.adversarial],
        "reward": np.asarray(scored.combined),
        "reward helpfulness": np.asarray(scored.helpfulness)[gold.helpful],
        "reward safety": np.asarray(scored.safety)[gold.adversarial],
        "refused": gold.refuses[gold.borderline].astype(float),
    }


REWARDS = [f"reward {what}" for what in ("helpfulness", "safety")]
GOLDS = [f"gold {what}" for what in ("helpfulness", "safety")]


def _means(*qualities: str) -> Callable[[Measurements], dict[str, Estimate]]:
    """Return what shows the means of some qualities, without the `mean/` of their keys."""
    return lambda measurements: {
        key: value
        for quality in qualities
        for key, value in averages(measurements, f"mean/{quality}", named=quality).items()
    }


def _less(
    after: str, before: str, *qualities: str
) -> Callable[[Measurements], dict[str, Estimate]]:
    """Return what shows the gains of some qualities from one version to another."""
    return lambda measurements: {
        f"{quality}, {after} less {before}": gain(measurements, f"{quality}/{after} over {before}")
        for quality in qualities
    }


def _rises(quality: str, after: str, before: str) -> Must:
    text = f"{quality}, {after} less {before}"
    return gains(text, f"{quality}/{after} over {before}", above=0, named=text)


CLAIMS = (
    Claim(
        id=23,
        section="3.2.3",
        statement="Round after round of rejection sampling raises the reward.",
        paper_value="figure 11, win rate by reward models against ChatGPT, V1 to V4: about 61 to "
        "67 % helpful, 48 to 59 % harmless, with a dip at V2",
        paper_trust=Trust.FIGURE,
        prediction="By one judge for all versions, the newest reward models, the mean reward of "
        "V4 lies above that of SFT in helpfulness and in safety, not necessarily rising in every "
        "round. The gold judges' marks are shown.",
        where="Means on new prompts",
        tests=tuple(_rises(name, V4, "SFT") for name in REWARDS),
        shown=(_less(V4, "SFT", *GOLDS), _means(*REWARDS, *GOLDS)),
        measured_by=measure_versions,
        runs=chain_runs,
    ),
    Claim(
        id=26,
        section="3.2.3",
        statement="PPO after rejection sampling makes answers better still.",
        paper_value="figure 11, V5 without and with PPO: about 70, 67 to 78, 76 % by reward "
        "models, 55, 55 to 67, 61 % by GPT-4",
        paper_trust=Trust.FIGURE,
        prediction="V5 is preferred to V4, by the reward models that it climbed and less so by the "
        "gold judges; against SFT its gold marks are higher in helpfulness and in safety. What is "
        "left of it in wordings that training never had is shown, and how many borderline prompts "
        "are declined.",
        where="Shares and means on new prompts",
        tests=(
            *(
                gains(
                    f"wins of {V5} against {V4} by {who}, less one half",
                    f"win by {who}/{V5} over {V4}",
                    above=0,
                    named=f"wins less one half, by {who}",
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
        measured_by=measure_versions,
        runs=chain_runs,
    ),
    Claim(
        id=49,
        section="5.1",
        statement="RLHF takes away the low tail of the rewards, and shifts the rest.",
        paper_value="figure 20, SFT, V1, V2: the distribution of reward scores moves right; no "
        "number",
        paper_trust=Trust.FIGURE,
        prediction="From SFT to V2 the mean reward rises, and fewer answers fall among what were "
        "the worst tenth.",
        where="On new prompts, mean and share",
        tests=(
            gains("mean reward, V2 less SFT", "reward/V2 over SFT", above=0, named=None),
            replace(
                gains(
                    "share in the low tail, V2 less SFT",
                    "low tail/V2 over SFT",
                    named="low tail, V2 less SFT",
                    below=-0.02,
                ),
                says=f"share below the {TAIL:g} quantile of SFT, V2 less SFT,",
            ),
        ),
        shown=(_means("reward", "low tail"),),
        measured_by=measure_versions,
        runs=chain_runs,
    ),
)
