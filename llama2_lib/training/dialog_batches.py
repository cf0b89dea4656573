"""Packing of dialogs: whole examples side by side in rows of one length (paper section 3.1).

Pretraining cuts documents wherever a row ends. Here an example stays in one piece, since an
answer without its question teaches nothing: what is left of a row is padding. Padding stands at
the end, where causal attention never looks, and is never a target, so its id does not matter.

A batch is a pure function of its number, as in `PackedCorpus`, so a run resumes without any
iterator state.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llama2_lib import rng

Example = tuple[Sequence[int], Sequence[bool]]
"""Ids and loss mask, as `encode_example` returns them: mask[t] marks that id t is a TARGET."""

PAD_ID = 0


class DialogBatch(NamedTuple):
    """Rows of whole examples, one token longer than the model's input."""

    ids: Int[Tensor, "batch seq+1"]
    loss_mask: Bool[Tensor, "batch seq+1"]
    """True where a token is a target; never at an example's first token, never at padding."""
    document: Int[Tensor, "batch seq+1"]
    """Number of the example within its row; padding has a number of its own."""


def check_example(example: Example, index: int = 0) -> None:
    """Refuse an example that teaches nothing, or whose mask marks what nothing comes before.

    Raises:
        ValueError: naming the example by its index.
    """
    ids, loss_mask = example
    if len(ids) != len(loss_mask):
        raise ValueError(
            f"ids and loss mask must have the same length; example {index} has {len(ids)} and "
            f"{len(loss_mask)}. Take both from encode_example."
        )
    if not any(loss_mask):
        raise ValueError(
            f"the loss mask must mark the answers; that of example {index} marks none of "
            f"{len(ids)} tokens. Drop the example, or give it an answer."
        )
    if all(loss_mask):
        raise ValueError(
            f"the loss mask must leave out the prompt; that of example {index} marks all "
            f"{len(ids)} tokens, so the model would learn to ask. Take it from encode_example."
        )
    if loss_mask[0]:
        raise ValueError(
            "the first token of an example cannot be a target, for nothing of it comes before; "
            f"example {index} marks it. In a row it would be predicted from another dialog."
        )


def shorten(example: Example, longest: int) -> Example | None:
    """Cut an example after the last answer that ends within `longest` tokens; None: none does.

    No answer is ever cut inside, and no token is overwritten: an answer that was cut would teach
    to stop in the middle, or never to stop.
    """
    ids, loss_mask = example
    if len(ids) <= longest:
        return example
    ends = [t + 1 for t in range(longest) if loss_mask[t] and not loss_mask[t + 1]]
    return (ids[: ends[-1]], loss_mask[: ends[-1]]) if ends else None


class Shortened(NamedTuple):
    """Examples that fit, and what became of the others."""

    examples: list[Example]
    n_shortened: int
    n_dropped: int


def shorten_all(examples: Sequence[Example], longest: int) -> Shortened:
    """Check and `shorten` every example; those of which nothing is left are counted.

    Raises:
        ValueError: as in `check_example`.
    """
    for index, example in enumerate(examples):
        check_example(example, index)
    cut = [shorten(example, longest) for example in examples]
    kept = [example for example in cut if example is not None]
    n_whole = sum(len(ids) <= longest for ids, _ in examples)
    return Shortened(kept, len(kept) - n_whole, len(cut) - len(kept))


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of indices: each item goes into the first row that still has room for it.

    Raises:
        ValueError: An item is longer than a row.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"items must fit {capacity}; the longest has {max(lengths)}.")
    rows: list[list[int]] = []
    room = np.full(len(lengths), capacity)
    for index, length in enumerate(lengths):
        row = int(np.argmax(room[: len(rows) + 1] >= length))  # the one after the last is empty
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        room[row] -= length
    return rows


class PackedDialogs:
    """Examples laid whole into rows of `seq_len + 1` ids; the last of a row is a target only.

    An example longer than a row is cut after the last answer that fits whole. One whose first
    answer does not fit is left out. Both are counted, see `counts`.
    """

    def __init__(self, examples: Sequence[Example], *, seq_len: int, seed: int = 0):
        width = seq_len + 1
        kept, self.n_shortened, self.n_dropped = shorten_all(examples, width)
        if not kept:
            raise ValueError(
                f"of {len(examples)} examples none has an answer that ends within {width} "
                "tokens, so there is nothing to learn from. Raise seq_len."
            )
        self.seed = seed
        self.n_dialogs = len(kept)
        order = np.random.default_rng(rng.seed_from(seed, "pack")).permutation(len(kept))
        shuffled = [kept[index] for index in order]
        rows = first_fit([len(ids) for ids, _ in shuffled], width)
        self.ids = np.full((len(rows), width), PAD_ID, dtype=np.int64)
        self.loss_mask = np.zeros((len(rows), width), dtype=bool)
        self.document = np.full((len(rows), width), -1, dtype=np.int64)
        for row, members in enumerate(rows):
            begin = 0
            for number, member in enumerate(members):
                ids, loss_mask = shuffled[member]
                part = slice(begin, begin + len(ids))
                self.ids[row, part], self.loss_mask[row, part] = ids, loss_mask
                self.document[row, part] = number
                begin += len(ids)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """Number of tokens that are learned from."""
        return int(self.loss_mask.sum())

    def counts(self) -> dict[str, int]:
        """Return what became of the examples, for the log: nothing is left out silently."""
        return {
            "dialogs": self.n_dialogs,
            "shortened": self.n_shortened,
            "dropped": self.n_dropped,
            "rows": self.n_rows,
            "targets": self.n_targets,
            "padding": int((self.document < 0).sum()),
        }

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return into how many batches of at most `batch_size` rows an epoch is divided."""
        return -(-self.n_rows // batch_size)

    def batches(self, *, batch_size: int, start: int = 0) -> Iterator[DialogBatch]:
        """Yield batch `start`, `start + 1`, ... without end, reshuffling the rows every epoch.

        Every row comes once an epoch. The batches of an epoch differ by one row at most, so
        that no step rests on a few leftover rows.
        """
        per_epoch, current = self.batches_per_epoch(batch_size), -1
        parts: list[np.ndarray] = []
        while True:
            number, within = divmod(start, per_epoch)
            if number != current:
                source = np.random.default_rng(rng.seed_from(self.seed, "epoch", number))
                parts = np.array_split(source.permutation(self.n_rows), per_epoch)
                current = number
            rows = parts[within]
            yield DialogBatch(
                torch.from_numpy(self.ids[rows]),
                torch.from_numpy(self.loss_mask[rows]),
                torch.from_numpy(self.document[rows]),
            )
            start += 1
