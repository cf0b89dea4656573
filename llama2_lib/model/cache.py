"""Keys and values kept while a sequence grows, so that no token is computed twice."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama2_lib.model.config import ModelConfig


class LayerCache:
    """Keys and values of one layer, preallocated up to `max_len` tokens."""

    def __init__(self, k: Tensor, v: Tensor):
        self.k, self.v = k, v
        """Each (batch, kv_heads, max_len, head_dim)."""

    def extend(
        self,
        k: Float[Tensor, "batch kv_heads new head_dim"],
        v: Float[Tensor, "batch kv_heads new head_dim"],
        start: int,
    ) -> tuple[Tensor, Tensor]:
        """Write `k` and `v` at slots `start...` and return all keys and values so far."""
        end = start + k.shape[2]
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        return self.k[:, :, :end], self.v[:, :, :end]


class KVCache:
    """The cache of a whole model: one `LayerCache` a layer and the number of filled slots."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (batch, config.n_kv_heads, max_len, config.head_dim)
        self.layers = [
            LayerCache(
                torch.zeros(shape, device=device, dtype=dtype),
                torch.zeros(shape, device=device, dtype=dtype),
            )
            for _ in range(config.n_layers)
        ]
        self.length = 0
        """Slots filled in every layer."""

    @property
    def max_len(self) -> int:
        """Slots there are."""
        return self.layers[0].k.shape[2]

    def keep_rows(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop every sequence that is not in `rows`, in that order."""
        for layer in self.layers:
            layer.k, layer.v = layer.k.index_select(0, rows), layer.v.index_select(0, rows)

    def n_bytes(self) -> int:
        """Return the memory held, in bytes."""
        return sum(
            t.numel() * t.element_size() for layer in self.layers for t in (layer.k, layer.v)
        )
