"""JupyterLab over a working copy of the notebooks, so that nobody's work changes the checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from llama2_lib.storage import artifact_root, write_atomically
from llama2_lib.teaching.lessons.kernel import need_kernel

SETTINGS = {
    # Lab asks whether to fetch its news and looks for updates; the course needs no network.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}


def lab(
    *, folder: Path = Path("notebooks"), out: Path = Path("build/lab"), show: bool = True
) -> list[str]:
    """Copy the notebooks that are not in `out` yet, and open JupyterLab there.

    What is there already is the reader's own work and never overwritten.

    Args:
        folder: The notebooks of the checkout.
        out: The working copy.
        show: Whether to open a browser; else the address is printed.
    """
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(f"{folder} must hold the notebooks (*.ipynb); run from the root.")
    need_kernel()
    settings = out.resolve() / ".lab"
    settings.mkdir(parents=True, exist_ok=True)
    write_atomically(settings / "overrides.json", json.dumps(SETTINGS, indent=2) + "\n")
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
