"""One PPO iteration of the course's own shape: part by part, and beside TRL's.

Random weights, prompts of 32 tokens, answers of exactly 32, a value function of its own, four
mini-batches, one pass over them.
"""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llama2_lib.bench import trl
from llama2_lib.bench.timing import Stopwatch, median_ratio, seconds
from llama2_lib.device import choose_device, peak_memory
from llama2_lib.evaluation.reward import scores
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.heads import ScalarModel, scalar_model
from llama2_lib.model.transformer import Transformer, initialise
from llama2_lib.recipes import nano
from llama2_lib.stages import ppo as stage
from llama2_lib.stages import rollout as rollouts
from llama2_lib.stages.reward import Rewarded, RewardModels
from llama2_lib.stages.rollout import ActorCritic, PpoConfig, Rewards
from llama2_lib.training.schedule import adamw

PROMPT, NEW, MINIBATCHES = 32, 32, 4
BATCHES = (64, 256)
EOS = 2
PARTS = (
    "generation", "scoring by two reward models", "log-probabilities and values", "advantages",
    "gradient steps",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """All that takes part in an iteration."""

    config: PpoConfig
    model: ActorCritic
    reference: Transformer
    models: RewardModels
    prompts: list[tuple[list[int], bool]]
    optimizer: torch.optim.Optimizer

    def iterate(self, number: int, rewards: Rewards) -> dict[str, float]:
        """Do one iteration of the course's own.

        Raises:
            ValueError: An answer was not as long as all others.
        """
        row = stage.iterate(
            self.config, self.model, self.reference, lambda _: self.prompts, rewards,
            self.optimizer, number, EOS,
        )  # fmt: skip
        if row["length"] != self.config.max_new_tokens:
            raise ValueError(
                f"every answer must have {self.config.max_new_tokens} tokens to be compared; "
                f"their mean is {row['length']}."
            )
        return row

    def one_model(self, rows: Sequence[list[int]], tags: Sequence[bool]) -> Rewarded:
        """Score with one reward model only, as TRL does."""
        found = scores(self.models.helpfulness, rows)
        return Rewarded(found, found, found)


def setting(
    shape: ModelConfig, batch: int, device: torch.device, *, prompt: int = PROMPT, new: int = NEW
) -> Setting:
    """Return models and prompts for an iteration over `batch` prompts."""
    policy = never_ending(shape).to(device)
    value, helpfulness, safety = (
        scalar_model(policy, seed=seed).to(device) for seed in (None, 1, 2)
    )
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(3, shape.vocab_size, (batch, prompt), generator=source).tolist()
    model = ActorCritic(policy, value)
    config = PpoConfig(
        iterations=1, batch_size=batch, minibatch_size=batch // MINIBATCHES, max_new_tokens=new,
        value_warmup=0,
    )  # fmt: skip
    return Setting(
        config, model, copy.deepcopy(policy).requires_grad_(False),
        RewardModels(helpfulness, safety), [(row, False) for row in ids],
        adamw(model, rates={"value.": config.value_rate}),
    )  # fmt: skip


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


def parts(given: Setting, device: torch.device, number: int) -> tuple[dict[str, float], float]:
    """Return the seconds of every part of an iteration, and of the whole."""
    watch = Stopwatch(device)
    generation, scoring, values, advantages, steps = PARTS
    rewards = watch.timed(scoring, given.models)
    with watch.watching(
        (rollouts, "sample_answers", generation), (rollouts, "_seen", values),
        (rollouts, "shaped_rewards", advantages), (rollouts, "gae", advantages),
        (rollouts, "whiten_together", advantages), (stage, "optimize", steps),
    ):  # fmt: skip
        whole = seconds(lambda: given.iterate(number, rewards), device)
    return {part: watch.seconds[part] for part in PARTS}, whole


def value_trunk(given: Setting, device: torch.device) -> float:
    """Return the seconds that a value function spends in a trunk of its own in an iteration.

    One pass without gradients, in the rollout, and one forward and backward.
    """
    value: ScalarModel = given.model.value
    rows = given.config.minibatch_size
    shape = (rows, len(given.prompts[0][0]) + given.config.max_new_tokens - 1)
    ids = torch.randint(3, value.config.vocab_size, shape, device=device)

    def work() -> None:
        for _ in range(MINIBATCHES):
            with torch.no_grad():
                value.backbone.hidden(ids)
            value.backbone.hidden(ids).sum().backward()

    spent = seconds(work, device)
    given.optimizer.zero_grad(set_to_none=True)
    return spent


def ppo(*, pairs: int = 5, device: str = "auto", precision: str = "fp32") -> int:
    """Time one PPO iteration part by part, and beside TRL's where that is installed.

    Raises:
        ValueError: Another precision than fp32, in which all of PPO runs here.
    """
    if precision != "fp32":
        raise ValueError(f"PPO runs in fp32 only; got {precision!r}. Leave --precision out.")
    where, shape, turns = choose_device(device), nano().model, max(5, pairs)
    print(f"device {where}, fp32, {torch.get_num_threads()} threads, {turns} pairs")
    print(f"prompts of {PROMPT}, answers of {NEW} tokens, {MINIBATCHES} mini-batches, one pass")
    print(f"{'median ms':30s}" + "".join(f" {f'batch {batch}':>12s}" for batch in BATCHES))
    columns = [_column(setting(shape, batch, where), where, turns) for batch in BATCHES]
    for part in columns[0]:
        print(f"{part:30s}" + "".join(f" {column[part]:12.0f}" for column in columns))
    for batch, column in zip(BATCHES, columns, strict=True):
        share = column["trunk of the value function"] / column["whole"]
        print(f"a trunk shared by policy and value saves at most {share:.0%} at batch {batch}")
    if (reason := trl.missing()) is not None:
        print(f"not compared with TRL: {reason}")
    else:
        print("both sides with one reward model; without logging, saving and sample generations")
        print(f"{'iterations/s':12s} {'ours':>12s} {'TRL':>12s} {'ratio':>7s}  (range)")
        for batch in BATCHES:
            print(_beside_trl(setting(shape, batch, where), where, turns))
    print(f"peak memory {peak_memory(where) / 2**20:.0f} MiB")
    return 0


def _column(given: Setting, device: torch.device, turns: int) -> dict[str, float]:
    """Return the median milliseconds of every part, of the whole, and of the value's trunk."""
    rows = []
    for turn in range(turns + 1):  # the first one warms up
        found, whole = parts(given, device, turn)
        trunk = value_trunk(given, device)
        rows.append({**found, "whole": whole, "trunk of the value function": trunk})
    return {name: 1e3 * statistics.median(row[name] for row in rows[1:]) for name in rows[0]}


def _beside_trl(given: Setting, device: torch.device, turns: int) -> str:
    times = trl.turns(given, lambda turn: given.iterate(turn, given.one_model), device, turns)
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    return (
        f"batch {given.config.batch_size:<6d} {1 / mine:12.2f} {1 / other:12.2f} "
        f"{median_ratio(times):7.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
