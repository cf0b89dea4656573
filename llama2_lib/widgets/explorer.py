"""A picture with a sentence that says what is to be seen: still, or below sliders.

The sentence is for readers who cannot see the picture, and for the test that compares it.
"""

import base64
import html
import io
import sys
from collections.abc import Callable
from typing import Any

import ipywidgets
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from llama2_lib.figures import theme

DPI = 200
"""Pixels an inch. A figure is shown at half of them, sharp on the screens of today."""
COLOURS = 256
"""Of a stored picture; a drawing has fewer. One that was weighed had 0.37 of the bytes."""
_shown = ""
"""The picture above, which an Explorer that begins with the same one does not store again."""


def png(figure: object) -> str:
    """Return the figure as base64 PNG that depends on the figure only, and forget the figure."""
    if not isinstance(figure, Figure):
        raise TypeError(
            f"a matplotlib Figure must be drawn; got {type(figure).__name__}. Does the drawing "
            "function end with `return figure`?"
        )
    drawn, buffer = io.BytesIO(), io.BytesIO()
    with theme():  # not at the user's resolution
        figure.savefig(drawn, format="png", dpi=DPI)
    picture = Image.open(drawn).convert("RGB")
    # no software version inside: the same figure gives the same bytes
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)  # pyplot would keep it, and show it a second time
    return base64.b64encode(buffer.getvalue()).decode()


def _size(picture: str) -> dict[str, int]:
    """Return at how many pixels of a page a picture is shown."""
    width, height = Image.open(io.BytesIO(base64.b64decode(picture))).size
    return {"width": width // 2, "height": height // 2}


def show(figure: Figure, alt: str) -> None:
    """Display a figure, and below it `alt`, which says in a sentence what is to be seen in it.

    nbval compares the sentence (pixels it cannot), so put the finding there, rounded.
    """
    global _shown
    if not alt.strip():
        raise ValueError("a figure needs a description; got an empty alt. Say what it shows.")
    _shown = png(figure)
    display(
        {"image/png": _shown, "text/plain": "Figure"},
        metadata={"image/png": {"alt": alt, **_size(_shown)}},
        raw=True,
    )
    caption = f"<figure><figcaption>{html.escape(alt)}</figcaption></figure>"
    display({"text/html": caption, "text/plain": alt}, raw=True)


class Explorer(ipywidgets.VBox):
    """Controls above a figure that is drawn anew when one of them changes.

    Without a kernel (GitHub, the web site) the cell shows the first picture, or says that it stands
    above.
    No Output widget inside: what nbval compares is the sentence and the values.
    """

    def __init__(
        self, draw: Callable[..., Figure], alt: str | Callable[..., str], **controls: Any
    ) -> None:
        """`draw(**values)` returns a Figure; `alt` is a format string or function of the values.

        A control is a widget with a value, or ipywidgets' short form: `(0, 7)` gives a slider.
        An error in `draw` or `alt` is raised here; later it is also shown in the caption.
        """
        self._draw, self._alt = draw, alt
        self.controls = {name: _control(name, short) for name, short in controls.items()}
        self.view = ipywidgets.HTML()  # not an Image widget: that one has no alt text
        self.caption = self.picture = ""
        children = [*self.controls.values(), self.view]
        super().__init__(children, layout=ipywidgets.Layout(align_items="flex-start"))
        self._redraw()
        for control in self.controls.values():
            control.observe(self._redraw, "value")

    @property
    def values(self) -> dict[str, Any]:
        """The present value of each control."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values: Any) -> None:
        """Move controls by code, as a test or the next cell does."""
        for name, value in values.items():
            self.controls[name].value = value

    def _redraw(self, _change: Any = None) -> None:
        values = self.values
        try:
            sentence = self._alt(**values) if callable(self._alt) else self._alt.format(**values)
            self.picture, self.caption = png(self._draw(**values)), sentence
        except Exception as error:
            # keep the last picture, say what happened where the learner looks, and still raise
            self.caption = f"No picture for {_spelled(values)}: {type(error).__name__}: {error}"
            self._publish(failed=True)
            raise
        self._publish()

    def _publish(self, *, failed: bool = False) -> None:
        text = html.escape(self.caption)
        width = f"width:{_size(self.picture)['width']}px;" if self.picture else ""
        image = (
            f'<img alt="{text}" style="{width}max-width:100%;opacity:{0.3 if failed else 1}" '
            f'src="data:image/png;base64,{self.picture}">'
        )
        mark = '<strong style="color:#a00000">Error. </strong>' if failed else ""
        self.view.value = (
            f'<figure style="margin:0">{image if self.picture else ""}<figcaption role="status" '
            f'aria-live="polite" style="line-height:1.5">{mark}{text}</figcaption></figure>'
        )

    def __repr__(self) -> str:
        return f"Explorer({_spelled(self.values)}): {self.caption}"

    # pyrefly: ignore[bad-override]
    def _repr_mimebundle_(self, **_options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data = dict(super()._repr_mimebundle_() or {}) | {"text/plain": repr(self)}
        if self.picture == _shown:
            of = f"Explorer({_spelled(self.values)}) of the picture above"
            return data | {"text/plain": f"{of}: run the cell to move its controls."}, {}
        data["image/png"] = self.picture
        return data, {"image/png": {"alt": self.caption, **_size(self.picture)}}


class Stepper(Explorer):
    """An Explorer over the whole numbers `0..last` with a play button."""

    def __init__(
        self, draw: Callable[..., Figure], alt: str | Callable[..., str], *, last: int,
        interval_ms: int = 600, **controls: Any,
    ) -> None:  # fmt: skip
        """`draw` receives the number as `step`, beside the other controls."""
        slider = ipywidgets.IntSlider(0, 0, last)
        super().__init__(draw, alt, step=slider, **controls)
        self.play = ipywidgets.Play(max=last, interval=interval_ms, description="step")
        ipywidgets.link((self.play, "value"), (slider, "value"))
        self.children = (self.play, *self.children)


def _control(name: str, short: Any) -> Any:
    made = ipywidgets.interactive.widget_from_abbrev(short)
    if not isinstance(made, ipywidgets.ValueWidget):
        raise ValueError(
            f"control {name!r} must be a widget with a value or a short form such as (0, 7); "
            f"got {short!r}."
        )
    control: Any = made
    control.description = control.description or name
    if hasattr(control, "continuous_update"):
        control.continuous_update = False  # one drawing per move, not one per pixel
    if hasattr(control, "style"):
        control.style = {"description_width": "initial"}
    return control


def _spelled(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
