"""Batches of documents, dialogs and preference pairs.

A batch is a pure function of its number, so a run resumes by asking for the next number.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llama2_lib import rng
from llama2_lib.model.transformer import Ids, branched, masked, packed

Epoch = TypeVar("Epoch")


def epochs(
    prepare: Callable[[int], Epoch], batches_per_epoch: int, start: int
) -> Iterator[tuple[Epoch, int]]:
    """Yield, for batch `start`, `start + 1`, ... without end, its epoch and its place in it.

    An epoch is prepared once, when its first batch is asked for.
    """
    number, place = divmod(start, batches_per_epoch)
    while True:
        epoch = prepare(number)
        yield from ((epoch, later) for later in range(place, batches_per_epoch))
        number, place = number + 1, 0


# Documents, laid end to end and cut into rows of one length (paper section 2.2)


class PackedBatch(NamedTuple):
    """Rows for next-token prediction, one token longer than the model's input."""

    ids: Int[Tensor, "batch seq+1"]
    document: Int[Tensor, "batch seq+1"]
    """Number of the document each token belongs to, unique within its row; in a whole batch, whose
    documents see each other, that of the row."""


class PackedCorpus:
    """Documents as one array of ids and the offsets at which each begins."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray):
        assert offsets[0] == 0 < offsets[-1] == len(ids), "documents must fill the array"
        self.ids, self.offsets = ids, offsets
        self.n_documents = len(offsets) - 1
        self.n_tokens = len(ids)
        """BOS and EOS of each document included."""

    def epoch(self, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return, of the documents of epoch `number` as they are shuffled, ends and shifts.

        A shift leads from where a document stands in the epoch to where it stands in the array.
        """
        source = np.random.default_rng(rng.seed_from(seed, "epoch", number))
        order = source.permutation(self.n_documents)
        ends = np.diff(self.offsets)[order].cumsum()
        return ends, self.offsets[1:][order] - ends

    def tokens(
        self, epoch: tuple[np.ndarray, np.ndarray], place: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids at some places of an epoch, and each one's document there.

        Only these are read, so that the array may be a file larger than the memory.
        """
        ends, shifts = epoch
        document = np.searchsorted(ends, place, side="right")
        return np.asarray(self.ids[place + shifts[document]]), document

    def batches(
        self, *, seed: int, batch_size: int, seq_len: int, start: int = 0, whole_every: int = 0
    ) -> Iterator[PackedBatch]:
        """Yield batch `start`, `start + 1`, ... without end, reshuffling every epoch.

        Of every `whole_every` batches the last is whole: its rows count as one document each.
        A row begins with the last token of the row before it, so that every token is a target
        once an epoch. The few tokens that do not fill a last batch wait for the next shuffle.
        """
        per_epoch = (self.n_tokens - 1) // (batch_size * seq_len)
        if per_epoch == 0:
            raise ValueError(
                f"a corpus must fill one batch of {batch_size} x {seq_len} tokens; this one has "
                f"{self.n_tokens}. Make it larger or the batch smaller."
            )
        rows = np.arange(batch_size)[:, None] * seq_len + np.arange(seq_len + 1)
        stream = epochs(partial(self.epoch, seed), per_epoch, start)
        for number, (epoch, place) in enumerate(stream, start + 1):
            ids, document = self.tokens(epoch, place * batch_size * seq_len + rows)
            whole = whole_every > 0 and number % whole_every == 0
            yield PackedBatch(
                torch.from_numpy(ids.astype(np.int64)),
                torch.from_numpy(0 * document if whole else document),
            )


def isolate(document: Ids) -> tuple[Ids, Bool[Tensor, "batch seq seq"]]:
    """Return rotary positions that restart, and a mask that ends, at document boundaries.

    With them a document in a pack gets the logits that it would get alone.
    """
    return _restarted(document), (document[:, :, None] == document[:, None, :]).tril()


def apart(document: Ids) -> dict[str, Any]:
    """Return the arguments with which a `Transformer` reads every document as if it were alone.

    On a CPU the documents are `packed`, so that attention costs the squares of the documents and
    not of the rows. Elsewhere they are `masked`: the shapes stay the same, which `torch.compile`
    needs. The logits are the same up to rounding.
    """
    if document.device.type != "cpu":
        positions, visible = isolate(document)
        return {"positions": positions, "attend": masked(visible)}
    positions = _restarted(document)
    begins = (positions == 0).flatten().nonzero()[:, 0].tolist()
    lengths = np.diff([*begins, document.numel()]).tolist()
    return {"positions": positions, "attend": packed(lengths)}


def _restarted(document: Ids) -> Ids:
    """Return positions that start from 0 in every document; a row begins one."""
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    index = torch.arange(document.shape[1], device=document.device).expand_as(document)
    return index - torch.where(begins, index, 0).cummax(dim=1).values


# Dialogs, whole and side by side in rows of one length (paper section 3.1)

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
    """Refuse, by its index, an example that teaches nothing, or to predict from nothing."""
    ids, loss_mask = example
    assert len(ids) == len(loss_mask), f"{len(ids)} ids and {len(loss_mask)} marks"
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

    An answer that was cut inside would teach to stop in the middle, or never to stop.
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
    """Check and `shorten` every example; those of which nothing is left are counted."""
    for index, example in enumerate(examples):
        check_example(example, index)
    cut = [shorten(example, longest) for example in examples]
    fitting = [example for example in cut if example is not None]
    n_whole = sum(len(ids) <= longest for ids, _ in examples)
    return Shortened(fitting, len(fitting) - n_whole, len(cut) - len(fitting))


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of indices: each item goes into the first row that still has room for it."""
    assert max(lengths, default=0) <= capacity, f"an item is longer than a row of {capacity}"
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

    Pretraining cuts documents wherever a row ends. Here an example stays in one piece, since an
    answer without its question teaches nothing. What is left of a row is padding: at the end,
    where causal attention never looks, and never a target, so its id does not matter. Examples
    longer than a row are shortened, or left out, and counted.
    """

    def __init__(self, examples: Sequence[Example], *, seq_len: int, seed: int = 0):
        width = seq_len + 1
        fitting, self.n_shortened, self.n_dropped = shorten_all(examples, width)
        if not fitting:
            raise ValueError(
                f"of {len(examples)} examples none has an answer that ends within {width} "
                "tokens, so there is nothing to learn from. Raise seq_len."
            )
        self.seed = seed
        self.n_dialogs = len(fitting)
        order = np.random.default_rng(rng.seed_from(seed, "pack")).permutation(len(fitting))
        shuffled = [fitting[index] for index in order]
        rows = first_fit([len(ids) for ids, _ in shuffled], width)
        self.n_rows = len(rows)
        self.ids = np.full((len(rows), width), PAD_ID, dtype=np.int64)
        self.loss_mask = np.zeros((len(rows), width), dtype=bool)
        self.document = np.full((len(rows), width), -1, dtype=np.int64)
        for row, members in enumerate(rows):
            end = 0
            for number, member in enumerate(members):
                ids, loss_mask = shuffled[member]
                begin, end = end, end + len(ids)
                self.ids[row, begin:end], self.loss_mask[row, begin:end] = ids, loss_mask
                self.document[row, begin:end] = number

    def counts(self) -> dict[str, int]:
        """Return what became of the examples, for the log: nothing is left out silently."""
        return {
            "dialogs": self.n_dialogs,
            "shortened": self.n_shortened,
            "dropped": self.n_dropped,
            "rows": self.n_rows,
            "targets": int(self.loss_mask.sum()),
            "padding": int((self.document < 0).sum()),
        }

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return into how many batches of at most `batch_size` rows an epoch is divided."""
        return -(-self.n_rows // batch_size)

    def batches(self, *, batch_size: int, start: int = 0) -> Iterator[DialogBatch]:
        """Yield batch `start`, `start + 1`, ... without end; every row comes once an epoch.

        The batches of an epoch differ by one row at most: no step rests on a few leftover rows.
        """
        per_epoch = self.batches_per_epoch(batch_size)

        def divided(epoch: int) -> list[np.ndarray]:
            source = np.random.default_rng(rng.seed_from(self.seed, "epoch", epoch))
            return np.array_split(source.permutation(self.n_rows), per_epoch)

        columns = (self.ids, self.loss_mask, self.document)
        for parts, place in epochs(divided, per_epoch, start):
            yield DialogBatch(*(torch.from_numpy(column[parts[place]]) for column in columns))


# Preference pairs: both answers in one row (paper section 3.2.2)

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
    """One pair a row: what both answers begin with, the rest of the chosen one, of the other."""

    ids: Int[Tensor, "pairs seq"]
    """Padded on the right."""
    lengths: Int[Tensor, "pairs 3"]
    """Tokens of the common beginning, which is read once, and of the two rests."""
    margin: Float[Tensor, " pairs"]
    is_safe: Bool[Tensor, "pairs 2"]
    """Safety labels of chosen and rejected; False where there is none."""
    labelled: Bool[Tensor, " pairs"]
    per_label: Float[Tensor, " pairs"]
    """Pairs of the whole batch over labelled answers in it, the same in every row."""

    def branches(self) -> dict[str, Any]:
        """Return the arguments with which a model reads each answer as if it stood alone."""
        common, first, second = self.lengths.T[:, :, None]
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        positions = place - first * (place >= common + first)
        positions = positions.masked_fill(place >= common + first + second, 0)
        on_cpu = self.ids.device.type == "cpu"  # elsewhere the shapes stay the same, as in `apart`
        attend = branched(self.lengths.tolist()) if on_cpu else masked(self.visible())
        return {"positions": positions, "attend": attend}

    def visible(self) -> Bool[Tensor, "pairs seq seq"]:
        """Return what `branched` lets a token (row) see, as a mask; padding sees what it likes."""
        common, first, _ = self.lengths.T[:, :, None]
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        in_first = (place >= common) & (place < common + first)
        behind = place >= common + first
        return (place[:, None] >= place) & ~(behind[:, :, None] & in_first[:, None])

    def ends(self) -> Int[Tensor, "pairs 2"]:
        """Return the places of the last tokens of the chosen and of the rejected answer."""
        return self.lengths.cumsum(dim=1)[:, 1:] - 1


class PairedAnswers:
    """Batches of pairs; two kinds are left out and counted.

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
        kept = len(self.pairs)
        return {"pairs": kept, "identical": self.n_identical, "too_long": self.n_too_long}

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return into how many batches of at most `batch_size` pairs an epoch is divided."""
        return -(-len(self.pairs) // batch_size)

    def batches(self, *, batch_size: int, start: int = 0) -> Iterator[PairBatch]:
        """Yield batch `start`, `start + 1`, ... without end; every pair comes once an epoch."""
        per_epoch = self.batches_per_epoch(batch_size)
        for parts, place in epochs(partial(self._divided, batch_size), per_epoch, start):
            yield collate([self.pairs[index] for index in parts[place]])

    def _divided(self, batch_size: int, epoch: int) -> list[np.ndarray]:
        """Return the pairs of each batch: of similar length, in random order."""
        source = np.random.default_rng(rng.seed_from(self.seed, "pairs", epoch))
        order = source.permutation(len(self.pairs))
        lengths = np.array([sum(_branches(pair)) for pair in self.pairs])[order]
        group = np.arange(len(order)) // (SORTED_TOGETHER * batch_size)
        ordered = order[np.lexsort((lengths, group))]
        parts = np.array_split(ordered, self.batches_per_epoch(batch_size))
        return [parts[index] for index in source.permutation(len(parts))]


def _branches(pair: EncodedPair) -> tuple[int, int, int]:
    """Return the tokens that both answers begin with, prompt included, and those of the rests."""
    alike = zip(pair.chosen, pair.rejected, strict=False)
    shorter = min(len(pair.chosen), len(pair.rejected))
    common = next((at for at, (a, b) in enumerate(alike) if a != b), shorter - 1)
    return common, len(pair.chosen) - common, len(pair.rejected) - common


def collate(pairs: Sequence[EncodedPair]) -> PairBatch:
    """Lay pairs into one batch, padded on the right to the longest row."""
    lengths = [_branches(pair) for pair in pairs]
    rows = [p.chosen + p.rejected[common:] for p, (common, *_) in zip(pairs, lengths, strict=True)]
    n_labelled = sum(pair.safe is not None for pair in pairs)
    return PairBatch(
        pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True),
        torch.tensor(lengths),
        torch.tensor([pair.margin for pair in pairs]),
        torch.tensor([pair.safe or (False, False) for pair in pairs]),
        torch.tensor([pair.safe is not None for pair in pairs]),
        torch.full((len(pairs),), len(pairs) / max(1, 2 * n_labelled)),
    )
