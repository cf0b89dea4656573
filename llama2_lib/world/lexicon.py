"""The words and templates of the world: files of `data/lexicon/`, and how to draw from them.

A file has one entry per line. A template has `{slots}`; it is compiled once and filled fast.
"""

import re
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, count
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any, TypeVar

Item = TypeVar("Item")
Writer = Callable[[Random], str]  # writes one text with the draws of the source it is given

_PACKAGE = Path(__file__).parents[1]
_SLOT = re.compile(r"\{([^{}]*)\}")
_PLAIN_SLOT = re.compile(r"\{[^|{}]*\}")
_ARTICLE = re.compile(r"^an? ", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][a-z]*")
_AGREEMENT = re.compile(r"[a-z]+\|[a-z]+")


@dataclass(frozen=True, slots=True)
class Template:
    """A text with `{slots}`.

    `{a trade}` asks for the word with its article, `{works|work}` for the form that agrees with
    a pronoun; both are ordinary keys of the values, see `with_articles` and `Person.agreement`.
    """

    text: str
    slots: tuple[str, ...] = field(init=False)
    _format: str = field(init=False, repr=False)
    _take: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        slots = tuple(_SLOT.findall(self.text))
        pieces = [piece.replace("%", "%%") for piece in _SLOT.split(self.text)[::2]]
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "_format", "%s".join(pieces))
        # itemgetter in C and %-formatting fill a template in under a microsecond
        object.__setattr__(self, "_take", itemgetter(*slots) if slots else lambda values: ())

    def fill(self, values: Mapping[str, str]) -> str:
        """Put values into the slots."""
        return self._format % self._take(values)


def without_slots(text: str) -> str:
    """Return a text with a space for every slot, but for those of agreement."""
    return _PLAIN_SLOT.sub(" ", text)


def article(word: str) -> str:
    """Return "a" or "an", whichever stands before the word."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def with_articles(**values: str) -> dict[str, str]:
    """Return values under their names and, with an article, under `a name` and `an name`."""
    filled = dict(values)
    for name, word in values.items():
        phrase = f"{article(word)} {word}"
        filled["a " + name] = filled["an " + name] = phrase
        filled["A " + name] = filled["An " + name] = capitalised(phrase)
    return filled


def capitalised(text: str) -> str:
    """Return the text with a capital first letter and the rest as it is."""
    return text[:1].upper() + text[1:]


def separator(text: str) -> str:
    """Return what stands between a text and a sentence more: a new line if it has lines."""
    return "\n" if "\n" in text else " "


def split_arrow(line: Template, file: str) -> tuple[Template, Template]:
    """Split `left => right`, both templates."""
    left, arrow, right = line.text.partition(" => ")
    if not arrow or not right:
        raise ValueError(f"{file}.txt needs left => right on this line; got: {line.text!r}")
    return Template(left), Template(right)


def pick(rng: Random, options: Sequence[Any]) -> Any:
    """Draw one option; several times faster than `random.choice`."""
    return options[int(rng.random() * len(options))]


def pick_other(rng: Random, options: Sequence[Any], taken: Any) -> Any:
    """Draw one option that is not `taken`."""
    if all(option == taken for option in options):
        raise ValueError(f"a list must hold something other than {taken!r}; add a line to it")
    while (option := pick(rng, options)) == taken:
        pass
    return option


def between(rng: Random, least: int, most: int) -> int:
    """Draw a whole number from `least` to `most`, every one equally likely."""
    return least + int((most - least + 1) * rng.random())


def chooser(shares: Mapping[Item, float], known: Sequence[Item]) -> Callable[[Random], Item]:
    """Return a function that draws a known key by its share; shares need not sum to 1."""
    least, total = min(shares.values(), default=-1), sum(shares.values())
    if not set(shares) <= set(known) or least < 0 or total <= 0:
        raise ValueError(
            f"shares must be 0 or more, not all 0, for some of {list(known)}; got {dict(shares)}"
        )
    keys = [key for key in shares if shares[key] > 0]
    if len(keys) == 1:
        return lambda rng: keys[0]
    bounds = list(accumulate(shares[key] for key in keys))
    return lambda rng: keys[min(bisect(bounds, rng.random() * bounds[-1]), len(keys) - 1)]


def check_known(name: str, value: object, known: Iterable[object]) -> None:
    """Refuse a value that is none of the known ones."""
    if value not in (listed := list(known)):
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")


def stream(n: int | None, draw: Callable[[], Item]) -> Iterator[Item]:
    """Yield n draws; `n=None` never ends."""
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more")
    return (draw() for _ in (count() if n is None else range(n)))


class Sections(dict[str, tuple[Any, ...]]):
    """The sections of one file; asking for one that is not there names the file."""

    def __init__(self, name: str, sections: dict[str, tuple[Any, ...]]) -> None:
        super().__init__(sections)
        self.name = name

    def __missing__(self, section: str) -> tuple[Any, ...]:
        raise ValueError(f"{self.name}.txt must have a section [{section}]; it has {list(self)}")


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A folder of word lists and templates. `#` starts a comment, `[name]` a section."""

    folder: Path

    def words(self, name: str, at_least: int = 2) -> tuple[str, ...]:
        """Read a list of single words, none of them twice."""
        seen: dict[str, int] = {}
        for number, line in self._lines(name):
            if not _WORD.fullmatch(line):
                raise self._error(name, number, "one word of letters", line)
            if line in seen:
                raise self._error(name, number, f"each word once (line {seen[line]} has it)", line)
            seen[line] = number
        if len(seen) < at_least:
            raise ValueError(f"{name}.txt must hold {at_least} words or more; got {len(seen)}")
        return tuple(seen)

    def sections(self, name: str) -> Sections:
        """Read the lines under each `[section]`."""
        sections = self._sections(name).items()
        return Sections(name, {key: tuple(text for _, text in lines) for key, lines in sections})

    def pairs(self, name: str, section: str | None = None) -> tuple[tuple[str, str], ...]:
        """Read lines of two words; in a file without sections, no first word comes twice."""
        lines = self._sections(name).get(section, []) if section else self._lines(name)
        pairs: dict[str, str] = {}
        for number, line in lines:
            words = line.split()
            if len(words) != 2 or not all(map(_WORD.fullmatch, words)):
                raise self._error(name, number, "two words of letters", line)
            if words[0] in pairs and section is None:
                raise self._error(name, number, "each first word once", line)
            pairs[words[0]] = words[1]
        return tuple(pairs.items())

    def templates(self, name: str, slots: Collection[str]) -> Sections:
        """Read the templates under each `[section]`; section names may hold slots, too."""
        compiled = {
            section: tuple(self._template(name, number, line, slots) for number, line in lines)
            for section, lines in self._sections(name).items()
        }
        return Sections(name, compiled)

    def prose(self, name: str) -> str:
        """Read a file as one text, without comments and slots."""
        return without_slots("\n".join(line for _, line in self._lines(name)))

    def _template(self, name: str, number: int, line: str, slots: Collection[str]) -> Template:
        template = Template(line)
        for slot in template.slots:
            if _ARTICLE.sub("", slot) not in slots and not _AGREEMENT.fullmatch(slot):
                known = " ".join(f"{{{known}}}" for known in sorted(slots))
                raise self._error(name, number, f"only the slots {known}", f"{{{slot}}} in {line}")
        if line.count("{") != len(template.slots) or line.count("}") != len(template.slots):
            raise self._error(name, number, "a } for every {", line)
        if "  " in line:
            raise self._error(name, number, "single spaces", line)
        return template

    def _sections(self, name: str) -> dict[str, list[tuple[int, str]]]:
        sections: dict[str, list[tuple[int, str]]] = {}
        current = None
        for number, line in self._lines(name):
            if line.startswith("["):
                current = line[1:-1]
                if not line.endswith("]") or not current:
                    raise self._error(name, number, "[section] with both brackets", line)
                if current in sections:
                    raise self._error(name, number, "each section once", line)
                sections[current] = []
            elif current is None:
                raise self._error(name, number, "a [section] before the first line", line)
            else:
                sections[current].append((number, line))
        empty = [section for section, lines in sections.items() if not lines]
        if empty or not sections:
            raise ValueError(f"every section of {name}.txt must hold lines; empty: {empty or name}")
        return sections

    def _lines(self, name: str) -> list[tuple[int, str]]:
        path = self.folder / f"{name}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"the lexicon needs {path}; restore it from the repository")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} must be UTF-8 text; {error}; save it again") from None
        stripped = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
        return [(number, line) for number, line in stripped if line and not line.startswith("#")]

    def _error(self, name: str, number: int, rule: str, line: str) -> ValueError:
        return ValueError(f"{name}.txt line {number} must be: {rule}; got: {line!r}; mend the line")


def lexicon_folder() -> Path:
    """Find the lexicon: `data/lexicon` beside the package, or its copy inside a wheel."""
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
