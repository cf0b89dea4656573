"""Every known mistake in Ghost Attention is rejected and named; right code passes."""

import itertools

import pytest

from llama2_lib.stages.ghost_attention import ghost_example, on_every_turn, on_first_turn_only
from llama2_lib.teaching import ghost_attention as checks
from llama2_lib.teaching.check import CheckFailed
from llama2_lib.text.dialog import encode_prompt

CASES = [
    pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
    for check, mistakes in (
        (checks.teacher_prompt, checks.TEACHER_MISTAKES),
        (checks.training_example, checks.EXAMPLE_MISTAKES),
    )
    for name, wrong in mistakes.items()
]


@pytest.mark.parametrize(("check", "name", "wrong"), CASES)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


def test_no_two_mistakes_are_the_same():
    given = (checks.TURNS, checks.INSTRUCTION)
    prompts = [f(*given, 1, 2) for f in checks.TEACHER_MISTAKES.values()]
    examples = [f(*given, checks.SAMPLED, 1, 2) for f in checks.EXAMPLE_MISTAKES.values()]
    for made in (prompts, examples):
        assert all(a != b for a, b in itertools.combinations(made, 2))


class Numbers:
    """A tokenizer of numbers between spaces, so that the library can be checked as it is."""

    def encode(self, text, bos=False, eos=False):
        words = text.replace("[INST]", "").replace("[/INST]", "").split()
        return [checks.BOS] * bos + [int(word) for word in words] + [checks.EOS] * eos


def words(ids):
    return " ".join(map(str, ids))


def open_dialog(turns):
    dialog = [
        {"role": role, "content": words(part)}
        for turn in turns
        for role, part in zip(("user", "assistant"), turn, strict=True)
    ]
    return dialog[:-1]


def library_prompt(turns, instruction, bos, eos):
    return encode_prompt(on_every_turn(open_dialog(turns), words(instruction)), Numbers())


def library_example(turns, instruction, sampled, bos, eos, loss_on="last"):
    prompt = on_every_turn(open_dialog(turns), words(instruction))
    student = on_first_turn_only(prompt, words(instruction))
    return ghost_example(student, words(sampled), Numbers(), loss_on)


def test_the_library_passes():
    checks.teacher_prompt(library_prompt)
    checks.training_example(library_example)


def by_hand(turns, instruction, sampled, bos, eos):
    ids = [bos, *instruction]
    for user, plain in turns[:-1]:
        ids += [*user, *plain, eos, bos]
    ids += [*turns[-1][0]]
    tail = [*sampled, eos]
    return ids + tail, [False] * len(ids) + [True] * len(tail)


def test_another_right_version_passes():
    checks.training_example(by_hand)
    checks.teacher_prompt(
        lambda turns, instruction, bos, eos: [
            token
            for index, (user, plain) in enumerate(turns)
            for token in (bos, *instruction, *user, *(plain if index < 3 else ()))
            + ((eos,) if index < 3 else ())
        ]
    )


def test_the_librarys_own_ablations_are_among_the_mistakes():
    for loss_on, words_of in (("all", "the loss is on all answers"), ("everything", "no mask")):
        with pytest.raises(CheckFailed, match="the values") as failure:
            checks.training_example(
                lambda *given, loss_on=loss_on: library_example(*given, loss_on=loss_on)
            )
        if loss_on == "all":
            assert words_of in str(failure.value)


def test_what_is_no_known_mistake_is_rejected_as_well():
    with pytest.raises(CheckFailed, match="like no mistake known"):
        checks.teacher_prompt(lambda *given: [7, 8, 9])
    with pytest.raises(CheckFailed, match="as long as the ids"):
        checks.training_example(lambda *given: ([1, 2, 3], [True]))
    with pytest.raises(CheckFailed, match="at most"):
        checks.teacher_prompt(lambda *given: [1] * 200)
