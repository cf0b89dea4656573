"""Norm, rotation and feed-forward against their formulas."""

import math

import pytest
import torch

from llama2_lib.model.transformer import FeedForward, RMSNorm, apply_rotary, rotary_table


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def norm_of(gain, eps):
    norm = RMSNorm(len(gain), eps).to(gain.dtype)
    norm.weight.data.copy_(gain)
    return norm


def test_the_norm_is_its_formula():
    x, gain, eps = randn(3, 5, 7), randn(7, seed=1), 0.3
    wanted = gain * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)
    torch.testing.assert_close(norm_of(gain, eps)(x), wanted, rtol=1e-13, atol=1e-13)


def test_the_norm_keeps_the_mean_and_undoes_the_scale():
    x, norm = randn(3, 7) + 5, norm_of(torch.ones(7, dtype=torch.float64), 1e-12)
    y = norm(x)
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close((y**2).mean(-1), ones, rtol=1e-10, atol=0)
    torch.testing.assert_close(norm(40 * x), y, rtol=1e-10, atol=0)
    assert y.mean(-1).min() > 0.9, "the mean was taken out: that is LayerNorm"


@pytest.mark.parametrize(("dtype", "ulp"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_the_norm_of_half_precision_neither_overflows_nor_loses(dtype, ulp):
    x, gain = (300 * randn(4, 96)).to(dtype), torch.ones(96, dtype=dtype)
    assert (x.float() ** 2).max() > 65_504, "nothing here would overflow fp16: vacuous test"
    wanted = x.double() / torch.sqrt((x.double() ** 2).mean(-1, keepdim=True) + 1e-5)
    y = norm_of(gain, 1e-5)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=ulp, atol=0)


def test_the_table_holds_the_angles_of_the_formula():
    table = rotary_table(6, 11, 100.0, torch.complex128)
    assert table.shape == (11, 3)
    for position in (0, 1, 10):
        for pair in range(3):
            angle = position * 100.0 ** (-2 * pair / 6)
            wanted = complex(math.cos(angle), math.sin(angle))
            assert abs(table[position, pair].item() - wanted) < 1e-14


def test_far_positions_keep_their_angle_in_single_precision():
    single, double = (
        rotary_table(8, 4096, 10_000.0, dtype)[4000]
        for dtype in (torch.complex64, torch.complex128)
    )
    # An angle of 4000 computed in fp32 would be off by up to 1e-4.
    torch.testing.assert_close(single.to(torch.complex128), double, rtol=0, atol=1e-7)


def test_a_neighbouring_pair_turns_by_its_angle():
    table = rotary_table(6, 11, 100.0, torch.complex128)[None, :5]
    x = torch.zeros(1, 5, 2, 6, dtype=torch.float64)
    x[0, 4, 1, 2] = 1.0  # the first number of pair 1, at position 4
    y = apply_rotary(x, table)
    angle = 4 * 100.0 ** (-2 / 6)
    wanted = torch.zeros_like(x)
    wanted[0, 4, 1, 2], wanted[0, 4, 1, 3] = math.cos(angle), math.sin(angle)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-14)


def test_a_score_depends_on_the_distance_only():
    q, k = randn(1, 1, 2, 8), randn(1, 1, 2, 8, seed=1)
    table = rotary_table(8, 64, 10_000.0, torch.complex128)

    def score(i, j):
        return (apply_rotary(q, table[None, i, None]) * apply_rotary(k, table[None, j, None])).sum(
            -1
        )

    for distance in (0, 1, 7):
        near = score(distance, 0)
        for start in (3, 40):
            torch.testing.assert_close(score(start + distance, start), near, rtol=0, atol=1e-12)
    assert (score(7, 0) - score(1, 0)).abs().min() > 1e-2, "no distance matters: vacuous test"
    assert (score(7, 0) - score(0, 7)).abs().min() > 1e-2, "the sign of the distance must matter"


def test_turning_keeps_lengths_position_0_and_precision():
    x = randn(3, 5, 2, 8, dtype=torch.float32)
    table = rotary_table(8, 64, 10_000.0)
    y = apply_rotary(x, table[None, 10:15])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    assert (y - x).abs().max() > 0.5, "nothing turned: vacuous test"
    torch.testing.assert_close(apply_rotary(x[:, :1], table[None, :1]), x[:, :1], rtol=0, atol=0)
    half = apply_rotary(x.bfloat16(), table[None, 10:15])
    assert half.dtype == torch.bfloat16
    exact = apply_rotary(x.bfloat16().float(), table[None, 10:15])
    torch.testing.assert_close(half.float(), exact, rtol=2**-8, atol=1e-6)


def test_the_feed_forward_is_swiglu():
    layer = FeedForward(5, 7).double()
    x = randn(2, 3, 5)
    w1, w2, w3 = (getattr(layer, name).weight for name in ("w1", "w2", "w3"))
    gate = x @ w1.T
    wanted = (gate / (1 + torch.exp(-gate)) * (x @ w3.T)) @ w2.T
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-14)
    assert [name for name, _ in layer.named_parameters()] == ["w1.weight", "w2.weight", "w3.weight"]
