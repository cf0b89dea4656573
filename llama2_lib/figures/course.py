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
    places = [_place(index, columns) for index in range(len(boxes))]
    for box, (x, y) in zip(boxes, places, strict=True):
        patch = FancyBboxPatch(
            (x, y), 0.8, 0.66, boxstyle="round,pad=0.02", lw=1.6,
            fc="#d5e6f5", ec="#1b4b82",
        )  # fmt: skip
        axes.add_patch(patch)
        axes.text(x + 0.4, y + 0.13, box.name, ha="center", va="center", weight="bold", size=13)
        axes.text(x + 0.4, y + 0.36, box.what, ha="center", va="center", size=11)
        axes.text(x + 0.4, y + 0.58, f"notebook {box.notebook}", ha="center", va="center", size=10)
    for index, ((x, y), (nx, ny)) in enumerate(pairwise(places)):
        same_row = ny == y
        forward = _row(index, columns) % 2 == 0
        start = (x + (0.82 if forward else -0.02), y + 0.33) if same_row else (x + 0.4, y + 0.68)
        end = (nx + (-0.02 if forward else 0.82), ny + 0.33) if same_row else (nx + 0.4, ny - 0.02)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "lw": 1.6, "color": "0.25"})
    axes.set(xlim=(-0.08, columns - 0.1), ylim=(n_rows - 0.2, -0.1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure


def _row(index: int, columns: int) -> int:
    return index // columns


def _place(index: int, columns: int) -> tuple[float, float]:
    row, column = divmod(index, columns)
    return float(column if row % 2 == 0 else columns - 1 - column), float(row)
