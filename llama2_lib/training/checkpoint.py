"""Checkpoints of an unfinished run: weights, optimiser state and the next step's number.

What the batches and the rate need is the step number alone, so this is all there is to save.
"""

import os
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from llama2_lib import storage

_NAME = re.compile(r"step-(\d{7})")


def save_checkpoint(root: Path, step: int, model: nn.Module, optimizer: Optimizer) -> Path:
    """Write `root/step-NNNNNNN/` so that a crash leaves all of it or none; drop older ones.

    Args:
        root: The run's folder.
        step: Steps done, which is the number of the next one.
        model: Its `state_dict` is written as safetensors.
        optimizer: Its state is written by `torch.save`.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    final = root / f"step-{step:07d}"
    staging = root / f".{final.name}.{os.getpid()}"
    storage.remove(staging)
    staging.mkdir(parents=True)
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    try:
        save_file(weights, staging / "model.safetensors")
        torch.save(optimizer.state_dict(), staging / "optimizer.pt")
    except (SafetensorError, RuntimeError) as error:  # what the two raise when a write fails
        raise OSError(
            f"{staging} could not be written: {error}. Free some disk space; the same call goes "
            "on from the last checkpoint."
        ) from None
    storage.remove(final)
    staging.rename(final)
    for older in checkpoints(root)[:-1]:
        storage.remove(older)
    return final


def checkpoints(root: Path) -> list[Path]:
    """Return the complete checkpoints in `root`, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(root: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Restore the newest checkpoint and return the number of the next step; 0 if there is none.

    Raises:
        ValueError: The checkpoint cannot be read.
    """
    found = checkpoints(root)
    if not found:
        return 0
    newest = found[-1]
    device = next(model.parameters()).device
    try:
        weights = load_file(newest / "model.safetensors", device=str(device))
        state = torch.load(newest / "optimizer.pt", map_location=device, weights_only=True)
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"{newest} must hold weights and optimiser state; they cannot be read: {reason}. "
            "Delete it to train from the start."
        ) from None
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    return int(newest.name.removeprefix("step-"))


def clear_checkpoints(root: Path) -> None:
    """Delete all checkpoints and what a killed process left half-written."""
    for path in [*root.glob("step-*"), *root.glob(".step-*")]:
        storage.remove(path)
