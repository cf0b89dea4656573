import multiprocessing
import multiprocessing.forkserver
import runpy
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.recipes import toy
from llama2_lib.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import dialogs


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer of 512 pieces, learned from the words of dialogs."""
    texts = [m["content"] for d in dialogs(make_world(0), 0, 400) for m in d]
    path = tmp_path_factory.mktemp("tok") / "tokenizer.model"
    return load_tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=512), path))


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


@pytest.fixture
def check_resuming(run):
    """Interrupt a run of `run` that saves every three steps, start it again, and compare."""

    def check(config, stops):
        weights, rows = run(config, "whole")
        n_steps = max(row["step"] for row in rows)
        for stop in [*stops, n_steps]:

            def interrupt(done, words, stop=stop):
                if round(done * n_steps) == stop:
                    raise KeyboardInterrupt

            name, begun = f"stopped-{stop}", []
            with pytest.raises(KeyboardInterrupt):
                run(config, name, report=interrupt)
            again, rows_again = run(
                config, name, report=lambda done, _, begun=begun: begun.append(done)
            )
            first = 1 + min(stop, n_steps - 1) // 3 * 3
            assert round(begun[0] * n_steps) == first, "it did not go on from the checkpoint"
            assert again.keys() == weights.keys()
            assert all(torch.equal(again[key], weights[key]) for key in weights)
            assert rows_again == rows
        other, other_rows = run(replace(config, seed=1), "other")
        assert not all(torch.equal(other[key], weights[key]) for key in weights)
        assert other_rows != rows

    return check
