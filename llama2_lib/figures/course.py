"""The course in one picture: every stage a box, in the order in which it is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

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
    if not boxes:
        raise ValueError("a chain needs at least one box; got none.")
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
