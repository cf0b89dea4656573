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


def test_the_committed_manifest_fits():
    assert check(DATA) == []


def test_a_changed_word_is_detected(folder):
    path = folder / "lexicon" / "places.txt"
    path.write_text(path.read_text().replace("Oakford", "Newplace"))
    problems = check(folder)
    assert "lexicon_sha256 differs for places.txt" in problems
    assert any(problem.startswith("samples/") for problem in problems)


def test_even_a_changed_comment_is_detected(folder):
    path = folder / "lexicon" / "places.txt"
    path.write_text("# hello\n" + path.read_text())
    assert check(folder) == ["lexicon_sha256 differs for places.txt"]


def test_a_changed_line_of_the_chats_is_detected(folder):
    path = folder / "lexicon" / "chat" / "answers.txt"
    path.write_text(path.read_text().replace("I hope that helps.", "I hope it helps."))
    problems = check(folder)
    assert "lexicon_sha256 differs for chat/answers.txt" in problems
    assert "samples/story.txt is missing or differs from what is generated" not in problems
    assert any("demonstrations_clean" in problem for problem in problems)


def test_a_changed_line_of_what_comes_later_is_detected_and_changes_nothing_else(folder):
    path = folder / "look_alikes" / "look_alikes.txt"
    path.write_text(path.read_text().replace("Nobody knows.", "Who knows?"))
    assert check(folder) == ["later_sha256 differs for look_alikes/look_alikes.txt"]


def test_changed_missing_and_extra_samples_are_detected(folder):
    (folder / "samples" / "story.txt").write_text("Once upon a time.\n")
    (folder / "samples" / "sums.txt").unlink()
    (folder / "samples" / "extra.txt").write_text("?")
    assert check(folder) == [
        "samples/extra.txt should not be there",
        "samples/story.txt is missing or differs from what is generated",
        "samples/sums.txt is missing or differs from what is generated",
    ]
    (folder / "samples" / "extra.txt").unlink()
    write(folder)
    assert check(folder) == []
    assert (folder / "samples" / "story.txt").read_bytes() == (
        DATA / "samples" / "story.txt"
    ).read_bytes()


def test_writing_again_changes_nothing(folder):
    before = (folder / "manifest.json").read_bytes()
    write(folder)
    assert (folder / "manifest.json").read_bytes() == before


def test_a_missing_manifest_is_named(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="manifest write"):
        check(folder)


def test_the_command_says_what_differs(capsys):
    assert main(["check"]) == 0
    assert "what the generators make" in capsys.readouterr().out
    assert main([]) == main(["read"]) == 2
    assert "write|check" in capsys.readouterr().out
    code = "import sys, llama2_lib.world.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=DATA.parent).returncode == 0
