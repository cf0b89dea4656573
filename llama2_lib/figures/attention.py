"""Pictures of attention: who looks at whom, with the text beside it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from llama2_lib.figures.theme import label_axes, new_figure, theme


@theme()
def attention_map(weights: ArrayLike, pieces: Sequence[str], *, title: str = "") -> Figure:
    """Draw a matrix of attention weights: rows look, columns are looked at.

    Raises:
        ValueError: The matrix is not square, or `pieces` does not fit it.
    """
    matrix = np.asarray(weights, dtype=float)
    if matrix.shape != (len(pieces), len(pieces)):
        raise ValueError(
            f"weights must be a {len(pieces)} x {len(pieces)} matrix, one row a piece; got shape "
            f"{matrix.shape}."
        )
    size = 2.5 + 0.28 * len(pieces)
    figure, axes = new_figure(size + 1.0, size)
    image = axes.imshow(matrix, vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
    axes.set_xticks(range(len(pieces)), pieces, rotation=90)
    axes.set_yticks(range(len(pieces)), pieces)
    label_axes(axes, "token looked at (key)", "token that looks (query)", title)
    return figure
