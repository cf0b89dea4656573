"""Properties of the chat format on arbitrary text, with a real SentencePiece model."""

import io
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2_lib.text.dialog import (
    TAGS,
    check_dialog,
    encode_example,
    encode_prompt,
    render,
    sanitised,
)
from llama2_lib.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer

PROFILE = settings(deadline=None, max_examples=120)
SENTENCE = "the man who lives in Ambra is a baker and she likes plums what does he do 18 44 + 7 ="
WORDS = SENTENCE.split()


def chat_texts() -> list[str]:
    source = random.Random(6)

    def line() -> str:
        return " ".join(source.choice(WORDS) for _ in range(6))

    return [f"[INST] {line()} [/INST] Yes {line()} " for _ in range(400)]


@pytest.fixture(scope="module")
def tok(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return load_tokenizer(train_tokenizer(chat_texts(), TokenizerConfig(vocab_size=360), path))


# Any Unicode, words of the vocabulary, and what looks like control tokens or pieces.
nasty = st.sampled_from(
    ["<s>", "</s>", "<unk>", "<0x41>", "]", "[", "<<", " ", "\u2581", "\n", "\0"]
)
fragment = st.one_of(st.text(max_size=6), st.sampled_from(WORDS), nasty)
raw = st.builds(" ".join, st.lists(fragment, max_size=6)) | st.builds(
    "".join, st.lists(fragment, max_size=6)
)
untagged = raw.filter(lambda text: not any(tag in text for tag in TAGS))
content = untagged.filter(lambda text: bool(text.strip()))
turns = st.lists(st.tuples(content, content), min_size=1, max_size=20)


def dialog_of(pairs, system):
    dialog = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in pairs:
        dialog += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return dialog


dialogs = st.builds(dialog_of, turns, st.none() | untagged)


@PROFILE
@given(dialogs)
def test_a_prompts_ids_begin_the_ids_of_prompt_and_answer(tok, dialog):
    prompt = encode_prompt(dialog[:-1], tok)
    ids, mask = encode_example(dialog, tok, loss_on="last")
    # The dummy prefix of SentencePiece stands for the space before the answer.
    answer = tok.encode(dialog[-1]["content"].strip() + " ", eos=True)
    assert prompt + answer == ids
    assert mask == [False] * len(prompt) + [True] * len(answer)


@PROFILE
@given(dialogs)
def test_control_ids_frame_turns_and_never_come_from_text(tok, dialog):
    ids, mask = encode_example(dialog, tok)
    n_turns = sum(message["role"] == "user" for message in dialog)
    assert ids.count(tok.bos_id) == ids.count(tok.eos_id) == n_turns
    assert tok.unk_id not in ids
    prompt = encode_prompt(dialog[:-1], tok)
    assert prompt.count(tok.bos_id) == prompt.count(tok.eos_id) + 1 == n_turns
    answers = [message["content"] for message in dialog if message["role"] == "assistant"]
    assert sum(mask) == sum(len(tok.encode(text.strip() + " ")) + 1 for text in answers)


@PROFILE
@given(dialogs)
def test_the_system_text_is_folded_once(dialog):
    text = render(dialog)
    assert text.count("<<SYS>>") == text.count("<</SYS>>") == int(dialog[0]["role"] == "system")
    assert text.count("[INST]") == text.count("[/INST]")


@PROFILE
@given(dialogs, st.data())
def test_a_tag_anywhere_in_any_content_is_refused(dialog, data):
    index = data.draw(st.integers(0, len(dialog) - 1))
    tag = data.draw(st.sampled_from(TAGS))
    text = dialog[index]["content"]
    cut = data.draw(st.integers(0, len(text)))
    dialog[index] = {**dialog[index], "content": text[:cut] + tag + text[cut:]}
    with pytest.raises(ValueError, match=f"message {index} "):
        check_dialog(dialog)


tagged = st.lists(st.sampled_from([*TAGS, "[IN", "ST]", "[/", "<<", "SYS>>", "\ud800", "a "]))


@PROFILE
@given(tagged.map("".join) | raw)
def test_a_cleaned_text_can_be_an_answer_and_keeps_what_is_no_tag(text):
    clean = sanitised(text)
    assert sanitised(clean) == clean
    letters = iter(text.replace("\ud800", "\ufffd"))
    assert all(letter in letters for letter in clean), "letters are taken out, none is moved"
    answer = {"role": "assistant", "content": f"x{clean}"}
    check_dialog([{"role": "user", "content": "Hi"}, answer])
    if not any(tag in text for tag in TAGS):
        assert clean == text.replace("\ud800", "\ufffd")


def test_the_prefix_property_fails_where_pieces_may_cross_a_space():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["[INST] Hi [/INST] Yes "] * 50 + chat_texts()),
        model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        num_threads=1, split_by_unicode_script=False, split_by_whitespace=False,
    )  # fmt: skip
    merging = Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))
    dialog = dialog_of([("Hi", "Yes")], None)
    with pytest.raises(ValueError, match="must be a prefix"):
        encode_example(dialog, merging)
