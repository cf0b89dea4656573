"""The ledger: runs claims over seeds, keeps the results with their provenance, renders them."""

import dataclasses
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama2_lib import storage
from llama2_lib.claims.catalogue import CLAIMS
from llama2_lib.claims.claim import CannotShow, Claim, Measurement, Outcome, Verdict
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.world.lexicon import lexicon_folder

FORMAT = 1
PACKAGES = ("torch", "numpy", "scipy", "sentencepiece")


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


def run_claims(
    ids: Sequence[int],
    recipe: Any,
    seeds: Sequence[int] = range(5),
    *,
    claims: Mapping[int, Claim] = CLAIMS,
    report: Callable[[str], None] = print,
) -> list[Result]:
    """Measure claims over seeds and judge each; its prediction is reported before it is run.

    Args:
        ids: Which claims.
        recipe: Complete settings, a dataclass; passed on to each `measure`.
        seeds: One measurement each.
        claims: Where the ids are looked up.
        report: Takes one line of text.

    Raises:
        ValueError: An id is unknown or has no measure, or there is no seed; before any run.
    """
    chosen = [_find(claim_id, claims) for claim_id in ids]
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds must be different numbers, at least one; got {list(seeds)}. "
            "The default is 0 to 4."
        )
    return [_run(claim, recipe, seeds, report) for claim in chosen]


def _find(claim_id: int, claims: Mapping[int, Claim]) -> Claim:
    if claim_id not in claims:
        nearest = sorted(claims, key=lambda known: (abs(known - claim_id), known))[:3]
        raise ValueError(
            f"a claim must be one of the {len(claims)} in the ledger; got {claim_id}. "
            f"Nearest: {', '.join(map(str, nearest)) or 'none'}."
        )
    claim = claims[claim_id]
    if claim.measure is None:
        measured = [str(known) for known, other in claims.items() if other.measure is not None]
        raise ValueError(
            f"claim {claim_id} is declared but has no measure yet. "
            f"Measured so far: {', '.join(measured) or 'none'}."
        )
    return claim


def _run(claim: Claim, recipe: Any, seeds: Sequence[int], report: Callable[[str], None]) -> Result:
    declared = claim.declaration()
    report(f"claim {claim.id} (section {claim.section}): {claim.statement}")
    report(f"  predicted: {claim.prediction}")
    report(f"  threshold: {claim.threshold}")
    started = time.perf_counter()
    measurements: list[Measurement] = []
    try:
        for seed in seeds:
            measurements.append(_measured(claim, recipe, seed))
    except CannotShow as limit:
        verdict = Verdict(outcome=Outcome.CANNOT_SHOW, reason=str(limit))
    else:
        verdict = claim.verdict(measurements)
    seconds = time.perf_counter() - started
    report(f"  {verdict.outcome}: {verdict.reason}")
    return Result(
        declared=declared,
        verdict=verdict,
        measurements=tuple(measurements),
        provenance={
            **provenance(recipe),
            "seeds": list(seeds),
            "devices": sorted({measurement.device for measurement in measurements}),
            "wall_seconds": round(seconds, 1),
        },
    )


def _measured(claim: Claim, recipe: Any, seed: int) -> Measurement:
    assert claim.measure is not None
    measurement = claim.measure(recipe, seed)
    for name, value in measurement.values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"measured numbers must be finite; claim {claim.id}, seed {seed} gave "
                f"{name}={value}. Look at that run; no seed is dropped."
            )
    return dataclasses.replace(measurement, seed=seed)


def provenance(recipe: Any) -> dict[str, Any]:
    """Return what a result depends on: recipe, its fingerprint, versions, platform."""
    name = getattr(recipe, "name", type(recipe).__name__)
    document = json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "recipe": str(name),
        "fingerprint": storage.fingerprint(document),
        "versions": {"python": platform.python_version(), **versions},
        "platform": f"{platform.system()} {platform.machine()}",
    }


def write_ledger(results: Sequence[Result], path: Path) -> None:
    """Merge results into the ledger at `path`; other claims and recipes stay as they are.

    Raises:
        ValueError: The file that is there is no ledger.
    """
    kept = {result.key: result for result in (read_ledger(path) if path.exists() else [])}
    kept.update({result.key: result for result in results})
    entries = [dataclasses.asdict(_plain(kept[key])) for key in sorted(kept)]
    document = {"format": FORMAT, "entries": entries}
    storage.write_atomically(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _plain(result: Result) -> Result:
    # asdict copies mappings of other kinds as they are, and JSON knows only dict.
    verdict = dataclasses.replace(result.verdict, estimates=dict(result.verdict.estimates))
    rows = [dataclasses.replace(row, values=dict(row.values)) for row in result.measurements]
    return Result(
        declared=dict(result.declared),
        verdict=verdict,
        measurements=rows,
        provenance=dict(result.provenance),
    )


def read_ledger(path: Path) -> list[Result]:
    """Return the results of a ledger.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of another format.
    """
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


def recorded(claim_id: int, recipe: str = "nano", path: Path | None = None) -> Result:
    """Return the result of one claim from the ledger that comes with the course.

    Raises:
        FileNotFoundError: There is no ledger.
        ValueError: It holds no such result.
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


def render_table(results: Sequence[Result]) -> str:
    """Return a Markdown table: the paper's value, ours with intervals, the verdict and why."""
    header = ["#", "claim", "paper", "ours", "verdict"]
    rows = [header, ["---"] * len(header)]
    for result in sorted(results, key=lambda result: result.key):
        declared, verdict = result.declared, result.verdict
        ours = [f"{name}: {estimate}" for name, estimate in verdict.estimates.items()]
        n_seeds = len(result.measurements)
        run = f"({result.provenance['recipe']}, {n_seeds} seed{'s' * (n_seeds != 1)})"
        why = "" if verdict.outcome == Outcome.REPRODUCED else f": {verdict.reason}"
        rows.append(
            [
                str(declared["id"]),
                f"{declared['statement']} (section {declared['section']})",
                f"{declared['paper_value']} ({declared['paper_trust']})",
                "<br>".join([*ours, run]),
                f"**{verdict.outcome}**{why}",
            ]
        )
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
