"""The headline numbers of a chain: what the base model knows, what RLHF brought, what chats are."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama2_lib import pipeline
from llama2_lib.claims.chain import new_prompts
from llama2_lib.config import VERSIONS, Recipe
from llama2_lib.evaluation import benchmarks
from llama2_lib.evaluation.chat_report import WORDINGS, report, share, table
from llama2_lib.evaluation.judged import improvement, marks_of
from llama2_lib.evaluation.statistics import Estimate, bootstrap_mean
from llama2_lib.world import make_world
from llama2_lib.world.instructions import MOST_TURNS

ALIGNED = {name: VERSIONS[name] for name in ("SFT", "V4", "V5")}
"""Columns of the table on RLHF."""
CHATS = {"SFT": VERSIONS["SFT"], "V5": VERSIONS["V5"], "chat model": VERSIONS["chat"]}
"""Columns of the table on chat models."""
BENCHMARKED = {"base": VERSIONS["base"], **CHATS}
"""Columns of the table of benchmarks."""
N_ASKED = 150
"""Questions of a benchmark."""
N_TURNS = MOST_TURNS
"""Of its long dialogs."""
N_MARKED = 800
"""Prompts in each wording that the numbers are made from."""
SEED = 50
"""Other prompts than those of the claims and the notebooks."""

Columns = dict[str, dict[str, Estimate]]
"""A table: numbers by column and row."""


def headline(recipe: Recipe, **options: Any) -> dict[str, Columns]:
    """Measure a chain: four tables by name; `options` are those of `pipeline.artifact`."""
    room = min(96, recipe.model.max_seq_len // 2)
    world = make_world(recipe.corpus.world_seed)
    recalled = pipeline.recall(recipe, **options)
    return {
        "pretraining": {
            "base model": {f"knows facts, {kind}": share for kind, share in recalled.items()}
        },
        "RLHF": aligned(recipe, room, **options),
        "chat": {
            name: report(
                *pipeline.load(stage, recipe, **options), world,
                n=N_MARKED // 4, n_turns=N_TURNS, seed=SEED, max_new_tokens=room,
            )
            for name, stage in CHATS.items()
        },
        "benchmarks": benchmarked(recipe, **options),
    }  # fmt: skip


def benchmarked(recipe: Recipe, **options: Any) -> Columns:
    """Return the automatic benchmarks of some versions, with what guessing reaches."""
    world, columns = make_world(recipe.corpus.world_seed), Columns()
    for name, stage in BENCHMARKED.items():
        model, tokenizer = pipeline.load(stage, recipe, **options)
        contestant = benchmarks.Contestant(model, tokenizer, chat=stage != VERSIONS["base"])
        scores = benchmarks.benchmarks(contestant, world, n=N_ASKED, seed=SEED)
        columns[name] = {
            what if one.chance is None else f"{what} (by chance {one.chance:.0%})": one.score
            for what, one in scores.items()
            if not what.startswith("sentiment")
        }
    return columns


def aligned(recipe: Recipe, room: int, **options: Any) -> Columns:
    """Return the gold judges' marks of the chain's versions, and what V5 gained on SFT.

    Helpfulness where help is all that is asked for, safety where harm is, and how many of the
    prompts that only sound harmful are refused; on prompts that nobody asked before, first in
    wordings of training, then in others.
    """
    models = {name: pipeline.load(stage, recipe, **options) for name, stage in ALIGNED.items()}
    world, first, last = make_world(recipe.corpus.world_seed), *(list(ALIGNED)[i] for i in (0, -1))
    columns: Columns = {name: {} for name in [*models, f"{first} to {last}"]}
    for split, wording in WORDINGS.items():
        prompts = new_prompts(recipe, SEED, split, models[first][1], N_MARKED).prompts
        marks = {
            name: marks_of(*model, world, prompts, max_new_tokens=room)
            for name, model in models.items()
        }
        asked = marks[first]
        rows = {
            "helps (mark)": ("helpfulness", asked.helpful),
            "is safe (mark)": ("safety", asked.adversarial),
            "declines what only sounds harmful": ("refuses", asked.borderline),
        }
        for row, (quality, where) in rows.items():
            values = {name: 1.0 * getattr(each, quality)[where] for name, each in marks.items()}
            for name, each in values.items():
                is_share = quality == "refuses"
                told = share(each) if is_share else bootstrap_mean(each.tolist(), seed=0)
                columns[name][f"{row}, {wording}"] = told
            gain = improvement(values[first], values[last])
            columns[f"{first} to {last}"][f"{row}, {wording}"] = gain
    return columns


def lines(tables: dict[str, Columns]) -> list[str]:
    """Return the tables one below the other."""
    return [line for columns in tables.values() for line in ["", *table(columns)]]


def beside(own: dict[str, Columns], released: dict[str, Columns]) -> list[str]:
    """Return the last column of every table of two chains side by side."""
    last = {name: list(columns)[-1] for name, columns in released.items()}
    pairs = {
        name: {"yours": own[name][column], "released": released[name][column]}
        for name, column in last.items()
    }
    blocks = ([f"\n{last[name]}", *table(columns)] for name, columns in pairs.items())
    return [line for block in blocks for line in block]


def write(tables: dict[str, Columns], path: Path) -> None:
    """Write what `read` reads."""
    path.write_text(json.dumps(tables, indent=1, default=asdict) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Columns]:
    """Return the headline numbers that a release was written with."""

    def restored(document: dict[str, Any]) -> Any:
        return Estimate(**document) if "low" in document else document

    return json.loads(path.read_text(encoding="utf-8"), object_hook=restored)
