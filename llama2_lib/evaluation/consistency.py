"""Does a model keep an instruction over many turns? (paper section 3.3, appendix A.3.5)

Two histories tell different things. On its own history a model may copy its own earlier answers;
on a neutral one, in which no earlier answer obeys, only the first message can remind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool

from llama2_lib import rng
from llama2_lib.evaluation.chat import answer
from llama2_lib.evaluation.statistics import Estimate, proportion_exact
from llama2_lib.model.cache import Past
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import Message, encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.brief import MOST_TURNS, Brief, briefs
from llama2_lib.world.facts import World
from llama2_lib.world.instructions import (
    Instruction,
    instruction_maker,
    instructions,
    obeys,
    prefixed,
)

TURNS = (2, 4, 6, 20)
"""Of the paper's table 30."""
MAX_NEW_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One dialog to hold: instructions in its first message, and what the user says."""

    instructions: tuple[Instruction, ...]
    turns: list[Brief]

    def requests(self) -> list[str]:
        """Return what the user says; the instructions stand before the first message only."""
        first, *rest = (turn.request for turn in self.turns)
        return [prefixed(self.instructions, first), *rest]


class Kept(NamedTuple):
    """What became of the answers of many dialogs, by turn."""

    obeyed: Bool[np.ndarray, "cases turns"]
    right: Bool[np.ndarray, "cases turns"]
    """Whether what was asked was answered rightly, obeying or not."""
    reached: Bool[np.ndarray, "cases turns"]
    """False where the dialog had filled the context before; such turns are not counted."""

    def obedience(self, turn: int) -> Estimate:
        """Return the share that obeys at a turn, counted from 1, with Clopper and Pearson's bounds.

        Raises:
            ValueError: No dialog reached that turn.
        """
        return _share(self.obeyed, self.reached, turn)

    def correctness(self, turn: int) -> Estimate:
        """Return the share of right answers at a turn, likewise."""
        return _share(self.right, self.reached, turn)


def _share(hits: np.ndarray, reached: np.ndarray, turn: int) -> Estimate:
    if not 1 <= turn <= hits.shape[1] or not reached[:, turn - 1].any():
        raise ValueError(
            f"a turn that some dialog reached is needed; got turn {turn} of {hits.shape[1]}. Ask "
            "for an earlier one, or for shorter answers."
        )
    rows = reached[:, turn - 1]
    return proportion_exact(int(hits[rows, turn - 1].sum()), int(rows.sum()))


def cases(
    world: World,
    seed: int,
    n: int,
    *,
    split: str = "train",
    n_turns: int = MOST_TURNS,
    combined: float = 0.0,
) -> list[Case]:
    """Return n dialogs to hold, of instructions of a split; see `world.instructions`."""
    source = rng.seed_from(seed, "consistency")
    drawn = instructions(world, source, n, split, combined)
    asked = briefs(world, source, n, fewest=n_turns, most=n_turns)
    return [Case(instructions=i, turns=t) for i, t in zip(drawn, asked, strict=True)]


def converse(
    model: Transformer,
    tokenizer: Tokenizer,
    requests: Sequence[Sequence[str]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[str | None]]:
    """Hold dialogs in which the user says `requests`; return the answers of the model.

    None stands where the context was full. An answer of nothing is kept as a full stop, because
    the chat format cannot carry an empty message.
    """
    histories: list[list[Message]] = [[] for _ in requests]
    said: list[list[str | None]] = [[] for _ in requests]
    pasts = [Past() for _ in requests]
    context = model.config.max_seq_len
    for turn in range(max(map(len, requests), default=0)):
        rows: list[int] = []
        for row, own in enumerate(requests):
            if turn >= len(own):
                continue
            asked = [*histories[row], _message("user", own[turn])]
            if None not in said[row] and len(encode_prompt(asked, tokenizer)) < context:
                histories[row] = asked
                rows.append(row)
            else:
                said[row].append(None)
        if not rows:
            continue
        answers = answer(
            model, tokenizer, [histories[row] for row in rows], max_new_tokens=max_new_tokens,
            temperature=temperature, seed=rng.seed_from(seed, "turn", turn),
            pasts=[pasts[row] for row in rows],
        )  # fmt: skip
        for row, reply in zip(rows, answers, strict=True):
            text = carried(reply.text)
            said[row].append(text)
            histories[row].append(_message("assistant", text))
    return said


def carried(text: str) -> str:
    """Return a text that the format can carry: no tags, not empty."""
    for tag in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"):
        text = text.replace(tag, "")
    return text.strip() or "."


def _message(role: str, content: str) -> Message:
    return cast(Message, {"role": role, "content": content})


def marked(
    dialogs: Sequence[Case],
    said: Sequence[Sequence[str | None]],
    expected: Sequence[tuple[Instruction, ...]] | None = None,
) -> Kept:
    """Mark answers by turn.

    Args:
        dialogs: The cases.
        said: Their answers; None where there is none.
        expected: What answers must obey, if not what the case asked for first.
    """
    wanted = expected or [case.instructions for case in dialogs]
    obeyed = [
        [text is not None and obeys(own, text) for text in row]
        for own, row in zip(wanted, said, strict=True)
    ]
    right = [
        [text is not None and turn.is_right(text) for turn, text in zip(c.turns, row, strict=True)]
        for c, row in zip(dialogs, said, strict=True)
    ]
    reached = [[text is not None for text in row] for row in said]
    return Kept(np.array(obeyed), np.array(right), np.array(reached))


def on_own_history(
    model: Transformer, tokenizer: Tokenizer, dialogs: Sequence[Case], *, seed: int = 0
) -> Kept:
    """Mark the greedy answers of dialogs that the model itself holds; instructions come once."""
    said = converse(model, tokenizer, [case.requests() for case in dialogs], seed=seed)
    return marked(dialogs, said)


def on_neutral_history(
    model: Transformer,
    tokenizer: Tokenizer,
    dialogs: Sequence[Case],
    turns: Sequence[int] = TURNS,
) -> Kept:
    """Mark greedy answers after plain earlier answers, none of which obeys.

    Only `turns`, counted from 1, are asked; the others are marked as not reached.
    """
    said: list[list[str | None]] = [[None] * len(case.turns) for case in dialogs]
    pasts = [Past() for _ in dialogs]
    for turn in turns:
        prompts = [plain_until(case, turn) for case in dialogs]
        room = model.config.max_seq_len
        rows = [r for r, p in enumerate(prompts) if len(encode_prompt(p, tokenizer)) < room]
        answers = answer(
            model, tokenizer, [prompts[row] for row in rows], max_new_tokens=MAX_NEW_TOKENS,
            pasts=[pasts[row] for row in rows],
        )  # fmt: skip
        for row, reply in zip(rows, answers, strict=True):
            said[row][turn - 1] = reply.text
    return marked(dialogs, said)


def plain_until(case: Case, turn: int) -> list[Message]:
    """Return a case up to the user's message of a turn, with plain answers before it.

    Raises:
        ValueError: There is no such turn.
    """
    requests = case.requests()
    if not 1 <= turn <= len(requests):
        raise ValueError(f"turns must lie within 1 and {len(requests)}; got {turn}.")
    dialog = [
        message
        for request, earlier in zip(requests[: turn - 1], case.turns, strict=False)
        for message in (_message("user", request), _message("assistant", earlier.answer))
    ]
    return [*dialog, _message("user", requests[turn - 1])]


class Switched(NamedTuple):
    """What answers obey when the instruction is changed in the middle of a dialog."""

    old: Kept
    new: Kept
    at: int
    """The turn whose message carries the new instruction, counted from 1."""


def switched(
    model: Transformer,
    tokenizer: Tokenizer,
    world: World,
    *,
    at: int,
    n: int,
    n_turns: int,
    seed: int = 0,
    split: str = "train",
) -> Switched:
    """Give another value of the same kind at turn `at`, which the paper says GAtt does not cover.

    Raises:
        ValueError: `at` is not a turn after the first.
    """
    if not 1 < at <= n_turns:
        raise ValueError(f"the switch must come at turn 2 to {n_turns}; got {at}.")
    maker, source = instruction_maker(world, split), rng.random_source(seed, "switched")
    dialogs, others = [], []
    for case in cases(world, seed, 4 * n, split=split, n_turns=n_turns):
        other = maker.other(source, case.instructions[0])
        if other is not None and len(dialogs) < n:
            dialogs.append(case)
            others.append((other,))
    requests = [case.requests() for case in dialogs]
    for own, case, other in zip(requests, dialogs, others, strict=True):
        own[at - 1] = prefixed(other, case.turns[at - 1].request)
    said = converse(model, tokenizer, requests, seed=seed)
    return Switched(marked(dialogs, said), marked(dialogs, said, others), at)
