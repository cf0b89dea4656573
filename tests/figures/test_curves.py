"""What curves, bars and maps hold: the data, not the pixels."""

import numpy as np

from llama2_lib.figures import bars_with_intervals, heatmap, lines


def test_lines_draws_the_data_the_band_and_the_references():
    x, y, low, high = [1, 2, 4], [3.0, 2.0, 1.5], [2.5, 1.5, 1.0], [3.5, 2.5, 2.0]
    series = {"nano": (x, y, low, high), "small": (x, low)}
    figure = lines(series, "step", "loss (nats)", reference={"ln V": 6.9}, xscale="log")
    (axes,) = figure.axes
    nano, small, reference = axes.lines
    np.testing.assert_array_equal(nano.get_xydata(), np.column_stack([x, y]))
    np.testing.assert_array_equal(small.get_ydata(), low)
    np.testing.assert_array_equal(reference.get_ydata(), [6.9, 6.9])
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(1.0, 2.5), (1.0, 3.5), (4.0, 1.0), (4.0, 2.0)} <= corners
    assert nano.get_color() != small.get_color()
    assert nano.get_linestyle() != small.get_linestyle(), "not by colour alone"
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == (
        "step", "loss (nats)", "log",
    )  # fmt: skip
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["nano", "small", "ln V"]


def test_bars_draw_heights_intervals_and_the_papers_values():
    figure = bars_with_intervals(
        ["SFT", "PPO", "RS"], [0.4, 0.6, 0.5], [0.3, 0.45, 0.5], [0.6, 0.7, 0.55], "win rate",
        paper=[0.5, None, 0.6],
    )  # fmt: skip
    (axes,) = figure.axes
    assert [patch.get_height() for patch in axes.patches] == [0.4, 0.6, 0.5]
    (stems,) = axes.collections
    ends = [segment[:, 1].tolist() for segment in stems.get_segments()]
    np.testing.assert_allclose(ends, [[0.3, 0.6], [0.45, 0.7], [0.5, 0.55]], rtol=0, atol=1e-12)
    diamonds = next(line for line in axes.lines if line.get_label() == "paper")
    np.testing.assert_array_equal(diamonds.get_xydata(), [[0, 0.5], [2, 0.6]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["SFT", "PPO", "RS"]


def test_heatmap_draws_the_matrix_with_row_0_on_top():
    values = np.array([[0.0, -2.0, 1.0], [3.0, 0.5, 0.25]])
    texts = [["0.0", "-2.0", "1.0"], ["3.0", "", "0.25"]]
    names = {"rows": ["a", "b"], "columns": list("xyz")}
    figure = heatmap(values, "key", "query", "weight", centre=0.0, texts=texts, **names)
    axes, colorbar = figure.axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), values)
    assert axes.yaxis_inverted()
    assert (image.norm.vmin, image.norm.vmax) == (-3.0, 3.0)
    assert colorbar.get_ylabel() == "weight"
    written = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert written == {(x, y): texts[y][x] for y in range(2) for x in range(3)}
    assert axes.texts[3].get_color() == "white" != axes.texts[0].get_color()  # on a dark ground


def test_a_mask_has_two_words_and_no_colour_bar():
    mask = np.tril(np.ones((3, 4), dtype=bool))
    figure = heatmap(mask, "key", "query", "visible / hidden")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["visible", "hidden"]
    drawn = axes.images[0].to_rgba(mask.astype(float))
    keys = [patch.get_facecolor() for patch in axes.get_legend().get_patches()]
    assert np.allclose(keys, [drawn[0, 0], drawn[0, 1]])
