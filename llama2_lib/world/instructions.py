"""Instructions meant for a whole dialog, and whether an answer obeys them (paper section 3.3).

The paper's constraints are hobbies, languages and public figures, combined at random and written
tersely half of the time. Here every kind shows in a few letters of an answer, so that a program
can check it and twenty turns fit a small context:

- figure: the answer begins with the figure's name, as in a play ("Mara: Oakford.");
- hobby: the answer mentions it ("river! Oakford.");
- language: the answer opens with the language's own word ("Vero, Oakford."). Translating whole
  answers is beyond a model of a million weights;
- ending: the answer closes with given words ("Oakford. Good day!");
- format (quotes, brackets, stars or a dash around the answer) and capitals: kinds that Ghost
  Attention never trains on, for the zero-shot test.

Some values of the other kinds are held out as well.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.facts import World
from llama2_lib.world.lexicon import Lexicon
from llama2_lib.world.wording import pick

KINDS = ("figure", "hobby", "language", "ending")
HELD_OUT_KINDS = ("format", "capitals")
SPLITS = ("train", "held-out values", "held-out kinds", "all values", "all")
"""Of Ghost Attention; `all values` draws from those kinds and all their values, `all` from every
kind and every value."""
FORMATS = {
    "quotes": ('"', '"'),
    "brackets": ("(", ")"),
    "stars": ("* ", " *"),
    "dashes": ("- ", ""),
}

TERSE_FRACTION = 0.5
"""Of instructions [half of the time]."""
COMBINED_FRACTION = 0.5
"""Of draws that hold two instructions of different kinds [randomly combined]."""

_APPLIED = ("hobby", "language", "figure", "ending", "format", "capitals")
_SPEAKER = re.compile(r"^\w+: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One constraint: its kind, its value, how it is worded, and the word a language opens with."""

    kind: str
    value: str
    text: str
    word: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _APPLIED:
            raise ValueError(f"kind must be one of {sorted(_APPLIED)}; got {self.kind!r}.")

    def obeys(self, answer: str) -> bool:
        """Say whether an answer obeys, whatever other instructions it obeys as well."""
        text = answer.strip()
        core = _unwrapped(text).casefold()
        if self.kind == "figure":
            return core.startswith(f"{self.value.casefold()}: ")
        if self.kind == "hobby":
            return self.value.casefold() in re.findall(r"\w+", core)
        if self.kind == "language":
            return _SPEAKER.sub("", core).startswith(f"{self.word.casefold()}, ")
        if self.kind == "ending":
            return core.endswith(self.value.casefold())
        if self.kind == "format":
            opening, closing = FORMATS[self.value]
            long_enough = len(text) > len(opening) + len(closing)
            return long_enough and text.startswith(opening) and text.endswith(closing)
        letters = re.sub(r"[^A-Za-z]", "", text)
        return letters != "" and letters == letters.upper()

    def obey(self, answer: str) -> str:
        """Return the answer, changed so that it obeys; see `obeying` for several instructions."""
        if self.kind == "figure":
            return f"{self.value}: {answer}"
        if self.kind == "hobby":
            return f"{self.value}! {answer}"
        if self.kind == "language":
            return f"{self.word}, {answer}"
        if self.kind == "ending":
            return f"{answer} {self.value}"
        if self.kind == "format":
            opening, closing = FORMATS[self.value]
            return f"{opening}{answer}{closing}"
        return answer.upper()


def _unwrapped(text: str) -> str:
    for opening, closing in FORMATS.values():
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            return text[len(opening) : len(text) - len(closing)].strip()
    return text


def worded(instructions: Sequence[Instruction]) -> str:
    """Return the words that ask for all of them."""
    return " ".join(instruction.text for instruction in instructions)


def prefixed(instructions: Sequence[Instruction], request: str) -> str:
    """Return a request with the instructions before it, as one message; none: as it is."""
    return f"{worded(instructions)} {request}" if instructions else request


def obeys(instructions: Sequence[Instruction], answer: str) -> bool:
    """Say whether an answer obeys all instructions."""
    return all(instruction.obeys(answer) for instruction in instructions)


def obeying(instructions: Sequence[Instruction], answer: str) -> str:
    """Return the answer, changed so that it obeys all; their order does not matter.

    Raises:
        ValueError: Two instructions are of one kind: no answer can obey both.
    """
    kinds = [instruction.kind for instruction in instructions]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"instructions must be of different kinds; got {kinds}. Drop one.")
    for instruction in sorted(instructions, key=lambda item: _APPLIED.index(item.kind)):
        answer = instruction.obey(answer)
    return answer


class InstructionMaker:
    """Draws instructions of one split."""

    def __init__(self, world: World, split: str = "train") -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}; got {split!r}.")
        lexicon = Lexicon(world.lexicon.folder.parent / "instructions")
        self.templates = lexicon.templates("instructions", ("value",))
        self.kinds = {
            "held-out kinds": HELD_OUT_KINDS, "all": (*KINDS, *HELD_OUT_KINDS),
        }.get(split, KINDS)  # fmt: skip
        self.values = {kind: self._values(kind, split) for kind in self.kinds}

    def _values(self, kind: str, split: str) -> list[str]:
        known = [line.text for line in self.templates[f"{kind} values"]]
        held_out = [line.text for line in self.templates.get(f"{kind} held out", ())]
        if kind in HELD_OUT_KINDS:
            return known
        return {"train": known, "held-out values": held_out}.get(split, [*known, *held_out])

    def one(self, rng: Random, kind: str, terse: float = TERSE_FRACTION) -> Instruction:
        """Draw one instruction of a kind, in terse words with probability `terse`.

        Raises:
            ValueError: The split has no such kind.
        """
        if kind not in self.values:
            raise ValueError(f"kind must be one of {list(self.values)}; got {kind!r}.")
        value, _, word = (line := pick(rng, self.values[kind])).partition(" ")
        if kind != "language":
            value, word = line, ""
        section = f"{kind} terse" if rng.random() < terse else kind
        text = pick(rng, self.templates[section]).fill({"value": value})
        return Instruction(kind=kind, value=value, text=text, word=word)

    def other(self, rng: Random, than: Instruction) -> Instruction | None:
        """Draw one of the same kind and another value; None: there is no other value."""
        if len(self.values[than.kind]) < 2:
            return None
        while (found := self.one(rng, than.kind)).value == than.value:
            pass
        return found

    def several(
        self, rng: Random, combined: float = COMBINED_FRACTION, terse: float = TERSE_FRACTION
    ) -> tuple[Instruction, ...]:
        """Draw one instruction, or two of different kinds with probability `combined`."""
        n = 2 if rng.random() < combined else 1
        return tuple(self.one(rng, kind, terse) for kind in rng.sample(self.kinds, n))


@lru_cache(maxsize=8)
def instruction_maker(world: World, split: str) -> InstructionMaker:
    """Return the maker of a world's instructions of a split; built once."""
    return InstructionMaker(world, split)


def instructions(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    combined: float = COMBINED_FRACTION,
    terse: float = TERSE_FRACTION,
) -> Iterator[tuple[Instruction, ...]]:
    """Yield n draws of one or two instructions; `n=None` never ends.

    Draw i depends on the world, the seed, the split and i only.

    Raises:
        ValueError: The split is unknown, n is negative, or a fraction is not within 0 and 1.
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more.")
    if not (0 <= combined <= 1 and 0 <= terse <= 1):
        raise ValueError(f"fractions must lie within 0 and 1; got {combined} and {terse}.")
    maker = instruction_maker(world, split)
    rng = random_source(seed, "instructions", split, world.seed)
    return (maker.several(rng, combined, terse) for _ in (count() if n is None else range(n)))
