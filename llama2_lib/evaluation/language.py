"""How well a model predicts text, recalls facts and answers, by numbers with intervals."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from llama2_lib.evaluation.statistics import Estimate, proportion, ratio_interval, shares
from llama2_lib.model.chat import Reply, reply
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.dialogs import Message
from llama2_lib.world.facts import RecallItem, is_correct


class DocumentNats(NamedTuple):
    """Loss of each document by itself."""

    nats: np.ndarray
    """Summed negative log-likelihood of each document, given its first token."""
    tokens: np.ndarray
    """Tokens scored in each."""


@torch.no_grad()
def document_nats(
    model: Transformer, documents: Sequence[Sequence[int]], *,
    targets: Sequence[Sequence[bool]] | None = None, max_len: int | None = None,
    batch_tokens: int = 8192,
) -> DocumentNats:  # fmt: skip
    """Score each document alone: ids, BOS first, at least two each.

    `targets` are loss masks, True where a token is scored; all but the first when left out. Longer
    documents are scored on their first `max_len` tokens. A batch holds documents of similar
    length, rows times length `batch_tokens` at most. The model's mode is restored.
    """
    limit = min(max_len or model.config.max_seq_len, model.config.max_seq_len) + 1
    short = [index for index, document in enumerate(documents) if len(document) < 2]
    if short:
        raise ValueError(f"a document needs two tokens to score one; document {short[0]} has less.")
    was_training = model.training
    model.eval()
    device = model.tok_embeddings.weight.device
    cut = [torch.tensor(document[:limit], dtype=torch.int64) for document in documents]
    masks = [torch.ones_like(ids, dtype=torch.bool) for ids in cut]
    if targets is not None:
        lengths = [list(map(len, texts)) for texts in (documents, targets)]
        if lengths[0] != lengths[1]:
            raise ValueError("targets must be one mask a document, as long as it; lengths differ.")
        masks = [torch.tensor(mask[:limit], dtype=torch.bool) for mask in targets]
    nats = np.zeros(len(cut))
    for rows in _batches([len(ids) for ids in cut], batch_tokens):
        # Padding stands on the right, where causal attention never looks.
        ids = pad_sequence([cut[row] for row in rows], batch_first=True).to(device)
        scored = pad_sequence([masks[row] for row in rows], batch_first=True).to(device)
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = loss.view(len(rows), -1).double().masked_fill(~scored[:, 1:], 0.0)
        nats[rows] = loss.sum(dim=1).cpu().numpy()
    model.train(was_training)
    return DocumentNats(nats, np.array([int(mask[1:].sum()) for mask in masks]))


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield rows of similar length; rows times the longest are `most` at most, or one row."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if rows and (len(rows) + 1) * lengths[row] > most:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def perplexity(loss: Estimate) -> Estimate:
    """Return exp of a loss in nats per token: the size of a fair die as hard to predict."""
    value, low, high = np.exp([loss.value, loss.low, loss.high]).tolist()
    return Estimate(value=value, low=low, high=high, n=loss.n)


def answer_loss(
    model: Transformer, examples: Sequence[tuple[Sequence[int], Sequence[bool]]]
) -> Estimate:
    """Return nats per answer token of finished dialogs, each scored alone (section 3.1).

    Examples are ids and loss masks, as `encode_example` returns them; the interval is a 95 %
    bootstrap over dialogs.
    """
    longest = model.config.max_seq_len + 1
    for index, (ids, _) in enumerate(examples):
        if len(ids) > longest:
            raise ValueError(
                f"an example must fit {longest} tokens to be scored; example {index} has "
                f"{len(ids)}. Shorten it with training.batches.shorten, or leave it out."
            )
    documents, masks = [ids for ids, _ in examples], [mask for _, mask in examples]
    return ratio_interval(*document_nats(model, documents, targets=masks))


def continuations(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[list[int]], *, batch: int = 128,
    seed: int = 0, **options: Any,
) -> list[str]:  # fmt: skip
    """Return how a model goes on with each prompt; `options` are those of `generate`.

    Each batch draws by a seed of its own.
    """
    texts: list[str] = []
    for begin in range(0, len(prompts), batch):
        done = generate(model, prompts[begin : begin + batch], seed=seed + begin, **options)
        texts += [tokenizer.decode(one.ids).strip() for one in done]
    return texts


def recall_answers(
    model: Transformer, tokenizer: Tokenizer, items: Sequence[RecallItem]
) -> list[str]:
    """Return the model's greedy first line after each question."""
    prompts = [tokenizer.encode(item.prompt, bos=True) for item in items]
    stops = {tokenizer.eos_id, *tokenizer.encode("\n")[-1:]}
    options = {"max_new_tokens": 24, "temperature": 0.0, "stop_ids": stops}
    return continuations(model, tokenizer, prompts, **options)


def fact_recall(
    model: Transformer, tokenizer: Tokenizer, items: Sequence[RecallItem]
) -> dict[str, Estimate]:
    """Return the share of facts answered rightly, by how their question was met in training.

    Keys are the exposures of `RecallItem`: `seen form`, `unseen form`, `never asked`. Intervals
    are Wilson's, over questions.
    """
    answers = recall_answers(model, tokenizer, items)
    return shares((i.exposure, is_correct(i, a)) for i, a in zip(items, answers, strict=True))


def question_of(document: str) -> str:
    """Return the question that a document puts, as a user would ask it."""
    return document.removeprefix("Question: ").removesuffix("\nAnswer:")


def as_dialog(item: RecallItem) -> list[Message]:
    """Return the question of a recall item as a user would ask it."""
    return [{"role": "user", "content": question_of(item.prompt)}]


def chat_recall(
    model: Transformer, tokenizer: Tokenizer, items: Sequence[RecallItem]
) -> dict[str, Estimate]:
    """Return the same of a chat model, which is asked in a dialog."""
    replies = reply(model, tokenizer, [as_dialog(item) for item in items], max_new_tokens=48)
    return shares((i.exposure, is_correct(i, r.text)) for i, r in zip(items, replies, strict=True))


def ended_share(replies: Sequence[Reply]) -> Estimate:
    """Return the share of replies that ended with EOS, with Wilson's interval."""
    return proportion(sum(one.ended for one in replies), len(replies))
