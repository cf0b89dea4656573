"""Messages to tokens: Meta's chat format, and which tokens of a dialog are targets.

The format is that of `chat_completion` in Meta's `generation.py`. A system message is folded into
the first user message. Every finished turn is encoded on its own, as one string between its own
BOS and EOS, `[INST] user [/INST] answer `; the open last turn is `[INST] user [/INST]` after a
BOS. The tags are ordinary text: only BOS and EOS are control tokens. What the format cannot carry
is refused by every function, see `check_dialog`.

The ids of a prompt are a prefix of the ids of the same dialog with its answer, because a
SentencePiece piece never runs from a letter into a following space (`split_by_whitespace`): the
space after `[/INST]` begins the answer's first piece. `encode_example` checks it.

The ids are Meta's. What Meta's code encodes is refused here where in data it is a mistake more
often than meant: a user's or an assistant's message without text (`[INST]  [/INST]`), and a
tag of the format in any message, to which Meta's code answers "unsafe". Clean what a model sampled
with `sanitised`.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple, Protocol, runtime_checkable

from llama2_lib.text.tokenizer import check_unicode
from llama2_lib.world.dialogs import Message

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
TAGS = (B_INST, E_INST, B_SYS.strip(), E_SYS.strip())
ROLES = ("system", "user", "assistant")
LONGEST_EXCERPT = 40
"""Characters of a wrong message that an error shows."""
_TAG = re.compile("|".join(map(re.escape, TAGS)))


@runtime_checkable
class Encoder(Protocol):
    """What this module needs of a tokenizer."""

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the ids of a text, between BOS and EOS where asked for."""
        ...


_EXAMPLE = "Write [{'role': 'user', 'content': 'Hello'}]"


class _Turn(NamedTuple):
    prompt: str
    answer: str | None  # None: the turn is open

    @property
    def closed(self) -> str:
        # Meta's trailing space belongs to the turn, so that EOS never follows a letter.
        return f"{self.prompt} {self.answer} "


def check_dialog(dialog: Sequence[Message]) -> None:
    """Refuse what Meta's format cannot carry, and what is no dialog, naming the message.

    Roles go system? (user assistant)* user?, with at least one user message. User and assistant
    messages hold text; an empty system message is folded as an empty block, as in Meta's code. No
    message may contain a tag of the format: it would be read as a turn border (prompt injection),
    whoever wrote it.
    """
    if isinstance(dialog, str | bytes) or not isinstance(dialog, Sequence):
        raise ValueError(
            f"a dialog must be a list of messages; got {_excerpt(dialog)}. {_EXAMPLE}."
        )
    for index, message in enumerate(dialog):
        _check_message(index, message)
    offset = int(bool(dialog) and dialog[0]["role"] == "system")
    for index, message in enumerate(dialog[offset:]):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise ValueError(
                f"message {index + offset} must come from the {expected}; got "
                f"{message['role']!r} ({_excerpt(message['content'])}). After an optional system "
                "message, user and assistant alternate: merge consecutive messages of one role."
            )
    if len(dialog) == offset:
        raise ValueError("a dialog needs a user message at least; got none. Add the question.")


def _check_message(index: int, message: Message) -> None:
    if not isinstance(message, Mapping):
        raise ValueError(f"message {index} must be a dict; got {_excerpt(message)}. {_EXAMPLE}.")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise ValueError(
                f"message {index} must have the strings 'role' and 'content'; got "
                f"{key}={message.get(key)!r}. {_EXAMPLE}."
            )
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(
            f"the role of message {index} must be one of {', '.join(ROLES)}; got {role!r}. "
            "Rename it, or drop the message."
        )
    check_unicode(content, f"message {index} ({role})")
    if role != "system" and not content.strip():
        raise ValueError(
            f"message {index} ({role}) must hold text; got {content!r}. "
            "Drop the turn, or give it content."
        )
    tag = next((tag for tag in TAGS if tag in content), None)
    if tag is not None:
        raise ValueError(
            f"content must not contain the format's tags {' '.join(TAGS)}; message {index} "
            f"({role}) has {tag!r} ({_excerpt(content)}). Remove it: the tags are added here."
        )


def _excerpt(given: object) -> str:
    shown = repr(given)
    return shown if len(shown) <= LONGEST_EXCERPT else f"{shown[:LONGEST_EXCERPT]}..."


def sanitised(text: str) -> str:
    """Return what a model said without what no message may hold; perhaps nothing is left.

    Tags of the format, whole or so that taking one out makes another, are taken out until none is
    left. Half a character becomes U+FFFD.
    """
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    while _TAG.search(text):
        text = _TAG.sub("", text)
    return text


def _turns(dialog: Sequence[Message]) -> list[_Turn]:
    check_dialog(dialog)
    folded = [message["content"] for message in dialog]
    if dialog[0]["role"] == "system":
        # As in Meta's code the fold comes before the strip, so spaces inside it stay.
        folded[:2] = [B_SYS + folded[0] + E_SYS + folded[1]]
    prompts = [f"{B_INST} {text.strip()} {E_INST}" for text in folded[0::2]]
    answers = [text.strip() for text in folded[1::2]]
    return [_Turn(*turn) for turn in zip_longest(prompts, answers)]


def render(dialog: Sequence[Message]) -> str:
    """Write a dialog, open or finished, in Meta's layout for people to read.

    `<s>` and `</s>` stand for the control tokens. Do not encode this text: they would come out as
    letters.
    """
    return "".join(
        f"<s>{turn.prompt}" if turn.answer is None else f"<s>{turn.closed}</s>"
        for turn in _turns(dialog)
    )


def encode_prompt(dialog: Sequence[Message], tok: Encoder) -> list[int]:
    """Return the ids that ask for the next answer, exactly as Meta's `chat_completion` does."""
    turns = _turns(dialog)
    if turns[-1].answer is not None:
        raise ValueError(
            "a prompt must end with a message of the user; got one of the assistant "
            f"({_excerpt(turns[-1].answer)}). Use encode_example for a finished dialog."
        )
    ids = [token for turn in turns[:-1] for token in tok.encode(turn.closed, bos=True, eos=True)]
    return ids + tok.encode(turns[-1].prompt, bos=True, eos=False)


def encode_example(
    dialog: Sequence[Message], tok: Encoder, loss_on: str = "all"
) -> tuple[list[int], list[bool]]:
    """Return the ids of a finished dialog and its loss mask: mask[t] marks that id t is a TARGET.

    Targets are the pieces of the answers, the piece of Meta's trailing space, and EOS; never BOS,
    tags, system or user text (paper section 3.1). The trailing space is a target because it stands
    between the answer and EOS: a model that never learned to write it would never get to the place
    where it learned to stop. `loss_on` is "all" for every answer (supervised fine-tuning), "last"
    for the last one only (Ghost Attention, section 3.3).
    """
    if loss_on not in ("all", "last"):
        raise ValueError(f"loss_on must be 'all' or 'last'; got {loss_on!r}.")
    turns = _turns(dialog)
    if turns[-1].answer is None:
        raise ValueError(
            "an example must end with an answer of the assistant; got an open dialog that ends "
            f"with the user ({_excerpt(dialog[-1]['content'])}). Use encode_prompt to ask for one."
        )
    ids: list[int] = []
    loss_mask: list[bool] = []
    for index, turn in enumerate(turns):
        prompt = tok.encode(turn.prompt, bos=True, eos=False)
        whole = tok.encode(turn.closed, bos=True, eos=True)
        if whole[: len(prompt)] != prompt:
            raise ValueError(
                "the ids of a prompt must be a prefix of the ids of prompt and answer; in turn "
                f"{index} the tokenizer merges across the end of {E_INST!r} and the answer. "
                "Train it with split_by_whitespace=True, as TokenizerConfig does."
            )
        is_target = loss_on == "all" or index == len(turns) - 1
        ids += whole
        loss_mask += [False] * len(prompt) + [is_target] * (len(whole) - len(prompt))
    return ids, loss_mask
