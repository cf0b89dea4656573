"""Gold marks of answers, improvements over the same prompts, and win rates."""

import numpy as np
import pytest

from llama2_lib.evaluation.preference import Marks, gold_marks, improvement, win_rate
from llama2_lib.world import make_world
from llama2_lib.world.judges import judge_of
from llama2_lib.world.prompts import adversarial_prompts, borderline_prompts, helpful_prompts


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def asked(world):
    """Two sums and three adversarial prompts, mixed."""
    sums = list(helpful_prompts(world, 0, 2, shares={"sum": 1.0}, multi_turn=0.0))
    bad = list(adversarial_prompts(world, 0, 3, multi_turn=0.0))
    return [bad[0], sums[0], bad[1], sums[1], bad[2]]


def said(asked):
    refusal = "I am sorry, but I cannot help with that."
    return [refusal, f"It is {asked[1].task.answer}.", "You lazy goose.", "It is 1234.", ""]


def test_every_answer_is_marked_by_the_worlds_judge(world, asked):
    answers = said(asked)
    marks = gold_marks(world, asked, answers)
    judge = judge_of(world)
    pairs = list(zip(asked, answers, strict=True))
    assert marks.helpfulness.tolist() == [judge.helpfulness(p, a).score for p, a in pairs]
    assert marks.safety.tolist() == [judge.safety(p, a).score for p, a in pairs]
    assert marks.adversarial.tolist() == [True, False, True, False, True]
    assert marks.refuses.tolist() == [True, False, False, False, False]
    assert marks.toxic.tolist() == [False, False, True, False, False]
    assert marks.helpfulness[1] > marks.helpfulness[3]  # the right sum
    assert marks.safety[0] > marks.safety[4] > marks.safety[2]  # declined, nothing, an insult


def test_prompts_are_told_apart_by_what_they_ask_for(world, asked):
    some = [*asked, *borderline_prompts(world, 0, 2)]
    marks = gold_marks(world, some, [*said(asked), "I cannot help with that.", "Gladly!"])
    assert marks.borderline.tolist() == [False] * 5 + [True, True]
    assert marks.helpful.tolist() == [False, True, False, True, False, False, False]
    assert marks.refuses.tolist()[5:] == [True, False]


def test_quality_is_safety_where_it_matters_and_helpfulness_elsewhere(world, asked):
    marks = gold_marks(world, asked, said(asked))
    wanted = [marks.safety[0], marks.helpfulness[1], marks.safety[2], marks.helpfulness[3], 0.5]
    assert marks.quality.tolist() == wanted
    turned = marks._replace(adversarial=~marks.adversarial)
    assert turned.quality.tolist() != wanted


def test_marks_follow_their_prompts(world, asked):
    answers, order = said(asked), [3, 0, 4, 2, 1]
    plain = gold_marks(world, asked, answers)
    moved = gold_marks(world, [asked[i] for i in order], [answers[i] for i in order])
    for name in Marks._fields:
        assert getattr(moved, name).tolist() == getattr(plain, name)[order].tolist()


def test_one_answer_a_prompt(world, asked):
    with pytest.raises(ValueError, match="got 5 prompts and 4 answers"):
        gold_marks(world, asked, said(asked)[:4])


def test_improvement_is_after_less_before_over_prompts():
    before, after = np.array([0.1, 0.5, 0.9, 0.3]), np.array([0.4, 0.5, 0.8, 0.9])
    found = improvement(before, after)
    assert found.value == pytest.approx(0.2, rel=0, abs=1e-12)
    assert found.n == 4
    assert found.low < 0.2 < found.high
    back = improvement(after, before)
    assert back.value == pytest.approx(-0.2, rel=0, abs=1e-12)
    assert improvement(before, before).value == 0.0


def test_pairing_removes_what_prompts_have_in_common():
    source = np.random.default_rng(0)
    easy, gain = source.normal(0, 5, 200), source.normal(0.3, 0.5, 200)
    paired = improvement(easy, easy + gain)
    shuffled = improvement(easy, source.permutation(easy + gain))
    assert paired.low > 0 > shuffled.low
    assert improvement(easy, easy + gain) == paired
    assert improvement(easy, easy + gain, seed=1).low != paired.low


def test_a_win_counts_1_a_tie_one_half():
    ours = np.array([1.0, 0.2, 0.5, 0.5, 0.9])
    theirs = np.array([0.5, 0.3, 0.5, 0.5 + 1e-12, 0.1])
    found = win_rate(ours, theirs)
    assert found.value == (1 + 0 + 0.5 + 0.5 + 1) / 5
    assert found.n == 5
    assert win_rate(theirs, ours).value == pytest.approx(1 - found.value, rel=0, abs=1e-12)
    assert win_rate(ours, ours).value == 0.5
    assert win_rate(ours, theirs, tie=1e-13).value == (1 + 0 + 0.5 + 0 + 1) / 5
    assert win_rate(ours, theirs, tie=0.2).value == (1 + 0.5 + 0.5 + 0.5 + 1) / 5


def test_the_win_rate_reads_the_order_of_scores_and_not_their_size():
    source = np.random.default_rng(0)
    ours, theirs = source.normal(0.3, 1, 300), source.normal(0, 1, 300)
    found = win_rate(ours, theirs)
    assert win_rate(100 * ours, 100 * theirs) == found
    assert found.value == (ours > theirs).mean()
    assert found.low < found.value < found.high
    assert found.low > 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: improvement(np.zeros(3), np.zeros(4)), "got 3 and 4 marks"),
        (lambda: win_rate(np.zeros(3), np.zeros(2)), "got 3 and 2 scores"),
        (lambda: improvement(np.zeros(1), np.ones(1)), "at least 2"),
        (lambda: win_rate(np.zeros(1), np.ones(1)), "at least 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
