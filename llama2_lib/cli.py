"""The command `llama2`: run stages, look at them, talk to them, time them, check claims."""

import dataclasses
import difflib
import json
import os
import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from llama2_lib.config import VERSIONS

if TYPE_CHECKING:
    from llama2_lib.config import Recipe

LAST_WITH_DATA = "ghost_attention"
"""It and all that it needs learn from a folder; what comes after knows the invented world alone."""
UNASKED_SECONDS = 120
"""Training that a command does without a question, though it was asked for something else."""
GOES_ON = "the same command goes on from the last checkpoint."


# --- what several commands take


@dataclass(frozen=True, kw_only=True)
class _OnDevice:
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True, kw_only=True)
class _Asking(_OnDevice):
    """What trains only on the way to something else."""

    yes: bool = False
    """Train what is missing without a question, however long it takes."""

    def need(self, requests: Sequence[tuple[str, Any]]) -> None:
        """Ask before what is missing is trained, if that takes long; refuse if nobody says yes."""
        from llama2_lib.doctor import duration, missing, stage_seconds, training_speed

        stages = missing(requests)
        if self.yes or not stages:
            return
        speed = training_speed(1.0)
        seconds = sum(stage_seconds(*stage, speed) for stage in stages)
        if seconds < UNASKED_SECONDS:
            return
        names = list(dict.fromkeys(name for name, _ in stages))
        which = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        sentence = (
            f"{len(stages)} stages that this needs are not on disk ({which}): about "
            f"{duration(seconds)} of training on this CPU."
        )
        if not sys.stdin.isatty():
            raise ValueError(f"{sentence} Add --yes to train them.")
        if input(f"{sentence} Train them now? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("nothing was trained.")


@dataclass(frozen=True, kw_only=True)
class _OfStage:
    recipe: str = "nano"
    """`llama2 show` lists them."""
    seed: int = 0
    steps: int | None = None
    """Optimiser steps of pretraining instead of the recipe's; they change the fingerprint."""
    data: str | None = None
    """A folder of .txt, .jsonl, .json or .parquet files to learn from instead of the world: text,
    dialogs and pairs of answers, in the shapes that `llama2_lib/text/files.py` lists. Or a data set
    of the hub, hub:OWNER/NAME@COMMIT."""

    def recipe_of(self, stage: str) -> "Recipe":
        """Return the named recipe, with steps and texts of one's own where they are given."""
        recipe = _recipe(self.recipe, self.seed)
        if self.steps is not None:
            if stage in ("tokenizer", "corpus"):
                raise ValueError(f"--steps is of pretraining; {stage} has none. Leave it out.")
            warmup = min(recipe.pretrain.warmup, max(0, self.steps - 1))
            pretrain = dataclasses.replace(recipe.pretrain, steps=self.steps, warmup=warmup)
            recipe = dataclasses.replace(recipe, pretrain=pretrain)
        if self.data is not None:
            from llama2_lib import storage
            from llama2_lib.pipeline.graph import needed

            if stage not in needed(LAST_WITH_DATA):
                raise ValueError(
                    f"only the stages up to {LAST_WITH_DATA} learn from --data; {stage} would "
                    "learn from the invented world. Leave --data out, or run an earlier stage."
                )
            texts = str(storage.local_folder(self.data, "dataset"))
            corpus = dataclasses.replace(recipe.corpus, data=texts)
            recipe = dataclasses.replace(recipe, corpus=corpus)
        return recipe


# --- the commands; each imports what it needs, so that `llama2 --help` does not wait for torch


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check this machine, and say what to do about each finding."""

    def _do(self) -> int:
        from llama2_lib import doctor

        return doctor.main()


@dataclass(frozen=True, kw_only=True)
class Course(_OnDevice):
    """Train the chain, then execute the notebooks into build/course."""

    notebooks: bool = True
    """Whether to execute the notebooks too."""

    def _do(self) -> int:
        from llama2_lib.teaching.lessons.kernel import need_kernel

        if self.notebooks:
            need_kernel()  # before an hour of training, not after
        from llama2_lib import course

        return course.run(device=self.device, notebooks=self.notebooks)


@dataclass(frozen=True, kw_only=True)
class Chain(_OnDevice):
    """Train the whole chain from nothing, and set its numbers beside the released ones."""

    def _do(self) -> int:
        from llama2_lib import release

        print("\n".join(release.train_beside(self.device)))
        return 0


@dataclass(frozen=True, kw_only=True)
class Release(_OnDevice):
    """Train what is missing, and replace the release in data/release by this chain."""

    def _do(self) -> int:
        from llama2_lib import release

        print(release.make(self.device))
        return 0


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Run the first steps of released stages again, and compare numbers, samples and data."""

    stages: tyro.conf.Positional[tuple[str, ...]] = ()
    """All of the chain when left out."""
    device: str = "cpu"
    """On a GPU every stage is held to what the release's CPU made, within stated bands."""

    def _do(self) -> int:
        from llama2_lib import pipeline
        from llama2_lib.pipeline.replay import replay
        from llama2_lib.recipes import nano

        chain = pipeline.released_stages(nano())
        faults, seconds = [], 0.0
        print(f"{'stage':16s} {'seconds':>7s}  {'numbers':>7s}  {'apart':>7s}  lines as they were")
        for stage in self.stages or tuple(chain):
            found = replay(_known("stage", stage, chain), nano(), device=self.device)
            same, n = (sum(column) for column in zip(*found.lines.values(), (0, 0), strict=True))
            print(
                f"{stage:16s} {found.seconds:7.1f}  {len(found.numbers):7d}  {found.largest:7.1g}  "
                f"{same:,} of {n:,}" + ", the same processor" * found.exact,
                flush=True,
            )
            faults += found.differences()
            seconds += found.seconds
        print(*faults, f"{seconds:.0f} s, {len(faults)} differences", sep="\n")
        return int(bool(faults))


@dataclass(frozen=True, kw_only=True)
class Run(_OnDevice, _OfStage):
    """Run one stage, and first any stage it needs that is not yet on disk."""

    stage: tyro.conf.Positional[str] = ""
    """`llama2 show` lists them in their order."""

    def _do(self) -> int:
        from llama2_lib.pipeline import artifact, artifact_path, joint_artifact

        stage, joint = _known("stage", self.stage, _in_order()), "TORCHELASTIC_RUN_ID" in os.environ
        recipe, make = self.recipe_of(stage), joint_artifact if joint else artifact
        folder = make(stage, recipe, device=self.device)
        if joint and os.environ["RANK"] != "0":
            return 0  # the first process tells
        print(folder)
        own = self.data is not None and stage != "tokenizer"
        _tell(stage, folder, artifact_path("corpus", recipe) if own else None)
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print every setting of a recipe, and which of its stages are on disk; or plan a large model.

    `llama2 show 70B --gpus 16` says what a training step would need, without allocating anything.
    """

    recipe: tyro.conf.Positional[str] = "nano"
    """A recipe, or one of the paper's sizes: 7B, 13B, 34B, 70B."""
    seed: int = 0
    gpus: int = 1
    """GPUs that divide a model of the paper's."""
    tokens: int = 4096
    """Tokens of a step on each of them."""

    def _do(self) -> int:
        from llama2_lib.model.config import FAMILY

        size = self.recipe.removeprefix("llama2_").upper()
        if size in FAMILY:
            from llama2_lib.bench import memory

            made = memory.plan(FAMILY[size], gpus=self.gpus, tokens=self.tokens)
            print(*memory.lines(FAMILY[size], made, self.gpus), sep="\n")
            return 0
        from llama2_lib import pipeline
        from llama2_lib.recipes import RECIPES

        recipe = _recipe(self.recipe, self.seed)
        print(f"recipe {recipe.name} of {', '.join(RECIPES)}")
        for part in dataclasses.fields(recipe):
            value = getattr(recipe, part.name)
            if not dataclasses.is_dataclass(value):
                print(f"{part.name} = {value}")
                continue
            for setting in dataclasses.fields(value):
                print(f"{part.name}.{setting.name} = {getattr(value, setting.name)}")
        print(f"weights = {recipe.model.n_parameters:,}")
        chain = pipeline.fingerprints(VERSIONS["chat"], recipe)
        print("stages, in their order (optional: no chain needs it, some claims do)")
        for stage in _in_order():
            if stage in ("reward_model", "safety_data") and getattr(recipe, stage) is None:
                continue  # variants that claims set
            path = pipeline.artifact_path(stage, recipe)
            state = "there" if path.exists() else "missing" if stage in chain else "optional"
            print(f"{stage:17s} {state:8s} {path}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Chat(_Asking, _OfStage):
    """Talk to a chat model, or give the pretrained one a beginning. Ctrl-D ends."""

    folder: tyro.conf.Positional[Path | None] = None
    """A folder of a model, as `llama2 run` prints it, in place of a stage of a recipe."""
    stage: str | None = None
    """Whose model: pretrain goes on with your text, all others answer. The finished chat model
    when left out; with --data or --steps, given as they were to `run`, pretrain."""
    compare: bool = False
    """Let all versions answer side by side, from the base model to the last."""
    system: str = ""
    """What the model is told before the dialog."""
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 96

    def _do(self) -> int:
        from llama2_lib import chat_room

        sampling = chat_room.Sampling(
            temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens
        )
        if self.compare:
            if self.folder or self.stage:
                raise ValueError("--compare takes all versions; leave the folder and --stage out.")
            models = dict(zip(VERSIONS, self._load(*VERSIONS.values()), strict=True))
            return chat_room.compare(models, sampling, self.system)
        own = self.data is not None or self.steps is not None
        if self.folder is not None:
            if own:
                raise ValueError("a folder is a finished model; leave --data and --steps out.")
            stage, model, tokenizer = self._from_folder(self.folder)
        else:
            stage = self.stage or ("pretrain" if own else VERSIONS["chat"])
            stage = _known("stage with a language model", stage, _talking())
            [(model, tokenizer)] = self._load(stage)
        if stage != "pretrain":
            return chat_room.talk(model, tokenizer, sampling, self.system)
        if self.system:
            raise ValueError("a pretrained model only continues text; it takes no --system.")
        return chat_room.continue_text(model, tokenizer, sampling)

    def _load(self, *stages: str) -> list[tuple[Any, Any]]:
        from llama2_lib import pipeline

        requests = [(stage, self.recipe_of(stage)) for stage in stages]
        self.need(requests)
        return [pipeline.load(*request, device=self.device) for request in requests]

    def _from_folder(self, folder: Path) -> tuple[str, Any, Any]:
        """Return stage, model and tokenizer of a folder; one that is not ours is a chat model."""
        from llama2_lib.device import choose_device
        from llama2_lib.model.weights import load_model
        from llama2_lib.storage import META
        from llama2_lib.text.tokenizer import load_tokenizer

        stage, own = self.stage or "chat", (folder / META).is_file()
        if self.stage is None and own:
            stage = str(json.loads((folder / META).read_text(encoding="utf-8")).get("stage"))
        device = choose_device(self.device)
        # A model from elsewhere may be large: it keeps the precision that it comes in.
        model, _ = load_model(folder, device) if own else load_model(folder, device, None)
        return stage, model, load_tokenizer(folder)


@dataclass(frozen=True, kw_only=True)
class Convert(_Asking, _OfStage):
    """Write a stage, or a model of another program, in the layout of another one."""

    source: tyro.conf.Positional[str]
    """A stage, or the path of a model: a folder of Hugging Face's or Meta's layout, a .bin of
    llama2.c, a .gguf; or one of the hub, hub:OWNER/NAME@COMMIT."""
    folder: tyro.conf.Positional[Path]
    """A new or empty one."""
    to: Literal["hf", "meta", "llama2c", "gguf", "ours"] = "hf"
    """Hugging Face's safetensors, Meta's consolidated.*.pth, llama2.c's run, llama.cpp (the extra
    convert), or this course's."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """The precision of the weights; that of their file when left out."""
    shards: int = 1
    """Files to divide the weights of "hf" and "meta" into."""

    def _do(self) -> int:
        import torch

        from llama2_lib import export, pipeline, storage

        export.check_target(self.folder, self.to)
        source, chat = storage.local_folder(self.source, "model"), True
        if self.source in _talking() or not source.exists():
            stage = _known("stage with a language model", self.source, _talking())
            recipe, chat = self.recipe_of(stage), stage != "pretrain"
            self.need([(stage, recipe)])
            source = pipeline.artifact(stage, recipe, device=self.device)
        dtype = self.dtype and getattr(torch, self.dtype)
        print(
            export.convert(source, self.folder, self.to, dtype=dtype, shards=self.shards, chat=chat)
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Say which checks of a learner's notebooks pass, and write a file for the teacher."""

    lessons: tyro.conf.Positional[tuple[str, ...]] = ()
    copies: Path = Path("build/student")
    """Where the learner's notebooks lie."""
    stored: bool = False
    """Read the outputs in the copies instead of executing them, which takes a minute each."""
    write: Path = Path("build/progress.json")

    def _do(self) -> int:
        from llama2_lib.teaching.lessons.build import NOTEBOOKS
        from llama2_lib.teaching.lessons.progress import progress

        print(progress(self.lessons, self.copies, self.stored, self.write, NOTEBOOKS))
        return 0


@dataclass(frozen=True, kw_only=True)
class Claims(_Asking):
    """Measure claims of the paper and print the ledger."""

    ids: tyro.conf.Positional[tuple[int, ...]] = ()
    """Numbers of claims; all that can be measured when left out."""
    recipe: str = "nano"
    seeds: int = 3
    """How many seeds."""
    write: Path | None = None
    """Merge the results into this ledger, usually data/claims.json."""

    def _do(self) -> int:
        from llama2_lib import pipeline
        from llama2_lib.claims import ledger

        recipe, seeds = _recipe(self.recipe, 0), range(self.seeds)
        ids = self.ids or tuple(ledger.CLAIMS)
        chosen = {number: ledger.CLAIMS[number] for number in ids if number in ledger.CLAIMS}
        requests = ledger.grid_requests(recipe, seeds, chosen)
        self.need(requests)
        pipeline.artifacts(requests, device=self.device)
        keep = pipeline.artifact_root() / "claims"
        results = ledger.run_claims(ids, recipe, seeds, keep=keep)
        for result in sorted(results, key=lambda result: result.key):
            print(f"\n{result}")
        if self.write is not None:
            ledger.write_ledger(results, self.write)
        return 0


@dataclass(frozen=True, kw_only=True)
class Bench(_OnDevice):
    """Time this library beside `transformers`, PPO beside TRL, turn by turn in one run.

    `llama2 bench gpu` trains 1.1 B weights and decodes with 7 B, against what the GPU can do.
    """

    what: tyro.conf.Positional[Literal["train", "generate", "ppo", "gpu"]]
    pairs: int = 5
    """How many pairs of timings, at least five; the median of their ratios is printed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    write: Path | None = None
    """A .json file for the figures of a GPU, with device and versions."""

    def _do(self) -> int:
        from llama2_lib import bench

        if self.what == "gpu":
            return bench.on_gpu(device=self.device, write=self.write)

        if self.pairs < 5:
            raise ValueError(f"pairs must be at least 5, for a median; got {self.pairs}.")
        runs = {"train": bench.train, "generate": bench.generation, "ppo": bench.ppo}
        return runs[self.what](pairs=self.pairs, device=self.device, precision=self.precision)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the user's mistakes cost one line and exit code 2, no traceback."""
    if "torch" not in sys.modules:
        # OpenMP reads it once. Threads that spin while they wait for each other make training
        # five times as slow beside one other program, and 8 % faster on a quiet machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    first = Doctor | Course | Chain | Release | Replay | Run | Show
    commands = first | Chat | Convert | Progress | Claims | Bench
    command = tyro.cli(commands, args=arguments, prog="llama2", description=__doc__)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return command._do()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"llama2: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"llama2: stopped; {GOES_ON}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _: object) -> None:
    # At once: what a killed stage leaves behind can always be gone on from, and workers follow.
    print(f"\nllama2: ended by a signal; {GOES_ON}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _in_order() -> list[str]:
    """Return all stages in the order in which the chain runs them, then those it does not need."""
    from llama2_lib.pipeline.graph import STAGES, needed

    return list(dict.fromkeys([*needed(VERSIONS["chat"]), *STAGES]))


def _talking() -> list[str]:
    """Return the stages that leave a language model; variants have no settings of their own."""
    others = ("tokenizer", "corpus", "reward_model", "safety_data")
    return [name for name in _in_order() if name not in others and not name.startswith("rewards_")]


def _known(what: str, name: str, choices: Collection[str]) -> str:
    """Return the name if it is one of the choices; else tell the nearest one and all in order."""
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, 1, cutoff=0.5)
    problem = f"there is no {what} {name!r}" if name else f"name a {what}"
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{problem}.{guess} There are: {', '.join(choices)}.")


def _recipe(name: str, seed: int) -> "Recipe":
    from llama2_lib.recipes import RECIPES

    return RECIPES[_known("recipe", name, RECIPES)](seed)


def _tell(stage: str, folder: Path, corpus: Path | None) -> None:
    """Say how a training went, and show what it wrote; the folder alone is on standard output.

    Of the `corpus` of a reader's own: what was read, and what no stage can measure on it.
    """
    from llama2_lib.storage import read_metrics

    lines = []
    if (folder / "counts.json").is_file():
        counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        lines.append("; ".join(f"{name}: {n:,}" for name, n in counts.items()))
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "validation_loss" in row]
    if rows:
        loss = f"{rows[-1]['validation_loss']:.3f} nats per token"
        lines.append(f"validation loss {loss} after {rows[-1]['step']} steps")
    if (folder / "samples.txt").is_file():
        sample = (folder / "samples.txt").read_text(encoding="utf-8").split("\n---\n")[0]
        lines.append(f"it writes: {sample.strip()}")
    if corpus is not None:
        told = json.loads((corpus / "survey.json").read_text(encoding="utf-8"))
        lines.append(f"read: {told['found']}")
        lines += told["not measured"] if stage not in ("corpus", "pretrain") else []
    if stage in _talking():
        lines.append(f"talk to it: llama2 chat {folder}")
    for line in lines:
        print(line, file=sys.stderr)
