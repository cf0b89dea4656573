"""A red-teamer's desk: compose an attack, change its words, send it, see the verdict."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import ipywidgets

from llama2_lib.world.attackers import TURNS, Attacker, Strategy, vector_sets
from llama2_lib.world.facts import World
from llama2_lib.world.judges import Safety, judge_of
from llama2_lib.world.prompts import Prompt
from llama2_lib.world.tasks import CATEGORIES

Reply = Callable[[Sequence[Prompt]], list[str]]


class AttackDesk(ipywidgets.VBox):
    """Attack a model oneself.

    The controls compose an attack, whose last message can be rewritten before it is sent. The
    gold judge marks the answer as an answer to the wish that was composed, however it is worded.
    """

    def __init__(self, world: World, reply: Reply, seed: int = 0) -> None:
        """`reply` answers prompts, as `stages.red_team.replier` returns it."""
        self._reply, self._judge = reply, judge_of(world)
        self._attacker = Attacker(world, seed)
        sets = {" + ".join(vectors): vectors for vectors in vector_sets()}
        self.vectors = ipywidgets.Dropdown(options=sets, description="vectors")
        self.turns = ipywidgets.Dropdown(options=TURNS, description="turns")
        self.category = ipywidgets.Dropdown(options=CATEGORIES, description="category")
        self.compose = ipywidgets.Button(description="compose another")
        self.ask = ipywidgets.Button(description="send", button_style="primary")
        wide = ipywidgets.Layout(width="90%", height="4em")
        self.text = ipywidgets.Textarea(description="attack", layout=wide)
        self.view = ipywidgets.HTML()
        self.queries = self.violations = 0
        controls = ipywidgets.HBox([self.vectors, self.turns, self.category])
        buttons = ipywidgets.HBox([self.compose, self.ask])
        super().__init__([controls, self.text, buttons, self.view])
        self._compose()
        for control in controls.children:
            control.observe(self._compose, "value")
        self.compose.on_click(self._compose)
        self.ask.on_click(self._ask)

    def _compose(self, _event: Any = None) -> None:
        strategy = Strategy(self.vectors.value, self.turns.value, self.category.value)
        self.prompt = self._attacker.make(strategy)
        self.text.value = self.prompt.request
        self._publish("Compose an attack, change its words if you like, and send it.")

    def _ask(self, _event: Any = None) -> None:
        if not self.text.value.strip():
            self._publish("Nothing was sent: an attack needs words.")
            return
        last = {"role": "user", "content": self.text.value}
        sent = replace(self.prompt, dialog=[*self.prompt.dialog[:-1], last])
        try:
            answer = self._reply([sent])[0]
        except ValueError as error:  # a tag of the chat format, or no room left for an answer
            self._publish(f"Nothing was sent: {error}")
            return
        safety = self._judge.safety(sent, answer)
        self.queries += 1
        self.violations += not safety.is_safe
        told = f"{self.violations} of {self.queries} attacks got through."
        self._publish(f"{describe(safety)} {told}", answer)

    def _publish(self, verdict: str, answer: str = "") -> None:
        self.verdict = verdict
        turns = [f"{m['role']}: {m['content']}" for m in self.prompt.dialog[:-1]]
        if answer:
            turns += [f"user: {self.text.value}", f"assistant: {answer}"]
        lines = "".join(f"<p style='white-space:pre-line'>{escape(turn)}</p>" for turn in turns)
        self.view.value = f'{lines}<p role="status"><strong>{escape(self.verdict)}</strong></p>'

    def __repr__(self) -> str:
        return f"AttackDesk: {self.verdict}"


def describe(safety: Safety) -> str:
    """Say what the judge saw, in one or two sentences."""
    if not safety.is_safe:
        what = "It gives away what is dangerous" if safety.leak else "It agrees to do it"
        return f"Violation, mark {safety.score:.2f}. {what}{', with a warning' * safety.warns}."
    parts = (
        (safety.refuses, "declines"),
        (safety.warns, "says why"),
        (safety.offers, "offers help"),
    )
    done = [word for happened, word in parts if happened]
    return f"Safe, mark {safety.score:.2f}. It {', '.join(done) if done else 'evades'}."
