"""The decoder is the transformer, one token at a time."""

import pytest
import torch

from llama2_lib.model import generate as module
from llama2_lib.model.cache import KVCache
from llama2_lib.model.decode import Decoder
from llama2_lib.model.generate import generate


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_every_step_gives_the_logits_of_a_full_pass(random_model, dtype, atol):
    model = random_model(dtype=dtype)
    for parameter in model.parameters():  # gains other than 1, or folding them would show nothing
        if parameter.dim() == 1:
            parameter.data = 1 + 0.3 * torch.sin(torch.arange(len(parameter), dtype=dtype))
    ids = torch.tensor([[5, 9, 2, 11, 30, 7], [8, 8, 1, 0, 4, 21], [40, 3, 3, 17, 6, 13]])
    with torch.inference_mode():
        cache = KVCache(model.config, 3, 6, dtype=dtype)
        model(ids[:, :2], cache=cache)
        decoder = Decoder(model)
        for slot in range(2, 6):
            step = decoder.step(ids[:, slot], None, None, cache)
            full = model(ids[:, : slot + 1])[:, -1]
            torch.testing.assert_close(step, full, rtol=0, atol=atol)
        assert cache.length == 6
    assert (full[0] - full[1]).abs().max() > 1e-2, "all rows say the same: vacuous test"


def test_a_model_above_the_limit_decodes_without_a_copy_and_says_the_same(
    random_model, monkeypatch
):
    model = random_model()
    prompts = [[5, 9, 2], [8], [40, 3, 3, 17]]
    stacked = generate(model, prompts, max_new_tokens=7, temperature=0)
    monkeypatch.setattr(module, "STACK_LIMIT", 0)
    monkeypatch.setattr(module, "Decoder", None)  # calling it would fail
    plain = generate(model, prompts, max_new_tokens=7, temperature=0)
    assert [c.ids for c in plain] == [c.ids for c in stacked]
