"""Every known mistake in pretraining is rejected and named; right code passes."""

import math

import pytest
import torch
from torch import nn

from llama2_lib.objectives.language import masked_loss, next_token_loss
from llama2_lib.teaching import optimizer, pretraining
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.training.batches import isolate
from llama2_lib.training.schedule import adamw, warmup_then_cosine


def cases(*pairs):
    return [
        pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
        for check, mistakes in pairs
        for name, wrong in mistakes.items()
    ]


@pytest.mark.parametrize(
    ("check", "name", "wrong"),
    cases(
        (pretraining.next_token, pretraining.NEXT_TOKEN_MISTAKES),
        (pretraining.packed_loss, pretraining.PACKED_MISTAKES),
        (pretraining.pack, pretraining.PACK_MISTAKES),
        (pretraining.isolation, pretraining.ISOLATE_MISTAKES),
        (pretraining.accumulation, pretraining.GATHER_MISTAKES),
        (optimizer.adamw_step, optimizer.UPDATE_MISTAKES),
        (optimizer.decay_groups, optimizer.GROUP_MISTAKES),
        (optimizer.clipping, optimizer.CLIP_MISTAKES),
        (optimizer.schedule, optimizer.RATE_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


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


def test_right_derivations_of_loss_and_packing_pass():
    for right in (logsumexp_loss, library_loss):
        pretraining.next_token(right)
    for right in (token_by_token, library_packed_loss):
        pretraining.packed_loss(right)
    pretraining.pack(pack_by_hand)
    for right in (isolate, isolate_by_hand):
        pretraining.isolation(right)
    pretraining.accumulation(lambda g, n: sum(a / sum(n) for a in g))


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


def test_right_derivations_of_the_optimiser_pass():
    optimizer.adamw_step(adamw_as_in_the_paper_of_adam)
    for right in (by_name, lambda model: adamw(model, weight_decay=0.1).param_groups):
        optimizer.decay_groups(right)
    for right in (torch_clip, clip_by_hand):
        optimizer.clipping(right)
    optimizer.schedule(rate_by_hand)
    optimizer.schedule(
        lambda index, peak, steps, warmup, floor: warmup_then_cosine(
            peak=peak, steps=steps, warmup=warmup, floor=floor
        )(index)
    )


def test_what_is_no_known_mistake_is_rejected_as_well():
    with pytest.raises(CheckFailed, match="like no mistake known"):
        pretraining.next_token(lambda logits, ids: 3 * library_loss(logits, ids))
    with pytest.raises(CheckFailed, match=r"expected shape \(7, 6\); got \(5, 5\)"):
        pretraining.pack(lambda documents, seq_len: torch.zeros(5, 5))
    with pytest.raises(CheckFailed, match="expected shapes"):
        pretraining.isolation(lambda document: (document, document))
    with pytest.raises(CheckFailed, match="stands in two groups"):
        optimizer.decay_groups(lambda model: [*by_name(model), by_name(model)[0]])
    with pytest.raises(CheckFailed, match=r"another amount than wanted: \['tok_embeddings"):
        optimizer.decay_groups(
            lambda model: [{"params": list(model.parameters()), "weight_decay": 0.3}]
        )
