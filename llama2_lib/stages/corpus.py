"""The text of pretraining: documents, a tokenizer learned from them, and both as ids (section 2.1).

1. Documents come from the source: the invented world, or a folder of the reader's own.
2. A tokenizer learns pieces from the first of them and from dialogs in the chat format (2.2).
3. The corpus is encoded: BOS, the pieces of a document, EOS, one document after the other.
   Validation documents are unseen: none is a copy of a training document.
"""

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llama2_lib import storage
from llama2_lib.config import CorpusConfig
from llama2_lib.stages.fit import Report
from llama2_lib.stages.folder import FolderSource, shelf_of
from llama2_lib.stages.job import Job, unseen
from llama2_lib.text.dialog import render
from llama2_lib.text.files import Survey
from llama2_lib.text.tokenizer import Tokenizer, train_tokenizer
from llama2_lib.training.batches import PackedCorpus
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import dialogs
from llama2_lib.world.documents import Document
from llama2_lib.world.pairs import STREAMS
from llama2_lib.world.source import WorldSource

N_DOCUMENTS, N_DIALOGS = 8_000, 4_000
"""What the tokenizer learns from; more of it leaves the pieces almost as they are."""
VALIDATION_SEED = 1_000_003
"""Added to the seed of the training documents: another stream of the same source."""
MOST_TRIES = 20
"""Documents looked at for one that is unseen, on average, before it is an error."""
HELD_OUT_SHARE = 0.05
"""Share of a folder's documents that is kept for validation."""


def run_tokenizer(job: Job) -> None:
    """Train the tokenizer; leave `tokenizer.model`."""
    texts = tokenizer_texts(job.recipe.corpus)
    train_tokenizer(texts, job.recipe.tokenizer, job.folder / "tokenizer.model")


def run_corpus(job: Job) -> None:
    """Encode the corpus."""
    build_corpus(job.recipe.corpus, job.tokenizer, job.folder, job.report)


def tokenizer_texts(config: CorpusConfig) -> Iterator[str]:
    """Yield what the tokenizer learns from: some documents, and dialogs in the chat format.

    Dialogs are there so that the words of `[INST]` and its kin are pieces: `[INST]` costs three
    (bracket, word, bracket), as in the released tokenizer, which splits where scripts change.
    """
    sample = itertools.islice(training_documents(config), N_DOCUMENTS)
    yield from (document.text for document in sample)
    if config.data is None:
        for dialog in dialogs(make_world(config.world_seed), config.world_seed, N_DIALOGS):
            yield render(dialog)
    elif n := (own := FolderSource(Path(config.data))).size("dialogs"):
        yield from map(render, own.dialogs(config.world_seed, min(n, N_DIALOGS)))


def training_documents(config: CorpusConfig) -> Iterator[Document]:
    """Return the training documents in a fixed order."""
    if config.data is not None:
        return _folder(config.data)[1]
    return _stream(config, config.world_seed, config.n_documents)


def validation_documents(config: CorpusConfig, train: Iterable[Document]) -> dict[str, Document]:
    """Return documents of the same kinds by their texts, none of which `train` has."""
    if config.data is not None:
        fresh = {document.text: document for document in _folder(config.data)[0]}
        for document in train:
            fresh.pop(document.text, None)
        return fresh
    n, tries = config.n_validation, MOST_TRIES * config.n_validation
    stream = _stream(config, config.world_seed + VALIDATION_SEED, tries)
    seen = {document.text for document in train}
    return {d.text: d for d in unseen("documents", stream, n, tries, seen, lambda d: d.text)}


def _folder(data: str) -> tuple[Iterator[Document], Iterator[Document]]:
    """Return the documents of a folder: those held out, and the others."""
    held_out, train = (FolderSource(Path(data), side) for side in ("held out", "train"))
    n_held_out, n_train = held_out.size("documents"), train.size("documents")
    if n_held_out:
        return held_out.documents(0, n_held_out), train.documents(0, n_train)
    n_held_out = max(1, round(HELD_OUT_SHARE * n_train))
    return train.documents(0, n_held_out), itertools.islice(
        train.documents(0, n_train), n_held_out, None
    )


def _stream(config: CorpusConfig, seed: int, n: int) -> Iterator[Document]:
    shares = dict(config.shares) if config.shares is not None else None
    return WorldSource(make_world(config.world_seed)).documents(seed, n, shares)


def build_corpus(
    config: CorpusConfig, tokenizer: Tokenizer, folder: Path,
    report: Report = lambda done, words: None,
) -> None:  # fmt: skip
    """Write the corpus as arrays, `train.npz` and `validation.npz`.

    Every document becomes BOS, its pieces, EOS. Of a folder the ids stand beside, unpacked
    (`train.ids`): its documents are read as they are needed, and may exceed the memory.
    """
    train: Callable[[], Iterator[Document]] = partial(training_documents, config)
    if config.data is None:
        train = list(train()).__iter__  # to invent them again takes longer than to keep them
    kinds = Counter[str]()

    def counted() -> Iterator[Document]:
        for document in train():
            kinds[document.kind] += 1
            yield document

    validation = validation_documents(config, counted())
    n = kinds.total()
    if not n or not validation:
        raise ValueError(
            "a corpus needs documents to train on and others to validate with; got "
            f"{n} and {len(validation)} that are no copies of them."
        )
    if config.data is not None:
        sides = [FolderSource(Path(config.data), side) for side in ("train", "held out")]
        there, found = sum(s.size("documents") for s in sides), shelf_of(Path(config.data)).survey
        counts = {"documents": there, "left out": there - n - len(validation)}
        storage.write_atomically(folder / "counts.json", json.dumps(counts) + "\n")
        told = {"found": str(found), "not measured": not_measured(found)} | vars(found)
        storage.write_atomically(folder / "survey.json", json.dumps(told, indent=2) + "\n")
    kinds.update(document.kind for document in validation.values())

    def shown(stream: Iterator[Document]) -> Iterator[Document]:
        for number, document in enumerate(stream):
            if number % 1000 == 0:
                report(number / kinds.total(), f"{number:,} documents")
            yield document

    stream = shown(itertools.chain(train(), validation.values()))
    for name, size in (("train", n), ("validation", len(validation))):
        ids, split = folder / f"{name}.ids", itertools.islice(stream, size)
        arrays: Any = _write_ids(ids, split, tokenizer, sorted(kinds))
        if config.data is None:  # packed, so that it can be released
            dtype = _dtype(ids, arrays["offsets"])
            arrays = {"ids": np.fromfile(ids, dtype), **arrays}
            ids.unlink()
        np.savez_compressed(folder / f"{name}.npz", **arrays)
    storage.write_atomically(folder / "kinds.json", json.dumps(sorted(kinds)) + "\n")


def _write_ids(
    path: Path, split: Iterator[Document], tokenizer: Tokenizer, kinds: Sequence[str]
) -> dict[str, np.ndarray]:
    """Write the ids of documents one after the other; return what is known of each document."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    number = {kind: index for index, kind in enumerate(kinds)}
    lengths, kind_of, characters = array("q", [0]), array("b"), array("i")
    with path.open("wb") as file:
        # The tokenizer shares many texts out among the cores; lists of ids take ten times as much
        # memory as an array of them.
        while documents := list(itertools.islice(split, 1000)):
            for pieces in tokenizer.encode_batch([document.text for document in documents]):
                ids = np.array([tokenizer.bos_id, *pieces, tokenizer.eos_id], dtype)
                lengths.append(len(ids))
                ids.tofile(file)
            kind_of.extend(number[document.kind] for document in documents)
            characters.extend(len(document.text) for document in documents)
    return {
        "offsets": np.cumsum(lengths, dtype=np.int64),
        "kinds": np.array(kind_of, np.int8),
        "characters": np.array(characters, np.int32),
    }


def not_measured(survey: Survey) -> list[str]:
    """Return what is not known of a training on such a folder, in sentences."""
    sentences = [
        "there is no gold judge: gold marks and recall of facts are not measured, the learned "
        "reward models stand in, and an over-optimised one is found by nobody",
        "no annotators rank new answers: every round takes other pairs of the folder, without "
        "grades or labels of safety; zero of the safety model is the mean of held-out answers",
    ]
    streams = [stream for stream in STREAMS if survey.records[f"pairs on {stream}"]]
    if len(streams) == 1:
        sentences.append(f"all pairs are on {streams[0]}: both reward models learn from them")
    return sentences


@dataclass(frozen=True, slots=True)
class CorpusSplit:
    """One half of a corpus, as read from disk."""

    packed: PackedCorpus
    kinds: list[str]
    """Kind of each document."""
    characters: np.ndarray
    """Characters of each document."""

    def document(self, index: int) -> list[int]:
        """Return the ids of one document, BOS and EOS included."""
        begin, end = self.packed.offsets[index : index + 2]
        return self.packed.ids[begin:end].tolist()


def load_corpus(folder: Path, name: str = "train") -> CorpusSplit:
    """Read the `train` or `validation` half of a finished corpus."""
    names = json.loads((folder / "kinds.json").read_text())
    arrays = dict(np.load(folder / f"{name}.npz"))
    if "ids" not in arrays:
        path = folder / f"{name}.ids"
        arrays["ids"] = np.memmap(path, _dtype(path, arrays["offsets"]), "r")
    return CorpusSplit(
        PackedCorpus(arrays["ids"], arrays["offsets"]),
        [names[index] for index in arrays["kinds"]],
        arrays["characters"],
    )


def _dtype(path: Path, offsets: np.ndarray) -> np.dtype:
    """Return the type of ids in a file: as many bytes as there are for each."""
    return np.dtype(f"u{path.stat().st_size // offsets[-1]}")
