"""Checks of a reward model (paper section 3.2.2), and the mistakes they recognise.

The ranking loss with its margins, the accuracy, the place where a score is read, and the auxiliary
safety loss of appendix A.3.4.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2_lib import rng
from llama2_lib.stages.reward import MARGINS
from llama2_lib.teaching.check import CheckFailed, Code, diagnose, on, slips, with_gradient
from llama2_lib.world.pairs import GRADES


def _ranked(c: Tensor, r: Tensor, m: Tensor) -> Tensor:
    return F.softplus(r - c + m).mean()


RANKING_MISTAKES = slips(_ranked)("""
the logarithm of a sigmoid is taken, which is -inf where a pair is most wrong; use logsigmoid or
    softplus || -(c - r - m).sigmoid().log().mean()
a small number is added inside the logarithm, which hides the gradient where a pair is most wrong;
    use logsigmoid || -((c - r - m).sigmoid() + 1e-8).log().mean()
the margin is added to the gap; subtract it, so that clear pairs must lie further apart
    || + m => - m
the margin is not used || + m =>
the margin is added to the loss, where it moves no gradient; it belongs inside the sigmoid
    || F.softplus(r - c).mean() + m.mean()
the margin multiplies the loss, so pairs with margin 0 teach nothing; subtract it from the gap
    || (m * F.softplus(r - c)).mean()
chosen and rejected are exchanged || r - c => c - r
the sign is wrong: this is the log-likelihood, and training would lower it || return => return -
the losses are summed, not averaged over the pairs || mean => sum
the sum is divided by the answers; divide by the pairs, of which there are half as many
    || .mean() => .mean() / 2
the scores pass through a sigmoid before the loss, so no gap exceeds 1; use raw scores
    || r - c => r.sigmoid() - c.sigmoid()
the loss is 1 - sigmoid, without a logarithm; it stops teaching where a pair is most wrong
    || (r - c + m).sigmoid().mean()
this is a hinge, max(0, margin - gap); equation 2 has a logsigmoid || (r - c + m).relu().mean()
the gaps are averaged before the logsigmoid, so a clear pair hides a wrong one
    || -F.logsigmoid((c - r - m).mean())
the chosen scores are detached, so only the rejected answers are moved || - c => - c.detach()
the logsigmoid is missing: this is the bare gap || (r - c + m).mean()
the margins are averaged over the pairs; each pair has its own || + m => + m.mean()
the rejected scores are detached, so only the chosen answers are moved || r - c => r.detach() - c
""")


def ranking_loss(candidate: Code) -> None:
    """Check `candidate(chosen, rejected, margin)`: the mean over pairs of equation 2, and its
    gradient, also where scores are far apart."""
    near = 2 * torch.randn(2, 5, generator=rng.generator(0, "check", "ranking"))
    far = torch.tensor([[-150.0, 90.0], [120.0, -60.0]])
    margin = torch.tensor([3.0, 0.0, 1.0, 2.0, 1.0])

    def run(loss: Code) -> Tensor:
        def of_both(scores: Tensor, margin: Tensor) -> Tensor:
            return loss(*scores, margin)

        cases = [(near, margin), (far, margin[:2])]
        return torch.cat([with_gradient(*case)(of_both) for case in cases])

    diagnose(run, candidate, run(_ranked), RANKING_MISTAKES)


def _looked_up(grades: Sequence[str], schedule: str) -> Tensor:
    tables: Mapping[str, Sequence[float]] = MARGINS
    table: dict[str, float] = dict(zip(GRADES, tables[schedule], strict=True))
    return torch.tensor([table[grade] for grade in grades])


MARGIN_MISTAKES = slips(_looked_up)("""
the order is upside down: the clearest grade has the largest margin
    || tables[schedule] => tables[schedule][::-1]
the schedules small and large are exchanged
    || = MARGINS => = {**MARGINS, "small": MARGINS["large"], "large": MARGINS["small"]}
the schedule is not looked at: the margins are always the large ones
    || = MARGINS => = dict.fromkeys(MARGINS, MARGINS["large"])
the margins are whole numbers, so 2/3 and 1/3 became 0; keep floats
    || = MARGINS => = {**MARGINS, "small": (1.0, 0.0, 0.0, 0.0)}
every margin is one step too large; pairs that are hardly better have none
    || = MARGINS => = {**MARGINS, "small": (4/3, 1.0, 2/3, 1/3), "large": (4.0, 3.0, 2.0, 1.0)}
an unknown grade gets the margin 0 in silence; raise a ValueError
    || table[grade] => table.get(grade, 0.0)
an unknown schedule counts as none in silence; raise a ValueError
    || tables[schedule] => tables.get(schedule, MARGINS["none"])
""")


def _refuses(function: Code, grades: Sequence[str], schedule: str) -> float:
    try:
        function(grades, schedule)
    except (ValueError, KeyError):
        return 1.0
    return 0.0


def margins(candidate: Code) -> None:
    """Check `candidate(grades, schedule)`: m(r) of each pair for the schedules none, small and
    large (table 27). What it does not know must be refused."""
    grades = [GRADES[index] for index in (2, 0, 3, 1, 1, 0)]

    def run(function: Code) -> Tensor:
        rows = [torch.as_tensor(function(grades, schedule)).float() for schedule in MARGINS]
        if any(row.shape != (len(grades),) for row in rows):
            raise CheckFailed(f"{len(grades)} margins must come back, one a pair.")
        cases = [([*grades, "much better"], "large"), (grades, "huge")]
        return torch.cat([*rows, torch.tensor([_refuses(function, *case) for case in cases])])

    diagnose(run, candidate, run(_looked_up), MARGIN_MISTAKES)


def _accuracy(c: Tensor, r: Tensor, m: Tensor) -> Tensor:
    return ((c > r) + 0.5 * (c == r)).mean()


ACCURACY_MISTAKES = slips(_accuracy)("""
a tie counts as a hit; count it half, or a model of zeros is perfect || 0.5 => 1.0
a tie counts as a miss; count it half, or a model of zeros is worse than a coin || 0.5 => 0.0
ties are left out of the pairs; count each half || (c > r).sum() / (c != r).sum()
the margin enters; it belongs to training only, or models with different margins cannot be compared
    || c > r => c - m > r ;; c == r => c - m == r
chosen and rejected are exchanged || c > r => r > c
the mean probability is taken; count pairs in the right order || (c - r).sigmoid().mean()
each chosen score is compared with 0; only the order within a pair has a meaning
    || (c > 0).float().mean()
single answers are counted, above 0 or below; compare the two answers of a pair
    || torch.cat([c > 0, r < 0]).float().mean()
hits are counted, not their share || mean => sum
the share is in percent; give a number between 0 and 1 || return => return 100 *
""")


def pair_accuracy(candidate: Code) -> None:
    """Check `candidate(chosen, rejected, margin)`: the share of pairs in the right order.

    The margin is what a batch carries; evaluation must not use it.
    """
    chosen = torch.tensor([2.0, -0.5, 1.0, 0.5, -3.0, 1.5, 0.25, -1.0, 2.5, 0.75, -0.25])
    rejected = torch.tensor([0.5, -1.0, 1.0, 1.5, -4.5, 1.5, 0.0, 0.5, 1.0, 0.75, -2.0])
    margin = torch.tensor([3.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1 / 3, 2.0, 1.0, 0.0, 3.0])
    run = on(chosen, rejected, margin, then=torch.as_tensor)
    diagnose(run, candidate, run(_accuracy), ACCURACY_MISTAKES)


PAD = 2
"""The id that ends an answer as well, as in many tokenizers."""


def _inside(values: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(values.shape[1]) < lengths[:, None]


def _scored(values: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    at = lengths - 1
    return values[torch.arange(len(values)), at]


SCORE_MISTAKES = slips(_scored)("""
the last column is read, which is a pad in shorter rows; read at length - 1 || values[:, -1]
the place `length` is read, the first pad; counting starts at 0, so read at length - 1
    || lengths - 1 => lengths.clamp(max=values.shape[1] - 1)
the place length - 2 is read, the token before the last || lengths - 1 => lengths - 2
the first pad is searched by its id, which also stands inside a prompt and is missing in a full row;
    use the lengths || lengths - 1 => (ids == PAD).int().argmax(1) - 1
the last token that is not the padding id is searched, and EOS has the same id; use the lengths
    || lengths - 1 => (torch.arange(ids.shape[1]) * (ids != PAD)).argmax(1)
the first token is read, which has seen nothing of the answer || values[:, 0]
the mean over the tokens is taken; read the last real one
    || (values * _inside(values, lengths)).sum(1) / lengths
the mean over all columns is taken, pads included || values.mean(1)
the values of the tokens are summed, so long answers score more
    || (values * _inside(values, lengths)).sum(1)
the largest value of the row is taken
    || values.masked_fill(~_inside(values, lengths), -torch.inf).amax(1)
the score passes through a sigmoid; keep it raw || at] => at].sigmoid()
the batch's mean is taken off, so a score depends on who else is in the batch
    || (last := _scored(values, ids, lengths)) - last.mean()
the lengths belong to other rows; keep rows and lengths in one order
    || lengths - 1 => lengths.flip(0) - 1
""")


def last_token_score(candidate: Code) -> None:
    """Check `candidate(values, ids, lengths)`: each row's value at its last real token.

    Rows are padded on the right with the id of EOS. Each row is tried alone and in the batch.
    """
    lengths = torch.tensor([5, 7, 3, 6])
    ids = torch.tensor(
        [[8, 2, 9, 5, 2, 2, 2], [4, 6, 8, 7, 3, 5, 2], [9, 4, 7, 2, 2, 2, 2], [5, 4, 6, 8, 9, 2, 2]]
    )
    values = torch.randn(4, 7, generator=rng.generator(0, "check", "last token"))

    def run(score: Code) -> Tensor:
        alone = [
            on(values[row : row + 1, :n], ids[row : row + 1, :n], lengths[row : row + 1])(score)
            for row, n in enumerate(lengths.tolist())
        ]
        return torch.cat([on(values, ids, lengths)(score), *alone])

    try:
        diagnose(run, candidate, run(_scored), SCORE_MISTAKES)
    except (IndexError, RuntimeError) as error:
        if "out of" not in str(error):
            raise
        raise CheckFailed(
            "a place beyond a row was read; the last of n tokens stands at n - 1 "
            f"({str(error).splitlines()[0]})."
        ) from error


def _auxiliary(s: Tensor, safe: Tensor) -> Tensor:
    nats = F.softplus(torch.where(safe, -s, s))
    return nats.mean()


SAFETY_MISTAKES = slips(_auxiliary)("""
the labels are upside down: a high score must mean safe || where(safe => where(~safe
the sign is wrong: this is the log-likelihood, and training would lower it || -nats.mean()
only unsafe answers count; safe ones must be pushed up too, or all scores sink || nats[~safe].mean()
only safe answers count; unsafe ones must be pushed down || nats[safe].mean()
only the first half of the rows counts, the chosen answers; every answer has a label
    || nats[: len(s) // 2].mean()
the losses are summed, not averaged over the answers || nats.sum()
the sum is divided by the pairs; divide by the answers || 2 * nats.mean()
safe and unsafe answers are averaged apart, so those of the rarer kind weigh more
    || 0.5 * (nats[safe].mean() + nats[~safe].mean())
safe answers are compared with unsafe ones: that is a ranking loss again, which no constant changes;
    score each answer by itself || F.softplus(s[~safe].mean() - s[safe].mean())
the cross-entropy is taken of sigmoid(score), which saturates where an answer is most wrong; use
    binary_cross_entropy_with_logits || F.binary_cross_entropy(s.sigmoid(), safe.to(s))
the sigmoid is taken twice; binary_cross_entropy_with_logits wants raw scores
    || nats = => s = s.sigmoid(); nats =
the logarithm of a sigmoid is taken, which is -inf where an answer is most wrong; use logsigmoid
    || -torch.where(safe, s, -s).sigmoid().log().mean()
labels of -1 and 1 are used where cross-entropy wants 0 and 1
    || F.binary_cross_entropy_with_logits(s, 2 * safe.to(s) - 1)
this is a squared error of probabilities; it stops teaching where an answer is most wrong
    || (s.sigmoid() - safe.to(s)).square().mean()
the threshold 0.15 is built into the loss; it belongs to the use of the score
    || nats = => s = s - torch.tensor(0.15).logit(); nats =
""")


def safety_auxiliary_loss(candidate: Code) -> None:
    """Check `candidate(scores, is_safe)`: the mean over answers of the cross-entropy of each raw
    score against its label, and its gradient, also where scores are extreme."""
    near = 2 * torch.randn(8, generator=rng.generator(0, "check", "safety loss"))
    safe = torch.tensor([True, False, True, True, False, True, True, False])
    far = torch.tensor([150.0, -130.0, 110.0, -160.0])
    far_safe = torch.tensor([False, True, True, False])

    def run(loss: Code) -> Tensor:
        cases = [(near, safe), (far, far_safe)]
        return torch.cat([with_gradient(*case)(loss) for case in cases])

    diagnose(run, candidate, run(_auxiliary), SAFETY_MISTAKES)
