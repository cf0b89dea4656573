"""A checkpoint is there whole or not at all, and restores every bit."""

import copy
import pickle

import pytest
import torch

from llama2_lib.training import checkpoint
from llama2_lib.training.checkpoint import (
    checkpoints,
    clear_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from llama2_lib.training.schedule import adamw


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


def same(a, b):
    (model_a, optimizer_a), (model_b, optimizer_b) = a, b
    state_a, state_b = optimizer_a.state_dict()["state"], optimizer_b.state_dict()["state"]
    return (
        all(
            torch.equal(x, y)
            for x, y in zip(
                model_a.state_dict().values(), model_b.state_dict().values(), strict=True
            )
        )
        and state_a.keys() == state_b.keys()
        and all(
            torch.equal(value, state_b[index][name])
            for index, values in state_a.items()
            for name, value in values.items()
        )
    )


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


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_refused_with_advice(tmp_path, trained, name, damage):
    path = save_checkpoint(tmp_path, 5, *trained()) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ValueError, match=r"step-0000005 must hold .*cannot be read.*Delete it"):
        load_checkpoint(tmp_path, *trained())


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
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path, *trained())
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
