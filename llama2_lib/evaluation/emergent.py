"""Is it there, and was it taught? A sense of time, calls of tools, variety by temperature (5.1)."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import exp, log

import numpy as np

from llama2_lib.evaluation.language import document_nats
from llama2_lib.model.chat import reply
from llama2_lib.model.tools import reply_with_tools
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.dialog import encode_example
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.dates import Dated
from llama2_lib.world.facts import World
from llama2_lib.world.judges import words_of
from llama2_lib.world.tools import NO_TOOL, ToolTask, run_tool

Model = tuple[Transformer, Tokenizer]
LONGEST_GRAM = 4
"""BLEU compares runs of one to so many words."""


def time_sense(model: Model, questions: Sequence[Dated]) -> dict[str, np.ndarray]:
    """Return what a model makes of dated questions, one number for each.

    `right`: 1 where the greedy answer begins with the right word, Yes or No, else 0. `likelier`: 1
    where of the two answers that the world would give the right one has the higher probability;
    a model that was never shown such answers can be right by this one alone. `told`: 1 where the
    greedy answer tells the year; before the event it should not.
    """
    transformer, tokenizer = model
    texts = [r.text for r in reply(transformer, tokenizer, [q.dialog for q in questions])]
    right = [
        text.startswith(q.answer.split(",")[0]) for q, text in zip(questions, texts, strict=True)
    ]
    told = [str(q.year) in text for q, text in zip(questions, texts, strict=True)]
    examples = [
        encode_example([*q.dialog, {"role": "assistant", "content": answer}], tokenizer)
        for q in questions
        for answer in q.answers
    ]
    ids, masks = zip(*examples, strict=True)
    nats = document_nats(transformer, ids, targets=masks).nats.reshape(-1, 2)
    happened = np.array([q.happened for q in questions])
    return {
        "right": np.array(right, dtype=float),
        "likelier": ((nats[:, 0] < nats[:, 1]) == happened).astype(float),
        "told": np.array(told, dtype=float),
    }


def tool_use(model: Model, world: World, tasks: Sequence[ToolTask]) -> dict[str, np.ndarray]:
    """Return what a model makes of requests with tools at hand, one number for each.

    `called`: 1 where it makes the right call; where no tool fits, where it makes none and says so.
    `valid`: 1 where its first call names a tool that was offered. `right`: 1 where the answer holds
    what the right tool says.
    """
    replies = reply_with_tools(*model, [task.dialog for task in tasks], partial(run_tool, world))
    values: dict[str, list[bool]] = {"called": [], "valid": [], "right": []}
    for task, one in zip(tasks, replies, strict=True):
        made = [f"{call.name}: {call.arguments} =" for call in one.calls]
        silent = not made and one.text.startswith(NO_TOOL)
        said = words_of(one.text.rsplit("\n", 1)[-1])
        values["called"].append(silent if task.tool is None else made[:1] == [task.call])
        names = task.dialog[0]["content"]
        values["valid"].append(bool(made) and f"{one.calls[0].name} " in names)
        values["right"].append(silent if task.tool is None else task.result.lower() in said)
    return {name: np.array(hits, dtype=float) for name, hits in values.items()}


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text against all others: 1 if all are alike (Zhu et al., 2018).

    Runs of up to four words, precision clipped by the most frequent reference, brevity penalty by
    the reference of the nearest length; a run length of which nothing matches counts as half a
    match (as in NLTK's method 1 with 0.5), and one longer than the text not at all.
    """
    words = [text.split() for text in texts]
    scores = [_bleu(own, [*words[:i], *words[i + 1 :]]) for i, own in enumerate(words) if own]
    return float(np.mean(scores)) if scores else 1.0


def _bleu(own: list[str], others: list[list[str]]) -> float:
    logs = []
    for n in range(1, min(LONGEST_GRAM, len(own)) + 1):
        counts = _grams(own, n)
        most: Counter[tuple[str, ...]] = Counter()
        for other in others:
            most |= _grams(other, n)
        matched = sum(min(count, most[gram]) for gram, count in counts.items())
        logs.append(log((matched or 0.5) / sum(counts.values())))
    nearest = min((abs(len(o) - len(own)), len(o)) for o in others)[1]
    brevity = min(0.0, 1 - nearest / len(own))
    return exp(brevity + sum(logs) / len(logs))


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
