"""Claims on rejection sampling (paper section 3.2.3): best of N, temperature, pool, distillation.

Claims 21 and 22 look at one chain, and 24 at its pools: their seeds draw prompts, samples and the
order of training, so the intervals say nothing of what another chain would give. Each takes one to
three minutes of a core, most of it to draw and score samples, so the ledger holds them.
"""

from collections.abc import Sequence

from llama2_lib.claims.alignment import gain
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
    keys_under,
    threshold,
    within,
)
from llama2_lib.claims.rejection_pools import (
    distillation_requests,
    measure_distillation,
    measure_pools,
    pool_requests,
)
from llama2_lib.claims.rejection_runs import (
    SIZES,
    TEMPERATURES,
    best_temperature,
    curve_requests,
    measure_curve,
    measure_temperatures,
    temperature_requests,
)
from llama2_lib.evaluation.statistics import equivalent, mean_interval

WIDER = "(95 %, the wider of the intervals over seeds and over prompts)"
HALF = 8
"""Half of the doublings of claim 21 end here."""


def judge_curve(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 21.

    Keys: `max/<n>` and `median/<n>`, expected maximum and median of n rewards after the sigmoid,
    mean over prompts; `gold/<n>`, `ceiling/<n>` are shown.
    """
    first, last = SIZES[0], SIZES[-1]
    one, half, end = (column(measurements, f"max/{n}") for n in (first, HALF, last))
    middle = column(measurements, f"median/{last - 1}")
    rise = [b - a for a, b in zip(one, end, strict=True)]
    bend = [2 * h - a - b for a, h, b in zip(one, half, end, strict=True)]
    drift = [(m - a) / r for m, a, r in zip(middle, one, rise, strict=True)]
    flat = equivalent(drift, [0.0] * len(drift), margin=limit["flat"])
    estimates = {
        f"rise of the maximum, 1 to {last}": mean_interval(rise),
        "early less late doublings": mean_interval(bend),
        "drift of the median, in rises": mean_interval(drift),
    }
    checks = [
        above(f"rise of the maximum, 1 to {last}", mean_interval(rise), limit["rise"]),
        above("early less late doublings", mean_interval(bend), limit["bend"]),
        within("drift of the median, in rises (90 %)", flat),
    ]
    for name in ("max", "median", "gold", "ceiling"):
        for n in keys_under(measurements, name):
            estimates[f"{name}/{n}"] = average(measurements, f"{name}/{n}")
    return decide(checks, estimates)


def judge_temperatures(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 22.

    Keys: `reward/<policy>/<n>/<temperature>`, mean over prompts of the expected maximum of n
    rewards after the sigmoid; `gold/...`, of the gold mark of the same sample, is shown.
    """
    n = max(int(key.split("/")[1]) for key in keys_under(measurements, "reward"))
    names = dict.fromkeys(key.split("/")[0] for key in keys_under(measurements, "reward"))
    peaks = {
        (what, name, size): _peaks(measurements, what, name, size)
        for what in ("reward", "gold")
        for name in names
        for size in (1, n)
    }
    estimates = {
        f"best temperature/{what}/{name}/{size}": mean_interval(values)
        for (what, name, size), values in peaks.items()
    }
    checks = []
    for name in ("SFT", "V4"):
        worst = mean_interval(_margin_of_hottest(measurements, name))
        pairs = zip(peaks["reward", name, n], peaks["reward", name, 1], strict=True)
        hotter = mean_interval([many - one for many, one in pairs])
        estimates[f"next worst less hottest/{name}/1"] = worst
        estimates[f"best temperature of {n} less of 1/{name}"] = hotter
        checks += [
            above(f"next worst less hottest, N = 1, {name}", worst),
            above(f"best temperature, N = {n} less N = 1, {name}", hotter),
        ]
    before, after = (peaks["reward", name, n] for name in ("SFT", "V4"))
    shift = mean_interval([b - a for a, b in zip(before, after, strict=True)])
    same = equivalent(after, before, margin=limit["same"]).holds
    apart = shift.low > 0 or shift.high < 0
    estimates["shift of the best temperature"] = shift
    checks.append(
        Check(
            text=f"best temperature of {n}, V4 less SFT: {shift}, must differ from 0",
            holds=False if same else True if apart else None,
        )
    )
    return decide(checks, estimates)


def _peaks(measurements: Sequence[Measurement], what: str, name: str, n: int) -> list[float]:
    """Return the best temperature of every seed."""
    curves = {t: column(measurements, f"{what}/{name}/{n}/{t}") for t in TEMPERATURES}
    return [
        best_temperature({t: values[seed] for t, values in curves.items()})
        for seed in range(len(measurements))
    ]


def _margin_of_hottest(measurements: Sequence[Measurement], name: str) -> list[float]:
    """Return by how much single samples at the hottest are worse than at any other, by seed."""
    curves = [column(measurements, f"reward/{name}/1/{t}") for t in TEMPERATURES]
    return [min(others) - hot for *others, hot in zip(*curves, strict=True)]


def judge_pools(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 24.

    Keys: `gain/<family>/pool over last`, gold mark after training on the pool less after the last
    round, in both of which the last round lacks some kinds of prompts; `gain/<family>/missing`,
    what their absence changes if there is only the last round; `error/...`, standard errors over
    prompts. Families: `form` and `harm`, what is missing, and `other`. All else is shown.
    """
    names = keys_under(measurements, "gain")
    estimates = {name: gain(measurements, name) for name in names}
    checks = []
    for family in ("form", "harm"):
        kept, lost = (estimates[f"{family}/{what}"] for what in ("pool over last", "missing"))
        checks += [
            above(f"{family}: pool less last round", kept, limit["gain"]),
            below(f"{family}: last round without less with it", lost, -limit["gain"]),
        ]
    shown = {
        f"quality/{key}": average(measurements, f"quality/{key}") for key in _under(measurements)
    }
    return decide(checks, estimates | shown)


def judge_distillation(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 25.

    Keys: `gain/<arm> over <arm>`, gold mark of the small model, with standard errors over prompts
    `error/...`; an arm is `big` or `own`, whose samples, and `best` or `random`, how chosen.
    `quality/<arm>`, `help/...`, `safety/...` and `pool/...` are shown.
    """
    estimates = {name: gain(measurements, name) for name in keys_under(measurements, "gain")}
    check = above(
        "small model, big's best less its own", estimates["big best over own best"], limit["gain"]
    )
    shown = {
        f"quality/{key}": average(measurements, f"quality/{key}") for key in _under(measurements)
    }
    pools = {
        f"learned from/{key}": average(measurements, f"pool/{key}")
        for key in keys_under(measurements, "pool")
    }
    return decide([check], estimates | shown | pools)


def _under(measurements: Sequence[Measurement]) -> list[str]:
    return keys_under(measurements, "quality")


CLAIMS = (
    Claim(
        id=21,
        section="3.2.3",
        statement="The best of N samples has the higher reward the more samples there are; the "
        "median stays.",
        paper_value="figure 7: maximum from about .54 to .67, median about .54",
        paper_trust=Trust.FIGURE,
        prediction="The maximum rises, less with each doubling, and the median stays. That it "
        "rises is so by construction; how far, how bent, and how level the median is, is not.",
        threshold=threshold(
            "Rewards after the sigmoid, training prompts: the expected maximum of 64 samples less "
            "that of one exceeds {rise:g}; the first three doublings bring more than the last "
            "three by over {bend:g} (95 % over seeds, that is over prompts and samples); the "
            "median moves by less than {flat:g} of the maximum's rise (90 %).",
            rise=0.05,
            bend=0.0,
            flat=0.25,
        ),
        judge=judge_curve,
        measure=measure_curve,
        requests=curve_requests,
        recorded=True,
    ),
    Claim(
        id=22,
        section="3.2.3",
        statement="The best sampling temperature depends on N, and shifts as the model is tuned.",
        paper_value="1.2 to 1.3 best for the RLHF model with 10 to 100 samples; none for SFT",
        paper_trust=Trust.PRINTED,
        prediction="One by one the hottest samples are the worst; with 16 samples a higher "
        "temperature is best than with one; and the best one is another for V4 than for SFT.",
        threshold=threshold(
            "Of temperatures 0.4 to 1.4, by the newest reward models after the sigmoid: at N = 1 "
            "the hottest has the lowest reward for both; the best temperature at N = 16 lies above "
            "that at N = 1 for both; at N = 16 that of V4 differs from that of SFT (95 % over "
            "seeds, that is over prompts and samples). It counts as the same if it is shown to "
            "differ by less than {same:g} (90 %).",
            same=0.1,
        ),
        judge=judge_temperatures,
        measure=measure_temperatures,
        requests=temperature_requests,
        recorded=True,
    ),
    Claim(
        id=24,
        section="3.2.3",
        statement="Samples of all rounds keep skills that the last round's samples lack.",
        paper_value="V3, tuned on the last round only, was worse at rhymes; no number",
        paper_trust=Trust.DESIGN,
        prediction="If the last round had no prompt for lists, stories and how-tos, and none that "
        "asks for harm, a model tuned on it answers those worse than one tuned on the pool, and "
        "worse than one whose last round had them. Equal steps, no demonstrations.",
        threshold=threshold(
            "Gold marks on held-out prompts of both families, forms and harm: the pool less the "
            "last round exceeds {gain:g}, and so does the last round with such prompts less the "
            f"one without {WIDER}.",
            gain=0.0,
        ),
        judge=judge_pools,
        measure=measure_pools,
        requests=pool_requests,
        recorded=True,
    ),
    Claim(
        id=25,
        section="3.2.3",
        statement="The big model's best samples teach a small model more than its own best.",
        paper_value="all sizes but 70B were tuned on the 70B's samples; effect not analysed",
        paper_trust=Trust.DESIGN,
        prediction="A small model tuned on the big one's best of 6 answers better than one tuned "
        "on its own best of 6: same prompts, same number of answers, equal steps. Shown beside, "
        "the control: one of the 6 at random.",
        threshold=threshold(
            "Gold mark on held-out prompts, big's best less own best: above {gain:g} "
            + WIDER
            + ".",
            gain=0.0,
        ),
        judge=judge_distillation,
        measure=measure_distillation,
        requests=distillation_requests,
        recorded=True,
    ),
)
