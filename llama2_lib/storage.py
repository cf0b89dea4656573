"""Files that are there or are not: atomic writes, sealed folders, rows, metrics, fingerprints.

A finished folder is sealed: `meta.json` lists the sha256 of every other file. A reader checks
the seal first, so a truncated or foreign folder is refused instead of half-read.
"""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

META = "meta.json"
LITTER = {"Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r"}
"""What file managers put into any folder; everything else that is foreign counts as damage."""
DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
Row = TypeVar("Row")


class DamagedArtifactError(ValueError):
    """A folder is not what its name and its seal say."""


def local_folder(name: str, kind: str) -> Path:
    """Return the folder of a path, or of `hub:OWNER/NAME@COMMIT`, fetched once from Hugging Face.

    `kind` is "dataset" or "model". The commit belongs to the name, since what lies behind a name
    changes and what was trained on it would be something else under the same settings.

    Raises:
        ValueError: The name has no commit, or the extra hub is not installed.
        OSError: The hub has no such thing or cannot be reached.
    """
    if not name.startswith("hub:"):
        return Path(name).expanduser().resolve()
    parts = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)@([0-9a-f]{40})", name)
    if parts is None:
        raise ValueError(
            f"what is fetched from the hub must be named hub:OWNER/NAME@COMMIT, 40 digits of a "
            f"commit; got {name!r}. The history of its files shows the commits."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"{name} takes huggingface_hub, which is not installed. Install the extra hub: "
            'pip install -e ".[hub]"'
        ) from None
    wanted = ["*.json", "*.safetensors", "*.model"] if kind == "model" else None
    return Path(
        snapshot_download(parts[1], repo_type=kind, revision=parts[2], allow_patterns=wanted)
    )


def artifact_root() -> Path:
    """Return where artifacts live: `$LLAMA2_ARTIFACTS`, or `artifacts/` beside the library.

    The variable is made absolute once, for this process and those it starts: a notebook's kernel
    works in another folder, where a relative path would be another place.
    """
    if given := os.environ.get("LLAMA2_ARTIFACTS", "").strip():
        root = Path(given).expanduser().absolute()
        os.environ["LLAMA2_ARTIFACTS"] = str(root)
        return root
    return _home() / "artifacts"


def release_root() -> Path:
    """Return where the released chain lies: `data/release/` beside the library."""
    return _home() / "data" / "release"


def _home() -> Path:
    home = Path(__file__).resolve().parents[1]
    return home if (home / "pyproject.toml").is_file() else Path.cwd()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file holding `content`; readers see the old file or the new one.

    It survives a killed process; to survive a power cut it would need `fsync` as well.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            staging.write_bytes(content.encode() if isinstance(content, str) else content)
            staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file or folder could not be written where the disk is full, in a sentence."""
    try:
        yield
    except OSError as error:
        # NumPy counts what it could write: "64449 requested and 26560 written".
        if error.errno in DISK_FULL or " requested and " in str(error):
            raise OSError(
                f"{path} could not be written: {error}. Free some disk space; the same command "
                "goes on from where it stopped."
            ) from None
        raise


def fingerprint(document: Any) -> str:
    """Return the first 12 hex digits of the sha256 of a JSON-like document, keys sorted."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def staged_folder(final: Path, meta: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a hidden sibling of `final` to write into; seal and rename it on a clean exit.

    On one file system a rename is atomic, so `final` exists only when it is complete. The
    staging folder keeps its contents when the block fails, so that a stage can resume from it;
    only hidden files go, at every depth, which a killed write or removal left behind.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists already; artifacts are never overwritten.")
    staging = final.with_name(f".{final.name}.partial")
    if staging.exists() and not staging.is_dir():
        remove(staging)
    staging.mkdir(parents=True, exist_ok=True)
    for leftover in list(staging.rglob(".*")):
        remove(leftover)
    with writing(staging):
        yield staging
        seal(staging, meta)
    staging.rename(final)


def seal(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json` with `meta` and the sha256 of every other file in `folder`.

    Every file gets the rights of a new one: some writers leave theirs to their owner alone.
    """
    probe = folder / ".rights"
    probe.touch()
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    files = {}
    for path in files_of(folder):
        path.chmod(rights)
        files[path.relative_to(folder).as_posix()] = file_sha256(path)
    document = {**meta, "files": files}
    write_atomically(folder / META, json.dumps(document, indent=2, sort_keys=True) + "\n")


def files_of(folder: Path) -> list[Path]:
    """Return all files of an artifact but its seal, without what desktops leave lying about."""

    def is_litter(path: Path) -> bool:
        # .DS_Store, ._name, .nfs0001, .ipynb_checkpoints/, ...: no stage makes a hidden file.
        return path.name in LITTER or any(part.startswith(".") for part in path.parts)

    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / META]
    return [path for path in paths if not is_litter(path.relative_to(folder))]


def read_sealed(folder: Path, stage: str, expected: str) -> dict[str, Any]:
    """Return the meta document of an artifact of `stage`, after checking all its files.

    Raises:
        FileNotFoundError: There is no such folder.
        DamagedArtifactError: A file is missing, changed or foreign, or the seal is another's.
    """
    if not os.path.lexists(folder):
        raise FileNotFoundError(f"{folder} does not exist.")
    if not folder.is_dir():
        raise DamagedArtifactError(f"{folder} must be a folder; it is a file or a broken link.")
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        files = dict(meta["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedArtifactError(
            f"{folder} must hold a readable {META}, written last; got {error!r}. "
            "It was cut off or is not an artifact of this course."
        ) from None
    if (meta.get("stage"), meta.get("fingerprint")) != (stage, expected):
        raise DamagedArtifactError(
            f"{folder} must be {stage}/{expected}; its {META} says "
            f"{meta.get('stage')}/{meta.get('fingerprint')}. It was copied from elsewhere."
        )
    present = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    for name in sorted(files.keys() | present):
        if not (folder / name).is_file():
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
    names = (f".{folder.name}.damaged-{number}" for number in itertools.count(1))
    return folder.rename(next(p for p in map(folder.with_name, names) if not p.exists()))


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
        except (ValueError, RecursionError):
            if number == len(lines) - 1:
                break
            raise DamagedArtifactError(
                f"{path} line {number + 1} must be JSON; got {line[:60]!r}."
            ) from None
    return rows


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclasses, named tuples or plain objects as JSON lines that people can read.

    Where the name ends in .gz they are compressed; the same rows give the same bytes.
    """
    content = "".join(json.dumps(_plain(row)) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    write_atomically(path, content)


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Return what `write_rows` wrote, each line as one `kind`, and so with what it is made of.

    The kind is a dataclass, a named tuple whose fields are annotated, or `dict` for any object.

    Raises:
        ValueError: A line is not such a row.
    """
    rows = []
    for number, line in enumerate(read_bytes(path).decode("utf-8").splitlines(), 1):
        try:
            rows.append(_typed(json.loads(line), kind))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path} line {number} must hold one {kind.__name__} as `write_rows` writes it; "
                f"{error!r}."
            ) from None
    return rows


def read_bytes(path: Path) -> bytes:
    """Return what a file holds, unpacked where its name ends in .gz."""
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def _plain(value: Any) -> Any:
    """Return `value` with dataclasses and named tuples, at any depth, as dictionaries."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _typed(value: Any, kind: Any) -> Any:
    """Return a JSON value as the annotation `kind` has it: records and tuples are made again."""
    is_record = dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
    if (is_record or kind is dict) and not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} is no {kind.__name__}")
    if is_record:
        hints = get_type_hints(kind)
        return kind(**{name: _typed(part, hints.get(name)) for name, part in value.items()})
    if isinstance(value, list) and (sequence := get_origin(kind)) in (list, tuple):
        return sequence(_typed(part, get_args(kind)[0]) for part in value)
    return value
