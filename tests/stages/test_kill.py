"""Killed by SIGKILL at any moment and started again, a run ends with the same bits."""

import json
import random
import time
from dataclasses import replace

import pytest

from llama2_lib import pipeline
from llama2_lib.recipes import toy
from llama2_lib.storage import read_metrics

KILLED = -9
SLOW_START = 0.05  # of a run: before that a child has not begun to train


def finished(recipe, root, stage="pretrain"):
    """Everything that must be the same: every file but the seal, which holds times."""
    folder = pipeline.artifact_path(stage, recipe, root)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "meta.json"
    }


def short(seed=0):
    """Toy in six steps that saves after two and four: few operations, each of them a place to die.

    The second checkpoint replaces the first, and the last is cleared.
    """
    recipe = toy(seed)
    return replace(recipe, pretrain=replace(recipe.pretrain, steps=6, save_every=2, eval_every=3))


def run(start_build, recipe, root, **options):
    process = start_build(recipe, root, **options)
    process.join(60)
    return process.exitcode


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(fresh_root, start_build):
    assert run(start_build, toy(), fresh_root("warm")) == 0  # the first one is slower
    whole = fresh_root("whole")
    begin = time.perf_counter()
    assert run(start_build, toy(), whole) == 0
    duration = time.perf_counter() - begin
    expected = finished(toy(), whole)
    rows = read_metrics(pipeline.artifact_path("pretrain", toy(), whole) / "metrics.jsonl")
    assert len(rows) == 30 + 3

    source = random.Random(0)
    kills = resumed = rounds = 0
    stop = time.perf_counter() + 60
    while kills < 24:
        assert time.perf_counter() < stop, f"{kills} kills in a minute; the machine is too slow"
        root, rounds = fresh_root(f"try{rounds}"), rounds + 1
        folder = pipeline.artifact_path("pretrain", toy(), root)
        while not folder.exists() and time.perf_counter() < stop:
            process = start_build(toy(), root)
            process.join(source.uniform(SLOW_START, 1.0) * duration)
            process.kill()
            process.join()
            kills += process.exitcode == KILLED
            partial = folder.with_name(f".{folder.name}.partial")
            resumed += process.exitcode == KILLED and any(partial.glob("step-*"))
            assert process.exitcode in (0, KILLED)
        assert run(start_build, toy(), root) == 0  # builds only if the minute is over
        assert finished(toy(), root) == expected, f"round {rounds}"
    assert resumed >= 5, "hardly a run was killed after its first checkpoint: vacuous test"


@pytest.mark.slow
def test_killed_before_each_of_its_file_operations_a_run_ends_with_the_same_bits(
    fresh_root, start_build
):
    whole = fresh_root("whole")
    assert run(start_build, short(), whole) == 0
    expected = finished(short(), whole)
    operations = int((whole / "builds.operations").read_text())
    assert operations > 30
    for deadline in range(operations):
        root = fresh_root(f"at{deadline}")
        assert run(start_build, short(), root, deadline=deadline) == KILLED
        assert run(start_build, short(), root) == 0, f"killed before operation {deadline}"
        assert finished(short(), root) == expected, f"killed before operation {deadline}"


@pytest.mark.slow
def test_fine_tuning_killed_before_its_file_operations_ends_with_the_same_bits(
    fresh_root, start_build
):
    """Every second operation, since the loop and its files are those of pretraining."""
    recipe = replace(toy(), sft=replace(toy().sft, n_dialogs=20, save_every=2, eval_every=3))
    inputs = ("tokenizer", "corpus", "pretrain")
    whole = fresh_root("whole", inputs)
    assert run(start_build, recipe, whole, stage="sft") == 0
    expected = finished(recipe, whole, "sft")
    operations = int((whole / "builds.operations").read_text())
    assert operations > 30
    resumed = 0
    for deadline in range(0, operations, 2):
        root = fresh_root(f"at{deadline}", inputs)
        assert run(start_build, recipe, root, stage="sft", deadline=deadline) == KILLED
        resumed += any(root.glob("sft/.*.partial/step-*"))
        assert run(start_build, recipe, root, stage="sft") == 0, f"killed before {deadline}"
        assert finished(recipe, root, "sft") == expected, f"killed before operation {deadline}"
    assert resumed >= 5, "hardly a run was killed after its first checkpoint: vacuous test"


ROUNDS = ("rewards_v2", "rejection_v2", "instructed", "ghost_attention", "safety", "red_team_v2")
KILLS = 6  # of each stage, at places spread over its file operations


def planted(root):
    """Attacks of which one broke the model, where a killed red team would have left them.

    Toy's own attackers find nothing, which is the stage's other branch.
    """
    final = pipeline.artifact_path("red_team_v2", toy(), root)
    [before] = (root / "red_team_v1").glob("*/attacks.jsonl")
    first, *rest = before.read_text().splitlines()
    partial = final.with_name(f".{final.name}.partial")
    partial.mkdir(parents=True)
    broken = json.dumps(json.loads(first) | {"violated": True})
    (partial / "attacks.jsonl").write_text("\n".join([broken, *rest]) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "plant"),
    [*((stage, None) for stage in ROUNDS), ("red_team_v2", planted), ("safety_early", None)],
)
def test_a_stage_killed_before_its_file_operations_ends_with_the_same_bits(
    fresh_root, start_build, stage, plant
):
    """Logs that are appended to, samples that are drawn, checkpoints: all as in one piece."""
    before = [name for name in pipeline.fingerprints(stage, toy()) if name != stage]

    def make(name):
        root = fresh_root(name, before)
        if plant is not None:
            plant(root)
        return root

    whole = make("whole")
    assert run(start_build, toy(), whole, stage=stage) == 0
    expected = finished(toy(), whole, stage)
    hidden = [name for name in expected if any(p.startswith(".") for p in name.split("/"))]
    assert hidden == [], "leftovers of a write were kept"
    operations = int((whole / "builds.operations").read_text())
    assert operations > 10
    trained = len(expected["metrics.jsonl"].splitlines()) if "metrics.jsonl" in expected else 0
    assert (trained > 1) == (stage != "red_team_v2" or plant is not None) or "rewards" in stage
    for deadline in range(1, operations, max(1, operations // KILLS)):
        root = make(f"at{deadline}")
        assert run(start_build, toy(), root, stage=stage, deadline=deadline) == KILLED
        assert run(start_build, toy(), root, stage=stage) == 0, f"killed before {deadline}"
        assert finished(toy(), root, stage) == expected, f"killed before operation {deadline}"


def ppo_recipe():
    """Toy with one iteration of warm-up and four more, saved and measured after every second."""
    return replace(toy(), ppo=replace(toy().ppo, iterations=4, eval_every=2, save_every=2))


@pytest.fixture
def before_ppo(fresh_root, toy_root):
    """Return a function that makes a root with all of toy's stages but PPO."""
    stages = tuple(sorted(path.name for path in toy_root.iterdir() if path.name != "ppo"))
    assert {"rejection_v4", "rewards_v5"} <= set(stages)
    return lambda name: fresh_root(name, stages)


@pytest.mark.slow
def test_ppo_killed_before_its_file_operations_ends_with_the_same_bits(before_ppo, start_build):
    """Every third operation; each iteration and each checkpoint has some."""
    recipe, whole = ppo_recipe(), before_ppo("whole")
    assert run(start_build, recipe, whole, stage="ppo") == 0
    expected = finished(recipe, whole, "ppo")
    assert {"model.safetensors", "metrics.jsonl"} <= expected.keys()
    operations = int((whole / "builds.operations").read_text())
    assert operations > 30
    resumed = 0
    for deadline in range(0, operations, 3):
        root = before_ppo(f"at{deadline}")
        assert run(start_build, recipe, root, stage="ppo", deadline=deadline) == KILLED
        resumed += any(root.glob("ppo/.*.partial/step-*"))
        assert run(start_build, recipe, root, stage="ppo") == 0, f"killed before {deadline}"
        assert finished(recipe, root, "ppo") == expected, f"killed before operation {deadline}"
    assert resumed >= 3, "hardly a run was killed after its first checkpoint: vacuous test"


@pytest.mark.slow
def test_ppo_killed_at_random_moments_ends_with_the_same_bits(before_ppo, start_build):
    """Wherever it was: sampling, scoring, in a gradient step."""
    recipe, whole = ppo_recipe(), before_ppo("whole")
    assert run(start_build, recipe, before_ppo("warm"), stage="ppo") == 0
    begin = time.perf_counter()
    assert run(start_build, recipe, whole, stage="ppo") == 0
    duration = time.perf_counter() - begin
    expected = finished(recipe, whole, "ppo")

    source = random.Random(1)
    kills = resumed = rounds = 0
    stop = time.perf_counter() + 60
    while kills < 8:
        assert time.perf_counter() < stop, f"{kills} kills in a minute; the machine is too slow"
        root, rounds = before_ppo(f"try{rounds}"), rounds + 1
        folder = pipeline.artifact_path("ppo", recipe, root)
        while not folder.exists() and time.perf_counter() < stop:
            process = start_build(recipe, root, stage="ppo")
            process.join(source.uniform(SLOW_START, 1.0) * duration)
            process.kill()
            process.join()
            kills += process.exitcode == KILLED
            partial = folder.with_name(f".{folder.name}.partial")
            resumed += process.exitcode == KILLED and any(partial.glob("step-*"))
            assert process.exitcode in (0, KILLED)
        assert run(start_build, recipe, root, stage="ppo") == 0
        assert finished(recipe, root, "ppo") == expected, f"round {rounds}"
    assert resumed >= 3, "hardly a run was killed after its first checkpoint: vacuous test"


@pytest.mark.slow
def test_another_seed_gives_other_bits(fresh_root, start_build):
    roots = [fresh_root(f"seed{seed}") for seed in range(2)]
    for seed, root in enumerate(roots):
        assert run(start_build, short(seed), root) == 0
    first, second = (finished(short(seed), root) for seed, root in enumerate(roots))
    assert first.keys() == second.keys()
    same = {name for name in first if first[name] == second[name]}
    assert same == {"config.json", "tokenizer.model"}


@pytest.mark.slow
def test_of_two_processes_that_ask_for_one_artifact_one_builds_and_both_get_it(
    fresh_root, fork_server, start_build
):
    root, barrier = fresh_root(), fork_server.Barrier(2)
    both = [start_build(toy(), root, barrier=barrier) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len((root / "builds").read_text().splitlines()) == 1
    assert len(finished(toy(), root)) == 5


@pytest.mark.slow
def test_two_processes_that_meet_a_damaged_artifact_rebuild_it_once(
    fresh_root, fork_server, start_build
):
    for trial in range(4):
        root, barrier = fresh_root(f"try{trial}"), fork_server.Barrier(2)
        assert run(start_build, short(), root) == 0
        expected = finished(short(), root)
        folder = pipeline.artifact_path("pretrain", short(), root)
        (folder / "model.safetensors").write_bytes(b"damaged")
        both = [start_build(short(), root, barrier=barrier) for _ in range(2)]
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert len((root / "builds").read_text().splitlines()) == 2  # the first, and one again
        assert finished(short(), root) == expected
        kept = [path for path in folder.parent.iterdir() if "damaged" in path.name]
        assert len(kept) == 1
        assert (kept[0] / "model.safetensors").read_bytes() == b"damaged"
