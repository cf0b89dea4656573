"""Fine-tuning learns answers, resumes, refuses what teaches nothing, and counts what it drops."""

import json
from dataclasses import replace

import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.config import SftConfig
from llama2_lib.evaluation.language import answer_loss
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.model.weights import load_model
from llama2_lib.recipes import RECIPES, nano, toy
from llama2_lib.stages.fit import dialog_loss
from llama2_lib.stages.sft import (
    examples,
    sft,
    training_dialogs,
    validation_dialogs,
)
from llama2_lib.storage import read_metrics
from llama2_lib.text.dialog import render
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.training.batches import PackedDialogs, shorten_all
from llama2_lib.world import make_world
from llama2_lib.world.demonstrations import demonstrations

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = replace(toy().sft, n_dialogs=30, save_every=3, eval_every=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(toy_root):
    """Training and validation examples of SHORT."""
    tokenizer = load_tokenizer(pipeline.artifact_path("tokenizer", toy(), toy_root))
    train = training_dialogs(SHORT, 0)
    return examples(train, tokenizer), examples(validation_dialogs(SHORT, 0, train), tokenizer)


@pytest.fixture
def run(data, toy_root, tmp_path):
    """Fine-tune toy's pretrained model; return the weights and the metrics."""

    def start(config, name="run", report=lambda done, words: None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        model = load_model(pipeline.artifact_path("pretrain", toy(), toy_root))[0]
        trained = sft(config, model, *data, folder, CPU, report)
        weights = {key: value.clone() for key, value in trained.state_dict().items()}
        return weights, read_metrics(folder / "metrics.jsonl")

    return start


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_of(rows):
    return [row for row in rows if "loss" in row]


def test_the_loss_on_unseen_answers_falls(toy_root):
    rows = read_metrics(pipeline.artifact_path("sft", toy(), toy_root) / "metrics.jsonl")
    measured = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert list(measured) == [0, 10, 20]
    assert measured[20] < measured[0] - 0.5


def test_the_artifact_holds_a_model_that_can_be_loaded_and_ten_answers(toy_root):
    folder = pipeline.artifact_path("sft", toy(), toy_root)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["inputs"] == {s: pipeline.fingerprint(s, toy()) for s in ("tokenizer", "pretrain")}
    assert sorted(meta["files"]) == [
        "config.json", "metrics.jsonl", "model.safetensors", "samples.txt", "tokenizer.model",
    ]  # fmt: skip
    samples = (folder / "samples.txt").read_text()
    assert samples.count("\n---\n") == 9
    assert samples.count("[held out: ") == samples.count("[right: ") == 5
    tuned, tokenizer = pipeline.load("sft", toy(), root=toy_root, device="cpu")
    before, _ = pipeline.load("pretrain", toy(), root=toy_root, device="cpu")
    assert (tuned.config, tokenizer.vocab_size) == (toy().model, 512)
    assert not equal(tuned.state_dict(), before.state_dict())


def test_the_log_holds_every_step_and_what_became_of_the_dialogs(run, data):
    _, rows = run(SHORT)
    packed = PackedDialogs(data[0], seq_len=128, seed=0)
    per_epoch = packed.batches_per_epoch(4)
    steps = steps_of(rows)
    assert [row["step"] for row in steps] == list(range(1, 2 * per_epoch + 1))
    for epoch in range(2):
        seen = sum(row["tokens"] for row in steps[epoch * per_epoch :][:per_epoch])
        assert seen == packed.counts()["targets"], "every answer token is a target once an epoch"
    probe = shorten_all(data[1], 129)
    assert rows[0].items() >= ({"step": 0} | packed.counts()).items()
    assert rows[0]["validation_dropped"] == probe.n_dropped == 12 - len(probe.examples)
    assert rows[0]["dialogs"] + rows[0]["dropped"] == 30
    assert rows[0]["dropped"] + rows[0]["shortened"] > 0, "nothing was too long: vacuous"


def test_it_begins_with_the_pretrained_weights(run, data, toy_root):
    _, rows = run(SHORT)
    model = load_model(pipeline.artifact_path("pretrain", toy(), toy_root))[0]
    expected = answer_loss(model, shorten_all(data[1], 129).examples).value
    assert rows[0]["validation_loss"] == pytest.approx(expected, rel=1e-6, abs=0)
    assert steps_of(rows)[0]["loss"] < 5.6 < 6.2, "ln 512 is 6.24"


def test_interrupted_anywhere_and_started_again_it_ends_with_the_same_bits(check_resuming):
    check_resuming(SHORT, stops=(1, 3, 4))


def test_dialogs_that_see_each_other_give_another_model(run):
    isolated, rows = run(replace(SHORT, epochs=1), "isolated")
    plain, rows_plain = run(replace(SHORT, epochs=1, isolate_documents=False), "plain")
    assert not equal(isolated, plain)
    assert rows[0] == rows_plain[0]
    assert steps_of(rows)[0]["tokens"] == steps_of(rows_plain)[0]["tokens"]


def test_the_isolated_loss_is_that_of_each_dialog_alone(data, toy_root):
    model = load_model(pipeline.artifact_path("pretrain", toy(), toy_root))[0].double()
    packed = PackedDialogs(data[0], seq_len=128)
    batch = next(packed.batches(batch_size=packed.n_rows))
    term = dialog_loss(True)(model, batch)
    alone = answer_loss(model, shorten_all(data[0], 129).examples)
    assert (term.total / term.count).item() == pytest.approx(alone.value, rel=1e-10, abs=0)
    plain = dialog_loss(False)(model, batch)
    assert plain.count == term.count
    assert plain.total.item() != pytest.approx(term.total.item(), rel=1e-6, abs=0)


@pytest.fixture
def four_rows():
    """Four dialogs of random words, each with an answer of its own to a question of its own."""
    source = torch.Generator().manual_seed(5)
    rows = []
    for n_prompt, n_answer in ((4, 5), (3, 7), (6, 4), (5, 6)):
        words = torch.randint(3, 53, (n_prompt + n_answer,), generator=source).tolist()
        mask = [False] * (n_prompt + 1) + [True] * (n_answer + 1)
        rows.append(([1, *words, 2], mask))
    return rows


def test_four_rows_are_learned_by_heart_and_their_ends_too(config, four_rows, tmp_path):
    """Invariant 75."""
    model = initialise(Transformer(config), 0)
    settings = SftConfig(
        n_dialogs=4, batch_size=4, seq_len=12, epochs=60, peak_lr=1e-2, warmup=2, eval_every=60
    )
    model = sft(settings, model, four_rows, four_rows, tmp_path, CPU)
    rows = steps_of(read_metrics(tmp_path / "metrics.jsonl"))
    assert len(rows) == 60
    assert rows[0]["loss"] > 3
    assert rows[-1]["loss"] < 0.01
    prompts = [[t for t, m in zip(ids, mask, strict=True) if not m] for ids, mask in four_rows]
    done = generate(model, prompts, max_new_tokens=9, temperature=0.0, stop_ids={2})
    for (ids, _), prompt, said in zip(four_rows, prompts, done, strict=True):
        assert prompt + said.ids == ids
        assert said.finished


@pytest.mark.parametrize(
    ("mask", "message"),
    [([False] * 6, "marks none of 6 tokens"), ([True] * 6, "marks all 6 tokens")],
)
def test_an_example_that_cannot_teach_is_refused_wherever_it_stands(
    config, four_rows, tmp_path, mask, message
):
    bad = [*four_rows, ([1, 5, 6, 7, 8, 2], mask)]
    settings = SftConfig(n_dialogs=5, batch_size=4, seq_len=12, warmup=1)
    for train, validation in ((bad, four_rows), (four_rows, bad)):
        with pytest.raises(ValueError, match=f"example 4 {message}|of example 4 {message}"):
            sft(settings, Transformer(config), train, validation, tmp_path, CPU)


def test_rows_and_runs_that_cannot_be_are_refused(config, four_rows, tmp_path):
    model = Transformer(config)
    settings = SftConfig(n_dialogs=4, batch_size=4, seq_len=38, warmup=1)
    with pytest.raises(ValueError, match=r"seq_len must fit.*got 38 and 37"):
        sft(settings, model, four_rows, four_rows, tmp_path, CPU)
    with pytest.raises(ValueError, match=r"warmup must lie in 0\.\.\.steps - 1; got 10 of 2 steps"):
        sft(replace(settings, seq_len=12, warmup=10), model, four_rows, four_rows, tmp_path, CPU)


def test_fewer_training_dialogs_are_a_beginning_of_more_and_no_validation_dialog_is_one():
    few, many = (training_dialogs(replace(SHORT, n_dialogs=n), 0) for n in (30, 300))
    assert many[:30] == few
    assert training_dialogs(SHORT, 1) != few
    fresh = [render(dialog) for dialog in validation_dialogs(SHORT, 0, many)]
    assert len(set(fresh)) == len(fresh) == 12
    assert not set(fresh) & {render(dialog) for dialog in many}


def test_a_world_without_unseen_dialogs_is_refused():
    all_of_it = list(demonstrations(make_world(0), 1_000_003, 240))
    assert len(validation_dialogs(SHORT, 0, all_of_it[:120])) == 12
    with pytest.raises(ValueError, match=r"n_validation=12 unseen .* gave 0 in 240 tries"):
        validation_dialogs(SHORT, 0, all_of_it)


def test_noisy_dialogs_are_trained_on_but_never_validated_on():
    noisy = replace(SHORT, n_dialogs=200, grade="noisy")
    train = training_dialogs(noisy, 0)
    assert train == list(demonstrations(make_world(0), 0, 200, "noisy"))
    assert train != training_dialogs(replace(noisy, grade="clean"), 0)
    clean = [render(dialog) for dialog in demonstrations(make_world(0), 1_000_003, 240)]
    assert {render(dialog) for dialog in validation_dialogs(noisy, 0, train)} <= set(clean)


def test_recipes_follow_the_paper_where_its_numbers_transfer():
    for recipe in RECIPES.values():
        config = recipe(3).sft
        assert (config.epochs, config.weight_decay, config.seed) == (2, 0.1, 3)
        assert config.isolate_documents
        assert config.seq_len <= recipe(3).model.max_seq_len
    assert nano().sft.seq_len == nano().model.max_seq_len == nano().pretrain.seq_len
