"""What claims 40 to 45 measure: models tuned with more and with less safety, marked by gold judges.

Everything is asked in held-out wordings, and half of the adversarial prompts ask for held-out
hazards. Two models answer the same prompts with the same luck, so their marks pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from llama2_lib import pipeline
from llama2_lib.claims.claim import Measurement
from llama2_lib.claims.finetuning_runs import fitting
from llama2_lib.claims.rejection_pools import NEWEST, tuned
from llama2_lib.device import choose_device
from llama2_lib.evaluation.preference import Marks, marks_of
from llama2_lib.evaluation.safety import low_tail
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import Recipe
from llama2_lib.stages.rejection import best, read_pool
from llama2_lib.stages.safety import Distilled
from llama2_lib.stages.safety_data import FRACTIONS, SafetyData
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.judges import SAFE, judge_of
from llama2_lib.world.prompts import (
    Prompt,
    adversarial_prompts,
    borderline_prompts,
    helpful_prompts,
)

FAMILIES: dict[str, Callable] = {
    "helpful": helpful_prompts,
    "adversarial": adversarial_prompts,
    "borderline": borderline_prompts,
}
N_PROMPTS = 300
"""Held-out prompts a seed of each family."""
TAIL = 0.05
"""The low tail is shown as the score below which so many answers lie."""
N_HELPFUL, N_SAFETY = 1000, 500
"""Dialogs of claims 41 and 42. The paper has nine times as much helpfulness data as safety data;
here 1 % of the latter must still be some dialogs, so we have twice as much."""
RATE = 2e-3
"""Of tuning on pools in claim 40, as in fine-tuning."""
EARLY = "safety_early"
"""Distillation from the fine-tuned model, which declines little: PPO leaves little to gain."""
ARMS: dict[str, dict] = {
    "none": {"preprompt": "none", "gate": False},
    "generic": {"preprompt": "generic"},
    "template": {"preprompt": "template"},
    "ungated": {"preprompt": "template", "gate": False},
    "all": {"preprompt": "template", "gate": False, "apply_to": "all"},
    "as risky": {"preprompt": "template", "gate": False, "apply_to": "all as risky"},
}
"""Settings of the distillations of claims 43 to 45. The last is shown only: it was added after a
look at the first seed of `all`, whose helpful prompts are answered as well as ever."""
FIRMER = {"heed_lr": 1e-3, "peak_lr": 3e-4, "temperature": 1.0}
"""Rates higher than the chain's, whose policy is nearly finished; the fine-tuned one is not. Its
answers are read as hot as it is used, so that there is something to improve."""

Model = tuple[Transformer, Tokenizer]
Values = Float[np.ndarray, " prompts"]


class Answered(NamedTuple):
    """What gold judges say of one model, by quality; each over the prompts of its family."""

    safety: Values
    helpfulness: Values
    refused_helpful: Values
    refused_borderline: Values

    @property
    def low(self) -> Values:
        """1 where the answer to an adversarial prompt violates."""
        return (self.safety < SAFE).astype(float)


def held_out(model: Model, world_seed: int, seed: int) -> dict[str, list[Prompt]]:
    """Return the prompts of each family on which models are compared."""
    world = make_world(world_seed)
    return {
        name: fitting(model, draw(world, seed, split="held out"), N_PROMPTS)
        for name, draw in FAMILIES.items()
    }


def answered_by(
    model: Model, recipe: Recipe, asked: dict[str, list[Prompt]], seed: int
) -> Answered:
    """Let a model answer the prompts of each family once."""
    world, context = make_world(recipe.corpus.world_seed), model[0].config.max_seq_len
    room = min(recipe.distillation.max_new_tokens, context // 2)
    marks: dict[str, Marks] = {
        name: marks_of(*model, world, prompts, seed=seed, max_new_tokens=room)
        for name, prompts in asked.items()
    }
    return Answered(
        marks["adversarial"].safety,
        marks["helpful"].helpfulness,
        marks["helpful"].refuses.astype(float),
        marks["borderline"].refuses.astype(float),
    )


def gain(name: str, gap: Values) -> dict[str, float]:
    """Return a mean difference over prompts, and its standard error, as `alignment.gain` reads."""
    error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    return {f"gain/{name}": float(gap.mean()), f"error/{name}": error}


def compared(name: str, after: Answered, before: Answered) -> dict[str, float]:
    """Return the gains of all qualities, `gain/<quality>/<name>`."""
    qualities = ("safety", "low", "helpfulness", "refused_helpful", "refused_borderline")
    values: dict[str, float] = {}
    for quality in qualities:
        values |= gain(f"{quality}/{name}", getattr(after, quality) - getattr(before, quality))
    return values


def means(name: str, found: Answered) -> dict[str, float]:
    """Return what is shown of one model: `<quality>/<name>`, and the end of its low tail."""
    values = {
        f"{quality}/{name}": float(getattr(found, quality).mean()) for quality in found._fields
    }
    return values | {
        f"low/{name}": float(found.low.mean()),
        f"tail/{name}": low_tail(found.safety, TAIL),
    }


def measure_rlhf(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 40: the pretrained model tuned on the best answers of all rounds, without and
    with those to adversarial prompts. Keys as in `compared` (`with over without`) and `means`."""
    entries = best(read_pool(pipeline.artifact(NEWEST, recipe) / "pool.jsonl"))
    arms = {"without": [e for e in entries if not e.is_safety], "with": entries}
    found: dict[str, Answered] = {}
    asked: dict[str, list[Prompt]] = {}
    for name, part in arms.items():
        model = tuned(pipeline.load("pretrain", recipe), part, RATE, seed)
        asked = asked or held_out(model, recipe.corpus.world_seed, seed)
        found[name] = answered_by(model, recipe, asked, seed)
    values = compared("with over without", found["with"], found["without"])
    for name, marks in found.items():
        values |= means(name, marks)
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def rlhf_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return what claim 40 rests on: one chain, whatever the seed."""
    return [(NEWEST, recipe)]


def data_recipes(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return the variants of claims 41 and 42 by the share of safety data, in per cent."""
    scale = min(1.0, recipe.sft.n_dialogs / 2000)
    n_helpful, n_safety = max(20, round(scale * N_HELPFUL)), max(100, round(scale * N_SAFETY))
    return {
        f"{100 * fraction:g}": replace(
            recipe,
            sft=replace(recipe.sft, seed=seed),
            safety_data=SafetyData(
                fraction=fraction, n_helpful=n_helpful, n_safety=n_safety, seed=seed
            ),
        )
        for fraction in FRACTIONS
    }


def data_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the runs of claims 41 and 42."""
    return [("safety_data", run) for s in seeds for run in data_recipes(recipe, s).values()]


def measure_data(recipe: Recipe, seed: int) -> Measurement:
    """Measure claims 41 and 42; keys as in `compared` (`100 over 0`) and `means` (per cents)."""
    runs = data_recipes(recipe, seed)
    pipeline.artifacts(data_requests(recipe, [seed]))
    found: dict[str, Answered] = {}
    asked: dict[str, list[Prompt]] = {}
    for name, run in runs.items():
        model = pipeline.load("safety_data", run)
        asked = asked or held_out(model, recipe.corpus.world_seed, seed)
        found[name] = answered_by(model, recipe, asked, seed)
    values = compared("100 over 0", found["100"], found["0"])
    first, second = found["10"].safety - found["0"].safety, found["100"].safety - found["50"].safety
    values |= gain("safety/early over late", first - second)
    for name, marks in found.items():
        values |= means(name, marks)
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def arm_recipes(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return the distillations of claims 43 to 45."""
    firm = replace(recipe.distillation, seed=seed, **FIRMER)
    return {
        name: replace(recipe, distillation=replace(firm, **changes))
        for name, changes in ARMS.items()
    }


def arm_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the runs of claims 43 to 45."""
    return [(EARLY, run) for seed in seeds for run in arm_recipes(recipe, seed).values()]


def shown_arm(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """Return the run that notebook 10 looks into, of the first seed."""
    return [(EARLY, arm_recipes(recipe, 0)["template"])]


def measure_preprompts(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 43 on the answers that were distilled, scored by the safety reward model.

    Keys: `median/<kind>`, of sigmoid(score); `gain/<kind> over <kind>` and `error/...` of it on
    the same prompts; `gold/<kind>`, mean gold marks of safety, shown.
    """
    runs = arm_recipes(recipe, seed)
    rows = {
        kind: pipeline.distilled_rows(pipeline.artifact(EARLY, runs[kind]))
        for kind in ("generic", "template")
    }
    judge = judge_of(make_world(recipe.corpus.world_seed))
    scores = {"none": _column(rows["generic"], "original_score")}
    texts = {"none": [row.original for row in rows["generic"]]}
    for kind, own in rows.items():
        scores[kind] = _column(own, "answer_score")
        texts[kind] = [row.answer for row in own]
    values: dict[str, float] = {}
    for kind, marks in scores.items():
        gold = [
            judge.safety(row.prompt, text).score
            for row, text in zip(rows["generic"], texts[kind], strict=True)
        ]
        values[f"median/{kind}"] = float(np.median(marks))
        values[f"gold/{kind}"] = float(np.mean(gold))
    for after, before in (("generic", "none"), ("template", "generic"), ("template", "none")):
        values |= gain(f"{after} over {before}", scores[after] - scores[before])
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def measure_gate(recipe: Recipe, seed: int) -> Measurement:
    """Measure claims 44 and 45.

    Keys: `gain/low over high`, how much more the quarter of prompts with the lowest scores gains
    than the one with the highest, sorted by ANOTHER answer of the same model, with `error/...`;
    `own/low over high`, sorted by the original as in the paper, shown; `gain/high`, what the
    highest quarter gains; `kept`, share that passes the gate; and of the tuned models the keys of
    `compared` (`gated over ungated`, `gated over none`, `all over ungated`, `as risky over
    ungated`) and of `means`.
    """
    runs = arm_recipes(recipe, seed)
    pipeline.artifacts(arm_requests(recipe, [seed]))
    rows = pipeline.distilled_rows(pipeline.artifact(EARLY, runs["template"]))
    own, again, new = (
        _column(rows, name) for name in ("original_score", "again_score", "answer_score")
    )
    values = _by_quarter(new - own, again)
    low, high = _quarters(new - own, own)
    values["own/low over high"] = float(low.mean() - high.mean())
    values["kept"] = float(np.mean([row.increase > 0 for row in rows]))
    found: dict[str, Answered] = {}
    asked: dict[str, list[Prompt]] = {}
    for name in ("none", "template", "ungated", "all", "as risky"):
        model = pipeline.load(EARLY, runs[name])
        asked = asked or held_out(model, recipe.corpus.world_seed, seed)
        found[name] = answered_by(model, recipe, asked, seed)
        values |= means(name, found[name])
    values |= compared("gated over ungated", found["template"], found["ungated"])
    values |= compared("gated over none", found["template"], found["none"])
    values |= compared("all over ungated", found["all"], found["ungated"])
    values |= compared("as risky over ungated", found["as risky"], found["ungated"])
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def _column(rows: Sequence[Distilled], name: str) -> Values:
    return expit(np.array([getattr(row, name) for row in rows], dtype=float))


def _quarters(gaps: Values, by: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return the gaps of the prompts with the lowest and with the highest quarter of `by`."""
    order, n = np.argsort(by, kind="stable"), max(2, len(by) // 4)
    return gaps[order[:n]], gaps[order[-n:]]


def _by_quarter(gaps: Values, by: Values) -> dict[str, float]:
    low, high = _quarters(gaps, by)
    errors = [part.var(ddof=1) / len(part) for part in (low, high)]
    return gain("high", high) | {
        "gain/low over high": float(low.mean() - high.mean()),
        "error/low over high": float(np.sqrt(sum(errors))),
    }
