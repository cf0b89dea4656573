"""Run notebooks again and compare every output with the stored one: nbval, strict."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from llama2_lib.teaching.lessons.kernel import need_kernel

Notebooks = Annotated[tuple[Path, ...], tyro.conf.Positional]


def compare(notebooks: Notebooks = (), /, *, folder: Path = Path("notebooks")) -> list[str]:
    """Run nbval over the given .ipynb files, or over all of `folder`.

    Two notebooks at a time where pytest-xdist is installed, which `make test` does.
    """
    need_kernel()
    files = [*notebooks] or sorted(folder.glob("*.ipynb"))
    missing = [str(path) for path in files if not path.exists()]
    if missing or not files:
        raise FileNotFoundError(f"no notebook {missing or folder}; build it first.")
    # The project's pytest options stay out: they type-check the library inside pytest's own
    # process, where no notebook runs, and must be set up before the library is imported.
    options = ["-o", "addopts=", "-p", "llama2_lib.teaching.nbval_glue", "--nbval", "-q"]
    if importlib.util.find_spec("xdist") is not None:  # of the extra `dev`
        # A kernel has one thread and up to a gigabyte.
        options += ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    # The last notebooks take longest; they come first, so that no worker ends long after the other.
    options += map(str, reversed(files))
    finished = subprocess.run([sys.executable, "-m", "pytest", *options])
    return [f"nbval ended with status {finished.returncode}"] if finished.returncode else []
