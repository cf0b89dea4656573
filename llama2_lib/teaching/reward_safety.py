"""Check of the auxiliary safety loss, and the mistakes it recognises (paper appendix A.3.4)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2_lib import rng
from llama2_lib.objectives.reward import SAFETY_LOGIT
from llama2_lib.teaching.diagnosis import diagnose
from llama2_lib.teaching.gradient import value_and_gradient

Safety = Callable[[Tensor, Tensor], Tensor]


def _nats(scores: Tensor, is_safe: Tensor) -> Tensor:
    return F.softplus(torch.where(is_safe, -scores, scores))


SAFETY_MISTAKES: dict[str, Safety] = {
    "the labels are upside down: a high score must mean safe": lambda s, safe: _nats(
        s, ~safe
    ).mean(),
    "the sign is wrong: this is the log-likelihood, and training would lower it": (
        lambda s, safe: -_nats(s, safe).mean()
    ),
    "only unsafe answers count; safe ones must be pushed up too, or all scores sink": (
        lambda s, safe: _nats(s, safe)[~safe].mean()
    ),
    "only safe answers count; unsafe ones must be pushed down": lambda s, safe: _nats(s, safe)[
        safe
    ].mean(),
    "only the first half of the rows counts, the chosen answers; every answer has a label": (
        lambda s, safe: _nats(s, safe)[: len(s) // 2].mean()
    ),
    "the losses are summed, not averaged over the answers": lambda s, safe: _nats(s, safe).sum(),
    "the sum is divided by the pairs; divide by the answers": lambda s, safe: (
        2 * _nats(s, safe).mean()
    ),
    "safe and unsafe answers are averaged apart, so those of the rarer kind weigh more": (
        lambda s, safe: 0.5 * (_nats(s, safe)[safe].mean() + _nats(s, safe)[~safe].mean())
    ),
    "safe answers are compared with unsafe ones: that is a ranking loss again, which no constant "
    "changes; score each answer by itself": lambda s, safe: F.softplus(
        s[~safe].mean() - s[safe].mean()
    ),
    "the cross-entropy is taken of sigmoid(score), which saturates where an answer is most wrong; "
    "use binary_cross_entropy_with_logits": lambda s, safe: F.binary_cross_entropy(
        s.sigmoid(), safe.to(s)
    ),
    "the sigmoid is taken twice; binary_cross_entropy_with_logits wants raw scores": (
        lambda s, safe: _nats(s.sigmoid(), safe).mean()
    ),
    "the logarithm of a sigmoid is taken, which is -inf where an answer is most wrong; use "
    "logsigmoid": lambda s, safe: -torch.where(safe, s, -s).sigmoid().log().mean(),
    "labels of -1 and 1 are used where cross-entropy wants 0 and 1": lambda s, safe: (
        F.binary_cross_entropy_with_logits(s, 2 * safe.to(s) - 1)
    ),
    "this is a squared error of probabilities; it stops teaching where an answer is most wrong": (
        lambda s, safe: (s.sigmoid() - safe.to(s)).square().mean()
    ),
    "the threshold 0.15 is built into the loss; it belongs to the use of the score": (
        lambda s, safe: _nats(s - SAFETY_LOGIT, safe).mean()
    ),
}


def safety_auxiliary_loss(candidate: Safety) -> None:
    """Check `candidate(scores, is_safe)`: the mean over answers of the cross-entropy of each raw
    score against its label, and its gradient, also where scores are extreme."""
    near = 2 * torch.randn(8, generator=rng.generator(0, "check", "safety loss"))
    safe = torch.tensor([True, False, True, True, False, True, True, False])
    far = torch.tensor([150.0, -130.0, 110.0, -160.0])
    far_safe = torch.tensor([False, True, True, False])

    def run(loss: Safety) -> Tensor:
        parts = [(near, safe), (far, far_safe)]
        return torch.cat([value_and_gradient(lambda s, y=y: loss(s, y), at) for at, y in parts])

    wrong = {name: partial(run, f) for name, f in SAFETY_MISTAKES.items()}
    diagnose(run(candidate), run(lambda s, y: _nats(s, y).mean()), wrong)
