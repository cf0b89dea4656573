"""Checkpoints of an unfinished run, sealed as finished artifacts are.

Weights, optimiser state and the next step's number, which is all that batches and rate need.
"""

import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from llama2_lib import parallel, storage
from llama2_lib.training import sharded

_NAME = re.compile(r"step-(\d{7})")


def save_checkpoint(root: Path, step: int, model: nn.Module, optimizer: Optimizer) -> Path:
    """Write `root/step-NNNNNNN/` so that a crash leaves all of it or none; drop older ones.

    Of a model that is divided among processes each writes its part, into the first one's root.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    spread, name = sharded.is_sharded(model), f"step-{step:07d}"
    staging = sharded.folder_of_all(root / f".{name}.{os.getpid()}", model)
    root, first = staging.parent, not spread or parallel.rank() == 0
    if first:
        storage.remove(staging)
        staging.mkdir(parents=True)
    sharded.folder_of_all(staging, model)  # waits until it is there
    try:
        _write(staging, model, optimizer)
        if first:
            mark = _fingerprint(model, optimizer)
            storage.seal(staging, {"stage": "checkpoint", "fingerprint": mark})
            for path in staging.iterdir():  # or a power cut could leave empty files, well named
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
    except (SafetensorError, RuntimeError, OSError) as error:
        raise OSError(
            f"{staging} could not be written: {error}. Free some disk space; the same call goes "
            "on from the last checkpoint."
        ) from None
    final = root / name
    if first:
        storage.remove(final)
        staging.rename(final)
        for older in checkpoints(root)[:-1]:
            storage.remove(older)
    return final


def _write(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    if sharded.is_sharded(model):
        return sharded.write(folder, model, optimizer)
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def checkpoints(root: Path) -> list[Path]:
    """Return the complete checkpoints in `root`, oldest first."""
    return sorted(path for path in root.glob("*") if _NAME.fullmatch(path.name))


def load_checkpoint(root: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Restore the newest sound checkpoint and return the number of the next step; 0 without one.

    One that is damaged, or that another model left, is set aside with a message, and the one
    before it is taken. Model and optimiser are touched only by a checkpoint that is theirs.
    """
    for folder in reversed(checkpoints(sharded.folder_of_all(root, model))):
        found, reason = None, ""
        try:
            storage.read_sealed(folder, "checkpoint", _fingerprint(model, optimizer))
            found = _read(folder, model, optimizer)
        except (storage.DamagedArtifactError, SafetensorError, pickle.UnpicklingError) as error:
            reason = str(error).split("\n", 1)[0]
        sharded.folder_of_all(folder, model)  # waits until all have looked
        if found is not None:
            model.load_state_dict(found[0])
            optimizer.load_state_dict(found[1])
            return int(folder.name.removeprefix("step-"))
        if not sharded.is_sharded(model) or parallel.rank() == 0:
            aside = storage.set_aside(folder)
            print(f"{reason} Kept as {aside.name}; the run goes on without it.", file=sys.stderr)
    return 0


def _read(
    folder: Path, model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and optimiser state, whoever wrote them; each process its part."""
    if sharded.is_written(folder):
        weights, moments = sharded.read(folder, model, optimizer)
        return weights, {**optimizer.state_dict(), "state": moments}
    state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    own, moved = model.state_dict(), sharded.weights_of(optimizer)
    for place, moments in state["state"].items():
        state["state"][place] = {n: sharded.cut(t, moved[place]) for n, t in moments.items()}
    weights = load_file(folder / "model.safetensors")
    return {name: sharded.cut(t, own[name]) for name, t in weights.items()}, state


def _fingerprint(model: nn.Module, optimizer: Optimizer) -> str:
    """Tell the checkpoints of one model and optimiser from those of others."""
    weights = {name: (str(t.dtype), *t.shape) for name, t in model.state_dict().items()}
    groups = [(sorted(group), group["params"]) for group in optimizer.state_dict()["param_groups"]]
    return storage.fingerprint([type(optimizer).__name__, weights, groups])


def clear_checkpoints(root: Path) -> None:
    """Delete all checkpoints and what a killed process left half-written."""
    for path in [*root.glob("step-*"), *root.glob(".step-*")]:
        storage.remove(path)
