"""Answers, endings, recall in chat form and loss on answers, on models whose answers are known."""

import numpy as np
import pytest
import torch

from llama2_lib.evaluation import chat
from llama2_lib.evaluation.chat import (
    Answer,
    answer,
    answer_loss,
    as_dialog,
    chat_recall,
    ended_share,
)
from llama2_lib.evaluation.language import document_nats
from llama2_lib.evaluation.statistics import proportion
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import Completion, generate
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.questions import recall_items

BOS, EOS = 1, 2


class Letters(Tokenizer):
    """One id per character, to be read in tests; BOS 1, EOS 2."""

    def __init__(self):
        self.n_words, self.bos_id, self.eos_id = 200, BOS, EOS

    def encode(self, text, bos=False, eos=False):
        return [BOS] * bos + [ord(letter) for letter in text] + [EOS] * eos

    def decode(self, ids):
        return "".join(chr(token) for token in ids if token > EOS)


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def model(random_model):
    """Weights of order 1, over letters, with a context of 90."""
    config = ModelConfig(
        vocab_size=200, dim=48, n_layers=2, n_heads=6, n_kv_heads=2, multiple_of=20, max_seq_len=90
    )
    return random_model(config=config)


DIALOGS = [user(text) for text in ("Hi", "a longer question " * 3, "ab", "What is it?", "x" * 55)]


def test_a_greedy_answer_is_what_generate_gives_alone(model):
    answers = answer(model, Letters(), DIALOGS, max_new_tokens=15)
    for dialog, said in zip(DIALOGS, answers, strict=True):
        prompt = encode_prompt(dialog, Letters())
        room = min(15, 90 - len(prompt))
        [alone] = generate(model, [prompt], max_new_tokens=room, temperature=0.0, stop_ids={EOS})
        assert said.ids == alone.ids
        assert said.ended == alone.finished
        assert said.text == Letters().decode(alone.ids).strip()
    assert len({tuple(said.ids) for said in answers}) == len(DIALOGS)


def test_a_dialog_with_little_room_gets_what_there_is(model):
    long = user("x" * 71)
    n = len(encode_prompt(long, Letters()))
    assert n == 87
    answers = answer(model, Letters(), [DIALOGS[0], long, DIALOGS[2]], max_new_tokens=20)
    assert [len(said.ids) for said in answers] == [20, 3, 20]
    assert not answers[1].ended
    with pytest.raises(ValueError, match=r"in 90 tokens; dialog 1 has 90. Drop its first turns"):
        answer(model, Letters(), [DIALOGS[0], user("x" * 74)])


def test_a_sampled_answer_depends_on_its_number_and_not_on_its_companions(model):
    options = {"temperature": 1.0, "seed": 4, "max_new_tokens": 12}
    texts = [said.ids for said in answer(model, Letters(), DIALOGS, **options)]
    assert [said.ids for said in answer(model, Letters(), DIALOGS[:2], **options)] == texts[:2]
    twice = answer(model, Letters(), [DIALOGS[0]] * 2, **options)
    assert twice[0].ids == texts[0] != twice[1].ids
    other = answer(model, Letters(), DIALOGS, **options | {"seed": 5})
    assert [said.ids for said in other] != texts


def test_an_answer_ends_at_its_first_eos(model):
    said = answer(model, Letters(), DIALOGS[:1] * 60, max_new_tokens=25, temperature=4.0)
    assert 3 < sum(one.ended for one in said) < 57
    for one in said:
        assert one.ids.count(EOS) == int(one.ended)
        assert one.ids[-1] == EOS if one.ended else len(one.ids) == 25


def test_batches_are_of_similar_length_and_hold_every_row_once(monkeypatch):
    monkeypatch.setattr(chat, "BATCH", 3)
    lengths = [5, 40, 1, 7, 30, 2, 6, 3]
    batches = list(chat._batches(lengths, 20))
    assert batches == [[2, 5, 7], [0, 6, 3], [4], [1]]


@pytest.fixture
def answering(monkeypatch):
    """Replace generation by a table from prompt to text, with or without EOS."""

    def install(table, ended=True):
        def say(model, prompts, **options):
            texts = [table[tuple(prompt)] for prompt in prompts]
            return [Completion([ord(c) for c in text] + [EOS] * ended, [], ended) for text in texts]

        monkeypatch.setattr(chat, "generate", say)

    return install


@pytest.fixture(scope="module")
def items():
    return recall_items(make_world(0))


def prompts_of(items):
    return [tuple(encode_prompt(as_dialog(item), Letters())) for item in items]


def test_a_question_is_asked_as_a_user_would(items):
    [message] = as_dialog(items[0])
    assert message["role"] == "user"
    assert items[0].prompt == f"Question: {message['content']}\nAnswer:"
    assert message["content"].endswith("?")


def test_recall_counts_right_answers_by_exposure(model, answering, items):
    assert len(set(prompts_of(items))) == len(items)
    right = {"seen form": 0.5, "unseen form": 0.25, "never asked": 0.0}
    table, wanted, met = {}, dict.fromkeys(right, 0), dict.fromkeys(right, 0)
    for item, prompt in zip(items, prompts_of(items), strict=True):
        share, met[item.exposure] = right[item.exposure], met[item.exposure] + 1
        hit = share > 0 and met[item.exposure] % round(1 / share) == 0
        wrong = next(value for value in item.choices if value != item.answer)
        table[prompt] = f"It is {item.answer if hit else wrong}. "
        wanted[item.exposure] += hit
    model.config = ModelConfig(vocab_size=200, dim=48, n_layers=2, n_heads=6, max_seq_len=300)
    answering(table)
    result = chat_recall(model, Letters(), items)
    assert result == {name: proportion(wanted[name], met[name]) for name in sorted(right)}
    assert 0.4 < result["seen form"].value <= 0.5
    assert result["never asked"].value == 0


def test_the_share_of_ended_answers():
    said = [Answer("a", [5, EOS], True)] * 7 + [Answer("b", [6, 7], False)] * 3
    assert ended_share(said) == proportion(7, 10)


@pytest.fixture
def examples():
    source = torch.Generator().manual_seed(9)
    lengths = [(4, 3), (2, 9), (12, 1), (5, 5)]
    rows = []
    for n_prompt, n_answer in lengths:
        ids = torch.randint(3, 53, (n_prompt + n_answer,), generator=source).tolist()
        rows.append((ids, [False] * n_prompt + [True] * n_answer))
    return rows


def test_the_loss_on_answers_is_the_loop_over_their_tokens(random_model, examples):
    model = random_model()
    total = 0.0
    for ids, mask in examples:
        for t, is_target in enumerate(mask):
            if is_target:
                logits = model(torch.tensor([ids[:t]]))[0, -1]
                total -= logits.log_softmax(-1)[ids[t]].item()
    result = answer_loss(model, examples)
    assert result.value == pytest.approx(total / 18, rel=1e-10, abs=0)
    assert result.low < result.value < result.high
    assert result.n == 4
    everything = document_nats(model, [ids for ids, _ in examples])
    np.testing.assert_array_equal(everything.tokens, [6, 10, 12, 9])
    whole = everything.nats.sum() / everything.tokens.sum()
    assert abs(result.value - whole) > 0.05, "the prompts cost the same: vacuous"


def test_a_mask_over_all_but_the_first_token_is_the_loss_of_the_document(random_model, examples):
    model, documents = random_model(), [ids for ids, _ in examples]
    marked = [[False] + [True] * (len(ids) - 1) for ids in documents]
    masked, plain = document_nats(model, documents, targets=marked), document_nats(model, documents)
    np.testing.assert_array_equal(masked.nats, plain.nats)
    np.testing.assert_array_equal(masked.tokens, plain.tokens)


def test_an_example_beyond_the_context_is_refused(random_model, examples):
    model = random_model()
    fits = ([5] * 38, [False] + [True] * 37)
    answer_loss(model, [*examples, fits])
    with pytest.raises(ValueError, match=r"must fit 38 tokens to be scored; example 4 has 39"):
        answer_loss(model, [*examples, ([5] * 39, [False] + [True] * 38)])
