import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama2_lib.world import SHARES, make_world
from llama2_lib.world.demonstrations import WRITER_GRADES
from llama2_lib.world.manifest import check, main, sample_texts, write

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DATA, tmp_path / "data")


def test_committed_samples_are_regenerated_byte_for_byte():
    texts = sample_texts(make_world(0))
    committed = {path.name: path.read_bytes() for path in (DATA / "samples").glob("*")}
    assert committed == {name: text.encode() for name, text in texts.items()}
    grades = [f"demonstrations_{grade}" for grade in WRITER_GRADES]
    tuning = ["dialogs", *grades, "pairs", "prompts"]
    assert set(committed) == {f"{kind}.txt" for kind in [*SHARES, *tuning]}
    assert all(len(content) > 40 for content in committed.values())


def test_the_committed_files_fit():
    assert check(DATA) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "samples"),
    [
        ("lexicon/places.txt", "Oakford", "Newplace", {"demonstrations_clean"}),
        ("lexicon/places.txt", "Oakford", "Oakford\n# hello", set()),
        ("lexicon/chat/answers.txt", "I hope that helps.", "I hope so.", {"demonstrations_clean"}),
        ("look_alikes/look_alikes.txt", "Nobody knows.", "Who knows?", set()),
    ],
)
def test_a_changed_line_is_detected_in_what_is_made_of_it(folder, file, old, new, samples):
    path = folder / file
    path.write_text(path.read_text().replace(old, new, 1))
    found = {problem.split()[0] for problem in check(folder)}
    assert "manifest.json" in found
    written = {f"samples/{name}.txt" for name in ("story", "demonstrations_clean")}
    assert found & written == {f"samples/{name}.txt" for name in samples}


def test_changed_missing_and_extra_samples_are_detected(folder):
    (folder / "samples" / "story.txt").write_text("Once upon a time.\n")
    (folder / "samples" / "sums.txt").unlink()
    (folder / "samples" / "extra.txt").write_text("?")
    (folder / "manifest.json").unlink()
    assert check(folder) == [
        "manifest.json is missing or differs from what is generated",
        "samples/extra.txt should not be there",
        "samples/story.txt is missing or differs from what is generated",
        "samples/sums.txt is missing or differs from what is generated",
    ]
    (folder / "samples" / "extra.txt").unlink()
    write(folder)
    assert check(folder) == []
    for name in ("manifest.json", "samples/story.txt"):
        assert (folder / name).read_bytes() == (DATA / name).read_bytes()


def test_the_command_says_what_differs(capsys):
    assert main(["check"]) == 0
    assert "what the generators make" in capsys.readouterr().out
    assert main([]) == main(["read"]) == 2
    assert "write|check" in capsys.readouterr().out
    code = "import sys, llama2_lib.world.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=DATA.parent).returncode == 0
