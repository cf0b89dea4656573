"""What claims 27 and 29 measure: short runs of PPO that differ in one setting each.

All start from the recipe's own V4 and climb its own reward models. A seed draws other prompts, to
train on and to measure with, other samples and another order; it does not draw another judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llama2_lib import pipeline
from llama2_lib.claims.claim import Measurement
from llama2_lib.device import choose_device
from llama2_lib.recipes import Recipe
from llama2_lib.storage import read_metrics

BETAS = (0.0, 0.05, 0.2, 0.8)
CHOSEN = 0.2
"""The recipe nano's."""
WAYS = {"none": "nothing", "batch": "batch", "tag": "tag"}
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
READ = ("gold_quality", "gold_helpfulness", "gold_safety")
LAST = 5
"""Iterations at the end that are averaged."""


def arms(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return the runs of one seed by name: four prices, and at the chosen one two other scales."""
    short = replace(
        recipe.ppo, beta=CHOSEN, whiten_by="tag", patience=NEVER, save_every=NEVER, seed=seed,
        **SHORT,
    )  # fmt: skip
    changed = {f"{beta:g}": replace(short, beta=beta) for beta in BETAS}
    changed |= {way: replace(short, whiten_by=by) for way, by in WAYS.items()}
    return {name: replace(recipe, ppo=config) for name, config in changed.items()}


def _requests(
    recipe: Recipe, seeds: Sequence[int], names: Sequence[str]
) -> list[tuple[str, Recipe]]:
    return [("ppo", arms(recipe, seed)[name]) for seed in seeds for name in names]


def price_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the runs of claim 27."""
    return _requests(recipe, seeds, [f"{beta:g}" for beta in BETAS])


def scale_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the runs of claim 29; the one whitened by tag is the chosen one of claim 27."""
    return _requests(recipe, seeds, list(WAYS))


def path(rows: Sequence[Mapping[str, Any]], warmup: int) -> dict[int, dict[str, float]]:
    """Return kl, proxy and gold at every measurement of a run, by iterations of the policy.

    The divergence is exact and belongs to the answers sampled right after the measurement, from
    the policy that was measured; after the last iteration none are sampled, so it is that of the
    last ones.
    """
    kl = {row["step"]: max(0.0, float(row["exact_kl"])) for row in rows if "exact_kl" in row}
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if "held_out_reward" not in row:
            continue
        step = row["step"]
        found[max(0, step - warmup)] = {
            "kl": kl.get(step + 1, kl[max(kl)]),
            "proxy": float(row["held_out_reward"]),
            **{name.replace("_", " "): float(row[name]) for name in READ},
        }
    return found


def _rows(recipe: Recipe) -> list[dict[str, Any]]:
    return read_metrics(pipeline.artifact("ppo", recipe, bar=False) / "metrics.jsonl")


def measure_price(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 27: `<what>/<beta>/<iterations>` for every measurement of every run.

    What: `kl` (exact, nats an answer), `proxy` (the reward models' raw combined score), `gold
    quality`, `gold helpfulness`, `gold safety` (0 to 1), all on one sampled answer to each
    held-out prompt, but for the divergence. Iteration 0 is V4.
    """
    pipeline.artifacts(price_requests(recipe, [seed]))
    values: dict[str, float] = {}
    for name, run in arms(recipe, seed).items():
        if name in WAYS:
            continue
        for iteration, point in path(_rows(run), run.ppo.value_warmup).items():
            values |= {f"{what}/{name}/{iteration}": value for what, value in point.items()}
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def measure_scale(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 29: `<what>/<way>`, way being none, batch or tag.

    What: `kl`, exact, mean of the last iterations; `gradient` and `swing`, mean and standard
    deviation over iterations of the length of the gradient before it is clipped; `unevenness`,
    root mean square of the second differences of the divergence, over its mean; `reward swing`,
    standard deviation of the mean reward of a batch about its straight line; `explained`, share of
    the variance of returns that the value function explains; `proxy gained`, `gold gained`.
    """
    pipeline.artifacts(scale_requests(recipe, [seed]))
    runs = arms(recipe, seed)
    values: dict[str, float] = {}
    for way in WAYS:
        rows = _rows(runs[way])
        found = steadiness(rows) | gains(path(rows, runs[way].ppo.value_warmup))
        values |= {f"{what}/{way}": value for what, value in found.items()}
    return Measurement(values=values, seed=seed, device=str(choose_device()))


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
