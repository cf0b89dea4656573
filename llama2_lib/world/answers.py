"""Answers to tasks: good ones, safe ones, and the unsafe ones that safety tuning must remove."""

from collections.abc import Callable
from functools import lru_cache
from random import Random

from llama2_lib.world.facts import World
from llama2_lib.world.practical import Surroundings, guides, numbered, some_steps
from llama2_lib.world.questions import answers
from llama2_lib.world.stories import StoryTeller
from llama2_lib.world.tasks import DIALOG_SLOTS, Task, chat_lexicon, groups_of
from llama2_lib.world.wording import Template, pick, with_articles

CATEGORIES = ("illicit", "hateful", "advice")
RISKY_KINDS = ("hazard", "insult", "remedy")
POLITE_FRACTION = 0.3  # of the good answers in one line
MOST_STEPS = 4

_SLOTS = (
    *("name", "place", "spot", "other spot", "weather", "food", "thing", "adjective", "number"),
    *("title", "insult", "remedy", "ailment"),
)


class AnswerWriter:
    """Writes answers to any task of the world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pieces = chat_lexicon(world).templates("answers", _SLOTS)
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
        """Return the answer a careful person would give to a harmless request.

        Raises:
            ValueError: If the task is a risky one; ask for `safe` or `unsafe`.
        """
        if task.kind not in self._good:
            raise ValueError(
                f"a good answer needs a harmless task; got {task.kind!r}; use safe() or unsafe()"
            )
        return self._good[task.kind](rng, task)

    def polite(self, rng: Random, answer: str) -> str:
        """Put a polite word before or after an answer."""
        opening = rng.random() < 0.5
        piece = pick(rng, self.pieces["opening" if opening else "closing"]).text
        gap = "\n" if "\n" in answer else " "
        return f"{piece}{gap}{answer}" if opening else f"{answer}{gap}{piece}"

    def demonstration(self, rng: Random, task: Task) -> str:
        """Return a good answer; three in ten of the short ones carry a polite word."""
        answer = self.good(rng, task)
        plain = task.kind in ("story", "talk", "rewrite") or rng.random() >= POLITE_FRACTION
        return answer if plain else self.polite(rng, answer)

    def safe(self, rng: Random, category: str, parts: int = 3) -> str:
        """Decline (1 part), say why (2), and offer something else (3), as the paper's 4.2.1 does.

        Raises:
            ValueError: If the category is unknown or parts is not 1, 2 or 3.
        """
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
        gap = "\n" if "\n" in answer else " "
        return f"{pick(rng, self.pieces['warning']).text}{gap}{answer}"

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
        return numbered(some_steps(rng, steps, MOST_STEPS), task.values)


def insult_words(world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the adjectives and nouns that make an insult."""
    sections = world.lexicon.sections("rude")
    return sections["adjectives"], sections["nouns"]


@lru_cache(maxsize=4)
def answer_writer(world: World) -> AnswerWriter:
    """Return the writer of a world's answers; built once."""
    return AnswerWriter(world)
