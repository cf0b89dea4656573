"""The one look of all figures: safe colours, large letters, a white ground."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

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
STYLE = ["default", THEME]
"""On top of matplotlib's defaults, so that nobody's matplotlibrc changes the course."""


@contextmanager
def theme() -> Iterator[None]:
    """Draw in the course's style; also a decorator (`@theme()`) for a function that draws."""
    with matplotlib.style.context(STYLE):
        yield


def apply_theme() -> None:
    """Set the course's style for the rest of the process; the first cell of a notebook does."""
    matplotlib.style.use(STYLE)


class Picture(Figure):
    """A figure in the course's style, whose `$` are dollars: its texts come from data.

    Only the labels of axes, which hold units, and numbers on them may contain mathematics.
    """

    def draw(self, renderer: Any) -> None:
        """Draw the figure, wherever it is drawn, in the style in which it was made."""
        with theme():
            for text in self._free_texts():
                text.set_parse_math(False)
            super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save the figure at the style's resolution."""
        with theme():
            super().savefig(fname, **options)

    def _free_texts(self) -> set[Text]:
        axes = [axis for part in self.axes for axis in (part.xaxis, part.yaxis)]
        numbers = [
            isinstance(a.get_major_formatter(), ScalarFormatter | LogFormatter) for a in axes
        ]
        for axis in axes:
            axis.get_ticklabels()  # they come into being when they are asked for
        texts = set(self.findobj(Text))
        for axis, is_number in zip(axes, numbers, strict=True):
            texts -= {axis.label, *(axis.findobj(Text) if is_number else ())}
        return texts


@theme()
def new_figure(
    width: float = 7.0, height: float = 4.0, *, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, Any]:
    """Return `(figure, axes)` like `pyplot.subplots`, sizes in inches, but known to nobody else.

    pyplot keeps every figure it made until it is closed; a slider would leak one per move.
    """
    figure = Picture(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **subplots)


def label_axes(axes: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Name both axes, with units."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)


def legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Put the legend under the panels, where it covers nothing; one entry needs none."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))
