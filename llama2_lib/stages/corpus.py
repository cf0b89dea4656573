"""The pretraining corpus: documents of the world, or of a folder, as token ids (section 2.1)."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama2_lib import storage
from llama2_lib.text.sources import read_documents
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.batches import PackedCorpus
from llama2_lib.world import make_world
from llama2_lib.world.documents import SHARES, Document, documents


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """Which documents, and how many of them are kept for validation."""

    world_seed: int = 0
    n_documents: int = 40_000
    """Training documents; all there are when they come from `data`."""
    n_validation: int = 1_000
    """Validation documents, none of which is a copy of a training document."""
    shares: tuple[tuple[str, float], ...] | None = None
    """Share of documents by kind; the world's own when left out."""
    data: str | None = None
    """A folder of .txt and .jsonl files to use instead of the world."""

    def __post_init__(self) -> None:
        for name in ("n_documents", "n_validation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")


def training_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yield the training documents in a fixed order."""
    if config.data is not None:
        every = read_documents(Path(config.data))
        kept = itertools.islice(
            every, config.n_validation, config.n_validation + config.n_documents
        )
        yield from (Document("file", text, "unknown") for text in kept)
        return
    world = make_world(config.world_seed)
    shares = dict(config.shares) if config.shares is not None else SHARES
    yield from documents(world, config.world_seed, config.n_documents, shares)


def validation_documents(config: CorpusConfig, seen: set[str]) -> list[Document]:
    """Return documents of the same kinds, none of which is in `seen`, and none twice."""
    if config.data is not None:
        first = itertools.islice(read_documents(Path(config.data)), config.n_validation)
        return [Document("file", text, "unknown") for text in first if text not in seen]
    world = make_world(config.world_seed)
    shares = dict(config.shares) if config.shares is not None else SHARES
    fresh: dict[str, Document] = {}
    # Another stream of the same source; short documents repeat, so ask for more than needed.
    for document in documents(
        world, config.world_seed + 1_000_003, 20 * config.n_validation, shares
    ):
        if document.text not in seen:
            fresh.setdefault(document.text, document)
        if len(fresh) == config.n_validation:
            return list(fresh.values())
    raise ValueError(
        f"n_validation={config.n_validation} unseen documents were asked for; the world gave "
        f"{len(fresh)} in {20 * config.n_validation} tries. Ask for fewer."
    )


def build_corpus(config: CorpusConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the corpus as arrays: `train-*.npy` and `validation-*.npy`.

    Every document becomes BOS, its pieces, EOS.
    """
    train = list(training_documents(config))
    validation = validation_documents(config, {document.text for document in train})
    if not train or not validation:
        raise ValueError(
            f"a corpus needs more than n_validation={config.n_validation} documents; got "
            f"{len(train) + len(validation)}."
        )
    kinds = sorted({document.kind for document in [*train, *validation]})
    for name, split in (("train", train), ("validation", validation)):
        _write_split(folder, name, split, kinds, tokenizer)
    storage.write_atomically(folder / "kinds.json", json.dumps(kinds) + "\n")


def _write_split(
    folder: Path, name: str, split: Sequence[Document], kinds: list[str], tokenizer: Tokenizer
) -> None:
    encoded = tokenizer.encode_batch([document.text for document in split])
    lengths = np.array([len(ids) + 2 for ids in encoded], dtype=np.int64)
    offsets = np.concatenate([[0], lengths.cumsum()])
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    flat = np.empty(offsets[-1], dtype=dtype)
    flat[offsets[:-1]], flat[offsets[1:] - 1] = tokenizer.bos_id, tokenizer.eos_id
    inside = np.ones(len(flat), dtype=bool)
    inside[offsets[:-1]] = inside[offsets[1:] - 1] = False
    flat[inside] = np.fromiter(itertools.chain.from_iterable(encoded), dtype, inside.sum())
    np.save(folder / f"{name}-ids.npy", flat)
    np.save(folder / f"{name}-offsets.npy", offsets)
    number = {kind: index for index, kind in enumerate(kinds)}
    np.save(folder / f"{name}-kinds.npy", np.array([number[d.kind] for d in split], np.int8))
    np.save(folder / f"{name}-characters.npy", np.array([len(d.text) for d in split], np.int32))


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
    return CorpusSplit(
        PackedCorpus(np.load(folder / f"{name}-ids.npy"), np.load(folder / f"{name}-offsets.npy")),
        [names[index] for index in np.load(folder / f"{name}-kinds.npy")],
        np.load(folder / f"{name}-characters.npy"),
    )
