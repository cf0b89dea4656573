"""What a learner's copies have reached: counted, written down, and never from stale outputs."""

import importlib.metadata
import json
from shutil import copytree

import nbformat
import pytest

from llama2_lib.cli import main
from llama2_lib.teaching.lessons import student
from llama2_lib.teaching.lessons.progress import progress
from llama2_lib.teaching.lessons.source import STUB

NAME = "90_sample.ipynb"


@pytest.fixture
def copies(course, tmp_path):
    student(folder=course, out=tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def outcomes(course, copies, tmp_path):
    """Return check -> outcome; and that the copies stay as they are."""

    def run(stored=False):
        before = [path.read_bytes() for path in sorted(copies.iterdir())]
        progress((), copies, stored, tmp_path / "out" / "progress.json", course)
        assert [path.read_bytes() for path in sorted(copies.iterdir())] == before
        document = json.loads((tmp_path / "out" / "progress.json").read_text())
        return {row["check"]: row["outcome"] for row in document["checks"]}

    return run


def printing(*lines):
    """Return an edit that puts printed lines behind the cells of a notebook."""
    output = nbformat.v4.new_output("stream", name="stdout", text="".join(f"{x}\n" for x in lines))
    cell = nbformat.v4.new_code_cell("", outputs=[output])
    return lambda notebook: notebook.cells.append(cell)


def solving(code, *, also=None):
    """Return an edit that writes code for the stub, and a cell at the beginning."""

    def change(notebook):
        for cell in notebook.cells:
            cell.source = cell.source.replace(STUB, code)
        if also is not None:
            notebook.cells.insert(0, nbformat.v4.new_code_cell(also))

    return change


@pytest.mark.slow
def test_blanks_then_a_wrong_and_a_right_solution(copies, edit, outcomes):
    assert outcomes() == {"softmax": "right", "entropy": "not written"}
    blank = (copies / NAME).read_bytes()
    edit(copies / NAME, solving("return 0.0"))
    assert outcomes() == {"softmax": "right", "entropy": "wrong"}
    (copies / NAME).write_bytes(blank)
    # a learner's cell that raises does not end the lesson
    edit(copies / NAME, solving("return -(p * np.log(p)).sum()", also="1 / 0"))
    assert outcomes() == {"softmax": "right", "entropy": "right"}


@pytest.mark.slow
def test_a_copy_that_dies_has_what_it_printed_and_no_stale_output(copies, edit, outcomes, capsys):
    edit(copies / NAME, printing("[ OK ] entropy"))
    assert outcomes(stored=True) == {"softmax": "not run", "entropy": "right"}
    edit(copies / NAME, solving("import os; os._exit(1)"))
    assert outcomes() == {"softmax": "right", "entropy": "not run"}
    assert f"{NAME} stopped half-way" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        (["[ OK ] entropy"], "right"),
        (["[ NO ] entropy: ln 4"], "wrong"),
        (["[    ] entropy: not written yet"], "not written"),
        (["[ OK ] entropy", "[ NO ] entropy: ln 4"], "wrong"),
        (["[ NO ] entropy: ln 4", "[ OK ] entropy"], "wrong"),
        (["[ OK ] entropy of a die", "no [ OK ] entropy"], "not run"),
        ([], "not run"),
    ],
)
def test_stored_lines(copies, edit, outcomes, lines, outcome):
    edit(copies / NAME, printing(*lines))
    assert outcomes(stored=True) == {"softmax": "not run", "entropy": outcome}


def words(line):
    return " ".join(line.split())


def test_the_table_and_the_file(course, copies, edit, tmp_path):
    def table():
        return progress([NAME], copies, True, tmp_path / "p.json", course).splitlines()

    assert words(table()[1]) == "90_sample 0 of 1 0 of 1 not begun"
    edit(copies / NAME, printing("[ OK ] softmax", "[ NO ] entropy: of Jo"))
    heading, row, last = table()
    assert words(heading) == "lesson build exercises still to do"
    assert words(row) == "90_sample 1 of 1 0 of 1 entropy (wrong)"
    assert last.endswith("p.json")
    text = (tmp_path / "p.json").read_text()
    assert json.loads(text) == {
        "course": importlib.metadata.version("llama2-built-and-measured"),
        "stored_outputs": True,
        "checks": [
            {"lesson": "90_sample", "check": "softmax", "kind": "build", "outcome": "right"},
            {"lesson": "90_sample", "check": "entropy", "kind": "exercise", "outcome": "wrong"},
        ],
    }


def test_the_courses_own_notebook_is_all_right(course, tmp_path):
    line = progress((), course, True, tmp_path / "p.json", course).splitlines()[1]
    assert words(line) == "90_sample 1 of 1 1 of 1"


def test_a_check_that_no_copy_has_is_not_asked_for(course, edit, outcomes):
    def add(notebook):
        [cell] = [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]
        cell.outputs[0].text += "[ OK ] extra\n"

    edit(course / NAME, add)
    assert outcomes(stored=True) == {"softmax": "not run", "entropy": "not run"}


def test_the_command_and_its_mistakes(course, copies, tmp_path, monkeypatch, capsys):
    copytree(course, tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    own = ["progress", "--stored", "--copies", str(copies)]
    assert main(own) == 0
    assert "0 of 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "build" / "progress.json").read_text())["checks"] != []
    assert main([*own, "91_other"]) == 2
    assert "no lesson '91_other'" in capsys.readouterr().err
    assert main(["progress", "--stored", "--copies", "nowhere", "--write", "new.json"]) == 2
    assert "make student" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()
