"""Weights divided among the processes that torchrun started: PyTorch's FSDP2, from outside.

Each process holds a part of every weight and of its moments. A block's weights are gathered when it
computes; gradients are summed, each process keeping its part. All else (measuring, sampling,
saving) is done with a whole copy, gathered once and then dropped (paper section 3.2.3): generating
from the parts would gather all of them for every token.
"""

import copy
import warnings
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llama2_lib import parallel
from llama2_lib.model.transformer import Transformer, TransformerBlock

Module = TypeVar("Module", bound=nn.Module)
_hollow: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""For every model that is divided, the same without numbers, to be filled."""


def shard(model: nn.Module, *parts: nn.Module) -> None:
    """Divide the weights of `model` among torchrun's processes, in place; else do nothing.

    `parts` are the modules that are called, if not the model itself; each is cut block by block. An
    optimiser is to be made after it.
    """
    if not parallel.divides_weights():
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(next(model.parameters()).device.type, (parallel.n_processes(),))
    # A scalar model returns a view; nothing here writes into one in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    empty = {p: torch.empty_like(p, device="meta") for p in model.parameters()}
    memo = {id(p): nn.Parameter(none, p.requires_grad) for p, none in empty.items()}
    _hollow[model] = copy.deepcopy(model, memo)
    for part in parts or (model,):
        for module in part.modules():
            if isinstance(module, TransformerBlock):
                fully_shard(module, mesh=mesh)
        fully_shard(part, mesh=mesh)
        if isinstance(part, Transformer):
            for name in ("hidden", "logits"):  # ways into a model beside its forward
                register_fsdp_forward_method(part, name)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums, never means: the loop divides once, by what all processes counted.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    """Return whether this process holds a part of the weights only."""
    return model in _hollow


def whole(model: Module) -> Module:
    """Return a copy with all weights if they are divided, all processes asking; else the model."""
    if not is_sharded(model):
        return model
    full: Any = copy.deepcopy(_hollow[model])
    parts: dict[str, Any] = model.state_dict()
    full.load_state_dict({name: part.full_tensor() for name, part in parts.items()}, assign=True)
    return full.train(model.training)


def of_first(value: Any, model: nn.Module) -> Any:
    """Return what the first process gives, if all hold parts of one model; else one's own."""
    return parallel.gathered(value)[0] if is_sharded(model) else value


def is_first(model: nn.Module) -> bool:
    """Return whether this process writes for all that hold parts of the model."""
    return not is_sharded(model) or parallel.rank() == 0


# --- checkpoints that any number of processes can read


def write(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write weights and moments into `folder`, every process its part, once the folder is there."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    pieces = {f"weight/{name}": part for name, part in model.state_dict().items()}
    for place, moments in optimizer.state_dict()["state"].items():
        pieces |= {f"{kind}/{place}": part for kind, part in moments.items()}
    parallel.gathered("the folder is there")
    try:
        dcp.save(pieces, storage_writer=dcp.FileSystemWriter(folder))
    except CheckpointException as error:  # no Exception, so that nobody would catch it
        raise OSError(next(iter(error.failures.values()))[0]) from None
    if parallel.rank() == 0:
        (folder / ".metadata").rename(folder / "metadata")  # hidden files are no part of a folder


def read(
    folder: Path, model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of model and optimiser that some processes wrote, cut for these."""
    if not (folder / "metadata").is_file():
        raise ValueError(
            f"{folder} must hold parts, as torchrun's processes leave them; one process left it "
            "whole. Go on without torchrun, or delete it."
        )
    from torch.distributed import checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        def _get_metadata_path(self, rank: int | None = None) -> Path:
            return folder / "metadata"

    moved = [weight for group in optimizer.param_groups for weight in group["params"]]
    reader, state = Reader(folder), dict[int, dict[str, Tensor]]()
    stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
    likes = {f"weight/{name}": part for name, part in model.state_dict().items()}
    pieces = {key: torch.empty_like(like) for key, like in likes.items()}
    for key in sorted(stored.keys() - pieces.keys()):
        kind, place = key.split("/")
        like = moved[int(place)] if kind != "step" else torch.tensor(0.0)
        pieces[key] = state.setdefault(int(place), {})[kind] = torch.empty_like(like)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one is alone
        dcp.load(pieces, storage_reader=reader, no_dist=not is_sharded(model))
    weights = {key.removeprefix("weight/"): pieces[key] for key in likes}
    return weights, {**optimizer.state_dict(), "state": state}
