"""Packing: documents laid end to end and cut into rows of one length (paper section 2.2).

A batch is a pure function of its step number, so a run resumes by asking for the next number:
there is no iterator state to save.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llama2_lib import rng


class PackedBatch(NamedTuple):
    """Rows for next-token prediction, one token longer than the model's input."""

    ids: Int[Tensor, "batch seq+1"]
    document: Int[Tensor, "batch seq+1"]
    """Number of the document each token belongs to, unique within its row."""


class PackedCorpus:
    """Documents as one array of ids and the offsets at which each begins."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray):
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(ids):
            raise ValueError(
                f"offsets must run from 0 to {len(ids)}, one more than there are documents; got "
                f"{len(offsets)} of them."
            )
        self.ids, self.offsets = ids, offsets

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Number of tokens, BOS and EOS of each document included."""
        return len(self.ids)

    def epoch(self, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of epoch `number`, documents shuffled, and each token's document."""
        order = np.random.default_rng(rng.seed_from(seed, "epoch", number))
        shuffled = order.permutation(self.n_documents)
        lengths = np.diff(self.offsets)[shuffled]
        document = np.repeat(np.arange(self.n_documents), lengths)
        ends = lengths.cumsum()
        within = np.arange(self.n_tokens) - np.repeat(ends - lengths, lengths)
        source = np.repeat(self.offsets[:-1][shuffled], lengths) + within
        return self.ids[source], document

    def batches(
        self, *, seed: int, batch_size: int, seq_len: int, start: int = 0
    ) -> Iterator[PackedBatch]:
        """Yield batch `start`, `start + 1`, ... without end, reshuffling every epoch.

        A row begins with the last token of the row before it, so that every token is a target
        once an epoch. The few tokens that do not fill a last batch wait for the next epoch's
        shuffle.

        Raises:
            ValueError: The corpus is smaller than one batch.
        """
        per_epoch = (self.n_tokens - 1) // (batch_size * seq_len)
        if per_epoch == 0:
            raise ValueError(
                f"a corpus must fill one batch of {batch_size} x {seq_len} tokens; this one has "
                f"{self.n_tokens}. Make it larger or the batch smaller."
            )
        current = -1
        ids = document = np.empty(0)
        rows = np.arange(batch_size)[:, None] * seq_len + np.arange(seq_len + 1)
        while True:
            number, within = divmod(start, per_epoch)
            if number != current:
                (ids, document), current = self.epoch(seed, number), number
            index = within * batch_size * seq_len + rows
            yield PackedBatch(
                torch.from_numpy(ids[index].astype(np.int64)),
                torch.from_numpy(document[index].astype(np.int64)),
            )
            start += 1


def isolate(
    document: Int[Tensor, "batch seq"],
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq seq"]]:
    """Return rotary positions that restart, and a mask that ends, at document boundaries.

    With them a document in a pack gets the logits that it would get alone.
    """
    new = _begins(document)
    index = torch.arange(document.shape[1], device=document.device).expand_as(document)
    first = torch.where(new, index, 0).cummax(dim=1).values
    same = document[:, :, None] == document[:, None, :]
    causal = index[0][:, None] >= index[0][None, :]
    return index - first, same & causal


def apart(document: Int[Tensor, "batch seq"]) -> dict[str, Any]:
    """Return the arguments with which a `Transformer` reads every document as if it were alone.

    On a CPU the lengths, so that attention costs the squares of the documents and not of the
    rows. Elsewhere positions and mask of `isolate`: their shapes stay the same, which
    `torch.compile` needs. The logits are the same up to rounding.
    """
    if document.device.type == "cpu":
        begins = _begins(document).flatten().nonzero()[:, 0].tolist()
        return {"lengths": np.diff([*begins, document.numel()]).tolist()}
    positions, visible = isolate(document)
    return {"positions": positions, "visible": visible}


def _begins(document: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
    """Return True at every document's first token; a row begins one."""
    new = torch.ones_like(document, dtype=torch.bool)
    new[:, 1:] = document[:, 1:] != document[:, :-1]
    return new
