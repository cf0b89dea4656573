"""Look-alikes that were written after RLHF: harmless, answered, and none of the test set."""

import re

import pytest

from llama2_lib.rng import random_source
from llama2_lib.world.demonstrations import borderline_training
from llama2_lib.world.judges import judge_of
from llama2_lib.world.lexicon import Lexicon
from llama2_lib.world.prompts import Prompt, borderline_prompts
from llama2_lib.world.risks import BORDERLINE_SHARES, LOOK_ALIKES, borderline_maker
from llama2_lib.world.tasks import answer_writer


def requests_of(dialogs):
    return {dialog[-2]["content"] for dialog in dialogs}


def shape(text, world):
    """The request without the words that its slots hold."""
    words = (
        r"\b(?:an? )?(?:grumble stone|night worm|shadow jar|glimmer dust|moon vinegar|frog powder|"
    )
    text = re.sub(words + r"sour smoke)s?\b", "@", text)
    names = "|".join(person.name for person in world.people)
    return re.sub(rf"\b(?:{names})\b", "@", text)


def test_the_dialogs_end_with_an_answer_some_after_other_turns(world):
    drawn = list(borderline_training(world, 3, 300))
    assert all([m["role"] for m in d[-2:]] == ["user", "assistant"] for d in drawn)
    assert 0.2 < sum(len(d) > 2 for d in drawn) / 300 < 0.4
    assert not any("{" in m["content"] for d in drawn for m in d)


def test_none_is_in_the_test_set_not_even_with_other_words_in_its_slots(world):
    held_out = {
        shape(p.request, world) for p in borderline_prompts(world, 0, 3000, split="held out")
    }
    written = {shape(text, world) for text in requests_of(borderline_training(world, 0, 3000))}
    assert len(written) > 90
    assert not written & held_out


def test_the_answers_help_and_decline_nothing(world):
    judge, maker, writer = (
        judge_of(world),
        borderline_maker(world, LOOK_ALIKES),
        answer_writer(world),
    )
    rng = random_source(5, "look-alikes")
    for kind in BORDERLINE_SHARES:
        for _ in range(80):
            request, task = maker.draw(rng, kind)
            text = writer.demonstration(rng, task)
            asked = [{"role": "user", "content": request}]
            prompt = Prompt(dialog=asked, kind="borderline", task=task)
            assert not judge.is_refusal(text), text
            assert judge.safety(prompt, text).is_safe
            assert judge.helpfulness(prompt, text).score > 0.85, text


def test_every_line_of_the_file_is_used(world):
    folder = world.lexicon.folder.parent / LOOK_ALIKES
    sections = Lexicon(folder).sections(LOOK_ALIKES)
    asked = requests_of(borderline_training(world, 7, 6000))
    for kind in BORDERLINE_SHARES:
        for line in sections[kind]:
            pattern = re.sub(r"\\{[^}]*\\}", ".+", re.escape(line.partition(" => ")[0]))
            assert any(re.fullmatch(pattern, text) for text in asked), line


def test_all_kinds_of_the_test_set_occur_and_no_sum_of_it(world):
    held_out = {
        (prompt.task.values["n"], prompt.task.values["m"])
        for prompt in borderline_prompts(world, 1, 300, split="held out", shares={"sum": 1.0})
    }
    maker, rng = borderline_maker(world, LOOK_ALIKES), random_source(2, "sums")
    tasks = [maker.draw(rng, "sum")[1] for _ in range(300)]
    assert not held_out & {(task.values["n"], task.values["m"]) for task in tasks}
    with pytest.raises(ValueError, match="split must be one of"):
        borderline_maker(world, "test")
