"""What the documents point to exists; README and decisions keep their size."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
QUOTED = re.compile(r"`([\w./]+)(?:: (\w+))?`")
# made by commands, or promised by a rule rather than present
ABSENT = {
    *("build/test/", "build/student/", "build/course/", "artifacts/"),
    *("utils.py", "notebooks/src/NN_name.py"),
}


def names_in(path: Path) -> set[str]:
    """What a module defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def dead_ends(root: Path, page: str) -> list[str]:
    """Quoted paths that do not exist, and quoted names that their module does not define."""
    found = []
    for path, name in QUOTED.findall((root / page).read_text()):
        if (
            path in ABSENT
            or "NAME" in path
            or not (path.endswith("/") or path.endswith((".py", ".md", ".toml")))
        ):
            continue
        places = [root / folder / path for folder in ("", "llama2_lib", "tests")]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            found.append(f"{page}: {path} does not exist")
        elif name and name not in names_in(place):
            found.append(f"{page}: {path} defines no {name}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_pointer_leads_somewhere(page):
    assert dead_ends(ROOT, page) == []


def test_the_map_has_many_pointers_to_check():
    text = (ROOT / "docs/paper_map.md").read_text()
    assert sum(bool(name) for _, name in QUOTED.findall(text)) > 25


def test_a_dead_end_is_found(tmp_path):
    (tmp_path / "llama2_lib").mkdir()
    (tmp_path / "llama2_lib/a.py").write_text("B: int = 1\n\ndef c():\n    d = 2\n")
    (tmp_path / "p.md").write_text("`a.py` `a.py: B` `a.py: c` `a.py: d` `e/` `x.md` `word`")
    assert dead_ends(tmp_path, "p.md") == [
        "p.md: a.py defines no d",
        "p.md: e/ does not exist",
        "p.md: x.md does not exist",
    ]


def test_every_notebook_of_the_readme_exists_and_the_other_way_round():
    text = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"^\| `(\d\d_\w+)`", text, re.MULTILINE))
    present = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert listed == present


def test_readme_is_short_and_measured():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "TO MEASURE" not in text, "the README still waits for numbers from a run"


def test_decisions_are_numbered_and_short():
    pages = sorted((ROOT / "docs/design").glob("*.md"))
    for number, page in enumerate(pages, start=1):
        lines = page.read_text().splitlines()
        assert page.name.startswith(f"{number:04d}-"), f"{page.name}: a number is missing before it"
        assert re.match(rf"# 0*{number}\b", lines[0]), f"{page.name}: {lines[0]}"
        assert len(lines) <= 50, f"{page.name} has {len(lines)} lines"
