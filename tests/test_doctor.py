"""`llama2 doctor` judges machines that we do not have, from injected facts."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from llama2_lib import doctor
from llama2_lib.doctor import estimates, machine
from llama2_lib.doctor.findings import GIB, Finding, findings

GOOD = machine.Machine(
    python=(3, 11, 7),
    torch="2.13.0+cpu",
    device=None,
    bf16=None,
    cores=4,
    threads=4,
    free_memory=8 * GIB,
    free_disk=20 * GIB,
    artifacts=Path("artifacts"),
    write_error=None,
    font="/fonts/DejaVuSans.ttf",
    kernel="/venv/bin/python",
    interpreter="/venv/bin/python",
    tokens_per_second=15_000.0,
    median_tokens_per_second=14_000.0,
)


def judged(**changes) -> dict[str, Finding]:
    return {item.name: item for item in findings(dataclasses.replace(GOOD, **changes))}


def test_a_good_machine_has_nothing_to_do():
    found = judged()
    assert {item.status for item in found.values()} == {"ok"}
    wanted = "Python PyTorch device precision threads memory disk artifacts font kernel speed"
    assert set(wanted.split()) <= set(found)


@pytest.mark.parametrize(
    ("name", "changes", "status", "seen", "advised"),
    [
        ("Python", {"python": (3, 10, 12)}, "fail", "3.10.12", "3.11"),
        ("PyTorch", {"torch": None}, "fail", "cannot be imported", "make course"),
        ("PyTorch", {"torch": "2.9.1"}, "fail", "2.9.1", "constraints.txt"),
        ("PyTorch", {"torch": "2.11.0"}, "warn", "2.11.0", "2.13"),
        ("PyTorch", {"torch": "3.0.0a0"}, "warn", "3.0.0a0", "2.13"),
        ("threads", {"threads": 1}, "warn", "1 of 4", "OMP_NUM_THREADS"),
        ("threads", {"threads": 64}, "warn", "64 of 4", "OMP_NUM_THREADS=4"),
        ("memory", {"free_memory": GIB // 2}, "fail", "0.5 GiB", "close"),
        ("memory", {"free_memory": 2 * GIB}, "warn", "2.0 GiB", "close"),
        ("disk", {"free_disk": 0}, "fail", "0.0 GiB", "LLAMA2_ARTIFACTS"),
        ("disk", {"free_disk": GIB}, "warn", "1.0 GiB", "LLAMA2_ARTIFACTS"),
        ("artifacts", {"write_error": "artifacts: Read-only"}, "fail", "Read-only", "rights"),
        ("font", {"font": None}, "warn", "not found", "matplotlib"),
        ("kernel", {"kernel": None}, "fail", "no kernel", "ipykernel install"),
        ("kernel", {"kernel": "/usr/bin/python3"}, "warn", "/usr/bin/python3", "ipykernel"),
        ("speed", {"tokens_per_second": None}, "fail", "did not run", "make test"),
        ("speed", {"median_tokens_per_second": 1300.0}, "warn", "1.3 k", "quiet"),
    ],
)
def test_each_lack_is_named_with_what_to_do(name, changes, status, seen, advised):
    found = judged(**changes)
    assert found[name].status == status
    assert seen in found[name].value
    assert advised in found[name].advice
    others = {item.status for item in found.values() if item.name != name}
    assert others == {"ok"}, "one lack should give one finding"


def test_half_the_cores_is_what_pytorch_takes_with_two_threads_a_core():
    assert judged(threads=2)["threads"].status == "ok"


def test_a_gpu_and_fast_bf16_are_named():
    found = judged(device="GPU (capability 9.0, 78 GiB)", bf16="CUDA, AMX")
    assert "9.0" in found["device"].value
    assert "CUDA, AMX" in found["precision"].value
    assert "no" in judged()["precision"].value


def test_a_probe_that_raised_leaves_its_message():
    found = judged(torch=None, problems={"torch": "OSError: libtorch.so is broken"})
    assert "libtorch.so is broken" in found["PyTorch"].value


def test_a_finding_without_advice_is_refused():
    with pytest.raises(ValueError, match="what to do"):
        Finding(name="disk", status="fail", value="full")


def test_times_scale_with_the_speed_reading():
    seconds = {"chain": 400.0, "notebook 00": 30.0, "unmeasured": None}
    same = estimates.time_estimates(16_000.0, 16_000.0, seconds)
    slower = estimates.time_estimates(4_000.0, 16_000.0, seconds)
    assert same == {"chain": 400.0, "notebook 00": 30.0}
    assert slower == {"chain": 1600.0, "notebook 00": 120.0}
    assert estimates.time_estimates(None, 16_000.0, seconds) == {}
    assert estimates.time_estimates(16_000.0, None, seconds) == {}


@pytest.mark.parametrize(
    ("seconds", "said"), [(1, "5 s"), (42, "40 s"), (95, "95 s"), (130, "2 min"), (3600, "60 min")]
)
def test_durations_are_rounded_as_estimates_deserve(seconds, said):
    assert estimates.duration(seconds) == said


def test_the_report_shows_advice_and_verdict():
    good = doctor.report(findings(GOOD))
    bad = doctor.report(findings(dataclasses.replace(GOOD, kernel=None, font=None)))
    assert "can run here" in good
    assert "->" not in good
    assert "cannot run here yet: kernel. " in bad, "a warning must not stop the course"
    assert bad.count("->") == 2


@pytest.mark.parametrize(
    ("changes", "status"), [({}, 0), ({"free_disk": 0}, 1), ({"font": None}, 0)]
)
def test_exit_status(monkeypatch, capsys, changes, status):
    seen = dataclasses.replace(GOOD, **changes)
    monkeypatch.setattr(doctor, "inspect_machine", lambda artifacts: seen)
    assert doctor.main() == status
    assert "kernel" in capsys.readouterr().out


def test_this_machine_is_inspected_and_trains(tmp_path):
    seen = machine.inspect_machine(tmp_path / "new" / "artifacts", seconds=0.2)
    assert seen.problems == {}
    assert seen.interpreter == sys.executable
    assert seen.tokens_per_second >= seen.median_tokens_per_second > 100
    assert seen.free_disk > 0
    assert seen.free_memory > 0
    assert list((tmp_path / "new" / "artifacts").iterdir()) == [], "the probe left a file"


def test_a_folder_that_cannot_be_made_is_reported_not_raised(tmp_path):
    (tmp_path / "file").write_text("in the way")
    seen = machine.inspect_machine(tmp_path / "file" / "artifacts", seconds=0.1)
    assert "Not a directory" in seen.write_error


def test_the_pipelines_own_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(tmp_path / "elsewhere"))
    assert machine.inspect_machine(seconds=0.1).artifacts == tmp_path / "elsewhere"


def test_a_probe_that_raises_does_not_stop_the_report(tmp_path, monkeypatch):
    def broken(seconds):
        raise RuntimeError("no kernel image\nfor this machine")

    monkeypatch.setattr(machine, "training_speed", broken)
    seen = machine.inspect_machine(tmp_path)
    assert seen.tokens_per_second is None
    assert seen.problems == {"speed": "RuntimeError: no kernel image"}
    assert "no kernel image" in {f.name: f for f in findings(seen)}["speed"].value


def test_a_container_sets_the_cores_and_the_memory(tmp_path):
    free = machine.free_memory(tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert machine.usable_cores(tmp_path) == 1
    assert machine.free_memory(tmp_path) == 2_000_000 < free
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.usable_cores(tmp_path) == machine.usable_cores(tmp_path / "absent")
    assert machine.free_memory(tmp_path) > 2_000_000


def test_the_speed_is_read_where_gradients_are_switched_off():
    with torch.no_grad():
        fastest, median = machine.training_speed(0.1)
    assert fastest >= median > 0
