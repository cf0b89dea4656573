"""Checks of byte-pair encoding, from merges to ids and back, and the mistakes they recognise.

SentencePiece is the authority: every check trains or asks a real model on a little of the world's
text, and names the mistake that gives the learner's answer.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from llama2_lib.teaching.check import CheckFailed, Code, Mistakes, recognise, slips
from llama2_lib.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from llama2_lib.world import documents, make_world

SPACE = "\u2581"
N_MERGES = 120
FIRST_MERGE = 259  # after three control ids and 256 bytes

Words = Mapping[str, int]


def lines_of(texts: Iterable[str]) -> list[str]:
    """Cut texts at newlines, as the tokenizer's training does."""
    return [line for text in texts for line in text.split("\n") if line]


def words_of(texts: Iterable[str]) -> Counter[str]:
    """Count the words of texts, each with the U+2581 that stands for the space before it."""
    return Counter(f"{SPACE}{word}" for line in lines_of(texts) for word in line.split(" "))


def characters_kept(words: Words, coverage: float = 0.99995) -> list[str]:
    """Return the characters that get a piece of their own, the most frequent first.

    SentencePiece takes characters until `coverage` of the text is spelled; the rest, the rarest,
    is left to the bytes. The default is Llama 2's setting, as in `train_tokenizer`.
    """
    counts = Counter[str]()
    for word, number in words.items():
        for character in word:
            counts[character] += number
    characters, covered = [], 0
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        if covered / counts.total() >= coverage:
            break
        characters.append(character)
        covered += counts[character]
    return characters


@cache
def _little_text() -> tuple[str, ...]:
    return tuple(document.text for document in documents(make_world(0), 0, 120))


@cache
def little_tokenizer() -> Tokenizer:
    """Return SentencePiece trained on a little of the world, with `N_MERGES` merges."""
    n_characters = len(characters_kept(words_of(_little_text())))
    config = TokenizerConfig(vocab_size=FIRST_MERGE + N_MERGES + n_characters)
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(train_tokenizer(_little_text(), config, Path(folder) / "t.model"))


def merges_of(tokenizer: Tokenizer) -> list[str]:
    """Return the merged pieces of a tokenizer with bytes, in the order they were learned."""
    every = (tokenizer.piece(index) for index in range(FIRST_MERGE, tokenizer.vocab_size))
    return [piece for piece in every if len(piece) > 1]


def _compare(
    candidate: Code, mistakes: Mistakes, texts: Sequence[str], right: Code, given: Code
) -> None:
    """Compare `candidate(*given(text))` with `right(text)` on all: mistakes may agree on one."""
    expected = [right(text) for text in texts]

    def run(code: Code) -> list[Any]:
        pairs = zip(texts, expected, strict=True)
        answers = ((code(*given(text)), wanted) for text, wanted in pairs)
        return [list(answer) if isinstance(wanted, list) else answer for answer, wanted in answers]

    actual = run(candidate)
    if actual == expected:
        return
    triples = zip(texts, actual, expected, strict=True)
    text, wrong, wanted = next(triple for triple in triples if triple[1] != triple[2])
    told = f"{_short(text, 40)} must give {_short(wanted)}, not {_short(wrong)}"
    recognise(lambda code: actual == run(code), mistakes, f"{told}; ")
    raise CheckFailed(f"{told}.")


def _short(value: object, longest: int = 90) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _allowed(piece: str) -> bool:
    body = piece.removeprefix(SPACE)
    if SPACE in body and body.strip(SPACE):
        return False
    if len(piece) > 1 and any(character.isdigit() for character in piece):
        return False
    return len(piece) <= 16 and len({character.isalpha() for character in body}) <= 1


ALLOWS_MISTAKES = slips(_allowed)("""
digits may join || any(character.isdigit() for character in piece) => False
letters and signs may join || len(piece) <= 16
a piece may run across a space || piece.removeprefix(SPACE) => piece.replace(SPACE, "")
there is no limit of 16 characters || len(piece) <= 16 and =>
everything is allowed || body = piece.removeprefix(SPACE) => return True
""")
_CANDIDATES = (
    *("the", f"{SPACE}the", "?", '."', f'{SPACE}"', "12", f"{SPACE}7", "a1", "INST]", "e."),
    *(f"of{SPACE}the", f"e{SPACE}", f"{SPACE}[", "x" * 16, "x" * 17, f"{SPACE}{'x' * 16}"),
)


def allows(candidate: Code) -> None:
    """Check `candidate(piece)`, which says whether a merge may make this piece."""

    def run(rule: Code) -> list[bool]:
        return [bool(rule(piece)) for piece in _CANDIDATES]

    actual, expected = run(candidate), run(_allowed)
    if actual != expected:
        triples = zip(_CANDIDATES, actual, expected, strict=True)
        words = f"wrong about {', '.join(piece for piece, ours, right in triples if ours != right)}"
        recognise(lambda wrong: actual == run(wrong), ALLOWS_MISTAKES, f"{words}; ")
        raise CheckFailed(f"{words}.")


def _merged(word: Sequence[str], left: str, right: str) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in word:
        # the border keeps a fresh merge from being the left half of the next one
        if merged and merged[-1] == left and piece == right:
            merged[-1:] = [left + right, ""]
        else:
            merged.append(piece)
    return tuple(piece for piece in merged if piece)


def _learn(words: Words, n: int) -> list[str]:
    corpus = [(tuple(word), number) for word, number in words.items()]
    pieces: list[str] = []
    while len(pieces) < n:
        counts = Counter[tuple[str, str]]()
        for word, number in corpus:
            for pair in pairwise(word):
                counts[pair] += number
        order = sorted(counts, key=lambda p: (-counts[p], len("".join(p)), "".join(p)))
        possible = (p for p in order if "".join(p) not in pieces and _allowed("".join(p)))
        pair = next(possible, None)
        if pair is None:
            break
        left, right = pair
        pieces.append(left + right)
        corpus = [(_merged(word, left, right), number) for word, number in corpus]
    return pieces


LEARN_MISTAKES = slips(_learn)("""
every distinct word counts once, however often it occurs || tuple(word), number => tuple(word), 1
the words are not rewritten after a merge || _merged(word, left, right) => word
ties go to the longer piece || len("".join(p)), => -len("".join(p)),
ties go to the pair that was seen first || , len("".join(p)), "".join(p)) => ,)
digits may join || _allowed( => ALLOWS_MISTAKES["digits may join"](
letters and signs may join || _allowed( => ALLOWS_MISTAKES["letters and signs may join"](
""")


def learns(candidate: Code) -> None:
    """Check `candidate(words, n)`: `words` counts words as `words_of` does, pieces come back."""
    words = words_of(_little_text())
    expected = merges_of(little_tokenizer())
    actual = list(candidate(words, N_MERGES))
    if actual == expected:
        return
    told = f"{len(expected)} pieces must come back, got {len(actual)}"
    if len(actual) == len(expected):
        at = next(at for at, piece in enumerate(actual) if piece != expected[at])
        told = f"merge {at} is {actual[at]!r}, SentencePiece has {expected[at]!r}"
    recognise(lambda wrong: actual == wrong(words, N_MERGES), LEARN_MISTAKES, f"{told}; ")
    raise CheckFailed(f"{told}.")


def _segment(text: str, pieces: Sequence[str]) -> list[str]:
    rank = {piece: index for index, piece in enumerate(pieces)}
    parts = list(SPACE + text.replace(" ", SPACE))
    while pairs := [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in rank]:
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _longest_match(text: str, pieces: Sequence[str]) -> list[str]:
    rest, parts = SPACE + text.replace(" ", SPACE), []
    while rest:
        fitting = [piece for piece in pieces if rest.startswith(piece)]
        parts.append(max(fitting, key=len, default=rest[0]))
        rest = rest[len(parts[-1]) :]
    return parts


SEGMENT_MISTAKES = slips(_segment)("""
the longest piece is taken from the left, not the earliest merge first
    || _longest_match(text, pieces)
no space is put before the text || SPACE + text => text
spaces stay spaces instead of becoming U+2581
    || [part.replace(chr(0), " ") for part in _segment(text.replace(" ", chr(0)), pieces)]
""")


def segments(candidate: Code) -> None:
    """Check `candidate(text, pieces)`: `pieces` in the order they were learned, parts come back."""
    tokenizer = little_tokenizer()
    merges = merges_of(tokenizer)
    texts = list(dict.fromkeys(lines_of(_little_text())))[:60]
    _compare(candidate, SEGMENT_MISTAKES, texts, tokenizer.pieces, lambda text: (text, merges))


def _ids(text: str, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = []
    for piece in _segment(text, merges_of(tokenizer)):
        index = tokenizer.processor.piece_to_id(piece)
        as_bytes = [3 + byte for byte in piece.encode()]
        ids += [index] if index != tokenizer.unk_id else as_bytes
    return ids


ENCODE_MISTAKES = slips(_ids)("""
BOS is added twice || [tokenizer.bos_id, tokenizer.bos_id, *ids]
BOS is missing || ids
EOS is added to an open text || [tokenizer.bos_id, *ids, tokenizer.eos_id]
an unknown character becomes <unk>, not its bytes
    || else as_bytes => else [index] ;; [tokenizer.bos_id, *ids]
no space is put before the text
    || _segment( => SEGMENT_MISTAKES["no space is put before the text"]( ;; [tokenizer.bos_id, *ids]
""")
_TEXTS = ("Mara was a cook.", "7 + 45 = 52", "na\u00efve \U0001f642", "\u4f60\u597d!")


def encodes(candidate: Code) -> None:
    """Check `candidate(text, tokenizer)`: BOS and the ids of an open text come back."""
    tokenizer = little_tokenizer()
    right = partial(tokenizer.encode, bos=True)
    _compare(candidate, ENCODE_MISTAKES, _TEXTS, right, lambda text: (text, tokenizer))


def _as_bytes(piece: str) -> bytes:
    is_byte = len(piece) == 6 and piece.startswith("<0x")
    return bytes([int(piece[3:5], 16)]) if is_byte else piece.encode()


def _decode(pieces: Sequence[str]) -> str:
    text = b"".join(map(_as_bytes, pieces)).decode(errors="replace").replace(SPACE, " ")
    return text[1:] if text.startswith(" ") else text


DECODE_MISTAKES = slips(_decode)("""
the space that was put before the text stays || text
spaces are lost || SPACE, " " => SPACE, ""
U+2581 is not turned back into a space || .replace(SPACE, " ") =>
a space is put between pieces || b"" => b" " ;; SPACE, " " => SPACE, ""
bytes are spelled out by name || _as_bytes => str.encode
every byte is decoded alone, though a character may need four
    || b"".join(map(_as_bytes, pieces)).decode(errors="replace")
    => "".join(_as_bytes(piece).decode(errors="replace") for piece in pieces)
""")


def decodes(candidate: Code) -> None:
    """Check `candidate(pieces)`: the text that SentencePiece's pieces spell comes back."""
    pieces = little_tokenizer().pieces
    _compare(candidate, DECODE_MISTAKES, _TEXTS, str, lambda text: (pieces(text),))
