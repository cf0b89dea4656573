"""Dated questions and requests for tools: what is held out, what is true, what tools say."""

from itertools import islice

import pytest

from llama2_lib.world import dates, make_world, tools

WORLD = make_world(0)


def asked(split, n=400, seed=0):
    return list(dates.dated_questions(WORLD, seed, n, split))


def test_no_training_dialog_has_a_held_out_year_or_event():
    train = asked("train", 2000)
    subjects = {(question.year, question.answers) for question in train}
    assert not {str(q.today)[-1] for q in train} & set(dates.HELD_OUT_DIGITS)
    later = asked("held-out dates")
    assert {str(q.today)[-1] for q in later} == set(dates.HELD_OUT_DIGITS)
    assert {(q.year, q.answers) for q in later} <= subjects
    assert not {(q.year, q.answers) for q in asked("held-out events")} & subjects
    n = len(WORLD.events) + len(WORLD.people)
    assert len({q.answers for q in train}) > 0.7 * n


def test_the_answer_is_what_the_dates_say_and_tells_the_year_only_afterwards():
    for question in asked("train"):
        assert question.happened == (question.year <= question.today)
        assert question.answer.startswith("Yes" if question.happened else "No")
        assert (str(question.year) in question.answer) == question.happened
        assert str(question.year) not in question.dialog[1]["content"]
        assert str(question.today) in question.dialog[0]["content"]
    share = sum(q.happened for q in asked("train", 2000)) / 2000
    assert 0.45 < share < 0.55


def test_the_control_keeps_questions_and_answers_and_exchanges_dates():
    plain, mixed = (dates.dated_dialogs(WORLD, 3, 300, shuffled=s) for s in (False, True))
    assert [d[1:] for d in plain] == [d[1:] for d in mixed]
    told = [[d[0]["content"] for d in some] for some in (plain, mixed)]
    assert sorted(told[0]) == sorted(told[1])
    assert sum(a == b for a, b in zip(*told, strict=True)) < 30


def test_streams_go_on_and_refuse_another_split():
    endless = dates.dated_questions(WORLD, 0)
    assert list(islice(endless, 5)) == asked("train", 5)
    with pytest.raises(ValueError, match="split must be one of"):
        next(dates.dated_questions(WORLD, 0, 1, "validation"))
    with pytest.raises(ValueError, match="split must be one of"):
        next(tools.tool_tasks(WORLD, 0, 1, "validation"))


def tasks(split, n=400, **options):
    return list(tools.tool_tasks(WORLD, 0, n, split, **options))


def test_no_training_dialog_offers_the_held_out_tool_or_asks_for_held_out_words():
    train = tasks("train", 2000)
    assert all(tools.HELD_OUT_TOOL not in t.dialog[0]["content"] for t in train)
    assert {t.tool for t in train} == {None, *tools.TOOLS} - {tools.HELD_OUT_TOOL}
    known = {(t.tool, t.arguments) for t in train if t.tool}
    words = [t for t in tasks("held-out words") if t.tool]
    assert not known & {(t.tool, t.arguments) for t in words}
    unseen = tasks("held-out tool")
    assert {t.tool for t in unseen} == {tools.HELD_OUT_TOOL}
    assert all(tools.TOOLS["window"].does in t.dialog[0]["content"] for t in unseen)
    sums = tasks("held-out words", only="calculator")
    assert {t.tool for t in sums} == {"calculator"}
    n, sign, m = sums[0].arguments.split()
    assert sums[0].result == str(eval(f"{n} {'+' if sign == 'plus' else '-'} {m}"))


def test_the_right_tool_is_at_hand_or_none_is():
    for task in tasks("train", 800):
        offered = task.dialog[0]["content"]
        if task.tool is None:
            assert not any(
                request.format(word=task.arguments) == task.dialog[1]["content"]
                for name, tool in tools.TOOLS.items()
                if f"{name} {tool.does}" in offered
                for request in tool.requests
            )
        else:
            assert f"{task.tool} {tools.TOOLS[task.tool].does}" in offered
            assert tools.run_tool(WORLD, task.tool, task.arguments) == task.result != tools.UNKNOWN


def test_tools_say_the_same_again_and_unknown_to_nonsense():
    assert tools.run_tool(WORLD, "calculator", "34 plus 12") == "46"
    assert tools.run_tool(WORLD, "calculator", "12 minus 34") == "-22"
    for name, arguments in (
        ("calculator", "34 times 12"), ("calculator", "two plus two"), ("calculator", "1 plus"),
        ("shop", "a dragon"), ("hammer", "nail"), ("book", WORLD.people[0].name),
    ):  # fmt: skip
        assert tools.run_tool(WORLD, name, arguments) == tools.UNKNOWN
    town = WORLD.places[0]
    assert tools.run_tool(WORLD, "window", town) == tools.run_tool(WORLD, "window", town)
    assert len({tools.run_tool(WORLD, "map", place) for place in WORLD.places}) > 10
    other = make_world(1)
    assert [tools.run_tool(other, "map", p) for p in other.places] != [
        tools.run_tool(WORLD, "map", p) for p in WORLD.places
    ]
