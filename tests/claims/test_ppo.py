"""What claims 27 and 29 measure: runs that differ in one setting, and what is read of them."""

import dataclasses
import math
from shutil import copytree

import pytest

from llama2_lib import pipeline
from llama2_lib.claims import ppo
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.claims.ppo import CHOSEN, PAID, PRICES, WAYS, arms, path, steadiness
from llama2_lib.recipes import nano, toy


def test_runs_differ_in_price_or_scale_only():
    runs = arms(nano(), 2)
    assert list(runs) == [*PRICES, *WAYS]
    assert (nano().ppo.beta, nano().ppo.whiten_by) == (CHOSEN, "tag")
    assert [runs[beta].ppo.beta for beta in PRICES] == [0.0, 0.05, 0.2, 0.8]
    assert [runs[way].ppo.whiten_by for way in WAYS] == ["nothing", "batch", "tag"]
    assert runs["tag"] == runs[PAID]
    same = {dataclasses.replace(r.ppo, beta=1.0, whiten_by="tag") for r in runs.values()}
    assert len(same) == 1
    assert same.pop().seed == 2
    assert {dataclasses.replace(run, ppo=nano().ppo) for run in runs.values()} == {nano()}
    requests = {claim.id: claim.requests(nano(), range(3)) for claim in ppo.CLAIMS}
    assert {i: len(set(found)) for i, found in requests.items()} == {27: 12, 29: 9}
    assert len(set(requests[27]) & set(requests[29])) == 3
    assert all(run.rejection == nano().rejection for _, run in requests[27])  # one V4


def made_rows():
    parts = {"gold_helpfulness": 0.5, "gold_safety": 0.9}
    rows = [{"step": 0, "held_out_reward": 1.0, "gold_quality": 0.7} | parts]
    for step in range(1, 7):
        row = {"step": step, "exact_kl": max(0.0, step - 3.0), "grad_norm": float(step % 2)}
        row |= {"reward": 2.0 * step, "explained_variance": 0.25}
        rows.append(row | ({"clip_fraction": 0.0} if step > 2 else {}))
    rows.insert(5, {"step": 4, "held_out_reward": 1.5, "gold_quality": 0.8} | parts)
    return [*rows, {"step": 6, "held_out_reward": 2.0, "gold_quality": 0.6} | parts]


def test_a_measurement_gets_the_divergence_of_the_answers_after_it():
    points = path(made_rows(), warmup=2)
    assert {at: (p["kl"], p["proxy"], p["gold quality"]) for at, p in points.items()} == {
        0: (0.0, 1.0, 0.7), 2: (2.0, 1.5, 0.8), 4: (3.0, 2.0, 0.6),
    }  # fmt: skip
    assert points[4]["gold safety"] == 0.9
    gained = ppo.gains(points)  # of the whole run
    assert gained == pytest.approx({"proxy gained": 1.0, "gold gained": -0.1}, rel=1e-9)


def test_steadiness_leaves_the_warm_up_out():
    even = steadiness(made_rows())  # steps 3 to 6: divergence 0, 1, 2, 3, a straight line
    assert even["kl"] == pytest.approx(1.5, rel=1e-12)
    assert even["gradient"] == pytest.approx(0.5, rel=1e-12)
    assert even["swing"] == pytest.approx(math.sqrt(1 / 3), rel=1e-12)
    assert [even["unevenness"], even["reward swing"]] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert even["explained"] == 0.25
    bent = [dict(row) for row in made_rows()]
    bent[-2]["exact_kl"] = 9.0
    assert steadiness(bent)["unevenness"] > 0.5


@pytest.mark.slow
def test_both_claims_are_measured_on_toy_models(toy_root, tmp_path, monkeypatch, one_thread):
    root = copytree(toy_root, tmp_path / "artifacts")
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(root))
    small = {
        "iterations": 4, "batch_size": 8, "minibatch_size": 4, "value_warmup": 1,
        "longest_prompt": 64, "max_new_tokens": 12, "n_prompts": 60, "n_held_out": 40,
        "eval_every": 2,
    }  # fmt: skip
    monkeypatch.setattr(ppo, "SHORT", small)

    def one_by_one(requests):  # new processes take longer than toys
        return [pipeline.artifact(*request, device="cpu", bar=False) for request in requests]

    monkeypatch.setattr(pipeline, "artifacts", one_by_one)
    for claim in ppo.CLAIMS:
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
