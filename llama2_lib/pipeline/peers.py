"""Processes that run a chain's stages beside this one, each with its rows of every batch.

A peer is started once, and told stage after stage (`followed`). It copies what the stage has left
so far, its checkpoints too, into a folder of its own, runs it line by line as this process does,
and throws away what it wrote (`llama2_lib.parallel` says where the two differ). In the end all must
have written the same bytes. Peers of one thread share two cores better than two threads do, most of
all beside another busy program: threads wait for the slowest of them at every product.

Processes that torchrun started, on one machine or many, do the same: the first asks for the
artifact as a process alone would and tells the others (`build.joint_artifact`). Weights, moments
and checkpoints are divided among them, see `training.sharded`. Several machines need one file
system.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from llama2_lib import parallel, storage
from llama2_lib.config import Recipe
from llama2_lib.pipeline.graph import STAGES, WITHOUT_MODEL, visible_recipe
from llama2_lib.stages.job import Job

SERVE = "import sys; from llama2_lib.pipeline.peers import serve; serve(*sys.argv[1:])"
LAST_WORDS = 5.0
"""Seconds that a dying peer has to end, after its connection broke."""
LOOK = 1.0
"""Seconds between two looks of a peer whether its parent is there."""


class ProcessesDiffer(ChildProcessError):
    """The processes of a stage have written different bytes."""


class Stopped(Exception):
    """A stage has logged as many rows as were asked for."""


def stopping(job: Job, until: tuple[str, int] | None) -> Job:
    """Return a job that stops where a metrics file holds so many rows: in each process alike."""
    if until is None:
        return job

    def report(done: float, words: str) -> None:
        job.report(done, words)
        if len(storage.read_metrics(job.folder / until[0])) >= until[1]:
            raise Stopped

    return dataclasses.replace(job, report=report)


class Peers(contextlib.AbstractContextManager):
    """The processes of one chain; to be used in a `with` statement, which ends them."""

    def __init__(self, n: int, root: Path, group: Any = None):
        self.n = n
        """This process included."""
        self.root = root
        """Under it the peers have their folders, on the disk where artifacts lie."""
        self.group = group
        """That of torchrun; else that of the peers, once they are started."""
        self.started: list[subprocess.Popen[bytes]] = []
        self.folder = Path()

    def __exit__(self, failed: object, *_: object) -> None:
        try:
            if self.started and not failed:
                with contextlib.suppress(RuntimeError), parallel.joined(self.group):
                    parallel.gathered(None)  # the sign to end
            for peer in self.started:
                if not failed:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        peer.wait(LAST_WORDS)
                peer.kill()  # it may wait for sums that will never come
                peer.wait()
        finally:
            self.group = None
            if self.started:
                shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self, stage: str, recipe: Recipe, job: Job, until: tuple[str, int] | None = None
    ) -> None:
        """Run a stage in all processes; a model's stage with one thread in each.

        With `until`, a metrics file of the stage and a number of rows, only its beginning.

        Raises:
            ChildProcessError: A peer died.
            ProcessesDiffer: What was written is not the same; it is set aside.
        """
        job = stopping(job, until)
        if self.n == 1 or stage in WITHOUT_MODEL:
            with contextlib.suppress(Stopped), parallel.joined(None):
                STAGES[stage].run(job)
            return
        threads = torch.get_num_threads()
        try:
            if self.group is None:
                self._start()
                self._connect()
            torch.set_num_threads(1)
            with parallel.joined(self.group):
                parallel.gathered((stage, recipe, job.folder, job.inputs, until))
                _together(stage, job)
                parallel.gathered("gone")
        except ProcessesDiffer:
            raise
        except (RuntimeError, OSError):
            end = time.monotonic() + LAST_WORDS
            while self.started and time.monotonic() < end:
                if any(peer.poll() is not None for peer in self.started):
                    break
                time.sleep(0.1)
            self._look_for_dead()
            raise
        finally:
            torch.set_num_threads(threads)

    def _start(self) -> None:
        """Start programs of their own: `multiprocessing` would run the caller's script again."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=".peers-", dir=self.root))
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "LLAMA2_PARENT": str(os.getpid()),
        }
        for rank in range(1, self.n):
            # -P: not from the current folder first, as this process does not either
            command = [sys.executable, "-P", "-c", SERVE, str(self.folder), str(rank), str(self.n)]
            with (self.folder / f"errors-{rank}.txt").open("wb") as errors:
                self.started.append(
                    subprocess.Popen(
                        command, env=env, stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL, stderr=errors,
                        start_new_session=True,  # Ctrl-C is for this process, which ends them
                    )
                )  # fmt: skip

    def _connect(self) -> None:
        while len(list(self.folder.glob("ready-*"))) < len(self.started):
            self._look_for_dead()  # nothing else would say so before they are connected
            time.sleep(0.02)
        self.group = parallel.connect(self.folder, 0, self.n)

    def _look_for_dead(self) -> None:
        for rank, peer in enumerate(self.started, 1):
            if peer.poll() is None:
                continue
            told = (self.folder / f"errors-{rank}.txt").read_text(errors="replace").strip()
            why = "it was killed. Close other programs if memory ran out"
            if (peer.returncode or 0) >= 0 and told:
                why = told.splitlines()[-1].rstrip(".")
            raise ChildProcessError(
                f"process {rank} of {self.n}, which trains beside this one, has died: {why}. Start "
                "again: the stage goes on where it stopped."
            )


def _together(stage: str, job: Job) -> None:
    parallel.gathered("copied")  # waits until the others have what is there
    with contextlib.suppress(Stopped):
        STAGES[stage].run(job)
    compare(job.folder)


def followed(device: torch.device, folder: Path | None = None) -> Any:
    """Run what the first process tells, stage after stage; return what it tells in the end.

    A stage is run in a copy of what is there, in `folder` or else hidden in the first one's.
    """
    while isinstance(told := parallel.gathered(None)[0], tuple):
        stage, recipe, there, inputs, until = told
        own = (folder or there) / f".rank-{parallel.rank()}"
        left_out = (".*", *["step-*"] * parallel.divides_weights())  # those are written by all
        shutil.copytree(there, own, ignore=shutil.ignore_patterns(*left_out))
        visible = visible_recipe(stage, recipe)
        job = Job(visible, own, inputs, device, lambda done, words: None)
        _together(stage, stopping(job, until))
        shutil.rmtree(own)
        parallel.gathered("gone")
    return told


def compare(folder: Path) -> None:
    """Refuse to go on where the processes have written different files; the first keeps its own."""
    own = {
        path.relative_to(folder).as_posix(): storage.file_sha256(path)
        for path in storage.files_of(folder)
    }
    every = parallel.gathered(own)
    if apart := sorted({name for one in every for name, _ in one.items() ^ every[0].items()}):
        problem = (
            f"all processes of a stage must write the same bytes; {', '.join(apart)} differ. "
            "Something in the stage depends on the process that runs it, or the cores differ."
        )
        if parallel.rank() == 0:
            problem += f" Kept as {storage.set_aside(folder).name}."
        raise ProcessesDiffer(problem)


# --- a peer


def serve(folder: str, rank: str, n: str) -> None:
    """Be a peer until the first process tells to end."""
    parent = int(os.environ["LLAMA2_PARENT"])

    def end_with_parent() -> None:
        while psutil.pid_exists(parent) and os.getppid() == parent:
            time.sleep(LOOK)
        while os.path.exists(folder):  # what runs beside this may leave one more file
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        (Path(folder) / f"ready-{rank}").touch()
        with parallel.joined(parallel.connect(Path(folder), int(rank), int(n))):
            followed(torch.device("cpu"), Path(folder))
    except Exception:
        # A dying parent's connections break before it is gone: the thread above must see that too.
        time.sleep(2 * LOOK)
        raise
    shutil.rmtree(folder, ignore_errors=True)
