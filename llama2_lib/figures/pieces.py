"""Text cut into pieces: one box a piece, coloured by the piece or by what is learned from it."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from llama2_lib.figures.theme import THEME, new_figure, theme

COLOURS = ("#cfe2f3", "#fce5cd", "#d9ead3", "#ead1dc", "#fff2cc", "#d0e0e3", "#e6d9f0")
LEARNED, READ = "#f5b041", "#eceff1"
WIDTH = 62  # characters on a line, with room for the longest label


@theme()
def piece_boxes(rows: Mapping[str, Sequence[str]], *, title: str = "") -> Figure:
    """Draw one row of boxes per entry of `rows`, with the number of pieces beside its label.

    Raises:
        ValueError: There is no row, or a row has no piece.
    """
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
    """Draw the pieces of a dialog in reading order: targets filled and bold, the others pale.

    Raises:
        ValueError: There is no piece, or not one mark a piece.
    """
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
