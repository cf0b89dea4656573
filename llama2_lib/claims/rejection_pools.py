"""What claims 24 and 25 measure: whose answers a model is tuned on, and of which rounds."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from llama2_lib import pipeline, rng
from llama2_lib.claims.attention_runs import quality_recipes
from llama2_lib.claims.claim import Measurement
from llama2_lib.claims.finetuning_runs import fitting
from llama2_lib.claims.rejection_runs import FIRST, rooms
from llama2_lib.device import choose_device
from llama2_lib.evaluation.preference import Marks, gold_marks, marks_of
from llama2_lib.model.transformer import Transformer
from llama2_lib.pipeline.rejection import round_prompts
from llama2_lib.pipeline.rewards import answered
from llama2_lib.recipes import Recipe
from llama2_lib.stages.asked import Asked, ask
from llama2_lib.stages.rejection import (
    Entry,
    best,
    chosen,
    distinct,
    draw,
    examples,
    read_pool,
    rescored,
)
from llama2_lib.stages.reward import RewardModels
from llama2_lib.stages.sft import dialog_loss
from llama2_lib.text.dialog import Message
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.training.dialog_batches import PackedDialogs
from llama2_lib.training.loop import optimize
from llama2_lib.training.schedule import adamw, warmup_then_cosine
from llama2_lib.world import make_world
from llama2_lib.world.prompts import Prompt, adversarial_prompts, helpful_prompts
from llama2_lib.world.prompts import prompts as prompts_of
from llama2_lib.world.tasks import HELPFUL_SHARES

NEWEST = f"rejection_v{pipeline.ROUNDS}"
FORMS = ("list", "story", "how_to")
"""What must be written in a form of its own, as the rhymes that the paper's V3 had lost."""
LOST = (*FORMS, "adversarial")
"""Kinds of prompts that nobody sends in the last round of claim 24."""
STEPS, ROWS, ROW_LENGTH = 120, 3, 256
"""Of every arm of claims 24 and 25: equal steps from the pretrained model."""
N_HELD_OUT = 150
"""Prompts a seed of each family of claim 24; claim 25 has twice as many, of all kinds."""
N_ASKED, N_SAMPLES = 240, 6
"""Training prompts of claim 25 and samples of each, as many as a round of the chain draws."""
SAMPLING, ANSWERING = 0.8, 0.6
"""Temperatures of the samples that are learned from, and of the answers that are marked."""

COMPARED = (
    ("big best", "own best"),
    ("big random", "own random"),
    ("big best", "big random"),
    ("own best", "own random"),
    ("own best", "SFT"),
    ("own random", "SFT"),
)
"""Pairs of arms; the first is judged, those with `random` are the controls."""

Policy = tuple[Transformer, Tokenizer]


def tuned(base: Policy, entries: Sequence[Entry], rate: float, seed: int) -> Policy:
    """Train a pretrained model, in place, to give the answers of a pool."""
    model, tokenizer = base
    device = next(model.parameters()).device
    length = min(ROW_LENGTH, model.config.max_seq_len)
    packed = PackedDialogs(examples(entries, [], tokenizer), seq_len=length, seed=seed)
    batches = (
        type(batch)(*(part.to(device) for part in batch))
        for batch in packed.batches(batch_size=ROWS)
    )
    schedule = warmup_then_cosine(peak=rate, steps=STEPS, warmup=min(10, STEPS - 1))
    for _ in optimize(
        model, adamw(model), batches, dialog_loss(True), schedule, steps=range(STEPS)
    ):  # fmt: skip
        pass
    return model.eval(), tokenizer


def marked(policy: Policy, recipe: Recipe, prompts: Sequence[Prompt], seed: int) -> Marks:
    """Let the gold judges mark one answer to each prompt."""
    return marks_of(
        *policy, make_world(recipe.corpus.world_seed), prompts, temperature=ANSWERING, seed=seed,
        max_new_tokens=rooms(policy[0], recipe)[1],
    )  # fmt: skip


def gains(name: str, after: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Return the keys of one comparison on the same prompts, see `alignment.gain`."""
    gap = after - before
    error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    return {f"gain/{name}": float(gap.mean()), f"error/{name}": error}


def kinds_of_pool(recipe: Recipe) -> dict[str, str]:
    """Return what each prompt of the pool asks for: the rounds' prompts, drawn again."""
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", recipe, bar=False))
    found: dict[str, str] = {}
    for number in range(1, pipeline.ROUNDS + 1):
        asked = round_prompts(number, recipe, tokenizer)
        for dialog, prompt in zip(asked.dialogs, asked.prompts, strict=True):
            found[entry_of(dialog).key] = prompt.kind
    return found


def pools(recipe: Recipe) -> dict[str, list[Entry]]:
    """Return what the four arms of claim 24 learn from.

    `last` has the chosen answers of the last round, `all` the best ones of all rounds; in `...,
    kinds missing` the last round has no prompt of those kinds, as if nobody had sent any.
    """
    entries = read_pool(pipeline.artifact(NEWEST, recipe) / "pool.jsonl")
    kinds, last = kinds_of_pool(recipe), max(entry.round for entry in entries)
    without = [e for e in entries if e.round < last or kinds[e.key] not in LOST]
    arms = {"all": entries, "all, kinds missing": without}
    for name in list(arms):
        arms[name.replace("all", "last")] = [e for e in arms[name] if e.round == last]
    return {name: best(arm) for name, arm in arms.items()}


def pool_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the last round, whose pool holds all of them."""
    return [(NEWEST, recipe)]


def measure_pools(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 24; the keys are those of its judge, and some that are shown only.

    The pretrained model of the recipe is tuned on each pool, without demonstrations. The pools
    are the chain's for every seed, which draws the order of training, the held-out prompts and
    the answers. Shown: `quality/<arm>/<family>`, mean gold marks on `form` and `harm`, the missing
    kinds, and `other`; `answers/<arm>`; `gain/natural`, all rounds less the last round with
    nothing missing, on all prompts.
    """
    values: dict[str, float] = {}
    quality: dict[str, dict[str, np.ndarray]] = {}
    for name, entries in pools(recipe).items():
        policy = tuned(pipeline.load("pretrain", recipe), entries, recipe.sft.peak_lr, seed)
        quality[name] = {
            family: marked(policy, recipe, prompts, seed).quality
            for family, prompts in families(recipe, seed, policy).items()
        }
        values[f"answers/{name}"] = float(len(entries))
        values |= {f"quality/{name}/{key}": float(v.mean()) for key, v in quality[name].items()}
    rich, poor = (quality[f"{name}, kinds missing"] for name in ("all", "last"))
    for family in rich:
        values |= gains(f"{family}/pool over last", rich[family], poor[family])
        values |= gains(f"{family}/missing", poor[family], quality["last"][family])
        values |= gains(f"{family}/missing in the pool", rich[family], quality["all"][family])
    every = {name: np.concatenate(list(parts.values())) for name, parts in quality.items()}
    values |= gains("natural", every["all"], every["last"])
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def families(recipe: Recipe, seed: int, policy: Policy) -> dict[str, list[Prompt]]:
    """Return held-out prompts: two families of missing kinds, and all others."""
    world, split = make_world(recipe.corpus.world_seed), "held out"
    forms = {kind: HELPFUL_SHARES[kind] for kind in FORMS}
    others = {kind: share for kind, share in HELPFUL_SHARES.items() if kind not in FORMS}
    streams = {
        "form": helpful_prompts(world, seed, split=split, shares=forms),
        "harm": adversarial_prompts(world, seed, split=split),
        "other": helpful_prompts(world, seed, split=split, shares=others),
    }
    return {name: fitting(policy, stream, N_HELD_OUT) for name, stream in streams.items()}


def pupil(recipe: Recipe, seed: int) -> Recipe:
    """Return the small model of claim 25: a grid's point with the recipe's world and writers."""
    small = quality_recipes(recipe, seed)["gqa"]
    return replace(small, sft=replace(small.sft, grade=recipe.sft.grade, seed=seed))


def distillation_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the big model's round 1 and the small fine-tuned models of claim 25."""
    return [(FIRST, recipe), *(("sft", pupil(recipe, seed)) for seed in seeds)]


def measure_distillation(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 25; the keys are those of its judge, and some that are shown only.

    Two fine-tuned models, the recipe's and a small one, answer the same prompts; round 1's reward
    models choose one answer of each to every prompt, and chance another, the control. Four copies
    of the small pretrained model learn from what was chosen. The seed draws prompts, samples,
    the small model and the order of training. Shown: `quality/<arm>`, `help/<arm>` and
    `safety/<arm>`, mean gold marks, of the small fine-tuned model too; `pool/<arm>`, the mean
    gold mark of what was learned from; `answers`, the number of prompts.
    """
    small = pupil(recipe, seed)
    judge = pipeline.load_rewards(pipeline.artifact(FIRST, recipe), choose_device())
    policies = {"big": pipeline.load("sft", recipe), "own": pipeline.load("sft", small)}
    room = min(rooms(model, recipe)[0] for model, _ in policies.values())
    world = make_world(recipe.corpus.world_seed)
    asked = ask(world, rng.seed_from(seed, "distil"), N_ASKED, policies["own"][1], longest=room)
    found = {
        who: answers_to(asked, policy, judge, recipe, seed) for who, policy in policies.items()
    }
    both = set.intersection(*({entry.key for entry in entries} for entries in found.values()))
    values = {"answers": float(len(both))}
    marks = {"SFT": marked(policies["own"], small, _held_out(recipe, seed, policies["own"]), seed)}
    prompts = {entry_of(d).key: p for d, p in zip(asked.dialogs, asked.prompts, strict=True)}
    for who, entries in found.items():
        usable = [entry for entry in entries if entry.key in both]
        for select in ("best", "random"):
            targets, name = chosen(usable, select, seed), f"{who} {select}"
            gold = gold_marks(
                world, [prompts[e.key] for e in targets], [e.answer for e in targets]
            )  # fmt: skip
            values[f"pool/{name}"] = float(gold.quality.mean())
            policy = tuned(pipeline.load("pretrain", small), targets, small.sft.peak_lr, seed)
            marks[name] = marked(policy, small, _held_out(recipe, seed, policy), seed)
    for name, found_marks in marks.items():
        harmful = found_marks.adversarial
        values[f"quality/{name}"] = float(found_marks.quality.mean())
        values[f"help/{name}"] = float(found_marks.helpfulness[~harmful].mean())
        values[f"safety/{name}"] = float(found_marks.safety[harmful].mean())
    for after, before in COMPARED:
        gap = gains(f"{after} over {before}", marks[after].quality, marks[before].quality)
        values |= gap
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def _held_out(recipe: Recipe, seed: int, policy: Policy) -> list[Prompt]:
    world = make_world(recipe.corpus.world_seed)
    return fitting(policy, prompts_of(world, seed, split="held out"), 2 * N_HELD_OUT)


def entry_of(dialog: list[Message], is_safety: bool = False, answer: str = "") -> Entry:
    """Return an entry of a first round that nobody has scored."""
    return Entry(dialog, is_safety, answer, 1, 0.0)


def answers_to(
    asked: Asked, policy: Policy, judge: RewardModels, recipe: Recipe, seed: int
) -> list[Entry]:
    """Draw answers to each prompt; return those that ended, each once, with their rewards."""
    model, tokenizer = policy
    drawn = draw(
        model, tokenizer, asked.dialogs, N_SAMPLES, SAMPLING, seed=seed,
        max_new_tokens=rooms(model, recipe)[1],
    )  # fmt: skip
    fresh = [
        entry_of(dialog, tag, said.text)
        for dialog, tag, replies in zip(asked.dialogs, asked.tags, drawn, strict=True)
        for said in distinct(replies)
    ]
    longest = judge.helpfulness.config.max_seq_len

    def score(entries: Sequence[Entry]) -> Float[np.ndarray, " answers"]:
        rows = [answered(entry.dialog, entry.answer, tokenizer, longest) for entry in entries]
        return judge(rows, [entry.is_safety for entry in entries]).combined

    return rescored(fresh, score)
