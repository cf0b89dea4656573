"""What claims 1, 2 and 4 measure: widths, spikes and slopes, two windows with equal tokens."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from llama2_lib.claims import pretraining
from llama2_lib.claims.claim import CannotShow, Outcome
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.evaluation import language
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import Completion
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import grid, nano, toy
from llama2_lib.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from llama2_lib.world import documents, make_world
from llama2_lib.world.long_range import retrieval_items


def test_a_narrower_model_keeps_the_size_of_its_heads():
    config = ModelConfig(dim=96, n_layers=3, n_heads=12, n_kv_heads=4, vocab_size=50)
    half, quarter = pretraining.at_width(config, 2), pretraining.at_width(config, 4)
    assert (half.dim, half.n_heads, half.n_kv_heads) == (48, 6, 2)
    assert (quarter.dim, quarter.n_heads, quarter.n_kv_heads) == (24, 3, 1)
    assert half.head_dim == quarter.head_dim == config.head_dim == 8
    assert half.n_layers == 3
    assert pretraining.at_width(config, 1) == config
    # fewer key/value heads than the divisor: one is left
    assert pretraining.at_width(replace(config, n_kv_heads=2), 4).n_kv_heads == 1
    with pytest.raises(AssertionError, match="12 heads cannot keep their size"):
        pretraining.at_width(config, 8)


def test_widths_differ_in_the_model_only_and_share_the_grid():
    runs = pretraining.scaling_recipes(nano(), 2)
    assert list(runs) == [16, 32, 64]
    assert runs[64] == grid(2)
    assert len({replace(run, model=grid().model) for run in runs.values()}) == 1
    assert len(set(CLAIMS[1].requests(nano(), range(3)))) == 9


def test_arms_differ_in_warm_up_and_clipping_only():
    runs = pretraining.schedule_recipes(nano(), 2)
    on, off = runs["with"], runs["without"]
    assert on.pretrain.peak_lr == pretraining.RATE_FACTOR * grid().pretrain.peak_lr
    assert (off.pretrain.warmup, off.pretrain.clip_norm) == (0, pretraining.UNCLIPPED)
    assert (on.pretrain.warmup, on.pretrain.clip_norm) == (15, 1.0)
    again = replace(off.pretrain, warmup=15, clip_norm=1.0)
    assert replace(off, pretrain=again) == on
    assert on.pretrain.seed == 2
    assert len(set(CLAIMS[2].requests(nano(), range(3)))) == 6
    assert "Infinity" not in json.dumps(asdict(off.pretrain))


def test_a_slope_is_per_doubling_over_the_last_half():
    steps = np.arange(1, 401)
    assert pretraining.slope_per_doubling(5 - 0.3 * np.log2(steps)) == pytest.approx(-0.3, rel=1e-9)
    early = np.where(steps <= 200, 100.0 / steps, 2.0)  # what came before does not count
    assert pretraining.slope_per_doubling(early) == pytest.approx(0.0, abs=1e-9)


def test_an_excess_is_over_the_median_of_the_twenty_before():
    loss = np.linspace(4.0, 3.0, 101)  # falls by 0.01 a step
    loss[60] = 9.0
    excess = pretraining.excess_over_median(loss)
    assert len(excess) == 81
    # the median of the 20 before lies 10.5 steps back
    assert excess[0] == pytest.approx(-0.105, abs=1e-9)
    assert excess[60 - 20] == pytest.approx(9.0 - (3.4 + 0.105), abs=1e-9)
    assert excess[61 - 20] < 0  # one spike does not lift the median of the next
    with pytest.raises(AssertionError, match="longer than 20 steps; got 20"):
        pretraining.excess_over_median(loss[:20])


@pytest.mark.slow
def test_claims_1_and_2_on_trained_models(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path))
    measured = {claim: CLAIMS[claim].measure(toy(), 1) for claim in (1, 2)}
    size, arms = (one.values for one in measured.values())
    assert {key.split("/")[1] for key in size} == {"8", "16", "32"}
    assert size["parameters/8"] < size["parameters/16"] < size["parameters/32"]
    losses = [size[f"loss/{width}"] for width in (8, 16, 32)]
    assert len(set(losses)) == 3
    assert max(losses) < 6.3  # ln 512 = 6.24
    assert all(size[f"slope/{width}"] < 0 for width in (8, 16, 32))

    assert arms["final_rate/with"] == pytest.approx(0.1, abs=1e-9)
    assert arms["peak_norm/with"] != arms["peak_norm/without"]
    assert arms["end/with"] != arms["end/without"]
    assert arms["spikes/with"] == 0.0
    for claim, one in measured.items():  # the judge finds every key it needs
        CLAIMS[claim].verdict([one, replace(one, seed=2)] * 2)


MODEL = Transformer(toy().model)
"""Never asked: it stands where a model must."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    shares = {"reminder": 0.7, "lookalike": 0.3}
    texts = [document.text for document in documents(make_world(0), 0, 400, shares)]
    path = tmp_path_factory.mktemp("tok") / "tokenizer.model"
    return load_tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=700), path))


@pytest.fixture
def oracle(monkeypatch, tokenizer):
    """A model that answers rightly if and only if the note is in what it is shown."""

    def generate(model, prompts, **settings):
        texts = [tokenizer.decode(ids) for ids in prompts]
        found = [re.search(r"box of \w+ holds one (\w+)\.", text) for text in texts]
        words = [match[1] if match else "nothing" for match in found]
        return [Completion(tokenizer.encode(f"{w}. Then"), [], True) for w in words]

    monkeypatch.setattr(language, "generate", generate)
    monkeypatch.setattr(pretraining.pipeline, "artifacts", lambda requests: [])
    monkeypatch.setattr(pretraining.pipeline, "load", lambda stage, run: (MODEL, tokenizer))
    monkeypatch.setattr(pretraining, "validation_loss", lambda run, longest: float(longest))


def test_only_the_window_differs_and_the_tokens_are_equal():
    runs = pretraining.context_recipes(nano(), 3)
    short, long = runs["short"].pretrain, runs["long"].pretrain
    assert (short.seq_len, long.seq_len) == (128, 256)
    assert short.n_tokens == long.n_tokens
    back = replace(long, seq_len=short.seq_len, batch_size=short.batch_size)
    assert replace(runs["long"], pretrain=back) == runs["short"]
    assert short.seed == 3
    assert len(set(CLAIMS[4].requests(nano(), range(3)))) == 6
    own = pretraining.context_recipes(toy(), 1)["long"]
    assert own.model == toy().model
    assert own.pretrain.steps == toy().pretrain.steps


def test_a_model_that_reads_its_window_answers_near_questions_only(oracle):
    values = CLAIMS[4].measure(grid(), 0).values
    assert [values[f"near/{name}"] for name in ("short", "long")] == [1.0, 1.0]
    assert [values[f"far/{name}"] for name in ("short", "long")] == [0.0, 1.0]
    # both on the documents that fit the short window with an answer
    assert values["short_task/short"] == values["short_task/long"] == 128 - 6
    assert values["at/short/0"] == 1.0
    assert values["at/short/30"] == 0.0
    assert values["at/long/20"] == 1.0
    verdict = CLAIMS[4].verdict([CLAIMS[4].measure(grid(), seed) for seed in range(3)])
    assert verdict.outcome is Outcome.REPRODUCED


def test_windows_too_short_for_any_question_cannot_show(oracle):
    recipe = replace(grid(), model=replace(grid().model, max_seq_len=30))
    with pytest.raises(CannotShow, match="no question is near"):
        CLAIMS[4].measure(recipe, 0)


def test_the_window_hides_what_lies_before_it(oracle, tokenizer):
    items = retrieval_items(make_world(0), 1, 5, 9)
    shortest = min(len(tokenizer.encode(item.prompt, bos=True)) for item in items)
    assert pretraining.completed(MODEL, tokenizer, items, shortest * 2) == [True] * 5
    assert pretraining.completed(MODEL, tokenizer, items, shortest // 2) == [False] * 5


@pytest.mark.slow
def test_claim_4_on_trained_models(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path))
    values = CLAIMS[4].measure(toy(), 1).values
    tasks = {f"{t}/{m}" for t in ("near", "far", "short_task") for m in ("short", "long")}
    assert tasks < set(values)
    assert values["short_task/short"] != values["short_task/long"]  # two models, not one
    assert max(values["short_task/short"], values["short_task/long"]) < 6.2  # ln 512 = 6.24
