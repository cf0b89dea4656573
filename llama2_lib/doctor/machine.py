"""Look at the machine: nothing here judges, and nothing here may stop the report."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from llama2_lib.storage import artifact_root

Result = TypeVar("Result")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What was seen. Bytes, counts and names; None where it could not be found out."""

    torch: str | None
    load: float
    """Share of the processor that other programs hold."""
    free_memory: int
    free_disk: int
    artifacts: Path
    write_error: str | None
    kernel_fault: str | None
    """Why the kernel `python3` cannot run a notebook of the course."""
    tokens_per_second: float | None
    """Training speed in fp32 on the CPU when nothing else runs."""
    chain: tuple[int, int, float]
    """Stages of nano's chain on disk, stages not there, and their seconds in `pipeline.STAGES`."""
    problems: dict[str, str] = field(default_factory=dict)
    """Probe -> message, for probes that raised."""


def inspect_machine(artifacts: Path | None = None, *, seconds: float = 2.0) -> Machine:
    """Look at everything, and at the pipeline's own folder if none is given.

    To read the speed it trains for `seconds`.
    """
    problems: dict[str, str] = {}

    def attempt(name: str, probe: Callable[[], Result]) -> Result | None:
        try:
            return probe()
        except Exception as error:  # whatever is broken here is what the report is about
            problems[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            return None

    artifacts = artifacts or artifact_root()
    load = attempt("load", _load) or 0.0  # before the speed reading adds to it
    return Machine(
        torch=attempt("torch", _torch), load=load, free_memory=attempt("memory", free_memory) or 0,
        free_disk=attempt("disk", lambda: _free_disk(artifacts)) or 0, artifacts=artifacts,
        write_error=_write_error(artifacts), kernel_fault=attempt("kernel", _kernel_fault),
        tokens_per_second=attempt("speed", lambda: training_speed(seconds)),
        chain=attempt("chain", lambda: _chain(artifacts)) or (0, 0, 0.0), problems=problems,
    )  # fmt: skip


def free_memory(cgroup: Path = CGROUP) -> int:
    """Return the free memory in bytes, within a container's limit."""
    import psutil

    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        return min(available, max(0, limit - used))
    return available


def _load() -> float:
    import psutil

    return psutil.cpu_percent(interval=0.5) / 100


def training_speed(seconds: float = 2.0) -> float:
    """Train a nano-sized Llama 2 on random tokens (fp32, CPU); return tokens per second.

    It is the rate on a quiet machine: that of the fastest step, or of the one with the least
    processor time if all were held up by other programs. The first step is not counted: it
    allocates.
    """
    import torch
    import torch.nn.functional as F

    from llama2_lib import rng
    from llama2_lib.model.config import ModelConfig
    from llama2_lib.model.transformer import Transformer, initialise

    config = ModelConfig()
    model = initialise(Transformer(config), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    source = rng.generator(0, "doctor")
    ids = torch.randint(config.vocab_size, (8, 257), generator=source)
    durations, busy = [], []
    end = time.perf_counter() + seconds
    with torch.enable_grad():  # a notebook may have switched gradients off
        while time.perf_counter() < end or len(durations) < 4:
            start, used = time.perf_counter(), time.process_time()
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            durations.append(time.perf_counter() - start)
            busy.append((time.process_time() - used) / torch.get_num_threads())
    quiet = min(*durations[1:], max(min(busy[1:]), 1e-9))
    return ids[:, 1:].numel() / quiet


def _chain(artifacts: Path) -> tuple[int, int, float]:
    from llama2_lib import pipeline
    from llama2_lib.config import VERSIONS
    from llama2_lib.recipes import nano

    last, recipe = VERSIONS["chat"], nano()
    missing = pipeline.missing(last, recipe, artifacts)
    n_stages = len(pipeline.fingerprints(last, recipe))
    seconds = sum(pipeline.STAGES[name].seconds for name in missing)
    return n_stages - len(missing), len(missing), float(seconds)


def _torch() -> str:
    import torch

    there = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if there else "the CPU; the course needs no GPU"
    return f"{torch.__version__}, on {where}"


def _free_disk(folder: Path) -> int:
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _write_error(folder: Path) -> str | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"doctor")
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    return None


def _kernel_fault() -> str | None:
    from llama2_lib.teaching.lessons.kernel import kernel_fault

    return kernel_fault()
