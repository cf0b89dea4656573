"""The manifest of `data/`: what the samples are made of, and a check that nothing drifted."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from llama2_lib.storage import file_sha256
from llama2_lib.world.demonstrations import WRITER_GRADES, demonstrations
from llama2_lib.world.dialogs import dialogs, transcript
from llama2_lib.world.documents import SHARES, documents
from llama2_lib.world.facts import World, make_world
from llama2_lib.world.lexicon import Lexicon
from llama2_lib.world.pairs import Pair, helpfulness_pairs, safety_pairs
from llama2_lib.world.prompts import (
    Prompt,
    adversarial_prompts,
    borderline_prompts,
    helpful_prompts,
)
from llama2_lib.world.tasks import SPLITS

WORLD_SEED = 0
LISTS = ("lexicon", "instructions", "look_alikes", "red_team")
"""Folders of words and templates; of those beside the lexicon no sample is made."""
SAMPLES_PER_KIND = 2
N_DIALOGS = 4
N_PROMPTS = 5
N_PAIRS = 4
N_COUNTED = 4_000


def sample_texts(world: World) -> dict[str, str]:
    """Return the committed excerpts by file name: the first documents of each kind."""
    excerpts: dict[str, list[str]] = {kind: [] for kind in SHARES}
    endless = documents(world, world.seed)
    while any(len(texts) < SAMPLES_PER_KIND for texts in excerpts.values()):
        document = next(endless)
        excerpts[document.kind].append(document.text)
    samples = {f"{kind}.txt": _listed(texts[:SAMPLES_PER_KIND]) for kind, texts in excerpts.items()}
    samples["dialogs.txt"] = _listed(map(transcript, dialogs(world, world.seed, N_DIALOGS)))
    for grade in WRITER_GRADES:
        shown = demonstrations(world, world.seed, 2 * N_DIALOGS, grade)
        samples[f"demonstrations_{grade}.txt"] = _listed(map(transcript, shown))
    samples["prompts.txt"] = _listed(
        f"[{split}] {_label(prompt)}\n{transcript(prompt.dialog)}"
        for family in (helpful_prompts, adversarial_prompts, borderline_prompts)
        for split in SPLITS
        for prompt in family(world, world.seed, N_PROMPTS, split)
    )
    samples["pairs.txt"] = _listed(
        _pair(pair)
        for stream in (helpfulness_pairs, safety_pairs)
        for pair in stream(world, world.seed, N_PAIRS)
    )
    return samples


def _listed(texts: Iterable[str]) -> str:
    return "\n\n".join(texts) + "\n"


def _label(prompt: Prompt) -> str:
    words = (prompt.kind, prompt.category, prompt.attack, prompt.hazard)
    return ", ".join(word for word in words if word)


def _pair(pair: Pair) -> str:
    labels = f" ({pair.safety_bin})" if pair.safety_bin else ""
    return "\n".join(
        [
            f"[{pair.stream}] {pair.grade}, gold gap {pair.gap:.2f}{labels}",
            transcript(pair.prompt.dialog),
            f"chosen: {pair.chosen}",
            f"rejected: {pair.rejected}",
        ]
    )


def build_manifest(world: World) -> dict[str, object]:
    """Describe the world: seed, counts, shares, and the sha256 of every list that it reads."""
    data = world.lexicon.folder.parent
    lists = [path for name in LISTS for path in sorted((data / name).rglob("*")) if path.is_file()]
    n_documents, n_characters = Counter[str](), Counter[str]()
    for document in documents(world, world.seed, N_COUNTED):
        n_documents[document.kind] += 1
        n_characters[document.kind] += len(document.text)
    total = sum(n_characters.values())
    return {
        "world_seed": world.seed,
        "counts": {name: len(getattr(world, name)) for name in ("people", "facts", "events")},
        "document_shares": SHARES,
        "counted_documents": N_COUNTED,
        "counted_characters": total,
        "character_shares": {kind: round(n_characters[kind] / total, 4) for kind in SHARES},
        "mean_characters": {
            kind: round(n_characters[kind] / n_documents[kind], 1) for kind in SHARES
        },
        "lists_sha256": {p.relative_to(data).as_posix(): file_sha256(p) for p in lists},
    }


def generated(folder: Path) -> dict[str, str]:
    """Return what belongs into a data folder beside its word lists: texts by file name."""
    world = make_world(WORLD_SEED, Lexicon(folder / "lexicon"))
    samples = {f"samples/{name}": text for name, text in sample_texts(world).items()}
    return samples | {"manifest.json": json.dumps(build_manifest(world), indent=2) + "\n"}


def write(folder: Path) -> None:
    """Write samples and manifest into a data folder that holds a lexicon."""
    (folder / "samples").mkdir(exist_ok=True)
    for name, text in generated(folder).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def check(folder: Path) -> list[str]:
    """Return what in a data folder differs from what the generators make now; empty: nothing."""
    texts = generated(folder)
    present = {f"samples/{path.name}" for path in (folder / "samples").glob("*")}
    problems = [f"{name} should not be there" for name in present - texts.keys()]
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            problems.append(f"{name} is missing or differs from what is generated")
    return sorted(problems)


def main(arguments: list[str]) -> int:
    """Run `write` or `check` on the `data/` of this checkout; 0: well, 1: differs, 2: misused."""
    folder = Path(__file__).parents[2] / "data"
    if arguments not in (["write"], ["check"]) or not folder.is_dir():
        print("usage, in a checkout with data/: python -m llama2_lib.world.manifest write|check")
        return 2
    if arguments == ["write"]:
        write(folder)
        return 0
    problems = check(folder)
    print("\n".join(problems) or "data/ is what the generators make")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
