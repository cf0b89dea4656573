"""`torchrun ... -m llama2_lib run STAGE`: the artifact is that of one process, whatever happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from llama2_lib import pipeline
from llama2_lib.recipes import toy
from llama2_lib.storage import META, read_metrics, read_sealed

pytestmark = pytest.mark.slow


def torchrun(n, root, stage, *options):
    env = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()), "LLAMA2_ARTIFACTS": str(root),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
        f"--nproc-per-node={n}", "-m", "llama2_lib", "run", stage, "--recipe=toy", "--device=cpu",
    ]  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *options], env=env, stdout=pipe, stderr=pipe, text=True)


def files(folder):
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).read_bytes() for name in names if name != META}


def before(stage):
    return [name for name in pipeline.fingerprints(stage, toy()) if name != stage]


@pytest.mark.parametrize(
    ("stage", "n"),
    [("pretrain", 2), ("pretrain", 4), ("sft", 2), ("rewards_v1", 4), ("rejection_v1", 2),
     ("ppo", 2), ("ppo", 4)],
)  # fmt: skip
def test_the_artifact_is_that_of_one_process(fresh_root, toy_root, stage, n):
    root = fresh_root("root", before(stage))
    process = torchrun(n, root, stage)
    out, errors = process.communicate(timeout=240)
    folder = pipeline.artifact_path(stage, toy(), root)
    assert (process.returncode, out) == (0, f"{folder}\n"), errors
    meta = read_sealed(folder, stage, folder.name)
    assert (meta["processes"], meta["device"]) == (n, "cpu")
    alone = pipeline.artifact_path(stage, toy(), toy_root)
    assert files(folder).keys() == files(alone).keys()
    assert files(folder) != files(alone), "sums have another order: nothing was divided"
    for path in alone.rglob("model.safetensors"):
        own = load_file(folder / path.relative_to(alone))
        for name, weight in load_file(path).items():
            # stored in fp16: a sum's order may move a weight to the next number, 1e-3 of it
            torch.testing.assert_close(own[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    for path in alone.rglob("metrics.jsonl"):
        rows, own = read_metrics(path), read_metrics(folder / path.relative_to(alone))
        for row, own_row in zip(rows, own, strict=True):
            assert own_row.keys() == row.keys()
            for key in ("loss", "grad_norm", "validation_loss", "reward", "held_out_reward"):
                assert own_row.get(key, 1.0) == pytest.approx(row.get(key, 1.0), rel=1e-5, abs=0), (
                    key
                )
            assert own_row.get("first_approx_kl", 0.0) == 0.0, "credited with other weights"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_the_same_command_goes_on(fresh_root, victim):
    stages = ["tokenizer", "corpus"]
    whole, root = fresh_root("whole", stages), fresh_root("killed", stages)
    options = ("--steps", "120")  # saved after every fifth
    undisturbed = torchrun(2, whole, "pretrain", *options)
    undisturbed.communicate(timeout=240)
    assert undisturbed.returncode == 0
    process = torchrun(2, root, "pretrain", *options)
    deadline = time.monotonic() + 120
    while not list(root.glob("pretrain/.*.partial/step-00000[5-9]*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks = {int(p.environ()["RANK"]): p for p in psutil.Process(process.pid).children()}
    ranks[victim].send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "the same command goes on from the last checkpoint." in errors
    assert not psutil.pid_exists(ranks[1 - victim].pid)
    [staging] = root.glob("pretrain/.*.partial")
    [saved] = staging.glob("step-*")
    assert int(saved.name[5:]) >= 50
    log = staging / "metrics.jsonl"
    log.write_text(log.read_text().replace("}", ', "before": 1}', 1))  # lost if it begins anew
    again = torchrun(2, root, "pretrain", *options)
    out, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    [folder], [expected] = (list(r.glob("pretrain/[0-9a-f]*")) for r in (root, whole))
    assert out == f"{folder}\n"
    log = folder / "metrics.jsonl"
    marked = log.read_text()
    assert marked.count(', "before": 1}') == 1, "it did not go on from the checkpoint"
    log.write_text(marked.replace(', "before": 1}', "}"))
    assert files(folder) == files(expected)


def test_a_mistake_is_told_by_one_line_a_process_and_nothing_hangs(fresh_root):
    process = torchrun(2, fresh_root(), "pretrian")
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert 1 <= errors.count("Did you mean 'pretrain'?") <= 2
