"""The stages `dates` and `tools` on the toy chain: what they learn from, and that they go on."""

from dataclasses import replace

import pytest

from llama2_lib import pipeline
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.pipeline import settings
from llama2_lib.recipes import nano, toy
from llama2_lib.stages.emergent import tool_examples
from llama2_lib.stages.job import Job
from llama2_lib.storage import read_metrics
from llama2_lib.world.tools import NO_TOOL

pytestmark = pytest.mark.usefixtures("one_thread")


def test_their_writers_name_them_and_nothing_else():
    own = ("llama2_lib.world.dates", "llama2_lib.world.tools")
    for stage, node in pipeline.STAGES.items():
        reads = set(own) & set(settings.modules(node.module))
        assert bool(reads) == (stage in ("dates", "tools")), stage
        assert ("writers" in pipeline.graph.stage_settings(stage, with_variants())) == bool(reads)


def with_variants():
    from llama2_lib.config import RewardConfig, RewardVariant, SafetyData

    variant = RewardVariant(
        reward=RewardConfig(stream="safety", n_pairs=4), own_share=0.5, n_safety=4
    )
    return replace(
        toy(), reward_model=variant, safety_data=SafetyData(fraction=1, n_helpful=4, n_safety=4)
    )


def test_what_a_tool_says_is_no_target(toy_root):
    inputs = {"tokenizer": pipeline.artifact_path("tokenizer", toy(), toy_root)}
    job = Job(toy(), toy_root, inputs, pipeline.build.choose_device("cpu"), lambda *_: None)
    found = tool_examples(job, 0, 40)
    assert len(found) == 40
    with_call = 0
    for ids, mask in found:
        answer = job.tokenizer.decode(ids[mask.index(True) :])
        hidden = mask[mask.index(True) :].count(False)
        assert (hidden == 0) == answer.startswith(NO_TOOL)
        with_call += hidden > 0
        assert mask[-1]
    assert 20 < with_call < 40


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dates", "tools"])
def test_a_branch_is_trained_and_the_control_is_another(toy_root, tmp_path, stage):
    from shutil import copytree

    root = copytree(toy_root, tmp_path / "root")
    folder = pipeline.artifact(stage, toy(), device="cpu", root=root, bar=False)
    rows = read_metrics(folder / "metrics.jsonl")
    assert rows[0]["new"] == 20
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"]
    other = replace(toy(), dates=replace(toy().dates, shuffled=True))
    same = pipeline.fingerprint(stage, other) == folder.name
    assert same == (stage == "tools")


def test_each_seed_is_another_training_of_the_same_chain():
    dated, tools = (CLAIMS[n].requests(nano(), range(3)) for n in (51, 52))
    assert len(dated) == 3 * 2 + 1
    assert len(tools) == 3 + 1
    assert {stage for stage, _ in dated} == {"dates", "red_team_v4"}
