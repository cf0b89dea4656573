"""Traffic lights for a run of PPO: what went wrong, and which stage is at fault.

Each light reads the run's own log. The limits are ours; they were set on healthy runs and on runs
broken on purpose (notebook 08), and say where they look wrong rather than prove it. A light whose
question does not arise, or whose number was never measured, is out: green means looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import neg
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


def _lack(share: float) -> float:
    return 1 - share


def _factor(ratio: float) -> float:
    return max(ratio, 1 / ratio)


RULES: dict[str, tuple[str, Callable[[float], float], float, float]] = {
    "ratio before the first step": ("rollout", float, 1e-6, 1e-4),
    "divergence at the start": ("reference", float, 1e-4, 1e-2),
    "KL": ("ppo: beta or rate", float, 8.0, 16.0),
    "entropy, of the start's": ("ppo: beta or rate", _lack, 0.5, 0.75),
    "clip fraction": ("ppo: rate", float, 0.2, 0.4),
    "explained variance": ("value function", neg, -0.1, 0.05),
    "length, of the start's": ("reward model or EOS", _factor, 1.7, 2.5),
    "answers that end": ("reward: EOS", _lack, 0.1, 0.3),
    "reward, gained": ("ppo", neg, -0.1, 0.0),
    "gold, gained": ("reward model, or beta", neg, 0.01, 0.04),
}
"""The stage at fault, how bad a value is, and from what on that is amber and red."""
WORDS = {
    "ratio before the first step": (
        "before the first step the ratio is 1",
        "policy and old policy differ before any step: sampled and trained log-probabilities are "
        "not of one distribution",
    ),
    "divergence at the start": (
        "the reference is where the policy starts",
        "policy and reference differ before any step: not the same weights or temperature",
    ),
    "KL": ("the policy stays near", "the policy has run away: raise beta"),
    "entropy, of the start's": ("answers still vary", "the policy says one thing only"),
    "clip fraction": ("steps are small", "steps leave the clip range: lower the rate"),
    "explained variance": ("the value function has learned", "it predicts no returns"),
    "length, of the start's": ("answers keep their length", "is length rewarded, or its end?"),
    "answers that end": ("answers end", "answers run into the limit: is EOS scored?"),
    "reward, gained": ("rises on held-out prompts", "does not rise: is it learning?"),
    "gold, gained": (
        "reward and gold judge go together",
        "the reward rises and the judge's mark falls: the reward model is being exploited",
    ),
}
"""What a green light says, and what any other."""


def lights(rows: Sequence[Mapping[str, Any]]) -> list[Light]:
    """Return the lights of a finished or running PPO run from the rows of its `metrics.jsonl`."""
    steps = [row for row in rows if "kl" in row]
    if not steps:
        raise ValueError("lights need the log of one iteration at least; got none. Run PPO first.")
    first, last = steps[0], steps[-LAST:]
    # While the value function warms up, the policy takes no step.
    trained = [row for row in steps if "clip_fraction" in row]
    panel = []
    if trained:
        furthest = float(np.max([abs(row["first_approx_kl"]) for row in trained]))  # or a NaN
        panel.append(_light("ratio before the first step", furthest))
    else:  # the log of the warm-up holds a 0 that nobody measured
        panel.append(_out("ratio before the first step", "the policy has taken no step yet"))
    if first["step"] == 1:
        panel.append(_light("divergence at the start", abs(float(first["kl"]))))
    else:
        panel.append(_out("divergence at the start", "the log does not begin at the start"))
    kl = _mean(last, "kl")
    if kl < -0.5:
        words = "negative: the answers are not samples of the policy"
        panel.append(Light("KL", "red", kl, words, "rollout"))
    else:
        panel.append(_light("KL", kl))
    entropy = _mean(last, "entropy") / max(float(first["entropy"]), 1e-9)
    panel.append(_light("entropy, of the start's", entropy))
    if trained:
        panel.append(_light("clip fraction", _mean(trained[-LAST:], "clip_fraction")))
    if all("explained_variance" in row for row in last):
        panel.append(_light("explained variance", _mean(last, "explained_variance")))
    else:
        words = "no value function was trained: advantages are noise"
        panel.append(Light("explained variance", "red", 0.0, words, "value function"))
    panel.append(_light("length, of the start's", _mean(last, "length") / float(first["length"])))
    panel.append(_light("answers that end", _mean(last, "finished")))
    return panel + _gains([row for row in rows if "held_out_reward" in row])


def _gains(held_out: Sequence[Mapping[str, Any]]) -> list[Light]:
    if len(held_out) < 2:
        return []
    rewards = [float(row["held_out_reward"]) for row in held_out]
    gold = float(held_out[-1]["gold_quality"]) - float(held_out[0]["gold_quality"])
    progress = _light("reward, gained", float(np.max(rewards[1:])) - rewards[0])
    if rewards[-1] - rewards[0] <= 0:
        words = "not asked: there is no gain in reward to be false"
        return [progress, _out("gold, gained", words, gold)]
    return [progress, _light("gold, gained", gold)]


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(row[name]) for row in rows) / len(rows)


def _light(name: str, value: float) -> Light:
    stage, badness, amber, red = RULES[name]
    bad = badness(value)
    # what is not a number is below no limit
    state: State = "red" if not bad < red else "amber" if not bad < amber else "green"
    return Light(name, state, value, WORDS[name][state != "green"], stage)


def _out(name: str, words: str, value: float = 0.0) -> Light:
    return Light(name, "", value, words, RULES[name][0])
