"""Dialogs that teach what an instruction is, so that there is something Ghost Attention can keep.

A model of Llama 2's size obeys "act as ..." when it is told so in the message it answers; ours must
be taught. Here an instruction holds for the message it stands in and for the next one: by
construction the model drops it then, as the paper's first RLHF models did (section 3.3, table 30:
100 % at turn 2, 10 % at turn 4). That makes the baseline's decay a premise of ours, no finding.
"""

from collections.abc import Iterator
from itertools import count
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.brief import MOST_TURNS, as_dialog, brief_maker
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.instructions import Instruction, instruction_maker, obeying, prefixed

PLAIN_FRACTION = 0.15
"""Of dialogs without any instruction."""
INSTRUCTED_FRACTION = 0.4
"""Of the messages of the other dialogs that carry one."""
HOLDS = 2
"""Messages that an instruction holds for, its own included, unless another one comes first."""
INSTRUCTED_TURNS = 7
"""Instructions stand in the first messages only: they are long, the context is not. What comes
after them teaches that an instruction is over, up to the last turn."""
LENGTHS = {HOLDS: 0.35, INSTRUCTED_TURNS: 0.40, MOST_TURNS: 0.25}
"""Most turns of a dialog, and the share of dialogs with that limit."""


def instructed_dialogs(
    world: World, seed: int, n: int | None = None, *, longest: int = MOST_TURNS
) -> Iterator[list[Message]]:
    """Yield n dialogs of at most `longest` turns that end with an answer; `n=None` never ends.

    An answer obeys the newest instruction of the last `HOLDS` messages, or none. All kinds and
    values occur, those held out from Ghost Attention too: what is held out there is keeping them.
    Kinds held out stand in dialogs of at most `HOLDS` turns, so that forgetting is as new for them
    as keeping; with both taught only by other kinds, either may carry over.

    Raises:
        ValueError: n is negative, or `longest` is below 1.
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more dialogs.")
    if longest < 1:
        raise ValueError(f"longest must be at least 1 turn; got {longest}.")
    rng = random_source(seed, "instructed", world.seed)
    return (_dialog(world, rng, longest) for _ in (count() if n is None else range(n)))


def _dialog(world: World, rng: Random, longest: int) -> list[Message]:
    plain = rng.random() < PLAIN_FRACTION
    most = min(longest, *rng.choices(list(LENGTHS), list(LENGTHS.values())))
    turns = brief_maker(world).make(rng, 1 + int(most * rng.random()))
    dialog = as_dialog(turns)
    if plain:
        return dialog
    maker = instruction_maker(world, "all" if len(turns) <= HOLDS else "all values")
    held: tuple[Instruction, ...] = ()
    since = HOLDS
    for index, (user, assistant) in enumerate(zip(dialog[0::2], dialog[1::2], strict=True)):
        if index < INSTRUCTED_TURNS and rng.random() < INSTRUCTED_FRACTION:
            held, since = maker.several(rng), 0
            user["content"] = prefixed(held, user["content"])
        if since < HOLDS:
            assistant["content"] = obeying(held, assistant["content"])
        since += 1
    return dialog
