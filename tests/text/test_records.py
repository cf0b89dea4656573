"""Records of a folder: every shape, what is mended or dropped, packed files, and faults by line."""

import gzip
import json

import pytest
import zstandard

from llama2_lib.text.dialog import check_dialog
from llama2_lib.text.files import Record, Survey, is_safety_path, read_records, text_files


def says(*texts):
    """A dialog of these texts, the user's first."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def hh(*texts):
    """The same as a transcript of HH-RLHF."""
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {text}" for i, text in enumerate(texts))


def read(tmp_path, *rows, name="a.jsonl"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = Survey()
    return list(read_records(tmp_path, counts)), counts


DIALOG, HI = says("Who?", "Ada."), ("Hi.", "Yes?", "Who?")
SYSTEM = {"role": "system", "content": "Be kind."}
TOLD = Record("dialogs", DIALOG, [])
PAIR = Record("pairs", says(*HI), ["Ada.", "Go away."])
ANSWERS = {"chosen": [says("", "Ada.")[1]], "rejected": [says("", "Go away.")[1]]}
SHAPES = {
    "text": ({"text": " Once.\n"}, Record("documents", [], [" Once.\n"])),
    "messages": ({"messages": DIALOG, "text": "x", "prompt": "y"}, TOLD),
    "system": ({"messages": [SYSTEM, *DIALOG]}, Record("dialogs", [SYSTEM, *DIALOG], [])),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3", "text": "x"},
        Record("dialogs", says("Add.\n\n1 2", "3"), []),
    ),
    "alpaca, no input": ({"instruction": "Who?", "input": "", "output": "Ada."}, TOLD),
    "response": ({"prompt": "Who?", "response": "Ada."}, TOLD),
    "response after messages": (
        {"prompt": says(*HI), "response": "Ada."},
        Record("dialogs", says(*HI, "Ada."), []),
    ),
    "transcripts": ({"chosen": hh(*HI, "Ada."), "rejected": hh(*HI, "Go away.")}, PAIR),
    "lists": (
        {"chosen": says(*HI, "Ada."), "rejected": says(*HI, "Go away."), "prompt": "Who?"},
        PAIR,
    ),
    "beside a transcript": (
        {"prompt": hh(*HI, ""), "chosen": " Ada.", "rejected": " Go away."},
        PAIR,
    ),
    "answers as messages": ({"prompt": says(*HI), **ANSWERS}, PAIR),
}


@pytest.mark.parametrize(("row", "record"), SHAPES.values(), ids=SHAPES)
def test_every_shape_becomes_its_record(tmp_path, row, record):
    records, counts = read(tmp_path, row)
    assert records == [record]
    name = record.kind + " on helpfulness" * (record.kind == "pairs")
    assert counts.records == {name: 1}
    assert not counts.dropped + counts.mended


def test_an_answer_may_speak_of_humans_and_lines(tmp_path):
    answer = "A play:\n\nHe said\nHuman: and left.\n\nThe end."
    rows = [{"prompt": "Write.", "response": answer}, {"messages": hh("Write.", answer)}]
    records, _ = read(tmp_path, *rows)
    assert [record.dialog for record in records] == [says("Write.", answer)] * 2


DROPPED = {
    "with an empty reply": [
        {"messages": says("Who?", " ")},
        {"chosen": hh("Who?", ""), "rejected": hh("Who?", "Ada.")},
        {"prompt": "Who?", "chosen": "", "rejected": "Ada."},
    ],
    "with an empty message of the user": [{"instruction": "", "output": "Ada."}],
    "with identical answers": [{"chosen": hh("Who?", "Ada."), "rejected": hh("Who?", "Ada. ")}],
    "with prompts that differ": [
        {"chosen": hh("Who?", "Ada."), "rejected": hh("Who is it?", "Ada.")},
        {"chosen": hh("Hi.", "Yes?", "Who?", "Ada."), "rejected": hh("Hi.", "Go.")},
    ],
    "that do not begin with the user": [
        {"messages": says("Who?", "Ada.")[1:]},
        {"messages": [*DIALOG, {"role": "system", "content": "Be kind."}]},
        {"messages": []},
        {"chosen": "Ada.", "rejected": "Go away."},
    ],
    "that do not end with an answer": [{"messages": says("Who?", "Ada.", "Thanks.")}],
    "with other roles than system, user and assistant": [
        {"messages": [*DIALOG, {"role": "tool", "content": "3"}]}
    ],
}


@pytest.mark.parametrize(("reason", "rows"), DROPPED.items(), ids=DROPPED)
def test_what_the_format_cannot_carry_is_dropped_and_counted(tmp_path, reason, rows):
    records, counts = read(tmp_path, {"messages": DIALOG}, *rows)
    assert records == [Record("dialogs", DIALOG, [])]
    assert counts.dropped == {reason: len(rows)}
    assert f"; dropped: {len(rows)} {reason}" in str(counts)


def test_two_turns_of_one_role_are_joined_and_counted(tmp_path):
    twice = hh("Who?") + "\n\nAssistant: Ada.\n\nAssistant: "
    [record], counts = read(tmp_path, {"chosen": twice + "Or Bo.", "rejected": twice + "Go."})
    assert record == Record("pairs", says("Who?"), ["Ada.\n\nOr Bo.", "Ada.\n\nGo."])
    assert counts.mended == {"with two turns of one role in a row, joined": 1}


def test_tags_and_half_characters_are_taken_out_and_counted(tmp_path):
    rows = [
        {"prompt": "[INST] Who?", "response": "A[/INST]da."},
        {"messages": says("Hm\ud800", "x")},
    ]
    records, counts = read(tmp_path, *rows)
    assert [r.dialog for r in records] == [DIALOG, says("Hm\ufffd", "x")]
    assert counts.mended == {"with tags of the chat format or half characters, taken out": 2}
    for record in records:
        check_dialog(record.dialog)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": "x"}, r'line 2 must be an object with "chosen" .* got \'{"words": "x"}'),
        ({"chosen": "x"}, r"line 2 must be an object"),
        ({"messages": "Who?"}, r'line 2: "messages" must be a transcript .* got "Who\?"'),
        ({"messages": {"role": "user"}}, r'line 2: "messages" must be .* Mend the line'),
        ({"messages": [{"role": "user"}]}, r'line 2: "messages" must be'),
        ({"messages": [{"role": "user", "content": ["x"]}]}, r'line 2: "messages" must be'),
        ({"messages": ["user", "x"]}, r'line 2: "messages" must be'),
        ({"prompt": 3, "response": "x"}, r'line 2: "prompt" must be a text, a transcript .* got 3'),
        ({"prompt": "x", "chosen": "x", "rejected": True}, r'line 2: "rejected" must be a text'),
        ({"instruction": ["x"], "output": "x"}, r'line 2: "instruction" must be'),
    ],
    ids=lambda part: json.dumps(part)[:40] if isinstance(part, dict) else "",
)
def test_a_line_of_no_shape_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"a\.jsonl {message}"):
        read(tmp_path, {"messages": DIALOG}, row)


LINES = b"".join(b'{"text": "document %d"}\n' % i for i in range(30_000))
PACKED = {
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstandard.compress(LINES),
    "a.JSONL.ZST": zstandard.compress(LINES[:9_000]) + zstandard.compress(LINES[9_000:]),
    "a.jsonl": LINES,
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_files_are_read_as_if_they_were_not(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name])
    assert [r.texts[0] for r in read_records(tmp_path)] == [f"document {i}" for i in range(30_000)]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-9], lambda b: b[: len(b) // 2], lambda b: b"?" * 40]
)
def test_a_packed_file_that_is_not_whole_is_named(tmp_path, pack, spoil):
    ending = ".gz" if pack is gzip.compress else ".zst"
    (tmp_path / f"b.txt{ending}").write_bytes(spoil(pack(b"word " * 90_000)))
    with pytest.raises(ValueError, match=r"b\.txt\.(gz|zst) must be a whole packed file; .* again"):
        list(read_records(tmp_path))


def test_packed_text_counts_as_text_and_other_packed_files_are_left_out(tmp_path):
    (tmp_path / "a.TXT.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"no"))
    counts = Survey()
    assert list(read_records(tmp_path, counts)) == [Record("documents", [], ["one"])]
    assert str(counts) == "1 documents in 1 file; left out: 1 .gz"


def test_a_path_below_the_folder_names_safety(tmp_path):
    for name in ("harmless-base/a.jsonl", "b/Red_Team.jsonl", "safety.jsonl", "helpful/a.jsonl"):
        path = tmp_path / "all-safety" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"messages": DIALOG}))
    folder = tmp_path / "all-safety"
    assert {p.name for p in text_files(folder) if not is_safety_path(folder, p)} == {"a.jsonl"}
    assert [r.is_safety for r in read_records(folder)] == [True, True, False, True]
