"""What generation leaves behind must not stand in the way of training."""

import torch

from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer, initialise


def test_a_model_trains_after_it_has_generated():
    # a base of its own, so that generation makes the rotary table, not an earlier test
    config = ModelConfig(
        vocab_size=11, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, max_seq_len=13, rope_theta=77.0
    )
    model = initialise(Transformer(config), 0)
    generate(model, [[1, 2]], max_new_tokens=3, temperature=0.0)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.layers[0].attention.wq.weight.grad is not None
