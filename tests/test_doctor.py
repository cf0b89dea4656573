"""`llama2 doctor` judges machines that we do not have, from injected facts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama2_lib import doctor, pipeline
from llama2_lib.doctor import GIB, Finding, findings
from llama2_lib.recipes import nano, small, toy
from llama2_lib.teaching.lessons import kernel

GOOD = doctor.Machine(
    torch="2.13.0+cpu",
    load=0.1,
    free_memory=8 * GIB,
    free_disk=20 * GIB,
    artifacts=Path("artifacts"),
    write_error=None,
    kernel_fault=None,
    tokens_per_second=15_000.0,
    chain=(0, 28, 1200.0),
)


def judged(**changes) -> dict[str, Finding]:
    return {item.name: item for item in findings(dataclasses.replace(GOOD, **changes))}


def test_a_good_machine_has_nothing_to_do():
    found = judged()
    assert {item.status for item in found.values()} == {"ok"}
    wanted = "PyTorch load memory disk artifacts kernel speed chain notebooks"
    assert list(found) == wanted.split()


@pytest.mark.parametrize(
    ("name", "changes", "status", "seen", "advised"),
    [
        ("PyTorch", {"torch": None}, "fail", "cannot be imported", "make course"),
        (
            "PyTorch", {"torch": None, "problems": {"torch": "OSError: libtorch.so is broken"}},
            "fail", "libtorch.so is broken", "make course",
        ),
        ("PyTorch", {"torch": "2.11.0"}, "warn", "2.11.0", "2.13"),
        ("PyTorch", {"torch": "3.0.0a0"}, "warn", "3.0.0a0", "2.13"),
        ("load", {"load": 0.25}, "warn", "25%", "close"),
        ("memory", {"free_memory": GIB // 2}, "fail", "0.5 GiB", "close"),
        ("memory", {"free_memory": 2 * GIB}, "warn", "2.0 GiB", "close"),
        ("disk", {"free_disk": 0}, "fail", "0.0 GiB", "LLAMA2_ARTIFACTS"),
        ("disk", {"free_disk": GIB}, "warn", "1.0 GiB", "LLAMA2_ARTIFACTS"),
        ("artifacts", {"write_error": "artifacts: Read-only"}, "fail", "Read-only", "rights"),
        ("kernel", {"kernel_fault": "it has no torch"}, "fail", "no torch", "ipykernel install"),
        ("speed", {"tokens_per_second": None}, "fail", "did not run", "make test"),
    ],
)  # fmt: skip
def test_each_lack_is_named_with_what_to_do(name, changes, status, seen, advised):
    found = judged(**changes)
    assert found[name].status == status
    assert seen in found[name].value
    assert advised in found[name].advice
    others = {item.status for item in found.values() if item.name != name}
    assert others == {"ok"}, "one lack should give one finding"


def test_a_finding_without_advice_is_refused():
    with pytest.raises(AssertionError, match="must say what to do"):
        Finding("disk", "full", fails=True)


def test_the_chain_says_what_is_there_and_the_rest_scales_with_the_speed():
    same = judged(tokens_per_second=doctor.REFERENCE_TOKENS_PER_SECOND)
    slower = judged(tokens_per_second=doctor.REFERENCE_TOKENS_PER_SECOND / 2, chain=(20, 8, 300.0))
    assert same["chain"].value == "0 of 28 stages are there; about 20 min for the rest"
    assert slower["chain"].value == "20 of 28 stages are there; about 10 min for the rest"
    assert judged(chain=(28, 0, 0.0))["chain"].value == "28 of 28 stages are there"
    assert "about 8 min" in same["notebooks"].value
    assert "about 16 min" in slower["notebooks"].value
    assert not {"chain", "notebooks"} & judged(tokens_per_second=None).keys()


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
            {"kernel_fault": "it has no torch", "torch": "2.12.0"},
            1,
            "The course cannot run here yet: kernel. ",
        ),
    ],
)
def test_the_report_shows_advice_and_verdict(monkeypatch, capsys, changes, status, verdict):
    machine_seen = dataclasses.replace(GOOD, **changes)
    monkeypatch.setattr(doctor, "inspect_machine", lambda artifacts: machine_seen)
    assert doctor.main() == status
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith(verdict), "a warning must not stop the course"
    assert shown.count("->") == len(changes)


def test_this_machine_is_inspected_and_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "new" / "artifacts"))
    seen = doctor.inspect_machine(seconds=0.2)
    assert seen.artifacts == tmp_path / "new" / "artifacts"
    assert seen.problems == {}
    assert seen.kernel_fault is None
    n_stages = len(pipeline.fingerprints("red_team_v4", nano()))
    assert seen.chain == (n_stages, 0, 0.0), "all are released"
    assert seen.tokens_per_second > 100
    assert seen.free_disk > 0
    assert seen.free_memory > 0
    assert list(seen.artifacts.iterdir()) == [], "the probe left a file"


def test_a_folder_that_cannot_be_made_is_reported_not_raised(tmp_path):
    (tmp_path / "file").write_text("in the way")
    seen = doctor.inspect_machine(tmp_path / "file" / "artifacts", seconds=0.1)
    assert "Not a directory" in seen.write_error


def test_a_probe_that_raises_does_not_stop_the_report(tmp_path, monkeypatch):
    def broken(seconds):
        raise RuntimeError("no kernel image\nfor this machine")

    monkeypatch.setattr(doctor, "training_speed", broken)
    seen = doctor.inspect_machine(tmp_path)
    assert seen.tokens_per_second is None
    assert seen.problems == {"speed": "RuntimeError: no kernel image"}
    assert "no kernel image" in {item.name: item for item in findings(seen)}["speed"].value


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
        assert doctor._held_by_others() > 0.5
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
