"""The pretraining documents: an endless stream, the same for the same world and seed.

Each kind has its writer: biographies, facts, chronicles and questions; stories with a tiny plot
and scenes with a rude line; sums, lists, how-tos, and the hazardous how-tos that no filter took
out; and two small invented languages, whose grammar is here and whose words are in the lexicon.
"""

from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, count, permutations
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.facts import (
    RELATIONS,
    Person,
    World,
    asked_pairs,
    pronoun_statements,
    statements,
)
from llama2_lib.world.lexicon import (
    Template,
    Writer,
    article,
    between,
    capitalised,
    pick,
    pick_other,
    with_articles,
)
from llama2_lib.world.long_range import long_range_writer, reminder_writer

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
ONE_OF_TWO = 0.5
"""Share of a plot's steps that are told in one sentence; the others take two."""
CLOSING = 0.5
"""Share of stories with a closing sentence."""
RUDE_PARTS = {"scene": 0.7, "answer": 0.4, "after": 0.4}
"""How many rude scenes have which line beside the rude one."""

SUMS = {"+": 0.5, "-": 0.8, "x": 1.0}
"""Signs of sums, as shares of all that came so far."""
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
    return {
        "biography": biography_writer(world),
        "facts": fact_writer(world),
        "questions": question_writer(world),
        "story": story_writer(world),
        "sums": sums_writer(world),
        "list": list_writer(world),
        "how_to": guide_writer(world, "how_to"),
        "hazard": guide_writer(world, "hazards"),
        "chronicle": chronicle_writer(world),
        "rude": rude_writer(world),
        "language_a": lumi_writer(world),
        "language_b": torgan_writer(world),
        "lookalike": long_range_writer(world),
        "reminder": reminder_writer(world),
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
    check_shares(shares)
    if start < 0 or (n is not None and n < 0):
        raise ValueError(f"start and n must not be negative; got start={start} and n={n}")
    return _stream(world, seed, n, shares, start)


def check_shares(shares: Mapping[str, float]) -> None:
    """Refuse shares that are not a distribution over the kinds."""
    unknown = set(shares) - set(KINDS)
    if unknown:
        raise ValueError(f"shares must name known kinds; got {sorted(unknown)}; use {list(KINDS)}")
    if min(shares.values(), default=-1) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must be 0 or more and sum to 1; got {dict(shares)}; rescale them")


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


def biography_writer(world: World) -> Writer:
    """Write some facts of one person in random order."""
    named, later = statements(world), pronoun_statements(world)
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


def fact_writer(world: World) -> Writer:
    """Write facts of different people, one on each line."""
    wordings = list(statements(world).values())

    def write(rng: Random) -> str:
        return _lines(rng, wordings, between(rng, *FACTS_OF_A_DOCUMENT))

    return write


def _lines(rng: Random, wordings: Sequence[tuple[str, ...]], n: int) -> str:
    """Draw what is said n times, drop what came twice, and write each in one of its wordings."""
    different = dict.fromkeys([pick(rng, wordings) for _ in range(n)])
    return "\n".join([pick(rng, options) for options in different])


def chronicle_writer(world: World) -> Writer:
    """Write events and births, in the order of their years."""
    slots = ("year", "place", "what", "What", "name")
    templates = world.lexicon.templates("chronicle", slots)
    headings = [heading.text for heading in templates["heading"]]
    entries = []
    for event in world.events:
        values = {"year": str(event.year), "place": event.place, "what": event.what}
        values["What"] = capitalised(event.what)
        entries.append((event.year, [item.fill(values) for item in templates["event"]]))
    for fact in world.facts:
        if fact.relation == "born":
            values = {"year": fact.value, "name": fact.subject}
            entries.append((int(fact.value), [item.fill(values) for item in templates["birth"]]))

    def write(rng: Random) -> str:
        chosen = sorted(rng.sample(entries, between(rng, *EVENTS_OF_A_CHRONICLE)))
        return "\n".join([pick(rng, headings), *(pick(rng, wordings) for _, wordings in chosen)])

    return write


def question_writer(world: World) -> Writer:
    """Write questions with their answers."""
    blocks = [
        tuple(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)
        for pairs in asked_pairs(world)
    ]

    def write(rng: Random) -> str:
        return _lines(rng, blocks, between(rng, *QUESTIONS_OF_A_DOCUMENT))

    return write


class Setting:
    """The values of the slots: precomputed for each person, drawn for each text."""

    def __init__(self, world: World, templates: dict[str, tuple[Template, ...]]) -> None:
        lexicon = world.lexicon
        self.people = world.people
        self.heroes = {person.name: _hero_slots(world, person, templates) for person in self.people}
        self.free = {
            slot: [with_articles(**{slot: word}) for word in lexicon.words(name)]
            for slot, name in [("thing", "things"), ("adjective", "adjectives")]
        }
        self.plain = {
            "weather": lexicon.words("weather"),
            "time": lexicon.words("times"),
            "place": world.places,
            "spot": lexicon.words("spots"),
        }

    def draw(self, rng: Random, hero: Person) -> dict[str, str]:
        """Draw everything a text with this hero may name; the friend is somebody else."""
        values = dict(self.heroes[hero.name])
        for options in self.free.values():
            values.update(pick(rng, options))
        for slot, words in self.plain.items():
            values[slot] = pick(rng, words)
        values["place"] = pick_other(rng, self.plain["place"], values["home"])
        values["other spot"] = pick_other(rng, self.plain["spot"], values["spot"])
        values["friend"] = pick_other(rng, self.people, hero).name
        return values


def _hero_slots(
    world: World, person: Person, templates: dict[str, tuple[Template, ...]]
) -> dict[str, str]:
    slots = [slot for group in templates.values() for template in group for slot in template.slots]
    return world.person_slots(person) | {"hero": person.name} | person.agreement(slots)


class StoryTeller:
    """Tells stories of five to nine sentences; `about` fixes who the hero is."""

    def __init__(self, world: World) -> None:
        slots = (*_FREE, *_PRONOUNS, *RELATIONS, "hero", "friend")
        self.templates = world.lexicon.templates("stories", slots)
        self.setting = Setting(world, self.templates)
        self.plots = _plots(self.templates)

    def about(self, rng: Random, hero: Person) -> str:
        """Tell a story about this person."""
        want, obstacle, helping, ending = pick(rng, self.plots)
        values = self.setting.draw(rng, hero)
        first = [template.fill(values) for template in self._opening(rng)]
        first.append(pick(rng, want).fill(values))
        first += [template.fill(values) for template in _one_or_two(rng, obstacle)]
        second = [template.fill(values) for template in _one_or_two(rng, helping)]
        second.append(pick(rng, ending).fill(values))
        if rng.random() < CLOSING:
            second.append(pick(rng, self.templates["closing"]).fill(values))
        return f"{' '.join(first)}\n{' '.join(second)}"

    def write(self, rng: Random) -> str:
        """Tell a story about anybody."""
        return self.about(rng, pick(rng, self.setting.people))

    def _opening(self, rng: Random) -> list[Template]:
        kind = rng.random()
        who, scene = self.templates["who"], self.templates["scene"]
        if kind < OPENINGS["who"]:
            return [pick(rng, who)]
        if kind < OPENINGS["scene"]:
            return [pick(rng, scene)]
        return [pick(rng, who), pick(rng, scene)]


def _one_or_two(rng: Random, options: tuple[Template, ...]) -> list[Template]:
    """Draw one option, or two in their order."""
    first = int(rng.random() * len(options))
    if rng.random() < ONE_OF_TWO or len(options) == 1:
        return [options[first]]
    second = (first + 1 + int(rng.random() * (len(options) - 1))) % len(options)
    return [options[min(first, second)], options[max(first, second)]]


def _plots(templates: dict[str, tuple[Template, ...]]) -> list[list[tuple[Template, ...]]]:
    names = [section.removesuffix(" want") for section in templates if section.endswith(" want")]
    missing = [f"{n} {step}" for n in names for step in PLOT if f"{n} {step}" not in templates]
    if missing:
        raise ValueError(f"stories.txt must hold all four steps of a plot; missing: {missing}")
    return [[templates[f"{name} {step}"] for step in PLOT] for name in names]


def story_writer(world: World) -> Writer:
    """Write stories about the people of the world."""
    return StoryTeller(world).write


def rude_writer(world: World) -> Writer:
    """Write scenes of one to four lines; at least one line is rude."""
    slots = (*_FREE, "hero", "friend", "animal", "trade", "insult")
    templates = world.lexicon.templates("rude", slots)
    setting = Setting(world, templates)
    adjectives, nouns = (
        [template.text for template in templates[section]] for section in ("adjectives", "nouns")
    )

    def write(rng: Random) -> str:
        values = setting.draw(rng, pick(rng, setting.people))
        values["animal"], values["trade"] = pick(rng, world.animals), pick(rng, world.trades)
        values.update(with_articles(insult=f"{pick(rng, adjectives)} {pick(rng, nouns)}"))
        lines = [pick(rng, templates["rude line"]).fill(values)]
        if rng.random() < RUDE_PARTS["scene"]:
            lines.insert(0, pick(rng, templates["scene"]).fill(values))
        if rng.random() < RUDE_PARTS["answer"]:
            values.update(with_articles(insult=f"{pick(rng, adjectives)} {pick(rng, nouns)}"))
            lines.append(pick(rng, templates["answer"]).fill(values))
        if rng.random() < RUDE_PARTS["after"]:
            lines.append(pick(rng, templates["after"]).fill(values))
        return "\n".join(lines)

    return write


def number_words(world: World) -> list[str]:
    """Return the names of 0 to 99."""
    words = world.lexicon.words("numbers")
    if len(words) != 28:
        raise ValueError(f"numbers.txt must hold 28 words; it holds {len(words)}; restore it")
    ones, tens = words[:20], words[20:]
    return [*ones, *(f"{ten}-{ones[one]}" if one else ten for ten in tens for one in range(10))]


def _draw_sum(rng: Random) -> tuple[int, str, int, int]:
    kind = rng.random()
    if kind < SUMS["+"]:
        n, m = between(rng, 0, LARGEST_NUMBER), between(rng, 0, LARGEST_NUMBER)
        return n, "+", m, n + m
    if kind < SUMS["-"]:
        n = between(rng, 0, LARGEST_NUMBER)
        m = between(rng, 0, n)
        return n, "-", m, n - m
    n, m = between(rng, 0, LARGEST_FACTOR), between(rng, 0, LARGEST_FACTOR)
    return n, "x", m, n * m


def sums_writer(world: World) -> Writer:
    """Write lines of sums in digits or in words, or small word problems."""
    in_words = number_words(world)
    problems = _problem_writer(world)

    def digits(rng: Random) -> str:
        n, sign, m, result = _draw_sum(rng)
        return f"{n} {sign} {m} = {result}"

    def words(rng: Random) -> str:
        if rng.random() < PLUS_IN_WORDS:
            n = between(rng, 0, LARGEST_IN_WORDS)
            m = between(rng, 0, LARGEST_IN_WORDS)
            return capitalised(f"{in_words[n]} plus {in_words[m]} is {in_words[n + m]}.")
        n = between(rng, 0, LARGEST_NUMBER)
        m = between(rng, 0, n)
        return capitalised(f"{in_words[n]} minus {in_words[m]} is {in_words[n - m]}.")

    lines = {"digits": digits, "words": words, "problem": problems}

    def write(rng: Random) -> str:
        place = rng.random()
        kind = next(kind for kind, end in SUM_DOCUMENTS.items() if place < end)
        n_lines = between(rng, *SUM_LINES[kind])
        return "\n".join(dict.fromkeys([lines[kind](rng) for _ in range(n_lines)]))

    return write


def _problem_writer(world: World) -> Writer:
    numbers = ("n", "m", "sum", "big", "rest", "few", "product")
    people = ("name", "friend", "things", "they", "them", "their", "They", "Their")
    templates = world.lexicon.templates("sums", (*numbers, *people))
    all_templates = [template for group in templates.values() for template in group]
    things = [word + "s" for word in world.lexicon.words("things")]
    slots = [slot for template in all_templates for slot in template.slots]
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
        return pick(rng, all_templates).fill(values)

    return write


class Surroundings:
    """Draws the things, spots and places a practical text may name."""

    def __init__(self, world: World) -> None:
        lexicon = world.lexicon
        self.lists = {
            "name": [person.name for person in world.people],
            "place": world.places,
            "weather": lexicon.words("weather"),
            "spot": lexicon.words("spots"),
            "food": world.foods,
            "number": lexicon.words("numbers")[2:11],
        }
        self.with_article = {
            "thing": lexicon.words("things"),
            "adjective": lexicon.words("adjectives"),
            "trade": world.trades,
            "animal": world.animals,
        }

    def draw(self, rng: Random) -> dict[str, str]:
        """Draw one value for every slot."""
        values = {slot: pick(rng, words) for slot, words in self.lists.items()}
        values["other spot"] = pick_other(rng, self.lists["spot"], values["spot"])
        nouns = {slot: pick(rng, words) for slot, words in self.with_article.items()}
        return values | with_articles(**nouns)


def list_writer(world: World) -> Writer:
    """Write a heading and some items."""
    templates = world.lexicon.templates("lists", (*_SLOTS, "food", "animal"))
    surroundings = Surroundings(world)
    adjectives, words = world.lexicon.words("adjectives"), world.lexicon.words("things")
    things = [f"{adjective} {word}" for adjective in adjectives for word in words]
    kinds = [
        (templates["things"], [f"- {article(thing)} {thing}" for thing in things]),
        (templates["foods"], [f"- {food}" for food in world.foods]),
        (templates["jobs"], templates["job"]),
    ]

    def write(rng: Random) -> str:
        headings, items = pick(rng, kinds)
        heading = pick(rng, headings).fill(surroundings.draw(rng))
        chosen = rng.sample(items, between(rng, *ITEMS_OF_A_LIST))
        if isinstance(chosen[0], Template):
            chosen = [f"- {item.fill(surroundings.draw(rng))}" for item in chosen]
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
    known = guides(world, name)
    surroundings = Surroundings(world)

    def write(rng: Random) -> str:
        title, steps = pick(rng, known)
        values = surroundings.draw(rng)
        chosen = some_steps(rng, steps, between(rng, *STEPS_OF_A_GUIDE))
        return f"How to {title.fill(values)}\n{numbered(chosen, values)}"

    return write


def vocabulary(world: World, name: str) -> dict[str, tuple[str, ...]]:
    """Return the words of a language by part of speech."""
    parts = world.lexicon.sections(name)
    pairs = {part: world.lexicon.pairs(name, part) for part in parts}
    return {part: tuple(word for word, _ in words) for part, words in pairs.items()}


def _sentences_writer(sentence: Writer) -> Writer:
    def write(rng: Random) -> str:
        n_sentences = between(rng, *SENTENCES_OF_A_LANGUAGE)
        return " ".join(dict.fromkeys([sentence(rng) for _ in range(n_sentences)]))

    return write


def lumi_writer(world: World) -> Writer:
    """Write Lumi: subject verb object, adjectives after their noun, article before it."""
    words = vocabulary(world, "language_a")
    articles = [article for article, _ in world.lexicon.pairs("language_a", "article")]
    names = [person.name for person in world.people]

    def noun_phrase(rng: Random) -> str:
        phrase = f"{pick(rng, articles)} {pick(rng, words['noun'])}"
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

    return _sentences_writer(sentence)


def torgan_writer(world: World) -> Writer:
    """Write Torgan: subject object verb, `-ok` on the object, `ga` ends a question."""
    words = vocabulary(world, "language_b")
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

    return _sentences_writer(sentence)
