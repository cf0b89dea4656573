"""Every known mistake in a part of the transformer is rejected and named; right code passes."""

import pytest
import torch
import torch.nn.functional as F

from llama2_lib.teaching import decoder, transformer
from llama2_lib.teaching.check import CheckFailed


def cases(*pairs):
    return [
        pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
        for check, mistakes in pairs
        for name, wrong in mistakes.items()
    ]


@pytest.mark.parametrize(
    ("check", "name", "wrong"),
    cases(
        (transformer.rms_norm, transformer.RMS_NORM_MISTAKES),
        (transformer.rotary, transformer.ROTARY_MISTAKES),
        (transformer.swiglu, transformer.SWIGLU_MISTAKES),
        (transformer.hidden_width, transformer.WIDTH_MISTAKES),
        (decoder.block, decoder.BLOCK_MISTAKES),
        (decoder.whole, decoder.WHOLE_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


def rms_norm_through_vector_norm(x, gain, eps):
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return gain * x / (length**2 / x.shape[-1] + eps) ** 0.5


def rotary_with_real_numbers(x, positions, theta):
    rows = []
    for index, position in enumerate(positions.tolist()):
        turned = torch.empty_like(x[:, index])
        for j in range(0, x.shape[-1], 2):
            angle = torch.tensor(position * theta ** (-j / x.shape[-1]))
            a, b = x[:, index, :, j], x[:, index, :, j + 1]
            turned[..., j] = a * angle.cos() - b * angle.sin()
            turned[..., j + 1] = a * angle.sin() + b * angle.cos()
        rows.append(turned)
    return torch.stack(rows, dim=1)


def swiglu_through_sigmoid(x, w1, w2, w3):
    gate = F.linear(x, w1)
    return F.linear(gate * gate.sigmoid() * F.linear(x, w3), w2)


def width_by_counting(dim, multiple_of, multiplier):
    wanted, width = int(int(2 * 4 * dim / 3) * multiplier), 0
    while width < wanted:
        width += multiple_of
    return width


def block_in_place(x, attend, feed, norm_1, norm_2):
    stream = x.clone()
    stream += attend(norm_1(stream))
    stream += feed(norm_2(stream))
    return stream


def whole_without_modules(ids, weights, config):
    h = weights["tok_embeddings.weight"][ids]
    for i in range(config.n_layers):
        w = {k.removeprefix(f"layers.{i}."): t for k, t in weights.items()}
        x = rms_norm_through_vector_norm(h, w["attention_norm.weight"], config.norm_eps)
        q, k, v = (
            (x @ w[f"attention.{n}.weight"].T).unflatten(-1, (config.n_heads, -1))
            for n in ("wq", "wk", "wv")
        )
        at = torch.arange(ids.shape[1])
        q, k = (rotary_with_real_numbers(t, at, config.rope_theta) for t in (q, k))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * config.head_dim**-0.5
        scores += torch.full_like(scores[0, 0], -torch.inf).triu(1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(-2)
        h = h + mixed @ w["attention.wo.weight"].T
        x = rms_norm_through_vector_norm(h, w["ffn_norm.weight"], config.norm_eps)
        h = h + swiglu_through_sigmoid(x, *(w[f"feed_forward.w{n}.weight"] for n in (1, 2, 3)))
    h = rms_norm_through_vector_norm(h, weights["norm.weight"], config.norm_eps)
    return h @ weights["output.weight"].T


def test_other_right_derivations_pass():
    transformer.rms_norm(lambda x, gain, eps: F.rms_norm(x, gain.shape, gain, eps))
    transformer.rms_norm(rms_norm_through_vector_norm)
    transformer.rotary(rotary_with_real_numbers)
    transformer.swiglu(swiglu_through_sigmoid)
    transformer.hidden_width(width_by_counting)
    decoder.block(block_in_place)
    decoder.whole(whole_without_modules)


def test_what_is_no_known_mistake_is_rejected_as_well():
    with pytest.raises(CheckFailed, match="like no mistake known"):
        transformer.rms_norm(lambda x, gain, eps: 2 * x)
    with pytest.raises(CheckFailed, match=r"expected shape \(2, 5, 6\); got \(2, 5\)"):
        transformer.rms_norm(lambda x, gain, eps: x[..., 0])
    with pytest.raises(CheckFailed, match="a tensor must come back; got NoneType"):
        decoder.block(lambda *parts: None)
    with pytest.raises(CheckFailed, match=r"dim 4096, .* must give 11008; got 4"):
        transformer.hidden_width(lambda dim, multiple_of, multiplier: 4)
    with pytest.raises(CheckFailed, match="like no mistake known"):
        decoder.whole(lambda ids, weights, config: torch.zeros(2, 7, 23))
