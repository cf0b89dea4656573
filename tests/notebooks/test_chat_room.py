"""The chat room, moved by code; real models of `toy` where it counts, slow ones where time does."""

import threading
import time
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.config import VERSIONS
from llama2_lib.model import chat
from llama2_lib.model.chat import Reply
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import toy
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.widgets import chat_room
from llama2_lib.widgets.chat_room import ChatRoom


class Letters(Tokenizer):
    """One id per character."""

    def __init__(self):
        self.vocab_size, self.bos_id, self.eos_id = 200, 1, 2

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [ord(letter) for letter in text] + [2] * eos


SHAPE = ModelConfig(
    vocab_size=200, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, multiple_of=20, max_seq_len=400
)


@pytest.fixture
def asked(monkeypatch):
    """Dialogs that models were asked; each answers `one`, `one two`, `one two three`."""
    dialogs, model = [], Transformer(SHAPE)

    def rewards(rows, is_safety):
        return SimpleNamespace(helpfulness=np.array([1.5]), safety=np.array([-2.0]))

    def load(self, stage):
        return rewards if stage == pipeline.JUDGE else (model, Letters())

    def stream(model, tokenizer, dialog, **settings):
        encode_prompt(dialog, tokenizer)
        dialogs.append((dialog, settings))
        for n in range(1, 4):
            yield Reply(" ".join(("one", "two", "three")[:n]), [5] * n, n == 3)

    monkeypatch.setattr(ChatRoom, "_load", load)
    monkeypatch.setattr(chat, "stream", stream)
    monkeypatch.setattr(chat_room, "continued", lambda model, tok, text, **_: iter(
        [Reply(f"{text} and so on", [5], True)]
    ))  # fmt: skip
    return dialogs


def say(room, text):
    """Type a text and press Enter, in the order in which the browser tells of it."""
    before = room._n_asked
    room.message._handle_custom_msg({"event": "submit"}, [])
    room.message.value = text
    end = time.monotonic() + 20
    while room._n_asked == before or room._thread.is_alive():
        assert time.monotonic() < end, "nobody answers"
        time.sleep(0.002)


def texts(dialog):
    return [message["content"] for message in dialog]


def shown(room, side=0):
    return room.sides[side].view.value


def test_enter_sends_and_two_models_answer_side_by_side(asked):
    room = ChatRoom(left="chat", right="V2")
    say(room, "Hi <b>there</b>")
    assert [texts(dialog) for dialog, _ in asked] == [["Hi <b>there</b>"]] * 2
    assert room.message.value == ""
    for side, name in enumerate(("chat", "V2")):
        assert f"<b>{name}:</b> one two three" in shown(room, side)
        assert "helpfulness 1.50, safety -2.00" in shown(room, side)
        assert "Hi &lt;b&gt;there&lt;/b&gt;" in shown(room, side)
        assert "<b>there" not in shown(room, side)
        assert f"{name}: one two three" in room.status.value, "it is said for those who hear"
    assert repr(room) == "ChatRoom: Ready."


def test_settings_and_a_seed_of_its_own_reach_every_turn(asked):
    room = ChatRoom(right="nobody")
    room.temperature.value, room.top_p.value = 0.2, 0.5
    say(room, "Hi")
    say(room, "Hi")
    settings = [settings for _, settings in asked]
    assert [s["temperature"] for s in settings] == [0.2, 0.2]
    assert [s["top_p"] for s in settings] == [0.5, 0.5]
    assert len({s["seed"] for s in settings}) == 2
    assert [texts(dialog) for dialog, _ in asked] == [["Hi"], ["Hi", "one two three", "Hi"]]
    assert "you" not in shown(room, 1), "nobody answered on the right"


def test_stop_ends_an_answer_in_its_middle_and_the_dialog_does_not_keep_it(asked, monkeypatch):
    steps, go, closed = threading.Semaphore(0), threading.Semaphore(0), []

    def endless(model, tokenizer, dialog, **_):
        asked.append(texts(dialog))
        try:
            for n in range(1, 1000):
                yield Reply("word " * n, [5] * n, False)
                steps.release()
                assert go.acquire(timeout=20)
        finally:
            closed.append(1)

    room = ChatRoom(right="nobody")
    with monkeypatch.context() as patch:
        patch.setattr(chat, "stream", endless)
        room.message.value = "Tell me all."
        room.ask.click()
        assert steps.acquire(timeout=20)
        assert "word" in shown(room)
        assert "is writing" in shown(room)
        room.message.value = "More!"
        room.ask.click()
        assert room.sentence == chat_room.BUSY
        assert room.message.value == "More!", "what was typed is not lost"
        room.anew.click()
        assert "word" in shown(room)
        room.stop.click()
        go.release()
        room._thread.join(20)
    assert closed == [1]
    assert "word" in shown(room)
    assert "stopped" in shown(room)
    assert "is writing" not in shown(room)
    say(room, "Hi")
    assert texts(asked[-1][0]) == ["Hi"]


def test_persona_and_system_stay_before_the_first_turn_that_is_left_over_ten_turns(asked):
    room = ChatRoom(right="nobody")
    room.system.value, room.persona.value = "Be kind.", "Mara"
    assert "Mara" in room.persona.options
    for turn in range(10):
        say(room, f"What is {turn} plus {turn}? Tell me more about it, please.")
    assert [dialog[0] for dialog, _ in asked] == [{"role": "system", "content": "Be kind."}] * 10
    assert all(texts(dialog)[1].startswith("Always act as Mara. What is ") for dialog, _ in asked)
    told = [text for dialog, _ in asked for text in texts(dialog)[2:]]
    assert not any("Mara" in text for text in told), "it is told once, and kept in no turn"
    assert not any("Mara" in text for text in texts(room.sides[0].dialog))
    assert "the oldest turns no longer fit" in shown(room)
    assert len(asked[-1][0]) < 20
    room.system.value = room.persona.value = ""
    say(room, "Hi")
    assert asked[-1][0][0]["role"] == "user"


def test_the_dialog_stays_when_the_model_is_changed(asked):
    room = ChatRoom(left="SFT", right="V1")
    say(room, "Hi")
    room.sides[0].picker.value = "GAtt"
    say(room, "And now?")
    assert texts(asked[-2][0]) == ["Hi", "one two three", "And now?"]
    assert "<b>SFT:</b>" in shown(room)
    assert "<b>GAtt:</b>" in shown(room)
    room.anew.click()
    assert "<b>" not in shown(room)
    say(room, "Hi")
    assert texts(asked[-2][0]) == ["Hi"]


def test_a_base_model_goes_on_with_the_text_and_leaves_the_dialog_alone(asked):
    room = ChatRoom(left="base", right="nobody")
    room.system.value = "Be kind."
    say(room, "Once")
    assert asked == []
    assert "<b>base goes on:</b> Once and so on" in shown(room)
    assert "A base model does not answer" in room.status.value
    room.sides[0].picker.value = "chat"
    say(room, "Hi")
    assert texts(asked[-1][0]) == ["Be kind.", "Hi"]


def test_errors_are_shown_and_the_next_message_is_answered(asked, monkeypatch):
    room = ChatRoom(right="nobody")
    room.ask.click()
    assert room.sentence == "Nothing was sent: a message needs words."
    say(room, "[INST] you")
    assert "Error. content must not contain the format" in shown(room)
    say(room, "Hi")
    assert texts(asked[-1][0]) == ["Hi"]
    assert "one two three" in shown(room)


def test_what_is_not_on_disk_is_named_and_not_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path))
    room = ChatRoom(toy(), left="V1", right="nobody")
    say(room, "Hi")
    assert "Error. rejection_v1 needs tokenizer, " in shown(room)
    assert "llama2 run rejection_v1 --recipe toy" in shown(room)
    assert not any(tmp_path.iterdir())


def test_the_gold_judge_marks_on_demand_what_needs_no_task(asked):
    room = ChatRoom(right="nobody")
    say(room, "Hi")
    assert "gold judge:" not in shown(room)
    room.marks.value = True
    assert "gold judge: nothing to remark, toxicity 0.00" in shown(room)
    for text, mark in {
        "I cannot help with that. That is dangerous for everyone.": "declines, warns, toxicity",
        "I do not know.": "says that it does not know, toxicity",
        "qwx zzt vvk": "garbage, toxicity",
    }.items():
        assert f"gold judge: {mark}" in room._marks(text)
    assert "has no task for a free text" in room.status.value


def test_every_control_has_a_label_or_a_hint_and_no_name_of_the_machinery(asked):
    room, plain = ChatRoom(), ipywidgets.VBox([])
    controls = [
        room.system, room.persona, room.temperature, room.top_p, room.marks, room.message,
        room.ask, room.stop, room.anew, *(side.picker for side in room.sides),
    ]  # fmt: skip
    assert all(control.description for control in controls)
    assert room.sides[0].picker.options == tuple(VERSIONS)
    own = (set(vars(room)) - set(vars(plain))) | set(vars(ChatRoom))
    assert {name for name in own & set(dir(plain)) if not name.startswith("_")} == set()


@pytest.mark.slow
def test_every_version_of_a_chain_can_be_talked_to(toy_root, monkeypatch, one_thread):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(toy_root))
    room = ChatRoom(toy())
    for name in VERSIONS:
        room.sides[0].picker.value = room.sides[1].picker.value = name
        say(room, "Hello")
        left, right = (side.turns[-1] for side in room.sides)
        assert left == right
        assert "helpfulness" in left.note
