"""Generation: the next token from logits, and batches of answers to ragged prompts."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import (
    KVCache,
    RMSNorm,
    Transformer,
    TransformerBlock,
    apply_rotary,
)

STACK_LIMIT = 200_000_000
"""Models with more weights decode through `Transformer`: a stacked copy would not pay there."""
WORTH_COPYING = 0.875
"""Share of the rows that are still written, below which the cache is copied without the others."""


PerId = Float[Tensor, "batch vocab"]
"""Logits or probabilities of every id, for each row."""
Steps = Iterator[tuple[Tensor, Tensor, Tensor]]  # what `_decode` yields


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated after one prompt."""

    ids: list[int]
    """Generated ids; the stop id, when there was one, is the last."""
    logprobs: list[float]
    """Of each id, in nats, under the distribution it was sampled from."""
    finished: bool
    """Whether a stop id ended it, rather than `max_new_tokens`."""


@dataclass(slots=True)
class Past:
    """What a model has read of one sequence, for when it comes again and longer, as a dialog does.

    It changes no result. Where the new ids part from the old ones, reading begins.
    """

    ids: Sequence[int] = ()
    kv: Tensor | None = None
    """Keys and values of `ids`, (layers, 2, kv_heads, len(ids), head_dim)."""

    def n_shared(self, ids: Sequence[int]) -> int:
        """Return how many of `ids` need not be read again; the last one always is."""
        pairs = zip(self.ids, ids[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def recall(self, cache: KVCache, row: int, n: int) -> None:
        """Fill the `n` slots of a row that come before slot `cache.length` with the first n."""
        if self.kv is not None and n > 0:
            slots = slice(cache.length - n, cache.length)
            for layer, (k, v) in zip(cache.layers, self.kv, strict=True):
                layer.k[row, :, slots], layer.v[row, :, slots] = k[:, :n], v[:, :n]

    def remember(self, cache: KVCache, row: int, ids: Sequence[int]) -> None:
        """Take in `ids`, which the last slots of a row hold."""
        slots = slice(cache.length - len(ids), cache.length)
        kv = [torch.stack((c.k[row, :, slots], c.v[row, :, slots])) for c in cache.layers]
        self.ids, self.kv = tuple(ids), torch.stack(kv)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop_ids: Collection[int] = (),
    pasts: Sequence[Past] | None = None,
) -> list[Completion]:
    """Continue each prompt, a list of ids, by up to `max_new_tokens` tokens.

    Prompts may differ in length. A row that has met a stop id leaves the batch. What a row samples
    depends on its prompt and its seed, not on its companions.

    Args:
        max_new_tokens: At most this many ids, the stop id included.
        temperature: Divides the logits; 0 means greedy.
        top_p: Mass of the nucleus that is sampled from; 1 keeps everything.
        seed: One seed, from which every row's is derived, or one a row.
        stop_ids: Ids that end a row.
        pasts: What this model has read of every row before, brought up to date: see `Past`.

    Raises:
        ValueError: An argument is out of range, or prompt and answer exceed the context.
        FloatingPointError: The model's logits are not numbers.
    """
    settings = (max_new_tokens, temperature, top_p, seed, stop_ids, pasts)
    steps, is_stop = _begin(model, prompts, *settings)
    return _completions(list(steps), len(prompts), is_stop)


def stream_ids(model: Transformer, prompt: Sequence[int], **settings: Any) -> Iterator[int]:
    """Yield the ids after one prompt as they are sampled: ids, settings and errors of `generate`.

    The prompt is read, or refused, at once; closing the iterator ends the work.
    """
    return _ids(*_begin(model, [prompt], **settings))


def _ids(steps: Steps, is_stop: Tensor) -> Iterator[int]:
    """Yield the ids of the one row, the stop id last: on a GPU steps go on beyond it."""
    finished = False
    while not finished:
        with torch.inference_mode():  # and not while the caller has the id
            if (step := next(steps, None)) is None:
                return
            [completion] = _completions([step], 1, is_stop)
        finished = completion.finished
        yield completion.ids[0]


@torch.inference_mode()
def _begin(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop_ids: Collection[int] = (),
    pasts: Sequence[Past] | None = None,
) -> tuple[Steps, Tensor]:
    """Check what is asked for and read the prompts; return the steps to come and which ids stop."""
    _check(model.config, prompts, max_new_tokens, temperature, top_p, stop_ids)
    batch = len(prompts)
    if isinstance(seed, int):
        seed = [rng.seed_from(seed, "generate", row) for row in range(batch)]
    for name, values in (("seed", seed), ("pasts", pasts)):
        if values is not None and len(values) != batch:
            raise ValueError(f"{name} must be one a prompt; got {len(values)} for {batch}.")
    is_stop = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    is_stop[list(stop_ids)] = True
    n_draws = max_new_tokens if temperature else 1
    draws = [torch.rand(n_draws, generator=rng.generator(each, "tokens")) for each in seed]
    logits, cache = _prefill(model, prompts, max_new_tokens, pasts)
    tables = (table.to(logits.device) for table in (is_stop, torch.stack(draws)))
    return _decode(model, logits, cache, temperature, top_p, max_new_tokens, *tables), is_stop


def _decode(
    model: Transformer,
    logits: Tensor,
    cache: KVCache,
    temperature: float,
    top_p: float,
    limit: int,
    is_stop: Tensor,
    draws: Tensor,
) -> Steps:
    """Yield at every step rows, their tokens, and log-probabilities; rows that are done leave."""
    fast = model.config.n_parameters <= STACK_LIMIT
    read = Decoder(model).step if fast else partial(_read, model)
    ask_every = 1 if logits.device.type == "cpu" else 8  # asking makes the CPU wait for a GPU
    rows = torch.arange(len(draws), device=logits.device)
    alive = torch.ones_like(rows, dtype=torch.bool)  # False: done, and waits to leave with others
    for step in range(limit):
        token, logprob = sample(logits, draws[rows, step % draws.shape[1]], temperature, top_p)
        yield rows, token, logprob
        if step + 1 == limit:
            return
        alive = alive & ~is_stop[token]
        n_alive = int(alive.sum()) if (step + 1) % ask_every == 0 else len(rows)
        if n_alive == 0:
            return
        if n_alive <= WORTH_COPYING * len(rows):  # copying the cache must pay for itself
            keep = alive.nonzero()[:, 0]
            rows, alive, token = rows[keep], alive[keep], token[keep]
            cache.keep_rows(keep)
        logits = read(token[:, None], cache)


def _completions(
    written: Sequence[tuple[Tensor, Tensor, Tensor]], n_rows: int, is_stop: Tensor
) -> list[Completion]:
    """Lay out what was written at every step; cut rows after the first stop id."""
    rows, tokens, nats = (torch.cat(column).cpu() for column in zip(*written, strict=True))
    step = torch.arange(len(written))
    at = step.repeat_interleave(torch.tensor([len(token) for _, token, _ in written]))
    ids = tokens.new_zeros(n_rows, len(written))
    logprobs = nats.new_zeros(ids.shape)
    ids[rows, at], logprobs[rows, at] = tokens, nats
    hit = is_stop[ids]
    finished = hit.any(dim=1)
    length = torch.where(finished, hit.int().argmax(dim=1) + 1, len(written))
    if bool((~logprobs.isfinite() & (step < length[:, None])).any()):
        raise FloatingPointError(
            "the logits of the model must be numbers; some are NaN or infinite, so nothing can be "
            "sampled. Has training diverged, or is the file of weights damaged?"
        )
    return [
        Completion(ids[row, :n].tolist(), logprobs[row, :n].tolist(), bool(finished[row]))
        for row, n in enumerate(length.tolist())
    ]


def _prefill(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    pasts: Sequence[Past] | None,
) -> tuple[Tensor, KVCache]:
    """Read the prompts, padded on the left to one length; return the next logits and the cache.

    Copies of a prompt, as best-of-N asks for, are read once.
    """
    weight = model.tok_embeddings.weight
    device, dtype = weight.device, weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    first: dict[tuple[int, ...], int] = {}
    for row, prompt in enumerate(prompts):
        first.setdefault(tuple(prompt), row)
    longest = n_new = max(map(len, first))
    padding = torch.tensor([longest - len(prompt) for prompt in first], device=device)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in first], device=device)
    seen = padding if bool(padding.any()) else None
    cache = KVCache(model.config, len(first), longest + max_new_tokens, device, dtype, seen)
    if pasts is not None:
        n_new = max(len(prompt) - pasts[row].n_shared(prompt) for prompt, row in first.items())
        cache.length = longest - n_new
        for at, (prompt, row) in enumerate(first.items()):
            pasts[row].recall(cache, at, len(prompt) - n_new)
    logits = _read(model, ids[:, -n_new:], cache)
    if len(first) < len(prompts):
        place = {prompt: at for at, prompt in enumerate(first)}
        rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
        logits = logits[rows]
        cache.keep_rows(rows)
    for row, past in enumerate(pasts or ()):
        past.remember(cache, row, prompts[row])
    return logits, cache


def _read(model: Transformer, ids: Tensor, cache: KVCache) -> Tensor:
    """Return the logits after the last of `ids` (batch, new), which join the cache."""
    return model.logits(model.hidden(ids, attend=cache)[:, -1])


def _check(
    config: ModelConfig, prompts: Any, limit: int, temperature: float, top_p: float,
    stop_ids: Collection[int],
) -> None:  # fmt: skip
    vocab, context = config.vocab_size, config.max_seq_len
    if not isinstance(prompts, Sequence) or not prompts:
        raise ValueError(f"prompts must be lists of ids, one or more; got {str(prompts)[:40]!r}.")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, Sequence) or not all(isinstance(t, Integral) for t in prompt):
            raise ValueError(
                f"prompt {index} must be a list of ids; got {str(prompt)[:40]!r}. Write [ids] for "
                "one prompt, tensor.tolist() for a tensor, and encode text first."
            )
        if not prompt:
            raise ValueError(f"prompt {index} is empty; begin it with the BOS id.")
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise ValueError(
                f"ids of prompt {index} must lie in 0...{vocab - 1}; got "
                f"{min(prompt)}...{max(prompt)}. Is it the tokenizer the model was trained with?"
            )
    if limit < 1:
        raise ValueError(f"max_new_tokens must be at least 1; got {limit}.")
    if not 0.0 <= temperature < math.inf:
        raise ValueError(
            f"temperature must be 0 (greedy) or positive and finite; got {temperature}."
        )
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must lie in (0, 1]; got {top_p}.")
    if bad := [index for index in stop_ids if not 0 <= index < vocab]:
        raise ValueError(f"stop_ids must lie in 0...{vocab - 1}; got {bad[0]}.")
    # Rows share one cache, in which shorter prompts are padded to the longest.
    room = context - max(map(len, prompts))
    if limit > room:
        raise ValueError(
            f"prompt and answer must fit {context} tokens; the longest prompt leaves "
            f"{max(room, 0)} of the {limit} asked for. Shorten the dialog or lower "
            "max_new_tokens."
        )


def nucleus(probabilities: PerId, top_p: float) -> PerId:
    """Keep the smallest set of tokens whose mass reaches `top_p`, and renormalise.

    The token that crosses the threshold stays, so the most probable one always does.
    """
    if top_p >= 1.0:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    beyond = before >= top_p
    beyond[..., 0] = False
    ordered = ordered.masked_fill(beyond, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def sample(
    logits: PerId, uniform: Float[Tensor, " batch"], temperature: float, top_p: float
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return one id a row and its log-probability under the distribution sampled from.

    Sampling inverts the cumulative distribution at `uniform`, so a row's draw depends on that
    row alone. At temperature 0 the largest logit is taken, with the model's own log-probability.
    """
    if temperature == 0.0:
        logprob, best = logits.log_softmax(dim=-1).max(dim=-1)
        return best, logprob
    if temperature < 1e-30:  # dividing would overflow; what it tends to is the arg-max
        logits = logits - logits.amax(dim=-1, keepdim=True)
        temperature = max(temperature, torch.finfo(logits.dtype).tiny)
    probabilities = nucleus((logits / temperature).softmax(dim=-1), top_p)
    cumulative = probabilities.double().cumsum(dim=-1)
    target = uniform.double() * cumulative[:, -1]
    ids = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    # A draw just below 1 may round up to the full mass: step back to a token that has some.
    last = cumulative.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(dim=-1)
    ids = torch.minimum(ids, last)
    return ids, probabilities.gather(-1, ids[:, None])[:, 0].log()


class Decoder:
    """A frozen copy of a model's weights that extends sequences by one token.

    The same computation as `Transformer`, to which a test holds it, in fewer kernels: calling them
    is most of a small model's step. Projections that read the same vector are stacked, gains of
    norms are folded into the matrix that follows, and queries and keys are rotated together. A
    norm is three kernels, where PyTorch's own takes six:
    g * h / sqrt(|h|^2 / d + eps) = (sqrt(d) g) * h / hypot(|h|, sqrt(d eps)).
    """

    def __init__(self, model: Transformer):
        self.model, self.config = model, model.config
        weight, root = model.tok_embeddings.weight, math.sqrt(model.config.dim)
        floor = root * math.sqrt(model.config.norm_eps)
        self.floor = torch.tensor(floor, dtype=weight.dtype).to(weight.device)

        def folded(matrix: Tensor, norm: RMSNorm) -> Tensor:
            return (matrix * (root * norm.weight)).to(matrix.dtype)

        def stacked(block: TransformerBlock) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            attention, ffn = block.attention, block.feed_forward
            wqkv = torch.cat([attention.wq.weight, attention.wk.weight, attention.wv.weight])
            w13 = torch.cat([ffn.w1.weight, ffn.w3.weight])
            return (
                folded(wqkv, block.attention_norm),
                attention.wo.weight,
                folded(w13, block.ffn_norm),
                ffn.w2.weight,
            )

        self.layers = [stacked(block) for block in model.layers]  # type: ignore[arg-type]
        self.output = folded(model.output.weight, model.norm)

    def step(self, token: Int[Tensor, "batch 1"], cache: KVCache) -> PerId:
        """Return the logits after `token`, the newest of each row, which joins the cache."""
        c, slot, batch = self.config, cache.length, token.shape[0]
        heads = c.n_heads + c.n_kv_heads
        visible = cache.visible(1)
        mask = None if visible is None else visible[:, None]
        h = F.embedding(token[:, 0], self.model.tok_embeddings.weight)
        rotation = self.model.rotation(h[:, None], cache.positions(1), slot)
        for (wqkv, wo, w13, w2), kept in zip(self.layers, cache.layers, strict=True):
            qkv = F.linear(self.unit(h), wqkv)
            qkv = qkv.view(batch, 1, heads + c.n_kv_heads, c.head_dim)
            turned = apply_rotary(qkv[:, :, :heads], rotation)[:, 0]
            kept.k.select(2, slot).copy_(turned[:, c.n_heads :])
            kept.v.select(2, slot).copy_(qkv[:, 0, heads:])
            mixed = F.scaled_dot_product_attention(
                # the heads of a group stand in for the query axis: see `transformer._fused`
                turned[:, : c.n_heads].reshape(batch, c.n_kv_heads, -1, c.head_dim),
                kept.k[:, :, : slot + 1],
                kept.v[:, :, : slot + 1],
                attn_mask=mask,
            )
            h = h + F.linear(mixed.reshape(batch, -1), wo)
            gate, up = F.linear(self.unit(h), w13).chunk(2, dim=-1)
            h = h + F.linear(F.silu(gate) * up, w2)
        cache.length = slot + 1
        logits = F.linear(self.unit(h), self.output)
        return logits if logits.dtype == torch.float64 else logits.float()

    def unit(self, h: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return what `RMSNorm` makes of `h`, without gain and over the root of its width."""
        return h / torch.hypot(torch.linalg.vector_norm(h, dim=-1, keepdim=True), self.floor)
