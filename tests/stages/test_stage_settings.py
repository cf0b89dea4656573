"""Settings that no stage could be run with are refused by name, with what came."""

import dataclasses
from dataclasses import replace

import pytest

from llama2_lib import config as configs
from llama2_lib.config import (
    CorpusConfig,
    DistillationConfig,
    GhostAttentionConfig,
    InstructedConfig,
    PpoConfig,
    PretrainConfig,
    RedTeamConfig,
    RejectionConfig,
    RewardConfig,
    RewardVariant,
    SafetyData,
    SftConfig,
)
from llama2_lib.recipes import toy

GOOD = {
    CorpusConfig: {},
    PretrainConfig: {"steps": 9, "batch_size": 2, "seq_len": 8, "warmup": 1, "accumulate": 5},
    SftConfig: {"n_dialogs": 9, "batch_size": 2, "seq_len": 8},
    RewardConfig: {"stream": "helpfulness", "n_pairs": 64, "batch_size": 8},
    RewardVariant: {
        "reward": RewardConfig(stream="safety", n_pairs=9), "own_share": 0.9, "n_safety": 50,
    },
    RejectionConfig: {"n_prompts": 3},
    PpoConfig: {"iterations": 2, "batch_size": 8, "minibatch_size": 4},
    InstructedConfig: {"n_dialogs": 9},
    GhostAttentionConfig: {"n_dialogs": 9},
    DistillationConfig: {"n_prompts": 10},
    SafetyData: {"fraction": 0.5, "n_helpful": 10, "n_safety": 20},
    RedTeamConfig: {},
}  # fmt: skip

LEAST = [
    (CorpusConfig, 1, "n_documents n_validation"),
    (PretrainConfig, 1, "steps batch_size seq_len accumulate eval_every save_every"),
    (SftConfig, 1, "n_dialogs n_validation epochs batch_size seq_len eval_every save_every"),
    (RewardConfig, 1, "n_pairs"),
    (RewardConfig, 0, "safety_weight"),
    (RejectionConfig, 1, "n_prompts n_samples n_probe steps"),
    (RejectionConfig, 0, "n_demonstrations"),
    (PpoConfig, 1, "iterations batch_size max_new_tokens eval_every patience save_every"),
    (PpoConfig, 1, "n_held_out longest_prompt"),
    (PpoConfig, 0, "beta lr value_weight value_warmup value_lr_multiplier"),
    (InstructedConfig, 0, "n_demonstrations"),
    (GhostAttentionConfig, 1, "n_dialogs n_samples most_turns max_new_tokens n_validation"),
    (DistillationConfig, 1, "n_prompts"),
    (DistillationConfig, 0, "n_replay"),
    (SafetyData, 1, "n_helpful"),
    (RedTeamConfig, 1, "budget"),
    (RedTeamConfig, 0, "replay temperature"),
]

REFUSED = [
    *(
        (config, {name: least - 1}, f"^{name} must be at least {least}; got {least - 1}.$")
        for config, least, names in LEAST
        for name in names.split()
    ),
    (PretrainConfig, {"precision": "fp16"}, "precision must be one of fp32, bf16; got 'fp16'"),
    (PretrainConfig, {"warmup": 9}, r"warmup must lie in 0\.\.\.steps - 1; got 9 of 9"),
    (PretrainConfig, {"peak_lr": 0.0}, "peak_lr must be above 0"),
    (PretrainConfig, {"min_lr_ratio": 2.0}, "min_lr_ratio within 0 and 1"),
    (SftConfig, {"precision": "fp16"}, "precision must be one of fp32, bf16; got 'fp16'"),
    (SftConfig, {"grade": "dirty"}, "grade must be one of clean, mixed, noisy; got 'dirty'"),
    (SftConfig, {"warmup": -1}, "warmup must lie in"),
    (SftConfig, {"peak_lr": 0.0}, "peak_lr must be above 0"),
    (SftConfig, {"min_lr_ratio": 2.0}, "min_lr_ratio within 0 and 1"),
    (RewardConfig, {"stream": "style"}, "stream must be one of"),
    (RewardConfig, {"margin": "huge"}, "margin must be one of"),
    (RewardConfig, {"precision": "fp8"}, "precision must be one of fp32, bf16"),
    (RewardConfig, {"peak_lr": 0.0}, "peak_lr must be above 0"),
    (RewardVariant, {"own_share": 0.0}, "own_share"),
    (RewardVariant, {"own_share": 1.1}, "own_share"),
    (RewardVariant, {"n_safety": 0}, "tested on some"),
    (RewardVariant, {"n_helpfulness": -1}, "n_helpfulness must be at least 0"),
    (RewardVariant, {"reward": RewardConfig(stream="safety", n_pairs=9, n_fresh=1)}, "n_fresh"),
    (RejectionConfig, {"temperatures": ()}, r"one or more numbers above 0; got \(\)"),
    (RejectionConfig, {"temperatures": (0.7, 0.0)}, r"above 0; got \(0\.7, 0\.0\)"),
    (RejectionConfig, {"select": "worst"}, "select must be one of .*; got 'worst'"),
    (RejectionConfig, {"keep": "some"}, "keep must be one of .*; got 'some'"),
    (RejectionConfig, {"warmup": 150}, "warmup must lie in"),
    (RejectionConfig, {"peak_lr": 0.0}, "peak_lr must be above 0"),
    (PpoConfig, {"minibatch_size": 3}, "a multiple of minibatch_size; got 8 and 3"),
    (PpoConfig, {"minibatch_size": 16}, "a multiple of minibatch_size; got 8 and 16"),
    (PpoConfig, {"temperature": 0.0}, "temperature must be above 0 and finite; got 0.0"),
    (PpoConfig, {"temperature": float("inf")}, "temperature must be above 0 and finite; got inf"),
    (PpoConfig, {"beta": float("nan")}, "beta"),
    (PpoConfig, {"whiten_by": "prompt"}, "whiten_by"),
    (PpoConfig, {"clip": 0.0}, "clip"),
    (PpoConfig, {"value_clip": 0.0}, "value_clip"),
    (PpoConfig, {"gamma": 1.5}, "gamma"),
    (PpoConfig, {"lam": -0.1}, "lam"),
    (GhostAttentionConfig, {"reading": "C"}, "reading must be"),
    (GhostAttentionConfig, {"loss_on": "first"}, "loss_on must be"),
    (GhostAttentionConfig, {"precision": "int8"}, "precision must be"),
    (GhostAttentionConfig, {"combined": 1.5}, "combined"),
    (GhostAttentionConfig, {"terse": -0.1}, "terse"),
    (GhostAttentionConfig, {"temperature": 0.0}, "temperature"),
    (DistillationConfig, {"preprompt": "kind"}, "preprompt"),
    (DistillationConfig, {"apply_to": "none"}, "apply_to"),
    (DistillationConfig, {"temperature": 0}, "temperature"),
    (DistillationConfig, {"steps": 2}, "warm"),
    (DistillationConfig, {"heed_lr": -1.0}, "peak"),
    (SafetyData, {"fraction": 1.1}, "fraction"),
    (SafetyData, {"fraction": 0.001}, "is none"),
    (SafetyData, {"helpful_grade": "fine"}, "helpful_grade"),
    (RedTeamConfig, {"min_lr_ratio": 2.0}, "min_lr_ratio"),
]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    REFUSED,
    ids=lambda part: part.__name__ if isinstance(part, type) else str(part)[:40],
)
def test_bad_settings_are_refused(config, changes, message):
    good = config(**GOOD[config])
    with pytest.raises(ValueError, match=message):
        replace(good, **changes)


def test_a_recipe_whose_tokenizer_does_not_fit_its_model_is_refused():
    with pytest.raises(ValueError, match="same vocab_size; got 512 and 600"):
        replace(toy(), tokenizer=replace(toy().tokenizer, vocab_size=600))


def test_pretraining_counts_its_tokens():
    assert PretrainConfig(**GOOD[PretrainConfig]).n_tokens == 9 * 5 * 2 * 8


def test_a_config_does_not_change():
    kinds = [kind for kind in vars(configs).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    assert len(kinds) > 15
    assert [kind.__name__ for kind in kinds if not kind.__dataclass_params__.frozen] == []
