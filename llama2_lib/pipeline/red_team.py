"""How a round of red-teaming is run: attack, write lessons, fine-tune, ask the old attacks again.

Round after round the attackers are new people with the same budget, so what they find can be
compared. They attack in the wordings of training prompts and in their own, combined as no
training prompt does; held-out wordings and hazards stay unseen for the final test.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from llama2_lib import rng, storage
from llama2_lib.evaluation.chat import answer
from llama2_lib.evaluation.safety import violations
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import save_model
from llama2_lib.pipeline.rejection import N_MEASURED, loss_on, unseen_dialogs
from llama2_lib.pipeline.safety import rehearsed
from llama2_lib.pipeline.samples import write_answers
from llama2_lib.pipeline.stage import Job
from llama2_lib.recipes import Recipe
from llama2_lib.stages.fit import fit
from llama2_lib.stages.red_team import (
    Attack,
    RedTeamConfig,
    Reply,
    attack,
    broken_by,
    lessons,
    read_attacks,
    write_attacks,
)
from llama2_lib.stages.sft import dialog_loss
from llama2_lib.text.dialog import Message, encode_example, encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.dialog_batches import PackedDialogs
from llama2_lib.world import make_world
from llama2_lib.world.attackers import Attacker
from llama2_lib.world.facts import World
from llama2_lib.world.prompts import Prompt

ATTACK_STEPS = 30
"""For the progress bar: the queries take about as long as so many steps."""
MIXED_IN = {"n_replay": 0.6, "n_demonstrations": 0.4, "n_ghosts": 0.3}
"""Parts of what is rehearsed, in units of `RedTeamConfig.replay` for each lesson; see `rehearsed`.
Lessons decline, so most of what stands beside them are answers to what only sounds dangerous."""


def replier(model: Transformer, tokenizer: Tokenizer, config: RedTeamConfig, seed: int) -> Reply:
    """Return the model as a red team meets it; every call has a seed of its own."""
    calls = iter(range(1 << 30))

    def reply(prompts: Sequence[Prompt]) -> list[str]:
        replies = answer(
            model, tokenizer, [cast(list[Message], prompt.dialog) for prompt in prompts],
            temperature=config.temperature, seed=rng.seed_from(seed, "reply", next(calls)),
            max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
        return [reply.text for reply in replies]

    return reply


def attacker(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> Attacker:
    """Return a new attacker, who makes attacks that leave room for an answer."""
    longest = recipe.model.max_seq_len - recipe.red_team.max_new_tokens

    def fits(prompt: Prompt) -> bool:
        return len(encode_prompt(cast(list[Message], prompt.dialog), tokenizer)) <= longest

    return Attacker(make_world(recipe.corpus.world_seed), seed, fits=fits)


def run_red_team(number: int, job: Job, policy: str, ghosts: str | None) -> None:
    """Do round `number` against the model of the stage `policy`.

    Leaves the model that learned from what was found, `attacks.jsonl` (the queries of all rounds
    so far) and `summary.json`, see `summarise`. A round that finds nothing changes no weight.
    """
    config, tokenizer = job.recipe.red_team, job.tokenizer
    world = make_world(job.recipe.corpus.world_seed)
    seed = rng.seed_from(config.seed, "red team", number)
    path = job.folder / "attacks.jsonl"
    attacked = job.model(policy)
    if not path.exists():  # a killed job got this far
        before = job.inputs[policy] / "attacks.jsonl"
        older = read_attacks(before) if before.exists() else []
        fresh = attack(
            world, attacker(job.recipe, tokenizer, seed),
            replier(attacked, tokenizer, config, seed),
            budget=config.budget, batch_size=config.batch_size, number=number,
        )  # fmt: skip
        write_attacks(path, [*older, *fresh])
    attacks = read_attacks(path)
    broken = broken_by(attacks)
    model = _taught(job, job.model(policy), broken, ghosts, seed) if broken else attacked
    if not broken:
        storage.MetricsLog(job.folder / "metrics.jsonl").write(0, lessons=0)
        save_model(model, job.folder)
    # `attacked` is another copy: `_taught` trains in place
    summary = summarise(attacks, number, config) | asked_again(
        world, number, broken, {"old model": attacked, "new model": model}, tokenizer, config, seed
    )
    storage.write_atomically(job.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    job.write_beside(write_answers(model, tokenizer, unseen_dialogs(job), job.recipe))


def _taught(
    job: Job, model: Transformer, broken: Sequence[Attack], ghosts: str | None, seed: int
) -> Transformer:
    """Fine-tune on safe answers to all that ever broke a candidate, and rehearse the rest."""
    config, tokenizer = job.recipe.red_team, job.tokenizer
    world = make_world(job.recipe.corpus.world_seed)
    made = lessons(world, broken, config.n_lessons, seed)
    amounts = {name: round(share * config.replay * len(made)) for name, share in MIXED_IN.items()}
    train = [encode_example(dialog, tokenizer, loss_on="last") for dialog in made]
    train += rehearsed(job, model, ghosts, config, seed, **amounts)
    packed = PackedDialogs(train, seq_len=config.seq_len, seed=seed)
    unseen = unseen_dialogs(job)[:N_MEASURED]
    return fit(
        config,
        model,
        lambda start: packed.batches(batch_size=config.rows, start=start),
        dialog_loss(config.isolate_documents),
        loss_on(unseen, tokenizer, config.seq_len),
        job.folder,
        lambda done, words: job.report(ATTACK_STEPS + done, words),
        steps=max(config.warmup + 1, config.epochs * packed.batches_per_epoch(config.rows)),
        before=lambda _: {"lessons": len(made), **packed.counts()},
    )


def summarise(attacks: Sequence[Attack], number: int, config: RedTeamConfig) -> dict[str, Any]:
    """Return what a round found: `queries`, `violating`, and how many of those in several turns."""
    fresh = [row for row in attacks if row.round == number]
    return {
        "round": number,
        "queries": len(fresh),
        "violating": sum(row.violated for row in fresh),
        "budget": config.budget,
        "multi-turn": sum(row.violated and len(row.prompt.dialog) > 1 for row in fresh),
    }


def asked_again(
    world: World,
    number: int,
    broken: Sequence[Attack],
    models: dict[str, Transformer],
    tokenizer: Tokenizer,
    config: RedTeamConfig,
    seed: int,
) -> dict[str, Any]:
    """Ask everything that ever broke a candidate once more.

    Returns:
        `old attacks`, and how many of them do not violate now, by model: `fixed, new model`. The
        same of those found last: `fresh attacks`; of them `fixed fresh, old model` are those that
        luck alone fixes, as the old model has learned nothing from them.
    """
    prompts = [row.prompt for row in broken]
    fresh = np.array([row.round == number for row in broken], dtype=bool)
    found: dict[str, Any] = {"old attacks": len(prompts), "fresh attacks": int(fresh.sum())}
    for name, model in models.items():
        reply = replier(model, tokenizer, config, rng.seed_from(seed, "again"))
        violated = violations(world, prompts, reply(prompts)) if prompts else fresh
        found[f"fixed, {name}"] = int((~violated).sum())
        found[f"fixed fresh, {name}"] = int((~violated & fresh).sum())
    return found


def round_summary(folder: Path) -> dict[str, Any]:
    """Return what a finished round says of itself."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def settings(recipe: Recipe) -> dict[str, Any]:
    """Return what a round depends on besides its inputs: settings, and what attackers ask."""
    return {
        "red_team": dataclasses.asdict(recipe.red_team),
        "attacks": _first_attacks(recipe.corpus.world_seed),
    }


@cache
def _first_attacks(world_seed: int) -> str:
    first = Attacker(make_world(world_seed), 0).propose(64)
    return storage.fingerprint([dataclasses.asdict(prompt) for prompt in first])
