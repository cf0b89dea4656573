import multiprocessing
import multiprocessing.forkserver
import runpy
from pathlib import Path
from shutil import copytree

import pytest

from llama2_lib import pipeline
from llama2_lib.recipes import toy


@pytest.fixture(scope="session")
def fork_server():
    """A process that has imported torch, on one thread, and forks: a child starts at once."""
    context = multiprocessing.get_context("forkserver")
    # Building an optimiser imports torch._dynamo, which takes longer than the training here.
    context.set_forkserver_preload(["pytest", "torch._dynamo", "llama2_lib.pipeline"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def start_build(fork_server):
    """Start a process that builds a stage of a recipe; see victim.py."""
    script = str(Path(__file__).with_name("victim.py"))

    def start(recipe, root, *, stage="pretrain", deadline=None, barrier=None):
        given = {
            "stage": stage, "recipe": recipe, "root": root, "deadline": deadline,
            "barrier": barrier, "builds": root / "builds",
        }  # fmt: skip
        process = fork_server.Process(
            target=runpy.run_path, args=(script,), kwargs={"init_globals": {"given": given}}
        )
        process.start()
        return process

    return start


@pytest.fixture
def fresh_root(toy_root, tmp_path):
    """Return a function that makes a root with some of toy's stages, at first without a model."""

    def make(name="root", stages=("tokenizer", "corpus")):
        for stage in stages:
            folder = pipeline.artifact_path(stage, toy(), toy_root)
            copytree(folder, tmp_path / name / stage / folder.name)
        return tmp_path / name

    return make
