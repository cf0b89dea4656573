"""Abilities that appear, or must be taught: a sense of time, and the use of tools (section 5.1).

`dates`: the finished chat model is shown a thousand dated questions. `tools`: it is shown calls of
tools that the system message describes; what a tool says is in the context and no target. Both
stages begin with the chat model, rehearse what it can do (`stages.rehearsal`), and are branches
beside it: each is measured against the model that never saw the examples.
"""

from collections.abc import Sequence

from llama2_lib import rng
from llama2_lib.config import EmergentConfig
from llama2_lib.model.tools import tool_example
from llama2_lib.stages.ghost_attention import old_ghosts, rehearsed
from llama2_lib.stages.job import Job
from llama2_lib.stages.sft import examples, fine_tune
from llama2_lib.training.batches import Example
from llama2_lib.world.dates import dated_dialogs
from llama2_lib.world.tools import NO_TOOL, tool_tasks

UNSEEN = 1_000_003
"""Added to the seed of what is held back."""


def run_dates(job: Job, policy: str, ghosts: str) -> None:
    """Show the model of the stage `policy` dated questions with their answers."""
    config = job.recipe.dates

    def dated(seed: int, n: int, shuffled: bool = False) -> list[Example]:
        dialogs = dated_dialogs(job.world, seed, n, shuffled=shuffled)
        return examples(dialogs, job.tokenizer)

    train = dated(config.seed, config.n_dialogs, config.shuffled)
    _teach(job, config, policy, ghosts, train, dated(config.seed + UNSEEN, config.n_validation))


def run_tools(job: Job, policy: str, ghosts: str) -> None:
    """Show the model of the stage `policy` how tools are called."""
    config = job.recipe.tools
    train = tool_examples(job, config.seed, config.n_dialogs)
    _teach(
        job, config, policy, ghosts, train,
        tool_examples(job, config.seed + UNSEEN, config.n_validation),
    )  # fmt: skip


def tool_examples(job: Job, seed: int, n: int) -> list[Example]:
    """Return n dialogs with a call, or with the answer that no tool fits."""
    tokenizer, found = job.tokenizer, []
    for task in tool_tasks(job.world, seed, n):
        if task.tool is None:
            dialog = [*task.dialog, {"role": "assistant", "content": NO_TOOL}]
            found += examples([dialog], tokenizer)  # type: ignore[list-item]
        else:
            found.append(tool_example(task.dialog, task.call, task.result, task.answer, tokenizer))
    return found


def _teach(
    job: Job,
    config: EmergentConfig,
    policy: str,
    ghosts: str,
    train: Sequence[Example],
    held_back: Sequence[Example],
) -> None:
    """Fine-tune on the new examples and on what must not be forgotten."""
    model, seed = job.model(policy), rng.seed_from(config.seed, "beside")
    beside = [
        *rehearsed(job, config, model, seed),
        *old_ghosts(job, ghosts, config.n_ghosts, seed),
    ]
    counts = {"new": len(train), "rehearsed": len(beside)}
    fine_tune(
        job, config, model, [*train, *beside], counts,
        epochs=config.epochs, begin=0.3, validation=held_back,
    )  # fmt: skip
