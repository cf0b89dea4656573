"""The stages as a graph: what each reads, what it depends on, and how it is run.

The chain: tokenizer, corpus, pretrain, sft, then for every round fresh reward models and rejection
sampling (V1 to V4), ppo (V5), instructed, ghost_attention, safety, and four rounds of red teams.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from llama2_lib import storage
from llama2_lib.config import BRANCHES, RED_TEAM_ROUNDS, ROUNDS, VERSIONS, Recipe
from llama2_lib.pipeline import settings
from llama2_lib.stages import (
    corpus,
    emergent,
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
Constants = Callable[[str], list[str]]
"""Returns what decides anything among the constants of a module."""
WITHOUT_MODEL = ("tokenizer", "corpus")
"""Stages that train no model and ask none: one process runs them."""


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
        return getattr(self.run, "func", self.run).__module__


def _node(
    reads: str, needs: str, seconds: int, run: Callable[..., None], **options: int | str | None
) -> Stage:
    """Return a node that runs with these options; those that name stages are inputs as well."""
    named = [stage for stage in options.values() if isinstance(stage, str)]
    return Stage(
        reads=tuple(reads.split()),
        inputs=tuple(dict.fromkeys([*needs.split(), *named])),
        run=partial(run, **options) if options else run,
        seconds=seconds,
    )


def _before(number: int, series: str = "rejection", start: str = "sft") -> str:
    """Return the stage whose model round `number` of a series begins with."""
    return start if number == 1 else f"{series}_v{number - 1}"


def _rewards(number: int) -> Stage:
    """Bring both reward models up to date with the policies before round `number`."""
    return _node(
        "helpfulness safety",
        "tokenizer sft",
        75 if number == 1 else 18,
        reward.run,
        number=number,
        newest=_before(number),
        older=_before(max(1, number - 1)),
        previous=f"rewards_v{number - 1}" if number > 1 else None,
    )


def _rejection(number: int) -> Stage:
    """Sample, choose and fine-tune: round `number`."""
    policy, rewards = _before(number), f"rewards_v{number}"
    options = {"number": number, "policy": policy, "rewards": rewards}
    return _node("rejection", "tokenizer pretrain", 45, rejection.run, **options)


def _red_team(number: int, series: str, start: str, needs: str, ghosts: str | None) -> Stage:
    """Attack, learn from what broke the model: round `number` of a series after `start`."""
    options = {"number": number, "policy": _before(number, series, start), "ghosts": ghosts}
    return _node("red_team", needs, 8, red_team.run, **options)


STAGES: dict[str, Stage] = {
    "tokenizer": _node("corpus tokenizer", "", 2, corpus.run_tokenizer),
    "corpus": _node("corpus", "tokenizer", 4, corpus.run_corpus),
    "pretrain": _node("model pretrain", "tokenizer corpus", 160, pretrain.run),
    "sft": _node("sft", "tokenizer pretrain", 30, sft.run),
    **{f"rewards_v{n}": _rewards(n) for n in range(1, ROUNDS + 2)},
    **{f"rejection_v{n}": _rejection(n) for n in range(1, ROUNDS + 1)},
    "ppo": _node("ppo", "tokenizer", 105, ppo.run, start=f"rejection_v{ROUNDS}", rewards=JUDGE),
    # From here on a policy rehearses its own answers, documents of the corpus, and ghosts.
    "instructed": _node(
        "instructed", "tokenizer corpus", 80, ghost_attention.run_instructed, start="ppo"
    ),
    "ghost_attention": _node(
        "ghost_attention",
        "tokenizer corpus",
        110,
        ghost_attention.run,
        start="instructed",
        policy="ppo",
        rewards=JUDGE,
    ),
    "safety": _node(
        "distillation",
        "tokenizer corpus",
        23,
        safety.run,
        policy=GHOSTS,
        rewards=JUDGE,
        ghosts=GHOSTS,
    ),
    **{
        f"red_team_v{n}": _red_team(n, "red_team", "safety", "tokenizer corpus", GHOSTS)
        for n in range(1, RED_TEAM_ROUNDS + 1)
    },
    # Branches beside the chat model.
    **{
        name: _node(name, "tokenizer corpus", 30, run, policy=VERSIONS["chat"], ghosts=GHOSTS)
        for name, run in zip(BRANCHES, (emergent.run_dates, emergent.run_tools), strict=True)
    },
    # What no chain needs and claims compare: safety straight after fine-tuning, and variants.
    "safety_early": _node(
        "distillation", "tokenizer", 40, safety.run, policy="sft", rewards="rewards_v1", ghosts=None
    ),
    **{
        f"red_team_early_v{n}": _red_team(n, "red_team_early", "sft", "tokenizer", None)
        for n in range(1, RED_TEAM_ROUNDS + 1)
    },
    "reward_model": _node("reward_model", "tokenizer sft", 20, reward.run_variant),
    "safety_data": _node("sft safety_data", "tokenizer pretrain", 20, safety.run_safety_data),
}


def released_stages(recipe: Recipe) -> dict[str, str]:
    """Return the names of the chain and its branches, each stage after its inputs."""
    ends = (VERSIONS["chat"], *BRANCHES)
    return {name: digits for end in ends for name, digits in fingerprints(end, recipe).items()}


def fingerprint(stage: str, recipe: Recipe, constants_of: Constants | None = None) -> str:
    """Return the 12 hex digits that name `stage` of `recipe`; see `fingerprints`."""
    return fingerprints(stage, recipe, constants_of)[stage]


def fingerprints(
    stage: str, recipe: Recipe, constants_of: Constants | None = None
) -> dict[str, str]:
    """Return the names of `stage` and of all that it needs, each stage after its inputs.

    Whoever asks for many gives one `cache(settings.constants_of)` to all, which reads every module
    once; it must not outlive a change of a constant.
    """
    names, constants_of = dict[str, str](), constants_of or cache(settings.constants_of)
    for name in needed(stage):
        names[name] = storage.fingerprint(
            {
                "stage": name,
                "settings": stage_settings(name, recipe, constants_of),
                "inputs": {other: names[other] for other in STAGES[name].inputs},
            }
        )
    return names


@cache  # rounds share most of their inputs: one walk for each path would be thousands
def needed(stage: str) -> tuple[str, ...]:
    """Return `stage` and all that it needs, each stage after its inputs."""
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    order = [name for other in STAGES[stage].inputs for name in needed(other)]
    return tuple(dict.fromkeys([*order, stage]))


def stage_settings(
    stage: str, recipe: Recipe, constants_of: Constants = settings.constants_of
) -> dict[str, Any]:
    """Return all that decides what a stage makes of its inputs, see `pipeline.settings`."""
    node = STAGES[stage]
    document: dict[str, Any] = {
        "recipe": settings.sections(recipe, node.reads),
        "constants": settings.constants(settings.modules(node.module), constants_of),
    }
    if writers := settings.own_writers(settings.modules(node.module)):
        document["writers"] = writers
    if stage == "tokenizer":  # every other stage needs it, and learns from the world as it does
        n_documents = min(corpus.N_DOCUMENTS, recipe.corpus.n_documents)
        document["recipe"]["corpus"] |= {"n_documents": n_documents, "n_validation": None}
        document["world"] = settings.world_fingerprint()
    return document


def visible_recipe(stage: str, recipe: Recipe) -> Recipe:
    """Return the recipe as a stage may see it: the sections that name it or one of its inputs."""
    reads = dict.fromkeys(section for name in needed(stage) for section in STAGES[name].reads)
    return settings.visible(recipe, tuple(reads), stage)
