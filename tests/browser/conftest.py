"""JupyterLab here, driven in headless Chromium; a request to elsewhere is a failure."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama2_lib.teaching.lessons.kernel import kernel_environment

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
LAB_SETTINGS = {
    # draw every cell, not only those in view
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
SHOTS = Path(__file__).parents[2] / "build" / "shots"

RUN = """async last => {
    const lab = window.jupyterapp, panel = lab.shell.currentWidget;
    const upto = last === null ? panel.content.widgets.length - 1 : last;
    panel.content.activeCellIndex = upto;
    await lab.commands.execute('notebook:run-all-above');
    await lab.commands.execute('notebook:run-cell');
    // the promises settle early when a cell raises, expected or not: wait for the rest too
    const cells = panel.content.widgets.slice(0, upto + 1).filter(c => c.model.type === 'code');
    const kernel = panel.sessionContext.session.kernel;
    const pause = () => new Promise(resolve => setTimeout(resolve, 100));
    const done = c => c.model.executionCount || !c.model.sharedModel.source.trim();
    for (let calm = 0; calm < 10 && !cells.every(done);) {
        await pause();
        const idle = cells.every(c => c.model.executionState === 'idle');
        calm = kernel.status === 'idle' && idle ? calm + 1 : 0;
    }
    return cells.map(c => ({
        count: c.model.executionCount,
        errors: c.model.outputs.toJSON().filter(o => o.output_type === 'error').map(o => o.ename),
        tags: c.model.getMetadata('tags') || [],
    }));
}"""
STILLS = """async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    const found = [...panel.node.querySelectorAll('.jp-RenderedImage img')];
    await Promise.all(found.map(image => image.decode().catch(() => null)));
    return found.map(image => image.naturalWidth);
}"""
OPENED = """async () => {
    const lab = window.jupyterapp;
    await lab.restored;
    for (let i = 0; i < 300 && !lab.shell.currentWidget?.sessionContext; i++)
        await new Promise(resolve => setTimeout(resolve, 100));
    await lab.shell.currentWidget.context.ready;
    await lab.shell.currentWidget.sessionContext.ready;
}"""


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("browser")
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="session")
def chromium():
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}: `make browser` installs it, or set CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """Return a function that opens a page which records errors and requests to elsewhere."""
    pages = []

    def new(base):
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        pages.append(page)
        inside = (base, base.replace("http", "ws", 1), "data:", "blob:")
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(inside)
                or page.faults.append(f"left the machine: {request.url}")
            ),
        )
        return page

    yield new
    for page in pages:
        page.close()


@dataclass
class Lab:
    """A running JupyterLab server and its folder."""

    base: str
    token: str
    folder: Path


@pytest.fixture(scope="session")
def lab(tmp_path_factory, chromium):
    folder = tmp_path_factory.mktemp("lab")
    for name, values in LAB_SETTINGS.items():
        path = folder / ".settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), folder)
    places = {
        "JUPYTER_CONFIG_DIR": ".config",
        "JUPYTER_RUNTIME_DIR": ".runtime",
        "JUPYTERLAB_SETTINGS_DIR": ".settings",
        "JUPYTERLAB_WORKSPACES_DIR": ".workspaces",
    }
    environment = kernel_environment() | {k: str(folder / v) for k, v in places.items()}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--expose-app-in-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={server.token}",
        f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _await_server(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _await_server(server, process, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{server.base}/api?token={server.token}", timeout=1):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((server.folder / "server.log").read_text()[-2000:]) from None
            time.sleep(0.2)


@dataclass
class OpenNotebook:
    """A notebook in JupyterLab, and what a reader does with it."""

    page: object
    name: str

    def run(self, last=None):
        """Run all cells, or those up to one; return count, errors and tags of each code cell."""
        return self.page.evaluate(RUN, last)

    def stills(self):
        """Return the width of each picture among the outputs, once it is decoded."""
        return self.page.evaluate(STILLS)

    def drag(self, slider, to):
        """Drag the handle of a slider to a fraction of its length."""
        handle, track = slider.locator(".noUi-handle").first, slider.locator(".noUi-target").first
        track.scroll_into_view_if_needed()
        grip, rail, mouse = handle.bounding_box(), track.bounding_box(), self.page.mouse
        height = grip["y"] + grip["height"] / 2
        mouse.move(grip["x"] + grip["width"] / 2, height)
        mouse.down()
        mouse.move(rail["x"] + rail["width"] * to, height, steps=8)
        mouse.up()

    def shoot(self, label):
        """Keep a picture of the page in build/shots."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{self.name}_{label}.png")


@pytest.fixture
def open_notebook(lab, new_page):
    opened = []

    def open_copy(path):
        shutil.copy(path, lab.folder / path.name)
        page = new_page(lab.base)
        page.set_default_timeout(120_000)
        page.goto(f"{lab.base}/doc/tree/{path.name}?token={lab.token}")
        page.wait_for_function("() => !!window.jupyterapp")
        page.evaluate(OPENED)
        opened.append(page)
        return OpenNotebook(page, path.stem)

    yield open_copy
    for page in opened:  # frees the kernel's memory
        page.evaluate(
            "async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown(); }"
        )
