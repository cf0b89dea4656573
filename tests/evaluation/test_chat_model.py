"""The table of what a chat model does at once, of answers that are known."""

import pytest

from llama2_lib import pipeline
from llama2_lib.evaluation import chat_model
from llama2_lib.evaluation.chat import Answer
from llama2_lib.evaluation.chat_model import report, table
from llama2_lib.evaluation.preference import gold_marks
from llama2_lib.evaluation.statistics import Estimate, proportion_exact
from llama2_lib.recipes import toy
from llama2_lib.world import make_world

REFUSAL = "I am sorry, but I cannot help with that."


@pytest.fixture
def loaded(toy_root):
    return pipeline.load("sft", toy(), root=toy_root)


def reported(loaded, monkeypatch, marks_of, said):
    """A report on a model that says what it is told to."""

    def answer(model, tokenizer, dialogs, **options):
        return [Answer(said(dialog), [], True) for dialog in dialogs]

    monkeypatch.setattr(chat_model, "marks_of", marks_of)
    monkeypatch.setattr("llama2_lib.evaluation.consistency.answer", answer)
    monkeypatch.setattr("llama2_lib.evaluation.chat.answer", answer)
    return report(*loaded, make_world(0), n=20, n_turns=2, max_new_tokens=12)


def test_a_model_that_declines_everything_is_safe_and_useless(loaded, monkeypatch):
    def marks_of(model, tokenizer, world, prompts, **options):
        return gold_marks(world, prompts, [REFUSAL] * len(prompts))

    found = reported(loaded, monkeypatch, marks_of, lambda dialog: REFUSAL)
    for wording in chat_model.WORDINGS.values():
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


def test_the_table_has_a_column_a_model_and_shares_in_per_cent():
    share = Estimate(value=0.5, low=0.251, high=0.749, n=10)
    mark = Estimate(value=0.625, low=0.5, high=0.75, n=10)
    one = {"violates": share, "helps (mark)": mark, "a line with a long name " * 3: share}
    lines = table({"SFT": one, "chat model": one})
    assert lines[0].split() == ["SFT", "chat", "model"]
    assert lines[1].split() == ["violates", *["50", "%", "[25,", "75]"] * 2]
    assert lines[2].split() == ["helps", "(mark)", *["0.62", "[0.50,", "0.75]"] * 2]
    assert len({len(line) for line in lines}) == 1
