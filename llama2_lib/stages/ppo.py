"""PPO against the combined reward, V5 (paper section 3.2.3).

An iteration samples one answer to each prompt, scores it, subtracts the divergence from the
frozen reference token by token, and takes one gradient step per mini-batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from llama2_lib import rng, storage
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import load_model, save_model
from llama2_lib.objectives.policy_gradient import (
    ppo_policy_loss,
    ppo_value_loss,
)
from llama2_lib.objectives.terms import LossTerm
from llama2_lib.stages.fit import Report
from llama2_lib.stages.rollout import (
    ActorCritic,
    PpoConfig,
    Rewards,
    answer_logprobs,
    rollout,
)
from llama2_lib.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint
from llama2_lib.training.loop import optimize
from llama2_lib.training.rollouts import Minibatch
from llama2_lib.training.schedule import adamw

Prompts = Callable[[int], Sequence[tuple[list[int], bool]]]
"""Returns the prompts of an iteration: ids, and whether each is tagged as a safety prompt."""
Measure = Callable[[Transformer], dict[str, float]]
"""Measures a policy on held-out prompts; early stopping reads `held_out_reward`."""


def value_loss(config: PpoConfig) -> Callable[[Callable[..., Any], Minibatch], LossTerm]:
    """Return the value loss of a mini-batch alone, for the warm-up."""

    def loss(model: Callable[..., Any], batch: Minibatch) -> LossTerm:
        assert isinstance(model, ActorCritic)
        return ppo_value_loss(
            model.values(batch.response_mask, batch.ids), batch.old_values, batch.returns,
            batch.response_mask, config.value_clip,
        )  # fmt: skip

    return loss


def ppo_loss(config: PpoConfig) -> Callable[[Callable[..., Any], Minibatch], LossTerm]:
    """Return the loss of a mini-batch: clipped surrogate and `value_weight` times value loss."""
    of_value = value_loss(config)

    def loss(model: Callable[..., Any], batch: Minibatch) -> LossTerm:
        assert isinstance(model, ActorCritic)
        logprobs, _ = answer_logprobs(
            model.policy, batch.response_mask, batch.ids, config.temperature
        )
        policy = ppo_policy_loss(
            logprobs, batch.old_logprobs, batch.advantages, batch.response_mask, config.clip
        )
        if not config.value_weight:
            return policy
        value = of_value(model, batch)
        total = policy.total + config.value_weight * value.total
        return LossTerm(total, policy.count, policy.metrics | value.metrics)

    return loss


def ppo(
    config: PpoConfig,
    model: ActorCritic,
    reference: Transformer,
    prompts: Prompts,
    rewards: Rewards,
    measure: Measure,
    folder: Path,
    *,
    eos_id: int,
    report: Report = lambda done, words: None,
) -> Transformer:
    """Train the policy in place, or go on from the newest checkpoint in `folder`.

    Leaves the policy that was best on held-out prompts (`held_out_reward`), and
    `metrics.jsonl` with a row for every iteration. Killed at any moment and started again, it
    ends with the same bits.

    Args:
        config: See there.
        model: The policy to be trained and its value function.
        reference: Frozen, and not the policy itself: a copy of where it starts.
        prompts: Of every iteration.
        rewards: The frozen reward models.
        measure: Of a policy; called before the first iteration and every `eval_every`.
        folder: The run's.
        eos_id: Ends an answer.
        report: Hears of every iteration.

    Raises:
        ValueError: The reference is the policy itself, or shares its weights.
        FloatingPointError: Loss or gradient is not finite.
    """
    shared = {p.data_ptr() for p in model.policy.parameters()}
    if any(p.data_ptr() in shared for p in reference.parameters()):
        raise ValueError(
            "the reference must be a copy of the policy, with weights of its own; it shares some, "
            "so the divergence would always be 0. Use copy.deepcopy."
        )
    optimizer = adamw(model, weight_decay=config.weight_decay, rates={"value.": config.value_rate})
    start = load_checkpoint(folder, model, optimizer)
    log = storage.MetricsLog(folder / "metrics.jsonl")
    log.keep_up_to(start if start else -1)
    watch = _BestSoFar(folder, config.patience)
    if start == 0:
        watch.see(log, 0, model.policy, measure)
    total = config.value_warmup + config.iterations
    for iteration in range(start, total):
        if watch.exhausted:
            break
        done = iteration + 1
        row = iterate(config, model, reference, prompts, rewards, optimizer, iteration, eos_id)
        log.write(done, **row)
        learned = done - config.value_warmup  # the policy stays as it is until then
        if learned > 0 and (learned % config.eval_every == 0 or done == total):
            watch.see(log, done, model.policy, measure)
        if done % config.save_every == 0 and done < total:
            save_checkpoint(folder, done, model, optimizer)
        report(done, f"reward {row['reward']:+.2f}, KL {row['kl']:.2f}")
    return watch.finish()


def iterate(
    config: PpoConfig,
    model: ActorCritic,
    reference: Transformer,
    prompts: Prompts,
    rewards: Rewards,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    eos_id: int,
) -> dict[str, float]:
    """Do one iteration and return its row of metrics."""
    model.eval()
    seed = rng.seed_from(config.seed, "ppo", iteration)
    found = rollout(model, reference, prompts(iteration), rewards, config, seed=seed, eos_id=eos_id)
    warm = iteration < config.value_warmup
    steps = list(
        optimize(
            model, optimizer, iter(found.minibatches),
            value_loss(config) if warm else ppo_loss(config), lambda _: config.lr,
            steps=range(len(found.minibatches)), clip_norm=config.clip_norm,
        )
    )  # fmt: skip
    row = found.metrics
    for name in steps[0].metrics:
        row[name] = sum(step.metrics[name] for step in steps) / len(steps)
    # Before the first step policy and old policy are the same: anything but 0 is a bug.
    row["first_approx_kl"] = steps[0].metrics.get("approx_kl", 0.0)
    row["grad_norm"] = sum(step.grad_norm for step in steps) / len(steps)
    return row


class _BestSoFar:
    """Measures policies, keeps the best one, and says when there has been none for long."""

    def __init__(self, folder: Path, patience: int):
        self.folder, self.patience = folder, patience
        rows = storage.read_metrics(folder / "metrics.jsonl")
        self.values = [r["held_out_reward"] for r in rows if "held_out_reward" in r]

    @property
    def exhausted(self) -> bool:
        best = max(range(len(self.values)), key=self.values.__getitem__, default=0)
        return len(self.values) - 1 - best >= self.patience

    def see(
        self, log: storage.MetricsLog, step: int, policy: Transformer, measure: Measure
    ) -> None:
        row = measure(policy)
        if not self.values or row["held_out_reward"] > max(self.values):
            save_model(policy, self.folder)
        self.values.append(row["held_out_reward"])
        log.write(step, **row)

    def finish(self) -> Transformer:
        clear_checkpoints(self.folder)
        return load_model(self.folder)[0]


def prompt_stream(encoded: Sequence[tuple[list[int], bool]], batch_size: int, seed: int) -> Prompts:
    """Return a function that gives `batch_size` prompts for every iteration, all before any twice.

    Raises:
        ValueError: There are fewer prompts than an iteration needs.
    """
    if len(encoded) < batch_size:
        raise ValueError(
            f"an iteration needs {batch_size} prompts; got {len(encoded)}. Take more, or a "
            "smaller batch."
        )

    def of(iteration: int) -> list[tuple[list[int], bool]]:
        places = range(iteration * batch_size, (iteration + 1) * batch_size)
        epochs = {place // len(encoded) for place in places}
        shuffled = {epoch: _shuffled(len(encoded), seed, epoch) for epoch in sorted(epochs)}
        return [encoded[shuffled[p // len(encoded)][p % len(encoded)]] for p in places]

    return of


def _shuffled(n: int, seed: int, epoch: int) -> list[int]:
    order = list(range(n))
    rng.random_source(seed, "prompts", epoch).shuffle(order)
    return order
