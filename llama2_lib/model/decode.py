"""One new token at a time: the same computation as `Transformer`, laid out for small steps.

A step of a small model is mostly the cost of calling kernels, so there are fewer of them:
projections that read the same vector are stacked into one matrix, gains of norms are folded
into the matrix that follows, and queries and keys are rotated together. A norm is three kernels:
g * h / sqrt(|h|^2 / d + eps) = (sqrt(d) g) * h / hypot(|h|, sqrt(d eps)), where PyTorch's own
takes six. A test holds the two implementations together.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from llama2_lib.model.cache import KVCache
from llama2_lib.model.layers import rotary_table
from llama2_lib.model.transformer import Transformer, TransformerBlock

STACK_LIMIT = 200_000_000
"""Models with more weights decode through `Transformer`: a stacked copy would not pay there."""


class _Layer:
    """The weights of one block, stacked."""

    def __init__(self, block: TransformerBlock, root: float):
        attention, feed_forward = block.attention, block.feed_forward
        projections = [attention.wq.weight, attention.wk.weight, attention.wv.weight]
        self.wqkv = torch.cat(projections) * (root * block.attention_norm.weight)
        self.wo = attention.wo.weight
        self.w13 = torch.cat([feed_forward.w1.weight, feed_forward.w3.weight])
        self.w13 = self.w13 * (root * block.ffn_norm.weight)
        self.w2 = feed_forward.w2.weight


class Decoder:
    """A frozen copy of a model's weights that extends sequences by one token."""

    def __init__(self, model: Transformer):
        self.config = c = model.config
        self.embeddings = weight = model.tok_embeddings.weight
        root = math.sqrt(c.dim)
        self.layers = [_Layer(block, root) for block in model.layers]  # type: ignore[arg-type]
        self.output = model.output.weight * (root * model.norm.weight)
        self.floor = torch.tensor(root * math.sqrt(c.norm_eps), dtype=weight.dtype).to(
            weight.device
        )
        exact = weight.dtype == torch.float64
        self.rotation = rotary_table(
            c.head_dim, c.max_seq_len, c.rope_theta,
            torch.complex128 if exact else torch.complex64, weight.device,
        )  # fmt: skip

    def step(
        self,
        token: Int[Tensor, " batch"],
        positions: Int[Tensor, "batch 1"] | None,
        visible: Bool[Tensor, "batch 1 keys"] | None,
        cache: KVCache,
    ) -> Float[Tensor, "batch vocab"]:
        """Return the logits after `token`, whose keys and values join the cache.

        Args:
            token: The newest id of each row.
            positions: Its rotary position; None where it is the next slot.
            visible: True where it may look; None for every slot filled so far.
            cache: Extended in place by one slot.
        """
        c, slot, batch = self.config, cache.length, token.shape[0]
        heads = c.n_heads + c.n_kv_heads
        mask = None if visible is None else visible[:, None]
        h = F.embedding(token, self.embeddings)
        rotation = self.rotation[slot if positions is None else positions]
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            qkv = F.linear(self.unit(h), layer.wqkv)
            qkv = qkv.view(batch, heads + c.n_kv_heads, c.head_dim)
            turned = _rotate(qkv[:, :heads], rotation)
            kept.k.select(2, slot).copy_(turned[:, c.n_heads :])
            kept.v.select(2, slot).copy_(qkv[:, heads:])
            mixed = F.scaled_dot_product_attention(
                # the heads of a group stand in for the query axis: see `Attention.forward`
                turned[:, : c.n_heads].reshape(batch, c.n_kv_heads, -1, c.head_dim),
                kept.k[:, :, : slot + 1],
                kept.v[:, :, : slot + 1],
                attn_mask=mask,
            )
            h = h + F.linear(mixed.reshape(batch, -1), layer.wo)
            gate, up = F.linear(self.unit(h), layer.w13).chunk(2, dim=-1)
            h = h + F.linear(F.silu(gate) * up, layer.w2)
        cache.length = slot + 1
        logits = F.linear(self.unit(h), self.output)
        return logits if logits.dtype == torch.float64 else logits.float()

    def unit(self, h: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return what `RMSNorm` makes of `h`, without gain and over the root of its width."""
        return h / torch.hypot(torch.linalg.vector_norm(h, dim=-1, keepdim=True), self.floor)


def _rotate(
    x: Float[Tensor, "batch heads head_dim"], rotation: Complex[Tensor, "*batch pairs"]
) -> Float[Tensor, "batch heads head_dim"]:
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)
