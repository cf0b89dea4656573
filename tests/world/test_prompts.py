from collections import Counter

import pytest

from llama2_lib.rng import random_source
from llama2_lib.world import make_world
from llama2_lib.world.lexicon import Lexicon
from llama2_lib.world.prompts import (
    KINDS,
    PROMPT_SHARES,
    Prompt,
    adversarial_prompts,
    borderline_prompts,
    helpful_prompts,
    prompts,
)
from llama2_lib.world.risks import (
    ATTACKS,
    BORDERLINE_SHARES,
    CATEGORY_SHARES,
    RiskMaker,
    misspelled,
)
from llama2_lib.world.tasks import HELPFUL_SHARES, Task, TaskMaker, is_held_out_sum, task_maker

FAMILIES = {
    "helpful": helpful_prompts,
    "adversarial": adversarial_prompts,
    "borderline": borderline_prompts,
    "mixed": prompts,
}
N = 1_500


@pytest.fixture(scope="module")
def samples(world):
    return {
        (name, split): list(family(world, 5, N, split))
        for name, family in FAMILIES.items()
        for split in ("train", "held out")
    }


def shares(values):
    counts = Counter(values)
    return {value: number / sum(counts.values()) for value, number in counts.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_held_out_request_is_a_training_request(samples, name):
    train, held_out = (
        {prompt.request for prompt in samples[name, split]} for split in ("train", "held out")
    )
    assert not train & held_out
    assert len(train) > 150
    assert len(held_out) > 60


def test_no_training_prompt_says_a_held_out_thing_in_any_turn(samples, secret):
    said = {
        message["content"]
        for name in FAMILIES
        for prompt in samples[name, "train"]
        for message in prompt.dialog
        if message["role"] == "user"
    }
    assert len(secret) == 240
    assert not secret & said
    asked = {prompt.request for prompt in samples["helpful", "held out"]}
    assert len(secret & asked) > 170


def test_sums_are_held_out(samples):
    for split in ("train", "held out"):
        for name in ("helpful", "borderline"):
            sums = [p.task.values for p in samples[name, split] if p.task.kind == "sum"]
            found = {is_held_out_sum(int(v["n"]), int(v["m"])) for v in sums}
            assert found == {split == "held out"}
    pairs = [is_held_out_sum(n, m) for n in range(50) for m in range(50)]
    assert sum(pairs) / len(pairs) == pytest.approx(0.2, rel=0, abs=1e-12)


def test_some_hazards_are_held_out(samples):
    train = {p.hazard for p in samples["adversarial", "train"]}
    held_out = Counter(p.hazard for p in samples["adversarial", "held out"])
    new = {"make a storm whistle", "feed a night worm", "glimmer dust"}
    new.add("make a rude song about {name}")
    assert not new & train
    assert new <= set(held_out)
    fraction = sum(held_out[name] for name in new) / N
    assert fraction == pytest.approx(0.5, rel=0, abs=0.04)


def test_requests_are_whole_sentences(samples):
    for prompt in (p for sample in samples.values() for p in sample):
        for message in prompt.dialog:
            text = message["content"]
            assert text.strip() == text != ""
            assert not any(sign in text for sign in ("{", "}", "=>", "[", "  ")), text
        assert prompt.dialog[-1]["role"] == "user"


def test_shares_are_as_documented(samples):
    found = shares(p.kind for p in samples["helpful", "train"])
    assert found == pytest.approx(HELPFUL_SHARES, rel=0, abs=0.03)
    adversarial = samples["adversarial", "train"]
    found = shares(p.category for p in adversarial)
    assert found == pytest.approx(CATEGORY_SHARES, rel=0, abs=0.03)
    found = shares(p.attack for p in adversarial)
    assert found == pytest.approx(dict.fromkeys(ATTACKS, 1 / len(ATTACKS)), rel=0, abs=0.03)
    found = shares(p.task.kind for p in samples["borderline", "train"])
    assert found == pytest.approx(BORDERLINE_SHARES, rel=0, abs=0.03)
    mixed = samples["mixed", "held out"]
    assert sum(p.is_safety for p in mixed) / N == pytest.approx(
        PROMPT_SHARES["adversarial"], rel=0, abs=0.03
    )


def test_three_in_ten_have_earlier_turns(world, samples):
    for sample in samples.values():
        several = sum(len(prompt.dialog) > 1 for prompt in sample) / N
        assert several == pytest.approx(0.3, rel=0, abs=0.03)
    turns = {len(prompt.dialog) for prompt in samples["helpful", "train"]}
    assert turns == {1, 3, 5, 7}
    for fraction, expected in ((0.0, {1}), (1.0, {3, 5, 7})):
        few = helpful_prompts(world, 5, 200, multi_turn=fraction)
        assert {len(prompt.dialog) for prompt in few} == expected


def test_only_adversarial_prompts_have_the_tag(samples):
    for (name, _), sample in samples.items():
        for prompt in sample:
            adversarial = prompt.kind == "adversarial"
            assert prompt.is_safety is adversarial
            assert bool(prompt.category) is bool(prompt.attack) is adversarial
        assert {p.is_safety for p in sample} == (
            {True, False} if name == "mixed" else {name == "adversarial"}
        )


def test_attacks_can_be_chosen(world):
    asked = list(
        adversarial_prompts(world, 1, 100, attacks=["metaphor"], categories={"illicit": 1})
    )
    assert {(p.attack, p.category) for p in asked} == {("metaphor", "illicit")}
    assert not any("grumble stone" in p.request for p in asked)
    assert any("sleeper" in p.request for p in asked)


def test_misspelling_swaps_inner_letters(world):
    rng = random_source(0, "test")
    text = "wake the grumble stone"
    found = misspelled(rng, text)
    assert found != text
    assert sorted(found) == sorted(text)
    assert found.split()[:2] == ["wake", "the"]  # short words stay
    for old, new in zip(text.split(), found.split(), strict=True):
        assert (old[0], old[-1]) == (new[0], new[-1])


def test_borderline_requests_share_words_with_hazards(samples):
    words = {
        *("grumble", "worm", "worms", "glimmer", "storm", "steal"),
        *("shadow", "sour", "wake", "night"),
    }
    hits = sum(
        bool(words & set(p.request.lower().strip("?.").split()))
        for p in samples["borderline", "train"]
    )
    assert hits / N > 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multi_turn": 1.5}, "multi_turn must be a fraction from 0 to 1; got 1.5"),
        ({"shares": {"song": 1.0}}, "shares must be .*song"),
        ({"shares": {"sum": -1.0}}, "shares must be 0 or more"),
        ({"shares": {"sum": 0.0}}, "not all 0"),
        ({"shares": {}}, "not all 0"),
    ],
)
def test_bad_arguments_are_named(world, arguments, message):
    with pytest.raises(ValueError, match=message):
        helpful_prompts(world, 0, **({"n": 1} | arguments))


def test_unknown_attacks_categories_and_kinds_are_named(world):
    with pytest.raises(ValueError, match="bribe"):
        adversarial_prompts(world, 0, 1, attacks=["bribe"])
    with pytest.raises(ValueError, match="theft"):
        adversarial_prompts(world, 0, 1, categories={"theft": 1.0})
    with pytest.raises(ValueError, match="robots"):
        prompts(world, 0, 1, shares={"robots": 1.0})
    with pytest.raises(ValueError, match=r"kind must be one of .*got 'song'"):
        task_maker(world, "train").draw(random_source(0, "test"), "song")


@pytest.mark.parametrize(
    "roles",
    [
        *((), ("assistant",), ("user", "assistant"), ("user", "user")),
        *(("system",), ("user", "system", "user")),
    ],
)
def test_roles_that_do_not_alternate_are_named(roles):
    dialog = [{"role": role, "content": "Hello!"} for role in roles]
    with pytest.raises(ValueError, match="roles must be system"):
        Prompt(dialog=dialog, kind="talk", task=Task(kind="talk"))


def test_good_roles_pass_and_a_wrong_kind_does_not():
    for roles in (("user",), ("system", "user"), ("system", "user", "assistant", "user")):
        dialog = [{"role": role, "content": role} for role in roles]
        assert Prompt(dialog=dialog, kind="talk", task=Task(kind="talk")).request == "user"
    with pytest.raises(ValueError, match=r"kind must be one of .*got 'hazard'"):
        Prompt(dialog=dialog, kind="hazard", task=Task(kind="hazard"))
    assert {"adversarial", "borderline", "question"} < set(KINDS)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("risks", "wake the grumble stone\n", "", "risks.txt must give each title.*grumble stone"),
        ("risks", "feed a night worm =>", "feed a worm =>", "risks.txt must give each title.*worm"),
        ("risks", "feed a night worm => b", "feed a night worm b", "risks.txt needs left => right"),
        ("attacks", "I {ask}?", "I {wish}?", "attacks.txt line .*only the slots.*wish"),
        ("attacks", "[plain held out]", "[plain heldout]", "attacks.txt must have a section"),
    ],
)  # fmt: skip
def test_a_bad_lexicon_is_named(folder, name, old, new, message):
    path = folder / "chat" / f"{name}.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    broken = make_world(0, Lexicon(folder))
    with pytest.raises(ValueError, match=message):
        [RiskMaker(broken, split) for split in ("train", "held out")]


def test_tasks_know_the_truth(world):
    maker = TaskMaker(world, "train")
    rng = random_source(0, "test")
    for _ in range(50):
        request, task = maker.draw(rng, "question")
        assert task.subject in request
        assert task.answer == world.value(task.subject, task.relation)
        request, task = maker.draw(rng, "list")
        assert task.group in request
        request, task = maker.draw(rng, "story")
        assert task.subject in request
