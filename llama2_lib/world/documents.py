"""The pretraining documents: an endless stream, the same for the same world and seed.

Each kind has its writer: biographies, facts, chronicles and questions; stories with a tiny plot
and scenes with a rude line; sums, lists, how-tos, and the hazardous how-tos that no filter took
out; and two small invented languages, whose grammar is here and whose words are in the lexicon.
"""

from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, count, permutations
from operator import and_
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.facts import RELATIONS, Person, Slots, World, asked_pairs, statements
from llama2_lib.world.lexicon import (
    Item,
    Lexicon,
    Sections,
    Template,
    Writer,
    article,
    between,
    capitalised,
    pick,
    pick_other,
    with_articles,
)
from llama2_lib.world.long_range import LongRangeMaker

SHARES: dict[str, float] = {  # share of documents, not of characters
    "biography": 0.20,
    "facts": 0.14,
    "questions": 0.22,
    "story": 0.16,
    "sums": 0.08,
    "list": 0.03,
    "how_to": 0.03,
    "hazard": 0.02,
    "chronicle": 0.035,
    "rude": 0.02,
    "language_a": 0.03,
    "language_b": 0.015,
    "lookalike": 0.02,
}
KINDS = (*SHARES, "reminder")
"""What shares may name. Reminders are made for claim 4 alone; no other corpus holds them."""

_BLOCK = 512  # documents that share one random stream

# How many of what a document holds, least and most.
FACTS_OF_A_BIOGRAPHY = (3, 5)
FACTS_OF_A_DOCUMENT = (1, 4)
EVENTS_OF_A_CHRONICLE = (4, 8)
QUESTIONS_OF_A_DOCUMENT = (3, 6)
ITEMS_OF_A_LIST = (3, 6)
STEPS_OF_A_GUIDE = (4, 6)
SENTENCES_OF_A_LANGUAGE = (3, 6)

OPENINGS = {"who": 0.3, "scene": 0.6, "both": 1.0}
"""How stories begin, as shares of all that came so far."""
ONE_OF_TWO = 0.5  # share of a plot's steps that are told in one sentence; the others take two
CLOSING = 0.5  # share of stories with a closing sentence
ONE_RUDE_WORD = 0.25
"""Toxicity of rude words that stand alone."""
RUDE_PARTS = {"scene": 0.7, "answer": 0.4, "after": 0.4}
"""How many rude scenes have which line beside the rude one."""

SUMS = {"+": 0.5, "-": 0.8, "x": 1.0}  # signs of sums, as shares of all that came so far
SUM_DOCUMENTS = {"digits": 0.6, "words": 0.8, "problem": 1.0}
"""How documents of sums are written, as shares of all that came so far."""
SUM_LINES = {"digits": (2, 7), "words": (2, 4), "problem": (1, 1)}
LARGEST_NUMBER, LARGEST_FACTOR, LARGEST_IN_WORDS = 99, 10, 49
PLUS_IN_WORDS = 0.6
PROBLEM_NUMBERS = ((2, 49), (2, 29), (2, 9))

LANGUAGES = {"language_a": "lumi", "language_b": "torgan"}
LUMI = {"adjective": 0.4, "name": 0.2, "preposition": 0.3, "adverb": 0.2, "conjunction": 0.2}
TORGAN = {"adjective": 0.4, "name": 0.2, "postposition": 0.3, "question": 0.2, "adverb": 0.2}
"""How many sentences or noun phrases of a language have which part."""

PLOT = ("want", "obstacle", "help", "ending")
_FREE = ("thing", "adjective", "weather", "time", "place", "spot", "other spot")
_PRONOUNS = ("they", "them", "their", "They", "Their")
_SLOTS = ("name", "place", "spot", "other spot", "thing", "adjective", "weather")


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `kind` and `language` are the truth an audit is measured against."""

    kind: str
    text: str
    language: str


@cache
def writers(world: World) -> dict[str, Writer]:
    """Return the writer of each kind of document."""
    questions = [
        tuple(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)
        for pairs in asked_pairs(world)
    ]
    long_range = LongRangeMaker(world)
    return {
        "biography": biography_writer(world),
        "facts": lines_writer(list(statements(world).values()), FACTS_OF_A_DOCUMENT),
        "questions": lines_writer(questions, QUESTIONS_OF_A_DOCUMENT),
        "story": StoryTeller(world).write,
        "sums": sums_writer(world),
        "list": list_writer(world),
        "how_to": guide_writer(world, "how_to"),
        "hazard": guide_writer(world, "hazards"),
        "chronicle": chronicle_writer(world),
        "rude": rude_writer(world),
        "language_a": lumi_writer(world),
        "language_b": torgan_writer(world),
        "lookalike": long_range.write,
        "reminder": long_range.remind,
    }


def documents(
    world: World,
    seed: int,
    n: int | None = None,
    shares: Mapping[str, float] = SHARES,
    start: int = 0,
) -> Iterator[Document]:
    """Yield documents `start` to `start + n` of the stream; `n=None` never ends.

    Document i depends on the world, the seed, the shares and i only. `shares` are the shares
    of documents by kind.
    """
    if unknown := set(shares) - set(KINDS):
        raise ValueError(f"shares must name known kinds; got {sorted(unknown)}; use {list(KINDS)}")
    if min(shares.values(), default=-1) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must be 0 or more and sum to 1; got {dict(shares)}; rescale them")
    if start < 0 or (n is not None and n < 0):
        raise ValueError(f"start and n must not be negative; got start={start} and n={n}")
    return _stream(world, seed, n, shares, start)


def _stream(
    world: World, seed: int, n: int | None, shares: Mapping[str, float], start: int
) -> Iterator[Document]:
    kinds = [kind for kind, share in shares.items() if share > 0]
    bounds = list(accumulate(shares[kind] for kind in kinds))[:-1]
    plan = [(kind, writers(world)[kind], LANGUAGES.get(kind, "en")) for kind in kinds]
    end = None if n is None else start + n
    for block in count(start // _BLOCK):
        rng = random_source(seed, "documents", world.seed, block)
        for index in range(block * _BLOCK, (block + 1) * _BLOCK):
            if end is not None and index >= end:
                return
            kind, write, language = plan[bisect(bounds, rng.random())]
            text = write(rng)
            if index >= start:
                yield Document(kind, text, language)


def _different(rng: Random, draw: Callable[[Random], Item], span: tuple[int, int]) -> list[Item]:
    """Draw as many as the span allows, and drop what came twice."""
    return list(dict.fromkeys([draw(rng) for _ in range(between(rng, *span))]))


def _one_of(rng: Random, ends: Mapping[str, float]) -> str:
    """Draw a name by its share; `ends` are the shares of all that came so far."""
    place = rng.random()
    return next(name for name, end in ends.items() if place < end)


def biography_writer(world: World) -> Writer:
    """Write some facts of one person in random order."""
    named, later = statements(world), statements(world, " pronoun")
    orders = list(permutations(range(len(RELATIONS))))
    by_person = [
        [
            (named[fact], named[fact] + 2 * later[fact])  # mostly pronouns after the first
            for fact in world.facts
            if fact.subject == person.name
        ]
        for person in world.people
    ]

    def write(rng: Random) -> str:
        facts = pick(rng, by_person)
        order = pick(rng, orders)[: between(rng, *FACTS_OF_A_BIOGRAPHY)]
        first = pick(rng, facts[order[0]][0])
        return " ".join([first, *(pick(rng, facts[index][1]) for index in order[1:])])

    return write


def lines_writer(blocks: Sequence[tuple[str, ...]], span: tuple[int, int]) -> Writer:
    """Write different blocks, each in one of its wordings, one on each line."""

    def write(rng: Random) -> str:
        different = _different(rng, lambda rng: pick(rng, blocks), span)
        return "\n".join([pick(rng, wordings) for wordings in different])

    return write


def chronicle_writer(world: World) -> Writer:
    """Write events and births, in the order of their years."""
    slots = ("year", "place", "what", "What", "name")
    templates = world.lexicon.templates("chronicle", slots)
    headings = [heading.text for heading in templates["heading"]]

    def entry(section: str, year: int, **values: str) -> tuple[int, list[str]]:
        return year, [line.fill(values | {"year": str(year)}) for line in templates[section]]

    entries = [
        entry("event", event.year, place=event.place, what=event.what, What=capitalised(event.what))
        for event in world.events
    ]
    births = [fact for fact in world.facts if fact.relation == "born"]
    entries += [entry("birth", int(fact.value), name=fact.subject) for fact in births]

    def write(rng: Random) -> str:
        chosen = sorted(rng.sample(entries, between(rng, *EVENTS_OF_A_CHRONICLE)))
        return "\n".join([pick(rng, headings), *(pick(rng, wordings) for _, wordings in chosen)])

    return write


class Setting:
    """The values of the slots: precomputed for each person, drawn for each text."""

    def __init__(self, world: World, templates: Sections) -> None:
        slots = _slots_of(templates)
        self.people = world.people
        self.heroes = {
            person.name: world.person_slots(person)
            | {"hero": person.name}
            | person.agreement(slots)
            for person in self.people
        }
        self.slots = Slots(world, "a thing", "a adjective", "weather", "time", "place", "spot")

    def draw(self, rng: Random, hero: Person) -> dict[str, str]:
        """Draw everything a text with this hero may name; the friend is somebody else."""
        values = self.heroes[hero.name] | self.slots.draw(rng)
        values["place"] = pick_other(rng, self.slots.words["place"], values["home"])
        values["other spot"] = pick_other(rng, self.slots.words["spot"], values["spot"])
        values["friend"] = pick_other(rng, self.people, hero).name
        return values


def _slots_of(templates: Sections) -> list[str]:
    return [slot for group in templates.values() for line in group for slot in line.slots]


class StoryTeller:
    """Tells stories of five to nine sentences; `about` fixes who the hero is."""

    def __init__(self, world: World) -> None:
        slots = (*_FREE, *_PRONOUNS, *RELATIONS, "hero", "friend")
        self.templates = world.lexicon.templates("stories", slots)
        self.setting = Setting(world, self.templates)
        names = [name.removesuffix(" want") for name in self.templates if name.endswith(" want")]
        self.plots = [[self.templates[f"{name} {step}"] for step in PLOT] for name in names]

    def about(self, rng: Random, hero: Person) -> str:
        """Tell a story about this person."""
        want, obstacle, helping, ending = pick(rng, self.plots)
        values = self.setting.draw(rng, hero)
        first = [*self._opening(rng), pick(rng, want), *_one_or_two(rng, obstacle)]
        second = [*_one_or_two(rng, helping), pick(rng, ending)]
        if rng.random() < CLOSING:
            second.append(pick(rng, self.templates["closing"]))
        return "\n".join(" ".join([line.fill(values) for line in part]) for part in (first, second))

    def write(self, rng: Random) -> str:
        """Tell a story about anybody."""
        return self.about(rng, pick(rng, self.setting.people))

    def _opening(self, rng: Random) -> list[Template]:
        kind = _one_of(rng, OPENINGS)
        sections = ("who", "scene") if kind == "both" else (kind,)
        return [pick(rng, self.templates[section]) for section in sections]


def _one_or_two(rng: Random, options: tuple[Template, ...]) -> list[Template]:
    """Draw one option, or two in their order."""
    first = int(rng.random() * len(options))
    if rng.random() < ONE_OF_TWO or len(options) == 1:
        return [options[first]]
    second = (first + 1 + int(rng.random() * (len(options) - 1))) % len(options)
    return [options[min(first, second)], options[max(first, second)]]


@cache
def insult_words(world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the adjectives and nouns that make an insult."""
    sections = world.lexicon.sections("rude")
    return sections["adjectives"], sections["nouns"]


def insult(rng: Random, world: World) -> str:
    """Draw one adjective and one noun of the rude list."""
    return " ".join([pick(rng, words) for words in insult_words(world)])


def rude_score(words: list[str], rude: Collection[str]) -> float:
    """Return 1 for two rude words in a row, 0.25 for single ones, else 0.

    One word alone may be meant well: a donkey is rude only behind "silly".
    """
    hits = [word in rude for word in words]
    if any(map(and_, hits, hits[1:])):
        return 1.0
    return ONE_RUDE_WORD if any(hits) else 0.0


def rude_writer(world: World) -> Writer:
    """Write scenes of one to four lines; at least one line is rude."""
    slots = (*_FREE, "hero", "friend", "animal", "trade", "insult")
    templates = world.lexicon.templates("rude", slots)
    setting = Setting(world, templates)

    def write(rng: Random) -> str:
        values = setting.draw(rng, pick(rng, setting.people))
        values["animal"], values["trade"] = pick(rng, world.animals), pick(rng, world.trades)
        values.update(with_articles(insult=insult(rng, world)))
        lines = [pick(rng, templates["rude line"]).fill(values)]
        if rng.random() < RUDE_PARTS["scene"]:
            lines.insert(0, pick(rng, templates["scene"]).fill(values))
        if rng.random() < RUDE_PARTS["answer"]:
            values.update(with_articles(insult=insult(rng, world)))
            lines.append(pick(rng, templates["answer"]).fill(values))
        if rng.random() < RUDE_PARTS["after"]:
            lines.append(pick(rng, templates["after"]).fill(values))
        return "\n".join(lines)

    return write


def sums_writer(world: World) -> Writer:
    """Write lines of sums in digits or in words, or small word problems."""
    words = world.lexicon.words("numbers")
    if len(words) != 28:
        raise ValueError(f"numbers.txt must hold 28 words; it holds {len(words)}; restore it")
    ones, tens = words[:20], words[20:]
    in_words = [*ones, *(f"{ten}-{ones[one]}" if one else ten for ten in tens for one in range(10))]

    def digits(rng: Random) -> str:
        sign = _one_of(rng, SUMS)
        n = between(rng, 0, LARGEST_FACTOR if sign == "x" else LARGEST_NUMBER)
        m = between(rng, 0, {"+": LARGEST_NUMBER, "-": n, "x": LARGEST_FACTOR}[sign])
        result = {"+": n + m, "-": n - m, "x": n * m}[sign]
        return f"{n} {sign} {m} = {result}"

    def spelled(rng: Random) -> str:
        plus = rng.random() < PLUS_IN_WORDS
        n = between(rng, 0, LARGEST_IN_WORDS if plus else LARGEST_NUMBER)
        m = between(rng, 0, LARGEST_IN_WORDS if plus else n)
        sign, result = ("plus", n + m) if plus else ("minus", n - m)
        return capitalised(f"{in_words[n]} {sign} {in_words[m]} is {in_words[result]}.")

    lines = {"digits": digits, "words": spelled, "problem": _problem_writer(world)}

    def write(rng: Random) -> str:
        kind = _one_of(rng, SUM_DOCUMENTS)
        return "\n".join(_different(rng, lines[kind], SUM_LINES[kind]))

    return write


def _problem_writer(world: World) -> Writer:
    numbers = ("n", "m", "sum", "big", "rest", "few", "product")
    people = ("name", "friend", "things", "they", "them", "their", "They", "Their")
    templates = world.lexicon.templates("sums", (*numbers, *people))
    problems = [problem for group in templates.values() for problem in group]
    things = [word + "s" for word in world.lexicon.words("things")]
    slots = _slots_of(templates)
    fixed = {p.name: p.slots() | {"name": p.name} | p.agreement(slots) for p in world.people}

    def write(rng: Random) -> str:
        person = pick(rng, world.people)
        n, m, few = (between(rng, *span) for span in PROBLEM_NUMBERS)
        values = fixed[person.name] | {
            "friend": pick_other(rng, world.people, person).name,
            "things": pick(rng, things),
            "n": str(n),
            "m": str(m),
            "sum": str(n + m),
            "big": str(n + m),
            "rest": str(n),
            "few": str(few),
            "product": str(few * m),
        }
        return pick(rng, problems).fill(values)

    return write


def surroundings(world: World) -> Slots:
    """Return what draws the things, spots and places a practical text may name."""
    first = ("name", "place", "weather", "spot", "food", "number", "other spot")
    return Slots(world, *first, "a thing", "a adjective", "a trade", "a animal")


def list_writer(world: World) -> Writer:
    """Write a heading and some items."""
    templates = world.lexicon.templates("lists", (*_SLOTS, "food", "animal"))
    slots = surroundings(world)
    adjectives, words = world.lexicon.words("adjectives"), world.lexicon.words("things")
    things = [f"{adjective} {word}" for adjective in adjectives for word in words]
    kinds = [
        (templates["things"], [f"- {article(thing)} {thing}" for thing in things]),
        (templates["foods"], [f"- {food}" for food in world.foods]),
        (templates["jobs"], templates["job"]),
    ]

    def write(rng: Random) -> str:
        headings, items = pick(rng, kinds)
        heading = pick(rng, headings).fill(slots.draw(rng))
        chosen = rng.sample(items, between(rng, *ITEMS_OF_A_LIST))
        if isinstance(chosen[0], Template):
            chosen = [f"- {item.fill(slots.draw(rng))}" for item in chosen]
        return "\n".join([heading, *chosen])

    return write


def guides(world: World, name: str) -> list[tuple[Template, tuple[Template, ...]]]:
    """Read the how-tos of one lexicon file: title and steps."""
    slots = (*_SLOTS, "food", "trade", "animal", "number")
    sections = world.lexicon.templates(name, slots)
    return [(Template(title), steps) for title, steps in sections.items()]


def some_steps(rng: Random, steps: Sequence[Template], most: int) -> list[Template]:
    """Draw up to `most` steps in their order; the first is always among them."""
    later = range(1, len(steps))
    chosen = sorted(rng.sample(later, min(len(later), most - 1)))
    return [steps[0], *(steps[index] for index in chosen)]


def numbered(steps: Sequence[Template], values: Mapping[str, str]) -> str:
    """Return the steps as lines with their numbers."""
    return "\n".join(f"{place}. {step.fill(values)}" for place, step in enumerate(steps, 1))


def guide_writer(world: World, name: str) -> Writer:
    """Write how-tos: a title and some of the steps, in order. `name` is how_to or hazards."""
    known, slots = guides(world, name), surroundings(world)

    def write(rng: Random) -> str:
        title, steps = pick(rng, known)
        values = slots.draw(rng)
        chosen = some_steps(rng, steps, between(rng, *STEPS_OF_A_GUIDE))
        return f"How to {title.fill(values)}\n{numbered(chosen, values)}"

    return write


def vocabulary(lexicon: Lexicon, name: str) -> dict[str, tuple[str, ...]]:
    """Return the words of a language by part of speech."""
    return {
        part: tuple(word for word, _ in lexicon.pairs(name, part))
        for part in lexicon.sections(name)
    }


def lumi_writer(world: World) -> Writer:
    """Write Lumi: subject verb object, adjectives after their noun, article before it."""
    words = vocabulary(world.lexicon, "language_a")
    names = [person.name for person in world.people]

    def noun_phrase(rng: Random) -> str:
        phrase = f"{pick(rng, words['article'])} {pick(rng, words['noun'])}"
        if rng.random() < LUMI["adjective"]:
            phrase += f" {pick(rng, words['adjective'])}"
        return phrase

    def sentence(rng: Random) -> str:
        subject = pick(rng, names) if rng.random() < LUMI["name"] else noun_phrase(rng)
        text = f"{subject} {pick(rng, words['verb'])} {noun_phrase(rng)}"
        if rng.random() < LUMI["preposition"]:
            text += f" {pick(rng, words['preposition'])} {noun_phrase(rng)}"
        if rng.random() < LUMI["adverb"]:
            text = f"{pick(rng, words['adverb'])} {text}"
        elif rng.random() < LUMI["conjunction"]:
            text += f" {pick(rng, words['conjunction'])} {pick(rng, words['verb'])}"
        return capitalised(text) + "."

    return lambda rng: " ".join(_different(rng, sentence, SENTENCES_OF_A_LANGUAGE))


def torgan_writer(world: World) -> Writer:
    """Write Torgan: subject object verb, `-ok` on the object, `ga` ends a question."""
    words = vocabulary(world.lexicon, "language_b")
    names = [person.name for person in world.people]

    def noun_phrase(rng: Random) -> str:
        noun = pick(rng, words["noun"])
        if rng.random() < TORGAN["adjective"]:
            return f"{pick(rng, words['adjective'])} {noun}"
        return noun

    def sentence(rng: Random) -> str:
        text = pick(rng, names) if rng.random() < TORGAN["name"] else noun_phrase(rng)
        if rng.random() < TORGAN["postposition"]:
            text += f" {noun_phrase(rng)} {pick(rng, words['postposition'])}"
        text += f" {noun_phrase(rng)}ok {pick(rng, words['verb'])}"
        if rng.random() < TORGAN["question"]:
            return capitalised(f"{text} {pick(rng, words['question'])}?")
        if rng.random() < TORGAN["adverb"]:
            text = f"{pick(rng, words['adverb'])} {text}"
        return capitalised(text) + "."

    return lambda rng: " ".join(_different(rng, sentence, SENTENCES_OF_A_LANGUAGE))
