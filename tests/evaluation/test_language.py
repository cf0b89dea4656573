"""Loss per document, intervals of ratios, and recall of facts on models that are known."""

import math

import numpy as np
import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.evaluation import language
from llama2_lib.evaluation.language import (
    answer_loss,
    as_dialog,
    chat_recall,
    document_nats,
    ended_share,
    fact_recall,
    perplexity,
    recall_answers,
)
from llama2_lib.evaluation.statistics import Estimate, proportion
from llama2_lib.model.chat import Reply
from llama2_lib.model.generate import Completion
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.recipes import toy
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.facts import recall_items

LENGTHS = [9, 2, 14, 5, 5, 30, 3]


@pytest.fixture
def documents():
    source = torch.Generator().manual_seed(2)
    return [torch.randint(0, 53, (n,), generator=source).tolist() for n in LENGTHS]


def by_hand(model, document):
    """Sum the surprise of one token after the other, each from the whole text before it."""
    total = 0.0
    for end in range(1, len(document)):
        logits = model(torch.tensor([document[:end]]))[0, -1]
        total -= logits.log_softmax(-1)[document[end]].item()
    return total


def test_it_is_the_loop_over_tokens(random_model, documents):
    model = random_model()
    result = document_nats(model, documents)
    expected = [by_hand(model, document) for document in documents]
    np.testing.assert_allclose(result.nats, expected, rtol=1e-10, atol=1e-10)
    assert result.tokens.tolist() == [n - 1 for n in LENGTHS]
    assert len(set(result.nats.round(3))) == len(LENGTHS)


@pytest.mark.parametrize("batch_tokens", [1, 18, 20, 45, 100_000])
def test_batching_changes_nothing(random_model, documents, batch_tokens, monkeypatch):
    model, shapes = random_model(), []
    expected = document_nats(model, documents).nats
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids: shapes.append(ids.shape) or forward(ids))
    result = document_nats(model, documents, batch_tokens=batch_tokens)
    np.testing.assert_allclose(result.nats, expected, rtol=1e-10, atol=1e-10)
    assert len(shapes) == {1: 7, 18: 4, 20: 4, 45: 3, 100_000: 1}[batch_tokens]
    assert all(rows == 1 or rows * (seq + 1) <= batch_tokens for rows, seq in shapes)


def test_long_documents_are_scored_on_their_beginning(random_model, documents):
    model = random_model()
    result = document_nats(model, documents, max_len=8)
    beginnings = document_nats(model, [document[:9] for document in documents])
    np.testing.assert_allclose(result.nats, beginnings.nats, rtol=1e-10, atol=1e-10)
    assert result.tokens.tolist() == [min(n - 1, 8) for n in LENGTHS]
    context = model.config.max_seq_len
    longer = [list(range(2, 52))]
    assert document_nats(model, longer).tokens.tolist() == [context]
    assert document_nats(model, longer, max_len=1000).tokens.tolist() == [context]
    with pytest.raises(ValueError, match="document 1 has less"):
        document_nats(model, [[1, 2], [1], [1, 2, 3]])


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored(random_model, documents, training):
    model, seen = random_model().train(training), []
    model.layers[0].register_forward_hook(lambda layer, *_: seen.append(layer.training))
    document_nats(model, documents)
    assert model.training is training
    assert seen == [False]
    assert not any(p.grad is not None for p in model.parameters())


def test_perplexity_is_the_exponential_of_a_loss():
    result = perplexity(Estimate(value=math.log(8), low=math.log(4), high=math.log(16), n=7))
    assert (result.value, result.low, result.high) == pytest.approx((8, 4, 16), rel=1e-12, abs=0)
    assert result.n == 7


class Letters(Tokenizer):
    """A tokenizer of single characters."""

    def __init__(self):
        self.bos_id, self.eos_id = 1, 2

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [ord(c) for c in text] + [2] * eos

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i > 2)


@pytest.fixture
def items():
    return recall_items(make_world(0))


@pytest.fixture
def answering(monkeypatch):
    """Return a function that makes `generate` answer each question by a rule."""

    def use(rule, items):
        answers = {item.prompt: rule(item) for item in items}
        calls = []

        def generate(model, prompts, **options):
            calls.append((len(prompts), options))
            texts = [answers[Letters().decode(prompt)] for prompt in prompts]
            return [Completion([ord(c) for c in t], [0.0] * len(t), True) for t in texts]

        monkeypatch.setattr(language, "generate", generate)
        return calls

    return use


def other_value(item):
    return next(value for value in item.choices if value.lower() != item.answer.lower())


RULES = {
    "right": (lambda item: f" It is {item.answer}.\n", 1.0),
    "wrong": (lambda item: f" It is {other_value(item)}.\n", 0.0),
    "right and wrong": (lambda item: f" {item.answer} or {other_value(item)}.\n", 0.0),
    "right on the second line": (lambda item: f" Well.\n{item.answer}\n", 0.0),
    "silent": (lambda item: "", 0.0),
}


@pytest.mark.parametrize("rule", RULES)
def test_recall_counts_right_answers_only(answering, items, rule, random_model):
    answer, share = RULES[rule]
    answering(answer, items)
    result = fact_recall(random_model(), Letters(), items)
    assert list(result) == ["never asked", "seen form", "unseen form"]
    for name, estimate in result.items():
        assert (estimate.value, estimate.n) == (share, sum(i.exposure == name for i in items))
        assert 0.0 <= estimate.low < estimate.high <= 1.0


def test_recall_tells_the_exposures_apart(answering, items, random_model):
    def only_seen(item):
        return RULES["right" if item.exposure == "seen form" else "wrong"][0](item)

    answering(only_seen, items)
    result = fact_recall(random_model(), Letters(), items)
    assert {name: e.value for name, e in result.items()} == {
        "never asked": 0.0, "seen form": 1.0, "unseen form": 0.0,
    }  # fmt: skip


def test_answers_are_greedy_first_lines_in_order(answering, items, random_model):
    many = [*items, *items][:300]
    calls = answering(lambda item: f" {item.answer} ", items)
    answers = recall_answers(random_model(), Letters(), many)
    assert answers == [item.answer for item in many]
    assert [rows for rows, _ in calls] == [128, 128, 44]
    assert all(options["temperature"] == 0.0 for _, options in calls)
    assert all(options["stop_ids"] == {2, ord("\n")} for _, options in calls)
    assert all(options["max_new_tokens"] == 24 for _, options in calls)


def test_an_untrained_model_recalls_next_to_nothing(toy_root, items):
    folder = pipeline.artifact_path("tokenizer", toy(), toy_root)
    model = initialise(Transformer(toy().model), 0).eval()
    result = fact_recall(model, load_tokenizer(folder), items)
    assert sum(e.value * e.n for e in result.values()) <= 3
    assert sum(e.n for e in result.values()) == len(items) == 270


def test_recall_in_chat_form_counts_right_answers_by_exposure(random_model, monkeypatch, items):
    right = {"seen form": 0.5, "unseen form": 0.25, "never asked": 0.0}
    table, wanted, met = {}, dict.fromkeys(right, 0), dict.fromkeys(right, 0)
    for item in items:
        share, met[item.exposure] = right[item.exposure], met[item.exposure] + 1
        hit = share > 0 and met[item.exposure] % round(1 / share) == 0
        [message] = as_dialog(item)
        table[message["content"]] = f"It is {item.answer if hit else other_value(item)}."
        wanted[item.exposure] += hit
    assert len(table) == len(items)
    assert message["role"] == "user"
    assert item.prompt == f"Question: {message['content']}\nAnswer:"
    assert message["content"].endswith("?")

    def say(model, tokenizer, dialogs, **options):
        return [Reply(table[message["content"]], [5, 2], True) for [message] in dialogs]

    monkeypatch.setattr(language, "reply", say)
    result = chat_recall(random_model(), Letters(), items)
    assert result == {name: proportion(wanted[name], met[name]) for name in sorted(right)}
    assert 0.4 < result["seen form"].value <= 0.5
    assert result["never asked"].value == 0


def test_the_share_of_ended_answers():
    said = [Reply("a", [5, 2], True)] * 7 + [Reply("b", [6, 7], False)] * 3
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
    # a mask over all but the first token is the loss of the document
    documents = [ids for ids, _ in examples]
    all_marked = [[False] + [True] * (len(ids) - 1) for ids in documents]
    plain, masked = (
        document_nats(model, documents),
        document_nats(model, documents, targets=all_marked),
    )
    np.testing.assert_array_equal(plain.tokens, [6, 10, 12, 9])
    np.testing.assert_array_equal(masked.nats, plain.nats)
    np.testing.assert_array_equal(masked.tokens, plain.tokens)
    whole = plain.nats.sum() / plain.tokens.sum()
    assert abs(result.value - whole) > 0.05, "the prompts cost the same: vacuous"


def test_an_example_beyond_the_context_is_refused(random_model, examples):
    model = random_model()
    fits = ([5] * 38, [False] + [True] * 37)
    answer_loss(model, [*examples, fits])
    with pytest.raises(ValueError, match=r"must fit 38 tokens to be scored; example 4 has 39"):
        answer_loss(model, [*examples, ([5] * 39, [False] + [True] * 38)])


def test_a_mask_is_as_long_as_its_document(random_model):
    with pytest.raises(ValueError, match="one mask a document, as long as it"):
        document_nats(random_model(), [[3, 5, 7, 2]], targets=[[False, True, False]])
