"""How well a model predicts text and recalls facts: numbers with intervals, no plots."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from llama2_lib.evaluation.statistics import Estimate, proportion
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.questions import RecallItem, is_correct


@dataclass(frozen=True, slots=True)
class DocumentNats:
    """Loss of each document by itself."""

    nats: np.ndarray
    """Summed negative log-likelihood of each document, given its first token."""
    tokens: np.ndarray
    """Tokens scored in each."""


@torch.no_grad()
def document_nats(
    model: Transformer,
    documents: Sequence[Sequence[int]],
    *,
    targets: Sequence[Sequence[bool]] | None = None,
    max_len: int | None = None,
    batch_tokens: int = 8192,
) -> DocumentNats:
    """Score each document alone, in batches of similar length.

    Args:
        model: A language model; its mode is restored afterwards.
        documents: Ids, BOS first; at least two each.
        targets: For each document a loss mask, True where a token is scored; all but the first
            token when left out.
        max_len: Longer documents are scored on their first `max_len` tokens.
        batch_tokens: Bound on rows times length of a batch.

    Raises:
        ValueError: A document has fewer than two tokens.
    """
    limit = min(max_len or model.config.max_seq_len, model.config.max_seq_len) + 1
    short = [index for index, document in enumerate(documents) if len(document) < 2]
    if short:
        raise ValueError(f"a document needs two tokens to score one; document {short[0]} has less.")
    was_training = model.training
    model.eval()
    device = model.tok_embeddings.weight.device
    cut = [list(document[:limit]) for document in documents]
    marks = [[True] * len(ids) for ids in cut]
    if targets is not None:
        marks = [list(mask[:limit]) for mask in targets]
    order = sorted(range(len(cut)), key=lambda index: len(cut[index]))
    nats = np.zeros(len(cut))
    begin = 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * len(cut[order[end]]) <= batch_tokens:
            end += 1
        rows = order[begin:end]
        longest = len(cut[rows[-1]])
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        scored = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, index in enumerate(rows):
            ids[row, : len(cut[index])] = torch.tensor(cut[index])
            scored[row, : len(cut[index])] = torch.tensor(marks[index])
        ids, scored = ids.to(device), scored.to(device)
        # Padding stands on the right, where causal attention never looks.
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = loss.view(len(rows), -1).double().masked_fill(~scored[:, 1:], 0.0)
        nats[rows] = loss.sum(dim=1).cpu().numpy()
        begin = end
    model.train(was_training)
    return DocumentNats(nats, np.array([sum(mask[1:]) for mask in marks]))


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return sum(numerator) / sum(denominator) with a 95 % bootstrap interval over documents.

    With nats and tokens it is the loss per token; with nats and characters, per character,
    which compares models whose tokenizers differ.
    """
    draws = np.random.default_rng(seed).integers(0, len(numerator), (1000, len(numerator)))
    ratios = numerator[draws].sum(axis=1) / denominator[draws].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = numerator.sum() / denominator.sum()
    return Estimate(value=float(value), low=float(low), high=float(high), n=len(numerator))


def perplexity(loss: Estimate) -> Estimate:
    """Return exp of a loss in nats per token: the size of a fair die as hard to predict."""
    value, low, high = np.exp([loss.value, loss.low, loss.high])
    return Estimate(value=float(value), low=float(low), high=float(high), n=loss.n)


def recall_answers(
    model: Transformer, tokenizer: Tokenizer, items: Sequence[RecallItem], max_new_tokens: int = 24
) -> list[str]:
    """Return the model's greedy first line after each question."""
    prompts = [tokenizer.encode(item.prompt, bos=True) for item in items]
    stops = {tokenizer.eos_id, *tokenizer.encode("\n")[-1:]}
    answers: list[str] = []
    for begin in range(0, len(prompts), 128):
        completions = generate(
            model,
            prompts[begin : begin + 128],
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            stop_ids=stops,
        )
        answers += [tokenizer.decode(completion.ids).strip() for completion in completions]
    return answers


def fact_recall(
    model: Transformer, tokenizer: Tokenizer, items: Sequence[RecallItem]
) -> dict[str, Estimate]:
    """Return the share of facts answered rightly, by how their question was met in training.

    Keys are the exposures of `world.questions`: `seen form`, `unseen form`, `never asked`.
    Intervals are Wilson's, over questions.
    """
    answers = recall_answers(model, tokenizer, items)
    right: dict[str, list[bool]] = {}
    for item, answer in zip(items, answers, strict=True):
        right.setdefault(item.exposure, []).append(is_correct(item, answer))
    return {name: proportion(sum(hits), len(hits)) for name, hits in sorted(right.items())}
