"""Checks of the loss, packing and accumulation of pretraining, and the mistakes they recognise."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2_lib import rng
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.teaching.diagnosis import diagnose
from llama2_lib.training.batches import isolate

Loss = Callable[[Tensor, Tensor], Tensor]
PackedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
Pack = Callable[[Sequence[Sequence[int]], int], Tensor]
Isolate = Callable[[Tensor], tuple[Tensor, Tensor]]
Gather = Callable[[Sequence[Tensor], Sequence[int]], Tensor]


def _nats(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def _picked(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids[:, 1:, None])


NEXT_TOKEN_MISTAKES: dict[str, Loss] = {
    "each position is scored on its own token, not on the next": lambda logits, ids: _nats(
        logits, ids[:, :-1]
    ),
    "the targets are shifted twice, so each position is scored on the token after the next": (
        lambda logits, ids: _nats(logits[:, :-1], ids[:, 2:])
    ),
    "the loss is in bits, not in nats": lambda logits, ids: _nats(logits, ids[:, 1:]) / math.log(2),
    "the loss is summed, not averaged over the tokens": lambda logits, ids: _nats(
        logits, ids[:, 1:], "sum"
    ),
    "the sum is divided by the rows, not by the tokens": lambda logits, ids: (
        _nats(logits, ids[:, 1:], "sum") / len(ids)
    ),
    "logits are used as if they were log-probabilities (no softmax)": lambda logits, ids: (
        -_picked(logits, ids).mean()
    ),
    "the probabilities are averaged before the logarithm": lambda logits, ids: (
        -_picked(logits.softmax(-1), ids).mean().log()
    ),
    "the sign is wrong: this is the log-likelihood": lambda logits, ids: -_nats(logits, ids[:, 1:]),
}


def next_token(candidate: Loss) -> None:
    """Check `candidate(logits, ids)`: nats per token; `ids` is one longer than the logits."""
    generator = rng.generator(0, "check", "next token")
    logits = 2 * torch.randn(3, 6, 11, generator=generator)
    ids = torch.randint(11, (3, 7), generator=generator)
    wrong = {name: partial(f, logits, ids) for name, f in NEXT_TOKEN_MISTAKES.items()}
    diagnose(candidate(logits, ids), _nats(logits, ids[:, 1:]), wrong)


def _masked(
    logits: Tensor, ids: Tensor, document: Tensor, *, counted: Callable[[Tensor], Tensor], by: str
) -> Tensor:
    """Return the loss over `counted(same document as the token before)`, divided in some way."""
    keep = counted(document[:, 1:] == document[:, :-1])
    nats = _nats(logits, ids[:, 1:], "none").view_as(keep) * keep
    if by == "rows":
        return (nats.sum(1) / keep.sum(1)).mean()
    return nats.sum() / (keep.sum() if by == "counted" else keep.numel())


PACKED_MISTAKES: dict[str, PackedLoss] = {
    "the first token of a document is counted, though nothing of it comes before": partial(
        _masked, counted=torch.ones_like, by="counted"
    ),
    "the mask is one too early: the last token of a document is left out, not the first": partial(
        _masked,
        counted=lambda same: torch.cat([same[:, 1:], same.new_ones(len(same), 1)], 1),
        by="counted",
    ),
    "what is left out is still counted in the divisor": partial(
        _masked, counted=lambda same: same, by="all"
    ),
    "each row is averaged by itself, so a token of a row with fewer targets weighs more": partial(
        _masked, counted=lambda same: same, by="rows"
    ),
    "the mask is upside down": partial(_masked, counted=torch.logical_not, by="counted"),
}


def packed_loss(candidate: PackedLoss) -> None:
    """Check `candidate(logits, ids, document)`: nats per token that has a token of its own
    document before it."""
    generator = rng.generator(0, "check", "packed loss")
    logits = 2 * torch.randn(2, 9, 7, generator=generator)
    ids = torch.randint(7, (2, 10), generator=generator)
    document = torch.tensor([[4, 4, 4, 9, 9, 9, 9, 9, 9, 9], [0, 0, 2, 2, 5, 5, 5, 1, 1, 1]])
    expected = _masked(logits, ids, document, counted=lambda same: same, by="counted")
    wrong = {name: partial(f, logits, ids, document) for name, f in PACKED_MISTAKES.items()}
    diagnose(candidate(logits, ids, document), expected, wrong)


def _stream(documents: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([id for document in documents for id in document])


def _rows(documents: Sequence[Sequence[int]], seq_len: int, *, stride: int, width: int) -> Tensor:
    """Return rows `seq_len + width` long that begin every `seq_len + stride` tokens."""
    return _stream(documents).unfold(0, seq_len + width, seq_len + stride)


def _a_row_each(documents: Sequence[Sequence[int]], seq_len: int) -> Tensor:
    rows = [[*document, *[0] * (seq_len + 1)][: seq_len + 1] for document in documents]
    return torch.tensor(rows)


PACK_MISTAKES: dict[str, Pack] = {
    "rows share no token, so the first token of each row is never a target": partial(
        _rows, stride=1, width=1
    ),
    "rows are seq_len long, so the last position has no target": partial(_rows, stride=0, width=0),
    "rows overlap by two tokens, so that some tokens are targets twice": partial(
        _rows, stride=-1, width=1
    ),
    "each document has a row of its own: short ones are padded, long ones are cut": _a_row_each,
    "the documents come in reverse order": lambda documents, seq_len: _rows(
        documents[::-1], seq_len, stride=0, width=1
    ),
}


def pack(candidate: Pack) -> None:
    """Check `candidate(documents, seq_len)`: rows of seq_len + 1 ids, each beginning with the
    last token of the row before; what does not fill a row is left out."""
    lengths = [7, 3, 11, 2, 9, 6]
    offsets = [sum(lengths[:index]) for index in range(len(lengths))]
    documents = [
        list(range(begin + 1, begin + 1 + length))
        for begin, length in zip(offsets, lengths, strict=True)
    ]
    wrong = {name: partial(f, documents, 5) for name, f in PACK_MISTAKES.items()}
    actual = candidate(documents, 5)
    for mistake, rows in wrong.items():  # these differ in shape, which says less than the name
        if isinstance(actual, Tensor) and torch.equal(actual, rows()):
            raise CheckFailed(f"the rows are not right: it looks as if {mistake}.")
    diagnose(actual, _rows(documents, 5, stride=0, width=1), {}, rtol=0, atol=0)


def _isolated(
    document: Tensor, *, restart: bool = True, causal: bool = True, same: bool = True, own: int = 0
) -> tuple[Tensor, Tensor]:
    positions, visible = isolate(document)
    n = document.shape[1]
    if not restart:
        positions = torch.arange(n).expand_as(document)
    if not same:
        visible = torch.ones_like(visible).tril()
    if not causal:
        visible = document[:, :, None] == document[:, None, :]
    return positions, visible.tril(own) if own else visible


ISOLATE_MISTAKES: dict[str, Isolate] = {
    "positions run on through the pack instead of restarting": partial(_isolated, restart=False),
    "tokens see the later tokens of their document: the causal part is missing": partial(
        _isolated, causal=False
    ),
    "tokens see the documents before theirs: only the causal part is there": partial(
        _isolated, same=False
    ),
    "a token does not see itself": partial(_isolated, own=-1),
}


def isolation(candidate: Isolate) -> None:
    """Check `candidate(document)`: rotary positions, and what may be seen (row looks at column)."""
    document = torch.tensor([[3, 3, 3, 3, 0, 0, 8, 8, 8], [5, 1, 1, 1, 1, 1, 1, 4, 4]])

    def flat(pair: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat([pair[0].flatten(), pair[1].flatten()]).long()

    wrong = {name: partial(lambda f: flat(f(document)), f) for name, f in ISOLATE_MISTAKES.items()}
    positions, visible = candidate(document)
    shapes = tuple(positions.shape), tuple(visible.shape)
    if shapes != ((2, 9), (2, 9, 9)):
        raise CheckFailed(f"expected shapes (2, 9) and (2, 9, 9); got {shapes[0]} and {shapes[1]}.")
    diagnose(flat((positions, visible)), flat(isolate(document)), wrong, rtol=0, atol=0)


GATHER_MISTAKES: dict[str, Gather] = {
    "the mean of the micro-batches' means is taken, so short ones weigh too much": lambda g, n: (
        sum((a / b for a, b in zip(g, n, strict=True)), torch.zeros_like(g[0])) / len(g)
    ),
    "the means of the micro-batches are added, which makes the step as many times too large": (
        lambda g, n: sum((a / b for a, b in zip(g, n, strict=True)), torch.zeros_like(g[0]))
    ),
    "the sum is divided by the number of micro-batches, not of tokens": lambda g, n: torch.stack(
        list(g)
    ).mean(0),
    "only the last micro-batch counts: the gradient is cleared between them": lambda g, n: (
        g[-1] / n[-1]
    ),
    "the sum is not divided at all": lambda g, n: torch.stack(list(g)).sum(0),
}


def accumulation(candidate: Gather) -> None:
    """Check `candidate(gradients, counts)`: the gradient of one step from the gradients of
    summed losses and the tokens that each of them counted."""
    gradients = list(torch.randn(3, 4, 5, generator=rng.generator(0, "check", "accumulation")))
    counts = [12, 3, 7]
    wrong = {name: partial(f, gradients, counts) for name, f in GATHER_MISTAKES.items()}
    diagnose(candidate(gradients, counts), torch.stack(gradients).sum(0) / sum(counts), wrong)
