"""Every known mistake in a tokenizer is rejected and named; right code passes, however written."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from llama2_lib.teaching import round_trip, tokenizer
from llama2_lib.teaching.check import CheckFailed


def cases(*pairs):
    return [
        pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
        for check, mistakes in pairs
        for name, wrong in mistakes.items()
    ]


@pytest.mark.parametrize(
    ("check", "name", "wrong"),
    cases(
        (tokenizer.allows, tokenizer.ALLOWS_MISTAKES),
        (tokenizer.learns, tokenizer.LEARN_MISTAKES),
        (tokenizer.segments, tokenizer.SEGMENT_MISTAKES),
        (round_trip.encodes, round_trip.ENCODE_MISTAKES),
        (round_trip.decodes, round_trip.DECODE_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (tokenizer.allows, lambda piece: piece != "the"),
        (tokenizer.learns, lambda words, n: ["th"] * n),
        (tokenizer.learns, lambda words, n: []),
        (tokenizer.segments, lambda text, pieces: [text]),
        (round_trip.encodes, lambda text, tok: [3]),
        (round_trip.decodes, lambda pieces: "Mara"),
    ],
)
def test_an_unknown_mistake_is_rejected_too(check, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert "it looks as if" not in str(failure.value)


def allowed_by_pattern(piece):
    if len(piece) > 16:
        return False
    return bool(re.fullmatch("\u2581?(?:[^\\W\\d_]*|[\\W_]*)|[0-9]", piece)) and not re.search(
        "(?<!^)\u2581", piece
    )


def learned_as_strings(words, n):
    """Keep each word as one string with borders between its parts, as in Sennrich's paper."""
    corpus = {"|" + "|".join(word) + "|": number for word, number in words.items()}
    learned = []
    while len(learned) < n:
        counts = Counter()
        for word, number in corpus.items():
            parts = word.strip("|").split("|")
            for left, right in pairwise(parts):
                if left + right not in learned and allowed_by_pattern(left + right):
                    counts[left, right] += number
        order = sorted(counts, key=lambda p: (-counts[p], len(p[0] + p[1]), p[0] + p[1]))
        left, right = order[0]
        learned.append(left + right)
        corpus = {w.replace(f"|{left}|{right}|", f"|{left}{right}|"): k for w, k in corpus.items()}
    return learned


def segmented_merge_by_merge(text, pieces):
    """Go through the merges in order and apply each wherever it fits."""
    parts = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        before = list(parts)
        for piece in pieces:
            at = 0
            while at + 1 < len(parts):
                if parts[at] + parts[at + 1] == piece:
                    parts[at : at + 2] = [piece]
                at += 1
            if parts != before:
                break  # a merge may make an earlier one possible: begin again
        if parts == before:
            return parts


def decoded_by_the_model(pieces):
    processor = tokenizer.little_tokenizer().processor
    return processor.decode_pieces(list(pieces))


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (tokenizer.allows, allowed_by_pattern),
        (tokenizer.learns, learned_as_strings),
        (tokenizer.segments, segmented_merge_by_merge),
        (round_trip.encodes, lambda text, tok: tok.encode(text, bos=True)),
        (round_trip.decodes, decoded_by_the_model),
    ],
)
def test_another_right_derivation_passes(check, right):
    check(right)


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (tokenizer.allows, tokenizer._allowed),
        (tokenizer.learns, tokenizer._learn),
        (tokenizer.segments, tokenizer._segment),
        (round_trip.encodes, lambda text, tok: [tok.bos_id, *round_trip._ids(text, tok)]),
        (round_trip.decodes, round_trip._decode),
    ],
)
def test_what_the_mistakes_are_made_from_is_right(check, right):
    check(right)
