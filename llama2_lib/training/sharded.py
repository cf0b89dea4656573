"""Weights divided among the processes that torchrun started: PyTorch's FSDP2, from outside.

Each process holds a part of every weight and of its two moments (paper section 2.2 trains so, and
section 3.2.3 runs PPO so). A block's weights are gathered when it computes and dropped after it;
gradients are summed, each process keeping its part. Whatever else is done with a model (measuring,
sampling, saving) is done with a whole copy, which is gathered once and then dropped: generating
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
from llama2_lib.model.transformer import TransformerBlock

Module = TypeVar("Module", bound=nn.Module)
Moments = dict[int, dict[str, Tensor]]
"""What an optimiser keeps of every weight, by its number."""
_hollow: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""For every model that is divided, the same without numbers, to be filled."""


def shard(model: nn.Module, *parts: nn.Module) -> None:
    """Divide the weights of `model` among torchrun's processes, in place; else do nothing.

    `parts` are the modules that are called, or the model itself: each is cut block by block, the
    rest of it with its root. An optimiser is to be made after it.
    """
    mesh = parallel.mesh()
    if mesh is None:
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    parts = parts or (model,)
    for each in dict.fromkeys((model, *parts)):
        no_numbers = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
            for p in each.parameters()
        }
        _hollow[each] = copy.deepcopy(each, no_numbers)
    for part in parts:
        for module in part.modules():
            if isinstance(module, TransformerBlock):
                fully_shard(module, mesh=mesh)
        fully_shard(part, mesh=mesh)
        for name in ("hidden", "logits"):  # ways into a model beside its forward
            if hasattr(part, name):
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
    """Return a copy with all weights if they are divided, else the model itself.

    All processes must ask, as each gives its part.
    """
    if not is_sharded(model):
        return model
    full: Any = copy.deepcopy(_hollow[model])
    full.load_state_dict({n: _full(t) for n, t in model.state_dict().items()}, assign=True)
    return full.train(model.training)


def _full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def number(tensor: Tensor) -> float:
    """Return a number that may be the sum of all processes' parts."""
    return _full(tensor).item()


def folder_of_all(folder: Path, model: nn.Module) -> Path:
    """Return the folder of the first process, if all hold parts of one model; else one's own."""
    return parallel.gathered(folder)[0] if is_sharded(model) else folder


# --- checkpoints that any number of processes can read


def write(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write weights and moments into `folder`, every process its part of them."""
    from torch.distributed import checkpoint as dcp

    names = {id(p): name for name, p in model.named_parameters()}
    pieces = {f"weight/{name}": t for name, t in model.state_dict().items()}
    for weight, moments in optimizer.state.items():
        pieces |= {f"{key}/{names[id(weight)]}": t for key, t in moments.items()}
    _asked(dcp.save, pieces, storage_writer=dcp.FileSystemWriter(folder))
    if parallel.rank() == 0:
        (folder / ".metadata").rename(folder / "metadata")  # hidden files are no part of a folder
    parallel.gathered("written")


def is_written(folder: Path) -> bool:
    """Return whether `write` has written this folder."""
    return (folder / "metadata").is_file()


def read(folder: Path, model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], Moments]:
    """Return the weights and moments that some processes wrote, cut for these."""
    from torch.distributed import checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        def _get_metadata_path(self, rank: int | None = None) -> Path:
            return folder / "metadata"

    reader, weights = Reader(folder), model.state_dict()
    stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
    places = {id(p): place for place, p in enumerate(weights_of(optimizer))}
    named, pieces = dict(model.named_parameters()), dict[str, Tensor]()
    moments: Moments = {}
    for key, tensor in stored.items():
        kind, name = key.split("/", 1)
        like = weights[name]
        pieces[key] = torch.empty_like(like)
        if kind != "weight":
            if tensor.size != like.shape:
                pieces[key] = torch.empty(tensor.size, dtype=tensor.properties.dtype)
            moments.setdefault(places[id(named[name])], {})[kind] = pieces[key]
    _asked(dcp.load, pieces, storage_reader=reader, no_dist=not is_sharded(model))
    return {name: pieces[f"weight/{name}"] for name in weights}, moments


def weights_of(optimizer: Optimizer) -> list[Tensor]:
    """Return what an optimiser moves, in the order of its numbers."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def cut(tensor: Tensor, like: Any) -> Tensor:
    """Return this process's part of a whole tensor, if `like` is such a part."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def _asked(save_or_load: Any, *arguments: Any, **settings: Any) -> None:
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one is alone
            save_or_load(*arguments, **settings)
    except CheckpointException as error:  # no Exception, so that nobody would catch it
        raise OSError(next(iter(error.failures.values()))[0]) from None
