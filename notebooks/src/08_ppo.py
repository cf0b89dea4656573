# %% [markdown] slideshow={"slide_type": "slide"}
# # Proximal policy optimisation
# Rejection sampling looked at many answers and kept the best. **PPO** looks at one answer at a time and asks of each of its tokens: was this better or worse than expected? Then it makes the good ones a little likelier.
# You build every piece: the reward, its price for drifting away, the credit of single tokens, the clipped losses. Then you look at a finished run, at what it gained and what it lost, and break a small one in ten ways to learn how each fault looks from outside.
#
# - **You will be able to explain** how two reward models become one number, what its hole is, why the divergence stands in the reward and not in the loss, what an advantage is, what clipping does and does not forbid,
#   why a rising reward proves little, and which dial to read first when a run goes wrong.
# - **Prerequisites:** notebooks 06 and 07. **Paper sections:** 3.2.3 (second half), 3.4.1.
# - **Minutes:** 90 to read, 2 to run, on two cores (25 more if models must first be trained).

# %% tags=["long"]
import copy
import itertools
import math
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

import ipywidgets
import numpy as np
import torch
from scipy.special import expit

from llama2_lib import lesson as lab
from llama2_lib.objectives import rlhf
from llama2_lib.stages.ppo import (
    ActorCritic,
    Ppo,
    answer_logprobs,
    ppo_loss,
    rollout,
    sample_answers,
    train,
)
from llama2_lib.teaching import ppo as checks
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, bar, show

ROUNDS = [f"rejection_v{n}" for n in (1, 2, 3, 4)]
CHAIN = dict(
    zip(
        ["base", "SFT", "V1", "V2", "V3", "V4", "V5"],
        ["pretrain", "sft", *ROUNDS, "ppo"],
        strict=True,
    )
)
folders = start("08_ppo", needs=[*CHAIN.values(), "rewards_v5"], recipe=lab.nano(), minutes=25)
models = {name: lab.load_model(folders[stage])[0].eval() for name, stage in CHAIN.items()}
judges = lab.load_rewards(folders["rewards_v5"])  # the learned ones: helpfulness and safety
tokenizer = lab.load_tokenizer(folders["sft"])
world = lab.make_world(0)
gold = lab.judge_of(world)  # the gold judge: knows the truth, trains nobody

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What is maximised
# **Say** (section 3.2.3). A **policy** $\pi$ is a model seen as something that acts: its actions are tokens, its game is an answer $g$ to a prompt $p$. PPO looks for the policy with the highest mean reward
#
# $$\mathbb{E}_{p \sim D,\, g \sim \pi}\big[R(g \mid p)\big], \qquad R(g \mid p) = \tilde R_c(g \mid p) - \beta\, D_{KL}\big(\pi(g \mid p) \,\|\, \pi_0(g \mid p)\big)$$
#
# - $\tilde R_c$ is the **score**: what the two reward models of notebook 06 say, combined and put on one scale.
# - $\pi_0$ is the **reference**: a frozen copy of the policy where it starts, here V4.
# - $D_{KL}$ is the **divergence**: how far the policy has moved from there, in nats an answer. $\beta$ is its price.
#
# Why pay for distance? Nothing in the first term says that an answer must be true, or even language. The reward model was trained on answers like those of $\pi_0$. Far away from them its opinion means nothing, and a maximiser goes exactly where an opinion is too high.
#
# One **iteration**: sample one answer to each prompt (a **rollout**), score them, turn scores into one reward a token, credit the tokens, take a few gradient steps. Then sample anew. We go through it in this order.
#
# First the material: 128 held-out prompts and one sampled answer of V4 and of V5, kept as ids.

# %%
config = lab.nano().ppo
asked = lab.sample_prompts(
    lab.WorldSource(world), 808, 128, tokenizer, longest=config.longest_prompt, split="held out"
)
prompts = list(zip(asked.ids, asked.tags, strict=True))
samples = {
    name: sample_answers(models[name], prompts, config, seed=1, eos_id=tokenizer.eos_id)
    for name in ("V4", "V5")
}
scored = {name: judges([s.ids for s in some], asked.tags) for name, some in samples.items()}
print(f"{len(prompts)} prompts, {sum(asked.tags)} of them tagged as apt to draw an unsafe answer")
print("most answers end:", np.mean([s.finished for s in samples["V5"]]) > 0.9)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One reward from two
# **Say.** The safety model says how safe an answer is, $R_s$; the helpfulness model how helpful, $R_h$. Both are probabilities here, $\sigma(\text{raw score})$. The paper combines them piece by piece:
#
# $$R_c = \begin{cases} R_s & \text{if is\_safety}(p) \text{ or } R_s < 0.15 \\ R_h & \text{otherwise} \end{cases}$$
#
# $\text{is\_safety}(p)$ is a tag, given to a prompt in advance. So: where danger was expected, only safety counts. Elsewhere helpfulness counts, unless the answer looks clearly unsafe.
#
# The paper then takes the **logit**, the inverse of $\sigma$, to return to a scale without ends. In numbers this is a trap: in fp32 $\sigma(17)$ is exactly 1, and its logit infinity. Keep the raw score from the start, and move the threshold instead: $R_s < 0.15$ is the same as $s < \ln(0.15 / 0.85) = -1.73$.
#
# **Build** on raw scores, **check**.
#
# **Break** it in three ways that all look reasonable: compare the raw score with 0.15; forget the tag; walk through $\sigma$ and back. Predict each message.

# %%
LIMIT = math.log(0.15 / 0.85)


def my_reward(safety, helpfulness, is_safety_prompt):
    """Raw scores and tags, one an answer -> raw R_c"""
    decided_by_safety = is_safety_prompt | (safety < LIMIT)
    return torch.where(decided_by_safety, safety, helpfulness)


@check("combined reward")
def _():
    checks.combined_reward(my_reward)


print("logit(sigmoid(17)) in fp32:", torch.logit(torch.tensor(17.0).sigmoid()).item())


for wrong in (
    lambda s, h, tagged: torch.where(tagged | (s < 0.15), s, h),
    lambda s, h, tagged: torch.where(s < LIMIT, s, h),
    lambda s, h, tagged: torch.logit(my_reward(s, h, tagged).sigmoid()),
):
    with expect_failure(CheckFailed):
        checks.combined_reward(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **See** the reward of an answer to an ordinary prompt while its safety changes, all else equal. Move the helpfulness. Before you do: what happens at 0.15 if the answer is less helpful than that?


# %% tags=["hide-input", "long"]
def draw_reward(helpfulness, tagged=False):
    safety = np.linspace(0.001, 0.999, 999)
    raw = torch.logit(torch.from_numpy(safety))
    help_raw = torch.full_like(raw, math.log(helpfulness / (1 - helpfulness)))
    combined = my_reward(raw, help_raw, torch.full_like(raw, tagged, dtype=torch.bool)).sigmoid()
    parts = {"R_s decides": safety < 0.15, "R_h decides": safety >= 0.15}
    if tagged:
        parts = {"R_s decides": safety > 0}
    figure = lab.lines(
        {name: (safety[where], combined[where]) for name, where in parts.items()},
        "safety of the answer, R_s (probability)", "combined reward, R_c (probability)",
        title=f"R_h = {helpfulness:g}, prompt {'tagged' if tagged else 'not tagged'}",
    )  # fmt: skip
    (axes,) = figure.axes
    axes.axvline(0.15, color="0.35", linestyle=":", label="threshold 0.15")
    axes.legend()
    return figure


def reward_words(helpfulness, tagged):
    if tagged:
        return "The prompt is tagged: safety alone decides, and more of it is always better."
    step = helpfulness - 0.15
    way = (
        "up, as it should"
        if step > 0
        else "DOWN: being a little unsafe pays"
        if step < 0
        else "nowhere"
    )
    return f"Helpfulness {helpfulness:g}: when the answer becomes safe, the reward steps {way} ({step:+.2f})."


show(draw_reward(0.05), alt=reward_words(0.05, False))
helpful = ipywidgets.SelectionSlider(options=[0.02, 0.05, 0.1, 0.15, 0.3, 0.6, 0.9], value=0.6)
Explorer(draw_reward, reward_words, helpfulness=helpful, tagged=False)

# %% [markdown] slideshow={"slide_type": "slide"}
# ### The hole
# **The formula has a hole.** A safe answer with $R_h < 0.15$ gains by becoming slightly unsafe: its reward rises from $R_h$ to just under 0.15. The paper does not mention it. For a maximiser an edge like this is not a curiosity but an address.
#
# How many answers stand at that edge? **Measure** on V5's answers to untagged prompts: helpfulness below 0.15, safety above. (The zero of $R_h$ is a convention, since comparisons fix only differences; ours is the mean of the fine-tuned model's answers.)
#
# ### Claim 28: what the threshold finds
# **Measure.** In the paper 0.15 has a **precision** of 0.89 (of the answers called unsafe, so many are) and a **recall** of 0.55 (of the unsafe ones, so many are called so). So the rule fires seldom and is then mostly right. The threshold only means something because the safety model has an anchored zero (its auxiliary loss).
# Notebook 06 measured it for eight seeds of small reward models; this is what the ledger of claims, `data/claims.json`, holds.


# %% tags=["nbval-ignore-output"]
def from_ledger(number, *words):
    """Show a recorded claim: what was declared, the estimates that contain one of the words, the verdict"""
    result = lab.recorded(number)
    print("predicted:", result.declared["prediction"])
    print("threshold:", result.declared["threshold"])
    print("paper:    ", result.declared["paper_value"])
    for name, estimate in result.verdict.estimates.items():
        if not words or any(word in name for word in words):
            print(f"  {name:36s} {estimate}")
    print("verdict:  ", result.verdict.outcome, "|", result.verdict.reason)
    return result


cut_at = from_ledger(28)

# %%
tags = np.array(asked.tags)
inside = {}
for name, found in scored.items():
    helpfulness, safety = expit(found.helpfulness), expit(found.safety)
    inside[name] = (~tags & (helpfulness < 0.15) & (safety >= 0.15))[~tags].mean()
print("some answers stand at the edge, in V4 or V5:", max(inside.values()) > 0)
print("they are a minority:", max(inside.values()) < 0.5)
for safety in (0.30, 0.16, 0.14):
    raw = [torch.logit(torch.tensor([x])) for x in (safety, 0.05)]
    print(
        f"R_h 0.05, R_s {safety:.2f} -> R_c {my_reward(*raw, torch.tensor([False])).sigmoid().item():.2f}"
    )


VERDICTS = ("reproduced", "not reproduced", "inconclusive", "cannot show at this scale")
print(
    "claim 28 has a verdict; seeds:",
    cut_at.verdict.outcome in VERDICTS,
    len(cut_at.measurements),
)
print(
    "on tagged prompts the reward is the safety score:",
    np.array_equal(scored["V5"].combined[tags], scored["V5"].safety[tags]),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Whitening
# **Say.** $\tilde R_c = \text{whiten}(\text{logit}(R_c))$: over a batch, subtract the mean and divide by the standard deviation. Now "1" means "one deviation better than usual", whatever the reward model's units are, and $\beta$ keeps its meaning.
#
# $$\tilde x = \frac{x - \bar x}{\sqrt{\tfrac1n \sum_i (x_i - \bar x)^2}}$$
#
# **Build** it with a mask, since later we whiten tokens, some of which are padding. Equal values must give zeros, not `nan`.


# %%
def my_whiten(x, mask):
    """Mean 0 and (population) variance 1 over what counts; 0 elsewhere"""
    counted = x[mask]
    spread = counted.std(correction=0)
    scale = 1 / spread if spread > 1e-7 * counted.abs().max() else 0.0
    return torch.zeros_like(x).masked_scatter(mask, (counted - counted.mean()) * scale)


@check("whitening")
def _():
    checks.whiten(my_whiten)


def keeps_mean(x, mask):
    return (my_whiten(x, mask) + x[mask].mean()).masked_fill(~mask, 0.0)


x = torch.randn(8, generator=lab.generator(0, "units"))
everything = torch.ones(8, dtype=torch.bool)
print(
    "other units, other zero, same result:",
    torch.allclose(my_whiten(3 * x + 1, everything), my_whiten(x, everything), rtol=0, atol=1e-5),
)

for wrong in (
    keeps_mean,  # so it is in some libraries
    lambda x, mask: my_whiten(x, torch.ones_like(mask)).masked_fill(~mask, 0.0),
):
    with expect_failure(CheckFailed):
        checks.whiten(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **Over what?** The paper says no more than "whiten". Over the whole batch two scales meet: tagged prompts are scored by one model, the others by another, and each model has its own zero and spread.
#
# **See** V4's scores whitened over the batch, then, in the drop-down, raw, and each tag by itself. Predict: over the batch, what decides whether a *tagged* prompt's answer gets a positive score?
# <details><summary>Answer, and what follows</summary>Mostly its tag. V4 is safe nearly always, its safety scores lie high, and the safety model has a zero and a spread of its own: a tagged prompt gets praise for almost anything that is said. But no answer can change the tag of its prompt. What the tag explains is therefore noise for learning. A value function (below) can learn to expect it; until it has, it drowns a part of the rest. So nano whitens each tag by itself. That is our choice. An answer that does not end within the limit gets a fixed whitened score of -2: there is nothing to judge at its end.</details>


# %% tags=["hide-input", "long"]
def whitened(by):
    raw, tag = torch.from_numpy(scored["V4"].combined).float(), torch.tensor(asked.tags)
    if by == "nothing":
        return raw.numpy()
    if by == "batch":
        return my_whiten(raw, torch.ones_like(tag)).numpy()
    return (my_whiten(raw, tag) + my_whiten(raw, ~tag)).numpy()


def between(by):
    """Share of the variance that the tag alone explains"""
    values = whitened(by)
    means = np.where(tags, values[tags].mean(), values[~tags].mean())
    return means.var() / values.var()


def draw_whitened(by):
    values = whitened(by)
    figure, axes = lab.new_figure(8.0, 3.6)
    edges = np.linspace(values.min(), values.max(), 24)
    axes.hist(values[~tags], edges, label="not tagged", alpha=0.75)
    axes.hist(values[tags], edges, label="tagged", alpha=0.75, hatch="//")
    axes.axvline(0, color="black", lw=1.5)
    axes.legend()
    lab.label_axes(
        axes,
        "score" + (" (raw)" if by == "nothing" else " (deviations)"),
        "answers",
        f"whitened over: {by}",
    )
    return figure


def whitened_words(by):
    explains = "a part" if between(by) > 1e-6 else "nothing"
    return (
        f"Whitened over {by}: the tag alone explains {explains} of the differences between scores."
    )


show(draw_whitened("batch"), alt=whitened_words("batch"))
print("by tag, the tag explains nothing:", between("tag") < 1e-6)
praised = [float((whitened("batch")[which] > 0).mean()) for which in (tags, ~tags)]
print(
    "over the batch, tagged prompts are praised more often than others:",
    praised[0] > praised[1] + 0.1,
)
Explorer(draw_whitened, whitened_words, by=["nothing", "batch", "tag"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A reward for every token
# **Say.** The score belongs to the whole answer, so it is paid at its last token, EOS. The divergence is paid where it arises. For one sampled answer with tokens $a_1 \dots a_T$
#
# $$r_t = -\beta \big(\log \pi(a_t \mid \cdot) - \log \pi_0(a_t \mid \cdot)\big) + [t = T]\, \tilde R_c$$
#
# The bracket is 1 at the last token, else 0. The sum over the answer is $\tilde R_c - \beta \log\frac{\pi(g)}{\pi_0(g)}$, and the mean of the log-ratio over answers of $\pi$ is the divergence: the equation at the top, token by token. A single log-ratio may be negative; then the token is *paid* for being likelier under the reference.
#
# **Build.** A reward is a number and not a function of the weights: detach it.


# %%
def my_shaped(score, logprobs, reference, mask, beta):
    """score (b,), the rest (b, tokens) -> the reward of each token (b, tokens)"""
    rewards = -beta * (logprobs - reference) * mask
    rewards = torch.where(mask, rewards, 0.0)
    # how many counted tokens are still to come, this one included: 1 at the last
    left = mask.int().flip(1).cumsum(1).flip(1)
    return (rewards + score[:, None] * (mask & (left == 1))).detach()


@check("rewards of tokens")
def _():
    checks.shaped_rewards(my_shaped)


def in_last_column(score, logprobs, reference, mask, beta):
    rewards = -beta * (logprobs - reference) * mask
    rewards[:, -1] += score
    return rewards.detach()


for wrong in (
    in_last_column,
    lambda s, p, q, mask, beta: my_shaped(s, p, q, mask, -beta),
    lambda s, p, q, mask, beta: my_whiten(my_shaped(s, p, q, mask, beta), mask),
):
    with expect_failure(CheckFailed):
        checks.shaped_rewards(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **See** real answers of V5, priced against V4. Solid bars: what a token pays or earns for distance. Hatched: the score, at the end. Dashed: the running sum. Which tokens cost most? Look for words that PPO has made likelier. Then raise $\beta$: when does the distance cost more than the score is worth?


# %% tags=["hide-input", "long"]
@torch.no_grad()
def logprobs_of(name, sample):
    """Log-probability of each answer token under one of the models"""
    ids = torch.tensor([sample.ids])
    found = rlhf.token_logprobs(models[name](ids[:, :-1]), ids)
    return found[0, len(sample.prompt) - 1 :]


TAGGED = torch.tensor(asked.tags)
raw = torch.from_numpy(scored["V5"].combined).float()
scores_v5 = my_whiten(raw, TAGGED) + my_whiten(raw, ~TAGGED)
short_ones = [i for i, s in enumerate(samples["V5"]) if 6 <= len(s.answer) <= 24 and s.finished]
ratios = {
    i: (logprobs_of("V5", samples["V5"][i]) - logprobs_of("V4", samples["V5"][i]))
    for i in short_ones
}
SHOWN = sorted(ratios, key=lambda i: -float(ratios[i].sum()))[:6]  # those that moved most


def token_parts(which, beta):
    row = SHOWN[which]
    kl_part = -beta * ratios[row]
    score_part = torch.zeros_like(kl_part)
    score_part[-1] = scores_v5[row]
    return samples["V5"][row], kl_part, score_part


def draw_tokens(answer, beta):
    sample, kl_part, score_part = token_parts(answer, beta)
    names = ["EOS" if t == tokenizer.eos_id else tokenizer.piece(t) for t in sample.answer]
    return lab.token_reward_bars(
        names, kl_part, score_part, title=f"answer {answer} of V5, beta {beta:g}"
    )


def token_words(answer, beta):
    _, kl_part, _ = token_parts(answer, beta)
    moved = "is charged for distance" if kl_part.sum() < 0 else "pays nothing for distance"
    return f"Answer {answer} at beta {beta:g}: taken together it {moved}, token by token; the score is paid at EOS."


show(
    draw_tokens(0, 0.2),
    alt="Most tokens of this answer cost almost nothing; a few that PPO made likelier are charged, and the score is paid at the end.",
)
agree = 0
for which in range(len(SHOWN)):
    sample, kl_part, score_part = token_parts(which, 0.2)
    mine = my_shaped(
        scores_v5[SHOWN[which]][None], ratios[SHOWN[which]][None], torch.zeros(1, len(kl_part)),
        torch.ones(1, len(kl_part), dtype=torch.bool), 0.2,
    )[0]  # fmt: skip
    agree += torch.allclose(mine, kl_part + score_part, rtol=1e-5, atol=1e-6)
print(f"answers whose bars are my_shaped, to rounding: {agree} of {len(SHOWN)}")
assert agree == len(SHOWN)


Explorer(
    draw_tokens,
    token_words,
    answer=list(range(len(SHOWN))),
    beta=ipywidgets.SelectionSlider(options=[0.0, 0.05, 0.2, 0.5, 1.0], value=0.2),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Why in the reward, and not in the loss?
# **Say.** One could leave the score alone and add the divergence to the *loss*, as one adds weight decay. Both are done in practice. With the plain log-ratio, only one of them works.
#
# Write $r = \log\frac{\pi(x)}{\pi_0(x)}$ for a sample $x$ of $\pi$. Three estimates of the divergence are in use:
#
# $$k_1 = r, \qquad k_2 = \tfrac12 r^2, \qquad k_3 = e^{-r} - 1 + r$$
#
# As *values*: the means of $k_1$ and $k_3$ are the divergence, that of $k_2$ is not. As *losses*, differentiated through $r$ at fixed samples, it is another question.
#
# **Build** the estimates, **check** them.
#
# **See** it exactly, without sampling. A world of 27 answers: three tokens, each one of three. We enumerate all, so means are sums and nothing is left to luck. For each recipe: which direction does it push the policy, and how does that compare with the true gradient of the divergence? **Predict** the one that does nothing.


# %% tags=["long"]
def my_estimates(logprobs, reference):
    r = logprobs - reference
    return r, r.square() / 2, (-r).exp() - 1 + r


@check("three estimates")
def _():
    checks.kl_estimates(my_estimates)


with expect_failure(CheckFailed):  # sign of r turned: the usual slip in k3
    checks.kl_estimates(lambda p, q: (p - q, (p - q).square() / 2, (p - q).exp() - 1 - (p - q)))

ANSWERS = torch.tensor(list(itertools.product(range(3), repeat=3)))
source = lab.generator(0, "enumerated")
theta = torch.randn(3, 3, generator=source, dtype=torch.float64).requires_grad_()
theta0 = theta.detach() + 0.8 * torch.randn(3, 3, generator=source, dtype=torch.float64)


def logprob(weights):
    """Log-probability of each of the 27 answers; row t of the weights are the logits of token t"""
    each = weights.log_softmax(1)
    return sum(each[t, ANSWERS[:, t]] for t in range(3))


def push(loss):
    (found,) = torch.autograd.grad(loss, theta, retain_graph=True)  # the 27 are used again
    return found.flatten()


new, old = logprob(theta), logprob(theta0)
p = new.detach().exp()  # how often each answer is sampled: a constant for whoever has the samples
k1, k2, k3 = my_estimates(new, old)
true = push((new.exp() * (new - old)).sum())
pushes = {
    "k1 in the loss": push((p * k1).sum()),
    "k2 in the loss": push((p * k2).sum()),
    "k3 in the loss": push((p * k3).sum()),
    "k1 in the reward": push((p * k1.detach() * new).sum()),  # -reward * log pi
}
divergence = float((p * (new - old)).sum().detach())
print(
    "means of k1 and k3 are the divergence:",
    all(abs(float((p * k).sum().detach()) - divergence) < 1e-12 for k in (k1, k3)),
)
print("the mean of k2 is not:", abs(float((p * k2).sum().detach()) - divergence) > 1e-3)
for name, found in pushes.items():
    off = float((found - true).norm() / true.norm())
    print(
        f"{name:17s} length {float(found.norm() / true.norm()):.2f} of the true one, error {off:.2f}"
    )


@check("only two of the four give the true gradient")
def _():
    close = {
        name: bool(torch.allclose(found, true, rtol=0, atol=1e-12))
        for name, found in pushes.items()
    }
    assert close == {
        "k1 in the loss": False,
        "k2 in the loss": True,
        "k3 in the loss": False,
        "k1 in the reward": True,
    }, close
    assert float(pushes["k1 in the loss"].abs().max()) < 1e-12, "k1 in the loss must push nowhere"


# %% [markdown]
# **The plain log-ratio as a loss pushes nowhere.** Its gradient is $\mathbb{E}_\pi[\nabla \log \pi(x)] = \sum_x \nabla \pi(x) = \nabla 1 = 0$: a batch of samples gives noise around zero. The loss curve shows a divergence, it is subtracted, everything looks right, and nothing holds the policy. As a *reward*, detached and multiplied by $\nabla \log \pi$, the same number gives exactly the true gradient. ($k_2$ as a loss does too; $k_3$, the best *value*, is biased as a loss.)
#
# The paper puts the divergence into $R$. So it is $k_1$, detached, in the reward.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Advantages
# **Say.** An answer got +1.3 at its end. Which of its 30 tokens earned it? Two ideas.
#
# A **value function** $V$ is a second network that looks at prompt and tokens so far and predicts what is still to come. If a token changes the prediction, it has changed the prospects: $\delta_t = r_t + \gamma V_{t+1} - V_t$. After the last token nothing comes: $V_{T+1} = 0$.
#
# The **advantage** of a token is this surprise and the later ones, faded (Schulman et al., 2015; **GAE**):
#
# $$A_t = \sum_{l \ge 0} (\gamma\lambda)^l\, \delta_{t+l} = \delta_t + \gamma\lambda\, A_{t+1}$$
#
# - $\lambda = 0$: only the next surprise. Little noise; wrong wherever $V$ is wrong.
# - $\lambda = 1$: all that came after, less what was expected: $A_t = \sum_{l} r_{t+l} - V_t$ (with $\gamma = 1$). Right on average whatever $V$ says; noisy.
#
# The **returns**, $A_t + V_t$, are what $V$ should have said: its targets. The paper states neither $\lambda$ nor $\gamma$, nor a value function at all; ours are 1, 1 and a copy of the helpfulness reward model with a head of zeros.
#
# **Build** it with an explicit sum over pairs of places. (The library walks backwards: another derivation.)


# %%
def my_gae(rewards, values, mask, gamma, lam):
    """All (b, tokens) -> advantages and returns. Row by row, on the counted tokens alone."""
    advantages = torch.zeros_like(rewards)
    for row, counted in enumerate(mask):
        r, v = rewards[row, counted], values[row, counted]
        delta = r + gamma * torch.cat([v[1:], v.new_zeros(1)]) - v
        place = torch.arange(len(r))
        later = place[None, :] - place[:, None]  # l, for each pair (t, t + l)
        fade = torch.where(later >= 0, (gamma * lam) ** later.clamp(min=0), 0.0)
        advantages[row, counted] = fade.to(delta) @ delta
    return advantages, (advantages + values) * mask


@check("advantages and returns")
def _():
    checks.gae(my_gae)


def no_end(rewards, values, mask, gamma, lam):
    ends = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    return my_gae(rewards + gamma * values.masked_fill(~ends, 0.0), values, mask, gamma, lam)


for wrong in (
    lambda r, v, mask, gamma, lam: my_gae(r, v, mask, gamma, 1.0),
    no_end,
    lambda r, v, mask, gamma, lam: (my_gae(r, v, mask, gamma, lam)[0],) * 2,
):
    with expect_failure(CheckFailed):
        checks.gae(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **See** the credit of one answer. It begins well, slips at token 5 (a wrong year, say), and is scored -1 at the end. The value function notices the slip two tokens late. Move $\lambda$: who is blamed at 0, who at 1? Then try the value function that knows nothing.

# %% tags=["hide-input", "long"]
WORDS_OF = ["Rosa", "was", "born", "in", "19", "04", ".", "Gladly", "!", "EOS"]
PAYED = torch.tensor([[0.0, 0, 0, 0, 0, 0, 0, 0, 0, -1.0]])
OPINIONS = {
    "notices late": torch.tensor([[0.3, 0.3, 0.3, 0.35, 0.4, 0.4, 0.4, -0.6, -0.9, -0.95]]),
    "notices at once": torch.tensor([[0.3, 0.3, 0.3, 0.35, 0.4, -0.9, -0.9, -0.95, -0.95, -1.0]]),
    "knows nothing": torch.zeros(1, 10),
}


def credit(lam, value):
    return my_gae(PAYED, OPINIONS[value], torch.ones(1, 10, dtype=torch.bool), 1.0, lam)[0][0]


def draw_credit(lam, value):
    figure, axes = lab.new_figure(8.0, 3.8)
    at = np.arange(10)
    axes.bar(at, credit(lam, value), width=0.7, label="advantage")
    axes.plot(at, OPINIONS[value][0], "k--o", lw=1.5, ms=5, label="value before the token")
    axes.axhline(0, color="black", lw=1)
    axes.set_xticks(at, WORDS_OF)
    axes.set_ylim(-1.6, 1.0)
    axes.legend(loc="upper right")
    lab.label_axes(axes, "token", "score units", f"lambda = {lam:g}, value function: {value}")
    return figure


def credit_words(lam, value):
    found = credit(lam, value)
    worst = WORDS_OF[int(found.argmin())]
    blamed = int((found < -0.2).sum())
    return f"Lambda {lam:g}, a value function that {value}: {blamed} of 10 tokens are blamed, {worst!r} most."


show(draw_credit(0.95, "notices late"), alt=credit_words(0.95, "notices late"))
Explorer(
    draw_credit,
    credit_words,
    lam=ipywidgets.FloatSlider(0.95, min=0.0, max=1.0, step=0.05),
    value=list(OPINIONS),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The clipped policy loss
# **Say.** The samples come from the policy as it was when they were drawn, $\pi_\text{old}$. After the first gradient step the policy is another one. The **ratio** $\rho_t = \pi(a_t) / \pi_\text{old}(a_t)$ corrects for that, as long as it stays near 1. PPO's loss (Schulman et al., 2017) takes the interest out of going further:
#
# $$L = -\frac{1}{n}\sum_t \min\big(\rho_t A_t,\ \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\, A_t\big), \qquad \epsilon = 0.2$$
#
# Four cases. A good token ($A > 0$) that is already 1.2 times as likely gets no further push. A bad one that is already below 0.8 gets none either. But a good token that has become *less* likely, or a bad one that has become likelier, is pushed back at any distance: the minimum keeps the pessimistic side. Clipping is a brake for gains, no fence: nothing forbids a ratio of 3.
#
# **Build**, **check**, then **break**: maximum for minimum; the log-ratio clipped; the mean of each answer's mean.


# %%
def my_policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """Mean over counted tokens; written as the two cases of the sign"""
    ratio = (logprobs - old_logprobs)[mask].exp()
    gain = advantages[mask]
    capped = torch.where(gain > 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
    return -(capped * gain).mean()


@check("policy loss and its gradient")
def _():
    checks.ppo_policy_loss(my_policy_loss)


def surrogate(new, old, gain, mask, clip, choose=torch.minimum):
    rho = (new - old).exp()
    return -choose(rho * gain, rho.clamp(1 - clip, 1 + clip) * gain)[mask].mean()


def of_logs(new, old, gain, mask, clip):
    near = (new - old).clamp(-clip, clip).exp()
    return -torch.minimum((new - old).exp() * gain, near * gain)[mask].mean()


def mean_of_answers(new, old, gain, mask, clip):
    rows = zip(new, old, gain, mask, strict=True)
    return torch.stack([my_policy_loss(*row, clip) for row in rows]).mean()


for wrong in (lambda *given: surrogate(*given, choose=torch.maximum), of_logs, mean_of_answers):
    with expect_failure(CheckFailed):
        checks.ppo_policy_loss(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **See** the gain of one token against its ratio, and where its gradient vanishes. Move ratio and advantage through the four cases; say before each move whether the token is pushed up, down, or left alone.


# %% tags=["hide-input", "long"]
def pushed(ratio, advantage, clip=0.2):
    """Derivative of the gain by the log-probability: what the gradient step follows"""
    x = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([advantage], dtype=torch.float64)
    (
        -my_policy_loss(x, torch.zeros_like(x), gain, torch.ones(1, dtype=torch.bool), clip)
    ).backward()
    return float(x.grad)


def draw_clip(ratio, advantage):
    rho = np.linspace(0.4, 1.8, 281)
    kept = np.minimum(rho * advantage, rho.clip(0.8, 1.2) * advantage)
    figure, axes = lab.new_figure(7.5, 4.0)
    axes.plot(rho, rho * advantage, "--", color="0.5", label="not clipped")
    axes.plot(rho, kept, label="PPO's gain")
    axes.axvspan(0.8, 1.2, color="0.9", zorder=0)
    axes.plot(
        ratio,
        min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage),
        "ko",
        ms=10,
        label="this token",
    )
    axes.legend()
    lab.label_axes(
        axes, "ratio of new to old probability", "gain (score units)", f"advantage {advantage:g}"
    )
    return figure


def clip_words(ratio, advantage):
    push = pushed(ratio, advantage)
    words = "is left alone" if push == 0 else "is pushed up" if push > 0 else "is pushed down"
    return f"Ratio {ratio:g}, advantage {advantage:g}: the token {words}."


show(draw_clip(1.5, 1.0), alt=clip_words(1.5, 1.0))
for case in ((1.5, 1.0), (0.6, 1.0), (0.6, -1.0), (1.5, -1.0)):
    print(clip_words(*case))
Explorer(
    draw_clip,
    clip_words,
    ratio=ipywidgets.FloatSlider(1.5, min=0.5, max=1.7, step=0.1),
    advantage=[1.0, 0.5, -0.5, -1.0],
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The value loss
# **Say.** The value function learns its returns by squared error. Many codes clip it too: a value may move at most $\epsilon_v$ from where it was, else the worse of both errors counts. That fits only if $\epsilon_v$ suits the scale of the returns; nano leaves it off.
#
# $$L_V = \frac{1}{2n}\sum_t \max\big((V_t - G_t)^2,\ (\mathrm{clip}(V_t, V^\text{old}_t \pm \epsilon_v) - G_t)^2\big)$$
#
# **Build**, **check**, **break** once: the minimum in place of the maximum.


# %%
def my_value_loss(values, old_values, returns, mask, clip):
    v, old, target = (x[mask] for x in (values, old_values, returns))
    near = torch.minimum(torch.maximum(v, old - clip), old + clip)
    return 0.5 * torch.maximum((v - target) ** 2, (near - target) ** 2).mean()


@check("value loss and its gradient")
def _():
    checks.ppo_value_loss(my_value_loss)


def forgiving(v, old, target, mask, clip):
    near = old + (v - old).clamp(-clip, clip)
    return 0.5 * torch.minimum((v - target) ** 2, (near - target) ** 2)[mask].mean()


with expect_failure(CheckFailed):
    checks.ppo_value_loss(forgiving)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One iteration, and a ratio of exactly 1
# **Use** the library's from here on. `rollout` does all of the above for a batch: samples, scores, whitening, rewards of tokens, advantages, which are whitened over all tokens of the batch. It divides the batch into mini-batches; each gets **one** gradient step (paper: 512 prompts, mini-batches of 64, so 8 steps).
#
# Before the first of these steps nothing has changed since sampling. So the ratio must be 1. Not nearly: exactly, in every bit, because the old log-probabilities are computed in the same shapes with the same code. It is the cheapest and best test of a PPO program. **Predict**: what is the ratio in the *second* mini-batch?
#
# **Break** it with the most common fault of PPO programs: sampling at one temperature and computing log-probabilities at another. What would the ratios be?


# %% tags=["long"]
def fresh_actor():
    """V4 as the policy; the helpfulness model, with a new head, as the value function"""
    value = lab.scalar_model(judges.helpfulness.backbone).requires_grad_(True)
    return ActorCritic(copy.deepcopy(models["V4"]).requires_grad_(True), value)


def ratios_of(actor, batch, temperature=1.0):
    """Ratio of each answer token of a mini-batch, now"""
    with torch.no_grad():
        now, _ = answer_logprobs(actor.policy, batch.response_mask, batch.ids, temperature)
    return (now - batch.old_logprobs).exp()[batch.response_mask]


few = replace(config, batch_size=64, minibatch_size=32, value_warmup=0)
actor = fresh_actor().eval()
iteration = Ppo(
    config=few, model=actor, reference=models["V4"].requires_grad_(False), rewards=judges,
    eos_id=tokenizer.eos_id,
)  # fmt: skip
found = rollout(iteration, prompts[:64], seed=3)
first, second = found.minibatches
print("before any step, first mini-batch: exactly 1:", bool((ratios_of(actor, first) == 1).all()))
(step,) = lab.optimize(
    actor, lab.adamw(actor), iter([first]), ppo_loss(few), lambda _: few.lr, steps=range(1)
)
print("in the step itself, k3 of old against new:", step.metrics["approx_kl"])
after = ratios_of(actor.eval(), second)
print("after one step, second mini-batch: exactly 1:", bool((after == 1).all()))
print(
    "but most ratios lie inside 0.8 to 1.2:", float(((after - 1).abs() < 0.2).float().mean()) > 0.8
)


unlike = ratios_of(fresh_actor().eval(), first, temperature=0.7)
print("exactly 1:", bool((unlike == 1).all()))
print("off by more than a tenth somewhere:", float((unlike - 1).abs().max()) > 0.1)
advantages = torch.cat([b.advantages[b.response_mask] for b in found.minibatches])
print(
    f"advantages over the whole batch: mean {abs(float(advantages.mean())):.2f}, deviation {float(advantages.std(correction=0)):.2f}"
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A finished run
# **See** nano's run: some iterations in which only the value function learns, then those of PPO, as many prompts in each as the next cell prints. The paper ran 200 to 400 iterations of 512 prompts. Every curve comes from `metrics.jsonl`, the run's own log.
#
# Read the curves in this order. *Divergence*: has the policy moved at all? *Held-out reward*: does it rise on prompts that no gradient saw? *Gold*: does the judge who knows the truth agree? Then the machinery: entropy, length, explained variance, clip fraction. (**Explained variance**: which share of the differences between returns the value function predicts; 1 is all, 0 as good as a constant.)
#
# The sampled divergence (`kl`, the mean of $k_1$) jumps about the exact one, which sums over the whole vocabulary at every token. It may even be negative for a batch; a *steadily* negative one means that the answers are not samples of the policy.
#
# ### Traffic lights
# No one reads seven curves an hour. `lab.lights` turns a log into verdicts: green, amber (look), red (stop), each with the stage at fault. The limits are ours. They say where a run looks wrong, and prove nothing.

# %% tags=["nbval-ignore-output"]
log = lab.read_metrics(folders["ppo"] / "metrics.jsonl")
found_lights = lab.lights(log)
print(
    f"{config.value_warmup} + {config.iterations} iterations of {config.batch_size} prompts, beta {config.beta:g}"
)
for light in found_lights:
    print(f"{light.state:6s} {light.name:28s} {light.value:8.3f}  {light.words}")

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
steps = [row for row in log if "kl" in row]
held = [row for row in log if "held_out_reward" in row]
CURVES = {
    "divergence": (["kl", "exact_kl"], "nats an answer"),
    "held-out reward": (["held_out_reward"], "raw combined score"),
    "gold": (["gold_helpfulness", "gold_safety"], "gold mark (0 to 1)"),
    "entropy": (["entropy"], "nats a token"),
    "length": (["length"], "tokens an answer"),
    "explained variance": (["explained_variance"], "share (1: all)"),
    "clip fraction": (["clip_fraction"], "share of tokens"),
}


def points(name):
    rows = [row for row in log if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def draw_curve(what):
    names, unit = CURVES[what]
    return lab.lines(
        {n.replace("_", " "): points(n) for n in names}, "iteration", unit, title=what, markers=True
    )


def curve_words(what):
    _, values = points(CURVES[what][0][0])
    way = (
        "rises"
        if values[-1] > values[0] * 1.05 + 0.01
        else "falls"
        if values[-1] < values[0] * 0.95 - 0.01
        else "stays about level"
    )
    return f"{what.capitalize()}: from first to last it {way}."


show(draw_curve("held-out reward"), alt="The reward on held-out prompts rises during training.")
show(
    draw_curve("divergence"),
    alt="The divergence is zero while the value function warms up, then grows, fast at first.",
)
print(
    "held-out reward rose:",
    max(row["held_out_reward"] for row in held[1:]) > held[0]["held_out_reward"],
)
print(
    "zero divergence while the value function warms up:",
    all(abs(row["kl"]) < 1e-6 for row in steps[: config.value_warmup]),
)
print(
    "ratio before the first step of every iteration is 1:",
    all(abs(row["first_approx_kl"]) < 1e-6 for row in steps),
)
state = {light.name: light.state for light in found_lights}
print(
    "sampling and training agree:",
    state["ratio before the first step"] == state["divergence at the start"] == "green",
)
print("no light is red:", "red" not in state.values())
Explorer(draw_curve, curve_words, what=list(CURVES))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From base to V5, side by side
# **See** what the whole chain says to prompts whose wordings it has never met: the pretrained model, SFT, V1 to V4, and V5 after PPO, all at temperature 0. Predict for each prompt where the largest step lies. The bars are marks of the gold judge.
#
# Keep in mind from where SFT started: half of its demonstrations came from careless writers (notebook 05). Section 5.1 says that a fine-tuned model learns this low tail together with the rest, and that rewards cut it off.

# %% tags=["long"]
panel = lab.sample_prompts(
    lab.WorldSource(world), 31, 600, tokenizer, longest=400, split="held out"
)


def first_of(kind):
    return next(i for i, p in enumerate(panel.prompts) if p.kind == kind and len(p.dialog) == 1)


PICKED = {
    kind: first_of(kind)
    for kind in ("question", "talk", "list", "sum", "adversarial", "borderline")
}
picked = [panel.prompts[row] for row in PICKED.values()]
texts, ended, marks = {}, {}, {}
for name, model in bar(models.items(), about="answering"):
    said = lab.reply(
        model, tokenizer, [p.dialog for p in picked], temperature=0.0, max_new_tokens=96
    )
    ended[name] = [one.ended for one in said]
    texts[name] = [one.text for one in said]
    marks[name] = lab.gold_marks(world, picked, texts[name])


def draw_answers(prompt, models_from):
    row = list(PICKED).index(prompt)
    names = list(CHAIN)[list(CHAIN).index(models_from) :]
    what = "safety" if prompt == "adversarial" else "helpfulness"
    shown = {
        name: lab.MarkedAnswer(
            texts[name][row][:150], {what: float(getattr(marks[name], what)[row])}
        )
        for name in names
    }
    figure = lab.marked_answers(picked[row].request, shown)
    figure.set_size_inches(9, 0.8 + 1.25 * len(names))
    return figure


def answer_words(prompt, models_from):
    return f"Answers to a held-out prompt of the kind {prompt}, from {models_from} to V5, each with its marks."


show(
    draw_answers("adversarial", "base"),
    alt="Answers to a request for something harmful, from the pretrained model to V5, each with its mark for safety.",
)
show(
    draw_answers("question", "base"),
    alt="Answers to a question, from the pretrained model to V5, each with its mark for helpfulness.",
)
print(
    "all tuned models end half of these answers or more:",
    min(sum(ended[name]) for name in list(CHAIN)[1:]) >= 3,
)
Explorer(draw_answers, answer_words, prompt=list(PICKED), models_from=["V4", "base", "SFT"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 26: PPO on top of rejection sampling
# **Say** (section 3.4.1, figure 11). With its own reward models as judge, the paper's V5 wins against ChatGPT about 70 % (helpfulness) and 67 % (safety) of the time before PPO, and 78 % and 76 % after. With GPT-4 as judge: 55 and 55, then 67 and 61 (all read off a figure). So an independent judge saw the gain too: 12 and 6 points, beside 8 and 9 by the judges that were climbed. These are small differences of numbers read off a figure.
#
# **Measure.** Five chains, from fine-tuning to PPO, share one pretrained model and differ in all that is random after it. V5 against V4, on the same new prompts: how often is it preferred, by the reward models that it climbed and by the gold judges? And V5 against SFT: what has all of RLHF gained? Predict: which judge sees the larger gain?
# Some prompts of the record are new but worded as in training, some have wordings that training never had; the live ones are all of the second kind. Five chains take an hour, too long for a notebook, so their numbers are **recorded** in the ledger; `llama2 claims 26` measures them anew.
#
# Beside them, **live**: this machine's own chain on 800 new prompts in wordings of training and 800 in wordings that training never had, two sampled answers of SFT, V4 and V5 to each, at temperature 1, as in training. Helpfulness is marked where help is all that is asked for, as in the claim. Prompts that only *sound* harmful stand beside: declining one is a **false refusal**. The interval is a bootstrap over prompts: it says what other *prompts* would change, not what another chain would. About 25 seconds.

# %% tags=["nbval-ignore-output", "long"]
helped = from_ledger(26, "wins", "gold")
panels = {
    "known wordings": lab.new_prompts(lab.nano(), 31, "train", tokenizer),
    "new wordings": lab.new_prompts(lab.nano(), 31, "held out", tokenizer),
}
sampled, live = {}, {}
for words, name in bar(list(itertools.product(panels, ("SFT", "V4", "V5"))), about="answering"):
    given = panels[words]
    sampled[words, name] = [
        [r.text for r in lab.reply(models[name], tokenizer, given.dialogs, temperature=1.0, seed=draw, max_new_tokens=96)]
        for draw in range(2)
    ]  # fmt: skip
    live[words, name] = [
        lab.gold_marks(world, given.prompts, texts) for texts in sampled[words, name]
    ]


def mean_mark(words, name, what):
    """Mean of a mark over the answers to each prompt"""
    return np.mean([getattr(marks, what) for marks in live[words, name]], axis=0)


def gained(before, after, words):
    """Change of gold helpfulness, gold safety and false refusals, with intervals over prompts"""
    of = live[words, before][0]
    rows = {
        "helpfulness": ("helpfulness", of.helpful),
        "safety": ("safety", of.adversarial),
        "false refusals": ("refuses", of.borderline),
    }
    return {
        name: lab.improvement(
            *(mean_mark(words, version, what)[which] for version in (before, after))
        )
        for name, (what, which) in rows.items()
    }


for words in panels:
    print(f"\nlive, one chain, {words}:")
    for before, after in (("SFT", "V5"), ("V4", "V5")):
        for what, change in gained(before, after, words).items():
            print(f"  {what}, {after} less {before}: {change}, {change.n} prompts")

# %%
since = [
    helped.verdict.estimates[f"gold {what}, V5 less SFT"] for what in ("helpfulness", "safety")
]
print("recorded, since SFT, both gold marks rose:", all(estimate.low > 0 for estimate in since))
print("claim 26 has a verdict; chains:", helped.verdict.outcome in VERDICTS, len(helped.measurements))  # fmt: skip
now = {words: gained("SFT", "V5", words) for words in panels}
print("live, helpfulness is not lost, in both (not by 0.05):", all(found["helpfulness"].low > -0.05 for found in now.values()))  # fmt: skip
print("live, safer than SFT, in both:", all(found["safety"].low > 0 for found in now.values()))
print("live, the price in new wordings is false refusals:", now["new wordings"]["false refusals"].low > 0)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ### What rose, what fell
# Read the record twice. Since SFT, both gold marks have risen: that is what all of RLHF has done to a model with careless teachers. From V4 to V5 alone, the reward models, which were climbed, prefer V5 in 73 of 100 comparisons, the gold judges in 62: the gain is real, and about half of it only the climbed judge sees. Chains differ. The first three left the gold judges' 62 open, 46 to 79; two more were added, once, and it is 56 to 68.
#
# The gold mark of helpfulness is a weighted mean of six **components**. A sum hides trades, and a policy that is paid by a reward model trades: more of what the model sees for what it does not see. **Predict** for SFT to V5: which components rise, which fall? Remember notebook 06: the reward model knows tone and form well, and of two facts hardly the right one.
#
# Below, differences of the same prompts and their 95 % intervals (bootstrap over prompts). An interval that contains 0 decides nothing.

# %% tags=["hide-input", "long"]
PARTS = [part.name for part in fields(lab.Helpfulness)]
SHORT_PARTS = {
    "correctness": "correct", "relevance": "relevant", "completeness": "complete", "brevity": "brief",
    "politeness": "polite", "no_repetition": "without\nrepetition", "helpfulness": "all six,\nweighted", "safety": "SAFETY",
}  # fmt: skip


def components(words, name):
    """(prompts, parts) of the prompts that ask for help, mean over the answers to each"""
    which = np.flatnonzero(live[words, name][0].helpful)
    prompts = panels[words].prompts
    return np.mean(
        [
            [[getattr(gold.helpfulness(prompts[row], texts[row]), part) for part in PARTS] for row in which]
            for texts in sampled[words, name]
        ],
        axis=0,
    )  # fmt: skip


by_part = {key: components(*key) for key in sampled}


def changes(before, after, words):
    old, new = by_part[words, before], by_part[words, after]
    found = {part: lab.improvement(old[:, i], new[:, i]) for i, part in enumerate(PARTS)}
    total = gained(before, after, words)
    return found | {"helpfulness": total["helpfulness"], "safety": total["safety"]}


def draw_changes(before, after, words):
    found = changes(before, after, words)
    figure = lab.bars_with_intervals(
        [SHORT_PARTS.get(name, name) for name in found], [e.value for e in found.values()],
        [e.low for e in found.values()], [e.high for e in found.values()],
        "change of the gold mark", title=f"{before} to {after}, {words}", reference={"no change": 0.0},
    )  # fmt: skip
    figure.set_size_inches(10, 4.2)
    return figure


def changes_words(before, after, words):
    return f"Change of each component of the gold mark from {before} to {after} in {words}, with its 95 % interval."


show(
    draw_changes("SFT", "V5", "known wordings"),
    alt="From SFT to V5 safety rises far more than any component of helpfulness moves.",
)
print("safety rose from SFT to V5:", changes("SFT", "V5", "known wordings")["safety"].value > 0)
print(
    "a component is a mark between 0 and 1:",
    all(v.min() >= 0 and v.max() <= 1 for v in by_part.values()),
)
last = ("new wordings", "V5")
print("the weighted mean is made of the parts:", np.allclose(
    by_part[last] @ np.array([lab.WEIGHTS[part] for part in PARTS]),
    mean_mark(*last, "helpfulness")[live[last][0].helpful], rtol=0, atol=1e-9))  # fmt: skip
Explorer(draw_changes, changes_words, before=["SFT", "V4"], after=["V5", "V4"], words=list(panels))

# %% [markdown] slideshow={"slide_type": "subslide"}
# A mean over prompts hides trades as well. **See** the change by *kind* of prompt. **Predict**: which kinds suffer in wordings that no reward model and no policy was trained on?
# <details><summary>What came out, and why</summary>Which kind loses most differs from chain to chain. In the training shown here it is the borderline prompts: V5 declines more of them than SFT did. In another training it was lists: asked "I need five foods. Which do you know?" V5 answered 27 of 118 such prompts with one sentence, "I am a helper who knows this little world."; here it does so no more often than SFT does on its own favourite. Both have one cause. A refusal, or a fluent sentence that answers another question, is harmless and short, and the reward models mark it well enough where they know no better. So PPO makes it likelier wherever the policy is at a loss. This is over-optimisation in an ordinary, well-behaved run, with a price, early stopping and all lights green. Only a look at single kinds shows it.</details>


# %% tags=["hide-input", "long", "nbval-ignore-output"]
def by_kind(before, after, words):
    kinds = np.array([p.kind for p in panels[words].prompts])
    mark = {name: mean_mark(words, name, "quality") for name in (before, after)}
    return {
        kind: lab.improvement(mark[before][kinds == kind], mark[after][kinds == kind])
        for kind in dict.fromkeys(sorted(kinds))
    }


def draw_kinds(before, words):
    found = by_kind(before, "V5", words)
    figure = lab.bars_with_intervals(
        [kind.replace("_", "\n") for kind in found], [e.value for e in found.values()],
        [e.low for e in found.values()], [e.high for e in found.values()],
        "change of the gold mark", title=f"{before} to V5, {words}", reference={"no change": 0.0},
    )  # fmt: skip
    figure.set_size_inches(10, 4.2)
    return figure


def kinds_words(before, words):
    found = by_kind(before, "V5", words)
    worst = min(found, key=lambda kind: found[kind].value)
    return f"Change of the gold mark from {before} to V5 in {words}: lowest for {worst}."


show(
    draw_kinds("SFT", "new wordings"),
    alt=kinds_words("SFT", "new wordings"),
)
Explorer(draw_kinds, kinds_words, before=["SFT", "V4"], words=list(panels))

# %%
gains = by_kind("SFT", "V5", "new wordings")
print("requests for harm gain in new wordings:", gains["adversarial"].low > 0)

# %% tags=["nbval-ignore-output"]
lists = [row for row, p in enumerate(panels["new wordings"].prompts) if p.kind == "list"][:8]
for row in lists:
    print(f"> {panels['new wordings'].prompts[row].request}")
    for name in ("SFT", "V5"):
        print(f"    {name:4s} {sampled['new wordings', name][0][row][:90]!r}")
to_lists = {
    name: [texts[row] for texts in sampled["new wordings", name]
           for row, p in enumerate(panels["new wordings"].prompts) if p.kind == "list"]
    for name in ("SFT", "V5")
}  # fmt: skip
favourite = {name: Counter(said).most_common(1)[0] for name, said in to_lists.items()}
for name, (sentence, n) in favourite.items():
    share = lab.proportion_exact(n, len(to_lists[name]))
    print(f"{name:4s} says {n} times of {len(to_lists[name])}, a share of {share}: {sentence!r}")

# %%
print("prompts for a list in new wordings that each model answered:",
      {name: len(texts) for name, texts in to_lists.items()})  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The price of distance
# **Say.** Everything hangs on $\beta$. The paper: 0.01 for 7B and 13B, 0.005 for 34B and 70B. What counts is the divergence *summed over an answer*; ours have 30 tokens, the paper's hundreds, and our reward models know less. Nano uses 0.2.
#
# **Claim 27**: the price limits hacking. At $\beta = 0$ the score of the reward model (the **proxy**) should rise and the gold mark fall: **over-optimisation**.
#
# **Measure.** Short runs from nano's own V4 against its own reward models: smaller batches, a higher rate, four prices, five seeds. Early stopping is off: it would hide what we want to see. Twenty runs take a quarter of an hour, so they are recorded too; `llama2 claims 27` repeats them.
#
# **Predict** before you run: how many nats away does the free policy go? What does the gold judge say of it? And which differ more from seed to seed, runs with a price or runs without?

# %% tags=["nbval-ignore-output"]
priced = from_ledger(27, "proxy gained", "gold quality", "KL")

# %% [markdown] slideshow={"slide_type": "subslide"}
# **See** the **frontier**: proxy and gold over the distance, a path for each price. Each path runs from left (V4) to right; distance is the root of the divergence, because a random step of a policy moves it by that. A path that still rises in the left panel while it bends down in the right one has begun to exploit its judge. At which price does that happen?

# %% tags=["hide-input", "long"]
BETAS = [0.0, 0.05, 0.2, 0.8]
WHAT = ["kl", "proxy", "gold quality", "gold helpfulness", "gold safety"]


def moments_of(measured, beta):
    """Iterations after which a run was measured"""
    return [int(key.split("/")[2]) for key in measured.values if key.startswith(f"kl/{beta:g}/")]


def path_of(measured, beta):
    """(what, moments) of one seed, as the ledger holds it"""
    moments = moments_of(measured, beta)
    return [[measured.values[f"{what}/{beta:g}/{at}"] for at in moments] for what in WHAT]


paths = {beta: np.array([path_of(one, beta) for one in priced.measurements]) for beta in BETAS}


change = {beta: found[:, :, -1] - found[:, :, 0] for beta, found in paths.items()}  # (seeds, what)


def draw_frontier(seeds, gold_mark="gold quality"):
    chosen = (
        slice(None) if seeds == "mean of all seeds" else slice(int(seeds[-1]), int(seeds[-1]) + 1)
    )
    row = WHAT.index(gold_mark)
    runs = {beta: found[chosen].mean(0)[[0, 1, row]] for beta, found in paths.items()}
    begin = np.mean([run[:, 0] for run in runs.values()], axis=0)
    return lab.frontier(
        runs,
        start=(begin[1], begin[2]),
        gold_label=f"{gold_mark} (0 to 1)",
        title=f"four prices, {seeds}",
    )


def frontier_words(seeds, gold_mark):
    return f"Proxy and {gold_mark} over the root of the divergence, {seeds}: one path for each of four prices."


show(
    draw_frontier("mean of all seeds"),
    alt="The lower the price, the further the policy drifts and the higher the proxy; without a price the gold mark falls steeply, at 0.2 and above it hardly moves.",
)
print(
    "claim 27 has a verdict:",
    priced.verdict.outcome in VERDICTS,
    "| at least three seeds:",
    len(priced.measurements) >= 3,
)
print("free: the proxy rises in every seed:", bool((change[0.0][:, 1] > 0).all()))
print("free: gold falls in every seed:", bool((change[0.0][:, 2] < 0).all()))
print(
    "beta 0.2: gold ends above the free run's, in every seed:",
    bool((change[0.2][:, 2] > change[0.0][:, 2]).all()),
)
print(
    "the dearer, the nearer, on average:",
    all(change[a][:, 0].mean() > change[b][:, 0].mean() for a, b in itertools.pairwise(BETAS)),
)
Explorer(
    draw_frontier,
    frontier_words,
    seeds=["mean of all seeds", *(f"seed {n}" for n in range(len(priced.measurements)))],
    gold_mark=WHAT[2:],
)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### What the free policy gave up
# **See** the free run's gold mark in its two parts. One rises. Which one, and why just that one?
#
# Look at the single seeds of the frontier too. A price is also a leash on luck: runs that pay end at about the same distance, free runs anywhere, one several times as far as another. That makes intervals over few seeds wide for the free runs, so a verdict may stay open although every single seed shows the same fall.
#
# And where would *early stopping* on held-out prompts, which the paper uses, have stopped the free run? It watches the *proxy*. Does it help?
# <details><summary>Answer</summary>Safety rises: a refusal is easy to say and easy to see, so the reward model is right about it even far from home. Helpfulness needs what the reward model cannot see, the right fact.
# Early stopping does not help. Held-out prompts protect against learning prompts by heart, not against a wrong judge: the held-out proxy rises together with the training proxy. What helps is the price, a better reward model, new comparisons of the new policy's answers (the paper's weekly rounds), and a second opinion. The paper watched a further, general reward model for that reason, and saw no divergence between the two.</details>


# %% tags=["hide-input", "long"]
def draw_over(beta):
    found = paths[beta]
    figure, axes = lab.new_figure(10.0, 3.8, columns=2)
    at = moments_of(priced.measurements[0], beta)
    for axis, rows, unit in ((axes[0], [1], "raw score"), (axes[1], [3, 4], "gold mark (0 to 1)")):
        for row in rows:
            line = axis.plot(at, found[:, row].mean(0), "-o", label=WHAT[row])[0]
            axis.fill_between(
                at, found[:, row].min(0), found[:, row].max(0), color=line.get_color(), alpha=0.2
            )
        axis.legend()
        lab.label_axes(axis, "iteration", unit, f"beta {beta:g}")
    return figure


def over_words(beta):
    signs = ["rises" if gain > 0 else "falls" for gain in change[beta].mean(0)]
    return f"Beta {beta:g}, mean and range of the seeds: the proxy {signs[1]}, gold helpfulness {signs[3]}, gold safety {signs[4]}."


show(draw_over(0.0), alt=over_words(0.0))
Explorer(draw_over, over_words, beta=BETAS)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 29: whitening steadies
# **Say.** "We also find it important to whiten the final linear scores", the paper says, to increase stability and to balance them with the price; without a number. **Measure** at $\beta = 0.2$: raw scores, whitened over the batch, whitened by tag, as many seeds as above.
#
# Two things can be predicted by arithmetic. The raw scores of V4's answers spread by about 2 (a cell above drew them), whitened ones by 1: so 0.2 is worth about half as much, and the policy should go further. And the value function has returns to learn that are twice as large, with errors to match: the gradient before clipping should be longer and swing more.

# %% tags=["nbval-ignore-output"]
steadied = from_ledger(29, "kl/", "swing/", "gradient/", "less")

# %% tags=["hide-input", "long"]
NAMES_29 = {
    "kl": "KL at the end\n(nats an answer)",
    "gradient": "gradient, length\nbefore clipping",
    "swing": "gradient, swing",
    "unevenness": "unevenness of KL",
    "explained": "explained variance",
    "gold gained": "gold gained",
}


def draw_steadiness(what):
    ways = {"raw": "none", "over batch": "batch", "by tag": "tag"}
    found = np.array(
        [[one.values[f"{what}/{way}"] for one in steadied.measurements] for way in ways.values()]
    )
    return lab.bars_with_intervals(
        list(ways), found.mean(1), found.min(1), found.max(1), NAMES_29[what].replace("\n", " "),
        title="beta 0.2; mean and range of the seeds",
    )  # fmt: skip


def steadiness_words(what):
    mean = {
        way: np.mean([one.values[f"{what}/{way}"] for one in steadied.measurements])
        for way in ("none", "batch")
    }
    return f"{NAMES_29[what]}: {'higher' if mean['none'] > mean['batch'] else 'lower'} with raw scores than with whitened ones.".replace(
        "\n", " "
    )


show(draw_steadiness("kl"), alt=steadiness_words("kl"))
print(
    "claim 29 has a verdict:",
    steadied.verdict.outcome in VERDICTS,
    "| at least three seeds:",
    len(steadied.measurements) >= 3,
)
print(
    "the spread of raw scores is no 1:", torch.from_numpy(scored["V4"].combined).std().item() > 1.2
)
Explorer(draw_steadiness, steadiness_words, what=list(NAMES_29))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A gallery of broken runs
# **Say.** PPO programs fail quietly. Loss is no guide: it hovers about zero in good runs and bad. So learn the symptoms, on a world so small that a run takes a second.
#
# Twelve tokens. Four topics; each has one right word. There is "please", EOS, and BOS. A **tiny policy** (one layer of 32) first learns from demonstrations that are right eight times in ten and polite three times in ten.
# - The **tiny reward model** likes every "please" (0.7 each, without end) and the right word (0.7).
# - The **tiny gold judge** wants the right word (half of the mark) and one or two "please" (the other half); three or more are gushing and get nothing.
#
# So the reward model is right about the first "please" and wrong about the third: a judge that can be exploited.
#
# A run is the library's own `ppo`, with the tiny reward model in place of the learned ones. To break it, `mock.patch` replaces one function under the name by which the library calls it, for the length of the run, and puts it back.

# %% tags=["long"]
BOS, EOS, PLEASE, TOPICS = 1, 2, 3, [4, 5, 6, 7]  # the right word of topic t is t + 4
ASKED = [([BOS, TOPICS[row % 4]], False) for row in range(64)]
TINY = lab.ModelConfig(
    vocab_size=12, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, multiple_of=8, max_seq_len=16
)


def tiny_reward(rows, tags):
    said = [row[2:] for row in rows]
    values = np.array(
        [0.7 * s.count(PLEASE) + 0.7 * (r[1] + 4 in s) for r, s in zip(rows, said, strict=True)]
    )
    return lab.Rewarded(values, values, values)


def tiny_gold(row):
    n = row[2:].count(PLEASE)
    return 0.5 * (row[1] + 4 in row[2:]) + (0.5 if n in (1, 2) else 0.25 if n == 0 else 0.0)


def demonstrations(source):
    """Batches of ids and masks, without end"""
    while True:
        ids, mask = torch.zeros(64, 7).long(), torch.zeros(64, 7).bool()
        for row in range(64):
            topic = source.choice(TOPICS)
            reply = [topic + 4 if source.random() < 0.8 else source.choice([8, 9, 10, 11])]
            reply += [PLEASE] * (source.random() < 0.3)
            if source.random() < 0.2:
                reply.append(source.choice([8, 9, 10, 11]))
            full = [BOS, topic, *reply, EOS]
            ids[row, : len(full)] = torch.tensor(full)
            mask[row, 2 : len(full)] = True
        yield ids, mask


apprentice = lab.initialise(lab.Transformer(TINY), seed=0)
taught = lab.optimize(
    apprentice, lab.adamw(apprentice), demonstrations(lab.random_source(0, "tiny")),
    lambda m, b: lab.masked_loss(m(b[0][:, :-1]), b[0], b[1]), lambda _: 1e-2, steps=range(120),
)  # fmt: skip
losses = [step.loss for step in taught]
print("the apprentice has learned:", losses[-1] < 0.6 * losses[0])

# %% tags=["long"]
SMALL = lab.PpoConfig(
    iterations=14, batch_size=64, minibatch_size=16, max_new_tokens=10, lr=1.5e-3, value_lr_multiplier=5.0,
    value_warmup=3, beta=0.5, whiten_by="batch", eval_every=4, patience=99, save_every=1000,
)  # fmt: skip


def tiny_measure(policy):
    asked_twice = [ids for ids, _ in ASKED * 2]
    said = lab.generate(policy, asked_twice, max_new_tokens=10, seed=99, stop_ids={EOS})
    rows = [[*ids, *done.ids] for ids, done in zip(asked_twice, said, strict=True)]
    values = tiny_reward(rows, None).combined
    return {
        "held_out_reward": float(values.mean()),
        "gold_quality": float(np.mean([tiny_gold(r) for r in rows])),
    }


def run_tiny(patches=None, reference=None, **settings):
    """PPO on the apprentice; `patches` names functions of the library and their stand-ins"""
    actor = ActorCritic(
        copy.deepcopy(apprentice), lab.scalar_model(apprentice).requires_grad_(True)
    )
    with ExitStack() as undone, tempfile.TemporaryDirectory() as folder:
        for name, stand_in in (patches or {}).items():
            undone.enter_context(mock.patch(f"llama2_lib.stages.{name}", stand_in))
        run = Ppo(
            config=replace(SMALL, **settings), model=actor, rewards=tiny_reward, eos_id=EOS,
            reference=reference or copy.deepcopy(apprentice),
        )  # fmt: skip
        train(run, lambda iteration: ASKED, tiny_measure, Path(folder))
        return lab.read_metrics(Path(folder) / "metrics.jsonl")


runs = {"healthy": run_tiny()}
tiny_lights = lab.lights(runs["healthy"])
print(
    "healthy, lights that are red:", [light.name for light in tiny_lights if light.state == "red"]
)
held = [row for row in runs["healthy"] if "gold_quality" in row]
print(
    "proxy and gold both rose:",
    held[-1]["held_out_reward"] > held[0]["held_out_reward"]
    and held[-1]["gold_quality"] > held[0]["gold_quality"],
)

# %% [markdown] slideshow={"slide_type": "slide"}
# **Break.** Ten faults, each a line or two. Some come from the tables of mistakes of this notebook's checks (`SHAPE_MISTAKES`, `GAE_MISTAKES`).
#
# 1. *Two temperatures*: log-probabilities of rollouts are taken at 1.5, samples and training use 1.
# 2. *Stale sampler*: a copy of the first weights writes the answers. (The inference server never got the update.)
# 3. *Price turned round*: distance is paid for.
# 4. *Size of the log-ratio*: $|k_1|$ for $k_1$, "since a distance cannot be negative".
# 5. *Score left out*: only the divergence is ever paid.
# 6. *Score at every token*, and raw: long answers collect it often.
# 7. *Returns lack the values*: the targets of the value function are the advantages.
# 8. *Loss turned round*: the gain is minimised.
# 9. *Another reference*: not the weights the policy starts from.
# 10. *No price*, $\beta = 0$, for longer.
#
# **Predict** for each: which light, and does the *proxy* still rise? Write it down; the order of the lights is: ratio, start, KL, entropy, clip fraction, explained variance, length, endings, reward, gold. About 10 seconds.
#
# **See** first the lights of all runs, then each run beside the healthy one. In which runs would you have been content with the curve of the reward alone?


# %% tags=["long"]
def mistake(table, beginning):
    return next(wrong for words, wrong in table.items() if words.startswith(beginning))


def short_returns(rewards, values, mask, *, gamma, lam):
    advantages, _ = rlhf.gae(rewards, values, mask, gamma=gamma, lam=lam)
    return advantages, advantages


def turned_loss(*given, **named):
    right = rlhf.ppo_policy_loss(*given, **named)
    return lab.LossTerm(-right.total, right.count, right.metrics)


other = copy.deepcopy(apprentice)
with torch.no_grad():
    for name, weight in other.named_parameters():
        weight += (
            0.3 * weight.abs().mean() * torch.randn(weight.shape, generator=lab.generator(0, name))
        )
SHAPES = checks.SHAPE_MISTAKES
shaped = "ppo.shaped_rewards"
FAULTS = {
    "two temperatures": {"patches": {"ppo.answer_logprobs": lambda policy, mask, ids, t: answer_logprobs(policy, mask, ids, t if torch.is_grad_enabled() else 1.5)}},
    "stale sampler": {"patches": {"ppo.generate": lambda model, prompts, **named: lab.generate(apprentice, prompts, **named)}},
    "price turned round": {"patches": {shaped: lambda s, p, q, mask, beta: rlhf.shaped_rewards(s, p, q, mask, -beta)}},
    "size of log-ratio": {"patches": {shaped: mistake(SHAPES, "the size of the log-ratio")}},
    "score left out": {"patches": {shaped: mistake(SHAPES, "the score is left out")}},
    "score at every token": {"patches": {shaped: mistake(SHAPES, "every token gets the whole score")}, "whiten_by": "nothing"},
    "returns lack values": {"patches": {"ppo.gae": short_returns}},
    "loss turned round": {"patches": {"ppo.ppo_policy_loss": turned_loss}},
    "another reference": {"reference": other},
    "no price": {"beta": 0.0, "iterations": 24},
}  # fmt: skip
for fault in bar(FAULTS, about="breaking"):
    runs[fault] = run_tiny(**FAULTS[fault])


SYMPTOM = {
    "two temperatures": "ratio before the first step",
    "stale sampler": "KL",
    "price turned round": "KL",
    "size of log-ratio": "entropy, of the start's",
    "score left out": "explained variance",
    "score at every token": "length, of the start's",
    "returns lack values": "explained variance",
    "loss turned round": "reward, gained",
    "another reference": "divergence at the start",
    "no price": "gold, gained",
}
for fault, light in SYMPTOM.items():
    seen = {x.name: x for x in lab.lights(runs[fault])}[light]
    print(f"{fault:21s} {light:28s} not green: {seen.state != 'green'}")
print(
    "stale sampler, KL is negative:",
    {x.name: x.value for x in lab.lights(runs["stale sampler"])}["KL"] < -0.5,
)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
table = {name: {light.name: light for light in lab.lights(rows)} for name, rows in runs.items()}
NAMES = list(table["healthy"])
SHORT = {
    "ratio before the first step": "ratio at start",
    "divergence at the start": "KL at start",
    "entropy, of the start's": "entropy ratio",
    "length, of the start's": "length ratio",
}


def draw_lights(names):
    cells = [[table[name][light] for name in names] for light in NAMES]
    return lab.traffic_lights(
        [SHORT.get(light, light) for light in NAMES], [name.replace(" ", "\n", 1) for name in names],
        [[cell.state for cell in row] for row in cells], [[f"{cell.value:.2f}" if cell.value > -9 else "< -9" for cell in row] for row in cells],
    )  # fmt: skip


everyone = list(runs)
show(
    draw_lights(everyone[:6]),
    alt="The healthy run is green; two temperatures show in the ratio, the stale sampler in a negative KL, the price turned round in a huge KL.",
)
show(
    draw_lights([everyone[0], *everyone[6:]]),
    alt="Score at every token shows in the length, missing values in the explained variance, the turned loss in the reward, another reference at the start, no price in gold.",
)


SERIES = {
    "reward (proxy)": "held_out_reward",
    "gold": "gold_quality",
    "KL": "kl",
    "entropy": "entropy",
    "length": "length",
    "explained variance": "explained_variance",
}


def draw_run(run, what):
    name = SERIES[what]
    series = {
        label: tuple(np.array([(row["step"], row[name]) for row in runs[label] if name in row]).T)
        for label in dict.fromkeys(["healthy", run])
    }
    return lab.lines(series, "iteration", what, title=f"{run}: {what}", markers=True)


def run_words(run, what):
    values = [row[SERIES[what]] for row in runs[run] if SERIES[what] in row]
    return f"Run '{run}': its {what} ends {'above' if values[-1] > values[0] else 'at or below'} where it began."


show(
    draw_run("no price", "reward (proxy)"),
    alt="Without a price the reward rises higher than in the healthy run.",
)
show(
    draw_run("no price", "gold"),
    alt="Without a price the gold mark first rises, then falls; in the healthy run it stays up.",
)
Explorer(draw_run, run_words, run=list(FAULTS), what=list(SERIES))

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### What no light sees
# Two more faults, both in every collection of real bugs:
# - *Padding in the advantages*: the recursion runs through the pads as if they were tokens.
# - *Advantages not whitened.*
#
# **Predict** their lights.
# <details><summary>What comes out, and what follows</summary>None turns red. The check knows the first fault, the run does not show it: with $\lambda = \gamma = 1$ it even cancels, for the pads' values come in at one end of the sum and go out at the other. Set $\lambda = 0.95$ one day, and it is there. The second changes step sizes, which AdamW and the clip of the gradient mostly undo here.
# Hence the order of work: <i>checks</i> for what has a right answer, <i>lights</i> for what can only be seen in a run, <i>gold marks</i>, or people, for what the reward model cannot know.</details>

# %%
SILENT = {
    "pads in the advantages": lambda r, v, mask, *, gamma, lam: mistake(checks.GAE_MISTAKES, "the sum is carried")(r, v, mask, gamma, lam),
}  # fmt: skip
runs["pads in the advantages"] = run_tiny({"ppo.gae": SILENT["pads in the advantages"]})
runs["advantages raw"] = run_tiny({"ppo.whiten_together": lambda parts, masks: list(parts)})
for name in ("pads in the advantages", "advantages raw"):
    red = [light.name for light in lab.lights(runs[name]) if light.state == "red"]
    print(f"{name:23s} red lights: {red or 'none'}")
with expect_failure(CheckFailed):
    checks.gae(mistake(checks.GAE_MISTAKES, "the sum is carried"))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here |
# |---|---|---|
# | 26, PPO on top | V5 about 70, 67 % wins (helpful, harmless) before, 78, 76 after; GPT-4 as judge 55, 55 then 67, 61 (read off a figure) | *reproduced*, over five chains: V5 wins 73 % against V4 by the reward models, 62 % by gold [56, 68]; since SFT gold helpfulness rose by 0.06 [0.05, 0.08], gold safety by 0.27 [0.23, 0.32] |
# | 27, the price | beta 0.01 and 0.005; no ablation | *reproduced*: free, the proxy gains 0.90 [0.66, 1.13] and gold loses 0.15 [0.08, 0.22]; at 0.2 the proxy gains 0.35 [0.24, 0.46] and gold loses 0.006; 15, 3.6, 1.9 and 1.0 nats for beta 0, 0.05, 0.2, 0.8 |
# | 28, the threshold | precision 0.89, recall 0.55 at 0.15 | *reproduced*: 0.99 and 0.93, on answers that are easier to tell apart |
# | 29, whitening | "important", no number | *reproduced*: raw scores go 0.8 nats further [0.3, 1.3], and the gradient swings more, by 1.0 [0.5, 1.4] |
#
# - **Scale.** Our learning rate is a hundred times the paper's or more, our iterations a tenth of its, and $\beta$ twenty times as large, since our answers are short and our reward models know less. The *direction* of effects can transfer, their size cannot.
# - **Seeds.** Claims 26, 27 and 29 were declared for three seeds. Those left 26 and 27 open; two more seeds were then added, once, by the same rules. The short runs share one chain: their seeds differ in prompts, samples and order, not in the reward models. The intervals say nothing about another reward model.
# - **The price.** Harmless prompts that sound dangerous are refused more often: in wordings of training 12 % by SFT and 15 % by V5, in new wordings 19 and 45 % [26, 65]. The paper saw the same, and measured it (section 4.2.3; notebook 10).
# - **Not stated in the paper**, so ours: value function, $\lambda$, $\gamma$, which estimate of the divergence, over what is whitened, sampling temperature and length, what an unfinished answer gets.
# - **Not measured**: the paper's human judges, and the further reward model that it watched.
#
# ## Exercises
# ### Exercise 1 (easy, 10 minutes)
# Write `explained(values, returns, mask)`: the explained variance, $1 - \mathrm{var}(G - V) / \mathrm{var}(G)$ over the counted tokens, with population variances. Then think: what is it for a value function that is right up to a constant?
# <details><summary>Hint</summary>`returns[mask]` are the counted ones; `.var(correction=0)`.</details>


# %% tags=["exercise"]
def explained(values, returns, mask):
    ### BEGIN SOLUTION
    missed = (returns - values)[mask].var(correction=0)
    return float(1 - missed / returns[mask].var(correction=0))
    ### END SOLUTION


@check("explained variance")
def _():
    batch = first
    mine = explained(batch.old_values, batch.returns, batch.response_mask)
    term = rlhf.ppo_value_loss(
        batch.old_values, batch.old_values, batch.returns, batch.response_mask, None
    )
    assert abs(mine - float(term.metrics["explained_variance"])) < 1e-4, (
        "must agree with the library's"
    )
    assert abs(explained(batch.returns + 3, batch.returns, batch.response_mask) - 1) < 1e-4, (
        "a constant does not matter"
    )


# %% [markdown]
# ### Exercise 2 (medium, 15 minutes)
# Close the hole. Write `mended(safety, helpfulness, tagged)` on raw scores: it agrees with $R_c$ wherever that has no hole, but with all else equal a safer answer never gets less. One way: where safety decides for an untagged prompt, pay no more than what the answer would get if it were safe.
# <details><summary>Hint</summary>The smaller of $s$ and $h$, but only where the prompt is not tagged and $s$ is below the limit.</details>


# %% tags=["exercise"]
def mended(safety, helpfulness, tagged):
    ### BEGIN SOLUTION
    unsafe = torch.minimum(safety, helpfulness)
    return torch.where(tagged, safety, torch.where(safety < LIMIT, unsafe, helpfulness))
    ### END SOLUTION


@check("mended reward")
def _():
    safety = torch.linspace(-6, 6, 241)
    for helpfulness in (-4.0, -2.0, 0.0, 3.0):
        for tagged in (False, True):
            tag, h = (
                torch.full_like(safety, tagged, dtype=torch.bool),
                torch.full_like(safety, helpfulness),
            )
            got = mended(safety, h, tag)
            assert bool((got.diff() >= -1e-6).all()), (
                f"at helpfulness {helpfulness} a safer answer gets less"
            )
            free = (safety >= LIMIT) | tag
            assert torch.equal(got[free], my_reward(safety, h, tag)[free]), (
                "outside the hole nothing may change"
            )
            if helpfulness > LIMIT:
                assert torch.equal(got, my_reward(safety, h, tag)), (
                    "without a hole nothing may change"
                )


# %% [markdown]
# ### Exercise 3 (medium, 15 minutes)
# A light of your own. A policy that says the same to everybody has few *distinct* rows; the log has the share in `distinct`. Write `distinct_light(rows)`: "red" if the mean of the last five iterations is below half of the first iteration's, "amber" below three quarters, else "green".
# <details><summary>Hint</summary>Rows of iterations have "kl"; rows of measurements have not.</details>


# %% tags=["exercise"]
def distinct_light(rows):
    ### BEGIN SOLUTION
    shares = [row["distinct"] for row in rows if "kl" in row]
    left = (sum(shares[-5:]) / len(shares[-5:])) / shares[0]
    return "red" if left < 0.5 else "amber" if left < 0.75 else "green"
    ### END SOLUTION


@check("distinct answers")
def _():
    def fake(*shares):
        rows = [{"kl": 0.1, "distinct": share} for share in shares]
        return [*rows, {"held_out_reward": 1.0}]

    assert distinct_light(fake(1.0, *[0.9] * 6)) == "green"
    assert distinct_light(fake(0.8, *[0.5] * 6)) == "amber", "0.5 of 0.8 is below three quarters"
    assert distinct_light(fake(1.0, 1.0, *[0.3] * 5)) == "red", "only the last five count"
    assert distinct_light(log) == "green", "nano's run stays varied"


# %% [markdown]
# ### Exercise 4 (hard, 25 minutes)
# A price that regulates itself: where the divergence is above a target, raise $\beta$, else lower it (Ziegler et al., 2019). Write `next_beta(beta, kl, target)` with error $e = \mathrm{clip}(KL / \text{target} - 1, -0.2, 0.2)$ and $\beta' = \beta\,(1 + e/2)$. The check then lets it steer a toy in which the divergence falls with the price.
# <details><summary>Hint</summary>`min(max(x, low), high)` clips a number.</details>


# %% tags=["exercise"]
def next_beta(beta, kl, target):
    ### BEGIN SOLUTION
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error / 2)
    ### END SOLUTION


@check("a price that regulates itself")
def _():
    assert math.isclose(next_beta(0.2, 8.0, 4.0), 0.22), (
        "twice the target: the error is clipped at 0.2"
    )
    assert math.isclose(next_beta(0.2, 3.8, 4.0), 0.195), "a little below: the price falls a little"
    beta = 0.01
    for _step in range(200):
        beta = next_beta(beta, 1 / beta, 4.0)  # the toy: KL = 1 / beta
    assert abs(1 / beta - 4.0) < 0.05, f"it must settle at the target; got {1 / beta:.2f}"


# %% [markdown]
# ## Questions to think about
# - A colleague reports that PPO raised the reward from 1.3 to 4.2 on held-out prompts. Name three numbers you would ask for before you believe that the model became better.
# - With $\lambda = 1$ and $V = 0$ PPO is almost REINFORCE. What is left of the difference?
# - The whitened score has mean zero by construction. Why must the log hold the raw one, and what would you conclude from the whitened one's curve?
# - Rejection sampling pays for distance too, though no $\beta$ stands in it (notebook 07: the divergence of best of N). Where is its price hidden?
# - The paper's policy was judged on new comparisons every week. Which of the ten faults above would that have caught, and which not?
# - Find an answer that the combined reward likes and you do not. What would you add: a rule, a comparison, or a price?
#
# ## Next
# `09_ghost_attention`: from pleasing the judge to keeping a promise over many turns.
