"""Right code of tokenizers, models, pretraining and fine-tuning passes; wrong code is told."""

import math
import re
from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import KVCache
from llama2_lib.objectives.language import masked_loss, next_token_loss
from llama2_lib.stages.ghost_attention import ghost_example, on_every_turn, on_first_turn_only
from llama2_lib.teaching import (
    attention,
    ghost_attention,
    pretraining,
    sft,
    tokenizer,
    transformer,
)
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.text.dialog import encode_example, encode_prompt
from llama2_lib.training.batches import PackedDialogs, check_example
from llama2_lib.training.optim import adamw


def mean(term):
    return term.total / term.count


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


def with_the_library_cache(model, ids, n_prompt):
    cache = KVCache(model.config, 1, ids.shape[1])
    parts = [model(ids[:, :n_prompt], attend=cache)]
    parts += [model(ids[:, t : t + 1], attend=cache) for t in range(n_prompt, ids.shape[1])]
    return torch.cat(parts, dim=1)


def in_a_batch(model, prompts, n_new):
    return [c.ids for c in generate(model, prompts, max_new_tokens=n_new, temperature=0.0)]


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


def logsumexp_loss(logits, ids):
    right = logits.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (logits.logsumexp(-1) - right).mean()


def token_by_token(logits, ids, document):
    losses = [
        -logits[row, t].log_softmax(-1)[ids[row, t + 1]]
        for row in range(len(ids))
        for t in range(logits.shape[1])
        if document[row, t] == document[row, t + 1]
    ]
    return torch.stack(losses).mean()


def pack_by_hand(documents, seq_len):
    rows, row = [], []
    for document in documents:
        for token in document:
            row.append(token)
            if len(row) == seq_len + 1:
                rows.append(row)
                row = [token]
    return torch.tensor(rows)


def isolate_by_hand(document):
    positions = torch.zeros_like(document)
    visible = torch.zeros(*document.shape, document.shape[1], dtype=torch.bool)
    for row, owners in enumerate(document.tolist()):
        for t, owner in enumerate(owners):
            first = owners.index(owner)
            positions[row, t] = t - first
            visible[row, t, first : t + 1] = True
    return positions, visible


def adamw_as_in_the_paper_of_adam(p, grad, m, v, step, lr, betas, eps, weight_decay):
    """Kingma and Ba's faster order: the corrections go into the rate and into eps."""
    (b1, b2), corrected = betas, math.sqrt(1 - betas[1] ** step)
    m, v = torch.lerp(grad, m, b1), torch.lerp(grad**2, v, b2)
    moved = lr * corrected / (1 - b1**step) * m / (v.sqrt() + eps * corrected)
    return p - moved - lr * weight_decay * p, m, v


def other_decay(model):
    return [{"params": list(model.parameters()), "weight_decay": 0.3}]


def torch_clip(gradients, limit):
    parameters = [nn.Parameter(g) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return [p.grad for p in parameters], norm


def by_name(model):
    named = dict(model.named_parameters())
    gains = [name for name in named if "norm" in name]
    return [
        {"params": [named[name] for name in gains], "weight_decay": 0.0},
        {"params": [p for name, p in named.items() if name not in gains], "weight_decay": 0.1},
    ]


class Numbers:
    """A tokenizer of numbers between spaces, so that the library can be checked as it is."""

    def encode(self, text, bos=False, eos=False):
        words = text.replace("[INST]", "").replace("[/INST]", "").split()
        return [sft.BOS] * bos + [int(word) for word in words] + [sft.EOS] * eos


def spelled(ids):
    return " ".join(map(str, ids))


def dialog_of(turns):
    return [
        {"role": role, "content": spelled(part)}
        for turn in turns
        for role, part in zip(("user", "assistant"), turn, strict=True)
    ]


def by_encode_example(turns, bos, eos):
    return encode_example(dialog_of(turns), Numbers())


def by_places(turns, bos, eos):
    ids, mask = [], []
    for prompt, answer in turns:
        ids.extend([bos, *prompt, *answer, eos])
        mask.extend([False] * (len(prompt) + 1))
        mask.extend([True] * (len(ids) - len(mask)))
    return ids, torch.tensor(mask)


def by_ignored_labels(logits, ids, mask):
    labels = ids.masked_fill(~mask, -100)[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def row_by_concatenation(examples, length):
    ids = [t for own, _ in examples for t in own]
    mask = [m for _, own in examples for m in own]
    document = [7 * n + 3 for n, (own, _) in enumerate(examples) for _ in own]
    rest = length - len(ids)
    return (
        torch.tensor(ids + [0] * rest),
        torch.tensor(mask + [False] * rest),
        torch.tensor(document + [-1] * rest),
    )


def in_given_order(examples, length):
    """The library shuffles; undo it, to see that the rest is as the check wants it."""
    packed = PackedDialogs(examples, seq_len=length - 1)
    found = [packed.ids[0][packed.document[0] == n].tolist() for n in range(len(examples))]
    order = [found.index(list(ids)) for ids, _ in examples]
    parts = [packed.document[0] == n for n in (*order, -1)]
    return tuple(
        torch.cat([torch.from_numpy(array[0][part]) for part in parts])
        for array in (packed.ids, packed.loss_mask, packed.document)
    )


def library_prompt(turns, instruction, bos, eos):
    return encode_prompt(on_every_turn(dialog_of(turns)[:-1], spelled(instruction)), Numbers())


def library_example(turns, instruction, sampled, bos, eos, loss_on="last"):
    prompt = on_every_turn(dialog_of(turns)[:-1], spelled(instruction))
    student = on_first_turn_only(prompt, spelled(instruction))
    return ghost_example(student, spelled(sampled), Numbers(), loss_on)


def rate_by_hand(index, peak, steps, warmup, floor):
    if index <= warmup:
        return peak * (index + 1) / (warmup + 1)
    angle = math.pi / 2 * (index - warmup) / (steps - 1 - warmup)
    return peak * (math.cos(angle) ** 2 + floor * math.sin(angle) ** 2)


RIGHT = {
    tokenizer.allows: [allowed_by_pattern],
    tokenizer.learns: [learned_as_strings],
    tokenizer.segments: [tokenizer._segment],
    tokenizer.encodes: [lambda text, tok: [tok.bos_id, *tokenizer._ids(text, tok)]],
    tokenizer.decodes: [lambda p: tokenizer.little_tokenizer().processor.decode_pieces(list(p))],
    transformer.rms_norm: [
        lambda x, gain, eps: F.rms_norm(x, gain.shape, gain, eps),
        rms_norm_through_vector_norm,
    ],
    transformer.rotary: [rotary_with_real_numbers],
    transformer.swiglu: [swiglu_through_sigmoid],
    transformer.hidden_width: [width_by_counting],
    transformer.block: [block_in_place],
    transformer.whole: [whole_without_modules],
    attention.attention: [fused],
    attention.multi_head: [fused],
    attention.cached: [with_the_library_cache],
    attention.greedy: [
        in_a_batch,
        one_by_one_without_a_cache,
        # rotary scores depend on distances only, so this is no mistake
        partial(one_by_one_without_a_cache, first=5),
    ],
    pretraining.next_token: [logsumexp_loss, lambda *given: mean(next_token_loss(*given))],
    pretraining.packed_loss: [token_by_token],
    pretraining.pack: [pack_by_hand],
    pretraining.isolation: [isolate_by_hand],
    pretraining.accumulation: [lambda g, n: sum(a / sum(n) for a in g)],
    pretraining.adamw_step: [adamw_as_in_the_paper_of_adam],
    pretraining.decay_groups: [by_name, lambda model: adamw(model, weight_decay=0.1).param_groups],
    pretraining.clipping: [torch_clip],
    pretraining.schedule: [rate_by_hand],
    sft.loss_mask: [by_encode_example, by_places],
    sft.masked_loss: [lambda *given: mean(masked_loss(*given)), by_ignored_labels],
    sft.packed_row: [row_by_concatenation, in_given_order],
    ghost_attention.teacher_prompt: [library_prompt],
    ghost_attention.training_example: [library_example],
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
    (transformer.hidden_width, lambda *sizes: 4, r"expected \[11008, .*; got \[4, 4"),
    (transformer.whole, lambda *given: torch.zeros(2, 7, 23), "like no mistake known"),
    (attention.attention, lambda q, k, v, visible: 2 * q, "like no mistake known"),
    # right values alone do not pass, and padding that is seen does change the answers
    (attention.cached, lambda model, ids, n_prompt: model(ids), "the cache is not used"),
    (attention.greedy, shifted, "like no mistake known"),
    (attention.greedy, lambda _, prompts, n: [[1] * n] * 3, r"got \[\[1, 1, 1.* like no"),
    (pretraining.next_token, lambda *given: 3 * logsumexp_loss(*given), "like no mistake known"),
    (pretraining.pack, lambda *_: torch.zeros(5, 5), r"got \[\[0.0, .* like no mistake known"),
    (pretraining.isolation, lambda document: (document, document), "tensors of shapes"),
    (pretraining.decay_groups, lambda model: 2 * by_name(model), "stands in two groups"),
    (pretraining.decay_groups, other_decay, r"got .*0\.3.* like no mistake known"),
    (sft.masked_loss, lambda *given: 3 * by_ignored_labels(*given), "like no mistake known"),
    (sft.loss_mask, lambda turns, bos, eos: ([bos], [False]), "the ids must be"),
    (sft.loss_mask, lambda *given: (by_places(*given)[0], [True, False]), "expected shape"),
    (sft.packed_row, lambda rows, n: row_by_concatenation(rows, n + 1), r"of shapes \(\(28,\)"),
    (ghost_attention.teacher_prompt, lambda *given: [7, 8, 9], "like no mistake known"),
    (ghost_attention.training_example, lambda *given: ([1, 2, 3], [True]), "like no mistake known"),
    # the library's own ablations
    (
        ghost_attention.training_example,
        partial(library_example, loss_on="all"),
        "the values .* the loss is on all answers",
    ),
    (ghost_attention.training_example, lambda *g: library_example(*g, "everything"), "like no"),
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


def test_the_library_itself_refuses_the_masks_that_it_can_tell():
    turns = [([11, 12], [21, 22]), ([13], [23])]
    refused = set()
    for name, wrong in sft.MASK_MISTAKES.items():
        try:
            check_example(wrong(turns, sft.BOS, sft.EOS))
        except ValueError:
            refused.add(name.split(",")[0].split(":")[0])
    assert refused == {
        "everything is a target", "BOS is a target", "the mask is upside down",
        "nothing is a target",
    }  # fmt: skip
    check_example(by_encode_example(turns, sft.BOS, sft.EOS))
