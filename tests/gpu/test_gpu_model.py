"""The same numbers on a GPU as on the CPU, in fp32 without TF32."""

import copy

import pytest
import torch

from llama2_lib.device import autocast, choose_device, peak_memory, synchronize
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import masked
from llama2_lib.model.weights import load_model, save_model
from llama2_lib.objectives.language import next_token_loss
from llama2_lib.training.batches import isolate
from llama2_lib.training.optim import optimize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
ATOL = 1e-4
"""fp32; the logits have a spread of about 1."""
PROMPTS = [[1, 7, 9, 30, 2, 17], [1], [1, 44, 5], [1, 8, 9, 10]]


@pytest.fixture(autouse=True)
def _full_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def device() -> torch.device:
    return choose_device("cuda")


@pytest.fixture
def pair(random_model, device):
    """One model on the CPU and its copy on the GPU."""
    model = random_model(dtype=torch.float32)
    model.output.weight.data.mul_(0.3)
    return model, copy.deepcopy(model).to(device)


def tokens(*shape, seed=0):
    return torch.randint(0, 53, shape, generator=torch.Generator().manual_seed(seed))


def same(found, wanted, atol=ATOL):
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=atol)
    assert wanted.std() > 0.1, "too little to compare"


@torch.no_grad()
def test_logits_agree(pair, device):
    cpu, gpu = pair
    ids = tokens(3, 29)
    same(gpu(ids.to(device)), cpu(ids))


@torch.no_grad()
def test_logits_of_packed_documents_agree(pair, device):
    cpu, gpu = pair
    ids = tokens(2, 18)
    number = torch.tensor([[0] * 5 + [1] * 6 + [2] * 7, [4] * 9 + [7] * 9])
    positions, visible = isolate(number)
    there = isolate(number.to(device))
    found = gpu(ids.to(device), positions=there[0], attend=masked(there[1]))
    same(found, cpu(ids, positions=positions, attend=masked(visible)))
    assert (found.cpu() - cpu(ids)).abs().max() > 1e-2, "isolation changed nothing: vacuous test"


def test_one_training_step_agrees(pair, device):
    ids = tokens(4, 21)
    steps, before = [], pair[0].output.weight.detach().clone()
    for model in pair:
        weight = model.norm.weight
        (step,) = optimize(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            iter([ids.to(weight.device)]),
            lambda model, ids: next_token_loss(model(ids[:, :-1]), ids),
            lambda index: 0.1,
            steps=range(1),
            clip_norm=0.5,
        )
        steps.append(step)
    cpu, gpu = steps
    assert abs(cpu.loss - gpu.loss) < ATOL
    assert abs(cpu.grad_norm - gpu.grad_norm) < 1e-3 * cpu.grad_norm
    assert cpu.grad_norm > 0.5, "nothing was clipped"
    assert cpu.count == gpu.count == 80
    assert (pair[1].output.weight.cpu() - before).abs().max() > 10 * ATOL
    for name, weight in pair[0].named_parameters():
        torch.testing.assert_close(
            pair[1].get_parameter(name).detach().cpu(), weight.detach(), rtol=0, atol=ATOL
        )


def test_greedy_tokens_agree(pair):
    cpu, gpu = (generate(model, PROMPTS, max_new_tokens=12, temperature=0) for model in pair)
    assert [c.ids for c in gpu] == [c.ids for c in cpu]
    assert len({tuple(c.ids) for c in cpu}) == 4
    for a, b in zip(gpu, cpu, strict=True):
        torch.testing.assert_close(
            torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=ATOL
        )


def test_samples_and_their_ends_agree(pair):
    """The draws come from the CPU's generator, so the GPU takes the same tokens."""
    free = generate(pair[0], PROMPTS, max_new_tokens=20, seed=3)
    stop = {free[0].ids[4], free[2].ids[11]}
    cpu, gpu = (
        generate(model, PROMPTS, max_new_tokens=20, seed=3, stop_ids=stop) for model in pair
    )
    assert [(c.ids, c.finished) for c in gpu] == [(c.ids, c.finished) for c in cpu]
    assert len({len(c.ids) for c in cpu}) > 1, "all rows end together"


def test_weights_load_onto_the_gpu(pair, device, tmp_path):
    save_model(pair[1], tmp_path)
    model, _ = load_model(tmp_path, device)
    assert {weight.device.type for weight in model.parameters()} == {device.type}
    with torch.no_grad():
        same(model(tokens(3, 29).to(device)), pair[0](tokens(3, 29)))


@torch.no_grad()
def test_bf16_is_near(pair, device):
    cpu, gpu = pair
    ids = tokens(3, 29)
    with autocast(device, "bf16"):
        logits = gpu(ids.to(device))
        found = generate(gpu, PROMPTS, max_new_tokens=5, temperature=0)
    assert logits.dtype == torch.float32
    same(logits, cpu(ids), atol=0.3)
    assert (logits.cpu() - cpu(ids)).abs().max() > ATOL, "nothing was rounded: vacuous test"
    assert [len(c.ids) for c in found] == [5] * 4


def test_the_memory_of_the_gpu_is_counted(device):
    torch.cuda.reset_peak_memory_stats(device)
    before = peak_memory(device)
    block = torch.zeros(2**20, 5, device=device)
    synchronize(device)
    assert peak_memory(device) - before >= block.numel() * 4
