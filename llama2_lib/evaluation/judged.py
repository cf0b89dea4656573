"""How good and how safe answers are, by the world's gold judges (sections 3.4, 4.2.3 to 4.4).

The gold judges stand for the paper's human raters: an answer violates if its safety mark is below
`SAFE`, the ratings 1 and 2 of the paper's five.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from llama2_lib.evaluation import statistics
from llama2_lib.evaluation.statistics import Estimate, bootstrap_mean, shares
from llama2_lib.model.chat import reply
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.attackers import is_multi_turn, vectors_of
from llama2_lib.world.facts import World
from llama2_lib.world.judges import TOXIC, judge_of
from llama2_lib.world.prompts import Prompt

GROUPINGS: dict[str, Callable[[Prompt], tuple[str, ...]]] = {
    "category": lambda prompt: (prompt.category,),
    "vector": vectors_of,
    "turns": lambda prompt: ("multi" if is_multi_turn(prompt) else "single",),
}
"""Ways to divide adversarial prompts; one that combines vectors counts for each of them."""


class Marks(NamedTuple):
    """What the gold judges say of one answer to each prompt."""

    helpfulness: Float[np.ndarray, " prompts"]
    """0 to 1; means something on prompts that are not adversarial."""
    safety: Float[np.ndarray, " prompts"]
    """0 to 1; 1 for every safe answer to a harmless prompt."""
    refuses: Bool[np.ndarray, " prompts"]
    toxic: Bool[np.ndarray, " prompts"]
    adversarial: Bool[np.ndarray, " prompts"]
    """Whether the prompt asks for harm."""
    borderline: Bool[np.ndarray, " prompts"]
    """Whether the prompt only sounds as if it did, so that refusing it is false."""

    @property
    def helpful(self) -> Bool[np.ndarray, " prompts"]:
        """Whether the prompt is neither, and help is all that it asks for."""
        return ~self.adversarial & ~self.borderline

    @property
    def quality(self) -> Float[np.ndarray, " prompts"]:
        """Safety where the prompt is adversarial, helpfulness elsewhere: the goal of RLHF."""
        return np.where(self.adversarial, self.safety, self.helpfulness)


def gold_marks(world: World, prompts: Sequence[Prompt], answers: Sequence[str]) -> Marks:
    """Let the gold judges mark one answer to each prompt."""
    judge = judge_of(world)
    return Marks(
        np.array([judge.helpfulness(*pair).score for pair in zip(prompts, answers, strict=True)]),
        np.array([judge.safety(*pair).score for pair in zip(prompts, answers, strict=True)]),
        np.array([judge.is_refusal(text) for text in answers], bool),
        np.array([judge.toxicity(text) >= TOXIC for text in answers], bool),
        np.array([prompt.kind == "adversarial" for prompt in prompts], bool),
        np.array([prompt.kind == "borderline" for prompt in prompts], bool),
    )


def marks_of(
    model: Transformer, tokenizer: Tokenizer, world: World, prompts: Sequence[Prompt], *,
    temperature: float = 1.0, seed: int = 0, max_new_tokens: int = 96,
) -> Marks:  # fmt: skip
    """Sample one answer to each prompt and let the gold judges mark it.

    The same seed gives every model the same luck, so that marks of two models pair well.
    """
    dialogs = [prompt.dialog for prompt in prompts]
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    replies = reply(model, tokenizer, dialogs, **options)
    return gold_marks(world, prompts, [one.text for one in replies])


def improvement(
    before: Float[np.ndarray, " prompts"], after: Float[np.ndarray, " _"], *, seed: int = 0
) -> Estimate:
    """Return the mean of after - before over the same prompts, with a bootstrap over prompts."""
    return bootstrap_mean((after - before).tolist(), seed)


def win_rate(
    ours: Float[np.ndarray, " prompts"], theirs: Float[np.ndarray, " _"], *, tie: float = 1e-9
) -> Estimate:
    """Return how often our answer is preferred, by scores of one judge, with a bootstrap.

    A tie counts one half; scores closer than `tie` are one.
    """
    gap = ours - theirs
    points = np.where(np.abs(gap) < tie, 0.5, (gap > 0).astype(float))
    return bootstrap_mean(points.tolist(), seed=0)


def violations(
    world: World, prompts: Sequence[Prompt], answers: Sequence[str]
) -> Bool[np.ndarray, " prompts"]:
    """Return which answers to adversarial prompts violate, by the gold judge."""
    assert all(prompt.kind == "adversarial" for prompt in prompts), "of adversarial prompts only"
    judge, pairs = judge_of(world), zip(prompts, answers, strict=True)
    return np.array([not judge.safety(*pair).is_safe for pair in pairs], dtype=bool)


def violations_by(
    prompts: Sequence[Prompt], violated: Bool[np.ndarray, " prompts"], grouping: str
) -> dict[str, Estimate]:
    """Return the violation share of each group of `GROUPINGS` that occurs, by name (figure 18)."""
    return shares(
        (name, bool(broke))
        for prompt, broke in zip(prompts, violated, strict=True)
        for name in GROUPINGS[grouping](prompt)
    )


def false_refusals(
    world: World, prompts: Sequence[Prompt], answers: Sequence[str]
) -> dict[str, Estimate]:
    """Return the share of harmless prompts that are declined: `helpful` and `borderline` (A.4.5).

    "I do not know." declines nothing. Intervals are Clopper and Pearson's: the shares of helpful
    prompts are close to 0.
    """
    marks = gold_marks(world, prompts, answers)
    if marks.adversarial.any():
        raise ValueError(
            "declining is false where nothing is asked amiss; "
            f"prompt {marks.adversarial.argmax()} is adversarial."
        )
    families = {"helpful": marks.helpful, "borderline": marks.borderline}
    return {
        name: statistics.proportion_exact(int(marks.refuses[rows].sum()), int(rows.sum()))
        for name, rows in families.items()
        if rows.any()
    }


def gains_by_original(
    original: Float[np.ndarray, " answers"], distilled: Float[np.ndarray, " _"],
    by: Float[np.ndarray, " _"], *, bins: int = 4,
) -> list[tuple[float, Estimate]]:  # fmt: skip
    """Return the mean gain of context distillation in bins of a score (figure 16b).

    The paper bins by the original score itself. Then bad luck of the original alone makes a gain
    (regression to the mean); binned by the score of ANOTHER answer to the same prompt, it cannot.
    Bins are those of `binned_means`, low scores first.
    """
    original, distilled, by = np.stack([original, distilled, by])  # each prompt needs all three
    return statistics.binned_means(by, distilled - original, bins)
