"""The model is one graph: `torch.compile` finds nothing in it that it must leave to Python."""

import subprocess
import sys
from pathlib import Path


def test_model_and_loss_compile_without_a_break():
    script = Path(__file__).with_name("one_graph.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [
        "a_forward_pass", "packed_documents", "the_loss_and_its_gradient", "a_look_at_a_value",
    ]  # fmt: skip
