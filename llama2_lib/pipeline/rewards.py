"""How the `rewards` stages are run: fresh comparisons, and both reward models brought up to date.

Round 1 starts from the fine-tuned model, later ones from the reward models of the round before.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llama2_lib import rng, storage
from llama2_lib.evaluation.chat import answer
from llama2_lib.evaluation.reward import accuracy_by_grade
from llama2_lib.model.heads import ScalarModel
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import load_scalar_model, save_model
from llama2_lib.pipeline.stage import Job
from llama2_lib.stages.asked import ask
from llama2_lib.stages.preferences import collect, read_pairs, write_pairs
from llama2_lib.stages.reward import (
    RewardConfig,
    RewardModels,
    centre,
    encode_pairs,
    estimated_steps,
    scores_of,
    train_reward,
    training_pairs,
)
from llama2_lib.text.dialog import Encoder, Message, encode_example
from llama2_lib.world import make_world
from llama2_lib.world.pairs import HELPFUL_STREAM, Pair

HELD_BACK = 0.2
"""Share of fresh pairs that measure the reward model instead of training it."""
N_CENTRE = 256
"""Answers of the fine-tuned model whose mean helpfulness is the zero of all rounds."""


def answered(dialog: Sequence[Message], text: str, tok: Encoder, longest: int) -> list[int]:
    """Return the ids of a prompt with its answer, as reward models read them.

    An answer of nothing is read as a full stop: a message must not be empty. One that takes
    more pieces when it is read than when it was written, as odd spellings do, is cut at the
    context.
    """
    ids = encode_example([*dialog, {"role": "assistant", "content": text or "."}], tok)[0]
    return ids[:longest]


def load_rewards(folder: Path, device: torch.device | str = "cpu") -> RewardModels:
    """Load both reward models of a finished `rewards` stage."""
    return RewardModels(
        load_scalar_model(folder / "helpfulness", device),
        load_scalar_model(folder / "safety", device),
    )


def run_rewards(number: int, job: Job, newest: str, older: str, previous: str | None) -> None:
    """Collect comparisons of two policies' answers and train both reward models on them.

    Leaves a folder for each, with `fresh.jsonl` (all comparisons of models' answers so far),
    `held.jsonl` (those of this round that were not trained on) and `summary.json`.
    """
    variants = (job.model(newest), job.model(older))
    done = 0
    for config in (job.recipe.helpfulness, job.recipe.safety):
        folder = job.folder / config.stream
        folder.mkdir(exist_ok=True)
        if (folder / "summary.json").exists():  # written last: a killed job got this far
            done += estimated_steps(config, number)
            continue
        before = job.inputs[previous] / config.stream if previous else None
        done += _train(number, config, folder, job, variants, before, done)


def _train(
    number: int,
    config: RewardConfig,
    folder: Path,
    job: Job,
    variants: tuple[Transformer, Transformer],
    previous: Path | None,
    begun: int,
) -> int:
    """Train one of the two; return the steps it took."""
    world, tokenizer = make_world(job.recipe.corpus.world_seed), job.tokenizer
    seed = rng.seed_from(config.seed, "fresh", config.stream, number)
    n_prompts = config.n_fresh_later if previous else config.n_fresh
    found = collect(
        variants, tokenizer, world, config.stream, n_prompts, seed=seed,
        max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    n_held = max(1, round(HELD_BACK * len(found.pairs)))
    held, fresh = found.pairs[:n_held], found.pairs[n_held:]
    bootstrap = training_pairs(config, world.seed)
    older = read_pairs(previous / "fresh.jsonl") if previous else []
    summary: dict[str, Any] = {"round": number, **found.counts()}
    start: Transformer | ScalarModel
    if previous is None:
        start, train = job.model("sft"), [*bootstrap, *fresh]
    else:
        start = load_scalar_model(previous, job.device)
        summary["accuracy before"] = _accuracy(start, held, tokenizer)
        train = [*fresh, *_some([*bootstrap, *older], len(fresh), seed)]
        config = dataclasses.replace(config, peak_lr=config.later_rate * config.peak_lr)
    steps = -(-len(train) // config.batch_size)
    model = train_reward(
        config,
        start,
        encode_pairs(train, tokenizer, config.margin),
        encode_pairs(held, tokenizer, "none"),
        folder,
        job.device,
        lambda done, words: job.report(begun + done, words),
    )
    summary["accuracy"] = _accuracy(model, held, tokenizer)
    if config.stream == "helpfulness":
        summary["mean before centring"] = centre(model, _centre_rows(job))
        save_model(model, folder)
    write_pairs(folder / "fresh.jsonl", [*older, *fresh])
    write_pairs(folder / "held.jsonl", held)
    storage.write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return steps


def _accuracy(model: ScalarModel, pairs: Sequence[Pair], tok: Encoder) -> dict[str, Any]:
    chosen, rejected = scores_of(model, encode_pairs(pairs, tok, "none"))
    found = accuracy_by_grade(chosen, rejected, [pair.grade for pair in pairs])
    return {grade: dataclasses.asdict(share) for grade, share in found.items()}


def _some(pairs: Sequence[Pair], n: int, seed: int) -> list[Pair]:
    return rng.random_source(seed, "older pairs").sample(list(pairs), min(n, len(pairs)))


def _centre_rows(job: Job) -> list[list[int]]:
    """Return answers of the fine-tuned model to helpful prompts, the same in every round."""
    model, tokenizer = job.model("sft"), job.tokenizer
    world, source = (
        make_world(job.recipe.corpus.world_seed),
        rng.seed_from(job.recipe.helpfulness.seed, "centre"),
    )
    room = job.recipe.helpfulness.max_new_tokens
    asked = ask(
        world, source, N_CENTRE, tokenizer, longest=model.config.max_seq_len - room,
        shares=HELPFUL_STREAM,
    )  # fmt: skip
    said = answer(
        model, tokenizer, asked.dialogs, temperature=1.0, seed=source, max_new_tokens=room
    )
    context = model.config.max_seq_len
    return [
        answered(d, a.text, tokenizer, context) for d, a in zip(asked.dialogs, said, strict=True)
    ]
