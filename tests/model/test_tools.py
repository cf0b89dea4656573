"""Calls of tools: the mask on what a tool says, and the loop that runs them."""

import pytest

from llama2_lib.model import tools
from llama2_lib.model.generate import Completion
from llama2_lib.model.tools import Call, called, reply_with_tools, tool_example
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.text.tokenizer import Tokenizer


class Words(Tokenizer):
    """A tokenizer of whole words and line breaks."""

    def __init__(self):
        self.words = ["<unk>", "<s>", "</s>"]
        self.eos_id = 2

    def encode(self, text, bos=False, eos=False):
        parts = text.replace("\n", " \n ").split(" ")
        for part in parts:
            if part and part not in self.words:
                self.words.append(part)
        return [1] * bos + [self.words.index(p) for p in parts if p] + [2] * eos

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids if i > 2).replace(" \n ", "\n")


MODEL = Transformer.__new__(Transformer)
"""A model that is never asked."""
DIALOG = [{"role": "system", "content": "Tools: scale"}, {"role": "user", "content": "How heavy?"}]


def test_prompt_and_result_are_no_targets():
    tok = Words()
    ids, mask = tool_example(DIALOG, "scale: goose =", "7", "The scale says 7.", tok)
    prompt = encode_prompt(DIALOG, tok)
    assert ids[: len(prompt)] == prompt
    shown = [tok.decode([i]) if i > 2 else "</s>" for i, m in zip(ids, mask, strict=True) if m]
    assert shown == ["scale:", "goose", "=", "The", "scale", "says", "7.", "</s>"]
    assert tok.decode([i for i, m in zip(ids, mask, strict=True) if not m]).endswith("7 \n")


@pytest.fixture
def says(monkeypatch):
    """Make a model of what it says, part by part, whatever it is asked."""

    def install(tok, parts):
        prompts = []

        def generate(model, rows, *, max_new_tokens, stop_ids, **_):
            prompts.append(rows)
            text = parts[len(prompts) - 1]
            ids = tok.encode(text.removesuffix("</s>"), eos=text.endswith("</s>"))
            end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
            done = ids[:end][-1] in stop_ids
            return [Completion(ids[:end], [0.0] * end, done) for _ in rows]

        monkeypatch.setattr(tools, "generate", generate)
        monkeypatch.setattr(tools, "room", lambda model, n: 100)
        return prompts

    return install


def run(name, arguments):
    return {"scale": "7", "map": "30"}.get(name, "unknown")


def test_the_result_is_written_behind_the_call_and_read_before_the_rest(says):
    tok = Words()
    prompts = says(tok, ["scale: goose =", "The scale says 7.</s>"])
    [reply] = reply_with_tools(MODEL, tok, [DIALOG], run)
    assert reply.calls == [Call("scale", "goose", "7")]
    assert reply.text == "scale: goose = 7\nThe scale says 7."
    assert reply.ended
    first, second = (rows[0] for rows in prompts)
    assert second == [*first, *tok.encode("scale: goose = 7\n")]
    ids, _ = tool_example(DIALOG, "scale: goose =", "7", "The scale says 7.", tok)
    assert [*first, *reply.ids] == ids, "the model reads what it was trained on"


def test_several_calls_and_no_more_than_allowed(says):
    tok = Words()
    says(tok, ["scale: goose =", "map: Larkhill =", "hammer: nail = 3 </s>"])
    [reply] = reply_with_tools(MODEL, tok, [DIALOG], run)
    assert [call.result for call in reply.calls] == ["7", "30"]
    assert reply.text.endswith("hammer: nail = 3"), "a third call is only text"
    says(tok, ["hammer: nail =", "I see.</s>"])
    [reply] = reply_with_tools(MODEL, tok, [DIALOG], run)
    assert reply.calls == [Call("hammer", "nail", "unknown")]


def test_an_answer_without_a_call_is_an_answer(says):
    tok = Words()
    says(tok, ["I have no tool for that.</s>"])
    [reply] = reply_with_tools(MODEL, tok, [DIALOG], run)
    assert (reply.calls, reply.ended) == ([], True)
    says(tok, ["3 + 4 =", "7</s>"])
    [reply] = reply_with_tools(MODEL, tok, [DIALOG], run)
    assert reply.calls == []
    assert reply.text == "3 + 4 = 7"


def test_who_fills_the_context_stops(monkeypatch):
    tok = Words()
    monkeypatch.setattr(tools, "generate", lambda *_, **__: pytest.fail("nothing fits"))
    monkeypatch.setattr(tools, "room", lambda model, n: 3)
    [reply] = reply_with_tools(MODEL, tok, [DIALOG], run)
    assert (reply.text, reply.ended) == ("", False)


def test_a_call_is_the_last_line():
    assert called("Wait.\nscale: a goose =", run) == Call("scale", "a goose", "7")
    assert called("scale: goose = 7\nso", run) is None
    assert called("scale goose =", run) is None
