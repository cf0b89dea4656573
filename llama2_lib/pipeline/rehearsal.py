"""What a finished policy rehearses while it learns one thing more, so that nothing is forgotten.

Fine-tuning on a new skill alone undid RLHF: see the log. Demonstrations beside it are no cure,
they pull a policy back to where fine-tuning had left it. Its own answers pull it nowhere. What no
dialog asks for, they cannot keep either, so documents of pretraining stand beside them, as
InstructGPT mixed them into PPO (Ouyang et al., 2022).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llama2_lib import rng
from llama2_lib.evaluation.chat import answer
from llama2_lib.model.transformer import Transformer
from llama2_lib.pipeline.stage import Job
from llama2_lib.pipeline.world_text import (
    dialog_settings,
    look_alike_settings,
    preference_settings,
)
from llama2_lib.recipes import Recipe
from llama2_lib.stages.asked import ask
from llama2_lib.stages.corpus import load_corpus
from llama2_lib.stages.ghost_attention import ghost_example, on_first_turn_only
from llama2_lib.stages.sft import examples
from llama2_lib.text.dialog import Message, encode_example
from llama2_lib.training.dialog_batches import Example
from llama2_lib.world import make_world
from llama2_lib.world.demonstrations import demonstrations
from llama2_lib.world.look_alikes import look_alikes

OWN_SHARES = {"helpful": 0.6, "adversarial": 0.4}
"""Of the prompts that a policy answers itself. What declines is forgotten first, so it has more
room than in rejection sampling."""
LOOK_ALIKES = 0.6
"""Of the demonstrations beside them. RLHF taught to decline what only sounds dangerous, so that is
shown, not rehearsed: most of it in wordings that were written for it, see `world.look_alikes`."""
SHOWN_SHARES = {"helpful": 0.5, "borderline": 0.5}
"""Of the other demonstrations; the helpful ones hold system messages and several turns."""
TEMPERATURE = 0.7
"""Of a policy's own answers: cooler than it is used, as its rare slips need no rehearsal."""
DOCUMENTS = 0.3
"""Documents rehearsed for each of them."""


def settings(recipe: Recipe) -> dict[str, Any]:
    """Return what the rehearsed dialogs depend on, besides models."""
    world_seed = recipe.corpus.world_seed
    return {
        "world": preference_settings(world_seed),
        "demonstrations": dialog_settings(recipe.sft, world_seed),
        "look_alikes": look_alike_settings(world_seed),
    }


def remembered(
    job: Job, policy: Transformer, n: int, seed: int, max_new_tokens: int
) -> list[Example]:
    """Return n new prompts with the policy's answers, and documents of pretraining beside them."""
    return [
        *own_answers(job, policy, n, seed, max_new_tokens),
        *documents(job, round(DOCUMENTS * n), seed),
    ]


def documents(job: Job, n: int, seed: int) -> list[Example]:
    """Draw n documents of the corpus; every token but the first is a target.

    The few that are longer than the context are left out: they would be cut in the middle.
    """
    corpus = load_corpus(job.inputs["corpus"])
    numbers = range(len(corpus.kinds))
    drawn = rng.random_source(seed, "documents").sample(numbers, min(n, len(numbers)))
    texts = [corpus.document(number) for number in drawn]
    return [
        (ids, [False] + [True] * (len(ids) - 1))
        for ids in texts
        if len(ids) <= job.recipe.model.max_seq_len
    ]


def own_answers(
    job: Job, policy: Transformer, n: int, seed: int, max_new_tokens: int
) -> list[Example]:
    """Return n new prompts with the policy's answers; those that did not end are left out."""
    tokenizer, world = job.tokenizer, make_world(job.recipe.corpus.world_seed)
    longest = policy.config.max_seq_len - max_new_tokens
    asked = ask(
        world, rng.seed_from(seed, "rehearsal"), n, tokenizer, longest=longest, shares=OWN_SHARES
    ).dialogs
    replies = answer(
        policy, tokenizer, asked, temperature=TEMPERATURE, max_new_tokens=max_new_tokens,
        seed=rng.seed_from(seed, "own answers"),
    )  # fmt: skip
    return [
        encode_example(
            [*dialog, cast(Message, {"role": "assistant", "content": reply.text})],
            tokenizer,
            loss_on="last",
        )
        for dialog, reply in zip(asked, replies, strict=True)
        if reply.ended and reply.text
    ]


def shown(job: Job, n: int, seed: int) -> list[Example]:
    """Return n clean demonstrations, `LOOK_ALIKES` of them of look-alikes."""
    n_alike, source = round(LOOK_ALIKES * n), rng.seed_from(seed, "shown")
    alike = look_alikes(make_world(job.recipe.corpus.world_seed), source, n_alike)
    return [
        *examples(cast(list[list[Message]], list(alike)), job.tokenizer),
        *demonstrated(job, n - n_alike, source, SHOWN_SHARES),
    ]


def demonstrated(job: Job, n: int, seed: int, shares: Mapping[str, float]) -> list[Example]:
    """Return n clean demonstrations of these families."""
    world = make_world(job.recipe.corpus.world_seed)
    dialogs = demonstrations(world, seed, n, shares=shares)
    return examples(cast(list[list[Message]], list(dialogs)), job.tokenizer)


def old_ghosts(job: Job, stage: str, n: int, seed: int) -> list[Example]:
    """Return n of the dialogs that Ghost Attention trained on; all if there are fewer."""
    lines = (job.inputs[stage] / "ghosts.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = rng.random_source(seed, "ghosts").sample(lines, min(n, len(lines)))
    return [_ghost(json.loads(line), job) for line in drawn]


def _ghost(row: Mapping, job: Job) -> Example:
    words = " ".join(item["text"] for item in row["instructions"])
    prompt = on_first_turn_only(cast(Sequence[Message], row["prompt"]), words)
    return ghost_example(prompt, row["answer"], job.tokenizer)
