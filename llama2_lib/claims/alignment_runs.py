"""What claims 23, 26 and 49 measure: every version of a chain, marked by the same judges."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from jaxtyping import Float

from llama2_lib import pipeline, rng
from llama2_lib.claims.claim import Measurement
from llama2_lib.device import choose_device
from llama2_lib.evaluation.chat import answer
from llama2_lib.evaluation.preference import gold_marks
from llama2_lib.pipeline.ppo import ppo_prompts
from llama2_lib.pipeline.rejection import round_prompts
from llama2_lib.pipeline.rewards import answered
from llama2_lib.recipes import Recipe
from llama2_lib.stages.asked import Asked, ask
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world

ROUNDS = [f"V{number}" for number in range(1, pipeline.ROUNDS + 1)]
VERSIONS = (
    {"SFT": "sft"}
    | {name: f"rejection_v{number}" for number, name in enumerate(ROUNDS, 1)}
    | {f"V{pipeline.ROUNDS + 1}": "ppo"}
)
"""Stages of the versions, in their order."""
JUDGE = f"rewards_v{pipeline.ROUNDS + 1}"
"""One pair of reward models for all versions: the newest, which no round of rejection sampling
has climbed. PPO has."""
N_PROMPTS = 800
"""Of each of the two kinds of prompts."""
SPLITS = {"train": "", "held out": ", new wordings"}
"""Prompts that no round and no iteration asked, in wordings that they know, as the paper's test
prompts come from the writers of its training prompts; and in wordings that they do not. What is
added to the name of a quality."""
TAIL = 0.1
"""Share of the first version's answers that is called its low tail."""
BEFORE = [("SFT", name) for name in list(VERSIONS)[1:]] + [(ROUNDS[-1], list(VERSIONS)[-1])]
"""Pairs of versions that are compared."""


Marked = dict[str, Float[np.ndarray, " prompts"]]
"""What is said of the answers of one version, by quality."""


def chain(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with another seed from fine-tuning on; the pretrained model is shared."""
    parts = ("sft", "helpfulness", "safety", "rejection", "ppo")
    return replace(recipe, **{p: replace(getattr(recipe, p), seed=seed) for p in parts})


def measure_versions(recipe: Recipe, seed: int) -> Measurement:
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
def _measured(recipe: Recipe, seed: int) -> Measurement:
    pipeline.artifact("ppo", recipe)
    values: dict[str, float] = {}
    for split, suffix in SPLITS.items():
        found = {name: _marked(recipe, stage, seed, split) for name, stage in VERSIONS.items()}
        values |= _compared(found, suffix)
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def new_prompts(
    recipe: Recipe, seed: int, split: str, tokenizer: Tokenizer, n: int | None = None
) -> Asked:
    """Return prompts that rejection sampling and PPO never asked.

    A world of this size has few questions: in known wordings about half of what is drawn anew was
    asked before, word for word.

    Raises:
        ValueError: There are not enough.
    """
    n = N_PROMPTS if n is None else n
    numbers = range(1, pipeline.ROUNDS + 1)
    before = {tuple(ids) for n in numbers for ids in round_prompts(n, recipe, tokenizer).ids}
    before |= {tuple(ids) for ids, _ in ppo_prompts(recipe, tokenizer)}
    drawn = ask(
        make_world(recipe.corpus.world_seed), rng.seed_from(seed, "versions"), 4 * n,
        tokenizer, longest=recipe.model.max_seq_len - _room(recipe), split=split,
    )  # fmt: skip
    places = [i for i, ids in enumerate(drawn.ids) if tuple(ids) not in before][:n]
    if len(places) < n:
        raise ValueError(
            f"{n} new prompts are needed; of {len(drawn.ids)} drawn {len(places)} are new."
        )
    return Asked(
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
            name = f"{quality}{suffix}/{after} over {before}"
            values[f"gain/{name}"] = float(gap.mean())
            values[f"error/{name}"] = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    return values


def _marked(recipe: Recipe, stage: str, seed: int, split: str) -> Marked:
    """Let gold judges and reward models mark one answer of a version to each prompt."""
    model, tokenizer = pipeline.load(stage, recipe)
    context = model.config.max_seq_len
    room = _room(recipe)
    world = make_world(recipe.corpus.world_seed)
    asked = new_prompts(recipe, seed, split, tokenizer)
    said = answer(model, tokenizer, asked.dialogs, temperature=1.0, seed=seed, max_new_tokens=room)
    rows = [
        answered(dialog, reply.text, tokenizer, context)
        for dialog, reply in zip(asked.dialogs, said, strict=True)
    ]
    judge = pipeline.load_rewards(pipeline.artifact(JUDGE, recipe, bar=False), choose_device())
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


def chain_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the last stage of the chain of every seed."""
    return [("ppo", chain(recipe, seed)) for seed in seeds]
