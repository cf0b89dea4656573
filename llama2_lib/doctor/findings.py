"""What each thing seen on a machine means for the course, and what to do about it. Pure."""

from dataclasses import dataclass

from llama2_lib.doctor.machine import Machine
from llama2_lib.doctor.times import NOTEBOOK_SECONDS, REFERENCE_TOKENS_PER_SECOND, duration

GIB = 2**30
TESTED_TORCH = "2.13"
INSTALL_KERNEL = "install it here: python -m ipykernel install --sys-prefix"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; advice makes it a warning, or a failure: the course cannot run."""

    name: str
    value: str
    advice: str = ""
    fails: bool = False

    def __post_init__(self) -> None:
        assert self.advice or not self.fails, f"finding {self.name!r} must say what to do"

    @property
    def status(self) -> str:
        """`ok`, `warn` or `fail`."""
        return "fail" if self.fails else "warn" if self.advice else "ok"


def findings(machine: Machine) -> list[Finding]:
    """Judge everything that was seen; pure."""
    elsewhere = "or set LLAMA2_ARTIFACTS elsewhere"
    room = f"free some on the disk of {machine.artifacts}, {elsewhere}"
    return [
        _torch(machine),
        _load(machine),
        # the nano chain may take 2 GiB, notebooks sit on top
        _amount("memory", machine.free_memory, 1.0, 3.0, "close other programs or kernels"),
        _amount("disk", machine.free_disk, 0.3, 2.0, room),
        Finding("artifacts", f"{machine.artifacts} can be written")
        if (error := machine.write_error) is None
        else Finding("artifacts", error, f"change its owner or rights, {elsewhere}", fails=True),
        _kernel(machine),
        *_speed(machine),
    ]


def _torch(machine: Machine) -> Finding:
    if machine.torch is None:
        value = machine.problems.get("torch", "cannot be imported")
        advice = "run make course, which installs it; look there for pip's message"
        return Finding("PyTorch", value, advice, fails=True)
    tested = f"tested with {TESTED_TORCH}: outputs may differ slightly"
    advice = "" if machine.torch.startswith(f"{TESTED_TORCH}.") else tested
    return Finding("PyTorch", machine.torch, advice)


def _load(machine: Machine) -> Finding:
    """Threads wait for the slowest of them, so that other programs cost more than their share."""
    advice = "close them while the course trains: the times below are for a quiet machine"
    value = f"other programs hold {machine.load:.0%} of the processor"
    return Finding("load", value, advice if machine.load >= 0.2 else "")


def _amount(name: str, free: int, fail: float, warn: float, advice: str) -> Finding:
    gib = free / GIB
    advice = f"{warn:g} GiB are comfortable: {advice}" if gib < warn else ""
    return Finding(name, f"{gib:.1f} GiB free", advice, fails=gib < fail)


def _kernel(machine: Machine) -> Finding:
    if (fault := machine.kernel_fault or machine.problems.get("kernel")) is not None:
        return Finding("kernel", fault, INSTALL_KERNEL, fails=True)
    return Finding("kernel", "python3 can run the notebooks")


def _speed(machine: Machine) -> list[Finding]:
    """The speed, and with it how long the chain still takes here, and all notebooks."""
    if machine.tokens_per_second is None:
        value = machine.problems.get("speed", "training did not run")
        return [Finding("speed", value, "run make test and read the first failure", fails=True)]
    here = REFERENCE_TOKENS_PER_SECOND / machine.tokens_per_second
    there, missing, seconds = machine.chain
    chain = f"{there} of {there + missing} stages are there"
    if missing:
        chain += f"; about {duration(seconds * here)} for the rest"
    notebooks = f"about {duration(NOTEBOOK_SECONDS * here)} to execute them all"
    speed = f"{machine.tokens_per_second / 1000:.1f} k training tokens/s (fp32, CPU)"
    return [Finding("speed", speed), Finding("chain", chain), Finding("notebooks", notebooks)]
