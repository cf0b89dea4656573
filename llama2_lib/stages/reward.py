"""Reward models, trained on comparisons (paper section 3.2.2, appendix A.3.3 and A.3.4)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float

from llama2_lib.evaluation.reward import accuracy, scores
from llama2_lib.model.heads import ScalarModel, scalar_model
from llama2_lib.model.transformer import Transformer
from llama2_lib.objectives.preference import (
    MARGINS,
    margins,
    ranking_loss,
    safety_auxiliary_loss,
)
from llama2_lib.objectives.reward import combined_reward
from llama2_lib.objectives.terms import LossTerm
from llama2_lib.stages.fit import Report, fit
from llama2_lib.text.dialog import Encoder, Message, encode_example
from llama2_lib.training.pair_batches import EncodedPair, PairBatch, PairedAnswers
from llama2_lib.training.schedule import warmup_then_cosine
from llama2_lib.world import make_world
from llama2_lib.world.pairs import STREAMS, Pair, helpfulness_pairs, safety_pairs

OWN_SHARE = {"helpfulness": 0.85, "safety": 0.9}
"""Share of each model's own stream in its training pairs: an equal part of other data for the
helpfulness model, 10 % helpfulness for the safety model. The paper's other data are open-source
sets too; ours is the other stream."""
SAFE_BINS = {
    "safe, unsafe": (True, False),
    "both safe": (True, True),
    "both unsafe": (False, False),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """One reward model. The paper's numbers are in brackets."""

    stream: str
    """What it judges: helpfulness or safety."""
    n_pairs: int
    """Pairs that exist before any model, of both streams in the shares of `OWN_SHARE` [the paper
    began with 1.5 million open-source pairs]."""
    n_fresh: int = 0
    """Prompts that the fine-tuned model answers twice for annotators, first round [1.4 million
    comparisons over 14 batches]."""
    n_fresh_later: int = 0
    """The same in every later round, with as many older pairs trained on again."""
    max_new_tokens: int = 96
    """Length of those answers at most."""
    batch_size: int = 16
    """Pairs per step [512]."""
    n_validation: int = 400
    """Held-out pairs of its own stream for the accuracy in the log."""
    margin: str = "small"
    """Margin schedule: none, small or large [the final choice is not stated]."""
    safety_weight: float = 1.0
    """Weight of the auxiliary safety loss, for the safety model only [not stated]."""
    peak_lr: float = 5e-4
    """[1e-5; 5e-6 for 70B]; small models stand, and need, more."""
    head_rate: float = 10.0
    """Rate of the scalar head, in units of the others' [not stated]. The head starts at zero, and
    as long as it is small the model below hears nothing."""
    later_rate: float = 0.5
    """Later rounds go on from the model of the round before, at this fraction of the peak."""
    warmup: int = 5
    """Steps [3 %, 5 at least]."""
    floor: float = 0.1
    """Final rate as a fraction of the peak [0.1]."""
    weight_decay: float = 0.1
    """[0.1]"""
    clip_norm: float = 1.0
    """[1.0]"""
    precision: str = "fp32"
    compile: bool = False
    eval_every: int = 25
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_pairs", "batch_size", "n_validation", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name, known in (("stream", STREAMS), ("margin", tuple(MARGINS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}.")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16; got {self.precision!r}.")
        if self.safety_weight < 0:
            raise ValueError(f"safety_weight must be 0 or more; got {self.safety_weight}.")
        warmup_then_cosine(  # refuses what is out of range
            peak=self.peak_lr, steps=self.warmup + 1, warmup=self.warmup, floor=self.floor
        )


def estimated_steps(config: RewardConfig, number: int) -> int:
    """Return about how many steps round `number` takes; a few prompts give no pair."""
    n = config.n_pairs + config.n_fresh if number == 1 else 2 * config.n_fresh_later
    return -(-n // config.batch_size)


def world_pairs(stream: str, world_seed: int, seed: int, n: int, split: str) -> list[Pair]:
    """Return pairs of one stream, annotated in the world: no model has to exist for them."""
    draw = helpfulness_pairs if stream == "helpfulness" else safety_pairs
    return list(draw(make_world(world_seed), seed, n, split))


def training_pairs(config: RewardConfig, world_seed: int) -> list[Pair]:
    """Return the pairs of both streams in the shares of `OWN_SHARE`, own ones first."""
    other = next(name for name in STREAMS if name != config.stream)
    n_own = round(OWN_SHARE[config.stream] * config.n_pairs)
    own = world_pairs(config.stream, world_seed, config.seed, n_own, "train")
    return own + world_pairs(other, world_seed, config.seed, config.n_pairs - n_own, "train")


def encode_pairs(pairs: Sequence[Pair], tok: Encoder, margin: str) -> list[EncodedPair]:
    """Encode prompt and answer in the chat format, each with the EOS its score is read at.

    Raises:
        ValueError: A pair has a safety label that is excluded: chosen unsafe, rejected safe.
    """
    values = margins([pair.grade for pair in pairs], margin).tolist()
    encoded = []
    for pair, value in zip(pairs, values, strict=True):
        if pair.safety_bin and pair.safety_bin not in SAFE_BINS:
            raise ValueError(
                f"pairs labelled {pair.safety_bin!r} are excluded from training (paper section "
                "3.2.2); drop them first."
            )
        chosen, rejected = (answered(pair, text, tok) for text in (pair.chosen, pair.rejected))
        safe = SAFE_BINS.get(pair.safety_bin)
        encoded.append(EncodedPair(chosen, rejected, value, safe))
    return encoded


def answered(pair: Pair, answer: str, tok: Encoder) -> list[int]:
    """Return the ids of a pair's prompt with one answer."""
    dialog = [*pair.prompt.dialog, {"role": "assistant", "content": answer}]
    return encode_example(cast(list[Message], dialog), tok)[0]


def pair_loss(safety_weight: float) -> Callable[[Callable[..., Any], PairBatch], LossTerm]:
    """Return the ranking loss of a batch, with `safety_weight` times the auxiliary loss."""

    def loss(model: Callable[..., Any], batch: PairBatch) -> LossTerm:
        # The compiled or the plain model: calling it is all that both can do.
        numbers = model(batch.ids)
        scores = numbers.gather(1, batch.lengths[:, None] - 1)[:, 0]
        chosen, rejected = scores.chunk(2)
        term = ranking_loss(chosen, rejected, batch.margin)
        if not safety_weight or not bool(batch.labelled.any()):
            return term
        safety = safety_auxiliary_loss(scores[batch.labelled], batch.is_safe[batch.labelled])
        # Per labelled answer, and then as many times as there are pairs: the count stays pairs.
        total = term.total + safety_weight * safety.total / safety.count * term.count
        return LossTerm(total, term.count, term.metrics)

    return loss


def scores_of(model: ScalarModel, pairs: Sequence[EncodedPair]) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw scores of chosen and rejected answers."""
    found = scores(model, [p.chosen for p in pairs] + [p.rejected for p in pairs])
    return found[: len(pairs)], found[len(pairs) :]


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
        sizes = [m.config.vocab_size for m in (self.helpfulness, self.safety)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"both reward models need one vocabulary; got {sizes[0]} and {sizes[1]} pieces. "
                "Take both from one run."
            )
        for model in (self.helpfulness, self.safety):
            model.eval().requires_grad_(False)

    def __call__(self, rows: Sequence[list[int]], is_safety: Sequence[bool]) -> Rewarded:
        """Score answers.

        Args:
            rows: Ids of prompt and answer.
            is_safety: Whether each prompt is tagged as apt to elicit unsafe answers.

        Raises:
            ValueError: as in `scores`.
        """
        helpfulness, safety = (scores(m, rows) for m in (self.helpfulness, self.safety))
        combined = combined_reward(
            torch.from_numpy(safety), torch.from_numpy(helpfulness), torch.tensor(is_safety)
        )
        return Rewarded(helpfulness, safety, combined.numpy())


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


def train_reward(
    config: RewardConfig,
    start: Transformer | ScalarModel,
    train: Sequence[EncodedPair],
    validation: Sequence[EncodedPair],
    folder: Path,
    device: torch.device,
    report: Report = lambda done, words: None,
) -> ScalarModel:
    """Train a reward model for one epoch: a copy of a chat checkpoint, or a reward model in place.

    The head of a new one is zero: a random head would add noise to every score that a few
    hundred steps do not remove, and the best of many samples would be picked by it. One epoch,
    because the paper found that longer training overfits. Leaves what `fit` leaves; step 0 of
    the metrics says how many pairs were left out. The accuracy in the log knows no margin.

    Raises:
        ValueError: No pair can be learned from.
        FloatingPointError: The loss is not finite.
    """
    longest = start.config.max_seq_len
    model = start if isinstance(start, ScalarModel) else scalar_model(start)
    paired = PairedAnswers(train, longest=longest, seed=config.seed)
    held_out = PairedAnswers(validation, longest=longest)

    def batches(start: int) -> Iterator[PairBatch]:
        return paired.batches(batch_size=config.batch_size, start=start)

    def measure(model: ScalarModel) -> dict[str, float]:
        return {"validation_accuracy": accuracy(*scores_of(model, held_out.pairs)).value}

    return fit(
        config,
        model.to(device),
        batches,
        pair_loss(config.safety_weight if config.stream == "safety" else 0.0),
        measure,
        folder,
        report,
        steps=paired.batches_per_epoch(config.batch_size),
        rates={"head.": config.head_rate},
        before=lambda model: {**paired.counts(), **measure(model)},
    )
