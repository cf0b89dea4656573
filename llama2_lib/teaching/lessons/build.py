"""Execute lessons and write them as normalised notebooks: a second build gives the same bytes."""

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import nbformat
import tyro
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm
from traitlets.config import Config

from llama2_lib.storage import write_atomically
from llama2_lib.teaching.lessons.kernel import kernel_environment, need_kernel
from llama2_lib.teaching.lessons.source import (
    blanked,
    ignored,
    read_notebook,
    sources,
    teacher,
    with_blanks,
)

CELL_TIMEOUT = 1200  # seconds; a lesson is planned for 90 in all
KERNELS = 2  # lessons at a time; a kernel has one thread and up to a gigabyte
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_FILE = re.compile(r"\S*ipykernel_\d+/\d+\.py")
Names = Annotated[tuple[str, ...], tyro.conf.Positional]


def build(
    names: Names = (),
    /,
    *,
    folder: Path = Path("notebooks"),
    out: Path | None = None,
    fresh: bool = False,
) -> list[str]:
    """Write executed notebooks from `folder`/src into `out` (default: `folder` itself).

    Rebuilt in place, a cell whose output is ignored keeps the stored one as long as its source
    is the same, so that a second build changes nothing; `fresh` replaces those outputs as well.
    Returns one line per lesson that failed; the other lessons are written all the same.
    """
    lessons = [(path, teacher(path)) for path in sources(folder, names)]
    return _execute_all(lessons, out or folder, keep_ignored=out is None and not fresh)


def student(
    names: Names = (),
    /,
    *,
    folder: Path = Path("notebooks"),
    out: Path = Path("build/student"),
) -> list[str]:
    """Write the copies with blanks."""
    copies = [(path, blanked(path)) for path in sources(folder, names)]
    for path, notebook in copies:
        _write(notebook, out / f"{path.stem}.ipynb")
    print(f"{len(copies)} student copies in {out}")
    return []


def both(
    names: Names = (),
    /,
    *,
    folder: Path = Path("notebooks"),
    out: Path = Path("build/both"),
) -> list[str]:
    """Write the executed notebooks with the blanks after them, for `compare` to test in one run."""
    found = sources(folder, names)
    for path in found:
        notebook = read_notebook(folder / f"{path.stem}.ipynb")
        _write(with_blanks(notebook, path), out / f"{path.stem}.ipynb")
    print(f"{len(found)} notebooks and their blanks in {out}")
    return []


async def execute(
    notebook: NotebookNode, folder: Path, on_cell: Callable[..., object]
) -> NotebookNode:
    """Run all cells with `folder` as working directory and return the normalised notebook.

    Raises:
        CellExecutionError: A cell raised and is not tagged `raises-exception`.
    """
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        on_cell_executed=on_cell,
        resources={"metadata": {"path": str(folder)}},
        config=Config(KernelManager={"transport_encryption": "auto"}),
    )
    await client.async_execute(env=kernel_environment())
    return normalise(notebook)


def normalise(notebook: NotebookNode) -> NotebookNode:
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
    return notebook


def _normal_output(output: NotebookNode) -> NotebookNode | None:
    if "text" in output:
        output.text = CELL_FILE.sub("cell.py", output.text)
    if output.output_type == "error":
        output.traceback = [f"{output.ename}: {output.evalue}"]
    if "data" in output:
        output.data.pop(WIDGET_VIEW, None)
        return output if output.data else None
    return output


def _keep_ignored_outputs(notebook: NotebookNode, written: Path) -> None:
    if not written.exists():
        return
    before = {cell.id: cell for cell in read_notebook(written).cells}
    for cell in notebook.cells:
        old = before.get(cell.id)
        if cell.cell_type == "code" and old and ignored(cell) and old.source == cell.source:
            cell.outputs = old.get("outputs", [])


def _execute_all(
    lessons: Sequence[tuple[Path, NotebookNode]], out: Path, *, keep_ignored: bool = False
) -> list[str]:
    from llama2_lib.pipeline.build import progress_bar  # here: not every command needs torch

    need_kernel()
    out.mkdir(parents=True, exist_ok=True)
    cells = sum(_runs(cell) for _, notebook in lessons for cell in notebook.cells)
    with progress_bar(total=cells, unit="cell") as progress:
        # In a thread of its own: the caller's may have a running loop already, as a notebook's has.
        with ThreadPoolExecutor(1) as thread:
            work = _execute_some(lessons, out, keep_ignored, progress)
            faults = thread.submit(asyncio.run, work).result()
    print(f"{len(lessons) - len(faults)} of {len(lessons)} notebooks executed into {out}")
    return faults


async def _execute_some(
    lessons: Sequence[tuple[Path, NotebookNode]], out: Path, keep_ignored: bool, progress: tqdm
) -> list[str]:
    """Execute `KERNELS` lessons at a time; return a line for each that failed, in their order."""
    free = asyncio.Semaphore(KERNELS)

    async def run(path: Path, notebook: NotebookNode) -> str | None:
        left = sum(map(_runs, notebook.cells))

        def on_cell(**_: object) -> None:
            nonlocal left
            left -= 1
            progress.update()

        async with free:
            progress.set_description(path.stem)
            try:
                finished = await execute(notebook, out, on_cell)
            except CellExecutionError as error:
                return f"{path.name}: {error}"
            except (DeadKernelError, TimeoutError) as error:
                return f"{path.name}: the kernel died or a cell ran too long: {error}"
            except (RuntimeError, OSError) as error:  # of jupyter_client, before the first cell
                reason = str(error).splitlines()[0]
                return f"{path.name}: the kernel could not start: {reason}. Try llama2 doctor."
            finally:
                progress.update(left)  # of a lesson that stopped early
        written = out / f"{path.stem}.ipynb"
        if keep_ignored:
            _keep_ignored_outputs(finished, written)
        _write(finished, written)
        return None

    found = await asyncio.gather(*(run(path, notebook) for path, notebook in lessons))
    return [fault for fault in found if fault is not None]


def _runs(cell: NotebookNode) -> bool:
    skipped = "skip-execution" in cell.metadata.get("tags", [])
    return cell.cell_type == "code" and bool(cell.source.strip()) and not skipped


def _write(notebook: NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, nbformat.writes(notebook) + "\n")
