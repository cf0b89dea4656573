"""Checks of a block and of the whole transformer (section 2.2), and what people get wrong."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.layers import apply_rotary
from llama2_lib.model.transformer import Transformer, TransformerBlock
from llama2_lib.model.weights import build
from llama2_lib.teaching.diagnosis import diagnose

Map = Callable[[Tensor], Tensor]
Block = Callable[[Tensor, Map, Map, Map, Map], Tensor]
Weights = dict[str, Tensor]
Whole = Callable[[Tensor, Weights, ModelConfig], Tensor]
Step = Callable[[TransformerBlock, Tensor, Tensor], Tensor]

BLOCK_MISTAKES: dict[str, Block] = {
    "each norm comes after its sublayer, on the sum (post-norm)": lambda x, attend, feed, n1, n2: (
        n2(n1(x + attend(x)) + feed(n1(x + attend(x))))
    ),
    "each norm comes after its sublayer, inside the sum": lambda x, attend, feed, n1, n2: (
        x + n1(attend(x)) + n2(feed(x + n1(attend(x))))
    ),
    "the residual path round attention is missing": lambda x, attend, feed, n1, n2: (
        attend(n1(x)) + feed(n2(attend(n1(x))))
    ),
    "the residual path round the feed-forward layer is missing": lambda x, attend, feed, n1, n2: (
        feed(n2(x + attend(n1(x))))
    ),
    "both residual paths are missing": lambda x, attend, feed, n1, n2: feed(n2(attend(n1(x)))),
    "the feed-forward layer reads x beside attention, not its result": (
        lambda x, attend, feed, n1, n2: x + attend(n1(x)) + feed(n2(x))
    ),
    "the normed x, not x, goes on along the residual path": lambda x, attend, feed, n1, n2: (
        (h := n1(x) + attend(n1(x))) + feed(n2(h))
    ),
    "the norms are missing": lambda x, attend, feed, n1, n2: x + attend(x) + feed(x + attend(x)),
    "the two norms have changed places": lambda x, attend, feed, n1, n2: (
        (h := x + attend(n2(x))) + feed(n1(h))
    ),
    "the feed-forward layer comes before attention": lambda x, attend, feed, n1, n2: (
        (h := x + feed(n2(x))) + attend(n1(h))
    ),
}


def block(candidate: Block) -> None:
    """Check `candidate(x, attend, feed, norm_1, norm_2)`, where the last four are functions."""
    generator = rng.generator(0, "check", "block")
    x = torch.randn(2, 5, 6, generator=generator)
    mix, up = torch.randn(5, 5, generator=generator), torch.randn(6, 6, generator=generator)
    gains = 1 + 0.3 * torch.randn(2, 6, generator=generator)
    parts: tuple[Map, Map, Map, Map] = (
        lambda x: mix @ x,
        lambda x: torch.tanh(x @ up),
        lambda x: F.rms_norm(x, (6,), gains[0], 1e-5),
        lambda x: F.rms_norm(x, (6,), gains[1], 1e-5),
    )
    attend, feed, norm_1, norm_2 = parts
    h = x + attend(norm_1(x))
    wrong = {name: partial(f, x, *parts) for name, f in BLOCK_MISTAKES.items()}
    diagnose(candidate(x, *parts), h + feed(norm_2(h)), wrong)


def _stack(step: Step) -> Whole:
    """Return a model whose blocks are computed by `step(layer, h, rotation)`."""

    def run(ids: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
        model = build(config, weights)
        h = model.tok_embeddings(ids)
        rotation = model.rotation(h)
        for layer in model.layers:
            h = step(cast(TransformerBlock, layer), h, rotation)
        return model.head(model.norm(h))

    return run


def _with(change: Callable[[str, Tensor, Weights, ModelConfig], Tensor]) -> Whole:
    """Return the right model run on weights that `change(name, weight, ...)` has altered."""

    def run(ids: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
        changed = {name: change(name, w, weights, config) for name, w in weights.items()}
        return build(config, changed)(ids)

    return run


def _seeing(offset: int) -> Whole:
    """Return the right model in which token i sees the tokens up to i + offset."""

    def run(ids: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
        visible = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril(offset)
        return build(config, weights)(ids, visible=visible)

    return run


def _post_norm(layer: TransformerBlock, h: Tensor, rotation: Tensor) -> Tensor:
    h = layer.attention_norm(h + layer.attention(h, rotation))
    return layer.ffn_norm(h + layer.feed_forward(h))


def _no_residual(layer: TransformerBlock, h: Tensor, rotation: Tensor) -> Tensor:
    return layer.feed_forward(layer.ffn_norm(layer.attention(layer.attention_norm(h), rotation)))


def _gelu(layer: TransformerBlock, h: Tensor, rotation: Tensor) -> Tensor:
    h = h + layer.attention(layer.attention_norm(h), rotation)
    feed, x = layer.feed_forward, layer.ffn_norm(h)
    return h + feed.w2(F.gelu(feed.w1(x)) * feed.w3(x))


def _turned_values(layer: TransformerBlock, h: Tensor, rotation: Tensor) -> Tensor:
    attention = layer.attention
    q, k, v = attention.project(layer.attention_norm(h), rotation)
    q, k, v = (t.transpose(1, 2) for t in (q, k, apply_rotary(v, rotation)))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    h = h + attention.wo(mixed.transpose(1, 2).flatten(-2))
    return h + layer.feed_forward(layer.ffn_norm(h))


def _halves(name: str, weight: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
    # Turning halves equals turning neighbours after the rows of both projections are reordered.
    if not name.endswith(("wq.weight", "wk.weight")):
        return weight
    pattern = "(head half pair) dim -> (head pair half) dim"
    return rearrange(weight, pattern, half=2, pair=config.head_dim // 2)


WHOLE_MISTAKES: dict[str, Whole] = {
    "a token sees the one after it: the mask is off by one": _seeing(1),
    "a token sees everything: there is no causal mask": _seeing(10**6),
    "the scores are not divided by sqrt(head_dim)": _with(
        lambda name, w, weights, config: (
            w * config.head_dim**0.5 if name.endswith("wq.weight") else w
        )
    ),
    "rotary pairs are j and j + head_dim/2 (Hugging Face's layout), but the weights are laid out "
    "for neighbours": _with(_halves),
    "the values are rotated too": _stack(_turned_values),
    "there are no positions: neither queries nor keys are rotated": (
        lambda ids, weights, config: build(config, weights)(ids, positions=torch.zeros_like(ids))
    ),
    "each norm comes after its sublayer": _stack(_post_norm),
    "the residual paths are missing": _stack(_no_residual),
    "GELU stands in place of SiLU": _stack(_gelu),
    "the gains of the norms are ignored": _with(
        lambda name, w, weights, config: torch.ones_like(w) if w.dim() == 1 else w
    ),
    "the output head uses the embedding table (tied weights)": _with(
        lambda name, w, weights, config: (
            weights["tok_embeddings.weight"] if name == "output.weight" else w
        )
    ),
    "the final norm is missing": lambda ids, weights, config: _headless(ids, weights, config),
}


def _headless(ids: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
    model = build(config, weights)
    model.norm = torch.nn.Identity()  # pyrefly: ignore[bad-assignment]
    return model(ids)


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Return weights by Meta's names, large enough that every part shows in the logits.

    Fresh gains are all 1; these are not, so that a forgotten gain is noticed.
    """
    weights = {}
    for name, tensor in Transformer(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=rng.generator(seed, "weights", name))
        weights[name] = 1 + 0.3 * noise if tensor.dim() == 1 else noise * tensor.shape[-1] ** -0.5
    weights["tok_embeddings.weight"] *= config.dim**0.5
    return weights


@torch.no_grad()
def whole(candidate: Whole) -> None:
    """Check `candidate(ids, weights, config)`; the weights have Meta's names."""
    config = ModelConfig(
        vocab_size=23, dim=24, n_layers=2, n_heads=3, n_kv_heads=3, multiple_of=10, max_seq_len=32,
        norm_eps=1e-5,
    )  # fmt: skip
    weights = random_weights(config)
    ids = torch.randint(23, (2, 7), generator=rng.generator(0, "check", "whole"))
    wrong = {name: partial(f, ids, weights, config) for name, f in WHOLE_MISTAKES.items()}
    expected = build(config, weights)(ids)
    diagnose(candidate(ids, weights, config), expected, wrong, rtol=1e-3, atol=1e-4)
