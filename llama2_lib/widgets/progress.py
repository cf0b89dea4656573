"""Progress that leaves nothing behind in a notebook, so that a cell always has the same output."""

import html
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import ipywidgets
import tqdm
import tqdm.notebook
from IPython import get_ipython
from IPython.display import display

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def bar(items: Iterable[Any] | None = None, total: int | None = None, about: str = "") -> tqdm.tqdm:
    """Return a tqdm with remaining time over `items`, or one to `.update()` by hand.

    In a notebook it is a widget and nothing else: no text is stored. Interrupting is safe.
    """
    if not _in_notebook():
        return tqdm.tqdm(items, total=total, desc=about, leave=False, dynamic_ncols=True)
    progress = _TransientBar(items, total=total, desc=about, leave=False, display=False)
    _show_view(progress.container)
    return progress


def leave_no_bars() -> None:
    """Show each tqdm bar of this notebook, the library's too, as a widget and nothing else."""
    if _in_notebook():
        tqdm.notebook.display = _show_view  # pyrefly: ignore[missing-attribute]


@contextmanager
def passing_text(says: str) -> Iterator[None]:
    """Show a line, and below it what the block writes to stderr; both vanish with the block."""
    if not _in_notebook():
        yield
        return
    view = ipywidgets.HTML()
    _show_view(view)
    try:
        with redirect_stderr(_LastLine(view, says)):
            yield
    finally:
        view.close()


class _TransientBar(tqdm.notebook.tqdm_notebook):
    """tqdm's notebook bar, which also goes away when the loop ends early."""

    def close(self) -> None:
        super().close()
        if not self.disable:
            self.container.close()


class _LastLine(io.TextIOBase):
    """A text stream that shows its last line in a widget, as a terminal shows a bar."""

    def __init__(self, view: ipywidgets.HTML, says: str):
        super().__init__()
        self._view, self._says = view, says
        self.write("")

    def write(self, text: str) -> int:
        last = text.replace("\r", "\n").strip("\n").rpartition("\n")[2].strip()
        if last or not text:
            below = f"<pre>{html.escape(last)}</pre>" if last else ""
            self._view.value = f'<div role="status">{html.escape(self._says)}</div>{below}'
        return len(text)


def _in_notebook() -> bool:
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _show_view(widget: ipywidgets.Widget) -> None:
    # only the widget's own format: a front end draws it, a file or a test sees nothing
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    display({WIDGET_VIEW: view}, raw=True)
