"""The stages of safety tuning on the toy chain: what they leave, how they go on."""

from dataclasses import replace
from shutil import copytree, rmtree

import pytest

from llama2_lib import pipeline
from llama2_lib.config import SafetyData
from llama2_lib.model.chat import scored_row, scores
from llama2_lib.recipes import toy
from llama2_lib.stages import red_team
from llama2_lib.stages.job import Job
from llama2_lib.stages.red_team import Attack, round_summary
from llama2_lib.stages.rehearsal import demonstrated, remembered
from llama2_lib.stages.reward import load_rewards
from llama2_lib.stages.safety import (
    distillation_prompts,
    distilled_rows,
    every_preprompt,
    longest_prompt,
    rehearsed,
    targets,
    with_preprompt,
)
from llama2_lib.storage import read_metrics, read_rows
from llama2_lib.text.dialog import encode_prompt
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.world.attackers import key_of

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "model.safetensors"


def build(root, stage, recipe):
    return pipeline.artifact(stage, recipe, device="cpu", root=root, bar=False)


@pytest.fixture
def root(toy_root, tmp_path):
    """A copy of the chain up to Ghost Attention, to build in or to break."""
    root = copytree(toy_root, tmp_path / "root")
    for folder in (root / "safety", *root.glob("red_team_v*")):
        rmtree(folder)
    return root


@pytest.fixture(scope="session")
def distilled(toy_root):
    """The finished stage `safety` of toy."""
    return pipeline.artifact_path("safety", toy(), toy_root)


def recipe_with(**changes):
    return replace(toy(), distillation=replace(toy().distillation, **changes))


def job_of(root, recipe, stage="safety"):
    inputs = {
        name: pipeline.artifact_path(name, recipe, root) for name in pipeline.STAGES[stage].inputs
    }
    return Job(recipe, root, inputs, pipeline.build.choose_device("cpu"), lambda done, words: None)


def test_both_answers_are_scored_without_the_preprompt(distilled, toy_root):
    rows = distilled_rows(distilled)
    tok = load_tokenizer(distilled)
    judge = load_rewards(pipeline.artifact_path("rewards_v5", toy(), toy_root)).safety
    assert len(rows) == toy().distillation.n_prompts == 12
    assert all(row.prompt.kind == "adversarial" for row in rows)
    assert all(row.preprompt in every_preprompt() for row in rows)
    plain = [scored_row(row.prompt.dialog, row.original, tok, 128) for row in rows]
    assert [row.original_score for row in rows] == pytest.approx(
        scores(judge, plain).tolist(), abs=1e-4
    )
    behind = [
        scored_row(with_preprompt(row.prompt.dialog, row.preprompt), row.original, tok, 128)
        for row in rows
    ]
    assert max(abs(a - b.original_score) for a, b in zip(scores(judge, behind), rows)) > 1e-3  # noqa: B905
    first = read_metrics(distilled / "metrics.jsonl")[0]
    assert first["kept"] == len(targets(rows, gated=True))
    assert first["prompts"] == 12


def test_the_teacher_is_thrown_away_and_the_model_is_new(distilled, toy_root):
    names = {path.name for path in distilled.iterdir()}
    assert "teacher" not in names
    assert {WEIGHTS, "config.json", "tokenizer.model", "samples.txt", "distilled.jsonl.gz"} <= names
    before = pipeline.artifact_path("ppo", toy(), toy_root) / WEIGHTS
    assert (distilled / WEIGHTS).read_bytes() != before.read_bytes()


def test_a_killed_run_goes_on_without_asking_again(distilled, root, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llama2_lib.stages.safety.fine_tune", killed)
        with pytest.raises(KeyboardInterrupt):
            build(root, "safety", toy())
    monkeypatch.setattr("llama2_lib.stages.safety.distilled", None)  # must not be called
    again = build(root, "safety", toy())
    assert again.name == distilled.name
    for name in (WEIGHTS, "distilled.jsonl.gz", "samples.txt"):
        assert (again / name).read_bytes() == (distilled / name).read_bytes()


def test_without_a_preprompt_the_model_learns_its_own_answers(root, monkeypatch):
    monkeypatch.setattr("llama2_lib.stages.safety.teacher", None)  # must not be called
    made = build(root, "safety_early", recipe_with(preprompt="none", gate=False))
    rows = distilled_rows(made)
    assert all(row.preprompt == "" and row.answer_score == row.again_score for row in rows)
    assert all(row.answer in ("", row.again) for row in rows)
    assert any(row.original != row.again for row in rows)


def test_prompts_leave_room_for_every_preprompt(toy_root):
    tok = load_tokenizer(pipeline.artifact_path("tokenizer", toy(), toy_root))
    recipe = recipe_with(apply_to="all")
    asked = distillation_prompts(recipe, tok)
    assert [prompt.is_safety for prompt in asked] == [True] * 12 + [False] * 12
    assert distillation_prompts(toy(), tok) == asked[:12]
    assert distillation_prompts(recipe_with(apply_to="all as risky"), tok) == asked
    room = 128 - recipe.distillation.max_new_tokens
    lengths = [
        len(encode_prompt(with_preprompt(prompt.dialog, text), tok))
        for prompt in asked
        for text in every_preprompt()
    ]
    assert max(lengths) <= room
    assert longest_prompt(recipe, tok) < room


def test_the_end_of_the_chain_rehearses_four_things_and_a_fine_tuned_model_one(toy_root):
    job = job_of(toy_root, toy())
    amounts = {"n_replay": 4, "n_demonstrations": 3, "n_ghosts": 2}
    config, model = toy().distillation, job.model("ghost_attention")

    def words(ghosts):
        made = rehearsed(job, model, ghosts, config, 0, **amounts)
        return [job.tokenizer.decode(ids) for ids, _ in made]

    at_the_end, early = words("ghost_attention"), words(None)
    own = remembered(job, model, 4, 0, config.max_new_tokens)
    assert at_the_end[: len(own)] == [job.tokenizer.decode(ids) for ids, _ in own]
    assert len(at_the_end) == len(own) + 3 + 2
    assert len(early) == 4 + 3
    helpful = demonstrated(job, 7, 0, {"helpful": 1.0})
    assert early == [job.tokenizer.decode(ids) for ids, _ in helpful]


def half_broken(world, attacker, reply, *, budget, queries_together, number=1):
    """A red team whose every second query violates; toy itself says nothing that could."""
    asked = attacker.propose(budget)
    texts = reply(asked)
    return [
        Attack(prompt, text, index % 2 == 0, number)
        for index, (prompt, text) in enumerate(zip(asked, texts, strict=True))
    ]


@pytest.mark.slow
def test_rounds_keep_all_attacks_and_learn_from_those_that_broke(root, monkeypatch):
    monkeypatch.setattr("llama2_lib.stages.red_team.attack", half_broken)
    first, second = (build(root, f"red_team_early_v{n}", toy()) for n in (1, 2))
    budget = toy().red_team.budget
    attacks = [read_rows(folder / "attacks.jsonl.gz", Attack) for folder in (first, second)]
    assert [len(found) for found in attacks] == [budget, 2 * budget]
    assert attacks[1][:budget] == attacks[0]
    assert {row.round for row in attacks[1]} == {1, 2}
    keys = [{key_of(row.prompt) for row in attacks[1] if row.round == n} for n in (1, 2)]
    assert keys[0] != keys[1]  # other attackers
    summary = round_summary(second)
    assert (summary["queries"], summary["violating"]) == (budget, budget // 2)
    assert summary["old attacks"] == len({key_of(row.prompt) for row in attacks[1] if row.violated})
    assert summary["fresh attacks"] == budget // 2 < summary["old attacks"]
    assert 0 <= summary["fixed fresh, old model"] <= summary["fresh attacks"]
    assert 0 <= summary["fixed, new model"] <= summary["old attacks"]
    lessons = read_metrics(second / "metrics.jsonl")[0]["lessons"]
    assert lessons == toy().red_team.n_lessons * summary["old attacks"]
    assert (first / WEIGHTS).read_bytes() != (second / WEIGHTS).read_bytes()


def test_a_round_that_finds_nothing_changes_no_weight(root):
    made = build(root, "red_team_early_v1", toy())
    assert round_summary(made)["violating"] == 0
    before = pipeline.artifact_path("sft", toy(), root) / WEIGHTS
    assert (made / WEIGHTS).read_bytes() == before.read_bytes()
    assert read_metrics(made / "metrics.jsonl") == [{"step": 0, "lessons": 0}]


def test_the_same_attack_meets_other_luck_at_every_call(toy_root):
    recipe = toy()
    model, tok = pipeline.load("sft", recipe, device="cpu", root=toy_root, bar=False)
    asked = red_team.attacker(recipe, tok, 1).propose(4)
    reply = red_team.replier(model, tok, recipe.red_team, 1)
    first, second = reply(asked), reply(asked)
    assert first != second
    assert red_team.replier(model, tok, recipe.red_team, 1)(asked) == first


def test_a_part_of_the_safety_data_is_trained_on(root):
    with pytest.raises(ValueError, match="needs a variant"):
        build(root, "safety_data", toy())
    data = SafetyData(fraction=0.5, n_helpful=30, n_safety=20)
    made = build(root, "safety_data", replace(toy(), safety_data=data))
    counts = read_metrics(made / "metrics.jsonl")[0]
    assert counts["dialogs"] + counts["dropped"] == 40
    half = replace(toy(), safety_data=replace(data, fraction=0.25))
    assert pipeline.artifact_path("safety_data", half, root) != made
