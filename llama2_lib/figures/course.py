"""The course in two pictures: the stages in the order of training, and the ledger of claims."""

from collections.abc import Mapping, Sequence
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


class Node(NamedTuple):
    """One box of a diagram."""

    x: float
    y: float
    """Column and row of its middle; the first row is on top."""
    what: str = ""
    kind: str = "data"
    """Of `FILLS`."""


FILLS = {"trained": "#d5e6f5", "frozen": "#e4e4e4", "data": "#ffffff"}
"""What is trained, what is only read, and what is text or numbers."""
EDGE, BOX_WIDTH, BOX_HEIGHT = "#1b4b82", 0.66, 0.66


def chain(boxes: Sequence[Box], *, columns: int = 3) -> Figure:
    """Draw the boxes row by row, every second row from right to left, with arrows between them."""
    rows = [divmod(index, columns) for index in range(len(boxes))]
    nodes = {
        box.name: Node(
            x if y % 2 == 0 else columns - 1 - x,
            y,
            f"{box.what}\nnotebook {box.notebook}",
            "trained",
        )
        for box, (y, x) in zip(boxes, rows, strict=True)
    }
    return diagram(nodes, [(*pair, "") for pair in pairwise(nodes)])


@theme()
def diagram(nodes: Mapping[str, Node], arrows: Sequence[tuple[str, str, str]]) -> Figure:
    """Draw named boxes, and arrows between them (from, to, what passes along).

    Two arrows between the same boxes, there and back, bend apart.
    """
    if unknown := {end for arrow in arrows for end in arrow[:2]} - nodes.keys():
        raise ValueError(f"arrows must join {', '.join(nodes)}; got {', '.join(sorted(unknown))}.")
    width = max(node.x for node in nodes.values()) + 1
    height = max(node.y for node in nodes.values()) + 1
    figure, axes = new_figure(3.5 * width, 1.55 * height)
    patches = {}
    for name, node in nodes.items():
        corner = (node.x - BOX_WIDTH / 2, node.y - BOX_HEIGHT / 2)
        patches[name] = FancyBboxPatch(
            corner, BOX_WIDTH, BOX_HEIGHT, boxstyle="round,pad=0.02", lw=1.6,
            fc=FILLS[node.kind], ec=EDGE,
        )  # fmt: skip
        axes.add_patch(patches[name])
        up = 0.09 * (1 + node.what.count("\n")) * bool(node.what)
        middle = {"x": node.x, "ha": "center", "va": "center", "parse_math": False}
        axes.text(y=node.y - up, s=name, weight="bold", size=12.5, **middle)
        axes.text(y=node.y + 0.1, s=node.what, size=10.5, linespacing=1.35, **middle)
    for begin, end, label in arrows:
        bend = 0.18 if any((b, e) == (end, begin) for b, e, _ in arrows) else 0.0
        (x, y), (to_x, to_y) = nodes[begin][:2], nodes[end][:2]
        axes.annotate(
            "", (to_x, to_y), (x, y),
            arrowprops={
                "arrowstyle": "->", "lw": 1.6, "color": "0.25", "shrinkA": 2, "shrinkB": 2,
                "patchA": patches[begin], "patchB": patches[end],
                "connectionstyle": f"arc3,rad={bend}",
            },
        )  # fmt: skip
        # bent arrows bulge to their right, seen from where they begin; rows grow downwards
        at_x, at_y = (x + to_x + bend * (y - to_y)) / 2, (y + to_y + bend * (to_x - x)) / 2
        beside = y == to_y  # the words stand above an arrow that is too short to be interrupted
        axes.text(
            at_x, at_y - 0.05 * beside, label, size=10, ha="center",
            va="bottom" if beside else "center", parse_math=False,
            bbox=None if beside else {"fc": "white", "ec": "none", "pad": 1.0},
        )  # fmt: skip
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
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
