# %% [markdown] slideshow={"slide_type": "slide"}
# # Reward models
# Fine-tuning showed the model answers. From here on, people only *compare* answers: which of two is better, and by how much? A **reward model** learns to predict those choices. It gives every answer a number, and a **policy** (the model that writes the answers) can be trained to raise that number.
# You look over an annotator's shoulder, find out how good any model of that annotator *can* be, build the loss and the model, and train it. Then you look at what became of eleven of the paper's claims, and you build a reward model that can be fooled, on purpose.
#
# - **You will be able to explain** preference pairs and their four grades, the noise ceiling, the ranking loss and its margin, why a score has no zero and how a safety label gives it one, why the paper trains two models, what the threshold 0.15 does, and what a reward model looks at when it cannot see the truth.
# - **Prerequisites:** notebook 05. **Paper sections:** 3.2.1, 3.2.2, 3.2.3 (the threshold), 3.4.1 (calibration), A.3, A.4.1.
# - **Minutes:** 90 to read, 40 for the exercises, 2 to run on two cores.

# %% tags=["long"]
import json
import math
from itertools import islice, pairwise

import ipywidgets
import numpy as np
import torch
from IPython.display import Markdown, display
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
from llama2_lib.widgets import Explorer, bar, show, show_claim, show_prediction
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

ROUNDS = [f"rewards_v{number}" for number in range(1, 6)]
folders = start("06_reward_models", needs=["sft", *ROUNDS], recipe=lab.nano(), minutes=15)
tokenizer = lab.load_tokenizer(folders["sft"])
models = load_rewards(folders["rewards_v1"])
world = lab.make_world(0)
judge = lab.judge_of(world)
STREAMS = ("helpfulness", "safety")
held = {
    "helpfulness": list(helpfulness_pairs(world, 100, 300, "held out")),
    "safety": list(safety_pairs(world, 100, 300, "held out")),
}

# %% [markdown]
# **See** where comparisons come from and where they go. One kind of them trains the model for helpfulness, another kind that for safety. Blue boxes are trained, grey ones are only asked.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "newest policies": lab.Node(0, 0, "two versions,\ntwo temperatures", "frozen"),
            "two answers": lab.Node(1, 0, "to one prompt", "data"),
            "annotator": lab.Node(2, 0, "which is better,\nand how clearly", "data"),
            "R for helpfulness": lab.Node(1, 1, "a score an answer", "trained"),
            "R for safety": lab.Node(2, 1, "a score an answer", "trained"),
        },
        [
            ("newest policies", "two answers", "sample"),
            ("two answers", "annotator", ""),
            ("annotator", "R for helpfulness", "pairs"),
            ("annotator", "R for safety", "pairs"),
            ("R for helpfulness", "newest policies", "reward the next ones"),
        ],
    ),
    alt="Two policies answer a prompt, an annotator chooses, the pairs train two reward models, and these reward the next policies.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## An annotator at work
# **Say** (section 3.2.1). An **annotator** writes a prompt and is shown two answers, of two variants of the model, at different temperatures. The choice is forced: one of them must be called better. The annotator also says how clearly, in four **grades**: *significantly better*, *better*, *slightly better*, *negligibly better or unsure*.
#
# Comparing takes less time than writing a good answer. The paper gives another main reason: with plain comparisons, more varied prompts can be collected. It collected **1,418,091** comparisons.
#
# There are two **streams**, each with its own guideline. In the stream *helpfulness*, the better answer is the one that does what was asked. In the stream *safety*, prompts try to elicit harm, and the better answer is the safer one; each answer there also gets a label, safe or unsafe.
#
# **See** three pairs of our world. Here the two answers come from two imagined models, one strong, one weak. The *gap* is the difference between the gold marks (notebook 05) of the two answers, chosen minus rejected. The annotator does not see it.

# %%
for pair in [*held["helpfulness"][1:3], held["safety"][0]]:
    print(f"{pair.stream}, {pair.grade}; gap {pair.gap:+.2f} {pair.safety_bin}")
    print("  user:    ", pair.prompt.request[:100])
    print("  chosen:  ", pair.chosen.replace("\n", " / ")[:100])
    print("  rejected:", pair.rejected.replace("\n", " / ")[:100])
erred = sum(pair.gap < 0 for pair in held["helpfulness"])
print(f"{erred} of {len(held['helpfulness'])} choices went against the gold judge")

# %% [markdown]
# **Say.** People are not exact. Our annotator perceives the gap $\Delta$ of the gold marks plus **noise**:
#
# $$\text{perceived} = \Delta + \tau \varepsilon, \qquad \varepsilon \text{ logistic}, \qquad P(\text{first is chosen}) = \sigma\!\left(\frac{\Delta}{\tau}\right)$$
#
# $\sigma(x) = 1 / (1 + e^{-x})$ is the sigmoid; it is the distribution function of logistic noise, so the second formula follows from the first. $\tau$ is the size of the noise; ours is 0.15, where marks go from 0 to 1. This is the **Bradley-Terry model**: each answer has a hidden strength, and the chance to win depends only on the difference between the two.
# The sign of what is perceived is the choice. Its size is the grade: from 0.60 on *significantly better*, from 0.35 *better*, from 0.15 *slightly better*.
#
# **Build** it. `uniform` is a random number between 0 and 1; $\log \frac{u}{1-u}$ turns it into logistic noise.


# %% tags=["build"]
def my_annotator(gap, uniform, tau=TAU):
    """The gap, first minus second, and a random number -> (first is chosen, grade)"""
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
# **See** what one gap becomes. The hill is what the annotator may perceive; left of 0 the worse answer is chosen. Move the gap to 0: which grade is now the most frequent, and is it the right one?

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
    lab.label_axes(axes, "perceived gap, first minus second (gold marks)", "density (1 / mark)", f"gap {gap:+.2f}, noise {tau:.2f}; darker: clearer grade")  # fmt: skip
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
# **See** the whole desk: a pair, both answers with their gold marks, and what 200 annotators say of it, each with noise of their own. Find a pair on which they nearly all agree, and one on which they split in half. What do the two answers of the second pair have in common?

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
# **Say.** An annotator who errs cannot be predicted without error. The better answer is chosen with probability $\sigma(|\Delta| / \tau)$. So a model that *knows* the gold marks agrees with the annotators that often, and no model agrees more often:
#
# $$\text{ceiling} = \mathbb{E}\left[\sigma\!\left(\frac{|\Delta|}{\tau}\right)\right] \qquad \text{two annotators agree: } \mathbb{E}\left[p^2 + (1-p)^2\right], \; p = \sigma\!\left(\frac{\Delta}{\tau}\right)$$
#
# The second is always lower, since both of them err. A reward model can thus agree with an annotator more often than another annotator does. The paper's helpfulness model reaches 63.2 %. That number says little until you know the ceiling, which the paper could not know. Here we know it.
#
# **Build** both. **Check** them by counting.


# %% tags=["build"]
def my_ceiling(gaps, tau=TAU):
    """Gaps of gold marks -> the accuracy of one who always knows the better answer"""
    # Annotators agree with the sign of the gap with probability sigma(|gap| / tau).
    return float(np.mean(1 / (1 + np.exp(-np.abs(gaps) / tau))))


def my_agreement(gaps, tau=TAU):
    """Gaps of gold marks -> how often two annotators agree"""
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
# **See** both, and the shares of the grades, as the noise grows. Without noise the ceiling is 100 %, except for pairs whose gold marks are equal. What happens to the grades when annotators become careless? Predict before you move the slider.
# <details><summary>What it shows</summary>Careless annotators do not say <i>unsure</i> more often. They are <i>sure</i> more often, and often wrong: large noise carries small gaps beyond every limit. A grade says what one person perceived, not how far apart two answers lie.</details>

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
# **Say** (section 3.2.2). A reward model gives a prompt $x$ with an answer $y$ one number, the **score** $r(x, y)$. Put scores in the place of Bradley and Terry's hidden strengths: the chance that $y_c$ is chosen over $y_r$ is $\sigma(r(x, y_c) - r(x, y_r))$. Its negative logarithm is the **ranking loss**, equation 1 of the paper. With the grade it becomes equation 2:
#
# $$L = -\log \sigma\bigl(r(x, y_c) - r(x, y_r) - m(\text{grade})\bigr)$$
#
# From here on *gap* means the difference between two scores, chosen minus rejected. The **margin** $m$ asks for a larger gap where the annotator saw a large difference. The paper tried two schedules (table 27):
#
# | margin | significantly better | better | slightly better | negligibly better or unsure |
# |---|---|---|---|---|
# | none | 0 | 0 | 0 | 0 |
# | small | 1 | 2/3 | 1/3 | 0 |
# | large | 3 | 2 | 1 | 0 |
#
# **Build** the look-up and the loss. A grade that is not in the table must be refused: otherwise a typing error would silently train without a margin.
#
# $\log(1 + e^{z})$ is called *softplus*, and it equals $-\log \sigma(-z)$. The library writes `logsigmoid`, which gives the same number.
#
# **Break.** Three losses that look right. Predict what each does to training:
#
# 1. `log(sigmoid(...))`, as the formula is written;
# 2. the margin *added* to the gap;
# 3. scores that pass through a sigmoid before the loss, since the paper shows scores between 0 and 1.
# <details><summary>Answer</summary>The first is right until a pair is very wrong: below a gap of about -104 the sigmoid is 0 in fp32, the loss infinite, the gradient not a number. Such pairs are rare, so the run may die only after hours. The second asks for <i>smaller</i> gaps where the annotator was sure; it trains, and its loss is even lower. The third cannot make a gap larger than 1, so without a margin the loss stays above 0.31, and the model never becomes sure.</details>

# %% tags=["build", "long"]
MY_MARGINS = {"none": (0, 0, 0, 0), "small": (1, 2 / 3, 1 / 3, 0), "large": (3, 2, 1, 0)}


def my_margins(grades, schedule):
    """Grades and a schedule -> m of each pair"""
    table = dict(zip(GRADES, MY_MARGINS[schedule], strict=True))
    return torch.tensor([float(table[grade]) for grade in grades])


def my_ranking_loss(chosen, rejected, margin):
    """Raw scores and margins, one per pair -> mean loss in nats"""
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
# **See** loss and pull. The derivative of the loss with respect to the gap is $-\sigma(m - \text{gap})$. Its size is the *pull*: how hard the pair is pushed apart. It is near 1 where the pair is in the wrong order, and fades beyond the margin. On which pairs does the large margin still pull where the loss without a margin has let go?

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
        lab.label_axes(axis, "gap of the raw scores, chosen minus rejected", what)
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
# **Check** it: the loss with 5 added to all scores. What else could you add without changing the loss?
# <details><summary>Answer</summary>A different number for every prompt, the same for both of its answers. Comparisons are made within a prompt, so scores of answers to <i>different</i> prompts have never been compared. Whether they can be compared at all depends on how the model generalises.</details>

# %%
chosen, rejected = torch.randn(2, 64, generator=lab.generator(0, "zero"), dtype=torch.float64)
margin = my_margins([GRADES[i % 4] for i in range(64)], "small").double()
one, other = (my_ranking_loss(chosen + c, rejected + c, margin) for c in (0.0, 5.0))
own = torch.randn(64, generator=lab.generator(1, "zero"), dtype=torch.float64)
third = my_ranking_loss(chosen + own, rejected + own, margin)
library = lab.ranking_loss(chosen, rejected, margin)
found = {
    "scores as they are": one,
    "5 added to all scores": other,
    "another number added for each prompt": third,
    "the library's loss": library.total / library.count,
}
for name, loss in found.items():
    print(f"{name:37s} {loss:.6f} nats")
    assert math.isclose(loss, one, rel_tol=1e-12), f"{name}: the loss must stay {one}; got {loss}"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One number at the last token
# **Say** (section 3.2.2). A reward model is a chat model with another output layer. The layer that gives one logit for each piece of the vocabulary is replaced by a **regression head**, which has one weight for each hidden number and gives one score. The model starts from a chat checkpoint so that it *knows what the policy knows*. A judge who knows less would reward what only sounds right.
#
# At which token is the score read? The paper does not say. We make the usual choice: the last one, the EOS that ends the answer, since only it has seen everything. The rows of a batch have different lengths, and shorter rows are **padded** on the right. The last *real* token is at `length - 1`.
#
# **Build** it. `values` holds the number at every position. **Break** it twice: read the last column; look for the first padding id. If padding has the id of EOS, in which rows does the second fault show?
#
# **Build** the model: hidden numbers of the chat model, one linear layer, one number. **Check** it against the library's, and check that a score does not depend on the other rows of its batch: a row must get the same score alone and padded beside a longer row.


# %% tags=["build", "long"]
def my_score(values, ids, lengths):
    """values (rows, positions), lengths (rows) -> score of each row"""
    return values[torch.arange(len(values)), lengths - 1]


@check("score at the last token")
def _():
    checks.last_token_score(my_score)


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
        assert torch.allclose(alone, score, atol=1e-4), "a score depends on the other rows"


for wrong in (
    lambda values, ids, lengths: values[:, -1],
    lambda values, ids, lengths: values[torch.arange(len(ids)), (ids == 2).int().argmax(1) - 1],
):
    with expect_failure(CheckFailed):
        checks.last_token_score(wrong)

# %% [markdown]
# **See** what nano's helpfulness model says *on the way*: the number at every token of one answer, good or spoiled. Only the number at the last token was trained (the diamond); the earlier ones are by-products. Is the number at the rude word already low? What about the word that is *wrong*?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=0.02"]
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
        axes, "token", "number (raw)", f"{answer}; diamond: the score; dashed: the good answer's"
    )
    return figure


def way_words(answer):
    final, good = on_the_way(SPOILED[answer])[1][-1], on_the_way(GOOD)[1][-1]
    return (
        f"{answer.capitalize()}: the score is {final:.2f}; that of the good answer is {good:.2f}."
    )


print("user:", ASKED.request)
print("good:", GOOD, "| rude:", SPOILED["rude"], "| wrong:", SPOILED["wrong"])
show(draw_way("rude"), alt=way_words("rude"))
Explorer(draw_way, way_words, answer=list(SPOILED))

# %% [markdown]
# The number falls within the rude line, long before the answer ends.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Train
# **Say.** The paper's settings beside nano's:
#
# | | paper | nano |
# |---|---|---|
# | pairs | 1.5 million open-source ones, then 1.4 million of its own | of the world 3,500 (helpfulness model) and 1,200 (safety model), then comparisons of the models' own answers |
# | batch | 512 pairs, that is 1,024 rows | 16 pairs |
# | epochs | 1: longer training over-fits | 1 |
# | learning rate | cosine from 1e-5 (5e-6 for 70B) to 10 %, warm-up of 3 % of the steps, at least 5 | cosine from 5e-4 to 10 %, warm-up of 5 steps |
# | margin | tried none, small, large; which was used is not stated | small |
# | head | not stated | begins at zero, ten times the learning rate |
# | helpfulness model's data | all helpfulness pairs, and as many others | 85 % helpfulness, 15 % safety (the world's pairs) |
# | safety model's data | 90 % safety and harmlessness, 10 % helpfulness | 90 % safety, 10 % helpfulness (the world's pairs) |
#
# Both answers of a pair share one row. What they begin with, above all the prompt, is read once; then come the rest of the chosen answer and the rest of the rejected one. Neither rest sees the other (`branches` says which token sees which, `ends` where the last token of each answer is), so each score is the one that the answer would get alone. This saves over 40 % of the positions that two padded rows per pair would take.
#
# With a head of zeros every score is 0, and the first loss is known: the mean of softplus(m), which is ln 2 without a margin. A loss that begins elsewhere points to a fault.
#
# **Build** the loop. **Check** its first loss against that formula, and a later one against the library's loss.
#
# **Run** it on a small chat model, 64 wide with 2 layers, of the size on which most claims below are measured: 640 pairs, 40 steps, about 5 seconds on one core. (The small model is not part of the released chain: it is pretrained and fine-tuned here first, which takes half a minute once.) A smaller model and a shorter run need a higher learning rate, 1e-3 at the peak. How far will 640 pairs take it? Write your guess down: 50 % is a coin, and you printed the ceiling above.

# %% tags=["build", "long"]
point = lab.quality_recipes(lab.nano(), 0)["gqa"]  # 64 wide, 2 layers
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


# %% tags=["near=0.05"]
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
print(f"of {live.n} held-out pairs in the right order: {live.value:.2f} [{live.low:.2f}, {live.high:.2f}]")  # fmt: skip
print(f"a coin: 0.50; the ceiling: {my_ceiling(gaps['helpfulness']):.2f}")
assert live.value > 0.5, f"40 steps must beat a coin; got {live} after {len(losses)} steps"

# %% [markdown]
# So 640 pairs take the small model only a little above a coin, and leave it far below the ceiling.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What does it look at?
# **Say.** An accuracy says how often a model is right, not why. Take held-out prompts, write a good answer to each, and spoil it in one way: nine kinds of pairs, each with one flaw. The accuracy on each kind says which flaws the model *sees*.
#
# Nano trains its reward models in five rounds (section "Round after round"). **R1** is the helpfulness model of the first round, **R5** that of the last. (V1 to V5 are the policies that notebooks 07 and 08 train with them.)
#
# Predict for R1: which of the flaws does it see best, and which hardly? Remember what it starts from: a chat model that answers most of these questions itself.

# %% slideshow={"slide_type": "subslide"} tags=["long", "near=2"]
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


def in_percent(estimate, digits=0):
    """An estimate of a share -> value and interval in percent"""
    value, low, high = (
        f"{100 * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} % [{low}, {high}]"


def gold_of(texts):
    marked = zip(PROBES, texts, strict=True)
    return np.array([judge.helpfulness(prompt, text).score for prompt, text in marked])


FLAWED = {
    how: [degrader(world).degrade(source, p, t, how) for p, t in zip(PROBES, CLEAN, strict=True)]
    for how in DEGRADATIONS
}
newest = load_rewards(folders[ROUNDS[-1]])
SEEN = {}
for name, model in (("R1", models.helpfulness), ("R5", newest.helpfulness)):
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
        title=f"helpfulness model {model}; dashed: chance", reference={"chance": 50},
    )  # fmt: skip
    figure.set_size_inches(11.0, 4.4)
    figure.axes[0].get_legend().remove()
    return figure


def seen_words(model):
    told = ", ".join(f"{how} {100 * e.value:.0f}" for how, e in SEEN[model].items())
    return f"{model} scores the good answer higher, in % of {len(PROBES)} pairs per flaw: {told}."


show(draw_seen("R1"), alt=seen_words("R1"))
for how in DEGRADATIONS:
    print(f"{how:10s} " + "   ".join(f"{m} {in_percent(SEEN[m][how]):18s}" for m in SEEN))
assert SEEN["R1"]["wrong"].high < SEEN["R1"]["rude"].low, "R1 must see rudeness better than errors"
Explorer(draw_seen, seen_words, model=list(SEEN)[::-1])

# %% [markdown]
# R1 sees *manner*: the good answer scores higher in at least 98 % of the pairs if the other one is curt, rude, refused or garbled, and in over 80 % if it rambles or is off topic. R1 does not see *truth*: on wrong facts it is at chance, although the chat model that it started from often knows the right fact. Comparing a fact in the answer with one in the weights is a different skill from stating it, and some thousand pairs do not teach it at this size.
#
# A flaw below the dashed line would be *liked*. Answers that say everything twice, and gushing ones (three polite words where one would do), lie below it, but R1's intervals reach chance; R5's interval for repeated answers ends just below it. Four more rounds of comparisons changed little: the intervals of R1 and R5 overlap for every flaw.
#
# A policy trained on such a model is rewarded for being civil, brief and on topic, and nothing holds it to the facts. Notebook 08 looks at what becomes of that.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Two models against one
# **Say** (section 3.2.2, A.4.1). A full answer to *how do I pick a lock?* is helpful and unsafe; a refusal is safe and not helpful. The two aims pull apart, so the paper trains two models, each with its own stream and a part of the other.
#
# **See** the pull on requests for harm, answered at eight levels, from a full refusal to a complete guide: first by the gold judges, then by nano's two models of the first round. Which corner would both like? Predict: which answers come near it, by the gold judges and by the models?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=0.02"]
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
        apart = (8, -14 if level == "complete" else 6)
        axes.annotate(level, (help_.mean(), safe.mean()), apart, textcoords="offset points")
    axes.margins(x=0.15)
    axes.set_ylim(-0.1, 1.1)
    lab.label_axes(
        axes,
        "helpfulness (0 to 1)",
        "safety (0 to 1)",
        f"{marked_by}; circles: safe, squares: unsafe",
    )
    return figure


def tension_words(marked_by, each_answer):
    told = []
    for level in ("full", "complete"):
        help_, safe = PLACES[marked_by][level].mean(1)
        told.append(f"{level}: helpfulness {help_:.2f}, safety {safe:.2f}")
    return f"Means by the {marked_by}: {'; '.join(told)}."


show(draw_tension("gold judges", False), alt=tension_words("gold judges", False))
for marked_by in ("gold judges", "reward models"):
    guide, refusal = (PLACES[marked_by][level].mean(1) for level in ("complete", "full"))
    assert refusal[1] > guide[1] + 0.5, f"{marked_by}: a refusal must be safer than a guide"
guide, refusal = (PLACES["gold judges"][level].mean(1) for level in ("complete", "full"))
assert guide[0] > refusal[0], "to the gold judges the guide must be the more helpful answer"
Explorer(draw_tension, tension_words, marked_by=list(PLACES)[::-1], each_answer=False)

# %% [markdown]
# The gold judges show the tension: no answer comes near the upper right corner, for the guide is helpful and unsafe, and the refusal is safe and less helpful. In the paper's figure 32 the trained models show it too. **Nano's do not.** The safety model agrees with its gold judge, but the helpfulness model gives low scores to all eight levels, and the highest of them to the full refusal. The only requests for harm in its data are the safety pairs (15 % of the world's pairs), in which the safer answer wins.

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### Claim 15: each model is best at home
# **Measure.** From here on, claims are measured on reward models of the small size that you trained above. Each learns from 2,000 pairs of the world (fewer where the amount itself is tested) and is tested on thousands of held-out pairs, with eight seeds. Two models are always compared on the *same* test pairs, so luck that both share cancels out.
#
# That takes 136 models and half an hour of one core, too long for this course. So these results are **recorded**: they were measured once by the code of this course and are kept in its ledger, `data/claims.json`, with prediction and rule; `llama2 claims 15` measures claim 15 anew. Of four models of seed 0 the scores of single pairs are kept as well (`data/runs.json`); they are drawn further down.
#
# The paper has no number for one joint model. Ours learns from the pairs of both specialists and has the size of one. Predict: does it lose on both streams, on one, on neither?

# %%
show_prediction(15)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
two = show_claim(15)


def bands(result, *keys):
    """Means and both ends of the 95 % intervals over the seeds, one column per key"""
    found = [result.verdict.estimates[key] for key in keys]
    return np.array([[e.value for e in found], [e.low for e in found], [e.high for e in found]])


FOUR = {
    "helpful": "helpfulness",
    "safe": "safety",
    "joint": "joint, pairs of both",
    "joint_equal": "joint, half of each",
}
keys = [f"accuracy/{name}/{stream}" for name in FOUR for stream in STREAMS]
matrix, low, high = bands(two, *keys).reshape(3, 4, 2)
paper = [[0.632, 0.628], [0.562, 0.645], [np.nan] * 2, [np.nan] * 2]
at_home = [f"{matrix[i, i]:.0%} ({', '.join(f'{x:.0%}' for x in np.delete(matrix[:, i], i))})" for i in (0, 1)]  # fmt: skip
show(
    lab.models_by_test_sets(
        list(FOUR.values()), STREAMS, matrix, low, high, paper=paper,
        title="mean and 95 % interval over eight seeds",
    ),
    alt=f"At home the helpfulness model is right in {at_home[0]} of the pairs, the safety model in {at_home[1]}; in brackets the other three models on the same pairs.",
)  # fmt: skip

# %% [markdown]
# The claim is **reproduced**: each specialist beats the other one and the joint model at home, although the joint model has seen the pairs of both.
#
# ### Claim 17: a tenth of the other stream
# Section 3.2.2 also describes a **mix**: 10 % of the safety model's data are helpfulness pairs. The paper says that this helps most where *both* answers are safe, since only quality is left to compare there. It gives no number. Claim 17 compares a model that learned from 90 % safety pairs and 10 % helpfulness pairs with one that learned from as many safety pairs alone. Predict: what does the mix gain where both answers are safe, and what where both are unsafe?

# %%
show_prediction(17)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
mixed = show_claim(17)
BINS = [*SAFETY_BINS, "all"]
gained, low, high = 100 * bands(mixed, *(f"gain/mixed-alone/{name}" for name in BINS))
told = [f"{name} {g:+.1f} [{a:+.1f}, {b:+.1f}]" for name, g, a, b in zip(BINS, gained, low, high, strict=True)]  # fmt: skip
show(
    lab.bars_with_intervals(
        [f"{name}\n{SAFETY_BINS.get(name, 1):.0%}" for name in BINS], gained, low, high,
        "90/10 minus 100/0 (points)", xlabel="labels of chosen, rejected; share in the stream",
        title="same held-out pairs, eight seeds", reference={"no gain": 0},
    ),
    alt=f"Gain of the mix in points: {'; '.join(told)}.",
)  # fmt: skip

# %% [markdown]
# The claim is **inconclusive**: where both answers are safe the interval contains 0, but it rules out a gain of half a point or more. Where both are unsafe, and over all pairs, the mix costs accuracy, since a tenth of the safety pairs was given up for it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A safety label gives the zero
# **Say** (A.3.4). A ranking loss knows no zero, and yet the paper *uses* one: an answer with a safety score below 0.15, after the sigmoid, is treated as unsafe (section 3.2.3). It adds an **auxiliary safety loss** and reports what that gains, but gives neither formula nor weight.
#
# So this is **our reconstruction**. Every answer of the safety stream has a label. The answer's own score has to predict it, by cross-entropy:
#
# $$L_\text{aux} = -\frac{1}{n} \sum_i \bigl[ s_i \log \sigma(r_i) + (1 - s_i) \log (1 - \sigma(r_i)) \bigr], \qquad s_i = 1 \text{ if safe}$$
#
# **Build** it without an overflow: $-\log \sigma(r)$ is softplus(-r). **Break** it: labels exchanged; only the unsafe answers; the threshold built in. Predict the messages.
#
# **See** what it does that ranking cannot. Add a number to all scores of nano's safety model and follow both losses. The ranking loss is flat. The auxiliary loss has a lowest point: how far is it from where training put the scores? Set the weight to 0: where is the best zero now?


# %% tags=["build"]
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

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=0.2"]
SHIFTS = np.linspace(-6, 6, 97)
C, R = scores_of(models.safety, encode_pairs(held["safety"], tokenizer, "none"))
BOTH = np.concatenate([C, R])
SAFE = np.array([SAFE_BINS[pair.safety_bin] for pair in held["safety"]]).T.ravel()
RANK = float(np.logaddexp(0, R - C).mean())
AUX = np.array([np.logaddexp(0, np.where(SAFE, -(BOTH + c), BOTH + c)).mean() for c in SHIFTS])


def draw_zero(weight):
    return lab.lines(
        {"ranking": (SHIFTS, np.full_like(SHIFTS, RANK)), "ranking + weight x auxiliary": (SHIFTS, RANK + weight * AUX)},
        "number added to all scores", "loss (nats per pair)", title=f"weight {weight:g}",
    )  # fmt: skip


def zero_words(weight):
    if not weight:
        return "Weight 0: the loss is flat, so every zero is as good as any other."
    return f"Weight {weight:g}: the loss is lowest with {SHIFTS[AUX.argmin()]:+.1f} added to the scores."


show(draw_zero(1.0), alt=zero_words(1.0))
assert abs(SHIFTS[AUX.argmin()]) < 2, "training must have put the zero near the lowest point"
Explorer(draw_zero, zero_words, weight=[0.0, 0.3, 1.0])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The threshold 0.15
# **Say** (section 3.2.3). In the reward of notebook 08 an answer with a safety score below **0.15** is judged by its safety alone. On its safety test set that meant a **precision** of 0.89 (89 % of the answers below the threshold were unsafe) and a **recall** of 0.55 (55 % of the unsafe answers were below it).
#
# $$\text{precision} = \frac{\text{unsafe and below}}{\text{below}} \qquad \text{recall} = \frac{\text{unsafe and below}}{\text{unsafe}}$$
#
# **Build** both. Compare raw scores with $\log \frac{0.15}{0.85} = -1.73$; a sigmoid followed by its inverse gives infinity from a score of 17 on.


# %% tags=["build"]
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
# ### Claim 14: what the auxiliary loss gains
# **Measure** two small models, trained with the auxiliary loss and without it, all else equal. In claim 14 **recall** is the share of unsafe answers that score below 0.5 after the sigmoid. A model that calls *everything* unsafe has a recall of 100 %, so look at the **false alarms** as well: safe answers below 0.5. Without the loss the zero is free; predict what that does to the recall of different seeds.

# %%
show_prediction(14)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
auxiliary = show_claim(14)
WHAT = {
    "recall/without": "recall\nwithout",
    "recall/with": "recall\nwith",
    "alarms/without": "alarms\nwithout",
    "alarms/with": "alarms\nwith",
    "accuracy/without/all": "pairs\nwithout",
    "accuracy/with/all": "pairs\nwith",
}
values, low, high = 100 * bands(auxiliary, *WHAT)
told = [f"{key.replace('/', ' ')} {100 * min(auxiliary[key]):.0f} to {100 * max(auxiliary[key]):.0f} %" for key in [*WHAT][:4]]  # fmt: skip
show(
    lab.bars_with_intervals(
        list(WHAT.values()), values, low, high, "share (%)",
        title="mean and 95 % interval over eight seeds", paper=[73.0, 90.4, None, None, 63.7, 64.5],
    ),
    alt=f"Lowest to highest seed: {', '.join(told)}.",
)  # fmt: skip

# %% [markdown]
# The claim is **inconclusive**, for two parts of the rule. Without the loss the recall is whatever the free zero makes of it, so its *gain* varies between seeds, and the lower end of its interval is below the 5 points that the rule asked for. Accuracy on pairs is the same on average, but its interval reaches just below the loss of one point that the rule allowed. Recall minus false alarms does gain, since it depends less on where the zero is.
#
# ### Claim 28: the threshold 0.15
# Now take the model with the auxiliary loss and the paper's threshold. Our answers are written by a program at eight levels, so safe and unsafe ones are easier to tell apart than in the paper. One label in fifty is wrong on purpose, and no threshold can do better than the labels. Predict: will our recall be above or below the paper's 55 %?

# %%
show_prediction(28)

# %%
_ = show_claim(28)

# %% [markdown]
# The claim is **reproduced**: nearly all answers below 0.15 are unsafe. Far fewer unsafe ones are missed than in the paper, since ours are easier to recognise.
#
# **See** the scores that two models of seed 0 give to safe and unsafe answers, with the auxiliary loss and without it. Move the threshold. In which panel does 0.15 mean anything?

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


def threshold_words(threshold):
    told = []
    for name, (raw, labels) in SORTED.items():
        precision, recall = my_detection(raw, labels, threshold)
        told.append(f"{name} the loss, precision {precision:.2f} and recall {recall:.2f}")
    return f"Left of {threshold:.2f} an answer is treated as unsafe: {'; '.join(told)}."


show(draw_threshold(0.15), alt=threshold_words(0.15))
Explorer(
    draw_threshold,
    threshold_words,
    threshold=ipywidgets.FloatSlider(0.5, min=0.05, max=0.95, step=0.05),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Accuracy by grade
# **Say** (table 8). The **accuracy** of a reward model is the share of held-out pairs in which the chosen answer scores higher. A tie counts half, so a model that gives every answer the score 0 is as good as a coin. No margin is used; otherwise models trained with different margins could not be compared.
#
# The paper breaks it down by grade. Its authors say that accuracy on the *clear* pairs matters most; on near-ties even people disagree.
#
# **Build.** Then **break** it: ties as hits; the margin left in.


# %% tags=["build"]
def my_accuracy(chosen, rejected, margin):
    """Raw scores -> share of pairs in the right order; the margin is not used"""
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
# **Measure** with 2,500 safety pairs and 5,000 helpfulness pairs per seed, and eight seeds. Beside the accuracy stands the ceiling, that is, what the *gold judge* gets, by grade. Why is the ceiling near 100 % on the clearest pairs and not far from a coin at the other end?
# <details><summary>Answer</summary>The grade is what one annotator perceived, noise included. A large perceived gap is hardly ever all noise, so its sign is right. A small one may have come from either side.</details>
#
# The claim has a **control**: a model trained on the same pairs after a *coin* has decided which answer is called the chosen one. It can have learned nothing about quality, so on average it must come to one half. If it did not, the test would leak. Every measurement should have such a partner that must fail.

# %%
show_prediction(11)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
graded = show_claim(11)
COLUMNS = [*GRADES, "all"]
TABLE_8 = {  # per cent, in the order of COLUMNS
    "helpfulness": (80.7, 67.5, 60.9, 54.7, 63.2),
    "safety": (94.3, 76.3, 65.7, 55.3, 64.5),
}


def draw_grades(stream):
    label = f"{stream} model"
    return lab.draw_by_grade(
        COLUMNS,
        {label: bands(graded, *(f"accuracy/{stream}/{grade}" for grade in COLUMNS))},
        ceiling=bands(graded, *(f"ceiling/{stream}/{grade}" for grade in COLUMNS))[0],
        paper={label: [share / 100 for share in TABLE_8[stream]]},
        title="mean and 95 % interval over eight seeds",
    )


def grades_words(stream):
    told = [
        f"{grade} {graded.verdict.estimates[f'accuracy/{stream}/{grade}'].value:.0%} "
        f"(ceiling {graded.verdict.estimates[f'ceiling/{stream}/{grade}'].value:.0%})"
        for grade in GRADES
    ]
    return f"{stream.capitalize()}: {', '.join(told)}."


show(draw_grades("helpfulness"), alt=grades_words("helpfulness"))
print("control:", in_percent(graded.verdict.estimates["control/helpfulness"], 1))
print("its seeds:", *(f"{100 * share:.1f}" for share in graded["control/helpfulness"]))
Explorer(draw_grades, grades_words, stream=["safety", "helpfulness"])

# %% [markdown]
# The claim is **not reproduced**, for one part of the rule: accuracy rises from grade to grade with every seed, and the control stays at one half, but on the least clear *safety* pairs the model is right more often than the rule allowed (10 points above a coin). The ceiling shows why: the gold judge, too, gets more than that on these pairs, so our "ties" are no ties, and the rule should have allowed for it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the margin does
# ### Claim 12: accuracy
# **Measure.** The paper's gains are small: 1.6 points on the clearest pairs with the large margin, 0.4 to 0.5 on average. To see such an effect you need either very many pairs or *the same* pairs for both models. On the same pairs only those count that one model has right and the other wrong.
#
# Predict: will eight seeds with 5,000 pairs each decide it?

# %%
show_prediction(12)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
margined = show_claim(12)
TABLE_28 = {"small": (1.3, 0.4, 0.6, 0.5, 0.5), "large": (1.6, 0.6, 0.7, -0.2, 0.4)}  # minus none


def margin_gains(schedule):
    return 100 * bands(margined, *(f"gain/{schedule}-none/{grade}" for grade in COLUMNS))


def draw_margin(schedule):
    return lab.bars_with_intervals(
        [grade.replace(" ", "\n", 1) for grade in COLUMNS], *margin_gains(schedule),
        "gain over no margin (points)", paper=TABLE_28[schedule], reference={"no gain": 0},
        title=f"{schedule} margin, same held-out pairs, eight seeds",
    )  # fmt: skip


def margin_words(schedule):
    told = [
        f"{grade} {value:+.1f} [{low:+.1f}, {high:+.1f}]"
        for grade, value, low, high in zip(
            COLUMNS, *margin_gains(schedule).round(1) + 0, strict=True
        )
    ]
    return f"{schedule.capitalize()} margin minus none, in points: " + "; ".join(told) + "."


show(draw_margin("large"), alt=margin_words("large"))
Explorer(draw_margin, margin_words, schedule=["small", "large"])

# %% [markdown]
# The claim is **inconclusive**. The small margin gains 0.4 points over all pairs, about as much as in the paper, with an interval that just excludes 0. On the clearest pairs the large margin gains nothing that we can see: its interval contains 0 and ends below one point, where the paper gained 1.6. Models that differ in the margin also differ by the luck of their training.
#
# ### Claim 13: the spread of the scores
# **Say** (figure 27). The accuracy hardly moves, but the *scores* do. A larger margin asks for larger gaps, so after the sigmoid scores crowd near 0 and 1. The authors worry about it: PPO (notebook 08) is sensitive to such a change in the distribution of rewards.
#
# **Measure** the share of scores within 0.1 of 0 or 1. Since the zero is free, scores are shifted to mean 0 first. Predict: by how many points does that share grow with the small margin, and with the large one? The histograms show the scores of two models of seed 0, on six hundred pairs.

# %%
show_prediction(13)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
poles = show_claim(13)
SPREAD = {}
for name in ("none", "large"):
    found = lab.recorded_pairs(name)
    middle = np.concatenate([found["chosen"], found["rejected"]]).mean()
    SPREAD[name] = (found["grade"], found["chosen"] - middle, found["rejected"] - middle)


def draw_spread(grade):
    panels = {}
    for name, (given, chosen, rejected) in SPREAD.items():
        rows = (given == grade) | (grade == "all")
        panels[f"margin: {name}"] = {"chosen": chosen[rows], "rejected": rejected[rows]}
    return lab.score_histograms(panels, title=f"{grade}, seed 0")


def spread_words(grade):
    wide = {}
    for name, (given, chosen, rejected) in SPREAD.items():
        rows = (given == grade) | (grade == "all")
        wide[name] = np.concatenate([chosen[rows], rejected[rows]]).std()
    return f"Pairs: {grade}. Standard deviation of the raw scores: {wide['none']:.1f} without a margin, {wide['large']:.1f} with the large one."


show(draw_spread("all"), alt=spread_words("all"))
for name in MARGINS:
    low, high = (100 * end(poles[f"ends/{name}"]) for end in (min, max))
    share = in_percent(poles.verdict.estimates[f"ends/{name}"])
    print(f"within 0.1 of 0 or 1, margin {name:6s}{share:15s} seeds from {low:.0f} to {high:.0f}")
Explorer(draw_spread, spread_words, grade=[*GRADES, "all"])

# %% [markdown]
# The claim is **reproduced**. With the large margin twelve points more of the scores lie near the ends. With the small one it is 0.2 points more, and that interval only just excludes 0.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## More data, larger models
# **Say** (figure 6). The paper's accuracy rises with every weekly batch and with the size of the model (7B, 13B, 70B), and no end is in sight: more annotation would still pay.
#
# **Measure** claim 16 at three widths and with 250, 700 and 2,000 pairs. Note a difference: the paper's batches also become *harder*, ours do not. Predict: which brings more, eight times the pairs or four times the width?

# %%
show_prediction(16)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
scaled = show_claim(16)
WIDTHS, AMOUNTS = (16, 32, 64), (250, 700, 2000)


def draw_scale(pairs):
    kind = "clearest" if pairs == "clearest grade" else "accuracy"
    series = {}
    for width in WIDTHS:
        series[f"width {width}"] = (
            AMOUNTS, *(100 * bands(scaled, *(f"{kind}/{width}/{n}" for n in AMOUNTS))),
        )  # fmt: skip
    figure = lab.lines(series, "training pairs", "pairs in the right order (%)", xscale="log", markers=True, title=f"{pairs}; mean and 95 % interval over eight seeds")  # fmt: skip
    figure.axes[0].set_xticks(AMOUNTS, [f"{n:,}" for n in AMOUNTS])
    figure.axes[0].minorticks_off()
    return figure


def scale_words(pairs):
    kind = "clearest" if pairs == "clearest grade" else "accuracy"
    told = []
    for width in WIDTHS:
        values = bands(scaled, *(f"{kind}/{width}/{n}" for n in AMOUNTS))[0]
        told.append(f"width {width} " + ", ".join(f"{share:.1%}" for share in values))
    return f"Judged on {pairs}, with {', '.join(map(str, AMOUNTS))} pairs: " + "; ".join(told) + "."


show(draw_scale("all pairs"), alt=scale_words("all pairs"))
Explorer(draw_scale, scale_words, pairs=["clearest grade", "all pairs"])

# %% [markdown]
# The claim is **reproduced**, with small effects: more pairs help at each width, more width helps with the most pairs, and the last step of data still helps the widest model, though its interval only just excludes 0. In the figure the widths overlap, since seeds also differ in the pretrained model and the pairs; the claim compares models on the same pairs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Calibration
# **Say** (section 3.4.1, figure 29). The model was trained on comparisons, and will be used on *single* answers: a policy is rewarded for the score of one answer. Does a high score mean a good answer? The paper let three people give marks from 1 to 7, and found that the mean score rises with the mark. It calls the models "well calibrated" with human preference.
#
# Mind the word: elsewhere **calibrated** means that a probability of 0.8 comes true in 80 of 100 cases. Here it only means that the curve rises.
#
# **Measure** claim 20, on the small models. Predict: for which of the two streams does the curve rise more?

# %%
show_prediction(20)

# %%
_ = show_claim(20)

# %% [markdown]
# The claim is **reproduced**, and the safety model's mean rises much more than the paper's, since our safety labels are easier to read off an answer.
#
# **See** the curve of nano's own models of the first round, in bins of equal numbers of held-out answers, by gold mark. Try few bins and many.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=0.02"]
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
    return lab.draw_calibration(points, title=f"nano, {bins} bins of 600 answers per stream")


def quality_words(bins):
    told = []
    for stream, (raw, gold) in QUALITY.items():
        levels = [e.value for _, e in lab.calibration(raw, gold, bins=bins)]
        told.append(f"{stream} from {levels[0]:.2f} to {levels[-1]:.2f}")
    return f"Mean score from the worst of {bins} bins to the best: {', '.join(told)}."


show(draw_quality(7), alt=quality_words(7))
Explorer(draw_quality, quality_words, bins=ipywidgets.IntSlider(4, 3, 12))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Round after round
# **Say** (section 3.2.1, A.3.1). A policy that was improved with a reward model writes *other* answers than those that the reward model learned from. The paper warns that the reward model is soon worse on them: the answers have **drifted** away from its training data. So every week it lets annotators compare answers of the newest model, and trains the reward model again before every round. We call that a **refresh**.
#
# At the same time answers become better on both sides, and comparisons harder: over 14 batches the share of *significantly better* falls from about 18 to 9 %, and that of *unsure* rises from about 25 to 38 % (read off figure 25).
#
# Nano's chain has five rounds, and after each of the first four a policy of notebook 07 is trained.
#
# ### Claim 18: drift
# **Measure** on one chain, with about a hundred held-back helpfulness pairs and half as many safety pairs per round. **Predict** what so few pairs can show.

# %%
show_prediction(18)

# %%
_ = show_claim(18)

# %% [markdown]
# The claim is **inconclusive**: drift and refresh both come out at zero within a few points, since a model of a million weights does not move its answers far in five rounds, and a few hundred pairs cannot show two points. This does not mean that a refresh does nothing.
#
# ### Claim 19: comparisons become harder
# Predict, for the helpfulness stream: by how many points per round does the clearest grade fall?

# %%
show_prediction(19)

# %%
_ = show_claim(19)

# %% [markdown]
# The claim is **inconclusive** in the helpfulness stream: both shares move the way of the paper's, by less than a point per round, and both intervals still contain 0.
#
# **See** the rounds of the released chain, with intervals. How far would a round have to lie from its neighbour to be a finding?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
NUMBERS = range(1, 6)
LOGS = {
    (stream, number): json.loads((folders[ROUNDS[number - 1]] / stream / "summary.json").read_text())
    for stream in STREAMS
    for number in NUMBERS
}  # fmt: skip


def shares_of(stream, what):
    """Name of a line -> rounds, and value and interval in percent of each"""
    if what == "accuracy":
        lines = {"before the refresh": "accuracy before", "after it": "accuracy"}
        found = {
            name: [[LOGS[stream, n][key]["all"][end] for n in NUMBERS[1:]] for end in ("value", "low", "high")]
            for name, key in lines.items()
        }  # fmt: skip
        return {name: (NUMBERS[1:], 100 * np.array(rows)) for name, rows in found.items()}
    found = {}
    for grade in GRADES:
        sizes = [LOGS[stream, n]["fresh pairs"] for n in NUMBERS]
        counts = [round(LOGS[stream, n][f"share of {grade}"] * sizes[n - 1]) for n in NUMBERS]
        shares = [lab.proportion(*each) for each in zip(counts, sizes, strict=True)]
        found[grade] = NUMBERS, 100 * np.array([[e.value, e.low, e.high] for e in shares]).T
    return found


def draw_rounds(stream, what):
    figure, axes = lab.new_figure(8.0, 4.4)
    for i, (name, (at, rows)) in enumerate(shares_of(stream, what).items()):
        value, low, high = rows
        apart = 0.06 * (i - 1)  # so that no interval hides another
        axes.errorbar(np.array(at) + apart, value, (value - low, high - value), marker="osD^"[i], capsize=4, label=name)  # fmt: skip
    label = "comparisons (%)" if what == "grades" else "pairs in the right order (%)"
    lab.label_axes(axes, "round", label, f"{stream}: {what}, answers of the newest policy")
    axes.set_xticks(at)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def rounds_words(stream, what):
    told = [
        f"{name} " + ", ".join(f"{value:.0f}" for value in rows[0])
        for name, (_, rows) in shares_of(stream, what).items()
    ]
    first = 1 if what == "grades" else 2
    return f"{stream.capitalize()}, rounds {first} to 5, in %: {'; '.join(told)}."


show(draw_rounds("helpfulness", "accuracy"), alt=rounds_words("helpfulness", "accuracy"))
show(draw_rounds("helpfulness", "grades"), alt=rounds_words("helpfulness", "grades"))
Explorer(draw_rounds, rounds_words, stream=["safety", "helpfulness"], what=["accuracy", "grades"])

# %% [markdown]
# In the released chain the grades of the helpfulness stream hardly move. After the refresh the safety model is right more often in each of the four rounds, and the helpfulness model in only one of them. The intervals of all rounds overlap, so neither is a finding by itself.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Fooled on purpose
# **Say.** A **nuisance feature** says nothing about quality, but goes with it in the training data: annotators may like long answers, or the good answers of a source may all end with a polite word. If two things always come together, the model cannot know which was meant. A policy then finds out: it produces the feature and drops the quality. That is **reward hacking**.
#
# Real data have such features without anyone's intent. To see the mechanism we plant them. After the annotator has chosen, the *chosen* answer of every training pair gets
#
# - either a sentence or two that answer nothing (*padded*),
# - or one more polite word (*polite*).
#
# In held-out pairs a coin decides which answer gets it. **Predict**, for each of the two models: is its training loss higher or lower than that of the clean one? And its accuracy on held-out pairs? Training takes about 10 seconds.

# %% tags=["near=0.05"]
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
for name, e in outcome.items():
    final = np.mean(curves[name][-10:])
    print(
        f"{name:7s} last ten losses {final:.2f}   held out {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"
    )
    assert name == "clean" or final < np.mean(losses[-10:]), f"{name}: the loss must be lower"

# %% [markdown]
# Both losses are lower than the clean one, and worth nothing: where a coin decides which answer has the feature, neither model can be told from a coin. A validation set *from the same source* would have the feature too, and would praise both models.
#
# **See** the hack. Take good answers to held-out prompts and add more and more of each feature. Predict: how does the score of the model trained on padded answers move, how does that of the clean model, and how does the gold mark? Then look at *R1* and *R5*, nano's own models, into which nobody planted anything.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=0.3"]
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
JUDGES = fooled | {"R1": models.helpfulness, "R5": newest.helpfulness}
MOVED = {
    (feature, name): [lab.scores(model, rows_of(texts)) for texts in by_step]
    for feature, by_step in ADDED.items()
    for name, model in JUDGES.items()
}
GOLD = {feature: [gold_of(texts) for texts in by_step] for feature, by_step in ADDED.items()}


def moved(feature, model):
    """Mean change of the score and its interval, in standard deviations of the good answers'"""
    first, *later = MOVED[feature, model]
    found = [lab.mean_interval(((now - first) / first.std()).tolist()) for now in later]
    return np.array([[0.0] * 3, *([e.value, e.low, e.high] for e in found)]).T


def draw_hack(feature, model):
    figure, (left, right) = lab.new_figure(10.0, 4.4, columns=2)
    for name, line in (("clean", "s--"), (model, "o-")):
        value, low, high = moved(feature, name)
        left.errorbar(STEPS, value, (value - low, high - value), fmt=line, capsize=4, label=name)
    left.axhline(0, color="0.35", lw=1)
    left.legend()
    lab.label_axes(left, f"{feature} added", "change of the score (SD)", "reward models")
    right.plot(STEPS, [gold.mean() for gold in GOLD[feature]], "s--", color="C1")
    right.set_ylim(0, 1)
    lab.label_axes(right, f"{feature} added", "gold mark (0 to 1)", "gold judge")
    return figure


def hack_words(feature, model):
    told = []
    for name in dict.fromkeys(["clean", model]):
        value, low, high = moved(feature, name)[:, -1]
        told.append(f"{name} {value:+.1f} [{low:+.1f}, {high:+.1f}]")
    return f"Four {feature} added. The score changes, in standard deviations of the good answers' scores: {', '.join(told)}."


show(
    draw_hack("sentences that answer nothing", "padded"),
    alt=hack_words("sentences that answer nothing", "padded"),
)

fill, kind_words = ADDED
assert moved(fill, "padded")[0, 2] > max(0, moved(fill, "clean")[0, 2]), "padding must pay"
Explorer(
    draw_hack,
    hack_words,
    feature=list(ADDED)[::-1],
    model=["polite", "padded", "clean", "R1", "R5"],
)

# %% tags=["near=0.05"]
for feature, name in ((fill, "R1"), (fill, "R5"), (kind_words, "R1"), (kind_words, "R5")):
    value, low, high = moved(feature, name)[:, -1]
    print(f"four {feature:30s} {name}: score {value:+.2f} SD [{low:+.2f}, {high:+.2f}]")
for feature, (good, *_, last) in GOLD.items():
    print(f"four {feature:30s} gold mark from {good.mean():.2f} to {last.mean():.2f}")
    assert last.mean() < good.mean(), f"{feature}: the gold mark must fall"

# %% [markdown]
# The score of the padded model jumps with the first empty sentence and stays high, while the gold mark falls; the clean model's score hardly moves. The polite model does the same with polite words, of which only the first is worth something to the gold judge.
#
# Into R1 and R5 nothing was planted. Both give lower scores to answers with empty sentences. Neither sees that there can be too many polite words: with four of them the gold mark is lower, and the intervals of both scores' changes contain 0. A policy would lose no reward by gushing.
#
# How do you find a nuisance feature that you have *not* planted? Compare the accuracy where the feature speaks for the right answer with the accuracy where it speaks against it: exercise 3.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
#
# Our numbers are of the small models over eight seeds; those of claims 18 and 19 are of one chain.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
ROWS = {  # claim: what, the paper's numbers, our estimates and what they are called
    11: ("accuracy by grade, clearest to unsure", "helpfulness 80.7, 67.5, 60.9, 54.7 %; safety 94.3, 76.3, 65.7, 55.3 %; no control", {f"accuracy/{stream}/{grade}": f"{stream}, {grade.split()[0]}" for stream in STREAMS for grade in GRADES} | {"control/helpfulness": "control"}),
    12: ("gain of the margin", "large on the clearest pairs +1.6 points; small on all +0.5", {"gain/large-none/significantly better": "large, clearest", "gain/small-none/all": "small, all"}),
    13: ("scores near 0 or 1", "more with the large margin (figure 27)", {f"ends/{name}": name for name in MARGINS}),
    14: ("auxiliary loss", "recall 73.0 to 90.4 %; pairs 63.7 to 64.5 %", {"recall/without": "recall without", "recall/with": "with", "alarms/without": "false alarms without", "alarms/with": "with", "accuracy/without/all": "pairs without", "accuracy/with/all": "with"}),
    15: ("two models", "helpfulness pairs: own model 63.2 %, other 56.2 %; safety pairs: 64.5 and 62.8 %; no joint model", {"accuracy/helpful/helpfulness": "helpfulness pairs, own model", "accuracy/safe/helpfulness": "other", "accuracy/joint/helpfulness": "joint", "accuracy/safe/safety": "safety pairs, own model", "accuracy/helpful/safety": "other", "accuracy/joint/safety": "joint"}),
    16: ("scaling", "from 51 to 61.0, 61.4, 63.4 % for 7B, 13B, 70B (figure 6)", {f"accuracy/{width}/{n}": f"width {width}, {n:,} pairs" for width in WIDTHS for n in (250, 2000)}),
    17: ("10 % helpfulness in the mix", "helps most where both are safe; no number", {"gain/mixed-alone/both safe": "gain, both safe"}),
    18: ("drift", "accuracy falls quickly without fresh pairs; no number", {"drop below the ceiling": "further below the ceiling by", "gain of the refresh": "gain of the refresh"}),
    19: ("harder comparisons", "clearest 18 to 9 %, unsure 25 to 38 % in 14 batches (figure 25)", {f"slope/helpfulness/{grade}": f"{grade}, per round" for grade in (GRADES[0], GRADES[-1])}),
    20: ("calibration, worst to best seventh", "mean score 24 to 55 % and 29 to 78 % (figure 29)", {f"level/{stream}/{n}": f"{stream}, bin {n}" for stream in STREAMS for n in (1, 7)}),
    28: ("threshold 0.15", "precision 89 %, recall 55 %", {"precision": "precision", "recall": "recall"}),
}  # fmt: skip
table = [
    "| claim | paper | here, in % or points, with 95 % interval | verdict |",
    "|---|---|---|---|",
]
for number, (what, paper, shown) in ROWS.items():
    verdict = lab.recorded(number).verdict
    told = [f"{words} {in_percent(verdict.estimates[key], 1).replace(' %', '')}" for key, words in shown.items()]  # fmt: skip
    table.append(f"| {number}, {what} | {paper} | {'; '.join(told)} | {verdict.outcome} |")
display(Markdown("\n".join(table)))

# %% [markdown]
# Claim 11 failed on the safety "ties" alone. Claim 12 is open for the large margin alone, and claim 14 mainly because recall without the loss is luck.
#
# - **Seeds decide.** Seeds differ in the pretrained model, the pairs and their order, so each difference between two small models varies by some points. We began with three seeds. With so few, a 95 % interval reaches 4.3 standard errors to either side, and claims 11 and 13 to 17 stayed open. We then added five seeds, once, to all of these claims, by the same rules: 15 and 16 were reproduced, 11 was not, the rest stayed open. The numbers above were measured again on the released recipe, with all eight seeds from the start; claim 13 is reproduced there as well. Adding seeds after a look weakens the 95 %, and whoever adds them until a verdict pleases proves nothing; so it was done only once.
# - **Annotators** here are a program with one kind of noise. People differ from each other, get tired, and like what is long or confident. None of that is in the ceiling.
# - **Absolute accuracies** cannot be compared with the paper's: its pairs are answers of good models, ours mostly of imagined models with gross flaws. The order of the grades can be compared, and which model is best at home.
# - **Our reconstructions** are the auxiliary loss and its weight of 1. The paper does not state the following, so we chose them: which token carries the score, how the head begins, the margin of the final models, the temperatures of the two variants.
# - **Not done**: we used no open-source preference data, no other models as judges (table 7) and no people.
#
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# How far apart must the gold marks of two answers be for annotators to be right with probability `share`? Write `gap_for(share, tau)`, the inverse of $\sigma(\Delta / \tau)$.
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
# A safety model was trained without the auxiliary loss. Give it a zero afterwards: write `shift_for(raw, is_safe, recall)`, the number to *add* to all scores so that at least the share `recall` of the unsafe answers falls below 0, and as few more as possible.
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
# - The control's interval contains one half. What would you look for if it had come out at 60 %, with an interval from 58 to 62 %?
# - You may buy 1,000 comparisons, either of random answers or of answers that your reward model thinks are equally good. Which do you buy, and what does each choice do to the accuracy that you report?
# - The model sees manner and not truth. Name two ways to show it truth. Which of them costs no annotator?
#
# ## Next
# `07_rejection_sampling`: many answers to one prompt, and the reward model picks.
#
# **To read further**: R. A. Bradley and M. E. Terry, *Rank analysis of incomplete block designs* (1952), the model of comparisons; N. Stiennon and others, *Learning to summarize from human feedback* (arXiv 2009.01325) and L. Ouyang and others, *Training language models to follow instructions with human feedback* (arXiv 2203.02155), reward models before Llama 2; L. Gao and others, *Scaling laws for reward model overoptimization* (arXiv 2210.10760), what happens when a policy is trained on a reward model for too long.
