"""The chat room in a real JupyterLab, by keyboard alone: tokens come one by one, Stop is heard.

What the room computes is tested in `tests/notebooks/test_chat_room.py`.
"""

from itertools import pairwise

import nbformat
import pytest

ROOM = """\
from llama2_lib.widgets import ChatRoom
ChatRoom(left="chat", right="V3")"""
SLOWLY = """\
import time
from llama2_lib.model.generate import Decoder
step = Decoder.step
Decoder.step = lambda *inputs: (time.sleep(0.15), step(*inputs))[1]  # as a large model would be"""
WATCH = """text => {
    const seen = {began: performance.now(), texts: [[], []], first: [null, null]};
    window.seen = seen;
    const look = () => {
        document.querySelectorAll('[role=log]').forEach((log, side) => {
            const turn = log.querySelector('p:last-of-type');
            const [, asked, , , answer] = turn ? turn.childNodes : [];
            const said = asked && asked.textContent.trim() === text && answer.textContent.trim();
            const texts = seen.texts[side];
            if (said && said !== texts[texts.length - 1]) {
                seen.first[side] ??= performance.now() - seen.began;
                texts.push(said);
            }
        });
    };
    // Not what is painted, which depends on what else the browser does: every change.
    if (window.watching) window.watching.disconnect();
    window.watching = new MutationObserver(look);
    window.watching.observe(document.body, {childList: true, subtree: true, characterData: true});
    look();
}"""
FOCUSED = """() => {
    const it = document.activeElement;
    const label = document.querySelector(`label[for="${it.id}"]`);
    return (label || it.closest('.widget-slider, .widget-checkbox') || it).innerText.trim();
}"""


@pytest.fixture
def notebook(tmp_path, open_notebook):
    cells = [nbformat.v4.new_code_cell(source) for source in (ROOM, SLOWLY)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "97_room.ipynb"
    )
    return open_notebook(tmp_path / "97_room.ipynb")


def reach(page, label, key="Tab"):
    """Press Tab until a control has the focus; return all that had it on the way."""
    passed = []
    while not passed or label not in passed[-1]:
        page.keyboard.press(key)
        passed.append(page.evaluate(FOCUSED))
        assert len(passed) < 30, passed
    return passed


def send(page, text):
    page.keyboard.type(text)
    page.evaluate(WATCH, text)
    page.keyboard.press("Enter")


def test_two_models_answer_side_by_side_to_a_keyboard(notebook):
    page = notebook.page
    [ran] = notebook.run(0)
    assert not ran["errors"]
    page.get_by_label("system").focus()
    passed = reach(page, "message")
    assert list(dict.fromkeys(name.split("\n")[0] for name in passed)) == [
        "persona", "temperature", "top-p", "gold judge's marks", "left", "right", "message",
    ]  # fmt: skip
    for turn, text in enumerate(("Tell me a story about Remy.", "How do I make a kite?")):
        send(page, text)
        page.wait_for_function(
            "n => [...document.querySelectorAll('[role=log]')].every("
            "log => (log.innerText.match(/helpfulness/g) || []).length === n)", arg=turn + 1,
        )  # fmt: skip
        seen = page.evaluate("window.seen")
        assert max(seen["first"]) < 10_000, f"milliseconds to the first token: {seen['first']}"
        for texts in seen["texts"]:
            assert len(texts) > 5, f"it did not grow: {texts}"
            assert all(len(a) <= len(b) for a, b in pairwise(texts)), texts
    assert page.get_by_label("message").input_value() == ""
    page.get_by_label("gold judge's marks").check()
    page.get_by_text("gold judge: ").first.wait_for()
    status = page.locator("p[role=status]")
    assert "Ready." in status.inner_text()
    assert "chat: " in status.text_content(), "what was answered is said once, for those who hear"
    status.scroll_into_view_if_needed()
    notebook.shoot("answered")
    assert page.faults == []


def test_a_persona_is_kept_over_ten_turns(notebook):
    page = notebook.page
    notebook.run(0)
    page.get_by_label("persona").fill("Hugo")
    page.get_by_label("message").focus()
    questions = ["Where does Vera live?", "What is the pet of Karl?", "Hello", "Good night."]
    for turn in range(10):
        send(page, questions[turn % 4])
        page.wait_for_function(
            "n => [...document.querySelectorAll('[role=log]')].every("
            "log => (log.innerText.match(/helpfulness/g) || []).length === n)", arg=turn + 1,
        )  # fmt: skip
    turns = page.evaluate(
        "[...document.querySelectorAll('[role=log]')].map(log => [...log.querySelectorAll('p')]"
        ".map(turn => turn.childNodes[4].textContent.trim()))"
    )
    chat, v3 = turns
    assert len(chat) == len(v3) == 10
    assert all(said.startswith("Hugo:") for said in chat), chat
    assert not any(said.startswith("Hugo:") for said in v3), f"V3 was never taught to: {v3}"
    notebook.shoot("persona")
    assert page.faults == []


def test_stop_ends_an_answer_in_its_middle_and_the_kernel_hears_it(notebook):
    page = notebook.page
    assert not any(cell["errors"] for cell in notebook.run())
    page.get_by_label("message").focus()
    send(page, "Tell me a story about Remy.")
    page.wait_for_function("window.seen.texts.every(texts => texts.length >= 3)")
    assert reach(page, "Stop")[:2] == ["Send", "Stop"]
    page.keyboard.press("Enter")
    page.locator("[role=log]").last.get_by_text("stopped").wait_for(timeout=3_000)
    before = page.evaluate("window.seen.texts.map(texts => texts.length)")
    page.wait_for_timeout(1_000)
    assert page.evaluate("window.seen.texts.map(texts => texts.length)") == before
    assert all(4 <= n <= 30 for n in before), f"it was not stopped in its middle: {before}"
    page.locator("p[role=status]").scroll_into_view_if_needed()
    notebook.shoot("stopped")
    assert page.faults == []
