"""How the stages `instructed` and `ghost_attention` are run."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from llama2_lib import rng, storage
from llama2_lib.evaluation.chat import answer
from llama2_lib.evaluation.consistency import carried
from llama2_lib.model.transformer import Transformer
from llama2_lib.pipeline import rehearsal
from llama2_lib.pipeline.rejection import unseen_dialogs
from llama2_lib.pipeline.rewards import answered, load_rewards
from llama2_lib.pipeline.samples import write_answers
from llama2_lib.pipeline.stage import Job
from llama2_lib.pipeline.world_text import instruction_settings
from llama2_lib.recipes import Recipe
from llama2_lib.stages.ghost_attention import (
    SHORT_TURNS,
    Ghost,
    GhostAttentionConfig,
    best_samples,
    ghost_examples,
    last_turns,
    on_every_turn,
    on_first_turn_only,
)
from llama2_lib.stages.instructed import InstructedConfig, instructed_examples, tune
from llama2_lib.stages.rejection import Entry, distinct, draw
from llama2_lib.stages.sft import examples
from llama2_lib.text.dialog import Message, encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.dialog_batches import Example
from llama2_lib.world import make_world
from llama2_lib.world.brief import as_dialog, briefs
from llama2_lib.world.instructed import instructed_dialogs
from llama2_lib.world.instructions import Instruction, instructions, obeys, worded

SAMPLING_STEPS = 60
"""For the progress bar: sampling and scoring take about as long as so many steps."""
TOKENS_PER_DIALOG = 160
"""About; only the progress bar rests on it."""

Prompts = list[tuple[list[Message], tuple[Instruction, ...]]]


def settings(recipe: Recipe, part: str) -> dict[str, Any]:
    """Return what one of the two stages depends on besides its inputs."""
    world_seed = recipe.corpus.world_seed
    return {
        part: dataclasses.asdict(getattr(recipe, part)),
        "instructions": instruction_settings(world_seed),
        **rehearsal.settings(recipe),
    }


def estimated_steps(recipe: Recipe, part: str) -> int:
    """Return about how many optimiser steps one of the two stages takes."""
    config = getattr(recipe, part)
    n_remembered = (1 + rehearsal.DOCUMENTS) * config.n_replay
    n_dialogs = config.n_dialogs + n_remembered + config.n_demonstrations
    n_tokens = n_dialogs * TOKENS_PER_DIALOG
    return config.epochs * math.ceil(n_tokens / (config.seq_len * config.batch_size))


def run_instructed(job: Job, start: str) -> None:
    """Teach the model of the stage `start` to obey an instruction in the message it answers."""
    config, tokenizer, model = job.recipe.instructed, job.tokenizer, job.model(start)
    train, unseen = instructed_examples(config, job.recipe.corpus.world_seed, tokenizer)
    rehearsed = _rehearsed(job, config, model)
    model = tune(config, model, [*train, *rehearsed], unseen, job.folder, job.report)
    job.write_beside(write_answers(model, tokenizer, unseen_dialogs(job), job.recipe))


def run_ghost_attention(job: Job, start: str, policy: str, rewards: str) -> None:
    """Build the data with the model of the stage `start` and fine-tune it on them.

    Beside them it rehearses the answers of the RLHF model, that of the stage `policy`.

    Leaves the model, `ghosts.jsonl` (the teacher's prompts and the chosen answers) and, as step 0
    of the metrics, what became of the samples.
    """
    recipe, config, tokenizer = job.recipe, job.recipe.ghost_attention, job.tokenizer
    model = job.model(start)
    prompts, n_too_long = teacher_prompts(recipe, model, tokenizer)
    entries, counts = sampled(config, model, tokenizer, prompts)
    models, context = load_rewards(job.inputs[rewards], job.device), model.config.max_seq_len
    longest = context - config.max_new_tokens

    def score(entries: Sequence[Entry]) -> np.ndarray:
        rows = [
            answered(last_turns(entry.dialog, tokenizer, longest), entry.answer, tokenizer, context)
            for entry in entries
        ]
        return models(rows, [entry.is_safety for entry in entries]).combined

    ghosts = best_samples(prompts, entries, score, only_obeying=config.only_obeying)
    n_held = config.n_validation
    if len(ghosts) <= n_held:
        raise ValueError(
            f"more than n_validation={n_held} dialogs must have a sample to keep; got "
            f"{len(ghosts)} of {len(prompts)}. Does the model obey an instruction at all?"
        )
    counts |= {"too long": n_too_long, "ghosts": len(ghosts) - n_held, "held back": n_held}
    mixed_in = [*_rehearsed(job, config, job.model(policy)), *_short_dialogs(job)]
    model = tune(
        config,
        model,
        [*ghost_examples(ghosts[n_held:], tokenizer, config.loss_on), *mixed_in],
        ghost_examples(ghosts[:n_held], tokenizer),
        job.folder,
        lambda done, words: job.report(SAMPLING_STEPS + done, words),
        counts=counts,
    )
    storage.write_atomically(job.folder / "ghosts.jsonl", "".join(map(_line, ghosts)))
    job.write_beside(write_answers(model, tokenizer, unseen_dialogs(job), recipe))


def teacher_prompts(
    recipe: Recipe, model: Transformer, tokenizer: Tokenizer
) -> tuple[Prompts, int]:
    """Return the prompts that ask for the last answers, and how many did not fit the context.

    Under reading B the earlier answers are sampled first, each with the instruction.
    """
    config, world = recipe.ghost_attention, make_world(recipe.corpus.world_seed)
    seed = rng.seed_from(config.seed, "ghost attention")
    turns = briefs(world, seed, config.n_dialogs, most=config.most_turns)
    drawn = instructions(
        world, seed, config.n_dialogs, combined=config.combined, terse=config.terse
    )
    asked = [
        (on_every_turn(cast(list[Message], as_dialog(own, open_end=True)), worded(given)), given)
        for own, given in zip(turns, drawn, strict=True)
    ]
    longest = model.config.max_seq_len - config.max_new_tokens
    if config.reading == "B":
        asked = _with_sampled_history(config, model, tokenizer, asked)
    fitting = [
        (prompt, given)
        for prompt, given in asked
        if len(encode_prompt(on_first_turn_only(prompt, worded(given)), tokenizer)) <= longest
    ]
    return fitting, len(asked) - len(fitting)


def _with_sampled_history(
    config: GhostAttentionConfig, model: Transformer, tokenizer: Tokenizer, asked: Prompts
) -> Prompts:
    """Replace every earlier answer by a sample, turn after turn."""
    longest = model.config.max_seq_len - config.max_new_tokens
    seed = rng.seed_from(config.seed, "history")
    dialogs = [list(prompt) for prompt, _ in asked]
    for place in range(1, max(map(len, dialogs)), 2):
        rows = [row for row, dialog in enumerate(dialogs) if place < len(dialog)]
        said = answer(
            model, tokenizer,
            [last_turns(dialogs[row][:place], tokenizer, longest) for row in rows],
            max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            seed=rng.seed_from(seed, place),
        )  # fmt: skip
        for row, reply in zip(rows, said, strict=True):
            dialogs[row][place] = {"role": "assistant", "content": carried(reply.text)}
    return [(dialog, given) for dialog, (_, given) in zip(dialogs, asked, strict=True)]


def sampled(
    config: GhostAttentionConfig, model: Transformer, tokenizer: Tokenizer, prompts: Prompts
) -> tuple[list[Entry], dict[str, float]]:
    """Draw the last answers; return those that ended, each text once, and what was counted."""
    longest = model.config.max_seq_len - config.max_new_tokens
    teachers = [last_turns(prompt, tokenizer, longest) for prompt, _ in prompts]
    drawn = draw(
        model, tokenizer, teachers, config.n_samples, config.temperature,
        seed=rng.seed_from(config.seed, "samples"), max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    entries = [
        Entry(prompt, False, said.text, 0, 0.0)
        for (prompt, _), replies in zip(prompts, drawn, strict=True)
        for said in distinct(replies)
    ]
    everything = [
        obeys(given, said.text)
        for (_, given), replies in zip(prompts, drawn, strict=True)
        for said in replies
    ]
    return entries, {
        "prompts": len(prompts),
        "without first turns": sum(
            len(short) < len(prompt) for short, (prompt, _) in zip(teachers, prompts, strict=True)
        ),
        "samples": len(everything),
        "obeying samples": sum(everything),
        "distinct": len(entries),
    }


def _rehearsed(
    job: Job, config: InstructedConfig | GhostAttentionConfig, policy: Transformer
) -> list[Example]:
    room = min(job.recipe.rejection.max_new_tokens, policy.config.max_seq_len // 2)
    own = rehearsal.remembered(job, policy, config.n_replay, config.seed, room)
    return [*own, *rehearsal.shown(job, config.n_demonstrations, config.seed)]


def _short_dialogs(job: Job) -> list[Example]:
    config, world = job.recipe.ghost_attention, make_world(job.recipe.corpus.world_seed)
    seed = rng.seed_from(config.seed, "short dialogs")
    dialogs = instructed_dialogs(world, seed, config.n_short, longest=SHORT_TURNS)
    return examples(cast(list[list[Message]], list(dialogs)), job.tokenizer)


def _line(ghost: Ghost) -> str:
    given: list[Mapping[str, str]] = [dataclasses.asdict(item) for item in ghost.instructions]
    return json.dumps({**ghost._asdict(), "instructions": given}) + "\n"
