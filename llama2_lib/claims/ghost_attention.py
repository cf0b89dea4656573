"""Claims on Ghost Attention (paper section 3.3, appendix A.3.5).

Declared before any seed was judged by them. Settings of the two stages were chosen on seed 0 with
other dialogs than those that are judged. Three seeds share one chain up to V5; dialogs,
instructions, samples and order of the two stages after it differ.

Claim 33 first compared turns 2 and 20. Before anything was measured, the base came to be taught to
keep an instruction for two messages, not one, so it obeys at turn 2 as the paper's did: the claim
compares turns 6 and 20.
"""

from collections.abc import Iterable, Sequence

from llama2_lib.claims.claim import (
    Check,
    Claim,
    Measurement,
    Threshold,
    Trust,
    Verdict,
    above,
    average,
    below,
    column,
    decide,
    threshold,
)
from llama2_lib.claims.ghost_attention_runs import (
    AFTER,
    BEFORE,
    HISTORIES,
    RIVALS,
    SPLITS,
    UNMASKED,
    main_requests,
    measure_attention,
    measure_held_out,
    measure_keeping,
    measure_mask,
    rival_requests,
)
from llama2_lib.evaluation.consistency import TURNS
from llama2_lib.evaluation.statistics import Estimate, mean_interval, proportion_exact
from llama2_lib.world.brief import MOST_TURNS

LATER = TURNS
"""Turns after the first, of the paper's table 30."""
FORGOTTEN = LATER[-2:]
"""Those at which the paper's model before Ghost Attention had nothing left."""


def pooled(measurements: Sequence[Measurement], name: str, what: str = "obeyed") -> Estimate:
    """Return the share of all seeds' dialogs, with Clopper and Pearson's interval.

    Every seed has other dialogs, so none counts twice.
    """
    hits, n = (sum(column(measurements, f"{key}/{name}")) for key in (what, "n"))
    return proportion_exact(round(hits), round(n))


def shares(
    measurements: Sequence[Measurement], names: Iterable[str], what: str = "obeyed"
) -> list[float]:
    """Return of every seed the mean over `names` of a share."""
    parts = [
        [
            hits / n
            for hits, n in zip(
                column(measurements, f"{what}/{name}"),
                column(measurements, f"n/{name}"),
                strict=True,
            )
        ]
        for name in names
    ]
    return [sum(own) / len(own) for own in zip(*parts, strict=True)]


def gap(
    measurements: Sequence[Measurement],
    more: Iterable[str],
    less: Iterable[str],
    what: str = "obeyed",
) -> Estimate:
    """Return the mean over seeds of one share less another, with its interval over seeds."""
    pairs = zip(shares(measurements, more, what), shares(measurements, less, what), strict=True)
    return mean_interval([a - b for a, b in pairs])


def cells(model: str, *histories: str, turns: Sequence[int] = LATER) -> list[str]:
    """Return the names of what was counted for a model."""
    return [f"{model}/{history}/{turn}" for history in histories for turn in turns]


def keeps(
    text: str, measurements: Sequence[Measurement], names: Sequence[str], limit: Threshold
) -> Check:
    """Check that every seed keeps the instruction in every cell: share and lower bound.

    False if the whole interval of some cell lies below the share that is asked.
    """
    found = [pooled([one], name) for one in measurements for name in names]
    worst = min(found, key=lambda estimate: estimate.value)
    enough = all(e.value >= limit["share"] and e.low >= limit["low"] for e in found)
    refuted = any(e.high < limit["share"] for e in found)
    return Check(
        text=f"{text}: the worst of {len(found)} cells has {worst}, must be at least "
        f"{limit['share']:g} with a lower bound of {limit['low']:g}",
        holds=False if refuted else True if enough else None,
    )


def judge_keeping(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 31; keys as in `measure_keeping`."""
    last = LATER[-1]
    right = gap(measurements, cells(AFTER, *HISTORIES), cells(BEFORE, *HISTORIES), "right")
    checks = [
        above("before, turn 1", pooled(measurements, f"{BEFORE}/neutral/1"), limit["knows"]),
        *(
            below(
                f"before, {history} history, turn {last}",
                pooled(measurements, f"{BEFORE}/{history}/{last}"),
                limit["decayed"],
            )
            for history in HISTORIES
        ),
        *(keeps(f"{AFTER}, {h} history", measurements, cells(AFTER, h), limit) for h in HISTORIES),
        above(f"right answers, {AFTER} less before", right, -limit["loss"]),
    ]
    shown = {
        f"{model}, {history} history, turn {turn}": pooled(
            measurements, f"{model}/{history}/{turn}"
        )
        for model in (BEFORE, AFTER)
        for history in HISTORIES
        for turn in (1, *LATER)
    }
    shown[f"right answers, {AFTER} less before"] = right
    shown |= {
        f"{which} instruction after a switch": average(measurements, f"switch/{which}")
        for which in ("old", "new")
    }
    return decide(checks, shown)


def judge_mask(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 32; keys as in `measure_mask`."""
    last = LATER[-1]
    shown: dict[str, Estimate] = {}
    checks = []
    for rival in RIVALS:
        for history in HISTORIES:
            text = f"{AFTER} less {rival}, {history} history"
            shown[text] = gap(measurements, cells(AFTER, history), cells(rival, history))
            shown[f"{rival}, {history} history, turn {last}"] = pooled(
                measurements, f"{rival}/{history}/{last}"
            )
    for rival in UNMASKED:
        text = f"{AFTER} less {rival}, neutral history"
        checks.append(above(text, shown[text], limit["gain"]))
        text = f"{rival}, neutral history, turn {last}"
        checks.append(below(text, shown[text], limit["share"]))
    return decide(checks, shown)


def judge_held_out(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 33; keys as in `measure_held_out`."""
    checks, shown = [], {}
    for split in SPLITS[1:]:
        for turn in LATER:
            for model in (BEFORE, AFTER):
                shown[f"{model}, {split}, turn {turn}"] = pooled(
                    measurements, f"{model}/{split}/{turn}"
                )
        for turn in FORGOTTEN:
            old, new = (shown[f"{model}, {split}, turn {turn}"] for model in (BEFORE, AFTER))
            text = f"{AFTER}, {split}, turn {turn}, above the upper bound of before"
            checks.append(above(text, new, old.high + limit["gain"]))
    return decide(checks, shown)


def judge_attention(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 34; keys as in `measure_attention`."""
    turns = range(2, MOST_TURNS + 1)
    means = {
        model: [
            sum(own) / len(turns)
            for own in zip(
                *(column(measurements, f"attention/{model}/{t}") for t in turns), strict=True
            )
        ]
        for model in (BEFORE, AFTER)
    }
    more = mean_interval([new - old for old, new in zip(means[BEFORE], means[AFTER], strict=True)])
    text = f"maximum attention from turn 2 on, {AFTER} less before"
    shown = {
        f"maximum attention, {model}, turn {turn}": average(
            measurements, f"attention/{model}/{turn}"
        )
        for model in (BEFORE, AFTER)
        for turn in (1, *LATER)
    }
    return decide([above(text, more, limit["more"])], {text: more} | shown)


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
        threshold=threshold(
            "Before: above {knows:g} at turn 1, below {decayed:g} at turn 20 (bounds of 95 %, "
            "pooled). With GAtt in every seed, on both histories, at every turn: at least "
            "{share:g}, lower bound at least {low:g}. Right answers after turn 1: less than "
            "{loss:g} lost (95 % over seeds).",
            knows=0.9,
            decayed=0.1,
            share=0.95,
            low=0.9,
            loss=0.05,
        ),
        judge=judge_keeping,
        measure=measure_keeping,
        requests=main_requests,
        recorded=True,
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
        threshold=threshold(
            "On a neutral history, for both: obedience over turns 2, 4, 6, 20 with the mask less "
            "without it exceeds {gain:g} (95 % over seeds), and at turn 20 without it stays under "
            "{share:g} (95 %, pooled).",
            gain=0.05,
            share=0.95,
        ),
        judge=judge_mask,
        measure=measure_mask,
        requests=rival_requests,
        recorded=True,
    ),
    Claim(
        id=33,
        section="3.3",
        statement="Ghost Attention keeps instructions of kinds that it never trained on.",
        paper_value="figure 28: answers in haiku, in one sentence, another persona; no number",
        paper_trust=Trust.DESIGN,
        prediction="Values held out of known kinds, and kinds held out altogether, are kept more "
        "often than before, after plain answers. How often falls behind the trained ones.",
        threshold=threshold(
            "At turns 6 and 20, for values and for kinds: the lower bound with GAtt exceeds the "
            "upper bound before by more than {gain:g} (95 %, pooled over seeds).",
            gain=0.0,
        ),
        judge=judge_held_out,
        measure=measure_held_out,
        requests=main_requests,
        recorded=True,
    ),
    Claim(
        id=34,
        section="3.3",
        statement="With Ghost Attention the instruction is attended to for longer.",
        paper_value="figure 10, maximum attention, bright columns; no number",
        paper_trust=Trust.FIGURE,
        prediction="On the same dialogs with plain answers, the largest weight that any head gives "
        "to the instruction while an answer is written is higher with GAtt, turns 2 to 20.",
        threshold=threshold(
            "Mean over turns 2 to 20, GAtt less before: above {more:g} (95 % over seeds).",
            more=0.0,
        ),
        judge=judge_attention,
        measure=measure_attention,
        requests=main_requests,
        recorded=True,
    ),
)
