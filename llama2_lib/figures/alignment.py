"""Figures of reward models and of the policies that are trained on them."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike
from scipy.special import expit

from llama2_lib.figures import curves
from llama2_lib.figures.curves import DASHES, MARKERS, Band, band_of, draw_intervals, lines
from llama2_lib.figures.theme import label_axes, legend_below, new_figure, theme


def bands_of(series: Mapping[str, Band], length: int, what: str) -> dict[str, np.ndarray]:
    """Return each series as an array of three rows."""
    return {label: band_of(repr(label), band, (length,), what) for label, band in series.items()}


@theme()
def accuracy_by_grade(
    grades: Sequence[str], accuracy: Mapping[str, Band], *,
    ceiling: Sequence[float | None] | None = None,
    paper: Mapping[str, Sequence[float | None]] | None = None, title: str = "",
) -> Figure:  # fmt: skip
    """Draw one group of bars a grade, one bar a model, with intervals (paper table 8).

    All numbers are shares. `ceiling` is what the annotators' noise allows at best, drawn as black
    steps; `paper` holds the paper's values of some models, drawn as diamonds.
    """
    bands = bands_of(accuracy, len(grades), "a grade")
    paper = paper or {}
    if not paper.keys() <= bands.keys():
        raise ValueError(f"paper may name the models {[*bands]}; got {[*paper]}.")
    figure, axes = new_figure(max(7.0, 1.7 * len(grades)), 4.4)
    at, width = np.arange(len(grades)), 0.8 / len(bands)
    hatches = ("", "//", "..", "xx")
    for index, (label, band) in enumerate(bands.items()):
        x = at + (index - (len(bands) - 1) / 2) * width
        axes.bar(
            x, 100 * band[0], width=0.92 * width, label=label,
            hatch=hatches[index % 4], edgecolor="white",
        )  # fmt: skip
        draw_intervals(axes, x, 100 * band, fmt="none", ecolor="black", capsize=5)
        curves.draw_paper(axes, x, _percent(paper.get(label, [None] * len(x))), zorder=3)
    if ceiling is not None:
        known = [(x, y) for x, y in zip(at, _percent(ceiling), strict=True) if y is not None]
        middle, height = np.array(known).reshape(-1, 2).T
        axes.hlines(height, middle - 0.45, middle + 0.45, "k", lw=2.5, label="ceiling of the noise")
    if paper:
        axes.plot([], [], "D", color="black", mfc="white", ms=8, label="paper")
    axes.axhline(50, color="0.35", linestyle=":", lw=1.5, label="chance")
    axes.set_xticks(at, [grade.replace(" ", "\n", 1) for grade in grades])
    axes.set_ylim(0, 105)
    label_axes(axes, "grade of the pair", "pairs in the right order (%)", title)
    legend_below(figure, axes)
    return figure


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


@theme()
def score_histograms(
    scores: Mapping[str, Mapping[str, ArrayLike]], *, bins: int = 25,
    threshold: float | None = None, title: str = "",
) -> Figure:  # fmt: skip
    """Draw sigmoid(score) of some kinds of answers, one panel a model (paper figure 27).

    `scores` are raw, for each model and each kind of answer, such as "chosen" and "rejected";
    `threshold` is a line at a sigmoid(score), such as 0.15.
    """
    figure, axes = new_figure(
        max(5.0, 3.6 * len(scores)), 3.9, columns=len(scores), squeeze=False, sharey=True
    )
    edges = np.linspace(0, 1, bins + 1)
    for axis, (model, kinds) in zip(axes[0], scores.items(), strict=True):
        for index, (kind, values) in enumerate(kinds.items()):
            shares = expit(np.asarray(values, dtype=float).ravel())
            heights = 100 * np.histogram(shares, edges)[0] / shares.size
            look = {"color": f"C{index}", "linestyle": DASHES[index % 4], "lw": 2}
            axis.stairs(heights, edges, label=kind, **look)
            axis.stairs(heights, edges, fill=True, alpha=0.2, color=f"C{index}")
        if threshold is not None:
            axis.axvline(threshold, color="0.35", lw=1.5, label=f"threshold {threshold:g}")
        axis.set(title=model, xlim=(0, 1), xlabel="sigmoid(score)")
    axes[0, 0].set_ylabel("answers (%)")
    legend_below(figure, axes[0, 0])
    figure.suptitle(title, fontsize=14)
    return figure


@theme()
def calibration(points: Mapping[str, Sequence[ArrayLike]], *, title: str = "") -> Figure:
    """Draw what a model says of answers of each quality, with intervals (paper figure 29).

    `points` are for each model (x, values, low, high): the mean gold score of a bin, and the mean
    score there.
    """
    figure, axes = new_figure()
    for index, (label, (x, *band)) in enumerate(points.items()):
        at = np.asarray(x, dtype=float)
        _draw_points(axes, index, label, at, band_of(repr(label), band, at.shape, "a point"))
    label_axes(axes, "gold score (0 to 1)", "mean sigmoid(score)", title)
    axes.set_ylim(0, 1)
    legend_below(figure, axes)
    return figure


def _draw_points(axes: Axes, index: int, label: str, x: np.ndarray, band: np.ndarray) -> None:
    """Draw the series number `index`: marked points with intervals, joined by a line."""
    marker, dashes = MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]
    draw_intervals(axes, x, band, label=label, capsize=5, ms=8, marker=marker, linestyle=dashes)


@theme()
def models_by_test_sets(
    models: Sequence[str], test_sets: Sequence[str], values: ArrayLike, low: ArrayLike,
    high: ArrayLike, *, paper: ArrayLike | None = None, title: str = "",
) -> Figure:  # fmt: skip
    """Draw the accuracy of each model (row) on each test set (column) as a map (paper table 7).

    Each field says the value, its interval, and the paper's value where given. Shares between 0
    and 1; a paper's value that does not exist is nan.
    """
    shape = (len(models), len(test_sets))
    band = 100 * band_of("the map", (values, low, high), shape, "a model and test set")
    texts = [
        [f"{value:.1f} %\n[{low:.1f}, {high:.1f}]" for value, low, high in zip(*row, strict=True)]
        for row in zip(*band, strict=True)
    ]
    if paper is not None:
        printed = curves.array_of(paper, shape, "paper must be one number a model and test set")
        for row, column in np.argwhere(np.isfinite(printed)):
            texts[row][column] += f"\npaper {100 * printed[row, column]:.1f} %"
    return curves.heatmap(
        band[0], "test set", "reward model", "pairs in the right order (%)",
        rows=models, columns=test_sets, texts=texts, title=title,
    )  # fmt: skip


@theme()
def best_of_n_curves(
    curves: Mapping[str, Band], ylabel: str, *, n: ArrayLike, title: str = ""
) -> Figure:
    """Draw what the best of N samples is worth, N in powers of two on the axis (paper figure 7).

    `curves` are named by what is chosen, such as "max", "median", "gold of the chosen"; `n` are
    the numbers of samples.
    """
    count = np.asarray(n, dtype=float)
    bands = bands_of(curves, count.size, "a number of samples")
    series = {label: (count, *band) for label, band in bands.items()}
    figure = lines(series, "samples per prompt, N", ylabel, title=title, xscale="log")
    axis = figure.axes[0].xaxis
    powers = 2 ** np.arange(0, np.log2(count.max()) + 1e-9)
    axis.set_major_locator(FixedLocator(powers.tolist()))
    axis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axis.set_minor_locator(NullLocator())
    return figure


@theme()
def rewards_by_round(
    rounds: Sequence[str], series: Mapping[str, Band], ylabel: str, *, title: str = ""
) -> Figure:
    """Draw several series over the rounds of rejection sampling, with intervals."""
    bands = bands_of(series, len(rounds), "a round")
    figure, axes = new_figure()
    for index, (label, band) in enumerate(bands.items()):
        apart = 0.06 * (index - (len(bands) - 1) / 2)  # so that intervals do not cover each other
        _draw_points(axes, index, label, np.arange(len(rounds)) + apart, band)
    axes.set_xticks(range(len(rounds)), rounds)
    label_axes(axes, "round", ylabel, title)
    legend_below(figure, axes)
    return figure


@theme()
def frontier(
    runs: Mapping[float, Sequence[ArrayLike]], *, gold_label: str = "gold score (0 to 1)",
    start: tuple[float, float] | None = None, title: str = "",
) -> Figure:  # fmt: skip
    """Draw proxy and gold over the root of KL, one path a beta; both panels share the x axis.

    A path rises in the left panel as long as the policy finds more of what the reward model
    likes. Where it bends down in the right one, that is over-optimisation. `runs` holds for each
    beta (kl, proxy, gold) at some moments of training, KL in nats an answer; `start` proxy and
    gold before training, drawn as a star.
    """
    figure, axes = new_figure(10.0, 4.4, columns=2, sharex=True)
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.92, len(runs)))
    for index, (beta, arrays) in enumerate(sorted(runs.items())):
        kl, *values = (np.asarray(array, dtype=float) for array in arrays)
        if (kl < -1e-6).any():
            raise ValueError(
                f"beta {beta:g}: KL must be at least 0 to have a root; got {kl.min():.3g}. Use the "
                "exact KL or k3, or average k1 over more answers."
            )
        for axis, value in zip(axes, values, strict=True):
            axis.plot(
                np.sqrt(kl.clip(0)), value, DASHES[index % len(DASHES)], color=shades[index],
                label=f"beta {beta:g}", ms=7, marker=MARKERS[index % len(MARKERS)],
            )  # fmt: skip
    labels = ("reward model's score (raw)", gold_label)
    for axis, label, at in zip(axes, labels, start or (None, None), strict=True):
        if at is not None:
            axis.plot(0, at, "*", color="black", ms=15, label="before")
        label_axes(axis, "root of KL from the reference (nats$^{1/2}$)", label)
    legend_below(figure, axes[0], columns=6)
    figure.suptitle(title, fontsize=14)
    return figure


LIGHTS = {
    "green": ("#bfe3c0", "ok"),
    "amber": ("#ffdf9e", "look"),
    "red": ("#f3b0a8", "STOP"),
    "": ("0.93", "-"),
}
"""Ground and word of each state; the word says it without colour too. "" is not measured."""


@theme()
def traffic_lights(
    diagnostics: Sequence[str], runs: Sequence[str], states: Sequence[Sequence[str]],
    texts: Sequence[Sequence[str]], *, title: str = "",
) -> Figure:  # fmt: skip
    """Draw a table of diagnostics (rows) of runs (columns): a colour, a word and a number each.

    `states` are those of `LIGHTS`, one a field, by rows; `texts` say what was measured.
    """
    figure, axes = new_figure(2.6 + 1.9 * len(runs), 1.1 + 0.62 * len(diagnostics))
    for y, (row, words) in enumerate(zip(states, texts, strict=True)):
        for x, (state, text) in enumerate(zip(row, words, strict=True)):
            ground, word = LIGHTS[state]
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=ground, ec="white", lw=3))
            axes.text(x, y, f"{word}: {text}" if text else word, ha="center", va="center")
    axes.set_xticks(range(len(runs)), runs)
    axes.set_yticks(range(len(diagnostics)), diagnostics)
    axes.set(xlim=(-0.5, len(runs) - 0.5), ylim=(len(diagnostics) - 0.5, -0.5))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    return figure


@theme()
def token_reward_bars(
    pieces: Sequence[str], kl_part: ArrayLike, score_part: ArrayLike, *, title: str = ""
) -> Figure:
    """Draw the reward of each token of one answer in its two parts, and their running sum.

    `kl_part` is -beta times the log-ratio; `score_part` the score at the last token, else 0.
    """
    rule = "both parts need one number a token"
    kl, score = (curves.array_of(part, (len(pieces),), rule) for part in (kl_part, score_part))
    figure, axes = new_figure(max(7.0, 1.5 + 0.5 * len(pieces)), 4.4)
    at = np.arange(len(pieces))
    axes.axhline(0, color="black", lw=1)
    # what has one sign is put on top of each other, else on either side of 0
    below = np.where(np.sign(kl) == np.sign(score), kl, 0.0)
    axes.bar(at, kl, width=0.7, label="divergence (-beta log-ratio)")
    axes.bar(at, score, width=0.7, bottom=below, label="score", hatch="//", edgecolor="white")
    axes.plot(at, np.cumsum(kl + score), "k--o", ms=5, lw=1.5, label="running sum")
    axes.set_xticks(at, pieces, rotation=90 if len(pieces) > 8 else 0)
    label_axes(axes, "token", "reward (whitened score units)", title)
    legend_below(figure, axes)
    return figure
