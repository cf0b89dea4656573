"""Claims 23, 26 and 49: chains that differ after pretraining, and one toy chain for real."""

import pytest

from llama2_lib import pipeline
from llama2_lib.claims import chain
from llama2_lib.claims.chain import BEFORE, RLHF_VERSIONS, SPLITS
from llama2_lib.claims.ledger import CLAIMS
from llama2_lib.recipes import nano, toy
from llama2_lib.stages.rejection import round_prompts
from llama2_lib.text.tokenizer import load_tokenizer


def test_chains_differ_after_pretraining_only():
    recipe = nano()
    assert chain.chain(recipe, 0) == recipe
    other = chain.chain(recipe, 2)
    for stage in ("tokenizer", "corpus", "pretrain"):
        assert pipeline.fingerprint(stage, other) == pipeline.fingerprint(stage, recipe)
    for stage in ("sft", "rewards_v1", "rejection_v1", "ppo"):
        assert pipeline.fingerprint(stage, other) != pipeline.fingerprint(stage, recipe)


def test_the_course_does_not_train_them():
    requests = CLAIMS[23].requests(nano(), range(3))
    assert [stage for stage, _ in requests] == ["ppo"] * 3
    assert len({pipeline.fingerprint(*request) for request in requests}) == 3


@pytest.mark.slow
def test_a_toy_chain_is_measured(toy_root, monkeypatch, measure):
    monkeypatch.setenv("LLAMA2_ARTIFACTS", str(toy_root))
    monkeypatch.setattr(chain, "N_PROMPTS", 40)
    chain.measure_versions.cache_clear()
    values, *_ = [measure(number) for number in (23, 26, 49)]
    chain.measure_versions.cache_clear()
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", toy()))
    new = chain.new_prompts(toy(), 0, "train", tokenizer)
    asked = {tuple(ids) for ids in round_prompts(3, toy(), tokenizer).ids}
    assert asked
    assert not asked & {tuple(ids) for ids in new.ids}
    assert len(new.ids) == len(new.prompts) == len(new.tags) == 40
    for before, after in BEFORE:
        for quality in ("gold helpfulness", "reward safety", "low tail", "win by gold"):
            for suffix in SPLITS.values():
                assert f"error/{quality}{suffix}/{after} over {before}" in values
    for version in RLHF_VERSIONS:
        assert 0 <= values[f"mean/gold helpfulness/{version}"] <= 1
    assert values["mean/low tail/SFT"] == pytest.approx(0.1, rel=0, abs=0.03)
    gap = values["mean/reward/V2"] - values["mean/reward/SFT"]
    assert values["gain/reward/V2 over SFT"] == pytest.approx(gap, rel=1e-9, abs=1e-12)
