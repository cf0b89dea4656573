"""Language-model losses: every next token, or only the marked ones (paper sections 2.2, 3.1).

A loss is a sum and a count, so that batches of unequal size combine exactly.
"""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class LossTerm(NamedTuple):
    """A loss before averaging. Divide once, by the count of the whole optimiser step."""

    total: Float[Tensor, ""]
    """Sum over the counted items; `backward` is called on this."""
    count: Float[Tensor, ""]
    """How many items were counted: tokens for a language model, pairs for a reward model."""
    metrics: dict[str, Float[Tensor, ""]]
    """Detached scalars for the log, already averaged."""


def next_token_loss(
    logits: Float[Tensor, "batch seq vocab"], ids: Int[Tensor, "batch seq+1"]
) -> LossTerm:
    """Negative log-likelihood of each token given those before it, in nats.

    The shift happens here and nowhere else: `logits[:, t]` is scored against `ids[:, t + 1]`.
    """
    total = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    return LossTerm(total, total.new_tensor(ids[:, 1:].numel()), {})


def masked_loss(
    logits: Float[Tensor, "batch seq vocab"],
    ids: Int[Tensor, "batch seq+1"],
    loss_mask: Bool[Tensor, "batch seq+1"],
) -> LossTerm:
    """Negative log-likelihood of the tokens that `loss_mask` marks as TARGETS, in nats.

    Raises:
        ValueError: No token is marked, or the first of a row is.
    """
    at, targets = targets_of(ids, loss_mask)
    return target_loss(logits.flatten(0, 1)[at], targets)


def targets_of(
    ids: Int[Tensor, "batch tokens"], loss_mask: Bool[Tensor, "batch tokens"]
) -> tuple[Int[Tensor, " targets"], Int[Tensor, " targets"]]:
    """Return before which places of the flattened inputs a target stands, and the targets.

    The logits of these places are all that `target_loss` needs.

    Raises:
        ValueError: No token is marked, or the first of a row is.
    """
    if bool(loss_mask[:, 0].any()):
        raise ValueError(
            "the first token of a row cannot be a target, for nothing comes before it; "
            f"rows {loss_mask[:, 0].nonzero()[:5, 0].tolist()} mark it."
        )
    at = loss_mask[:, 1:].flatten().nonzero()[:, 0]
    if len(at) == 0:
        raise ValueError(
            f"loss_mask marks none of {loss_mask[:, 1:].numel()} tokens, so there is nothing to "
            "learn from. Were the answers cut off?"
        )
    return at, ids[:, 1:].flatten()[at]


def target_loss(
    logits: Float[Tensor, "targets vocab"], targets: Int[Tensor, " targets"]
) -> LossTerm:
    """Negative log-likelihood of targets whose logits alone were computed, in nats."""
    total = F.cross_entropy(logits, targets, reduction="sum")
    return LossTerm(total, total.new_tensor(len(targets)), {})
