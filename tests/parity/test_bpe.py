"""Byte-pair encoding by hand is SentencePiece's, on the world's text."""

from pathlib import Path

import pytest

from llama2_lib.teaching.tokenizer import (
    FIRST_MERGE,
    LEARN_MISTAKES,
    _learn,
    _segment,
    characters_kept,
    lines_of,
    merges_of,
    words_of,
)
from llama2_lib.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from llama2_lib.world import documents, make_world

N_MERGES = 300


@pytest.fixture(scope="module", params=[0, 5], ids=["world 0", "world 5"])
def texts(request):
    return [document.text for document in documents(make_world(request.param), 3, 700)]


@pytest.fixture(scope="module")
def sentencepiece(texts, tmp_path_factory):
    # rare characters are left to the bytes: 99.995 % of the text must be covered
    kept = characters_kept(words_of(texts))
    config = TokenizerConfig(vocab_size=FIRST_MERGE + N_MERGES + len(kept))
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.model"
    return load_tokenizer(train_tokenizer(texts, config, Path(path)))


@pytest.mark.slow
def test_the_learned_pieces_are_sentencepieces_in_the_same_order(texts, sentencepiece):
    words = words_of(texts)
    ours = _learn(words, N_MERGES)
    theirs = [sentencepiece.piece(i) for i in range(FIRST_MERGE, FIRST_MERGE + N_MERGES)]
    assert ours == theirs
    assert len(set(ours)) == N_MERGES
    # a partner that must differ: one rule less, and the lists part
    assert LEARN_MISTAKES["ties go to the pair that was seen first"](words, N_MERGES) != theirs


def test_the_rest_of_the_vocabulary_is_the_characters_by_frequency(texts, sentencepiece):
    theirs = [
        sentencepiece.piece(i) for i in range(FIRST_MERGE + N_MERGES, sentencepiece.vocab_size)
    ]
    assert theirs == characters_kept(words_of(texts))


def test_the_segmentation_is_sentencepieces_on_text_it_never_saw(texts, sentencepiece):
    merges = merges_of(sentencepiece)
    assert len(merges) == N_MERGES
    fresh = lines_of(d.text for d in documents(make_world(9), 11, 400))
    unseen = [line for line in fresh if line not in set(lines_of(texts))]
    assert len(unseen) > 300
    for line in [*unseen, "the  two   spaces ", "aaaa", "ssssssss", "12345"]:
        ours = _segment(line, merges)
        known = [p for p in ours if sentencepiece.processor.piece_to_id(p) != 0]
        if known == ours:  # characters outside the vocabulary become bytes there
            assert ours == sentencepiece.pieces(line), line
    assert _segment("the", merges) != ["\u2581", "t", "h", "e"]
