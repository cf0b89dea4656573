"""Losses of the reward models (paper section 3.2.2, appendix A.3.3 and A.3.4)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from llama2_lib.objectives.language import LossTerm

Pairs = Float[Tensor, " pairs"]


def margins(grades: Sequence[str], table: Mapping[str, float]) -> Pairs:
    """Return m(r) of equation 2 for each pair: the margin of its grade."""
    if unknown := sorted(set(grades) - set(table)):
        raise ValueError(f"a grade must be one of {[*table]}; got {unknown}.")
    return torch.tensor([table[grade] for grade in grades])


def ranking_loss(chosen: Pairs, rejected: Pairs, margin: Pairs | None = None) -> LossTerm:
    """Binary ranking loss, -log sigmoid(r_chosen - r_rejected - m) (paper equations 1 and 2).

    The margin m(r) belongs to training. Evaluate without it, or models trained with different
    margins cannot be compared. Scores are raw, as the model gives them.
    """
    gap = chosen - rejected
    # logsigmoid and not log(sigmoid): the latter is -inf from a gap of -104 on in fp32.
    loss = -F.logsigmoid(gap if margin is None else gap - margin.to(gap))
    metrics = {"accuracy": pairwise_accuracy(chosen, rejected), "gap": gap.detach().mean()}
    return LossTerm(loss.sum(), loss.new_tensor(len(loss)), metrics)


def pairwise_accuracy(chosen: Pairs, rejected: Pairs) -> Float[Tensor, ""]:
    """Return the share of pairs in which the chosen answer scores higher; a tie counts half.

    A score that is not a number makes the share none either.
    """
    gap = (chosen - rejected).detach()
    if not len(gap):
        raise ValueError("a comparison needs at least one pair; got none.")
    wins = (gap > 0).to(gap.dtype) + 0.5 * (gap == 0).to(gap.dtype)
    return wins.masked_fill(gap.isnan(), float("nan")).mean()


def safety_auxiliary_loss(
    scores: Float[Tensor, " answers"], is_safe: Bool[Tensor, " answers"]
) -> LossTerm:
    """Cross-entropy of each answer's own score against its safety label.

    OUR reconstruction. The paper reports what an auxiliary safety loss gains (table 29: 73.0 to
    90.4 % of unsafe answers below 0.5) but not its formula. It is needed: a ranking loss does not
    change when a constant is added to all scores, so without an absolute term the threshold of
    0.15 in section 3.2.3 has no meaning.
    """
    loss = F.binary_cross_entropy_with_logits(scores, is_safe.to(scores), reduction="none")
    unsafe = ~is_safe
    recall = (unsafe & (scores < 0)).sum() / unsafe.sum().clamp(min=1)
    metrics = {"unsafe_recall": recall.detach().to(scores.dtype)}
    return LossTerm(loss.sum(), loss.new_tensor(len(loss)), metrics)
