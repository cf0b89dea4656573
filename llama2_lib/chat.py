"""Talking to models: one of them, or all versions of the chain side by side."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama2_lib import pipeline
from llama2_lib.evaluation.chat import answer
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import Recipe
from llama2_lib.text.dialog import Message
from llama2_lib.text.tokenizer import Tokenizer

VERSIONS = {
    "base": "pretrain",
    "SFT": "sft",
    **{f"V{number}": f"rejection_v{number}" for number in range(1, pipeline.ROUNDS + 1)},
    f"V{pipeline.ROUNDS + 1}": "ppo",
    "GAtt": "ghost_attention",
    "chat": f"red_team_v{pipeline.RED_TEAM_ROUNDS}",
}
"""The versions of the chat model, by the paper's names where it has some, and their stages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How answers are sampled."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 96


Reply = Callable[[str, int], str | None]
"""Takes what was typed and the number of the turn; None begins a new dialog."""


def talk(stage: str, recipe: Recipe, manner: Manner, device: str = "auto") -> int:
    """Talk to the model of one stage until the input ends."""
    model, tokenizer = pipeline.load(stage, recipe, device=device)
    if stage == "pretrain":
        print("This model only continues text. Try 'One morning', or 'Question: ...'. Ctrl-D ends.")
        return _loop(_continuation(model, tokenizer, manner))
    print("Ask what you like. An empty line begins a new dialog. Ctrl-D ends.")
    return _loop(_conversation(model, tokenizer, manner))


def compare(recipe: Recipe, manner: Manner, device: str = "auto") -> int:
    """Ask all versions the same question, from the base model to the finished chat model."""
    loaded = {name: pipeline.load(stage, recipe, device=device) for name, stage in VERSIONS.items()}
    print("Every version answers what you ask, each time a new dialog. Ctrl-D ends.")

    def reply(text: str, turn: int) -> str | None:
        if not text.strip():
            return None
        said = {
            name: answers(model, tokenizer, [[{"role": "user", "content": text}]], manner, turn)[0]
            for name, (model, tokenizer) in loaded.items()
        }
        return "\n".join(f"{name:5s} {line}" for name, line in said.items())

    return _loop(reply)


def answers(
    model: Transformer,
    tokenizer: Tokenizer,
    dialogs: Sequence[Sequence[Message]],
    manner: Manner,
    seed: int = 0,
) -> list[str]:
    """Return an answer to each dialog; "(no answer)" where there is none."""
    said = answer(
        model, tokenizer, dialogs, max_new_tokens=manner.max_new_tokens,
        temperature=manner.temperature, top_p=manner.top_p, seed=seed,
    )  # fmt: skip
    return [reply.text or "(no answer)" for reply in said]


def _loop(reply: Reply) -> int:
    turn = 0
    while True:
        try:
            text = input("> ")
        except EOFError:
            print()
            return 0
        try:
            said = reply(text, turn)
        except ValueError as error:
            print(f"llama2: {error}", file=sys.stderr)
            continue
        if said is not None:
            print(said)
            turn += 1


def _continuation(model: Transformer, tokenizer: Tokenizer, manner: Manner) -> Reply:
    def reply(text: str, turn: int) -> str | None:
        if not text.strip():
            return None
        if text.startswith("Question:"):
            text += "\nAnswer:"
        prompt = tokenizer.encode(text, bos=True)
        [done] = generate(
            model, [prompt], max_new_tokens=manner.max_new_tokens,
            temperature=manner.temperature, top_p=manner.top_p, seed=turn,
            stop_ids={tokenizer.eos_id},
        )  # fmt: skip
        return tokenizer.decode([*prompt, *done.ids])

    return reply


def _conversation(model: Transformer, tokenizer: Tokenizer, manner: Manner) -> Reply:
    dialog: list[Message] = []

    def reply(text: str, turn: int) -> str | None:
        if not text.strip():
            dialog.clear()
            return None
        asked: list[Message] = [*dialog, {"role": "user", "content": text}]
        [said] = answers(model, tokenizer, [asked], manner, turn)
        # Format and context cannot carry a silent answer, so that turn is forgotten.
        if said != "(no answer)":
            dialog[:] = [*asked, {"role": "assistant", "content": said}]
        return said

    return reply
