"""Shared by the tests of the floors: a small model in which every axis has a size of its own,
and the finished artifacts of the recipe `toy`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Before the library is imported. Every call on the floors that have tensors is checked: shapes,
# types, and that an axis has one size. In the world, which has none, it doubles the time.
install_import_hook(
    [f"llama2_lib.{floor}" for floor in (
        "model", "objectives", "training", "stages", "pipeline", "evaluation", "claims",
    )],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)  # fmt: skip

from llama2_lib.model.config import ModelConfig  # noqa: E402
from llama2_lib.model.transformer import Transformer  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no worker ends long after the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def config() -> ModelConfig:
    """Vocabulary 53, width 48, 3 layers, 6 query heads of 8 on 2 key/value heads, FFN 140."""
    return ModelConfig(
        vocab_size=53, dim=48, n_layers=3, n_heads=6, n_kv_heads=2, multiple_of=20, max_seq_len=37
    )


@pytest.fixture
def random_model(config) -> Callable[..., Transformer]:
    """Build a model with weights of order 1, gains included, so that every part matters."""

    def build(seed: int = 0, dtype=torch.float64, config: ModelConfig = config) -> Transformer:
        model = Transformer(config).to(torch.float64)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=source, dtype=torch.float64)
                if weight.dim() == 1:
                    weight.copy_(1 + 0.3 * noise)
                else:
                    weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)
        return model.to(dtype).eval()

    return build


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run on one thread, as two runs must whose bits are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory) -> Path:
    """Finished artifacts of the recipe `toy`, made once for all workers, as the lock of an artifact
    lets only one of them train it; copy them before you damage them."""
    from llama2_lib import pipeline
    from llama2_lib.recipes import toy

    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "toy"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for end in ("red_team_v4", "dates", "tools"):
        pipeline.artifact(end, toy(), device="cpu", root=root, bar=False)
    torch.set_num_threads(threads)
    return root
