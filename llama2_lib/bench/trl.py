"""The same PPO iteration in TRL, the trainer of Hugging Face, turn by turn with ours.

Its PPO lives in `trl.experimental.ppo`, up to release 1.12. Nothing else here imports TRL.
"""

import contextlib
import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from llama2_lib.bench.timing import seconds
from llama2_lib.bench.twins import hugging_face_twin, scalar_twin
from llama2_lib.device import synchronize

if TYPE_CHECKING:
    from llama2_lib.bench.iteration import Setting


def missing() -> str | None:
    """Return why there can be no comparison; None if there can."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        return "TRL is not installed (the extra `bench`)."
    if not (Path(found.origin).parent / "experimental" / "ppo").is_dir():
        return "this release of TRL has no PPO; the extra `bench` has the last one that does."
    return None


def turns(
    given: "Setting", ours: Callable[[int], object], device: torch.device, n: int
) -> list[list[float]]:
    """Return `n` pairs of seconds of an iteration: ours and TRL's.

    TRL's own loop runs; after each of its iterations ours has its turn, inside a callback. So
    all that TRL does from one iteration to the next is counted, but the writing of its log.

    Raises:
        ValueError: An answer of TRL's did not have its full length.
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


def _trainer(given: "Setting", folder: str, n: int, turn: Any) -> tuple[Any, list[dict]]:
    """Return TRL's trainer with the same weights, prompts and settings, and its future log."""
    from transformers.trainer_callback import PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[missing-import]

    c, device = given.config, next(given.model.parameters()).device
    prompts = [{"input_ids": ids} for ids, _ in given.prompts]
    trainer = PPOTrainer(
        PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=c.batch_size,
            gradient_accumulation_steps=1,  # more of them would merge the mini-batches' steps
            num_mini_batches=c.batch_size // c.minibatch_size,
            num_ppo_epochs=1,
            total_episodes=n * c.batch_size,
            local_rollout_forward_batch_size=64,  # its default
            response_length=c.max_new_tokens,
            temperature=c.temperature,
            kl_coef=c.beta,
            cliprange=c.clip,
            cliprange_value=1e9,
            vf_coef=c.value_weight,
            gamma=c.gamma,
            lam=c.lam,
            learning_rate=c.lr,
            lr_scheduler_type="constant",
            weight_decay=c.weight_decay,
            num_sample_generations=0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=device.type == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        # All it reads of a tokenizer.
        SimpleNamespace(pad_token_id=0, eos_token_id=2),
        hugging_face_twin(given.model.policy),
        hugging_face_twin(given.reference),
        scalar_twin(given.models.helpfulness),
        train_dataset=prompts,
        value_model=scalar_twin(given.model.value),
        data_collator=lambda rows: {"input_ids": torch.tensor([r["input_ids"] for r in rows])},
        eval_dataset=prompts[:1],
        callbacks=[turn],
    )
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
