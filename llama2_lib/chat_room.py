"""The terminal chat: talk to one model, or hear all versions of the chain side by side."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

from llama2_lib.model.chat import reply
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.dialogs import Message

EXAMPLES = ("What is 3 plus 4?", "Tell me a story about Remy.", "How do I make a kite?")
COMMANDS = (
    "An empty line or /new begins a new dialog, /system TEXT sets what the model is told first, "
    "Ctrl-C ends an answer, Ctrl-D the chat."
)
LEAST_ROOM = 32
"""Tokens that an answer needs; the oldest turns of a dialog go where it would have fewer."""
Answering = Callable[[str, int], str | None]
"""Takes what was typed and the number of the turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How answers are sampled."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 96

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0; got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1; got {self.top_p}.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}.")


def talk(model: Transformer, tokenizer: Tokenizer, sampling: Sampling, system: str = "") -> int:
    """Talk to a chat model until the input ends."""
    room = _Room(model, tokenizer, sampling)
    room.tell(system)
    print(COMMANDS)
    print(f"Try: {'  '.join(EXAMPLES)}")
    return _loop(room.answer, room)


def continue_text(model: Transformer, tokenizer: Tokenizer, sampling: Sampling) -> int:
    """Let a pretrained model go on with what is typed, until the input ends."""

    def answer(text: str, turn: int) -> str | None:
        if text.startswith("Question:"):
            text += "\nAnswer:"
        prompt = tokenizer.encode(text, bos=True)
        [done] = generate(
            model, [prompt], max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature, top_p=sampling.top_p, seed=turn,
            stop_ids={tokenizer.eos_id},
        )  # fmt: skip
        return tokenizer.decode([*prompt, *done.ids])

    print("This model only continues text. Ctrl-C ends a text, Ctrl-D the chat.")
    print(f"Try: One morning  Once there was  Question: {EXAMPLES[0]}")
    return _loop(answer)


def compare(
    models: dict[str, tuple[Transformer, Tokenizer]], sampling: Sampling, system: str = ""
) -> int:
    """Ask all versions the same question, from the base model to the finished chat model."""
    rooms = {name: _Room(*model, sampling) for name, model in models.items()}

    def answer(text: str, turn: int) -> str:
        lines = []
        for name, room in rooms.items():
            room.tell(system)  # each time a new dialog
            lines.append(f"{name:5s} {room.answer(text, turn)}")
        return "\n".join(lines)

    for room in rooms.values():
        room.tell(system)
    print("Every version answers what you ask, each time in a new dialog. Ctrl-D ends.")
    print(f"Try: {'  '.join(EXAMPLES)}")
    return _loop(answer)


class _Room:
    """A dialog with one model."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, sampling: Sampling):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.rules: list[Message] = []
        self.dialog: list[Message] = []

    def tell(self, system: str) -> None:
        """Begin a new dialog under this system message, or under none."""
        rules: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        # Refused here if it is, and not with the first question.
        encode_prompt([*rules, {"role": "user", "content": "Hello"}], self.tokenizer)
        self.rules, self.dialog = rules, []

    def answer(self, text: str, turn: int) -> str:
        """Return an answer to `text` after what was said before, of which the oldest may go."""
        asked: Message = {"role": "user", "content": text}
        history = self.dialog
        while history and not self._fits([*self.rules, *history, asked]):
            history = history[2:]
        [said] = reply(
            self.model, self.tokenizer, [[*self.rules, *history, asked]],
            max_new_tokens=self.sampling.max_new_tokens, temperature=self.sampling.temperature,
            top_p=self.sampling.top_p, seed=turn,
        )  # fmt: skip
        forgotten = "" if history == self.dialog else "(The oldest turns no longer fit.)\n"
        # Format and context cannot carry a silent answer, so that turn is not kept.
        if said.text:
            self.dialog = [*history, asked, {"role": "assistant", "content": said.text}]
        return forgotten + (said.text or "(no answer)")

    def _fits(self, dialog: list[Message]) -> bool:
        """Say whether a dialog leaves room for an answer; one that would be refused does not."""
        try:
            left = self.model.config.max_seq_len - len(encode_prompt(dialog, self.tokenizer))
        except ValueError:
            return False
        return left >= min(self.sampling.max_new_tokens, LEAST_ROOM)


def _loop(answer: Answering, room: _Room | None = None) -> int:
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows' own terminal does the same
            import readline  # noqa: F401 - arrow keys and a history
    turn = 0
    while True:
        try:
            text = input("> ")
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the chat.)")
            continue
        try:
            if (said := _command(text, room)) is None:
                said = answer(text, turn)
                turn += 1
        except KeyboardInterrupt:
            said = "\n(stopped)"
        except ValueError as error:
            print(f"llama2: {error}", file=sys.stderr)
            continue
        if said:
            print(said)


def _command(text: str, room: _Room | None) -> str | None:
    """Do what a command says and return what to print; None if it is no command."""
    text.encode()  # refuses what is no UTF-8
    word, _, rest = text.strip().partition(" ")
    if room is not None and word in ("", "/new"):
        room.tell(room.rules[0]["content"] if room.rules else "")
        return "(a new dialog)" if word else ""
    if room is not None and word == "/system":
        room.tell(rest)
        return f"(a new dialog; the model is told first: {rest or 'nothing'})"
    if room is not None and word.startswith("/"):
        return COMMANDS
    return None if word else ""
