"""Batches of pairs: what stands where, what is left out, and that a number names a batch."""

from itertools import islice

import pytest
import torch

from llama2_lib.training.pair_batches import EncodedPair, PairedAnswers, collate

ONE = EncodedPair([1, 5, 6, 2], [1, 5, 2], 0.5, (True, False))
TWO = EncodedPair([1, 7, 2], [1, 7, 8, 9, 2], 1.0, None)


def many(n, longest=30):
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, longest, (n, 2), generator=source).tolist()
    return [EncodedPair([i + 3] * a, [i + 4] * b, i / 10) for i, (a, b) in enumerate(lengths)]


def chosen_of(batch):
    return batch.ids[: len(batch.margin), 0].tolist()


def test_chosen_rows_come_first_and_padding_stands_on_the_right():
    batch = collate([ONE, TWO])
    assert batch.ids.tolist() == [
        [1, 5, 6, 2, 0],
        [1, 7, 2, 0, 0],
        [1, 5, 2, 0, 0],
        [1, 7, 8, 9, 2],
    ]
    assert batch.lengths.tolist() == [4, 3, 3, 5]
    assert batch.margin.tolist() == [0.5, 1.0]
    assert batch.is_safe.tolist() == [True, False, False, False]
    assert batch.labelled.tolist() == [True, False, True, False]


def test_every_pair_comes_once_an_epoch_in_another_order():
    pairs = PairedAnswers(many(50), longest=40)
    stream = list(islice(pairs.batches(batch_size=8), 14))
    first, second = (
        [index for batch in part for index in chosen_of(batch)] for part in (stream[:7], stream[7:])
    )
    assert sorted(first) == sorted(second) == list(range(3, 53))
    assert first != second
    assert {len(batch.margin) for batch in stream} == {7, 8}


def test_a_batch_is_named_by_its_number():
    pairs = PairedAnswers(many(50), longest=40)
    stream = list(islice(pairs.batches(batch_size=8), 12))
    for start in (1, 6, 9):
        again = next(pairs.batches(batch_size=8, start=start))
        assert torch.equal(again.ids, stream[start].ids)
    other = next(PairedAnswers(many(50), longest=40, seed=1).batches(batch_size=8))
    assert chosen_of(other) != chosen_of(stream[0])


def test_pairs_of_a_batch_have_similar_lengths():
    pairs = PairedAnswers(many(640), longest=40)
    batches = list(islice(pairs.batches(batch_size=10), 64))
    padded = sum(batch.ids.numel() for batch in batches)
    real = sum(int(batch.lengths.sum()) for batch in batches)
    unsorted = sum(collate(pairs.pairs[i : i + 10]).ids.numel() for i in range(0, 640, 10))
    assert padded < 0.8 * unsorted
    assert real == sum(len(p.chosen) + len(p.rejected) for p in pairs.pairs)


def test_what_teaches_nothing_is_counted():
    same, long = EncodedPair([1, 2], [1, 2]), EncodedPair([1] * 9, [1, 2])
    pairs = PairedAnswers([ONE, same, long, TWO, same], longest=8)
    assert pairs.counts() == {"pairs": 2, "identical": 2, "too_long": 1}
    assert PairedAnswers([ONE, long], longest=9).counts()["too_long"] == 0
    with pytest.raises(ValueError, match="1 have twice the same answer and 1 exceed 8 tokens"):
        PairedAnswers([same, long], longest=8)
