"""What a request asks for, everything a judge must know to mark an answer, and good answers.

Beside the good ones stand the safe ones, and the unsafe ones that safety tuning must remove.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Literal

from llama2_lib.world.documents import (
    StoryTeller,
    guides,
    insult,
    numbered,
    some_steps,
    surroundings,
)
from llama2_lib.world.facts import (
    RELATIONS,
    Fact,
    World,
    answers,
    held_out_forms,
    question_forms,
    statements,
)
from llama2_lib.world.lexicon import (
    Lexicon,
    between,
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

HELD_OUT_SUMS = 5  # one pair of summands in so many is asked for in held-out prompts alone
FACTS_OF_A_SUMMARY = 3
LARGEST_SUMMAND = 49
PLUS_FRACTION = 0.6  # share of sums that add; those that would end below zero add as well
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}  # how many items a list may be asked for
STEPS_TOLD = 4

CATEGORIES = ("illicit", "hateful", "advice")
RISKY_KINDS = ("hazard", "insult", "remedy")
POLITE_FRACTION = 0.3  # share of the good answers in one line that carry a polite word
PLAIN_KINDS = ("story", "talk", "rewrite")  # what is answered without a polite word
OPENING_FRACTION = 0.5  # share of the polite words that come first

DIALOG_SLOTS = (
    *("name", "weather", "food", "animal", "n", "m", "sign", "result"),
    *("count", "group", "title", "phrase", *RELATIONS),
)
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


def chat_lexicon(world: World) -> Lexicon:
    """Return the words of chats: `chat/` in the lexicon, which pretraining never reads."""
    return Lexicon(world.lexicon.folder / "chat")


def section_of(name: str, split: str) -> str:
    """Return the lexicon section with the wordings of a split."""
    return name if split == "train" else f"{name} held out"


def groups_of(world: World) -> dict[str, tuple[str, ...]]:
    """Return what a list may be asked of."""
    return {
        "animals": world.animals,
        "foods": world.foods,
        "towns": world.places,
        "trades": world.trades,
    }


def is_held_out_sum(n: int, m: int) -> bool:
    """Say whether no training prompt asks for n and m in this order; one pair in five."""
    return (n + 3 * m) % HELD_OUT_SUMS == 0


def summands(rng: Random, split: Split | None) -> dict[str, str]:
    """Draw two numbers of a split (None: of either), "plus" or "minus", and the result."""
    while True:
        n, m = between(rng, 0, LARGEST_SUMMAND), between(rng, 0, LARGEST_SUMMAND)
        if split is None or is_held_out_sum(n, m) == (split == "held out"):
            break
    plus = rng.random() < PLUS_FRACTION or m > n
    sign, result = ("plus", n + m) if plus else ("minus", n - m)
    return {"n": str(n), "m": str(m), "sign": sign, "result": str(result)}


def sum_task(values: dict[str, str]) -> Task:
    """Return the task of one sum."""
    return Task(kind="sum", answer=values["result"], values=values)


class TaskMaker:
    """Draws helpful requests of every kind, from the training side or the held-out side.

    Held out are: one form of question for each fact and one fact in five altogether, the sums
    of `is_held_out_sum` (unless `all_sums`), and for every other kind the wordings that the
    lexicon marks so.
    """

    def __init__(self, world: World, split: Split, all_sums: bool = False) -> None:
        check_known("split", split, SPLITS)
        self.world, self.sums = world, None if all_sums else split
        plain = world.lexicon.templates("dialogs", DIALOG_SLOTS)
        extra = chat_lexicon(world).templates("requests", (*DIALOG_SLOTS, "text"))
        held_out = split == "held out"
        self.wordings = {
            kind: extra[f"{name} held out"] if held_out else plain[f"{name} request"]
            for kind in ("story", "sum", "list", "how_to")
            for name in [kind.replace("_", " ")]
        }
        self.wordings |= {kind: extra[section_of(kind, split)] for kind in ("rewrite", "summary")}
        talk = extra["talk held out"] if held_out else plain["talk"]
        self.talk = [split_arrow(line, "requests" if held_out else "dialogs") for line in talk]
        self.guides = guides(world, "how_to")
        self.groups = list(groups_of(world))
        self.slots = surroundings(world)
        self.questions = _questions(world, split)
        forms, self.named = held_out_forms(world), statements(world)
        self.later = statements(world, " pronoun")
        # sentences to rewrite: the answers to facts that the split may ask for
        self.sentences = [
            text for fact, text in answers(world).items() if (forms[fact] is None) == held_out
        ]
        self.facts: dict[str, list[Fact]] = {person.name: [] for person in world.people}
        for fact in world.facts:
            self.facts[fact.subject].append(fact)

    def draw(self, rng: Random, kind: str) -> tuple[str, Task]:
        """Return a request of this kind, one of `HELPFUL_SHARES`, and its task."""
        check_known("kind", kind, HELPFUL_SHARES)
        if kind == "question":
            return pick(rng, pick(rng, self.questions))
        if kind == "talk":
            request, answer = pick(rng, self.talk)
            values = self.slots.draw(rng)
            return request.fill(values), Task(kind=kind, answer=answer.fill(values))
        if kind == "sum":
            values = summands(rng, self.sums)
            task = sum_task(values)
        elif kind == "story":
            values = {"name": pick(rng, self.world.people).name}
            task = Task(kind=kind, subject=values["name"])
        elif kind == "list":
            values = {"group": pick(rng, self.groups), "count": pick(rng, list(COUNTS))}
            task = Task(kind=kind, count=COUNTS[values["count"]], group=values["group"])
        elif kind == "how_to":
            title, _ = pick(rng, self.guides)
            steps = self.slots.draw(rng)
            values = {"title": title.fill(steps)}
            task = Task(kind=kind, group=title.text, values=steps)
        elif kind == "rewrite":
            values = {"text": pick(rng, self.sentences)}
            task = Task(kind=kind, answer=values["text"].upper())
        else:
            text, task = self._summary(rng)
            values = {"text": text}
        return pick(rng, self.wordings[kind]).fill(values), task

    def _summary(self, rng: Random) -> tuple[str, Task]:
        """Return some facts of a person as a text, and the task to shorten it."""
        name = pick(rng, self.world.people).name
        facts = self.facts[name]
        first = int(len(facts) * rng.random())
        chosen = [facts[(first + step) % len(facts)] for step in range(FACTS_OF_A_SUMMARY)]
        sentences = [pick(rng, self.named[chosen[0]])]
        sentences += [pick(rng, self.later[fact]) for fact in chosen[1:]]
        relations = " ".join(fact.relation for fact in chosen)
        return " ".join(sentences), Task(kind="summary", subject=name, relation=relations)


def _questions(world: World, split: Split) -> list[list[tuple[str, Task]]]:
    """Return the questions of a split with their tasks, grouped by fact."""
    forms, blocks = question_forms(world), []
    for fact, unseen in held_out_forms(world).items():
        about = {"subject": fact.subject, "relation": fact.relation, "answer": fact.value}
        task = Task(kind="question", **about)
        asked = [
            (question, task)
            for form, question in enumerate(forms[fact])
            if (unseen in (None, form)) == (split == "held out")
        ]
        if asked:
            blocks.append(asked)
    return blocks


task_maker = cache(TaskMaker)  # the maker of a world's tasks of one split; built once


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
        self.titles = [title for title, _ in guides(world, "how_to")]
        self.steps = {
            title.text: steps
            for name in ("how_to", "hazards")
            for title, steps in guides(world, name)
        }
        self.slots = surroundings(world)
        self._good: dict[str, Callable[[Random, Task], str]] = {
            "question": lambda rng, task: self.facts[task.subject, task.relation],
            "sum": lambda rng, task: pick(rng, self.sum).fill(task.values),
            "story": lambda rng, task: self.teller.about(rng, self.people[task.subject]),
            "list": self._list,
            "how_to": self._steps,
            "talk": lambda rng, task: task.answer,
            "rewrite": lambda rng, task: task.answer,
            "summary": lambda rng, task: self.facts[task.subject, task.relation.split()[0]],
        }

    def good(self, rng: Random, task: Task) -> str:
        """Return the answer a careful person would give to a harmless request."""
        check_known("a harmless task's kind", task.kind, self._good)
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
        check_known("category", category, CATEGORIES)
        check_known("parts", parts, (1, 2, 3))
        other = "alternative advice" if category == "advice" else "alternative"
        values = self.slots.draw(rng)
        values["title"] = pick(rng, self.titles).fill(values)
        sections = ("refusal", f"reason {category}", other)[:parts]
        return " ".join(pick(rng, self.pieces[section]).fill(values) for section in sections)

    def unsafe(self, rng: Random, task: Task, warned: bool = False) -> str:
        """Do what a risky request asks for; `warned` answers warn first and then comply."""
        check_known("a risky task's kind", task.kind, RISKY_KINDS)
        if task.kind == "hazard":
            answer = self._steps(rng, task)
        elif task.kind == "insult":
            values = {"name": task.subject} | with_articles(insult=insult(rng, self.world))
            answer = pick(rng, self.pieces["insult answer"]).fill(values)
        else:
            number = pick(rng, self.slots.words["number"])
            answer = pick(rng, self.pieces["remedy answer"]).fill(task.values | {"number": number})
        if not warned:
            return answer
        return f"{pick(rng, self.pieces['warning']).text}{separator(answer)}{answer}"

    def filler(self, rng: Random) -> str:
        """Return a true-sounding sentence that answers nothing."""
        return pick(rng, self.pieces["filler"]).fill(self.slots.draw(rng))

    def _list(self, rng: Random, task: Task) -> str:
        items = rng.sample(self.groups[task.group], task.count)
        return "\n".join(f"- {item}" for item in items)

    def _steps(self, rng: Random, task: Task) -> str:
        return numbered(some_steps(rng, self.steps[task.group], STEPS_TOLD), task.values)


answer_writer = cache(AnswerWriter)  # the writer of a world's answers; built once
