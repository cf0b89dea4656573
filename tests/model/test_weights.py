"""Folders of weights: what loads, and a message for each that does not."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama2_lib.model.generate import generate
from llama2_lib.model.weights import (
    build,
    from_hugging_face,
    load_model,
    save_model,
    to_hugging_face,
)

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
    loaded, _ = load_model(tmp_path, dtype=None)
    assert loaded.norm.weight.dtype == dtype
    same(loaded, model)
    assert load_model(tmp_path)[0].norm.weight.dtype == torch.float32


def test_weights_are_rounded_to_the_precision_asked_for(model, tmp_path):
    save_model(model, tmp_path, torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded, _ = load_model(tmp_path)
    same(loaded, model.half().float())


def test_a_hugging_face_folder_comes_back(foreign, model, config):
    loaded, found = load_model(foreign)
    assert dataclasses.replace(found, multiple_of=20, ffn_dim_multiplier=1.0) == config
    assert found.hidden_dim == config.hidden_dim == 140
    same(loaded, model)


def test_a_model_of_one_layer_comes_back(foreign, random_model, config):
    """The least that a size may be; found by a mutant that refused it."""
    thin = dataclasses.replace(config, n_layers=1)
    model = random_model(config=thin, dtype=torch.float32)
    weights = to_hugging_face(model.state_dict(), thin)
    save_file({k: v.contiguous() for k, v in weights.items()}, foreign / "model.safetensors")
    rewrite(foreign, num_hidden_layers=1)
    loaded, found = load_model(foreign)
    assert found.n_layers == 1
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


@pytest.mark.parametrize(("name", "files", "message"), [
    ("nowhere", [], "nowhere does not exist; of files a .bin of llama2.c and a .gguf can be read"),
    ("model.pt", None, "model.pt is a file; of files"),
    ("empty", [""], "It holds nothing"),
    ("meta", ["consolidated.00.pth"], r"holds consolidated\.00\.pth"),
])  # fmt: skip
def test_what_is_no_folder_of_weights_is_described(tmp_path, name, files, message):
    path = tmp_path / name
    if files is None:
        path.write_bytes(b"ak42")
    for file in files or ():
        path.mkdir(exist_ok=True)
        if file:
            (path / file).write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"must hold a config.json.*{message}"):
        load_model(path)


@pytest.mark.parametrize("missing", ["model", "model-2-of-2"])
def test_missing_weights_are_named(foreign, missing):
    if missing != "model":
        shard(foreign)
    (foreign / f"{missing}.safetensors").unlink()
    named = rf"{missing}\.safetensors must exist.*It holds config"
    with pytest.raises(FileNotFoundError, match=named):
        load_model(foreign)


def test_a_shard_that_the_index_forgets_is_missed(foreign):
    shard(foreign)
    index = foreign / "model.safetensors.index.json"
    held = json.loads(index.read_text())["weight_map"]
    kept = {name: file for name, file in held.items() if "1-of-2" in file}
    index.write_text(json.dumps({"weight_map": kept}))
    with pytest.raises(ValueError, match=r"must have shape .*the file has None"):
        load_model(foreign)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "must be JSON; it cannot be read"),
    ("[" * 100_000, "must be JSON; it cannot be read"),
    ("[]", "must map weights to files; it does not"),
    ("{}", "must map weights to files; it does not"),
    ('{"weight_map": 3}', "must map weights to files; it does not"),
    ('{"weight_map": {"a": 3}}', "must map weights to files; it does not"),
    ('{"weight_map": {"a": 3, "b": "x.safetensors"}}', "must map weights to files; it does not"),
    ('{"weight_map": {"a": "../x.safetensors"}}', "must name files beside it; it names '../x"),
    ('{"weight_map": {"a": "/etc/passwd"}}', "must name files beside it; it names '/etc"),
    ('{"weight_map": {"a": ".."}}', "must name files beside it; it names '..'"),
    ('{"weight_map": {"a": ""}}', "must name files beside it; it names ''"),
])  # fmt: skip
def test_a_damaged_index_is_refused(foreign, text, message):
    shard(foreign)
    (foreign.parent / "x.safetensors").write_bytes(
        (foreign / "model-1-of-2.safetensors").read_bytes()
    )
    (foreign / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"index\.json {message}"):
        load_model(foreign)


def test_a_weight_in_two_shards_is_refused(foreign):
    shard(foreign)
    first, second = (load_file(foreign / f"model-{n}-of-2.safetensors") for n in (1, 2))
    save_file(
        second | {"lm_head.weight": first["lm_head.weight"]}, foreign / "model-2-of-2.safetensors"
    )
    with pytest.raises(ValueError, match=r"model-2-of-2.*; lm_head.weight stands in a file before"):
        load_model(foreign)


@pytest.mark.parametrize("change", [
    *(lambda data, n=n: data[:n] for n in (0, 5, 9, 400, -1)),
    lambda data: data + b"rest",
    lambda data: b"version https://git-lfs.github.com/spec/v1\noid",
    lambda data: b"PK\x03\x04" + 400 * b"\x07",
    lambda data: data[:8] + b"[" + data[9:],
    lambda data: data.replace(b'"F32"', b'"F99"'),
])  # fmt: skip
def test_a_file_that_is_no_whole_one_is_refused(ours, change):
    path = ours / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors must be a whole.*Fetch or build"):
        load_model(ours)


@pytest.mark.parametrize(("names", "dtype", "message"), [
    ("", torch.int8, "it holds torch.int8. Quantised"),
    ("", torch.float8_e4m3fn, "it holds torch.float8_e4m3fn"),
    ("wq", torch.int8, "it holds torch.float32, torch.int8"),
    ("output", torch.bfloat16, "it holds torch.bfloat16, torch.float32"),
    ("norm", torch.bfloat16, "it holds torch.bfloat16, torch.float32"),
    ("norm", torch.float64, "it holds torch.float32, torch.float64"),
])  # fmt: skip
def test_precisions_that_nothing_computes_with_are_refused(ours, names, dtype, message):
    weights = load_file(ours / "model.safetensors")
    changed = {k: w.to(dtype) if names in k else w for k, w in weights.items()}
    save_file(changed, ours / "model.safetensors")
    with pytest.raises(ValueError, match=f"must hold matrices of one precision.*{message}"):
        load_model(ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_may_be_in_single_precision(ours, dtype):
    weights = load_file(ours / "model.safetensors")
    save_file({k: w if "norm" in k else w.to(dtype) for k, w in weights.items()},
              ours / "model.safetensors")  # fmt: skip
    model, _ = load_model(ours, dtype=None)
    assert {w.dtype for w in model.parameters()} == {dtype, torch.float32}
    assert len(generate(model, [[1, 2]], max_new_tokens=3)[0].ids) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_run_that_diverged_are_refused(ours, value):
    weights = load_file(ours / "model.safetensors")
    weights["layers.1.attention.wq.weight"][3, 5] = value
    save_file(weights, ours / "model.safetensors")
    with pytest.raises(ValueError, match=r"finite weights; layers\.1\.attention\.wq\.weight does"):
        load_model(ours)


def test_a_mark_at_the_head_of_a_config_is_passed_over(ours, model):
    text = (ours / "config.json").read_text()
    (ours / "config.json").write_text(text, encoding="utf-8-sig")
    same(load_model(ours)[0], model)


@pytest.mark.parametrize(("changes", "message"), [
    ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ({"n_kv_heads": 4}, "multiple of n_kv_heads"),
    ({"n_experts": 8}, "it has the unknown fields n_experts"),
    ({"vocab_size": 53.0}, "vocab_size must be a whole number; got 53.0"),
    ({"n_layers": True}, "n_layers must be a whole number; got True"),
    ({"norm_eps": "1e-5"}, "norm_eps must be positive and finite; got '1e-5'"),
    ({"hidden_size": 48}, "it has Hugging Face's fields without their model_type"),
    ({"model_type": "gpt2"}, "model_type must be llama; got 'gpt2'"),
])  # fmt: skip
def test_a_foreign_config_of_ours_is_refused(ours, unchecked, changes, message):
    rewrite(ours, **changes)
    with pytest.raises(ValueError, match=rf"config\.json must describe a Llama 2; .*{message}"):
        load_model(ours)


@pytest.mark.parametrize(("changes", "message"), [
    ({"tie_word_embeddings": True}, "separate input and output tables; these are tied"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled rotary positions"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "scaled rotary positions"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scaled rotary positions"),
    ({"rope_scaling": "linear"}, "rope_scaling must be null or an object; got 'linear'"),
    ({"rope_scaling": {"factor": 4}}, "scaled rotary positions.*rope_scaling asks for"),
    ({"rope_parameters": {"factor": 4, "rope_theta": 1e4}}, "scaled rotary positions"),
    ({"head_dim": 16}, "head_dim must be 48 / 6, as in Llama 2; got 16"),
    ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
    ({"vocab_size": 53.0}, "vocab_size must be a whole number from 1 on; got 53.0"),
    ({"hidden_size": "48"}, "hidden_size must be a whole number from 1 on; got '48'"),
    ({"hidden_size": 0}, "hidden_size must be a whole number from 1 on; got 0"),
    ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number from 1 on; got True"),
    ({"num_key_value_heads": 0}, "n_kv_heads must be at least 1; got 0"),
    ({"num_key_value_heads": 2.0}, "n_kv_heads must be a whole number; got 2.0"),
    ({"rope_theta": 0}, "rope_theta must be positive and finite; got 0"),
    ({"rope_theta": "1e4"}, "rope_theta must be positive and finite; got '1e4'"),
    ({"rms_norm_eps": float("nan")}, "norm_eps must be positive and finite; got nan"),
    ({"hidden_act": "gelu"}, "hidden_act must be silu; got 'gelu'"),
    ({"hidden_size": 50}, r"multiple of 2 \* n_heads"),
])  # fmt: skip
def test_a_foreign_config_of_hugging_faces_is_refused(foreign, unchecked, changes, message):
    rewrite(foreign, **changes)
    with pytest.raises(ValueError, match=rf"config\.json must describe a Llama 2; .*{message}"):
        load_model(foreign)


@pytest.mark.parametrize(("folder", "lacking"), [("ours", "norm_eps"), ("foreign", "rms_norm_eps")])
def test_a_config_that_lacks_fields_names_them(request, folder, lacking):
    folder = request.getfixturevalue(folder)
    document = json.loads((folder / "config.json").read_text())
    del document[lacking], document["vocab_size"]
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="must describe a Llama 2; it lacks") as caught:
        load_model(folder)
    assert lacking in str(caught.value)
    assert "vocab_size" in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("[48]", "must describe a Llama 2; it holds no fields"),
    ('{"dim": 48', "must be JSON; it cannot be read"),
])  # fmt: skip
def test_a_config_that_is_no_object_is_refused(ours, text, message):
    (ours / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        load_model(ours)


def test_what_is_llama_2s_may_be_spelled_out_or_left_out(foreign, model):
    rewrite(foreign, rope_scaling=None, rope_parameters={"rope_type": "default"}, head_dim=8)
    same(load_model(foreign)[0], model)
    short = {k: v for k, v in HF.items() if k not in ("tie_word_embeddings", "hidden_act")}
    (foreign / "config.json").write_text(json.dumps(short))
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


def test_saved_weights_have_the_rights_that_the_umask_grants(model, tmp_path):
    before = os.umask(0o022)
    try:
        save_model(model, tmp_path)
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode)[-3:] for path in tmp_path.iterdir()} == {
        "config.json": "644",
        "model.safetensors": "644",
    }
