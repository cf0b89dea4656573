"""The ledger: declared first, judged by checks that can fail, merged, rendered."""

import dataclasses
import json
import math
from dataclasses import replace
from functools import partial

import pytest

from llama2_lib.claims import ledger
from llama2_lib.claims.claim import (
    CannotShow,
    Check,
    Claim,
    Fact,
    Measurement,
    Must,
    Outcome,
    Proviso,
    Trust,
    check,
    column,
    decide,
    mean,
)
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.pipeline import JUDGE
from llama2_lib.recipes import nano, toy


def claim(claim_id=1, level=2.0, **changes):
    def measure_level(recipe, seed):
        if level < 0:
            raise CannotShow("a negative level cannot be measured")
        return {"level": level + (0.1, -0.2, 0.15, 0.0, -0.05)[seed]}

    fields = {
        "id": claim_id, "section": "9.9", "statement": "Levels are high | very.",
        "paper_value": "about 2", "paper_trust": Trust.FIGURE, "prediction": "Above one.",
        "where": "Here", "tests": (Must("level", mean("level"), above=1.0),),
        "measured_by": measure_level,
    }  # fmt: skip
    return Claim(**(fields | changes))


def run(level=2.0, seeds=range(5), recipe=None, **changes):
    known = {1: claim(level=level, **changes)}
    (result,) = ledger.run_claims(
        [1], recipe or toy(), seeds, claims=known, report=lambda line: None
    )
    return result


def test_every_verdict_can_come_out():
    outcomes = [run(level).verdict.outcome for level in (2.0, 0.5, 1.02, -1.0)]
    assert outcomes == [
        "reproduced", "not reproduced", "inconclusive", "cannot show at this scale",
    ]  # fmt: skip


def test_too_few_seeds_decide_nothing():
    result = run(seeds=[0, 1])
    assert result.verdict.outcome == Outcome.INCONCLUSIVE
    assert result.verdict.reason == "needs 3 seeds, got 2"
    assert len(result.measurements) == 2
    assert run(seeds=[0], min_seeds=1).verdict.outcome == Outcome.REPRODUCED


def test_the_prediction_is_reported_before_the_run():
    lines = []

    def measure(recipe, seed):
        lines.append(f"measured {seed}")
        return {"level": 2.0 + 0.1 * seed}

    known = {1: claim(measured_by=measure)}
    ledger.run_claims([1], toy(), range(3), claims=known, report=lines.append)
    assert lines[:6] == [
        "claim 1 (section 9.9): Levels are high | very.",
        "  predicted: Above one.",
        "  threshold: Here: level above 1 (95 % over seeds).",
        "measured 0", "measured 1", "measured 2",
    ]  # fmt: skip
    assert lines[6].startswith("  reproduced: level: 2.1 [")


def test_a_run_that_is_stopped_loses_the_seed_that_it_had_begun_and_no_other(tmp_path):
    begun = []

    def measure(recipe, seed, stop=None):
        begun.append(seed)
        if seed == stop:
            raise KeyboardInterrupt
        return {"level": 2.0 + 0.1 * seed}

    def measured(recipe, **changes):
        known = {1: claim(measured_by=partial(measure, **changes))}
        return ledger.run_claims(
            [1], recipe, range(3), claims=known, report=lambda line: None, keep=tmp_path
        )

    with pytest.raises(KeyboardInterrupt):
        measured(toy(), stop=2)
    [result] = measured(toy())
    assert begun == [0, 1, 2, 2]
    assert result["level"] == [2.0, 2.1, 2.2]
    assert measured(toy())[0].measurements == result.measurements
    assert begun == [0, 1, 2, 2]
    measured(replace(toy(), sft=replace(toy().sft, seed=7)))
    assert begun == [0, 1, 2, 2, 0, 1, 2], "another recipe is another measurement"


def test_seeds_and_provenance_are_kept():
    result = run(seeds=[3, 1, 4])
    assert [measurement.seed for measurement in result.measurements] == [3, 1, 4]
    kept = result.provenance
    assert (kept["recipe"], kept["seeds"], kept["devices"]) == ("toy", [3, 1, 4], ["cpu"])
    assert kept["versions"].keys() >= {"python", "torch", "scipy"}
    assert not any("date" in key or "time" in key for key in kept)
    assert kept["fingerprint"] == run(seeds=[0]).provenance["fingerprint"]
    assert kept["fingerprint"] != run(recipe=nano()).provenance["fingerprint"]


@pytest.mark.parametrize("claim_id", [0, 40, 99])
def test_an_unknown_id_names_the_nearest_before_anything_runs(claim_id):
    ran = []
    known = {i: claim(i, measured_by=lambda recipe, seed: ran.append(seed)) for i in (2, 5, 9, 38)}
    nearest = {0: "2, 5, 9", 40: "38, 9, 5", 99: "38, 9, 5"}[claim_id]
    with pytest.raises(ValueError, match=f"got {claim_id}. Nearest: {nearest}"):
        ledger.run_claims([2, claim_id], toy(), claims=known, report=ran.append)
    assert ran == []


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_must_differ(seeds):
    with pytest.raises(ValueError, match=r"must be different numbers"):
        run(seeds=seeds)


def test_a_number_that_is_not_finite_stops_the_run():
    def measure(recipe, seed):
        return {"level": math.nan if seed == 1 else 2.0}

    with pytest.raises(FloatingPointError, match="claim 1, seed 1 gave level=nan"):
        run(measured_by=measure)


def test_a_claim_cannot_be_changed_after_it_is_declared():
    declared = claim()
    with pytest.raises(dataclasses.FrozenInstanceError):
        declared.tests[0].above = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        declared.tests = ()
    with pytest.raises(TypeError):
        declared.tests[0] = None
    with pytest.raises(TypeError):
        ledger.CLAIMS[1] = claim()


def test_the_sentence_and_the_verdict_follow_from_one_list():
    odd = Fact("seeds are odd", lambda found: [Check(text="odd", holds=found[0].seed % 2 == 1)])
    few = Proviso(
        "Only if there are three.",
        lambda found, checks: None if len(found) == 3 else (Outcome.CANNOT_SHOW, "not three"),
    )
    low = Must("level", mean("level"), below=3.0, named="", says="the level")
    several = Must("each", lambda found: {"a": mean("level")(found)}, within=5.0)
    declared = claim(tests=(low, several, odd), intervals="(95 %)", proviso=few, shown=("level",))
    assert declared.threshold == (
        "Here: the level below 3; each within 5; seeds are odd (95 %). Only if there are three."
    )
    rows = [Measurement(values={"level": 2.0}, seed=seed) for seed in (1, 3, 5, 7)]
    verdict = declared.verdict(rows[:3])
    assert verdict.outcome == Outcome.REPRODUCED
    assert verdict.reason == "level: 2, must stay under 3; a: 2, must lie within 5; odd"
    assert list(verdict.estimates) == ["a", "level"]
    assert declared.verdict(rows).reason == "not three"
    other = dataclasses.replace(declared, tests=(dataclasses.replace(low, below=1.5), odd))
    assert other.verdict(rows[:3]).outcome == Outcome.NOT_REPRODUCED
    assert "below 1.5" in other.threshold


def estimate(low, high):
    return Estimate(value=(low + high) / 2, low=low, high=high, n=5)


@pytest.mark.parametrize(
    ("rule", "bound", "cases"),
    [
        ("above", 0.0, [(0.2, 0.4, True), (-0.4, -0.2, False), (-0.1, 0.3, None), (0, 0, False)]),
        ("below", 0.0, [(-0.4, -0.2, True), (0.2, 0.4, False), (-0.3, 0.1, None), (0, 0, False)]),
        ("above", 0.0, [(-0.3, 0.1, None)]),
        ("below", 0.0, [(-0.1, 0.3, None)]),
        ("above", 0.3, [(0.2, 0.4, None)]),
        ("below", 0.5, [(0.2, 0.4, True)]),
        ("within", 0.03, [(-0.02, 0.02, True), (-0.02, 0.04, None), (-0.04, 0.02, None)]),
        ("within", 0.03, [(-0.2, 0.2, None), (0.03, 0.05, False), (-0.05, -0.03, False)]),
        ("within", 0.03, [(0.03, 0.03, False)]),
    ],
)
def test_a_check_is_true_or_false_only_if_the_whole_interval_is(rule, bound, cases):
    for low, high, holds in cases:
        assert check(rule, "x", estimate(low, high), bound).holds is holds


def test_one_false_check_refutes_and_one_open_check_suspends():
    yes, no, unknown = (Check(text=str(holds), holds=holds) for holds in (True, False, None))
    assert decide([yes, yes], {}).outcome == Outcome.REPRODUCED
    assert decide([yes, unknown, no], {}).outcome == Outcome.NOT_REPRODUCED
    assert decide([yes, unknown, no], {}).reason == "False"
    assert decide([yes, unknown], {}).outcome == Outcome.INCONCLUSIVE
    assert decide([yes, unknown], {}).reason == "undecided: None"
    with pytest.raises(AssertionError, match="at least one check"):
        decide([], {})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "claims.json"


def test_results_survive_the_file_which_is_plain_json_without_dates(path):
    result = run()
    ledger.write_ledger([result], path)
    assert ledger.read_ledger(path) == [result]
    first = path.read_bytes()
    ledger.write_ledger(ledger.read_ledger(path), path)
    assert path.read_bytes() == first
    (entry,) = json.loads(first)["entries"]
    assert entry["declared"]["threshold"] == "Here: level above 1 (95 % over seeds)."
    assert entry["measurements"][1] == {"device": "cpu", "seed": 1, "values": {"level": 1.8}}


def test_a_new_result_replaces_its_own_and_keeps_the_others(path):
    def results(ids, **settings):
        recipe = settings.pop("recipe", toy())
        known = {i: claim(i, **settings) for i in (1, 3)}
        return ledger.run_claims(ids, recipe, claims=known, report=lambda line: None)

    ledger.write_ledger(results([3, 1]) + results([1], recipe=nano()), path)
    ledger.write_ledger(results([1], level=0.5), path)
    kept = ledger.read_ledger(path)
    assert [result.key for result in kept] == [(1, "nano"), (1, "toy"), (3, "toy")]
    assert [str(result.verdict.outcome) for result in kept] == [
        "reproduced", "not reproduced", "reproduced",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2, "entries": []}', '{"format": 1}'])
def test_a_damaged_ledger_is_refused_and_left_alone(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match=r"must be a ledger of format 1.*Move it away"):
        ledger.write_ledger([run()], path)
    assert path.read_text() == content


def test_a_missing_ledger_says_how_to_make_one(path):
    with pytest.raises(FileNotFoundError, match="Run `llama2 claims`"):
        ledger.read_ledger(path)


def test_people_get_plain_text():
    assert not any(mark in str(ledger.recorded(24)) for mark in ("<br>", "**", "|", "---"))
    assert str(run(0.5)).splitlines() == [
        "claim 1  Levels are high | very. (section 9.9)",
        "  paper      about 2 (read off a figure by a third party)",
        "  predicted  Above one.",
        "  threshold  Here: level above 1 (95 % over seeds).",
        "  ours       level: 0.5 [0.33, 0.67]",
        "  run        toy, 5 seeds",
        "  verdict    not reproduced: level: 0.5 [0.33, 0.67], must exceed 1",
    ]


def test_two_claims_cannot_share_an_id():
    assert list(ledger.collect((claim(4), claim(2)), (claim(3),))) == [2, 3, 4]
    with pytest.raises(AssertionError, match="an id of its own"):
        ledger.collect((claim(2),), (claim(3), claim(2)))


def test_a_recorded_result_is_found_by_claim_and_recipe(path):
    low, high = run(0.5), run(2.0)
    other = dataclasses.replace(low, provenance={**low.provenance, "recipe": "low"})
    ledger.write_ledger([other, high], path)
    assert ledger.recorded(1, "toy", path) == high
    assert ledger.recorded(1, "low", path).verdict == low.verdict != high.verdict
    assert ledger.recorded(1, "low", path)["level"] == column(low.measurements, "level")
    assert ledger.recorded(1, "low", path).threshold == claim().threshold
    with pytest.raises(ValueError, match=r"claim 2 of the recipe 'toy'; it holds 1 \(low\), 1"):
        ledger.recorded(2, "toy", path)


def test_the_claims_of_the_course_train_nothing_beside_its_chain():
    live = {number: ledger.CLAIMS[number] for number in (6, 7, 9, 10, 18, 19, 38)}
    assert set(ledger.grid_requests(nano(), claims=live)) == {("sft", nano()), (JUDGE, nano())}


def test_p_values_are_those_of_the_declared_intervals():
    def p(rule, low, high, bound):
        value = (low + high) / 2
        test = Must("x", lambda _: Estimate(value=value, low=low, high=high, n=3), **{rule: bound})
        return test.p_value([])

    # a 95 % interval that ends at the bound: one-sided 2.5 %
    assert p("above", 0.0, 2.0, 0.0) == pytest.approx(0.025, rel=1e-9)
    assert p("below", -2.0, 0.0, 0.0) == pytest.approx(0.025, rel=1e-9)
    # a 90 % interval that ends at the margin: 5 %
    assert p("within", -0.02, 0.1, 0.1) == pytest.approx(0.05, rel=1e-9)
    assert p("above", 1.0, 3.0, 2.0) == pytest.approx(0.5, rel=1e-9)
    assert p("above", 3.0, 3.0, 2.0) == 0.0
    assert p("above", 1.0, 1.0, 2.0) == 1.0


def test_headline_claims_are_adjusted_together():
    results = [ledger.recorded(number) for number in (1, 15, 23)]
    found = ledger.headline_p_values(results)
    assert set(found) == {15, 23}, "claim 1 is no headline"
    smallest = min(alone for alone, _ in found.values())
    assert min(together for _, together in found.values()) == pytest.approx(2 * smallest)
