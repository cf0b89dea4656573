"""What no figure can show is refused, and the message says why."""

from functools import partial

import numpy as np
import pytest

from llama2_lib.figures import alignment, bars_with_intervals
from llama2_lib.figures.curves import attention_map, rotations, shares

TWO, TWISTED = ([0.5, 0.6], [0.4, 0.5], [0.6, 0.7]), ([0.5, 0.6], [0.7, 0.7], [0.8, 0.8])
GRADES, SETS = ["clear", "all"], (["helpful", "safe"], ["H", "S", "both"])
MATRIX = np.full((2, 3), 0.5)


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (alignment.accuracy_by_grade, (["a"], {"m": TWO}), r"'m' .*a grade.*got shape \(2,\)"),
        (alignment.accuracy_by_grade, (GRADES, {"m": TWISTED}), r"'m': .*must lie in low\.\.high"),
        (alignment.calibration, ({"a": ([0.1], *TWO)},), r"a point.*got shape \(2,\)"),
        (alignment.accuracy_by_grade, (GRADES, {"m": TWO[:2]}), r"'m' must be .*; got 2 rows"),
        (rotations, ([],), r"angles must be a list of numbers.*got shape \(0,\)"),
        (alignment.models_by_test_sets, (*SETS, MATRIX, MATRIX.T, MATRIX), r"\(2, 3\); .*\(3, 2\)"),
        (alignment.models_by_test_sets, (*SETS, MATRIX, MATRIX + 0.1, MATRIX), "must lie in low"),
        (alignment.rewards_by_round, (["SFT"], {"m": TWO}, "score"), "one number a round"),
        (alignment.frontier, ({0.3: ([-0.5], [0.0], [0.0])},), r"beta 0\.3: KL .* got -0\.5"),
        (alignment.token_reward_bars, (["a"], [0.1, 0.2], [0.3]), r"one number a token.*\(1,\)"),
        (bars_with_intervals, (GRADES, *TWISTED, "rate"), r"must lie in low\.\.high"),
        (bars_with_intervals, ([*GRADES, "c"], *TWO, "rate"), "one number a label"),
        (rotations, ([[1.0, 2.0]],), "one a pair"),
        (shares, ({"attention": [1, 3, 4]}, ["7B", "70B"], "model"), "needs 2 numbers"),
        (shares, ({"attention": [1, -3]}, ["7B", "70B"], "model"), "at least 0"),
        (attention_map, (np.eye(2), ["a", "b", "c"]), r"shape \(3, 3\); got shape \(2, 2\)"),
        (partial(alignment.accuracy_by_grade, paper={"n": [1]}), (GRADES, {"m": TWO}), "may name"),
        (partial(alignment.models_by_test_sets, paper=MATRIX.T), (*SETS, *[MATRIX] * 3), "paper"),
        (partial(alignment.best_of_n_curves, n=[1]), ({"m": TWO}, "score"), "a number of samples"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)
