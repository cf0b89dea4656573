"""The definition of grouped-query attention, and the module that uses the fused kernel."""

import dataclasses
import math

import pytest
import torch

from llama2_lib.model.attention import Attention, attention_weights, grouped_query_attention
from llama2_lib.model.cache import KVCache
from llama2_lib.model.layers import rotary_table


def inputs(dtype=torch.float64, batch=2, q_len=5, kv_len=7, heads=6, kv_heads=2, head_dim=4):
    source = torch.Generator().manual_seed(1)
    q = torch.randn(batch, q_len, heads, head_dim, generator=source, dtype=dtype)
    k, v = torch.randn(2, batch, kv_len, kv_heads, head_dim, generator=source, dtype=dtype)
    visible = torch.ones(1, q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    return q, k, v, visible


@pytest.fixture
def rotation():
    return rotary_table(8, 37, 10_000.0, torch.complex128)[None]


@pytest.fixture
def layer(config):
    source = torch.Generator().manual_seed(2)
    attention = Attention(config).double()
    for weight in attention.parameters():
        weight.data.copy_(0.3 * torch.randn(weight.shape, generator=source, dtype=torch.float64))
    return attention.requires_grad_(False)


def x(seq, batch=2, seed=3):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, seq, 48, generator=source, dtype=torch.float64)


def test_the_definition_is_the_loop_over_heads_and_positions():
    q, k, v, visible = inputs()
    mixed = grouped_query_attention(q, k, v, visible)
    for b in range(2):
        for h in range(6):
            for i in range(5):
                seen = [j for j in range(7) if visible[0, i, j]]
                scores = [float(q[b, i, h] @ k[b, j, h // 3]) / math.sqrt(4) for j in seen]
                total = sum(math.exp(s) for s in scores)
                wanted = sum(
                    math.exp(s) / total * v[b, j, h // 3] for s, j in zip(scores, seen, strict=True)
                )
                torch.testing.assert_close(mixed[b, i, h], wanted, rtol=1e-12, atol=1e-13)


def test_weights_sum_to_1_and_nothing_comes_from_what_is_hidden():
    q, k, _, visible = inputs()
    weights = attention_weights(q, k, visible)
    assert weights.shape == (2, 6, 5, 7)
    torch.testing.assert_close(
        weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-14
    )
    hidden = ~visible.expand(2, 5, 7)[:, None].expand_as(weights)
    assert (weights[hidden] == 0).all()
    assert (weights[~hidden] > 0).all()


def test_a_later_token_never_changes_an_earlier_output():
    q, k, v, visible = inputs(q_len=7)
    before = grouped_query_attention(q, k, v, visible)
    k[:, 5:], v[:, 5:] = 7.0, -7.0  # rewrite the future of position 4
    after = grouped_query_attention(q, k, v, visible)

    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=0)
    assert not torch.isclose(after[:, 5:], before[:, 5:], rtol=0, atol=1e-3).any(), (
        "the edit did nothing: vacuous test"
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_grouped_heads_are_full_heads_with_repeated_keys(kv_heads):
    q, k, v, visible = inputs(kv_heads=kv_heads)
    grouped = grouped_query_attention(q, k, v, visible)
    repeat = {"repeats": 6 // kv_heads, "dim": 2}
    full = grouped_query_attention(
        q, k.repeat_interleave(**repeat), v.repeat_interleave(**repeat), visible
    )
    torch.testing.assert_close(grouped, full, rtol=0, atol=1e-14)


def test_a_grouped_layer_is_a_full_layer_with_repeated_weights(config, layer, rotation):
    full = Attention(dataclasses.replace(config, n_kv_heads=6)).double().requires_grad_(False)
    full.wq.weight.copy_(layer.wq.weight)
    full.wo.weight.copy_(layer.wo.weight)
    for name in ("wk", "wv"):
        heads = getattr(layer, name).weight.unflatten(0, (2, 8))
        getattr(full, name).weight.copy_(heads.repeat_interleave(3, dim=0).flatten(0, 1))
    torch.testing.assert_close(
        layer(x(7), rotation[:, :7]), full(x(7), rotation[:, :7]), rtol=0, atol=1e-13
    )


def test_the_layer_is_the_definition_between_two_projections(layer, rotation):
    q, k, v = layer.project(x(7), rotation[:, :7])
    assert (q.shape, k.shape, v.shape) == ((2, 7, 6, 8), (2, 7, 2, 8), (2, 7, 2, 8))
    visible = torch.ones(1, 7, 7, dtype=torch.bool).tril()
    wanted = layer.wo(grouped_query_attention(q, k, v, visible).flatten(-2))
    torch.testing.assert_close(layer(x(7), rotation[:, :7]), wanted, rtol=0, atol=1e-13)
    torch.testing.assert_close(layer(x(7), rotation[:, :7], visible), wanted, rtol=0, atol=1e-13)


def test_a_mask_of_ones_own_is_obeyed(layer, rotation):
    visible = torch.eye(7, dtype=torch.bool)[None].clone()
    visible[:, 6, 2] = True
    _, _, v = layer.project(x(7), rotation[:, :7])
    mixed = layer(x(7), rotation[:, :7], visible)
    alone = layer.wo(v.repeat_interleave(3, dim=2).flatten(-2))
    torch.testing.assert_close(mixed[:, :6], alone[:, :6], rtol=0, atol=1e-13)
    assert (mixed[:, 6] - alone[:, 6]).abs().max() > 0.1, "the mask changed nothing: vacuous test"


@pytest.mark.parametrize("masked", [False, True])
def test_one_query_on_cached_keys_takes_the_heads_of_its_group(config, layer, rotation, masked):
    whole = layer(x(7), rotation[:, :7])
    cache = KVCache(config, batch=2, max_len=9, dtype=torch.float64).layers[0]
    layer(x(7)[:, :6], rotation[:, :6], cache=cache)
    visible = torch.ones(1, 1, 7, dtype=torch.bool) if masked else None
    last = layer(x(7)[:, 6:], rotation[:, 6:7], visible, cache=cache, start=6)
    torch.testing.assert_close(last, whole[:, 6:], rtol=0, atol=1e-13)


def test_one_query_obeys_a_mask_that_differs_by_row(config, layer, rotation):
    cache = KVCache(config, batch=2, max_len=9, dtype=torch.float64).layers[0]
    layer(x(7)[:, :6], rotation[:, :6], cache=cache)
    visible = torch.ones(2, 1, 7, dtype=torch.bool)
    visible[1, 0, :4] = False
    masked = layer(x(7)[:, 6:], rotation[:, 6:7], visible, cache=cache, start=6)
    q, k, v = layer.project(x(7), rotation[:, :7])
    wanted = layer.wo(grouped_query_attention(q[:, 6:], k, v, visible).flatten(-2))
    torch.testing.assert_close(masked, wanted, rtol=0, atol=1e-13)
    free = layer(x(7)[:, 6:], rotation[:, 6:7], cache=cache, start=6)
    torch.testing.assert_close(masked[0], free[0], rtol=0, atol=1e-13)
    assert (masked[1] - free[1]).abs().max() > 1e-3, "the mask changed nothing: vacuous test"


def test_nothing_has_a_bias(layer):
    assert sorted(name for name, _ in layer.named_parameters()) == [
        f"w{letter}.weight" for letter in "koqv"
    ]
