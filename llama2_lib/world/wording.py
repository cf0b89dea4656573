"""Templates with slots, compiled once and filled fast."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from random import Random
from typing import Any

_SLOT = re.compile(r"\{([^{}]*)\}")
_ARTICLE = re.compile(r"^an? ", re.IGNORECASE)


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


def plain_slot(slot: str) -> str:
    """Return a slot's name without the article it asks for."""
    return _ARTICLE.sub("", slot)


def article(word: str) -> str:
    """Return "a" or "an", whichever stands before the word."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def with_articles(**values: str) -> dict[str, str]:
    """Return values under their names and, with an article, under `a name` and `an name`.

    An underscore in a name becomes a space, so `other_spot` fills `{other spot}`.
    """
    filled = {}
    for key, word in values.items():
        name = key.replace("_", " ")
        phrase = f"{article(word)} {word}"
        filled[name] = word
        filled["a " + name] = filled["an " + name] = phrase
        filled["A " + name] = filled["An " + name] = capitalised(phrase)
    return filled


def capitalised(text: str) -> str:
    """Return the text with a capital first letter and the rest as it is."""
    return text[:1].upper() + text[1:]


def pick(rng: Random, options: Sequence[Any]) -> Any:
    """Draw one option; several times faster than `random.choice`."""
    return options[int(rng.random() * len(options))]


def pick_other(rng: Random, options: Sequence[Any], taken: Any) -> Any:
    """Draw one option that is not `taken`.

    Raises:
        ValueError: If there is no other option.
    """
    if all(option == taken for option in options):
        raise ValueError(f"a list must hold something other than {taken!r}; add a line to it")
    while (option := pick(rng, options)) == taken:
        pass
    return option
