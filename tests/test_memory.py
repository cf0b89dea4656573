"""The plan of memory, held against the bytes that PyTorch keeps for the backward pass."""

import contextlib

import pytest
import torch
from torch.nn import functional as F

from llama2_lib.bench.memory import block_activations, end_activations, plan
from llama2_lib.model.config import FAMILY, LLAMA2_7B, LLAMA2_70B, ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.training.optim import adamw

SHAPES = {
    "gqa": {"dim": 96, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 311},
    "mha": {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "vocab_size": 97},
    "wide": {"dim": 160, "n_layers": 1, "n_heads": 5, "n_kv_heads": 1, "vocab_size": 701},
}
ROWS, LENGTH = 5, 46


def kept(config, precision):
    """Bytes of all storages that autograd saves, weights and their bf16 copies aside."""
    model = initialise(Transformer(config), 0)
    shapes = {shape for p in model.parameters() for shape in (p.shape, p.shape[::-1])}
    held = {}

    def pack(tensor):
        if (*tensor.shape,) not in shapes and tensor.is_floating_point():
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH + 1))
    context = (
        torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    )
    with context, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values()), model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_what_autograd_keeps(shape, precision):
    config = ModelConfig(multiple_of=24, max_seq_len=64, **SHAPES[shape])
    measured, _ = kept(config, precision)
    tokens = ROWS * LENGTH
    planned = plan(config, tokens=tokens, recompute=False, precision=precision)
    assert planned.activations + planned.logits == pytest.approx(measured, rel=0.03)
    assert planned.activations == tokens * config.n_layers * block_activations(config, precision)
    assert planned.logits == tokens * end_activations(config, precision)


def test_weights_gradients_and_moments_are_counted():
    config = ModelConfig(multiple_of=24, max_seq_len=64, **SHAPES["gqa"])
    _, model = kept(config, "fp32")
    optimizer = adamw(model)
    optimizer.step()
    planned = plan(config, tokens=1, precision="fp32")
    assert planned.weights == sum(p.nbytes for p in model.parameters())
    assert planned.gradients == sum(p.grad.nbytes for p in model.parameters())
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert planned.optimizer == sum(t.nbytes for t in moments)
    assert planned.gathered == 0


def test_a_share_is_a_part_and_the_rest_is_each_gpus_own():
    one, many = (plan(LLAMA2_70B, gpus=n, tokens=4096) for n in (1, 16))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(many, name) == -(-getattr(one, name) // 16)
    assert many.activations == one.activations
    assert many.logits == one.logits
    assert one.transfer_seconds == 0 < many.transfer_seconds


def test_seventy_billion_weights_on_sixteen_gpus_by_hand():
    made = plan(LLAMA2_70B, gpus=16, tokens=4096)
    n = 68_976_648_192
    assert LLAMA2_70B.n_parameters == n
    assert made.weights + made.gradients + made.optimizer == pytest.approx(16 * n / 16, rel=1e-6)
    # every block's input in fp32 and the inside of one block
    assert made.activations == 4096 * (80 * 4 * 8192 + block_activations(LLAMA2_70B))
    without = plan(LLAMA2_70B, gpus=16, tokens=4096, recompute=False)
    assert without.activations > 10 * made.activations
    assert without.compute_seconds == pytest.approx(0.75 * made.compute_seconds)
    flops = (6 * (n - 32_000 * 8192) + 12 * 80 * 8192 * 4096) * 4096 * 4 / 3
    assert made.compute_seconds == pytest.approx(flops / (0.4 * 312e12))


def test_what_cannot_be_planned_is_refused():
    for wrong in ({"gpus": 0}, {"tokens": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            plan(LLAMA2_7B, **wrong)
    assert set(FAMILY) == {"7B", "13B", "34B", "70B"}
