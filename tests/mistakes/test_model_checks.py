"""Right tokenizers and right models pass their checks; what is wrong otherwise is told."""

import re
from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import KVCache
from llama2_lib.teaching import attention, tokenizer, transformer
from llama2_lib.teaching.check import CheckFailed


def allowed_by_pattern(piece):
    if len(piece) > 16:
        return False
    return bool(re.fullmatch("\u2581?(?:[^\\W\\d_]*|[\\W_]*)|[0-9]", piece)) and not re.search(
        "(?<!^)\u2581", piece
    )


def learned_as_strings(words, n):
    """Keep each word as one string with borders between its parts, as in Sennrich's paper."""
    corpus = {"|" + "|".join(word) + "|": number for word, number in words.items()}
    learned = []
    while len(learned) < n:
        counts = Counter()
        for word, number in corpus.items():
            parts = word.strip("|").split("|")
            for left, right in pairwise(parts):
                if left + right not in learned and allowed_by_pattern(left + right):
                    counts[left, right] += number
        order = sorted(counts, key=lambda p: (-counts[p], len(p[0] + p[1]), p[0] + p[1]))
        left, right = order[0]
        learned.append(left + right)
        corpus = {w.replace(f"|{left}|{right}|", f"|{left}{right}|"): k for w, k in corpus.items()}
    return learned


def segmented_merge_by_merge(text, pieces):
    """Go through the merges in order and apply each wherever it fits."""
    parts = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        before = list(parts)
        for piece in pieces:
            at = 0
            while at + 1 < len(parts):
                if parts[at] + parts[at + 1] == piece:
                    parts[at : at + 2] = [piece]
                at += 1
            if parts != before:
                break  # a merge may make an earlier one possible: begin again
        if parts == before:
            return parts


def decoded_by_the_model(pieces):
    processor = tokenizer.little_tokenizer().processor
    return processor.decode_pieces(list(pieces))


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
    parts = [model(ids[:, :n_prompt], attend=cache)]
    parts += [model(ids[:, t : t + 1], attend=cache) for t in range(n_prompt, ids.shape[1])]
    return torch.cat(parts, dim=1)


def in_a_batch(model, prompts, n_new):
    return [c.ids for c in generate(model, prompts, max_new_tokens=n_new, temperature=0.0)]


HEADS = [fused, one_head_at_a_time]


def one_by_one_without_a_cache(model, prompts, n_new, first=0):
    answers = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(n_new):
            at = torch.arange(len(ids))[None] + first
            ids.append(int(model(torch.tensor([ids]), positions=at)[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


def shifted(model, prompts, n_new):
    return [in_a_batch(model, [[0, 0, *p]], n_new)[0] for p in prompts]


RIGHT = {
    tokenizer.allows: [allowed_by_pattern, tokenizer._allowed],
    tokenizer.learns: [learned_as_strings, tokenizer._learn],
    tokenizer.segments: [segmented_merge_by_merge, tokenizer._segment],
    tokenizer.encodes: [
        lambda text, tok: tok.encode(text, bos=True),
        lambda text, tok: [tok.bos_id, *tokenizer._ids(text, tok)],
    ],
    tokenizer.decodes: [decoded_by_the_model, tokenizer._decode],
    transformer.rms_norm: [
        lambda x, gain, eps: F.rms_norm(x, gain.shape, gain, eps),
        rms_norm_through_vector_norm,
    ],
    transformer.rotary: [rotary_with_real_numbers],
    transformer.swiglu: [swiglu_through_sigmoid],
    transformer.hidden_width: [width_by_counting],
    transformer.block: [block_in_place],
    transformer.whole: [whole_without_modules],
    attention.attention: HEADS,
    attention.multi_head: HEADS,
    attention.cached: [with_the_library_cache],
    attention.greedy: [
        in_a_batch,
        one_by_one_without_a_cache,
        # rotary scores depend on distances only, so this is no mistake
        partial(one_by_one_without_a_cache, first=5),
    ],
}
WRONG = [
    (tokenizer.allows, lambda piece: piece != "the", "^wrong about .*the"),
    (tokenizer.learns, lambda words, n: ["th"] * n, "^merge . is 'th', SentencePiece has"),
    (tokenizer.learns, lambda words, n: [], "pieces must come back, got 0"),
    (tokenizer.segments, lambda text, pieces: [text], "must give"),
    (tokenizer.encodes, lambda text, tok: [3], "must give"),
    (tokenizer.decodes, lambda pieces: "Mara", "must give"),
    (transformer.rms_norm, lambda x, gain, eps: 2 * x, "like no mistake known"),
    (transformer.rms_norm, lambda x, *_: x[..., 0], r"expected shape \(2, 5, 6\); got \(2, 5\)"),
    (transformer.block, lambda *parts: None, "a tensor must come back; got NoneType"),
    (transformer.hidden_width, lambda *sizes: 4, r"dim 4096, .* must give 11008; got 4"),
    (transformer.whole, lambda *given: torch.zeros(2, 7, 23), "like no mistake known"),
    (attention.attention, lambda q, k, v, visible: 2 * q, "like no mistake known"),
    # right values alone do not pass, and padding that is seen does change the answers
    (attention.cached, lambda model, ids, n_prompt: model(ids), "the cache is not used"),
    (attention.greedy, shifted, "differ"),
    (
        attention.greedy,
        lambda model, prompts, n_new: [[*p, *[1] * n_new] for p in prompts],
        "without the prompts; got lengths",
    ),
    (
        attention.greedy,
        lambda model, prompts, n_new: [[1] * n_new] * 3,
        r"prompts \[0, 1, 2\] differ",
    ),
]


@pytest.mark.parametrize(
    ("check", "right"), [(check, right) for check, rights in RIGHT.items() for right in rights]
)
def test_right_code_passes_however_it_is_written(check, right):
    check(right)


@pytest.mark.parametrize(("check", "wrong", "words"), WRONG)
def test_what_is_no_known_mistake_is_told_too(check, wrong, words):
    with pytest.raises(CheckFailed, match=words):
        check(wrong)
