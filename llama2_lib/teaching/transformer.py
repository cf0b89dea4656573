"""Checks of the transformer (paper section 2.2): its parts, a block, the whole model.

Attention has a file of its own.
"""

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
from llama2_lib.teaching.check import Code, diagnose, diagnose_choice, on, on_each, slips

Weights = dict[str, Tensor]


def _normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return gain * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


RMS_NORM_MISTAKES = slips(_normed)("""
the square root is missing || .rsqrt() => ** -1
the mean is subtracted first, as in LayerNorm || F.layer_norm(x, gain.shape, gain, None, eps)
the gain is missing || gain * x * => x *
eps is added to the root instead of under it
    || gain * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)
eps is missing || + eps =>
the squares are summed, not averaged || mean => sum
the vector is divided by its length; divide by the root of the mean square
    || gain * x / x.norm(dim=-1, keepdim=True)
the variance is taken, which subtracts the mean
    || x.square().mean(-1, keepdim=True) => x.var(-1, keepdim=True, correction=0)
the variance is taken, which subtracts the mean and divides by n - 1 || x.square().mean => x.var
the mean runs over the positions, not over each vector || mean(-1 => mean(1
x is multiplied by the root, not divided || rsqrt => sqrt
the mean runs over the whole tensor, not over each vector || -1, keepdim=True =>
""")


def rms_norm(candidate: Code) -> None:
    """Check `candidate(x, gain, eps)` on large and tiny vectors; eps matters to the tiny ones."""
    x = torch.randn(2, 5, 6, generator=rng.generator(0, "check", "rms_norm"))
    x = x * torch.tensor([1.0, 0.3, 0.1, 0.05, 3.0])[:, None]
    gain = torch.tensor([0.5, 1.5, 2.0, -1.0, 0.8, 1.1])
    expected = F.rms_norm(x, gain.shape, gain, 0.01)
    diagnose(on(x, gain, 0.01), candidate, expected, RMS_NORM_MISTAKES)


def _turned(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    pair = torch.arange(x.shape[-1] // 2, dtype=torch.float64)
    angle = torch.outer(positions.double(), theta ** (-2 * pair / x.shape[-1]))
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[None]
    return apply_rotary(x, turn)


def _halves(x: Tensor) -> Tensor:
    """Put the first numbers of all pairs before the second ones."""
    return rearrange(x, "b s h (pair half) -> b s h (half pair)", half=2)


def _pairs(x: Tensor) -> Tensor:
    return rearrange(x, "b s h (half pair) -> b s h (pair half)", half=2)


def _stretched(x: Tensor, positions: Tensor, theta: float, sign: float, repeat: Code) -> Tensor:
    """Turn by real numbers: the sign of the first sine, and how each angle is given to a pair."""
    speed = theta ** (-torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    angles = repeat(torch.outer(positions.double(), speed).float())[:, None]
    other = torch.stack([sign * x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * angles.cos() + other * angles.sin()


ROTARY_MISTAKES = slips(_turned)("""
number j is turned together with number j + head_dim/2 (Hugging Face's layout), not with its
    neighbour || _halves(apply_rotary(_pairs(x), turn))
the two numbers of a pair are written as halves (cat); write them as neighbours (stack, then
    flatten) || _halves(apply_rotary(x, turn))
pairs are read as halves (chunk) and written as neighbours || apply_rotary(_pairs(x), turn)
the sign of the sine is wrong, so it turns backwards || outer(positions => outer(-positions
positions are counted 0, 1, 2, ... and the given ones are ignored
    || outer(positions => outer(torch.arange(len(positions))
positions begin at 1 || positions.double() => positions.double() + 1
all pairs turn at the speed of the first || -2 * => 0 *
the exponent is -j / head_dim instead of -2j / head_dim || -2 * => -1 *
the minus is missing: the exponent is 2j / head_dim || -2 * => 2 *
the angle follows the number of the head, not the position
    || _turned(x.transpose(1, 2), torch.arange(x.shape[2]), theta).transpose(1, 2)
nothing is turned || x
both sines have one sign, so pairs are stretched, not turned
    || _stretched(x, positions, theta, 1.0, lambda angles: angles.repeat_interleave(2, dim=-1))
the angles stand as for halves (cat); neighbours need each twice (repeat_interleave)
    || _stretched(x, positions, theta, -1.0, lambda angles: torch.cat([angles, angles], dim=-1))
theta is 10000, whatever is given || theta ** => 1e4 **
""")


def rotary(candidate: Code) -> None:
    """Check `candidate(x, positions, theta)`; x is (batch, seq, heads, head_dim)."""
    x = torch.randn(2, 5, 3, 8, generator=rng.generator(0, "check", "rotary"))
    positions, theta = torch.tensor([0, 3, 4, 9, 20]), 100.0
    expected = apply_rotary(x, rotary_table(x.shape[-1], 21, theta)[positions][None])
    diagnose(on(x, positions, theta), candidate, expected, ROTARY_MISTAKES)


def _fed(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    gate, up = x @ w1.T, x @ w3.T
    return (F.silu(gate) * up) @ w2.T


SWIGLU_MISTAKES = slips(_fed)("""
GELU stands in place of SiLU || silu => gelu
ReLU stands in place of SiLU || silu => relu
the sigmoid stands in place of SiLU || F.silu(gate) => gate.sigmoid()
SiLU acts on W3 x instead of W1 x || F.silu(gate) * up => gate * F.silu(up)
SiLU acts on the product of both branches || F.silu(gate) * up => F.silu(gate * up)
SiLU acts on both branches || * up => * F.silu(up)
there is no SiLU || F.silu(gate) => gate
the branch of W3 is missing || * up =>
the two branches are added, not multiplied || * up => + up
""")


def swiglu(candidate: Code) -> None:
    """Check `candidate(x, w1, w2, w3)`; each weight is (out, in), as `nn.Linear` stores it."""
    generator = rng.generator(0, "check", "swiglu")
    x = torch.randn(2, 5, 6, generator=generator)
    w1, w3 = torch.randn(2, 7, 6, generator=generator).unbind(0)
    w2 = torch.randn(6, 7, generator=generator)
    diagnose(on(x, w1, w2, w3), candidate, _fed(x, w1, w2, w3), SWIGLU_MISTAKES)


def _width(dim: int, multiple_of: int, multiplier: float) -> int:
    width = int(multiplier * int(8 * dim / 3))
    return multiple_of * -(-width // multiple_of)


WIDTH_MISTAKES = slips(_width)("""
it is rounded down instead of up || -(-width // multiple_of) => (width // multiple_of)
it is rounded to the nearest multiple instead of up
    || -(-width // multiple_of) => round(width / multiple_of)
a whole multiple is rounded up once more || -(-width // multiple_of) => (width // multiple_of + 1)
the multiplier comes after the rounding || int(multiplier * int(8 * dim / 3)) => int(8 * dim / 3)
    ;; int(multiplier * (multiple_of * -(-width // multiple_of)))
the factor 2/3 is missing || int(8 * dim / 3) => 4 * dim
the multiplier is ignored || int(multiplier * int(8 * dim / 3)) => int(8 * dim / 3)
""")


def hidden_width(candidate: Code) -> None:
    """Check `candidate(dim, multiple_of, multiplier)` on the family and on four odd cases."""
    cases = [(c.dim, c.multiple_of, c.ffn_dim_multiplier) for c in FAMILY.values()]
    cases += [(96, 32, 1.0), (48, 20, 1.5), (60, 7, 1.0), (66, 50, 0.9)]
    diagnose_choice(on_each(*cases), candidate, _width, WIDTH_MISTAKES)


def _block(x: Tensor, attend: Code, feed: Code, norm_1: Code, norm_2: Code) -> Tensor:
    h = x + attend(norm_1(x))
    return h + feed(norm_2(h))


BLOCK_MISTAKES = slips(_block)("""
each norm comes after its sublayer, on the sum (post-norm)
    || x + attend(norm_1(x)) => norm_1(x + attend(x)) ;; norm_2(h + feed(h))
each norm comes after its sublayer, inside the sum
    || attend(norm_1(x)) => norm_1(attend(x)) ;; feed(norm_2(h)) => norm_2(feed(h))
the residual path round attention is missing || x + attend => attend
the residual path round the feed-forward layer is missing || h + feed => feed
both residual paths are missing || x + attend => attend ;; h + feed => feed
the feed-forward layer reads x beside attention, not its result || norm_2(h) => norm_2(x)
the normed x, not x, goes on along the residual path || x + attend => norm_1(x) + attend
the second residual path starts from x, not from attention's result || h + feed => x + feed
attention is missing || x + attend(norm_1(x)) => x
the feed-forward layer is missing || h
the feed-forward layer comes before attention || _block(x, feed, attend, norm_2, norm_1)
the norms are missing || norm_1(x) => x ;; norm_2(h) => h
the two norms have changed places || norm_1(x) => norm_2(x) ;; norm_2(h) => norm_1(h)
attention reads x without its norm || norm_1(x) => x
the feed-forward layer reads without its norm || norm_2(h) => h
one norm is used twice || norm_2(h) => norm_1(h)
""")


def block(candidate: Code) -> None:
    """Check `candidate(x, attend, feed, norm_1, norm_2)`, where the last four are functions."""
    generator = rng.generator(0, "check", "block")
    x = torch.randn(2, 5, 6, generator=generator)
    mix, up = torch.randn(5, 5, generator=generator), torch.randn(6, 6, generator=generator)
    gains = 1 + 0.3 * torch.randn(2, 6, generator=generator)
    parts = (
        lambda x: mix @ x,
        lambda x: torch.tanh(x @ up),
        lambda x: F.rms_norm(x, (6,), gains[0], 1e-5),
        lambda x: F.rms_norm(x, (6,), gains[1], 1e-5),
    )
    diagnose(on(x, *parts), candidate, _block(x, *parts), BLOCK_MISTAKES)


def _assembled(ids: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
    model = build(config, {name: weights[name] for name, weight in weights.items()})
    h = model.tok_embeddings(ids)
    rotation = model.rotation(h)
    for layer in cast(list[TransformerBlock], model.layers):
        attend = partial(layer.attention, rotation=rotation)
        h = _block(h, attend, layer.feed_forward, layer.attention_norm, layer.ffn_norm)
    return model.logits(model.norm(h))


def _seeing(last: int, layer: TransformerBlock, x: Tensor, rotation: Tensor) -> Tensor:
    """Attention in which token i sees the tokens up to i + last."""
    visible = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril(last)
    return layer.attention(x, rotation, masked(visible))


def _with_turned_values(layer: TransformerBlock, x: Tensor, rotation: Tensor) -> Tensor:
    q, k, v = layer.attention.project(x, rotation)
    q, k, v = (t.transpose(1, 2) for t in (q, k, apply_rotary(v, rotation)))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return layer.attention.wo(mixed.transpose(1, 2).flatten(-2))


def _reordered(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    # Turning halves equals turning neighbours after the rows of both projections are reordered.
    if not name.endswith(("wq.weight", "wk.weight")):
        return weight
    pattern = "(head half pair) dim -> (head pair half) dim"
    return rearrange(weight, pattern, half=2, pair=config.head_dim // 2)


_post_norm = BLOCK_MISTAKES["each norm comes after its sublayer, on the sum (post-norm)"]
_no_residuals = BLOCK_MISTAKES["both residual paths are missing"]
WHOLE_MISTAKES = slips(_assembled)("""
a token sees the one after it: the mask is off by one
    || partial(layer.attention => partial(_seeing, 1, layer
a token sees everything: there is no causal mask
    || partial(layer.attention => partial(_seeing, 10**6, layer
the values are rotated too || partial(layer.attention => partial(_with_turned_values, layer
there are no positions: neither queries nor keys are rotated
    || rotation=rotation => rotation=torch.ones_like(rotation)
each norm comes after its sublayer || h = _block => h = _post_norm
the residual paths are missing || h = _block => h = _no_residuals
GELU stands in place of SiLU || layer.feed_forward
    => lambda x, f=layer.feed_forward: f.w2(F.gelu(f.w1(x)) * f.w3(x))
the final norm is missing || model.norm(h) => h
the scores are not divided by sqrt(head_dim)
    || weights[name] => weight * config.head_dim**0.5 if name.endswith("wq.weight") else weight
rotary pairs are j and j + head_dim/2 (Hugging Face's layout), but the weights are laid out for
    neighbours || weights[name] => _reordered(name, weight, config)
the gains of the norms are ignored
    || weights[name] => torch.ones_like(weight) if weight.dim() == 1 else weight
the output head uses the embedding table (tied weights)
    || weights[name] => weights[name.replace("output", "tok_embeddings")]
""")


def random_weights(config: ModelConfig) -> Weights:
    """Return weights by Meta's names, large enough that every part shows in the logits.

    Fresh gains are all 1; these are not, so that a forgotten gain is noticed.
    """
    weights = {}
    for name, tensor in Transformer(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=rng.generator(0, "weights", name))
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
