"""Figures of reward models: accuracy by grade and by test set, scores, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.special import expit

from llama2_lib.figures.curves import DASHES, MARKERS, heatmap
from llama2_lib.figures.theme import label_axes, new_figure, theme

Band = Sequence[ArrayLike]
"""Values, low, high: three arrays of one length."""


def bands_of(series: Mapping[str, Band], length: int, what: str) -> dict[str, np.ndarray]:
    """Return each series as an array of three rows.

    Raises:
        ValueError: There is none, a length is wrong, or a value lies outside its interval.
    """
    found = {
        label: [np.asarray(row, dtype=float) for row in rows] for label, rows in series.items()
    }
    if not found:
        raise ValueError("at least one series is needed; got none.")
    for label, rows in found.items():
        if [row.shape for row in rows] != [(length,)] * 3:
            raise ValueError(
                f"{label!r} must be (values, low, high), one number {what}: {length}; got shapes "
                f"{[row.shape for row in rows]}."
            )
        value, low, high = rows
        if not ((low <= value) & (value <= high)).all():
            raise ValueError(f"{label!r}: each value must lie in low..high; check their order.")
    return {label: np.stack(rows) for label, rows in found.items()}


def _sizes(band: np.ndarray) -> np.ndarray:
    """Return how far the interval reaches below and above each value."""
    value, low, high = band
    return np.stack([value - low, high - value])


@theme()
def accuracy_by_grade(
    grades: Sequence[str],
    accuracy: Mapping[str, Band],
    *,
    ceiling: Sequence[float | None] | None = None,
    paper: Mapping[str, Sequence[float | None]] | None = None,
    title: str = "",
) -> Figure:
    """Draw one group of bars a grade, one bar a model, with intervals (paper table 8).

    Args:
        grades: Names of the groups; "all" may be one of them.
        accuracy: For each model (values, low, high), shares between 0 and 1.
        ceiling: What the annotators' noise allows at best, one a grade; drawn as black steps.
        paper: The paper's values of some models, drawn as diamonds.

    Raises:
        ValueError: Lengths differ, or `paper` names a model that `accuracy` has not.
    """
    bands = bands_of(accuracy, len(grades), "a grade")
    strangers = sorted(set(paper or {}) - set(bands))
    if strangers:
        raise ValueError(f"paper may name the models {[*bands]}; got {strangers} as well.")
    figure, axes = new_figure(max(7.0, 1.7 * len(grades)), 4.4)
    at, width = np.arange(len(grades)), 0.8 / len(bands)
    hatches = ("", "//", "..", "xx")
    for index, (label, band) in enumerate(bands.items()):
        x = at + (index - (len(bands) - 1) / 2) * width
        axes.bar(
            x, 100 * band[0], width=0.92 * width, label=label,
            hatch=hatches[index % 4], edgecolor="white",
        )  # fmt: skip
        axes.errorbar(x, 100 * band[0], 100 * _sizes(band), fmt="none", ecolor="black", capsize=5)
        _diamonds(axes, x, (paper or {}).get(label))
    if ceiling is not None:
        known = [(x, 100 * y) for x, y in zip(at, ceiling, strict=True) if y is not None]
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


def _diamonds(axes: Axes, x: np.ndarray, values: Sequence[float | None] | None) -> None:
    """Draw the paper's values, shares, where there are any."""
    known = [
        (a, 100 * b) for a, b in zip(x, values or [None] * len(x), strict=True) if b is not None
    ]
    if known:
        axes.plot(*zip(*known, strict=True), "D", color="black", ms=8, mfc="white", zorder=3)


@theme()
def score_histograms(
    scores: Mapping[str, Mapping[str, ArrayLike]],
    *,
    bins: int = 25,
    threshold: float | None = None,
    title: str = "",
) -> Figure:
    """Draw sigmoid(score) of some kinds of answers, one panel a model (paper figure 27).

    Args:
        scores: For each model and each kind of answer (such as "chosen", "rejected") raw scores.
        bins: Of equal width between 0 and 1.
        threshold: A line at this sigmoid(score), such as 0.15.

    Raises:
        ValueError: There is no model, or a model or kind without a score.
    """
    if not scores or any(
        not kinds or any(np.size(values) == 0 for values in kinds.values())
        for kinds in scores.values()
    ):
        raise ValueError("every panel needs scores; got a figure, model or kind without any.")
    figure, axes = new_figure(
        max(5.0, 3.6 * len(scores)), 3.9, columns=len(scores), squeeze=False, sharey=True
    )
    edges = np.linspace(0, 1, bins + 1)
    for axis, (model, kinds) in zip(axes[0], scores.items(), strict=True):
        for index, (kind, values) in enumerate(kinds.items()):
            shares = expit(np.asarray(values, dtype=float).ravel())
            heights = np.histogram(shares, edges)[0] / shares.size
            dashes = DASHES[index % 4]
            axis.stairs(100 * heights, edges, label=kind, lw=2, linestyle=dashes, color=f"C{index}")
            axis.stairs(100 * heights, edges, fill=True, alpha=0.2, color=f"C{index}")
        if threshold is not None:
            axis.axvline(threshold, color="0.35", lw=1.5, label=f"threshold {threshold:g}")
        axis.set_title(model)
        axis.set_xlim(0, 1)
        axis.set_xlabel("sigmoid(score)")
    axes[0, 0].set_ylabel("answers (%)")
    legend_below(figure, axes[0, 0])
    figure.suptitle(title, fontsize=14)
    return figure


def legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Put the legend under the panels, where it covers nothing; one entry needs none."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


@theme()
def calibration(
    points: Mapping[str, Sequence[ArrayLike]],
    *,
    xlabel: str = "gold score (0 to 1)",
    ylabel: str = "mean sigmoid(score)",
    title: str = "",
) -> Figure:
    """Draw what a model says of answers of each quality, with intervals (paper figure 29).

    Args:
        points: For each model (x, values, low, high): mean gold score of a bin, and the mean
            score there.

    Raises:
        ValueError: There is no model, or its arrays do not fit each other.
    """
    figure, axes = new_figure()
    for index, (label, (x, *band)) in enumerate(points.items()):
        draw_points(axes, index, label, np.asarray(x, dtype=float), band)
    if not points:
        raise ValueError("at least one series is needed; got none.")
    label_axes(axes, xlabel, ylabel, title)
    axes.set_ylim(0, 1)
    legend_below(figure, axes)
    return figure


def draw_points(axes: Axes, index: int, label: str, x: np.ndarray, band: Band) -> None:
    """Draw the series number `index`: marked points with intervals, joined by a line."""
    rows = bands_of({label: band}, len(x), "a point")[label]
    axes.errorbar(
        x, rows[0], _sizes(rows), label=label, capsize=5, ms=8,
        marker=MARKERS[index % len(MARKERS)], linestyle=DASHES[index % len(DASHES)],
    )  # fmt: skip


@theme()
def models_by_test_sets(
    models: Sequence[str],
    test_sets: Sequence[str],
    values: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    paper: ArrayLike | None = None,
    title: str = "",
) -> Figure:
    """Draw the accuracy of each model (row) on each test set (column) as a map (paper table 7).

    Each field says the value, its interval, and the paper's value where given. Shares between 0
    and 1; a paper's value that does not exist is nan.

    Raises:
        ValueError: A matrix is not models x test sets, or a value lies outside its interval.
    """
    named = {"values": values, "low": low, "high": high} | (
        {} if paper is None else {"paper": paper}
    )
    matrices = {name: np.asarray(matrix, dtype=float) for name, matrix in named.items()}
    wanted = (len(models), len(test_sets))
    for name, matrix in matrices.items():
        if matrix.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}; got {matrix.shape}.")
    share, lower, upper = (100 * matrices[name] for name in ("values", "low", "high"))
    if not ((lower <= share) & (share <= upper)).all():
        raise ValueError("each value must lie inside its interval low..high; check their order.")
    figure = heatmap(
        share, "test set", "reward model", "pairs in the right order (%)",
        rows=models, columns=test_sets, title=title,
    )  # fmt: skip
    image = figure.axes[0].images[0]
    for (row, column), value in np.ndenumerate(share):
        text = f"{value:.1f} %\n[{lower[row, column]:.1f}, {upper[row, column]:.1f}]"
        if paper is not None and np.isfinite(matrices["paper"][row, column]):
            text += f"\npaper {100 * matrices['paper'][row, column]:.1f} %"
        dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
        figure.axes[0].text(
            column, row, text, ha="center", va="center", color="white" if dark else "black"
        )
    return figure
