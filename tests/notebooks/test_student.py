import nbformat
import pytest

from llama2_lib.teaching.check import CheckFailed, check
from llama2_lib.teaching.lessons import both, compare, student
from llama2_lib.teaching.lessons.source import blanked, teacher, with_blanks


def texts(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


@pytest.mark.slow
def test_the_teacher_has_the_solution_and_the_student_a_stub(course):
    source = course / "src" / "90_sample.py"
    solved, blank = texts(teacher(source)), texts(blanked(source))
    assert "return -(p * np.log(p)).sum()" in solved
    assert "np.log(p)" not in blank
    assert "    raise NotImplementedError  # your code here" in blank
    assert "SOLUTION" not in solved + blank
    assert ":.2f} nats" in solved
    assert ":.2f} nats" not in blank, "cells tagged solution are the teacher's"


@pytest.mark.parametrize("lost", ["    ### BEGIN SOLUTION\n", "    ### END SOLUTION\n"])
def test_half_a_marker_never_reaches_a_student(write_lesson, sample, tmp_path, lost):
    folder = write_lesson(sample.replace(lost, ""))
    with pytest.raises(ValueError, match="half a solution marker"):
        student(folder=folder, out=tmp_path / "student")
    assert not (tmp_path / "student").exists()


def blanks(notebook):
    return [cell for cell in notebook.cells if cell.id.startswith("blank-")]


@pytest.mark.slow
def test_one_run_compares_the_notebook_and_the_students_blanks(course, tmp_path, edit, capfd):
    out = tmp_path / "both"
    assert both(folder=course, out=out) == []
    written = out / "90_sample.ipynb"
    (blank,) = blanks(nbformat.read(written, as_version=4))
    assert "raise NotImplementedError" in blank.source
    assert [o.text for o in blank.outputs] == ["[    ] entropy: not written yet\n"]
    assert compare((written,)) == []
    assert "12 passed" in capfd.readouterr().out

    def solve(notebook):
        (cell,) = blanks(notebook)
        cell.source = cell.source.replace("raise NotImplementedError", "return 0.0")

    assert compare((edit(written, solve),)) != [], "a blank that prints something else is red"
    assert "1 failed, 11 passed" in capfd.readouterr().out


def test_a_notebook_is_kept_as_it_is_before_its_blanks(course):
    stored = nbformat.read(course / "90_sample.ipynb", as_version=4)
    whole = with_blanks(stored, course / "src" / "90_sample.py")
    nbformat.validate(whole)
    assert whole.cells[: len(stored.cells)] == stored.cells
    assert whole.cells[len(stored.cells) :] == blanks(whole) != []


def test_the_copy_is_not_run(course, tmp_path):
    assert student(folder=course, out=tmp_path / "student") == []
    copy = nbformat.read(tmp_path / "student" / "90_sample.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in copy.cells)


# --- cells to be built

BUILD = '''# %% tags=["build", "long"]
LIMIT = 3


def my_cut(x, n=LIMIT):
    """A list -> its beginning"""
    # Slices do it.
    return x[:n]


class MyBox:
    """A box."""

    def __init__(self, x):
        self.x = x

    def open(self):
        return self.x


def helper(x):
    return x


@check("cut and box")
def _():
    if my_cut([1, 2, 3, 4]) != [1, 2, 3] or MyBox(helper(5)).open() != 5:
        raise CheckFailed("cut or box is wrong.")


print("cut", my_cut([5, 6, 7, 8]), "box", MyBox(9).open())
'''


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "91_build.py").write_text(BUILD)
    return blanked(tmp_path / "91_build.py").cells


def run(*sources, capsys):
    namespace = {"check": check, "CheckFailed": CheckFailed}
    for source in sources:
        exec(source, namespace)
    return capsys.readouterr().out.splitlines()


def test_a_cell_to_be_built_is_blanks_a_folded_solution_and_the_rest(parts):
    blank, answer, rest = parts
    assert blank.source.count("raise NotImplementedError  # your code here") == 3
    assert '"""A list -> its beginning"""\n    # Slices do it.\n' in blank.source
    assert "return x[:n]" not in blank.source
    assert "def helper(x):\n    return x\n" in blank.source, "what is not one's own is given"
    assert blank.source.rstrip().endswith('raise CheckFailed("cut or box is wrong.")')
    assert "return x[:n]" in answer.source
    assert answer.metadata.jupyter.source_hidden
    assert rest.source.startswith('print("cut"')
    assert rest.metadata.tags == ["long"]
    assert len({cell.id for cell in parts}) == 3


def test_a_solution_counts_while_ones_own_is_not_written(parts, capsys):
    blank, answer, rest = (cell.source for cell in parts)
    assert run(blank, answer, rest, capsys=capsys) == [
        "[    ] cut and box: not written yet", "cut [5, 6, 7] box 9",
    ]  # fmt: skip
    own = "def my_cut(x, n=3):\n    return x[-n:]\n"
    assert run(blank, own, answer, rest, capsys=capsys)[1] == "cut [6, 7, 8] box 9", "one's own"
    solved = "def my_cut(x, n=3):\n    return list(x)[:n]\n"
    check_of = blank[blank.index("@check") :]
    assert run(blank, solved, answer, check_of, rest, capsys=capsys)[1:] == [
        "[ OK ] cut and box", "cut [5, 6, 7] box 9",
    ]  # fmt: skip


def test_the_blanks_after_an_executed_notebook_expect_their_checks_alone(tmp_path, parts):
    (tmp_path / "91_build.py").write_text(BUILD)
    executed = teacher(tmp_path / "91_build.py")
    text = "[ OK ] cut and box\ncut [5, 6, 7] box 9\n"
    executed.cells[0].outputs = [nbformat.v4.new_output("stream", text=text)]
    _, blank, answer = with_blanks(executed, tmp_path / "91_build.py").cells
    assert [o.text for o in blank.outputs] == ["[    ] cut and box: not written yet\n"]
    assert answer.outputs == []
    assert "return x[:n]" in answer.source
