"""Look at the machine: nothing here judges, and nothing here may stop the report."""

import contextlib
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from llama2_lib.storage import artifact_root

Result = TypeVar("Result")
CGROUP = Path("/sys/fs/cgroup")
CPU_BF16 = {"AMX": "amx_bf16", "AVX512_BF16": "avx512_bf16", "Arm BF16": "bf16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What was seen. Bytes, counts and names; None where it could not be found out."""

    python: tuple[int, int, int]
    torch: str | None
    device: str | None
    """Name and capability of the CUDA GPU."""
    bf16: str | None
    """What makes bfloat16 fast here: `AMX`, `AVX512_BF16`, `CUDA`."""
    cores: int
    threads: int
    load: float
    """Cores that other programs hold."""
    free_memory: int
    free_disk: int
    artifacts: Path
    write_error: str | None
    font: str | None
    kernel: str | None
    """Interpreter that the `python3` kernel starts."""
    kernel_fault: str | None
    """Why it cannot start a notebook of the course."""
    interpreter: str
    tokens_per_second: float | None
    """Training speed in fp32 on the CPU when nothing else runs."""
    median_tokens_per_second: float | None
    """Training speed of the median step; far lower when other programs hold the cores."""
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
    load = attempt("load", held_cores) or 0.0  # before the speed reading adds to it
    fastest, median = attempt("speed", lambda: training_speed(seconds)) or (None, None)
    torch_version, threads = attempt("torch", _torch) or (None, 1)
    kernel, kernel_fault = attempt("kernel", _kernel) or (None, None)
    return Machine(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        torch=torch_version, device=attempt("device", _cuda_device),
        bf16=attempt("bf16", _bf16_hardware), cores=usable_cores(), threads=threads, load=load,
        free_memory=attempt("memory", free_memory) or 0,
        free_disk=attempt("disk", lambda: _free_disk(artifacts)) or 0, artifacts=artifacts,
        write_error=_write_error(artifacts), font=attempt("font", _font), kernel=kernel,
        kernel_fault=kernel_fault, interpreter=sys.executable, tokens_per_second=fastest,
        median_tokens_per_second=median,
        chain=attempt("chain", lambda: _chain(artifacts)) or (0, 0, 0.0), problems=problems,
    )  # fmt: skip


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Return how many cores this process may use: affinity, and a container's quota."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else (os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):  # without a limit it says "max", no number
        quota, period = map(int, (cgroup / "cpu.max").read_text().split())
        return min(cores, max(1, math.ceil(quota / period)))
    return cores


def free_memory(cgroup: Path = CGROUP) -> int:
    """Return the free memory in bytes, within a container's limit."""
    import psutil

    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        return min(available, max(0, limit - used))
    return available


def held_cores(seconds: float = 0.5) -> float:
    """Return how many cores other programs hold, on average over a moment."""
    import psutil

    return psutil.cpu_percent(interval=seconds) / 100 * (psutil.cpu_count() or 1)


def training_speed(seconds: float = 2.0) -> tuple[float, float]:
    """Train a nano-sized Llama 2 on random tokens (fp32, CPU); return two rates.

    They are tokens per second on a quiet machine, and of the median step as it went. The first is
    that of the fastest step, or of the one with the least processor time if all were held up by
    other programs. The first step is not counted: it allocates.
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
    return ids[:, 1:].numel() / quiet, ids[:, 1:].numel() / statistics.median(durations[1:])


def _chain(artifacts: Path) -> tuple[int, int, float]:
    from llama2_lib import pipeline
    from llama2_lib.config import VERSIONS
    from llama2_lib.recipes import nano

    last, recipe = VERSIONS["chat"], nano()
    missing = pipeline.missing(last, recipe, artifacts)
    n_stages = len(pipeline.fingerprints(last, recipe))
    seconds = sum(pipeline.STAGES[name].seconds for name in missing)
    return n_stages - len(missing), len(missing), float(seconds)


def _torch() -> tuple[str, int]:
    import torch

    return torch.__version__, torch.get_num_threads()


def _cuda_device() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    gpu = torch.cuda.get_device_properties()
    memory = gpu.total_memory / 2**30
    return f"{gpu.name} (capability {gpu.major}.{gpu.minor}, {memory:.0f} GiB)"


def _bf16_hardware() -> str | None:
    """Emulated bf16 is slower than fp32, so only hardware counts."""
    import torch

    cuda = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    on_cpu = [label for label, key in CPU_BF16.items() if capabilities.get(key)]
    return ", ".join([*(["CUDA"] if cuda else []), *on_cpu]) or None


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


def _font() -> str:
    from matplotlib.font_manager import findfont

    return str(findfont("DejaVu Sans", fallback_to_default=False))


def _kernel() -> tuple[str | None, str | None]:
    from llama2_lib.teaching.lessons.kernel import kernel_fault, kernel_interpreter

    fault = kernel_fault()
    return (kernel_interpreter(), None) if fault is None else (None, fault)
