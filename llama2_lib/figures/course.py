"""The course in two pictures: the stages in the order of training, and the ledger of claims."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

from llama2_lib.figures.theme import new_figure, theme


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """One stage of the chain."""

    name: str
    what: str
    """What comes out of it, in a few words."""
    notebook: str


@theme()
def chain(boxes: Sequence[Box], *, columns: int = 3) -> Figure:
    """Draw the boxes row by row, every second row from right to left, with arrows between them."""
    n_rows = -(-len(boxes) // columns)
    figure, axes = new_figure(3.1 * columns, 1.55 * n_rows)
    rows = [divmod(index, columns) for index in range(len(boxes))]
    places = [(column if row % 2 == 0 else columns - 1 - column, row) for row, column in rows]
    for box, (x, y) in zip(boxes, places, strict=True):
        patch = FancyBboxPatch(
            (x, y), 0.8, 0.66, boxstyle="round,pad=0.02", lw=1.6,
            fc="#d5e6f5", ec="#1b4b82",
        )  # fmt: skip
        axes.add_patch(patch)
        middle = {"ha": "center", "va": "center"}
        axes.text(x + 0.4, y + 0.13, box.name, weight="bold", size=13, **middle)
        axes.text(x + 0.4, y + 0.36, box.what, size=11, **middle)
        axes.text(x + 0.4, y + 0.58, f"notebook {box.notebook}", size=10, **middle)
    for (x, y), (next_x, next_y) in pairwise(places):
        # from edge to edge of two neighbours, so one of both is 0
        right, down = 0.42 * (next_x - x), 0.35 * (next_y - y)
        start = (x + 0.4 + right, y + 0.33 + down)
        end = (next_x + 0.4 - right, next_y + 0.33 - down)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "lw": 1.6, "color": "0.25"})
    axes.set(xlim=(-0.08, columns - 0.1), ylim=(n_rows - 0.2, -0.1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure


# --- the ledger

LOOKS = {
    "reproduced": ("#9fc5e8", ""),
    "not reproduced": ("#f4a582", "xx"),
    "inconclusive": ("#f2f2f2", "//"),
    "cannot show at this scale": ("#ffffff", ".."),
    "not measured": ("#ffffff", ""),
}
"""Colour and pattern of each verdict: who sees no colours reads the pattern."""
ACROSS = 12
"""Tiles in a row."""


class Tile(NamedTuple):
    """One claim."""

    number: int
    part: str
    """The part of the paper that it belongs to: what the rows are called."""
    verdict: str
    current: bool = True
    """Whether it was measured on the runs that this code would train."""


@theme()
def ledger_map(tiles: Sequence[Tile]) -> Figure:
    """Draw every claim as a tile with its number; records of an earlier recipe have pale numbers.

    Parts stand in the order in which they first occur.
    """
    parts = list(dict.fromkeys(tile.part for tile in tiles))
    rows: list[tuple[str, list[Tile]]] = []
    for part in parts:
        own = [tile for tile in tiles if tile.part == part]
        for begin in range(0, len(own), ACROSS):
            rows.append((part if begin == 0 else "", own[begin : begin + ACROSS]))
    figure, axes = new_figure(9.5, 0.62 * len(rows) + 1.0)
    for y, (_, own) in enumerate(rows):
        for x, tile in enumerate(own):
            colour, pattern = LOOKS[tile.verdict]
            box = Rectangle((x, y), 0.9, 0.86, fc=colour, ec="0.35", lw=0.8, hatch=pattern)
            axes.add_patch(box)
            axes.text(
                x + 0.45, y + 0.43, str(tile.number), ha="center", va="center",
                weight="bold" if tile.current else "normal",
                color="black" if tile.current else "0.45",
                bbox={"fc": "white", "ec": "none", "pad": 1.5, "alpha": 0.85},
            )  # fmt: skip
    axes.set(xlim=(0, ACROSS), ylim=(len(rows), 0), xticks=[])
    axes.set_yticks([y + 0.43 for y in range(len(rows))], [part for part, _ in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    counts = {name: sum(tile.verdict == name for tile in tiles) for name in LOOKS}
    handles = [
        Patch(fc=colour, ec="0.35", hatch=pattern, label=f"{name}: {counts[name]}")
        for name, (colour, pattern) in LOOKS.items()
        if counts[name]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
