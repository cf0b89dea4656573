"""Files are there or are not; a sealed folder is what its seal says, or is refused by name."""

import hashlib
import json
from pathlib import Path

import pytest

from llama2_lib import storage
from llama2_lib.storage import DamagedArtifactError, MetricsLog, read_metrics

META = {"stage": "pretrain", "fingerprint": "0123456789ab"}


@pytest.fixture
def sealed(tmp_path):
    """A finished folder of two files, one of them in a folder of its own."""
    final = tmp_path / META["fingerprint"]
    with storage.staged_folder(final, META) as staging:
        (staging / "model.bin").write_bytes(bytes(range(200)))
        (staging / "deep").mkdir()
        (staging / "deep" / "notes.txt").write_text("nine notes")
    return final


def read(folder):
    return storage.read_sealed(folder, META["stage"], META["fingerprint"])


@pytest.mark.parametrize("content", ["new text, \u00e9", b"new \xff bytes"])
def test_a_written_file_holds_the_new_content_and_leaves_nothing_beside_it(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old")
    storage.write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["write_bytes", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path, monkeypatch, broken
):
    def fail(self, *_):
        if broken == "write_bytes":
            self.touch()  # as a full disk does: the file is there, its content is not
        raise OSError("No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, broken, fail)
        with pytest.raises(OSError, match="No space left"):
            storage.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    storage.write_atomically(path, "new")
    assert path.read_text() == "new"


def test_the_fingerprint_is_that_of_sorted_json_and_ignores_order_only():
    document = {"b": [1, 2.5, None], "a": {"y": "caf\u00e9", "x": True}}
    text = '{"a":{"x":true,"y":"caf\u00e9"},"b":[1,2.5,null]}'
    assert storage.canonical_json(document) == text
    assert storage.fingerprint(document) == hashlib.sha256(text.encode()).hexdigest()[:12]
    other = {"a": {"x": True, "y": "caf\u00e9"}, "b": [1, 2.5, None]}
    assert storage.fingerprint(other) == storage.fingerprint(document)
    for changed in ({**document, "b": [2.5, 1, None]}, {**document, "c": 0}, [document]):
        assert storage.fingerprint(changed) != storage.fingerprint(document)


def test_a_sealed_folder_is_read_back(sealed):
    meta = read(sealed)
    assert {key: meta[key] for key in META} == META
    assert meta["files"] == {
        "model.bin": hashlib.sha256(bytes(range(200))).hexdigest(),
        "deep/notes.txt": hashlib.sha256(b"nine notes").hexdigest(),
    }
    assert [path.name for path in sealed.parent.iterdir()] == [sealed.name]


def truncate(folder):
    (folder / "model.bin").write_bytes(bytes(range(120)))


def flip_a_bit(folder):
    content = bytearray(range(200))
    content[150] ^= 1
    (folder / "model.bin").write_bytes(content)


def cut_the_seal(folder):
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text[: len(text) // 2])


def change_the_seal(folder, **values):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | values))


DAMAGE = {
    "truncated": (truncate, r"model\.bin must have the sha256.*truncated or edited"),
    "edited": (flip_a_bit, r"model\.bin must have the sha256.*truncated or edited"),
    "a file is missing": (
        lambda folder: (folder / "deep" / "notes.txt").unlink(),
        r"deep/notes\.txt must exist; it is missing",
    ),
    "a file too many": (
        lambda folder: (folder / "extra.bin").write_bytes(b""),
        r"extra\.bin is not listed in meta\.json: a foreign file",
    ),
    "no seal": (
        lambda folder: (folder / "meta.json").unlink(),
        r"must hold a readable meta\.json, written last.*cut off",
    ),
    "half a seal": (cut_the_seal, r"must hold a readable meta\.json"),
    "a seal of a list": (
        lambda folder: (folder / "meta.json").write_text("[]"),
        r"must hold a readable meta\.json",
    ),
    "another fingerprint": (
        lambda folder: change_the_seal(folder, fingerprint="ba9876543210"),
        r"must be pretrain/0123456789ab; its meta\.json says pretrain/ba9876543210.*copied",
    ),
    "another stage": (
        lambda folder: change_the_seal(folder, stage="sft"),
        r"its meta\.json says sft/0123456789ab",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_is_refused_by_name(sealed, kind):
    damage, message = DAMAGE[kind]
    read(sealed)
    damage(sealed)
    with pytest.raises(DamagedArtifactError, match=message):
        read(sealed)


def test_a_folder_that_is_not_there_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "nothing")


def test_a_block_that_fails_leaves_no_folder_but_keeps_its_work(tmp_path):
    final = tmp_path / "name"

    def fail():
        with storage.staged_folder(final, META) as staging:
            (staging / "half").write_text("half the work")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not final.exists()
    with storage.staged_folder(final, META) as staging:
        assert (staging / "half").read_text() == "half the work"
    assert sorted(read_names(final)) == ["half", "meta.json"]


def read_names(folder):
    return [path.name for path in folder.iterdir()]


def test_what_a_killed_write_left_behind_is_not_sealed(tmp_path):
    staging = tmp_path / ".name.partial"
    (staging / ".step-0000005.4711").mkdir(parents=True)
    (staging / ".step-0000005.4711" / "model.safetensors").write_text("half")
    (staging / ".metrics.jsonl.4711").write_text("half")
    (staging / "step-0000004").mkdir()
    with storage.staged_folder(tmp_path / "name", META) as folder:
        assert read_names(folder) == ["step-0000004"]


def test_a_finished_folder_is_never_overwritten(sealed):
    def again():
        with storage.staged_folder(sealed, META):
            raise AssertionError("the block must not run")

    with pytest.raises(FileExistsError, match="never overwritten"):
        again()
    read(sealed)


def test_damaged_folders_are_kept_side_by_side(tmp_path):
    kept = []
    for text in ("first", "second"):
        (tmp_path / "name").mkdir()
        (tmp_path / "name" / "file").write_text(text)
        kept.append(storage.set_aside(tmp_path / "name"))
    assert [path.name for path in kept] == [".name.damaged-1", ".name.damaged-2"]
    assert [(path / "file").read_text() for path in kept] == ["first", "second"]
    assert not (tmp_path / "name").exists()


def test_removing_takes_files_and_folders_and_nothing(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").touch()
    (tmp_path / "file").touch()
    (tmp_path / "stays").touch()
    for name in ("folder", "file", "absent"):
        storage.remove(tmp_path / name)
    assert read_names(tmp_path) == ["stays"]


def test_a_folder_is_removed_whole_or_not_at_all(tmp_path, monkeypatch):
    """A checkpoint from which half is deleted would look like a checkpoint."""
    folder = tmp_path / "step-0000005"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    monkeypatch.setattr(storage.shutil, "rmtree", lambda *_, **__: None)  # killed before the end
    storage.remove(folder)
    assert not folder.exists()


def write_rows(path, n=4):
    log = MetricsLog(path)
    for step in range(1, n + 1):
        log.write(step, loss=1.0 / 3 / step, word="a")
    return [{"step": step, "loss": 1.0 / 3 / step, "word": "a"} for step in range(1, n + 1)]


def test_metrics_come_back_as_they_were_logged(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    rows = write_rows(tmp_path / "metrics.jsonl")
    assert read_metrics(tmp_path / "metrics.jsonl") == rows
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = write_rows(path)
    MetricsLog(path).write(2, validation_loss=5.0)
    MetricsLog(path).keep_up_to(2)
    assert read_metrics(path) == [*rows[:2], {"step": 2, "validation_loss": 5.0}]
    MetricsLog(path).keep_up_to(0)
    assert path.read_text() == ""


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_last_line_cut_off_by_a_crash_is_left_out_and_mended(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    rows = write_rows(path)
    text = path.read_text()
    path.write_text(text[:-cut])
    whole = rows if cut == 1 else rows[:3]  # only the newline is missing
    assert read_metrics(path) == whole
    MetricsLog(path).keep_up_to(4)
    MetricsLog(path).write(5, loss=0.5)
    assert read_metrics(path) == [*whole, {"step": 5, "loss": 0.5}]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_rows(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]))
    with pytest.raises(DamagedArtifactError, match=r'line 2 must be JSON; got \'\{"step": '):
        read_metrics(path)
