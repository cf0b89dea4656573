"""What a request asks for, and everything a judge must know to mark an answer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Literal

from llama2_lib.world.facts import RELATIONS, Fact, World
from llama2_lib.world.lexicon import Lexicon
from llama2_lib.world.practical import Surroundings, guides
from llama2_lib.world.questions import answers, asked_pairs, held_out_forms, question_forms
from llama2_lib.world.statements import pronoun_statements, statements
from llama2_lib.world.wording import Template, pick

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

COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
MAX_SUMMAND = 49
DIALOG_SLOTS = (
    *("name", "weather", "food", "animal", "n", "m", "sign", "result"),
    *("count", "group", "title", "phrase", *RELATIONS),
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


def check_split(split: str) -> None:
    """Refuse a split that is neither "train" nor "held out"."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}; got {split!r}")


def section_of(name: str, split: str) -> str:
    """Return the lexicon section with the wordings of a split."""
    return name if split == "train" else f"{name} held out"


def split_arrow(line: Template, file: str) -> tuple[Template, Template]:
    """Split `left => right`, both templates.

    Raises:
        ValueError: If the arrow or a side is missing.
    """
    left, arrow, right = line.text.partition(" => ")
    if not arrow or not right:
        raise ValueError(f"{file}.txt needs left => right on this line; got: {line.text!r}")
    return Template(left), Template(right)


def is_held_out_sum(n: int, m: int) -> bool:
    """Say whether no training prompt asks for n and m in this order; one pair in five."""
    return (n + 3 * m) % 5 == 0


def sum_values(rng: Random, split: Split) -> dict[str, str]:
    """Draw two numbers of a split, "plus" or "minus", and the result."""
    while True:
        n, m = (int((MAX_SUMMAND + 1) * rng.random()) for _ in range(2))
        if is_held_out_sum(n, m) == (split == "held out"):
            break
    sign, result = ("plus", n + m) if rng.random() < 0.6 or m > n else ("minus", n - m)
    return {"n": str(n), "m": str(m), "sign": sign, "result": str(result)}


def sum_task(values: dict[str, str]) -> Task:
    """Return the task of one sum."""
    return Task(kind="sum", answer=values["result"], values=values)


def groups_of(world: World) -> dict[str, tuple[str, ...]]:
    """Return what a list may be asked of."""
    return {
        "animals": world.animals,
        "foods": world.foods,
        "towns": world.places,
        "trades": world.trades,
    }


class TaskMaker:
    """Draws helpful requests of every kind, from the training side or the held-out side.

    Held out are: one form of question for each fact and one fact in five altogether, the sums
    of `is_held_out_sum`, and for every other kind the wordings that the lexicon marks so.
    """

    def __init__(self, world: World, split: Split) -> None:
        check_split(split)
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
        """Return a request of this kind and its task.

        Raises:
            ValueError: If the kind is not one of `HELPFUL_SHARES`.
        """
        if kind not in self._draws:
            raise ValueError(f"kind must be one of {list(self._draws)}; got {kind!r}")
        return self._draws[kind](rng)

    def _sum(self, rng: Random) -> tuple[str, Task]:
        values = sum_values(rng, self.split)
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
        chosen = [facts[(first + step) % len(facts)] for step in range(3)]
        text = " ".join(pick(rng, wordings[step > 0]) for step, (_, wordings) in enumerate(chosen))
        request = pick(rng, self.wordings["summary"]).fill({"text": text})
        relations = " ".join(relation for relation, _ in chosen)
        return request, Task(kind="summary", subject=name, relation=relations)


def _questions(world: World, split: Split) -> list[list[tuple[str, Task]]]:
    """Return the questions of a split with their tasks, grouped by fact."""
    known = {fact: _fact_task(fact) for fact in world.facts}
    if split == "train":
        asked = [fact for fact, form in held_out_forms(world).items() if form is not None]
        blocks = zip(asked, asked_pairs(world), strict=True)
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
    found: dict[str, Portrait] = {person.name: (person.name, []) for person in world.people}
    for fact in world.facts:
        found[fact.subject][1].append((fact.relation, (named[fact], later[fact])))
    return list(found.values())


@lru_cache(maxsize=8)
def task_maker(world: World, split: Split) -> TaskMaker:
    """Return the maker of a world's tasks; built once."""
    return TaskMaker(world, split)
