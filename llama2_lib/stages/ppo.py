"""PPO against the combined reward, V5 (paper section 3.2.3).

An iteration:

1. Sample one answer of the policy to each prompt, at the training temperature.
2. Score prompt and answer with both reward models; combine, whiten, and punish missing ends.
3. Take off `beta` times the divergence from the frozen reference, token by token.
4. Credit every token: advantages by GAE from the value function, whitened over the whole batch.
5. Take one clipped gradient step a mini-batch, for policy and value function at once.

Left out of Stable Baselines' and TRL's PPO: several epochs over one batch, an entropy bonus, an
adaptive `beta`. Added to the paper's words, which leave them open: see `PpoConfig`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llama2_lib import rng, storage
from llama2_lib.config import PpoConfig, Recipe
from llama2_lib.evaluation.judged import gold_marks
from llama2_lib.model.chat import reply, room, scored_row
from llama2_lib.model.generate import generate
from llama2_lib.model.heads import ScalarModel, scalar_model
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import load_model, save_model
from llama2_lib.objectives.language import LossTerm
from llama2_lib.objectives.rlhf import gae, ppo_policy_loss, ppo_value_loss, shaped_rewards, whiten
from llama2_lib.stages.fit import Report
from llama2_lib.stages.job import Job, write_answers
from llama2_lib.stages.prompts import PromptSet, sample_prompts
from llama2_lib.stages.reward import Rewarded, RewardModels, load_rewards
from llama2_lib.stages.sft import unseen_dialogs
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import adamw
from llama2_lib.world import make_world
from llama2_lib.world.facts import World
from llama2_lib.world.source import WorldSource

TaggedPrompt = tuple[list[int], bool]
"""Ids, and whether the prompt is tagged as a safety prompt."""
Prompts = Callable[[int], Sequence[TaggedPrompt]]
"""Returns the prompts of an iteration."""
Rewards = Callable[[Sequence[list[int]], Sequence[bool]], Rewarded]
"""Scores prompts with answers; raw scores."""
Measure = Callable[[Transformer], dict[str, float]]
"""Measures a policy on held-out prompts; early stopping reads `held_out_reward`."""


def run(job: Job, start: str, rewards: str) -> None:
    """Run PPO from the policy of the stage `start` against the models of the stage `rewards`."""
    recipe, config, tokenizer = job.recipe, job.recipe.ppo, job.tokenizer
    models = load_rewards(job.inputs[rewards], job.device)
    policy = job.model(start)
    ppo = Ppo(
        config=config,
        # The value function knows answers as the reward model does; its head starts at zero.
        model=ActorCritic(policy, scalar_model(models.helpfulness.backbone)),
        reference=copy.deepcopy(policy).requires_grad_(False),
        rewards=models,
        eos_id=tokenizer.eos_id,
    )
    prompts = prompt_stream(ppo_prompts(recipe, tokenizer), config.batch_size, config.seed)
    measure = HeldOut.of(recipe, tokenizer, models)
    best = train(ppo, prompts, measure, job.folder, job.report)
    job.write_beside(write_answers(best, tokenizer, unseen_dialogs(job), recipe))


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


@dataclass(frozen=True, kw_only=True)
class Ppo:
    """What every iteration needs.

    Raises:
        ValueError: The reference is the policy itself, or shares its weights.
    """

    config: PpoConfig
    model: ActorCritic
    """The policy to be trained and its value function."""
    reference: Transformer
    """Frozen, and not the policy itself: a copy of where it starts."""
    rewards: Rewards
    """The frozen reward models."""
    eos_id: int
    """Ends an answer."""

    def __post_init__(self) -> None:
        shared = {p.data_ptr() for p in self.model.policy.parameters()}
        if any(p.data_ptr() in shared for p in self.reference.parameters()):
            raise ValueError(
                "the reference must be a copy of the policy, with weights of its own; it shares "
                "some, so the divergence would always be 0. Use copy.deepcopy."
            )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.model.parameters()).device


# --- the loop


def train(
    ppo: Ppo,
    prompts: Prompts,
    measure: Measure,
    folder: Path,
    report: Report = lambda done, words: None,
) -> Transformer:
    """Train the policy in place, or continue from the newest checkpoint in `folder`.

    Leaves the policy that was best on held-out prompts (`held_out_reward`), and
    `metrics.jsonl` with a row for every iteration. Killed at any moment and started again, it
    ends with the same bits.

    Args:
        ppo: Settings, networks and reward models.
        prompts: Gives the prompts of an iteration.
        measure: Called before the first iteration and every `eval_every`.
        folder: Where the run leaves its files.
        report: Hears of every iteration.

    Raises:
        FloatingPointError: Loss or gradient is not finite.
    """
    config, model = ppo.config, ppo.model
    optimizer = adamw(
        model, weight_decay=config.weight_decay, rates={"value.": config.value_lr_multiplier}
    )
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
        row = iterate(ppo, optimizer, prompts(iteration), iteration)
        log.write(done, **row)
        learned = done - config.value_warmup  # the policy stays as it is until then
        if learned > 0 and (learned % config.eval_every == 0 or done == total):
            watch.see(log, done, model.policy, measure)
        if done % config.save_every == 0 and done < total:
            save_checkpoint(folder, done, model, optimizer)
        report(done / total, f"reward {row['reward']:+.2f}, KL {row['kl']:.2f}")
    clear_checkpoints(folder)
    return load_model(folder)[0]


def iterate(
    ppo: Ppo,
    optimizer: torch.optim.Optimizer,
    prompts: Sequence[TaggedPrompt],
    iteration: int,
) -> dict[str, float]:
    """Do one iteration and return its row of metrics."""
    ppo.model.eval()
    batch = rollout(ppo, prompts, rng.seed_from(ppo.config.seed, "ppo", iteration))
    warming_up = iteration < ppo.config.value_warmup
    steps = list(
        optimize(
            ppo.model,
            optimizer,
            iter(batch.minibatches),
            value_loss(ppo.config) if warming_up else ppo_loss(ppo.config),
            lambda _: ppo.config.lr,
            steps=range(len(batch.minibatches)),
            clip_norm=ppo.config.clip_norm,
        )
    )
    row = batch.metrics
    for name in steps[0].metrics:
        row[name] = sum(step.metrics[name] for step in steps) / len(steps)
    # Before the first step policy and old policy are the same: anything but 0 is a bug.
    row["first_approx_kl"] = steps[0].metrics.get("approx_kl", 0.0)
    row["grad_norm"] = sum(step.grad_norm for step in steps) / len(steps)
    return row


# --- 1 to 4: a rollout


class Sampled(NamedTuple):
    """One prompt with the answer that the policy gave, as ids: never decoded and encoded again."""

    prompt: list[int]
    answer: list[int]
    """Ends with EOS if it is finished."""
    finished: bool

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt, *self.answer]


class Minibatch(NamedTuple):
    """All that one PPO step needs."""

    ids: Int[Tensor, "rows seq+1"]
    response_mask: Bool[Tensor, "rows seq"]
    old_logprobs: Float[Tensor, "rows seq"]
    old_values: Float[Tensor, "rows seq"]
    advantages: Float[Tensor, "rows seq"]
    returns: Float[Tensor, "rows seq"]


class Rollout(NamedTuple):
    """An iteration's answers, ready to learn from, and what there is to log about them."""

    minibatches: list[Minibatch]
    samples: list[Sampled]
    metrics: dict[str, float]


@torch.no_grad()
def rollout(ppo: Ppo, prompts: Sequence[TaggedPrompt], seed: int) -> Rollout:
    """Sample, score, and turn scores into advantages and returns of every token.

    The order is the paper's: the combined score is whitened over the batch, then the divergence
    is taken off. Advantages are whitened over all tokens of the batch.
    """
    config = ppo.config
    samples = sample_answers(ppo.model.policy, prompts, config, seed, ppo.eos_id)
    rewarded = ppo.rewards([sample.ids for sample in samples], [tag for _, tag in prompts])
    tags = torch.tensor([tag for _, tag in prompts], device=ppo.device)
    score = _whitened(_finite(rewarded.combined, ppo.device), tags, config.whiten_by)
    finished = torch.tensor([sample.finished for sample in samples], device=ppo.device)
    score = score.masked_fill(~finished, config.missing_eos_score)
    parts = layout(samples, config.batch_size // config.minibatch_size, seed)
    credited = [_credited(ppo, part, score) for part in parts]
    advantages = whiten_together(
        [part.advantages for part in credited], [part.response_mask for part in credited]
    )
    minibatches = [
        Minibatch(c.ids, c.response_mask, c.logprobs, c.values, whitened, c.returns)
        for c, whitened in zip(credited, advantages, strict=True)
    ]
    return Rollout(minibatches, samples, _summary(samples, rewarded, score, credited))


def sample_answers(
    policy: Transformer,
    prompts: Sequence[TaggedPrompt],
    config: PpoConfig,
    seed: int,
    eos_id: int,
) -> list[Sampled]:
    """Return one sampled answer to each prompt."""
    completions = generate(
        policy,
        [ids for ids, _ in prompts],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        stop_ids={eos_id},
    )
    return [
        Sampled(list(ids), done.ids, done.finished)
        for (ids, _), done in zip(prompts, completions, strict=True)
    ]


def _finite(combined: np.ndarray, device: torch.device) -> Tensor:
    raw = torch.from_numpy(combined).to(device, torch.float32)
    if not bool(raw.isfinite().all()):
        row = int((~raw.isfinite()).nonzero()[0])
        raise ValueError(
            f"rewards must be finite; that of row {row} is {raw[row].item()}, and whitening would "
            "make it everybody's. Look at the reward models."
        )
    return raw


def _whitened(raw: Tensor, tags: Tensor, by: str) -> Tensor:
    if by == "nothing":
        return raw
    return whiten(raw) if by == "batch" else whiten(raw, tags) + whiten(raw, ~tags)


class Actions(NamedTuple):
    """A mini-batch of rows, padded on the right; position t of a mask is about target t + 1."""

    rows: Int[Tensor, " rows"]
    """Numbers of the rows in the whole batch."""
    ids: Int[Tensor, "rows seq+1"]
    response_mask: Bool[Tensor, "rows seq"]
    """True where the target is a token of the answer, the final EOS included."""


def layout(samples: Sequence[Sampled], n_minibatches: int, seed: int) -> list[Actions]:
    """Divide rows into mini-batches of similar length, in random order.

    Rows of similar length share a mini-batch, so that little is padding.
    """
    if not 1 <= n_minibatches <= len(samples):
        raise ValueError(
            f"n_minibatches must lie in 1...{len(samples)}, the number of rows; got "
            f"{n_minibatches}."
        )
    empty = [row for row, sample in enumerate(samples) if not sample.answer]
    if empty:
        raise ValueError(f"every answer needs a token; those of rows {empty[:5]} have none.")
    lengths = np.array([len(sample.ids) for sample in samples])
    parts = np.array_split(lengths.argsort(kind="stable"), n_minibatches)
    order = np.random.default_rng(seed).permutation(n_minibatches)
    return [_actions(samples, parts[place]) for place in order]


def _actions(samples: Sequence[Sampled], rows: np.ndarray) -> Actions:
    ids = torch.zeros(len(rows), max(len(samples[row].ids) for row in rows), dtype=torch.int64)
    mask = torch.zeros(len(rows), ids.shape[1] - 1, dtype=torch.bool)
    for place, row in enumerate(rows):
        sample = samples[row]
        ids[place, : len(sample.ids)] = torch.tensor(sample.ids)
        mask[place, len(sample.prompt) - 1 : len(sample.ids) - 1] = True
    return Actions(torch.from_numpy(rows.copy()), ids, mask)


class _Credited(NamedTuple):
    """A mini-batch as policy, value function and reference see it."""

    ids: Tensor
    response_mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor
    """Sampled divergence, k1, summed over each answer."""
    exact_kl: Tensor
    """Over the whole vocabulary, summed over all tokens of all answers."""
    entropy: Tensor
    """Summed over all tokens of all answers."""


def _credited(ppo: Ppo, part: Actions, score: Tensor) -> _Credited:
    """Return what each token of a mini-batch is credited with.

    The log-probabilities are computed in the very shapes in which they are computed again for
    training: before the first step the ratio is then 1 to the last bit.
    """
    config, device = ppo.config, ppo.device
    ids, mask = part.ids.to(device), part.response_mask.to(device)
    logprobs, full = answer_logprobs(ppo.model.policy, mask, ids, config.temperature)
    ref_logprobs, ref_full = answer_logprobs(ppo.reference, mask, ids, config.temperature)
    values = ppo.model.values(mask, ids)
    reward = shaped_rewards(score[part.rows.to(device)], logprobs, ref_logprobs, mask, config.beta)
    advantages, returns = gae(reward, values, mask, gamma=config.gamma, lam=config.lam)
    p = full.exp()
    return _Credited(
        ids,
        mask,
        logprobs,
        values,
        advantages,
        returns,
        kl=(logprobs - ref_logprobs).sum(dim=1),
        exact_kl=(p * (full - ref_full)).sum(),
        entropy=-(p * full).sum(),
    )


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
    logits = policy.logits(hidden)
    full = (logits / temperature if temperature != 1 else logits).log_softmax(dim=-1)
    spoken = full.gather(-1, ids[:, 1:][response_mask][:, None])[:, 0]
    return full.new_zeros(response_mask.shape).masked_scatter(response_mask, spoken), full


def first_answer(response_mask: Bool[Tensor, "rows seq"]) -> int:
    """Return the first position that counts in any row: what stands before is only read."""
    return int(response_mask.any(dim=0).to(torch.uint8).argmax())


def whiten_together(
    parts: Sequence[Float[Tensor, "_ _"]], masks: Sequence[Bool[Tensor, "_ _"]]
) -> list[Float[Tensor, "_ _"]]:
    """Whiten the counted values of all mini-batches as one set; what does not count becomes 0."""
    flat = whiten(torch.cat([part[mask] for part, mask in zip(parts, masks, strict=True)]))
    pieces = flat.split([int(mask.sum()) for mask in masks])
    return [
        torch.zeros_like(part).masked_scatter(mask, piece)
        for part, mask, piece in zip(parts, masks, pieces, strict=True)
    ]


def _summary(
    samples: Sequence[Sampled], rewarded: Rewarded, score: Tensor, parts: Sequence[_Credited]
) -> dict[str, float]:
    n = len(samples)
    n_tokens = sum(int(part.response_mask.sum()) for part in parts)
    return {
        "reward": float(rewarded.combined.mean()),
        "reward_std": float(rewarded.combined.std()),
        "helpfulness": float(rewarded.helpfulness.mean()),
        "safety": float(rewarded.safety.mean()),
        "score": float(score.mean()),
        "kl": sum(float(part.kl.sum()) for part in parts) / n,
        "exact_kl": sum(float(part.exact_kl) for part in parts) / n,
        "entropy": sum(float(part.entropy) for part in parts) / n_tokens,
        "length": n_tokens / n,
        "finished": sum(sample.finished for sample in samples) / n,
        "distinct": len({tuple(sample.ids) for sample in samples}) / n,
    }


# --- 5: the losses of a step


def ppo_loss(config: PpoConfig) -> Callable[[Any, Minibatch], LossTerm]:
    """Return the loss of a mini-batch: clipped surrogate and `value_weight` times value loss."""
    value_term = value_loss(config)

    def loss(model: ActorCritic, batch: Minibatch) -> LossTerm:
        logprobs, _ = answer_logprobs(
            model.policy, batch.response_mask, batch.ids, config.temperature
        )
        policy = ppo_policy_loss(
            logprobs, batch.old_logprobs, batch.advantages, batch.response_mask, config.clip
        )
        if not config.value_weight:
            return policy
        value = value_term(model, batch)
        total = policy.total + config.value_weight * value.total
        return LossTerm(total, policy.count, policy.metrics | value.metrics)

    return loss


def value_loss(config: PpoConfig) -> Callable[[Any, Minibatch], LossTerm]:
    """Return the value loss of a mini-batch alone, for the warm-up."""

    def loss(model: ActorCritic, batch: Minibatch) -> LossTerm:
        return ppo_value_loss(
            model.values(batch.response_mask, batch.ids),
            batch.old_values,
            batch.returns,
            batch.response_mask,
            config.value_clip,
        )

    return loss


# --- prompts, and what is measured on those that no gradient sees


def ppo_prompts(recipe: Recipe, tokenizer: Tokenizer) -> list[TaggedPrompt]:
    """Return the encoded training prompts with their tags; short ones only."""
    config = recipe.ppo
    prompt_set = sample_prompts(
        WorldSource(make_world(recipe.corpus.world_seed)),
        rng.seed_from(config.seed, "ppo prompts"),
        config.n_prompts,
        tokenizer,
        longest=config.longest_prompt,
    )
    return list(zip(prompt_set.ids, prompt_set.tags, strict=True))


def prompt_stream(encoded: Sequence[TaggedPrompt], batch_size: int, seed: int) -> Prompts:
    """Return a function that gives `batch_size` prompts an iteration, all before any twice."""
    if len(encoded) < batch_size:
        raise ValueError(
            f"an iteration needs {batch_size} prompts; got {len(encoded)}. Take more, or a "
            "smaller batch."
        )

    def of(iteration: int) -> list[TaggedPrompt]:
        places = range(iteration * batch_size, (iteration + 1) * batch_size)
        epochs = {place // len(encoded) for place in places}
        shuffled = {epoch: _shuffled(len(encoded), seed, epoch) for epoch in sorted(epochs)}
        return [encoded[shuffled[p // len(encoded)][p % len(encoded)]] for p in places]

    return of


def _shuffled(n: int, seed: int, epoch: int) -> list[int]:
    order = list(range(n))
    rng.random_source(seed, "prompts", epoch).shuffle(order)
    return order


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Measures a policy on prompts that no gradient ever sees.

    The gold judges are an outside check; nothing in training reads what they say.
    """

    prompt_set: PromptSet
    world: World
    tokenizer: Tokenizer
    models: RewardModels
    max_new_tokens: int
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, tokenizer: Tokenizer, models: RewardModels) -> "HeldOut":
        """Return the measure of a run: training wordings, but prompts of another stream."""
        config, world = recipe.ppo, make_world(recipe.corpus.world_seed)
        seed = rng.seed_from(config.seed, "ppo held out")
        longest = room(recipe.model, config.max_new_tokens)
        prompt_set = sample_prompts(
            WorldSource(world), seed, config.n_held_out, tokenizer, longest=longest
        )
        return cls(prompt_set, world, tokenizer, models, config.max_new_tokens, seed)

    def __call__(self, policy: Transformer) -> dict[str, float]:
        """Return mean rewards, raw, and mean gold marks of one sampled answer to each prompt."""
        dialogs, tok = self.prompt_set.dialogs, self.tokenizer
        options = {"seed": self.seed, "max_new_tokens": self.max_new_tokens}
        replies = reply(policy, tok, dialogs, temperature=1.0, **options)
        # A text ends with EOS though its answer may not have: give the reply to a new chain.
        rows = [
            scored_row(dialog, answer.text, tok, room(policy, 0))
            for dialog, answer in zip(dialogs, replies, strict=True)
        ]
        rewarded = self.models(rows, self.prompt_set.tags)
        marks = gold_marks(self.world, self.prompt_set.prompts, [a.text for a in replies])
        harmless = ~marks.adversarial
        return {
            "held_out_reward": float(rewarded.combined.mean()),
            "held_out_helpfulness": float(rewarded.helpfulness[harmless].mean()),
            "held_out_safety": float(rewarded.safety[~harmless].mean()),
            "held_out_finished": sum(answer.ended for answer in replies) / len(replies),
            "gold_quality": float(marks.quality.mean()),
            "gold_helpfulness": float(marks.helpfulness[harmless].mean()),
            "gold_safety": float(marks.safety[~harmless].mean()),
        }


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
