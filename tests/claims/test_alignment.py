"""Claims 23, 26 and 49: their judges with made-up numbers, and one toy chain for real."""

import dataclasses

import pytest

from llama2_lib import pipeline
from llama2_lib.claims import CLAIMS, Measurement, Outcome, alignment, alignment_runs, of_course
from llama2_lib.claims.alignment_runs import BEFORE, SPLITS, VERSIONS, chain
from llama2_lib.pipeline.rejection import round_prompts
from llama2_lib.recipes import nano, toy
from llama2_lib.text.tokenizer import load_tokenizer

NAMES = (
    "gold helpfulness", "gold safety", "gold", "reward helpfulness", "reward safety", "reward",
    "low tail", "refused", "win by gold", "win by reward",
)  # fmt: skip
QUALITIES = [name + suffix for name in NAMES for suffix in SPLITS.values()]


def made_up(gains, error=0.004, seeds=(0.001, -0.002, 0.0015)):
    """Measurements of three seeds: `gains` by quality and pair of versions, else 0."""
    rows = []
    for seed, shift in enumerate(seeds):
        values = {
            f"mean/{quality}/{version}": 0.5
            for quality in QUALITIES
            for version in VERSIONS
            if not quality.startswith("win")
        }
        for before, after in BEFORE:
            for quality in QUALITIES:
                name = f"{quality}/{after} over {before}"
                values[f"gain/{name}"] = gains.get(name, 0.0) + shift
                values[f"error/{name}"] = error
        rows.append(Measurement(values=values, seed=seed))
    return rows


UP = {
    23: {"reward helpfulness/V4 over SFT": 0.3, "reward safety/V4 over SFT": 0.9},
    26: {
        "win by reward/V5 over V4": 0.2, "win by gold/V5 over V4": 0.1,
        "gold helpfulness/V5 over SFT": 0.03, "gold safety/V5 over SFT": 0.2,
    },
    49: {"reward/V2 over SFT": 0.3, "low tail/V2 over SFT": -0.05},
}  # fmt: skip
EVERY = [(claim, name) for claim, gains in UP.items() for name in gains]


@pytest.mark.parametrize("claim", UP)
def test_gains_on_all_sides_reproduce(claim):
    verdict = CLAIMS[claim].verdict(made_up(UP[claim]))
    assert verdict.outcome == Outcome.REPRODUCED


@pytest.mark.parametrize(("claim", "name"), EVERY)
def test_one_loss_refutes(claim, name):
    lost = UP[claim] | {name: -UP[claim][name]}
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


def test_a_thinner_tail_by_less_than_declared_refutes():
    gains = UP[49] | {"low tail/V2 over SFT": -0.01}
    verdict = CLAIMS[49].verdict(made_up(gains, error=1e-4, seeds=(0.0, 1e-4, -1e-4)))
    assert verdict.outcome == Outcome.NOT_REPRODUCED


def test_the_interval_is_the_wider_of_two():
    name = "reward/V2 over SFT"
    close = alignment.gain(made_up({name: 0.3}, error=0.03, seeds=(0.0, 0.0, 0.0)), name)
    # Three seeds with a standard error of 0.03 each: 1.96 * 0.03 / sqrt(3).
    assert close.high - close.value == pytest.approx(0.03394757, rel=1e-6, abs=0)
    apart = alignment.gain(made_up({name: 0.3}, error=1e-9, seeds=(0.01, -0.01, 0.0)), name)
    # t(2) = 4.302653 times 0.01 / sqrt(3).
    assert apart.high - apart.value == pytest.approx(0.02484138, rel=1e-6, abs=0)


def test_chains_differ_after_pretraining_only():
    recipe = nano()
    assert chain(recipe, 0) == recipe
    other = chain(recipe, 2)
    for stage in ("tokenizer", "corpus", "pretrain"):
        assert pipeline.fingerprint(stage, other) == pipeline.fingerprint(stage, recipe)
    for stage in ("sft", "rewards_v1", "rejection_v1", "ppo"):
        assert pipeline.fingerprint(stage, other) != pipeline.fingerprint(stage, recipe)


def test_the_course_does_not_train_them():
    assert not {23, 26, 49} & set(of_course())
    requests = CLAIMS[23].requests(nano(), range(3))
    assert [stage for stage, _ in requests] == ["ppo"] * 3
    assert len({pipeline.fingerprint(*request) for request in requests}) == 3


@pytest.mark.slow
def test_a_toy_chain_is_measured(toy_root, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(toy_root))
    monkeypatch.setattr(alignment_runs, "N_PROMPTS", 40)
    alignment_runs._measured.cache_clear()
    found = CLAIMS[23].measure(toy(), 0)
    alignment_runs._measured.cache_clear()
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", toy()))
    new = alignment_runs.new_prompts(toy(), 0, "train", tokenizer)
    asked = {tuple(ids) for ids in round_prompts(3, toy(), tokenizer).ids}
    assert asked
    assert not asked & {tuple(ids) for ids in new.ids}
    assert len(new.ids) == len(new.prompts) == len(new.tags) == 40
    assert set(found.values) >= set(made_up({})[0].values)
    for version in VERSIONS:
        assert 0 <= found.values[f"mean/gold helpfulness/{version}"] <= 1
    assert found.values["mean/low tail/SFT"] == pytest.approx(0.1, rel=0, abs=0.03)
    gap = found.values["mean/reward/V2"] - found.values["mean/reward/SFT"]
    assert found.values["gain/reward/V2 over SFT"] == pytest.approx(gap, rel=1e-9, abs=1e-12)
    rows = [dataclasses.replace(found, seed=seed) for seed in range(3)]
    for claim in UP:  # the judges find every key
        CLAIMS[claim].verdict(rows)
