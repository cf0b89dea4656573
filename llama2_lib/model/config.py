"""Architecture hyper-parameters: the fields of Meta's `params.json`, validated once."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only Llama 2 (paper section 2.2). Defaults are the `nano` size."""

    vocab_size: int = 1024
    """Number of token ids, control ids included."""
    dim: int = 128
    """Width of the residual stream."""
    n_layers: int = 4
    n_heads: int = 8
    """Query heads."""
    n_kv_heads: int = 2
    """Key/value heads: `n_heads` gives multi-head attention, 1 gives multi-query."""
    multiple_of: int = 32
    """The feed-forward width is rounded up to a multiple of this."""
    ffn_dim_multiplier: float = 1.0
    """Stretches the feed-forward width; 1.3 in the 70B model."""
    max_seq_len: int = 512
    """Longest sequence, in tokens, that the rotary table covers."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type is float:
                if type(value) not in (int, float) or not 0 < value < math.inf:
                    raise ValueError(f"{name} must be positive and finite; got {value!r}.")
            elif type(value) is not int:
                raise ValueError(f"{name} must be a whole number; got {value!r}.")
            elif value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        if self.dim % (2 * self.n_heads):
            step = 2 * self.n_heads
            raise ValueError(
                f"dim must be a multiple of 2 * n_heads, so that every head holds whole rotary "
                f"pairs; got dim={self.dim}, n_heads={self.n_heads}. "
                f"Nearest: dim={max(step, round(self.dim / step) * step)}."
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be a multiple of n_kv_heads, so that every key/value head serves "
                f"the same number of query heads; got {self.n_heads} and {self.n_kv_heads}."
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.n_heads

    @property
    def hidden_dim(self) -> int:
        """Feed-forward width, by Meta's rule: 2/3 of 4*dim, stretched, rounded up."""
        hidden = int(self.ffn_dim_multiplier * int(2 * 4 * self.dim / 3))
        return self.multiple_of * -(-hidden // self.multiple_of)

    @property
    def n_parameters(self) -> int:
        """Number of weights, counted from the shapes, before anything is allocated."""
        attention = 2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)
        block = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        return 2 * self.vocab_size * self.dim + self.n_layers * block + self.dim

    def kv_cache_bytes(self, n_tokens: int = 1, bytes_per_number: int = 2) -> int:
        """Return the size of the keys and values of `n_tokens` tokens of one sequence."""
        numbers = 2 * self.n_layers * self.n_kv_heads * self.head_dim
        return numbers * n_tokens * bytes_per_number

    def flops_per_token(self, seq_len: int) -> float:
        """Return the training operations per token: 6 per weight, plus the attention scores.

        The embedding table is looked up, not multiplied, so it does not count. Scores and
        weighted values cost 12 * layers * dim * seq_len, as if no score were masked.
        """
        matmul_weights = self.n_parameters - self.vocab_size * self.dim
        return 6.0 * matmul_weights + 12.0 * self.n_layers * self.dim * seq_len


def _llama2(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, **rest: Any) -> ModelConfig:
    """Return one member of the family of table 1: vocabulary 32,000, context 4,096."""
    rest = {"vocab_size": 32_000, "multiple_of": 256, "max_seq_len": 4096, **rest}
    return ModelConfig(dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, **rest)


LLAMA2_7B = _llama2(4096, 32, 32, 32)
LLAMA2_13B = _llama2(5120, 40, 40, 40)
LLAMA2_34B = _llama2(8192, 48, 64, 8)
"""Inferred from Code Llama 34B, which started from it; the paper prints no shape for 34B."""
LLAMA2_70B = _llama2(8192, 80, 64, 8, multiple_of=4096, ffn_dim_multiplier=1.3)
FAMILY = {"7B": LLAMA2_7B, "13B": LLAMA2_13B, "34B": LLAMA2_34B, "70B": LLAMA2_70B}
