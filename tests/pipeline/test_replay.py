"""A replay finds nothing where nothing has changed, and what a fingerprint cannot see elsewhere."""

import json
from dataclasses import replace
from shutil import copytree

import pytest
import torch

from llama2_lib import pipeline, storage
from llama2_lib.model import chat
from llama2_lib.objectives import rlhf
from llama2_lib.pipeline.replay import NEAR, Replayed, replay
from llama2_lib.recipes import toy
from llama2_lib.stages import fit, ppo, pretrain, reward, sft
from llama2_lib.training.batches import PackedDialogs

CHAIN = list(pipeline.released_stages(toy()))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("stage", CHAIN)
def test_an_unchanged_stage_comes_out_exactly_as_it_did(toy_root, stage):
    found = replay(stage, toy(), root=toy_root)
    assert found.exact
    assert found.differences() == []
    assert found.numbers or stage in ("tokenizer", "corpus"), "a log was compared"
    if stage.startswith(("rejection", "rewards", "red_team", "safety", "ghost")):
        assert any(name.endswith(".jsonl.gz") for name in found.lines), "samples were compared"


def all_targets(ids, mask):
    return fit_targets(ids, torch.arange(mask.shape[1]).expand(mask.shape) > 0)


def decayed_gains(model, **options):
    optimizer = fit_adamw(model, **options)
    for group in optimizer.param_groups:
        group["weight_decay"] = options["weight_decay"]
    return optimizer


def other_seed(*args, seed, **options):
    return PackedDialogs(*args, seed=seed + 1, **options)


def doubled(loss):
    return lambda *args, **options: loss(*args, **options)._replace(
        total=2 * loss(*args, **options).total
    )


def without_margin(chosen, rejected, margin=None):
    return ranking_loss(chosen, rejected)


def a_token_late(logits, ids):
    return next_token_loss(logits[:, :-1], ids[:, 1:])


def forgetful(*args, **options):
    return rlhf.gae(*args, **options | {"lam": 0.9})


def cooler(*args, temperature, **options):
    return generate(*args, temperature=0.9 * temperature, **options)


fit_targets, fit_adamw, generate = fit.targets_of, fit.adamw, chat.generate
ranking_loss, next_token_loss = reward.ranking_loss, pretrain.next_token_loss
PLANTED = {
    "loss of another token": ("pretrain", pretrain, "next_token_loss", a_token_late),
    "loss twice as large": ("ppo", ppo, "ppo_policy_loss", doubled(rlhf.ppo_policy_loss)),
    "mask of everything": ("sft", fit, "targets_of", all_targets),
    "margin left out": ("rewards_v1", reward, "ranking_loss", without_margin),
    "sampler cooler": ("rejection_v1", chat, "generate", cooler),
    "gains decay": ("pretrain", fit, "adamw", decayed_gains),
    "batches in another order": ("sft", sft, "PackedDialogs", other_seed),
    "advantages of another lambda": ("ppo", ppo, "gae", forgetful),
}
"""What is changed, and by which stage it is found."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_change_is_found(toy_root, monkeypatch, name):
    stage, module, attribute, wrong = PLANTED[name]
    monkeypatch.setattr(module, attribute, wrong)
    assert pipeline.artifact_path(stage, toy(), toy_root).is_dir(), "no fingerprint has moved"
    found = replay(stage, toy(), root=toy_root)
    assert found.differences() != []
    elsewhere = replace(found, exact=False).differences()
    # A weight that decays a little too much is seen in the bits alone.
    assert bool(elsewhere) == (name != "gains decay"), f"{found.largest}"


def test_a_changed_log_is_found_by_row_and_name(toy_root, tmp_path):
    root = copytree(toy_root, tmp_path / "root")
    folder = pipeline.artifact_path("sft", toy(), root)
    rows = storage.read_metrics(folder / "metrics.jsonl")
    first = next(number for number, row in enumerate(rows) if "loss" in row)
    rows[first]["loss"] *= 1 + 2 * NEAR
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage.seal(folder, json.loads((folder / storage.META).read_text()))
    found = replay("sft", toy(), root=root)
    assert found.largest == pytest.approx(2 * NEAR / (1 + 2 * NEAR), rel=0.01)
    [difference] = found.differences()
    assert difference.startswith(f"sft: metrics.jsonl, row {first}, loss is ")
    assert replace(found, exact=False).differences() == [difference]


def test_bands_elsewhere():
    row = {"loss": (1.001, 1.0001), "count": (99.0, 98.0), "gap": (0.0015, 0.0009)}
    near = Replayed("sft", 1.0, False, row, {"pool.jsonl": (95, 100)})
    assert near.differences() == []
    assert replace(near, exact=True).differences() == [
        "sft: loss is 1.001; it was 1.0001",
        "sft: count is 99; it was 98",
        "sft: gap is 0.0015; it was 0.0009",
        "sft: 95 of 100 lines of pool.jsonl are as they were",
    ]
    whole = replace(near, lines={"pool.jsonl": (100, 100)})
    for far in ({"loss": (1.003, 1.0001)}, {"loss": (float("nan"), 1.5)}, {"count": (101.0, 98.0)}):
        assert len(replace(whole, numbers=far).differences()) == 1
    ties = {"count": (99.0, 98.0), "row 0, validation_accuracy": (0.534, 0.5437)}
    assert replace(whole, numbers=ties).differences() == []
    # where one sample fell the other way, numbers may be further apart, but not any number
    assert replace(near, numbers={"loss": (1.03, 1.0)}).differences() == []
    for far in ({"loss": (1.11, 1.0)}, {"loss": (float("nan"), 1.0)}):
        assert len(replace(near, numbers=far).differences()) == 1
    assert len(replace(near, lines={"pool.jsonl": (89, 100)}).differences()) == 1
