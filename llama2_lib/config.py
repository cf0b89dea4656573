"""Every setting of a chain, section by section of the paper: the appendix of hyper-parameters.

The paper's numbers stand in brackets, and `[not stated]` where it gives none. A config only
validates; what is done with its numbers stands in the file of its stage. Nothing here needs
PyTorch, so that the command line can name stages and settings at once. A number that decides what
is trained stands in one of these classes or in an UPPER_CASE constant beside the code that reads
it: both are in the fingerprint of an artifact, see `pipeline.graph`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import get_annotations
from math import inf
from typing import Annotated, Any, Literal, get_args, get_origin

from llama2_lib.model.config import ModelConfig
from llama2_lib.text.tokenizer import TokenizerConfig

Stream = Literal["helpfulness", "safety"]
WriterGrade = Literal["clean", "mixed", "noisy"]
ROUNDS = 4
"""Rounds of rejection sampling before PPO: V1 to V4 (section 3.2.3)."""
RED_TEAM_ROUNDS = 4
"""Rounds of red-teaming after safety context distillation (section 4.3)."""
VERSIONS = {
    "base": "pretrain",
    "SFT": "sft",
    **{f"V{number}": f"rejection_v{number}" for number in range(1, ROUNDS + 1)},
    f"V{ROUNDS + 1}": "ppo",
    "GAtt": "ghost_attention",
    "chat": f"red_team_v{RED_TEAM_ROUNDS}",
}
"""The versions of the chat model, by the paper's names where it has some, and their stages."""
BRANCHES = ("dates", "tools")
"""Stages that teach the chat model one thing more, and stand beside it (section 5.1)."""


@dataclass(frozen=True)
class Rule:
    """What the value of a setting must do, and why where that is not plain."""

    words: str
    holds: Callable[[float], bool]
    because: str = ""


def above_0(because: str = "") -> Rule:
    """Return the rule of a number that is above 0 and finite."""
    return Rule("be above 0 and finite", lambda value: 0 < value < inf, because)


AT_LEAST_0 = Rule("be at least 0", lambda value: 0 <= value < inf)
Count = Annotated[int, Rule("be at least 1", lambda value: 1 <= value < inf)]
Extra = Annotated[int, AT_LEAST_0]
Weight = Annotated[float, AT_LEAST_0]
Positive = Annotated[float, above_0()]
Share = Annotated[float, Rule("lie within 0 and 1", lambda value: 0 <= value <= 1)]


@cache
def _annotations(kind: type) -> list[tuple[str, Any]]:
    return [each for base in kind.__mro__ for each in get_annotations(base).items()]


class Checked:
    """Refuses a setting that breaks the rule of its annotation, or is none of its choices.

    Rules hold below, too: a subclass that gives a field another default cannot lift them.
    """

    def __post_init__(self) -> None:
        for name, hint in _annotations(type(self)):
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                choices = ", ".join(get_args(hint))
                raise ValueError(f"{name} must be one of {choices}; got {value!r}.")
            for rule in getattr(hint, "__metadata__", ()):
                if not rule.holds(value):
                    words = f"{name} must {rule.words}; got {value}. {rule.because}"
                    raise ValueError(words.strip())


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """What every run of `stages.fit` has: AdamW, warm-up and a cosine (section 2.2)."""

    peak_lr: float
    """Highest learning rate."""
    warmup: int = 10
    """Steps up to the highest rate."""
    min_lr_ratio: float = 0.1
    """Final rate as a fraction of the peak [0.1]."""
    weight_decay: Weight = 0.1
    """Decay of matrices; gains of norms do not decay [0.1]."""
    clip_norm: Positive = 1.0
    """Largest norm of a gradient [1.0]."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products only."""
    compile: bool = False
    """Whether to compile the model; pays on a GPU."""
    eval_every: Count = 100
    """Steps between measurements."""
    save_every: Count = 100
    """Steps between checkpoints."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = getattr(self, "steps", self.warmup + 1)  # else known only once data are packed
        check_schedule(self.peak_lr, steps, self.warmup, self.min_lr_ratio)


def check_schedule(peak_lr: float, steps: int, warmup: int, min_lr_ratio: float) -> None:
    """Refuse a warm-up that is longer than the run, and rates that are out of range."""
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must lie in 0...steps - 1; got {warmup} of {steps} steps.")
    if not (0 < peak_lr < inf and 0 <= min_lr_ratio <= 1):
        raise ValueError(
            f"peak_lr must be above 0 and min_lr_ratio within 0 and 1; got {peak_lr} and "
            f"{min_lr_ratio}."
        )


@dataclass(frozen=True, kw_only=True)
class DialogTrainConfig(TrainConfig):
    """What every run of `stages.fit.fit_dialogs` has: fine-tuning on packed dialogs."""

    batch_size: Count = 4
    """Rows per step, each of which holds several dialogs."""
    seq_len: Count = 512
    """Tokens per row."""
    isolate_documents: bool = True
    """Whether dialogs in a row are hidden from each other. The paper packs and does not say. They
    are by default: each dialog then gets the logits that it gets alone, which is how the model
    will be asked."""


@dataclass(frozen=True, kw_only=True)
class RehearsingConfig(DialogTrainConfig):
    """What fine-tuning has that must not undo what came before it, see `stages.rehearsal`."""

    n_replay: Extra = 0
    """Other prompts mixed in, with answers of the policy, so that nothing is forgotten."""
    n_demonstrations: Extra = 0
    """Demonstrations mixed in, most of them of prompts that only sound dangerous."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(Checked):
    """Which documents, and how many of them are kept for validation (section 2.1)."""

    world_seed: int = 0
    """Names the invented world that everything is about."""
    n_documents: Count = 40_000
    """Training documents of the world; a folder of `data` is read whole."""
    n_validation: Count = 1_000
    """Validation documents of the world, none of which is a copy of a training document."""
    shares: tuple[tuple[str, float], ...] | None = None
    """Share of documents by kind; the world's own when left out."""
    data: str | None = None
    """A folder of files to use instead of the world (`text/files.py`)."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """One pretraining run (section 2.2)."""

    steps: Count
    batch_size: Count
    """Rows per micro-batch [4 million tokens per step]."""
    seq_len: Count
    """Tokens per row [4096]."""
    accumulate: Count = 1
    """Micro-batches per step."""
    peak_lr: float = 3e-3
    """[3e-4 for 7B]; small models stand, and need, more."""
    warmup: int = 20
    """[2,000, which is 0.4 % of the run]"""
    isolate_documents: bool = False
    """Whether documents in a pack are hidden from each other [not stated]."""
    whole_every: Extra = 0
    """Every so many batches documents see each other all the same (0: never). Few documents are
    long, and without it a token would hardly ever look far back: a dialog of twenty turns then goes
    wrong at its end (docs/log.md)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.whole_every and not self.isolate_documents:
            raise ValueError(
                f"whole_every is for isolated documents; got {self.whole_every} without. All "
                "batches are whole then: set it to 0, or isolate_documents."
            )

    @property
    def n_tokens(self) -> int:
        """Tokens trained on."""
        return self.steps * self.accumulate * self.batch_size * self.seq_len


@dataclass(frozen=True, kw_only=True)
class SftConfig(DialogTrainConfig):
    """One fine-tuning run on demonstrations (section 3.1)."""

    n_dialogs: Count
    """Training dialogs [27,540]."""
    batch_size: Count
    """Rows per step [64], each of which holds several dialogs."""
    seq_len: Count
    """Tokens per row [4096]."""
    n_validation: Count = 200
    """Dialogs kept for the loss on answers, none of which is a copy of a training dialog."""
    grade: WriterGrade = "clean"
    """How careful the writers of the demonstrations are; those of validation are always clean."""
    epochs: Count = 2
    """[2]"""
    peak_lr: float = 2e-3
    """[2e-5]; half of our own pretraining rate, where the paper's is a fifteenth. More of it
    teaches the answers better and forgets more of the facts that no dialog asks for."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainConfig):
    """One reward model (section 3.2.2)."""

    stream: Stream
    """What it judges."""
    n_pairs: Count
    """Pairs that exist before any model, of both streams in the shares of `OWN_SHARE` [the paper
    began with 1.5 million open-source pairs]."""
    n_fresh: Extra = 0
    """Prompts that the fine-tuned model answers twice for annotators, first round [1.4 million
    comparisons over 14 batches]."""
    n_fresh_later: Extra = 0
    """The same in every later round, with as many older pairs trained on again."""
    max_new_tokens: Count = 96
    """Length of those answers at most."""
    batch_size: Count = 16
    """Pairs per step [512]."""
    n_validation: Count = 400
    """Held-out pairs of its own stream for the accuracy in the log."""
    margin: Literal["none", "small", "large"] = "small"
    """Margin schedule [the final choice is not stated]."""
    safety_weight: Weight = 1.0
    """Weight of the auxiliary safety loss, for the safety model only [not stated]."""
    peak_lr: float = 5e-4
    """[1e-5; 5e-6 for 70B]; small models stand, and need, more."""
    head_lr_multiplier: Weight = 10.0
    """Learning rate of the scalar head, in units of the others' [not stated]. The head starts at
    zero, and as long as it is small the model below hears nothing."""
    later_lr_ratio: Weight = 0.5
    """Later rounds continue from the model of the round before, at this fraction of the peak."""
    warmup: int = 5
    """Steps [3 %, 5 at least]."""
    save_every: Count = 50


@dataclass(frozen=True, kw_only=True)
class RewardVariant(Checked):
    """One reward model that the claims compare with others; it learns from the world's pairs."""

    reward: RewardConfig
    """Stream, number of pairs, margin, auxiliary loss, rates; without fresh pairs."""
    own_share: Annotated[float, Rule("lie above 0, 1 at most", lambda value: 0 < value <= 1)]
    """Share of its own stream in the training pairs; the rest is the other stream."""
    coin_toss: bool = False
    """Whether a coin decides which answer is called the chosen one: a control that can learn
    nothing. There are no safety labels then."""
    n_helpfulness: Extra = 0
    """Held-out pairs of the helpfulness stream that it is tested on."""
    n_safety: Extra = 0
    """The same of the safety stream."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward.n_fresh or self.reward.n_fresh_later:
            raise ValueError("a variant learns from the world's pairs alone: set n_fresh to 0.")
        if not self.tested:
            raise ValueError("a variant must be tested on some pairs; got none of either stream.")

    @property
    def tested(self) -> dict[Stream, int]:
        """Numbers of held-out pairs by stream, without streams that have none."""
        numbers: dict[Stream, int] = {"helpfulness": self.n_helpfulness, "safety": self.n_safety}
        return {stream: n for stream, n in numbers.items() if n}


@dataclass(frozen=True, kw_only=True)
class RejectionConfig(DialogTrainConfig):
    """One round of rejection sampling (section 3.2.3); the paper states the method alone."""

    n_prompts: Count
    """New prompts a round."""
    n_samples: Count = 8
    """Answers drawn for each [the paper plots 1 to 100]."""
    temperatures: tuple[float, ...] = (0.6, 0.8, 1.0)
    """Tried every round; the one with the best max-of-K is used [best for its RLHF models: 1.2 to
    1.3; ours picks out what its reward model overrates among such hot samples, see the log]."""
    n_probe: Count = 40
    """Prompts on which temperatures are tried."""
    select: Literal["best", "random"] = "best"
    """best by reward, or random: the control that shows what the selection is worth."""
    keep: Literal["all rounds", "last round"] = "all rounds"
    """Whether the pool keeps all rounds or the last one only, as the paper did up to V3."""
    n_demonstrations: Extra = 0
    """Demonstrations of fine-tuning mixed in, so that skills no prompt asks for stay."""
    max_new_tokens: Count = 96
    steps: Count = 150
    """Optimiser steps of every round alike, from the base model."""
    peak_lr: float = 2e-3
    eval_every: Count = 75
    save_every: Count = 75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperatures or not min(self.temperatures) > 0:
            raise ValueError(
                f"temperatures must be one or more numbers above 0; got {self.temperatures}. At 0 "
                "all samples of a prompt are the same."
            )


@dataclass(frozen=True, kw_only=True)
class PpoConfig(Checked):
    """One run of PPO. No `TrainConfig`: its rate is constant and its steps are iterations."""

    iterations: Count
    """[200 to 400]"""
    batch_size: Count = 256
    """Prompts of an iteration [512]."""
    n_prompts: Count = 4000
    """Training prompts to draw from."""
    longest_prompt: Count = 64
    """Tokens; longer prompts are left out, since every row of a mini-batch pays for the longest."""
    n_held_out: Count = 160
    """Prompts of the measurements."""
    minibatch_size: Count = 64
    """Prompts of a gradient step; every mini-batch is used for one [64]."""
    lr: Weight = 1e-4
    """Constant [1e-6]: a hundred times as high, since a model of a million weights does not move
    in fifty iterations with the paper's."""
    value_lr_multiplier: Weight = 5.0
    """Learning rate of the value function, in units of `lr` [not stated]: it starts knowing
    nothing, and until it has learned which prompts score high, advantages are mostly noise."""
    beta: Weight = 0.2
    """Weight of the divergence [0.01, 0.005 for the larger ones]. What counts is the sum over an
    answer, and ours have 30 tokens where the paper's have hundreds. At 0.05 this policy forgets
    facts to please the reward model, which cannot tell (docs/log.md)."""
    clip: Positive = 0.2
    """[0.2]"""
    value_clip: float | None = None
    """How far a value may move in one iteration [not stated]; None: freely."""
    value_weight: Weight = 0.5
    """Weight of the value loss [not stated]."""
    gamma: Share = 1.0
    """Discount of later rewards [not stated]."""
    lam: Share = 1.0
    """Lambda of generalised advantage estimation [not stated]."""
    temperature: Annotated[float, above_0("Greedy answers have no log-probabilities.")] = 1.0
    """Temperature of sampling and of all log-probabilities [not stated]."""
    value_warmup: Extra = 4
    """Iterations before the first in which the value function alone learns [not stated]."""
    whiten_by: Literal["batch", "tag", "nothing"] = "tag"
    """Over what scores are whitened: batch [the paper's wording], tag or nothing. Tagged prompts
    are scored by one model and the others by another, with another zero; over the whole batch the
    kind of prompt would be the largest part of the signal, and no answer can change it."""
    missing_eos_score: float = -2.0
    """Whitened score of an answer that did not end within the limit [not stated]."""
    max_new_tokens: Count = 96
    weight_decay: Weight = 0.1
    """[0.1]"""
    clip_norm: Positive = 1.0
    """[1.0]"""
    eval_every: Count = 5
    """Iterations between measurements on held-out prompts."""
    patience: Count = 4
    """Measurements without a better one before it stops [early stopping, no number]."""
    save_every: Count = 10
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_clip is not None and not 0 < self.value_clip < inf:
            raise ValueError(f"value_clip must be above 0 and finite; got {self.value_clip}.")
        if self.batch_size % self.minibatch_size:
            raise ValueError(
                f"batch_size must be a multiple of minibatch_size; got {self.batch_size} and "
                f"{self.minibatch_size}."
            )


@dataclass(frozen=True, kw_only=True)
class InstructedConfig(RehearsingConfig):
    """Teaching a model to obey an instruction in the message that it stands in; not the paper's."""

    n_dialogs: Count
    """Dialogs with instructions or without."""
    n_validation: Count = 60
    epochs: Count = 2
    peak_lr: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class GhostAttentionConfig(RehearsingConfig):
    """One run of Ghost Attention (section 3.3); learning rate and size the paper does not state."""

    n_dialogs: Count
    """Dialogs, each with instructions of its own."""
    n_samples: Count = 2
    """Answers drawn for each; the best by reward is kept."""
    most_turns: Count = 24
    """Turns of a training dialog: more than are asked in the test. A model's own obedient answers
    are longer than plain ones, so twenty turns reach farther there than here, and farther than in
    training an instruction is forgotten. It stands in the teacher's prompt once a turn; where that
    does not fit the context, the teacher answers without the first turns, see `last_turns`."""
    reading: Literal["A", "B"] = "A"
    """Where the earlier answers come from: A, the plain dialog; B, sampled with the instruction."""
    loss_on: Literal["last", "all", "everything"] = "last"
    """last: the final answer [the paper's]; all: every answer; everything: no mask at all."""
    only_obeying: bool = True
    """Whether samples that do not obey are dropped before the reward chooses, by the world's own
    check. Ours: the paper's reward model has read instructions, ours has not."""
    combined: Share = 0.5
    """How often two instructions are combined [randomly]."""
    terse: Share = 0.5
    """How often an instruction is terse [half of the time]."""
    n_short: Extra = 0
    """Dialogs of the stage `instructed`, of at most `SHORT_TURNS` turns, mixed in so that no
    instruction is unlearned: all kinds and values occur in them, but none has to be kept longer
    than it was before."""
    temperature: Positive = 0.7
    max_new_tokens: Count = 24
    n_validation: Count = 60
    """Dialogs kept out of training; the loss on their last answers is measured."""
    epochs: Count = 2
    peak_lr: float = 1e-3
    eval_every: Count = 50
    save_every: Count = 50


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(RehearsingConfig):
    """Safety context distillation (4.2.4). The paper states none of these but the method."""

    n_prompts: Count
    """Adversarial prompts that are answered with and without the preprompt."""
    preprompt: Literal["none", "generic", "template"] = "template"
    """template by risk category, generic, or none: the control that trains on its own answers."""
    gate: bool = True
    """Whether an answer must score higher than the original one to be kept."""
    apply_to: Literal["adversarial", "all", "all as risky"] = "adversarial"
    """adversarial, or all: as many helpful prompts, too, behind generic preprompts. The paper warns
    of that. In "all as risky" helpful prompts get answer templates as if they were risky."""
    n_heed: Count = 400
    """Dialogs that teach a copy of the model what preprompts mean. A large model has read what a
    responsible assistant says; ours never has, and left alone its answers behind a preprompt are
    no better than without (see the log). The copy is thrown away once it has answered."""
    heed_steps: Count = 80
    """Optimiser steps of that copy."""
    heed_lr: float = 1e-3
    temperature: Annotated[float, above_0("Greedy answers are the same again and again.")] = 0.7
    """Temperature of all answers: cooler than the model is used, as slips pass the gate too
    easily."""
    n_replay: Extra = 350
    n_demonstrations: Extra = 350
    n_ghosts: Extra = 200
    """Dialogs of Ghost Attention mixed in."""
    max_new_tokens: Count = 96
    steps: Count = 80
    peak_lr: float = 3e-4
    """A tenth of fine-tuning's: the model is nearly finished."""
    warmup: int = 5
    eval_every: Count = 40
    save_every: Count = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        check_schedule(self.heed_lr, self.heed_steps, self.warmup, self.min_lr_ratio)


@dataclass(frozen=True, kw_only=True)
class SafetyData(Checked):
    """All helpfulness data and a part of the safety data, which claims compare (4.2.3)."""

    fraction: Share
    """Share of the safety dialogs [0, 1, 10, 25, 50, 100 %]."""
    n_helpful: Count
    """Helpful dialogs, the same in all variants [about 900,000]."""
    n_safety: Count
    """All safety dialogs [about 100,000]."""
    helpful_grade: WriterGrade = "mixed"
    """Grade of the helpful demonstrations. Those of safety are clean."""
    seed: int = 0  # all variants of one seed nest

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fraction and not self.n_kept:
            raise ValueError(
                f"a fraction of {self.fraction} of {self.n_safety} safety dialogs is none; take "
                f"{round(1 / self.fraction)} or more."
            )

    @property
    def n_kept(self) -> int:
        """How many safety dialogs this variant learns from."""
        return round(self.fraction * self.n_safety)


@dataclass(frozen=True, kw_only=True)
class RedTeamConfig(DialogTrainConfig):
    """One round of red-teaming (4.3). The paper states its effect and none of these."""

    budget: Count = 400
    """Queries of a round: the paper's person hours."""
    queries_together: Count = 40
    """Queries between two looks at what worked."""
    n_lessons: Count = 4
    """Safe answers, in different words, that people write for each prompt that broke the model."""
    replay: Weight = 3.0
    """Dialogs rehearsed for each lesson, so that nothing is forgotten."""
    epochs: Count = 2
    temperature: Weight = 1.0
    """Temperature of the answers under attack."""
    max_new_tokens: Count = 96
    peak_lr: float = 2e-4
    warmup: int = 3
    eval_every: Count = 50
    save_every: Count = 50


@dataclass(frozen=True, kw_only=True)
class EmergentConfig(RehearsingConfig):
    """What teaching a sense of time and the use of tools have in common (5.1)."""

    n_dialogs: Count
    n_validation: Count = 60
    """Examples held back; the loss on their answers is measured."""
    n_ghosts: Extra = 200
    """Dialogs of Ghost Attention mixed in."""
    epochs: Count = 3
    peak_lr: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class DatesConfig(EmergentConfig):
    """Dated questions [1,000 examples]."""

    shuffled: bool = False
    """Whether dates are exchanged between the questions: the control, which teaches nothing."""


@dataclass(frozen=True, kw_only=True)
class ToolsConfig(EmergentConfig):
    """Calls of tools. The paper's model called them untaught; ours must be shown."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a chain, from text to a chat model, section by section of the paper."""

    name: str
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    pretrain: PretrainConfig
    sft: SftConfig
    helpfulness: RewardConfig
    safety: RewardConfig
    rejection: RejectionConfig
    ppo: PpoConfig
    instructed: InstructedConfig
    ghost_attention: GhostAttentionConfig
    distillation: DistillationConfig
    red_team: RedTeamConfig
    dates: DatesConfig
    tools: ToolsConfig
    reward_model: RewardVariant | None = None
    safety_data: SafetyData | None = None
    """For the stages of these names, which no chain needs: claims compare their variants."""

    def __post_init__(self) -> None:
        if self.model.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"model and tokenizer must have the same vocab_size; got {self.model.vocab_size} "
                f"and {self.tokenizer.vocab_size}."
            )
