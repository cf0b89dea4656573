"""The main job, on a recipe that takes a second: what it builds, prints and returns."""

import re
from dataclasses import replace
from shutil import copytree

import pytest

from llama2_lib import course, pipeline
from llama2_lib.recipes import toy
from llama2_lib.storage import read_metrics
from llama2_lib.teaching import lessons

pytestmark = pytest.mark.usefixtures("one_thread")


def grid(seed):
    return replace(toy(seed), pretrain=replace(toy(seed).pretrain, steps=2, warmup=1))


@pytest.fixture
def root(toy_root, tmp_path, monkeypatch):
    root = copytree(toy_root, tmp_path / "artifacts")
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(root))
    monkeypatch.setattr(course, "nano", toy)
    requests = [("pretrain", grid(4))]
    monkeypatch.setattr(course.claims, "grid_requests", lambda recipe: requests)
    return root


def test_it_makes_what_is_missing_and_says_what_was_made(root, capsys):
    assert course.run(device="cpu", notebooks=False) == 0
    shown = capsys.readouterr().out
    assert "chain: all on disk" in shown
    assert "grids: 1 small models, 1 to train" in shown
    assert pipeline.missing("pretrain", grid(4)) == []
    folder = pipeline.artifact_path("pretrain", toy())
    loss = read_metrics(folder / "metrics.jsonl")[-1]["validation_loss"]
    assert f"validation loss {loss:.3f} nats per token" in shown
    assert "a tokenizer of 512 pieces" in shown
    assert f"{toy().model.n_parameters:,} weights, 1 small models" in shown
    assert f"{30 * 4 * 64:,} tokens" in shown
    for name, share in pipeline.recall(toy()).items():
        row = rf"recall +{name} +{100 * share.value:.1f} % .* of {share.n} questions"
        assert len(re.findall(row, shown)) == 1
    assert str(folder) in shown
    assert "next      make lab" in shown


def test_a_second_call_finds_everything(root, capsys):
    course.run(device="cpu", notebooks=False)
    capsys.readouterr()
    course.run(device="cpu", notebooks=False)
    assert "grids: 1 small models, 0 to train" in capsys.readouterr().out


def test_it_returns_how_many_notebooks_failed_and_names_them(root, capsys, monkeypatch):
    built = []

    def build(*, out):
        built.append(out)
        return ["01_data: cell 3 raised", "03_attention: cell 1 raised"]

    monkeypatch.setattr(lessons, "build", build)
    assert course.run(device="cpu") == 2
    captured = capsys.readouterr()
    assert "01_data: cell 3 raised" in captured.err
    assert "made " in captured.out, "the summary is printed all the same"
    assert [path.name for path in built] == ["course"]
    course.run(device="cpu", notebooks=False)
    assert len(built) == 1
