"""Weights in and out: this course's artifacts, Hugging Face folders, and what `formats` reads."""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llama2_lib.model import formats
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.formats import Piece, Weights
from llama2_lib.model.transformer import ScalarModel, Transformer

Model = TypeVar("Model", Transformer, ScalarModel)

PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HF_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
ROTATED = ("attention.wq", "attention.wk")


def save_model(
    model: Transformer | ScalarModel, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write `config.json` (Meta's field names) and `model.safetensors` into `folder`.

    The weights are rounded to `dtype`, or else keep the model's own precision.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    weights = {name: t.detach().to("cpu", dtype) for name, t in model.state_dict().items()}
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    config, path = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps(dataclasses.asdict(model.config), indent=2) + "\n")
    try:
        save_file(weights, path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}. Free some disk space.") from None
    path.chmod(config.stat().st_mode)  # safetensors gives it rights for its owner alone


def load_model(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> tuple[Transformer, ModelConfig]:
    """Load a model and its configuration: ours, Hugging Face's, Meta's, llama2.c's or GGUF.

    `path` is a folder of this course or in Hugging Face's layout, in one file or in shards; a
    folder with Meta's `params.json`, whose shards are merged; a `.bin` of llama2.c or a `.gguf`
    file. The model computes in `dtype`; None: in the precision of the file. Weights are read one
    by one: no more is in memory than the model and one shard.

    Raises:
        FileNotFoundError: The folder, its configuration or a shard is missing.
        ValueError: The configuration is no Llama 2, or the weights do not fit it, are of mixed or
            integer precision, or not finite.
    """
    config, pieces = _read(Path(path))
    with torch.device("meta"):
        model = Transformer(config)
    return _filled(model, pieces, path, device, dtype), config


def load_scalar_model(path: Path | str, device: torch.device | str = "cpu") -> ScalarModel:
    """Load a reward model or value function from a finished artifact; it computes in fp32."""
    config, pieces = _read(Path(path))
    with torch.device("meta"):
        model = ScalarModel(Transformer(config))
    return _filled(model, pieces, path, device, torch.float32)


def build(config: ModelConfig, weights: dict[str, Tensor]) -> Transformer:
    """Return a model in evaluation mode that holds exactly `weights`."""
    with torch.device("meta"):
        model = Transformer(config)
    return _filled(model, (Piece(*item) for item in weights.items()), "the model", "cpu", None)


def _filled(
    model: Model,
    pieces: Iterable[Piece],
    source: Path | str,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Model:
    """Give every weight its numbers, in the order in which they are read."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    held, parts = dict[str, Tensor](), dict[str, int]()
    norms, matrices = set[torch.dtype](), set[torch.dtype]()
    for name, tensor, dim, part, of in pieces:
        shape = [n * of if axis == dim else n for axis, n in enumerate(tensor.shape)]
        if wanted.get(name) != tuple(shape) or parts.get(name, 0) != part:
            cut = f" in {of} shards" * (of > 1)
            raise ValueError(
                f"weight {name} must have shape {wanted.get(name)}; the file has {tuple(shape)}"
                f"{cut}. Do the configuration and the weights belong together?"
            )
        _check_numbers(source, name, tensor, norms, matrices)
        parts[name] = part + 1
        if of == 1:
            held[name] = tensor.to(device, dtype)
            continue
        if part == 0:
            held[name] = torch.empty(shape, device=device, dtype=dtype or tensor.dtype)
        held[name].chunk(of, dim)[part].copy_(tensor)
    if absent := sorted(wanted.keys() - held.keys()):
        raise ValueError(
            f"weight {absent[0]} must have shape {wanted[absent[0]]}; the file has None. "
            "Do the configuration and the weights belong together?"
        )
    model.load_state_dict(held, assign=True)
    return model.eval()


def _check_numbers(
    source: Path | str,
    name: str,
    tensor: Tensor,
    norms: set[torch.dtype],
    matrices: set[torch.dtype],
) -> None:
    """Refuse numbers that no model computes with. Norms may be in fp32 beside half precision."""
    (norms if "norm" in name else matrices).add(tensor.dtype)
    odd = (norms | matrices) - {*PRECISIONS}
    if odd or len(matrices) > 1 or (matrices and norms - matrices - {torch.float32}):
        raise ValueError(
            f"{source} must hold matrices of one precision, fp64, fp32, fp16 or bf16, and norms of "
            f"that one or fp32; it holds {', '.join(sorted(map(str, norms | matrices)))}. "
            "Quantised weights cannot be read."
        )
    if not bool(tensor.isfinite().all()):
        raise ValueError(
            f"{source} must hold finite weights; {name} does not. The run that left it has "
            "diverged, or the file is damaged."
        )


def _read(path: Path) -> Weights:
    """Read another program's file or folder, our own folder, or translate Hugging Face's."""
    if path.suffix == ".gguf" and path.is_file():
        return formats.read_gguf(path)
    if path.suffix == ".bin" and path.is_file():
        return formats.read_llama2c(path)
    if (path / "params.json").is_file() and not (path / "config.json").is_file():
        return formats.read_meta(path)
    described = path / "config.json"
    if not described.is_file():
        raise FileNotFoundError(f"{path} must hold a config.json.{_there(path)}")
    document = _read_json(described)
    try:
        if not isinstance(document, dict):
            raise ValueError(f"it holds no fields but {str(document)[:60]!r}.")
        foreign = "model_type" in document
        config = (_from_hugging_faces if foreign else _from_ours)(document)
    except ValueError as error:
        raise ValueError(f"{described} must describe a Llama 2; {error}") from None
    named = _read_weights(path)
    if foreign:
        named = (item for one in named for item in from_hugging_face(dict([one]), config).items())
    return config, (Piece(*item) for item in named)


def from_hugging_face(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename Hugging Face parameters to Meta's, and undo the reordering of rotary pairs.

    Hugging Face turns number j of a head together with number j + head_dim/2; Meta turns
    neighbours. So the rows of every wq and wk head are interleaved back.
    """
    renamed = {}
    for name, tensor in weights.items():
        if name.endswith("rotary_emb.inv_freq"):  # a constant that old exports stored
            continue
        layer, stem = _split(name)
        meta_name = HF_NAMES.get(stem)
        if meta_name is None:
            raise ValueError(f"{name} is not a weight of a Llama 2 without biases; cannot load it.")
        if meta_name in ROTATED:
            if tensor.dim() != 2 or len(tensor) % config.head_dim:
                raise ValueError(
                    f"{name} must hold heads of {config.head_dim} rows; the file has shape "
                    f"{tuple(tensor.shape)}. Do config.json and the weights belong together?"
                )
            pattern = "(head half pair) dim -> (head pair half) dim"
            tensor = rearrange(tensor, pattern, half=2, pair=config.head_dim // 2)
        renamed[f"{layer}{meta_name}.weight"] = tensor
    return renamed


def to_hugging_face(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return the inverse of `from_hugging_face`."""
    names = {meta: hf for hf, meta in HF_NAMES.items()}
    renamed = {}
    for name, tensor in weights.items():
        layer, meta_name = _split(name)
        if meta_name in ROTATED:
            pattern = "(head pair half) dim -> (head half pair) dim"
            tensor = rearrange(tensor, pattern, half=2, pair=config.head_dim // 2)
        renamed[f"{'model.' if layer else ''}{layer}{names[meta_name]}.weight"] = tensor
    return renamed


def _split(name: str) -> tuple[str, str]:
    """Return "layers.3." or nothing, and the rest of a weight's name; nothing of other names."""
    match = re.fullmatch(r"(?:model\.(?=layers\.))?(layers\.\d+\.)?(.*)\.weight", name)
    return (match[1] or "", match[2]) if match else ("", "")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON; it cannot be read: {error}") from None


def _from_ours(document: dict[str, Any]) -> ModelConfig:
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    if "hidden_size" in document:
        raise ValueError("it has Hugging Face's fields without their model_type, which says whose.")
    if lacking := sorted(names - document.keys()):
        raise ValueError(f"it lacks {', '.join(lacking)}.")
    if unknown := sorted(document.keys() - names):
        raise ValueError(f"it has the unknown fields {', '.join(unknown)}.")
    return ModelConfig(**document)


def _from_hugging_faces(document: dict[str, Any]) -> ModelConfig:
    if document["model_type"] != "llama":
        raise ValueError(f"model_type must be llama; got {document['model_type']!r}.")
    sizes = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "max_position_embeddings",
    )  # fmt: skip
    if lacking := [name for name in (*sizes, "rms_norm_eps") if document.get(name) is None]:
        raise ValueError(f"it lacks {', '.join(lacking)}.")
    for name in sizes:
        if type(document[name]) is not int or document[name] < 1:
            raise ValueError(f"{name} must be a whole number from 1 on; got {document[name]!r}.")
    vocab_size, dim, hidden, n_layers, n_heads, context = (document[name] for name in sizes)
    if (head_dim := document.get("head_dim")) not in (None, dim // n_heads):
        raise ValueError(f"head_dim must be {dim} / {n_heads}, as in Llama 2; got {head_dim!r}.")
    if document.get("quantization_config"):
        raise ValueError("its weights are quantised; take the model in bf16, fp16 or fp32.")
    if document.get("tie_word_embeddings", False):
        raise ValueError("Llama 2 has separate input and output tables; these are tied.")
    if document.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be silu; got {document['hidden_act']!r}.")
    theta = document.get("rope_theta")
    for name in ("rope_scaling", "rope_parameters"):  # both spellings are found in either place
        rope = document.get(name) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{name} must be null or an object; got {rope!r}.")
        kinds = {rope.get("rope_type"), rope.get("type")} - {None}
        if kinds - {"default"} or (not kinds and rope.keys() - {"rope_theta"}):
            raise ValueError(f"scaled rotary positions are not Llama 2's; {name} asks for {rope}.")
        theta = rope.get("rope_theta", theta)
    kv_heads = document.get("num_key_value_heads")
    return ModelConfig(
        vocab_size=vocab_size, dim=dim, n_layers=n_layers, n_heads=n_heads,
        n_kv_heads=n_heads if kv_heads is None else kv_heads,
        max_seq_len=context, rope_theta=10_000.0 if theta is None else theta,
        norm_eps=document["rms_norm_eps"], **formats.stored_width(hidden, dim),
    )  # fmt: skip


def _read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield what is in `model.safetensors`, or in every file that its index names."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        document = _read_json(index)
        shards = document.get("weight_map") if isinstance(document, dict) else None
        if not (isinstance(shards, dict) and all(isinstance(f, str) for f in shards.values())):
            raise ValueError(f"{index} must map weights to files; it does not. Fetch it again.")
        names = sorted(set(shards.values()))
        if outside := [name for name in names if name in ("", "..") or name != Path(name).name]:
            raise ValueError(f"{index} must name files beside it; it names {outside[0]!r}.")
    for path in (folder / name for name in names):
        if not path.is_file():
            raise FileNotFoundError(f"{path} must exist.{_there(folder)}")
    seen = set[str]()
    for path in (folder / name for name in names):
        try:
            with safe_open(path, "pt") as file:
                if twice := sorted(seen & {*file.keys()}):
                    raise ValueError(
                        f"{path} must hold weights of its own; {twice[0]} stands in a file before "
                        "it too. Are these the shards of one model?"
                    )
                seen |= {*file.keys()}
                yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{path} must be a whole safetensors file; it cannot be read: {error}. Was it cut "
                "off, or is it a web page or a pointer of git-LFS? Fetch or build it again."
            ) from None


def _there(folder: Path) -> str:
    """Say what stands where a folder of a model should."""
    if not folder.is_dir():
        kind = "is a file" if folder.is_file() else "does not exist"
        return f" {folder.name} {kind}; of files a .bin of llama2.c and a .gguf can be read."
    names = sorted(path.name for path in folder.iterdir())[:5]
    return f" It holds {', '.join(names) or 'nothing'}."
