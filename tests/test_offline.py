"""With every socket beyond loopback closed, the whole chain still runs.

The guard is `tests/offline/sitecustomize.py`: put its folder on PYTHONPATH and every Python
process, kernels included, is closed. `.ci/parts` runs all notebooks under it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUARD = ROOT / "tests" / "offline"
# Addresses reserved for documentation: nobody answers there, whatever goes wrong with the guard.
ELSEWHERE = [
    ("socket.socket().connect(('192.0.2.1', 80))", "socket.connect 192.0.2.1"),
    ("socket.socket().connect_ex(('192.0.2.1', 80))", "socket.connect 192.0.2.1"),
    ("socket.create_connection(('192.0.2.1', 80), 1)", "192.0.2.1"),
    ("socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))", "socket.connect 2001:db8::1"),
    (
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
        "socket.sendto 192.0.2.1",
    ),
    ("socket.getaddrinfo('example.org', 443)", "socket.getaddrinfo example.org"),
    ("socket.gethostbyname('example.org')", "socket.gethostbyname example.org"),
    (
        "import urllib.request; urllib.request.urlopen('http://example.org', timeout=1)",
        "example.org",
    ),
    ("import asyncio; asyncio.run(asyncio.open_connection('192.0.2.1', 80))", "192.0.2.1"),
    ("from _socket import socket; socket().connect(('192.0.2.1', 80))", "192.0.2.1"),
]
HERE = """
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(("localhost", server.getsockname()[1]), 5)
assert server.accept()[0].send(b"here") == 4 and client.recv(4) == b"here"
a, b = socket.socketpair()
socket.getaddrinfo("127.0.0.1", 80), socket.getaddrinfo("::1", 80)
socket.getaddrinfo(socket.gethostname(), None)
"""


@pytest.fixture
def closed(tmp_path):
    """The environment of a process without a network, and the log of its attempts."""
    log = tmp_path / "attempts"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(GUARD), str(ROOT)]),
        "OFFLINE_LOG": str(log),
        "LLAMA2_ARTIFACTS": str(tmp_path / "artifacts"),
        "OMP_NUM_THREADS": "1",
    }
    return environment, log


def python(environment, *arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True,
        timeout=300, **options,
    )  # fmt: skip


def test_the_guard_refuses_and_records_every_way_out(closed):
    environment, log = closed
    attempts = "\n".join(
        f"try:\n    {code}\nexcept OSError as error:\n    print('closed' in str(error))\n"
        f"else:\n    print('WENT OUT: {number}')"
        for number, (code, _) in enumerate(ELSEWHERE)
    )
    result = python(environment, "-W", "ignore", "-c", f"import socket\n{attempts}")
    assert result.stdout.splitlines() == ["True"] * len(ELSEWHERE), result.stdout + result.stderr
    recorded = [line for line in log.read_text().splitlines() if line.startswith("socket.")]
    assert len(recorded) == len(ELSEWHERE)
    for line, (_, expected) in zip(recorded, ELSEWHERE, strict=True):
        assert expected in line


def test_the_guard_leaves_this_machine_open(closed):
    environment, log = closed
    result = python(environment, "-W", "ignore", "-c", f"import socket{HERE}")
    assert result.returncode == 0, result.stderr
    assert not log.exists()


def test_children_are_closed_too(closed):
    environment, log = closed
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        "'import socket; socket.getaddrinfo(\"example.org\", 80)'])"
    )
    assert "the network is closed" in python(environment, "-c", code).stderr
    assert "example.org" in log.read_text()


@pytest.mark.slow
def test_the_whole_chain_runs_without_a_network(closed, tmp_path):
    """From nothing: world, tokenizer, corpus, pretraining, tuning, then a chat with either."""
    environment, log = closed
    result = python(environment, "-m", "llama2_lib", "run", "sft", "--recipe", "toy")
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert folder.is_relative_to(tmp_path / "artifacts" / "sft")
    assert (folder / "model.safetensors").is_file()
    for stage, words in (("pretrain", "The old man"), ("sft", "An empty line or /new begins")):
        result = python(
            environment, "-m", "llama2_lib", "chat", "--recipe", "toy", "--max-new-tokens", "4",
            "--stage", stage, input="The old man\n",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert words in result.stdout
    assert not log.exists(), log.read_text()


@pytest.mark.slow
def test_a_notebook_runs_without_a_network(closed, tmp_path):
    """Jupyter, its kernel and the widgets included; `.ci/parts` does the same with all of them."""
    environment, log = closed
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    lesson = (
        "# %%\nimport socket\n\ntry:\n    socket.getaddrinfo('192.0.2.1', 80)\n"
        "except OSError as error:\n    print(error)\n\n"
        "# %%\nfrom llama2_lib import figures, widgets\nprint('ready')\n"
    )
    (tmp_path / "notebooks" / "src" / "95_closed.py").write_text(lesson)
    build_it = (
        "import sys; from pathlib import Path; from llama2_lib.teaching.lessons import build; "
        "sys.exit(build(folder=Path(sys.argv[1])) != [])"
    )
    result = python(environment, "-c", build_it, str(tmp_path / "notebooks"))
    assert result.returncode == 0, result.stdout + result.stderr
    text = (tmp_path / "notebooks" / "95_closed.ipynb").read_text()
    assert "the network is closed in this process" in text
    assert "ready" in text
    recorded = [line for line in log.read_text().splitlines() if line.startswith("socket.")]
    assert len(recorded) == 1, log.read_text()
