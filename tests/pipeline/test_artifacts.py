"""The cache of finished stages: where they live, what they say of themselves, and the bar."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch
from tqdm.auto import tqdm

from llama2_lib import pipeline, storage
from llama2_lib.recipes import RECIPES, nano, toy

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", ["dpo", "Pretrain", ""])
def test_an_unknown_stage_is_refused(stage):
    with pytest.raises(
        ValueError, match=r"stage must be one of tokenizer, corpus, .*, safety_data; got"
    ):
        pipeline.fingerprint(stage, toy())


def test_recipes_are_found_by_their_names():
    for name, recipe in RECIPES.items():
        assert recipe(3).name == name
        assert recipe(3).pretrain.seed == 3
        assert recipe(3) != recipe(4)
    assert toy().model.n_parameters <= 100_000
    assert 500_000 <= nano().model.n_parameters <= 1_200_000
    assert 25e6 <= RECIPES["small"](0).model.n_parameters <= 110e6


def test_artifacts_live_beside_the_library_or_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA2_ARTIFACTS", raising=False)
    assert pipeline.artifact_root() == ROOT / "artifacts"
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "other"))
    assert pipeline.artifact_root() == tmp_path / "other"
    name = pipeline.fingerprint("corpus", toy())
    assert pipeline.artifact_path("corpus", toy()) == tmp_path / "other" / "corpus" / name


def test_missing_stages_are_listed_in_the_order_in_which_they_run(toy_root, tmp_path):
    assert pipeline.missing("pretrain", toy(), tmp_path) == ["tokenizer", "corpus", "pretrain"]
    assert pipeline.missing("corpus", toy(), tmp_path) == ["tokenizer", "corpus"]
    assert pipeline.missing("pretrain", toy(1), toy_root) == ["pretrain"]
    assert pipeline.missing("pretrain", toy(), toy_root) == []


def test_a_finished_artifact_says_how_it_was_made(toy_root):
    folder = pipeline.artifact_path("pretrain", toy(), toy_root)
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["stage"], meta["fingerprint"], meta["recipe"]) == ("pretrain", folder.name, "toy")
    assert meta["config"]["recipe"]["pretrain"] == dataclasses.asdict(toy().pretrain)
    assert meta["inputs"] == {s: pipeline.fingerprint(s, toy()) for s in ("tokenizer", "corpus")}
    assert meta["versions"]["torch"] == torch.__version__
    assert (meta["device"], meta["threads"]) == ("cpu", 1)
    assert 0 < meta["wall_seconds"] < 300
    assert sorted(meta["files"]) == [
        "config.json", "metrics.jsonl", "model.safetensors", "samples.txt", "tokenizer.model",
    ]  # fmt: skip
    assert (folder / "samples.txt").read_text().count("\n---\n") == 9


def test_what_is_there_is_not_built_again(toy_root, monkeypatch):
    def fail(job):
        raise AssertionError("it was built again")

    fail.__module__ = "llama2_lib.stages.sft"  # where settings beside the code are looked for
    monkeypatch.setitem(pipeline.STAGES, "sft", replace(pipeline.STAGES["sft"], run=fail))
    folder = pipeline.artifact("sft", toy(), root=toy_root)
    assert folder == pipeline.artifact_path("sft", toy(), toy_root)
    model, tokenizer = pipeline.load("sft", toy(), root=toy_root, device="cpu")
    assert (model.config, tokenizer.vocab_size) == (toy().model, 512)
    assert not model.training
    counts = {name: share.n for name, share in pipeline.recall(toy(), root=toy_root).items()}
    assert counts == {"never asked": 30, "seen form": 120, "unseen form": 120}


def test_every_stage_is_checked_once_however_many_need_it(monkeypatch, tmp_path):
    checked = []
    monkeypatch.setattr(storage, "read_sealed", lambda folder, stage, name: checked.append(stage))
    pipeline.artifact("ppo", toy(), root=tmp_path, bar=False)
    assert checked == list(pipeline.fingerprints("ppo", toy()))
    assert len(checked) == len(set(checked)) > 12
    for stage, before in zip(checked, range(len(checked)), strict=True):
        assert set(pipeline.STAGES[stage].inputs) <= set(checked[:before])


def test_a_finished_stage_needs_none_of_those_before_it(toy_root, tmp_path):
    copytree(
        pipeline.artifact_path("rewards_v1", toy(), toy_root),
        pipeline.artifact_path("rewards_v1", toy(), tmp_path),
    )
    assert pipeline.missing("rewards_v1", toy(), tmp_path) == []
    rest = ["tokenizer", "corpus", "pretrain", "sft", "rejection_v1"]
    assert pipeline.missing("rejection_v1", toy(), tmp_path) == rest


def test_the_bar_names_the_stages_and_reaches_its_end(tmp_path, monkeypatch):
    shown, ended = [], []

    class Bar(tqdm):
        def set_description(self, desc=None, refresh=True):
            shown.append(desc)

        def close(self):
            ended.append((self.disable, self.n, self.total))
            super().close()

    monkeypatch.setattr(pipeline.build, "tqdm", Bar)
    pipeline.artifact("corpus", toy(), root=tmp_path, device="cpu")
    assert shown == ["tokenizer", "corpus"]
    assert ended[0] == (False, 6, 6)  # seconds
    ended.clear()
    pipeline.artifact("corpus", toy(), root=tmp_path, device="cpu")
    assert ended[0][0], "a bar is shown though there is nothing to do"
