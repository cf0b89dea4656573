"""The course's own shapes beside `transformers` and TRL, turn by turn.

Training and generation first, then one PPO iteration: random weights, prompts of 32 tokens, answers
of exactly 32, a value function of its own, four mini-batches, one pass over them. TRL's PPO lives
in `trl.experimental.ppo`, up to release 1.12; nothing else here imports TRL.
"""

import contextlib
import copy
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from llama2_lib.config import PpoConfig
from llama2_lib.device import autocast, choose_device, peak_memory, synchronize
from llama2_lib.export import hugging_face_config
from llama2_lib.model.chat import scores
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import ScalarModel, Transformer, initialise, scalar_model
from llama2_lib.model.weights import to_hugging_face
from llama2_lib.objectives.language import LossTerm, next_token_loss
from llama2_lib.recipes import nano
from llama2_lib.stages import ppo as stage
from llama2_lib.stages.ppo import ActorCritic, Ppo, Rewards
from llama2_lib.stages.reward import Rewarded, RewardModels
from llama2_lib.training.loop import Step, optimize
from llama2_lib.training.optim import adamw

PROMPT, NEW = 16, 128
"""Tokens of a prompt and of an answer where generation is timed."""
ASKED, SAID, MINIBATCHES = 32, 32, 4
"""The same of a PPO iteration, and its mini-batches."""
BATCHES = (64, 256)
EOS = 2

# --- training and generation


def training_steps(
    model: nn.Module, logits: Callable[[Tensor], Tensor], config: ModelConfig, device: torch.device,
    precision: str, rows: int, length: int,
) -> Iterator[Step]:  # fmt: skip
    """Endless optimiser steps on rows of random tokens, the same for both sides."""
    ids = torch.randint(3, config.vocab_size, (rows, length + 1), device=device)

    def loss(_: nn.Module, batch: Tensor) -> LossTerm:
        with autocast(device, precision):
            return next_token_loss(logits(batch[:, :-1]).float(), batch)

    return optimize(
        model, adamw(model), itertools.repeat(ids), loss, lambda _: 1e-4, steps=range(10**9)
    )


def train(*, pairs: int = 5, device: str = "auto", precision: str = "fp32") -> int:
    """Time one training step of nano's shape against `transformers`, not compiled.

    Both sides take their steps in this library's loop, with its loss and PyTorch's fused AdamW.
    """
    where, config, rows = choose_device(device), nano().model, nano().pretrain
    ours = initialise(Transformer(config), 0).to(where)
    twin = hugging_face_twin(ours).train()
    shape = (config, where, precision, rows.batch_size, rows.seq_len)
    sides = [
        training_steps(ours, ours, *shape),
        training_steps(twin, lambda ids: twin(input_ids=ids).logits, *shape),
    ]
    # Three steps a turn.
    works = [lambda side=side: list(itertools.islice(side, 3)) for side in sides]
    times = turns(works, pairs, where)
    tokens = 3 * rows.batch_size * rows.seq_len
    print(f"device {where}, {precision}, {torch.get_num_threads()} threads, {len(times)} pairs")
    for name, rate in zip(("ours", "transformers"), rates(times), strict=True):
        print(f"{name:12s} {tokens * rate:10.0f} tokens/s")
    print(f"ratio        {median_ratio(times):10.2f}  (median of pairs; more is better)")
    print(f"peak memory  {peak_memory(where) / 2**20:10.0f} MiB")
    return 0


def generation(*, pairs: int = 5, device: str = "auto", precision: str = "fp32") -> int:
    """Time cached generation: greedy at batch 1 and 64, and sampled at 64 until answers end."""
    where, config = choose_device(device), nano().model
    ours = initialise(Transformer(config), 0).to(where).eval()
    twin = hugging_face_twin(ours)
    print(f"device {where}, {precision}, {torch.get_num_threads()} threads, {pairs} pairs")
    print(f"prompts of {PROMPT}, up to {NEW} new tokens")
    print(f"{'case':12s} {'ours tok/s':>12s} {'transformers':>12s} {'ratio':>7s}")
    # Answers of a model with random weights end with chance 1/32, as chat answers roughly do.
    ends = range(3, config.vocab_size, 32)
    for name, n, stop_ids in (("batch 1", 1, ()), ("batch 64", 64, ()), ("ragged 64", 64, ends)):
        ids = torch.randint(3, config.vocab_size, (n, PROMPT), device=where)
        options = {
            "max_new_tokens": NEW,
            "stop_ids": stop_ids,
            "temperature": float(len(stop_ids) > 0),
        }
        with autocast(where, precision):
            ask = partial(generate, ours, ids.tolist(), **options)
            wanted = [len(answer.ids) for answer in ask()]
            works = [ask, partial(theirs, twin, ids, max(wanted))]
            times = turns(works, pairs, where)
        mine, other = (sum(wanted) * rate for rate in rates(times))
        print(f"{name:12s} {mine:12.0f} {other:12.0f} {median_ratio(times):7.2f}")
    _length_curve(ours, where, precision)
    print(f"peak memory {peak_memory(where) / 2**20:.0f} MiB")
    return 0


def theirs(twin: Any, ids: Tensor, new: int) -> None:
    """Let `transformers` write greedily as many tokens in every row."""
    # `transformers` has no limit a row: rows that are done go on producing padding.
    twin.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
        do_sample=False,
    )  # fmt: skip


def _length_curve(model: Transformer, device: torch.device, precision: str) -> None:
    """Print the cost of a token as the sequence grows: flat means the cache works."""
    longest = model.config.max_seq_len - PROMPT
    prompts, costs = [[1] * PROMPT] * 16, []
    for new in (longest // 4, longest // 2, longest):
        with autocast(device, precision):
            work = partial(generate, model, prompts, max_new_tokens=new, temperature=0.0)
            fastest = min(seconds(work, device) for _ in range(3))
        costs.append(f"  {new}: {1e3 * fastest / new:.2f}")
    print("ms per step at batch 16 by answer length:" + "".join(costs))


# --- the other side: `transformers`' Llama with the weights of a model of ours


def hugging_face_twin(model: Transformer) -> nn.Module:
    """Return `transformers`' Llama with the same weights, and with PyTorch's fused attention."""
    twin = _transformers().LlamaForCausalLM(_config(model.config))
    twin.set_attn_implementation("sdpa")
    twin.load_state_dict(to_hugging_face(model.state_dict(), model.config))
    weight = model.tok_embeddings.weight
    return nn.Module.to(twin, weight.device, weight.dtype).eval()


def scalar_twin(model: ScalarModel) -> nn.Module:
    """Return `transformers`' Llama with a scalar head and the same weights; it has no bias."""
    if bool(model.head.bias.detach().any()):
        raise ValueError("the other side's scalar heads have no bias; this one's must be 0.")
    config = _config(model.config)
    config.num_labels = 1
    twin = _transformers().LlamaForSequenceClassification(config)
    twin.set_attn_implementation("sdpa")
    weights = to_hugging_face(model.backbone.state_dict(), model.config)
    del weights["lm_head.weight"]  # logits are what this head takes the place of
    weights["score.weight"] = model.head.weight
    twin.load_state_dict(weights)
    return nn.Module.to(twin, model.head.weight.device).eval()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "the comparison needs transformers, which is not installed; `make test` installs it, "
            "or pip install transformers."
        ) from None
    return transformers


def _config(c: ModelConfig) -> Any:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return _transformers().LlamaConfig(**hugging_face_config(c), tie_word_embeddings=False, **ids)


# --- how long work takes


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long `work` takes, with the device's queue drained."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def turns(works: Sequence[Callable[[], object]], n: int, device: torch.device) -> list[list[float]]:
    """Return the seconds of each work, turn by turn, `n` times; a turn before these warms up."""
    return [[seconds(work, device) for work in works] for _ in range(n + 1)][1:]


def rates(times: Sequence[Sequence[float]]) -> list[float]:
    """Return how often a second each work is done, by its median time."""
    return [1 / statistics.median(column) for column in zip(*times, strict=True)]


def median_ratio(times: Sequence[Sequence[float]]) -> float:
    """Return the median of how many times as long the second of two neighbours takes."""
    return statistics.median(other / mine for mine, other in times)


# --- one PPO iteration


@dataclass(frozen=True, slots=True)
class Setting:
    """All that takes part in an iteration."""

    ppo: Ppo
    models: RewardModels
    prompts: list[tuple[list[int], bool]]
    optimizer: torch.optim.Optimizer

    def iterate(self, number: int, rewards: Rewards) -> dict[str, float]:
        """Do one iteration of the course's own; refuse an answer shorter than all others."""
        ppo = replace(self.ppo, rewards=rewards)
        row = stage.iterate(ppo, self.optimizer, self.prompts, number)
        if row["length"] != self.ppo.config.max_new_tokens:
            raise ValueError(
                f"every answer must have {self.ppo.config.max_new_tokens} tokens to be compared; "
                f"their mean is {row['length']}."
            )
        return row

    def one_model(self, rows: Sequence[list[int]], tags: Sequence[bool]) -> Rewarded:
        """Score with one reward model only, as TRL does."""
        score = scores(self.models.helpfulness, rows)
        return Rewarded(score, score, score)


def setting(
    shape: ModelConfig, batch: int, device: torch.device, *, prompt: int = ASKED, new: int = SAID
) -> Setting:
    """Return models and prompts for an iteration over `batch` prompts."""
    policy = never_ending(shape).to(device)
    value, helpfulness, safety = (
        scalar_model(policy, seed=seed).to(device) for seed in (None, 1, 2)
    )
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(3, shape.vocab_size, (batch, prompt), generator=source).tolist()
    config = PpoConfig(
        iterations=1, batch_size=batch, minibatch_size=batch // MINIBATCHES, max_new_tokens=new,
        value_warmup=0,
    )  # fmt: skip
    model, models = ActorCritic(policy, value), RewardModels(helpfulness, safety)
    reference = copy.deepcopy(policy).requires_grad_(False)
    ppo = Ppo(config=config, model=model, reference=reference, rewards=models, eos_id=EOS)
    optimizer = adamw(model, rates={"value.": config.value_lr_multiplier})
    return Setting(ppo, models, [(row, False) for row in ids], optimizer)


@torch.no_grad()
def never_ending(shape: ModelConfig) -> Transformer:
    """Return random weights that give the control ids 0 to 2 no probability.

    So no answer ends early, and none holds an id that marks padding on the other side. One
    number of the residual stream is 1 at every token, and the control ids are weighed down by it.
    """
    model = initialise(Transformer(shape), 0)
    model.tok_embeddings.weight[:, 0] = 1.0
    for name, weight in model.named_parameters():
        if name.endswith(("wo.weight", "w2.weight")):
            weight[0] = 0.0
    model.output.weight[:3, 0] = -20.0
    return model.eval()


def ppo(*, pairs: int = 5, device: str = "auto", precision: str = "fp32") -> int:
    """Time PPO iterations, and beside them TRL's where that is installed."""
    if precision != "fp32":
        raise ValueError(f"PPO runs in fp32 only; got {precision!r}. Leave --precision out.")
    where, shape, reason = choose_device(device), nano().model, missing()
    print(f"device {where}, fp32, {torch.get_num_threads()} threads, {pairs} pairs")
    print(f"prompts of {ASKED}, answers of {SAID} tokens, {MINIBATCHES} mini-batches, one pass")
    if reason is not None:
        print(f"not compared with TRL: {reason}")
    else:
        print("both sides with one reward model; without logging, saving and sample generations")
    print(f"{'iterations/s':12s} {'ours':>12s} {'TRL':>12s} {'ratio':>7s}  (range)")
    for batch in BATCHES:
        given = setting(shape, batch, where)
        print(_beside_trl(given, where, pairs) if reason is None else _alone(given, where, pairs))
    print(f"peak memory {peak_memory(where) / 2**20:.0f} MiB")
    return 0


def _alone(given: Setting, device: torch.device, n: int) -> str:
    [rate] = rates(turns([partial(given.iterate, 0, given.models)], n, device))
    return f"batch {given.ppo.config.batch_size:<6d} {rate:12.2f}  (with both reward models)"


def _beside_trl(given: Setting, device: torch.device, n: int) -> str:
    times = in_turn(given, lambda turn: given.iterate(turn, given.one_model), device, n)
    mine, other = rates(times)
    ratios = sorted(b / a for a, b in times)
    return (
        f"batch {given.ppo.config.batch_size:<6d} {mine:12.2f} {other:12.2f} "
        f"{median_ratio(times):7.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


# --- TRL's side


def missing() -> str | None:
    """Return why there can be no comparison; None if there can."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        return "TRL is not installed (the extra `bench`)."
    if not (Path(spec.origin).parent / "experimental" / "ppo").is_dir():
        return "this release of TRL has no PPO; the extra `bench` has the last one that does."
    return None


def in_turn(
    given: Setting, ours: Callable[[int], object], device: torch.device, n: int
) -> list[list[float]]:
    """Return `n` pairs of seconds of an iteration: ours and TRL's.

    TRL's own loop runs; after each of its iterations ours has its turn, inside a callback. So
    all that TRL does from one iteration to the next is counted, but the writing of its log.
    """
    import transformers

    times: list[list[float]] = []
    begin = time.perf_counter()

    class Turn(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal begin
            synchronize(device)
            theirs = time.perf_counter() - begin
            times.append([seconds(lambda: ours(len(times)), device), theirs])
            begin = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder, _silence():
        trainer, rows = _trainer(given, folder, n + 1, Turn())
        begin = time.perf_counter()
        trainer.train()
    ended = sum(row["val/num_eos_tokens"] for row in rows)
    if len(rows) != n + 1 or ended:
        raise ValueError(f"TRL should do {n + 1} iterations in which no answer ends; got {rows}.")
    return times[1:]  # the first pair warms up


def _trainer(given: Setting, folder: str, n: int, turn: Any) -> tuple[Any, list[dict]]:
    """Return TRL's trainer with the same weights, prompts and settings, and its future log."""
    from transformers.trainer_callback import PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[missing-import]

    c, model, device = given.ppo.config, given.ppo.model, given.ppo.device
    prompts = [{"input_ids": ids} for ids, _ in given.prompts]
    trainer = PPOTrainer(
        PPOConfig(
            output_dir=folder, per_device_train_batch_size=c.batch_size,
            gradient_accumulation_steps=1,  # more of them would merge the mini-batches' steps
            num_mini_batches=c.batch_size // c.minibatch_size,
            num_ppo_epochs=1, total_episodes=n * c.batch_size,
            local_rollout_forward_batch_size=64,  # its default
            response_length=c.max_new_tokens,
            temperature=c.temperature, kl_coef=c.beta, cliprange=c.clip, cliprange_value=1e9,
            vf_coef=c.value_weight, gamma=c.gamma, lam=c.lam, learning_rate=c.lr,
            lr_scheduler_type="constant", weight_decay=c.weight_decay, num_sample_generations=0,
            gradient_checkpointing=False, bf16=False, use_cpu=device.type == "cpu",
            report_to="none", save_strategy="no", disable_tqdm=True,
        ),
        # All it reads of a tokenizer.
        SimpleNamespace(pad_token_id=0, eos_token_id=2), hugging_face_twin(model.policy),
        hugging_face_twin(given.ppo.reference), scalar_twin(given.models.helpfulness),
        train_dataset=prompts, value_model=scalar_twin(model.value),
        data_collator=lambda rows: {"input_ids": torch.tensor([r["input_ids"] for r in rows])},
        eval_dataset=prompts[:1], callbacks=[turn],
    )  # fmt: skip
    rows: list[dict] = []
    trainer.remove_callback(PrinterCallback)
    trainer.log = lambda row, *_: rows.append(row)
    return trainer, rows


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without warnings and greetings; they are not about the comparison."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield
    finally:
        logging.set_verbosity(before)
