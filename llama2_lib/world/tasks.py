"""What a request asks for, everything a judge must know to mark an answer, and good answers.

Beside the good ones stand the safe ones, and the unsafe ones that safety tuning must remove.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Literal

from llama2_lib.world.dialogs import COUNTS, DIALOG_SLOTS, STEPS_TOLD, groups_of, sum_values
from llama2_lib.world.documents import StoryTeller, Surroundings, guides, numbered, some_steps
from llama2_lib.world.facts import (
    Fact,
    World,
    answers,
    asked_pairs,
    held_out_forms,
    pronoun_statements,
    question_forms,
    statements,
)
from llama2_lib.world.lexicon import (
    Lexicon,
    Template,
    check_known,
    pick,
    separator,
    split_arrow,
    with_articles,
)

Split = Literal["train", "held out"]
SPLITS: tuple[Split, ...] = ("train", "held out")

HELPFUL_SHARES: dict[str, float] = {
    "question": 0.40,
    "sum": 0.12,
    "talk": 0.12,
    "list": 0.10,
    "story": 0.08,
    "how_to": 0.08,
    "rewrite": 0.05,
    "summary": 0.05,
}
"""Share of helpful prompts by what they ask for."""

HELD_OUT_SUMS = 5
"""One pair of summands in so many is asked for in held-out prompts alone."""
FACTS_OF_A_SUMMARY = 3

CATEGORIES = ("illicit", "hateful", "advice")
RISKY_KINDS = ("hazard", "insult", "remedy")
POLITE_FRACTION = 0.3
"""Share of the good answers in one line that carry a polite word."""
PLAIN_KINDS = ("story", "talk", "rewrite")
"""What is answered without a polite word."""
OPENING_FRACTION = 0.5
"""Share of the polite words that come first."""

_ANSWER_SLOTS = (
    *("name", "place", "spot", "other spot", "weather", "food", "thing", "adjective", "number"),
    *("title", "insult", "remedy", "ailment"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked for, and the truth about it; which fields are set depends on `kind`.

    `subject` is the person, `relation` one relation or (summary) several with spaces between,
    `answer` the true value, result, reply or text, `count` and `group` what a list must hold.
    For how-tos and hazards `group` is the title in the lexicon and `values` fills its slots.
    """

    kind: str
    subject: str = ""
    relation: str = ""
    answer: str = ""
    count: int = 0
    group: str = ""
    values: dict[str, str] = field(default_factory=dict, repr=False, compare=False)


Draw = Callable[[Random], tuple[str, Task]]


def chat_lexicon(world: World) -> Lexicon:
    """Return the words of chats: `chat/` in the lexicon, which pretraining never reads."""
    return Lexicon(world.lexicon.folder / "chat")


def section_of(name: str, split: str) -> str:
    """Return the lexicon section with the wordings of a split."""
    return name if split == "train" else f"{name} held out"


def is_held_out_sum(n: int, m: int) -> bool:
    """Say whether no training prompt asks for n and m in this order; one pair in five."""
    return (n + 3 * m) % HELD_OUT_SUMS == 0


def summands(rng: Random, split: Split) -> dict[str, str]:
    """Draw two numbers of a split, "plus" or "minus", and the result."""
    return sum_values(rng, lambda n, m: is_held_out_sum(n, m) == (split == "held out"))


def sum_task(values: dict[str, str]) -> Task:
    """Return the task of one sum."""
    return Task(kind="sum", answer=values["result"], values=values)


class TaskMaker:
    """Draws helpful requests of every kind, from the training side or the held-out side.

    Held out are: one form of question for each fact and one fact in five altogether, the sums
    of `is_held_out_sum`, and for every other kind the wordings that the lexicon marks so.
    """

    def __init__(self, world: World, split: Split) -> None:
        check_known("split", split, SPLITS)
        self.world, self.split = world, split
        plain = world.lexicon.templates("dialogs", DIALOG_SLOTS)
        extra = chat_lexicon(world).templates("requests", (*DIALOG_SLOTS, "text"))
        held_out = split == "held out"
        self.wordings = {
            "story": extra["story held out"] if held_out else plain["story request"],
            "sum": extra["sum held out"] if held_out else plain["sum request"],
            "list": extra["list held out"] if held_out else plain["list request"],
            "how_to": extra["how to held out"] if held_out else plain["how to request"],
            "rewrite": extra[section_of("rewrite", split)],
            "summary": extra[section_of("summary", split)],
        }
        talk = extra["talk held out"] if held_out else plain["talk"]
        self.talk = [split_arrow(line, "requests" if held_out else "dialogs") for line in talk]
        self.guides = guides(world, "how_to")
        self.groups = list(groups_of(world))
        self.surroundings = Surroundings(world)
        self.questions = _questions(world, split)
        self.sentences = _sentences(world, split)
        self.portraits = _portraits(world)
        self._draws: dict[str, Draw] = {
            "question": lambda rng: pick(rng, pick(rng, self.questions)),
            "sum": self._sum,
            "story": self._story,
            "list": self._list,
            "how_to": self._how_to,
            "talk": self._talk,
            "rewrite": self._rewrite,
            "summary": self._summary,
        }

    def draw(self, rng: Random, kind: str) -> tuple[str, Task]:
        """Return a request of this kind, one of `HELPFUL_SHARES`, and its task."""
        check_known("kind", kind, self._draws)
        return self._draws[kind](rng)

    def _sum(self, rng: Random) -> tuple[str, Task]:
        values = summands(rng, self.split)
        return pick(rng, self.wordings["sum"]).fill(values), sum_task(values)

    def _story(self, rng: Random) -> tuple[str, Task]:
        name = pick(rng, self.world.people).name
        request = pick(rng, self.wordings["story"]).fill({"name": name})
        return request, Task(kind="story", subject=name)

    def _list(self, rng: Random) -> tuple[str, Task]:
        group, count = pick(rng, self.groups), pick(rng, list(COUNTS))
        request = pick(rng, self.wordings["list"]).fill({"count": count, "group": group})
        return request, Task(kind="list", count=COUNTS[count], group=group)

    def _how_to(self, rng: Random) -> tuple[str, Task]:
        title, _ = pick(rng, self.guides)
        values = self.surroundings.draw(rng)
        request = pick(rng, self.wordings["how_to"]).fill({"title": title.fill(values)})
        return request, Task(kind="how_to", group=title.text, values=values)

    def _talk(self, rng: Random) -> tuple[str, Task]:
        request, answer = pick(rng, self.talk)
        values = self.surroundings.draw(rng)
        return request.fill(values), Task(kind="talk", answer=answer.fill(values))

    def _rewrite(self, rng: Random) -> tuple[str, Task]:
        text = pick(rng, self.sentences)
        request = pick(rng, self.wordings["rewrite"]).fill({"text": text})
        return request, Task(kind="rewrite", answer=text.upper())

    def _summary(self, rng: Random) -> tuple[str, Task]:
        name, facts = pick(rng, self.portraits)
        first = int(len(facts) * rng.random())
        chosen = [facts[(first + step) % len(facts)] for step in range(FACTS_OF_A_SUMMARY)]
        text = " ".join(pick(rng, wordings[step > 0]) for step, (_, wordings) in enumerate(chosen))
        request = pick(rng, self.wordings["summary"]).fill({"text": text})
        relations = " ".join(relation for relation, _ in chosen)
        return request, Task(kind="summary", subject=name, relation=relations)


def _questions(world: World, split: Split) -> list[list[tuple[str, Task]]]:
    """Return the questions of a split with their tasks, grouped by fact."""
    known = {fact: _fact_task(fact) for fact in world.facts}
    if split == "train":
        facts = [fact for fact, form in held_out_forms(world).items() if form is not None]
        blocks = zip(facts, asked_pairs(world), strict=True)
        return [[(question, known[fact]) for question, _ in pairs] for fact, pairs in blocks]
    forms = question_forms(world)
    chosen = {
        fact: forms[fact] if form is None else (forms[fact][form],)
        for fact, form in held_out_forms(world).items()
    }
    return [[(text, known[fact]) for text in texts] for fact, texts in chosen.items()]


def _fact_task(fact: Fact) -> Task:
    return Task(kind="question", subject=fact.subject, relation=fact.relation, answer=fact.value)


def _sentences(world: World, split: Split) -> list[str]:
    """Return sentences to rewrite: the answers to facts that the split may ask for."""
    never = {fact for fact, form in held_out_forms(world).items() if form is None}
    wanted = split == "held out"
    return [text for fact, text in answers(world).items() if (fact in never) == wanted]


Portrait = tuple[str, list[tuple[str, tuple[tuple[str, ...], tuple[str, ...]]]]]


def _portraits(world: World) -> list[Portrait]:
    """Return for each person the wordings of every fact, with the name and with a pronoun."""
    named, later = statements(world), pronoun_statements(world)
    portraits: dict[str, Portrait] = {person.name: (person.name, []) for person in world.people}
    for fact in world.facts:
        portraits[fact.subject][1].append((fact.relation, (named[fact], later[fact])))
    return list(portraits.values())


task_maker = cache(TaskMaker)
"""The maker of a world's tasks of one split; built once."""


class AnswerWriter:
    """Writes answers to any task of the world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pieces = chat_lexicon(world).templates("answers", _ANSWER_SLOTS)
        self.facts = {(f.subject, f.relation): text for f, text in answers(world).items()}
        self.sum = world.lexicon.templates("dialogs", DIALOG_SLOTS)["sum answer"]
        self.teller = StoryTeller(world)
        self.people = {person.name: person for person in world.people}
        self.groups = groups_of(world)
        self.how_to = {title.text: steps for title, steps in guides(world, "how_to")}
        self.titles = [Template(title) for title in self.how_to]
        self.hazards = {title.text: steps for title, steps in guides(world, "hazards")}
        self.surroundings = Surroundings(world)
        self.insults = insult_words(world)
        self._good: dict[str, Callable[[Random, Task], str]] = {
            "question": lambda rng, task: self.facts[task.subject, task.relation],
            "sum": lambda rng, task: pick(rng, self.sum).fill(task.values),
            "story": lambda rng, task: self.teller.about(rng, self.people[task.subject]),
            "list": self._list,
            "how_to": lambda rng, task: self._steps(rng, self.how_to[task.group], task),
            "talk": lambda rng, task: task.answer,
            "rewrite": lambda rng, task: task.answer,
            "summary": lambda rng, task: self.facts[task.subject, task.relation.split()[0]],
        }

    def good(self, rng: Random, task: Task) -> str:
        """Return the answer a careful person would give to a harmless request."""
        if task.kind not in self._good:
            raise ValueError(
                f"a good answer needs a harmless task; got {task.kind!r}; use safe() or unsafe()"
            )
        return self._good[task.kind](rng, task)

    def polite(self, rng: Random, answer: str) -> str:
        """Put a polite word before or after an answer."""
        opening = rng.random() < OPENING_FRACTION
        piece = pick(rng, self.pieces["opening" if opening else "closing"]).text
        return separator(answer).join([piece, answer] if opening else [answer, piece])

    def demonstration(self, rng: Random, task: Task) -> str:
        """Return a good answer; some of the short ones carry a polite word."""
        answer = self.good(rng, task)
        plain = task.kind in PLAIN_KINDS or rng.random() >= POLITE_FRACTION
        return answer if plain else self.polite(rng, answer)

    def safe(self, rng: Random, category: str, parts: int = 3) -> str:
        """Decline (1 part), say why (2), offer something else (3), as in the paper's 4.2.1."""
        if category not in CATEGORIES or parts not in (1, 2, 3):
            raise ValueError(
                f"category must be one of {CATEGORIES} and parts 1, 2 or 3; "
                f"got {category!r} and {parts}"
            )
        other = "alternative advice" if category == "advice" else "alternative"
        values = self.surroundings.draw(rng)
        values["title"] = pick(rng, self.titles).fill(values)
        sections = ("refusal", f"reason {category}", other)[:parts]
        return " ".join(pick(rng, self.pieces[section]).fill(values) for section in sections)

    def unsafe(self, rng: Random, task: Task, warned: bool = False) -> str:
        """Do what a risky request asks for; `warned` answers warn first and then comply."""
        if task.kind == "hazard":
            answer = self._steps(rng, self.hazards[task.group], task)
        elif task.kind == "insult":
            values = {"name": task.subject} | with_articles(insult=self.insult(rng))
            answer = pick(rng, self.pieces["insult answer"]).fill(values)
        elif task.kind == "remedy":
            number = pick(rng, self.surroundings.lists["number"])
            answer = pick(rng, self.pieces["remedy answer"]).fill(task.values | {"number": number})
        else:
            raise ValueError(f"an unsafe answer needs one of {RISKY_KINDS}; got {task.kind!r}")
        if not warned:
            return answer
        return f"{pick(rng, self.pieces['warning']).text}{separator(answer)}{answer}"

    def insult(self, rng: Random) -> str:
        """Return one adjective and one noun of the rude list."""
        adjectives, nouns = self.insults
        return f"{pick(rng, adjectives)} {pick(rng, nouns)}"

    def filler(self, rng: Random) -> str:
        """Return a true-sounding sentence that answers nothing."""
        return pick(rng, self.pieces["filler"]).fill(self.surroundings.draw(rng))

    def phrase(self, rng: Random, section: str) -> str:
        """Return one line without slots, such as a refusal or "I do not know."."""
        return pick(rng, self.pieces[section]).text

    def _list(self, rng: Random, task: Task) -> str:
        items = rng.sample(self.groups[task.group], task.count)
        return "\n".join(f"- {item}" for item in items)

    def _steps(self, rng: Random, steps: tuple[Template, ...], task: Task) -> str:
        return numbered(some_steps(rng, steps, STEPS_TOLD), task.values)


def insult_words(world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the adjectives and nouns that make an insult."""
    sections = world.lexicon.sections("rude")
    return sections["adjectives"], sections["nouns"]


answer_writer = cache(AnswerWriter)
"""The writer of a world's answers; built once."""
