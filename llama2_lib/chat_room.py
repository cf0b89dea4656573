"""The terminal chat: talk to one model, or hear all versions of the chain side by side."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

from llama2_lib.config import Checked, Count, Rule, Weight
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


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """How answers are sampled."""

    temperature: Weight = 0.7
    top_p: Annotated[float, Rule("be above 0 and at most 1", lambda value: 0 < value <= 1)] = 0.9
    max_new_tokens: Count = 96


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
        [continuation] = generate(
            model, [prompt], **asdict(sampling), seed=turn, stop_ids={tokenizer.eos_id}
        )
        return tokenizer.decode([*prompt, *continuation.ids])

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
        question: Message = {"role": "user", "content": text}
        history = self.dialog
        while history and not self._fits([*self.rules, *history, question]):
            history = history[2:]
        dialog = [*self.rules, *history, question]
        [answer] = reply(self.model, self.tokenizer, [dialog], **asdict(self.sampling), seed=turn)
        forgotten = "" if history == self.dialog else "(The oldest turns no longer fit.)\n"
        # Format and context cannot carry a silent answer, so that turn is not kept.
        if answer.text:
            self.dialog = [*history, question, {"role": "assistant", "content": answer.text}]
        return forgotten + (answer.text or "(no answer)")

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
            if (shown := _command(text, room)) is None:
                shown = answer(text, turn)
                turn += 1
        except KeyboardInterrupt:
            shown = "\n(stopped)"
        except ValueError as error:
            print(f"llama2: {error}", file=sys.stderr)
            continue
        if shown:
            print(shown)


def _command(text: str, room: _Room | None) -> str | None:
    """Do what a command says and return what to print; None if it is no command."""
    text.encode()  # refuses what is no UTF-8
    word, _, rest = text.strip().partition(" ")
    if room is None:
        return None if word else ""
    if word in ("", "/new"):
        room.tell(room.rules[0]["content"] if room.rules else "")
        return "(a new dialog)" if word else ""
    if word == "/system":
        room.tell(rest)
        return f"(a new dialog; the model is told first: {rest or 'nothing'})"
    return COMMANDS if word.startswith("/") else None
