"""Variants of reward models: the pairs they learn from, and the pairs they are tested on."""

from dataclasses import replace

from llama2_lib import pipeline
from llama2_lib.config import RewardConfig, RewardVariant
from llama2_lib.recipes import toy
from llama2_lib.stages.reward import held_out_pairs, variant_pairs


def variant(**changes):
    config = RewardConfig(stream="safety", n_pairs=200, seed=3)
    return replace(RewardVariant(reward=config, own_share=0.9, n_safety=50), **changes)


class Letters:
    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [5] * (len(text) // 4) + [2] * eos


def test_shares_are_kept_and_fewer_pairs_are_a_beginning():
    pairs = variant_pairs(variant(), 0)
    streams = [pair.stream for pair in pairs]
    assert streams == ["safety"] * 180 + ["helpfulness"] * 20
    assert variant_pairs(variant(own_share=1.0), 0)[:180] == pairs[:180]
    assert len(variant_pairs(variant(own_share=1.0), 0)) == 200


def test_a_coin_exchanges_half_and_labels_nothing():
    pairs, tossed = variant_pairs(variant(), 0), variant_pairs(variant(coin_toss=True), 0)
    kept = [(a.chosen, a.rejected, a.gap) == (b.chosen, b.rejected, b.gap)
            for a, b in zip(pairs, tossed, strict=True)]  # fmt: skip
    assert 70 < sum(kept) < 130
    for before, after, same in zip(pairs, tossed, kept, strict=True):
        if not same:
            assert (after.chosen, after.rejected) == (before.rejected, before.chosen)
            assert after.gap == -before.gap
    assert {pair.safety_bin for pair in tossed} == {""} != {pair.safety_bin for pair in pairs}
    assert variant_pairs(variant(coin_toss=True), 0) == tossed


def test_held_out_pairs_fit_and_are_none_that_was_learned_from():
    few = held_out_pairs("safety", 0, 3, 60, Letters(), 60)
    many = held_out_pairs("safety", 0, 3, 90, Letters(), 60)
    assert len(many) == 90
    assert many[:60] == few
    assert few != held_out_pairs("safety", 0, 3, 60, Letters(), 600)
    learned = {str((p.prompt.dialog, p.chosen, p.rejected)) for p in variant_pairs(variant(), 0)}
    assert not learned & {str((p.prompt.dialog, p.chosen, p.rejected)) for p in many}


def test_the_stage_needs_a_variant_and_its_name_depends_on_it():
    names = {
        pipeline.fingerprint("reward_model", replace(toy(), reward_model=v))
        for v in (None, variant(), variant(coin_toss=True), variant(n_safety=51))
    }
    assert len(names) == 4
    other = replace(toy(), reward_model=variant())
    for stage in ("sft", "rewards_v1", "ppo"):
        assert pipeline.fingerprint(stage, other) == pipeline.fingerprint(stage, toy())
