"""Ghost Attention: instructions that hold for a whole dialog (paper section 3.3, appendix A.3.5).

1. `on_every_turn` puts an instruction before every message of the user: the teacher's prompt.
2. The newest RLHF model answers its last message; the best sample by reward is kept, as in
   rejection sampling.
3. `on_first_turn_only` drops the instruction from all messages but the first.
4. `ghost_example` trains on the last answer only: the earlier ones need not obey, and a loss on
   them would teach to forget.

The paper leaves open where the earlier answers come from. Reading A, the default: they are those
of the plain dialog, which obey nothing ("a mismatch between the system message and the intermediate
assistant messages" is then real, and step 4 is its cure). Reading B: all answers are sampled with
the instruction, turn after turn, so they obey, and a model may copy its own earlier turns instead
of looking at the first one.

Before it comes a stage of ours, `instructed`: the paper's models obey an instruction in the message
that it stands in already, ours have to be taught to.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llama2_lib import rng, storage
from llama2_lib.config import GhostAttentionConfig, Recipe, RehearsingConfig
from llama2_lib.model.chat import answer_room, fits, reply, room
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.folder import chained, source_of
from llama2_lib.stages.job import Job
from llama2_lib.stages.prompts import answered
from llama2_lib.stages.rehearsal import remembered, shown
from llama2_lib.stages.rejection import Sample, Score, best, distinct, draw, rescored
from llama2_lib.stages.reward import load_rewards, text_rows
from llama2_lib.stages.sft import VALIDATION_SEED, examples, fine_tune
from llama2_lib.text.dialog import Encoder, encode_example
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.batches import Example
from llama2_lib.world import make_world
from llama2_lib.world.dialogs import Message
from llama2_lib.world.instructions import (
    HOLDS,
    INSTRUCTED_FRACTION,
    MOST_TURNS,
    Instruction,
    as_dialog,
    briefs,
    instructed_dialogs,
    instruction_maker,
    instructions,
    obeying,
    obeys,
    worded,
)

SHORT_TURNS = HOLDS
"""Turns of the short dialogs at most: none is long enough to forget in."""


class Ghost(NamedTuple):
    """A dialog whose last answer is asked of the teacher, and then that answer; not encoded yet."""

    prompt: list[Message]
    """The instructions in every message of the user, the last of which is open."""
    instructions: tuple[Instruction, ...]
    answer: str = ""
    score: float | None = None
    """The answer's reward; None where there was no other sample to compare it with."""

    @property
    def student(self) -> list[Message]:
        """The prompt with the instructions in the first turn only."""
        return on_first_turn_only(self.prompt, worded(self.instructions))

    def sample(self, answer: str = "") -> Sample:
        """Return one answer to the prompt, not scored yet."""
        return Sample(self.prompt, False, answer, 0, 0.0)


# --- Ghost Attention


def run(job: Job, start: str, policy: str, rewards: str) -> None:
    """Build the data with the model of the stage `start` and fine-tune it on them.

    Beside them it rehearses the answers of the RLHF model, that of the stage `policy`. Leaves the
    model, `ghosts.jsonl.gz` (the teacher's prompts and the chosen answers) and, as step 0 of the
    metrics, what became of the samples.
    """
    config, tokenizer = job.recipe.ghost_attention, job.tokenizer
    teacher = job.model(start)
    context, longest = room(teacher, 0), room(teacher, config.max_new_tokens)
    models = load_rewards(job.inputs[rewards], job.device)

    def score(samples: Sequence[Sample]) -> np.ndarray:
        shortened = [last_turns(sample.dialog, tokenizer, longest) for sample in samples]
        rows = text_rows(shortened, [sample.answer for sample in samples], tokenizer, context)
        return models(rows, [sample.is_safety for sample in samples]).combined

    prompts, n_too_long = teacher_prompts(job.recipe, teacher, tokenizer)
    samples, counts = sample_last_answers(config, teacher, tokenizer, prompts)
    ghosts = best_samples(prompts, samples, score, only_obeying=config.only_obeying)
    n_held = config.n_validation
    if len(ghosts) <= n_held:
        raise ValueError(
            f"more than n_validation={n_held} dialogs must have a sample to keep; got "
            f"{len(ghosts)} of {len(prompts)}. Does the model obey an instruction at all?"
        )
    storage.write_rows(job.folder / "ghosts.jsonl.gz", ghosts)
    counts |= {"too long": n_too_long, "ghosts": len(ghosts) - n_held, "held back": n_held}
    seed = rng.seed_from(config.seed, "short dialogs")
    short = _instructed_dialogs(job, seed, config.n_short, SHORT_TURNS)
    train = [
        *ghost_examples(ghosts[n_held:], tokenizer, config.loss_on),
        *rehearsed(job, config, job.model(policy), config.seed),
        *examples(short, tokenizer),
    ]
    held = ghost_examples(ghosts[:n_held], tokenizer)
    fine_tune(job, config, teacher, train, counts, epochs=config.epochs, begin=0.3, validation=held)


def rehearsed(job: Job, config: RehearsingConfig, policy: Transformer, seed: int) -> list[Example]:
    """Return what is mixed in, so that nothing is forgotten."""
    longest_answer = answer_room(policy, job.recipe.rejection.max_new_tokens)
    return [
        *remembered(job, policy, config.n_replay, seed, longest_answer),
        *shown(job, config.n_demonstrations, seed),
    ]


# --- step 1: the teacher's prompts


def teacher_prompts(
    recipe: Recipe, model: Transformer, tokenizer: Tokenizer
) -> tuple[list[Ghost], int]:
    """Return the prompts that ask for the last answers, and how many did not fit the context.

    Under reading B the earlier answers are sampled first, each with the instruction.
    """
    config, world = recipe.ghost_attention, make_world(recipe.corpus.world_seed)
    seed, n = rng.seed_from(config.seed, "ghost attention"), config.n_dialogs
    longest = room(model, config.max_new_tokens)
    if recipe.corpus.data is None:
        turns = briefs(world, seed, n, most=config.most_turns)
        dialogs = [as_dialog(each, open_end=True) for each in turns]
    else:
        source, half = source_of(recipe.corpus.world_seed, recipe.corpus.data), longest // 2
        dialogs = [d[:-1] for d in chained(source, seed, n, config.most_turns, tokenizer, half)]
    asked = instructions(world, seed, n, combined=config.combined, terse=config.terse)
    prompts = [
        Ghost(on_every_turn(dialog, worded(given)), given)
        for dialog, given in zip(dialogs, asked, strict=False)  # some dialogs may not fit
    ]
    if config.reading == "B":
        prompts = _with_sampled_history(config, model, tokenizer, prompts, longest)
    fitting = [p for p in prompts if fits(p.student, tokenizer, longest)]
    return fitting, n - len(fitting)


def on_every_turn(dialog: Sequence[Message], instruction: str) -> list[Message]:
    """Concatenate the instruction to every message of the user."""
    if not instruction.strip():
        raise ValueError(f"an instruction must hold text; got {instruction!r}.")
    return [
        with_instruction(message, instruction) if message["role"] == "user" else message
        for message in dialog
    ]


def with_instruction(message: Message, instruction: str) -> Message:
    """Return a message with the instruction before it, as one text."""
    return {"role": message["role"], "content": f"{instruction} {message['content']}"}


def _with_sampled_history(
    config: GhostAttentionConfig, model: Transformer, tokenizer: Tokenizer,
    prompts: Sequence[Ghost], longest: int,
) -> list[Ghost]:  # fmt: skip
    """Replace every earlier answer by a sample, turn after turn."""
    seed = rng.seed_from(config.seed, "history")
    dialogs = [list(prompt.prompt) for prompt in prompts]
    for place in range(1, max(map(len, dialogs)), 2):
        growing = [dialog for dialog in dialogs if place < len(dialog)]
        replies = reply(
            model,
            tokenizer,
            [last_turns(dialog[:place], tokenizer, longest) for dialog in growing],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=rng.seed_from(seed, place),
        )
        for dialog, answer in zip(growing, replies, strict=True):
            # A message must not be empty, and the next turn needs something to follow.
            dialog[place] = {"role": "assistant", "content": answer.text or "."}
    return [p._replace(prompt=dialog) for dialog, p in zip(dialogs, prompts, strict=True)]


# --- step 2: its answers


def sample_last_answers(
    config: GhostAttentionConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Ghost],
) -> tuple[list[Sample], dict[str, float]]:
    """Draw the last answers; return those that ended, each text once, and what was counted."""
    longest = room(model, config.max_new_tokens)
    shortened = [last_turns(prompt.prompt, tokenizer, longest) for prompt in prompts]
    drawn = draw(
        model, tokenizer, shortened, config.n_samples, config.temperature,
        seed=rng.seed_from(config.seed, "samples"), max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    rows = list(zip(prompts, shortened, drawn, strict=True))
    samples = [prompt.sample(a.text) for prompt, _, answers in rows for a in distinct(answers)]
    obeying = [obeys(prompt.instructions, a.text) for prompt, _, answers in rows for a in answers]
    return samples, {
        "prompts": len(prompts),
        "without first turns": sum(len(short) < len(prompt.prompt) for prompt, short, _ in rows),
        "samples": len(obeying),
        "obeying samples": sum(obeying),
        "distinct": len(samples),
    }


def last_turns(prompt: Sequence[Message], tok: Encoder, longest: int) -> list[Message]:
    """Return a prompt without as many of its first turns as must go for it to fit.

    The teacher misses nothing: the instruction stands before every message.
    """
    for first in range(0, len(prompt), 2):
        rest = list(prompt[first:])
        if fits(rest, tok, longest):
            return rest
    raise ValueError(f"a message must fit {longest} tokens; got {prompt[-1]['content'][:60]!r}.")


def best_samples(
    prompts: Sequence[Ghost], samples: Sequence[Sample], score: Score, *, only_obeying: bool
) -> list[Ghost]:
    """Choose the best sample of every prompt by reward; a prompt without any is left out.

    With `only_obeying`, samples that disobey are dropped first. Long prompts are slow to score, so
    only samples with a rival are.
    """
    given = {prompt.sample().key: prompt for prompt in prompts}
    candidates = [
        s for s in samples if not only_obeying or obeys(given[s.key].instructions, s.answer)
    ]
    n_of = Counter(sample.key for sample in candidates)
    scored = iter(rescored([s for s in candidates if n_of[s.key] > 1], score))
    compared = [next(scored) if n_of[s.key] > 1 else s for s in candidates]
    return [
        given[top.key]._replace(answer=top.answer, score=top.score if n_of[top.key] > 1 else None)
        for top in best(compared)
    ]


# --- steps 3 and 4: the student's dialogs


def on_first_turn_only(prompt: Sequence[Message], instruction: str) -> list[Message]:
    """Drop the instruction from all messages of the user but the first."""
    dialog: list[Message] = []
    first = True
    for index, message in enumerate(prompt):
        if message["role"] != "user":
            dialog.append(message)
            continue
        rest = message["content"].removeprefix(f"{instruction} ")
        if rest == message["content"]:
            raise ValueError(
                f"every message of the user must begin with {instruction!r}; message {index} is "
                f"{rest[:60]!r}. Make the prompt with on_every_turn."
            )
        dialog.append(message if first else {"role": "user", "content": rest})
        first = False
    return dialog


def ghost_example(
    dialog: Sequence[Message], answer: str, tok: Encoder, loss_on: str = "last"
) -> Example:
    """Encode a dialog with the instruction in the first turn, and a sampled answer to it.

    The loss is on the "last" answer; for comparison on "all", or on "everything": no mask, so that
    the user's words and the tags are targets as well, all but the first token.
    """
    whole = answered(dialog, answer)
    if loss_on == "everything":
        ids = encode_example(whole, tok)[0]
        return ids, [False] + [True] * (len(ids) - 1)
    return encode_example(whole, tok, loss_on=loss_on)


def ghost_examples(ghosts: Sequence[Ghost], tok: Encoder, loss_on: str = "last") -> list[Example]:
    """Return what Ghost Attention trains on."""
    return [ghost_example(ghost.student, ghost.answer, tok, loss_on) for ghost in ghosts]


def old_ghosts(job: Job, stage: str, n: int, seed: int) -> list[Example]:
    """Return n of the dialogs that Ghost Attention trained on; all if there are fewer."""
    ghosts = storage.read_rows(job.inputs[stage] / "ghosts.jsonl.gz", Ghost)
    drawn = rng.random_source(seed, "ghosts").sample(ghosts, min(n, len(ghosts)))
    return ghost_examples(drawn, job.tokenizer)


# --- the stage `instructed`


def run_instructed(job: Job, start: str) -> None:
    """Teach the model of the stage `start` to obey an instruction in the message it answers."""
    config, tokenizer, model = job.recipe.instructed, job.tokenizer, job.model(start)
    dialogs = _instructed_dialogs(job, config.seed, config.n_dialogs)
    train = [*examples(dialogs, tokenizer), *rehearsed(job, config, model, config.seed)]
    seed, n = config.seed + VALIDATION_SEED, config.n_validation
    validation = examples(_instructed_dialogs(job, seed, n, side="held out"), tokenizer)
    fine_tune(job, config, model, train, {}, epochs=config.epochs, validation=validation)


def _instructed_dialogs(
    job: Job, seed: int, n: int, longest: int = MOST_TURNS, side: str = "train"
) -> list[list[Message]]:
    """Return dialogs whose answers obey: the world's, or those of a folder, made to.

    In a folder's an instruction holds as in the world's, for `HOLDS` messages.
    """
    corpus, random = job.recipe.corpus, rng.random_source(seed, "instructed folder")
    if corpus.data is None:
        return list(instructed_dialogs(job.world, seed, n, longest=longest))
    source, half = source_of(corpus.world_seed, corpus.data, side), room(job.recipe.model, 0) // 2
    dialogs = chained(source, seed, n, longest, job.tokenizer, half)
    maker, given, since = instruction_maker(job.world, "all values"), tuple[Instruction, ...](), 0
    for dialog in dialogs:
        for index in range(0, len(dialog), 2):
            if index == 0 or random.random() < INSTRUCTED_FRACTION:
                given, since = maker.several(random), index
                dialog[index] = with_instruction(dialog[index], worded(given))
            if index - since < 2 * HOLDS:
                content = obeying(given, dialog[index + 1]["content"])
                dialog[index + 1] = {"role": "assistant", "content": content}
    return dialogs
