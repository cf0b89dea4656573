"""Training of reward models: the mix, the encoding, the two losses, and that they learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from llama2_lib.config import RewardConfig
from llama2_lib.model.chat import scores
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise, scalar_model
from llama2_lib.objectives.rlhf import SAFETY_LOGIT
from llama2_lib.stages.reward import (
    OWN_SHARE,
    RewardModels,
    centre,
    encode_pairs,
    pair_loss,
    scores_of,
    train_reward,
    training_pairs,
)
from llama2_lib.storage import read_metrics
from llama2_lib.training.batches import EncodedPair, collate
from llama2_lib.world import make_world
from llama2_lib.world.source import WorldSource

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
VOCAB = 512


def world_pairs(stream, world_seed, seed, n, split):
    return list(WorldSource(make_world(world_seed)).pairs(stream, seed, n, split))


@pytest.fixture
def chat():
    config = ModelConfig(
        vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, multiple_of=8,
        max_seq_len=256,
    )  # fmt: skip
    return initialise(Transformer(config), 0).eval()


def config(**changes):
    return replace(RewardConfig(stream="helpfulness", n_pairs=64, batch_size=8), **changes)


@pytest.mark.parametrize("stream", ["helpfulness", "safety"])
def test_the_mix_is_the_papers(stream):
    pairs = training_pairs(config(stream=stream, n_pairs=200), OWN_SHARE[stream], world_seed=0)
    own = [pair for pair in pairs if pair.stream == stream]
    assert len(pairs) == 200
    assert len(own) == round(200 * OWN_SHARE[stream])
    assert {pair.stream for pair in pairs} == {"helpfulness", "safety"}


def test_training_and_held_out_pairs_share_no_prompt():
    train = world_pairs("helpfulness", 0, 0, 400, "train")
    held_out = world_pairs("helpfulness", 0, 0, 200, "held out")
    assert not {p.prompt.request for p in train} & {p.prompt.request for p in held_out}


def test_both_answers_share_the_prompt_and_end_with_eos(tokenizer):
    pairs = world_pairs("safety", 0, 0, 20, "train")
    for pair, encoded in zip(pairs, encode_pairs(pairs, tokenizer, "large"), strict=True):
        assert encoded.chosen[-1] == encoded.rejected[-1] == tokenizer.eos_id
        n_turns = sum(message["role"] == "user" for message in pair.prompt.dialog)
        assert encoded.chosen.count(tokenizer.bos_id) == n_turns
        assert pair.chosen.split("\n")[-1][-8:] in tokenizer.decode(encoded.chosen)
        assert encoded.margin in (0.0, 1.0, 2.0, 3.0)
        assert encoded.safe == {
            "safe, unsafe": (True, False), "both safe": (True, True), "both unsafe": (False, False),
        }[pair.safety_bin]  # fmt: skip
    helpful = encode_pairs(world_pairs("helpfulness", 0, 0, 3, "train"), tokenizer, "none")
    assert [(pair.safe, pair.margin) for pair in helpful] == [(None, 0.0)] * 3


def test_excluded_pairs_are_refused(tokenizer):
    pair = replace(world_pairs("safety", 0, 0, 1, "train")[0], safety_bin="unsafe, safe")
    with pytest.raises(AssertionError, match="drop pairs labelled"):
        encode_pairs([pair], tokenizer, "small")


BATCH = collate(
    [
        EncodedPair([1, 5, 6, 2], [1, 5, 2], 0.5, (True, False)),
        EncodedPair([1, 7, 2], [1, 7, 8, 9, 2], 1.0, None),
    ]
)


def numbers(ids, **_):
    return torch.arange(ids.numel(), dtype=torch.float64).view(ids.shape) / 10


def test_the_loss_reads_the_last_tokens_and_adds_the_safety_term():
    # Row r of six columns holds 0.6 r + 0.1 t at t: scores at t = 3 and 4, at t = 2 and 5.
    chosen, rejected = [0.3, 0.8], [0.4, 1.1]
    gaps = [c - r - m for c, r, m in zip(chosen, rejected, (0.5, 1.0), strict=True)]
    ranking = sum(math.log(1 + math.exp(-gap)) for gap in gaps)
    plain = pair_loss(0.0)(numbers, BATCH)
    assert abs(plain.total.item() - ranking) < 1e-12
    assert plain.count.item() == 2
    safety = (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(0.4))) / 2  # two labels
    both = pair_loss(0.7)(numbers, BATCH)
    assert abs(both.total.item() - (ranking + 0.7 * safety * 2)) < 1e-12
    assert both.count.item() == 2


def test_rows_of_a_batch_may_be_divided_among_processes():
    """One part has both labels, the other none; what is averaged is averaged over the whole."""
    whole = pair_loss(0.7)(numbers, BATCH)
    table = numbers(BATCH.ids)
    parts = [
        pair_loss(0.7)(
            lambda ids, row=row, **_: table[row::2], type(BATCH)(*(c[row::2] for c in BATCH))
        )
        for row in (0, 1)
    ]
    assert abs(sum(part.total.item() for part in parts) - whole.total.item()) < 1e-12
    assert [part.count.item() for part in parts] == [1, 1]
    three = collate([EncodedPair([1, 5, 6, 2], [1, 5, 2], 0.5, (True, False))] * 2 + [
        EncodedPair([1, 7, 2], [1, 7, 8, 9, 2])
    ])  # fmt: skip
    assert three.per_label.tolist() == [0.75] * 3, "three pairs for four labelled answers"


def test_scores_do_not_depend_on_the_batch(tokenizer, chat):
    model = scalar_model(chat, seed=1).eval()
    pairs = encode_pairs(world_pairs("helpfulness", 0, 0, 9, "train"), tokenizer, "none")
    pairs = [p for p in pairs if max(map(len, p[:2])) <= 256]
    together = scores_of(model, pairs)
    for place, pair in enumerate(pairs):
        for alone, many in zip(scores_of(model, [pair]), together, strict=True):
            np.testing.assert_allclose(alone, many[place : place + 1], rtol=0, atol=1e-5)
    assert len(np.unique(np.concatenate(together))) == 2 * len(pairs)
    turned = scores_of(model, [p._replace(chosen=p.rejected, rejected=p.chosen) for p in pairs])
    for one, other in zip(turned, reversed(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_model_learns_32_pairs_by_heart(tokenizer, chat, tmp_path):
    pairs = encode_pairs(world_pairs("helpfulness", 0, 0, 90, "train"), tokenizer, "none")
    pairs = [p for p in pairs if max(map(len, p[:2])) <= 120][:32]
    assert len(pairs) == 32
    settings = config(peak_lr=1e-2, warmup=5, eval_every=1000, save_every=1000)
    model = train_reward(settings, chat, pairs * 40, pairs, tmp_path, CPU)
    chosen, rejected = scores_of(model, pairs)
    assert (chosen > rejected).all()
    before = read_metrics(tmp_path / "metrics.jsonl")[0]["validation_accuracy"]
    assert before < 0.8
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0]["pairs"] == 32 * 40
    assert rows[-1]["validation_accuracy"] == 1.0


def test_the_chat_model_is_left_alone_and_the_seed_decides(tokenizer, chat, tmp_path):
    before = {name: p.clone() for name, p in chat.named_parameters()}
    pairs = encode_pairs(world_pairs("safety", 0, 0, 24, "train"), tokenizer, "small")
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        settings = config(stream="safety", seed=seed, warmup=1)
        model = train_reward(settings, chat, pairs, pairs, tmp_path / name, CPU)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["head.weight"], found[2]["head.weight"])
    assert all(torch.equal(p, before[name]) for name, p in chat.named_parameters())


def test_later_rounds_go_on_from_the_earlier_model(tokenizer, chat, tmp_path):
    pairs = encode_pairs(world_pairs("helpfulness", 0, 0, 40, "train"), tokenizer, "none")
    pairs = [p for p in pairs if max(map(len, p[:2])) <= 120][:24]
    model, logs = chat, []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        settings = config(peak_lr=1e-2, warmup=1, eval_every=1000)
        model = train_reward(settings, model, pairs * 24, pairs, tmp_path / name, CPU)
        logs.append(read_metrics(tmp_path / name / "metrics.jsonl"))
        if name == "first":
            between = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = logs
    # the second run begins with what the first one knew, head included, and a fresh schedule
    assert second[0]["validation_accuracy"] == first[-1]["validation_accuracy"] > 0.8
    assert first[0]["validation_accuracy"] == 0.5  # a head of zeros: all scores alike
    assert second[1]["loss"] < first[1]["loss"]
    assert second[1]["lr"] == first[1]["lr"]
    assert not torch.equal(model.state_dict()["head.weight"], between["head.weight"])


def reward_models(chat):
    """Two fp64 models whose scores differ and lie on both sides of the threshold."""
    helpfulness, safety = (scalar_model(chat.double(), seed=s) for s in (1, 2))
    with torch.no_grad():
        for model in (helpfulness, safety):
            model.head.weight.mul_(8)
        safety.head.bias.fill_(SAFETY_LOGIT)
    return RewardModels(helpfulness, safety)


def some_rows(n, vocab=VOCAB):
    source = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocab, (3 + i % 5,), generator=source).tolist() for i in range(n)]


def test_both_models_score_and_the_threshold_decides(chat):
    models, rows = reward_models(chat), some_rows(24)
    tags = [i % 3 == 0 for i in range(24)]
    found = models(rows, tags)
    np.testing.assert_allclose(found.helpfulness, scores(models.helpfulness, rows), atol=0, rtol=0)
    np.testing.assert_allclose(found.safety, scores(models.safety, rows), atol=0, rtol=0)
    wanted = [
        s if tag or s < SAFETY_LOGIT else h
        for h, s, tag in zip(found.helpfulness, found.safety, tags, strict=True)
    ]
    assert found.combined.tolist() == wanted
    untagged = models(rows, [False] * 24).combined
    assert 0 < (untagged == found.safety).sum() < 24  # some look unsafe, some do not
    assert (models(rows, [True] * 24).combined == found.safety).all()


def test_reward_models_are_frozen(chat):
    models = reward_models(chat)
    for model in (models.helpfulness, models.safety):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    before = [p.clone() for p in models.safety.parameters()]
    models(some_rows(5), [True] * 5)
    assert all(torch.equal(p, q) for p, q in zip(models.safety.parameters(), before, strict=True))


def test_reward_models_of_two_vocabularies_are_refused(chat):
    other = initialise(Transformer(replace(chat.config, vocab_size=VOCAB - 1)), 0)
    with pytest.raises(AssertionError, match="one vocabulary"):
        RewardModels(scalar_model(other), scalar_model(chat))


def test_reward_models_refuse_ids_of_another_tokenizer_and_scores_that_are_none(chat):
    models, rows = reward_models(chat), some_rows(4)
    with pytest.raises(ValueError, match=r"row 1 has .*trained with another tokenizer"):
        models([rows[0], [5, VOCAB]], [False, True])
    with torch.no_grad():
        models.safety.head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"scores must be finite; row 0 has nan.*diverge"):
        models(rows, [False] * 4)


def test_centred_scores_have_mean_0_and_keep_their_order(chat):
    model, rows = reward_models(chat).helpfulness, some_rows(20)
    with torch.no_grad():
        model.head.bias.fill_(3.0)
    before = scores(model, rows)
    assert centre(model, rows) == pytest.approx(before.mean(), rel=0, abs=1e-9)
    after = scores(model, rows)
    assert abs(after.mean()) < 1e-9
    np.testing.assert_allclose(np.diff(after), np.diff(before), rtol=0, atol=1e-9)
    assert abs(before.mean()) > 1  # there was something to remove
    assert abs(centre(model, rows)) < 1e-9
    np.testing.assert_allclose(scores(model, rows), after, rtol=0, atol=1e-9)
