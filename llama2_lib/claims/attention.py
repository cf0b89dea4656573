"""Claims on grouped-query attention and the key/value cache (paper sections 2.2, A.2.1)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from llama2_lib.claims.attention_runs import (
    measure_quality,
    measure_throughput,
    quality_requests,
)
from llama2_lib.claims.claim import (
    Check,
    Claim,
    Measurement,
    Outcome,
    Threshold,
    Trust,
    Verdict,
    above,
    average,
    column,
    decide,
    difference,
    keys_under,
    threshold,
    within,
)
from llama2_lib.evaluation.statistics import Estimate, equivalent, paired_difference
from llama2_lib.model.cache import KVCache
from llama2_lib.model.config import LLAMA2_70B, ModelConfig
from llama2_lib.model.transformer import Transformer, initialise

VARIANTS = ("mha", "gqa", "mqa")


def judge_quality(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 5.

    Keys: `mha`, `gqa`, `mqa`, validation loss in nats per token on the same tokens;
    `parameters/<variant>`, number of weights, matched by the feed-forward width.
    """
    estimates = {variant: average(measurements, variant) for variant in VARIANTS}
    sizes = [max(column(measurements, f"parameters/{variant}")) for variant in VARIANTS]
    mismatch = max(sizes) / min(sizes) - 1
    if mismatch > limit["mismatch"]:
        reason = f"sizes differ by {mismatch:.2%}, so a difference in loss says nothing"
        return Verdict(outcome=Outcome.INCONCLUSIVE, reason=reason, estimates=estimates)
    near = equivalent(
        column(measurements, "gqa"), column(measurements, "mha"), margin=limit["margin"]
    )
    worse = difference(measurements, "mqa", minus="gqa")
    estimates |= {"gqa - mha": near.estimate, "mqa - gqa": worse}
    return decide(
        [within("gqa minus mha, nats", near), above("mqa minus gqa, nats", worse, limit["worse"])],
        estimates,
    )


def measure_cache(recipe: Any, seed: int) -> Measurement:
    """Measure claim 6: bytes that real caches hold per token, against the formula.

    The recipe's model (`recipe.model`, a `ModelConfig`) fills its cache in a forward pass; for
    70B the cache alone is allocated, in 16 bits as in the paper. Keys, for the shapes `recipe`
    and `70B`: `measured/<shape> <variant>` and `formula/<shape> <variant>`, bytes per token;
    `ratio/<shape>`, measured bytes of mha over gqa; `heads/<shape>`, n_heads over n_kv_heads.
    """
    values: dict[str, float] = {}
    for shape, config, dtype in (
        ("recipe", recipe.model, torch.float32),
        ("70B", LLAMA2_70B, torch.float16),
    ):
        kv_heads = {"mha": config.n_heads, "gqa": config.n_kv_heads, "mqa": 1}
        for variant, n in kv_heads.items():
            varied = dataclasses.replace(config, n_kv_heads=n)
            held = _filled_bytes(varied, seed) if shape == "recipe" else _bytes(varied, dtype)
            values[f"measured/{shape} {variant}"] = held
            # 2 * layers * kv_heads * head_dim * bytes: one key and one value a layer and head
            numbers = 2 * config.n_layers * n * (config.dim // config.n_heads)
            values[f"formula/{shape} {variant}"] = float(numbers * dtype.itemsize)
        mha, gqa = (values[f"measured/{shape} {variant}"] for variant in ("mha", "gqa"))
        values[f"ratio/{shape}"] = mha / gqa
        values[f"heads/{shape}"] = config.n_heads / config.n_kv_heads
    return Measurement(values=values, seed=seed)


def _bytes(config: ModelConfig, dtype: torch.dtype, batch: int = 3, max_len: int = 5) -> float:
    """Return the memory of an allocated cache, in bytes per token."""
    return _storage(KVCache(config, batch, max_len, dtype=dtype)) / (batch * max_len)


@torch.no_grad()
def _filled_bytes(config: ModelConfig, seed: int, batch: int = 3, seq: int = 7) -> float:
    """Return the memory of a cache that a forward pass filled, in bytes per token it holds."""
    cache = KVCache(config, batch, seq)
    ids = torch.arange(batch * seq).reshape(batch, seq) % config.vocab_size
    initialise(Transformer(config), seed)(ids, cache=cache)
    n_filled = [int((layer.k != 0).any(-1).any(1).sum()) for layer in cache.layers]
    return _storage(cache) / min(n_filled)


def _storage(cache: KVCache) -> int:
    tensors = [tensor for layer in cache.layers for tensor in (layer.k, layer.v)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def judge_cache(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 6. Keys: those of `measure_cache`."""
    checks, estimates = [], {}
    for variant in keys_under(measurements, "measured"):
        measured, formula = (
            column(measurements, f"{kind}/{variant}") for kind in ("measured", "formula")
        )
        estimates[f"bytes per token, {variant}"] = average(measurements, f"measured/{variant}")
        text = f"bytes per token of {variant}: {measured[0]:g}, formula {formula[0]:g}"
        checks.append(Check(text=text, holds=measured == formula))
    for name in keys_under(measurements, "ratio"):
        ratio, heads = (column(measurements, f"{kind}/{name}") for kind in ("ratio", "heads"))
        estimates[f"ratio, {name}"] = average(measurements, f"ratio/{name}")
        text = f"mha over gqa of {name}: {ratio[0]:g}, heads over key/value heads {heads[0]:g}"
        gaps = [abs(a - b) for a, b in zip(ratio, heads, strict=True)]
        checks.append(Check(text=text, holds=max(gaps) == 0))
    ratios = column(measurements, "ratio/70B")
    text = f"mha over gqa of 70B: {ratios[0]:g}, paper {limit['ratio_70b']:g}"
    checks.append(Check(text=text, holds=all(ratio == limit["ratio_70b"] for ratio in ratios)))
    return decide(checks, estimates)


def judge_throughput(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 7.

    Keys: `tokens_per_s/<variant>/<batch>` for every batch that fits the memory budget;
    `max_batch/<variant>`, the largest that fits. All variants have the same number of weights.
    """
    peaks = {v: [_peak(measurement, v) for measurement in measurements] for v in ("mha", "gqa")}
    smallest = min(int(key.split("/")[1]) for key in keys_under(measurements, "tokens_per_s"))
    first = {v: _logs(measurements, f"tokens_per_s/{v}/{smallest}") for v in ("mha", "gqa")}
    fits = {v: column(measurements, f"max_batch/{v}") for v in ("mha", "gqa")}
    gain = paired_difference(
        [math.log(peak) for peak in peaks["gqa"]], [math.log(peak) for peak in peaks["mha"]]
    ).estimate
    small = equivalent(first["gqa"], first["mha"], margin=math.log1p(limit["small"]))
    estimates = {
        "max batch, mha": average(measurements, "max_batch/mha"),
        "max batch, gqa": average(measurements, "max_batch/gqa"),
        "peak, gqa over mha": _exp(gain),
        f"batch {smallest}, gqa over mha": _exp(small.estimate),
    }
    further = all(gqa > mha for gqa, mha in zip(fits["gqa"], fits["mha"], strict=True))
    text = f"largest batch: gqa {fits['gqa'][0]:g}, mha {fits['mha'][0]:g}"
    return decide(
        [
            Check(text=text, holds=further),
            above("peak throughput, gqa over mha", _exp(gain), 1 + limit["peak"]),
            within(f"log throughput at batch {smallest}, gqa over mha", small),
        ],
        estimates,
    )


def _peak(measurement: Measurement, variant: str) -> float:
    prefix = f"tokens_per_s/{variant}/"
    rates = [rate for key, rate in measurement.values.items() if key.startswith(prefix)]
    if not rates:
        raise ValueError(
            f"every measurement must give {prefix}<batch>; seed {measurement.seed} has none. "
            "Measure at least one batch of each variant."
        )
    return max(rates)


def _logs(measurements: Sequence[Measurement], key: str) -> list[float]:
    return [math.log(value) for value in column(measurements, key)]


def _exp(estimate: Estimate) -> Estimate:
    value, low, high = (math.exp(x) for x in (estimate.value, estimate.low, estimate.high))
    return Estimate(value=value, low=low, high=high, n=estimate.n)


CLAIMS = (
    Claim(
        id=5,
        section="A.2.1, table 18",
        statement="At equal size grouped-query attention equals multi-head attention, and "
        "multi-query attention is slightly worse.",
        paper_value="mean of 11 tasks: GQA 44.28, MHA 44.15, MQA 43.76",
        paper_trust=Trust.DERIVED,
        prediction="The loss of GQA equals that of MHA within the margin, and MQA's is higher.",
        threshold=threshold(
            "GQA minus MHA within {margin:g} nats (two one-sided tests at 5 %); MQA minus GQA "
            "above {worse:g} nats (95 % interval over seeds); sizes within {mismatch:.0%}.",
            margin=0.03,
            worse=0.0,
            mismatch=0.01,
        ),
        judge=judge_quality,
        measure=measure_quality,
        requests=quality_requests,
    ),
    Claim(
        id=6,
        section="2.2, A.2.1",
        statement="Sharing key/value heads shrinks the cache by n_heads over n_kv_heads.",
        paper_value="70B: 64 query heads on 8 key/value heads, 8 times less; 320 KiB a token",
        paper_trust=Trust.DERIVED,
        prediction="Bytes per token equal 2 * layers * kv_heads * head_dim * bytes, and MHA over "
        "GQA equals n_heads over n_kv_heads, 8 for 70B.",
        threshold=threshold(
            "Measured bytes equal the formula exactly, for every shape and variant; MHA over GQA "
            "equals n_heads over n_kv_heads exactly, and {ratio_70b:g} for 70B.",
            ratio_70b=8.0,
        ),
        judge=judge_cache,
        measure=measure_cache,
        min_seeds=1,
    ),
    Claim(
        id=7,
        section="A.2.1, figure 24",
        statement="With fewer key/value heads larger batches fit and peak throughput is higher.",
        paper_value="MHA runs out of memory at batch 1024 (context 256) and 128 (context 2k); "
        "MQA and GQA run there",
        paper_trust=Trust.PRINTED,
        prediction="Under one memory budget GQA fits a larger batch and reaches a higher peak; "
        "at the smallest batch both are alike.",
        threshold=threshold(
            "GQA's largest batch exceeds MHA's on every seed; its peak is higher by more than "
            "{peak:.0%} (95 % interval); at the smallest batch they lie within a factor of "
            "1 + {small:g} (two one-sided tests at 5 %).",
            peak=0.0,
            small=0.25,
        ),
        judge=judge_throughput,
        measure=measure_throughput,
    ),
)
