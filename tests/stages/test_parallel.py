"""Processes that divide the rows of a batch: together they do what one does alone."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llama2_lib import parallel, pipeline
from llama2_lib.pipeline import peers
from llama2_lib.pipeline.peers import Peers, ProcessesDiffer
from llama2_lib.recipes import toy
from llama2_lib.storage import read_metrics


class Rows(NamedTuple):
    one: Tensor
    other: Tensor


@pytest.fixture
def as_process(monkeypatch):
    """Play one process of several, without the others."""

    def play(rank, n):
        monkeypatch.setattr(parallel, "n_processes", lambda: n)
        monkeypatch.setattr(parallel, "rank", lambda: rank)

    return play


def test_a_process_alone_divides_nothing():
    batch = Rows(torch.arange(3), torch.arange(6).view(3, 2))
    assert parallel.own_rows(batch) is batch
    assert parallel.all_rows(batch, 3) is batch
    assert parallel.shared([3, 1], lambda items: [10 * i for i in items]) == [30, 10]
    total = torch.tensor([2.5])
    parallel.add_up([total])
    assert total.item() == 2.5


def test_each_process_has_rows_of_its_own_and_together_they_have_all(as_process):
    batch = Rows(torch.arange(5), torch.arange(10).view(5, 2))
    parts = []
    for rank in range(2):
        as_process(rank, 2)
        parts.append(parallel.own_rows(batch))
    assert [part.one.tolist() for part in parts] == [[0, 2, 4], [1, 3]]
    assert [part.other[:, 1].tolist() for part in parts] == [[1, 5, 9], [3, 7]]


def test_a_batch_with_fewer_rows_than_processes_goes_to_all(as_process):
    as_process(1, 3)
    batch = Rows(torch.arange(2), torch.zeros(2, 4))
    assert parallel.own_rows(batch) is batch


SCRIPT = """
    import sys, threading
    import torch
    import torch.distributed as dist
    from pathlib import Path
    from typing import NamedTuple
    from llama2_lib import parallel

    class Rows(NamedTuple):
        one: torch.Tensor
        other: torch.Tensor

    rank = int(sys.argv[1])
    # the program's own group
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = parallel.connect(Path(sys.argv[2]), rank, 3)
    assert parallel.n_processes() == 1
    with parallel.joined(group):
        assert (parallel.n_processes(), parallel.rank()) == (3, rank)
        sums = [torch.tensor([1.0 + rank, 2.0]), torch.tensor(10.0 * rank)]
        parallel.add_up(sums)
        assert [t.tolist() for t in sums] == [[6.0, 6.0], 30.0]
        shared = parallel.shared(range(7), lambda own: [(i, rank) for i in own])
        assert shared == [(i, i % 3) for i in range(7)]
        assert parallel.shared([5], lambda own: [i + 1 for i in own]) == [6], "nothing for some"
        for n_rows in (7, 3, 2):  # the last is not divided
            batch = Rows(torch.arange(n_rows), torch.arange(2 * n_rows).view(n_rows, 2))
            again = parallel.all_rows(parallel.own_rows(batch), n_rows)
            assert all(torch.equal(a, b) for a, b in zip(again, batch)) and type(again) is Rows
        seen = []  # another thread asks a model meanwhile: it must not wait for the others
        other = threading.Thread(target=lambda: seen.append(parallel.n_processes()))
        other.start(), other.join()
        assert seen == [1]
    assert (parallel.n_processes(), dist.get_world_size()) == (1, 1)
    print("well", flush=True)
"""


@pytest.mark.slow
def test_three_processes_add_up_and_share(tmp_path):
    code = textwrap.dedent(SCRIPT)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path)], stdout=subprocess.PIPE
        )
        for rank in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == [b"well"] * 3


def short():
    return replace(
        toy(),
        pretrain=replace(toy().pretrain, steps=6, save_every=2, eval_every=3),
        ppo=replace(toy().ppo, iterations=2),
    )


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "meta.json"}


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_twice_the_same(fresh_root):
    """To rounding as one, and to the bit as two: sums of gradients have another order."""
    built = {
        name: pipeline.artifact(
            "pretrain", short(), root=fresh_root(name, ["tokenizer", "corpus"]), bar=False,
            processes=n,
        )
        for name, n in (("one", 1), ("two", 2), ("again", 2))
    }  # fmt: skip
    assert files(built["two"]) == files(built["again"])
    rows = [read_metrics(built[name] / "metrics.jsonl") for name in ("one", "two")]
    for alone, together in zip(*rows, strict=True):
        assert alone.keys() == together.keys()
        for key in alone:
            assert together[key] == pytest.approx(alone[key], rel=2e-5), key
    weights = [load_file(built[name] / "model.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_two_processes_roll_out_and_credit_what_they_train_on(fresh_root):
    """Before the first step the ratio is 1 to the last bit in each: the same shapes, twice."""
    before = [name for name in pipeline.fingerprints("ppo", short()) if name != "ppo"]
    folder = pipeline.artifact(
        "ppo", short(), root=fresh_root("ppo", before), bar=False, processes=2
    )
    rows = [r for r in read_metrics(folder / "metrics.jsonl") if "first_approx_kl" in r]
    assert len(rows) == 3
    assert {row["first_approx_kl"] for row in rows} == {0.0}
    assert rows[-1]["kl"] != 0.0


BUILD = """
    import pickle, sys
    from pathlib import Path
    from llama2_lib import pipeline
    recipe = pickle.load(sys.stdin.buffer)
    pipeline.artifact("pretrain", recipe, root=Path(sys.argv[1]), bar=False, processes=2)
"""


@pytest.mark.slow
def test_killed_two_processes_go_on_to_the_same_bits_and_leave_nobody_behind(fresh_root):
    whole = pipeline.artifact(
        "pretrain",
        short(),
        root=fresh_root("whole", ["tokenizer", "corpus"]),
        bar=False,
        processes=2,
    )
    root = fresh_root("killed", ["tokenizer", "corpus"])
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    pickle.dump(short(), process.stdin)
    process.stdin.close()
    deadline = time.monotonic() + 60
    while not list(root.glob("pretrain/.*.partial/step-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_nobody_is_left(root, process.pid)
    again = pipeline.artifact("pretrain", short(), root=root, bar=False, processes=2)
    assert files(again) == files(whole)


def wait_until_nobody_is_left(root, pid):
    """A peer looks once a second whether its parent is there, when it has imported PyTorch."""

    def belongs(environ):
        try:
            return f"LLAMA2_PARENT={pid}".encode() in environ.read_bytes().split(b"\0")
        except OSError:
            return False

    def left():
        peers_left = [path for path in Path("/proc").glob("[0-9]*/environ") if belongs(path)]
        return [*peers_left, *root.glob(".peers-*")]

    deadline = time.monotonic() + 90
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left() == []


@pytest.mark.slow
def test_a_peer_whose_parent_dies_while_it_starts_ends_as_well(fresh_root):
    root = fresh_root("early", ["tokenizer", "corpus"])
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    pickle.dump(short(), process.stdin)
    process.stdin.close()
    while not list(root.glob(".peers-*/errors-1.txt")):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_nobody_is_left(root, process.pid)


@pytest.mark.slow
def test_a_damaged_artifact_is_built_again_to_the_same_bits(fresh_root):
    root = fresh_root("damaged", ["tokenizer", "corpus"])
    folder = pipeline.artifact("pretrain", short(), root=root, bar=False, processes=2)
    before = files(folder)
    (folder / "samples.txt").write_text("spoiled")
    assert (
        files(pipeline.artifact("pretrain", short(), root=root, bar=False, processes=2)) == before
    )
    assert list(root.glob(".peers-*")) == []


@pytest.mark.slow
def test_what_the_processes_wrote_differently_is_set_aside(fresh_root, monkeypatch):
    root = fresh_root("differs", ["tokenizer", "corpus"])
    compare = peers.compare

    def spoil(folder):
        (folder / "samples.txt").write_text("spoiled")
        compare(folder)

    monkeypatch.setattr(peers, "compare", spoil)  # in this process alone
    with pytest.raises(ProcessesDiffer, match=r"samples.txt differ.* Kept as "):
        pipeline.artifact("pretrain", short(), root=root, bar=False, processes=2)
    assert not list(root.glob("pretrain/.*.partial"))
    monkeypatch.undo()
    folder = pipeline.artifact("pretrain", short(), root=root, bar=False, processes=2)
    assert (folder / "samples.txt").read_text() != "spoiled"


@pytest.mark.slow
def test_a_peer_that_dies_is_named_and_the_stage_can_go_on(fresh_root, monkeypatch):
    root = fresh_root("dies", ["tokenizer", "corpus"])
    start = Peers._start

    def start_and_kill(self):
        start(self)
        self.started[-1].kill()

    monkeypatch.setattr(Peers, "_start", start_and_kill)
    with pytest.raises(ChildProcessError, match="has died: it was killed"):
        pipeline.artifact("pretrain", short(), root=root, bar=False, processes=2)
    monkeypatch.undo()
    assert pipeline.artifact("pretrain", short(), root=root, bar=False, processes=2).is_dir()


def test_a_small_model_starts_no_process(fresh_root, monkeypatch):
    monkeypatch.setattr(Peers, "_start", lambda *_: pytest.fail("a process was started"))
    root = fresh_root("small", ["tokenizer", "corpus"])
    pipeline.artifact("pretrain", short(), root=root, bar=False)
