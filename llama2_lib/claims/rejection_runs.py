"""What claims 21 and 22 measure: the best of N samples, over N and over the temperature."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import comb, expit

from llama2_lib import pipeline, rng
from llama2_lib.claims.claim import Measurement
from llama2_lib.device import choose_device
from llama2_lib.evaluation.best_of_n import best_of_n
from llama2_lib.evaluation.preference import gold_marks
from llama2_lib.model.transformer import Transformer
from llama2_lib.pipeline.rewards import answered
from llama2_lib.recipes import Recipe
from llama2_lib.stages.asked import Asked, ask
from llama2_lib.stages.rejection import draw
from llama2_lib.stages.reward import RewardModels
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Of the maximum in claim 21 [the paper: 1 to 100]. The median is taken of one sample less, since
of an even number it is no sample."""
N_PROMPTS, N_HEATED = 40, 20
"""Training prompts a seed in claims 21 and 22, as a round asks them."""
TEMPERATURE = 1.0
"""Of claim 21; the paper states none."""
TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
"""Of claim 22 [0.6 to 1.5]."""
N_SAMPLES = 16
"""Samples a prompt and temperature in claim 22 [1 to 100]."""
POLICIES = {"SFT": "sft", "V4": f"rejection_v{pipeline.ROUNDS}"}
"""Stages of claim 22."""
FIRST, LAST = "rewards_v1", f"rewards_v{pipeline.ROUNDS + 1}"


class Sampled(NamedTuple):
    """K answers to each prompt as reward models and as gold judges see them."""

    reward: Float[np.ndarray, "prompts samples"]
    """After the sigmoid, 0 to 1: the axis of the paper's figures."""
    gold: Float[np.ndarray, "prompts samples"]


def rooms(model: Transformer, recipe: Recipe) -> tuple[int, int]:
    """Return how many tokens a prompt may have, and an answer to it."""
    context = model.config.max_seq_len
    room = min(recipe.rejection.max_new_tokens, context // 2)
    return context - room, room


def training_prompts(
    recipe: Recipe, policy: tuple[Transformer, Tokenizer], n: int, seed: int
) -> Asked:
    """Draw prompts as a round of rejection sampling asks them."""
    world, longest = make_world(recipe.corpus.world_seed), rooms(policy[0], recipe)[0]
    return ask(world, rng.seed_from(seed, "best of n"), n, policy[1], longest=longest)


def sampled(
    recipe: Recipe,
    policy: tuple[Transformer, Tokenizer],
    judge: RewardModels,
    asked: Asked,
    k: int,
    temperature: float,
    seed: int,
) -> Sampled:
    """Draw k answers to each prompt and mark all of them, those that did not end included."""
    model, tokenizer = policy
    room = rooms(model, recipe)[1]
    drawn = draw(
        model, tokenizer, asked.dialogs, k, temperature, seed=seed, max_new_tokens=room
    )  # fmt: skip
    texts = [said.text for replies in drawn for said in replies]
    repeated = [prompt for prompt in asked.prompts for _ in range(k)]
    rows = [
        answered(dialog, said.text, tokenizer, model.config.max_seq_len)
        for dialog, replies in zip(asked.dialogs, drawn, strict=True)
        for said in replies
    ]
    raw = judge(rows, [prompt.is_safety for prompt in repeated]).combined
    gold = gold_marks(make_world(recipe.corpus.world_seed), repeated, texts).quality
    return Sampled(expit(raw).reshape(-1, k), gold.reshape(-1, k))


def median_of_n(scores: Float[np.ndarray, "prompts samples"], n: int) -> Float[np.ndarray, " _"]:
    """Return the expected median of n samples, exact over all subsets of the samples drawn.

    Raises:
        ValueError: n is even, or there are fewer samples.
    """
    k, middle = scores.shape[1], (n + 1) // 2
    if n % 2 == 0 or not 1 <= n <= k:
        raise ValueError(f"n must be odd and at most {k}, the samples drawn; got {n}.")
    rank = np.arange(1, k + 1)
    shares = comb(rank - 1, middle - 1) * comb(k - rank, n - middle) / comb(k, n)
    return np.sort(scores, axis=1) @ shares


def curve_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the reward models of round 1, which come after the fine-tuned model."""
    return [(FIRST, recipe), ("sft", recipe)]


def measure_curve(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 21; the keys are those of its judge, and some that are shown only.

    The samples of round 1: the fine-tuned model's, scored by the reward models of that round.
    The seed draws prompts and samples; the models are the recipe's for every seed. Shown:
    `gold/<n>`, mean gold mark of the sample with the highest reward, `ceiling/<n>`, of the one
    that the gold judges would choose.
    """
    judge = pipeline.load_rewards(pipeline.artifact(FIRST, recipe), choose_device())
    policy = pipeline.load("sft", recipe)
    asked = training_prompts(recipe, policy, N_PROMPTS, seed)
    found = sampled(recipe, policy, judge, asked, SIZES[-1], TEMPERATURE, seed)
    values: dict[str, float] = {}
    curves = {
        "max": best_of_n(found.reward),
        "gold": best_of_n(found.reward, found.gold),
        "ceiling": best_of_n(found.gold),
    }
    for n in SIZES:
        values |= {f"{name}/{n}": float(v[:, n - 1].mean()) for name, v in curves.items()}
        odd = max(1, n - 1)
        values[f"median/{odd}"] = float(median_of_n(found.reward, odd).mean())
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def temperature_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the policies of claim 22 and the reward models that judge them all."""
    return [(LAST, recipe), *((stage, recipe) for stage in POLICIES.values())]


def measure_temperatures(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 22; the keys are those of its judge, and some that are shown only.

    All policies answer the same training prompts and are scored by the newest reward models. The
    seed draws prompts and samples; the models are the recipe's for every seed. Shown:
    `gold/<policy>/<n>/<temperature>`, mean gold mark of the sample that is chosen.
    """
    judge = pipeline.load_rewards(pipeline.artifact(LAST, recipe), choose_device())
    values: dict[str, float] = {}
    for name, stage in POLICIES.items():
        policy = pipeline.load(stage, recipe)
        asked = training_prompts(recipe, policy, N_HEATED, seed)
        for temperature in TEMPERATURES:
            found = sampled(recipe, policy, judge, asked, N_SAMPLES, temperature, seed)
            reward, gold = best_of_n(found.reward), best_of_n(found.reward, found.gold)
            for n in (1, N_SAMPLES):
                values[f"reward/{name}/{n}/{temperature}"] = float(reward[:, n - 1].mean())
                values[f"gold/{name}/{n}/{temperature}"] = float(gold[:, n - 1].mean())
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def best_temperature(curve: Mapping[float, float]) -> float:
    """Return where a curve over temperatures is highest, finer than its grid.

    The top of the parabola through the highest point and its two neighbours, which must be
    equally far; at an end of the grid the end itself, for what lies beyond was not tried.
    """
    at = sorted(curve)
    top = max(range(len(at)), key=lambda i: curve[at[i]])
    if top in (0, len(at) - 1):
        return at[top]
    left, middle, right = (curve[at[i]] for i in (top - 1, top, top + 1))
    bend = left - 2 * middle + right
    step = (at[top + 1] - at[top - 1]) / 2
    return at[top] + (0.5 * step * (left - right) / bend if bend else 0.0)
