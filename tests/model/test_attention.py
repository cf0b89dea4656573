"""Attention against its definition; a cache, padding and `since` change what is computed only."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from llama2_lib.model.transformer import (
    Attention,
    KVCache,
    attention_weights,
    causal,
    grouped_query_attention,
    masked,
    rotary_table,
    scalar_model,
)


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
    for attend in (causal, masked(visible)):
        torch.testing.assert_close(layer(x(7), rotation[:, :7], attend), wanted, rtol=0, atol=1e-13)


def test_a_mask_of_ones_own_is_obeyed(layer, rotation):
    visible = torch.eye(7, dtype=torch.bool)[None].clone()
    visible[:, 6, 2] = True
    _, _, v = layer.project(x(7), rotation[:, :7])
    mixed = layer(x(7), rotation[:, :7], masked(visible))
    alone = layer.wo(v.repeat_interleave(3, dim=2).flatten(-2))
    torch.testing.assert_close(mixed[:, :6], alone[:, :6], rtol=0, atol=1e-13)
    assert (mixed[:, 6] - alone[:, 6]).abs().max() > 0.1, "the mask changed nothing: vacuous test"


@pytest.mark.parametrize("padded", [False, True])
def test_one_query_on_cached_keys_takes_the_heads_of_its_group(config, layer, rotation, padded):
    padding = torch.tensor([0, 4]) if padded else None
    cache = KVCache(config, batch=2, max_len=9, dtype=torch.float64, padding=padding)
    layer(x(7)[:, :6], rotation[:, :6], cache.attends(6)[0])
    cache.length = 6
    last = layer(x(7)[:, 6:], rotation[:, 6:7], cache.attends(1)[0])
    visible = torch.ones(2, 1, 7, dtype=torch.bool)
    visible[1, 0, :4] = not padded
    q, k, v = layer.project(x(7), rotation[:, :7])
    wanted = layer.wo(grouped_query_attention(q[:, 6:], k, v, visible).flatten(-2))
    torch.testing.assert_close(last, wanted, rtol=0, atol=1e-13)
    whole = layer(x(7), rotation[:, :7])[:, 6:]
    torch.testing.assert_close(last[0], whole[0], rtol=0, atol=1e-13)
    assert ((last[1] - whole[1]).abs().max() > 1e-3) == padded


def test_nothing_has_a_bias(layer):
    assert sorted(name for name, _ in layer.named_parameters()) == [
        f"w{letter}.weight" for letter in "koqv"
    ]


EXACT = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def tokens(*shape, seed=0):
    return torch.randint(0, 53, shape, generator=torch.Generator().manual_seed(seed))


def scaled(model):
    """Logits of order 1, so that 1e-5 means what it says in fp32."""
    model.output.weight.data.mul_(0.3)
    return model


def run(model, ids, cuts, max_len=31):
    """Return the logits of `ids` fed in pieces that end at `cuts`."""
    dtype = model.output.weight.dtype
    cache = KVCache(model.config, len(ids), max_len, dtype=dtype)
    edges = [0, *cuts, ids.shape[1]]
    logits = [model(ids[:, a:b], attend=cache) for a, b in pairwise(edges)]
    assert cache.length == ids.shape[1]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize(("dtype", "atol"), EXACT)
@pytest.mark.parametrize("cuts", [(), (5,), (1, 2, 9), (4, 8, 12), (12,), range(1, 13)])
@torch.no_grad()
def test_in_chunks_or_one_token_at_a_time_is_all_at_once(random_model, dtype, atol, cuts):
    model, ids = scaled(random_model(dtype=dtype)), tokens(3, 13)
    whole = model(ids)
    torch.testing.assert_close(run(model, ids, cuts), whole, rtol=0, atol=atol)
    assert 0.3 < whole.std() < 3, "the tolerance is for logits of order 1"


@torch.no_grad()
def test_what_the_cache_holds_is_used(random_model):
    model, ids = random_model(), tokens(3, 13)
    cache = KVCache(model.config, 3, 31, dtype=torch.float64)
    model(ids[:, :12], attend=cache)
    for layer in cache.layers:
        layer.v[:, :, 4] += 1
    spoiled = model(ids[:, 12:], attend=cache)
    assert (spoiled - model(ids)[:, 12:]).abs().max() > 1e-2


@pytest.mark.parametrize(("dtype", "atol"), EXACT)
@torch.no_grad()
def test_rows_padded_on_the_left_are_single_rows(random_model, dtype, atol):
    model, lengths, longest = scaled(random_model(dtype=dtype)), (7, 4, 1), 7
    prompts = [tokens(1, n, seed=n) for n in lengths]
    padding = torch.tensor([longest - n for n in lengths])
    ids = torch.cat([torch.cat([tokens(1, longest - p.shape[1]), p], 1) for p in prompts])
    cache = KVCache(model.config, 3, 11, dtype=dtype, padding=padding)
    logits = model(ids, attend=cache)
    step = tokens(3, 1, seed=9)
    after = model(step, attend=cache)
    for row, prompt in enumerate(prompts):
        alone = model(torch.cat([prompt, step[row : row + 1]], 1))[0]
        torch.testing.assert_close(logits[row, padding[row] :], alone[:-1], rtol=0, atol=atol)
        torch.testing.assert_close(after[row, 0], alone[-1], rtol=0, atol=atol)
    naive = model(ids)
    assert (naive[1, -1] - logits[1, -1]).abs().max() > 1e-2, "padding did no harm: vacuous test"


@torch.no_grad()
def test_kept_rows_go_on_as_if_alone(random_model):
    model, ids = random_model(), tokens(4, 9)
    cache = KVCache(model.config, 4, 11, dtype=torch.float64)
    model(ids[:, :8], attend=cache)
    cache.keep_rows(torch.tensor([3, 1]))
    kept = model(ids[[3, 1], 8:], attend=cache)
    torch.testing.assert_close(kept, model(ids)[[3, 1], 8:], rtol=0, atol=1e-10)
    assert cache.layers[2].k.shape == (2, 2, 11, 8)
    assert cache.n_bytes() == 2 * 3 * 2 * 2 * 11 * 8 * 8


BATCH, SEQ = 3, 11
IDS = torch.randint(0, 53, (BATCH, SEQ), generator=torch.Generator().manual_seed(0))


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("since", [0, 1, 7, SEQ - 1])
def test_the_last_positions_are_those_of_the_whole(random_model, since):
    model = random_model()
    whole = model.hidden(IDS)
    close(model.hidden(IDS, since=since), whole[:, since:])
    assert (whole[:, 1:] - whole[:, :-1]).abs().max() > 0.1  # another position is another vector
    positions = torch.arange(SEQ).expand(BATCH, SEQ) + torch.tensor([[0], [4], [9]])
    visible = torch.ones(BATCH, SEQ, SEQ, dtype=torch.bool).tril()
    visible[:, 6:, 1:4] = False
    changed = model.hidden(IDS, positions=positions, attend=masked(visible))
    part = model.hidden(IDS, positions=positions, attend=masked(visible), since=since)
    close(part, changed[:, since:])
    assert (changed[:, since:] - whole[:, since:]).abs().max() > 0.1


@pytest.mark.parametrize("since", [0, 4])
def test_gradients_are_those_of_the_whole(random_model, since):
    model = random_model()
    weights = torch.randn(SEQ, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for part in (model.hidden(IDS)[:, since:], model.hidden(IDS, since=since)):
        model.zero_grad()
        (part * weights[since:]).sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        close(one, other)
    assert all(grad.abs().max() > 0 for grad in found[1])


def test_earlier_positions_are_read(random_model):
    model, other = random_model(), IDS.clone()
    other[:, 2] = (other[:, 2] + 1) % 53
    assert (model.hidden(IDS, since=7) - model.hidden(other, since=7)).abs().max() > 1e-3


def test_after_a_cache_too(random_model):
    model = random_model()
    cache = KVCache(model.config, BATCH, SEQ, dtype=torch.float64)
    with torch.no_grad():
        model.hidden(IDS[:, :5], attend=cache)
        close(model.hidden(IDS[:, 5:], attend=cache, since=2), model.hidden(IDS)[:, 7:])
    assert cache.length == SEQ


def test_numbers_of_the_last_positions(random_model):
    scalar = scalar_model(random_model(), seed=0)
    close(scalar(IDS, since=7), scalar(IDS)[:, 7:])
    assert scalar(IDS).std() > 0.1


def test_padding_sees_itself_and_nothing_else_does(config):
    """A row of a mask that is all False has no softmax; kernels make of it what they like."""
    cache = KVCache(config, 2, 9, padding=torch.tensor([0, 2]))
    wanted = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]).bool()
    assert torch.equal(cache.visible(4), torch.stack([torch.ones(4, 4).tril().bool(), wanted]))
    assert cache.positions(4).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    cache.length = 3
    assert cache.visible(2)[1].tolist() == [
        [False, False, True, True, False], [False, False, True, True, True]
    ]  # fmt: skip
    assert cache.positions(2).tolist() == [[3, 4], [1, 2]]
