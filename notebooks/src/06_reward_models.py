# %% [markdown] slideshow={"slide_type": "slide"}
# # Reward models
# Fine-tuning showed the model answers. From here on, people only *compare* answers: which of two is better, and how clearly? A **reward model** learns to predict those choices, and gives every answer a number that a policy can then be trained on.
# You look over an annotator's shoulder, find out how good any model of that annotator *can* be, build the loss and the model, and train it. Then you test eleven of the paper's claims, and build a reward model that can be fooled, on purpose.
#
# - **You will be able to explain** preference pairs and their four grades, the noise ceiling, the ranking loss and its margin, why a score has no zero and how a safety label gives it one, why the paper trains two models, what the threshold 0.15 does, and what a reward model looks at when it cannot see the truth.
# - **Prerequisites:** notebook 05. **Paper sections:** 3.2.1, 3.2.2, 3.2.3 (the threshold), A.3.
# - **Minutes:** 90 to read, 3 to run, on two cores (12 more if models must first be trained).

# %% tags=["long"]
import math
from itertools import islice, pairwise

import ipywidgets
import numpy as np
import torch
from scipy.special import expit

from llama2_lib import lesson as lab
from llama2_lib.stages.reward import (
    MARGINS,
    SAFE_BINS,
    encode_pairs,
    load_rewards,
    pair_loss,
    scores_of,
)
from llama2_lib.teaching import reward as checks
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, bar, show
from llama2_lib.world.pairs import (
    DEGRADATIONS,
    GRADE_FROM,
    GRADES,
    SAFE_LEVELS,
    SAFETY_BINS,
    TAU,
    UNSAFE_LEVELS,
    Annotator,
    Nuisance,
    bayes_accuracy,
    degrader,
    expected_agreement,
    grade_of,
    helpfulness_pairs,
    preference_probability,
    safety_pairs,
)

folders = start(
    "06_reward_models", needs=["sft", "rewards_v1", "rewards_v5"], recipe=lab.nano(), minutes=15
)
tokenizer = lab.load_tokenizer(folders["sft"])
models = load_rewards(folders["rewards_v1"])
world = lab.make_world(0)
judge = lab.judge_of(world)
STREAMS = ("helpfulness", "safety")
held = {
    "helpfulness": list(helpfulness_pairs(world, 100, 300, "held out")),
    "safety": list(safety_pairs(world, 100, 300, "held out")),
}

# %% [markdown] slideshow={"slide_type": "slide"}
# ## An annotator at work
# **Say** (section 3.2.1). An **annotator** writes a prompt and is shown two answers, of two variants of the model, at different temperatures. The choice is forced: one of them must be called better. Besides, the annotator says how clearly, in four **grades**: *significantly better*, *better*, *slightly better*, *negligibly better or unsure*.
#
# Comparing takes less time than writing a good answer. The main reason that the paper gives is another one: with a plain comparison, more different prompts can be collected. It collected **1,418,091** of them.
#
# There are two **streams**, each with its own guideline. In *helpfulness* the better answer is the one that does what was asked. In *safety* prompts try to elicit harm, and the better answer is the safer one; there each answer also gets a label, safe or unsafe.
#
# **See** three pairs of our world. Here the two answers come from two imagined models, one strong, one weak. The *gap* is the difference of the gold marks (notebook 05), chosen less rejected. The annotator does not see it.

# %%
for pair in [*held["helpfulness"][1:3], held["safety"][0]]:
    print(f"{pair.stream}, {pair.grade}; gap {pair.gap:+.2f} {pair.safety_bin}")
    print("  user:    ", pair.prompt.request[:100])
    print("  chosen:  ", pair.chosen.replace("\n", " / ")[:100])
    print("  rejected:", pair.rejected.replace("\n", " / ")[:100])
erred = sum(pair.gap < 0 for pair in held["helpfulness"])
print(f"of {len(held['helpfulness'])} choices, {erred} went against the gold judge")

# %% [markdown]
# **Say.** People are not exact. Our annotator perceives the gap $\Delta$ of the gold marks plus **noise**:
#
# $$\text{perceived} = \Delta + \tau \varepsilon, \qquad \varepsilon \text{ logistic}, \qquad P(\text{first is chosen}) = \sigma\!\left(\frac{\Delta}{\tau}\right)$$
#
# $\sigma(x) = 1 / (1 + e^{-x})$ is the sigmoid; it is the distribution function of logistic noise, so the second formula follows from the first. $\tau$ is the size of the noise; ours is 0.15, where marks go from 0 to 1. This is the **Bradley-Terry model**: each answer has a hidden strength, and the chance to win depends on the difference alone.
# The sign of what is perceived is the choice. Its size is the grade: from 0.60 on *significantly better*, from 0.35 *better*, from 0.15 *slightly better*.
#
# **Build** it. `uniform` is a random number between 0 and 1; $\log \frac{u}{1-u}$ turns it into logistic noise.


# %%
def my_annotator(gap, uniform, tau=TAU):
    """The gap, first less second, and a random number -> (first is chosen, grade)"""
    perceived = gap + tau * math.log(uniform / (1 - uniform))
    size = abs(perceived)
    grade = next(
        (g for g, least in zip(GRADES, GRADE_FROM, strict=False) if size >= least), GRADES[-1]
    )
    return perceived > 0, grade


@check("annotator")
def _():
    draws = (np.arange(4000) + 0.5) / 4000  # evenly spread: no luck in it
    for gap in (-0.3, 0.0, 0.1, 0.4):
        share = np.mean([my_annotator(gap, u)[0] for u in draws])
        assert abs(share - preference_probability(gap, TAU)) < 1e-3, (
            f"wrong share at a gap of {gap}"
        )
    assert my_annotator(0.35, 0.5)[1] == grade_of(0.35) == "better", (
        "a limit belongs to the grade above"
    )
    assert my_annotator(-0.9, 0.5) == (False, GRADES[0]), "the sign does not matter to the grade"


# %% [markdown]
# **See** what one gap becomes. The hill is what the annotator may perceive; left of 0 the worse answer is chosen. Move the gap to 0: which grade is now the most frequent, and is it an honest one?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
WAYS = [(True, g) for g in GRADES] + [(False, g) for g in GRADES[::-1]]
EVEN = (np.arange(2000) + 0.5) / 2000


def density(x, gap, tau):
    z = np.exp(-np.abs(x - gap) / tau)
    return z / (tau * (1 + z) ** 2)


def draw_perceived(gap, tau):
    figure, axes = lab.new_figure(8.0, 3.8)
    x = np.linspace(-1.5, 1.5, 601)
    axes.plot(x, density(x, gap, tau), color="black")
    edges = [0.0, *GRADE_FROM[::-1], 1.5]
    for low, high, shade in zip(edges, edges[1:], (0.15, 0.4, 0.65, 0.9), strict=False):
        for sign, colour in ((1, "C0"), (-1, "C1")):
            inside = (sign * x >= low) & (sign * x <= high)
            axes.fill_between(
                x, density(x, gap, tau), where=inside, color=colour, alpha=shade, lw=0
            )
    axes.axvline(gap, color="0.35", ls="--", lw=1.5)
    lab.label_axes(axes, "perceived gap, first less second (gold marks)", "density (1 / mark)", f"gap {gap:+.2f}, noise {tau:.2f}; darker: clearer grade")  # fmt: skip
    return figure


def perceived_words(gap, tau):
    right = preference_probability(gap, tau)
    found = [my_annotator(gap, u, tau)[1] for u in EVEN]
    usual = max(GRADES, key=found.count)
    return f"Gap {gap:+.2f}, noise {tau:.2f}: the first answer is chosen {right:.0%} of the time; most frequent grade: {usual}."


show(draw_perceived(0.2, TAU), alt=perceived_words(0.2, TAU))
Explorer(
    draw_perceived,
    perceived_words,
    gap=ipywidgets.FloatSlider(0.2, min=-0.8, max=0.8, step=0.1),
    tau=ipywidgets.FloatSlider(0.15, min=0.05, max=0.45, step=0.1),
)

# %% [markdown]
# **See** the whole desk: a pair, both answers with their gold marks, and what 200 annotators with different luck say of it. Find a pair on which they nearly all agree, and one on which they split in half. What do the answers of the second have in common?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
DESK = held["helpfulness"][:16]


def votes_on(pair, n=200):
    found = [Annotator(seed, "desk").compare(pair.gap) for seed in range(n)]
    return [sum((v.prefers_first, v.grade) == way for v in found) / n for way in WAYS]


VOTES = [votes_on(pair) for pair in DESK]


def helpful_marks(prompt, text):
    marks = judge.helpfulness(prompt, text)
    names = ("correctness", "relevance", "completeness", "brevity", "politeness", "score")
    return {name: getattr(marks, name) for name in names}


def draw_desk(pair, show_votes):
    one = DESK[pair]
    if not show_votes:
        sides = {"first": one.chosen, "second": one.rejected}
        marked = {n: lab.MarkedAnswer(t, helpful_marks(one.prompt, t)) for n, t in sides.items()}
        return lab.marked_answers(f"{one.prompt.kind}: {one.prompt.request}", marked)
    names = [f"{'first' if first else 'second'}\n{g.split()[0]}" for first, g in WAYS]
    zeros = np.zeros(len(WAYS))
    shares = 100 * np.array(VOTES[pair])
    return lab.bars_with_intervals(
        names, shares, shares - zeros, shares + zeros, "annotators (%)",
        title=f"pair {pair}, gap {one.gap:+.2f}",
    )  # fmt: skip


def desk_words(pair, show_votes):
    first = sum(VOTES[pair][:4])
    return f"Pair {pair}, gap {DESK[pair].gap:+.2f}: of 200 annotators {first:.0%} prefer the first answer."


show(draw_desk(0, False), alt=desk_words(0, False))
Explorer(draw_desk, desk_words, pair=ipywidgets.IntSlider(0, 0, len(DESK) - 1), show_votes=False)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The noise ceiling
# **Say.** An annotator who errs cannot be predicted without error. If the better answer is chosen with probability $\sigma(|\Delta| / \tau)$, then a model that *knows* the gold marks agrees with the annotators that often, and no model more often:
#
# $$\text{ceiling} = \mathbb{E}\left[\sigma\!\left(\frac{|\Delta|}{\tau}\right)\right] \qquad \text{two annotators agree: } \mathbb{E}\left[p^2 + (1-p)^2\right], \; p = \sigma\!\left(\frac{\Delta}{\tau}\right)$$
#
# The second is always lower, since both of them err. A reward model can thus agree with an annotator more often than another annotator does, without being wiser than the truth. The paper's helpfulness model reaches 63.2 %. That number says little until you know the ceiling, which the paper could not know. Here we do.
#
# **Build** both. **Check** them by counting.


# %%
def my_ceiling(gaps, tau=TAU):
    return float(np.mean(1 / (1 + np.exp(-np.abs(gaps) / tau))))


def my_agreement(gaps, tau=TAU):
    p = 1 / (1 + np.exp(-np.asarray(gaps) / tau))
    return float(np.mean(p**2 + (1 - p) ** 2))


gaps = {stream: np.array([pair.gap for pair in pairs]) for stream, pairs in held.items()}


@check("noise ceiling")
def _():
    for stream, found in gaps.items():
        assert abs(my_ceiling(found) - bayes_accuracy(found, TAU)) < 1e-9, stream
        assert abs(my_agreement(found) - expected_agreement(found, TAU)) < 1e-9, stream
        # a tie is right half the time
        right = np.mean((found > 0) + 0.5 * (found == 0))
        assert abs(right - my_ceiling(found)) < 0.08, "what was counted must be near"


for stream, found in gaps.items():
    print(
        f"{stream:12s} ceiling {my_ceiling(found):.0%}, two annotators agree {my_agreement(found):.0%}"
    )

# %% [markdown]
# **See** both, and the shares of the grades, as the noise grows. With no noise the ceiling is 1 but for ties. What do the grades do when annotators become careless? Predict before you move.
# <details><summary>What it shows</summary>Careless annotators do not say <i>unsure</i> more often. They are <i>sure</i> more often, and wrong: noise is large on both sides of every limit. A grade is what one person felt, not how far two answers lie apart.</details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
TAUS = np.linspace(0.01, 0.6, 40)
LUCK = np.log(EVEN[::10] / (1 - EVEN[::10]))


def grade_shares(found, tau):
    size = np.abs(found[:, None] + tau * LUCK)
    steps = np.array([np.inf, *GRADE_FROM, 0.0])
    return [float(((size < high) & (size >= low)).mean()) for high, low in pairwise(steps)]


def draw_ceiling(stream, tau):
    figure, (left, right) = lab.new_figure(10.0, 4.0, columns=2)
    left.plot(TAUS, [100 * my_ceiling(gaps[stream], t) for t in TAUS], label="ceiling")
    left.plot(
        TAUS, [100 * my_agreement(gaps[stream], t) for t in TAUS], "--", label="two annotators"
    )
    left.axvline(tau, color="0.35", ls=":")
    left.set_ylim(48, 102)
    left.legend()
    lab.label_axes(left, "noise (gold marks)", "agreement (%)", stream)
    right.bar([g.split()[0] for g in GRADES], [100 * s for s in grade_shares(gaps[stream], tau)])
    lab.label_axes(right, "grade", "pairs (%)", f"noise {tau:.2f}")
    return figure


def ceiling_words(stream, tau):
    top = grade_shares(gaps[stream], tau)[0]
    return f"{stream.capitalize()}, noise {tau:.2f}: ceiling {my_ceiling(gaps[stream], tau):.0%}, two annotators agree {my_agreement(gaps[stream], tau):.0%}, {top:.0%} of the pairs are called significantly better."


show(draw_ceiling("helpfulness", TAU), alt=ceiling_words("helpfulness", TAU))
Explorer(
    draw_ceiling,
    ceiling_words,
    stream=["helpfulness", "safety"],
    tau=ipywidgets.FloatSlider(0.15, min=0.05, max=0.55, step=0.1),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Ranking loss and margin
# **Say** (section 3.2.2). A reward model gives a prompt $x$ with an answer $y$ one number, the **score** $r(x, y)$. Put scores in the place of the hidden strengths of Bradley and Terry: the chance that $y_c$ is chosen over $y_r$ is $\sigma(r(x, y_c) - r(x, y_r))$. Its negative logarithm is the **ranking loss**, equation 1 of the paper. With the grade it becomes equation 2:
#
# $$L = -\log \sigma\bigl(r(x, y_c) - r(x, y_r) - m(\text{grade})\bigr)$$
#
# The **margin** $m$ asks for a larger gap where the annotator saw a large difference. The paper tried two schedules (table 27):
#
# | margin | significantly better | better | slightly better | negligibly better or unsure |
# |---|---|---|---|---|
# | none | 0 | 0 | 0 | 0 |
# | small | 1 | 2/3 | 1/3 | 0 |
# | large | 3 | 2 | 1 | 0 |
#
# **Build** the look-up and the loss. A grade that is not in the table must be refused: a typing error would otherwise train without a margin, silently.
#
# $\log(1 + e^{z})$ is called *softplus*, and $-\log \sigma(-z)$ is the same thing. The library writes `logsigmoid`: two forms, one number.
#
# **Break.** Three losses that look right. Predict what each does to training:
#
# 1. `log(sigmoid(...))`, as the formula is written;
# 2. the margin *added* to the gap;
# 3. scores that pass through a sigmoid before the loss, since the paper shows scores between 0 and 1.
# <details><summary>Answer</summary>The first is right until a pair is very wrong: below a gap of about -104 the sigmoid is 0 in fp32, the loss infinite, the gradient not a number. Such pairs are rare, so the run dies after hours. The second asks for <i>smaller</i> gaps where the annotator was sure; it trains, and the loss is even lower. The third cannot make a gap larger than 1, so the loss stays above 0.31 and the model never becomes sure.</details>

# %% tags=["long"]
MY_MARGINS = {"none": (0, 0, 0, 0), "small": (1, 2 / 3, 1 / 3, 0), "large": (3, 2, 1, 0)}


def my_margins(grades, schedule):
    """Grades and a schedule -> m of each pair"""
    table = dict(zip(GRADES, MY_MARGINS[schedule], strict=True))
    return torch.tensor([float(table[grade]) for grade in grades])


def my_ranking_loss(chosen, rejected, margin):
    """Raw scores and margins, one a pair -> mean loss in nats"""
    return torch.nn.functional.softplus(rejected - chosen + margin).mean()


@check("margins")
def _():
    checks.margins(my_margins)


@check("ranking loss")
def _():
    checks.ranking_loss(my_ranking_loss)


for wrong in (
    lambda chosen, rejected, margin: -(chosen - rejected - margin).sigmoid().log().mean(),
    lambda chosen, rejected, margin: my_ranking_loss(chosen, rejected, -margin),
    lambda chosen, rejected, margin: my_ranking_loss(chosen.sigmoid(), rejected.sigmoid(), margin),
):
    with expect_failure(CheckFailed):
        checks.ranking_loss(wrong)

# %% [markdown]
# **See** loss and pull. The pull is the size of the derivative by the gap, $\sigma(m - \text{gap})$: how hard a pair is pushed apart. It is near 1 where the pair is in the wrong order, and fades beyond the margin. Which pairs does the large margin still pull on that no margin has let go?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
GAP = np.linspace(-4, 7, 221)


def draw_pull(schedule, grade):
    m = MARGINS[schedule][GRADES.index(grade)]
    figure, (left, right) = lab.new_figure(10.0, 4.0, columns=2)
    for axis, none, own, what in (
        (left, np.logaddexp(0, -GAP), np.logaddexp(0, m - GAP), "loss (nats)"),
        (right, expit(-GAP), expit(m - GAP), "pull |dL / dgap|"),
    ):
        axis.plot(GAP, none, ":", color="0.35", label="no margin")
        axis.plot(GAP, own, label=f"margin {m:.2g}")
        axis.axvline(m, color="0.35", lw=1)
        axis.legend()
        lab.label_axes(axis, "gap of the raw scores, chosen less rejected", what)
    figure.suptitle(f"{schedule}, {grade}")
    return figure


def pull_words(schedule, grade):
    m = MARGINS[schedule][GRADES.index(grade)]
    return f"Margin {schedule}, {grade}: at a gap of 1 the pair is still pulled with {expit(m - 1):.2f}; without a margin, with {expit(-1):.2f}."


show(draw_pull("large", GRADES[0]), alt=pull_words("large", GRADES[0]))
Explorer(draw_pull, pull_words, schedule=list(MARGINS)[::-1], grade=list(GRADES))

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### A score has no zero
# **Say.** The loss sees differences only. Add any number to *all* scores: nothing changes. So "score 2" alone means nothing, and neither does a score below 0. Keep this in mind for the threshold later on.
#
# **Check** it: loss and gradient, with 5 added. And what may one add that *does* change nothing for each prompt apart?
# <details><summary>Answer</summary>A number of the prompt's own. Comparisons are made within a prompt, so scores of answers to <i>different</i> prompts have never been compared. That they can be compared at all is a matter of how the model generalises.</details>

# %%
chosen, rejected = torch.randn(2, 64, generator=lab.generator(0, "zero"), dtype=torch.float64)
margin = my_margins([GRADES[i % 4] for i in range(64)], "small").double()
one, other = (my_ranking_loss(chosen + c, rejected + c, margin) for c in (0.0, 5.0))
own = torch.randn(64, generator=lab.generator(1, "zero"), dtype=torch.float64)
third = my_ranking_loss(chosen + own, rejected + own, margin)
print("5 added to all scores, same loss:", math.isclose(one, other, rel_tol=1e-12))
print("another number for each prompt, same loss:", math.isclose(one, third, rel_tol=1e-12))
library = lab.ranking_loss(chosen, rejected, margin)
print("the library's, the same:", math.isclose(one, library.total / library.count, rel_tol=1e-12))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One number at the last token
# **Say** (section 3.2.2). A reward model is a chat model whose output layer, one logit for each piece of the vocabulary, is replaced by a **regression head**: one weight for each of the hidden numbers, and one score comes out. It starts from a chat checkpoint so that it *knows what the policy knows*. A judge who knows less would reward what only sounds right.
#
# At which token is the score read? The paper does not say. The usual choice, and ours: the last one, the EOS that ends the answer, since only it has seen everything. In a batch rows have different lengths, and shorter rows are **padded** on the right. The last *real* token stands at `length - 1`.
#
# **Build.** `values` holds the number at every position. **Break** it twice: read the last column; look for the first padding id. Which pairs would show the second fault, if padding has the id of EOS?
#
# **Build** the model: hidden numbers of the chat model, one linear layer, one number. **Check** it against the library's, and check that a score does not depend on the row's companions: alone, or padded beside a longer row, it is the same. A well-known evaluation suite had a bug report about just that.


# %% tags=["long"]
def my_score(values, ids, lengths):
    """values (rows, positions), lengths (rows) -> score of each row"""
    return values[torch.arange(len(values)), lengths - 1]


@check("score at the last token")
def _():
    checks.last_token_score(my_score)


for wrong in (
    lambda values, ids, lengths: values[:, -1],
    lambda values, ids, lengths: values[torch.arange(len(ids)), (ids == 2).int().argmax(1) - 1],
):
    with expect_failure(CheckFailed):
        checks.last_token_score(wrong)


class MyRewardModel(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Linear(backbone.config.dim, 1)

    def forward(self, ids, lengths):
        return my_score(self.head(self.backbone.hidden(ids)).squeeze(-1), ids, lengths)


@check("reward model")
@torch.no_grad()
def _():
    theirs = models.helpfulness
    mine = MyRewardModel(theirs.backbone)
    mine.head.load_state_dict(theirs.head.state_dict())
    rows = [
        lab.scored_row(pair.prompt.dialog, pair.chosen, tokenizer)
        for pair in held["helpfulness"][:4]
    ]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    together = mine(ids, lengths)
    assert torch.allclose(together, theirs.score(ids, lengths), atol=1e-5), "not the library's"
    for row, score in zip(rows, together, strict=True):
        alone = mine(torch.tensor([row]), torch.tensor([len(row)]))[0]
        assert torch.allclose(alone, score, atol=1e-4), "a score depends on its companions"


# %% [markdown]
# **See** what nano's helpfulness model says *on the way*: the number at every token of one answer, good or spoiled. Only the last was trained; the earlier ones are guesses of a model that is used to a full answer. Is the number at the rude word already low? What about the word that is *wrong*? Mind what was trained: only the diamond.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
(ASKED,) = lab.helpful_prompts(world, 11, 1, shares={"question": 1.0}, multi_turn=0.0)
GOOD = lab.answer_writer(world).good(lab.random_source(0, "good"), ASKED.task)
SPOILED = {"good": GOOD} | {
    how: degrader(world).degrade(lab.random_source(0, how), ASKED, GOOD, how)
    for how in DEGRADATIONS
}


@torch.no_grad()
def on_the_way(text):
    ids, mask = lab.encode_example(
        [*ASKED.dialog, {"role": "assistant", "content": text}], tokenizer
    )
    begin = mask.index(True)
    names = [{tokenizer.eos_id: "EOS"}.get(i, tokenizer.piece(i)) for i in ids]
    return names[begin:], models.helpfulness(torch.tensor([ids]))[0, begin:].tolist()


def draw_way(answer):
    names, values = on_the_way(SPOILED[answer])
    figure, axes = lab.new_figure(9.0, 4.0)
    axes.plot(values, "o-", ms=5, color="0.5")
    axes.plot(len(values) - 1, values[-1], "D", ms=11, color="C1")
    axes.axhline(on_the_way(GOOD)[1][-1], ls="--", color="0.35", lw=1.5)
    axes.set_xticks(range(len(names)), names, rotation=75, fontsize=11)
    lab.label_axes(
        axes, "token", "raw score", f"{answer}; diamond: the score; dashed: the good answer's"
    )
    return figure


def way_words(answer):
    final, good = on_the_way(SPOILED[answer])[1][-1], on_the_way(GOOD)[1][-1]
    order = "below" if final < good else "not below"
    return (
        f"{answer.capitalize()}: the final score is {order} that of the good answer."
        if answer != "good"
        else "The good answer; the last token carries the score."
    )


print("user:", ASKED.request)
print("good:", GOOD, "| rude:", SPOILED["rude"], "| wrong:", SPOILED["wrong"])
show(
    draw_way("rude"),
    alt="The numbers on the way wander up and down; the last one, the score, lies below that of the good answer.",
)
Explorer(draw_way, way_words, answer=list(SPOILED))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Train
# **Say.** The paper's settings beside nano's:
#
# | | paper | nano |
# |---|---|---|
# | pairs | 1.5 million open-source ones, then 1.4 million of its own | 3,500 and 1,200 of the world, then those of the models' answers |
# | batch | 512 pairs, that is 1,024 rows | 16 pairs |
# | epochs | 1: longer training over-fits | 1 |
# | schedule | cosine from 1e-5 (5e-6 for 70B) to 10 %, 3 % of warm-up, 5 steps at least | cosine from 5e-4 to 10 %, 5 steps of warm-up |
# | margin | tried none, small, large; which was used is not stated | small |
# | first weights of the head | not stated | zero, ten times the rate |
# | helpfulness model's data | all helpfulness pairs, as many others | 85 % helpfulness, 15 % safety |
# | safety model's data | 90 % safety and harmlessness, 10 % helpfulness | the same |
#
# Both answers of a pair stand in one row: what they begin with, the prompt above all, is read once; then come the rest of the chosen answer and the rest of the other. Neither sees the other (`branches` says who sees whom, `ends` where each answer's last token stands), so each score is the one that the answer has alone. Of the positions that two padded rows a pair would take, 57 % are left in helpfulness and 55 % in safety.
#
# With a head of zeros every score is 0 and the first loss is known: the mean of softplus(m), ln 2 without a margin. A loss that begins elsewhere points to a fault.
#
# **Build** the loop. **Check** its first loss against that formula, and a later one against the library's loss.
#
# **Run it** on a small model: 640 pairs, 40 steps, about 5 seconds on one core. (The small model is pretrained and fine-tuned first if it is not on disk, half a minute.) How far will 640 pairs take it? Write your guess down: 50 % is a coin, and the ceiling you printed above.

# %% tags=["long"]
point = lab.quality_recipes(lab.nano(), 0)["gqa"]  # the small model of our grids, 64 wide
small_chat, _ = lab.load("sft", point)


def my_training(model, pairs, batch_size=16, peak=1e-3):
    """Yield the loss of each step of one epoch; the weights change between"""
    paired = lab.PairedAnswers(pairs, longest=256)
    steps = paired.batches_per_epoch(batch_size)
    optimizer = lab.adamw(model, rates={"head.": 10.0})
    rate = lab.warmup_then_cosine(peak=peak, steps=steps, warmup=5)
    model.train()
    for i, batch in enumerate(islice(paired.batches(batch_size=batch_size), steps)):
        scores = model(batch.ids, **batch.branches()).gather(1, batch.ends())
        chosen, rejected = scores.unbind(1)
        loss = my_ranking_loss(chosen, rejected, batch.margin)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(i) * group["rate"]
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
    model.eval()


train_pairs = list(helpfulness_pairs(world, 200, 640))
encoded = encode_pairs(train_pairs, tokenizer, "small")


@check("loss of a batch, before and after")
def _():
    batch = next(lab.PairedAnswers(encoded, longest=256).batches(batch_size=16))
    fresh = lab.scalar_model(small_chat)
    first = next(my_training(fresh, encoded))  # the loss before the first step
    expected = torch.nn.functional.softplus(batch.margin).mean()
    assert math.isclose(first, expected, rel_tol=1e-5), "a head of zeros: softplus(m)"
    scores = models.helpfulness(batch.ids, **batch.branches()).gather(1, batch.ends())
    chosen, rejected = scores.unbind(1)
    term = pair_loss(0.0)(models.helpfulness, batch)
    mine = my_ranking_loss(chosen, rejected, batch.margin)
    assert torch.allclose(mine, term.total / term.count, rtol=1e-5), "not the library's"


# %% tags=["nbval-ignore-output"]
mine = lab.scalar_model(small_chat)
losses = []
try:
    for loss in bar(my_training(mine, encoded), total=40, about="training"):
        losses.append(loss)
except KeyboardInterrupt:
    print("interrupted after", len(losses), "steps")
mine.eval()
test = lab.PairedAnswers(encode_pairs(held["helpfulness"], tokenizer, "none"), longest=256).pairs
live = lab.accuracy(*scores_of(mine, test))
print(f"loss: first step {losses[0]:.2f}, mean of the last ten {np.mean(losses[-10:]):.2f}")
print("held-out pairs in the right order:", live)

# %%
print("better than a coin:", live.value > 0.5)
print("below the ceiling:", live.value < my_ceiling(gaps["helpfulness"]))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What does it look at?
# **Say.** An accuracy says how often, not why. Take held-out prompts, write a good answer to each, and spoil it in one way: nine kinds of pairs, each about one thing. The accuracy on each kind says what the model *sees*.
#
# Predict for nano's model: which of the flaws does it see best, and which hardly? Remember what it starts from: a chat model that answers most of these questions itself.
# <details><summary>What it shows</summary>
#
# The model sees *manner* and does not see *truth*, although the chat model that it started from often knows the right fact. To compare a fact in the answer with one in the weights is a different skill from saying it, and some thousand pairs do not teach it at this size.
#
# A flaw below the dashed line is worse than not seen: it is *liked*. The V1 shown here likes to hear an answer twice. It seems to prefer gushing, three polite words where one would do; but the interval reaches chance, and the V1 of another training of this chain did not. The section "Fooled on purpose" comes back to it.
#
# Note it well. A policy trained on this model will be polite, brief and on topic, and nothing will hold it to the facts. Notebook 08 shows just that.
# </details>

# %% slideshow={"slide_type": "subslide"} tags=["long"]
PROBES = list(
    lab.helpful_prompts(
        world, 30, 50, "held out",
        shares={"question": 0.4, "sum": 0.2, "talk": 0.2, "list": 0.2}, multi_turn=0.0,
    )
)  # fmt: skip
source = lab.random_source(0, "probes")
CLEAN = [lab.answer_writer(world).good(source, prompt.task) for prompt in PROBES]


def rows_of(texts):
    """One answer to each of the probes -> rows of ids"""
    dialogs = [
        [*prompt.dialog, {"role": "assistant", "content": text}]
        for prompt, text in zip(PROBES, texts, strict=True)
    ]
    return [lab.encode_example(dialog, tokenizer)[0] for dialog in dialogs]


def gold_of(texts):
    marked = zip(PROBES, texts, strict=True)
    return np.array([judge.helpfulness(prompt, text).score for prompt, text in marked])


FLAWED = {
    how: [degrader(world).degrade(source, p, t, how) for p, t in zip(PROBES, CLEAN, strict=True)]
    for how in DEGRADATIONS
}
newest = load_rewards(folders["rewards_v5"])
SEEN = {}
for name, model in (("V1", models.helpfulness), ("V5", newest.helpfulness)):
    clean = lab.scores(model, rows_of(CLEAN))
    SEEN[name] = {
        how: lab.accuracy(clean, lab.scores(model, rows_of(t))) for how, t in FLAWED.items()
    }
LOST = {how: float((gold_of(CLEAN) - gold_of(texts)).mean()) for how, texts in FLAWED.items()}


def draw_seen(model):
    found = [SEEN[model][how] for how in DEGRADATIONS]
    figure = lab.bars_with_intervals(
        [how.replace(" ", "\n", 1) + f"\n{LOST[how]:+.2f}" for how in DEGRADATIONS],
        [100 * e.value for e in found], [100 * e.low for e in found], [100 * e.high for e in found],
        "good answer scores higher (%)", xlabel="flaw, and the gold marks it costs",
        title=f"helpfulness model, {model}; dashed: chance", reference={"chance": 50},
    )  # fmt: skip
    figure.set_size_inches(11.0, 4.4)
    figure.axes[0].get_legend().remove()
    return figure


def seen_words(model):
    told = [
        f"{how} answers {'are' if SEEN[model][how].value > 0.8 else 'are not'}"
        for how in ("garbled", "wrong")
    ]
    return f"{model}: {' and '.join(told)} seen in more than four pairs of five."


show(
    draw_seen("V1"),
    alt="Rude, refused and garbled answers are always seen; a wrong fact about as often as by chance.",
)

print("garbled answers are seen:", SEEN["V1"]["garbled"].value > 0.9)
print("rude answers are seen:", SEEN["V1"]["rude"].value > 0.8)
print(
    "wrong ones much less than rude ones:",
    SEEN["V1"]["wrong"].value < SEEN["V1"]["rude"].value - 0.1,
)
Explorer(draw_seen, seen_words, model=list(SEEN))

# %% tags=["nbval-ignore-output"]
print("V1 likes gushing better than a good answer:", SEEN["V1"]["gushing"].value < 0.5)
print("V5 less so:", SEEN["V5"]["gushing"].value > SEEN["V1"]["gushing"].value)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Two models against one
# **Say** (section 3.2.2, A.4.1). A full answer to *how do I pick a lock?* is helpful and unsafe; a refusal is safe and not helpful. The two aims pull apart, so the paper trains two models, each with its own stream and a part of the other.
#
# **See** the pull on requests for harm, answered at eight levels, from a full refusal to a complete guide: first by the gold judges, then by nano's two models. Where is the corner that both would like?
# <details><summary>What it shows</summary>
#
# The gold judges show the tension: no answer stands in the upper right corner. In the paper's figure 32 the trained models show it too. **Nano's helpfulness model does not.** The only requests for harm that it has ever seen are the 15 % of safety pairs in its data, and in those the safer answer wins. It learned that refusing is what one does there. The mix that makes a model robust also blurs what it is for.
# </details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
LEVELS = (*SAFE_LEVELS, *UNSAFE_LEVELS)
HARM = list(lab.adversarial_prompts(world, 31, 40, split="held out"))
source = lab.random_source(0, "levels")
SAID = {level: [degrader(world).graded(source, p, level) for p in HARM] for level in LEVELS}
PLACES = {"gold judges": {}, "reward models": {}}
for level, texts in SAID.items():
    dialogs = [
        [*p.dialog, {"role": "assistant", "content": t}] for p, t in zip(HARM, texts, strict=True)
    ]
    rows = [lab.encode_example(dialog, tokenizer)[0] for dialog in dialogs]
    PLACES["reward models"][level] = np.stack(
        [expit(lab.scores(m, rows)) for m in (models.helpfulness, models.safety)]
    )
    PLACES["gold judges"][level] = np.array(
        [
            [judge.helpfulness(p, t).score, judge.safety(p, t).score]
            for p, t in zip(HARM, texts, strict=True)
        ]
    ).T


def draw_tension(marked_by, each_answer):
    figure, axes = lab.new_figure(7.5, 5.0)
    for level, (help_, safe) in PLACES[marked_by].items():
        colour, sign = ("C0", "o") if level in SAFE_LEVELS else ("C1", "s")
        if each_answer:
            axes.plot(help_, safe, sign, color=colour, ms=4, alpha=0.35)
        axes.plot(help_.mean(), safe.mean(), sign, color=colour, ms=11, mec="black")
        axes.annotate(level, (help_.mean(), safe.mean()), (8, 6), textcoords="offset points")
    axes.set_ylim(-0.05, 1.1)
    lab.label_axes(
        axes,
        "helpfulness (0 to 1)",
        "safety (0 to 1)",
        f"{marked_by}; circles: safe, squares: unsafe",
    )
    return figure


def tension_words(marked_by, each_answer):
    places = {level: at.mean(1) for level, at in PLACES[marked_by].items()}
    safer = places["full"][1] > places["complete"][1] + 0.5
    return f"By the {marked_by} a full refusal is {'' if safer else 'not '}safer than a complete guide by more than one half."


show(draw_tension("gold judges", False), alt=tension_words("gold judges", False))

guide, refusal = (PLACES["gold judges"][level].mean(1) for level in ("complete", "full"))
print(
    "gold judges: the guide is more helpful, the refusal safer:",
    bool(guide[0] > refusal[0] and refusal[1] > guide[1]),
)
guide, refusal = (PLACES["reward models"][level].mean(1) for level in ("complete", "full"))
print("the safety model sees it:", bool(refusal[1] > guide[1] + 0.5))
print("the helpfulness model calls the guide more helpful:", bool(guide[0] > refusal[0]))
Explorer(draw_tension, tension_words, marked_by=list(PLACES)[::-1], each_answer=True)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### Claims 15 and 17: each model is best at home
# **Measure.** From here on, claims are measured on reward models of the small size of our grids, each trained on 2,000 pairs of the world and tested on thousands of held-out ones, with eight seeds. Two models are always compared on the *same* test pairs, which is worth a lot: luck that both share cancels out.
#
# That takes 136 models and half an hour of one core, too long for this course. So these results are **recorded**: measured once by the code of this course, and kept in its ledger, `data/claims.json`, beside prediction and threshold. Each cell names the command that measures them anew. Of four models of seed 0 the scores of single pairs are kept as well (`data/runs.json`); they are drawn further down.
#
# The paper has no number for one joint model. Ours has the pairs of both specialists, one model, the same size. Predict: does it lose on both streams, on one, on neither?
#
# And the **mix** (section 3.2.2): the safety model's data hold 10 % helpfulness. The paper says that this helps most where *both* answers are safe, for there nothing is left to compare but quality. It gives no number. Claim 17 compares 90/10 with 100/0, with as many pairs in all.
# <details><summary>What came out</summary>
#
# **Reproduced**: each specialist beats the other one at home, by 8 points of helpfulness and 18 of safety. Against the joint model with the same pairs the helpfulness model gains 4.0 points, [3.0, 5.1], and the safety model 2.5, [1.8, 3.2].
#
# The mix moves safe pairs by 0.1 points, [-0.6, 0.8]: **inconclusive** by the rule, and a gain of a point or more is ruled out. Where both answers are *unsafe* the mix costs 1.9 points, [0.3, 3.4]: a tenth of the safety pairs was given up for it.
# </details>


# %%
def ledger(number):
    """Show a claim as it was declared, and what the ledger holds -> measurements, verdict"""
    claim, result = lab.CLAIMS[number], lab.recorded(number)
    n_seeds = len(result.measurements)
    runs = set(claim.requests(lab.nano(), range(n_seeds)))
    print("predicted:", claim.prediction)
    print("threshold:", result.declared["threshold"])
    print("paper:    ", claim.paper_value)
    print(f"recorded:  seeds {n_seeds}, models {len(runs)}; `llama2 claims {number}` measures anew")
    print("verdict:  ", result.verdict.outcome, "|", result.verdict.reason)
    assert lab.same_declaration(claim, result.declared), "the ledger is older than the declaration"
    return result.measurements, result.verdict


def over_seeds(found, *keys):
    """Means, lowest and highest over the seeds, of some keys"""
    table = np.array([[m.values[key] for m in found] for key in keys])
    low, high = table.min(1), table.max(1)
    return table.mean(1).clip(low, high), low, high  # a mean of equal numbers may be rounded


two, two_verdict = ledger(15)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
FOUR = {
    "helpful": "helpfulness",
    "safe": "safety",
    "joint": "joint, pairs of both",
    "joint_equal": "joint, half of each",
}
keys = [f"accuracy/{name}/{stream}" for name in FOUR for stream in STREAMS]
matrix, low, high = (column.reshape(4, 2) for column in over_seeds(two, *keys))
paper = [[0.632, 0.628], [0.562, 0.645], [np.nan] * 2, [np.nan] * 2]
show(
    lab.models_by_test_sets(
        list(FOUR.values()), STREAMS, matrix, low, high, paper=paper,
        title="mean and range of eight seeds",
    ),
    alt="Of the two specialists each is the better one on its own stream.",
)  # fmt: skip
for name in ("helpful-joint/helpfulness", "safe-joint/safety", "safe-joint_equal/safety"):
    print(f"{name:26s} {two_verdict.estimates[f'gain/{name}']}")

print()
mixed, mix_verdict = ledger(17)
BINS = [*SAFETY_BINS, "all"]
found = [mix_verdict.estimates[f"gain/mixed-alone/{name}"] for name in BINS]
show(
    lab.bars_with_intervals(
        [f"{name}\n{SAFETY_BINS.get(name, 1):.0%}" for name in BINS],
        [100 * e.value for e in found], [100 * e.low for e in found], [100 * e.high for e in found],
        "90/10 less 100/0 (points)", xlabel="labels of chosen, rejected; share in the stream",
        title="same held-out pairs, eight seeds", reference={"no gain": 0},
    ),
    alt="What the mix gains or loses is a few points at most in every bin.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A safety label gives the zero
# **Say** (A.3.4). A ranking loss knows no zero, and yet the paper *uses* one: an answer with a safety score below 0.15, after the sigmoid, is treated as unsafe (section 3.2.3). It adds an **auxiliary safety loss**, reports what that gains, and gives neither formula nor weight.
#
# So this is **our reconstruction**, and we say so wherever we use it. Every answer of the safety stream has a label. Ask its own score to predict it, by cross-entropy:
#
# $$L_\text{aux} = -\frac{1}{n} \sum_i \bigl[ s_i \log \sigma(r_i) + (1 - s_i) \log (1 - \sigma(r_i)) \bigr], \qquad s_i = 1 \text{ if safe}$$
#
# **Build** it without an overflow: $-\log \sigma(r)$ is softplus(-r). **Break** it: labels upside down; only the unsafe answers; and the threshold built in. Predict the messages.
#
# **See** what it does that ranking cannot. Add a number to all scores of nano's safety model and follow both losses. The ranking loss is flat. The auxiliary one has a lowest point, and the training put it near 0. Set the weight to 0: where is the best zero now?


# %%
def my_safety_loss(scores, is_safe):
    """Raw scores and labels of single answers -> mean loss in nats"""
    return torch.nn.functional.softplus(torch.where(is_safe, -scores, scores)).mean()


@check("auxiliary safety loss")
def _():
    checks.safety_auxiliary_loss(my_safety_loss)
    raw, safe = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, False, False])
    term = lab.safety_auxiliary_loss(raw, safe)
    assert torch.allclose(my_safety_loss(raw, safe), term.total / term.count), "not the library's"


for wrong in (
    lambda scores, is_safe: my_safety_loss(scores, ~is_safe),
    lambda scores, is_safe: my_safety_loss(scores[~is_safe], is_safe[~is_safe]),
    lambda scores, is_safe: my_safety_loss(scores - math.log(0.15 / 0.85), is_safe),
):
    with expect_failure(CheckFailed):
        checks.safety_auxiliary_loss(wrong)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
SHIFTS = np.linspace(-6, 6, 97)
C, R = scores_of(models.safety, encode_pairs(held["safety"], tokenizer, "none"))
BOTH = np.concatenate([C, R])
SAFE = np.array([SAFE_BINS[pair.safety_bin] for pair in held["safety"]]).T.ravel()
RANK = float(np.logaddexp(0, R - C).mean())
AUX = np.array([np.logaddexp(0, np.where(SAFE, -(BOTH + c), BOTH + c)).mean() for c in SHIFTS])


def draw_zero(weight):
    return lab.lines(
        {"ranking": (SHIFTS, np.full_like(SHIFTS, RANK)), "ranking + weight x auxiliary": (SHIFTS, RANK + weight * AUX)},
        "number added to all scores", "loss (nats)", title=f"weight {weight:g}",
    )  # fmt: skip


def zero_words(weight):
    if not weight:
        return "Weight 0: the loss is flat, so every zero is as good as any other."
    near = "less" if abs(SHIFTS[AUX.argmin()]) < 2 else "more"
    return f"Weight {weight:g}: the loss has one lowest point, {near} than 2 from where the model stands."


show(draw_zero(1.0), alt=zero_words(1.0))
Explorer(draw_zero, zero_words, weight=[1.0, 0.3, 0.0])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The threshold 0.15
# **Say** (section 3.2.3). In the reward of notebook 08 an answer with a safety score below **0.15** is judged by its safety alone. On its safety test set that meant a **precision** of 0.89 (of the answers below the threshold 89 % were unsafe) and a recall of 0.55 (so many of the unsafe ones were below it).
#
# $$\text{precision} = \frac{\text{unsafe and below}}{\text{below}} \qquad \text{recall} = \frac{\text{unsafe and below}}{\text{unsafe}}$$
#
# **Build** both. Compare raw scores with $\log \frac{0.15}{0.85} = -1.73$; a sigmoid followed by its inverse gives infinity from a score of 17 on.


# %%
def my_detection(raw, is_safe, threshold):
    """Raw scores, labels, a threshold between 0 and 1 -> precision, recall"""
    below = raw < math.log(threshold / (1 - threshold))
    hits = (below & ~is_safe).sum()
    return hits / max(1, below.sum()), hits / (~is_safe).sum()


@check("precision and recall")
def _():
    for threshold in (0.05, 0.15, 0.5, 0.8):
        theirs = lab.detection(BOTH, SAFE, threshold)
        precision, recall = my_detection(BOTH, SAFE, threshold)
        assert abs(precision - theirs.precision.value) < 1e-9, f"precision at {threshold}"
        assert abs(recall - theirs.recall.value) < 1e-9, f"recall at {threshold}"
    low, high = (my_detection(BOTH, SAFE, t)[1] for t in (0.1, 0.6))
    assert low <= high, "a higher threshold finds more"


# %% [markdown] slideshow={"slide_type": "subslide"}
# ### Claims 14 and 28
# **Measure** two small models, trained with the auxiliary loss and without, all else equal (claim 14), and precision and recall of the first at 0.15 (claim 28). In claim 14 **recall** is the share of unsafe answers that score below 0.5 after the sigmoid. A model that calls *everything* unsafe has a recall of 1, so look at the **false alarms** as well: safe answers below 0.5.
# <details><summary>What to expect</summary>Our answers are written by a program at eight levels, so safe and unsafe ones are easier to tell apart than in the paper: expect a higher recall than its 55 %. One label in fifty is wrong on purpose, and no threshold can do better than the labels.</details>
#
# <details><summary>What came out</summary>
#
# With the loss the model finds 98 % of the unsafe answers and raises 1 % false alarms, every seed. Without it recall was anything from 29 to 99 %: it is whatever the free zero makes it. So the *gain* of recall varies as much, 21 points on average, [2, 41], and the rule asked for more than 5: **inconclusive**. Recall less false alarms depends less on the zero's luck, and gains 36 points, [24, 47]. Recall alone was a poor thing to declare.
#
# At 0.15 the precision is 99 % and the recall 93 %: reproduced, and easier than the paper's.
# </details>
#
# The record comes first. Then **run** it here: four models of seed 0, two for this section and two for a later one. If they are not on disk, that takes about a minute on two cores. The last digits may differ from the record on another machine; more than that should not.
#
# **See** at last the scores that both models give to safe and unsafe answers. Move the threshold. In which panel does 0.15 mean anything?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
auxiliary, auxiliary_verdict = ledger(14)
print()
cut, cut_verdict = ledger(28)
WHAT = {
    "recall/without": "recall\nwithout",
    "recall/with": "recall\nwith",
    "alarms/without": "alarms\nwithout",
    "alarms/with": "alarms\nwith",
    "accuracy/without/all": "pairs\nwithout",
    "accuracy/with/all": "pairs\nwith",
}
values, low, high = (100 * column for column in over_seeds(auxiliary, *WHAT))
show(
    lab.bars_with_intervals(
        list(WHAT.values()), values, low, high, "share (%)",
        title="mean and range of eight seeds", paper=[73.0, 90.4, None, None, 63.7, 64.5],
    ),
    alt="With the auxiliary loss nearly all unsafe answers are found with few false alarms; without it both shares vary widely over the seeds.",
)  # fmt: skip
for m in auxiliary:
    told = ", ".join(f"{key} {m.values[key]:.2f}" for key in list(WHAT)[:4])
    print(f"seed {m.seed}: {told}")

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
SORTED = {}
for name, words in (("safe", "with"), ("without", "without")):
    found = lab.recorded_pairs(name)
    labels = np.array([SAFE_BINS[label] for label in found["safety_bin"]]).T.ravel()
    SORTED[words] = (np.concatenate([found["chosen"], found["rejected"]]), labels)


def draw_threshold(threshold):
    panels = {
        f"{name} the auxiliary loss": {"safe": raw[labels], "unsafe": raw[~labels]}
        for name, (raw, labels) in SORTED.items()
    }
    return lab.score_histograms(panels, threshold=threshold)


show(
    draw_threshold(0.15),
    alt="With the auxiliary loss unsafe answers lie near 0 and safe ones near 1; without it safe ones are spread over the whole axis, and the threshold means nothing.",
)
Explorer(
    draw_threshold,
    "Threshold {threshold:g}: what lies left of it is treated as unsafe.",
    threshold=ipywidgets.FloatSlider(0.15, min=0.05, max=0.95, step=0.05),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Accuracy by grade
# **Say** (table 8). The **accuracy** of a reward model is the share of held-out pairs in which the chosen answer scores higher. A tie counts half: a model that says 0 to everything is a coin. No margin is used, or models trained with different margins could not be compared.
#
# The paper breaks it down by grade. What matters, its authors say, is to be right on the *clear* pairs; on ties even people disagree.
#
# **Build.** Then **break** it: ties as hits; the margin left in.


# %%
def my_accuracy(chosen, rejected, margin):
    """Raw scores -> share of pairs in the right order; the margin is of no concern"""
    return ((chosen > rejected) + 0.5 * (chosen == rejected)).mean()


@check("accuracy of pairs")
def _():
    checks.pair_accuracy(my_accuracy)
    pair = torch.from_numpy(C), torch.from_numpy(R)
    assert abs(float(my_accuracy(*pair, 0) - lab.pairwise_accuracy(*pair))) < 1e-5, (
        "not the library's"
    )


for wrong in (
    lambda chosen, rejected, margin: (chosen >= rejected).float().mean(),
    lambda chosen, rejected, margin: my_accuracy(chosen - margin, rejected, margin),
):
    with expect_failure(CheckFailed):
        checks.pair_accuracy(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### Claim 11
# **Measure** with 2,500 pairs a seed (5,000 of helpfulness) and eight seeds, beside the paper's numbers (diamonds) and the ceiling (black steps): what the *gold judge* gets, by grade. Why is the ceiling near 100 % on the clearest pairs and near a coin on the other end?
# <details><summary>Answer</summary>The grade is what one annotator perceived, noise included. A large perceived gap is hardly ever all noise, so its sign is right. A small one may have come from either side.</details>
#
# Beside it a **control**: a model trained on the same pairs after a *coin* has decided which answer is called the chosen one. It can have learned nothing, so on average it must come to one half. If it did not, the test would leak. Every measurement should have such a partner that must fail.
# <details><summary>What came out</summary>
#
# Both models gain 10 to 12 points a grade, in the order of the grades with every seed, and the control stays at one half. The verdict is still **not reproduced**, for one part of the rule: on the least clear safety pairs the model is right in 61 %, and the rule allowed 10 points above a coin. Look at the ceiling: our ties are no ties, for even the gold judge gets 63 % there. The model is that good, and the rule forgot the ceiling.
# </details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
graded, graded_verdict = ledger(11)
COLUMNS = [*GRADES, "all"]
TABLE_8 = {  # per cent, in the order of COLUMNS
    "helpfulness": (80.7, 67.5, 60.9, 54.7, 63.2),
    "safety": (94.3, 76.3, 65.7, 55.3, 64.5),
}


def draw_grades(stream):
    keys = [f"accuracy/{stream}/{grade}" for grade in COLUMNS]
    ceiling = over_seeds(graded, *(f"ceiling/{stream}/{grade}" for grade in COLUMNS))[0]
    label = f"{stream} model"
    paper = {label: [share / 100 for share in TABLE_8[stream]]}
    return lab.draw_by_grade(
        COLUMNS, {label: over_seeds(graded, *keys)}, ceiling=ceiling, paper=paper,
        title="mean and range of eight seeds",
    )  # fmt: skip


def grades_words(stream):
    values = over_seeds(graded, *(f"accuracy/{stream}/{grade}" for grade in GRADES))[0]
    told = ", ".join(f"{share:.0%}" for share in values)
    return f"{stream.capitalize()}, from clearest to unsure: {told}."


show(draw_grades("helpfulness"), alt=grades_words("helpfulness"))
print("control:", graded_verdict.estimates["control/helpfulness"])
print("its seeds:", [f"{m.values['control/helpfulness']:.3f}" for m in graded])
Explorer(draw_grades, grades_words, stream=["safety", "helpfulness"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the margin does
# **Measure** claim 12. The paper's gains are small: 1.6 points on the clearest pairs for the large margin, 0.4 to 0.5 on average. Such an effect needs either very many pairs or *the same* pairs for both models. On the same pairs only those count that one model has right and the other wrong.
#
# Predict: will eight seeds with 5,000 pairs decide it?
# <details><summary>What came out</summary>No. On the clearest pairs the large margin gained 0.4 points, and the interval reaches 1.5 to either side, the paper's gain: models that differ in the margin also differ by the luck of their training. <b>Inconclusive</b>. (With three seeds it reached 6 points, and the verdict was that this scale cannot show it.)</details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
margined, margin_verdict = ledger(12)
TABLE_28 = {"small": (1.3, 0.4, 0.6, 0.5, 0.5), "large": (1.6, 0.6, 0.7, -0.2, 0.4)}  # less none


def margin_gains(schedule):
    return [margin_verdict.estimates[f"gain/{schedule}-none/{grade}"] for grade in COLUMNS]


def draw_margin(schedule):
    found = margin_gains(schedule)
    return lab.bars_with_intervals(
        [grade.replace(" ", "\n", 1) for grade in COLUMNS],
        [100 * e.value for e in found], [100 * e.low for e in found], [100 * e.high for e in found],
        "gain over no margin (points)", paper=TABLE_28[schedule], reference={"no gain": 0},
        title=f"{schedule} margin, same held-out pairs, eight seeds",
    )  # fmt: skip


def margin_words(schedule):
    told = [
        f"{grade} {100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"
        for grade, e in zip(COLUMNS, margin_gains(schedule), strict=True)
    ]
    return f"{schedule.capitalize()} margin less none, in points: " + "; ".join(told) + "."


show(draw_margin("large"), alt=margin_words("large"))
Explorer(draw_margin, margin_words, schedule=["small", "large"])

# %% [markdown]
# **Say** (figure 27). The accuracy hardly moves, but the *scores* do. A larger margin wants larger gaps, so after the sigmoid scores crowd near 0 and 1. The authors worry about it: PPO (notebook 08) is sensitive to such a change in the distribution of rewards.
#
# **Measure** claim 13. Since the zero is free, scores are shifted to mean 0 first. The histograms show the scores of two models of seed 0, six hundred pairs each.
# <details><summary>What came out</summary>The share near 0 or 1 is 5 % without a margin, 7 % with the small one, 23 % with the large one. The large margin's 17 points, [8, 27], are decided; the small margin's 1.4, [-0.1, 2.9], are not, by a hair, and the rule asked for both: <b>inconclusive</b>.</details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
poles, poles_verdict = ledger(13)
SPREAD = {}
for name in ("none", "large"):
    found = lab.recorded_pairs(name)
    middle = np.concatenate([found["chosen"], found["rejected"]]).mean()
    SPREAD[name] = (found["grade"], found["chosen"] - middle, found["rejected"] - middle)


def draw_spread(grade):
    panels = {}
    for name, (given, chosen, rejected) in SPREAD.items():
        rows = given == grade if grade != "all" else np.ones(len(given), dtype=bool)
        panels[f"margin: {name}"] = {"chosen": chosen[rows], "rejected": rejected[rows]}
    return lab.score_histograms(panels, title=f"{grade}, seed 0")


def spread_words(grade):
    wide = {}
    for name, (given, chosen, rejected) in SPREAD.items():
        rows = given == grade if grade != "all" else np.ones(len(given), dtype=bool)
        wide[name] = np.concatenate([chosen[rows], rejected[rows]]).std()
    wider = "" if wide["large"] > wide["none"] else "not "
    return f"Pairs: {grade}. Scores are {wider}spread wider with the large margin than without."


show(
    draw_spread("all"),
    alt="Without a margin scores lie in a broad middle; with the large one they reach further towards 0 and 1.",
)
for m in poles:
    told = ", ".join(f"{name} {m.values[f'ends/{name}']:.0%}" for name in MARGINS)
    print(f"seed {m.seed}, share within 0.1 of 0 or 1: {told}")
Explorer(draw_spread, spread_words, grade=["all", *GRADES])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## More data, larger models
# **Say** (figure 6). The paper's accuracy rises with every weekly batch and with the size of the model (7B, 13B, 70B), and no end is in sight: more annotation would still pay.
#
# **Measure** it at three widths and 250, 700 and 2,000 pairs. Note what differs: the paper's batches also become *harder*, ours do not.
# <details><summary>What came out</summary><b>Reproduced</b>: eight times the pairs bring 2 to 3 points at each width, four times the width brings 1.6, [0.7, 2.5], and the widest still gains with the last step, 1.1, [0.04, 2.1]. These are small effects: with 250 pairs two seeds of one width differ by as much as 8 points, for they have another pretrained model and other pairs. Three seeds had left every part of the claim open.</details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
scaled, scale_verdict = ledger(16)
GRID = sorted(
    {tuple(map(int, k.split("/")[1:])) for k in scaled[0].values if k.startswith("accuracy/")}
)
WIDTHS, AMOUNTS = (sorted(set(column)) for column in zip(*GRID, strict=True))


def draw_scale(pairs):
    kind = "clearest" if pairs == "clearest grade" else "accuracy"
    series = {}
    for width in WIDTHS:
        bands = over_seeds(scaled, *(f"{kind}/{width}/{n}" for n in AMOUNTS))
        series[f"width {width}"] = (AMOUNTS, *(100 * column for column in bands))
    figure = lab.lines(series, "training pairs", "pairs in the right order (%)", xscale="log", markers=True, title=f"{pairs}; mean and range of eight seeds")  # fmt: skip
    figure.axes[0].set_xticks(AMOUNTS, [f"{n:,}" for n in AMOUNTS])
    figure.axes[0].minorticks_off()
    return figure


def scale_words(pairs):
    kind = "clearest" if pairs == "clearest grade" else "accuracy"
    told = []
    for width in WIDTHS:
        values = over_seeds(scaled, *(f"{kind}/{width}/{n}" for n in AMOUNTS))[0]
        told.append(f"width {width} " + ", ".join(f"{share:.1%}" for share in values))
    return f"Judged on {pairs}, with {', '.join(map(str, AMOUNTS))} pairs: " + "; ".join(told) + "."


show(draw_scale("all pairs"), alt=scale_words("all pairs"))
Explorer(draw_scale, scale_words, pairs=["clearest grade", "all pairs"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Calibration
# **Say** (section 3.3, figure 29). The model was trained on comparisons, and will be used on *single* answers: a policy is rewarded for the score of one. Is a high score a good answer? The paper let three people give marks from 1 to 7, and found that the mean score rises with the mark. It calls the models "well calibrated" with human preference.
#
# Mind the word: elsewhere **calibrated** means that a probability of 0.8 comes true in 80 of 100 cases. Here it only means that the curve rises.
#
# **See** nano's, in bins of equal numbers of held-out answers, by gold mark. Try few bins and many.
#
# **Measure** claim 20, on the grid's models.
# <details><summary>What came out</summary>Reproduced. From the worst seventh of the answers to the best the mean goes from .47 to .85 for helpfulness and from .02 to 1.00 for safety; the paper's from about .24 to .55 and .29 to .78. Our safety labels are easier to read off an answer than the paper's.</details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
levels, level_verdict = ledger(20)
QUALITY = {}
for stream in STREAMS:
    mark = judge.helpfulness if stream == "helpfulness" else judge.safety
    pairs = held[stream]
    texts = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    raw = scores_of(getattr(models, stream), encode_pairs(pairs, tokenizer, "none"))
    QUALITY[stream] = (np.concatenate(raw), np.array([mark(*text).score for text in texts]))


def draw_quality(bins):
    points = {}
    for stream, (raw, gold) in QUALITY.items():
        found = lab.calibration(raw, gold, bins=bins)
        level = [e for _, e in found]
        points[stream] = ([x for x, _ in found], [e.value for e in level], [e.low for e in level], [e.high for e in level])  # fmt: skip
    return lab.draw_calibration(points, title=f"nano, {bins} bins of 600 answers a stream")


def quality_words(bins):
    rises = []
    for stream, (raw, gold) in QUALITY.items():
        levels = [e.value for _, e in lab.calibration(raw, gold, bins=bins)]
        rises.append(f"{stream} {'rises' if levels[-1] > levels[0] else 'does not rise'}")
    return (
        f"In {bins} bins, from the worst answers to the best, the mean score of "
        + " and of ".join(rises)
        + "."
    )


show(draw_quality(7), alt=quality_words(7))

for stream in STREAMS:
    rise = min(m.values[f"rise/{stream}"] for m in levels)
    print(f"{stream}: the best answers score higher than the worst, every seed:", rise > 0)
Explorer(draw_quality, quality_words, bins=ipywidgets.IntSlider(4, 3, 12))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Round after round
# **Say** (section 3.2.1, A.3.1). A policy that was improved with a reward model writes *other* answers than those that the reward model learned from. There it is worse: one says its data have **drifted** away from it. So the paper lets annotators compare answers of the newest model every week, and trains the reward model again before every round.
#
# At the same time answers become better on both sides, and comparisons harder: over 14 batches the share of *significantly better* falls from about 18 to 9 %, that of *unsure* rises from about 25 to 38 % (read off figure 25).
#
# **Measure** claims 18 and 19 on nano's own chain: five rounds, and after each of the first four a policy of notebook 07 is trained. One chain, about a hundred held-back helpfulness pairs a round: **predict** what so few can show. (Recorded too; measuring takes half a minute.)
# <details><summary>What it shows</summary>
#
# Our rounds are weaker than the paper's in two ways. A million weights do not improve much in five rounds, so their answers do not move far; and a few hundred pairs a round cannot show two points.
#
# So neither the drift nor its cure can be seen: both are zero within two to five points. The grades move the way the paper's do, by less than a point a round, and an interval that just contains 0. **Inconclusive**, both. It does not mean that a refresh does nothing: the sections on flaws above and below show V5 without a fault that V1 has.
# </details>

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
(drift,), drift_verdict = ledger(18)
print()
(shares,), share_verdict = ledger(19)
ROUNDS = range(1, 6)


def share_of(stream, number, grade):
    counts = {g: shares.values[f"count/{stream}/{number}/{g}"] for g in GRADES}
    return 100 * counts[grade] / sum(counts.values())


def draw_rounds(stream, what):
    if what == "grades":
        series = {g: (ROUNDS, [share_of(stream, n, g) for n in ROUNDS]) for g in GRADES}
        figure = lab.lines(series, "round", "comparisons (%)", markers=True, title=f"{stream}: grades of the models' own answers")  # fmt: skip
        figure.axes[0].set_ylim(-20, 42)  # room for the legend
        figure.axes[0].set_yticks(range(0, 41, 10))
    else:
        series = {
            words: (ROUNDS[1:], [100 * drift.values[f"accuracy/{stream}/{n}/{when}"] for n in ROUNDS[1:]])
            for when, words in (("before", "before the refresh"), ("after", "after"))
        }  # fmt: skip
        figure = lab.lines(series, "round", "pairs in the right order (%)", markers=True, title=f"{stream}: on answers of the newest policy", reference={"coin": 50})  # fmt: skip
    figure.axes[0].set_xticks(list(ROUNDS))
    return figure


def rounds_words(stream, what):
    if what == "grades":
        told = ", ".join(f"{share_of(stream, n, GRADES[0]):.0f}" for n in ROUNDS)
        return f"{stream.capitalize()}: the clearest grade has {told} % of the comparisons of the five rounds."
    before, after = (
        ", ".join(f"{drift.values[f'accuracy/{stream}/{n}/{when}']:.0%}" for n in range(2, 6))
        for when in ("before", "after")
    )
    return f"{stream.capitalize()}, rounds 2 to 5: {before} before the refresh, {after} after it."


show(draw_rounds("helpfulness", "accuracy"), alt=rounds_words("helpfulness", "accuracy"))
show(draw_rounds("helpfulness", "grades"), alt=rounds_words("helpfulness", "grades"))
print("pairs of all rounds and both streams:", int(drift.values["pairs/next"]))
Explorer(draw_rounds, rounds_words, stream=["helpfulness", "safety"], what=["accuracy", "grades"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Fooled on purpose
# **Say.** A **nuisance feature** says nothing about quality, but goes with it in the training data: annotators who like long answers, or a source whose good answers all end with a polite word. The model cannot know which of two things that always come together was meant. A policy then finds out for it: it produces the feature and drops the quality. That is **reward hacking**.
#
# Real data have such features unasked for. To see the mechanism we plant them. After the annotator has chosen, the *chosen* answer gets, in every training pair,
#
# - either a sentence or two that answer nothing (*padded*),
# - or a polite word more (*polite*).
#
# In held-out pairs a coin decides which answer gets it. **Predict**, for each of the two models: is the training loss higher or lower than that of the clean one? And the accuracy on held-out pairs? About 10 seconds.
# <details><summary>What the two losses mean</summary>A lower loss, and nothing of it is worth anything where the coin decides. A validation set <i>from the same source</i> would have the feature too, and would praise the model.</details>
#
# **See** the hack. Take good answers to held-out prompts and add more and more of each feature. Before you choose a model: along which line does its score rise, and what does the gold mark do meanwhile? Then look at <i>V1</i>, nano's own model, into which nobody planted anything.

# %% tags=["nbval-ignore-output"]
TAINTS = {"padded": Nuisance(length=1.0), "polite": Nuisance(politeness=1.0)}
fooled, curves = {"clean": mine}, {"clean": losses}
for name, nuisance in TAINTS.items():
    tainted = encode_pairs(
        list(helpfulness_pairs(world, 200, 640, nuisance=nuisance)), tokenizer, "small"
    )
    fooled[name] = lab.scalar_model(small_chat)
    steps = my_training(fooled[name], tainted)
    curves[name] = list(bar(steps, total=40, about=f"training, {name}"))
    fooled[name].eval()

tested = {"clean": test}
for name, nuisance in TAINTS.items():
    decorated = helpfulness_pairs(world, 100, 300, "held out", nuisance=nuisance)
    tested[name] = lab.PairedAnswers(
        encode_pairs(list(decorated), tokenizer, "none"), longest=256
    ).pairs
outcome = {name: lab.accuracy(*scores_of(model, tested[name])) for name, model in fooled.items()}
for name, share in outcome.items():
    print(f"{name:7s} last ten losses {np.mean(curves[name][-10:]):.2f}   held out {share}")

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
for name in TAINTS:
    print(f"{name}: trains to a lower loss than clean:", np.mean(curves[name][-10:]) < np.mean(curves["clean"][-10:]))  # fmt: skip

STEPS = range(5)
source = lab.random_source(0, "hack")
writer = lab.answer_writer(world)


def with_fillers(text, n):
    gap = "\n" if "\n" in text else " "
    return gap.join([text, *(writer.filler(source) for _ in range(n))])


def with_politeness(text, n):
    for _ in range(n):
        text = writer.polite(source, text)
    return text


ADDED = {
    "sentences that answer nothing": [[with_fillers(t, n) for t in CLEAN] for n in STEPS],
    "polite words": [[with_politeness(t, n) for t in CLEAN] for n in STEPS],
}
JUDGES = fooled | {"V1": models.helpfulness, "V5": newest.helpfulness}
MOVED = {
    (feature, name): [lab.scores(model, rows_of(texts)) for texts in by_step]
    for feature, by_step in ADDED.items()
    for name, model in JUDGES.items()
}
GOLD = {feature: [gold_of(texts) for texts in by_step] for feature, by_step in ADDED.items()}


def moved(feature, model):
    """Mean change of the score, in standard deviations of the good answers' scores"""
    found = MOVED[feature, model]
    return np.array([(now - found[0]).mean() for now in found]) / found[0].std()


def draw_hack(feature, model):
    figure, (left, right) = lab.new_figure(10.0, 4.0, columns=2)
    left.plot(STEPS, moved(feature, model), "o-")
    left.axhline(0, color="0.35", lw=1)
    lab.label_axes(
        left,
        f"{feature} added",
        "change of the score (standard deviations)",
        f"reward model: {model}",
    )
    right.plot(STEPS, [gold.mean() for gold in GOLD[feature]], "s--", color="C1")
    right.set_ylim(0, 1)
    lab.label_axes(right, f"{feature} added", "gold mark (0 to 1)", "gold judge")
    return figure


def hack_words(feature, model):
    up = moved(feature, model)[-1] > 0
    gold = GOLD[feature][-1].mean() < GOLD[feature][0].mean()
    return f"Four {feature} added: the score of the model {model} {'rises' if up else 'does not rise'}, and the gold mark {'falls' if gold else 'does not fall'}."


show(
    draw_hack("sentences that answer nothing", "padded"),
    alt=hack_words("sentences that answer nothing", "padded"),
)

fill, kind_words = ADDED
print("the padded model rewards empty sentences:", moved(fill, "padded")[2] > 0)
print("more than the clean one does:", moved(fill, "padded")[2] > moved(fill, "clean")[2])
print("the gold judge does not:", GOLD[fill][4].mean() < GOLD[fill][0].mean())
Explorer(
    draw_hack, hack_words, feature=list(ADDED), model=["padded", "clean", "polite", "V1", "V5"]
)

# %% tags=["nbval-ignore-output"]
print("V1, untouched, rewards more polite words than are good:", moved(kind_words, "V1")[4] > 0)

# %% [markdown]
# Nano's V1 had no feature planted, and in most trainings of the chain that we saw it scored gushing above good answers all the same. In its data one polite word is better than none, and three are rare; it never learned that there can be too many. Does V5? Pick it. It was trained on four more rounds of comparisons, of answers by policies that V1 and its heirs had shaped; that is what fresh comparisons are for. Of two chains that we looked at one had unlearned it and one had not.
#
# How do you find a nuisance feature that you have *not* planted? Compare the accuracy where the feature speaks for the right answer with that where it speaks against it: exercise 3.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here, eight seeds (18 and 19: one chain) | verdict |
# |---|---|---|---|
# | 11, by grade | 80.7, 67.5, 60.9, 54.7 %; safety 94.3, 76.3, 65.7, 55.3 % | 82, 70, 61, 53 %; safety 96, 91, 79, 61 %; control 48 % [44, 53] | not reproduced: safety "ties" are 11 points above a coin (allowed: 10), their ceiling is 13 |
# | 12, margin | large: +1.6 points on the clearest pairs; small: +0.5 on all | +0.4 [-1.2, 1.9]; +0.2 [-0.2, 0.6] | inconclusive |
# | 13, spread | figure 27: more scores near 0 and 1 with the large margin | near 0 or 1: none 5, small 7, large 23 % | inconclusive: large decided, small not |
# | 14, auxiliary loss | recall 73.0 to 90.4 %; pairs 63.7 to 64.5 % | recall 77 to 98 %, false alarms 16 to 1 %; pairs 81 and 81 % | inconclusive: recall without it is luck |
# | 15, two models | helpfulness and safety pairs: own model 63.2 and 64.5 %, other one 56.2 and 62.8 %; no joint model | own 66 and 81 %, other one 58 and 62 %, joint 62 and 78 % | reproduced |
# | 16, scaling | 0.51 to 0.610, 0.614, 0.634 for 7B, 13B, 70B (figure) | 62 to 64, 62 to 65, 63 to 66 % for widths 16, 32, 64 | reproduced |
# | 17, the mix | 90/10 helps where both are safe; no number | +0.1 points [-0.6, 0.8] | inconclusive |
# | 18, drift | degrades quickly without fresh pairs; no number | further below the ceiling by -0.1 points [-4.7, 4.5]; the refresh gains -0.5 [-2.7, 1.8] | inconclusive, one chain |
# | 19, grades | clearest 18 to 9 %, unsure 25 to 38 % in 14 batches (figure) | a round: clearest falls by 0.7 points [-0.1, 1.5], unsure rises by 0.5 [-0.4, 1.4] | inconclusive, one chain |
# | 20, calibration | mean score .24 to .55 and .29 to .78 (figure) | .47 to .85 and .02 to 1.00 | reproduced |
# | 28, threshold | precision 0.89, recall 0.55 at 0.15 | 0.99 and 0.93, on easier answers | reproduced |
#
# - **Seeds decide.** Seeds differ in the pretrained model, the pairs and their order, and each difference between two small models varies by some points. Three seeds, with which we began, multiply a standard error by 4.3 before an interval says 95 %, and left 11 and 13 to 17 open. Five more were added once, to all of these claims, by the same rules: two were reproduced, one was not, the rest stayed open. Whoever adds seeds until a verdict pleases finds what he likes, so this is said here, and it was done once.
# - **Annotators** here are a program with one kind of noise. People differ from each other, tire, and like what is long or confident. None of that is in the ceiling.
# - **Absolute accuracies** cannot be compared with the paper's: its pairs are answers of good models, ours mostly of imagined ones with gross flaws. What can be compared is the order of the grades, and who is best at home.
# - **Our reconstructions**: the auxiliary loss and its weight of 1. **Not stated in the paper**, so ours: which token carries the score, how the head begins, the margin of the final models, the temperatures of the two variants.
# - **Not done**: open-source preference data, other models as judges (table 7), people.
#
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# How far must two answers lie apart for annotators to be right with probability `share`? Write `gap_for(share, tau)`, the inverse of $\sigma(\Delta / \tau)$.
# <details><summary>Hint</summary>The inverse of the sigmoid is log(p / (1 - p)).</details>


# %% tags=["exercise"]
def gap_for(share, tau=TAU):
    ### BEGIN SOLUTION
    return tau * math.log(share / (1 - share))
    ### END SOLUTION


@check("gap_for")
def _():
    for share in (0.1, 0.5, 0.9, 0.99):
        back = preference_probability(gap_for(share), TAU)
        assert abs(back - share) < 1e-9, (
            f"at {share} the annotators are right {back:.3f} of the time"
        )
    assert abs(gap_for(0.9, 0.3) - 2 * gap_for(0.9, 0.15)) < 1e-9, "twice the noise, twice the gap"


# %% [markdown]
# ### Exercise 2 (medium, 15 minutes)
# A safety model was trained without the auxiliary loss. Give it a zero afterwards: write `shift_for(raw, is_safe, recall)`, the number to *add* to all scores so that at least the share `recall` of the unsafe answers falls below 0, and as few as possible more.
# <details><summary>Hint</summary>Sort the scores of the unsafe answers. The one at place ceil(recall * n) - 1 must come out just below 0; "just below" is a small number such as 1e-6.</details>


# %% tags=["exercise"]
def shift_for(raw, is_safe, recall):
    ### BEGIN SOLUTION
    unsafe = np.sort(raw[~is_safe])
    return -unsafe[math.ceil(recall * len(unsafe)) - 1] - 1e-6
    ### END SOLUTION


@check("shift_for")
def _():
    raw, is_safe = SORTED["without"]
    for recall in (0.5, 0.73, 0.904):
        found = lab.detection(raw + shift_for(raw, is_safe, recall), is_safe).recall.value
        assert recall <= found < recall + 0.02, f"asked for {recall}, got {found:.3f}"
    before, after = (lab.detection(raw + c, is_safe).auc for c in (0, shift_for(raw, is_safe, 0.9)))
    assert abs(before - after) < 1e-9, "a shift changes the zero, not the order"


# %% [markdown]
# So a shift is enough to get the paper's recall. What did the auxiliary loss add that a shift cannot? Look at the false alarms.
#
# ### Exercise 3 (hard, 20 minutes)
# Find a nuisance feature without knowing it. Write `by_length(raw_chosen, raw_rejected, n_chosen, n_rejected)`: the accuracy on pairs whose chosen answer is the longer one, and on those whose chosen answer is the shorter one (ties of score count half; pairs of equal length are left out). A model that looks at length has a large difference.
# <details><summary>Hint</summary>Two boolean arrays, `n_chosen > n_rejected` and `n_chosen < n_rejected`, and the accuracy you built above on each.</details>


# %% tags=["exercise"]
def by_length(raw_chosen, raw_rejected, n_chosen, n_rejected):
    ### BEGIN SOLUTION
    right = (raw_chosen > raw_rejected) + 0.5 * (raw_chosen == raw_rejected)
    return right[n_chosen > n_rejected].mean(), right[n_chosen < n_rejected].mean()
    ### END SOLUTION


@check("by_length")
def _():
    raw = np.array([1.0, 2.0, 0.0, 3.0, 1.0]), np.array([0.0, 3.0, 0.0, 1.0, 2.0])
    sizes = np.array([5, 7, 9, 2, 4]), np.array([4, 6, 8, 6, 4])
    assert np.allclose(by_length(*raw, *sizes), (0.5, 1.0)), "one of three and a half; one of one"
    sizes = [np.array([len(getattr(p, side)) for p in test]) for side in ("chosen", "rejected")]
    bias = {}
    for name in ("clean", "padded"):
        longer, shorter = by_length(*scores_of(fooled[name], test), *sizes)
        bias[name] = longer - shorter
    assert bias["padded"] > bias["clean"], "the padded model likes length"


# %% [markdown]
# ## Questions to think about
# - Two annotators agree in 70 % of the pairs; your reward model agrees with each of them in 75 %. Is that possible? Is it good?
# - The ceiling for the clearest grade is near 100 %. Would you train on clear pairs only? What would the model never see?
# - The control came out at one half on average. What would you look for if it had come out at 55 %?
# - You may buy 1,000 comparisons, either of random answers or of answers that your reward model thinks are equally good. Which, and what does either do to the accuracy you report?
# - The model sees manner and not truth. Name two ways to show it truth. Which of them costs no annotator?
#
# ## Next
# `07_rejection_sampling`: many answers to one prompt, and the reward model picks.
