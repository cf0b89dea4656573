"""How well a chat model answers: facts in chat form, endings, loss on answers (section 3.1)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llama2_lib import rng
from llama2_lib.evaluation.language import document_nats, ratio_interval
from llama2_lib.evaluation.statistics import Estimate, proportion
from llama2_lib.model.cache import Past
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import Message, encode_prompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.questions import RecallItem, is_correct

BATCH = 128


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said after a dialog."""

    text: str
    """Without the control tokens and the space before EOS."""
    ids: list[int]
    ended: bool
    """Whether it ended with EOS, rather than at the limit."""


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    dialogs: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    pasts: Sequence[Past] | None = None,
) -> list[Answer]:
    """Return the model's answer to each dialog, in order.

    An answer depends on its dialog and its number, not on the dialogs answered beside it. A
    dialog that leaves less room in the context than `max_new_tokens` gets what there is.

    Args:
        model: The policy.
        tokenizer: The one it was trained with.
        dialogs: Each ends with a message of the user.
        max_new_tokens: At most this many ids, EOS included.
        temperature: 0 for greedy answers.
        top_p: Mass of the nucleus.
        seed: One seed, from which every dialog's is derived.
        pasts: What was read of every dialog before, see `generate`: one that grows by a turn is
            not read from its start.

    Raises:
        ValueError: A dialog is malformed, or fills the whole context.
    """
    prompts = [encode_prompt(dialog, tokenizer) for dialog in dialogs]
    context = model.config.max_seq_len
    for index, prompt in enumerate(prompts):
        if len(prompt) >= context:
            raise ValueError(
                f"a dialog must leave room for an answer in {context} tokens; dialog {index} has "
                f"{len(prompt)}. Drop its first turns."
            )
    answers: dict[int, Answer] = {}
    for rows in _batches([len(prompt) for prompt in prompts], context - max_new_tokens):
        room = context - max(len(prompts[row]) for row in rows)
        completions = generate(
            model,
            [prompts[row] for row in rows],
            max_new_tokens=min(max_new_tokens, room),
            temperature=temperature,
            top_p=top_p,
            seed=[rng.seed_from(seed, "answer", row) for row in rows],
            stop_ids={tokenizer.eos_id},
            pasts=None if pasts is None else [pasts[row] for row in rows],
        )
        for row, done in zip(rows, completions, strict=True):
            answers[row] = Answer(tokenizer.decode(done.ids).strip(), done.ids, done.finished)
    return [answers[row] for row in range(len(prompts))]


def _batches(lengths: Sequence[int], longest: int) -> Iterator[list[int]]:
    """Yield rows of similar length; one with less room than the others comes by itself."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    free = [row for row in order if lengths[row] <= longest]
    yield from (free[begin : begin + BATCH] for begin in range(0, len(free), BATCH))
    yield from ([row] for row in order[len(free) :])


def as_dialog(item: RecallItem) -> list[Message]:
    """Return the question of a recall item as a user would ask it."""
    question = item.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    return [{"role": "user", "content": question}]


def chat_recall(
    model: Transformer,
    tokenizer: Tokenizer,
    items: Sequence[RecallItem],
    max_new_tokens: int = 48,
) -> dict[str, Estimate]:
    """Return the share of facts answered rightly in chat form, by exposure (see `fact_recall`).

    Answers are greedy, intervals Wilson's over questions.
    """
    dialogs = [as_dialog(item) for item in items]
    answers = answer(model, tokenizer, dialogs, max_new_tokens=max_new_tokens)
    right: dict[str, list[bool]] = {}
    for item, said in zip(items, answers, strict=True):
        right.setdefault(item.exposure, []).append(is_correct(item, said.text))
    return {name: proportion(sum(hits), len(hits)) for name, hits in sorted(right.items())}


def ended_share(answers: Sequence[Answer]) -> Estimate:
    """Return the share of answers that ended with EOS, with Wilson's interval."""
    return proportion(sum(said.ended for said in answers), len(answers))


def answer_loss(
    model: Transformer,
    examples: Sequence[tuple[Sequence[int], Sequence[bool]]],
    *,
    seed: int = 0,
) -> Estimate:
    """Return nats per answer token of finished dialogs, each scored alone.

    The interval is a 95 % bootstrap over dialogs.

    Args:
        model: A language model.
        examples: Ids and loss masks, as `encode_example` returns them.
        seed: Of the bootstrap.

    Raises:
        ValueError: An example does not fit the context.
    """
    longest = model.config.max_seq_len + 1
    for index, (ids, _) in enumerate(examples):
        if len(ids) > longest:
            raise ValueError(
                f"an example must fit {longest} tokens to be scored; example {index} has "
                f"{len(ids)}. Shorten it with training.dialog_batches.shorten, or leave it out."
            )
    nats = document_nats(
        model, [ids for ids, _ in examples], targets=[loss_mask for _, loss_mask in examples]
    )
    return ratio_interval(nats.nats, nats.tokens, seed=seed)
