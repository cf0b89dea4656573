"""Claims 11 to 20 and 28, judged on invented measurements: each verdict can be reached."""

import math
import random

import pytest

from llama2_lib.claims import Measurement, Outcome, recorded
from llama2_lib.claims.rewards import CLAIMS as DECLARED
from llama2_lib.claims.rewards_judges import WORST_FIRST, paired_gain
from llama2_lib.world.annotators import GRADES
from llama2_lib.world.pairs import STREAMS

YES, NO, OPEN, CANNOT = (
    Outcome.REPRODUCED, Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE, Outcome.CANNOT_SHOW,
)  # fmt: skip
CLAIMS = {claim.id: claim for claim in DECLARED}
TOP = GRADES[0]


def fake(values, noise=0.0, n=3):
    source = random.Random(8)
    return [
        Measurement(values={k: v + source.gauss(0, noise) for k, v in values.items()}, seed=seed)
        for seed in range(n)
    ]


def outcome(claim_id, values, noise=0.0):
    return CLAIMS[claim_id].verdict(fake(values, noise)).outcome


def won(name, gained, lost, pairs=2500):
    return {f"gained/{name}": gained, f"lost/{name}": lost, f"pairs/{name}": pairs}


def test_every_claim_is_declared_once_and_has_what_it_needs():
    assert sorted(CLAIMS) == [*range(11, 21), 28]
    assert len(DECLARED) == len(CLAIMS)
    for claim in DECLARED:
        assert all(str(value).strip() for value in claim.declaration().values())
        assert claim.measure is not None
        assert claim.requests is not None
        assert claim.min_seeds == (1 if claim.id in (18, 19) else 3)


RECORDED = (11, 12, 13, 14, 15, 16, 17, 20, 28)


def test_what_trains_is_recorded():
    assert tuple(claim.id for claim in DECLARED if claim.recorded) == RECORDED


@pytest.mark.parametrize("claim_id", RECORDED)
def test_the_ledger_holds_what_these_declarations_and_judges_say(claim_id):
    claim, result = CLAIMS[claim_id], recorded(claim_id)
    assert result.declared == claim.declaration()
    again = claim.verdict(result.measurements)
    assert again.outcome == result.verdict.outcome
    assert set(again.estimates) == set(result.verdict.estimates)
    for name, estimate in again.estimates.items():
        known = result.verdict.estimates[name]
        found = (estimate.value, estimate.low, estimate.high)
        assert found == pytest.approx((known.value, known.low, known.high), rel=0, abs=1e-9)
    less = {key: 0.0 for key in result.measurements[0].values if key.startswith("gained/")}
    if less:  # a model that never gains cannot be confirmed
        worse = [Measurement(values={**m.values, **less}, seed=m.seed) for m in result.measurements]
        assert claim.verdict(worse).outcome != YES


def test_a_paired_gain_has_the_wider_of_two_intervals():
    one = fake(won("a", 150, 100))[:1]
    spread = 250 / 2500 - (50 / 2500) ** 2
    half = 1.959964 * math.sqrt(spread / 2500)
    alone = paired_gain(one, "a")
    assert (alone.value, alone.n) == (0.02, 2500)
    assert alone.high - alone.value == pytest.approx(half, rel=1e-6)
    # seeds that agree add nothing; the pairs of all count
    equal = paired_gain(fake(won("a", 150, 100)), "a")
    assert equal.high - equal.value == pytest.approx(half / math.sqrt(3), rel=1e-6)
    # seeds that differ widen it: t(2) = 4.3027
    apart = [Measurement(values=won("a", g, 100), seed=g) for g in (50, 150, 250)]
    unequal = paired_gain(apart, "a")
    assert unequal.value == pytest.approx(0.02, abs=1e-12)
    assert unequal.value - unequal.low == pytest.approx(4.302653 * 0.04 / math.sqrt(3), rel=1e-6)


def by_grade(rising, prefix="accuracy"):
    return {
        f"{prefix}/{stream}/{grade}": value
        for stream in STREAMS
        for grade, value in zip(WORST_FIRST, rising, strict=True)
    }


GRADED = by_grade((0.54, 0.62, 0.7, 0.82)) | {"control/helpfulness": 0.51}


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        ({}, 0.005, YES),
        (by_grade((0.52, 0.53, 0.54, 0.55)), 0.001, NO),  # in order, but hardly rising
        (by_grade((0.54, 0.5, 0.45, 0.4)), 0.005, NO),  # falling
        ({f"accuracy/safety/{TOP}": 0.69}, 0.001, OPEN),  # rising, yet never in order
        (by_grade((0.7, 0.75, 0.8, 0.9)), 0.005, NO),  # ties are no ties
        ({"control/helpfulness": 0.7}, 0.005, NO),  # coins teach something
        ({}, 0.2, OPEN),
    ],
)
def test_claim_11(changes, noise, expected):
    assert outcome(11, GRADED | changes, noise) == expected


def margins(top, overall, pairs=5000):
    ties, names = won(f"large-small/{GRADES[-1]}", 10, 12, 900), (f"large-none/{TOP}", *top, 1000)
    return won(*names) | won("small-none/all", *overall, pairs) | ties


@pytest.mark.parametrize(
    ("top", "overall", "expected"),
    [
        ((60, 20), (300, 200), YES),
        ((20, 60), (300, 200), NO),
        ((60, 20), (200, 300), NO),
        ((8, 6), (250, 245), OPEN),  # few pairs differ: fine enough for the paper's gain, but open
        ((140, 135), (250, 245), CANNOT),  # many differ: too coarse
    ],
)
def test_claim_12(top, overall, expected):
    assert outcome(12, margins(top, overall)) == expected


def test_claim_12_says_how_coarse_it_was():
    verdict = CLAIMS[12].verdict(fake(margins((140, 135), (250, 245))))
    assert "the paper's gain there 1.6%" in verdict.reason
    assert f"gain/large-small/{GRADES[-1]}" in verdict.estimates  # shown, not judged


def poles(none, small, large):
    values = {}
    for schedule, (low, high) in zip(("none", "small", "large"), (none, small, large), strict=True):
        values |= {f"low/{schedule}": low, f"high/{schedule}": high}
        values |= {f"ends/{schedule}": low + high, f"spread/{schedule}": 1.0}
    return values


@pytest.mark.parametrize(
    ("values", "noise", "expected"),
    [
        (poles((0.02, 0.02), (0.05, 0.05), (0.2, 0.3)), 0.002, YES),
        (poles((0.02, 0.02), (0.03, 0.03), (0.035, 0.04)), 0.001, NO),  # hardly
        (poles((0.02, 0.02), (0.05, 0.05), (0.01, 0.4)), 0.001, NO),  # one end only
        (poles((0.05, 0.05), (0.02, 0.02), (0.2, 0.3)), 0.001, NO),  # the small one less
        (poles((0.02, 0.02), (0.05, 0.05), (0.2, 0.3)), 0.3, OPEN),
    ],
)
def test_claim_13(values, noise, expected):
    assert outcome(13, values, noise) == expected


def auxiliary(with_aux, without, pairs=(150, 150)):
    (recall, alarms), (less, fewer) = with_aux, without
    return {
        "recall/with": recall, "alarms/with": alarms, "gap/with": recall - alarms,
        "recall/without": less, "alarms/without": fewer, "gap/without": less - fewer,
        **won("with-without/all", *pairs),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "noise", "expected"),
    [
        (auxiliary((0.9, 0.1), (0.7, 0.2)), 0.005, YES),
        (auxiliary((0.71, 0.1), (0.7, 0.2)), 0.005, NO),  # recall hardly moves
        (auxiliary((0.95, 0.8), (0.7, 0.2)), 0.005, NO),  # all is called unsafe
        (auxiliary((0.9, 0.1), (0.7, 0.2), (80, 220)), 0.005, NO),  # pairs are lost
        (auxiliary((0.9, 0.1), (0.7, 0.2)), 0.3, OPEN),
    ],
)
def test_claim_14(values, noise, expected):
    assert outcome(14, values, noise) == expected


TWO = ("helpful-safe/helpfulness", "safe-helpful/safety", "helpful-joint/helpfulness",
       "safe-joint/safety")  # fmt: skip


def two(**changed):
    values = {}
    for name in TWO:
        values |= won(name, *changed.get(name.replace("-", "_").replace("/", "_"), (300, 200)))
    return values | won("safe-joint_equal/safety", 1, 400)  # shown, not judged


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (two(), YES),
        (two(helpful_safe_helpfulness=(200, 300)), NO),
        (two(safe_joint_safety=(200, 300)), NO),  # one model does as well
        (two(helpful_joint_helpfulness=(205, 200)), OPEN),
    ],
)
def test_claim_15(values, expected):
    assert outcome(15, values) == expected


@pytest.mark.parametrize("name", ["data/16", "data/64", "size", "last"])
def test_claim_16_needs_every_step(name):
    values = {}
    for part in ("data/16", "data/32", "data/64", "size", "last"):
        values |= won(part, 300, 200)
    assert outcome(16, values) == YES
    assert outcome(16, values | won(name, 200, 300)) == NO
    assert outcome(16, values | won(name, 205, 200)) == OPEN


@pytest.mark.parametrize(
    ("pair", "expected"), [((120, 70), YES), ((70, 120), NO), ((90, 88), OPEN)]
)
def test_claim_17(pair, expected):
    values = won("mixed-alone/both safe", *pair, 1175) | won("mixed-alone/both unsafe", 1, 99, 800)
    assert outcome(17, values) == expected


def drift(own, after, refreshed, ceilings=(0.8, 0.8)):
    return {
        "right/own": own * 700, "pairs/own": 700.0, "ceiling/own": ceilings[0],
        "right/next": after * 650, "pairs/next": 650.0, "ceiling/next": ceilings[1],
        **won("refreshed-next", *refreshed, 650),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (drift(0.75, 0.6, (90, 20)), YES),
        (drift(0.6, 0.75, (90, 20)), NO),  # better on what it has not seen
        (drift(0.75, 0.6, (90, 20), (0.8, 0.55)), NO),  # only the pairs got harder
        (drift(0.75, 0.6, (20, 90)), NO),  # the refresh harms
        (drift(0.75, 0.73, (90, 20)), OPEN),
        (drift(0.75, 0.6, (30, 28)), OPEN),
    ],
)
def test_claim_18(values, expected):
    assert outcome(18, values) == expected
    assert CLAIMS[18].verdict(fake(values)[:1]).outcome == expected  # copies add nothing


def shares(first, last, n=600):
    """Counts of five rounds, whose shares of the outer grades go from `first` to `last`."""
    values = {}
    for stream in STREAMS:
        for number in range(1, 6):
            part = (number - 1) / 4
            top, bottom = (a + part * (b - a) for a, b in zip(first, last, strict=True))
            if stream == "safety":  # shown, not judged
                top = bottom = 0.25
            rest = (1 - top - bottom) / 2
            for grade, share in zip(GRADES, (top, rest, rest, bottom), strict=True):
                values[f"count/{stream}/{number}/{grade}"] = float(round(share * n))
    return values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (shares((0.2, 0.2), (0.1, 0.4)), YES),
        (shares((0.1, 0.2), (0.2, 0.4)), NO),
        (shares((0.2, 0.4), (0.1, 0.2)), NO),
        (shares((0.2, 0.2), (0.19, 0.4)), OPEN),
        (shares((0.2, 0.2), (0.1, 0.4), n=20), OPEN),
    ],
)
def test_claim_19(values, expected):
    assert outcome(19, values) == expected
    slopes = CLAIMS[19].verdict(fake(values)).estimates
    assert slopes[f"slope/safety/{TOP}"].value == pytest.approx(0, abs=1e-12)


def test_claim_19_gives_the_slope_a_round():
    slopes = CLAIMS[19].verdict(fake(shares((0.2, 0.2), (0.1, 0.4)))).estimates
    assert slopes[f"slope/helpfulness/{TOP}"].value == pytest.approx(-0.025, abs=1e-3)
    assert slopes[f"share/helpfulness/5/{GRADES[-1]}"].value == pytest.approx(0.4, abs=1e-9)


RISING = {
    "rise/helpfulness": 0.3, "monotone/helpfulness": 0.96, "rise/safety": 0.5,
    "monotone/safety": 1.0, "level/safety/1": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        ({}, 0.005, YES),
        ({"rise/helpfulness": 0.05}, 0.005, NO),
        ({"monotone/safety": 0.5}, 0.005, NO),
        ({}, 0.5, OPEN),
    ],
)
def test_claim_20(changes, noise, expected):
    assert outcome(20, RISING | changes, noise) == expected


CUT = {"precision": 0.9, "recall": 0.55, "unsafe": 0.44, "recall at 0.5": 0.9}


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        ({}, 0.01, YES),
        ({"precision": 0.6}, 0.01, NO),
        ({"recall": 0.1}, 0.01, NO),
        ({"precision": 0.0, "recall": 0.0}, 0.0, NO),  # nothing is called unsafe
        ({}, 0.3, OPEN),
    ],
)
def test_claim_28(changes, noise, expected):
    assert outcome(28, CUT | changes, noise) == expected
