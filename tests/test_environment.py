"""pyproject.toml, environment.yml and constraints.txt say the same; a wrong pin is found."""

import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "environment.yml", "constraints.txt")


def ranges(lines: list[str]) -> dict[str, SpecifierSet]:
    """Canonical name -> version range, of lines as pip reads them."""
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(item.name): item.specifier for item in requirements}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def project_ranges(folder: Path, *extras: str) -> dict[str, SpecifierSet]:
    """What the project needs, with some extras or, when none is named, with all."""
    table = project(folder)
    optional = table["optional-dependencies"]
    lines = [line for extra in extras or optional for line in optional[extra]]
    return ranges(table["dependencies"] + lines)


def conda_entries(folder: Path) -> tuple[list[str], list[str]]:
    """The specs that conda reads, and those under `pip:`."""
    entries = yaml.safe_load((folder / "environment.yml").read_text())["dependencies"]
    of_conda = [entry for entry in entries if isinstance(entry, str)]
    of_pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    return of_conda, of_pip


def pins(folder: Path) -> dict[str, SpecifierSet]:
    lines = (folder / "constraints.txt").read_text().splitlines()
    return ranges([line for line in lines if line and not line.startswith("#")])


def exact_version(specifier: SpecifierSet) -> str | None:
    """The version of `==1.2.3`; None for anything looser."""
    clauses = list(specifier)
    if len(clauses) == 1 and clauses[0].operator == "==" and "*" not in clauses[0].version:
        return clauses[0].version
    return None


def problems(folder: Path) -> list[str]:
    """Every disagreement between the three files, as sentences."""
    found = []
    wanted, pinned = project_ranges(folder), pins(folder)
    by_conda = project_ranges(folder, "dev")  # the extra bench is for one command
    conda, listed = conda_entries(folder)
    listed = ranges(listed)
    for name in sorted(by_conda.keys() | listed.keys()):
        if by_conda.get(name) != listed.get(name):
            found.append(
                f"{name}: pyproject {by_conda.get(name)}, environment.yml {listed.get(name)}"
            )
    for name, specifier in sorted(pinned.items()):
        if exact_version(specifier) is None:
            found.append(f"{name}: constraints.txt must pin exactly; it says {specifier}")
    for name, specifier in sorted(wanted.items()):
        version = exact_version(pinned[name]) if name in pinned else None
        if version is None or not specifier.contains(version, prereleases=True):
            found.append(f"{name}: pyproject {specifier}, constraints.txt {pinned.get(name)}")
    for source, table in (("pyproject", wanted), ("environment.yml", listed)):
        if table.get("torch") != pinned.get("torch"):
            found.append(f"torch: {source} {table.get('torch')}, constraints {pinned.get('torch')}")
    python = [spec.split("=", 1)[1] for spec in conda if spec.startswith("python=")]
    supported = SpecifierSet(project(folder)["requires-python"])
    if len(python) != 1 or f"{python[0].lstrip('=')}.0" not in supported:
        found.append(f"python: pyproject {supported}, environment.yml {python}")
    return found


@pytest.fixture
def copies(tmp_path):
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} should hold {old!r} once; the plant has gone stale"
    path.write_text(text.replace(old, new))


def test_the_three_files_agree():
    assert problems(ROOT) == []
    assert len(project_ranges(ROOT)) > 20, "too few requirements were read: vacuous test"


@pytest.mark.parametrize(
    ("name", "old", "new", "package"),
    [
        ("constraints.txt", "torch==2.13.0", "torch==2.12.0", "torch"),
        ("constraints.txt", "einops==0.8.2", "einops==0.1.0", "einops"),
        ("constraints.txt", "nbval==", "nbval>=", "nbval"),
        ("constraints.txt", "sentencepiece==", "another==", "sentencepiece"),
        ("environment.yml", "torch==2.13.0", "torch==2.12.0", "torch"),
        ("environment.yml", "      - tqdm>=4.67\n", "", "tqdm"),
        ("environment.yml", "python=3.11", "python=3.9", "python"),
        ("pyproject.toml", '"torch==2.13.0"', '"torch>=2.13.0"', "torch"),
        ("pyproject.toml", '"scipy>=1.16"', '"scipy>=99"', "scipy"),
        ("pyproject.toml", '"trl==1.12.0"', '"trl==1.11.0"', "trl"),
    ],
)
def test_a_planted_wrong_pin_is_found(copies, name, old, new, package):
    assert problems(copies) == []
    replace_in(copies / name, old, new)
    found = problems(copies)
    assert found != []
    assert all(sentence.startswith(f"{package}:") for sentence in found)


def test_conda_reads_environment_yml():
    document = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(document) == {"name", "channels", "dependencies"}
    conda, _ = conda_entries(ROOT)
    assert {str(MatchSpec(spec).name.normalized) for spec in conda} == {"python", "pip"}


def test_a_broken_conda_spec_is_refused():
    with pytest.raises(Exception, match="version"):
        MatchSpec("python=>=3.11,,")


def test_what_is_imported_here_is_what_is_pinned():
    """The tests speak for the pins only when they ran with them."""
    import torch

    assert torch.__version__.split("+")[0] == exact_version(pins(ROOT)["torch"])


def test_no_file_names_a_package_index():
    for name in (*FILES, "Makefile"):
        text = (ROOT / name).read_text()
        assert "index-url" not in text, f"{name} names an index"
        assert "://" not in text, f"{name} names a host"


def too_new(requires_python: dict[str, str], oldest: str) -> list[str]:
    """Packages that the oldest Python we promise cannot install."""
    return [name for name, spec in requires_python.items() if oldest not in SpecifierSet(spec)]


def test_every_pin_installs_on_the_oldest_python_that_is_promised():
    oldest = project(ROOT)["requires-python"].removeprefix(">=") + ".0"
    installed = {canonicalize_name(item.name): item for item in distributions()}
    needs = {
        name: installed[name].metadata["Requires-Python"] or ""
        for name in pins(ROOT)
        if name in installed
    }
    assert len(needs) > 100, "the pins are those of this environment"
    assert too_new(needs, oldest) == []
    # a package that left the first releases of Python 3.11 behind
    assert too_new(needs | {"soupsieve": ">=3.11.5"}, oldest) == ["soupsieve"]


USES_ALL_DATA = """
from llama2_lib.claims.ledger import recorded
from llama2_lib.world import make_world
from llama2_lib.world.instructions import instructions
from llama2_lib.world.demonstrations import borderline_training
import llama2_lib
world = make_world(0)
made = (*borderline_training(world, 0, 3), *instructions(world, 0, 3))
print(llama2_lib.__file__, len(made), recorded(46).declared["id"])
"""


@pytest.mark.slow
def test_a_wheel_holds_the_data_that_the_library_reads(tmp_path):
    """Laid out as a wheel lays it out, far from the checkout."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, tmp_path / package)
    for source, place in wheel["force-include"].items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / place)
    run = subprocess.run(
        [sys.executable, "-c", USES_ALL_DATA], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(tmp_path / "llama2_lib" / "__init__.py"), "6", "46"]


def hook(name: str, folder: Path, *files: str) -> subprocess.CompletedProcess:
    """Run one hook of pre-commit on files of a folder, with the tools of this environment."""
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    [entry] = [hook["entry"] for hook in local["hooks"] if hook["id"] == name]
    assert local["repo"] == "local", "a hook from elsewhere would need the network"
    words = shlex.split(entry.replace(".venv/bin/", f"{Path(sys.executable).parent}/"))
    return subprocess.run([*words, *files], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ruff", b"import os\n"),
        ("ruff-format", b"x = [1,2]\n"),
        ("end-of-file", b"x = 1"),
        ("end-of-file", b"x = 1\n\n"),
        ("large-files", b"#" * (2**20 + 1)),
    ],
)
def test_a_hook_finds_what_was_planted_and_passes_what_is_right(tmp_path, name, content):
    (tmp_path / "right.py").write_bytes(b"x = 1\n")
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "wrong.py").write_bytes(content)
    assert hook(name, tmp_path, "right.py", "empty.py").returncode == 0
    found = hook(name, tmp_path, "right.py", "wrong.py")
    assert found.returncode == 1
    assert "wrong.py" in found.stdout
    assert "right.py" not in found.stdout
