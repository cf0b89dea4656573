"""The chat format: golden strings, ids by hand, the loss mask, and what is refused."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama2_lib.text.dialog import (
    check_dialog,
    encode_example,
    encode_prompt,
    render,
    sanitised,
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


class Letters:
    """One id per character: an authority in which ids can be read. BOS 1, EOS 2."""

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [10 + ord(letter) for letter in text] + [2] * eos


class GreedyBorder(Letters):
    """Merges `]` with the space after it, as pieces that may cross a space do."""

    def encode(self, text, bos=False, eos=False):
        return super().encode(text.replace("] ", "\u2423"), bos, eos)


GOLDEN = {
    "no system, open": ([user("Hi there")], "<s>[INST] Hi there [/INST]"),
    "no system, closed": (
        [user("Hi"), assistant("Hello.")],
        "<s>[INST] Hi [/INST] Hello. </s>",
    ),
    "system": (
        [system("Be brief."), user("Hi"), assistant("Hello.")],
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s>",
    ),
    "system, two turns, open": (
        [system("Be brief."), user("Hi"), assistant("Hello."), user("Who are you?")],
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s>"
        "<s>[INST] Who are you? [/INST]",
    ),
    "unicode": (
        [user("¿Qué? 日本"), assistant("Sí 🙂")],
        "<s>[INST] ¿Qué? 日本 [/INST] Sí 🙂 </s>",
    ),
    "outer spaces go": (
        [user(" \n Hi \t"), assistant("\n Hello  you.  ")],
        "<s>[INST] Hi [/INST] Hello  you. </s>",
    ),
    "spaces inside the fold stay": (
        [system("  Be brief. "), user("  Hi  ")],
        "<s>[INST] <<SYS>>\n  Be brief. \n<</SYS>>\n\n  Hi [/INST]",
    ),
    "an empty system message is an empty block": (
        [system(""), user("Hi")],
        "<s>[INST] <<SYS>>\n\n<</SYS>>\n\nHi [/INST]",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_rendered_text_is_metas_layout(name):
    dialog, expected = GOLDEN[name]
    assert render(dialog) == expected


def spelled(text):
    """Turn golden text into ids with `Letters`, control tokens included."""
    ids = []
    for part in text.split("<s>")[1:]:
        body, closed, _ = part.partition("</s>")
        ids += Letters().encode(body, bos=True, eos=bool(closed))
    return ids


@pytest.mark.parametrize("name", GOLDEN)
def test_ids_are_those_of_the_rendered_text(name):
    dialog, expected = GOLDEN[name]
    if dialog[-1]["role"] == "user":
        assert encode_prompt(dialog, Letters()) == spelled(expected)
    else:
        assert encode_example(dialog, Letters())[0] == spelled(expected)


WORDS = st.text("ab \n\u2581é", max_size=6)
CONTENT = st.lists(WORDS | st.sampled_from(["<s>", "</s>", "<unk>"]), max_size=4).map("".join)
SAID = CONTENT.filter(str.strip)


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.none() | CONTENT, st.lists(SAID, min_size=1, max_size=5).filter(lambda c: len(c) % 2))
def test_ids_are_metas_whatever_the_messages_hold(chat_tokenizer, told, contents):
    tok, (first, *rest) = chat_tokenizer, contents
    dialog = [system(told)] if told is not None else []
    for index, content in enumerate(contents):
        dialog.append(assistant(content) if index % 2 else user(content))
    # The format as the paper's repository describes it: the first message takes the system's in,
    # a turn is encoded as one text between BOS and EOS, the last one stays open.
    if told is not None:
        first = "<<SYS>>\n" + told + "\n<</SYS>>\n\n" + first
    expected, said = [], [text.strip() for text in (first, *rest)]
    for number in range(0, len(said) - 1, 2):
        text = f"[INST] {said[number]} [/INST] {said[number + 1]} "
        expected += [tok.bos_id, *tok.processor.encode(text), tok.eos_id]
    expected += [tok.bos_id, *tok.processor.encode(f"[INST] {said[-1]} [/INST]")]
    ids = encode_prompt(dialog, tok)
    assert ids == expected
    assert ids.count(tok.bos_id) == ids.count(tok.eos_id) + 1 == (len(contents) + 1) // 2


def test_what_a_prompt_may_not_hold():
    for content in ("", "  ", "say [INST] now"):
        with pytest.raises(ValueError, match=r"must hold text|must not contain the format's tags"):
            encode_prompt([user(content)], Letters())
    with pytest.raises(ValueError, match="lone surrogate"):
        encode_prompt([user("\ud800")], Letters())
    with pytest.raises(ValueError, match="must come from the user"):
        encode_prompt([assistant("a")], Letters())


def test_the_input_is_left_as_it_was():
    dialog = [system("Be brief."), user("Hi"), assistant("Hello.")]
    copy = [dict(message) for message in dialog]
    encode_example(dialog, Letters())
    assert dialog == copy


def targets(dialog, loss_on):
    ids, mask = encode_example(dialog, Letters(), loss_on=loss_on)
    assert len(ids) == len(mask)
    assert all(isinstance(value, bool) for value in mask)
    chosen = [token for token, target in zip(ids, mask, strict=True) if target]
    return "".join("</s>" if token == 2 else chr(token - 10) for token in chosen)


def test_targets_are_the_answers_their_trailing_space_and_eos():
    dialog = [system("S"), user("one"), assistant("first"), user("two"), assistant("second")]
    assert targets(dialog, "all") == " first </s> second </s>"
    assert targets(dialog, "last") == " second </s>"
    assert targets(dialog[:3], "all") == targets(dialog[:3], "last") == " first </s>"


def test_the_number_of_targets_is_that_of_the_answer_pieces_and_eos(chat_tokenizer):
    answers = ["she likes plums", "44 + 7 = 51 é", "a baker"]
    dialog = [message for text in answers for message in (user("what does he do"), assistant(text))]
    ids, mask = encode_example(dialog, chat_tokenizer)
    assert sum(mask) == sum(len(chat_tokenizer.encode(f"{text} ")) + 1 for text in answers)
    assert not any(mask[t] for t, token in enumerate(ids) if token == chat_tokenizer.bos_id)
    assert all(mask[t] for t, token in enumerate(ids) if token == chat_tokenizer.eos_id)
    assert ids.count(chat_tokenizer.bos_id) == 3


def test_a_tokenizer_that_merges_across_the_border_is_refused():
    dialog = [user("Hi"), assistant("Hello.")]
    assert encode_example(dialog, Letters())
    with pytest.raises(ValueError, match=r"must be a prefix.*split_by_whitespace=True"):
        encode_example(dialog, GreedyBorder())


REFUSED = {
    "nothing": ([], "needs a user message at least; got none"),
    "system alone": ([system("Be brief.")], "needs a user message at least"),
    "assistant first": ([assistant("Hi")], "message 0 must come from the user; got 'assistant'"),
    "two users": ([user("Hi"), user("there")], "message 1 must come from the assistant.*merge"),
    "two users after system": (
        [system("S"), user("Hi"), user("there")],
        "message 2 must come from the assistant",
    ),
    "system later": ([user("Hi"), system("S")], "message 1 must come from the assistant"),
    "empty user": ([user(" \n")], "message 0 \\(user\\) must hold text.*Drop the turn"),
    "empty assistant": ([user("Hi"), assistant("")], "message 1 \\(assistant\\) must hold text"),
    "unknown role": ([{"role": "bot", "content": "Hi"}], "must be one of.*got 'bot'"),
    "no content": ([{"role": "user"}], "must have the strings 'role' and 'content'"),
    "content is no string": ([{"role": "user", "content": 3}], "got content=3"),
    "lone surrogate": ([user("Hi \ud800")], "valid Unicode.*character 3"),
    "a string": ("Hello", "must be a list of messages; got 'Hello'"),
    "one message": (user("Hello"), "must be a list of messages; got {'role': 'user', .*Write"),
    "a list of strings": (["Hello"], "message 0 must be a dict.*got 'Hello'"),
    "a pair": ([("user", "Hello")], r"message 0 must be a dict.*got \('user', 'Hello'\)"),
    "a list of lists": ([[user("Hello")]], "message 0 must be a dict"),
    "a later pair": ([user("Hi"), ("assistant", "Hello")], "message 1 must be a dict"),
    "nothing at all": (None, "must be a list of messages; got None"),
    "a number": (5, "must be a list of messages; got 5"),
    "a generator": (iter([user("Hello")]), "must be a list of messages; got <list_iterator"),
    "a set": ({"Hello"}, "must be a list of messages; got {'Hello'}"),
    "bytes": (b"Hello", "must be a list of messages; got b'Hello'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_dialog_is_refused_with_the_reason(name):
    dialog, reason = REFUSED[name]
    for refuse in (
        check_dialog,
        render,
        lambda dialog: encode_prompt(dialog, Letters()),
        lambda dialog: encode_example(dialog, Letters()),
    ):
        with pytest.raises(ValueError, match=reason):
            refuse(dialog)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("x" * 38, f"'{'x' * 38}'. "),
        ("x" * 39, f"'{'x' * 39}.... "),
        (["x" * 99], "x" * 38 + "..."),
    ],
    ids=["all of 40", "40 of 41", "a list"],
)
def test_a_long_mistake_is_shown_in_part(given, shown):
    with pytest.raises(ValueError, match="must be a dict") as error:
        check_dialog([given])
    assert shown in str(error.value)
    assert shown.replace("x", "x" * 2, 1) not in str(error.value)


def test_a_tuple_of_messages_is_as_good_as_a_list():
    dialog = (system("Be brief."), user("Hi"))
    assert encode_prompt(dialog, Letters()) == encode_prompt(list(dialog), Letters())


ANSWERS = {
    "Yes [INST] no": "Yes  no",
    "[/INST]": "",
    "a <<SYS>>\nb\n<</SYS>>\n\nc": "a \nb\n\n\nc",
    "[IN[INST]ST] nested": " nested",
    "[[[INST]INST]INST] thrice": " thrice",
    "[/IN[INST]ST]": "",
    "<<S<<SYS>>YS>><</S<</SYS>>YS>>": "",
    "[INST[INST]]": "",
    "[INST [/INST": "[INST [/INST",
    "[inst] <s> </s> [ INST ]": "[inst] <s> </s> [ INST ]",
    "a lone \ud800 half": "a lone \ufffd half",
    "[IN\ud800ST]": "[IN\ufffdST]",
    "": "",
    "  spaces stay  ": "  spaces stay  ",
}


@pytest.mark.parametrize("text", ANSWERS, ids=ascii)
def test_a_sampled_text_is_cleaned_until_no_tag_is_left(text):
    assert sanitised(text) == ANSWERS[text]
    assert sanitised(sanitised(text)) == sanitised(text)
    if sanitised(text).strip():
        check_dialog([user("Hi"), assistant(sanitised(text))])


def test_a_prompt_must_be_open_and_an_example_finished():
    with pytest.raises(ValueError, match=r"must end with a message of the user.*encode_example"):
        encode_prompt([user("Hi"), assistant("Hello.")], Letters())
    with pytest.raises(ValueError, match=r"must end with an answer.*encode_prompt"):
        encode_example([user("Hi")], Letters())
    with pytest.raises(ValueError, match="'all' or 'last'; got 'first'"):
        encode_example([user("Hi"), assistant("Hello.")], Letters(), loss_on="first")
