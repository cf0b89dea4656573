"""The table of what a chat model does at once, of answers that are known."""

import numpy as np
import pytest

from llama2_lib import pipeline
from llama2_lib.evaluation import chat_report
from llama2_lib.evaluation.chat_report import report, table
from llama2_lib.evaluation.consistency import Kept
from llama2_lib.evaluation.judged import gold_marks
from llama2_lib.evaluation.statistics import Estimate, proportion_exact
from llama2_lib.model.chat import Reply, room
from llama2_lib.recipes import toy
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.world import make_world
from llama2_lib.world.judges import SAFE
from llama2_lib.world.risks import held_out_hazards


@pytest.fixture
def loaded(toy_root):
    return pipeline.load("sft", toy(), root=toy_root)


@pytest.fixture
def reported(loaded, monkeypatch):
    """Report on a model that gives one answer to all; return that, prompts, seeds and dialogs."""

    def run(answer, change=lambda marks: marks, max_new_tokens=12):
        asked, seeds, dialogs = [], set(), []

        def reply(model, tokenizer, heard, **options):
            dialogs.extend(heard)
            return [Reply(answer, [], True) for _ in heard]

        def marks_of(model, tokenizer, world, prompts, **options):
            asked.append(prompts)
            seeds.add(options["seed"])
            return change(gold_marks(world, prompts, [answer] * len(prompts)))

        monkeypatch.setattr(chat_report, "marks_of", marks_of)
        monkeypatch.setattr("llama2_lib.evaluation.consistency.reply", reply)
        monkeypatch.setattr("llama2_lib.model.chat.reply", reply)
        lines = report(*loaded, make_world(0), n=20, n_turns=2, max_new_tokens=max_new_tokens)
        return lines, asked, seeds, dialogs

    return run


def test_a_model_that_declines_everything_is_safe_and_useless(reported):
    lines, *_ = reported("I am sorry, but I cannot help with that.")
    for wording in chat_report.WORDINGS.values():
        for what in ("asks for harm", "only sounds harmful", "is harmless"):
            assert lines[f"declines what {what}, {wording}"] == proportion_exact(20, 20)
        assert lines[f"violates, {wording}"] == proportion_exact(0, 20)
        assert lines[f"helps (mark), {wording}"].value < 0.5
    unnamed = lines["declines what asks for harm, new hazard"]
    assert unnamed.value == 1
    assert 4 <= unnamed.n <= 16  # half of those in new wordings
    assert lines["violates, new hazard"] == proportion_exact(0, unnamed.n)
    for what, share in lines.items():
        if what.startswith(("keeps", "the same", "right", "knows")):
            assert share.value == 0, what


def test_wordings_are_those_of_their_split_and_dialogs_are_held_to_the_last_turn(reported):
    _, asked, seeds, dialogs = reported("Yes.")
    assert len(asked) == 6
    assert seeds == {0}
    for known, new in zip(asked[:3], asked[3:], strict=True):
        kinds = {known[0].kind, new[0].kind}
        assert len(kinds) == 1 or kinds.isdisjoint({"adversarial", "borderline"})
        assert not {prompt.request for prompt in known} & {prompt.request for prompt in new}
    assert {sum(message["role"] == "user" for message in dialog) for dialog in dialogs} == {1, 2}


def test_an_answer_on_the_border_is_safe_and_a_prompt_that_just_fits_is_asked(loaded, reported):
    def border(marks):
        return marks._replace(safety=np.full(len(marks.safety), SAFE))

    def longest(asked):
        return max(len(encode_prompt(p.dialog, loaded[1])) for prompts in asked for p in prompts)

    lines, asked, *_ = reported("Yes.", border)
    assert {share.value for what, share in lines.items() if what.startswith("violates")} == {0.0}
    before = longest(asked)
    assert before < room(loaded[0], 12), "none of them will just fit: vacuous"
    assert longest(reported("Yes.", border, room(loaded[0], before))[1]) == before


def test_every_line_is_of_its_own_prompts_or_dialogs(reported, monkeypatch):
    numbers, everywhere = [], np.ones((4, 2), dtype=bool)
    obeyed = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], dtype=bool)
    right = np.array([[1, 0], [1, 0], [1, 0], [1, 1]], dtype=bool)
    full = obeyed | right  # one dialog had filled the context before its end, and kept nothing
    own, neutral = Kept(obeyed, right, full), Kept(~everywhere, ~right, everywhere)
    monkeypatch.setattr(
        chat_report, "on_own_history", lambda *of: numbers.append(len(of[2])) or own
    )
    monkeypatch.setattr(chat_report, "on_neutral_history", lambda *_: neutral)
    lines, asked, *_ = reported(
        "Yes.", lambda marks: marks._replace(helpfulness=np.where(marks.helpful, 0.75, 0.25))
    )
    assert numbers == [10]
    unnamed = held_out_hazards(make_world(0))
    harm = [p for prompts in asked for p in prompts if p.kind == "adversarial"]
    n_new = sum(prompt.hazard in unnamed for prompt in harm)
    assert lines["violates, new hazard"].n == n_new != 20 - n_new
    assert lines["helps (mark), new wording"].value == 0.75
    assert lines["keeps an instruction, turn 2"] == proportion_exact(3, 4)
    assert lines["the same, neutral history, turn 2"] == proportion_exact(0, 4)
    assert lines["keeps it at all turns"] == proportion_exact(2, 4)
    assert lines["right answers meanwhile, turn 2"] == proportion_exact(1, 4)


def test_the_table_has_a_column_a_model_and_shares_in_per_cent():
    share = Estimate(value=0.5, low=0.251, high=0.749, n=10)
    mark = Estimate(value=0.625, low=0.5, high=0.75, n=10)
    one = {"violates": share, "helps (mark)": mark, "a line with a long name " * 3: share}
    lines = table({"SFT": one, "chat model": one})
    assert lines[0].split() == ["SFT", "chat", "model"]
    assert lines[1].split() == ["violates", *["50", "%", "[25,", "75]"] * 2]
    assert lines[2].split() == ["helps", "(mark)", *["0.62", "[0.50,", "0.75]"] * 2]
    assert len({len(line) for line in lines}) == 1
