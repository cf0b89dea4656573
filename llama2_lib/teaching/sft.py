"""Checks of the loss mask, the loss and the rows of fine-tuning, and the mistakes they recognise.

In all of them a mask marks TARGETS: mask[t] says that token t is to be predicted.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2_lib import rng
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.teaching.diagnosis import diagnose

Turn = tuple[Sequence[int], Sequence[int]]
Mask = Callable[[Sequence[Turn], int, int], tuple[Sequence[int], Sequence[bool]]]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Row = Callable[[Sequence[tuple[Sequence[int], Sequence[bool]]], int], tuple[Tensor, Tensor, Tensor]]

BOS, EOS, PAD = 1, 2, 0


def _lay_out(
    turns: Sequence[Turn],
    bos: int,
    eos: int,
    *,
    marks: str = "...xx",
    move: int = 0,
    only_last: bool = False,
) -> tuple[list[int], list[bool]]:
    """Lay turns out; `marks` says of BOS, prompt, its last token, answer and EOS what is a target.

    Args:
        turns: Prompt and answer of each.
        bos: Begins every turn.
        eos: Ends every turn.
        marks: One letter each, x for a target.
        move: How many places the mask is moved to the right.
        only_last: Whether only the last turn has targets.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for index, (prompt, answer) in enumerate(turns):
        ids += [bos, *prompt, *answer, eos]
        repeated = (1, len(prompt) - 1, 1, len(answer), 1)
        own = [m == "x" for m, n in zip(marks, repeated, strict=True) for _ in range(n)]
        mask += own if index == len(turns) - 1 or not only_last else [False] * len(own)
    moved = [mask[t - move] if 0 <= t - move < len(mask) else False for t in range(len(mask))]
    return ids, moved


MASK_MISTAKES: dict[str, Mask] = {
    "everything is a target, the user's words too": partial(_lay_out, marks="xxxxx"),
    "everything but BOS is a target, the user's words too": partial(_lay_out, marks=".xxxx"),
    "the mask is one too early: it begins at the last token of the prompt and leaves out EOS": (
        partial(_lay_out, move=-1)
    ),
    "the mask is one too late: the first token of each answer is left out": partial(
        _lay_out, move=1
    ),
    "the last token of the prompt is a target too": partial(_lay_out, marks="..xxx"),
    "EOS is not a target, so the model never learns to stop": partial(_lay_out, marks="...x."),
    "BOS is a target, though nothing of the dialog comes before it": partial(
        _lay_out, marks="x..xx"
    ),
    "only the last answer is a target (that is Ghost Attention's mask)": partial(
        _lay_out, only_last=True
    ),
    "the mask is upside down": partial(_lay_out, marks="xxx.."),
}


def loss_mask(candidate: Mask) -> None:
    """Check `candidate(turns, bos, eos)`: ids and mask of a dialog.

    A turn is a pair of lists of ids, prompt and answer, neither with BOS or EOS.
    """
    turns = [([11, 12, 13, 14], [21, 22]), ([15, 16], [23, 24, 25]), ([17, 18, 19], [26])]
    ids, expected = _lay_out(turns, BOS, EOS)
    actual_ids, actual = candidate(turns, BOS, EOS)
    if list(actual_ids) != ids:
        raise CheckFailed(f"the ids must be {ids}; got {list(actual_ids)}.")
    wrong = {
        name: partial(lambda f: torch.tensor(f(turns, BOS, EOS)[1]), f)
        for name, f in MASK_MISTAKES.items()
    }
    diagnose(torch.as_tensor(actual).bool(), torch.tensor(expected), wrong, rtol=0, atol=0)


def _masked(
    logits: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    counted: Callable[[Tensor, Tensor], Tensor] = lambda mask, ids: mask[:, 1:],
    by: str = "targets",
) -> Tensor:
    keep = counted(mask, ids)
    nats = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    nats = nats.view_as(keep) * keep
    if by == "rows":
        return (nats.sum(1) / keep.sum(1)).mean()
    divisors = {"targets": keep.sum(), "tokens": torch.tensor(keep.numel()), "none": 1}
    return nats.sum() / divisors[by]


LOSS_MISTAKES: dict[str, Loss] = {
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
        _masked, by="rows"
    ),
    "the sum is divided by all tokens, not by the targets": partial(_masked, by="tokens"),
    "the loss is summed, not averaged over the targets": partial(_masked, by="none"),
    "padding is counted as a target": partial(
        _masked, counted=lambda mask, ids: mask[:, 1:] | (ids[:, 1:] == PAD)
    ),
    "the mask is upside down": partial(_masked, counted=lambda mask, ids: ~mask[:, 1:]),
}


def masked_loss(candidate: Loss) -> None:
    """Check `candidate(logits, ids, mask)`: nats per target; `logits` are of all but the last.

    Id 0 is padding, which stands at the end of rows.
    """
    generator = rng.generator(0, "check", "sft loss")
    logits = 2 * torch.randn(3, 8, 13, generator=generator)
    ids = torch.randint(3, 13, (3, 9), generator=generator)
    ids[1, 7:] = ids[2, 6:] = PAD
    rows = ("...xxx.xx", "..xxxxx..", "....xx...")
    mask = torch.tensor([[letter == "x" for letter in row] for row in rows])
    wrong = {name: partial(f, logits, ids, mask) for name, f in LOSS_MISTAKES.items()}
    diagnose(candidate(logits, ids, mask), _masked(logits, ids, mask), wrong)


def _one_row(
    examples: Sequence[tuple[Sequence[int], Sequence[bool]]],
    length: int,
    *,
    border: bool = False,
    padding: bool = False,
    one_document: bool = False,
    padding_belongs: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask, document = (torch.full((length,), value) for value in (PAD, 0, len(examples)))
    begin = 0
    for number, (own_ids, own_mask) in enumerate(examples):
        part = slice(begin, begin + len(own_ids))
        ids[part], mask[part] = torch.tensor(own_ids), torch.tensor(own_mask).long()
        document[part] = number
        mask[begin] |= int(border and begin > 0)
        begin += len(own_ids)
    if padding:
        mask[begin:] = 1
    if one_document:
        document[:begin] = 0
    if padding_belongs:
        document[begin:] = len(examples) - 1
    return ids, mask.bool(), document


ROW_MISTAKES: dict[str, Row] = {
    "the first token of a dialog is a target, predicted from the dialog before it": partial(
        _one_row, border=True
    ),
    "padding is a target": partial(_one_row, padding=True),
    "all dialogs carry one number, so they see each other": partial(_one_row, one_document=True),
    "padding carries the number of the last dialog": partial(_one_row, padding_belongs=True),
}


def _comparable(row: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Ids, mask, and where the number of the dialog changes: the numbers themselves are free."""
    ids, mask, document = (torch.as_tensor(part).long() for part in row)
    changes = (document[1:] != document[:-1]).long()
    return torch.cat([ids, mask, changes])


def packed_row(candidate: Row) -> None:
    """Check `candidate(examples, length)`: ids, mask and dialog number of each place of one row.

    The examples lie in order, whole; what is left is padding with id 0 and a number of its own.
    """
    first = _lay_out([([11, 12], [21])], BOS, EOS)
    second = _lay_out([([13], [22, 23]), ([14, 15, 16], [24])], BOS, EOS)
    third = _lay_out([([17, 18, 19], [25, 26])], BOS, EOS)
    examples, length = [first, second, third], 28
    row = candidate(examples, length)
    shapes = [tuple(torch.as_tensor(part).shape) for part in row]
    if shapes != [(length,)] * 3:
        raise CheckFailed(f"expected three tensors of shape ({length},); got {shapes}.")
    wrong = {
        name: partial(lambda f: _comparable(f(examples, length)), f)
        for name, f in ROW_MISTAKES.items()
    }
    expected = _comparable(_one_row(examples, length))
    diagnose(_comparable(row), expected, wrong, rtol=0, atol=0)
