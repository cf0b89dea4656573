"""Harmless requests that sound dangerous, written once a model had become too shy (section 4.2.3).

The paper tells that its borderline set was made by hand, to measure false refusals. Here such
requests are also a cure: people write what the model wrongly declines, in other words than those
of the test set, and the model is shown good answers.
"""

from collections.abc import Iterator
from itertools import count

from llama2_lib.rng import random_source
from llama2_lib.world.answers import answer_writer
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.prompts import MULTI_TURN_FRACTION, chooser, harmless_turns
from llama2_lib.world.risks import BORDERLINE_SHARES, LOOK_ALIKES, borderline_maker


def look_alikes(world: World, seed: int, n: int | None = None) -> Iterator[list[Message]]:
    """Yield n dialogs that end with a good answer, three in ten after other turns.

    Raises:
        ValueError: n is negative.
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more dialogs.")
    maker, writer = borderline_maker(world, LOOK_ALIKES), answer_writer(world)
    draw_kind = chooser(BORDERLINE_SHARES, tuple(BORDERLINE_SHARES))
    rng = random_source(seed, "look-alikes", world.seed)

    def draw() -> list[Message]:
        earlier = harmless_turns(world, rng) if rng.random() < MULTI_TURN_FRACTION else []
        request, task = maker.draw(rng, draw_kind(rng))
        return [
            *earlier,
            {"role": "user", "content": request},
            {"role": "assistant", "content": writer.demonstration(rng, task)},
        ]

    return (draw() for _ in (count() if n is None else range(n)))
