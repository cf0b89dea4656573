"""Rollouts of PPO: sampled answers, their rewards, and what each token is credited with.

Paper section 3.2.3; what it leaves open is said in `PpoConfig`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llama2_lib.model.generate import generate
from llama2_lib.model.heads import ScalarModel
from llama2_lib.model.transformer import Transformer
from llama2_lib.objectives.policy_gradient import gae
from llama2_lib.objectives.reward import shaped_rewards, whiten
from llama2_lib.stages.reward import Rewarded
from llama2_lib.training.rollouts import Actions, Minibatch, Sampled, layout, whiten_together

WHITENINGS = ("batch", "tag", "nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoConfig:
    """One run of PPO. The paper's numbers are in brackets."""

    iterations: int
    """[200 to 400]"""
    batch_size: int = 256
    """Prompts of an iteration [512]."""
    n_prompts: int = 4000
    """Training prompts to draw from."""
    longest_prompt: int = 64
    """Tokens; longer prompts are left out, since every row of a mini-batch pays for the longest."""
    n_held_out: int = 160
    """Prompts of the measurements."""
    minibatch_size: int = 64
    """Prompts of a gradient step, of which each minibatch has one [64]."""
    lr: float = 1e-4
    """Constant [1e-6]: a hundred times as high, since a model of a million weights does not move
    in fifty iterations with the paper's."""
    value_rate: float = 5.0
    """Rate of the value function, in units of `lr` [not stated]: it starts knowing nothing, and
    until it has learned which prompts score high, advantages are mostly noise."""
    beta: float = 0.2
    """Weight of the divergence [0.01, 0.005 for the larger ones]. What counts is the sum over an
    answer, and ours have 30 tokens where the paper's have hundreds. At 0.05 this policy forgets
    facts to please the reward model, which cannot tell (docs/log.md)."""
    clip: float = 0.2
    """[0.2]"""
    value_clip: float | None = None
    """How far a value may move in one iteration [not stated]; None: freely."""
    value_weight: float = 0.5
    """Of the value loss [not stated]."""
    gamma: float = 1.0
    lam: float = 1.0
    """Of the advantages [not stated]."""
    temperature: float = 1.0
    """Of sampling, and of all log-probabilities [not stated]."""
    value_warmup: int = 4
    """Iterations before the first in which the value function alone learns [not stated]."""
    whiten_by: str = "tag"
    """Over what scores are whitened: batch [the paper's wording], tag or nothing. Tagged prompts
    are scored by one model and the others by another, with another zero; over the whole batch the
    kind of prompt would be the largest part of the signal, and no answer can change it."""
    unfinished_score: float = -2.0
    """Whitened score of an answer that did not end within the limit [not stated]."""
    max_new_tokens: int = 96
    weight_decay: float = 0.1
    """[0.1]"""
    clip_norm: float = 1.0
    """[1.0]"""
    eval_every: int = 5
    """Iterations between measurements on held-out prompts."""
    patience: int = 4
    """Measurements without a better one before it stops [early stopping, no number]."""
    save_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "iterations", "batch_size", "minibatch_size", "max_new_tokens", "eval_every",
            "patience", "save_every", "n_prompts", "longest_prompt", "n_held_out",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.batch_size % self.minibatch_size:
            raise ValueError(
                f"batch_size must be a multiple of minibatch_size; got {self.batch_size} and "
                f"{self.minibatch_size}."
            )
        for name in ("beta", "lr", "value_weight", "value_rate", "value_warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}.")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0...1; got {getattr(self, name)}.")
        for name in ("clip", "value_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}.")
        if self.whiten_by not in WHITENINGS:
            raise ValueError(f"whiten_by must be one of {WHITENINGS}; got {self.whiten_by!r}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be positive and finite; got {self.temperature}. Greedy answers "
                "have no log-probabilities to learn from."
            )


class ActorCritic(nn.Module):
    """The policy and its value function: two networks, so that neither moves the other."""

    def __init__(self, policy: Transformer, value: ScalarModel):
        super().__init__()
        if policy.config.vocab_size != value.config.vocab_size:
            raise ValueError(
                f"policy and value function must have one vocabulary; got "
                f"{policy.config.vocab_size} and {value.config.vocab_size} pieces."
            )
        self.policy, self.value = policy, value

    def values(
        self, response_mask: Bool[Tensor, "rows seq"], ids: Int[Tensor, "rows seq+1"]
    ) -> Float[Tensor, "rows seq"]:
        """Return the values before each token of the answers; 0 before all answers begin."""
        since = first_answer(response_mask)
        return F.pad(self.value(ids[:, :-1], since=since), (since, 0))


def first_answer(response_mask: Bool[Tensor, "rows seq"]) -> int:
    """Return the first position that counts in any row: what stands before is only read."""
    return int(response_mask.any(dim=0).to(torch.uint8).argmax())


def answer_logprobs(
    policy: Transformer,
    response_mask: Bool[Tensor, "rows seq"],
    ids: Int[Tensor, "rows seq+1"],
    temperature: float,
) -> tuple[Float[Tensor, "rows seq"], Float[Tensor, "tokens vocab"]]:
    """Return the log-probabilities of the answers' tokens, and those of the whole vocabulary.

    The first are 0 elsewhere; the second have a row for every token of an answer. Logits of
    prompts and padding, more than half of all, are never computed.
    """
    since = first_answer(response_mask)
    hidden = policy.hidden(ids[:, :-1], since=since)[response_mask[:, since:]]
    logits = policy.head(hidden)
    full = (logits / temperature if temperature != 1 else logits).log_softmax(dim=-1)
    spoken = full.gather(-1, ids[:, 1:][response_mask][:, None])[:, 0]
    return full.new_zeros(response_mask.shape).masked_scatter(response_mask, spoken), full


Rewards = Callable[[Sequence[list[int]], Sequence[bool]], Rewarded]
"""Scores prompts with answers; raw scores."""


class Rollout(NamedTuple):
    """An iteration's answers, ready to learn from, and what there is to log about them."""

    minibatches: list[Minibatch]
    samples: list[Sampled]
    metrics: dict[str, float]


def sample_answers(
    policy: Transformer,
    prompts: Sequence[tuple[list[int], bool]],
    config: PpoConfig,
    seed: int,
    eos_id: int,
) -> list[Sampled]:
    """Return one sampled answer to each prompt."""
    said = generate(
        policy, [ids for ids, _ in prompts], max_new_tokens=config.max_new_tokens,
        temperature=config.temperature, seed=seed, stop_ids={eos_id},
    )  # fmt: skip
    return [
        Sampled(list(ids), done.ids, done.finished)
        for (ids, _), done in zip(prompts, said, strict=True)
    ]


@torch.no_grad()
def rollout(
    model: ActorCritic,
    reference: Transformer,
    prompts: Sequence[tuple[list[int], bool]],
    rewards: Rewards,
    config: PpoConfig,
    *,
    seed: int,
    eos_id: int,
) -> Rollout:
    """Sample, score, and turn scores into advantages and returns of every token.

    The order is the paper's: the combined score is whitened over the batch, then the divergence
    is taken off. Advantages are whitened over all tokens of the batch.
    """
    samples = sample_answers(model.policy, prompts, config, seed, eos_id)
    rewarded = rewards([s.ids for s in samples], [tag for _, tag in prompts])
    device = next(model.parameters()).device
    raw = torch.from_numpy(rewarded.combined).to(device, torch.float32)
    if not bool(raw.isfinite().all()):
        row = int((~raw.isfinite()).nonzero()[0])
        raise ValueError(
            f"rewards must be finite; that of row {row} is {raw[row].item()}, and whitening would "
            "make it everybody's. Look at the reward models."
        )
    tags = torch.tensor([tag for _, tag in prompts], device=device)
    score = _whitened(raw, tags, config.whiten_by)
    finished = torch.tensor([s.finished for s in samples], device=device)
    score = score.masked_fill(~finished, config.unfinished_score)
    parts = layout(samples, config.batch_size // config.minibatch_size, seed)
    seen = [_seen(model, reference, part, score, config, device) for part in parts]
    whitened = whiten_together([s.advantages for s in seen], [s.response_mask for s in seen])
    minibatches = [
        Minibatch(s.ids, s.response_mask, s.logprobs, s.values, advantages, s.returns)
        for s, advantages in zip(seen, whitened, strict=True)
    ]
    return Rollout(minibatches, samples, _summary(samples, rewarded, score, seen))


def _whitened(raw: Tensor, tags: Tensor, by: str) -> Tensor:
    if by == "nothing":
        return raw
    return whiten(raw) if by == "batch" else whiten(raw, tags) + whiten(raw, ~tags)


class _Seen(NamedTuple):
    """A mini-batch as policy, value function and reference see it."""

    ids: Tensor
    response_mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor
    """Sampled, k1, summed over each answer."""
    exact_kl: Tensor
    """Summed over all tokens of all answers; the whole vocabulary at every token."""
    entropy: Tensor
    """Likewise."""


def _seen(
    model: ActorCritic,
    reference: Transformer,
    part: Actions,
    score: Tensor,
    config: PpoConfig,
    device: torch.device,
) -> _Seen:
    ids, mask = part.ids.to(device), part.response_mask.to(device)
    logprobs, full = answer_logprobs(model.policy, mask, ids, config.temperature)
    reference_logprobs, reference_full = answer_logprobs(reference, mask, ids, config.temperature)
    values = model.values(mask, ids)
    reward = shaped_rewards(
        score[part.rows.to(device)], logprobs, reference_logprobs, mask, config.beta
    )
    advantages, returns = gae(reward, values, mask, gamma=config.gamma, lam=config.lam)
    p = full.exp()
    return _Seen(
        ids, mask, logprobs, values, advantages, returns,
        (logprobs - reference_logprobs).sum(dim=1),
        (p * (full - reference_full)).sum(), -(p * full).sum(),
    )  # fmt: skip


def _summary(
    samples: Sequence[Sampled], rewarded: Rewarded, score: Tensor, seen: Sequence[_Seen]
) -> dict[str, float]:
    n = len(samples)
    n_tokens = sum(int(s.response_mask.sum()) for s in seen)
    entropy = sum(float(s.entropy) for s in seen) / n_tokens
    return {
        "reward": float(rewarded.combined.mean()),
        "reward_std": float(rewarded.combined.std()),
        "helpfulness": float(rewarded.helpfulness.mean()),
        "safety": float(rewarded.safety.mean()),
        "score": float(score.mean()),
        "kl": sum(float(s.kl.sum()) for s in seen) / n,
        "exact_kl": sum(float(s.exact_kl) for s in seen) / n,
        "entropy": entropy,
        "length": n_tokens / n,
        "finished": sum(s.finished for s in samples) / n,
        "distinct": len({tuple(s.ids) for s in samples}) / n,
    }
