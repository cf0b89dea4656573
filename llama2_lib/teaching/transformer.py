"""Checks of the transformer (paper section 2.2): its parts, a block, the whole model.

Attention has a file of its own.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

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
from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, diagnose, flawed, on, recognise

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
    expected = F.rms_norm(x, gain.shape, gain, 0.01)
    diagnose(on(x, gain, 0.01), candidate, expected, RMS_NORM_MISTAKES)


def _turned(
    x: Tensor,
    positions: Tensor,
    theta: float,
    *,
    exponent: int = -2,
    counted: Code = lambda positions: positions,
    halves: str = "",
) -> Tensor:
    """Turn pairs; `halves` says where they are taken as halves: "read", "written" or both."""
    pair = torch.arange(x.shape[-1] // 2, dtype=torch.float64)
    angle = torch.outer(counted(positions).double(), theta ** (exponent * pair / x.shape[-1]))
    if "read" in halves:
        x = rearrange(x, "b s h (half pair) -> b s h (pair half)", half=2)
    x = apply_rotary(x, torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[None])
    if "written" in halves:
        x = rearrange(x, "b s h (pair half) -> b s h (half pair)", half=2)
    return x


def _stretched(x: Tensor, positions: Tensor, theta: float, sign: float, repeat: Code) -> Tensor:
    """Turn by real numbers: the sign of the first sine, and how each angle is given to a pair."""
    speed = theta ** (-torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    angles = repeat(torch.outer(positions.double(), speed).float())[:, None]
    other = torch.stack([sign * x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * angles.cos() + other * angles.sin()


ROTARY_MISTAKES = flawed(
    _turned,
    halves={
        "number j is turned together with number j + head_dim/2 (Hugging Face's layout), not with "
        "its neighbour": "read and written",
        "the two numbers of a pair are written as halves (cat); write them as neighbours (stack, "
        "then flatten)": "written",
        "pairs are read as halves (chunk) and written as neighbours": "read",
    },
    counted={
        "the sign of the sine is wrong, so it turns backwards": torch.neg,
        "positions are counted 0, 1, 2, ... and the given ones are ignored": (
            lambda positions: torch.arange(len(positions))
        ),
        "positions begin at 1": lambda positions: positions + 1,
    },
    exponent={
        "all pairs turn at the speed of the first": 0,
        "the exponent is -j / head_dim instead of -2j / head_dim": -1,
        "the minus is missing: the exponent is 2j / head_dim": 2,
    },
) | {
    "the angle follows the number of the head, not the position": lambda x, positions, theta: (
        _turned(x.transpose(1, 2), torch.arange(x.shape[2]), theta).transpose(1, 2)
    ),
    "nothing is turned": lambda x, positions, theta: x,
    "both sines have one sign, so pairs are stretched, not turned": partial(
        _stretched, sign=1.0, repeat=lambda angles: angles.repeat_interleave(2, dim=-1)
    ),
    "the angles stand as for halves (cat); neighbours need each twice (repeat_interleave)": partial(
        _stretched, sign=-1.0, repeat=lambda angles: torch.cat([angles, angles], dim=-1)
    ),
    "theta is 10000, whatever is given": lambda x, positions, theta: _turned(x, positions, 1e4),
}


def rotary(candidate: Code) -> None:
    """Check `candidate(x, positions, theta)`; x is (batch, seq, heads, head_dim)."""
    x = torch.randn(2, 5, 3, 8, generator=rng.generator(0, "check", "rotary"))
    positions, theta = torch.tensor([0, 3, 4, 9, 20]), 100.0
    expected = apply_rotary(x, rotary_table(x.shape[-1], 21, theta)[positions][None])
    diagnose(on(x, positions, theta), candidate, expected, ROTARY_MISTAKES)


SWIGLU_MISTAKES = flawed(
    lambda x, w1, w2, w3, hidden: hidden(x @ w1.T, x @ w3.T) @ w2.T,
    hidden={
        "GELU stands in place of SiLU": lambda gate, up: F.gelu(gate) * up,
        "ReLU stands in place of SiLU": lambda gate, up: F.relu(gate) * up,
        "the sigmoid stands in place of SiLU": lambda gate, up: gate.sigmoid() * up,
        "SiLU acts on W3 x instead of W1 x": lambda gate, up: gate * F.silu(up),
        "SiLU acts on the product of both branches": lambda gate, up: F.silu(gate * up),
        "SiLU acts on both branches": lambda gate, up: F.silu(gate) * F.silu(up),
        "there is no SiLU": lambda gate, up: gate * up,
        "the branch of W3 is missing": lambda gate, up: F.silu(gate),
        "the two branches are added, not multiplied": lambda gate, up: F.silu(gate) + up,
    },
)


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
    recognise(lambda wrong: actual == [wrong(*case) for case in cases], WIDTH_MISTAKES)
    (dim, multiple_of, multiplier), right, width = next(
        row for row in zip(cases, expected, actual, strict=True) if row[1] != row[2]
    )
    raise CheckFailed(
        f"dim {dim}, multiple_of {multiple_of}, multiplier {multiplier:g} must give {right}; "
        f"got {width}."
    )


def _block(x: Tensor, attend: Code, feed: Code, norm_1: Code, norm_2: Code) -> Tensor:
    h = x + attend(norm_1(x))
    return h + feed(norm_2(h))


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
    "the second residual path starts from x, not from attention's result": (
        lambda x, attend, feed, n1, n2: x + feed(n2(x + attend(n1(x))))
    ),
    "attention is missing": lambda x, attend, feed, n1, n2: x + feed(n2(x)),
    "the feed-forward layer is missing": lambda x, attend, feed, n1, n2: x + attend(n1(x)),
    "the feed-forward layer comes before attention": lambda x, attend, feed, n1, n2: _block(
        x, feed, attend, n2, n1
    ),
} | flawed(
    lambda x, attend, feed, n1, n2, norms: _block(x, attend, feed, *norms(n1, n2)),
    norms={
        "the norms are missing": lambda n1, n2: (nn.Identity(), nn.Identity()),
        "the two norms have changed places": lambda n1, n2: (n2, n1),
        "attention reads x without its norm": lambda n1, n2: (nn.Identity(), n2),
        "the feed-forward layer reads without its norm": lambda n1, n2: (n1, nn.Identity()),
        "one norm is used twice": lambda n1, n2: (n1, n1),
    },
)


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


def _assembled(
    ids: Tensor,
    weights: Weights,
    config: ModelConfig,
    *,
    block: Code = _block,
    attend: Code = lambda layer, x, rotation: layer.attention(x, rotation),
    feed: Code = lambda layer, x: layer.feed_forward(x),
    norm: Code = lambda model, h: model.norm(h),
    weight: Code = lambda name, weight, weights, config: weight,
) -> Tensor:
    """The model from parts that may be flawed; `block` is what the check of a block wants."""
    model = build(config, {name: weight(name, w, weights, config) for name, w in weights.items()})
    h = model.tok_embeddings(ids)
    rotation = model.rotation(h)
    for layer in model.layers:
        parts = partial(attend, layer, rotation=rotation), partial(feed, layer)
        h = block(h, *parts, layer.attention_norm, layer.ffn_norm)
    return model.logits(norm(model, h))


def _seeing(last: int, layer: TransformerBlock, x: Tensor, rotation: Tensor) -> Tensor:
    """Attention in which token i sees the tokens up to i + last."""
    visible = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril(last)
    return layer.attention(x, rotation, masked(visible))


def _with_turned_values(layer: TransformerBlock, x: Tensor, rotation: Tensor) -> Tensor:
    q, k, v = layer.attention.project(x, rotation)
    q, k, v = (t.transpose(1, 2) for t in (q, k, apply_rotary(v, rotation)))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return layer.attention.wo(mixed.transpose(1, 2).flatten(-2))


def _gelu(layer: TransformerBlock, x: Tensor) -> Tensor:
    feed = layer.feed_forward
    return feed.w2(F.gelu(feed.w1(x)) * feed.w3(x))


def _halves(name: str, weight: Tensor, weights: Weights, config: ModelConfig) -> Tensor:
    # Turning halves equals turning neighbours after the rows of both projections are reordered.
    if not name.endswith(("wq.weight", "wk.weight")):
        return weight
    pattern = "(head half pair) dim -> (head pair half) dim"
    return rearrange(weight, pattern, half=2, pair=config.head_dim // 2)


WHOLE_MISTAKES = flawed(
    _assembled,
    attend={
        "a token sees the one after it: the mask is off by one": partial(_seeing, 1),
        "a token sees everything: there is no causal mask": partial(_seeing, 10**6),
        "the values are rotated too": _with_turned_values,
        "there are no positions: neither queries nor keys are rotated": (
            lambda layer, x, rotation: layer.attention(x, torch.ones_like(rotation))
        ),
    },
    block={
        "each norm comes after its sublayer": BLOCK_MISTAKES[
            "each norm comes after its sublayer, on the sum (post-norm)"
        ],
        "the residual paths are missing": BLOCK_MISTAKES["both residual paths are missing"],
    },
    feed={"GELU stands in place of SiLU": _gelu},
    norm={"the final norm is missing": lambda model, h: h},
    weight={
        "the scores are not divided by sqrt(head_dim)": lambda name, weight, weights, config: (
            weight * config.head_dim**0.5 if name.endswith("wq.weight") else weight
        ),
        "rotary pairs are j and j + head_dim/2 (Hugging Face's layout), but the weights are laid "
        "out for neighbours": _halves,
        "the gains of the norms are ignored": lambda name, weight, weights, config: (
            torch.ones_like(weight) if weight.dim() == 1 else weight
        ),
        "the output head uses the embedding table (tied weights)": (
            lambda name, weight, weights, config: weights[name.replace("output", "tok_embeddings")]
        ),
    },
)


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
