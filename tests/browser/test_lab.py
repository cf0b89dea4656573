"""A learner's minute in JupyterLab: open, look, run all, drag, read."""

import functools
import http.server
import threading
from pathlib import Path

import pytest

from llama2_lib.teaching.lessons import build, slides

ROOT = Path(__file__).parents[2]
COURSE = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"), reverse=True)  # long ones first

TRIAL = """\
# %% [markdown] slideshow={"slide_type": "slide"}
# # Trial
# A fraction $\\frac{a}{b}$. <details><summary>Hint</summary>Inside.</details>

# %% slideshow={"slide_type": "slide"}
import time
from ipywidgets import IntSlider
from llama2_lib.figures import lines
from llama2_lib.widgets import Explorer, bar, show

def draw(top):
    if top == 7:
        raise ValueError("seven is too high")
    return lines({"y": ([0, 1], [0, top])}, "x (s)", "y (m)")

show(draw(1), alt="A line that rises to 1.")

# %%
Explorer(draw, "A line that rises to {top}.", top=IntSlider(2, 0, 7))

# %%
for _ in bar(range(3), about="short loop"):
    time.sleep(0.01)

# %% tags=["raises-exception"]
1 / 0

# %%
print("the end")
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    (folder / "src").mkdir()
    (folder / "src" / "95_trial.py").write_text(TRIAL)
    assert build(folder=folder) == []
    return folder


def assert_all_ran(cells):
    assert cells
    for cell in cells:
        assert cell["count"], f"not run: {cells}"
        assert not cell["errors"] or "raises-exception" in cell["tags"], cells


def test_before_anything_runs_the_still_pictures_are_there(course, open_notebook):
    notebook = open_notebook(course / "95_trial.ipynb")
    page = notebook.page
    page.locator(".jp-RenderedImage img").nth(1).wait_for()
    assert page.locator(".jp-RenderedImage img").count() == 2, "show and the Explorer's fallback"
    assert page.locator(".widget-slider").count() == 0
    page.locator("details summary").click()
    page.locator("details[open]", has_text="Inside.").wait_for()
    notebook.shoot("before")
    assert page.faults == []


def test_run_all_drag_and_the_picture_and_its_caption_change(course, open_notebook):
    notebook = open_notebook(course / "95_trial.ipynb")
    page = notebook.page
    assert_all_ran(notebook.run_all())
    picture = page.locator(".widget-html img")
    picture.wait_for()
    assert page.locator(".jp-RenderedImage img").count() == 1, "the widget replaces its fallback"
    assert page.locator(".jp-OutputArea", has_text="short loop").count() == 0, "the bar has gone"

    before = picture.get_attribute("src")
    notebook.drag(page.locator(".widget-slider").first, 0.58)
    page.wait_for_function(
        "before => document.querySelector('.widget-html img').src !== before", arg=before
    )
    page.locator("figcaption", has_text="A line that rises to 4.").wait_for()
    assert picture.get_attribute("alt") == "A line that rises to 4."
    notebook.shoot("dragged")

    page.locator(".noUi-handle").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    caption = page.locator("figcaption", has_text="ValueError: seven is too high")
    caption.wait_for()
    assert "Error." in caption.inner_text()
    notebook.shoot("error")
    assert page.faults == []


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_a_notebook_of_the_course_runs_and_its_first_explorer_moves(path, open_notebook):
    notebook = open_notebook(path)
    page = notebook.page
    assert_all_ran(notebook.run_all())
    widget = page.locator(".widget-vbox", has=page.locator("figcaption")).first
    before = widget.locator("img").get_attribute("src")
    said = widget.locator("figcaption").inner_text()
    if widget.locator(".widget-slider").count():
        notebook.drag(widget.locator(".widget-slider").first, 0.95)
    else:
        widget.locator("select").first.select_option(index=1)
    page.wait_for_function(
        "before => ![...document.querySelectorAll('.widget-html img')].some(i => i.src === before)",
        arg=before,
    )
    assert widget.locator("figcaption").inner_text() != said
    widget.scroll_into_view_if_needed()
    notebook.shoot("dragged")
    assert page.faults == []


def test_the_guard_against_requests_sees_one(new_page):
    page = new_page("http://127.0.0.1:1")
    page.set_content('<img src="http://127.0.0.2:9/x.png">')
    page.wait_for_timeout(200)
    assert page.faults == ["left the machine: http://127.0.0.2:9/x.png"]


def test_a_deck_works_without_the_network(course, tmp_path, new_page):
    assets = ROOT / "build" / "assets"
    if not (assets / "node_modules").exists():
        pytest.skip("no slide assets: see the message of `make slides`")
    assert slides(folder=course, out=tmp_path, assets=assets) == []
    with served(tmp_path) as base:
        page = new_page(base)
        page.goto(f"{base}/95_trial.slides.html")
        page.locator(".reveal.ready").wait_for()
        page.locator("section .MathJax_CHTML, section .mjx-chtml").first.wait_for()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(800)
        assert page.locator(".slides section section").count() == 2
        assert page.locator("section img").get_attribute("alt") == "A line that rises to 1."
        shot = ROOT / "build" / "shots" / "95_trial_slides.png"
        shot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=shot)
        assert page.faults == []


class served:
    """A folder behind http on this machine."""

    def __init__(self, folder):
        handler = functools.partial(Quiet, directory=folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
