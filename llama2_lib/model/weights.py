"""Weights in and out: this course's artifacts and Hugging Face folders.

Meta's `params.json` with `consolidated.*.pth` and llama2.c's `.bin` are recognised and refused
with a message; their readers belong to the notebook on scaling out.
"""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama2_lib.model.config import ModelConfig
from llama2_lib.model.heads import ScalarModel
from llama2_lib.model.transformer import Transformer

Model = TypeVar("Model", Transformer, ScalarModel)

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


def save_model(model: Transformer | ScalarModel, folder: Path) -> None:
    """Write `config.json` (Meta's field names) and `model.safetensors` into `folder`.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    try:
        save_file(weights, folder / "model.safetensors")
    except SafetensorError as error:
        raise OSError(
            f"{folder / 'model.safetensors'} could not be written: {error}. Free some disk space."
        ) from None
    (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=2) + "\n")


def load_model(
    path: Path | str, device: torch.device | str = "cpu"
) -> tuple[Transformer, ModelConfig]:
    """Load a model and its configuration from a folder.

    Args:
        path: A finished artifact of this course, or a Hugging Face folder of a Llama model.
        device: Where the weights go.

    Raises:
        FileNotFoundError: The folder, its `config.json` or its weights are missing.
        ValueError: The configuration is no Llama 2, or the weights do not fit it.
    """
    folder = Path(path)
    document = _read_document(folder)
    config = _config(document, folder / "config.json")
    weights = _read_shards(folder)
    if "model_type" in document:
        weights = from_hugging_face(weights, config)
    return build(config, weights, device), config


def load_scalar_model(path: Path | str, device: torch.device | str = "cpu") -> ScalarModel:
    """Load a reward model or value function from a finished artifact of this course.

    Raises:
        FileNotFoundError: The folder, its `config.json` or its weights are missing.
        ValueError: The weights are not those of a scalar model of that configuration.
    """
    folder = Path(path)
    config = _config(_read_document(folder), folder / "config.json")
    with torch.device("meta"):
        model = ScalarModel(Transformer(config))
    return _filled(model, _read_shards(folder), device)


def build(
    config: ModelConfig, weights: dict[str, Tensor], device: torch.device | str = "cpu"
) -> Transformer:
    """Return a model in evaluation mode that holds exactly `weights`.

    Raises:
        ValueError: Names or shapes differ from what `config` asks for.
    """
    with torch.device("meta"):
        model = Transformer(config)
    return _filled(model, weights, device)


def _filled(model: Model, weights: dict[str, Tensor], device: torch.device | str) -> Model:
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"weight {name} must have shape {wanted.get(name)}; the file has "
                f"{found.get(name)}. Do config.json and the weights belong together?"
            )
    model.load_state_dict({name: t.to(device) for name, t in weights.items()}, assign=True)
    return model.eval()


def from_hugging_face(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename Hugging Face parameters to Meta's, and undo the reordering of rotary pairs.

    Hugging Face turns number j of a head together with number j + head_dim/2; Meta turns
    neighbours. So the rows of every wq and wk head are interleaved back.
    """
    renamed = {}
    for name, tensor in weights.items():
        if name.endswith("rotary_emb.inv_freq"):  # a constant that old exports stored
            continue
        name = re.sub(r"^model\.layers\.", "layers.", name)
        stem = name.removesuffix(".weight")
        layer = re.match(r"layers\.\d+\.", stem)
        prefix = layer.group() if layer else ""
        meta_name = HF_NAMES.get(stem.removeprefix(prefix))
        if meta_name is None or not name.endswith(".weight"):
            raise ValueError(f"{name} is not a weight of a Llama 2 without biases; cannot load it.")
        if meta_name in ("attention.wq", "attention.wk"):
            if len(tensor) % config.head_dim:
                raise ValueError(
                    f"{name} must hold heads of {config.head_dim} rows; the file has "
                    f"{len(tensor)} rows. Do config.json and the weights belong together?"
                )
            tensor = rearrange(
                tensor, "(head half pair) dim -> (head pair half) dim",
                half=2, pair=config.head_dim // 2,
            )  # fmt: skip
        renamed[f"{prefix}{meta_name}.weight"] = tensor
    return renamed


def to_hugging_face(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return the inverse of `from_hugging_face`."""
    names = {meta: hf for hf, meta in HF_NAMES.items()}
    renamed = {}
    for name, tensor in weights.items():
        stem = name.removesuffix(".weight")
        layer = re.match(r"layers\.\d+\.", stem)
        prefix = layer.group() if layer else ""
        meta_name = stem.removeprefix(prefix)
        if meta_name in ("attention.wq", "attention.wk"):
            tensor = rearrange(
                tensor, "(head pair half) dim -> (head half pair) dim",
                half=2, pair=config.head_dim // 2,
            )  # fmt: skip
        renamed[f"{'model.' if prefix else ''}{prefix}{names[meta_name]}.weight"] = tensor
    return renamed


def _read_document(folder: Path) -> dict[str, Any]:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"{folder} must hold a config.json.{_what_is_it(folder)}")
    try:
        document = json.loads(config_path.read_text())
    except ValueError as error:
        raise ValueError(f"{config_path} must be JSON; it cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(
            f"{config_path} must describe a Llama 2; it holds no fields but {str(document)[:60]!r}."
        )
    return document


def _config(document: dict[str, Any], path: Path) -> ModelConfig:
    """Read our own config, or translate Hugging Face's."""
    try:
        if "model_type" not in document:
            return ModelConfig(**document)
        if document["model_type"] != "llama":
            raise ValueError(f"model_type must be llama; got {document['model_type']!r}.")
        rope = document.get("rope_parameters") or {}
        scaling = document.get("rope_scaling") or {}
        # Both spellings have been written into either place.
        kinds = {place.get(key) for place in (rope, scaling) for key in ("rope_type", "type")}
        if kinds - {None, "default"}:
            raise ValueError("scaled rotary positions are not Llama 2's; cannot load them.")
        if document.get("tie_word_embeddings", False):
            raise ValueError("Llama 2 has separate input and output tables; these are tied.")
        if document.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act must be silu; got {document['hidden_act']!r}.")
        dim, hidden = document["hidden_size"], document["intermediate_size"]
        return ModelConfig(
            vocab_size=document["vocab_size"],
            dim=dim,
            n_layers=document["num_hidden_layers"],
            n_heads=document["num_attention_heads"],
            n_kv_heads=document.get("num_key_value_heads") or document["num_attention_heads"],
            # The stored width replaces Meta's rule: rounding "up to a multiple of itself".
            multiple_of=hidden,
            ffn_dim_multiplier=min(1.0, hidden / int(2 * 4 * dim / 3)),
            max_seq_len=document["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta") or document.get("rope_theta", 10_000.0)),
            norm_eps=document["rms_norm_eps"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must describe a Llama 2; {error}") from None


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """Read every safetensors file that the folder names, or the only one it has."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{index} must map weights to files; it cannot be read. Fetch it again."
            ) from None
    else:
        names = ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} must exist.{_what_is_it(folder)}")
        try:
            weights |= load_file(folder / name)
        except SafetensorError as error:
            raise ValueError(
                f"{folder / name} must be a whole safetensors file; it cannot be read: {error}. "
                "It was cut off: fetch or build it again."
            ) from None
    return weights


def _what_is_it(folder: Path) -> str:
    """Say what a folder that cannot be loaded looks like."""
    if not folder.is_dir():
        return " There is no such folder."
    if (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth")):
        return " This looks like Meta's original layout; convert it to Hugging Face's first."
    found = sorted(path.name for path in folder.iterdir())[:5]
    return f" It holds {', '.join(found) or 'nothing'}."
