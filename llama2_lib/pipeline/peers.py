"""Processes that run the missing stages beside this one, each with its rows of every batch.

A peer is started once, and told stage after stage. It copies what the stage has left so far, its
checkpoints too, into a folder of its own, runs it line by line as this process does, and throws
away what it wrote (`llama2_lib.parallel` says where the two differ). In the end all must have
written the same bytes. Peers of one thread share two cores better than two threads do, most of all
beside another busy program: threads wait for the slowest of them at every product.
"""

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import psutil
import torch
import torch.distributed as dist

from llama2_lib import storage
from llama2_lib.config import Recipe
from llama2_lib.pipeline.graph import STAGES, WITHOUT_MODEL, visible_recipe
from llama2_lib.stages.job import Job


class Peers:
    """The processes of one chain; to be used in a `with` statement, which ends them."""

    def __init__(self, n: int):
        self.n = n
        """This process included."""
        self.started: list[subprocess.Popen[bytes]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="llama2-peers-") if n > 1 else "")
        for rank in range(1, n):
            self._start(rank)

    def _start(self, rank: int) -> None:
        """Start a program of its own: `multiprocessing` would run the caller's script again."""
        code = "import sys; from llama2_lib.pipeline.peers import serve; serve(*sys.argv[1:])"
        with (self.folder / f"errors-{rank}.txt").open("wb") as errors:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, str(self.folder), str(rank), str(self.n)],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
                    env=os.environ | {
                        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                        "LLAMA2_PARENT": str(os.getpid()),  # says whose it is, to whoever looks
                    },
                    start_new_session=True,  # Ctrl-C is for this process, which ends the others
                )
            )  # fmt: skip

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.started:
            with contextlib.suppress(OSError):
                _told(peer).close()  # the sign to end
            if sys.exc_info()[0] is not None:
                peer.kill()  # it may wait for sums that will never come
            peer.wait()
        if self.n > 1:
            if dist.is_initialized():
                dist.destroy_process_group()
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, stage: str, recipe: Recipe, job: Job) -> None:
        """Run a stage in all processes; a model's stage with one thread in each.

        Raises:
            ChildProcessError: A peer died.
            RuntimeError: The processes wrote different bytes.
        """
        if self.n == 1 or stage in WITHOUT_MODEL:
            STAGES[stage].run(job)
            return
        threads = torch.get_num_threads()
        try:
            for peer in self.started:
                pickle.dump((stage, recipe, job.folder, job.inputs), _told(peer))
                _told(peer).flush()
            self._meet()
            torch.set_num_threads(1)
            STAGES[stage].run(job)
            _compare(job.folder)
        except (RuntimeError, OSError):
            time.sleep(0.5)  # a dying process closes its connections before it ends
            self._look_for_dead()
            raise
        finally:
            torch.set_num_threads(threads)

    def _meet(self) -> None:
        """Wait until all peers have copied what the stage has left so far."""
        if not dist.is_initialized():
            while len(list(self.folder.glob("ready-*"))) < len(self.started):
                self._look_for_dead()  # nothing else would say so before they are connected
                time.sleep(0.02)
            _join(self.folder, 0, self.n)
        dist.barrier()

    def _look_for_dead(self) -> None:
        for rank, peer in enumerate(self.started, 1):
            if peer.poll() is None:
                continue
            told = (self.folder / f"errors-{rank}.txt").read_text(errors="replace").strip()
            raise ChildProcessError(
                f"process {rank} of {self.n}, which trains beside this one, has died: "
                f"{told.splitlines()[-1] if told else 'it was killed'}. Close other programs if "
                "memory ran out, and start again: the stage goes on where it stopped."
            )


def _told(peer: subprocess.Popen[bytes]) -> IO[bytes]:
    assert peer.stdin is not None
    return peer.stdin


def _join(folder: Path, rank: int, n: int) -> None:
    # Without a network a machine may not know the address of its own name; itself it always knows.
    loopback = (
        name for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == "127.0.0.1" for address in addresses)
    )  # fmt: skip
    os.environ.setdefault("GLOO_SOCKET_IFNAME", next(loopback, "lo"))
    store = dist.FileStore(str(folder / "store"), n)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n)


def _compare(folder: Path) -> None:
    """Refuse to go on where the processes have written different files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    own = {path.relative_to(folder).as_posix(): storage.file_sha256(path) for path in files}
    every: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, own)
    if apart := sorted({name for one in every for name, _ in one.items() ^ every[0].items()}):
        raise RuntimeError(
            f"all processes of a stage must write the same bytes; {', '.join(apart)} differ. "
            "Something in the stage depends on the process that runs it, or the cores differ."
        )


def serve(folder: str, rank: str, n: str) -> None:
    """Be a peer: run what is told on standard input until it is closed."""
    torch.set_num_threads(1)
    parent = os.getppid()

    def end_with_parent() -> None:
        while psutil.pid_exists(parent) and os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            stage, recipe, there, inputs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _work(stage, recipe, there, inputs, Path(folder), int(rank), int(n))


def _work(
    stage: str,
    recipe: Recipe,
    there: Path,
    inputs: dict[str, Path],
    folder: Path,
    rank: int,
    n: int,
) -> None:
    own = folder / f"{rank}-{stage}"
    shutil.copytree(there, own)
    if not dist.is_initialized():
        (folder / f"ready-{rank}").touch()
        _join(folder, rank, n)
    dist.barrier()
    job = Job(
        visible_recipe(stage, recipe), own, inputs, torch.device("cpu"), lambda done, words: None
    )
    STAGES[stage].run(job)
    _compare(own)
    shutil.rmtree(own)
