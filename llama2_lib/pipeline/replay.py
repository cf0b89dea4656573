"""The beginning of a finished stage, run once more: does this code still make this artifact?

A fingerprint names settings and inputs. A change of code outside the world moves none, and another
loss would be another chain under the same name. So a replay gives a stage its finished inputs, lets
it write its data, draw its samples and do its first steps, and compares what it logged and wrote
with what it did then.
"""

import math
import re
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from operator import eq
from pathlib import Path

import torch

from llama2_lib import storage
from llama2_lib.config import Recipe
from llama2_lib.device import choose_device, processor
from llama2_lib.pipeline.build import artifact
from llama2_lib.pipeline.graph import STAGES, visible_recipe
from llama2_lib.pipeline.peers import Peers
from llama2_lib.stages.job import Job
from llama2_lib.world.pairs import STREAMS

TEXTS = (".json", ".jsonl", ".gz", ".txt")
"""Files that are compared line by line, all others as one."""
ROWS = 4
"""Of the log that are made again: what stands there before the first step, and three steps."""
NEAR, TIES, SAMPLED, ALIKE = 2e-3, 0.02, 0.1, 0.9
"""On another kind of processor, where sums are rounded otherwise: the largest relative difference
of a logged number; of a count or an accuracy; of any number where samples came out otherwise; and
the smallest share of equal lines in a text file. A sample that falls the other way once is another
text from there on, and a pair of 103 that is a tie falls to either side. An AMD EPYC made nano's
stages again with differences of 1e-6, but for such pairs and samples: 2 % in an accuracy, 6 % in a
gradient (`docs/log.md`)."""
SMALL = 0.05
"""Numbers nearer to zero are compared as if they were so large."""
DECIMALS = re.compile(rb"\.\d+(e-?\d+)?")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of one replay."""

    stage: str
    seconds: float
    exact: bool
    """Whether the same bits are to be expected: the same kind of processor, the same PyTorch."""
    numbers: dict[str, tuple[float, float]]
    """Logged numbers by file, row and name: those of now and those of then."""
    lines: dict[str, tuple[int, int]]
    """Text files: lines that are as they were then, and lines there are."""

    @property
    def largest(self) -> float:
        """The largest relative difference of two numbers."""
        return max((_apart(*pair) for pair in self.numbers.values()), default=0.0)

    def differences(self) -> list[str]:
        """Return what is not as it was: exactly, or elsewhere within the bands."""
        apart = any(same < n for same, n in self.lines.values())
        alike = 1.0 if self.exact else ALIKE

        def near(name: str, then: float) -> float:
            tied = name.endswith("accuracy") or then == round(then, 0)
            return 0.0 if self.exact else SAMPLED if apart else TIES if tied else NEAR

        return [
            *(
                f"{self.stage}: {name} is {now:.8g}; it was {then:.8g}"
                for name, (now, then) in self.numbers.items()
                if not _apart(now, then) <= near(name, then)
            ),
            *(
                f"{self.stage}: {same} of {n} lines of {name} are as they were"
                for name, (same, n) in self.lines.items()
                if same < alike * n
            ),
        ]


def _apart(now: float, then: float) -> float:
    if now == then or (math.isnan(now) and math.isnan(then)):
        return 0.0
    return abs(now - then) / max(abs(then), SMALL)


def replay(
    stage: str, recipe: Recipe, *, device: str = "cpu", root: Path | None = None
) -> Replayed:
    """Run the beginning of a finished stage again, as many processes together as ran it then.

    `ROWS` of its log are compared; stages without a model are run whole. On a GPU, where one
    process does it, the bands of another processor hold: every stage is there held to what a CPU
    made. `root` is explained in `pipeline.folders_of`.
    """
    where = choose_device(device)
    begin = time.perf_counter()
    then = artifact(stage, recipe, root=root, bar=False)
    inputs = {name: artifact(name, recipe, root=root, bar=False) for name in STAGES[stage].inputs}
    meta = storage.read_sealed(then, stage, then.name)
    on_cpu, made_by = where.type == "cpu", (meta["processor"], meta["versions"]["torch"])
    same = on_cpu and made_by == (processor(), torch.__version__)
    numbers: dict[str, tuple[float, float]] = {}
    lines: dict[str, tuple[int, int]] = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        Peers(meta.get("processes", 1) if on_cpu else 1, Path(scratch)) as peers,
    ):
        for number, (log, *finished) in enumerate(_parts(stage, recipe)):
            now = Path(scratch) / f"{number}"
            now.mkdir()
            for name in finished:
                shutil.copytree(then / name, now / name)
            job = Job(visible_recipe(stage, recipe), now, inputs, where, lambda *_: None)
            peers.run(stage, recipe, job, (log, ROWS))
            numbers |= _numbers(log, now, then)
            lines |= _lines(now, then, same)
    return Replayed(stage, time.perf_counter() - begin, same, numbers, lines)


def _parts(stage: str, recipe: Recipe) -> list[tuple[str, ...]]:
    """Return the logs that a stage writes, each with the folders that are finished before."""
    if stage.startswith("rewards_"):
        first, second = STREAMS
        return [(f"{first}/metrics.jsonl",), (f"{second}/metrics.jsonl", first)]
    return [("metrics.jsonl",)]


def _numbers(log: str, now: Path, then: Path) -> dict[str, tuple[float, float]]:
    pairs = zip_longest(
        *(storage.read_metrics(folder / log)[:ROWS] for folder in (now, then)), fillvalue={}
    )
    return {
        f"{log}, row {number}, {name}": (
            float(own.get(name, math.inf)),
            float(other.get(name, math.inf)),
        )
        for number, (own, other) in enumerate(pairs)
        for name in own | other
    }


def _lines(now: Path, then: Path, exact: bool) -> dict[str, tuple[int, int]]:
    """Compare all that was written before the end, texts line by line.

    Elsewhere decimals do not count, which the log compares, nor does the order: one sample more or
    less moves all lines behind it.
    """
    found = {}
    for path in storage.files_of(now):
        name = path.relative_to(now).as_posix()
        weights = path.suffix == ".safetensors" or "step-" in name
        if path.name == "metrics.jsonl" or weights or not (then / name).is_file():
            continue
        own, other = (
            storage.read_bytes(file).splitlines() if file.suffix in TEXTS else [file.read_bytes()]
            for file in (path, then / name)
        )
        same = sum(map(eq, own, other))
        if not exact and path.suffix in TEXTS:
            texts = (Counter(DECIMALS.sub(b"", line) for line in each) for each in (own, other))
            same = (next(texts) & next(texts)).total()
        found[name] = (same, max(len(own), len(other)))
    return found
