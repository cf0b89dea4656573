"""Documents from a folder: order, both formats, and every unreadable line named."""

import gzip
import io
import json
import os
import random
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

from llama2_lib.text.files import LONGEST_TEXT, Survey, cut, read_records, text_files


def read_documents(folder):
    return (record.texts[0] for record in read_records(folder))


def survey(folder):
    counts = Survey()
    assert all(read_records(folder, counts))
    return counts


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def line(text, **rest):
    return json.dumps({"text": text} | rest, ensure_ascii=False) + "\n"


def test_files_come_in_order_of_name_and_lines_in_order(tmp_path):
    write(
        tmp_path,
        b_txt="second\nof two lines\n",
        a_jsonl=line("first") + line("next", source="x"),
        c__d_txt="third",
        notes_md="not a document",
        d_json="[]",
    )
    wanted = ["first", "next", "second\nof two lines", "third"]
    assert list(read_documents(tmp_path)) == wanted


def test_the_order_in_which_files_were_written_does_not_matter(tmp_path):
    names = [f"{chr(97 + 7 * number % 26)}_txt" for number in range(26)]
    write(tmp_path, **{name: name for name in names})
    assert list(read_documents(tmp_path)) == sorted(names) != names


TEXT = " gr\u00fc\u00dfe \u4f60\u597d \U0001f98a \u2028 \ufb01 "


def test_text_arrives_unchanged(tmp_path):
    write(tmp_path, a_txt=TEXT, b_jsonl=line(TEXT))
    assert list(read_documents(tmp_path)) == [TEXT, TEXT]


def test_the_machines_own_encoding_does_not_matter(tmp_path):
    write(tmp_path, a_txt=TEXT, b_jsonl=line(TEXT))
    code = f"""if True:
        import locale, pathlib
        from llama2_lib.text.files import read_records
        found = [record.texts[0] for record in read_records(pathlib.Path({str(tmp_path)!r}))]
        print(locale.getencoding(), found == [{TEXT!a}] * 2)
    """
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=plain | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    encoding, same = run.stdout.split()
    assert encoding != "UTF-8", "the machine speaks UTF-8 anyway: vacuous test"
    assert same == "True"


def test_documents_are_read_one_at_a_time(tmp_path):
    write(tmp_path, a_jsonl=line("first") + "broken\n")
    documents = read_documents(tmp_path)
    assert next(documents) == "first"
    with pytest.raises(ValueError, match="line 2"):
        next(documents)


@pytest.mark.parametrize("files", [{}, {"a_md": "x"}, {"txt": "x"}])
def test_a_folder_without_documents_is_refused(tmp_path, files):
    write(tmp_path, **files)
    with pytest.raises(FileNotFoundError, match=r"must hold .*\.parquet files; none found"):
        list(read_documents(tmp_path))
    with pytest.raises(FileNotFoundError, match="none found"):
        list(read_documents(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "bad",
    ["{", "", '"text"', "[1]", "3", "null", '{"body": "x"}'],
    ids=lambda text: text or "empty",
)
def test_a_line_that_is_no_document_is_named(tmp_path, bad):
    write(tmp_path, a_jsonl=line("fine") + bad + "\n" + line("fine"))
    with pytest.raises(ValueError, match=r'a\.jsonl line 2 must be an object .* a "text"; got'):
        list(read_documents(tmp_path))


def test_a_long_bad_line_is_quoted_in_part(tmp_path):
    write(tmp_path, a_jsonl="x" * 999)
    with pytest.raises(ValueError, match=r"got 'x{60}'"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("text", ["", " \n\t", None, 5, ["x"]])
def test_an_empty_document_is_named(tmp_path, text):
    write(tmp_path, a_jsonl=line("fine") + line(text))
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 must hold text; it is empty\. Delete"):
        list(read_documents(tmp_path))
    write(tmp_path, a_jsonl=line("fine"), b_txt=" \n")
    with pytest.raises(ValueError, match=r"b\.txt must hold text; it is empty"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("name", ["a_txt", "a_jsonl"])
def test_a_file_in_another_encoding_is_named(tmp_path, name):
    write(tmp_path, **{name: line("gr\u00fc\u00dfe").encode("latin-1")})
    with pytest.raises(ValueError, match=r"a\.(txt|jsonl) must be UTF-8; .*Convert it"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("name", ["a_txt", "a_jsonl"])
def test_a_mark_at_the_head_and_blank_lines_at_the_end_are_no_text(tmp_path, name):
    """As editors on Windows write files, and editors everywhere end them."""
    content = "text" if name == "a_txt" else line("text").rstrip()
    for ending in ("", "\n", "\r\n", "\n\n", "\r\n \r\n"):
        write(tmp_path, **{name: b"\xef\xbb\xbf" + (content + ending).encode()})
        assert list(read_documents(tmp_path)) == ["text"], repr(ending)


def test_a_mark_inside_a_text_stays(tmp_path):
    write(tmp_path, a_txt="one \ufeff two", b_jsonl=line("\ufeffthree"))
    assert list(read_documents(tmp_path)) == ["one \ufeff two", "\ufeffthree"]


def test_lines_of_windows_are_lines(tmp_path):
    write(tmp_path, a_txt="one\r\n\r\ntwo\r\n", b_jsonl=line("x").replace("\n", "\r\n") * 2)
    assert list(read_documents(tmp_path)) == ["one\n\ntwo", "x", "x"]


def test_a_lone_surrogate_in_json_is_named(tmp_path):
    write(tmp_path, a_jsonl=line("fine") + '{"text": "caf\\ud800"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 has a lone surrogate at character 3"):
        list(read_documents(tmp_path))
    pair = '{"text": "\\ud83e\\udd8a"}'
    write(tmp_path, a_jsonl=pair)
    assert list(read_documents(tmp_path)) == ["\U0001f98a"]


def test_json_that_nests_too_deep_is_named(tmp_path):
    write(tmp_path, a_jsonl=line("fine") + '{"text": ' + "[" * 200_000)
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 must be an object"):
        list(read_documents(tmp_path))


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    write(tmp_path, a_txt="text")
    os.mkfifo(tmp_path / "b.txt")
    for ask in (text_files, survey, lambda folder: list(read_documents(folder))):
        with pytest.raises(ValueError, match=r"b\.txt must be an ordinary file.*[Rr]emove it"):
            ask(tmp_path)


def test_a_link_is_followed_and_a_broken_one_named(tmp_path):
    write(tmp_path, far__a_txt="text")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "b.txt").symlink_to(tmp_path / "far" / "a.txt")
    assert list(read_documents(tmp_path / "near")) == ["text"]
    (tmp_path / "near" / "c.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"c\.txt must be an ordinary file"):
        text_files(tmp_path / "near")


def test_a_folder_may_be_called_like_a_file(tmp_path):
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "a.txt" / "b.txt").write_text("text")
    assert list(read_documents(tmp_path)) == ["text"]


def test_capital_endings_are_read_and_hidden_files_are_not(tmp_path):
    for name in ("A.TXT", ".hidden.txt", "._A.TXT", ".ipynb_checkpoints/A-checkpoint.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text" if name == "A.TXT" else b"\xff")
    assert list(read_documents(tmp_path)) == ["text"]
    hidden = tmp_path / ".home" / "texts"  # what lies above the folder does not matter
    hidden.mkdir(parents=True)
    (hidden / "a.txt").write_text("text")
    assert list(read_documents(hidden)) == ["text"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    write(tmp_path, a_txt="text")
    with pytest.raises(ValueError, match=r"must be a folder.*a\.txt is a file"):
        list(read_documents(tmp_path / "a.txt"))


def paragraphs(n, seed=0):
    source = random.Random(seed)
    return [
        " ".join("x" * source.randint(2, 9) for _ in range(source.randint(5, 60))) + "."
        for _ in range(n)
    ]


def test_one_big_text_becomes_many_documents(tmp_path):
    book = paragraphs(300)
    write(tmp_path, a_txt="\n\n".join(book) + "\n")
    documents = list(read_documents(tmp_path))
    assert len(documents) > 20
    assert max(map(len, documents)) <= LONGEST_TEXT
    assert "\n\n".join(documents) == "\n\n".join(book), "cut between paragraphs, nothing is lost"
    assert min(map(len, documents[:-1])) > LONGEST_TEXT / 2


def test_a_text_that_fits_is_left_whole():
    text = "a\n\n" + "b" * 97
    assert list(cut(text, 100)) == [text]
    assert list(cut(text, 99)) == ["a", "b" * 97]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one two\nthree. four\n\nfive six", ["one two\nthree. four", "five six"]),
        ("one two. three\nfour five. six seven", ["one two. three", "four five. six seven"]),
        ("one two three. four five six", ["one two three.", "four five six"]),
        ("Is it so early? four five six", ["Is it so early?", "four five six"]),
        ("onetwothreefourfivesixseven", ["onetwothreefourfivesix", "seven"]),
        ("one two three four five six", ["one two three four", "five six"]),
        ("a " + "b" * 30, ["a", "b" * 22, "b" * 8]),
    ],
)
def test_the_best_border_is_taken(text, parts):
    """Paragraphs before lines, lines before sentences, sentences before words."""
    assert list(cut(text, 22)) == parts


def test_a_border_near_the_beginning_makes_no_tiny_document():
    assert list(cut("a\n\n" + "word " * 9 + "end", 40)) == [
        "a\n\n" + "word " * 6 + "word",
        "word word end",
    ]


@pytest.mark.parametrize("seed", range(30))
def test_no_letter_is_lost_and_no_part_is_too_long_or_blank(seed):
    source = random.Random(seed)
    signs = ["\n", "\n\n", " \n \n", " ", "  ", ". ", "a", "bb", "\u4f60", "word", "word" * 5]
    text = "x" + "".join(source.choices(signs, k=400)) + "x"
    longest = source.choice([1, 2, 3, 7, 20, 60, 5_000])
    parts = list(cut(text, longest))
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part.strip() and part.strip("\n") == part and len(part) <= longest for part in parts)


def test_parts_have_a_length():
    with pytest.raises(ValueError, match="at least 1 character; got 0"):
        list(cut("text", 0))


def test_a_line_of_json_is_one_document_however_long(tmp_path):
    text = "\n\n".join(paragraphs(50))
    write(tmp_path, a_jsonl=line(text))
    assert list(read_documents(tmp_path)) == [text]


def test_the_survey_counts_what_is_read_and_names_what_is_not(tmp_path):
    write(
        tmp_path,
        a_txt="\n\n".join(paragraphs(100)),
        b_txt="short",
        b__c_txt="\n\n".join(["x" * 1_500] * 2),
        c_jsonl=line("first") + line("next"),
        d__e_md="no",
        f_md="no",
        g_csv="no",
        README="no",
    )
    found = survey(tmp_path)
    documents = list(read_documents(tmp_path))
    assert found.n_files == 4
    assert found.records["documents"] == len(documents) > 8
    assert found.left_out == {".md": 2, ".csv": 1, "without ending": 1}
    assert str(found) == (
        f"{len(documents)} documents in 4 files; mended: 2 long texts, cut into several; "
        "left out: 2 .md, 1 .csv, 1 without ending"
    )


def test_a_file_of_lines_is_read_line_by_line(tmp_path):
    """It may be larger than the memory, so a fault far behind is not met at the beginning."""
    (tmp_path / "a.jsonl").write_bytes(
        line("first").encode() + b'{"text": "x"}\n' * 50_000 + b"\xff"
    )
    documents = read_documents(tmp_path)
    assert next(documents) == "first"
    with pytest.raises(ValueError, match="must be UTF-8"):
        list(documents)


# --- lists and tables

ROWS = [
    {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]},
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]},
]


def table(rows):
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "files",
    [
        {"a_json": json.dumps(ROWS)},
        {"a_json_gz": gzip.compress(json.dumps(ROWS).encode())},
        {"a_parquet": table(ROWS)},
        {"a_json": json.dumps(ROWS[:1]), "b_parquet": table(ROWS[1:])},
    ],
)
def test_a_list_and_a_table_hold_objects_as_lines_do(tmp_path, files):
    (tmp_path / "lines").mkdir()
    (tmp_path / "other").mkdir()
    write(tmp_path / "lines", a_jsonl="".join(json.dumps(row) + "\n" for row in ROWS))
    write(tmp_path / "other", **files)
    wanted = list(read_records(tmp_path / "lines"))
    assert list(read_records(tmp_path / "other")) == wanted
    assert [record.texts or record.dialog[-1]["content"] for record in wanted] == ["Yes.", "Me."]


@pytest.mark.parametrize("content", ['{"builder": "json"}', '["a", "b"]', "3", "null"])
def test_a_json_that_is_no_list_of_objects_is_counted(tmp_path, content):
    write(tmp_path, dataset_info_json=content, a_txt="a text")
    assert survey(tmp_path).left_out == {".json that is no list of objects": 1}


def test_a_parquet_of_columns_that_nobody_knows_is_named_by_its_row(tmp_path):
    write(tmp_path, a_parquet=table([{"text": "first"}, {"text": ""}]))
    with pytest.raises(ValueError, match=r"a\.parquet row 2 must hold text; it is empty"):
        list(read_records(tmp_path))
    write(tmp_path, a_parquet=table([{"words": "first"}]))
    with pytest.raises(
        ValueError, match=r"a\.parquet row 1 must be an object with .* got '\{\"wor"
    ):
        list(read_records(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a_json", "[{]", r"a\.json must be JSON; Expecting.* Mend or remove it"),
        ("a_parquet", b"PAR1 cut", r"a\.parquet must be a parquet file; .* Fetch it again"),
        ("a_parquet", b"", r"a\.parquet must be a parquet file; .* Fetch it again"),
    ],
)
def test_a_broken_list_or_table_is_named(tmp_path, name, content, message):
    write(tmp_path, **{name: content})
    with pytest.raises(ValueError, match=message):
        list(read_records(tmp_path))


def test_a_table_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    write(tmp_path, a_parquet=table(ROWS))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'takes pyarrow, .* pip install -e "\.\[hub\]"'):
        list(read_records(tmp_path))
