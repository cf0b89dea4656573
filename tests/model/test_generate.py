"""Batched generation: rows are independent, stop when they should, and report true numbers."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from llama2_lib.model import generate as module
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import Decoder, Past, generate
from llama2_lib.model.transformer import KVCache, Transformer, initialise

PROMPTS = [[1, 7, 9, 30, 2, 17], [1], [1, 44, 5], [1, 8, 9, 10]]


@pytest.fixture
def model(random_model):
    """A model that is neither certain nor indifferent, so that draws matter."""
    model = random_model(dtype=torch.float32)
    model.output.weight.data.mul_(0.5)
    return model


@torch.no_grad()
def greedy(model, prompt, n):
    """The definition: the whole sequence again for every token, and the largest logit."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def teacher_forced(model, prompt, ids, temperature):
    """Log-probability of each of `ids` after `prompt`, in one pass."""
    logits = model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.fixture
def decoded(model, monkeypatch):
    """The (rows, columns) of every forward pass and decoding step, noted while generating."""
    shapes, hidden, step = [], model.hidden, Decoder.step

    def counting(ids, **rest):
        shapes.append(tuple(ids.shape))
        return hidden(ids, **rest)

    def counting_step(self, token, *rest):
        shapes.append((len(token), 1))
        return step(self, token, *rest)

    model.hidden = counting
    monkeypatch.setattr(Decoder, "step", counting_step)
    return shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_tokens_of_a_ragged_batch_are_those_of_the_definition(random_model, dtype):
    model = random_model(dtype=dtype)
    found = generate(model, PROMPTS, max_new_tokens=12, temperature=0)
    wanted = [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert [c.ids for c in found] == wanted
    assert len({tuple(ids) for ids in wanted}) == 4, "all rows say the same: vacuous test"
    assert not any(c.finished for c in found)


def test_greedy_ignores_seed_and_nucleus(model):
    runs = [
        generate(model, PROMPTS, max_new_tokens=6, temperature=0, top_p=p, seed=seed)
        for p, seed in [(1.0, 0), (0.3, 1)]
    ]
    assert runs[0] == runs[1]


def test_the_same_seed_gives_the_same_tokens(model):
    first, again, other = (
        generate(model, PROMPTS, max_new_tokens=9, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again
    assert all(a.ids != b.ids for a, b in zip(first, other, strict=True))
    unnamed, named = (generate(model, PROMPTS, max_new_tokens=9, **s) for s in ({}, {"seed": 0}))
    assert unnamed == named


def test_generating_leaves_the_global_stream_alone(model):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    generate(model, PROMPTS, max_new_tokens=3)
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)


def test_a_row_does_not_depend_on_its_companions(model):
    seeds, options = [11, 12, 13, 14], {"max_new_tokens": 12, "top_p": 0.95}
    together = generate(model, PROMPTS, seed=seeds, **options)
    for prompt, seed, row in zip(PROMPTS, seeds, together, strict=True):
        (alone,) = generate(model, [prompt], seed=[seed], **options)
        assert alone.ids == row.ids
        torch.testing.assert_close(
            torch.tensor(alone.logprobs), torch.tensor(row.logprobs), rtol=0, atol=1e-5
        )
    shuffled = generate(model, PROMPTS[::-1], seed=seeds[::-1], **options)
    assert [c.ids for c in shuffled] == [c.ids for c in together[::-1]]


def test_samples_of_one_prompt_differ_from_the_first_token_on(model):
    found = generate(model, [PROMPTS[0]] * 40, max_new_tokens=2)
    firsts = [c.ids[0] for c in found]
    # By construction: no token has so much mass that 40 equal draws could happen.
    with torch.no_grad():
        largest = model(torch.tensor([PROMPTS[0]]))[0, -1].softmax(-1).max().item()
    assert largest**39 < 1e-6
    assert len(set(firsts)) > 3
    # One draw for all rows would copy the second token too.
    assert len({c.ids[1] - c.ids[0] for c in found}) > 3


def test_a_stop_id_in_the_prompt_stops_nothing(model):
    (found,) = generate(model, [[1, 7, 9]], max_new_tokens=3, temperature=0, stop_ids={1, 7})
    assert found.ids == greedy(model, [1, 7, 9], 3)[: len(found.ids)]
    assert len(found.ids) == 3


@pytest.mark.parametrize("temperature", [0, 0.7, 1.0, 1.6])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_returned_log_probabilities_are_true(random_model, dtype, atol, temperature):
    """Those of greedy ids are the model's own, at temperature 1."""
    model = random_model(dtype=dtype)
    found = generate(model, PROMPTS, max_new_tokens=12, temperature=temperature)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        wanted = teacher_forced(model, prompt, completion.ids, temperature or 1.0)
        returned = torch.tensor(completion.logprobs, dtype=dtype)
        torch.testing.assert_close(returned, wanted, rtol=0, atol=atol)
        elsewhere = teacher_forced(model, prompt, completion.ids, 1.1 * (temperature or 1.0))
        assert (returned - elsewhere).abs().max() > 1e-2, "temperature has no effect: vacuous test"


def test_log_probabilities_in_the_nucleus_are_renormalised(model):
    found = generate(model, PROMPTS[:1] * 8, max_new_tokens=6, temperature=0.9, top_p=0.8)
    for c in found:
        free = teacher_forced(model, PROMPTS[0], c.ids, 0.9)
        gain = torch.tensor(c.logprobs) - free  # log of 1 / mass of the nucleus
        assert (gain >= -1e-4).all()
        assert (gain <= math.log(1 / 0.8) + 1e-4).all()
    assert max(gain) > 1e-2, "the nucleus kept everything: vacuous test"


def test_a_step_samples_the_softmax_of_its_logits(model):
    """The whole path at once, seeds included: first and second token against the model."""
    n = 4000
    found = generate(model, [PROMPTS[2]] * n, max_new_tokens=2, temperature=1.3)
    first = torch.tensor([c.ids[0] for c in found])
    with torch.no_grad():
        wanted = (model(torch.tensor([PROMPTS[2]]))[0, -1] / 1.3).softmax(-1).double()
    counts = torch.bincount(first, minlength=53)
    order = wanted.argsort(descending=True)
    pooled = torch.cat([counts[order[:12]], counts[order[12:]].sum()[None]])
    expected = torch.cat([wanted[order[:12]], wanted[order[12:]].sum()[None]])
    assert n * expected.min() > 20, "too few for the test"
    assert chisquare(pooled, n * expected / expected.sum()).pvalue > 1e-3
    assert chisquare(pooled, n * expected.roll(1) / expected.sum()).pvalue < 1e-6


def test_every_step_draws_anew(model):
    """A model without an opinion: all tokens are equally likely, whatever came before."""
    model.output.weight.data.zero_()
    found = generate(model, [[1]] * 200, max_new_tokens=20, seed=8)
    ids = torch.tensor([c.ids for c in found])
    assert chisquare(torch.bincount(ids.flatten(), minlength=53)).pvalue > 1e-3
    equal = int((ids[:, 1:] == ids[:, :-1]).sum())
    assert binomtest(equal, 200 * 19, 1 / 53).pvalue > 1e-3
    nats = torch.tensor([c.logprobs for c in found])
    assert (nats + math.log(53)).abs().max() < 1e-5


def test_rows_that_stop_leave_too_and_the_rest_go_on_unchanged(model, decoded):
    free = generate(model, PROMPTS, max_new_tokens=15, seed=2)
    decoded.clear()
    stop = {free[0].ids[1]}
    stopped = generate(model, PROMPTS, max_new_tokens=15, seed=2, stop_ids=stop)
    assert sum(rows for rows, _ in decoded[1:]) == sum(len(c.ids) - 1 for c in stopped)
    assert sum(len(c.ids) for c in stopped) < 60
    longest = max(len(c.ids) for c in stopped)
    assert len(decoded) == longest, "a step was computed that nobody reads"
    assert {shape[1] for shape in decoded[1:]} == {1}, "the cache is not used"


def test_copies_of_a_prompt_are_read_once(model, decoded):
    copies = [PROMPTS[2], PROMPTS[0], PROMPTS[2], PROMPTS[2], PROMPTS[0]]
    seeds = [3, 1, 4, 1, 5]
    found = generate(model, copies, max_new_tokens=5, seed=seeds)
    assert decoded[0] == (2, 6), "two prompts, the longest of six"
    for prompt, seed, done in zip(copies, seeds, found, strict=True):
        (alone,) = generate(model, [prompt], max_new_tokens=5, seed=[seed])
        assert done.ids == alone.ids
        assert done.logprobs == pytest.approx(alone.logprobs, rel=0, abs=1e-5)


def test_what_was_read_is_not_read_again(model, decoded):
    pasts = [Past() for _ in range(4)]
    generate(model, PROMPTS, max_new_tokens=3, pasts=pasts)
    grown = [
        [*PROMPTS[0], 5, 6, 7],
        [1, 50, 51],
        [1, 43, *PROMPTS[2], 11],  # another beginning: only its first id was read before
        PROMPTS[3],
    ]
    for seed, prompts in ((2, grown), (3, [[*prompt, 12, 13] for prompt in grown])):
        decoded.clear()
        found = generate(model, prompts, max_new_tokens=4, seed=seed, pasts=pasts)
        assert decoded[0] == (4, 5 if seed == 2 else 2), "the most that any prompt added"
        fresh = generate(model, prompts, max_new_tokens=4, seed=seed)
        assert [done.ids for done in found] == [done.ids for done in fresh]
        for one, other in zip(found, fresh, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, rel=0, abs=1e-5)
    decoded.clear()  # the very same prompts: their last tokens are read again, for their logits
    again = generate(model, prompts, max_new_tokens=4, seed=3, pasts=pasts)
    assert decoded[0] == (4, 1)
    assert [done.ids for done in again] == [done.ids for done in found]
    with pytest.raises(ValueError, match="pasts must be one a prompt; got 4 for 1"):
        generate(model, [[1]], max_new_tokens=1, pasts=pasts)


def test_prompts_of_one_length_go_on_from_what_was_read(model):
    pasts = [Past(), Past()]
    generate(model, [[1, 7, 9], [1, 8, 4]], max_new_tokens=3, pasts=pasts)
    grown = [[1, 7, 9, 20, 21, 22], [1, 8, 4, 30, 31, 32]]
    found = generate(model, grown, max_new_tokens=6, temperature=0, pasts=pasts)
    assert [done.ids for done in found] == [greedy(model, prompt, 6) for prompt in grown]


def test_a_row_that_waits_stays_finished_and_is_not_read_beyond_its_end(model, decoded):
    """Copying the cache must pay for itself: one of nine rows waits for another."""
    prompts = [[1, token] for token in range(10, 19)]
    free = [greedy(model, prompt, 6) for prompt in prompts]
    said = Counter(token for ids in free for token in set(ids))
    ends = [(ids.index(t), row) for row, ids in enumerate(free) for t in ids if said[t] == 1]
    at, first = min(ends)
    later, second = min(end for end in ends if end[1] != first)
    stops = {free[first][at], free[second][later]}
    decoded.clear()
    found = generate(model, prompts, max_new_tokens=6, temperature=0, stop_ids=stops)
    lengths = {first: at + 1, second: later + 1}
    assert [c.ids for c in found] == [ids[: lengths.get(n, 6)] for n, ids in enumerate(free)]
    assert [rows for rows, _ in decoded] == [9] * (later + 1) + [7] * (5 - later)


def test_prompt_and_answer_may_fill_the_context_exactly(model):
    (found,) = generate(model, [[1] * 30], max_new_tokens=7, temperature=0)
    assert found.ids == greedy(model, [1] * 30, 7)


def test_generating_works_in_mixed_precision(model):
    exact = generate(model, PROMPTS, max_new_tokens=1, temperature=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = generate(model, PROMPTS, max_new_tokens=5, temperature=0)
    half = generate(model.bfloat16(), PROMPTS, max_new_tokens=5, temperature=0)
    for row, wanted in enumerate(exact):
        for found in (mixed, half):
            assert len(found[row].ids) == 5
            assert abs(found[row].logprobs[0] - wanted.logprobs[0]) < 0.3


@pytest.mark.parametrize(("prompts", "message"), [
    ([1, 2, 3], r"prompt 0 must be a list of ids; got '1'. Write \[ids\]"),
    (torch.tensor([[1, 2]]), "lists of ids, one or more; got 'tensor"),
    ([torch.tensor([1, 2])], r"prompt 0 must be a list of ids; got 'tensor.*tensor\.tolist\(\)"),
    ("Hello", "prompt 0 must be a list of ids; got 'H'.*encode text first"),
    (7, "one or more; got '7'"),
    ([[1], ["Hello"]], "prompt 1 must be a list of ids"),
    ([[1, 2.0]], r"prompt 0 must be a list of ids; got '\[1, 2.0\]'"),
])  # fmt: skip
def test_prompts_that_are_no_lists_of_ids_are_refused(model, unchecked, prompts, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, max_new_tokens=2)


def test_ids_may_be_of_any_integer_type_and_tuples(model, unchecked):
    wanted = generate(model, [[1, 7]], max_new_tokens=3)
    assert generate(model, (tuple(np.array([1, 7])),), max_new_tokens=3) == wanted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["output", "norm"])
def test_a_model_that_has_diverged_does_not_answer(model, temperature, value, place):
    """One bad number is enough, in whatever step it reaches the logits."""
    weight = getattr(model, place).weight
    weight.data[17 if place == "output" else slice(17, 18)] = value
    with pytest.raises(FloatingPointError, match="logits of the model must be numbers"):
        generate(model, PROMPTS, max_new_tokens=3, temperature=temperature)


def test_what_is_no_number_after_the_end_of_a_row_harms_nobody(model):
    """Row 0 is done after its first token, and waits in the batch: few finished rows do."""
    prompts = [[1, token] for token in range(10, 19)]
    for seed in range(50):
        free = generate(model, prompts, max_new_tokens=5, seed=seed)
        stop = free[0].ids[0]
        if stop not in {token for row in (*prompts, *(c.ids for c in free[1:])) for token in row}:
            break
    options = {"max_new_tokens": 5, "seed": seed, "stop_ids": {stop}}
    wanted = generate(model, prompts, **options)
    model.tok_embeddings.weight.data[stop] = math.nan
    assert generate(model, prompts, **options) == wanted
    with pytest.raises(FloatingPointError):
        generate(model, prompts, max_new_tokens=5, seed=seed)


def test_norms_of_a_higher_precision_than_the_matrices(random_model):
    """As files that keep norms in fp32 beside bf16 have them."""
    half = random_model(dtype=torch.bfloat16)
    wanted = generate(half, PROMPTS, max_new_tokens=4, temperature=0)
    for name, weight in half.named_parameters():
        if "norm" in name:
            weight.data = weight.data.float()
    for mixed, row in zip(
        generate(half, PROMPTS, max_new_tokens=4, temperature=0), wanted, strict=True
    ):
        assert mixed.ids == row.ids
        assert mixed.logprobs == pytest.approx(row.logprobs, abs=0.1)


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompts": []}, "lists of ids, one or more; got"),
    ({"prompts": [[1], []]}, "prompt 1 is empty; begin it with the BOS id"),
    ({"prompts": [[1], [4, 53]]}, r"prompt 1 must lie in 0\.\.\.52; got 4\.\.\.53.*tokenizer"),
    ({"prompts": [[-1, 4]]}, r"ids of prompt 0 must lie in 0\.\.\.52; got -1\.\.\.4"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
    ({"max_new_tokens": 35}, "must fit 37 tokens; the longest prompt leaves 34 of the 35 asked"),
    ({"prompts": [[1], [2] * 40]}, "the longest prompt leaves 0 of the 3 asked"),
    ({"temperature": -0.1}, r"temperature must be 0 \(greedy\) or positive and finite; got -0.1"),
    ({"temperature": math.nan}, "temperature must be .*got nan"),
    ({"temperature": math.inf}, "temperature must be .*got inf"),
    ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]; got 0.0"),
    ({"top_p": 1.1}, r"top_p must lie in \(0, 1\]; got 1.1"),
    ({"top_p": math.nan}, "top_p must lie in .*got nan"),
    ({"seed": [1, 2, 3]}, "seed must be one a prompt; got 3 for 2"),
    ({"stop_ids": [-1]}, r"stop_ids must lie in 0\.\.\.52; got -1"),
    ({"stop_ids": [2, 53]}, r"stop_ids must lie in 0\.\.\.52; got 53"),
])  # fmt: skip
def test_an_argument_out_of_range_is_refused(model, changes, message):
    arguments = {"prompts": [[1, 7], [1, 8, 9]], "max_new_tokens": 3} | changes
    prompts = arguments.pop("prompts")
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, **arguments)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_every_step_gives_the_logits_of_a_full_pass(random_model, dtype, atol):
    model = random_model(dtype=dtype)
    for parameter in model.parameters():  # gains other than 1, or folding them would show nothing
        if parameter.dim() == 1:
            parameter.data = 1 + 0.3 * torch.sin(torch.arange(len(parameter), dtype=dtype))
    ids = torch.tensor([[5, 9, 2, 11, 30, 7], [8, 8, 1, 0, 4, 21], [40, 3, 3, 17, 6, 13]])
    with torch.inference_mode():
        cache = KVCache(model.config, 3, 6, dtype=dtype)
        model(ids[:, :2], attend=cache)
        decoder = Decoder(model)
        for slot in range(2, 6):
            step = decoder.step(ids[:, slot : slot + 1], cache)
            full = model(ids[:, : slot + 1])[:, -1]
            torch.testing.assert_close(step, full, rtol=0, atol=atol)
        assert cache.length == 6
    assert (full[0] - full[1]).abs().max() > 1e-2, "all rows say the same: vacuous test"


def test_a_model_above_the_limit_decodes_without_a_copy_and_says_the_same(
    random_model, monkeypatch
):
    model = random_model()
    prompts = [[5, 9, 2], [8], [40, 3, 3, 17]]
    stacked = generate(model, prompts, max_new_tokens=7, temperature=0)
    monkeypatch.setattr(module, "STACK_LIMIT", 0)
    monkeypatch.setattr(module, "Decoder", None)  # calling it would fail
    plain = generate(model, prompts, max_new_tokens=7, temperature=0)
    assert [c.ids for c in plain] == [c.ids for c in stacked]


def test_a_model_trains_after_it_has_generated():
    # a base of its own, so that generation makes the rotary table, not an earlier test
    config = ModelConfig(
        vocab_size=11, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, max_seq_len=13, rope_theta=77.0
    )
    model = initialise(Transformer(config), 0)
    generate(model, [[1, 2]], max_new_tokens=3, temperature=0.0)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.layers[0].attention.wq.weight.grad is not None
