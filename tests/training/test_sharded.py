"""Weights divided among processes: what is computed, saved and gone on from is as with one."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama2_lib.training import sharded
from llama2_lib.training.checkpoint import checkpoints

SCRIPT = Path(__file__).with_name("ranks.py")
alone = runpy.run_path(str(SCRIPT), run_name="alone")


def run(n, folder, steps=0):
    """Run the script in n processes; return what the first of them got."""
    folder.mkdir(exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
         f"--nproc-per-node={n}", str(SCRIPT), str(folder), str(steps)],
        env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    if not (folder / "result.pt").exists():
        raise AssertionError(done.stderr)
    result = torch.load(folder / "result.pt")
    (folder / "result.pt").unlink()
    return result, done.stderr


def check_same(results, expected):
    """Steps are numbers of the log; in float64 only the order of sums differs."""
    for (steps, weights), (own_steps, own_weights) in zip(results, expected, strict=True):
        assert [(step[0], step[4]) for step in steps] == [(s[0], s[4]) for s in own_steps]
        for step, own in zip(steps, own_steps, strict=True):
            assert step[1:4] == pytest.approx(own[1:4], rel=1e-10, abs=0), "loss, norm or rate"
            assert step[5] == pytest.approx(own[5], rel=1e-10, abs=1e-12)
        assert weights.keys() == own_weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, own_weights[name], rtol=0, atol=1e-10, msg=name)


def test_alone_a_model_is_not_divided_and_none_is_copied(random_model):
    model = random_model()
    sharded.shard(model)
    assert not sharded.is_sharded(model)
    assert sharded.whole(model) is model


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_loss_and_gradient_are_those_of_one_process(tmp_path, n):
    """Rows have unequal numbers of targets and processes unequal numbers of rows."""
    check_same(run(n, tmp_path)[0], alone["gradients"]())


@pytest.mark.slow
def test_a_checkpoint_of_four_is_gone_on_from_by_two_and_by_one(tmp_path):
    """As if the run had never been broken: weights, both moments and the step's number."""
    whole, folder = alone["until"](8, tmp_path / "whole"), tmp_path / "broken"
    run(4, folder, 2)
    assert [path.name for path in checkpoints(folder)] == ["step-0000002"]
    (steps, weights), _ = run(2, folder, 4)
    check_same([(steps, weights)], [(whole[0][2:4], alone["until"](4, tmp_path / "four")[1])])
    steps, weights = alone["until"](8, folder)
    check_same([(steps, weights)], [(whole[0][4:], whole[1])])
    with pytest.raises(AssertionError, match=r"one process left it whole\. Go on without torchrun"):
        run(2, folder, 9)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_once_and_the_one_before_it_taken(tmp_path):
    run(2, tmp_path, 2)
    newer = shutil.copytree(tmp_path / "step-0000002", tmp_path / "step-0000003")
    [part] = newer.glob("__1_*")
    part.write_bytes(part.read_bytes()[:-1])
    (steps, _), errors = run(2, tmp_path, 4)
    assert [step[0] for step in steps] == [2, 3]
    assert errors.count("Kept as .step-0000003.damaged-1; the run goes on without it.") == 1
