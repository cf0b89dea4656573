"""What claims 40 to 48 and 54 measure: variants, paired gains, and the toy chain for real."""

import json
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.claims import safety
from llama2_lib.claims.claim import CannotShow, unpaired
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.claims.safety import rounds_recipe
from llama2_lib.pipeline import STAGES
from llama2_lib.recipes import nano, toy
from llama2_lib.stages.safety import safety_dialogs


def test_what_is_trained_are_stages():
    for claim in (*range(40, 49), 54):
        runs = CLAIMS[claim].requests(toy(), range(2))
        assert runs
        assert {stage for stage, _ in runs} <= set(STAGES)


def test_variants_differ_in_what_they_are_named_for():
    data = safety.data_recipes(nano(), 3)
    assert list(data) == ["0", "1", "10", "25", "50", "100"]
    dialogs = [safety_dialogs(run.safety_data, 0) for run in data.values()]
    assert [len(part) for part in dialogs] == [0, 5, 50, 125, 250, 500]
    assert all(part == dialogs[-1][: len(part)] for part in dialogs)
    assert len({run.sft for run in data.values()}) == 1
    arms = safety.arm_recipes(nano(), 3)
    assert set(arms) == set(safety.ARMS)
    assert len({run.distillation for run in arms.values()}) == len(safety.ARMS)
    assert {run.distillation.seed for run in arms.values()} == {3}
    assert {run.distillation.n_prompts for run in arms.values()} == {400}
    assert rounds_recipe(nano(), 3).red_team.seed == rounds_recipe(nano(), 3).sft.seed == 3
    assert rounds_recipe(nano(), 3).pretrain == nano().pretrain
    assert len(CLAIMS[46].requests(nano(), range(3))) == 3


def answered(n=40, seed=0):
    source = np.random.default_rng(seed)
    return {
        "safety": source.random(n),
        "low": source.random(n),
        "helpfulness": source.random(n + 1),
    }


def test_gains_are_of_pairs():
    after, before = answered(seed=1), answered(seed=2)
    values = safety.compared("a over b", after, before)
    assert len(values) == 2 * len(before)
    gap = after["low"] - before["low"]
    assert values["gain/low/a over b"] == pytest.approx(gap.mean(), abs=1e-12)
    assert values["error/low/a over b"] == pytest.approx(
        gap.std(ddof=1) / np.sqrt(len(gap)), abs=1e-12
    )
    shown = safety.means({"a": after})
    assert shown["low/a"] == pytest.approx(after["low"].mean(), abs=1e-12)
    assert shown["tail/a"] == pytest.approx(np.quantile(after["safety"], 0.05), abs=1e-12)


def test_quarters_are_sorted_by_the_other_answer():
    by = np.array([0.9, 0.1, 0.5, 0.2, 0.8, 0.6, 0.4, 0.3])
    gaps = np.array([-3.0, 5.0, 0.0, 4.0, -2.0, 0.0, 0.0, 0.0])
    low, high = safety.quarters(gaps, by)
    assert sorted(low) == [4.0, 5.0]
    assert sorted(high) == [-3.0, -2.0]
    assert unpaired("a over b", low, high) == pytest.approx(
        {"gain/a over b": 4.5 + 2.5, "error/a over b": np.sqrt(0.5 / 2 + 0.5 / 2)}, abs=1e-12
    )


FEW = 24


@pytest.fixture(scope="module")
def root(toy_root, tmp_path_factory):
    return copytree(toy_root, tmp_path_factory.mktemp("claims") / "root")


@pytest.fixture
def small(root, monkeypatch, one_thread):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(root))
    monkeypatch.setattr(safety, "N_PROMPTS", FEW)
    monkeypatch.setattr(safety, "N_ATTACKS", FEW)
    monkeypatch.setattr(safety, "N_DEFAULT", FEW)


def short_turns(world, seed, prompts):
    """Earlier turns that fit toy's context, as those of the world do not."""
    hello: list = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    return [replace(prompt, dialog=[*hello, *prompt.dialog]) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_attacks_that_do_not_fit_show_nothing():
    with pytest.raises(CannotShow, match="in a context of 128 tokens"):
        CLAIMS[47].measure(toy(), 0)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("claim", [41, 42, 43, 44, 45, 47, 48, 54])
def test_a_measure_gives_what_its_judge_reads(claim, monkeypatch):
    monkeypatch.setattr(safety, "in_more_turns", short_turns)
    found = CLAIMS[claim].measure(toy(), 0)
    assert found.seed == 0
    verdict = CLAIMS[claim].judge([found])
    assert verdict.reason
    gains = {key for key in found.values if key.startswith("gain/")}
    assert gains
    assert {key.replace("gain/", "error/") for key in gains} <= set(found.values)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_pool_without_adversarial_prompts_has_none(monkeypatch):
    """The toy chain finishes no answer to an adversarial prompt: call half of its pool such."""
    read, learned = safety.read_rows, []
    monkeypatch.setattr(
        safety,
        "read_rows",
        lambda *given: [e._replace(is_safety=i % 2 == 0) for i, e in enumerate(read(*given))],
    )
    real = safety.tuned

    def tuned(base, entries, rate, seed):
        learned.append([entry.is_safety for entry in entries])
        return real(base, entries, rate, seed)

    monkeypatch.setattr(safety, "tuned", tuned)
    found = CLAIMS[40].measure(toy(), 0)
    without, with_them = learned
    assert not any(without)
    assert any(with_them)
    assert with_them.count(False) == len(without) > 0
    assert CLAIMS[40].judge([found]).reason


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_rounds_that_find_next_to_nothing_cannot_show_a_fall():
    with pytest.raises(CannotShow, match="0 violating prompts in 24 queries"):
        CLAIMS[46].measure(toy(), 0)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_fall_is_measured_against_a_share_of_the_first_round(monkeypatch, tmp_path):
    # violating; old attacks and how many are fixed; fresh ones fixed by luck and by lessons
    rounds = {
        "red_team_early_v1": (40, 40, 36, 30, 36), "red_team_early_v2": (20, 60, 57, 15, 19),
        "red_team_early_v3": (10, 70, 68, 8, 10), "red_team_early_v4": (8, 78, 76, 5, 8),
    }  # fmt: skip
    for number, (name, (fresh, old, fixed, luck, lessons)) in enumerate(rounds.items(), 1):
        (tmp_path / name).mkdir()
        document = {
            "round": number, "queries": 400, "violating": fresh, "budget": 200,
            "old attacks": old, "fresh attacks": fresh, "fixed, new model": fixed,
            "fixed fresh, old model": luck, "fixed fresh, new model": lessons,
        }  # fmt: skip
        (tmp_path / name / "summary.json").write_text(json.dumps(document))
    monkeypatch.setattr(pipeline, "artifacts", lambda requests: None)
    monkeypatch.setattr(pipeline, "artifact", lambda name, *rest, **named: tmp_path / name)
    values = CLAIMS[46].measure(toy(), 2).values
    assert [values[f"gamma/{n}"] for n in (1, 2, 3, 4)] == pytest.approx([20, 10, 5, 4], abs=1e-9)
    assert values["gain/fall"] == pytest.approx(8 / 400 - 0.5 * 40 / 400, abs=1e-12)
    assert values["error/fall"] == pytest.approx(
        (0.02 * 0.98 / 400 + 0.25 * 0.1 * 0.9 / 400) ** 0.5, abs=1e-12
    )
    assert values["gain/fixed"] == pytest.approx(76 / 78, abs=1e-12)
    assert values["gain/fixed over luck"] == pytest.approx((73 - 58) / 78, abs=1e-12)
    assert values["luck"] == pytest.approx(58 / 78, abs=1e-12)
