"""Dialogs that teach what an instruction is, so that there is something Ghost Attention can keep.

A model of Llama 2's size obeys "act as ..." when it is told so in the message it answers; ours must
be taught. Here an instruction holds for the message it stands in, and for no other: by construction
the model drops it in the next turn, as the paper's first RLHF models dropped theirs after a few
(section 3.3, figure 9). That makes the baseline's decay a premise of ours, not a finding.
"""

from collections.abc import Iterator
from itertools import count
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.brief import MOST_TURNS, as_dialog, brief_maker
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.instructions import instruction_maker, obeying, prefixed

PLAIN_FRACTION = 0.25
"""Of dialogs without any instruction."""
INSTRUCTED_FRACTION = 0.6
"""Of the messages of the other dialogs that carry one."""
MOST_INSTRUCTED_TURNS = 6
"""Of the other dialogs: instructions are long, and each turn has one of its own."""


def instructed_dialogs(world: World, seed: int, n: int | None = None) -> Iterator[list[Message]]:
    """Yield n dialogs that end with an answer; `n=None` never ends.

    An answer obeys the instruction of its own message, or none. All kinds and values occur, those
    held out from Ghost Attention too: what is held out there is keeping them.

    Raises:
        ValueError: n is negative.
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more dialogs.")
    rng = random_source(seed, "instructed", world.seed)
    return (_dialog(world, rng) for _ in (count() if n is None else range(n)))


def _dialog(world: World, rng: Random) -> list[Message]:
    plain = rng.random() < PLAIN_FRACTION
    most = MOST_TURNS if plain else MOST_INSTRUCTED_TURNS
    turns = brief_maker(world).make(rng, 1 + int(most * rng.random()))
    dialog = as_dialog(turns)
    if plain:
        return dialog
    maker = instruction_maker(world, "all")
    for user, assistant in zip(dialog[0::2], dialog[1::2], strict=True):
        if rng.random() < INSTRUCTED_FRACTION:
            drawn = maker.several(rng)
            user["content"] = prefixed(drawn, user["content"])
            assistant["content"] = obeying(drawn, assistant["content"])
    return dialog
