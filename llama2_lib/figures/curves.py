"""General-purpose figures: curves with bands, bars with intervals, heat maps; and their parts.

At the end stand those of a transformer: turned pairs, shares of a whole, who looks at whom.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from llama2_lib.figures.theme import label_axes, new_figure, theme

DASHES = ("-", "--", "-.", ":")  # a second sign beside colour
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Band = Sequence[ArrayLike]
"""Values, low, high: three arrays of one shape."""


def array_of(values: Any, shape: tuple[int, ...], rule: str) -> np.ndarray:
    """Return values as an array of a shape; `rule` says what they must be."""
    array = np.asarray(values, dtype=float)
    if array.shape != shape:
        raise ValueError(f"{rule}, of shape {shape}; got shape {array.shape}.")
    return array


def band_of(label: str, band: Band, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return values, low ends and high ends, stacked; there must be one number `what`."""
    rule = f"{label} must be (values, low, high), one number {what}"
    if len(band) != 3:
        raise ValueError(f"{rule}; got {len(band)} rows.")
    value, low, high = (array_of(row, shape, rule) for row in band)
    if not ((low <= value) & (value <= high)).all():
        raise ValueError(f"{label}: each value must lie in low..high; check their order.")
    return np.stack([value, low, high])


def draw_intervals(axes: Axes, x: np.ndarray, band: np.ndarray, **style: Any) -> None:
    """Draw values with their intervals as error bars."""
    value, low, high = band
    axes.errorbar(x, value, [value - low, high - value], **style)


def draw_paper(axes: Axes, x: np.ndarray, values: Sequence[float | None], **style: Any) -> None:
    """Draw the paper's values, where there are any, as diamonds."""
    known = [(at, value) for at, value in zip(x, values, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "D", color="black", ms=8, mfc="white", **style)


def draw_references(axes: Axes, reference: Mapping[str, float] | None) -> None:
    """Draw labelled horizontal lines, such as the paper's value or chance."""
    for index, (label, height) in enumerate((reference or {}).items()):
        axes.axhline(height, color="0.35", linestyle=DASHES[(index + 1) % 4], lw=1.5, label=label)


@theme()
def lines(
    series: Mapping[str, Sequence[ArrayLike]], xlabel: str, ylabel: str, *, title: str = "",
    xscale: str = "linear", yscale: str = "linear", reference: Mapping[str, float] | None = None,
    markers: bool = False,
) -> Figure:  # fmt: skip
    """Draw one curve per entry of `series`: `(x, y)`, or `(x, y, low, high)` with a shaded band."""
    figure, axes = new_figure()
    for index, (label, arrays) in enumerate(series.items()):
        columns = [np.asarray(array, dtype=float) for array in arrays]
        x, y, *band = columns
        marker = MARKERS[index % len(MARKERS)] if markers else ""
        (line,) = axes.plot(x, y, DASHES[index % len(DASHES)], marker=marker, label=label)
        if band:
            axes.fill_between(x, band[0], band[1], color=line.get_color(), alpha=0.2, linewidth=0)
    draw_references(axes, reference)
    axes.set(xscale=xscale, yscale=yscale)
    label_axes(axes, xlabel, ylabel, title)
    if len(series) + len(reference or {}) > 1:
        axes.legend()
    return figure


@theme()
def bars_with_intervals(
    labels: Sequence[str], values: ArrayLike, low: ArrayLike, high: ArrayLike, ylabel: str, *,
    xlabel: str = "", title: str = "", paper: Sequence[float | None] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Figure:  # fmt: skip
    """Draw one bar per label with its interval; `paper` adds the paper's value as a diamond."""
    band = band_of("the bars", (values, low, high), (len(labels),), "a label")
    figure, axes = new_figure()
    at = np.arange(len(labels))
    axes.bar(at, band[0], width=0.6, label="measured here")
    draw_intervals(axes, at, band, fmt="none", ecolor="black", capsize=6)
    if paper is not None:
        draw_paper(axes, at, paper, label="paper")
    draw_references(axes, reference)
    axes.set_xticks(at, labels, fontsize="medium" if len(labels) <= 6 else "small")
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if paper is not None or reference:
        axes.legend()
    return figure


@theme()
def heatmap(
    values: ArrayLike, xlabel: str, ylabel: str, unit: str, *, columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None, title: str = "", centre: float | None = None,
    texts: Sequence[Sequence[str]] | None = None,
) -> Figure:  # fmt: skip
    """Draw a matrix, row 0 on top; `centre` makes the map diverge, `texts` stand in its fields.

    Of a matrix of True and False `unit` names both, such as "visible / hidden".
    """
    matrix = np.asarray(values)
    is_mask, matrix = matrix.dtype == bool, matrix.astype(float)
    figure, axes = new_figure()
    style = {} if centre is None else {"norm": CenteredNorm(centre), "cmap": "PuOr"}
    image = axes.imshow(matrix, aspect="auto", interpolation="nearest", **style)
    axes.spines[:].set_visible(False)
    if is_mask:
        colours = (image.cmap(image.norm(value)) for value in (1.0, 0.0))
        keys = [
            Patch(facecolor=c, label=w) for c, w in zip(colours, unit.split(" / "), strict=True)
        ]
        axes.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        figure.colorbar(image, ax=axes, label=unit)
    if columns is not None:
        turn = 90 if len(columns) > 8 else 0
        axes.set_xticks(range(len(columns)), columns, rotation=turn)
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows)
    for y, row in enumerate(texts or []):
        for x, text in enumerate(row):
            dark = sum(image.cmap(image.norm(matrix[y, x]))[:3]) < 1.5
            colour = "white" if dark else "black"
            axes.text(x, y, text, ha="center", va="center", color=colour)
    label_axes(axes, xlabel, ylabel, title)
    return figure


# --- a transformer's parts


@theme()
def rotations(angles: ArrayLike, *, title: str = "") -> Figure:
    """Draw one clock per rotary pair; its hand stands at the pair's angle, in radians."""
    values = np.asarray(angles, dtype=float)  # a tensor's `size` is a method
    values = array_of(
        values, (max(1, values.size),), "angles must be a list of numbers, one a pair"
    )
    figure, axes = new_figure(1.75 * values.size, 2.6, columns=values.size, squeeze=False)
    around = np.linspace(0, 2 * np.pi, 100)
    for pair, (axis, angle) in enumerate(zip(axes[0], values, strict=True)):
        axis.plot(np.cos(around), np.sin(around), color="0.75", lw=1)
        axis.plot([0, np.cos(angle)], [0, np.sin(angle)], lw=3)
        axis.plot(np.cos(angle), np.sin(angle), "o", color="black")
        axis.set_aspect("equal")
        axis.set_axis_off()
        axis.set_title(f"pair {pair}\n{angle:.2f} rad", fontsize=13)
    figure.suptitle(title, fontsize=14)
    return figure


@theme()
def shares(
    parts: Mapping[str, Sequence[float]], columns: Sequence[str], xlabel: str, *, title: str = ""
) -> Figure:
    """Draw one stacked bar per column, each scaled to 100 %."""
    rule = f"each part needs {len(columns)} numbers of at least 0"
    table = array_of([*parts.values()], (len(parts), len(columns)), rule)
    if (table < 0).any():
        raise ValueError(f"{rule}; got {table.min()}.")
    percent = 100 * table / table.sum(axis=0)
    figure, axes = new_figure(8.0, 4.0)
    bottom, colours = np.zeros(len(columns)), colormaps["cividis"](np.linspace(0, 1, len(parts)))
    for part, heights, colour in zip(parts, percent, colours, strict=True):
        axes.bar(columns, heights, bottom=bottom, width=0.6, label=part, color=colour)
        bottom += heights
    label_axes(axes, xlabel, "share of the weights (%)", title)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    return figure


@theme()
def attention_map(weights: ArrayLike, pieces: Sequence[str], *, title: str = "") -> Figure:
    """Draw a matrix of attention weights: rows look, columns are looked at."""
    n = len(pieces)
    matrix = array_of(weights, (n, n), "weights must be a matrix, one row and one column a piece")
    size = 2.5 + 0.28 * n
    figure, axes = new_figure(size + 1.0, size)
    image = axes.imshow(matrix, vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
    axes.set_xticks(range(n), pieces, rotation=90)
    axes.set_yticks(range(n), pieces)
    label_axes(axes, "token looked at (key)", "token that looks (query)", title)
    return figure
