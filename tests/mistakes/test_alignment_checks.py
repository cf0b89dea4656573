"""Right code of reward models, rejection sampling, PPO and safety passes; wrong code is told."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate

from llama2_lib.evaluation.statistics import proportion
from llama2_lib.model.config import ModelConfig
from llama2_lib.model.transformer import Transformer, scalar_model
from llama2_lib.objectives import rlhf
from llama2_lib.stages.reward import MARGINS
from llama2_lib.stages.safety import gate
from llama2_lib.teaching import ppo, rejection, reward, safety
from llama2_lib.teaching.check import CheckFailed


def mean(term):
    return term.total / term.count


def by_classes(chosen, rejected, margin):
    """Which of two answers is the better one, as a classification."""
    logits = torch.stack([chosen - margin, rejected], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(chosen), dtype=torch.int64))


def by_signs(chosen, rejected, margin):
    return ((chosen - rejected).sign().mean() + 1) / 2


def by_mask(values, ids, lengths):
    places = torch.arange(values.shape[1])
    return values[places == lengths[:, None] - 1]


def by_the_library(values, ids, lengths):
    """`ScalarModel.score` with a model whose numbers are the given ones."""
    config = ModelConfig(vocab_size=11, dim=8, n_layers=1, n_heads=2, n_kv_heads=1, multiple_of=4)
    model = scalar_model(Transformer(config))
    model.forward = lambda ids: values
    return model.score(ids, lengths)


def picked_in_a_loop(scores, finished):
    rows = zip(scores.tolist(), finished.tolist(), strict=True)
    return [
        max((i for i, ok in enumerate(f) if ok), key=lambda i, s=s: (s[i], -i)) for s, f in rows
    ]


def distinct_by_memory(answers):
    kept = []
    for row in answers:
        seen = set()
        kept.append([i for i, a in enumerate(row) if not (a in seen or seen.add(a))])
    return kept


def pool_by_gathering(rounds, score):
    prompts = {prompt for samples in rounds for prompt in samples}
    answers = {p: [a for r in rounds for a, _ in r.get(p, [])] for p in prompts}
    return {p: max(row, key=lambda a, p=p: score(p, a)) for p, row in answers.items()}


def by_enumeration(proxy, value, n):
    subsets = list(combinations(range(proxy.shape[1]), n))
    return [
        np.mean([v[max(subset, key=lambda i, p=p: p[i])] for subset in subsets])
        for p, v in zip(proxy, value, strict=True)
    ]


def by_quadrature(n):
    """The rank u of the best of n has the density n u^(n - 1) against 1."""

    def integrand(u):
        density = n * u ** (n - 1)
        return density * math.log(density) if density > 0 else 0.0

    return integrate.quad(integrand, 0, 1)[0]


def combined_by_probability(safety, helpfulness, is_safety_prompt):
    """The paper's own form decides, the raw scores come back."""
    unsafe = safety.sigmoid() < 0.15
    return safety * (is_safety_prompt | unsafe) + helpfulness * ~(is_safety_prompt | unsafe)


def whitened_by_selection(x, mask):
    kept = x[mask]
    out = torch.zeros_like(x)
    out[mask] = (kept - kept.mean()) / (kept.var(correction=0) + 1e-8).sqrt()
    return out


def shaped_in_a_loop(score, logprobs, reference_logprobs, mask, beta):
    out = torch.zeros(mask.shape)
    for row in range(len(score)):
        tokens = mask[row].nonzero()[:, 0].tolist()
        for t in tokens:
            out[row, t] = beta * (reference_logprobs[row, t] - logprobs[row, t]).item()
        out[row, tokens[-1]] += score[row]
    return out


def estimates_by_ratio(logprobs, reference_logprobs):
    ratio = (reference_logprobs - logprobs).exp()  # pi_0 / pi
    return -ratio.log(), ratio.log().square() * 0.5, ratio - 1 - ratio.log()


def library_gae(rewards, values, mask, gamma, lam):
    return rlhf.gae(rewards, values, mask, gamma=gamma, lam=lam)


def gae_by_double_sum(rewards, values, mask, gamma, lam):
    advantages = torch.zeros_like(rewards)
    for row, places in enumerate(mask):
        tokens = places.nonzero()[:, 0].tolist()
        v = [*values[row, tokens].tolist(), 0.0]
        delta = [rewards[row, t].item() + gamma * v[i + 1] - v[i] for i, t in enumerate(tokens)]
        for i, t in enumerate(tokens):
            advantages[row, t] = sum(d * (gamma * lam) ** n for n, d in enumerate(delta[i:]))
    return advantages, torch.where(mask, advantages + values, 0.0)


def policy_loss_by_cases(logprobs, old_logprobs, advantages, mask, clip):
    """Beyond the limit in the direction of the advantage the gain is constant."""
    log_ratio, gain = (logprobs - old_logprobs)[mask], advantages[mask]
    over = (gain > 0) & (log_ratio > math.log1p(clip))
    under = (gain < 0) & (log_ratio < math.log1p(-clip))
    ratio = log_ratio.exp()
    ratio = torch.where(over, torch.tensor(1 + clip), ratio)
    ratio = torch.where(under, torch.tensor(1 - clip), ratio)
    return -(ratio * gain).mean()


def unmasked_gae(rewards, values, mask, gamma, lam):
    advantages = library_gae(rewards, values, mask, gamma, lam)[0]
    return advantages, advantages + values


def blind_gae(rewards, values, mask, gamma, lam):
    return library_gae(rewards, values, torch.ones_like(mask), gamma, lam)


def by_the_gate_of_the_library(rows):
    kept = gate(np.array([row[3] for row in rows]), np.array([row[4] for row in rows]))
    return [[row[0], row[2]] for row, keep in zip(rows, kept, strict=True) if keep]


def rates_by_numpy(rows):
    families = np.array([row[0] for row in rows])
    declined = np.array([row[1] for row in rows], dtype=float)
    return [declined[families == name].mean() for name in ("helpful", "borderline")]


def gamma_by_the_library(queries, budget):
    seen = set()
    first = [broke and not (q in seen or seen.add(q)) for q, broke in queries]
    return budget * proportion(sum(first), len(first)).value


def by_the_librarys_table(grades, schedule):
    return rlhf.margins(grades, dict(zip(reward.GRADES, MARGINS[schedule], strict=True)))


RIGHT = {
    reward.ranking_loss: [lambda *given: mean(rlhf.ranking_loss(*given)), by_classes],
    reward.margins: [by_the_librarys_table],
    reward.pair_accuracy: [lambda c, r, m: rlhf.pairwise_accuracy(c, r), by_signs],
    reward.last_token_score: [by_mask, by_the_library],
    reward.safety_auxiliary_loss: [
        lambda *given: mean(rlhf.safety_auxiliary_loss(*given)),
        lambda scores, is_safe: -F.logsigmoid((2 * is_safe.float() - 1) * scores).mean(),
    ],
    rejection.pick_best: [picked_in_a_loop],
    rejection.distinct: [distinct_by_memory],
    rejection.pool: [pool_by_gathering],
    rejection.expected_best: [by_enumeration],
    rejection.kl_of_best_of_n: [by_quadrature],
    ppo.combined_reward: [combined_by_probability],
    ppo.whiten: [whitened_by_selection],
    ppo.shaped_rewards: [shaped_in_a_loop],
    ppo.kl_estimates: [estimates_by_ratio],
    ppo.gae: [gae_by_double_sum],
    ppo.ppo_policy_loss: [
        lambda *given: mean(rlhf.ppo_policy_loss(*given)),
        policy_loss_by_cases,
    ],
    ppo.ppo_value_loss: [lambda *given: mean(rlhf.ppo_value_loss(*given))],
    safety.distilled_pairs: [by_the_gate_of_the_library],
    safety.nested_subset: [
        lambda items, share: items[: int(share * len(items) + 0.5)],
        lambda items, share: [x for i, x in enumerate(items) if i < share * len(items)],
    ],
    safety.false_refusal: [rates_by_numpy],
    safety.gamma: [gamma_by_the_library],
}


def strided_by_size(items, share):
    """Another part of the data for every size, and not the one that a shuffle gives."""
    n = round(share * len(items))
    return [items[(7 * n + 3 * i) % len(items)] for i in range(n)]


WRONG = [
    (reward.ranking_loss, lambda *given: 3 * by_classes(*given), "like no mistake known"),
    (reward.ranking_loss, lambda c, r, m: F.softplus(r - c + m), r"without axes; got \(5,\)"),
    (reward.ranking_loss, rlhf.ranking_loss, "without axes; got LossTerm"),
    (reward.ranking_loss, lambda *given: by_classes(*given).detach(), "carries no gradient"),
    (reward.last_token_score, lambda v, _, n: v[torch.arange(len(n)), n], "a place beyond a row"),
    (reward.margins, lambda grades, schedule: torch.zeros(3), "6 margins must come back"),
    (rejection.pick_best, lambda *_: [0, 0], r"expected .* got \[0, 0\], like no mistake known"),
    (rejection.pool, lambda rounds, score: {}, r"got \{\}, like no mistake known here"),
    (rejection.kl_of_best_of_n, lambda n: 7.0, "like no mistake known"),
    (rejection.expected_best, lambda *_: 0.5, r"expected shape \(4, 3\); got \(4,\)"),
    (ppo.ppo_policy_loss, lambda *given: 3 * policy_loss_by_cases(*given), "like no mistake known"),
    (ppo.ppo_value_loss, rlhf.ppo_value_loss, "without axes; got LossTerm"),
    (ppo.kl_estimates, lambda p, q: (p - q, (p - q).square()), "tensors of shapes"),
    (ppo.gae, lambda *given: (library_gae(*given)[0][0], given[1]), "tensors of shapes"),
    (ppo.gae, unmasked_gae, "not 0 where the mask is False"),
    (ppo.gae, blind_gae, "the sum is carried through the pads"),
    (ppo.combined_reward, lambda *given: given, "a tensor must come back; got tuple"),
    (ppo.shaped_rewards, lambda s, p, *g: shaped_in_a_loop(s, p, *g) + 0 * p, "carry a gradient"),
    (safety.gamma, lambda queries, budget: 0.123, "no mistake known here"),
    (safety.nested_subset, strided_by_size, "every size is another draw"),
    (safety.nested_subset, lambda items, share: ["x"], r"\[\.\.\.\]; got .* like no mistake known"),
]


@pytest.mark.parametrize(
    ("check", "right"), [(check, right) for check, rights in RIGHT.items() for right in rights]
)
def test_right_code_passes_however_it_is_written(check, right):
    check(right)


@pytest.mark.parametrize(("check", "wrong", "words"), WRONG)
def test_what_is_no_known_mistake_is_told_too(check, wrong, words):
    with pytest.raises(CheckFailed, match=words):
        check(wrong)
