"""Does a model keep an instruction over many turns, and does it look at it? (section 3.3, A.3.5)

Two histories tell different things. On its own history a model may copy its own earlier answers;
on a neutral one, in which no earlier answer obeys, only the first message can remind it. How much
of a dialog still attends to the instruction is the paper's figure 10.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llama2_lib import rng
from llama2_lib.evaluation.statistics import Estimate, proportion_exact
from llama2_lib.model.chat import carried, fits, reply, room
from llama2_lib.model.generate import Past
from llama2_lib.model.transformer import Transformer, TransformerBlock, attention_weights
from llama2_lib.text.dialog import Encoder, encode_example
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.dialogs import Message, exchange
from llama2_lib.world.facts import World
from llama2_lib.world.instructions import (
    MOST_TURNS,
    Brief,
    Instruction,
    briefs,
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
        """Return the share that obeys at a turn, counted from 1, with exact bounds."""
        return self._share(self.obeyed, turn)

    def correctness(self, turn: int) -> Estimate:
        """Return the share of right answers at a turn, with exact bounds."""
        return self._share(self.right, turn)

    def _share(self, hits: np.ndarray, turn: int) -> Estimate:
        n_turns = hits.shape[1]
        if not 1 <= turn <= n_turns or not self.reached[:, turn - 1].any():
            raise ValueError(
                f"a turn that some dialog reached is needed; got turn {turn} of {n_turns}. Ask "
                "for an earlier one, or for shorter answers."
            )
        rows = self.reached[:, turn - 1]
        return proportion_exact(int(hits[rows, turn - 1].sum()), int(rows.sum()))


def cases(
    world: World, seed: int, n: int, *, split: str = "train", n_turns: int = MOST_TURNS
) -> list[Case]:
    """Return n dialogs to hold, of instructions of a split; see `world.instructions`."""
    source = rng.seed_from(seed, "consistency")
    given = instructions(world, source, n, split, combined=0.0)
    turns = briefs(world, source, n, fewest=n_turns, most=n_turns)
    return [Case(instructions=i, turns=t) for i, t in zip(given, turns, strict=True)]


def converse(
    model: Transformer, tokenizer: Tokenizer, requests: Sequence[Sequence[str]]
) -> list[list[str | None]]:
    """Hold dialogs in which the user says `requests`; return the greedy answers of the model.

    None stands where the context was full. An answer of nothing is kept as a full stop, because
    the chat format cannot carry an empty message.
    """
    histories: list[list[Message]] = [[] for _ in requests]
    answers: list[list[str | None]] = [[] for _ in requests]
    pasts = [Past() for _ in requests]
    for turn in range(max(map(len, requests), default=0)):
        rows = [row for row, texts in enumerate(requests) if turn < len(texts)]
        prompts = {
            row: [*histories[row], Message(role="user", content=requests[row][turn])]
            for row in rows
            if None not in answers[row]
        }
        replies = _replies(model, tokenizer, prompts, pasts)
        for row in rows:
            answers[row].append(carried(replies[row]) if row in replies else None)
        for row, text in replies.items():
            histories[row] += exchange(requests[row][turn], carried(text))
    return answers


def _replies(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Mapping[int, list[Message]],
    pasts: Sequence[Past],
) -> dict[int, str]:
    """Return what the model says to the prompts that leave room for a token, by their number."""
    rows = [row for row, dialog in prompts.items() if fits(dialog, tokenizer, room(model, 1))]
    dialogs, own = [prompts[row] for row in rows], [pasts[row] for row in rows]
    replies = reply(model, tokenizer, dialogs, max_new_tokens=MAX_NEW_TOKENS, pasts=own)
    return {row: one.text for row, one in zip(rows, replies, strict=True)}


def marked(
    dialogs: Sequence[Case],
    answers: Sequence[Sequence[str | None]],
    expected: Sequence[tuple[Instruction, ...]] | None = None,
) -> Kept:
    """Mark answers by turn; None is no answer.

    They must obey `expected`, or, if that is left out, what the case asked for first.
    """
    wanted = expected or [case.instructions for case in dialogs]
    reached = np.array([[text is not None for text in texts] for texts in answers])
    obeyed, right = np.zeros_like(reached), np.zeros_like(reached)
    for row, (case, texts, given) in enumerate(zip(dialogs, answers, wanted, strict=True)):
        for column, (turn, text) in enumerate(zip(case.turns, texts, strict=True)):
            if text is not None:
                obeyed[row, column] = obeys(given, text)
                right[row, column] = turn.is_right(text)
    return Kept(obeyed, right, reached)


def on_own_history(model: Transformer, tokenizer: Tokenizer, dialogs: Sequence[Case]) -> Kept:
    """Mark the greedy answers of dialogs that the model itself holds; instructions come once."""
    return marked(dialogs, converse(model, tokenizer, [case.requests() for case in dialogs]))


def on_neutral_history(
    model: Transformer, tokenizer: Tokenizer, dialogs: Sequence[Case], turns: Sequence[int] = TURNS
) -> Kept:
    """Mark greedy answers after plain earlier answers, none of which obeys.

    Only `turns`, counted from 1, are asked; the others are marked as not reached.
    """
    answers: list[list[str | None]] = [[None] * len(case.turns) for case in dialogs]
    pasts = [Past() for _ in dialogs]
    for turn in turns:
        prompts = {row: plain_until(case, turn) for row, case in enumerate(dialogs)}
        for row, text in _replies(model, tokenizer, prompts, pasts).items():
            answers[row][turn - 1] = text
    return marked(dialogs, answers)


def plain_until(case: Case, turn: int) -> list[Message]:
    """Return a case up to the user's message of a turn, with plain answers before it."""
    requests = case.requests()
    assert 1 <= turn <= len(requests), f"turn {turn} of {len(requests)}"
    turns = zip(requests[: turn - 1], case.turns, strict=False)
    earlier = chain.from_iterable(exchange(request, plain.answer) for request, plain in turns)
    return [*earlier, Message(role="user", content=requests[turn - 1])]


class Switched(NamedTuple):
    """What answers obey when the instruction is changed in the middle of a dialog."""

    old: Kept
    new: Kept
    at: int
    """The turn whose message carries the new instruction, counted from 1."""


def switched(
    model: Transformer, tokenizer: Tokenizer, world: World, *, at: int, n: int, n_turns: int,
    seed: int = 0,
) -> Switched:  # fmt: skip
    """Give another value of the same kind at turn `at`: the paper says GAtt does not cover it."""
    assert 1 < at <= n_turns, f"the switch must come at turn 2 to {n_turns}; got {at}"
    maker, source = instruction_maker(world, "train"), rng.random_source(seed, "switched")
    dialogs, others = [], []
    for case in cases(world, seed, 4 * n, n_turns=n_turns):
        other = maker.other(source, case.instructions[0])
        if other is not None and len(dialogs) < n:
            dialogs.append(case)
            others.append((other,))
    requests = [case.requests() for case in dialogs]
    for texts, case, other in zip(requests, dialogs, others, strict=True):
        texts[at - 1] = prefixed(other, case.turns[at - 1].request)
    answers = converse(model, tokenizer, requests)
    return Switched(marked(dialogs, answers), marked(dialogs, answers, others), at)


class Spans(NamedTuple):
    """Where things stand in an encoded dialog; half-open ranges of positions."""

    ids: list[int]
    instruction: range
    answers: list[range]
    """One a turn, EOS included."""


@torch.no_grad()
def maximum_attention(
    model: Transformer, ids: Int[Tensor, " seq"], keys: range
) -> Float[Tensor, " seq"]:
    """Return for each position the largest weight that any head of any layer gives to `keys`.

    Positions before the keys get 0.
    """
    context = model.config.max_seq_len
    assert len(ids) <= context, f"{len(ids)} tokens must fit {context}: drop turns"
    assert 0 <= keys.start < keys.stop <= len(ids), f"keys must lie within 0 and {len(ids)}"
    h = model.tok_embeddings(ids[None])
    rotation = model.rotation(h)
    visible = torch.ones(1, len(ids), len(ids), dtype=torch.bool, device=ids.device).tril()
    largest = torch.zeros(len(ids), device=ids.device, dtype=h.dtype)
    for layer in cast(list[TransformerBlock], model.layers):
        q, k, _ = layer.attention.project(layer.attention_norm(h), rotation)
        weights = attention_weights(q, k, visible)[0, :, :, keys.start : keys.stop]
        largest = torch.maximum(largest, weights.amax(dim=(0, 2)))
        h = layer(h, rotation)
    return largest


def spans(dialog: Sequence[Message], instruction: str, tok: Encoder) -> Spans:
    """Encode a finished dialog whose first message begins with the instruction; find both."""
    begins = dialog[0]["content"].startswith(f"{instruction} ")
    assert begins, f"the first message must begin with {instruction!r}"
    ids, targets = encode_example(dialog, tok)
    begin = len(tok.encode("[INST]", bos=True))
    head = tok.encode(f"[INST] {instruction}", bos=True)
    assert ids[: len(head)] == head, f"the tokenizer merges across the end of {instruction!r}"
    runs = groupby(range(len(ids)), key=lambda position: targets[position])
    answers = [list(positions) for is_answer, positions in runs if is_answer]
    bounds = [range(positions[0], positions[-1] + 1) for positions in answers]
    return Spans(ids, range(begin, len(head)), bounds)


def attention_by_turn(
    model: Transformer, tok: Encoder, dialog: Sequence[Message], instruction: str
) -> Float[np.ndarray, " turns"]:
    """Return for every turn the mean, over what writes the answer, of the maximum attention.

    What writes an answer's token is the position before it.
    """
    where = spans(dialog, instruction, tok)
    device = model.tok_embeddings.weight.device
    largest = maximum_attention(model, torch.tensor(where.ids, device=device), where.instruction)
    means = [largest[span.start - 1 : span.stop - 1].mean().item() for span in where.answers]
    return np.array(means)
