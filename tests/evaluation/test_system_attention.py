"""Attention to the instruction, against PyTorch's own kernel, and where things stand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llama2_lib.evaluation.system_attention import attention_by_turn, maximum_attention, spans


class Letters:
    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [ord(letter) % 50 + 3 for letter in text] + [2] * eos


TOK = Letters()
DIALOG = [
    {"role": "user", "content": "B a b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "ef"},
]


def weights_in_the_kernel(model, ids, monkeypatch):
    """The weights of every layer, (layers, heads, seq, seq), from what the kernel is given."""
    given, kernel = [], F.scaled_dot_product_attention

    def listen(q, k, v, **options):
        given.append((q, k))
        return kernel(q, k, v, **options)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", listen)
        model(ids[None])
    found = []
    for q, k in given:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        later = torch.ones(len(ids), len(ids)).triu(1).bool()
        found.append(scores.masked_fill(later, -torch.inf).softmax(-1)[0])
    return torch.stack(found)


def test_the_maximum_is_over_layers_heads_and_keys(random_model, monkeypatch):
    model = random_model(seed=1)
    ids = torch.randint(0, 53, (23,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weights = weights_in_the_kernel(model, ids, monkeypatch)
    assert weights.shape == (3, 6, 23, 23)
    for keys in (range(4, 9), range(1), range(22, 23), range(23)):
        expected = weights[:, :, :, keys.start : keys.stop].amax(dim=(0, 1, 3))
        found = maximum_attention(model, ids, keys)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    found = maximum_attention(model, ids, range(4, 9))
    assert (found[:4] == 0).all()
    assert (found[4:] > 0).all()
    assert found.max() <= 1
    assert not torch.allclose(found, weights[0, :, :, 4:9].amax(dim=(0, 2)), rtol=1e-3, atol=0)


def test_keys_outside_are_refused(random_model):
    ids = torch.arange(7)
    for keys in (range(5, 8), range(3, 3)):
        with pytest.raises(ValueError, match="keys must lie within"):
            maximum_attention(random_model(), ids, keys)


def test_spans_are_those_of_the_letters():
    found = spans(DIALOG, "B a", TOK)
    text = "0[INST] B a b [/INST] c 00[INST] d [/INST] ef 0"
    places = range(len(text))
    assert len(found.ids) == len(text)
    assert [text[t] for t in found.instruction] == list(" B a")
    assert ["".join(text[t] for t in own) for own in found.answers] == [" c 0", " ef 0"]
    assert found.answers[-1].stop == places.stop
    with pytest.raises(ValueError, match="must begin with 'Z'"):
        spans(DIALOG, "Z", TOK)


def test_means_are_over_what_writes_each_answer(random_model):
    model = random_model(seed=2)
    long = model.config.max_seq_len
    dialog = [{"role": m["role"], "content": m["content"]} for m in DIALOG[:2]]
    found = spans(dialog, "B a", TOK)
    assert len(found.ids) <= long
    largest = maximum_attention(model, torch.tensor(found.ids), found.instruction)
    own = found.answers[0]
    expected = np.mean([float(largest[t - 1]) for t in own])
    measured = attention_by_turn(model, TOK, dialog, "B a")
    np.testing.assert_allclose(measured, [expected], rtol=1e-12, atol=0)
    shifted = np.mean([float(largest[t]) for t in own])
    assert abs(shifted - expected) > 1e-6
    with pytest.raises(ValueError, match="must fit"):
        attention_by_turn(model, TOK, DIALOG, "B a")
