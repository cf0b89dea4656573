"""Preference pairs: two answers to one prompt, judged by an annotator (paper section 3.2.1)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.annotators import TAU, Annotator, Grade
from llama2_lib.world.answers import answer_writer
from llama2_lib.world.degradations import BADNESS, SAFE_LEVELS, UNSAFE_LEVELS, degrader
from llama2_lib.world.facts import World
from llama2_lib.world.judges import Safety, judge_of
from llama2_lib.world.prompts import Prompt, adversarial_prompts, chooser, prompts
from llama2_lib.world.wording import pick

STREAMS = ("helpfulness", "safety")

SAFETY_BINS = {"safe, unsafe": 0.18, "both safe": 0.47, "both unsafe": 0.35}
"""Shares of the safety stream by the safety of chosen and rejected (paper section 3.2.2)."""
EXCLUDED = "unsafe, safe"
"""Pairs with this bin are left out, as in the paper."""
LABEL_ERROR = 0.02
"""How often an annotator's safety label of one answer is wrong."""

VARIANTS = {
    "weak": {0: 0.20, 1: 0.25, 2: 0.25, 3: 0.30},
    "strong": {0: 0.50, 1: 0.25, 2: 0.15, 3: 0.10},
}
"""Two imagined models: how often their answers have which badness."""
HELPFUL_STREAM = {"helpful": 0.9, "borderline": 0.1}
"""Prompts of the helpfulness stream; the safety stream has adversarial prompts only."""


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

    length: float = 0.0
    """One or two sentences that answer nothing."""
    politeness: float = 0.0
    """One polite word more, such as "I hope that helps."."""

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

    Raises:
        ValueError: If the stream is unknown or the answers are the same.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {list(STREAMS)}; got {stream!r}")
    if first == second:
        raise ValueError(f"a pair needs two different answers; got {first!r} twice; draw again")
    judge = judge_of(world)
    mark = judge.helpfulness if stream == "helpfulness" else judge.safety
    marks = [mark(prompt, answer) for answer in (first, second)]
    gap = marks[0].score - marks[1].score
    verdict = annotator.compare(gap)
    chosen, rejected = (first, second) if verdict.prefers_first else (second, first)
    labels = [
        annotator.label(found.is_safe, LABEL_ERROR) for found in marks if isinstance(found, Safety)
    ]
    if not verdict.prefers_first:
        labels.reverse()
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        grade=verdict.grade,
        gap=gap if verdict.prefers_first else -gap,
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
    """Yield n pairs of the helpfulness stream: answers of two imagined models of `VARIANTS`.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """
    source = prompts(world, seed, split=split, shares=HELPFUL_STREAM)
    annotator = Annotator(seed, f"helpfulness {split}", tau)
    rng = random_source(seed, "pairs", "helpfulness", split, world.seed)
    worse, writer = degrader(world), answer_writer(world)
    badness = {str(level): level for level in BADNESS}
    draws = [
        chooser({str(k): share for k, share in shares.items()}, tuple(badness))
        for shares in VARIANTS.values()
    ]

    def draw() -> Pair:
        prompt = next(source)
        while True:
            answers = [
                worse.corrupted(
                    rng, prompt, writer.demonstration(rng, prompt.task), badness[draw_level(rng)]
                )
                for draw_level in draws
            ]
            if answers[0] != answers[1]:
                break
        pair = annotate(world, prompt, answers[0], answers[1], annotator, "helpfulness")
        return _decorated(world, rng, pair, nuisance, split)

    return (draw() for _ in _numbers(n))


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

    Raises:
        ValueError: If an argument is unknown or out of range.
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

    return (draw() for _ in _numbers(n))


def agreement(pairs: list[Pair], annotator: Annotator) -> float:
    """Return the fraction of pairs in which another annotator prefers the chosen answer, too.

    Raises:
        ValueError: If there is no pair.
    """
    if not pairs:
        raise ValueError("agreement needs at least one pair; got none")
    return sum(annotator.compare(pair.gap).prefers_first for pair in pairs) / len(pairs)


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
        if name == "length":
            gap = "\n" if "\n" in answers[side] else " "
            extra = [writer.filler(rng) for _ in range(1 + int(2 * rng.random()))]
            answers[side] = gap.join([answers[side], *extra])
        else:
            answers[side] = writer.polite(rng, answers[side])
    return replace(pair, **answers)


def _numbers(n: int | None) -> Iterator[int] | range:
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more pairs")
    return count() if n is None else range(n)
