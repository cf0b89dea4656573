"""A finished stage for other programs: Hugging Face's folder, and llama.cpp's GGUF file.

Ids stay ours. transformers' `LlamaTokenizer`, in its old behaviour or its new one, loses a space
at the beginning of a text; so `tokenizer.json` says itself what SentencePiece does: put U+2581
before every text, also behind a control token, then merge neighbours by the score of their union.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor

from llama2_lib import storage
from llama2_lib.chat_room import Sampling
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.weights import load_model, to_hugging_face
from llama2_lib.text.tokenizer import load_tokenizer

TEMPLATE = "chat_template.jinja"
FORMAT = Path(__file__).parent / "text" / TEMPLATE
CONSTANTS = FORMAT.with_name("hugging_face.json")
"""What is the same in every folder: by file, without `.json`."""


def hugging_face_config(c: ModelConfig) -> dict[str, Any]:
    """Return the shape of a model by the names of transformers' `LlamaConfig`."""
    return {
        "vocab_size": c.vocab_size, "hidden_size": c.dim, "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads, "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
    }  # fmt: skip


def check_target(folder: Path, gguf: bool = False) -> None:
    """Refuse a folder in use, and GGUF without its package, before anything is trained."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be new or an empty folder; it is not. Name another one.")
    if gguf and importlib.util.find_spec("gguf") is None:
        raise ValueError('gguf is not installed: pip install -c constraints.txt -e ".[gguf]".')


def to_folder(artifact: Path, folder: Path, *, chat: bool = True) -> Path:
    """Write a finished language model in Hugging Face's layout into a new `folder`, all or nothing.

    Weights keep the precision of their file. `load_model` and `load_tokenizer` read the folder
    too. In transformers `tokenizer(text)` begins with BOS, as Llama's does, and takes `<s>` within
    a text for BOS unless `split_special_tokens=True`; ours never does. One that does not `chat`
    gets no chat template.

    Raises:
        FileNotFoundError: `artifact` lacks a file.
        ValueError: `artifact` holds no language model, or `folder` is in use.
    """
    check_target(folder)
    model, c = load_model(artifact, dtype=None)
    processor = load_tokenizer(artifact).processor
    files = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    dtype = str(model.output.weight.dtype).removeprefix("torch.")
    files["config"] |= hugging_face_config(c) | {"rope_theta": c.rope_theta, "torch_dtype": dtype}
    files["generation_config"] |= {n: vars(Sampling())[n] for n in ("temperature", "top_p")}
    files["tokenizer_config"]["model_max_length"] = c.max_seq_len
    files["tokenizer"]["model"] |= _bpe(processor)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.part")
    storage.remove(staging)
    staging.mkdir()
    for name, document in files.items():
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        (staging / f"{name}.json").write_text(text, encoding="utf-8")
    (staging / "tokenizer.model").write_bytes(processor.serialized_model_proto())
    if chat:
        (staging / TEMPLATE).write_bytes(FORMAT.read_bytes())
    weights = {n: t.contiguous() for n, t in to_hugging_face(model.state_dict(), c).items()}
    save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
    (staging / "model.safetensors").chmod((staging / "config.json").stat().st_mode)
    storage.remove(folder)
    return staging.rename(folder)


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


def to_gguf(folder: Path) -> Path:
    """Write `model.gguf`, for llama.cpp, into a folder of `to_folder`; return its path.

    llama.cpp turns neighbouring rows of wq and wk together, as Meta does: its converter permutes
    Hugging Face's order back, and what `load_model` returns is right as it is. Norms are stored in
    fp32, matrices as they are, bf16 in fp32.
    """
    import gguf  # of the extra `gguf`

    model, c = load_model(folder, dtype=None)
    sp, ids = load_tokenizer(folder).processor, range(c.vocab_size)
    kinds = {
        gguf.TokenType.UNKNOWN: sp.is_unknown, gguf.TokenType.CONTROL: sp.is_control,
        gguf.TokenType.BYTE: sp.is_byte, gguf.TokenType.NORMAL: lambda _: True,
    }  # fmt: skip
    settings = {
        "name": folder.resolve().name, "vocab_size": c.vocab_size, "context_length": c.max_seq_len,
        "embedding_length": c.dim, "block_count": c.n_layers, "feed_forward_length": c.hidden_dim,
        "head_count": c.n_heads, "head_count_kv": c.n_kv_heads, "rope_dimension_count": c.head_dim,
        "rope_freq_base": c.rope_theta, "layer_norm_rms_eps": c.norm_eps,
        "tokenizer_model": "llama",  # SentencePiece's merging by scores
        "token_list": [sp.id_to_piece(index) for index in ids],
        "token_scores": [sp.get_score(index) for index in ids],
        "token_types": [next(kind for kind, it_is in kinds.items() if it_is(i)) for i in ids],
        "unk_token_id": sp.unk_id(), "bos_token_id": sp.bos_id(), "eos_token_id": sp.eos_id(),
    }  # fmt: skip
    if (folder / TEMPLATE).is_file():
        settings["chat_template"] = (folder / TEMPLATE).read_text(encoding="utf-8")
    writer = gguf.GGUFWriter(staging := folder / "model.part", "llama")
    for name, value in settings.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.n_layers)  # it knows Meta's
    for name, tensor in model.state_dict().items():
        half = tensor.dtype == torch.float16 and tensor.dim() > 1
        array = tensor.to(torch.float16 if half else torch.float32).numpy()
        writer.add_tensor(names.get_name(name, (".weight",)) or name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return staging.replace(folder / "model.gguf")
