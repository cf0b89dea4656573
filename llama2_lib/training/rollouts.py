"""Answers of a policy laid out for PPO: mini-batches of rows, and what is known of every token.

Rows of similar length share a mini-batch, so that little is padding. The log-probabilities are
computed mini-batch by mini-batch, in the very shapes in which they are computed again for
training: before the first step the ratio is then 1 to the last bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llama2_lib.objectives.reward import whiten


class Sampled(NamedTuple):
    """One prompt with the answer that the policy gave, as ids: never decoded and encoded again."""

    prompt: list[int]
    answer: list[int]
    """Ends with EOS if it is finished."""
    finished: bool

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt, *self.answer]


class Actions(NamedTuple):
    """A mini-batch of rows, padded on the right; position t of a mask is about target t + 1."""

    rows: Int[Tensor, " rows"]
    """Numbers of the rows in the whole batch."""
    ids: Int[Tensor, "rows seq+1"]
    response_mask: Bool[Tensor, "rows seq"]
    """True where the target is a token of the answer, the final EOS included."""


class Minibatch(NamedTuple):
    """All that one PPO step needs."""

    ids: Int[Tensor, "rows seq+1"]
    response_mask: Bool[Tensor, "rows seq"]
    old_logprobs: Float[Tensor, "rows seq"]
    old_values: Float[Tensor, "rows seq"]
    advantages: Float[Tensor, "rows seq"]
    returns: Float[Tensor, "rows seq"]


def layout(samples: Sequence[Sampled], n_minibatches: int, seed: int) -> list[Actions]:
    """Divide rows into mini-batches of similar length, in random order.

    Raises:
        ValueError: There are fewer rows than mini-batches, or an answer is empty.
    """
    if not 1 <= n_minibatches <= len(samples):
        raise ValueError(
            f"n_minibatches must lie in 1...{len(samples)}, the number of rows; got "
            f"{n_minibatches}."
        )
    empty = [row for row, sample in enumerate(samples) if not sample.answer]
    if empty:
        raise ValueError(f"every answer needs a token; those of rows {empty[:5]} have none.")
    lengths = np.array([len(sample.ids) for sample in samples])
    source = np.random.default_rng(seed)
    order = lengths.argsort(kind="stable")
    parts = np.array_split(order, n_minibatches)
    return [_actions(samples, parts[place]) for place in source.permutation(n_minibatches)]


def _actions(samples: Sequence[Sampled], rows: np.ndarray) -> Actions:
    width = max(len(samples[row].ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width - 1, dtype=torch.bool)
    for place, row in enumerate(rows):
        sample = samples[row]
        ids[place, : len(sample.ids)] = torch.tensor(sample.ids)
        mask[place, len(sample.prompt) - 1 : len(sample.ids) - 1] = True
    return Actions(torch.from_numpy(rows.copy()), ids, mask)


def whiten_together(
    parts: Sequence[Float[Tensor, "_ _"]], masks: Sequence[Bool[Tensor, "_ _"]]
) -> list[Float[Tensor, "_ _"]]:
    """Whiten the counted values of all mini-batches as one set; what does not count becomes 0."""
    flat = whiten(torch.cat([part[mask] for part, mask in zip(parts, masks, strict=True)]))
    pieces = flat.split([int(mask.sum()) for mask in masks])
    return [
        torch.zeros_like(part).masked_scatter(mask, piece)
        for part, mask, piece in zip(parts, masks, pieces, strict=True)
    ]
