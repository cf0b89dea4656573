"""Files that are there or are not: atomic writes, sealed folders, metrics, fingerprints.

A finished folder is sealed: `meta.json` lists the sha256 of every other file. A reader checks
the seal first, so a truncated or foreign folder is refused instead of half-read.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

META = "meta.json"


class DamagedArtifactError(ValueError):
    """A folder is not what its name and its seal say."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file holding `content`; readers see the old file or the new one.

    Survives a killed process. Surviving a power cut would need `fsync` as well.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staging.write_bytes(content.encode() if isinstance(content, str) else content)
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def canonical_json(document: Any) -> str:
    """Return JSON in which equal documents have equal text: sorted keys, no spaces."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(document: Any) -> str:
    """Return the first 12 hex digits of the sha256 of a JSON-like document."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def staged_folder(final: Path, meta: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a hidden sibling of `final` to write into; seal and rename it on a clean exit.

    On one file system a rename is atomic, so `final` exists only when it is complete. The
    staging folder keeps its contents when the block fails, so that a stage can resume from it;
    only hidden files go, which a killed write or removal left behind.

    Raises:
        FileExistsError: `final` is already there.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists already; artifacts are never overwritten.")
    staging = final.with_name(f".{final.name}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    for leftover in list(staging.glob(".*")):
        remove(leftover)
    yield staging
    seal(staging, meta)
    staging.rename(final)


def seal(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json` with `meta` and the sha256 of every other file in `folder`."""
    files = {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != META
    }
    document = {**meta, "files": files}
    write_atomically(folder / META, json.dumps(document, indent=2, sort_keys=True) + "\n")


def read_sealed(folder: Path, stage: str, expected: str) -> dict[str, Any]:
    """Return the meta document of a sealed folder, after checking all its files.

    Args:
        folder: The artifact.
        stage: The stage that must have made it.
        expected: The fingerprint it must carry.

    Raises:
        FileNotFoundError: There is no such folder.
        DamagedArtifactError: A file is missing, changed or foreign, or the seal is another's.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist.")
    try:
        meta = json.loads((folder / META).read_text())
        files = dict(meta["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArtifactError(
            f"{folder} must hold a readable {META}, written last; got {error!r}. "
            "It was cut off or is not an artifact of this course."
        ) from None
    if (meta.get("stage"), meta.get("fingerprint")) != (stage, expected):
        raise DamagedArtifactError(
            f"{folder} must be {stage}/{expected}; its {META} says "
            f"{meta.get('stage')}/{meta.get('fingerprint')}. It was copied from elsewhere."
        )
    present = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != META
    }
    for name in sorted(files.keys() | present):
        if name not in present:
            raise DamagedArtifactError(f"{folder / name} must exist; it is missing.")
        if name not in files:
            raise DamagedArtifactError(f"{folder / name} is not listed in {META}: a foreign file.")
        if file_sha256(folder / name) != files[name]:
            raise DamagedArtifactError(
                f"{folder / name} must have the sha256 in {META}; its bytes differ: "
                "truncated or edited."
            )
    return meta


def set_aside(folder: Path) -> Path:
    """Rename a damaged folder to a free name beside it, so that nothing is lost, and return it."""
    for number in range(1, 10_000):
        aside = folder.with_name(f".{folder.name}.damaged-{number}")
        if not aside.exists():
            folder.rename(aside)
            return aside
    raise FileExistsError(f"too many damaged copies beside {folder}; delete some.")


def remove(path: Path) -> None:
    """Delete a file or a folder; it is no error if it is gone already.

    A folder is renamed first, so that a crash leaves it whole or hidden, never half of it.
    """
    if path.is_dir():
        doomed = path.with_name(f".{path.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


class MetricsLog:
    """An append-only `metrics.jsonl`: one object a line, readable while it is written."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, step: int, **values: float | int | str) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def keep_up_to(self, step: int) -> None:
        """Drop what was logged after `step`, before a run resumes from there."""
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.jsonl`; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number == len(lines) - 1:
                break
            raise DamagedArtifactError(
                f"{path} line {number + 1} must be JSON; got {line[:60]!r}."
            ) from None
    return rows
