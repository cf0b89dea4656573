"""What the pictures of reward models and policies hold: the data, not the pixels."""

import matplotlib
import numpy as np

from llama2_lib.figures import alignment

EXACT = {"rtol": 0, "atol": 1e-9}


def band(values, below=0.02, above=0.05):
    value = np.asarray(values, dtype=float)
    return value, value - below, value + above


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def intervals(container):
    """Low and high ends of error bars, from the line collection that draws them."""
    return np.array([segment[:, 1] for segment in container[2][0].get_segments()])


GRADES = ["significantly better", "slightly better", "all"]


def by_grade(**options):
    shares = {"helpfulness": band([0.8, 0.6, 0.7]), "safety": band([0.7, 0.55, 0.6])}
    return alignment.accuracy_by_grade(GRADES, shares, **options)


def test_bars_by_grade_stand_side_by_side_with_intervals():
    figure = by_grade(title="two models")
    axes = figure.axes[0]
    first, second = (c for c in axes.containers if type(c).__name__ == "BarContainer")
    np.testing.assert_allclose([bar.get_height() for bar in first], [80, 60, 70], **EXACT)
    np.testing.assert_allclose([bar.get_height() for bar in second], [70, 55, 60], **EXACT)
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in (first, second)]
    np.testing.assert_allclose(np.mean(centres, axis=0), [0, 1, 2], **EXACT)
    assert max(centres[0]) + first[0].get_width() / 2 < centres[1][2]
    ends = [c for c in axes.containers if type(c).__name__ == "ErrorbarContainer"]
    np.testing.assert_allclose(intervals(ends[1]), [[68, 75], [53, 60], [58, 65]], **EXACT)
    assert first[0].get_hatch() != second[0].get_hatch()
    assert legend(figure) == ["chance", "helpfulness", "safety"]
    assert "paper" in legend(by_grade(paper={"safety": [None, 0.5, None]}))


def test_ceiling_and_paper_are_drawn_where_they_are_known():
    paper = {"safety": [0.646, None, 0.562]}
    axes = by_grade(ceiling=[0.9, None, 0.75], paper=paper).axes[0]
    (steps,) = (c for c in axes.collections if c.get_label() == "ceiling of the noise")
    wanted = [[[-0.45, 90], [0.45, 90]], [[1.55, 75], [2.45, 75]]]
    np.testing.assert_allclose(steps.get_segments(), wanted, **EXACT)
    (diamonds,) = (x for x in axes.lines if x.get_marker() == "D" and len(x.get_xdata()))
    np.testing.assert_allclose(diamonds.get_ydata(), [64.6, 56.2], **EXACT)
    np.testing.assert_allclose(diamonds.get_xdata(), [0.2, 2.2], **EXACT)
    assert "ceiling of the noise" in legend(by_grade(ceiling=[None, 0.8, 0.75]))


def test_histograms_hold_shares_of_the_sigmoid():
    raw = {"chosen": [-9.0, 9.0, 9.0, 0.2], "rejected": [-9.0, -9.0]}
    figure = alignment.score_histograms({"none": raw, "large": raw}, bins=4, threshold=0.15)
    assert [axes.get_title() for axes in figure.axes] == ["none", "large"]
    outlines = [p for p in figure.axes[1].patches if not p.get_fill()]
    chosen, rejected = (p.get_data() for p in outlines)
    np.testing.assert_allclose(chosen.values, [25, 0, 25, 50], **EXACT)
    np.testing.assert_allclose(rejected.values, [100, 0, 0, 0], **EXACT)
    np.testing.assert_allclose(chosen.edges, [0, 0.25, 0.5, 0.75, 1], **EXACT)
    assert figure.axes[0].lines[0].get_xdata() == [0.15, 0.15]
    assert legend(figure) == ["chosen", "rejected", "threshold 0.15"]


def test_calibration_has_a_point_a_bin_with_its_interval():
    x = [0.1, 0.4, 0.8]
    points = {"a": (x, *band([0.2, 0.5, 0.7])), "b": (x, *band([0.3] * 3))}
    figure = alignment.calibration(points)
    first, second = figure.axes[0].containers
    np.testing.assert_allclose(first[0].get_xdata(), x, **EXACT)
    np.testing.assert_allclose(first[0].get_ydata(), [0.2, 0.5, 0.7], **EXACT)
    np.testing.assert_allclose(intervals(second), [[0.28, 0.35]] * 3, **EXACT)
    assert first[0].get_marker() != second[0].get_marker()
    assert legend(figure) == ["a", "b"]
    assert not alignment.calibration({"a": points["a"]}).legends


def test_the_map_says_value_interval_and_paper():
    share = np.array([[0.66, 0.58, 0.5], [0.56, 0.71, 0.6]])
    paper = [[0.632, np.nan, np.nan], [np.nan, 0.645, 0.6]]
    names = ["helpful", "safe"], ["H", "S", "both"]
    figure = alignment.models_by_test_sets(*names, *band(share), paper=paper)
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), 100 * share, **EXACT)
    words = {tuple(t.get_position()): t.get_text() for t in axes.texts}
    assert words[0, 0] == "66.0 %\n[64.0, 71.0]\npaper 63.2 %"
    assert words[1, 0] == "58.0 %\n[56.0, 63.0]"
    assert words[2, 1].endswith("paper 60.0 %")
    assert [t.get_text() for t in axes.get_yticklabels()] == names[0]


def test_best_of_n_has_powers_of_two_on_a_log_axis():
    curves = {"max": band(np.arange(12.0)), "median": band(np.zeros(12))}
    axes = alignment.best_of_n_curves(curves, "score (raw)", n=range(1, 13)).axes[0]
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(axes.xaxis.get_major_locator()(), [1, 2, 4, 8], **EXACT)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), np.arange(1, 13), **EXACT)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.arange(12), **EXACT)
    ends = axes.collections[0].get_datalim(axes.transData)
    np.testing.assert_allclose([ends.y0, ends.y1], [-0.02, 11.05], **EXACT)
    some = alignment.best_of_n_curves({"max": band([1.0, 2.0])}, "score", n=[1, 16]).axes[0]
    np.testing.assert_allclose(some.lines[0].get_xdata(), [1, 16], **EXACT)


def test_rounds_are_moved_apart_so_that_intervals_stay_visible():
    series = {"pool": band([0.4, 0.5, 0.6]), "last": band([0.4, 0.45, 0.4])}
    figure = alignment.rewards_by_round(["SFT", "V1", "V2"], series, "gold score")
    axes = figure.axes[0]
    first, second = axes.containers
    np.testing.assert_allclose(first[0].get_ydata(), [0.4, 0.5, 0.6], **EXACT)
    np.testing.assert_allclose(second[0].get_xdata() - first[0].get_xdata(), [0.06] * 3, **EXACT)
    ends = [[0.38, 0.45], [0.43, 0.5], [0.38, 0.45]]
    np.testing.assert_allclose(intervals(second), ends, **EXACT)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["SFT", "V1", "V2"]
    assert legend(figure) == ["pool", "last"]


def test_the_frontier_has_the_root_of_kl_and_a_path_a_beta():
    runs = {
        0.1: ([1.0, 4.0], [0.2, 0.3], [0.5, 0.6]),
        0.0: ([4.0, 9, 25], [0.1, 1, 2], [0.6, 0.5, 0]),
    }
    figure = alignment.frontier(runs, start=(-1.0, 0.4))
    proxy, gold = figure.axes
    np.testing.assert_allclose(proxy.lines[0].get_xdata(), [2, 3, 5], **EXACT)
    np.testing.assert_allclose(proxy.lines[0].get_ydata(), [0.1, 1, 2], **EXACT)
    np.testing.assert_allclose(gold.lines[1].get_ydata(), [0.5, 0.6], **EXACT)
    assert legend(figure) == ["beta 0", "beta 0.1", "before"]
    assert [axes.lines[2].get_xydata().tolist() for axes in figure.axes] == [[[0, -1]], [[0, 0.4]]]
    looks = {(tuple(line.get_color()), line.get_marker()) for line in gold.lines[:2]}
    assert len({c for c, _ in looks}) == len({m for _, m in looks}) == 2
    assert proxy.lines[0].get_linestyle() == "-" != proxy.lines[1].get_linestyle()


def test_a_light_has_a_word_beside_its_colour():
    states = [["green", "amber"], ["red", ""], ["green", "green"]]
    texts = [["2.1", "9.0"], ["0.4", ""], ["1", "1"]]
    figure = alignment.traffic_lights(["KL", "clip", "ratio"], ["right", "broken"], states, texts)
    axes = figure.axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words == ["ok: 2.1", "look: 9.0", "STOP: 0.4", "-", "ok: 1", "ok: 1"]
    colours = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in axes.patches]
    wanted = [alignment.LIGHTS[state][0] for row in states for state in row]
    assert colours == [matplotlib.colors.to_hex(colour) for colour in wanted]
    assert len(set(colours)) == 4
    places = [(round(p.get_x() + 0.5), round(p.get_y() + 0.5)) for p in axes.patches]
    assert places == [tuple(map(int, t.get_position())) for t in axes.texts]


def test_both_parts_of_a_reward_are_stacked_and_summed():
    kl, score = [-0.1, 0.2, -0.3, 0.1], [0.0, 0.0, -0.9, 0.5]
    axes = alignment.token_reward_bars(["a", "b", "c", "d"], kl, score).axes[0]
    below, above = (c for c in axes.containers if type(c).__name__ == "BarContainer")
    np.testing.assert_allclose([bar.get_height() for bar in below], kl, **EXACT)
    np.testing.assert_allclose([bar.get_height() for bar in above], score, **EXACT)
    np.testing.assert_allclose([bar.get_y() for bar in above], [0, 0, -0.3, 0.1], **EXACT)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [-0.1, 0.1, -1.1, -0.5], **EXACT)
    apart = alignment.token_reward_bars(["a"], [-0.1], [0.5]).axes[0].containers[1]
    assert apart[0].get_y() == 0
