"""Samples of a toy policy: K answers a prompt, and what a temperature is worth."""

import numpy as np
import pytest

from llama2_lib.config import RejectionConfig
from llama2_lib.model.chat import Reply
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.stages import rejection
from llama2_lib.stages.rejection import Sample, best_temperature, draw, temperature_curves

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB, K = 512, 5
PROMPTS = [
    Sample([{"role": "user", "content": text}], False, "", 1, 0.0)
    for text in ("Hello!", "Who is Ned?", "What is 2 plus 3?")
]


@pytest.fixture(scope="module")
def policy():
    shape = ModelConfig(
        vocab_size=VOCAB, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, multiple_of=8,
        max_seq_len=64,
    )  # fmt: skip
    return initialise(Transformer(shape), 0).eval()


def drawn(policy, tokenizer, k=K, temperature=1.0, seed=3):
    return draw(
        policy, tokenizer, [p.dialog for p in PROMPTS], k, temperature, seed=seed,
        max_new_tokens=7,
    )  # fmt: skip


def test_every_prompt_gets_k_answers_of_its_own(policy, tokenizer):
    found = drawn(policy, tokenizer)
    assert [len(answers) for answers in found] == [K] * 3
    texts = [said.text for answers in found for said in answers]
    assert len(set(texts)) == 3 * K
    assert drawn(policy, tokenizer) == found
    assert drawn(policy, tokenizer, seed=4) != found
    assert all(1 <= len(said.ids) <= 7 for answers in found for said in answers)


def test_answers_stand_with_their_prompts(policy, tokenizer, monkeypatch):
    def echo(model, tok, asked, **settings):
        return [Reply(f"{d[-1]['content']} {i}", [1], True) for i, d in enumerate(asked)]

    monkeypatch.setattr(rejection, "reply", echo)
    found = [[said.text for said in answers] for answers in drawn(policy, tokenizer, k=2)]
    assert found == [
        ["Hello! 0", "Hello! 1"],
        ["Who is Ned? 2", "Who is Ned? 3"],
        ["What is 2 plus 3? 4", "What is 2 plus 3? 5"],
    ]


def test_first_tokens_of_a_prompts_samples_differ(policy, tokenizer):
    for answers in drawn(policy, tokenizer, k=20):
        assert len({said.ids[0] for said in answers}) > 5


def letters(rows):
    """A reward that is no constant: how many different letters an answer has."""
    return np.array([float(len(set(row.answer))) for row in rows])


def curve(policy, tokenizer, rewards=letters, **changes):
    settings = RejectionConfig(
        n_prompts=3, n_samples=K, temperatures=(0.4, 1.0, 1.6), max_new_tokens=7, **changes
    )
    return temperature_curves(policy, tokenizer, PROMPTS, settings, rewards, seed=3)


def test_a_curve_rises_from_the_mean_to_the_maximum(policy, tokenizer):
    curves = curve(policy, tokenizer)
    assert list(curves) == [0.4, 1.0, 1.6]
    for temperature, points in curves.items():
        said = drawn(policy, tokenizer, temperature=temperature)
        scores = np.array([[len(set(s.text)) for s in answers] for answers in said], float)
        assert len(points) == K
        assert np.diff(points).min() >= 0
        assert points[-1] > points[0] + 1
        assert points[0] == pytest.approx(scores.mean(), rel=0, abs=1e-9)
        assert points[-1] == pytest.approx(scores.max(axis=1).mean(), rel=0, abs=1e-9)
    assert best_temperature(curves) in curves
    assert len({tuple(points) for points in curves.values()}) == 3


def test_rewards_are_asked_for_every_sample_of_every_prompt(policy, tokenizer):
    asked = []

    def listening(rows):
        asked.append([(row.key, row.answer, row.is_safety) for row in rows])
        return letters(rows)

    curve(policy, tokenizer, listening)
    said = drawn(policy, tokenizer, temperature=0.4)
    assert len(asked) == 3
    assert asked[0] == [
        (prompt.key, one.text, False)
        for prompt, answers in zip(PROMPTS, said, strict=True)
        for one in answers
    ]
    assert not all(one.ended for answers in said for one in answers)  # these count, too


def test_equal_rewards_make_a_flat_curve(policy, tokenizer):
    for points in curve(policy, tokenizer, lambda rows: np.full(len(rows), 0.3)).values():
        np.testing.assert_allclose(points, 0.3, rtol=0, atol=1e-9)
