"""Dialogs in rows, and answers beside their marks."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from llama2_lib.figures.pieces import LEARNED, READ
from llama2_lib.figures.theme import label_axes, new_figure, theme

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

    Raises:
        ValueError: The two are not matrices of one shape.
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
    """Draw what each model said to one request, with a bar for each mark beside it.

    Raises:
        ValueError: There is no answer, or they were not marked for the same things.
    """
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
