"""How the stage `reward_model` is run: one variant, trained and tested on held-out pairs."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from llama2_lib import storage
from llama2_lib.pipeline.stage import Job
from llama2_lib.recipes import Recipe
from llama2_lib.stages.reward import encode_pairs, scores_of, train_reward
from llama2_lib.stages.reward_variant import RewardVariant, held_out_pairs, variant_pairs
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.pairs import Pair

DIGITS = 5
"""Of the scores that are kept."""


class HeldOut(NamedTuple):
    """What a reward model says of the held-out pairs of one stream, and what is true of them."""

    chosen: Float[np.ndarray, " pairs"]
    """Raw scores of the chosen answers."""
    rejected: Float[np.ndarray, " pairs"]
    gap: Float[np.ndarray, " pairs"]
    """Gold score of chosen less rejected, see `Pair`."""
    grade: np.ndarray
    safety_bin: np.ndarray


def settings(recipe: Recipe) -> dict[str, Any] | None:
    """Return what the stage depends on besides its inputs; nothing if there is no variant."""
    return dataclasses.asdict(recipe.reward_model) if recipe.reward_model else None


def work(recipe: Recipe) -> int:
    """Return about how many steps there are."""
    if recipe.reward_model is None:
        return 1
    return -(-recipe.reward_model.reward.n_pairs // recipe.reward_model.reward.batch_size)


def run_reward_model(job: Job) -> None:
    """Train one variant and score the held-out pairs.

    Leaves the model and `held_out.json`, see `held_out_scores`.

    Raises:
        ValueError: The recipe has no variant.
    """
    variant, tokenizer = _variant(job.recipe), job.tokenizer
    config, world_seed = variant.reward, job.recipe.corpus.world_seed
    tested = held_out_of(job.recipe, tokenizer)
    encoded = {stream: encode_pairs(pairs, tokenizer, "none") for stream, pairs in tested.items()}
    model = train_reward(
        config,
        job.model("sft"),
        encode_pairs(variant_pairs(variant, world_seed), tokenizer, config.margin),
        next(iter(encoded.values()))[: config.n_validation],
        job.folder,
        job.device,
        job.report,
    )
    found: dict[str, Any] = {}
    for stream, pairs in tested.items():
        chosen, rejected = scores_of(model, encoded[stream])
        found[stream] = {
            "chosen": chosen.round(DIGITS).tolist(),
            "rejected": rejected.round(DIGITS).tolist(),
            "gap": [round(pair.gap, DIGITS) for pair in pairs],
            "grade": [pair.grade for pair in pairs],
            "safety_bin": [pair.safety_bin for pair in pairs],
        }
    storage.write_atomically(job.folder / "held_out.json", json.dumps(found) + "\n")


def held_out_of(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, list[Pair]]:
    """Return the pairs that `held_out_scores` speaks of, by stream.

    Raises:
        ValueError: The recipe has no variant.
    """
    variant = _variant(recipe)
    world_seed, seed = recipe.corpus.world_seed, variant.reward.seed
    longest = recipe.model.max_seq_len
    return {
        stream: held_out_pairs(stream, world_seed, seed, n, tokenizer, longest)
        for stream, n in variant.tested.items()
    }


def _variant(recipe: Recipe) -> RewardVariant:
    if recipe.reward_model is None:
        raise ValueError(
            f"the stage reward_model needs a variant; the recipe {recipe.name!r} has none. Set "
            "its field `reward_model`."
        )
    return recipe.reward_model


def held_out_scores(folder: Path) -> dict[str, HeldOut]:
    """Return what a finished `reward_model` stage says of the held-out pairs, by stream."""
    document = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    return {
        stream: HeldOut(*(np.array(columns[name]) for name in HeldOut._fields))
        for stream, columns in document.items()
    }
