"""The release in data/release is this code's, whole and small; how one is made and refused."""

import json
import re
from dataclasses import replace
from shutil import copytree, rmtree

import pytest
import torch
from safetensors.torch import load_file

from llama2_lib import pipeline, release, storage
from llama2_lib.claims import headline
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.recipes import toy
from llama2_lib.storage import DamagedArtifactError

pytestmark = pytest.mark.usefixtures("one_thread")
REAL = storage.release_root()


def test_the_release_is_this_codes_and_whole():
    assert release.faults() == []


def test_it_is_small_and_in_half_precision():
    weights = list(REAL.rglob("*.safetensors"))
    assert len(weights) == 26  # 16 models of language, and two reward models five times
    for path in weights:
        assert path.stat().st_size <= 2 * 2**20
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    assert sum(path.stat().st_size for path in REAL.rglob("*") if path.is_file()) <= 60_000_000


def test_the_card_and_the_numbers_are_those_of_its_stages():
    card = (REAL / release.CARD).read_text()
    for name, digits in pipeline.released_stages(release.nano()).items():
        assert f"| `{name}` | `{digits}` | " in card
    for line in headline.lines(headline.read(REAL / release.NUMBERS)):
        assert line in card


# --- how one is made


@pytest.fixture
def checkout(toy_root, tmp_path, monkeypatch):
    """A place for a release, and a finished chain of toy in place of nano's."""
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(toy_root))
    monkeypatch.setattr(release, "nano", toy)
    monkeypatch.setattr(storage, "release_root", lambda: tmp_path / "data" / "release")
    table = {"chat model": {"helps (mark)": Estimate(value=0.5, low=0.4, high=0.6, n=7)}}
    monkeypatch.setattr(headline, "headline", lambda recipe, **options: {"chat": table})
    return tmp_path / "data" / "release"


@pytest.fixture
def made(checkout):
    release.make("cpu")
    return checkout


def test_a_release_holds_every_stage_byte_for_byte(made, toy_root):
    assert release.faults() == []
    for stage, digits in pipeline.released_stages(toy()).items():
        for path in (toy_root / stage / digits).rglob("*"):
            copy = made / path.relative_to(toy_root)
            assert copy.is_dir() if path.is_dir() else copy.read_bytes() == path.read_bytes()
    assert headline.read(made / release.NUMBERS) == headline.headline(toy())
    assert "helps (mark) " in (made / release.CARD).read_text()


def test_it_replaces_what_was_released_before(made):
    (made / "old").mkdir()
    (made / "old" / "model.safetensors").write_text("of another chain")
    release.make("cpu")
    assert release.faults() == []
    assert not (made / "old").exists()
    assert [path.name for path in made.parent.iterdir()] == ["release"]


def test_what_is_released_is_not_trained_again(made, tmp_path):
    root = tmp_path / "empty"
    assert pipeline.missing(release.LAST, toy(), root) == []
    folder = pipeline.artifact(release.LAST, toy(), root=root, bar=False)
    assert folder.is_relative_to(made)
    assert not root.exists()
    everything = list(pipeline.fingerprints(release.LAST, toy()))
    assert pipeline.missing(release.LAST, toy(), root, released=False) == everything
    other = replace(toy(), sft=replace(toy().sft, seed=7))
    assert "sft" in pipeline.missing(release.LAST, other, root)
    assert "pretrain" not in pipeline.missing(release.LAST, other, root)


def test_a_damaged_release_is_refused_and_not_trained_over(made, tmp_path):
    [path] = (made / "sft").glob("*/samples.txt")
    path.write_text("edited")
    with pytest.raises(DamagedArtifactError, match=r"bytes differ.*git checkout -- .*/sft/"):
        pipeline.artifact("sft", toy(), root=tmp_path / "own", bar=False)
    assert path.read_text() == "edited", "nothing is set aside or built"
    assert pipeline.artifact("pretrain", toy(), bar=False).is_relative_to(made)


def test_every_fault_is_named(made, tmp_path, monkeypatch):
    def faults(change):
        """Return what is found after a change, which is then taken back."""
        kept = copytree(made, tmp_path / "kept")
        change()
        found = release.faults()
        rmtree(made)
        kept.rename(made)
        return found

    [sft] = (made / "sft").iterdir()
    for change, words in (
        (lambda: (sft / "samples.txt").write_text("edited"), "bytes differ"),
        (lambda: (sft / "samples.txt").unlink(), "it is missing"),
        (lambda: (sft / "more.txt").write_text("more"), "a foreign file"),
        (lambda: rmtree(sft.parent), "does not exist"),
        (lambda: (made / "notes.txt").write_text("mine"), "does not name it"),
        (lambda: (made / release.CARD).write_text("mine"), "must have the sha256"),
        (lambda: (made / release.MANIFEST).unlink(), "Restore it with git"),
        (lambda: resealed(sft, seconds=1.0), "must have the seal"),
    ):
        [fault] = faults(change)
        assert words in fault
    assert release.faults() == []
    other = replace(toy(), red_team=replace(toy().red_team, budget=25))
    monkeypatch.setattr(release, "nano", lambda: other)
    found = release.faults()
    after = ["dates", *(f"red_team_v{n}" for n in range(1, 5)), "tools"]
    assert [fault.split()[0] for fault in found] == after
    assert all("run `make release`" in fault for fault in found)


def resealed(folder, **changes):
    meta = json.loads((folder / storage.META).read_text())
    storage.seal(folder, meta | changes)


def test_a_chain_of_ones_own_stands_beside_the_released_one(made, toy_root):
    lines = release.train_beside("cpu")
    assert re.fullmatch(r" +yours +released", lines[1])
    assert re.fullmatch(r"helps \(mark\) +0\.50 \[0\.40, 0\.60\] +0\.50 \[0\.40, 0\.60\]", lines[2])
    assert lines[-1].startswith(f"talk to yours: llama2 chat {toy_root / release.LAST}")
