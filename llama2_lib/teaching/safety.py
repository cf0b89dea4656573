"""Checks of safety tuning, and the mistakes they recognise (paper section 4.2.3 to 4.3).

Right code is the library's: `stages.safety`, `stages.red_team`, `evaluation.judged`.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from llama2_lib.teaching.check import (
    CheckFailed,
    Code,
    Mistakes,
    diagnose_choice,
    on,
    recognise,
)

Row = tuple[str, str, str, float, float]
"""Prompt, preprompt, distilled answer, score of the original answer, score of the distilled one."""
Example = tuple[str, str]
"""Prompt and answer to train on."""


def _gated(rows: Sequence[Row]) -> list[Example]:
    return [(prompt, answer) for prompt, _, answer, old, new in rows if new > old]


DISTILL_MISTAKES: Mistakes = {
    "the preprompt is still there; train on the prompt alone, or nothing is distilled": (
        lambda rows: [(f"{pre} {prompt}", a) for prompt, pre, a, old, new in rows if new > old]
    ),
    "there is no gate; keep an answer only where it scores higher than the original": (
        lambda rows: [(prompt, a) for prompt, _, a, _, _ in rows]
    ),
    "the gate is upside down: it keeps answers that score lower": lambda rows: [
        (prompt, a) for prompt, _, a, old, new in rows if new < old
    ],
    "answers that score the same are kept; they teach nothing safer": lambda rows: [
        (prompt, a) for prompt, _, a, old, new in rows if new >= old
    ],
    "the gate asks for a score above 0, not above that of the original answer": lambda rows: [
        (prompt, a) for prompt, _, a, _, new in rows if new > 0
    ],
    "only answers to prompts whose original was unsafe are kept; the gate compares two scores": (
        lambda rows: [(prompt, a) for prompt, _, a, old, _ in rows if old < 0]
    ),
    "the gate looks at the mean of all prompts; it decides for each": lambda rows: (
        [(prompt, a) for prompt, _, a, _, _ in rows]
        if sum(new - old for *_, old, new in rows) > 0
        else []
    ),
    "each prompt's score is compared with another prompt's original": lambda rows: [
        (row[0], row[2])
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
        if row[4] > other[3]
    ],
    "the sizes of the scores are compared and not their signs": lambda rows: [
        (prompt, a) for prompt, _, a, old, new in rows if abs(new) > abs(old)
    ],
    "the preprompt was taken for the prompt": lambda rows: [
        (pre, a) for _, pre, a, old, new in rows if new > old
    ],
}


def distilled_pairs(candidate: Code) -> None:
    """Check `candidate(rows)`: the (prompt, answer) pairs that gated distillation trains on.

    A row is (prompt, preprompt, distilled answer, score of the original, score of the distilled).
    """
    rows: list[Row] = [
        ("How do I feed it?", "Be safe.", "I cannot help.", -1.5, 2.0),
        ("Tell me how.", "Be kind.", "I will not.", 1.2, 0.4),
        ("Please explain.", "Be wise.", "Sorry, no.", 0.7, 0.7),
        ("I order you.", "Be careful.", "That is dangerous.", -2.0, -0.5),
        ("It is not bad.", "Be honest.", "It hurts.", 0.6, 1.9),
        ("Act as a friend.", "Be good.", "Ask a doctor.", -0.8, -9.0),
    ]
    run = on(rows, then=lambda pairs: [(prompt, answer) for prompt, answer in pairs])
    diagnose_choice(run, candidate, run(_gated), DISTILL_MISTAKES)


def _shuffled(items: Sequence[str], n: int) -> list[str]:
    """Return n items that depend on n: another draw for every size."""
    return [items[(7 * n + 3 * i) % len(items)] for i in range(n)]


ANEW = (
    "every size is another draw, so sizes differ in more than size; less must be a beginning of "
    "more"
)
SUBSET_MISTAKES: Mistakes = {
    ANEW: lambda items, share: _shuffled(items, round(share * len(items))),
    "the end is taken; then fewer are no beginning of more": lambda items, share: list(
        items[len(items) - round(share * len(items)) :]
    ),
    "items are taken at equal distances, so 10 % is no part of 25 %": lambda items, share: (
        list(items[:: round(1 / share)]) if share else []
    ),
    "the share is a percentage already; multiply by the fraction": lambda items, share: list(
        items[: round(share * len(items) / 100)]
    ),
    "0 % still takes one item": lambda items, share: list(
        items[: max(1, round(share * len(items)))]
    ),
    "the rest is taken, what the share leaves out": lambda items, share: list(
        items[round(share * len(items)) :]
    ),
    "all items are taken, whatever the share": lambda items, share: list(items),
}


def _beginning(items: Sequence[str], share: float) -> list[str]:
    return list(items[: round(share * len(items))])


def nested_subset(candidate: Code) -> None:
    """Check `candidate(items, fraction)`: the part of the data, less being a beginning of more."""
    items = [f"dialog {number}" for number in range(40)]
    shares = (0.0, 0.10, 0.25, 0.50, 1.0)

    def run(subset: Code) -> list[list[str]]:
        return [list(on(items, share)(subset)) for share in shares]

    parts, right = run(candidate), run(_beginning)
    recognise(lambda wrong: parts == run(wrong), SUBSET_MISTAKES, "the choice is not right: ")
    same_sizes = [len(part) for part in parts] == [len(part) for part in right]
    if same_sizes and any(set(few) - set(more) for few, more in pairwise(parts)):
        raise CheckFailed(f"the choice is not right: it looks as if {ANEW}.")
    diagnose_choice(run, candidate, right, SUBSET_MISTAKES)


HELPFUL, BORDERLINE = ("helpful",), ("borderline",)


def _rates(
    rows: Sequence[tuple[str, bool, bool]],
    *,
    counts: Code = lambda declines, unknown: declines,
    groups: Sequence[tuple[str, ...]] = (HELPFUL, BORDERLINE),
    divisor: Code = lambda rows, answers: len(answers),
) -> tuple[float, ...]:
    """Return the share of the answers that count, in each group of families."""
    parts = [[counts(d, u) for family, d, u in rows if family in group] for group in groups]
    return tuple(round(sum(answers) / divisor(rows, answers), 9) for answers in parts)


REFUSAL_MISTAKES: Mistakes = {
    '"I do not know." counts as a refusal; it declines nothing': partial(
        _rates, counts=lambda declines, unknown: declines or unknown
    ),
    "adversarial prompts count as borderline ones; declining those is right": partial(
        _rates, groups=(HELPFUL, ("borderline", "adversarial"))
    ),
    "both shares are of all prompts; divide by the prompts of the family": partial(
        _rates, divisor=lambda rows, answers: len(rows)
    ),
    "answers that help are counted, not those that decline": partial(
        _rates, counts=lambda declines, unknown: not declines
    ),
    "helpful and borderline prompts are thrown together": partial(
        _rates, groups=(HELPFUL + BORDERLINE, HELPFUL + BORDERLINE)
    ),
    "the families are exchanged": partial(_rates, groups=(BORDERLINE, HELPFUL)),
    "refusals are counted, not their share": partial(_rates, divisor=lambda rows, answers: 1),
}


def false_refusal(candidate: Code) -> None:
    """Check `candidate(rows)`: shares of false refusals on helpful and on borderline prompts.

    A row is (family, the answer declines, the answer says that it does not know); the families
    are helpful, borderline and adversarial.
    """
    counts = {"helpful": (2, 3, 15), "borderline": (4, 1, 7), "adversarial": (5, 0, 1)}
    answers = (True, False), (False, True), (False, False)
    rows = [
        (family, *answer)
        for family, numbers in counts.items()
        for answer, number in zip(answers, numbers, strict=True)
        for _ in range(number)
    ]
    run = on(rows, then=lambda shares: tuple(round(float(share), 9) for share in shares))
    diagnose_choice(run, candidate, run(_rates), REFUSAL_MISTAKES)


def _per_budget(queries: Sequence[tuple[str, bool]], budget: int) -> float:
    return round(budget * len({q for q, broke in queries if broke}) / len(queries), 9)


GAMMA_MISTAKES: Mistakes = {
    "the share of violating queries comes back; multiply by the budget": lambda queries, budget: (
        round(_per_budget(queries, budget) / budget, 9)
    ),
    "the violating prompts are counted, not those per budget": lambda queries, budget: float(
        len({q for q, broke in queries if broke})
    ),
    "a prompt that was found twice counts twice": lambda queries, budget: round(
        budget * sum(broke for _, broke in queries) / len(queries), 9
    ),
    "queries that draw a safe answer are counted": lambda queries, budget: round(
        budget * len({q for q, broke in queries if not broke}) / len(queries), 9
    ),
    "what is divided by are the different prompts; every query costs": lambda queries, budget: (
        round(budget * len({q for q, broke in queries if broke}) / len({q for q, _ in queries}), 9)
    ),
    "queries per violation come back; gamma is violations per budget": lambda queries, budget: (
        round(len(queries) / len({q for q, broke in queries if broke}), 9)
    ),
}


def gamma(candidate: Code) -> None:
    """Check `candidate(queries, budget)`: violating prompts found per budget of queries.

    A query is (prompt, violated). Red-teamers may ask a prompt again: every query costs, but a
    prompt that breaks the model is found once.
    """
    queries = [(f"attack {i}", i in (3, 11, 12, 20)) for i in (*range(24), 3, 5, 11)]
    run = on(queries, 12, then=lambda rate: round(float(rate), 9))
    diagnose_choice(run, candidate, run(_per_budget), GAMMA_MISTAKES)
