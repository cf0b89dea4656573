"""Weights of other programs: Meta's shards, llama2.c's files and GGUF, read piece by piece.

Every reader returns the configuration and an iterator of `Piece`s under Meta's names, rotary pairs
side by side as Meta has them, so that a large model is never in memory twice. llama2.c and GGUF
keep Meta's order; only Hugging Face's layout turns it (`model.weights`).
"""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import rotary_table


class Piece(NamedTuple):
    """A weight, or what one shard holds of it."""

    name: str
    tensor: Tensor
    dim: int = 0
    """The axis along which it is cut."""
    part: int = 0
    of: int = 1


Weights = tuple[ModelConfig, Iterator[Piece]]


def stored_width(hidden: int, dim: int) -> dict[str, Any]:
    """Return the settings that give a stored feed-forward width, whatever rule it came from.

    Meta's rule rounds up to a multiple, here of the width itself.
    """
    return {"multiple_of": hidden, "ffn_dim_multiplier": min(1.0, hidden / int(2 * 4 * dim / 3))}


# --- Meta: params.json and consolidated.*.pth


def cut_along(name: str) -> int | None:
    """Return the axis along which Meta's model-parallel ranks cut a weight; None: each holds all.

    Outputs of a block's first matrices are divided (axis 0), inputs of its last ones (axis 1), and
    of the table of embeddings the columns.
    """
    if "norm" in name:
        return None
    return int(any(f"{last}." in name for last in ("wo", "w2", "tok_embeddings")))


def read_meta(folder: Path) -> Weights:
    """Read `params.json` and all `consolidated.NN.pth`; no code in a pickle is ever executed.

    Stray `rope.freqs` are passed over, a vocabulary of -1 is counted, heads for keys and values
    that are not named are as many as those for queries.
    """
    paths = sorted(folder.glob("consolidated.*.pth"))
    names = [f"consolidated.{index:02}.pth" for index in range(len(paths) or 1)]
    if absent := sorted({*names} - {path.name for path in paths}):
        raise FileNotFoundError(
            f"{folder} must hold {absent[0]}; it holds {', '.join(p.name for p in paths) or 'none'}"
            ". Meta numbers the shards of a model from 00 on: fetch the missing one."
        )
    params = json.loads((folder / "params.json").read_text(encoding="utf-8-sig"))
    params = {name: value for name, value in params.items() if value is not None}
    known = {*ModelConfig.__dataclass_fields__}
    if unknown := sorted(params.keys() - known):
        raise ValueError(
            f"{folder / 'params.json'} must describe a Llama 2; {unknown[0]} = "
            f"{params[unknown[0]]!r} is of another model."
        )
    if params.get("vocab_size", -1) == -1:
        params["vocab_size"] = len(_unpickled(paths[0])["tok_embeddings.weight"])
    given = {"n_kv_heads": params["n_heads"], "max_seq_len": 4096, "multiple_of": 256} | params
    config = ModelConfig(**given)

    def pieces() -> Iterator[Piece]:
        for part, path in enumerate(paths):
            for name, tensor in _unpickled(path).items():
                axis = cut_along(name)
                if name != "rope.freqs" and not (axis is None and part):
                    of = 1 if axis is None else len(paths)
                    yield Piece(name, tensor.clone(), axis or 0, part, of)

    return config, pieces()


def _unpickled(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} must be a whole file of torch.save that holds tensors and nothing else; it "
            f"cannot be read: {reason} Fetch it again."
        ) from None
    if not (isinstance(tensors, dict) and all(isinstance(t, Tensor) for t in tensors.values())):
        raise ValueError(f"{path} must hold tensors by name; it does not.")
    return tensors


def write_meta(
    weights: dict[str, Tensor], config: ModelConfig, folder: Path, n_shards: int = 1
) -> None:
    """Write `params.json` and `n_shards` files, each with what one model-parallel rank holds."""
    c = config
    if c.n_kv_heads % n_shards or c.hidden_dim % n_shards or c.vocab_size % n_shards:
        raise ValueError(
            f"shards must divide key/value heads, width of the feed-forward layer and vocabulary "
            f"({c.n_kv_heads}, {c.hidden_dim}, {c.vocab_size}); got {n_shards} shards."
        )
    params = {name: getattr(c, name) for name in ModelConfig.__dataclass_fields__}
    (folder / "params.json").write_text(json.dumps(params) + "\n", encoding="utf-8")
    for part in range(n_shards):
        held = {}
        for name, tensor in weights.items():
            axis = cut_along(name)
            held[name] = (tensor if axis is None else tensor.chunk(n_shards, axis)[part]).clone()
        torch.save(held, folder / f"consolidated.{part:02}.pth")


# --- llama2.c: one file of numbers behind a header


def read_llama2c(path: Path) -> Weights:
    """Read a `.bin` of llama2.c: version 0 (fp32 without a mark), 1 (fp32) or 2 (int8 in groups).

    A table that serves as output too is copied: Llama 2 has two.
    """
    with path.open("rb") as file:
        header = file.read(256).ljust(256, b"\0")
    version, start = 0, 28
    if header.startswith(b"24ka"):  # versions after the first have a mark
        version, start = struct.unpack_from("<i", header, 4)[0], 256
        if version not in (1, 2):
            raise ValueError(f"{path} must be of llama2.c's version 0, 1 or 2; it says {version}.")
    sizes = struct.unpack_from("<7i", header, 8 if version else 0)
    dim, hidden, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len = sizes
    shared, group = struct.unpack_from("<Bi", header, 36)
    if version == 0:
        shared, vocab_size = vocab_size > 0, abs(vocab_size)
    try:
        config = ModelConfig(
            dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
            vocab_size=vocab_size, max_seq_len=max_seq_len, **stored_width(hidden, dim),
        )  # fmt: skip
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(
            f"{path} must be a file of llama2.c; its header is none: {error}"
        ) from None
    layout = list(_layout(config, version, bool(shared)))
    numbers = {name: math.prod(shape) for name, shape in layout}
    width = {
        name: n + 4 * (n // max(group, 1)) if version == 2 and "norm" not in name else 4 * n
        for name, n in numbers.items()
    }
    if (size := path.stat().st_size) != start + sum(width.values()):
        raise ValueError(
            f"{path} must have {start + sum(width.values()):,} bytes, as its header says; it has "
            f"{size:,}. It was cut off, or it is no file of llama2.c."
        )

    def pieces() -> Iterator[Piece]:
        raw, at = np.memmap(path, np.uint8, "r"), start
        for name, shape in layout:
            held = raw[at : at + width[name]]
            at += width[name]
            if name == "rope":
                continue
            if version == 2 and "norm" not in name:
                n = numbers[name]
                scales = held[n:].view("<f4")[:, None]
                values = held[:n].view(np.int8).reshape(-1, group) * scales
            else:
                values = held.view("<f4").astype(np.float32)
            tensor = torch.from_numpy(values.astype(np.float32, copy=False)).view(*shape)
            yield Piece(name, tensor)
            if shared and name == "tok_embeddings.weight":
                yield Piece("output.weight", tensor.clone())

    return config, pieces()


def _layout(
    config: ModelConfig, version: int, shared: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes in the order of the file."""
    c = config
    kv, layers = c.n_kv_heads * c.head_dim, range(c.n_layers)
    table, norm = ("tok_embeddings.weight", (c.vocab_size, c.dim)), ("norm.weight", (c.dim,))

    def each(name: str, *shape: int) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"layers.{layer}.{name}.weight", shape) for layer in layers]

    attention_norm, ffn_norm = each("attention_norm", c.dim), each("ffn_norm", c.dim)
    attention = [
        *each("attention.wq", c.dim, c.dim), *each("attention.wk", kv, c.dim),
        *each("attention.wv", kv, c.dim), *each("attention.wo", c.dim, c.dim),
    ]  # fmt: skip
    feed_forward = [
        *each("feed_forward.w1", c.hidden_dim, c.dim),
        *each("feed_forward.w2", c.dim, c.hidden_dim),
        *each("feed_forward.w3", c.hidden_dim, c.dim),
    ]
    if version == 0:
        yield from (table, *attention_norm, *attention, *ffn_norm, *feed_forward, norm)
        yield "rope", (c.max_seq_len, c.head_dim)  # cosines and sines, half of each
    else:
        yield from (*attention_norm, *ffn_norm, norm, table, *attention, *feed_forward)
    if not shared:
        yield "output.weight", table[1]


def write_llama2c(weights: dict[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Write version 0, which llama2.c's `run` reads: fp32, rotary tables included."""
    c = config
    table = rotary_table(c.head_dim, c.max_seq_len, c.rope_theta)
    rope = torch.cat([table.real.flatten(), table.imag.flatten()])
    with path.open("wb") as file:
        file.write(struct.pack(
            "<7i", c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, -c.vocab_size,
            c.max_seq_len,
        ))  # fmt: skip
        for name, _ in _layout(c, 0, shared=False):
            tensor = rope if name == "rope" else weights[name]
            file.write(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())


# --- GGUF


def read_gguf(path: Path) -> Weights:
    """Read an unquantised GGUF file of llama.cpp; needs the extra `gguf`."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise ValueError(f"{path} must be a whole GGUF file; it cannot be read: {error}") from None
    told = {name: field.contents() for name, field in reader.fields.items()}
    if (kind := told.get("general.architecture")) != "llama":
        raise ValueError(f"{path} must hold a Llama; its architecture is {kind!r}.")
    if scaled := sorted(name for name in told if name.startswith("llama.rope.scaling")):
        raise ValueError(f"{path} must hold unscaled rotary positions; it has {scaled[0]}.")
    of = {name.removeprefix("llama."): value for name, value in told.items()}
    held = {tensor.name: tensor for tensor in reader.tensors}
    dim = of["embedding_length"]
    config = ModelConfig(
        dim=dim, n_layers=of["block_count"], n_heads=of["attention.head_count"],
        n_kv_heads=of.get("attention.head_count_kv", of["attention.head_count"]),
        vocab_size=int(held["token_embd.weight"].shape[1]), max_seq_len=of["context_length"],
        rope_theta=of.get("rope.freq_base", ModelConfig().rope_theta),
        norm_eps=round(of["attention.layer_norm_rms_epsilon"], 12),  # stored in fp32
        **stored_width(of["feed_forward_length"], dim),
    )  # fmt: skip
    floats = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for tensor in reader.tensors:
        if tensor.tensor_type.name not in floats:
            raise ValueError(
                f"{path} must hold fp32, fp16 or bf16; {tensor.name} is quantised "
                f"({tensor.tensor_type.name}). Take the unquantised file."
            )
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.n_layers)
    names = [name for name, _ in _layout(config, 1, shared=False)]
    ours = {f"{theirs.get_name(name.removesuffix('.weight'))}.weight": name for name in names}

    def pieces() -> Iterator[Piece]:
        for tensor in reader.tensors:
            raw = np.ascontiguousarray(tensor.data).view(np.uint8).copy()
            numbers = torch.from_numpy(raw).view(floats[tensor.tensor_type.name])
            shape = [int(n) for n in reversed(tensor.shape)]
            yield Piece(ours.get(tensor.name, tensor.name), numbers.view(shape))

    return config, pieces()
