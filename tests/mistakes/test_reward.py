"""Every known mistake in a reward model is rejected and named; right code passes."""

import pytest
import torch
import torch.nn.functional as F

from llama2_lib.model.config import ModelConfig
from llama2_lib.model.heads import scalar_model
from llama2_lib.model.transformer import Transformer
from llama2_lib.objectives import preference
from llama2_lib.teaching import reward, reward_safety
from llama2_lib.teaching.check import CheckFailed


def cases(*pairs):
    return [
        pytest.param(check, name, wrong, id=f"{check.__name__}: {name}")
        for check, mistakes in pairs
        for name, wrong in mistakes.items()
    ]


@pytest.mark.parametrize(
    ("check", "name", "wrong"),
    cases(
        (reward.ranking_loss, reward.RANKING_MISTAKES),
        (reward.margins, reward.MARGIN_MISTAKES),
        (reward.pair_accuracy, reward.ACCURACY_MISTAKES),
        (reward.last_token_score, reward.SCORE_MISTAKES),
        (reward_safety.safety_auxiliary_loss, reward_safety.SAFETY_MISTAKES),
    ),
)
def test_a_mistake_is_rejected_by_name(check, name, wrong):
    with pytest.raises(CheckFailed) as failure:
        check(wrong)
    assert f"it looks as if {name}." in str(failure.value)


def mean_of(term):
    return term.total / term.count


def by_classes(chosen, rejected, margin):
    """Which of two answers is the better one, as a classification."""
    logits = torch.stack([chosen - margin, rejected], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(chosen), dtype=torch.int64))


def by_logaddexp(chosen, rejected, margin):
    return torch.logaddexp(torch.zeros_like(chosen), rejected + margin - chosen).mean()


def test_right_ranking_losses_pass():
    for right in (
        lambda *given: mean_of(preference.ranking_loss(*given)),
        by_classes,
        by_logaddexp,
    ):
        reward.ranking_loss(right)


def by_steps(grades, schedule):
    step = {"none": 0.0, "small": 1 / 3, "large": 1.0}[schedule]
    return torch.tensor([step * (3 - reward.GRADES.index(grade)) for grade in grades])


def test_right_margins_pass():
    for right in (preference.margins, by_steps):
        reward.margins(right)


def by_signs(chosen, rejected, margin):
    return ((chosen - rejected).sign().mean() + 1) / 2


def test_right_accuracies_pass():
    for right in (lambda c, r, m: preference.pairwise_accuracy(c, r), by_signs):
        reward.pair_accuracy(right)


def by_mask(values, ids, lengths):
    places = torch.arange(values.shape[1])
    return values[places == lengths[:, None] - 1]


def by_the_library(values, ids, lengths):
    """`ScalarModel.score` with a model whose numbers are the given ones."""
    config = ModelConfig(vocab_size=11, dim=8, n_layers=1, n_heads=2, n_kv_heads=1, multiple_of=4)
    model = scalar_model(Transformer(config))
    model.forward = lambda ids: values
    return model.score(ids, lengths)


def test_right_scores_pass():
    for right in (by_mask, by_the_library):
        reward.last_token_score(right)


def by_signed_scores(scores, is_safe):
    return -F.logsigmoid((2 * is_safe.float() - 1) * scores).mean()


def test_right_safety_losses_pass():
    for right in (
        lambda *given: mean_of(preference.safety_auxiliary_loss(*given)),
        by_signed_scores,
    ):
        reward_safety.safety_auxiliary_loss(right)


def test_what_is_no_known_mistake_is_rejected_as_well():
    with pytest.raises(CheckFailed, match="like no mistake known"):
        reward.ranking_loss(lambda *given: 3 * by_classes(*given))
    with pytest.raises(CheckFailed, match=r"without axes; got \(5,\)"):
        reward.ranking_loss(lambda c, r, m: F.softplus(r - c + m))
    with pytest.raises(CheckFailed, match="without axes; got LossTerm"):
        reward.ranking_loss(preference.ranking_loss)
    with pytest.raises(CheckFailed, match="carries no gradient"):
        reward.ranking_loss(lambda *given: by_classes(*given).detach())
    with pytest.raises(CheckFailed, match="a place beyond a row"):
        reward.last_token_score(lambda values, ids, n: values[torch.arange(len(n)), n])
    with pytest.raises(CheckFailed, match="6 margins must come back"):
        reward.margins(lambda grades, schedule: torch.zeros(3))
