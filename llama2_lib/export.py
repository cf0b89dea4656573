"""A model for other programs: Hugging Face's folder, Meta's, llama2.c's and llama.cpp's files.

In Hugging Face's folder ids stay ours. transformers' `LlamaTokenizer`, in its old behaviour or its
new one, loses a space at the beginning of a text; so `tokenizer.json` says itself what
SentencePiece does: put U+2581 before every text, also behind a control token, then merge neighbours
by the score of their union.
"""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor

from llama2_lib import storage
from llama2_lib.chat_room import Sampling
from llama2_lib.model import formats
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import load_model, save_model, to_hugging_face
from llama2_lib.text import tokenizer as tokenizers
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer

TEMPLATE = "chat_template.jinja"
FORMAT = Path(__file__).parent / "text" / TEMPLATE
CONSTANTS = FORMAT.with_name("hugging_face.json")
"""What is the same in every folder: by file, without `.json`."""
Layout = Literal["hf", "meta", "llama2c", "gguf", "ours"]


def hugging_face_config(c: ModelConfig) -> dict[str, Any]:
    """Return the shape of a model by the names of transformers' `LlamaConfig`."""
    return {
        "vocab_size": c.vocab_size, "hidden_size": c.dim, "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads, "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
    }  # fmt: skip


def check_target(folder: Path, to: Layout = "hf") -> None:
    """Refuse a folder in use, and GGUF without its package, before anything is trained."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be new or an empty folder; it is not. Name another one.")
    if to == "gguf" and importlib.util.find_spec("gguf") is None:
        raise ValueError('gguf is not installed: pip install -c constraints.txt -e ".[convert]".')


def convert(
    source: Path,
    folder: Path,
    to: Layout = "hf",
    *,
    dtype: torch.dtype | None = None,
    shards: int = 1,
    chat: bool = True,
) -> Path:
    """Write a model with its tokenizer into a new `folder`, all or nothing.

    `source` is whatever `load_model` reads. Weights keep the precision of their file unless a
    `dtype` is named (llama2.c has fp32 only). "hf" and "meta" come in so many `shards`. In
    transformers `tokenizer(text)` begins with BOS, as Llama's does, and takes `<s>` within a text
    for BOS unless `split_special_tokens=True`; ours never does. One that does not `chat` gets no
    chat template.

    Raises:
        FileNotFoundError: `source` lacks a file.
        ValueError: `source` holds no language model, or `folder` is in use.
    """
    check_target(folder, to)
    model, config = load_model(source, dtype=dtype)
    tokenizer = load_tokenizer(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        staging = Path(scratch) / folder.name
        staging.mkdir()
        if to == "hf":
            _write_hugging_face(model, tokenizer, staging, shards, chat)
        elif to == "gguf":
            _write_gguf(model, tokenizer, staging / "model.gguf", folder.resolve().name, chat)
        elif to == "meta":
            formats.write_meta(model.state_dict(), config, staging, shards)
        elif to == "llama2c":
            formats.write_llama2c(model.state_dict(), config, staging / "model.bin")
            tokenizers.write_llama2c(tokenizer, staging / "tokenizer.bin")
        else:
            save_model(model, staging)
        if to in ("hf", "meta", "ours"):
            proto = tokenizer.processor.serialized_model_proto()
            (staging / "tokenizer.model").write_bytes(proto)
        storage.remove(folder)
        staging.rename(folder)
    return folder


def _write_hugging_face(
    model: Transformer, tokenizer: Tokenizer, folder: Path, shards: int, chat: bool
) -> None:
    c = model.config
    files = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    dtype = str(model.output.weight.dtype).removeprefix("torch.")
    files["config"] |= hugging_face_config(c) | {"rope_theta": c.rope_theta, "torch_dtype": dtype}
    files["generation_config"] |= {n: vars(Sampling())[n] for n in ("temperature", "top_p")}
    files["tokenizer_config"]["model_max_length"] = c.max_seq_len
    files["tokenizer"]["model"] |= _bpe(tokenizer.processor)
    names = ["model.safetensors"]
    if shards > 1:
        names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    held = model.state_dict()
    where: dict[str, str] = {}
    for name, part in zip(names, np.array_split([*held], shards), strict=True):
        translated = to_hugging_face({str(n): held[n] for n in part}, c)
        weights = {n: t.contiguous() for n, t in translated.items()}
        save_file(weights, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(weights, name)
    if shards > 1:
        size = sum(tensor.nbytes for tensor in held.values())
        files["model.safetensors.index"] = {"metadata": {"total_size": size}, "weight_map": where}
    for name, document in files.items():
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    if chat:
        (folder / TEMPLATE).write_bytes(FORMAT.read_bytes())
    for name in names:  # safetensors gives its files rights for their owner alone
        (folder / name).chmod((folder / "config.json").stat().st_mode)


def _bpe(sp: SentencePieceProcessor) -> dict[str, Any]:
    """Return pieces, and all pairs whose union is a piece that text makes, best score first."""
    pieces = [sp.id_to_piece(index) for index in range(sp.vocab_size())]
    assert pieces[:3] == ["<unk>", "<s>", "</s>"], "the ids of train_tokenizer, as in CONSTANTS"
    ids = {piece: index for index, piece in enumerate(pieces)}
    made = [piece for piece in pieces[3:] if not sp.is_byte(ids[piece])]
    cuts = [(piece[:cut], piece[cut:]) for piece in made for cut in range(1, len(piece))]
    pairs = [pair for pair in cuts if ids.keys() >= {*pair}]
    merges = sorted(pairs, key=lambda pair: (-sp.get_score(ids["".join(pair)]), ids[pair[0]]))
    return {"vocab": ids, "merges": merges, "byte_fallback": len(made) < len(pieces) - 3}


def _write_gguf(
    model: Transformer, tokenizer: Tokenizer, path: Path, name: str, chat: bool
) -> None:
    """Write llama.cpp's file.

    llama.cpp turns neighbouring rows of wq and wk together, as Meta does: its converter permutes
    Hugging Face's order back, and what `load_model` returns is right as it is. Norms are stored in
    fp32, matrices as they are, bf16 in fp32.
    """
    import gguf  # of the extra `convert`

    c, sp = model.config, tokenizer.processor
    ids = range(c.vocab_size)
    kinds = {
        gguf.TokenType.UNKNOWN: sp.is_unknown, gguf.TokenType.CONTROL: sp.is_control,
        gguf.TokenType.BYTE: sp.is_byte, gguf.TokenType.NORMAL: lambda _: True,
    }  # fmt: skip
    settings = {
        "name": name, "vocab_size": c.vocab_size, "context_length": c.max_seq_len,
        "embedding_length": c.dim, "block_count": c.n_layers, "feed_forward_length": c.hidden_dim,
        "head_count": c.n_heads, "head_count_kv": c.n_kv_heads, "rope_dimension_count": c.head_dim,
        "rope_freq_base": c.rope_theta, "layer_norm_rms_eps": c.norm_eps,
        "tokenizer_model": "llama",  # SentencePiece's merging by scores
        "token_list": [sp.id_to_piece(index) for index in ids],
        "token_scores": [sp.get_score(index) for index in ids],
        "token_types": [next(kind for kind, it_is in kinds.items() if it_is(i)) for i in ids],
        "unk_token_id": sp.unk_id(), "bos_token_id": sp.bos_id(), "eos_token_id": sp.eos_id(),
    }  # fmt: skip
    if chat:
        settings["chat_template"] = FORMAT.read_text(encoding="utf-8")
    writer = gguf.GGUFWriter(path, "llama")
    for field, value in settings.items():
        getattr(writer, f"add_{field}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.n_layers)  # it knows Meta's
    for weight, tensor in model.state_dict().items():
        half = tensor.dtype == torch.float16 and tensor.dim() > 1
        array = tensor.to(torch.float16 if half else torch.float32).numpy()
        writer.add_tensor(names.get_name(weight, (".weight",)) or weight, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
