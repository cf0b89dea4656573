"""Checks of the small parts of a block (paper section 2.2), and the mistakes they recognise."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from llama2_lib import rng
from llama2_lib.model.config import FAMILY
from llama2_lib.model.layers import apply_rotary, rotary_table
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.teaching.diagnosis import diagnose

Norm = Callable[[Tensor, Tensor, float], Tensor]
Rotary = Callable[[Tensor, Tensor, float], Tensor]
Gated = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Width = Callable[[int, int, float], int]


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True)


RMS_NORM_MISTAKES: dict[str, Norm] = {
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
    "the mean runs over the whole tensor, not over each vector": lambda x, gain, eps: (
        gain * x * (x.square().mean() + eps).rsqrt()
    ),
}


def rms_norm(candidate: Norm) -> None:
    """Check `candidate(x, gain, eps)` on large and tiny vectors; eps matters to the tiny ones."""
    x = torch.randn(2, 5, 6, generator=rng.generator(0, "check", "rms_norm"))
    x = x * torch.tensor([1.0, 0.3, 0.1, 0.05, 3.0])[:, None]
    gain = torch.tensor([0.5, 1.5, 2.0, -1.0, 0.8, 1.1])
    eps = 0.01
    expected = F.rms_norm(x, gain.shape, gain, eps)
    wrong = {name: partial(f, x, gain, eps) for name, f in RMS_NORM_MISTAKES.items()}
    diagnose(candidate(x, gain, eps), expected, wrong)


def _angles(positions: Tensor, theta: float, head_dim: int, step: int = 2) -> Tensor:
    """Return the angle of each position and pair; `step` 2 is right."""
    pair = torch.arange(head_dim // 2, dtype=torch.float64)
    return torch.outer(positions.double(), theta ** (-step * pair / head_dim))


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    return apply_rotary(x, torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[None])


def _turned_halves(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    neighbours = rearrange(x, "b s h (half pair) -> b s h (pair half)", half=2)
    turned = _turned(neighbours, _angles(positions, theta, x.shape[-1]))
    return rearrange(turned, "b s h (pair half) -> b s h (half pair)", half=2)


ROTARY_MISTAKES: dict[str, Rotary] = {
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
}


def rotary(candidate: Rotary) -> None:
    """Check `candidate(x, positions, theta)`; x is (batch, seq, heads, head_dim)."""
    x = torch.randn(2, 5, 3, 8, generator=rng.generator(0, "check", "rotary"))
    positions, theta = torch.tensor([0, 3, 4, 9, 20]), 100.0
    table = rotary_table(x.shape[-1], 21, theta)
    wrong = {name: partial(f, x, positions, theta) for name, f in ROTARY_MISTAKES.items()}
    diagnose(candidate(x, positions, theta), apply_rotary(x, table[positions][None]), wrong)


SWIGLU_MISTAKES: dict[str, Gated] = {
    "GELU stands in place of SiLU": lambda x, w1, w2, w3: (F.gelu(x @ w1.T) * (x @ w3.T)) @ w2.T,
    "ReLU stands in place of SiLU": lambda x, w1, w2, w3: (F.relu(x @ w1.T) * (x @ w3.T)) @ w2.T,
    "the sigmoid stands in place of SiLU": lambda x, w1, w2, w3: (
        ((x @ w1.T).sigmoid() * (x @ w3.T)) @ w2.T
    ),
    "SiLU acts on W3 x instead of W1 x": lambda x, w1, w2, w3: (
        ((x @ w1.T) * F.silu(x @ w3.T)) @ w2.T
    ),
    "the branch of W3 is missing": lambda x, w1, w2, w3: F.silu(x @ w1.T) @ w2.T,
    "the two branches are added, not multiplied": lambda x, w1, w2, w3: (
        (F.silu(x @ w1.T) + x @ w3.T) @ w2.T
    ),
}


def swiglu(candidate: Gated) -> None:
    """Check `candidate(x, w1, w2, w3)`; each weight is (out, in), as `nn.Linear` stores it."""
    generator = rng.generator(0, "check", "swiglu")
    x = torch.randn(2, 5, 6, generator=generator)
    w1, w3 = torch.randn(2, 7, 6, generator=generator).unbind(0)
    w2 = torch.randn(6, 7, generator=generator)
    expected = (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
    wrong = {name: partial(f, x, w1, w2, w3) for name, f in SWIGLU_MISTAKES.items()}
    diagnose(candidate(x, w1, w2, w3), expected, wrong)


def _up(width: int, multiple_of: int) -> int:
    return multiple_of * -(-width // multiple_of)


WIDTH_MISTAKES: dict[str, Width] = {
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


def hidden_width(candidate: Width) -> None:
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
    case, right, found = next(
        row for row in zip(cases, expected, actual, strict=True) if row[1] != row[2]
    )
    raise CheckFailed(
        f"dim {case[0]}, multiple_of {case[1]}, multiplier {case[2]:g} must give {right}; "
        f"got {found}."
    )
