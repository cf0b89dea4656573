"""The proof of `make same` sees one byte, one file and one key; names and times it leaves out."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

SCRIPT = Path(__file__).parents[1] / ".ci" / "same"
META = {"stage": "sft", "fingerprint": "a1", "wall_seconds": 1.5, "threads": 1, "files": {}}


same = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def make_tree(root: Path, fingerprint: str = "a1", **changes) -> Path:
    """What a build leaves: two stages, one of them with a nested folder."""
    for stage, name in (("tokenizer", "t0"), ("sft", fingerprint)):
        folder = root / "toy" / stage / name
        (folder / "safety").mkdir(parents=True)
        meta = META | {"stage": stage, "fingerprint": name}
        (folder / "meta.json").write_text(json.dumps(meta))
        (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        (folder / "ids.npy").write_bytes(bytes([147, 78, 255, 0]))
        (folder / "safety" / "pairs.jsonl").write_text("{}\n")
        save_file({"w": torch.ones(2, 3), "v": torch.zeros(4)}, folder / "model.safetensors")
    built = {"toy/tokenizer": "toy/tokenizer/t0", "toy/sft": f"toy/sft/{fingerprint}"}
    (root / "built.json").write_text(json.dumps(built))
    return root


@pytest.fixture
def trees(tmp_path):
    return make_tree(tmp_path / "old"), make_tree(tmp_path / "new", "b2")


def table(trees, capsys, **options) -> tuple[bool, dict[str, str]]:
    equal = same.compare(*trees, options.get("stages", []), options.get("fingerprints", False))
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return equal, {name: rest for name, rest in rows if name.startswith("toy/") or name == "all"}


def test_equal_trees_are_equal_under_other_names(trees, capsys):
    equal, rows = table(trees, capsys)
    assert equal
    assert [rows[name].split() for name in ("toy/tokenizer", "toy/sft", "all")] == [
        ["5", "5", "-"],
        ["5", "5", "-"],
        ["10", "10", "-"],
    ]


def test_names_of_both_are_printed(trees, capsys):
    same.compare(*trees, [], True)
    out = capsys.readouterr().out
    assert "a1 b2  renamed" in out
    assert "t0 t0\n" in out


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("metrics.jsonl", b'{"step": 1}\n{"step": 3}\n', "line 2: '{\"step\": 2}' is now"),
        ("metrics.jsonl", b'{"step": 1}\n{"step": 2}\n\n', "line 4: 'no such line' is now ''"),
        ("ids.npy", bytes([147, 78, 255, 1]), "byte 3 of 4 and 4"),
        ("ids.npy", bytes([147, 78, 255]), "byte 3 of 4 and 3"),
        ("safety/pairs.jsonl", b"[]\n", "safety/pairs.jsonl: line 1"),
    ],
)
def test_one_byte_is_seen_and_placed(trees, capsys, name, content, where):
    (trees[1] / "toy/sft/b2" / name).write_bytes(content)
    equal, rows = table(trees, capsys)
    assert not equal
    assert rows["toy/sft"].startswith("5      4")
    assert where in rows["toy/sft"]
    assert rows["toy/tokenizer"].endswith("-")
    assert "SOMETHING DIFFERS" in rows["all"]


@pytest.mark.parametrize(
    ("tensors", "where"),
    [
        ({"w": torch.ones(2, 3), "v": torch.tensor([0.0, 0.0, 0.0, -0.0])}, "v: other values"),
        ({"w": torch.ones(3, 2), "v": torch.zeros(4)}, "w: other shape"),
        ({"w": torch.ones(2, 3)}, "v is gone"),
        ({"w": torch.ones(2, 3), "v": torch.zeros(4), "u": torch.ones(1)}, "u is new"),
    ],
)
def test_the_tensor_that_differs_is_named(trees, capsys, tensors, where):
    save_file(tensors, trees[1] / "toy/sft/b2/model.safetensors")
    equal, rows = table(trees, capsys)
    assert not equal
    assert f"model.safetensors: {where}" in rows["toy/sft"]


def test_missing_and_foreign_files_and_stages_are_seen(trees, capsys):
    (trees[1] / "toy/sft/b2/ids.npy").unlink()
    assert table(trees, capsys)[1]["toy/sft"].endswith("ids.npy is gone")
    (trees[0] / "toy/sft/a1/ids.npy").unlink()
    assert table(trees, capsys)[0]
    (trees[1] / "toy/tokenizer/t0/safety/.left").touch()
    assert table(trees, capsys)[1]["toy/tokenizer"].endswith("safety/.left is new")
    (trees[1] / "built.json").write_text('{"toy/sft": "toy/sft/b2", "toy/dpo": "toy/dpo/c3"}')
    equal, rows = table(trees, capsys)
    assert not equal
    assert rows["toy/tokenizer"].endswith("the stage is gone")
    assert rows["toy/dpo"].endswith("the stage is new")


@pytest.mark.parametrize("key", sorted(same.LEFT_OUT))
def test_names_and_times_of_meta_are_left_out(trees, capsys, key):
    path = trees[1] / "toy/sft/b2/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "something else"}))
    assert table(trees, capsys)[0]


@pytest.mark.parametrize(("key", "value"), [("threads", 2), ("stage", "ppo"), ("device", "cuda")])
def test_the_rest_of_meta_is_compared(trees, capsys, key, value):
    path = trees[1] / "toy/sft/b2/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    equal, rows = table(trees, capsys)
    assert not equal
    assert f"meta.json: {key}: " in rows["toy/sft"]


def test_one_stage_can_be_looked_at(trees, capsys):
    (trees[1] / "toy/sft/b2/ids.npy").unlink()
    assert table(trees, capsys, stages=["tokenizer"])[0]
    assert not table(trees, capsys, stages=["toy/sft"])[0]


@pytest.mark.parametrize("arguments", [["no-such-commit"], []])
def test_what_is_no_commit_is_refused(arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    result = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True)
    assert result.returncode != 0
    assert ("REV must name a commit; got 'no-such-commit'" in result.stderr) == bool(arguments)
    assert "Traceback" not in result.stderr
