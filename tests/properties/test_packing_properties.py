"""Packing and isolation for any documents and any shape of batch."""

from itertools import islice

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2_lib.training.batches import PackedCorpus, isolate

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=14)
# Documents lie in order in a row, each in one piece, some perhaps absent.
ROWS = st.integers(1, 12).flatmap(
    lambda seq: st.lists(
        st.lists(st.integers(0, 3), min_size=seq, max_size=seq).map(sorted), min_size=1, max_size=3
    )
)


def corpus_of(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return PackedCorpus(np.arange(offsets[-1], dtype=np.uint16), offsets)


def whole_epoch(corpus, seed, number):
    return corpus.tokens(corpus.epoch(seed, number), np.arange(corpus.n_tokens))


@given(LENGTHS, st.integers(1, 4), st.integers(1, 6), st.integers(0, 30), st.integers(0, 3))
def test_batches_are_the_epochs_cut_into_rows(lengths, batch_size, seq_len, start, seed):
    corpus = corpus_of(lengths)
    size = batch_size * seq_len
    per_epoch = (corpus.n_tokens - 1) // size
    if per_epoch == 0:
        return
    stream = corpus.batches(seed=seed, batch_size=batch_size, seq_len=seq_len, start=start)
    for number, batch in enumerate(islice(stream, per_epoch + 2), start=start):
        ids, document = whole_epoch(corpus, seed, number // per_epoch)
        begin = number % per_epoch * size
        for row in range(batch_size):
            cut = slice(begin + row * seq_len, begin + (row + 1) * seq_len + 1)
            assert batch.ids[row].tolist() == ids[cut].tolist()
            assert batch.document[row].tolist() == document[cut].tolist()


@given(LENGTHS, st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_permutation_of_whole_documents(lengths, seed, number):
    corpus = corpus_of(lengths)
    ids, document = whole_epoch(corpus, seed, number)
    assert sorted(ids.tolist()) == list(range(corpus.n_tokens))
    assert sorted(set(document.tolist())) == list(range(len(lengths)))
    for n in range(len(lengths)):
        part = ids[document == n]
        assert part[0] in corpus.offsets[:-1]
        assert part.tolist() == list(range(part[0], part[0] + len(part)))
        assert part[-1] + 1 in corpus.offsets[1:]


@given(ROWS)
def test_isolation_is_what_a_loop_over_tokens_says(rows):
    positions, visible = isolate(torch.tensor(rows))
    for r, row in enumerate(rows):
        for i, mine in enumerate(row):
            assert positions[r, i] == sum(other == mine for other in row[:i])
            for j, other in enumerate(row):
                assert bool(visible[r, i, j]) == (j <= i and other == mine)
