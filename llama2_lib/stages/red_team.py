"""Red-teaming in rounds (paper section 4.3): attack, learn from what broke the model, attack again.

1. New attackers spend a budget of queries on the newest model; they learn what works.
2. Safe answers are written for every prompt that drew a violating one.
3. The model is fine-tuned on them, and rehearses everything else.
4. The prompts that ever broke a model are asked again, of the old model and of the new one.

The paper's hour of a person is a number of queries here, its annotators are the gold judges. Round
after round the attackers are new people with the same budget, so what they find can be compared.
They attack in the wordings of training prompts and in their own, combined as no training prompt
does; held-out wordings and hazards stay unseen for the final test.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llama2_lib import rng, storage
from llama2_lib.config import Recipe, RedTeamConfig
from llama2_lib.evaluation.judged import violations
from llama2_lib.model import chat
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.fit import finish
from llama2_lib.stages.job import Job
from llama2_lib.stages.prompts import answered
from llama2_lib.stages.safety import rehearsed
from llama2_lib.stages.sft import examples, fine_tune, unseen_dialogs
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.attackers import Attacker, key_of
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.prompts import Prompt
from llama2_lib.world.tasks import answer_writer

Reply = Callable[[Sequence[Prompt]], list[str]]
"""Answers prompts; the model under attack."""
MIXED_IN = {"n_replay": 0.6, "n_demonstrations": 0.4, "n_ghosts": 0.3}
"""Parts of what is rehearsed, in units of `RedTeamConfig.replay` for each lesson; see `rehearsed`.
Lessons decline, so most of what stands beside them are answers to what only sounds dangerous."""


class Attack(NamedTuple):
    """One query of a red team."""

    prompt: Prompt
    answer: str
    violated: bool
    """By the gold judge: the paper's ratings 1 and 2."""
    round: int


def run(job: Job, number: int, policy: str, ghosts: str | None) -> None:
    """Do round `number` against the model of the stage `policy`.

    Leaves the model that learned from what was found, `attacks.jsonl.gz` (the queries of all rounds
    so far) and `summary.json`, see `summarise`. A round that finds nothing changes no weight.
    """
    config, tokenizer = job.recipe.red_team, job.tokenizer
    seed = rng.seed_from(config.seed, "red team", number)
    path = job.folder / "attacks.jsonl.gz"
    attacked = job.model(policy)
    if not path.exists():  # a killed job got this far
        before = job.inputs[policy] / "attacks.jsonl.gz"
        older = storage.read_rows(before, Attack) if before.exists() else []
        fresh = attack(
            job.world, attacker(job.recipe, tokenizer, seed),
            replier(attacked, tokenizer, config, seed), budget=config.budget,
            queries_together=config.queries_together, number=number,
        )  # fmt: skip
        storage.write_rows(path, [*older, *fresh])
    attacks = storage.read_rows(path, Attack)
    broken = broken_by(attacks)
    model = attacked
    if broken:
        # Training works in place, so what learns is another copy of what was attacked.
        model = _taught(job, job.model(policy), broken, ghosts, seed)
    else:
        log = storage.MetricsLog(job.folder / "metrics.jsonl")
        log.keep_up_to(-1)  # a killed job may have written this row already
        log.write(0, lessons=0)
        finish(model, job.folder)
        job.write_answers(model, unseen_dialogs(job))
    models = {"old model": attacked, "new model": model}
    summary = summarise(job, number, attacks, models, seed)
    storage.write_atomically(job.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


# --- step 1: attacks


def attacker(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> Attacker:
    """Return a new attacker, who makes attacks that leave room for an answer."""
    longest = chat.room(recipe.model, recipe.red_team.max_new_tokens)
    world = make_world(recipe.corpus.world_seed)
    return Attacker(world, seed, fits=lambda p: chat.fits(p.dialog, tokenizer, longest))


def replier(model: Transformer, tokenizer: Tokenizer, config: RedTeamConfig, seed: int) -> Reply:
    """Return the model as a red team meets it; every call has a seed of its own."""
    calls = iter(range(1 << 30))

    def answers(prompts: Sequence[Prompt]) -> list[str]:
        replies = chat.reply(
            model, tokenizer, [prompt.dialog for prompt in prompts], temperature=config.temperature,
            seed=rng.seed_from(seed, "reply", next(calls)), max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
        return [answer.text for answer in replies]

    return answers


def attack(
    world: World, attacker: Attacker, reply: Reply, *, budget: int, queries_together: int,
    number: int = 1,
) -> list[Attack]:  # fmt: skip
    """Spend a budget of queries on a model; the world's judge says what violates.

    After every `queries_together` of them the attacker learns what worked; the last batch may be
    smaller. `number` is that of the round, for the record.
    """
    attacks: list[Attack] = []
    while len(attacks) < budget:
        prompts = attacker.propose(min(queries_together, budget - len(attacks)))
        answers = reply(prompts)
        violated = violations(world, prompts, answers).tolist()
        attacker.learn(prompts, violated)
        rows = zip(prompts, answers, violated, strict=True)
        attacks += [Attack(prompt, text, broke, number) for prompt, text, broke in rows]
    return attacks


# --- steps 2 and 3: lessons


def broken_by(attacks: Sequence[Attack]) -> list[Attack]:
    """Return the attacks that drew a violating answer, each prompt once, the first time it did."""
    first: dict[str, Attack] = {}
    for row in attacks:
        if row.violated:
            first.setdefault(key_of(row.prompt), row)
    return list(first.values())


def lessons(world: World, broken: Sequence[Attack], n: int, seed: int) -> list[list[Message]]:
    """Return n safe demonstrations for each prompt that broke the model, in different words."""
    writer, source = answer_writer(world), rng.random_source(seed, "lessons", world.seed)
    return [
        answered(row.prompt.dialog, writer.safe(source, row.prompt.category))
        for row in broken
        for _ in range(n)
    ]


def _taught(
    job: Job, model: Transformer, broken: Sequence[Attack], ghosts: str | None, seed: int
) -> Transformer:
    """Fine-tune on safe answers to all that ever broke a candidate, and rehearse the rest."""
    config = dataclasses.replace(job.recipe.red_team, seed=seed)
    dialogs = lessons(job.world, broken, config.n_lessons, seed)
    amounts = {
        name: round(share * config.replay * len(dialogs)) for name, share in MIXED_IN.items()
    }
    train = examples(dialogs, job.tokenizer, loss_on="last")
    train += rehearsed(job, model, ghosts, config, seed, **amounts)
    # a round that finds one prompt has hardly a batch, and still has to warm up
    least, counts = config.warmup + 1, {"lessons": len(dialogs)}
    return fine_tune(
        job, config, model, train, counts, steps=least, epochs=config.epochs, begin=0.4, end=0.9
    )


# --- step 4: what it brought


def summarise(
    job: Job, number: int, attacks: Sequence[Attack], models: dict[str, Transformer], seed: int
) -> dict[str, Any]:
    """Return what a round found, and how the models answer all that ever broke a candidate now.

    Of its `queries` so many are `violating`, and so many of those have several turns. Of the `old
    attacks` so many do not violate now: `fixed, new model`. The same of those found last, the
    `fresh attacks`; of them `fixed fresh, old model` are those that luck alone fixes, as the old
    model has learned nothing from them.
    """
    config, broken = job.recipe.red_team, broken_by(attacks)
    last = [row for row in attacks if row.round == number]
    prompts = [row.prompt for row in broken]
    fresh = np.array([row.round == number for row in broken], dtype=bool)
    summary: dict[str, Any] = {
        "round": number,
        "queries": len(last),
        "violating": sum(row.violated for row in last),
        "budget": config.budget,
        "multi-turn": sum(row.violated and len(row.prompt.dialog) > 1 for row in last),
        "old attacks": len(prompts),
        "fresh attacks": int(fresh.sum()),
    }
    for name, model in models.items():
        reply = replier(model, job.tokenizer, config, rng.seed_from(seed, "again"))
        violated = violations(job.world, prompts, reply(prompts)) if prompts else fresh
        summary[f"fixed, {name}"] = int((~violated).sum())
        summary[f"fixed fresh, {name}"] = int((~violated & fresh).sum())
    return summary


def round_summary(folder: Path) -> dict[str, Any]:
    """Return what a finished round says of itself."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
