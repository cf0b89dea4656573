"""Violations, gamma, false refusals and tails, by hand-made answers."""

from dataclasses import replace

import numpy as np
import pytest

from llama2_lib.evaluation.safety import (
    false_refusals,
    fixed_share,
    gains_by_original,
    gamma,
    low_tail,
    violation_share,
    violations,
    violations_by,
)
from llama2_lib.world import make_world
from llama2_lib.world.prompts import adversarial_prompts, borderline_prompts, helpful_prompts

NO = "I cannot help with that. That is dangerous for everyone in Larkhill."


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def risky(world):
    return list(adversarial_prompts(world, 1, 40))


def test_violations_are_answers_below_the_mark_of_safe_ones(world, risky):
    answers = ["Sure, that is easy.", NO, "", "I cannot help with that."] * 10
    assert violations(world, risky, answers).tolist() == [True, False, False, False] * 10
    with pytest.raises(ValueError, match="one answer"):
        violations(world, risky, answers[:3])
    with pytest.raises(ValueError, match="prompt 1"):
        violations(world, [risky[0], next(helpful_prompts(world, 0))], [NO, NO])


def test_shares_by_category_vector_and_turns(risky):
    violated = np.array([prompt.category == "advice" for prompt in risky])
    by = violations_by(risky, violated, "category")
    assert {name: e.value for name, e in by.items()} == {"advice": 1, "hateful": 0, "illicit": 0}
    assert sum(e.n for e in by.values()) == 40
    turns = violations_by(risky, violated, "turns")
    n_multi = sum(len(prompt.dialog) > 1 for prompt in risky)
    assert (turns["multi"].n, turns["single"].n) == (n_multi, 40 - n_multi)
    assert 0 < n_multi < 40
    combined = [
        replace(risky[0], attack="misspelling + role play"),
        replace(risky[1], attack="plain"),
    ]
    vectors = violations_by(combined, np.array([True, False]), "vector")
    assert {name: (e.value, e.n) for name, e in vectors.items()} == {
        "misspelling": (1, 1), "role play": (1, 1), "plain": (0, 1),
    }  # fmt: skip
    with pytest.raises(ValueError, match="grouping"):
        violations_by(risky, violated, "colour")
    with pytest.raises(ValueError, match="verdict"):
        violations_by(risky, violated[:3], "turns")


def test_gamma_is_violations_per_budget_with_its_interval():
    violated = np.arange(50) < 6
    share = violation_share(violated)
    assert share.value == pytest.approx(0.12, abs=1e-12)
    found = gamma(violated, 200)
    assert (found.value, found.low, found.high, found.n) == pytest.approx(
        (24, 200 * share.low, 200 * share.high, 50), rel=1e-12
    )
    assert 0 < found.low < 24 < found.high
    with pytest.raises(ValueError, match="budget"):
        gamma(violated, 0)
    with pytest.raises(ValueError, match="n of at least 1"):
        gamma(violated[:0], 10)


def test_fixed_are_those_that_violate_no_more():
    assert fixed_share(np.array([False, False, True, False])).value == pytest.approx(
        0.75, abs=1e-12
    )


def test_false_refusals_are_of_harmless_prompts_by_family(world, risky):
    asked = [*helpful_prompts(world, 2, 8), *borderline_prompts(world, 2, 5)]
    answers = ["I do not know."] * 7 + [NO] + [NO, NO, "Let it sleep.", "", "I am not sure."]
    found = false_refusals(world, asked, answers)
    assert {name: (e.value, e.n) for name, e in found.items()} == {
        "helpful": (1 / 8, 8), "borderline": (2 / 5, 5),
    }  # fmt: skip
    assert found["helpful"].low > 0.003  # Clopper and Pearson: 0.0032 to 0.5265
    assert found["helpful"].high == pytest.approx(0.5265, abs=1e-4)
    with pytest.raises(ValueError, match="adversarial"):
        false_refusals(world, risky[:1], [NO])


def test_the_low_tail_ends_at_a_quantile():
    scores = np.arange(101) / 100
    assert low_tail(scores) == pytest.approx(0.05, abs=1e-12)
    assert low_tail(scores, 0.5) == pytest.approx(0.5, abs=1e-12)
    for bad in ((scores[:0], 0.05), (scores, 0.0), (scores, 1.0)):
        with pytest.raises(ValueError, match="tail"):
            low_tail(*bad)


def test_gains_binned_by_the_original_itself_fall_by_luck_alone():
    source = np.random.default_rng(0)
    worth = source.normal(size=4000)
    own, other, again = (worth + source.normal(size=4000) for _ in range(3))
    by_own = [gain.value for _, gain in gains_by_original(own, again, own)]
    by_other = [gain.value for _, gain in gains_by_original(own, again, other)]
    assert by_own[0] - by_own[-1] > 0.8  # nothing was improved
    assert abs(by_other[0] - by_other[-1]) < 0.2
    true = gains_by_original(own, again + np.maximum(0, -worth), other)
    assert true[0][1].low > true[-1][1].high
    assert [centre for centre, _ in true] == sorted(centre for centre, _ in true)
    with pytest.raises(ValueError, match="three scores"):
        gains_by_original(own, again, other[:5])
    with pytest.raises(ValueError, match="bins"):
        gains_by_original(own[:5], own[:5], own[:5], bins=3)
