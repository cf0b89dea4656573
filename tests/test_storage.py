"""Files are there or are not; a sealed folder is what its seal says, or is refused by name."""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, rmtree
from typing import NamedTuple

import huggingface_hub
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


def change_the_seal(folder, **values):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | values))


def holds(name, content):
    """The damage of a file with other content."""
    return lambda folder: (folder / name).write_bytes(content)


def half_a_seal(folder):
    text = (folder / "meta.json").read_bytes()
    (folder / "meta.json").write_bytes(text[: len(text) // 2])


def a_file_in_its_place(folder):
    rmtree(folder)
    folder.write_text("a file")


def a_broken_link_in_its_place(folder):
    rmtree(folder)
    folder.symlink_to(folder.with_name("nowhere"))


FLIPPED = bytes(byte ^ (place == 150) for place, byte in enumerate(range(200)))
EDITED = r"model\.bin must have the sha256.*truncated or edited"
UNREADABLE = r"must hold a readable meta\.json, written last.*cut off"
DAMAGE = {
    "truncated": (holds("model.bin", bytes(range(120))), EDITED),
    "one bit flipped": (holds("model.bin", FLIPPED), EDITED),
    "a file is missing": (
        lambda folder: (folder / "deep" / "notes.txt").unlink(),
        r"deep/notes\.txt must exist; it is missing",
    ),
    "a file too many": (
        holds("extra.bin", b""), r"extra\.bin is not listed in meta\.json: a foreign file",
    ),
    "no seal": (lambda folder: (folder / "meta.json").unlink(), UNREADABLE),
    "half a seal": (half_a_seal, UNREADABLE),
    "a seal of a list": (holds("meta.json", b"[]"), UNREADABLE),
    "a seal that is nested too deeply": (holds("meta.json", b"[" * 100_000), UNREADABLE),
    "a seal in a folder inside": (
        holds("deep/meta.json", b"{}"),
        r"deep/meta\.json is not listed in meta\.json: a foreign file",
    ),
    "a file in place of the folder": (a_file_in_its_place, "must be a folder; it is a file"),
    "a link to nowhere": (a_broken_link_in_its_place, "it is a file or a broken link"),
    "another fingerprint": (
        lambda folder: change_the_seal(folder, fingerprint="ba9876543210"),
        r"must be pretrain/0123456789ab; its meta\.json says pretrain/ba9876543210.*copied",
    ),
    "another stage": (
        lambda folder: change_the_seal(folder, stage="sft"),
        r"its meta\.json says sft/0123456789ab",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_is_refused_by_name(sealed, kind):
    damage, message = DAMAGE[kind]
    read(sealed)
    damage(sealed)
    with pytest.raises(DamagedArtifactError, match=message):
        read(sealed)


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", "deep/.DS_Store", "._model.bin", "Thumbs.db", "deep/desktop.ini", ".nfs0001",
        ".ipynb_checkpoints/model-checkpoint.bin", "deep/.ipynb_checkpoints/a/b",
    ],
)  # fmt: skip
def test_what_a_desktop_leaves_lying_about_is_no_damage_and_is_not_sealed(tmp_path, sealed, name):
    expected = read(sealed)
    again = tmp_path / "again"
    with storage.staged_folder(again, META) as staging:
        copytree(sealed, staging, dirs_exist_ok=True)
        for folder in (sealed, staging):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("litter")
    assert read(sealed) == read(again) == expected


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_files_of_an_artifact_have_the_rights_that_the_umask_grants(tmp_path, umask):
    before = os.umask(umask)
    try:
        with storage.staged_folder(tmp_path / "made", META) as staging:
            (staging / "deep").mkdir()
            for name in ("weights", "deep/weights"):  # as safetensors writes them
                os.close(os.open(staging / name, os.O_CREAT | os.O_WRONLY, 0o600))
            (staging / "text").write_text("text")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "Free some disk"),
        (OSError("64449 requested and 26560 written"), "Free some disk"),
        (FileNotFoundError(2, "No such file", "texts"), r"^\[Errno 2\] No such file: 'texts'$"),
    ],
)
def test_a_full_disk_is_told_with_place_and_remedy_and_other_errors_stay(tmp_path, error, message):
    def fail():
        with storage.staged_folder(tmp_path / "made", META):
            raise error

    with pytest.raises(type(error), match=message) as raised:
        fail()
    place = f"{tmp_path}/.made.partial could not be written: "
    assert str(raised.value).startswith(place) == ("disk" in message)


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
    for hidden in (".step-0000005.4711", "helpfulness/.step-0000005.4711", "a/b/.c/.d"):
        (staging / hidden).mkdir(parents=True)
        (staging / hidden / "model.safetensors").write_text("half")
    for hidden in (".metrics.jsonl.4711", "helpfulness/.fresh.jsonl.4711"):
        (staging / hidden).write_text("half")
    (staging / "step-0000004").mkdir()
    with storage.staged_folder(tmp_path / "name", META) as folder:
        left = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        assert left == {"step-0000004", "helpfulness", "a", "a/b"}


def test_a_file_in_place_of_the_staging_folder_goes(tmp_path):
    (tmp_path / ".name.partial").write_text("a file")
    with storage.staged_folder(tmp_path / "name", META) as folder:
        assert read_names(folder) == []


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


@dataclass(frozen=True)
class Place:
    town: str
    pair: tuple[int, ...] = ()


class Visit(NamedTuple):
    place: Place
    others: tuple[Place, ...]
    dialog: list[dict[str, str]]
    score: float | None


VISITS = [
    Visit(Place("\u00c5 \u2028", (1, 2)), (Place("b"), Place("c")), [{"role": "user"}], 1e-17),
    Visit(Place('"two"\nlines'), (), [], None),
]


def test_rows_survive_the_file_one_a_line_and_as_what_they_were(tmp_path):
    path = tmp_path / "rows.jsonl"
    storage.write_rows(path, VISITS)
    rows = storage.read_rows(path, Visit)
    assert rows == VISITS
    assert [type(row.others[0]) for row in rows[:1]] == [Place]
    first = path.read_bytes().splitlines()[0]
    assert first == (
        b'{"place": {"town": "\\u00c5 \\u2028", "pair": [1, 2]}, "others": [{"town": "b", '
        b'"pair": []}, {"town": "c", "pair": []}], "dialog": [{"role": "user"}], "score": 1e-17}'
    )
    assert storage.read_rows(path, dict)[1]["place"] == {"town": '"two"\nlines', "pair": []}
    storage.write_rows(path, [{"seen": Place("a")}])
    assert path.read_text() == '{"seen": {"town": "a", "pair": []}}\n'
    storage.write_rows(path, [])
    assert storage.read_rows(path, Visit) == []
    with pytest.raises(FileNotFoundError):
        storage.read_rows(tmp_path / "none.jsonl", Visit)


def test_rows_are_packed_where_the_name_says_so_and_always_to_the_same_bytes(tmp_path):
    plain, packed, again = (tmp_path / name for name in ("a.jsonl", "a.jsonl.gz", "b.jsonl.gz"))
    rows = VISITS * 40
    for path in (plain, packed, again):
        storage.write_rows(path, rows)
    assert storage.read_rows(packed, Visit) == rows
    assert storage.read_bytes(packed) == plain.read_bytes() == storage.read_bytes(plain)
    assert packed.read_bytes() == again.read_bytes()
    assert 8 * packed.stat().st_size < plain.stat().st_size


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "{" + text, lambda text: text[:-5], lambda text: "[]", lambda text: "",
        lambda text: "7", lambda text: "[" * 100_000,
        lambda text: text.replace('"score"', '"mark"'),
        lambda text: text.replace('"town"', '"city"', 1),
        lambda text: '{"place": "b", "others": [], "dialog": [], "score": 1}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_such_row_is_refused_by_its_number(tmp_path, change):
    path = tmp_path / "rows.jsonl"
    storage.write_rows(path, VISITS)
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{change(second)}\n")
    with pytest.raises(ValueError, match=r"rows.jsonl line 2 must hold one Visit"):
        storage.read_rows(path, Visit)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("arts", "{cwd}/arts"), ("~/arts", "{home}/arts"), ("../arts ", "{cwd}/../arts")],
)
def test_where_artifacts_live_is_one_place_for_every_process(tmp_path, monkeypatch, given, wanted):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLAMA2_ARTIFACTS", given)
    root = storage.artifact_root()
    assert str(root) == wanted.format(cwd=tmp_path / "cwd", home=tmp_path / "home")
    monkeypatch.chdir(tmp_path)  # as a notebook's kernel, which works in another folder
    assert storage.artifact_root() == root
    assert os.environ["LLAMA2_ARTIFACTS"] == str(root), "a child would look elsewhere"


@pytest.mark.parametrize("given", ["", " "])
def test_an_empty_variable_is_as_good_as_none(monkeypatch, tmp_path, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA2_ARTIFACTS", raising=False)
    beside = storage.artifact_root()
    assert beside == Path(storage.__file__).parents[1] / "artifacts"
    monkeypatch.setenv("LLAMA2_ARTIFACTS", given)
    assert storage.artifact_root() == beside


# --- folders of the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_path_is_a_folder_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert storage.local_folder("texts", "dataset") == tmp_path / "texts"


@pytest.mark.parametrize(
    ("kind", "wanted"), [("dataset", None), ("model", ["*.json", "*.safetensors", "*.model"])]
)
def test_a_name_of_the_hub_is_fetched_by_its_commit(tmp_path, monkeypatch, kind, wanted):
    asked = []

    def snapshot(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert storage.local_folder(f"hub:some-one/da_ta.v1@{COMMIT}", kind) == tmp_path
    options = {"repo_type": kind, "revision": COMMIT, "allow_patterns": wanted}
    assert asked == [("some-one/da_ta.v1", options)]


@pytest.mark.parametrize(
    "name",
    ["hub:one/data", "hub:one/data@main", f"hub:data@{COMMIT}", f"hub:a/b/c@{COMMIT}", "hub:"],
)
def test_a_name_without_owner_or_commit_is_refused(name):
    with pytest.raises(
        ValueError, match=r"hub:OWNER/NAME@COMMIT, 40 digits of a commit; got 'hub:"
    ):
        storage.local_folder(name, "dataset")


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'takes huggingface_hub, .* pip install -e "\.\[hub\]"'):
        storage.local_folder(f"hub:one/data@{COMMIT}", "dataset")
