"""Checks of pretraining (paper section 2), and the mistakes they recognise.

The loss, packing and accumulation, then the optimiser: AdamW, what decays, clipping, the schedule.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, diagnose, flawed, on, recognise
from llama2_lib.training.batches import isolate
from llama2_lib.training.optim import warmup_then_cosine


def token_loss(
    logits: Tensor, ids: Tensor, mask: Tensor, *, pad: int = -1, flaw: str = ""
) -> Tensor:
    """Return nats per target, with the flaw that is asked for; mask[t] says that t is a target."""
    right, marked, after = logits.log_softmax(-1), mask[:, 1:], ids[:, 1:]
    scores = {
        "bits": right / math.log(2),
        "negative": -right,
        "logits": logits,
        "probability": logits.softmax(-1),
        "1 - probability": logits.softmax(-1) - 1,
        "softmax twice": logits.softmax(-1).log_softmax(-1),
        "over positions": logits.log_softmax(1),
    }
    targets = {
        "own": ids[:, :-1],
        "own and shifted": ids[:, :-1],
        "padding learned": after * marked,
    }
    counted = {
        "all": torch.ones_like(marked),
        "padding learned": torch.ones_like(marked),
        "upside down": ~marked,
        "unshifted": mask[:, :-1],
        "own": mask[:, :-1],
        "shifted twice": F.pad(mask[:, 2:], (0, 1)),
        "early": F.pad(mask[:, 2:], (0, 1), value=True),
        "padding": marked | (after == pad),
    }
    keep = counted.get(flaw, marked)
    picked = scores.get(flaw, right).gather(-1, targets.get(flaw, after)[..., None])[..., 0]
    losses = -picked * keep
    if flaw == "each row":
        return (losses.sum(1) / keep.sum(1)).mean()
    divisors = {"tokens": keep.numel(), "rows": len(ids), "none": 1}
    return losses.sum() / divisors.get(flaw, keep.sum())


WRONG_SCORES = {
    "the loss is in bits, not in nats": "bits",
    "logits are used as if they were log-probabilities (no softmax)": "logits",
    "the probability is taken without its logarithm": "probability",
    "the softmax is taken twice; cross_entropy wants raw logits": "softmax twice",
    "the softmax runs over the positions, not over the vocabulary": "over positions",
}
"""What is wrong in the same words before and after fine-tuning."""


def _next_token(logits: Tensor, ids: Tensor, flaw: str = "") -> Tensor:
    return token_loss(logits, ids, torch.ones_like(ids, dtype=torch.bool), flaw=flaw)


NEXT_TOKEN_MISTAKES = flawed(
    _next_token,
    flaw={
        **WRONG_SCORES,
        "each position is scored on its own token, not on the next": "own",
        "the loss is summed, not averaged over the tokens": "none",
        "the sum is divided by the rows, not by the tokens": "rows",
        "the sign is wrong: this is the log-likelihood": "negative",
    },
) | {
    "the targets are shifted twice, so each position is scored on the token after the next": (
        lambda logits, ids: _next_token(logits[:, :-1], ids[:, 1:])
    ),
    "the probabilities are averaged before the logarithm": lambda logits, ids: (
        -(-_next_token(logits, ids, "probability")).log()
    ),
    "this is the perplexity; its logarithm is the loss": lambda logits, ids: _next_token(
        logits, ids
    ).exp(),
}


def next_token(candidate: Code) -> None:
    """Check `candidate(logits, ids)`: nats per token; `ids` is one longer than the logits."""
    generator = rng.generator(0, "check", "next token")
    logits = 2 * torch.randn(3, 6, 11, generator=generator)
    ids = torch.randint(11, (3, 7), generator=generator)
    diagnose(on(logits, ids), candidate, _next_token(logits, ids), NEXT_TOKEN_MISTAKES)


def _packed(logits: Tensor, ids: Tensor, document: Tensor, flaw: str = "") -> Tensor:
    same = F.pad(document[:, 1:] == document[:, :-1], (1, 0))
    return token_loss(logits, ids, same, flaw=flaw)


PACKED_MISTAKES = flawed(
    _packed,
    flaw={
        "the first token of a document is counted, though nothing of it comes before": "all",
        "the mask is one too early: the last token of a document is left out, not the first": (
            "early"
        ),
        "what is left out is still counted in the divisor": "tokens",
        "each row is averaged by itself, so a token of a row with fewer targets weighs more": (
            "each row"
        ),
        "the mask is upside down": "upside down",
        "the sign is wrong: this is the log-likelihood": "negative",
        "the loss is summed, not averaged over the counted tokens": "none",
    },
)


def packed_loss(candidate: Code) -> None:
    """Check `candidate(logits, ids, document)`: nats per token that has a token of its own
    document before it."""
    generator = rng.generator(0, "check", "packed loss")
    logits = 2 * torch.randn(2, 9, 7, generator=generator)
    ids = torch.randint(7, (2, 10), generator=generator)
    document = torch.tensor([[4, 4, 4, 9, 9, 9, 9, 9, 9, 9], [0, 0, 2, 2, 5, 5, 5, 1, 1, 1]])
    expected = _packed(logits, ids, document)
    diagnose(on(logits, ids, document), candidate, expected, PACKED_MISTAKES)


def _rows(
    documents: Sequence[Sequence[int]], seq_len: int, *, stride: int = 0, width: int = 1
) -> Tensor:
    """Return rows `seq_len + width` long that begin every `seq_len + stride` tokens."""
    stream = torch.tensor([id for document in documents for id in document])
    return stream.unfold(0, seq_len + width, seq_len + stride)


PACK_MISTAKES = flawed(
    _rows,
    stride={
        "rows share no token, so the first token of each row is never a target": 1,
        "rows overlap by two tokens, so that some tokens are targets twice": -1,
    },
    width={"rows are seq_len long, so the last position has no target": 0},
) | {
    "each document has a row of its own: short ones are padded, long ones are cut": (
        lambda documents, seq_len: torch.tensor(
            [[*document, *[0] * (seq_len + 1)][: seq_len + 1] for document in documents]
        )
    ),
    "the documents come in reverse order": lambda documents, seq_len: _rows(
        documents[::-1], seq_len
    ),
}


def pack(candidate: Code) -> None:
    """Check `candidate(documents, seq_len)`: rows of seq_len + 1 ids, each beginning with the
    last token of the row before; what does not fill a row is left out."""
    ids = iter(range(1, 39))
    documents = [list(islice(ids, length)) for length in (7, 3, 11, 2, 9, 6)]
    run = on(documents, 5)
    rows = run(candidate)
    if isinstance(rows, Tensor):  # mistakes differ in shape: the name says more
        words = "the rows are not right: "
        recognise(lambda wrong: torch.equal(rows, run(wrong)), PACK_MISTAKES, words)
    diagnose(run, candidate, _rows(documents, 5), {}, rtol=0, atol=0)


ISOLATE_MISTAKES = flawed(
    lambda document, positions: (positions(isolate(document)[0]), isolate(document)[1]),
    positions={
        "positions run on through the pack instead of restarting": (
            lambda right: torch.arange(right.shape[1]).expand_as(right)
        ),
        "positions begin at 1": lambda right: right + 1,
    },
) | flawed(
    lambda document, visible: (isolate(document)[0], visible(isolate(document)[1])),
    visible={
        "tokens see the later tokens of their document: the causal part is missing": (
            lambda right: right | right.mT
        ),
        "tokens see the documents before theirs: only the causal part is there": (
            lambda right: torch.ones_like(right).tril()
        ),
        "a token does not see itself": lambda right: right.tril(-1),
        "the mask is transposed: the row must be who looks": lambda right: right.mT,
        "the mask is upside down: True must be what may be seen": torch.logical_not,
        "everything is visible: there is no mask": torch.ones_like,
    },
)


def isolation(candidate: Code) -> None:
    """Check `candidate(document)`: rotary positions, and what may be seen (row looks at column)."""
    document = torch.tensor([[3, 3, 3, 3, 0, 0, 8, 8, 8], [5, 1, 1, 1, 1, 1, 1, 4, 4]])

    def run(function: Code) -> Tensor:
        positions, visible = on(document)(function)
        shapes = tuple(positions.shape), tuple(visible.shape)
        if shapes != ((2, 9), (2, 9, 9)):
            raise CheckFailed(
                f"expected shapes (2, 9) and (2, 9, 9); got {shapes[0]} and {shapes[1]}."
            )
        return torch.cat([positions.flatten(), visible.flatten()]).long()

    diagnose(run, candidate, run(isolate), ISOLATE_MISTAKES, rtol=0, atol=0)


GATHER_MISTAKES: Mistakes = {
    "the mean of the micro-batches' means is taken, so short ones weigh too much": lambda g, n: (
        torch.stack([a / b for a, b in zip(g, n, strict=True)]).mean(0)
    ),
    "the means of the micro-batches are added, which makes the step as many times too large": (
        lambda g, n: torch.stack([a / b for a, b in zip(g, n, strict=True)]).sum(0)
    ),
    "the sum is divided by the number of micro-batches, not of tokens": lambda g, n: torch.stack(
        list(g)
    ).mean(0),
    "only the last micro-batch counts: the gradient is cleared between them": lambda g, n: (
        g[-1] / n[-1]
    ),
    "each gradient is multiplied by its count, though it is a sum already": lambda g, n: (
        torch.stack([a * b for a, b in zip(g, n, strict=True)]).sum(0) / sum(n)
    ),
    "the sum is not divided at all": lambda g, n: torch.stack(list(g)).sum(0),
}


def accumulation(candidate: Code) -> None:
    """Check `candidate(gradients, counts)`: the gradient of one step from the gradients of
    summed losses and the tokens that each of them counted."""
    gradients = list(torch.randn(3, 4, 5, generator=rng.generator(0, "check", "accumulation")))
    counts = [12, 3, 7]
    expected = torch.stack(gradients).sum(0) / sum(counts)
    diagnose(on(gradients, counts), candidate, expected, GATHER_MISTAKES)


STEPS, LR, BETAS, EPS, DECAY = 4, 0.05, (0.9, 0.95), 1e-2, 0.5
"""Unlike the paper's eps and decay, these are large enough to show in four steps."""


def _adamw(
    p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float,
    betas: tuple[float, float], eps: float, weight_decay: float, *, flaw: str = "",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of AdamW, step counted from 1, with the flaw that is asked for."""
    b1, b2 = betas[::-1] if flaw == "exchanged" else betas
    if flaw == "L2":
        grad = grad + weight_decay * p
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad * grad
    m_hat, v_hat = (m, v) if flaw == "uncorrected" else (m / (1 - b1**step), v / (1 - b2**step))
    sizes = {"no eps": v_hat.sqrt(), "eps inside": (v_hat + eps).sqrt(), "no root": v_hat}
    shrink = {"L2": 0.0, "no decay": 0.0, "after": 0.0, "without lr": weight_decay}
    p = p * (1 - shrink.get(flaw, lr * weight_decay))
    p = p - lr * m_hat / sizes.get(flaw, v_hat.sqrt() + eps)
    return p * (1 - lr * weight_decay) if flaw == "after" else p, m, v


UPDATE_MISTAKES = flawed(
    _adamw,
    flaw={
        "the averages are not corrected for their start at zero": "uncorrected",
        "the decay is added to the gradient, as in Adam with L2, not taken off the weights": "L2",
        "the decay is not multiplied by the learning rate": "without lr",
        "there is no decay": "no decay",
        "eps is missing": "no eps",
        "the decay comes after the step and shrinks the step as well": "after",
        "eps stands inside the root": "eps inside",
        "the second average is used without its root": "no root",
        "beta 1 and beta 2 are exchanged": "exchanged",
    },
)


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


def _groups(
    model: nn.Module, decays: Callable[[str, Tensor], bool] = lambda name, p: p.dim() >= 2
) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": 0.1},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]


GROUP_MISTAKES = flawed(
    _groups,
    decays={
        "everything decays, the gains of the norms too": lambda name, p: True,
        "nothing decays": lambda name, p: False,
        "the two groups are exchanged: gains decay, matrices do not": lambda name, p: p.dim() < 2,
        "the final norm is missed: its name does not end in _norm": (
            lambda name, p: not name.endswith("_norm.weight")
        ),
        "the embedding table does not decay; it is a matrix like the others": (
            lambda name, p: p.dim() >= 2 and "embeddings" not in name
        ),
    },
) | {
    "some parameters are in no group, so they are never trained": lambda model: _groups(model)[:1],
}


def decay_groups(candidate: Code) -> None:
    """Check `candidate(model)`: groups for AdamW; matrices decay by 0.1, gains of norms do not."""
    config = ModelConfig(vocab_size=31, dim=24, n_layers=2, n_heads=3, n_kv_heads=1, multiple_of=5)
    model = Transformer(config)

    def decay(groups: Sequence[dict[str, Any]]) -> dict[int, float]:
        listed = [(id(p), float(g["weight_decay"])) for g in groups for p in g["params"]]
        if len(dict(listed)) < len(listed):
            raise CheckFailed("a parameter stands in two groups; each must be updated once.")
        return dict(listed)

    actual = decay(list(candidate(model)))
    if actual == decay(_groups(model)):
        return
    words = "the groups are not right: "
    recognise(lambda wrong: actual == decay(wrong(model)), GROUP_MISTAKES, words)
    names = [n for n, p in model.named_parameters() if actual.get(id(p)) != 0.1 * (p.dim() >= 2)]
    raise CheckFailed(f"these parameters decay by another amount than wanted: {names[:3]}.")


def _norm(gradients: Sequence[Tensor], power: float = 2.0) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients]).norm(power)


def _clipped(
    gradients: Sequence[Tensor], limit: float, *, power: float = 2.0, always: bool = False
) -> tuple[list[Tensor], Tensor]:
    norm = _norm(gradients, power)
    factor = limit / norm if always or norm > limit else 1.0
    return [gradient * factor for gradient in gradients], norm


CLIP_MISTAKES: Mistakes = {
    "each tensor is clipped by its own norm, which bends the direction": lambda g, limit: (
        ([_clipped([gradient], limit)[0][0] for gradient in g], _norm(g))
    ),
    "each number is cut off at the limit, which bends the direction": lambda g, limit: (
        ([gradient.clamp(-limit, limit) for gradient in g], _norm(g))
    ),
    "small gradients are stretched to the limit; they must stay": partial(_clipped, always=True),
    "the norm is a sum of sizes, not the root of a sum of squares": partial(_clipped, power=1.0),
    "the norm is the largest number, not the root of a sum of squares": partial(
        _clipped, power=math.inf
    ),
    "nothing is clipped": lambda g, limit: (list(g), _norm(g)),
    "the norm returned is that after clipping; the one before tells of trouble": lambda g, limit: (
        (_clipped(g, limit)[0], _norm(_clipped(g, limit)[0]))
    ),
}


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


def _rate(
    index: int, peak: float, steps: int, warmup: int, floor: float, *, flaw: str = ""
) -> float:
    """A line, then half a cosine, with the flaw that is asked for."""
    warmup = 0 if flaw == "no warm-up" else warmup
    low = {"to zero": 0.0, "cut off": 0.0, "a rate": floor / peak}.get(flaw, floor)
    first, last = int(flaw != "idle"), int(flaw != "short")
    if index < warmup:
        return peak * (index + first) / (warmup + first)
    begin = 0 if flaw == "early" else warmup
    progress = min(1.0, (index - begin) / (steps - last - begin))
    wave = 0.5 * (1 + math.cos((2 if flaw == "whole wave" else 1) * math.pi * progress))
    rate = peak * (low + (1 - low) * (1 - progress if flaw == "line" else wave))
    return max(rate, floor * peak) if flaw == "cut off" else rate


RATE_MISTAKES = flawed(
    _rate,
    flaw={
        "the cosine falls to zero, not to the floor": "to zero",
        "the floor cuts the cosine off, instead of the cosine ending there": "cut off",
        "the floor is taken as a rate, not as a fraction of the peak": "a rate",
        "the first step has rate 0 and learns nothing": "idle",
        "there is no warm-up": "no warm-up",
        "the cosine starts at step 0, not where the warm-up ends, so the rate drops there": "early",
        "the last step is one short of the floor": "short",
        "the cosine runs through a whole wave and comes back to the peak": "whole wave",
        "the rate falls along a line, not a cosine": "line",
    },
)


def schedule(candidate: Code) -> None:
    """Check `candidate(index, peak, steps, warmup, floor)`: a line up to `peak` at step `warmup`,
    the first step at peak / (warmup + 1), then half a cosine to `floor * peak` at the last."""
    lr_at = warmup_then_cosine(peak=3.0, steps=40, warmup=6, floor=0.2)

    def run(rate: Code) -> Tensor:
        return torch.tensor([float(rate(index, 3.0, 40, 6, 0.2)) for index in range(40)])

    diagnose(run, candidate, torch.tensor([lr_at(index) for index in range(40)]), RATE_MISTAKES)
