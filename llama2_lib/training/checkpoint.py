"""Checkpoints of an unfinished run, sealed as finished artifacts are.

Weights, optimiser state and the next step's number, which is all that batches and rate need.
"""

import os
import pickle
import re
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from llama2_lib import storage
from llama2_lib.training import sharded

_NAME = re.compile(r"step-(\d{7})")


def save_checkpoint(root: Path, step: int, model: nn.Module, optimizer: Optimizer) -> Path:
    """Write `root/step-NNNNNNN/` so that a crash leaves all of it or none; drop older ones.

    Of a model that is divided every process writes its part, into the folder of the first.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    final = sharded.of_first(root, model) / f"step-{step:07d}"
    staging = final.with_name(f".{final.name}.{sharded.of_first(os.getpid(), model)}")
    if sharded.is_first(model):
        storage.remove(staging)
        staging.mkdir(parents=True)
    try:
        if sharded.is_sharded(model):
            sharded.write(staging, model, optimizer)
        else:
            weights = {
                name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()
            }
            save_file(weights, staging / "model.safetensors")
            torch.save(optimizer.state_dict(), staging / "optimizer.pt")
        if not sharded.is_first(model):
            return final
        mark = _fingerprint(model, optimizer)
        storage.seal(staging, {"stage": "checkpoint", "fingerprint": mark})
        for path in staging.iterdir():  # or a power cut could leave empty files with good names
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    except (SafetensorError, RuntimeError, OSError) as error:
        raise OSError(
            f"{staging} could not be written: {error}. Free some disk space; the same call goes "
            "on from the last checkpoint."
        ) from None
    storage.remove(final)
    staging.rename(final)
    for older in checkpoints(final.parent)[:-1]:
        storage.remove(older)
    return final


def checkpoints(root: Path) -> list[Path]:
    """Return the complete checkpoints in `root`, oldest first."""
    return sorted(path for path in root.glob("*") if _NAME.fullmatch(path.name))


def load_checkpoint(root: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Restore the newest sound checkpoint and return the number of the next step; 0 without one.

    One that is damaged, or that another model left, is set aside with a message, and the one
    before it is taken. Model and optimiser are touched only by a checkpoint that is theirs.
    """
    for folder in reversed(checkpoints(sharded.of_first(root, model))):
        try:
            storage.read_sealed(folder, "checkpoint", _fingerprint(model, optimizer))
            if sharded.is_sharded(model) or (folder / "metadata").is_file():
                weights, state = sharded.read(folder, model, optimizer)
            else:
                weights = load_file(folder / "model.safetensors")
                state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        except (storage.DamagedArtifactError, SafetensorError, pickle.UnpicklingError) as error:
            sharded.of_first("all have looked", model)
            if sharded.is_first(model):
                reason, aside = str(error).split("\n", 1)[0], storage.set_aside(folder)
                print(
                    f"{reason} Kept as {aside.name}; the run goes on without it.", file=sys.stderr
                )
            continue
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        return int(folder.name.removeprefix("step-"))
    return 0


def _fingerprint(model: nn.Module, optimizer: Optimizer) -> str:
    """Tell the checkpoints of one model and optimiser from those of others."""
    weights = {name: (str(t.dtype), *t.shape) for name, t in model.state_dict().items()}
    groups = [(sorted(group), group["params"]) for group in optimizer.state_dict()["param_groups"]]
    return storage.fingerprint([type(optimizer).__name__, weights, groups])


def clear_checkpoints(root: Path) -> None:
    """Delete all checkpoints and what a killed process left half-written."""
    for path in [*root.glob("step-*"), *root.glob(".step-*")]:
        storage.remove(path)
