import random
import re

import pytest

from llama2_lib.world import documents
from llama2_lib.world.long_range import MOST_FILLERS, LongRangeMaker, retrieval_items


@pytest.mark.parametrize("n_filler", [0, 1, 7, 60])
def test_the_item_stands_at_both_ends_only(world, n_filler):
    items = set(world.lexicon.words("things"))
    text, answer = LongRangeMaker(world).make(random.Random(n_filler), n_filler)
    sentences = re.split(r"(?<=\.) ", text)
    assert len(sentences) == n_filler + 2
    name = re.fullmatch(rf"Note: the box of (\w+) holds one {answer}\.", sentences[0])[1]
    assert sentences[-1] == f"So the box of {name} holds one {answer}."
    assert not items & set(re.findall(r"\w+", " ".join(sentences[1:-1])))
    assert len(set(sentences)) == len(sentences)


def test_items_are_drawn_afresh_and_evenly(world):
    items = retrieval_items(world, 3, 3000, 0)
    assert set(items[0].choices) == {item.answer for item in items}
    most = max(sum(item.answer == choice for item in items) for choice in items[0].choices)
    assert most < 0.08 * 3000  # one in twenty, with room for chance
    # nor does the name tell: the same box holds other items in other texts
    answers = {item.answer for item in items if item.prompt.startswith("Note: the box of Mara")}
    assert len(answers) > 10


def test_prompts_stop_before_the_answer(world):
    for n_filler in (0, 12):
        for item in retrieval_items(world, 3, 20, n_filler):
            assert item.prompt.endswith(" holds one")
            assert item.prompt.count(item.answer) == 1
            assert item.prompt.startswith("Note: ")


def test_evaluation_is_seeded_and_not_in_the_training_documents(world):
    items = retrieval_items(world, 3, 100, 10)
    assert retrieval_items(world, 3, 100, 10) == items
    assert retrieval_items(world, 4, 100, 10) != items
    texts = {d.text for d in documents(world, 0, 4000) if d.kind == "lookalike"}
    assert not texts & {f"{item.prompt} {item.answer}." for item in items}


def test_documents_have_every_distance(world):
    shares = {"lookalike": 1.0}
    found = {d.text.count(".") - 2 for d in documents(world, 0, 700, shares=shares)}
    assert found == set(range(MOST_FILLERS + 1))


def test_bad_distances_are_refused(world):
    for n_filler in (-1, 501):
        with pytest.raises(AssertionError, match=str(n_filler)):
            retrieval_items(world, 1, 1, n_filler)


def test_a_reminder_echoes_one_item_after_most_sentences(world):
    texts = [d.text for d in documents(world, 0, 600, shares={"reminder": 1.0})]
    n_echoes = [text.count("So the box of") for text in texts]
    n_sentences = [text.count(".") for text in texts]
    for text in texts:
        assert len(set(re.findall(r"holds one (\w+)\.", text))) == 1
        assert text.endswith(".")
        assert set(re.findall(r"the box of (\w+)", text)) == {world.people[0].name}
    n_fillers = [s - e - 1 for s, e in zip(n_sentences, n_echoes, strict=True)]
    assert 5 < sum(n_fillers) / 600 < 6.2  # int() takes half a sentence off the mean of 6
    followed = sum(e - 1 for e in n_echoes) / sum(n_fillers)
    assert followed == pytest.approx(0.9, rel=0, abs=0.02)


def test_reminders_are_in_no_corpus_unless_asked_for(world):
    assert "reminder" not in {d.kind for d in documents(world, 0, 3000)}
