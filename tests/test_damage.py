"""A damaged artifact is refused with a message, set aside, and built again as it was."""

import functools
import subprocess
import sys
import time
from dataclasses import replace
from shutil import copytree, rmtree

import psutil
import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.model.weights import load_model
from llama2_lib.recipes import toy

pytestmark = pytest.mark.usefixtures("one_thread")


def short(seed=0):
    recipe = toy(seed)
    return replace(recipe, pretrain=replace(recipe.pretrain, steps=3, warmup=1))


def path(recipe, root):
    return pipeline.artifact_path("pretrain", recipe, root)


def build(recipe, root):
    return pipeline.artifact("pretrain", recipe, root=root, device="cpu", bar=False)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "meta.json"}


@pytest.fixture(scope="module")
def built_root(toy_root, tmp_path_factory):
    """Toy's texts and two models of three steps."""
    root = copytree(toy_root, tmp_path_factory.mktemp("short") / "root")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in (0, 1):
        build(short(seed), root)
    torch.set_num_threads(threads)
    return root


@pytest.fixture
def root(built_root, tmp_path):
    return copytree(built_root, tmp_path / "root")


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def replace_by_another(folder):
    other = path(short(1), folder.parents[1])
    assert other != folder
    rmtree(folder)
    copytree(other, folder)


def rename_too_early(folder):
    """As if the staging folder had got its name before the seal was written."""
    (folder / "meta.json").unlink()
    (folder / "samples.txt").unlink()


# What else is damage is in `test_storage.py`; it takes the same way from here.
DAMAGE = {
    "truncated": (truncate, "model.safetensors must have the sha256"),
    "foreign": (replace_by_another, "It was copied from elsewhere"),
    "half renamed": (rename_too_early, "meta.json, written last"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_set_aside_and_repaired(root, capsys, kind):
    damage, message = DAMAGE[kind]
    folder = path(short(), root)
    expected = contents(folder)
    damage(folder)
    damaged = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert build(short(), root) == folder
    said = capsys.readouterr().err
    assert message in said
    assert f"Kept as .{folder.name}.damaged-1; building it again." in said
    aside = folder.with_name(f".{folder.name}.damaged-1")
    assert {p.name: p.read_bytes() for p in aside.iterdir()} == damaged, "something was lost"
    assert contents(folder) == expected
    assert build(short(), root) == folder
    assert capsys.readouterr().err == "", "it is sound now"


def test_a_staging_folder_that_was_never_renamed_is_finished(root):
    folder = path(short(), root)
    expected = contents(folder)
    partial = folder.rename(folder.with_name(f".{folder.name}.partial"))
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / ".samples.txt.4711").write_text("half")
    assert pipeline.missing("pretrain", short(), root) == ["pretrain"]
    assert contents(build(short(), root)) == expected
    assert not partial.exists()


def test_a_damaged_input_is_repaired_below_a_sound_model(root, capsys):
    model, corpus = path(short(), root), pipeline.artifact_path("corpus", toy(), root)
    before, expected = (model / "meta.json").read_bytes(), contents(corpus)
    (corpus / "train.npz").write_bytes(b"")
    assert build(short(), root) == model
    assert "train.npz must have the sha256" in capsys.readouterr().err
    assert contents(corpus) == expected
    assert (model / "meta.json").read_bytes() == before


def test_a_seed_that_is_not_there_is_no_damage(root, capsys):
    folder = build(short(2), root)
    assert (
        contents(folder)["model.safetensors"] != contents(path(short(), root))["model.safetensors"]
    )
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_leaves_nothing_that_looks_finished(root, monkeypatch):
    folder, node = path(short(3), root), pipeline.STAGES["pretrain"]

    @functools.wraps(node.run)  # a stage is named after its module, too
    def fail(job):
        (job.folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.STAGES, "pretrain", replace(node, run=fail))
        with pytest.raises(OSError, match="No space left"):
            build(short(3), root)
    assert not folder.exists()
    assert load_model(build(short(3), root))[1] == toy().model


@pytest.mark.slow
def test_side_by_side_gives_the_same_bits_as_one_after_the_other(root, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipes = [short(seed) for seed in (0, 5, 6, 5)]
    requests = [("pretrain", recipe) for recipe in recipes]
    kept = (path(short(), root) / "meta.json").read_bytes()
    folders = pipeline.artifacts(requests, root=root, device="cpu", bar=False, workers=2)
    assert folders == [path(recipe, root) for recipe in recipes]
    assert (folders[0] / "meta.json").read_bytes() == kept
    side_by_side = [contents(folder) for folder in folders]
    for folder in {folders[1], folders[2]}:
        rmtree(folder)
    assert [contents(build(recipe, root)) for recipe in recipes] == side_by_side
    assert side_by_side[1] != side_by_side[2]


def test_a_request_that_stands_alone_is_built_here(root, monkeypatch):
    def fail(*_):
        raise AssertionError("no process is worth starting for one model")

    monkeypatch.setattr(pipeline.build, "_in_processes", fail)
    requests = [("pretrain", short(8)), ("pretrain", short()), ("pretrain", short(8))]
    folders = pipeline.artifacts(requests, root=root, device="cpu", bar=False)
    assert folders == [path(recipe, root) for _, recipe in requests]
    assert all(folder.is_dir() for folder in folders)


UNGUARDED = """
import sys
from dataclasses import replace
from pathlib import Path
from llama2_lib import pipeline
from llama2_lib.recipes import toy

recipes = [replace(toy(s), pretrain=replace(toy(s).pretrain, steps=3, warmup=1)) for s in (8, 9)]
pipeline.artifacts([("pretrain", r) for r in recipes], root=Path(sys.argv[1]), device="cpu")
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so_in_one_sentence(root, tmp_path):
    (tmp_path / "plain.py").write_text(UNGUARDED)
    run = subprocess.run(
        [sys.executable, tmp_path / "plain.py", root], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert run.stderr.count("Traceback") == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ChildProcessError: the processes that train small models side by side")
    assert 'under `if __name__ == "__main__":`' in last


LONG_WORK = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from llama2_lib.pipeline.build import _start_worker

def work(path):
    Path(path + ".part").write_text(str(os.getpid()))
    os.rename(path + ".part", path)
    time.sleep(100)

if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn"), _start_worker) as pool:
        list(pool.map(work, sys.argv[1:]))
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_asked(tmp_path):
    script, notes = tmp_path / "long_work.py", [tmp_path / "first", tmp_path / "second"]
    script.write_text(LONG_WORK)
    asked = subprocess.Popen([sys.executable, script, *notes])
    try:
        wait_until(lambda: all(note.exists() for note in notes), "both workers work")
        workers = [psutil.Process(int(note.read_text())) for note in notes]
    finally:
        asked.kill()
        asked.wait()
    wait_until(lambda: not any(map(alive, workers)), "no worker is left")


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, what):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"within a minute {what}: that did not happen"
        time.sleep(0.1)
