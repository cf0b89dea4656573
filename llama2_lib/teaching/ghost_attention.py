"""Checks of Ghost Attention's prompts and examples, and the mistakes they recognise (section 3.3).

Messages are lists of ids. A mask marks TARGETS: mask[t] says that token t is to be predicted.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, diagnose, on
from llama2_lib.teaching.sft import BOS, EOS, lay_out

Ids = Sequence[int]
Turn = tuple[Ids, Ids]

ROOM = 96
"""Longer than anything a check or a mistake makes."""

TURNS: tuple[Turn, ...] = (
    ([11, 12, 13], [41]),
    ([14, 15], [42, 43, 44]),
    ([16], [45, 46]),
    ([17, 18, 19, 20], [47, 48]),
)
INSTRUCTION = [31, 32]
SAMPLED = [51, 52, 53, 54, 55]


def _instructed(where: str, n_turns: int) -> list[int]:
    """How often the instruction stands in each turn."""
    first, last = [1] + [0] * (n_turns - 1), [0] * (n_turns - 1) + [1]
    return {
        "every": [1] * n_turns, "first": first, "last": last, "none": [0] * n_turns,
        "first twice": [2] + [0] * (n_turns - 1), "all but the first": [0] + [1] * (n_turns - 1),
    }[where]  # fmt: skip


def _teacher(
    turns: Sequence[Turn],
    instruction: Ids,
    bos: int,
    eos: int,
    *,
    where: str = "every",
    behind: bool = False,
    ending: str = "open",
) -> list[int]:
    ids: list[int] = []
    times = _instructed(where, len(turns))
    for index, (user, answer) in enumerate(turns):
        words = list(instruction) * times[index]
        ids += [bos, *user, *words] if behind else [bos, *words, *user]
        if index < len(turns) - 1:
            ids += [*answer, eos]
    return ids + {"open": [], "eos": [eos], "answered": [*turns[-1][1], eos]}[ending]


TEACHER_MISTAKES: Mistakes = {
    "the instruction stands in the first turn only: that is the student's prompt": partial(
        _teacher, where="first"
    ),
    "the instruction stands in the last turn only": partial(_teacher, where="last"),
    "the instruction is missing in the first turn": partial(_teacher, where="all but the first"),
    "there is no instruction at all": partial(_teacher, where="none"),
    "the instruction stands behind the user's words, not before them": partial(
        _teacher, behind=True
    ),
    "the plain last answer is in the prompt, so nothing is left to sample": partial(
        _teacher, ending="answered"
    ),
    "the prompt ends with EOS, though the last turn is open": partial(_teacher, ending="eos"),
}


def _example(
    turns: Sequence[Turn],
    instruction: Ids,
    sampled: Ids,
    bos: int,
    eos: int,
    *,
    where: str = "first",
    plain: bool = False,
    begin: int = 0,
    only_last: bool = True,
    **marks: Any,
) -> tuple[list[int], list[bool]]:
    """Lay out an example that begins at a turn, with the plain last answer or the sampled one."""
    turns = turns[begin:]
    prompts = [
        [*list(instruction) * times, *user]
        for times, (user, _) in zip(_instructed(where, len(turns)), turns, strict=True)
    ]
    answers = [answer for _, answer in turns[:-1]] + [turns[-1][1] if plain else sampled]
    pairs = list(zip(prompts, answers, strict=True))
    return lay_out(pairs, bos, eos, only_last=only_last, **marks)


EXAMPLE_MISTAKES: Mistakes = {
    "the instruction is left in every turn, so there is nothing to remember": partial(
        _example, where="every"
    ),
    "the instruction is dropped from the first turn too, so there is nothing to obey": partial(
        _example, where="none"
    ),
    "the instruction is kept in the last turn instead of the first": partial(
        _example, where="last"
    ),
    "the instruction is repeated: it stands twice in the first turn": partial(
        _example, where="first twice"
    ),
    "the loss is on all answers, and the earlier ones teach to forget": partial(
        _example, only_last=False
    ),
    "the loss is on all tokens: there is no mask": partial(
        _example, only_last=False, marks="xxxxx"
    ),
    "the mask is one too early: it begins at the last token of the user and leaves out EOS": (
        partial(_example, move=-1)
    ),
    "the mask is one too late: the first token of the answer is left out": partial(
        _example, move=1
    ),
    "EOS is not a target, so the model never learns to stop": partial(_example, marks="...x."),
    "the user's last words are targets too": partial(_example, marks=".xxxx"),
    "the last answer is the plain one, which obeys nothing, not the sampled one": partial(
        _example, plain=True
    ),
    "the earlier turns are left out, so there is no distance to the instruction": partial(
        _example, begin=len(TURNS) - 1
    ),
}


def _padded(ids: Ids, mask: Sequence[bool] | None = None) -> Tensor:
    """Both in one vector of fixed length, so that a mistake of another length is named as well."""
    if len(ids) > ROOM:
        raise CheckFailed(f"at most {ROOM} ids were expected; got {len(ids)}.")
    rows = torch.full((2, ROOM), -1)
    rows[0, : len(ids)] = torch.as_tensor(list(ids))
    if mask is not None:
        if len(mask) != len(ids):
            raise CheckFailed(
                f"the mask must be as long as the ids; got {len(mask)} and {len(ids)}."
            )
        rows[1, : len(mask)] = torch.as_tensor(list(mask)).long()
    return rows


def teacher_prompt(candidate: Code) -> None:
    """Check `candidate(turns, instruction, bos, eos)`: the ids that the teacher answers.

    A turn is a pair of lists of ids, user and plain answer, neither with BOS or EOS. The last
    turn's answer is what is to be sampled.
    """

    def run(prompt: Code) -> Tensor:
        return _padded(on(TURNS, INSTRUCTION, BOS, EOS)(prompt))

    diagnose(run, candidate, run(_teacher), TEACHER_MISTAKES, rtol=0, atol=0)


def training_example(candidate: Code) -> None:
    """Check `candidate(turns, instruction, sampled, bos, eos)`: ids and mask of one example.

    Earlier answers are the plain ones of `turns` (reading A); the last one is `sampled`.
    """

    def run(example: Code) -> Tensor:
        return _padded(*on(TURNS, INSTRUCTION, SAMPLED, BOS, EOS)(example))

    diagnose(run, candidate, run(_example), EXAMPLE_MISTAKES, rtol=0, atol=0)
