"""How long work takes, and how fast this machine multiplies matrices."""

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from llama2_lib.device import synchronize


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long `work` takes, with the device's queue drained."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Return the floating-point operations a second of one large matrix product."""
    size = size or (4096 if device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def median_ratio(times: Sequence[Sequence[float]]) -> float:
    """Return the median of how many times as long the second of two neighbours takes."""
    return statistics.median(other / mine for mine, other in times)


class Stopwatch:
    """Adds up the seconds of parts of a program; a part inside another counts only for itself."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed as `part`; of an iterator it takes all items at once."""

        @functools.wraps(function)
        def work(*arguments: Any, **options: Any) -> Any:
            synchronize(self.device)
            self._inside.append(0.0)
            begin = time.perf_counter()
            result = function(*arguments, **options)
            if isinstance(result, Iterator):
                result = iter(list(result))
            synchronize(self.device)
            total = time.perf_counter() - begin
            self.seconds[part] += total - self._inside.pop()
            if self._inside:
                self._inside[-1] += total
            return result

        return work

    @contextmanager
    def watching(self, *parts: tuple[Any, str, str]) -> Iterator[None]:
        """Time functions of modules for the length of a `with`: each a module, a name, a part."""
        before = [(module, name, getattr(module, name)) for module, name, _ in parts]
        for module, name, part in parts:
            setattr(module, name, self.timed(part, getattr(module, name)))
        try:
            yield
        finally:
            for module, name, function in before:
                setattr(module, name, function)
