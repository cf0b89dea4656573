"""No tensor is made on the CPU unseen where a model on a GPU would meet it.

A GPU is not at hand in most places where these tests run, so the sources are read instead: whoever
makes a tensor names its device, or stands in the table below with the reason why the CPU is right.
"""

import ast
from pathlib import Path

import pytest

import llama2_lib

ROOT = Path(llama2_lib.__file__).parent
FLOORS = ("model", "objectives", "training", "stages", "evaluation", "text", "parallel.py")
MAKERS = {
    "arange", "as_tensor", "empty", "eye", "from_numpy", "full", "linspace", "ones", "rand",
    "randint", "randn", "randperm", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
COLLATED = "a batch is laid out on the CPU, and moved whole by whoever trains or measures"
READ = "files are read on the CPU, and moved by whoever asked for a device"
MADE = "a model is made where a context says (`torch.device`), and moved whole"
DRAWN = "only the CPU draws the same numbers for every device; moved in the next line"
PLAIN = "numbers of the host: moved where they meet the model, or never"
ON_CPU = {
    ("evaluation/language.py", "document_nats"): COLLATED,
    ("model/chat.py", "scores"): COLLATED,
    ("stages/ppo.py", "layout"): COLLATED,
    ("training/batches.py", "PackedCorpus.batches"): COLLATED,
    ("training/batches.py", "PackedDialogs.batches"): COLLATED,
    ("training/batches.py", "collate"): COLLATED,
    ("objectives/rlhf.py", "margins"): COLLATED,
    ("model/formats.py", "read_llama2c"): READ,
    ("model/formats.py", "read_gguf"): READ,
    ("training/sharded.py", "read"): READ,
    ("model/transformer.py", "RMSNorm.__init__"): MADE,
    ("model/transformer.py", "Transformer.__init__"): MADE,
    ("model/transformer.py", "initialise"): DRAWN,
    ("model/generate.py", "_begin"): DRAWN,
    ("model/transformer.py", "scalar_model"): DRAWN,
    ("model/generate.py", "Decoder.__init__"): "one number, moved in the same line",
    ("model/transformer.py", "rotary_table"): "float64, which some devices lack; moved at its end",
    ("model/generate.py", "_completions"): PLAIN,
    ("parallel.py", "gathered"): PLAIN,
    ("stages/ppo.py", "rollout"): PLAIN,
    ("stages/reward.py", "RewardModels.__call__"): PLAIN,
}


def makers(source: str) -> list[tuple[str, str]]:
    """Return function and call of every tensor that is made without a device."""
    found = []

    def walk(node: ast.AST, inside: str, whole: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not whole:
            inside = f"{inside}.{node.name}".lstrip(".")
            whole = isinstance(node, ast.FunctionDef)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in MAKERS
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
            and not any(keyword.arg == "device" for keyword in node.keywords)
        ):
            found.append((inside, ast.unparse(node)))
        for child in ast.iter_child_nodes(node):
            walk(child, inside, whole)

    walk(ast.parse(source), "", False)
    return found


def test_every_tensor_names_its_device_or_has_a_reason():
    paths = [p for floor in FLOORS for p in [ROOT / floor, *(ROOT / floor).rglob("*.py")]]
    files = {p.relative_to(ROOT).as_posix(): p for p in paths if p.is_file()}
    assert len(files) > 30, files
    without = {
        (name, function): call
        for name, path in sorted(files.items())
        for function, call in makers(path.read_text())
    }
    assert {place: without[place] for place in without.keys() - ON_CPU.keys()} == {}
    assert ON_CPU.keys() - without.keys() == set(), "reasons for what is not there"


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        ("torch.arange(len(x))", True),
        ("torch.zeros(3, dtype=torch.bool)", True),
        ("torch.arange(len(x), device=x.device)", False),
        ("x.new_zeros(3)", False),
        ("torch.zeros_like(x)", False),
    ],
)
def test_the_reader_sees_a_tensor_without_a_device(call, seen):
    assert makers(f"def own(x):\n    return x + {call}\n") == ([("own", call)] if seen else [])
