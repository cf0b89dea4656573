"""How much of a dialog still looks at the instruction (paper figure 10)."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama2_lib.model.attention import attention_weights
from llama2_lib.model.transformer import Transformer, TransformerBlock
from llama2_lib.text.dialog import Encoder, Message, encode_example


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

    Raises:
        ValueError: The sequence does not fit the context, or the keys are no positions of it.
    """
    if len(ids) > model.config.max_seq_len:
        raise ValueError(
            f"a sequence must fit {model.config.max_seq_len} tokens; got {len(ids)}. Drop turns."
        )
    if not 0 <= keys.start < keys.stop <= len(ids):
        raise ValueError(f"keys must lie within 0 and {len(ids)}; got {keys}.")
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
    """Encode a finished dialog whose first message begins with the instruction; say where it is.

    Raises:
        ValueError: The first message does not begin with it, or the dialog is malformed.
    """
    if not dialog[0]["content"].startswith(f"{instruction} "):
        raise ValueError(
            f"the first message must begin with {instruction!r}; it is "
            f"{dialog[0]['content'][:60]!r}."
        )
    ids, targets = encode_example(dialog, tok)
    begin = len(tok.encode("[INST]", bos=True))
    head = tok.encode(f"[INST] {instruction}", bos=True)
    if ids[: len(head)] != head:
        raise ValueError("the tokenizer merges across the end of the instruction; cannot find it.")
    answers, position = [], 0
    while position < len(ids):
        end = position
        while end < len(ids) and targets[end] == targets[position]:
            end += 1
        if targets[position]:
            answers.append(range(position, end))
        position = end
    return Spans(ids, range(begin, len(head)), answers)


def attention_by_turn(
    model: Transformer, tok: Encoder, dialog: Sequence[Message], instruction: str
) -> Float[np.ndarray, " turns"]:
    """Return for every turn the mean, over what writes the answer, of the maximum attention.

    What writes an answer's token is the position before it.

    Raises:
        ValueError: as in `spans`, or the dialog does not fit the context.
    """
    found = spans(dialog, instruction, tok)
    device = model.tok_embeddings.weight.device
    largest = maximum_attention(model, torch.tensor(found.ids, device=device), found.instruction)
    means = [largest[own.start - 1 : own.stop - 1].mean().item() for own in found.answers]
    return np.array(means)
