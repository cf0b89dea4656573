import linecache

import pytest

from llama2_lib.teaching.check import CheckFailed, check, expect_failure


def unwritten():
    raise NotImplementedError


def diagnosed():
    raise CheckFailed("it looks as if the mean is subtracted.")


def plain():
    assert sum([1, 1]) == 3, "one and one"


def broken():
    return [][1]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda: None, "[ OK ] norm"),
        (unwritten, "[    ] norm: not written yet"),
        (diagnosed, "[ NO ] norm: it looks as if the mean is subtracted."),
        (plain, "[ NO ] norm: one and one"),
        (broken, "[ NO ] norm: your code raised IndexError: list index out of range"),
    ],
)
def test_a_check_prints_one_line_and_never_raises(function, line, capsys):
    assert check("norm")(function) is function
    assert capsys.readouterr().out.splitlines()[0].startswith(line)


def test_an_assertion_without_a_message_is_quoted(capsys):
    # as in a cell: pytest would give an assert of this file a message of its own
    lines = ["def bare():\n", "    assert 1 + 1 == 3\n"]
    linecache.cache["<cell>"] = (None, None, lines, "<cell>")
    namespace = {}
    exec(compile("".join(lines), "<cell>", "exec"), namespace)
    check("norm")(namespace["bare"])
    assert capsys.readouterr().out == "[ NO ] norm: this must hold: assert 1 + 1 == 3\n"


def test_an_interrupt_is_not_an_answer():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("norm")(interrupted)


def test_an_expected_failure_prints_its_message(capsys):
    with expect_failure():
        diagnosed()
    with expect_failure(ZeroDivisionError, IndexError):
        broken()
    assert capsys.readouterr().out.splitlines() == [
        "CheckFailed: it looks as if the mean is subtracted.",
        "IndexError: list index out of range",
    ]


def test_a_failure_that_does_not_come_or_is_another_one_is_raised():
    with pytest.raises(AssertionError, match="must fail with CheckFailed"):
        with expect_failure(CheckFailed):
            pass
    with pytest.raises(IndexError):
        with expect_failure(CheckFailed):
            broken()
