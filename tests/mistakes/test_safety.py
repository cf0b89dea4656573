"""Every known mistake in safety tuning is rejected and named; right code passes."""

import numpy as np
import pytest

from llama2_lib.evaluation import safety as evaluation
from llama2_lib.stages.safety import gate
from llama2_lib.teaching import safety
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
        (safety.distilled_pairs, safety.DISTILL_MISTAKES),
        (safety.nested_subset, safety.SUBSET_MISTAKES),
        (safety.false_refusal, safety.REFUSAL_MISTAKES),
        (safety.gamma, safety.GAMMA_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


def test_right_distillation_passes():
    def by_the_gate_of_the_library(rows):
        kept = gate(np.array([row[3] for row in rows]), np.array([row[4] for row in rows]))
        return [[row[0], row[2]] for row, keep in zip(rows, kept, strict=True) if keep]

    safety.distilled_pairs(by_the_gate_of_the_library)
    safety.distilled_pairs(lambda rows: ((p, a) for p, _, a, old, new in rows if new - old > 0))


def test_right_subsets_pass():
    safety.nested_subset(lambda items, share: items[: int(share * len(items) + 0.5)])
    safety.nested_subset(
        lambda items, share: [x for i, x in enumerate(items) if i < share * len(items)]
    )


def test_right_refusal_rates_pass():
    def by_numpy(rows):
        families = np.array([row[0] for row in rows])
        declined = np.array([row[1] for row in rows], dtype=float)
        return [declined[families == name].mean() for name in ("helpful", "borderline")]

    safety.false_refusal(by_numpy)


def test_right_gamma_passes():
    def by_the_library(queries, budget):
        found = set()
        first = [broke and not (q in found or found.add(q)) for q, broke in queries]
        return evaluation.gamma(np.array(first), budget).value

    safety.gamma(by_the_library)


def test_an_unknown_mistake_is_rejected_without_a_name():
    with pytest.raises(CheckFailed, match="no mistake known here"):
        safety.gamma(lambda queries, budget: 0.123)
