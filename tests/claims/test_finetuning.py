"""Claims 8 to 10, judged on invented measurements: each can be reproduced and refuted."""

import random

import pytest

from llama2_lib.claims import CLAIMS, Measurement, Outcome
from llama2_lib.claims.finetuning import pooled

YES, NO, OPEN = Outcome.REPRODUCED, Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE


def fake(values, noise, n=3):
    source = random.Random(5)
    return [
        Measurement(values={k: v + source.gauss(0, noise) for k, v in values.items()}, seed=seed)
        for seed in range(n)
    ]


DATA = {
    "help/few_clean": 0.7, "help/few_clean_longer": 0.75, "help/few_noisy": 0.6,
    "help/many_noisy": 0.62, "safety/few_clean": 0.8, "safety/few_clean_longer": 0.9,
    "safety/few_noisy": 0.6, "safety/many_noisy": 0.65,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        ({}, 0.005, YES),
        ({"help/few_clean": 0.5}, 0.005, NO),  # behind at equal epochs
        ({"help/few_clean_longer": 0.5}, 0.005, NO),  # behind at equal steps
        ({"help/few_clean_longer": 0.5, "help/few_clean": 0.5}, 0.005, NO),
        ({}, 0.2, OPEN),
        ({"safety/few_clean": 0.1}, 0.005, YES),  # shown, not judged
    ],
)
def test_claim_8(changes, noise, expected):
    verdict = CLAIMS[8].verdict(fake(DATA | changes, noise))
    assert verdict.outcome == expected
    assert {"gain, equal epochs", "gain, equal steps", "safety/few_noisy"} <= set(verdict.estimates)


MASK = {
    "gradient/prompt": 0.0, "gradient/answer": 1e-3, "gradient/unmasked": 5e-4,
    "waste/packed": 0.02, "waste/alone": 0.78,
}  # fmt: skip


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
def test_claim_9_is_refuted_by_each_number(changes, reason):
    assert CLAIMS[9].verdict([Measurement(values=MASK)]).outcome == YES
    verdict = CLAIMS[9].verdict([Measurement(values=MASK), Measurement(values=MASK | changes)])
    assert verdict.outcome == NO
    assert reason in verdict.reason


def counts(sft, base=(0, 1, 179), control=(20, 140, 20)):
    return {
        f"{word}/{who}": float(number)
        for who, numbers in (("sft", sft), ("base", base), ("control", control))
        for word, number in zip(("wins", "ties", "losses"), numbers, strict=True)
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (counts((30, 120, 30)), YES),
        (counts((10, 70, 100)), NO),  # clearly worse than the demonstrations
        (counts((120, 50, 10)), NO),  # clearly better: not what was predicted
        (counts((30, 85, 65)), OPEN),  # about 0.4: at the margin
        (counts((30, 120, 30), base=(20, 60, 100)), NO),  # the base model rivals them too
    ],
)
def test_claim_10(values, expected):
    measurements = [Measurement(values=values, seed=seed) for seed in range(3)]
    verdict = CLAIMS[10].verdict(measurements)
    assert verdict.outcome == expected, verdict.reason
    assert verdict.estimates["win rate/sft"].n == 540


def test_wins_count_one_and_ties_half():
    two = [Measurement(values=counts((2, 1, 1))), Measurement(values=counts((0, 1, 3)))]
    assert sorted(pooled(two, "sft")) == [0.0] * 4 + [0.5] * 2 + [1.0] * 2


def test_claims_are_declared():
    for claim_id in (8, 9, 10):
        declared = CLAIMS[claim_id].declaration()
        assert declared["section"] == "3.1"
        assert all(str(value).strip() for value in declared.values())
        assert CLAIMS[claim_id].measure is not None
