"""Checks of attention, cached decoding and ragged generation, and the mistakes they recognise."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import KVCache, Transformer, TransformerBlock, masked
from llama2_lib.model.transformer import grouped_query_attention as right_attention
from llama2_lib.model.weights import build
from llama2_lib.teaching.check import CheckFailed, Code, diagnose, diagnose_choice, on, slips
from llama2_lib.teaching.transformer import random_weights


def _attended(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores, seen = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5, visible[:, None]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


ATTENTION_MISTAKES = slips(_attended)("""
the scores are not divided by sqrt(head_dim) || / q.shape[-1] ** 0.5 =>
the scores are divided by head_dim, not by its root || ** 0.5 =>
the scores are divided by the root of the whole width, not of one head
    || / q.shape[-1] ** 0.5 => / (q.shape[-1] * q.shape[2]) ** 0.5
the mask is ignored, so a query sees the tokens after it || .masked_fill(~seen, -torch.inf) =>
the mask is off by one, so a query sees the token after it
    || right_attention(q, k, v, visible | visible.roll(1, -1).tril(1))
the mask is upside down: a query sees what it should not || right_attention(q, k, v, ~visible)
hidden scores are set to 0, not to minus infinity || -torch.inf => 0.0
the softmax runs over the queries, not over the keys || softmax(-1) => softmax(-2)
weights are masked after the softmax, so they no longer add up to 1
    || scores.masked_fill(~seen, -torch.inf).softmax(-1) => scores.softmax(-1) * seen
there is no softmax || scores.masked_fill(~seen, -torch.inf).softmax(-1) => scores * seen
the mask is transposed: a query sees the tokens after it, not those before
    || right_attention(q, k, v, visible.mT)
a query does not see its own token || right_attention(q, k, v, visible.tril(-1))
query head h reads key/value head h % kv_heads, not h // group (tiled, not repeated)
    || k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    => k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1)
""")


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


def _decode(model: Transformer, ids: Tensor, n_prompt: int) -> Tensor:
    """Return the logits of a prompt, then of one token at a time."""
    caches = KVCache(model.config, 1, ids.shape[1]).layers
    layers = cast(Sequence[TransformerBlock], model.layers)
    logits = []
    for start in [0, *range(n_prompt, ids.shape[1])]:
        later = int(start > 0)
        end = start + 1 if later else n_prompt
        h = model.tok_embeddings(ids[:, start:end])
        rotation = model.rotation(h, start=start)
        visible = torch.ones(1, end - start, ids.shape[1], dtype=torch.bool).tril(start)
        for layer, cache in zip(layers, caches, strict=True):
            q, k, v = layer.attention.project(layer.attention_norm(h), rotation)
            cache.extend(k.transpose(1, 2), v.transpose(1, 2), start)
            mixed = right_attention(q, cache.k.transpose(1, 2), cache.v.transpose(1, 2), visible)
            h = h + layer.attention.wo(mixed.flatten(-2))
            h = h + layer.feed_forward(layer.ffn_norm(h))
        logits.append(model.logits(model.norm(h)))
    return torch.cat(logits, dim=1)


DECODE_MISTAKES = slips(_decode)("""
positions begin at 0 again with every new token || start=start => start=0
the position of a new token is one too high || start=start => start=start + later
a new key is written one slot too early, over the one before it || 2), start) => 2), start - later)
keys enter the cache before they are rotated
    || extend(k. => extend(layer.attention.wk(layer.attention_norm(h)).unflatten(-1, k.shape[2:]).
a new token reads the cache before its own key is in it || tril(start) => tril(start - later)
the cache forgets the prompt: a new token sees only itself || torch.cat(
    [model(part) for part in (ids[:, :n_prompt], *ids[:, n_prompt:].split(1, dim=1))], dim=1)
""")


def small_model() -> Transformer:
    """Return an untrained model with 6 query heads on 3 key/value heads, and lively logits."""
    config = ModelConfig(
        vocab_size=53, dim=48, n_layers=3, n_heads=6, n_kv_heads=3, multiple_of=20, max_seq_len=64
    )
    return build(config, random_weights(config))


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
    model: Transformer, prompts: Sequence[Sequence[int]], n_new: int
) -> list[list[int]]:
    """Return greedy answers in one padded batch, without a cache."""
    width = max(map(len, prompts))
    rows = [[0] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    ids, gap = torch.tensor(rows), torch.tensor([[width - len(prompt)] for prompt in prompts])
    for _ in range(n_new):
        at = torch.arange(ids.shape[1])
        positions = (at - gap).clamp(min=0)
        visible = torch.ones(len(rows), len(at), len(at), dtype=torch.bool).tril()
        visible &= at >= gap[:, :, None]
        visible |= torch.eye(len(at), dtype=torch.bool)
        logits = model(ids, positions=positions, attend=masked(visible))[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[:, width:].tolist()


GREEDY_MISTAKES = slips(_padded_greedy)("""
the padding is not masked, so prompts attend to it || visible &= at >= gap[:, :, None] =>
short prompts are padded on the right, so the answer follows the padding
    || [0] * (width - len(prompt)) + [*prompt] => [*prompt] + [0] * (width - len(prompt))
    ;; [[width - len(prompt)] => [[0]
the prompt's positions leave the padding out, those of new tokens count it
    || (at - gap).clamp(min=0) => torch.where(at < width, (at - gap).clamp(min=0), at)
longer prompts are cut to the length of the shortest
    || _padded_greedy(model, [prompt[: min(map(len, prompts))] for prompt in prompts], n_new)
""")


@torch.no_grad()
def greedy(candidate: Code) -> None:
    """Check `candidate(model, prompts, n_new)`: the ids that are likeliest, one by one.

    The prompts are ragged: lengths 3, 7 and 4. The answers must equal those of each prompt alone.
    """
    model = small_model()
    generator = rng.generator(0, "check", "greedy")
    prompts = [torch.randint(1, 53, (n,), generator=generator).tolist() for n in (3, 7, 4)]

    def run(answer: Code) -> list[list[int]]:
        return [list(map(int, row)) for row in answer(model, prompts, 8)]

    def alone(*_: object) -> list[list[int]]:
        options = {"max_new_tokens": 8, "temperature": 0.0}
        return [generate(model, [prompt], **options)[0].ids for prompt in prompts]

    diagnose_choice(run, candidate, alone, GREEDY_MISTAKES, "some answers differ")
