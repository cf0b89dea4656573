"""The stages as a graph: what each reads, what it depends on, and how it is run.

The chain: tokenizer, corpus, pretrain, sft, then for every round fresh reward models and rejection
sampling (V1 to V4), ppo (V5), instructed, ghost_attention, safety, and four rounds of red teams.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from llama2_lib import storage
from llama2_lib.config import RED_TEAM_ROUNDS, ROUNDS, Recipe
from llama2_lib.pipeline import settings
from llama2_lib.stages import (
    corpus,
    ghost_attention,
    ppo,
    pretrain,
    red_team,
    rejection,
    reward,
    safety,
    sft,
)
from llama2_lib.stages.job import Job

JUDGE = f"rewards_v{ROUNDS + 1}"
"""The newest reward models: those of PPO and of all that comes after it."""
GHOSTS = "ghost_attention"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One node of the graph."""

    reads: tuple[str, ...]
    """Sections of the recipe that it reads, besides those that its inputs read."""
    inputs: tuple[str, ...]
    """Stages that must be finished before."""
    run: Callable[[Job], None]
    """Does the work; its module is where the settings beside the code are looked for."""
    seconds: int
    """About how long it takes on two cores in `nano`, for the progress bar."""

    @property
    def module(self) -> str:
        """The file that the stage is written in."""
        run = self.run.func if isinstance(self.run, partial) else self.run
        return run.__module__


def policy_before(number: int) -> str:
    """Return the stage whose policy round `number` starts from: SFT, or the round before."""
    return "sft" if number == 1 else f"rejection_v{number - 1}"


def _rewards(number: int) -> Stage:
    """Bring both reward models up to date with the policies before round `number`."""
    newest, older = policy_before(number), policy_before(max(1, number - 1))
    previous = f"rewards_v{number - 1}" if number > 1 else None
    inputs = ("tokenizer", "sft", newest, older, *([previous] if previous else []))
    return Stage(
        reads=("helpfulness", "safety"),
        inputs=tuple(dict.fromkeys(inputs)),
        run=partial(reward.run, number=number, newest=newest, older=older, previous=previous),
        seconds=120 if number == 1 else 40,
    )


def _rejection(number: int) -> Stage:
    """Sample, choose and fine-tune: round `number`."""
    policy, rewards = policy_before(number), f"rewards_v{number}"
    return Stage(
        reads=("rejection",),
        inputs=("tokenizer", "pretrain", rewards, policy),
        run=partial(rejection.run, number=number, policy=policy, rewards=rewards),
        seconds=70,
    )


def _distillation(policy: str, rewards: str, ghosts: str | None) -> Stage:
    """Distil safe answers into the model of the stage `policy`."""
    return Stage(
        reads=("distillation",),
        inputs=tuple(dict.fromkeys(("tokenizer", policy, rewards, *_rehearsed_from(ghosts)))),
        run=partial(safety.run, policy=policy, rewards=rewards, ghosts=ghosts),
        seconds=40,
    )


def _red_team(number: int, series: str, start: str, ghosts: str | None) -> Stage:
    """Attack, learn from what broke the model: round `number` of a series after `start`."""
    policy = start if number == 1 else f"{series}_v{number - 1}"
    return Stage(
        reads=("red_team",),
        inputs=("tokenizer", policy, *_rehearsed_from(ghosts)),
        run=partial(red_team.run, number=number, policy=policy, ghosts=ghosts),
        seconds=15,
    )


def _rehearsed_from(ghosts: str | None) -> tuple[str, ...]:
    """Return what the end of the chain rehearses from, besides its own answers."""
    return (ghosts, "corpus") if ghosts else ()


STAGES: dict[str, Stage] = {
    "tokenizer": Stage(
        reads=("corpus", "tokenizer"), inputs=(), run=corpus.run_tokenizer, seconds=2
    ),
    "corpus": Stage(reads=("corpus",), inputs=("tokenizer",), run=corpus.run_corpus, seconds=4),
    "pretrain": Stage(
        reads=("model", "pretrain"), inputs=("tokenizer", "corpus"), run=pretrain.run, seconds=180
    ),
    "sft": Stage(reads=("sft",), inputs=("tokenizer", "pretrain"), run=sft.run, seconds=45),
    **{f"rewards_v{number}": _rewards(number) for number in range(1, ROUNDS + 2)},
    **{f"rejection_v{number}": _rejection(number) for number in range(1, ROUNDS + 1)},
    "ppo": Stage(
        reads=("ppo",),
        inputs=("tokenizer", f"rejection_v{ROUNDS}", JUDGE),
        run=partial(ppo.run, start=f"rejection_v{ROUNDS}", rewards=JUDGE),
        seconds=130,
    ),
    "instructed": Stage(
        reads=("instructed",),
        inputs=("tokenizer", "corpus", "ppo"),
        run=partial(ghost_attention.run_instructed, start="ppo"),
        seconds=110,
    ),
    "ghost_attention": Stage(
        reads=("ghost_attention",),
        inputs=("tokenizer", "corpus", "instructed", "ppo", JUDGE),
        run=partial(ghost_attention.run, start="instructed", policy="ppo", rewards=JUDGE),
        seconds=150,
    ),
    "safety": _distillation("ghost_attention", JUDGE, GHOSTS),
    **{
        f"red_team_v{number}": _red_team(number, "red_team", "safety", GHOSTS)
        for number in range(1, RED_TEAM_ROUNDS + 1)
    },
    # What no chain needs and claims compare: safety straight after fine-tuning, and variants.
    "safety_early": _distillation("sft", "rewards_v1", None),
    **{
        f"red_team_early_v{number}": _red_team(number, "red_team_early", "sft", None)
        for number in range(1, RED_TEAM_ROUNDS + 1)
    },
    "reward_model": Stage(
        reads=("reward_model",), inputs=("tokenizer", "sft"), run=reward.run_variant, seconds=20
    ),
    "safety_data": Stage(
        reads=("sft", "safety_data"),
        inputs=("tokenizer", "pretrain"),
        run=safety.run_safety_data,
        seconds=20,
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
    names: dict[str, str] = {}
    for name in needed(stage):
        names[name] = storage.fingerprint(
            {
                "stage": name,
                "settings": stage_settings(name, recipe),
                "inputs": {other: names[other] for other in STAGES[name].inputs},
            }
        )
    return names


@cache  # rounds share most of their inputs: one walk for each path would be thousands
def needed(stage: str) -> tuple[str, ...]:
    """Return `stage` and all that it needs, each stage after its inputs.

    Raises:
        ValueError: There is no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    order = [name for other in STAGES[stage].inputs for name in needed(other)]
    return tuple(dict.fromkeys([*order, stage]))


def stage_settings(stage: str, recipe: Recipe) -> dict[str, Any]:
    """Return all that decides what a stage makes of its inputs, see `pipeline.settings`."""
    node = STAGES[stage]
    document: dict[str, Any] = {
        "recipe": settings.sections(recipe, node.reads),
        "constants": settings.constants(settings.modules(node.module)),
    }
    if stage == "tokenizer":  # every other stage needs it, and learns from the world as it does
        n_documents = min(corpus.N_DOCUMENTS, recipe.corpus.n_documents)
        document["recipe"]["corpus"] |= {"n_documents": n_documents, "n_validation": None}
        document["world"] = settings.world_fingerprint()
    return document


def visible_recipe(stage: str, recipe: Recipe) -> Recipe:
    """Return the recipe as a stage may see it: the sections that name it or one of its inputs."""
    reads = dict.fromkeys(section for name in needed(stage) for section in STAGES[name].reads)
    return settings.visible(recipe, tuple(reads), stage)
