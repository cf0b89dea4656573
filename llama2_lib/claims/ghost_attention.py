"""Claims on Ghost Attention (paper section 3.3, appendix A.3.5).

Declared before any seed was judged by them. Settings of the two stages were chosen on seed 0 with
other dialogs than those that are judged. All seeds share one chain up to V5; a seed draws its own
dialogs, instructions and samples for both stages after it, and other dialogs to measure with.

Claim 33 first compared turns 2 and 20. Before anything was measured, the base came to be taught to
keep an instruction for two messages, not one, so it obeys at turn 2 as the paper's did: the claim
compares turns 6 and 20.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from llama2_lib import pipeline, rng
from llama2_lib.claims import claim
from llama2_lib.claims.claim import Claim, Fact, Must, Trust, mean
from llama2_lib.config import Recipe
from llama2_lib.evaluation import consistency
from llama2_lib.evaluation.consistency import Case, Kept, plain_until
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
LATER = consistency.TURNS
"""Turns after the first, of the paper's table 30."""
ASKED = (1, *LATER)
"""Turns that are asked on a neutral history; the first tells whether a model obeys at all."""
HISTORIES: dict[str, Callable[..., Kept]] = {
    "neutral": partial(consistency.on_neutral_history, turns=ASKED),
    "own": consistency.on_own_history,
}
SPLITS = ("train", "held-out values", "held-out kinds")
TRAINED = {history: ("train", history) for history in HISTORIES}
HELD_OUT = {split: (split, "neutral") for split in SPLITS[1:]}
"""What is counted, by name: a split of the instructions, on a history. On a neutral one nothing
can be copied."""
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


def arms(recipe: Recipe, seed: int) -> dict[str, claim.Request]:
    """Return stage and recipe of every model of one seed: it is that of the stages after V5."""
    config = replace(recipe.ghost_attention, seed=seed)
    own = replace(recipe, instructed=replace(recipe.instructed, seed=seed), ghost_attention=config)
    rivals = {
        name: ("ghost_attention", replace(own, ghost_attention=replace(config, **changed)))
        for name, changed in RIVALS.items()
    }
    return {BEFORE: ("instructed", own), AFTER: ("ghost_attention", own), **rivals}


def _some(*names: str) -> claim.Runs:
    """Return what lists some of the models of a seed."""
    return lambda recipe, seed: {name: arms(recipe, seed)[name] for name in names}


def counted(kept: Kept, name: str, turns: Sequence[int] = ASKED) -> dict[str, float]:
    """Return `obeyed/<name>/<turn>`, `right/...` and `n/...`: counts, not shares."""
    values: dict[str, float] = {}
    for turn in turns:
        reached = kept.reached[:, turn - 1]
        if not reached.any():
            raise claim.CannotShow(f"no dialog reaches turn {turn}: the context is too short")
        values[f"n/{name}/{turn}"] = float(reached.sum())
        for what, hits in (("obeyed", kept.obeyed), ("right", kept.right)):
            values[f"{what}/{name}/{turn}"] = float(hits[reached, turn - 1].sum())
    return values


def measured_cases(recipe: Recipe, seed: int, n: int, split: str = "train") -> list[Case]:
    """Return dialogs of twenty turns, one instruction each, that no training run of a seed drew."""
    world = make_world(recipe.corpus.world_seed)
    return consistency.cases(world, _judged(seed), n, split=split)


def _judged(seed: int) -> int:
    return rng.seed_from(seed, "claims of Ghost Attention")


def measure_keeping(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 31.

    Keys: those of `counted`, with `<model>/<history>` for the name; shown only: `switch/old` and
    `switch/new`, the share of answers after GAtt that obey the old and the new of two
    instructions, from the turn on where the new one is given.
    """
    values = _held(recipe, seed, (BEFORE, AFTER), N_CASES, TRAINED)
    model, tokenizer = pipeline.load(*arms(recipe, seed)[AFTER])
    switched = consistency.switched(
        model, tokenizer, make_world(recipe.corpus.world_seed), at=SWITCH_AT, n=N_RIVAL,
        n_turns=SWITCH_TURNS, seed=_judged(seed),
    )  # fmt: skip
    return values | switch_shares(switched)


def measure_mask(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 32: keys as in `counted`, for GAtt and every rival, on both histories."""
    return _held(recipe, seed, (AFTER, *RIVALS), N_RIVAL, TRAINED)


def measure_held_out(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 33: keys as in `counted`, with `<model>/<split>` for the name."""
    return _held(recipe, seed, (BEFORE, AFTER), N_HELD_OUT, HELD_OUT)


def _held(
    recipe: Recipe, seed: int, models: Sequence[str], n: int,
    settings: Mapping[str, tuple[str, str]],
) -> dict[str, float]:  # fmt: skip
    values: dict[str, float] = {}
    for model in models:
        policy = pipeline.load(*arms(recipe, seed)[model])
        for name, (split, history) in settings.items():
            kept = HISTORIES[history](*policy, measured_cases(recipe, seed, n, split))
            values |= counted(kept, f"{model}/{name}")
    return values


def measure_attention(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 34: `attention/<model>/<turn>`, the mean over dialogs of `attention_by_turn`.

    Both models read the same dialogs: the instruction first, then plain answers to the end.
    """
    values: dict[str, float] = {}
    for name in (BEFORE, AFTER):
        policy = pipeline.load(*arms(recipe, seed)[name])
        rows = [
            consistency.attention_by_turn(*policy, plain_dialog(case), worded(case.instructions))
            for case in measured_cases(recipe, seed, N_ATTENDED)
        ]
        means = np.stack(rows).mean(axis=0)
        values |= {f"attention/{name}/{turn}": float(x) for turn, x in enumerate(means, 1)}
    return values


def plain_dialog(case: Case) -> list[Message]:
    """Return the whole dialog of a case with plain answers, the instruction in its first turn."""
    last = case.turns[-1].answer
    return [*plain_until(case, len(case.turns)), {"role": "assistant", "content": last}]


def switch_shares(found: consistency.Switched) -> dict[str, float]:
    """Return `switch/old` and `switch/new`, from the turn of the switch on."""
    since = found.at - 1
    return {
        f"switch/{which}": float(kept.obeyed[:, since:][kept.reached[:, since:]].mean())
        for which, kept in (("old", found.old), ("new", found.new))
    }


# ------------------------------------------------------------- quantities


def pooled(measurements: claim.Measurements, name: str, what: str = "obeyed") -> Estimate:
    """Return the share of all seeds' dialogs, with Clopper and Pearson's interval.

    Every seed has other dialogs, so none counts twice.
    """
    hits, n = (sum(claim.column(measurements, f"{key}/{name}")) for key in (what, "n"))
    return proportion_exact(round(hits), round(n))


def shares(measurement: claim.Measurement, names: Iterable[str], what: str = "obeyed") -> float:
    """Return the mean over `names` of a share."""
    parts = [measurement[f"{what}/{name}"] / measurement[f"n/{name}"] for name in names]
    return sum(parts) / len(parts)


def gap(
    measurements: claim.Measurements,
    more: Sequence[str],
    less: Sequence[str],
    what: str = "obeyed",
) -> Estimate:
    """Return the mean over seeds of one share minus another, with its interval over seeds."""
    return claim.average(
        measurements, lambda m: shares(m, more, what) - shares(m, less, what), bounds=claim.SIGNED
    )


def cells(model: str, *histories: str) -> list[str]:
    """Return the names of what was counted for a model after the first turn."""
    return [f"{model}/{history}/{turn}" for history in histories for turn in LATER]


def _keeps(history: str, measurements: claim.Measurements) -> list[claim.Check]:
    """Check that every seed keeps the instruction in every cell: share and lower bound.

    False if the whole interval of some cell lies below the share that is asked.
    """
    shares = [pooled([one], name) for one in measurements for name in cells(AFTER, history)]
    worst = min(shares, key=lambda estimate: estimate.value)
    enough = all(e.value >= SHARE and e.low >= LOW for e in shares)
    refuted = any(e.high < SHARE for e in shares)
    text = (
        f"{AFTER}, {history} history: the worst of {len(shares)} cells has {worst}, must be at "
        f"least {SHARE:g} with a lower bound of {LOW:g}"
    )
    return [claim.Check(text=text, holds=False if refuted else True if enough else None)]


def _obeys(model: str, history: str, turn: int, **bound: Any) -> Must:
    text = f"{model}, {history} history, turn {turn}"
    return Must(text, _pool(model, history, turn), says=f"{text}, pooled", **bound)


def _pool(model: str, name: str, turn: int) -> claim.Quantity:
    return partial(pooled, name=f"{model}/{name}/{turn}")


def _lead(model: str, rival: str, *histories: str, what: str = "obeyed") -> claim.Quantity:
    return partial(gap, more=cells(model, *histories), less=cells(rival, *histories), what=what)


def _attention(model: str, measurement: claim.Measurement) -> float:
    turns = range(2, MOST_TURNS + 1)
    return sum(measurement[f"attention/{model}/{turn}"] for turn in turns) / len(turns)


def _bounds_apart(measurements: claim.Measurements) -> list[claim.Check]:
    checks = []
    for split in HELD_OUT:
        for turn in FORGOTTEN:
            old, new = (pooled(measurements, f"{m}/{split}/{turn}") for m in (BEFORE, AFTER))
            text = f"{AFTER}, {split}, turn {turn}, above the upper bound of before"
            checks.append(claim.check("above", text, new, old.high))
    return checks


KEPT: dict[str, claim.Quantity] = {
    f"{model}, {history} history, turn {turn}": _pool(model, history, turn)
    for model in (BEFORE, AFTER)
    for history in HISTORIES
    for turn in ASKED
} | {f"{which} instruction after a switch": mean(f"switch/{which}") for which in ("old", "new")}
LEADS: dict[str, claim.Quantity] = {
    name: quantity
    for rival in RIVALS
    for history in HISTORIES
    for name, quantity in (
        (f"{AFTER} minus {rival}, {history} history", _lead(AFTER, rival, history)),
        (f"{rival}, {history} history, turn {LATER[-1]}", _pool(rival, history, LATER[-1])),
    )
}
KEPT_HELD_OUT: dict[str, claim.Quantity] = {
    f"{model}, {split}, turn {turn}": _pool(model, split, turn)
    for split in HELD_OUT
    for turn in LATER
    for model in (BEFORE, AFTER)
}
ATTENDED: dict[str, claim.Quantity] = {
    f"maximum attention, {model}, turn {turn}": mean(f"attention/{model}/{turn}")
    for model in (BEFORE, AFTER)
    for turn in ASKED
}
"""What claims 31 to 34 show."""

CLAIMS = (
    Claim(
        id=31, section="3.3", paper_trust=Trust.PRINTED,
        statement="Ghost Attention keeps an instruction over twenty turns and more.",
        paper_value="table 30, turns 2, 4, 6, 20: 100, 10, 0, 0 % before; 100 % with GAtt at each",
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
                f"right answers, {AFTER} minus before",
                _lead(AFTER, BEFORE, *HISTORIES, what="right"), above=-0.05,
                says=f"right answers after turn 1, {AFTER} minus before, over seeds,",
            ),
        ),
        intervals="(95 %)", shown=(KEPT,), measured_by=measure_keeping,
        runs=_some(BEFORE, AFTER),
    ),
    Claim(
        id=32, section="3.3", paper_trust=Trust.DESIGN,
        statement="The loss must be zero on all earlier turns, answers included.",
        paper_value="asserted: the mismatch of instruction and earlier answers could hurt; no "
        "ablation",
        prediction="With earlier answers that do not obey (reading A), a loss on all answers, or "
        "on all tokens, teaches to forget. Shorter training dialogs and reading B are shown.",
        where=f"Obedience over turns {', '.join(map(str, LATER))}",
        tests=tuple(
            test
            for rival in UNMASKED
            for test in (
                Must(
                    f"{AFTER} minus {rival}, neutral history", _lead(AFTER, rival, "neutral"),
                    above=0.05,
                ),
                _obeys(rival, "neutral", LATER[-1], below=0.95),
            )
        ),
        shown=(LEADS,), measured_by=measure_mask, runs=_some(AFTER, *RIVALS),
    ),
    Claim(
        id=33, section="3.3", paper_trust=Trust.DESIGN,
        statement="Ghost Attention keeps instructions of kinds that it never trained on.",
        paper_value="figure 28: answers in haiku, in one sentence, another persona; no number",
        prediction="Values held out of known kinds, and kinds held out altogether, are kept more "
        "often than before, after plain answers. How often falls behind the trained ones.",
        where=f"At turns {' and '.join(map(str, FORGOTTEN))}, for values and for kinds",
        tests=(
            Fact("the lower bound with GAtt minus the upper bound before above 0", _bounds_apart),
        ),
        intervals="(95 %, pooled over seeds)", shown=(KEPT_HELD_OUT,),
        measured_by=measure_held_out, runs=_some(BEFORE, AFTER),
    ),
    Claim(
        id=34, section="3.3", paper_trust=Trust.FIGURE,
        statement="With Ghost Attention the instruction is attended to for longer.",
        paper_value="figure 10, maximum attention, bright columns; no number",
        prediction="On the same dialogs with plain answers, the largest weight that any head gives "
        "to the instruction while an answer is written is higher with GAtt, turns 2 to 20.",
        where=f"Mean over turns 2 to {MOST_TURNS}",
        tests=(
            Must(
                f"maximum attention from turn 2 on, {AFTER} minus before",
                mean(lambda m: _attention(AFTER, m) - _attention(BEFORE, m)),
                above=0,
            ),
        ),
        shown=(ATTENDED,), measured_by=measure_attention, runs=_some(BEFORE, AFTER),
    ),
)  # fmt: skip
