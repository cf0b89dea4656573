import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama2_lib.world import World, make_world
from llama2_lib.world.facts import held_out_forms, question_forms
from llama2_lib.world.judges import Judge, judge_of
from llama2_lib.world.lexicon import lexicon_folder


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


@pytest.fixture(scope="module")
def judge(world) -> Judge:
    return judge_of(world)


@pytest.fixture(scope="module")
def secret(world) -> set[str]:
    """The questions that nobody asks in training."""
    forms = question_forms(world)
    return {
        text
        for fact, held_out in held_out_forms(world).items()
        for form, text in enumerate(forms[fact])
        if held_out in (None, form)
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the lexicon, to be changed."""
    return shutil.copytree(lexicon_folder(), tmp_path / "lexicon")


@pytest.fixture
def run_plainly() -> Callable[..., str]:
    """Run code in a process of its own, without pytest's type checker, and return its output."""

    def run(code: str, salt: str = "0") -> str:
        environment = {"PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=True
        ).stdout

    return run
