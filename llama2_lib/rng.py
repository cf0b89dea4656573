"""Random numbers by name: every stream comes from a seed and a path of names, never a global."""

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_from(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a seed and a path of names.

    The same arguments give the same number in every process and on every machine; Python's
    own `hash` would not, because it is salted.
    """
    path = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def random_source(seed: int, *names: str | int) -> random.Random:
    """Return Python's generator for a named stream, for the code that makes data."""
    return random.Random(seed_from(seed, *names))


def generator(seed: int, *names: str | int, device: str = "cpu") -> "torch.Generator":
    """Return PyTorch's generator for a named stream, for initialisation and sampling."""
    import torch  # here, because the world must not need it

    return torch.Generator(device=device).manual_seed(seed_from(seed, *names))
