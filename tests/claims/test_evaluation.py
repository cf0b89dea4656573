"""What claims 35 to 37, 39 and 53 measure, on toys."""

import numpy as np
import pytest

from llama2_lib.claims import evaluation
from llama2_lib.claims.claim import CannotShow
from llama2_lib.claims.evaluation import LEAKS, MAIN
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.evaluation import contamination
from llama2_lib.recipes import nano, toy


def test_a_judge_of_another_chain_is_asked():
    runs = CLAIMS[35].requests(nano(), range(3))
    assert len(runs) == 6
    assert {stage for stage, _ in runs} == {"ppo", "rewards_v5"}
    assert {run.ppo.seed for _, run in runs} == set(range(3))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(evaluation, "N_ITEMS", 100)
    monkeypatch.setattr(evaluation, "N_OTHER", 6)
    monkeypatch.setattr(evaluation, "COPIES", 3)


@pytest.mark.slow
def test_what_leaked_is_what_is_found_in_training(toy_copy, measure, few, monkeypatch):
    with pytest.raises(CannotShow, match="items are clean, 1 dirty, of score 0"):
        measure(53)  # a toy completes nothing

    def completed(model, tokenizer, items, window):
        return [index % 3 == 0 for index in range(len(items))]

    monkeypatch.setattr(evaluation.benchmarks, "completed", completed)
    values = measure(53)
    assert {f"found/{leak}" for leak in LEAKS} <= set(values)
    assert values["found/untrained"] in (0.0, 1.0)
    ids, score = evaluation.leaked(
        toy(), items := evaluation.retrieval_items(evaluation.make_world(0), 1, 40, 2), 8, 0
    )
    _, tokenizer = evaluation.pipeline.load("pretrain", toy())
    samples = [evaluation.full_text(item, tokenizer)[1:-1] for item in items]
    share = contamination.shares(samples, contamination.index(ids), longer_than=30)
    assert (share[:8] == 1).all()
    assert (share[8:] < 0.8).all()
    assert set(np.unique(score)) <= {0.0, 1.0}
    assert MAIN in LEAKS


@pytest.mark.slow
def test_benchmarks_raters_and_prompts_on_the_toy_chain(toy_copy, measure, monkeypatch):
    from llama2_lib.claims import chain

    monkeypatch.setattr(chain, "N_PROMPTS", 40)
    evaluation._gaps.cache_clear()
    assert {"win/with", "win/without"} <= set(measure(37))
    with pytest.raises(CannotShow, match=r"20 pairs of answers must be (between|far apart)"):
        measure(36)
    monkeypatch.setattr(evaluation, "FEWEST", 1)
    gaps = np.repeat([0.0, 0.1, 0.5], 40)
    monkeypatch.setattr(evaluation, "_gaps", lambda _: (gaps, np.zeros(120)))
    agreed = CLAIMS[36].measure(toy(), 0).values
    assert [agreed[f"pairs/{name}"] for name in evaluation.BINS] == [40, 40, 40]
    assert agreed["ac2/far apart"] > agreed["ac2/close"]
    table = measure(39)
    assert {"toxic/base", "truthful/V5", "sentiment, she/SFT"} <= set(table)
