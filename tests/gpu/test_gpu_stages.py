"""On a CUDA device the stages compute what they compute on the CPU."""

import json
from dataclasses import replace
from shutil import copytree

import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.device import choose_device
from llama2_lib.evaluation.language import document_nats
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.recipes import small, toy
from llama2_lib.stages.corpus import load_corpus
from llama2_lib.stages.pretrain import packed_loss, pretrain
from llama2_lib.storage import read_metrics
from llama2_lib.training.batches import PackedBatch
from llama2_lib.training.loop import optimize
from llama2_lib.training.optim import adamw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICES = (torch.device("cpu"), torch.device("cuda"))


@pytest.fixture(scope="module")
def splits(toy_root):
    folder = pipeline.artifact_path("corpus", toy(), toy_root)
    return load_corpus(folder, "train"), load_corpus(folder, "validation")


@pytest.fixture
def batch(splits):
    return next(splits[0].packed.batches(seed=0, batch_size=4, seq_len=64))


def on(device, batch):
    return PackedBatch(*(tensor.to(device) for tensor in batch))


def twins():
    """The same weights on both devices, larger than at the start, so that every part matters."""
    for device in DEVICES:
        model = initialise(Transformer(toy().model), 0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(5.0 if weight.dim() > 1 else 1.0)
        yield model.to(device)


def test_the_gpu_is_chosen_when_there_is_one():
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu").type == "cpu"


def test_logits_are_the_same(batch):
    logits = [
        model(batch.ids[:, :-1].to(d)).cpu() for model, d in zip(twins(), DEVICES, strict=True)
    ]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert logits[0].std() > 0.1


@pytest.mark.parametrize("isolate_documents", [False, True])
def test_one_training_step_is_the_same(batch, isolate_documents):
    steps, weights = [], []
    for model, device in zip(twins(), DEVICES, strict=True):
        before = model.output.weight.detach().clone()
        loop = optimize(
            model, adamw(model), iter([on(device, batch)]), packed_loss(isolate_documents),
            lambda _: 1e-3, steps=range(1),
        )  # fmt: skip
        steps.append(next(loop))
        weights.append({k: v.cpu() for k, v in model.state_dict().items()})
        assert not torch.equal(model.output.weight, before)
    assert steps[1].loss == pytest.approx(steps[0].loss, rel=1e-5, abs=0)
    assert steps[1].grad_norm == pytest.approx(steps[0].grad_norm, rel=1e-3, abs=0)
    assert steps[1].count == steps[0].count
    for name, weight in weights[0].items():
        # Adam's first step is the sign of the gradient where that is far from 0, so a weight
        # with next to none may move by as much as the rate on one side only.
        moved_alike = (weights[1][name] - weight).abs() < 1e-5
        assert moved_alike.float().mean() > 0.99, name


def test_document_losses_are_the_same(splits):
    documents = [splits[1].document(i) for i in range(40)]
    cpu, gpu = (document_nats(model, documents) for model in twins())
    assert gpu.nats == pytest.approx(cpu.nats, rel=1e-4, abs=0)
    assert gpu.tokens.tolist() == cpu.tokens.tolist()


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16"}, {"precision": "bf16", "compile": True}]
)
def test_a_run_on_the_gpu_learns_like_one_on_the_cpu(splits, tmp_path, settings):
    curves = []
    configs = (toy().pretrain, replace(toy().pretrain, **settings))
    for number, (device, config) in enumerate(zip(DEVICES, configs, strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        pretrain(config, toy().model, *splits, folder, device)
        rows = read_metrics(folder / "metrics.jsonl")
        curves.append([row["loss"] for row in rows if "loss" in row])
    assert curves[1][:5] == pytest.approx(curves[0][:5], rel=0, abs=0.02)
    assert curves[1] == pytest.approx(curves[0], rel=0, abs=0.15)


def test_the_pipeline_runs_there_and_says_so(toy_root, tmp_path):
    root = copytree(toy_root, tmp_path / "root")
    folder = pipeline.artifact("pretrain", toy(1), root=root, device="cuda", bar=False)
    assert json.loads((folder / "meta.json").read_text())["device"].startswith("cuda")
    model, _ = pipeline.load("pretrain", toy(1), root=root, device="cuda")
    assert model.output.weight.device.type == "cuda"
    assert sum(e.n for e in pipeline.recall(toy(1), root=root, device="cuda").values()) == 270


def test_an_interrupted_run_goes_on_from_its_checkpoint(splits, tmp_path):
    begun = []

    def interrupt(done, words):
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(toy().pretrain, toy().model, *splits, tmp_path, DEVICES[1], interrupt)
    pretrain(
        toy().pretrain, toy().model, *splits, tmp_path, DEVICES[1],
        lambda done, words: begun.append(done),
    )  # fmt: skip
    assert begun[0] == 11
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, 31))


def test_a_step_of_small_fits(splits):
    recipe = small()
    model = initialise(Transformer(recipe.model), 0).to("cuda")
    ids = torch.randint(3, 1024, (8, recipe.pretrain.seq_len + 1), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        term = packed_loss(False)(model, PackedBatch(ids, torch.zeros_like(ids)))
    term.total.backward()
    assert (term.total / term.count).item() == pytest.approx(6.93, rel=0, abs=0.2)
    assert all(p.grad.isfinite().all() for p in model.parameters())
