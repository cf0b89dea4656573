"""The main job: check the released chain, execute the notebooks, measure what they stand on."""

import json
import sys
import time
from pathlib import Path

import torch

from llama2_lib import pipeline, release, storage
from llama2_lib.claims.headline import headline, lines
from llama2_lib.recipes import nano
from llama2_lib.release import LAST
from llama2_lib.storage import read_metrics
from llama2_lib.text.tokenizer import load_tokenizer


def run(*, device: str = "auto", notebooks: bool = True) -> int:
    """Make what no release holds, then the notebooks; return how many of these failed."""
    begin = time.perf_counter()
    recipe = nano()
    faults = release.faults()
    sound = f"release: {storage.release_root()} is this code's chain, and sound"
    print("\n".join(faults or [sound]))
    todo = pipeline.missing(LAST, recipe)
    print(f"chain: {', '.join(todo) + ' to build' if todo else 'all on disk'}", flush=True)
    pipeline.artifact(LAST, recipe, device=device)
    folder = pipeline.artifact("pretrain", recipe, device=device)
    trained = time.perf_counter() - begin
    failed = _notebooks() if notebooks else 0
    print(summary(folder, trained, time.perf_counter() - begin), flush=True)
    return failed


def _notebooks() -> int:
    """Execute the notebooks that were not yet, or from another lesson, library or model."""
    from llama2_lib.teaching import lessons
    from llama2_lib.teaching.lessons.source import sources

    out = Path("build/course")
    record = out / "made_from.json"
    before = json.loads(record.read_text()) if record.is_file() else {}
    now = {path.stem: _made_from(path) for path in sources(Path("notebooks"))}
    todo = [
        name
        for name in now
        if before.get(name) != now[name] or not (out / f"{name}.ipynb").is_file()
    ]
    print(f"notebooks: {len(now)}, {len(todo)} to execute", flush=True)
    if not todo:
        return 0
    faults = lessons.build(tuple(todo), out=out)
    for fault in faults:
        print(fault, file=sys.stderr)
    done = {name: now[name] for name in now if not any(f.startswith(name) for f in faults)}
    storage.write_atomically(record, json.dumps(done, indent=2) + "\n")
    return len(faults)


def _made_from(lesson: Path) -> str:
    """Return a fingerprint of all that the outputs of a notebook depend on."""
    library = Path(__file__).parent
    code = {str(p.relative_to(library)): storage.file_sha256(p) for p in library.rglob("*.py")}
    model = pipeline.fingerprint(LAST, nano())
    return storage.fingerprint([storage.file_sha256(lesson), code, model, torch.__version__])


def summary(folder: Path, trained: float, total: float) -> str:
    """Return the closing lines, read from the folder of the pretrained model and those after it.

    Seconds were `trained` spent on stages, and `total` altogether.
    """
    recipe = nano()
    losses = [row for row in read_metrics(folder / "metrics.jsonl") if "validation_loss" in row]
    pieces = load_tokenizer(folder).vocab_size
    closing = [
        "",
        f"made      a tokenizer of {pieces} pieces, a Llama 2 of {recipe.model.n_parameters:,} "
        "weights",
        f"trained   {recipe.pretrain.n_tokens:,} tokens; validation loss "
        f"{losses[-1]['validation_loss']:.3f} nats per token",
        *lines(headline(recipe)),
        "",
        f"time      stages {trained:.0f} s, all {total:.0f} s",
        f"where     {folder}",
        "next      make lab     (then open notebooks/00_start_here.ipynb)",
    ]
    return "\n".join(closing)
