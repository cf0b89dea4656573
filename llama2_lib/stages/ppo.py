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
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llama2_lib import parallel, rng, storage
from llama2_lib.config import PpoConfig, Recipe
from llama2_lib.evaluation.judged import gold_marks
from llama2_lib.model.chat import reply, room, scored_row
from llama2_lib.model.generate import Completion, generate
from llama2_lib.model.transformer import ScalarModel, Transformer, scalar_model
from llama2_lib.model.weights import load_model, save_model
from llama2_lib.objectives.language import LossTerm
from llama2_lib.objectives.rlhf import (
    explained_variance,
    gae,
    ppo_policy_loss,
    ppo_value_loss,
    shaped_rewards,
    whiten,
)
from llama2_lib.stages.fit import STORED, Report
from llama2_lib.stages.folder import source_of
from llama2_lib.stages.job import Job
from llama2_lib.stages.prompts import sample_prompts
from llama2_lib.stages.reward import Rewarded, RewardModels, load_rewards
from llama2_lib.stages.sft import unseen_dialogs
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training import sharded
from llama2_lib.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import adamw
from llama2_lib.world import make_world

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
    best = train(ppo, prompts, held_out(recipe, tokenizer, models), job.folder, job.report)
    job.write_answers(best, unseen_dialogs(job))


class ActorCritic(nn.Module):
    """The policy and its value function: two networks, so that neither moves the other."""

    def __init__(self, policy: Transformer, value: ScalarModel):
        super().__init__()
        assert policy.config.vocab_size == value.config.vocab_size, "two vocabularies"
        self.policy, self.value = policy, value

    def values(
        self, response_mask: Bool[Tensor, "rows seq"], ids: Int[Tensor, "rows seq+1"]
    ) -> Float[Tensor, "rows seq"]:
        """Return the values before each token of the answers; 0 before all answers begin."""
        since = first_answer(response_mask)
        return F.pad(self.value(ids[:, :-1], since=since), (since, 0))


@dataclass(frozen=True, kw_only=True)
class Ppo:
    """What every iteration needs."""

    config: PpoConfig
    model: ActorCritic
    """The policy to be trained and its value function."""
    reference: Transformer
    """Frozen, and not the policy itself: a copy of where it starts."""
    rewards: Rewards
    eos_id: int
    """Ends an answer."""

    def __post_init__(self) -> None:
        shared = {p.data_ptr() for p in self.model.policy.parameters()}
        copied = all(p.data_ptr() not in shared for p in self.reference.parameters())
        assert copied, "the reference must be a copy of the policy, with weights of its own"

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.model.parameters()).device


# --- the loop


def train(
    ppo: Ppo, prompts: Prompts, measure: Measure, folder: Path,
    report: Report = lambda done, words: None,
) -> Transformer:  # fmt: skip
    """Train the policy in place, or continue from the newest checkpoint in `folder`.

    The policy is measured before the first iteration and every `eval_every`. Leaves the one that
    was best on held-out prompts, and `metrics.jsonl` with a row for every iteration. Killed at any
    moment and started again, it ends with the same bits. A loss or gradient that is not finite is a
    FloatingPointError.
    """
    config, model = ppo.config, ppo.model
    rates = {"value.": config.value_lr_multiplier}
    sharded.shard(model, model.policy, model.value)
    optimizer = adamw(model, weight_decay=config.weight_decay, rates=rates)
    start = load_checkpoint(folder, model, optimizer)
    log = storage.MetricsLog(folder / "metrics.jsonl")
    log.keep_up_to(start or -1)
    rows = storage.read_metrics(log.path)
    measured = [row["held_out_reward"] for row in rows if "held_out_reward" in row]

    def look(step: int) -> None:
        policy = sharded.whole(model).policy
        row = measure(policy)
        if not measured or row["held_out_reward"] > max(measured):
            save_model(policy, folder, STORED)
        measured.append(row["held_out_reward"])
        log.write(step, **row)

    if start == 0:
        look(0)
    total = config.value_warmup + config.iterations
    for iteration in range(start, total):
        since_best = len(measured) - 1 - int(np.argmax(measured)) if measured else 0
        if since_best >= config.patience:
            break
        done = iteration + 1
        row = iterate(ppo, optimizer, prompts(iteration), iteration)
        log.write(done, **row)
        learned = done - config.value_warmup  # the policy stays as it is until then
        if learned > 0 and (learned % config.eval_every == 0 or done == total):
            look(done)
        if done % config.save_every == 0 and done < total:
            save_checkpoint(folder, done, model, optimizer)
        report(done / total, f"reward {row['reward']:+.2f}, KL {row['kl']:.2f}")
    clear_checkpoints(folder)
    return load_model(folder)[0]


def iterate(
    ppo: Ppo, optimizer: torch.optim.Optimizer, prompts: Sequence[TaggedPrompt], iteration: int
) -> dict[str, float]:
    """Do one iteration and return its row of metrics."""
    ppo.model.eval()
    seed = rng.seed_from(ppo.config.seed, "ppo", iteration)
    # Weights are gathered once: doing so for every token, the paper saw a slowdown of about 20x.
    batch = rollout(replace(ppo, model=sharded.whole(ppo.model)), prompts, seed)
    steps = list(
        optimize(
            ppo.model, optimizer, iter(batch.minibatches),
            ppo_loss(ppo.config, value_only=iteration < ppo.config.value_warmup),
            lambda _: ppo.config.lr, steps=range(len(batch.minibatches)),
            clip_norm=ppo.config.clip_norm,
        )
    )  # fmt: skip
    averages = {
        name: sum(step.metrics[name] for step in steps) / len(steps) for name in steps[0].metrics
    }
    row = averages | batch.metrics
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
    """All that one PPO step needs; position t is about target t + 1."""

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
    config, device = ppo.config, ppo.device
    # 1. sample
    samples = sample_answers(ppo.model.policy, prompts, config, seed, ppo.eos_id)
    tags, finished = [tag for _, tag in prompts], [sample.finished for sample in samples]
    # 2. score, whiten, punish missing ends
    rewarded = ppo.rewards([sample.ids for sample in samples], tags)
    raw = torch.from_numpy(rewarded.combined).to(device, torch.float32)
    score = _whitened(raw, torch.tensor(tags, device=device), config.whiten_by)
    score = score.masked_fill(~torch.tensor(finished, device=device), config.missing_eos_score)
    # 3 and 4. shape, GAE; whiten the advantages of all mini-batches together
    parts = layout(samples, config.batch_size // config.minibatch_size, seed)
    # Each process credits the rows that it will train on, in the shapes in which it will.
    own = [_credited(ppo, parallel.own_rows(part), score) for part in parts]
    credited, drifts = (
        [parallel.all_rows(each, len(part.rows)) for each, part in zip(column, parts, strict=True)]
        for column in zip(*own, strict=True)
    )
    advantages = whiten_together(
        [part.advantages for part in credited], [part.response_mask for part in credited]
    )
    minibatches = [
        part._replace(advantages=whitened)
        for part, whitened in zip(credited, advantages, strict=True)
    ]
    n, n_tokens = len(samples), sum(len(sample.answer) for sample in samples)
    values, returns = (
        torch.cat([getattr(part, name)[part.response_mask] for part in credited])
        for name in ("old_values", "returns")
    )
    kl, exact_kl, entropy = (float(torch.cat(column).sum()) for column in zip(*drifts, strict=True))
    metrics = {
        "reward": float(rewarded.combined.mean()),
        "reward_std": float(rewarded.combined.std()),
        "helpfulness": float(rewarded.helpfulness.mean()),
        "safety": float(rewarded.safety.mean()),
        "score": float(score.mean()),
        "kl": kl / n,
        "exact_kl": exact_kl / n,
        "entropy": entropy / n_tokens,
        "length": n_tokens / n,
        "finished": sum(finished) / n,
        "distinct": len({tuple(sample.ids) for sample in samples}) / n,
        "explained_variance": float(explained_variance(values, returns)),
    }
    return Rollout(minibatches, samples, metrics)


def sample_answers(
    policy: Transformer, prompts: Sequence[TaggedPrompt], config: PpoConfig, seed: int, eos_id: int
) -> list[Sampled]:
    """Return one sampled answer to each prompt."""

    def ask(rows: Sequence[int]) -> list[Completion]:
        return generate(
            policy, [prompts[row][0] for row in rows], max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=[rng.seed_from(seed, "generate", row) for row in rows], stop_ids={eos_id},
        )  # fmt: skip

    completions = parallel.shared(range(len(prompts)), ask)
    return [
        Sampled(list(ids), done.ids, done.finished)
        for (ids, _), done in zip(prompts, completions, strict=True)
    ]


def _whitened(raw: Tensor, tags: Tensor, by: str) -> Tensor:
    if not bool(raw.isfinite().all()):
        raise ValueError(
            f"rewards must be finite; that of row {int((~raw.isfinite()).nonzero()[0])} is not, "
            "and whitening would make it everybody's. Look at the reward models."
        )
    if by == "nothing":
        return raw
    return whiten(raw) if by == "batch" else whiten(raw, tags) + whiten(raw, ~tags)


class Actions(NamedTuple):
    """A mini-batch of rows, padded on the right; position t of the mask is about target t + 1."""

    rows: Int[Tensor, " rows"]
    """Numbers of the rows in the whole batch."""
    ids: Int[Tensor, "rows seq+1"]
    response_mask: Bool[Tensor, "rows seq"]
    """True where the target is a token of the answer, the final EOS included."""


def layout(samples: Sequence[Sampled], n_minibatches: int, seed: int) -> list[Actions]:
    """Divide rows into mini-batches in random order, of similar length: little is padding."""
    assert 1 <= n_minibatches <= len(samples)
    assert all(sample.answer for sample in samples)
    begins = torch.tensor([len(sample.prompt) for sample in samples])
    ends = torch.tensor([len(sample.ids) for sample in samples])
    parts = np.array_split(ends.numpy().argsort(kind="stable"), n_minibatches)
    actions = []
    for place in np.random.default_rng(seed).permutation(n_minibatches):
        rows = torch.from_numpy(parts[place])
        unpadded = [torch.tensor(samples[row].ids, dtype=torch.int64) for row in parts[place]]
        ids = pad_sequence(unpadded, batch_first=True)
        target = torch.arange(1, ids.shape[1])
        mask = (begins[rows, None] <= target) & (target < ends[rows, None])
        actions.append(Actions(rows, ids, mask))
    return actions


class Drift(NamedTuple):
    """How far the policy is from the reference, and how undecided; sums over each answer."""

    kl: Float[Tensor, " rows"]
    """Sampled: k1."""
    exact_kl: Float[Tensor, " rows"]
    """Over the whole vocabulary."""
    entropy: Float[Tensor, " rows"]


def _credited(ppo: Ppo, part: Actions, score: Tensor) -> tuple[Minibatch, Drift]:
    """Return what each token is credited with, not whitened yet, and how far each answer strays.

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

    def by_answer(of_tokens: Tensor) -> Tensor:
        return torch.zeros_like(logprobs).masked_scatter(mask, of_tokens).sum(dim=1)

    drift = Drift(
        (logprobs - ref_logprobs).sum(dim=1),
        by_answer((p * (full - ref_full)).sum(dim=-1)),
        by_answer(-(p * full).sum(dim=-1)),
    )
    return Minibatch(ids, mask, logprobs, values, advantages, returns), drift


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


# --- 5: the losses of a step


def ppo_loss(
    config: PpoConfig, *, value_only: bool = False
) -> Callable[[Any, Minibatch], LossTerm]:
    """Return the loss of a mini-batch: clipped surrogate and `value_weight` times value loss.

    During the warm-up it is the value loss alone.
    """

    def value_loss(model: ActorCritic, batch: Minibatch) -> LossTerm:
        mask, values = batch.response_mask, model.values(batch.response_mask, batch.ids)
        return ppo_value_loss(values, batch.old_values, batch.returns, mask, config.value_clip)

    def loss(model: ActorCritic, batch: Minibatch) -> LossTerm:
        mask = batch.response_mask
        logprobs, _ = answer_logprobs(model.policy, mask, batch.ids, config.temperature)
        policy = ppo_policy_loss(logprobs, batch.old_logprobs, batch.advantages, mask, config.clip)
        if not config.value_weight:
            return policy
        value = value_loss(model, batch)
        total = policy.total + config.value_weight * value.total
        return LossTerm(total, policy.count, policy.metrics | value.metrics)

    return value_loss if value_only else loss


# --- prompts, and what is measured on those that no gradient sees


def ppo_prompts(recipe: Recipe, tokenizer: Tokenizer) -> list[TaggedPrompt]:
    """Return the encoded training prompts with their tags; short ones only."""
    config, source = recipe.ppo, source_of(recipe.corpus.world_seed, recipe.corpus.data)
    seed, longest = rng.seed_from(config.seed, "ppo prompts"), config.longest_prompt
    prompt_set = sample_prompts(source, seed, config.n_prompts, tokenizer, longest=longest)
    return list(zip(prompt_set.ids, prompt_set.tags, strict=True))


def prompt_stream(encoded: Sequence[TaggedPrompt], batch_size: int, seed: int) -> Prompts:
    """Return a function that gives `batch_size` prompts an iteration, all before any twice."""
    n = len(encoded)
    if n < batch_size:
        raise ValueError(
            f"an iteration needs {batch_size} prompts; got {n}. Take more, or a smaller batch."
        )

    @cache
    def order(epoch: int) -> list[int]:
        places = list(range(n))
        rng.random_source(seed, "prompts", epoch).shuffle(places)
        return places

    def of(iteration: int) -> list[TaggedPrompt]:
        places = range(iteration * batch_size, (iteration + 1) * batch_size)
        return [encoded[order(place // n)[place % n]] for place in places]

    return of


def held_out(recipe: Recipe, tokenizer: Tokenizer, models: RewardModels) -> Measure:
    """Return the measure of a run: training wordings, but prompts of another stream.

    It samples one answer to each prompt and returns mean rewards, raw, and mean gold marks. The
    gold judges are an outside check; nothing in training reads what they say. A folder has none,
    and its prompts are those held out.
    """
    config, world = recipe.ppo, make_world(recipe.corpus.world_seed)
    source = source_of(recipe.corpus.world_seed, recipe.corpus.data)
    split = "train" if source.judge else "held out"
    seed = rng.seed_from(config.seed, "ppo held out")
    longest = room(recipe.model, config.max_new_tokens)
    prompt_set = sample_prompts(
        source, seed, config.n_held_out, tokenizer, longest=longest, split=split
    )
    dialogs = prompt_set.dialogs
    options = {"temperature": 1.0, "seed": seed, "max_new_tokens": config.max_new_tokens}

    def measure(policy: Transformer) -> dict[str, float]:
        replies = reply(policy, tokenizer, dialogs, **options)
        texts = [answer.text for answer in replies]
        rows = [scored_row(*asked, tokenizer) for asked in zip(dialogs, replies, strict=True)]
        rewarded = models(rows, prompt_set.tags)
        harmless = ~np.array(prompt_set.tags)
        parts = {
            "helpfulness": rewarded.helpfulness[harmless],
            "safety": rewarded.safety[~harmless],
        }
        row = {
            "held_out_reward": float(rewarded.combined.mean()),
            **{f"held_out_{name}": float(part.mean()) for name, part in parts.items() if part.size},
            "held_out_finished": sum(answer.ended for answer in replies) / len(replies),
        }
        if not source.judge:
            return row
        marks = gold_marks(world, prompt_set.prompts, texts)
        return row | {
            "gold_quality": float(marks.quality.mean()),
            "gold_helpfulness": float(marks.helpfulness[harmless].mean()),
            "gold_safety": float(marks.safety[~harmless].mean()),
        }

    return measure
