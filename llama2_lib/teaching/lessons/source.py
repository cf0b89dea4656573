"""Read a lesson's source; make the teacher's and the student's cells from it."""

import ast
import copy
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import jupytext
import nbformat
import tyro
from nbformat import NotebookNode

Names = Annotated[tuple[str, ...], tyro.conf.Positional]
"""Lessons as they are named on the command line; all when none is."""

KERNELSPEC = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
KEPT_METADATA = {"tags", "slideshow", "jupyter"}
BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION[^\n]*\n.*?^[ \t]*### END SOLUTION[^\n]*$", re.M | re.S
)
MARKER_LINE = re.compile(r"^[ \t]*### (BEGIN|END) SOLUTION[^\n]*\n?", re.M)
IMPORTS = re.compile(r"(import|from) \w")
PASSED = re.compile(r"^\[ OK \] (.*)$", re.M)
LEDGERS = ("claims.json", "runs.json")
"""Recorded results that notebooks print."""
STUB = "raise NotImplementedError  # your code here"
ANSWER = """# A solution. It is taken only while yours is not written.
from llama2_lib.teaching.check import written"""


def sources(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the sources of a folder of notebooks, in order, all of them or the named ones."""
    lessons = {path.stem: path for path in sorted((folder / "src").glob("*.py"))}
    if not lessons:
        raise FileNotFoundError(
            f"{folder / 'src'} must hold the lessons (*.py); it holds none. Run from the root of "
            "the checkout, or give the folder."
        )
    wanted = [Path(name).stem for name in names] or list(lessons)
    for name in wanted:
        if name not in lessons:
            there = list(lessons)
            raise FileNotFoundError(f"no lesson {name!r} in {folder / 'src'}; there: {there}")
    return [lessons[name] for name in wanted]


def tags(cell: NotebookNode) -> set[str]:
    """Return the tags of a cell."""
    return set(cell.metadata.get("tags", []))


def ignored(cell: NotebookNode) -> bool:
    """Return whether nbval passes over the outputs of a cell."""
    marked = {"nbval-ignore-output", "nbval-skip"} & tags(cell)
    return bool(marked) or "# NBVAL_IGNORE_OUTPUT" in cell.source


def runs(cell: NotebookNode) -> bool:
    """Return whether a cell is executed."""
    skipped = "skip-execution" in tags(cell)
    return cell.cell_type == "code" and bool(cell.source.strip()) and not skipped


def made_from() -> dict[str, str]:
    """Return what the outputs of a notebook rest on beside its source: fingerprints."""
    from llama2_lib import pipeline, storage  # here: not every command needs torch
    from llama2_lib.config import VERSIONS
    from llama2_lib.recipes import nano

    data = storage.release_root().parent
    ledgers = {name: storage.file_sha256(data / name)[:12] for name in LEDGERS}
    return {"chain": pipeline.fingerprint(VERSIONS["chat"], nano()), **ledgers}


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook from disk."""
    return cast(NotebookNode, nbformat.read(path, as_version=4))


def read_source(path: Path) -> NotebookNode:
    """Read a percent-format lesson: cells with fixed ids, markers still in, nothing executed."""
    notebook = cast(NotebookNode, jupytext.read(path, fmt="py:percent"))
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"{path.stem}-{index:03d}"[-64:]
        kept = {key: value for key, value in cell.metadata.items() if key in KEPT_METADATA}
        if "hide-input" in cell.metadata.get("tags", []) or IMPORTS.match(cell.source):
            kept["jupyter"] = {"source_hidden": True}  # folded in JupyterLab, a click opens it
        cell.metadata = nbformat.from_dict(kept)
    return notebook


def teacher(path: Path) -> NotebookNode:
    """Return the lesson with its solutions, the marker lines gone."""
    notebook = read_source(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = MARKER_LINE.sub("", cell.source).rstrip("\n")
    return notebook


def blanked(path: Path) -> NotebookNode:
    """Return the lesson with a stub in place of each solution; cells tagged `solution` dropped.

    In a cell tagged `build` every function is a stub, its docstring and the comments under it kept.
    A folded cell after it holds a solution, which counts while the learner's is not written.
    """
    notebook = read_source(path)
    if faults := [fault for cell in notebook.cells for fault in marker_faults(cell)]:
        raise ValueError(f"{path.name}: {'; '.join(faults)}")
    notebook.cells = [cell for cell in notebook.cells if "solution" not in tags(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = BLOCK.sub(lambda block: block["indent"] + STUB, cell.source)
    notebook.cells = [made for cell in notebook.cells for made in _to_build(cell)]
    return notebook


def _to_build(cell: NotebookNode) -> list[NotebookNode]:
    """Return a cell as it is; or one to be built as blanks and checks, a solution, and the rest."""
    if "build" not in tags(cell):
        return [cell]
    lines, body = cell.source.split("\n"), ast.parse(cell.source).body
    own = [
        n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.decorator_list
    ]
    own = [node for node in own if node.name.lower().startswith("my")] or own  # not its helpers
    checks = [n for n in body if isinstance(n, ast.FunctionDef) and n.decorator_list]
    end = max(node.end_lineno or 0 for node in [*own, *checks])
    rest, solved, blank = lines[end:], list[str](), lines[:end]
    for node in reversed(own):
        code = textwrap.indent("\n".join(lines[node.lineno - 1 : node.end_lineno]), "    ")
        solved.insert(0, f"if not written({node.name}):\n\n{code}")
        methods = [node] if isinstance(node, ast.FunctionDef) else reversed(node.body)
        for function in (m for m in methods if isinstance(m, ast.FunctionDef)):
            first = function.body[ast.get_docstring(function) is not None]
            blank[first.lineno - 1 : function.end_lineno] = [" " * first.col_offset + STUB]
    parts = [cell, copy.deepcopy(cell), copy.deepcopy(cell)]
    sources = "\n".join(blank), "\n\n".join([ANSWER, *solved]), "\n".join(rest).strip("\n")
    for part, source, suffix in zip(parts, sources, ("", "-answer", "-rest"), strict=True):
        part.source, part["id"] = source, f"{cell.id[:56]}{suffix}"
    parts[1].metadata = nbformat.from_dict({"tags": ["answer"], "jupyter": {"source_hidden": True}})
    parts[2].metadata = nbformat.from_dict({"tags": sorted(tags(cell) - {"build"})})
    return [part for part in parts if part.source]


def with_blanks(notebook: NotebookNode, path: Path) -> NotebookNode:
    """Return an executed notebook with the student's exercises after its last cell.

    One run then tests both copies. The blanks hold the output that a run must show: every check
    of an exercise that passed is "not written yet". All other cells of the student's copy are the
    teacher's, and `check` refuses one that uses what an exercise defines.
    """
    both = copy.deepcopy(notebook)
    outputs = {cell.id: cell.outputs for cell in both.cells if cell.cell_type == "code"}
    for cell in blanked(path).cells:
        if STUB in cell.source or "answer" in tags(cell):
            passed = PASSED.findall("".join(o.get("text", "") for o in outputs.get(cell.id, [])))
            told = "".join(f"[    ] {name}: not written yet\n" for name in passed)
            cell.outputs = [nbformat.v4.new_output("stream", text=told)] if told else []
            cell.execution_count = len(both.cells)
            cell["id"] = f"blank-{cell.id}"[-64:]
            both.cells.append(cell)
    return both


def marker_faults(cell: NotebookNode) -> list[str]:
    """Return what is wrong with the solution markers of a cell."""
    if "SOLUTION" not in cell.source:
        return []
    unpaired = re.search(r"(BEGIN|END) SOLUTION", BLOCK.sub("", cell.source))
    if cell.cell_type != "code" or unpaired:
        return [
            f"{cell.id}: half a solution marker; '### BEGIN SOLUTION' and '### END SOLUTION' go "
            "in pairs, each on its own line of a code cell"
        ]
    if any(not block["indent"] for block in BLOCK.finditer(cell.source)):
        return [
            f"{cell.id}: a solution outside a function would raise in the student's copy; put it "
            "into a function body"
        ]
    return []
