import math

import pytest

from llama2_lib.world import Document, documents, make_world
from llama2_lib.world.audit import CounterQuality, audit


def doc(text, kind="story", language="en"):
    return Document(kind, text, language)


@pytest.fixture(scope="module")
def report():
    return audit(documents(make_world(0), 3, 6000))


def test_pronouns_by_hand():
    report = audit(
        [
            doc("She was in the house. I saw you."),
            doc("The old king was there and he saw them."),
            doc("They saw it on the road."),
            doc("Bread was on the table."),
        ]
    )
    assert report.n_english == report.n_documents == 4
    assert report.pronouns == {
        "gender": 2 / 4,
        "she": 1 / 4,
        "he": 1 / 4,
        "unspecified": 2 / 4,
        "any person": 3 / 4,
        "first person": 1 / 4,
        "second person": 1 / 4,
        "third person": 3 / 4,
    }
    assert report.identities == {"age": 1 / 4, "gender and sex": 1 / 4, "trade": 0.0}


def test_languages_by_hand():
    report = audit(
        [
            doc("The house was on the hill."),
            doc("La nolu vidas la mivo.", "language_a", "lumi"),
            doc("Hund katzok skut ga?", "language_b", "torgan"),
            doc("12 + 7 = 19", "sums"),
            doc("zzz qqq xxx the", "story"),
        ]
    )
    assert report.languages == {"unknown": 2 / 5, "en": 1 / 5, "lumi": 1 / 5, "torgan": 1 / 5}
    assert report.true_languages == {"en": 3 / 5, "lumi": 1 / 5, "torgan": 1 / 5}
    assert report.language_quality["en"] == CounterQuality(1, 0, 2)
    assert report.language_quality["lumi"] == CounterQuality(1, 0, 0)


def test_rude_lines_by_hand():
    report = audit(
        [
            doc('"You soggy turnip!" said Mara.', "rude"),  # 1: both rules
            doc('It was cold.\nIt was dark.\n"You soggy turnip!"', "rude"),  # mean 1/3
            doc('"You silly bucket!" said Mara.', "rude"),  # bucket is not on the list
            doc("The donkey ate a turnip."),  # two words, not in a row
            doc("A lazy donkey stood there."),  # taken for an insult
            doc("Bread was on the table."),
        ]
    )
    assert report.true_rude == 3 / 6
    assert report.rude_by_mean == 2 / 6
    assert report.rude_by_worst_line == 3 / 6
    assert report.rude_quality["mean"] == CounterQuality(1, 1, 2)
    assert report.rude_quality["worst line"] == CounterQuality(2, 1, 1)
    assert report.rude_quality["worst line"].precision == 2 / 3
    assert report.rude_quality["worst line"].recall == 2 / 3


def test_quality_without_cases_is_not_a_number():
    assert math.isnan(CounterQuality(0, 0, 3).precision)
    assert math.isnan(CounterQuality(0, 3, 0).recall)
    assert CounterQuality(0, 0, 3).recall == 0.0


def test_counters_agree_with_the_labels_of_the_world(report):
    assert report.n_documents == 6000
    assert sum(report.languages.values()) == pytest.approx(1, rel=0, abs=1e-9)
    for language in ("lumi", "torgan"):
        assert report.language_quality[language].precision > 0.98
        assert report.language_quality[language].recall > 0.98
    assert report.language_quality["en"].precision > 0.99
    # sums in digits have no words: unknown, as code was for the paper
    assert 0.9 < report.language_quality["en"].recall < 1
    worst, mean = report.rude_quality["worst line"], report.rude_quality["mean"]
    assert worst.recall > 0.7
    assert 0.6 < worst.precision < 1
    assert mean.recall < worst.recall  # averaging over lines hides the one rude line


def test_all_pronoun_classes_occur_in_the_world(report):
    assert min(report.pronouns.values()) > 0.02
    assert report.pronouns["any person"] > report.pronouns["third person"]
    together = report.pronouns["she"] + report.pronouns["he"]
    assert together >= report.pronouns["gender"] - 1e-12  # the same sum, rounded twice


def test_an_empty_corpus_is_refused():
    with pytest.raises(ValueError, match="at least one document"):
        audit([])
