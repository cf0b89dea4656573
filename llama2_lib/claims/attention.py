"""Claims on grouped-query attention and the key/value cache (paper sections 2.2, A.2.1)."""

import math
import time
from dataclasses import replace
from functools import partial

import torch

from llama2_lib import pipeline, rng
from llama2_lib.claims import claim
from llama2_lib.claims.claim import Claim, Fact, Must, Trust, differs, mean, of_stage
from llama2_lib.config import Recipe
from llama2_lib.device import choose_device, synchronize
from llama2_lib.evaluation.language import document_nats
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.model.config import LLAMA2_70B, ModelConfig
from llama2_lib.model.transformer import KVCache, Transformer, initialise
from llama2_lib.recipes import grid
from llama2_lib.stages.corpus import load_corpus

VARIANTS = ("mha", "gqa", "mqa")
SHAPES = ("recipe", "70B")
"""Of claim 6."""
MHA_FITS = 16
"""The memory budget of claim 7, in sequences of multi-head attention."""
WARM_UP, STEPS, ROUNDS = 2, 8, 7
"""Untimed tokens and timed tokens of one timing, timings of each batch; the best one counts."""
MISMATCH, SMALL, RATIO_70B = 0.01, 0.25, 8.0
"""Bounds of claim 5, by how much sizes may differ; of claim 7, at the smallest batch; and of
claim 6."""


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


def kv_heads(config: ModelConfig) -> dict[str, int]:
    """Return the key/value heads of each variant."""
    return dict(zip(VARIANTS, (config.n_heads, config.n_kv_heads, 1), strict=True))


def variants(config: ModelConfig) -> dict[str, ModelConfig]:
    """Return multi-head, grouped-query and multi-query models of one size; GQA is `config`."""
    return {name: at_equal_size(config, n) for name, n in kv_heads(config).items()}


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


def validation_loss(run: Recipe, longest: int | None = None) -> float:
    """Return the loss of a pretrained model on the whole validation split, nats per token.

    Each document stands by itself, cut at the length that was trained on; documents of more than
    `longest` tokens are left out.
    """
    split = load_corpus(pipeline.artifact("corpus", run), "validation")
    model, _ = pipeline.load("pretrain", run)
    documents = [split.document(index) for index in range(split.packed.n_documents)]
    if longest is not None:
        documents = [ids for ids in documents if len(ids) <= longest]
    nats = document_nats(model, documents, max_len=run.pretrain.seq_len)
    return float(nats.nats.sum() / nats.tokens.sum())


def measure_quality(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 5.

    Keys: `mha`, `gqa`, `mqa`, validation loss in nats per token on the same tokens;
    `parameters/<variant>`, number of weights, matched by the feed-forward width.
    """
    runs = quality_recipes(recipe, seed)
    sizes = {f"parameters/{name}": float(run.model.n_parameters) for name, run in runs.items()}
    return {name: validation_loss(run) for name, run in runs.items()} | sizes


def _sizes_differ(measurements: claim.Measurements, _: object) -> tuple[claim.Outcome, str] | None:
    sizes = [max(claim.column(measurements, f"parameters/{variant}")) for variant in VARIANTS]
    mismatch = max(sizes) / min(sizes) - 1
    if mismatch <= MISMATCH:
        return None
    reason = f"sizes differ by {mismatch:.2%}, so a difference in loss says nothing"
    return claim.Outcome.INCONCLUSIVE, reason


def measure_cache(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 6: bytes that real caches hold per token, against the formula.

    The recipe's model (`recipe.model`, a `ModelConfig`) fills its cache in a forward pass; for
    70B the cache alone is allocated, in 16 bits as in the paper. Keys, for the shapes `recipe`
    and `70B`: `measured/<shape> <variant>` and `formula/<shape> <variant>`, bytes per token;
    `ratio/<shape>`, measured bytes of mha over gqa; `heads/<shape>`, n_heads over n_kv_heads.
    """
    values: dict[str, float] = {}
    models = {"recipe": (recipe.model, _filled_bytes, 4), "70B": (LLAMA2_70B, _allocated_bytes, 2)}
    for shape, (config, held, bytes_per_number) in models.items():
        for variant, n in kv_heads(config).items():
            own = replace(config, n_kv_heads=n)
            values[f"measured/{shape} {variant}"] = held(own, seed)
            # 2 * layers * kv_heads * head_dim * bytes: one key and one value a layer and head
            formula = own.kv_cache_bytes(bytes_per_number=bytes_per_number)
            values[f"formula/{shape} {variant}"] = float(formula)
        mha, gqa = (values[f"measured/{shape} {variant}"] for variant in ("mha", "gqa"))
        values[f"ratio/{shape}"] = mha / gqa
        values[f"heads/{shape}"] = config.n_heads / config.n_kv_heads
    return values


def _allocated_bytes(config: ModelConfig, seed: int, batch: int = 3, max_len: int = 5) -> float:
    """Return the memory of an allocated cache of 16 bits, in bytes per token."""
    return _storage(KVCache(config, batch, max_len, dtype=torch.float16)) / (batch * max_len)


@torch.no_grad()
def _filled_bytes(config: ModelConfig, seed: int, batch: int = 3, seq: int = 7) -> float:
    """Return the memory of a cache that a forward pass filled, in bytes per token it holds."""
    cache = KVCache(config, batch, seq)
    ids = torch.arange(batch * seq).reshape(batch, seq) % config.vocab_size
    initialise(Transformer(config), seed)(ids, attend=cache)
    n_filled = [int((layer.k != 0).any(-1).any(1).sum()) for layer in cache.layers]
    return _storage(cache) / min(n_filled)


def _storage(cache: KVCache) -> int:
    tensors = [tensor for layer in cache.layers for tensor in (layer.k, layer.v)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _equal(one: str, other: str, text: str, measurements: claim.Measurements) -> list[claim.Check]:
    """Check that two kinds of numbers agree, under every name and on every seed."""
    checks = []
    for name in claim.keys_under(measurements, one):
        numbers, wanted = (claim.column(measurements, f"{kind}/{name}") for kind in (one, other))
        told = text.format(name, numbers[0], wanted[0])
        checks.append(claim.Check(text=told, holds=numbers == wanted))
    return checks


def _as_the_heads(measurements: claim.Measurements) -> list[claim.Check]:
    text = "mha over gqa of {}: {:g}, heads over key/value heads {:g}"
    ratios = claim.column(measurements, "ratio/70B")
    paper = claim.Check(
        text=f"mha over gqa of 70B: {ratios[0]:g}, paper {RATIO_70B:g}",
        holds=set(ratios) == {RATIO_70B},
    )
    return [*_equal("ratio", "heads", text, measurements), paper]


def measure_throughput(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 7.

    Keys: `tokens_per_s/<variant>/<batch>` for every batch that fits the memory budget;
    `max_batch/<variant>`, the largest that fits. All variants have the same number of weights.

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
    return values


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
        token = model(token, attend=cache)[:, -1].argmax(-1, keepdim=True)
    synchronize(device)
    return time.perf_counter() - begin


def _more_fits(measurements: claim.Measurements) -> list[claim.Check]:
    mha, gqa = (claim.column(measurements, f"max_batch/{variant}") for variant in ("mha", "gqa"))
    further = all(more > less for more, less in zip(gqa, mha, strict=True))
    return [claim.Check(text=f"largest batch: gqa {gqa[0]:g}, mha {mha[0]:g}", holds=further)]


def _peak(measurement: claim.Measurement, variant: str) -> float:
    batches = claim.keys_under([measurement], f"tokens_per_s/{variant}")
    assert batches, f"claim 7 needs tokens_per_s/{variant}/<batch>"
    return max(measurement[f"tokens_per_s/{variant}/{batch}"] for batch in batches)


def _peak_ratio(measurements: claim.Measurements) -> Estimate:
    def log_ratio(one: claim.Measurement) -> float:
        return math.log(_peak(one, "gqa")) - math.log(_peak(one, "mha"))

    return _exp(claim.average(measurements, log_ratio))


def _smallest_batch(measurements: claim.Measurements) -> tuple[int, Estimate]:
    """Return the batch, and the mean of log(gqa over mha) with its 90 % interval."""
    batch = min(int(key.split("/")[1]) for key in claim.keys_under(measurements, "tokens_per_s"))
    gqa, mha = (f"tokens_per_s/{variant}/{batch}" for variant in ("gqa", "mha"))
    return batch, claim.average(measurements, lambda m: math.log(m[gqa]) - math.log(m[mha]), 0.9)


def _alike(measurements: claim.Measurements) -> list[claim.Check]:
    batch, log_ratio = _smallest_batch(measurements)
    text = f"log throughput at batch {batch}, gqa over mha"
    return [claim.check("within", text, log_ratio, math.log1p(SMALL))]


def _throughput_shown(measurements: claim.Measurements) -> dict[str, Estimate]:
    batch, log_ratio = _smallest_batch(measurements)
    mha, gqa = (claim.average(measurements, f"max_batch/{v}") for v in ("mha", "gqa"))
    shown = {"max batch, mha": mha, "max batch, gqa": gqa}
    return shown | {f"batch {batch}, gqa over mha": _exp(log_ratio)}


def _exp(estimate: Estimate) -> Estimate:
    value, low, high = (math.exp(x) for x in (estimate.value, estimate.low, estimate.high))
    return Estimate(value=value, low=low, high=high, n=estimate.n)


CLAIMS = (
    Claim(
        id=5, section="A.2.1, table 18", paper_trust=Trust.DERIVED,
        statement="At equal size grouped-query attention equals multi-head attention, and "
        "multi-query attention is slightly worse.",
        paper_value="mean of 11 tasks: GQA 44.28, MHA 44.15, MQA 43.76",
        prediction="The loss of GQA equals that of MHA within the margin, and MQA's is higher.",
        where="Validation loss in nats",
        tests=(
            differs(
                "gqa minus mha, nats", "gqa", "mha", 0.9, within=0.03, named="gqa - mha",
                says="GQA minus MHA (two one-sided tests at 5 %)",
            ),
            differs(
                "mqa minus gqa, nats", "mqa", "gqa", above=0, named="mqa - gqa",
                says="MQA minus GQA",
            ),
        ),
        proviso=claim.Proviso(f"Only if sizes agree within {100 * MISMATCH:g} %.", _sizes_differ),
        shown=VARIANTS, measured_by=measure_quality, runs=of_stage("pretrain", quality_recipes),
    ),
    Claim(
        id=6, section="2.2, A.2.1", paper_trust=Trust.DERIVED,
        statement="Sharing key/value heads shrinks the cache by n_heads over n_kv_heads.",
        paper_value="70B: 64 query heads on 8 key/value heads, 8 times less; 320 KiB a token",
        prediction="Bytes per token equal 2 * layers * kv_heads * head_dim * bytes, and MHA over "
        "GQA equals n_heads over n_kv_heads, 8 for 70B.",
        where="Of real caches",
        tests=(
            Fact(
                "measured bytes equal the formula exactly, for every shape and variant",
                partial(_equal, "measured", "formula", "bytes per token of {}: {:g}, formula {:g}"),
            ),
            Fact(
                f"MHA over GQA equals n_heads over n_kv_heads exactly, and {RATIO_70B:g} for 70B",
                _as_the_heads,
            ),
        ),
        intervals="",
        shown=(
            {
                f"bytes per token, {shape} {v}": mean(f"measured/{shape} {v}")
                for shape in SHAPES
                for v in VARIANTS
            },
            {f"ratio, {shape}": mean(f"ratio/{shape}") for shape in SHAPES},
        ),
        measured_by=measure_cache, min_seeds=1,
    ),
    Claim(
        id=7, section="A.2.1, figure 24", paper_trust=Trust.PRINTED,
        statement="With fewer key/value heads larger batches fit and peak throughput is higher.",
        paper_value="MHA runs out of memory at batch 1024 (context 256) and 128 (context 2k); "
        "MQA and GQA run there",
        prediction="Under one memory budget GQA fits a larger batch and reaches a higher peak; "
        "at the smallest batch both are alike.",
        where="Under one memory budget",
        tests=(
            Fact("GQA's largest batch exceeds MHA's on every seed", _more_fits),
            Must("peak throughput, gqa over mha", _peak_ratio, above=1, named="peak, gqa over mha"),
            Fact(
                "at the smallest batch they lie within a factor of "
                f"1 + {SMALL:g} (two one-sided tests at 5 %)",
                _alike,
            ),
        ),
        shown=(_throughput_shown,), measured_by=measure_throughput,
    ),
)  # fmt: skip
