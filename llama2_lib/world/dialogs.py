"""Plain dialogs in the roles of the chat format: enough for the tokenizer, later for tuning."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypedDict

from llama2_lib.rng import random_source
from llama2_lib.world.facts import World
from llama2_lib.world.lexicon import between, pick, separator, stream
from llama2_lib.world.tasks import DIALOG_SLOTS, TaskMaker, answer_writer

SYSTEM_FRACTION = 0.4
ONE_TURN_FRACTION = 0.5
MOST_TURNS = 6
_TURN_SHARES = {"question": 10, "sum": 4, "talk": 3, "list": 1, "story": 1, "how_to": 1}


class Message(TypedDict):
    """One message: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


def asks(request: str) -> Message:
    """Return a message of the user."""
    return {"role": "user", "content": request}


def exchange(request: str, answer: str) -> list[Message]:
    """Return the two messages of one turn."""
    return [asks(request), {"role": "assistant", "content": answer}]


def transcript(dialog: Sequence[Message]) -> str:
    """Return a dialog as text, one message after the other."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in dialog)


def n_turns(rng: Random) -> int:
    """Draw how many turns a dialog has."""
    return 1 if rng.random() < ONE_TURN_FRACTION else between(rng, 2, MOST_TURNS)


class DialogMaker:
    """Makes dialogs of one to six turns, with or without a system message."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.templates = world.lexicon.templates("dialogs", DIALOG_SLOTS)
        self.tasks, self.writer = TaskMaker(world, "train", all_sums=True), answer_writer(world)
        self.kinds = [kind for kind, share in _TURN_SHARES.items() for _ in range(share)]

    def make(self, rng: Random) -> list[Message]:
        """Return one dialog; it ends with an answer."""
        dialog, obey = self.opening(rng)
        most = n_turns(rng)
        requests: set[str] = set()
        while len(requests) < most:
            request, task = self.tasks.draw(rng, pick(rng, self.kinds))
            answer = self.writer.good(rng, task)
            if request not in requests:
                requests.add(request)
                dialog += exchange(request, obey(answer))
        return dialog

    def opening(self, rng: Random) -> tuple[list[Message], Callable[[str], str]]:
        """Return a system message, or none, and what makes an answer obey it."""
        if rng.random() >= SYSTEM_FRACTION:
            return [], str
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
        return [{"role": "system", "content": text}], obedience.get(kind, str)


def dialogs(world: World, seed: int, n: int | None = None) -> Iterator[list[Message]]:
    """Yield n dialogs; `n=None` never ends.

    Dialog i depends on the world, the seed and i only, and no dialog asks a held-out question.
    """
    maker = DialogMaker(world)
    rng = random_source(seed, "dialogs", world.seed)
    return stream(n, lambda: maker.make(rng))
