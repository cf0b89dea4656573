"""The device that is asked for, or a message; precision; memory."""

import subprocess
import sys

import pytest
import torch

from llama2_lib import device as devices
from llama2_lib.device import autocast, choose_device, peak_memory, synchronize

CPU = torch.device("cpu")


@pytest.mark.parametrize(("n_gpus", "wanted"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_a_gpu_when_there_is_one(monkeypatch, n_gpus, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert choose_device() == choose_device("auto") == torch.device(wanted)
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(
    ("n_gpus", "name"), [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cuda:7")]
)
def test_a_gpu_that_is_absent_is_refused(monkeypatch, n_gpus, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    message = f"device {name} was asked for, but PyTorch sees {n_gpus} CUDA.*Use --device cpu"
    with pytest.raises(ValueError, match=message):
        choose_device(name)


def test_a_gpu_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:x", "cuda:-1"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=rf"must be auto, cpu, cuda, cuda:N or mps; got '{name}'"):
        choose_device(name)


@pytest.mark.parametrize("name", ["meta", "xpu"])
def test_another_kind_of_device_is_refused(name):
    with pytest.raises(ValueError, match=f"must be a CPU or a CUDA or Apple GPU; got '{name}'"):
        choose_device(name)


def test_an_apple_gpu_is_taken_when_asked_for_and_said_to_be_untested(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"sees no Apple GPU\. Use --device cpu"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="nothing in this course was tested on an Apple GPU"):
        assert choose_device("mps") == torch.device("mps")
    assert choose_device("auto").type != "mps", "it is never chosen by itself"
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(1))
    synchronize(torch.device("mps"))
    assert waited == [1]


def test_the_module_is_imported_where_there_is_no_resource():
    """Windows has no module `resource`, and counts its memory in another way."""
    code = (
        "import sys; sys.modules['resource'] = None\n"
        "from llama2_lib import device\n"
        "import torch, types\n"
        "memory = types.SimpleNamespace(peak_wset=77)\n"
        "process = types.SimpleNamespace(memory_info=lambda: memory)\n"
        "sys.modules['psutil'] = types.SimpleNamespace(Process=lambda: process)\n"
        "sys.platform = 'win32'\n"
        "print(device.peak_memory(torch.device('cpu')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "77\n"), run.stderr


def test_bf16_rounds_products_and_nothing_else():
    a = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    with autocast(CPU, "fp32"):
        exact = a @ a.T
    with autocast(CPU, "bf16"):
        rounded = a @ a.T
        assert (a + a).dtype == torch.float32
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(exact, a @ a.T, rtol=0, atol=0)
    torch.testing.assert_close(rounded.float(), exact, rtol=2e-2, atol=5e-2)
    assert not torch.equal(rounded.float(), exact)


@pytest.mark.parametrize("precision", ["fp16", "float32", ""])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(ValueError, match=f"precision must be fp32 or bf16; got '{precision}'"):
        autocast(CPU, precision)


def test_memory_is_counted_in_bytes():
    assert 50 * 2**20 < peak_memory(CPU) < 2**40  # Python and torch alone take 100 MiB and more
    before = peak_memory(CPU)
    block = torch.ones(before // 8 + 2**24)  # fp32: half of all so far, and 64 MiB
    assert peak_memory(CPU) >= before + 2**24, f"{block.numel()} numbers were not seen"


def test_memory_on_a_mac_is_in_bytes_already(monkeypatch):
    linux = peak_memory(CPU)
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert peak_memory(CPU) * 1000 < linux


def test_waiting_for_a_gpu_waits_for_that_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 77)
    synchronize(CPU)
    assert asked == []
    synchronize(torch.device("cuda", 1))
    assert asked == [torch.device("cuda", 1)]
    assert peak_memory(torch.device("cuda", 1)) == 77
