"""Checks of attention, cached decoding and ragged generation, and the mistakes they recognise."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import (
    KVCache,
    Transformer,
    TransformerBlock,
    apply_rotary,
    masked,
)
from llama2_lib.model.transformer import grouped_query_attention as right_attention
from llama2_lib.model.weights import build
from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, diagnose, on, recognise
from llama2_lib.teaching.transformer import random_weights


def _scaled(factor: Callable[[Tensor], float]) -> Code:
    """Return right attention whose scores are multiplied by `factor(q)` beforehand."""
    return lambda q, k, v, visible: right_attention(q * factor(q), k, v, visible)


def _seeing(change: Callable[[Tensor], Tensor]) -> Code:
    """Return right attention under another mask."""
    return lambda q, k, v, visible: right_attention(q, k, v, change(visible))


def _tiled(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1)
    return right_attention(q, k, v, visible)


def _by_hand(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, weigh: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Attention whose weights `weigh(scores, seen)` makes of (batch, head, query, key)."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", weigh(scores, visible[:, None]), v)


ATTENTION_MISTAKES: Mistakes = {
    "the scores are not divided by sqrt(head_dim)": _scaled(lambda q: q.shape[-1] ** 0.5),
    "the scores are divided by head_dim, not by its root": _scaled(lambda q: q.shape[-1] ** -0.5),
    "the scores are divided by the root of the whole width, not of one head": _scaled(
        lambda q: q.shape[2] ** -0.5
    ),
    "the mask is ignored, so a query sees the tokens after it": _seeing(torch.ones_like),
    "the mask is off by one, so a query sees the token after it": _seeing(
        lambda visible: visible | visible.roll(1, -1).tril(1)
    ),
    "the mask is upside down: a query sees what it should not": _seeing(torch.logical_not),
    "hidden scores are set to 0, not to minus infinity": partial(
        _by_hand, weigh=lambda scores, seen: scores.masked_fill(~seen, 0.0).softmax(-1)
    ),
    "the softmax runs over the queries, not over the keys": partial(
        _by_hand, weigh=lambda scores, seen: scores.masked_fill(~seen, -torch.inf).softmax(-2)
    ),
    "weights are masked after the softmax, so they no longer add up to 1": partial(
        _by_hand, weigh=lambda scores, seen: scores.softmax(-1) * seen
    ),
    "there is no softmax": partial(_by_hand, weigh=lambda scores, seen: scores * seen),
    "the mask is transposed: a query sees the tokens after it, not those before": _seeing(
        lambda visible: visible.mT
    ),
    "a query does not see its own token": _seeing(lambda visible: visible.tril(-1)),
    "query head h reads key/value head h % kv_heads, not h // group (tiled, not repeated)": _tiled,
}


def attention(candidate: Code, *, kv_heads: int = 3) -> None:
    """Check `candidate(q, k, v, visible)` on 6 query heads that share 3 key/value heads.

    q is (batch, seq, heads, head_dim), k and v have fewer heads, visible is (batch, seq, seq).
    """
    generator = rng.generator(0, "check", "attention")
    q = 1.5 * torch.randn(2, 5, 6, 4, generator=generator)
    k, v = torch.randn(2, 2, 5, kv_heads, 4, generator=generator).unbind(0)
    visible = torch.ones(2, 5, 5, dtype=torch.bool).tril()
    expected = right_attention(q, k, v, visible)
    diagnose(on(q, k, v, visible), candidate, expected, ATTENTION_MISTAKES)


def multi_head(candidate: Code) -> None:
    """Check `candidate(q, k, v, visible)` where every query head has a key/value head."""
    attention(candidate, kv_heads=6)


def _decode(
    model: Transformer,
    ids: Tensor,
    n_prompt: int,
    *,
    position: Callable[[int], int] = lambda start: start,
    slot: int = 0,
    turned: bool = True,
    reads_itself: bool = True,
) -> Tensor:
    """Return the logits of a prompt, then of one token at a time, as a flawed cache gives them."""
    caches = KVCache(model.config, 1, ids.shape[1]).layers
    layers = cast(Sequence[TransformerBlock], model.layers)
    logits = []
    for start in [0, *range(n_prompt, ids.shape[1])]:
        end = start + 1 if start else n_prompt
        h = model.tok_embeddings(ids[:, start:end])
        rotation = model.rotation(h, start=position(start) if start else 0)
        visible = torch.ones(1, end - start, ids.shape[1], dtype=torch.bool).tril(start)
        if start and not reads_itself:
            visible[:, :, start] = False
        for layer, cache in zip(layers, caches, strict=True):
            q, k, v = layer.attention.project(layer.attention_norm(h), rotation)
            if not turned:
                k = apply_rotary(k, rotation.conj())
            cache.extend(k.transpose(1, 2), v.transpose(1, 2), start + slot if start else 0)
            mixed = right_attention(q, cache.k.transpose(1, 2), cache.v.transpose(1, 2), visible)
            h = h + layer.attention.wo(mixed.flatten(-2))
            h = h + layer.feed_forward(layer.ffn_norm(h))
        logits.append(model.logits(model.norm(h)))
    return torch.cat(logits, dim=1)


DECODE_MISTAKES: Mistakes = {
    "positions begin at 0 again with every new token": partial(_decode, position=lambda start: 0),
    "the position of a new token is one too high": partial(
        _decode, position=lambda start: start + 1
    ),
    "a new key is written one slot too early, over the one before it": partial(_decode, slot=-1),
    "keys enter the cache before they are rotated": partial(_decode, turned=False),
    "a new token reads the cache before its own key is in it": partial(_decode, reads_itself=False),
    "the cache forgets the prompt: a new token sees only itself": lambda model, ids, n: torch.cat(
        [model(ids[:, :n]), *(model(ids[:, t : t + 1]) for t in range(n, ids.shape[1]))], dim=1
    ),
}


def small_model(seed: int = 0) -> Transformer:
    """Return an untrained model with 6 query heads on 3 key/value heads, and lively logits."""
    config = ModelConfig(
        vocab_size=53, dim=48, n_layers=3, n_heads=6, n_kv_heads=3, multiple_of=20, max_seq_len=64
    )
    return build(config, random_weights(config, seed))


@torch.no_grad()
def cached(candidate: Code) -> None:
    """Check `candidate(model, ids, n_prompt)`: the prompt at once, then one token at a time.

    It returns the logits of `model(ids)`, and sends every token through the model once.
    """
    model = small_model()
    ids = torch.randint(53, (1, 11), generator=rng.generator(0, "check", "cached"))
    lengths: list[int] = []
    hook = model.tok_embeddings.register_forward_hook(
        lambda module, inputs, output: lengths.append(inputs[0].numel())
    )
    try:
        logits = candidate(model, ids, 4)
    finally:
        hook.remove()

    def run(decode: Code) -> Tensor:
        return logits if decode is candidate else decode(model, ids, 4)

    diagnose(run, candidate, model(ids), DECODE_MISTAKES, rtol=1e-3, atol=1e-4)
    if lengths != [4, 1, 1, 1, 1, 1, 1, 1]:
        raise CheckFailed(
            f"the logits are right, but tokens went through the model in portions of {lengths}, "
            "not the 4 of the prompt and then one at a time: the cache is not used."
        )


def _padded_greedy(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    *,
    left: bool = True,
    hidden: bool = True,
    new_positions: bool = True,
) -> list[list[int]]:
    """Return greedy answers in one padded batch, without a cache, with flaws."""
    width = max(map(len, prompts))
    gaps = [width - len(prompt) for prompt in prompts]
    rows = [
        [0] * gap + [*p] if left else [*p] + [0] * gap for p, gap in zip(prompts, gaps, strict=True)
    ]
    ids, gap = torch.tensor(rows), torch.tensor(gaps)[:, None] * left
    for _ in range(n_new):
        at = torch.arange(ids.shape[1])
        positions = (at - gap).clamp(min=0)
        if not new_positions:
            positions[:, width:] = at[width:]
        visible = torch.ones(len(rows), len(at), len(at), dtype=torch.bool).tril()
        if hidden:
            visible &= at >= gap[:, :, None]
        visible |= torch.eye(len(at), dtype=torch.bool)
        logits = model(ids, positions=positions, attend=masked(visible))[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[:, width:].tolist()


GREEDY_MISTAKES: Mistakes = {
    "the padding is not masked, so prompts attend to it": partial(_padded_greedy, hidden=False),
    "short prompts are padded on the right, so the answer follows the padding": partial(
        _padded_greedy, left=False, hidden=False
    ),
    "the prompt's positions leave the padding out, those of new tokens count it": partial(
        _padded_greedy, new_positions=False
    ),
    "longer prompts are cut to the length of the shortest": lambda model, prompts, n_new: (
        _padded_greedy(model, [prompt[: min(map(len, prompts))] for prompt in prompts], n_new)
    ),
}


@torch.no_grad()
def greedy(candidate: Code) -> None:
    """Check `candidate(model, prompts, n_new)`: the ids that are likeliest, one by one.

    The prompts are ragged: lengths 3, 7 and 4. The answers must equal those of each prompt alone.
    """
    model = small_model()
    generator = rng.generator(0, "check", "greedy")
    prompts = [torch.randint(1, 53, (n,), generator=generator).tolist() for n in (3, 7, 4)]
    done = [generate(model, [p], max_new_tokens=8, temperature=0.0)[0].ids for p in prompts]
    actual = [list(map(int, row)) for row in candidate(model, prompts, 8)]
    if actual == done:
        return
    words = "some answers differ: "
    recognise(lambda wrong: actual == wrong(model, prompts, 8), GREEDY_MISTAKES, words)
    lengths = [len(row) for row in actual]
    if lengths != [8, 8, 8]:
        raise CheckFailed(
            f"three answers of 8 ids are wanted, without the prompts; got lengths {lengths}."
        )
    rows = [row for row, (a, b) in enumerate(zip(actual, done, strict=True)) if a != b]
    raise CheckFailed(f"the answers to prompts {rows} differ, like no mistake known here.")
