"""Keys and values kept while a sequence grows, so that no token is computed twice."""

from collections.abc import Sequence
from itertools import takewhile

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


class Past:
    """What a model has read of one sequence, for when it comes again and longer, as a dialog does.

    It changes no result. Where the new ids part from the old ones, reading begins.
    """

    def __init__(self) -> None:
        self.ids: Sequence[int] = ()
        self.kv: Tensor | None = None
        """Keys and values of `ids`, (layers, 2, kv_heads, len(ids), head_dim)."""

    def n_shared(self, ids: Sequence[int]) -> int:
        """Return how many of `ids` need not be read again; the last one always is."""
        pairs = zip(self.ids, ids[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


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
        """Keep the sequences `rows`, in that order; one that is named twice is copied."""
        for layer in self.layers:
            layer.k, layer.v = layer.k.index_select(0, rows), layer.v.index_select(0, rows)

    def recall(self, row: int, past: Past, n: int) -> None:
        """Fill the `n` slots of a row that come before slot `length` with the first n of a past."""
        if past.kv is not None and n > 0:
            for layer, (k, v) in zip(self.layers, past.kv, strict=True):
                layer.k[row, :, self.length - n : self.length] = k[:, :n]
                layer.v[row, :, self.length - n : self.length] = v[:, :n]

    def remember(self, row: int, ids: Sequence[int], past: Past) -> None:
        """Bring a past up to date: the last slots of a row hold `ids`."""
        begin = self.length - len(ids)
        kept = [torch.stack((c.k[row, :, begin : self.length], c.v[row, :, begin : self.length]))
                for c in self.layers]  # fmt: skip
        past.ids, past.kv = tuple(ids), torch.stack(kept)

    def n_bytes(self) -> int:
        """Return the memory held, in bytes."""
        return sum(
            t.numel() * t.element_size() for layer in self.layers for t in (layer.k, layer.v)
        )
