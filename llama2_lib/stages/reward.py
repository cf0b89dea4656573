"""Reward models, trained on comparisons (paper sections 3.2.1 and 3.2.2, appendix A.3.3 and A.3.4).

One round of the stage `rewards`, for helpfulness and for safety:

1. Annotators write prompts and see two answers to each, from the two newest policies at different
   temperatures. The accuracy of a reward model decays on answers unlike those that it was trained
   on, so every round begins with comparisons of the newest policy's answers.
2. A fifth of them is held back. The rest, with older pairs, is encoded: the score of an answer is
   read at its EOS.
3. Round 1 starts from the fine-tuned model with a scalar head, later ones from the reward model
   of the round before. Ranking loss with a margin by grade; the safety model has an auxiliary
   loss as well.
4. The helpfulness model's scores are shifted to a common zero, so that rounds can be compared.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from llama2_lib import rng, storage
from llama2_lib.config import Recipe, RewardConfig, RewardVariant
from llama2_lib.evaluation.reward import accuracy, accuracy_by_grade
from llama2_lib.model.chat import reply, room, scored_row, scores
from llama2_lib.model.transformer import ScalarModel, Transformer, scalar_model
from llama2_lib.model.weights import load_scalar_model
from llama2_lib.objectives.language import LossTerm
from llama2_lib.objectives.rlhf import combined_reward, margins, ranking_loss, safety_auxiliary_loss
from llama2_lib.stages.fit import Forward, Report, finish, fit
from llama2_lib.stages.folder import at_most, source_of
from llama2_lib.stages.job import Job, variant_of
from llama2_lib.stages.prompts import sample_prompts
from llama2_lib.text.dialog import Encoder
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.batches import EncodedPair, PairBatch, PairedAnswers
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.pairs import (
    EXCLUDED,
    GRADES,
    HELPFUL_STREAM,
    STREAMS,
    TAU,
    Annotator,
    Pair,
    annotate,
)
from llama2_lib.world.source import WorldSource

TEMPERATURES = (0.8, 1.2)
"""Temperatures of the two variants; the paper varies them and does not say how."""
SAFETY_STREAM = {"adversarial": 1.0}
"""Prompts of the safety stream, by family."""
HELD_BACK = 0.2
"""Share of fresh pairs that measure the reward model instead of training it."""
N_CENTRE = 256
"""Answers of the fine-tuned model whose mean helpfulness is the zero of all rounds."""
OWN_SHARE = {"helpfulness": 0.85, "safety": 0.9}
"""Share of each model's own stream in its training pairs: an equal part of other data for the
helpfulness model, 10 % helpfulness for the safety model. The paper's other data are open-source
sets too; ours is the other stream."""
MARGINS = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (1.0, 2 / 3, 1 / 3, 0.0),
    "large": (3.0, 2.0, 1.0, 0.0),
}
"""Margin of each of the annotators' `GRADES`, by schedule (paper table 27)."""
SAFE_BINS = {
    "safe, unsafe": (True, False),
    "both safe": (True, True),
    "both unsafe": (False, False),
}
"""Labels of a pair of answers, and whether the chosen and the rejected one are safe."""
DIGITS = 5
"""Digits of the scores that the stage `reward_model` keeps."""


# --- one round


def run(job: Job, number: int, newest: str, older: str, previous: str | None) -> None:
    """Collect comparisons of two policies' answers and train both reward models on them.

    Leaves a folder for each, with `fresh.jsonl.gz` (all comparisons of models' answers so far),
    `held.jsonl.gz` (those of this round that were not trained on) and `summary.json`.
    """
    variants = (job.model(newest), job.model(older))
    for part, config in enumerate((job.recipe.helpfulness, job.recipe.safety)):
        folder = job.folder / config.stream
        folder.mkdir(exist_ok=True)
        if (folder / "summary.json").exists():  # written last: a killed job got this far
            continue
        before = job.inputs[previous] / config.stream if previous else None
        report = job.part(part / 2, (part + 1) / 2)
        _run_stream(job, number, config, variants, before, folder, report)


def _run_stream(
    job: Job, number: int, config: RewardConfig, variants: tuple[Transformer, Transformer],
    previous: Path | None, folder: Path, report: Report,
) -> None:  # fmt: skip
    tokenizer, seed = job.tokenizer, rng.seed_from(config.seed, "fresh", config.stream, number)
    if job.source.judge:
        pairs, counts = collect(
            variants, tokenizer, job.world, config.stream,
            config.n_fresh_later if previous else config.n_fresh, seed=seed,
            max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
        n_held = max(1, round(HELD_BACK * len(pairs)))
        held, fresh = pairs[:n_held], pairs[n_held:]
    else:
        held, fresh, counts = next_slice(job, config, number)
    corpus = job.recipe.corpus
    bootstrap = training_pairs(config, OWN_SHARE[config.stream], corpus.world_seed, corpus.data)
    earlier = storage.read_rows(previous / "fresh.jsonl.gz", Pair) if previous else []
    summary: dict[str, Any] = {"round": number, **counts}
    validation = encode_pairs(held, tokenizer, "none")
    start: Transformer | ScalarModel
    if previous is None:
        start, train = job.model("sft"), [*bootstrap, *fresh]
    else:
        start = load_scalar_model(previous, job.device)
        summary["accuracy before"] = _accuracy(start, held, validation)
        old = [*bootstrap, *earlier]
        n_old = min(len(fresh), len(old))
        train = [*fresh, *rng.random_source(seed, "older pairs").sample(old, n_old)]
        config = dataclasses.replace(config, peak_lr=config.later_lr_ratio * config.peak_lr)
    storage.write_rows(folder / "fresh.jsonl.gz", [*earlier, *fresh])
    storage.write_rows(folder / "held.jsonl.gz", held)
    encoded = encode_pairs(train, tokenizer, config.margin)
    model = train_reward(config, start, encoded, validation, folder, job.device, report)
    summary["accuracy"] = _accuracy(model, held, validation)
    if config.stream == "helpfulness":
        summary["mean before centring"] = centre(model, _centre_rows(job))
        finish(model, folder)
    elif not job.source.judge:  # without labels of safety nothing else has set the zero
        rows = [row for pair in validation for row in (pair.chosen, pair.rejected)]
        summary["mean before centring"] = centre(model, rows)
        finish(model, folder)
    storage.write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _accuracy(
    model: ScalarModel, pairs: Sequence[Pair], encoded: Sequence[EncodedPair]
) -> dict[str, Any]:
    shares = accuracy_by_grade(*scores_of(model, encoded), [pair.grade for pair in pairs])
    return {grade: dataclasses.asdict(share) for grade, share in shares.items()}


def _centre_rows(job: Job) -> list[list[int]]:
    """Return answers of the fine-tuned model to helpful prompts, the same in every round."""
    model, tokenizer, config = job.model("sft"), job.tokenizer, job.recipe.helpfulness
    seed, most = rng.seed_from(config.seed, "centre"), config.max_new_tokens
    dialogs = sample_prompts(
        job.source, seed, N_CENTRE, tokenizer, longest=room(model, most), shares=HELPFUL_STREAM
    ).dialogs
    replies = reply(model, tokenizer, dialogs, temperature=1.0, seed=seed, max_new_tokens=most)
    return text_rows(dialogs, [answer.text for answer in replies], tokenizer, room(model, 0))


# --- comparisons (section 3.2.1)


def collect(
    variants: tuple[Transformer, Transformer], tokenizer: Tokenizer, world: World, stream: str,
    n_prompts: int, *, seed: int, max_new_tokens: int = 96,
) -> tuple[list[Pair], dict[str, int | float]]:  # fmt: skip
    """Let two model variants answer training prompts, and annotators choose.

    The variants are the newest policy and the one before it; in the first round twice the same. The
    seed decides prompts, answers and annotators. Returned are the comparisons and, for the log,
    what became of the prompts and the share of each grade.
    """
    prompt_set = sample_prompts(
        WorldSource(world), seed, n_prompts, tokenizer, longest=room(variants[0], max_new_tokens),
        shares=HELPFUL_STREAM if stream == "helpfulness" else SAFETY_STREAM,
    )  # fmt: skip
    columns = []
    for place, (model, temperature) in enumerate(zip(variants, TEMPERATURES, strict=True)):
        replies = reply(
            model, tokenizer, prompt_set.dialogs, max_new_tokens=max_new_tokens,
            temperature=temperature, seed=rng.seed_from(seed, stream, place),
        )  # fmt: skip
        columns.append([answer.text for answer in replies])
    rows = zip(prompt_set.prompts, *columns, strict=True)
    annotator = Annotator(seed, f"fresh {stream}", TAU)
    different = [(prompt, a, b) for prompt, a, b in rows if a and b and a != b]
    annotated = [annotate(world, prompt, a, b, annotator, stream) for prompt, a, b in different]
    # An unsafe answer that was preferred to a safe one teaches nothing (section 3.2.2).
    pairs = [pair for pair in annotated if pair.safety_bin != EXCLUDED]
    if not pairs:
        raise ValueError(
            f"no pair is left of {n_prompts} prompts: {n_prompts - len(different)} got the same or "
            f"an empty answer twice, {len(annotated)} were excluded as unsafe before safe. Sample "
            "hotter, or ask for more."
        )
    grades = Counter(pair.grade for pair in pairs)
    return pairs, {
        "prompts": n_prompts,
        "too long": prompt_set.n_too_long,
        "fresh pairs": len(pairs),
        "identical answers": n_prompts - len(different),
        "excluded": len(annotated) - len(pairs),
        **{f"share of {grade}": grades[grade] / len(pairs) for grade in GRADES},
    }


def next_slice(
    job: Job, config: RewardConfig, number: int
) -> tuple[list[Pair], list[Pair], dict[str, int | str]]:
    """Return as many pairs of a folder as annotators would rank, other ones in every round.

    Nobody ranks the policies' answers there. Held back are pairs whose prompts are held out, those
    that are short enough to be scored; the others are to be trained on.
    """
    source, stream, longest = job.source, config.stream, room(job.recipe.model, 0)
    n = config.n_fresh if number == 1 else config.n_fresh_later
    before = config.n_pairs + (number > 1) * config.n_fresh + max(0, number - 2) * n
    n_held = max(1, round(HELD_BACK * n))
    end = before + n - n_held
    most = at_most(source, stream, end + n, "held out")
    unseen = source.pairs(stream, rng.seed_from(config.seed, "held", number), most, "held out")
    held = list(islice((p for p in unseen if _length(p, job.tokenizer) <= longest), n_held))
    if not held:
        raise ValueError(
            f"pairs must have at most {longest} tokens to be scored; of those on {stream} that "
            "are held out none is so short. Take a recipe with a longer context."
        )
    return held, list(islice(source.pairs(stream, config.seed, end), before, None)), {
        "fresh pairs": n - n_held,
        "of them met before": min(n - n_held, end - at_most(source, stream, end)),
        "annotators": "none: these are the folder's own pairs, without grades or labels",
    }  # fmt: skip


# --- pairs (appendix A.3.3)


def training_pairs(
    config: RewardConfig, own_share: float, world_seed: int, data: str | None = None
) -> list[Pair]:
    """Return pairs of both streams in these shares, own ones first."""
    source = source_of(world_seed, data)
    other = next(name for name in STREAMS if name != config.stream)
    n_own = round(own_share * config.n_pairs)
    return [
        *source.pairs(config.stream, config.seed, at_most(source, config.stream, n_own)),
        *source.pairs(other, config.seed, at_most(source, other, config.n_pairs - n_own)),
    ]


def encode_pairs(pairs: Sequence[Pair], tok: Encoder, margin: str) -> list[EncodedPair]:
    """Encode prompt and answer in the chat format, each with the EOS its score is read at."""
    table: dict[str, float] = dict(zip(GRADES, MARGINS[margin], strict=True))
    values = margins([pair.grade for pair in pairs], table).tolist()
    encoded = []
    for pair, value in zip(pairs, values, strict=True):
        # Pairs whose unsafe answer was chosen are excluded from training (section 3.2.2).
        assert pair.safety_bin in ("", *SAFE_BINS), f"drop pairs labelled {pair.safety_bin!r} first"
        dialog = pair.prompt.dialog
        chosen, rejected = (scored_row(dialog, text, tok) for text in (pair.chosen, pair.rejected))
        encoded.append(EncodedPair(chosen, rejected, value, SAFE_BINS.get(pair.safety_bin)))
    return encoded


# --- training (section 3.2.2)


def train_reward(
    config: RewardConfig, start: Transformer | ScalarModel, train: Sequence[EncodedPair],
    validation: Sequence[EncodedPair], folder: Path, device: torch.device,
    report: Report = lambda done, words: None,
) -> ScalarModel:  # fmt: skip
    """Train a reward model for one epoch: a copy of a chat checkpoint, or a reward model in place.

    The head of a new one is zero: a random head would add noise to every score that a few
    hundred steps do not remove, and the best of many samples would be picked by it. One epoch,
    because the paper found that longer training overfits. Leaves what `fit` leaves; step 0 of
    the metrics says how many pairs were left out. The accuracy in the log knows no margin.
    """
    longest = start.config.max_seq_len
    model = start if isinstance(start, ScalarModel) else scalar_model(start)
    paired = PairedAnswers(train, longest=longest, seed=config.seed)
    held_out = PairedAnswers(validation, longest=longest)

    def measure(model: ScalarModel) -> dict[str, float]:
        return {"validation_accuracy": accuracy(*scores_of(model, held_out.pairs)).value}

    return fit(
        config, model.to(device),
        lambda start: paired.batches(batch_size=config.batch_size, start=start),
        pair_loss(config.safety_weight if config.stream == "safety" else 0.0), measure, folder,
        report, steps=paired.batches_per_epoch(config.batch_size),
        rates={"head.": config.head_lr_multiplier},
        before=lambda model: {**paired.counts(), **measure(model)},
    )  # fmt: skip


def pair_loss(safety_weight: float) -> Callable[[Forward, PairBatch], LossTerm]:
    """Return the ranking loss of a batch, with `safety_weight` times the auxiliary loss."""

    def loss(model: Forward, batch: PairBatch) -> LossTerm:
        answers = model(batch.ids, **batch.branches()).gather(1, batch.ends())
        term = ranking_loss(answers[:, 0], answers[:, 1], batch.margin)
        if not safety_weight or not bool(batch.labelled.any()):
            return term
        safety = safety_auxiliary_loss(
            answers[batch.labelled].flatten(), batch.is_safe[batch.labelled].flatten()
        )
        # Averaged over the labelled answers of the batch, and then as many times as it has pairs:
        # what is counted stays pairs, and rows may be divided among processes.
        total = term.total + safety_weight * batch.per_label[0].to(safety.total) * safety.total
        return LossTerm(total, term.count, term.metrics)

    return loss


def scores_of(model: ScalarModel, pairs: Sequence[EncodedPair]) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw scores of chosen and rejected answers."""
    values = scores(model, [p.chosen for p in pairs] + [p.rejected for p in pairs])
    return values[: len(pairs)], values[len(pairs) :]


@torch.no_grad()
def centre(model: ScalarModel, rows: Sequence[list[int]]) -> float:
    """Shift all scores so that those of `rows` have mean 0; return the mean they had.

    Comparisons leave the zero free. With the answers of one model as the zero, scores of reward
    models of several rounds can be shown on one axis. Never for the safety model: its zero has a
    meaning (see `safety_auxiliary_loss`), and its threshold of 0.15 needs it.
    """
    mean = float(scores(model, rows).mean())
    model.head.bias.sub_(mean)
    return mean


# --- both models in use


def text_rows(
    dialogs: Sequence[Sequence[Message]], answers: Sequence[str], tok: Encoder, context: int
) -> list[list[int]]:
    """Return the ids of each prompt with the text of its answer, cut at the context, to score."""
    pairs = zip(dialogs, answers, strict=True)
    return [scored_row(dialog, answer, tok, context) for dialog, answer in pairs]


class Rewarded(NamedTuple):
    """Raw scores of answers by both reward models, and what the policy is trained on."""

    helpfulness: Float[np.ndarray, " answers"]
    safety: Float[np.ndarray, " answers"]
    combined: Float[np.ndarray, " answers"]
    """`combined_reward` of the two."""


@dataclass(frozen=True, slots=True)
class RewardModels:
    """Both reward models, frozen; called with dialogs that end with an answer."""

    helpfulness: ScalarModel
    safety: ScalarModel

    def __post_init__(self) -> None:
        sizes = {m.config.vocab_size for m in (self.helpfulness, self.safety)}
        assert len(sizes) == 1, f"both reward models need one vocabulary; got {sizes} pieces"
        for model in (self.helpfulness, self.safety):
            model.eval().requires_grad_(False)

    def __call__(self, rows: Sequence[list[int]], is_safety: Sequence[bool]) -> Rewarded:
        """Score rows of prompt and answer, of prompts that are tagged as safety prompts or not."""
        helpfulness, safety = (scores(m, rows) for m in (self.helpfulness, self.safety))
        combined = combined_reward(
            torch.from_numpy(safety), torch.from_numpy(helpfulness), torch.tensor(is_safety)
        )
        return Rewarded(helpfulness, safety, combined.numpy())


def load_rewards(folder: Path, device: torch.device | str = "cpu") -> RewardModels:
    """Load both reward models of a finished `rewards` stage."""
    models = {stream: load_scalar_model(folder / stream, device) for stream in STREAMS}
    return RewardModels(**models)


# --- the stage `reward_model`: one variant on the world's pairs alone, made to be compared


class HeldOut(NamedTuple):
    """What a reward model says of the held-out pairs of one stream, and what is true of them."""

    chosen: Float[np.ndarray, " pairs"]
    """Raw scores of the chosen answers."""
    rejected: Float[np.ndarray, " pairs"]
    gap: Float[np.ndarray, " pairs"]
    """Gold score of chosen less rejected, see `Pair`."""
    grade: np.ndarray
    safety_bin: np.ndarray


def run_variant(job: Job) -> None:
    """Train one variant and score the held-out pairs.

    No policy has to exist. Variants with the same seed learn from the same pairs, as far as they
    learn from as many, and are tested on the same ones. Leaves the model and `held_out.json`, see
    `held_out_scores`.
    """
    variant: RewardVariant = variant_of(job.recipe, "reward_model")
    config, tokenizer, world_seed = variant.reward, job.tokenizer, job.recipe.corpus.world_seed
    tested = held_out_of(job.recipe, tokenizer)
    encoded = {stream: encode_pairs(pairs, tokenizer, "none") for stream, pairs in tested.items()}
    train = encode_pairs(variant_pairs(variant, world_seed), tokenizer, config.margin)
    validation = next(iter(encoded.values()))[: config.n_validation]
    model = train_reward(
        config, job.model("sft"), train, validation, job.folder, job.device, job.report
    )
    document: dict[str, dict[str, list]] = {}
    for stream, pairs in tested.items():
        chosen, rejected = scores_of(model, encoded[stream])
        document[stream] = {
            "chosen": chosen.round(DIGITS).tolist(),
            "rejected": rejected.round(DIGITS).tolist(),
            "gap": [round(pair.gap, DIGITS) for pair in pairs],
            "grade": [pair.grade for pair in pairs],
            "safety_bin": [pair.safety_bin for pair in pairs],
        }
    storage.write_atomically(job.folder / "held_out.json", json.dumps(document) + "\n")


def variant_pairs(variant: RewardVariant, world_seed: int) -> list[Pair]:
    """Return the training pairs of a variant, those of its own stream first."""
    pairs = training_pairs(variant.reward, variant.own_share, world_seed)
    if not variant.coin_toss:
        return pairs
    coin = rng.random_source(variant.reward.seed, "coin toss")
    unlabelled = [dataclasses.replace(pair, safety_bin="") for pair in pairs]
    return [
        dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen, gap=-pair.gap)
        if coin.random() < 0.5
        else pair
        for pair in unlabelled
    ]


def held_out_of(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, list[Pair]]:
    """Return the pairs that `held_out_scores` speaks of, by stream."""
    variant: RewardVariant = variant_of(recipe, "reward_model")
    seed, longest = variant.reward.seed, room(recipe.model, 0)
    return {
        stream: held_out_pairs(stream, recipe.corpus.world_seed, seed, n, tokenizer, longest)
        for stream, n in variant.tested.items()
    }


def held_out_pairs(
    stream: str, world_seed: int, seed: int, n: int, tok: Encoder, longest: int
) -> list[Pair]:
    """Return the first n pairs of the held-out split with no more than `longest` tokens each.

    Fewer of them are a beginning of more. Few pairs are too long, except for tiny contexts.
    """
    endless = WorldSource(make_world(world_seed)).pairs(stream, seed, split="held out")
    return list(islice((pair for pair in endless if _length(pair, tok) <= longest), n))


def _length(pair: Pair, tok: Encoder) -> int:
    """Return the tokens of the longer answer with its prompt."""
    texts = (pair.chosen, pair.rejected)
    return max(len(scored_row(pair.prompt.dialog, text, tok)) for text in texts)


def held_out_scores(folder: Path) -> dict[str, HeldOut]:
    """Return what a finished `reward_model` stage says of the held-out pairs, by stream."""
    document = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    return {
        stream: HeldOut(*(np.array(columns[name]) for name in HeldOut._fields))
        for stream, columns in document.items()
    }
