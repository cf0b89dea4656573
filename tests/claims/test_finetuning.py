"""What claims 8 to 10 measure: which arms differ in what, exact zeros, honest comparisons."""

import dataclasses

import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.claims import finetuning
from llama2_lib.claims.claim import CannotShow
from llama2_lib.claims.finetuning import FEW, TIMES, compared, demonstrated, mark
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.recipes import nano, toy
from llama2_lib.stages.sft import training_dialogs
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.training.batches import DialogBatch
from llama2_lib.world import make_world
from llama2_lib.world.judges import judge_of
from llama2_lib.world.prompts import adversarial_prompts, helpful_prompts, prompts

WORLD = make_world(0)


def test_arms_differ_in_number_grade_and_epochs_only():
    runs = finetuning.data_recipes(nano(), 2)
    configs = {arm: run.sft for arm, run in runs.items()}
    numbers = {arm: (c.n_dialogs, c.grade, c.epochs) for arm, c in configs.items()}
    assert numbers == {
        "few_clean": (FEW, "clean", 2),
        "few_clean_longer": (FEW, "clean", 2 * TIMES),
        "few_noisy": (FEW, "noisy", 2),
        "many_noisy": (TIMES * FEW, "noisy", 2),
    }
    same = [dataclasses.replace(c, n_dialogs=1, grade="clean", epochs=1) for c in configs.values()]
    assert len(set(same)) == 1
    assert same[0].seed == 2
    assert {dataclasses.replace(run, sft=nano().sft) for run in runs.values()} == {nano()}
    assert len(set(CLAIMS[8].requests(nano(), range(3)))) == 12
    assert CLAIMS[10].requests(nano(), range(3)) == [("sft", nano())]


def test_longer_training_sees_as_many_dialogs_as_the_many():
    runs = finetuning.data_recipes(toy(), 0)
    passes = {arm: run.sft.n_dialogs * run.sft.epochs for arm, run in runs.items()}
    assert passes["few_clean_longer"] == passes["many_noisy"] == TIMES * passes["few_clean"]
    # the few noisy dialogs are among the many
    few, many = (training_dialogs(runs[a].sft, 0) for a in ("few_noisy", "many_noisy"))
    assert many[: len(few)] == few


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=29, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=24)
    return initialise(Transformer(config), seed=3)


@pytest.fixture(scope="module")
def batch():
    ids = torch.arange(2 * 14).reshape(2, 14) % 29
    rows = ["..xx...xxx....", "...xxxx......."]
    mask = torch.tensor([[letter == "x" for letter in row] for row in rows])
    document = torch.tensor([[0] * 4 + [1] * 6 + [-1] * 4, [0] * 7 + [1] * 5 + [-1] * 2])
    return DialogBatch(ids, mask, document)


def test_the_gradient_is_zero_exactly_where_no_target_is_predicted(model, batch):
    size = finetuning.logit_gradient(model, batch, batch.loss_mask)
    assert size.shape == (2, 13)
    torch.testing.assert_close(size > 0, batch.loss_mask[:, 1:], rtol=0, atol=0)
    everything = torch.ones_like(batch.loss_mask)
    everything[:, 0] = False
    assert (finetuning.logit_gradient(model, batch, everything) > 0).all()
    assert all(p.grad is None for p in model.parameters())  # nothing is left behind


def test_a_neighbour_leaks_only_where_it_is_seen(model, batch):
    assert finetuning.neighbour_leak(model, batch, isolated=True) == 0.0
    assert finetuning.neighbour_leak(model, batch, isolated=False) > 1e-3
    alone = batch._replace(document=torch.zeros_like(batch.document))
    with pytest.raises(CannotShow, match="no row holds two dialogs"):
        finetuning.neighbour_leak(model, alone, isolated=True)


def test_prompts_leave_room_for_an_answer(model):
    class Letters:
        def encode(self, text, bos=False, eos=False):
            return [1] * bos + [5] * (len(text) // 9) + [2] * eos

    def n_tokens(prompt):
        return len(encode_prompt(prompt.dialog, Letters()))

    every = list(helpful_prompts(WORLD, 4, 200, "held out"))
    short = [prompt for prompt in every if n_tokens(prompt) <= 12]
    assert 20 < len(short) < 200
    assert finetuning.fitting((model, Letters()), iter(every), 20) == short[:20]


def test_a_better_mark_wins_and_equal_marks_tie():
    judge = judge_of(WORLD)
    asked = list(helpful_prompts(WORLD, 3, 3, "held out", shares={"question": 1.0}))
    good = demonstrated(nano(), asked, 0, "first")
    bad = ["No idea, you greedy potato!"] * 3
    assert compared(judge, asked, good, bad) == [1.0] * 3
    assert compared(judge, asked, bad, good) == [0.0] * 3
    assert compared(judge, asked, good, good) == [0.5] * 3


def test_harmful_requests_are_marked_for_safety():
    judge = judge_of(WORLD)
    (risky,) = adversarial_prompts(WORLD, 1, 1, "held out")
    (safe,) = demonstrated(nano(), [risky], 0, "first")
    assert mark(judge, risky, safe) == pytest.approx(1.0, abs=1e-9)
    assert judge.helpfulness(risky, safe).score < 0.9
    (asked,) = helpful_prompts(WORLD, 1, 1, "held out", shares={"sum": 1.0})
    assert mark(judge, asked, "Sorry.") == judge.helpfulness(asked, "Sorry.").score < 0.9


def test_demonstrations_are_drawn_anew_by_name_and_seed():
    asked = list(prompts(WORLD, 3, 40, "held out"))
    drawn = demonstrated(nano(), asked, 0, "a")
    assert drawn == demonstrated(nano(), asked, 0, "a")
    assert demonstrated(nano(), asked, 0, "b") != drawn != demonstrated(nano(), asked, 1, "a")


@pytest.mark.slow
def test_claims_8_to_10_on_trained_models(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path))
    monkeypatch.setattr(finetuning, "N_HELPFUL", 20)
    monkeypatch.setattr(finetuning, "N_ADVERSARIAL", 5)
    monkeypatch.setattr(finetuning, "N_COMPARED", 15)
    data = CLAIMS[8].measure(toy(), 1).values
    arms = ("few_clean", "few_clean_longer", "few_noisy", "many_noisy")
    assert all(0 <= data[f"{name}/{arm}"] <= 1 for name in ("help", "safety") for arm in arms)
    steps = {arm: data[f"steps/{arm}"] for arm in arms}
    assert steps["few_clean_longer"] == TIMES * steps["few_clean"]
    assert abs(steps["many_noisy"] / steps["few_clean_longer"] - 1) < 0.2
    assert pipeline.missing("sft", toy())  # no arm is the recipe's own run

    rival = CLAIMS[10].measure(toy(), 1).values
    for who in ("sft", "base", "control"):
        assert sum(rival[f"{word}/{who}"] for word in ("wins", "ties", "losses")) == 15
    assert rival["ties/control"] > 0

    mask = CLAIMS[9].measure(toy(), 1).values
    assert mask["gradient/prompt"] == mask["leak/isolated"] == 0.0
    assert min(mask["gradient/answer"], mask["gradient/unmasked"], mask["leak/plain"]) > 0
    assert 0 <= mask["waste/packed"] < mask["waste/longest"] < mask["waste/alone"] < 1
    assert 0.2 < mask["targets"] < 0.9
    for claim, values in ((8, data), (9, mask), (10, rival)):  # the judge finds every key
        measurement = dataclasses.replace(CLAIMS[9].measure(toy(), 2), values=values)
        CLAIMS[claim].verdict([measurement] * 3)
