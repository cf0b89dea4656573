"""Checks of the loss mask, the loss and the rows of fine-tuning, and the mistakes they recognise.

In all of them a mask marks TARGETS: mask[t] says that token t is to be predicted.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2_lib import rng
from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, diagnose, on

Turn = tuple[Sequence[int], Sequence[int]]

BOS, EOS, PAD = 1, 2, 0


def lay_out(
    turns: Sequence[Turn],
    bos: int,
    eos: int,
    *,
    marks: str = "...xx",
    move: int = 0,
    only_last: bool = False,
) -> tuple[list[int], list[bool]]:
    """Lay turns of prompt and answer out, and say what is a target of the loss.

    `marks` has an x for a target: BOS, the prompt, its last token, the answer, EOS. The mask can be
    moved to the right, or kept for the last turn only.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for index, (prompt, answer) in enumerate(turns):
        ids += [bos, *prompt, *answer, eos]
        repeated = (1, len(prompt) - 1, 1, len(answer), 1)
        targets = [m == "x" for m, n in zip(marks, repeated, strict=True) for _ in range(n)]
        mask += targets if index == len(turns) - 1 or not only_last else [False] * len(targets)
    moved = [mask[t - move] if 0 <= t - move < len(mask) else False for t in range(len(mask))]
    return ids, moved


def _marked(turns: Sequence[Turn], bos: int, eos: int, is_target: Code) -> tuple[list, list]:
    """Lay turns out and decide again of each place, its id and its mark."""
    ids, mask = lay_out(turns, bos, eos)
    return ids, [bool(is_target(t, id, x)) for t, (id, x) in enumerate(zip(ids, mask, strict=True))]


MASK_MISTAKES: Mistakes = {
    "everything is a target, the user's words too": partial(lay_out, marks="xxxxx"),
    "everything but BOS is a target, the user's words too": partial(lay_out, marks=".xxxx"),
    "the mask is one too early: it begins at the last token of the prompt and leaves out EOS": (
        partial(lay_out, move=-1)
    ),
    "the mask is one too late: the first token of each answer is left out": partial(
        lay_out, move=1
    ),
    "the last token of the prompt is a target too": partial(lay_out, marks="..xxx"),
    "EOS is not a target, so the model never learns to stop": partial(lay_out, marks="...x."),
    "BOS is a target, though nothing of the dialog comes before it": partial(
        lay_out, marks="x..xx"
    ),
    "only the last answer is a target (that is Ghost Attention's mask)": partial(
        lay_out, only_last=True
    ),
    "the mask is upside down": partial(lay_out, marks="xxx.."),
    "the mask ends where the next prompt begins, so the next turn's BOS is a target too": (
        lambda turns, bos, eos: _marked(turns, bos, eos, lambda t, id, x: x or (id == bos and t))
    ),
    "only the first answer is a target": lambda turns, bos, eos: _marked(
        turns, bos, eos, lambda t, id, x: x and t < len(lay_out(turns[:1], bos, eos)[0])
    ),
    "nothing is a target": lambda turns, bos, eos: _marked(turns, bos, eos, lambda t, id, x: False),
}


def loss_mask(candidate: Code) -> None:
    """Check `candidate(turns, bos, eos)`: ids and mask of a dialog.

    A turn is a pair of lists of ids, prompt and answer, neither with BOS or EOS.
    """
    turns = [([11, 12, 13, 14], [21, 22]), ([15, 16], [23, 24, 25]), ([17, 18, 19], [26])]
    wanted = lay_out(turns, BOS, EOS)[0]

    def run(lay: Code) -> Tensor:
        ids, mask = on(turns, BOS, EOS)(lay)
        if list(ids) != wanted:
            raise CheckFailed(f"the ids must be {wanted}; got {list(ids)}.")
        return torch.as_tensor(mask).bool()

    diagnose(run, candidate, run(lay_out), MASK_MISTAKES, rtol=0, atol=0)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.mT, targets, reduction="none")


def _picked(values: Tensor, targets: Tensor) -> Tensor:
    return values.gather(-1, targets[..., None])[..., 0]


def _masked(
    logits: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    loss: Code = _nats,
    targets: Code = lambda ids: ids[:, 1:],
    counted: Code = lambda mask, ids: mask[:, 1:],
    by: str = "targets",
) -> Tensor:
    """The mean of `loss` over what is counted, with the flaws that are asked for."""
    keep = counted(mask, ids)
    losses = loss(logits, targets(ids)) * keep
    if by == "each row":
        return (losses.sum(1) / keep.sum(1)).mean()
    divisors = {"targets": keep.sum(), "tokens": keep.numel(), "rows": len(ids), "none": 1}
    return losses.sum() / divisors[by]


_MASK = torch.tensor([[x == "x" for x in row] for row in ("...xxx.xx", "..xxxxx..", "....xx...")])
LOSS_MISTAKES: Mistakes = {
    "the loss is on every token, the mask is not used": partial(
        _masked, counted=lambda mask, ids: torch.ones_like(mask[:, 1:])
    ),
    "the mask is not shifted with the targets: it marks the tokens read, not those predicted": (
        partial(_masked, counted=lambda mask, ids: mask[:, :-1])
    ),
    "the mask is shifted twice": partial(
        _masked, counted=lambda mask, ids: F.pad(mask[:, 2:], (0, 1))
    ),
    "the mean of the rows' means is taken, so a short answer weighs more per token": partial(
        _masked, by="each row"
    ),
    "the sum is divided by the rows, not by the targets": partial(_masked, by="rows"),
    "the sum is divided by all tokens, not by the targets": partial(_masked, by="tokens"),
    "the loss is summed, not averaged over the targets": partial(_masked, by="none"),
    "padding is counted as a target": partial(
        _masked, counted=lambda mask, ids: mask[:, 1:] | (ids[:, 1:] == PAD)
    ),
    "the mask is upside down": partial(_masked, counted=lambda mask, ids: ~mask[:, 1:]),
    "each position is scored on its own token, not on the next": partial(
        _masked, targets=lambda ids: ids[:, :-1], counted=lambda mask, ids: mask[:, :-1]
    ),
    "each position is scored on its own token, though the mask is shifted": partial(
        _masked, targets=lambda ids: ids[:, :-1]
    ),
    "the sign is wrong: this is the log-likelihood, and training would lower it": partial(
        _masked, loss=lambda logits, targets: -_nats(logits, targets)
    ),
    "logits are used as if they were log-probabilities (no softmax)": partial(
        _masked, loss=lambda logits, targets: -_picked(logits, targets)
    ),
    "the probability is taken without its logarithm": partial(
        _masked, loss=lambda logits, targets: -_picked(logits.softmax(-1), targets)
    ),
    "1 - probability is taken, without a logarithm": partial(
        _masked, loss=lambda logits, targets: 1 - _picked(logits.softmax(-1), targets)
    ),
    "the softmax is taken twice; cross_entropy wants raw logits": partial(
        _masked, loss=lambda logits, targets: _nats(logits.softmax(-1), targets)
    ),
    "the softmax runs over the positions, not over the vocabulary": partial(
        _masked, loss=lambda logits, targets: -_picked(logits.log_softmax(1), targets)
    ),
    "what is no target becomes the padding id and is learned, not left out": partial(
        _masked,
        targets=lambda ids: ids[:, 1:] * _MASK[:, 1:],
        counted=lambda mask, ids: torch.ones_like(mask[:, 1:]),
    ),
    "the loss is in bits, not in nats": partial(
        _masked, loss=lambda logits, targets: _nats(logits, targets) / math.log(2)
    ),
}


def masked_loss(candidate: Code) -> None:
    """Check `candidate(logits, ids, mask)`: nats per target; `logits` are of all but the last.

    Id 0 is padding, which stands at the end of rows.
    """
    generator = rng.generator(0, "check", "sft loss")
    logits = 2 * torch.randn(3, 8, 13, generator=generator)
    ids = torch.randint(3, 13, (3, 9), generator=generator)
    ids[1, 7:] = ids[2, 6:] = PAD
    diagnose(on(logits, ids, _MASK), candidate, _masked(logits, ids, _MASK), LOSS_MISTAKES)


def _one_row(
    examples: Sequence[tuple[Sequence[int], Sequence[bool]]],
    length: int,
    *,
    border: bool = False,
    padding: bool = False,
    one_document: bool = False,
    padding_belongs: int | None = None,
    numbers: Code = lambda number: number,
) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask, document = (torch.full((length,), value) for value in (PAD, 0, len(examples)))
    begin = 0
    for number, (own_ids, own_mask) in enumerate(examples):
        part = slice(begin, begin + len(own_ids))
        ids[part], mask[part] = torch.tensor(own_ids), torch.tensor(own_mask).long()
        document[part] = numbers(number)
        mask[begin] |= int(border and begin > 0)
        begin += len(own_ids)
    if padding:
        mask[begin:] = 1
    if one_document:
        document[:begin] = 0
    if padding_belongs is not None:
        document[begin:] = padding_belongs % len(examples)
    return ids, mask.bool(), document


ROW_MISTAKES: Mistakes = {
    "the first token of a dialog is a target, predicted from the dialog before it": partial(
        _one_row, border=True
    ),
    "padding is a target": partial(_one_row, padding=True),
    "all dialogs carry one number, so they see each other": partial(_one_row, one_document=True),
    "padding carries the number of the last dialog": partial(_one_row, padding_belongs=-1),
    "padding carries the number of the first dialog": partial(_one_row, padding_belongs=0),
    "a number comes twice, so dialogs that are apart see each other": partial(
        _one_row, numbers=lambda number: number % 2
    ),
    "the dialogs come in reverse order": lambda examples, length: _one_row(examples[::-1], length),
}


def _comparable(row: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Ids, mask, and where each number first stands: the numbers themselves are free."""
    ids, mask, document = (torch.as_tensor(part).long() for part in row)
    first = (document[:, None] == document).int().argmax(dim=1)
    return torch.cat([ids, mask, first])


def packed_row(candidate: Code) -> None:
    """Check `candidate(examples, length)`: ids, mask and dialog number of each place of one row.

    The examples lie in order, whole; what is left is padding with id 0 and a number of its own.
    """
    first = lay_out([([11, 12], [21])], BOS, EOS)
    second = lay_out([([13], [22, 23]), ([14, 15, 16], [24])], BOS, EOS)
    third = lay_out([([17, 18, 19], [25, 26])], BOS, EOS)
    examples, length = [first, second, third], 28

    def run(lay: Code) -> Tensor:
        row = on(examples, length)(lay)
        shapes = [tuple(torch.as_tensor(part).shape) for part in row]
        if shapes != [(length,)] * 3:
            raise CheckFailed(f"expected three tensors of shape ({length},); got {shapes}.")
        return _comparable(row)

    diagnose(run, candidate, run(_one_row), ROW_MISTAKES, rtol=0, atol=0)
