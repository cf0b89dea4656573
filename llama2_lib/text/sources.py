"""Documents from files: the door through which other text than the world's enters."""

import json
from collections.abc import Iterator
from pathlib import Path


def read_documents(folder: Path) -> Iterator[str]:
    """Yield the documents of a folder, files in order of name.

    A `.txt` file is one document; a line of a `.jsonl` file is an object with a `text`. Both are
    UTF-8, whatever the machine's own encoding.

    Raises:
        FileNotFoundError: The folder has no such files.
        ValueError: A line cannot be read, a file is not UTF-8, or a document is empty.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder} must hold .txt or .jsonl files; none found.")
    for path in paths:
        try:
            if path.suffix == ".txt":
                yield _checked(path.read_text(encoding="utf-8"), str(path))
            else:
                yield from _lines(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be UTF-8; {error}. Convert it first.") from None


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path} line {number}"
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f'{where} must be an object with a "text"; got {line[:60]!r}.'
                ) from None
            yield _checked(text, where)


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} must hold text; it is empty. Delete it or fill it.")
    return text
