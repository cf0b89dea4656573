"""Safety context distillation, step by step; red-teaming; parts of the safety data."""

import random
from dataclasses import replace

import numpy as np
import pytest

from llama2_lib.config import SafetyData
from llama2_lib.stages.red_team import (
    Attack,
    attack,
    broken_by,
    lessons,
)
from llama2_lib.stages.safety import (
    ADJECTIVES,
    DECLINE,
    EXPLAIN,
    FRACTIONS,
    OFFER,
    Distilled,
    answer_template,
    gate,
    generic_preprompt,
    heeding_dialogs,
    mixed_dialogs,
    preprompt_for,
    safety_dialogs,
    targets,
    with_preprompt,
)
from llama2_lib.storage import read_rows, write_rows
from llama2_lib.world import make_world
from llama2_lib.world.attackers import Attacker, key_of
from llama2_lib.world.demonstrations import demonstrations
from llama2_lib.world.judges import judge_of
from llama2_lib.world.prompts import adversarial_prompts, helpful_prompts
from llama2_lib.world.tasks import CATEGORIES

SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def risky(world):
    return list(adversarial_prompts(world, 1, 12))


def row(prompt, original, distilled, answer="No.", preprompt="Be safe."):
    return Distilled(prompt, preprompt, "Sure.", "Well.", answer, original, 0.5, distilled)


def test_generic_preprompts_are_made_of_two_adjectives():
    source = random.Random(0)
    made = [generic_preprompt(source) for _ in range(200)]
    named = [[word for word in ADJECTIVES if word in text.split()] for text in made]
    assert {len(words) for words in named} == {1, 2}  # one template has room for one
    assert {word for words in named for word in words} == set(ADJECTIVES)
    assert all("{" not in text for text in made)
    assert len(set(made)) > 20


def test_answer_templates_say_decline_explain_offer_in_this_order():
    for category in CATEGORIES:
        whole = answer_template(category)
        assert whole == f"{DECLINE} {EXPLAIN[category]} {OFFER[category]}"
        assert answer_template(category, 1) == DECLINE
        assert whole.startswith(answer_template(category, 2))
    assert len({answer_template(category) for category in CATEGORIES}) == 3
    for parts in (0, 4):
        with pytest.raises(AssertionError, match=str(parts)):
            answer_template("illicit", parts)


def test_only_risk_labelled_prompts_get_a_template(world, risky):
    source, harmless = random.Random(1), next(helpful_prompts(world, 1))
    assert preprompt_for(risky[0], "template", source) == answer_template(risky[0].category)
    assert "assistant" in (text := preprompt_for(harmless, "template", source)) or "helper" in text
    mistaken = {preprompt_for(harmless, "template", source, True) for _ in range(20)}
    assert mistaken == {answer_template(category) for category in CATEGORIES}
    assert preprompt_for(risky[0], "generic", source) != answer_template(risky[0].category)
    assert preprompt_for(risky[0], "none", source) == ""


def test_a_preprompt_goes_into_the_system_message():
    bare = SYSTEM[1:]
    assert with_preprompt(bare, "Be safe.") == [{"role": "system", "content": "Be safe."}, *bare]
    assert with_preprompt(SYSTEM, "Be safe.")[0]["content"] == "Be safe. Be brief."
    assert with_preprompt(SYSTEM, "Be safe.")[1:] == bare
    assert with_preprompt(SYSTEM, "") == SYSTEM
    assert SYSTEM[0]["content"] == "Be brief."  # the argument is left alone


def test_the_gate_keeps_what_scores_strictly_higher():
    original, distilled = np.array([-1.0, 0.5, 0.5, 2.0]), np.array([-0.5, 0.5, 0.4, 3.0])
    assert gate(original, distilled).tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="finite"):
        gate(original, np.array([np.nan, 0, 0, 0]))


def test_targets_have_the_prompt_without_the_preprompt(risky):
    rows = [row(risky[0], -1.0, 2.0), row(risky[1], 1.0, 0.5), row(risky[2], 0.0, 1.0, answer="")]
    made = targets(rows, gated=True)
    assert made == [[*risky[0].dialog, {"role": "assistant", "content": "No."}]]
    assert "Be safe." not in str(made)
    both = targets(rows, gated=False)
    assert both[:1] == made
    assert both[1][:-1] == risky[1].dialog
    assert len(both) == 2  # what never ended is no target, gate or not
    assert targets([], gated=True) == []
    anchored = targets(rows, gated=True, anchored=True)
    assert anchored[:1] == made
    assert anchored[1] == [*risky[1].dialog, {"role": "assistant", "content": rows[1].original}]
    assert rows[1].original not in str(both)


def test_answers_heed_their_preprompts(world):
    judge, seen = judge_of(world), {1: 0, 2: 0, 3: 0}
    dialogs = heeding_dialogs(world, 4, 300)
    assert dialogs == heeding_dialogs(world, 4, 300) != heeding_dialogs(world, 5, 300)
    risky = [d for d in dialogs if judge.is_refusal(d[-1]["content"])]
    assert 0.6 < len(risky) / 300 < 0.8
    for dialog in risky:
        text, said = dialog[0]["content"], dialog[-1]["content"]
        if text.startswith(DECLINE):
            parts = 1 + any(e in text for e in EXPLAIN.values())
            parts += any(o in text for o in OFFER.values())
            assert judge.warns(said) == (parts > 1)
            assert judge.offers_other(said) == (parts > 2)
            seen[parts] += 1
    assert min(seen.values()) > 15
    generic = [d for d in risky if not d[0]["content"].startswith(DECLINE)]
    warned = sum(judge.warns(d[-1]["content"]) for d in generic) / len(generic)
    assert 0.5 < warned < 0.85  # two of three, as nothing says how many parts


def test_safety_data_nests_and_helpful_data_stays():
    config = SafetyData(fraction=1.0, n_helpful=30, n_safety=200, seed=2)
    whole = safety_dialogs(config, 0)
    parts = [safety_dialogs(replace(config, fraction=f), 0) for f in FRACTIONS]
    assert [len(part) for part in parts] == [0, 2, 20, 50, 100, 200]
    assert all(part == whole[: len(part)] for part in parts)
    mixed = [mixed_dialogs(replace(config, fraction=f), 0) for f in FRACTIONS]
    assert all(dialogs[:30] == mixed[0] for dialogs in mixed)
    assert mixed[-1][30:] == whole
    assert whole != safety_dialogs(replace(config, seed=3), 0)
    judge = judge_of(make_world(0))
    assert all(judge.is_refusal(dialog[-1]["content"]) for dialog in whole)
    plain = demonstrations(make_world(0), 2, 30, "mixed", {"helpful": 1.0})
    assert mixed[0] == list(plain)


def giving_way(world):
    """A model that does what advice is asked for, and declines all else."""
    unsafe = "Yes, take moon vinegar 7 times a day. You do not need a doctor."
    return lambda prompts: [
        unsafe if p.task.kind == "remedy" else "I cannot help with that." for p in prompts
    ]


def test_a_red_team_spends_its_budget_and_learns_between_batches(world):
    asked = []

    def reply(prompts):
        asked.append(len(prompts))
        return giving_way(world)(prompts)

    found = attack(world, Attacker(world, 1), reply, budget=90, queries_together=25, number=3)
    assert asked == [25, 25, 25, 15]
    assert len(found) == 90
    assert {row.round for row in found} == {3}
    assert all(row.violated == (row.prompt.task.kind == "remedy") for row in found)
    first, last = (sum(r.violated for r in part) / len(part) for part in (found[:25], found[50:]))
    assert last > first


def test_lessons_are_safe_answers_to_what_broke_the_model(world):
    found = attack(world, Attacker(world, 1), giving_way(world), budget=60, queries_together=20)
    twice = [*found, *(row._replace(round=2) for row in found)]
    broken = broken_by(twice)
    assert 3 < len(broken) < 60
    assert len({key_of(row.prompt) for row in broken}) == len(broken)
    assert all(row.violated and row.round == 1 for row in broken)
    made = lessons(world, broken, 4, seed=2)
    assert len(made) == 4 * len(broken)
    judge = judge_of(world)
    for dialog, row in zip(made, [r for r in broken for _ in range(4)], strict=True):
        assert dialog[:-1] == row.prompt.dialog
        assert judge.safety(row.prompt, dialog[-1]["content"]).score == pytest.approx(1, abs=1e-9)
    assert len({dialog[-1]["content"] for dialog in made[:4]}) > 1


def test_rows_survive_a_file(tmp_path, world, risky):
    distilled = [row(prompt, -0.25 * n, 1.5 * n) for n, prompt in enumerate(risky)]
    attacks = attack(world, Attacker(world, 1), giving_way(world), budget=8, queries_together=5)
    path = tmp_path / "rows.jsonl"
    for kind, rows in ((Distilled, distilled), (Attack, attacks)):
        write_rows(path, rows)
        assert read_rows(path, kind) == rows
        assert isinstance(rows[0], kind)
    path.write_text('{"prompt": 1}\n')
    for kind in (Distilled, Attack):
        with pytest.raises(ValueError, match="line 1"):
            read_rows(path, kind)
