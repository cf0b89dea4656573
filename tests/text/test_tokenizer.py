"""SentencePiece with the paper's settings: bytes, digits, control ids, errors."""

import random

import pytest
import sentencepiece

from llama2_lib.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer

SENTENCE = "the quick brown fox jumps over a lazy dog while twenty more wait in 1987 or 2024"
WORDS = SENTENCE.split()


def texts(n=400, seed=3):
    source = random.Random(seed)
    return ["\n".join(" ".join(source.choices(WORDS, k=9)) for _ in range(2)) for _ in range(n)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(texts(), TokenizerConfig(vocab_size=340), folder / "tokenizer.model")


@pytest.fixture(scope="module")
def tok(path) -> Tokenizer:
    return load_tokenizer(path)


def test_the_ids_and_sizes_are_metas(tok):
    assert (tok.unk_id, tok.bos_id, tok.eos_id) == (0, 1, 2)
    assert tok.processor.pad_id() == -1
    assert tok.vocab_size == 340
    assert [tok.piece(index) for index in (0, 1, 2, 3, 258)] == [
        "<unk>", "<s>", "</s>", "<0x00>", "<0xFF>",
    ]  # fmt: skip


def test_a_text_begins_with_a_space_that_decoding_takes_away(tok):
    assert tok.pieces("the")[0].startswith("\u2581")
    assert tok.pieces("the") != tok.pieces(" the")
    assert tok.decode(tok.encode(" the")) == " the"


def test_unknown_characters_become_their_bytes(tok):
    wanted = [f"<0x{byte:02X}>" for byte in "\u4f60\U0001f98a".encode()]
    assert tok.pieces("\u4f60\U0001f98a")[1:] == wanted
    assert tok.encode("\n")[1:] == [3 + 10]


def test_without_bytes_they_become_unknown(tmp_path):
    config = TokenizerConfig(vocab_size=90, byte_fallback=False)
    bare = load_tokenizer(train_tokenizer(texts(), config, tmp_path / "t.model"))
    assert bare.unk_id in bare.encode("\u4f60")
    assert bare.unk_id not in bare.encode("the fox")


def test_every_digit_is_a_piece_of_its_own(tok):
    assert [p.lstrip("\u2581") for p in tok.pieces("2024") if p != "\u2581"] == list("2024")
    learned = [tok.piece(index) for index in range(259, tok.vocab_size)]
    for piece in learned:
        assert not (any(c.isdigit() for c in piece) and len(piece) > 1), piece
        assert "\n" not in piece
    assert "\u2581the" in learned


def test_without_splitting_a_year_is_one_piece(tmp_path):
    config = TokenizerConfig(vocab_size=340, split_digits=False)
    whole = load_tokenizer(train_tokenizer(texts(), config, tmp_path / "t.model"))
    assert whole.pieces("2024") == ["\u25812024"]


def test_pieces_stay_apart_even_where_joining_would_pay(tmp_path):
    """A text of one line over and over: nothing but the rules keeps its parts from merging."""
    line = "so it goes \u0434\u0430yes donaudampfschifffahrtsgesellschaft"
    varied = [line.replace("so", word) for word in WORDS for _ in range(50)]
    config = TokenizerConfig(vocab_size=370)
    tok = load_tokenizer(train_tokenizer(varied, config, tmp_path / "t.model"))
    learned = [tok.piece(index) for index in range(259, 370)]
    assert all("\u2581" not in piece[1:] for piece in learned)
    assert not any("\u0430y" in piece for piece in learned)
    assert any(len(piece) > 10 for piece in learned)
    assert max(map(len, learned)) <= 16


def test_runs_of_spaces_are_pieces_and_numbers_keep_to_themselves(tmp_path):
    varied = [f"{word}        x87b model87b" for word in WORDS for _ in range(50)]
    config = TokenizerConfig(vocab_size=330, split_digits=False)
    tok = load_tokenizer(train_tokenizer(varied, config, tmp_path / "t.model"))
    learned = [tok.piece(index) for index in range(259, 330)]
    assert "\u2581\u2581\u2581\u2581" in learned
    assert "87" in learned
    letters = [p for p in learned if any(c.isdigit() for c in p) and any(c.isalpha() for c in p)]
    assert letters == []


def test_characters_are_not_normalised(tok):
    assert tok.encode("\ufb01") != tok.encode("fi")
    assert tok.encode("\u00e9") != tok.encode("e\u0301")
    assert tok.encode("a  b") != tok.encode("a b")


def test_pieces_and_ids_belong_together(tok):
    for text in ("the lazy fox waits", "\u4f60 1987"):
        assert [tok.piece(index) for index in tok.encode(text)] == tok.pieces(text)


def test_training_depends_on_texts_and_settings_only(path, tmp_path):
    config = TokenizerConfig(vocab_size=340)
    again = train_tokenizer(iter(texts()), config, tmp_path / "again.model")
    lines = [line for text in texts() for line in text.split("\n")]
    cut = train_tokenizer(lines, config, tmp_path / "cut.model")
    assert again == tmp_path / "again.model"
    assert path.read_bytes() == again.read_bytes() == cut.read_bytes()
    # The same counts of other words: the vocabulary must follow the text.
    other = train_tokenizer((t[::-1] for t in texts()), config, tmp_path / "other.model")
    assert other.read_bytes() != path.read_bytes()


def test_the_file_states_metas_limits(path):
    """Fields 18 and 20 of its `TrainerSpec`: the longest line and the longest piece."""
    content = path.read_bytes()
    assert b"\x90\x01" + bytes([0x80 | 4192 % 128, 4192 // 128]) in content
    assert b"\xa0\x01" + bytes([16]) in content


def test_a_larger_vocabulary_writes_shorter(tok, tmp_path):
    small = load_tokenizer(
        train_tokenizer(texts(), TokenizerConfig(vocab_size=300), tmp_path / "t.model")
    )
    sample = " ".join(WORDS)
    assert len(tok.encode(sample)) < len(small.encode(sample)) < len(sample)


def test_a_file_and_its_folder_load_alike(path, tok):
    for place in (path.parent, str(path), str(path.parent)):
        assert load_tokenizer(place).pieces("the lazy fox") == tok.pieces("the lazy fox")


@pytest.mark.parametrize(
    ("size", "bytes_", "least"), [(259, True, 259), (0, True, 259), (3, False, 3)]
)
def test_a_vocabulary_too_small_for_the_fixed_pieces_is_refused(size, bytes_, least):
    with pytest.raises(ValueError, match=rf"must exceed {least}, .*; got {size}\. 512"):
        TokenizerConfig(vocab_size=size, byte_fallback=bytes_)
    assert TokenizerConfig(vocab_size=least + 1, byte_fallback=bytes_).vocab_size == least + 1


CAUSES = {
    "one word": (["ab"], r"must supply 300 pieces; they supply 265 at most\. Give more text, or"),
    "no text": ([], r"needs text to learn from; there is none"),
    "empty texts": (["", "\n"], r"needs text to learn from; there is none"),
    "many characters": (
        [chr(0x4E00 + number) * 3 for number in range(100)],
        r"vocab_size must be at least 360, a piece for every different.*; got 300\. Raise it",
    ),
    "lone surrogate": (["fine", "caf\ud800"], r"text 1 has a lone surrogate at character 3"),
    "no string": (["fine", b"bytes"], r"text 1 must be a string; got bytes"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_what_keeps_a_tokenizer_from_being_trained_is_named(tmp_path, name):
    given, reason = CAUSES[name]
    with pytest.raises(ValueError, match=reason) as caught:
        train_tokenizer(given, TokenizerConfig(vocab_size=300), tmp_path / "t.model")
    assert ("vocab_size" in str(caught.value)) == (name in ("one word", "many characters"))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_texts_is_raised_as_it_is(tmp_path):
    def broken():
        yield from texts()
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        train_tokenizer(broken(), TokenizerConfig(vocab_size=300), tmp_path / "t.model")


def test_an_error_of_unknown_cause_is_not_blamed_on_the_vocabulary(tmp_path, monkeypatch):
    def broken(**settings):
        raise RuntimeError("INTERNAL: no idea")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", broken)
    with pytest.raises(RuntimeError, match="800 lines; SentencePiece said: INTERNAL: no idea"):
        train_tokenizer(texts(), TokenizerConfig(vocab_size=300), tmp_path / "t.model")


def padded(word, n_bytes):
    """A line of so many bytes with a new word at both ends and nothing but old ones between."""
    filler = "fox lazy " * n_bytes
    return f"{word} {filler[: n_bytes - 2 * len(word) - 2]} {word}"


@pytest.mark.parametrize("n_bytes", [4_191, 4_192, 4_193, 9_000])
def test_long_lines_are_learned_from_to_their_end(tmp_path, n_bytes):
    line = padded("xylophone", n_bytes)
    assert len(line) == n_bytes
    config = TokenizerConfig(vocab_size=380)
    long = train_tokenizer([*texts(), *[line] * 60], config, tmp_path / "long.model")
    assert "\u2581xylophone" in load_tokenizer(long).pieces("xylophone")
    words = train_tokenizer([*texts(), *line.split(" ") * 60], config, tmp_path / "cut.model")
    assert long.read_bytes() == words.read_bytes(), "no word is cut, none is lost"


def test_no_part_of_a_line_is_longer_than_sentencepiece_takes(tmp_path):
    """The second space stands one byte too far to the right to end the first part."""
    line = "xylophone " + "b" * 4_183 + " fox"
    config = TokenizerConfig(vocab_size=380)
    tok = load_tokenizer(train_tokenizer([*texts(), *[line] * 120], config, tmp_path / "t.model"))
    assert line.rindex(" ") == 4_193
    assert tok.pieces("xylophone") == ["\u2581xylophone"]


def test_a_line_without_spaces_is_cut_between_characters(tmp_path):
    line = "\u4f60\u597d" * 3_000  # 18,000 bytes
    config = TokenizerConfig(vocab_size=380)
    tok = load_tokenizer(train_tokenizer([*texts(), line], config, tmp_path / "t.model"))
    assert "\u4f60\u597d" in "".join(tok.pieces("\u4f60\u597d"))
    assert "\ufffd" not in "".join(tok.piece(index) for index in range(340))
    assert all(len(piece) < 6 or piece[0] != "<" for piece in tok.pieces("\u4f60\u597d"))


def test_a_line_with_sentencepieces_own_mark_is_not_left_out(tmp_path):
    """It skips lines that hold U+2585, its sign for the unknown."""
    config = TokenizerConfig(vocab_size=380)
    marked = ["a xylophone \u2585 xylophone"] * 60
    tok = load_tokenizer(train_tokenizer([*texts(), *marked], config, tmp_path / "t.model"))
    assert tok.pieces("xylophone") == ["\u2581xylophone"]
    assert tok.decode(tok.encode("a \u2585")) == "a \u2585"


@pytest.mark.parametrize("many", [False, True])
def test_a_lone_surrogate_is_named_when_encoding(tok, many):
    with pytest.raises(
        ValueError, match=r"must be valid Unicode; .* lone surrogate at character 3"
    ):
        tok.encode_batch(["fine", "caf\ud800"]) if many else tok.encode("caf\ud800")
    with pytest.raises(ValueError, match="lone surrogate"):
        tok.pieces("caf\ud800")


@pytest.mark.parametrize("given", [b"ab", ["ab"], ("ab",), None, 5, {"role": "user"}])
def test_only_a_string_is_encoded(tok, given):
    for encode in (tok.encode, tok.pieces, lambda text: tok.encode_batch(["fine", text])):
        with pytest.raises(ValueError, match=rf"must be a string; got {type(given).__name__}"):
            encode(given)


def test_a_string_is_no_batch(tok):
    with pytest.raises(ValueError, match="must be a list of strings; got the string 'abc'"):
        tok.encode_batch("abc")


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\.model file; .*none\.model does not exist"):
        load_tokenizer(tmp_path / "none.model")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model does not exist"):
        load_tokenizer(tmp_path)


def test_a_file_that_is_no_tokenizer_is_refused(path, tmp_path):
    whole, unread = path.read_bytes(), "be a SentencePiece model; it cannot"
    for name, content, reason in [
        ("text", b"not a model", unread),
        ("cut", whole[: len(whole) // 2], unread),
        ("empty", b"", "(be a SentencePiece|define BOS)"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} must {reason}"):
            load_tokenizer(tmp_path / name)


def test_a_tokenizer_has_control_ids_of_which_one_may_be_zero(tmp_path):
    for name, ids in [("none", {"bos_id": -1}), ("zero", {"bos_id": 0, "eos_id": 1, "unk_id": 2})]:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts()), model_prefix=str(tmp_path / name), vocab_size=60,
            model_type="bpe", minloglevel=2, **ids,
        )  # fmt: skip
    with pytest.raises(ValueError, match="must define BOS and EOS ids; got -1 and "):
        load_tokenizer(tmp_path / "none.model")
    assert load_tokenizer(tmp_path / "zero.model").bos_id == 0
