"""The open release: one finished chain in `data/release/`, which everybody reads (section 5.3).

`make release` copies the finished stages of nano there, with a manifest, the headline numbers and a
model card. `make chain` trains the same chain anew and sets its numbers beside the released ones.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from llama2_lib import pipeline, storage
from llama2_lib.claims import headline
from llama2_lib.config import BRANCHES, VERSIONS
from llama2_lib.recipes import nano

LAST = VERSIONS["chat"]
"""The stage at the end of the chain."""
MANIFEST, NUMBERS, CARD = "manifest.json", "headline.json", "README.md"
"""Beside the stages: what belongs to the release; the headline numbers; the model card."""


def make(device: str = "auto") -> Path:
    """Train what is missing, replace the release by this code's chain, and return its folder."""
    recipe, final = nano(), storage.release_root()
    folders: dict[str, Path] = {}
    for end in (LAST, *BRANCHES):
        pipeline.artifact(end, recipe, device=device, released=False)
        folders |= pipeline.folders_of(end, recipe, released=False)
    tables = headline.headline(recipe, device=device, released=False)
    staging = final.with_name(".release")
    storage.remove(staging)
    for name, folder in folders.items():
        shutil.copytree(folder, staging / name / folder.name)
    headline.write(tables, staging / NUMBERS)
    metas = {name: _meta(staging / name / folder.name) for name, folder in folders.items()}
    (staging / CARD).write_text(card(metas, tables), encoding="utf-8")
    manifest = {
        "recipe": recipe.name,
        "stages": {
            name: {
                "fingerprint": folder.name,
                "seal": storage.file_sha256(folder / storage.META),
                "seconds": metas[name]["wall_seconds"],
            }
            for name, folder in folders.items()
        },
        "files": {name: storage.file_sha256(staging / name) for name in (CARD, NUMBERS)},
    }
    storage.write_atomically(staging / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    storage.remove(final)
    staging.rename(final)
    return final


def _meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / storage.META).read_text(encoding="utf-8"))


def faults() -> list[str]:
    """Return what makes the release no release of this code; empty: nothing.

    Every file must be as it was sealed, every stage the one that this code's settings name, and
    nothing else may lie there.
    """
    root = storage.release_root()
    path = root / MANIFEST
    if not path.is_file():
        return [f"{path} must exist; it is missing. Restore it with git, or run `make release`."]
    manifest = json.loads(path.read_text(encoding="utf-8"))
    wanted = pipeline.released_stages(nano())
    held = {name: stage["fingerprint"] for name, stage in manifest["stages"].items()}
    problems = [
        f"{name} must be {wanted.get(name)}; the release holds {held.get(name)}. Settings have "
        "changed since: run `make release`."
        for name in sorted(wanted.keys() | held.keys())
        if wanted.get(name) != held.get(name)
    ]
    for name, stage in manifest["stages"].items():
        folder = root / name / stage["fingerprint"]
        try:
            storage.read_sealed(folder, name, folder.name)
            sealed = storage.file_sha256(folder / storage.META) == stage["seal"]
        except (FileNotFoundError, storage.DamagedArtifactError) as error:
            problems.append(str(error))
            continue
        if not sealed:
            problems.append(f"{folder / storage.META} must have the seal in {MANIFEST}.")
    for name, seal in manifest["files"].items():
        if not (root / name).is_file() or storage.file_sha256(root / name) != seal:
            problems.append(f"{root / name} must have the sha256 in {MANIFEST}.")
    known = {MANIFEST, *manifest["files"], *(f"{name}/{digits}" for name, digits in held.items())}
    for path in storage.files_of(root):
        name = path.relative_to(root).as_posix()
        if name not in known and not any(name.startswith(f"{folder}/") for folder in known):
            problems.append(f"{path} must not be there: {MANIFEST} does not name it.")
    return problems


def train_beside(device: str = "auto") -> list[str]:
    """Train the whole chain anew into `artifacts/`; return its numbers beside the released ones."""
    recipe = nano()
    pipeline.artifact(LAST, recipe, device=device, released=False)
    folder = pipeline.folders_of(LAST, recipe, released=False)[LAST]
    own = headline.headline(recipe, device=device, released=False)
    return [
        *headline.beside(own, headline.read(storage.release_root() / NUMBERS)),
        "",
        f"talk to yours: llama2 chat {folder}",
    ]


# --- the model card


def card(metas: dict[str, dict[str, Any]], tables: dict[str, headline.Columns]) -> str:
    """Return the model card: what was made, from what, how it was measured, and its limits."""
    recipe = nano()
    meta = metas[LAST]
    seconds = sum(meta["wall_seconds"] for meta in metas.values())
    stages = "\n".join(
        f"| `{name}` | `{each['fingerprint']}` | {each['wall_seconds']:.0f} |"
        for name, each in metas.items()
    )
    return CARD_TEXT.format(
        recipe=recipe,
        model=recipe.model,
        processor=meta["processor"],
        processes=meta.get("processes", 1),
        versions=", ".join(f"{name} {number}" for name, number in meta["versions"].items()),
        seconds=seconds,
        energy=seconds / 3600 * WATTS * meta.get("processes", 1),
        stages=stages,
        tables="\n".join(headline.lines(tables)).strip("\n"),
    )


WATTS = 15
"""Of one core under load: assumed, as the machine does not tell."""

CARD_TEXT = """\
# Model card: the chat models of nano

Written by `make release`; do not edit it.

## What this is

Llama 2's architecture with {model.n_parameters:,} weights:
{model.n_layers} layers of width {model.dim}, {model.n_heads} heads, \
{model.n_kv_heads} for keys and values, {model.max_seq_len} tokens of context.
Trained from nothing on the documents of one invented world; with every version of the chat model
that the paper's recipe makes of it: fine-tuned, V1 to V4 by rejection sampling, V5 by PPO, then
Ghost Attention, safety context distillation and four rounds of red-teaming. Beside the last one
stand two branches: `dates` was shown dated questions, `tools` calls of tools. A folder per stage,
named after the fingerprint of its settings, holds weights in fp16, tokenizer, log, samples and the
data that the stage sampled. No weight, text or code is Meta's.

## Use

They are meant for the course: its notebooks read these files, `llama2 chat` talks to the last
model, and a replay in the tests runs the first steps of every stage again and compares. They know
one invented village and are of no other use. They must not answer anybody's questions about the
world or about themselves.

## Data

{recipe.pretrain.n_tokens:,} tokens of generated English and two invented languages in \
{model.vocab_size:,} pieces, dialogs and
comparisons of the same world: see `data/README.md`. No person is in it.

## How it was trained

{seconds:,.0f} seconds altogether on {processor}, {processes} processes of one thread; {versions}.
By the paper's formula (section 2.2.1: hours times the power limit of the device) that is
{energy:.0f} watt-hours, at 15 watts a core, which is an assumption; the paper's 70B took
1,720,320 hours at 400 watts, 688 megawatt-hours.

| stage | fingerprint | seconds |
|---|---|---|
{stages}

## What was measured

Each number with its 95 % interval. Marks of gold judges, which are programs that know the truth of
the world, lie between 0 and 1; shares are in per cent.

```text
{tables}
```

## Limits

- At temperature 1 many answers are not sentences; the notebooks show them.
- It declines harmless requests that sound dangerous, and answers some dangerous ones in words that
  it was not trained on: the rows above say how often.
- Facts that no dialog asks about are partly forgotten while it learns to chat.
- V5 ends every answer politely. In a dialog of twenty turns that fills its context before the end;
  the stages after it mend that.
- It cannot add, and finds nothing again in a text that it was given: both are at chance.
- It never says that it does not know: asked about strangers it invents, or talks of other things.
- Shown a thousand dated questions twenty times (`dates`) it tells past from future in new years,
  and hardly of new events. Shown calls of tools (`tools`) it uses those, and none only described.
- One seed. Another comes out differently, by more than these intervals, which are over prompts.

## Licence

Apache-2.0, as the rest of the course.
"""
