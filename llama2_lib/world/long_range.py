"""Texts that need a long memory (claim 4): a note, a stretch about other things, its echo.

The item is drawn afresh for every text, so it cannot be learned by heart: only a model that
still sees the note can complete the echo.

A reminder is such a text whose echo also comes back after most sentences: the same lesson, many
times in one text. Texts with one echo alone, one lesson in 300 tokens, taught a small model
nothing. All reminders are about one person's box, so that the item is the one thing to look up.
"""

from dataclasses import dataclass
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.facts import Slots, World
from llama2_lib.world.lexicon import between, pick

MOST_FILLERS = 60
LONGEST_STRETCH = 500
"""Fillers that an item for evaluation may have; there are not many more different ones."""
MEAN_FILLERS, REMINDED = 6, 0.9
"""The mean number of fillers in a reminder, and the share of them that an echo follows."""


@dataclass(frozen=True, slots=True)
class RetrievalItem:
    """A text that stops just before the answer; `choices` are all items it could be."""

    prompt: str
    answer: str
    choices: tuple[str, ...]


class LongRangeMaker:
    """Makes texts with a chosen number of filler sentences."""

    def __init__(self, world: World) -> None:
        order = ("a adjective", "look", "a animal", "place", "a weather", "time", "a trade")
        order = (*order, "spot", "other spot")
        self.slots = Slots(world, *order)
        names = [slot.removeprefix("a ") for slot in order]
        templates = world.lexicon.templates("fillers", (*names, "name", "item"))
        self.fillers = templates["filler"]
        self.note, self.echo = templates["note"], templates["echo"]
        self.items = world.lexicon.words("things")
        self.names = [person.name for person in world.people]

    def make(
        self, rng: Random, n_filler: int, reminded: float = 0.0, name: str | None = None
    ) -> tuple[str, str]:
        """Return a text with so many fillers, and the item its last word names.

        `reminded` is the share of the fillers that another echo follows, `name` says whose box
        it is.
        """
        item = pick(rng, self.items)
        values = {"name": name or pick(rng, self.names), "item": item}
        lines = [pick(rng, self.note).fill(values)]
        for filler in self._fillers(rng, n_filler):
            lines.append(filler)
            if reminded and rng.random() < reminded:
                lines.append(pick(rng, self.echo).fill(values))
        return " ".join([*lines, pick(rng, self.echo).fill(values)]), item

    def write(self, rng: Random) -> str:
        """Write a text of zero to `MOST_FILLERS` fillers, every number equally likely."""
        return self.make(rng, between(rng, 0, MOST_FILLERS))[0]

    def remind(self, rng: Random) -> str:
        """Write a reminder; the number of fillers falls off geometrically."""
        n_filler = int(rng.expovariate(1 / MEAN_FILLERS))
        return self.make(rng, min(n_filler, MOST_FILLERS), REMINDED, self.names[0])[0]

    def _fillers(self, rng: Random, n: int) -> list[str]:
        sentences: dict[str, None] = {}  # keeps the order and drops what was said before
        while len(sentences) < n:
            values = self.slots.draw(rng)
            sentences[pick(rng, self.fillers).fill(values)] = None
        return list(sentences)


def retrieval_items(world: World, seed: int, n: int, n_filler: int) -> list[RetrievalItem]:
    """Return n items at one distance for evaluation, apart from every training document."""
    assert 0 <= n_filler <= LONGEST_STRETCH, n_filler
    maker = LongRangeMaker(world)
    rng = random_source(seed, "retrieval", world.seed, n_filler)
    items = []
    for _ in range(n):
        text, answer = maker.make(rng, n_filler)
        items.append(RetrievalItem(text.removesuffix(f" {answer}."), answer, maker.items))
    return items
