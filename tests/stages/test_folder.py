"""A folder as a source: orders, sides, what is derived; and the whole chain on one."""

import gzip
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from llama2_lib import pipeline, storage
from llama2_lib.cli import main
from llama2_lib.recipes import toy
from llama2_lib.stages import corpus, rehearsal, reward
from llama2_lib.stages import folder as folders
from llama2_lib.stages.corpus import not_measured, tokenizer_texts
from llama2_lib.stages.folder import FolderSource, at_most, chained, shelf_of, source_of
from llama2_lib.stages.sft import training_dialogs, validation_dialogs
from llama2_lib.text.dialog import render
from llama2_lib.text.files import read_records
from llama2_lib.world import make_world
from llama2_lib.world.pairs import Pair, helpfulness_pairs, safety_pairs
from llama2_lib.world.source import Source, WorldSource

DRAWS = {"helpful-base": helpfulness_pairs, "harmless-base": safety_pairs}


def transcript(dialog, answer):
    names = {"user": "Human", "assistant": "Assistant"}
    turns = [f"\n\n{names[message['role']]}: {message['content']}" for message in dialog]
    return "".join(turns) + f"\n\nAssistant: {answer}"


def write_hh(folder: Path, n: int, names=tuple(DRAWS)) -> Path:
    """Write a folder in the form of HH-RLHF, of n pairs a stream."""
    for name in names:
        rows = [
            {side: transcript(p.prompt.dialog, getattr(p, side)) for side in ("chosen", "rejected")}
            for p in DRAWS[name](make_world(0), 7, n)
        ]
        write_rows(folder / name / "train.jsonl.gz", *rows)
    return folder


def with_data(folder):
    return replace(toy(), corpus=replace(toy().corpus, data=str(folder)))


def write_rows(path: Path, *rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def hh(tmp_path_factory) -> Path:
    return write_hh(tmp_path_factory.mktemp("data") / "hh", 300)


def streams(source, seed, n):
    return {
        "documents": source.documents(seed, n),
        "dialogs": source.dialogs(seed, n),
        "prompts": source.prompts(seed, n),
        "held-out prompts": source.prompts(seed, n, "held out"),
        **{stream: source.pairs(stream, seed, n) for stream in ("helpfulness", "safety")},
    }


def test_every_stream_is_decided_by_its_seed_and_few_are_a_beginning_of_more(hh):
    source = FolderSource(hh)
    assert isinstance(source, Source)
    assert source.judge is None
    for name in streams(source, 0, 0):
        few, many, again, other, endless = (
            list(islice(streams(source, seed, n)[name], 250))
            for seed, n in ((3, 90), (3, 250), (3, 250), (4, 250), (3, None))
        )
        assert few == many[:90]
        assert again == many == endless
        assert (other == many) == (name == "documents"), "documents stand in the order of files"


def opening(dialog):
    return next(message["content"] for message in dialog if message["role"] == "user")


def test_no_prompt_and_no_beginning_of_one_is_on_both_sides(hh):
    trained, held = FolderSource(hh), FolderSource(hh, "held out")
    seen = {opening(record.dialog) for record in read_records(hh)}
    sides = []
    for source, split in ((trained, "train"), (held, "held out")):
        dialogs = [
            *source.dialogs(0, source.size("dialogs")),
            *(prompt.dialog for prompt in source.prompts(1, 900, split)),
            *(
                p.prompt.dialog
                for s in ("helpfulness", "safety")
                for p in source.pairs(s, 2, 900, split)
            ),
        ]
        sides.append({opening(dialog) for dialog in dialogs})
        texts = {document.text for document in source.documents(0, source.size("documents"))}
        assert {text.split("\n")[0].removeprefix("user: ") for text in texts} <= {
            text.split("\n")[0] for text in sides[-1]
        }
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == seen
    assert 0.04 < len(sides[1]) / len(seen) < 0.2


def test_all_come_once_before_any_comes_twice_each_time_in_another_order(hh):
    source = FolderSource(hh)
    n = source.size("safety")
    assert 200 < n < 300
    drawn = list(source.pairs("safety", 5, 2 * n))
    first, then = (
        [(p.prompt.dialog, p.chosen, p.rejected) for p in part] for part in (drawn[:n], drawn[n:])
    )
    assert first != then
    assert sorted(map(str, first)) == sorted(map(str, then))
    assert at_most(source, "safety", 2 * n) == n > at_most(source, "safety", 7) == 7
    assert at_most(WorldSource(make_world(0)), "safety", 2 * n) == 2 * n


def test_pairs_and_prompts_know_what_is_on_safety_and_nothing_of_grades(hh):
    source, paths = FolderSource(hh), ("helpful-base", "harmless-base")
    for stream, path, tag in zip(("helpfulness", "safety"), paths, (False, True), strict=True):
        rows = {(*record.texts,) for record in read_records(hh / path)}
        pairs = list(source.pairs(stream, 1, 200))
        assert {(p.chosen, p.rejected) for p in pairs} <= rows
        assert {(p.stream, p.prompt.is_safety, p.safety_bin) for p in pairs} == {(stream, tag, "")}
    tags = [prompt.is_safety for prompt in source.prompts(1, 200)]
    assert 60 < sum(tags) < 140, "as they are mixed in the folder"
    helpful = source.prompts(1, 200, shares={"helpful": 1.0})
    assert not any(prompt.is_safety for prompt in helpful)


def test_one_stream_stands_for_both_and_the_survey_says_so(tmp_path, hh):
    one = write_hh(tmp_path, 60, ("harmless-base",))
    source = FolderSource(one)
    assert [p.chosen for p in source.pairs("helpfulness", 1, 30)] == [
        p.chosen for p in source.pairs("safety", 1, 30)
    ]
    assert all(prompt.is_safety for prompt in source.prompts(1, 30, shares={"helpful": 1.0}))
    assert "all pairs are on safety: both" in not_measured(shelf_of(one).survey)[-1]
    assert len(not_measured(shelf_of(hh).survey)) == 2
    with pytest.raises(ValueError, match="stream"):
        source.pairs("honesty", 1)


def test_what_a_folder_states_is_not_derived(tmp_path):
    asked = [f"Who is {i}?" for i in range(40)]
    write_rows(tmp_path / "a.jsonl.gz", *({"prompt": text, "response": "Ada."} for text in asked))
    source = FolderSource(tmp_path)
    [document] = source.documents(0, 1)
    assert document.text == "user: Who is 0?\nassistant: Ada."
    assert {dialog[0]["content"] for dialog in source.dialogs(0, 60)} <= {*asked}
    with pytest.raises(ValueError, match=r"must hold train pairs; there are 40 dialogs in 1 file"):
        next(source.pairs("safety", 0))
    pairs = [{"prompt": f"Why {i}?", "chosen": "So.", "rejected": "No."} for i in range(40)]
    write_rows(tmp_path / "b.jsonl.gz", *pairs)
    (tmp_path / "c.txt").write_text("A text.")
    assert [d.text for d in source.documents(0, 2)] == ["A text."] * 2, "the shelf is filled anew"
    (tmp_path / "c.txt").write_text("B text.")
    assert next(source.documents(0)).text == "B text."
    assert {dialog[0]["content"] for dialog in source.dialogs(0, 60)} <= {*asked}
    assert {prompt.request[:3] for prompt in source.prompts(0, 60)} == {"Who", "Why"}


def test_text_alone_is_enough_for_no_dialog(tmp_path):
    (tmp_path / "a.txt").write_text("A text.")
    source = source_of(0, str(tmp_path))
    with pytest.raises(ValueError, match=r"must hold dialogs; there are 1 documents .* Add pairs"):
        next(source.dialogs(0))


def test_fine_tuning_sees_every_dialog_once_an_epoch_and_validates_on_others(hh):
    size = FolderSource(hh).size("dialogs")
    train = training_dialogs(toy().sft, 0, str(hh))
    assert len(train) == toy().sft.n_dialogs < size
    many = training_dialogs(replace(toy().sft, n_dialogs=9_999), 0, str(hh))
    assert len(many) == size
    held = validation_dialogs(toy().sft, 0, many, str(hh))
    assert len(held) == toy().sft.n_validation
    assert not {render(dialog) for dialog in held} & {render(dialog) for dialog in many}


def test_the_tokenizer_reads_the_chat_format_and_nothing_held_out(hh):
    texts = list(tokenizer_texts(with_data(hh).corpus))
    assert sum(text.startswith("<s>[INST] ") for text in texts) == FolderSource(hh).size("dialogs")
    held = {opening(dialog) for dialog in FolderSource(hh, "held out").dialogs(0, 200)}
    assert not [text for text in texts for start in held if text.startswith(f"<s>[INST] {start} [")]


class Words:
    def encode(self, text, bos=False, eos=False):
        return [0] * bos + [1] * len(text.split()) + [2] * eos


def test_short_dialogs_are_chained_as_far_as_they_fit(hh):
    source = FolderSource(hh)
    dialogs = chained(source, 0, 80, 4, Words(), 60)
    assert {len(dialog) for dialog in dialogs} == {2, 4, 6, 8}
    for dialog in dialogs:
        assert [m["role"] for m in dialog] == ["user", "assistant"] * (len(dialog) // 2)
        assert sum(len(m["content"].split()) for m in dialog) <= 60
    assert max(len(dialog) for dialog in chained(source, 0, 80, 2, Words(), 60)) == 4
    assert len(chained(source, 0, 80, 4, Words(), 14)) < 80


def test_a_name_that_means_safety_renames_what_is_trained(tmp_path):
    folder = write_hh(tmp_path / "hh", 9, ("helpful-base",))
    before = pipeline.fingerprint("tokenizer", with_data(folder))
    (folder / "helpful-base").rename(folder / "other")
    assert pipeline.fingerprint("tokenizer", with_data(folder)) == before
    (folder / "other").rename(folder / "harmless")
    assert pipeline.fingerprint("tokenizer", with_data(folder)) != before


@pytest.mark.slow
def test_the_whole_chain_runs_on_a_folder_from_the_command_line(tmp_path, monkeypatch, capsys):
    folder = write_hh(tmp_path / "hh", 300)
    spoilt = [
        dict.fromkeys(("chosen", "rejected"), f"\n\nHuman: Hi\n\nAssistant: {a}")
        for a in ("", "Yes")
    ]
    write_rows(folder / "more.jsonl.gz", *spoilt)
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "artifacts"))
    for module in (corpus, folders, reward):  # nothing is learned from the world
        monkeypatch.setattr(module, "WorldSource", None)
    monkeypatch.setattr(rehearsal, "borderline_training", None)
    own = ["--recipe", "toy", "--data", str(folder), "--device", "cpu"]
    made, told = {}, {}
    for stage in ("sft", "rewards_v1", "rejection_v1", "rewards_v2", "ppo", "ghost_attention"):
        assert main(["run", stage, *own]) == 0
        shown = capsys.readouterr()
        made[stage], told[stage] = Path(shown.out.strip()), shown.err
        assert made[stage] == pipeline.artifact_path(stage, with_data(folder))
        assert made[stage] != pipeline.artifact_path(stage, toy())
    for text in told.values():
        assert (
            "read: 300 pairs on helpfulness, 300 pairs on safety in 3 files; dropped: 1 with"
            in text
        )
        assert "there is no gold judge: gold marks and recall of facts are not measured" in text
    path = pipeline.artifact_path("corpus", with_data(folder)) / "survey.json"
    survey = json.loads(path.read_text())
    assert survey["dropped"] == {"with an empty reply": 1, "with identical answers": 1}
    held = {opening(p.dialog) for p in FolderSource(folder).prompts(0, 900, "held out")}
    for stream in ("helpfulness", "safety"):
        fresh = {}
        for stage in ("rewards_v1", "rewards_v2"):
            part = made[stage] / stream
            summary = json.loads((part / "summary.json").read_text())
            assert summary["annotators"].startswith("none: these are the folder's own pairs")
            assert summary["of them met before"] == 0
            rows = storage.read_rows(part / "held.jsonl.gz", Pair)
            assert {opening(pair.prompt.dialog) for pair in rows} <= held
            fresh[stage] = storage.read_rows(part / "fresh.jsonl.gz", Pair)
        assert fresh["rewards_v2"][: len(fresh["rewards_v1"])] == fresh["rewards_v1"]
        assert len({str(pair) for pair in fresh["rewards_v2"]}) == 2 * 19
    rows = storage.read_metrics(made["ppo"] / "metrics.jsonl")
    assert {"held_out_reward", "held_out_helpfulness", "held_out_safety"} <= rows[0].keys()
    assert not [key for row in rows for key in row if key.startswith("gold")]
    assert "right:" not in (made["ppo"] / "samples.txt").read_text()
    answers = iter(["Where does Sela live?"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers, None) or sys.exit("end"))
    with pytest.raises(SystemExit, match="end"):
        main(["chat", "--stage", "ppo", *own])
    assert len(capsys.readouterr().out) > 3
    assert main(["run", "safety", *own]) == 2
    assert "safety would learn from the invented world" in capsys.readouterr().err
