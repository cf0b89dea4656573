"""`llama2 doctor`: what this machine has, what is missing, what to do, how long all will take."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llama2_lib.storage import artifact_root

CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30
TESTED_TORCH = "2.13"
# The speed reading of the machine for which `pipeline.STAGES` holds seconds: 2 cores, quiet, fp32.
REFERENCE_TOKENS_PER_SECOND = 14_200.0
NOTEBOOK_SECONDS = 480.0
"""All notebooks on that machine, two at a time."""


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    value: str
    status: str
    """`ok`, `warn` or `fail`: the course cannot run."""
    advice: str
    """What to do; nothing where all is well."""


def findings(artifacts: Path | None = None, *, seconds: float = 2.0) -> list[Finding]:
    """Look at everything, and at the pipeline's own folder if none is given.

    To read the speed it trains for `seconds`. A look that raises has failed, and stops no other.
    """
    folder = artifacts or artifact_root()
    elsewhere = "or set LLAMA2_ARTIFACTS elsewhere"
    looks = {
        "PyTorch": (_torch, "run make course, which installs it; look there for pip's message"),
        # before the speed reading adds to it; threads wait for the slowest of them
        "load": (_load, "close them while the course trains: the times are for a quiet machine"),
        # the nano chain may take 2 GiB, notebooks sit on top
        "memory": (lambda: _amount(free_memory(), 1, 3), "close other programs or kernels"),
        "disk": (
            lambda: _amount(_free_disk(folder), 0.3, 2),
            f"free some on the disk of {folder}, {elsewhere}",
        ),
        "artifacts": (partial(_written, folder), f"change its owner or rights, {elsewhere}"),
        "kernel": (_kernel, "install it here: python -m ipykernel install --sys-prefix"),
        "speed": (partial(_speed, folder, seconds), "run make test and read the first failure"),
    }
    found = []
    for name, (look, advice) in looks.items():
        try:
            value, status = look()
        except Exception as error:  # whatever is broken here is what the report is about
            value, status = f"{type(error).__name__}: {error}".splitlines()[0], "fail"
        found.append(Finding(name, value, status, advice if status != "ok" else ""))
    return found


def _torch() -> tuple[str, str]:
    import torch

    there = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if there else "the CPU; the course needs no GPU"
    value = f"{torch.__version__}, on {where}"
    if torch.__version__.startswith(f"{TESTED_TORCH}."):
        return value, "ok"
    return f"{value}; tested with {TESTED_TORCH}, outputs may differ slightly", "warn"


def _load() -> tuple[str, str]:
    import psutil

    share = psutil.cpu_percent(interval=0.5) / 100
    value = f"other programs hold {share:.0%} of the processor"
    return value, "warn" if share >= 0.2 else "ok"


def _amount(free: int, least: float, comfortable: float) -> tuple[str, str]:
    gib = free / GIB
    value = f"{gib:.1f} GiB free; {comfortable:g} GiB are comfortable"
    return value, "fail" if gib < least else "warn" if gib < comfortable else "ok"


def free_memory(cgroup: Path = CGROUP) -> int:
    """Return the free memory in bytes, within a container's limit."""
    import psutil

    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        return min(available, max(0, limit - used))
    return available


def _free_disk(folder: Path) -> int:
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _written(folder: Path) -> tuple[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"doctor")
    return f"{folder} can be written", "ok"


def _kernel() -> tuple[str, str]:
    from llama2_lib.teaching.lessons.kernel import kernel_fault

    fault = kernel_fault()
    return (fault, "fail") if fault else ("python3 can run the notebooks", "ok")


def _speed(artifacts: Path, seconds: float) -> tuple[str, str]:
    """The speed, and with it how long all notebooks take, and what the chain still lacks."""
    from llama2_lib import pipeline
    from llama2_lib.config import VERSIONS
    from llama2_lib.recipes import nano

    speed = training_speed(seconds)
    here = REFERENCE_TOKENS_PER_SECOND / speed
    value = (
        f"{speed / 1000:.1f} k training tokens/s (fp32, CPU); about "
        f"{duration(NOTEBOOK_SECONDS * here)} to execute all notebooks"
    )
    if absent := pipeline.missing(VERSIONS["chat"], nano(), artifacts):
        rest = here * sum(pipeline.STAGES[name].seconds for name in absent)
        value += f", and {duration(rest)} to train {len(absent)} missing stages"
    return value, "ok"


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


# --- what is said


def report(found: Sequence[Finding]) -> str:
    """Return the table, one finding a line, advice beneath, and a verdict."""
    width = max(len(finding.name) for finding in found)
    lines = []
    for finding in found:
        lines.append(f"{finding.status:<4}  {finding.name:<{width}}  {finding.value}")
        lines += [f"{'':<{width + 6}}  -> {finding.advice}"] if finding.advice else []
    failed = [finding.name for finding in found if finding.status == "fail"]
    verdict = "The course can run here."
    if failed:
        verdict = f"The course cannot run here yet: {', '.join(failed)}. Follow the arrows."
    return "\n".join([*lines, "", verdict])


def main(artifacts: Path | None = None) -> int:
    """Print the report; return the exit status, 1 when the course could not run."""
    found = findings(artifacts)
    print(report(found))
    return int(any(finding.status == "fail" for finding in found))
