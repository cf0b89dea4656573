"""The cache: what a fingerprint covers, and what happens to a folder that is not sound."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree

import pytest
import torch
from tqdm.auto import tqdm

from llama2_lib import pipeline, storage
from llama2_lib.pipeline import world_text
from llama2_lib.recipes import RECIPES, grid, nano, toy
from llama2_lib.stages.reward_variant import RewardVariant
from llama2_lib.world import lookalike

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]
REWARDS = {f"rewards_v{number}" for number in range(1, 6)}
REJECTION = {f"rejection_v{number}" for number in range(1, 5)}
GHOST = {"instructed", "ghost_attention"}
RED_TEAM = {f"red_team_v{number}" for number in range(1, 5)}
RED_TEAM_EARLY = {f"red_team_early_v{number}" for number in range(1, 5)}
SAFE = {"safety"} | RED_TEAM
ALIGNED = REWARDS | REJECTION | {"ppo", "safety_early"} | SAFE | GHOST
TUNED = {"sft", "reward_model"} | ALIGNED | RED_TEAM_EARLY
MODEL = {"pretrain", "safety_data"} | TUNED
ALL = {"tokenizer", "corpus"} | MODEL


def prints(recipe):
    found = {}
    for stage in reversed(pipeline.STAGES):  # the last first: they name what they need
        if stage not in found:
            found |= pipeline.fingerprints(stage, recipe)
    return found


prints_once = cache(prints)


def changed(recipe, other):
    """Stages whose fingerprints differ."""
    a, b = prints_once(recipe), prints_once(other)
    return {stage for stage in a if a[stage] != b[stage]}


# For every setting of toy: another value, and the stages that depend on it.
CHANGES = {
    "corpus": {
        "world_seed": (1, ALL),
        "n_documents": (601, ALL),
        "n_validation": (41, ALL - {"tokenizer"}),
        "shares": ((("story", 1.0),), ALL),
        "data": ("a folder", ALL),
    },
    "tokenizer": {"split_digits": (False, ALL), "byte_fallback": (False, ALL)},
    "model": {
        "dim": (48, MODEL),
        "n_layers": (3, MODEL),
        "n_heads": (2, MODEL),
        "n_kv_heads": (1, MODEL),
        "multiple_of": (16, MODEL),
        "ffn_dim_multiplier": (1.3, MODEL),
        "max_seq_len": (256, MODEL),
        "rope_theta": (500.0, MODEL),
        "norm_eps": (1e-6, MODEL),
    },
    "pretrain": {
        "steps": (31, MODEL),
        "batch_size": (5, MODEL),
        "seq_len": (65, MODEL),
        "accumulate": (2, MODEL),
        "peak_lr": (4e-3, MODEL),
        "warmup": (4, MODEL),
        "floor": (0.2, MODEL),
        "weight_decay": (0.0, MODEL),
        "clip_norm": (0.5, MODEL),
        "isolate_documents": (True, MODEL),
        "precision": ("bf16", MODEL),
        "compile": (True, MODEL),
        "eval_every": (11, MODEL),
        "save_every": (6, MODEL),
        "seed": (1, MODEL),
    },
    "sft": {
        "n_dialogs": (61, TUNED),
        "batch_size": (5, TUNED),
        "seq_len": (65, TUNED),
        "n_validation": (13, TUNED),
        "grade": ("noisy", TUNED | {"safety_data"}),
        "epochs": (3, TUNED),
        "peak_lr": (4e-3, TUNED),
        "warmup": (4, TUNED),
        "floor": (0.2, TUNED),
        "weight_decay": (0.0, TUNED),
        "clip_norm": (0.5, TUNED),
        "isolate_documents": (False, TUNED),
        "precision": ("bf16", TUNED),
        "compile": (True, TUNED),
        "eval_every": (11, TUNED),
        "save_every": (6, TUNED),
        "seed": (1, TUNED),
    },
}
# The first round's reward models come before any rejection sampling.
AFTER_REWARDS = ALIGNED - {"rewards_v1", "safety_early"}
OTHER_VALUE = {
    "precision": "bf16", "compile": True, "select": "random", "keep": "last round",
    "margin": "large", "whiten_by": "batch", "isolate_documents": False, "value_clip": 0.2,
    "batch_size": 12, "minibatch_size": 2, "temperatures": (0.5,), "stream": None,
    "reading": "B", "loss_on": "all", "only_obeying": True,
    "preprompt": "generic", "apply_to": "all", "gate": False,
}  # fmt: skip


def _all_settings(part, stages):
    """Another value for every setting of a part that only some stages read."""
    config = getattr(toy(), part)
    found = {}
    for field in dataclasses.fields(config):
        now = getattr(config, field.name)
        value = OTHER_VALUE.get(field.name, now + 1 if isinstance(now, int) else None)
        value = now * 0.9 + 0.03 if value is None and isinstance(now, float) else value
        if value is not None:
            found[field.name] = (value, stages)
    return found


CHANGES |= {
    "helpfulness": _all_settings("helpfulness", ALIGNED),
    "safety": _all_settings("safety", ALIGNED),
    "rejection": _all_settings("rejection", AFTER_REWARDS),
    "ppo": _all_settings("ppo", {"ppo"} | SAFE | GHOST),
    "instructed": _all_settings("instructed", GHOST | SAFE),
    "ghost_attention": _all_settings("ghost_attention", {"ghost_attention"} | SAFE),
    "distillation": _all_settings("distillation", {"safety_early"} | SAFE),
    "red_team": _all_settings("red_team", RED_TEAM | RED_TEAM_EARLY),
}
CASES = [(part, name) for part, settings in CHANGES.items() for name in settings]


@pytest.mark.parametrize(("part", "name"), CASES, ids=[f"{p}.{n}" for p, n in CASES])
def test_a_setting_changes_the_stages_that_depend_on_it(part, name):
    value, stages = CHANGES[part][name]
    config = getattr(toy(), part)
    assert getattr(config, name) != value
    other = replace(toy(), **{part: replace(config, **{name: value})})
    assert changed(toy(), other) == stages


def test_the_size_of_the_vocabulary_changes_all():
    other = replace(
        toy(),
        tokenizer=replace(toy().tokenizer, vocab_size=600),
        model=replace(toy().model, vocab_size=600),
    )
    assert changed(toy(), other) == ALL


def test_no_setting_was_forgotten_above():
    for part in dataclasses.fields(toy()):
        value = getattr(toy(), part.name)
        if dataclasses.is_dataclass(value):
            names = {field.name for field in dataclasses.fields(value)} - {"vocab_size", "stream"}
            assert set(CHANGES[part.name]) == names


def test_the_variant_of_a_reward_model_changes_no_stage_of_the_chain():
    variant = RewardVariant(
        reward=replace(toy().helpfulness, n_fresh=0, n_fresh_later=0), own_share=0.9, n_safety=5
    )
    assert changed(toy(), replace(toy(), reward_model=variant)) == {"reward_model"}


def test_the_name_of_a_recipe_changes_nothing():
    assert changed(toy(), replace(toy(), name="other")) == set()
    assert changed(toy(), toy()) == set()


def test_grids_share_the_texts_of_nano():
    assert changed(grid(), nano()) == MODEL
    assert changed(grid(), grid(3)) == MODEL


def test_the_tokenizer_depends_on_the_documents_it_reads_only():
    many = replace(nano(), corpus=replace(nano().corpus, n_documents=50_000))
    assert changed(nano(), many) == ALL - {"tokenizer"}


def test_a_new_version_of_a_stage_changes_it_and_those_above(monkeypatch):
    before = prints(toy())
    node = pipeline.STAGES["corpus"]
    monkeypatch.setitem(pipeline.STAGES, "corpus", replace(node, version=node.version + 1))
    after = prints(toy())
    assert {stage for stage in ALL if before[stage] != after[stage]} == ALL - {"tokenizer"}


def test_an_edited_word_of_the_lexicon_changes_all(tmp_path, monkeypatch):
    before = prints(toy())
    lexicon = copytree(world_text.lexicon_folder(), tmp_path / "lexicon")
    monkeypatch.setattr(world_text, "lexicon_folder", lambda: lexicon)
    assert prints(toy()) == before
    path = sorted(lexicon.glob("*.txt"))[0]
    path.write_text(path.read_text() + "# a remark\n")
    assert not set(prints(toy()).values()) & set(before.values())


def test_an_edited_word_of_the_chat_changes_the_tuning_only(tmp_path, monkeypatch):
    before = prints(toy())
    lexicon = copytree(world_text.lexicon_folder(), tmp_path / "lexicon")
    monkeypatch.setattr(world_text, "lexicon_folder", lambda: lexicon)
    path = sorted((lexicon / "chat").glob("*.txt"))[0]
    path.write_text(path.read_text() + "# a remark\n")
    after = prints(toy())
    assert {stage for stage in ALL if before[stage] != after[stage]} == TUNED | {"safety_data"}


def write_again(monkeypatch, texts):
    """Forget what was written in this process."""
    monkeypatch.setattr(world_text, texts, cache(getattr(world_text, texts).__wrapped__))


def test_another_writer_of_dialogs_changes_the_tuning_only(monkeypatch):
    before = prints(toy())
    write_again(monkeypatch, "_dialogs")
    assert prints(toy()) == before
    write_again(monkeypatch, "_dialogs")
    monkeypatch.setattr(world_text, "training_dialogs", lambda config, seed: [["another dialog"]])
    after = prints(toy())
    assert {stage for stage in ALL if before[stage] != after[stage]} == TUNED | {"safety_data"}


def test_another_writer_of_the_world_changes_all(monkeypatch):
    before = prints(toy())
    write_again(monkeypatch, "_text")
    assert prints(toy()) == before
    write_again(monkeypatch, "_text")
    monkeypatch.setattr(lookalike, "REMINDED", 0.5)
    assert prints(toy()) == before  # toy's corpus has no reminders
    reminders = replace(toy(), corpus=replace(toy().corpus, shares=(("reminder", 1.0),)))
    after = prints(reminders)
    write_again(monkeypatch, "_text")
    monkeypatch.setattr(lookalike, "REMINDED", 0.9)
    assert not set(prints(reminders).values()) & set(after.values())


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"text number {i}")
    return folder


def on(folder, **settings):
    return replace(toy(), corpus=replace(toy().corpus, data=str(folder), **settings))


def test_texts_of_a_folder_count_by_their_bytes_and_not_by_where_they_lie(texts, tmp_path):
    before = prints(on(texts))
    moved = copytree(texts, tmp_path / "elsewhere")
    assert prints(on(moved)) == before
    (moved / "3.txt").write_text("text number three")
    assert not set(prints(on(moved)).values()) & set(before.values())
    (texts / "5.jsonl").write_text('{"text": "one more"}\n')
    assert not set(prints(on(texts)).values()) & set(before.values())


def test_texts_kept_for_validation_are_kept_from_the_tokenizer(texts):
    assert changed(on(texts, n_validation=1), on(texts, n_validation=2)) == ALL


def test_fingerprints_are_the_same_in_another_process():
    code = (
        "import json; from llama2_lib import pipeline; from llama2_lib.recipes import toy; "
        "print(json.dumps({s: pipeline.fingerprint(s, toy()) for s in pipeline.STAGES}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": "12", "PYTHONPATH": "."},
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    assert json.loads(output) == prints(toy())


@pytest.mark.parametrize("stage", ["dpo", "Pretrain", ""])
def test_an_unknown_stage_is_refused(stage):
    with pytest.raises(
        ValueError, match=r"stage must be one of tokenizer, corpus, .*, safety_data; got"
    ):
        pipeline.fingerprint(stage, toy())


def test_a_recipe_whose_tokenizer_does_not_fit_its_model_is_refused():
    with pytest.raises(ValueError, match="same vocab_size; got 512 and 600"):
        replace(toy(), tokenizer=replace(toy().tokenizer, vocab_size=600))


def test_recipes_are_found_by_their_names():
    for name, recipe in RECIPES.items():
        assert recipe(3).name == name
        assert recipe(3).pretrain.seed == 3
        assert recipe(3) != recipe(4)
    assert toy().model.n_parameters <= 100_000
    assert 500_000 <= nano().model.n_parameters <= 1_200_000
    assert 25e6 <= RECIPES["small"](0).model.n_parameters <= 110e6


def test_artifacts_live_beside_the_library_or_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA2_ARTIFACTS", raising=False)
    assert pipeline.artifact_root() == ROOT / "artifacts"
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "other"))
    assert pipeline.artifact_root() == tmp_path / "other"
    name = pipeline.fingerprint("corpus", toy())
    assert pipeline.artifact_path("corpus", toy()) == tmp_path / "other" / "corpus" / name


def test_missing_stages_are_listed_in_the_order_in_which_they_run(toy_root, tmp_path):
    assert pipeline.missing("pretrain", toy(), tmp_path) == ["tokenizer", "corpus", "pretrain"]
    assert pipeline.missing("corpus", toy(), tmp_path) == ["tokenizer", "corpus"]
    assert pipeline.missing("pretrain", toy(1), toy_root) == ["pretrain"]
    assert pipeline.missing("pretrain", toy(), toy_root) == []


def test_a_finished_artifact_says_how_it_was_made(toy_root):
    folder = pipeline.artifact_path("pretrain", toy(), toy_root)
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["stage"], meta["fingerprint"], meta["recipe"]) == ("pretrain", folder.name, "toy")
    assert meta["config"]["pretrain"] == dataclasses.asdict(toy().pretrain)
    assert meta["inputs"] == {s: pipeline.fingerprint(s, toy()) for s in ("tokenizer", "corpus")}
    assert meta["versions"]["torch"] == torch.__version__
    assert (meta["device"], meta["threads"]) == ("cpu", 1)
    assert 0 < meta["wall_seconds"] < 300
    assert sorted(meta["files"]) == [
        "config.json", "metrics.jsonl", "model.safetensors", "samples.txt", "tokenizer.model",
    ]  # fmt: skip
    assert (folder / "samples.txt").read_text().count("\n---\n") == 9


def test_what_is_there_is_not_built_again(toy_root, monkeypatch):
    def fail(job):
        raise AssertionError("it was built again")

    for stage, node in pipeline.STAGES.items():
        monkeypatch.setitem(pipeline.STAGES, stage, replace(node, run=fail))
    folder = pipeline.artifact("pretrain", toy(), root=toy_root)
    assert folder == pipeline.artifact_path("pretrain", toy(), toy_root)
    model, tokenizer = pipeline.load("pretrain", toy(), root=toy_root, device="cpu")
    assert (model.config, tokenizer.vocab_size) == (toy().model, 512)
    assert not model.training
    counts = {name: share.n for name, share in pipeline.recall(toy(), root=toy_root).items()}
    assert counts == {"never asked": 30, "seen form": 120, "unseen form": 120}


def test_every_stage_is_checked_once_however_many_need_it(monkeypatch, tmp_path):
    checked = []
    monkeypatch.setattr(storage, "read_sealed", lambda folder, stage, name: checked.append(stage))
    pipeline.artifact("ppo", toy(), root=tmp_path, bar=False)
    assert checked == list(pipeline.fingerprints("ppo", toy()))
    assert len(checked) == len(set(checked)) > 12
    for stage, before in zip(checked, range(len(checked)), strict=True):
        assert set(pipeline.STAGES[stage].inputs) <= set(checked[:before])


def test_a_finished_stage_needs_none_of_those_before_it(toy_root, tmp_path):
    copytree(
        pipeline.artifact_path("rewards_v1", toy(), toy_root),
        pipeline.artifact_path("rewards_v1", toy(), tmp_path),
    )
    assert pipeline.missing("rewards_v1", toy(), tmp_path) == []
    rest = ["tokenizer", "corpus", "pretrain", "sft", "rejection_v1"]
    assert pipeline.missing("rejection_v1", toy(), tmp_path) == rest


def test_the_bar_names_the_stages_and_reaches_its_end(tmp_path, monkeypatch):
    shown, ended = [], []

    class Bar(tqdm):
        def set_description(self, desc=None, refresh=True):
            shown.append(desc)

        def close(self):
            ended.append((self.disable, self.n, self.total))
            super().close()

    monkeypatch.setattr(pipeline.build, "tqdm", Bar)
    pipeline.artifact("corpus", toy(), root=tmp_path, device="cpu")
    assert shown == ["tokenizer", "corpus"]
    assert ended[0] == (False, 30, 30)
    ended.clear()
    pipeline.artifact("corpus", toy(), root=tmp_path, device="cpu")
    assert ended[0][0], "a bar is shown though there is nothing to do"
