"""Claims on supervised fine-tuning (paper section 3.1): quality, the loss mask, samples."""

from collections.abc import Sequence

from llama2_lib.claims.claim import (
    Check,
    Claim,
    Measurement,
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
    within,
)
from llama2_lib.claims.finetuning_runs import (
    data_requests,
    measure_data,
    measure_mask,
    measure_rival,
    rival_requests,
)
from llama2_lib.evaluation.statistics import Estimate, equivalent, mean_interval


def judge_data(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 8.

    Keys: `help/<arm>`, the gold judge's mean helpfulness on held-out prompts, 0 to 1, of
    `few_clean`, `few_clean_longer`, `few_noisy`, `many_noisy`; `safety/<arm>` is shown.
    """
    arms = keys_under(measurements, "help")
    estimates = {
        f"{name}/{arm}": average(measurements, f"{name}/{arm}")
        for name in ("help", "safety")
        for arm in arms
    }
    epochs = difference(measurements, "help/few_clean", minus="help/many_noisy")
    steps = difference(measurements, "help/few_clean_longer", minus="help/many_noisy")
    estimates |= {"gain, equal epochs": epochs, "gain, equal steps": steps}
    checks = [
        above("few clean minus many noisy, equal epochs", epochs, limit["gain"]),
        above("few clean minus many noisy, equal steps", steps, limit["gain"]),
    ]
    return decide(checks, estimates)


def judge_mask(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 9.

    Keys: largest derivative of the loss by a logit, `gradient/prompt` over positions whose next
    token is no target, `gradient/answer` the smallest over those whose next token is one,
    `gradient/unmasked` as the first but with a loss on every token; share of empty positions,
    `waste/packed`, and `waste/alone` with one dialog a row.
    """
    names = ("gradient/prompt", "gradient/answer", "gradient/unmasked", *_WASTE)
    estimates = {name: average(measurements, name) for name in names}
    at_prompt, at_answer, unmasked, packed, alone = (column(measurements, n) for n in names)
    saved = [a - p for a, p in zip(alone, packed, strict=True)]
    checks = [
        Check(
            text=f"largest gradient at prompts: {max(at_prompt):.3g}, must be 0 exactly",
            holds=max(at_prompt) == 0.0,
        ),
        Check(
            text=f"smallest gradient at answers: {min(at_answer):.3g}, must not be 0",
            holds=min(at_answer) > 0.0,
        ),
        Check(
            text=f"at prompts without the mask: {min(unmasked):.3g}, must not be 0",
            holds=min(unmasked) > 0.0,
        ),
        Check(
            text=f"empty when packed: {max(packed):.1%}, must stay under {limit['packed']:.0%}",
            holds=max(packed) < limit["packed"],
        ),
        Check(
            text=f"saved by packing: {min(saved):.1%}, must exceed {limit['saved']:.0%}",
            holds=min(saved) > limit["saved"],
        ),
    ]
    return decide(checks, estimates)


_WASTE = ("waste/packed", "waste/alone")


def judge_rival(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 10.

    Keys: `wins/<who>`, `ties/<who>`, `losses/<who>`, numbers of prompts, against a demonstration,
    of a sample of the fine-tuned model (`sft`), of the pretrained one (`base`), and of a second
    demonstration (`control`, shown). Prompts of all seeds are pooled: there is one model.
    """
    points = {who: pooled(measurements, who) for who in ("sft", "base", "control")}
    estimates: dict[str, Estimate] = {
        f"win rate/{who}": mean_interval(values) for who, values in points.items()
    }
    half = [0.5] * len(points["sft"])
    return decide(
        [
            within(
                "win rate of samples minus one half",
                equivalent(points["sft"], half, margin=limit["margin"]),
            ),
            below("win rate of the base model", estimates["win rate/base"], limit["base"]),
        ],
        estimates,
    )


def pooled(measurements: Sequence[Measurement], who: str) -> list[float]:
    """Return 1 for every win, 0.5 for every tie and 0 for every loss, of all seeds."""
    points: list[float] = []
    for word, worth in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0)):
        points += [worth] * round(sum(column(measurements, f"{word}/{who}")))
    return points


CLAIMS = (
    Claim(
        id=8,
        section="3.1",
        statement="Few clean demonstrations teach more than many noisy ones.",
        paper_value="27,540 of its own in place of millions of others'; results improved notably",
        paper_trust=Trust.DESIGN,
        prediction="A model tuned on a quarter of the dialogs, all clean, answers better than one "
        "tuned on all of a noisy set, at equal epochs and at equal steps.",
        threshold=threshold(
            "Helpfulness on held-out prompts, few clean minus many noisy, is above {gain:g}, at "
            "equal epochs and at equal steps (95 % intervals over seeds, that is over orders, "
            "prompts and samples).",
            gain=0.0,
        ),
        judge=judge_data,
        measure=measure_data,
        requests=data_requests,
    ),
    Claim(
        id=9,
        section="3.1",
        statement="The loss is on answers only, and dialogs are packed to fill the rows.",
        paper_value="loss zeroed on prompt tokens; prompts and answers concatenated; no numbers",
        paper_trust=Trust.DESIGN,
        prediction="No gradient at all comes from prompts, and packing leaves hardly a gap.",
        threshold=threshold(
            "The gradient at positions that predict prompts is exactly {zero:g}, that at answers "
            "is not, nor is the first without the mask; less than {packed:g} of packed rows is "
            "empty, and more than {saved:g} less than with one dialog a row.",
            zero=0.0,
            packed=0.1,
            saved=0.3,
        ),
        judge=judge_mask,
        measure=measure_mask,
        min_seeds=1,
    ),
    Claim(
        id=10,
        section="3.1",
        statement="Samples of the fine-tuned model rival demonstrations written by people.",
        paper_value="180 examples looked at: samples often competitive; no number",
        paper_trust=Trust.DESIGN,
        prediction="A sample beats the demonstration about as often as the other way round.",
        threshold=threshold(
            "The win rate of samples against demonstrations, ties half, lies within {margin:g} of "
            "one half (90 % interval over prompts), and that of the pretrained model is below "
            "{base:g} (95 %).",
            margin=0.1,
            base=0.1,
        ),
        judge=judge_rival,
        measure=measure_rival,
        requests=rival_requests,
    ),
)
