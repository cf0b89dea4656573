"""SentencePiece with the paper's settings (section 2.2; `paper_facts` 1.6).

BPE, every number split into single digits, unknown characters spelled as UTF-8 bytes, text
left as it is (identity normaliser), no padding token.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from llama2_lib import storage


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
    `<0x0A>`. The result depends on nothing but the texts and the settings.

    Raises:
        ValueError: The texts are too few for that many pieces.
    """
    lines = (line for text in texts for line in text.split("\n") if line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            character_coverage=0.99995,
            max_sentence_length=4192,
            max_sentencepiece_length=16,
            split_digits=config.split_digits,
            split_by_unicode_script=True,
            split_by_whitespace=True,
            split_by_number=True,
            byte_fallback=config.byte_fallback,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"the texts must supply {config.vocab_size} pieces; SentencePiece said: {error}. "
            "Lower vocab_size or give more text."
        ) from None
    storage.write_atomically(path, model.getvalue())
    return path


class Tokenizer:
    """A loaded SentencePiece model, in the shape of Meta's `Tokenizer`."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor):
        self.processor = processor
        self.bos_id: int = processor.bos_id()
        self.eos_id: int = processor.eos_id()
        self.unk_id: int = processor.unk_id()
        self.n_words: int = processor.vocab_size()
        """Number of pieces; Meta's name."""

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self.n_words

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the piece ids of `text`, with control ids only where asked for.

        Control ids never come from text: the string `<s>` is spelled out like any other.
        """
        ids = self.processor.encode(text)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode` of each text, several times faster than one by one."""
        return self.processor.encode(list(texts), num_threads=-1)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of piece ids; control ids become nothing."""
        return self.processor.decode([int(index) for index in ids])

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of `text` as strings; U+2581 marks a space."""
        return self.processor.encode(text, out_type=str)

    def piece(self, index: int) -> str:
        """Return one piece by its id."""
        return self.processor.id_to_piece(int(index))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a SentencePiece `.model`, or the `tokenizer.model` of a folder: ours or Meta's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no SentencePiece model, or lacks a BOS or EOS id.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.model"
    if not path.is_file():
        raise FileNotFoundError(
            f"a tokenizer must be a SentencePiece .model file; {path} does not exist."
        )
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
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
