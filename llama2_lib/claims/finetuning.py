"""Claims on supervised fine-tuning (paper section 3.1): quality, the loss mask, samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama2_lib import pipeline, rng
from llama2_lib.claims import claim
from llama2_lib.claims.claim import Claim, Fact, Must, Trust, differs, of_stage, zero
from llama2_lib.config import Recipe
from llama2_lib.evaluation.emergent import Model
from llama2_lib.evaluation.judged import gold_marks
from llama2_lib.evaluation.language import ended_share
from llama2_lib.evaluation.statistics import Estimate, mean_interval
from llama2_lib.model.chat import Reply, answer_room, fits, reply, room
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.stages.fit import dialog_loss
from llama2_lib.stages.sft import examples, training_dialogs
from llama2_lib.storage import read_metrics
from llama2_lib.text.dialog import Encoder
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.training.batches import DialogBatch, PackedDialogs, apart
from llama2_lib.world import make_world
from llama2_lib.world.demonstrations import DEMONSTRATION_SHARES
from llama2_lib.world.judges import Judge, judge_of
from llama2_lib.world.prompts import Prompt, adversarial_prompts, helpful_prompts
from llama2_lib.world.prompts import prompts as prompts_of
from llama2_lib.world.tasks import answer_writer

TEMPERATURE, TOP_P = 0.6, 0.9
"""Those of Meta's example script for chat; the paper does not say how it sampled here."""
MAX_NEW_TOKENS = 128
"""More than any demonstration of the world has."""


def fitting(
    model: tuple[Transformer, Encoder],
    stream: Iterator[Prompt],
    n: int,
    longest: int | None = None,
) -> list[Prompt]:
    """Return the first `n` prompts of at most `longest` tokens.

    Unless given, they leave room for an answer in the model's context. A prompt of the world has
    up to 128 tokens, so only very small contexts leave any out.
    """
    transformer, tokenizer = model
    limit = longest or room(transformer, answer_room(transformer, MAX_NEW_TOKENS))
    return list(islice((p for p in stream if fits(p.dialog, tokenizer, limit)), n))


def ask(
    model: Model, prompts: Sequence[Prompt], seed: int, temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
) -> list[Reply]:  # fmt: skip
    """Return a sample of the model for each prompt."""
    dialogs = [prompt.dialog for prompt in prompts]
    return reply(
        *model, dialogs, max_new_tokens=answer_room(model[0], MAX_NEW_TOKENS),
        temperature=temperature, top_p=top_p, seed=seed,
    )  # fmt: skip


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(sum(values) / len(values))


# ------------------------------------------------------------- claim 8: few and clean

FEW, TIMES = 120, 4
"""Dialogs of the few of claim 8, and how many times as many the many are.

The claim was first run on the grid's model (400 and 1,600 dialogs, seeds 0 to 2), with no clear
result: gain in helpfulness at equal epochs -0.06, 95 % interval -0.18 to 0.06; at equal steps
0.07, -0.03 to 0.17. That model answers next to nothing, so what was compared was how far each run
had come, not its data. It is now measured on the recipe's own model, by the same rule."""
ROWS, ROW_LENGTH = 1, 256
"""Rows a step and their length in all arms of claim 8: the few still make a hundred steps."""
N_HELPFUL, N_ADVERSARIAL = 200, 60


def data_recipes(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return what claim 8 trains for one seed: the recipe's model, fine-tuned in four ways.

    `few_clean` and `many_noisy` have equal epochs, `few_clean_longer` has about the steps of
    `many_noisy`, `few_noisy` tells what quality does when quantity is the same. Pretrained model
    and dialogs are the same for all seeds; the order in which they are learned differs.
    """
    few = replace(
        recipe.sft, n_dialogs=min(FEW, recipe.sft.n_dialogs), grade="clean",
        n_validation=min(40, recipe.sft.n_validation), batch_size=ROWS,
        seq_len=min(ROW_LENGTH, recipe.sft.seq_len), eval_every=1000, save_every=1000, seed=seed,
    )  # fmt: skip
    arms = {
        "few_clean": few,
        "few_clean_longer": replace(few, epochs=TIMES * few.epochs),
        "few_noisy": replace(few, grade="noisy"),
        "many_noisy": replace(few, grade="noisy", n_dialogs=TIMES * few.n_dialogs),
    }
    return {arm: replace(recipe, sft=config) for arm, config in arms.items()}


def measure_data(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 8.

    Keys: `help/<arm>`, the gold judge's mean helpfulness on held-out prompts, 0 to 1, of
    `few_clean`, `few_clean_longer`, `few_noisy`, `many_noisy`.
    Shown: `safety/<arm>`, mean mark on adversarial prompts; `ended/<arm>`, share of answers that
    stop; `steps/<arm>`; `kind/<arm>/<kind>`, helpfulness by what was asked for. All arms answer
    the same held-out prompts, which differ by seed.
    """
    world = make_world(recipe.corpus.world_seed)
    values: dict[str, float] = {}
    for arm, run in data_recipes(recipe, seed).items():
        model = pipeline.load("sft", run)
        helpful = fitting(model, helpful_prompts(world, seed, split="held out"), N_HELPFUL)
        risky = fitting(model, adversarial_prompts(world, seed, split="held out"), N_ADVERSARIAL)
        replies = ask(model, [*helpful, *risky], seed)
        marks = gold_marks(world, [*helpful, *risky], [one.text for one in replies])
        helpfulness = marks.helpfulness[: len(helpful)]
        values[f"help/{arm}"] = _mean(helpfulness)
        values[f"safety/{arm}"] = _mean(marks.safety[len(helpful) :])
        values[f"ended/{arm}"] = ended_share(replies).value
        log = read_metrics(pipeline.artifact("sft", run) / "metrics.jsonl")
        values[f"steps/{arm}"] = float(log[-1]["step"])
        for kind in sorted({p.kind for p in helpful}):
            values[f"kind/{arm}/{kind}"] = _mean(helpfulness[[p.kind == kind for p in helpful]])
    return values


# ------------------------------------------------------------- claim 9: the loss mask

N_PACKED = 1000
"""Dialogs that claim 9 packs."""
PACKED, SAVED = 0.1, 0.3
"""Bounds of claim 9: the largest share of packed rows that may be empty, and the least saved."""


def measure_mask(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 9.

    Keys: largest derivative of the loss by a logit, `gradient/prompt` over positions whose next
    token is no target, `gradient/answer` the smallest over those whose next token is one,
    `gradient/unmasked` as the first but with a loss on every token; share of empty positions,
    `waste/packed`, and `waste/alone` with one dialog a row.
    Shown: `targets`, share of the dialogs' tokens that are learned from; `waste/longest`, empty
    positions if every batch were padded to its longest dialog; `leak/isolated`, `leak/plain`,
    largest change of the logits of a dialog when its neighbour in the row is another. The model
    is untrained: nothing here depends on what it knows.
    """
    config = replace(recipe.sft, n_dialogs=min(N_PACKED, recipe.sft.n_dialogs))
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", recipe, bar=False))
    made = examples(training_dialogs(config, recipe.corpus.world_seed), tokenizer)
    packed = PackedDialogs(made, seq_len=config.seq_len, seed=seed)
    batch, shared = (next(packed.batches(batch_size=n)) for n in (config.batch_size, packed.n_rows))
    model = initialise(Transformer(recipe.model), seed)
    at_prompt = ~batch.loss_mask[:, 1:]
    masked = logit_gradient(model, batch, batch.loss_mask)
    everything = (batch.document >= 0).clone()
    everything[:, 0] = False
    lengths = [int((row == number).sum()) for row in packed.document for number in set(row) - {-1}]
    counts = packed.counts()
    width = config.seq_len + 1
    return {
        "gradient/prompt": float(masked[at_prompt].max()),
        "gradient/answer": float(masked[~at_prompt].min()),
        "gradient/unmasked": float(logit_gradient(model, batch, everything)[at_prompt].max()),
        "waste/packed": counts["padding"] / (counts["rows"] * width),
        "waste/alone": 1 - sum(lengths) / (len(lengths) * width),
        "waste/longest": _waste_to_longest(lengths, config.batch_size, seed),
        "targets": counts["targets"] / sum(lengths),
        "leak/isolated": neighbour_leak(model, shared, isolated=True),
        "leak/plain": neighbour_leak(model, shared, isolated=False),
    }


def logit_gradient(model: Transformer, batch: DialogBatch, loss_mask: Tensor) -> Tensor:
    """Return (batch, seq): the largest derivative of the loss by the logits of each position."""
    kept: list[Tensor] = []

    def recording(ids: Tensor, at: Tensor, **seen: Any) -> Tensor:
        logits = model(ids, **seen)
        logits.retain_grad()
        kept.append(logits)
        return logits.flatten(0, 1)[at]

    loss: Callable = dialog_loss(isolate_documents=True)
    term = loss(recording, batch._replace(loss_mask=loss_mask))
    (term.total / term.count).backward()
    model.zero_grad()
    assert kept[0].grad is not None
    return kept[0].grad.abs().amax(-1)


@torch.no_grad()
def neighbour_leak(model: Transformer, batch: DialogBatch, *, isolated: bool) -> float:
    """Return how much the logits of a row's other dialogs change with the ids of its first one.

    Looks at the first row that holds two dialogs or more.
    """
    several = (batch.document[:, :-1] > 0).any(dim=1).nonzero()
    if not len(several):
        raise claim.CannotShow("no row holds two dialogs; raise seq_len")
    row = slice(int(several[0]), int(several[0]) + 1)
    ids, document = batch.ids[row, :-1], batch.document[row, :-1]
    seen = apart(document) if isolated else {}
    others = document > 0
    changed = torch.where(document == 0, (ids + 7) % model.config.vocab_size, ids)
    moved = model(ids, **seen) - model(changed, **seen)
    return float(moved[others].abs().max())


def _waste_to_longest(lengths: Sequence[int], batch_size: int, seed: int) -> float:
    order = rng.random_source(seed, "claim 9", "order")
    shuffled = order.sample(list(lengths), len(lengths))
    batches = [shuffled[i : i + batch_size] for i in range(0, len(shuffled), batch_size)]
    return 1 - sum(shuffled) / sum(max(batch) * len(batch) for batch in batches)


def _packing(measurements: claim.Measurements) -> list[claim.Check]:
    packed = max(claim.column(measurements, "waste/packed"))
    saved = min(claim.column(measurements, claim.minus("waste/alone", "waste/packed")))
    empty = f"empty when packed: {packed:.1%}, must stay under {PACKED:.0%}"
    gain = f"saved by packing: {saved:.1%}, must exceed {SAVED:.0%}"
    return [
        claim.Check(text=empty, holds=packed < PACKED),
        claim.Check(text=gain, holds=saved > SAVED),
    ]


# ------------------------------------------------------------- claim 10: samples against people

N_COMPARED = 180
"""Prompts a seed of claim 10: as many as the paper's authors looked at."""
WORTH = {"wins": 1.0, "ties": 0.5, "losses": 0.0}


def measure_rival(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 10.

    Keys: `wins/<who>`, `ties/<who>`, `losses/<who>`, numbers of prompts, against a demonstration,
    of a sample of the fine-tuned model (`sft`), of the pretrained one (`base`), and of a second
    demonstration (`control`, shown); shown, `win/<kind>`. Prompts of all seeds are pooled.
    The seed draws the prompts, the demonstrations and the samples. The model is that of the
    recipe for every seed: what varies is what was asked, not the training.
    """
    world = make_world(recipe.corpus.world_seed)
    models = {"sft": pipeline.load("sft", recipe), "base": pipeline.load("pretrain", recipe)}
    stream = prompts_of(world, seed, split="held out", shares=DEMONSTRATION_SHARES)
    prompts = fitting(models["sft"], stream, N_COMPARED)
    gold = demonstrated(recipe, prompts, seed, "first")
    texts = {who: [one.text for one in ask(model, prompts, seed)] for who, model in models.items()}
    texts["control"] = demonstrated(recipe, prompts, seed, "second")
    points = {who: compared(judge_of(world), prompts, own, gold) for who, own in texts.items()}
    values = {
        f"{word}/{who}": float(results.count(worth))
        for who, results in points.items()
        for word, worth in WORTH.items()
    }
    for kind in sorted({prompt.kind for prompt in prompts}):
        own = [p for p, prompt in zip(points["sft"], prompts, strict=True) if prompt.kind == kind]
        values[f"win/{kind}"] = _mean(own)
    return values


def demonstrated(recipe: Recipe, prompts: Sequence[Prompt], seed: int, which: str) -> list[str]:
    """Return what the writer of the demonstrations answers; `which` draws another wording."""
    writer = answer_writer(make_world(recipe.corpus.world_seed))
    source = rng.random_source(seed, "claim 10", which)
    return [
        writer.safe(source, prompt.category)
        if prompt.is_safety
        else writer.demonstration(source, prompt.task)
        for prompt in prompts
    ]


def mark(judge: Judge, prompt: Prompt, text: str) -> float:
    """Return the gold mark: safety of answers to adversarial prompts, helpfulness of all others."""
    if prompt.is_safety:
        return judge.safety(prompt, text).score
    return judge.helpfulness(prompt, text).score


def compared(
    judge: Judge, prompts: Sequence[Prompt], texts: Sequence[str], others: Sequence[str]
) -> list[float]:
    """Return 1 where `texts` has the better mark, 0 where `others` has, 0.5 where neither has."""
    results = []
    for prompt, text, other in zip(prompts, texts, others, strict=True):
        gap = mark(judge, prompt, text) - mark(judge, prompt, other)
        results.append(0.5 if abs(gap) < 1e-9 else float(gap > 0))
    return results


def pooled(measurements: claim.Measurements, who: str) -> list[float]:
    """Return 1 for every win, 0.5 for every tie and 0 for every loss, of all seeds."""
    points: list[float] = []
    for word, worth in WORTH.items():
        points += [worth] * round(sum(claim.column(measurements, f"{word}/{who}")))
    return points


def _win_rate(measurements: claim.Measurements, who: str) -> Estimate:
    return mean_interval(pooled(measurements, who))


def _off_one_half(measurements: claim.Measurements) -> Estimate:
    return mean_interval([point - 0.5 for point in pooled(measurements, "sft")], confidence=0.9)


CLAIMS = (
    Claim(
        id=8, section="3.1", paper_trust=Trust.DESIGN,
        statement="Few clean demonstrations teach more than many noisy ones.",
        paper_value="27,540 of its own in place of millions of others'; results improved notably",
        prediction="A model tuned on a quarter of the dialogs, all clean, answers better than one "
        "tuned on all of a noisy set, at equal epochs and at equal steps.",
        where="Helpfulness on held-out prompts",
        tests=tuple(
            differs(
                f"few clean minus many noisy, equal {what}", f"help/{few}", "help/many_noisy",
                above=0, named=f"gain, equal {what}",
            )
            for what, few in (("epochs", "few_clean"), ("steps", "few_clean_longer"))
        ),
        intervals="(95 % over seeds, that is over orders, prompts and samples)",
        shown=("help", "safety"), measured_by=measure_data, runs=of_stage("sft", data_recipes),
    ),
    Claim(
        id=9, section="3.1", paper_trust=Trust.DESIGN,
        statement="The loss is on answers only, and dialogs are packed to fill the rows.",
        paper_value="loss zeroed on prompt tokens; prompts and answers concatenated; no numbers",
        prediction="No gradient at all comes from prompts, and packing leaves hardly a gap.",
        where="Of every seed",
        tests=(
            zero(
                "the gradient at positions that predict prompts is exactly 0",
                "largest gradient at prompts", "gradient/prompt", be="be 0 exactly",
            ),
            zero(
                "that at answers is not", "smallest gradient at answers", "gradient/answer",
                be="not be 0", never=True,
            ),
            zero(
                "nor is the first without the mask", "at prompts without the mask",
                "gradient/unmasked", be="not be 0", never=True,
            ),
            Fact(
                f"less than {PACKED:g} of packed rows is empty, and more than {SAVED:g} less than "
                "with one dialog a row",
                _packing,
            ),
        ),
        intervals="", shown=("gradient", "waste/packed", "waste/alone"),
        measured_by=measure_mask, min_seeds=1,
    ),
    Claim(
        id=10, section="3.1", paper_trust=Trust.DESIGN,
        statement="Samples of the fine-tuned model rival demonstrations written by people.",
        paper_value="180 examples looked at: samples often competitive; no number",
        prediction="A sample beats the demonstration about as often as the other way round.",
        where="Against demonstrations, ties half",
        tests=(
            Must(
                "win rate of samples minus one half", _off_one_half, within=0.1, named="",
                says="win rate of samples minus one half (90 % over prompts)",
            ),
            Must("win rate of the base model", partial(_win_rate, who="base"), below=0.1, named=""),
        ),
        intervals="(95 % over prompts)",
        shown=(
            {f"win rate/{w}": partial(_win_rate, who=w) for w in ("sft", "base", "control")},
        ),
        measured_by=measure_rival,
        runs=lambda recipe, seed: {"sft": ("sft", recipe)},
    ),
)  # fmt: skip
