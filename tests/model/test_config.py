"""Shapes of the family against the paper and Meta's code, and every refusal."""

import dataclasses
import re

import pytest
import torch

from llama2_lib.model.config import FAMILY, LLAMA2_7B, LLAMA2_70B, ModelConfig
from llama2_lib.model.transformer import KVCache, Transformer

# Meta's released params.json and consolidated weights; 34B: Code Llama's.
PUBLISHED = {
    "7B": (4096, 32, 32, 32, 11_008, 6_738_415_616),
    "13B": (5120, 40, 40, 40, 13_824, 13_015_864_320),
    "34B": (8192, 48, 64, 8, 22_016, 33_743_970_304),
    "70B": (8192, 80, 64, 8, 28_672, 68_976_648_192),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_family_has_metas_sizes(size):
    c = FAMILY[size]
    found = (c.dim, c.n_layers, c.n_heads, c.n_kv_heads, c.hidden_dim, c.n_parameters)
    assert found == PUBLISHED[size]
    assert (c.vocab_size, c.max_seq_len, c.rope_theta, c.norm_eps, c.head_dim) == (
        32_000, 4096, 10_000.0, 1e-5, 128,
    )  # fmt: skip


def test_the_family_is_named_once_each():
    assert set(FAMILY) == set(PUBLISHED)
    assert (FAMILY["7B"], FAMILY["70B"]) == (LLAMA2_7B, LLAMA2_70B)


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "hidden"),
    [
        (48, 128, 1.0, 128),  # 8/3 of 48 is 128: already a multiple
        (48, 127, 1.0, 254),  # one more than a multiple goes to the next
        (48, 1, 1.0, 128),
        (50, 1, 1.0, 133),  # 133.33 is cut off, not rounded
        (48, 1, 1.3, 166),  # 166.4 likewise
        (50, 1, 1.3, 172),  # of 133, not of 133.33: 172.9, not 173.3
        (48, 20, 1.3, 180),
    ],
)
def test_the_feed_forward_width_follows_metas_rule(dim, multiple_of, multiplier, hidden):
    c = ModelConfig(dim=dim, n_heads=1, n_kv_heads=1, multiple_of=multiple_of,
                    ffn_dim_multiplier=multiplier)  # fmt: skip
    assert c.hidden_dim == hidden


def test_the_parameter_count_is_the_actual_one(config):
    changes = ({}, {"n_kv_heads": 6}, {"n_layers": 1}, {"multiple_of": 7})
    for each in (*FAMILY.values(), *(dataclasses.replace(config, **change) for change in changes)):
        with torch.device("meta"):
            model = Transformer(each)
        assert each.n_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", FAMILY)
def test_the_parameter_count_of_the_family_is_the_actual_one(size):
    with torch.device("meta"):
        model = Transformer(FAMILY[size])
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[size][-1]


def test_the_cache_size_is_that_of_a_cache(config):
    cache = KVCache(config, batch=5, max_len=11, dtype=torch.float64)
    assert 5 * config.kv_cache_bytes(11, bytes_per_number=8) == cache.n_bytes() == 5 * 11 * 768
    # 7B: 2 * 32 layers * 4096 numbers of 2 bytes; 70B holds 8 of 64 heads.
    assert (LLAMA2_7B.kv_cache_bytes(), LLAMA2_70B.kv_cache_bytes()) == (524_288, 327_680)


def test_the_operations_per_token_are_those_counted_by_hand(config):
    attention = 48 * 48 + 2 * 48 * 16 + 48 * 48
    weights = 3 * (attention + 3 * 48 * 140 + 2 * 48) + 48 + 48 * 53
    assert config.flops_per_token(7) == 6 * weights + 12 * 3 * 48 * 7
    assert config.flops_per_token(8) - config.flops_per_token(7) == 12 * 3 * 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: 0}, f"^{name} must be at least 1; got 0") for name in (
            "vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "max_seq_len",
        )),
        *(({name: bad}, f"^{name} must be positive and finite; got {bad}")
          for bad in (0.0, float("nan"), float("inf"))
          for name in ("ffn_dim_multiplier", "rope_theta", "norm_eps")),
        ({"dim": 50}, r"multiple of 2 \* n_heads.*dim=50, n_heads=6.*Nearest: dim=48"),
        ({"dim": 54}, r"multiple of 2 \* n_heads.*dim=54"),  # heads of 9: half a pair is left
        ({"dim": 55}, r"Nearest: dim=60"),
        ({"dim": 5}, r"Nearest: dim=12"),
        ({"n_kv_heads": 4}, "multiple of n_kv_heads.*got 6 and 4"),
        ({"n_kv_heads": 12}, "multiple of n_kv_heads.*got 6 and 12"),
    ],
)  # fmt: skip
def test_an_impossible_config_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize("bad", [320.0, True, "320", None, [3]])
@pytest.mark.parametrize("name", ["vocab_size", "n_kv_heads", "rope_theta"])
def test_a_number_of_another_kind_is_refused(config, unchecked, name, bad):
    """As a `config.json` may hold them; Python would compute with some."""
    if (name, bad) == ("rope_theta", 320.0):
        return
    kind = "positive and finite" if name == "rope_theta" else "a whole number"
    with pytest.raises(ValueError, match=re.escape(f"{name} must be {kind}; got {bad!r}.")):
        dataclasses.replace(config, **{name: bad})
