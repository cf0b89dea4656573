"""One step of sampling: the distribution, the nucleus, and the edges of the uniform draw."""

import math

import pytest
import torch
from scipy.stats import chisquare

from llama2_lib.model.generate import nucleus, sample

LOGITS = torch.tensor([0.3, -1.2, 2.0, 1.1, 0.0, -0.4, 1.6], dtype=torch.float64)


def uniforms(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_are_the_softmax_of_the_tempered_logits(temperature):
    n = 20_000
    ids, logprobs = sample(LOGITS.expand(n, 7), uniforms(n), temperature, 1.0)
    wanted = torch.softmax(LOGITS / temperature, -1)
    counts = torch.bincount(ids, minlength=7)
    assert chisquare(counts, n * wanted).pvalue > 1e-3
    torch.testing.assert_close(logprobs, wanted.log()[ids], rtol=0, atol=1e-12)
    # The partner: the same counts refute a temperature that is off by a tenth.
    assert chisquare(counts, n * torch.softmax(LOGITS / temperature / 1.1, -1)).pvalue < 1e-3


def test_frequencies_in_the_nucleus_are_renormalised():
    n = 20_000
    ids, logprobs = sample(LOGITS.expand(n, 7), uniforms(n, 1), 0.8, 0.7)
    probabilities = torch.softmax(LOGITS / 0.8, -1)
    masses = probabilities.sort(descending=True).values.cumsum(0)
    kept = probabilities.sort(descending=True).indices[: int((masses < 0.7).sum()) + 1]
    assert 1 < len(kept) < 6, "the nucleus is trivial: vacuous test"
    wanted = torch.zeros(7, dtype=torch.float64)
    wanted[kept] = probabilities[kept] / probabilities[kept].sum()
    counts = torch.bincount(ids, minlength=7)
    assert set(ids.tolist()) == set(kept.tolist())
    assert chisquare(counts[kept], n * wanted[kept]).pvalue > 1e-3
    torch.testing.assert_close(logprobs, wanted.log()[ids], rtol=0, atol=1e-12)


def test_the_token_that_crosses_the_mass_stays():
    raw = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64)
    for top_p, wanted in [
        (0.5, [0, 1, 0, 0]),
        (0.51, [0, 2 / 3, 0, 1 / 3]),
        (0.75, [0, 2 / 3, 0, 1 / 3]),
    ]:
        row = torch.tensor([wanted], dtype=torch.float64)
        torch.testing.assert_close(nucleus(raw, top_p), row, rtol=0, atol=1e-15)


def test_a_full_nucleus_changes_nothing():
    raw = torch.softmax(LOGITS, -1)[None]
    torch.testing.assert_close(nucleus(raw, 1.0), raw, rtol=0, atol=0)
    assert (nucleus(raw, 0.9) - raw).abs().max() > 0.01


@pytest.mark.parametrize("top_p", [0.2, 1.0])
def test_temperature_0_takes_the_largest_with_the_models_own_probability(top_p):
    logits = torch.stack([LOGITS, LOGITS.flip(0), LOGITS.roll(2)])
    ids, logprobs = sample(logits, uniforms(3), 0.0, top_p)
    assert ids.tolist() == [2, 4, 4]
    wanted = torch.log_softmax(LOGITS, -1)[2].expand(3)
    torch.testing.assert_close(logprobs, wanted, rtol=0, atol=1e-12)
    for draw in (2**-24, 1 - 2**-24):
        cold, _ = sample(logits, torch.full((3,), draw), 0.01, top_p)
        assert cold.tolist() == [2, 4, 4]


def test_the_draw_inverts_the_cumulative_distribution():
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64).log()
    draws = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.99])
    ids, _ = sample(logits.expand(6, 4), draws, 1.0, 1.0)
    assert ids.tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_impossible_token_is_never_drawn(dtype):
    """Rounding could let a draw just below 1 pass the end, and a draw of 0 start too early."""
    source = torch.Generator().manual_seed(3)
    logits = torch.randn(400, 13, generator=source, dtype=dtype)
    logits[:, [0, 1, 6, 11, 12]] = float("-inf")
    lone = torch.full((2, 13), float("-inf"), dtype=dtype)
    lone[0, 0] = lone[1, 12] = -3.0
    logits = torch.cat([logits, lone])
    for draw in (0.0, 2**-24, 0.5, 1 - 2**-24, 1.0):  # 1.0: the worst that rounding can do
        for top_p in (0.6, 1.0):
            ids, logprobs = sample(logits, torch.full((402,), draw), 1.0, top_p)
            assert logprobs.isfinite().all()
            assert logits.gather(1, ids[:, None]).isfinite().all()
            assert ids[-2:].tolist() == [0, 12]


def test_tokens_that_the_nucleus_drops_are_never_drawn():
    logits = torch.tensor([5.0, 4.0, 0.0, -1.0]).expand(3, 4)
    ids, logprobs = sample(logits, torch.tensor([0.0, 0.999, 1.0]), 1.0, 0.8)
    assert ids.tolist() == [0, 1, 1]
    first = 1 / (1 + math.exp(-1))
    wanted = torch.tensor([first, 1 - first, 1 - first]).log()
    torch.testing.assert_close(logprobs, wanted, rtol=0, atol=1e-6)


def test_a_rows_draw_does_not_depend_on_its_companions():
    logits = torch.stack([LOGITS.roll(shift) for shift in range(5)])
    draws = uniforms(5, 4)
    together, _ = sample(logits, draws, 0.9, 0.9)
    for row in range(5):
        alone, _ = sample(logits[row : row + 1], draws[row : row + 1], 0.9, 0.9)
        assert alone.item() == together[row].item()
    assert len(set(together.tolist())) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-20, 1e-31, 1e-45, 1e-46, 5e-324])
def test_a_temperature_near_0_tends_to_the_largest_logit(dtype, temperature):
    logits = torch.stack([LOGITS, LOGITS.flip(0), -300 * LOGITS]).to(dtype)
    for draw in (0.0, 0.5, 1 - 2**-24):
        for top_p in (0.5, 1.0):
            ids, logprobs = sample(logits, torch.full((3,), draw), temperature, top_p)
            assert ids.tolist() == [2, 4, 1]
            assert logprobs.tolist() == [0.0] * 3
    ties, _ = sample(
        torch.zeros(4, 2, dtype=dtype), torch.tensor([0.1, 0.4, 0.6, 0.9]), temperature, 1.0
    )
    assert ties.tolist() == [0, 0, 1, 1]


def test_a_nucleus_of_nothing_is_the_most_probable_token():
    raw = torch.tensor([[0.1, 0.5, 0.4], [0.6, 0.2, 0.2]])
    for top_p in (0.0, 1e-12):
        assert nucleus(raw, top_p).tolist() == [[0, 1, 0], [1, 0, 0]]
