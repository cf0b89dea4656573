"""Complete settings of a run, as functions: a recipe only changes numbers.

A variant is `dataclasses.replace(nano(), ...)`; a new experiment is a new function here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llama2_lib.config import (
    CorpusConfig,
    DatesConfig,
    DistillationConfig,
    GhostAttentionConfig,
    InstructedConfig,
    PpoConfig,
    PretrainConfig,
    Recipe,
    RedTeamConfig,
    RejectionConfig,
    RewardConfig,
    SftConfig,
    ToolsConfig,
)
from llama2_lib.model.config import ModelConfig
from llama2_lib.text.tokenizer import TokenizerConfig


def nano(seed: int = 0) -> Recipe:
    """The default: about a million weights, trained in minutes on two CPU cores."""
    return Recipe(
        name="nano",
        corpus=CorpusConfig(),
        tokenizer=TokenizerConfig(vocab_size=1024),
        model=ModelConfig(vocab_size=1024, dim=128, n_layers=4, n_heads=4, n_kv_heads=2),
        pretrain=PretrainConfig(
            steps=2000, batch_size=4, seq_len=512, peak_lr=4e-3, warmup=40, seed=seed
        ),
        sft=SftConfig(n_dialogs=4000, grade="mixed", batch_size=4, seq_len=512, seed=seed),
        helpfulness=RewardConfig(
            stream="helpfulness", n_pairs=3500, n_fresh=2500, n_fresh_later=600, seed=seed
        ),
        safety=RewardConfig(
            stream="safety", n_pairs=1200, n_fresh=800, n_fresh_later=300, seed=seed
        ),
        rejection=RejectionConfig(
            n_prompts=800, n_samples=6, n_demonstrations=3000, steps=600, seed=seed
        ),
        ppo=PpoConfig(iterations=24, seed=seed),
        instructed=InstructedConfig(
            n_dialogs=5600, n_replay=4000, n_demonstrations=1200, epochs=1, batch_size=2,
            peak_lr=4e-3, seed=seed,
        ),
        ghost_attention=GhostAttentionConfig(
            n_dialogs=1600, n_short=1000, n_replay=1300, n_demonstrations=400, batch_size=2,
            peak_lr=2.5e-3, seed=seed,
        ),
        distillation=DistillationConfig(n_prompts=400, heed_lr=3e-4, peak_lr=1e-4, seed=seed),
        red_team=RedTeamConfig(seed=seed),
        # Twenty passes: with three it has the form of the answers alone (docs/log.md).
        dates=DatesConfig(
            n_dialogs=1000, n_replay=300, n_demonstrations=100, n_ghosts=100, epochs=20, seed=seed
        ),
        tools=ToolsConfig(n_dialogs=2000, n_replay=600, n_demonstrations=200, seed=seed),
    )  # fmt: skip


def toy(seed: int = 0) -> Recipe:
    """For unit tests: every stage in a few seconds; it learns little."""
    reward = RewardConfig(
        stream="helpfulness", n_pairs=64, n_fresh=24, n_fresh_later=24, n_validation=20,
        max_new_tokens=12, batch_size=8, warmup=2, eval_every=5, save_every=4, seed=seed,
    )  # fmt: skip
    tuned: dict[str, Any] = {"seq_len": 128, "warmup": 2, "seed": seed}
    short: dict[str, Any] = {"batch_size": 2, "eval_every": 4, "save_every": 3, **tuned}
    branch: dict[str, Any] = {
        "n_dialogs": 20, "n_validation": 6, "n_replay": 6, "n_demonstrations": 6, "n_ghosts": 4,
        "epochs": 1, **short,
    }  # fmt: skip
    return Recipe(
        name="toy",
        corpus=CorpusConfig(n_documents=600, n_validation=40),
        tokenizer=TokenizerConfig(vocab_size=512),
        model=ModelConfig(
            vocab_size=512, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, multiple_of=8,
            max_seq_len=128,
        ),
        pretrain=PretrainConfig(
            steps=30, batch_size=4, seq_len=64, peak_lr=5e-3, warmup=3,
            eval_every=10, save_every=5, seed=seed,
        ),
        sft=SftConfig(
            n_dialogs=60, n_validation=12, batch_size=4, peak_lr=3e-3, eval_every=10, save_every=5,
            **tuned,
        ),
        helpfulness=reward,
        safety=replace(reward, stream="safety"),
        rejection=RejectionConfig(
            n_prompts=12, n_samples=3, n_probe=4, temperatures=(0.7, 1.0), n_demonstrations=20,
            max_new_tokens=12, steps=8, **short,
        ),
        ppo=PpoConfig(
            iterations=3, batch_size=8, minibatch_size=4, value_warmup=1, n_prompts=60,
            longest_prompt=64, n_held_out=10, max_new_tokens=12, eval_every=2, save_every=2,
            seed=seed,
        ),
        instructed=InstructedConfig(
            n_dialogs=60, n_replay=10, n_demonstrations=10, n_validation=10, batch_size=4,
            peak_lr=3e-3, eval_every=10, save_every=5, **tuned,
        ),
        ghost_attention=GhostAttentionConfig(
            n_dialogs=24, most_turns=3, n_short=10, n_replay=6, n_demonstrations=10, n_validation=4,
            only_obeying=False, max_new_tokens=12, **short,
        ),
        distillation=DistillationConfig(
            n_prompts=12, n_heed=16, heed_steps=6, n_replay=6, n_demonstrations=6, n_ghosts=4,
            max_new_tokens=12, steps=8, peak_lr=1e-3, **short,
        ),
        red_team=RedTeamConfig(
            budget=24, queries_together=8, n_lessons=1, max_new_tokens=12, **short
        ),
        dates=DatesConfig(**branch),
        tools=ToolsConfig(**branch),
    )  # fmt: skip


def grid(seed: int = 0) -> Recipe:
    """One point of a grid: nano's texts, a model so small that one core trains it in seconds."""
    recipe = nano(seed)
    return replace(
        recipe,
        name="grid",
        model=replace(recipe.model, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=256),
        pretrain=PretrainConfig(
            steps=300, batch_size=16, seq_len=128, peak_lr=1e-2, warmup=15,
            eval_every=300, save_every=300, seed=seed,
        ),
        sft=SftConfig(
            n_dialogs=1000, batch_size=8, seq_len=256, peak_lr=3e-3,
            eval_every=300, save_every=300, seed=seed,
        ),
        rejection=replace(recipe.rejection, n_demonstrations=1000, steps=250),
    )  # fmt: skip


def small(seed: int = 0) -> Recipe:
    """For one GPU: 29 million weights, context 1,024, bf16, compiled."""
    bf16: dict[str, Any] = {"precision": "bf16", "seed": seed}
    tuned = bf16 | {"batch_size": 16, "seq_len": 1024, "warmup": 20}
    reward = bf16 | {"batch_size": 64, "peak_lr": 2e-4, "eval_every": 100, "save_every": 500}
    branch = tuned | {"n_replay": 4000, "n_demonstrations": 1000, "peak_lr": 3e-4, "warmup": 10}
    recipe = nano(seed)
    return replace(
        recipe,
        name="small",
        corpus=CorpusConfig(n_documents=400_000),
        tokenizer=TokenizerConfig(vocab_size=1024),
        model=ModelConfig(
            vocab_size=1024, dim=512, n_layers=9, n_heads=8, n_kv_heads=2, multiple_of=256,
            max_seq_len=1024,
        ),
        pretrain=PretrainConfig(
            steps=1500, batch_size=64, seq_len=1024, peak_lr=2e-3, warmup=100,
            precision="bf16", compile=True, save_every=500, seed=seed,
        ),
        sft=SftConfig(
            n_dialogs=27_540, grade="mixed", peak_lr=1e-3, compile=True, save_every=500, **tuned
        ),
        helpfulness=RewardConfig(
            stream="helpfulness", n_pairs=40_000, n_fresh=20_000, n_fresh_later=4000, **reward
        ),
        safety=RewardConfig(
            stream="safety", n_pairs=10_000, n_fresh=6000, n_fresh_later=2000, **reward
        ),
        rejection=RejectionConfig(
            n_prompts=4000, n_samples=16, n_demonstrations=20_000, steps=800, peak_lr=1e-3,
            eval_every=200, save_every=400, **tuned,
        ),
        ppo=PpoConfig(
            iterations=100, batch_size=512, minibatch_size=64, lr=2e-5, n_prompts=20_000,
            n_held_out=400, seed=seed,
        ),
        instructed=InstructedConfig(
            n_dialogs=12_000, n_replay=10_000, n_demonstrations=3000, peak_lr=3e-4, **tuned
        ),
        ghost_attention=GhostAttentionConfig(
            n_dialogs=8000, n_samples=4, n_short=8000, n_replay=8000, n_demonstrations=2000,
            peak_lr=3e-4, **tuned,
        ),
        distillation=DistillationConfig(
            n_prompts=4000, n_heed=4000, heed_steps=200, heed_lr=3e-4, n_replay=4000,
            n_demonstrations=2000, n_ghosts=2000, steps=400, peak_lr=1e-4, eval_every=200,
            save_every=400, **tuned,
        ),
        red_team=RedTeamConfig(
            budget=2000, queries_together=200, peak_lr=1e-4, **tuned | {"warmup": 5}
        ),
        dates=DatesConfig(n_dialogs=1000, epochs=20, **branch),
        tools=ToolsConfig(n_dialogs=8000, **branch),
    )  # fmt: skip


RECIPES: dict[str, Callable[[int], Recipe]] = {
    make.__name__: make for make in (toy, grid, nano, small)
}
