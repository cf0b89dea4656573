"""Replies of models, what may stand in a prompt, and what reward models say of both."""

import numpy as np
import pytest
import torch

from llama2_lib.model import chat
from llama2_lib.model.chat import (
    SCORED_TOGETHER,
    Reply,
    answer_room,
    carried,
    fits,
    reply,
    room,
    scored_row,
    scores,
)
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import Completion, Past, generate
from llama2_lib.model.transformer import scalar_model
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.text.tokenizer import Tokenizer

BOS, EOS = 1, 2


class Letters(Tokenizer):
    """One id per character, to be read in tests; BOS 1, EOS 2."""

    def __init__(self):
        self.vocab_size, self.bos_id, self.eos_id = 200, BOS, EOS

    def encode(self, text, bos=False, eos=False):
        return [BOS] * bos + [ord(letter) for letter in text] + [EOS] * eos

    def decode(self, ids):
        return "".join(chr(token) for token in ids if token > EOS)


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def model(random_model):
    """Weights of order 1, over letters, with a context of 90."""
    config = ModelConfig(
        vocab_size=200, dim=48, n_layers=2, n_heads=6, n_kv_heads=2, multiple_of=20, max_seq_len=90
    )
    return random_model(config=config)


DIALOGS = [user(text) for text in ("Hi", "a longer question " * 3, "ab", "What is it?", "x" * 55)]


def test_a_greedy_answer_is_what_generate_gives_alone(model):
    answers = reply(model, Letters(), DIALOGS, max_new_tokens=15)
    for dialog, said in zip(DIALOGS, answers, strict=True):
        prompt = encode_prompt(dialog, Letters())
        room = min(15, 90 - len(prompt))
        [alone] = generate(model, [prompt], max_new_tokens=room, temperature=0.0, stop_ids={EOS})
        assert said.ids == alone.ids
        assert said.ended == alone.finished
        assert said.text == Letters().decode(alone.ids).strip()
    assert len({tuple(said.ids) for said in answers}) == len(DIALOGS)


def test_a_dialog_with_little_room_gets_what_there_is(model):
    long = user("x" * 71)
    n = len(encode_prompt(long, Letters()))
    assert n == 87
    answers = reply(model, Letters(), [DIALOGS[0], long, DIALOGS[2]], max_new_tokens=20)
    assert [len(said.ids) for said in answers] == [20, 3, 20]
    assert not answers[1].ended
    with pytest.raises(ValueError, match=r"in 90 tokens; dialog 1 has 90. Drop its first turns"):
        reply(model, Letters(), [DIALOGS[0], user("x" * 74)])


def test_a_sampled_answer_depends_on_its_number_and_not_on_its_companions(model):
    options = {"temperature": 1.0, "seed": 4, "max_new_tokens": 12}
    texts = [said.ids for said in reply(model, Letters(), DIALOGS, **options)]
    assert [said.ids for said in reply(model, Letters(), DIALOGS[:2], **options)] == texts[:2]
    twice = reply(model, Letters(), [DIALOGS[0]] * 2, **options)
    assert twice[0].ids == texts[0] != twice[1].ids
    other = reply(model, Letters(), DIALOGS, **options | {"seed": 5})
    assert [said.ids for said in other] != texts


def test_every_row_is_generated_with_its_own_past_and_the_settings_given(model, monkeypatch):
    rows = {}

    def say(model, prompts, *, pasts, top_p, temperature, **options):
        assert (top_p, temperature) == (0.7, 0.9)
        rows.update((tuple(prompt), past) for prompt, past in zip(prompts, pasts, strict=True))
        return [Completion([EOS], [], True) for _ in prompts]

    monkeypatch.setattr(chat, "generate", say)
    pasts = [Past() for _ in DIALOGS]
    reply(model, Letters(), DIALOGS, top_p=0.7, temperature=0.9, pasts=pasts)
    assert all(
        rows[tuple(encode_prompt(dialog, Letters()))] is past
        for dialog, past in zip(DIALOGS, pasts, strict=True)
    )


def test_an_answer_ends_at_its_first_eos(model):
    said = reply(model, Letters(), DIALOGS[:1] * 60, max_new_tokens=25, temperature=4.0)
    assert 3 < sum(one.ended for one in said) < 57
    for one in said:
        assert one.ids.count(EOS) == int(one.ended)
        assert one.ids[-1] == EOS if one.ended else len(one.ids) == 25


def test_batches_are_of_similar_length_and_hold_every_row_once(monkeypatch):
    monkeypatch.setattr(chat, "BATCH", 3)
    lengths = [5, 40, 1, 7, 30, 2, 6, 3]
    batches = list(chat._batches(lengths, 20))
    assert batches == [[2, 5, 7], [0, 6, 3], [4], [1]]


@pytest.mark.parametrize(
    ("written", "text"),
    [(" Yes [INST] no ", "Yes  no"), ("[IN[INST]ST]ab", "ab"), ("<<SYS>>", ""), ("a[/INST] ", "a")],
)
def test_a_reply_holds_no_tag_that_would_stop_whoever_reads_it(model, monkeypatch, written, text):
    done = Completion([*map(ord, written), EOS], [], True)
    monkeypatch.setattr(chat, "generate", lambda model, prompts, **_: [done for _ in prompts])
    [one] = reply(model, Letters(), DIALOGS[:1])
    assert (one.text, one.ids) == (text, done.ids)
    answered = scored_row(DIALOGS[0], one.text, Letters())
    assert answered == scored_row(DIALOGS[0], written, Letters())
    said = {"role": "assistant", "content": carried(one.text)}
    encode_prompt([*DIALOGS[0], said, *user("And?")], Letters())


def test_a_prompt_fits_where_its_answer_has_room(model):
    assert [room(model, 15), room(model.config, 15), room(scalar_model(model), 90)] == [75, 75, 0]
    assert [answer_room(model, 20), answer_room(model, 96)] == [20, 45]
    n = len(encode_prompt(DIALOGS[0], Letters()))
    assert [fits(DIALOGS[0], Letters(), longest) for longest in (n - 1, n, n + 1)] == [
        False, True, True,
    ]  # fmt: skip
    replies = reply(model, Letters(), DIALOGS, max_new_tokens=15)
    for dialog, one in zip(DIALOGS, replies, strict=True):
        assert not fits(dialog, Letters(), room(model, 15)) or len(one.ids) == 15


def test_a_row_is_what_was_sampled_and_only_a_finished_answer_has_eos():
    prompt = encode_prompt(DIALOGS[0], Letters())
    said = [ord(c) for c in " Yes"]
    assert scored_row(DIALOGS[0], Reply("Yes", said, False), Letters()) == [*prompt, *said]
    ended = [*said, ord(" "), EOS]
    assert scored_row(DIALOGS[0], Reply("Yes", ended, True), Letters()) == [*prompt, *ended]
    # Of a text nothing else is known: it is read as a finished answer.
    assert scored_row(DIALOGS[0], "Yes", Letters()) == [*prompt, *ended]
    assert scored_row(DIALOGS[0], "Yes", Letters(), len(prompt) + 2) == [*prompt, *said[:2]]
    assert scored_row(DIALOGS[0], "", Letters()) == scored_row(DIALOGS[0], ".", Letters())


@pytest.fixture
def scalar(random_model):
    """Vocabulary 53, context 37, fp64, every score another."""
    return scalar_model(random_model(), seed=3).eval()


def ragged(n):
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 38, (n,), generator=source).tolist()
    return [torch.randint(0, 53, (k,), generator=source).tolist() for k in lengths]


def test_scores_stand_in_the_order_given_and_do_not_depend_on_companions(scalar):
    rows = ragged(SCORED_TOGETHER + 7)
    together = scores(scalar, rows)
    alone = np.array([scores(scalar, [row])[0] for row in rows[::5]])
    np.testing.assert_allclose(together[::5], alone, rtol=0, atol=1e-6)
    assert np.diff(np.sort(together)).min() > 1e-5  # so another order would be seen
    with torch.no_grad():
        for row, score in zip(rows[:3], together, strict=False):
            assert abs(scalar(torch.tensor([row]))[0, -1].item() - score) < 1e-6
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_allclose(
        scores(scalar, [rows[i] for i in order]), together[order], rtol=0, atol=1e-6
    )


def test_scoring_leaves_the_model_as_it_was(scalar):
    seen = []
    scalar.register_forward_hook(lambda module, *_: seen.append(module.training))
    before = {name: p.clone() for name, p in scalar.state_dict().items()}
    for training in (True, False):
        scalar.train(training)
        scores(scalar, ragged(3))
        assert scalar.training is training
        assert scalar.backbone.training is training
    assert seen == [False, False]
    assert all(p.grad is None for p in scalar.parameters())
    assert all(torch.equal(p, before[name]) for name, p in scalar.state_dict().items())
    assert len(scores(scalar, [])) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], r"1 to 37 tokens to be scored; row 1 has 0"),
        ([5] * 38, r"1 to 37 tokens to be scored; row 1 has 38"),
        ([5, 53], r"ids must lie in 0\.\.\.52; row 1 has 5\.\.\.53.*another tokenizer"),
        ([-1, 5], r"ids must lie in 0\.\.\.52; row 1 has -1\.\.\.5"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused(scalar, row, message):
    assert len(scores(scalar, [[7], [5] * 37, [0, 52]])) == 3
    with pytest.raises(ValueError, match=message):
        scores(scalar, [[7, 8], row, [9]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(scalar, value):
    with torch.no_grad():
        scalar.backbone.tok_embeddings.weight[9] = value
    assert np.isfinite(scores(scalar, [[7, 8], [8]])).all()
    with pytest.raises(ValueError, match=r"scores must be finite; row 1 has nan.*diverge"):
        scores(scalar, [[7, 8], [9, 8], [8]])
