"""What claims 31 to 34 measure: the model before Ghost Attention, after it, and after its rivals.

All seeds share one chain up to V5. A seed draws its own dialogs, instructions and samples for both
stages, and other dialogs to measure with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from llama2_lib import pipeline, rng
from llama2_lib.claims.claim import CannotShow, Measurement
from llama2_lib.device import choose_device
from llama2_lib.evaluation.consistency import (
    TURNS,
    Case,
    Kept,
    Switched,
    cases,
    on_neutral_history,
    on_own_history,
    plain_until,
    switched,
)
from llama2_lib.evaluation.system_attention import attention_by_turn
from llama2_lib.recipes import Recipe
from llama2_lib.text.dialog import Message
from llama2_lib.world import make_world
from llama2_lib.world.instructions import worded

BEFORE, AFTER = "before", "GAtt"
RIVALS: dict[str, dict[str, Any]] = {
    "all answers": {"loss_on": "all"},
    "no mask": {"loss_on": "everything"},
    "short dialogs": {"most_turns": 6},
    "reading B": {"reading": "B"},
}
"""Each differs from Ghost Attention in one setting. The first two have no mask on earlier turns:
the loss is on every answer, or on every token."""
UNMASKED = ("all answers", "no mask")
HISTORIES = {"neutral": on_neutral_history, "own": on_own_history}
SPLITS = ("train", "held-out values", "held-out kinds")
ASKED = (1, *TURNS)
"""Turns that are asked on a neutral history; the first tells whether a model obeys at all."""
N_CASES = 120
"""Dialogs of each kind of measurement: 115 that obey have a lower bound of 90 %, 114 have not."""
N_HELD_OUT = 240
"""More of what is kept seldom."""
N_RIVAL = 60
N_ATTENDED = 20
SWITCH_AT, SWITCH_TURNS = 5, 8


def tuned(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with another seed for the two stages after V5."""
    return replace(
        recipe,
        instructed=replace(recipe.instructed, seed=seed),
        ghost_attention=replace(recipe.ghost_attention, seed=seed),
    )


def arms(recipe: Recipe, seed: int) -> dict[str, tuple[str, Recipe]]:
    """Return stage and recipe of every model of one seed, by name."""
    own = tuned(recipe, seed)
    found = {BEFORE: ("instructed", own), AFTER: ("ghost_attention", own)}
    for name, changed in RIVALS.items():
        config = replace(own.ghost_attention, **changed)
        found[name] = ("ghost_attention", replace(own, ghost_attention=config))
    return found


def main_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the models of claims 31, 33 and 34."""
    return [arms(recipe, seed)[name] for seed in seeds for name in (BEFORE, AFTER)]


def rival_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the models of claim 32."""
    return [arms(recipe, seed)[name] for seed in seeds for name in (AFTER, *RIVALS)]


def counted(kept: Kept, name: str, turns: Sequence[int] = ASKED) -> dict[str, float]:
    """Return `obeyed/<name>/<turn>`, `right/...` and `n/...`: counts, not shares.

    Raises:
        CannotShow: No dialog reached a turn.
    """
    values: dict[str, float] = {}
    for turn in turns:
        reached = kept.reached[:, turn - 1]
        if not reached.any():
            raise CannotShow(f"no dialog reaches turn {turn}: the context is too short")
        values[f"n/{name}/{turn}"] = float(reached.sum())
        for what, hits in (("obeyed", kept.obeyed), ("right", kept.right)):
            values[f"{what}/{name}/{turn}"] = float(hits[reached, turn - 1].sum())
    return values


def measured_cases(recipe: Recipe, seed: int, n: int, split: str = "train") -> list[Case]:
    """Return dialogs of twenty turns, one instruction each, that no training run of a seed drew."""
    world = make_world(recipe.corpus.world_seed)
    return cases(world, rng.seed_from(seed, "claims of Ghost Attention"), n, split=split)


def measure_keeping(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 31.

    Keys: those of `counted`, with `<model>/<history>` for the name; shown only: `switch/old` and
    `switch/new`, the share of answers after GAtt that obey the old and the new of two
    instructions, from the turn on where the new one is given.
    """
    pipeline.artifacts(main_requests(recipe, [seed]))
    values: dict[str, float] = {}
    for model in (BEFORE, AFTER):
        values |= _held(recipe, seed, model, "train", N_CASES, tuple(HISTORIES))
    values |= switch_shares(_switched(recipe, seed))
    return _measurement(values, seed)


def measure_mask(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 32: keys as in `counted`, for GAtt and every rival, on both histories."""
    pipeline.artifacts(rival_requests(recipe, [seed]))
    values: dict[str, float] = {}
    for model in (AFTER, *RIVALS):
        values |= _held(recipe, seed, model, "train", N_RIVAL, tuple(HISTORIES))
    return _measurement(values, seed)


def measure_held_out(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 33: keys as in `counted`, with `<model>/<split>` for the name.

    The history is neutral: nothing in it can be copied.
    """
    pipeline.artifacts(main_requests(recipe, [seed]))
    values: dict[str, float] = {}
    for model in (BEFORE, AFTER):
        for split in SPLITS[1:]:
            found = _held(recipe, seed, model, split, N_HELD_OUT, ("neutral",))
            values |= {key.replace("/neutral/", f"/{split}/"): v for key, v in found.items()}
    return _measurement(values, seed)


def measure_attention(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 34: `attention/<model>/<turn>`, the mean over dialogs of `attention_by_turn`.

    Both models read the same dialogs: the instruction first, then plain answers to the end.
    """
    pipeline.artifacts(main_requests(recipe, [seed]))
    values: dict[str, float] = {}
    for name in (BEFORE, AFTER):
        model, tokenizer = pipeline.load(*arms(recipe, seed)[name])
        dialogs = measured_cases(recipe, seed, N_ATTENDED)
        rows = [
            attention_by_turn(model, tokenizer, plain_dialog(case), worded(case.instructions))
            for case in dialogs
        ]
        means = np.stack(rows).mean(axis=0)
        values |= {f"attention/{name}/{i}": float(x) for i, x in enumerate(means, 1)}
    return _measurement(values, seed)


def plain_dialog(case: Case) -> list[Message]:
    """Return the whole dialog of a case with plain answers, the instruction in its first turn."""
    last = case.turns[-1].answer
    return [*plain_until(case, len(case.turns)), {"role": "assistant", "content": last}]


def switch_shares(found: Switched) -> dict[str, float]:
    """Return `switch/old` and `switch/new`, from the turn of the switch on."""
    since = found.at - 1
    return {
        f"switch/{which}": float(kept.obeyed[:, since:][kept.reached[:, since:]].mean())
        for which, kept in (("old", found.old), ("new", found.new))
    }


def _switched(recipe: Recipe, seed: int) -> Switched:
    model, tokenizer = pipeline.load(*arms(recipe, seed)[AFTER])
    world = make_world(recipe.corpus.world_seed)
    return switched(
        model, tokenizer, world, at=SWITCH_AT, n=N_RIVAL, n_turns=SWITCH_TURNS,
        seed=rng.seed_from(seed, "claims of Ghost Attention"),
    )  # fmt: skip


def _held(
    recipe: Recipe, seed: int, model: str, split: str, n: int, histories: Sequence[str]
) -> Mapping[str, float]:
    values: dict[str, float] = {}
    for history in histories:
        kept = _kept(recipe, seed, model, split, n, history)
        values |= counted(kept, f"{model}/{history}")
    return values


@cache
def _kept(recipe: Recipe, seed: int, model: str, split: str, n: int, history: str) -> Kept:
    """Claims share measurements, so each is taken once."""
    network, tokenizer = pipeline.load(*arms(recipe, seed)[model])
    dialogs = measured_cases(recipe, seed, n, split)
    if history == "neutral":
        return on_neutral_history(network, tokenizer, dialogs, ASKED)
    return on_own_history(network, tokenizer, dialogs)


def _measurement(values: Mapping[str, float], seed: int) -> Measurement:
    return Measurement(values=values, seed=seed, device=str(choose_device()))
