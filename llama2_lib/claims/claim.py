"""What a claim is: a prediction, and the inequalities that decide it, declared before the run.

The sentence that declares the threshold and the verdict both follow from the list of inequalities
(`Must`), so they cannot disagree. Each check is true, false, or undecided at the declared
confidence; one false check refutes the claim, and only if all are true it is reproduced.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from llama2_lib import pipeline
from llama2_lib.config import Recipe
from llama2_lib.device import choose_device
from llama2_lib.evaluation.statistics import Bounds, Estimate, inside, mean_interval

Z = float(stats.norm.ppf(0.975))
"""Half the width of a 95 % interval, in standard errors."""
SHARE, SIGNED = (0.0, 1.0), (-1.0, 1.0)
"""Bounds of a share; of a correlation, and of one share minus another."""
OVER_SEEDS = "(95 % over seeds)"
WIDER = "(95 %, the wider of the intervals over seeds and over prompts)"
PAIRED = "(95 %, the wider of the intervals over seeds and over the same held-out pairs)"


class Outcome(StrEnum):
    """The four verdicts of the ledger."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    CANNOT_SHOW = "cannot show at this scale"


class Trust(StrEnum):
    """How sure we are of the paper's value."""

    PRINTED = "printed in the paper"
    DERIVED = "our arithmetic from printed numbers"
    FIGURE = "read off a figure by a third party"
    DESIGN = "design stated, no number given"


class CannotShow(Exception):
    """A measure found that the recipe is too small to show the effect; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The named numbers that one seed gave; each measure documents its keys."""

    values: Mapping[str, float]
    seed: int = 0
    device: str = "cpu"

    def __getitem__(self, key: str) -> float:
        return float(self.values[key])


Measurements = Sequence[Measurement]
PerSeed = str | Callable[[Measurement], float]
"""A number of one seed: its key, or what is reckoned from several keys."""
Quantity = Callable[[Measurements], Estimate | Mapping[str, Estimate]]
"""What an inequality is about: one number of all seeds, or several by name."""


# ------------------------------------------------------------- numbers of all seeds


def column(measurements: Measurements, of: PerSeed) -> list[float]:
    """Return one number of every seed."""
    return [float(of(m)) if callable(of) else m[of] for m in measurements]


def average(
    measurements: Measurements, of: PerSeed, confidence: float = 0.95, bounds: Bounds = None
) -> Estimate:
    """Return the mean over seeds with its interval; of a single seed just the value."""
    values = column(measurements, of)
    if len(values) == 1:
        return Estimate(value=values[0], low=values[0], high=values[0], n=1)
    return mean_interval(values, confidence, bounds)


def mean(of: PerSeed, confidence: float = 0.95, bounds: Bounds = None) -> Quantity:
    """Return the quantity that `average` computes."""
    return partial(average, of=of, confidence=confidence, bounds=bounds)


def minus(more: str, less: str) -> Callable[[Measurement], float]:
    """Return one number minus another of the same seed."""
    return lambda measurement: measurement[more] - measurement[less]


def keys_under(measurements: Measurements, prefix: str) -> list[str]:
    """Return what follows `prefix/` in the keys of the first measurement, in their order."""
    keys = measurements[0].values if measurements else ()
    return [key.removeprefix(f"{prefix}/") for key in keys if key.startswith(f"{prefix}/")]


def averages(
    measurements: Measurements, *prefixes: str, bounds: Bounds = None
) -> dict[str, Estimate]:
    """Return the means over seeds of the keys that are, or are under, one of the prefixes."""
    return {
        key: average(measurements, key, bounds=bounds)
        for prefix in prefixes
        for key in measurements[0].values
        if key == prefix or key.startswith(f"{prefix}/")
    }


def paired(name: str, gap: np.ndarray) -> dict[str, float]:
    """Return the mean of a gain over prompts and its standard error, as `gain` reads them."""
    error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
    return {f"gain/{name}": float(gap.mean()), f"error/{name}": error}


def unpaired(name: str, more: np.ndarray, less: np.ndarray) -> dict[str, float]:
    """Return the same of two groups of prompts that have nothing to do with each other."""
    errors = [part.var(ddof=1) / len(part) for part in (more, less)]
    gap = float(more.mean() - less.mean())
    return {f"gain/{name}": gap, f"error/{name}": float(np.sqrt(sum(errors)))}


def gain(measurements: Measurements, name: str, bounds: Bounds = None) -> Estimate:
    """Return the mean over seeds of `gain/<name>`, with the wider of two intervals.

    One is over seeds, which may be narrow by luck, one over all prompts (`error/<name>`).
    """
    values, errors = column(measurements, f"gain/{name}"), column(measurements, f"error/{name}")
    half = Z * sum(error**2 for error in errors) ** 0.5 / len(errors)
    return inside(_wider(values, half, len(values)), bounds)


def paired_gain(measurements: Measurements, name: str) -> Estimate:
    """Return by how much one model is right more often than another on the same pairs.

    Keys: `gained/<name>` and `lost/<name>`, pairs that only the one or only the other has right,
    a tie counting half; `pairs/<name>`, all. Intervals are over seeds and over pairs.
    """
    gained, lost, pairs = (
        np.array(column(measurements, f"{key}/{name}")) for key in ("gained", "lost", "pairs")
    )
    n = pairs.sum()
    spread = (gained + lost).sum() / n - ((gained - lost).sum() / n) ** 2
    half = Z * math.sqrt(max(0.0, spread) / n)
    return _wider(((gained - lost) / pairs).tolist(), half, int(n))


def _wider(values: list[float], half: float, n: int) -> Estimate:
    value = float(np.mean(values))
    if len(values) > 1:
        half = max(half, mean_interval(values).high - value)
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def bounded(*prefixes: str) -> Callable[[Measurements], dict[str, Estimate]]:
    """Return what shows the means of shares; see `averages`."""
    return lambda measurements: averages(measurements, *prefixes, bounds=SHARE)


def all_gains(measurements: Measurements) -> dict[str, Estimate]:
    """Return every `gain` there is, by name."""
    return {name: gain(measurements, name) for name in keys_under(measurements, "gain")}


def all_paired_gains(measurements: Measurements) -> dict[str, Estimate]:
    """Return every `paired_gain` there is, as `gain/<name>`."""
    names = keys_under(measurements, "pairs")
    return {f"gain/{name}": paired_gain(measurements, name) for name in names}


# ------------------------------------------------------------- inequalities


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One part of a prediction. `holds` is None where the data cannot tell."""

    text: str
    holds: bool | None


RULES = {"above": "must exceed", "below": "must stay under", "within": "must lie within"}


def check(rule: str, text: str, estimate: Estimate, bound: float) -> Check:
    """Check an inequality: true or false only if the whole interval says so.

    `within` a margin is an equivalence: with a 90 % interval two one-sided tests at 5 %.
    """
    low, high = estimate.low, estimate.high
    yes, no = {
        "above": (low > bound, high <= bound),
        "below": (high < bound, low >= bound),
        "within": (-bound < low and high < bound, low >= bound or high <= -bound),
    }[rule]
    holds = True if yes else False if no else None
    return Check(text=f"{text}: {estimate}, {RULES[rule]} {bound:g}", holds=holds)


above = partial(check, "above")
"""The one that lessons show."""

Judged = tuple[list[Check], Mapping[str, Estimate]]


@dataclass(frozen=True, slots=True)
class Must:
    """One inequality: a quantity, interval and all, above, below or within one bound."""

    text: str
    of: Quantity
    _: KW_ONLY
    above: float | None = None
    below: float | None = None
    within: float | None = None
    named: str | None = None
    """Under what name the estimate is shown: the text unless given, nowhere if empty."""
    says: str | None = None
    """Words for the text in the declared sentence, where it takes other ones."""
    intervals: str = OVER_SEEDS
    """What the interval covers, and how."""
    beside: Callable[[Measurements], dict[str, Estimate]] | None = None
    """What else is shown."""

    @property
    def rule(self) -> tuple[str, float]:
        """Which of the three, and the bound."""
        bounds = {"above": self.above, "below": self.below, "within": self.within}
        ((name, bound),) = ((name, b) for name, b in bounds.items() if b is not None)
        return name, bound

    def __str__(self) -> str:
        name, bound = self.rule
        return f"{self.says or self.text} {name} {bound:g}"

    def judge(self, measurements: Measurements) -> Judged:
        """Return what holds, and the estimates that are shown for it."""
        name, bound = self.rule
        quantity = self.of(measurements)
        every = {self.text: quantity} if isinstance(quantity, Estimate) else quantity
        checks = [check(name, text, estimate, bound) for text, estimate in every.items()]
        if self.named and isinstance(quantity, Estimate):
            every = {self.named: quantity}
        return checks, {} if self.named == "" else every

    def p_value(self, measurements: Measurements) -> float:
        """Return how likely chance gives as much where the bound is the truth.

        It is made from the declared interval, taken as normal: of a difference within a margin one
        of 90 %, of all others one of 95 %. Of several estimates the largest counts.
        """
        name, bound = self.rule
        quantity = self.of(measurements)
        every = [quantity] if isinstance(quantity, Estimate) else list(quantity.values())
        return max(_tail(name, estimate, bound) for estimate in every)


def _tail(rule: str, estimate: Estimate, bound: float) -> float:
    distance = {
        "above": estimate.value - bound,
        "below": bound - estimate.value,
        "within": bound - abs(estimate.value),
    }[rule]
    half = (estimate.high - estimate.low) / 2
    if not half:
        return float(distance <= 0)
    return float(
        stats.norm.sf(distance / half * stats.norm.ppf(0.95 if rule == "within" else 0.975))
    )


def gains(
    text: str, name: str, named: str | None = "", bounds: Bounds = None, **bound: Any
) -> Must:
    """Return an inequality on the `gain` of a name; unnamed it is shown with all others."""
    beside = all_gains if named == "" or bounds else None
    of = partial(gain, name=name, bounds=bounds)
    named = name if bounds else named
    return Must(text, of, named=named, intervals=WIDER, beside=beside, **bound)


def wins(text: str, name: str, **bound: Any) -> Must:
    """Return an inequality on the `paired_gain` of a name, which is shown with all others."""
    of = partial(paired_gain, name=name)
    return Must(text, of, named="", intervals=PAIRED, beside=all_paired_gains, **bound)


@dataclass(frozen=True, slots=True)
class Fact:
    """What must hold exactly or is no inequality of one estimate; the function judges it."""

    says: str
    """Its part of the declared sentence."""
    of: Callable[[Measurements], list[Check]]
    intervals: str = OVER_SEEDS

    def __str__(self) -> str:
        return self.says

    def judge(self, measurements: Measurements) -> Judged:
        """Return what holds; nothing is shown."""
        return self.of(measurements), {}


@dataclass(frozen=True, slots=True)
class Proviso:
    """What must be so for the inequalities to say anything; else the verdict is another one."""

    says: str
    """The last part of the declared sentence."""
    unless: Callable[[Measurements, Sequence[Check]], tuple[Outcome, str] | None]
    """Gets the checks, too; returns the other verdict and why, or None."""


# ------------------------------------------------------------- the claim and its verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """An outcome, why, and the numbers behind it."""

    outcome: Outcome
    reason: str
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


def decide(checks: Sequence[Check], estimates: Mapping[str, Estimate]) -> Verdict:
    """Combine checks: one false refutes, all true reproduce, anything else is inconclusive."""
    assert checks, "a verdict needs at least one check"
    for holds, outcome in ((False, Outcome.NOT_REPRODUCED), (None, Outcome.INCONCLUSIVE)):
        texts = [check.text for check in checks if check.holds is holds]
        if texts:
            reason = ("undecided: " if holds is None else "") + "; ".join(texts)
            return Verdict(outcome=outcome, reason=reason, estimates=estimates)
    reason = "; ".join(check.text for check in checks)
    return Verdict(outcome=Outcome.REPRODUCED, reason=reason, estimates=estimates)


Request = tuple[str, Recipe]
"""A stage and a recipe: a run that the pipeline can be asked for."""
Runs = Callable[[Recipe, int], Mapping[Any, Request]]
Shown = str | Mapping[str, Quantity] | Callable[[Measurements], Mapping[str, Estimate]]


def of_stage(
    stage: str, recipes: Callable[[Recipe, int], Mapping[Any, Recipe]], *names: Hashable
) -> Runs:
    """Return the runs of one stage with some of the recipes that a function lists, or with all."""

    def runs(recipe: Recipe, seed: int) -> dict[Any, Request]:
        every = recipes(recipe, seed)
        return {name: (stage, every[name]) for name in names or every}

    return runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One claim of the paper, as it stands before anything is run."""

    id: int
    section: str
    statement: str
    paper_value: str
    paper_trust: Trust
    prediction: str
    where: str
    """What is compared, on what: the beginning of the declared sentence."""
    tests: tuple[Must | Fact, ...]
    """The inequalities, all of which must hold."""
    intervals: str | None = None
    """The end of the declared sentence; that of the last inequality unless given."""
    proviso: Proviso | None = None
    shown: tuple[Shown, ...] = ()
    """What is reported beside: keys, or prefixes of keys, whose means are taken; numbers of all
    seeds by name; and functions."""
    measured_by: Callable[[Recipe, int], Mapping[str, float]]
    """Takes recipe and seed."""
    runs: Runs = lambda recipe, seed: {}
    """The runs that one seed needs, by name: they are trained before it is measured."""
    min_seeds: int = 3
    """With fewer the verdict is `inconclusive`; 1 for what does not depend on the seed."""

    @property
    def threshold(self) -> str:
        """The sentence that declares what decides."""
        intervals = self.tests[-1].intervals if self.intervals is None else self.intervals
        parts = f"{self.where}: {'; '.join(map(str, self.tests))} {intervals}".rstrip()
        return f"{parts}.{f' {self.proviso.says}' if self.proviso else ''}"

    def declaration(self) -> dict[str, int | str]:
        """Return what is fixed before the run, as a JSON document."""
        texts = ("section", "statement", "paper_value", "paper_trust", "prediction", "threshold")
        return {"id": self.id} | {name: str(getattr(self, name)) for name in texts}

    def requests(self, recipe: Recipe, seeds: Sequence[int]) -> list[Request]:
        """Return the runs of all seeds, each once."""
        return list(dict.fromkeys(r for seed in seeds for r in self.runs(recipe, seed).values()))

    def measure(self, recipe: Recipe, seed: int) -> Measurement:
        """Train what is missing, and measure one seed."""
        if requests := self.requests(recipe, [seed]):
            pipeline.artifacts(requests)
        values = self.measured_by(recipe, seed)
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"measured numbers must be finite; claim {self.id}, seed {seed} gave "
                    f"{name}={value}. Look at that run; no seed is dropped."
                )
        return Measurement(values=values, seed=seed, device=str(choose_device()))

    def verdict(self, measurements: Measurements) -> Verdict:
        """Judge the measurements of all seeds by the declared inequalities."""
        if len(measurements) < self.min_seeds:
            reason = f"needs {self.min_seeds} seeds, got {len(measurements)}"
            return Verdict(outcome=Outcome.INCONCLUSIVE, reason=reason)
        return self.judge(measurements)

    def p_value(self, measurements: Measurements) -> float | None:
        """Return the p-value of the whole claim: all inequalities must hold, so the largest."""
        values = [t.p_value(measurements) for t in self.tests if isinstance(t, Must)]
        return max(values, default=None)

    def judge(self, measurements: Measurements) -> Verdict:
        """Judge any number of seeds."""
        checks: list[Check] = []
        estimates: dict[str, Estimate] = {}
        for test in self.tests:
            judged, quantities = test.judge(measurements)
            checks += judged
            estimates |= quantities
        beside = dict.fromkeys(t.beside for t in self.tests if isinstance(t, Must) and t.beside)
        for what in (*beside, *self.shown):
            means = _shown(what, measurements)
            estimates |= {name: means[name] for name in means if name not in estimates}
        other = self.proviso.unless(measurements, checks) if self.proviso else None
        if other is not None:
            return Verdict(outcome=other[0], reason=other[1], estimates=estimates)
        return decide(checks, estimates)


def _shown(what: Shown, measurements: Measurements) -> Mapping[str, Estimate | Any]:
    if isinstance(what, str):
        return averages(measurements, what)
    if isinstance(what, Mapping):
        return {name: of(measurements) for name, of in what.items()}
    return what(measurements)


# ------------------------------------------------------------- what claims of several sections say


def differs(text: str, more: str, less: str, confidence: float = 0.95, **bound: Any) -> Must:
    """Return an inequality on one number minus another of the same seed."""
    return Must(text, mean(minus(more, less), confidence), **bound)


def zero(says: str, what: str, key: str, be: str = "be 0", *, never: bool = False) -> Fact:
    """Return the fact that a number, which is never negative, is 0 on every seed, or on none."""

    def judge(measurements: Measurements) -> list[Check]:
        worst = (min if never else max)(column(measurements, key))
        return [Check(text=f"{what}: {worst:.3g}, must {be}", holds=(worst == 0) != never)]

    return Fact(says, judge)
