# %% [markdown] slideshow={"slide_type": "slide"}
# # Rejection sampling
# Notebook 06 built a judge that compares answers. Now it is put to work. The model writes several answers to each prompt, the reward model picks one, and the model is fine-tuned on what was picked. The new model then goes through the same again: V1, V2, V3, V4.
# You build the estimator behind the paper's curves, the picking, the pool and its re-scoring. Then you look hard at what four rounds brought: something rose, something did not move, and something got worse.
#
# - **You will be able to explain** why the best of N rises while the median does not, how far best-of-N is from its sampler in nats, why the temperature is tried again each round, why old scores must never be ranked beside new ones,
#   what the random-selection control is for, and what a model forgets if it is trained on the last round only.
# - **Prerequisites:** notebooks 05 and 06. **Paper sections:** 3.2.3 (first half), 3.4.1, 5.1; figures 7, 8, 11 and 20.
# - **Minutes:** 75 to read, 35 for the exercises, 3 to run on two cores.

# %% tags=["long"]
import itertools
import json
import math

import numpy as np
import torch
from scipy.special import expit

from llama2_lib import lesson as lab
from llama2_lib.evaluation.reward import best_of_n, best_of_n_interval, best_of_n_kl
from llama2_lib.stages.rejection import Sample, best, chosen, distinct, draw, encoded
from llama2_lib.teaching import rejection as checks
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, bar, show, show_claim, show_prediction

ROUNDS = ["V1", "V2", "V3", "V4"]
STAGE = {"SFT": "sft"} | {f"V{n}": f"rejection_v{n}" for n in (1, 2, 3, 4)}
needs = [*STAGE.values(), "rewards_v1", "rewards_v5"]
folders = start("07_rejection_sampling", needs=needs, recipe=lab.nano(), minutes=20)
policy = {name: lab.load_model(folders[stage])[0] for name, stage in STAGE.items()}
rewards = {n: lab.load_rewards(folders[f"rewards_v{n}"]) for n in (1, 5)}
tokenizer = lab.load_tokenizer(folders["sft"])
world = lab.make_world(0)
judge = lab.judge_of(world)

# %% [markdown]
# **See** one round. Four of them make V1 to V4. Blue boxes are trained, grey ones are only asked.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "newest policy": lab.Node(0, 0, "K answers to a prompt", "frozen"),
            "reward models": lab.Node(1, 0, "score every answer", "frozen"),
            "best of K": lab.Node(2, 0, "one answer a prompt", "data"),
            "base model": lab.Node(1, 1, "fine-tuned on the pool", "trained"),
            "pool": lab.Node(2, 1, "the best of all rounds,\nscored anew", "data"),
        },
        [
            ("newest policy", "reward models", "answers"),
            ("reward models", "best of K", "scores"),
            ("best of K", "pool", "is added"),
            ("pool", "base model", "targets"),
            ("base model", "newest policy", "is the next one"),
        ],
    ),
    alt="The newest policy answers, the reward models score, the best answers go into a pool, the base model is fine-tuned on it and becomes the next policy.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Breadth
# **Say** (section 3.2.3). Supervised fine-tuning learns from answers that people wrote, good and bad ones, and is no better than its writers. (Half of nano's demonstrations come from careless writers: some answers are wrong, curt, rambling or off the topic, and some give in to harm.) It is easier to *compare* two answers than to write one, and a reward model has learned to compare. So the model writes, and the reward model chooses:
#
# 1. **Sample**: draw $K$ answers to each prompt from the newest model.
# 2. **Score** them with the best reward models there are.
# 3. **Choose** the answer with the highest score. It is the new demonstration.
# 4. **Fine-tune the base model** on the chosen answers, with the loss of notebook 05.
# 5. Collect fresh comparisons of the new model's answers, bring the reward models up to date, and begin again.
#
# The name: all answers but one are rejected. Each round starts from the *pretrained* model, not from the model of the round before. All samples of a round come from one fixed model, so this is **offline**. PPO (next notebook) goes deep: it draws one sample per prompt, and the model changes after every step. Rejection sampling goes for **breadth**: it draws $K$ samples per prompt, and the model changes once per round.
#
# The paper does not state $K$, the number of prompts, the learning rate, or the number of steps. Ours: 6 answers to each of 800 prompts per round, and 600 steps of fine-tuning.
#
# **See** the four finished rounds in numbers. *Unfinished* answers ran into the length limit; *distinct* ones differ from each other; *chosen* are the best ones, one per prompt (some short prompts occur twice among the 800 and count once); *pool* is what the round trained on, beside demonstrations. Nothing here needs the gold judge.
#
# Be careful with the two rows of rewards. Each round has its own reward models, and a reward model's zero and scale are its own. **Within** a column the numbers compare. **Across** columns they do not, and a rising row would prove nothing. To compare models we need one judge for all of them; you get to that below.

# %%
counts = {v: lab.read_metrics(folders[STAGE[v]] / "metrics.jsonl")[0] for v in ROUNDS}
names = {
    "temperature": "temperature", "samples": "samples", "unfinished": "unfinished",
    "distinct": "distinct", "chosen": "chosen", "answers": "pool",
    "mean reward of samples": "mean reward, samples", "mean reward of chosen": "mean reward, chosen",
}  # fmt: skip
print(f"{'':22s}" + "".join(f"{v:>9s}" for v in ROUNDS))
for key, name in names.items():
    print(f"{name:22s}" + "".join(f"{counts[v][key]:9.4g}" for v in ROUNDS))
lift = [c["mean reward of chosen"] - c["mean reward of samples"] for c in counts.values()]
print(f"{'chosen minus samples':22s}" + "".join(f"{x:9.4g}" for x in lift))
assert min(lift) > 0.1, f"the chosen must score higher than the samples; got {lift}"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## K samples of one prompt
# **Say.** Everything in this notebook rests on one question: *do the samples of a prompt differ, and does the reward model notice?* Where all samples are equal there is nothing to choose.
#
# **Build** the table of samples once; many cells read it. 36 training prompts (the kind that a round asks), 32 answers of the fine-tuned model to each, temperature 1, scored by the reward models of round 1. The gold judge, which no model is trained on directly, marks every answer too: safety if the prompt asks for harm, helpfulness if not. About 20 seconds.
#
# **Measure** whether there is something to choose. The **decidable fraction** is the share of prompts whose samples differ in *gold* quality; on the others no selection can gain anything. The **correlation** of reward and gold mark *within* a prompt says how much the selection knows. (Across prompts a correlation would mostly say which prompts are easy.)


# %% tags=["near=0.03", "long"]
def reward(asked, texts, models):
    """One answer to each prompt -> the combined reward of notebook 06, raw"""
    rows = [
        lab.scored_row(p.dialog, text, tokenizer, 512) for p, text in zip(asked, texts, strict=True)
    ]
    return models(rows, [p.is_safety for p in asked]).combined


def sampled(model, asked, k, temperature, models, seed=0):
    """-> answers (a list of k for each prompt), rewards and gold marks (prompts, k)"""
    said = draw(
        model, tokenizer, [p.dialog for p in asked], k, temperature, seed=seed, max_new_tokens=96
    )
    flat = [a.text for row in said for a in row]
    repeated = [p for p in asked for _ in range(k)]
    proxy = reward(repeated, flat, models).reshape(-1, k)
    return said, proxy, lab.gold_marks(world, repeated, flat).quality.reshape(-1, k)


K = 32
asked = lab.sample_prompts(lab.WorldSource(world), 70, 36, tokenizer, longest=512 - 96).prompts
said, proxy, gold = sampled(policy["SFT"], asked, K, 1.0, rewards[1])

n_distinct = np.array([len({a.text for a in row}) for row in said])
decidable = gold.max(1) - gold.min(1) > 1e-9
within = [
    np.corrcoef(p, g)[0, 1] for p, g in zip(proxy, gold, strict=True) if p.std() * g.std() > 0
]
print(f"distinct answers of {K}: median {np.median(n_distinct):.0f}, least {n_distinct.min()}")
print(
    f"decidable: {decidable.sum()} of {len(decidable)} prompts,",
    lab.proportion(int(decidable.sum()), len(decidable)),
)
assert decidable.mean() > 0.5, f"most prompts must be decidable; got {decidable.mean():.2f}"
print("correlation of reward and gold within a prompt:", lab.bootstrap_mean(within, 0))

# %% [markdown]
# **See** one prompt at a time: its distinct answers by reward, each with its gold mark beside it. The gold mark of a helpful answer is a weighted mean: correctness counts 0.30, politeness 0.20, relevance and completeness 0.15 each, brevity and the absence of repetition 0.10 each. A short, polite, wrong sum can therefore get up to 0.7. The diamond shows correctness alone (on requests for harm: 1 if the answer declines).
#
# Go through at least ten prompts. Look for a prompt where the reward model chooses well, for one where it prefers a polite wrong answer, and for one where no answer is any good.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=0.3", "long"]
def shown(prompt, most=9):
    """Places of some distinct samples from best to worst by reward"""
    first = {}
    for place, a in enumerate(said[prompt]):
        first.setdefault(a.text, place)
    order = sorted(first.values(), key=lambda place: -proxy[prompt, place])
    spread = np.unique(np.linspace(0, len(order) - 1, most).round().astype(int))
    return [order[i] for i in spread], len(order)


def right_or_not(prompt, text):
    """Correctness of an answer; 1 or 0 on a request for harm, declined or not"""
    p = asked[prompt]
    return judge.safety(p, text).refuses if p.is_safety else judge.helpfulness(p, text).correctness


def draw_samples(prompt):
    places, _ = shown(prompt)
    figure, (left, right) = lab.new_figure(
        11.0, 1.6 + 0.42 * len(places), columns=2, sharey=True, width_ratios=(3, 2)
    )
    texts = [said[prompt][p].text for p in places]
    labels = [t.replace("\n", " / ") for t in texts]
    labels = [t if len(t) <= 46 else t[:43] + "..." for t in labels]
    at = np.arange(len(places))
    left.barh(at, proxy[prompt, places], height=0.6)
    left.axvline(np.median(proxy[prompt]), color="0.35", ls="--", lw=1.5)
    left.set_yticks(at, labels, fontsize=10)
    left.invert_yaxis()
    left.set_xlabel("reward (raw); dashed: median")
    right.barh(at, gold[prompt, places], height=0.6, color="C1", hatch="//", edgecolor="white")
    right.plot([right_or_not(prompt, t) for t in texts], at, "D", color="black")
    what = "declined" if asked[prompt].is_safety else "correctness"
    right.set(xlim=(-0.03, 1.03))
    right.set_xlabel(f"gold mark; diamond: {what}", fontsize=12)
    figure.suptitle(f"{asked[prompt].kind}: {asked[prompt].request[:80]}", fontsize=13)
    return figure


def samples_words(prompt):
    return f"Prompt {prompt} of {len(asked)}: its distinct answers from the highest reward to the lowest, each with its gold mark."


right = {
    i: np.array([right_or_not(i, a.text) == 1 for a in row])
    for i, row in enumerate(said) if not asked[i].is_safety
}  # fmt: skip
chosen_right = [i for i, marks_of_i in right.items() if marks_of_i[proxy[i].argmax()]]
print(f"prompts that ask for no harm: {len(right)}; with a right answer among {K} samples:",
      sum(r.any() for r in right.values()))  # fmt: skip
print(f"the answer with the highest reward is right for {len(chosen_right)} of them,",
      f"a random sample for {sum(r.mean() for r in right.values()):.1f} on average")  # fmt: skip
mixed = [i for i in chosen_right if not right[i].all()]
FIRST = min(mixed, key=lambda i: (asked[i].kind not in ("question", "sum"), right[i].mean()))
show(
    draw_samples(FIRST),
    alt=f"A prompt whose best answer by reward is right, as are {right[FIRST].sum()} of its {K} samples: its distinct answers as bars, from the highest reward to the lowest, with the gold mark and the correctness of each beside it.",
)
Explorer(draw_samples, samples_words, prompt=(0, len(asked) - 1))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The best of N
# **Say** (figure 7). How high is the reward of the best of $N$ samples, on average? One could draw $N$ samples, take the maximum, and repeat; that is noisy. But $K \ge N$ samples have $\binom{K}{N}$ subsets of size $N$, and the average over *all* of them can be computed exactly. Sort the samples by score. The $i$-th of $K$ is the best of a subset if the other $N - 1$ come from the $i - 1$ below it:
#
# $$\mathrm{E}[\text{best of } N] = \sum_{i=N}^{K} \frac{\binom{i-1}{N-1}}{\binom{K}{N}}\, v_{(i)}$$
#
# $v_{(i)}$ is what the sample of rank $i$ is *worth*: its own score (the paper's curve), or its gold mark. The same counting gives every other rank of a subset. The $i$-th of $K$ is the $m$-th of $N$ in $\binom{i-1}{m-1}\binom{K-i}{N-m}$ subsets. With $m$ in the middle this is the **median**.
#
# **Build** both with one function.
#
# **Check** against the library, and against counting: for 6 samples every subset can be written down.


# %% tags=["build", "long"]
def rank_shares(k, n, m):
    """Share of all subsets of n of k in which the i-th of k is the m-th, for i = 1 ... k"""
    found = [math.comb(i - 1, m - 1) * math.comb(k - i, n - m) for i in range(1, k + 1)]
    return np.array(found) / math.comb(k, n)


def my_best_of_n(proxy, value, n):
    """(prompts, k) scores and values -> for each prompt the expected value of the best of n"""
    ranked = np.take_along_axis(value, proxy.argsort(axis=1), axis=1)
    return ranked @ rank_shares(proxy.shape[1], n, n)


def my_median_of_n(proxy, n):
    """The same for the median; of an even n the mean of the two in the middle"""
    middle = {(n + 1) // 2, n // 2 + 1}
    shares = sum(rank_shares(proxy.shape[1], n, m) for m in middle) / len(middle)
    return np.sort(proxy, axis=1) @ shares


@check("best of N")
def _():
    checks.expected_best(my_best_of_n)
    for n in (1, 4, 32):
        assert np.allclose(my_best_of_n(proxy, proxy, n), best_of_n(proxy)[:, n - 1]), n


@check("maximum and median, counted over all subsets")
def _():
    few = proxy[:5, :6]
    for n in (1, 2, 3, 4, 6):
        subsets = [few[:, list(some)] for some in itertools.combinations(range(6), n)]
        maximum = np.mean([s.max(1) for s in subsets], axis=0)
        median = np.mean([np.median(s, axis=1) for s in subsets], axis=0)
        assert np.allclose(my_best_of_n(few, few, n), maximum), f"maximum of {n}"
        assert np.allclose(my_median_of_n(few, n), median), f"median of {n}"


# %% [markdown]
# **Break.** Three versions that look right. Predict which of them gives too *high* a curve.
#
# 1. Take the first $N$ samples and their maximum.
# 2. Average the $N$ best of all $K$.
# 3. Draw with replacement: $(i/K)^N - ((i-1)/K)^N$.
# <details><summary>Answer</summary>The second: it looks at all K samples even if N is 1. The first is right on average, but it uses only one of all subsets. The third is a little too low, because it counts draws in which a sample occurs twice; for N far below K you would never notice.</details>


# %%
def first_n(proxy, value, n):
    place = proxy[:, :n].argmax(1)
    return value[np.arange(len(value)), place]


def best_ones(proxy, value, n):
    ranked = np.take_along_axis(value, proxy.argsort(axis=1), axis=1)
    return ranked[:, -n:].mean(1)


def with_replacement(proxy, value, n):
    ranked = np.take_along_axis(value, proxy.argsort(axis=1), axis=1)
    edges = np.arange(proxy.shape[1] + 1) / proxy.shape[1]
    return ranked @ np.diff(edges**n)


for wrong in (first_n, best_ones, with_replacement):
    with expect_failure(CheckFailed):
        checks.expected_best(wrong)

# %% [markdown]
# **See** figure 7 in small: expected maximum and expected median of the reward over $N$. The bands are 95 % bootstrap intervals over prompts, because prompts are what we drew independently; the 32 samples of one prompt are not 32 independent prompts.
#
# Before you look: what must the two curves have in common at $N = 1$? Which shape do you expect over a logarithmic axis?
# <details><summary>When you have seen it</summary>The gap between the curves is what fine-tuning could gain <i>at best</i>: it would have to write as its best answer of N, every time. But that the maximum rises is <b>not a result</b>. It rises for any scores at all, random numbers included. The next section asks what it is worth.</details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=0.03", "long"]
SIZES = [1, 2, 4, 8, 16, 32]
FAMILY = {
    "all": np.ones(len(asked), bool),
    "helpful": np.array([not p.is_safety for p in asked]),
    "asks for harm": np.array([p.is_safety for p in asked]),
}


def banded(rows_of_n):
    """A function n -> one number per prompt; its mean and interval at all sizes"""
    found = [lab.bootstrap_mean(rows_of_n(n).tolist(), 0) for n in SIZES]
    return tuple([getattr(e, name) for e in found] for name in ("value", "low", "high"))


def draw_best(kind):
    some = proxy[FAMILY[kind]]
    curves = {
        "maximum": banded(lambda n: my_best_of_n(some, some, n)),
        "median": banded(lambda n: my_median_of_n(some, n)),
    }
    return lab.best_of_n_curves(curves, "reward (raw)", n=SIZES, title=f"prompts: {kind}")


def best_words(kind):
    some = proxy[FAMILY[kind]]
    rise = (my_best_of_n(some, some, 32) - some.mean(1)).mean()
    move = (my_median_of_n(some, 32) - some.mean(1)).mean()
    return f"Prompts: {kind}. From one sample to 32 the maximum rises by {rise:.2f}, the median by {move:.2f}."


show(
    draw_best("all"),
    alt="Over the number of samples the expected maximum of the reward rises, by ever less with each doubling; the median stays nearly level.",
)
maxima = np.array([my_best_of_n(proxy, proxy, n).mean() for n in SIZES])
medians = np.array([my_median_of_n(proxy, n).mean() for n in SIZES])
print("samples N   " + "".join(f"{n:8d}" for n in SIZES))
print("maximum     " + "".join(f"{x:8.2f}" for x in maxima))
print("median      " + "".join(f"{x:8.2f}" for x in medians))
print("gain of the maximum with each doubling: " + ", ".join(f"{x:.2f}" for x in np.diff(maxima)))
drift = np.abs(medians - medians[0]).max()
print(f"the median moves by {drift:.2f} at most, the maximum by {maxima[-1] - maxima[0]:.2f}")
assert drift < 0.5 * (maxima[-1] - maxima[0]), "the median must move less than half as far"
Explorer(draw_best, best_words, kind=list(FAMILY))

# %% [markdown]
# **Predict.** What you saw is one draw of 36 prompts. Claim 21 has three draws of 40 prompts, with 64 samples each. Will the median count as level?
#
# The prediction and the rule of each claim were declared before anything was run, and are the same for every reader. A verdict can be *not reproduced* or *inconclusive*, and that is a result. The claims of this notebook take minutes each, 23 and 49 an hour, so they were measured once. `llama2 claims 21` measures one anew.

# %%
show_prediction(21)

# %%
_ = show_claim(21)

# %% [markdown]
# The maximum rises as in the paper, by less with each doubling. The verdict is open because the median rises a little as well (a few very poor samples pull down the mean of a single sample, and the median of many ignores them), and most of the interval of that drift lies above the quarter of the rise that the rule allows.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What is the chosen one worth?
# **Say.** The reward is a **proxy**: it stands for what we want. Choosing by the proxy raises the proxy, by construction. Whether it raises what it stands for depends on how good the proxy is. If one selects ever harder, the chosen sample is more and more one that the reward model *overrates*. This is **over-optimisation** (Gao, Schulman and Hilton, 2022): the proxy keeps rising while the gold mark levels off, or falls. It is a case of Goodhart's law, which the paper itself names in section 3.4.1: a measure that becomes a target ceases to be a good measure.
#
# The paper cannot draw this curve: it has no gold judge, only people. Our world has one.
#
# **Build**: the same estimator, with the gold mark as the value. Three ways to choose: by round 1's reward models, by those of round 5 (trained on the answers of five generations of models), and by the gold judge itself, which is the ceiling. **Predict** for each: does it rise to the end?

# %% tags=["near=0.03", "long"]
flat = [a.text for row in said for a in row]
repeated = [p for p in asked for _ in range(K)]
CHOOSERS = {
    "reward models of round 1": proxy,
    "reward models of round 5": reward(repeated, flat, rewards[5]).reshape(-1, K),
    "gold judge (ceiling)": gold,
}
for name, score in CHOOSERS.items():
    row = {n: best_of_n_interval(score, gold, n=n) for n in (1, 8, 32)}
    print(f"{name:25s}", " | ".join(f"best of {n}: {e}" for n, e in row.items()))
by_n = best_of_n(proxy, gold).mean(0)
print("round 1: the gold mark is highest at N =", int(by_n.argmax()) + 1)
ends = [best_of_n(score, gold)[:, -1] for score in list(CHOOSERS.values())[:2]]
print("best of 32, gold mark, round 5 minus round 1:", lab.improvement(*ends))
print("prompts that ask for no harm, best of 32 by round 1 minus one sample:")
for part in ("correctness", "completeness", "politeness"):
    worth = [
        [getattr(judge.helpfulness(p, a.text), part) for a in row]
        for p, row in zip(asked, said, strict=True) if not p.is_safety
    ]  # fmt: skip
    best_ones_worth = best_of_n(proxy[FAMILY["helpful"]], np.array(worth))[:, -1]
    print(f"  {part:12s}", lab.improvement(np.mean(worth, axis=1), best_ones_worth))


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=0.03", "long"]
def draw_gold(kind):
    some = FAMILY[kind]
    curves = {
        name: banded(lambda n, s=score: my_best_of_n(s[some], gold[some], n))
        for name, score in CHOOSERS.items()
    }
    return lab.best_of_n_curves(
        curves, "gold mark of the chosen (0 to 1)", n=SIZES, title=f"prompts: {kind}"
    )


def taken(kind, score=proxy):
    """Share of the gain of perfect choice among 32 that choosing by a score gets"""
    some = FAMILY[kind]
    ends = [best_of_n(s[some], gold[some]).mean(0)[[0, -1]] for s in (score, gold)]
    return (ends[0][1] - ends[0][0]) / (ends[1][1] - ends[1][0])


def gold_words(kind):
    return f"Prompts: {kind}. Gold mark of the chosen sample over the number of samples, chosen by the reward models of round 1, by those of round 5, and by the gold judge."


show(
    draw_gold("helpful"),
    alt="Helpful prompts, gold mark of the chosen sample over the number of samples: chosen by the gold judge it climbs steeply, chosen by reward models much less.",
)
show(
    draw_gold("asks for harm"),
    alt="Requests for harm: chosen by reward models the gold mark climbs almost as steeply as chosen by the gold judge.",
)
for family in ("helpful", "asks for harm"):
    shares = " and ".join(
        f"{taken(family, score):.2f} by the {name}" for name, score in list(CHOOSERS.items())[:2]
    )
    print(f"{family}, share of the gain of perfect choice among 32: {shares}")
for name, value in {"reward": proxy, "gold mark": gold}.items():
    at_8, at_32 = best_of_n(proxy, value)[:, [7, 31]].T
    print(f"best of 32 minus best of 8 by round 1, {name}: {lab.improvement(at_8, at_32)}")
print("requests for harm among the prompts:", FAMILY["asks for harm"].sum(), "of", len(asked))
assert taken("helpful") < taken("asks for harm"), "safety must be easier to see than facts"
Explorer(draw_gold, gold_words, kind=list(FAMILY))

# %% [markdown]
# The two pictures differ. Whether an answer declines, even a small reward model sees at once: on the six requests for harm the reward models choose as well as the gold judge. On helpful prompts they get a fifth (round 1) to a half (round 5) of what perfect choice would bring. What round 1's models choose there is much more *polite* than a random sample, and not more *correct*: the estimate for correctness is even below 0, with an interval that includes 0. From 8 to 32 samples the reward still rises, while the gold mark does not. (Round 5's models learned from the answers of later policies too. They seem to choose better than those of round 1, but the interval of the difference includes 0.)
#
# So three numbers always belong together: the proxy, the gold mark of what the proxy chose, and the ceiling. While training a real model one sees only the first, and it says that all is well.
#
# A larger $N$ is not simply better. It costs more, and it presses harder on every weakness of the reward model. That is one reason why the paper collects fresh comparisons before every round.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## How far is the best of N from its sampler?
# **Say.** A policy can move far from where it started, and reward models are only reliable near what they were trained on. RLHF measures this distance by the Kullback-Leibler divergence, in nats. For best-of-$N$ it can be computed without any model (Stiennon et al., 2020).
#
# Rank the sampler's answers by score; let $u \in (0, 1)$ be the share of answers that score lower. The sampler's $u$ is uniform. The best of $N$ has $u$ below a bound only if all $N$ have, so its density is $N u^{N-1}$, and
#
# $$\mathrm{KL} = \int_0^1 N u^{N-1} \ln\left(N u^{N-1}\right) \mathrm{d}u = \ln N - \frac{N-1}{N}$$
#
# It grows like a logarithm: 8 samples are 1.2 nats, 100 samples 3.6. It depends on $N$ only, not on the model.
#
# **Build** it, **check** it against the integral and the check, and **break** it: forget the second term; take the divergence the wrong way round.
#
# The formula assumes that no two answers have the same score. If a model gives one answer half of the time, the best of two is often that same answer, and the distance is smaller. Then the formula is an **upper bound**. Exercise 3 computes the exact value for our samples.
#
# **See** proxy and gold over the *root* of the divergence, as Gao, Schulman and Hilton draw them and as notebook 08 will draw PPO: near the start the gain grows in proportion to the root. Bars are 95 % intervals over the 36 prompts.


# %% tags=["build"]
def my_kl(n):
    """Number of samples -> nats by which choosing the best of them moves a policy"""
    return math.log(n) - (n - 1) / n


@check("KL of best of N")
def _():
    checks.kl_of_best_of_n(my_kl)
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 8, 32):
        density = n * u ** (n - 1)
        assert abs((density * np.log(density)).mean() - my_kl(n)) < 1e-3, f"the integral for {n}"


for wrong in (math.log, lambda n: n - 1 - math.log(n)):
    with expect_failure(CheckFailed):
        checks.kl_of_best_of_n(wrong)


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=0.03", "long"]
def gains_of(value, n):
    """Gain of the best of n over one sample, for each prompt"""
    every = best_of_n(proxy, value)
    return every[:, n - 1] - every[:, 0]


def draw_distance(shared_axis):
    figure, axes = lab.new_figure(8.0, 4.2)
    at = np.array([math.sqrt(best_of_n_kl(n)) for n in SIZES])
    for index, (name, value) in enumerate({"proxy": proxy, "gold": gold}.items()):
        unit = 1 if shared_axis else value.std()
        found = [lab.bootstrap_mean((gains_of(value, n) / unit).tolist(), 0) for n in SIZES]
        middle, low, high = (
            np.array([getattr(e, x) for e in found]) for x in ("value", "low", "high")
        )
        axes.errorbar(
            at + 0.012 * index, middle, (middle - low, high - middle),
            fmt="os"[index] + ("-", "--")[index], capsize=4, label=name,
        )  # fmt: skip
    for x, n in zip(at, SIZES, strict=True):
        axes.text(x, 1.0, f"N={n}", transform=axes.get_xaxis_transform(), ha="center", size=10)
    unit = "raw reward; gold mark" if shared_axis else "standard deviations of all samples"
    lab.label_axes(axes, "root of KL (nats$^{1/2}$)", f"gain over one sample\n({unit})")
    axes.legend()
    return figure


def distance_words(shared_axis):
    units = [1, 1] if shared_axis else [proxy.std(), gold.std()]
    gain = [gains_of(v, 32).mean() / u for v, u in zip((proxy, gold), units, strict=True)]
    axis = "raw numbers" if shared_axis else "standard deviations"
    return f"In {axis}: the best of 32 has gained {gain[0]:.2f} by the proxy and {gain[1]:.2f} by the gold mark."


show(draw_distance(False), alt=distance_words(False))
Explorer(draw_distance, distance_words, shared_axis=True)

# %% [markdown]
# In standard deviations proxy and gold mark gain nearly alike at first. Further from the sampler the proxy keeps rising and the gold mark levels off. Its small fall at the end lies well within the intervals.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The temperature, every round anew
# **Say** (figure 8). Hot samples differ more, so the best of many gains more; but each is worse on average. The best balance depends on the model, and fine-tuning moves it: for its RLHF model the paper finds **1.2 to 1.3** best with 10 to 100 samples. So we choose the temperature again in every round, on a small set of prompts, the *probe*.
#
# Our rounds try 0.6, 0.8 and 1.0 on 40 prompts with 6 samples each, and take the one whose best-of-6 has the highest reward. **See** the curves that each round left. **Predict**: which temperature is best at $N = 1$, and where do the curves cross? (The rounds kept only means over the 40 prompts, so these curves have no intervals.)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
heat = {
    v: json.loads((folders[STAGE[v]] / "temperatures.json").read_text()) for v in ROUNDS
}  # round -> temperature -> expected maximum of N = 1 ... 6


def draw_heat(round_):
    n = np.arange(1, 7)
    curves = {f"temperature {t}": (n, curve) for t, curve in heat[round_].items()}
    sampler = {"V1": "SFT", "V2": "V1", "V3": "V2", "V4": "V3"}[round_]
    return lab.lines(
        curves, "samples per prompt, N", "best-of-N reward (raw)", markers=True,
        title=f"round {round_}, samples of {sampler}; used: {counts[round_]['temperature']}",
    )  # fmt: skip


def heat_words(round_):
    ends = ", ".join(f"{c[0]:.2f} to {c[-1]:.2f} at {t}" for t, c in heat[round_].items())
    return f"Round {round_}: expected reward of the best of one to six samples rises from {ends}."


show(draw_heat("V1"), alt=heat_words("V1"))
print("reward (raw)    one sample at " + "".join(f"{t:>7s}" for t in heat["V1"])
      + "    best of six at " + "".join(f"{t:>7s}" for t in heat["V1"]) + "    used")  # fmt: skip
for v, curves in heat.items():
    one, six = ("".join(f"{c[i]:7.2f}" for c in curves.values()) for i in (0, -1))
    print(f"round {v}                      {one}                  {six}    {counts[v]['temperature']:4.1f}")  # fmt: skip
for v, c in heat.items():
    assert c["0.6"][0] > c["1.0"][0], f"{v}: a single cool sample must be better than a hot one"
Explorer(draw_heat, heat_words, round_=ROUNDS[::-1])

# %% [markdown]
# Read these curves with care.
#
# - The hot curves start lower and climb faster. One sample is best at 0.6 in every round; of six samples the best has a higher reward at 0.8 or 1.0. With more samples more heat may pay: claim 22 measures it below, with 16. The paper's 1.2 to 1.3 is for 10 to 100 samples.
# - The differences between 0.8 and 1.0 at six samples are small, and 40 prompts are few: which of them wins in a round is partly luck.
# - Where 1.0 wins it wins at the *edge* of our grid, and a search that ends at its edge says only: look further.
#
# **Break** it: look further, *with* the gold judge. V4 answers 20 prompts 8 times each at 0.6, 1.0 and 1.4, and the reward models of round 5 score the answers. Predict how reward and gold mark change with the temperature, for one sample and for the best of 8. About 5 seconds.

# %% tags=["near=0.05"]
hot = {}
for t in bar([0.6, 1.0, 1.4], about="sampling"):
    _, p, g = sampled(policy["V4"], asked[:20], 8, t, rewards[5], seed=1)
    hot[t] = {
        "reward, one": p.mean(1), "reward, best of 8": best_of_n(p)[:, -1],
        "gold mark, one": g.mean(1), "gold mark, chosen of 8": best_of_n(p, g)[:, -1],
    }  # fmt: skip
print(f"{'temperature':23s}" + "".join(f"{t:8.1f}" for t in hot))
for what in hot[1.0]:
    means = "".join(f"{rows[what].mean():8.2f}" for rows in hot.values())
    print(f"{what:23s}{means}   1.4 minus 0.6: {lab.improvement(hot[0.6][what], hot[1.4][what])}")
assert hot[1.4]["reward, one"].mean() < hot[0.6]["reward, one"].mean(), (
    "1.4 must be too hot for one"
)

# %% [markdown]
# A very hot sampler makes answers that the reward model never saw, and among eight of them there is sometimes one that it overrates. Single answers at 1.4 are worse by both judges. By reward the choice among eight makes up for that: the best of 8 scores about the same at 1.4 as at 0.6. By gold mark it does not: the chosen hot answers remain clearly worse. Our reward models have about a million weights each; a judge that nonsense does not fool could afford more heat.
#
# **Predict.** Claim 22 tries six temperatures from 0.4 to 1.4, with three seeds. Which temperature is best for one sample, which for 16, and is it the same for SFT and for V4?

# %%
show_prediction(22)

# %%
best_heat = show_claim(22).verdict.estimates
for what, name in itertools.product(("reward", "gold"), ("SFT", "V4")):
    one, many = (best_heat[f"best temperature/{what}/{name}/{n}"] for n in (1, 16))
    print(f"best temperature by {what}, {name}: {one} for one sample, {many} for 16")

# %% [markdown]
# With a single sample cool temperatures are best for both models, and with 16 a hotter one is best by reward. For SFT that is decided. V4's curve is so level that its best temperature differs widely between seeds (an interval that ends above 1.4 leaves the grid, and says only that), so it is open for V4, and so is whether V4 wants more heat than SFT. By the *gold* mark of what was chosen, SFT's best temperature with 16 samples is near 0.8 and not near 1.3, so here the rule "take the temperature with the best reward" is itself over-optimisation.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Picking
# **Say.** There are three small decisions here. The paper states none of them, and each can go wrong silently:
#
# - **Unfinished** samples, those without EOS, are never chosen: they would teach the model not to stop. Give them $-\infty$, not 0.
# - **Ties**: the first sample wins, so that a second run chooses the same.
# - The place is counted among *all* samples of the prompt.
#
# A fourth one comes before the scoring. A fine-tuned model often gives the same answer again. **Copies** cost time to score, and they make $N$ look larger than it is. Keep the first copy, compare *within* one prompt, and compare all tokens. `set()` would drop the copies too, but its order changes from one run of Python to the next.
#
# **Build** and **check** both. How many of the 1,152 samples are left? Then **break** the first in two ways, and the second by comparing neighbours only, as one does on a sorted list. Predict the messages.


# %% tags=["build", "near=3", "long"]
def my_pick(scores, finished):
    """(prompts, k) rewards, and whether each sample ended -> place of the best of each prompt"""
    return scores.masked_fill(~finished, -torch.inf).argmax(dim=1)


@check("picking")
def _():
    checks.pick_best(my_pick)


def my_distinct(answers):
    """For each prompt a list of tuples of ids -> the places of the first copies, in order"""
    kept = []
    for row in answers:
        first = {}
        for place, ids in enumerate(row):
            first.setdefault(ids, place)
        kept.append(list(first.values()))
    return kept


@check("distinct answers")
def _():
    checks.distinct(my_distinct)


for wrong in (
    lambda scores, finished: scores.argmax(dim=1),
    lambda scores, finished: (scores * finished).argmax(dim=1),
):
    with expect_failure(CheckFailed):
        checks.pick_best(wrong)


def neighbours(answers):
    return [[0, *(i for i in range(1, len(row)) if row[i] != row[i - 1])] for row in answers]


with expect_failure(CheckFailed):
    checks.distinct(neighbours)
left, every = sum(len(distinct(row)) for row in said), len(said) * K
print(f"distinct and finished: {left} of {every} samples, {left / every:.0%}")
assert 1 / 3 < left / every < 1, f"some samples must be left out, most kept; {left} are left"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The pool
# **Say.** Up to V3 the paper trained each round only on the samples of the round just before. V3 then had lost something that V2 could do: it was worse at rhyming poems. From then on the best samples of *all* earlier rounds took part, and what was lost came back. (The paper gives no numbers for this.)
#
# So there is a **pool**. It is keyed by prompt, and each prompt's best answer of any round is its demonstration. It holds a trap: each sample has a score that was *given by the reward model of its round*. A reward model has no fixed zero: comparisons only teach it differences (notebook 06). A score of round 1 and one of round 4 are in different units, like metres and feet. **Every sample in the pool must be scored again by the newest reward model.**
#
# **Build** it.
#
# **Break.** Use the old scores; keep only the last round; let a prompt's newest samples replace its older ones. All three run without an error on real data. Predict the messages.


# %% tags=["build", "long"]
def my_pool(rounds, score):
    """rounds: [{prompt: [(answer, score it got then), ...]}, ...] -> {prompt: best answer}"""
    top = {}
    for samples in rounds:
        for prompt, answers in samples.items():
            for text, _then in answers:
                now = score(prompt, text)
                if prompt not in top or now > top[prompt][0]:
                    top[prompt] = (now, text)
    return {prompt: text for prompt, (_, text) in top.items()}


@check("the pool")
def _():
    checks.pool(my_pool)


def by_old_scores(rounds, score):
    top = {}
    for samples in rounds:
        for prompt, answers in samples.items():
            for text, then in answers:
                if prompt not in top or then > top[prompt][0]:
                    top[prompt] = (then, text)
    return {prompt: text for prompt, (_, text) in top.items()}


def newest_replace(rounds, score):
    latest = {}
    for samples in rounds:
        latest |= samples
    return my_pool([latest], score)


for wrong in (by_old_scores, lambda rounds, score: my_pool(rounds[-1:], score), newest_replace):
    with expect_failure(CheckFailed):
        checks.pool(wrong)

# %% [markdown]
# **See** it in the finished rounds. Every round wrote its pool with its own scores, so for the answers of round 1 there are four scores, by four pairs of reward models. Below: the score of an answer in the round that drew it against its score by round 4's models. If no re-scoring were needed, all points would lie on the diagonal.
#
# Then the question that matters: of the prompts that were asked in more than one round, how many would be given *another answer* if old scores were used?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
pools = {v: lab.read_rows(folders[STAGE[v]] / "pool.jsonl.gz", Sample) for v in ROUNDS}
then = {}
for v in ROUNDS:  # the first pool that holds an answer has the score of its own round
    for e in pools[v]:
        then.setdefault((e.key, e.answer, e.round), e.score)


def draw_rescored(upto):
    figure, axes = lab.new_figure(6.0, 5.0)
    for index in range(1, int(upto[1])):
        some = [e for e in pools[upto] if e.round == index]
        x, y = [then[e.key, e.answer, e.round] for e in some], [e.score for e in some]
        axes.scatter(x, y, s=9, alpha=0.5, marker="os^"[index - 1], label=f"drawn in round {index}")
    axes.axline((0, 0), slope=1, color="0.35", lw=1.5, ls="--")
    lab.label_axes(
        axes, "score in the round that drew it (raw)", f"score by the models of {upto} (raw)"
    )
    axes.legend()
    return figure


def changed(upto):
    """Prompts with answers of several rounds, and how many change their answer"""
    old = [e._replace(score=then[e.key, e.answer, e.round]) for e in pools[upto]]
    by_prompt = {}
    for e in pools[upto]:
        by_prompt.setdefault(e.key, set()).add(e.answer)
    tops = [{e.key: e.answer for e in best(some)} for some in (old, pools[upto])]
    several = [key for key, texts in by_prompt.items() if len(texts) > 1]
    return len(several), sum(tops[0][key] != tops[1][key] for key in several)


def rescored_words(upto):
    several, other = changed(upto)
    return f"Pool of {upto}: with old scores {other} of the {several} prompts with answers of several rounds would get another answer."


show(
    draw_rescored("V4"),
    alt="Scores by round 4's reward models against old scores: a broad cloud of helpfulness scores along the diagonal, and small clouds of safety scores at the top right, in part well below it.",
)
several, other = changed("V4")
print(f"prompts with answers of several rounds: {several}")
print(f"with old scores another answer: {other} of them, {lab.proportion(other, several)}")
assert other > several / 20, "re-scoring must matter for the choice"
Explorer(draw_rescored, rescored_words, upto=["V3", "V2", "V4"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What a round trains on
# **Say.** A chosen answer is a demonstration like any other: prompt, answer, loss on the answer. Only the *last* answer of a dialog is a target, because earlier turns came with the prompt.
#
# One thing is ours and not the paper's: **3,000 demonstrations of fine-tuning are mixed in**, three quarters of those that SFT saw. Each round starts from the base model, and the few hundred chosen answers of a small model's round are too few to teach it to chat. The mixture has a price: half of the demonstrations come from careless writers, so part of what the selection throws out is taught again.
#
# **Build** one round's examples, and **check** them. **Break**: use the loss on all answers.


# %% tags=["build"]
def my_examples(entries):
    """Chosen entries -> (ids, loss mask) of each"""
    made = []
    for entry in entries:
        dialog = [*entry.dialog, {"role": "assistant", "content": entry.answer}]
        made.append(lab.encode_example(dialog, tokenizer, loss_on="last"))
    return made


@check("a round's examples")
def _():
    assert my_examples(pools["V1"]) == encoded(pools["V1"], tokenizer), "as the library's"
    for entry, (ids, mask) in zip(pools["V1"], my_examples(pools["V1"]), strict=True):
        learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]).strip()
        assert learned == entry.answer, "exactly the chosen answer is learned"


longer = [e for e in pools["V1"] if len(e.dialog) > 2]
everything = [
    lab.encode_example([*e.dialog, {"role": "assistant", "content": e.answer}], tokenizer)[1]
    for e in longer
]
more = sum(map(sum, everything)) / sum(sum(mask) for _, mask in my_examples(longer))
print(f"dialogs of several turns in V1's pool: {len(longer)} of {len(pools['V1'])}")
print(f"with the loss on all answers they have {more:.2f} times as many targets")
assert more > 1.3, "earlier answers must be a good part of such dialogs"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Four rounds
# **Say** (section 3.4.1, figure 11). The paper follows its models by win rate against ChatGPT, judged by its own reward models and by GPT-4. By its reward models, helpfulness goes 54, 61, 63, 65, 67 % from the last SFT model to V4, and harmlessness 48, 48, 45, 54, 59 % (read off a figure by a third party). Both rise, with a **dip in harmlessness at V2**.
#
# **Measure** with the gold judge, on which none of these models was trained directly. The prompts are the same for all models, and so are the random numbers in sampling (temperature 0.7, at which the answers are readable). Three families are in held-out wordings: helpful prompts, prompts that ask for harm, and **borderline** ones, which sound dangerous and are not ("How do I kill the weeds?"). A fourth has helpful prompts in **known wordings**, the forms that training used. (The world is small: the cell counts how many of those were asked in some round, word for word.) The intervals are of the *difference* to SFT on the same prompts, which is sharper than two separate intervals.
#
# **Predict** for each of the four: up, level or down? About 15 seconds.

# %% tags=["near=0.03", "long"]
N_HELP, N_HARM, N_LINE, N_KNOWN = 100, 100, 60, 100
held = [
    *lab.prompts(world, 71, N_HELP, "held out", shares={"helpful": 1.0}),
    *lab.adversarial_prompts(world, 71, N_HARM, "held out"),
    *lab.prompts(world, 71, N_LINE, "held out", shares={"borderline": 1.0}),
    *lab.prompts(world, 71, N_KNOWN, "train", shares={"helpful": 1.0}),
]
numbers = {"helpful": N_HELP, "harm": N_HARM, "borderline": N_LINE, "known": N_KNOWN}
kind = np.repeat(list(numbers), list(numbers.values()))
replies = {
    v: [a.text for a in lab.reply(m, tokenizer, [p.dialog for p in held], temperature=0.7, seed=3)]
    for v, m in bar(policy.items(), about="answering")
}
marks = {v: lab.gold_marks(world, held, texts) for v, texts in replies.items()}


def rated(v):
    """The marks of a model by name, each one number per prompt"""
    m = marks[v]
    return {
        "helpfulness": m.helpfulness[kind == "helpful"],
        "helpfulness, known wordings": m.helpfulness[kind == "known"],
        "safety": m.safety[kind == "harm"],
        "refused though harmless": m.refuses[kind == "borderline"].astype(float),
    }


for what in rated("SFT"):
    print(what)
    for v in policy:
        mine = rated(v)[what]
        gain = "" if v == "SFT" else f"   minus SFT {lab.improvement(rated('SFT')[what], mine)}"
        print(f"  {v:4s} {mine.mean():.3f}{gain}")
seen = {e.key for e in pools["V4"]}
known = [Sample(p.dialog, p.is_safety, "", 0, 0.0).key in seen for p in held[-N_KNOWN:]]
print(f"of the prompts in known wordings, asked in some round: {sum(known)} of {N_KNOWN}")
safer = np.mean([rated(v)["safety"].mean() for v in ROUNDS]) - rated("SFT")["safety"].mean()
assert safer > 0.02, f"the rounds must be safer than SFT on average; the difference is {safer:.3f}"


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=0.03"]
def draw_rounds(what):
    found = [lab.bootstrap_mean(rated(v)[what].tolist(), 0) for v in policy]
    band = tuple([getattr(e, name) for e in found] for name in ("value", "low", "high"))
    unit = "share of prompts" if "refused" in what else "gold mark, 0 to 1"
    return lab.rewards_by_round(list(policy), {what: band}, f"{what}\n({unit})")


def rounds_words(what):
    means = ", ".join(f"{v} {rated(v)[what].mean():.2f}" for v in policy)
    return f"By round, {what}: {means}."


show(draw_rounds("safety"), alt=rounds_words("safety"))
show(draw_rounds("helpfulness"), alt=rounds_words("helpfulness"))
Explorer(draw_rounds, rounds_words, what=list(rated("SFT"))[::-1])

# %% [markdown]
# **See** the answers side by side, SFT and all rounds, with what the gold judge says. Prompt 8 was picked: it is the request for harm on which V4 gained most. The others are the first of their kind. (A mark of 0 has no bar.) Look for refusals that got better, for facts that did or did not become right, and for harmless requests that V4 declines.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
harmful, borderline = N_HELP, N_HELP + N_HARM  # where each begins
gain = marks["V4"].safety - marks["SFT"].safety
MENDED = harmful + int(gain[harmful:borderline].argmax())
PICKED = [*range(8), MENDED, *range(harmful, harmful + 7), *range(borderline, borderline + 4)]


def parts(prompt, text):
    if prompt.kind == "adversarial":
        m = judge.safety(prompt, text)
        return {"safety": m.score, "declines": float(m.refuses), "leak": m.leak}
    m = judge.helpfulness(prompt, text)
    return {n: getattr(m, n) for n in ("correctness", "relevance", "politeness", "score")}


def draw_side_by_side(prompt):
    p = held[PICKED[prompt]]
    texts = {v: replies[v][PICKED[prompt]] for v in policy}
    return lab.marked_answers(
        f"{p.kind}: {p.request}", {v: lab.MarkedAnswer(t, parts(p, t)) for v, t in texts.items()}
    )


def side_words(prompt):
    p = held[PICKED[prompt]]
    family = "asks for harm" if p.is_safety else p.kind
    return f"Prompt {prompt}, {family}: the answers of SFT and of V1 to V4, with their gold marks."


show(
    draw_side_by_side(PICKED.index(MENDED)),
    alt="Answers of SFT and of V1 to V4 to the request for harm, of all that were asked, on which V4 gained most; the gold judge's marks beside each.",
)
Explorer(draw_side_by_side, side_words, prompt=(0, len(PICKED) - 1))

# %% [markdown]
# So far, for this chain:
#
# - **Safety rose.** All rounds lie well above SFT, and the first round brings most of the gain. Half of SFT's writers gave in to requests for harm; the selection threw such answers out. (The paper's harmlessness dips at V2; here V3 lies a little below V2, well within the intervals.)
# - **Helpfulness** rose in known wordings and not in held-out ones. There V4 is level with SFT, and V3 lies below it. Manner can be chosen, and the chosen manner stays with the forms of request on which it was learned. A right answer that is never sampled cannot be chosen, and the reward models hardly tell a right fact from a wrong one.
# - **False refusals rose**: V4 declines about twice as many of the harmless requests that sound dangerous as SFT does. The selection that taught the model to refuse taught it to refuse too much. Notebook 10 is about that.
#
# **Predict.** This is one chain of models, and one chain can be lucky. Claim 23 has five, 800 prompts each, answered at temperature 1. Does the reward rise from SFT to V4, in helpfulness and in safety? And the gold mark?

# %%
show_prediction(23)

# %%
by_chain = show_claim(23).verdict.estimates
for what in ("gold helpfulness", "gold safety"):
    print(f"{what}, V4 minus SFT: {by_chain[f'{what}, V4 minus SFT']}")

# %% [markdown]
# The reward rises in both, and for safety the gold judge agrees. For helpfulness it hardly does: the gold gain is about a hundredth, and its interval includes 0. (The first three chains left claims 26 and 49 open, so two chains were added to all three claims, once; an interval after such an addition covers a little less than it says.)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The control: choose at random
# **Say.** V1 differs from SFT in two ways: it was trained on *samples*, and the samples were *chosen*. To credit the choice one must repeat everything with a choice that knows nothing: `select="random"`. Prompts, samples, number of examples and steps stay the same. The paper does not report this control.
#
# A whole round of nano takes minutes, so the control is run here with a small pupil, the pretrained model of the course's `grid` recipe (64 numbers wide, two layers). Nano after fine-tuning answers 200 prompts 6 times each. One answer per prompt is taken, the *best* by round 1's reward models or one at *random*, and the pupil is tuned on each list with equal steps, without demonstrations.
#
# **Predict**: by how much are the chosen answers better than the random ones? By how much are the pupil's answers better? About 15 seconds, and as many again to pretrain the pupil.

# %% tags=["near=0.03", "long"]
room = [i for i, p in enumerate(held) if sum(len(m["content"]) for m in p.dialog) < 300]
asked_small, harm = [held[i] for i in room], kind[room] == "harm"  # what fits the small context
source = lab.sample_prompts(lab.WorldSource(world), 72, 200, tokenizer, longest=160).prompts
rows_of = draw(
    policy["SFT"], tokenizer, [p.dialog for p in source], 6, 0.8, seed=5, max_new_tokens=96
)
entries, asked_for = [], {}
for p, row in zip(source, rows_of, strict=True):
    fresh = [Sample(p.dialog, p.is_safety, a.text, 1, 0.0) for a in distinct(row)]
    asked_for |= {e.key: p for e in fresh}
    scores = reward([p] * len(fresh), [e.answer for e in fresh], rewards[1]) if fresh else []
    entries += [e._replace(score=float(s)) for e, s in zip(fresh, scores, strict=True)]
lists = {select: chosen(entries, select, 0) for select in ("random", "best")}
assert [e.key for e in lists["best"]] == [e.key for e in lists["random"]], "the same prompts"
learned = {
    select: lab.gold_marks(
        world, [asked_for[e.key] for e in some], [e.answer for e in some]
    ).quality
    for select, some in lists.items()
}
for select, quality in learned.items():
    print(f"gold mark of what is learned from, {select}: {quality.mean():.3f}")
print("best minus random:", lab.improvement(learned["random"], learned["best"]))

# %% tags=["near=0.1", "long"]
STEPS = 120
small_base = lab.artifact("pretrain", lab.grid())


def fine_tune(entries, steps=STEPS):
    """The small pretrained model, tuned on chosen answers"""
    model, config = lab.load_model(small_base)
    rows = lab.PackedDialogs(my_examples(entries), seq_len=config.max_seq_len, seed=0)
    run = lab.optimize(
        model, lab.adamw(model), rows.batches(batch_size=4), lab.dialog_loss(True),
        lab.warmup_then_cosine(peak=3e-3, steps=steps, warmup=10), steps=range(steps),
    )  # fmt: skip
    for _ in bar(run, total=steps, about="fine-tuning"):
        pass
    return model.eval()


taught = {
    select: lab.marks_of(fine_tune(some), tokenizer, world, asked_small, temperature=0.6, seed=4)
    for select, some in lists.items()
}
for what, some in (("all prompts", np.ones(len(room), bool)), ("requests for harm", harm)):
    both = [m.quality[some] for m in taught.values()]
    print(f"pupil, {what}: random {both[0].mean():.3f}, best {both[1].mean():.3f},",
          "best minus random", lab.improvement(*both))  # fmt: skip

# %% [markdown]
# The choice is worth something: the list of best answers has a higher gold mark than the random list, and the pupil that learned from it is better as well; the estimate is larger on requests for harm. All three intervals lie above 0, but they are over prompts; this is one seed.
#
# **Predict.** Claim 25 has three seeds, 240 prompts and a second teacher: the small model's own fine-tuned version. Who teaches the small model more, nano's best answers or its own best? And what is choosing worth beside chance, with either teacher?

# %%
show_prediction(25)

# %%
pupils_of = show_claim(25).verdict.estimates
for teacher, key in {"nano": "big", "the small model itself": "own"}.items():
    print(f"taught by {teacher}, best minus random: {pupils_of[f'{key} best over {key} random']}")

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
ARMS = ["own random", "own best", "big random", "big best"]
both = {arm.replace("big", "nano's"): pupils_of[f"quality/{arm}"] for arm in ARMS}
show(
    lab.bars_with_intervals(
        [name.replace(" ", "\n") for name in both],
        *([getattr(e, part) for e in both.values()] for part in ("value", "low", "high")),
        "gold mark of the pupil, 0 to 1",
        title="claim 25: whose samples, and how chosen",
    ),
    alt="Claim 25, gold mark of the small model after tuning: "
    + ", ".join(f"{name} {e.value:.2f}" for name, e in both.items()) + ".",
)  # fmt: skip

# %% [markdown]
# The small model learns more from nano's best answers than from its own best. Choosing by reward gains some four to five points with either teacher, but with three seeds both intervals reach below 0. The effect analysed here is one that the paper uses and does not measure.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Forgetting, and its cure
# **Say.** Each round starts from the base model. What its examples do not show, the new model cannot do, however well the previous one could. With demonstrations mixed in and all kinds of prompts in each round, our models forget little. To **see** forgetting, we exaggerate the paper's situation.
#
# Suppose that in round 4 nobody asked for harm. Two models are trained on what there is:
#
# - *last round only*: the chosen answers of round 4, without requests for harm;
# - *the pool*: the same, and the best answers of rounds 1 to 3.
#
# There are no demonstrations. Both start from the small pretrained pupil and train for equal steps; the answers are nano's. **Predict** how often each declines harm, and how helpful each is. About 10 seconds.

# %%
harmless = [e for e in pools["V4"] if e.round == 4 and not e.is_safety]
trained_on = {
    "last round only": best(harmless),
    "pool of all rounds": best([e for e in pools["V4"] if e.round < 4 or not e.is_safety]),
}
pupils = {name: fine_tune(some) for name, some in trained_on.items()}

# %% tags=["near=0.2"]
pupil_marks = {
    name: lab.marks_of(m, tokenizer, world, asked_small, temperature=0.6, seed=4)
    for name, m in pupils.items()
}
for name, m in pupil_marks.items():
    print(name, f"({len(trained_on[name])} examples)")
    print(
        "  declines requests for harm:", lab.proportion(int(m.refuses[harm].sum()), int(harm.sum()))
    )
    print("  safety:     ", lab.bootstrap_mean(m.safety[harm].tolist(), 0))
    print("  helpfulness:", lab.bootstrap_mean(m.helpfulness[kind[room] == "helpful"].tolist(), 0))

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
declined = [
    lab.proportion(int(m.refuses[harm].sum()), int(harm.sum())) for m in pupil_marks.values()
]
show(
    lab.bars_with_intervals(
        [name.replace(" of", "\nof").replace(" only", "\nonly") for name in pupil_marks],
        *([100 * getattr(e, part) for e in declined] for part in ("value", "low", "high")),
        "requests for harm declined (%)",
    ),
    alt="Requests for harm declined: far fewer after training on the last round only than after training on the pool of all rounds.",
)
last_only, pooled = (m.refuses[harm].mean() for m in pupil_marks.values())
assert last_only < pooled - 0.2, f"the last round alone must forget; {last_only:.2f}, {pooled:.2f}"

# %% [markdown]
# The pupil that saw only the last round declines almost no request for harm; the one that saw the pool declines most of them. In helpfulness the two do not differ beyond their intervals.
#
# No training step pushed this skill out. It was simply in no example, and the base model never had it. That is why the paper's cure is a pool, and why a mixture of demonstrations is another.
#
# Our case is extreme: the last round had *no* such prompt, and declining is a skill that no document of pretraining teaches. The paper's V3 lost rhyme, and its base model surely had read poems. Claim 24 measures that milder case too, with nano and three seeds: the last round has no prompt for a **list, a story or a how-to**, forms that the documents do show, and none that asks for harm.
#
# **Predict** for lists, stories and how-tos: is the last round without them worse than the last round as it was? Is the pool better?

# %%
show_prediction(24)

# %%
kept = show_claim(24).verdict.estimates

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
POOL_ARMS = {
    "last round,\nas it was": "last", "last round,\nkinds missing": "last, kinds missing",
    "pool,\nkinds missing": "all, kinds missing", "pool,\nas it was": "all",
}  # fmt: skip


def draw_kept(family):
    found = [kept[f"quality/{arm}/{family}"] for arm in POOL_ARMS.values()]
    return lab.bars_with_intervals(
        list(POOL_ARMS),
        *([getattr(e, part) for e in found] for part in ("value", "low", "high")),
        "gold mark, 0 to 1",
        title={"form": "lists, stories, how-tos", "harm": "requests for harm", "other": "others"}[
            family
        ],
    )


def kept_words(family):
    arms = {
        name.replace("\n", " "): kept[f"quality/{arm}/{family}"] for name, arm in POOL_ARMS.items()
    }
    return f"Claim 24, prompts: {family}; gold mark: " + "; ".join(
        f"{n} {e.value:.2f}" for n, e in arms.items()
    )


show(draw_kept("form"), alt=kept_words("form"))
Explorer(draw_kept, kept_words, family=["harm", "form", "other"])

# %% [markdown]
# The skill of declining harm, which no document teaches, is gone without examples and kept by the pool. The forms hardly suffer, because stories and lists do occur in the documents: the four marks lie within four points, and their intervals overlap. So the verdict is open.
#
# The cure has a price that the paper does not mention. At equal steps a model that learns from fewer kinds learns those better: on all *other* prompts the last round with the kinds missing has the highest mark of the four.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The low tail
# **Say** (section 5.1, figure 20). The authors explain why RLHF did more than further demonstrations. Some people write poor answers, and SFT learns to write those as well: its scores have a **low tail**. (This is why some of our writers are careless.) Reward models give low scores to the tail, so its answers are never chosen, and it thins out with each round, SFT to V1 to V2.
#
# **See** it with *one* judge for all models, the reward models of round 5. The figure shows scores after the sigmoid, on the 0 to 1 axis of the paper. **Low** means below the score that bounds SFT's worst tenth, so by definition a tenth of SFT's answers are low. **Predict** the share of low answers for V1 to V4.

# %% tags=["near=0.03"]
scored = {v: reward(held, replies[v], rewards[5]) for v in ("SFT", *ROUNDS)}
WHO = {
    "all": np.ones(len(held), bool),
    "helpful": (kind == "helpful") | (kind == "known"),
    "asks for harm": kind == "harm",
}


def low_share(v, kind_of="all"):
    cut = np.quantile(scored["SFT"][WHO[kind_of]], 0.1)
    return float((scored[v][WHO[kind_of]] < cut).mean())


for v in ("SFT", *ROUNDS):
    middle = float(np.median(scored[v]))
    print(f"{v:4s} median reward {middle:5.2f}   share of low answers:", end="")
    print("".join(f"   {name} {low_share(v, name):.3f}" for name in WHO))
wins = {v: lab.win_rate(scored[v], scored["SFT"]) for v in ROUNDS}
for v, rate in wins.items():
    print(f"win rate of {v} against SFT, judged by the reward models: {rate}")
some = kind == "helpful"
print("helpful, held-out wordings, V4 minus SFT:",
      f"reward {lab.improvement(scored['SFT'][some], scored['V4'][some])},",
      f"gold mark {lab.improvement(marks['SFT'].helpfulness[some], marks['V4'].helpfulness[some])}")  # fmt: skip
assert wins["V4"].low > 0.5, f"the reward models must prefer V4 to SFT; got {wins['V4']}"


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=0.03", "long"]
def draw_tail(kind_of, version):
    figure, axes = lab.new_figure(8.0, 4.2)
    edges = np.linspace(0, 1, 21)
    for index, v in enumerate(dict.fromkeys(["SFT", "V1", version])):
        values = expit(scored[v][WHO[kind_of]])
        heights = 100 * np.histogram(values, edges)[0] / len(values)
        axes.stairs(heights, edges, lw=2.2, ls=("-", "--", ":")[index], color=f"C{index}", label=v)
    cut = expit(np.quantile(scored["SFT"][WHO[kind_of]], 0.1))
    axes.axvline(cut, color="0.35", lw=1.5, label="SFT's lowest tenth")
    lab.label_axes(axes, "sigmoid(reward)", "answers (%)", f"prompts: {kind_of}")
    axes.legend()
    return figure


def tail_words(kind_of, version):
    top = {v: (expit(scored[v][WHO[kind_of]]) > 0.95).mean() for v in ("SFT", version)}
    low = low_share(version, kind_of)
    return f"Prompts: {kind_of}. Share of answers above 0.95: SFT {top['SFT']:.3f}, {version} {top[version]:.3f}; share of low answers in {version}: {low:.3f}."


show(draw_tail("all", "V2"), alt=tail_words("all", "V2"))
for v in scored:
    high = expit(scored[v]) > 0.95
    print(f"{v:4s} share of answers that score above 0.95: {high.mean():.3f};",
          f"of these, to requests for harm: {(kind == 'harm')[high].mean():.3f}")  # fmt: skip
Explorer(draw_tail, tail_words, kind_of=list(WHO), version=["V4", "V3", "V2"])

# %% [markdown]
# The right end grew at once: V1 already has more answers with the highest scores, and all of these answer requests for harm. The low tail moved late: in V1 it is as large as in SFT, and only by V4 is about half of it gone. On requests for harm it is nearly gone; on helpful prompts little has changed.
#
# Who says so? The judge of this histogram is the kind of model that did the choosing. A better histogram *by its own scores* is what rejection sampling optimises, so it had to come, in the paper as here. On requests for harm the gold judge agrees that safety rose. On helpful prompts in held-out wordings the gold mark is level, and the interval of the reward's small rise includes 0. In the five chains of claim 23 the reward for helpfulness rose and the gold mark hardly did: that part of the picture is the reward model congratulating itself.
#
# **Predict.** Claim 49 has the five chains of claim 23. By V2, where the paper's figure ends, does the low tail lose at least 2 points of its 10 %?

# %%
show_prediction(49)

# %%
tail = show_claim(49).verdict.estimates
for v in ROUNDS:
    print(f"share of low answers, {v}: {tail[f'low tail/{v}']}")

# %% [markdown]
# The mean reward rises by V2 and the low tail gets thinner, but whether by the 2 points that the rule asks for is open, because the interval reaches to either side of them. A likely reason why it thins so slowly: each round mixes in demonstrations, half of them by careless writers, so the tail is taught anew each time. We did not test this; which experiment would?

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here, with 95 % intervals (of an earlier recipe where the record above says so) |
# |---|---|---|
# | 21, best of N | maximum about 0.54 to 0.67 for up to 100 samples, median level at about 0.54 (read off figure 7) | *inconclusive*: from 1 to 64 samples the maximum rises by 0.23 [0.19, 0.27]; the median drifts by 0.22 [0.10, 0.34] of that rise (90 %: 0.14 to 0.30; allowed: 0.25) |
# | 22, temperature | 1.2 to 1.3 best for the RLHF model with 10 to 100 samples | *inconclusive*: by reward 0.4 is best for one sample; for 16 it is 0.85 [0.79, 0.91] for SFT and 1.2 [0.7, 1.7] for V4, a shift of 0.36 [-0.10, 0.83]; by the gold mark 0.51 [0.04, 0.98] for SFT, 0.4 on every seed for V4; the grid is 0.4 to 1.4, and what an interval says beyond it means nothing |
# | 23, rounds | win rate against ChatGPT: helpfulness 61, 63, 65, 67 %, harmlessness 48, 45, 54, 59 %, V1 to V4, by its reward models (read off figure 11) | *reproduced* over five chains, V4 minus SFT by the newest reward models: helpfulness 0.26 [0.22, 0.30], safety 1.8 [1.5, 2.1] raw; gold safety rises by 0.21 [0.17, 0.26] too; gold helpfulness by 0.01 [-0.00, 0.03], which may be nothing |
# | 24, forgetting | V3 worse at rhyming poems, cured by samples of all rounds; no numbers | *inconclusive*: pool minus last round alone, harm 0.37 [0.34, 0.40], forms 0.03 [0.01, 0.05] of gold mark; without the prompts minus with them, harm -0.44 [-0.49, -0.40], forms -0.03 [-0.11, 0.06] |
# | 25, distillation | smaller models tuned on the 70B's samples; effect not analysed | *reproduced*: nano's best of 6 minus the small model's own best, 0.059 [0.024, 0.095] of gold mark |
# | 49, low tail | histograms move right and lose the low tail, SFT to V1 to V2 (figure 20) | *inconclusive*: by V2 the mean reward rises by 0.45 [0.33, 0.57]; the low tenth loses 1.9 points [0.9, 2.9], and the rule asks for 2 |
#
# - **What rose** in this chain: the reward, the safety of answers to requests for harm, and helpfulness in known wordings. **What did not:** helpfulness in held-out wordings. **What got worse:** harmless requests that sound dangerous are declined about twice as often.
# - **Not stated in the paper**, so ours: $K = 6$, 800 prompts per round, 600 steps, the probe of 40 prompts, that unfinished samples and copies are left out, that the first of equal scores wins, the mixture with demonstrations, and that a pool is scored again before it is ranked.
# - **What we could not do:** $N$ up to 100 at nine temperatures; a reward model that knows facts; win rates against ChatGPT. Figure 11's values were read off a figure by a third party, and we do not trust their last digit.
# - **One chain.** The four rounds shown are one run. Intervals over prompts do not cover what another run would give; claims 23 and 49 have five.

# %% [markdown]
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# A budget is given in nats. Write `largest_n(nats)`: the largest $N$ whose best-of-$N$ has a KL divergence of at most `nats`.
# <details><summary>Hint</summary>The divergence grows with N, so count upwards until the next one is too far. At N = 1 it is 0.</details>


# %% tags=["exercise"]
def largest_n(nats):
    ### BEGIN SOLUTION
    n = 1
    while best_of_n_kl(n + 1) <= nats:
        n += 1
    return n
    ### END SOLUTION


@check("largest_n")
def _():
    assert largest_n(0.0) == 1, "one sample is no choice, and costs nothing"
    assert largest_n(best_of_n_kl(8)) == 8, "at most: equality is allowed"
    assert largest_n(best_of_n_kl(8) - 1e-9) == 7, "just below 8's divergence only 7 fit"
    assert largest_n(3.5) == 89, "best of a hundred is already further than 3.5 nats"


# %% [markdown]
# ### Exercise 2 (medium, 10 minutes)
# Some prompts have no good sample at all, yet their best sample would still become a demonstration. Write `worth_it(scores, gain)`: for each prompt (row) `True` if the best score lies at least `gain` above the median of its row. This is a **gain filter**.
# <details><summary>Hint</summary>One line of numpy: maximum and median along axis 1. The median of an even number is the mean of the middle two, as numpy has it.</details>


# %% tags=["exercise"]
def worth_it(scores, gain):
    ### BEGIN SOLUTION
    return scores.max(axis=1) - np.median(scores, axis=1) >= gain
    ### END SOLUTION


@check("worth_it")
def _():
    rows = np.array([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [-4.0, -3.0, -3.0, -1.0]])
    assert worth_it(rows, 1.5).tolist() == [True, False, True], "medians are 1.5, 5 and -3"
    assert worth_it(rows, 0.0).all(), "a gain of 0 keeps all"
    assert worth_it(rows, 1.6).tolist() == [False, False, True], "level does not matter, gain does"
    kept = [worth_it(proxy, g).mean() for g in (0.0, 0.5, 1.0, 4.0)]
    assert kept == sorted(kept, reverse=True), "a higher bar keeps fewer prompts"


# %% [markdown]
# ### Exercise 3 (hard, 20 minutes)
# This is the exact distance of best-of-$N$ from its sampler when answers repeat. For *one* prompt you have `texts` (K of them, some equal) and `scores` (equal texts have equal scores; let other scores differ). Take the K samples as the whole distribution $q$: each text has the probability of its share. Draw $N$ from it *with replacement*. The text with the highest score has the probability $p(t) = F(t)^N - F^-(t)^N$, where $F(t)$ is the share of samples that score at most as high, $F^-(t)$ the share of those that score lower. Write `exact_kl(texts, scores, n)`, $\sum_t p(t) \ln \frac{p(t)}{q(t)}$ in nats.
# <details><summary>Hint 1</summary>Go through the distinct texts; for each count shares with comparisons of the array of scores.</details>
# <details><summary>Hint 2</summary>A text whose p is 0 contributes 0: leave it out, or the logarithm complains.</details>


# %% tags=["exercise"]
def exact_kl(texts, scores, n):
    ### BEGIN SOLUTION
    scores = np.asarray(scores)
    total = 0.0
    for score in {text: score for text, score in zip(texts, scores, strict=True)}.values():
        at_most, lower = (scores <= score).mean(), (scores < score).mean()
        p, q = at_most**n - lower**n, at_most - lower
        total += p * math.log(p / q) if p > 0 else 0.0
    return total
    ### END SOLUTION


@check("exact_kl")
def _():
    assert exact_kl(["a"] * 5, [1.0] * 5, 4) == 0, "one answer only: nothing to choose"
    half = exact_kl(["a", "b"], [0.0, 1.0], 2)
    by_hand = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert abs(half - by_hand) < 1e-12, "two answers, best of two: 1/4 and 3/4 against 1/2 each"
    many = exact_kl([str(i) for i in range(4000)], np.arange(4000.0), 8)
    assert abs(many - best_of_n_kl(8)) < 1e-2, "all different, and many: the formula"
    row = [a.text for a in said[0]]
    value = {text: p for text, p in zip(row, proxy[0], strict=True)}
    assert exact_kl(row, [value[t] for t in row], 8) <= best_of_n_kl(8) + 1e-9, "an upper bound"


# %% [markdown]
# ## Questions to think about
# - Your reward model has noise of its own: two equal answers differ by chance. What does best-of-64 choose? Does the maximum's curve look any different?
# - The median does not rise with $N$. Why would anyone plot it?
# - A colleague ranks a pool with the scores as they were written. Round 3's reward model happens to score half a point higher than the others. What will the pool look like after three more rounds?
# - Every round starts from the base model. What would be gained, and what lost, if it started from the round before?
# - Suppose the random control had come out level with the chosen one. Is rejection sampling useless, or the reward model, or the measure? Which experiment would tell?
# - False refusals rose. Which of these would you change first: the prompts, the reward models, the way the two are combined, or the choice?
#
# ## Next
# `08_ppo`: from breadth to depth. PPO draws one sample per prompt, puts a reward on its last token, and changes the policy at every step.
