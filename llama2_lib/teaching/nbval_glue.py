"""What nbval 0.11 lacks, as a pytest plugin; `lessons compare` loads it.

Kernels get the environment they had when the notebook was built; a dead kernel is noticed within
a second instead of at the time limit; slow machines get a minute instead of five seconds.
"""

import os
import time
from pathlib import Path
from queue import Empty
from typing import Any, cast
from unittest import mock

import pytest

OUTPUT_TIMEOUT = 60  # seconds; 5 is hard-coded in nbval
SANITIZE = Path(__file__).with_name("sanitize.cfg")


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

    plugin.IPyNbFile.setup = setup
    kernel.RunningKernel.await_reply = await_reply


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
