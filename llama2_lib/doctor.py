"""`llama2 doctor`: what this machine has, what is missing, what to do, how long all will take.

Looking at the machine is kept apart from judging what was seen, so that every judgement can be
tested on machines we do not have.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llama2_lib.storage import artifact_root

Result = TypeVar("Result")
CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30
TESTED_TORCH = "2.13"
INSTALL_KERNEL = "install it here: python -m ipykernel install --sys-prefix"
# The speed reading of the machine for which `pipeline.STAGES` holds seconds: 2 cores, quiet, fp32.
REFERENCE_TOKENS_PER_SECOND = 14_200.0
NOTEBOOK_SECONDS = 480.0
"""All notebooks on that machine, two at a time."""

# --- looking: nothing here judges, and nothing here may stop the report


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
    load = attempt("load", _held_by_others) or 0.0  # before the speed reading adds to it
    return Machine(
        torch=attempt("torch", _torch_seen), load=load, artifacts=artifacts,
        free_memory=attempt("memory", free_memory) or 0,
        free_disk=attempt("disk", lambda: _free_disk(artifacts)) or 0,
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


def _held_by_others() -> float:
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


def _torch_seen() -> str:
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


# --- how long training will take


def missing(requests: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return every stage that these requests still need, each once, in order."""
    from llama2_lib import pipeline

    stages: dict[tuple[str, str], tuple[str, Any]] = {}
    for stage, recipe in requests:
        names = pipeline.fingerprints(stage, recipe)
        for name in pipeline.missing(stage, recipe):
            stages.setdefault((name, names[name]), (name, recipe))
    return list(stages.values())


def stage_seconds(stage: str, recipe: Any, tokens_per_second: float) -> float:
    """Return about how long a stage of a recipe takes on a quiet CPU with this speed reading.

    Another recipe than nano is scaled by what its pretraining costs, which is rough.
    """
    from llama2_lib.pipeline import STAGES
    from llama2_lib.recipes import nano

    def cost(recipe: Any) -> float:
        return recipe.model.n_parameters * recipe.pretrain.n_tokens

    seconds = STAGES[stage].seconds * REFERENCE_TOKENS_PER_SECOND / tokens_per_second
    made_of_text = stage in ("tokenizer", "corpus")
    return seconds * (1.0 if made_of_text else cost(recipe) / cost(nano()))


def duration(seconds: float) -> str:
    """Return a length of time as people say it, rounded as an estimate deserves."""
    if seconds < 100:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


# --- judging: pure


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
    """Judge everything that was seen."""
    elsewhere = "or set LLAMA2_ARTIFACTS elsewhere"
    room = f"free some on the disk of {machine.artifacts}, {elsewhere}"
    rights = f"change its owner or rights, {elsewhere}"
    busy = f"other programs hold {machine.load:.0%} of the processor"
    # threads wait for the slowest of them, so that other programs cost more than their share
    close = "close them while the course trains: the times below are for a quiet machine"
    fault = machine.kernel_fault or machine.problems.get("kernel", "")
    return [
        _torch(machine),
        Finding("load", busy, close if machine.load >= 0.2 else ""),
        # the nano chain may take 2 GiB, notebooks sit on top
        _amount("memory", machine.free_memory, 1.0, 3.0, "close other programs or kernels"),
        _amount("disk", machine.free_disk, 0.3, 2.0, room),
        _sound("artifacts", f"{machine.artifacts} can be written", machine.write_error, rights),
        _sound("kernel", "python3 can run the notebooks", fault, INSTALL_KERNEL),
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


def _amount(name: str, free: int, fail: float, warn: float, advice: str) -> Finding:
    gib = free / GIB
    advice = f"{warn:g} GiB are comfortable: {advice}" if gib < warn else ""
    return Finding(name, f"{gib:.1f} GiB free", advice, fails=gib < fail)


def _sound(name: str, value: str, fault: str | None, advice: str) -> Finding:
    return Finding(name, fault, advice, fails=True) if fault else Finding(name, value)


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


def report(all_findings: list[Finding]) -> str:
    """Return the table, one finding a line, advice beneath, and a verdict."""
    width = max(len(finding.name) for finding in all_findings)
    lines = []
    for finding in all_findings:
        lines.append(f"{finding.status:<4}  {finding.name:<{width}}  {finding.value}")
        if finding.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.advice}")
    failed = [finding.name for finding in all_findings if finding.status == "fail"]
    verdict = "The course can run here."
    if failed:
        verdict = f"The course cannot run here yet: {', '.join(failed)}. Follow the arrows."
    return "\n".join([*lines, "", verdict])


def main(artifacts: Path | None = None) -> int:
    """Print the report; return the exit status, 1 when the course could not run."""
    all_findings = findings(inspect_machine(artifacts))
    print(report(all_findings))
    return int(any(finding.status == "fail" for finding in all_findings))
