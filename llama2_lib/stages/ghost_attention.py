"""Ghost Attention (paper section 3.3, appendix A.3.5): instructions that hold for a whole dialog.

The data are built by pure functions over dialogs, in the paper's order:

1. `on_every_turn` puts the instruction before every message of the user: the teacher's prompt.
2. The newest RLHF model answers it; the best sample by reward is kept, as in rejection sampling.
3. `on_first_turn_only` drops the instruction from all messages but the first.
4. `ghost_example` trains on the last answer only: the earlier ones need not obey, and a loss on
   them would teach to forget.

The paper leaves open where the earlier answers come from. Reading A, the default: they are those
of the plain dialog, which obey nothing ("a mismatch between the system message and the intermediate
assistant messages" is then real, and step 4 is its cure). Reading B: all answers are sampled with
the instruction, turn after turn, so they obey, and a model may copy its own earlier turns instead
of looking at the first one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from llama2_lib.stages.instructed import check_counts, check_mixed_in, check_tuning
from llama2_lib.stages.rejection import Entry, Rewards, best, rescored
from llama2_lib.text.dialog import Encoder, Message, encode_example, encode_prompt
from llama2_lib.training.dialog_batches import Example
from llama2_lib.world.instructed import HOLDS
from llama2_lib.world.instructions import (
    COMBINED_FRACTION,
    TERSE_FRACTION,
    Instruction,
    obeys,
    worded,
)

READINGS = ("A", "B")
SHORT_TURNS = HOLDS
"""Of the short dialogs: none is long enough to forget in."""
LOSS_ON = ("last", "all", "everything")


@dataclass(frozen=True, kw_only=True, slots=True)
class GhostAttentionConfig:
    """One run. The paper's numbers are in brackets; learning rate and size it does not state."""

    n_dialogs: int
    """Dialogs, each with instructions of its own."""
    n_samples: int = 2
    """Answers drawn for each; the best by reward is kept."""
    most_turns: int = 24
    """Of a training dialog: more than are asked in the test. A model's own obedient answers are
    longer than plain ones, so twenty turns reach farther there than here, and farther than in
    training an instruction is forgotten. It stands in the teacher's prompt once a turn; where that
    does not fit the context, the teacher answers without the first turns, see `last_turns`."""
    reading: str = "A"
    """Where the earlier answers come from: A, the plain dialog; B, sampled with the instruction."""
    loss_on: str = "last"
    """last: the final answer [the paper's]; all: every answer; everything: no mask at all."""
    only_obeying: bool = True
    """Whether samples that do not obey are dropped before the reward chooses, by the world's own
    check. Ours: the paper's reward model has read instructions, ours has not."""
    combined: float = COMBINED_FRACTION
    """How often two instructions are combined [randomly]."""
    terse: float = TERSE_FRACTION
    """How often an instruction is terse [half of the time]."""
    n_short: int = 0
    """Dialogs of the stage `instructed`, of at most `SHORT_TURNS` turns, mixed in so that no
    instruction is unlearned: all kinds and values occur in them, but none has to be kept longer
    than it was before."""
    n_replay: int = 0
    """Other prompts mixed in, with answers of the RLHF model, so that nothing is forgotten."""
    n_demonstrations: int = 0
    """Demonstrations mixed in, most of them of prompts that only sound dangerous."""
    temperature: float = 0.7
    max_new_tokens: int = 24
    n_validation: int = 60
    """Of the dialogs, kept out of training; the loss on their last answers is measured."""
    epochs: int = 2
    batch_size: int = 4
    seq_len: int = 512
    peak_lr: float = 1e-3
    warmup: int = 10
    floor: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    precision: str = "fp32"
    compile: bool = False
    eval_every: int = 50
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "n_dialogs", "n_samples", "most_turns", "max_new_tokens", "n_validation")
        check_tuning(self)
        check_mixed_in(self, "n_short", "n_replay", "n_demonstrations")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature}.")
        if not (0 <= self.combined <= 1 and 0 <= self.terse <= 1):
            raise ValueError(
                f"combined and terse must lie within 0 and 1; got {self.combined} and {self.terse}."
            )
        for name, known in (("reading", READINGS), ("loss_on", LOSS_ON)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}.")


class Ghost(NamedTuple):
    """One training dialog of Ghost Attention before it is encoded."""

    prompt: list[Message]
    """The teacher's: the instruction in every message of the user, the last of which is open."""
    instructions: tuple[Instruction, ...]
    answer: str
    """Sampled after `prompt`."""
    score: float | None
    """Its reward; None where there was no other sample to compare it with."""


def with_instruction(message: Message, instruction: str) -> Message:
    """Return a message with the instruction before it, as one text."""
    return {"role": message["role"], "content": f"{instruction} {message['content']}"}


def on_every_turn(dialog: Sequence[Message], instruction: str) -> list[Message]:
    """Concatenate the instruction to every message of the user (step 1).

    Raises:
        ValueError: The instruction is empty.
    """
    if not instruction.strip():
        raise ValueError(f"an instruction must hold text; got {instruction!r}.")
    return [
        with_instruction(message, instruction) if message["role"] == "user" else message
        for message in dialog
    ]


def on_first_turn(dialog: Sequence[Message], instruction: str) -> list[Message]:
    """Concatenate the instruction to the user's first message only: how a model will be asked."""
    first = next(i for i, message in enumerate(dialog) if message["role"] == "user")
    asked = on_every_turn(dialog[: first + 1], instruction)
    return [*asked, *dialog[first + 1 :]]


def on_first_turn_only(prompt: Sequence[Message], instruction: str) -> list[Message]:
    """Drop the instruction from all messages of the user but the first (step 3).

    Raises:
        ValueError: A message of the user does not begin with it.
    """
    kept: list[Message] = []
    first = True
    for index, message in enumerate(prompt):
        if message["role"] != "user":
            kept.append(message)
            continue
        rest = message["content"].removeprefix(f"{instruction} ")
        if rest == message["content"]:
            raise ValueError(
                f"every message of the user must begin with {instruction!r}; message {index} is "
                f"{rest[:60]!r}. Make the prompt with on_every_turn."
            )
        kept.append(message if first else {"role": "user", "content": rest})
        first = False
    return kept


def last_turns(prompt: Sequence[Message], tok: Encoder, longest: int) -> list[Message]:
    """Return a prompt without as many of its first turns as must go for it to fit.

    The teacher misses nothing: the instruction stands before every message.

    Raises:
        ValueError: Not even its last message fits.
    """
    for first in range(0, len(prompt), 2):
        kept = list(prompt[first:])
        if len(encode_prompt(kept, tok)) <= longest:
            return kept
    raise ValueError(f"a message must fit {longest} tokens; got {prompt[-1]['content'][:60]!r}.")


def ghost_example(
    dialog: Sequence[Message], answer: str, tok: Encoder, loss_on: str = "last"
) -> Example:
    """Encode a dialog that ends with the user, and an answer to it; the loss is on it (step 4).

    Args:
        dialog: With the instruction in the first turn only.
        answer: The sampled one.
        tok: The tokenizer.
        loss_on: "last"; and for comparison "all" (every answer) or "everything" (no mask: the
            user's words and the tags as well, all but the first token).

    Raises:
        ValueError: `loss_on` is none of these, or the dialog is malformed.
    """
    if loss_on not in LOSS_ON:
        raise ValueError(f"loss_on must be one of {LOSS_ON}; got {loss_on!r}.")
    whole = [*dialog, cast(Message, {"role": "assistant", "content": answer})]
    if loss_on == "everything":
        ids = encode_example(whole, tok)[0]
        return ids, [False] + [True] * (len(ids) - 1)
    return encode_example(whole, tok, loss_on=loss_on)


def best_samples(
    prompts: Sequence[tuple[list[Message], tuple[Instruction, ...]]],
    samples: Sequence[Entry],
    rewards: Rewards,
    *,
    only_obeying: bool,
) -> list[Ghost]:
    """Choose the best sample of every prompt by reward; a prompt without any is left out.

    Long prompts are slow to score, so only samples with a rival are.

    Args:
        prompts: The teacher's prompts and their instructions.
        samples: Their samples.
        rewards: Scores samples.
        only_obeying: Whether samples that disobey are dropped first.
    """
    asked = {Entry(prompt, False, "", 0, 0.0).key: given for prompt, given in prompts}
    kept = [entry for entry in samples if not only_obeying or obeys(asked[entry.key], entry.answer)]
    n_of = Counter(entry.key for entry in kept)
    scored = iter(rescored([entry for entry in kept if n_of[entry.key] > 1], rewards))
    compared = [next(scored) if n_of[entry.key] > 1 else entry for entry in kept]
    return [
        Ghost(top.dialog, asked[top.key], top.answer, top.score if n_of[top.key] > 1 else None)
        for top in best(compared)
    ]


def ghost_examples(ghosts: Sequence[Ghost], tok: Encoder, loss_on: str = "last") -> list[Example]:
    """Return what Ghost Attention trains on."""
    return [
        ghost_example(
            on_first_turn_only(ghost.prompt, worded(ghost.instructions)), ghost.answer, tok, loss_on
        )
        for ghost in ghosts
    ]
