"""How the claims on reward models are judged (11 to 17, 20 and 28).

Where two models are compared on the same held-out pairs, the interval is the wider of two: over
seeds, since training varies, and over pairs, since few of them differ.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from llama2_lib.claims.claim import (
    Check,
    Measurement,
    Outcome,
    Threshold,
    Verdict,
    above,
    average,
    column,
    decide,
    difference,
    keys_under,
    within,
)
from llama2_lib.evaluation.statistics import (
    Equivalence,
    Estimate,
    equivalent,
    mean_interval,
    ordering,
)
from llama2_lib.world.annotators import GRADES
from llama2_lib.world.pairs import STREAMS

WORST_FIRST = GRADES[::-1]
Z = float(stats.norm.ppf(0.975))


def paired_gain(measurements: Sequence[Measurement], name: str) -> Estimate:
    """Return by how much one model is right more often than another on the same pairs.

    Keys: `gained/<name>` and `lost/<name>`, pairs that only the one or only the other has right,
    a tie counting half; `pairs/<name>`, all. The value is the mean over seeds.
    """
    gained, lost, pairs = (
        np.array(column(measurements, f"{key}/{name}")) for key in ("gained", "lost", "pairs")
    )
    shares = (gained - lost) / pairs
    value, n = float(shares.mean()), pairs.sum()
    spread = (gained + lost).sum() / n - ((gained - lost).sum() / n) ** 2
    half = Z * math.sqrt(max(0.0, spread) / n)
    if len(shares) > 1:
        over_seeds = mean_interval(shares.tolist())
        half = max(half, over_seeds.high - value)
    return Estimate(value=value, low=value - half, high=value + half, n=int(n))


def _gains(measurements: Sequence[Measurement]) -> dict[str, Estimate]:
    """All comparisons there are, to be shown."""
    names = keys_under(measurements, "pairs")
    return {f"gain/{name}": paired_gain(measurements, name) for name in names}


def averages(measurements: Sequence[Measurement], *prefixes: str) -> dict[str, Estimate]:
    """Return the means over seeds of all keys that begin with one of the prefixes."""
    return {
        f"{prefix}/{rest}": average(measurements, f"{prefix}/{rest}")
        for prefix in prefixes
        for rest in keys_under(measurements, prefix)
    }


def judge_grades(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 11.

    Keys: `accuracy/<stream>/<grade>` of each model on its own stream; `ceiling/...` the same of
    the gold judge, shown; `control/helpfulness`, accuracy of the model that learned from coins.
    """
    estimates = averages(measurements, "accuracy", "ceiling", "control")
    checks = []
    for stream in STREAMS:
        keys = [f"accuracy/{stream}/{grade}" for grade in WORST_FIRST]
        rows = list(zip(*(column(measurements, key) for key in keys), strict=True))
        slopes = [float(np.polyfit(range(len(row)), row, deg=1)[0]) for row in rows]
        slope, ordered = mean_interval(slopes), ordering(rows)
        estimates |= {f"rise a grade/{stream}": slope, f"in order/{stream}": ordered.estimate}
        checks += [
            above(f"{stream}: accuracy a grade", slope, limit["slope"]),
            Check(
                text=f"{stream}: {ordered.estimate.value:.0%} of seeds in the order of the grades",
                # Too few seeds in order do not show the contrary; a falling slope would.
                holds=True if ordered.p_value < limit["p"] else None,
            ),
            within(
                f"{stream}: accuracy on ties minus one half",
                _about_half(measurements, keys[0], limit["tie"]),
            ),
        ]
    control = _about_half(measurements, "control/helpfulness", limit["control"])
    checks.append(within("control minus one half", control))
    return decide(checks, estimates)


def _about_half(measurements: Sequence[Measurement], key: str, margin: float) -> Equivalence:
    values = column(measurements, key)
    return equivalent(values, [0.5] * len(values), margin=margin)


def judge_margin(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 12.

    Keys: those of `paired_gain` for `<schedule>-none/<grade or all>` and `large-small/...`;
    `accuracy/<schedule>/<grade or all>`, shown.
    """
    estimates = averages(measurements, "accuracy") | _gains(measurements)
    top, overall = (
        paired_gain(measurements, name) for name in (f"large-none/{GRADES[0]}", "small-none/all")
    )
    verdict = decide(
        [
            above("large margin, clearest pairs", top, limit["gain"]),
            above("small margin, all pairs", overall, limit["gain"]),
        ],
        estimates,
    )
    half = top.high - top.value
    if verdict.outcome == Outcome.INCONCLUSIVE and half > limit["resolve"]:
        reason = (
            f"the interval is +-{half:.1%} wide on the clearest pairs, the paper's gain there "
            f"{limit['resolve']:.1%}; {verdict.reason}"
        )
        return Verdict(outcome=Outcome.CANNOT_SHOW, reason=reason, estimates=estimates)
    return verdict


def judge_poles(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 13.

    Keys: `low/<schedule>` and `high/<schedule>`, shares of answers below `end` and above
    1 - `end` after the sigmoid; `ends/<schedule>`, their sum; `spread/...`, shown.
    """
    estimates = averages(measurements, "low", "high", "ends", "spread")
    gains = {
        f"{name}: {more} minus {less}": difference(
            measurements, f"{name}/{more}", minus=f"{name}/{less}"
        )
        for name, more, less in (
            ("ends", "large", "none"),
            ("ends", "small", "none"),
            ("low", "large", "none"),
            ("high", "large", "none"),
        )
    }
    first, *others = gains
    checks = [above(first, gains[first], limit["gain"])]
    checks += [above(name, gains[name]) for name in others]
    return decide(checks, estimates | gains)


def judge_auxiliary(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 14.

    Keys: `recall/<arm>`, share of unsafe answers below one half after the sigmoid, and
    `alarms/<arm>`, the same of safe ones, for the arms `with` and `without`; `gap/<arm>`, the
    first less the second; those of `paired_gain` for `with-without/<bin or all>`.
    """
    recall = difference(measurements, "recall/with", minus="recall/without")
    told = difference(measurements, "gap/with", minus="gap/without")
    lost = paired_gain(measurements, "with-without/all")
    estimates = averages(measurements, "recall", "alarms", "accuracy") | _gains(measurements)
    estimates |= {"gain of recall": recall, "gain of recall less false alarms": told}
    checks = [
        above("gain of recall", recall, limit["recall"]),
        above("gain of recall less false alarms", told),
        above("gain of accuracy on pairs", lost, -limit["loss"]),
    ]
    return decide(checks, estimates)


def judge_two(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 15.

    Keys: those of `paired_gain` for `<one>-<other>/<stream>` of the models helpful, safe, joint
    and joint_equal; `accuracy/<model>/<stream>`, shown.
    """
    estimates = averages(measurements, "accuracy") | _gains(measurements)
    names = (
        "helpful-safe/helpfulness",
        "safe-helpful/safety",
        "helpful-joint/helpfulness",
        "safe-joint/safety",
    )
    checks = [above(name, estimates[f"gain/{name}"], limit["gain"]) for name in names]
    return decide(checks, estimates)


def judge_scale(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 16.

    Keys: those of `paired_gain` for `data/<width>` (most pairs against fewest), `size` (widest
    against narrowest, most pairs) and `last` (widest, most pairs against the number before);
    `accuracy/<width>/<pairs>`, shown.
    """
    gains = _gains(measurements)
    checks = [above(name, gain, limit["gain"]) for name, gain in gains.items()]
    return decide(checks, averages(measurements, "accuracy", "clearest") | gains)


def judge_mix(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 17.

    Keys: those of `paired_gain` for `mixed-alone/<bin or all>`; `accuracy/<arm>/<bin>`, shown.
    """
    gain = paired_gain(measurements, "mixed-alone/both safe")
    estimates = averages(measurements, "accuracy") | _gains(measurements)
    return decide([above("gain where both are safe", gain, limit["gain"])], estimates)


def judge_calibration(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 20.

    Keys, by stream: `rise`, mean of sigmoid(score) in the last bin of gold quality less that in
    the first; `monotone`, rank correlation of both over the bins; `level/<stream>/<bin>`, shown.
    """
    estimates = averages(measurements, "rise", "monotone", "level")
    checks = [
        above(f"{name} of {stream}", estimates[f"{name}/{stream}"], limit[name])
        for stream in STREAMS
        for name in ("rise", "monotone")
    ]
    return decide(checks, estimates)


def judge_threshold(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 28.

    Keys: `precision` and `recall` of sigmoid(score) < 0.15 as a test for unsafe answers (a test
    that calls nothing unsafe has 0 of both); `unsafe`, their share, and `recall at 0.5`, shown.
    """
    names = ("precision", "recall", "unsafe", "recall at 0.5")
    estimates = {name: average(measurements, name) for name in names}
    checks = [above(name, estimates[name], limit[name]) for name in ("precision", "recall")]
    return decide(checks, estimates)
