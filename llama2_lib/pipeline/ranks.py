"""Processes that torchrun started, which train a chain's stages together, on one machine or many.

    torchrun --nproc-per-node 2 -m llama2_lib run pretrain --recipe toy

The first asks for the artifact as a process alone would, and seals it; the others are told stage
after stage. As with `peers` each runs the stage line by line in a folder of its own, which lies
hidden in the first one's and goes in the end, and all must have written the same bytes. Weights,
moments and checkpoints are divided among them: see `llama2_lib.training.sharded`. All read the
artifacts, so several machines need one file system.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama2_lib import parallel, storage
from llama2_lib.config import Recipe
from llama2_lib.device import choose_device
from llama2_lib.pipeline.build import artifact
from llama2_lib.pipeline.graph import STAGES, WITHOUT_MODEL, visible_recipe
from llama2_lib.pipeline.peers import Peers, ProcessesDiffer, compare
from llama2_lib.stages.job import Job


def joint_artifact(stage: str, recipe: Recipe, *, device: str = "auto", **options: Any) -> Path:
    """Return what `artifact` does, in every process that torchrun started.

    Raises:
        ChildProcessError: Another process was killed or has failed.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(chosen)
    with parallel.torchrun_group(chosen) as (group, mesh), parallel.joined(group, mesh):
        try:
            if parallel.rank() == 0:
                peers = Ranks()
                folder = artifact(stage, recipe, device=str(chosen), peers=peers, **options)
                parallel.gathered(folder)
                return folder
            while not isinstance(told := parallel.gathered(None)[0], Path):
                _follow(told, chosen)
            return told
        except (RuntimeError, OSError) as error:
            lost = isinstance(error, dist.DistError) or "gloo" in str(error)
            if not lost:
                raise
            raise ChildProcessError(
                f"process {parallel.rank()} of {parallel.n_processes()}, which torchrun started, "
                "has lost another one: it was killed, or has failed with a message of its own. "
                "Start again: the same command goes on from the last checkpoint."
            ) from None


class Ranks(Peers):
    """The processes of torchrun, for the first of them."""

    def __init__(self) -> None:
        super().__init__(parallel.n_processes(), Path())
        self.threads = torch.get_num_threads()

    def run(
        self, stage: str, recipe: Recipe, job: Job, until: tuple[str, int] | None = None
    ) -> None:
        """Run a stage in all processes; one without a model in this one."""
        assert until is None, "a replay is of one process"
        if stage in WITHOUT_MODEL:
            with parallel.joined(None):
                STAGES[stage].run(job)
            return
        parallel.gathered((stage, recipe, job.folder, job.inputs))
        parallel.gathered("copied")
        try:
            _run(stage, job)
        except ProcessesDiffer as error:
            aside = storage.set_aside(job.folder)
            raise ProcessesDiffer(f"{error} Kept as {aside.name}.") from None


def _follow(told: tuple[str, Recipe, Path, dict[str, Path]], device: torch.device) -> None:
    """Run a stage beside the first process, in a hidden folder inside its own."""
    stage, recipe, there, inputs = told
    own = there / f".rank-{parallel.rank()}"
    shutil.copytree(there, own, ignore=shutil.ignore_patterns(".*", "step-*"))
    parallel.gathered("copied")
    job = Job(visible_recipe(stage, recipe), own, inputs, device, lambda done, words: None)
    _run(stage, job)


def _run(stage: str, job: Job) -> None:
    STAGES[stage].run(job)
    compare(job.folder)
    if parallel.rank() > 0:
        shutil.rmtree(job.folder)
    parallel.gathered("gone")
