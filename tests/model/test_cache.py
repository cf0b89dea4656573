"""Cached computation is uncached computation, however the tokens arrive."""

from itertools import pairwise

import pytest
import torch

from llama2_lib.model.cache import KVCache

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
    logits = [model(ids[:, a:b], cache=cache) for a, b in pairwise(edges)]
    assert cache.length == ids.shape[1]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize(("dtype", "atol"), EXACT)
@torch.no_grad()
def test_one_token_at_a_time_is_all_at_once(random_model, dtype, atol):
    model, ids = scaled(random_model(dtype=dtype)), tokens(3, 13)
    whole = model(ids)
    torch.testing.assert_close(run(model, ids, range(1, 13)), whole, rtol=0, atol=atol)
    assert 0.3 < whole.std() < 3, "the tolerance is for logits of order 1"


@pytest.mark.parametrize(("dtype", "atol"), EXACT)
@pytest.mark.parametrize("cuts", [(), (5,), (1, 2, 9), (4, 8, 12), (12,)])
@torch.no_grad()
def test_a_prefill_in_chunks_is_all_at_once(random_model, dtype, atol, cuts):
    model, ids = scaled(random_model(dtype=dtype)), tokens(3, 13)
    torch.testing.assert_close(run(model, ids, cuts), model(ids), rtol=0, atol=atol)


@torch.no_grad()
def test_what_the_cache_holds_is_used(random_model):
    model, ids = random_model(), tokens(3, 13)
    cache = KVCache(model.config, 3, 31, dtype=torch.float64)
    model(ids[:, :12], cache=cache)
    for layer in cache.layers:
        layer.v[:, :, 4] += 1
    spoiled = model(ids[:, 12:], cache=cache)
    assert (spoiled - model(ids)[:, 12:]).abs().max() > 1e-2


@pytest.mark.parametrize(("dtype", "atol"), EXACT)
@torch.no_grad()
def test_rows_padded_on_the_left_are_single_rows(random_model, dtype, atol):
    model, lengths, longest = scaled(random_model(dtype=dtype)), (7, 4, 1), 7
    prompts = [tokens(1, n, seed=n) for n in lengths]
    padding = torch.tensor([longest - n for n in lengths])
    ids = torch.cat([torch.cat([tokens(1, longest - p.shape[1]), p], 1) for p in prompts])
    slots = torch.arange(longest)
    visible = (slots[None, None] >= padding[:, None, None]) & (slots <= slots[:, None])
    visible |= torch.eye(longest, dtype=torch.bool)  # padding looks at itself: no empty softmax
    positions = (slots - padding[:, None]).clamp(min=0)
    cache = KVCache(model.config, 3, 11, dtype=dtype)
    logits = model(ids, positions=positions, visible=visible, cache=cache)
    step = tokens(3, 1, seed=9)
    visible = torch.arange(8)[None, None] >= padding[:, None, None]
    after = model(step, positions=longest - padding[:, None], visible=visible, cache=cache)
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
    model(ids[:, :8], cache=cache)
    cache.keep_rows(torch.tensor([3, 1]))
    kept = model(ids[[3, 1], 8:], cache=cache)
    torch.testing.assert_close(kept, model(ids)[[3, 1], 8:], rtol=0, atol=1e-10)
    assert cache.layers[2].k.shape == (2, 2, 11, 8)


def test_the_memory_held_is_counted(config):
    cache = KVCache(config, 5, 11, dtype=torch.float64)
    assert (cache.max_len, cache.length) == (11, 0)
    assert cache.n_bytes() == 2 * 3 * 5 * 2 * 11 * 8 * 8
    cache.keep_rows(torch.tensor([0, 4]))
    assert cache.n_bytes() == 2 * 3 * 2 * 2 * 11 * 8 * 8
