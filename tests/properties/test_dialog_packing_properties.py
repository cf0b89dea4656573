"""Packing of any examples into rows of any length."""

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llama2_lib.training.batches import PackedDialogs, first_fit, shorten

TURN = st.tuples(st.integers(0, 4), st.integers(0, 4))
DIALOG = st.lists(TURN, min_size=1, max_size=3)


def example_of(turns, number):
    """Ids tell which example and which place a token comes from."""
    mask = [m for p, a in turns for m in [False] * (1 + p) + [True] * (a + 1)]
    return [1000 * (number + 1) + t for t in range(len(mask))], mask


@given(st.lists(DIALOG, min_size=1, max_size=9), st.integers(1, 30), st.integers(0, 2))
def test_rows_hold_beginnings_of_examples_that_end_with_an_answer(dialogs, seq_len, seed):
    examples = [example_of(turns, number) for number, turns in enumerate(dialogs)]
    ends = [np.cumsum([p + a + 2 for p, a in turns]) for turns in dialogs]
    wanted = {}
    for number, borders in enumerate(ends):
        fitting = borders[borders <= seq_len + 1]
        if len(fitting):
            wanted[number] = int(fitting[-1])
    if not wanted:
        return
    packed = PackedDialogs(examples, seq_len=seq_len, seed=seed)
    found = {}
    for ids, mask, document in zip(packed.ids, packed.loss_mask, packed.document, strict=True):
        for part in sorted(set(document.tolist()) - {-1}):
            inside = document == part
            number = int(ids[inside][0]) // 1000 - 1
            length = int(inside.sum())
            assert number not in found
            found[number] = length
            assert ids[inside].tolist() == examples[number][0][:length]
            assert mask[inside].tolist() == examples[number][1][:length]
        assert not mask[document < 0].any()
    assert found == wanted
    assert packed.n_dropped == len(dialogs) - len(wanted)
    assert packed.n_shortened == sum(wanted[n] < len(examples[n][0]) for n in wanted)


@given(DIALOG, st.integers(0, 40))
def test_a_shortened_example_is_the_longest_beginning_that_is_a_dialog(turns, longest):
    ids, mask = example_of(turns, 0)
    borders = np.cumsum([p + a + 2 for p, a in turns])
    wanted = max((int(border) for border in borders if border <= longest), default=None)
    cut = shorten((ids, mask), longest)
    assert cut == (None if wanted is None else (ids[:wanted], mask[:wanted]))


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(9, 20))
def test_first_fit_wastes_less_than_half(lengths, capacity):
    rows = first_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    fill = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < full <= capacity for full in fill)
    # Of two rows that are at most half full, the later one's items would have gone to the first.
    assert sum(2 * full <= capacity for full in fill) <= 1


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 20))
def test_a_batch_is_a_function_of_its_number(n_rows, batch_size, start):
    packed = PackedDialogs([example_of([(3, 3)], n) for n in range(n_rows)], seq_len=7)
    stream = packed.batches(batch_size=batch_size, start=start)
    whole = list(islice(packed.batches(batch_size=batch_size), start + 2))
    for batch, wanted in zip(islice(stream, 2), whole[start:], strict=True):
        assert batch.ids.tolist() == wanted.ids.tolist()
        assert 1 <= len(batch.ids) <= batch_size
    per_epoch = packed.batches_per_epoch(batch_size)
    first = [row[0] for batch in islice(packed.batches(batch_size=batch_size), per_epoch)
             for row in batch.ids.tolist()]  # fmt: skip
    assert sorted(first) == sorted(packed.ids[:, 0].tolist())
