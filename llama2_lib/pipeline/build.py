"""Artifacts: finished folders, built when asked for, one after the other or side by side."""

import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from tqdm.auto import tqdm

from llama2_lib import parallel, storage
from llama2_lib.config import Recipe
from llama2_lib.device import choose_device, processor
from llama2_lib.evaluation.language import fact_recall
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import load_model
from llama2_lib.pipeline.graph import (
    STAGES,
    WITHOUT_MODEL,
    fingerprints,
    stage_settings,
    visible_recipe,
)
from llama2_lib.pipeline.peers import Peers, followed
from llama2_lib.stages.job import Job
from llama2_lib.storage import artifact_root
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.facts import recall_items

PROCESSES, LARGE = 2, 500_000
"""Processes that train together on a CPU, and from how many weights on they pay: a smaller model is
trained in the time that a process takes to start."""
SECONDS_A_LINE = 30  # of a bar in a log file
BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


class _Lines:
    """Takes the place of a terminal in a log file: what a bar shows becomes a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def progress_bar(**settings: Any) -> tqdm:
    """Return a bar that leaves nothing behind, and in a log file writes a line now and then."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    in_notebook = kernel is not None and kernel.IPKernelApp.initialized()
    if not in_notebook and not sys.stderr.isatty():
        settings |= {"file": _Lines(), "mininterval": SECONDS_A_LINE, "maxinterval": SECONDS_A_LINE}
    return tqdm(leave=False, dynamic_ncols=True, **settings)


def folders_of(
    stage: str, recipe: Recipe, root: Path | None = None, *, released: bool = True
) -> dict[str, Path]:
    """Return the folders of `stage` and of all that it needs, whether or not they are there yet.

    What was released is taken from the release, so that everybody reads the same numbers; the rest
    lies under `root`, or else `artifact_root()`.
    """
    folders = {}
    for name, digits in fingerprints(stage, recipe).items():
        folder = storage.release_root() / name / digits
        own = (root or artifact_root()) / name / digits
        folders[name] = folder if released and folder.exists() else own
    return folders


def artifact_path(stage: str, recipe: Recipe, root: Path | None = None) -> Path:
    """Return the folder of a finished stage, whether or not it is there yet."""
    return folders_of(stage, recipe, root)[stage]


def missing(
    stage: str, recipe: Recipe, root: Path | None = None, *, released: bool = True
) -> list[str]:
    """Return the stages that must run before `stage` of `recipe` is there, in order."""
    folders = folders_of(stage, recipe, root, released=released)
    needed = {stage}
    for name in reversed(folders):  # whatever needs a stage comes after it
        if name in needed and not folders[name].exists():
            needed.update(STAGES[name].inputs)
    return [name for name in folders if name in needed and not folders[name].exists()]


def artifact(
    stage: str,
    recipe: Recipe,
    *,
    device: str = "auto",
    root: Path | None = None,
    bar: bool = True,
    processes: int | None = None,
    released: bool = True,
    peers: Peers | None = None,
) -> Path:
    """Return the finished folder of `stage`, after running what is missing.

    Safe to call from several processes: one builds, the others wait. A damaged folder is set
    aside with a message and built again. An interrupted stage goes on where it stopped.

    `device` is `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `root` and `released` are explained in
    `folders_of`; `bar` is whether to show progress. On a CPU `processes` train together, left
    out `PROCESSES` if the model is large enough; the same number of them gives the same bits.
    """
    root = root or artifact_root()
    todo = missing(stage, recipe, root, released=released)
    total, chosen = sum(STAGES[name].seconds for name in todo), choose_device(device)
    with (
        progress_bar(total=total, disable=not bar or not todo, bar_format=BAR) as progress,
        peers or Peers(_n_processes(recipe, chosen, processes), root) as beside,
    ):
        # each stage once: the rounds share most of their inputs
        folders = folders_of(stage, recipe, root, released=released)
        build = partial(_build, recipe, folders, chosen, progress, beside)
        for name, folder in folders.items():
            _ensure(name, folder, build)
    return folders[stage]


def joint_artifact(stage: str, recipe: Recipe, *, device: str = "auto") -> Path:
    """Return what `artifact` does, in every process of torchrun; see it for what is raised."""
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(chosen)
    torch.set_num_threads(1)  # as `peers`
    with parallel.torchrun(chosen):
        try:
            n, group = parallel.n_processes(), dist.group.WORLD
            if parallel.rank() == 0:
                folder = artifact(stage, recipe, device=str(chosen), peers=Peers(n, Path(), group))
                parallel.gathered(folder)
                return folder
            return followed(chosen)
        except (RuntimeError, OSError) as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise ChildProcessError(
                f"process {parallel.rank()} of {parallel.n_processes()} has lost another that was "
                "killed or has said what is wrong. Start again: the same command goes on from the "
                "last checkpoint."
            ) from None


def _n_processes(recipe: Recipe, device: torch.device, wanted: int | None) -> int:
    if device.type != "cpu" or not parallel.available():
        return 1
    pays = recipe.model.n_parameters >= LARGE
    return wanted or (min(PROCESSES, _n_cores()) if pays else 1)


def _ensure(stage: str, final: Path, build: Callable[[str], None]) -> None:
    """Build a stage unless it is there and sound; what is damaged is set aside."""
    if _is_sound(stage, final, keep=True):
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.parent / f".{final.name}.lock"):
        if not _is_sound(stage, final):  # or another process has built it meanwhile
            build(stage)


def _is_sound(stage: str, final: Path, keep: bool = False) -> bool:
    """Return whether a finished stage is there; a damaged one is set aside, or left to `keep`."""
    try:
        storage.read_sealed(final, stage, final.name)
        return True
    except FileNotFoundError:
        return False
    except storage.DamagedArtifactError as error:
        if final.is_relative_to(storage.release_root()):
            # Trained again it would not be the one that all others have.
            restore = f"Restore it: git checkout -- {final}"
            raise storage.DamagedArtifactError(f"{error} {restore}") from None
        if not keep:
            aside = storage.set_aside(final)
            print(f"{error} Kept as {aside.name}; building it again.", file=sys.stderr)
        return False


def _build(
    recipe: Recipe, folders: dict[str, Path], device: torch.device, progress: tqdm, peers: Peers,
    stage: str,
) -> None:  # fmt: skip
    final, inputs = folders[stage], {name: folders[name] for name in STAGES[stage].inputs}
    meta: dict[str, Any] = {
        "stage": stage,
        "fingerprint": final.name,
        "recipe": recipe.name,
        "config": stage_settings(stage, recipe),
        "inputs": {name: path.name for name, path in inputs.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": str(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }
    begin, shown, node = time.perf_counter(), 0.0, STAGES[stage]
    progress.set_description(stage)

    def report(share: float, words: str) -> None:
        nonlocal shown
        progress.set_postfix_str(words, refresh=False)
        progress.update(share * node.seconds - shown)
        shown = share * node.seconds

    with storage.staged_folder(final, meta) as staging:
        job = Job(visible_recipe(stage, recipe), staging, inputs, device, report)
        if peers.n > 1 and stage not in WITHOUT_MODEL:
            meta |= {"threads": 1, "processes": peers.n}
        peers.run(stage, recipe, job)
        meta["wall_seconds"] = round(time.perf_counter() - begin, 2)
    report(1.0, "")


def artifacts(
    requests: Sequence[tuple[str, Recipe]],
    *,
    device: str = "auto",
    root: Path | None = None,
    bar: bool = True,
    workers: int | None = None,
) -> list[Path]:
    """Return the folders of many small runs, training those that are missing side by side.

    On a CPU every run gets one core: small models keep one core busy and waste the second. (A large
    one comes out with other bits than from `artifact`, which trains it in two processes.) On a GPU
    they run one after the other. A script must call this under `if __name__ == "__main__":`, or the
    processes cannot start, which is a ChildProcessError, as if one was killed.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker imports the script that asked, and met this call: it had no `__main__` guard.
        os._exit(1)  # in silence; the process that asked says it once
    root = root or artifact_root()
    build = partial(artifact, device=device, root=root, bar=bar)
    for stage, recipe in requests:  # shared inputs first, so that no two workers build one
        for name in STAGES[stage].inputs:
            build(name, recipe)
    absent = list(dict.fromkeys(r for r in requests if missing(*r, root)))
    if choose_device(device).type == "cpu" and len(absent) > 1:
        _in_processes(absent, root, bar, workers or _n_cores())
    return [build(stage, recipe) for stage, recipe in requests]


def _in_processes(
    requests: Sequence[tuple[str, Recipe]], root: Path, bar: bool, workers: int
) -> None:
    context = multiprocessing.get_context("spawn")
    # The largest first, so that no core idles at the end.
    ordered = sorted(requests, key=lambda r: -STAGES[r[0]].seconds * r[1].model.n_parameters)
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool,
        progress_bar(total=len(requests), disable=not bar, unit="run", desc="grid") as progress,
    ):
        build = partial(artifact, device="cpu", root=root, bar=False, processes=1)
        waiting = [pool.submit(build, stage, recipe) for stage, recipe in ordered]
        try:
            for future in as_completed(waiting):
                future.result()
                progress.update(1)
        except BrokenProcessPool:
            raise ChildProcessError(
                "the processes that train small models side by side could not start, or one was "
                'killed. A script must ask for them under `if __name__ == "__main__":`; if it '
                "does, close other programs, for memory may have run out, and start it again."
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _n_cores() -> int:
    # Linux tells what this process may use, which in a container is less than there is.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    """Keep to one core, and end with the process that asked, even where that is killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def load(stage: str, recipe: Recipe, **options: Any) -> tuple[Transformer, Tokenizer]:
    """Return the model and tokenizer of a stage that trains one, building what is missing."""
    folder = artifact(stage, recipe, **options)
    device = choose_device(options.get("device", "auto"))
    return load_model(folder, device)[0], load_tokenizer(folder)


def recall(recipe: Recipe, **options: Any) -> dict[str, Estimate]:
    """Return `fact_recall` of the pretrained model of `recipe` on its world."""
    model, tokenizer = load("pretrain", recipe, **options)
    return fact_recall(model, tokenizer, recall_items(make_world(recipe.corpus.world_seed)))
