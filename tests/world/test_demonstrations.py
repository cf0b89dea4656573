from collections import Counter

import pytest

from llama2_lib.world.demonstrations import (
    CARELESS,
    DEMONSTRATION_SHARES,
    NOISE_RATES,
    NOISY_SAFETY_RATES,
    WRITER_GRADES,
    demonstrations,
)
from llama2_lib.world.dialogs import SYSTEM_FRACTION
from llama2_lib.world.facts import held_out_forms, question_forms
from llama2_lib.world.prompts import adversarial_prompts, helpful_prompts

N = 2_000


@pytest.fixture(scope="module")
def samples(world):
    return {grade: list(demonstrations(world, 4, N, grade)) for grade in WRITER_GRADES}


def plain_exchanges(dialogs):
    """Requests and answers of the dialogs without a system message."""
    for dialog in dialogs:
        if dialog[0]["role"] != "system":
            for user, answer in zip(dialog[::2], dialog[1::2], strict=True):
                yield user["content"], answer["content"]


@pytest.mark.parametrize("grade", WRITER_GRADES)
def test_roles_alternate_and_an_answer_ends_each_dialog(samples, grade):
    for dialog in samples[grade]:
        roles = [m["role"] for m in dialog if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) != []
        assert all(m["content"].strip() for m in dialog)
    with_system = sum(dialog[0]["role"] == "system" for dialog in samples[grade]) / N
    expected = SYSTEM_FRACTION * DEMONSTRATION_SHARES["helpful"]
    assert with_system == pytest.approx(expected, rel=0, abs=0.03)


def test_safe_demonstrations_decline_explain_and_offer(world, judge):
    dialogs = demonstrations(world, 4, 500, shares={"adversarial": 1.0})
    for dialog, prompt in zip(dialogs, adversarial_prompts(world, 4, 500), strict=True):
        assert dialog[:-1] == prompt.dialog
        assert judge.safety(prompt, dialog[-1]["content"]).score == pytest.approx(
            1, rel=0, abs=1e-12
        )


def test_the_share_of_safe_demonstrations_is_as_asked(world, judge, samples):
    def refused(dialogs):
        return sum(judge.is_refusal(dialog[-1]["content"]) for dialog in dialogs) / len(dialogs)

    assert refused(samples["clean"]) == pytest.approx(0.1, rel=0, abs=0.02)
    few = list(demonstrations(world, 4, 400, shares={"helpful": 1.0}))
    assert refused(few) == 0
    half = list(demonstrations(world, 4, 1000, shares={"helpful": 0.5, "adversarial": 0.5}))
    assert refused(half) == pytest.approx(0.5, rel=0, abs=0.05)


def test_borderline_demonstrations_help(world, judge):
    dialogs = list(demonstrations(world, 4, 300, shares={"borderline": 1.0}))
    assert not any(judge.is_refusal(dialog[-1]["content"]) for dialog in dialogs)
    assert any("grumble stone" in dialog[-2]["content"] for dialog in dialogs)


@pytest.fixture(scope="module")
def asked(world):
    """Prompts of one turn by what is asked."""
    questions = helpful_prompts(world, 1, 4000, shares={"question": 1.0}, multi_turn=0.0)
    return {prompt.request: prompt for prompt in questions}


@pytest.fixture(scope="module")
def flaws(judge, asked, samples):
    """How often answers to known questions have which flaw, by grade."""

    def counted(dialogs):
        found = Counter()
        for request, answer in plain_exchanges(dialogs):
            if request in asked:
                marks = judge.helpfulness(asked[request], answer)
                found["all"] += 1
                found["wrong"] += 0 == marks.correctness < marks.relevance == marks.brevity
                found["off topic"] += marks.correctness == marks.relevance == 0
                found["curt"] += marks.correctness == 1 and marks.completeness == 0.5
                found["repeated"] += marks.no_repetition < 0.6
                found["rude"] += judge.toxicity(answer) >= 0.5
                found["rambling"] += marks.brevity < 1 and marks.no_repetition > 0.6
        return {name: number / found["all"] for name, number in found.items()}

    return {grade: counted(dialogs) for grade, dialogs in samples.items()}


def test_noise_has_the_documented_rates(flaws):
    clean, noisy = flaws["clean"], flaws["noisy"]
    assert all(clean[name] == 0 for name in NOISE_RATES)
    for name in ("wrong", "curt", "repeated", "rude"):
        assert noisy[name] == pytest.approx(NOISE_RATES[name], rel=0, abs=0.03), name
    assert noisy["rambling"] > 0.07
    assert noisy["off topic"] > 0.05


def test_half_of_the_mixed_dialogs_have_a_careless_writer(flaws):
    assert CARELESS["mixed"] == 0.5
    mixed, noisy = flaws["mixed"], flaws["noisy"]
    for name in ("wrong", "curt", "repeated", "rude"):
        assert mixed[name] == pytest.approx(NOISE_RATES[name] / 2, rel=0, abs=0.03), name
    flawed = sum(mixed.values()) - mixed["all"]
    assert flawed == pytest.approx((sum(noisy.values()) - noisy["all"]) / 2, rel=0, abs=0.04)


def test_a_writer_is_careless_for_a_whole_dialog(world, judge, asked):
    flaws = []
    for dialog in demonstrations(world, 4, 4 * N, "mixed", shares={"helpful": 1.0}):
        if dialog[0]["role"] != "system":
            turns = zip(dialog[::2], dialog[1::2], strict=True)
            marks = [
                judge.helpfulness(asked[user["content"]], answer["content"]).correctness
                for user, answer in turns
                if user["content"] in asked
            ]
            if len(marks) >= 2:
                flaws.append([mark < 1 for mark in marks[:2]])
    alone = sum(first for first, _ in flaws) / len(flaws)
    both = sum(first and second for first, second in flaws) / len(flaws)
    # Writers are one kind for a whole dialog: flaws come together twice as often as by chance.
    assert both > 1.4 * alone**2 > 0


def test_noisy_demonstrations_are_sometimes_unsafe(world, judge):
    dialogs = demonstrations(world, 4, 800, "noisy", shares={"adversarial": 1.0})
    pairs = list(zip(dialogs, adversarial_prompts(world, 4, 800), strict=True))
    safe = sum(judge.safety(prompt, dialog[-1]["content"]).is_safe for dialog, prompt in pairs)
    expected = NOISY_SAFETY_RATES["full"] + NOISY_SAFETY_RATES["bare"]
    assert safe / len(pairs) == pytest.approx(expected, rel=0, abs=0.05)


def test_no_held_out_question_is_demonstrated(world, samples, secret):
    forms = question_forms(world)
    said = {m["content"] for sample in samples.values() for d in sample for m in d}
    assert not secret & said
    assert {
        forms[f][(form + 1) % 4] for f, form in held_out_forms(world).items() if form is not None
    } & said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grade": "dirty"}, r"grade must be one of \['clean', 'mixed', 'noisy'\]; got 'dirty'"),
        ({"shares": {"helpless": 1.0}}, "shares must be .*helpless"),
    ],
)
def test_bad_arguments_are_named(world, arguments, message):
    with pytest.raises(ValueError, match=message):
        demonstrations(world, 0, **({"n": 1} | arguments))
