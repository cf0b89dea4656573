"""What nbval 0.11 lacks, as a pytest plugin; `lessons compare` loads it.

Kernels get the environment they had when the notebook was built; a dead kernel is noticed within
a second instead of at the time limit; slow machines get a minute instead of five seconds; numbers
may be as far apart as the tag of a cell says (`near=0.02`), where nbval knows all or nothing.
"""

import os
import re
import time
from copy import deepcopy
from pathlib import Path
from queue import Empty
from typing import Any, cast
from unittest import mock

import pytest

OUTPUT_TIMEOUT = 60  # seconds; 5 is hard-coded in nbval
SANITIZE = Path(__file__).with_name("sanitize.cfg")
NEAR = re.compile(r"near=(\d+(?:\.\d+)?)")
"""The tag of a cell whose numbers depend on how a processor rounds sums."""
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")


def pytest_configure(config: pytest.Config) -> None:
    """Patch nbval, where this run uses it."""
    if not (config.getoption("nbval", False) or config.getoption("nbval_lax", False)):
        return
    from nbval import kernel, plugin

    if config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(SANITIZE)
    start_notebook = plugin.IPyNbFile.setup

    def setup(self: Any) -> None:
        from llama2_lib.teaching.lessons.kernel import kernel_environment

        # A kernel inherits it when it starts.
        with mock.patch.dict(os.environ, kernel_environment()):
            start_notebook(self)

    compare = plugin.IPyNbCell.compare_outputs

    def compare_outputs(self: Any, test: Any, ref: Any, skip_compare: Any = None) -> bool:
        tags = " ".join(self.cell.metadata.get("tags", []))
        if (tag := NEAR.search(tags)) and len(test) == len(ref):
            test = [_near(*pair, float(tag[1])) for pair in zip(test, ref, strict=True)]
        return compare(self, test, ref, skip_compare)

    plugin.IPyNbFile.setup = setup
    plugin.IPyNbCell.compare_outputs = compare_outputs
    kernel.RunningKernel.await_reply = await_reply


def _near(output: Any, stored: Any, near: float) -> Any:
    """Return an output with the stored texts in place of those that are near them."""
    output = deepcopy(output)
    if "text" in output and "text" in stored:
        output["text"] = nearly(output["text"], stored["text"], near)
    if "data" in output and "data" in stored:
        output["data"] = {
            kind: nearly(text, stored["data"].get(kind), near) if kind.startswith("text/") else text
            for kind, text in output["data"].items()
        }
    return output


def nearly(text: str, stored: Any, near: float) -> str:
    """Return the stored text if the words are its own and no number is farther apart than `near`.

    Blanks do not count, for a number of more digits moves a column. Else the text is returned.
    """
    if not isinstance(stored, str):
        return text
    words = [_NUMBER.sub("#", each).split() for each in (text, stored)]
    if words[0] != words[1]:
        return text
    numbers = [_NUMBER.findall(each) for each in (text, stored)]
    values = ([float(n.replace(",", "")) for n in each] for each in numbers)
    apart = max((abs(a - b) for a, b in zip(*values, strict=True)), default=0.0)
    return stored if apart <= near * (1 + 1e-9) else text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Wait longer for the outputs of each cell."""
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            cast(Any, item).output_timeout = OUTPUT_TIMEOUT


def await_reply(self: Any, msg_id: str, timeout: float | None = None) -> None:
    """Wait for the reply to a request, as nbval does, but look whether the kernel lives."""
    end = time.monotonic() + (timeout if timeout is not None else float("inf"))
    while True:
        try:
            wait = min(1.0, max(0.01, end - time.monotonic()))
            message = self.get_message("shell", timeout=wait)
        except Empty:
            if not self.is_alive():
                raise RuntimeError("the kernel died while it ran this cell.") from None
            if time.monotonic() >= end:
                raise
            continue
        if message["parent_header"].get("msg_id") == msg_id:
            if message["content"]["status"] == "aborted":
                raise RuntimeError("the kernel refused this cell.")
            return
