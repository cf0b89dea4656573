"""What a run of PPO is told: its numbers, its prompts, networks that fit together."""

import pytest

from llama2_lib.config import PpoConfig
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.heads import scalar_model
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.ppo import ActorCritic, prompt_stream

GOOD = {"iterations": 2, "batch_size": 8, "minibatch_size": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"minibatch_size": 3}, "a multiple of minibatch_size; got 8 and 3"),
        ({"minibatch_size": 16}, "a multiple of minibatch_size; got 8 and 16"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"eval_every": 0}, "eval_every must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"save_every": -1}, "save_every must be at least 1; got -1"),
        ({"beta": -0.1}, r"beta must be at least 0; got -0.1"),
        ({"lr": -1.0}, "lr must be at least 0; got -1.0"),
        ({"value_weight": -0.5}, "value_weight must be at least 0; got -0.5"),
        ({"temperature": 0.0}, "temperature must be above 0 and finite; got 0.0"),
        ({"temperature": float("inf")}, "temperature must be above 0 and finite; got inf"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    PpoConfig(**GOOD)
    with pytest.raises(ValueError, match=message):
        PpoConfig(**(GOOD | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"whiten_by": "prompt"}, {"value_warmup": -1}, {"clip": 0.0}, {"value_clip": 0.0},
        {"gamma": 1.5}, {"lam": -0.1}, {"n_held_out": 0}, {"longest_prompt": 0},
        {"beta": float("nan")}, {"value_lr_multiplier": -1.0},
    ],
    ids=str,
)  # fmt: skip
def test_these_settings_are_refused_as_well(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        PpoConfig(**(GOOD | changes))


def network(vocab):
    return Transformer(ModelConfig(vocab_size=vocab, dim=16, n_layers=1, n_heads=2))


def test_a_value_function_of_another_tokenizer_is_refused():
    ActorCritic(network(11), scalar_model(network(11)))
    with pytest.raises(ValueError, match="one vocabulary; got 11 and 12 pieces"):
        ActorCritic(network(11), scalar_model(network(12)))


def test_all_prompts_come_before_any_comes_twice():
    numbered = [([1, row], row % 2 == 0) for row in range(12)]
    of = prompt_stream(numbered, 4, seed=0)
    drawn = [of(iteration) for iteration in range(6)]
    first, second = ([*drawn[i], *drawn[i + 1], *drawn[i + 2]] for i in (0, 3))
    assert sorted(first) == sorted(second) == numbered
    assert first != second
    assert of(4) == drawn[4]  # a function of the number: a resumed run needs no state
    assert prompt_stream(numbered, 4, seed=1)(0) != drawn[0]
    assert sorted(prompt_stream(numbered, 12, seed=0)(1)) == numbered
    with pytest.raises(ValueError, match="an iteration needs 13 prompts; got 12"):
        prompt_stream(numbered, 13, seed=0)


def test_a_rest_of_prompts_comes_before_any_comes_twice():
    of = prompt_stream([([1, row], False) for row in range(10)], 4, seed=0)
    drawn = [prompt for iteration in range(5) for prompt in of(iteration)]
    assert len({ids[1] for ids, _ in drawn[:10]}) == 10
