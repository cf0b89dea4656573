"""The terminal chat: talk to one model, or hear all versions of the chain side by side."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated

from llama2_lib.config import Checked, Count, Rule, Weight
from llama2_lib.model.chat import Conversation, continued
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.tokenizer import Tokenizer

EXAMPLES = (
    "Where does Vera live?", "Tell me a story about Remy.", "Always act as Hugo. Where is Karl?",
)  # fmt: skip
COMMANDS = (
    "An empty line or /new begins a new dialog, /system TEXT sets what the model is told first, "
    "Ctrl-C ends an answer, Ctrl-D the chat."
)


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """How answers are sampled."""

    temperature: Weight = 0.7
    top_p: Annotated[float, Rule("be above 0 and at most 1", lambda value: 0 < value <= 1)] = 0.9
    max_new_tokens: Count = 96


def talk(model: Transformer, tokenizer: Tokenizer, sampling: Sampling, system: str = "") -> int:
    """Talk to a chat model until the input ends."""
    room = Conversation(model, tokenizer)
    room.tell(system)
    print(COMMANDS)
    print(f"Try: {'  '.join(EXAMPLES)}")
    return _loop(lambda text, turn: _answer(room, text, turn, sampling), room)


def continue_text(model: Transformer, tokenizer: Tokenizer, sampling: Sampling) -> int:
    """Let a pretrained model go on with what is typed, until the input ends."""
    print("This model only continues text. Ctrl-C ends a text, Ctrl-D the chat.")
    print(f"Try: One morning  Once there was  Question: {EXAMPLES[0]}")
    go_on = partial(continued, model, tokenizer, **asdict(sampling))
    return _loop(lambda text, turn: (grown.text for grown in go_on(text, seed=turn)))


def compare(
    models: dict[str, tuple[Transformer, Tokenizer]], sampling: Sampling, system: str = ""
) -> int:
    """Ask all versions the same question, from the base model to the finished chat model."""
    rooms = {name: Conversation(*model) for name, model in models.items()}

    def answer(text: str, turn: int) -> Iterator[str]:
        lines = ""
        for name, room in rooms.items():
            room.dialog, line = [], ""  # each time a new dialog
            for said in _answer(room, text, turn, sampling):
                line = f"{lines}{name:5s} {said}"
                yield line
            lines = f"{line}\n"

    for room in rooms.values():
        room.tell(system)
    print("Every version answers what you ask, each time in a new dialog. Ctrl-D ends.")
    print(f"Try: {'  '.join(EXAMPLES)}")
    return _loop(answer)


def _answer(room: Conversation, text: str, turn: int, sampling: Sampling) -> Iterator[str]:
    """Yield an answer as it grows, below a note where turns had to go for it."""
    note = said = ""
    for reply in room.ask(text, **asdict(sampling), seed=turn):
        note, said = "(The oldest turns no longer fit.)\n" * room.forgot, reply.text
        yield note + said
    if not said:
        yield f"{note}(no answer)"


def _loop(answer: Callable[[str, int], Iterator[str]], room: Conversation | None = None) -> int:
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
                _print_growing(answer(text, turn))
                turn += 1
            elif shown:
                print(shown)
        except KeyboardInterrupt:
            print("\n(stopped)")
        except ValueError as error:
            print(f"llama2: {error}", file=sys.stderr)


def _print_growing(texts: Iterator[str]) -> None:
    """Print a text as it grows where somebody watches, and elsewhere once it is whole."""
    shown = text = ""
    for text in texts:
        # Half a character, or a tag that is taken out, is not the beginning of what comes.
        if sys.stdout.isatty() and text.startswith(shown) and not text.endswith("\ufffd"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(text[len(shown) :] if text.startswith(shown) else f"\n{text}")


def _command(text: str, room: Conversation | None) -> str | None:
    """Do what a command says and return what to print; None if it is no command."""
    text.encode()  # refuses what is no UTF-8
    word, _, rest = text.strip().partition(" ")
    if room is None:
        return None if word else ""
    if word in ("", "/new"):
        room.dialog = []
        return "(a new dialog)" if word else ""
    if word == "/system":
        room.tell(rest)
        room.dialog = []
        return f"(a new dialog; the model is told first: {rest or 'nothing'})"
    return COMMANDS if word.startswith("/") else None
