"""Claims 31 to 34: every verdict can be reached, and each arm differs in one setting only."""

import dataclasses

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.claims import CLAIMS, CannotShow, Measurement, Outcome, ghost_attention_runs
from llama2_lib.claims.ghost_attention import AFTER, BEFORE, LATER, gap, pooled, shares
from llama2_lib.claims.ghost_attention_runs import (
    ASKED,
    HISTORIES,
    RIVALS,
    SPLITS,
    arms,
    counted,
    measured_cases,
    plain_dialog,
    switch_shares,
)
from llama2_lib.evaluation.consistency import Kept, Switched
from llama2_lib.evaluation.system_attention import spans
from llama2_lib.recipes import nano, toy
from llama2_lib.text.dialog import check_dialog
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.instructions import worded

YES, NO, OPEN = Outcome.REPRODUCED, Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE
N = 120


def made_up(shares_of, n=N, seeds=3, **more):
    """Seeds in which `shares_of` gives hits a cell by name; right answers are 0.9 everywhere."""
    rows = []
    for seed in range(seeds):
        values = {}
        for name, share in shares_of.items():
            values[f"n/{name}"] = float(n)
            values[f"obeyed/{name}"] = float(round(share * n))
            values[f"right/{name}"] = float(round(0.9 * n))
        rows.append(Measurement(values=values | more, seed=seed))
    return rows


def kept(**changed):
    """Claim 31: `changed` replaces shares by model and turn, as `GAtt_20=0.5`."""
    before = dict.fromkeys(ASKED, 0.0) | {1: 1.0}
    wanted = {BEFORE: before, AFTER: dict.fromkeys(ASKED, 1.0)}
    for key, share in changed.items():
        model, turn = key.split("_")
        wanted[model][int(turn)] = share
    cells = {
        f"{model}/{history}/{turn}": share
        for model, turns in wanted.items()
        for history in HISTORIES
        for turn, share in turns.items()
    }
    return made_up(cells, **{"switch/old": 0.1, "switch/new": 0.8})


def outcome(claim, rows):
    return CLAIMS[claim].verdict(rows).outcome


def test_every_claim_is_declared_and_has_what_it_needs():
    for number in (31, 32, 33, 34):
        claim = CLAIMS[number]
        assert all(str(value).strip() for value in claim.declaration().values())
        assert claim.recorded
        assert claim.min_seeds == 3


def test_claim_31_is_reproduced_if_only_the_base_forgets():
    verdict = CLAIMS[31].verdict(kept())
    assert verdict.outcome == YES
    estimate = verdict.estimates[f"{AFTER}, own history, turn 20"]
    assert (estimate.value, estimate.n) == (1.0, 3 * N)
    assert estimate.low == pytest.approx(0.025 ** (1 / 360), rel=1e-6, abs=0)  # by hand: 0 failures
    assert verdict.estimates["new instruction after a switch"].value == pytest.approx(
        0.8, rel=1e-9, abs=0
    )


@pytest.mark.parametrize("changed", [
    {"before_1": 0.7}, {"before_20": 0.3}, {"GAtt_4": 0.85}, {"GAtt_20": 0.0},
])  # fmt: skip
def test_claim_31_is_refuted_by_a_base_that_keeps_or_a_gatt_that_forgets(changed):
    assert outcome(31, kept(**changed)) == NO


def test_claim_31_asks_every_seed_and_the_lower_bound():
    assert outcome(31, kept(GAtt_6=115 / N)) == YES  # 0.958, lower bound 0.905
    assert outcome(31, kept(GAtt_6=114 / N)) == OPEN  # 0.95, lower bound 0.894
    rows = kept()
    rows[1].values[f"obeyed/{AFTER}/own/20"] = 60.0
    assert outcome(31, rows) == NO
    assert outcome(31, kept()[:2]) == OPEN


def test_claim_31_is_refuted_if_answers_go_wrong():
    rows = kept()
    for row in rows:
        for name in list(row.values):
            if name.startswith(f"right/{AFTER}/"):
                row.values[name] = 0.8 * N
    assert outcome(31, rows) == NO
    for seed, row in enumerate(rows):
        for name in list(row.values):
            if name.startswith(f"right/{AFTER}/"):
                row.values[name] = (0.95, 0.8, 0.9)[seed] * N
    assert outcome(31, rows) == OPEN


def masked(**lost):
    """Claim 32: shares of the arms without a mask, by their names with _ for a space."""
    wanted = {AFTER: 1.0, "short dialogs": 0.9, "reading B": 0.9, "all answers": 0.1, "no mask": 0}
    wanted |= {name.replace("_", " "): share for name, share in lost.items()}
    cells = {
        f"{arm}/{history}/{turn}": share
        for arm, share in wanted.items()
        for history in HISTORIES
        for turn in ASKED
    }
    return made_up(cells, n=60)


def test_claim_32_needs_both_arms_without_a_mask_to_forget():
    verdict = CLAIMS[32].verdict(masked())
    assert verdict.outcome == YES
    assert verdict.estimates[f"{AFTER} less all answers, own history"].value == pytest.approx(
        0.9, rel=1e-9, abs=0
    )
    assert outcome(32, masked(all_answers=1.0)) == NO
    assert outcome(32, masked(no_mask=1.0)) == NO
    assert outcome(32, masked(reading_B=1.0, short_dialogs=0.0)) == YES  # shown, not judged


def test_claim_32_stays_open_if_seeds_disagree():
    rows = masked()
    for turn in LATER:
        rows[0].values[f"obeyed/all answers/neutral/{turn}"] = 60.0
    assert outcome(32, rows) == OPEN


def held_out(**changed):
    """Claim 33: `changed` replaces shares by model, for both splits."""
    wanted = {BEFORE: 0.0, AFTER: 0.4} | changed
    cells = {
        f"{m}/{s}/{t}": share for m, share in wanted.items() for s in SPLITS[1:] for t in ASKED
    }
    return made_up(cells)


def test_claim_33_compares_bounds():
    assert outcome(33, held_out()) == YES
    assert outcome(33, held_out(before=0.4)) == NO
    assert outcome(33, held_out(before=0.36)) == OPEN
    one_turn = held_out()
    for row in one_turn:
        row.values[f"obeyed/{AFTER}/held-out kinds/20"] = 0.0
    assert outcome(33, one_turn) == NO


def attended(more, noise=(0.01, -0.01, 0.0)):
    return [
        Measurement(
            values={
                f"attention/{model}/{turn}": 0.3 + (model == AFTER) * (more + shift)
                for model in (BEFORE, AFTER)
                for turn in range(1, 21)
            },
            seed=seed,
        )
        for seed, shift in enumerate(noise)
    ]


def test_claim_34_compares_means_over_later_turns():
    verdict = CLAIMS[34].verdict(attended(0.2))
    assert verdict.outcome == YES
    text = f"maximum attention from turn 2 on, {AFTER} less before"
    assert verdict.estimates[text].value == pytest.approx(0.2, rel=1e-9, abs=0)
    assert outcome(34, attended(-0.2)) == NO
    assert outcome(34, attended(0.01)) == OPEN


def test_shares_are_pooled_over_dialogs_and_gaps_over_seeds():
    rows = made_up({"a/x": 0.5, "b/x": 0.25}, n=40)
    rows[0].values["obeyed/a/x"] = 40.0
    assert pooled(rows, "a/x").value == pytest.approx(80 / 120, rel=1e-9, abs=0)
    assert shares(rows, ["a/x", "b/x"]) == pytest.approx([0.625, 0.375, 0.375], rel=1e-9, abs=0)
    assert gap(rows, ["a/x"], ["b/x"]).value == pytest.approx(1.25 / 3, rel=1e-9, abs=0)


def test_each_arm_differs_in_one_setting_and_seeds_in_theirs():
    recipe = nano()
    found = arms(recipe, 2)
    assert list(found) == [BEFORE, AFTER, *RIVALS]
    assert found[BEFORE] == ("instructed", found[AFTER][1])
    main = dataclasses.asdict(found[AFTER][1].ghost_attention)
    assert main == dataclasses.asdict(recipe.ghost_attention) | {"seed": 2}
    for name, (stage, own) in found.items():
        assert own.instructed.seed == 2
        assert (
            dataclasses.replace(
                own, instructed=recipe.instructed, ghost_attention=recipe.ghost_attention
            )
            == recipe
        )  # the chain before is shared
        if name in RIVALS:
            assert stage == "ghost_attention"
            changed = {k: v for k, v in dataclasses.asdict(own.ghost_attention).items()
                       if v != main[k]}  # fmt: skip
            assert changed == RIVALS[name]


def test_counts_are_of_reached_turns():
    hits = np.array([[True, True, False], [True, False, False], [True, True, True]])
    reached = np.array([[True, True, True], [True, True, False], [True, False, False]])
    values = counted(Kept(hits, ~hits, reached), "who", (1, 2, 3))
    assert values == {
        "n/who/1": 3.0, "obeyed/who/1": 3.0, "right/who/1": 0.0,
        "n/who/2": 2.0, "obeyed/who/2": 1.0, "right/who/2": 1.0,
        "n/who/3": 1.0, "obeyed/who/3": 0.0, "right/who/3": 1.0,
    }  # fmt: skip
    nobody = Kept(hits, hits, np.zeros_like(hits))
    with pytest.raises(CannotShow, match="no dialog reaches turn 3"):
        counted(nobody, "who", (3,))


def test_a_switch_is_counted_from_its_turn_on():
    old = np.array([[True, True, False, False]])
    everywhere = np.ones_like(old)
    found = Switched(Kept(old, old, everywhere), Kept(~old, old, everywhere), 2)
    assert switch_shares(found) == {"switch/old": pytest.approx(1 / 3), "switch/new": 2 / 3}


def test_measured_dialogs_are_whole_and_hold_the_instruction_once(toy_root):
    recipe = toy()
    case = measured_cases(recipe, 1, 3)[2]
    dialog = plain_dialog(case)
    check_dialog(dialog)
    assert len(dialog) == 40
    words = worded(case.instructions)
    assert [m["content"].count(words) for m in dialog].count(1) == 1
    path = pipeline.artifact_path("tokenizer", recipe, root=toy_root)
    assert spans(dialog, words, load_tokenizer(path)).instruction.start > 0
    assert measured_cases(recipe, 2, 3) != measured_cases(recipe, 1, 3)


def test_a_context_too_short_for_twenty_turns_cannot_show(toy_root, monkeypatch):
    monkeypatch.setattr(pipeline, "artifacts", lambda requests: None)
    load = pipeline.load
    monkeypatch.setattr(pipeline, "load", lambda stage, own: load(stage, toy(), root=toy_root))
    for measure in (ghost_attention_runs.measure_keeping, ghost_attention_runs.measure_held_out):
        with pytest.raises(CannotShow, match="no dialog reaches turn"):
            measure(toy(), 0)
