"""The one loop: sums and counts, clipping, the rate, and what it does when things go wrong."""

import copy
import itertools

import pytest
import torch
from torch import nn

from llama2_lib.objectives.language import LossTerm
from llama2_lib.training.optim import adamw, optimize

RTOL = 1e-10


@pytest.fixture
def module():
    source = torch.Generator().manual_seed(3)
    module = nn.Linear(5, 3, dtype=torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=source, dtype=torch.float64))
    return module


@pytest.fixture
def rows():
    """Eleven inputs, of which about half count."""
    source = torch.Generator().manual_seed(4)
    inputs = torch.randn(11, 5, generator=source, dtype=torch.float64)
    counted = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1], dtype=torch.float64)
    return torch.cat([inputs, counted[:, None]], dim=1)


def squares(model, batch):
    """Sum of squared outputs over the rows that count, with one metric."""
    inputs, counted = batch[:, :5], batch[:, 5]
    error = (model(inputs) - 1.0).square().sum(dim=1)
    total, count = (error * counted).sum(), counted.sum()
    return LossTerm(total, count, {"largest": (error * counted).sum().detach() / count})


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(a, b, rtol=0.0, atol=0.0):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol)


def differ(a, b):
    return all(not torch.allclose(a[name], b[name], rtol=1e-6, atol=1e-8) for name in a)


def train(model, batches, *, steps=1, accumulate=1, clip_norm=1e9, lr=0.1, loss=squares):
    """Train a copy with plain SGD, so that a step is the gradient times the rate."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    done = list(
        optimize(
            model, optimizer, iter(batches), loss, lambda _: lr,
            steps=range(steps), accumulate=accumulate, clip_norm=clip_norm,
        )
    )  # fmt: skip
    return done, weights(model)


def still(model, batches, *, loss=squares, steps=2, **options):
    """Return a loop over steps that move nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return optimize(model, optimizer, batches, loss, lambda _: 0.0, steps=range(steps), **options)


def mean_of_means(model, batch):
    term = squares(model, batch)
    return LossTerm(term.total / term.count, term.count.new_tensor(1.0), {})


@pytest.mark.parametrize("split", [[11], [4, 7], [1, 2, 8], [6, 2, 3]])
def test_how_a_batch_is_split_changes_nothing(module, rows, split):
    whole, expected = train(module, [rows])
    parts, actual = train(module, rows.split(split), accumulate=len(split))
    assert_equal(actual, expected, rtol=RTOL, atol=1e-13)
    assert differ(expected, weights(module)), "the step did nothing: vacuous test"
    assert parts[0].loss == pytest.approx(whole[0].loss, rel=RTOL, abs=0)
    assert parts[0].grad_norm == pytest.approx(whole[0].grad_norm, rel=RTOL, abs=0)
    assert parts[0].metrics["largest"] == pytest.approx(
        whole[0].metrics["largest"], rel=RTOL, abs=0
    )
    assert parts[0].count == whole[0].count == 7


def test_the_mean_of_means_does_depend_on_the_split(module, rows):
    """The partner of the test above: what a loop that divides early would do."""
    _, expected = train(module, [rows])
    _, naive = train(module, rows.split([6, 5]), accumulate=2, loss=mean_of_means)
    assert differ(naive, expected)


def test_a_step_is_the_mean_gradient_times_the_rate(module, rows):
    term = squares(module, rows)
    gradients = torch.autograd.grad(term.total / 7, list(module.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    done, after = train(module, [rows], lr=0.25)
    expected = {
        name: p.detach() - 0.25 * g
        for (name, p), g in zip(module.named_parameters(), gradients, strict=True)
    }
    assert_equal(after, expected, rtol=RTOL, atol=1e-13)
    assert done[0].loss == pytest.approx(term.total.item() / 7, rel=RTOL, abs=0)
    assert done[0].grad_norm == pytest.approx(norm, rel=RTOL, abs=0)
    largest = term.metrics["largest"].item()
    assert done[0].metrics["largest"] == pytest.approx(largest, rel=RTOL, abs=0)


@pytest.mark.parametrize("fraction", [0.3, 4.0])
def test_clipping_is_pytorchs(module, rows, fraction):
    plain, unclipped = train(module, [rows])
    clip = fraction * plain[0].grad_norm
    done, actual = train(module, [rows], clip_norm=clip)
    by_torch = copy.deepcopy(module)
    (squares(by_torch, rows).total / 7).backward()
    nn.utils.clip_grad_norm_(by_torch.parameters(), clip)
    expected = {n: p.detach() - 0.1 * p.grad for n, p in by_torch.named_parameters()}
    assert_equal(actual, expected, rtol=RTOL, atol=1e-13)
    assert differ(actual, unclipped) == (fraction < 1)
    assert done[0].grad_norm == plain[0].grad_norm  # the norm before clipping is reported


def test_each_step_has_its_own_rate_and_index(module, rows):
    rates = {4: 0.3, 5: 0.0, 6: 0.02}
    optimizer = torch.optim.SGD([{"params": [module.weight]}, {"params": [module.bias]}], lr=123.0)
    before = weights(module)
    loop = optimize(
        module, optimizer, itertools.repeat(rows), squares, rates.__getitem__,
        steps=range(4, 7), clip_norm=1e9,
    )  # fmt: skip
    for index, lr in rates.items():
        (squares(module, rows).total / 7).backward()
        expected = {n: p.detach() - lr * p.grad for n, p in module.named_parameters()}
        module.zero_grad()
        step = next(loop)
        assert (step.index, step.lr) == (index, lr)
        assert_equal(weights(module), expected, rtol=RTOL, atol=1e-13)
    assert list(loop) == []
    assert differ(weights(module), before)


def test_gradients_of_one_step_do_not_reach_the_next(module, rows):
    done, once = train(module, [rows, rows], steps=2, lr=0.05)
    model = copy.deepcopy(module)
    for _ in range(2):
        gradients = torch.autograd.grad(squares(model, rows).total / 7, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.05 * g
    assert_equal(once, weights(model), rtol=RTOL, atol=1e-13)
    assert done[1].loss < done[0].loss


def test_after_a_step_no_gradient_is_left(module, rows):
    loop = optimize(
        module, torch.optim.SGD(module.parameters(), lr=0.0), iter([rows]), squares,
        lambda _: 0.1, steps=range(1),
    )  # fmt: skip
    next(loop)
    assert all(p.grad is None for p in module.parameters())


def poisoned(model, batch):
    """The loss is finite; its gradient is not: the slope of a square root at zero."""
    term = squares(model, batch)
    return term._replace(total=term.total + (0.0 * model.weight).abs().sqrt().sum())


@pytest.mark.parametrize(
    ("value", "loss", "message"),
    [
        (float("nan"), squares, "step 2: loss and gradient must be finite; got loss=nan"),
        (float("inf"), squares, "got loss=inf"),
        (1.0, poisoned, r"got loss=[\d.]+, grad_norm=nan"),
    ],
)
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    module, rows, value, loss, message
):
    optimizer = adamw(module)
    bad = rows.clone()
    bad[2, 1] = value
    calls = itertools.count()

    def turn(model, batch):
        return (loss if next(calls) == 2 else squares)(model, batch)

    loop = optimize(module, optimizer, iter([rows, rows, bad]), turn, lambda _: 0.1, steps=range(3))
    start = weights(module)
    next(loop), next(loop)
    before, state = weights(module), copy.deepcopy(optimizer.state_dict())
    assert differ(before, start)
    with pytest.raises(FloatingPointError, match=message):
        next(loop)
    assert_equal(weights(module), before)
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(value, state["state"][index][name], rtol=0, atol=0)
    assert all(p.grad is None for p in module.parameters())


def test_it_ends_early_without_a_partial_step(module, rows):
    batches = rows.split([4, 3, 2, 1, 1])
    done, actual = train(module, batches, steps=9, accumulate=2)
    _, two_steps = train(module, batches[:4], steps=2, accumulate=2)
    assert [step.index for step in done] == [0, 1]
    assert_equal(actual, two_steps)


def test_no_batch_is_taken_before_it_is_needed(module, rows):
    batches = iter([rows] * 6)
    loop = still(module, batches, accumulate=2)
    next(loop)
    assert len(list(copy.copy(batches))) == 4
    list(loop)
    assert len(list(batches)) == 2


def test_the_model_is_in_training_mode_at_every_step(module, rows):
    modes = []

    def look(model, batch):
        modes.append(model.training)
        return squares(model, batch)

    for _ in still(module, iter([rows] * 2), loss=look):
        module.eval()  # as an evaluation between two steps does
    assert modes == [True, True]
