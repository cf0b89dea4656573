"""Claims on pretraining (paper sections 2.1 to 2.3, A.2.1): size, schedule, context length."""

from collections.abc import Sequence
from itertools import pairwise

from llama2_lib.claims.claim import (
    Check,
    Claim,
    Measurement,
    Outcome,
    Threshold,
    Trust,
    Verdict,
    above,
    average,
    below,
    column,
    decide,
    difference,
    keys_under,
    threshold,
)
from llama2_lib.claims.context_runs import context_requests, measure_context
from llama2_lib.claims.pretraining_runs import (
    measure_scaling,
    measure_schedule,
    scaling_requests,
    schedule_requests,
)
from llama2_lib.evaluation.statistics import paired_difference


def judge_scaling(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 1.

    Keys: `loss/<width>`, validation loss at the end, nats per token; `slope/<width>`, change of
    the training loss per doubling of tokens over the last half of the run, nats. Equal tokens.
    A part of that fall comes from the decaying rate, as in the paper's figure.
    """
    widths = sorted(keys_under(measurements, "loss"), key=int)
    if len(widths) < 2:
        raise ValueError(
            f"claim 1 compares widths; got losses for {widths}. Measure two or more widths."
        )
    estimates = {f"loss/{width}": average(measurements, f"loss/{width}") for width in widths}
    checks = []
    for narrow, wide in pairwise(widths):
        gain = difference(measurements, f"loss/{narrow}", minus=f"loss/{wide}")
        checks.append(above(f"loss at width {narrow} minus {wide}", gain, limit["gain"]))
    for width in widths:
        slope = estimates[f"slope/{width}"] = average(measurements, f"slope/{width}")
        checks.append(below(f"slope at width {width}", slope, -limit["flat"]))
    return decide(checks, estimates)


def judge_schedule(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 2.

    Keys, for `with` and `without` warm-up and clipping (same seed, same data): `spikes/<arm>`,
    number of steps whose loss exceeds the running median of the 20 before by 0.5 nats;
    `jump/<arm>`, the largest such excess, nats; `peak_norm/<arm>`, largest gradient norm before
    clipping (shown, not judged); `final_rate/with`, last learning rate over its peak.
    """
    arms = ("with", "without")
    names = ("spikes", "jump", "peak_norm")
    estimates = {
        f"{name}/{arm}": average(measurements, f"{name}/{arm}") for name in names for arm in arms
    }
    rates = column(measurements, "final_rate/with")
    wrong = [rate for rate in rates if abs(rate - limit["final"]) > limit["slack"]]
    text = f"final rate over peak: {wrong[0] if wrong else rates[0]:.4g}, must be {limit['final']}"
    checks = [Check(text=text, holds=not wrong)]
    if not wrong and not any(sum(column(measurements, f"spikes/{arm}")) for arm in arms):
        reason = "no run spiked, not even without warm-up and clipping: nothing to prevent"
        return Verdict(outcome=Outcome.CANNOT_SHOW, reason=reason, estimates=estimates)
    for name, bound in (("spikes", limit["spikes"]), ("jump", limit["jump"])):
        saved = difference(measurements, f"{name}/without", minus=f"{name}/with")
        estimates[f"{name} saved"] = saved
        checks.append(above(f"{name} without minus with", saved, bound))
    return decide(checks, estimates)


def judge_context(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 4.

    Keys: `near/short`, `near/long`, `far/short`, `far/long`, share of retrieval questions answered
    when the evidence lies inside (`near`) or beyond (`far`) the short window, by the model with
    the short or the long context; `short_task/short`, `short_task/long`, nats per token on
    documents that fit the short window. Equal training tokens.
    """
    models = ("short", "long")
    estimates = {
        f"{task}/{model}": average(measurements, f"{task}/{model}")
        for task in ("near", "far", "short_task")
        for model in models
    }
    if estimates["near/short"].value < limit["learned"]:
        reason = (
            f"retrieval was not learned: {estimates['near/short']} of questions answered with the "
            f"evidence in reach, {limit['learned']} needed before distance can matter"
        )
        return Verdict(outcome=Outcome.CANNOT_SHOW, reason=reason, estimates=estimates)
    far = estimates["gain far"] = difference(measurements, "far/long", minus="far/short")
    cost = difference(measurements, "short_task/long", minus="short_task/short")
    estimates["short task cost"] = cost
    extra = paired_difference(_gains(measurements, "far"), _gains(measurements, "near")).estimate
    estimates["gain far - near"] = extra
    return decide(
        [
            above("gain where evidence lies beyond the short window", far, limit["far_gain"]),
            above("that gain beyond the one with near evidence", extra, limit["extra"]),
            below("cost on short documents, nats", cost, limit["cost"]),
        ],
        estimates,
    )


def _gains(measurements: Sequence[Measurement], task: str) -> list[float]:
    pairs = (column(measurements, f"{task}/{model}") for model in ("long", "short"))
    return [long - short for long, short in zip(*pairs, strict=True)]


CLAIMS = (
    Claim(
        id=1,
        section="2.2.1, figure 5",
        statement="Larger models reach a lower loss on the same tokens, and none saturates.",
        paper_value="about 1.74 / 1.67 / 1.57 / 1.50 nats for 7B / 13B / 34B / 70B at 2T tokens",
        paper_trust=Trust.FIGURE,
        prediction="Loss falls with every step in width and still falls when training ends.",
        threshold=threshold(
            "Each width beats the next narrower one by more than {gain:g} nats, and each slope is "
            "below -{flat:g} nats per doubling of tokens (95 % intervals over seeds).",
            gain=0.0,
            flat=0.02,
        ),
        judge=judge_scaling,
        measure=measure_scaling,
        requests=scaling_requests,
    ),
    Claim(
        id=2,
        section="2.2",
        statement="Warm-up, cosine decay to 10 % and clipping at 1.0 make a stable recipe.",
        paper_value="2,000 warm-up steps, final rate 10 % of the peak, clip 1.0; no ablation",
        paper_trust=Trust.PRINTED,
        prediction="Without warm-up and clipping the same run has more and higher loss spikes.",
        threshold=threshold(
            "The final rate is {final:g} of the peak (within {slack:g}); without minus with is "
            "above {spikes:g} spikes and above {jump:g} nats of jump (95 % intervals over seeds).",
            final=0.1,
            slack=0.005,
            spikes=0.0,
            jump=0.0,
        ),
        judge=judge_schedule,
        measure=measure_schedule,
        requests=schedule_requests,
    ),
    Claim(
        id=4,
        section="A.2.1, tables 16 and 17",
        statement="A longer context helps long tasks much and costs short tasks little.",
        paper_value="2k to 4k: Qasper 0.71 to 18.52, HellaSwag 75.1 to 74.8",
        paper_trust=Trust.PRINTED,
        prediction="Retrieval jumps only where the evidence lies outside the short window.",
        threshold=threshold(
            "Far evidence: gain above {far_gain:g}, and above the gain with near evidence by "
            "{extra:g}; short documents: cost below {cost:g} nats per token (95 % intervals). "
            "Only if near evidence is used at all: {learned:g} or more by the short model.",
            far_gain=0.2,
            extra=0.1,
            cost=0.05,
            learned=0.5,
        ),
        judge=judge_context,
        measure=measure_context,
        requests=context_requests,
    ),
)
