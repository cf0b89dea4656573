"""How safety context distillation is run, and fine-tuning on parts of the safety data (4.2)."""

import dataclasses
import shutil
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import numpy as np

from llama2_lib import rng
from llama2_lib.evaluation.chat import Answer, answer
from llama2_lib.evaluation.reward import scores
from llama2_lib.model.heads import ScalarModel
from llama2_lib.model.transformer import Transformer
from llama2_lib.pipeline.rehearsal import demonstrated, old_ghosts, remembered, shown
from llama2_lib.pipeline.rejection import N_MEASURED, loss_on, unseen_dialogs
from llama2_lib.pipeline.rewards import answered, load_rewards
from llama2_lib.pipeline.samples import write_answers
from llama2_lib.pipeline.stage import Job
from llama2_lib.recipes import Recipe
from llama2_lib.stages.asked import ask
from llama2_lib.stages.fit import fit
from llama2_lib.stages.red_team import RedTeamConfig
from llama2_lib.stages.safety import (
    ADJECTIVES,
    GENERIC,
    DistillationConfig,
    Distilled,
    answer_template,
    heeding_dialogs,
    preprompt_for,
    read_distilled,
    targets,
    with_preprompt,
    write_distilled,
)
from llama2_lib.stages.safety_data import mixed_dialogs
from llama2_lib.stages.sft import dialog_loss, sft, validation_dialogs
from llama2_lib.stages.sft import examples as encode_dialogs
from llama2_lib.text.dialog import Encoder, Message, encode_example, encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.dialog_batches import Example, PackedDialogs
from llama2_lib.world import make_world
from llama2_lib.world.answers import CATEGORIES
from llama2_lib.world.pairs import HELPFUL_STREAM
from llama2_lib.world.prompts import Prompt

SAMPLING_STEPS = 40
"""For the progress bar: three answers to each prompt take about as long as so many steps."""
TEACHER = "teacher"
_PROBE: list[Message] = [{"role": "user", "content": "Hello"}]


def every_preprompt() -> list[str]:
    """Return all preprompts there are: fingerprints and lengths rest on them."""
    pairs = permutations(ADJECTIVES, 2)
    generic = [text.format(first=a, second=b) for a, b in pairs for text in GENERIC]
    return [*dict.fromkeys(generic), *map(answer_template, CATEGORIES)]


def longest_prompt(recipe: Recipe, tok: Encoder) -> int:
    """Return how long a prompt may be, so that a preprompt and an answer fit beside it."""
    bare = len(encode_prompt(_PROBE, tok))
    grown = max(len(encode_prompt(with_preprompt(_PROBE, p), tok)) for p in every_preprompt())
    return recipe.model.max_seq_len - recipe.distillation.max_new_tokens - (grown - bare)


def run_distillation(job: Job, policy: str, rewards: str, ghosts: str | None) -> None:
    """Distil the answers that the stage `policy` gives behind preprompts into itself.

    The gate asks the safety model of the stage `rewards`. Leaves the model and `distilled.jsonl`:
    for every prompt both answers and their scores, kept or not. A policy at the end of the chain
    (see `rehearsed`) is safe already: where the gate drops an answer it rehearses its own.
    """
    config, tokenizer = job.recipe.distillation, job.tokenizer
    path = job.folder / "distilled.jsonl"
    if not path.exists():  # a killed job got this far
        judge = load_rewards(job.inputs[rewards], job.device).safety
        write_distilled(path, distilled(job, policy, judge))
    rows = read_distilled(path)
    made = targets(rows, config.gate, anchored=ghosts is not None)
    train = [encode_example(dialog, tokenizer, loss_on="last") for dialog in made]
    model = job.model(policy)
    train += rehearsed(
        job, model, ghosts, config, config.seed, n_replay=config.n_replay,
        n_demonstrations=config.n_demonstrations, n_ghosts=config.n_ghosts,
    )  # fmt: skip
    packed = PackedDialogs(train, seq_len=config.seq_len, seed=config.seed)
    gains = [row.increase for row in rows]
    counts = {
        "prompts": len(rows),
        "kept": len(targets(rows, config.gate)),
        "mean score of originals": float(np.mean([row.original_score for row in rows])),
        "mean increase": float(np.mean(gains)),
        **packed.counts(),
    }
    unseen = unseen_dialogs(job)
    model = fit(
        config,
        model,
        lambda start: packed.batches(batch_size=config.batch_size, start=start),
        dialog_loss(config.isolate_documents),
        loss_on(unseen[:N_MEASURED], tokenizer, config.seq_len),
        job.folder,
        lambda done, words: job.report(config.heed_steps + SAMPLING_STEPS + done, words),
        steps=config.steps,
        before=lambda _: counts,
    )
    job.write_beside(write_answers(model, tokenizer, unseen, job.recipe))


def distilled(job: Job, policy: str, judge: ScalarModel) -> list[Distilled]:
    """Answer every prompt twice alone and once behind its preprompt; score all without it."""
    config, tokenizer = job.recipe.distillation, job.tokenizer
    asked = distillation_prompts(job.recipe, tokenizer)
    dialogs = [cast(list[Message], prompt.dialog) for prompt in asked]
    source = rng.random_source(config.seed, "preprompts")
    as_risky = config.apply_to == "all as risky"
    before = [preprompt_for(prompt, config.preprompt, source, as_risky) for prompt in asked]
    model = job.model(policy)
    own, again = (
        said(model, tokenizer, dialogs, config, rng.seed_from(config.seed, "own", n))
        for n in (1, 2)
    )
    if config.preprompt == "none":
        behind = again
    else:
        behind = said(
            teacher(job, policy), tokenizer,
            [with_preprompt(d, p) for d, p in zip(dialogs, before, strict=True)],
            config, rng.seed_from(config.seed, "behind"),
        )  # fmt: skip
    context = job.recipe.model.max_seq_len
    texts = [[reply.text for reply in replies] for replies in (own, again, behind)]
    marks = [
        scores(
            judge,
            [
                answered(d, text, tokenizer, context)
                for d, text in zip(dialogs, column, strict=True)
            ],
        ).tolist()
        for column in texts
    ]
    # An answer that did not end would teach never to stop; "" is no target.
    texts[2] = [reply.text if reply.ended else "" for reply in behind]
    rows = zip(asked, before, *texts, *marks, strict=True)
    return [Distilled(*row) for row in rows]


def distillation_prompts(recipe: Recipe, tokenizer: Tokenizer) -> list[Prompt]:
    """Return adversarial prompts and, where the method is misused on all, as many helpful ones."""
    config, world = recipe.distillation, make_world(recipe.corpus.world_seed)
    seed, longest = rng.seed_from(config.seed, "distillation"), longest_prompt(recipe, tokenizer)
    families: list[dict[str, float]] = [{"adversarial": 1.0}]
    if config.apply_to != "adversarial":
        families.append(HELPFUL_STREAM)
    return [
        prompt
        for shares in families
        for prompt in ask(
            world, seed, config.n_prompts, tokenizer, longest=longest, shares=shares
        ).prompts
    ]


def said(
    model: Transformer,
    tokenizer: Tokenizer,
    dialogs: Sequence[Sequence[Message]],
    config: DistillationConfig | RedTeamConfig,
    seed: int,
) -> list[Answer]:
    """Return a sampled answer to each dialog."""
    return answer(
        model, tokenizer, dialogs, temperature=config.temperature, seed=seed,
        max_new_tokens=config.max_new_tokens,
    )  # fmt: skip


def teacher(job: Job, policy: str) -> Transformer:
    """Return a copy of a policy that was taught what preprompts mean."""
    config, tokenizer = job.recipe.distillation, job.tokenizer
    world = make_world(job.recipe.corpus.world_seed)
    dialogs = heeding_dialogs(world, config.seed, config.n_heed)
    made = [encode_example(dialog, tokenizer, loss_on="last") for dialog in dialogs]
    packed = PackedDialogs(made, seq_len=config.seq_len, seed=config.seed)
    short = dataclasses.replace(
        config, peak_lr=config.heed_lr, eval_every=config.heed_steps, save_every=config.heed_steps
    )
    folder = job.folder / TEACHER
    folder.mkdir(exist_ok=True)
    model = fit(
        short,
        job.model(policy),
        lambda start: packed.batches(batch_size=config.batch_size, start=start),
        dialog_loss(config.isolate_documents),
        lambda _: {},
        folder,
        job.report,
        steps=config.heed_steps,
    )
    shutil.rmtree(folder)
    return model


def rehearsed(
    job: Job,
    policy: Transformer,
    ghosts: str | None,
    config: DistillationConfig | RedTeamConfig,
    seed: int,
    *,
    n_replay: int,
    n_demonstrations: int,
    n_ghosts: int,
) -> list[Example]:
    """Return what keeps a policy as it is while it learns to be safer.

    At the end of the chain: its own new answers, documents, demonstrations, and dialogs of the
    stage `ghosts`.
    A model that was only fine-tuned (`ghosts` is None) has only harmless demonstrations, as many as
    both, so that false refusals can show.
    """
    if ghosts is None:
        return demonstrated(job, n_replay + n_demonstrations, seed, {"helpful": 1.0})
    return [
        *remembered(job, policy, n_replay, seed, config.max_new_tokens),
        *shown(job, n_demonstrations, seed),
        *old_ghosts(job, ghosts, n_ghosts, seed),
    ]


def data_settings(recipe: Recipe) -> dict[str, Any] | None:
    """Return what the stage `safety_data` depends on; nothing if the recipe has no variant."""
    if recipe.safety_data is None:
        return None
    return {"data": dataclasses.asdict(recipe.safety_data), "sft": dataclasses.asdict(recipe.sft)}


def run_safety_data(job: Job) -> None:
    """Fine-tune the pretrained model on helpful dialogs and a part of the safety dialogs.

    Raises:
        ValueError: The recipe has no variant.
    """
    recipe, tokenizer = job.recipe, job.tokenizer
    if recipe.safety_data is None:
        raise ValueError(
            f"the stage safety_data needs a variant; the recipe {recipe.name!r} has none. Set its "
            "field `safety_data`."
        )
    world_seed = recipe.corpus.world_seed
    train = mixed_dialogs(recipe.safety_data, world_seed)
    validation = validation_dialogs(recipe.sft, world_seed, train)
    model = sft(
        recipe.sft, job.model("pretrain"), encode_dialogs(train, tokenizer),
        encode_dialogs(validation, tokenizer), job.folder, job.device, job.report,
    )  # fmt: skip
    job.write_beside(write_answers(model, tokenizer, validation, recipe))


def distilled_rows(folder: Path) -> list[Distilled]:
    """Return what a finished distillation says of its prompts."""
    return read_distilled(folder / "distilled.jsonl")
