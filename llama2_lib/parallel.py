"""Data parallelism: processes that hold the same weights and divide the rows of every batch.

All of them run the same stage, line by line, on the same inputs. They differ where work is divided:
`optimize` gives each its rows of a batch and adds up gradients, and what is asked of a model row by
row is asked of each in part (`shared`). PyTorch's gloo carries the sums. A single process, which is
what there is unless `pipeline.peers` starts others, divides nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_processes() -> int:
    """Return how many processes run this stage."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return dist.get_rank() if n_processes() > 1 else 0


def own_rows(batch: Any) -> Any:
    """Return every n-th row of all tensors of a named tuple, for n processes, from its own on.

    With fewer rows than processes all take the whole batch: sums and counts are then n times as
    large, and their quotient is the same.
    """
    n = n_processes()
    if n == 1 or len(batch[0]) < n:
        return batch
    return type(batch)(*(column[rank() :: n] for column in batch))


def all_rows(batch: Any) -> Any:
    """Return what `own_rows` divided: the rows of all processes, in their old order."""
    n = n_processes()
    parts: list[Any] = [None] * n
    if n == 1:
        return batch
    dist.all_gather_object(parts, tuple(batch))
    columns = []
    for column in zip(*parts, strict=True):
        whole = column[0].new_empty(sum(map(len, column)), *column[0].shape[1:])
        for number, part in enumerate(column):
            whole[number::n] = part
        columns.append(whole)
    return type(batch)(*columns)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, the same to the last bit in each."""
    if n_processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def shared(
    items: Sequence[Item], compute: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """Return `compute(items)`, of which every process computes a part; one result an item."""
    n = n_processes()
    if n == 1:
        return list(compute(items))
    parts: list[Any] = [None] * n
    own = items[rank() :: n]
    dist.all_gather_object(parts, list(compute(own)) if own else [])
    results: list[Any] = [None] * len(items)
    for number, part in enumerate(parts):
        results[number::n] = part
    return results
