"""Which checks of a learner's copies pass: a table for the learner, a file for the teacher.

A report, not an examination: whoever prints `[ OK ] RoPE` has passed it.
"""

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbclient.exceptions import DeadKernelError

from llama2_lib.storage import write_atomically
from llama2_lib.teaching.lessons.build import KERNELS, execute
from llama2_lib.teaching.lessons.kernel import need_kernel
from llama2_lib.teaching.lessons.source import PASSED, blanked, read_notebook, sources, tags

OUTCOMES = {"NO": "wrong", "  ": "not written", "OK": "right"}
KINDS = ("build", "exercise")


def progress(names: Sequence[str], copies: Path, stored: bool, out: Path, folder: Path) -> str:
    """Write the outcome of each check that passes in the course's own `folder`; return a table.

    Copies are executed and left as they are; with `stored` the outputs that they hold are read. A
    check is right, wrong, not written or not run; right in one cell and not in another is not
    right. The file names no person and no place.
    """
    lessons = sources(folder, names)
    own = [copies / f"{path.stem}.ipynb" for path in lessons]
    if not any(copy.is_file() for copy in own):
        raise FileNotFoundError(f"{copies} must hold copies of lessons. Write them: make student.")
    if not stored:
        need_kernel()
    with ThreadPoolExecutor(KERNELS) as threads:
        printed = threads.map(lambda copy: _printed(copy, stored), own)
    checks, table = [], [f"{'lesson':26s}    build  exercises  still to do"]
    for path, text in zip(lessons, printed, strict=True):
        rows = list(_rows(path, folder, text))
        kinds = ([r["outcome"] == "right" for r in rows if r["kind"] == kind] for kind in KINDS)
        build, exercises = (f"{sum(each)} of {len(each)}" for each in kinds)
        todo = [f"{row['check']} ({row['outcome']})" for row in rows if row["outcome"] != "right"]
        left = ", ".join(todo) if text else "not begun"
        table.append(f"{path.stem:26s} {build:>8s}  {exercises:>9s}  {left}")
        checks += rows
    course = importlib.metadata.version("llama2-built-and-measured")
    document = {"course": course, "stored_outputs": stored, "checks": checks}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(document, indent=1) + "\n")
    return "\n".join([*table, f"for your teacher: {out}"])


def _rows(path: Path, folder: Path, text: str) -> Iterator[dict[str, str]]:
    """Yield what became of each check that the course's executed notebook passes."""
    given = {cell.id: cell for cell in blanked(path).cells}  # others are in no copy
    for cell in read_notebook(folder / f"{path.stem}.ipynb").cells:
        for name in PASSED.findall(_text(cell)) if cell.id in given else ():
            kind = KINDS["exercise" in tags(given[cell.id])]
            marks = re.findall(rf"^\[ (OK|NO|  ) \] {re.escape(name)}(?::|$)", text, re.M)
            outcome = OUTCOMES[min(marks)] if marks else "not run"
            yield {"lesson": path.stem, "check": name, "kind": kind, "outcome": outcome}


def _text(*cells: dict) -> str:
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def _printed(copy: Path, stored: bool) -> str:
    """Return what the cells of a copy print; one that stops half-way is told of."""
    if not copy.is_file():
        return ""
    notebook = read_notebook(copy)
    if not stored:
        for cell in notebook.cells:
            cell |= {"outputs": []} if cell.cell_type == "code" else {}
        try:
            execute(notebook, copy.parent, allow_errors=True)
        except (DeadKernelError, TimeoutError, RuntimeError) as error:
            print(f"{copy.name} stopped half-way: {error}", file=sys.stderr)
    return _text(*notebook.cells)
