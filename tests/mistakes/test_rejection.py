"""Every known mistake in rejection sampling is rejected and named; right code passes."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import integrate

from llama2_lib.evaluation import best_of_n as library
from llama2_lib.teaching import best_of_n, rejection
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
        (rejection.pick_best, rejection.PICK_MISTAKES),
        (rejection.distinct, rejection.DISTINCT_MISTAKES),
        (rejection.pool, rejection.POOL_MISTAKES),
        (best_of_n.expected_best, best_of_n.EXPECTED_MISTAKES),
        (best_of_n.kl_of_best_of_n, best_of_n.KL_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


def picked_in_a_loop(scores, finished):
    rows = zip(scores.tolist(), finished.tolist(), strict=True)
    return [
        max((i for i, ok in enumerate(f) if ok), key=lambda i, s=s: (s[i], -i)) for s, f in rows
    ]


def picked_by_sorting(scores, finished):
    kept = torch.where(finished, scores, scores.min() - 1)
    return kept.sort(dim=1, descending=True, stable=True).indices[:, 0]


def test_right_picks_pass():
    for right in (picked_in_a_loop, picked_by_sorting):
        rejection.pick_best(right)


def distinct_by_index(answers):
    return [[i for i, answer in enumerate(row) if row.index(answer) == i] for row in answers]


def distinct_by_memory(answers):
    kept = []
    for row in answers:
        seen = set()
        kept.append([i for i, a in enumerate(row) if not (a in seen or seen.add(a))])
    return kept


def test_right_distinct_answers_pass():
    for right in (distinct_by_index, distinct_by_memory):
        rejection.distinct(right)


def pool_by_gathering(rounds, score):
    prompts = {prompt for samples in rounds for prompt in samples}
    answers = {p: [a for r in rounds for a, _ in r.get(p, [])] for p in prompts}
    return {p: max(row, key=lambda a, p=p: score(p, a)) for p, row in answers.items()}


def pool_round_by_round(rounds, score):
    best = {}
    for samples in rounds:
        for prompt, row in samples.items():
            rivals = [*best.get(prompt, ()), *(answer for answer, _ in row)]
            best[prompt] = (max(rivals, key=lambda a, p=prompt: score(p, a)),)
    return {prompt: answer for prompt, (answer,) in best.items()}


def test_right_pools_pass():
    for right in (pool_by_gathering, pool_round_by_round):
        rejection.pool(right)


def by_enumeration(proxy, value, n):
    subsets = list(combinations(range(proxy.shape[1]), n))
    return [
        np.mean([v[max(subset, key=lambda i, p=p: p[i])] for subset in subsets])
        for p, v in zip(proxy, value, strict=True)
    ]


def by_hand(proxy, value, n):
    k = proxy.shape[1]
    total = np.zeros(len(proxy))
    for rank, places in enumerate(np.argsort(proxy, axis=1).T, start=1):
        share = math.comb(rank - 1, n - 1) / math.comb(k, n)
        total += share * value[np.arange(len(proxy)), places]
    return torch.from_numpy(total)


def test_right_expectations_pass():
    def by_the_library(proxy, value, n):
        return library.best_of_n(proxy, value)[:, n - 1]

    for right in (by_the_library, by_enumeration, by_hand):
        best_of_n.expected_best(right)


def by_quadrature(n):
    """The rank u of the best of n has the density n u^(n - 1) against 1."""

    def integrand(u):
        density = n * u ** (n - 1)
        return density * math.log(density) if density > 0 else 0.0

    return integrate.quad(integrand, 0, 1)[0]


def test_right_divergences_pass():
    for right in (library.best_of_n_kl, by_quadrature):
        best_of_n.kl_of_best_of_n(right)


def test_what_is_no_known_mistake_is_rejected_as_well():
    with pytest.raises(CheckFailed, match=r"expected .* got \[0, 0\], like no mistake known"):
        rejection.pick_best(lambda scores, finished: [0, 0])
    with pytest.raises(CheckFailed, match=r"got \{\}, like no mistake known"):
        rejection.pool(lambda rounds, score: {})
    with pytest.raises(CheckFailed, match="like no mistake known"):
        best_of_n.kl_of_best_of_n(lambda n: 7.0)
    with pytest.raises(CheckFailed, match=r"expected shape \(4, 3\); got \(4,\)"):
        best_of_n.expected_best(lambda proxy, value, n: 0.5)
