"""Checks of pretraining (paper section 2), and the mistakes they recognise.

The loss, packing and accumulation, then the optimiser: AdamW, what decays, clipping, the schedule.
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.teaching.check import CheckFailed, Code, diagnose, diagnose_choice, on, parts, slips
from llama2_lib.training.batches import isolate
from llama2_lib.training.optim import warmup_then_cosine

WRONG_SCORES = """
the loss is in bits, not in nats || log_softmax(-1) => log_softmax(-1) / torch.tensor(2.0).log()
logits are used as if they were log-probabilities (no softmax) || logits.log_softmax(-1) => logits
the probability is taken without its logarithm || log_softmax => softmax
the softmax is taken twice; cross_entropy wants raw logits
    || log_softmax(-1) => softmax(-1).log_softmax(-1)
the softmax runs over the positions, not over the vocabulary || log_softmax(-1) => log_softmax(1)
"""
"""What is wrong in the same words before and after fine-tuning."""


def _next_token(logits: Tensor, ids: Tensor) -> Tensor:
    scores = logits.log_softmax(-1)
    return -scores.gather(-1, ids[:, 1:, None]).mean()


NEXT_TOKEN_MISTAKES = slips(_next_token)(WRONG_SCORES) | slips(_next_token)("""
each position is scored on its own token, not on the next || ids[:, 1:, None] => ids[:, :-1, None]
the loss is summed, not averaged over the tokens || .mean() => .sum()
the sum is divided by the rows, not by the tokens || .mean() => .sum() / len(ids)
the sign is wrong: this is the log-likelihood || -scores => scores
the targets are shifted twice, so each position is scored on the token after the next
    || logits.log_softmax => logits[:, :-1].log_softmax ;; ids[:, 1: => ids[:, 2:
the probabilities are averaged before the logarithm
    || -scores.exp().gather(-1, ids[:, 1:, None]).mean().log()
this is the perplexity; its logarithm is the loss
    || (-scores.gather(-1, ids[:, 1:, None]).mean()).exp()
""")


def next_token(candidate: Code) -> None:
    """Check `candidate(logits, ids)`: nats per token; `ids` is one longer than the logits."""
    generator = rng.generator(0, "check", "next token")
    logits = 2 * torch.randn(3, 6, 11, generator=generator)
    ids = torch.randint(11, (3, 7), generator=generator)
    diagnose(on(logits, ids), candidate, _next_token(logits, ids), NEXT_TOKEN_MISTAKES)


def _packed(logits: Tensor, ids: Tensor, document: Tensor) -> Tensor:
    nats = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    keep = document[:, 1:] == document[:, :-1]
    return (nats * keep).sum() / keep.sum()


PACKED_MISTAKES = slips(_packed)("""
the first token of a document is counted, though nothing of it comes before
    || document[:, 1:] == document[:, :-1] => torch.ones_like(nats)
the mask is one too early: the last token of a document is left out, not the first
    || document[:, 1:] == document[:, :-1]
    => F.pad(document[:, 2:] == document[:, 1:-1], (0, 1), value=True)
what is left out is still counted in the divisor || (nats * keep).mean()
each row is averaged by itself, so a token of a row with fewer targets weighs more
    || ((nats * keep).sum(1) / keep.sum(1)).mean()
the mask is upside down || == => !=
the sign is wrong: this is the log-likelihood || return => return -
the loss is summed, not averaged over the counted tokens || (nats * keep).sum()
""")


def packed_loss(candidate: Code) -> None:
    """Check `candidate(logits, ids, document)`: nats per token that has a token of its own
    document before it."""
    generator = rng.generator(0, "check", "packed loss")
    logits = 2 * torch.randn(2, 9, 7, generator=generator)
    ids = torch.randint(7, (2, 10), generator=generator)
    document = torch.tensor([[4, 4, 4, 9, 9, 9, 9, 9, 9, 9], [0, 0, 2, 2, 5, 5, 5, 1, 1, 1]])
    expected = _packed(logits, ids, document)
    diagnose(on(logits, ids, document), candidate, expected, PACKED_MISTAKES)


def _rows(documents: Sequence[Sequence[int]], seq_len: int) -> Tensor:
    stream = torch.tensor([id for document in documents for id in document])
    return stream.unfold(0, seq_len + 1, seq_len)


PACK_MISTAKES = slips(_rows)("""
rows share no token, so the first token of each row is never a target
    || + 1, seq_len) => + 1, seq_len + 1)
rows overlap by two tokens, so that some tokens are targets twice || , seq_len) => , seq_len - 1)
rows are seq_len long, so the last position has no target || seq_len + 1, => seq_len,
each document has a row of its own: short ones are padded, long ones are cut || torch.tensor(
    [[*document, *[0] * (seq_len + 1)][: seq_len + 1] for document in documents])
the documents come in reverse order || in documents for => in documents[::-1] for
""")


def pack(candidate: Code) -> None:
    """Check `candidate(documents, seq_len)`: rows of seq_len + 1 ids, each beginning with the
    last token of the row before; what does not fill a row is left out."""
    ids = iter(range(1, 39))
    documents = [list(islice(ids, length)) for length in (7, 3, 11, 2, 9, 6)]
    run = on(documents, 5, then=lambda rows: torch.as_tensor(rows).tolist())
    diagnose_choice(run, candidate, _rows, PACK_MISTAKES, "the rows are not right")


def _isolated(document: Tensor) -> tuple[Tensor, Tensor]:
    positions, visible = isolate(document)
    return positions, visible


ISOLATE_MISTAKES = slips(_isolated)("""
positions run on through the pack instead of restarting
    || torch.arange(positions.shape[1]).expand_as(positions), visible
positions begin at 1 || positions + 1, visible
tokens see the later tokens of their document: the causal part is missing
    || positions, visible | visible.mT
tokens see the documents before theirs: only the causal part is there
    || positions, torch.ones_like(visible).tril()
a token does not see itself || positions, visible.tril(-1)
the mask is transposed: the row must be who looks || positions, visible.mT
the mask is upside down: True must be what may be seen || positions, ~visible
everything is visible: there is no mask || positions, torch.ones_like(visible)
""")


def isolation(candidate: Code) -> None:
    """Check `candidate(document)`: rotary positions, and what may be seen (row looks at column)."""
    document = torch.tensor([[3, 3, 3, 3, 0, 0, 8, 8, 8], [5, 1, 1, 1, 1, 1, 1, 4, 4]])
    shapes = (2, 9), (2, 9, 9)
    run = on(document, then=lambda both: torch.cat([p.flatten() for p in parts(both, *shapes)]))
    diagnose(run, candidate, run(isolate), ISOLATE_MISTAKES, rtol=0, atol=0)


def _gathered(gradients: list[Tensor], counts: Sequence[int]) -> Tensor:
    return torch.stack(gradients).sum(0) / sum(counts)


GATHER_MISTAKES = slips(_gathered)("""
the mean of the micro-batches' means is taken, so short ones weigh too much
    || torch.stack([g / n for g, n in zip(gradients, counts)]).mean(0)
the means of the micro-batches are added, which makes the step as many times too large
    || sum(g / n for g, n in zip(gradients, counts))
the sum is divided by the number of micro-batches, not of tokens || torch.stack(gradients).mean(0)
only the last micro-batch counts: the gradient is cleared between them || gradients[-1] / counts[-1]
each gradient is multiplied by its count, though it is a sum already
    || sum(g * n for g, n in zip(gradients, counts)) / sum(counts)
the sum is not divided at all || torch.stack(gradients).sum(0)
""")


def accumulation(candidate: Code) -> None:
    """Check `candidate(gradients, counts)`: the gradient of one step from the gradients of
    summed losses and the tokens that each of them counted."""
    gradients = list(torch.randn(3, 4, 5, generator=rng.generator(0, "check", "accumulation")))
    counts = [12, 3, 7]
    run = on(gradients, counts)
    diagnose(run, candidate, run(_gathered), GATHER_MISTAKES)


STEPS, LR, BETAS, EPS, DECAY = 4, 0.05, (0.9, 0.95), 1e-2, 0.5
"""Unlike the paper's eps and decay, these are large enough to show in four steps."""


def _adamw(
    p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float,
    betas: tuple[float, float], eps: float, weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of AdamW, step counted from 1."""
    b1, b2 = betas
    m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad * grad
    m_hat, v_hat = m / (1 - b1**step), v / (1 - b2**step)
    p = p * (1 - lr * weight_decay)
    return p - lr * m_hat / (v_hat.sqrt() + eps), m, v


UPDATE_MISTAKES = slips(_adamw)("""
the averages are not corrected for their start at zero
    || m / (1 - b1**step), v / (1 - b2**step) => m, v
the decay is added to the gradient, as in Adam with L2, not taken off the weights
    || b1, b2 = betas => b1, b2, grad = *betas, grad + weight_decay * p ;; lr * weight_decay => 0
the decay is not multiplied by the learning rate || lr * weight_decay => weight_decay
there is no decay || lr * weight_decay => 0
eps is missing || + eps =>
the decay comes after the step and shrinks the step as well || p = p * (1 - lr * weight_decay) =>
    ;; (p - lr * m_hat / (v_hat.sqrt() + eps)) * (1 - lr * weight_decay), m, v
eps stands inside the root || v_hat.sqrt() + eps => (v_hat + eps).sqrt()
the second average is used without its root || v_hat.sqrt() + eps => v_hat
beta 1 and beta 2 are exchanged || b1, b2 = betas => b2, b1 = betas
""")


def adamw_step(candidate: Code) -> None:
    """Check `candidate(p, grad, m, v, step, lr, betas, eps, weight_decay)` over four steps.

    It returns the new p, m and v; `step` counts from 1. The reference is PyTorch's AdamW.
    """
    start, *gradients = torch.randn(STEPS + 1, 3, 5, generator=rng.generator(0, "check", "adamw"))
    weight = nn.Parameter(start.clone())
    reference = torch.optim.AdamW([weight], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for gradient in gradients:
        weight.grad = gradient
        reference.step()

    def run(update: Code) -> Tensor:
        p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for step, gradient in enumerate(gradients, start=1):
            p, m, v = update(p, gradient.clone(), m, v, step, LR, BETAS, EPS, DECAY)
        return p

    diagnose(run, candidate, weight, UPDATE_MISTAKES)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    decaying = {name for name, p in named if p.dim() >= 2}
    return [
        {"params": [p for name, p in named if name in decaying], "weight_decay": 0.1},
        {"params": [p for name, p in named if name not in decaying], "weight_decay": 0.0},
    ]


GROUP_MISTAKES = slips(_groups)("""
everything decays, the gains of the norms too || if p.dim() >= 2 =>
nothing decays || p.dim() >= 2 => False
the two groups are exchanged: gains decay, matrices do not || >= 2 => < 2
the final norm is missed: its name does not end in _norm
    || p.dim() >= 2 => not name.endswith("_norm.weight")
the embedding table does not decay; it is a matrix like the others
    || p.dim() >= 2 => p.dim() >= 2 and "embeddings" not in name
some parameters are in no group, so they are never trained || _groups(model)[:1]
""")


def decay_groups(candidate: Code) -> None:
    """Check `candidate(model)`: groups for AdamW; matrices decay by 0.1, gains of norms do not."""
    config = ModelConfig(vocab_size=31, dim=24, n_layers=2, n_heads=3, n_kv_heads=1, multiple_of=5)
    model = Transformer(config)

    names = {id(p): name for name, p in model.named_parameters()}

    def run(grouped: Code) -> dict[str, float]:
        listed = [
            (names[id(p)], float(group["weight_decay"]))
            for group in grouped(model)
            for p in group["params"]
        ]
        if len(dict(listed)) < len(listed):
            raise CheckFailed("a parameter stands in two groups; each must be updated once.")
        return dict(sorted(listed))

    diagnose_choice(run, candidate, _groups, GROUP_MISTAKES, "the groups are not right")


def _clipped(gradients: Sequence[Tensor], limit: float) -> tuple[list[Tensor], Tensor]:
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    factor = limit / norm if norm > limit else 1.0
    return [gradient * factor for gradient in gradients], norm


CLIP_MISTAKES = slips(_clipped)("""
each tensor is clipped by its own norm, which bends the direction
    || [_clipped([gradient], limit)[0][0] for gradient in gradients], norm
each number is cut off at the limit, which bends the direction
    || gradient * factor => gradient.clamp(-limit, limit)
small gradients are stretched to the limit; they must stay || if norm > limit else 1.0 =>
the norm is a sum of sizes, not the root of a sum of squares || .norm() => .norm(1.0)
the norm is the largest number, not the root of a sum of squares || .norm() => .norm(math.inf)
nothing is clipped || list(gradients), norm
the norm returned is that after clipping; the one before tells of trouble
    || (clipped := _clipped(gradients, limit)[0]), _clipped(clipped, limit)[1]
""")


def clipping(candidate: Code) -> None:
    """Check `candidate(gradients, limit)`: the list scaled to a common norm of at most `limit`,
    and the norm before. Tried on a large and on a small gradient."""
    generator = rng.generator(0, "check", "clipping")
    large = [3 * torch.randn(shape, generator=generator) for shape in [(4, 3), (5,), (2, 2)]]
    both = [large, [0.01 * gradient for gradient in large]]

    def run(clip: Code) -> Tensor:
        parts: list[Tensor] = []
        for gradients in both:  # clipping in place is allowed, as PyTorch's own does
            clipped, norm = clip([gradient.clone() for gradient in gradients], 1.0)
            parts += [*(g.flatten() for g in clipped), torch.as_tensor(norm).flatten().float()]
        return torch.cat(parts)

    diagnose(run, candidate, run(_clipped), CLIP_MISTAKES)


def _rate(index: int, peak: float, steps: int, warmup: int, floor: float) -> float:
    """A line, then half a cosine."""
    if index < warmup:
        return peak * (index + 1) / (warmup + 1)
    progress = min(1.0, (index - warmup) / (steps - 1 - warmup))
    wave = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (floor + (1 - floor) * wave)


RATE_MISTAKES = slips(_rate)("""
the cosine falls to zero, not to the floor || peak * wave
the floor cuts the cosine off, instead of the cosine ending there || max(peak * wave, floor * peak)
the floor is taken as a rate, not as a fraction of the peak || floor + (1 - floor) * wave
    => floor / peak + (1 - floor / peak) * wave
the first step has rate 0 and learns nothing || (index + 1) / (warmup + 1) => index / warmup
there is no warm-up || if index < warmup => if index < (warmup := 0)
the cosine starts at step 0, not where the warm-up ends, so the rate drops there
    || (index - warmup) / (steps - 1 - warmup) => index / (steps - 1)
the last step is one short of the floor || steps - 1 - warmup => steps - warmup
the cosine runs through a whole wave and comes back to the peak || math.pi => 2 * math.pi
the rate falls along a line, not a cosine || math.cos(math.pi * progress) => 1 - 2 * progress
""")


def schedule(candidate: Code) -> None:
    """Check `candidate(index, peak, steps, warmup, floor)`: a line up to `peak` at step `warmup`,
    the first step at peak / (warmup + 1), then half a cosine to `floor * peak` at the last."""
    lr_at = warmup_then_cosine(peak=3.0, steps=40, warmup=6, floor=0.2)

    def run(rate: Code) -> Tensor:
        return torch.tensor([float(rate(index, 3.0, 40, 6, 0.2)) for index in range(40)])

    diagnose(run, candidate, torch.tensor([lr_at(index) for index in range(40)]), RATE_MISTAKES)
