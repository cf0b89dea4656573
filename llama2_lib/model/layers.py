"""The small parts of a block: RMSNorm, rotary positions, SwiGLU (paper section 2.2)."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square, then scale it by a learned gain."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return g * x / sqrt(mean(x^2) + eps), computed in fp32 for half-precision input."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


@lru_cache(maxsize=32)
def rotary_table(
    head_dim: int,
    n_positions: int,
    theta: float,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
) -> Complex[Tensor, "n_positions pairs"]:
    """Return exp(i * position * theta^(-2j / head_dim)) for each position and pair j.

    Not a buffer of the model: `model.to(torch.bfloat16)` would round it, or drop its
    imaginary part.
    """
    # A table first made while generating serves training later, so it must not be an inference
    # tensor, which autograd refuses.
    with torch.inference_mode(False):
        pair = torch.arange(0, head_dim, 2, dtype=torch.float64)
        speed = theta ** (-pair / head_dim)
        angle = torch.outer(torch.arange(n_positions, dtype=torch.float64), speed)
        return torch.polar(torch.ones_like(angle), angle).to(device, dtype)


def apply_rotary(
    x: Float[Tensor, "batch seq heads head_dim"],
    rotation: Complex[Tensor, "#batch seq pairs"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    """Turn each adjacent pair of numbers of a head by its position's angle (RoPE).

    Complex numbers, as in Meta's code: one multiplication that the CPU vectorises. Spelled
    with sines and cosines the same rotation took 4 to 6 times as long (`docs/log.md`).
    """
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation.unsqueeze(2)).flatten(-2).type_as(x)


class FeedForward(nn.Module):
    """SwiGLU: W2(SiLU(W1 x) * W3 x), without biases."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map each position by itself; no position sees another here."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))
