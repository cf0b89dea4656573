"""Folders of weights: what loads, and a message for each that does not."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama2_lib.model.weights import load_model, save_model, to_hugging_face

HF = {
    "model_type": "llama", "vocab_size": 53, "hidden_size": 48, "intermediate_size": 140,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 37, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "hidden_act": "silu",
}  # fmt: skip
IDS = torch.arange(1, 24, 2)[None]


@pytest.fixture
def model(random_model):
    return random_model(dtype=torch.float32)


@pytest.fixture
def ours(model, tmp_path):
    save_model(model, tmp_path)
    return tmp_path


@pytest.fixture
def foreign(model, config, tmp_path):
    """A Hugging Face folder."""
    weights = to_hugging_face(model.state_dict(), config)
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(HF))
    return tmp_path


def rewrite(folder, **changes):
    document = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(document))


def shard(folder):
    """Cut the weights into two files and an index, as large models come."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-1-of-2.safetensors": names[:7], "model-2-of-2.safetensors": names[7:]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def same(loaded, model):
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS), model(IDS), rtol=0, atol=0)


def test_a_saved_model_comes_back(ours, model, config):
    loaded, found = load_model(ours)
    assert found == config
    assert not loaded.training
    same(loaded, model)
    same(load_model(str(ours))[0], model)


def test_a_loaded_model_is_no_view_of_another(ours, model):
    loaded, _ = load_model(ours)
    loaded.norm.weight.data.add_(1)
    with torch.no_grad():
        assert (loaded(IDS) - model(IDS)).abs().max() > 0.1
    same(load_model(ours)[0], model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_of_the_file_is_kept(random_model, tmp_path, dtype):
    model = random_model(dtype=dtype)
    save_model(model, tmp_path)
    loaded, _ = load_model(tmp_path)
    assert loaded.norm.weight.dtype == dtype
    same(loaded, model)


def test_a_hugging_face_folder_comes_back(foreign, model, config):
    loaded, found = load_model(foreign)
    assert dataclasses.replace(found, multiple_of=20, ffn_dim_multiplier=1.0) == config
    assert found.hidden_dim == config.hidden_dim == 140
    same(loaded, model)


def test_a_folder_in_shards_comes_back(foreign, model):
    shard(foreign)
    same(load_model(foreign)[0], model)


def test_a_config_without_grouped_heads_means_one_each(foreign, random_model, config):
    full = dataclasses.replace(config, n_kv_heads=6)
    model = random_model(config=full, dtype=torch.float32)
    save_file(
        {k: v.contiguous() for k, v in to_hugging_face(model.state_dict(), full).items()},
        foreign / "model.safetensors",
    )
    document = {k: v for k, v in HF.items() if k != "num_key_value_heads"}
    (foreign / "config.json").write_text(json.dumps(document))
    loaded, found = load_model(foreign)
    assert found.n_kv_heads == 6
    same(loaded, model)


@pytest.mark.parametrize("hidden", [64, 101, 127, 128, 129, 172, 344])
def test_any_stored_feed_forward_width_is_met(foreign, random_model, config, hidden):
    wide = dataclasses.replace(
        config, multiple_of=hidden, ffn_dim_multiplier=min(1.0, hidden / 128)
    )
    model = random_model(config=wide, dtype=torch.float32)
    weights = to_hugging_face(model.state_dict(), wide)
    save_file({k: v.contiguous() for k, v in weights.items()}, foreign / "model.safetensors")
    rewrite(foreign, intermediate_size=hidden)
    loaded, found = load_model(foreign)
    assert found.hidden_dim == hidden
    same(loaded, model)


@pytest.mark.parametrize(
    "stored",
    [
        {"rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
)
def test_the_base_of_the_rotation_is_read(foreign, model, stored):
    rewrite(foreign, **stored)
    loaded, found = load_model(foreign)
    assert found.rope_theta == 500.0
    with torch.no_grad():
        assert (loaded(IDS) - model(IDS)).abs().max() > 1e-2


def test_constants_of_old_exports_are_passed_over(foreign, model):
    weights = load_file(foreign / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, foreign / "model.safetensors")
    same(load_model(foreign)[0], model)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere must hold a config.json.*no such folder"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(("files", "message"), [
    ([], "It holds nothing"),
    (["notes.txt", "a.bin"], r"It holds a\.bin, notes\.txt"),
    (["params.json"], "Meta's original layout; convert it"),
    (["consolidated.00.pth", "tokenizer.model"], "Meta's original layout; convert it"),
])  # fmt: skip
def test_a_folder_without_a_config_is_described(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"must hold a config.json.*{message}"):
        load_model(tmp_path)


def test_missing_weights_are_named(ours):
    (ours / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors must exist.*config\.json"):
        load_model(ours)


def test_a_missing_shard_is_named(foreign):
    shard(foreign)
    (foreign / "model-2-of-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-2-of-2\.safetensors must exist"):
        load_model(foreign)


def test_a_shard_that_the_index_forgets_is_missed(foreign):
    shard(foreign)
    index = foreign / "model.safetensors.index.json"
    held = json.loads(index.read_text())["weight_map"]
    kept = {name: file for name, file in held.items() if "1-of-2" in file}
    index.write_text(json.dumps({"weight_map": kept}))
    with pytest.raises(ValueError, match=r"must have shape .*the file has None"):
        load_model(foreign)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(foreign, text):
    shard(foreign)
    (foreign / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json must map weights to files"):
        load_model(foreign)


@pytest.mark.parametrize("kept", [0, 5, 400, -1])
def test_truncated_weights_are_refused(ours, kept):
    path = ours / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors must be a whole.*cut off: fetch"):
        load_model(ours)


def test_a_config_that_is_no_json_is_refused(ours):
    (ours / "config.json").write_text('{"dim": 48')
    with pytest.raises(ValueError, match=r"config\.json must be JSON; it cannot be read"):
        load_model(ours)


@pytest.mark.parametrize(("changes", "message"), [
    ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ({"n_kv_heads": 4}, "multiple of n_kv_heads"),
    ({"n_experts": 8}, "n_experts"),
    ({"model_type": "gpt2"}, "model_type must be llama; got 'gpt2'"),
])  # fmt: skip
def test_a_foreign_config_of_ours_is_refused(ours, changes, message):
    rewrite(ours, **changes)
    with pytest.raises(ValueError, match=rf"config\.json must describe a Llama 2; .*{message}"):
        load_model(ours)


@pytest.mark.parametrize(("changes", "message"), [
    ({"tie_word_embeddings": True}, "separate input and output tables; these are tied"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled rotary positions"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "scaled rotary positions"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scaled rotary positions"),
    ({"hidden_act": "gelu"}, "hidden_act must be silu; got 'gelu'"),
    ({"hidden_size": 50}, r"multiple of 2 \* n_heads"),
])  # fmt: skip
def test_a_foreign_config_of_hugging_faces_is_refused(foreign, changes, message):
    rewrite(foreign, **changes)
    with pytest.raises(ValueError, match=rf"config\.json must describe a Llama 2; .*{message}"):
        load_model(foreign)


def test_a_config_that_lacks_a_field_names_it(foreign):
    document = {k: v for k, v in HF.items() if k != "rms_norm_eps"}
    (foreign / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="must describe a Llama 2; 'rms_norm_eps'"):
        load_model(foreign)


def test_a_config_that_is_a_list_is_refused(ours):
    (ours / "config.json").write_text("[48]")
    with pytest.raises(ValueError, match="must describe a Llama 2"):
        load_model(ours)


def test_an_unscaled_rotation_may_be_spelled_out(foreign, model):
    rewrite(foreign, rope_scaling=None, rope_parameters={"rope_type": "default"})
    same(load_model(foreign)[0], model)


@pytest.mark.parametrize(("folder", "field"), [("ours", "vocab_size"), ("foreign", "vocab_size")])
def test_a_vocabulary_that_does_not_fit_is_refused(request, folder, field):
    folder = request.getfixturevalue(folder)
    rewrite(folder, **{field: 54})
    message = r"output.weight must have shape \(54, 48\); the file has \(53, 48\).*belong together"
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize("changes", [
    {"hidden_size": 60}, {"num_attention_heads": 12}, {"num_hidden_layers": 4},
    {"num_hidden_layers": 2}, {"hidden_size": 96, "intermediate_size": 200},
    {"hidden_size": 84},
])  # fmt: skip
def test_weights_of_another_shape_are_refused(foreign, changes):
    rewrite(foreign, **changes)
    with pytest.raises(ValueError, match=r"must (have shape|hold heads) .*belong together"):
        load_model(foreign)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.experts.weight", "extra.weight"],
)
def test_a_weight_that_is_not_llamas_is_refused(foreign, name):
    weights = load_file(foreign / "model.safetensors")
    save_file(weights | {name: torch.ones(48)}, foreign / "model.safetensors")
    with pytest.raises(ValueError, match="is not a weight of a Llama 2 without biases"):
        load_model(foreign)
