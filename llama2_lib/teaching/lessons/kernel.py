"""The kernel that runs the notebooks: its environment, whether it can start, and who starts it.

nbval does, to run the notebooks again, and JupyterLab, over a working copy, so that nobody's work
changes the checkout.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from llama2_lib.storage import artifact_root, write_atomically

NEEDED = ("ipykernel", "torch", "llama2_lib")
LACKS = (
    "import importlib.util as u, sys; "
    "print(*[name for name in sys.argv[1:] if u.find_spec(name) is None])"
)


def kernel_environment() -> dict[str, str]:
    """Return the environment of a kernel that builds or tests a notebook.

    One thread, so that sums are added in one order; this checkout's library, not another's; its
    artifacts, though the kernel works in another folder.
    """
    here = str(Path(__file__).resolve().parents[3])
    inherited = os.environ.get("PYTHONPATH")
    return {
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([here, *([inherited] if inherited else [])]),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "LLAMA2_ARTIFACTS": str(artifact_root()),
    }


def kernel_interpreter() -> str:
    """Return the program that the kernel `python3` starts."""
    from jupyter_client.kernelspec import KernelSpecManager

    command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    # a bare `python` is replaced by the running interpreter when the kernel starts
    return sys.executable if os.sep not in command else command


def kernel_fault() -> str | None:
    """Return why the kernel `python3` cannot run a notebook of the course; None if it can."""
    from jupyter_client.kernelspec import NoSuchKernel

    try:
        program = kernel_interpreter()
    except NoSuchKernel:
        return "there is no kernel called python3"
    try:
        run = subprocess.run(
            [program, "-c", LACKS, *NEEDED],
            env=kernel_environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the kernel python3 starts {program}, which cannot run: {error}"
    if run.returncode:
        return f"the kernel python3 starts {program}, which cannot run Python"
    if lacking := run.stdout.split():
        return f"the kernel python3 starts {program}, another Python without {', '.join(lacking)}"
    return None


def need_kernel() -> None:
    """Refuse to begin what would end in a kernel that cannot start."""
    if (fault := kernel_fault()) is not None:
        raise ValueError(
            f"{fault}. Install the right one into this environment: {sys.executable} -m ipykernel "
            "install --sys-prefix"
        )


# --- run notebooks again

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


# --- read and change them

SETTINGS = {
    # Lab asks whether to fetch its news and looks for updates; the course needs no network.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
LARGE = {
    "@jupyterlab/apputils-extension:themes": {
        "overrides": {"code-font-size": "20px", "content-font-size1": "22px"}
    }
}
"""Letters that the last row of a classroom can read."""


def lab(
    *, folder: Path = Path("notebooks"), out: Path = Path("build/lab"), show: bool = True,
    projector: bool = False,
) -> list[str]:  # fmt: skip
    """Copy the notebooks that are not in `out` yet, and open JupyterLab there.

    What is there already is the reader's own work and never overwritten.

    Args:
        folder: The notebooks of the checkout.
        out: The working copy.
        show: Whether to open a browser; else the address is printed.
        projector: Whether letters are large.
    """
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(f"{folder} must hold the notebooks (*.ipynb); run from the root.")
    need_kernel()
    settings = out.resolve() / ".lab"
    settings.mkdir(parents=True, exist_ok=True)
    overrides = SETTINGS | (LARGE if projector else {})
    write_atomically(settings / "overrides.json", json.dumps(overrides, indent=2) + "\n")
    fresh = [path for path in notebooks if not (out / path.name).exists()]
    for path in fresh:
        shutil.copy(path, out)
    print(f"{out}: {len(fresh)} notebooks copied, {len(notebooks) - len(fresh)} kept as they are")
    command = [
        *(sys.executable, "-m", "jupyterlab"),
        f"--ServerApp.root_dir={out.resolve()}",
        f"--LabApp.default_url=/lab/tree/{notebooks[0].name}",
        f"--LabApp.app_settings_dir={settings}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        # Jupyter refuses to run as root, which is who one is in most containers.
        *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
        *([] if show else ["--no-browser"]),
    ]
    # Their kernels work in another folder: a relative path would be another place there.
    environment = os.environ | {"LLAMA2_ARTIFACTS": str(artifact_root())}
    status = subprocess.call(command, env=environment)
    return [f"JupyterLab ended with status {status}"] if status else []
