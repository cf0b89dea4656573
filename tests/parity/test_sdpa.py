"""Our definition of grouped attention against PyTorch's own kernels, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama2_lib.model.transformer import attention_weights, grouped_query_attention

BACKENDS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
CASES = {
    # name: batch, queries, keys, heads, kv_heads, head_dim
    "grouped": (2, 7, 7, 6, 3, 8),
    "full": (3, 5, 5, 4, 4, 6),
    "multi-query": (2, 7, 7, 6, 1, 4),
    "one query": (3, 1, 9, 6, 2, 4),
    "new queries on cached keys": (2, 4, 9, 6, 2, 8),
}


def inputs(case, dtype=torch.float64):
    batch, q_len, kv_len, heads, kv_heads, head_dim = CASES[case]
    source = torch.Generator().manual_seed(len(case))
    q = torch.randn(batch, q_len, heads, head_dim, generator=source, dtype=dtype)
    k, v = torch.randn(2, batch, kv_len, kv_heads, head_dim, generator=source, dtype=dtype)
    return q, k, v


def causal(case):
    _, q_len, kv_len, *_ = CASES[case]
    return torch.ones(1, q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)


def ragged(case):
    """Causal, and the last row of the batch is padded on the left by two."""
    visible = causal(case).repeat(CASES[case][0], 1, 1)
    visible[-1, :, :2] = False
    visible[-1, :, 2] |= ~visible[-1].any(-1)
    return visible


def sdpa(q, k, v, visible):
    """PyTorch's attention; its layout has heads before positions."""
    mixed = F.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), attn_mask=visible[:, None], enable_gqa=True
    )
    return mixed.transpose(1, 2)


@pytest.mark.parametrize("mask", [causal, ragged])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_definition_is_what_the_kernels_compute(case, mask, backend, dtype, atol):
    q, k, v = inputs(case, dtype)
    ours = grouped_query_attention(q, k, v, mask(case))
    with sdpa_kernel(backend):
        theirs = sdpa(q, k, v, mask(case))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    assert ours.std() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree(case):
    pairs = []
    for attend in (grouped_query_attention, sdpa):
        tensors = [t.requires_grad_() for t in inputs(case)]
        weighting = torch.randn(
            tensors[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        (attend(*tensors, ragged(case)) * weighting).sum().backward()
        pairs.append([t.grad for t in tensors])
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert ours.abs().max() > 0.1


def test_the_weights_are_those_that_mix_the_values():
    """With the unit vectors for values, PyTorch's output is the matrix of weights."""
    q, k, _ = inputs("grouped")
    batch, seq, heads = q.shape[:3]
    visible = ragged("grouped")
    unit = torch.eye(seq, dtype=torch.float64)[None, :, None].expand(batch, seq, 3, seq)
    weights = attention_weights(q, k, visible)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = sdpa(q, k, unit, visible).transpose(1, 2)
    assert weights.shape == (batch, heads, seq, seq)
    torch.testing.assert_close(weights, theirs, rtol=0, atol=1e-13)
