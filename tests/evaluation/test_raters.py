"""Agreement against irrCAC's numbers, raters with their biases, shares of wins, rankings."""

import numpy as np
import pytest

from llama2_lib.evaluation import raters
from llama2_lib.evaluation.raters import agreement, games, majority, ranked, ratings

RATED = np.array(
    [
        [5, 7, 5], [5, 5, 5], [2, 4, 5], [7, 5, 6], [4, 4, 6], [5, 6, 7], [5, 6, 6], [2, 1, 2],
        [3, 1, 2], [3, 2, 5], [3, 1, 2], [7, 7, 7], [7, 7, 7], [1, 1, 1], [4, 3, 3], [6, 7, 7],
        [1, 1, 2], [4, 5, 6], [3, 2, 1], [4, 4, 6], [5, 6, 6], [3, 3, 2], [3, 2, 4], [3, 2, 3],
        [6, 7, 6], [3, 1, 2], [5, 5, 7], [3, 4, 7], [3, 3, 4], [5, 4, 4], [6, 6, 4], [4, 4, 3],
        [4, 3, 5], [7, 7, 6], [6, 4, 5], [6, 3, 7], [3, 6, 4], [6, 5, 3], [4, 5, 3], [7, 7, 6],
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    # what irrCAC 0.4.4 gives for these forty items, three raters and seven categories
    ("weights", "value"),
    [("identity", 0.13602), ("linear", 0.52567), ("quadratic", 0.7556)],
)
def test_agreement_is_that_of_irrcac(weights, value):
    assert agreement(RATED, weights) == pytest.approx(value, abs=6e-6)


def test_agreement_is_one_for_the_same_and_nothing_by_chance():
    assert agreement(np.repeat(np.arange(1, 8)[:, None], 3, axis=1)) == pytest.approx(1, abs=1e-12)
    blind = ratings(np.zeros(20_000), raters.COINS, seed=0)
    assert np.bincount(blind.ravel(), minlength=8)[1:] / blind.size == pytest.approx(
        [1 / 7] * 7, abs=6e-3
    )
    assert abs(agreement(blind, "quadratic")) < 0.02


def test_the_further_apart_the_better_they_agree():
    def at(gap):
        signs = np.random.default_rng(0).choice([-1, 1], 4000)
        return agreement(ratings(gap * signs, seed=1), "quadratic")

    values = [at(gap) for gap in (0.0, 0.1, 0.2, 0.4)]
    assert values == sorted(values)
    assert values[0] < 0.1 < 0.9 < values[-1]


def test_random_order_takes_the_bias_for_what_is_read_first():
    hasty = [raters.RATERS[1]]
    fixed = ratings(np.zeros(20_000), hasty, seed=0, shuffled=False).mean()
    shuffled = ratings(np.zeros(20_000), hasty, seed=0).mean()
    assert fixed > 4.5
    assert shuffled == pytest.approx(4, abs=0.05)
    longer = ratings(np.zeros(20_000), raters.RATERS, seed=0, longer=np.ones(20_000))
    careful, _, fond = longer.mean(axis=0)
    assert fond > 5 > 4.1 > careful


def test_the_majority_and_the_shares_of_wins():
    rated = np.array([[7, 6, 1], [4, 4, 4], [1, 2, 5], [1, 4, 7]])
    assert majority(rated).tolist() == [1.0, 0.5, 0.0, 0.5]
    shares = games(majority(np.tile(rated, (30, 1))))
    assert [shares[name].value for name in ("wins", "ties", "losses", "win rate")] == [
        0.25, 0.5, 0.25, 0.5,
    ]  # fmt: skip
    assert shares["wins"].low < 0.25 < shares["wins"].high


def test_the_best_comes_first_and_bradley_terry_is_the_log_odds():
    rng = np.random.default_rng(0)
    base = rng.random(4000)
    win = np.where(rng.random(4000) < 0.75, 1, -1)  # b beats a in three of four
    scores = ranked({"a": base, "b": base + win})
    assert list(scores) == ["b", "a"]
    odds = (win > 0).mean() / (win < 0).mean()
    assert scores["b"] - scores["a"] == pytest.approx(np.log(odds), abs=0.02)
    assert sum(scores.values()) == pytest.approx(0, abs=1e-9)
    assert list(ranked({"a": base, "b": base + 0.5, "c": base + 0.2}, method="elo")) == [
        "b", "c", "a",
    ]  # fmt: skip
