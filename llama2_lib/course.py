"""The main job: train the chain and its small grids, execute the notebooks, say what was made."""

import sys
import time
from pathlib import Path

from llama2_lib import claims, pipeline
from llama2_lib.recipes import nano
from llama2_lib.storage import read_metrics
from llama2_lib.text.tokenizer import load_tokenizer


def run(*, device: str = "auto", notebooks: bool = True) -> int:
    """Make everything that the notebooks need, then the notebooks; print a summary.

    Returns:
        0, or the number of notebooks that failed.
    """
    begin = time.perf_counter()
    recipe = nano()
    todo = pipeline.missing("pretrain", recipe)
    print(f"chain: {', '.join(todo) + ' to build' if todo else 'all on disk'}", flush=True)
    folder = pipeline.artifact("pretrain", recipe, device=device)
    grids = claims.grid_requests(recipe)
    absent = [request for request in grids if pipeline.missing(*request)]
    print(f"grids: {len(grids)} small models, {len(absent)} to train", flush=True)
    pipeline.artifacts(grids, device=device)
    trained = time.perf_counter() - begin
    failed = _notebooks() if notebooks else 0
    print(summary(folder, len(grids), trained, time.perf_counter() - begin), flush=True)
    return failed


def _notebooks() -> int:
    from llama2_lib.teaching import lessons

    faults = lessons.build(out=Path("build/course"))
    for fault in faults:
        print(fault, file=sys.stderr)
    return len(faults)


def summary(folder: Path, n_grid: int, trained: float, total: float) -> str:
    """Return the closing lines of `llama2 course`, read from what is on disk.

    Args:
        folder: The pretrained model.
        n_grid: Small models of the grids.
        trained: Seconds spent on stages.
        total: Seconds altogether.
    """
    recipe = nano()
    losses = [row for row in read_metrics(folder / "metrics.jsonl") if "validation_loss" in row]
    pieces = load_tokenizer(folder).vocab_size
    recall = pipeline.recall(recipe)
    lines = [
        "",
        f"made      a tokenizer of {pieces} pieces, a Llama 2 of {recipe.model.n_parameters:,} "
        f"weights, {n_grid} small models",
        f"trained   {recipe.pretrain.n_tokens:,} tokens; validation loss "
        f"{losses[-1]['validation_loss']:.3f} nats per token",
        *(
            f"recall    {name:12s} {100 * share.value:5.1f} %  "
            f"[{100 * share.low:.1f}, {100 * share.high:.1f}]  of {share.n} questions"
            for name, share in recall.items()
        ),
        f"time      stages {trained:.0f} s, all {total:.0f} s",
        f"where     {folder}",
        "next      make lab     (then open notebooks/00_start_here.ipynb)",
    ]
    return "\n".join(lines)
