"""What claims 31 to 34 measure: arms that differ in one setting, counts of turns, whole dialogs."""

import dataclasses

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.claims import CLAIMS, CannotShow
from llama2_lib.claims.ghost_attention import (
    AFTER,
    BEFORE,
    RIVALS,
    arms,
    counted,
    measured_cases,
    plain_dialog,
    switch_shares,
)
from llama2_lib.evaluation.consistency import Kept, Switched, spans
from llama2_lib.recipes import nano, toy
from llama2_lib.text.dialog import check_dialog
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.instructions import worded


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
    for claim in (31, 33):
        with pytest.raises(CannotShow, match="no dialog reaches turn"):
            CLAIMS[claim].measure(toy(), 0)
