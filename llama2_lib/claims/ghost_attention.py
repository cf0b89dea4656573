"""Claims on Ghost Attention (paper section 3.3, appendix A.3.5).

Declared before any seed was judged by them. Settings of the two stages were chosen on seed 0 with
other dialogs than those that are judged. All seeds share one chain up to V5; a seed draws its own
dialogs, instructions and samples for both stages after it, and other dialogs to measure with.

Claim 33 first compared turns 2 and 20. Before anything was measured, the base came to be taught to
keep an instruction for two messages, not one, so it obeys at turn 2 as the paper's did: the claim
compares turns 6 and 20.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from llama2_lib import pipeline, rng
from llama2_lib.claims.claim import (
    SIGNED,
    CannotShow,
    Check,
    Claim,
    Fact,
    Measurement,
    Measurements,
    Must,
    Trust,
    above,
    average,
    column,
    mean,
)
from llama2_lib.config import Recipe
from llama2_lib.evaluation.consistency import (
    TURNS,
    Case,
    Kept,
    Switched,
    attention_by_turn,
    cases,
    on_neutral_history,
    on_own_history,
    plain_until,
    switched,
)
from llama2_lib.evaluation.statistics import Estimate, proportion_exact
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message
from llama2_lib.world.instructions import MOST_TURNS, worded

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
LATER = TURNS
"""Turns after the first, of the paper's table 30."""
FORGOTTEN = LATER[-2:]
"""Those at which the paper's model before Ghost Attention had nothing left."""
N_CASES = 120
"""Dialogs of each kind of measurement: 115 that obey have a lower bound of 90 %, 114 have not."""
N_HELD_OUT = 240
"""More of what is kept seldom."""
N_RIVAL = 60
N_ATTENDED = 20
SWITCH_AT, SWITCH_TURNS = 5, 8
SHARE, LOW = 0.95, 0.9
"""How often claim 31 asks for obedience in every cell, and how low its interval may reach."""


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


def _some(*names: str) -> Callable[[Recipe, int], dict[str, tuple[str, Recipe]]]:
    """Return what lists some of the models of a seed."""
    return lambda recipe, seed: {name: arms(recipe, seed)[name] for name in names}


def counted(kept: Kept, name: str, turns: Sequence[int] = ASKED) -> dict[str, float]:
    """Return `obeyed/<name>/<turn>`, `right/...` and `n/...`: counts, not shares."""
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


def measure_keeping(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 31.

    Keys: those of `counted`, with `<model>/<history>` for the name; shown only: `switch/old` and
    `switch/new`, the share of answers after GAtt that obey the old and the new of two
    instructions, from the turn on where the new one is given.
    """
    values: dict[str, float] = {}
    for model in (BEFORE, AFTER):
        values |= _held(recipe, seed, model, "train", N_CASES, tuple(HISTORIES))
    values |= switch_shares(_switched(recipe, seed))
    return values


def measure_mask(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 32: keys as in `counted`, for GAtt and every rival, on both histories."""
    values: dict[str, float] = {}
    for model in (AFTER, *RIVALS):
        values |= _held(recipe, seed, model, "train", N_RIVAL, tuple(HISTORIES))
    return values


def measure_held_out(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 33: keys as in `counted`, with `<model>/<split>` for the name.

    The history is neutral: nothing in it can be copied.
    """
    values: dict[str, float] = {}
    for model in (BEFORE, AFTER):
        for split in SPLITS[1:]:
            found = _held(recipe, seed, model, split, N_HELD_OUT, ("neutral",))
            values |= {key.replace("/neutral/", f"/{split}/"): v for key, v in found.items()}
    return values


def measure_attention(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 34: `attention/<model>/<turn>`, the mean over dialogs of `attention_by_turn`.

    Both models read the same dialogs: the instruction first, then plain answers to the end.
    """
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
    return values


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
) -> dict[str, float]:
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


# ------------------------------------------------------------- quantities


def pooled(measurements: Measurements, name: str, what: str = "obeyed") -> Estimate:
    """Return the share of all seeds' dialogs, with Clopper and Pearson's interval.

    Every seed has other dialogs, so none counts twice.
    """
    hits, n = (sum(column(measurements, f"{key}/{name}")) for key in (what, "n"))
    return proportion_exact(round(hits), round(n))


def shares(measurement: Measurement, names: Iterable[str], what: str = "obeyed") -> float:
    """Return the mean over `names` of a share."""
    parts = [measurement[f"{what}/{name}"] / measurement[f"n/{name}"] for name in names]
    return sum(parts) / len(parts)


def gap(
    measurements: Measurements, more: Sequence[str], less: Sequence[str], what: str = "obeyed"
) -> Estimate:
    """Return the mean over seeds of one share less another, with its interval over seeds."""
    return average(
        measurements, lambda m: shares(m, more, what) - shares(m, less, what), bounds=SIGNED
    )


def cells(model: str, *histories: str, turns: Sequence[int] = LATER) -> list[str]:
    """Return the names of what was counted for a model."""
    return [f"{model}/{history}/{turn}" for history in histories for turn in turns]


def _keeps(history: str, measurements: Measurements) -> list[Check]:
    """Check that every seed keeps the instruction in every cell: share and lower bound.

    False if the whole interval of some cell lies below the share that is asked.
    """
    found = [pooled([one], name) for one in measurements for name in cells(AFTER, history)]
    worst = min(found, key=lambda estimate: estimate.value)
    enough = all(e.value >= SHARE and e.low >= LOW for e in found)
    refuted = any(e.high < SHARE for e in found)
    text = (
        f"{AFTER}, {history} history: the worst of {len(found)} cells has {worst}, must be at "
        f"least {SHARE:g} with a lower bound of {LOW:g}"
    )
    return [Check(text=text, holds=False if refuted else True if enough else None)]


def _obeys(model: str, history: str, turn: int, **bound: Any) -> Must:
    of = partial(pooled, name=f"{model}/{history}/{turn}")
    text = f"{model}, {history} history, turn {turn}"
    return Must(text, of, says=f"{text}, pooled", **bound)


def _right(measurements: Measurements) -> Estimate:
    return gap(measurements, cells(AFTER, *HISTORIES), cells(BEFORE, *HISTORIES), "right")


def _keeping_shown(measurements: Measurements) -> dict[str, Estimate]:
    kept = {
        f"{model}, {history} history, turn {turn}": pooled(
            measurements, f"{model}/{history}/{turn}"
        )
        for model in (BEFORE, AFTER)
        for history in HISTORIES
        for turn in (1, *LATER)
    }
    return kept | {
        f"{which} instruction after a switch": average(measurements, f"switch/{which}")
        for which in ("old", "new")
    }


def _lead(rival: str, history: str, measurements: Measurements) -> Estimate:
    return gap(measurements, cells(AFTER, history), cells(rival, history))


def _rivals_shown(measurements: Measurements) -> dict[str, Estimate]:
    shown = {}
    for rival in RIVALS:
        for history in HISTORIES:
            lead, last = _lead(rival, history, measurements), f"{rival}/{history}/{LATER[-1]}"
            shown[f"{AFTER} less {rival}, {history} history"] = lead
            shown[f"{rival}, {history} history, turn {LATER[-1]}"] = pooled(measurements, last)
    return shown


def _held_out_shown(measurements: Measurements) -> dict[str, Estimate]:
    return {
        f"{model}, {split}, turn {turn}": pooled(measurements, f"{model}/{split}/{turn}")
        for split in SPLITS[1:]
        for turn in LATER
        for model in (BEFORE, AFTER)
    }


def _bounds_apart(measurements: Measurements) -> list[Check]:
    checks = []
    for split in SPLITS[1:]:
        for turn in FORGOTTEN:
            old, new = (pooled(measurements, f"{m}/{split}/{turn}") for m in (BEFORE, AFTER))
            text = f"{AFTER}, {split}, turn {turn}, above the upper bound of before"
            checks.append(above(text, new, old.high))
    return checks


def _attention(model: str, measurement: Measurement) -> float:
    turns = range(2, MOST_TURNS + 1)
    return sum(measurement[f"attention/{model}/{turn}"] for turn in turns) / len(turns)


def _attention_shown(measurements: Measurements) -> dict[str, Estimate]:
    return {
        f"maximum attention, {model}, turn {turn}": average(
            measurements, f"attention/{model}/{turn}"
        )
        for model in (BEFORE, AFTER)
        for turn in (1, *LATER)
    }


CLAIMS = (
    Claim(
        id=31,
        section="3.3",
        statement="Ghost Attention keeps an instruction over twenty turns and more.",
        paper_value="table 30, turns 2, 4, 6, 20: 100, 10, 0, 0 % before; 100 % with GAtt at each",
        paper_trust=Trust.PRINTED,
        prediction="Before, answers obey for two turns and hardly later; that is a premise here, "
        "the base was taught so. With GAtt they obey at turns 2, 4, "
        "6 and 20, on the model's own history and after plain answers, and are as right as before. "
        "What becomes of an instruction that is changed on the way is shown.",
        where="Obedience and right answers",
        tests=(
            # before it an instruction is obeyed, and then forgotten
            replace(_obeys(BEFORE, "neutral", 1, above=0.9), text="before, turn 1", named=""),
            *(_obeys(BEFORE, history, LATER[-1], below=0.1) for history in HISTORIES),
            *(
                Fact(
                    f"{AFTER}, {history} history, in every seed, at every turn at least "
                    f"{SHARE:g}, lower bound at least {LOW:g}",
                    partial(_keeps, history),
                )
                for history in HISTORIES
            ),
            Must(
                f"right answers, {AFTER} less before",
                _right,
                above=-0.05,
                says=f"right answers after turn 1, {AFTER} less before, over seeds,",
            ),
        ),
        intervals="(95 %)",
        shown=(_keeping_shown,),
        measured_by=measure_keeping,
        runs=_some(BEFORE, AFTER),
    ),
    Claim(
        id=32,
        section="3.3",
        statement="The loss must be zero on all earlier turns, answers included.",
        paper_value="asserted: the mismatch of instruction and earlier answers could hurt; no "
        "ablation",
        paper_trust=Trust.DESIGN,
        prediction="With earlier answers that do not obey (reading A), a loss on all answers, or "
        "on all tokens, teaches to forget. Shorter training dialogs and reading B are shown.",
        where=f"Obedience over turns {', '.join(map(str, LATER))}",
        tests=tuple(
            test
            for rival in UNMASKED
            for test in (
                Must(
                    f"{AFTER} less {rival}, neutral history",
                    partial(_lead, rival, "neutral"),
                    above=0.05,
                ),
                _obeys(rival, "neutral", LATER[-1], below=0.95),
            )
        ),
        shown=(_rivals_shown,),
        measured_by=measure_mask,
        runs=_some(AFTER, *RIVALS),
    ),
    Claim(
        id=33,
        section="3.3",
        statement="Ghost Attention keeps instructions of kinds that it never trained on.",
        paper_value="figure 28: answers in haiku, in one sentence, another persona; no number",
        paper_trust=Trust.DESIGN,
        prediction="Values held out of known kinds, and kinds held out altogether, are kept more "
        "often than before, after plain answers. How often falls behind the trained ones.",
        where=f"At turns {' and '.join(map(str, FORGOTTEN))}, for values and for kinds",
        tests=(
            Fact(
                "the lower bound with GAtt less the upper bound before above 0",
                _bounds_apart,
            ),
        ),
        intervals="(95 %, pooled over seeds)",
        shown=(_held_out_shown,),
        measured_by=measure_held_out,
        runs=_some(BEFORE, AFTER),
    ),
    Claim(
        id=34,
        section="3.3",
        statement="With Ghost Attention the instruction is attended to for longer.",
        paper_value="figure 10, maximum attention, bright columns; no number",
        paper_trust=Trust.FIGURE,
        prediction="On the same dialogs with plain answers, the largest weight that any head gives "
        "to the instruction while an answer is written is higher with GAtt, turns 2 to 20.",
        where=f"Mean over turns 2 to {MOST_TURNS}",
        tests=(
            Must(
                f"maximum attention from turn 2 on, {AFTER} less before",
                mean(lambda m: _attention(AFTER, m) - _attention(BEFORE, m)),
                above=0,
            ),
        ),
        shown=(_attention_shown,),
        measured_by=measure_attention,
        runs=_some(BEFORE, AFTER),
    ),
)
