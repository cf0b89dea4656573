"""Properties of sampling and of ragged batches, on free logits, prompts, limits and stops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import generate, nucleus, sample
from llama2_lib.model.transformer import Transformer

PROFILE = settings(deadline=None, max_examples=150)
FEW = settings(deadline=None, max_examples=40)
CONFIG = ModelConfig(
    vocab_size=23, dim=24, n_layers=2, n_heads=6, n_kv_heads=3, multiple_of=20, max_seq_len=19
)

logit = st.floats(-12, 12, width=32) | st.just(-math.inf)
rows = st.lists(logit, min_size=2, max_size=13).filter(lambda row: max(row) > -math.inf)
unit = st.floats(0, 1)
mass = st.floats(0, 1, exclude_min=True)
temperature = st.floats(0.05, 5)


@pytest.fixture(scope="module")
def model() -> Transformer:
    model, source = Transformer(CONFIG).double(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=source, dtype=torch.float64)
            weight.copy_(1 + 0.3 * noise if weight.dim() == 1 else noise / weight.shape[1] ** 0.5)
    return model.eval()


@PROFILE
@given(rows, unit, temperature, mass)
def test_a_draw_is_possible_and_its_probability_is_true(row, u, t, p):
    logits = torch.tensor([row], dtype=torch.float64)
    ids, logprobs = sample(logits, torch.tensor([u], dtype=torch.float64), t, p)
    kept = nucleus((logits / t).softmax(-1), p)
    assert kept[0, ids[0]] > 0
    torch.testing.assert_close(logprobs.exp(), kept[0, ids], rtol=1e-9, atol=0)


@PROFILE
@given(rows, unit, unit, temperature, mass)
def test_a_larger_draw_never_gives_an_earlier_token(row, u, v, t, p):
    logits = torch.tensor([row, row], dtype=torch.float64)
    ids, _ = sample(logits, torch.tensor([min(u, v), max(u, v)], dtype=torch.float64), t, p)
    assert ids[0] <= ids[1]


@PROFILE
@given(rows, mass)
def test_the_nucleus_is_the_least_set_that_reaches_its_mass(row, p):
    raw = torch.tensor([row], dtype=torch.float64).softmax(-1)
    kept = nucleus(raw, p)
    inside = kept[0] > 0
    assert inside.any()
    assert abs(kept.sum() - 1) < 1e-12
    reached = raw[0, inside].sum()
    assert reached >= p - 1e-12
    assert reached - raw[0, inside].min() < p + 1e-12, "one token fewer would have done"
    if not inside.all():
        assert raw[0, inside].min() >= raw[0, ~inside].max()


@PROFILE
@given(rows, unit, st.floats(-50, 50), temperature)
def test_a_constant_added_to_all_logits_changes_nothing(row, u, shift, t):
    logits, draw = torch.tensor([row], dtype=torch.float64), torch.tensor([u], dtype=torch.float64)
    ids, logprobs = sample(logits, draw, t, 1.0)
    moved, others = sample(logits + shift, draw, t, 1.0)
    borders = (logits / t).softmax(-1)[0].cumsum(0)
    if (borders - u).abs().min() > 1e-9:  # else rounding may decide
        assert ids == moved
        torch.testing.assert_close(logprobs, others, rtol=0, atol=1e-9)


prompt = st.lists(st.integers(0, 22), min_size=1, max_size=9)
batches = st.lists(st.tuples(prompt, st.integers(0, 99)), min_size=1, max_size=11)
stops = st.frozensets(st.integers(0, 22), max_size=9)
limits = st.integers(1, 10)
heats = st.sampled_from([0.0, 0.8, 1.5])


@pytest.mark.slow
@FEW
@given(batches, limits, stops, heats, mass)
def test_a_ragged_batch_is_its_rows_one_by_one(model, batch, limit, stop, t, p):
    prompts, seeds = zip(*batch, strict=True)
    dials = {"temperature": t, "top_p": p, "max_new_tokens": limit, "stop_ids": stop}
    together = generate(model, prompts, seed=seeds, **dials)
    for (prompt, seed), found in zip(batch, together, strict=True):
        (alone,) = generate(model, [prompt], seed=[seed], **dials)
        assert (found.ids, found.finished) == (alone.ids, alone.finished)
        one, other = (torch.tensor(c.logprobs, dtype=torch.float64) for c in (found, alone))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@FEW
@given(batches, limits, stops, heats, mass)
def test_an_answer_ends_at_its_first_stop_id_or_at_its_limit(model, batch, limit, stop, t, p):
    prompts, seeds = zip(*batch, strict=True)
    dials = {"seed": seeds, "temperature": t, "top_p": p, "max_new_tokens": limit}
    found = generate(model, prompts, stop_ids=stop, **dials)
    free = generate(model, prompts, **dials)
    for c, whole in zip(found, free, strict=True):
        assert 1 <= len(c.ids) == len(c.logprobs) <= limit
        assert c.finished == (c.ids[-1] in stop)
        assert not stop & set(c.ids[:-1])
        assert c.finished or len(c.ids) == limit
        assert c.ids == whole.ids[: len(c.ids)]
        assert len(whole.ids) == limit
        assert all(-60 < nats <= 1e-12 for nats in c.logprobs)
