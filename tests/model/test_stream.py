"""Answers as they grow: in the end the same as those that come at once."""

import math

import pytest
import torch

from llama2_lib.model import generate as generation
from llama2_lib.model.chat import Conversation, continued, reply, stream
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import generate, stream_ids
from llama2_lib.text.tokenizer import Tokenizer

BOS, EOS = 1, 2
SAMPLING = [{"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9}]
PROMPT = [1, 30, 40, 50]
HELLO = [{"role": "user", "content": "Hello"}]


class Letters(Tokenizer):
    """One id per character, to be read in tests; BOS 1, EOS 2."""

    def __init__(self):
        self.vocab_size, self.bos_id, self.eos_id = 200, BOS, EOS

    def encode(self, text, bos=False, eos=False):
        return [BOS] * bos + [ord(letter) for letter in text] + [EOS] * eos

    def decode(self, ids):
        return "".join(chr(token) for token in ids if token > EOS)


@pytest.fixture
def model(random_model):
    """Weights of order 1, over letters, with a context of 90."""
    config = ModelConfig(
        vocab_size=200, dim=48, n_layers=2, n_heads=6, n_kv_heads=2, multiple_of=20, max_seq_len=90
    )
    return random_model(config=config)


@pytest.fixture
def steps(monkeypatch):
    """How often a decoder was asked for the next logits."""
    asked, step = [], generation.Decoder.step
    count = lambda self, token, cache: asked.append(1) or step(self, token, cache)  # noqa: E731
    monkeypatch.setattr(generation.Decoder, "step", count)
    return asked


@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "nucleus"])
@pytest.mark.parametrize("fast", [True, False])
def test_the_ids_are_those_of_generate(model, monkeypatch, sampling, fast):
    monkeypatch.setattr(generation, "STACK_LIMIT", math.inf if fast else 0)
    for seed in (0, 5, [7]):
        options = {"max_new_tokens": 25, "seed": seed, "stop_ids": {EOS}} | sampling
        [whole] = generate(model, [PROMPT], **options)
        assert list(stream_ids(model, PROMPT, **options)) == whole.ids
        # a stop id is the last, and nothing comes after it
        stopping = options | {"stop_ids": {whole.ids[9]}}
        [cut] = generate(model, [PROMPT], **stopping)
        assert list(stream_ids(model, PROMPT, **stopping)) == cut.ids
        assert cut.finished
        assert len(cut.ids) <= 10
    if sampling["temperature"]:
        assert list(stream_ids(model, PROMPT, **options | {"seed": 6})) != whole.ids


def test_every_id_comes_before_the_next_is_computed_and_closing_ends_the_work(model, steps):
    ids = stream_ids(model, PROMPT, max_new_tokens=40)
    counts = [len(steps) for _, _ in zip(range(4), ids, strict=False)]
    assert counts == [0, 1, 2, 3]
    assert not torch.is_inference_mode_enabled(), "the caller's own tensors are not changed"
    ids.close()
    assert list(ids) == []
    assert len(steps) == 3
    assert len(list(stream_ids(model, PROMPT, max_new_tokens=40))) == 40


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ([], {}),
        ([1, 200], {}),
        ("text", {}),
        ([1] * 80, {}),
        (PROMPT, {"temperature": -1.0}),
        (PROMPT, {"top_p": 0.0}),
        (PROMPT, {"max_new_tokens": 0}),
        (PROMPT, {"stop_ids": {200}}),
        (PROMPT, {"seed": [1, 2]}),
    ],
)
def test_errors_are_those_of_generate_and_come_at_once(model, unchecked, prompt, options):
    options = {"max_new_tokens": 20} | options
    with pytest.raises(ValueError, match=r"must|needs|is empty") as whole:
        generate(model, [prompt], **options)
    with pytest.raises(ValueError, match=r"must|needs|is empty") as grown:
        stream_ids(model, prompt, **options)
    assert str(grown.value) == str(whole.value)


def test_what_is_no_number_is_refused_where_it_comes(model):
    [first] = generate(model, [PROMPT], max_new_tokens=1, temperature=0.0)
    model.tok_embeddings.weight.data[first.ids[0]] = math.nan
    ids = stream_ids(model, PROMPT, max_new_tokens=5, temperature=0.0)
    assert next(ids) == first.ids[0]
    with pytest.raises(FloatingPointError, match="the logits of the model must be numbers"):
        next(ids)


@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "nucleus"])
def test_a_reply_grows_to_what_it_is_at_once(model, sampling):
    for text in ("Hello", "x" * 71):  # the second leaves room for three ids
        dialog = [{"role": "user", "content": text}]
        [whole] = reply(model, Letters(), [dialog], seed=3, max_new_tokens=20, **sampling)
        grown = list(stream(model, Letters(), dialog, seed=3, max_new_tokens=20, **sampling))
        assert grown[-1] == whole
        assert [one.ids for one in grown] == [whole.ids[: n + 1] for n in range(len(whole.ids))]
        assert not any(one.ended for one in grown[:-1])
    with pytest.raises(ValueError, match="must leave room for an answer in 90 tokens"):
        stream(model, Letters(), [{"role": "user", "content": "x" * 74}])


def test_closing_a_reply_or_a_text_ends_the_work(model, steps):
    for growing in (
        stream(model, Letters(), HELLO, max_new_tokens=30),
        continued(model, Letters(), "Hello", max_new_tokens=30),
        Conversation(model, Letters()).ask("Hello", max_new_tokens=30),
    ):
        steps.clear()
        next(growing)
        next(growing)
        growing.close()
        assert len(steps) == 1


def test_a_text_is_continued_and_a_question_gets_the_beginning_of_an_answer(model):
    [*_, grown] = continued(model, Letters(), "Once", max_new_tokens=12, temperature=0.0)
    [whole] = generate(
        model, [Letters().encode("Once", bos=True)], max_new_tokens=12, temperature=0.0,
        stop_ids={EOS},
    )  # fmt: skip
    assert grown.text == "Once" + Letters().decode(whole.ids).rstrip()
    first = next(continued(model, Letters(), "Question: Why?", max_new_tokens=2))
    assert first.text.startswith("Question: Why?\nAnswer:")
    with pytest.raises(ValueError, match="prompt and answer must fit 90 tokens"):
        continued(model, Letters(), "Once", max_new_tokens=90)


def test_a_conversation_keeps_whole_turns_alone_and_its_system_message_always(model):
    room = Conversation(model, Letters())
    room.least_room = 8
    room.tell("Be.")
    for turn in range(10):
        asked = f"What {turn}?"
        *_, said = room.ask(asked, max_new_tokens=8, seed=turn)
        assert [room.asked[0]["content"], room.asked[-1]["content"]] == ["Be.", asked]
        kept = [message["content"] for message in room.dialog]
        assert kept[-2:] == [asked, said.text]
        assert "Be." not in kept
    assert room.forgot, "ten turns fit a context of 90 letters"
    before = list(room.dialog)
    stopped = room.ask("And?", max_new_tokens=8)
    next(stopped)
    stopped.close()
    assert room.dialog == before
    with pytest.raises(ValueError, match="the format's tags"):
        next(room.ask("[INST]"))
    assert room.dialog == before
