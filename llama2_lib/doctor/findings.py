"""What each thing seen on a machine means for the course, and what to do about it. Pure."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llama2_lib.doctor.estimates import duration, time_estimates
from llama2_lib.doctor.machine import Machine

GIB = 2**30
TESTED_TORCH = (2, 13)
OLDEST_TORCH = (2, 11)

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True, slots=True)
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
    return [
        judge_python(machine),
        judge_torch(machine),
        judge_device(machine),
        judge_precision(machine),
        judge_threads(machine),
        judge_memory(machine),
        judge_disk(machine),
        judge_artifacts(machine),
        judge_font(machine),
        judge_kernel(machine),
        judge_speed(machine),
        *judge_times(machine),
    ]


def judge_python(machine: Machine) -> Finding:
    """Return the finding on the Python version."""
    value = ".".join(map(str, machine.python))
    if machine.python >= (3, 11):
        return Finding(name="Python", status="ok", value=value)
    advice = "install Python 3.11 or newer, then: make course PYTHON=python3.11"
    return Finding(name="Python", status="fail", value=value, advice=advice)


def judge_torch(machine: Machine) -> Finding:
    """Return the finding on PyTorch: absent, too old, other than tested, as tested."""
    if machine.torch is None:
        value = machine.problems.get("torch", "cannot be imported")
        advice = "run make course, which installs it; look there for pip's message"
        return Finding(name="PyTorch", status="fail", value=value, advice=advice)
    major, minor, *_ = machine.torch.split(".")
    version = int(major), int(minor)
    if version < OLDEST_TORCH:
        advice = "pip install -c constraints.txt torch"
        return Finding(name="PyTorch", status="fail", value=machine.torch, advice=advice)
    if version != TESTED_TORCH:
        advice = f"tested with {TESTED_TORCH[0]}.{TESTED_TORCH[1]}: outputs may differ slightly"
        return Finding(name="PyTorch", status="warn", value=machine.torch, advice=advice)
    return Finding(name="PyTorch", status="ok", value=machine.torch)


def judge_device(machine: Machine) -> Finding:
    """Return the finding on the device; the CPU is enough."""
    value = machine.device or f"CPU ({platform.machine()}); the course needs no GPU"
    return Finding(name="device", status="ok", value=value)


def judge_precision(machine: Machine) -> Finding:
    """Return the finding on precision; the course's default is fp32 everywhere on CPU."""
    value = f"fp32; bf16 in hardware: {machine.bf16 or 'no'}"
    return Finding(name="precision", status="ok", value=value)


def judge_threads(machine: Machine) -> Finding:
    """Return the finding on how many of the cores PyTorch uses.

    Half of them is right where every core runs two threads: the second one adds little.
    """
    value = f"PyTorch uses {machine.threads} of {machine.cores} cores"
    if machine.threads > machine.cores:
        advice = f"set OMP_NUM_THREADS={machine.cores}: more threads than cores slow training"
        return Finding(name="threads", status="warn", value=value, advice=advice)
    if 2 * machine.threads < machine.cores:
        advice = "unset OMP_NUM_THREADS to use them all"
        return Finding(name="threads", status="warn", value=value, advice=advice)
    return Finding(name="threads", status="ok", value=value)


def judge_memory(machine: Machine) -> Finding:
    """Return the finding on free memory: the nano chain may take 2 GiB, notebooks sit on top."""
    return _amount(
        "memory", machine.free_memory, fail=1.0, warn=3.0, advice="close other programs or kernels"
    )


def judge_disk(machine: Machine) -> Finding:
    """Return the finding on free disk space where the artifacts go."""
    advice = f"free some on the disk of {machine.artifacts}, or set LLAMA2_ARTIFACTS elsewhere"
    return _amount("disk", machine.free_disk, fail=0.3, warn=2.0, advice=advice)


def _amount(name: str, free: int, *, fail: float, warn: float, advice: str) -> Finding:
    gib = free / GIB
    status: Status = "fail" if gib < fail else "warn" if gib < warn else "ok"
    advice = f"{warn:g} GiB are comfortable: {advice}" if status != "ok" else ""
    return Finding(name=name, status=status, value=f"{gib:.1f} GiB free", advice=advice)


def judge_artifacts(machine: Machine) -> Finding:
    """Return the finding on the folder that training writes into."""
    if machine.write_error is None:
        return Finding(name="artifacts", status="ok", value=f"{machine.artifacts} can be written")
    advice = "change the folder's owner or rights, or set LLAMA2_ARTIFACTS elsewhere"
    return Finding(name="artifacts", status="fail", value=machine.write_error, advice=advice)


def judge_font(machine: Machine) -> Finding:
    """Return the finding on the figures' font; another one works, but looks different."""
    if machine.font is not None:
        return Finding(name="font", status="ok", value=Path(machine.font).name)
    value = machine.problems.get("font", "DejaVu Sans not found")
    advice = (
        "reinstall matplotlib, which brings DejaVu Sans: pip install --force-reinstall matplotlib"
    )
    return Finding(name="font", status="warn", value=value, advice=advice)


def judge_kernel(machine: Machine) -> Finding:
    """Return the finding on the notebooks' kernel: absent, of another Python, right."""
    if machine.kernel is None:
        value = machine.problems.get("kernel", "no kernel called python3")
        advice = "install it here: python -m ipykernel install --sys-prefix"
        return Finding(name="kernel", status="fail", value=value, advice=advice)
    if machine.kernel != machine.interpreter:
        value = f"python3 starts {machine.kernel}"
        advice = "it must start this Python: python -m ipykernel install --sys-prefix"
        return Finding(name="kernel", status="warn", value=value, advice=advice)
    return Finding(name="kernel", status="ok", value="python3 starts this Python")


def judge_speed(machine: Machine) -> Finding:
    """Return the finding on the two seconds of training."""
    if machine.tokens_per_second is None:
        value = machine.problems.get("speed", "training did not run")
        advice = "run make test and read the first failure"
        return Finding(name="speed", status="fail", value=value, advice=advice)
    value = f"{machine.tokens_per_second / 1000:.1f} k training tokens/s (fp32, CPU)"
    median = machine.median_tokens_per_second
    if median is not None and median < machine.tokens_per_second / 2:
        value += f", but only {median / 1000:.1f} k in the median step"
        advice = "other programs hold the cores: the times below are for a quiet machine"
        return Finding(name="speed", status="warn", value=value, advice=advice)
    return Finding(name="speed", status="ok", value=value)


def judge_times(machine: Machine) -> list[Finding]:
    """Return one finding for each part of the course that was timed on the reference machine."""
    times = time_estimates(machine.tokens_per_second)
    return [
        Finding(name=name, status="ok", value=f"about {duration(seconds)} on this machine")
        for name, seconds in times.items()
    ]
