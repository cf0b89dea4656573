"""The learning rate at each step, AdamW by hand, and weights at a multiple of the rate."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llama2_lib.model.transformer import scalar_model
from llama2_lib.objectives.language import LossTerm
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import adamw, warmup_then_cosine

NUMBERS = {
    "peak": st.floats(1e-6, 1.0),
    "steps": st.integers(1, 400),
    "warmup": st.integers(0, 399),
    "floor": st.floats(0.0, 1.0),
}
SCHEDULES = st.fixed_dictionaries(NUMBERS).filter(lambda s: s["warmup"] < s["steps"])


def test_the_rate_climbs_linearly_peaks_and_ends_at_the_floor():
    lr_at = warmup_then_cosine(peak=0.8, steps=11, warmup=3, floor=0.25)
    assert [lr_at(i) for i in range(3)] == pytest.approx([0.2, 0.4, 0.6], rel=1e-12, abs=0)
    assert lr_at(3) == 0.8
    assert lr_at(10) == pytest.approx(0.2, rel=1e-12, abs=0)
    # step 4 is one seventh of the way from step 3 to step 10; steps 6 and 7 lie about its middle
    seventh = 0.2 + 0.6 * 0.5 * (1 + math.cos(math.pi / 7))
    assert lr_at(4) == pytest.approx(seventh, rel=1e-12, abs=0)
    assert (lr_at(6) + lr_at(7)) / 2 == pytest.approx(0.5, rel=1e-12, abs=0)
    assert lr_at(50) == pytest.approx(0.2, rel=1e-12, abs=0)
    by_default = warmup_then_cosine(peak=3e-4, steps=9, warmup=2)  # a tenth, as in the paper
    assert by_default(8) == pytest.approx(3e-5, rel=1e-12, abs=0)


@settings(deadline=None)
@given(SCHEDULES)
def test_the_rate_stays_within_its_bounds_and_falls_after_the_peak(schedule):
    lr_at = warmup_then_cosine(**schedule)
    peak, warmup, steps = schedule["peak"], schedule["warmup"], schedule["steps"]
    rates = [lr_at(i) for i in range(steps)]
    assert max(rates) == rates[warmup] == peak
    assert all(0 < rate < peak for rate in rates[:warmup])
    assert all(a < b for a, b in itertools.pairwise(rates[: warmup + 1]))
    tail = rates[warmup:]
    assert all(a >= b for a, b in itertools.pairwise(tail))
    assert min(tail) >= schedule["floor"] * peak * (1 - 1e-12)
    if steps - 1 > warmup:
        assert rates[-1] == pytest.approx(schedule["floor"] * peak, rel=1e-9, abs=1e-12 * peak)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup": 10}, r"warmup must lie in 0\.\.\.steps - 1; got 10 of 10 steps"),
        ({"warmup": -1}, "got -1 of 10"),
        ({"peak": 0.0}, "need peak > 0.*got 0.0 and 0.1"),
        ({"floor": 1.5}, "0 <= floor <= 1; got 1.0 and 1.5"),
        ({"floor": -0.1}, "got 1.0 and -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    good = {"peak": 1.0, "steps": 10, "warmup": 2, "floor": 0.1}
    warmup_then_cosine(**good)
    with pytest.raises(ValueError, match=message):
        warmup_then_cosine(**good | change)


def by_name(model, optimizer, key):
    values = {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: values[id(p)] for name, p in model.named_parameters()}


def test_matrices_decay_and_gains_do_not(random_model):
    model = random_model()
    decays = by_name(model, adamw(model, weight_decay=0.3), "weight_decay")
    norms = {name for name in decays if name.split(".")[-2].endswith("norm")}
    assert len(norms) == 2 * 3 + 1
    assert decays == {name: 0.0 if name in norms else 0.3 for name in decays}


def test_two_steps_of_adamw_by_hand():
    """Equations of Loshchilov and Hutter with the paper's betas, eps and decay, in fp64."""
    module = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]]))
        module.bias.copy_(torch.tensor([0.3, -0.4]))
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = adamw(module, weight_decay=0.1)
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step, lr in ((1, 0.02), (2, 0.05)):
        for name, p in module.named_parameters():
            p.grad = 0.7 * p.detach().sin() + 0.1 * step
            decay = 0.1 if name == "weight" else 0.0
            first[name] = 0.9 * first[name] + 0.1 * p.grad
            second[name] = 0.95 * second[name] + 0.05 * p.grad**2
            m = first[name] / (1 - 0.9**step)
            v = second[name] / (1 - 0.95**step)
            w = expected[name]
            expected[name] = w - lr * decay * w - lr * m / (v.sqrt() + 1e-5)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


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
    assert {group["lr"] for group in adamw(model).param_groups} == {0.0}, "the loop's to set"


@pytest.mark.parametrize("prefix", ["haed.", "weight", "layers"])
def test_a_name_that_no_weight_begins_with_is_refused(random_model, prefix):
    model = scalar_model(random_model())
    with pytest.raises(AssertionError, match=f"no weight begins with .'{prefix}'"):
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
