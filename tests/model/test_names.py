"""Names and rows of Hugging Face's weights and of Meta's."""

import pytest
import torch

from llama2_lib.model.weights import build, from_hugging_face, to_hugging_face


@pytest.fixture
def model(random_model):
    return random_model(dtype=torch.float32)


def test_names_and_rotary_pairs_are_translated_both_ways(model, config):
    ours = model.state_dict()
    theirs = to_hugging_face(ours, config)
    assert "model.layers.2.self_attn.k_proj.weight" in theirs
    q = ours["layers.1.attention.wq.weight"]
    moved = theirs["model.layers.1.self_attn.q_proj.weight"]
    # Rows 0 1 2 3 ... of a head of 8 come from 0 2 4 6 1 3 5 7.
    torch.testing.assert_close(moved[8:16], q[[8, 10, 12, 14, 9, 11, 13, 15]], rtol=0, atol=0)
    torch.testing.assert_close(
        theirs["model.layers.1.self_attn.v_proj.weight"],
        ours["layers.1.attention.wv.weight"],
        rtol=0,
        atol=0,
    )
    back = from_hugging_face(theirs, config)
    assert back.keys() == ours.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(back[name], weight, rtol=0, atol=0)


def test_exactly_the_weights_asked_for_are_taken(model, config):
    weights = dict(model.state_dict())
    with pytest.raises(ValueError, match=r"weight extra must have shape None; .*\(2, 3\)"):
        build(config, weights | {"extra": torch.ones(2, 3)})
    del weights["norm.weight"]
    with pytest.raises(ValueError, match=r"weight norm.weight must have shape \(48,\); .*None"):
        build(config, weights)
