"""What claims 31 to 34 measure: arms that differ in one setting, counts of turns, whole dialogs."""

import dataclasses

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.claims import ghost_attention as ghosts
from llama2_lib.claims.claim import CannotShow
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.evaluation.consistency import Kept, Switched, spans
from llama2_lib.recipes import nano, toy
from llama2_lib.text.dialog import check_dialog
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.instructions import worded


def test_each_arm_differs_in_one_setting_and_seeds_in_theirs():
    recipe = nano()
    arms = ghosts.arms(recipe, 2)
    assert list(arms) == [ghosts.BEFORE, ghosts.AFTER, *ghosts.RIVALS]
    assert arms[ghosts.BEFORE] == ("instructed", arms[ghosts.AFTER][1])
    main = dataclasses.asdict(recipe.ghost_attention) | {"seed": 2}
    for name, (stage, own) in arms.items():
        assert own.instructed.seed == 2
        before = {"instructed": recipe.instructed, "ghost_attention": recipe.ghost_attention}
        assert dataclasses.replace(own, **before) == recipe  # the chain before is shared
        config = dataclasses.asdict(own.ghost_attention)
        assert {k: v for k, v in config.items() if v != main[k]} == ghosts.RIVALS.get(name, {})
        assert name == ghosts.BEFORE or stage == "ghost_attention"


def test_counts_are_of_reached_turns():
    hits = np.array([[True, True, False], [True, False, False], [True, True, True]])
    reached = np.array([[True, True, True], [True, True, False], [True, False, False]])
    values = ghosts.counted(Kept(hits, ~hits, reached), "who", (1, 2, 3))
    assert values == {
        "n/who/1": 3.0, "obeyed/who/1": 3.0, "right/who/1": 0.0,
        "n/who/2": 2.0, "obeyed/who/2": 1.0, "right/who/2": 1.0,
        "n/who/3": 1.0, "obeyed/who/3": 0.0, "right/who/3": 1.0,
    }  # fmt: skip
    nobody = Kept(hits, hits, np.zeros_like(hits))
    with pytest.raises(CannotShow, match="no dialog reaches turn 3"):
        ghosts.counted(nobody, "who", (3,))


def test_a_switch_is_counted_from_its_turn_on():
    old = np.array([[True, True, False, False]])
    everywhere = np.ones_like(old)
    found = Switched(Kept(old, old, everywhere), Kept(~old, old, everywhere), 2)
    assert ghosts.switch_shares(found) == {"switch/old": pytest.approx(1 / 3), "switch/new": 2 / 3}


def test_measured_dialogs_are_whole_and_hold_the_instruction_once(toy_root):
    recipe = toy()
    case = ghosts.measured_cases(recipe, 1, 3)[2]
    dialog = ghosts.plain_dialog(case)
    check_dialog(dialog)
    assert len(dialog) == 40
    words = worded(case.instructions)
    assert [m["content"].count(words) for m in dialog].count(1) == 1
    path = pipeline.artifact_path("tokenizer", recipe, root=toy_root)
    assert spans(dialog, words, load_tokenizer(path)).instruction.start > 0
    assert ghosts.measured_cases(recipe, 2, 3) != ghosts.measured_cases(recipe, 1, 3)


@pytest.mark.slow
def test_a_context_too_short_for_twenty_turns_cannot_show(toy_root, monkeypatch):
    monkeypatch.setattr(pipeline, "artifacts", lambda requests: None)
    load = pipeline.load
    monkeypatch.setattr(pipeline, "load", lambda stage, own: load(stage, toy(), root=toy_root))
    for claim in (31, 33):
        with pytest.raises(CannotShow, match="no dialog reaches turn"):
            CLAIMS[claim].measure(toy(), 0)
