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

REFUSAL = "I am sorry, but I cannot help with that."


@pytest.fixture
def loaded(toy_root):
    return pipeline.load("sft", toy(), root=toy_root)


def reported(loaded, monkeypatch, marks_of, said, max_new_tokens=12):
    """A report on a model that says what it is told to."""

    def answer(model, tokenizer, dialogs, **options):
        return [Reply(said(dialog), [], True) for dialog in dialogs]

    monkeypatch.setattr(chat_report, "marks_of", marks_of)
    monkeypatch.setattr("llama2_lib.evaluation.consistency.reply", answer)
    monkeypatch.setattr("llama2_lib.model.chat.reply", answer)
    return report(*loaded, make_world(0), n=20, n_turns=2, max_new_tokens=max_new_tokens)


def test_a_model_that_declines_everything_is_safe_and_useless(loaded, monkeypatch):
    def marks_of(model, tokenizer, world, prompts, **options):
        return gold_marks(world, prompts, [REFUSAL] * len(prompts))

    found = reported(loaded, monkeypatch, marks_of, lambda dialog: REFUSAL)
    for wording in chat_report.WORDINGS.values():
        for what in ("asks for harm", "only sounds harmful", "is harmless"):
            assert found[f"declines what {what}, {wording}"] == proportion_exact(20, 20)
        assert found[f"violates, {wording}"] == proportion_exact(0, 20)
        assert found[f"helps (mark), {wording}"].value < 0.5
    unnamed = found["declines what asks for harm, new hazard"]
    assert unnamed.value == 1
    assert 4 <= unnamed.n <= 16  # half of those in new wordings
    assert found["violates, new hazard"] == proportion_exact(0, unnamed.n)
    for what, share in found.items():
        if what.startswith(("keeps", "the same", "right", "knows")):
            assert share.value == 0, what


def test_wordings_are_those_of_their_split_and_dialogs_are_held_to_the_last_turn(
    loaded, monkeypatch
):
    asked, turns = [], set()

    def marks_of(model, tokenizer, world, prompts, **options):
        asked.append((prompts[0].kind, [p.request for p in prompts], options["seed"]))
        return gold_marks(world, prompts, ["Yes."] * len(prompts))

    def said(dialog):
        turns.add(sum(message["role"] == "user" for message in dialog))
        return "Yes."

    reported(loaded, monkeypatch, marks_of, said)
    assert len(asked) == 6
    assert {seed for *_, seed in asked} == {0}
    for (kind, known, _), (other, new, _) in zip(asked[:3], asked[3:], strict=True):
        assert kind == other or {kind, other}.isdisjoint({"adversarial", "borderline"})
        assert not set(known) & set(new)
    assert turns == {1, 2}


def test_an_answer_on_the_border_is_safe_and_a_prompt_that_just_fits_is_asked(loaded, monkeypatch):
    model, lengths = loaded[0], []

    def marks_of(model, tokenizer, world, prompts, **options):
        lengths.extend(len(encode_prompt(prompt.dialog, tokenizer)) for prompt in prompts)
        marks = gold_marks(world, prompts, ["Yes."] * len(prompts))
        return marks._replace(safety=np.full(len(prompts), SAFE))

    found = reported(loaded, monkeypatch, marks_of, lambda dialog: "Yes.")
    assert {share.value for what, share in found.items() if what.startswith("violates")} == {0.0}
    longest = max(lengths)
    assert longest < room(model, 12), "none of them will just fit: vacuous"
    lengths.clear()
    reported(loaded, monkeypatch, marks_of, lambda dialog: "Yes.", room(model, longest))
    assert max(lengths) == longest


def test_every_line_is_of_its_own_prompts_or_dialogs(loaded, monkeypatch):
    hazards, numbers = [], []

    def marks_of(model, tokenizer, world, prompts, **options):
        marks = gold_marks(world, prompts, ["Yes."] * len(prompts))
        hazards.extend(prompt.hazard for prompt in prompts if prompt.kind == "adversarial")
        return marks._replace(helpfulness=np.where(marks.helpful, 0.75, 0.25))

    everywhere = np.ones((4, 2), dtype=bool)
    obeyed = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], dtype=bool)
    right = np.array([[1, 0], [1, 0], [1, 0], [1, 1]], dtype=bool)
    own, neutral = Kept(obeyed, right, everywhere), Kept(~everywhere, ~right, everywhere)
    monkeypatch.setattr(
        chat_report, "on_own_history", lambda *of: numbers.append(len(of[2])) or own
    )
    monkeypatch.setattr(chat_report, "on_neutral_history", lambda *_: neutral)
    found = reported(loaded, monkeypatch, marks_of, lambda dialog: "Yes.")
    assert numbers == [10]
    n_new = sum(hazard in held_out_hazards(make_world(0)) for hazard in hazards)
    assert found["violates, new hazard"].n == n_new != 20 - n_new
    assert found["helps (mark), new wording"].value == 0.75
    assert found["keeps an instruction, turn 2"] == proportion_exact(3, 4)
    assert found["the same, neutral history, turn 2"] == proportion_exact(0, 4)
    assert found["keeps it at all turns"] == proportion_exact(2, 4)
    assert found["right answers meanwhile, turn 2"] == proportion_exact(1, 4)


def test_the_table_has_a_column_a_model_and_shares_in_per_cent():
    share = Estimate(value=0.5, low=0.251, high=0.749, n=10)
    mark = Estimate(value=0.625, low=0.5, high=0.75, n=10)
    one = {"violates": share, "helps (mark)": mark, "a line with a long name " * 3: share}
    lines = table({"SFT": one, "chat model": one})
    assert lines[0].split() == ["SFT", "chat", "model"]
    assert lines[1].split() == ["violates", *["50", "%", "[25,", "75]"] * 2]
    assert lines[2].split() == ["helps", "(mark)", *["0.62", "[0.50,", "0.75]"] * 2]
    assert len({len(line) for line in lines}) == 1
