"""What claims 21, 22, 24 and 25 measure: subsets, parabolas, pools, and toy models."""

import dataclasses
import itertools

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.claims import rejection
from llama2_lib.claims.claim import paired
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.recipes import grid, nano, toy
from llama2_lib.stages.rejection import Sample
from llama2_lib.storage import read_rows


def test_median_is_that_of_all_subsets():
    scores = np.random.default_rng(3).normal(size=(2, 7))
    for n in (1, 3, 5, 7):
        every = [np.median(scores[:, list(s)], axis=1) for s in itertools.combinations(range(7), n)]
        np.testing.assert_allclose(
            rejection.median_of_n(scores, n), np.mean(every, axis=0), rtol=1e-12
        )


def test_best_temperature_is_the_top_of_a_parabola():
    at = (0.4, 0.6, 0.8, 1.0)
    for top in (0.55, 0.7, 0.83):
        found = rejection.best_temperature({t: 3 - (t - top) ** 2 for t in at})
        assert found == pytest.approx(top, abs=1e-9)
    assert rejection.best_temperature({t: t for t in at}) == 1.0
    assert rejection.best_temperature({t: -t for t in at}) == 0.4
    assert rejection.best_temperature(dict.fromkeys(at, 1.0)) == 0.4  # level: the coolest


def test_gains_are_paired_over_prompts():
    before = np.array([0.1, 0.9, 0.5, 0.3])
    found = paired("x", before + 0.2 - before)
    assert found == pytest.approx({"gain/x": 0.2, "error/x": 0.0}, abs=1e-12)
    wide = paired("x", before[::-1] + 0.2 - before)
    assert wide["gain/x"] == pytest.approx(0.2, abs=1e-12)
    assert wide["error/x"] > 0.1


def test_the_pupil_is_a_point_of_the_grid_with_the_writers_of_the_recipe():
    small = rejection.pupil(nano(), 2)
    assert small.model == grid(2).model
    assert small.pretrain == grid(2).pretrain
    assert small.sft == dataclasses.replace(grid(2).sft, grade=nano().sft.grade, seed=2)
    assert len({r for s, r in CLAIMS[25].requests(nano(), range(3)) if s == "sft"}) == 3


@pytest.fixture
def few(monkeypatch, toy_root):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(toy_root))
    for name, value in (
        ("N_PROMPTS", 3), ("N_HEATED", 3), ("TEMPERATURES", (0.5, 1.0)),
        ("N_SAMPLES", 4), ("STEPS", 4), ("N_ASKED", 40),
        ("N_HELD_OUT", 20),  # twice as many hold a request for harm
    ):  # fmt: skip
        monkeypatch.setattr(rejection, name, value)


@pytest.mark.slow
def test_pools_differ_in_what_they_are_said_to(few):
    arms = rejection.pools(toy())
    entries = read_rows(pipeline.artifact("rejection_v4", toy()) / "pool.jsonl.gz", Sample)
    kinds = rejection.kinds_of_pool(toy())
    asked = {name: {kinds[e.key] for e in arm} for name, arm in arms.items()}
    assert set(arms) == {"all", "last", "all, kinds missing", "last, kinds missing"}
    assert {e.round for e in arms["last"]} == {max(e.round for e in entries)}
    assert asked["last, kinds missing"] == asked["last"] - set(rejection.LOST)
    assert {e.key for e in arms["all"]} == {e.key for e in entries}
    left_out = {e.key for e in arms["last"] if kinds[e.key] in rejection.LOST}
    earlier = {e.key for e in entries if e.round < 4}
    assert {e.key for e in arms["all, kinds missing"]} == {e.key for e in entries} - (
        left_out - earlier
    )


@pytest.mark.slow
def test_families_are_of_their_kinds(few):
    policy = pipeline.load("pretrain", toy())
    kinds = {
        n: {p.kind for p in found} for n, found in rejection.families(toy(), 3, policy).items()
    }
    assert kinds["harm"] == {"adversarial"}
    assert kinds["form"] <= set(rejection.FORMS)
    assert not kinds["other"] & set(rejection.LOST)


@pytest.mark.slow
@pytest.mark.parametrize("number", [21, 22, 24, 25])
def test_every_claim_is_measured_on_toy_models(few, measure, number):
    measure(number)
