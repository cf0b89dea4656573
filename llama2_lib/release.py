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
CARD_TEXT = Path(__file__).with_name("model_card.md")
WATTS = 15
"""Of one core under load: assumed, as the machine does not tell."""


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
    metas = {
        name: json.loads((folder / storage.META).read_text(encoding="utf-8"))
        for name, folder in folders.items()
    }
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
    return CARD_TEXT.read_text(encoding="utf-8").format(
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
