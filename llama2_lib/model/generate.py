"""Generation: the next token from logits, and batches of answers to ragged prompts."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llama2_lib import rng
from llama2_lib.model.transformer import KVCache, Transformer, TransformerBlock, apply_rotary

STACK_LIMIT = 200_000_000
"""Models with more weights decode through `Transformer`: a stacked copy would not pay there."""
WORTH_COPYING = 0.875
"""Share of the rows that are still written, below which the cache is copied without the others."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated after one prompt."""

    ids: list[int]
    """Generated ids; the stop id, when there was one, is the last."""
    logprobs: list[float]
    """Of each id, in nats, under the distribution it was sampled from."""
    finished: bool
    """Whether a stop id ended it, rather than `max_new_tokens`."""


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
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop_ids: Collection[int] | Sequence[Collection[int]] = (),
    pasts: Sequence[Past] | None = None,
) -> list[Completion]:
    """Continue each prompt, a list of ids, by up to `max_new_tokens` tokens.

    Prompts may differ in length. A row that has met a stop id, or its limit, leaves the batch.
    What a row samples depends on its prompt and its seed, not on its companions.

    Args:
        max_new_tokens: At most this many ids, the stop id included; one limit, or one a row.
        temperature: Divides the logits; 0 means greedy.
        top_p: Mass of the nucleus that is sampled from; 1 keeps everything.
        seed: One seed, from which every row's is derived, or one a row.
        stop_ids: Ids that end a row, for all rows or one collection a row.
        pasts: What this model has read of every row before, brought up to date: see `Past`.

    Raises:
        ValueError: An argument is out of range, or prompt and answer exceed the context.
        FloatingPointError: The model's logits are not numbers.
    """
    _check_prompts(prompts, model.config.vocab_size)
    batch, weight = len(prompts), model.tok_embeddings.weight
    limits = [max_new_tokens] * batch if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(model, prompts, limits, temperature, top_p, pasts)
    longest, device, vocab = max(limits), weight.device, model.config.vocab_size
    number, limit = torch.arange(batch, device=device), torch.tensor(limits, device=device)
    stops = _stop_table(stop_ids, batch, vocab).to(device)
    draws = _uniforms(seed, batch, longest if temperature else 1).to(device)
    rows = every_row = _Rows(number, torch.ones_like(number, dtype=torch.bool), limit, stops, draws)
    answers = _Answers(batch, longest, weight)
    logits, cache = _prefill(model, prompts, longest, pasts)
    fast = model.config.n_parameters <= STACK_LIMIT
    decode = Decoder(model).step if fast else partial(_read, model)
    ask_every = 1 if device.type == "cpu" else 8  # asking makes the CPU wait for a GPU
    for step in range(longest):
        draw = rows.draws[:, step if temperature else 0]
        token, logprob = sample(logits, draw, temperature, top_p)
        answers.append(token, logprob)
        if step + 1 == longest:
            break
        goes_on = ~rows.stops.gather(1, token[:, None])[:, 0] & (rows.limit > step + 1)
        rows = rows._replace(alive=rows.alive & goes_on)
        n_alive = int(rows.alive.sum()) if (step + 1) % ask_every == 0 else len(rows.number)
        if n_alive == 0:
            break
        if n_alive <= WORTH_COPYING * len(rows.number):  # copying the cache must pay for itself
            answers.flush(rows.number)
            keep = rows.alive.nonzero()[:, 0]
            rows, token = _Rows(*(values[keep] for values in rows)), token[keep]
            cache.keep_rows(keep)
        logits = decode(token[:, None], cache)
    return _completions(answers, rows.number, every_row)


class _Rows(NamedTuple):
    """The rows that are still being written."""

    number: Tensor
    """Which prompts they answer."""
    alive: Tensor
    """False for a row that is done and waits for others, to leave with them."""
    limit: Tensor
    stops: Tensor
    """(rows, vocab), True where an id ends a row."""
    draws: Tensor
    """(rows, steps), uniform."""


class _Answers:
    """Ids and log-probabilities of all rows, written in blocks of steps with the same rows."""

    def __init__(self, batch: int, steps: int, weight: Tensor):
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.ids = torch.zeros(batch, steps, dtype=torch.int64, device=weight.device)
        self.logprobs = torch.zeros(batch, steps, dtype=exact, device=weight.device)
        self.begin = 0
        self.block: list[tuple[Tensor, Tensor]] = []

    def append(self, token: Tensor, logprob: Tensor) -> None:
        self.block.append((token, logprob))

    def flush(self, rows: Tensor) -> None:
        end = self.begin + len(self.block)
        tokens, logprobs = zip(*self.block, strict=True)
        self.ids[rows, self.begin : end] = torch.stack(tokens, dim=1)
        self.logprobs[rows, self.begin : end] = torch.stack(logprobs, dim=1).to(self.logprobs.dtype)
        self.begin, self.block = end, []


def _completions(answers: _Answers, unwritten: Tensor, rows: _Rows) -> list[Completion]:
    """Cut every row after its first stop id, or at its limit."""
    answers.flush(unwritten)
    ids, logprobs = answers.ids.cpu(), answers.logprobs.cpu()
    stops, limit = rows.stops.cpu(), rows.limit.cpu()
    step = torch.arange(ids.shape[1])
    hit = stops.gather(1, ids) & (step < limit[:, None])
    finished = hit.any(dim=1)
    length = torch.where(finished, hit.int().argmax(dim=1) + 1, limit)
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
    device = weight.device
    first: dict[tuple[int, ...], int] = {}
    for row, prompt in enumerate(prompts):
        first.setdefault(tuple(prompt), row)
    longest = max(map(len, first))
    n_new = longest
    if pasts is not None:
        n_new = max(len(prompt) - pasts[row].n_shared(prompt) for prompt, row in first.items())
    padding = torch.tensor([longest - len(prompt) for prompt in first], device=device)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in first], device=device)
    mixed = torch.is_autocast_enabled(device.type)
    cache = KVCache(
        model.config,
        len(first),
        longest + max_new_tokens,
        device,
        torch.get_autocast_dtype(device.type) if mixed else weight.dtype,
        padding if bool(padding.any()) else None,
    )
    cache.length = longest - n_new
    if pasts is not None:
        for at, (prompt, row) in enumerate(first.items()):
            pasts[row].recall(cache, at, len(prompt) - n_new)
    logits = _read(model, ids[:, cache.length :], cache)
    if len(first) < len(prompts):
        row_of = {prompt: at for at, prompt in enumerate(first)}
        rows = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=device)
        logits = logits[rows]
        cache.keep_rows(rows)
    for row, past in enumerate(pasts or ()):
        past.remember(cache, row, prompts[row])
    return logits, cache


def _read(model: Transformer, ids: Tensor, cache: KVCache) -> Tensor:
    """Return the logits after the last of `ids` (batch, new), which join the cache."""
    return model.logits(model.hidden(ids, attend=cache)[:, -1])


def _uniforms(seed: int | Sequence[int], batch: int, steps: int) -> Tensor:
    """Return (batch, steps) draws from [0, 1), every row from a generator of its own."""
    if isinstance(seed, int):
        seeds: Sequence[int] = [rng.seed_from(seed, "generate", row) for row in range(batch)]
    else:
        seeds = seed
    if len(seeds) != batch:
        raise ValueError(f"seed must be one number or one a prompt; got {len(seeds)} for {batch}.")
    return torch.stack([torch.rand(steps, generator=rng.generator(s, "tokens")) for s in seeds])


def _stop_table(
    stop_ids: Collection[int] | Sequence[Collection[int]], batch: int, vocab: int
) -> Tensor:
    """Return (batch, vocab), True where an id ends a row."""
    given: list[Any] = list(stop_ids)
    per_row = given if given and not isinstance(given[0], int) else [given] * batch
    if len(per_row) != batch:
        raise ValueError(
            f"stop_ids must be one collection or one a prompt; got {len(per_row)} for {batch}."
        )
    table = torch.zeros(batch, vocab, dtype=torch.bool)
    for row, ids in enumerate(per_row):
        bad = [index for index in ids if not 0 <= index < vocab]
        if bad:
            raise ValueError(f"stop_ids must lie in 0...{vocab - 1}; got {bad[0]}.")
        table[row].index_fill_(0, torch.tensor(list(ids), dtype=torch.int64), True)
    return table


def _check_prompts(prompts: Any, vocab: int) -> None:
    def is_list(value: Any) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)

    if not is_list(prompts) or not all(is_list(prompt) for prompt in prompts):
        kind = "one list of ids" if is_list(prompts) else f"a {type(prompts).__name__}"
        raise ValueError(
            f"prompts must be lists of ids, one a prompt; got {kind}. Write [ids] for one prompt, "
            "and tensor.tolist() for a tensor."
        )
    if not prompts:
        raise ValueError("generate needs at least one prompt; got none.")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty; begin it with the BOS id.")
        for kind in {type(token) for token in prompt}:
            if not issubclass(kind, Integral):
                raise ValueError(
                    f"prompt {index} must be a list of ids; it holds a {kind.__name__}. Encode "
                    "text first."
                )
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise ValueError(
                f"ids of prompt {index} must lie in 0...{vocab - 1}; got "
                f"{min(prompt)}...{max(prompt)}. Is it the tokenizer the model was trained with?"
            )


def _check(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    temperature: float,
    top_p: float,
    pasts: Sequence[Past] | None,
) -> None:
    for name, given in (("pasts", pasts), ("max_new_tokens", limits)):
        if given is not None and len(given) != len(prompts):
            either = "one number or " if name == "max_new_tokens" else ""
            raise ValueError(
                f"{name} must be {either}one a prompt; got {len(given)} for {len(prompts)}."
            )
    if min(limits) < 1:
        raise ValueError(f"max_new_tokens must be at least 1; got {min(limits)}.")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(
            f"temperature must be 0 (greedy) or positive and finite; got {temperature}."
        )
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must lie in (0, 1]; got {top_p}.")
    # Rows share one cache, in which shorter prompts are padded to the longest.
    room = model.config.max_seq_len - max(map(len, prompts))
    if max(limits) > room:
        raise ValueError(
            f"prompt and answer must fit {model.config.max_seq_len} tokens; the longest "
            f"prompt leaves {max(room, 0)} of the {max(limits)} asked for. "
            "Shorten the dialog or lower max_new_tokens."
        )


def nucleus(
    probabilities: Float[Tensor, "batch vocab"], top_p: float
) -> Float[Tensor, "batch vocab"]:
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
    logits: Float[Tensor, "batch vocab"],
    uniform: Float[Tensor, " batch"],
    temperature: float,
    top_p: float,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return one id a row and its log-probability under the distribution sampled from.

    Sampling inverts the cumulative distribution at `uniform`, so a row's draw depends on that
    row alone. At temperature 0 the largest logit is taken, and its log-probability is the
    model's own, at temperature 1.
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
    # A uniform draw just below 1 may round up to the full mass: step back to a token that has
    # some probability.
    last = cumulative.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(dim=-1)
    ids = torch.minimum(ids, last)
    return ids, probabilities.gather(-1, ids[:, None])[:, 0].log()


class Decoder:
    """A frozen copy of a model's weights that extends sequences by one token.

    The same computation as `Transformer`, laid out for small steps. A step of a small model is
    mostly the cost of calling kernels, so there are fewer of them: projections that read the same
    vector are stacked into one matrix, gains of norms are folded into the matrix that follows, and
    queries and keys are rotated together. A norm is three kernels:
    g * h / sqrt(|h|^2 / d + eps) = (sqrt(d) g) * h / hypot(|h|, sqrt(d eps)), where PyTorch's own
    takes six. A test holds the two implementations together.
    """

    def __init__(self, model: Transformer):
        self.model, self.config = model, model.config
        weight = model.tok_embeddings.weight
        root = math.sqrt(self.config.dim)
        self.layers = [_Stacked(block, root) for block in model.layers]  # type: ignore[arg-type]
        self.output = _folded(model.output.weight, root * model.norm.weight)
        self.floor = torch.tensor(root * math.sqrt(self.config.norm_eps), dtype=weight.dtype).to(
            weight.device
        )

    def step(self, token: Int[Tensor, "batch 1"], cache: KVCache) -> Float[Tensor, "batch vocab"]:
        """Return the logits after `token`, the newest of each row, which joins the cache."""
        c, slot, batch = self.config, cache.length, token.shape[0]
        heads = c.n_heads + c.n_kv_heads
        visible = cache.visible(1)
        mask = None if visible is None else visible[:, None]
        h = F.embedding(token[:, 0], self.model.tok_embeddings.weight)
        rotation = self.model.rotation(h[:, None], cache.positions(1), slot)
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            qkv = F.linear(self.unit(h), layer.wqkv)
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
            h = h + F.linear(mixed.reshape(batch, -1), layer.wo)
            gate, up = F.linear(self.unit(h), layer.w13).chunk(2, dim=-1)
            h = h + F.linear(F.silu(gate) * up, layer.w2)
        cache.length = slot + 1
        logits = F.linear(self.unit(h), self.output)
        return logits if logits.dtype == torch.float64 else logits.float()

    def unit(self, h: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return what `RMSNorm` makes of `h`, without gain and over the root of its width."""
        return h / torch.hypot(torch.linalg.vector_norm(h, dim=-1, keepdim=True), self.floor)


class _Stacked:
    """The weights of one block, stacked."""

    def __init__(self, block: TransformerBlock, root: float):
        attention, feed_forward = block.attention, block.feed_forward
        wqkv = torch.cat([attention.wq.weight, attention.wk.weight, attention.wv.weight])
        self.wqkv = _folded(wqkv, root * block.attention_norm.weight)
        self.wo = attention.wo.weight
        w13 = torch.cat([feed_forward.w1.weight, feed_forward.w3.weight])
        self.w13 = _folded(w13, root * block.ffn_norm.weight)
        self.w2 = feed_forward.w2.weight


def _folded(matrix: Tensor, gain: Tensor) -> Tensor:
    """Return a matrix that applies the gain of the norm before it, in the matrix's precision."""
    return (matrix * gain).to(matrix.dtype)
