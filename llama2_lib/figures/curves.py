"""General-purpose figures: curves with bands, bars with intervals, heat maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from llama2_lib.figures.theme import label_axes, new_figure, theme

DASHES = ("-", "--", "-.", ":")  # a second sign beside colour
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@theme()
def lines(
    series: Mapping[str, Sequence[ArrayLike]],
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
    xscale: str = "linear",
    yscale: str = "linear",
    reference: Mapping[str, float] | None = None,
    markers: bool = False,
) -> Figure:
    """Draw one curve per entry of `series`: `(x, y)`, or `(x, y, low, high)` with a shaded band.

    `reference` draws labelled horizontal lines, such as the paper's value or chance.
    """
    figure, axes = new_figure()
    for index, (label, arrays) in enumerate(series.items()):
        columns = [np.asarray(array, dtype=float) for array in arrays]
        if len(columns) not in (2, 4) or len({column.shape for column in columns}) != 1:
            raise ValueError(
                f"series {label!r} must be (x, y) or (x, y, low, high) of one length; got shapes "
                f"{[column.shape for column in columns]}."
            )
        x, y, *band = columns
        marker = MARKERS[index % len(MARKERS)] if markers else ""
        (line,) = axes.plot(x, y, DASHES[index % len(DASHES)], marker=marker, label=label)
        if band:
            axes.fill_between(x, band[0], band[1], color=line.get_color(), alpha=0.2, linewidth=0)
    for index, (label, value) in enumerate((reference or {}).items()):
        axes.axhline(value, color="0.35", linestyle=DASHES[(index + 1) % 4], lw=1.5, label=label)
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    label_axes(axes, xlabel, ylabel, title)
    if len(series) + len(reference or {}) > 1:
        axes.legend()
    return figure


@theme()
def bars_with_intervals(
    labels: Sequence[str],
    values: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    ylabel: str,
    *,
    xlabel: str = "",
    title: str = "",
    paper: Sequence[float | None] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """Draw one bar per label with its interval; `paper` adds the paper's value as a diamond."""
    value, lower, upper = (np.asarray(array, dtype=float) for array in (values, low, high))
    wanted = (len(labels),)
    if not value.shape == lower.shape == upper.shape == wanted:
        raise ValueError(
            f"labels, values, low and high must have one length; got {len(labels)} labels and "
            f"shapes {value.shape}, {lower.shape}, {upper.shape}."
        )
    if not ((lower <= value) & (value <= upper)).all():
        raise ValueError("each value must lie inside its interval low..high; check their order.")
    figure, axes = new_figure()
    at = np.arange(len(labels))
    axes.bar(at, value, width=0.6, label="measured here")
    axes.errorbar(
        at, value, yerr=[value - lower, upper - value], fmt="none", ecolor="black", capsize=6
    )
    if paper is not None:
        known = [(x, y) for x, y in zip(at, paper, strict=True) if y is not None]
        axes.plot(*zip(*known, strict=True), "D", color="black", ms=8, mfc="white", label="paper")
    for index, (label, height) in enumerate((reference or {}).items()):
        axes.axhline(height, color="0.35", linestyle=DASHES[(index + 1) % 4], lw=1.5, label=label)
    axes.set_xticks(at, labels, fontsize="medium" if len(labels) <= 6 else "small")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    if paper is not None or reference:
        axes.legend()
    return figure


@theme()
def heatmap(
    values: ArrayLike,
    xlabel: str,
    ylabel: str,
    unit: str,
    *,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    title: str = "",
    centre: float | None = None,
    numbers: str = "",
) -> Figure:
    """Draw a matrix, row 0 on top; `centre` makes the map diverge, `numbers` is a format."""
    matrix = np.asarray(values, dtype=float)
    if matrix.ndim != 2:
        raise ValueError(f"values must be a matrix; got shape {matrix.shape}.")
    for ticks, size in ((rows, matrix.shape[0]), (columns, matrix.shape[1])):
        if ticks is not None and len(ticks) != size:
            raise ValueError(f"{size} tick labels are needed; got {len(ticks)}.")
    figure, axes = new_figure()
    style = {} if centre is None else {"norm": CenteredNorm(centre), "cmap": "PuOr"}
    image = axes.imshow(matrix, aspect="auto", interpolation="nearest", **style)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=unit)
    if columns is not None:
        turn = 90 if len(columns) > 8 else 0
        axes.set_xticks(range(len(columns)), columns, rotation=turn)
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows)
    if numbers:
        for (row, column), value in np.ndenumerate(matrix):
            dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
            axes.text(
                column, row, numbers.format(value), ha="center", va="center",
                color="white" if dark else "black",
            )  # fmt: skip
    label_axes(axes, xlabel, ylabel, title)
    return figure
