"""What the claims on reward models measure: which models differ in what, and on which pairs."""

import dataclasses

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.claims import reward
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.claims.reward import (
    DATA,
    N_PAIRS,
    Scores,
    against,
    arms,
    gold_quality,
    scale_arms,
    scored,
)
from llama2_lib.config import ROUNDS
from llama2_lib.recipes import nano, toy
from llama2_lib.stages.reward import held_out_of, variant_pairs
from llama2_lib.storage import read_rows
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.pairs import GRADES, STREAMS, Pair

DECLARED = [*reward.CLAIMS, CLAIMS[18], CLAIMS[19]]


def changed(one, other):
    """Names of all settings of two variants that differ."""
    flat = [
        {**dataclasses.asdict(v.reward_model.reward), **dataclasses.asdict(v.reward_model)}
        for v in (one, other)
    ]
    return {name for name in flat[0] if flat[0][name] != flat[1][name]} - {"reward"}


def test_arms_differ_in_one_thing_only():
    runs = arms(nano(), 2)
    tested = {"n_helpfulness", "n_safety"}
    for one, other, what in (
        ("none", "helpful", {"margin"}),
        ("large", "helpful", {"margin"}),
        ("none", "large", {"margin"}),
        ("coin", "helpful", {"coin_toss"}),
        ("without", "safe", {"safety_weight"}),
        ("alone", "safe", {"own_share"}),
        ("joint", "safe", {"own_share", "n_pairs"}),
        ("joint_equal", "safe", {"own_share"}),
        ("helpful", "safe", {"stream", "own_share"}),
    ):
        assert changed(runs[one], runs[other]) - tested == what, (one, other)
    same = {dataclasses.replace(run, reward_model=None) for run in runs.values()}
    assert len(same) == 1
    (base,) = same
    assert (base.name, base.pretrain.seed, base.sft.seed) == ("grid", 2, 2)
    assert {run.reward_model.reward.seed for run in runs.values()} == {2}


def test_compared_arms_are_tested_on_at_least_2000_common_pairs():
    tested = {name: run.reward_model.tested for name, run in arms(nano(), 0).items()}
    for names, stream in (
        (("helpful", "none", "large", "coin", "safe", "joint", "joint_equal"), "helpfulness"),
        (("helpful", "safe", "without", "alone", "joint", "joint_equal"), "safety"),
    ):
        assert min(tested[name][stream] for name in names) >= 2000
    assert all(r.reward_model.tested["helpfulness"] > 2000 for r in scale_arms(nano(), 0).values())


def test_the_joint_model_sees_the_own_pairs_of_both(monkeypatch):
    monkeypatch.setattr(reward, "N_PAIRS", 200)
    runs = {n: arms(nano(), 1)[n].reward_model for n in ("helpful", "safe", "joint")}
    drawn = {name: variant_pairs(variant, 0) for name, variant in runs.items()}
    own = {
        name: [p for p in drawn[name] if p.stream == variant.reward.stream]
        for name, variant in runs.items()
        if name != "joint"
    }
    assert drawn["joint"] == own["safe"] + own["helpful"]
    assert len(own["helpful"]) == 170


def test_claim_16_varies_width_and_data_and_shares_the_largest():
    runs = scale_arms(nano(), 1)
    assert list(runs) == [(width, n) for width in (16, 32, 64) for n in DATA]
    assert DATA[-1] == N_PAIRS
    assert DATA[-1] / DATA[0] == 8
    assert runs[64, DATA[-1]] == arms(nano(), 1)["helpful"]
    for (width, n), run in runs.items():
        assert (run.model.dim, run.reward_model.reward.n_pairs) == (width, n)
        assert changed(run, runs[64, n]) <= {"n_helpfulness", "n_safety"}


def test_requests_are_listed_once_and_shared():
    wanted = {claim.id: claim.requests(nano(), range(3)) for claim in DECLARED}
    for requests in wanted.values():
        assert len(set(requests)) == len(requests)
    every = {request for requests in wanted.values() for request in requests}
    assert len(every) == 3 * (9 + 8) + 1
    assert wanted[18] == wanted[19] == [(f"rewards_v{ROUNDS + 1}", nano())]
    assert {stage for stage, _ in every} == {"reward_model", f"rewards_v{ROUNDS + 1}"}


def made(chosen, rejected, gap=(0.5, -0.1, 0.3, 0.2)):
    bins = np.array(["both safe", "safe, unsafe", "both unsafe", "both safe"])
    grades = np.array([GRADES[0], GRADES[3], GRADES[1], GRADES[0]])
    return Scores(np.array(chosen), np.array(rejected), np.array(gap), grades, bins)


def test_pairs_are_compared_one_by_one():
    one = made([1.0, 2.0, 0.0, 1.0], [0.0, 3.0, 0.0, 0.0])
    other = made([0.0, 4.0, 1.0, 3.0], [1.0, 3.0, 0.0, 0.0])
    np.testing.assert_array_equal(one.right, [1, 0, 0.5, 1])
    assert against("a", one, other) == {"gained/a": 1.0, "lost/a": 1.5, "pairs/a": 4.0}
    short = other.where(np.array([True, True, False, False]))
    assert against("a", one, short) == {"gained/a": 1.0, "lost/a": 1.0, "pairs/a": 2.0}
    with pytest.raises(AssertionError, match="same held-out pairs"):
        against("a", one, made([1.0] * 4, [0.0] * 4, gap=(0.5, -0.1, 0.3, 0.1)))


def test_groups_are_those_of_the_labels():
    one = made([1.0] * 4, [0.0] * 4)
    by_grade, by_bin = one.groups("grade"), one.groups("safety_bin")
    assert by_grade[GRADES[0]].gap.tolist() == [0.5, 0.2]
    assert by_grade["all"] is one
    assert list(by_bin) == ["safe, unsafe", "both safe", "both unsafe", "all"]
    assert sum(len(group.gap) for group in by_bin.values()) == 8


@pytest.fixture
def few(toy_copy, monkeypatch):
    for name, value in (
        ("N_PAIRS", 240), ("DATA", (210, 225, 240)), ("N_HELD_OUT", 120), ("N_MARGIN", 150),
    ):  # fmt: skip
        monkeypatch.setattr(reward, name, value)


@pytest.mark.slow
def test_held_out_pairs_are_those_that_were_scored(few):
    run = arms(toy(), 0)["safe"]
    with pytest.raises(ValueError, match="the recipe 'toy' has none"):
        pipeline.artifact("reward_model", toy(), bar=False)
    found = scored(run)
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", run, bar=False))
    pairs = held_out_of(run, tokenizer)
    assert {s: len(x.gap) for s, x in found.items()} == {"helpfulness": 120, "safety": 120}
    for stream, scores in found.items():
        gold = gold_quality(toy(), stream, pairs[stream])
        np.testing.assert_allclose(gold[:120] - gold[120:], scores.gap, rtol=0, atol=1e-5)
        assert set(scores.grade) <= set(GRADES)
        assert scores.chosen.std() > 0
        assert 0 <= scores.accuracy <= 1


@pytest.mark.slow
def test_every_claim_is_measured_on_toy_models(few, measure):
    for claim in reward.CLAIMS:
        measure(claim.id)


@pytest.mark.slow
def test_drift_agrees_with_what_the_rounds_noted(toy_copy, measure):
    values = measure(18)
    right = pairs = 0.0
    for stream in STREAMS:
        for number in range(2, ROUNDS + 2):
            folder = pipeline.artifact(f"rewards_v{number}", toy(), bar=False)
            n = len(read_rows(folder / stream / "held.jsonl.gz", Pair))
            right += values[f"accuracy/{stream}/{number}/before"] * n
            pairs += n
    assert values["pairs/next"] == values["pairs/refreshed-next"] == pairs
    assert values["right/next"] == pytest.approx(right, abs=1e-6)
    assert 0.5 <= values["ceiling/own"] <= 1


@pytest.mark.slow
def test_shares_are_counts_of_all_comparisons(toy_copy, measure):
    values = measure(19)
    for stream in STREAMS:
        folder = pipeline.artifact("rewards_v1", toy(), bar=False) / stream
        pairs = read_rows(folder / "fresh.jsonl.gz", Pair) + read_rows(
            folder / "held.jsonl.gz", Pair
        )
        for grade in GRADES:
            n = sum(pair.grade == grade for pair in pairs)
            assert values[f"count/{stream}/1/{grade}"] == n
    assert len(values) == len(STREAMS) * (ROUNDS + 1) * len(GRADES)
