"""A folder of one's own: the door through which other data than the world's enters.

A `.txt` file is text, a line of a `.jsonl` file one object, and so is an item of the list in a
`.json` file; these may be packed, `.gz` or `.zst`. So is a row of a `.parquet` file, which takes
pyarrow (the extra hub). The shapes of an object are those in which people publish; of several it is
the first that fits:

- pairs: `chosen` and `rejected`, each a transcript ("Human: ... Assistant: ..."), a list of
  messages, or, beside a `prompt`, an answer;
- dialogs: `messages`; `instruction`, `input` and `output` (Alpaca); `prompt` and `response`;
- documents: `text`.

What the chat format cannot carry is mended or dropped, and counted. What has none of the shapes is
an error that names file and line.
"""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, TextIO

import zstandard

from llama2_lib.text.dialog import ROLES, sanitised
from llama2_lib.text.tokenizer import check_unicode
from llama2_lib.world.dialogs import Message

SUFFIXES = (".txt", ".jsonl")
LONGEST_TEXT = 2_000
"""Characters from which a `.txt` file becomes several documents: about what a model with a context
of 512 tokens sees at once."""
_BORDERS = (r"\n\s*\n", r"\n", r"(?<=[.!?])\s", r"\s")
"""Where a long text may be cut: between paragraphs, lines, sentences, words; best ones first."""
_BETWEEN = re.compile(r"\s{0,99}\n|\s?")
# Small letters: how a file is read is no setting, and would name everything that is trained.
_lists = (".json", ".parquet")
_speaker = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_shapes = (
    '"chosen" and "rejected", "messages", "instruction" and "output", "prompt" and "response", or '
    'a "text"'
)


class Record(NamedTuple):
    """One document, dialog or pair of answers."""

    kind: str
    """`documents`, `dialogs` or `pairs`."""
    dialog: list[Message]
    """A dialog that ends with an answer, or the prompt of a pair."""
    texts: list[str]
    """The text of a document; the chosen and the rejected answer of a pair."""
    is_safety: bool = False


@dataclass
class Survey:
    """What a folder holds, in numbers; filled while it is read."""

    n_files: int = 0
    records: Counter[str] = field(default_factory=Counter)
    """Documents, dialogs, pairs on helpfulness, pairs on safety."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Records that are not used, by the reason."""
    mended: Counter[str] = field(default_factory=Counter)
    """Records that were changed, by what they had."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Files that are not read, by the ending of their names."""

    def __str__(self) -> str:
        files = f"{self.n_files:,} file{'s' * (self.n_files != 1)}"
        parts = [f"{_listed(self.records) or 'nothing'} in {files}"]
        for name in ("dropped", "mended", "left_out"):
            if counts := getattr(self, name):
                parts.append(f"{name.replace('_', ' ')}: {_listed(counts)}")
        return "; ".join(parts)


def _listed(counts: Counter[str]) -> str:
    """Return counts as words, the largest first; equal ones in order of name."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n:,} {name}" for name, n in ordered)


def suffix_of(path: Path) -> str:
    """Return the ending of a name in small letters, that of the unpacked file."""
    return Path(path.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def is_safety_path(folder: Path, path: Path) -> bool:
    """Return whether a name below the folder says that its prompts may elicit unsafe answers."""
    name = str(path.relative_to(folder)).lower().replace("_", "-")
    return any(word in name for word in ("harmless", "safety", "red-team"))


def text_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are read, in order of name, but for hidden ones.

    Raises:
        FileNotFoundError: The folder has no such files.
        ValueError: It is no folder, or something else than a file has such a name.
    """
    if folder.is_file():
        raise ValueError(f"the documents must be a folder; {folder} is a file. Name its folder.")
    paths = [p for p in _visible(folder) if suffix_of(p) in SUFFIXES + _lists]
    for path in paths:
        if not path.is_file():  # reading a pipe waits for a writer, perhaps for ever
            raise ValueError(
                f"{path} must be an ordinary file; it is a pipe, a device or a broken link. "
                "Remove it."
            )
    if not paths:
        raise FileNotFoundError(
            f"{folder} must hold .txt, .jsonl, .json or .parquet files; none found."
        )
    return paths


def _visible(folder: Path) -> list[Path]:
    """Return what is no folder and not hidden."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return [p for p in paths if not any(n.startswith(".") for n in p.relative_to(folder).parts)]


def read_records(folder: Path, counts: Survey | None = None) -> Iterator[Record]:
    """Yield what a folder holds, files in order of name, and count it.

    A `.txt` file is one document; one of more than `LONGEST_TEXT` characters becomes several, see
    `cut`. A line of a `.jsonl` file is one record however long, and is read when it is asked for.
    All are UTF-8, whatever the machine's own encoding. A byte order mark at the head of a file and
    blank lines at its end are no text.

    Raises:
        FileNotFoundError: The folder has no such files.
        ValueError: A line cannot be read, a file is not UTF-8 or not whole, or a document is empty.
    """
    counts = Survey() if counts is None else counts
    paths = text_files(folder)
    others = [path for path in _visible(folder) if suffix_of(path) not in SUFFIXES + _lists]
    counts.n_files = len(paths)
    counts.left_out.update(path.suffix.lower() or "without ending" for path in others)
    for path in paths:
        safety = is_safety_path(folder, path)
        stream = " on safety" if safety else " on helpfulness"
        for record in _records(path, counts):
            counts.records[record.kind + stream * (record.kind == "pairs")] += 1
            yield record._replace(is_safety=safety)


def cut(text: str, longest: int) -> Iterator[str]:
    """Yield a text in parts of at most `longest` characters.

    A part ends between two paragraphs, or else lines, sentences, words, in its second half if it
    can; only where it would have no end at all, it ends within a word. The blank lines, the line
    end or the space between two parts are dropped.
    """
    if longest < 1:
        raise ValueError(f"longest must be at least 1 character; got {longest}.")
    start = 0
    while start < len(text):
        end = _end(text, start, start + longest)
        if text[start:end].strip():
            yield text[start:end].strip("\n")
        between = _BETWEEN.match(text, end)
        start = between.end() if between else end


def _end(text: str, start: int, most: int) -> int:
    """Return where a part that begins at `start` ends, at `most` or before."""
    if len(text) <= most:
        return len(text)
    for least in (start + (most - start) // 2, start + 1):
        for pattern in _BORDERS:
            # A border may begin where the longest part ends, and is two characters at least.
            borders = re.compile(pattern).finditer(text, least, most + 2)
            if ends := [border.start() for border in borders if border.start() <= most]:
                return ends[-1]
    return most


# --- one file


def _records(path: Path, counts: Survey) -> Iterator[Record]:
    try:
        if suffix_of(path) != ".txt":
            read = {".jsonl": _lines, ".json": partial(_items, counts=counts), ".parquet": _rows}
            rows = read[suffix_of(path)](path)
            yield from filter(None, (_record(row, where, counts) for where, row in rows))
        else:
            with _opened(path) as file:
                text = re.sub(r"\n\s*\Z", "", file.read())
            parts = list(cut(_checked(text, str(path)), LONGEST_TEXT))
            counts.mended.update(["long texts, cut into several"] if parts[1:] else [])
            yield from (Record("documents", [], [part]) for part in parts)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8; {error}. Convert it first.") from None
    except (zstandard.ZstdError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} must be a whole packed file; {error}. Pack it again.") from None


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a file as text that is unpacked while it is read, or, `.zst`, on disk before."""
    ending = path.suffix.lower()
    opener: Any = gzip.open if ending == ".gz" else open
    with opener(path, "rb") as packed, TemporaryFile() as unpacked:
        if ending == ".zst":
            unpacked.writelines(_frames(packed))
            unpacked.seek(0)
        file = unpacked if ending == ".zst" else packed
        yield io.TextIOWrapper(file, encoding="utf-8-sig")


def _frames(file: BinaryIO) -> Iterator[bytes]:
    """Yield what a `.zst` file holds; one that is cut short is an error, as in `gzip`."""
    frame = None
    while packed := file.read(2**17):
        while packed:  # several frames may follow each other, as after a concatenation
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(packed)
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends within a frame")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects line by line, each with its place: a file may exceed the memory."""
    blank = 0  # the first of the blank lines, which are harmless at the end alone
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                blank = blank or number
                continue
            where, shown = f"{path} line {blank or number}", "\n" if blank else line[:60]
            try:
                if blank:
                    raise ValueError
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{where} must be an object with {_shapes}; got {shown!r}.")
            yield where, row


def _items(path: Path, counts: Survey) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of the list in a `.json` file; one that holds something else is counted."""
    try:
        with _opened(path) as file:
            items = json.load(file)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON; {error}. Mend or remove it.") from None
    if not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
        counts.left_out[".json that is no list of objects"] += 1  # it describes other files
        return
    yield from ((f"{path} item {number}", item) for number, item in enumerate(items, start=1))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a `.parquet` file as objects, a group of them at a time."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(
            f"{path} takes pyarrow, which is not installed. Install the extra hub: "
            'pip install -e ".[hub]"'
        ) from None
    try:
        with ParquetFile(path) as file:
            rows = (row for group in file.iter_batches() for row in group.to_pylist())
            yield from ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))
    except ArrowInvalid as error:
        raise ValueError(f"{path} must be a parquet file; {error}. Fetch it again.") from None


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} must hold text; it is empty. Delete it or fill it.")
    check_unicode(text, where)
    return text


# --- one object


_Turns = list[tuple[str, str]]  # role and text of each message, as they were found


class _Dropped(Exception):
    """Says why a record is not used."""


def _record(row: dict[str, Any], where: str, counts: Survey) -> Record | None:
    """Return the record of an object; None if it is dropped, which is counted."""
    notes: set[str] = set()

    def turns(name: str, role: str = "") -> _Turns:
        return _turns(row[name], role, f'{where}: "{name}"') if row.get(name) else []

    def answered(prompt: _Turns, name: str) -> list[Message]:
        said = turns(name, "assistant") or [("assistant", "")]
        if any(role == "user" for role, _ in said):
            return _mended(said, notes)
        # The transcript of a prompt may end with "Assistant:" and nothing.
        silent = bool(prompt) and prompt[-1][0] == "assistant" and not prompt[-1][1].strip()
        return _mended([*prompt[: len(prompt) - silent], *said], notes)

    try:
        if row.keys() >= {"chosen", "rejected"}:
            prompt = turns("prompt", "user")
            record = _pair(answered(prompt, "chosen"), answered(prompt, "rejected"))
        elif "messages" in row:
            record = Record("dialogs", _mended(turns("messages"), notes), [])
        elif row.keys() >= {"instruction", "output"}:
            asked = [*turns("instruction", "user"), *turns("input", "user")]
            request = "\n\n".join(text for _, text in asked)
            record = Record("dialogs", answered([("user", request)], "output"), [])
        elif row.keys() >= {"prompt", "response"}:
            record = Record("dialogs", answered(turns("prompt", "user"), "response"), [])
        elif "text" in row:
            record = Record("documents", [], [_checked(row["text"], where)])
        else:
            shown = json.dumps(row)[:60]
            raise ValueError(f"{where} must be an object with {_shapes}; got {shown!r}.")
    except _Dropped as reason:
        counts.dropped[str(reason)] += 1
        return None
    counts.mended.update(notes)
    return record


def _turns(value: Any, role: str, where: str) -> _Turns:
    """Return the turns of a list of messages or a transcript, or a text as one of this role."""
    if isinstance(value, str):
        before, *parts = _speaker.split(value)
        if parts and not before:
            roles = {"Human": "user", "Assistant": "assistant"}
            return [(roles[who], text) for who, text in zip(parts[::2], parts[1::2], strict=True)]
        if role:
            return [(role, value)]
    given = value if isinstance(value, list) else [value]
    turns: list[Any] = [(m.get("role"), m.get("content")) for m in given if isinstance(m, dict)]
    if len(turns) < len(given) or not all(isinstance(text, str) for turn in turns for text in turn):
        raise ValueError(
            f"{where} must be {'a text, ' * bool(role)}a transcript (Human: ... Assistant: ...) or "
            f"messages of texts, role and content; got {json.dumps(value)[:60]}. Mend the line."
        )
    return turns


def _mended(turns: _Turns, notes: set[str]) -> list[Message]:
    """Return a dialog as the chat format carries it, and note what was changed for it."""
    dialog: list[Message] = []
    for role, text in turns:
        content = sanitised(text).strip()
        if content != text.strip():
            notes.add("with tags of the chat format or half characters, taken out")
        if role not in ROLES:
            raise _Dropped("with other roles than system, user and assistant")
        if role == "system" and not content:
            continue
        if not content:
            whose = "reply" if role == "assistant" else "message of the user"
            raise _Dropped(f"with an empty {whose}")
        if dialog and dialog[-1]["role"] == role:
            notes.add("with two turns of one role in a row, joined")
            dialog[-1] = {"role": role, "content": f"{dialog[-1]['content']}\n\n{content}"}
        else:
            dialog.append({"role": role, "content": content})
    roles = [message["role"] for message in dialog]
    if roles[roles[:1] == ["system"] :][:1] != ["user"] or "system" in roles[1:]:
        raise _Dropped("that do not begin with the user")
    if roles[-1] != "assistant":
        raise _Dropped("that do not end with an answer")
    return dialog


def _pair(chosen: list[Message], rejected: list[Message]) -> Record:
    """Return two answers to the prompt that both dialogs share."""
    if chosen[:-1] != rejected[:-1]:
        raise _Dropped("with prompts that differ")
    if chosen == rejected:
        raise _Dropped("with identical answers")
    return Record("pairs", chosen[:-1], [chosen[-1]["content"], rejected[-1]["content"]])
