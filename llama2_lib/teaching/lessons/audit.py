"""Are the notebooks what their sources give, and do the lessons keep the house rules?

Nothing is executed here: outputs are nbval's business.
"""

import ast
import re
import symtable
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from nbformat import NotebookNode

from llama2_lib.teaching.lessons import source
from llama2_lib.teaching.lessons.source import Names, ignored, runs, tags
from llama2_lib.teaching.nbval_glue import NEAR

LONGEST_CELL = 25  # lines, unless tagged `long`
KNOWN_TAGS = {
    "build", "exercise", "hide-input", "long", "nbval-ignore-output", "nbval-skip",
    "raises-exception", "skip-execution", "solution",
}  # fmt: skip
HEAD = {
    "a title ('# ...')": r"\A# \S",
    "'be able to explain'": r"able to explain",
    "'Prerequisites'": r"prerequisites",
    "'Paper sections'": r"paper sections?",
    "'Minutes'": r"minutes",
}
FOOT = {
    "'## What the paper reported, what we measured'": r"paper reported",
    "'## Exercises'": r"exercises",
    "'## Questions to think about'": r"questions",
    "'## Next'": r"next",
}
EXERCISES = range(3, 7)
WIDGETS = {"Explorer", "Stepper", "AttackDesk"}
FORBIDDEN = {
    r"\b(interact|interactive|interactive_output|Output)\(": (
        "uses an Output widget, which nbval cannot compare; use llama2_lib.widgets.Explorer"
    ),
    r"\bplt\.|import matplotlib\.pyplot": (
        "uses pyplot, which keeps every figure; use llama2_lib.figures.new_figure and show"
    ),
    r";\s*\Z": "ends with a semicolon, which hides nothing under nbval; assign the value instead",
}
MACHINE = {
    r" at 0x[0-9a-f]{6,}": "prints the address of an object",
    r"(/home/|/Users/|/root/|/tmp/)\w": "prints a folder of one machine",
}


def check(names: Names = (), /, *, folder: Path = Path("notebooks")) -> list[str]:
    """Return one line for each way in which a notebook is stale, missing or against the rules."""
    faults = []
    for path in source.sources(folder, names):
        of_notebook = notebook_faults(path, folder / f"{path.stem}.ipynb")
        faults += [f"{path.stem}: {fault}" for fault in [*lesson_faults(path), *of_notebook]]
    if not names:
        known = {path.stem for path in source.sources(folder)}
        orphans = [path.stem for path in sorted(folder.glob("*.ipynb")) if path.stem not in known]
        faults += [f"{name}: no source src/{name}.py" for name in orphans]
    print(f"{len(faults)} faults in {folder}")
    return faults


def notebook_faults(lesson: Path, written: Path) -> Iterator[str]:
    """Compare a notebook with its source, and look for cells that nbval would pass over."""
    if not written.exists():
        yield "the notebook is missing; build it"
        return
    notebook, wanted = source.read_notebook(written), source.teacher(lesson)
    if notebook.metadata.get("kernelspec") != wanted.metadata.kernelspec:
        yield "the kernelspec is not python3; build it anew"
        return
    if _bare(notebook) != _bare(wanted):
        yield "stale: the notebook is not what its source gives; build it anew"
        return
    if (made := notebook.metadata.get("made_from")) != (now := source.made_from()):
        yield f"its outputs are of {made}; build it on {now}"
    counts = [cell.execution_count for cell in filter(runs, notebook.cells)]
    if None not in counts and counts != list(range(1, len(counts) + 1)):
        yield "its outputs are of several executions; build it anew"
    for cell in filter(runs, notebook.cells):
        if cell.execution_count is None:
            yield f"{cell.id} was never run, so nbval would compare nothing; build it anew"
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed and "raises-exception" not in tags(cell):
            yield f"{cell.id} holds an error and is not tagged raises-exception"
        for line in re.findall(r"^.*\b(?:True|False)\W*$", _printed(cell), re.M):
            yield f"{cell.id} prints {line.strip()!r}: print the number, and assert what must hold"
        for pattern, reason in MACHINE.items():
            if not ignored(cell) and re.search(pattern, _printed(cell)):
                yield f"{cell.id} {reason}; print something that is the same everywhere"


def lesson_faults(lesson: Path) -> list[str]:
    """Check a source against the rules for a lesson: head, foot, headings, cells, tags."""
    notebook = source.read_source(lesson)
    faults = [fault for cell in notebook.cells for fault in source.marker_faults(cell)]
    faults += [fault for cell in notebook.cells for fault in _cell_faults(cell)]
    faults += _use_of_exercises(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    faults += [
        f"{cell.id}: its output is ignored; the next code cell must be a compared check"
        for cell, following in zip(code, [*code[1:], None], strict=True)
        if ignored(cell) and (following is None or ignored(following))
    ]
    return [*faults, *_heading_faults(notebook, exercises=not lesson.stem.startswith("00"))]


def _cell_faults(cell: NotebookNode) -> Iterator[str]:
    near = {tag for tag in tags(cell) if NEAR.fullmatch(tag)}
    if near and (ignored(cell) or len(near) > 1):
        yield f"{cell.id}: a cell is compared within one `near=`, or ignored; not both"
    if unknown := tags(cell) - KNOWN_TAGS - near:
        yield f"{cell.id}: unknown tags {sorted(unknown)}; known: {sorted(KNOWN_TAGS)}"
    if len({"nbval-skip", "skip-execution"} & tags(cell)) == 1:
        yield f"{cell.id}: nbval-skip and skip-execution go together"
    if cell.cell_type != "code":
        return
    lines = len([line for line in cell.source.splitlines() if line.strip()])
    lines -= len(re.findall(r"### (BEGIN|END) SOLUTION", cell.source))
    if lines > LONGEST_CELL and "long" not in tags(cell):
        yield f"{cell.id}: {lines} lines; at most {LONGEST_CELL}, or tag it long"
    for pattern, reason in FORBIDDEN.items():
        if re.search(pattern, cell.source):
            yield f"{cell.id} {reason}"
    for statement in ast.parse(cell.source).body[:-1]:
        match statement:
            case ast.Expr(ast.Call(ast.Name(name))) if name in WIDGETS:
                yield f"{cell.id}: {name} is shown only as the last line of its cell"


def _use_of_exercises(notebook: NotebookNode) -> Iterator[str]:
    """A student's copy has blanks there, so what uses them must stand beside them."""
    mine: dict[str, str] = {}  # a name, and the cell that only a solution gives it to
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        bound, read = _names(cell.source)
        if "solution" not in tags(cell):
            for name in sorted(read & mine.keys()):
                yield f"{cell.id} uses {name!r} of {mine[name]}, which a student's copy lacks"
        if "SOLUTION" in cell.source or "solution" in tags(cell):
            mine.update(dict.fromkeys(bound - {"_"}, cell.id))
        else:
            mine = {name: at for name, at in mine.items() if name not in bound}


def _names(source: str) -> tuple[set[str], set[str]]:
    """Return the names that a cell binds at its top level, and those it reads anywhere."""
    tree = ast.parse(source)
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    top = symtable.symtable(source, "cell", "exec")
    return {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}, read


def _heading_faults(notebook: NotebookNode, *, exercises: bool) -> Iterator[str]:
    first = notebook.cells[0]
    head = first.source if first.cell_type == "markdown" else ""
    for what, pattern in HEAD.items():
        if not re.search(pattern, head, re.IGNORECASE):
            yield f"the first cell lacks {what}"
    headings = _headings(notebook)
    titles = [text for level, text in headings if level == 1]
    if len(titles) != 1:
        yield f"there must be one '# ' heading, the title; got {len(titles)}"
    for (level, _), (deeper, text) in pairwise(headings):
        if deeper > level + 1:
            yield f"heading {text!r} skips a level"
    foot = {what: pattern for what, pattern in FOOT.items() if exercises or "xercises" not in what}
    sections = [text for level, text in headings if level == 2]
    last = ([""] * len(foot) + sections)[-len(foot) :]
    for (what, pattern), text in zip(foot.items(), last, strict=True):
        if not re.search(pattern, text, re.IGNORECASE):
            yield f"the last sections must have, in this order, {what}; got {text!r} there"
    count = sum(level == 3 and text.startswith("Exercise") for level, text in headings)
    if exercises and count not in EXERCISES:
        yield f"three to six '### Exercise' headings are needed; got {count}"


def _headings(notebook: NotebookNode) -> list[tuple[int, str]]:
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [(len(marks), words.strip()) for marks, words in re.findall(r"^(#+) (.+)$", text, re.M)]


def _bare(notebook: NotebookNode) -> list[tuple[str, str, str, NotebookNode]]:
    return [(cell.cell_type, cell.id, cell.source, cell.metadata) for cell in notebook.cells]


def _printed(cell: NotebookNode) -> str:
    parts = [output.get("text", "") for output in cell.outputs]
    parts += [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(parts)
