"""A folder of the reader's own as a source: what stages learn from in place of the world.

1. A folder is read once and laid on a shelf: a temporary file in which any record can be found.
2. A tenth of the dialogs and pairs is held out, by what the user says first, so that no prompt and
   no beginning of one is on both sides.
3. Records are drawn in an order that the seed decides, each once before any twice.

What a folder lacks is derived: dialogs are prompts with chosen answers, documents are dialogs as
text. Nobody knows the truth about them: there is no gold judge and no annotator.
"""

import json
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryFile

from llama2_lib import rng
from llama2_lib.text.dialog import Encoder, encode_example
from llama2_lib.text.files import Record, Survey, read_records, text_files
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message, transcript
from llama2_lib.world.documents import Document
from llama2_lib.world.lexicon import between, check_known
from llama2_lib.world.pairs import GRADES, STREAMS, Pair
from llama2_lib.world.prompts import Prompt
from llama2_lib.world.source import Shares, Source, WorldSource
from llama2_lib.world.tasks import Task

Key = tuple[str, str, bool]
"""Kind of a record, its side ("train" or "held out"), and whether it is on safety."""


def source_of(world_seed: int, data: str | None, side: str = "train") -> Source:
    """Return what supplies a recipe: a world, or a folder where one is named.

    `side` is that of a folder's dialogs and documents; a world has other seeds for that.
    """
    return WorldSource(make_world(world_seed)) if data is None else FolderSource(Path(data), side)


def at_most(source: Source, what: str, n: int, split: str = "train") -> int:
    """Return n, or of a folder's dialogs, documents or pairs of a stream as many as differ."""
    return min(n, source.size(what, split) or 1) if isinstance(source, FolderSource) else n


class Shelf:
    """The records of a folder, read by their places in a temporary file."""

    def __init__(self, folder: Path) -> None:
        self.survey, self.places = Survey(), dict[Key, array]()
        self._file, place = TemporaryFile(), 0  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        for record in read_records(folder, self.survey):
            opening = next((m["content"] for m in record.dialog if m["role"] == "user"), None)
            held_out = opening is not None and rng.seed_from(0, "held out", opening) % 10 == 0
            key = record.kind, "held out" if held_out else "train", record.is_safety
            self.places.setdefault(key, array("q")).append(place)
            place += self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def read(self, place: int) -> Record:
        """Return one record."""
        self._file.seek(place)
        return Record(*json.loads(self._file.readline()))


def shelf_of(folder: Path) -> Shelf:
    """Return the shelf of a folder, filled anew when a file of it has changed."""
    files = [(path, path.stat()) for path in text_files(folder)]
    return _filled(folder, tuple((p, stat.st_size, stat.st_mtime_ns) for p, stat in files))


@lru_cache(maxsize=1)
def _filled(folder: Path, _files: tuple) -> Shelf:
    return Shelf(folder)


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder as a source."""

    folder: Path
    side: str = "train"
    """Of the dialogs, and of documents that are made of them."""

    @property
    def judge(self) -> None:
        """Nobody: the learned reward models stand in."""

    def size(self, what: str, split: str = "train") -> int:
        """Return how many documents, dialogs or pairs of a stream come before one comes twice."""
        keys = self._paired(what, split) if what in STREAMS else self._keys(what)
        return sum(len(shelf_of(self.folder).places[key]) for key in keys)

    def documents(
        self, seed: int, n: int | None = None, shares: Shares = None
    ) -> Iterator[Document]:
        """Yield the texts in the order of the files, whatever the seed."""
        return islice(map(_document, self._drawn("documents", self._keys("documents"), None)), n)

    def dialogs(
        self, seed: int, n: int | None = None, grade: str = "clean", shares: Shares = None
    ) -> Iterator[list[Message]]:
        """Yield the dialogs as they come: how careful their writers are, the folder knows."""
        return islice(map(_finished, self._drawn("dialogs", self._keys("dialogs"), seed)), n)

    def prompts(
        self, seed: int, n: int | None = None, split: str = "train", shares: Shares = None
    ) -> Iterator[Prompt]:
        """Yield dialogs and pairs without their last answers, mixed as they are in the folder.

        `shares` without adversarial prompts leave those on safety out, where there are others.
        """
        keys = [*self._stated("pairs", split), *self._stated("dialogs", split)]
        if shares is not None and "adversarial" not in shares:
            keys = [key for key in keys if not key[2]] or keys
        return islice(map(_prompt, self._drawn(f"{split} prompts", keys, seed)), n)

    def pairs(
        self, stream: str, seed: int, n: int | None = None, split: str = "train"
    ) -> Iterator[Pair]:
        """Yield pairs of one stream; those of the other where the folder has none of it."""
        check_known("stream", stream, STREAMS)
        drawn = self._drawn(f"{split} pairs", self._paired(stream, split), seed)
        return islice((_pair(record, stream) for record in drawn), n)

    def _stated(self, kind: str, split: str | None = None) -> list[Key]:
        """Return the keys of a kind that the folder itself holds, on one side or both."""
        side = "train" if split == "train" else "held out"
        places = shelf_of(self.folder).places
        return [key for key in places if key[0] == kind and (split is None or key[1] == side)]

    def _keys(self, kind: str) -> list[Key]:
        """Return the keys of what is taken for documents or dialogs."""
        instead = {"documents": "dialogs", "dialogs": "pairs"}
        while kind in instead and not self._stated(kind):
            kind = instead[kind]
        return self._stated(kind, self.side)

    def _paired(self, stream: str, split: str) -> list[Key]:
        own = {key[2] for key in self._stated("pairs")} & {stream == "safety"}
        return [key for key in self._stated("pairs", split) if not own or key[2] in own]

    def _drawn(self, what: str, keys: Sequence[Key], seed: int | None) -> Iterator[Record]:
        """Yield records without end; without a seed in the order of the files."""
        shelf = shelf_of(self.folder)
        places = sorted(place for key in keys for place in shelf.places[key])
        if not places:
            raise ValueError(
                f"{self.folder} must hold {what}; there are {shelf.survey}. Add pairs (chosen, "
                "rejected) or dialogs (messages) as lines of a .jsonl file, enough that a tenth "
                "can be held out; text alone will do up to pretrain."
            )
        for epoch in count():
            order = list(places)
            if seed is not None:
                rng.random_source(seed, "folder", what, epoch).shuffle(order)
            yield from map(shelf.read, order)


def _document(record: Record) -> Document:
    if record.kind == "documents":
        return Document("file", record.texts[0], "unknown")
    return Document("dialog", transcript(_finished(record)), "unknown")


def _finished(record: Record) -> list[Message]:
    answers = record.texts[:1] if record.kind == "pairs" else []
    return [*record.dialog, *({"role": "assistant", "content": text} for text in answers)]


def _prompt(record: Record) -> Prompt:
    dialog, kind = _finished(record)[:-1], "adversarial" if record.is_safety else "talk"
    return Prompt(dialog=dialog, kind=kind, task=Task(kind=kind), is_safety=record.is_safety)


def _pair(record: Record, stream: str) -> Pair:
    chosen, rejected = record.texts
    # How clearly it was preferred, nobody says: the last grade has no margin.
    return Pair(
        prompt=_prompt(record), chosen=chosen, rejected=rejected, grade=GRADES[-1], gap=0.0,
        stream=stream,
    )  # fmt: skip


def chained(
    source: Source, seed: int, n: int, most: int, tok: Encoder, longest: int
) -> list[list[Message]]:
    """Return dialogs of one to `most` turns: one after the other, as many as `longest` tokens hold.

    System messages are left out, and of n dialogs those of which no turn fits.
    """

    def fits(dialog: list[Message]) -> bool:
        return len(encode_example(dialog, tok)[0]) <= longest

    stream, random = source.dialogs(seed), rng.random_source(seed, "chained")
    made: list[list[Message]] = []
    for _ in range(n):
        wanted, dialog = 2 * between(random, 1, most), list[Message]()
        for said in islice(stream, most):
            turns = [message for message in said if message["role"] != "system"]
            while turns and len(dialog) < wanted and fits([*dialog, *turns[:2]]):
                dialog, turns = [*dialog, *turns[:2]], turns[2:]
        made += [dialog] if dialog else []
    return made
