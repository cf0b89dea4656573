import nbformat
import pytest

from llama2_lib.teaching.lessons import compare, student
from llama2_lib.teaching.lessons.source import blanked, teacher


def texts(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


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


@pytest.mark.slow
def test_a_students_copy_survives_run_all_and_both_pass_nbval(course, tmp_path, capfd):
    out = tmp_path / "student"
    assert student(folder=course, out=out, execute=True) == []
    copy = nbformat.read(out / "90_sample.ipynb", as_version=4)
    printed = [
        output.text
        for cell in copy.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    assert "[ OK ] softmax\n" in printed
    assert "[    ] entropy: not written yet\n" in printed
    assert compare((course / "90_sample.ipynb", out / "90_sample.ipynb")) == []
    assert "23 passed" in capfd.readouterr().out


def test_an_exercise_used_outside_its_check_is_refused(write_lesson, sample, tmp_path):
    text = sample.replace('# %% tags=["solution"]\nprint(', "# %%\nprint(entropy(scores), ")
    (fault,) = student(folder=write_lesson(text), out=tmp_path / "student", execute=True)
    assert "NotImplementedError" in fault


def test_without_execution_the_copy_is_not_run(course, tmp_path):
    assert student(folder=course, out=tmp_path / "student") == []
    copy = nbformat.read(tmp_path / "student" / "90_sample.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in copy.cells)
