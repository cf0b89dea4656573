"""A figure with a description: for readers who cannot see it, and for the test that compares it."""

import base64
import io
import sys

from IPython.display import display
from matplotlib.figure import Figure


def png(figure: object) -> str:
    """Return the figure as base64 PNG that depends on the figure only, and forget the figure.

    Raises:
        TypeError: The drawing function returned something else than a Figure.
    """
    if not isinstance(figure, Figure):
        raise TypeError(
            f"a matplotlib Figure must be drawn; got {type(figure).__name__}. Does the drawing "
            "function end with `return figure`?"
        )
    buffer = io.BytesIO()
    # no software version inside: the same figure gives the same bytes
    figure.savefig(buffer, format="png", metadata={"Software": None})
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)  # pyplot would keep it, and show it a second time
    return base64.b64encode(buffer.getvalue()).decode()


def show(figure: Figure, alt: str) -> None:
    """Display a figure; `alt` says in a sentence what is to be seen in it.

    nbval compares the sentence (pixels it cannot), so put the finding there, rounded.

    Raises:
        ValueError: `alt` is empty.
    """
    if not alt.strip():
        raise ValueError("a figure needs a description; got an empty alt. Say what it shows.")
    display(
        {"image/png": png(figure), "text/plain": f"Figure: {alt}"},
        metadata={"image/png": {"alt": alt}},
        raw=True,
    )
