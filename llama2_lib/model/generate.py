"""Batched generation from ragged prompts with a key/value cache."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama2_lib import rng
from llama2_lib.model.cache import KVCache, Past
from llama2_lib.model.decode import STACK_LIMIT, Decoder
from llama2_lib.model.sampling import sample
from llama2_lib.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated after one prompt."""

    ids: list[int]
    """Generated ids; the stop id, when there was one, is the last."""
    logprobs: list[float]
    """Of each id, in nats, under the distribution it was sampled from."""
    finished: bool
    """Whether a stop id ended it, rather than `max_new_tokens`."""


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
    """Continue each prompt by up to `max_new_tokens` tokens.

    Prompts may differ in length. A row that has met a stop id, or its limit, leaves the batch.
    What a row samples depends on its prompt and its seed, not on its companions.

    Args:
        model: The policy.
        prompts: Non-empty lists of ids.
        max_new_tokens: At most this many new ids, the stop id included; one limit, or one a row.
        temperature: Divides the logits; 0 means greedy.
        top_p: Mass of the nucleus that is sampled from; 1 keeps everything.
        seed: One seed, from which every row's is derived, or one a row.
        stop_ids: Ids that end a row, for all rows or one collection a row.
        pasts: What this model has read of every row before, brought up to date: see `Past`.

    Raises:
        ValueError: An argument is out of range, or prompt and answer exceed the context.
    """
    batch, vocab = len(prompts), model.config.vocab_size
    limits = [max_new_tokens] * batch if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(model, prompts, limits, temperature, top_p, pasts)
    device, longest = model.tok_embeddings.weight.device, max(limits)
    table = _stop_table(stop_ids, batch, vocab).to(device)
    # What belongs to the rows still being written; `rows` are their numbers in the answer.
    rows, limit = torch.arange(batch, device=device), torch.tensor(limits, device=device)
    stops, alive = table, torch.ones(batch, dtype=torch.bool, device=device)
    draws = _uniforms(seed, batch, longest if temperature else 1).to(device)
    written = _Answers(batch, longest, model.tok_embeddings.weight)
    ask_every = 1 if device.type == "cpu" else 8  # asking makes the CPU wait for a GPU
    logits, state = _prefill(model, prompts, longest, pasts)
    for step in range(longest):
        token, logprob = sample(logits, draws[:, step if temperature else 0], temperature, top_p)
        written.append(token, logprob)
        if step + 1 == longest:
            break
        alive = alive & ~stops.gather(1, token[:, None])[:, 0] & (limit > step + 1)
        n_alive = int(alive.sum()) if (step + 1) % ask_every == 0 else len(rows)
        if n_alive == 0:
            break
        if n_alive <= 0.875 * len(rows):  # copying the cache must pay for itself
            written.flush(rows)
            keep = alive.nonzero()[:, 0]
            rows, token, alive, limit, stops, draws = (
                t[keep] for t in (rows, token, alive, limit, stops, draws)
            )
            state.keep_rows(keep)
        logits = state.decode(token)
    written.flush(rows)
    return _completions(written, table, torch.tensor(limits))


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


class _State:
    """The cache of the rows in the batch, and where their left padding ends."""

    def __init__(self, model: Transformer, cache: KVCache, padding: Tensor | None):
        self.model, self.cache, self.padding = model, cache, padding
        self.slots = torch.arange(cache.max_len, device=model.tok_embeddings.weight.device)
        small = model.config.n_parameters <= STACK_LIMIT
        self.decoder = Decoder(model) if small else None

    def visible(self, queries: int) -> Tensor | None:
        """True where one of the next `queries` tokens may look; None if that is all before it."""
        if self.padding is None:
            return None
        start = self.cache.length
        keys = self.slots[: start + queries]
        own = self.slots[start : start + queries]
        real = keys[None, None] >= self.padding[:, None, None]
        # A padding token looks at itself: a softmax over nothing would be NaN.
        return (real & (keys <= own[:, None])) | (keys == own[:, None])

    def positions(self, queries: int) -> Tensor | None:
        """Rotary positions of the next `queries` tokens; None if they just count on."""
        if self.padding is None:
            return None
        own = self.slots[self.cache.length : self.cache.length + queries]
        return (own[None] - self.padding[:, None]).clamp(min=0)

    def read(self, ids: Tensor) -> Tensor:
        """Return the logits after the last of `ids` (batch, queries)."""
        n = ids.shape[1]
        hidden = self.model.hidden(
            ids, positions=self.positions(n), visible=self.visible(n), cache=self.cache
        )
        return self.model.head(hidden[:, -1])

    def decode(self, token: Tensor) -> Tensor:
        """Return the logits after one more token a row."""
        if self.decoder is None:
            return self.read(token[:, None])
        return self.decoder.step(token, self.positions(1), self.visible(1), self.cache)

    def keep_rows(self, keep: Tensor) -> None:
        """Drop all other rows."""
        self.cache.keep_rows(keep)
        if self.padding is not None:
            self.padding = self.padding[keep]


def _prefill(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    pasts: Sequence[Past] | None,
) -> tuple[Tensor, _State]:
    """Run the prompts, padded on the left to one length; return the next logits and the state.

    Copies of a prompt, as best-of-N asks for, are read once.
    """
    device = model.tok_embeddings.weight.device
    first: dict[tuple[int, ...], int] = {}
    for row, prompt in enumerate(prompts):
        first.setdefault(tuple(prompt), row)
    longest = max(map(len, first))
    n_new = longest
    if pasts is not None:
        n_new = max(len(prompt) - pasts[row].n_shared(prompt) for prompt, row in first.items())
    padding = torch.tensor([longest - len(prompt) for prompt in first], device=device)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in first], device=device)
    cache = KVCache(
        model.config,
        len(first),
        longest + max_new_tokens,
        device,
        torch.get_autocast_dtype(device.type)
        if torch.is_autocast_enabled(device.type)
        else model.tok_embeddings.weight.dtype,
    )
    cache.length = longest - n_new
    if pasts is not None:
        for at, (prompt, row) in enumerate(first.items()):
            cache.recall(at, pasts[row], len(prompt) - n_new)
    state = _State(model, cache, padding if bool(padding.any()) else None)
    logits = state.read(ids[:, cache.length :])
    if len(first) < len(prompts):
        row_of = {prompt: at for at, prompt in enumerate(first)}
        rows = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=device)
        logits = logits[rows]
        state.keep_rows(rows)
    for row, past in enumerate(pasts or ()):
        cache.remember(row, prompts[row], past)
    return logits, state


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


def _completions(written: _Answers, stops: Tensor, limit: Tensor) -> list[Completion]:
    """Cut every row after its first stop id, or at its limit."""
    ids, logprobs, stops = written.ids.cpu(), written.logprobs.cpu(), stops.cpu()
    hit = stops.gather(1, ids) & (torch.arange(ids.shape[1]) < limit[:, None])
    finished = hit.any(dim=1)
    length = torch.where(finished, hit.int().argmax(dim=1) + 1, limit)
    return [
        Completion(ids[row, :n].tolist(), logprobs[row, :n].tolist(), bool(finished[row]))
        for row, n in enumerate(length.tolist())
    ]


def _check(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    temperature: float,
    top_p: float,
    pasts: Sequence[Past] | None,
) -> None:
    if not prompts:
        raise ValueError("generate needs at least one prompt; got none.")
    if pasts is not None and len(pasts) != len(prompts):
        raise ValueError(f"pasts must be one a prompt; got {len(pasts)} for {len(prompts)}.")
    if len(limits) != len(prompts):
        raise ValueError(
            f"max_new_tokens must be one number or one a prompt; got {len(limits)} for "
            f"{len(prompts)}."
        )
    if min(limits) < 1:
        raise ValueError(f"max_new_tokens must be at least 1; got {min(limits)}.")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(
            f"temperature must be 0 (greedy) or positive and finite; got {temperature}."
        )
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must lie in (0, 1]; got {top_p}.")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty; begin it with the BOS id.")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            raise ValueError(
                f"ids of prompt {index} must lie in 0...{model.config.vocab_size - 1}; got "
                f"{min(prompt)}...{max(prompt)}. Is it the tokenizer the model was trained with?"
            )
    # Rows share one cache, in which shorter prompts are padded to the longest.
    room = model.config.max_seq_len - max(map(len, prompts))
    if max(limits) > room:
        raise ValueError(
            f"prompt and answer must fit {model.config.max_seq_len} tokens; the longest "
            f"prompt leaves {max(room, 0)} of the {max(limits)} asked for. "
            "Shorten the dialog or lower max_new_tokens."
        )
