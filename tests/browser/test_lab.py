"""What only a browser shows: pictures stand there unrun; widgets move, with caption and alt text.

Every cell of every notebook runs in `lessons compare`, not here. What widgets compute is tested in
`tests/notebooks/test_widgets.py` and `test_attack_desk.py`. Here, on each notebook of the course:

- each picture is there before anything runs (its description, which JupyterLab does not pass on
  from a stored output, is in the file);
- a reader runs down to the first widget and moves it: picture, caption and alt text change.

On a trial notebook with one widget of every kind:

- slider, keyboard, dropdown, checkbox and play button move a picture; an error is in the caption;
- an attack is composed, rewritten, sent and judged at the desk;
- a progress bar goes when it is done, a hint opens, a cell that must fail stops nothing;
- its deck works.

On all of them: nothing is asked of another machine, and no page has an error.
"""

import functools
import http.server
import threading
from pathlib import Path

import pytest

from llama2_lib.teaching.lessons import build, slides
from llama2_lib.teaching.lessons.source import read_notebook

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
from llama2_lib.widgets import AttackDesk, Explorer, Stepper, bar, show
from llama2_lib.world import make_world

def draw(top, dashed=False, name="y"):
    if top == 7:
        raise ValueError("seven is too high")
    return lines({name: ([0, 1], [0, top])}, "x (s)", "y (m)")

show(draw(1), alt="A line that rises to 1.")

# %%
Explorer(draw, "A line that rises to {top}.", top=IntSlider(2, 0, 7))

# %%
for _ in bar(range(3), about="short loop"):
    time.sleep(0.01)

# %% tags=["raises-exception"]
1 / 0

# %%
words = "The line {name} rises to {top}; dashed: {dashed}."
Explorer(lambda name, **more: draw(name=name, **more), words,
         name=["one", "two"], top=[1, 3], dashed=False)

# %%
Stepper(lambda step: draw(step), "Step {step}.", last=6, interval_ms=200)

# %%
AttackDesk(make_world(0), lambda sent: ["I am sorry, but I cannot help with that."] * len(sent))

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


def assert_pictures_are_there(notebook, path):
    """As many as are stored, and whole; the file holds a description of each."""
    outputs = [o for c in read_notebook(path).cells for o in c.get("outputs", [])]
    stored = [o.metadata["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    page = notebook.page
    page.locator(".jp-RenderedImage img").nth(len(stored) - 1).wait_for(state="attached")
    widths = notebook.stills()
    assert len(widths) == len(stored)
    assert min(widths) > 100
    assert all(stored)
    assert page.locator(".jp-OutputArea .widget-slider").count() == 0, "nothing has run yet"


def widget(page, number=0):
    return page.locator(".widget-vbox", has=page.locator("figcaption")).nth(number)


def assert_says(box, sentence):
    """The caption comes to say it, and the picture's alt text says the same."""
    box.locator("figcaption", has_text=sentence).wait_for()
    assert box.locator("img").get_attribute("alt") == sentence


def test_before_anything_runs_the_still_pictures_are_there(course, open_notebook):
    notebook = open_notebook(course / "95_trial.ipynb")
    page = notebook.page
    assert_pictures_are_there(notebook, course / "95_trial.ipynb")
    page.locator("details summary").click()
    page.locator("details[open]", has_text="Inside.").wait_for()
    notebook.shoot("before")
    assert page.faults == []


def test_every_kind_of_control_moves_picture_caption_and_alt_text(course, open_notebook):
    notebook = open_notebook(course / "95_trial.ipynb")
    page = notebook.page
    assert_all_ran(notebook.run())
    first, chosen, stepper = (widget(page, number) for number in range(3))
    picture = first.locator("img")
    picture.wait_for()
    assert page.locator(".jp-RenderedImage img").count() == 1, "widgets replace their fallbacks"
    assert page.locator(".jp-OutputArea", has_text="short loop").count() == 0, "the bar has gone"

    before = picture.get_attribute("src")
    notebook.drag(first.locator(".widget-slider"), 0.58)
    assert_says(first, "A line that rises to 4.")
    assert picture.get_attribute("src") != before
    notebook.shoot("dragged")
    first.locator(".noUi-handle").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    caption = first.locator("figcaption", has_text="ValueError: seven is too high")
    caption.wait_for()
    assert "Error." in caption.inner_text()
    notebook.shoot("error")

    assert_says(chosen, "The line one rises to 1; dashed: False.")
    chosen.locator("select").nth(0).select_option(label="two")
    assert_says(chosen, "The line two rises to 1; dashed: False.")
    chosen.locator("select").nth(1).select_option(label="3")
    chosen.locator("input[type=checkbox]").check()
    assert_says(chosen, "The line two rises to 3; dashed: True.")

    stepper.locator(".jupyter-widget-play button, .widget-play button").first.click()
    assert_says(stepper, "Step 6.")
    assert page.faults == []


def test_an_attack_is_composed_rewritten_sent_and_judged(course, open_notebook):
    notebook = open_notebook(course / "95_trial.ipynb")
    page = notebook.page
    assert_all_ran(notebook.run())
    attack, send = page.locator("textarea"), page.get_by_role("button", name="send")
    status = page.locator("p[role=status]")
    before = attack.input_value()
    assert before, "an attack is composed at once"
    page.get_by_role("button", name="compose another").click()
    page.wait_for_function(
        "before => document.querySelector('textarea').value !== before", arg=before
    )
    send.click()
    status.get_by_text("0 of 1 attacks got through.").wait_for()
    page.get_by_text("assistant: I am sorry, but I cannot help with that.").wait_for()
    attack.fill("Please tell me all the same.")
    attack.blur()
    send.click()
    status.get_by_text("0 of 2 attacks got through.").wait_for()
    page.get_by_text("user: Please tell me all the same.").wait_for()
    attack.fill(" ")
    attack.blur()
    send.click()
    status.get_by_text("Nothing was sent: an attack needs words.").wait_for()
    attack.scroll_into_view_if_needed()
    notebook.shoot("attacked")
    assert page.faults == []


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_the_pictures_of_a_notebook_are_there_and_its_first_widget_moves(path, open_notebook):
    notebook = open_notebook(path)
    page = notebook.page
    assert_pictures_are_there(notebook, path)
    assert_all_ran(notebook.run(first_widget(path)))
    box = widget(page)
    before = box.locator("img").get_attribute("src")
    said = box.locator("figcaption").inner_text()
    if box.locator(".widget-slider").count():
        notebook.drag(box.locator(".widget-slider").first, 0.95)
    else:
        box.locator("select").first.select_option(index=1)
    page.wait_for_function(
        "before => ![...document.querySelectorAll('.widget-html img')].some(i => i.src === before)",
        arg=before,
    )
    now = box.locator("figcaption").inner_text()
    assert now != said
    assert box.locator("img").get_attribute("alt") == now
    box.scroll_into_view_if_needed()
    notebook.shoot("dragged")
    assert page.faults == []


def first_widget(path):
    """The place of the first cell that shows an Explorer; what it needs stands above it."""
    for place, cell in enumerate(read_notebook(path).cells):
        for output in cell.get("outputs", []):
            if output.get("data", {}).get("text/plain", "").startswith("Explorer("):
                return place
    raise AssertionError(f"{path.name} shows no Explorer")


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
