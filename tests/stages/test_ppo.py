"""One iteration of PPO on toy models in fp64: every number of a rollout, by hand."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch

from llama2_lib.config import PpoConfig
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer, initialise, scalar_model
from llama2_lib.objectives.rlhf import token_logprobs, whiten
from llama2_lib.stages.ppo import (
    ActorCritic,
    Minibatch,
    Ppo,
    answer_logprobs,
    ppo_loss,
    rollout,
    train,
)
from llama2_lib.stages.reward import Rewarded
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import adamw

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB, EOS, N = 11, 2, 12
PROMPTS = [([1, *range(3, 4 + row % 5), 3 + row % 7], row % 3 == 0) for row in range(N)]


def network(seed=0, n_layers=1, scale=18):
    """A policy of fp64 that prefers some tokens clearly."""
    shape = ModelConfig(
        vocab_size=VOCAB, dim=16, n_layers=n_layers, n_heads=2, n_kv_heads=1, multiple_of=8,
        max_seq_len=21,
    )  # fmt: skip
    model = initialise(Transformer(shape), seed).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(scale)
    return model


def actor_critic(seed=0):
    return ActorCritic(network(seed), scalar_model(network(5), seed=7))


def config(**changes):
    given = {
        "iterations": 2, "batch_size": N, "minibatch_size": 4, "max_new_tokens": 6, "lr": 1e-2,
        "value_warmup": 0, "whiten_by": "nothing", "beta": 0.25, "temperature": 0.8,
        "eval_every": 1000, "save_every": 1000,
    }  # fmt: skip
    return PpoConfig(**(given | changes))


def eighths(rows, tags):
    """Raw scores that are exact in every precision; tagged prompts have another zero."""
    hashes = [sum(i * t for i, t in enumerate(row)) % 8 for row in rows]
    values = np.array([h / 8 + 4 * tag for h, tag in zip(hashes, tags, strict=True)])
    return Rewarded(values + 1, values - 1, values)


def rolled(settings=None, *, model=None, reference=None, rewards=eighths, prompts=PROMPTS, seed=3):
    model = model or actor_critic()
    reference = reference or network(1)
    settings = settings or config()
    ppo = Ppo(config=settings, model=model, reference=reference, rewards=rewards, eos_id=EOS)
    return rollout(ppo, prompts, seed), model


def by_sample(found):
    """Yield every sample with its mini-batch, and its row there."""
    places = {
        tuple(ids[: len(sample.ids)].tolist()): (batch, row)
        for batch in found.minibatches
        for row, ids in enumerate(batch.ids)
        for sample in found.samples
        if ids[: len(sample.ids)].tolist() == sample.ids
        and batch.response_mask[row].nonzero()[-1, 0] == len(sample.ids) - 2
    }
    assert len(places) == sum(len(batch.ids) for batch in found.minibatches) == N
    for sample in found.samples:
        yield sample, *places[tuple(sample.ids)]


def to_go(found):
    """Yield each sample with what is left of its rewards from every answer token on.

    With gamma and lambda 1 these are the returns.
    """
    for sample, batch, row in by_sample(found):
        yield sample, batch.returns[row][batch.response_mask[row]]


def last_rewards(found):
    return np.array([left[-1].item() for _, left in to_go(found)])


def test_every_answer_stands_in_one_minibatch_as_it_was_sampled():
    found, model = rolled()
    said = generate(
        model.policy, [ids for ids, _ in PROMPTS], max_new_tokens=6, temperature=0.8, seed=3,
        stop_ids={EOS},
    )  # fmt: skip
    for (sample, batch, row), (ids, _), done in zip(by_sample(found), PROMPTS, said, strict=True):
        assert (sample.prompt, sample.answer) == (ids, done.ids)
        assert sample.finished is done.finished is (done.ids[-1] == EOS)
        targets = batch.ids[row, 1:][batch.response_mask[row]]
        assert targets.tolist() == done.ids
        # of the same temperature as the sampler's own
        kept = batch.old_logprobs[row][batch.response_mask[row]]
        torch.testing.assert_close(kept, torch.tensor(done.logprobs).double(), rtol=0, atol=1e-6)
    assert {sample.finished for sample in found.samples} == {True, False}
    assert [len(batch.ids) for batch in found.minibatches] == [4, 4, 4]


def test_rewards_are_asked_for_prompt_and_answer_with_the_tag():
    asked = []

    def listening(rows, tags):
        asked.append((rows, tags))
        return eighths(rows, tags)

    found, _ = rolled(rewards=listening)
    assert asked == [([s.ids for s in found.samples], [tag for _, tag in PROMPTS])]


def test_before_the_first_step_the_ratio_is_1_to_the_last_bit():
    settings = config()
    found, model = rolled(settings)
    loss = ppo_loss(settings)
    for batch in found.minibatches:
        mask = batch.response_mask
        now, _ = answer_logprobs(model.policy, mask, batch.ids, settings.temperature)
        assert torch.equal(now.detach(), batch.old_logprobs)
        whole = token_logprobs(model.policy(batch.ids[:, :-1]) / settings.temperature, batch.ids)
        torch.testing.assert_close(now[mask], whole[mask], rtol=0, atol=1e-10)
        assert now[~mask].abs().max() == 0
        metrics = loss(model, batch).metrics
        assert metrics["ratio"].item() == 1.0
        assert metrics["approx_kl"].item() == metrics["clip_fraction"].item() == 0.0
    optimizer = adamw(model)
    loss(model, found.minibatches[0]).total.backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    assert loss(model, found.minibatches[1]).metrics["approx_kl"].item() > 1e-6


def test_the_divergence_from_a_copy_is_exactly_0():
    model = actor_critic()
    found, _ = rolled(model=model, reference=copy.deepcopy(model.policy))
    assert found.metrics["kl"] == found.metrics["exact_kl"] == 0.0
    assert rolled()[0].metrics["exact_kl"] > 0.1


def test_rewards_to_go_are_the_score_less_beta_times_the_log_ratio():
    reference = network(1)
    found, model = rolled(config(beta=0.25, missing_eos_score=-3.0), reference=reference)
    total = 0.0
    for (sample, left), tag in zip(to_go(found), [tag for _, tag in PROMPTS], strict=True):
        ids = torch.tensor([sample.ids])
        score = eighths([sample.ids], [tag]).combined[0] if sample.finished else -3.0
        with torch.no_grad():
            own, fixed = (m(ids[:, :-1]) / 0.8 for m in (model.policy, reference))
            ratio = token_logprobs(own, ids) - token_logprobs(fixed, ids)
        ratio = ratio[0, len(sample.prompt) - 1 :]
        wanted = score - 0.25 * ratio.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(left, wanted, rtol=0, atol=1e-10)
        total += ratio.sum().item()
    assert found.metrics["kl"] == pytest.approx(total / N, rel=0, abs=1e-10)
    assert abs(total) > 1


def test_an_answer_that_did_not_end_gets_the_score_for_that():
    found, _ = rolled(config(beta=0.0, missing_eos_score=-7.0))
    ended = np.array([sample.finished for sample in found.samples])
    raw = eighths([s.ids for s in found.samples], [tag for _, tag in PROMPTS]).combined
    assert 0 < ended.sum() < N
    wanted = np.where(ended, raw, -7.0)  # credit sums and subtracts: the last bit is the machine's
    np.testing.assert_allclose(last_rewards(found), wanted, rtol=0, atol=1e-12)
    assert found.metrics["score"] == pytest.approx(np.where(ended, raw, -7.0).mean(), abs=1e-6)
    assert found.metrics["reward"] == pytest.approx(raw.mean(), abs=1e-12)  # raw, for the log


@pytest.mark.parametrize("by", ["tag", "batch", "nothing"])
def test_scores_are_whitened_over_what_the_setting_says(by):
    found, _ = rolled(config(beta=0.0, whiten_by=by, missing_eos_score=-7.0))
    tags = np.array([tag for _, tag in PROMPTS])
    raw = eighths([s.ids for s in found.samples], tags.tolist()).combined
    wanted = raw.copy()
    groups = {"tag": [tags, ~tags], "batch": [np.ones(N, bool)], "nothing": []}[by]
    for rows in groups:
        wanted[rows] = (raw[rows] - raw[rows].mean()) / raw[rows].std()
    ended = np.array([sample.finished for sample in found.samples])
    np.testing.assert_allclose(last_rewards(found)[ended], wanted[ended], rtol=0, atol=1e-5)
    # tagged prompts stand 4 higher: by tag this says nothing, over the batch it is all there is
    assert bool(wanted[tags].min() > wanted[~tags].max()) is (by != "tag")


def test_without_tagged_prompts_tag_and_batch_are_one():
    plain = [(ids, False) for ids, _ in PROMPTS]
    one, other = (
        last_rewards(rolled(config(whiten_by=by, beta=0.0), prompts=plain)[0])
        for by in ("tag", "batch")
    )
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)
    assert one.std() > 0.1


def test_equal_scores_say_nothing():
    found, _ = rolled(
        config(whiten_by="batch", beta=0.0, missing_eos_score=0.0),
        rewards=lambda rows, tags: Rewarded(*[np.full(len(rows), 0.7)] * 3),
    )
    assert np.abs(last_rewards(found)).max() == 0


def test_advantages_are_whitened_over_the_whole_batch():
    found, model = rolled()
    raw = torch.cat([(b.returns - b.old_values)[b.response_mask] for b in found.minibatches])
    got = torch.cat([b.advantages[b.response_mask] for b in found.minibatches])
    torch.testing.assert_close(got, whiten(raw), rtol=0, atol=1e-10)
    assert abs(got.mean().item()) < 1e-10
    means = [b.advantages[b.response_mask].mean().item() for b in found.minibatches]
    assert max(means) > 0.01  # not of every mini-batch by itself
    for batch in found.minibatches:
        mask = batch.response_mask
        assert batch.advantages[~mask].abs().max() == batch.returns[~mask].abs().max() == 0
        with torch.no_grad():
            assert torch.equal(model.values(mask, batch.ids), batch.old_values)
            whole = model.value(batch.ids[:, :-1])
        torch.testing.assert_close(batch.old_values[mask], whole[mask], rtol=0, atol=1e-10)
        assert not any(tensor.requires_grad for tensor in batch)


def test_what_is_logged_about_the_answers():
    found, _ = rolled()
    ended = [sample.finished for sample in found.samples]
    raw = eighths([s.ids for s in found.samples], [tag for _, tag in PROMPTS])
    wanted = {
        "reward": raw.combined.mean(), "reward_std": raw.combined.std(),
        "helpfulness": raw.helpfulness.mean(), "safety": raw.safety.mean(),
        "length": sum(len(s.answer) for s in found.samples) / N, "finished": sum(ended) / N,
        "distinct": len({str(s.ids) for s in found.samples}) / N,
    }  # fmt: skip
    for name, value in wanted.items():
        assert found.metrics[name] == pytest.approx(value, rel=0, abs=1e-9)
    assert 0 < found.metrics["entropy"] < np.log(VOCAB)


def test_the_seed_decides_and_the_models_only_listen():
    model, reference = actor_critic(), network(1)
    before = [p.clone() for m in (model, reference) for p in m.parameters()]
    runs = [rolled(model=model, reference=reference, seed=seed)[0] for seed in (3, 3, 4)]
    answers = [[sample.answer for sample in found.samples] for found in runs]
    assert answers[0] == answers[1] != answers[2]
    after = [p for m in (model, reference) for p in m.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


@pytest.mark.parametrize("by", ["nothing", "batch", "tag"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_refused(by, value):
    def broken(rows, tags):
        values = eighths(rows, tags).combined
        values[[row[-1] for row in rows].index(EOS)] = value
        return Rewarded(values, values, values)

    with pytest.raises(ValueError, match="finite"):
        rolled(config(whiten_by=by), rewards=broken)


# --- invariants from end to end: what must not move a policy, and what must not count


deep = partial(network, n_layers=2, scale=12)


def weights(model):
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def changed(before, model):
    return {name for name, p in weights(model).items() if not torch.equal(p, before[name])}


def nothing_to_gain(rows, tags):
    return Rewarded(*[np.zeros(len(rows))] * 3)


def length(rows, tags):
    return Rewarded(*[np.array([float(len(row)) for row in rows])] * 3)


def moved(folder, rewards=nothing_to_gain, value_seed=None, **changes):
    """Return the names of the weights of policy and of value function that a run has changed.

    Rewards, divergence and values of 0 make every advantage 0.
    """
    folder.mkdir()
    still = {"beta": 0.0, "missing_eos_score": 0.0, "weight_decay": 0.0}
    settings = config(minibatch_size=N, temperature=1.0, **still | changes)
    model = ActorCritic(deep(), scalar_model(deep(5), seed=value_seed))
    policy, value = weights(model.policy), weights(model.value)
    ppo = Ppo(config=settings, model=model, reference=deep(1), rewards=rewards, eos_id=EOS)
    train(ppo, lambda iteration: PROMPTS, lambda policy: {"held_out_reward": 0.0}, folder)
    return changed(policy, model.policy), changed(value, model.value)


def test_advantages_of_0_leave_every_bit_of_the_policy(tmp_path):
    assert moved(tmp_path / "still", value_weight=0.0) == (set(), set())
    matrices = {name for name, p in deep().named_parameters() if p.dim() == 2}
    # each of the conditions is needed
    for name, given in {
        "rewards": {"rewards": length},
        "divergence": {"beta": 0.3},
        "values": {"value_seed": 7},
        "decay": {"weight_decay": 0.1},
    }.items():
        policy, _ = moved(tmp_path / name, value_weight=0.0, **given)
        assert policy >= matrices, name


def test_the_value_function_learns_and_the_policy_does_not_hear_of_it(tmp_path):
    """With a random head there is something to learn, though nothing is to be gained."""
    policy, value = moved(tmp_path / "both", value_seed=7, value_weight=0.5, lam=0.0, gamma=0.0)
    assert "head.weight" in value
    alone, _ = moved(tmp_path / "alone", value_seed=7, value_weight=0.0, lam=0.0, gamma=0.0)
    assert policy == alone != set()


@pytest.fixture
def minibatch():
    """One mini-batch with answers of unequal lengths, and a policy that is off it by a step."""
    settings = config(minibatch_size=N, temperature=1.0, beta=0.25, value_clip=0.3)
    model = ActorCritic(deep(), scalar_model(deep(5), seed=7))
    ppo = Ppo(config=settings, model=model, reference=deep(1), rewards=length, eos_id=EOS)
    found = rollout(ppo, PROMPTS, 3)
    (batch,) = found.minibatches
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * p.std(correction=0) * torch.sin(torch.arange(p.numel()).view(p.shape)))
    counts = batch.response_mask.sum(dim=1)
    assert counts.min() < counts.max()
    return settings, model, batch


def loss_and_gradients(settings, model, batch):
    model.zero_grad()
    term = ppo_loss(settings)(model, batch)
    term.total.backward()
    names = ("clip_fraction", "approx_kl", "explained_variance")
    numbers = [term.total.detach(), term.count, *(term.metrics[name] for name in names)]
    return numbers + [p.grad.clone() for p in model.parameters() if p.grad is not None]


def close(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_order_of_rows_changes_nothing(minibatch):
    settings, model, batch = minibatch
    whole = loss_and_gradients(settings, model, batch)
    assert whole[0].abs() > 0.01
    assert whole[2] > 0  # the clip is at work
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    close(loss_and_gradients(settings, model, Minibatch(*(x[order] for x in batch))), whole)
    mixed = batch._replace(advantages=batch.advantages[order])  # of other rows
    assert (loss_and_gradients(settings, model, mixed)[0] - whole[0]).abs() > 1e-3


def test_padding_on_the_right_changes_nothing(minibatch):
    settings, model, batch = minibatch
    whole = loss_and_gradients(settings, model, batch)
    pad = torch.randint(0, VOCAB, (N, 3), generator=torch.Generator().manual_seed(0))

    def wide(fill, **fields):
        rest = torch.full((N, 3), fill, dtype=torch.float64)
        longer = [torch.cat([x, rest], dim=1) for x in batch[2:]]
        mask = torch.cat([batch.response_mask, torch.zeros(N, 3, dtype=torch.bool)], dim=1)
        made = Minibatch(torch.cat([batch.ids, pad], dim=1), mask, *longer)
        return made._replace(**fields)

    for fill in (0.0, 99.0, float("inf")):
        close(loss_and_gradients(settings, model, wide(fill)), whole)
    mask = torch.cat([batch.response_mask, torch.ones(N, 3, dtype=torch.bool)], dim=1)
    counted = loss_and_gradients(settings, model, wide(0.0, response_mask=mask))
    assert (counted[0] - whole[0]).abs() > 1e-3


def after_a_step(settings, model, parts):
    optimizer = adamw(model)
    steps = optimize(
        model, optimizer, iter(parts), ppo_loss(settings), lambda _: 1e-2, steps=range(1),
        accumulate=len(parts),
    )  # fmt: skip
    (step,) = steps
    return step, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("cuts", [(5,), (1, 4, 9)])
def test_micro_batches_change_nothing(minibatch, cuts):
    settings, model, batch = minibatch
    start = weights(model)
    whole, wanted = after_a_step(settings, model, [batch])
    assert changed(start, model)
    edges = itertools.pairwise((0, *cuts, N))
    parts = [Minibatch(*(x[a:b] for x in batch)) for a, b in edges]
    counts = [int(part.response_mask.sum()) for part in parts]
    assert len(set(counts)) == len(parts)
    model.load_state_dict(start)
    step, got = after_a_step(settings, model, parts)
    close(got, wanted)
    assert step.count == whole.count == sum(counts)
    assert step.loss == pytest.approx(whole.loss, rel=0, abs=1e-10)
    with torch.no_grad():
        terms = [ppo_loss(settings)(model, part) for part in parts]
        mean = sum(term.total for term in terms) / sum(term.count for term in terms)
        naive = sum(term.total / term.count for term in terms) / len(terms)
    assert (mean - naive).abs() > 1e-4  # a mean of means is another loss
