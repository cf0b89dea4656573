"""Checks of encoding text to ids and decoding pieces to text, and the mistakes they recognise."""

from collections.abc import Callable, Sequence
from functools import partial

from llama2_lib.teaching.tokenizer import SPACE, _compare, _segment, little_tokenizer, merges_of
from llama2_lib.text.tokenizer import Tokenizer

Encode = Callable[[str, Tokenizer], Sequence[int]]
Decode = Callable[[Sequence[str]], str]


def _ids(
    text: str, tokenizer: Tokenizer, *, prefix: str = SPACE, unknown: bool = False
) -> list[int]:
    ids: list[int] = []
    for piece in _segment(text, merges_of(tokenizer), prefix=prefix):
        index = tokenizer.processor.piece_to_id(piece)
        known = index != tokenizer.unk_id
        as_bytes = [tokenizer.unk_id] if unknown else [3 + byte for byte in piece.encode()]
        ids += [index] if known else as_bytes
    return ids


ENCODE_MISTAKES: dict[str, Encode] = {
    "BOS is added twice": lambda text, tok: [tok.bos_id, tok.bos_id, *_ids(text, tok)],
    "BOS is missing": _ids,
    "EOS is added to an open text": lambda text, tok: [tok.bos_id, *_ids(text, tok), tok.eos_id],
    "an unknown character becomes <unk>, not its bytes": lambda text, tok: [
        tok.bos_id, *_ids(text, tok, unknown=True)
    ],
    "no space is put before the text": lambda text, tok: [
        tok.bos_id, *_ids(text, tok, prefix="")
    ],
}  # fmt: skip
_TEXTS = ("Mara was a cook.", "7 + 45 = 52", "na\u00efve \U0001f642", "\u4f60\u597d!")


def encodes(candidate: Encode) -> None:
    """Check `candidate(text, tokenizer)`: BOS and the ids of an open text come back."""
    tokenizer = little_tokenizer()
    _compare(
        lambda text: list(candidate(text, tokenizer)),
        lambda text: tokenizer.encode(text, bos=True),
        {n: partial(lambda f, text: f(text, tokenizer), f) for n, f in ENCODE_MISTAKES.items()},
        _TEXTS,
    )


def _decode(
    pieces: Sequence[str],
    *,
    space: str = " ",
    strip: int = 1,
    between: str = "",
    spelled: bool = False,
    alone: bool = False,
) -> str:
    raw: list[bytes] = []
    for piece in pieces:
        is_byte = not spelled and len(piece) == 6 and piece.startswith("<0x")
        raw.append(bytes([int(piece[3:5], 16)]) if is_byte else piece.encode())
    if alone:
        text = between.join(part.decode(errors="replace") for part in raw)
    else:
        text = between.encode().join(raw).decode(errors="replace")
    text = text.replace(SPACE, space)
    return text[strip:] if text.startswith(" ") else text


DECODE_MISTAKES: dict[str, Decode] = {
    "the space that was put before the text stays": partial(_decode, strip=0),
    "spaces are lost": partial(_decode, space=""),
    "U+2581 is not turned back into a space": partial(_decode, space=SPACE),
    "a space is put between pieces": lambda pieces: _decode(pieces, space="", between=" "),
    "bytes are spelled out by name": partial(_decode, spelled=True),
    "every byte is decoded alone, though a character may need four": partial(_decode, alone=True),
}


def decodes(candidate: Decode) -> None:
    """Check `candidate(pieces)`: the text that SentencePiece's pieces spell comes back."""
    pieces = little_tokenizer().pieces
    _compare(
        lambda text: candidate(pieces(text)),
        lambda text: text,
        {n: partial(lambda f, text: f(pieces(text)), f) for n, f in DECODE_MISTAKES.items()},
        _TEXTS,
    )
