"""Obedience by turn, of answerers that are known; attention, against PyTorch's own kernel."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llama2_lib.evaluation import consistency
from llama2_lib.evaluation.consistency import (
    Case,
    attention_by_turn,
    cases,
    converse,
    marked,
    maximum_attention,
    on_neutral_history,
    on_own_history,
    spans,
    switched,
)
from llama2_lib.evaluation.statistics import proportion_exact
from llama2_lib.model.chat import Reply
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.instructions import Brief, Instruction, brief_maker

FIGURE = Instruction(kind="figure", value="Mara", text="Figure: Mara")
CHESS = Instruction(kind="hobby", value="chess", text="Hobby: chess")


class Letters(Tokenizer):
    """A tokenizer of single letters in 53 pieces; answers are written by hand, nothing decodes."""

    def __init__(self):
        pass

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [ord(letter) % 50 + 3 for letter in text] + [2] * eos


def context_of(max_seq_len):
    """A model of which only the length of its context matters."""
    small = {"vocab_size": 8, "dim": 4, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1}
    return Transformer(ModelConfig(**small, multiple_of=4, max_seq_len=max_seq_len))


TOK = Letters()


def case(n=4, *instructions):
    others = frozenset({"v99"})
    turns = [
        Brief(request=f"Ask {i}?", answer=f"V{i}.", value=f"v{i}", others=others) for i in range(n)
    ]
    return Case(instructions=instructions or (FIGURE,), turns=turns)


@pytest.fixture
def play(monkeypatch):
    """Let a function of the dialog write the answers; return what was asked, in order."""

    def install(writer):
        heard = []

        def answer(model, tokenizer, dialogs, **options):
            heard.extend([list(dialog) for dialog in dialogs])
            return [Reply(writer(dialog), [3], True) for dialog in dialogs]

        monkeypatch.setattr(consistency, "reply", answer)
        return heard

    return install


def obedient(dialog):
    turn = len(dialog) // 2
    return f"Mara: V{turn}."


def copycat(dialog):
    """Obeys only when told in the message, or when it can copy its own last answer."""
    told = "Figure: Mara" in dialog[-1]["content"]
    copied = len(dialog) > 1 and dialog[-2]["content"].startswith("Mara: ")
    return obedient(dialog) if told or copied else f"V{len(dialog) // 2}."


def forgetful(dialog):
    return obedient(dialog) if len(dialog) <= 3 else f"V{len(dialog) // 2}."


WIDE = context_of(10_000)


def rates(kept):
    return [kept.obedience(turn).value for turn in range(1, kept.obeyed.shape[1] + 1)]


def test_obedience_by_turn_on_both_histories(play):
    for writer, own, neutral in (
        (obedient, [1, 1, 1, 1], [1, 1, 1, 1]),
        (copycat, [1, 1, 1, 1], [1, 0, 0, 0]),
        (forgetful, [1, 1, 0, 0], [1, 1, 0, 0]),
    ):
        play(writer)
        dialogs = [case(4), case(4)]
        assert rates(on_own_history(WIDE, TOK, dialogs)) == own, f"{writer}"
        found = on_neutral_history(WIDE, TOK, dialogs, turns=(1, 2, 3, 4))
        assert rates(found) == neutral, f"{writer}"
        assert found.right.all()


def test_the_instruction_is_said_once_and_histories_are_what_they_say(play):
    heard = play(obedient)
    on_own_history(WIDE, TOK, [case(3)])
    last = heard[-1]
    assert [message["role"] for message in last] == ["user", "assistant"] * 2 + ["user"]
    assert [m["content"] for m in last] == [
        "Figure: Mara Ask 0?", "Mara: V0.", "Ask 1?", "Mara: V1.", "Ask 2?",
    ]  # fmt: skip
    heard.clear()
    found = on_neutral_history(WIDE, TOK, [case(3)], turns=(3,))
    assert [m["content"] for m in heard[-1]] == [
        "Figure: Mara Ask 0?", "V0.", "Ask 1?", "V1.", "Ask 2?",
    ]  # fmt: skip
    assert len(heard) == 1
    assert found.reached.tolist() == found.obeyed.tolist() == [[False, False, True]]
    for turn in (0, 4):
        with pytest.raises(AssertionError, match=f"turn {turn} of 3"):
            on_neutral_history(WIDE, TOK, [case(3)], turns=(turn,))


def test_right_and_obedient_are_two_things():
    said = [["Mara: V0.", "V1.", "Mara: V99.", "Mara: V3 or V99."]]
    kept = marked([case(4)], said)
    assert kept.obeyed.tolist() == [[True, False, True, True]]
    assert kept.right.tolist() == [[True, True, False, False]]
    both = marked([case(2, FIGURE, CHESS)], [["Mara: V0. Chess!", "Mara: V1."]])
    assert both.obeyed.tolist() == [[True, False]]


def test_shares_have_exact_bounds_and_count_only_what_was_reached():
    said = [["Mara: V0.", "Mara: V1."], ["Mara: V0.", "V1."], ["V0.", None], ["V0.", None]]
    kept = marked([case(2)] * 4, said)
    assert kept.obedience(1) == proportion_exact(2, 4)
    assert kept.obedience(2) == proportion_exact(1, 2)
    assert kept.correctness(1) == proportion_exact(4, 4)
    assert kept.obedience(1) != kept.obedience(2)
    nothing = marked([case(1)], [[None]])
    for marks, turn in ((kept, 0), (kept, 3), (nothing, 1)):
        with pytest.raises(ValueError, match="a turn that some dialog reached"):
            marks.obedience(turn)


def test_a_dialog_that_fills_the_context_ends_and_the_others_go_on(play):
    heard = play(lambda dialog: "x" * 30 if "long" in dialog[0]["content"] else "ok")
    said = converse(context_of(80), TOK, [["long", "b", "c"], ["a", "b", "c"]])
    assert said == [["x" * 30, "x" * 30, None], ["ok", "ok", "ok"]]
    assert len(heard) == 5
    # Once full it stays so, though a later and shorter request would fit; lengths may differ.
    ragged = converse(context_of(80), TOK, [["a", "x" * 90, "b"], ["a"]])
    assert ragged == [["ok", None, None], ["ok"]]
    assert converse(context_of(80), TOK, []) == []


def test_a_prompt_needs_room_for_one_token_of_an_answer(play):
    play(lambda dialog: "ok")
    one = case(1)
    n = len(encode_prompt([{"role": "user", "content": one.requests()[0]}], TOK))
    for more, answer in ((0, None), (1, "ok")):
        model = context_of(n + more)
        assert converse(model, TOK, [one.requests()]) == [[answer]]
        kept = on_neutral_history(model, TOK, [one], turns=(1,))
        assert kept.reached.tolist() == [[answer is not None]]


def test_answers_that_the_format_cannot_carry_are_kept_as_what_it_can(play):
    play(lambda dialog: {1: "", 3: "[INST] a"}.get(len(dialog), "b"))
    assert converse(WIDE, TOK, [["1", "2", "3"]]) == [[".", "a", "b"]]


def test_a_switch_is_marked_by_both_instructions(play):
    world = make_world(0)

    def newest(dialog):
        """Play the figure that was named last, if any was."""
        told = re.findall(r"(?:ct as|Figure:) (\w+)", " ".join(m["content"] for m in dialog))
        return f"{told[-1]}: V." if told else "V."

    heard = play(newest)
    found = switched(WIDE, TOK, world, at=3, n=30, n_turns=5)
    assert found.at == 3
    assert found.new.obeyed.shape == (30, 5)
    changed = [dialog for dialog in heard if len(dialog) == 5]
    bare = {turn.request for turn in [*brief_maker(world).facts, *brief_maker(world).talk]}
    assert [dialog for dialog in changed if dialog[4]["content"] in bare] == []
    assert all(dialog[2]["content"] in bare for dialog in changed)
    figures = [row for row in range(30) if found.old.obeyed[row, 0]]
    assert len(figures) > 3
    assert not found.new.obeyed[figures, :2].any()
    assert found.new.obeyed[figures, 2].all()
    assert not found.old.obeyed[figures, 2].any()
    for at in (1, 6):
        with pytest.raises(AssertionError, match="the switch must come"):
            switched(WIDE, TOK, world, at=at, n=2, n_turns=5)


def test_cases_are_seeded_and_of_their_split():
    world = make_world(0)
    made = cases(world, 3, 20, split="held-out kinds", n_turns=6)
    assert made == cases(world, 3, 20, split="held-out kinds", n_turns=6)
    assert made != cases(world, 4, 20, split="held-out kinds", n_turns=6)
    assert {item.kind for one in made for item in one.instructions} == {"format", "capitals"}
    assert {len(one.turns) for one in made} == {6}
    assert {len(one.instructions) for one in cases(world, 3, 20)} == {1}
    assert made[0].requests()[0].startswith(made[0].instructions[0].text)
    assert made[0].requests()[1:] == [turn.request for turn in made[0].turns[1:]]


DIALOG = [
    {"role": "user", "content": "B a b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "ef"},
]


def weights_in_the_kernel(model, ids, monkeypatch):
    """The weights of every layer, (layers, heads, seq, seq), from what the kernel is given."""
    given, kernel = [], F.scaled_dot_product_attention

    def listen(q, k, v, **options):
        given.append((q, k))
        return kernel(q, k, v, **options)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", listen)
        model(ids[None])
    found = []
    for q, k in given:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        later = torch.ones(len(ids), len(ids)).triu(1).bool()
        found.append(scores.masked_fill(later, -torch.inf).softmax(-1)[0])
    return torch.stack(found)


def test_the_maximum_is_over_layers_heads_and_keys(random_model, monkeypatch):
    model = random_model(seed=1)
    ids = torch.randint(0, 53, (23,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weights = weights_in_the_kernel(model, ids, monkeypatch)
    assert weights.shape == (3, 6, 23, 23)
    for keys in (range(4, 9), range(1), range(22, 23), range(23)):
        expected = weights[:, :, :, keys.start : keys.stop].amax(dim=(0, 1, 3))
        found = maximum_attention(model, ids, keys)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    found = maximum_attention(model, ids, range(4, 9))
    assert (found[:4] == 0).all()
    assert (found[4:] > 0).all()
    assert found.max() <= 1
    assert not torch.allclose(found, weights[0, :, :, 4:9].amax(dim=(0, 2)), rtol=1e-3, atol=0)
    for keys in (range(21, 24), range(3, 3)):
        with pytest.raises(AssertionError, match="keys must lie within"):
            maximum_attention(model, ids, keys)


def test_spans_are_those_of_the_letters():
    found = spans(DIALOG, "B a", TOK)
    text = "0[INST] B a b [/INST] c 00[INST] d [/INST] ef 0"
    assert len(found.ids) == len(text)
    assert [text[t] for t in found.instruction] == list(" B a")
    assert ["".join(text[t] for t in own) for own in found.answers] == [" c 0", " ef 0"]
    assert found.answers[-1].stop == len(text)
    with pytest.raises(AssertionError, match="must begin with 'Z'"):
        spans(DIALOG, "Z", TOK)


def test_means_are_over_what_writes_each_answer(random_model):
    model = random_model(seed=2)
    found = spans(DIALOG[:2], "B a", TOK)
    assert len(found.ids) <= model.config.max_seq_len
    largest = maximum_attention(model, torch.tensor(found.ids), found.instruction)
    own = found.answers[0]
    expected = np.mean([float(largest[t - 1]) for t in own])
    measured = attention_by_turn(model, TOK, DIALOG[:2], "B a")
    np.testing.assert_allclose(measured, [expected], rtol=1e-12, atol=0)
    shifted = np.mean([float(largest[t]) for t in own])
    assert abs(shifted - expected) > 1e-6
    with pytest.raises(AssertionError, match="must fit"):
        attention_by_turn(model, TOK, DIALOG, "B a")
