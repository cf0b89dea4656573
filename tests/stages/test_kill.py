"""Killed by SIGKILL at any moment and started again, a run ends with the same bits."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest

from llama2_lib import pipeline, storage
from llama2_lib.config import Recipe
from llama2_lib.recipes import toy

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


def planted(root, n_broken):
    """Attacks of which so many broke the model, where a killed red team would have left them.

    Whether toy's own attackers find anything is a matter of rounding; both are branches.
    """
    final = pipeline.artifact_path("red_team_v2", toy(), root)
    [before] = (root / "red_team_v1").glob("*/attacks.jsonl.gz")
    attacks = storage.read_rows(before, dict)
    staging = final.with_name(f".{final.name}.partial")
    staging.mkdir(parents=True)
    rows = (attack | {"violated": place < n_broken} for place, attack in enumerate(attacks))
    storage.write_rows(staging / "attacks.jsonl.gz", rows)


TUNED = replace(toy(), sft=replace(toy().sft, n_dialogs=20, save_every=2, eval_every=3))
PPO = replace(toy(), ppo=replace(toy().ppo, iterations=4, eval_every=2, save_every=2))
"""One iteration of warm-up and four more, saved and measured after every second."""


class Killed(NamedTuple):
    """A stage, and before which of its file operations it is killed: the first, and every n-th."""

    stage: str
    recipe: Recipe = toy()
    first: int = 1
    every: int | None = None  # six of them in all
    operations: int = 10  # there are more of them
    resumed: int = 0  # at least so often a checkpoint was there
    plant: Callable | None = None


KILLED_AT = [
    Killed("pretrain", short(), 0, 1, 30),
    Killed("sft", TUNED, 0, 2, 30, resumed=5),  # its loop and files are those of pretraining
    Killed("ppo", PPO, 0, 3, 30, resumed=3),
    *(Killed(stage) for stage in (
        "rewards_v2", "rejection_v2", "instructed", "ghost_attention", "safety", "safety_early",
    )),
    Killed("red_team_v2", plant=partial(planted, n_broken=0)),
    Killed("red_team_v2", plant=partial(planted, n_broken=1)),
]  # fmt: skip


def before(stage):
    return [name for name in pipeline.fingerprints(stage, toy()) if name != stage]


@pytest.mark.slow
@pytest.mark.parametrize("case", KILLED_AT, ids=lambda case: case.stage)
def test_killed_before_its_file_operations_a_stage_ends_with_the_same_bits(
    fresh_root, start_build, case
):
    """Logs that are appended to, samples that are drawn, checkpoints: all as in one piece."""
    stage, recipe = case.stage, case.recipe

    def make(name):
        root = fresh_root(name, before(stage))
        if case.plant is not None:
            case.plant(root)
        return root

    whole = make("whole")
    assert run(start_build, recipe, whole, stage=stage) == 0
    expected = finished(recipe, whole, stage)
    hidden = [name for name in expected if any(p.startswith(".") for p in name.split("/"))]
    assert hidden == [], "leftovers of a write were kept"
    operations = int((whole / "builds.operations").read_text())
    assert operations > case.operations
    trained = len(expected["metrics.jsonl"].splitlines()) if "metrics.jsonl" in expected else 0
    nothing_found = case.plant is not None and case.plant.keywords["n_broken"] == 0
    assert (trained > 1) is not nothing_found or "rewards" in stage
    resumed = 0
    for deadline in range(case.first, operations, case.every or max(1, operations // 6)):
        root = make(f"at{deadline}")
        assert run(start_build, recipe, root, stage=stage, deadline=deadline) == KILLED
        resumed += any(root.glob(f"{stage}/.*.partial/step-*"))
        assert run(start_build, recipe, root, stage=stage) == 0, f"killed before {deadline}"
        assert finished(recipe, root, stage) == expected, f"killed before operation {deadline}"
    assert resumed >= case.resumed, "hardly a run was killed after its first checkpoint: vacuous"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "recipe", "n_kills", "least_resumed"),
    [("pretrain", toy(), 24, 5), ("ppo", PPO, 8, 3)],
    ids=["pretrain", "ppo"],
)
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(
    fresh_root, start_build, stage, recipe, n_kills, least_resumed
):
    """Wherever it was: sampling, scoring, in a gradient step."""
    assert run(start_build, recipe, fresh_root("warm", before(stage)), stage=stage) == 0
    whole = fresh_root("whole", before(stage))
    begin = time.perf_counter()  # the first one is slower
    assert run(start_build, recipe, whole, stage=stage) == 0
    duration = time.perf_counter() - begin
    expected = finished(recipe, whole, stage)

    source = random.Random(0)
    kills = resumed = rounds = 0
    stop = time.perf_counter() + 60
    while kills < n_kills:
        assert time.perf_counter() < stop, f"{kills} kills in a minute; the machine is too slow"
        root, rounds = fresh_root(f"try{rounds}", before(stage)), rounds + 1
        folder = pipeline.artifact_path(stage, recipe, root)
        while not folder.exists() and time.perf_counter() < stop:
            process = start_build(recipe, root, stage=stage)
            process.join(source.uniform(SLOW_START, 1.0) * duration)
            process.kill()
            process.join()
            kills += process.exitcode == KILLED
            staging = folder.with_name(f".{folder.name}.partial")
            resumed += process.exitcode == KILLED and any(staging.glob("step-*"))
            assert process.exitcode in (0, KILLED)
        # builds only if the minute is over
        assert run(start_build, recipe, root, stage=stage) == 0
        assert finished(recipe, root, stage) == expected, f"round {rounds}"
    assert resumed >= least_resumed, "hardly a run was killed after its first checkpoint: vacuous"


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
