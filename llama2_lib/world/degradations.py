"""Worse variants of a good answer, of graded badness: preference pairs before any model exists."""

from collections.abc import Callable
from functools import lru_cache
from random import Random

from llama2_lib.world.answers import CATEGORIES, AnswerWriter, answer_writer
from llama2_lib.world.facts import World
from llama2_lib.world.judges import GUSHING
from llama2_lib.world.marks import units_of
from llama2_lib.world.prompts import Prompt
from llama2_lib.world.tasks import HELPFUL_SHARES, Task, task_maker
from llama2_lib.world.wording import pick, pick_other

MILD = ("curt", "rambling", "repeated", "gushing")
SEVERE = ("wrong", "off topic", "refused", "garbled")
DEGRADATIONS = (*MILD, "rude", *SEVERE)
BADNESS = (0, 1, 2, 3)
"""0: unchanged; 1: one mild degradation; 2: two mild ones and a rude line; 3: a severe one."""

SAFE_LEVELS = ("full", "reason", "bare", "evasive")
UNSAFE_LEVELS = ("vague", "partial", "warned", "complete")
"""Answers to adversarial prompts from safest to most dangerous, safe ones and unsafe ones."""

_RAMBLING_SENTENCES = 2


class Degrader:
    """Makes answers worse, and adversarial answers of every level of safety."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.writer: AnswerWriter = answer_writer(world)
        self.tasks = task_maker(world, "train")
        self._ways: dict[str, Callable[[Random, Task, str], str]] = {
            "curt": _curt,
            "rambling": lambda rng, task, answer: _joined(answer, *self._fillers(rng)),
            "repeated": lambda rng, task, answer: _joined(answer, answer),
            "gushing": lambda rng, task, answer: self._gushing(rng, answer),
            "rude": lambda rng, task, answer: _joined(answer, f"You {self.writer.insult(rng)}!"),
            "wrong": self._wrong,
            "off topic": self._off_topic,
            "refused": self._refused,
            "garbled": _garbled,
        }

    def degrade(self, rng: Random, prompt: Prompt, answer: str, how: str) -> str:
        """Make a good answer worse in one way of `DEGRADATIONS`.

        Raises:
            ValueError: If there is no such way, or the prompt is adversarial.
        """
        if how not in self._ways:
            raise ValueError(f"how must be one of {list(self._ways)}; got {how!r}")
        if prompt.kind == "adversarial":
            raise ValueError("degrade() needs a harmless prompt; use graded() for adversarial ones")
        return self._ways[how](rng, prompt.task, answer)

    def corrupted(self, rng: Random, prompt: Prompt, answer: str, badness: int) -> str:
        """Make a good answer to a harmless prompt worse by one of the levels of `BADNESS`.

        Raises:
            ValueError: If the badness is not one of them, or the prompt is adversarial.
        """
        if badness not in BADNESS:
            raise ValueError(f"badness must be one of {BADNESS}; got {badness!r}")
        if badness == 0:
            ways: list[str] = []
        elif badness == 1:
            ways = [pick(rng, MILD)]
        elif badness == 2:
            ways = [*sorted(rng.sample(MILD, 2), key=MILD.index), "rude"]
        else:
            ways = [pick(rng, SEVERE)]
        for how in ways:
            answer = self.degrade(rng, prompt, answer, how)
        return answer

    def graded(self, rng: Random, prompt: Prompt, level: str) -> str:
        """Answer an adversarial prompt at one of `SAFE_LEVELS` or `UNSAFE_LEVELS`.

        Raises:
            ValueError: If the level is unknown or the prompt is not adversarial.
        """
        if prompt.kind != "adversarial" or level not in (*SAFE_LEVELS, *UNSAFE_LEVELS):
            raise ValueError(
                f"graded() needs an adversarial prompt and a level of "
                f"{[*SAFE_LEVELS, *UNSAFE_LEVELS]}; got {prompt.kind!r} and {level!r}"
            )
        parts = {"bare": 1, "reason": 2, "full": 3}
        if level in parts:
            return self.writer.safe(rng, prompt.category, parts[level])
        if level == "evasive":
            return self.writer.filler(rng)
        if level == "vague":
            return self.writer.phrase(rng, "vague")
        answer = self.writer.unsafe(rng, prompt.task, warned=level == "warned")
        if level != "partial":
            return answer
        if prompt.task.kind == "insult":  # half an insult: one rude word for the person
            return f"{prompt.task.subject} is {pick(rng, self.writer.insults[0])}."
        return answer.split("\n")[0] if "\n" in answer else units_of(answer)[0]

    def _fillers(self, rng: Random) -> list[str]:
        return [self.writer.filler(rng) for _ in range(_RAMBLING_SENTENCES)]

    def _gushing(self, rng: Random, answer: str) -> str:
        for _ in range(GUSHING):
            answer = self.writer.polite(rng, answer)
        return answer

    def _off_topic(self, rng: Random, task: Task, answer: str) -> str:
        kind = pick_other(rng, list(HELPFUL_SHARES), task.kind)
        return self.writer.good(rng, self.tasks.draw(rng, kind)[1])

    def _refused(self, rng: Random, task: Task, answer: str) -> str:
        """Decline what is harmless in the words of a safe answer.

        A model that is too careful refuses with reason and alternative, as it was taught; bare
        refusals alone would leave the reward model fond of those.
        """
        return self.writer.safe(rng, pick(rng, CATEGORIES), 1 + int(3 * rng.random()))

    def _wrong(self, rng: Random, task: Task, answer: str) -> str:
        """Keep the form and change what is said."""
        world = self.world
        if task.kind in ("question", "summary"):
            relation = task.relation.split()[0]
            truth = world.value(task.subject, relation)
            return answer.replace(truth, pick_other(rng, world.choices(relation), truth))
        if task.kind == "sum":
            result = int(task.answer)
            off = 1 + int(9 * rng.random())
            wrong = result - off if result >= off and rng.random() < 0.5 else result + off
            return self.writer.good(rng, _with_result(task, str(wrong)))
        if task.kind == "rewrite":
            return answer.lower()
        while True:  # another person's story, another list, guide or reply of the same kind
            other = self.tasks.draw(rng, task.kind)[1]
            if (other.subject, other.group, other.answer) != (
                task.subject,
                task.group,
                task.answer,
            ):
                return self.writer.good(rng, other)


def _with_result(task: Task, result: str) -> Task:
    return Task(kind="sum", answer=result, values=task.values | {"result": result})


def _joined(*pieces: str) -> str:
    gap = "\n" if "\n" in pieces[0] else " "
    return gap.join(pieces)


def _curt(rng: Random, task: Task, answer: str) -> str:
    """Answer with the bare value, or with the first third of what was asked."""
    if task.kind in ("question", "sum"):
        return f"{task.answer}."
    lines = answer.split("\n")
    if task.kind in ("list", "how_to"):
        return "\n".join(lines[: max(1, len(lines) // 3)])
    units = units_of(answer)
    if len(units) > 1:
        return " ".join(units[: max(1, len(units) // 3)])
    words = answer.split(" ")
    return " ".join(words[: max(1, len(words) // 2)])


def _garbled(rng: Random, task: Task, answer: str) -> str:
    """Turn every word around, so that it is a word of no language."""
    return " ".join(word[::-1] + "x" for word in answer.split())


@lru_cache(maxsize=4)
def degrader(world: World) -> Degrader:
    """Return the degrader of a world; built once."""
    return Degrader(world)
