"""`llama2 bench gpu`: a Llama of 1.1 B weights trained and one of 7 B decoded, against the device.

The bounds are measured in the same run, not read off a data sheet: how many operations a second a
large product in bf16 reaches, and how many bytes a second are copied.
"""

import itertools
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama2_lib.bench.beside import hugging_face_twin, seconds, theirs, training_steps
from llama2_lib.device import choose_device
from llama2_lib.model.config import LLAMA2_7B, ModelConfig
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer

TRAINED = ModelConfig(
    vocab_size=32_000, dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, multiple_of=256,
    max_seq_len=4096,
)  # fmt: skip
"""1.1 B weights, 22 layers, 32 query heads for 4 of keys and values, context 4,096."""
ROWS, PROMPT, NEW, SIDE = 4, 128, 256, 8192
"""Rows of a training step; tokens of a prompt and an answer; width of the measured product."""
GPU_PAIRS = 5


def gpu(*, device: str = "cuda", write: Path | None = None) -> int:
    """Measure, print, and write the figures with device, shapes and versions if a file is named."""
    where = choose_device(device)
    figures = measured(where, TRAINED, LLAMA2_7B)
    for name, value in figures.items():
        print(f"{name:45s} {value:14,.3f}")
    if write is not None:
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
        about = {"device": name, "torch": torch.__version__, "rows": ROWS, "prompt": PROMPT}
        write.write_text(json.dumps({"about": about, "figures": figures}, indent=2) + "\n")
    return 0


def measured(device: torch.device, trained: ModelConfig, decoded: ModelConfig) -> dict[str, float]:
    """Return rates a second, ours and those of `transformers`, and their shares of the bounds."""
    timed = partial(_median, device=device)
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    operations = 2 * SIDE**3 / timed(lambda: a @ b)
    moved = 2 * a.nbytes / timed(lambda: b.copy_(a))  # read once, written once
    figures = {"bf16 operations, 1e12": operations / 1e12, "bytes copied, 1e9": moved / 1e9}

    tokens = ROWS * trained.max_seq_len
    for name, make in (("ours", lambda model: model), ("transformers", hugging_face_twin)):
        model: Any = make(_random(trained, device, torch.float32)).train()
        model.compile()
        step = training_steps(
            model, partial(_logits, model), trained, device, "bf16", ROWS, trained.max_seq_len
        )
        rate = tokens / timed(lambda step=step: list(itertools.islice(step, 1)))
        figures[f"trained tokens, {name}"] = rate
        share = rate * trained.flops_per_token(trained.max_seq_len) / operations
        figures[f"share of the operations (MFU), {name}"] = share
        del model, step

    ours = _random(decoded, device, torch.bfloat16).eval()
    ids = torch.randint(3, decoded.vocab_size, (1, PROMPT), device=device)
    bound = moved / sum(weight.nbytes for weight in ours.parameters())  # each read for each token
    ask = partial(generate, ours, ids.tolist(), max_new_tokens=NEW, temperature=0.0)
    sides = {"ours": ask, "transformers": partial(theirs, hugging_face_twin(ours), ids, NEW)}
    for name, work in sides.items():
        figures[f"decoded tokens, batch 1, {name}"] = rate = NEW / timed(work)
        figures[f"share of the bytes, batch 1, {name}"] = rate / bound
    return figures


def _random(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Return weights of the usual size, drawn where they are needed."""
    with device:
        model = Transformer(config).to(dtype)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.02)
    return model


def _logits(model: Any, ids: Tensor) -> Tensor:
    return getattr(found := model(ids), "logits", found)


def _median(work: Callable[[], object], *, device: torch.device) -> float:
    """Return the median seconds of a work, after two turns that compile and warm up."""
    return statistics.median([seconds(work, device) for _ in range(GPU_PAIRS + 2)][2:])
