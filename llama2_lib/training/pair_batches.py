"""Batches of preference pairs: both answers in one forward pass (paper section 3.2.2).

A batch is a pure function of its number, as in `PackedCorpus`, so a run resumes without any
iterator state.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llama2_lib import rng

SORTED_TOGETHER = 16
"""Batches whose pairs are sorted by length before they are divided, so that little is padding."""


class EncodedPair(NamedTuple):
    """Ids of prompt and answer, both times with the final EOS, and what the annotator said."""

    chosen: list[int]
    rejected: list[int]
    margin: float = 0.0
    safe: tuple[bool, bool] | None = None
    """Safety labels of chosen and rejected; None in the helpfulness stream."""


class PairBatch(NamedTuple):
    """Chosen answers in the first half of the rows, the rejected ones in the same order after."""

    ids: Int[Tensor, "2*pairs seq"]
    lengths: Int[Tensor, " 2*pairs"]
    """Real tokens of each row; padding stands on the right."""
    margin: Float[Tensor, " pairs"]
    is_safe: Bool[Tensor, " 2*pairs"]
    """Safety labels; False where there is none."""
    labelled: Bool[Tensor, " 2*pairs"]


class PairedAnswers:
    """Pairs that fit, and batches of them; what does not fit is left out and counted.

    A pair whose answers have the same ids has a loss of ln 2 and no gradient. One that is too
    long cannot be cut: the score stands on the last token.
    """

    def __init__(self, pairs: Sequence[EncodedPair], *, longest: int, seed: int = 0):
        different = [pair for pair in pairs if pair.chosen != pair.rejected]
        self.pairs = [p for p in different if max(len(p.chosen), len(p.rejected)) <= longest]
        self.n_identical = len(pairs) - len(different)
        self.n_too_long = len(different) - len(self.pairs)
        self.seed = seed
        if not self.pairs:
            raise ValueError(
                f"of {len(pairs)} pairs none can be learned from: {self.n_identical} have twice "
                f"the same answer and {self.n_too_long} exceed {longest} tokens. Raise the "
                "length, or look at the pairs."
            )

    def counts(self) -> dict[str, int]:
        """Return what became of the pairs, for the log."""
        return {
            "pairs": len(self.pairs),
            "identical": self.n_identical,
            "too_long": self.n_too_long,
        }

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return into how many batches of at most `batch_size` pairs an epoch is divided."""
        return -(-len(self.pairs) // batch_size)

    def batches(self, *, batch_size: int, start: int = 0) -> Iterator[PairBatch]:
        """Yield batch `start`, `start + 1`, ... without end; every pair comes once an epoch."""
        per_epoch, current = self.batches_per_epoch(batch_size), -1
        parts: list[np.ndarray] = []
        while True:
            number, within = divmod(start, per_epoch)
            if number != current:
                parts, current = self._epoch(number, batch_size), number
            yield collate([self.pairs[index] for index in parts[within]])
            start += 1

    def _epoch(self, number: int, batch_size: int) -> list[np.ndarray]:
        """Return the pairs of each batch: of similar length, in random order."""
        source = np.random.default_rng(rng.seed_from(self.seed, "pairs", number))
        order = source.permutation(len(self.pairs))
        lengths = np.array([max(len(p.chosen), len(p.rejected)) for p in self.pairs])
        step = SORTED_TOGETHER * batch_size
        groups = [order[begin : begin + step] for begin in range(0, len(order), step)]
        ordered = np.concatenate([group[lengths[group].argsort(kind="stable")] for group in groups])
        parts = np.array_split(ordered, self.batches_per_epoch(batch_size))
        return [parts[index] for index in source.permutation(len(parts))]


def collate(pairs: Sequence[EncodedPair]) -> PairBatch:
    """Lay pairs into one batch, padded on the right to the longest answer."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    labels = [pair.safe[side] if pair.safe else None for side in (0, 1) for pair in pairs]
    return PairBatch(
        ids,
        lengths,
        torch.tensor([pair.margin for pair in pairs]),
        torch.tensor([bool(label) for label in labels]),
        torch.tensor([label is not None for label in labels]),
    )
