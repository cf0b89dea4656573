"""Look-alikes (claim 4): a note, a stretch that says nothing about it, and an echo of the note.

The item is drawn afresh for every text, so it cannot be learned by heart: only a model that
still sees the note can complete the echo.

A reminder is a look-alike whose echo also comes back after most sentences: the same lesson, many
times in one text. Look-alikes alone, one lesson in 300 tokens, taught a small model nothing. All
reminders are about one person's box, so that the item is the one thing to look up.
"""

from dataclasses import dataclass
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.facts import World
from llama2_lib.world.statements import Writer
from llama2_lib.world.wording import pick, pick_other, with_articles

MOST_FILLERS = 60
MEAN_FILLERS, REMINDED = 6, 0.9
"""Of reminders: the mean number of fillers, and the share of them that an echo follows."""


@dataclass(frozen=True, slots=True)
class RetrievalItem:
    """A text that stops just before the answer; `choices` are all items it could be."""

    prompt: str
    answer: str
    choices: tuple[str, ...]


class LookalikeMaker:
    """Makes look-alikes with a chosen number of filler sentences."""

    def __init__(self, world: World) -> None:
        slots = ("place", "spot", "other spot", "adjective", "look", "weather", "time")
        slots = (*slots, "trade", "animal", "name", "item")
        templates = world.lexicon.templates("fillers", slots)
        self.items = world.lexicon.words("things")
        self.names = [person.name for person in world.people]
        self.fillers = templates["filler"]
        self.note, self.echo = templates["note"], templates["echo"]
        self.spots = world.lexicon.words("spots")
        lists = {
            "adjective": world.lexicon.words("adjectives"),
            "look": world.lexicon.words("looks"),
            "animal": world.animals,
            "place": world.places,
            "weather": world.lexicon.words("weather"),
            "time": world.lexicon.words("times"),
            "trade": world.trades,
        }
        self.values = [
            [with_articles(**{slot: word}) for word in words] for slot, words in lists.items()
        ]

    def make(
        self, rng: Random, n_filler: int, reminded: float = 0.0, name: str | None = None
    ) -> tuple[str, str]:
        """Return the text and the item its last word names.

        Args:
            rng: Where the draws come from.
            n_filler: Filler sentences between note and last echo.
            reminded: Share of the fillers that another echo follows.
            name: Whose box it is; anybody's if left out.
        """
        item = pick(rng, self.items)
        values = {"name": name or pick(rng, self.names), "item": item}
        lines = [pick(rng, self.note).fill(values)]
        for filler in self._fill(rng, n_filler):
            lines.append(filler)
            if reminded and rng.random() < reminded:
                lines.append(pick(rng, self.echo).fill(values))
        return " ".join([*lines, pick(rng, self.echo).fill(values)]), item

    def _fill(self, rng: Random, n_filler: int) -> list[str]:
        found: dict[str, None] = {}  # keeps the order and drops what was said before
        values: dict[str, str] = {}
        while len(found) < n_filler:
            for options in self.values:
                values.update(pick(rng, options))
            values["spot"] = pick(rng, self.spots)
            values["other spot"] = pick_other(rng, self.spots, values["spot"])
            found[pick(rng, self.fillers).fill(values)] = None
        return list(found)


def lookalike(world: World, rng: Random, n_filler: int) -> tuple[str, str]:
    """Return a look-alike text with `n_filler` sentences between note and echo, and its answer.

    Raises:
        ValueError: If `n_filler` is negative or above 500.
    """
    if not 0 <= n_filler <= 500:
        raise ValueError(f"n_filler must be between 0 and 500; got {n_filler}; choose another")
    return LookalikeMaker(world).make(rng, n_filler)


def lookalike_writer(world: World) -> Writer:
    """Write look-alikes with zero to sixty fillers, every number equally likely."""
    maker = LookalikeMaker(world)

    def write(rng: Random) -> str:
        return maker.make(rng, int((MOST_FILLERS + 1) * rng.random()))[0]

    return write


def reminder_writer(world: World) -> Writer:
    """Write reminders; the number of fillers falls off geometrically, `MOST_FILLERS` at most."""
    maker = LookalikeMaker(world)

    def write(rng: Random) -> str:
        n_filler = int(rng.expovariate(1 / MEAN_FILLERS))
        return maker.make(rng, min(n_filler, MOST_FILLERS), REMINDED, maker.names[0])[0]

    return write


def retrieval_items(world: World, seed: int, n: int, n_filler: int) -> list[RetrievalItem]:
    """Return n items at one distance for evaluation, apart from every training document.

    Raises:
        ValueError: If `n_filler` is negative or above 500.
    """
    if not 0 <= n_filler <= 500:
        raise ValueError(f"n_filler must be between 0 and 500; got {n_filler}; choose another")
    maker = LookalikeMaker(world)
    rng = random_source(seed, "retrieval", world.seed, n_filler)
    items = []
    for _ in range(n):
        text, answer = maker.make(rng, n_filler)
        items.append(RetrievalItem(text.removesuffix(f" {answer}."), answer, maker.items))
    return items
