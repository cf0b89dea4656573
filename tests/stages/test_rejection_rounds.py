"""A round of rejection sampling measures what it has learned, and learns the same without."""

from shutil import copytree

import pytest

from llama2_lib import pipeline
from llama2_lib.evaluation.language import answer_loss
from llama2_lib.model.weights import load_model
from llama2_lib.recipes import toy
from llama2_lib.stages.sft import examples, training_dialogs, validation_dialogs
from llama2_lib.storage import read_metrics
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.training.batches import shorten_all

pytestmark = pytest.mark.usefixtures("one_thread")
STAGE = "rejection_v1"


@pytest.fixture
def folder(toy_root):
    return pipeline.artifact_path(STAGE, toy(), toy_root)


def measured(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}


def test_every_round_measures_the_loss_on_answers_of_unseen_dialogs(folder):
    config = toy().sft
    unseen = validation_dialogs(config, 0, training_dialogs(config, 0))
    assert len(unseen) == config.n_validation == 12
    encoded = examples(unseen, load_tokenizer(folder / "tokenizer.model"))
    probe = shorten_all(encoded, toy().rejection.seq_len + 1).examples
    assert len(probe) > 5
    found = measured(folder)
    assert list(found) == [4, 8]  # every `eval_every` steps, and at the end
    assert found[8] == pytest.approx(answer_loss(load_model(folder)[0], probe).value, abs=1e-6)
    assert abs(found[4] - found[8]) > 1e-3


def test_measuring_changes_no_bit_of_the_weights(toy_root, folder, tmp_path, monkeypatch):
    for stage in ("tokenizer", "corpus", "pretrain", "sft", "rewards_v1"):
        inner = pipeline.artifact_path(stage, toy(), toy_root)
        copytree(inner, tmp_path / stage / inner.name)
    monkeypatch.setattr("llama2_lib.stages.sft.loss_on", lambda *_: lambda model: {})
    blind = pipeline.artifact(STAGE, toy(), device="cpu", root=tmp_path, bar=False)
    assert blind.name == folder.name
    assert measured(blind) == {}
    for name in ("model.safetensors", "pool.jsonl.gz", "samples.txt"):
        assert (blind / name).read_bytes() == (folder / name).read_bytes()
