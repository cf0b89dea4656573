"""The prose keeps to the phrases of `docs/style.md`."""

import re
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[2]
STYLE = ROOT / "docs" / "style.md"
ROW = re.compile(r"^\| `(?P<phrase>.+)` \| (?P<instead>.+) \|$", re.M)
PHRASES = {
    re.compile(row["phrase"].replace(r"\|", "|")): row["instead"]  # a bar would end the column
    for row in ROW.finditer(STYLE.read_text())
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = {"log.md", "style.md"}
"""A log is history; the page of phrases holds them all."""


def texts() -> dict[str, str]:
    found = {path.name: path.read_text() for path in PAGES if path.name not in OTHERS}
    for path in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        cells = jupytext.read(path).cells
        found[path.name] = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    return found


def refused(text: str) -> list[str]:
    hits = ((phrase.search(text), instead) for phrase, instead in PHRASES.items())
    return [f"{hit[0]!r}: {instead}" for hit, instead in hits if hit]


def test_lessons_and_pages_use_none_of_the_refused_phrases():
    read = texts()
    assert len(read) > 30
    assert {name: hits for name, text in read.items() if (hits := refused(text))} == {}


@pytest.mark.parametrize(
    "sentence",
    [
        "It goes on with the text.", "That is 0.4 nats an answer.", "V5 less SFT is +0.02.",
        "How many are answered rightly?", "That is not a matter of course.",
    ],
)  # fmt: skip
def test_a_refused_phrase_is_seen(sentence):
    assert len(refused(sentence)) == 1


def test_the_same_in_the_fields_words_is_not():
    good = "It continues the text, at 0.4 nats per answer; V5 minus SFT is +0.02 on a prompt."
    assert refused(good) == []
    assert len(PHRASES) >= 10
