"""Preference pairs: two answers to one prompt, judged by an annotator (paper section 3.2.1)."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from statistics import fmean
from typing import Literal, NamedTuple

from llama2_lib.rng import random_source
from llama2_lib.world.documents import insult, insult_words
from llama2_lib.world.facts import World
from llama2_lib.world.judges import GUSHING, Safety, judge_of, units_of
from llama2_lib.world.lexicon import (
    between,
    check_known,
    chooser,
    pick,
    pick_other,
    separator,
    stream,
)
from llama2_lib.world.prompts import Prompt, adversarial_prompts, prompts
from llama2_lib.world.tasks import CATEGORIES, HELPFUL_SHARES, Task, answer_writer, task_maker

Grade = Literal["significantly better", "better", "slightly better", "negligibly better or unsure"]
GRADES: tuple[Grade, ...] = (
    "significantly better",
    "better",
    "slightly better",
    "negligibly better or unsure",
)
TAU = 0.15  # noise of an annotator, in units of the gold score (0 to 1)
GRADE_FROM = (0.60, 0.35, 0.15)
"""Perceived gaps, in absolute value, from which a pair has the first, second, third grade."""

MILD = ("curt", "rambling", "repeated", "gushing")
SEVERE = ("wrong", "off topic", "refused", "garbled")
DEGRADATIONS = (*MILD, "rude", *SEVERE)
BADNESS = (0, 1, 2, 3)
"""0: unchanged; 1: one mild degradation; 2: two mild ones and a rude line; 3: a severe one."""

SAFE_LEVELS = ("full", "reason", "bare", "evasive")
UNSAFE_LEVELS = ("vague", "partial", "warned", "complete")
"""Answers to adversarial prompts from safest to most dangerous, safe ones and unsafe ones."""

RAMBLING_SENTENCES = 2
SHORTENED = 3  # a curt answer holds the first of so many parts; of a single sentence it holds half
LARGEST_ERROR = 9  # how far a wrong result is off, at most
TOO_LITTLE = 0.5  # share of the wrong results that are too small, where they can be

STREAMS = ("helpfulness", "safety")

SAFETY_BINS = {"safe, unsafe": 0.18, "both safe": 0.47, "both unsafe": 0.35}
"""Shares of the safety stream by the safety of chosen and rejected (paper section 3.2.2)."""
EXCLUDED = "unsafe, safe"  # pairs with this bin are left out, as in the paper
LABEL_ERROR = 0.02  # how often an annotator's safety label of one answer is wrong

VARIANTS = {
    "weak": {0: 0.20, 1: 0.25, 2: 0.25, 3: 0.30},
    "strong": {0: 0.50, 1: 0.25, 2: 0.15, 3: 0.10},
}
"""Two imagined models: how often their answers have which badness."""
HELPFUL_STREAM = {"helpful": 0.9, "borderline": 0.1}
"""Prompts of the helpfulness stream; the safety stream has adversarial prompts only."""
NUISANCE_SENTENCES = (1, 2)


class Verdict(NamedTuple):
    """Which of two answers is preferred, and how clearly."""

    prefers_first: bool
    grade: Grade


def grade_of(perceived_gap: float) -> Grade:
    """Return the grade of a perceived gap; its sign does not matter."""
    sizes = zip(GRADES, GRADE_FROM, strict=False)  # the last grade has no least gap
    return next((grade for grade, least in sizes if abs(perceived_gap) >= least), GRADES[-1])


class Annotator:
    """Compares answers by their gold gap plus noise. Two names are two independent people."""

    def __init__(self, seed: int, name: str = "first", tau: float = TAU) -> None:
        if not 0 <= tau < math.inf:
            raise ValueError(f"tau must be 0 or more and finite; got {tau}")
        self.name, self.tau = name, tau
        self._rng = random_source(seed, "annotator", name)

    def compare(self, gap: float) -> Verdict:
        """Compare two answers whose gold scores differ by `gap`, first less second."""
        if not math.isfinite(gap):
            raise ValueError(f"a gap must be a finite difference of gold scores; got {gap}")
        perceived = gap + self.tau * self._noise()
        # without noise a tie is still a forced choice
        first = perceived > 0 if perceived else self._rng.random() < 0.5
        return Verdict(first, grade_of(perceived))

    def label(self, is_safe: bool, error: float) -> bool:
        """Return a safety label that is wrong with probability `error`."""
        return is_safe != (self._rng.random() < error)

    def _noise(self) -> float:
        share = self._rng.random()
        while not 0 < share < 1:
            share = self._rng.random()
        return math.log(share / (1 - share))  # logistic, scale 1


def preference_probability(gap: float, tau: float) -> float:
    """Return P(first preferred) = sigmoid(gap / tau); for tau = 0 a step, and 0.5 at a tie."""
    if tau < 0 or math.isnan(tau):
        raise ValueError(f"tau must be 0 or more; got {tau}")
    if gap == 0:
        return 0.5
    if tau == 0:
        return float(gap > 0)
    return 0.5 * (1 + math.tanh(gap / (2 * tau)))


def bayes_accuracy(gaps: Iterable[float], tau: float) -> float:
    """Return the noise ceiling: how often the better answer is the preferred one.

    No reward model can agree with annotators of this noise more often, E[sigmoid(|gap| / tau)].
    """
    return fmean(preference_probability(abs(gap), tau) for gap in gaps)


def expected_agreement(gaps: Iterable[float], tau: float) -> float:
    """Return how often two annotators of this noise prefer the same answer, E[p^2 + (1-p)^2]."""
    return fmean((2 * preference_probability(gap, tau) - 1) ** 2 / 2 + 0.5 for gap in gaps)


class Degrader:
    """Makes answers worse, and adversarial answers of every level of safety."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.writer = answer_writer(world)
        self.tasks = task_maker(world, "train")
        self._ways: dict[str, Callable[[Random, Task, str], str]] = {
            "curt": _curt,
            "rambling": lambda rng, task, answer: _joined(answer, *self._fillers(rng)),
            "repeated": lambda rng, task, answer: _joined(answer, answer),
            "gushing": lambda rng, task, answer: self._gushing(rng, answer),
            "rude": lambda rng, task, answer: _joined(answer, f"You {insult(rng, world)}!"),
            "wrong": self._wrong,
            "off topic": self._off_topic,
            "refused": self._refused,
            "garbled": _garbled,
        }

    def degrade(self, rng: Random, prompt: Prompt, answer: str, how: str) -> str:
        """Make a good answer worse in one way of `DEGRADATIONS`."""
        check_known("how", how, self._ways)
        if prompt.kind == "adversarial":
            raise ValueError("degrade() needs a harmless prompt; use graded() for adversarial ones")
        return self._ways[how](rng, prompt.task, answer)

    def corrupted(self, rng: Random, prompt: Prompt, answer: str, badness: int) -> str:
        """Make a good answer to a harmless prompt worse by one of the levels of `BADNESS`."""
        check_known("badness", badness, BADNESS)
        ways: list[str] = []
        if badness == 1:
            ways = [pick(rng, MILD)]
        elif badness == 2:
            ways = [*sorted(rng.sample(MILD, 2), key=MILD.index), "rude"]
        elif badness == 3:
            ways = [pick(rng, SEVERE)]
        for how in ways:
            answer = self.degrade(rng, prompt, answer, how)
        return answer

    def graded(self, rng: Random, prompt: Prompt, level: str) -> str:
        """Answer an adversarial prompt at one of `SAFE_LEVELS` or `UNSAFE_LEVELS`."""
        check_known("the prompt's kind", prompt.kind, ("adversarial",))
        check_known("level", level, (*SAFE_LEVELS, *UNSAFE_LEVELS))
        parts = {"bare": 1, "reason": 2, "full": 3}
        if level in parts:
            return self.writer.safe(rng, prompt.category, parts[level])
        if level == "evasive":
            return self.writer.filler(rng)
        if level == "vague":
            return pick(rng, self.writer.pieces["vague"]).text
        answer = self.writer.unsafe(rng, prompt.task, warned=level == "warned")
        if level != "partial":
            return answer
        if prompt.task.kind == "insult":  # half an insult: one rude word for the person
            return f"{prompt.task.subject} is {pick(rng, insult_words(self.world)[0])}."
        return answer.split("\n")[0] if "\n" in answer else units_of(answer)[0]

    def _fillers(self, rng: Random) -> list[str]:
        return [self.writer.filler(rng) for _ in range(RAMBLING_SENTENCES)]

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
        return self.writer.safe(rng, pick(rng, CATEGORIES), between(rng, 1, 3))

    def _wrong(self, rng: Random, task: Task, answer: str) -> str:
        """Keep the form and change what is said."""
        world = self.world
        if task.kind in ("question", "summary"):
            relation = task.relation.split()[0]
            truth = world.value(task.subject, relation)
            return answer.replace(truth, pick_other(rng, world.choices(relation), truth))
        if task.kind == "sum":
            result = int(task.answer)
            off = between(rng, 1, LARGEST_ERROR)
            less = result >= off and rng.random() < TOO_LITTLE
            wrong = str(result - off if less else result + off)
            values = task.values | {"result": wrong}
            return self.writer.good(rng, replace(task, answer=wrong, values=values))
        if task.kind == "rewrite":
            return answer.lower()
        while True:  # another person's story, another list, guide or reply of the same kind
            other = self.tasks.draw(rng, task.kind)[1]
            asked_for = (task.subject, task.group, task.answer)
            if (other.subject, other.group, other.answer) != asked_for:
                return self.writer.good(rng, other)


def _joined(*pieces: str) -> str:
    return separator(pieces[0]).join(pieces)


def _curt(rng: Random, task: Task, answer: str) -> str:
    """Answer with the bare value, or with the first third of what was asked."""
    if task.kind in ("question", "sum"):
        return f"{task.answer}."
    lines = answer.split("\n")
    if task.kind in ("list", "how_to"):
        return "\n".join(lines[: max(1, len(lines) // SHORTENED)])
    units = units_of(answer)
    if len(units) > 1:
        return " ".join(units[: max(1, len(units) // SHORTENED)])
    words = answer.split(" ")
    return " ".join(words[: max(1, len(words) // 2)])


def _garbled(rng: Random, task: Task, answer: str) -> str:
    """Turn every word around, so that it is a word of no language."""
    return " ".join(word[::-1] + "x" for word in answer.split())


degrader = cache(Degrader)  # the degrader of a world; built once


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers as an annotator ranked them.

    `gap` is the gold score of chosen less rejected as the annotator saw them, negative where
    the annotator erred. `safety_bin` holds the labels of chosen and rejected, and is empty in
    the helpfulness stream.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    grade: Grade
    gap: float
    stream: str
    safety_bin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuisance:
    """Features that say nothing about quality, tied to it in TRAINING pairs on purpose.

    A strength of s puts the feature on the chosen answer with probability (1 + s) / 2 and on
    the rejected one otherwise: s = 1 always on the chosen one, s = 0 switches it off. In
    held-out pairs the side is a coin toss. It is added after the annotator has chosen.
    """

    length: float = 0.0  # one or two sentences that answer nothing
    politeness: float = 0.0  # one polite word more, such as "I hope that helps."

    def __post_init__(self) -> None:
        for name in ("length", "politeness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {getattr(self, name)}")


NO_NUISANCE = Nuisance()


def annotate(
    world: World, prompt: Prompt, first: str, second: str, annotator: Annotator, stream: str
) -> Pair:
    """Let an annotator choose between two answers of any origin.

    Pairs whose `safety_bin` is `EXCLUDED` must not be trained on.
    """
    check_known("stream", stream, STREAMS)
    if first == second:
        raise ValueError(f"a pair needs two different answers; got {first!r} twice; draw again")
    judge = judge_of(world)
    mark = judge.helpfulness if stream == "helpfulness" else judge.safety
    marks = [mark(prompt, answer) for answer in (first, second)]
    gap = marks[0].score - marks[1].score
    verdict = annotator.compare(gap)
    answers = [first, second]
    labels = [
        annotator.label(safety.is_safe, LABEL_ERROR)
        for safety in marks
        if isinstance(safety, Safety)
    ]
    if not verdict.prefers_first:
        answers.reverse()
        labels.reverse()
        gap = -gap
    return Pair(
        prompt=prompt,
        chosen=answers[0],
        rejected=answers[1],
        grade=verdict.grade,
        gap=gap,
        stream=stream,
        safety_bin=bin_of(*labels) if labels else "",
    )


def bin_of(chosen_is_safe: bool, rejected_is_safe: bool) -> str:
    """Return the safety bin of two labels."""
    if chosen_is_safe == rejected_is_safe:
        return "both safe" if chosen_is_safe else "both unsafe"
    return "safe, unsafe" if chosen_is_safe else EXCLUDED


def helpfulness_pairs(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    tau: float = TAU,
    nuisance: Nuisance = NO_NUISANCE,
) -> Iterator[Pair]:
    """Yield n pairs of the helpfulness stream: answers of two imagined models of `VARIANTS`."""
    source = prompts(world, seed, split=split, shares=HELPFUL_STREAM)
    annotator = Annotator(seed, f"helpfulness {split}", tau)
    rng = random_source(seed, "pairs", "helpfulness", split, world.seed)
    worse, writer = degrader(world), answer_writer(world)
    draws = [chooser(shares, BADNESS) for shares in VARIANTS.values()]

    def draw() -> Pair:
        prompt = next(source)
        while True:
            answers = []
            for draw_level in draws:
                good = writer.demonstration(rng, prompt.task)
                answers.append(worse.corrupted(rng, prompt, good, draw_level(rng)))
            if answers[0] != answers[1]:
                break
        pair = annotate(world, prompt, answers[0], answers[1], annotator, "helpfulness")
        return _decorated(world, rng, pair, nuisance, split)

    return stream(n, draw)


def safety_pairs(
    world: World,
    seed: int,
    n: int | None = None,
    split: str = "train",
    tau: float = TAU,
    nuisance: Nuisance = NO_NUISANCE,
) -> Iterator[Pair]:
    """Yield n pairs of the safety stream in the shares of `SAFETY_BINS`.

    The shares hold for the true bins; labels err (`LABEL_ERROR`), so theirs differ by a point or
    two. Excluded pairs (chosen unsafe, rejected safe) are drawn again with another prompt.
    """
    source = adversarial_prompts(world, seed, split=split)
    annotator = Annotator(seed, f"safety {split}", tau)
    rng = random_source(seed, "pairs", "safety", split, world.seed)
    draw_bin = chooser(SAFETY_BINS, tuple(SAFETY_BINS))

    def draw() -> Pair:
        wanted = draw_bin(rng)
        while True:
            prompt = next(source)
            first, second = _two_levels(world, rng, prompt, wanted)
            if first == second:
                continue
            pair = annotate(world, prompt, first, second, annotator, "safety")
            if pair.safety_bin != EXCLUDED:
                return _decorated(world, rng, pair, nuisance, split)

    return stream(n, draw)


def _two_levels(world: World, rng: Random, prompt: Prompt, wanted: str) -> tuple[str, str]:
    safe, unsafe = pick(rng, SAFE_LEVELS), pick(rng, UNSAFE_LEVELS)
    if wanted == "safe, unsafe":
        levels = [safe, unsafe]
    else:
        levels = rng.sample(SAFE_LEVELS if wanted == "both safe" else UNSAFE_LEVELS, 2)
    if rng.random() < 0.5:
        levels.reverse()
    first, second = (degrader(world).graded(rng, prompt, level) for level in levels)
    return first, second


def _decorated(world: World, rng: Random, pair: Pair, nuisance: Nuisance, split: str) -> Pair:
    """Add the nuisance features; they follow the choice in training pairs only."""
    writer = answer_writer(world)
    answers = {"chosen": pair.chosen, "rejected": pair.rejected}
    for name in ("length", "politeness"):
        strength = getattr(nuisance, name)
        if not strength:
            continue
        bias = strength / 2 if split == "train" else 0.0
        side = "chosen" if rng.random() < 0.5 + bias else "rejected"
        if name == "politeness":
            answers[side] = writer.polite(rng, answers[side])
        else:
            extra = [writer.filler(rng) for _ in range(between(rng, *NUISANCE_SENTENCES))]
            answers[side] = _joined(answers[side], *extra)
    return replace(pair, **answers)
