"""Weights that learn at a multiple of the loop's rate: their groups, and what the loop does."""

import itertools
from collections import Counter

import pytest
import torch
from torch import nn

from llama2_lib.model.heads import scalar_model
from llama2_lib.objectives.terms import LossTerm
from llama2_lib.training.loop import optimize
from llama2_lib.training.schedule import adamw


def by_name(model, optimizer, key):
    found = {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def test_weights_are_grouped_by_decay_and_rate(random_model):
    model = scalar_model(random_model())
    optimizer = adamw(model, weight_decay=0.3, rates={"head.": 10.0, "backbone.layers.1.": 0.5})
    counted = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    assert set(counted.values()) == {1}
    assert len(counted) == len(list(model.parameters()))
    rates, decays = (by_name(model, optimizer, key) for key in ("rate", "weight_decay"))
    assert rates["head.weight"] == rates["head.bias"] == 10.0
    assert {name for name, rate in rates.items() if rate == 0.5} == {
        name for name in rates if name.startswith("backbone.layers.1.")
    }
    assert Counter(rates.values())[0.5] == 9
    assert all(rate in (10.0, 0.5, 1.0) for rate in rates.values())
    assert decays["head.weight"] == 0.3
    assert decays["head.bias"] == 0.0
    matrices = {name for name, p in model.named_parameters() if p.dim() >= 2}
    assert {name for name, decay in decays.items() if decay} == matrices


def test_without_rates_every_weight_has_the_loops(random_model):
    model = random_model()
    assert set(by_name(model, adamw(model), "rate").values()) == {1.0}


@pytest.mark.parametrize("prefix", ["haed.", "weight", "layers"])
def test_a_name_that_no_weight_begins_with_is_refused(random_model, prefix):
    model = scalar_model(random_model())
    with pytest.raises(ValueError, match=f"none begins with '{prefix}'.*first is 'backbone.tok_em"):
        adamw(model, rates={"head.": 2.0, prefix: 3.0})


class Two(nn.Module):
    """Two matrices whose gradients are all 1, so that AdamW's steps are known."""

    def __init__(self):
        super().__init__()
        self.slow = nn.Linear(3, 2, bias=False, dtype=torch.float64)
        self.fast = nn.Linear(5, 4, bias=False, dtype=torch.float64)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.linspace(-1, 2, p.numel(), dtype=torch.float64).view(p.shape))


def summed(model, batch):
    total = model.slow.weight.sum() + model.fast.weight.sum()
    return LossTerm(total, torch.tensor(1.0, dtype=torch.float64), {})


def moves(rates, lrs, decay=0.0):
    """Return how far each matrix went in every step, and the steps."""
    model = Two()
    optimizer = adamw(model, weight_decay=decay, rates=rates)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found, steps = [], []
    for step in optimize(
        model, optimizer, itertools.repeat(None), summed, lrs.__getitem__,
        steps=range(len(lrs)), clip_norm=float("inf"),
    ):  # fmt: skip
        after = {name: p.detach().clone() for name, p in model.named_parameters()}
        found.append({name: after[name] - before[name] for name in after})
        before, steps = after, [*steps, step]
    return found, steps


def test_of_two_names_that_fit_the_longer_counts(random_model):
    optimizer = adamw(random_model(), rates={"layers.": 2.0, "layers.1.": 3.0})
    assert {group["rate"] for group in optimizer.param_groups} == {1.0, 2.0, 3.0}


def test_the_loop_applies_the_multiple_at_every_step():
    lrs = [0.1, 0.02]
    found, steps = moves({"fast.": 7.0}, lrs)
    for step, lr in zip(found, lrs, strict=True):
        for name, rate in (("slow.weight", 1.0), ("fast.weight", 7.0)):
            # a constant gradient of 1 has moments of 1: a step is lr / (1 + eps)
            wanted = torch.full_like(step[name], -lr * rate / (1 + 1e-5))
            torch.testing.assert_close(step[name], wanted, rtol=1e-9, atol=0)
    assert [step.lr for step in steps] == lrs  # what is logged is the loop's own


def test_a_multiple_of_0_freezes_and_decay_goes_with_the_rate():
    (frozen,), _ = moves({"fast.": 0.0}, [0.1], decay=0.5)
    assert frozen["fast.weight"].abs().max() == 0
    assert frozen["slow.weight"].abs().min() > 0
    (once,), _ = moves({"fast.": 1.0}, [0.1], decay=0.5)
    (thrice,), _ = moves({"fast.": 3.0}, [0.1], decay=0.5)
    torch.testing.assert_close(
        thrice["fast.weight"], 3 * once["fast.weight"], rtol=1e-9, atol=1e-12
    )
    assert torch.equal(thrice["slow.weight"], once["slow.weight"])
