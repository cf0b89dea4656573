"""The whole ledger in one picture: a tile a claim, by part of the paper and by verdict."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from llama2_lib.figures.theme import new_figure, theme

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
    if unknown := {tile.verdict for tile in tiles} - set(LOOKS):
        raise ValueError(f"verdicts must be among {list(LOOKS)}; got {sorted(unknown)}.")
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
