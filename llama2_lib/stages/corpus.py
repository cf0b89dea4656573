"""The text of pretraining: documents, a tokenizer learned from them, and both as ids (section 2.1).

1. Documents come from the source: the invented world, or a folder of the reader's own.
2. A tokenizer learns pieces from the first of them and from dialogs in the chat format (2.2).
3. The corpus is encoded: BOS, the pieces of a document, EOS, one document after the other.
   Validation documents are unseen: none is a copy of a training document.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama2_lib import storage
from llama2_lib.config import CorpusConfig
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
    build_corpus(job.recipe.corpus, job.tokenizer, job.folder)


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
        return iter(_folder(config.data)[1])
    return _stream(config, config.world_seed, config.n_documents)


def validation_documents(config: CorpusConfig, seen: set[str]) -> list[Document]:
    """Return documents of the same kinds, none of which is in `seen`, and none twice."""
    if config.data is not None:
        fresh = {d.text: d for d in _folder(config.data)[0] if d.text not in seen}
        return list(fresh.values())
    n, tries = config.n_validation, MOST_TRIES * config.n_validation
    stream = _stream(config, config.world_seed + VALIDATION_SEED, tries)
    return unseen("documents", stream, n, tries, seen, lambda document: document.text)


def _folder(data: str) -> tuple[list[Document], list[Document]]:
    """Return the documents of a folder: those held out, and the others."""
    sources = [FolderSource(Path(data), side) for side in ("held out", "train")]
    held_out, train = (list(each.documents(0, each.size("documents"))) for each in sources)
    n_held_out = 0 if held_out else max(1, round(HELD_OUT_SHARE * len(train)))
    return held_out or train[:n_held_out], train[n_held_out:]


def _stream(config: CorpusConfig, seed: int, n: int) -> Iterator[Document]:
    shares = dict(config.shares) if config.shares is not None else None
    return WorldSource(make_world(config.world_seed)).documents(seed, n, shares)


def build_corpus(config: CorpusConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the corpus as arrays, `train.npz` and `validation.npz`.

    Every document becomes BOS, its pieces, EOS.
    """
    train = list(training_documents(config))
    validation = validation_documents(config, {document.text for document in train})
    if not train or not validation:
        raise ValueError(
            "a corpus needs documents to train on and others to validate with; got "
            f"{len(train)} and {len(validation)} that are no copies of them."
        )
    if config.data is not None:
        sides = [FolderSource(Path(config.data), side) for side in ("train", "held out")]
        n, found = sum(s.size("documents") for s in sides), shelf_of(Path(config.data)).survey
        counts = {"documents": n, "left out": n - len(train) - len(validation)}
        storage.write_atomically(folder / "counts.json", json.dumps(counts) + "\n")
        told = {"found": str(found), "not measured": not_measured(found)} | vars(found)
        storage.write_atomically(folder / "survey.json", json.dumps(told, indent=2) + "\n")
    kinds = sorted({document.kind for document in [*train, *validation]})
    number = {kind: index for index, kind in enumerate(kinds)}
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    for name, split in (("train", train), ("validation", validation)):
        ids = [
            np.array([tokenizer.bos_id, *pieces, tokenizer.eos_id], dtype)
            for begin in range(0, len(split), 1000)  # lists of ids take ten times as much memory
            for pieces in tokenizer.encode_batch([d.text for d in split[begin : begin + 1000]])
        ]
        np.savez_compressed(
            folder / f"{name}.npz",
            ids=np.concatenate(ids),
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            kinds=np.array([number[d.kind] for d in split], np.int8),
            characters=np.array([len(d.text) for d in split], np.int32),
        )
    storage.write_atomically(folder / "kinds.json", json.dumps(kinds) + "\n")


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
    characters: np.ndarray
    """How many each document has."""

    def document(self, index: int) -> list[int]:
        """Return the ids of one document, BOS and EOS included."""
        begin, end = self.packed.offsets[index : index + 2]
        return self.packed.ids[begin:end].tolist()


def load_corpus(folder: Path, name: str = "train") -> CorpusSplit:
    """Read the `train` or `validation` half of a finished corpus."""
    names = json.loads((folder / "kinds.json").read_text())
    arrays = np.load(folder / f"{name}.npz")
    return CorpusSplit(
        PackedCorpus(arrays["ids"], arrays["offsets"]),
        [names[index] for index in arrays["kinds"]],
        arrays["characters"],
    )
