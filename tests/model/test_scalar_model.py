"""Scalar heads: which token is read, and that nothing else matters (invariants 26, 31, 32, 57)."""

import math

import pytest
import torch

from llama2_lib.model.transformer import scalar_model
from llama2_lib.model.weights import load_model, load_scalar_model, save_model
from llama2_lib.objectives.rlhf import ranking_loss
from llama2_lib.rng import generator

LENGTHS = torch.tensor([4, 7, 1])


@pytest.fixture
def model(random_model):
    return random_model().eval()


@pytest.fixture
def ids(model):
    source = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.vocab_size, (3, 7), generator=source)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_the_score_is_read_at_the_last_real_token(model, ids, monkeypatch):
    scalar = scalar_model(model, seed=1)
    numbers = torch.arange(7.0).expand(3, 7)
    monkeypatch.setattr(type(scalar), "forward", lambda self, ids: numbers)
    assert scalar.score(ids, LENGTHS).tolist() == [3.0, 6.0, 0.0]


@torch.no_grad()
def test_padding_and_companions_do_not_matter_and_real_tokens_do(model, ids):
    scalar = scalar_model(model, seed=1)
    scores = scalar.score(ids, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        close(scalar.score(ids[row : row + 1, :length], LENGTHS[row : row + 1]), scores[[row]])
    padded = torch.cat([ids, torch.zeros(3, 5, dtype=torch.int64)], dim=1)
    close(scalar.score(padded, LENGTHS), scores)
    behind = ids.clone()
    behind[0, 4:], behind[2, 1:] = 2, 1  # other padding, an EOS among it
    close(scalar.score(behind, LENGTHS), scores)
    longer = LENGTHS + torch.tensor([1, 0, 0])
    assert (scalar.score(ids, longer) - scores)[0].abs() > 1e-3


@torch.no_grad()
def test_a_zero_head_scores_zero_and_costs_ln_2(model, ids):
    scalar = scalar_model(model)
    scores = scalar.score(ids, LENGTHS)
    assert scores.count_nonzero() == 0
    assert abs(ranking_loss(scores, scores.flip(0)).total.item() / 3 - math.log(2)) < 1e-12
    assert scalar_model(model, seed=1).score(ids, LENGTHS).abs().min() > 1e-4


def test_the_chat_model_is_copied_and_its_output_layer_rests(model, ids):
    before = {name: p.clone() for name, p in model.named_parameters()}
    scalar = scalar_model(model, seed=1)
    scalar.score(ids, LENGTHS).sum().backward()
    assert scalar.backbone.output.weight.grad is None
    assert scalar.head.weight.grad.abs().max() > 0
    assert scalar.backbone.tok_embeddings.weight.grad.abs().max() > 0
    with torch.no_grad():
        for p in scalar.parameters():
            p.add_(1.0)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    assert scalar.backbone.norm.weight.data_ptr() != model.norm.weight.data_ptr()


def test_a_copy_of_a_frozen_model_learns_all_but_the_output_layer(model):
    frozen = scalar_model(model).requires_grad_(False)
    copied = scalar_model(frozen.backbone)
    resting = [name for name, weight in copied.named_parameters() if not weight.requires_grad]
    assert resting == ["backbone.output.weight"]
    assert not any(weight.requires_grad for weight in frozen.parameters())


def test_two_passes_in_training_mode_agree(model, ids):
    scalar = scalar_model(model, seed=1).train()
    assert torch.equal(scalar(ids), scalar(ids))


def test_the_head_depends_on_the_seed(model):
    one, same, other = (scalar_model(model, seed=s).head.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_head_has_the_stated_spread(model):
    drawn = torch.cat([scalar_model(model, seed=s).head.weight[0] for s in range(20)])
    assert abs(drawn.std().item() * (48 + 1) ** 0.5 - 1) < 0.1
    noise = torch.randn(1, 48, generator=generator(0, "scalar head"))
    expected = (noise / 7).to(
        drawn
    )  # the root of 48 + 1, which the sample alone cannot tell from 48
    torch.testing.assert_close(drawn[:48], expected[0], rtol=1e-6, atol=0)
    assert scalar_model(model, seed=1).head.bias.item() == 0


@pytest.mark.parametrize("lengths", [[4, 0, 1], [4, 8, 1]])
def test_lengths_that_fit_no_row_are_refused(model, ids, lengths):
    with pytest.raises(AssertionError, match="lengths"):
        scalar_model(model).score(ids, torch.tensor(lengths))


def test_a_saved_scalar_model_comes_back_and_a_chat_model_is_not_one(model, ids, tmp_path):
    scalar = scalar_model(model, seed=1)
    save_model(scalar, tmp_path)
    again = load_scalar_model(tmp_path)
    assert torch.equal(again.score(ids, LENGTHS), scalar.float().eval().score(ids, LENGTHS))
    with pytest.raises(ValueError, match=r"weight backbone\.layers"):
        load_model(tmp_path)
    save_model(model, tmp_path)
    with pytest.raises(ValueError, match=r"weight layers\.0\..* must have shape None"):
        load_scalar_model(tmp_path)
