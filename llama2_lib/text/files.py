"""Documents from files: the door through which other text than the world's enters."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from llama2_lib.text.tokenizer import check_unicode

SUFFIXES = (".txt", ".jsonl")
LONGEST_TEXT = 2_000
"""Characters from which a `.txt` file becomes several documents: about what a model with a context
of 512 tokens sees at once."""
_BORDERS = (r"\n\s*\n", r"\n", r"(?<=[.!?])\s", r"\s")
"""Where a long text may be cut: between paragraphs, lines, sentences, words; best ones first."""
_BETWEEN = re.compile(r"\s{0,99}\n|\s?")


def text_files(folder: Path) -> list[Path]:
    """Return the `.txt` and `.jsonl` files of a folder, in order of name, but for hidden ones.

    Raises:
        FileNotFoundError: The folder has no such files.
        ValueError: It is no folder, or something else than a file has such a name.
    """
    if folder.is_file():
        raise ValueError(f"the documents must be a folder; {folder} is a file. Name its folder.")
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
    visible = [p for p in paths if not any(n.startswith(".") for n in p.relative_to(folder).parts)]
    files = [path for path in visible if not path.is_dir()]
    for path in files:
        if not path.is_file():  # reading a pipe waits for a writer, perhaps for ever
            raise ValueError(f"{path} must be an ordinary file, no pipe or broken link. Remove it.")
    if not files:
        raise FileNotFoundError(f"{folder} must hold .txt or .jsonl files; none found.")
    return files


def read_documents(folder: Path) -> Iterator[str]:
    """Yield the documents of a folder, files in order of name.

    A `.txt` file is one document; one of more than `LONGEST_TEXT` characters becomes several, see
    `cut`. A line of a `.jsonl` file is an object with a `text`, which is one document however
    long. Both are UTF-8, whatever the machine's own encoding. A byte order mark at the head of a
    file and blank lines at its end are no text.

    Raises:
        FileNotFoundError: The folder has no such files.
        ValueError: A line cannot be read, a file is not UTF-8, or a document is empty.
    """
    for path in text_files(folder):
        yield from _documents(path)


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


def _documents(path: Path) -> Iterator[str]:
    try:
        if path.suffix.lower() == ".jsonl":
            yield from _lines(path)
        else:
            text = re.sub(r"\n\s*\Z", "", path.read_text(encoding="utf-8-sig"))
            yield from cut(_checked(text, str(path)), LONGEST_TEXT)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8; {error}. Convert it first.") from None


def _lines(path: Path) -> Iterator[str]:
    """Yield the texts line by line: a file may be larger than the memory."""
    blank = 0  # the first of the blank lines, which are harmless at the end alone
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                blank = blank or number
                continue
            where, shown = f"{path} line {blank or number}", "\n" if blank else line[:60]
            try:
                if blank:
                    raise ValueError
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ValueError(
                    f'{where} must be an object with a "text"; got {shown!r}.'
                ) from None
            yield _checked(text, where)


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} must hold text; it is empty. Delete it or fill it.")
    check_unicode(text, where)
    return text
