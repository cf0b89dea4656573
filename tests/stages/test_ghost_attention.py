"""Ghost Attention's builder: what the teacher reads, what the student reads, what is learned."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2_lib.objectives.language import masked_loss
from llama2_lib.stages.ghost_attention import (
    Ghost,
    best_samples,
    ghost_example,
    ghost_examples,
    last_turns,
    on_every_turn,
    on_first_turn_only,
)
from llama2_lib.text.dialog import encode_example, encode_prompt, render
from llama2_lib.world.instructions import Instruction, worded

BOS, EOS = 1, 2


class Letters:
    """A tokenizer of single letters, so that every border can be counted by hand."""

    def encode(self, text, bos=False, eos=False):
        return [BOS] * bos + [ord(letter) for letter in text] + [EOS] * eos


TOK = Letters()
WORDS = "Figure: Mara Hobby: chess"


def asked(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def on_first_turn(dialog, instruction):
    """How a model is asked: the instruction before the user's first message."""
    first = {"role": "user", "content": f"{instruction} {dialog[0]['content']}"}
    return [first, *dialog[1:]]


def plain(n_turns, open_end=True):
    texts = [f"{kind} {n}" for n in range(n_turns) for kind in ("question", "answer")]
    return asked(*texts[: 2 * n_turns - open_end])


def student(dialog, instruction=WORDS):
    return on_first_turn_only(on_every_turn(dialog, instruction), instruction)


def count(ids, text):
    """How often the letters of a text stand in ids."""
    wanted = TOK.encode(text)
    return sum(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))


@pytest.mark.parametrize("n_turns", range(1, 21))
def test_the_teacher_has_the_instruction_once_a_turn_and_the_student_once(n_turns):
    dialog = plain(n_turns)
    teacher = encode_prompt(on_every_turn(dialog, WORDS), TOK)
    pupil = encode_prompt(student(dialog), TOK)
    assert count(teacher, WORDS) == n_turns
    assert count(pupil, WORDS) == 1
    assert count(encode_prompt(dialog, TOK), WORDS) == 0
    # Invariant 68: nothing else differs from the plain dialog.
    changed = [{"role": "user", "content": f"{WORDS} question 0"}, *dialog[1:]]
    assert pupil == encode_prompt(changed, TOK) == encode_prompt(on_first_turn(dialog, WORDS), TOK)
    begin = len(TOK.encode("[INST] ", bos=True))
    without = pupil[:begin] + pupil[begin + len(WORDS) + 1 :]
    assert without == encode_prompt(dialog, TOK)


def test_the_first_turns_go_where_the_teacher_has_no_room():
    prompt = on_every_turn(plain(5), WORDS)
    whole = len(encode_prompt(prompt, TOK))
    assert last_turns(prompt, TOK, whole) == prompt
    assert last_turns(prompt, TOK, whole - 1) == prompt[2:]
    three = len(encode_prompt(prompt[4:], TOK))
    assert last_turns(prompt, TOK, three) == prompt[4:]
    alone = len(encode_prompt(prompt[-1:], TOK))
    assert last_turns(prompt, TOK, alone) == prompt[-1:]
    with pytest.raises(ValueError, match=f"a message must fit {alone - 1} tokens"):
        last_turns(prompt, TOK, alone - 1)


def test_dialogs_are_left_as_they_were():
    dialog = plain(3)
    copy = [dict(message) for message in dialog]
    made = on_every_turn(dialog, WORDS)
    again = [dict(message) for message in made]
    on_first_turn_only(made, WORDS)
    assert dialog == copy
    assert made == again
    assert made != copy


@pytest.mark.parametrize("n_turns", range(1, 21))
def test_only_the_last_answer_and_its_end_are_targets(n_turns):
    dialog, said = student(plain(n_turns)), "Mara: Oakford. Chess!"
    ids, mask = ghost_example(dialog, said, TOK)
    assert ids.count(BOS) == ids.count(EOS) == n_turns  # invariant 1
    targets = [token for token, target in zip(ids, mask, strict=True) if target]
    assert targets == [*TOK.encode(f" {said} "), EOS]  # invariants 7 and 69
    assert mask == [False] * (len(ids) - len(targets)) + [True] * len(targets)
    assert ids[: -len(targets)] == encode_prompt(dialog, TOK)  # invariant 2
    everything = ghost_example(dialog, said, TOK, "all")
    assert everything[0] == ids
    earlier = sum(len(f" answer {n} ") + 1 for n in range(n_turns - 1))
    assert sum(everything[1]) == len(targets) + earlier


def test_one_turn_is_plain_fine_tuning():
    dialog = student(plain(1))
    whole = [*dialog, {"role": "assistant", "content": "Oakford."}]
    for loss_on in ("last", "all"):
        assert ghost_example(dialog, "Oakford.", TOK, loss_on) == encode_example(whole, TOK)
    assert ghost_example(student(plain(2)), "Oakford.", TOK) != encode_example(
        [*student(plain(2)), whole[-1]], TOK
    )


def test_without_a_mask_all_but_the_first_token_are_targets():
    ids, mask = ghost_example(student(plain(2)), "Oakford.", TOK, "everything")
    assert ids == ghost_example(student(plain(2)), "Oakford.", TOK)[0]
    assert mask == [False] + [True] * (len(ids) - 1)


@pytest.mark.parametrize("loss_on", ["last", "all"])
def test_labels_of_earlier_answers_do_not_matter_to_the_loss(loss_on):
    dialog = student(plain(3))
    ids, mask = ghost_example(dialog, "Oakford.", TOK, loss_on)
    logits = torch.randn(1, len(ids) - 1, 128, generator=torch.Generator().manual_seed(0))
    end = len(encode_prompt(dialog, TOK))
    other = [7 if 0 < t < end else token for t, token in enumerate(ids)]
    losses = []
    for labels in (ids, other):
        term = masked_loss(logits.double(), torch.tensor([labels]), torch.tensor([mask]))
        losses.append(float(term.total / term.count))
    # Invariant 69; with the loss on all turns they do matter, or the test would be vacuous.
    assert (losses[0] == losses[1]) == (loss_on == "last")
    shifted = [*ids[:end], *[t + 1 for t in ids[end:]]]
    term = masked_loss(logits.double(), torch.tensor([shifted]), torch.tensor([mask]))
    assert float(term.total / term.count) != losses[0]


def test_a_system_message_stays_and_is_folded_once():
    dialog = [{"role": "system", "content": "Be kind."}, *plain(4)]
    text = render(student(dialog))
    assert text.count("Be kind.") == text.count("<<SYS>>") == text.count(WORDS) == 1
    assert text.startswith(f"<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{WORDS} question 0 [/INST]")
    assert render(on_every_turn(dialog, WORDS)).count(WORDS) == 4


contents = st.text(alphabet="abc D.?", min_size=1, max_size=12).filter(lambda text: text.strip())


@given(st.lists(contents, min_size=1, max_size=15), contents)
def test_dropping_undoes_adding(texts, instruction):
    dialog = asked(*texts[: len(texts) - 1 + len(texts) % 2])
    made = on_every_turn(dialog, instruction)
    assert on_first_turn_only(made, instruction) == on_first_turn(dialog, instruction)
    users = [m["content"] for m in made if m["role"] == "user"]
    assert len(users) == (len(dialog) + 1) // 2
    assert all(text.startswith(f"{instruction} ") for text in users)
    assert made[1::2] == dialog[1::2]


def test_wrong_input_is_refused():
    made = on_every_turn(plain(3), WORDS)
    with pytest.raises(ValueError, match="message 2 is 'question 1'"):
        on_first_turn_only([*made[:2], *plain(3)[2:]], WORDS)
    with pytest.raises(ValueError, match="must begin with 'Other'"):
        on_first_turn_only(made, "Other")
    with pytest.raises(ValueError, match="must hold text"):
        on_every_turn(plain(2), " ")
    with pytest.raises(ValueError, match="must not contain the format's tags"):
        encode_prompt(on_every_turn(plain(2), "Be [INST] rude"), TOK)  # invariant 5
    with pytest.raises(ValueError, match="loss_on must be"):
        ghost_example(plain(2), "a", TOK, "first")


FIGURE = Instruction(kind="figure", value="Mara", text="Figure: Mara")
CHESS = Instruction(kind="hobby", value="chess", text="Hobby: chess")


MARKS = {
    "Oakford.": 3.0, "Mara: Oakford.": 1.0, "Mara: Pineham.": 2.0,
    "Mara: a.": 5.0, "Chess!": 6.0, "Mara: a. Chess!": -4.0,
}  # fmt: skip


def sampled():
    """Two prompts: the best sample of each by reward, and the best that obeys, differ."""
    prompts = [
        (on_every_turn(plain(2), worded(given)), given) for given in ((FIGURE,), (FIGURE, CHESS))
    ]
    said = (list(MARKS)[:3], list(MARKS)[3:])
    prompts = [Ghost(*prompt) for prompt in prompts]
    rows = zip(prompts, said, strict=True)
    return prompts, [p.sample(text) for p, row in rows for text in row]


def rewards(entries):
    return np.array([MARKS[entry.answer] for entry in entries])


def test_the_best_sample_that_obeys_is_kept_and_only_rivals_are_scored():
    prompts, entries = sampled()
    heard = []

    def listening(entries):
        heard.append([entry.answer for entry in entries])
        return rewards(entries)

    kept = best_samples(prompts, entries, listening, only_obeying=True)
    assert [ghost.answer for ghost in kept] == ["Mara: Pineham.", "Mara: a. Chess!"]
    assert [ghost.instructions for ghost in kept] == [(FIGURE,), (FIGURE, CHESS)]
    assert [ghost.score for ghost in kept] == [2.0, None]
    free = best_samples(prompts, entries, listening, only_obeying=False)
    assert [ghost.answer for ghost in free] == ["Oakford.", "Chess!"]
    assert [ghost.score for ghost in free] == [3.0, 6.0]
    assert best_samples(prompts, entries[:1], listening, only_obeying=True) == []
    assert heard == [["Mara: Oakford.", "Mara: Pineham."], list(MARKS)]


def test_examples_have_the_instruction_once_and_the_sampled_answer():
    prompts, entries = sampled()
    made = ghost_examples(best_samples(prompts, entries, rewards, only_obeying=True), TOK)
    for (ids, mask), (_, told, *_), said in zip(
        made, prompts, ("Mara: Pineham.", "Mara: a. Chess!"), strict=True
    ):
        assert count(ids, worded(told) + " ") == 1
        assert [t for t, m in zip(ids, mask, strict=True) if m] == [*TOK.encode(f" {said} "), EOS]
