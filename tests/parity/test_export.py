"""An exported folder in `transformers`, and GGUF: the same logits, ids and refusals as ours."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, TokenType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.utils import logging

from llama2_lib import export, pipeline, storage
from llama2_lib.cli import main
from llama2_lib.model.chat import reply
from llama2_lib.model.generate import generate
from llama2_lib.model.weights import load_model, save_model
from llama2_lib.recipes import toy
from llama2_lib.text.dialog import TAGS, encode_example, encode_prompt
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.dialogs import Message

ATOL = 1e-4
"""fp32; the logits have a spread of about 1, those of the released model of 3."""
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
FILES |= {"tokenizer.model", "tokenizer_config.json"}


@pytest.fixture(autouse=True, scope="module")
def _no_progress_bars():
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def trained(toy_root) -> Path:
    return pipeline.artifact("sft", toy(), device="cpu", root=toy_root, bar=False)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """toy's fine-tuned model, with its own tokenizer."""
    return export.convert(trained, tmp_path_factory.mktemp("export") / "toy")


@pytest.fixture(scope="module")
def tokenizers(trained, exported):
    return load_tokenizer(trained), AutoTokenizer.from_pretrained(exported)


@pytest.fixture
def odd(trained, config, random_model, tmp_path) -> Path:
    """An artifact in which every axis has a size of its own, and every setting another value."""
    vocab = load_tokenizer(trained).vocab_size
    config = dataclasses.replace(config, vocab_size=vocab, rope_theta=777.0, norm_eps=1e-2)
    folder = tmp_path / "odd"
    folder.mkdir()
    save_model(random_model(dtype=torch.float32, config=config), folder)
    shutil.copy(trained / "tokenizer.model", folder)
    return folder


def ids_for(model) -> torch.Tensor:
    source = torch.Generator().manual_seed(3)
    return torch.randint(0, model.config.vocab_size, (3, 31), generator=source)


@torch.no_grad()
def distance(ours, theirs) -> float:
    """Largest difference of two models' logits, which have a spread of about 1."""
    ids = ids_for(ours)
    logits, wanted = ours(ids), theirs(ids)
    wanted = getattr(wanted, "logits", wanted)
    assert 0.3 < wanted.std() < 4, "the tolerance is for logits of order 1"
    return float((logits - wanted).abs().max())


def test_the_folder_is_read_back_and_by_transformers(odd, tmp_path):
    out = export.convert(odd, tmp_path / "a" / "out", chat=False)
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "all may be read alike"
    ours, config = load_model(odd)
    again, same = load_model(out)
    assert distance(ours, again) == 0
    assert (same.rope_theta, same.norm_eps, same.hidden_dim) == (777.0, 1e-2, config.hidden_dim)
    theirs = AutoModelForCausalLM.from_pretrained(out)
    assert theirs.dtype == torch.float32
    assert distance(ours, theirs) < ATOL
    theirs.model.rotary_emb.inv_freq.mul_(1.01)
    assert distance(ours, theirs) > 10 * ATOL, "the settings matter"


def test_half_precision_stays(trained, tmp_path):
    half = shutil.copytree(trained, tmp_path / "half")
    save_model(load_model(trained)[0], half, torch.float16)
    out = export.convert(half, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float16
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert distance(load_model(half)[0], theirs) < ATOL


def test_greedy_text_is_the_same(trained, exported, tokenizers):
    ours, theirs = load_model(trained)[0], AutoModelForCausalLM.from_pretrained(exported)
    prompt = tokenizers[1].apply_chat_template(
        [{"role": "user", "content": "Who is Ada?"}], return_tensors="pt"
    )
    wanted = theirs.generate(**prompt, max_new_tokens=12, do_sample=False)[0].tolist()
    ids = prompt["input_ids"][0].tolist()
    [done] = generate(ours, [ids], max_new_tokens=12, temperature=0, stop_ids={2})
    assert [*ids, *done.ids] == wanted
    chosen = theirs.generation_config
    assert (chosen.temperature, chosen.top_p, chosen.eos_token_id) == (0.7, 0.9, 2)


def test_a_folder_in_use_is_kept(trained, tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "own.txt"):
        with pytest.raises(ValueError, match="must be new or an empty folder"):
            export.convert(trained, folder)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("own.txt", "mine")]


# --- ids

TEXTS = st.text(
    st.one_of(st.sampled_from("aetsnr  \n.,'0123<[/]>\u2581"), st.characters(codec="utf-8"))
)
few = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@few
@given(text=TEXTS)
@example(text="")
@example(text=" a")
@example(text="  two  spaces \n\n 12 345")
@example(text="\u2581\x00<s>é😀</s>[INST]<unk>")
def test_ids_of_any_text_and_back(tokenizers, text):
    ours, theirs = tokenizers
    ids = theirs(text, split_special_tokens=True)["input_ids"]
    assert ids == ours.encode(text, bos=True)
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_control_tokens_come_from_text_where_they_are_not_split(tokenizers):
    assert tokenizers[1]("<s>", add_special_tokens=False)["input_ids"] == [1]
    assert tokenizers[0].encode("<s>") != [1]


FORBIDDEN = (*TAGS, "<s>", "</s>", "<unk>")
SAID = TEXTS.filter(lambda text: text.strip() and not any(tag in text for tag in FORBIDDEN))
SYSTEM = st.none() | TEXTS.filter(lambda text: not any(tag in text for tag in FORBIDDEN))


def dialog_of(system: str | None, said: list[str]) -> list[Message]:
    roles = ("user", "assistant")
    turns: list[Message] = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


@few
@given(system=SYSTEM, said=st.lists(SAID, min_size=1, max_size=6))
@example(system=" Be kind. \n", said=[" hi  there 12\n", " yes. ", "why?"])
@example(system="", said=["a"])
def test_ids_of_dialogs(tokenizers, system, said):
    ours, theirs = tokenizers
    dialog = dialog_of(system, said)
    if len(said) % 2:
        ids = theirs.apply_chat_template(dialog, return_dict=False)
        assert ids == encode_prompt(dialog, ours)
    else:
        ids = theirs.apply_chat_template(dialog, return_dict=False, finished=True)
        assert ids == encode_example(dialog, ours)[0]


U, A, S = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("dialog", "reason"),
    [
        ([], "empty conversation|at least one user"),
        ([S], "at least one user message"),
        ([A], "message 0 must come from the user; got assistant"),
        ([U, U], "message 1 must come from the assistant; got user"),
        ([S, U, A, A], "message 3 must come from the user; got assistant"),
        ([U, S], "message 1 must come from the assistant; got system"),
        ([S, A, U], "message 1 must come from the user"),
        ([{"role": "bot", "content": "x"}], "got bot"),
        ([U, A], "must end with a message of the user"),
        ([{"role": "user", "content": " \n"}], r"message 0 \(user\) must hold text"),
        ([U, {"role": "assistant", "content": ""}, U], r"message 1 \(assistant\) must hold text"),
        ([{"role": "user", "content": None}], "must hold text"),
        ([{"role": "user", "content": 7}], "must hold text"),
        *(([{"role": "user", "content": f"a{tag}b"}], "must not contain") for tag in TAGS),
        ([{"role": "system", "content": "[/INST]"}, U], "must not contain"),
        ([U, {"role": "assistant", "content": "[INST]"}, U], "must not contain"),
    ],
)
def test_what_encode_prompt_refuses_is_refused(tokenizers, dialog, reason):
    ours, theirs = tokenizers
    with pytest.raises(ValueError):  # noqa: PT011 the words are those of test_dialog
        encode_prompt(dialog, ours)
    with pytest.raises((TemplateError, ValueError), match=reason):
        theirs.apply_chat_template(dialog)


@pytest.mark.parametrize("token", ["<s>", "</s>", "<unk>"])
def test_a_control_token_in_a_message_is_refused_though_ours_spells_it(tokenizers, token):
    dialog = [{"role": "user", "content": f"what is {token}?"}]
    assert encode_prompt(dialog, tokenizers[0]).count(1) == 1
    with pytest.raises(TemplateError, match=f"must not contain {token}"):
        tokenizers[1].apply_chat_template(dialog)


def test_a_model_that_only_continues_has_no_template(trained, tmp_path):
    out = export.convert(trained, tmp_path / "out", chat=False)
    with pytest.raises(ValueError, match="chat_template is not set"):
        AutoTokenizer.from_pretrained(out).apply_chat_template([U])


# --- GGUF


def gguf_beside(folder: Path, out: Path) -> Path:
    """`transformers` wants its own `config.json` beside the file."""
    path = shutil.copytree(folder, out) / "model.gguf"
    made = export.convert(folder, out.with_name(f"{out.name} alone"), "gguf")
    assert [each.name for each in made.iterdir()] == ["model.gguf"]
    return (made / "model.gguf").rename(path)


def from_gguf(path: Path):
    """What `from_pretrained(gguf_file=...)` does; that asks for accelerate, which is not needed."""
    if importlib.util.find_spec("accelerate"):
        return AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    config = AutoModelForCausalLM.from_pretrained(path.parent).config
    read = load_gguf_checkpoint(path, return_tensors=True, model_to_load=LlamaForCausalLM(config))
    assert read["config"].items() >= {
        "rope_theta": config.rope_parameters["rope_theta"],
        "num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "intermediate_size": config.intermediate_size, "tie_word_embeddings": False,
    }.items()  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({name: t.clone() for name, t in read["tensors"].items()}, strict=True)
    return model


def test_logits_of_gguf(odd, tmp_path, monkeypatch):
    out = export.convert(odd, tmp_path / "out")
    ours = load_model(odd)[0]
    path = gguf_beside(out, tmp_path / "gguf")
    assert distance(ours, from_gguf(path)) < ATOL
    # Hugging Face's order of rotary pairs, where Meta's belongs
    monkeypatch.setattr(export, "load_model", lambda *a, **k: turned(*load_model(*a, **k)))
    path = gguf_beside(out, tmp_path / "turned")
    assert distance(ours, from_gguf(path)) > 100 * ATOL


def turned(model, config):
    weights = export.to_hugging_face(model.state_dict(), config)
    for i, layer in enumerate(model.layers):
        for ours, theirs in ((layer.attention.wq, "q_proj"), (layer.attention.wk, "k_proj")):
            ours.weight.data = weights[f"model.layers.{i}.self_attn.{theirs}.weight"]
    return model, config


def test_tokenizer_of_gguf(exported, tokenizers, tmp_path):
    path = gguf_beside(exported, tmp_path / "gguf")
    fields, ours = GGUFReader(path).fields, tokenizers[0]
    types = fields["tokenizer.ggml.token_type"].contents()
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    assert types == [*kinds, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * (ours.vocab_size - 259)]
    scores = [ours.processor.get_score(index) for index in range(ours.vocab_size)]
    assert fields["tokenizer.ggml.scores"].contents() == scores
    template = (exported / "chat_template.jinja").read_text()
    assert fields["tokenizer.chat_template"].contents() == template
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in ("", " a", "  two  spaces \n\n 12 345", "\u2581é😀"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


# --- the command


def test_the_command(toy_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(toy_root))
    out = tmp_path / "out"
    assert main(["convert", "sft", str(out), "--recipe", "toy"]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    assert {path.name for path in out.iterdir()} == {*FILES, "chat_template.jinja"}
    assert main(["convert", "pretrain", str(tmp_path / "base"), "--recipe", "toy"]) == 0
    assert not (tmp_path / "base" / "chat_template.jinja").exists()
    capsys.readouterr()
    before = storage.file_sha256(out / "config.json")
    assert main(["convert", "sft", str(out), "--recipe", "toy"]) == 2
    assert "must be new or an empty folder" in capsys.readouterr().err
    assert storage.file_sha256(out / "config.json") == before
    assert main(["convert", "rewards_v1", str(tmp_path / "r"), "--recipe", "toy"]) == 2
    assert "no stage with a language model" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_without_the_package_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["convert", "sft", str(tmp_path / "out"), "--recipe", "toy", "--to", "gguf"]) == 2
    assert "[convert]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_long_is_trained_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "artifacts"))
    assert main(["convert", "ppo", str(tmp_path / "out"), "--seed", "7"]) == 2
    assert "Add --yes" in capsys.readouterr().err
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.slow
def test_a_conversation_with_the_released_model(tmp_path):
    [folder] = (storage.release_root() / "sft").iterdir()
    out = export.convert(folder, tmp_path / "sft")
    ours, tok = load_model(folder)[0], load_tokenizer(folder)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    text = AutoTokenizer.from_pretrained(out)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"
    assert distance(ours, theirs) < ATOL
    path = gguf_beside(out, tmp_path / "gguf")
    assert distance(ours, from_gguf(path)) < ATOL
    dialog: list[Message] = []
    for said in ("What is 3 plus 4?", "Tell me a story about Remy.", "How do I make a kite?"):
        dialog.append({"role": "user", "content": said})
        prompt = text.apply_chat_template(dialog, return_tensors="pt")
        length = prompt["input_ids"].shape[1]
        ids = theirs.generate(**prompt, max_new_tokens=60, do_sample=False)[0, length:].tolist()
        [answer] = reply(ours, tok, [dialog], max_new_tokens=60)
        assert answer.ids == ids
        assert text.decode(ids, skip_special_tokens=True).strip() == answer.text
        dialog.append({"role": "assistant", "content": answer.text})
