"""Prompts that a model can answer: those that leave room for an answer in its context."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from llama2_lib.text.dialog import Encoder, Message, encode_prompt
from llama2_lib.world.facts import World
from llama2_lib.world.prompts import PROMPT_SHARES, Prompt, prompts

MOST_TRIES = 50
"""Prompts looked at for one that fits, on average, before it is an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Prompts with their ids; what was too long is counted."""

    prompts: list[Prompt]
    ids: list[list[int]]
    n_too_long: int

    @property
    def dialogs(self) -> list[list[Message]]:
        """The dialogs, each ending with the user."""
        return cast(list[list[Message]], [prompt.dialog for prompt in self.prompts])

    @property
    def tags(self) -> list[bool]:
        """Whether each is tagged in advance as apt to elicit an unsafe answer."""
        return [prompt.is_safety for prompt in self.prompts]


def ask(
    world: World,
    seed: int,
    n: int,
    tok: Encoder,
    *,
    longest: int,
    split: str = "train",
    shares: Mapping[str, float] = PROMPT_SHARES,
) -> Asked:
    """Draw prompts until n of them have at most `longest` tokens.

    Raises:
        ValueError: Hardly any prompt is so short.
    """
    found = Asked(prompts=[], ids=[], n_too_long=0)
    too_long = 0
    for prompt in prompts(world, seed, split=split, shares=shares):
        if len(found.prompts) == n:
            break
        ids = encode_prompt(cast(list[Message], prompt.dialog), tok)
        if len(ids) <= longest:
            found.prompts.append(prompt)
            found.ids.append(ids)
        else:
            too_long += 1
        if too_long > MOST_TRIES * max(n, 1):
            raise ValueError(
                f"{n} prompts of at most {longest} tokens were asked for; of the first "
                f"{too_long + len(found.prompts)} only {len(found.prompts)} are so short. Give the "
                "model a longer context, or answers less room."
            )
    return Asked(prompts=found.prompts, ids=found.ids, n_too_long=too_long)
