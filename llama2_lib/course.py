"""The main job: train the chain, execute the notebooks, say what was made."""

import json
import sys
import time
from pathlib import Path

import torch

from llama2_lib import pipeline, storage
from llama2_lib.claims.chain import new_prompts
from llama2_lib.config import VERSIONS
from llama2_lib.evaluation.chat_report import report, table
from llama2_lib.evaluation.judged import improvement, marks_of
from llama2_lib.recipes import nano
from llama2_lib.storage import read_metrics
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.instructions import MOST_TURNS

LAST = VERSIONS["chat"]
"""The stage at the end of the chain; all others are built on the way."""
CHAT_MODELS = {"SFT": VERSIONS["SFT"], "V5": VERSIONS["V5"], "chat model": LAST}
"""Columns of the closing table."""
N_TURNS = MOST_TURNS
"""Of its long dialogs."""
N_MARKED = 800
"""Prompts in each wording that the summary is made from."""
SUMMARY_SEED = 50
"""Other prompts than those of the claims and the notebooks."""


def run(*, device: str = "auto", notebooks: bool = True) -> int:
    """Make all that the notebooks need, then the notebooks; return how many of these failed."""
    begin = time.perf_counter()
    recipe = nano()
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
    lines = [
        "",
        f"made      a tokenizer of {pieces} pieces, a Llama 2 of {recipe.model.n_parameters:,} "
        "weights",
        f"trained   {recipe.pretrain.n_tokens:,} tokens; validation loss "
        f"{losses[-1]['validation_loss']:.3f} nats per token",
        *(
            f"recall    {name:12s} {100 * share.value:5.1f} %  "
            f"[{100 * share.low:.1f}, {100 * share.high:.1f}]  of {share.n} questions"
            for name, share in pipeline.recall(recipe).items()
        ),
        *aligned(),
        "",
        *chat_models(),
        "",
        f"time      stages {trained:.0f} s, all {total:.0f} s",
        f"where     {folder}",
        "next      make lab     (then open notebooks/00_start_here.ipynb)",
    ]
    return "\n".join(lines)


def chat_models() -> list[str]:
    """Return the table of what the finished chat model does, beside two models before it."""
    recipe = nano()
    room = min(96, recipe.model.max_seq_len // 2)
    return table({
        name: report(
            *pipeline.load(stage, recipe), make_world(recipe.corpus.world_seed),
            n=N_MARKED // 4, n_turns=N_TURNS, seed=SUMMARY_SEED, max_new_tokens=room,
        )
        for name, stage in CHAT_MODELS.items()
    })  # fmt: skip


def aligned() -> list[str]:
    """Return a line for each quality: the gold judges' marks of the chain's versions.

    Helpfulness where help is all that is asked for, safety where harm is, and how many of the
    prompts that only sound harmful are refused; on prompts that nobody asked before, first in
    wordings of training, then in others.
    """
    recipe = nano()
    loaded = {name: pipeline.load(VERSIONS[name], recipe) for name in ("SFT", "V4", "V5")}
    world, room = make_world(recipe.corpus.world_seed), min(96, recipe.model.max_seq_len // 2)
    lines = []
    for split, wordings in (("train", "known wordings"), ("held out", "new wordings")):
        prompts = new_prompts(recipe, SUMMARY_SEED, split, loaded["SFT"][1], N_MARKED).prompts
        marks = {
            name: marks_of(*model, world, prompts, max_new_tokens=room)
            for name, model in loaded.items()
        }
        kinds = marks["SFT"]
        for word, quality, rows in (
            ("helpful", "helpfulness", kinds.helpful),
            ("safe", "safety", kinds.adversarial),
            ("refused", "refuses", kinds.borderline),
        ):
            values = {name: 1.0 * getattr(each, quality)[rows] for name, each in marks.items()}
            gain = improvement(values["SFT"], values["V5"])
            means = ", ".join(f"{name} {value.mean():.3f}" for name, value in values.items())
            lines.append(
                f"{word:9s} {means}; SFT to V5 {gain.value:+.3f} [{gain.low:+.3f}, "
                f"{gain.high:+.3f}] of {gain.n} prompts, {wordings}"
            )
    return lines
