"""The ledger: declared first, judged by checks that can fail, merged, rendered."""

import dataclasses
import json
import math

import pytest

from llama2_lib.claims import (
    CLAIMS,
    CannotShow,
    Claim,
    Measurement,
    Outcome,
    Trust,
    course_requests,
    grid_requests,
    of_course,
    read_ledger,
    recorded,
    render_table,
    run_claims,
    threshold,
    write_ledger,
)
from llama2_lib.claims.catalogue import collect
from llama2_lib.claims.claim import Check, above, average, below, column, decide, within
from llama2_lib.claims.rewards_arms import shown_requests
from llama2_lib.claims.safety_runs import shown_arm
from llama2_lib.evaluation.statistics import Estimate, equivalent
from llama2_lib.recipes import nano


@dataclasses.dataclass(frozen=True)
class FakeRecipe:
    name: str = "toy"
    level: float = 2.0


def judge_level(measurements, limit):
    level = average(measurements, "level")
    return decide([above("level", level, limit["least"])], {"level": level})


def measure_level(recipe, seed):
    if recipe.level < 0:
        raise CannotShow("a negative level cannot be measured")
    return Measurement(values={"level": recipe.level + (0.1, -0.2, 0.15, 0.0, -0.05)[seed]})


def claim(claim_id=1, **changes):
    fields = {
        "id": claim_id, "section": "9.9", "statement": "Levels are high | very.",
        "paper_value": "about 2", "paper_trust": Trust.FIGURE, "prediction": "Above one.",
        "threshold": threshold("Mean above {least:g}.", least=1.0),
        "judge": judge_level, "measure": measure_level,
    }  # fmt: skip
    return Claim(**(fields | changes))


def run(level=2.0, seeds=range(5), **changes):
    (result,) = run_claims(
        [1], FakeRecipe(level=level), seeds, claims={1: claim(**changes)}, report=lambda line: None
    )
    return result


@pytest.mark.parametrize(
    ("level", "outcome"),
    [
        (2.0, "reproduced"),
        (0.5, "not reproduced"),
        (1.02, "inconclusive"),
        (-1.0, "cannot show at this scale"),
    ],
)
def test_every_verdict_can_come_out(level, outcome):
    assert run(level).verdict.outcome == outcome


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
        return measure_level(recipe, seed)

    run_claims([1], FakeRecipe(), range(3), claims={1: claim(measure=measure)}, report=lines.append)
    assert lines[:6] == [
        "claim 1 (section 9.9): Levels are high | very.",
        "  predicted: Above one.",
        "  threshold: Mean above 1.",
        "measured 0", "measured 1", "measured 2",
    ]  # fmt: skip
    assert lines[6].startswith("  reproduced: level: 2.017 [")


def test_seeds_and_provenance_are_kept():
    result = run(seeds=[3, 1, 4])
    assert [measurement.seed for measurement in result.measurements] == [3, 1, 4]
    kept = result.provenance
    assert (kept["recipe"], kept["seeds"], kept["devices"]) == ("toy", [3, 1, 4], ["cpu"])
    assert kept["versions"].keys() >= {"python", "torch", "scipy"}
    assert not any("date" in key or "time" in key for key in kept)
    assert kept["fingerprint"] == run(seeds=[0]).provenance["fingerprint"]
    assert kept["fingerprint"] != run(level=2.1).provenance["fingerprint"]


@pytest.mark.parametrize("claim_id", [0, 40, 99])
def test_an_unknown_id_names_the_nearest_before_anything_runs(claim_id):
    ran = []
    known = {i: claim(i, measure=lambda recipe, seed: ran.append(seed)) for i in (2, 5, 9, 38)}
    nearest = {0: "2, 5, 9", 40: "38, 9, 5", 99: "38, 9, 5"}[claim_id]
    with pytest.raises(ValueError, match=f"got {claim_id}. Nearest: {nearest}"):
        run_claims([2, claim_id], FakeRecipe(), claims=known, report=ran.append)
    assert ran == []


def test_a_claim_without_measure_is_refused_with_those_that_have_one():
    known = {1: claim(1), 2: claim(2, measure=None)}
    with pytest.raises(ValueError, match=r"claim 2 is declared but has no measure.*so far: 1\."):
        run_claims([1, 2], FakeRecipe(), claims=known, report=lambda line: None)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_must_differ(seeds):
    with pytest.raises(ValueError, match=r"must be different numbers"):
        run(seeds=seeds)


def test_a_number_that_is_not_finite_stops_the_run():
    def measure(recipe, seed):
        return Measurement(values={"level": math.nan if seed == 1 else 2.0})

    with pytest.raises(FloatingPointError, match="claim 1, seed 1 gave level=nan"):
        run(measure=measure)


def test_a_threshold_cannot_be_changed_after_it_is_declared():
    declared = threshold("Above {least:g}.", least=1.0)
    assert str(declared) == "Above 1."
    with pytest.raises(dataclasses.FrozenInstanceError):
        declared.rule = "Above {least:g} or so."
    with pytest.raises(TypeError):
        declared.numbers["least"] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        claim().threshold = declared
    with pytest.raises(TypeError):
        CLAIMS[1] = claim()
    assert declared["least"] == 1.0


@pytest.mark.parametrize("rule", ["Above {least:g}.", "Above {most:g} and {least:g}, not {x:g}."])
def test_a_rule_uses_exactly_the_declared_numbers(rule):
    with pytest.raises(ValueError, match="exactly the declared numbers"):
        threshold(rule, least=1.0, most=2.0)


def estimate(low, high):
    return Estimate(value=(low + high) / 2, low=low, high=high, n=5)


def test_a_check_is_true_or_false_only_if_the_whole_interval_is():
    cases = [(0.2, 0.4, True), (-0.4, -0.2, False), (-0.1, 0.3, None), (-0.3, 0.1, None)]
    cases.append((0.0, 0.0, False))
    for low, high, holds in cases:
        assert above("x", estimate(low, high)).holds is holds
        assert below("x", estimate(-high, -low)).holds is holds
    assert above("x", estimate(0.2, 0.4), 0.3).holds is None
    assert below("x", estimate(0.2, 0.4), 0.5).holds is True


def test_an_equivalence_is_true_false_or_undecided():
    base = [1.0, 1.1, 1.2, 1.3]
    for shift, holds in ((0.0, True), (0.5, False), (-0.5, False), (0.1, None)):
        shifted = [b + shift + e for b, e in zip(base, (0.01, -0.01, 0.02, -0.02), strict=True)]
        assert within("x", equivalent(shifted, base, margin=0.1)).holds is holds


def test_one_false_check_refutes_and_one_open_check_suspends():
    yes, no, unknown = (Check(text=str(holds), holds=holds) for holds in (True, False, None))
    assert decide([yes, yes], {}).outcome == Outcome.REPRODUCED
    assert decide([yes, unknown, no], {}).outcome == Outcome.NOT_REPRODUCED
    assert decide([yes, unknown, no], {}).reason == "False"
    assert decide([yes, unknown], {}).outcome == Outcome.INCONCLUSIVE
    assert decide([yes, unknown], {}).reason == "undecided: None"
    with pytest.raises(ValueError, match="at least one check"):
        decide([], {})


def test_a_missing_key_names_the_nearest():
    rows = [Measurement(values={"loss/64": 1.0}), Measurement(values={"loss/46": 1.0}, seed=7)]
    with pytest.raises(ValueError, match=r"'loss/64'; seed 7 does not. Nearest: loss/46"):
        column(rows, "loss/64")


def test_results_survive_the_file(tmp_path):
    path = tmp_path / "claims.json"
    result = run()
    write_ledger([result], path)
    assert read_ledger(path) == [result]
    first = path.read_bytes()
    write_ledger(read_ledger(path), path)
    assert path.read_bytes() == first


def test_a_new_result_replaces_its_own_and_keeps_the_others(tmp_path):
    path = tmp_path / "claims.json"
    known = {1: claim(1), 3: claim(3)}

    def results(ids, **settings):
        return run_claims(ids, FakeRecipe(**settings), claims=known, report=lambda line: None)

    write_ledger(results([3, 1]) + results([1], name="nano"), path)
    write_ledger(results([1], level=0.5), path)
    kept = read_ledger(path)
    assert [result.key for result in kept] == [(1, "nano"), (1, "toy"), (3, "toy")]
    assert [str(result.verdict.outcome) for result in kept] == [
        "reproduced", "not reproduced", "reproduced",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2, "entries": []}', '{"format": 1}'])
def test_a_damaged_ledger_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "claims.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"must be a ledger of format 1.*Move it away"):
        write_ledger([run()], path)
    assert path.read_text() == content


def test_a_missing_ledger_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="Run `llama2 claims`"):
        read_ledger(tmp_path / "claims.json")


def test_the_file_is_plain_json_without_dates(tmp_path):
    path = tmp_path / "claims.json"
    write_ledger([run()], path)
    (entry,) = json.loads(path.read_text())["entries"]
    assert entry["declared"]["threshold"] == "Mean above 1."
    assert entry["measurements"][1] == {"device": "cpu", "seed": 1, "values": {"level": 1.8}}


def test_the_table_shows_paper_ours_and_verdict():
    lines = render_table([run(0.5), run(2.0)]).splitlines()
    assert lines[0] == "| # | claim | paper | ours | verdict |"
    assert lines[2].startswith(
        r"| 1 | Levels are high \| very. (section 9.9) | about 2 (read off a figure by a third "
        "party) | level: 0.5 [0.33, 0.67]<br>(toy, 5 seeds) | **not reproduced**: level: 0.5"
    )
    assert lines[3].endswith("<br>(toy, 5 seeds) | **reproduced** |")


def test_two_claims_cannot_share_an_id():
    assert list(collect((claim(4), claim(2)), (claim(3),))) == [2, 3, 4]
    with pytest.raises(ValueError, match=r"\[2\] came twice"):
        collect((claim(2),), (claim(3), claim(2)))


def test_a_recorded_result_is_found_by_claim_and_recipe(tmp_path):
    path = tmp_path / "claims.json"
    low, high = run(0.5), run(2.0)
    write_ledger([dataclasses.replace(low, provenance={**low.provenance, "recipe": "low"})], path)
    write_ledger([high], path)
    assert recorded(1, "toy", path) == high
    assert recorded(1, "low", path).verdict == low.verdict != high.verdict
    with pytest.raises(ValueError, match=r"claim 2 of the recipe 'toy'; it holds 1 \(low\), 1"):
        recorded(2, "toy", path)


def test_the_course_measures_what_is_not_recorded():
    known = {1: claim(1), 2: claim(2, recorded=True), 3: claim(3)}
    assert list(of_course(known)) == [1, 3]


def test_the_course_trains_for_its_own_claims_and_for_what_its_notebooks_show():
    asked = course_requests(nano())
    assert len(asked) == len(set(asked))
    own = grid_requests(nano(), claims=of_course())
    shown = {*shown_requests(nano()), *shown_arm(nano())}
    assert set(asked) - set(own) == shown
    assert len(shown) > 2
    assert asked[: len(own)] == own
