"""What notebooks show of single runs of recorded claims and the ledger has no room for.

Loss curves of claims 1 and 2, temperatures of claim 8, scores of single pairs of claims 13 and 14,
the answers that were distilled for claim 43. `python -m llama2_lib.claims.recorded_runs` trains the
runs that are missing and writes `data/runs.json` anew.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama2_lib import pipeline, storage
from llama2_lib.claims import finetuning, pretraining
from llama2_lib.claims.ledger import CLAIMS, provenance
from llama2_lib.claims.reward import Scores, arms, scored
from llama2_lib.claims.safety import EARLY, arm_recipes
from llama2_lib.config import Recipe
from llama2_lib.evaluation.judged import gold_marks
from llama2_lib.recipes import nano
from llama2_lib.stages.safety import Distilled, distillation_prompts, distilled_rows
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.lexicon import lexicon_folder
from llama2_lib.world.prompts import helpful_prompts

SEEDS = range(3)
TEMPERATURES = (0.0, 0.6, 1.0)
N_ASKED = 100
"""Prompts that the arms of claim 8 answer at each temperature."""
N_PAIRS = 600
"""Pairs of each reward model, the first of those it was tested on."""
PAIRS = {
    "safe": ("safety", "safety_bin"), "without": ("safety", "safety_bin"),
    "none": ("helpfulness", "grade"), "large": ("helpfulness", "grade"),
}  # fmt: skip
"""Reward models of seed 0: the stream whose pairs are kept, and which label of them."""
ANSWERS = tuple(name for name in Distilled._fields if name != "prompt")
DIGITS = 3


def recorded_run(name: str, path: Path | None = None) -> Any:
    """Return one part of what was recorded, as `measured` describes it."""
    path = path or lexicon_folder().parent / "runs.json"
    return json.loads(path.read_text(encoding="utf-8"))[name]


def recorded_pairs(name: str, path: Path | None = None) -> dict[str, np.ndarray]:
    """Return what one of the reward models `PAIRS` says of held-out pairs, and their labels."""
    return {key: np.array(column) for key, column in recorded_run("pairs", path)[name].items()}


def recorded_answers(
    tokenizer: Tokenizer, recipe: Recipe | None = None, path: Path | None = None
) -> list[Distilled]:
    """Return what a copy of SFT answered behind templates, and SFT itself alone; with scores.

    The prompts are the world's, and are drawn again.
    """
    prompts = distillation_prompts(_distilled(recipe or nano()), tokenizer)
    answers = recorded_run("answers", path)
    if [prompt.request for prompt in prompts] != answers["request"]:
        raise ValueError(
            "the recorded answers must be to the prompts that the world draws; it draws others. "
            "Run `python -m llama2_lib.claims.recorded_runs`."
        )
    columns = (answers[name] for name in ANSWERS)
    return [Distilled(*row) for row in zip(prompts, *columns, strict=True)]


def _distilled(recipe: Recipe) -> Recipe:
    return arm_recipes(recipe, 0)["template"]


def measured(recipe: Recipe) -> dict[str, Any]:
    """Return all that goes into `runs.json`.

    Losses are of each step, by width the mean over seeds, by schedule of each seed; gold marks of
    helpfulness are arm by seed by `TEMPERATURES`.
    """
    runs = [arms(recipe, 0)[name] for name in PAIRS]
    pipeline.artifacts([
        *(request for claim in (1, 2, 8) for request in CLAIMS[claim].requests(recipe, SEEDS)),
        *(("reward_model", run) for run in runs),
        (EARLY, _distilled(recipe)),
    ])  # fmt: skip
    answers = distilled_rows(pipeline.artifact(EARLY, _distilled(recipe)))
    by_width = _losses([pretraining.scaling_recipes(recipe, seed) for seed in SEEDS])
    by_schedule = _losses([pretraining.schedule_recipes(recipe, seed) for seed in SEEDS])
    return {
        "provenance": provenance(recipe) | {"seeds": list(SEEDS)},
        "loss by width": {str(width): _rounded(x.mean(axis=0)) for width, x in by_width.items()},
        "loss by schedule": {arm: _rounded(losses) for arm, losses in by_schedule.items()},
        "helpfulness by temperature": helpfulness_by_temperature(recipe),
        "pairs": {
            name: _columns(scored(run)[stream], label)
            for (name, (stream, label)), run in zip(PAIRS.items(), runs, strict=True)
        },
        "answers": {"request": [row.prompt.request for row in answers]}
        | {name: [_short(getattr(row, name)) for row in answers] for name in ANSWERS},
    }


def helpfulness_by_temperature(recipe: Recipe) -> dict[str, list[list[float]]]:
    """Return the mean gold mark of the arms of equal steps of claim 8, sampled ever hotter."""
    world = make_world(recipe.corpus.world_seed)
    means: dict[str, list[list[float]]] = {"few_clean_longer": [], "many_noisy": []}
    for arm, rows in means.items():
        for seed in SEEDS:
            model = pipeline.load("sft", finetuning.data_recipes(recipe, seed)[arm])
            stream = helpful_prompts(world, 21, split="held out")
            prompts = finetuning.fitting(model, stream, N_ASKED)
            said = [finetuning.ask(model, prompts, seed, heat, top_p=1.0) for heat in TEMPERATURES]
            marks = (gold_marks(world, prompts, [one.text for one in each]) for each in said)
            rows.append(_rounded(np.array([each.helpfulness.mean() for each in marks])))
    return means


def _losses(seeds: Sequence[Mapping[Any, Recipe]]) -> dict[Any, np.ndarray]:
    """Return the losses of every arm, one row a seed."""
    return {arm: np.stack([pretraining.trace(s[arm], "loss") for s in seeds]) for arm in seeds[0]}


def _rounded(values: np.ndarray) -> list:
    return values.round(DIGITS).tolist()


def _short(value: str | float) -> str | float:
    return value if isinstance(value, str) else round(value, DIGITS)


def _columns(scores: Scores, label: str) -> dict[str, list]:
    some = scores.where(slice(N_PAIRS))
    columns = {"chosen": _rounded(some.chosen), "rejected": _rounded(some.rejected)}
    return columns | {label: getattr(some, label).tolist()}


if __name__ == "__main__":
    text = json.dumps(measured(nano()), ensure_ascii=False)
    storage.write_atomically(lexicon_folder().parent / "runs.json", text + "\n")
