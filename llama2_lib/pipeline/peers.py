"""Processes that run a chain's stages beside this one, each with its rows of every batch.

A peer is started once, and told stage after stage. It copies what the stage has left so far, its
checkpoints too, into a folder of its own, runs it line by line as this process does, and throws
away what it wrote (`llama2_lib.parallel` says where the two differ). In the end all must have
written the same bytes. Peers of one thread share two cores better than two threads do, most of all
beside another busy program: threads wait for the slowest of them at every product.
"""

import contextlib
import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

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


class Peers:
    """The processes of one chain; to be used in a `with` statement, which ends them."""

    def __init__(self, n: int, root: Path):
        self.n = n
        """This process included."""
        self.root = root
        """Under it the peers have their folders, on the disk where artifacts lie."""
        self.started: list[subprocess.Popen[bytes]] = []
        self.group: Any = None
        self.folder = Path()

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for peer in self.started:
                with contextlib.suppress(OSError):
                    _told(peer).close()  # the sign to end
                if sys.exc_info()[0] is None:
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
            with contextlib.suppress(Stopped):
                STAGES[stage].run(job)
            return
        threads = torch.get_num_threads()
        try:
            if not self.started:
                self._start()
            for peer in self.started:
                pickle.dump((stage, recipe, job.folder, job.inputs, until), _told(peer))
                _told(peer).flush()
            if self.group is None:
                self._connect()
            torch.set_num_threads(1)
            with parallel.joined(self.group):
                parallel.gathered("copied")  # waits until the peers have what is there
                with contextlib.suppress(Stopped):
                    STAGES[stage].run(job)
                compare(job.folder)
        except ProcessesDiffer as error:
            aside = storage.set_aside(job.folder)
            raise ProcessesDiffer(f"{error} Kept as {aside.name}.") from None
        except (RuntimeError, OSError):
            end = time.monotonic() + LAST_WORDS
            while time.monotonic() < end and all(peer.poll() is None for peer in self.started):
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
                        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                        stderr=errors,
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


def _told(peer: subprocess.Popen[bytes]) -> IO[bytes]:
    assert peer.stdin is not None
    return peer.stdin


def compare(folder: Path) -> None:
    """Refuse to go on where the processes have written different files."""
    own = {
        path.relative_to(folder).as_posix(): storage.file_sha256(path)
        for path in storage.files_of(folder)
    }
    every = parallel.gathered(own)
    if apart := sorted({name for one in every for name, _ in one.items() ^ every[0].items()}):
        raise ProcessesDiffer(
            f"all processes of a stage must write the same bytes; {', '.join(apart)} differ. "
            "Something in the stage depends on the process that runs it, or the cores differ."
        )


# --- a peer


def serve(folder: str, rank: str, n: str) -> None:
    """Be a peer: run what is told on standard input until it is closed."""
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
        _serve(Path(folder), int(rank), int(n))
    except Exception:
        # A dying parent's connections break before it is gone: the thread above must see that too.
        time.sleep(2 * LOOK)
        raise
    shutil.rmtree(folder, ignore_errors=True)  # told to end, or nobody is left to tell


def _serve(folder: Path, rank: int, n: int) -> None:
    group = None
    while True:
        try:
            stage, recipe, there, inputs, until = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        own = folder / f"{rank}-{stage}"
        shutil.copytree(there, own)
        if group is None:
            (folder / f"ready-{rank}").touch()
            group = parallel.connect(folder, rank, n)
        with parallel.joined(group):
            parallel.gathered("copied")
            visible, device = visible_recipe(stage, recipe), torch.device("cpu")
            job = Job(visible, own, inputs, device, lambda done, words: None)
            with contextlib.suppress(Stopped):
                STAGES[stage].run(stopping(job, until))
            compare(own)
        shutil.rmtree(own)
