"""Random Llamas made by `transformers`, through every layout and back: logits, weights, ids."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llama2_lib import export, storage
from llama2_lib.cli import main
from llama2_lib.model.weights import load_model
from llama2_lib.text.tokenizer import load_tokenizer

KINDS = {"mha": 4, "gqa": 2, "mqa": 1}
LAYOUTS = ("meta", "llama2c", "gguf", "ours", "hf")
HELD = {"llama2c": "model.bin", "gguf": "model.gguf"}
ATOL = 5e-5


@pytest.fixture(scope="module", params=KINDS)
def theirs(request, tmp_path_factory):
    """A folder that `transformers` wrote, in five shards, with a tokenizer beside."""
    [place] = (storage.release_root() / "tokenizer").iterdir()
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=load_tokenizer(place).vocab_size, hidden_size=64, intermediate_size=136,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=KINDS[request.param],
        max_position_embeddings=53, rms_norm_eps=1e-5, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp(request.param)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, max_shard_size="80KB")
    assert len([*folder.glob("*.safetensors")]) > 4
    shutil.copy(place / "tokenizer.model", folder)
    return folder, model


def logits(model):
    ids = torch.randint(0, 256, (3, 41), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        out = model(ids)
    return getattr(out, "logits", out)


def test_logits_and_weights_through_every_layout(theirs, tmp_path):
    source, model = theirs
    wanted = logits(model)
    assert 0.3 < wanted.std() < 10
    first = load_model(source)[0].state_dict()
    for step, to in enumerate((*LAYOUTS, *reversed(LAYOUTS))):
        shards = 2 if to == "hf" else 1
        folder = export.convert(source, tmp_path / f"{step}-{to}", to, shards=shards)
        source = folder / HELD[to] if to in HELD else folder
        ours, config = load_model(source)
        assert (logits(ours) - wanted).abs().max() < ATOL, to
        assert all(torch.equal(tensor, first[name]) for name, tensor in ours.state_dict().items())
        assert (config.hidden_dim, config.max_seq_len, config.norm_eps) == (136, 53, 1e-5)
        if to == "hf":
            again = AutoModelForCausalLM.from_pretrained(folder)
            assert (logits(again) - wanted).abs().max() == 0


def test_shards_of_meta_by_the_command(theirs, tmp_path, capsys):
    source, model = theirs
    n = model.config.num_key_value_heads
    out = tmp_path / "meta"
    command = ["convert", str(source), str(out), "--to", "meta", "--dtype", "bfloat16"]
    assert main([*command, "--shards", str(n)]) == 0
    assert len([*out.glob("consolidated.*.pth")]) == n
    ours = load_model(out, dtype=None)[0]
    rounded = load_model(source)[0].to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in ours.state_dict().items())
    assert (
        main(["convert", str(source), str(tmp_path / "no"), "--to", "meta", "--shards", "3"]) == 2
    )
    assert "must divide key/value heads" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


@pytest.fixture(scope="module")
def all_tokenizers(theirs, tmp_path_factory):
    source, root = theirs[0], tmp_path_factory.mktemp("tokenizers")
    places = [root / "c", root / "g" / "model.gguf"]
    export.convert(source, places[0], "llama2c")
    export.convert(source, places[1].parent, "gguf")
    return load_tokenizer(source), [load_tokenizer(place) for place in places]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30) | st.text("ab 12\n\u2581é", max_size=30))
def test_ids_are_the_same_from_every_file(all_tokenizers, text):
    ours, others = all_tokenizers
    for other in others:
        assert other.encode(text, bos=True, eos=True) == ours.encode(text, bos=True, eos=True)
        assert other.decode(other.encode(text)) == ours.decode(ours.encode(text))


def test_a_damaged_tokenizer_of_llama2c_is_named(theirs, tmp_path):
    folder = export.convert(theirs[0], tmp_path / "c", "llama2c")
    path = folder / "tokenizer.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"must be a tokenizer of llama2\.c; it is damaged"):
        load_tokenizer(folder / "model.bin")


def test_a_quantised_gguf_and_another_architecture_are_named(theirs, tmp_path):
    import gguf

    def written(architecture, **arrays):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
        for name, array in arrays.items():
            writer.add_tensor(name.replace("_w", ".weight"), array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "m.gguf"

    with pytest.raises(ValueError, match="its architecture is 'gemma'"):
        load_model(written("gemma"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="must be a whole GGUF file"):
        load_model(tmp_path / "m.gguf")


def test_a_foreign_rotation_is_named_and_not_ignored(theirs, tmp_path):
    folder = shutil.copytree(theirs[0], tmp_path / "scaled")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="scaled rotary positions are not Llama 2's"):
        load_model(folder)
