"""Named streams: the same everywhere, different from each other, and nobody else's."""

import random
import subprocess
import sys

import pytest
import torch

from llama2_lib.rng import generator, random_source, seed_from


def test_a_seed_is_the_same_on_every_machine():
    # The first 8 bytes of the sha256 of "0/world/3", without the last bit.
    assert seed_from(0, "world", 3) == 0x1884F0A48EDF767E


def test_a_seed_is_the_same_in_another_process():
    code = "from llama2_lib.rng import seed_from; print(seed_from(7, 'a', 1))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for salt in ("1", "2")
    }  # fmt: skip
    assert found == {f"{seed_from(7, 'a', 1)}\n"}


def test_seeds_fill_63_bits_and_do_not_meet():
    seeds = {seed_from(seed, name, n) for seed in range(10) for name in "ab" for n in range(50)}
    assert len(seeds) == 1000
    assert 0 <= min(seeds) < 2**60
    assert 2**62 < max(seeds) < 2**63


def test_order_and_depth_of_names_matter():
    paths = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "b", "a"), (0, "ab"), (0, "a", 1)]
    assert len({seed_from(*path) for path in paths}) == len(paths)
    assert seed_from(0, "a", 1) == seed_from(0, "a", "1")


def test_streams_repeat_and_differ():
    first, again, other = (random_source(0, name).random() for name in ("a", "a", "b"))
    assert first == again != other
    first, again, other = (torch.rand(3, generator=generator(0, name)) for name in ("a", "a", "b"))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    assert generator(0, "a", device="cpu").device.type == "cpu"


def test_the_global_streams_are_left_alone():
    def state():
        return random.getstate(), torch.get_rng_state().tolist()

    before = state()
    random_source(0, "a").random()
    torch.rand(3, generator=generator(0, "a"))
    assert state() == before
    torch.rand(1)
    assert state() != before


def test_the_world_can_have_numbers_without_torch():
    code = "import sys; from llama2_lib import rng; rng.random_source(0); print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "llama2_lib.rng" in run.stdout.split()
    assert "torch" not in run.stdout.split()


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_any_whole_number_will_do(seed):
    assert 0 <= seed_from(seed, "a") < 2**63
    assert torch.rand(1, generator=generator(seed, "a")).isfinite().all()
