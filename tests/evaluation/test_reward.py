"""Measures of a reward model, against counts by hand and sampled truth."""

import numpy as np
import pytest
import torch
from scipy.special import logit

from llama2_lib.evaluation.reward import (
    SCORED_TOGETHER,
    accuracy,
    accuracy_by_grade,
    calibration,
    detection,
    scores,
)
from llama2_lib.model.heads import scalar_model

GRADES = ["better", "slightly better", "better", "slightly better", "better"]
CHOSEN = np.array([2.0, 0.0, 1.0, 3.0, 1.0])
REJECTED = np.array([1.0, 1.0, 1.0, 0.0, 0.0])


def test_accuracy_by_grade_counts_a_tie_half():
    found = accuracy_by_grade(CHOSEN, REJECTED, GRADES)
    assert {grade: (e.value, e.n) for grade, e in found.items()} == {
        "better": (2.5 / 3, 3),
        "slightly better": (0.5, 2),
        "all": (3.5 / 5, 5),
    }
    assert found["all"].low < 0.7 < found["all"].high


def test_equal_scores_are_chance_and_order_decides():
    ties = np.ones(10)
    assert accuracy(ties, ties).value == 0.5
    assert accuracy(CHOSEN, REJECTED).value + accuracy(REJECTED, CHOSEN).value == 1.0


def test_the_interval_narrows_with_the_number_of_pairs():
    source = np.random.default_rng(0)
    widths = []
    for n in (100, 10_000):
        gap = source.normal(0.5, 1.0, n)
        estimate = accuracy(gap, np.zeros(n))
        assert estimate.low < 0.6915 < estimate.high  # Phi(0.5)
        widths.append(estimate.high - estimate.low)
    assert widths[1] < widths[0] / 8


def test_detection_by_hand():
    scores = np.array([logit(p) for p in (0.1, 0.14, 0.16, 0.4, 0.6, 0.9)])
    safe = np.array([False, True, False, False, True, True])
    low, half = detection(scores, safe, 0.15), detection(scores, safe, 0.5)
    assert (low.precision.value, low.recall.value) == (0.5, 1 / 3)
    assert (half.precision.value, half.recall.value) == (0.75, 1.0)
    assert low.auc == half.auc == 7 / 9  # of nine pairs the safe 0.14 loses two
    assert detection(scores, safe, 0.05).precision is None


def test_a_shift_moves_what_the_threshold_finds_and_not_the_ranking():
    source = np.random.default_rng(1)
    safe = source.random(500) < 0.6
    scores = source.normal(2.0 * safe - 1.0, 1.0)
    here, there = detection(scores, safe), detection(scores + 3, safe)
    assert here.auc == there.auc
    assert here.recall.value > 0.8 > 0.2 > there.recall.value


def test_calibration_rises_for_an_informed_model_and_is_flat_for_a_blind_one():
    source = np.random.default_rng(2)
    gold = source.random(1400)
    informed = calibration(logit(0.1 + 0.8 * gold), gold)
    assert len(informed) == 7
    means = [estimate.value for _, estimate in informed]
    assert means == sorted(means)
    for mean_gold, estimate in informed:
        assert abs(estimate.value - (0.1 + 0.8 * mean_gold)) < 1e-9
        assert estimate.n == 200
    blind = [e.value for _, e in calibration(source.normal(size=1400), gold)]
    assert max(blind) - min(blind) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(np.array([]), np.array([])), "n of at least 1"),
        (lambda: accuracy_by_grade(CHOSEN, REJECTED, GRADES[:4]), "got 4 for 5 pairs"),
        (lambda: detection(CHOSEN, np.ones(5, bool)), "got 5 safe of 5"),
        (lambda: detection(CHOSEN, CHOSEN > 1, 1.0), "between 0 and 1; got 1.0"),
        (lambda: calibration(CHOSEN, CHOSEN, bins=3), "need 6 answers or more; got 5"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def scalar(random_model):
    """Vocabulary 53, context 37, fp64, every score another."""
    return scalar_model(random_model(), seed=3).eval()


def ragged(n):
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 38, (n,), generator=source).tolist()
    return [torch.randint(0, 53, (k,), generator=source).tolist() for k in lengths]


def test_scores_stand_in_the_order_given_and_do_not_depend_on_companions(scalar):
    rows = ragged(SCORED_TOGETHER + 7)
    together = scores(scalar, rows)
    alone = np.array([scores(scalar, [row])[0] for row in rows[::5]])
    np.testing.assert_allclose(together[::5], alone, rtol=0, atol=1e-6)
    assert np.diff(np.sort(together)).min() > 1e-5  # so another order would be seen
    with torch.no_grad():
        for row, score in zip(rows[:3], together, strict=False):
            assert abs(scalar(torch.tensor([row]))[0, -1].item() - score) < 1e-6
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_allclose(
        scores(scalar, [rows[i] for i in order]), together[order], rtol=0, atol=1e-6
    )


def test_scoring_leaves_the_model_as_it_was(scalar):
    before = {name: p.clone() for name, p in scalar.state_dict().items()}
    for training in (True, False):
        scalar.train(training)
        scores(scalar, ragged(3))
        assert scalar.training is training
        assert scalar.backbone.training is training
    assert all(p.grad is None for p in scalar.parameters())
    assert all(torch.equal(p, before[name]) for name, p in scalar.state_dict().items())
    assert len(scores(scalar, [])) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], r"1 to 37 tokens to be scored; row 1 has 0"),
        ([5] * 38, r"1 to 37 tokens to be scored; row 1 has 38"),
        ([5, 53], r"ids must lie in 0\.\.\.52; row 1 has 5\.\.\.53.*another tokenizer"),
        ([-1, 5], r"ids must lie in 0\.\.\.52; row 1 has -1\.\.\.5"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused(scalar, row, message):
    assert len(scores(scalar, [[7], [5] * 37, [0, 52]])) == 3
    with pytest.raises(ValueError, match=message):
        scores(scalar, [[7, 8], row, [9]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(scalar, value):
    with torch.no_grad():
        scalar.backbone.tok_embeddings.weight[9] = value
    assert np.isfinite(scores(scalar, [[7, 8], [8]])).all()
    with pytest.raises(ValueError, match=r"scores must be finite; row 1 has nan.*diverge"):
        scores(scalar, [[7, 8], [9, 8], [8]])
