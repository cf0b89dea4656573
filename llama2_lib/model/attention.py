"""Grouped-query attention (paper section 2.2, ablation in A.2.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from llama2_lib.model.cache import LayerCache
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.layers import apply_rotary


def attention_weights(
    q: Float[Tensor, "batch q_len heads head_dim"],
    k: Float[Tensor, "batch kv_len kv_heads head_dim"],
    visible: Bool[Tensor, "#batch q_len kv_len"],
) -> Float[Tensor, "batch heads q_len kv_len"]:
    """Return how much each query head takes from each position; every row sums to 1.

    Query head `h` reads key/value head `h // (heads // kv_heads)`, as in Meta's `repeat_kv`.

    Args:
        q: Queries, already projected and rotated.
        k: Keys, likewise.
        visible: True where the query (row) may look at the key (column); no row all False.
    """
    kv_heads, head_dim = k.shape[2:]
    q = rearrange(q, "b q (kv group) d -> b kv group q d", kv=kv_heads)
    scores = einsum(q, k, "b kv group q d, b k kv d -> b kv group q k") * head_dim**-0.5
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
    return rearrange(scores.softmax(dim=-1), "b kv group q k -> b (kv group) q k")


def grouped_query_attention(
    q: Float[Tensor, "batch q_len heads head_dim"],
    k: Float[Tensor, "batch kv_len kv_heads head_dim"],
    v: Float[Tensor, "batch kv_len kv_heads head_dim"],
    visible: Bool[Tensor, "#batch q_len kv_len"],
) -> Float[Tensor, "batch q_len heads head_dim"]:
    """Attention in which `heads // kv_heads` query heads share one key/value head.

    The definition, written out: the model itself calls PyTorch's fused kernel, and a test
    holds the two together.
    """
    weights = rearrange(
        attention_weights(q, k, visible), "b (kv group) q k -> b kv group q k", kv=v.shape[2]
    )
    mixed = einsum(weights, v, "b kv group q k, b k kv d -> b q kv group d")
    return rearrange(mixed, "b q kv group d -> b q (kv group) d")


def visible_since(since: int, n_keys: int, device: torch.device) -> Bool[Tensor, "1 queries keys"]:
    """Return what the positions from `since` on may look at: themselves and earlier ones."""
    return torch.ones(1, n_keys - since, n_keys, dtype=torch.bool, device=device).tril(since)


def attend_apart(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads seq head_dim"],
    v: Float[Tensor, "batch kv_heads seq head_dim"],
    lengths: Sequence[int],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Causal attention of documents that stand one after another and do not see each other.

    Costs the square of each document's length. A mask over the rows gives the same and costs
    the square of a row's.

    Args:
        q: Queries, rotated by their positions within their documents.
        k: Keys, likewise.
        v: Values.
        lengths: Of the documents, row after row.
    """
    rows = (rearrange(x, "b h t d -> 1 h (b t) d").split(list(lengths), dim=2) for x in (q, k, v))
    mixed = [
        F.scaled_dot_product_attention(
            *document, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        for document in zip(*rows, strict=True)
    ]
    return rearrange(torch.cat(mixed, dim=2), "1 h (b t) d -> b h t d", b=q.shape[0])


class Attention(nn.Module):
    """Project, rotate, attend, project back. No biases."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim = config.head_dim
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def project(
        self,
        x: Float[Tensor, "batch seq dim"],
        rotation: Complex[Tensor, "#batch seq pairs"],
        since: int = 0,
    ) -> tuple[
        Float[Tensor, "batch wanted heads head_dim"],
        Float[Tensor, "batch seq kv_heads head_dim"],
        Float[Tensor, "batch seq kv_heads head_dim"],
    ]:
        """Return rotated queries of the positions from `since` on, rotated keys, and values."""
        q = self.wq(x[:, since:]).unflatten(-1, (self.n_heads, self.head_dim))
        k = self.wk(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        v = self.wv(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        return apply_rotary(q, rotation[:, since:]), apply_rotary(k, rotation), v

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        rotation: Complex[Tensor, "#batch seq pairs"],
        visible: Bool[Tensor, "#batch seq keys"] | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
        since: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch wanted dim"]:
        """Attend to `visible` positions; without it, to this and earlier ones.

        With a cache, `start` slots are filled already, and `keys` counts those too. Positions
        before `since` are attended to and do not attend. Documents of `lengths` see themselves.
        """
        q, k, v = (t.transpose(1, 2) for t in self.project(x, rotation, since))
        if lengths is not None:
            return self.wo(attend_apart(q, k, v, lengths).transpose(1, 2).flatten(-2))
        if since and visible is not None:
            visible = visible[:, since:]
        elif since:
            # PyTorch's own causal mask starts at the upper left; these queries stand at the end.
            visible = visible_since(since, x.shape[1], x.device)
        if cache is not None:
            k, v = cache.extend(k, v, start)
        if q.shape[2] == 1 and q.shape[1] != k.shape[1]:
            # One query a head: the heads of a group can stand in for a query axis, so the
            # kernel reads each key once instead of once a query head.
            q = q.reshape(q.shape[0], self.n_kv_heads, -1, self.head_dim)
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=None if visible is None else visible[:, None]
            ).reshape(x.shape[0], 1, -1)
            return self.wo(mixed)
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if visible is None else visible[:, None],
            is_causal=visible is None and q.shape[2] > 1,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        return self.wo(mixed.transpose(1, 2).flatten(-2))
