"""Prompts that a model can answer: those that leave room for an answer in its context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llama2_lib.text.dialog import Encoder, encode_prompt
from llama2_lib.world.dialogs import Message
from llama2_lib.world.prompts import Prompt
from llama2_lib.world.source import Source

MOST_TRIES = 50
"""Prompts looked at for one that fits, on average, before it is an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Prompts with their ids; what was too long is counted."""

    prompts: list[Prompt]
    ids: list[list[int]]
    n_too_long: int

    @property
    def dialogs(self) -> list[list[Message]]:
        """The dialogs, each ending with the user."""
        return [prompt.dialog for prompt in self.prompts]

    @property
    def tags(self) -> list[bool]:
        """Whether each is tagged in advance as apt to elicit an unsafe answer."""
        return [prompt.is_safety for prompt in self.prompts]


def sample_prompts(
    source: Source, seed: int, n: int, tok: Encoder, *, longest: int, split: str = "train",
    shares: Mapping[str, float] | None = None,
) -> PromptSet:  # fmt: skip
    """Draw prompts until n of them have at most `longest` tokens."""
    prompts: list[Prompt] = []
    encoded: list[list[int]] = []
    n_too_long = 0
    for prompt in source.prompts(seed, split=split, shares=shares):
        if len(prompts) == n:
            break
        ids = encode_prompt(prompt.dialog, tok)
        if len(ids) <= longest:
            prompts.append(prompt)
            encoded.append(ids)
        else:
            n_too_long += 1
        if n_too_long > MOST_TRIES * max(n, 1):
            raise ValueError(
                f"{n} prompts of at most {longest} tokens were asked for; of the first "
                f"{n_too_long + len(prompts)} only {len(prompts)} are so short. Give the model a "
                "longer context, or answers less room."
            )
    return PromptSet(prompts=prompts, ids=encoded, n_too_long=n_too_long)


def answered(dialog: Sequence[Message], answer: str) -> list[Message]:
    """Return a dialog that ends with the user, and an answer to it."""
    return [*dialog, {"role": "assistant", "content": answer}]
