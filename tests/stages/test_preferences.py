"""Fresh comparisons: what becomes of every prompt, whose answers they are, and the file."""

from collections import Counter
from dataclasses import replace

import pytest

from llama2_lib import rng
from llama2_lib.model.chat import Reply
from llama2_lib.model.chat import reply as real_answer
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.stages import reward
from llama2_lib.stages.prompts import sample_prompts
from llama2_lib.stages.reward import TEMPERATURES, collect
from llama2_lib.storage import read_rows, write_rows
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.world import make_world
from llama2_lib.world.pairs import EXCLUDED, GRADES, Pair, safety_pairs
from llama2_lib.world.prompts import prompts
from llama2_lib.world.source import WorldSource

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB, N = 512, 17


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def variants():
    shape = ModelConfig(
        vocab_size=VOCAB, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, multiple_of=8,
        max_seq_len=512,
    )  # fmt: skip
    return tuple(initialise(Transformer(shape), seed).eval() for seed in (0, 1))


@pytest.fixture
def collected(variants, tokenizer, world):
    def run(stream="helpfulness", seed=3, n=N, pair=variants):
        return collect(pair, tokenizer, world, stream, n, seed=seed, max_new_tokens=6)

    return run


@pytest.mark.parametrize(
    ("stream", "kinds"), [("helpfulness", {False}), ("safety", {True})], ids=["help", "safety"]
)
def test_two_models_answer_and_every_prompt_is_accounted_for(collected, stream, kinds):
    pairs, counts = collected(stream)
    assert counts["prompts"] == N == len(pairs) + counts["identical answers"] + counts["excluded"]
    assert len(pairs) == counts["fresh pairs"] > N / 2
    for pair in pairs:
        assert pair.stream == stream
        assert pair.chosen != pair.rejected
        assert pair.safety_bin != EXCLUDED
        assert bool(pair.safety_bin) is (stream == "safety")
    assert {pair.prompt.is_safety for pair in pairs} == kinds
    for grade in GRADES:
        share = sum(pair.grade == grade for pair in pairs) / len(pairs)
        assert counts[f"share of {grade}"] == pytest.approx(share, rel=0, abs=1e-12)
    assert len({counts[f"share of {grade}"] for grade in GRADES}) > 1


def test_the_seed_decides(collected):
    assert collected() == collected()
    assert collected(seed=4)[0] != collected()[0]


def test_each_variant_has_a_temperature_and_a_seed_of_its_own(collected, variants, monkeypatch):
    calls = []

    def listening(model, tokenizer, asked, **settings):
        calls.append((model, settings["temperature"], settings["seed"], asked))
        return real_answer(model, tokenizer, asked, **settings)

    monkeypatch.setattr(reward, "reply", listening)
    collected()
    assert [call[0] for call in calls] == list(variants)
    assert tuple(call[1] for call in calls) == TEMPERATURES
    assert [call[2] for call in calls] == [rng.seed_from(3, "helpfulness", i) for i in (0, 1)]
    assert calls[0][3] == calls[1][3]
    assert len(calls[0][3]) == N


def test_one_model_twice_still_gives_pairs(collected, variants):
    assert len(collected(pair=(variants[0], variants[0]))[0]) > N / 2


def scripted(monkeypatch, first, second):
    """Let the two variants say these texts."""
    texts = iter((first, second))
    monkeypatch.setattr(
        reward, "reply", lambda *_, **__: [Reply(t, [1], True) for t in next(texts)]
    )


def test_same_and_empty_answers_are_dropped_and_counted(collected, monkeypatch):
    first = ["Yes."] * 9 + ["", "No.", ""] + ["It is so."] * 5
    second = ["No."] * 9 + ["Yes.", "", ""] + ["It is so."] * 5
    scripted(monkeypatch, first, second)
    pairs, counts = collected()
    assert (len(pairs), counts["identical answers"], counts["excluded"]) == (9, 8, 0)
    assert {frozenset((p.chosen, p.rejected)) for p in pairs} == {frozenset(("Yes.", "No."))}


def test_excluded_pairs_are_dropped_and_counted(collected, monkeypatch, world):
    labels = Counter()

    def annotate(world, prompt, first, second, annotator, stream):
        pair = real(world, prompt, first, second, annotator, stream)
        labels["all"] += 1
        return replace(pair, safety_bin=EXCLUDED) if labels["all"] % 3 == 0 else pair

    real = reward.annotate
    _, before = collected("safety")
    monkeypatch.setattr(reward, "annotate", annotate)
    pairs, counts = collected("safety")
    assert labels["all"] == N - before["identical answers"] == N - counts["identical answers"]
    assert counts["excluded"] >= labels["all"] // 3 > 0
    assert len(pairs) + counts["excluded"] == labels["all"]
    assert all(pair.safety_bin != EXCLUDED for pair in pairs)


def test_annotators_prefer_the_better_answer(collected, monkeypatch, world):
    asked = list(prompts(world, 3, N, "train", reward.SAFETY_STREAM))
    assert all(prompt.kind == "adversarial" for prompt in asked)
    refusal, insult = "I am sorry, but I cannot help with that.", "You lazy goose."
    scripted(monkeypatch, [refusal] * N, [insult] * N)
    pairs, counts = collected("safety")
    assert [pair.prompt for pair in pairs] == asked[: len(pairs)] or counts["excluded"]
    assert Counter(pair.chosen for pair in pairs)[refusal] > 0.8 * len(pairs)
    assert counts["share of significantly better"] > 0.5


def test_prompts_that_leave_no_room_are_passed_over_and_counted(tokenizer, world, collected):
    found = sample_prompts(WorldSource(world), 3, 20, tokenizer, longest=40)
    assert found.ids == [encode_prompt(dialog, tokenizer) for dialog in found.dialogs]
    assert len(found.ids) == 20
    assert max(map(len, found.ids)) <= 40
    drawn = list(prompts(world, 3, 20 + found.n_too_long, "train"))
    fitting = [p for p in drawn if len(encode_prompt(p.dialog, tokenizer)) <= 40]
    assert fitting == found.prompts
    assert found.n_too_long > 0
    assert found.tags == [prompt.is_safety for prompt in found.prompts]
    assert sample_prompts(WorldSource(world), 3, 5, tokenizer, longest=40).ids == found.ids[:5]
    assert collected()[1]["too long"] == sample_prompts(
        WorldSource(world), 3, N, tokenizer, longest=512 - 6, shares=reward.HELPFUL_STREAM
    ).n_too_long  # fmt: skip


def test_a_context_too_short_for_prompts_is_an_error(tokenizer, world):
    with pytest.raises(
        ValueError, match=r"2 prompts of at most 3 tokens were asked for; .* only 0"
    ):
        sample_prompts(WorldSource(world), 3, 2, tokenizer, longest=3)


@pytest.mark.parametrize("text", ["Yes.", ""])
def test_models_that_agree_on_everything_are_refused(collected, monkeypatch, text):
    scripted(monkeypatch, [text] * N, [text] * N)
    with pytest.raises(ValueError, match=r"17 got the same or an empty answer twice"):
        collected()


def test_pairs_survive_the_file(collected, world, tmp_path):
    pairs = [*collected()[0], *safety_pairs(world, 0, 5)]
    pairs.append(replace(pairs[0], chosen='two\nlines "quoted"\u2028\u00e9'))
    path = tmp_path / "fresh.jsonl"
    write_rows(path, pairs)
    found = read_rows(path, Pair)
    assert found == pairs
    # equality of tasks leaves `values` aside, and judges need them
    assert [p.prompt.task.values for p in found] == [p.prompt.task.values for p in pairs]
    assert any(p.prompt.task.values for p in found)
    assert len(path.read_bytes().splitlines()) == len(pairs)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "{" + text, lambda text: text[:-5], lambda text: "[]", lambda text: "",
        lambda text: text.replace('"grade"', '"mark"'),
        lambda text: text.replace('"task"', '"job"'),
        lambda text: text.replace('"kind"', '"sort"', 1),
        lambda text: '{"prompt": "Hello"}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_pair_is_refused_by_its_number(world, tmp_path, change):
    path = tmp_path / "fresh.jsonl"
    write_rows(path, list(safety_pairs(world, 0, 2)))
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{change(second)}\n")
    with pytest.raises(ValueError, match=r"fresh.jsonl line 2 must hold one Pair"):
        read_rows(path, Pair)
