"""Text cut into pieces, dialogs in rows, and answers beside their marks."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from llama2_lib.figures.theme import THEME, label_axes, new_figure, theme

COLOURS = ("#cfe2f3", "#fce5cd", "#d9ead3", "#ead1dc", "#fff2cc", "#d0e0e3", "#e6d9f0")
LEARNED, READ = "#f5b041", "#eceff1"
WIDTH = 62  # characters on a line, with room for the longest label


@theme()
def piece_boxes(rows: Mapping[str, Sequence[str]], *, title: str = "") -> Figure:
    """Draw one row of boxes per entry of `rows`, with the number of pieces beside its label."""
    laid = {label: _places(pieces) for label, pieces in rows.items()}
    n_lines = sum(places[-1][1] + 2 for places in laid.values())
    figure, axes = new_figure(8.0, 0.5 + 0.36 * n_lines)
    colours: dict[str, str] = {}
    top = 0
    for label, places in laid.items():
        axes.text(0, top + 0.6, f"{label} ({len(rows[label])} pieces)", va="center", size=13)
        for piece, (left, line) in zip(rows[label], places, strict=True):
            colour = colours.setdefault(piece, COLOURS[len(colours) % len(COLOURS)])
            _draw_box(axes, piece, left, top + 1 + line, colour)
        top += places[-1][1] + 2
    axes.set(xlim=(0, WIDTH), ylim=(top, 0), xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)
    return figure


@theme()
def masked_pieces(pieces: Sequence[str], targets: Sequence[bool], *, title: str = "") -> Figure:
    """Draw the pieces of a dialog in reading order: targets filled and bold, the others pale."""
    places = _places(pieces)
    n_lines = places[-1][1] + 1
    figure, axes = new_figure(8.0, 0.9 + 0.36 * n_lines)
    for piece, target, (left, line) in zip(pieces, targets, places, strict=True):
        _draw_box(axes, piece, left, line, LEARNED if target else READ, bold=target)
    axes.set(xlim=(0, WIDTH), ylim=(n_lines, 0), xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)
    _explain(figure, {"learned: a target of the loss": LEARNED, "read only": READ})
    return figure


def _explain(figure: Figure, colours: Mapping[str, str]) -> None:
    """Put a legend of colours under the picture."""
    handles = [Patch(fc=colour, ec="0.4", label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _places(pieces: Sequence[str]) -> list[tuple[float, int]]:
    """Return the left end of each piece and its line."""
    places, left, line = [], 0.0, 0
    for piece in pieces:
        if left and left + _width(piece) > WIDTH:
            left, line = 0.0, line + 1
        places.append((left, line))
        left += _width(piece)
    return places


def _width(piece: str) -> float:
    return len(piece) + 0.8


def _draw_box(
    axes: Axes, piece: str, left: float, top: float, colour: str, *, bold: bool = False
) -> None:
    box = (left, top + 0.1), _width(piece), 0.8
    axes.add_patch(Rectangle(*box, fc=colour, ec="0.4", lw=0.8, clip_on=False))
    axes.text(
        left + _width(piece) / 2, top + 0.52, piece, ha="center", va="center", family="monospace",
        size=THEME["font.size"] - 1, weight="bold" if bold else "normal",
    )  # fmt: skip


PARTS = {"prompt": READ, "answer": LEARNED, "empty": "#37474f"}
LETTERS, LINES = 46, 9  # of one answer


@theme()
def dialog_rows(loss_mask: ArrayLike, document: ArrayLike, *, title: str = "") -> Figure:
    """Draw rows of dialogs, each position as prompt, answer or empty; a line where one begins.

    Both are (rows, positions): `loss_mask` True at answers, `document` the number of the dialog,
    below 0 where there is none.
    """
    target, number = np.asarray(loss_mask, dtype=bool), np.asarray(document)
    part = np.where(number < 0, 2, target.astype(int))
    figure, axes = new_figure(8.0, 1.6 + 0.2 * len(part))
    axes.imshow(
        part, cmap=ListedColormap(list(PARTS.values())), vmin=0, vmax=2,
        aspect="auto", interpolation="nearest",
    )  # fmt: skip
    rows, starts = np.nonzero((number[:, 1:] != number[:, :-1]) & (number[:, 1:] >= 0))
    axes.vlines(starts + 0.5, rows - 0.5, rows + 0.5, color="black", lw=1.2)
    axes.hlines(np.arange(1, len(part)) - 0.5, -0.5, part.shape[1] - 0.5, color="white", lw=2)
    axes.set_yticks(range(0, len(part), 2))
    axes.spines[:].set_visible(False)
    label_axes(axes, "position (tokens)", "row", title)
    _explain(figure, PARTS)
    return figure


class MarkedAnswer(NamedTuple):
    """An answer, and its marks between 0 and 1 by name."""

    text: str
    marks: Mapping[str, float]


@theme()
def marked_answers(request: str, answers: Mapping[str, MarkedAnswer]) -> Figure:
    """Draw what each model said to one request, with a bar for each mark beside it."""
    n = len(answers)
    figure, axes = new_figure(
        9.0, 0.6 + 2.3 * n, rows=n, columns=2, squeeze=False, width_ratios=(3, 2)
    )
    for (who, answer), (left, right) in zip(answers.items(), axes, strict=True):
        left.set_axis_off()
        left.set_title(who, loc="left", weight="bold")
        lines = [
            part
            for line in answer.text.split("\n")
            for part in textwrap.wrap(line, LETTERS) or [""]
        ]
        cut = [*lines[:LINES], "..."] if len(lines) > LINES else lines
        left.text(0, 1, "\n".join(cut), va="top", family="monospace", size=11)
        right.barh(list(answer.marks), list(answer.marks.values()), height=0.6)
        right.set(xlim=(0, 1), xticks=(0, 0.5, 1))
        right.tick_params(labelsize=11)
        right.invert_yaxis()
    axes[-1][1].set_xlabel("mark of the gold judge")
    shown = request if len(request) <= 80 else request[:76] + " ..."
    figure.suptitle(shown, fontsize=14, x=0.01, ha="left")
    return figure
