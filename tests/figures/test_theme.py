"""One look whatever the user's settings are, and `$` as text wherever a text is drawn."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser

from llama2_lib.figures import alignment, course, curves, text
from llama2_lib.figures.theme import THEME, apply_theme, new_figure, theme
from llama2_lib.widgets.explorer import png

DOLLARS = "From $5 to $6", "$$", "$x_1$", r"a\$b", "$"
"""Free text: sums of money, and what matplotlib would read as mathematics."""
BAND = [[0.5] * 5, [0.4] * 5, [0.6] * 5]
NAMED = {name: BAND for name in DOLLARS}
MARKED = {name: text.MarkedAnswer(name, dict.fromkeys(DOLLARS, 0.5)) for name in DOLLARS}
SQUARE = np.full((5, 5), 0.5)
BOXES = [course.Box(name=name, what=name, notebook=name) for name in DOLLARS]
STATES = [["green"] * 5] * 5
TITLE = {"title": DOLLARS[0]}

FIGURES = {
    "pieces": lambda: text.piece_boxes({name: DOLLARS for name in DOLLARS}, **TITLE),
    "masked": lambda: text.masked_pieces(DOLLARS, [True, False] * 2 + [True], **TITLE),
    "rows": lambda: text.dialog_rows([[1, 0]], [[0, 0]], **TITLE),
    "answers": lambda: text.marked_answers(DOLLARS[0], MARKED),
    "chain": lambda: course.chain(BOXES),
    "diagram": lambda: course.diagram(
        {name: course.Node(i, 0, name) for i, name in enumerate(DOLLARS)},
        [(DOLLARS[0], DOLLARS[1], DOLLARS[2])],
    ),
    "lines": lambda: curves.lines({n: ([1, 2], [3, 4]) for n in DOLLARS}, "x", "y", **TITLE),
    "reference": lambda: curves.lines({}, "x", "y", reference=dict.fromkeys(DOLLARS, 1.0)),
    "bars": lambda: curves.bars_with_intervals(
        DOLLARS, *BAND, "y", reference={DOLLARS[2]: 1.0}, **TITLE
    ),
    "heatmap": lambda: curves.heatmap(
        SQUARE, "x", "y", "unit", rows=DOLLARS, columns=DOLLARS, **TITLE
    ),
    "rotations": lambda: curves.rotations([0.0, 1.0], **TITLE),
    "shares": lambda: curves.shares(dict.fromkeys(DOLLARS, [1] * 5), DOLLARS, "model", **TITLE),
    "attention": lambda: curves.attention_map(SQUARE, DOLLARS, **TITLE),
    "grades": lambda: alignment.accuracy_by_grade(DOLLARS, NAMED, **TITLE),
    "histograms": lambda: alignment.score_histograms(
        {name: {n: [0.5] for n in DOLLARS} for name in DOLLARS[:2]}, **TITLE
    ),
    "calibration": lambda: alignment.calibration(
        {name: ([0.1] * 5, *BAND) for name in DOLLARS}, **TITLE
    ),
    "test sets": lambda: alignment.models_by_test_sets(
        DOLLARS, DOLLARS, SQUARE, SQUARE, SQUARE, **TITLE
    ),
    "best of n": lambda: alignment.best_of_n_curves(NAMED, "score", n=range(1, 6), **TITLE),
    "rounds": lambda: alignment.rewards_by_round(DOLLARS, NAMED, "score", **TITLE),
    "frontier": lambda: alignment.frontier({0.1: ([1.0], [0.2], [0.5])}, **TITLE),
    "lights": lambda: alignment.traffic_lights(DOLLARS, DOLLARS, STATES, [DOLLARS] * 5, **TITLE),
    "rewards": lambda: alignment.token_reward_bars(DOLLARS, [0.1] * 5, [0.2] * 5, **TITLE),
}


@pytest.fixture(autouse=True)
def plain_style():
    """Another test in this process may have begun a lesson, which applies the theme for good."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@pytest.fixture
def mathematics(monkeypatch):
    """What matplotlib reads as mathematics while a figure is drawn."""
    read, parse = [], MathTextParser.parse

    def noted(self, words, *rest, **options):
        read.append(words)
        return parse(self, words, *rest, **options)

    monkeypatch.setattr(MathTextParser, "parse", noted)
    return read


@pytest.mark.parametrize("name", FIGURES)
def test_a_dollar_in_a_text_is_drawn_as_a_dollar(name, mathematics):
    FIGURES[name]().savefig(io.BytesIO(), format="png")
    assert [words for words in mathematics if any(part in words for part in DOLLARS[:3])] == []


def test_a_notebooks_own_drawing_is_text_too(mathematics):
    figure, axes = new_figure()
    axes.bar(list(DOLLARS), [1] * 5, label="$5$ or $6$")
    axes.text(0, 1, "$5 + $6")
    axes.legend()
    figure.suptitle("How do I win $5 and $6?")
    figure.savefig(io.BytesIO(), format="png")
    assert mathematics == []


def test_numbers_on_a_logarithmic_axis_and_units_keep_their_powers(mathematics):
    figure = curves.lines({"y": ([1, 1e4], [1, 2])}, "KL (nats$^{1/2}$)", "y", xscale="log")
    figure.savefig(io.BytesIO(), format="png")
    assert "KL (nats$^{1/2}$)" in mathematics
    assert any("10^{3}" in words for words in mathematics)


OWN_SETTINGS = {
    "text.usetex": True,
    "savefig.dpi": 300,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "font.family": "monospace",
    "axes.grid": True,
    "axes.formatter.use_mathtext": True,
    "axes.unicode_minus": False,
    "figure.constrained_layout.w_pad": 1.0,
    "xtick.direction": "in",
    "lines.marker": "x",
    "hist.bins": 3,
    "legend.loc": "center",
}


def drawn():
    figure = curves.lines({"a": ([-1, 2], [3, 4e5]), "b": ([-1, 2], [1, 2])}, "x", "y", title="t")
    return png(figure)


@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_the_users_own_settings_change_no_figure(name):
    plain = drawn()
    with matplotlib.rc_context({name: OWN_SETTINGS[name]}):
        assert drawn() == plain
        apply_theme()
        assert drawn() == plain
        assert matplotlib.rcParams[name] == {**matplotlib.rcParamsDefault, **THEME}[name]


def test_the_way_to_draw_stays_the_users():
    """The back end is no part of the look: changing it would close a notebook's figures."""
    before = matplotlib.rcParams["backend"], matplotlib.rcParams["interactive"]
    with matplotlib.rc_context():
        apply_theme()
        assert (matplotlib.rcParams["backend"], matplotlib.rcParams["interactive"]) == before


def test_the_theme_is_readable_and_ends_with_its_block():
    before = matplotlib.rcParams["font.size"]
    with matplotlib.rc_context({"savefig.dpi": 300}):
        with theme():
            assert matplotlib.rcParams["font.size"] >= 13
            assert matplotlib.rcParams["savefig.dpi"] == "figure"
            assert matplotlib.rcParams["image.cmap"] == "cividis"
            figure, axes = new_figure(6, 3, columns=2)
        assert matplotlib.rcParams["font.size"] == before != 13
        assert matplotlib.rcParams["savefig.dpi"] == 300
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert axes.shape == (2,)
    axis = axes[0].xaxis
    assert axis.label.get_size() == axis.get_major_ticks()[0].label1.get_size() == 13.0
    sizes = [size for name, size in THEME.items() if name.endswith("size") and "tick.m" not in name]
    assert min(size for size in sizes if isinstance(size, int)) >= 13


def test_applying_the_theme_lasts():
    with matplotlib.rc_context():
        apply_theme()
        assert matplotlib.rcParams["image.cmap"] == "cividis"
        colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
        assert colours == matplotlib.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"]
    assert matplotlib.rcParams["image.cmap"] == "viridis"
