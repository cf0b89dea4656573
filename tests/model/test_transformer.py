"""The whole decoder: causality, packing, initialisation, precision, and what is refused."""

import dataclasses
import math

import pytest
import torch

from llama2_lib.model.transformer import (
    KVCache,
    Transformer,
    causal,
    initialise,
    masked,
    packed,
)
from llama2_lib.objectives.language import next_token_loss
from llama2_lib.training.batches import isolate


def tokens(*shape, seed=0):
    return torch.randint(0, 53, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_later_token_never_changes_an_earlier_logit(random_model):
    model, ids = random_model(), tokens(2, 11)
    before = model(ids)
    ids[:, 6:] = (ids[:, 6:] + 1) % 53
    after = model(ids)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=0)
    assert (after[:, 6:] - before[:, 6:]).abs().amax(-1).min() > 1e-2, (
        "the edit did nothing: vacuous test"
    )


@torch.no_grad()
def test_every_earlier_token_changes_the_last_logits(random_model):
    model, ids = random_model(), tokens(1, 11)
    before = model(ids)[:, -1]
    for position in range(11):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 53
        assert (model(changed)[:, -1] - before).abs().max() > 1e-3, f"position {position} is unseen"


@torch.no_grad()
def test_the_order_of_earlier_tokens_matters(random_model):
    model = random_model()
    first, second = model(torch.tensor([[3, 5, 7]])), model(torch.tensor([[5, 3, 7]]))
    assert (first[:, -1] - second[:, -1]).abs().max() > 1e-2


@torch.no_grad()
def test_a_shift_of_all_positions_changes_nothing(random_model):
    model, ids = random_model(), tokens(2, 9)
    positions = torch.arange(9).expand(2, 9)
    base = model(ids)
    torch.testing.assert_close(model(ids, positions=positions), base, rtol=0, atol=0)
    torch.testing.assert_close(model(ids, positions=positions + 20), base, rtol=0, atol=1e-10)
    stretched = model(ids, positions=3 * positions)
    assert (stretched - base).abs().max() > 1e-2, "positions are ignored: vacuous test"


@torch.no_grad()
def test_a_packed_document_gets_the_logits_that_it_gets_alone(random_model):
    model, lengths = random_model(), (5, 1, 8, 4)
    documents = [tokens(1, n, seed=n) for n in lengths]
    pack = torch.cat(documents, dim=1)
    number = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    positions, visible = isolate(number)
    packed = model(pack, positions=positions, attend=masked(visible)).split(lengths, dim=1)
    for document, logits in zip(documents, packed, strict=True):
        torch.testing.assert_close(logits, model(document), rtol=0, atol=1e-10)
    open_pack = model(pack).split(lengths, dim=1)
    assert (open_pack[2] - packed[2]).abs().max() > 1e-2, "isolation changed nothing: vacuous test"


@torch.no_grad()
def test_documents_in_one_pack_do_not_see_each_other(random_model):
    model, pack = random_model(), tokens(2, 18)
    number = torch.tensor([[0] * 5 + [1] * 6 + [2] * 7, [4] * 9 + [7] * 9])
    positions, visible = isolate(number)
    before = model(pack, positions=positions, attend=masked(visible))
    pack[0, 5:11] = (pack[0, 5:11] + 1) % 53  # document 1 of the first row
    after = model(pack, positions=positions, attend=masked(visible))
    changed = (after - before).abs().amax(-1) > 0
    wanted = torch.zeros_like(changed)
    wanted[0, 5:11] = True
    assert torch.equal(changed, wanted)


PACKS = [[5, 6, 7], [9, 9]]
"""Lengths of documents in two rows of 18."""


def numbers(packs):
    return torch.stack([
        torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in packs
    ])  # fmt: skip


def gradients(model, logits, weights):
    model.zero_grad()
    (logits * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_lengths_of_documents_stand_for_positions_and_mask(random_model):
    """Logits and gradients; lengths that are wrong give others."""
    model, pack = random_model(), tokens(2, 18)
    positions, visible = isolate(numbers(PACKS))
    weights = torch.randn(
        2, 18, 53, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    hidden = model(pack, positions=positions, attend=masked(visible))
    split = model(pack, positions=positions, attend=packed([*PACKS[0], *PACKS[1]]))
    torch.testing.assert_close(split, hidden, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        gradients(model, split, weights), gradients(model, hidden, weights), rtol=1e-9, atol=1e-9
    )
    assert (model(pack, attend=packed([5, 7, 6, 9, 9])) - hidden).abs().max() > 1e-2


@pytest.mark.parametrize(
    "lengths", [[], [18], [18, 17], [18, 19], [17, 19], [18, 18, 1], [18, 0, 18]]
)
def test_documents_must_fill_the_rows(random_model, lengths):
    with pytest.raises(AssertionError, match=r"^(documents|.* tokens) must"):
        random_model()(tokens(2, 18), attend=packed(lengths))


@pytest.mark.parametrize("n_layers", [1, 8])
@torch.no_grad()
def test_an_untrained_model_knows_nothing(config, n_layers):
    config = dataclasses.replace(config, n_layers=n_layers, vocab_size=211)
    model = initialise(Transformer(config), seed=4)
    ids = torch.randint(0, 211, (8, 37), generator=torch.Generator().manual_seed(1))
    loss = next_token_loss(model(ids[:, :-1]), ids)
    assert abs(loss.total / loss.count - math.log(211)) < 0.1


def test_initial_weights_depend_on_seed_and_name_only(config):
    first, again, other = (initialise(Transformer(config), seed) for seed in (3, 3, 4))
    deeper = initialise(Transformer(dataclasses.replace(config, n_layers=5)), 3)
    for name, weight in first.named_parameters():
        torch.testing.assert_close(weight, again.get_parameter(name), rtol=0, atol=0)
        if weight.dim() == 1:
            assert (weight == 1).all()
            continue
        assert not torch.equal(weight, other.get_parameter(name)), f"{name} ignores the seed"
        into_residual = name.endswith(("wo.weight", "w2.weight"))
        ratio = (6 / 10) ** 0.5 if into_residual else 1.0
        torch.testing.assert_close(deeper.get_parameter(name), ratio * weight, rtol=1e-5, atol=1e-8)


def test_initial_weights_have_the_stated_spread(config):
    model = initialise(Transformer(config), 0)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            wanted = 0.02 / 6**0.5 if name.endswith(("wo.weight", "w2.weight")) else 0.02
            assert abs(weight.std().item() / wanted - 1) < 0.1, name
            assert abs(weight.mean().item()) < 0.1 * wanted, name
    q = model.layers[0].attention.wq.weight
    assert not torch.equal(q, model.layers[1].attention.wq.weight), "layers are copies"


def test_initialising_leaves_the_global_stream_alone(config):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    model = Transformer(config)
    torch.manual_seed(5)
    initialise(model, 0)
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)


@torch.no_grad()
def test_hidden_states_make_the_logits(random_model):
    model, ids = random_model(), tokens(2, 7)
    hidden = model.hidden(ids)
    assert hidden.shape == (2, 7, 48)
    torch.testing.assert_close(model.logits(hidden), model(ids), rtol=0, atol=0)
    wanted = hidden @ model.output.weight.T
    torch.testing.assert_close(model(ids), wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_one_block_is_the_formula(random_model):
    model, ids = random_model(), tokens(2, 7)
    block, h = model.layers[1], model.tok_embeddings(ids)
    rotation = model.rotation(h)
    middle = h + block.attention(block.attention_norm(h), rotation)
    wanted = middle + block.feed_forward(block.ffn_norm(middle))
    torch.testing.assert_close(block(h, rotation), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "logits_dtype", "atol"),
    [
        (torch.float64, torch.float64, 0),
        (torch.float32, torch.float32, 1e-4),
        (torch.bfloat16, torch.float32, 1.0),
    ],
)
@torch.no_grad()
def test_logits_are_at_least_single_precision(random_model, dtype, logits_dtype, atol):
    ids = tokens(2, 7)
    logits, exact = random_model(dtype=dtype)(ids), random_model()(ids)
    assert logits.dtype == logits_dtype
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=atol)
    assert exact.std() > 1, "the logits are too small for this comparison"


@torch.no_grad()
def test_the_rotary_table_stays_exact_in_half_precision(random_model, config):
    model = random_model(dtype=torch.bfloat16)
    h = model.tok_embeddings(tokens(1, 37))
    exact = random_model().rotation(h.double())
    assert model.rotation(h).dtype == torch.complex64
    torch.testing.assert_close(model.rotation(h).to(torch.complex128), exact, rtol=0, atol=1e-6)
    assert "rotation" not in " ".join(model.state_dict())


def test_parameters_have_metas_names(config):
    names = set(Transformer(dataclasses.replace(config, n_layers=1)).state_dict())
    block = [*(f"attention.w{x}" for x in "qkvo"), *(f"feed_forward.w{x}" for x in "123")]
    block += ["attention_norm", "ffn_norm"]
    assert names == {
        "tok_embeddings.weight", "norm.weight", "output.weight",
        *(f"layers.0.{name}.weight" for name in block),
    }  # fmt: skip


@torch.no_grad()
def test_training_mode_computes_the_same(random_model):
    model, ids = random_model(), tokens(2, 7)
    torch.testing.assert_close(model.train()(ids), model.eval()(ids), rtol=0, atol=0)


def test_every_weight_learns(random_model):
    model, ids = random_model(), tokens(2, 12)
    next_token_loss(model(ids[:, :-1]), ids).total.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 1e-6, name


@torch.no_grad()
def test_a_sequence_longer_than_the_context_is_refused(random_model, config):
    model = random_model()
    assert model(tokens(1, 37)).shape == (1, 37, 53)
    with pytest.raises(ValueError, match=r"must fit 37 tokens; got 38.*larger max_seq_len"):
        model(tokens(1, 38))
    small = KVCache(config, 1, 5, dtype=torch.float64)
    model(tokens(1, 4), attend=small)
    with pytest.raises(ValueError, match="must fit 5 tokens; got 6"):
        model(tokens(1, 2), attend=small)
    large = KVCache(config, 1, 50, dtype=torch.float64)
    model(tokens(1, 37), attend=large)
    with pytest.raises(ValueError, match="must fit 37 tokens; got 38"):
        model(tokens(1, 1), attend=large)


@pytest.mark.parametrize("bad", [-1, 53])
def test_an_id_that_is_none_of_the_vocabulary_is_refused(random_model, bad):
    with pytest.raises(ValueError, match=rf"ids must lie in 0\.\.\.52; got .*{bad}.*tokenizer"):
        random_model()(torch.tensor([[4, bad, 7]]))


@pytest.mark.parametrize(
    ("since", "attend", "error", "message"),
    [
        (-1, causal, AssertionError, r"since must lie in 0\.\.\.4; got -1"),
        (5, causal, AssertionError, r"since must lie in 0\.\.\.4; got 5"),
        (2, packed([2, 3]), AssertionError, "packed documents are read whole"),
    ],
)
def test_a_place_to_read_from_must_be_one(random_model, since, attend, error, message):
    with pytest.raises(error, match=message):
        random_model().hidden(tokens(1, 5), attend=attend, since=since)


def test_an_empty_sequence_is_refused(random_model):
    with pytest.raises(ValueError, match="ids must hold a token at least"):
        random_model()(torch.zeros(2, 0, dtype=torch.int64))
