"""The decoder: embeddings, blocks, final norm, output head (paper section 2.2)."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from llama2_lib import rng
from llama2_lib.model.attention import Attention
from llama2_lib.model.cache import KVCache, LayerCache
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.layers import FeedForward, RMSNorm, rotary_table


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each behind a norm and beside a residual path."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

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
        """Return h + FFN(norm(h)) with h = x + Attention(norm(x)), from position `since` on."""
        attended = self.attention(
            self.attention_norm(x), rotation, visible, cache, start, since, lengths
        )
        h = x[:, since:] + attended
        return h + self.feed_forward(self.ffn_norm(h))


class Transformer(nn.Module):
    """A Llama 2. Parameter names are Meta's, so that real weights load."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self,
        ids: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        visible: Bool[Tensor, "#batch seq keys"] | None = None,
        lengths: Sequence[int] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of each next token, in fp32 (fp64 for an fp64 model).

        Args:
            ids: Token ids.
            positions: Rotary position of each token; counted from the cache's end if left out.
            visible: True where a token (row) may look at a key (column); causal if left out.
            lengths: Of documents packed into the rows, row after row. Each is read as if it stood
                alone: this takes the place of `positions` and `visible`.
            cache: Keys and values of the tokens before these; extended in place.

        Raises:
            ValueError: The sequence does not fit `max_seq_len`, or the cache; or the documents do
                not fill the rows.
        """
        return self.head(
            self.hidden(ids, positions=positions, visible=visible, lengths=lengths, cache=cache)
        )

    def head(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Return the logits of normalised hidden states."""
        logits = self.output(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def hidden(
        self,
        ids: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        visible: Bool[Tensor, "#batch seq keys"] | None = None,
        lengths: Sequence[int] | None = None,
        cache: KVCache | None = None,
        since: int = 0,
    ) -> Float[Tensor, "batch wanted dim"]:
        """Return the hidden states after the final norm: what `head` and value heads read.

        Of positions before `since` the last block computes keys and values only, and they are
        left out of what is returned; see `forward` for the other arguments.

        Raises:
            ValueError: as in `forward`, or `since` is no position.
        """
        if not 0 <= since < ids.shape[1]:
            raise ValueError(f"since must lie in 0...{ids.shape[1] - 1}; got {since}.")
        start = cache.length if cache is not None else 0
        end = start + ids.shape[1]
        limit = self.config.max_seq_len
        if cache is not None:
            limit = min(limit, cache.max_len)
        if end > limit:
            raise ValueError(
                f"a sequence must fit {limit} tokens; got {end}. Shorten it, or use a model with "
                "a larger max_seq_len."
            )
        if visible is None and start > 0 and ids.shape[1] > 1:
            # PyTorch's own causal mask starts at the upper left; new tokens stand at the end.
            visible = torch.ones(1, ids.shape[1], end, dtype=torch.bool, device=ids.device)
            visible = visible.tril(start)
        if lengths is not None:
            if positions is not None or visible is not None or cache is not None or since:
                raise ValueError(
                    "lengths say which tokens see each other and where positions restart, for "
                    "whole rows; give no positions, visible, cache or since beside them."
                )
            positions = _within(lengths, ids)
        h = self.tok_embeddings(ids)
        rotation = self.rotation(h, positions, start)
        for index, layer in enumerate(self.layers):
            kept = cache and cache.layers[index]
            unread = since if index + 1 == len(self.layers) else 0
            h = layer(h, rotation, visible, kept, start, unread, lengths)
        if cache is not None:
            cache.length = end
        return self.norm(h)

    def rotation(
        self,
        h: Float[Tensor, "batch seq dim"],
        positions: Int[Tensor, "batch seq"] | None = None,
        start: int = 0,
    ) -> Complex[Tensor, "#batch seq pairs"]:
        """Return the rotary factors of `positions`, or of `start, start + 1, ...`.

        Length, precision and device are those of the hidden states `h`.
        """
        config = self.config
        dtype = torch.complex128 if h.dtype == torch.float64 else torch.complex64
        table = rotary_table(
            config.head_dim, config.max_seq_len, config.rope_theta, dtype, h.device
        )
        if positions is not None:
            return table[positions]
        return table[start : start + h.shape[1]].unsqueeze(0)


def _within(lengths: Sequence[int], ids: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Return the position of every token within its document."""
    ends, (batch, seq) = list(accumulate(lengths)), ids.shape
    rows = {seq * row for row in range(1, batch + 1)}
    if min(lengths, default=0) < 1 or not rows <= {*ends} or ends[-1] != batch * seq:
        raise ValueError(
            f"lengths must fill {batch} rows of {seq} tokens with documents that end where their "
            f"row does; got documents that end at {ends}."
        )
    counted = [torch.arange(length, device=ids.device) for length in lengths]
    return torch.cat(counted).view(batch, seq)


def initialise(model: Transformer, seed: int) -> Transformer:
    """Fill `model` with random weights that depend on `seed` and each parameter's name only.

    Normal with standard deviation 0.02, as is common; the projections that write into the
    residual stream are smaller by sqrt(2 * n_layers), so that depth does not inflate it. The
    paper states no initialisation.
    """
    depth = (2 * model.config.n_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            scale = depth if name.endswith(("wo.weight", "w2.weight")) else 1.0
            noise = torch.empty(parameter.shape).normal_(
                0.0, 0.02 * scale, generator=rng.generator(seed, "initialise", name)
            )
            parameter.copy_(noise)
    return model
