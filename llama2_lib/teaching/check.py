"""What every lesson uses: its start, checks that never stop a notebook, and the naming of mistakes.

A check runs the learner's code and every known mistake in one way, `run`, and says which mistake
gives what the learner's code gave.
"""

import copy
import inspect
import re
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama2_lib.figures import apply_theme
from llama2_lib.widgets.progress import leave_no_bars, passing_text

Check = Callable[[], None]
Code = Callable[..., Any]
Mistakes = dict[str, Code]
Run = Callable[[Code], Any]


def start(
    lesson: str, *, needs: Sequence[str] = (), recipe: Any = None, minutes: float | None = None
) -> dict[str, Path]:
    """Prepare a notebook and return the folder of each stage it needs.

    Stages that are not on disk are built now; what is said meanwhile (`minutes` is the author's
    estimate on two cores) goes away again, so the cell's output is one line, always the same.
    Interrupt it and run it again: finished stages stay finished.

    Raises:
        ValueError: Stages are needed but no recipe is given.
    """
    apply_theme()
    leave_no_bars()
    if needs and recipe is None:
        raise ValueError(f"{lesson} needs the stages {list(needs)}: give a recipe, such as nano().")
    folders = {}
    if needs:
        from llama2_lib.pipeline import artifact, missing  # here: not every lesson trains

        estimate = "" if minutes is None else f" (all in all about {minutes:g} minutes here)"
        for stage in needs:
            absent = ", ".join(missing(stage, recipe))
            notice = f"{lesson} first builds {absent}{estimate}; interrupting is safe."
            with passing_text(notice) if absent else nullcontext():
                folders[stage] = artifact(stage, recipe)
    print(f"{lesson}: " + (f"ready with {', '.join(needs)}." if needs else "ready."))
    return folders


class CheckFailed(AssertionError):
    """A candidate is wrong; the message says in which way, in words for the learner."""


def check(name: str) -> Callable[[Check], Check]:
    """Run the decorated function at once and print one line: right, wrong and why, or not written.

    Never raises, so that a notebook with blanks survives Run All; a KeyboardInterrupt does.
    """

    def run(function: Check) -> Check:
        try:
            function()
        except NotImplementedError:
            print(f"[    ] {name}: not written yet")
        except CheckFailed as failure:
            print(f"[ NO ] {name}: {failure}")
        except AssertionError as failure:
            line = traceback.extract_tb(failure.__traceback__)[-1].line
            print(f"[ NO ] {name}: {str(failure) or f'this must hold: {line}'}")
        except Exception as error:
            # also an error of the learner's code is an answer, not the end of the notebook
            print(f"[ NO ] {name}: your code raised {type(error).__name__}: {error}")
        else:
            print(f"[ OK ] {name}")
        return function

    return run


def written(code: Any) -> bool:
    """Return whether a function, or each method of a class, is more than a learner's blank."""
    parts = vars(code).values() if inspect.isclass(code) else [code]
    functions = [part for part in parts if inspect.isfunction(part)]
    return not any("NotImplementedError" in part.__code__.co_names for part in functions)


@contextmanager
def expect_failure(*kinds: type[Exception]) -> Iterator[None]:
    """Print the message of the error that the block must raise (default: CheckFailed).

    Raises:
        AssertionError: The block raised nothing; then the broken code was not broken.
    """
    expected = kinds or (CheckFailed,)
    try:
        yield
    except expected as error:
        print(f"{type(error).__name__}: {error}")
    else:
        names = " or ".join(kind.__name__ for kind in expected)
        raise AssertionError(f"this block must fail with {names}; it did not. Is it still broken?")


def on(*given: Any, then: Callable[[Any], Any] = lambda result: result) -> Run:
    """Return a way to run code: on copies of these values, which it must leave as they are.

    `then` makes of the result what is compared.
    """

    def run(code: Code) -> Any:
        copies = copy.deepcopy(given)
        result = code(*copies)
        for place, (before, after) in enumerate(zip(given, copies, strict=True), start=1):
            if not _equal(before, after):
                raise CheckFailed(
                    f"your code changed argument {place} in place; compute new values, because "
                    "whoever passed it goes on using it."
                )
        return then(result)

    return run


def on_each(*cases: tuple[Any, ...], then: Callable[[Any], Any] = lambda result: result) -> Run:
    """Return a way to run code on several lists of values: the results one after the other."""
    return lambda code: [on(*case, then=then)(code) for case in cases]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def slips(right: Code) -> Callable[[str], Mistakes]:
    """Return what makes mistakes of right code: it takes a table of edits of the code's text.

    A row is `sentence || edit`, and may go on in indented lines. An edit is `old => new`, where
    `old` stands in the text once, or else all that is returned instead; ` ;; ` is between two.
    """
    function = inspect.unwrap(right)
    source = textwrap.dedent(inspect.getsource(function))

    def edited(edits: str) -> Code:
        text = source
        for edit in edits.split(" ;; "):
            old, arrow, new = (part.strip() for part in edit.partition("=>"))
            assert not arrow or text.count(old) == 1, f"{old!r} must stand once in: {text}"
            result = f"{text[: text.rindex('return ')]}return {edit}\n"
            text = text.replace(old, new) if arrow else result
        scope = dict(function.__globals__)
        exec(compile(text, f"<{function.__name__}, a slip>", "exec"), scope)
        wrong, scope[function.__name__] = scope[function.__name__], function
        return wrong

    def table(rows: str) -> Mistakes:
        lines = (" ".join(row.split()) for row in re.split(r"\n(?! )", rows.strip()))
        pairs = (line.split(" || ") for line in lines)
        return {sentence: edited(edits) for sentence, edits in pairs}

    return table


def recognise(is_it: Callable[[Code], bool], mistakes: Mistakes, told: str = "") -> None:
    """Fail with the name of the first mistake that `is_it`, behind the words `told`."""
    for name, mistake in mistakes.items():
        if is_it(mistake):
            raise CheckFailed(f"{told}it looks as if {name}.")


def diagnose(
    run: Run, candidate: Code, expected: Tensor, mistakes: Mistakes, *, rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:  # fmt: skip
    """Return if `run(candidate)` is the expected tensor; else name the mistake that explains it."""
    actual, expected = run(candidate), expected.detach()
    if not isinstance(actual, Tensor):
        raise CheckFailed(f"a tensor must come back; got {type(actual).__name__}.")
    if actual.shape != expected.shape:
        raise CheckFailed(f"expected shape {tuple(expected.shape)}; got {tuple(actual.shape)}.")
    actual = actual.detach().to(expected.dtype)

    def same(other: Tensor) -> bool:
        other = other.detach().to(actual.dtype)
        return other.shape == actual.shape and torch.allclose(
            actual, other, rtol=rtol, atol=atol, equal_nan=True
        )

    if same(expected):
        return
    recognise(lambda wrong: same(run(wrong)), mistakes, "the shape is right, the values are not: ")
    lost = (~actual.isfinite() & expected.isfinite()).sum().item()
    if lost:
        raise CheckFailed(
            f"{lost} of {actual.numel()} values are NaN or infinite, like no mistake known here; "
            "look for a division by 0, 0 * inf, or the logarithm of 0."
        )
    a, b = actual.double(), expected.double()  # masks have no difference
    worst = torch.where(a == b, 0.0, a - b).abs().max().item()
    hint = ""
    if (a - b).numel() > 1 and b.any():
        factor = (a * b).sum() / b.square().sum()
        if torch.allclose(a, factor * b, rtol=rtol, atol=atol):
            hint = f"; each is {factor:.3g} times what it should be"
    raise CheckFailed(f"the values differ by up to {worst:.2g}, like no mistake known here{hint}.")


def diagnose_choice(
    run: Run,
    candidate: Code,
    right: Code,
    mistakes: Mistakes,
    told: str = "the choice is not right",
) -> None:
    """Do the same for what is equal or not, such as a list of chosen items."""
    actual, expected = run(candidate), run(right)
    if actual == expected:
        return
    recognise(lambda wrong: actual == run(wrong), mistakes, f"{told}: ")
    told, came = (textwrap.shorten(str(each), 200) for each in (expected, actual))
    raise CheckFailed(f"expected {told}; got {came}, like no mistake known here.")


def parts(result: Any, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return the parts of a result as tensors, which must have these shapes."""
    tensors = [torch.as_tensor(part) for part in result]
    if (came := [tuple(tensor.shape) for tensor in tensors]) != [*shapes]:
        raise CheckFailed(f"tensors of shapes {shapes} must come back; got {came}.")
    return tensors


def with_gradient(at: Tensor, *given: Any) -> Run:
    """Return a way to run a loss of a tensor and other values: its value and gradient in a vector.

    A right value can hide a wrong gradient.
    """

    def run(loss: Code) -> Tensor:
        leaf = at.detach().clone().requires_grad_()
        value = loss(leaf, *given)
        if not isinstance(value, Tensor) or value.dim() > 0:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckFailed(f"one number must come back, a tensor without axes; got {shape}.")
        if not value.requires_grad:
            raise CheckFailed(
                "the loss carries no gradient, so nothing would be learned; compute it from the "
                "tensors that are given, without .item(), .detach() or no_grad."
            )
        (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
        return torch.cat([value.detach().reshape(1), gradient.flatten()])

    return run
