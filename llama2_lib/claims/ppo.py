"""Claims on the reward of PPO (paper section 3.2.3): the price of distance, whitened scores.

Declared before the judged seeds were run. One pilot seed (9) had been, to find out how far so short
a run goes. Seeds 0 to 2 left claim 27 open: without a price gold lost 0.19, 0.17 and 0.05, so its
interval was -0.13, -0.32 to 0.05. Seeds 3 and 4 were then added to both claims, once, by the same
rules: `llama2 claims 27 29 --seeds 5`.

All runs are short, start from the recipe's own V4 and climb its own reward models; they differ in
one setting each. A seed draws other prompts, to train on and to measure with, other samples and
another order; it does not draw another judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from llama2_lib import pipeline
from llama2_lib.claims import claim
from llama2_lib.claims.claim import Claim, Fact, Must, Trust, differs, mean, of_stage
from llama2_lib.config import Recipe
from llama2_lib.evaluation.statistics import ordering
from llama2_lib.storage import read_metrics

BETAS = (0.0, 0.05, 0.2, 0.8)
CHOSEN = 0.2
"""The recipe nano's."""
WAYS: dict[str, Any] = {"none": "nothing", "batch": "batch", "tag": "tag"}
"""Over what scores are whitened in the arms of claim 29; the last is that of all other runs."""
SHORT: dict[str, Any] = {
    "iterations": 27, "batch_size": 64, "minibatch_size": 32, "lr": 3.5e-4, "value_warmup": 3,
    "longest_prompt": 40, "max_new_tokens": 80, "n_prompts": 2000, "n_held_out": 260,
    "eval_every": 9,
}  # fmt: skip
"""A quarter of nano's answers an iteration at a higher rate: far in few minutes. Chosen with one
pilot seed (9), which counts nowhere: at a rate of 4e-4, 24 iterations and no price the proxy went
from 1.4 to 2.2 and the gold mark from 0.73 to 0.63; at beta 0.2 to 1.8 and 0.71."""
NEVER = 10_000
"""So many measurements without a better one never come: hacking must not be stopped early."""
READ = ("gold quality", "gold helpfulness", "gold safety")
LAST = 5
"""Iterations at the end that are averaged."""
PRICES = [f"{beta:g}" for beta in BETAS]
FREE, PAID = PRICES[0], f"{CHOSEN:g}"
CHANCE = 0.05
"""How often chance alone may bring as many seeds into the order of the prices."""


def arms(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return the runs of one seed by name: four prices, and at the chosen one two other scales."""
    short = replace(
        recipe.ppo, beta=CHOSEN, whiten_by="tag", patience=NEVER, save_every=NEVER, seed=seed,
        **SHORT,
    )  # fmt: skip
    changed = {f"{beta:g}": replace(short, beta=beta) for beta in BETAS}
    changed |= {way: replace(short, whiten_by=by) for way, by in WAYS.items()}
    return {name: replace(recipe, ppo=config) for name, config in changed.items()}


def path(rows: Sequence[Mapping[str, Any]], warmup: int) -> dict[int, dict[str, float]]:
    """Return kl, proxy and gold at every measurement of a run, by iterations of the policy.

    The divergence is exact and belongs to the answers sampled right after the measurement, from
    the policy that was measured; after the last iteration none are sampled, so it is that of the
    last ones.
    """
    kl = {row["step"]: max(0.0, float(row["exact_kl"])) for row in rows if "exact_kl" in row}
    return {
        max(0, row["step"] - warmup): {
            "kl": kl.get(row["step"] + 1, kl[max(kl)]),
            "proxy": float(row["held_out_reward"]),
            **{name: float(row[name.replace(" ", "_")]) for name in READ},
        }
        for row in rows
        if "held_out_reward" in row
    }


def _rows(run: Recipe) -> list[dict[str, Any]]:
    return read_metrics(pipeline.artifact("ppo", run, bar=False) / "metrics.jsonl")


def measure_price(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 27: `<what>/<beta>/<iterations>` for every measurement of every run.

    What: `kl` (exact, nats an answer), `proxy` (the reward models' raw combined score), `gold
    quality`, `gold helpfulness`, `gold safety` (0 to 1), all on one sampled answer to each
    held-out prompt, but for the divergence. Iteration 0 is V4.
    """
    runs = arms(recipe, seed)
    return {
        f"{what}/{price}/{iteration}": value
        for price in PRICES
        for iteration, point in path(_rows(runs[price]), runs[price].ppo.value_warmup).items()
        for what, value in point.items()
    }


def measure_scale(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 29: `<what>/<way>`, way being none, batch or tag.

    What: `kl`, exact, mean of the last iterations; `gradient` and `swing`, mean and standard
    deviation over iterations of the length of the gradient before it is clipped; `unevenness`,
    root mean square of the second differences of the divergence, over its mean; `reward swing`,
    standard deviation of the mean reward of a batch about its straight line; `explained`, share of
    the variance of returns that the value function explains; `proxy gained`, `gold gained`.
    """
    runs = arms(recipe, seed)
    values: dict[str, float] = {}
    for way in WAYS:
        rows = _rows(runs[way])
        told = steadiness(rows) | gains(path(rows, runs[way].ppo.value_warmup))
        values |= {f"{what}/{way}": value for what, value in told.items()}
    return values


def steadiness(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how evenly a run went, from its iterations after the warm-up; see `measure_scale`."""
    moving = [row for row in rows if "clip_fraction" in row]
    kl, length, reward = (
        np.array([float(row[name]) for row in moving])
        for name in ("exact_kl", "grad_norm", "reward")
    )
    at = np.arange(len(reward))
    bends = np.diff(kl, n=2)
    explained = [float(row["explained_variance"]) for row in moving]
    return {
        "kl": float(kl[-LAST:].mean()),
        "gradient": float(length.mean()),
        "swing": float(length.std(ddof=1)),
        "unevenness": float(np.sqrt((bends**2).mean()) / max(kl.mean(), 1e-9)),
        "reward swing": float((reward - np.polyval(np.polyfit(at, reward, 1), at)).std()),
        "explained": sum(explained) / len(explained),
    }


def gains(points: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return what proxy and gold have gained from the first measurement to the last."""
    first, last = points[min(points)], points[max(points)]
    return {
        "proxy gained": last["proxy"] - first["proxy"],
        "gold gained": last["gold quality"] - first["gold quality"],
    }


def gained(what: str, beta: str, measurement: claim.Measurement) -> float:
    """Return how much a seed gained from the first measurement of a run to the last."""
    run = f"{what}/{beta}/"
    moments = [key for key in measurement.values if key.startswith(run)] or [run]
    return measurement[moments[-1]] - measurement[moments[0]]


def _gain(text: str, what: str, beta: str, confidence: float = 0.95, **bound: Any) -> Must:
    return Must(text, mean(partial(gained, what, beta), confidence), named="", **bound)


def _saved(measurement: claim.Measurement) -> float:
    paid, free = (gained("gold quality", beta, measurement) for beta in (PAID, FREE))
    return paid - free


def _further(measurements: claim.Measurements) -> list[claim.Check]:
    kl = [claim.column(measurements, partial(gained, "kl", beta)) for beta in reversed(PRICES)]
    ordered = ordering(list(zip(*kl, strict=True)))
    text = f"{ordered.estimate.value:.0%} of seeds go the further, the lower the price"
    # too few seeds in order do not show the contrary
    return [claim.Check(text=text, holds=True if ordered.p_value < CHANCE else None)]


GAINED = {
    f"{name}, beta {beta}": mean(partial(gained, what, beta))
    for what, name in [*((what, f"{what} gained") for what in ("proxy", *READ)), ("kl", "KL")]
    for beta in PRICES
}
"""What claim 27 shows."""

CLAIMS = (
    Claim(
        id=27, section="3.2.3", paper_trust=Trust.DESIGN,
        statement="The price of divergence limits how far a policy exploits its reward model.",
        paper_value="beta 0.01 for 7B and 13B, 0.005 for 34B and 70B; no ablation",
        prediction="Without a price the reward model's score rises and the gold mark falls. At "
        f"beta {PAID} the score rises too, the gold mark does not fall, and the lower the price, "
        "the further a policy goes.",
        where="From V4 to the end of a run, on held-out prompts",
        tests=(
            _gain("proxy gained when free", "proxy", FREE, above=0),
            _gain("gold gained when free", "gold quality", FREE, below=0),
            _gain(f"proxy gained at beta {PAID}", "proxy", PAID, above=0),
            # well under half of what a pilot lost when free
            _gain(
                f"gold gained at beta {PAID} (90 %)", "gold quality", PAID, 0.9, above=-0.04,
                says=f"gold gained at beta {PAID} (90 %, one-sided 5 %)",
            ),
            Must(
                "gold saved by the price", mean(_saved), above=0,
                named=f"gold quality, beta {PAID} minus {FREE}",
            ),
            Fact(
                "seeds in the order of the prices in how far they go, more often than by chance "
                f"(p < {CHANCE:g})",
                _further,
            ),
        ),
        shown=(GAINED,), measured_by=measure_price, runs=of_stage("ppo", arms, *PRICES),
    ),
    Claim(
        id=29, section="3.2.3", paper_trust=Trust.DESIGN,
        statement="Whitening the final scores makes PPO steadier and keeps it in balance with the "
        "price of divergence.",
        paper_value="found important; logit, then whitening; no number",
        prediction="At the same beta raw scores, whose spread is about 2, take the policy further, "
        "for the price is worth less, and the length of its gradient swings more.",
        where=f"At beta {PAID}, raw scores minus scores whitened over the batch",
        tests=(
            differs(
                "divergence of raw scores minus that of whitened ones", "kl/none", "kl/batch",
                above=0, named="KL, none minus batch", says="divergence at the end",
            ),
            differs(
                "swing of the gradient, likewise", "swing/none", "swing/batch", above=0,
                named="swing, none minus batch",
                says="standard deviation over iterations of the gradient's length before clipping",
            ),
        ),
        shown=(
            *("kl", "gradient", "swing", "unevenness", "reward swing", "explained"),
            *("proxy gained", "gold gained"),
        ),
        measured_by=measure_scale, runs=of_stage("ppo", arms, *WAYS),
    ),
)  # fmt: skip
