"""What a claim is: a prediction and a threshold declared before the run, a measure, a judge.

A judge turns the measurements of all seeds into a verdict by way of `Check`s. Each check is true,
false, or undecided at the declared confidence; one false check refutes the claim, and only if all
are true it is reproduced.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from llama2_lib.evaluation.statistics import Equivalence, Estimate, mean_interval, paired_difference


class Outcome(StrEnum):
    """The four verdicts of the ledger."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    CANNOT_SHOW = "cannot show at this scale"


class Trust(StrEnum):
    """How sure we are of the paper's value."""

    PRINTED = "printed in the paper"
    CODE = "read in Meta's code"
    DERIVED = "our arithmetic from printed numbers"
    FIGURE = "read off a figure by a third party"
    DESIGN = "design stated, no number given"


class CannotShow(Exception):
    """A measure found that the recipe is too small to show the effect; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """The numbers that decide, and the sentence that uses them. Immutable: see `threshold`."""

    rule: str
    """A format string: `{name}` stands for the number of that name, so they cannot disagree."""
    numbers: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]

    def __str__(self) -> str:
        return self.rule.format(**self.numbers)


def threshold(rule: str, **numbers: float) -> Threshold:
    """Declare a threshold; every number must appear in the rule.

    Raises:
        ValueError: A number is missing from the rule, or the rule names one that is not given.
    """
    declared = Threshold(rule=rule, numbers=MappingProxyType(dict(numbers)))
    unused = [name for name in numbers if f"{{{name}" not in rule]
    try:
        str(declared)
    except KeyError as error:
        unused.append(str(error))
    if unused:
        raise ValueError(
            f"a rule must use exactly the declared numbers; {', '.join(unused)} stands in only "
            f"one of the two. Rule: {rule!r}, numbers: {sorted(numbers)}."
        )
    return declared


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The named numbers that one seed gave. Keys are documented at each claim's measure."""

    values: Mapping[str, float]
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One part of a prediction. `holds` is None where the data cannot tell."""

    text: str
    holds: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """An outcome, why, and the numbers behind it."""

    outcome: Outcome
    reason: str
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One claim of the paper, as it stands before anything is run."""

    id: int
    section: str
    statement: str
    paper_value: str
    paper_trust: Trust
    prediction: str
    threshold: Threshold
    judge: Callable[[Sequence[Measurement], Threshold], Verdict]
    measure: Callable[[Any, int], Measurement] | None = None
    """`measure(recipe, seed)`. None: declared, not yet measured."""
    requests: Callable[[Any, Sequence[int]], list[tuple[str, Any]]] | None = None
    """`requests(recipe, seeds)`: the (stage, recipe) pairs that `measure` will ask the pipeline
    for, so that they can be trained side by side beforehand. None: it trains nothing."""
    recorded: bool = False
    """Whether its runs take too long for the course. Its notebook then shows what the ledger
    `data/claims.json` holds, beside what one seed gives; `llama2 claims ID` measures it anew."""
    min_seeds: int = 3
    """With fewer the verdict is `inconclusive`; 1 for what does not depend on the seed."""

    def verdict(self, measurements: Sequence[Measurement]) -> Verdict:
        """Judge the measurements of all seeds by the declared threshold."""
        if len(measurements) < self.min_seeds:
            reason = f"needs {self.min_seeds} seeds, got {len(measurements)}"
            return Verdict(outcome=Outcome.INCONCLUSIVE, reason=reason)
        return self.judge(measurements, self.threshold)

    def declaration(self) -> dict[str, Any]:
        """Return what is fixed before the run, as a JSON document."""
        return {
            "id": self.id,
            "section": self.section,
            "statement": self.statement,
            "paper_value": self.paper_value,
            "paper_trust": str(self.paper_trust),
            "prediction": self.prediction,
            "threshold": str(self.threshold),
        }


def decide(checks: Sequence[Check], estimates: Mapping[str, Estimate]) -> Verdict:
    """Combine checks: one false refutes, all true reproduce, anything else is inconclusive.

    Raises:
        ValueError: There is no check, which would reproduce anything.
    """
    if not checks:
        raise ValueError("a verdict needs at least one check; got none. Check what was measured.")
    for wanted, outcome in ((False, Outcome.NOT_REPRODUCED), (None, Outcome.INCONCLUSIVE)):
        texts = [check.text for check in checks if check.holds is wanted]
        if texts:
            prefix = "" if wanted is False else "undecided: "
            return Verdict(outcome=outcome, reason=prefix + "; ".join(texts), estimates=estimates)
    reason = "; ".join(check.text for check in checks)
    return Verdict(outcome=Outcome.REPRODUCED, reason=reason, estimates=estimates)


def above(text: str, estimate: Estimate, bound: float = 0.0) -> Check:
    """Check that a value exceeds a bound: true or false only if the whole interval says so."""
    holds = True if estimate.low > bound else False if estimate.high <= bound else None
    return Check(text=f"{text}: {estimate}, must exceed {bound:g}", holds=holds)


def below(text: str, estimate: Estimate, bound: float = 0.0) -> Check:
    """Check that a value stays under a bound: true or false only if the whole interval says so."""
    holds = True if estimate.high < bound else False if estimate.low >= bound else None
    return Check(text=f"{text}: {estimate}, must stay under {bound:g}", holds=holds)


def within(text: str, result: Equivalence) -> Check:
    """Check an equivalence: false if the whole interval lies outside the margin."""
    low, high = result.estimate.low, result.estimate.high
    outside = low >= result.margin or high <= -result.margin
    holds = True if result.holds else False if outside else None
    return Check(text=f"{text}: {result.estimate}, must lie within {result.margin:g}", holds=holds)


def column(measurements: Sequence[Measurement], key: str) -> list[float]:
    """Return one number of every seed.

    Raises:
        ValueError: A measurement lacks the key.
    """
    for measurement in measurements:
        if key not in measurement.values:
            near = difflib.get_close_matches(key, measurement.values, n=3, cutoff=0.0)
            raise ValueError(
                f"every measurement must give {key!r}; seed {measurement.seed} does not. Nearest: "
                f"{', '.join(near) or 'none'}. The measure and the judge must agree on keys."
            )
    return [float(measurement.values[key]) for measurement in measurements]


def average(measurements: Sequence[Measurement], key: str) -> Estimate:
    """Return the mean over seeds with its interval; of a single seed just the value."""
    values = column(measurements, key)
    if len(values) == 1:
        return Estimate(value=values[0], low=values[0], high=values[0], n=1)
    return mean_interval(values)


def difference(measurements: Sequence[Measurement], key: str, minus: str) -> Estimate:
    """Return the mean over seeds of one number minus another of the same seed."""
    return paired_difference(column(measurements, key), column(measurements, minus)).estimate


def keys_under(measurements: Sequence[Measurement], prefix: str) -> list[str]:
    """Return what follows `prefix/` in the keys of the first measurement, in their order."""
    keys = measurements[0].values if measurements else ()
    return [key.removeprefix(f"{prefix}/") for key in keys if key.startswith(f"{prefix}/")]
