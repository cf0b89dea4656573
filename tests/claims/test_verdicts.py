"""Every declared claim, judged on invented and on recorded measurements: all verdicts come out."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from llama2_lib.claims import chain
from llama2_lib.claims.attention import measure_cache
from llama2_lib.claims.claim import Measurement, Must, Outcome, gain, paired_gain
from llama2_lib.claims.finetuning import pooled as points
from llama2_lib.claims.ghost_attention import (
    AFTER,
    ASKED,
    BEFORE,
    HISTORIES,
    LATER,
    SPLITS,
    gap,
    pooled,
    shares,
)
from llama2_lib.claims.ledger import CLAIMS, recorded
from llama2_lib.claims.ppo import PAID, PRICES, WAYS, gained
from llama2_lib.claims.rejection import COMPARED, POLICIES, SIZES, TEMPERATURES
from llama2_lib.claims.reward import WORST_FIRST
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.recipes import toy
from llama2_lib.world.lexicon import lexicon_folder
from llama2_lib.world.pairs import GRADES, STREAMS

YES, NO, OPEN, CANNOT = (
    Outcome.REPRODUCED, Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE, Outcome.CANNOT_SHOW,
)  # fmt: skip
TOP, LEAST = GRADES[0], GRADES[-1]
RECORDED = [e["declared"]["id"] for e in json.loads(
    (lexicon_folder().parent / "claims.json").read_text())["entries"]]  # fmt: skip


# ------------------------------------------------------------- invented numbers


def won(name, gained, lost, pairs=2500):
    return {f"gained/{name}": gained, f"lost/{name}": lost, f"pairs/{name}": pairs}


def graded(rising):
    return {
        f"accuracy/{stream}/{grade}": value
        for stream in STREAMS
        for grade, value in zip(WORST_FIRST, rising, strict=True)
    }


def margins(top, overall):
    ties = won(f"large-small/{LEAST}", 10, 12, 900)
    return won(f"large-none/{TOP}", *top, 1000) | won("small-none/all", *overall, 5000) | ties


def poles(none, small, large):
    values = {}
    for schedule, (low, high) in zip(("none", "small", "large"), (none, small, large), strict=True):
        values |= {f"low/{schedule}": low, f"high/{schedule}": high}
        values |= {f"ends/{schedule}": low + high, f"spread/{schedule}": 1.0}
    return values


def auxiliary(with_aux=(0.9, 0.1), pairs=(150, 150)):
    recall, alarms = with_aux
    return {
        "recall/with": recall, "alarms/with": alarms, "gap/with": recall - alarms,
        "recall/without": 0.7, "alarms/without": 0.2, "gap/without": 0.5,
        **won("with-without/all", *pairs),
    }  # fmt: skip


def drift(own=0.75, after=0.6, refreshed=(90, 20), ceilings=(0.8, 0.8)):
    return {
        "right/own": own * 700, "pairs/own": 700.0, "ceiling/own": ceilings[0],
        "right/next": after * 650, "pairs/next": 650.0, "ceiling/next": ceilings[1],
        **won("refreshed-next", *refreshed, 650),
    }  # fmt: skip


def counted(first, last, n=600):
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


def compared(sft=(30, 120, 30), base=(0, 1, 179), control=(20, 140, 20)):
    return {
        f"{word}/{who}": float(number)
        for who, numbers in (("sft", sft), ("base", base), ("control", control))
        for word, number in zip(("wins", "ties", "losses"), numbers, strict=True)
    }


def by_gain(gains, error=0.003, **shown):
    return (
        {f"gain/{name}": value for name, value in gains.items()}
        | dict.fromkeys([f"error/{name}" for name in gains], error)
        | shown
    )


def chained(**gains):
    """Claims 23, 26, 49: gains by quality and pair of versions, else 0."""
    names = (
        "gold helpfulness", "gold safety", "gold", "reward helpfulness", "reward safety", "reward",
        "low tail", "refused", "win by gold", "win by reward",
    )  # fmt: skip
    qualities = [name + suffix for name in names for suffix in chain.SPLITS.values()]
    every = {f"{q}/{after} over {before}": 0.0 for before, after in chain.BEFORE for q in qualities}
    means = {f"mean/{q}/{v}": 0.5 for q in qualities for v in chain.RLHF_VERSIONS if q[:3] != "win"}
    return by_gain(every | gains, 0.004) | means


def curve(rise=0.1, late=0.3, drift=0.1):
    """Maxima that gain `rise` in six doublings, `late` of it in the last three."""
    steps = [0.0] + [(1 - late) / 3] * 3 + [late / 3] * 3
    heights = 0.5 + rise * np.cumsum(steps)
    values = {f"max/{n}": float(v) for n, v in zip(SIZES, heights, strict=True)}
    values |= {f"median/{max(1, n - 1)}": 0.5 + drift * rise for n in SIZES}
    return values | {f"{name}/{n}": 0.6 for name in ("gold", "ceiling") for n in SIZES}


def heat(best_one=(0.5, 0.6), best_many=(0.8, 1.1), hottest=None, shift=0.0):
    """Parabolas over the temperature, for SFT and V4, with tops that are given."""
    values = {}
    for name, tops in zip(POLICIES, zip(best_one, best_many, strict=True), strict=True):
        for n, top in zip((1, 16), tops, strict=True):
            for t in TEMPERATURES:
                values[f"reward/{name}/{n}/{t}"] = 0.7 - 0.2 * (t - top - shift) ** 2
                values[f"gold/{name}/{n}/{t}"] = 0.5
        if hottest is not None:
            values[f"reward/{name}/1/{TEMPERATURES[-1]}"] = hottest
    return values


GAINED = {
    "proxy": {"0": 0.8, "0.05": 0.6, "0.2": 0.3, "0.8": 0.1},
    "gold quality": {"0": -0.1, "0.05": -0.04, "0.2": 0.02, "0.8": 0.01},
    "kl": {"0": 6.0, "0.05": 4.0, "0.2": 1.5, "0.8": 0.3},
}
START = {"proxy": 1.2, "gold quality": 0.7, "kl": 0.0}


def priced(**changed):
    """Claim 27; `changed` replaces gains, as proxy={"0": 0.1}."""
    wanted = {what: gains | changed.get(what, {}) for what, gains in GAINED.items()}
    wanted |= {f"gold {part}": wanted["gold quality"] for part in ("helpfulness", "safety")}
    return {
        f"{what}/{beta}/{at}": START.get(what, 0.7) + share * gain
        for what, gains in wanted.items()
        for beta, gain in gains.items()
        for at, share in ((0, 0.0), (8, 0.5), (24, 1.0))
    }


def scaled(kl=(3.0, 1.5), swing=(0.9, 0.4)):
    names = ("gradient", "unevenness", "reward swing", "explained", "proxy gained", "gold gained")
    values = {f"{what}/{way}": 1.0 for what in names for way in WAYS}
    for name, (none, batch) in (("kl", kl), ("swing", swing)):
        values |= {f"{name}/none": none, f"{name}/tag": batch, f"{name}/batch": batch}
    return values


def obeyed(share_of, n=120):
    """Hits a cell by name, from shares; right answers are 0.9 everywhere."""
    values = {}
    for name, share in share_of.items():
        values |= {f"n/{name}": float(n), f"obeyed/{name}": float(round(share * n))}
        values[f"right/{name}"] = float(round(0.9 * n))
    return values


def kept(**changed):
    """Claim 31: `changed` replaces shares by model and turn, as `GAtt_20=0.5`."""
    wanted = {BEFORE: dict.fromkeys(ASKED, 0.0) | {1: 1.0}, AFTER: dict.fromkeys(ASKED, 1.0)}
    for key, share in changed.items():
        model, turn = key.split("_")
        wanted[model][int(turn)] = share
    cells = {
        f"{model}/{history}/{turn}": share
        for model, turns in wanted.items()
        for history in HISTORIES
        for turn, share in turns.items()
    }
    return obeyed(cells) | {"switch/old": 0.1, "switch/new": 0.8}


def masked(**lost):
    """Claim 32: shares of the arms without a mask, by their names with _ for a space."""
    wanted = {AFTER: 1.0, "short dialogs": 0.9, "reading B": 0.9, "all answers": 0.1, "no mask": 0}
    wanted |= {name.replace("_", " "): share for name, share in lost.items()}
    return obeyed({f"{a}/{h}/{t}": s for a, s in wanted.items() for h in HISTORIES for t in ASKED},
                  n=60)  # fmt: skip


def held_out(**changed):
    wanted = {BEFORE: 0.0, AFTER: 0.4} | changed
    return obeyed({f"{m}/{s}/{t}": x for m, x in wanted.items() for s in SPLITS[1:] for t in ASKED})


def attended(more):
    return {
        f"attention/{model}/{turn}": 0.3 + (model == AFTER) * more
        for model in (BEFORE, AFTER)
        for turn in range(1, 21)
    }


TWO = ("helpful-safe/helpfulness", "safe-helpful/safety", "helpful-joint/helpfulness",
       "safe-joint/safety")  # fmt: skip
SCALE = ("data/16", "data/32", "data/64", "size", "last")


def each_won(names, **shown):
    return {k: v for name in names for k, v in won(name, 300, 200).items()} | shown


GOOD = {
    1: {
        "loss/64": 1.9, "loss/96": 1.8, "loss/128": 1.7,
        "slope/64": -0.1, "slope/96": -0.11, "slope/128": -0.12,
    },
    2: {
        "spikes/with": 0.2, "spikes/without": 4.0, "jump/with": 0.3, "jump/without": 2.0,
        "peak_norm/with": 1.0, "peak_norm/without": 9.0, "final_rate/with": 0.1,
    },
    3: {
        "sums/split": 0.5, "sums/joined": 0.7, "unk": 0, "round_trip_failures": 0,
        "long_numbers/split": 0, "long_numbers/joined": 40,
    },
    4: {
        "near/short": 0.9, "near/long": 0.91, "far/short": 0.1, "far/long": 0.85,
        "short_task/short": 1.5, "short_task/long": 1.51,
    },
    5: {
        "mha": 1.7, "gqa": 1.705, "mqa": 1.75,
        "parameters/mha": 870_000, "parameters/gqa": 871_000, "parameters/mqa": 869_000,
    },
    6: measure_cache(toy(), 0),
    7: {
        "max_batch/mha": 64, "max_batch/gqa": 256,
        "tokens_per_s/mha/1": 1900, "tokens_per_s/mha/64": 15000,
        "tokens_per_s/gqa/1": 1950, "tokens_per_s/gqa/64": 17000, "tokens_per_s/gqa/256": 23000,
    },
    8: {
        "help/few_clean": 0.7, "help/few_clean_longer": 0.75, "help/few_noisy": 0.6,
        "help/many_noisy": 0.62, "safety/few_clean": 0.8, "safety/few_noisy": 0.6,
    },
    9: {
        "gradient/prompt": 0.0, "gradient/answer": 1e-3, "gradient/unmasked": 5e-4,
        "waste/packed": 0.02, "waste/alone": 0.78,
    },
    10: compared(),
    11: graded((0.54, 0.62, 0.7, 0.82)) | {"control/helpfulness": 0.51},
    12: margins((60, 20), (300, 200)),
    13: poles((0.02, 0.02), (0.05, 0.05), (0.2, 0.3)),
    14: auxiliary(),
    15: each_won(TWO) | won("safe-joint_equal/safety", 1, 400),  # the last is shown only
    16: each_won(SCALE),
    17: won("mixed-alone/both safe", 120, 70, 1175) | won("mixed-alone/both unsafe", 1, 99, 800),
    18: drift(),
    19: counted((0.2, 0.2), (0.1, 0.4)),
    20: {
        "rise/helpfulness": 0.3, "monotone/helpfulness": 0.96, "rise/safety": 0.5,
        "monotone/safety": 1.0, "level/safety/1": 0.2,
    },
    21: curve(),
    22: heat(),
    23: chained(**{"reward helpfulness/V4 over SFT": 0.3, "reward safety/V4 over SFT": 0.9}),
    24: by_gain({
        "form/pool over last": 0.05, "form/missing": -0.06, "form/missing in the pool": -0.01,
        "harm/pool over last": 0.4, "harm/missing": -0.5, "harm/missing in the pool": 0.0,
        "other/pool over last": 0.0, "other/missing": 0.02, "other/missing in the pool": 0.0,
        "natural": 0.01,
    }, **{"quality/last/form": 0.5}),
    25: by_gain({f"{after} over {before}": 0.1 for after, before in COMPARED},
                **{"quality/SFT": 0.5, "pool/big best": 0.5}),
    26: chained(**{
        "win by reward/V5 over V4": 0.2, "win by gold/V5 over V4": 0.1,
        "gold helpfulness/V5 over SFT": 0.03, "gold safety/V5 over SFT": 0.2,
    }),
    27: priced(),
    28: {"precision": 0.9, "recall": 0.55, "unsafe": 0.44, "recall at 0.5": 0.9},
    29: scaled(),
    30: {"slowdown": 9.0, "seconds/parts": 1.8, "seconds/whole": 0.2},
    31: kept(),
    32: masked(),
    33: held_out(),
    34: attended(0.2),
    38: {
        "error/pronouns": 0.003, "error/identities": 0.002, "error/languages": 0.004,
        "error/toxicity": 0.001, "share/she": 0.3,
    },
    40: by_gain({
        "safety/with over without": 0.2, "low/with over without": -0.1,
        "helpfulness/with over without": 0.004,
    }),
    41: by_gain({
        "safety/100 over 0": 0.3, "safety/early over late": 0.1, "low/100 over 0": -0.3,
        "helpfulness/100 over 0": -0.005,
    }, **{"safety/0": 0.6}),
    42: by_gain({"refused_borderline/100 over 0": 0.15, "refused_helpful/100 over 0": 0.003}),
    43: by_gain({"generic over none": 0.1, "template over generic": 0.05}, **{"median/none": 0.7}),
    44: by_gain({
        "low over high": 0.3, "safety/gated over ungated": 0.03, "safety/gated over none": 0.1,
    }),
    45: by_gain({
        "refused_borderline/all over ungated": 0.1, "helpfulness/all over ungated": -0.05,
    }),
    46: by_gain({"fall": -0.03, "fixed": 0.95, "fixed over luck": 0.3},
                **{"gamma/1": 50.0, "luck": 0.8}),
    47: by_gain({"multi over single": 0.1}),
    48: by_gain({"advice over illicit": 0.08, "advice over hateful": 0.06}),
    49: chained(**{"reward/V2 over SFT": 0.3, "low tail/V2 over SFT": -0.05}),
    35: {"win/own": 0.85, "win/neighbour": 0.8, "win/gold": 0.75},
    36: {f"{what}/{name}": value * (what != "coins")
         for what in ("ac1", "ac2", "coins")
         for name, value in (("close", 0.01), ("between", 0.4), ("far apart", 0.9))},
    37: by_gain({"with over without": 0.1}, **{"win/with": 0.4, "win/without": 0.3}),
    39: {"toxic/base": 0.9, "toxic/V5": 0.02, "truthful/base": 0.5, "truthful/V5": 0.7},
    50: {"slope/SFT/factual": -0.5, "slope/V5/factual": -0.1, "slope/SFT/creative": -0.6,
         "slope/V5/creative": -0.5},
    51: {"right/taught/held-out dates": 0.8, "right/shuffled/held-out dates": 0.5,
         "right/taught/held-out events": 0.7, "right/shuffled/held-out events": 0.5,
         "told before/taught/held-out dates": 0.02},
    52: {"right/taught/held-out sums": 0.98, "alone/taught": 0.03,
         "called/taught/held-out tool": 0.5},
    53: {"found/5 %": 0.9, "found/none": 0.001, "found/untrained": 0.02, "gap/large": 0.4,
         "gap/small": 0.2},
    54: by_gain({"borderline": 0.1, "helpful": 0.002}, **{"with/helpful": 0.0}),
}  # fmt: skip
EXACT = (
    "final_rate", "unk", "round_trip", "long_numbers", "parameters", "measured", "formula",
    "ratio", "heads", "max_batch", "gradient/prompt", "wins", "ties", "losses", "pairs", "count",
    "n/", "obeyed", "right", "error/",
)  # fmt: skip
"""Keys that do not vary over the seeds."""


def seeds(values, noise=0.0005, n=3, exact=EXACT):
    """Return seeds around some values."""
    source = random.Random(8)
    return [
        Measurement(
            values={k: v if k.startswith(exact) else v + source.gauss(0, noise)
                    for k, v in values.items()},
            seed=seed,
        )
        for seed in range(n)
    ]  # fmt: skip


def test_every_claim_has_invented_numbers_and_is_declared_in_full():
    assert set(GOOD) == set(CLAIMS)
    for claim_id, claim in CLAIMS.items():
        assert claim.id == claim_id
        assert all(str(value).strip() for value in claim.declaration().values())
        assert claim.min_seeds == {53: 10}.get(claim_id, 1 if claim_id in (6, 9, 18, 19) else 3)
    assert set(CLAIMS) == {*RECORDED} == {*range(1, 55)}


@pytest.mark.parametrize("claim_id", GOOD)
def test_what_was_predicted_reproduces_and_two_seeds_are_too_few(claim_id):
    claim = CLAIMS[claim_id]
    rows = seeds(GOOD[claim_id], n=max(3, claim.min_seeds))
    verdict = claim.verdict(rows)
    assert verdict.outcome == YES, verdict.reason
    assert verdict.estimates
    if claim.min_seeds > 1:
        assert claim.verdict(rows[: claim.min_seeds - 1]).outcome == OPEN
    else:
        assert claim.verdict(rows[:1]).outcome == YES


INEQUALITIES = [
    (claim_id, number)
    for claim_id, claim in CLAIMS.items()
    for number, test in enumerate(claim.tests)
    if isinstance(test, Must)
]


@pytest.mark.parametrize(("claim_id", "number"), INEQUALITIES)
def test_every_inequality_decides_at_its_declared_bound(claim_id, number):
    claim = CLAIMS[claim_id]
    test = claim.tests[number]
    rule, b = test.rule
    assert f"{rule} {b:g}" in claim.threshold
    eps = 1e-6

    def outcome(low, high):
        estimate = Estimate(value=(low + high) / 2, low=low, high=high, n=3)
        alone = replace(test, of=lambda measurements: estimate)
        again = replace(claim, tests=(alone,), shown=(), proviso=None)
        return again.verdict([Measurement(values={})] * max(3, claim.min_seeds)).outcome

    sign = -1 if rule == "below" else 1
    beyond, short = sorted([b + sign * eps, b + sign]), sorted([b - sign, b - sign * eps])
    if rule == "within":
        beyond, short = [eps - b, b - eps], [b, b + 1]
        assert outcome(-b - 1, -b) == NO
        assert outcome(-b - eps, 0.0) == OPEN
    assert outcome(*beyond) == YES
    assert outcome(*short) == NO
    assert outcome(b - eps, b + eps) == OPEN


def influence(claim, test, values):
    """Return the keys that move what an inequality is about."""
    before = test.judge(seeds(values, 0.0))[0]
    return [
        key
        for key in values
        if not key.startswith(("pairs/", "n/"))
        and test.judge(seeds(values | {key: values[key] * 1.1 + 0.1}, 0.0))[0] != before
    ]


def pushed(values, keys, amount, alternate=False, n=3):
    return [
        Measurement(
            values=values | {k: max(values[k] + amount * (-1) ** (alternate * seed), 0.0)
                             if k.startswith(("error/", "gained/", "lost/", "wins", "losses"))
                             else values[k] + amount * (-1) ** (alternate * seed) for k in keys},
            seed=seed,
        )
        for seed in range(n)
    ]  # fmt: skip


AMOUNTS = [sign * 10.0**power * m for power in range(-2, 5) for m in (1, 3) for sign in (1, -1)]
BY_COUNTS = {18, 31, 32}
"""Shares of counts, which cannot be pushed by adding to any single number: cases below."""


@pytest.mark.parametrize(("claim_id", "number"), [i for i in INEQUALITIES if i[0] not in BY_COUNTS])
def test_the_numbers_that_are_measured_push_every_inequality_over_its_bound(claim_id, number):
    claim, values = CLAIMS[claim_id], GOOD[claim_id]
    test = claim.tests[number]
    keys = influence(claim, test, values)
    assert keys
    alone = replace(claim, tests=(test,), shown=(), proviso=None)

    def reached(wanted, **how):
        missing = set(wanted)
        for key in keys:
            for amount in AMOUNTS:
                try:
                    rows = pushed(values, [key], amount, n=max(3, claim.min_seeds), **how)
                    missing.discard(alone.verdict(rows).outcome)
                except (ValueError, ZeroDivisionError):  # a rate below 0, a rise of 0
                    continue
                if not missing:
                    return True
        return False

    assert reached({YES, NO})
    assert claim_id in (10, 19) or reached({OPEN}, alternate=True)  # these pool all seeds


# What one inequality alone decides is pushed over its bound above; here is the rest.
CASES = [
    (2, {"final_rate/with": 0.2}, NO),
    (2, {"spikes/with": 0.0, "spikes/without": 0.0, "exact": ("final_rate", "spikes")}, CANNOT),
    (2, {"spikes/with": 0.0, "spikes/without": 0.0, "final_rate/with": 0.5,
         "exact": ("final_rate", "spikes")}, NO),
    (3, {"unk": 1}, NO),
    (3, {"round_trip_failures": 1}, NO),
    (3, {"long_numbers/split": 2}, NO),
    (3, {"long_numbers/joined": 0}, CANNOT),
    (3, {"long_numbers/joined": 0, "unk": 1}, NO),
    (4, {"near/short": 0.5, "near/long": 1.24}, NO),  # a jump everywhere
    (4, {"near/short": 0.2}, CANNOT),
    (5, {"gqa": 1.8, "mqa": 1.9}, NO),  # gqa is worse than mha
    (5, {"parameters/gqa": 800_000}, OPEN),
    (6, {"measured/70B mqa": 1.0}, NO),
    (6, {"ratio/recipe": 1.01}, NO),
    (6, {"ratio/70B": 8.08}, NO),
    (6, {"ratio/70B": 4.0, "heads/70B": 4.0}, NO),  # another ratio than the paper's
    (7, {"noise": 50}, YES),
    (7, {"max_batch/gqa": 64}, NO),
    (7, {"tokens_per_s/gqa/64": 11000, "tokens_per_s/gqa/256": 12000}, NO),
    (7, {"tokens_per_s/gqa/1": 900, "noise": 50}, NO),
    (7, {"tokens_per_s/gqa/64": 14990, "tokens_per_s/gqa/256": 15010, "noise": 100}, OPEN),
    (8, {"help/few_clean_longer": 0.5, "help/few_clean": 0.5}, NO),
    (8, {"safety/few_clean": 0.1}, YES),  # shown, not judged
    (10, compared(sft=(10, 70, 100)), NO),  # clearly worse than the demonstrations
    (10, compared(sft=(120, 50, 10)), NO),  # clearly better: not what was predicted
    (10, compared(sft=(30, 85, 65)), OPEN),  # about 0.4: at the margin
    (10, compared(base=(20, 60, 100)), NO),  # the base model rivals them too
    (11, graded((0.52, 0.53, 0.54, 0.55)), NO),  # in order, but hardly rising
    (11, graded((0.54, 0.5, 0.45, 0.4)), NO),  # falling
    (11, {f"accuracy/safety/{TOP}": 0.69}, OPEN),  # rising, yet never in order
    (11, graded((0.7, 0.75, 0.8, 0.9)), NO),  # ties are no ties
    (12, margins((20, 60), (300, 200)), NO),
    (12, margins((60, 20), (200, 300)), NO),
    (12, margins((8, 6), (250, 245)), OPEN),  # few pairs differ: fine enough, but open
    (12, margins((140, 135), (250, 245)), CANNOT),  # many differ: too coarse
    (13, poles((0.02, 0.02), (0.03, 0.03), (0.035, 0.04)), NO),  # hardly
    (13, poles((0.02, 0.02), (0.05, 0.05), (0.01, 0.4)), NO),  # one end only
    (13, poles((0.05, 0.05), (0.02, 0.02), (0.2, 0.3)), NO),  # the small one less
    (14, auxiliary((0.95, 0.8)), NO),  # all is called unsafe
    *((15, won(name, 200, 300), NO) for name in TWO),
    (15, won(TWO[2], 205, 200), OPEN),
    *((16, won(name, 200, 300), NO) for name in SCALE),
    *((16, won(name, 205, 200), OPEN) for name in SCALE),
    (18, drift(0.6, 0.75), NO),  # better on what it has not seen
    (18, drift(ceilings=(0.8, 0.55)), NO),  # only the pairs got harder
    (18, drift(refreshed=(20, 90)), NO),  # the refresh harms
    (18, drift(after=0.73), OPEN),
    (18, drift(refreshed=(30, 28)), OPEN),
    (19, counted((0.1, 0.2), (0.2, 0.4)), NO),
    (19, counted((0.2, 0.4), (0.1, 0.2)), NO),
    (19, counted((0.2, 0.2), (0.19, 0.4)), OPEN),
    (19, counted((0.2, 0.2), (0.1, 0.4), n=20), OPEN),
    (21, curve(late=0.7), NO),  # bent the wrong way
    (21, curve(drift=0.6), NO),  # the median goes along
    (21, curve(drift=-0.6), NO),
    (22, heat(best_many=(1.1, 0.8)), YES),  # another one, in whichever direction
    (22, heat(best_many=(0.9, 0.9)), NO),  # the same
    (22, heat(best_one=(0.8, 0.6), best_many=(0.65, 1.1)), NO),  # more want it cooler
    (22, heat(hottest=0.7), NO),  # hot samples are best one by one
    (24, {"gain/other/pool over last": -0.3, "gain/natural": -0.3}, YES),  # shown, not judged
    (25, {"gain/own best over own random": -0.1, "gain/big best over big random": -0.1}, YES),
    (27, priced(**{"gold quality": {"0": 0.05}}), NO),
    (27, priced(**{"gold quality": {"0.2": -0.08}}), NO),
    (27, priced(**{"gold quality": {"0": 0.03, "0.2": -0.02}}), NO),
    (27, priced(kl={"0.05": 7.0}), OPEN),  # not in the order of the prices
    (28, {"precision": 0.0, "recall": 0.0, "noise": 0.0}, NO),  # nothing is called unsafe
    (31, kept(before_1=0.7), NO),
    (31, kept(before_20=0.3), NO),
    (31, kept(GAtt_4=0.85), NO),
    (31, kept(GAtt_20=0.0), NO),
    (31, kept(GAtt_6=115 / 120), YES),  # 0.958, lower bound 0.905
    (31, kept(GAtt_6=114 / 120), OPEN),  # 0.95, lower bound 0.894
    (31, {f"right/{AFTER}/{h}/{t}": 96.0 for h in HISTORIES for t in ASKED}, NO),  # wrong answers
    (32, masked(all_answers=1.0), NO),
    (32, masked(no_mask=1.0), NO),
    (32, masked(reading_B=1.0, short_dialogs=0.0), YES),  # shown, not judged
    (33, held_out(before=0.4), NO),
    (33, held_out(before=0.36), OPEN),
    (33, {f"obeyed/{AFTER}/held-out kinds/20": 0.0}, NO),  # one turn is enough
    (49, {"gain/low tail/V2 over SFT": -0.01, "error/low tail/V2 over SFT": 1e-4}, NO),  # thin
]  # fmt: skip


@pytest.mark.parametrize(("claim_id", "changes", "expected"), CASES)
def test_what_was_not_predicted_is_told_apart(claim_id, changes, expected):
    how = {name: changes[name] for name in ("noise", "exact") if name in changes}
    values = GOOD[claim_id] | {k: v for k, v in changes.items() if k not in how}
    n = 5 if claim_id < 8 else 3
    verdict = CLAIMS[claim_id].verdict(seeds(values, n=n, **how))
    assert verdict.outcome == expected, verdict.reason


GAINS = [
    (claim_id, key.removeprefix("gain/"))
    for claim_id, claim in CLAIMS.items()
    for key in GOOD[claim_id]
    if key.startswith("gain/") and any(
        influence(claim, t, {k: GOOD[claim_id][k] for k in (key, key.replace("gain", "error", 1))})
        for t in claim.tests
        if isinstance(t, Must) and t.of.keywords["name"] == key.removeprefix("gain/")
    )
]  # fmt: skip


@pytest.mark.parametrize(("claim_id", "name"), GAINS)
def test_what_prompts_cannot_tell_is_undecided(claim_id, name):
    values = GOOD[claim_id] | {f"error/{name}": 2.0}
    assert CLAIMS[claim_id].verdict(seeds(values)).outcome == OPEN


@pytest.mark.parametrize("claim_id", sorted({claim_id for claim_id, _ in GAINS}))
def test_what_seeds_disagree_on_is_undecided(claim_id):
    values = GOOD[claim_id] | {k: 1e-6 for k in GOOD[claim_id] if k.startswith("error/")}
    keys = [key for key in values if key.startswith("gain/")]
    rows = [
        Measurement(values=values | {key: values[key] + shift for key in keys}, seed=seed)
        for seed, shift in enumerate((0.9, -0.9, 0.0))
    ]
    assert CLAIMS[claim_id].verdict(rows).outcome == OPEN


# ------------------------------------------------------------- one seed unlike the others


def changed(claim_id, *changes):
    """Return seeds of good numbers, each with changes of its own."""
    return [Measurement(values=GOOD[claim_id] | c, seed=i) for i, c in enumerate(changes)]


@pytest.mark.parametrize(
    ("claim_id", "changes", "expected"),
    [
        (22, [heat(best_many=(0.8, top)) for top in (0.7, 0.9, 1.3)], OPEN),
        (22, [heat(best_many=(0.9, 1.01), shift=s) for s in (0.2, -0.2, 0.0)], YES),
        (31, [{}, {f"obeyed/{AFTER}/own/20": 60.0}, {}], NO),  # every seed must keep it
        (31, [{f"right/{AFTER}/{h}/{t}": share * 120 for h in HISTORIES for t in ASKED}
              for share in (0.95, 0.8, 0.9)], OPEN),
        (32, [{f"obeyed/all answers/neutral/{t}": 60.0 for t in LATER}, {}, {}], OPEN),
    ],
)  # fmt: skip
def test_seeds_that_differ(claim_id, changes, expected):
    assert CLAIMS[claim_id].verdict(changed(claim_id, *changes)).outcome == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient/prompt": 1e-12}, "must be 0 exactly"),
        ({"gradient/answer": 0.0}, "at answers: 0, must not be 0"),
        ({"gradient/unmasked": 0.0}, "without the mask: 0, must not be 0"),
        ({"waste/packed": 0.11}, "empty when packed: 11.0%"),
        ({"waste/alone": 0.3}, "saved by packing: 28.0%"),
    ],
)
def test_claim_9_is_refuted_by_each_number_of_one_seed(changes, reason):
    verdict = CLAIMS[9].verdict(changed(9, {}, changes))
    assert verdict.outcome == NO
    assert reason in verdict.reason


# ------------------------------------------------------------- what is said and shown


def test_verdicts_say_why_and_show_what_is_not_judged():
    coarse = CLAIMS[12].verdict(seeds(margins((140, 135), (250, 245))))
    assert "the paper's gain there 1.6%" in coarse.reason
    unordered = CLAIMS[27].verdict(seeds(priced(kl={"0.05": 7.0})))
    assert "the lower the price" in unordered.reason
    for claim_id, names in {
        8: {"gain, equal epochs", "gain, equal steps", "safety/few_noisy"},
        12: {f"gain/large-small/{LEAST}"},
        21: {"gold/64"},
        24: {"natural", "quality/last/form"},
        25: {"quality/SFT", "learned from/big best"},
        38: {"share/she", "error/languages"},
    }.items():
        assert names <= set(CLAIMS[claim_id].verdict(seeds(GOOD[claim_id])).estimates)


@pytest.mark.parametrize(
    ("claim_id", "name", "value"),
    [
        (19, f"slope/safety/{TOP}", 0.0),
        (19, f"share/helpfulness/5/{LEAST}", 0.4),
        (27, "gold quality gained, beta 0", -0.1),
        (27, "KL, beta 0.8", 0.3),
        (27, "gold quality, beta 0.2 minus 0", 0.12),
        (31, "new instruction after a switch", 0.8),
        (32, f"{AFTER} minus all answers, own history", 0.9),
        (34, f"maximum attention from turn 2 on, {AFTER} minus before", 0.2),
    ],
)
def test_estimates_are_those_of_the_numbers(claim_id, name, value):
    found = CLAIMS[claim_id].verdict(seeds(GOOD[claim_id], 0.0)).estimates[name]
    assert found.value == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_the_slope_of_claim_19_is_a_round():
    slopes = CLAIMS[19].verdict(seeds(GOOD[19])).estimates
    assert slopes[f"slope/helpfulness/{TOP}"].value == pytest.approx(-0.025, abs=1e-3)


def test_pools_of_seeds_are_as_large_as_they_are():
    kept_20 = CLAIMS[31].verdict(seeds(GOOD[31])).estimates[f"{AFTER}, own history, turn 20"]
    assert (kept_20.value, kept_20.n) == (1.0, 360)
    assert kept_20.low == pytest.approx(0.025 ** (1 / 360), rel=1e-6, abs=0)  # by hand: 0 failures
    assert CLAIMS[10].verdict(seeds(GOOD[10])).estimates["win rate/sft"].n == 540
    two = [Measurement(values=compared(sft=s)) for s in ((2, 1, 1), (0, 1, 3))]
    assert sorted(points(two, "sft")) == [0.0] * 4 + [0.5] * 2 + [1.0] * 2


def test_shares_are_pooled_over_dialogs_and_gaps_over_seeds():
    rows = [Measurement(values=obeyed({"a/x": a, "b/x": 0.25}, 40)) for a in (1.0, 0.5, 0.5)]
    assert pooled(rows, "a/x").value == pytest.approx(80 / 120, rel=1e-9, abs=0)
    means = [shares(row, ["a/x", "b/x"]) for row in rows]
    assert means == pytest.approx([0.625, 0.375, 0.375], rel=1e-9, abs=0)
    assert gap(rows, ["a/x"], ["b/x"]).value == pytest.approx(1.25 / 3, rel=1e-9, abs=0)


def test_a_gain_has_the_wider_of_two_intervals():
    def found(values, error):
        rows = [Measurement(values={"gain/x": v, "error/x": error}) for v in values]
        return gain(rows, "x")

    close = found((0.3, 0.3, 0.3), 0.03)
    # three seeds with a standard error of 0.03 each: 1.96 * 0.03 / sqrt(3)
    assert close.high - close.value == pytest.approx(0.03394757, rel=1e-6, abs=0)
    apart = found((0.31, 0.29, 0.3), 1e-9)
    # t(2) = 4.302653 times 0.01 / sqrt(3)
    assert apart.high - apart.value == pytest.approx(0.02484138, rel=1e-6, abs=0)


def test_a_paired_gain_has_the_wider_of_two_intervals():
    spread = 250 / 2500 - (50 / 2500) ** 2
    half = 1.959964 * math.sqrt(spread / 2500)
    alone = paired_gain(seeds(won("a", 150, 100), 0.0, 1), "a")
    assert (alone.value, alone.n) == (0.02, 2500)
    assert alone.high - alone.value == pytest.approx(half, rel=1e-6)
    # seeds that agree add nothing; the pairs of all count
    equal = paired_gain(seeds(won("a", 150, 100), 0.0), "a")
    assert equal.high - equal.value == pytest.approx(half / math.sqrt(3), rel=1e-6)
    # seeds that differ widen it: t(2) = 4.3027
    apart = [Measurement(values=won("a", g, 100), seed=g) for g in (50, 150, 250)]
    unequal = paired_gain(apart, "a")
    assert unequal.value == pytest.approx(0.02, abs=1e-12)
    assert unequal.value - unequal.low == pytest.approx(4.302653 * 0.04 / math.sqrt(3), rel=1e-6)


def test_gains_of_ppo_are_from_the_first_measurement_to_the_last():
    (one,) = seeds(GOOD[27], 0.0, 1)
    assert gained("kl", "0.05", one) == pytest.approx(4.0, rel=1e-12)
    assert gained("proxy", PAID, one) == pytest.approx(0.3, rel=1e-12)
    assert PRICES == ["0", "0.05", "0.2", "0.8"]
    with pytest.raises(KeyError, match="kl"):
        gained("kl", PAID, Measurement(values={}))


def test_widths_are_ordered_as_numbers_and_one_is_too_few():
    assert CLAIMS[1].verdict(seeds(dict(reversed(GOOD[1].items())))).outcome == YES
    with pytest.raises(AssertionError, match="two widths or more"):
        CLAIMS[1].verdict(seeds({"loss/64": 1.9, "slope/64": -0.1}))


def test_one_chain_counts_once():
    for changes in ({}, drift(after=0.73), drift(refreshed=(20, 90))):
        rows = seeds(GOOD[18] | changes)
        assert CLAIMS[18].verdict(rows) == CLAIMS[18].verdict(rows[:1])


def test_shares_and_correlations_that_are_judged_have_bounds():
    for claim_id, name in ((28, "recall"), (28, "precision"), (20, "monotone/safety")):
        key = {name: 1.0}
        rows = changed(claim_id, key, {name: 0.97}, key)
        assert CLAIMS[claim_id].verdict(rows).estimates[name].high == 1.0
    rows = [
        Measurement(values=GOOD[46] | {"gain/fixed": v, "error/fixed": 0.02}) for v in (1, 1, 1)
    ]
    fixed = CLAIMS[46].verdict(rows)
    assert fixed.estimates["fixed"].high == 1.0
    assert "old attacks fixed: 1 [0.9774, 1]" in fixed.reason


# ------------------------------------------------------------- the record


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
        assert found == pytest.approx((known.value, known.low, known.high), rel=0, abs=1e-7)
        assert estimate.n == known.n
    assert again.reason == result.verdict.reason
    less = {key: 0.0 for key in result.measurements[0].values if key.startswith("gained/")}
    if less:  # a model that never gains cannot be confirmed
        worse = [Measurement(values={**m.values, **less}, seed=m.seed) for m in result.measurements]
        assert claim.verdict(worse).outcome != YES
