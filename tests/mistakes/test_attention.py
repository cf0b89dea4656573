"""Every known mistake in attention and decoding is rejected and named; right code passes."""

import pytest
import torch
import torch.nn.functional as F

from llama2_lib.model.cache import KVCache
from llama2_lib.model.generate import generate
from llama2_lib.teaching import attention
from llama2_lib.teaching.check import CheckFailed

TILED = "query head h reads key/value head h % kv_heads, not h // group (tiled, not repeated)"


def cases(*pairs):
    return [
        pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
        for check, mistakes in pairs
        for name, wrong in mistakes.items()
    ]


@pytest.mark.parametrize(
    ("check", "name", "wrong"),
    cases(
        (attention.attention, attention.ATTENTION_MISTAKES),
        (
            attention.multi_head,
            {k: v for k, v in attention.ATTENTION_MISTAKES.items() if k != TILED},
        ),
        (attention.cached, attention.DECODE_MISTAKES),
        (attention.greedy, attention.GREEDY_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


def fused(q, k, v, visible):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], enable_gqa=True)
    return mixed.transpose(1, 2)


def one_head_at_a_time(q, k, v, visible):
    group = q.shape[2] // k.shape[2]
    heads = []
    for head in range(q.shape[2]):
        keys, values = k[:, :, head // group], v[:, :, head // group]
        scores = q[:, :, head] @ keys.mT * q.shape[-1] ** -0.5
        weights = scores.exp() * visible
        heads.append(weights / weights.sum(-1, keepdim=True) @ values)
    return torch.stack(heads, dim=2)


def with_the_library_cache(model, ids, n_prompt):
    cache = KVCache(model.config, 1, ids.shape[1])
    parts = [model(ids[:, :n_prompt], cache=cache)]
    parts += [model(ids[:, t : t + 1], cache=cache) for t in range(n_prompt, ids.shape[1])]
    return torch.cat(parts, dim=1)


def in_a_batch(model, prompts, n_new):
    return [c.ids for c in generate(model, prompts, max_new_tokens=n_new, temperature=0.0)]


def one_by_one_without_a_cache(model, prompts, n_new):
    answers = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(n_new):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


def test_other_right_derivations_pass():
    for right in (fused, one_head_at_a_time):
        attention.attention(right)
        attention.multi_head(right)
    attention.cached(with_the_library_cache)
    attention.greedy(in_a_batch)
    attention.greedy(one_by_one_without_a_cache)


def test_padding_that_shifts_all_positions_alike_changes_nothing():
    """Rotary scores depend on distances only, so this is no mistake and must pass."""

    def shifted(model, prompts, n_new):
        return [in_a_batch(model, [[0, 0, *p]], n_new)[0] for p in prompts]

    def shifted_positions_only(model, prompts, n_new):
        answers = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(n_new):
                at = torch.arange(len(ids))[None] + 5
                ids.append(int(model(torch.tensor([ids]), positions=at)[0, -1].argmax()))
            answers.append(ids[len(prompt) :])
        return answers

    attention.greedy(shifted_positions_only)
    with pytest.raises(CheckFailed):  # the padding itself, when seen, does change the answers
        attention.greedy(shifted)


def test_right_values_without_a_cache_do_not_pass():
    with pytest.raises(CheckFailed, match="the cache is not used"):
        attention.cached(lambda model, ids, n_prompt: model(ids))


def test_what_is_no_known_mistake_is_rejected_as_well():
    with pytest.raises(CheckFailed, match="like no mistake known"):
        attention.attention(lambda q, k, v, visible: 2 * q)
    with pytest.raises(CheckFailed, match="without the prompts; got lengths"):
        attention.greedy(lambda model, prompts, n_new: [[*p, *[1] * n_new] for p in prompts])
    with pytest.raises(CheckFailed, match=r"prompts \[0, 1, 2\] differ"):
        attention.greedy(lambda model, prompts, n_new: [[1] * n_new] * 3)
