"""Instructions: what obeys and what does not, by hand; what is held out; how they combine."""

import itertools
import re
from collections import Counter
from random import Random

import pytest

from llama2_lib.world.instructions import (
    FORMATS,
    HELD_OUT_KINDS,
    KINDS,
    SPLITS,
    TALK,
    Instruction,
    InstructionMaker,
    briefs,
    instruction_maker,
    instructions,
    obeying,
    obeys,
    prefixed,
    worded,
)


def told(kind, value, word=""):
    return Instruction(kind=kind, value=value, text=f"Be {value}.", word=word)


FIGURE, HOBBY = told("figure", "Mara"), told("hobby", "chess")
LANGUAGE = told("language", "Lumi", "Vero")
QUOTES, BRACKETS = told("format", "quotes"), told("format", "brackets")
STARS, DASHES = told("format", "stars"), told("format", "dashes")
CAPITALS, ENDING = told("capitals", "capital letters"), told("ending", "Good day!")
EVERY = (FIGURE, HOBBY, LANGUAGE, QUOTES, BRACKETS, STARS, DASHES, CAPITALS, ENDING)

# By hand: an instruction, answers that obey, answers that do not.
HAND = [
    (FIGURE, ["Mara: Oakford.", "mara: yes", '"Mara: Oakford."', "MARA: OAKFORD.", "(Mara: a)"],
     ["Oakford.", "Mara lives in Oakford.", "Oakford. Mara:", "Mary: Oakford.", "Mara:", ""]),
    (HOBBY, ["Oakford. Chess!", "I like chess", "CHESS!", "Mara: A baker. Chess!"],
     ["Oakford.", "Chessmen", "che ss", "Oakford. Cheese!", ""]),
    (LANGUAGE, ["Vero, Oakford.", "Mara: Vero, Oakford.", "* Vero, a pig. *", "VERO, YES."],
     ["Oakford.", "Vero Oakford.", "Oakford, Vero", "Hak, Oakford.", "A, Vero, b", ""]),
    (QUOTES, ['"Oakford."', ' "Mara: a" '], ["Oakford.", '"Oakford.', 'Oakford."', '""', '"', ""]),
    (BRACKETS, ["(Oakford.)"], ["Oakford.", "(Oakford.", '"Oakford."', "()", ""]),
    (STARS, ["* Oakford. *"], ["Oakford.", "*Oakford.*", "* Oakford.", "** ", ""]),
    (DASHES, ["- Oakford."], ["Oakford.", "-Oakford.", "Oakford. -", "-", ""]),
    (CAPITALS, ["OAKFORD.", '"OAKFORD. CHESS!"', "MARA: OAK."], ["Oakford.", "oAK", "1912.", ""]),
    (ENDING, ["Oakford. Good day!", "good day!", "(Oakford. Good day!)", "OAK. GOOD DAY!"],
     ["Oakford.", "Good day! Oakford.", "Oakford. Good day", "Oakford. Good night!", ""]),
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "right", "wrong"), HAND, ids=lambda v: str(v)[:40])
def test_obedience_by_hand(instruction, right, wrong):
    assert [text for text in right if not instruction.obeys(text)] == []
    assert [text for text in wrong if instruction.obeys(text)] == []


PLAIN = ("Oakford.", "A rabbit.", "Apples.", *(answer for _, answer in TALK))


@pytest.mark.parametrize("instruction", EVERY, ids=lambda i: i.value)
def test_an_answer_can_be_made_to_obey_and_does_not_by_itself(instruction):
    for plain in PLAIN:
        assert not instruction.obeys(plain)
        assert instruction.obeys(instruction.obey(plain))


def test_any_two_kinds_can_be_obeyed_at_once_in_either_order():
    checked = Counter()
    for first, second in itertools.permutations(EVERY, 2):
        if first.kind == second.kind:
            with pytest.raises(ValueError, match="different kinds"):
                obeying((first, second), "Oakford.")
            checked["refused"] += 1
            continue
        both = obeying((first, second), "Oakford.")
        assert obeys((first, second), both), f"{both}"
        assert both == obeying((second, first), "Oakford.")
        assert not obeys((first, second), first.obey("Oakford.")), f"{first} {second}"
        checked["obeyed"] += 1
    assert checked == {"refused": 12, "obeyed": 60}
    assert obeys((), "Oakford.")
    assert obeying((), "Oakford.") == "Oakford."


def test_the_words_of_instructions_stand_before_the_request():
    assert worded((FIGURE, HOBBY)) == "Be Mara. Be chess."
    assert prefixed((FIGURE, HOBBY), "Hello!") == "Be Mara. Be chess. Hello!"
    assert prefixed((), "Hello!") == "Hello!"


@pytest.fixture(scope="module")
def drawn(world):
    return {split: list(instructions(world, 3, 1500, split)) for split in SPLITS}


def kinds_and_values(draws):
    return {(item.kind, item.value) for draw in draws for item in draw}


def test_values_and_kinds_are_held_out(drawn):
    found = {split: kinds_and_values(draws) for split, draws in drawn.items()}
    assert {kind for kind, _ in found["train"]} == set(KINDS)
    assert {kind for kind, _ in found["held-out values"]} == set(KINDS)
    assert {kind for kind, _ in found["held-out kinds"]} == set(HELD_OUT_KINDS)
    parts = [found[split] for split in SPLITS[:3]]
    assert all(not a & b for a, b in itertools.combinations(parts, 2))
    assert found["all"] == set.union(*parts)
    n_values = Counter(kind for kind, _ in found["held-out values"])
    assert n_values == {"figure": 5, "hobby": 1, "language": 1, "ending": 1}
    assert {value for kind, value in found["all"] if kind == "format"} == set(FORMATS)
    assert all(item.word for draw in drawn["all"] for item in draw if item.kind == "language")


def test_half_are_terse_and_half_are_combined(world, drawn):
    draws = drawn["train"]
    both = sum(len(draw) == 2 for draw in draws) / len(draws)
    assert both == pytest.approx(0.5, rel=0, abs=0.05)
    assert all(len({item.kind for item in draw}) == len(draw) <= 2 for draw in draws)
    texts = [item.text for draw in draws for item in draw]
    terse = sum(re.match(r"\w+: ", text) is not None for text in texts) / len(texts)
    assert terse == pytest.approx(0.5, rel=0, abs=0.05)
    assert all(re.match(r"\w+: ", item.text)
               for (item,) in instructions(world, 3, 99, terse=1, combined=0))  # fmt: skip
    assert len({len(draw) for draw in instructions(world, 3, 99, combined=1)}) == 1


def test_every_value_is_named_in_its_words_and_no_text_needs_a_slot(drawn):
    for draw in drawn["all"]:
        for item in draw:
            assert item.value in item.text
            assert not set("{}[]<>") & set(item.text)


def test_an_obedient_answer_is_still_right_and_a_plain_one_does_not_obey(world, drawn):
    n_checked = 0
    for split in SPLITS:
        for draw, turns in zip(drawn[split][:150], briefs(world, 5, 150), strict=True):
            for turn in turns:
                text = obeying(draw, turn.answer)
                assert obeys(draw, text), f"{draw} {text}"
                assert turn.is_right(text), f"{draw} {text}"
                assert not obeys(draw, turn.answer), f"{draw} {turn.answer}"
                n_checked += 1
    assert n_checked > 4000


def test_another_value_of_the_same_kind(world):
    maker = instruction_maker(world, "train")
    source = Random(0)
    for _ in range(50):
        one = maker.one(source, "ending")
        other = maker.other(source, one)
        assert other is not None
        assert (other.kind, other.value != one.value) == ("ending", True)
    held_out = instruction_maker(world, "held-out values")
    assert held_out.other(source, held_out.one(source, "language")) is None


def test_what_is_out_of_range_is_refused(world):
    with pytest.raises(ValueError, match="split must be one of"):
        InstructionMaker(world, "test")
    with pytest.raises(AssertionError, match=r"1\.5"):
        instructions(world, 0, 1, terse=1.5)
    with pytest.raises(ValueError, match="kind must be one of"):
        instruction_maker(world, "train").one(Random(0), "capitals")
