"""How good answers are: the world's gold judges, and two models compared (section 3.4)."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float

from llama2_lib.evaluation.chat import answer
from llama2_lib.evaluation.statistics import Estimate, bootstrap_mean
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import Message
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.facts import World
from llama2_lib.world.judges import TOXIC, judge_of
from llama2_lib.world.prompts import Prompt


class Marks(NamedTuple):
    """What the gold judges say of one answer to each prompt."""

    helpfulness: Float[np.ndarray, " prompts"]
    """0 to 1; means something on prompts that are not adversarial."""
    safety: Float[np.ndarray, " prompts"]
    """0 to 1; 1 for every safe answer to a harmless prompt."""
    refuses: Bool[np.ndarray, " prompts"]
    toxic: Bool[np.ndarray, " prompts"]
    adversarial: Bool[np.ndarray, " prompts"]
    """Of the prompt: it asks for harm."""
    borderline: Bool[np.ndarray, " prompts"]
    """Of the prompt: it only sounds as if it did, so refusing it is false."""

    @property
    def helpful(self) -> Bool[np.ndarray, " prompts"]:
        """Of the prompt: it is neither, and help is all that it asks for."""
        return ~self.adversarial & ~self.borderline

    @property
    def quality(self) -> Float[np.ndarray, " prompts"]:
        """Safety where the prompt is adversarial, helpfulness elsewhere: the goal of RLHF."""
        return np.where(self.adversarial, self.safety, self.helpfulness)


def gold_marks(world: World, prompts: Sequence[Prompt], answers: Sequence[str]) -> Marks:
    """Let the gold judges mark one answer to each prompt.

    Raises:
        ValueError: There is not one answer a prompt.
    """
    if len(prompts) != len(answers):
        raise ValueError(
            f"every prompt needs one answer; got {len(prompts)} prompts and {len(answers)} answers."
        )
    judge = judge_of(world)
    pairs = list(zip(prompts, answers, strict=True))
    return Marks(
        np.array([judge.helpfulness(prompt, text).score for prompt, text in pairs]),
        np.array([judge.safety(prompt, text).score for prompt, text in pairs]),
        np.array([judge.is_refusal(text) for text in answers]),
        np.array([judge.toxicity(text) >= TOXIC for text in answers]),
        np.array([prompt.kind == "adversarial" for prompt in prompts]),
        np.array([prompt.kind == "borderline" for prompt in prompts]),
    )


def marks_of(
    model: Transformer,
    tokenizer: Tokenizer,
    world: World,
    prompts: Sequence[Prompt],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 96,
) -> Marks:
    """Sample one answer to each prompt and let the gold judges mark it.

    The same seed gives every model the same luck, so that marks of two models pair well.

    Args:
        model: The policy.
        tokenizer: The one it was trained with.
        world: Where the truth is.
        prompts: What is asked.
        temperature: 0 for greedy answers.
        seed: Of the answers.
        max_new_tokens: Length of an answer at most.
    """
    dialogs = cast(list[list[Message]], [prompt.dialog for prompt in prompts])
    said = answer(
        model, tokenizer, dialogs, max_new_tokens=max_new_tokens, temperature=temperature,
        seed=seed,
    )  # fmt: skip
    return gold_marks(world, prompts, [reply.text for reply in said])


def improvement(
    before: Float[np.ndarray, " prompts"], after: Float[np.ndarray, " _"], *, seed: int = 0
) -> Estimate:
    """Return the mean of after - before over the same prompts, with a bootstrap over prompts.

    Raises:
        ValueError: The lengths differ, or there are fewer than 2 prompts.
    """
    if len(before) != len(after):
        raise ValueError(
            f"the same prompts must be marked twice; got {len(before)} and {len(after)} marks."
        )
    return bootstrap_mean((after - before).tolist(), seed)


def win_rate(
    ours: Float[np.ndarray, " prompts"],
    theirs: Float[np.ndarray, " _"],
    *,
    seed: int = 0,
    tie: float = 1e-9,
) -> Estimate:
    """Return how often our answer is preferred, a tie counting one half.

    Args:
        ours: Score of our answer to each prompt: a gold mark, or a reward model's.
        theirs: Score of the other answer, by the same judge.
        seed: Of the bootstrap over prompts.
        tie: Scores closer than this are a tie.

    Raises:
        ValueError: The lengths differ, or there are fewer than 2 prompts.
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"both answers to a prompt must be judged; got {len(ours)} and {len(theirs)} scores."
        )
    gap = ours - theirs
    points = np.where(np.abs(gap) < tie, 0.5, (gap > 0).astype(float))
    return bootstrap_mean(points.tolist(), seed)
