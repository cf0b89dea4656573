"""Training and generation of the course's own shape beside `transformers`."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llama2_lib.device import autocast, choose_device, peak_memory, synchronize
from llama2_lib.export import hugging_face_config
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import ScalarModel, Transformer, initialise
from llama2_lib.model.weights import to_hugging_face
from llama2_lib.objectives.language import LossTerm, next_token_loss
from llama2_lib.recipes import nano
from llama2_lib.training.optim import Step, adamw, optimize

PROMPT, NEW = 16, 128


def _training_steps(
    model: nn.Module, logits: Callable[[Tensor], Tensor], config: ModelConfig, device: torch.device,
    precision: str,
) -> Iterator[Step]:  # fmt: skip
    """Endless optimiser steps on random tokens, the same for both sides."""
    shape = nano().pretrain
    ids = torch.randint(3, config.vocab_size, (shape.batch_size, shape.seq_len + 1), device=device)

    def loss(_: nn.Module, batch: Tensor) -> LossTerm:
        with autocast(device, precision):
            return next_token_loss(logits(batch[:, :-1]).float(), batch)

    return optimize(
        model, adamw(model), itertools.repeat(ids), loss, lambda _: 1e-4, steps=range(10**9)
    )


def train(*, pairs: int = 5, device: str = "auto", precision: str = "fp32") -> int:
    """Time one training step of nano's shape against `transformers`, not compiled.

    Both sides take their steps in this library's loop, with its loss and PyTorch's fused AdamW.
    """
    where, config = choose_device(device), nano().model
    ours = initialise(Transformer(config), 0).to(where)
    twin = hugging_face_twin(ours).train()
    sides = [
        _training_steps(ours, ours, config, where, precision),
        _training_steps(twin, lambda ids: twin(input_ids=ids).logits, config, where, precision),
    ]
    # Three steps a turn.
    works = [lambda side=side: list(itertools.islice(side, 3)) for side in sides]
    times = turns(works, pairs, where)
    tokens = 3 * nano().pretrain.batch_size * nano().pretrain.seq_len
    print(f"device {where}, {precision}, {torch.get_num_threads()} threads, {len(times)} pairs")
    for name, rate in zip(("ours", "transformers"), rates(times), strict=True):
        print(f"{name:12s} {tokens * rate:10.0f} tokens/s")
    print(f"ratio        {median_ratio(times):10.2f}  (median of pairs; more is better)")
    print(f"peak memory  {peak_memory(where) / 2**20:10.0f} MiB")
    return 0


def generation(*, pairs: int = 5, device: str = "auto", precision: str = "fp32") -> int:
    """Time cached generation: greedy at batch 1 and 64, and sampled at 64 until answers end."""
    where, config = choose_device(device), nano().model
    ours = initialise(Transformer(config), 0).to(where).eval()
    twin = hugging_face_twin(ours)
    print(f"device {where}, {precision}, {torch.get_num_threads()} threads, {pairs} pairs")
    print(f"prompts of {PROMPT}, up to {NEW} new tokens")
    print(f"{'case':12s} {'ours tok/s':>12s} {'transformers':>12s} {'ratio':>7s}")
    # Answers of a model with random weights end with chance 1/32, as chat answers roughly do.
    ends = range(3, config.vocab_size, 32)
    for name, n, stop_ids in (("batch 1", 1, ()), ("batch 64", 64, ()), ("ragged 64", 64, ends)):
        ids = torch.randint(3, config.vocab_size, (n, PROMPT), device=where)
        options = {
            "max_new_tokens": NEW,
            "stop_ids": stop_ids,
            "temperature": float(len(stop_ids) > 0),
        }
        with autocast(where, precision):
            ask = partial(generate, ours, ids.tolist(), **options)
            wanted = [len(answer.ids) for answer in ask()]
            works = [ask, partial(_theirs, twin, ids, max(wanted))]
            times = turns(works, pairs, where)
        mine, other = (sum(wanted) * rate for rate in rates(times))
        print(f"{name:12s} {mine:12.0f} {other:12.0f} {median_ratio(times):7.2f}")
    _length_curve(ours, where, precision)
    print(f"peak memory {peak_memory(where) / 2**20:.0f} MiB")
    return 0


def _theirs(twin: Any, ids: Tensor, new: int) -> None:
    # `transformers` has no limit a row: rows that are done go on producing padding.
    twin.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
        do_sample=False,
    )  # fmt: skip


def _length_curve(model: Transformer, device: torch.device, precision: str) -> None:
    """Print the cost of a token as the sequence grows: flat means the cache works."""
    longest = model.config.max_seq_len - PROMPT
    prompts, costs = [[1] * PROMPT] * 16, []
    for new in (longest // 4, longest // 2, longest):
        with autocast(device, precision):
            work = partial(generate, model, prompts, max_new_tokens=new, temperature=0.0)
            fastest = min(seconds(work, device) for _ in range(3))
        costs.append(f"  {new}: {1e3 * fastest / new:.2f}")
    print("ms per step at batch 16 by answer length:" + "".join(costs))


# --- the other side: `transformers`' Llama with the weights of a model of ours


def hugging_face_twin(model: Transformer) -> nn.Module:
    """Return `transformers`' Llama with the same weights, and with PyTorch's fused attention."""
    twin = _transformers().LlamaForCausalLM(_config(model.config))
    twin.set_attn_implementation("sdpa")
    twin.load_state_dict(to_hugging_face(model.state_dict(), model.config))
    return nn.Module.to(twin, model.tok_embeddings.weight.device).eval()


def scalar_twin(model: ScalarModel) -> nn.Module:
    """Return `transformers`' Llama with a scalar head and the same weights; it has no bias."""
    if bool(model.head.bias.detach().any()):
        raise ValueError("the other side's scalar heads have no bias; this one's must be 0.")
    config = _config(model.config)
    config.num_labels = 1
    twin = _transformers().LlamaForSequenceClassification(config)
    twin.set_attn_implementation("sdpa")
    weights = to_hugging_face(model.backbone.state_dict(), model.config)
    del weights["lm_head.weight"]  # logits are what this head takes the place of
    weights["score.weight"] = model.head.weight
    twin.load_state_dict(weights)
    return nn.Module.to(twin, model.head.weight.device).eval()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "the comparison needs transformers, which is not installed; `make test` installs it, "
            "or pip install transformers."
        ) from None
    return transformers


def _config(c: ModelConfig) -> Any:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return _transformers().LlamaConfig(**hugging_face_config(c), tie_word_embeddings=False, **ids)


# --- how long work takes


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long `work` takes, with the device's queue drained."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def turns(works: Sequence[Callable[[], object]], n: int, device: torch.device) -> list[list[float]]:
    """Return the seconds of each work, turn by turn, `n` times; a turn before these warms up."""
    return [[seconds(work, device) for work in works] for _ in range(n + 1)][1:]


def rates(times: Sequence[Sequence[float]]) -> list[float]:
    """Return how often a second each work is done, by its median time."""
    return [1 / statistics.median(column) for column in zip(*times, strict=True)]


def median_ratio(times: Sequence[Sequence[float]]) -> float:
    """Return the median of how many times as long the second of two neighbours takes."""
    return statistics.median(other / mine for mine, other in times)
