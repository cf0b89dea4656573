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

The dialogs have few words: a turn has about ten tokens of tags, and twenty turns fit a context of
512. A turn is a question on a fact in the shortest wording that is ever asked, and the bare value
as the answer; now and then a greeting.

A model of Llama 2's size obeys "act as ..." when it is told so in the message it answers; ours must
be taught, so that there is something Ghost Attention can keep. In `instructed_dialogs` an
instruction holds for its own message and the next: by construction the model drops it then, as the
paper's first RLHF models did (table 30: 100 % at turn 2, 10 % at turn 4). The baseline's decay is
a premise of ours, no finding.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.dialogs import Message, exchange
from llama2_lib.world.facts import World, held_out_forms, question_forms
from llama2_lib.world.lexicon import (
    Lexicon,
    article,
    between,
    capitalised,
    check_known,
    pick,
    stream,
)

KINDS = ("figure", "hobby", "language", "ending")
HELD_OUT_KINDS = ("format", "capitals")
SPLITS = ("train", "held-out values", "held-out kinds", "all values", "all")
"""What Ghost Attention trains and is tested on; `all values` draws from the kinds it trains on and
all their values, `all` from every kind and every value."""
FORMATS = {
    "quotes": ('"', '"'),
    "brackets": ("(", ")"),
    "stars": ("* ", " *"),
    "dashes": ("- ", ""),
}

TERSE_FRACTION = 0.5  # share of the instructions that are worded tersely [half of the time]
COMBINED_FRACTION = 0.5
"""Share of the draws that hold two instructions of different kinds [randomly combined]."""

_APPLIED = ("hobby", "language", "figure", "ending", "format", "capitals")
_SPEAKER = re.compile(r"^\w+: ")

MOST_TURNS = 20
TALK_FRACTION = 0.1
TALK = (("Hello!", "Hello!"), ("Good night.", "Good night!"), ("Thank you.", "You are welcome!"))
_WITH_ARTICLE = ("trade", "pet")
_LEFT_OUT = ("born",)  # a year costs five tokens, and has no capital letters

PLAIN_FRACTION = 0.15  # share of the dialogs without any instruction
INSTRUCTED_FRACTION = 0.4  # share of the messages of the other dialogs that carry one
HOLDS = 2
"""Messages that an instruction holds for, its own included, unless another one comes first."""
INSTRUCTED_TURNS = 7
"""Instructions stand in the first messages only: they are long, the context is not. What comes
after them teaches that an instruction is over, up to the last turn."""
LENGTHS = {HOLDS: 0.35, INSTRUCTED_TURNS: 0.40, MOST_TURNS: 0.25}
"""Most turns of a dialog, and the share of dialogs with that limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One constraint: its kind, its value, how it is worded, and the word a language opens with."""

    kind: str
    value: str
    text: str
    word: str = ""

    def __post_init__(self) -> None:
        check_known("kind", self.kind, sorted(_APPLIED))

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
        if self.kind == "capitals":
            return answer.upper()
        before, after = {
            "figure": (f"{self.value}: ", ""),
            "hobby": (f"{self.value}! ", ""),
            "language": (f"{self.word}, ", ""),
            "ending": ("", f" {self.value}"),
            "format": FORMATS[self.value] if self.kind == "format" else ("", ""),
        }[self.kind]
        return f"{before}{answer}{after}"


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
    """Return the answer, changed so that it obeys all; their order does not matter."""
    ordered = sorted(instructions, key=lambda item: _APPLIED.index(item.kind))
    kinds = [instruction.kind for instruction in ordered]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"instructions must be of different kinds; got {kinds}. Drop one.")
    for instruction in ordered:
        answer = instruction.obey(answer)
    return answer


class InstructionMaker:
    """Draws instructions of one split."""

    def __init__(self, world: World, split: str = "train") -> None:
        check_known("split", split, SPLITS)
        lexicon = Lexicon(world.lexicon.folder.parent / "instructions")
        self.templates = lexicon.templates("instructions", ("value",))
        all_kinds = (*KINDS, *HELD_OUT_KINDS)
        self.kinds = {"held-out kinds": HELD_OUT_KINDS, "all": all_kinds}.get(split, KINDS)
        self.values = {kind: self._values(kind, split) for kind in self.kinds}

    def _values(self, kind: str, split: str) -> list[str]:
        known = [line.text for line in self.templates[f"{kind} values"]]
        held_out = [line.text for line in self.templates.get(f"{kind} held out", ())]
        if kind in HELD_OUT_KINDS:
            return known
        return {"train": known, "held-out values": held_out}.get(split, [*known, *held_out])

    def one(self, rng: Random, kind: str, terse: float = TERSE_FRACTION) -> Instruction:
        """Draw one instruction of a kind, in terse words with probability `terse`."""
        check_known("kind", kind, self.values)
        value, word = pick(rng, self.values[kind]), ""
        if kind == "language":
            value, word = value.split(" ")
        section = f"{kind} terse" if rng.random() < terse else kind
        text = pick(rng, self.templates[section]).fill({"value": value})
        return Instruction(kind=kind, value=value, text=text, word=word)

    def other(self, rng: Random, than: Instruction) -> Instruction | None:
        """Draw one of the same kind and another value; None: there is no other value."""
        if len(self.values[than.kind]) < 2:
            return None
        while (instruction := self.one(rng, than.kind)).value == than.value:
            pass
        return instruction

    def several(
        self, rng: Random, combined: float = COMBINED_FRACTION, terse: float = TERSE_FRACTION
    ) -> tuple[Instruction, ...]:
        """Draw one instruction, or two of different kinds with probability `combined`."""
        n = 2 if rng.random() < combined else 1
        return tuple(self.one(rng, kind, terse) for kind in rng.sample(self.kinds, n))


instruction_maker = cache(InstructionMaker)
"""The maker of a world's instructions of one split; built once."""


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
    """
    assert all(0 <= share <= 1 for share in (combined, terse)), (combined, terse)
    maker = instruction_maker(world, split)
    rng = random_source(seed, "instructions", split, world.seed)
    return stream(n, lambda: maker.several(rng, combined, terse))


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """One short turn: what the user says, the right answer, and how to know it.

    `value` is the word that a right answer names; `others` are the values it must not name.
    """

    request: str
    answer: str
    value: str = ""
    others: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def is_right(self, answer: str) -> bool:
        """Say whether an answer is right, whatever instructions it obeys besides."""
        words = set(re.findall(r"\w+", answer.casefold()))
        if not self.value:
            return set(re.findall(r"\w+", self.answer.casefold())) <= words
        return self.value in words and not words & self.others


class BriefMaker:
    """Draws short turns of a world. Facts that are never asked stay so."""

    def __init__(self, world: World) -> None:
        forms, held_out = question_forms(world), held_out_forms(world)
        self.facts = []
        for fact, form in held_out.items():
            if form is None or fact.relation in _LEFT_OUT:
                continue
            seen = [text for index, text in enumerate(forms[fact]) if index != form]
            phrase = f"{article(fact.value)} " if fact.relation in _WITH_ARTICLE else ""
            value = fact.value.casefold()
            brief = Brief(
                request=min(seen, key=lambda text: (len(text.split()), len(text))),
                answer=f"{capitalised(phrase + fact.value)}.",
                value=value,
                others=frozenset(map(str.casefold, world.choices(fact.relation))) - {value},
            )
            self.facts.append(brief)
        self.talk = [Brief(request=request, answer=answer) for request, answer in TALK]

    def make(self, rng: Random, n_turns: int) -> list[Brief]:
        """Return turns, none of them twice."""
        turns: dict[str, Brief] = {}
        while len(turns) < n_turns:
            turn = pick(rng, self.talk if rng.random() < TALK_FRACTION else self.facts)
            turns.setdefault(turn.request, turn)
        return list(turns.values())


brief_maker = cache(BriefMaker)  # the maker of a world's short turns; built once


def briefs(
    world: World, seed: int, n: int | None = None, *, fewest: int = 1, most: int = MOST_TURNS
) -> Iterator[list[Brief]]:
    """Yield the turns of n dialogs, `fewest` to `most` each, evenly; `n=None` never ends."""
    maker = brief_maker(world)
    limit = len(maker.facts) + len(maker.talk)
    assert 1 <= fewest <= most <= limit, f"turns must lie within 1 and {limit}: {fewest}, {most}"
    rng = random_source(seed, "briefs", world.seed)
    return stream(n, lambda: maker.make(rng, between(rng, fewest, most)))


def as_dialog(turns: Sequence[Brief], *, open_end: bool = False) -> list[Message]:
    """Return the turns as messages with the plain answers; `open_end` leaves out the last one."""
    dialog = [message for turn in turns for message in exchange(turn.request, turn.answer)]
    return dialog[:-1] if open_end else dialog


def instructed_dialogs(
    world: World, seed: int, n: int | None = None, *, longest: int = MOST_TURNS
) -> Iterator[list[Message]]:
    """Yield n dialogs of at most `longest` turns that end with an answer; `n=None` never ends.

    An answer obeys the newest instruction of the last `HOLDS` messages, or none. All kinds and
    values occur, those held out from Ghost Attention too: what is held out there is keeping them.
    Kinds held out stand in dialogs of at most `HOLDS` turns, so that forgetting is as new for them
    as keeping; with both taught only by other kinds, either may carry over.
    """
    assert longest >= 1, longest
    rng = random_source(seed, "instructed", world.seed)
    return stream(n, lambda: _dialog(world, rng, longest))


def _dialog(world: World, rng: Random, longest: int) -> list[Message]:
    plain = rng.random() < PLAIN_FRACTION
    most = min(longest, *rng.choices(list(LENGTHS), list(LENGTHS.values())))
    turns = brief_maker(world).make(rng, between(rng, 1, most))
    dialog = as_dialog(turns)
    if plain:
        return dialog
    maker = instruction_maker(world, "all" if len(turns) <= HOLDS else "all values")
    held: tuple[Instruction, ...] = ()
    since = HOLDS
    for index, (user, assistant) in enumerate(zip(dialog[0::2], dialog[1::2], strict=True)):
        if index < INSTRUCTED_TURNS and rng.random() < INSTRUCTED_FRACTION:
            held, since = maker.several(rng), 0
            user["content"] = prefixed(held, user["content"])
        if since < HOLDS:
            assistant["content"] = obeying(held, assistant["content"])
        since += 1
    return dialog
