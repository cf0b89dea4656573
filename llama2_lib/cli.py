"""The command `llama2`: run stages, look at them, talk to them, time them, check claims."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

RecipeName = Literal["toy", "grid", "nano", "small"]
ModelName = Literal[
    "pretrain", "sft", "rejection_v1", "rejection_v2", "rejection_v3", "rejection_v4", "ppo",
    "instructed", "ghost_attention",
    "safety", "safety_early", "red_team_v1", "red_team_v2", "red_team_v3", "red_team_v4",
    "red_team_early_v1", "red_team_early_v2", "red_team_early_v3", "red_team_early_v4",
]  # fmt: skip
StageName = (
    Literal["tokenizer", "corpus"]
    | ModelName
    | Literal["rewards_v1", "rewards_v2", "rewards_v3", "rewards_v4", "rewards_v5"]
)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check this machine, and say what to do about each finding."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """Train the chain and its small grids, then execute the notebooks into build/course."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    notebooks: bool = True
    """Whether to execute the notebooks too."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run one stage, and first any stage it needs that is not yet on disk."""

    stage: tyro.conf.Positional[StageName]
    recipe: RecipeName = "nano"
    seed: int = 0
    steps: int | None = None
    """Pretrain for so many optimiser steps instead; changes the fingerprint."""
    data: Path | None = None
    """A folder of .txt and .jsonl files to train on instead of the world."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print every setting of a recipe, and which of its stages are on disk."""

    recipe: tyro.conf.Positional[RecipeName] = "nano"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk to a chat model, or give the pretrained one a beginning. Ctrl-D ends."""

    stage: ModelName = "red_team_v4"
    """Whose model: pretrain goes on with your text, all others answer. The finished chat model
    is that of the last round of red-teaming."""
    compare: bool = False
    """Let all versions answer side by side, from the base model to the last."""
    recipe: RecipeName = "nano"
    seed: int = 0
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 96
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Measure claims of the paper and print the ledger."""

    ids: tyro.conf.Positional[tuple[int, ...]] = ()
    """Numbers of claims; all that can be measured when left out."""
    recipe: RecipeName = "nano"
    seeds: int = 3
    """How many seeds."""
    write: Path | None = None
    """Merge the results into this ledger, usually data/claims.json."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time this library beside `transformers`, PPO beside TRL, turn by turn in one run."""

    what: tyro.conf.Positional[Literal["train", "generate", "ppo"]]
    pairs: int = 5
    """How many pairs of timings; the median of their ratios is printed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16"] = "fp32"


Command = (
    Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Course, tyro.conf.subcommand("course")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Claims, tyro.conf.subcommand("claims")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the user's mistakes cost one line and exit code 2, no traceback."""
    command = tyro.cli(Command, args=arguments, prog="llama2", description=__doc__)
    try:
        return _HANDLERS[type(command)](command)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"llama2: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "llama2: stopped; the same command goes on from the last checkpoint.", file=sys.stderr
        )
        return 130


# The handlers import what they need, so that `llama2 --help` does not wait for torch.


def _doctor(command: Doctor) -> int:
    from llama2_lib import doctor

    return doctor.main()


def _course(command: Course) -> int:
    from llama2_lib import course

    return course.run(device=command.device, notebooks=command.notebooks)


def _run(command: Run) -> int:
    from llama2_lib import pipeline
    from llama2_lib.recipes import RECIPES

    recipe = RECIPES[command.recipe](command.seed)
    if command.steps is not None:
        pretrain = dataclasses.replace(
            recipe.pretrain,
            steps=command.steps,
            warmup=min(recipe.pretrain.warmup, max(0, command.steps - 1)),
        )
        recipe = dataclasses.replace(recipe, pretrain=pretrain)
    if command.data is not None:
        corpus = dataclasses.replace(recipe.corpus, data=str(command.data.resolve()))
        recipe = dataclasses.replace(recipe, corpus=corpus)
    print(pipeline.artifact(command.stage, recipe, device=command.device))
    return 0


def _show(command: Show) -> int:
    from llama2_lib import pipeline
    from llama2_lib.recipes import RECIPES

    recipe = RECIPES[command.recipe](command.seed)
    for part in dataclasses.fields(recipe):
        value = getattr(recipe, part.name)
        if not dataclasses.is_dataclass(value):
            print(f"{part.name} = {value}")
            continue
        for setting in dataclasses.fields(value):
            print(f"{part.name}.{setting.name} = {getattr(value, setting.name)}")
    print(f"weights = {recipe.model.n_parameters:,}")
    for stage in pipeline.STAGES:
        if stage in ("reward_model", "safety_data") and getattr(recipe, stage) is None:
            continue  # no chain needs it
        path = pipeline.artifact_path(stage, recipe)
        print(f"{stage:10s} {'there  ' if path.exists() else 'missing'} {path}")
    return 0


def _chat(command: Chat) -> int:
    from llama2_lib import chat
    from llama2_lib.recipes import RECIPES

    recipe = RECIPES[command.recipe](command.seed)
    manner = chat.Manner(
        temperature=command.temperature,
        top_p=command.top_p,
        max_new_tokens=command.max_new_tokens,
    )
    if command.compare:
        return chat.compare(recipe, manner, command.device)
    return chat.talk(command.stage, recipe, manner, command.device)


def _claims(command: Claims) -> int:
    from llama2_lib import claims, pipeline
    from llama2_lib.recipes import RECIPES

    recipe, seeds = RECIPES[command.recipe](0), range(command.seeds)
    ids = command.ids or tuple(n for n, c in claims.CLAIMS.items() if c.measure is not None)
    chosen = {number: claims.CLAIMS[number] for number in ids if number in claims.CLAIMS}
    pipeline.artifacts(claims.grid_requests(recipe, seeds, chosen), device=command.device)
    results = claims.run_claims(ids, recipe, seeds)
    print(claims.render_table(results))
    if command.write is not None:
        claims.write_ledger(results, command.write)
    return 0


def _bench(command: Bench) -> int:
    from llama2_lib import bench

    runs = {"train": bench.train, "generate": bench.generation, "ppo": bench.ppo}
    run = runs[command.what]
    return run(pairs=command.pairs, device=command.device, precision=command.precision)


_HANDLERS: dict[type, Callable[[Any], int]] = {
    Doctor: _doctor,
    Course: _course,
    Run: _run,
    Show: _show,
    Chat: _chat,
    Claims: _claims,
    Bench: _bench,
}
