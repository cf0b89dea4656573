"""Safety context distillation, and fine-tuning on parts of the safety data (paper section 4.2).

1. Behind a preprompt such as "You are a safe and responsible assistant." answers are safer. A copy
   of the model is taught what preprompts ask for, and answers prompts behind one.
2. The safety reward model reads both answers WITHOUT the preprompt. The new one is kept only if it
   scores higher than what the model says by itself: the gate (4.2.4).
3. The model is fine-tuned on the prompt WITHOUT the preprompt and the kept answer, so that it
   answers as if the preprompt were there. Beside them it rehearses what it knows.

No code of the paper's method is public.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from llama2_lib import rng, storage
from llama2_lib.config import DistillationConfig, Recipe, RedTeamConfig, SafetyData
from llama2_lib.model.chat import Reply, reply, room, scores
from llama2_lib.model.transformer import ScalarModel, Transformer
from llama2_lib.stages.fit import fit_dialogs
from llama2_lib.stages.ghost_attention import old_ghosts
from llama2_lib.stages.job import Job, variant_of
from llama2_lib.stages.prompts import answered, sample_prompts
from llama2_lib.stages.rehearsal import demonstrated, remembered, shown
from llama2_lib.stages.reward import load_rewards, text_rows
from llama2_lib.stages.sft import examples, fine_tune, sft_on
from llama2_lib.text.dialog import Encoder, encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.batches import Example, PackedDialogs
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.pairs import HELPFUL_STREAM
from llama2_lib.world.prompts import Prompt, prompts
from llama2_lib.world.source import WorldSource
from llama2_lib.world.tasks import CATEGORIES, answer_writer

ADJECTIVES = ("safe", "responsible", "respectful", "wise", "careful", "kind")
GENERIC = (
    "You are a {first} and {second} assistant.",
    "You are a {first} assistant and never hurt anyone.",
    "Answer as a {first} and {second} helper would.",
)
"""Templates of generic preprompts, filled with two adjectives, as the paper made its own."""
DECLINE = "Say that you cannot help."
EXPLAIN = {
    "illicit": "Say that it is dangerous.",
    "hateful": "Say that it would be unkind.",
    "advice": "Say that it could make you ill.",
}
OFFER = {
    "illicit": "Tell something else instead.",
    "hateful": "Tell a story instead.",
    "advice": "Name a doctor instead.",
}
MOST_PARTS = 3
"""Parts of a full answer template: decline, explain, offer (paper section 4.2.1)."""
HEED_SHARES = {"adversarial": 0.7, "helpful": 0.3}
"""Prompts in the dialogs that teach what preprompts mean: help stays help behind one."""
TEMPLATE_SHARE = 0.5
"""Share of them that have an answer template; the others have a generic preprompt."""
FRACTIONS = (0.0, 0.01, 0.10, 0.25, 0.50, 1.0)
"""Shares of the safety data in the paper's six variants (figure 15)."""
_PROBE: list[Message] = [{"role": "user", "content": "Hello"}]


class Distilled(NamedTuple):
    """Answers to one prompt, scored by the safety reward model WITHOUT the preprompt."""

    prompt: Prompt
    preprompt: str
    original: str
    """What the model says to the prompt alone."""
    again: str
    """What the model says to the prompt alone when asked once more: what luck alone changes."""
    answer: str
    """What is said behind the preprompt."""
    original_score: float
    again_score: float
    answer_score: float

    @property
    def increase(self) -> float:
        """Score of the distilled answer less that of the original (figure 16b)."""
        return self.answer_score - self.original_score


def run(job: Job, policy: str, rewards: str, ghosts: str | None) -> None:
    """Distil the answers that the stage `policy` gives behind preprompts into itself.

    The gate asks the safety model of the stage `rewards`. Leaves the model and, for every prompt,
    its answers and their scores, kept or not, as `distilled.jsonl.gz`. A policy at the end of the
    chain (see `rehearsed`) is safe already: where the gate drops an answer it rehearses its own.
    """
    config = job.recipe.distillation
    path = job.folder / "distilled.jsonl.gz"
    if not path.exists():  # a killed job got this far
        judge = load_rewards(job.inputs[rewards], job.device).safety
        storage.write_rows(path, distilled(job, policy, judge))
    rows = storage.read_rows(path, Distilled)
    dialogs = targets(rows, config.gate, anchored=ghosts is not None)
    model = job.model(policy)
    train = examples(dialogs, job.tokenizer, loss_on="last")
    train += rehearsed(
        job, model, ghosts, config, config.seed, n_replay=config.n_replay,
        n_demonstrations=config.n_demonstrations, n_ghosts=config.n_ghosts,
    )  # fmt: skip
    counts = {
        "prompts": len(rows),
        "kept": len(targets(rows, config.gate)),
        "mean score of originals": float(np.mean([row.original_score for row in rows])),
        "mean increase": float(np.mean([row.increase for row in rows])),
    }
    fine_tune(job, config, model, train, counts, steps=config.steps, begin=0.6)


# --- step 1: answers behind a preprompt


def distilled(job: Job, policy: str, judge: ScalarModel) -> list[Distilled]:
    """Answer every prompt twice alone and once behind its preprompt; score all without it."""
    config, tokenizer, model = job.recipe.distillation, job.tokenizer, job.model(policy)
    prompt_list = distillation_prompts(job.recipe, tokenizer)
    dialogs = [prompt.dialog for prompt in prompt_list]
    source = rng.random_source(config.seed, "preprompts")
    as_risky = config.apply_to == "all as risky"
    preprompts = [preprompt_for(p, config.preprompt, source, as_risky) for p in prompt_list]

    def answers(model: Transformer, dialogs: list[list[Message]], *names: str | int) -> list[Reply]:
        return reply(
            model, tokenizer, dialogs, temperature=config.temperature,
            seed=rng.seed_from(config.seed, *names), max_new_tokens=config.max_new_tokens,
        )  # fmt: skip

    own, again = (answers(model, dialogs, "own", number) for number in (1, 2))
    behind = again
    if config.preprompt != "none":
        prompted = [with_preprompt(d, p) for d, p in zip(dialogs, preprompts, strict=True)]
        behind = answers(teacher(job, policy), prompted, "behind")
    texts = [[answer.text for answer in replies] for replies in (own, again, behind)]
    columns = [
        scores(judge, text_rows(dialogs, column, tokenizer, room(model, 0))).tolist()
        for column in texts
    ]
    # An answer that did not end would teach never to stop; "" is no target.
    texts[2] = [answer.text if answer.ended else "" for answer in behind]
    table = zip(prompt_list, preprompts, *texts, *columns, strict=True)
    return [Distilled(*row) for row in table]


def distillation_prompts(recipe: Recipe, tokenizer: Tokenizer) -> list[Prompt]:
    """Return adversarial prompts and, where the method is misused on all, as many helpful ones."""
    config, source = recipe.distillation, WorldSource(make_world(recipe.corpus.world_seed))
    seed, longest = rng.seed_from(config.seed, "distillation"), longest_prompt(recipe, tokenizer)
    families: list[dict[str, float]] = [{"adversarial": 1.0}]
    if config.apply_to != "adversarial":
        families.append(HELPFUL_STREAM)
    draw = partial(sample_prompts, source, seed, config.n_prompts, tokenizer, longest=longest)
    return [prompt for shares in families for prompt in draw(shares=shares).prompts]


def longest_prompt(recipe: Recipe, tok: Encoder) -> int:
    """Return how long a prompt may be, so that a preprompt and an answer fit beside it."""
    bare = len(encode_prompt(_PROBE, tok))
    grown = max(len(encode_prompt(with_preprompt(_PROBE, p), tok)) for p in every_preprompt())
    return room(recipe.model, recipe.distillation.max_new_tokens) - (grown - bare)


def every_preprompt() -> list[str]:
    """Return all preprompts there are."""
    pairs = permutations(ADJECTIVES, 2)
    generic = [text.format(first=a, second=b) for a, b in pairs for text in GENERIC]
    return [*dict.fromkeys(generic), *map(answer_template, CATEGORIES)]


def preprompt_for(prompt: Prompt, kind: str, source: Random, as_risky: bool = False) -> str:
    """Return the preprompt of one prompt; "" for none.

    Prompts without a risk category get a generic one where templates are asked for: only a
    risk-labelled prompt has a template (section 4.2.4). `as_risky` gives them one by mistake.
    """
    assert kind in ("none", "generic", "template"), kind
    if kind == "none":
        return ""
    if kind == "template" and prompt.category:
        return answer_template(prompt.category)
    if kind == "template" and as_risky:
        return answer_template(source.choice(CATEGORIES))
    return generic_preprompt(source)


def generic_preprompt(source: Random) -> str:
    """Return a generic preprompt: a template with two different adjectives (section 4.2.4)."""
    first, second = source.sample(ADJECTIVES, 2)
    return GENERIC[source.randrange(len(GENERIC))].format(first=first, second=second)


def answer_template(category: str, parts: int = MOST_PARTS) -> str:
    """Return the answer template of a risk category: decline, explain, offer, in this order."""
    assert 1 <= parts <= MOST_PARTS, parts
    return " ".join((DECLINE, EXPLAIN[category], OFFER[category])[:parts])


def with_preprompt(dialog: Sequence[Message], preprompt: str) -> list[Message]:
    """Return the dialog behind a preprompt, which goes into the system message.

    It stands before what an earlier system message says. "" changes nothing.
    """
    if not preprompt:
        return list(dialog)
    if dialog and dialog[0]["role"] == "system":
        text, rest = f"{preprompt} {dialog[0]['content']}", dialog[1:]
    else:
        text, rest = preprompt, dialog
    return [{"role": "system", "content": text}, *rest]


def teacher(job: Job, policy: str) -> Transformer:
    """Return a copy of a policy that was taught what preprompts mean."""
    config = job.recipe.distillation
    steps = config.heed_steps
    dialogs = heeding_dialogs(job.world, config.seed, config.n_heed)
    train = examples(dialogs, job.tokenizer, loss_on="last")
    folder = job.folder / "teacher"
    folder.mkdir(exist_ok=True)
    model = fit_dialogs(
        dataclasses.replace(
            config, peak_lr=config.heed_lr, steps=steps, eval_every=steps, save_every=steps
        ),
        job.model(policy), PackedDialogs(train, seq_len=config.seq_len, seed=config.seed),
        lambda _: {}, folder, job.part(0.0, 0.3), steps=steps,
    )  # fmt: skip
    shutil.rmtree(folder)
    return model


def heeding_dialogs(world: World, seed: int, n: int) -> list[list[Message]]:
    """Return dialogs in which answers heed the preprompt.

    Behind an answer template stand exactly the parts that it asks for. A generic preprompt does
    not say how an answer is to look, so behind it stand as many parts as a writer fancies. What
    is harmless is answered as always.
    """
    source = rng.random_source(seed, "heeding", world.seed)
    writer = answer_writer(world)
    dialogs: list[list[Message]] = []
    for prompt in prompts(world, source.getrandbits(60), n, shares=HEED_SHARES):
        if not prompt.category:
            preprompt = generic_preprompt(source)
            text = writer.demonstration(source, prompt.task)
        else:
            parts = 1 + source.randrange(MOST_PARTS)
            if source.random() < TEMPLATE_SHARE:
                preprompt = answer_template(prompt.category, parts)
            else:
                preprompt = generic_preprompt(source)
            text = writer.safe(source, prompt.category, parts)
        dialogs.append(answered(with_preprompt(prompt.dialog, preprompt), text))
    return dialogs


# --- steps 2 and 3: the gate, and what is trained on


def gate(
    original: Float[np.ndarray, " answers"], distilled: Float[np.ndarray, " answers"]
) -> Bool[np.ndarray, " answers"]:
    """Return which distilled answers are kept: those that score strictly higher (section 4.2.4).

    Both are scores of the safety model, which reads the answers without a preprompt.
    """
    assert len(original) == len(distilled), f"{len(original)} and {len(distilled)} scores"
    if not (np.isfinite(original).all() and np.isfinite(distilled).all()):
        raise ValueError("scores must be finite; got one that is not. Did the model diverge?")
    return distilled > original


def targets(rows: Sequence[Distilled], gated: bool, anchored: bool = False) -> list[list[Message]]:
    """Return the dialogs to train on: the prompt WITHOUT its preprompt, and the distilled answer.

    Where the original answer was as good, a prompt is left out if `gated`, or rather keeps that
    answer if `anchored`, so that a model that is safe already stays as it is. Empty answers are
    never targets.
    """
    original, answer = (
        np.array([getattr(row, name) for row in rows], dtype=float)
        for name in ("original_score", "answer_score")
    )
    passes = gate(original, answer) if gated else np.ones(len(rows), dtype=bool)
    dialogs = []
    for row, passed in zip(rows, passes, strict=True):
        text = row.answer if passed else row.original
        if text and (passed or anchored):
            dialogs.append(answered(row.prompt.dialog, text))
    return dialogs


def rehearsed(
    job: Job, policy: Transformer, ghosts: str | None, config: DistillationConfig | RedTeamConfig,
    seed: int, *, n_replay: int, n_demonstrations: int, n_ghosts: int,
) -> list[Example]:  # fmt: skip
    """Return what keeps a policy as it is while it learns to be safer.

    At the end of the chain: its own new answers, documents, demonstrations, and dialogs of the
    stage `ghosts`. A model that was only fine-tuned (`ghosts` is None) has only harmless
    demonstrations, as many as both, so that false refusals can show.
    """
    if ghosts is None:
        return demonstrated(job, n_replay + n_demonstrations, seed, {"helpful": 1.0})
    return [
        *remembered(job, policy, n_replay, seed, config.max_new_tokens),
        *shown(job, n_demonstrations, seed),
        *old_ghosts(job, ghosts, n_ghosts, seed),
    ]


# --- the stage `safety_data`: how much safety data (section 4.2.3)


def run_safety_data(job: Job) -> None:
    """Fine-tune the pretrained model on helpful dialogs and a part of the safety dialogs."""
    variant: SafetyData = variant_of(job.recipe, "safety_data")
    sft_on(job, mixed_dialogs(variant, job.recipe.corpus.world_seed))


def safety_dialogs(config: SafetyData, world_seed: int) -> list[list[Message]]:
    """Return this variant's part of the safety dialogs: those of less are a beginning of more.

    Adversarial prompts with clean demonstrations, which decline, explain and offer.
    """
    source = WorldSource(make_world(world_seed))
    return list(source.dialogs(config.seed, config.n_kept, "clean", {"adversarial": 1.0}))


def mixed_dialogs(config: SafetyData, world_seed: int) -> list[list[Message]]:
    """Return all training dialogs of a variant: the helpful ones first, then its safety ones."""
    source = WorldSource(make_world(world_seed))
    helpful = source.dialogs(config.seed, config.n_helpful, config.helpful_grade, {"helpful": 1.0})
    return [*helpful, *safety_dialogs(config, world_seed)]


def distilled_rows(folder: Path) -> list[Distilled]:
    """Return what a finished distillation says of its prompts."""
    return storage.read_rows(folder / "distilled.jsonl.gz", Distilled)
