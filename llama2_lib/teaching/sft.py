"""Checks of the loss mask, the loss and the rows of fine-tuning, and the mistakes they recognise.

In all of them a mask marks TARGETS: mask[t] says that token t is to be predicted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llama2_lib import rng
from llama2_lib.teaching.check import CheckFailed, Code, diagnose, on, parts, slips
from llama2_lib.teaching.pretraining import WRONG_SCORES

Turn = tuple[Sequence[int], Sequence[int]]

BOS, EOS, PAD = 1, 2, 0


def lay_out(
    turns: Sequence[Turn], bos: int, eos: int,
    *, marks: str = "...xx", move: int = 0, only: int | None = None,
) -> tuple[list[int], list[bool]]:  # fmt: skip
    """Lay turns of prompt and answer out, and say what is a target of the loss.

    `marks` has an x for a target: BOS, the prompt, its last token, the answer, EOS. The mask can be
    moved to the right, or kept for one turn only.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for index, (prompt, answer) in enumerate(turns):
        ids += [bos, *prompt, *answer, eos]
        counted = only is None or index == range(len(turns))[only]
        for mark, n in zip(marks, (1, len(prompt) - 1, 1, len(answer), 1), strict=True):
            mask += [counted and mark == "x"] * n
    return ids, [mask[t - move] if 0 <= t - move < len(mask) else False for t in range(len(mask))]


MASK_MISTAKES = slips(lay_out)("""
everything is a target, the user's words too || ...xx => xxxxx
everything but BOS is a target, the user's words too || ...xx => .xxxx
the last token of the prompt is a target too || ...xx => ..xxx
EOS is not a target, so the model never learns to stop || ...xx => ...x.
BOS is a target, though nothing of the dialog comes before it || ...xx => x..xx
the mask is upside down || ...xx => xxx..
nothing is a target || ...xx => .....
the mask is one too early: it begins at the last token of the prompt and leaves out EOS
    || move: int = 0 => move: int = -1
the mask is one too late: the first token of each answer is left out || int = 0 => int = 1
only the last answer is a target (that is Ghost Attention's mask) || = None => = -1
only the first answer is a target || = None => = 0
the mask ends where the next prompt begins, so the next turn's BOS is a target too
    || ...xx => x..xx ;; ids, [False, *mask[1:]]
""")


def loss_mask(candidate: Code) -> None:
    """Check `candidate(turns, bos, eos)`: ids and mask of a dialog; a turn is a pair of lists of
    ids, prompt and answer, neither with BOS or EOS."""
    turns = [([11, 12, 13, 14], [21, 22]), ([15, 16], [23, 24, 25]), ([17, 18, 19], [26])]
    wanted = lay_out(turns, BOS, EOS)[0]

    def run(lay: Code) -> Tensor:
        ids, mask = on(turns, BOS, EOS)(lay)
        if list(ids) != wanted:
            raise CheckFailed(f"the ids must be {wanted}; got {list(ids)}.")
        return torch.as_tensor(mask).bool()

    diagnose(run, candidate, run(lay_out), MASK_MISTAKES, rtol=0, atol=0)


def token_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Return nats per target; mask[t] says that t is a target."""
    scores, after, keep = logits.log_softmax(-1), ids[:, 1:], mask[:, 1:]
    nats = -scores.gather(-1, after[..., None])[..., 0]
    return (nats * keep).sum() / keep.sum()


LOSS_MISTAKES = slips(token_loss)(WRONG_SCORES) | slips(token_loss)("""
the loss is on every token, the mask is not used || mask[:, 1:] => torch.ones_like(mask[:, 1:])
the mask is not shifted with the targets: it marks the tokens read, not those predicted
    || mask[:, 1:] => mask[:, :-1]
the mask is shifted twice || mask[:, 1:] => torch.nn.functional.pad(mask[:, 2:], (0, 1))
the mean of the rows' means is taken, so a short answer weighs more per token
    || ((nats * keep).sum(1) / keep.sum(1)).mean()
the sum is divided by the rows, not by the targets || / keep.sum() => / len(ids)
the sum is divided by all tokens, not by the targets || (nats * keep).mean()
the loss is summed, not averaged over the targets || (nats * keep).sum()
padding is counted as a target || mask[:, 1:] => mask[:, 1:] | (ids[:, 1:] == PAD)
the mask is upside down || mask[:, 1:] => ~mask[:, 1:]
each position is scored on its own token, not on the next
    || ids[:, 1:], mask[:, 1:] => ids[:, :-1], mask[:, :-1]
each position is scored on its own token, though the mask is shifted || ids[:, 1:] => ids[:, :-1]
the sign is wrong: this is the log-likelihood, and training would lower it || -scores => scores
1 - probability is taken, without a logarithm || log_softmax(-1) => softmax(-1) - 1
what is no target becomes the padding id and is learned, not left out
    || ids[:, 1:], mask[:, 1:] => ids[:, 1:] * mask[:, 1:], torch.ones_like(mask[:, 1:])
""")


def masked_loss(candidate: Code) -> None:
    """Check `candidate(logits, ids, mask)`: nats per target; `logits` are of all but the last.

    Id 0 is padding, which stands at the end of rows.
    """
    generator = rng.generator(0, "check", "sft loss")
    logits = 2 * torch.randn(3, 8, 13, generator=generator)
    ids = torch.randint(3, 13, (3, 9), generator=generator)
    ids[1, 7:] = ids[2, 6:] = PAD
    marks = ("...xxx.xx", "..xxxxx..", "....xx...")
    mask = torch.tensor([[mark == "x" for mark in row] for row in marks])
    diagnose(on(logits, ids, mask), candidate, token_loss(logits, ids, mask), LOSS_MISTAKES)


def _one_row(
    examples: Sequence[tuple[Sequence[int], Sequence[bool]]], length: int
) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask, document = (torch.full((length,), value) for value in (PAD, 0, len(examples)))
    begin = 0
    for number, (own_ids, own_mask) in enumerate(examples):
        part = slice(begin, begin + len(own_ids))
        ids[part], mask[part] = torch.tensor(own_ids), torch.tensor(own_mask).long()
        document[part] = number
        begin += len(own_ids)
    return ids, mask.bool(), document


ROW_MISTAKES = slips(_one_row)("""
the first token of a dialog is a target, predicted from the dialog before it
    || torch.tensor(own_mask).long() => torch.tensor([begin > 0, *own_mask[1:]]).long()
padding is a target || (PAD, 0, => (PAD, 1,
all dialogs carry one number, so they see each other || = number => = 0
padding carries the number of the last dialog || len(examples)) => len(examples) - 1)
padding carries the number of the first dialog || 0, len(examples)) => 0, 0)
a number comes twice, so dialogs that are apart see each other || = number => = number % 2
the dialogs come in reverse order || enumerate(examples) => enumerate(examples[::-1])
""")


def packed_row(candidate: Code) -> None:
    """Check `candidate(examples, length)`: ids, mask and dialog number of each place of one row.

    The examples lie in order, whole; what is left is padding with id 0 and a number of its own.
    """
    turns = [([11, 12], [21])], [([13], [22, 23]), ([14, 15, 16], [24])], [([17, 18, 19], [25, 26])]
    examples, length = [lay_out(part, BOS, EOS) for part in turns], 28

    def run(lay: Code) -> Tensor:
        row = parts(on(examples, length)(lay), *[(length,)] * 3)
        ids, mask, document = (part.long() for part in row)
        # where each number first stands: the numbers themselves are free
        first = (document[:, None] == document).int().argmax(dim=1)
        return torch.cat([ids, mask, first])

    diagnose(run, candidate, run(_one_row), ROW_MISTAKES, rtol=0, atol=0)
