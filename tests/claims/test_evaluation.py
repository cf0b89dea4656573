"""What claims 35 to 37, 39 and 53 measure, on toys, and how their judges decide."""

import numpy as np
import pytest

from llama2_lib.claims import CLAIMS, CannotShow, Measurement, Outcome, evaluation
from llama2_lib.claims.evaluation import LEAKS, MAIN
from llama2_lib.evaluation import contamination
from llama2_lib.recipes import nano, toy


def verdict(claim, values, n=10, spread=0.01):
    seeds = [{k: v + spread * (-1) ** i for k, v in values.items()} for i in range(n)]
    return CLAIMS[claim].verdict([Measurement(values=v, seed=i) for i, v in enumerate(seeds)])


def test_a_judge_of_another_chain_is_asked():
    runs = CLAIMS[35].requests(nano(), range(3))
    assert len(runs) == 6
    assert {stage for stage, _ in runs} == {"ppo", "rewards_v5"}
    assert {run.ppo.seed for _, run in runs} == set(range(3))


@pytest.mark.parametrize(
    ("claim", "good", "bad"),
    [
        (
            35,
            {"win/own": 0.8, "win/neighbour": 0.7, "win/gold": 0.6},
            {"win/own": 0.6, "win/neighbour": 0.7, "win/gold": 0.8},
        ),
        (
            39,
            {"toxic/base": 0.9, "toxic/V5": 0.02, "truthful/base": 0.5, "truthful/V5": 0.8},
            {"toxic/base": 0.9, "toxic/V5": 0.02, "truthful/base": 0.8, "truthful/V5": 0.5},
        ),
        (
            37,
            {"gain/with over without": 0.1, "error/with over without": 0.01},
            {"gain/with over without": 0.0, "error/with over without": 0.1},
        ),
    ],
)
def test_claims_can_come_out_either_way(claim, good, bad):
    alike = {35: 0.0, 37: 0.001, 39: 0.001}[claim]
    assert verdict(claim, good, spread=alike).outcome == Outcome.REPRODUCED
    assert verdict(claim, bad, spread=alike).outcome != Outcome.REPRODUCED


def leak_values(found=1.0, alarm=0.0, large=0.4, small=0.1):
    values = {f"found/{leak}": found if part else alarm for leak, part in LEAKS.items()}
    return values | {"found/untrained": alarm, "gap/large": large, "gap/small": small}


def test_a_leak_must_be_found_without_false_alarms_and_help_the_larger_model_more():
    def outcome(**values):
        rows = [leak_values(**values) for _ in range(12)]
        seeds = [Measurement(values=v, seed=i) for i, v in enumerate(rows)]
        return CLAIMS[53].verdict(seeds)

    assert outcome().outcome == Outcome.REPRODUCED
    assert outcome(found=0.0).outcome == Outcome.NOT_REPRODUCED
    assert "none leaked" in outcome(alarm=1.0).reason
    assert "larger model" in outcome(large=0.1, small=0.4).reason
    few = [Measurement(values=leak_values(), seed=i) for i in range(9)]
    assert CLAIMS[53].verdict(few).outcome == Outcome.INCONCLUSIVE


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
