"""Llama 2, read from the parts up: norm, rotation, feed-forward, attention, cache, block, decoder.

Paper section 2.2; grouped-query attention is ablated in A.2.1. Names are Meta's, so that real
weights load.
"""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig

Ids = Int[Tensor, "batch seq"]
Stream = Float[Tensor, "batch seq dim"]
Wanted = Float[Tensor, "batch wanted dim"]
Rotation = Complex[Tensor, "#batch seq pairs"]
Keys = Float[Tensor, "batch seq kv_heads head_dim"]


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
    head_dim: int, n_positions: int, theta: float, dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
) -> Complex[Tensor, "n_positions pairs"]:  # fmt: skip
    """Return exp(i * position * theta^(-2j / head_dim)) for each position and pair j.

    Not a buffer of the model: `model.to(torch.bfloat16)` would round it, or drop its
    imaginary part.
    """
    # Made while generating, it serves training later: autograd refuses inference tensors.
    with torch.inference_mode(False):
        pair = torch.arange(0, head_dim, 2, dtype=torch.float64)
        speed = theta ** (-pair / head_dim)
        angle = torch.outer(torch.arange(n_positions, dtype=torch.float64), speed)
        return torch.polar(torch.ones_like(angle), angle).to(device, dtype)


def apply_rotary(
    x: Float[Tensor, "batch seq heads head_dim"], rotation: Rotation
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


def attention_weights(
    q: Float[Tensor, "batch q_len heads head_dim"],
    k: Float[Tensor, "batch kv_len kv_heads head_dim"],
    visible: Bool[Tensor, "#batch q_len kv_len"],
) -> Float[Tensor, "batch heads q_len kv_len"]:
    """Return how much each query head takes from each position; every row sums to 1.

    Query head `h` reads key/value head `h // (heads // kv_heads)`, as in Meta's `repeat_kv`. A
    query (row) may look at a key (column) where `visible` is True; no row may be all False.
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


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Who sees whom: from queries, keys and values, each (batch, heads, seq, head_dim) with fewer heads
in keys and values, to what every query takes from the values."""


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let every token see itself and those before it; the queries are the last of the tokens."""
    n_queries, n_keys = q.shape[2], k.shape[2]
    if n_queries == n_keys > 1:
        return _fused(q, k, v, is_causal=True)
    if n_queries == 1:
        return _fused(q, k, v)
    # PyTorch's own causal mask starts at the upper left; these queries stand at the end.
    visible = torch.ones(1, n_queries, n_keys, dtype=torch.bool, device=q.device)
    return _fused(q, k, v, visible.tril(n_keys - n_queries))


def masked(visible: Bool[Tensor, "#batch seq keys"]) -> Attend:
    """Let a token (row) see a token (column) where `visible` is True; no row may be all False."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _fused(q, k, v, visible[:, visible.shape[1] - q.shape[2] :])

    return attend


def packed(lengths: Sequence[int]) -> Attend:
    """Let documents of `lengths`, which stand row after row in a batch, see only themselves.

    Costs the square of each document's length. A mask over the rows gives the same and costs the
    square of a row's.
    """
    ends = list(accumulate(lengths))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, seq = q.shape[0], k.shape[2]
        assert q.shape[2] == seq, "packed documents are read whole: no `since` beside them"
        rows = {seq * row for row in range(1, batch + 1)}
        assert rows <= {*ends}, f"documents must end where rows of {seq} do; they end at {ends}"
        assert ends[-1] == batch * seq, f"{ends[-1]} tokens must fill {batch} rows of {seq}"
        assert min(lengths) > 0, f"documents must hold tokens; got {lengths}"
        parts = (rearrange(x, "b h t d -> 1 h (b t) d").split(list(lengths), 2) for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        mixed = [
            F.scaled_dot_product_attention(*document, is_causal=True, enable_gqa=grouped)
            for document in zip(*parts, strict=True)
        ]
        return rearrange(torch.cat(mixed, dim=2), "1 h (b t) d -> b h t d", b=batch)

    return attend


def branched(lengths: Sequence[Sequence[int]]) -> Attend:
    """Let two continuations of one beginning see that and themselves, and not each other.

    A row holds `lengths` tokens of the beginning, of one continuation and of the other, and then
    padding. The beginning is read once for both.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.shape[2] == k.shape[2], "branches are read whole: no `since` beside them"
        rows = []
        for row, (common, first, second) in enumerate(lengths):
            fork, end = common + first, common + first + second
            one = [x[row : row + 1, :, :end] for x in (q, k, v)]
            keys, values = (torch.cat([x[:, :, :common], x[:, :, fork:]], dim=2) for x in one[1:])
            parts = [
                causal(*(x[:, :, :fork] for x in one)),
                causal(one[0][:, :, fork:], keys, values),
            ]
            rows.append(F.pad(torch.cat(parts, dim=2), (0, 0, 0, q.shape[2] - end)))
        return torch.cat(rows)

    return attend


def _fused(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    mask = None if visible is None else visible[:, None]
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.shape[2] == 1:
        # One query a head: the heads of a group can stand in for a query axis, so the kernel
        # reads each key once instead of once a query head.
        as_queries = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        return F.scaled_dot_product_attention(as_queries, k, v, attn_mask=mask).reshape(q.shape)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    )


class LayerCache:
    """Keys and values of one layer, each (batch, kv_heads, max_len, head_dim)."""

    def __init__(self, k: Tensor, v: Tensor):
        self.k, self.v = k, v

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
    """Keys and values of the tokens read so far, so that none is computed twice.

    Given as `attend` to a `Transformer`, it takes new tokens in and lets each see all before it.
    """

    def __init__(
        self, config: ModelConfig, batch: int, max_len: int, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32, padding: Int[Tensor, " batch"] | None = None,
    ):  # fmt: skip
        shape = (batch, config.n_kv_heads, max_len, config.head_dim)
        zeros = partial(torch.zeros, shape, device=device, dtype=dtype)
        self.layers = [LayerCache(zeros(), zeros()) for _ in range(config.n_layers)]
        self.length = 0
        """Slots filled in every layer."""
        self.padding = padding
        """How many of the first slots of a row hold padding, which no token sees; None: none do."""
        self.slots = torch.arange(max_len, device=device)
        self.max_len = max_len

    def attends(self, n_new: int) -> list[Attend]:
        """Return for each layer how the next `n_new` tokens attend, after they have joined it."""
        visible, start = self.visible(n_new), self.length
        attend = causal if visible is None else masked(visible)

        def join(layer: LayerCache, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, *layer.extend(k, v, start))

        return [partial(join, layer) for layer in self.layers]

    def visible(self, n_new: int) -> Bool[Tensor, "batch n_new keys"] | None:
        """Return where the next `n_new` tokens may look; None if that is all before them."""
        if self.padding is None:
            return None
        keys = self.slots[: self.length + n_new]
        own = keys[self.length :, None]
        real = keys >= self.padding[:, None, None]
        # A padding token looks at itself: a softmax over nothing would be NaN.
        return (real & (keys <= own)) | (keys == own)

    def positions(self, n_new: int) -> Int[Tensor, "batch n_new"] | None:
        """Return the rotary positions of the next `n_new` tokens; None if they just count on."""
        if self.padding is None:
            return None
        own = self.slots[self.length : self.length + n_new]
        return (own - self.padding[:, None]).clamp(min=0)

    def keep_rows(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep the sequences `rows`, in that order; one that is named twice is copied."""
        for layer in self.layers:
            layer.k, layer.v = layer.k.index_select(0, rows), layer.v.index_select(0, rows)
        if self.padding is not None:
            self.padding = self.padding[rows]

    def n_bytes(self) -> int:
        """Return the memory held, in bytes."""
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self.layers)


class Attention(nn.Module):
    """Project, rotate, attend, project back. No biases."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def project(
        self, x: Stream, rotation: Rotation, since: int = 0
    ) -> tuple[Float[Tensor, "batch wanted heads head_dim"], Keys, Keys]:
        """Return rotated queries of the positions from `since` on, rotated keys, and values."""
        q = self.wq(x[:, since:]).unflatten(-1, (-1, self.head_dim))
        k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wk, self.wv))
        return apply_rotary(q, rotation[:, since:]), apply_rotary(k, rotation), v

    def forward(
        self, x: Stream, rotation: Rotation, attend: Attend = causal, since: int = 0
    ) -> Wanted:
        """Return what the positions from `since` on take from those they see."""
        q, k, v = (t.transpose(1, 2) for t in self.project(x, rotation, since))
        return self.wo(attend(q, k, v).transpose(1, 2).flatten(-2))


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each behind a norm and beside a residual path."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Stream, rotation: Rotation, attend: Attend = causal, since: int = 0
    ) -> Wanted:
        """Return h + FFN(norm(h)) with h = x + Attention(norm(x)), from position `since` on."""
        attended = self.attention(self.attention_norm(x), rotation, attend, since)
        h = x[:, since:] + attended  # after it: the order decides how gradients of x add up
        return h + self.feed_forward(self.ffn_norm(h))


class Transformer(nn.Module):
    """A decoder: embeddings, blocks, final norm, output layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.dim)
        table = table if table.is_meta else table.normal_()  # nn.Embedding draws for 1.3 s on meta
        self.tok_embeddings = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self, ids: Ids, *, positions: Ids | None = None, attend: Attend | KVCache = causal,
        at: Int[Tensor, " wanted"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"] | Float[Tensor, "wanted vocab"]:  # fmt: skip
        """Return the logits of each next token, in fp32 (fp64 for an fp64 model).

        Args:
            ids: Token ids.
            positions: Rotary position of each token; counted from the cache's end if left out.
            attend: Who sees whom: `causal`, `masked(visible)`, `packed(lengths)`, or a `KVCache`,
                which holds the tokens before these and is extended in place.
            at: Places of the flattened `ids` whose logits alone are wanted.

        Raises:
            ValueError: The sequence does not fit `max_seq_len` or the cache, or an id is none of
                the vocabulary.
        """
        hidden = self.hidden(ids, positions=positions, attend=attend)
        return self.logits(hidden if at is None else hidden.flatten(0, 1)[at])

    def logits(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Return the logits of normalised hidden states."""
        logits = self.output(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def hidden(
        self, ids: Ids, *, positions: Ids | None = None, attend: Attend | KVCache = causal,
        since: int = 0,
    ) -> Wanted:  # fmt: skip
        """Return the hidden states after the final norm: what `logits` and scalar heads read.

        Of positions before `since` the last block computes keys and values only, and they are
        left out of what is returned; see `forward` for the other arguments.
        """
        n_new, start, limit = ids.shape[1], 0, self.config.max_seq_len
        if n_new == 0:
            raise ValueError("ids must hold a token at least; got an empty sequence.")
        assert 0 <= since < n_new, f"since must lie in 0...{n_new - 1}; got {since}"
        cache = attend if isinstance(attend, KVCache) else None
        if cache is not None:
            start, limit = cache.length, min(limit, cache.max_len)
            positions = cache.positions(n_new) if positions is None else positions
        # With positions of their own, several texts may stand in a row that is longer than each.
        if start + n_new > limit and (positions is None or cache is not None):
            raise ValueError(
                f"a sequence must fit {limit} tokens; got {start + n_new}. Shorten it, or use a "
                "model with a larger max_seq_len."
            )
        try:
            h = self.tok_embeddings(ids)
        except IndexError:
            raise ValueError(
                f"ids must lie in 0...{self.config.vocab_size - 1}; got {int(ids.min())}..."
                f"{int(ids.max())}. Is it the tokenizer the model was trained with?"
            ) from None
        rotation = self.rotation(h, positions, start)
        attends = [attend] * len(self.layers) if cache is None else cache.attends(n_new)
        last = len(self.layers) - 1
        for index, (layer, attend_here) in enumerate(zip(self.layers, attends, strict=True)):
            h = layer(h, rotation, attend_here, since if index == last else 0)
        if cache is not None:
            cache.length += n_new
        return self.norm(h)

    def rotation(self, h: Stream, positions: Ids | None = None, start: int = 0) -> Rotation:
        """Return the rotary factors of the states `h` at `positions`, or at `start` and on."""
        c = self.config
        dtype = torch.complex128 if h.dtype == torch.float64 else torch.complex64
        table = rotary_table(c.head_dim, c.max_seq_len, c.rope_theta, dtype, h.device)
        if positions is not None:
            return table[positions]
        return table[start : start + h.shape[1]].unsqueeze(0)


INITIAL_STD = 0.02
"""Standard deviation of random weights, as is common [not stated]."""


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> Transformer:
    """Fill `model` with random weights that depend on `seed` and each parameter's name only.

    Normal with standard deviation `INITIAL_STD`; the projections that write into the
    residual stream are smaller by sqrt(2 * n_layers), so that depth does not inflate it. The
    paper states no initialisation.
    """
    depth = (2 * model.config.n_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        std = INITIAL_STD * (depth if name.endswith(("wo.weight", "w2.weight")) else 1.0)
        source = rng.generator(seed, "initialise", name)
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=source))
    return model


class ScalarModel(nn.Module):
    """A transformer that gives one number for every position in place of next-token logits.

    A regression head on a chat checkpoint of which all else is kept, as in section 3.2.2. A reward
    model is read at the last token of an answer (`score`), a value function at all.
    """

    def __init__(self, backbone: Transformer):
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.dim, 1)

    def forward(
        self, ids: Ids, *, positions: Ids | None = None, attend: Attend = causal, since: int = 0,
    ) -> Float[Tensor, "batch wanted"]:  # fmt: skip
        """Return the number at every position from `since` on; see `Transformer` for the rest."""
        hidden = self.backbone.hidden(ids, positions=positions, attend=attend, since=since)
        numbers = self.head(hidden)[..., 0]
        return numbers if numbers.dtype == torch.float64 else numbers.float()

    def score(self, ids: Ids, lengths: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the raw score of each row, read at its last real token.

        Rows are prompts with answers, padded on the right with anything. Their `lengths` are
        given and not found by looking for a padding id, which may be a real token too.
        """
        assert 1 <= lengths.min() <= lengths.max() <= ids.shape[1], f"lengths {lengths.tolist()}"
        # Padding stands on the right, where causal attention never looks.
        return self(ids).gather(1, lengths[:, None] - 1)[:, 0]


def scalar_model(model: Transformer, *, seed: int | None = None) -> ScalarModel:
    """Return a scalar model that starts from a copy of `model`, whose output layer is not used.

    A seed draws the head from a normal with standard deviation 1 / sqrt(dim + 1), as is common;
    the paper does not say. Without one the head is zero, and so is every score.
    """
    # A copy keeps the flags: that of a frozen reward model would be a value function that never
    # learns, and no error would say so.
    scalar = ScalarModel(copy.deepcopy(model)).requires_grad_(True)
    scalar.backbone.output.weight.requires_grad_(False)
    with torch.no_grad():
        nn.init.zeros_(scalar.head.weight)
        nn.init.zeros_(scalar.head.bias)
        if seed is not None:
            noise = torch.randn(1, model.config.dim, generator=rng.generator(seed, "scalar head"))
            scalar.head.weight.copy_(noise * (model.config.dim + 1) ** -0.5)
    return scalar.to(model.tok_embeddings.weight)
