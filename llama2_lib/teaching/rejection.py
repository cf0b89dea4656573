"""Checks of rejection sampling, and the mistakes they recognise (paper section 3.2.3).

The arithmetic of the best of N has its checks in `best_of_n`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from llama2_lib.teaching.check import CheckFailed

Pick = Callable[[Tensor, Tensor], Tensor]
Answers = Sequence[Sequence[tuple[int, ...]]]
Distinct = Callable[[Answers], Sequence[Sequence[int]]]
Round = Mapping[str, Sequence[tuple[str, float]]]
Rescore = Callable[[str, str], float]
Pool = Callable[[Sequence[Round], Rescore], Mapping[str, str]]


def compare_choice(
    actual: object, expected: object, mistakes: Mapping[str, Callable[[], object]]
) -> None:
    """Return if the choices are equal; else say which known mistake makes the same choice.

    Raises:
        CheckFailed: They differ.
    """
    if actual == expected:
        return
    for name, wrong in mistakes.items():
        if actual == wrong():
            raise CheckFailed(f"the choice is not right: it looks as if {name}.")
    raise CheckFailed(f"expected {expected}; got {actual}, like no mistake known here.")


def _best(scores: Tensor, finished: Tensor) -> Tensor:
    return scores.masked_fill(~finished, -torch.inf).argmax(dim=1)


def _among_kept(scores: Tensor, finished: Tensor) -> Tensor:
    rows = zip(scores, finished, strict=True)
    return torch.stack([row[keep].argmax() for row, keep in rows])


def _median(scores: Tensor, finished: Tensor) -> Tensor:
    """Return the place of the (lower) median, as nanmedian counts."""
    return scores.masked_fill(~finished, torch.nan).nanmedian(dim=1).indices


def _last_best(scores: Tensor, finished: Tensor) -> Tensor:
    return scores.shape[1] - 1 - _best(scores.flip(1), finished.flip(1))


PICK_MISTAKES: dict[str, Pick] = {
    "a sample without EOS is picked; leave unfinished samples out": lambda s, f: s.argmax(1),
    "unfinished samples get the score 0, which beats every negative score; give them -inf": (
        lambda s, f: (s * f).argmax(1)
    ),
    "the place is counted among the finished samples only; count it among all": _among_kept,
    "of equal scores the last sample is taken; take the first, so that a second run agrees": (
        _last_best
    ),
    "the lowest score is taken": lambda s, f: s.masked_fill(~f, torch.inf).argmin(1),
    "the score comes back, not the sample's place; use argmax": lambda s, f: s.masked_fill(
        ~f, -torch.inf
    ).amax(1),
    "the best is searched over the prompts, not over the samples of each; use dim=1": (
        lambda s, f: s.masked_fill(~f, -torch.inf).argmax(0)
    ),
    "one place is taken for all prompts, that of the best sample of all": lambda s, f: (
        _best(s.flatten()[None], f.flatten()[None]) % s.shape[1]
    ).expand(len(s)),
    "one place is taken for all prompts, that of the best mean score": lambda s, f: (
        s.mean(0).argmax().expand(len(s))
    ),
    "the score's size counts and not its sign": lambda s, f: _best(s.abs(), f),
    "the median sample is taken, which more samples do not improve": _median,
    "the scores are not used: the first finished sample is taken, the random control": (
        lambda s, f: f.int().argmax(1)
    ),
    "the scores are rounded, which makes ties that are none": lambda s, f: _best(s.round(), f),
}


def pick_best(candidate: Pick) -> None:
    """Check `candidate(scores, finished)`: the place of each prompt's best sample.

    Both are prompts x samples; `finished` is True where a sample ended with EOS. Of equal scores
    the first wins.
    """
    scores = torch.tensor(
        [
            [-1.6, -0.75, -3.0, -0.75, -2.0, 2.0],
            [0.3, 1.4, 0.9, 1.2, -2.4, 1.2],
            [-2.0, -4.0, -1.4, -1.1, -3.0, -2.5],
            [0.6, 3.5, -1.0, 0.7, 2.1, 1.9],
        ]
    )
    finished = torch.ones_like(scores, dtype=torch.bool)
    finished[0, 5] = finished[1, 1] = finished[2, 0] = finished[2, 1] = finished[3, 1] = False

    def run(pick: Pick) -> object:
        return torch.as_tensor(pick(scores, finished)).tolist()

    wrong = {name: lambda f=f: run(f) for name, f in PICK_MISTAKES.items()}
    compare_choice(run(candidate), run(_best), wrong)


def _first_of(
    row: Sequence[tuple[int, ...]],
    key: Callable[[tuple[int, ...]], Hashable] = lambda answer: answer,
) -> list[int]:
    """Return the place of the first answer of each key, in order."""
    first: dict[Hashable, int] = {}
    for place, answer in enumerate(row):
        first.setdefault(key(answer), place)
    return list(first.values())


def _distinct(answers: Answers) -> list[list[int]]:
    return [_first_of(row) for row in answers]


def _across(answers: Answers) -> list[list[int]]:
    flat = [(number, place) for number, row in enumerate(answers) for place in range(len(row))]
    kept = {flat[at] for at in _first_of([answers[n][place] for n, place in flat])}
    return [[p for p in range(len(row)) if (n, p) in kept] for n, row in enumerate(answers)]


DISTINCT_MISTAKES: dict[str, Distinct] = {
    "the last of equal answers is kept; keep the first": lambda answers: [
        sorted({answer: place for place, answer in enumerate(row)}.values()) for row in answers
    ],
    "all copies are dropped, the first too; keep one of each": lambda answers: [
        [place for place, answer in enumerate(row) if row.count(answer) == 1] for row in answers
    ],
    "only neighbours are compared; a copy may come later": lambda answers: [
        [0, *(at for at, (a, b) in enumerate(pairwise(row), start=1) if a != b)] for row in answers
    ],
    "the answers are sorted, so their order is lost": lambda answers: [
        [row.index(answer) for answer in sorted(set(row))] for row in answers
    ],
    "answers to other prompts count as copies; compare within one prompt": _across,
    "answers of one length count as copies; compare all tokens": lambda answers: [
        _first_of(row, len) for row in answers
    ],
    "the order of the tokens is not looked at; compare the sequences": lambda answers: [
        _first_of(row, lambda answer: tuple(sorted(answer))) for row in answers
    ],
    "how often a token comes is not looked at; compare the sequences": lambda answers: [
        _first_of(row, frozenset) for row in answers
    ],
    "the beginning of an answer counts as its copy; compare to the end": lambda answers: [
        _first_of(row, lambda answer: answer[:2]) for row in answers
    ],
    "nothing is dropped": lambda answers: [list(range(len(row))) for row in answers],
}


def distinct(candidate: Distinct) -> None:
    """Check `candidate(answers)`: for each prompt the places of its distinct answers, in order.

    `answers` holds for each prompt a list of tuples of ids; the first of equal ones is kept.
    """
    answers = [
        [(5, 6), (5, 6), (7,), (6, 5), (5, 6), (4, 4, 6)],
        [(9, 3, 3), (3, 9), (9, 3, 3), (7,), (9, 3), (8, 1, 4)],
    ]
    wrong = {name: lambda f=f: f(answers) for name, f in DISTINCT_MISTAKES.items()}
    actual = [[int(place) for place in row] for row in candidate(answers)]
    compare_choice(actual, _distinct(answers), wrong)


def _pooled(
    rounds: Sequence[Round],
    score: Rescore,
    *,
    by: Callable[[float, float], float] = lambda old, new: new,
    sign: float = 1.0,
    newest_first: bool = False,
) -> dict[str, str]:
    """Pick each prompt's best answer of all rounds; `by` makes one score of the old and the new."""
    best: dict[str, tuple[float, str]] = {}
    for samples in reversed(rounds) if newest_first else rounds:
        for prompt, answers in samples.items():
            for answer, old in answers:
                found = sign * by(old, score(prompt, answer))
                if prompt not in best or found > best[prompt][0]:
                    best[prompt] = (found, answer)
    return {prompt: answer for prompt, (_, answer) in sorted(best.items())}


def _tops(rounds: Sequence[Round], score: Rescore) -> dict[str, str]:
    kept = [{p: [max(row, key=lambda x: x[1])] for p, row in r.items()} for r in rounds]
    return _pooled(kept, score)


def _newest_of_each(rounds: Sequence[Round], score: Rescore) -> dict[str, str]:
    """Return each prompt's best answer of the last round in which the prompt came."""
    return dict(sorted({p: a for r in rounds for p, a in _pooled([r], score).items()}.items()))


POOL_MISTAKES: dict[str, Pool] = {
    "the scores of earlier rounds are used as they are; another model gave them, so score all "
    "samples again": lambda rounds, score: _pooled(rounds, score, by=lambda old, new: old),
    "only the best of each round, by its old score, is scored again; score all samples again": (
        _tops
    ),
    "the better of old and new score counts; only the new model's scores compare": (
        lambda rounds, score: _pooled(rounds, score, by=max)
    ),
    "old and new score are averaged; only the new model's scores compare": (
        lambda rounds, score: _pooled(rounds, score, by=lambda old, new: old + new)
    ),
    "only the last round is used, so what came earlier is forgotten; use the pool of all": (
        lambda rounds, score: _pooled(rounds[-1:], score)
    ),
    "only the first round is used": lambda rounds, score: _pooled(rounds[:1], score),
    "each prompt's samples of its newest round replace the older ones; keep them all": (
        _newest_of_each
    ),
    "prompts that the last round left out are dropped": lambda rounds, score: {
        p: answer for p, answer in _pooled(rounds, score).items() if p in rounds[-1]
    },
    "the lowest score is taken": lambda rounds, score: _pooled(rounds, score, sign=-1.0),
    "of equal scores the newest sample is taken; take the earliest": lambda rounds, score: _pooled(
        rounds, score, newest_first=True
    ),
}


def pool(candidate: Pool) -> None:
    """Check `candidate(rounds, score)`: each prompt's best answer of all rounds, as a dict.

    A round maps a prompt to its samples, pairs of answer and the score that it got then.
    `score(prompt, answer)` is the newest reward model. Of equal scores the earliest sample wins.
    """
    rounds: list[Round] = [
        {
            "cheese": [("a", 0.5), ("b", 0.9), ("c", 0.3)],
            "moon": [("k", 0.7), ("l", 0.9)],
            "well": [("s", 0.2), ("t", 0.6)],
            "rain": [("g", 0.1), ("h", 0.2)],
        },
        {
            "cheese": [("d", 0.8), ("e", 0.75)],
            "moon": [("m", 0.2), ("n", 0.55)],
            "rain": [("i", 0.35), ("j", 0.95)],
        },
        {
            "cheese": [("f", 0.6)],
            "moon": [("o", 0.65), ("p", 0.4)],
            "sheep": [("x", 0.1), ("y", 0.3)],
        },
    ]
    now = {
        **{"a": 0.6, "b": 0.4, "c": 0.85, "d": 0.62, "e": 0.2, "f": 0.3},
        **{"k": 0.64, "l": 0.1, "m": 0.55, "n": 0.35, "o": 0.64, "p": 0.2},
        **{"s": 0.7, "t": 0.25, "x": 0.4, "y": 0.1, "g": 0.3, "h": 0.05, "i": 0.6, "j": 0.5},
    }

    def run(choose: Pool) -> object:
        chosen = choose(rounds, lambda prompt, answer: now[answer])
        return dict(sorted(chosen.items()))

    wrong = {name: lambda f=f: run(f) for name, f in POOL_MISTAKES.items()}
    compare_choice(run(candidate), run(_pooled), wrong)
