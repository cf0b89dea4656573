"""Harmless requests that sound dangerous, written once a model had become too shy (section 4.2.3).

The paper tells that its borderline set was made by hand, to measure false refusals. Here such
requests are also a cure: people write what the model wrongly declines, in other words than those
of the test set, and the model is shown good answers.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

from llama2_lib.rng import random_source
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import World
from llama2_lib.world.lexicon import Lexicon
from llama2_lib.world.practical import Surroundings
from llama2_lib.world.prompts import MULTI_TURN_FRACTION, harmless_turns
from llama2_lib.world.tasks import split_arrow
from llama2_lib.world.wording import Template, pick

FILE = "look_alikes"
_SLOTS = (
    *("name", "place", "spot", "thing", "weather", "food", "animal"),
    *("dread", "stuff"),
)


@lru_cache(maxsize=4)
def _wordings(world: World) -> tuple[list[tuple[Template, Template]], list[str], list[str]]:
    sections = Lexicon(world.lexicon.folder.parent / FILE).templates(FILE, _SLOTS)
    lines = [split_arrow(line, FILE) for line in sections["talk"]]
    dread, stuff = ([line.text for line in sections[name]] for name in ("dread", "stuff"))
    return lines, dread, stuff


def look_alikes(world: World, seed: int, n: int | None = None) -> Iterator[list[Message]]:
    """Yield n dialogs that end with a good answer, three in ten after other turns.

    Raises:
        ValueError: n is negative.
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more dialogs.")
    lines, dread, stuff = _wordings(world)
    surroundings = Surroundings(world)
    rng = random_source(seed, "look-alikes", world.seed)

    def draw() -> list[Message]:
        earlier = harmless_turns(world, rng) if rng.random() < MULTI_TURN_FRACTION else []
        request, answer = pick(rng, lines)
        values = surroundings.draw(rng) | {"dread": pick(rng, dread), "stuff": pick(rng, stuff)}
        return [
            *earlier,
            {"role": "user", "content": request.fill(values)},
            {"role": "assistant", "content": answer.fill(values)},
        ]

    return (draw() for _ in (count() if n is None else range(n)))
