import random
import re

import pytest

from llama2_lib.world import make_world
from llama2_lib.world.dialogs import dialogs
from llama2_lib.world.documents import writers
from llama2_lib.world.lexicon import (
    Lexicon,
    Template,
    article,
    default_lexicon,
    lexicon_folder,
    pick_other,
    with_articles,
)


def test_a_copy_of_the_lexicon_makes_the_same_world(folder):
    ours, copy = make_world(3), make_world(3, Lexicon(folder))
    assert copy.facts == ours.facts
    assert copy.events == ours.events


def test_an_added_word_reaches_the_world(folder):
    path = folder / "places.txt"
    path.write_text(path.read_text().replace("Oakford", "Newplace"))
    world = make_world(3, Lexicon(folder))
    assert "Newplace" in world.places
    assert "Oakford" not in world.places
    assert any(fact.value == "Newplace" for fact in world.facts)


def build_everything(world):
    writers(world)
    dialogs(world, 0)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("places", "two words", "places.txt line {n} .*one word of letters.*two words"),
        ("places", "Oakford", r"places.txt line {n} .*each word once \(line 2 has it\).*Oakford"),
        ("names", "Zara", "names.txt line {n} .*two words of letters.*Zara"),
        ("names", "Mara she", "names.txt line {n} .*each first word once.*Mara"),
        ("names", "Zara it", "names.txt must give she, he or they after Zara; got 'it'"),
        ("stories", "{hero} met {nobody}.", "stories.txt line {n} .*only the slots.*nobody"),
        ("stories", "{hero met {friend}.", "stories.txt line {n} .*{friend}.*"),
        ("stories", "{hero} met friend}.", "stories.txt line {n} .*a } for every {.*"),
        ("stories", "{hero} ran  away.", "stories.txt line {n} .*single spaces.*"),
        ("stories", "[open", r"stories.txt line {n} .*both brackets.*\[open"),
        ("stories", "[closing]", r"stories.txt line {n} .*each section once.*closing"),
        (
            "stories",
            "[tea want]\n{hero} wanted tea.",
            r"must have a section \[tea obstacle\]",
        ),
        ("stories", "[empty]", "every section of stories.txt must hold lines.*empty"),
        ("questions", "[home extra]\nWhat?\n[trade extra]", "questions.txt.*trade extra"),
        ("dialogs", "[odd]", "dialogs.txt.*odd"),
        ("numbers", "hundred", "numbers.txt must hold 28 words; it holds 29"),
    ],
)
def test_a_bad_line_is_named(folder, name, line, message):
    path = folder / f"{name}.txt"
    text = path.read_text()
    path.write_text(f"{text}{line}\n")
    number = len(text.splitlines()) + 1
    with pytest.raises(ValueError, match=message.replace("{n}", str(number))):
        build_everything(make_world(0, Lexicon(folder)))


def test_text_before_the_first_section_is_named(folder):
    (folder / "events.txt").write_text("# fine\nthe mill burned\n[event]\nthe sun rose\n")
    with pytest.raises(ValueError, match=r"events.txt line 2 .*a \[section\] before"):
        make_world(0, Lexicon(folder))


def test_a_missing_section_is_named(folder):
    path = folder / "statements.txt"
    path.write_text(path.read_text().replace("[food pronoun]", "[fod pronoun]"))
    with pytest.raises(ValueError, match=r"statements.txt must have a section \[food pronoun\]"):
        writers(make_world(0, Lexicon(folder)))


def test_talk_needs_an_arrow(folder):
    path = folder / "dialogs.txt"
    path.write_text(path.read_text().replace("Good night. =>", "Good night."))
    with pytest.raises(ValueError, match=r"dialogs\.txt needs left => right"):
        dialogs(make_world(0, Lexicon(folder)), 0, 1)


def test_too_few_words_and_a_missing_file_are_named(folder):
    (folder / "foods.txt").write_text("soup\nbread\n")
    with pytest.raises(ValueError, match=r"foods.txt must hold 10 words or more; got 2"):
        make_world(0, Lexicon(folder))
    (folder / "foods.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"foods\.txt; restore"):
        make_world(0, Lexicon(folder))


def test_a_file_that_is_not_utf8_is_named(folder):
    (folder / "foods.txt").write_bytes(b"cr\xe8me\n")
    with pytest.raises(ValueError, match=r"foods.txt must be UTF-8"):
        make_world(0, Lexicon(folder))


def test_a_missing_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("llama2_lib.world.lexicon._PACKAGE", tmp_path / "llama2_lib")
    with pytest.raises(FileNotFoundError, match="data/lexicon"):
        lexicon_folder()
    installed = tmp_path / "llama2_lib" / "_data" / "lexicon"
    installed.mkdir(parents=True)
    assert lexicon_folder() == installed  # as inside a wheel
    beside = tmp_path / "data" / "lexicon"
    beside.mkdir(parents=True)
    assert lexicon_folder() == beside  # a checkout comes first


def test_templates_fill_articles_and_percent_signs():
    template = Template("{A animal} saw {an animal} and {b}, 5% of {animal}.")
    filled = template.fill(with_articles(animal="owl") | {"b": "c"})
    assert filled == "An owl saw an owl and c, 5% of owl."
    assert Template("Nothing here, 100%.").fill({}) == "Nothing here, 100%."
    assert [article(word) for word in ("owl", "dog", "Ada", "Mara")] == ["an", "a", "an", "a"]


def test_pick_other_needs_another():
    rng = random.Random(1)
    assert {pick_other(rng, ("a", "b", "c"), "b") for _ in range(40)} == {"a", "c"}
    with pytest.raises(ValueError, match="something other than 'a'"):
        pick_other(rng, ("a", "a"), "a")


def test_no_line_of_the_fillers_or_values_gives_the_item_away():
    lexicon = default_lexicon()
    items = set(lexicon.words("things"))
    lists = ("places", "trades", "animals", "spots", "adjectives", "looks", "weather", "times")
    words = set(re.findall(r"\w+", " ".join(lexicon.sections("fillers")["filler"])))
    for name in lists:
        words |= set(lexicon.words(name))
    assert not words & items
    assert len(words) > 100
