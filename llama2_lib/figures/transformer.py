"""Pictures of a transformer's parts: turned pairs, shares of a whole, who looks at whom."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from llama2_lib.figures.curves import array_of
from llama2_lib.figures.theme import label_axes, new_figure, theme


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
    bottom = np.zeros(len(columns))
    for part, heights in zip(parts, percent, strict=True):
        axes.bar(columns, heights, bottom=bottom, width=0.6, label=part)
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
