"""What notebooks show of single runs: what the course comes with, and that it can be made anew."""

import json

import numpy as np
import pytest

from llama2_lib.claims import finetuning, recorded_runs, reward
from llama2_lib.pipeline import artifact
from llama2_lib.recipes import nano, toy
from llama2_lib.stages.reward import SAFE_BINS
from llama2_lib.stages.safety import distilled_rows
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.pairs import GRADES


def check(recipe, steps, n_seeds, n_pairs, path=None):
    assert recorded_runs.recorded_run("provenance", path)["recipe"] == recipe.name
    by_width = recorded_runs.recorded_run("loss by width", path)
    assert {len(curve) for curve in by_width.values()} == {steps}
    by_schedule = recorded_runs.recorded_run("loss by schedule", path)
    assert np.shape([by_schedule[arm] for arm in ("with", "without")]) == (2, n_seeds, steps)
    heat = recorded_runs.recorded_run("helpfulness by temperature", path)
    marks = np.array([heat[arm] for arm in ("few_clean_longer", "many_noisy")])
    assert marks.shape == (2, n_seeds, len(recorded_runs.TEMPERATURES))
    assert ((marks >= 0) & (marks <= 1)).all()
    for name, (_, label) in recorded_runs.PAIRS.items():
        pairs = recorded_runs.recorded_pairs(name, path)
        assert {len(column) for column in pairs.values()} == {n_pairs}
        assert set(pairs[label]) <= {*GRADES, *SAFE_BINS}
    answers = recorded_runs.recorded_run("answers", path)
    assert {len(column) for column in answers.values()} == {recipe.distillation.n_prompts}


def test_what_the_course_comes_with():
    check(nano(), 300, 3, recorded_runs.N_PAIRS)
    wide = recorded_runs.recorded_run("loss by width")
    assert sorted(wide, key=int) == ["16", "32", "64"]
    assert all(curve[-1] < curve[0] / 2 for curve in wide.values())


@pytest.mark.slow
def test_it_can_be_made_anew(tmp_path, toy_copy, monkeypatch):
    for module, name, few in (
        (recorded_runs, "SEEDS", range(1)), (recorded_runs, "N_ASKED", 6),
        (recorded_runs, "N_PAIRS", 40), (reward, "N_PAIRS", 240),
        (reward, "N_HELD_OUT", 50), (reward, "N_MARGIN", 50),
        (finetuning, "FEW", 12),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, few)
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(recorded_runs.measured(toy())))
    check(toy(), toy().pretrain.steps, 1, 40, path)
    tokenizer = load_tokenizer(artifact("tokenizer", toy()))
    run = recorded_runs.arm_recipes(toy(), 0)["template"]
    rows = distilled_rows(artifact(recorded_runs.EARLY, run))
    again = recorded_runs.recorded_answers(tokenizer, toy(), path)
    assert [row.prompt for row in again] == [row.prompt for row in rows]
    assert [row.answer for row in again] == [row.answer for row in rows]
    assert again[0].increase == pytest.approx(rows[0].increase, abs=2e-3)
    document = json.loads(path.read_text())
    document["answers"]["request"][0] = "What is new?"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="it draws others"):
        recorded_runs.recorded_answers(tokenizer, toy(), path)
