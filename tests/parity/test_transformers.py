"""The same random weights in `transformers` and here: equal logits and equal greedy tokens."""

import dataclasses
import json
import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.model.weights import build, from_hugging_face, load_model, to_hugging_face
from llama2_lib.objectives.language import next_token_loss

ATOL = 5e-5
"""fp32; the logits have a spread of about 1."""
IDS = torch.randint(0, 53, (3, 29), generator=torch.Generator().manual_seed(7))


@pytest.fixture(autouse=True, scope="module")
def _no_progress_bars():
    logging.disable_progress_bar()


@pytest.fixture(params=[2, 6, 1], ids=["grouped", "full", "multi-query"])
def theirs(request) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=53, hidden_size=48, intermediate_size=140, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=request.param, max_position_embeddings=37,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    source = torch.Generator().manual_seed(request.param)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=source)
            if weight.dim() == 1:
                weight.copy_(1 + 0.3 * noise)
            else:
                gain = 0.5 if name.startswith("lm_head") else 1.5
                weight.copy_(gain * noise / weight.shape[1] ** 0.5)
    return model


def save(model: LlamaForCausalLM, folder, **options) -> None:
    with warnings.catch_warnings():
        # transformers leaves its own config.json open while it writes.
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        model.save_pretrained(folder, **options)


@torch.no_grad()
def same_logits(ours: Transformer, theirs: LlamaForCausalLM) -> None:
    logits, wanted = ours(IDS), theirs(IDS).logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=ATOL)
    assert 0.3 < wanted.std() < 3, "the tolerance is for logits of order 1"


def test_a_folder_that_transformers_wrote(theirs, tmp_path):
    save(theirs, tmp_path)
    ours, config = load_model(tmp_path)
    assert (config.hidden_dim, config.n_kv_heads) == (140, theirs.config.num_key_value_heads)
    assert config.n_parameters == theirs.num_parameters()
    same_logits(ours, theirs)


def test_a_folder_that_transformers_wrote_in_shards(theirs, tmp_path):
    save(theirs, tmp_path, max_shard_size="60KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) > 3
    assert not (tmp_path / "model.safetensors").exists()
    same_logits(load_model(tmp_path)[0], theirs)


def test_weights_there_and_back(theirs, tmp_path, config):
    config = dataclasses.replace(config, n_kv_heads=theirs.config.num_key_value_heads)
    weights = from_hugging_face(theirs.state_dict(), config)
    same_logits(build(config, weights), theirs)
    back = {name: t.clone() for name, t in to_hugging_face(weights, config).items()}
    with torch.no_grad():
        wanted = theirs(IDS).logits
        for weight in theirs.parameters():
            weight.zero_()
        theirs.load_state_dict(back, strict=True)
        torch.testing.assert_close(theirs(IDS).logits, wanted, rtol=0, atol=0)


def test_without_turning_the_rotary_pairs_the_logits_differ(theirs, config):
    config = dataclasses.replace(config, n_kv_heads=theirs.config.num_key_value_heads)
    weights = from_hugging_face(theirs.state_dict(), config)
    name = "layers.1.attention.wk.weight"
    weights[name] = theirs.state_dict()["model.layers.1.self_attn.k_proj.weight"]
    with torch.no_grad():
        off = (build(config, weights)(IDS) - theirs(IDS).logits).abs().max()
    assert off > 100 * ATOL


def test_greedy_tokens_of_a_ragged_batch(theirs, tmp_path):
    save(theirs, tmp_path)
    ours, _ = load_model(tmp_path)
    prompts = [[1, 7, 9, 30, 2, 17], [1, 44], [1, 8, 9]]
    found = generate(ours, prompts, max_new_tokens=13, temperature=0)
    padded = torch.tensor([[0] * (6 - len(prompt)) + prompt for prompt in prompts])
    attention_mask = torch.tensor([[0] * (6 - len(p)) + [1] * len(p) for p in prompts])
    wanted = theirs.generate(
        padded, attention_mask=attention_mask, max_new_tokens=13, do_sample=False, pad_token_id=0
    )[:, 6:]
    assert [c.ids for c in found] == wanted.tolist()
    assert len({tuple(c.ids) for c in found}) == 3


def test_the_gradient_of_the_loss(theirs, tmp_path):
    save(theirs, tmp_path)
    ours, config = load_model(tmp_path)
    term = next_token_loss(ours(IDS[:, :-1]), IDS)
    (term.total / term.count).backward()
    loss = theirs(IDS, labels=IDS).loss
    loss.backward()
    torch.testing.assert_close(term.total / term.count, loss, rtol=1e-5, atol=0)
    wanted = from_hugging_face({n: p.grad for n, p in theirs.named_parameters()}, config)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-3, atol=1e-5)
    assert ours.layers[0].attention.wk.weight.grad.abs().max() > 1e-3
