"""SentencePiece with the paper's settings (section 2.2; `paper_facts` 1.6).

BPE, every number split into single digits, unknown characters spelled as UTF-8 bytes, text
left as it is (identity normaliser), no padding token.
"""

import importlib
import io
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from llama2_lib import storage

LONGEST_LINE = 4_192
"""Bytes of a line that SentencePiece learns from, as in the released `tokenizer.model`; it leaves
longer ones out, so they are cut before."""
_LEFT_OUT = "\u2585"  # SentencePiece's own sign for the unknown: it skips lines that hold it
CHARACTER_COVERAGE, LONGEST_PIECE = 0.99995, 16
"""Share of all characters that are pieces, and characters of a piece, as in Meta's file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """What the course may vary; everything else is as in the released `tokenizer.model`."""

    vocab_size: int = 1024
    """Number of pieces, the 3 control ids and 256 bytes included; the paper uses 32,000."""
    split_digits: bool = True
    """Whether every digit is a piece of its own, as in the paper."""
    byte_fallback: bool = True
    """Whether an unknown character becomes its UTF-8 bytes instead of `<unk>`."""

    def __post_init__(self) -> None:
        least = 3 + 256 * self.byte_fallback
        if self.vocab_size <= least:
            raise ValueError(
                f"vocab_size must exceed {least}, the control ids and bytes; got "
                f"{self.vocab_size}. 512 is the smallest that compresses anything."
            )


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, path: Path) -> Path:
    """Learn a BPE vocabulary from `texts` and write it to `path`.

    Texts are cut at newlines, as the paper's were, so a newline is always the byte piece
    `<0x0A>`; lines too long for SentencePiece are cut at spaces.

    Raises:
        ValueError: There is no text, it is too little for that many pieces or has too many
            characters for so few, or one of the texts is no valid Unicode.
    """
    # A list, so that an error of the texts is raised here and not inside SentencePiece.
    lines = list(_lines(texts))
    if not lines:
        raise ValueError("a tokenizer needs text to learn from; there is none. Give it documents.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe",
            vocab_size=config.vocab_size, character_coverage=CHARACTER_COVERAGE,
            max_sentence_length=LONGEST_LINE, max_sentencepiece_length=LONGEST_PIECE,
            split_digits=config.split_digits, split_by_unicode_script=True,
            split_by_whitespace=True, split_by_number=True, byte_fallback=config.byte_fallback,
            allow_whitespace_only_pieces=True, normalization_rule_name="identity",
            add_dummy_prefix=True, remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2,
            pad_id=-1, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise _cause(str(error), config.vocab_size, len(lines)) from None
    storage.write_atomically(path, model.getvalue())
    return path


def _cause(message: str, vocab_size: int, n_lines: int) -> Exception:
    """Return the error that says what SentencePiece means."""
    if most := re.search(r"set it to a value <= (\d+)", message):
        return ValueError(
            f"the texts must supply {vocab_size} pieces; they supply {most[1]} at most. Give more "
            f"text, or set vocab_size={most[1]} or less in TokenizerConfig."
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return ValueError(
            f"vocab_size must be at least {least[1]}, a piece for every different character of the "
            f"texts and for every byte and control id; got {vocab_size}. Raise it in "
            "TokenizerConfig."
        )
    return RuntimeError(f"no pieces came of {n_lines} lines; SentencePiece said: {message}")


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines that are learned from; nothing is left out but empty ones."""
    for number, text in enumerate(texts):
        check_unicode(text, f"text {number}")
        for line in re.split(f"[\n{_LEFT_OUT}]", text):
            if line:
                yield from _cut(line)


def _cut(line: str) -> Iterator[str]:
    """Yield a line in parts that are short enough, cut at spaces or else between characters."""
    content, start = line.encode(), 0
    while len(content) - start > LONGEST_LINE:
        end = content.rfind(b" ", start + 1, start + LONGEST_LINE + 1)
        after = end + 1  # every part begins with a space of its own
        if end < 0:
            end = start + LONGEST_LINE
            while content[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            after = end
        yield content[start:end].decode()
        start = after
    if start < len(content):
        yield content[start:].decode()


def check_unicode(text: object, where: str = "the text") -> None:
    """Refuse what is no string, and half a character: a surrogate without its other half.

    Such halves come from JSON and from bytes that were decoded with `surrogateescape`, as Python
    decodes what is typed.
    """
    if not isinstance(text, str):
        raise ValueError(
            f"{where} must be a string; got {type(text).__name__}. Decode bytes, and give the "
            "strings of a list one by one."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text must be valid Unicode; {where} has a lone surrogate at character "
            f"{error.start}. Decode the text again with errors='replace'."
        ) from None


class Tokenizer:
    """A loaded SentencePiece model, in the shape of Meta's `Tokenizer`."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor):
        self.processor = processor
        self.bos_id: int = processor.bos_id()
        self.eos_id: int = processor.eos_id()
        self.unk_id: int = processor.unk_id()
        self.vocab_size: int = processor.vocab_size()

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the piece ids of `text`, with control ids only where asked for.

        Control ids never come from text: the string `<s>` is spelled out like any other.

        Raises:
            ValueError: `text` is no string, or no valid Unicode.
        """
        check_unicode(text)
        return [self.bos_id] * bos + self.processor.encode(text) + [self.eos_id] * eos

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode` of each text, several times faster than one by one."""
        if isinstance(texts, str):
            raise ValueError(
                f"texts must be a list of strings; got the string {texts[:40]!r}. Use encode."
            )
        for index, text in enumerate(texts):
            check_unicode(text, f"text {index}")
        return self.processor.encode(list(texts), num_threads=-1)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of piece ids; control ids become nothing."""
        return self.processor.decode([int(index) for index in ids])

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of `text` as strings; U+2581 marks a space."""
        check_unicode(text)
        return self.processor.encode(text, out_type=str)

    def piece(self, index: int) -> str:
        """Return one piece by its id."""
        return self.processor.id_to_piece(int(index))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load the tokenizer of a folder (ours, Meta's or Hugging Face's), or of a file.

    A file is a SentencePiece `.model`, llama2.c's `tokenizer.bin` (or the model beside it) or a
    `.gguf`; the last two need the extra `convert`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no SentencePiece model, or lacks a BOS or EOS id.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".bin":
        folder = path if path.is_dir() else path.parent
        beside = [folder / "tokenizer.model", folder / "tokenizer.bin"]
        path = next((each for each in beside if each.is_file()), beside[0])
    if not path.is_file():
        raise FileNotFoundError(
            f"a tokenizer must be a SentencePiece .model file; {path} does not exist."
        )
    read = {".bin": _of_llama2c, ".gguf": _of_gguf}.get(path.suffix, Path.read_bytes)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=read(path))
    except RuntimeError as error:
        raise ValueError(
            f"{path} must be a SentencePiece model; it cannot be read: {error}"
        ) from None
    tokenizer = Tokenizer(processor)
    if min(tokenizer.bos_id, tokenizer.eos_id) < 0:
        raise ValueError(
            f"{path} must define BOS and EOS ids; got {tokenizer.bos_id} and {tokenizer.eos_id}."
        )
    return tokenizer


def _of_llama2c(path: Path) -> bytes:
    """Read llama2.c's list of pieces with their scores, in which a space is a space."""
    raw, at, pieces = path.read_bytes(), 4, []
    try:
        while at < len(raw):
            score, length = struct.unpack_from("<fi", raw, at)
            at += 8 + length
            piece = raw[at - length : at].decode("utf-8").replace(" ", "\u2581")
            control = {1: "<s>", 2: "</s>"}.get(len(pieces))
            kind = 3 if control else 6 if re.fullmatch("<0x[0-9A-F]{2}>", piece) else 1
            pieces.append((control or piece, score, 2 if not pieces else kind))
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} must be a tokenizer of llama2.c; it is damaged: {error}"
        ) from None
    return _sentencepiece(pieces)


def _of_gguf(path: Path) -> bytes:
    import gguf

    told = gguf.GGUFReader(path).fields
    kind, *held = (
        told[f"tokenizer.ggml.{name}"].contents()
        for name in ("model", "tokens", "scores", "token_type")
    )
    if kind != "llama":
        raise ValueError(f"{path} must hold a tokenizer of SentencePiece; its kind is {kind!r}.")
    return _sentencepiece(zip(*held, strict=True))


def _sentencepiece(pieces: Iterable[tuple[str, float, int]]) -> bytes:
    """Return a model of pieces with scores and kinds, with the settings of Llama's."""
    model = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = 2  # BPE
    model.trainer_spec.byte_fallback = any(piece.type == 6 for piece in model.pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def write_llama2c(tokenizer: Tokenizer, path: Path) -> None:
    """Write llama2.c's `tokenizer.bin`: every piece with its score."""
    sp, named = tokenizer.processor, {tokenizer.bos_id: "\n<s>\n", tokenizer.eos_id: "\n</s>\n"}
    pieces = [
        named.get(index, sp.id_to_piece(index)).replace("\u2581", " ").encode()
        for index in range(tokenizer.vocab_size)
    ]
    entries = [
        struct.pack("<fi", sp.get_score(index), len(piece)) + piece
        for index, piece in enumerate(pieces)
    ]
    path.write_bytes(struct.pack("<i", max(map(len, pieces))) + b"".join(entries))
