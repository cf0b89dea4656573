import base64
import io
import sys
import types

import ipywidgets
import matplotlib.pyplot as plt
import pytest
from PIL import Image

from llama2_lib.figures import lines
from llama2_lib.teaching.check import start
from llama2_lib.widgets import Explorer, Stepper, bar, show

ALT = "A line that ends at {top}."


def draw(top):
    if top > 5:
        raise ValueError(f"too <high>: {top}")
    return lines({"y": ([0, 1], [0, top])}, "x (s)", "y (m)")


def test_picture_and_caption_follow_the_slider():
    explorer = Explorer(draw, ALT, top=ipywidgets.IntSlider(2, 0, 7))
    before = explorer.picture, explorer.view.value
    assert base64.b64decode(explorer.picture).startswith(b"\x89PNG")
    explorer.controls["top"].value = 4
    assert explorer.caption == "A line that ends at 4."
    assert repr(explorer) == "Explorer(top=4): A line that ends at 4."
    assert explorer.picture != before[0]
    assert explorer.view.value != before[1]
    assert explorer.view.value.count("A line that ends at 4.") == 2, "alt text and caption"
    assert 'aria-live="polite"' in explorer.view.value
    explorer.set(top=2)
    assert (explorer.picture, explorer.view.value) == before


def test_a_still_picture_and_the_sentence_are_stored_beside_the_widget():
    # longer than ipywidgets' own summary, which it would cut
    explorer = Explorer(draw, lambda top: f"{top} & more" + 120 * ".", top=(0, 4))
    data, metadata = explorer._repr_mimebundle_()
    assert data["image/png"] == explorer.picture
    assert data["text/plain"] == "Explorer(top=2): 2 & more" + 120 * "."
    assert metadata["image/png"]["alt"] == "2 & more" + 120 * "."
    assert 'alt="2 &amp; more.' in explorer.view.value
    assert "application/vnd.jupyter.widget-view+json" in data


def test_an_error_is_said_in_the_caption_and_raised_and_then_forgotten():
    explorer = Explorer(draw, ALT, top=ipywidgets.IntSlider(2, 0, 7))
    picture = explorer.picture
    with pytest.raises(ValueError, match="too <high>"):
        explorer.set(top=6)
    assert explorer.caption == "No picture for top=6: ValueError: too <high>: 6"
    assert "Error. " in explorer.view.value
    assert "too &lt;high&gt;: 6" in explorer.view.value
    assert explorer.picture == picture, "the last good picture stays, faded"
    explorer.set(top=3)
    assert "Error" not in explorer.view.value
    with pytest.raises(ValueError, match="too <high>"):
        Explorer(draw, ALT, top=ipywidgets.IntSlider(6, 0, 7))
    with pytest.raises(KeyError):
        Explorer(draw, "A line {botom}", top=(0, 4))


@pytest.mark.parametrize(
    ("short", "kind", "value"),
    [
        ((0, 4), ipywidgets.IntSlider, 2),
        ((0.0, 4.0, 0.5), ipywidgets.FloatSlider, 2.0),
        ([1, 3], ipywidgets.Dropdown, 1),
        (True, ipywidgets.Checkbox, True),
    ],
)
def test_short_forms_make_named_controls(short, kind, value):
    control = Explorer(draw, ALT, top=short).controls["top"]
    assert type(control) is kind
    assert control.value == value
    assert control.description == "top"
    assert not getattr(control, "continuous_update", False)


def test_the_stepper_moves_picture_slider_and_button_together():
    stepper = Stepper(lambda step: draw(step), "Step {step}.", last=3)
    assert stepper.caption == "Step 0."
    stepper.play.value = 2
    assert stepper.caption == "Step 2."
    assert stepper.controls["step"].value == 2
    stepper.set(step=3)
    assert stepper.play.value == 3


def pyplot_figure(top):
    figure, axes = plt.subplots()
    axes.plot([0, top])
    return figure


def test_no_figure_is_left_behind_even_by_pyplot(monkeypatch):
    explorer = Explorer(pyplot_figure, ALT, top=(0, 4))
    explorer.set(top=3)
    explorer.set(top=4)
    monkeypatch.setattr("llama2_lib.widgets.explorer.display", keep([]))
    show(pyplot_figure(1), alt="A line.")
    assert plt.get_fignums() == []
    pyplot_figure(1)
    assert plt.get_fignums() != [], "pyplot does keep figures: else this test is vacuous"
    plt.close("all")


def keep(calls):
    return lambda *positional, **named: calls.append((positional, named))


def test_show_stores_a_sharp_picture_and_says_below_what_is_in_it(monkeypatch):
    shown = []
    monkeypatch.setattr("llama2_lib.widgets.explorer.display", keep(shown))
    show(draw(1), alt="A line & more.")
    ((data,), options), ((caption,), _) = shown
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    width, height = picture.size
    sizes = {"width": width // 2, "height": height // 2}
    assert options == {"raw": True, "metadata": {"image/png": {"alt": "A line & more.", **sizes}}}
    assert width == 2 * 700
    assert caption["text/plain"] == "A line & more."
    assert "<figcaption>A line &amp; more.</figcaption>" in caption["text/html"]


def test_a_picture_that_stands_above_is_not_stored_again(monkeypatch):
    monkeypatch.setattr("llama2_lib.widgets.explorer.display", keep([]))
    explorer = Explorer(draw, ALT, top=(0, 4))
    show(draw(2), alt="A line.")
    stored = explorer._repr_mimebundle_()[0]
    assert "image/png" not in stored
    assert stored["text/plain"].startswith("Explorer(top=2) of the picture above: ")
    explorer.set(top=3)
    assert "image/png" in explorer._repr_mimebundle_()[0]


def test_what_is_no_description_figure_or_control_is_refused():
    with pytest.raises(ValueError, match="needs a description"):
        show(draw(1), alt=" ")
    with pytest.raises(TypeError, match="return figure"):
        Explorer(lambda top: None, ALT, top=(0, 4))
    with pytest.raises(ValueError, match="control 'top'"):
        Explorer(draw, ALT, top=object())


def test_a_bar_counts_and_leaves_the_terminal_clean(capsys):
    assert list(bar(range(3), about="loop")) == [0, 1, 2]
    assert capsys.readouterr().err.endswith("\r"), "the last thing it does is to wipe its line"


def test_start_prints_one_line_and_returns_the_folders(monkeypatch, tmp_path, capsys):
    asked = []
    pipeline = types.ModuleType("llama2_lib.pipeline")
    pipeline.artifact = lambda stage, recipe: asked.append((stage, recipe)) or tmp_path / stage
    pipeline.missing = lambda stage, recipe: [stage]
    monkeypatch.setitem(sys.modules, "llama2_lib.pipeline", pipeline)
    assert start("02_transformer") == {}
    folders = start("03_gqa", needs=["tokenizer", "pretrain"], recipe="nano", minutes=3)
    assert folders == {"tokenizer": tmp_path / "tokenizer", "pretrain": tmp_path / "pretrain"}
    assert asked == [("tokenizer", "nano"), ("pretrain", "nano")]
    assert capsys.readouterr().out.splitlines() == [
        "02_transformer: ready.",
        "03_gqa: ready with tokenizer, pretrain.",
    ]
    with pytest.raises(ValueError, match="give a recipe"):
        start("03_gqa", needs=["pretrain"])
