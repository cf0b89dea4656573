"""Fingerprints of what the world's code writes: a changed template or writer makes other data."""

import dataclasses
import os
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from llama2_lib import storage
from llama2_lib.recipes import Recipe
from llama2_lib.stages import corpus as corpus_stage
from llama2_lib.stages.reward import world_pairs
from llama2_lib.stages.sft import SftConfig, training_dialogs
from llama2_lib.world import make_world
from llama2_lib.world.brief import briefs
from llama2_lib.world.instructed import instructed_dialogs
from llama2_lib.world.instructions import SPLITS, instructions
from llama2_lib.world.lexicon import lexicon_folder
from llama2_lib.world.look_alikes import look_alikes
from llama2_lib.world.pairs import STREAMS
from llama2_lib.world.prompts import prompts

N_FINGERPRINTED = 512
CHAT_LEXICON = "**/*.txt"


def corpus_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what the texts depend on: the settings of the world, or the bytes of a folder."""
    config = recipe.corpus
    document: dict[str, Any] = {"world_seed": config.world_seed, "shares": config.shares}
    if config.data is not None:
        paths = sorted(p for p in Path(config.data).rglob("*") if p.suffix in (".txt", ".jsonl"))
        document["data"] = [storage.file_sha256(path) for path in paths]
        document["n_validation"] = config.n_validation  # the first documents are kept out
    else:
        document["lexicon"] = _lexicon("*.txt")
        document["text"] = _text(config)
    return document


def dialog_settings(config: SftConfig, world_seed: int) -> dict[str, Any]:
    """Return what the demonstrations depend on."""
    return {
        "world_seed": world_seed,
        "lexicon": _lexicon(CHAT_LEXICON),
        "dialogs": _dialogs(config.grade, world_seed),
    }


def preference_settings(world_seed: int) -> dict[str, Any]:
    """Return what prompts and preference pairs depend on."""
    return {
        "world_seed": world_seed,
        "lexicon": _lexicon(CHAT_LEXICON),
        "pairs": _pairs(world_seed),
    }


def instruction_settings(world_seed: int) -> dict[str, Any]:
    """Return what instructions, and dialogs that hold them, depend on."""
    return {"world_seed": world_seed, "text": _instructions(world_seed)}


def look_alike_settings(world_seed: int) -> str:
    """Return what look-alikes depend on."""
    return _look_alikes(world_seed)


@cache
def _look_alikes(world_seed: int) -> str:
    return storage.fingerprint(list(look_alikes(make_world(world_seed), 0, N_FINGERPRINTED)))


@cache
def _instructions(world_seed: int) -> str:
    world, few = make_world(world_seed), N_FINGERPRINTED // 2
    drawn = [
        dataclasses.asdict(instruction)
        for split in SPLITS
        for pair in instructions(world, 0, few, split)
        for instruction in pair
    ]
    turns = [
        [turn.request, turn.answer, turn.value, sorted(turn.others)]
        for dialog in briefs(world, 0, few)
        for turn in dialog
    ]
    return storage.fingerprint([drawn, turns, list(instructed_dialogs(world, 0, few))])


@cache
def _text(config: corpus_stage.CorpusConfig) -> str:
    few = dataclasses.replace(config, n_documents=N_FINGERPRINTED)
    first = corpus_stage.training_documents(few)
    return storage.fingerprint([document.text for document in first])


@cache
def _dialogs(grade: str, world_seed: int) -> str:
    few = SftConfig(n_dialogs=N_FINGERPRINTED, batch_size=1, seq_len=512, grade=grade)
    return storage.fingerprint(training_dialogs(few, world_seed))


@cache
def _pairs(world_seed: int) -> str:
    """What is asked, answered, judged and preferred."""
    drawn = [
        dataclasses.asdict(pair)
        for stream in STREAMS
        for pair in world_pairs(stream, world_seed, 0, N_FINGERPRINTED // 2, "train")
    ]
    asked = islice(prompts(make_world(world_seed), 0), N_FINGERPRINTED)
    return storage.fingerprint([drawn, [dataclasses.asdict(prompt) for prompt in asked]])


def _lexicon(pattern: str) -> str:
    """What the word lists hold; those of the chat lie in a folder of their own."""
    paths = sorted(lexicon_folder().glob(pattern))
    return storage.fingerprint({path.name: _sha256(path, path.stat()) for path in paths})


def _sha256(path: Path, stat: os.stat_result) -> str:
    """Every stage of a round asks for the same files: read them once while they stay the same."""
    return _read_sha256(path, stat.st_mtime_ns, stat.st_size)


@cache
def _read_sha256(path: Path, mtime_ns: int, size: int) -> str:
    return storage.file_sha256(path)
