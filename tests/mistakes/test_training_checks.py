"""Right code of pretraining and fine-tuning passes; what is wrong otherwise is told."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llama2_lib.objectives.language import masked_loss, next_token_loss
from llama2_lib.stages.ghost_attention import ghost_example, on_every_turn, on_first_turn_only
from llama2_lib.teaching import ghost_attention, pretraining, sft
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.text.dialog import encode_example, encode_prompt
from llama2_lib.training.batches import PackedDialogs, check_example, isolate
from llama2_lib.training.optim import adamw, warmup_then_cosine


def logsumexp_loss(logits, ids):
    right = logits.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (logits.logsumexp(-1) - right).mean()


def library_loss(logits, ids):
    term = next_token_loss(logits, ids)
    return term.total / term.count


def library_packed_loss(logits, ids, document):
    marked = torch.zeros_like(ids, dtype=torch.bool)
    marked[:, 1:] = document[:, 1:] == document[:, :-1]
    term = masked_loss(logits, ids, marked)
    return term.total / term.count


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


def torch_clip(gradients, limit):
    parameters = [nn.Parameter(g) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return [p.grad for p in parameters], norm


def clip_by_hand(gradients, limit):
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    return [g / max(1.0, norm / limit) for g in gradients], norm


def rate_by_hand(index, peak, steps, warmup, floor):
    if index <= warmup:
        return peak * (index + 1) / (warmup + 1)
    angle = math.pi / 2 * (index - warmup) / (steps - 1 - warmup)
    return peak * (math.cos(angle) ** 2 + floor * math.sin(angle) ** 2)


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


def by_state(turns, bos, eos):
    """A token is a target if the answer has begun, and it has at the end of the prompt."""
    ids = [t for prompt, answer in turns for t in (bos, *prompt, *answer, eos)]
    prompts = {token for prompt, _ in turns for token in prompt}
    return ids, [token != bos and token not in prompts for token in ids]


def library_masked_loss(logits, ids, mask):
    term = masked_loss(logits, ids, mask)
    return term.total / term.count


def by_selection(logits, ids, mask):
    chosen = mask[:, 1:]
    return -logits[chosen].log_softmax(-1).gather(1, ids[:, 1:][chosen][:, None]).mean()


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


def by_hand(turns, instruction, sampled, bos, eos):
    ids = [bos, *instruction]
    for user, plain in turns[:-1]:
        ids += [*user, *plain, eos, bos]
    ids += [*turns[-1][0]]
    tail = [*sampled, eos]
    return ids + tail, [False] * len(ids) + [True] * len(tail)


def teacher_by_hand(turns, instruction, bos, eos):
    ids = []
    for user, plain in turns:
        ids += [bos, *instruction, *user, *plain, eos]
    return ids[: -1 - len(turns[-1][1])]


def library_rate(index, peak, steps, warmup, floor):
    return warmup_then_cosine(peak=peak, steps=steps, warmup=warmup, floor=floor)(index)


RIGHT = {
    pretraining.next_token: [logsumexp_loss, library_loss],
    pretraining.packed_loss: [token_by_token, library_packed_loss],
    pretraining.pack: [pack_by_hand],
    pretraining.isolation: [isolate, isolate_by_hand],
    pretraining.accumulation: [lambda g, n: sum(a / sum(n) for a in g)],
    pretraining.adamw_step: [adamw_as_in_the_paper_of_adam],
    pretraining.decay_groups: [by_name, lambda model: adamw(model, weight_decay=0.1).param_groups],
    pretraining.clipping: [torch_clip, clip_by_hand],
    pretraining.schedule: [rate_by_hand, library_rate],
    sft.loss_mask: [by_encode_example, by_places, by_state],
    sft.masked_loss: [library_masked_loss, by_selection, by_ignored_labels],
    sft.packed_row: [row_by_concatenation, in_given_order],
    ghost_attention.teacher_prompt: [library_prompt, teacher_by_hand],
    ghost_attention.training_example: [library_example, by_hand],
}
WRONG = [
    (pretraining.next_token, lambda *given: 3 * library_loss(*given), "like no mistake known"),
    (pretraining.pack, lambda *_: torch.zeros(5, 5), r"expected shape \(7, 6\); got \(5, 5\)"),
    (pretraining.isolation, lambda document: (document, document), "expected shapes"),
    (
        pretraining.decay_groups,
        lambda model: [*by_name(model), by_name(model)[0]],
        "stands in two groups",
    ),
    (
        pretraining.decay_groups,
        lambda model: [{"params": list(model.parameters()), "weight_decay": 0.3}],
        r"another amount than wanted: \['tok_embeddings",
    ),
    (sft.masked_loss, lambda *given: 3 * library_masked_loss(*given), "like no mistake known"),
    (sft.loss_mask, lambda turns, bos, eos: ([bos], [False]), "the ids must be"),
    (
        sft.loss_mask,
        lambda turns, bos, eos: (by_places(turns, bos, eos)[0], [True, False]),
        "expected shape",
    ),
    (
        sft.packed_row,
        lambda examples, length: row_by_concatenation(examples, length + 1),
        r"three tensors of shape \(28,\)",
    ),
    (ghost_attention.teacher_prompt, lambda *given: [7, 8, 9], "like no mistake known"),
    (ghost_attention.teacher_prompt, lambda *given: [1] * 200, "at most"),
    (ghost_attention.training_example, lambda *given: ([1, 2, 3], [True]), "as long as the ids"),
    # the library's own ablations
    (
        ghost_attention.training_example,
        lambda *given: library_example(*given, loss_on="all"),
        "the values .* the loss is on all answers",
    ),
    (
        ghost_attention.training_example,
        lambda *given: library_example(*given, loss_on="everything"),
        "the values",
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
