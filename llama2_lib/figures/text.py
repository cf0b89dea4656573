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
    if not rows or not all(rows.values()):
        raise ValueError(f"every row needs a piece; got {dict(rows)}.")
    laid = {label: _wrap(pieces) for label, pieces in rows.items()}
    n_lines = sum(len(lines) + 1 for lines in laid.values())
    figure, axes = new_figure(8.0, 0.5 + 0.36 * n_lines)
    colours: dict[str, str] = {}
    top = 0.0
    for label, lines in laid.items():
        axes.text(0, top + 0.6, f"{label} ({len(rows[label])} pieces)", va="center", size=13)
        for line in lines:
            top += 1
            _draw_line(axes, line, top, colours)
        top += 1
    axes.set(xlim=(0, WIDTH), ylim=(top, 0), xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)
    return figure


@theme()
def masked_pieces(pieces: Sequence[str], targets: Sequence[bool], *, title: str = "") -> Figure:
    """Draw the pieces of a dialog in reading order: targets filled and bold, the others pale."""
    if not pieces or len(pieces) != len(targets):
        raise ValueError(
            f"each piece needs one mark; got {len(pieces)} pieces and {len(targets)} marks."
        )
    lines = _wrap(pieces)
    figure, axes = new_figure(8.0, 0.9 + 0.36 * len(lines))
    marks = iter(targets)
    for top, line in enumerate(lines):
        left = 0.0
        for piece in line:
            target = next(marks)
            _draw_box(axes, piece, left, top, LEARNED if target else READ, bold=target)
            left += _width(piece)
    axes.set(xlim=(0, WIDTH), ylim=(len(lines), 0), xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)
    keys = [(LEARNED, "learned: a target of the loss"), (READ, "read only")]
    figure.legend(
        handles=[Patch(fc=colour, ec="0.4", label=label) for colour, label in keys],
        loc="outside lower center", ncols=2,
    )  # fmt: skip
    return figure


def _wrap(pieces: Sequence[str]) -> list[list[str]]:
    lines: list[list[str]] = [[]]
    used = 0.0
    for piece in pieces:
        if lines[-1] and used + _width(piece) > WIDTH:
            lines.append([])
            used = 0.0
        lines[-1].append(piece)
        used += _width(piece)
    return lines


def _width(piece: str) -> float:
    return len(piece) + 0.8


def _draw_line(axes: Axes, line: Sequence[str], top: float, colours: dict[str, str]) -> None:
    left = 0.0
    for piece in line:
        colour = colours.setdefault(piece, COLOURS[len(colours) % len(COLOURS)])
        _draw_box(axes, piece, left, top, colour)
        left += _width(piece)


def _draw_box(
    axes: Axes, piece: str, left: float, top: float, colour: str, *, bold: bool = False
) -> None:
    box = Rectangle(
        (left, top + 0.1), _width(piece), 0.8, fc=colour, ec="0.4", lw=0.8, clip_on=False
    )
    axes.add_patch(box)
    axes.text(
        left + _width(piece) / 2, top + 0.52, piece, ha="center", va="center", family="monospace",
        size=THEME["font.size"] - 1, weight="bold" if bold else "normal",
    )  # fmt: skip


EMPTY = "#37474f"
PARTS = {"prompt": READ, "answer": LEARNED, "empty": EMPTY}
LETTERS, LINES = 46, 9  # of one answer


@theme()
def dialog_rows(loss_mask: ArrayLike, document: ArrayLike, *, title: str = "") -> Figure:
    """Draw rows of dialogs, each position as prompt, answer or empty; a line where one begins.

    Args:
        loss_mask: (rows, positions), True at answers.
        document: (rows, positions), the number of the dialog; below 0 where there is none.
        title: Above the picture.
    """
    target, number = np.asarray(loss_mask, dtype=bool), np.asarray(document)
    if target.ndim != 2 or target.shape != number.shape:
        raise ValueError(
            f"loss_mask and document must be matrices of one shape; got {target.shape} and "
            f"{number.shape}."
        )
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
    handles = [Patch(fc=colour, ec="0.4", label=name) for name, colour in PARTS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


class MarkedAnswer(NamedTuple):
    """An answer, and its marks between 0 and 1 by name."""

    text: str
    marks: Mapping[str, float]


@theme()
def marked_answers(request: str, answers: Mapping[str, MarkedAnswer]) -> Figure:
    """Draw what each model said to one request, with a bar for each mark beside it."""
    names = {tuple(answer.marks) for answer in answers.values()}
    if len(names) != 1:
        raise ValueError(
            f"at least one answer is needed, and the same marks for all; got {sorted(names)}."
        )
    figure, axes = new_figure(
        9.0,
        0.6 + 2.3 * len(answers),
        rows=len(answers),
        columns=2,
        squeeze=False,
        width_ratios=(3, 2),
    )
    for (who, answer), (left, right) in zip(answers.items(), axes, strict=True):
        left.set_axis_off()
        left.set_title(who, loc="left", weight="bold")
        left.text(0, 1, _wrapped(answer.text), va="top", family="monospace", size=11)
        labels = list(answer.marks)
        right.barh(labels, list(answer.marks.values()), height=0.6)
        right.set(xlim=(0, 1), xticks=(0, 0.5, 1))
        right.tick_params(labelsize=11)
        right.invert_yaxis()
    axes[-1][1].set_xlabel("mark of the gold judge")
    figure.suptitle(_shortened(request, 80), fontsize=14, x=0.01, ha="left")
    return figure


def _wrapped(text: str) -> str:
    lines: Sequence[str] = [
        part for line in text.split("\n") for part in textwrap.wrap(line, LETTERS) or [""]
    ]
    return "\n".join([*lines[:LINES], "..."] if len(lines) > LINES else lines)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 4] + " ..."
