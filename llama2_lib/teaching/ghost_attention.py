"""Checks of Ghost Attention's prompts and examples, and the mistakes they recognise (section 3.3).

Messages are lists of ids. A mask marks TARGETS: mask[t] says that token t is to be predicted.
"""

from collections.abc import Sequence

from llama2_lib.teaching.check import Code, diagnose_choice, on, slips
from llama2_lib.teaching.sft import BOS, EOS, lay_out

Ids = list[int]
Turn = tuple[Ids, Ids]

TURNS: list[Turn] = [
    ([11, 12, 13], [41]),
    ([14, 15], [42, 43, 44]),
    ([16], [45, 46]),
    ([17, 18, 19, 20], [47, 48]),
]
INSTRUCTION = [31, 32]
SAMPLED = [51, 52, 53, 54, 55]
TOLD = "the shape is right, the values are not"

EVERY, FIRST, LAST, NONE = slice(None), slice(1), slice(-1, None), slice(0)


def _instructed(turns: Sequence[Turn], instruction: Ids, where: slice) -> list[Ids]:
    """Return what the user says in each turn, with the instruction before it in some of them."""
    chosen = range(len(turns))[where]
    return [[*instruction * (i in chosen), *user] for i, (user, _) in enumerate(turns)]


def _teacher(turns: Sequence[Turn], instruction: Ids, bos: int, eos: int) -> list[int]:
    prompts, answers = _instructed(turns, instruction, EVERY), [answer for _, answer in turns]
    ids, _ = lay_out(list(zip(prompts, answers, strict=True)), bos, eos)
    return ids[: -len(answers[-1]) - 1]


TEACHER_MISTAKES = slips(_teacher)("""
the instruction stands in the first turn only: that is the student's prompt || EVERY => FIRST
the instruction stands in the last turn only || EVERY => LAST
the instruction is missing in the first turn || EVERY => slice(1, None)
there is no instruction at all || EVERY => NONE
the instruction stands behind the user's words, not before them
    || _instructed(turns, instruction, EVERY) => [[*user, *instruction] for user, _ in turns]
the plain last answer is in the prompt, so nothing is left to sample || ids
the prompt ends with EOS, though the last turn is open || - 1] => - 1] + [eos]
""")


def _example(
    turns: Sequence[Turn], instruction: Ids, sampled: Ids, bos: int, eos: int
) -> tuple[list[int], list[bool]]:
    """Lay out an example with the plain earlier answers and the sampled last one."""
    answers = [*(answer for _, answer in turns[:-1]), sampled]
    pairs = zip(_instructed(turns, instruction, FIRST), answers, strict=True)
    return lay_out(list(pairs), bos, eos, only=-1)


EXAMPLE_MISTAKES = slips(_example)("""
the instruction is left in every turn, so there is nothing to remember || FIRST => EVERY
the instruction is dropped from the first turn too, so there is nothing to obey || FIRST => NONE
the instruction is kept in the last turn instead of the first || FIRST => LAST
the instruction is repeated: it stands twice in the first turn
    || instruction, FIRST => instruction * 2, FIRST
the loss is on all answers, and the earlier ones teach to forget || , only=-1 =>
the loss is on all tokens: there is no mask || only=-1 => marks="xxxxx"
the mask is one too early: it begins at the last token of the user and leaves out EOS
    || only=-1 => only=-1, move=-1
the mask is one too late: the first token of the answer is left out || only=-1 => only=-1, move=1
EOS is not a target, so the model never learns to stop || only=-1 => only=-1, marks="...x."
the user's last words are targets too || only=-1 => only=-1, marks=".xxxx"
the last answer is the plain one, which obeys nothing, not the sampled one
    || sampled] => turns[-1][1]]
the earlier turns are left out, so there is no distance to the instruction
    || answers = => turns = turns[-1:]; answers =
""")


def teacher_prompt(candidate: Code) -> None:
    """Check `candidate(turns, instruction, bos, eos)`: the ids that the teacher answers.

    A turn is a pair of lists of ids, user and plain answer; the last one's is to be sampled.
    """
    run = on(TURNS, INSTRUCTION, BOS, EOS, then=lambda ids: list(map(int, ids)))
    diagnose_choice(run, candidate, _teacher, TEACHER_MISTAKES, TOLD)


def training_example(candidate: Code) -> None:
    """Check `candidate(turns, instruction, sampled, bos, eos)`: ids and mask of one example.

    Earlier answers are the plain ones of `turns` (reading A); the last one is `sampled`.
    """

    def as_lists(example: tuple[Ids, Sequence[bool]]) -> tuple[Ids, list[bool]]:
        return list(map(int, example[0])), list(map(bool, example[1]))

    run = on(TURNS, INSTRUCTION, SAMPLED, BOS, EOS, then=as_lists)
    diagnose_choice(run, candidate, _example, EXAMPLE_MISTAKES, TOLD)
