"""The ledger: all declared claims; runs them over seeds, and keeps and tells the results."""

import dataclasses
import importlib.metadata
import itertools
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llama2_lib import pipeline, storage
from llama2_lib.claims import (
    attention,
    chain,
    corpus,
    emergent,
    evaluation,
    finetuning,
    ghost_attention,
    ppo,
    pretraining,
    rejection,
    reward,
    safety,
    scale,
)
from llama2_lib.claims.claim import (
    CannotShow,
    Claim,
    Measurement,
    Outcome,
    Request,
    Verdict,
    column,
)
from llama2_lib.config import Recipe
from llama2_lib.evaluation.statistics import Estimate, holm
from llama2_lib.pipeline import settings
from llama2_lib.world.lexicon import lexicon_folder

FORMAT = 1
PACKAGES = ("torch", "numpy", "scipy", "sentencepiece")
HEADLINE = (5, 15, 21, 23, 26, 27, 31, 40, 43, 46)
"""Claims on what the paper is known for; their p-values are adjusted together."""
SECTIONS = (
    pretraining, corpus, attention, finetuning, reward, rejection, chain, ppo,
    ghost_attention, safety, evaluation, emergent, scale,
)  # fmt: skip


def collect(*groups: Sequence[Claim]) -> Mapping[int, Claim]:
    """Return the claims of all groups by id, in the order of the ids."""
    claims = sorted(itertools.chain(*groups), key=lambda claim: claim.id)
    by_id = {claim.id: claim for claim in claims}
    ids = [claim.id for claim in claims]
    assert len(by_id) == len(ids), f"every claim needs an id of its own; got {ids}"
    return MappingProxyType(by_id)


CLAIMS = collect(*(section.CLAIMS for section in SECTIONS))
"""All claims that have been declared, by id."""


def grid_requests(
    recipe: Recipe, seeds: Sequence[int] = range(3), claims: Mapping[int, Claim] = CLAIMS
) -> list[Request]:
    """Return every run that some claim needs, each once: what `pipeline.artifacts` can train."""
    return list(dict.fromkeys(r for c in claims.values() for r in c.requests(recipe, seeds)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One claim, measured with one recipe: what was declared, what came out, and where."""

    declared: Mapping[str, Any]
    """`Claim.declaration()` as it stood before the run."""
    verdict: Verdict
    measurements: Sequence[Measurement]
    provenance: Mapping[str, Any]
    """Recipe and its fingerprint, seeds, versions, devices, wall seconds; no date."""

    @property
    def key(self) -> tuple[int, str]:
        """Claim id and recipe name: a newer result with the same key replaces an older one."""
        return self.declared["id"], self.provenance["recipe"]

    @property
    def threshold(self) -> str:
        """The sentence that was declared, word for word."""
        return self.declared["threshold"]

    def __getitem__(self, key: str) -> list[float]:
        """Return one measured number of every seed."""
        return column(self.measurements, key)

    def __str__(self) -> str:
        """Return what the claim says, what the paper found and what came out here, for people."""
        declared, verdict, n_seeds = self.declared, self.verdict, len(self.measurements)
        lines = [
            f"claim {declared['id']}  {declared['statement']} (section {declared['section']})",
            f"  paper      {declared['paper_value']} ({declared['paper_trust']})",
            f"  predicted  {declared['prediction']}",
            f"  threshold  {declared['threshold']}",
            *(f"  ours       {name}: {estimate}" for name, estimate in verdict.estimates.items()),
            f"  run        {self.provenance['recipe']}, {n_seeds} seed{'s' * (n_seeds != 1)}",
            f"  verdict    {verdict.outcome}: {verdict.reason}",
        ]
        return "\n".join(lines)


def run_claims(
    ids: Sequence[int],
    recipe: Recipe,
    seeds: Sequence[int] = range(5),
    *,
    claims: Mapping[int, Claim] = CLAIMS,
    report: Callable[[str], object] = print,
    keep: Path | None = None,
) -> list[Result]:
    """Measure claims over seeds and judge each; its prediction is reported before it is run.

    In the folder `keep` every seed is written down as it ends, so that a run that was stopped
    begins again with the seed that it had begun.

    Raises:
        ValueError: An id is unknown, or there is no seed; before any run.
    """
    for claim_id in ids:
        if claim_id not in claims:
            nearest = sorted(claims, key=lambda known: (abs(known - claim_id), known))[:3]
            raise ValueError(
                f"a claim must be one of the {len(claims)} in the ledger; got {claim_id}. "
                f"Nearest: {', '.join(map(str, nearest)) or 'none'}."
            )
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds must be different numbers, at least one; got {list(seeds)}. "
            "The default is 0 to 4."
        )
    return [_run(claims[claim_id], recipe, seeds, report, keep) for claim_id in ids]


def _run(
    claim: Claim,
    recipe: Recipe,
    seeds: Sequence[int],
    report: Callable[[str], object],
    keep: Path | None,
) -> Result:
    report(f"claim {claim.id} (section {claim.section}): {claim.statement}")
    report(f"  predicted: {claim.prediction}")
    report(f"  threshold: {claim.threshold}")
    started = time.perf_counter()
    measurements: list[Measurement] = []
    try:
        for seed in seeds:
            measurements.append(_measured(claim, recipe, seed, keep))
    except CannotShow as limit:
        verdict = Verdict(outcome=Outcome.CANNOT_SHOW, reason=str(limit))
    else:
        verdict = claim.verdict(measurements)
    seconds = time.perf_counter() - started
    report(f"  {verdict.outcome}: {verdict.reason}")
    return Result(
        declared=claim.declaration(),
        verdict=verdict,
        measurements=tuple(measurements),
        provenance={
            **provenance(recipe),
            "runs": runs_fingerprint(claim, recipe, seeds[:1]),
            "seeds": list(seeds),
            "devices": sorted({measurement.device for measurement in measurements}),
            "wall_seconds": round(seconds, 1),
        },
    )


def _measured(claim: Claim, recipe: Recipe, seed: int, keep: Path | None) -> Measurement:
    """Measure one seed, or read it where it was measured with the same settings and code."""
    if keep is None:
        return claim.measure(recipe, seed)
    folders = [Path(__file__).parent, Path(__file__).parents[1] / "evaluation"]
    code = [storage.file_sha256(p) for folder in folders for p in sorted(folder.glob("*.py"))]
    runs = runs_fingerprint(claim, recipe, [seed])
    name = storage.fingerprint([claim.declaration(), runs, provenance(recipe), code])
    path = keep / f"claim-{claim.id}" / f"{name}-seed-{seed}.json"
    if path.is_file():
        return Measurement(**json.loads(path.read_text(encoding="utf-8")))
    measurement = claim.measure(recipe, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_atomically(path, json.dumps(dataclasses.asdict(measurement)))
    return measurement


def runs_fingerprint(claim: Claim, recipe: Recipe, seeds: Sequence[int]) -> str:
    """Return what names the runs that a claim measures, and with them all that they stand on.

    A record with another name is of an earlier recipe. A section of the recipe that none of the
    runs reads does not count.
    """
    of, requests = cache(settings.constants_of), claim.requests(recipe, seeds)
    return storage.fingerprint([pipeline.fingerprint(stage, run, of) for stage, run in requests])


def is_current(result: "Result", recipe: Recipe, claims: Mapping[int, Claim] = CLAIMS) -> bool:
    """Tell whether a record is of the runs that this code would train with `recipe`."""
    claim, seed = claims[result.declared["id"]], result.provenance["seeds"][0]
    return result.provenance.get("runs") == runs_fingerprint(claim, recipe, [seed])


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Return what a result depends on: recipe, its fingerprint, versions, platform."""
    document = json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "recipe": recipe.name,
        "fingerprint": storage.fingerprint(document),
        "versions": {"python": platform.python_version(), **versions},
        "platform": f"{platform.system()} {platform.machine()}",
    }


def headline_p_values(
    results: Sequence[Result], claims: Mapping[int, Claim] = CLAIMS
) -> dict[int, tuple[float, float]]:
    """Return the p-value of each claim of `HEADLINE` that was measured, alone and by Holm."""
    alone = {
        result.declared["id"]: claims[result.declared["id"]].p_value(result.measurements)
        for result in results
        if result.declared["id"] in HEADLINE and result.measurements
    }
    measured = {number: p for number, p in alone.items() if p is not None}
    return {number: (measured[number], p) for number, p in holm(measured).items()}


def write_ledger(results: Sequence[Result], path: Path) -> None:
    """Merge results into the ledger at `path`; other claims and recipes stay as they are."""
    known = read_ledger(path) if path.exists() else []
    kept = {result.key: result for result in (*known, *results)}
    document = {
        "format": FORMAT,
        "entries": [dataclasses.asdict(kept[key]) for key in sorted(kept)],
    }
    storage.write_atomically(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_ledger(path: Path) -> list[Result]:
    """Return the results of a ledger."""
    if not path.is_file():
        raise FileNotFoundError(
            f"a ledger must be a file; {path} does not exist. Run `llama2 claims` to write one."
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}")
        return [_restore(entry) for entry in document["entries"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be a ledger of format {FORMAT}; got {error!r}. Move it away and run "
            "`llama2 claims` again."
        ) from error


def _restore(entry: Mapping[str, Any]) -> Result:
    verdict = entry["verdict"]
    estimates = {name: Estimate(**fields) for name, fields in verdict["estimates"].items()}
    return Result(
        declared=entry["declared"],
        verdict=Verdict(
            outcome=Outcome(verdict["outcome"]), reason=verdict["reason"], estimates=estimates
        ),
        measurements=tuple(Measurement(**fields) for fields in entry["measurements"]),
        provenance=entry["provenance"],
    )


def recorded(claim_id: int, recipe: str = "nano", path: Path | None = None) -> Result:
    """Return the result of one claim from the ledger that comes with the course.

    It holds the declaration with its sentence (`.threshold`), `.verdict`, `.measurements` (one
    number of all seeds is `result["key"]`) and `.provenance`; printed, it is a text for people.
    """
    results = read_ledger(path or lexicon_folder().parent / "claims.json")
    for result in results:
        if result.key == (claim_id, recipe):
            return result
    raise ValueError(
        f"the ledger must hold claim {claim_id} of the recipe {recipe!r}; it holds "
        f"{', '.join(f'{number} ({name})' for number, name in (r.key for r in results))}. Run "
        f"`llama2 claims {claim_id} --recipe {recipe} --write data/claims.json`."
    )
