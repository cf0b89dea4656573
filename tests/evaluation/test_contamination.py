"""Matches against brute force, the skip budget, the four subsets, power and false alarms."""

import numpy as np
import pytest

from llama2_lib.evaluation import contamination as c


def brute(tokens, training):
    """The longest match by trying every place, step by step."""
    best = 0
    for place in range(len(training)):
        skipped, length = 0, 0
        for offset, token in enumerate(tokens):
            if place + offset >= len(training) or training[place + offset] != token:
                skipped += 1
                if offset < c.SEED_LENGTH or skipped > c.SKIP_BUDGET:
                    break
            else:
                length = offset + 1
        best = max(best, length if length >= c.SEED_LENGTH else 0)
    return best


def test_places_are_all_places():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, 500)
    known = c.index(ids)
    for length in (1, 3, 6):
        for begin in range(40):
            wanted = ids[begin : begin + length]
            there = [i for i in range(501 - length) if (ids[i : i + length] == wanted).all()]
            assert sorted(known.places(wanted.tolist()).tolist()) == there
    assert len(known.places([9])) == 0
    assert len(known.places([3, 9])) == 0


def test_the_longest_match_is_that_of_brute_force():
    rng = np.random.default_rng(1)
    training = rng.integers(0, 3, 400)
    known = c.index(training)
    lengths = []
    for _ in range(60):
        begin = int(rng.integers(0, 360))
        tokens = training[begin : begin + 40].copy()
        changed = rng.random(len(tokens)) < 0.12
        tokens[changed] = (tokens[changed] + 1) % 3
        lengths.append(c.longest_match(tokens, known))
        assert lengths[-1] == brute(tokens, training)
    assert len(set(lengths)) > 5  # some match far, some not at all


def spoiled(text, *places):
    return [(token + 1) % 1000 if place in places else token for place, token in enumerate(text)]


def test_the_budget_skips_four_and_none_at_the_beginning_or_the_end():
    text = list(range(100, 140))
    known = c.index(np.array([*range(500, 560), *text, *range(600, 640)]))

    def length(sample):
        return c.longest_match(np.array(sample), known)

    assert length(text) == 40
    assert length(spoiled(text, 12, 20, 28, 36)) == 40
    assert length(spoiled(text, 12, 20, 28, 36, 38)) == 38
    assert length(spoiled(text, 9)) == 0  # the seed must be equal
    assert length(spoiled(text, 39)) == 39  # no skip trails
    assert length(text[:9]) == 0


def test_a_span_must_be_longer_than_the_least_length():
    text = list(range(100, 112))
    known = c.index(np.array([*range(500, 560), *text]))
    sample = [7, 8, *text, 9]
    assert c.contaminated(sample, known, longer_than=11).tolist() == [False] * 2 + [True] * 12 + [
        False
    ]
    assert not c.contaminated(sample, known, longer_than=12).any()
    assert c.shares([sample, [1, 2, 3]], known).tolist() == [12 / 15, 0.0]


def test_subsets_and_their_z_are_those_of_drawing_without_replacement():
    rng = np.random.default_rng(2)
    share, score = rng.random(300), (rng.random(300) < 0.4).astype(float)
    found = {one.name: one for one in c.subsets(share, score)}
    clean = found["clean"]
    assert clean.n == (share < 0.2).sum()
    assert found["dirty"].n == (share >= 0.8).sum()
    assert clean.n + found["not clean"].n == found["dirty"].n + found["not dirty"].n == 300
    drawn = [rng.choice(score, clean.n, replace=False).mean() for _ in range(20_000)]
    assert clean.expected == pytest.approx(np.mean(drawn), abs=2e-3)
    assert (clean.score - clean.expected) / clean.z == pytest.approx(np.std(drawn), rel=0.02)
    whole = c.subsets(np.zeros(50), score[:50])
    assert [one.n for one in whole] == [50, 0, 50, 0]
    assert all(np.isnan(one.z) for one in whole)
    assert not c.has_helped(whole)


def test_a_leak_is_found_when_it_helps_and_hardly_ever_when_it_does_not():
    rng = np.random.default_rng(3)

    def alarms(gain, n_draws=400):
        count = 0
        for _ in range(n_draws):
            share = np.r_[np.ones(20), np.zeros(380)]
            score = (rng.random(400) < 0.3 + gain * share).astype(float)
            count += c.has_helped(c.subsets(share, score))
        return count / n_draws

    assert alarms(0.5) > 0.95
    assert alarms(0.0) < 0.06
    assert alarms(-0.3) == 0  # far from chance, and the wrong way
