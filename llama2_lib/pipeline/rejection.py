"""How a round of rejection sampling is run: sample, score, choose, and fine-tune the base model."""

import dataclasses
import json
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from llama2_lib import rng, storage
from llama2_lib.evaluation.chat import answer_loss
from llama2_lib.model.transformer import Transformer
from llama2_lib.pipeline.rewards import answered, load_rewards
from llama2_lib.pipeline.samples import write_answers
from llama2_lib.pipeline.stage import Job
from llama2_lib.recipes import Recipe
from llama2_lib.stages.asked import Asked, ask
from llama2_lib.stages.fit import fit
from llama2_lib.stages.rejection import (
    Entry,
    Rewards,
    best,
    chosen,
    distinct,
    draw,
    examples,
    hottest_peak,
    read_pool,
    rescored,
    temperature_curve,
    write_pool,
)
from llama2_lib.stages.sft import dialog_loss, training_dialogs, validation_dialogs
from llama2_lib.stages.sft import examples as encode_dialogs
from llama2_lib.text.dialog import Message
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.dialog_batches import Example, PackedDialogs, shorten_all
from llama2_lib.world import make_world

SAMPLING_STEPS = 60
"""For the progress bar: sampling and scoring take about as long as so many steps."""
N_MEASURED = 100
"""Validation dialogs of fine-tuning whose answer loss is measured during a round."""


def run_rejection(number: int, job: Job, policy: str, rewards: str) -> None:
    """Do round `number` with the samples of the stage `policy`, scored by the stage `rewards`.

    Leaves the fine-tuned model, `pool.jsonl` (the chosen answers of all rounds so far, with the
    scores of this round's reward models) and `temperatures.json` (the max-of-N curves).
    """
    config, tokenizer = job.recipe.rejection, job.tokenizer
    models = load_rewards(job.inputs[rewards], job.device)
    context = job.recipe.model.max_seq_len

    def score(entries: Sequence[Entry]) -> Float[np.ndarray, " answers"]:
        rows = [answered(entry.dialog, entry.answer, tokenizer, context) for entry in entries]
        return models(rows, [entry.is_safety for entry in entries]).combined

    fresh, counts = _sampled(number, job, policy, score)
    tops = chosen(fresh, config.select, config.seed)
    older = job.inputs[policy] / "pool.jsonl"
    kept = read_pool(older) if older.exists() and config.keep == "all rounds" else []
    pool = [*rescored(kept, score), *tops]
    targets = best(pool) if config.select == "best" else pool
    train = examples(targets, _demonstrations(job), tokenizer)
    packed = PackedDialogs(train, seq_len=config.seq_len, seed=config.seed)
    counts |= {
        "chosen": len(tops),
        "answers": len(targets),
        "mean reward of samples": float(np.mean([entry.score for entry in fresh])),
        "mean reward of chosen": float(np.mean([entry.score for entry in tops])),
        **packed.counts(),
    }
    unseen = unseen_dialogs(job)
    model = fit(
        config,
        job.model("pretrain"),
        lambda start: packed.batches(batch_size=config.batch_size, start=start),
        dialog_loss(config.isolate_documents),
        loss_on(unseen[:N_MEASURED], tokenizer, config.seq_len),
        job.folder,
        lambda done, words: job.report(SAMPLING_STEPS + done, words),
        steps=config.steps,
        before=lambda _: counts,
    )
    write_pool(job.folder / "pool.jsonl", pool)
    job.write_beside(write_answers(model, tokenizer, unseen, job.recipe))


def loss_on(
    dialogs: Sequence[Sequence[Message]], tokenizer: Tokenizer, seq_len: int
) -> Callable[[Transformer], dict[str, float]]:
    """Return the measure of a round: nats per answer token of dialogs, as in fine-tuning."""
    probe = shorten_all(encode_dialogs(dialogs, tokenizer), seq_len + 1)
    return lambda model: {"validation_loss": answer_loss(model, probe.examples).value}


def _sampled(
    number: int, job: Job, policy: str, score: Rewards
) -> tuple[list[Entry], dict[str, float | int]]:
    """Choose the temperature, draw K answers to every prompt, and score those that differ."""
    config, model, tokenizer = job.recipe.rejection, job.model(policy), job.tokenizer
    seed = _seed(job.recipe, number)
    found = round_prompts(number, job.recipe, tokenizer)
    asked = [
        Entry(dialog, tag, "", number, 0.0)
        for dialog, tag in zip(found.dialogs, found.tags, strict=True)
    ]
    probe = asked[: config.n_probe]
    curves = temperature_curve(model, tokenizer, probe, config, score, seed=seed)
    document = {str(temperature): curve for temperature, curve in curves.items()}
    storage.write_atomically(
        job.folder / "temperatures.json", json.dumps(document, indent=2) + "\n"
    )
    temperature = hottest_peak(curves)
    drawn = draw(
        model, tokenizer, [entry.dialog for entry in asked], config.n_samples, temperature,
        seed=rng.seed_from(seed, "samples"), max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    fresh = [
        prompt._replace(answer=said.text)
        for prompt, replies in zip(asked, drawn, strict=True)
        for said in distinct(replies)
    ]
    counts = {
        "temperature": temperature,
        "prompts": len(asked),
        "too long": found.n_too_long,
        "samples": sum(map(len, drawn)),
        "unfinished": sum(not said.ended for replies in drawn for said in replies),
        "distinct": len(fresh),
    }
    return rescored(fresh, score), counts


def _seed(recipe: Recipe, number: int) -> int:
    return rng.seed_from(recipe.rejection.seed, "rejection", number)


def round_prompts(number: int, recipe: Recipe, tokenizer: Tokenizer) -> Asked:
    """Return the prompts of round `number`."""
    config, world = recipe.rejection, make_world(recipe.corpus.world_seed)
    longest = recipe.model.max_seq_len - config.max_new_tokens
    return ask(world, _seed(recipe, number), config.n_prompts, tokenizer, longest=longest)


def _demonstrations(job: Job) -> list[Example]:
    n = job.recipe.rejection.n_demonstrations
    if not n:
        return []
    few = dataclasses.replace(job.recipe.sft, n_dialogs=n)
    return encode_dialogs(training_dialogs(few, job.recipe.corpus.world_seed), job.tokenizer)


def unseen_dialogs(job: Job) -> list[list[Message]]:
    """Return dialogs that fine-tuning never saw, for samples that people read."""
    config, world_seed = job.recipe.sft, job.recipe.corpus.world_seed
    return validation_dialogs(config, world_seed, training_dialogs(config, world_seed))
