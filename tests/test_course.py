"""The main job, on a recipe that takes a second: what it builds, prints and returns."""

import re
from shutil import copytree, rmtree

import pytest

from llama2_lib import course, pipeline
from llama2_lib.claims import headline
from llama2_lib.recipes import toy
from llama2_lib.storage import read_metrics
from llama2_lib.teaching import lessons

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def root(toy_root, tmp_path, monkeypatch):
    root = copytree(toy_root, tmp_path / "artifacts")
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(root))
    monkeypatch.setattr(course, "nano", toy)
    monkeypatch.setattr(headline, "N_MARKED", 40)
    monkeypatch.setattr(headline, "N_TURNS", 2)
    return root


@pytest.mark.slow
def test_it_says_what_was_made(root, capsys):
    assert course.run(device="cpu", notebooks=False) == 0
    shown = capsys.readouterr().out
    assert "chain: all on disk" in shown
    folder = pipeline.artifact_path("pretrain", toy())
    loss = read_metrics(folder / "metrics.jsonl")[-1]["validation_loss"]
    assert f"validation loss {loss:.3f} nats per token" in shown
    assert "a tokenizer of 512 pieces" in shown
    assert f"{toy().model.n_parameters:,} weights\n" in shown
    assert f"{30 * 4 * 64:,} tokens" in shown
    for name, share in pipeline.recall(toy()).items():
        row = rf"^knows facts, {name} +{100 * share.value:.0f} % \[\d+, \d+\]$"
        assert len(re.findall(row, shown, re.MULTILINE)) == 1
    cell = r"-?[\d.]+(?: %)? \[-?[\d.]+, -?[\d.]+\] *"
    assert re.search(r"^ +SFT +V4 +V5 +SFT to V5$", shown, re.MULTILINE)
    for word in ("helps (mark)", "is safe (mark)", "declines what only sounds harmful"):
        for split in ("known", "new"):
            row = rf"^{re.escape(word)}, {split} wording +({cell}){{4}}$"
            assert re.search(row, shown, re.MULTILINE), f"{row}"
    assert re.search(r"^ +SFT +V5 +chat model$", shown, re.MULTILINE)
    for what in ("violates, new wording", "keeps an instruction, turn 2", "knows facts, seen form"):
        assert re.search(rf"^{what} +({cell}){{3}}$", shown, re.MULTILINE)
    assert str(folder) in shown
    assert "next      make lab" in shown


def test_what_is_missing_is_built_once(root, capsys, monkeypatch):
    monkeypatch.setattr(course, "summary", lambda *made: "made all")
    rmtree(pipeline.artifact_path(course.LAST, toy()))
    course.run(device="cpu", notebooks=False)
    assert f"chain: {course.LAST} to build" in capsys.readouterr().out
    assert pipeline.missing(course.LAST, toy()) == []
    course.run(device="cpu", notebooks=False)
    assert "chain: all on disk" in capsys.readouterr().out


@pytest.fixture
def two_lessons(root, tmp_path, monkeypatch):
    """A checkout with two lessons, and a build that writes them and notes what was asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(course, "summary", lambda *made: "made all")
    source = tmp_path / "notebooks" / "src"
    source.mkdir(parents=True)
    for name in ("01_data", "03_attention"):
        (source / f"{name}.py").write_text(f"# %% [markdown]\n# # {name}\n")
    asked, faults = [], []

    def build(names, *, out):
        asked.append(names)
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not any(fault.startswith(name) for fault in faults):
                (out / f"{name}.ipynb").write_text("{}")
        return list(faults)

    monkeypatch.setattr(lessons, "build", build)
    return source, asked, faults


@pytest.mark.slow
def test_it_returns_how_many_notebooks_failed_and_names_them(two_lessons, capsys):
    _, asked, faults = two_lessons
    faults += ["03_attention.ipynb: cell 1 raised"]
    assert course.run(device="cpu") == 1
    captured = capsys.readouterr()
    assert "03_attention.ipynb: cell 1 raised" in captured.err
    assert "notebooks: 2, 2 to execute" in captured.out
    assert "made all" in captured.out, "the summary is printed all the same"
    course.run(device="cpu", notebooks=False)
    assert len(asked) == 1
    faults.clear()
    assert course.run(device="cpu") == 0
    assert asked[1:] == [("03_attention",)], "only the one that failed"


@pytest.mark.slow
def test_a_notebook_is_executed_again_when_what_it_is_made_from_changes(two_lessons, monkeypatch):
    source, asked, _ = two_lessons
    course.run(device="cpu")
    course.run(device="cpu")
    assert asked == [("01_data", "03_attention")]
    (source / "01_data.py").write_text("# %% [markdown]\n# # Another title\n")
    course.run(device="cpu")
    assert asked[1:] == [("01_data",)]
    (source.parents[1] / "build" / "course" / "03_attention.ipynb").unlink()
    course.run(device="cpu")
    assert asked[2:] == [("03_attention",)]
    monkeypatch.setattr(course.torch, "__version__", "2.99.0")
    course.run(device="cpu")
    assert asked[3:] == [("01_data", "03_attention")]
