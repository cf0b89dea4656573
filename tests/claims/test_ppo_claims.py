"""Claims 27 and 29: every verdict can be reached, and each run differs in one setting only."""

import dataclasses
import math
import random
from shutil import copytree

import pytest

from llama2_lib import pipeline
from llama2_lib.claims import Measurement, Outcome, ppo_runs, recorded
from llama2_lib.claims.ppo import CLAIMS as DECLARED
from llama2_lib.claims.ppo import PAID, PRICES, gained
from llama2_lib.claims.ppo_runs import CHOSEN, WAYS, arms, path, steadiness
from llama2_lib.recipes import nano, toy

YES, NO, OPEN = Outcome.REPRODUCED, Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE
CLAIMS = {claim.id: claim for claim in DECLARED}
GAINED = {
    "proxy": {"0": 0.8, "0.05": 0.6, "0.2": 0.3, "0.8": 0.1},
    "gold quality": {"0": -0.1, "0.05": -0.04, "0.2": 0.02, "0.8": 0.01},
    "kl": {"0": 6.0, "0.05": 4.0, "0.2": 1.5, "0.8": 0.3},
}
START = {"proxy": 1.2, "gold quality": 0.7, "kl": 0.0}


def priced(noise=0.005, **changed):
    """Three invented seeds; `changed` replaces gains, as proxy={"0": 0.1}"""
    wanted = {what: gains | changed.get(what, {}) for what, gains in GAINED.items()}
    wanted |= {f"gold {part}": wanted["gold quality"] for part in ("helpfulness", "safety")}
    source, seeds = random.Random(4), []
    for seed in range(3):
        values = {}
        for what, gains in wanted.items():
            for beta, gain in gains.items():
                begin = START.get(what, 0.7)
                for at, share in ((0, 0.0), (8, 0.5), (24, 1.0)):
                    wobble = source.gauss(0, noise) if at else 0.0
                    values[f"{what}/{beta}/{at}"] = begin + share * gain + wobble
        seeds.append(Measurement(values=values, seed=seed))
    return seeds


def outcome(claim_id, measurements):
    return CLAIMS[claim_id].verdict(measurements).outcome


def test_every_claim_is_declared_once_and_has_what_it_needs():
    assert list(CLAIMS) == [27, 29]
    for claim in DECLARED:
        assert all(str(value).strip() for value in claim.declaration().values())
        assert claim.recorded
        assert claim.min_seeds == 3
    assert nano().ppo.beta == CHOSEN
    assert nano().ppo.whiten_by == "tag"


def test_claim_27_is_reproduced_if_only_the_free_run_is_hacked():
    verdict = CLAIMS[27].verdict(priced())
    assert verdict.outcome == YES
    assert verdict.estimates["gold quality gained, beta 0"].value == pytest.approx(-0.1, abs=0.01)
    assert verdict.estimates["KL, beta 0.8"].value == pytest.approx(0.3, abs=0.01)
    assert verdict.estimates["gold quality, beta 0.2 less 0"].value == pytest.approx(0.12, abs=0.02)


@pytest.mark.parametrize(
    "changed",
    [
        {"proxy": {"0": -0.1}},
        {"gold quality": {"0": 0.05}},
        {"proxy": {"0.2": -0.1}},
        {"gold quality": {"0.2": -0.08}},
        {"gold quality": {"0": 0.03, "0.2": -0.02}},
    ],
)
def test_claim_27_is_refuted_by_any_gain_of_the_wrong_sign(changed):
    measurements = priced(**{key: value for key, value in changed.items()})
    assert outcome(27, measurements) == NO


def test_claim_27_stays_open_if_seeds_disagree_or_prices_are_out_of_order():
    assert outcome(27, priced(noise=0.2)) == OPEN
    unordered = CLAIMS[27].verdict(priced(kl={"0.05": 7.0}))
    assert unordered.outcome == OPEN
    assert "the lower the price" in unordered.reason
    assert outcome(27, priced()[:2]) == OPEN


def test_gains_are_from_the_first_measurement_to_the_last():
    (one,) = priced(noise=0.0)[:1]
    assert gained([one], "kl", "0.05") == pytest.approx([4.0], rel=1e-12)
    assert gained([one], "proxy", PAID) == pytest.approx([0.3], rel=1e-12)
    with pytest.raises(ValueError, match="every measurement must give"):
        gained([one, Measurement(values={}, seed=1)], "kl", PAID)


def scaled(kl=(3.0, 1.5), swing=(0.9, 0.4), noise=0.02):
    source, seeds = random.Random(7), []
    for seed in range(3):
        values = {}
        for what in ("gradient", "unevenness", "reward swing", "explained"):
            values |= {f"{what}/{way}": 1.0 for way in WAYS}
        for what in ("proxy gained", "gold gained"):
            values |= {f"{what}/{way}": 0.1 for way in WAYS}
        for name, (none, batch) in (("kl", kl), ("swing", swing)):
            values |= {f"{name}/none": none + source.gauss(0, noise), f"{name}/tag": batch}
            values[f"{name}/batch"] = batch + source.gauss(0, noise)
        seeds.append(Measurement(values=values, seed=seed))
    return seeds


def test_claim_29_needs_both_parts():
    assert outcome(29, scaled()) == YES
    assert outcome(29, scaled(kl=(1.5, 3.0))) == NO
    assert outcome(29, scaled(swing=(0.4, 0.9))) == NO
    assert outcome(29, scaled(swing=(0.41, 0.4), noise=0.05)) == OPEN


def test_runs_differ_in_price_or_scale_only():
    runs = arms(nano(), 2)
    assert list(runs) == [*PRICES, *WAYS]
    assert [runs[beta].ppo.beta for beta in PRICES] == [0.0, 0.05, 0.2, 0.8]
    assert [runs[way].ppo.whiten_by for way in WAYS] == ["nothing", "batch", "tag"]
    assert runs["tag"] == runs[PAID]
    same = {dataclasses.replace(r.ppo, beta=1.0, whiten_by="tag") for r in runs.values()}
    assert len(same) == 1
    assert same.pop().seed == 2
    assert {dataclasses.replace(run, ppo=nano().ppo) for run in runs.values()} == {nano()}
    requests = {claim.id: claim.requests(nano(), range(3)) for claim in DECLARED}
    assert {i: len(set(found)) for i, found in requests.items()} == {27: 12, 29: 9}
    assert len(set(requests[27]) & set(requests[29])) == 3
    assert all(run.rejection == nano().rejection for _, run in requests[27])  # one V4


def made_rows():
    rows = [{"step": 0, "held_out_reward": 1.0, "gold_quality": 0.7}]
    for step in range(1, 7):
        row = {"step": step, "exact_kl": max(0.0, step - 3.0), "grad_norm": float(step % 2)}
        row |= {"reward": 2.0 * step, "explained_variance": 0.25}
        rows.append(row | ({"clip_fraction": 0.0} if step > 2 else {}))
    rows.insert(5, {"step": 4, "held_out_reward": 1.5, "gold_quality": 0.8})
    rows.append({"step": 6, "held_out_reward": 2.0, "gold_quality": 0.6})
    return [
        row | ({"gold_helpfulness": 0.5, "gold_safety": 0.9} if "held_out_reward" in row else {})
        for row in rows
    ]


def test_a_measurement_gets_the_divergence_of_the_answers_after_it():
    points = path(made_rows(), warmup=2)
    assert {at: (p["kl"], p["proxy"], p["gold quality"]) for at, p in points.items()} == {
        0: (0.0, 1.0, 0.7), 2: (2.0, 1.5, 0.8), 4: (3.0, 2.0, 0.6),
    }  # fmt: skip
    assert points[4]["gold safety"] == 0.9


def test_steadiness_leaves_the_warm_up_out():
    found = steadiness(made_rows())  # steps 3 to 6: divergence 0, 1, 2, 3, a straight line
    assert found["kl"] == pytest.approx(1.5, rel=1e-12)
    assert found["gradient"] == pytest.approx(0.5, rel=1e-12)
    assert found["swing"] == pytest.approx(math.sqrt(1 / 3), rel=1e-12)
    assert found["unevenness"] == pytest.approx(0.0, abs=1e-9)
    assert found["reward swing"] == pytest.approx(0.0, abs=1e-9)
    assert found["explained"] == 0.25
    bent = [dict(row) for row in made_rows()]
    bent[-2]["exact_kl"] = 9.0
    assert steadiness(bent)["unevenness"] > 0.5


def test_gains_are_of_the_whole_run():
    points = path(made_rows(), warmup=2)
    found = ppo_runs.gains(points)
    assert found == pytest.approx({"proxy gained": 1.0, "gold gained": -0.1}, rel=1e-9)


@pytest.mark.parametrize("claim_id", list(CLAIMS))
def test_the_ledger_holds_what_these_declarations_and_judges_say(claim_id):
    claim, result = CLAIMS[claim_id], recorded(claim_id)
    assert result.declared == claim.declaration()
    again = claim.verdict(result.measurements)
    assert again.outcome == result.verdict.outcome
    assert set(again.estimates) == set(result.verdict.estimates)


@pytest.mark.slow
def test_both_claims_are_measured_on_toy_models(toy_root, tmp_path, monkeypatch, one_thread):
    root = copytree(toy_root, tmp_path / "artifacts")
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(root))
    small = {
        "iterations": 4, "batch_size": 8, "minibatch_size": 4, "value_warmup": 1,
        "longest_prompt": 64, "max_new_tokens": 12, "n_prompts": 60, "n_held_out": 40,
        "eval_every": 2,
    }  # fmt: skip
    monkeypatch.setattr(ppo_runs, "SHORT", small)

    def one_by_one(requests):  # new processes take longer than toys
        return [pipeline.artifact(*request, device="cpu", bar=False) for request in requests]

    monkeypatch.setattr(pipeline, "artifacts", one_by_one)
    for claim in DECLARED:
        measured = [claim.measure(toy(), seed) for seed in (0, 1)]
        assert not [r for r in claim.requests(toy(), [0, 1]) if pipeline.missing(*r)]
        assert all(math.isfinite(value) for one in measured for value in one.values.values())
        assert measured[0].values != measured[1].values
        claim.verdict([*measured, dataclasses.replace(measured[0], seed=2)])  # finds every key
    values = measured[0].values
    assert values["kl/tag"] > 0
    price = CLAIMS[27].measure(toy(), 0).values
    assert [k for k in price if k.startswith("kl/0/")] == ["kl/0/0", "kl/0/2", "kl/0/4"]
    assert price["kl/0/0"] == pytest.approx(0.0, abs=1e-6)
    start = {price[f"gold quality/{beta}/0"] for beta in PRICES}
    assert len(start) == 1  # one V4, one set of held-out prompts
