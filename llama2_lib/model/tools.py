"""Calls of tools: what of them is learned, and the loop that runs them (section 5.1).

An answer with a call is one answer: the call, then what the tool says, then the rest. What the tool
says is in the context and never a target: a model that was trained on it would learn to make
results up. When it answers, sampling stops at the end of a call, the result is written behind it,
and sampling goes on.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llama2_lib import rng
from llama2_lib.model.chat import room
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import encode_prompt, sanitised
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.dialogs import Message

Run = Callable[[str, str], str]
"""Takes the name of a tool and the arguments; returns what the tool says."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call and what came of it."""

    name: str
    arguments: str
    result: str


@dataclass(slots=True)
class ToolReply:
    """What a model said, with what tools said in between."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    """All after the prompt, the results of tools included."""
    calls: list[Call] = field(default_factory=list)
    ended: bool = False


def tool_example(
    dialog: Sequence[Message], call: str, result: str, answer: str, tok: Tokenizer
) -> tuple[list[int], list[bool]]:
    """Return ids and loss mask of an answer with a call: prompt and result are no targets.

    The pieces are joined as they come when the model is asked: call, result, rest, each encoded by
    itself.
    """
    parts = [
        (encode_prompt(dialog, tok), False),
        (tok.encode(call), True),
        (tok.encode(f"{result}\n"), False),
        (tok.encode(f"{answer} ", eos=True), True),  # the space before EOS is Meta's
    ]
    return (
        [token for ids, _ in parts for token in ids],
        [is_target for ids, is_target in parts for _ in ids],
    )


def reply_with_tools(
    model: Transformer,
    tok: Tokenizer,
    dialogs: Sequence[Sequence[Message]],
    run: Run,
    *,
    most_calls: int = 2,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[ToolReply]:
    """Return the model's reply to each dialog, its calls run by `run`.

    Each part of a reply, before a call, between two and after the last one, has at most
    `max_new_tokens` tokens; after `most_calls` calls a further one is left as text. A dialog must
    leave room for all of it in the context.
    """
    end_of_call = tok.encode("=")[-1]
    prompts = [encode_prompt(dialog, tok) for dialog in dialogs]
    replies = [ToolReply() for _ in dialogs]
    waiting = list(range(len(dialogs)))
    for turn in range(most_calls + 1):
        stops = {tok.eos_id} | ({end_of_call} if turn < most_calls else set())
        waiting = [row for row in waiting if len(prompts[row]) <= room(model, max_new_tokens)]
        if not waiting:
            break
        done = generate(
            model,
            [prompts[row] for row in waiting],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=[rng.seed_from(seed, "tools", row, turn) for row in waiting],
            stop_ids=stops,
        )
        going_on = []
        for row, one in zip(waiting, done, strict=True):
            reply = replies[row]
            new = list(one.ids)
            reply.ended = one.finished and new[-1] == tok.eos_id
            if one.finished and not reply.ended and (call := called(tok.decode(new), run)):
                reply.calls.append(call)
                new += tok.encode(f"{call.result}\n")
                going_on.append(row)
            elif one.finished and not reply.ended:  # an equals sign that ends no call
                going_on.append(row)
            reply.ids += new
            prompts[row] = [*prompts[row], *new]
        waiting = going_on
    for reply in replies:
        reply.text = sanitised(tok.decode(reply.ids)).strip()
    return replies


def called(text: str, run: Run) -> Call | None:
    """Run the call that a text ends with, `name: arguments =` on its last line; None without."""
    found = re.search(r"(\w+): (.+) =$", text.strip().rsplit("\n", 1)[-1].strip())
    if found is None:
        return None
    name, arguments = found.groups()
    return Call(name, arguments, run(name, arguments))
