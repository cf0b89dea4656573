"""Claims on the reward of PPO (paper section 3.2.3): the price of distance, whitened scores.

Declared before the judged seeds were run. One pilot seed (9) had been, to find out how far so short
a run goes. Seeds 0 to 2 left claim 27 open: without a price gold lost 0.19, 0.17 and 0.05, so its
interval was -0.13, -0.32 to 0.05. Seeds 3 and 4 were then added to both claims, once, by the same
rules: `llama2 claims 27 29 --seeds 5`.
"""

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
)
from llama2_lib.claims.ppo_runs import (
    BETAS,
    CHOSEN,
    WAYS,
    measure_price,
    measure_scale,
    price_requests,
    scale_requests,
)
from llama2_lib.evaluation.statistics import Estimate, mean_interval, ordering

PRICES = [f"{beta:g}" for beta in BETAS]
FREE, PAID = PRICES[0], f"{CHOSEN:g}"


def gained(measurements: Sequence[Measurement], what: str, beta: str) -> list[float]:
    """Return how much each seed gained from the first measurement of a run to the last."""
    moments = keys_under(measurements, f"{what}/{beta}")
    first, last = (column(measurements, f"{what}/{beta}/{at}") for at in (moments[0], moments[-1]))
    return [after - before for before, after in zip(first, last, strict=True)]


def judge_price(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 27; keys as in `measure_price`."""
    qualities = ("proxy", "gold quality", "gold helpfulness", "gold safety")
    gain = {(w, b): gained(measurements, w, b) for w in qualities for b in PRICES}
    far = {beta: gained(measurements, "kl", beta) for beta in PRICES}
    estimates: dict[str, Estimate] = {
        f"{what} gained, beta {beta}": mean_interval(values)
        for (what, beta), values in gain.items()
    }
    estimates |= {f"KL, beta {beta}": mean_interval(values) for beta, values in far.items()}
    kept = mean_interval(gain["gold quality", PAID], confidence=0.9)
    saved = [
        paid - free
        for paid, free in zip(gain["gold quality", PAID], gain["gold quality", FREE], strict=True)
    ]
    estimates[f"gold quality, beta {PAID} less {FREE}"] = mean_interval(saved)
    ordered = ordering(list(zip(*(far[beta] for beta in reversed(PRICES)), strict=True)))
    checks = [
        above("proxy gained when free", estimates[f"proxy gained, beta {FREE}"]),
        below("gold gained when free", estimates[f"gold quality gained, beta {FREE}"]),
        above(f"proxy gained at beta {PAID}", estimates[f"proxy gained, beta {PAID}"]),
        above(f"gold gained at beta {PAID} (90 %)", kept, -limit["loss"]),
        above("gold saved by the price", estimates[f"gold quality, beta {PAID} less {FREE}"]),
        Check(
            text=f"{ordered.estimate.value:.0%} of seeds go the further, the lower the price",
            holds=True if ordered.p_value < limit["p"] else None,
        ),
    ]
    return decide(checks, estimates)


def judge_scale(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 29; keys as in `measure_scale`."""
    names = ("kl", "gradient", "swing", "unevenness", "reward swing", "explained")
    estimates = {
        f"{name}/{way}": average(measurements, f"{name}/{way}")
        for name in (*names, "proxy gained", "gold gained")
        for way in WAYS
    }
    further = difference(measurements, "kl/none", minus="kl/batch")
    rougher = difference(measurements, "swing/none", minus="swing/batch")
    estimates |= {"KL, none less batch": further, "swing, none less batch": rougher}
    checks = [
        above("divergence of raw scores less that of whitened ones", further, limit["more"]),
        above("swing of the gradient, likewise", rougher, limit["more"]),
    ]
    return decide(checks, estimates)


CLAIMS = (
    Claim(
        id=27,
        section="3.2.3",
        statement="The price of divergence limits how far a policy exploits its reward model.",
        paper_value="beta 0.01 for 7B and 13B, 0.005 for 34B and 70B; no ablation",
        paper_trust=Trust.DESIGN,
        prediction="Without a price the reward model's score rises and the gold mark falls. At "
        f"beta {PAID} the score rises too, the gold mark does not fall, and the lower the price, "
        "the further a policy goes.",
        threshold=threshold(
            "From V4 to the end of a run, on held-out prompts: when free the proxy gains and the "
            f"gold quality loses; at beta {PAID} the proxy gains, and gold ends above what is left "
            f"when free (95 % over seeds). At beta {PAID} gold loses less than {{loss:g}}, well "
            "under half of what a pilot lost when free (90 %, one-sided 5 %). Seeds are in the "
            "order of the prices in how far they go, more often than by chance (p < {p:g}).",
            loss=0.04,
            p=0.05,
        ),
        judge=judge_price,
        measure=measure_price,
        requests=price_requests,
        recorded=True,
    ),
    Claim(
        id=29,
        section="3.2.3",
        statement="Whitening the final scores makes PPO steadier and keeps it in balance with the "
        "price of divergence.",
        paper_value="found important; logit, then whitening; no number",
        paper_trust=Trust.DESIGN,
        prediction="At the same beta raw scores, whose spread is about 2, take the policy further, "
        "for the price is worth less, and the length of its gradient swings more.",
        threshold=threshold(
            f"At beta {PAID}, raw scores less scores whitened over the batch: the divergence at "
            "the end, and the standard deviation over iterations of the gradient's length before "
            "clipping, both above {more:g} (95 % over seeds). Whitening by tag is shown.",
            more=0.0,
        ),
        judge=judge_scale,
        measure=measure_scale,
        requests=scale_requests,
        recorded=True,
    ),
)
