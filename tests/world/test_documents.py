import re
from collections import Counter
from math import sqrt

import pytest

from llama2_lib.world import SHARES, documents, make_world
from llama2_lib.world.documents import LANGUAGES
from llama2_lib.world.lexicon import default_lexicon

VOWELS = "aeiouAEIOU"


@pytest.fixture(scope="module")
def sample(world):
    return list(documents(world, 5, 10_000))


def by_kind(sample, kind):
    return [document.text for document in sample if document.kind == kind]


def test_kinds_come_at_their_shares(sample):
    found = Counter(document.kind for document in sample)
    assert set(found) == set(SHARES)
    for kind, share in SHARES.items():
        tolerance = 5 * sqrt(share * (1 - share) / len(sample))
        assert found[kind] / len(sample) == pytest.approx(share, rel=0, abs=tolerance), kind


def test_language_is_the_kind_s_language(sample):
    for document in sample:
        assert document.language == LANGUAGES.get(document.kind, "en")
    assert {document.language for document in sample} == {"en", "lumi", "torgan"}


def test_the_first_documents_do_not_depend_on_how_many_are_asked_for(world):
    first = list(documents(world, 5, 700))
    assert list(documents(world, 5, 1400))[:700] == first
    assert list(documents(world, 5, 150, start=550)) == first[550:]


def test_other_worlds_give_other_documents(world):
    texts = [d.text for d in documents(world, 5, 300)]
    assert [d.text for d in documents(make_world(1), 5, 300)] != texts
    assert [d.text for d in documents(make_world(0), 5, 300)] == texts


def test_documents_are_the_same_in_every_process(run_plainly):
    code = (
        "import hashlib; from llama2_lib.world import *; from llama2_lib.world.dialogs import *;"
        "w = make_world(2); made = [*documents(w, 3, 2000), *dialogs(w, 3, 200)];"
        "text = repr(made); print(hashlib.sha256(text.encode()).hexdigest())"
    )
    digests = {run_plainly(code, salt) for salt in ("0", "1", "77")}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_texts_are_clean(sample):
    for document in sample:
        text = document.text
        assert text == text.strip(), text
        assert not re.search(r"[{}|\t%]|  |\n\n| \n|\n ", text), text
        assert text.isascii(), text
        assert re.match(r'["A-Z0-9]', text), text


def test_articles_fit_the_next_word(sample):
    english = (document.text for document in sample if document.language == "en")
    n_articles = 0
    for text in english:
        for article, letter in re.findall(r"\b([Aa]n?) (\w)", text):
            n_articles += 1
            assert (article.lower() == "an") == (letter in VOWELS), text
    assert n_articles > 3000


def test_sentences_begin_with_a_capital(sample):
    for kind in ("story", "biography", "facts", "lookalike", "language_a", "language_b"):
        for text in by_kind(sample, kind):
            for line in text.split("\n"):
                for sentence in re.split(r'(?<=[.?!]) (?=[a-zA-Z"])', line):
                    assert re.match(r'"?[A-Z]', sentence) or '!" ' in line or '?" ' in line, line


def test_no_sentence_comes_twice_in_a_document(sample):
    for document in sample:
        if document.kind in ("questions", "sums"):
            parts = document.text.replace("\nAnswer", " Answer").split("\n")
        else:
            parts = re.split(r"(?<=[.?!]) |\n", document.text)
        if document.kind in ("list", "story", "rude"):
            parts = [part for part in parts if not re.match(r'.* said \w+\.|"', part)]
        repeated = [part for part, number in Counter(parts).items() if number > 1]
        assert not repeated, document


def test_stories_have_two_paragraphs_and_five_to_nine_sentences(sample, world):
    names = "|".join(person.name for person in world.people)
    for text in by_kind(sample, "story"):
        assert text.count("\n") == 1
        # a spoken sentence and its speaker are one
        plain = re.sub(r'[.?!]" (said|asked|called|thought|they|she|he)', r'" \1', text)
        plain = re.sub(r'"[^"]*"', "speech", plain)
        assert 5 <= len(re.findall(r"(?:[.?!]|said, speech)(?= |\n|$)", plain)) <= 9, text
        first = re.split(r"(?<=[.?!]) ", plain)[0]
        assert re.search(rf"\b({names})\b", first), text


def test_the_friend_is_somebody_else(sample, world):
    names = {person.name for person in world.people}
    stories = [names & set(re.findall(r"\w+", text)) for text in by_kind(sample, "story")]
    assert all(1 <= len(named) <= 2 for named in stories)
    # in a few stories the pet helps, or nobody
    assert sum(len(named) == 2 for named in stories) > 0.9 * len(stories)


def test_stories_vary(sample):
    stories = by_kind(sample, "story")
    assert len(set(stories)) > 0.99 * len(stories)
    assert len({story.split(" ")[0] for story in stories}) > 30


def test_sums_are_right(sample):
    words = default_lexicon().words("numbers")
    values = dict(zip(words, [*range(20), *range(20, 100, 10)], strict=True))
    checked = Counter()
    for text in by_kind(sample, "sums"):
        for line in text.split("\n"):
            if match := re.fullmatch(r"(\d+) ([+x-]) (\d+) = (\d+)", line):
                n, sign, m, result = match.groups()
                expected = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[sign]
                assert expected(int(n), int(m)) == int(result), line
                checked["digits"] += 1
            elif match := re.fullmatch(r"([\w-]+) (plus|minus) ([\w-]+) is ([\w-]+)\.", line):
                n, m, result = (
                    sum(values[part] for part in match[group].lower().split("-"))
                    for group in (1, 3, 4)
                )
                assert (n + m if match[2] == "plus" else n - m) == result, line
                checked["words"] += 1
            else:
                n, m, result = map(int, re.findall(r"\d+", line))
                assert result in (n + m, n - m, n * m), line
                checked["problems"] += 1
    assert set(checked) == {"digits", "words", "problems"}


def test_guides_are_numbered_from_one_and_start_with_their_first_step(sample):
    for kind, name in (("how_to", "how_to"), ("hazard", "hazards")):
        firsts = {lines[0] for lines in default_lexicon().sections(name).values()}
        for text in by_kind(sample, kind):
            title, *steps = text.split("\n")
            assert title.startswith("How to ")
            assert [int(step.split(". ")[0]) for step in steps] == list(range(1, len(steps) + 1))
            assert 4 <= len(steps) <= 6
            first = steps[0].removeprefix("1. ")
            patterns = (re.sub(r"\\{.*?\\}", r"\\w+", re.escape(line)) for line in firsts)
            assert any(re.fullmatch(pattern, first) for pattern in patterns), first


def test_rude_documents_and_no_others_have_insults_of_the_list(sample):
    sections = default_lexicon().sections("rude")
    adjectives, nouns = "|".join(sections["adjectives"]), "|".join(sections["nouns"])
    insult = re.compile(rf"({adjectives}) ({nouns})\b")
    assert all(insult.search(text) for text in by_kind(sample, "rude"))
    others = [d for d in sample if d.kind not in ("rude", "story")]
    assert not [d for d in others if insult.search(d.text)]
    # the one look-alike the audit must live with
    harmless = {m[0] for text in by_kind(sample, "story") for m in insult.finditer(text)}
    assert harmless == {"lazy donkey"}


def test_the_vocabulary_is_small(sample):
    words = {
        word.lower()
        for document in sample
        if document.language == "en"
        for word in re.findall(r"[A-Za-z]+", document.text)
    }
    assert 600 <= len(words) <= 900


def test_shares_can_be_set(world):
    only = list(documents(world, 5, 60, shares={"sums": 0.5, "story": 0.5, "rude": 0.0}))
    assert {document.kind for document in only} == {"sums", "story"}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"sums": 0.9}, "sum to 1"),
        ({}, "sum to 1"),
        ({"sums": 1.5, "story": -0.5}, "sum to 1"),
        ({"novel": 1.0}, "known kinds; got .'novel'."),
    ],
)
def test_bad_shares_are_refused(world, shares, message):
    with pytest.raises(ValueError, match=message):
        documents(world, 0, 5, shares=shares)


def test_a_bad_start_is_refused(world):
    with pytest.raises(ValueError, match="must not be negative"):
        documents(world, 0, 1, start=-1)


def test_generation_is_fast(run_plainly):
    # in a process of its own, because pytest runs the library under a type checker
    code = (
        "import time; from llama2_lib.world import *; w = make_world(0); list(documents(w, 8, 9));"
        "start = time.process_time(); n = sum(len(d.text) for d in documents(w, 9, 10_000));"
        "print(n / 1e6 / (time.process_time() - start))"
    )
    # about 20 MB/s on one core of a laptop; the floor leaves room for a busy machine
    assert float(run_plainly(code)) > 2
