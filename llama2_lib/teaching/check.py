"""Checks of a learner's code that never stop a notebook, and failures that are expected."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Check = Callable[[], None]


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
