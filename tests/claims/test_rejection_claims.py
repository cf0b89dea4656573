"""Claims 21, 22, 24 and 25: judged on invented measurements, and measured on toy models."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.claims import CLAIMS, Measurement, Outcome
from llama2_lib.claims import rejection_pools as pools_module
from llama2_lib.claims import rejection_runs as runs_module
from llama2_lib.claims.rejection_pools import COMPARED, FORMS, LOST, families, gains, pools, pupil
from llama2_lib.claims.rejection_runs import (
    POLICIES,
    SIZES,
    TEMPERATURES,
    best_temperature,
    median_of_n,
)
from llama2_lib.recipes import grid, nano, toy
from llama2_lib.stages.rejection import read_pool

YES, NO, OPEN = Outcome.REPRODUCED, Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE
SHIFTS = (0.001, -0.002, 0.0015)


def curve(rise=0.1, late=0.3, drift=0.1, noise=0.001):
    """Maxima that gain `rise` in six doublings, `late` of it in the last three."""
    rows = []
    for seed, shift in enumerate((noise, -noise, 0.2 * noise)):
        steps = [0.0] + [(1 - late) / 3] * 3 + [late / 3] * 3
        heights = 0.5 + rise * np.cumsum(steps) + shift * np.arange(7)
        values = {f"max/{n}": float(v) for n, v in zip(SIZES, heights, strict=True)}
        values |= {f"median/{max(1, n - 1)}": 0.5 + drift * rise for n in SIZES}
        values |= {f"{name}/{n}": 0.6 for name in ("gold", "ceiling") for n in SIZES}
        rows.append(Measurement(values=values, seed=seed))
    return rows


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, YES),
        ({"rise": 0.03}, NO),  # too little
        ({"late": 0.7}, NO),  # bent the wrong way
        ({"drift": 0.6}, NO),  # the median goes along
        ({"drift": -0.6}, NO),
        ({"noise": 0.02}, OPEN),
    ],
)
def test_claim_21(given, expected):
    verdict = CLAIMS[21].verdict(curve(**given))
    assert verdict.outcome == expected, verdict.reason
    assert "gold/64" in verdict.estimates


def heat(best_one=(0.5, 0.6), best_many=(0.8, 1.1), hottest=None, shifts=SHIFTS):
    """Parabolas over the temperature, for SFT and V4, with tops that are given."""
    rows = []
    for seed, shift in enumerate(shifts):
        values = {}
        tops = {"SFT": (best_one[0], best_many[0]), "V4": (best_one[1], best_many[1])}
        for name in POLICIES:
            for n, top in zip((1, 16), tops.get(name, (0.6, 0.9)), strict=True):
                for t in TEMPERATURES:
                    reward = 0.7 - 0.2 * (t - top - 10 * shift) ** 2
                    if n == 1 and t == TEMPERATURES[-1] and hottest is not None:
                        reward = hottest
                    values[f"reward/{name}/{n}/{t}"] = reward
                    values[f"gold/{name}/{n}/{t}"] = 0.5
        rows.append(Measurement(values=values, seed=seed))
    return rows


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, YES),
        ({"best_many": (1.1, 0.8)}, YES),  # another one, in whichever direction
        ({"best_many": (0.9, 0.9)}, NO),  # the same
        ({"best_one": (0.8, 0.6), "best_many": (0.65, 1.1)}, NO),  # more samples want it cooler
        ({"hottest": 0.7}, NO),  # hot samples are best one by one
        ({"best_many": (0.9, 1.01), "shifts": (0.02, -0.02, 0.0)}, YES),
    ],
)
def test_claim_22(given, expected):
    verdict = CLAIMS[22].verdict(heat(**given))
    assert verdict.outcome == expected, verdict.reason


def test_claim_22_is_undecided_where_seeds_disagree():
    rows = [heat(best_many=(0.8, top))[0] for top in (0.7, 0.9, 1.3)]
    assert CLAIMS[22].verdict(rows).outcome == OPEN


def compared(gains_by_name, error=0.004, shifts=SHIFTS, shown=()):
    return [
        Measurement(
            values={f"gain/{k}": v + shift for k, v in gains_by_name.items()}
            | {f"error/{k}": error for k in gains_by_name}
            | dict.fromkeys(shown, 0.5),
            seed=seed,
        )
        for seed, shift in enumerate(shifts)
    ]


POOL = {
    "form/pool over last": 0.05, "form/missing": -0.06, "form/missing in the pool": -0.01,
    "harm/pool over last": 0.4, "harm/missing": -0.5, "harm/missing in the pool": 0.0,
    "other/pool over last": 0.0, "other/missing": 0.02, "other/missing in the pool": 0.0,
    "natural": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        ({}, {}, YES),
        ({"form/pool over last": -0.05}, {}, NO),
        ({"harm/pool over last": -0.05}, {}, NO),
        ({"form/missing": 0.05}, {}, NO),
        ({"harm/missing": 0.05}, {}, NO),
        ({"other/pool over last": -0.3, "natural": -0.3}, {}, YES),  # shown, not judged
        ({}, {"error": 0.5}, OPEN),
        ({}, {"shifts": (0.9, -0.9, 0.0)}, OPEN),
    ],
)
def test_claim_24(changes, noise, expected):
    rows = compared(POOL | changes, **noise, shown=("quality/last/form",))
    verdict = CLAIMS[24].verdict(rows)
    assert verdict.outcome == expected, verdict.reason
    assert {"natural", "quality/last/form"} <= set(verdict.estimates)


TAUGHT = {f"{after} over {before}": 0.1 for after, before in COMPARED}


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        ({}, {}, YES),
        ({"big best over own best": -0.1}, {}, NO),
        ({"own best over own random": -0.1, "big best over big random": -0.1}, {}, YES),
        ({}, {"error": 0.5}, OPEN),
        ({}, {"shifts": (0.9, -0.9, 0.0)}, OPEN),
    ],
)
def test_claim_25(changes, noise, expected):
    rows = compared(TAUGHT | changes, **noise, shown=("quality/SFT", "pool/big best"))
    verdict = CLAIMS[25].verdict(rows)
    assert verdict.outcome == expected, verdict.reason
    assert {"quality/SFT", "learned from/big best"} <= set(verdict.estimates)


def test_median_is_that_of_all_subsets():
    scores = np.random.default_rng(3).normal(size=(2, 7))
    for n in (1, 3, 5, 7):
        every = [np.median(scores[:, list(s)], axis=1) for s in itertools.combinations(range(7), n)]
        np.testing.assert_allclose(median_of_n(scores, n), np.mean(every, axis=0), rtol=1e-12)
    for n in (0, 2, 9):
        with pytest.raises(ValueError, match="odd and at most 7"):
            median_of_n(scores, n)


def test_best_temperature_is_the_top_of_a_parabola():
    at = (0.4, 0.6, 0.8, 1.0)
    for top in (0.55, 0.7, 0.83):
        found = best_temperature({t: 3 - (t - top) ** 2 for t in at})
        assert found == pytest.approx(top, abs=1e-9)
    assert best_temperature({t: t for t in at}) == 1.0
    assert best_temperature({t: -t for t in at}) == 0.4
    assert best_temperature(dict.fromkeys(at, 1.0)) == 0.4  # level: the coolest


def test_gains_are_paired_over_prompts():
    before = np.array([0.1, 0.9, 0.5, 0.3])
    found = gains("x", before + 0.2, before)
    assert found == pytest.approx({"gain/x": 0.2, "error/x": 0.0}, abs=1e-12)
    wide = gains("x", before[::-1] + 0.2, before)
    assert wide["gain/x"] == pytest.approx(0.2, abs=1e-12)
    assert wide["error/x"] > 0.1


def test_the_pupil_is_a_point_of_the_grid_with_the_writers_of_the_recipe():
    small = pupil(nano(), 2)
    assert small.model == grid(2).model
    assert small.pretrain == grid(2).pretrain
    assert small.sft == dataclasses.replace(grid(2).sft, grade=nano().sft.grade, seed=2)
    assert len({r for s, r in CLAIMS[25].requests(nano(), range(3)) if s == "sft"}) == 3


@pytest.fixture
def few(monkeypatch, toy_root):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(toy_root))
    monkeypatch.setattr(runs_module, "N_PROMPTS", 3)
    monkeypatch.setattr(runs_module, "N_HEATED", 3)
    monkeypatch.setattr(runs_module, "TEMPERATURES", (0.5, 1.0))
    monkeypatch.setattr("llama2_lib.claims.rejection.TEMPERATURES", (0.5, 1.0))
    monkeypatch.setattr(runs_module, "N_SAMPLES", 4)
    monkeypatch.setattr(pools_module, "STEPS", 4)
    monkeypatch.setattr(pools_module, "N_HELD_OUT", 20)  # twice as many hold a request for harm
    monkeypatch.setattr(pools_module, "N_ASKED", 40)


@pytest.mark.slow
def test_pools_differ_in_what_they_are_said_to(few):
    arms = pools(toy())
    entries = read_pool(pipeline.artifact("rejection_v4", toy()) / "pool.jsonl")
    kinds = pools_module.kinds_of_pool(toy())
    asked = {name: {kinds[e.key] for e in arm} for name, arm in arms.items()}
    assert set(arms) == {"all", "last", "all, kinds missing", "last, kinds missing"}
    assert {e.round for e in arms["last"]} == {max(e.round for e in entries)}
    assert asked["last, kinds missing"] == asked["last"] - set(LOST)
    assert {e.key for e in arms["all"]} == {e.key for e in entries}
    left_out = {e.key for e in arms["last"] if kinds[e.key] in LOST}
    earlier = {e.key for e in entries if e.round < 4}
    assert {e.key for e in arms["all, kinds missing"]} == {e.key for e in entries} - (
        left_out - earlier
    )


@pytest.mark.slow
def test_families_are_of_their_kinds(few):
    policy = pipeline.load("pretrain", toy())
    kinds = {n: {p.kind for p in found} for n, found in families(toy(), 3, policy).items()}
    assert kinds["harm"] == {"adversarial"}
    assert kinds["form"] <= set(FORMS)
    assert not kinds["other"] & set(LOST)


@pytest.mark.slow
@pytest.mark.parametrize("number", [21, 22, 24, 25])
def test_every_claim_is_measured_on_toy_models(few, number):
    claim = CLAIMS[number]
    measured = claim.measure(toy(), 0)
    assert not [r for r in claim.requests(toy(), [0]) if pipeline.missing(*r)]
    assert all(np.isfinite(value) for value in measured.values.values())
    json.dumps(dict(measured.values))
    twin = Measurement(values={k: 0.99 * v for k, v in measured.values.items()}, seed=1)
    third = Measurement(values={k: 0.98 * v for k, v in measured.values.items()}, seed=2)
    claim.verdict([measured, twin, third])  # the judge finds every key
