"""The words and templates of the world: plain files in `data/lexicon/`, one entry per line."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llama2_lib.world.wording import Template, plain_slot

_PACKAGE = Path(__file__).parents[1]
_WORD = re.compile(r"[A-Za-z][a-z]*")
_AGREEMENT = re.compile(r"[a-z]+\|[a-z]+")


class Sections(dict[str, tuple[Any, ...]]):
    """The sections of one file; asking for one that is not there names the file."""

    def __init__(self, name: str, sections: dict[str, tuple[Any, ...]]) -> None:
        super().__init__(sections)
        self.name = name

    def __missing__(self, section: str) -> tuple[Any, ...]:
        raise ValueError(
            f"{self.name}.txt must have a section [{section}]; it has {list(self)}; add the section"
        )


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A folder of word lists and templates. `#` starts a comment, `[name]` a section."""

    folder: Path

    def words(self, name: str, at_least: int = 2) -> tuple[str, ...]:
        """Read a list of single words.

        Raises:
            ValueError: If a line is not one word, a word comes twice, or there are too few.
        """
        seen: dict[str, int] = {}
        for number, line in self._lines(name):
            if not _WORD.fullmatch(line):
                raise self._error(name, number, "one word of letters", line)
            if line in seen:
                raise self._error(name, number, f"each word once (line {seen[line]} has it)", line)
            seen[line] = number
        if len(seen) < at_least:
            raise ValueError(
                f"{name}.txt must hold at least {at_least} words; it holds {len(seen)}; add lines"
            )
        return tuple(seen)

    def sections(self, name: str) -> Sections:
        """Read the lines under each `[section]`."""
        numbered = self._sections(name)
        texts = {section: tuple(text for _, text in lines) for section, lines in numbered.items()}
        return Sections(name, texts)

    def pairs(self, name: str, section: str | None = None) -> tuple[tuple[str, str], ...]:
        """Read lines of two words.

        Raises:
            ValueError: If a line does not hold two words, or a first word comes twice.
        """
        lines = self._sections(name).get(section, []) if section else self._lines(name)
        found: dict[str, str] = {}
        for number, line in lines:
            words = line.split()
            if len(words) != 2 or not all(map(_WORD.fullmatch, words)):
                raise self._error(name, number, "two words of letters", line)
            if words[0] in found and section is None:
                raise self._error(name, number, "each first word once", line)
            found[words[0]] = words[1]
        return tuple(found.items())

    def templates(self, name: str, slots: Collection[str]) -> Sections:
        """Read the templates under each `[section]`; section names may hold slots, too.

        Raises:
            ValueError: If a line has a brace left open, a slot that is not in `slots`, or
                doubled spaces.
        """
        compiled = {
            section: tuple(self._template(name, number, line, slots) for number, line in lines)
            for section, lines in self._sections(name).items()
        }
        return Sections(name, compiled)

    def _template(self, name: str, number: int, line: str, slots: Collection[str]) -> Template:
        template = Template(line)
        for slot in template.slots:
            if plain_slot(slot) not in slots and not _AGREEMENT.fullmatch(slot):
                known = " ".join(f"{{{known}}}" for known in sorted(slots))
                raise self._error(name, number, f"only the slots {known}", f"{{{slot}}} in {line}")
        if line.count("{") != len(template.slots) or line.count("}") != len(template.slots):
            raise self._error(name, number, "a } for every {", line)
        if "  " in line:
            raise self._error(name, number, "single spaces", line)
        return template

    def _sections(self, name: str) -> dict[str, list[tuple[int, str]]]:
        found: dict[str, list[tuple[int, str]]] = {}
        current = None
        for number, line in self._lines(name):
            if line.startswith("["):
                current = line[1:-1]
                if not line.endswith("]") or not current:
                    raise self._error(name, number, "[section] with both brackets", line)
                if current in found:
                    raise self._error(name, number, "each section once", line)
                found[current] = []
            elif current is None:
                raise self._error(name, number, "a [section] before the first line", line)
            else:
                found[current].append((number, line))
        empty = [section for section, lines in found.items() if not lines]
        if empty or not found:
            raise ValueError(f"every section of {name}.txt must hold lines; empty: {empty or name}")
        return found

    def _lines(self, name: str) -> list[tuple[int, str]]:
        path = self.folder / f"{name}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"the lexicon needs {path}; restore it from the repository")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} must be UTF-8 text; {error}; save it again") from None
        kept = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
        return [(number, line) for number, line in kept if line and not line.startswith("#")]

    def _error(self, name: str, number: int, rule: str, line: str) -> ValueError:
        return ValueError(f"{name}.txt line {number} must be: {rule}; got: {line!r}; mend the line")


def lexicon_folder() -> Path:
    """Find the lexicon: `data/lexicon` beside the package, or its copy inside a wheel.

    Raises:
        FileNotFoundError: If neither folder exists.
    """
    places = (_PACKAGE.parent / "data" / "lexicon", _PACKAGE / "_data" / "lexicon")
    for folder in places:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the world needs its word lists; looked in {places[0]} and {places[1]}; "
        "restore the folder or install the package again"
    )


@cache
def default_lexicon() -> Lexicon:
    """Return the lexicon that comes with the course."""
    return Lexicon(lexicon_folder())
