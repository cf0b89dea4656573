"""Pretraining learns, resumes, and does what its settings say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.evaluation.language import document_nats
from llama2_lib.model.weights import load_model
from llama2_lib.recipes import toy
from llama2_lib.stages.corpus import load_corpus
from llama2_lib.stages.pretrain import packed_loss, pretrain
from llama2_lib.storage import read_metrics
from llama2_lib.training.batches import PackedBatch
from llama2_lib.training.optim import warmup_then_cosine

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = replace(toy().pretrain, steps=7, save_every=3, eval_every=4)


@pytest.fixture(scope="module")
def splits(toy_root):
    folder = pipeline.artifact_path("corpus", toy(), toy_root)
    return load_corpus(folder, "train"), load_corpus(folder, "validation")


@pytest.fixture
def run(splits, tmp_path):
    """Train toy's model with other settings; return its weights and its metrics."""

    def start(config, name="run", report=lambda done, words: None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        trained = pretrain(config, toy().model, *splits, folder, torch.device("cpu"), report)
        weights = {key: value.clone() for key, value in trained.state_dict().items()}
        return weights, read_metrics(folder / "metrics.jsonl")

    return start


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(rows):
    return [row["loss"] for row in rows if "loss" in row]


def test_thirty_steps_take_the_loss_down_by_a_nat(toy_root):
    rows = read_metrics(pipeline.artifact_path("pretrain", toy(), toy_root) / "metrics.jsonl")
    first, validation = losses(rows)[0], [row for row in rows if "validation_loss" in row]
    assert first == pytest.approx(math.log(512), rel=0, abs=0.1)
    assert validation[-1]["validation_loss"] < first - 1.0
    assert [row["step"] for row in validation] == [10, 20, 30]


def test_the_log_holds_every_step(run):
    _, rows = run(SHORT)
    steps = [row for row in rows if "loss" in row]
    lr_at = warmup_then_cosine(peak=5e-3, steps=7, warmup=3, floor=0.1)
    assert [row["step"] for row in steps] == list(range(1, 8))
    assert [row["lr"] for row in steps] == [lr_at(i) for i in range(7)]
    assert {row["tokens"] for row in steps} == {4 * 64}
    assert all(row["grad_norm"] > 0 for row in steps)
    assert [row["step"] for row in rows if "validation_loss" in row] == [4, 7]


def test_what_is_saved_is_the_model_that_was_measured(run, splits, tmp_path):
    weights, rows = run(SHORT)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json", "metrics.jsonl", "model.safetensors",
    ]  # fmt: skip
    model, config = load_model(tmp_path / "run")
    assert config == toy().model
    assert equal(model.state_dict(), weights)
    probe = [splits[1].document(i) for i in range(40)]
    nats = document_nats(model, probe, max_len=64)
    expected = nats.nats.sum() / nats.tokens.sum()
    assert rows[-1]["validation_loss"] == pytest.approx(expected, rel=1e-6, abs=0)


def test_the_bar_hears_of_every_step(run):
    heard = []
    _, rows = run(SHORT, report=lambda done, words: heard.append((done, words)))
    assert heard == [(n / 7, f"loss {loss:.3f}") for n, loss in enumerate(losses(rows), start=1)]


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "batch_size": 3}])
def test_interrupted_anywhere_and_started_again_it_ends_with_the_same_bits(
    check_resuming, settings
):
    check_resuming(replace(SHORT, **settings), stops=(1, 3, 4, 6))


def test_a_row_longer_than_the_context_is_refused(run):
    run(replace(SHORT, seq_len=128, steps=4))
    with pytest.raises(ValueError, match=r"seq_len must fit.*got 129 and 128"):
        run(replace(SHORT, seq_len=129, steps=4))


def test_two_micro_batches_are_one_batch_twice_as_large(run):
    whole, rows = run(replace(SHORT, steps=4), "whole")
    halves, rows_halves = run(replace(SHORT, steps=4, batch_size=2, accumulate=2), "halves")
    single, _ = run(replace(SHORT, steps=4, batch_size=2), "single")
    np.testing.assert_allclose(losses(rows_halves), losses(rows), rtol=1e-5, atol=0)
    assert [row["tokens"] for row in rows_halves if "loss" in row] == [256] * 4
    for name, weight in whole.items():
        torch.testing.assert_close(halves[name], weight, rtol=1e-3, atol=2e-5)
    name = "output.weight"
    assert not torch.allclose(single[name], whole[name], rtol=1e-3, atol=2e-5)


def test_bf16_runs_and_stays_close(run):
    plain, rows = run(replace(SHORT, steps=4), "fp32")
    half, rows_half = run(replace(SHORT, steps=4, precision="bf16"), "bf16")
    np.testing.assert_allclose(losses(rows_half), losses(rows), rtol=0, atol=0.02)
    assert losses(rows_half) != losses(rows), "bf16 changed nothing: vacuous"
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert not equal(half, plain)


def test_isolated_documents_count_fewer_targets_and_learn_too(run):
    _, rows = run(replace(SHORT, isolate_documents=True))
    tokens = [row["tokens"] for row in rows if "loss" in row]
    assert all(200 < count < 256 for count in tokens)
    assert losses(rows)[-1] < losses(rows)[0] - 0.2


@pytest.fixture
def batch():
    """Two rows of documents of 4, 7 and 2, and of 6, 1 and 6 tokens."""
    source = torch.Generator().manual_seed(8)
    ids = torch.randint(3, 53, (2, 13), generator=source)
    document = torch.tensor([[0] * 4 + [1] * 7 + [2] * 2, [5] * 6 + [6] + [7] * 6])
    return PackedBatch(ids, document)


def test_the_isolated_loss_is_that_of_each_document_alone(random_model, batch):
    model = random_model()
    term = packed_loss(True)(model, batch)
    pieces = [
        piece.tolist()
        for row, sizes in zip(batch.ids, ([4, 7, 2], [6, 1, 6]), strict=True)
        for piece in row.split(sizes)
        if len(piece) > 1
    ]
    alone = document_nats(model, pieces)
    assert term.count == alone.tokens.sum() == 3 + 6 + 1 + 5 + 5
    assert term.total.item() == pytest.approx(alone.nats.sum(), rel=1e-9, abs=0)


def test_the_plain_loss_is_that_of_each_row_as_one_text(random_model, batch):
    model = random_model()
    term = packed_loss(False)(model, batch)
    rows = document_nats(model, batch.ids.tolist())
    assert term.count == rows.tokens.sum() == 24
    assert term.total.item() == pytest.approx(rows.nats.sum(), rel=1e-9, abs=0)
    assert term.total.item() != pytest.approx(
        packed_loss(True)(model, batch).total.item(), rel=0.01, abs=0
    )


def test_whole_batches_are_for_isolated_documents():
    assert replace(SHORT, isolate_documents=True, whole_every=4).whole_every == 4
    with pytest.raises(ValueError, match="whole_every is for isolated documents; got 4 without"):
        replace(SHORT, whole_every=4)
