"""Traffic lights for a run of PPO: what went wrong, and which stage is at fault.

Each light reads the run's own log. The limits are ours; they were set on healthy runs and on runs
broken on purpose (notebook 08), and say where they look wrong rather than prove it. A light whose
question does not arise, or whose number was never measured, is out: green means looked at.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

State = Literal["green", "amber", "red", ""]
"""The last is a light that is out: nothing was asked."""
LAST = 5
"""Iterations at the end of a run that are averaged."""


class Light(NamedTuple):
    """One diagnostic."""

    name: str
    state: State
    value: float
    words: str
    """What was found and, unless green, what to look at."""
    stage: str
    """The stage at fault if it is amber or red."""


def lights(rows: Sequence[Mapping[str, Any]], reward_accuracy: float | None = None) -> list[Light]:
    """Return the lights of a finished or running PPO run.

    Args:
        rows: Those of its `metrics.jsonl`.
        reward_accuracy: That of the reward model on held-out comparisons of the newest policy.
    """
    steps = [row for row in rows if "kl" in row]
    if not steps:
        raise ValueError("lights need the log of one iteration at least; got none. Run PPO first.")
    held_out = [row for row in rows if "held_out_reward" in row]
    # While the value function warms up, the policy takes no step.
    trained = [row for row in steps if "clip_fraction" in row]
    panel = [_ratio(trained), _start(steps), _kl(steps), _entropy(steps)]
    if trained:
        panel.append(_clipping(trained))
    panel += [_value(steps), _length(steps), _finished(steps)]
    if len(held_out) > 1:
        panel += [_progress(held_out), _hacking(held_out)]
    if reward_accuracy is not None:
        panel.append(_reward_model(reward_accuracy))
    return panel


def worst(panel: Sequence[Light]) -> Light | None:
    """Return the first red light, or else the first amber one; None if there is neither."""
    for state in ("red", "amber"):
        for light in panel:
            if light.state == state:
                return light
    return None


def _last(steps: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [float(row[name]) for row in steps[-LAST:]]
    return sum(values) / len(values)


def _state(value: float, amber: float, red: float) -> State:
    """Higher is worse."""
    return "red" if not value < red else "amber" if not value < amber else "green"


def _ratio(trained: Sequence[Mapping[str, Any]]) -> Light:
    name, stage = "ratio before the first step", "rollout"
    if not trained:  # the log of the warm-up holds a 0 that nobody measured
        return Light(name, "", 0.0, "the policy has taken no step yet", stage)
    value = float(np.max([abs(row["first_approx_kl"]) for row in trained]))  # a NaN stays one
    words = (
        "before the first step the ratio is 1"
        if value < 1e-6
        else "policy and old policy differ before any step: sampled and trained log-probabilities "
        "are not of one distribution"
    )
    return Light(name, _state(value, 1e-6, 1e-4), value, words, stage)


def _start(steps: Sequence[Mapping[str, Any]]) -> Light:
    name, stage = "divergence at the start", "reference"
    if steps[0]["step"] != 1:
        return Light(name, "", 0.0, "the log does not begin at the start", stage)
    value = abs(float(steps[0]["kl"]))
    words = (
        "the reference is where the policy starts"
        if value < 1e-4
        else "policy and reference differ before any step: not the same weights or temperature"
    )
    return Light(name, _state(value, 1e-4, 1e-2), value, words, stage)


def _kl(steps: Sequence[Mapping[str, Any]]) -> Light:
    value = _last(steps, "kl")
    if value < -0.5:
        words = "negative: the answers are not samples of the policy"
        return Light("KL", "red", value, words, "rollout")
    state = _state(value, 8.0, 16.0)
    words = "the policy stays near" if state == "green" else "the policy has run away: raise beta"
    return Light("KL", state, value, words, "ppo: beta or rate")


def _entropy(steps: Sequence[Mapping[str, Any]]) -> Light:
    value = _last(steps, "entropy") / max(float(steps[0]["entropy"]), 1e-9)
    state = _state(1 - value, 0.5, 0.75)
    words = "answers still vary" if state == "green" else "the policy says one thing only"
    return Light("entropy, of the start's", state, value, words, "ppo: beta or rate")


def _clipping(steps: Sequence[Mapping[str, Any]]) -> Light:
    value = _last(steps, "clip_fraction")
    state = _state(value, 0.2, 0.4)
    words = "steps are small" if state == "green" else "steps leave the clip range: lower the rate"
    return Light("clip fraction", state, value, words, "ppo: rate")


def _value(steps: Sequence[Mapping[str, Any]]) -> Light:
    if any("explained_variance" not in row for row in steps[-LAST:]):
        words = "no value function was trained: advantages are noise"
        return Light("explained variance", "red", 0.0, words, "value function")
    value = _last(steps, "explained_variance")
    state = _state(-value, -0.1, 0.05)
    words = "the value function has learned" if state == "green" else "it predicts no returns"
    return Light("explained variance", state, value, words, "value function")


def _length(steps: Sequence[Mapping[str, Any]]) -> Light:
    value = _last(steps, "length") / float(steps[0]["length"])
    state = _state(max(value, 1 / value), 1.7, 2.5)
    words = "answers keep their length" if state == "green" else "is length rewarded, or its end?"
    return Light("length, of the start's", state, value, words, "reward model or EOS")


def _finished(steps: Sequence[Mapping[str, Any]]) -> Light:
    value = _last(steps, "finished")
    state = _state(1 - value, 0.1, 0.3)
    words = "answers end" if state == "green" else "answers run into the limit: is EOS scored?"
    return Light("answers that end", state, value, words, "reward: EOS")


def _progress(held_out: Sequence[Mapping[str, Any]]) -> Light:
    first = float(held_out[0]["held_out_reward"])
    value = float(np.max([row["held_out_reward"] for row in held_out[1:]])) - first
    state = _state(-value, -0.1, 0.0)
    words = "rises on held-out prompts" if state == "green" else "does not rise: is it learning?"
    return Light("reward, gained", state, value, words, "ppo")


def _hacking(held_out: Sequence[Mapping[str, Any]]) -> Light:
    gained = float(held_out[-1]["held_out_reward"]) - float(held_out[0]["held_out_reward"])
    value = float(held_out[-1]["gold_quality"]) - float(held_out[0]["gold_quality"])
    name, stage = "gold, gained", "reward model, or beta"
    if gained <= 0:
        return Light(name, "", value, "not asked: there is no gain in reward to be false", stage)
    state = _state(-value, 0.01, 0.04)
    words = (
        "reward and gold judge go together"
        if state == "green"
        else "the reward rises and the judge's mark falls: the reward model is being exploited"
    )
    return Light(name, state, value, words, stage)


def _reward_model(value: float) -> Light:
    state = _state(-value, -0.58, -0.53)
    words = "knows better from worse" if state == "green" else "guesses: more or better comparisons"
    return Light("reward model, accuracy", state, value, words, "reward model")
