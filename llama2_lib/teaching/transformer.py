"""Checks of the transformer (paper section 2.2): its parts, a block, the whole model.

Attention has a file of its own. Each check knows the mistakes that people make.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from llama2_lib import rng
from llama2_lib.model.config import FAMILY, ModelConfig
from llama2_lib.model.transformer import (
    Transformer,
    TransformerBlock,
    apply_rotary,
    masked,
    rotary_table,
)
from llama2_lib.model.weights import build
from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, diagnose, on

Weights = dict[str, Tensor]


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True)


RMS_NORM_MISTAKES: Mistakes = {
    "the square root is missing": lambda x, gain, eps: gain * x / (_mean_square(x) + eps),
    "the mean is subtracted first, as in LayerNorm": lambda x, gain, eps: F.layer_norm(
        x, gain.shape, gain, None, eps
    ),
    "the gain is missing": lambda x, gain, eps: x * (_mean_square(x) + eps).rsqrt(),
    "eps is added to the root instead of under it": lambda x, gain, eps: (
        gain * x / (_mean_square(x).sqrt() + eps)
    ),
    "eps is missing": lambda x, gain, eps: gain * x * _mean_square(x).rsqrt(),
    "the squares are summed, not averaged": lambda x, gain, eps: (
        gain * x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()
    ),
    "the vector is divided by its length; divide by the root of the mean square": (
        lambda x, gain, eps: gain * x / x.norm(dim=-1, keepdim=True)
    ),
    "the variance is taken, which subtracts the mean": lambda x, gain, eps: (
        gain * x * (x.var(-1, keepdim=True, correction=0) + eps).rsqrt()
    ),
    "the variance is taken, which subtracts the mean and divides by n - 1": lambda x, gain, eps: (
        gain * x * (x.var(-1, keepdim=True) + eps).rsqrt()
    ),
    "the mean runs over the positions, not over each vector": lambda x, gain, eps: (
        gain * x * (x.square().mean(1, keepdim=True) + eps).rsqrt()
    ),
    "x is multiplied by the root, not divided": lambda x, gain, eps: (
        gain * x * (_mean_square(x) + eps).sqrt()
    ),
    "the mean runs over the whole tensor, not over each vector": lambda x, gain, eps: (
        gain * x * (x.square().mean() + eps).rsqrt()
    ),
}


def rms_norm(candidate: Code) -> None:
    """Check `candidate(x, gain, eps)` on large and tiny vectors; eps matters to the tiny ones."""
    x = torch.randn(2, 5, 6, generator=rng.generator(0, "check", "rms_norm"))
    x = x * torch.tensor([1.0, 0.3, 0.1, 0.05, 3.0])[:, None]
    gain = torch.tensor([0.5, 1.5, 2.0, -1.0, 0.8, 1.1])
    eps = 0.01
    expected = F.rms_norm(x, gain.shape, gain, eps)
    diagnose(on(x, gain, eps), candidate, expected, RMS_NORM_MISTAKES)


def _angles(positions: Tensor, theta: float, head_dim: int, step: int = 2) -> Tensor:
    """Return the angle of each position and pair; `step` 2 is right."""
    pair = torch.arange(head_dim // 2, dtype=torch.float64)
    return torch.outer(positions.double(), theta ** (-step * pair / head_dim))


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    return apply_rotary(x, torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[None])


def _turned_halves(
    x: Tensor, positions: Tensor, theta: float, *, read: bool = True, written: bool = True
) -> Tensor:
    """Take the pairs as halves where they are read, where they are written, or both."""
    pairs = rearrange(x, "b s h (half pair) -> b s h (pair half)", half=2) if read else x
    turned = _turned(pairs, _angles(positions, theta, x.shape[-1]))
    if not written:
        return turned
    return rearrange(turned, "b s h (pair half) -> b s h (half pair)", half=2)


def _stretched(x: Tensor, positions: Tensor, theta: float, sign: float, repeat: Code) -> Tensor:
    """Turn by real numbers: the sign of the first sine, and how each angle is given to a pair."""
    angles = repeat(_angles(positions, theta, x.shape[-1]).float())[:, None]
    other = torch.stack([sign * x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * angles.cos() + other * angles.sin()


ROTARY_MISTAKES: Mistakes = {
    "number j is turned together with number j + head_dim/2 (Hugging Face's layout), not with its "
    "neighbour": _turned_halves,
    "the sign of the sine is wrong, so it turns backwards": lambda x, positions, theta: _turned(
        x, -_angles(positions, theta, x.shape[-1])
    ),
    "all pairs turn at the speed of the first": lambda x, positions, theta: _turned(
        x, positions.double()[:, None].expand(-1, x.shape[-1] // 2)
    ),
    "the exponent is -j / head_dim instead of -2j / head_dim": lambda x, positions, theta: _turned(
        x, _angles(positions, theta, x.shape[-1], step=1)
    ),
    "positions are counted 0, 1, 2, ... and the given ones are ignored": (
        lambda x, positions, theta: _turned(
            x, _angles(torch.arange(len(positions)), theta, x.shape[-1])
        )
    ),
    "positions begin at 1": lambda x, positions, theta: _turned(
        x, _angles(positions + 1, theta, x.shape[-1])
    ),
    "the angle follows the number of the head, not the position": lambda x, positions, theta: (
        _turned(x.transpose(1, 2), _angles(torch.arange(x.shape[2]), theta, x.shape[-1])).transpose(
            1, 2
        )
    ),
    "nothing is turned": lambda x, positions, theta: x,
    "the two numbers of a pair are written as halves (cat); write them as neighbours (stack, then "
    "flatten)": partial(_turned_halves, read=False),
    "pairs are read as halves (chunk) and written as neighbours": partial(
        _turned_halves, written=False
    ),
    "both sines have one sign, so pairs are stretched, not turned": lambda x, positions, theta: (
        _stretched(x, positions, theta, 1.0, lambda a: a.repeat_interleave(2, dim=-1))
    ),
    "the angles stand as for halves (cat); neighbours need each twice (repeat_interleave)": (
        lambda x, positions, theta: _stretched(
            x, positions, theta, -1.0, lambda a: torch.cat([a, a], dim=-1)
        )
    ),
    "the minus is missing: the exponent is 2j / head_dim": lambda x, positions, theta: _turned(
        x, _angles(positions, theta, x.shape[-1], step=-2)
    ),
    "theta is 10000, whatever is given": lambda x, positions, theta: _turned(
        x, _angles(positions, 10000.0, x.shape[-1])
    ),
}


def rotary(candidate: Code) -> None:
    """Check `candidate(x, positions, theta)`; x is (batch, seq, heads, head_dim)."""
    x = torch.randn(2, 5, 3, 8, generator=rng.generator(0, "check", "rotary"))
    positions, theta = torch.tensor([0, 3, 4, 9, 20]), 100.0
    expected = apply_rotary(x, rotary_table(x.shape[-1], 21, theta)[positions][None])
    diagnose(on(x, positions, theta), candidate, expected, ROTARY_MISTAKES)


SWIGLU_MISTAKES: Mistakes = {
    "GELU stands in place of SiLU": lambda x, w1, w2, w3: (F.gelu(x @ w1.T) * (x @ w3.T)) @ w2.T,
    "ReLU stands in place of SiLU": lambda x, w1, w2, w3: (F.relu(x @ w1.T) * (x @ w3.T)) @ w2.T,
    "the sigmoid stands in place of SiLU": lambda x, w1, w2, w3: (
        ((x @ w1.T).sigmoid() * (x @ w3.T)) @ w2.T
    ),
    "SiLU acts on W3 x instead of W1 x": lambda x, w1, w2, w3: (
        ((x @ w1.T) * F.silu(x @ w3.T)) @ w2.T
    ),
    "SiLU acts on the product of both branches": lambda x, w1, w2, w3: (
        F.silu((x @ w1.T) * (x @ w3.T)) @ w2.T
    ),
    "SiLU acts on both branches": lambda x, w1, w2, w3: (
        (F.silu(x @ w1.T) * F.silu(x @ w3.T)) @ w2.T
    ),
    "there is no SiLU": lambda x, w1, w2, w3: ((x @ w1.T) * (x @ w3.T)) @ w2.T,
    "the branch of W3 is missing": lambda x, w1, w2, w3: F.silu(x @ w1.T) @ w2.T,
    "the two branches are added, not multiplied": lambda x, w1, w2, w3: (
        (F.silu(x @ w1.T) + x @ w3.T) @ w2.T
    ),
}


def swiglu(candidate: Code) -> None:
    """Check `candidate(x, w1, w2, w3)`; each weight is (out, in), as `nn.Linear` stores it."""
    generator = rng.generator(0, "check", "swiglu")
    x = torch.randn(2, 5, 6, generator=generator)
    w1, w3 = torch.randn(2, 7, 6, generator=generator).unbind(0)
    w2 = torch.randn(6, 7, generator=generator)
    expected = (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
    diagnose(on(x, w1, w2, w3), candidate, expected, SWIGLU_MISTAKES)


def _up(width: int, multiple_of: int) -> int:
    return multiple_of * -(-width // multiple_of)


WIDTH_MISTAKES: Mistakes = {
    "it is rounded down instead of up": lambda dim, multiple_of, multiplier: (
        multiple_of * (int(multiplier * int(8 * dim / 3)) // multiple_of)
    ),
    "it is rounded to the nearest multiple instead of up": lambda dim, multiple_of, multiplier: (
        multiple_of * round(int(multiplier * int(8 * dim / 3)) / multiple_of)
    ),
    "a whole multiple is rounded up once more": lambda dim, multiple_of, multiplier: (
        multiple_of * (int(multiplier * int(8 * dim / 3)) // multiple_of + 1)
    ),
    "the multiplier comes after the rounding": lambda dim, multiple_of, multiplier: int(
        multiplier * _up(int(8 * dim / 3), multiple_of)
    ),
    "the factor 2/3 is missing": lambda dim, multiple_of, multiplier: _up(
        int(multiplier * 4 * dim), multiple_of
    ),
    "the multiplier is ignored": lambda dim, multiple_of, multiplier: _up(
        int(8 * dim / 3), multiple_of
    ),
}


def hidden_width(candidate: Code) -> None:
    """Check `candidate(dim, multiple_of, multiplier)` on the family and on four odd cases."""
    cases = [(c.dim, c.multiple_of, c.ffn_dim_multiplier) for c in FAMILY.values()]
    cases += [(96, 32, 1.0), (48, 20, 1.5), (60, 7, 1.0), (66, 50, 0.9)]
    expected = [_up(int(m * int(8 * dim / 3)), multiple_of) for dim, multiple_of, m in cases]
    actual = [candidate(*case) for case in cases]
    if actual == expected:
        return
    for mistake, wrong in WIDTH_MISTAKES.items():
        if actual == [wrong(*case) for case in cases]:
            raise CheckFailed(f"it looks as if {mistake}.")
    case, right, width = next(
        row for row in zip(cases, expected, actual, strict=True) if row[1] != row[2]
    )
    raise CheckFailed(
        f"dim {case[0]}, multiple_of {case[1]}, multiplier {case[2]:g} must give {right}; "
        f"got {width}."
    )


BLOCK_MISTAKES: Mistakes = {
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
    "attention reads x without its norm": lambda x, attend, feed, n1, n2: (
        (h := x + attend(x)) + feed(n2(h))
    ),
    "the feed-forward layer reads without its norm": lambda x, attend, feed, n1, n2: (
        (h := x + attend(n1(x))) + feed(h)
    ),
    "one norm is used twice": lambda x, attend, feed, n1, n2: (
        (h := x + attend(n1(x))) + feed(n1(h))
    ),
    "the second residual path starts from x, not from attention's result": (
        lambda x, attend, feed, n1, n2: x + feed(n2(x + attend(n1(x))))
    ),
    "attention is missing": lambda x, attend, feed, n1, n2: x + feed(n2(x)),
    "the feed-forward layer is missing": lambda x, attend, feed, n1, n2: x + attend(n1(x)),
    "the feed-forward layer comes before attention": lambda x, attend, feed, n1, n2: (
        (h := x + feed(n2(x))) + attend(n1(h))
    ),
}


def block(candidate: Code) -> None:
    """Check `candidate(x, attend, feed, norm_1, norm_2)`, where the last four are functions."""
    generator = rng.generator(0, "check", "block")
    x = torch.randn(2, 5, 6, generator=generator)
    mix, up = torch.randn(5, 5, generator=generator), torch.randn(6, 6, generator=generator)
    gains = 1 + 0.3 * torch.randn(2, 6, generator=generator)
    attend, feed, norm_1, norm_2 = parts = (
        lambda x: mix @ x,
        lambda x: torch.tanh(x @ up),
        lambda x: F.rms_norm(x, (6,), gains[0], 1e-5),
        lambda x: F.rms_norm(x, (6,), gains[1], 1e-5),
    )
    h = x + attend(norm_1(x))
    diagnose(on(x, *parts), candidate, h + feed(norm_2(h)), BLOCK_MISTAKES)


def _stack(step: Code) -> Code:
    """Return a model whose blocks are computed by `step(layer, h, rotation)`."""

    def run(ids: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
        model = build(config, weights)
        h = model.tok_embeddings(ids)
        rotation = model.rotation(h)
        for layer in model.layers:
            h = step(cast(TransformerBlock, layer), h, rotation)
        return model.logits(model.norm(h))

    return run


def _with(change: Callable[[str, Tensor, Weights, ModelConfig], Tensor]) -> Code:
    """Return the right model run on weights that `change(name, weight, ...)` has altered."""

    def run(ids: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
        changed = {name: change(name, w, weights, config) for name, w in weights.items()}
        return build(config, changed)(ids)

    return run


def _seeing(offset: int) -> Code:
    """Return the right model in which token i sees the tokens up to i + offset."""

    def run(ids: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
        visible = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril(offset)
        return build(config, weights)(ids, attend=masked(visible))

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


WHOLE_MISTAKES: Mistakes = {
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
def whole(candidate: Code) -> None:
    """Check `candidate(ids, weights, config)`; the weights have Meta's names."""
    config = ModelConfig(
        vocab_size=23, dim=24, n_layers=2, n_heads=3, n_kv_heads=3, multiple_of=10, max_seq_len=32,
        norm_eps=1e-5,
    )  # fmt: skip
    weights = random_weights(config)
    ids = torch.randint(23, (2, 7), generator=rng.generator(0, "check", "whole"))
    run, expected = on(ids, weights, config), build(config, weights)(ids)
    diagnose(run, candidate, expected, WHOLE_MISTAKES, rtol=1e-3, atol=1e-4)
