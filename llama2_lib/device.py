"""Where the numbers live: device, precision, and the memory a process has used."""

import contextlib
import platform
import sys
import warnings
from pathlib import Path

import torch


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` takes a CUDA GPU when there is one, else the CPU.

    An Apple GPU (`mps`) is taken when it is asked for, with a warning: nothing here was tested on
    one.

    Raises:
        ValueError: The name is unknown, or a device was asked for that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device must be auto, cpu, cuda, cuda:N or mps; got {name!r}. Leave it out to let "
            "the program choose."
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name} was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA "
            "devices. Use --device cpu, or install a PyTorch build for your GPU."
        )
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(
                f"device {name} was asked for, but PyTorch sees no Apple GPU. Use --device cpu."
            )
        warnings.warn(
            "nothing in this course was tested on an Apple GPU: compare with --device cpu.",
            stacklevel=2,
        )
    elif device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be a CPU or a CUDA or Apple GPU; got {name!r}.")
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return a context in which matrix products run in `precision`, `fp32` or `bf16`.

    Weights, losses and optimiser state stay in fp32 either way.

    Raises:
        ValueError: The precision is neither of the two.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    raise ValueError(f"precision must be fp32 or bf16; got {precision!r}.")


def synchronize(device: torch.device) -> None:
    """Wait until the work queued on `device` is done, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Return the most memory this process has held, in bytes: on the GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processor() -> str:
    """Return what kind of processor adds up the numbers: the same kind gives the same bits."""
    cpuinfo = Path("/proc/cpuinfo")  # only Linux tells it there
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
