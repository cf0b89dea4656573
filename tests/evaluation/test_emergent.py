"""Self-BLEU against NLTK, decisions about time and calls of tools, of models that are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from llama2_lib.evaluation import emergent
from llama2_lib.model.tools import Call, ToolReply
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.dates import dated_questions
from llama2_lib.world.tools import NO_TOOL, tool_tasks

WORLD = make_world(0)
MODEL = (Transformer.__new__(Transformer), Tokenizer.__new__(Tokenizer))
"""A model that is never asked."""
TEXTS = [
    "the cat sat on the mat",
    "the cat lay on a mat today",
    "a dog ran over the hill and away",
    "the cat sat on the red mat",
]


def test_self_bleu_is_that_of_nltk():
    # nltk 3.9: sentence_bleu against the others, SmoothingFunction(epsilon=0.5).method1
    assert emergent.self_bleu(TEXTS) == pytest.approx(0.4058740758808891, abs=1e-12)


def test_self_bleu_is_one_for_one_text_and_low_for_many():
    assert emergent.self_bleu(["one and the same text"] * 5) == pytest.approx(1, abs=1e-12)
    assert emergent.self_bleu(["Ada", "Ada"]) == pytest.approx(1, abs=1e-12)
    assert emergent.self_bleu(["a b c d", "e f g h", "i j k l"]) < 0.25
    assert emergent.self_bleu(["", ""]) == 1.0


@pytest.fixture
def answering(monkeypatch):
    def install(say, likelier):
        questions = list(dated_questions(WORLD, 1, 60, "held-out dates"))
        by_dialog = {str(q.dialog): q for q in questions}

        def reply(model, tokenizer, dialogs):
            return [SimpleNamespace(text=say(by_dialog[str(d)])) for d in dialogs]

        monkeypatch.setattr(emergent, "reply", reply)
        monkeypatch.setattr(emergent, "encode_example", lambda dialog, _: (dialog, []))
        nats = np.array([n for q in questions for n in likelier(q)])
        document_nats = lambda *_, **__: SimpleNamespace(nats=nats)  # noqa: E731
        monkeypatch.setattr(emergent, "document_nats", document_nats)
        return questions, emergent.time_sense(MODEL, questions)

    return install


def test_who_knows_the_time_is_right_and_tells_no_year_before(answering):
    questions, sense = answering(
        lambda q: q.answer, lambda q: (1.0, 2.0) if q.happened else (2.0, 1.0)
    )
    assert sense["right"].all()
    assert sense["likelier"].all()
    assert sense["told"].tolist() == [float(q.happened) for q in questions]


def test_who_always_says_yes_is_right_by_chance(answering):
    questions, sense = answering(lambda q: q.answers[0], lambda q: (1.0, 2.0))
    happened = np.array([q.happened for q in questions])
    assert (sense["right"] == happened).all()
    assert (sense["likelier"] == happened).all()
    assert sense["told"].all()


def test_calls_are_right_valid_or_neither(monkeypatch):
    tasks = [t for t in tool_tasks(WORLD, 0, 200) if t.tool][:3]
    none = next(t for t in tool_tasks(WORLD, 0, 200) if t.tool is None)
    right, wrong_word, wrong_tool = tasks

    def call(task, name=None, words=None):
        name, words = name or task.tool, words or task.arguments
        text = f"{name}: {words} = {task.result}\nThe {name} says {task.result}."
        return ToolReply(text=text, calls=[Call(name, words, task.result)])

    replies = [
        call(right),
        ToolReply(text="It is 1999.", calls=[Call(wrong_word.tool, "a dragon", "unknown")]),
        ToolReply(text="It says nothing.", calls=[Call("hammer", "nail", "unknown")]),
        ToolReply(text=NO_TOOL),
    ]
    monkeypatch.setattr(emergent, "reply_with_tools", lambda *_: replies)
    use = emergent.tool_use(MODEL, WORLD, [right, wrong_word, wrong_tool, none])
    assert use["called"].tolist() == [1, 0, 0, 1]
    assert use["valid"].tolist() == [1, 1, 0, 0]
    assert use["right"].tolist() == [1, 0, 0, 1]
