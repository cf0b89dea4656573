"""Plain dialogs in the roles of the chat format: enough for the tokenizer, later for tuning."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypedDict

from llama2_lib.rng import random_source
from llama2_lib.world.documents import StoryTeller, Surroundings, guides, numbered, some_steps
from llama2_lib.world.facts import RELATIONS, World, asked_pairs
from llama2_lib.world.lexicon import between, pick, separator, split_arrow, stream

Turn = Callable[[Random], tuple[str, str]]

SYSTEM_FRACTION = 0.4
ONE_TURN_FRACTION = 0.5
MOST_TURNS = 6
LARGEST_SUMMAND = 49
PLUS_FRACTION = 0.6
"""Share of sums that add; those that would end below zero add as well."""
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
"""How many items a list may be asked for."""
STEPS_TOLD = 4

DIALOG_SLOTS = (
    *("name", "weather", "food", "animal", "n", "m", "sign", "result"),
    *("count", "group", "title", "phrase", *RELATIONS),
)
_TURN_SHARES = {"question": 10, "sum": 4, "talk": 3, "list": 1, "story": 1, "how_to": 1}


class Message(TypedDict):
    """One message: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


def exchange(request: str, answer: str) -> list[Message]:
    """Return the two messages of one turn."""
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def transcript(dialog: Sequence[Message]) -> str:
    """Return a dialog as text, one message after the other."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in dialog)


def n_turns(rng: Random) -> int:
    """Draw how many turns a dialog has."""
    return 1 if rng.random() < ONE_TURN_FRACTION else between(rng, 2, MOST_TURNS)


def groups_of(world: World) -> dict[str, tuple[str, ...]]:
    """Return what a list may be asked of."""
    return {
        "animals": world.animals,
        "foods": world.foods,
        "towns": world.places,
        "trades": world.trades,
    }


class DialogMaker:
    """Makes dialogs of one to six turns, with or without a system message."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.templates = world.lexicon.templates("dialogs", DIALOG_SLOTS)
        self.surroundings = Surroundings(world)
        self.pairs = asked_pairs(world)
        self.teller = StoryTeller(world)
        self.guides = guides(world, "how_to")
        self.talk = [split_arrow(line, "dialogs") for line in self.templates["talk"]]
        self.groups = groups_of(world)
        makers: dict[str, Turn] = {
            "question": self._question,
            "sum": self._sum,
            "talk": self._talk,
            "list": self._list,
            "story": self._story,
            "how_to": self._how_to,
        }
        self.turns = [makers[kind] for kind, share in _TURN_SHARES.items() for _ in range(share)]

    def make(self, rng: Random) -> list[Message]:
        """Return one dialog; it ends with an answer."""
        dialog: list[Message] = []
        obey: Callable[[str], str] = str
        if rng.random() < SYSTEM_FRACTION:
            system, obey = self.system(rng)
            dialog.append({"role": "system", "content": system})
        most = n_turns(rng)
        requests: set[str] = set()
        while len(requests) < most:
            request, answer = pick(rng, self.turns)(rng)
            if request not in requests:
                requests.add(request)
                dialog += exchange(request, obey(answer))
        return dialog

    def system(self, rng: Random) -> tuple[str, Callable[[str], str]]:
        """Return a system message, and what makes an answer obey it."""
        kind = pick(rng, ("helper", "persona", "capitals", "ending", "beginning"))
        person = pick(rng, self.world.people)
        phrase = pick(rng, self.templates["phrase"]).text
        values = self.world.person_slots(person) | {"phrase": phrase}
        text = pick(rng, self.templates[kind]).fill(values)
        obedience: dict[str, Callable[[str], str]] = {
            "capitals": str.upper,
            "ending": lambda answer: f"{answer}{separator(answer)}{phrase}",
            "beginning": lambda answer: f"{phrase}{separator(answer)}{answer}",
        }
        return text, obedience.get(kind, str)

    def _question(self, rng: Random) -> tuple[str, str]:
        return pick(rng, pick(rng, self.pairs))

    def _sum(self, rng: Random) -> tuple[str, str]:
        values = sum_values(rng)
        request, answer = (self.templates[f"sum {part}"] for part in ("request", "answer"))
        return pick(rng, request).fill(values), pick(rng, answer).fill(values)

    def _talk(self, rng: Random) -> tuple[str, str]:
        request, answer = pick(rng, self.talk)
        values = self.surroundings.draw(rng)
        return request.fill(values), answer.fill(values)

    def _list(self, rng: Random) -> tuple[str, str]:
        group = pick(rng, list(self.groups))
        name, n_items = pick(rng, list(COUNTS.items()))
        request = pick(rng, self.templates["list request"])
        items = rng.sample(self.groups[group], n_items)
        return request.fill({"count": name, "group": group}), "\n".join(f"- {i}" for i in items)

    def _story(self, rng: Random) -> tuple[str, str]:
        hero = pick(rng, self.world.people)
        request = pick(rng, self.templates["story request"]).fill({"name": hero.name})
        return request, self.teller.about(rng, hero)

    def _how_to(self, rng: Random) -> tuple[str, str]:
        title, steps = pick(rng, self.guides)
        values = self.surroundings.draw(rng)
        request = pick(rng, self.templates["how to request"]).fill({"title": title.fill(values)})
        return request, numbered(some_steps(rng, steps, STEPS_TOLD), values)


def sum_values(
    rng: Random, allowed: Callable[[int, int], bool] = lambda n, m: True
) -> dict[str, str]:
    """Draw two numbers until they are allowed, then "plus" or "minus", and the result."""
    while True:
        n, m = between(rng, 0, LARGEST_SUMMAND), between(rng, 0, LARGEST_SUMMAND)
        if allowed(n, m):
            break
    plus = rng.random() < PLUS_FRACTION or m > n
    sign, result = ("plus", n + m) if plus else ("minus", n - m)
    return {"n": str(n), "m": str(m), "sign": sign, "result": str(result)}


def dialogs(world: World, seed: int, n: int | None = None) -> Iterator[list[Message]]:
    """Yield n dialogs; `n=None` never ends.

    Dialog i depends on the world, the seed and i only, and no dialog asks a held-out question.
    """
    maker = DialogMaker(world)
    rng = random_source(seed, "dialogs", world.seed)
    return stream(n, lambda: maker.make(rng))
