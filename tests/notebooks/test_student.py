import nbformat
import pytest

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
