"""A chat room in a notebook: models of the chain answer side by side, token by token."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from html import escape
from typing import Any

from ipywidgets import HTML, Button, Checkbox, Combobox, Dropdown, FloatSlider, HBox, Text, VBox

from llama2_lib import pipeline
from llama2_lib.config import VERSIONS, Recipe
from llama2_lib.model.chat import Conversation, continued, scored_row
from llama2_lib.recipes import nano
from llama2_lib.stages.reward import load_rewards
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message
from llama2_lib.world.instructions import instruction_maker
from llama2_lib.world.judges import judge_of

NANO, LONGEST = nano(), 96  # whose models are talked to; tokens of an answer
WELCOME = "Write a message and press Enter. Stop ends an answer, New dialog forgets what was said."
BUSY = "An answer is being written: press Stop, or wait for its end."
LEGEND = """Scores are raw, of V5's reward models: more is better; safety below -1.73 (a chance of
0.15) is unsafe. The gold judge has no task for a free text: it marks only what needs none, and not
whether an answer is right. A base model does not answer: it goes on with your text alone. Stopped
answers are not kept in the dialog. A persona is told as Ghost Attention taught it, before your
first words: it holds for facts and small talk, and is lost behind a system message."""
WIDE = {"description_width": "7em"}
HIDDEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"
LOG = """<div role="log" aria-live="off" aria-label="dialog {place}"
style="white-space:pre-wrap;line-height:1.4">{shown}</div>"""
NEWEST_IN_SIGHT = dict(height="22em", overflow="auto", display="flex", flex_flow="column-reverse")


@dataclass
class Turn:
    """What was asked and answered, as it is shown, with what is said of the answer below it."""

    name: str
    asked: str
    said: str = ""
    note: str = "is writing"


class Side(VBox):
    """One of the two dialogs, with whatever model is chosen for it."""

    def __init__(self, place: str, name: str, options: list[str]) -> None:
        self.picker = Dropdown(options=options, value=name, description=place, tooltip="model")
        self.view = HTML(layout=NEWEST_IN_SIGHT)
        self.dialog, self.turns = list[Message](), list[Turn]()
        super().__init__([self.picker, self.view], layout={"width": "50%"})


class ChatRoom(VBox):
    """Talk to one or two models of the chain; what is chosen holds from the next message on."""

    def __init__(self, recipe: Recipe = NANO, left: str = "chat", right: str = "SFT") -> None:
        """`left` and `right` are names of `VERSIONS`; `nobody` on the right leaves one model."""
        self._recipe, self._load = recipe, cache(self._load)
        self._world = make_world(self._recipe.corpus.world_seed)
        self._thread, self._n_asked = threading.Thread(), 0
        self._stopped, self._typed = threading.Event(), threading.Event()
        self.sides = [Side("left", left, [*VERSIONS]), Side("right", right, ["nobody", *VERSIONS])]
        self.system = Text(description="system", tooltip="What the models are told first")
        self.persona = Combobox(description="persona", tooltip="Whom the models shall act as")
        self.persona.options = instruction_maker(self._world, "all").values["figure"]
        self.temperature = FloatSlider(0.7, max=1.5, description="temperature", style=WIDE)
        self.top_p = FloatSlider(0.9, min=0.05, max=1, step=0.05, description="top-p")
        self.marks = Checkbox(description="gold judge's marks", indent=False)
        self.message = Text(description="message", continuous_update=False, layout={"flex": "1"})
        self.ask = Button(description="Send", tooltip="Send the message", button_style="primary")
        self.stop = Button(description="Stop", tooltip="End the answers")
        self.anew = Button(description="New dialog", tooltip="Forget what was said")
        self.status = HTML()
        chosen = [self.system, self.persona, self.temperature, self.top_p, self.marks]
        rows = [HBox(chosen, layout={"flex_flow": "wrap"}), HBox(self.sides)]
        typed = [self.message, self.ask, self.stop, self.anew]
        super().__init__([*rows, HBox(typed), self.status])
        self.message.on_msg(self._on_enter)
        self.message.observe(lambda _: self._typed.set(), "value")
        self.ask.on_click(self._ask)
        self.stop.on_click(lambda _: self._stopped.set())
        self.anew.on_click(self._begin)
        self.marks.observe(self._draw, "value")
        self._begin()
        threading.Thread(target=self._warm_up, daemon=True).start()

    def _warm_up(self) -> None:
        with suppress(Exception):  # said when they are asked
            for stage in (*(VERSIONS[side.picker.value] for side in self.sides), pipeline.JUDGE):
                self._load(stage)

    def _begin(self, _event: Any = None) -> None:
        if self._thread.is_alive():
            return self._say(BUSY)
        for side in self.sides:
            side.dialog, side.turns = [], []
        self._draw()
        self._say(WELCOME)

    def _on_enter(self, _widget: Any, content: Any, _buffers: Any) -> None:
        self._typed.clear()  # the browser tells of Enter first, then of what was typed, if new
        threading.Thread(target=self._ask, args=(content.get("event"),), daemon=True).start()

    def _ask(self, event: Any = None) -> None:
        if event == "submit":
            self._typed.wait(0.2 if self.message.value else 2.0)
        text = self.message.value.strip()
        if self._thread.is_alive() or not text:
            return self._say("Nothing was sent: a message needs words." if not text else BUSY)
        self.message.value = ""
        self._stopped.clear()
        # A thread, so that the kernel hears Stop; both models take turns in it.
        self._thread = threading.Thread(target=self._answer, args=(text,), daemon=True)
        self._thread.start()

    def _answer(self, text: str) -> None:
        sides = [side for side in self.sides if side.picker.value != "nobody"]
        turns = [Turn(side.picker.value, text) for side in sides]
        self._n_asked += 1
        self._say(f"{' and '.join(turn.name for turn in turns)}: writing ...")
        writing = [self._writing(*pair) for pair in zip(sides, turns, strict=True)]
        while writing and not self._stopped.is_set():
            writing = [each for each in writing if next(each, "ended") != "ended"]
            self._draw()
        for turn in turns:
            turn.note = turn.note.replace("is writing", "stopped")
        self._draw()
        # once and whole: tokens that come one by one cannot be listened to
        self._say("Ready.", " ".join(f"{t.name}: {t.said} {t.note}." for t in turns))

    def _writing(self, side: Side, turn: Turn) -> Iterator[None]:
        """Answer, a token at each step; a thread's errors are seen by nobody, so they are shown."""
        side.turns.append(turn)
        yield  # the question is shown before a model is loaded
        try:
            model, tokenizer = self._load(VERSIONS[turn.name])
            room, persona = Conversation(model, tokenizer), self.persona.value.strip()
            question: Message = {"role": "user", "content": turn.asked}
            room.dialog, room.asked = side.dialog, [question]
            room.tell(self.system.value.strip(), f"Always act as {persona}." * bool(persona))
            asking = room.ask if turn.name != "base" else partial(continued, model, tokenizer)
            sampling: dict[str, Any] = {"top_p": self.top_p.value, "seed": self._n_asked}
            sampling |= {"temperature": self.temperature.value, "max_new_tokens": LONGEST}
            for answer in asking(turn.asked, **sampling):
                forgot = "; the oldest turns no longer fit" * room.forgot
                turn.said, turn.note = answer.text, f"is writing{forgot}"
                yield
            row = scored_row(room.asked, answer, tokenizer)[: model.config.max_seq_len]
            side.dialog = room.dialog
            by = self._load(pipeline.JUDGE)([row], [False])
            turn.note = f"helpfulness {by.helpfulness[0]:.2f}, safety {by.safety[0]:.2f}{forgot}"
        except Exception as error:
            turn.note = f"Error. {error}"

    def _load(self, stage: str) -> Any:
        """Return the models of a finished stage; what is missing is not trained here."""
        folders = pipeline.folders_of(stage, self._recipe)
        if absent := [name for name, folder in folders.items() if not folder.exists()]:
            how = f"In a terminal: llama2 run {stage} --recipe {self._recipe.name}"
            raise FileNotFoundError(f"{stage} needs {', '.join(absent)}, not on disk. {how}")
        if stage == pipeline.JUDGE:
            return load_rewards(pipeline.artifact(stage, self._recipe))
        return pipeline.load(stage, self._recipe)

    def _marks(self, text: str) -> str:
        judge = judge_of(self._world)
        seen = dict(declines=judge.is_refusal, warns=judge.warns, garbage=judge.is_garbage)
        seen |= {"says that it does not know": judge.says_unknown}
        told = ", ".join(name for name, sees in seen.items() if sees(text)) or "nothing to remark"
        return f"gold judge: {told}, toxicity {judge.toxicity(text):.2f}"

    def _draw(self, _change: Any = None) -> None:
        for side in self.sides:
            shown = ""
            for turn in side.turns:
                whole = self.marks.value and not turn.note.startswith("is writing")
                notes = escape(turn.note + (f"; {self._marks(turn.said)}" if whole else ""))
                name = turn.name + " goes on" * (turn.name == "base")
                shown += f"<p><b>you:</b> {escape(turn.asked)}<br><b>{name}:</b> "
                shown += f"{escape(turn.said)}<br><small>{notes}</small></p>"
            side.view.value = LOG.format(place=side.picker.description, shown=shown)

    def _say(self, sentence: str, heard: str = "") -> None:
        self.sentence = sentence
        self.status.value = (
            f'<p role="status" aria-live="polite"><strong>{escape(sentence)}</strong>'
            f'<span style="{HIDDEN}">{escape(heard)}</span></p><small>{escape(LEGEND)}</small>'
        )

    def __repr__(self) -> str:
        return f"ChatRoom: {self.sentence}"
