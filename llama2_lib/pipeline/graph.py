"""The stages as a graph: what each depends on, and how it is run."""

import dataclasses

from llama2_lib import storage
from llama2_lib.pipeline import (
    foundation,
    ghost_attention,
    red_team,
    rehearsal,
    reward_model,
    safety,
)
from llama2_lib.pipeline.ppo import ITERATION_STEPS, run_ppo
from llama2_lib.pipeline.rejection import SAMPLING_STEPS, run_rejection
from llama2_lib.pipeline.rewards import run_rewards
from llama2_lib.pipeline.stage import Job, Stage
from llama2_lib.pipeline.world_text import (
    corpus_settings,
    dialog_settings,
    preference_settings,
)
from llama2_lib.recipes import Recipe
from llama2_lib.stages import tokenizer as tokenizer_stage
from llama2_lib.stages.reward import estimated_steps as reward_steps
from llama2_lib.stages.sft import estimated_steps as sft_steps

__all__ = [
    "RED_TEAM_ROUNDS",
    "ROUNDS",
    "STAGES",
    "Job",
    "Stage",
    "fingerprint",
    "fingerprints",
    "policy_before",
]

ROUNDS = 4
"""Rounds of rejection sampling before PPO: V1 to V4 (paper section 3.2.3)."""
RED_TEAM_ROUNDS = 4
"""Rounds of red-teaming after safety context distillation (paper section 4.3)."""
_JUDGE = f"rewards_v{ROUNDS + 1}"
_GHOSTS = "ghost_attention"


def policy_before(number: int) -> str:
    """Return the stage whose policy round `number` starts from: SFT, or the round before."""
    return "sft" if number == 1 else f"rejection_v{number - 1}"


def _rewards(number: int) -> Stage:
    """Bring both reward models up to date with the policies before round `number`."""
    newest, older = policy_before(number), policy_before(max(1, number - 1))
    previous = f"rewards_v{number - 1}"
    inputs = ("tokenizer", "sft", newest, older, *([previous] if number > 1 else []))
    return Stage(
        version=1,
        inputs=tuple(dict.fromkeys(inputs)),
        settings=lambda r: {
            "helpfulness": dataclasses.asdict(r.helpfulness),
            "safety": dataclasses.asdict(r.safety),
            "world": preference_settings(r.corpus.world_seed),
        },
        work=lambda r: sum(reward_steps(c, number) for c in (r.helpfulness, r.safety)),
        run=lambda job: run_rewards(number, job, newest, older, previous if number > 1 else None),
    )


def _rejection(number: int) -> Stage:
    """Sample, choose and fine-tune: round `number`."""
    rewards, previous = f"rewards_v{number}", policy_before(number)
    return Stage(
        version=1,
        inputs=("tokenizer", "pretrain", rewards, previous),
        settings=lambda r: {
            "rejection": dataclasses.asdict(r.rejection),
            "sft": dataclasses.asdict(r.sft) if r.rejection.n_demonstrations else None,
            "world": preference_settings(r.corpus.world_seed),
            "demonstrations": dialog_settings(r.sft, r.corpus.world_seed),
        },
        work=lambda r: r.rejection.steps + SAMPLING_STEPS,
        run=lambda job: run_rejection(number, job, previous, rewards),
    )


def _distillation(policy: str, rewards: str, ghosts: str | None) -> Stage:
    """Distil safe answers into the model of the stage `policy`."""
    inputs = tuple(dict.fromkeys(("tokenizer", policy, rewards, *_rehearsed_from(ghosts))))
    return Stage(
        version=1,
        inputs=inputs,
        settings=lambda r: {
            "distillation": dataclasses.asdict(r.distillation),
            "preprompts": safety.every_preprompt(),
            **rehearsal.settings(r),
        },
        work=lambda r: r.distillation.heed_steps + safety.SAMPLING_STEPS + r.distillation.steps,
        run=lambda job: safety.run_distillation(job, policy, rewards, ghosts),
    )


def _rehearsed_from(ghosts: str | None) -> tuple[str, ...]:
    """Return what the end of the chain rehearses from, besides its own answers."""
    return (ghosts, "corpus") if ghosts else ()


def _red_team(number: int, series: str, start: str, ghosts: str | None) -> Stage:
    """Attack, learn from what broke the model: round `number` of a series after `start`."""
    policy = start if number == 1 else f"{series}_v{number - 1}"
    return Stage(
        version=1,
        inputs=("tokenizer", policy, *_rehearsed_from(ghosts)),
        settings=lambda r: red_team.settings(r) | rehearsal.settings(r),
        work=lambda r: 2 * red_team.ATTACK_STEPS,
        run=lambda job: red_team.run_red_team(number, job, policy, ghosts),
    )


STAGES: dict[str, Stage] = {
    "tokenizer": Stage(
        version=1,
        inputs=(),
        settings=lambda r: {
            "tokenizer": dataclasses.asdict(r.tokenizer),
            "corpus": corpus_settings(r),
            "n_documents": min(tokenizer_stage.N_DOCUMENTS, r.corpus.n_documents),
        },
        work=lambda r: 10,
        run=foundation.run_tokenizer,
    ),
    "corpus": Stage(
        version=1,
        inputs=("tokenizer",),
        settings=lambda r: {
            "corpus": corpus_settings(r),
            "n_documents": r.corpus.n_documents,
            "n_validation": r.corpus.n_validation,
        },
        work=lambda r: 20,
        run=foundation.run_corpus,
    ),
    "pretrain": Stage(
        version=1,
        inputs=("tokenizer", "corpus"),
        settings=lambda r: {
            "model": r.model.to_json(),
            "pretrain": dataclasses.asdict(r.pretrain),
        },
        work=lambda r: r.pretrain.steps,
        run=foundation.run_pretrain,
    ),
    "sft": Stage(
        version=1,
        inputs=("tokenizer", "pretrain"),
        settings=lambda r: {
            "sft": dataclasses.asdict(r.sft),
            **dialog_settings(r.sft, r.corpus.world_seed),
        },
        work=lambda r: sft_steps(r.sft),
        run=foundation.run_sft,
    ),
    "reward_model": Stage(
        version=1,
        inputs=("tokenizer", "sft"),
        settings=lambda r: {
            "variant": reward_model.settings(r),
            "world": preference_settings(r.corpus.world_seed),
        },
        work=reward_model.work,
        run=reward_model.run_reward_model,
    ),
    **{f"rewards_v{number}": _rewards(number) for number in range(1, ROUNDS + 2)},
    **{f"rejection_v{number}": _rejection(number) for number in range(1, ROUNDS + 1)},
    "ppo": Stage(
        version=1,
        inputs=("tokenizer", f"rejection_v{ROUNDS}", _JUDGE),
        settings=lambda r: {
            "ppo": dataclasses.asdict(r.ppo),
            "world": preference_settings(r.corpus.world_seed),
        },
        work=lambda r: ITERATION_STEPS * (r.ppo.value_warmup + r.ppo.iterations),
        run=lambda job: run_ppo(job, f"rejection_v{ROUNDS}", _JUDGE),
    ),
    "instructed": Stage(
        version=1,
        inputs=("tokenizer", "corpus", "ppo"),
        settings=lambda r: ghost_attention.settings(r, "instructed"),
        work=lambda r: ghost_attention.estimated_steps(r, "instructed"),
        run=lambda job: ghost_attention.run_instructed(job, "ppo"),
    ),
    "ghost_attention": Stage(
        version=1,
        inputs=("tokenizer", "corpus", "instructed", "ppo", _JUDGE),
        settings=lambda r: ghost_attention.settings(r, "ghost_attention"),
        work=lambda r: (
            ghost_attention.SAMPLING_STEPS + ghost_attention.estimated_steps(r, "ghost_attention")
        ),
        run=lambda job: ghost_attention.run_ghost_attention(job, "instructed", "ppo", _JUDGE),
    ),
    "safety": _distillation("ghost_attention", _JUDGE, _GHOSTS),
    "safety_early": _distillation("sft", "rewards_v1", None),
    **{
        f"{series}_v{number}": _red_team(number, series, start, ghosts)
        for series, start, ghosts in (
            ("red_team", "safety", _GHOSTS),
            ("red_team_early", "sft", None),
        )
        for number in range(1, RED_TEAM_ROUNDS + 1)
    },
    "safety_data": Stage(
        version=1,
        inputs=("tokenizer", "pretrain"),
        settings=lambda r: {
            "safety_data": safety.data_settings(r),
            **dialog_settings(r.sft, r.corpus.world_seed),
        },
        work=lambda r: sft_steps(r.sft),
        run=safety.run_safety_data,
    ),
}


def fingerprint(stage: str, recipe: Recipe) -> str:
    """Return the 12 hex digits that name `stage` of `recipe`.

    Raises:
        ValueError: There is no such stage.
    """
    return fingerprints(stage, recipe)[stage]


def fingerprints(stage: str, recipe: Recipe) -> dict[str, str]:
    """Return the names of `stage` and of all that it needs, each stage after its inputs.

    Raises:
        ValueError: There is no such stage.
    """
    known: dict[str, str] = {}
    _name(stage, recipe, known)
    return known


def _name(stage: str, recipe: Recipe, known: dict[str, str]) -> None:
    """Name the inputs, then the stage; the rounds share inputs, so each is named once."""
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    node = STAGES[stage]
    for name in node.inputs:
        if name not in known:
            _name(name, recipe, known)
    known[stage] = storage.fingerprint(
        {
            "stage": stage,
            "version": node.version,
            "config": node.settings(recipe),
            "inputs": {name: known[name] for name in node.inputs},
        }
    )
