"""Execute lessons and write them as normalised notebooks: a second build gives the same bytes."""

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

from llama2_lib.storage import write_atomically
from llama2_lib.teaching.lessons import source
from llama2_lib.teaching.lessons.kernel import kernel_environment, need_kernel
from llama2_lib.teaching.lessons.source import Names, runs

CELL_TIMEOUT = 1200  # seconds; a lesson is planned for 90 in all
NOTEBOOKS = Path("notebooks")
KERNELS = 2  # lessons at a time; a kernel has one thread and up to a gigabyte
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_FILE = re.compile(r"\S*ipykernel_\d+/\d+\.py")


def build(names: Names = (), /, *, folder: Path = NOTEBOOKS, out: Path | None = None) -> list[str]:
    """Write executed notebooks from `folder`/src into `out` (default: `folder` itself).

    All outputs of a notebook come from one execution. A second build gives the same bytes, but for
    cells whose output is ignored. Returns one line per lesson that failed; the others are written.
    """
    lessons = [(path, source.teacher(path)) for path in source.sources(folder, names)]
    return _execute_all(lessons, out or folder)


def student(
    names: Names = (), /, *, folder: Path = NOTEBOOKS, out: Path = Path("build/student")
) -> list[str]:
    """Write the copies with blanks."""
    copies = [(path, source.blanked(path)) for path in source.sources(folder, names)]
    for path, notebook in copies:
        _write(notebook, out / f"{path.stem}.ipynb")
    print(f"{len(copies)} student copies in {out}")
    return []


def both(
    names: Names = (), /, *, folder: Path = NOTEBOOKS, out: Path = Path("build/both")
) -> list[str]:
    """Write the executed notebooks with the blanks after them, for `compare` to test in one run."""
    lessons = source.sources(folder, names)
    for path in lessons:
        notebook = source.read_notebook(folder / f"{path.stem}.ipynb")
        _write(source.with_blanks(notebook, path), out / f"{path.stem}.ipynb")
    print(f"{len(lessons)} notebooks and their blanks in {out}")
    return []


def execute(notebook: NotebookNode, folder: Path, **options: Any) -> None:
    """Run all cells with `folder` as working directory, in place; options are nbclient's."""
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3", coalesce_streams=True,
        record_timing=False, store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
        config=Config(KernelManager={"transport_encryption": "auto"}), **options,
    )  # fmt: skip
    asyncio.run(client.async_execute(env=kernel_environment()))  # `execute` leaves its loop open


def normalise(notebook: NotebookNode) -> None:
    """Remove in place what changes from run to run and means nothing to a reader.

    Widget views go, for a stored one is dead: the picture or text beside it stays. Tracebacks
    are cut to their last line, since they quote paths and line numbers of this machine.
    """
    notebook.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _normal_output(output))]


def _normal_output(output: NotebookNode) -> NotebookNode | None:
    if "text" in output:
        output.text = CELL_FILE.sub("cell.py", output.text)
    if output.output_type == "error":
        output.traceback = [f"{output.ename}: {output.evalue}"]
    if "data" in output:
        output.data.pop(WIDGET_VIEW, None)
        return output if output.data else None
    return output


def _execute_all(lessons: Sequence[tuple[Path, NotebookNode]], out: Path) -> list[str]:
    """Execute `KERNELS` lessons at a time; return a line for each that failed, in their order."""
    from llama2_lib.pipeline.build import progress_bar  # here: not every command needs torch

    need_kernel()
    out.mkdir(parents=True, exist_ok=True)
    cells = sum(runs(cell) for _, notebook in lessons for cell in notebook.cells)

    def run(lesson: tuple[Path, NotebookNode]) -> str | None:
        path, notebook = lesson
        left = sum(map(runs, notebook.cells))

        def on_cell(**_: object) -> None:
            nonlocal left
            left -= 1
            progress.update()

        progress.set_description(path.stem)
        try:
            execute(notebook, out, on_cell_executed=on_cell)
        except CellExecutionError as error:
            return f"{path.name}: {error}"
        except (DeadKernelError, TimeoutError) as error:
            return f"{path.name}: the kernel died or a cell ran too long: {error}"
        except (RuntimeError, OSError) as error:  # of jupyter_client, before the first cell
            reason = str(error).splitlines()[0]
            return f"{path.name}: the kernel could not start: {reason}. Try llama2 doctor."
        finally:
            progress.update(left)  # of a lesson that stopped early
        normalise(notebook)
        notebook.metadata["made_from"] = source.made_from()
        _write(notebook, out / f"{path.stem}.ipynb")
        return None

    # In threads: the caller's own may have a running loop already, as a notebook's has.
    with progress_bar(total=cells, unit="cell") as progress, ThreadPoolExecutor(KERNELS) as threads:
        faults = [fault for fault in threads.map(run, lessons) if fault is not None]
    print(f"{len(lessons) - len(faults)} of {len(lessons)} notebooks executed into {out}")
    return faults


def _write(notebook: NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, nbformat.writes(notebook) + "\n")
