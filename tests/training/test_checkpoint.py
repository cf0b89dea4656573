"""A checkpoint is there whole or not at all, and restores every bit."""

import copy
import dataclasses
import json
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama2_lib import storage
from llama2_lib.training import checkpoint
from llama2_lib.training.checkpoint import (
    checkpoints,
    clear_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from llama2_lib.training.optim import adamw


@pytest.fixture
def trained(random_model):
    """Return a function that makes a model and optimiser after a few steps."""

    def make(seed=0, steps=2):
        model = random_model(seed, dtype=torch.float32)
        optimizer = adamw(model)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        for step in range(steps):
            for p in model.parameters():
                p.grad = (p.detach() + step).sin()
            optimizer.step()
        return model, optimizer

    return make


def state(model, optimizer):
    moments = optimizer.state_dict()["state"]
    kept = {(index, name): t for index, values in moments.items() for name, t in values.items()}
    return model.state_dict() | kept


def same(a, b):
    one, other = state(*a), state(*b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_weights_and_optimiser_come_back_bit_for_bit(tmp_path, trained):
    before, other = trained(), trained(seed=1, steps=3)
    assert not same(other, before)
    save_checkpoint(tmp_path, 17, *before)
    assert load_checkpoint(tmp_path, *other) == 17
    assert same(other, before)
    for p, q in zip(before[0].parameters(), other[0].parameters(), strict=True):
        p.grad, q.grad = p.detach().cos(), q.detach().cos()
    for _, optimizer in (before, other):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.03
        optimizer.step()
    assert same(other, before), "the next step differs"


def test_without_a_checkpoint_a_run_starts_at_nought(tmp_path, trained):
    before, model = trained(), trained()
    assert load_checkpoint(tmp_path, *model) == 0
    assert load_checkpoint(tmp_path / "absent", *model) == 0
    assert same(model, before)


def test_the_newest_is_kept_and_older_ones_go(tmp_path, trained):
    for step, seed in ((9, 1), (10, 2), (100, 3)):
        save_checkpoint(tmp_path, step, *trained(seed))
        assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:07d}"]
    model = trained()
    assert load_checkpoint(tmp_path, *model) == 100
    assert same(model, trained(3))


def test_saving_a_step_again_replaces_it(tmp_path, trained):
    save_checkpoint(tmp_path, 4, *trained(1))
    save_checkpoint(tmp_path, 4, *trained(2))
    model = trained()
    assert load_checkpoint(tmp_path, *model) == 4
    assert same(model, trained(2))


class CrashError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("place", ["save_file", "torch.save", "Path.rename"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_while_saving_leaves_the_old_checkpoint_or_the_new(
    tmp_path, trained, monkeypatch, place, when
):
    save_checkpoint(tmp_path, 1, *trained(1))
    owner = {"save_file": checkpoint, "torch.save": torch, "Path.rename": checkpoint.Path}[place]
    name = place.split(".")[-1]
    real = getattr(owner, name)

    def crash(*arguments, **options):
        if when == "after":
            real(*arguments, **options)
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        with pytest.raises(CrashError):
            save_checkpoint(tmp_path, 2, *trained(2))
    model = trained()
    renamed = (place, when) == ("Path.rename", "after")
    assert load_checkpoint(tmp_path, *model) == (2 if renamed else 1)
    assert same(model, trained(2 if renamed else 1))
    save_checkpoint(tmp_path, 3, *trained(3))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000003"]
    clear_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_clearing_leaves_other_files_alone(tmp_path, trained):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / ".step-0000003.4711").mkdir()
    save_checkpoint(tmp_path, 2, *trained())
    clear_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def spoiled(name, value):
    """Return a damage that changes one weight."""

    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {name: value}, folder / "model.safetensors")

    return damage


def cut(name, length):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


BYTES = "must have the sha256 in meta.json; its bytes differ"
DAMAGES = {
    "an optimiser of 0 bytes": (cut("optimizer.pt", 0), BYTES),
    "a cut optimiser": (cut("optimizer.pt", -700), BYTES),
    "no optimiser": (
        lambda folder: (folder / "optimizer.pt").unlink(),
        "must exist; it is missing",
    ),
    "text": (lambda folder: (folder / "optimizer.pt").write_text("<html>"), BYTES),
    "a list": (lambda folder: torch.save([1, 2], folder / "optimizer.pt"), BYTES),
    "an empty dict": (lambda folder: torch.save({}, folder / "optimizer.pt"), BYTES),
    "weights of 0 bytes": (cut("model.safetensors", 0), BYTES),
    "cut weights": (cut("model.safetensors", -700), BYTES),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "must exist; it is mis"),
    "another weight": (spoiled("head.weight", torch.ones(2)), BYTES),
    "a weight of another shape": (spoiled("norm.weight", torch.ones(3)), BYTES),
    "a weight that is not finite": (spoiled("norm.weight", torch.full((48,), torch.nan)), BYTES),
    "no seal": (lambda folder: (folder / "meta.json").unlink(), "must hold a readable meta.json"),
}


@pytest.mark.parametrize(
    ("damage", "older"),
    [*((damage, False) for damage in DAMAGES), ("text", True), ("cut weights", True)],
)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_touches_nothing(
    tmp_path, trained, capsys, damage, older
):
    spoil, message = DAMAGES[damage]
    spoil(save_checkpoint(tmp_path, 5, *trained()))
    if older:  # as when a run was killed before it dropped the one before
        (tmp_path / "step-0000005").rename(tmp_path / "later")
        save_checkpoint(tmp_path, 3, *trained(2))
        (tmp_path / "later").rename(tmp_path / "step-0000005")
    before, model = trained(1), trained(1)
    assert load_checkpoint(tmp_path, *model) == (3 if older else 0)
    assert same(model, trained(2) if older else before)
    said = capsys.readouterr().err
    assert message in said
    assert re.search(
        r"step-0000005\S* must .* Kept as \.step-0000005\.damaged-1; the run goes", said
    )
    assert said.count("\n") == 1, "one line, whatever the reason"
    assert load_checkpoint(tmp_path, *model) == (3 if older else 0)
    assert capsys.readouterr().err == "", "it is said once"
    save_checkpoint(tmp_path, 6, *model)
    clear_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_or_optimiser_is_not_taken(
    tmp_path, trained, random_model, config, capsys
):
    model, optimizer = trained()
    wide, deep = (
        random_model(dtype=torch.float32, config=dataclasses.replace(config, **change))
        for change in ({"multiple_of": 30}, {"n_layers": 4})
    )
    others = [
        (wide, adamw(wide)),
        (deep, adamw(deep)),
        ((half := trained()[0].bfloat16()), adamw(half)),
        (model, adamw(model, rates={"norm.": 2.0})),
        (model, torch.optim.SGD(model.parameters(), lr=0.1)),
    ]
    for number, other in enumerate(others, 1):
        save_checkpoint(tmp_path, 5, model, optimizer)
        before = [weight.clone() for weight in other[0].parameters()]
        assert load_checkpoint(tmp_path, *other) == 0
        assert "must be checkpoint/" in (said := capsys.readouterr().err)
        assert f"It was copied from elsewhere. Kept as .step-0000005.damaged-{number};" in said
        assert all(map(torch.equal, before, other[0].parameters()))


def test_files_are_on_the_disk_before_the_folder_has_its_name(tmp_path, trained, monkeypatch):
    synced = []
    monkeypatch.setattr(
        checkpoint.os, "fsync", lambda number: synced.append(os.fstat(number).st_ino)
    )
    rename = checkpoint.Path.rename

    def look(self, target):
        assert {path.stat().st_ino for path in self.iterdir()} <= set(synced)
        return rename(self, target)

    monkeypatch.setattr(checkpoint.Path, "rename", look)
    save_checkpoint(tmp_path, 5, *trained())
    assert len(synced) == 3


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_runs_when_an_optimiser_state_is_read(tmp_path, trained):
    folder = save_checkpoint(tmp_path, 5, *trained())
    state = copy.deepcopy(trained()[1].state_dict())
    state["trap"] = Trap(tmp_path / "sprung")
    torch.save(state, folder / "optimizer.pt")
    meta = json.loads((folder / "meta.json").read_text())
    storage.seal(folder, {name: meta[name] for name in ("stage", "fingerprint")})
    assert load_checkpoint(tmp_path, *trained()) == 0
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(state["trap"])).close()
    assert (tmp_path / "sprung").exists(), "the trap does not work: vacuous test"


@pytest.mark.parametrize("place", ["save_file", "torch.save"])
def test_a_full_disk_is_said_in_words(tmp_path, trained, monkeypatch, place):
    """Both writers raise errors of their own kind, which a caller cannot be asked to know."""
    from safetensors import SafetensorError

    errors = {"save_file": SafetensorError("I/O error"), "torch.save": RuntimeError("writer")}

    def full(*_, **__):
        raise errors[place]

    owner = checkpoint if place == "save_file" else torch
    monkeypatch.setattr(owner, place.split(".")[-1], full)
    with pytest.raises(OSError, match=r"could not be written: .*Free some disk space"):
        save_checkpoint(tmp_path, 1, *trained())
    assert checkpoints(tmp_path) == []
