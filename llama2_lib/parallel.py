"""Data parallelism: processes that hold the same weights and divide the rows of every batch.

All of them run the same stage, line by line, on the same inputs. They differ where work is divided:
`optimize` gives each its rows of a batch and adds up gradients, and what is asked of a model row by
row is asked of each in part (`shared`). PyTorch's gloo carries the sums. Outside of `joined`, and
in every other thread, a process is alone and divides nothing. Processes that torchrun started
divide the weights as well, see `training.sharded`.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = timedelta(hours=6)
"""How long a process waits for the others, which may have been stopped by hand."""
_group: ContextVar[Any] = ContextVar("group", default=None)


def available() -> bool:
    """Return whether this PyTorch can connect processes."""
    return dist.is_available() and dist.is_gloo_available()


def connect(folder: Path, rank: int, n: int) -> Any:
    """Meet the other processes that are given this folder; wait for all, and return the group.

    It is no default group of PyTorch's: a program may have one of its own. Without a network a
    machine may not know the address of its own name; this one it always has.
    """
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = PATIENCE
    return gloo(dist.FileStore(str(folder / "store"), n), rank, n, options)


@contextmanager
def joined(group: Any) -> Iterator[None]:
    """Divide work among the processes of a group within the block."""
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


@contextmanager
def torchrun(device: torch.device) -> Iterator[None]:
    """Divide work, and weights, among all processes that torchrun started with this one."""
    # What can be pickled goes through gloo, tensors through what their device has.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    with joined(dist.group.WORLD):
        yield
        gathered("done")
    dist.destroy_process_group()  # after an error it might wait for others, who wait as well


def divides_weights() -> bool:
    """Return whether the processes hold a part of the weights each: those of torchrun do."""
    group = _group.get()
    return group is not None and group is dist.group.WORLD


def n_processes() -> int:
    """Return how many processes run this stage."""
    group = _group.get()
    return 1 if group is None else group.size()


def rank() -> int:
    """Return the number of this process, from 0 on."""
    group = _group.get()
    return 0 if group is None else group.rank()


def own_rows(batch: Any) -> Any:
    """Return every n-th row of all tensors of a named tuple, for n processes, from its own on.

    With fewer rows than processes all take the whole batch: sums and counts are then n times as
    large, and their quotient is the same.
    """
    n = n_processes()
    if n == 1 or len(batch[0]) < n:
        return batch
    return type(batch)(*(column[rank() :: n] for column in batch))


def all_rows(batch: Any, n_rows: int) -> Any:
    """Return what `own_rows` divided: all `n_rows` of all processes, in their old order."""
    n = n_processes()
    if n == 1 or n_rows < n:
        return batch
    columns = []
    for column in zip(*gathered(tuple(batch)), strict=True):
        whole = column[0].new_empty(n_rows, *column[0].shape[1:])
        for number, part in enumerate(column):
            whole[number::n] = part
        columns.append(whole)
    return type(batch)(*columns)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, the same to the last bit in each."""
    if n_processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    _group.get().allreduce([flat]).wait()
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def shared(
    items: Sequence[Item], compute: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """Return `compute(items)`, of which every process computes a part; one result an item."""
    n = n_processes()
    if n == 1:
        return list(compute(items))
    own = items[rank() :: n]
    results: list[Any] = [None] * len(items)
    for number, part in enumerate(gathered(list(compute(own)) if own else [])):
        results[number::n] = part
    return results


def gathered(value: Any) -> list[Any]:
    """Return what every process gives, by rank; it must be something that can be pickled."""
    group = _group.get()
    if group is None:
        return [value]
    content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    group.allgather([lengths], [torch.tensor([len(content)])]).wait()
    longest = int(max(lengths))
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    padded = torch.cat([content, content.new_zeros(longest - len(content))])
    group.allgather([parts], [padded]).wait()
    pairs = zip(parts, lengths, strict=True)
    return [pickle.loads(part[: int(n)].numpy().tobytes()) for part, n in pairs]
