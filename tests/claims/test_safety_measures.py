"""The measures of claims 40 to 48 and 54 on the toy chain: they run, and their judges read them."""

import json
from dataclasses import replace
from shutil import copytree

import pytest

from llama2_lib import pipeline
from llama2_lib.claims import CLAIMS, CannotShow, red_team_runs, safety_runs
from llama2_lib.recipes import toy

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
FEW = 24


@pytest.fixture(scope="module")
def root(toy_root, tmp_path_factory):
    return copytree(toy_root, tmp_path_factory.mktemp("claims") / "root")


@pytest.fixture(autouse=True)
def small(root, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(root))
    monkeypatch.setattr(safety_runs, "N_PROMPTS", FEW)
    monkeypatch.setattr(red_team_runs, "N_ATTACKS", FEW)
    monkeypatch.setattr(red_team_runs, "N_DEFAULT", FEW)


def short_turns(world, seed, prompts):
    """Earlier turns that fit toy's context, as those of the world do not."""
    hello: list = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    return [replace(prompt, dialog=[*hello, *prompt.dialog]) for prompt in prompts]


def test_attacks_that_do_not_fit_show_nothing():
    with pytest.raises(CannotShow, match="in a context of 128 tokens"):
        CLAIMS[47].measure(toy(), 0)


@pytest.mark.parametrize("claim", [41, 42, 43, 44, 45, 47, 48, 54])
def test_a_measure_gives_what_its_judge_reads(claim, monkeypatch):
    monkeypatch.setattr(red_team_runs, "in_more_turns", short_turns)
    found = CLAIMS[claim].measure(toy(), 0)
    assert found.seed == 0
    verdict = CLAIMS[claim].judge([found], CLAIMS[claim].threshold)
    assert verdict.reason
    gains = {key for key in found.values if key.startswith("gain/")}
    assert gains
    assert {key.replace("gain/", "error/") for key in gains} <= set(found.values)


def test_the_pool_without_adversarial_prompts_has_none(monkeypatch):
    """The toy chain finishes no answer to an adversarial prompt: call half of its pool such."""
    read, learned = safety_runs.read_pool, []
    monkeypatch.setattr(
        safety_runs,
        "read_pool",
        lambda path: [e._replace(is_safety=i % 2 == 0) for i, e in enumerate(read(path))],
    )
    real = safety_runs.tuned

    def tuned(base, entries, rate, seed):
        learned.append([entry.is_safety for entry in entries])
        return real(base, entries, rate, seed)

    monkeypatch.setattr(safety_runs, "tuned", tuned)
    found = CLAIMS[40].measure(toy(), 0)
    without, with_them = learned
    assert not any(without)
    assert any(with_them)
    assert with_them.count(False) == len(without) > 0
    assert CLAIMS[40].judge([found], CLAIMS[40].threshold).reason


def test_rounds_that_find_next_to_nothing_cannot_show_a_fall():
    with pytest.raises(CannotShow, match="0 violating prompts in 24 queries"):
        CLAIMS[46].measure(toy(), 0)


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
