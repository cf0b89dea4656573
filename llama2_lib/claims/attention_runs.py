"""What claims 5 and 7 measure: attention variants of equal size, trained and timed."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from llama2_lib import pipeline, rng
from llama2_lib.claims.claim import Measurement
from llama2_lib.device import choose_device, synchronize
from llama2_lib.evaluation.language import document_nats
from llama2_lib.model.cache import KVCache
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.recipes import Recipe, grid
from llama2_lib.stages.corpus import load_corpus

MHA_FITS = 16
"""The memory budget of claim 7, in sequences of multi-head attention."""
WARM_UP, STEPS, ROUNDS = 2, 8, 7
"""Untimed tokens and timed tokens of one timing, timings of each batch; the best one counts."""


def at_equal_size(config: ModelConfig, n_kv_heads: int) -> ModelConfig:
    """Return `config` with other key/value heads and as many weights.

    What the projections of keys and values gain or lose, the feed-forward width gives or takes,
    as in appendix A.2.1. The total is off by less than 3 * dim weights a layer.
    """
    if n_kv_heads == config.n_kv_heads:
        return config
    freed = 2 * config.dim * config.head_dim * (config.n_kv_heads - n_kv_heads)
    width = config.hidden_dim + round(freed / (3 * config.dim))
    # Half a number more than wanted: Meta's rule cuts the product off.
    multiplier = (width + 0.5) / int(2 * 4 * config.dim / 3)
    return replace(config, n_kv_heads=n_kv_heads, multiple_of=1, ffn_dim_multiplier=multiplier)


def variants(config: ModelConfig) -> dict[str, ModelConfig]:
    """Return multi-head, grouped-query and multi-query models of one size; GQA is `config`."""
    heads = {"mha": config.n_heads, "gqa": config.n_kv_heads, "mqa": 1}
    return {name: at_equal_size(config, n) for name, n in heads.items()}


def quality_recipes(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return what claim 5 trains for one seed: variants of the grid's model, or of a smaller one.

    The grid's model gets the texts and the tokenizer of `recipe`.
    """
    point = grid(seed)
    small = replace(
        point,
        corpus=recipe.corpus,
        tokenizer=recipe.tokenizer,
        model=replace(point.model, vocab_size=recipe.tokenizer.vocab_size),
    )
    own = replace(recipe, pretrain=replace(recipe.pretrain, seed=seed))
    base = min(small, own, key=lambda r: r.model.n_parameters)
    return {name: replace(base, model=model) for name, model in variants(base.model).items()}


def quality_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the runs of claim 5."""
    return [("pretrain", r) for seed in seeds for r in quality_recipes(recipe, seed).values()]


def measure_quality(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 5; the keys are those of its judge.

    The loss is taken on the whole validation split, each document by itself, cut at the length
    that was trained on.
    """
    runs = quality_recipes(recipe, seed)
    pipeline.artifacts([("pretrain", run) for run in runs.values()])
    values: dict[str, float] = {}
    for name, run in runs.items():
        split = load_corpus(pipeline.artifact("corpus", run), "validation")
        model, _ = pipeline.load("pretrain", run)
        documents = [split.document(index) for index in range(split.packed.n_documents)]
        nats = document_nats(model, documents, max_len=run.pretrain.seq_len)
        values[name] = float(nats.nats.sum() / nats.tokens.sum())
        values[f"parameters/{name}"] = float(sum(p.numel() for p in model.parameters()))
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def measure_throughput(recipe: Any, seed: int) -> Measurement:
    """Measure claim 7; the keys are those of its judge.

    The memory that runs out is a budget in bytes for the cache, so that any machine runs out at
    the same batch: room for 16 sequences of multi-head attention, each half the context long.
    The batch doubles from 1 until the allocated cache exceeds it. Timed is the decoding of
    tokens with the cache nearly full; variants take turns, and the best timing counts.
    """
    context = recipe.model.max_seq_len // 2
    configs, device = variants(recipe.model), choose_device()
    budget = MHA_FITS * configs["mha"].kv_cache_bytes(context, bytes_per_number=4)
    models = {
        name: initialise(Transformer(config), seed).to(device).eval()
        for name, config in configs.items()
    }
    caches: dict[tuple[str, int], KVCache] = {}
    for name, config in configs.items():
        batch = 1
        while (cache := KVCache(config, batch, context, device)).n_bytes() <= budget:
            caches[name, batch] = cache
            batch *= 2
    seconds = dict.fromkeys(caches, float("inf"))
    for _ in range(ROUNDS):
        for (name, batch), cache in caches.items():
            for _ in range(max(1, MHA_FITS // batch)):  # short timings are the noisy ones
                took = _decode(models[name], cache, batch, context, seed)
                seconds[name, batch] = min(seconds[name, batch], took)
    values = {f"max_batch/{name}": float(max(b for n, b in caches if n == name)) for name in models}
    for (name, batch), took in seconds.items():
        values[f"tokens_per_s/{name}/{batch}"] = batch * STEPS / took
    return Measurement(values=values, seed=seed, device=str(device))


@torch.inference_mode()
def _decode(model: Transformer, cache: KVCache, batch: int, context: int, seed: int) -> float:
    """Return the seconds that the last `STEPS` tokens of a full context take.

    The first tokens bring weights and cache back into the processor's own memory, from which
    the model timed before has pushed them; they are not timed.
    """
    device = cache.layers[0].k.device
    vocab = model.config.vocab_size
    token = torch.randint(vocab, (batch, 1), generator=rng.generator(seed, "throughput"))
    token, begin = token.to(device), 0.0
    cache.length = context - STEPS - WARM_UP
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            synchronize(device)
            begin = time.perf_counter()
        token = model(token, cache=cache)[:, -1].argmax(-1, keepdim=True)
    synchronize(device)
    return time.perf_counter() - begin
