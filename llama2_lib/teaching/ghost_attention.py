"""Checks of Ghost Attention's prompts and examples, and the mistakes they recognise (section 3.3).

Messages are lists of ids. A mask marks TARGETS: mask[t] says that token t is to be predicted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llama2_lib.teaching.check import CheckFailed, Code, diagnose, flawed, on
from llama2_lib.teaching.sft import BOS, EOS, lay_out

Ids = Sequence[int]
Turn = tuple[Ids, Ids]

ROOM = 96
"""Longer than anything a check or a mistake makes."""

TURNS: list[Turn] = [
    ([11, 12, 13], [41]),
    ([14, 15], [42, 43, 44]),
    ([16], [45, 46]),
    ([17, 18, 19, 20], [47, 48]),
]
INSTRUCTION = [31, 32]
SAMPLED = [51, 52, 53, 54, 55]

EVERY, FIRST, LAST, NONE = slice(None), slice(1), slice(-1, None), slice(0)


def _instructed(turns: Sequence[Turn], instruction: Ids, where: slice, times: int = 1) -> list[Ids]:
    """Return what the user says in each turn, with the instruction before it in some of them."""
    chosen = range(len(turns))[where]
    return [[*instruction] * (times * (i in chosen)) + [*turns[i][0]] for i in range(len(turns))]


def _teacher(
    turns: Sequence[Turn],
    instruction: Ids,
    bos: int,
    eos: int,
    *,
    where: slice = EVERY,
    behind: bool = False,
    ending: str = "open",
) -> list[int]:
    prompts = _instructed(turns, instruction, where)
    if behind:
        prompts = [[*user, *instruction] for user, _ in turns]
    ids, _ = lay_out([(p, answer) for p, (_, answer) in zip(prompts, turns, strict=True)], bos, eos)
    is_open = ids[: -len(turns[-1][1]) - 1]
    return {"open": is_open, "eos": [*is_open, eos], "answered": ids}[ending]


TEACHER_MISTAKES = flawed(
    _teacher,
    where={
        "the instruction stands in the first turn only: that is the student's prompt": FIRST,
        "the instruction stands in the last turn only": LAST,
        "the instruction is missing in the first turn": slice(1, None),
        "there is no instruction at all": NONE,
    },
    behind={"the instruction stands behind the user's words, not before them": True},
    ending={
        "the plain last answer is in the prompt, so nothing is left to sample": "answered",
        "the prompt ends with EOS, though the last turn is open": "eos",
    },
)


def _example(
    turns: Sequence[Turn],
    instruction: Ids,
    sampled: Ids,
    bos: int,
    eos: int,
    *,
    where: slice = FIRST,
    times: int = 1,
    loss_on: str = "last answer",
    marks: str = "...xx",
    move: int = 0,
    last: str = "sampled",
    begin: int = 0,
) -> tuple[list[int], list[bool]]:
    """Lay out an example that begins at a turn, with the plain last answer or the sampled one."""
    turns = turns[begin:]
    answers = [answer for _, answer in turns]
    if last == "sampled":
        answers[-1] = sampled
    pairs = list(zip(_instructed(turns, instruction, where, times), answers, strict=True))
    marks = "xxxxx" if loss_on == "tokens" else marks
    only = -1 if loss_on == "last answer" else None
    return lay_out(pairs, bos, eos, marks=marks, move=move, only=only)


EXAMPLE_MISTAKES = flawed(
    _example,
    where={
        "the instruction is left in every turn, so there is nothing to remember": EVERY,
        "the instruction is dropped from the first turn too, so there is nothing to obey": NONE,
        "the instruction is kept in the last turn instead of the first": LAST,
    },
    times={"the instruction is repeated: it stands twice in the first turn": 2},
    loss_on={
        "the loss is on all answers, and the earlier ones teach to forget": "answers",
        "the loss is on all tokens: there is no mask": "tokens",
    },
    move={
        "the mask is one too early: it begins at the last token of the user and leaves out EOS": -1,
        "the mask is one too late: the first token of the answer is left out": 1,
    },
    marks={
        "EOS is not a target, so the model never learns to stop": "...x.",
        "the user's last words are targets too": ".xxxx",
    },
    last={"the last answer is the plain one, which obeys nothing, not the sampled one": "plain"},
    begin={"the earlier turns are left out, so there is no distance to the instruction": -1},
)


def _padded(ids: Ids, mask: Sequence[bool] | None = None) -> Tensor:
    """Both in one vector of fixed length, so that a mistake of another length is named as well."""
    if len(ids) > ROOM:
        raise CheckFailed(f"at most {ROOM} ids were expected; got {len(ids)}.")
    if mask is not None and len(mask) != len(ids):
        raise CheckFailed(f"the mask must be as long as the ids; got {len(mask)} and {len(ids)}.")
    rows = torch.full((2, ROOM), -1)
    for row, values in zip(rows, (ids, () if mask is None else mask), strict=True):
        row[: len(values)] = torch.as_tensor(list(values)).long()
    return rows


def teacher_prompt(candidate: Code) -> None:
    """Check `candidate(turns, instruction, bos, eos)`: the ids that the teacher answers.

    A turn is a pair of lists of ids, user and plain answer; the last one's is to be sampled.
    """
    run = on(TURNS, INSTRUCTION, BOS, EOS, then=_padded)
    diagnose(run, candidate, run(_teacher), TEACHER_MISTAKES, rtol=0, atol=0)


def training_example(candidate: Code) -> None:
    """Check `candidate(turns, instruction, sampled, bos, eos)`: ids and mask of one example.

    Earlier answers are the plain ones of `turns` (reading A); the last one is `sampled`.
    """
    run = on(TURNS, INSTRUCTION, SAMPLED, BOS, EOS, then=lambda example: _padded(*example))
    diagnose(run, candidate, run(_example), EXAMPLE_MISTAKES, rtol=0, atol=0)
