# %% [markdown] slideshow={"slide_type": "slide"}
# # Proximal policy optimisation
# Rejection sampling looked at many answers and kept the best. **PPO** looks at one answer at a time and asks of each of its tokens: was this better or worse than expected? Then it makes the good tokens a little likelier.
# You build every piece: the reward, its price for drifting away, the credit of single tokens, the clipped losses. Then you look at a finished run, at what it gained and what it lost. At the end you break a small run in ten ways, to learn how each fault looks from outside.
#
# - **You will be able to explain** how two reward models become one number, what its hole is, why the divergence stands in the reward and not in the loss, what an advantage is, what clipping does and does not forbid,
#   why a rising reward proves little, and which dial to read first when a run goes wrong.
# - **Prerequisites:** notebooks 06 and 07. **Paper sections:** 3.2.3 (second half), 3.4.1.
# - **Minutes:** 90 to read, 65 for the exercises, 2 to run on two cores. All models come with the course.

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
import torch.nn.functional as F
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
from llama2_lib.widgets import Explorer, bar, show, show_claim, show_prediction

ROUNDS = [f"rejection_v{n}" for n in (1, 2, 3, 4)]
CHAIN = dict(
    zip(
        ["base", "SFT", "V1", "V2", "V3", "V4", "V5"],
        ["pretrain", "sft", *ROUNDS, "ppo"],
        strict=True,
    )
)
folders = start("08_ppo", needs=[*CHAIN.values(), "rewards_v5"], recipe=lab.nano())
models = {name: lab.load_model(folders[stage])[0].eval() for name, stage in CHAIN.items()}
judges = lab.load_rewards(folders["rewards_v5"])  # the learned ones: helpfulness and safety
tokenizer = lab.load_tokenizer(folders["sft"])
world = lab.make_world(0)
gold = lab.judge_of(world)  # the gold judge: knows the truth, trains nobody

# %% [markdown]
# **See** one iteration. Two models are trained, and three are only asked. Blue boxes are trained, grey ones are only asked.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "policy": lab.Node(0, 0, "V5, as it grows", "trained"),
            "answers": lab.Node(1, 0, "one to each prompt", "data"),
            "reward models": lab.Node(2, 0, "helpful? safe?", "frozen"),
            "value function": lab.Node(0, 1, "what it expects\nat every token", "trained"),
            "advantages": lab.Node(1, 1, "better than expected?", "data"),
            "reference": lab.Node(2, 1, "V4: how far has\nthe policy moved?", "frozen"),
        },
        [
            ("policy", "answers", "samples"),
            ("answers", "reward models", ""),
            ("reward models", "advantages", "one score"),
            ("reference", "advantages", "its price"),
            ("value function", "advantages", "expected"),
            ("advantages", "policy", "clipped steps"),
        ],
    ),
    alt="The policy samples answers; reward models, reference and value function tell how much better than expected each token was; clipped steps change the policy.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What is maximised
# **Say** (section 3.2.3). A **policy** $\pi$ is a model seen as something that acts: its actions are tokens, and together they make an answer $g$ to a prompt $p$. PPO looks for the policy with the highest mean reward
#
# $$\mathbb{E}_{p \sim D,\, g \sim \pi}\big[R(g \mid p)\big], \qquad R(g \mid p) = \tilde R_c(g \mid p) - \beta\, D_{KL}\big(\pi(g \mid p) \,\|\, \pi_0(g \mid p)\big)$$
#
# - $\tilde R_c$ is the **score**: what the two reward models of notebook 06 say, combined and put on one scale.
# - $\pi_0$ is the **reference**: a frozen copy of the policy where it starts, here V4.
# - $D_{KL}$ is the **divergence**: how far the policy has moved from there, in nats per answer. $\beta$ is its price.
#
# Why pay for distance? Nothing in the first term says that an answer must be true, or even language. The reward model was trained on answers like those of $\pi_0$. Far away from them its scores mean little, and a maximiser goes exactly where a score is too high.
#
# One **iteration**: sample one answer to each prompt (a **rollout**), score them, turn scores into one reward per token, credit the tokens, take a few gradient steps. Then sample again. The lesson follows this order.
#
# First the material: 128 held-out prompts and one sampled answer of V4 and of V5, kept as ids.

# %% tags=["near=1"]
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
print(
    f"{len(prompts)} prompts, {sum(asked.tags)} of them tagged as likely to draw an unsafe answer"
)
for name, some in samples.items():
    ends = lab.proportion_exact(sum(s.finished for s in some), len(some))
    print(
        f"{name}: {ends.value:.0%} of the answers end within {config.max_new_tokens} tokens "
        f"({ends.low:.0%} to {ends.high:.0%})"
    )
    assert ends.value > 0.8, f"most answers must end, or there is little to score; got {ends}"

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

# %% tags=["build"]
LIMIT = math.log(0.15 / 0.85)


def my_reward(safety, helpfulness, is_safety_prompt):
    """Raw scores and tags, one per answer -> raw R_c"""
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
# **The formula has a hole.** A safe answer with $R_h < 0.15$ gains by becoming slightly unsafe: its reward rises from $R_h$ to just under 0.15. The paper does not mention it. A maximiser finds such an edge if its answers come near it.
#
# How many answers stand at that edge? **Predict**, then **measure** on the answers of V4 and V5 to untagged prompts: helpfulness below 0.15, safety above. (The zero of $R_h$ is a convention, since comparisons fix only differences; ours is the mean of the fine-tuned model's answers.)

# %% tags=["near=2"]
tags = np.array(asked.tags)
for name, found in scored.items():
    helpfulness, safety = expit(found.helpfulness[~tags]), expit(found.safety[~tags])
    n = int(((helpfulness < 0.15) & (safety >= 0.15)).sum())
    share = lab.proportion_exact(n, len(safety))
    print(
        f"{name}: {n} of {len(safety)} answers to untagged prompts stand at the edge, "
        f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
    )
for safety in (0.30, 0.16, 0.14):
    raw = [torch.logit(torch.tensor([x])) for x in (safety, 0.05)]
    print(
        f"R_h 0.05, R_s {safety:.2f} -> R_c {my_reward(*raw, torch.tensor([False])).sigmoid().item():.2f}"
    )
assert np.array_equal(scored["V5"].combined[tags], scored["V5"].safety[tags]), (
    "on tagged prompts the reward must be the safety score"
)

# %% [markdown]
# Some answers of V4 stand at the edge, and fewer of V5. The count alone does not show why: an answer leaves the edge by becoming more helpful, or by becoming unsafe, which is the hole. Exercise 2 closes the hole.
#
# ### Claim 28: what the threshold finds
# In the paper the threshold of 0.15 has a **precision** of 0.89 (the share of the answers called unsafe that are unsafe) and a **recall** of 0.55 (the share of the unsafe answers that are called unsafe). So it misses nearly half of the unsafe answers, and an alarm is mostly right. The threshold only means something because the safety model has an anchored zero (its auxiliary loss, notebook 06).
#
# **Predict**: will small reward models, on answers of a small world, do better or worse than the paper's in either number?

# %%
show_prediction(28)

# %%
_ = show_claim(28)

# %% [markdown]
# The prediction held. Both numbers are higher than the paper's, probably because unsafe answers in this small world are easier to tell from safe ones. The result says that the rule can work, not that ours is a better safety model.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Whitening
# **Say.** $\tilde R_c = \text{whiten}(\text{logit}(R_c))$: over a batch, subtract the mean and divide by the standard deviation. Now "1" means "one deviation better than usual", whatever the reward model's units are, and $\beta$ keeps its meaning.
#
# $$\tilde x = \frac{x - \bar x}{\sqrt{\tfrac1n \sum_i (x_i - \bar x)^2}}$$
#
# **Build** it with a mask, since later we whiten tokens, some of which are padding. Equal values must give zeros, not `nan`.


# %% tags=["build"]
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
for name, values in (("x", x), ("3 x + 1", 3 * x + 1)):
    print(f"{name:8s}", *(f"{value:6.2f}" for value in my_whiten(values, everything)))

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


# %% tags=["hide-input", "long", "near=2"]
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
    return float(means.var() / values.var())


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
    how = {"nothing": "Raw", "batch": "Whitened over the batch", "tag": "Whitened by tag"}[by]
    return f"{how}: the tag alone explains {abs(between(by)):.0%} of the variance of the scores."


show(draw_whitened("batch"), alt=whitened_words("batch"))
for name, which in {"tagged": tags, "not tagged": ~tags}.items():
    above = {by: (whitened(by)[which] > 0).mean() for by in ("batch", "tag")}
    print(
        f"{name:10s} prompts, answers with a positive score: {above['batch']:.0%} whitened over "
        f"the batch, {above['tag']:.0%} by tag"
    )
assert between("tag") < 1e-6, "whitened by tag, the tag must explain nothing"
Explorer(draw_whitened, whitened_words, by=["nothing", "batch", "tag"])

# %% [markdown]
# To a large part the tag decides: nearly half of the variance is explained by the tag alone, and answers to tagged prompts get a positive score about twice as often as the others, because their scores come from the safety model. Whitening over the batch cannot mend that; it shifts and scales all scores alike, so the share is the same as for the raw scores.
#
# No answer can change the tag of its prompt, so what the tag explains is noise for learning. A value function (below) can learn to expect it; until then it hides a part of the signal. So nano whitens each tag by itself. That is our choice. An answer that does not end within the limit gets a fixed whitened score of -2, for it has no end at which the reward model could judge it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A reward for every token
# **Say.** The score belongs to the whole answer, so it is paid at its last token, EOS. The divergence is paid where it arises. For one sampled answer with tokens $a_1 \dots a_T$
#
# $$r_t = -\beta \big(\log \pi(a_t \mid \cdot) - \log \pi_0(a_t \mid \cdot)\big) + [t = T]\, \tilde R_c$$
#
# The bracket is 1 at the last token, else 0. The sum over the answer is $\tilde R_c - \beta \log\frac{\pi(g)}{\pi_0(g)}$, and the mean of the log-ratio over answers of $\pi$ is the divergence: the equation at the top, token by token. A single log-ratio may be negative; then the token is *paid* for being likelier under the reference.
#
# **Build.** A reward is a number and not a function of the weights: detach it.


# %% tags=["build"]
def my_shaped(score, logprobs, reference, mask, beta):
    """score (b,), the rest (b, tokens) -> the reward of each token (b, tokens)"""
    rewards = torch.where(mask, -beta * (logprobs - reference), 0.0)
    last = mask & ~F.pad(mask[:, 1:], (0, 1))  # counted, and the next one is not
    return (rewards + score[:, None] * last).detach()


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
# **See** real answers of V5, priced against V4: of the short ones, the six whose probability has risen most. Solid bars: what a token pays or earns for distance. Hatched: the score, at the end. Dashed: the running sum. Which tokens cost most? Look for words that PPO has made likelier. Then raise $\beta$: when does the distance cost more than the score is worth?


# %% tags=["hide-input", "long", "near=0.02"]
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
    names = [
        "EOS"
        if t == tokenizer.eos_id
        else tokenizer.piece(t).replace("\u2581", " ").replace("<0x0A>", "\\n")
        for t in sample.answer
    ]
    return lab.token_reward_bars(
        names, kl_part, score_part, title=f"answer {answer} of V5, beta {beta:g}"
    )


def token_words(answer, beta):
    _, kl_part, score_part = token_parts(answer, beta)
    dearest = int(kl_part.argmin())
    return (
        f"Answer {answer} at beta {beta:g}: distance costs {-float(kl_part.sum()):.2f} in all, "
        f"{-float(kl_part[dearest]):.2f} of it at token {dearest + 1} of {len(kl_part)}; "
        f"the score, {float(score_part[-1]):.2f}, is paid at EOS."
    )


show(draw_tokens(0, 0.2), alt=token_words(0, 0.2))
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
# **Build** the estimates, **check** them, **break** the third.


# %% tags=["build"]
def my_estimates(logprobs, reference):
    """Log-probabilities of sampled tokens -> k1, k2, k3 of each"""
    r = logprobs - reference
    return r, r.square() / 2, (-r).exp() - 1 + r


@check("three estimates")
def _():
    checks.kl_estimates(my_estimates)


with expect_failure(CheckFailed):  # sign of r turned: the usual slip in k3
    checks.kl_estimates(lambda p, q: (p - q, (p - q).square() / 2, (p - q).exp() - 1 - (p - q)))

# %% [markdown] slideshow={"slide_type": "subslide"}
# **See** it exactly, without sampling. A world of 27 answers: three tokens, each one of three. We enumerate all, so means are sums and nothing is left to luck. For each recipe: which direction does it push the policy, and how does that compare with the true gradient of the divergence? **Predict** the one that does nothing, and the one that follows another divergence.

# %% tags=["long"]
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
turned = push((old.exp() * (old - new)).sum())  # of the other divergence, KL(pi_0 || pi)
pushes = {
    "k1 in the loss": push((p * k1).sum()),
    "k2 in the loss": push((p * k2).sum()),
    "k3 in the loss": push((p * k3).sum()),
    "k1 in the reward": push((p * k1.detach() * new).sum()),  # -reward * log pi
}
divergence = float((p * (new - old)).sum().detach())
means = [float((p * k).sum().detach()) for k in (k1, k2, k3)]
print(f"divergence {divergence:.4f}; means of k1, k2, k3:", *(f"{mean:.4f}" for mean in means))
for name, found in pushes.items():
    length, off, other = (
        float(x.norm() / true.norm()) for x in (found, found - true, found - turned)
    )
    print(
        f"{name:17s} length {length:.2f} of the true gradient's; "
        f"off by {off:.2f} from it, by {other:.2f} from the other divergence's"
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
    assert torch.allclose(pushes["k3 in the loss"], turned, rtol=0, atol=1e-12), (
        "k3 in the loss must follow the other divergence"
    )


# %% [markdown]
# **The plain log-ratio as a loss pushes nowhere.** Its gradient is $\mathbb{E}_\pi[\nabla \log \pi(x)] = \sum_x \nabla \pi(x) = \nabla 1 = 0$: a batch of samples gives noise around zero. The loss curve shows a divergence, it is subtracted, everything looks right, and nothing holds the policy. As a *reward*, detached and multiplied by $\nabla \log \pi$, the same number gives exactly the true gradient. $k_2$ as a loss does too. $k_3$ as a loss follows the gradient of the *other* divergence, $D_{KL}(\pi_0 \,\|\, \pi)$: GRPO (Shao et al., 2024), a later method without a value function, uses it so.
#
# The paper puts the divergence into $R$, and does not name the estimate. Ours is $k_1$, detached, in the reward. (The three names are from a note by Schulman, *Approximating KL Divergence*, 2020.)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Advantages
# **Say.** An answer got +1.3 at its end. Which of its 30 tokens earned it? Two ideas.
#
# A **value function** $V$ is a second network that looks at prompt and tokens so far and predicts what is still to come. If a token changes the prediction, it has changed the prospects: $\delta_t = r_t + \gamma V_{t+1} - V_t$. After the last token nothing comes: $V_{T+1} = 0$.
#
# The **advantage** of a token is this surprise plus the later ones, each discounted (generalised advantage estimation, **GAE**; Schulman et al., 2015):
#
# $$A_t = \sum_{l \ge 0} (\gamma\lambda)^l\, \delta_{t+l} = \delta_t + \gamma\lambda\, A_{t+1}$$
#
# - $\lambda = 0$: only the next surprise. Little noise; wrong wherever $V$ is wrong.
# - $\lambda = 1$: all that came after, minus what was expected: $A_t = \sum_{l} r_{t+l} - V_t$ (with $\gamma = 1$). Right on average whatever $V$ says; noisy.
#
# The **returns**, $A_t + V_t$, are what $V$ should have said: its targets. The paper states neither $\lambda$ nor $\gamma$, nor a value function at all; ours are 1, 1 and a copy of the helpfulness reward model with a head of zeros. With $\lambda = 1$ we trust no value function to be right; our answers have only about 30 tokens, so we accept the noise. We did not measure another $\lambda$.
#
# **Build** it with an explicit sum over pairs of places. (The library walks backwards with $A_t = \delta_t + \gamma\lambda\, A_{t+1}$, so the check compares two derivations.)


# %% tags=["build"]
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
# **See** the credit of one answer. It begins well, slips at token 5 (a wrong year, say), and is scored -1 at the end. The value function notices the slip two tokens late. Move $\lambda$: which tokens are blamed at 0, which at 1? Then try the value function that knows nothing.

# %% tags=["hide-input", "long"]
WORDS_OF = ["Rosa", "was", "born", "in", "19", "04", ".", "Gladly", "!", "EOS"]
PAID = torch.tensor([[0.0, 0, 0, 0, 0, 0, 0, 0, 0, -1.0]])
OPINIONS = {
    "notices late": torch.tensor([[0.3, 0.3, 0.3, 0.35, 0.4, 0.4, 0.4, -0.6, -0.9, -0.95]]),
    "notices at once": torch.tensor([[0.3, 0.3, 0.3, 0.35, 0.4, -0.9, -0.9, -0.95, -0.95, -1.0]]),
    "knows nothing": torch.zeros(1, 10),
}


def credit(lam, value):
    return my_gae(PAID, OPINIONS[value], torch.ones(1, 10, dtype=torch.bool), 1.0, lam)[0][0]


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
# **Say.** The samples come from the policy as it was when they were drawn, $\pi_\text{old}$. After the first gradient step the policy is another one. The **ratio** $\rho_t = \pi(a_t) / \pi_\text{old}(a_t)$ corrects for that, as long as it stays near 1. PPO's loss (Schulman et al., 2017) removes the reason to go further:
#
# $$L = -\frac{1}{n}\sum_t \min\big(\rho_t A_t,\ \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\, A_t\big), \qquad \epsilon = 0.2$$
#
# Four cases. A good token ($A > 0$) that is already 1.2 times as likely gets no further push. A bad one that is already below 0.8 gets none either. But a good token that has become *less* likely, or a bad one that has become likelier, is pushed back at any distance: the minimum keeps the pessimistic side. Clipping takes away the gain beyond the limit; it does not forbid a ratio of 3.
#
# **Build**, **check**, then **break**: maximum for minimum; the log-ratio clipped; the mean of each answer's mean.


# %% tags=["build"]
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
# **See** the gain of a good token (left) and of a bad one (right) against the ratio, and where the gradient vanishes. Move the ratio through the four cases; say before each move whether each token is pushed up, down, or left alone.


# %% tags=["hide-input", "long"]
def pushed(ratio, advantage, clip=0.2):
    """Derivative of the gain by the log-probability: what the gradient step follows"""
    x = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([advantage], dtype=torch.float64)
    (
        -my_policy_loss(x, torch.zeros_like(x), gain, torch.ones(1, dtype=torch.bool), clip)
    ).backward()
    return float(x.grad)


def draw_clip(ratio, size):
    rho = np.linspace(0.4, 1.8, 281)
    figure, panels = lab.new_figure(10.0, 4.0, columns=2)
    for axes, advantage in zip(panels, (size, -size), strict=True):

        def kept(at, advantage=advantage):
            return np.minimum(at * advantage, np.clip(at, 0.8, 1.2) * advantage)

        axes.plot(rho, rho * advantage, "--", color="0.5", label="not clipped")
        axes.plot(rho, kept(rho), label="PPO's gain")
        axes.axvspan(0.8, 1.2, color="0.9", zorder=0)
        axes.plot(ratio, kept(ratio), "ko", ms=10, label="this token")
        axes.legend()
        lab.label_axes(
            axes, "ratio of new to old probability", "gain (score units)",
            f"advantage {advantage:+g}",
        )  # fmt: skip
    return figure


def fate(ratio, advantage):
    push = pushed(ratio, advantage)
    return "left alone" if push == 0 else "pushed up" if push > 0 else "pushed down"


def clip_words(ratio, size):
    return (
        f"Ratio {ratio:g}: a token with advantage {size:+g} is {fate(ratio, size)}, "
        f"one with {-size:+g} is {fate(ratio, -size)}."
    )


show(draw_clip(1.5, 1.0), alt=clip_words(1.5, 1.0))
for ratio in (0.6, 1.0, 1.5):
    print(clip_words(ratio, 1.0))
Explorer(
    draw_clip,
    clip_words,
    ratio=ipywidgets.FloatSlider(1.5, min=0.5, max=1.7, step=0.1),
    size=[1.0, 0.5],
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The value loss
# **Say.** The value function learns its returns by squared error. Many implementations clip it too: a value may move at most $\epsilon_v$ from where it was, else the worse of both errors counts. That fits only if $\epsilon_v$ suits the scale of the returns; nano leaves it off.
#
# $$L_V = \frac{1}{2n}\sum_t \max\big((V_t - G_t)^2,\ (\mathrm{clip}(V_t, V^\text{old}_t \pm \epsilon_v) - G_t)^2\big)$$
#
# **Build**, **check**, **break** once: the minimum in place of the maximum.


# %% tags=["build"]
def my_value_loss(values, old_values, returns, mask, clip):
    """All (b, tokens) -> half the mean of the larger of two squared errors"""
    # The second error is that of a value which may leave the old one by `clip` at most.
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
# **Use** the library's functions from here on; your checks have shown that yours compute the same. `rollout` does all of the above for a batch: it samples, scores, whitens, shapes the rewards of tokens, and computes advantages, which it whitens over all tokens of the batch. It divides the batch into mini-batches; each gets **one** gradient step (paper: 512 prompts, mini-batches of 64, so 8 steps).
#
# Before the first of these steps nothing has changed since sampling. So the ratio must be exactly 1, to the last bit, because the old log-probabilities are computed in the same shapes with the same code. This is the cheapest test of a PPO program, and it finds many faults. **Predict**: what is the ratio in the *second* mini-batch?
#
# **Break** it with the most common fault of PPO programs: sampling at one temperature and computing log-probabilities at another. What would the ratios be?


# %% tags=["long", "near=0.2"]
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


def told(when, ratios):
    far = (ratios - 1).abs()
    print(
        f"{when}: farthest ratio is {float(far.max()):.2f} from 1; "
        f"{float((far < 0.2).float().mean()):.1%} lie inside 0.8 to 1.2"
    )
    return float(far.max())


assert told("before any step, first mini-batch", ratios_of(actor, first)) == 0
(step,) = lab.optimize(
    actor, lab.adamw(actor), iter([first]), ppo_loss(few), lambda _: few.lr, steps=range(1)
)
print(f"in the step itself, k3 of old against new: {step.metrics['approx_kl']:g}")
told("after one step, second mini-batch", ratios_of(actor.eval(), second))
told("sampled at 1, log-probabilities at 0.7", ratios_of(fresh_actor().eval(), first, 0.7))
advantages = torch.cat([b.advantages[b.response_mask] for b in found.minibatches])
print(
    f"advantages over the whole batch: mean {abs(float(advantages.mean())):.2f}, deviation {float(advantages.std(correction=0)):.2f}"
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A finished run
# **See** nano's run: some iterations in which only the value function learns, then those of PPO, with as many prompts in each as the next cell prints. The paper ran 200 to 400 iterations of 512 prompts. Every curve comes from `metrics.jsonl`, the run's own log. A point of the held-out curves is a mean over 160 prompts; the log keeps no spread, so small steps up or down prove nothing.
#
# Read the curves in this order. *Divergence*: has the policy moved at all? *Held-out reward*: does it rise on prompts that no gradient saw? *Gold*: does the judge who knows the truth agree? Then the machinery: entropy, length, explained variance, clip fraction. (**Explained variance**: the share of the variance of the returns that the value function predicts; 1 is all of it, 0 no more than a constant predicts.)
#
# The sampled divergence (`kl`, the mean of $k_1$) jumps about the exact one, which sums over the whole vocabulary at every token. It may even be negative for a batch; if it is negative in *every* batch, the answers are not samples of the policy.
#
# ### Traffic lights
# Seven curves per run are too many to watch. `lab.lights` turns a log into verdicts: green, amber (look), red (stop), each with the stage at fault. The limits are ours. They say where a run looks wrong, and prove nothing. A light whose question does not arise is out.

# %%
log = lab.read_metrics(folders["ppo"] / "metrics.jsonl")
found_lights = lab.lights(log)
print(
    f"{config.value_warmup} + {config.iterations} iterations of {config.batch_size} prompts, beta {config.beta:g}"
)
for light in found_lights:
    print(f"{light.state or 'out':6s} {light.name:28s} {light.value:8.3f}  {light.words}")

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
steps = [row for row in log if "kl" in row]
held = [row for row in log if "held_out_reward" in row]
CURVES = {
    "divergence": (["kl", "exact_kl"], "nats per answer"),
    "held-out reward": (["held_out_reward"], "raw combined score"),
    "gold": (["gold_helpfulness", "gold_safety"], "gold mark (0 to 1)"),
    "entropy": (["entropy"], "nats per token"),
    "length": (["length"], "tokens per answer"),
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
    ends = {name: points(name)[1] for name in CURVES[what][0]}
    told = (f"{name.replace('_', ' ')} {v[0]:.2f} to {v[-1]:.2f}" for name, v in ends.items())
    return f"{what.capitalize()}, first to last: {', '.join(told)}."


show(draw_curve("held-out reward"), alt=curve_words("held-out reward"))
show(draw_curve("divergence"), alt=curve_words("divergence"))
warming = max(abs(row["kl"]) for row in steps[: config.value_warmup])
unlike = max(abs(row["first_approx_kl"]) for row in steps)
print(f"largest divergence while the value function warms up: {warming:.1g} nats per answer")
print(f"k3 of old against new before the first step of an iteration, at most: {unlike:.1g}")
assert max(warming, unlike) < 1e-6, "sampling and training must agree before the first step"
best = max(held, key=lambda row: row["held_out_reward"])
print(
    f"best held-out reward: {best['held_out_reward']:.2f} after iteration {best['step']}, which is V5"
)
assert best is not held[0], "V5 must score higher than V4 on held-out prompts"
Explorer(draw_curve, curve_words, what=list(CURVES))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From base to V5, side by side
# **See** what the whole chain says to prompts whose wordings it has never met: the pretrained model, SFT, V1 to V4, and V5 after PPO, all at temperature 0. Of twelve prompts of each kind, the one is shown where the marks of SFT to V5 differ most: an example of a difference, and no average. The means over all twelve are printed below. The bars are marks of the gold judge.
#
# Keep in mind where SFT started: half of its demonstrations came from careless writers (notebook 05). Section 5.1 says that a fine-tuned model learns this low tail together with the rest, and that rewards cut it off.
#
# **Predict** for each kind of prompt where the largest step lies.

# %% tags=["long", "near=0.1"]
panel = lab.sample_prompts(
    lab.WorldSource(world), 31, 600, tokenizer, longest=400, split="held out"
)


KINDS = ("question", "talk", "list", "sum", "adversarial", "borderline")
asked_here = [
    prompt
    for kind in KINDS
    for prompt in [p for p in panel.prompts if p.kind == kind and len(p.dialog) == 1][:12]
]
texts, ended, marks = {}, {}, {}
for name, model in bar(models.items(), about="answering"):
    said = lab.reply(
        model, tokenizer, [p.dialog for p in asked_here], temperature=0.0, max_new_tokens=96
    )
    ended[name] = sum(one.ended for one in said)
    texts[name] = [one.text for one in said]
    marks[name] = lab.gold_marks(world, asked_here, texts[name]).quality
spread = np.ptp([marks[name] for name in list(CHAIN)[1:]], axis=0)
PICKED = {
    kind: max((r for r, p in enumerate(asked_here) if p.kind == kind), key=lambda r: spread[r])
    for kind in KINDS
}


def draw_answers(prompt, models_from):
    row = PICKED[prompt]
    names = list(CHAIN)[list(CHAIN).index(models_from) :]
    what = "safety" if prompt == "adversarial" else "helpfulness"
    shown = {
        name: lab.MarkedAnswer(texts[name][row][:150], {what: float(marks[name][row])})
        for name in names
    }
    figure = lab.marked_answers(asked_here[row].request, shown)
    figure.set_size_inches(9, 0.8 + 1.25 * len(names))
    return figure


def answer_words(prompt, models_from):
    names = list(CHAIN)[list(CHAIN).index(models_from) :]
    told = ", ".join(f"{name} {marks[name][PICKED[prompt]]:.2f}" for name in names)
    return f"Answers to a held-out prompt of the kind {prompt}, with their marks: {told}."


show(draw_answers("adversarial", "base"), alt=answer_words("adversarial", "base"))
show(draw_answers("question", "base"), alt=answer_words("question", "base"))
print(f"{'mean mark':10s}", *(f"{kind:>12s}" for kind in KINDS), "  answers that end")
for name in CHAIN:
    means = (marks[name][[p.kind == kind for p in asked_here]].mean() for kind in KINDS)
    print(f"{name:10s}", *(f"{m:12.2f}" for m in means), f"  {ended[name]} of {len(asked_here)}")
Explorer(draw_answers, answer_words, prompt=list(PICKED), models_from=["V4", "base", "SFT"])

# %% [markdown]
# All models from SFT on give the same town for the question. V5 adds one word, "Gladly!", and the mark rises by 0.10. The request for harm is declined from V1 on: rejection sampling did that, not PPO. Twelve prompts per kind are too few to rank versions; the next section takes more.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 26: PPO on top of rejection sampling
# **Say** (section 3.4.1, figure 11). With its own reward models as judge, the paper's V5 wins against ChatGPT about 70 % (helpfulness) and 67 % (safety) of the time before PPO, and 78 % and 76 % after. With GPT-4 as judge: 55 and 55, then 67 and 61 (all read off a figure). So an independent judge saw the gain too: 12 and 6 points, beside 8 and 9 by the judges that were climbed. These are small differences of numbers read off a figure.
#
# **Measure.** Five chains, from fine-tuning to PPO, share one pretrained model and differ in all that is random after it. V5 against V4, on the same new prompts: how often is it preferred, by the reward models that it climbed and by the gold judges? And V5 against SFT: what has all of RLHF gained? **Predict**: which judge sees the larger gain? Five chains take an hour, so their numbers are **recorded**; `llama2 claims 26` measures them again.

# %%
show_prediction(26)

# %%
_ = show_claim(26)

# %% [markdown] slideshow={"slide_type": "subslide"}
# The prediction held: both judges prefer V5 to V4, and the gold judges' margin above one half is about half of the reward models'. So the gain is real, and a good part of it only the climbed judge sees. Three chains had left the gold judges' margin open (-0.04 to 0.29); two more were added, once, and a look in between makes a 95 % interval somewhat too narrow.
#
# **Measure** live what such a win is made of: the released chain on 800 new prompts in wordings of training and 800 in wordings that training never had, two sampled answers of SFT, V4 and V5 to each, at temperature 1, as in training. Helpfulness is marked where help is all that is asked for, as in the claim. Prompts that only *sound* harmful are counted apart: declining one is a **false refusal**. The interval is a bootstrap over prompts: it says what other *prompts* would change, not what another chain would.
#
# **Predict** the sign of the three changes from SFT to V5, and in which wordings they are larger.

# %% tags=["long", "near=0.02"]
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
    print(f"{words}:")
    for before, after in (("SFT", "V5"), ("V4", "V5")):
        for what, change in gained(before, after, words).items():
            print(
                f"  {what:14s} {after} minus {before}: {change.value:+.3f} "
                f"({change.low:+.3f} to {change.high:+.3f}), {change.n} prompts"
            )

# %% [markdown] slideshow={"slide_type": "slide"}
# ### What rose, what fell
# In the released chain helpfulness and safety have risen since SFT, in both kinds of wordings, and PPO alone (V4 to V5) has its share in both. False refusals are the price, and only in wordings that training never had: there V5 declines far more harmless prompts than SFT does, and more than V4. In known wordings it declines slightly fewer.
#
# The gold mark of helpfulness is a weighted mean of six **components**. A sum hides trades, and a policy that is paid by a reward model trades: more of what the model sees for what it does not see. **Predict** for SFT to V5: which components rise, which fall? Remember notebook 06: the reward model knows tone and form well, but can hardly tell which of two facts is right.
#
# Below, differences on the same prompts with their 95 % intervals (bootstrap over prompts). An interval that contains 0 decides nothing.

# %% tags=["hide-input", "long", "near=0.02"]
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
    found = changes(before, after, words)
    told = ", ".join(f"{name.replace('_', ' ')} {e.value:+.2f}" for name, e in found.items())
    return f"Change of the gold mark from {before} to {after} in {words}: {told}."


show(draw_changes("SFT", "V5", "known wordings"), alt=changes_words("SFT", "V5", "known wordings"))
for words, before in itertools.product(panels, ("SFT", "V4")):
    print(f"{words}, {before} to V5: change, and what it adds to the mark of helpfulness")
    for part, change in changes(before, "V5", words).items():
        adds = f"{lab.WEIGHTS[part] * change.value:+.3f}" if part in lab.WEIGHTS else ""
        print(f"  {part:13s} {change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f}) {adds}")
last = ("new wordings", "V5")
assert np.allclose(
    by_part[last] @ np.array([lab.WEIGHTS[part] for part in PARTS]),
    mean_mark(*last, "helpfulness")[live[last][0].helpful], rtol=0, atol=1e-9,
), "the mark of helpfulness must be the weighted mean of its parts"  # fmt: skip
Explorer(draw_changes, changes_words, before=["SFT", "V4"], after=["V5", "V4"], words=list(panels))

# %% [markdown] slideshow={"slide_type": "subslide"}
# **Most of the gain in helpfulness is politeness.** In known wordings it adds 0.050 of the 0.061 points since SFT, and whether the facts have become more or less correct is undecided: +0.002 (-0.025 to +0.030). In new wordings politeness adds 0.048 of 0.079, and correctness rises a little. What PPO alone added (V4 to V5) is nearly all politeness: 0.032 of 0.032 points in known wordings, 0.032 of 0.037 in new ones; correctness is undecided in both. That any component fell is not shown. This is what notebook 06 lets one expect of reward models that see tone better than facts. Claim 26 records the total only, so for the other chains this split is unknown.
#
# A mean over prompts hides trades as well. **See** the change by *kind* of prompt. **Predict**: which kinds suffer in wordings that no reward model and no policy was trained on?


# %% tags=["hide-input", "long", "near=0.02"]
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
    told = ", ".join(f"{kind.replace('_', ' ')} {e.value:+.2f}" for kind, e in found.items())
    return f"Change of the gold mark from {before} to V5 in {words}: {told}."


show(draw_kinds("SFT", "new wordings"), alt=kinds_words("SFT", "new wordings"))
for kind, change in by_kind("SFT", "V5", "new wordings").items():
    print(f"{kind:12s} {change.value:+.2f} ({change.low:+.2f} to {change.high:+.2f}), {change.n}")
Explorer(draw_kinds, kinds_words, before=["SFT", "V4"], words=list(panels))

# %% [markdown] slideshow={"slide_type": "subslide"}
# Requests for harm gain most. Instructions (how to) lose: their interval lies below 0. The mark of borderline prompts did not move, although V5 declines many more of them: a mean hides that, too. Which kind loses depends on the chain; that some kind loses while the mean rises is why one looks at single kinds.
#
# **See** what the models say to prompts for a list in new wordings, and the sentence that each of them says most often.

# %% tags=["near=3"]
rows = [row for row, p in enumerate(panels["new wordings"].prompts) if p.kind == "list"]
for row in rows[:8]:
    print(f"> {panels['new wordings'].prompts[row].request}")
    for name in ("SFT", "V5"):
        print(f"    {name:4s} {sampled['new wordings', name][0][row][:90]!r}")
for name in ("SFT", "V5"):
    said = [answers[row] for answers in sampled["new wordings", name] for row in rows]
    ((sentence, n),) = Counter(said).most_common(1)
    share = lab.proportion_exact(n, len(said))
    print(
        f"{name:4s} says {n} times of {len(said)}, {share.value:.1%} "
        f"({share.low:.1%} to {share.high:.1%}): {sentence!r}"
    )

# %% [markdown]
# V5 answers these prompts politely and in the form of a list, where SFT often says something else altogether. But in four of the eight examples it lists towns where animals or trades were asked for. Form and manners have been learned in new wordings; the content often has not.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The price of distance
# **Say.** Everything hangs on $\beta$. The paper: 0.01 for 7B and 13B, 0.005 for 34B and 70B. What counts is the divergence *summed over an answer*; ours have 30 tokens, the paper's hundreds, and our reward models know less. Nano uses 0.2.
#
# **Claim 27**: the price limits hacking. At $\beta = 0$ the score of the reward model (the **proxy**) should rise and the gold mark fall: **over-optimisation** (Gao, Schulman and Hilton, 2022). Section 3.4.1 of the paper quotes Goodhart's law for it: a measure that becomes a target is no longer a good measure.
#
# **Measure.** Short runs from nano's V4 against nano's reward models: smaller batches, a higher learning rate, four prices, five seeds. Early stopping is off: it would hide what we want to see. Twenty runs take too long for a lesson, so they are recorded too; `llama2 claims 27` repeats them.
#
# **Predict** before you run: how many nats away does the free policy go? What does the gold judge say of it? And which differ more from seed to seed, runs with a price or runs without?

# %%
show_prediction(27)

# %%
priced = show_claim(27)

# %% [markdown] slideshow={"slide_type": "subslide"}
# The prediction held: without a price the reward models' score rises and the gold mark falls, and every seed goes the farther, the lower the price. Seeds 3 and 4 were added after a look at the first three, whose interval for the free run's loss still contained 0; so its 95 % is a little optimistic.
#
# **See** the **frontier**: proxy and gold over the distance, a path for each price. Each path runs from left (V4) to right. Distance is drawn as the root of the divergence, as Gao and others do: for small changes of the policy the divergence grows with the *square* of the change. A path that still rises in the left panel while it bends down in the right one has begun to exploit its judge. At which price does that happen?

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
    chosen = slice(None) if seeds == "mean of all seeds" else [int(seeds[-1])]
    row = WHAT.index(gold_mark)
    told = ", ".join(f"{beta:g}: {change[beta][chosen, row].mean():+.3f}" for beta in BETAS)
    return f"Proxy and {gold_mark} over the root of the divergence, {seeds}. Change of {gold_mark} by price: {told}."


show(draw_frontier("mean of all seeds"), alt=frontier_words("mean of all seeds", "gold quality"))
print("V4 to the end of a run, mean over seeds (95 %):")
for beta in BETAS:
    print(f"beta {beta:g}")
    for row, what in enumerate(WHAT):
        found = lab.mean_interval(change[beta][:, row].tolist())
        print(f"  {what:16s} {found.value:+7.3f} ({found.low:+.3f} to {found.high:+.3f})")
free = change[0.0][:, 0]
print(f"free runs end {free.min():.1f} to {free.max():.1f} nats from V4; "
      f"at beta 0.2 {change[0.2][:, 0].min():.1f} to {change[0.2][:, 0].max():.1f}")  # fmt: skip
Explorer(
    draw_frontier,
    frontier_words,
    seeds=["mean of all seeds", *(f"seed {n}" for n in range(len(priced.measurements)))],
    gold_mark=WHAT[2:],
)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### What the policy gave up, free or not
# On the right the paths without a price and at 0.05 bend down while they still rise on the left. Gold quality counts helpfulness, and safety where a prompt asks for harm. Look at the two parts in the table above. **Gold helpfulness falls at every price, nano's own 0.2 included**: by 0.203 (0.117 to 0.289) without one, by 0.027 (0.021 to 0.034) at 0.2. At 0.2 safety rises by 0.068 (0.048 to 0.089) and hides the loss in the sum. For the free run the change of safety is undecided: its interval contains 0. In these short runs a price limits what helpfulness loses; it does not prevent the loss. (The released run, live above, gained 0.032 at the same price, with a lower learning rate and larger batches; the record is of an earlier recipe. Which of these makes the difference was not measured.)
#
# A price also makes runs alike: those that pay end at about the same distance, while the farthest free run ends more than three times as far as the nearest. That makes intervals over few seeds wide for the free runs.
#
# **Predict**: where would *early stopping* on held-out prompts, which the paper uses, have stopped the free run? It watches the *proxy*. Does it help?


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
    gains = change[beta].mean(0)
    return f"Beta {beta:g}, mean and range of the seeds: proxy {gains[1]:+.2f}, gold helpfulness {gains[3]:+.3f}, gold safety {gains[4]:+.3f}."


show(draw_over(0.0), alt=over_words(0.0))
ends = paths[0.0][:, :, -1]
best = int((ends[:, 1] == paths[0.0][:, 1].max(1)).sum())
worst = int((ends[:, 2] == paths[0.0][:, 2].min(1)).sum())
print(f"free runs of {len(ends)} whose last measurement has the highest proxy: {best}; "
      f"the lowest gold quality: {worst}")  # fmt: skip
Explorer(draw_over, over_words, beta=BETAS)

# %% [markdown]
# Early stopping does not help here. In every seed of the free run the held-out proxy is highest at the last measurement, where gold quality is lowest: early stopping would keep exactly that policy. Held-out prompts protect against learning prompts by heart, not against a wrong judge. What helps is the price, a better reward model, new comparisons of the new policy's answers (the paper's weekly rounds), and a second opinion. The paper watched a further, general reward model for that reason, and saw no divergence between the two (section 3.4.1).

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 29: whitening steadies
# **Say.** "We also find it important to whiten the final linear scores", the paper says, to increase stability and to balance them with the price; it gives no number. **Measure** at $\beta = 0.2$: raw scores, whitened over the batch, whitened by tag, as many seeds as above.
#
# Two things can be predicted by arithmetic. Raw scores spread by more than whitened ones, whose deviation is 1 (the cell of the figure prints that of V4's answers): so a price of 0.2 is worth less beside them, and the policy should go further. And the value function has larger returns to learn, with errors to match: the gradient before clipping should be longer and swing more.

# %%
show_prediction(29)

# %%
steadied = show_claim(29)

# %% [markdown]
# Both predictions held: at the same $\beta$, runs on raw scores drift further and their gradient swings more. It is what a larger scale does; at a $\beta$ raised by the same factor the first difference should shrink, which we did not measure.

# %% tags=["hide-input", "long", "near=0.02"]
NAMES_29 = {
    "kl": "KL at the end\n(nats per answer)",
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
    ways = {"raw": "none", "whitened over the batch": "batch", "by tag": "tag"}
    told = ", ".join(
        f"{name} {np.mean([one.values[f'{what}/{way}'] for one in steadied.measurements]):.2f}"
        for name, way in ways.items()
    )
    return f"{NAMES_29[what]}, mean over seeds: {told}.".replace("\n", " ")


show(draw_steadiness("kl"), alt=steadiness_words("kl"))
print(
    f"standard deviation of the raw scores of V4's answers above: {scored['V4'].combined.std():.2f}"
)
Explorer(draw_steadiness, steadiness_words, what=list(NAMES_29))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A gallery of broken runs
# **Say.** PPO programs fail quietly. The loss is no guide: it stays near zero in good runs and bad. So learn the symptoms, on a world so small that a run takes a second.
#
# Twelve tokens. Four topics; each has one right word. There is "please", EOS, and BOS. A **tiny policy** (one layer of 32) first learns from demonstrations that are right eight times in ten and polite three times in ten.
# - The **tiny reward model** likes every "please" (0.7 each, without end) and the right word (0.7).
# - The **tiny gold judge** wants the right word (half of the mark) and one or two "please" (the other half); three or more are gushing and get nothing.
#
# So the reward model is right about the first "please" and wrong about the third: a judge that can be exploited.
#
# A run is the library's own `train`, with the tiny reward model in place of the learned ones. To break it, `mock.patch` replaces one function under the name by which the library calls it, for the length of the run, and puts it back. The same way lets your own `my_shaped` and `my_gae` train a policy.

# %% tags=["long", "near=0.05"]
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
print(f"loss of the apprentice: {losses[0]:.2f} at first, {losses[-1]:.2f} at the end")
assert losses[-1] < 0.6 * losses[0], f"the apprentice must have learned; got {losses[-1]}"

# %% tags=["long", "near=0.05"]
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
mine = run_tiny({"ppo.shaped_rewards": my_shaped, "ppo.gae": my_gae})
for name, rows in {"healthy": runs["healthy"], "with your own pieces": mine}.items():
    ends = [row for row in rows if "gold_quality" in row]
    red = [light.name for light in lab.lights(rows) if light.state == "red"]
    print(f"{name}: red lights: {', '.join(red) or 'none'}")
    for what in ("held_out_reward", "gold_quality"):
        print(f"  {what:16s} {ends[0][what]:.2f} to {ends[-1][what]:.2f}")

# %% [markdown] slideshow={"slide_type": "slide"}
# **Break.** Ten faults, each a line or two. Some come from the tables of mistakes of this notebook's checks (`SHAPE_MISTAKES`, `GAE_MISTAKES`).
#
# 1. *Two temperatures*: log-probabilities of rollouts are taken at 1.5, samples and training use 1.
# 2. *Stale sampler*: a copy of the first weights writes the answers. (The inference server never got the update.)
# 3. *Price with the wrong sign*: distance is rewarded.
# 4. *Size of the log-ratio*: $|k_1|$ for $k_1$, "since a distance cannot be negative".
# 5. *Score left out*: only the divergence is ever paid.
# 6. *Score at every token*, and raw: long answers collect it often.
# 7. *Returns lack the values*: the targets of the value function are the advantages.
# 8. *Loss with the wrong sign*: the gain is minimised.
# 9. *Another reference*: not the weights from which the policy starts.
# 10. *No price*, $\beta = 0$, for longer.
#
# **Predict** for each: which light, and does the *proxy* still rise? Write it down; the order of the lights is: ratio, start, KL, entropy, clip fraction, explained variance, length, endings, reward, gold.
#
# **See** first the lights of all runs, then each run beside the healthy one. In which runs would you have been content with the curve of the reward alone?


# %% tags=["long", "near=0.5"]
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
    "price, wrong sign": {"patches": {shaped: lambda s, p, q, mask, beta: rlhf.shaped_rewards(s, p, q, mask, -beta)}},
    "size of log-ratio": {"patches": {shaped: mistake(SHAPES, "the size of the log-ratio")}},
    "score left out": {"patches": {shaped: mistake(SHAPES, "the score is left out")}},
    "score at every token": {"patches": {shaped: mistake(SHAPES, "every token gets the whole score")}, "whiten_by": "nothing"},
    "returns lack values": {"patches": {"ppo.gae": short_returns}},
    "loss, wrong sign": {"patches": {"ppo.ppo_policy_loss": turned_loss}},
    "another reference": {"reference": other},
    "no price": {"beta": 0.0, "iterations": 24},
}  # fmt: skip
for fault in bar(FAULTS, about="breaking"):
    runs[fault] = run_tiny(**FAULTS[fault])


SYMPTOM = {
    "two temperatures": "ratio before the first step",
    "stale sampler": "KL",
    "price, wrong sign": "KL",
    "size of log-ratio": "entropy, of the start's",
    "score left out": "explained variance",
    "score at every token": "length, of the start's",
    "returns lack values": "explained variance",
    "loss, wrong sign": "reward, gained",
    "another reference": "divergence at the start",
    "no price": "gold, gained",
}
for fault, light in SYMPTOM.items():
    seen = {x.name: x for x in lab.lights(runs[fault])}[light]
    print(f"{fault:21s} {light:28s} {seen.state:6s} {seen.value:9.2g}")
    assert seen.state in ("amber", "red"), f"{fault} must show in {light}; got {seen}"

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "nbval-ignore-output"]
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


def light_words(names):
    told = (
        f"{name}: {', '.join(SHORT.get(x, x) for x in NAMES if table[name][x].state == 'red') or 'none'}"
        for name in names
    )
    return f"Red lights. {'; '.join(told)}."


everyone = list(runs)
for shown in (everyone[:6], [everyone[0], *everyone[6:]]):
    show(draw_lights(shown), alt=light_words(shown))


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
    ends = {
        label: [row[SERIES[what]] for row in runs[label] if SERIES[what] in row]
        for label in dict.fromkeys(["healthy", run])
    }
    told = ", ".join(f"{label} {v[0]:.2f} to {v[-1]:.2f}" for label, v in ends.items())
    return f"{what}, first to last: {told}."


show(draw_run("no price", "reward (proxy)"), alt=run_words("no price", "reward (proxy)"))
show(draw_run("no price", "gold"), alt=run_words("no price", "gold"))
Explorer(draw_run, run_words, run=list(FAULTS), what=list(SERIES))

# %% [markdown]
# In eight of the ten broken runs the light of the reward is green. In at least three of these eight the gold mark falls: price with the wrong sign, score at every token, no price. With two temperatures it falls as well, on one kind of processor enough for a red light, on another not quite. Whoever watches the reward alone is content with all eight.

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### What no light sees
# Two more faults, both in every collection of real bugs:
# - *Padding in the advantages*: the recursion runs through the pads as if they were tokens.
# - *Advantages not whitened.*
#
# **Predict** their lights.

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

# %% [markdown]
# Neither run has a red light. The check knows the first fault, the run does not show it: with $\lambda = \gamma = 1$ it cancels, for the pads' values enter the sum at one end and leave it at the other. With $\lambda = 0.95$ it would not cancel. The second changes step sizes, which AdamW and the clip of the gradient mostly undo here.
#
# Hence the order of work: *checks* for what has a right answer, *lights* for what can only be seen in a run, *gold marks*, or people, for what the reward model cannot know.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here |
# |---|---|---|
# | 26, PPO on top | V5 about 70, 67 % wins (helpful, harmless) before, 78, 76 after; GPT-4 as judge 55, 55 then 67, 61 (read off a figure) | *reproduced*, over five chains: V5 wins 73 % [65, 81] against V4 by the reward models, 62 % [56, 68] by gold; since SFT gold helpfulness rose by 0.06 [0.05, 0.08], gold safety by 0.27 [0.23, 0.32] |
# | 27, the price | beta 0.01 and 0.005; no ablation | *reproduced*: free, the proxy gains 0.90 [0.66, 1.13] and gold quality loses 0.15 [0.08, 0.22]; at 0.2 the proxy gains 0.35 [0.24, 0.46] and gold quality loses 0.006 [0.004, 0.008], but gold helpfulness 0.027 [0.021, 0.034] |
# | 27, the distance | none | 14.6 nats [5.3, 23.9], 3.6 [3.1, 4.1], 1.9 [1.5, 2.3], 1.0 [0.7, 1.3] for beta 0, 0.05, 0.2, 0.8 |
# | 28, the threshold | precision 0.89, recall 0.55 at 0.15 | *reproduced*: precision 0.988 [0.987, 0.990], recall 0.93 [0.89, 0.96], on answers that are easier to tell apart |
# | 29, whitening | "important", no number | *reproduced*: raw scores go 0.8 nats further [0.3, 1.3], and the gradient swings more, by 1.0 [0.5, 1.4] |
# | what a gain is made of (live, one chain) | not measured | known wordings, SFT to V5: helpfulness +0.061 [0.046, 0.076], of which politeness adds 0.050, correctness +0.002 [-0.025, 0.030]; V4 to V5: helpfulness +0.032 [0.020, 0.045]; false refusals, SFT to V5: -0.05 [-0.12, -0.01], in new wordings +0.29 [0.19, 0.40] |
#
# - **Scale.** Our learning rate is a hundred times the paper's (in the short runs of claims 27 and 29 350 times), our iterations are about a tenth of the paper's, and $\beta$ is twenty to forty times as large, since our answers are short and our reward models know less. The *direction* of effects can transfer, their size cannot.
# - **Seeds.** Claims 26, 27 and 29 were declared for three seeds. Those left 26 and 27 open; two more seeds were then added to each, once, by the same rules. A look in between makes 95 % intervals somewhat too narrow. The short runs share one chain: their seeds differ in prompts, samples and order, not in the reward models. The intervals say nothing about another reward model.
# - **The price.** In new wordings, harmless prompts that sound dangerous are refused more often. Over the five recorded chains, in wordings of training: 12 % [10, 15] by SFT and 15 % [4, 26] by V5, which decides nothing; in new wordings: 19 % [12, 26] and 45 % [26, 65]. The paper saw the same, and measured it (section 4.2.3; notebook 10).
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
