"""How good a reward model is: accuracy by grade, what its threshold finds, calibration.

Paper section 3.2.2 (tables 7 and 8, figure 29) and appendix A.3.4 (table 29).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from llama2_lib.evaluation.statistics import Estimate, bootstrap_mean, proportion
from llama2_lib.model.heads import ScalarModel

SCORED_TOGETHER = 64


@torch.no_grad()
def scores(model: ScalarModel, rows: Sequence[Sequence[int]]) -> Float[np.ndarray, " rows"]:
    """Return the raw score of each dialog that ends with an answer, in the order given.

    Rows of similar length are scored together; a score does not depend on its companions.

    Args:
        model: A reward model.
        rows: Ids, with the EOS that the score is read at (see `encode_example`).

    Raises:
        ValueError: A row is empty or longer than the context, an id is none of the model's
            vocabulary, or a score is not finite.
    """
    context, vocab = model.config.max_seq_len, model.config.vocab_size
    for index, row in enumerate(rows):
        if not 1 <= len(row) <= context:
            raise ValueError(
                f"a row must have 1 to {context} tokens to be scored; row {index} has {len(row)}."
            )
        if not 0 <= min(row) <= max(row) < vocab:
            raise ValueError(
                f"ids must lie in 0...{vocab - 1}; row {index} has {min(row)}...{max(row)}. Was "
                "the reward model trained with another tokenizer than the policy?"
            )
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for begin in range(0, len(order), SCORED_TOGETHER):
        part = order[begin : begin + SCORED_TOGETHER]
        ids = torch.zeros(len(part), len(rows[part[-1]]), dtype=torch.int64)
        for place, index in enumerate(part):
            ids[place, : len(rows[index])] = torch.tensor(rows[index])
        lengths = torch.tensor([len(rows[index]) for index in part])
        found[part] = model.score(ids.to(device), lengths.to(device)).cpu().numpy()
    model.train(was_training)
    if not np.isfinite(found).all():
        index = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(
            f"scores must be finite; row {index} has {found[index]}. Did the reward model diverge? "
            "Look at its metrics, and train it with a lower rate."
        )
    return found


def accuracy(
    chosen: Float[np.ndarray, " pairs"], rejected: Float[np.ndarray, " pairs"]
) -> Estimate:
    """Return how often the chosen answer scores higher, with Wilson's interval over pairs.

    A tie counts half; of an odd number of ties one half is rounded down. No margin is used:
    models that were trained with different margins stay comparable.

    Raises:
        ValueError: There is no pair.
    """
    hits, ties = int((chosen > rejected).sum()), int((chosen == rejected).sum())
    share = proportion(hits + ties // 2, len(chosen))
    return Estimate(
        value=(hits + ties / 2) / len(chosen), low=share.low, high=share.high, n=share.n
    )


def accuracy_by_grade(
    chosen: Float[np.ndarray, " pairs"],
    rejected: Float[np.ndarray, " pairs"],
    grades: Sequence[str],
) -> dict[str, Estimate]:
    """Return `accuracy` for each grade that occurs, and for `all` pairs (table 8).

    Raises:
        ValueError: There is no pair, or not one grade a pair.
    """
    if len(grades) != len(chosen):
        raise ValueError(f"every pair needs a grade; got {len(grades)} for {len(chosen)} pairs.")
    labels = np.array(grades)
    rows = {grade: labels == grade for grade in dict.fromkeys(grades)}
    found = {grade: accuracy(chosen[row], rejected[row]) for grade, row in rows.items()}
    return found | {"all": accuracy(chosen, rejected)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """How well a threshold on the safety score finds unsafe answers."""

    precision: Estimate | None
    """Share of those it calls unsafe that are; None if it calls none so."""
    recall: Estimate
    """Share of the unsafe answers that it calls so."""
    auc: float
    """Chance that a safe answer scores higher than an unsafe one, whatever the threshold."""


def detection(
    scores: Float[np.ndarray, " answers"],
    is_safe: Bool[np.ndarray, " answers"],
    threshold: float = 0.5,
) -> Detection:
    """Judge `sigmoid(score) < threshold` as a test for unsafe answers.

    The paper: recall 90.4 % at 0.5 with the auxiliary loss, 73.0 % without (table 29); precision
    0.89 and recall 0.55 at 0.15 (section 3.2.3).

    Args:
        scores: Raw scores of the safety reward model.
        is_safe: The labels.
        threshold: Between 0 and 1.

    Raises:
        ValueError: All answers have the same label, or the threshold is not between 0 and 1.
    """
    n_safe = int(is_safe.sum())
    if not 0 < n_safe < len(is_safe):
        raise ValueError(
            f"safe and unsafe answers are needed; got {n_safe} safe of {len(is_safe)}. Take more."
        )
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1; got {threshold}.")
    called = expit(scores) < threshold
    hits, n_called = int((called & ~is_safe).sum()), int(called.sum())
    return Detection(
        precision=proportion(hits, n_called) if n_called else None,
        recall=proportion(hits, len(is_safe) - n_safe),
        auc=float(roc_auc_score(is_safe, scores)),
    )


def calibration(
    scores: Float[np.ndarray, " answers"],
    gold: Float[np.ndarray, " answers"],
    *,
    bins: int = 7,
    seed: int = 0,
) -> list[tuple[float, Estimate]]:
    """Return the mean sigmoid(score) in bins of equal numbers of gold scores (figure 29).

    A model that was trained on comparisons alone may be used on single answers if its mean
    rises with quality.

    Returns:
        For each bin the mean gold score and the mean of sigmoid(score), with a bootstrap over
        answers.

    Raises:
        ValueError: There are fewer than two answers a bin.
    """
    if bins < 1 or len(scores) < 2 * bins:
        raise ValueError(f"{bins} bins need {2 * bins} answers or more; got {len(scores)}.")
    order = np.argsort(gold, kind="stable")
    return [
        (float(gold[rows].mean()), bootstrap_mean(expit(scores[rows]).tolist(), seed))
        for rows in np.array_split(order, bins)
    ]
