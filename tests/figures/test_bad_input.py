"""What no figure can show is refused, and the message says why."""

from functools import partial

import numpy as np
import pytest

from llama2_lib.figures import alignment, bars_with_intervals, heatmap, lines
from llama2_lib.figures.course import chain
from llama2_lib.figures.curves import attention_map, rotations, shares
from llama2_lib.figures.text import (
    MarkedAnswer,
    dialog_rows,
    marked_answers,
    masked_pieces,
    piece_boxes,
)

TWO, TWISTED = ([0.5, 0.6], [0.4, 0.5], [0.6, 0.7]), ([0.5, 0.6], [0.7, 0.7], [0.8, 0.8])
GRADES, SETS = ["clear", "all"], (["helpful", "safe"], ["H", "S", "both"])
MATRIX = np.full((2, 3), 0.5)
ANSWERS = {"a": MarkedAnswer("x", {"score": 1.0}), "b": MarkedAnswer("x", {"brevity": 1.0})}


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (alignment.accuracy_by_grade, (["a"], {"m": TWO}), r"'m' .*a grade.*got shape \(2,\)"),
        (alignment.accuracy_by_grade, (GRADES, {"m": TWISTED}), r"'m': .*must lie in low\.\.high"),
        (alignment.accuracy_by_grade, (GRADES, {}), "at least one series"),
        (alignment.score_histograms, ({},), "every panel needs scores"),
        (alignment.score_histograms, ({"m": {}},), "every panel needs scores"),
        (alignment.score_histograms, ({"m": {"chosen": []}},), "every panel needs scores"),
        (alignment.calibration, ({"a": ([0.1], *TWO)},), r"a point.*got shape \(2,\)"),
        (alignment.calibration, ({},), "at least one series"),
        (alignment.accuracy_by_grade, (GRADES, {"m": TWO[:2]}), r"'m' must be .*; got 2 rows"),
        (rotations, ([],), r"angles must be a list of numbers.*got shape \(0,\)"),
        (alignment.models_by_test_sets, (*SETS, MATRIX, MATRIX.T, MATRIX), r"\(2, 3\); .*\(3, 2\)"),
        (alignment.models_by_test_sets, (*SETS, MATRIX, MATRIX + 0.1, MATRIX), "must lie in low"),
        (alignment.rewards_by_round, (["SFT"], {"m": TWO}, "score"), "one number a round"),
        (alignment.frontier, ({0.3: ([-0.5], [0.0], [0.0])},), r"beta 0\.3: KL .* got -0\.5"),
        (alignment.frontier, ({0.3: ([0.5], [0.0], [0.0, 1.0])},), "of one length"),
        (alignment.frontier, ({},), "at least one run"),
        (alignment.traffic_lights, (["KL"], ["run"], [["blue"]], [["1"]]), r"got \['blue'\]"),
        (
            alignment.traffic_lights, (["KL"], ["run"], [["green"]], [["1", "2"]]),
            r"texts must be 1 rows of 1; got rows of \[2\]",
        ),
        (alignment.token_reward_bars, (["a"], [0.1, 0.2], [0.3]), r"one number a token.*\(1,\)"),
        (alignment.token_reward_bars, ([], [], []), "at least one token"),
        (lines, ({"a": ([1, 2],)}, "x", "y"), "of one length"),
        (lines, ({"a": ([1, 2], [1, 2, 3])}, "x", "y"), "of one length"),
        (lines, ({"a": ([1], [1], [0])}, "x", "y"), "of one length"),
        (lines, ({"a": ([1], [1])}, "", "y"), "need a label"),
        (bars_with_intervals, (GRADES, *TWISTED, "rate"), r"must lie in low\.\.high"),
        (bars_with_intervals, ([*GRADES, "c"], *TWO, "rate"), "one number a label"),
        (heatmap, ([1.0, 2.0], "key", "query", "weight"), "must be a matrix"),
        (chain, ([],), "at least one box"),
        (piece_boxes, ({"none": []},), "every row needs a piece"),
        (masked_pieces, (["a", "b"], [True]), "2 pieces and 1 marks"),
        (masked_pieces, ([], []), "0 pieces"),
        (dialog_rows, ([0, 1], [0, 0]), r"got \(2,\) and \(2,\)"),
        (dialog_rows, ([[0, 1]], [[0]]), "of one shape"),
        (marked_answers, ("?", ANSWERS), "the same marks for all"),
        (marked_answers, ("?", {}), "at least one answer"),
        (rotations, ([[1.0, 2.0]],), "one a pair"),
        (shares, ({"attention": [1, 3, 4]}, ["7B", "70B"], "model"), "needs 2 numbers"),
        (shares, ({"attention": [1, -3]}, ["7B", "70B"], "model"), "at least 0"),
        (attention_map, (np.eye(2), ["a", "b", "c"]), r"shape \(3, 3\); got shape \(2, 2\)"),
        (partial(alignment.accuracy_by_grade, paper={"n": [1]}), (GRADES, {"m": TWO}), "may name"),
        (partial(alignment.models_by_test_sets, paper=MATRIX.T), (*SETS, *[MATRIX] * 3), "paper"),
        (partial(alignment.best_of_n_curves, n=[1]), ({"m": TWO}, "score"), "a number of samples"),
        (partial(alignment.best_of_n_curves, n=[]), ({}, "score"), "at least one series"),
        (partial(heatmap, columns=["a", "b"]), (MATRIX, "x", "y", "weight"), "3 tick labels"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)
