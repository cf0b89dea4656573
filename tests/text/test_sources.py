"""Documents from a folder: order, both formats, and every unreadable line named."""

import json
import subprocess
import sys

import pytest

from llama2_lib.text.sources import read_documents


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
    wanted = ["first", "next", "second\nof two lines\n", "third"]
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
        from llama2_lib.text.sources import read_documents
        found = list(read_documents(pathlib.Path({str(tmp_path)!r})))
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
    with pytest.raises(FileNotFoundError, match=r"must hold \.txt or \.jsonl files; none found"):
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
    with pytest.raises(ValueError, match=r'a\.jsonl line 2 must be an object with a "text"; got'):
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


def test_an_empty_file_is_named(tmp_path):
    write(tmp_path, a_txt="fine", b_txt=" \n")
    with pytest.raises(ValueError, match=r"b\.txt must hold text; it is empty"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("name", ["a_txt", "a_jsonl"])
def test_a_file_in_another_encoding_is_named(tmp_path, name):
    write(tmp_path, **{name: line("gr\u00fc\u00dfe").encode("latin-1")})
    with pytest.raises(ValueError, match=r"a\.(txt|jsonl) must be UTF-8; .*Convert it"):
        list(read_documents(tmp_path))
