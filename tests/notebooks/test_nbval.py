"""nbval must turn red on planted faults: a comparison that cannot fail compares nothing."""

import importlib.util
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest

from llama2_lib.teaching.lessons import build, compare

ROOT = Path(__file__).parents[2]

LESSON = """\
# %%
import os
import warnings

# %%
print("loss 1.25")

# %%
"a value"

# %%
warnings.warn("the file name of this cell differs each time", stacklevel=1)

# %% tags=["raises-exception"]
1 / 0
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    (folder / "src").mkdir()
    (folder / "src" / "93_small.py").write_text(LESSON)
    assert build(folder=folder) == []
    return folder / "93_small.ipynb"


@pytest.fixture
def plant(small, tmp_path):
    def change(name, cell, **values):
        notebook = nbformat.read(small, as_version=4)
        notebook.cells[cell].update(values)
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    return change


def stream(text):
    return [nbformat.v4.new_output("stream", text=text)]


@pytest.mark.slow
def test_a_sound_notebook_passes_and_each_planted_fault_is_red(small, plant, capfd):
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    planted = (
        plant("wrong_output", 1, outputs=stream("loss 1.24\n")),
        plant("lost_output", 2, outputs=[]),
        plant("other_source", 1, source="print('loss 1.26')"),
        plant("other_error", 4, outputs=[error]),
        plant("raises", 2, source="1 / 0"),
        plant("unrun_with_output", 1, execution_count=None),
        plant("dead_kernel", 1, source="os._exit(1)"),
    )
    assert compare((small, *planted)) != []
    report = capfd.readouterr().out
    failed = {line.split("::")[0] for line in report.splitlines() if line.startswith("FAILED")}
    for path in planted:
        assert any(path.name in line for line in failed), f"{path.name} passed\n{report}"
    assert not any(small.name in line for line in failed), report
    assert "the kernel died while it ran this cell" in report


NEAR = """\
# %% tags=["near=0.02"]
print("loss 1.250 of 1,000 pieces")

# %%
print("loss 1.25")

# %% tags=["near=0.02"]
"a mark of 9.99"
"""


@pytest.mark.slow
def test_numbers_of_a_tagged_cell_may_be_as_far_apart_as_it_says(tmp_path, capfd):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "94_near.py").write_text(NEAR)
    assert build(folder=tmp_path) == []
    whole = nbformat.read(tmp_path / "94_near.ipynb", as_version=4)

    def plant(name, cell, text):
        notebook = deepcopy(whole)
        [output] = notebook.cells[cell].outputs
        if "text" in output:
            output.text = text
        else:
            output.data["text/plain"] = text
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    sound = (
        plant("near", 0, "loss   1.231 of 1,000 pieces\n"),
        plant("near_value", 2, "'a mark of 10.01'"),
    )
    far = (
        plant("far", 0, "loss 1.229 of 1,000 pieces\n"),
        plant("far_thousands", 0, "loss 1.250 of 1,001 pieces\n"),
        plant("other_word", 0, "loss 1.250 of 1,000 words\n"),
        plant("lost_number", 0, "loss 1.250 of pieces\n"),
        plant("untagged", 1, "loss 1.24\n"),
    )
    assert compare((*sound, *far)) != []
    report = capfd.readouterr().out
    failed = {line.split("::")[0] for line in report.splitlines() if line.startswith("FAILED")}
    red = {Path(line.removeprefix("FAILED ")).name for line in failed}
    assert red == {path.name for path in far}


@pytest.mark.slow
def test_a_stripped_notebook_passes_nbval_which_is_why_check_refuses_it(plant, capfd):
    path = plant("stripped", 1, execution_count=None, outputs=[])
    assert compare((path,)) == []
    assert "5 passed" in capfd.readouterr().out


WITHOUT_DEV = ("-p", "no:timeout", "-p", "no:xdist")
"""The course's own environment has neither of these plugins."""


@pytest.mark.slow
def test_plain_nbval_runs_in_the_environment_of_the_course(small):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-q", "-c", str(ROOT / "pyproject.toml"),
         *WITHOUT_DEV, str(small)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "INTERNALERROR" not in run.stdout + run.stderr
    # one cell warns with a file name, which needs the course's own list of what to pass over
    assert "1 failed, 4 passed" in run.stdout, run.stdout


@pytest.mark.slow
def test_comparing_does_without_xdist(small, monkeypatch):
    find, commands = importlib.util.find_spec, []
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xdist" else find(name)
    )
    run = subprocess.run

    def record(command, **options):
        if "pytest" not in command:  # a look at the kernel
            return run(command, **options)
        commands.append(command)
        return run([*command, *WITHOUT_DEV], **options)

    monkeypatch.setattr(subprocess, "run", record)
    assert compare((small,)) == []
    assert "-n" not in commands[-1]


def test_a_missing_notebook_is_an_error_and_not_a_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match="build it first"):
        compare((tmp_path / "absent.ipynb",))
    with pytest.raises(FileNotFoundError, match="build it first"):
        compare(folder=tmp_path)
