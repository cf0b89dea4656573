"""What the pictures of transformer and attention hold: the data, not the pixels."""

import numpy as np
import torch

from llama2_lib.figures.curves import attention_map, rotations, shares


def test_each_hand_stands_at_its_angle():
    figure = rotations(
        torch.tensor([0.0, np.pi / 2, -1.0], dtype=torch.float64), title="position 3"
    )
    hands = [axes.lines[1].get_xydata()[1] for axes in figure.axes]
    expected = [[1, 0], [0, 1], [np.cos(1), -np.sin(1)]]
    np.testing.assert_allclose(hands, expected, rtol=0, atol=1e-12)
    assert figure.axes[2].get_title() == "pair 2\n-1.00 rad"


def test_stacked_bars_reach_a_hundred_percent():
    figure = shares({"attention": [1, 3], "feed-forward": [3, 1]}, ["7B", "70B"], "model")
    (axes,) = figure.axes
    lower, upper = axes.containers
    np.testing.assert_allclose([bar.get_height() for bar in lower], [25, 75], rtol=0, atol=1e-9)
    np.testing.assert_allclose([bar.get_y() for bar in upper], [25, 75], rtol=0, atol=1e-9)
    tops = [bar.get_y() + bar.get_height() for bar in upper]
    np.testing.assert_allclose(tops, [100, 100], rtol=0, atol=1e-9)
    assert axes.get_ylabel() == "share of the weights (%)"


def test_an_attention_map_has_queries_down_and_keys_across():
    weights = np.array([[1.0, 0.0], [0.3, 0.7]])
    figure = attention_map(weights, ["a", "b"], title="head 1")
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert "query" in axes.get_ylabel()
    assert "key" in axes.get_xlabel()
