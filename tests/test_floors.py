"""The rules of the house, checked by machine; each rule is also seen to catch an offender."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_FLOORS = {"figures", "widgets", "teaching", "doctor", "bench", "course", "cli", "__main__"}
PLOTTING = {"matplotlib", "ipywidgets", "IPython"}
PREDICATES = {
    "search",
    "match",
    "fullmatch",
    "isascii",
    "startswith",
    "endswith",
    "exists",
    "is_file",
}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
# written in pieces, so that this file does not find itself
UNFINISHED = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "X" * 3]) + r"\b")
MACHINE_PATH = re.compile("|".join(["/wo" + "rk/", "/tmp" + "/w/", "/opt/" + "(pypi|wheels)"]))
HOME = re.compile(r"/(root|home|Users)/\w")
TEXT = {".py", ".md", ".toml", ".yml", ".txt", ".cff", ".cfg", ".json", ".jsonl", ".ipynb", ".j2"}


def sources(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every Python file under `folder`: its relative name and its syntax tree."""
    for path in sorted(folder.rglob("*.py")):
        yield str(path.relative_to(folder)), ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level packages that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def plotting_below_floor_10(package: Path) -> list[str]:
    return [
        f"{name} imports {module}"
        for name, tree in sources(package)
        if Path(name).parts[0].removesuffix(".py") not in TOP_FLOORS
        for module in imported(tree)
        if module in PLOTTING
    ]


def too_long(package: Path) -> list[str]:
    found = []
    for name, tree in sources(package):
        lines = len((package / name).read_text().splitlines())
        if lines > MAX_FILE_LINES:
            found.append(f"{name} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{name}: {node.name} has {length} lines")
    return found


def future_annotations(folder: Path) -> list[str]:
    """jaxtyping reads annotations at run time; that import turns them into text."""
    return [name for name, tree in sources(folder) if "__future__" in imported(tree)]


def is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def is_predicate(node: ast.expr) -> bool:
    """True for what compares by itself, so that the message cannot be meant as the other side."""
    if isinstance(node, ast.BoolOp):
        return all(is_predicate(value) for value in node.values)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in {"all", "any", "isinstance", "issubclass"}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in PREDICATES
    return isinstance(node, ast.Compare) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def asserts_that_cannot_fail(folder: Path) -> list[str]:
    """`assert x, y` meant as `x == y`: there `y` is only the message."""
    return [
        f"{name}:{node.lineno}"
        for name, tree in sources(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        and node.msg is not None
        and not (is_text(node.msg) or is_predicate(node.test))
    ]


def text_files(root: Path) -> Iterator[Path]:
    """What the repository holds, without what git ignores."""
    ignored = {".git", ".venv", "build", "artifacts", "node_modules"}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if ignored & set(parts) or any(p.endswith(("_cache", "_checkpoints")) for p in parts):
            continue
        if path.is_file() and (path.suffix in TEXT or path.parent.name == ".ci"):
            yield path


def lines_with(root: Path, pattern: re.Pattern) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}"
        for path in text_files(root)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line) and '"image/png": ' not in line  # base64 spells every word
    ]


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def copy(tmp_path):
    """The package and its contracts, to plant offenders in."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "llama2_lib", tmp_path / "llama2_lib", ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def plant(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}\n{text}\n")


def test_the_floors_are_kept():
    result = lint_imports(ROOT)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("model/layers.py", "import llama2_lib.training", "A floor imports only"),
        ("world/__init__.py", "import llama2_lib.text", "A floor imports only"),
        ("rng.py", "def late():\n    import llama2_lib.pipeline", "A floor imports only"),
        ("evaluation/__init__.py", "import matplotlib", "Computing never needs"),
        ("world/__init__.py", "import torch", "The world is pure Python"),
    ],
)
def test_an_upward_import_is_found(copy, module, line, contract):
    plant(copy / "llama2_lib" / module, line)
    result = lint_imports(copy)
    assert result.returncode != 0
    broken = [row for row in result.stdout.splitlines() if "BROKEN" in row]
    assert any(contract in row for row in broken), f"{result.stdout}{result.stderr}"


def test_computing_never_plots(copy):
    assert plotting_below_floor_10(ROOT / "llama2_lib") == []
    plant(copy / "llama2_lib/stages/pretrain.py", "def f():\n    from matplotlib import pyplot")
    plant(copy / "llama2_lib/claims/ledger.py", "import IPython.display")
    assert plotting_below_floor_10(copy / "llama2_lib") == [
        "claims/ledger.py imports IPython",
        "stages/pretrain.py imports matplotlib",
    ]


def test_files_and_functions_stay_short(tmp_path):
    assert too_long(ROOT / "llama2_lib") == []
    plant(tmp_path / "long.py", "\n".join(["x = 1"] * 300))
    plant(tmp_path / "body.py", "def f():\n" + "    x = 1\n" * 60)
    plant(tmp_path / "fits.py", "def f():\n" + "    x = 1\n" * 59)
    assert too_long(tmp_path) == ["body.py: f has 61 lines", "long.py has 301 lines"]


def test_annotations_stay_objects(tmp_path):
    assert [
        f for folder in ("llama2_lib", "tests") for f in future_annotations(ROOT / folder)
    ] == []
    plant(tmp_path / "lazy.py", "from __future__ import annotations")
    assert future_annotations(tmp_path) == ["lazy.py"]


def test_no_assert_has_a_value_for_a_message(tmp_path):
    assert asserts_that_cannot_fail(ROOT / "tests") == []
    bad = ["assert x, 3", "assert f(x), y", "assert x.all(), y", "assert x and y == 1, z"]
    good = ["assert x, 'text'", "assert x, f'{y}'", "assert x == y", "assert x, 'a' + y"]
    good += ["assert x == y, z", "assert not x, z", "assert any(x), z"]
    plant(tmp_path / "bad.py", "\n".join(bad))
    plant(tmp_path / "good.py", "\n".join(good))
    assert asserts_that_cannot_fail(tmp_path) == [f"bad.py:{line}" for line in (2, 3, 4, 5)]


def test_nothing_is_left_unfinished(tmp_path):
    assert lines_with(ROOT, UNFINISHED) == []
    plant(tmp_path / "docs" / "page.md", "TO" + "DO: write this")
    assert lines_with(tmp_path, UNFINISHED) == ["docs/page.md:2"]


def test_no_file_knows_the_machine_it_was_made_on(tmp_path):
    assert lines_with(ROOT, MACHINE_PATH) == []
    assert [line for line in lines_with(ROOT, HOME) if ".py:" not in line] == []
    for name in ("n.ipynb", "build/n.ipynb"):
        plant(tmp_path / name, '"saved to /wo' + 'rk/x and /home/x"')
    assert lines_with(tmp_path, MACHINE_PATH) == lines_with(tmp_path, HOME) == ["n.ipynb:2"]
    assert len(list(text_files(ROOT))) > 30, "too few files were read: vacuous test"
