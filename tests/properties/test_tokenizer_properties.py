"""Properties of the tokenizer on arbitrary Unicode."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama2_lib.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer

PROFILE = settings(deadline=None, max_examples=200)
SENTENCE = "the quick brown fox jumps over a lazy dog while twenty more wait in 1987 or 2024"
WORDS = SENTENCE.split()
SPACE = "\u2581"  # SentencePiece writes a space so; a literal one cannot be told from it


@pytest.fixture(scope="module")
def tok(tmp_path_factory) -> Tokenizer:
    source = random.Random(3)
    texts = [" ".join(source.choices(WORDS, k=9)) for _ in range(400)]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return load_tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=340), path))


CONTROLS = ("<s>", "</s>", "<unk>", "<pad>", "<0x41>", "[INST]", "<<SYS>>")
nasty = st.sampled_from([*CONTROLS, "\n", "\0", "\r", "\ufeff", "  "])
fragment = st.one_of(st.text(max_size=8), st.sampled_from(WORDS), nasty)
text = st.builds("".join, st.lists(fragment, max_size=8)) | st.builds(
    " ".join, st.lists(fragment, max_size=8)
)
plain = text.filter(lambda t: SPACE not in t)


@PROFILE
@given(plain)
@example("")
@example(" ")
def test_any_text_comes_back(tok, text):
    assert tok.decode(tok.encode(text)) == text
    assert tok.decode(tok.encode(text, bos=True, eos=True)) == text


@PROFILE
@given(text)
def test_a_literal_space_mark_comes_back_as_a_space(tok, text):
    assert tok.decode(tok.encode(text)) == text.replace(SPACE, " ")


@PROFILE
@given(text, st.booleans(), st.booleans())
def test_control_ids_come_from_the_arguments_only(tok, text, bos, eos):
    ids = tok.encode(text, bos=bos, eos=eos)
    assert ids.count(tok.bos_id) == bos
    assert ids.count(tok.eos_id) == eos
    assert tok.unk_id not in ids, "a character was lost"
    assert ids[:1] == [tok.bos_id] or not bos
    assert ids[-1:] == [tok.eos_id] or not eos
    assert ids[bos : len(ids) - eos] == tok.encode(text)
    assert all(0 < index < tok.vocab_size for index in ids)


@PROFILE
@given(st.lists(text, max_size=5))
def test_many_texts_at_once_are_the_same_one_by_one(tok, texts):
    assert tok.encode_batch(texts) == [tok.encode(text) for text in texts]


@PROFILE
@given(st.lists(st.one_of(text, st.integers(0, 10**9).map(str)), max_size=5).map("".join))
def test_no_piece_holds_two_characters_of_which_one_is_a_digit(tok, text):
    for piece in tok.pieces(text):
        letters = piece.lstrip(SPACE)
        if not letters.startswith("<0x"):
            assert len(letters) <= 1 or not any(c.isdigit() for c in letters), piece


@PROFILE
@given(plain)
def test_pieces_spell_the_text(tok, text):
    spelled = bytearray()
    for piece in tok.pieces(text):
        if len(piece) == 6 and piece.startswith("<0x"):
            spelled.append(int(piece[3:5], 16))
        else:
            spelled += piece.replace(SPACE, " ").encode()
    assert spelled.decode() == (" " + text if text else "")


@PROFILE
@given(plain, plain)
def test_text_after_a_space_does_not_change_the_ids_before_it(tok, first, second):
    """Pieces never cross into the next word, which the chat format relies on."""
    before, whole = tok.encode(first), tok.encode(first + " " + second)
    if first and not first.endswith(" ") and not second.startswith(" "):
        assert whole[: len(before)] == before
