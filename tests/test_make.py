"""The two commands: what make and `.ci/parts` do, with stubs in place of the real programs."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
PROGRAMS = ("ruff", "pyrefly", "lint-imports", "pytest", "llama2", "python", "pip", "chromium")


def program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def set_up(checkout: Path, calls: str = "") -> None:
    """A finished .venv in which every program notes its call, and then does `calls`."""
    for name in PROGRAMS:
        program(checkout / ".venv/bin" / name, f'echo {name} "$@" >> calls\n{calls}')
    (checkout / ".venv/here").write_text(str(checkout))
    for stamp in ("course-installed", "dev-installed"):
        (checkout / ".venv" / stamp).touch()


def run(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "MAKEFLAGS")}
    return subprocess.run(
        command, cwd=checkout, env=kept | environment, capture_output=True, text=True, timeout=60
    )


def calls(checkout: Path) -> list[str]:
    path = checkout / "calls"
    return path.read_text().splitlines() if path.exists() else []


def results(table: str) -> dict[str, str]:
    """What became of each part, by its name."""
    rows = (line for line in table.split("=== summary")[1].splitlines()[1:-1])
    return {line[:23].strip(): line[23:].split()[0] for line in rows}


def test_an_old_python_is_refused_with_what_to_do(checkout):
    pretend = 'exec python3 -c "import sys; sys.version_info = (3, 10, 9); $2"'
    program(
        checkout / "python3.10", f'test "$1" = --version && echo Python 3.10.9 && exit\n{pretend}'
    )
    result = run(checkout, "make", "course", "PYTHON=./python3.10")
    assert result.returncode != 0
    for words in ("3.11 or newer", "Python 3.10.9", "make PYTHON="):
        assert words in result.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_not_there_is_refused(checkout):
    result = run(checkout, "make", "test", "PYTHON=python9")
    assert result.returncode != 0
    assert "not installed" in result.stderr


@pytest.mark.parametrize("target", ["course", "test"])
def test_each_command_alone_sets_everything_up(checkout, target):
    plan = run(checkout, "make", "-n", target).stdout
    assert "-m venv .venv" in plan
    assert "-c constraints.txt -e ." in plan
    assert ('-e ".[dev]"' in plan) == (target == "test")


def test_a_second_call_starts_at_once(checkout):
    set_up(checkout)
    result = run(checkout, "make", "course")
    assert result.returncode == 0, f"{result.stderr}"
    assert [call for call in calls(checkout) if "import pip" not in call] == ["llama2 course"]


@pytest.mark.parametrize(
    ("name", "new_environment"),
    [("pyproject.toml", False), ("constraints.txt", False), (".venv/here", True)],
)
def test_changed_requirements_and_a_moved_environment_install_again(
    checkout, name, new_environment
):
    set_up(checkout)
    if new_environment:
        (checkout / name).write_text("/somewhere/else")
    else:
        stamp = (checkout / ".venv/course-installed").stat().st_mtime
        os.utime(checkout / name, (stamp + 10, stamp + 10))
    plan = run(checkout, "make", "-n", "course").stdout
    assert "pip install" in plan
    assert ("-m venv .venv" in plan) == new_environment


def test_a_failing_part_fails_the_whole_and_the_rest_still_runs(checkout):
    set_up(checkout)
    program(checkout / ".venv/bin/ruff", 'echo ruff "$@" >> calls; test "$1" != check')
    program(checkout / ".venv/bin/pytest", 'echo pytest "$@" >> calls; echo "3 passed in 0.1s"')
    result = run(checkout, ".ci/parts", "check")
    assert result.returncode == 1
    parts = ("format", "lint", "types", "floors", "line budget", "unit tests")
    assert results(result.stdout) == dict.fromkeys(parts, "ok") | {"lint": "FAILED"}
    assert "3 passed" in result.stdout.split("=== summary")[1]
    assert "SOMETHING FAILED" in result.stdout


def test_all_parts_run_and_pass(checkout):
    set_up(checkout)
    (checkout / "notebooks").mkdir()
    result = run(checkout, ".ci/parts", "all")
    assert result.returncode == 0, f"{result.stdout}"
    assert "all parts passed" in result.stdout
    made = "\n".join(calls(checkout))
    for command in (
        "pytest -q -n auto --dist loadfile",
        "llama2 replay",
        "lessons check",
        "lessons both",
        "lessons compare",
        "manifest check",
        ".ci/budget",
        "pytest -q -n 2 --maxschedchunk 1 -m browser",
    ):
        assert command in made, f"{command} was not called: {made}"


def test_no_browser_is_a_skip_here_and_a_failure_on_ci(checkout):
    set_up(checkout)
    program(checkout / ".ci/browser", "echo cannot install")
    absent = {"CHROMIUM": "/nowhere/chromium"}
    here = run(checkout, ".ci/parts", "all", **absent)
    on_ci = run(checkout, ".ci/parts", "all", CI="true", **absent)
    assert here.returncode == 0, f"{here.stdout}"
    assert "no Chromium" in here.stdout
    assert "cannot install" in here.stdout.split("=== install browser")[1]
    assert on_ci.returncode == 1


def test_a_browser_that_cannot_be_installed_is_a_failure(checkout):
    set_up(checkout)
    program(checkout / ".ci/browser", "echo no such package; exit 1")
    result = run(checkout, ".ci/parts", "all", CHROMIUM="/nowhere/chromium")
    assert result.returncode == 1
    assert results(result.stdout)["install browser"] == "FAILED"
