"""Checks of safety tuning, and the mistakes they recognise (paper section 4.2.3 to 4.3).

Right code is the library's: `stages.safety`, `stages.red_team`, `evaluation.judged`.
"""

from collections.abc import Sequence
from itertools import pairwise

from llama2_lib.teaching.check import CheckFailed, Code, diagnose_choice, on, recognise, slips

Row = tuple[str, str, str, float, float]
"""Prompt, preprompt, distilled answer, score of the original answer, score of the distilled one."""
Example = tuple[str, str]
"""Prompt and answer to train on."""


def _gated(rows: Sequence[Row]) -> list[Example]:
    return [(prompt, answer) for prompt, _, answer, old, new in rows if new > old]


DISTILL_MISTAKES = slips(_gated)("""
the preprompt is still there; train on the prompt alone, or nothing is distilled
    || [(f"{pre} {prompt}", answer) for prompt, pre, answer, old, new in rows if new > old]
there is no gate; keep an answer only where it scores higher than the original || if new > old =>
the gate is upside down: it keeps answers that score lower || new > old => new < old
answers that score the same are kept; they teach nothing safer || new > old => new >= old
the gate asks for a score above 0, not above that of the original answer || new > old => new > 0
only answers to prompts whose original was unsafe are kept; the gate compares two scores
    || new > old => old < 0
the gate looks at the mean of all prompts; it decides for each
    || new > old => sum(row[4] - row[3] for row in rows) > 0
each prompt's score is compared with another prompt's original
    || [row[::2][:2] for row, other in zip(rows, [*rows[1:], rows[0]]) if row[4] > other[3]]
the sizes of the scores are compared and not their signs || new > old => abs(new) > abs(old)
the preprompt was taken for the prompt || [(prompt, => [(_,
""")


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
    diagnose_choice(run, candidate, _gated, DISTILL_MISTAKES)


def _beginning(items: Sequence[str], share: float) -> list[str]:
    n = round(share * len(items))
    return list(items[:n])


SUBSET_MISTAKES = slips(_beginning)("""
every size is another draw, so sizes differ in more than size; less must be a beginning of more
    || [items[(7 * n + 3 * i) % len(items)] for i in range(n)]
the end is taken; then fewer are no beginning of more || :n => len(items) - n :
items are taken at equal distances, so 10 % is no part of 25 %
    || list(items[:: round(1 / share)]) if share else []
the share is a percentage already; multiply by the fraction || len(items) => len(items) / 100
0 % still takes one item || :n => : max(1, n)
the rest is taken, what the share leaves out || :n => n:
all items are taken, whatever the share || list(items)
""")
ANEW = next(iter(SUBSET_MISTAKES))


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
    diagnose_choice(run, candidate, _beginning, SUBSET_MISTAKES)


HELPFUL, BORDERLINE = ("helpful",), ("borderline",)


def _rates(rows: Sequence[tuple[str, bool, bool]]) -> tuple[float, ...]:
    """Return the share of the answers that decline, in each group of families."""
    groups = (HELPFUL, BORDERLINE)
    parts = [[declines for family, declines, unknown in rows if family in g] for g in groups]
    return tuple(round(sum(part) / len(part), 9) for part in parts)


REFUSAL_MISTAKES = slips(_rates)("""
"I do not know." counts as a refusal; it declines nothing || [declines => [declines or unknown
adversarial prompts count as borderline ones; declining those is right
    || BORDERLINE) => (*BORDERLINE, "adversarial"))
both shares are of all prompts; divide by the prompts of the family || len(part) => len(rows)
answers that help are counted, not those that decline || [declines => [not declines
helpful and borderline prompts are thrown together
    || (HELPFUL, BORDERLINE) => (HELPFUL + BORDERLINE, HELPFUL + BORDERLINE)
the families are exchanged || HELPFUL, BORDERLINE => BORDERLINE, HELPFUL
refusals are counted, not their share || / len(part) =>
""")


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
    diagnose_choice(run, candidate, _rates, REFUSAL_MISTAKES)


def _per_budget(queries: Sequence[tuple[str, bool]], budget: int) -> float:
    found, cost = {prompt for prompt, broke in queries if broke}, len(queries)
    return round(budget * len(found) / cost, 9)


GAMMA_MISTAKES = slips(_per_budget)("""
the share of violating queries comes back; multiply by the budget || budget * =>
the violating prompts are counted, not those per budget || float(len(found))
a prompt that was found twice counts twice || len(found) => sum(broke for _, broke in queries)
queries that draw a safe answer are counted || if broke => if not broke
what is divided by are the different prompts; every query costs
    || len(queries) => len({prompt for prompt, _ in queries})
queries per violation come back; gamma is violations per budget || round(cost / len(found), 9)
""")


def gamma(candidate: Code) -> None:
    """Check `candidate(queries, budget)`: violating prompts found per budget of queries.

    A query is (prompt, violated). Red-teamers may ask a prompt again: every query costs, but a
    prompt that breaks the model is found once.
    """
    queries = [(f"attack {i}", i in (3, 11, 12, 20)) for i in (*range(24), 3, 5, 11)]
    run = on(queries, 12, then=lambda rate: round(float(rate), 9))
    diagnose_choice(run, candidate, _per_budget, GAMMA_MISTAKES)
