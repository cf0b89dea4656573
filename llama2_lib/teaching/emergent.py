"""Checks of calls of tools, and the mistakes they recognise (paper section 5.1).

Right code is the library's: `model.tools`.
"""

import re
from collections.abc import Callable

from llama2_lib.teaching.check import Code, diagnose_choice, on, on_each, slips

Ids = list[int]
Run = Callable[[str, str], str]


def _example(prompt: Ids, call: Ids, result: Ids, rest: Ids, eos: int) -> tuple[Ids, list[bool]]:
    parts = [(prompt, False), (call, True), (result, False), ([*rest, eos], True)]
    ids = [token for part, _ in parts for token in part]
    return ids, [target for part, target in parts for _ in part]


CALL_MISTAKES = slips(_example)("""
the result is a target: the model learns to make results up || (result, False) => (result, True)
everything is a target, the prompt too
    || (prompt, False) => (prompt, True) ;; (result, False) => (result, True)
the prompt is a target || (prompt, False) => (prompt, True)
only the call is a target, so the model never learns to use what the tool says
    || eos], True) => eos], False)
the call is no target, so the model never learns to call || (call, True) => (call, False)
the result is left out: the model is asked to say what it has never read || (result, False), =>
the result stands before the call || (call, True), (result, False) => (result, False), (call, True)
EOS is missing, so the model never learns to stop || [*rest, eos] => rest
EOS also ends the call, so the answer would end there || (call, True) => ([*call, eos], True)
the mask is upside down || [target for => [not target for
""")


def call_example(candidate: Code) -> None:
    """Check `candidate(prompt, call, result, rest, eos)`: ids and loss mask of one example.

    All but `eos` are lists of ids; prompt and result are no targets.
    """
    run = on([1, 11, 12, 13], [21, 22], [31, 32, 33], [41, 42, 43, 44, 45], 2,
             then=lambda pair: (list(pair[0]), [bool(mark) for mark in pair[1]]))  # fmt: skip
    diagnose_choice(run, candidate, _example, CALL_MISTAKES)


def _result(text: str, run: Run) -> str | None:
    found = re.fullmatch(r"(\w+): (.+) =", text.split("\n")[-1])
    if found is None:
        return None
    return run(found[1], found[2])


STEP_MISTAKES = slips(_result)("""
the first call of the text is run, again and again; only its last line can be one
    || fullmatch(r"(\\w+): (.+) =", text.split("\\n")[-1]) => search(r"(\\w+): (.+) =", text)
only a text of a single line is read || text.split("\\n")[-1] => text
the first line is read, not the last || [-1] => [0]
what ends without `=` counts as a call, so every colon runs a tool || (.+) =" => (.+?)(?: =)?"
only one word is read as the arguments || (.+) => (\\w+)
the arguments keep the `=` || (.+) =" => (.+ =)"
name and arguments are exchanged || found[1], found[2] => found[2], found[1]
""")


def tool_step(candidate: Code) -> None:
    """Check `candidate(text, run)`: what the tool called at the end of a text says, or None.

    A call is the last line, `name: arguments =`; `run(name, arguments)` runs it.
    """
    texts = (
        "calculator: 3 plus 4 =", "Hold on.\nscale: goose =", "The scale says 7.", "scale: goose",
        "map: Ashwick = 9\nThe map says 9.", "calculator: 3 plus 4 = 7\ncalculator: 7 plus 5 =",
        "a = b\nmap: Ashwick =", "scale: goose =\nIt is heavy.",
    )  # fmt: skip
    run = on_each(*((text, "{}({})".format) for text in texts))
    diagnose_choice(run, candidate, _result, STEP_MISTAKES)
