"""What claims 5 to 7 measure: equal sizes, shared runs, real caches, a budget that some exceed."""

from dataclasses import replace

import pytest

from llama2_lib.claims import attention
from llama2_lib.claims.attention import at_equal_size, quality_recipes, variants
from llama2_lib.claims.claim import Outcome
from llama2_lib.claims.ledger import CLAIMS, grid_requests, run_claims
from llama2_lib.model.config import LLAMA2_70B, ModelConfig
from llama2_lib.model.transformer import KVCache
from llama2_lib.recipes import grid, nano, toy

SHAPE = ModelConfig(
    vocab_size=30, dim=48, n_layers=3, n_heads=6, n_kv_heads=2, multiple_of=20, max_seq_len=64
)


@pytest.mark.parametrize("config", [SHAPE, grid().model, nano().model, LLAMA2_70B])
def test_the_feed_forward_width_makes_up_for_the_heads(config):
    for kv_heads in (config.n_heads, 1):
        other = at_equal_size(config, kv_heads)
        assert other.n_kv_heads == kv_heads
        # half a unit of width, in three matrices of every layer
        bound = 1.5 * config.dim * config.n_layers
        assert abs(other.n_parameters - config.n_parameters) <= bound
        plain = replace(config, n_kv_heads=kv_heads)
        assert abs(plain.n_parameters - config.n_parameters) > bound
    assert at_equal_size(config, config.n_kv_heads) is config


def test_fewer_heads_widen_the_feed_forward_layer():
    widths = [config.hidden_dim for config in variants(SHAPE).values()]
    # by hand: dim 48, head_dim 8; mha gives 2*48*8*4 = 3072 weights away, 21 of 144; mqa gets 5
    assert widths == [140 - 21, 140, 140 + 5]


def test_the_grid_is_shared_and_a_smaller_recipe_is_its_own_grid():
    assert quality_recipes(nano(), 2)["gqa"] == grid(2)
    own = quality_recipes(toy(), 2)["gqa"]
    assert own.model == toy().model
    assert own.pretrain.seed == 2
    requests = CLAIMS[5].requests(nano(), range(3))
    assert len(set(requests)) == 9
    every = grid_requests(nano())
    assert set(requests) <= set(every)
    assert len(every) == len(set(every))


@pytest.mark.slow
def test_claim_5_on_trained_models(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path))
    values = CLAIMS[5].measure(toy(), 1).values
    assert set(values) == {
        "mha", "gqa", "mqa", "parameters/mha", "parameters/gqa", "parameters/mqa",
    }  # fmt: skip
    assert values["parameters/gqa"] == toy().model.n_parameters
    losses = [values[kind] for kind in ("mha", "gqa", "mqa")]
    assert len(set(losses)) == 3  # three models, not one
    assert max(losses) < 6.2  # ln 512 = 6.24: they have learned something


RECIPE = replace(
    toy(),
    model=ModelConfig(vocab_size=512, dim=48, n_layers=3, n_heads=6, n_kv_heads=2, max_seq_len=16),
)


def test_claim_6_measured_on_real_caches():
    (result,) = run_claims([6], RECIPE, [0, 1], report=lambda line: None)
    values = result.measurements[0].values
    # 2 tensors * 3 layers * 2 heads * 8 wide * 4 bytes, by hand; and the paper's 320 KiB
    assert values["measured/recipe gqa"] == 384
    assert values["measured/70B gqa"] == 320 * 1024
    assert values["measured/70B mha"] == 2560 * 1024
    assert values["ratio/recipe"] == 3
    assert LLAMA2_70B.n_heads // LLAMA2_70B.n_kv_heads == values["ratio/70B"] == 8
    assert result.verdict.outcome == Outcome.REPRODUCED


class Repeating(KVCache):
    """A cache that keeps a copy of its heads for every query head."""

    def __init__(self, config, *args, **settings):
        super().__init__(config, *args, **settings)
        for layer in self.layers:
            repeats = config.n_heads // config.n_kv_heads
            layer.k, layer.v = (x.repeat_interleave(repeats, 1) for x in (layer.k, layer.v))


def test_claim_6_is_refuted_by_a_cache_that_repeats_its_heads(monkeypatch):
    def honest(config, seed):  # two tensors of four bytes
        return 8.0 * config.n_layers * config.n_kv_heads * config.head_dim

    monkeypatch.setattr(attention, "_filled_bytes", honest)
    monkeypatch.setattr(attention, "KVCache", Repeating)
    (result,) = run_claims([6], RECIPE, [0], report=lambda line: None)
    assert result.verdict.outcome == Outcome.NOT_REPRODUCED


SHORT = replace(grid(), model=replace(grid().model, max_seq_len=64))


@pytest.mark.slow
def test_claim_7_runs_out_where_the_arithmetic_says(monkeypatch):
    monkeypatch.setattr(attention, "ROUNDS", 1)
    values = CLAIMS[7].measure(SHORT, 0).values
    # 4, 2 and 1 key/value heads; the budget is 16 sequences of 4
    assert [values[f"max_batch/{kind}"] for kind in ("mha", "gqa", "mqa")] == [16, 32, 64]
    rates = [key for key in values if key.startswith("tokens_per_s/mha/")]
    assert rates == [f"tokens_per_s/mha/{2**n}" for n in range(5)]
    assert all(values[key] > 0 for key in rates)


def test_claim_7_is_refuted_by_a_cache_that_repeats_its_heads(monkeypatch):
    monkeypatch.setattr(attention, "KVCache", Repeating)
    monkeypatch.setattr(attention, "_decode", lambda *args: 1.0)
    measurements = [CLAIMS[7].measure(SHORT, seed) for seed in range(3)]
    assert measurements[0].values["max_batch/gqa"] == 16
    assert CLAIMS[7].verdict(measurements).outcome == Outcome.NOT_REPRODUCED
