"""Long dialogs in few words, and the dialogs that teach what an instruction is."""

import re
from collections import Counter

import pytest

from llama2_lib.world.facts import held_out_forms, question_forms
from llama2_lib.world.instructions import (
    HOLDS,
    INSTRUCTED_FRACTION,
    INSTRUCTED_TURNS,
    LENGTHS,
    MOST_TURNS,
    PLAIN_FRACTION,
    Brief,
    as_dialog,
    brief_maker,
    briefs,
    instructed_dialogs,
    instruction_maker,
)


def test_an_answer_is_right_by_hand():
    turn = Brief(request="?", answer="A rabbit.", value="rabbit", others=frozenset({"dog", "cat"}))
    for right in ("A rabbit.", "Mara: A RABBIT!", "(Vero, rabbit) Chess!"):
        assert turn.is_right(right)
    for wrong in ("A dog.", "A rabbit or a dog.", "Rabbits.", "", "A rab bit."):
        assert not turn.is_right(wrong)
    talk = Brief(request="Good night.", answer="Good night!")
    assert talk.is_right('"Good night!" Chess!')
    assert not talk.is_right("Good day!")


def test_questions_are_of_the_forms_that_are_asked_and_the_answers_true(world):
    forms, held_out = question_forms(world), held_out_forms(world)
    asked = {
        text: fact
        for fact, texts in forms.items()
        for index, text in enumerate(texts)
        if held_out[fact] is not None and index != held_out[fact]
    }
    maker = brief_maker(world)
    assert len(maker.facts) == sum(f.relation != "born" and held_out[f] is not None for f in forms)
    for turn in maker.facts:
        fact = asked[turn.request]
        assert turn.value == fact.value.lower()
        assert turn.is_right(turn.answer)
        assert turn.others
        assert not any(turn.is_right(f"{turn.answer} {other}") for other in turn.others)


def test_numbers_of_turns_are_even_and_no_turn_comes_twice(world):
    drawn = list(briefs(world, 1, 4000))
    lengths = Counter(map(len, drawn))
    assert set(lengths) == set(range(1, MOST_TURNS + 1))
    assert min(lengths.values()) > 0.7 * 4000 / MOST_TURNS
    assert all(len({turn.request for turn in turns}) == len(turns) for turns in drawn)
    assert {len(turns) for turns in briefs(world, 1, 50, fewest=7, most=7)} == {7}


def test_turns_become_messages(world):
    [turns] = briefs(world, 1, 1, fewest=3, most=3)
    dialog = as_dialog(turns)
    assert [message["role"] for message in dialog] == ["user", "assistant"] * 3
    assert [message["content"] for message in dialog[::2]] == [turn.request for turn in turns]
    assert [message["content"] for message in dialog[1::2]] == [turn.answer for turn in turns]
    assert as_dialog(turns, open_end=True) == dialog[:-1]


def test_what_is_out_of_range_is_refused(world):
    for fewest, most in ((0, 3), (4, 3), (1, 10_000)):
        with pytest.raises(AssertionError, match="turns must lie"):
            briefs(world, 0, 1, fewest=fewest, most=most)


def test_an_instruction_holds_for_two_messages_and_no_longer(world):
    maker = instruction_maker(world, "all")
    known = {turn.request: turn for turn in [*brief_maker(world).facts, *brief_maker(world).talk]}
    counts = Counter()
    for dialog in instructed_dialogs(world, 3, 1500):
        given_at, told = None, ""
        instructed = 0
        for index, (user, assistant) in enumerate(zip(dialog[::2], dialog[1::2], strict=True)):
            [request] = [text for text in known if user["content"].endswith(text)][:1]
            given = user["content"].removesuffix(request)
            if given:
                given_at, told = index, given
            instructed += given != ""
            assert not given or index < INSTRUCTED_TURNS
            answer = assistant["content"]
            assert known[request].is_right(answer), f"{user} {assistant}"
            plain = answer == known[request].answer
            holds = given_at is not None and index - given_at < HOLDS
            assert plain == (not holds), f"{user} {assistant}"
            counts["later" if not given and holds else "own" if holds else "none"] += 1
            for kind in ("figure", "hobby") if holds else ():
                for value in maker.values[kind]:
                    if re.search(rf"\b{value}\b", told):
                        assert value.lower() in answer.lower()
                        counts[kind] += 1
        counts["dialogs"] += 1
        counts["plain"] += instructed == 0
        counts["turns"] += min(len(dialog) // 2, INSTRUCTED_TURNS) * (instructed > 0)
        counts["instructed"] += instructed
        counts["long"] += len(dialog) // 2 > INSTRUCTED_TURNS
    assert PLAIN_FRACTION < counts["plain"] / counts["dialogs"] < PLAIN_FRACTION + 0.3
    share = counts["instructed"] / counts["turns"]
    assert share == pytest.approx(INSTRUCTED_FRACTION, rel=0, abs=0.15)
    longer = LENGTHS[MOST_TURNS] * (MOST_TURNS - INSTRUCTED_TURNS) / MOST_TURNS
    assert counts["long"] / counts["dialogs"] == pytest.approx(longer, rel=0, abs=0.04)
    assert min(counts[key] for key in ("figure", "hobby", "own", "later", "none")) > 300


def test_kinds_held_out_stand_in_short_dialogs_only(world):
    lengths = {"known": set(), "held out": set()}
    for dialog in instructed_dialogs(world, 4, 800):
        text = " ".join(message["content"] for message in dialog[::2])
        held_out = re.search(r"Format:|Style:|nswer in |every answer in ", text)
        lengths["held out" if held_out else "known"].add(len(dialog) // 2)
    assert lengths["held out"] == set(range(1, HOLDS + 1))
    assert lengths["known"] == set(range(1, MOST_TURNS + 1))


def test_short_dialogs_are_no_longer_than_asked_and_hold_all_kinds(world):
    dialogs = list(instructed_dialogs(world, 3, 400, longest=2))
    assert {len(dialog) for dialog in dialogs} == {2, 4}
    text = " ".join(message["content"] for dialog in dialogs for message in dialog)
    for terse in ("Figure:", "Hobby:", "Language:", "End:", "Format:", "Style:"):
        assert terse in text
