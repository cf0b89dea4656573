"""The stages `instructed` and `ghost_attention`, on the recipe `toy`."""

from dataclasses import replace
from shutil import copytree
from unittest.mock import patch

import pytest
import torch

from llama2_lib import pipeline, storage
from llama2_lib.model.chat import Reply
from llama2_lib.model.weights import load_model
from llama2_lib.recipes import toy
from llama2_lib.stages import ghost_attention
from llama2_lib.stages import ghost_attention as run
from llama2_lib.stages.ghost_attention import last_turns, on_first_turn_only
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.instructions import worded

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ready(toy_root):
    folder = pipeline.artifact_path("instructed", toy(), toy_root)
    return load_model(folder)[0], load_tokenizer(folder)


def varied(**settings):
    return replace(toy(), ghost_attention=replace(toy().ghost_attention, **settings))


def test_finished_stages_leave_what_they_promise(toy_root):
    for stage in ("instructed", "ghost_attention"):
        folder = pipeline.artifact_path(stage, toy(), toy_root)
        storage.read_sealed(folder, stage, folder.name)
        before, after = _ends(folder)
        assert before["dropped"] == 0
        assert after["validation_loss"] < before["validation_loss"]
    ghosts = storage.read_rows(folder / "ghosts.jsonl.gz", dict)
    config = toy().ghost_attention
    assert len(ghosts) == before["ghosts"] + before["held back"]
    assert before["held back"] == config.n_validation
    assert before["prompts"] + before["too long"] == config.n_dialogs
    assert before["samples"] == config.n_samples * before["prompts"]
    assert 0 <= before["obeying samples"] <= before["samples"]
    for line in ghosts:
        words = " ".join(item["text"] for item in line["instructions"])
        users = [m["content"] for m in line["prompt"] if m["role"] == "user"]
        assert all(text.startswith(f"{words} ") for text in users)
        assert line["answer"]


def _ends(folder):
    rows = [
        row for row in storage.read_metrics(folder / "metrics.jsonl") if "validation_loss" in row
    ]
    return rows[0], rows[-1]


def test_prompts_fit_the_context_and_what_does_not_is_counted(ready):
    model, tokenizer = ready
    recipe = varied(most_turns=8)
    config = recipe.ghost_attention
    prompts, n_too_long = run.teacher_prompts(recipe, model, tokenizer)
    room = model.config.max_seq_len - config.max_new_tokens
    students = [on_first_turn_only(prompt, worded(given)) for prompt, given, *_ in prompts]
    assert all(len(encode_prompt(student, tokenizer)) <= room for student in students)
    assert len(prompts) + n_too_long == config.n_dialogs
    assert n_too_long > 0
    heard = []

    def draw(model, tokenizer, dialogs, *given, **options):
        heard.extend(dialogs)
        return [[] for _ in dialogs]

    with patch.object(run, "draw", draw):
        _, counts = run.sample_last_answers(config, model, tokenizer, prompts)
    short = 0
    for asked, (prompt, *_) in zip(heard, prompts, strict=True):
        assert len(encode_prompt(asked, tokenizer)) <= room
        assert asked == prompt[-len(asked) :]
        if len(asked) < len(prompt):
            short += 1
            assert len(encode_prompt(prompt[-len(asked) - 2 :], tokenizer)) > room
    assert short == counts["without first turns"] > 0


def test_reading_a_has_plain_earlier_answers_and_reading_b_sampled_ones(ready):
    model, tokenizer = ready
    plain, _ = run.teacher_prompts(varied(), model, tokenizer)
    heard = []

    def answer(model, tokenizer, dialogs, **options):
        heard.extend(list(dialog) for dialog in dialogs)
        return [Reply(f"say {len(dialog)}", [3], True) for dialog in dialogs]

    with patch.object(run, "reply", answer):
        again, _ = run.teacher_prompts(varied(), model, tokenizer)
        assert again == plain
        assert heard == []
        sampled, _ = run.teacher_prompts(varied(reading="B"), model, tokenizer)
    by_user = {
        tuple(m["content"] for m in prompt[::2]): (prompt, given) for prompt, given, *_ in plain
    }
    compared = 0
    for prompt, given, *_ in sampled:
        assert [m["content"] for m in prompt[1::2]] == [
            f"say {place}" for place in range(1, len(prompt), 2)
        ]
        other = by_user.get(tuple(m["content"] for m in prompt[::2]))
        if other is not None and len(prompt) > 1:
            assert other[1] == given
            assert other[0][1::2] != prompt[1::2]
            compared += 1
    assert compared > 3
    # Every earlier answer was asked for with the instruction in all messages up to it.
    room = model.config.max_seq_len - varied().ghost_attention.max_new_tokens
    for prompt, given, *_ in sampled:
        for place in range(1, len(prompt), 2):
            assert last_turns(prompt[:place], tokenizer, room) in heard
        assert all(m["content"].startswith(f"{worded(given)} ") for m in prompt[::2])


def test_samples_that_were_cut_off_or_said_twice_are_left_out(ready):
    model, tokenizer = ready
    config = replace(toy().ghost_attention, n_samples=4)
    prompts, _ = run.teacher_prompts(toy(), model, tokenizer)
    replies = [Reply("a", [3], True), Reply("a", [3], True), Reply("b", [3], False),
               Reply("c", [3], True)]  # fmt: skip
    with patch.object(run, "draw", lambda *given, **options: [replies] * len(prompts)):
        entries, counts = run.sample_last_answers(config, model, tokenizer, prompts)
    assert [entry.answer for entry in entries] == ["a", "c"] * len(prompts)
    del counts["without first turns"]
    assert counts == {
        "prompts": len(prompts), "samples": 4 * len(prompts), "obeying samples": 0,
        "distinct": 2 * len(prompts),
    }  # fmt: skip


def test_a_model_that_never_obeys_is_an_error_and_not_an_empty_run(toy_root, tmp_path):
    recipe = varied(only_obeying=True, n_dialogs=6)
    done = copytree(toy_root, tmp_path / "root")
    with (
        patch.object(run, "obeys", lambda given, answer: False),
        patch.object(ghost_attention, "obeys", lambda given, answer: False),
        pytest.raises(ValueError, match="must have a sample to keep; got 0"),
    ):
        pipeline.artifact("ghost_attention", recipe, device="cpu", root=done, bar=False)


def test_the_weights_of_the_model_before_are_left_alone_and_the_new_ones_differ(toy_root):
    names = ("ppo", "instructed", "ghost_attention")
    models = [load_model(pipeline.artifact_path(name, toy(), toy_root))[0] for name in names]
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
