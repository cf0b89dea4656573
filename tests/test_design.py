"""Decisions name the test that holds them; the walks and changes that they count are short."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
STATUS = re.compile(
    r"^Status: (accepted|replaced by \d{4})\. Held by (.+)\. Last checked (\d{4}-\d\d-\d\d)\.$",
    re.M,
)


walk = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "walk")))


def decisions_without_a_test(root: Path) -> list[str]:
    """Decisions that name no test, or one that is not there, or do not say when they were read."""
    faults = []
    for page in sorted((root / "docs/design").glob("*.md")):
        match = STATUS.search(page.read_text())
        held = re.findall(r"`(tests/[\w/.]+)`", match[2]) if match else []
        if not held:
            faults.append(f"{page.name} names no test that holds it")
        faults += [
            f"{page.name}: {name} does not exist" for name in held if not has_test(root, name)
        ]
    return faults


def has_test(root: Path, name: str) -> bool:
    path = root / name
    return any(path.glob("test_*.py")) if name.endswith("/") else path.is_file()


def test_every_decision_names_the_test_that_holds_it(tmp_path):
    assert decisions_without_a_test(ROOT) == []
    design, tests = tmp_path / "docs/design", tmp_path / "tests"
    for folder in (design, tests / "empty"):
        folder.mkdir(parents=True)
    (tests / "test_a.py").touch()
    words = "Status: accepted. Held by {}. Last checked 2026-11-30.\n"
    (design / "0001-a.md").write_text("# 0001\n\n" + words.format("`tests/test_a.py` and `tests/`"))
    (design / "0002-b.md").write_text(words.format("`tests/test_b.py` and `tests/empty/`"))
    (design / "0003-c.md").write_text("Status: accepted.\n\nHeld by `tests/test_a.py`.\n")
    (design / "0004-d.md").write_text(words.format("review"))
    assert decisions_without_a_test(tmp_path) == [
        "0002-b.md: tests/test_b.py does not exist",
        "0002-b.md: tests/empty/ does not exist",
        "0003-c.md names no test that holds it",
        "0004-d.md names no test that holds it",
    ]


PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs/design").glob("*.md"))]
WALKS = [each for page in PAGES for each in walk.walks(page)]


def test_what_is_counted_is_what_was_promised():
    limits = {each.title: each.limit for each in WALKS}
    assert limits == {
        "Adding a stage": 12,
        "Changing how answers are rewarded": 9,
        "Adding a claim": 4,
        "A token id, from the world to the PPO loss": 14,
        "A reward, from the annotator to PPO": 15,
    }


@pytest.mark.parametrize("each", WALKS, ids=lambda each: each.title)
def test_a_way_through_the_files_is_short(each):
    files, faults = walk.files_of(each, ROOT)
    assert faults == []
    assert 3 < len(files) <= each.limit


def test_long_ways_and_lost_stations_are_found(tmp_path):
    library = tmp_path / "llama2_lib"
    for name, text in {
        "world/a.py": "class A:\n    def f(self): ...\n\ndef g(): ...\n",
        "b.py": "def g(): ...\n",
        "teaching/c.py": "class A:\n    def f(self): ...\n",
    }.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(text)
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n\nStations (at most 2): `A.f`, `a.g`,\n`b.g`, `A`\n\n`prose`\n\n"
        "# Two\n\nStations (at most 1): `A.f`, `b.g`, `g`, `h`\n\n"
        "# Three\n\nFiles (at most 2): `llama2_lib/b.py`, `docs/NAME.md`, `docs/no.md`\n"
    )
    one, two, three = walk.walks(page)
    assert walk.files_of(one, tmp_path) == (["llama2_lib/world/a.py", "llama2_lib/b.py"], [])
    assert walk.files_of(two, tmp_path)[1] == [
        "g is defined in llama2_lib/b.py, llama2_lib/world/a.py",
        "h is defined in no file",
        "2 files, 1 at most",
    ]
    assert walk.files_of(three, tmp_path)[1] == [
        "docs/no.md does not exist",
        "3 files, 2 at most",
    ]
