"""Checks of pretraining (paper section 2), and the mistakes they recognise.

The loss, packing and accumulation, then the optimiser: AdamW, what decays, clipping, the schedule.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama2_lib import rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, diagnose, on
from llama2_lib.training.batches import isolate
from llama2_lib.training.optim import warmup_then_cosine


def _nats(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def _picked(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids[:, 1:, None])


NEXT_TOKEN_MISTAKES: Mistakes = {
    "each position is scored on its own token, not on the next": lambda logits, ids: _nats(
        logits, ids[:, :-1]
    ),
    "the targets are shifted twice, so each position is scored on the token after the next": (
        lambda logits, ids: _nats(logits[:, :-1], ids[:, 2:])
    ),
    "the loss is in bits, not in nats": lambda logits, ids: _nats(logits, ids[:, 1:]) / math.log(2),
    "the loss is summed, not averaged over the tokens": lambda logits, ids: _nats(
        logits, ids[:, 1:], "sum"
    ),
    "the sum is divided by the rows, not by the tokens": lambda logits, ids: (
        _nats(logits, ids[:, 1:], "sum") / len(ids)
    ),
    "logits are used as if they were log-probabilities (no softmax)": lambda logits, ids: (
        -_picked(logits, ids).mean()
    ),
    "the probabilities are averaged before the logarithm": lambda logits, ids: (
        -_picked(logits.softmax(-1), ids).mean().log()
    ),
    "the sign is wrong: this is the log-likelihood": lambda logits, ids: -_nats(logits, ids[:, 1:]),
    "the probability is taken without its logarithm": lambda logits, ids: (
        -_picked(logits.softmax(-1), ids).mean()
    ),
    "the softmax is taken twice; cross_entropy wants raw logits": lambda logits, ids: _nats(
        logits.softmax(-1), ids[:, 1:]
    ),
    "the softmax runs over the positions, not over the vocabulary": lambda logits, ids: (
        -_picked(logits.log_softmax(1), ids).mean()
    ),
    "this is the perplexity; its logarithm is the loss": lambda logits, ids: _nats(
        logits, ids[:, 1:]
    ).exp(),
}


def next_token(candidate: Code) -> None:
    """Check `candidate(logits, ids)`: nats per token; `ids` is one longer than the logits."""
    generator = rng.generator(0, "check", "next token")
    logits = 2 * torch.randn(3, 6, 11, generator=generator)
    ids = torch.randint(11, (3, 7), generator=generator)
    diagnose(on(logits, ids), candidate, _nats(logits, ids[:, 1:]), NEXT_TOKEN_MISTAKES)


def _masked(
    logits: Tensor, ids: Tensor, document: Tensor, *, counted: Callable[[Tensor], Tensor], by: str
) -> Tensor:
    """Return the loss over `counted(same document as the token before)`, divided in some way."""
    keep = counted(document[:, 1:] == document[:, :-1])
    nats = _nats(logits, ids[:, 1:], "none").view_as(keep) * keep
    if by == "rows":
        return (nats.sum(1) / keep.sum(1)).mean()
    return nats.sum() / {"counted": keep.sum(), "all": keep.numel(), "none": 1}[by]


PACKED_MISTAKES: Mistakes = {
    "the first token of a document is counted, though nothing of it comes before": partial(
        _masked, counted=torch.ones_like, by="counted"
    ),
    "the mask is one too early: the last token of a document is left out, not the first": partial(
        _masked,
        counted=lambda same: torch.cat([same[:, 1:], same.new_ones(len(same), 1)], 1),
        by="counted",
    ),
    "what is left out is still counted in the divisor": partial(
        _masked, counted=lambda same: same, by="all"
    ),
    "each row is averaged by itself, so a token of a row with fewer targets weighs more": partial(
        _masked, counted=lambda same: same, by="rows"
    ),
    "the mask is upside down": partial(_masked, counted=torch.logical_not, by="counted"),
    "the sign is wrong: this is the log-likelihood": lambda logits, ids, document: (
        -_masked(logits, ids, document, counted=lambda same: same, by="counted")
    ),
    "the loss is summed, not averaged over the counted tokens": partial(
        _masked, counted=lambda same: same, by="none"
    ),
}


def packed_loss(candidate: Code) -> None:
    """Check `candidate(logits, ids, document)`: nats per token that has a token of its own
    document before it."""
    generator = rng.generator(0, "check", "packed loss")
    logits = 2 * torch.randn(2, 9, 7, generator=generator)
    ids = torch.randint(7, (2, 10), generator=generator)
    document = torch.tensor([[4, 4, 4, 9, 9, 9, 9, 9, 9, 9], [0, 0, 2, 2, 5, 5, 5, 1, 1, 1]])
    expected = _masked(logits, ids, document, counted=lambda same: same, by="counted")
    diagnose(on(logits, ids, document), candidate, expected, PACKED_MISTAKES)


def _stream(documents: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([id for document in documents for id in document])


def _rows(documents: Sequence[Sequence[int]], seq_len: int, *, stride: int, width: int) -> Tensor:
    """Return rows `seq_len + width` long that begin every `seq_len + stride` tokens."""
    return _stream(documents).unfold(0, seq_len + width, seq_len + stride)


def _a_row_each(documents: Sequence[Sequence[int]], seq_len: int) -> Tensor:
    rows = [[*document, *[0] * (seq_len + 1)][: seq_len + 1] for document in documents]
    return torch.tensor(rows)


PACK_MISTAKES: Mistakes = {
    "rows share no token, so the first token of each row is never a target": partial(
        _rows, stride=1, width=1
    ),
    "rows are seq_len long, so the last position has no target": partial(_rows, stride=0, width=0),
    "rows overlap by two tokens, so that some tokens are targets twice": partial(
        _rows, stride=-1, width=1
    ),
    "each document has a row of its own: short ones are padded, long ones are cut": _a_row_each,
    "the documents come in reverse order": lambda documents, seq_len: _rows(
        documents[::-1], seq_len, stride=0, width=1
    ),
}


def pack(candidate: Code) -> None:
    """Check `candidate(documents, seq_len)`: rows of seq_len + 1 ids, each beginning with the
    last token of the row before; what does not fill a row is left out."""
    lengths = [7, 3, 11, 2, 9, 6]
    offsets = [sum(lengths[:index]) for index in range(len(lengths))]
    documents = [
        list(range(begin + 1, begin + 1 + length))
        for begin, length in zip(offsets, lengths, strict=True)
    ]
    run = on(documents, 5)
    rows = run(candidate)
    for name, mistake in PACK_MISTAKES.items():  # these differ in shape: the name says more
        if isinstance(rows, Tensor) and torch.equal(rows, run(mistake)):
            raise CheckFailed(f"the rows are not right: it looks as if {name}.")
    diagnose(run, candidate, _rows(documents, 5, stride=0, width=1), {}, rtol=0, atol=0)


def _isolated(
    document: Tensor,
    *,
    restart: bool = True,
    causal: bool = True,
    same: bool = True,
    own: int = 0,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    positions, visible = isolate(document)
    n = document.shape[1]
    if not restart:
        positions = torch.arange(n).expand_as(document)
    if not same:
        visible = torch.ones_like(visible).tril()
    if not causal:
        visible = document[:, :, None] == document[:, None, :]
    return positions + first, visible.tril(own) if own else visible


ISOLATE_MISTAKES: Mistakes = {
    "positions run on through the pack instead of restarting": partial(_isolated, restart=False),
    "tokens see the later tokens of their document: the causal part is missing": partial(
        _isolated, causal=False
    ),
    "tokens see the documents before theirs: only the causal part is there": partial(
        _isolated, same=False
    ),
    "a token does not see itself": partial(_isolated, own=-1),
    "positions begin at 1": partial(_isolated, first=1),
    "the mask is transposed: the row must be who looks": lambda document: (
        (pair := isolate(document))[0],
        pair[1].mT,
    ),
    "the mask is upside down: True must be what may be seen": lambda document: (
        (pair := isolate(document))[0],
        ~pair[1],
    ),
    "everything is visible: there is no mask": lambda document: (
        (pair := isolate(document))[0],
        torch.ones_like(pair[1]),
    ),
}


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
        sum((a / b for a, b in zip(g, n, strict=True)), torch.zeros_like(g[0])) / len(g)
    ),
    "the means of the micro-batches are added, which makes the step as many times too large": (
        lambda g, n: sum((a / b for a, b in zip(g, n, strict=True)), torch.zeros_like(g[0]))
    ),
    "the sum is divided by the number of micro-batches, not of tokens": lambda g, n: torch.stack(
        list(g)
    ).mean(0),
    "only the last micro-batch counts: the gradient is cleared between them": lambda g, n: (
        g[-1] / n[-1]
    ),
    "each gradient is multiplied by its count, though it is a sum already": lambda g, n: (
        sum((a * b for a, b in zip(g, n, strict=True)), torch.zeros_like(g[0])) / sum(n)
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
    betas: tuple[float, float] = BETAS, eps: float = EPS, weight_decay: float = DECAY,
    *, corrected: bool = True, root: bool = True, eps_inside: bool = False, swapped: bool = False,
    decay: str = "weights",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of AdamW, step counted from 1, with the flaws that are asked for."""
    b1, b2 = betas[::-1] if swapped else betas
    if decay == "gradient":
        grad = grad + weight_decay * p
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad * grad
    m_hat, v_hat = (m / (1 - b1**step), v / (1 - b2**step)) if corrected else (m, v)
    size = v_hat
    if root:
        size = (v_hat + eps).sqrt() if eps_inside else v_hat.sqrt() + eps
    shrink = {"weights": lr * weight_decay, "full": weight_decay}.get(decay, 0.0)
    p = p * (1 - shrink) - lr * m_hat / size
    return p * (1 - lr * weight_decay) if decay == "after" else p, m, v


UPDATE_MISTAKES: Mistakes = {
    "the averages are not corrected for their start at zero": partial(_adamw, corrected=False),
    "the decay is added to the gradient, as in Adam with L2, not taken off the weights": partial(
        _adamw, decay="gradient"
    ),
    "the decay is not multiplied by the learning rate": partial(_adamw, decay="full"),
    "there is no decay": partial(_adamw, decay="none"),
    "eps is missing": lambda p, grad, m, v, step, lr, betas, eps, weight_decay: _adamw(
        p, grad, m, v, step, lr, betas, 0.0, weight_decay
    ),
    "the decay comes after the step and shrinks the step as well": partial(_adamw, decay="after"),
    "eps stands inside the root": partial(_adamw, eps_inside=True),
    "the second average is used without its root": partial(_adamw, root=False),
    "beta 1 and beta 2 are exchanged": partial(_adamw, swapped=True),
}


def adamw_step(candidate: Code) -> None:
    """Check `candidate(p, grad, m, v, step, lr, betas, eps, weight_decay)` over four steps.

    It returns the new p, m and v; `step` counts from 1. The reference is PyTorch's AdamW.
    """
    start, *gradients = torch.randn(STEPS + 1, 3, 5, generator=rng.generator(0, "check", "adamw"))
    weight = nn.Parameter(start.clone())
    reference = torch.optim.AdamW([weight], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for gradient in gradients:
        weight.grad = gradient.clone()
        reference.step()

    def run(update: Code) -> Tensor:
        p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for step, gradient in enumerate(gradients, start=1):
            p, m, v = update(p, gradient.clone(), m, v, step, LR, BETAS, EPS, DECAY)
        return p

    diagnose(run, candidate, weight, UPDATE_MISTAKES)


def _groups(decays: Callable[[str, nn.Parameter], bool]) -> Code:
    def split(model: nn.Module) -> list[dict[str, Any]]:
        named = list(model.named_parameters())
        return [
            {"params": [p for n, p in named if decays(n, p)], "weight_decay": 0.1},
            {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
        ]

    return split


GROUP_MISTAKES: Mistakes = {
    "everything decays, the gains of the norms too": _groups(lambda name, p: True),
    "nothing decays": _groups(lambda name, p: False),
    "the two groups are exchanged: gains decay, matrices do not": _groups(
        lambda name, p: p.dim() < 2
    ),
    "the final norm is missed: its name does not end in _norm": _groups(
        lambda name, p: not name.endswith("_norm.weight")
    ),
    "the embedding table does not decay; it is a matrix like the others": _groups(
        lambda name, p: p.dim() >= 2 and "embeddings" not in name
    ),
    "some parameters are in no group, so they are never trained": lambda model: _groups(
        lambda name, p: p.dim() >= 2
    )(model)[:1],
}


def decay_groups(candidate: Code) -> None:
    """Check `candidate(model)`: groups for PyTorch's AdamW, in which matrices decay by 0.1 and
    the gains of norms do not."""
    config = ModelConfig(vocab_size=31, dim=24, n_layers=2, n_heads=3, n_kv_heads=1, multiple_of=5)
    model = Transformer(config)

    def decay(groups: Sequence[dict[str, Any]]) -> dict[int, float]:
        listed = [(id(p), float(g["weight_decay"])) for g in groups for p in g["params"]]
        if len(dict(listed)) < len(listed):
            raise CheckFailed("a parameter stands in two groups; each must be updated once.")
        return dict(listed)

    actual = decay(list(candidate(model)))
    if actual == decay(_groups(lambda name, p: p.dim() >= 2)(model)):
        return
    for mistake, wrong in GROUP_MISTAKES.items():
        if actual == decay(wrong(model)):
            raise CheckFailed(f"the groups are not right: it looks as if {mistake}.")
    names = [n for n, p in model.named_parameters() if actual.get(id(p)) != 0.1 * (p.dim() >= 2)]
    raise CheckFailed(f"these parameters decay by another amount than wanted: {names[:3]}.")


def _scaled(gradients: Sequence[Tensor], factor: Tensor | float) -> list[Tensor]:
    return [gradient * factor for gradient in gradients]


def _norm(gradients: Sequence[Tensor], power: float = 2.0) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients]).norm(power)


def _clipped(
    gradients: Sequence[Tensor], limit: float, *, power: float = 2.0, always: bool = False
) -> tuple[list[Tensor], Tensor]:
    norm = _norm(gradients, power)
    factor = limit / norm if always or norm > limit else 1.0
    return _scaled(gradients, factor), norm


def _each_alone(gradients: Sequence[Tensor], limit: float) -> tuple[list[Tensor], Tensor]:
    clipped = [_clipped([gradient], limit)[0][0] for gradient in gradients]
    return clipped, _norm(gradients)


CLIP_MISTAKES: Mistakes = {
    "each tensor is clipped by its own norm, which bends the direction": _each_alone,
    "each number is cut off at the limit, which bends the direction": lambda g, limit: (
        [gradient.clamp(-limit, limit) for gradient in g],
        _norm(g),
    ),
    "small gradients are stretched to the limit; they must stay": partial(_clipped, always=True),
    "the norm is a sum of sizes, not the root of a sum of squares": partial(_clipped, power=1.0),
    "the norm is the largest number, not the root of a sum of squares": partial(
        _clipped, power=math.inf
    ),
    "nothing is clipped": lambda g, limit: (list(g), _norm(g)),
    "the norm returned is that after clipping; the one before tells of trouble": lambda g, limit: (
        _clipped(g, limit)[0],
        _norm(_clipped(g, limit)[0]),
    ),
}


def clipping(candidate: Code) -> None:
    """Check `candidate(gradients, limit)`: the list scaled to a common norm of at most `limit`,
    and the norm before. Tried on a large and on a small gradient."""
    generator = rng.generator(0, "check", "clipping")
    large = [3 * torch.randn(shape, generator=generator) for shape in [(4, 3), (5,), (2, 2)]]
    both = [large, _scaled(large, 0.01)]

    def run(clip: Code) -> Tensor:
        parts: list[Tensor] = []
        for gradients in both:  # clipping in place is allowed, as PyTorch's own does
            clipped, norm = clip([gradient.clone() for gradient in gradients], 1.0)
            parts += [*(g.flatten() for g in clipped), torch.as_tensor(norm).flatten().float()]
        return torch.cat(parts)

    diagnose(run, candidate, run(_clipped), CLIP_MISTAKES)


def _cosine(
    index: int, peak: float, steps: int, warmup: int, floor: float,
    *, first: int = 1, clock: int = 0, last: int = 1, waves: float = 0.5,
) -> float:  # fmt: skip
    """The schedule with another first step, start of the cosine, end, or number of waves."""
    if index < warmup:
        return peak * (index + first) / (warmup + first)
    begin = warmup if clock == 0 else 0
    progress = min(1.0, (index - begin) / (steps - last - begin))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(2 * math.pi * waves * progress)))


def _linear(index: int, peak: float, steps: int, warmup: int, floor: float) -> float:
    if index < warmup:
        return peak * (index + 1) / (warmup + 1)
    return peak * (1 - (1 - floor) * (index - warmup) / (steps - 1 - warmup))


RATE_MISTAKES: Mistakes = {
    "the cosine falls to zero, not to the floor": lambda i, peak, steps, warmup, floor: _cosine(
        i, peak, steps, warmup, 0.0
    ),
    "the floor cuts the cosine off, instead of the cosine ending there": (
        lambda i, peak, steps, warmup, floor: max(
            _cosine(i, peak, steps, warmup, 0.0), floor * peak if i >= warmup else 0.0
        )
    ),
    "the floor is taken as a rate, not as a fraction of the peak": (
        lambda i, peak, steps, warmup, floor: _cosine(i, peak, steps, warmup, floor / peak)
    ),
    "the first step has rate 0 and learns nothing": partial(_cosine, first=0),
    "there is no warm-up": lambda i, peak, steps, warmup, floor: _cosine(i, peak, steps, 0, floor),
    "the cosine starts at step 0, not where the warm-up ends, so the rate drops there": partial(
        _cosine, clock=1
    ),
    "the last step is one short of the floor": partial(_cosine, last=0),
    "the cosine runs through a whole wave and comes back to the peak": partial(_cosine, waves=1.0),
    "the rate falls along a line, not a cosine": _linear,
}


def schedule(candidate: Code) -> None:
    """Check `candidate(index, peak, steps, warmup, floor)`: a line up to `peak` at step `warmup`,
    the first step at peak / (warmup + 1), then half a cosine to `floor * peak` at the last."""
    lr_at = warmup_then_cosine(peak=3.0, steps=40, warmup=6, floor=0.2)

    def run(rate: Code) -> Tensor:
        return torch.tensor([float(rate(index, 3.0, 40, 6, 0.2)) for index in range(40)])

    diagnose(run, candidate, torch.tensor([lr_at(index) for index in range(40)]), RATE_MISTAKES)
