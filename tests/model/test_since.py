"""Hidden states of the last positions alone are those of the whole sequence, and cost less."""

import pytest
import torch

from llama2_lib.model.cache import KVCache
from llama2_lib.model.heads import scalar_model

BATCH, SEQ = 3, 11
IDS = torch.randint(0, 53, (BATCH, SEQ), generator=torch.Generator().manual_seed(0))


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("since", [0, 1, 7, SEQ - 1])
def test_the_last_positions_are_those_of_the_whole(random_model, since):
    model = random_model()
    whole = model.hidden(IDS)
    close(model.hidden(IDS, since=since), whole[:, since:])
    assert (whole[:, 1:] - whole[:, :-1]).abs().max() > 0.1  # another position is another vector
    positions = torch.arange(SEQ).expand(BATCH, SEQ) + torch.tensor([[0], [4], [9]])
    visible = torch.ones(BATCH, SEQ, SEQ, dtype=torch.bool).tril()
    visible[:, 6:, 1:4] = False
    changed = model.hidden(IDS, positions=positions, visible=visible)
    part = model.hidden(IDS, positions=positions, visible=visible, since=since)
    close(part, changed[:, since:])
    assert (changed[:, since:] - whole[:, since:]).abs().max() > 0.1


@pytest.mark.parametrize("since", [0, 4])
def test_gradients_are_those_of_the_whole(random_model, since):
    model = random_model()
    weights = torch.randn(SEQ, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for part in (model.hidden(IDS)[:, since:], model.hidden(IDS, since=since)):
        model.zero_grad()
        (part * weights[since:]).sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        close(one, other)
    assert all(grad.abs().max() > 0 for grad in found[1])


def test_earlier_positions_are_read(random_model):
    model, other = random_model(), IDS.clone()
    other[:, 2] = (other[:, 2] + 1) % 53
    assert (model.hidden(IDS, since=7) - model.hidden(other, since=7)).abs().max() > 1e-3


def test_after_a_cache_too(random_model):
    model = random_model()
    cache = KVCache(model.config, BATCH, SEQ, torch.device("cpu"), torch.float64)
    with torch.no_grad():
        model.hidden(IDS[:, :5], cache=cache)
        close(model.hidden(IDS[:, 5:], cache=cache, since=2), model.hidden(IDS)[:, 7:])
    assert cache.length == SEQ


def test_numbers_of_the_last_positions(random_model):
    scalar = scalar_model(random_model(), seed=0)
    close(scalar(IDS, since=7), scalar(IDS)[:, 7:])
    assert scalar(IDS).std() > 0.1


@pytest.mark.parametrize("since", [-1, SEQ])
def test_what_is_no_position_is_refused(random_model, since):
    with pytest.raises(ValueError, match=rf"since must lie in 0\.\.\.10; got {since}"):
        random_model().hidden(IDS, since=since)
