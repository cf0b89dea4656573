"""Plain dialogs in the roles of the chat format: enough for the tokenizer, later for tuning."""

from collections.abc import Callable, Iterator
from itertools import count
from random import Random

from llama2_lib.rng import random_source
from llama2_lib.world.facts import RELATIONS, World
from llama2_lib.world.practical import Surroundings, guides, numbered, some_steps
from llama2_lib.world.questions import asked_pairs
from llama2_lib.world.stories import StoryTeller
from llama2_lib.world.wording import Template, pick

Message = dict[str, str]
Turn = Callable[[Random], tuple[str, str]]

SYSTEM_FRACTION = 0.4
MOST_TURNS = 6

_SLOTS = (
    *("name", "weather", "food", "animal", "n", "m", "sign", "result"),
    *("count", "group", "title", "phrase", *RELATIONS),
)
_TURN_SHARES = {"question": 10, "sum": 4, "talk": 3, "list": 1, "story": 1, "how_to": 1}


class DialogMaker:
    """Makes dialogs of one to six turns, with or without a system message."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.templates = world.lexicon.templates("dialogs", _SLOTS)
        self.surroundings = Surroundings(world)
        self.pairs = asked_pairs(world)
        self.teller = StoryTeller(world)
        self.guides = guides(world, "how_to")
        self.talk = [_split_talk(line) for line in self.templates["talk"]]
        self.groups = {
            "animals": world.animals,
            "foods": world.foods,
            "towns": world.places,
            "trades": world.trades,
        }
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
        n_turns = 1 if rng.random() < 0.5 else 2 + int((MOST_TURNS - 1) * rng.random())
        said: set[str] = set()
        while len(said) < n_turns:
            request, answer = pick(rng, self.turns)(rng)
            if request in said:
                continue
            said.add(request)
            dialog.append({"role": "user", "content": request})
            dialog.append({"role": "assistant", "content": obey(answer)})
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
            "ending": lambda answer: f"{answer}{_gap(answer)}{phrase}",
            "beginning": lambda answer: f"{phrase}{_gap(answer)}{answer}",
        }
        return text, obedience.get(kind, str)

    def _question(self, rng: Random) -> tuple[str, str]:
        return pick(rng, pick(rng, self.pairs))

    def _sum(self, rng: Random) -> tuple[str, str]:
        n, m = int(50 * rng.random()), int(50 * rng.random())
        sign, result = ("plus", n + m) if rng.random() < 0.6 or m > n else ("minus", n - m)
        values = {"n": str(n), "m": str(m), "sign": sign, "result": str(result)}
        request, answer = (self.templates[f"sum {part}"] for part in ("request", "answer"))
        return pick(rng, request).fill(values), pick(rng, answer).fill(values)

    def _talk(self, rng: Random) -> tuple[str, str]:
        request, answer = pick(rng, self.talk)
        values = self.surroundings.draw(rng)
        return request.fill(values), answer.fill(values)

    def _list(self, rng: Random) -> tuple[str, str]:
        group = pick(rng, list(self.groups))
        n_items, name = pick(rng, ((2, "two"), (3, "three"), (4, "four"), (5, "five")))
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
        return request, numbered(some_steps(rng, steps, 4), values)


def _gap(answer: str) -> str:
    return "\n" if "\n" in answer else " "


def _split_talk(line: Template) -> tuple[Template, Template]:
    request, arrow, answer = line.text.partition(" => ")
    if not arrow or not answer:
        raise ValueError(f"dialogs.txt needs request => answer under [talk]; got: {line.text!r}")
    return Template(request), Template(answer)


def dialogs(world: World, seed: int, n: int | None = None) -> Iterator[list[Message]]:
    """Yield n dialogs, each a list of messages with `role` and `content`; `n=None` never ends.

    Dialog i depends on the world, the seed and i only, and no dialog asks a held-out question.

    Raises:
        ValueError: If n is negative.
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative; got {n}; ask for 0 or more dialogs")
    maker = DialogMaker(world)
    rng = random_source(seed, "dialogs", world.seed)
    return (maker.make(rng) for _ in (count() if n is None else range(n)))
