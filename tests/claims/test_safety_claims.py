"""Claims 40 to 48 and 54: their judges with made-up numbers, and what they ask for."""

import numpy as np
import pytest

from llama2_lib.claims import CLAIMS, Measurement, Outcome, of_course
from llama2_lib.claims.red_team_runs import round_requests, rounds_recipe
from llama2_lib.claims.safety import inside
from llama2_lib.claims.safety_runs import (
    ARMS,
    Answered,
    _by_quarter,
    arm_recipes,
    compared,
    data_recipes,
    means,
)
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.pipeline import STAGES
from llama2_lib.recipes import nano, toy
from llama2_lib.stages.safety_data import safety_dialogs

UP = {
    40: {
        "safety/with over without": 0.2, "low/with over without": -0.1,
        "helpfulness/with over without": 0.004,
    },
    41: {
        "safety/100 over 0": 0.3, "safety/early over late": 0.1, "low/100 over 0": -0.3,
        "helpfulness/100 over 0": -0.005,
    },
    42: {"refused_borderline/100 over 0": 0.15, "refused_helpful/100 over 0": 0.003},
    43: {"generic over none": 0.1, "template over generic": 0.05},
    44: {
        "low over high": 0.3, "safety/gated over ungated": 0.03, "safety/gated over none": 0.1,
    },
    45: {"refused_borderline/all over ungated": 0.1, "helpfulness/all over ungated": -0.05},
    46: {"fall": -0.03, "fixed": 0.95, "fixed over luck": 0.3},
    47: {"multi over single": 0.1},
    48: {"advice over illicit": 0.08, "advice over hateful": 0.06},
    54: {"borderline": 0.1, "helpful": 0.002},
}  # fmt: skip
LOST = {
    40: {
        "safety/with over without": 0.02, "low/with over without": 0.0,
        "helpfulness/with over without": -0.1,
    },
    41: {
        "safety/100 over 0": 0.05, "safety/early over late": -0.1, "low/100 over 0": 0.0,
        "helpfulness/100 over 0": 0.08,
    },
    42: {"refused_borderline/100 over 0": 0.02, "refused_helpful/100 over 0": 0.06},
    43: {"generic over none": -0.1, "template over generic": -0.05},
    44: {
        "low over high": -0.3, "safety/gated over ungated": -0.08, "safety/gated over none": -0.1,
    },
    45: {"refused_borderline/all over ungated": -0.1, "helpfulness/all over ungated": 0.05},
    46: {"fall": 0.03, "fixed": 0.5, "fixed over luck": -0.1},
    47: {"multi over single": -0.1},
    48: {"advice over illicit": -0.08, "advice over hateful": -0.06},
    54: {"borderline": -0.1, "helpful": 0.08},
}  # fmt: skip
EVERY = [(claim, name) for claim, gains in UP.items() for name in gains]


def made_up(gains, error=0.003, seeds=(0.001, -0.002, 0.0015)):
    """Measurements of three seeds around the gains."""
    rows = []
    for seed, shift in enumerate(seeds):
        values = {f"gain/{name}": value + shift for name, value in gains.items()}
        values |= {f"error/{name}": error for name in gains}
        values |= {
            "safety/0": 0.6 + shift,
            "gamma/1": 50.0,
            "luck": 0.8,
            "median/none": 0.7,
            "with/helpful": 0.0,
        }
        rows.append(Measurement(values=values, seed=seed))
    return rows


@pytest.mark.parametrize("claim", UP)
def test_what_was_predicted_reproduces(claim):
    verdict = CLAIMS[claim].verdict(made_up(UP[claim]))
    assert verdict.outcome == Outcome.REPRODUCED
    assert len(verdict.estimates) >= len(UP[claim])


@pytest.mark.parametrize(("claim", "name"), EVERY)
def test_one_loss_refutes(claim, name):
    lost = UP[claim] | {name: LOST[claim][name]}
    assert CLAIMS[claim].verdict(made_up(lost)).outcome == Outcome.NOT_REPRODUCED


@pytest.mark.parametrize(("claim", "name"), EVERY)
def test_what_prompts_cannot_tell_is_undecided(claim, name):
    rows = made_up(UP[claim])
    for row in rows:
        row.values[f"error/{name}"] = 2.0
    assert CLAIMS[claim].verdict(rows).outcome == Outcome.INCONCLUSIVE


@pytest.mark.parametrize("claim", UP)
def test_what_seeds_disagree_on_is_undecided(claim):
    rows = made_up(UP[claim], error=1e-6, seeds=(0.9, -0.9, 0.0))
    assert CLAIMS[claim].verdict(rows).outcome == Outcome.INCONCLUSIVE


@pytest.mark.parametrize("claim", UP)
def test_two_seeds_are_too_few(claim):
    assert CLAIMS[claim].verdict(made_up(UP[claim])[:2]).outcome == Outcome.INCONCLUSIVE


def test_an_equivalence_needs_the_whole_interval_inside():
    def check(low, high, margin=0.03):
        return inside("x", Estimate(value=(low + high) / 2, low=low, high=high, n=3), margin).holds

    assert check(-0.02, 0.02) is True
    assert check(-0.02, 0.04) is None
    assert check(-0.04, 0.02) is None
    assert check(-0.2, 0.2) is None  # wide: it shows nothing
    assert check(0.03, 0.05) is False
    assert check(-0.05, -0.03) is False


@pytest.mark.parametrize("claim", UP)
def test_measured_and_recorded(claim):
    assert CLAIMS[claim].measure is not None
    assert claim not in of_course()
    runs = CLAIMS[claim].requests(toy(), range(2))
    assert runs
    assert {stage for stage, _ in runs} <= set(STAGES)


def test_variants_differ_in_what_they_are_named_for():
    data = data_recipes(nano(), 3)
    assert list(data) == ["0", "1", "10", "25", "50", "100"]
    dialogs = [safety_dialogs(run.safety_data, 0) for run in data.values()]
    assert [len(part) for part in dialogs] == [0, 5, 50, 125, 250, 500]
    assert all(part == dialogs[-1][: len(part)] for part in dialogs)
    assert len({run.sft for run in data.values()}) == 1
    arms = arm_recipes(nano(), 3)
    assert set(arms) == set(ARMS)
    assert len({run.distillation for run in arms.values()}) == len(ARMS)
    assert {run.distillation.seed for run in arms.values()} == {3}
    assert {run.distillation.n_prompts for run in arms.values()} == {400}
    assert rounds_recipe(nano(), 3).red_team.seed == rounds_recipe(nano(), 3).sft.seed == 3
    assert rounds_recipe(nano(), 3).pretrain == nano().pretrain
    assert len(set(round_requests(nano(), range(3)))) == 3


def answered(n=40, seed=0):
    source = np.random.default_rng(seed)
    return Answered(*(source.random(n + i) for i in range(len(Answered._fields))))


def test_gains_are_of_pairs_and_violations_are_marks_below_a_half():
    after, before = answered(seed=1), answered(seed=2)
    values = compared("a over b", after, before)
    assert values["gain/safety/a over b"] == pytest.approx(
        after.safety.mean() - before.safety.mean(), abs=1e-12
    )
    gap = after.low - before.low
    assert values["error/low/a over b"] == pytest.approx(
        gap.std(ddof=1) / np.sqrt(len(gap)), abs=1e-12
    )
    assert means("a", after)["low/a"] == pytest.approx((after.safety < 0.5).mean(), abs=1e-12)
    assert means("a", after)["tail/a"] == pytest.approx(np.quantile(after.safety, 0.05), abs=1e-12)


def test_quarters_are_sorted_by_the_other_answer():
    by = np.array([0.9, 0.1, 0.5, 0.2, 0.8, 0.6, 0.4, 0.3])
    gaps = np.array([-3.0, 5.0, 0.0, 4.0, -2.0, 0.0, 0.0, 0.0])
    values = _by_quarter(gaps, by)
    assert values["gain/low over high"] == pytest.approx(4.5 + 2.5, abs=1e-12)
    assert values["gain/high"] == pytest.approx(-2.5, abs=1e-12)
    assert values["error/low over high"] == pytest.approx(np.sqrt(0.5 / 2 + 0.5 / 2), abs=1e-12)
