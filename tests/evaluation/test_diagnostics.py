"""Traffic lights of a PPO run: each answers to its own fault, and to no other."""

import pytest

from llama2_lib.evaluation.diagnostics import LAST, lights

HEALTHY = {
    "first_approx_kl": 0.0, "kl": 2.0, "entropy": 1.5, "clip_fraction": 0.05,
    "explained_variance": 0.4, "length": 20.0, "finished": 1.0,
}  # fmt: skip
NAMES = [
    "ratio before the first step", "divergence at the start", "KL", "entropy, of the start's",
    "clip fraction", "explained variance", "length, of the start's", "answers that end",
    "reward, gained", "gold, gained",
]  # fmt: skip
N = 12


def log(reward=(0.0, 1.0), gold=(0.5, 0.6), **late):
    """Return a healthy log in which the last iterations have `late` values."""
    rows = [{"step": 0, "held_out_reward": reward[0], "gold_quality": gold[0]}]
    for step in range(1, N + 1):
        values = HEALTHY | ({"kl": 0.0} if step == 1 else {})
        rows.append({"step": step, **values, **(late if step > N - LAST else {})})
    rows.append({"step": N, "held_out_reward": reward[-1], "gold_quality": gold[-1]})
    return rows


def first(**values):
    """Return a healthy log whose first iteration has `values`."""
    rows = log()
    rows[1].update(values)
    return rows


def states(rows):
    return {light.name: light.state for light in lights(rows)}


def test_a_healthy_run_is_green_throughout():
    found = lights(log())
    assert [light.name for light in found] == NAMES
    assert {light.state for light in found} == {"green"}
    assert all(light.words and light.stage for light in found)


FAULTS = [
    ("ratio before the first step", first(first_approx_kl=1e-5), first(first_approx_kl=-0.1)),
    ("divergence at the start", first(kl=1e-3), first(kl=-0.5)),
    ("KL", log(kl=9.0), log(kl=20.0)),
    ("entropy, of the start's", log(entropy=0.6), log(entropy=0.2)),
    ("clip fraction", log(clip_fraction=0.3), log(clip_fraction=0.5)),
    ("explained variance", log(explained_variance=0.0), log(explained_variance=-0.5)),
    ("length, of the start's", log(length=40.0), log(length=60.0)),
    ("length, of the start's", log(length=10.0), log(length=2.0)),
    ("answers that end", log(finished=0.8), log(finished=0.5)),
    ("reward, gained", log(reward=(0.0, 0.05)), log(reward=(0.0, -1.0))),
    ("gold, gained", log(gold=(0.5, 0.48)), log(gold=(0.5, 0.3))),
]


@pytest.mark.parametrize(("name", "amber", "red"), FAULTS)
def test_each_light_answers_to_its_own_fault_and_only_to_it(name, amber, red):
    for rows, state in ((amber, "amber"), (red, "red")):
        found = states(rows)
        assert found[name] == state
        assert {other for other, seen in found.items() if seen in ("amber", "red")} == {name}


def not_green(rows):
    """The one light of a log that is not green."""
    (light,) = [light for light in lights(rows) if light.state != "green"]
    return light


def test_a_negative_kl_is_red_and_blames_the_rollout():
    light = not_green(log(kl=-1.0))
    assert (light.name, light.state, light.stage) == ("KL", "red", "rollout")
    assert "negative" in light.words


@pytest.mark.parametrize("trained", [0, 7])
def test_no_value_function_is_red(trained):
    """Or one that learned in the warm-up only, as with value_weight 0."""
    rows = log()
    for row in rows[trained:]:
        row.pop("explained_variance", None)
    light = not_green(rows)
    assert (light.name, light.state) == ("explained variance", "red")
    assert "no value function was trained" in light.words


@pytest.mark.parametrize("name", ["kl", "entropy", "clip_fraction", "length", "finished"])
def test_a_number_that_is_none_is_red(name):
    assert not_green(log(**{name: float("nan")})).state == "red"


def test_a_falling_mark_is_no_exploit_unless_the_reward_rises():
    """Nor is all well with it: the loss turned round lost 0.46 in gold, and its light was green."""
    for last in (-1.0, 0.0):
        found = {light.name: light for light in lights(log(reward=(0.0, last), gold=(0.5, 0.04)))}
        assert found["gold, gained"].state == ""
        assert found["gold, gained"].value == pytest.approx(-0.46, rel=0, abs=1e-12)
        assert "not asked" in found["gold, gained"].words
        assert found["reward, gained"].state in ("amber", "red")
    assert states(log(reward=(0.0, 1.0), gold=(0.5, 0.3)))["gold, gained"] == "red"


@pytest.mark.parametrize("at", [-1, 6])
def test_a_measurement_that_is_no_number_is_never_green(at):
    rows = log()
    rows.insert(6, {"step": 5, "held_out_reward": 0.8, "gold_quality": 0.6})
    rows[at]["held_out_reward"] = float("nan")
    assert states(rows)["reward, gained"] == "red"
    rows[-1].update(held_out_reward=float("nan"), gold_quality=0.1)
    assert states(rows)["gold, gained"] == "red"


def test_the_best_measurement_counts_as_progress_and_the_last_for_the_exploit():
    rows = log(reward=(0.0, -0.2))
    rows.insert(6, {"step": 5, "held_out_reward": 0.8, "gold_quality": 0.1})
    found = {light.name: light for light in lights(rows)}
    assert found["reward, gained"].value == pytest.approx(0.8, rel=0, abs=1e-12)
    assert found["gold, gained"].value == pytest.approx(0.1, rel=0, abs=1e-12)


def test_only_the_last_iterations_are_averaged():
    rows = log()
    for row in rows[2 : -LAST - 2]:
        row.update(clip_fraction=0.9, finished=0.0)
    assert set(states(rows).values()) == {"green"}
    assert not_green(log(clip_fraction=0.3)).value == pytest.approx(0.3, rel=0, abs=1e-12)
    rows = log()
    rows[-2]["clip_fraction"] = 0.05 + 0.5 * LAST
    assert not_green(rows).value == pytest.approx(0.55, rel=0, abs=1e-12)


def test_what_was_not_measured_has_no_light():
    found = [light.name for light in lights(log()[:-1])]
    assert found == NAMES[:8]
    assert [light.name for light in lights(log())] == NAMES


def test_a_resumed_part_without_the_start_says_nothing_of_the_reference():
    assert states(log()[3:])["divergence at the start"] == ""


@pytest.mark.parametrize("rows", [[], [{"step": 0, "held_out_reward": 1.0, "gold_quality": 1.0}]])
def test_a_log_without_an_iteration_is_refused(rows):
    with pytest.raises(ValueError, match="one iteration at least; got none"):
        lights(rows)


WARM = [
    {key: value for key, value in (HEALTHY | {"step": step}).items() if key != "clip_fraction"}
    for step in (1, 2, 3)
]


def test_a_run_that_still_warms_up_has_no_ratio_yet():
    """The warm-up logs a divergence of 0 that no step has measured."""
    found = {light.name: light.state for light in lights(WARM)}
    assert found["ratio before the first step"] == ""
    assert found["explained variance"] == "green"
    assert found["divergence at the start"] == "red"  # WARM says 2 nats at step 1
    assert states([*WARM, *log()[4:]])["ratio before the first step"] == "green"
