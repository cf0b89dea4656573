"""Two invariants of PPO from end to end: what must not move a policy, and what must not count."""

import itertools

import numpy as np
import pytest
import torch

from llama2_lib.config import PpoConfig
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.heads import scalar_model
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.stages.ppo import ActorCritic, Minibatch, Ppo, ppo_loss, rollout, train
from llama2_lib.stages.reward import Rewarded
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import adamw

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB, EOS, N = 11, 2, 12
PROMPTS = [([1, *range(3, 4 + row % 5), 3 + row % 7], row % 3 == 0) for row in range(N)]


def network(seed=0):
    """A policy of fp64 that prefers some tokens clearly."""
    shape = ModelConfig(
        vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, n_kv_heads=1, multiple_of=8,
        max_seq_len=21,
    )  # fmt: skip
    model = initialise(Transformer(shape), seed).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(12)
    return model


def config(**changes):
    given = {
        "iterations": 2, "batch_size": N, "minibatch_size": N, "max_new_tokens": 6, "lr": 1e-2,
        "value_warmup": 0, "whiten_by": "nothing", "eval_every": 1000, "save_every": 1000,
    }  # fmt: skip
    return PpoConfig(**(given | changes))


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
    settings = config(**{"beta": 0.0, "missing_eos_score": 0.0, "weight_decay": 0.0, **changes})
    model = ActorCritic(network(), scalar_model(network(5), seed=value_seed))
    policy, value = weights(model.policy), weights(model.value)
    ppo = Ppo(config=settings, model=model, reference=network(1), rewards=rewards, eos_id=EOS)
    train(ppo, lambda iteration: PROMPTS, lambda policy: {"held_out_reward": 0.0}, folder)
    return changed(policy, model.policy), changed(value, model.value)


def test_advantages_of_0_leave_every_bit_of_the_policy(tmp_path):
    assert moved(tmp_path / "still", value_weight=0.0) == (set(), set())
    matrices = {name for name, p in network().named_parameters() if p.dim() == 2}
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
def rolled():
    """One mini-batch with answers of unequal lengths, and a policy that is off it by a step."""
    settings = config(beta=0.25, value_clip=0.3)
    model = ActorCritic(network(), scalar_model(network(5), seed=7))
    ppo = Ppo(config=settings, model=model, reference=network(1), rewards=length, eos_id=EOS)
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


def test_the_order_of_rows_changes_nothing(rolled):
    settings, model, batch = rolled
    whole = loss_and_gradients(settings, model, batch)
    assert whole[0].abs() > 0.01
    assert whole[2] > 0  # the clip is at work
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    close(loss_and_gradients(settings, model, Minibatch(*(x[order] for x in batch))), whole)
    mixed = batch._replace(advantages=batch.advantages[order])  # of other rows
    assert (loss_and_gradients(settings, model, mixed)[0] - whole[0]).abs() > 1e-3


def test_padding_on_the_right_changes_nothing(rolled):
    settings, model, batch = rolled
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
def test_micro_batches_change_nothing(rolled, cuts):
    settings, model, batch = rolled
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
