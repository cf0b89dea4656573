"""Rejection-sampling fine-tuning, rounds V1 to V4 (paper section 3.2.3).

1. Draw K answers of the newest policy to each new prompt, at the temperature whose best of K
   scores highest.
2. Score those that ended, and choose the best one of every prompt: it becomes a new gold answer.
3. Add them to the best answers of all earlier rounds, scored anew by the newest reward models.
4. Fine-tune the base model on this pool, from the start.
"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from llama2_lib import rng, storage
from llama2_lib.config import Recipe, RejectionConfig
from llama2_lib.evaluation.reward import best_of_n
from llama2_lib.model.chat import Reply, reply, room, scored_row
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.folder import source_of
from llama2_lib.stages.job import Job
from llama2_lib.stages.prompts import PromptSet, answered, sample_prompts
from llama2_lib.stages.reward import load_rewards
from llama2_lib.stages.sft import examples, fine_tune
from llama2_lib.text.dialog import Encoder
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.batches import Example
from llama2_lib.world.dialogs import Message

Score = Callable[[Sequence["Sample"]], Float[np.ndarray, " answers"]]
"""Scores samples with the newest reward models."""


class Sample(NamedTuple):
    """One answer to a prompt; a pool is a list of these."""

    dialog: list[Message]
    """The prompt, ending with the user."""
    is_safety: bool
    answer: str
    round: int
    """The round in which it was drawn."""
    score: float
    """By the reward models of the round that scored it last. Scores of different models have
    different zeros and must never be ranked together."""

    @property
    def key(self) -> str:
        """Names the prompt."""
        return json.dumps(self.dialog, sort_keys=True)


def run(job: Job, number: int, policy: str, rewards: str) -> None:
    """Do round `number` with the samples of the stage `policy`, scored by the stage `rewards`.

    Leaves the fine-tuned model, `pool.jsonl.gz` (the chosen answers of all rounds so far, with the
    scores of this round's reward models) and `temperatures.json` (the max-of-N curves).
    """
    config, tokenizer = job.recipe.rejection, job.tokenizer
    models = load_rewards(job.inputs[rewards], job.device)
    context = room(job.recipe.model, 0)

    def score(samples: Sequence[Sample]) -> Float[np.ndarray, " answers"]:
        rows = [scored_row(s.dialog, s.answer, tokenizer, context) for s in samples]
        return models(rows, [sample.is_safety for sample in samples]).combined

    # 1. K answers to each prompt, at the best temperature, scored
    fresh, counts = _fresh_samples(job, number, policy, score)
    # 2. the best one of every prompt
    best_ones = chosen(fresh, config.select, config.seed)
    # 3. the pool of all rounds, scored anew
    earlier = job.inputs[policy] / "pool.jsonl.gz"
    keeps = config.keep == "all rounds" and earlier.exists()
    pool = [*rescored(storage.read_rows(earlier, Sample) if keeps else [], score), *best_ones]
    storage.write_rows(job.folder / "pool.jsonl.gz", pool)
    # 4. the base model, fine-tuned on it
    targets = best(pool) if config.select == "best" else pool
    counts |= {
        "chosen": len(best_ones),
        "answers": len(targets),
        "mean reward of samples": float(np.mean([sample.score for sample in fresh])),
        "mean reward of chosen": float(np.mean([sample.score for sample in best_ones])),
    }
    world_seed, grade = job.recipe.corpus.world_seed, job.recipe.sft.grade
    demonstrations = job.source.dialogs(world_seed, config.n_demonstrations, grade)
    train = [*encoded(targets, tokenizer), *examples(demonstrations, tokenizer)]
    base = job.model("pretrain")
    fine_tune(job, config, base, train, counts, steps=config.steps, begin=0.3)


def _fresh_samples(
    job: Job, number: int, policy: str, score: Score
) -> tuple[list[Sample], dict[str, float]]:
    """Draw K answers to each prompt; return those that ended, each text once, with their scores."""
    config, tokenizer, newest = job.recipe.rejection, job.tokenizer, job.model(policy)
    seed = _seed(job.recipe, number)
    prompt_set = round_prompts(number, job.recipe, tokenizer)
    prompts = [
        Sample(dialog, tag, "", number, 0.0)
        for dialog, tag in zip(prompt_set.dialogs, prompt_set.tags, strict=True)
    ]
    probe = prompts[: config.n_probe]
    curves = temperature_curves(newest, tokenizer, probe, config, score, seed=seed)
    storage.write_atomically(job.folder / "temperatures.json", json.dumps(curves, indent=2) + "\n")
    temperature = best_temperature(curves)
    drawn = draw(
        newest, tokenizer, prompt_set.dialogs, config.n_samples, temperature,
        seed=rng.seed_from(seed, "samples"), max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    fresh = [
        prompt._replace(answer=answer.text)
        for prompt, answers in zip(prompts, drawn, strict=True)
        for answer in distinct(answers)
    ]
    return rescored(fresh, score), {
        "temperature": temperature,
        "prompts": len(prompts),
        "too long": prompt_set.n_too_long,
        "samples": sum(map(len, drawn)),
        "unfinished": sum(not answer.ended for answers in drawn for answer in answers),
        "distinct": len(fresh),
    }


def _seed(recipe: Recipe, number: int) -> int:
    return rng.seed_from(recipe.rejection.seed, "rejection", number)


def round_prompts(number: int, recipe: Recipe, tokenizer: Tokenizer) -> PromptSet:
    """Return the prompts of round `number`."""
    config, source = recipe.rejection, source_of(recipe.corpus.world_seed, recipe.corpus.data)
    longest, seed = room(recipe.model, config.max_new_tokens), _seed(recipe, number)
    return sample_prompts(source, seed, config.n_prompts, tokenizer, longest=longest)


def draw(
    policy: Transformer, tokenizer: Tokenizer, dialogs: Sequence[Sequence[Message]], k: int,
    temperature: float, *, seed: int, max_new_tokens: int,
) -> list[list[Reply]]:  # fmt: skip
    """Return K answers to each dialog, each from a seed of its own."""
    replies = reply(
        policy, tokenizer, [dialog for dialog in dialogs for _ in range(k)],
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
    )  # fmt: skip
    return [replies[begin : begin + k] for begin in range(0, len(replies), k)]


def temperature_curves(
    policy: Transformer, tokenizer: Tokenizer, prompts: Sequence[Sample], config: RejectionConfig,
    score: Score, *, seed: int,
) -> dict[float, list[float]]:  # fmt: skip
    """Return for each temperature the expected maximum of N = 1 ... K rewards (figure 8).

    All samples count here, those that did not end included: they are what a temperature costs.
    """
    dialogs, curves = [prompt.dialog for prompt in prompts], {}
    options = {"seed": seed, "max_new_tokens": config.max_new_tokens}
    for temperature in config.temperatures:
        drawn = draw(policy, tokenizer, dialogs, config.n_samples, temperature, **options)
        samples = [
            prompt._replace(answer=answer.text)
            for prompt, answers in zip(prompts, drawn, strict=True)
            for answer in answers
        ]
        scores = score(samples).reshape(len(prompts), config.n_samples)
        curves[temperature] = best_of_n(scores).mean(axis=0).tolist()
    return curves


def best_temperature(curves: dict[float, list[float]]) -> float:
    """Return the temperature whose best-of-K is highest; of equal ones the lowest."""
    return max(sorted(curves), key=lambda temperature: curves[temperature][-1])


def distinct(answers: Sequence[Reply]) -> list[Reply]:
    """Return the answers that ended, each text once, in the order they were drawn.

    One that was cut at the limit would teach never to stop.
    """
    texts: dict[str, Reply] = {}
    for answer in answers:
        if answer.ended and answer.text:
            texts.setdefault(answer.text, answer)
    return list(texts.values())


def rescored(samples: Sequence[Sample], score: Score) -> list[Sample]:
    """Return the samples with scores of the newest reward models."""
    values = score(samples) if samples else []
    return [
        sample._replace(score=float(value)) for sample, value in zip(samples, values, strict=True)
    ]


def best(samples: Sequence[Sample]) -> list[Sample]:
    """Return the sample with the highest score of every prompt; of equal ones the first.

    Prompts stand in the order in which they first occur.
    """
    return [max(group, key=lambda sample: sample.score) for group in _by_prompt(samples)]


def _by_prompt(samples: Sequence[Sample]) -> list[list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.key, []).append(sample)
    return list(groups.values())


def chosen(samples: Sequence[Sample], select: str, seed: int) -> list[Sample]:
    """Return one sample a prompt: the `best`, or one at `random`."""
    if select == "best":
        return best(samples)
    assert select == "random", select
    source = rng.random_source(seed, "random selection")
    return [group[source.randrange(len(group))] for group in _by_prompt(samples)]


def encoded(samples: Sequence[Sample], tok: Encoder) -> list[Example]:
    """Return what a round trains on: the answers of the pool, each after its prompt."""
    return examples((answered(s.dialog, s.answer) for s in samples), tok, loss_on="last")
