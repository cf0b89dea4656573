"""What a finished policy rehearses while it learns one thing more, so that nothing is forgotten.

Fine-tuning on a new skill alone undid RLHF: see the log. Demonstrations beside it are no cure,
they pull a policy back to where fine-tuning had left it. Its own answers pull it nowhere. What no
dialog asks for, they cannot keep either, so documents of pretraining stand beside them, as
InstructGPT mixed them into PPO (Ouyang et al., 2022).
"""

from collections.abc import Mapping

from llama2_lib import rng
from llama2_lib.model.chat import reply, room
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.corpus import load_corpus
from llama2_lib.stages.job import Job
from llama2_lib.stages.prompts import answered, sample_prompts
from llama2_lib.stages.sft import examples
from llama2_lib.training.batches import Example
from llama2_lib.world.demonstrations import borderline_training

OWN_SHARES = {"helpful": 0.6, "adversarial": 0.4}
"""Families of the prompts that a policy answers itself. What declines is forgotten first, so it
has more room than in rejection sampling."""
LOOK_ALIKES = 0.6
"""Share of the demonstrations beside them. RLHF taught to decline what only sounds dangerous, so
that is shown, not rehearsed: most of it in wordings that were written for it."""
SHOWN_SHARES = {"helpful": 0.5, "borderline": 0.5}
"""Families of the other demonstrations; the helpful ones hold system messages and several turns."""
TEMPERATURE = 0.7
"""Temperature of a policy's own answers: cooler than it is used, as its rare slips need no
rehearsal."""
DOCUMENTS = 0.3
"""Documents rehearsed for each of them."""


def remembered(
    job: Job, policy: Transformer, n: int, seed: int, max_new_tokens: int
) -> list[Example]:
    """Return n new prompts with the policy's answers, and documents of pretraining beside them."""
    return [
        *own_answers(job, policy, n, seed, max_new_tokens),
        *documents(job, round(DOCUMENTS * n), seed),
    ]


def own_answers(
    job: Job, policy: Transformer, n: int, seed: int, max_new_tokens: int
) -> list[Example]:
    """Return n new prompts with the policy's answers; those that did not end are left out."""
    tokenizer, longest = job.tokenizer, room(policy, max_new_tokens)
    prompt_seed = rng.seed_from(seed, "rehearsal")
    dialogs = sample_prompts(
        job.source, prompt_seed, n, tokenizer, longest=longest, shares=OWN_SHARES
    ).dialogs
    replies = reply(
        policy, tokenizer, dialogs, temperature=TEMPERATURE, max_new_tokens=max_new_tokens,
        seed=rng.seed_from(seed, "own answers"),
    )  # fmt: skip
    finished = [
        answered(dialog, answer.text)
        for dialog, answer in zip(dialogs, replies, strict=True)
        if answer.ended and answer.text
    ]
    return examples(finished, tokenizer, loss_on="last")


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


def shown(job: Job, n: int, seed: int) -> list[Example]:
    """Return n clean demonstrations, `LOOK_ALIKES` of them of what only sounds dangerous."""
    n_alike, seed = round(LOOK_ALIKES * n), rng.seed_from(seed, "shown")
    if not job.source.judge:  # a folder's dialogs as they come
        return demonstrated(job, n, seed, SHOWN_SHARES)
    return [
        *examples(borderline_training(job.world, seed, n_alike), job.tokenizer),
        *demonstrated(job, n - n_alike, seed, SHOWN_SHARES),
    ]


def demonstrated(job: Job, n: int, seed: int, shares: Mapping[str, float]) -> list[Example]:
    """Return n clean demonstrations of these families."""
    return examples(job.source.dialogs(seed, n, shares=shares), job.tokenizer)
