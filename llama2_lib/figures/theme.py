"""The one look of all figures: safe colours, large letters, a white ground."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

THEME: dict[str, Any] = {
    **matplotlib.style.library["petroff10"],
    "image.cmap": "cividis",
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
    "legend.fontsize": 13,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # white, not transparent: readable on a dark JupyterLab too
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100,
}


@contextmanager
def theme() -> Iterator[None]:
    """Draw in the course's style; also a decorator (`@theme()`) for a function that draws."""
    with matplotlib.rc_context(THEME):
        yield


def apply_theme() -> None:
    """Set the course's style for the rest of the process; the first cell of a notebook does."""
    matplotlib.rcParams.update(THEME)


@theme()
def new_figure(
    width: float = 7.0, height: float = 4.0, *, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, Any]:
    """Return `(figure, axes)` like `pyplot.subplots`, sizes in inches, but known to nobody else.

    pyplot keeps every figure it made until it is closed; a slider would leak one per move.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **subplots)


def label_axes(axes: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Name both axes, with units.

    Raises:
        ValueError: A label is empty.
    """
    if not (xlabel.strip() and ylabel.strip()):
        raise ValueError(
            f"both axes need a label with its unit; got xlabel={xlabel!r}, ylabel={ylabel!r}."
        )
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
