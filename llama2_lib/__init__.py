"""Llama 2, built and measured: the library behind the notebooks.

The five names that other programs need are here; everything else has its own room. They are
imported on first use, so that `import llama2_lib` alone does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama2_lib.model.generate import generate
    from llama2_lib.model.weights import load_model
    from llama2_lib.text.dialog import encode_example, encode_prompt
    from llama2_lib.text.tokenizer import load_tokenizer

__all__ = ["encode_example", "encode_prompt", "generate", "load_model", "load_tokenizer"]

_HOMES = {
    "encode_example": "text.dialog",
    "encode_prompt": "text.dialog",
    "generate": "model.generate",
    "load_model": "model.weights",
    "load_tokenizer": "text.tokenizer",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home."""
    if name in _HOMES:
        return getattr(import_module(f"llama2_lib.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'llama2_lib' has no attribute {name!r}")
