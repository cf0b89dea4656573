"""What each thing seen on a machine means for the course, and what to do about it. Pure."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llama2_lib.doctor.machine import Machine
from llama2_lib.doctor.times import NOTEBOOK_SECONDS, REFERENCE_TOKENS_PER_SECOND, duration

GIB = 2**30
TESTED_TORCH = (2, 13)
OLDEST_TORCH = (2, 11)
INSTALL_KERNEL = "install it here: python -m ipykernel install --sys-prefix"

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fail` means that the course cannot run."""

    name: str
    status: Status
    value: str
    advice: str = ""
    """What to do about it; required unless all is well."""

    def __post_init__(self) -> None:
        if self.status != "ok" and not self.advice:
            raise ValueError(f"finding {self.name!r} is {self.status!r} and must say what to do.")


def findings(machine: Machine) -> list[Finding]:
    """Judge everything that was seen; pure."""
    value = machine.device or f"CPU ({platform.machine()}); the course needs no GPU"
    font = machine.problems.get("font", "DejaVu Sans not found")
    reinstall = "reinstall matplotlib, which brings it: pip install --force-reinstall matplotlib"
    return [
        judge_python(machine),
        judge_torch(machine),
        Finding("device", "ok", value),
        Finding("precision", "ok", f"fp32; bf16 in hardware: {machine.bf16 or 'no'}"),
        judge_threads(machine),
        judge_load(machine),
        # the nano chain may take 2 GiB, notebooks sit on top
        _amount("memory", machine.free_memory, 1.0, 3.0, "close other programs or kernels"),
        _amount(
            "disk", machine.free_disk, 0.3, 2.0,
            f"free some on the disk of {machine.artifacts}, or set LLAMA2_ARTIFACTS elsewhere",
        ),
        Finding("artifacts", "ok", f"{machine.artifacts} can be written")
        if machine.write_error is None
        else Finding(
            "artifacts", "fail", machine.write_error,
            "change the folder's owner or rights, or set LLAMA2_ARTIFACTS elsewhere",
        ),
        Finding("font", "ok", Path(machine.font).name)
        if machine.font is not None
        else Finding("font", "warn", font, reinstall),
        judge_kernel(machine),
        judge_speed(machine),
        *judge_times(machine),
    ]  # fmt: skip


def judge_python(machine: Machine) -> Finding:
    """Return the finding on the Python version."""
    value = ".".join(map(str, machine.python))
    if machine.python >= (3, 11):
        return Finding("Python", "ok", value)
    advice = "install Python 3.11 or newer, then: make course PYTHON=python3.11"
    return Finding("Python", "fail", value, advice)


def judge_torch(machine: Machine) -> Finding:
    """Return the finding on PyTorch: absent, too old, other than tested, as tested."""
    if machine.torch is None:
        value = machine.problems.get("torch", "cannot be imported")
        advice = "run make course, which installs it; look there for pip's message"
        return Finding("PyTorch", "fail", value, advice)
    major, minor, *_ = machine.torch.split(".")
    version = int(major), int(minor)
    if version < OLDEST_TORCH:
        advice = "pip install -c constraints.txt torch"
        return Finding("PyTorch", "fail", machine.torch, advice)
    if version != TESTED_TORCH:
        advice = f"tested with {TESTED_TORCH[0]}.{TESTED_TORCH[1]}: outputs may differ slightly"
        return Finding("PyTorch", "warn", machine.torch, advice)
    return Finding("PyTorch", "ok", machine.torch)


def judge_threads(machine: Machine) -> Finding:
    """Return the finding on how many of the cores PyTorch uses.

    Half of them is right where every core runs two threads: the second one adds little.
    """
    value = f"PyTorch uses {machine.threads} of {machine.cores} cores"
    if machine.threads > machine.cores:
        advice = f"set OMP_NUM_THREADS={machine.cores}: more threads than cores slow training"
        return Finding("threads", "warn", value, advice)
    if 2 * machine.threads < machine.cores:
        return Finding("threads", "warn", value, "unset OMP_NUM_THREADS to use them all")
    return Finding("threads", "ok", value)


def judge_load(machine: Machine) -> Finding:
    """Return the finding on what other programs take: threads wait for the slowest of them."""
    value = f"other programs hold {machine.load:.1f} of {machine.cores} cores"
    if machine.load < max(0.3, 0.2 * machine.cores):
        return Finding("load", "ok", value)
    advice = "close them while the course trains: the times below are for a quiet machine"
    return Finding("load", "warn", value, advice)


def _amount(name: str, free: int, fail: float, warn: float, advice: str) -> Finding:
    gib = free / GIB
    status: Status = "fail" if gib < fail else "warn" if gib < warn else "ok"
    advice = f"{warn:g} GiB are comfortable: {advice}" if status != "ok" else ""
    return Finding(name, status, f"{gib:.1f} GiB free", advice)


def judge_kernel(machine: Machine) -> Finding:
    """Return the finding on the notebooks' kernel: one that cannot start, of another Python, right.

    Two environments may link to one interpreter, so that folders are compared.
    """
    if machine.kernel is None or machine.kernel_fault is not None:
        value = machine.kernel_fault or machine.problems.get("kernel", "no kernel called python3")
        return Finding("kernel", "fail", value, INSTALL_KERNEL)
    if Path(machine.kernel).parent != Path(machine.interpreter).parent:
        advice = f"it should start this Python; {INSTALL_KERNEL}"
        return Finding("kernel", "warn", f"python3 starts {machine.kernel}", advice)
    return Finding("kernel", "ok", "python3 starts this Python")


def judge_speed(machine: Machine) -> Finding:
    """Return the finding on the two seconds of training."""
    if machine.tokens_per_second is None:
        value = machine.problems.get("speed", "training did not run")
        return Finding("speed", "fail", value, "run make test and read the first failure")
    value = f"{machine.tokens_per_second / 1000:.1f} k training tokens/s (fp32, CPU)"
    median = machine.median_tokens_per_second
    if median is not None and median < machine.tokens_per_second / 2:
        value += f", but only {median / 1000:.1f} k in the median step"
        advice = "other programs hold the cores: the times below are for a quiet machine"
        return Finding("speed", "warn", value, advice)
    return Finding("speed", "ok", value)


def judge_times(machine: Machine) -> list[Finding]:
    """Return how long the chain still takes here, and all notebooks; nothing without a speed."""
    if machine.tokens_per_second is None:
        return []
    here = REFERENCE_TOKENS_PER_SECOND / machine.tokens_per_second
    there, missing, seconds = machine.chain
    chain = f"{there} of {there + missing} stages are there"
    if missing:
        chain += f"; about {duration(seconds * here)} for the rest"
    notebooks = f"about {duration(NOTEBOOK_SECONDS * here)} to execute them all"
    return [Finding("chain", "ok", chain), Finding("notebooks", "ok", notebooks)]
