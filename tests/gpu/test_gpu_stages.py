"""Every stage on a GPU does what it did on the CPU, and goes on from where it was stopped."""

import pytest
import torch

from llama2_lib import pipeline
from llama2_lib.pipeline.replay import replay
from llama2_lib.recipes import toy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("stage", pipeline.released_stages(toy()))
def test_the_first_steps_of_a_stage_are_those_of_the_cpu(toy_root, stage):
    found = replay(stage, toy(), device="cuda", root=toy_root)
    assert not found.exact
    assert found.differences() == []
    assert found.numbers or stage in ("tokenizer", "corpus"), "a log was compared"
