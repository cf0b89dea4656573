from pathlib import Path
from shutil import copytree

import nbformat
import pytest

from llama2_lib.teaching.lessons import build

LESSONS = Path(__file__).with_name("lessons")


@pytest.fixture
def course(tmp_path, built_course):
    """A fresh copy of a small course whose one notebook is built."""
    return copytree(built_course, tmp_path / "course")


@pytest.fixture(scope="session")
def built_course(tmp_path_factory):
    folder = copytree(LESSONS, tmp_path_factory.mktemp("course") / "notebooks")
    assert build(folder=folder) == []
    return folder


@pytest.fixture
def sample():
    return (LESSONS / "src" / "90_sample.py").read_text()


@pytest.fixture
def write_lesson(tmp_path):
    """Return a function that writes a one-lesson course and returns its folder."""

    def write(text, name="91_trial"):
        folder = tmp_path / "trial"
        (folder / "src").mkdir(parents=True, exist_ok=True)
        (folder / "src" / f"{name}.py").write_text(text)
        return folder

    return write


@pytest.fixture
def edit():
    """Return a function that changes a notebook on disk."""

    def change(path, function):
        notebook = nbformat.read(path, as_version=4)
        function(notebook)
        nbformat.write(notebook, path)
        return path

    return change
