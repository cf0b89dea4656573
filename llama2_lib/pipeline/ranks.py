"""Processes that torchrun started, which train a chain's stages together, on one machine or many.

The first asks for the artifact as a process alone would, and seals it; the others are told stage
after stage. As with `peers` each runs the stage line by line in a folder of its own, hidden in the
first one's, and all must have written the same bytes. Weights, moments and checkpoints are divided
among them: see `training.sharded`. Several machines need one file system.
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


def joint_artifact(stage: str, recipe: Recipe, *, device: str = "auto") -> Path:
    """Return what `artifact` does, in every process of torchrun; see it for what is raised."""
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(chosen)
    torch.set_num_threads(1)  # as `peers`
    with parallel.torchrun(chosen):
        try:
            if parallel.rank() == 0:
                folder = artifact(stage, recipe, device=str(chosen), peers=Ranks())
                parallel.gathered(folder)
                return folder
            while not isinstance(told := parallel.gathered(None)[0], Path):
                stage, recipe, there, inputs = told
                own = there / f".rank-{parallel.rank()}"  # hidden in the first one's
                shutil.copytree(there, own, ignore=shutil.ignore_patterns(".*", "step-*"))
                visible = visible_recipe(stage, recipe)
                _run(stage, Job(visible, own, inputs, chosen, lambda *_: None))
                shutil.rmtree(own)
                parallel.gathered("gone")
            return told
        except (RuntimeError, OSError) as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise ChildProcessError(
                f"process {parallel.rank()} of {parallel.n_processes()} has lost another that was "
                "killed or has said what is wrong. Start again: the same command goes on from the "
                "last checkpoint."
            ) from None


class Ranks(Peers):
    """The processes of torchrun, for the first of them."""

    def __init__(self) -> None:
        super().__init__(parallel.n_processes(), Path())

    def run(self, stage: str, recipe: Recipe, job: Job, until: Any = None) -> None:
        """Run a stage in all processes, to its end; one without a model in this one."""
        if stage in WITHOUT_MODEL:
            with parallel.joined(None):
                STAGES[stage].run(job)
            return
        parallel.gathered((stage, recipe, job.folder, job.inputs))
        try:
            _run(stage, job)
        except ProcessesDiffer as error:
            aside = storage.set_aside(job.folder)
            raise ProcessesDiffer(f"{error} Kept as {aside.name}.") from None
        parallel.gathered("gone")  # what is hidden in the folder


def _run(stage: str, job: Job) -> None:
    parallel.gathered("copied")
    STAGES[stage].run(job)
    compare(job.folder)
