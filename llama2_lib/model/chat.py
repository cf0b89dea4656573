"""The one way to ask a model: dialogs in, replies out, and what a reward model says of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.utils.rnn import pad_sequence

from llama2_lib import parallel, rng
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.generate import Past, generate, stream_ids
from llama2_lib.model.transformer import ScalarModel, Transformer
from llama2_lib.text.dialog import Encoder, encode_example, encode_prompt, sanitised
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.dialogs import Message

BATCH = 128
"""Dialogs answered together."""
SCORED_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said after a dialog."""

    text: str
    """What a person reads: without control tokens, the space before EOS, and the format's tags,
    which a model may write and no message may hold."""
    ids: list[int]
    """As they were sampled; EOS is the last one if it ended."""
    ended: bool
    """Whether it ended with EOS, rather than at the limit."""


def reply(
    model: Transformer,
    tokenizer: Tokenizer,
    dialogs: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    pasts: Sequence[Past] | None = None,
) -> list[Reply]:
    """Return the model's reply to each dialog, in order.

    A reply depends on its dialog and its number, not on the dialogs answered beside it. A
    dialog that leaves less room in the context than `max_new_tokens`, EOS included, gets what
    there is. By default replies are greedy; settings are those of `generate`.

    Raises:
        ValueError: A dialog is malformed, or fills the whole context.
    """
    prompts = [_prompt(model, tokenizer, *each) for each in enumerate(dialogs)]
    context = model.config.max_seq_len

    def answer(rows: Sequence[int]) -> list[tuple[int, Reply]]:
        left = context - max(len(prompts[row]) for row in rows)
        completions = generate(
            model,
            [prompts[row] for row in rows],
            max_new_tokens=min(max_new_tokens, left),
            temperature=temperature,
            top_p=top_p,
            seed=[rng.seed_from(seed, "answer", row) for row in rows],
            stop_ids={tokenizer.eos_id},
            pasts=None if pasts is None else [pasts[row] for row in rows],
        )
        texts = (sanitised(tokenizer.decode(done.ids)).strip() for done in completions)
        return [
            (row, Reply(text, done.ids, done.finished))
            for row, text, done in zip(rows, texts, completions, strict=True)
        ]

    batches = list(_batches([len(prompt) for prompt in prompts], room(model, max_new_tokens)))
    replies = dict(chain(*parallel.shared(batches, lambda own: list(map(answer, own)))))
    return [replies[row] for row in range(len(prompts))]


def stream(
    model: Transformer, tokenizer: Tokenizer, dialog: Sequence[Message], **settings: Any
) -> Iterator[Reply]:
    """Yield the reply to one dialog as it grows, a token at a time; the last is that of `reply`.

    Settings and errors are those of `reply`. A mistake is raised at once; closing ends the work.
    """
    prompt = _prompt(model, tokenizer, 0, dialog)
    most = min(settings.get("max_new_tokens", 96), room(model, len(prompt)))
    seed = [rng.seed_from(settings.get("seed", 0), "answer", 0)]
    settings = {"temperature": 0.0, **settings, "max_new_tokens": most, "seed": seed}
    ids = stream_ids(model, prompt, stop_ids={tokenizer.eos_id}, **settings)
    return _growing(tokenizer, [], ids)


def continued(model: Transformer, tok: Tokenizer, text: str, **settings: Any) -> Iterator[Reply]:
    """Yield a text as a pretrained model goes on with it; settings are those of `generate`.

    A question that is put as in the corpus, `Question: ...`, is given the beginning of an answer.
    """
    prompt = tok.encode(text + "\nAnswer:" * text.startswith("Question:"), bos=True)
    return _growing(tok, prompt, stream_ids(model, prompt, stop_ids={tok.eos_id}, **settings))


def _growing(tok: Tokenizer, before: list[int], ids: Iterator[int]) -> Iterator[Reply]:
    so_far: list[int] = []
    for token in ids:
        so_far.append(token)
        said = sanitised(tok.decode([*before, *so_far])).strip()
        yield Reply(said, [*so_far], token == tok.eos_id)


def _prompt(model: Transformer, tok: Encoder, index: int, dialog: Sequence[Message]) -> list[int]:
    prompt, context = encode_prompt(dialog, tok), model.config.max_seq_len
    if len(prompt) >= context:
        raise ValueError(
            f"a dialog must leave room for an answer in {context} tokens; dialog {index} has "
            f"{len(prompt)}. Drop its first turns."
        )
    return prompt


class Conversation:
    """A dialog with one model, of which the oldest turns go when they no longer fit."""

    least_room = 32
    """Tokens that an answer needs; the oldest turns go where it would have fewer."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.rules, self.dialog = list[Message](), list[Message]()
        self.instruction = ""
        """What stands before the first message of the user, as Ghost Attention has taught it."""
        self.asked, self.forgot = list[Message](), False
        """What the newest answer was given to, and whether turns had to go for it."""

    def tell(self, system: str, instruction: str = "") -> None:
        """Put this system message, or none, before what is said, and the instruction behind it."""
        rules: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        # Refused here if it is, and not with the first question.
        encode_prompt([*rules, {"role": "user", "content": "Hello"}], self.tokenizer)
        self.rules, self.instruction = rules, instruction

    def ask(self, text: str, **settings: Any) -> Iterator[Reply]:
        """Yield the answer as `stream` does; the dialog keeps it once it has ended."""
        question: Message = {"role": "user", "content": text}
        kept, answer = self.dialog, ""
        longest = room(self.model, min(settings.get("max_new_tokens", 96), self.least_room))
        while kept and not fits(self._before(kept, question), self.tokenizer, longest):
            kept = kept[2:]
        self.asked, self.forgot = self._before(kept, question), kept != self.dialog
        for grown in stream(self.model, self.tokenizer, self.asked, **settings):
            answer = grown.text
            yield grown
        # Format and context cannot carry a silent answer, so that turn is not kept.
        if answer:
            self.dialog = [*kept, question, {"role": "assistant", "content": answer}]

    def _before(self, kept: Sequence[Message], question: Message) -> list[Message]:
        """Return what the model is asked: the instruction stands in the first turn that is left."""
        turns = [*kept, question]
        if self.instruction:
            turns[0] = {"role": "user", "content": f"{self.instruction} {turns[0]['content']}"}
        return [*self.rules, *turns]


def _batches(lengths: Sequence[int], longest: int) -> Iterator[list[int]]:
    """Yield rows of similar length; one with less room than the others comes by itself."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    free = [row for row in order if lengths[row] <= longest]
    size = min(BATCH, -(-len(free) // parallel.n_processes()) or 1)
    yield from (free[begin : begin + size] for begin in range(0, len(free), size))
    yield from ([row] for row in order[len(free) :])


def room(model: Transformer | ScalarModel | ModelConfig, max_new_tokens: int) -> int:
    """Return how many tokens a prompt may have, so that such an answer fits beside it."""
    config = model if isinstance(model, ModelConfig) else model.config
    return config.max_seq_len - max_new_tokens


def answer_room(model: Transformer | ScalarModel | ModelConfig, most: int) -> int:
    """Return how many tokens an answer may have: `most`, and half the context at most."""
    return min(most, room(model, 0) // 2)


def fits(dialog: Sequence[Message], tok: Encoder, longest: int) -> bool:
    """Return whether a prompt has at most `longest` tokens; see `room`."""
    return len(encode_prompt(dialog, tok)) <= longest


def carried(text: str) -> str:
    """Return an answer that a message can carry: without tags, and a full stop for nothing."""
    return sanitised(text).strip() or "."


def scored_row(
    dialog: Sequence[Message], answer: Reply | str, tok: Encoder, longest: int | None = None
) -> list[int]:
    """Return the ids of a prompt with its answer, as reward models read them.

    A reply counts as it was sampled, so one that did not end has no EOS. A text is encoded as a
    finished answer, see `carried`, and cut at `longest` tokens: it may take more pieces when it is
    read than when it was written, as odd spellings do.
    """
    if isinstance(answer, Reply):
        return [*encode_prompt(dialog, tok), *answer.ids]
    message: Message = {"role": "assistant", "content": carried(answer)}
    return encode_example([*dialog, message], tok)[0][:longest]


@torch.no_grad()
def scores(judge: ScalarModel, rows: Sequence[Sequence[int]]) -> Float[np.ndarray, " rows"]:
    """Return the raw score of each row, in the order given.

    Rows of similar length are scored together; a score does not depend on its companions. For
    the rows of a reward model see `scored_row`.

    Raises:
        ValueError: A row is empty or longer than the context, an id is none of the model's
            vocabulary, or a score is not finite.
    """
    context, vocab = judge.config.max_seq_len, judge.config.vocab_size
    for index, row in enumerate(rows):
        if not 1 <= len(row) <= context:
            raise ValueError(
                f"a row must have 1 to {context} tokens to be scored; row {index} has {len(row)}."
            )
        if not 0 <= min(row) <= max(row) < vocab:
            raise ValueError(
                f"ids must lie in 0...{vocab - 1}; row {index} has {min(row)}...{max(row)}. Was "
                "the reward model trained with another tokenizer than the policy?"
            )
    was_training, device = judge.training, next(judge.parameters()).device
    judge.eval()
    values = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    starts = range(0, len(order), SCORED_TOGETHER)
    parts = [order[begin : begin + SCORED_TOGETHER] for begin in starts]

    def score(part: Sequence[int]) -> np.ndarray:
        ids = [torch.tensor(rows[index], dtype=torch.int64) for index in part]
        lengths = torch.tensor([len(row) for row in ids])
        padded = pad_sequence(ids, batch_first=True)
        return judge.score(padded.to(device), lengths.to(device)).cpu().numpy()

    scored = parallel.shared(parts, lambda own: list(map(score, own)))
    for part, of_part in zip(parts, scored, strict=True):
        values[part] = of_part
    judge.train(was_training)
    if bad := np.flatnonzero(~np.isfinite(values)).tolist():
        raise ValueError(
            f"scores must be finite; row {bad[0]} has {values[bad[0]]}. Did the reward model "
            "diverge? Look at its metrics, and train it with a lower rate."
        )
    return values
