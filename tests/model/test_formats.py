"""Meta's shards, llama2.c's files and GGUF: written here as their programs write them, then read.

The writers of this file follow Meta's model-parallel layers and llama2.c's `export.py` by loops of
their own, not by our library's functions.
"""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llama2_lib.model import formats
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.model.weights import load_model, to_hugging_face

SHAPES = {"mha": 4, "gqa": 2, "mqa": 1}
IDS = torch.arange(1, 24, 2)[None]
COLUMNS, ROWS = ("wq", "wk", "wv", "w1", "w3", "output"), ("wo", "w2", "tok_embeddings")


def made(n_kv_heads=2, **changes):
    config = ModelConfig(
        vocab_size=56, dim=32, n_layers=3, n_heads=4, n_kv_heads=n_kv_heads, multiple_of=20,
        max_seq_len=26, **changes,
    )  # fmt: skip
    return initialise(Transformer(config), 3)


def same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), f"{name} differs"
    with torch.no_grad():
        assert torch.equal(model(IDS), other(IDS))


# --- Meta


def as_meta(model, folder, n=1, **changes):
    """As fairscale's layers divide them: columns of outputs, rows of inputs, norms everywhere."""
    c = model.config
    params = {
        "dim": c.dim, "n_layers": c.n_layers, "n_heads": c.n_heads, "n_kv_heads": c.n_kv_heads,
        "multiple_of": c.multiple_of, "ffn_dim_multiplier": c.ffn_dim_multiplier,
        "norm_eps": c.norm_eps, "vocab_size": -1, "max_seq_len": c.max_seq_len,
    } | changes  # fmt: skip
    params = {name: value for name, value in params.items() if value != "left out"}
    (folder / "params.json").write_text(json.dumps(params))
    for rank in range(n):
        shard = {"rope.freqs": torch.ones(4)}
        for name, tensor in model.state_dict().items():
            last = name.split(".")[-2]
            if last in COLUMNS:
                width = len(tensor) // n
                tensor = tensor[rank * width : (rank + 1) * width]
            elif last in ROWS:
                width = tensor.shape[1] // n
                tensor = tensor[:, rank * width : (rank + 1) * width]
            shard[name] = tensor.clone()
        torch.save(shard, folder / f"consolidated.{rank:02}.pth")


@pytest.mark.parametrize("n", [1, 2, 4])
def test_shards_of_meta_are_merged(tmp_path, n):
    model = made(n_kv_heads=4)
    as_meta(model, tmp_path, n)
    loaded, config = load_model(tmp_path)
    assert config == model.config
    same(loaded, model)


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_of_attention_comes_back_through_our_own_shards(tmp_path, kind):
    model = made(SHAPES[kind])
    formats.write_meta(model.state_dict(), model.config, tmp_path)
    loaded, config = load_model(tmp_path)
    assert config == model.config
    same(loaded, model)


def test_our_shards_are_divided_as_metas_are(tmp_path):
    model, (a, b) = made(), (tmp_path / "a", tmp_path / "b")
    a.mkdir(), b.mkdir()
    as_meta(model, a, 2)
    formats.write_meta(model.state_dict(), model.config, b, 2)
    for name in ("consolidated.00.pth", "consolidated.01.pth"):
        theirs, ours = torch.load(a / name), torch.load(b / name)
        assert theirs.keys() - ours.keys() == {"rope.freqs"}
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert ours["layers.1.attention.wo.weight"].shape == (32, 16)
        assert ours["layers.1.attention.wk.weight"].shape == (8, 32)
    with pytest.raises(ValueError, match=r"must divide key/value heads.*got 3 shards"):
        formats.write_meta(model.state_dict(), model.config, b, 3)


@pytest.mark.parametrize("stored", ["left out", None])
def test_heads_that_are_not_named_are_as_many_as_those_of_queries(tmp_path, stored):
    model = made(n_kv_heads=4)
    as_meta(model, tmp_path, n_kv_heads=stored)
    assert load_model(tmp_path)[1].n_kv_heads == 4


def test_a_missing_shard_is_named(tmp_path):
    model = made(n_kv_heads=4)
    as_meta(model, tmp_path, 4)
    (tmp_path / "consolidated.02.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold consolidated\.02\.pth; it holds"):
        load_model(tmp_path)
    (tmp_path / "consolidated.03.pth").unlink()
    with pytest.raises(ValueError, match=r"weight .* must have shape .* in 2 shards"):
        load_model(tmp_path)


def test_what_params_say_of_other_models_is_refused(tmp_path):
    as_meta(made(), tmp_path, use_scaled_rope=True)
    with pytest.raises(ValueError, match="use_scaled_rope = True is of another model"):
        load_model(tmp_path)


def test_code_in_a_pickle_is_not_executed(tmp_path):
    as_meta(made(), tmp_path)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was here"), "w"))

    torch.save({"tok_embeddings.weight": Evil()}, tmp_path / "consolidated.00.pth")
    with pytest.raises(ValueError, match="tensors and nothing else"):
        load_model(tmp_path)
    assert not (tmp_path / "was here").exists()
    (tmp_path / "consolidated.00.pth").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(ValueError, match="tensors and nothing else"):
        load_model(tmp_path)


# --- llama2.c


def as_llama2c(model, path, version, shared=False, group=8):
    """As `export.py` writes: legacy_export, version1_export and version2_export."""
    c, weights = model.config, model.state_dict()
    layers = range(c.n_layers)

    def each(name):
        return [weights[f"layers.{i}.{name}.weight"] for i in layers]

    def fp32(*tensors):
        for tensor in tensors:
            out.write(struct.pack(f"{tensor.numel()}f", *tensor.flatten().tolist()))

    matrices = ["attention.wq", "attention.wk", "attention.wv", "attention.wo"]
    matrices += ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    head = [] if shared else [weights["output.weight"]]
    sizes = (c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads)
    quantised = {}
    with path.open("wb") as out:
        if version == 0:
            vocab = c.vocab_size if shared else -c.vocab_size
            out.write(struct.pack("iiiiiii", *sizes, vocab, c.max_seq_len))
            fp32(weights["tok_embeddings.weight"], *each("attention_norm"))
            for name in matrices[:4]:
                fp32(*each(name))
            fp32(*each("ffn_norm"))
            for name in matrices[4:]:
                fp32(*each(name))
            fp32(weights["norm.weight"])
            half = c.max_seq_len * c.head_dim // 2
            fp32(torch.full((half,), 7.0), torch.full((half,), 8.0), *head)
            return quantised
        out.write(struct.pack("I", 0x616B3432) + struct.pack("i", version))
        out.write(struct.pack("iiiiiii", *sizes, c.vocab_size, c.max_seq_len))
        out.write(struct.pack("B", shared) + (struct.pack("i", group) if version == 2 else b""))
        out.write(b"\0" * (256 - out.tell()))
        fp32(*each("attention_norm"), *each("ffn_norm"), weights["norm.weight"])
        names = ["tok_embeddings.weight"]
        names += [f"layers.{i}.{name}.weight" for name in matrices for i in layers]
        for name in names + ["output.weight"] * (not shared):
            if version == 1:
                fp32(weights[name])
                continue
            w = weights[name].reshape(-1, group)
            scale = w.abs().max(dim=1).values / 127.0
            q = (w / scale[:, None]).round().to(torch.int8)
            out.write(struct.pack(f"{q.numel()}b", *q.flatten().tolist()))
            fp32(scale)
            quantised[name] = (q.float() * scale[:, None]).view_as(weights[name])
    return quantised


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("version", [0, 1, 2])
def test_files_of_llama2c_come_back(tmp_path, version, kind, shared):
    model = made(SHAPES[kind])
    if shared:
        model.output.weight.data = model.tok_embeddings.weight.data.clone()
    quantised = as_llama2c(model, tmp_path / "m.bin", version, shared)
    if version == 2:
        if shared:
            quantised["output.weight"] = quantised["tok_embeddings.weight"]
        before = model.state_dict()
        worst = max(
            (quantised[n] - before[n]).abs().max() / before[n].abs().max() for n in quantised
        )
        assert 0 < worst < 0.005, "int8 is near and not equal"
        model.load_state_dict(before | quantised)
    loaded, config = load_model(tmp_path / "m.bin")
    assert config.hidden_dim == model.config.hidden_dim
    assert config.n_kv_heads == SHAPES[kind]
    same(loaded, model)


def test_what_we_write_for_llama2c_is_what_it_writes_itself(tmp_path):
    model = made()
    as_llama2c(model, tmp_path / "theirs.bin", 0)
    formats.write_llama2c(model.state_dict(), model.config, tmp_path / "ours.bin")
    theirs, ours = (np.fromfile(tmp_path / f"{w}.bin", "<i4") for w in ("theirs", "ours"))
    c = model.config
    table, end = c.max_seq_len * c.head_dim, -c.vocab_size * c.dim
    assert np.array_equal(ours[: end - table], theirs[: end - table])
    assert np.array_equal(ours[end:], theirs[end:])
    angles = ours[end - table : end].view("<f4").reshape(2, c.max_seq_len, -1)
    position, pair = 5, 2
    angle = position * 10_000.0 ** (-2 * pair / c.head_dim)
    assert angles[0, position, pair] == pytest.approx(np.cos(angle), abs=1e-6)
    assert angles[1, position, pair] == pytest.approx(np.sin(angle), abs=1e-6)


@pytest.mark.parametrize(("change", "message"), [
    (lambda raw: raw[:-4], "must have .* bytes, as its header says; it has"),
    (lambda raw: raw + b"1234", "must have .* bytes, as its header says; it has"),
    (lambda raw: b"24ka" + raw[4:], "version 0, 1 or 2; it says"),
    (lambda raw: b"\0" * len(raw), "its header is none: "),
    (lambda raw: b"GGUF" * 100, "its header is none|must have .* bytes"),
    (lambda raw: b"", "its header is none"),
])  # fmt: skip
def test_what_is_no_file_of_llama2c_is_refused(tmp_path, change, message):
    path = tmp_path / "m.bin"
    as_llama2c(made(), path, 0)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_model(path)


# --- memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_large_model_in_shards_is_never_in_memory_twice(tmp_path):
    config = ModelConfig(vocab_size=2000, dim=1024, n_layers=8, n_heads=8, n_kv_heads=4)
    with torch.device("meta"):
        names = to_hugging_face(Transformer(config).state_dict(), config)
    document = {
        "model_type": "llama", "vocab_size": 2000, "hidden_size": 1024, "num_hidden_layers": 8,
        "intermediate_size": config.hidden_dim, "num_attention_heads": 8, "rms_norm_eps": 1e-5,
        "num_key_value_heads": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(document))
    where = {name: f"{index % 8}.safetensors" for index, name in enumerate(sorted(names))}
    for file in set(where.values()):
        held = {n: torch.full(names[n].shape, 0.5) for n in names if where[n] == file}
        save_file(held, tmp_path / file)
    index = {"weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    script = f"""
import re, torch
from pathlib import Path
from llama2_lib.model.weights import load_model
status = Path("/proc/self/status")  # ru_maxrss begins with that of the process that started it
peak = lambda: 1024 * int(re.search("VmHWM:\\s+(\\d+)", status.read_text())[1])
before = peak()
model, config = load_model({str(tmp_path)!r}, dtype=torch.bfloat16)
print(peak() - before, 2 * config.n_parameters)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    taken, model = map(int, out.stdout.split())
    shard = max((tmp_path / file).stat().st_size for file in set(where.values()))
    assert taken < model + 1.5 * shard, f"{taken:,} bytes for a model of {model:,}, shard {shard:,}"
    assert taken > model / 2, f"{taken:,} of {model:,}"
