"""What claim 4 measures: two windows, equal tokens, questions sorted by where their note lies."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llama2_lib.claims import CLAIMS, CannotShow, Outcome, context_runs
from llama2_lib.claims.context_runs import answered, context_recipes, measure_context
from llama2_lib.evaluation.language import DocumentNats
from llama2_lib.model.generate import Completion
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import grid, nano, toy
from llama2_lib.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from llama2_lib.world import documents, make_world
from llama2_lib.world.lookalike import retrieval_items

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

    split = SimpleNamespace(
        packed=SimpleNamespace(n_documents=3), document=lambda i: list(range(40 * (i + 1)))
    )
    monkeypatch.setattr(context_runs, "generate", generate)
    monkeypatch.setattr(context_runs.pipeline, "artifacts", lambda requests: [])
    monkeypatch.setattr(context_runs.pipeline, "artifact", lambda stage, run: Path())
    monkeypatch.setattr(context_runs.pipeline, "load", lambda stage, run: (MODEL, tokenizer))
    monkeypatch.setattr(context_runs, "load_corpus", lambda folder, name: split)
    monkeypatch.setattr(
        context_runs,
        "document_nats",
        lambda model, texts: DocumentNats(np.full(len(texts), 2.0), np.array([4] * len(texts))),
    )


def test_only_the_window_differs_and_the_tokens_are_equal():
    runs = context_recipes(nano(), 3)
    short, long = runs["short"].pretrain, runs["long"].pretrain
    assert (short.seq_len, long.seq_len) == (128, 256)
    assert short.n_tokens == long.n_tokens
    back = replace(long, seq_len=short.seq_len, batch_size=short.batch_size)
    assert replace(runs["long"], pretrain=back) == runs["short"]
    assert short.seed == 3
    assert len(set(CLAIMS[4].requests(nano(), range(3)))) == 6
    own = context_recipes(toy(), 1)["long"]
    assert own.model == toy().model
    assert own.pretrain.steps == toy().pretrain.steps


def test_a_model_that_reads_its_window_answers_near_questions_only(oracle):
    values = measure_context(grid(), 0).values
    assert [values[f"near/{name}"] for name in ("short", "long")] == [1.0, 1.0]
    assert [values[f"far/{name}"] for name in ("short", "long")] == [0.0, 1.0]
    assert values["short_task/short"] == pytest.approx(0.5, rel=0, abs=1e-12)
    assert values["at/short/0"] == 1.0
    assert values["at/short/30"] == 0.0
    assert values["at/long/20"] == 1.0
    verdict = CLAIMS[4].verdict([measure_context(grid(), seed) for seed in range(3)])
    assert verdict.outcome is Outcome.REPRODUCED


def test_windows_too_short_for_any_question_cannot_show(oracle):
    recipe = replace(grid(), model=replace(grid().model, max_seq_len=30))
    with pytest.raises(CannotShow, match="no question is near"):
        measure_context(recipe, 0)


def test_the_window_hides_what_lies_before_it(oracle, tokenizer):
    items = retrieval_items(make_world(0), 1, 5, 9)
    shortest = min(len(tokenizer.encode(item.prompt, bos=True)) for item in items)
    assert answered(MODEL, tokenizer, items, shortest * 2) == [True] * 5
    assert answered(MODEL, tokenizer, items, shortest // 2) == [False] * 5


@pytest.mark.slow
def test_claim_4_on_trained_models(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path))
    values = measure_context(toy(), 1).values
    assert {f"{t}/{m}" for t in ("near", "far", "short_task") for m in ("short", "long")} < set(
        values
    )
    assert values["short_task/short"] != values["short_task/long"]  # two models, not one
    assert max(values["short_task/short"], values["short_task/long"]) < 6.2  # ln 512 = 6.24
