"""A loss as a sum and a count, so that batches of unequal size combine exactly."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class LossTerm(NamedTuple):
    """A loss before averaging. Divide once, by the count of the whole optimiser step."""

    total: Float[Tensor, ""]
    """Sum over the counted items; `backward` is called on this."""
    count: Float[Tensor, ""]
    """How many items were counted: tokens for a language model, pairs for a reward model."""
    metrics: dict[str, Float[Tensor, ""]]
    """Detached scalars for the log, already averaged."""
