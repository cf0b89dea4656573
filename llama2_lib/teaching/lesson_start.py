"""The first cell of a notebook: the look of the figures, and the finished models it needs."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from llama2_lib.figures import apply_theme
from llama2_lib.widgets.progress import leave_no_bars, passing_text


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
        from llama2_lib.pipeline import artifact, missing  # here: not every lesson needs torch

        estimate = "" if minutes is None else f" (all in all about {minutes:g} minutes here)"
        for stage in needs:
            absent = ", ".join(missing(stage, recipe))
            notice = f"{lesson} first builds {absent}{estimate}; interrupting is safe."
            with passing_text(notice) if absent else nullcontext():
                folders[stage] = artifact(stage, recipe)
    print(f"{lesson}: " + (f"ready with {', '.join(needs)}." if needs else "ready."))
    return folders
