"""`llama2 doctor` judges machines that we do not have, from what its probes are made to see."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest
import torch

from llama2_lib import doctor, pipeline
from llama2_lib.doctor import GIB, Finding
from llama2_lib.recipes import nano, small, toy
from llama2_lib.teaching.lessons import kernel


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A good machine; say what is otherwise, and what the doctor finds comes back by name."""

    def found(**changes) -> dict[str, Finding]:
        seen = {"torch": "2.13.0+cpu", "load": 10.0, "memory": 8 * GIB, "disk": 20 * GIB}
        seen |= {"folder": tmp_path / "artifacts", "kernel": None, "speed": 15_000.0} | changes
        monkeypatch.setitem(sys.modules, "torch", seen["torch"])
        if isinstance(seen["torch"], str):
            cuda = SimpleNamespace(is_available=lambda: False)
            module = SimpleNamespace(__version__=seen["torch"], cuda=cuda)
            monkeypatch.setitem(sys.modules, "torch", module)
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval: seen["load"])
        monkeypatch.setattr(doctor, "free_memory", lambda: seen["memory"])
        usage = namedtuple("usage", "free")(seen["disk"])
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
        monkeypatch.setattr(kernel, "kernel_fault", lambda: seen["kernel"])

        def speed(seconds):
            if isinstance(seen["speed"], Exception):
                raise seen["speed"]
            return seen["speed"]

        monkeypatch.setattr(doctor, "training_speed", speed)
        return {finding.name: finding for finding in doctor.findings(seen["folder"])}

    return found


def test_a_good_machine_has_nothing_to_do(machine):
    found = machine()
    assert {(item.status, item.advice) for item in found.values()} == {("ok", "")}
    assert list(found) == ["PyTorch", "load", "memory", "disk", "artifacts", "kernel", "speed"]


@pytest.mark.parametrize(
    ("name", "changes", "status", "seen", "advised"),
    [
        ("PyTorch", {"torch": None}, "fail", "ModuleNotFoundError: ", "make course"),
        ("PyTorch", {"torch": "2.11.0"}, "warn", "2.11.0, on the CPU", "make course"),
        ("PyTorch", {"torch": "3.0.0a0"}, "warn", "tested with 2.13", "make course"),
        ("load", {"load": 25.0}, "warn", "25%", "close"),
        ("memory", {"memory": GIB // 2}, "fail", "0.5 GiB", "close"),
        ("memory", {"memory": 2 * GIB}, "warn", "2.0 GiB", "close"),
        ("disk", {"disk": 0}, "fail", "0.0 GiB", "LLAMA2_ARTIFACTS"),
        ("disk", {"disk": GIB}, "warn", "1.0 GiB", "LLAMA2_ARTIFACTS"),
        ("kernel", {"kernel": "it has no torch"}, "fail", "no torch", "ipykernel install"),
        (
            "speed", {"speed": RuntimeError("no kernel image\nfor this machine")},
            "fail", "RuntimeError: no kernel image", "make test",
        ),
    ],
)  # fmt: skip
def test_each_lack_is_named_with_what_to_do(machine, name, changes, status, seen, advised):
    found = machine(**changes)
    assert found[name].status == status
    assert seen in found[name].value
    assert advised in found[name].advice
    others = {item.status for item in found.values() if item.name != name}
    assert others == {"ok"}, "one lack should give one finding"


def test_a_folder_that_cannot_be_made_is_reported_not_raised(machine, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = machine(folder=tmp_path / "file" / "artifacts")["artifacts"]
    assert (found.status, "NotADirectoryError: " in found.value) == ("fail", True)
    assert "owner or rights" in found.advice


def test_the_times_scale_with_the_speed(machine, monkeypatch):
    assert machine(speed=doctor.REFERENCE_TOKENS_PER_SECOND)["speed"].value == (
        "14.2 k training tokens/s (fp32, CPU); about 8 min to execute all notebooks"
    )
    monkeypatch.setattr(pipeline, "missing", lambda *given: ["pretrain", "sft"])
    seconds = pipeline.STAGES["pretrain"].seconds + pipeline.STAGES["sft"].seconds
    slower = machine(speed=doctor.REFERENCE_TOKENS_PER_SECOND / 2)["speed"].value
    assert slower.endswith(
        f"about 16 min to execute all notebooks, and {doctor.duration(2 * seconds)} to train 2 "
        "missing stages"
    )


def test_a_stage_takes_its_share_of_the_time_and_a_smaller_recipe_less():
    rate = doctor.REFERENCE_TOKENS_PER_SECOND
    for stage in ("pretrain", "ppo", "corpus"):
        assert doctor.stage_seconds(stage, nano(), rate) == pipeline.STAGES[stage].seconds
        assert doctor.stage_seconds(stage, nano(), rate / 2) == 2 * pipeline.STAGES[stage].seconds
    tokens = toy().pretrain.n_tokens / nano().pretrain.n_tokens
    share = tokens * toy().model.n_parameters / nano().model.n_parameters
    assert doctor.stage_seconds("ppo", toy(), rate) == pytest.approx(
        share * pipeline.STAGES["ppo"].seconds, rel=1e-9, abs=0
    )
    assert doctor.stage_seconds("sft", small(), rate) > 3600


def test_what_is_missing_is_named_once(toy_root, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(toy_root))
    assert doctor.missing([("ppo", toy()), ("sft", toy())]) == []
    needed = doctor.missing([("sft", toy(1)), ("pretrain", toy(1)), ("pretrain", toy(2))])
    assert needed == [("pretrain", toy(1)), ("sft", toy(1)), ("pretrain", toy(2))]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1, "5 s"), (42, "40 s"), (95, "95 s"), (130, "2 min"), (3600, "60 min"), (9000, "2 h")],
)
def test_durations_are_rounded_as_estimates_deserve(seconds, said):
    assert doctor.duration(seconds) == said


@pytest.mark.parametrize(
    ("changes", "status", "verdict"),
    [
        ({}, 0, "The course can run here."),
        ({"torch": "2.12.0"}, 0, "The course can run here."),
        (
            {"kernel": "it has no torch", "torch": "2.12.0"},
            1,
            "The course cannot run here yet: kernel. ",
        ),
    ],
)
def test_the_report_shows_advice_and_verdict(
    machine, monkeypatch, capsys, changes, status, verdict
):
    found = [*machine(**changes).values()]
    monkeypatch.setattr(doctor, "findings", lambda artifacts: found)
    assert doctor.main() == status
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith(verdict), "a warning must not stop the course"
    assert shown.count("->") == len(changes)


def test_this_machine_is_inspected_and_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "new" / "artifacts"))
    found = {finding.name: finding for finding in doctor.findings(seconds=0.2)}
    assert "fail" not in {finding.status for finding in found.values()}
    assert str(tmp_path / "new" / "artifacts") in found["artifacts"].value
    assert "missing" not in found["speed"].value, "all are released"
    assert list((tmp_path / "new" / "artifacts").iterdir()) == [], "the probe left a file"


def test_a_container_sets_the_memory(tmp_path):
    free = doctor.free_memory(tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert doctor.free_memory(tmp_path) == 2_000_000 < free
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.free_memory(tmp_path) > 2_000_000


def test_the_speed_is_read_where_gradients_are_switched_off():
    with torch.no_grad():
        assert doctor.training_speed(0.1) > 0


@pytest.mark.slow
def test_the_speed_is_that_of_a_quiet_machine_while_others_hold_the_cores():
    """Steps that wait for a core cost wall time, and no more processor time than before."""
    quiet, loop = doctor.training_speed(1.0), [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        assert psutil.cpu_percent(interval=0.5) > 50
        held_up = doctor.training_speed(2.0)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert held_up > quiet / 2


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("#!/bin/sh\nexit 3\n", "cannot run Python"),
        ("#!/bin/sh\necho torch llama2_lib\n", "another Python without torch, llama2_lib"),
        (None, "cannot run: "),
        ("#!/bin/sh\n", None),
    ],
)
def test_a_kernel_of_another_python_is_found_before_it_is_needed(
    tmp_path, monkeypatch, script, fault
):
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    if script is not None:
        program.write_text(script)
        program.chmod(0o755)
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": [str(program)], "display_name": "x"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert kernel.kernel_interpreter() == str(program)
    said = kernel.kernel_fault()
    if fault is None:
        assert said is None
        return kernel.need_kernel()
    assert f"python3 starts {program}, " in said
    assert fault in said
    with pytest.raises(ValueError, match=r"ipykernel install --sys-prefix$"):
        kernel.need_kernel()
