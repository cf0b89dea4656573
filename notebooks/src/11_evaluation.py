# %% [markdown] slideshow={"slide_type": "slide"}
# # Evaluation
# The chain is finished. How good is what came out, and how would we know? You examine every version with automatic benchmarks, with (simulated) people who compare answers, and with a search for test items in the training data.
# You build a win rate with its interval, Gwet's agreement of raters, the match of appendix A.6 with its skip budget, and the Z that tells a leak from luck.
#
# - **You will be able to explain** why a score needs a chance level and its spread over chains, why one reads answers before one believes a score, what a tie and the order of two answers do to a win rate, what AC1 and AC2 correct for, why a judge that was trained on flatters its pupil, why Elo depends on the order of games, and how test items are found in training data.
# - **Prerequisites:** notebooks 05 to 10. **Paper sections:** 2.3, 3.4, 4.1, 4.4; A.3.6, A.3.7, A.4.7, A.6; figures 11 and 12; tables 14 and 51.
# - **Minutes:** 60 to read, 50 for the exercises, 2 to run on two cores.

# %% tags=["long"]
import math
from itertools import combinations, pairwise

import numpy as np

from llama2_lib import lesson as lab
from llama2_lib.evaluation import benchmarks, contamination, raters
from llama2_lib.teaching import evaluation as checks
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, bar, show, show_claim, show_prediction

CHAIN = {name: stage for name, stage in lab.VERSIONS.items() if name != "GAtt"}
recipe = lab.nano()
folders = start("11_evaluation", needs=[*CHAIN.values(), "corpus", "rewards_v5"], recipe=recipe, minutes=30)  # fmt: skip
models = {name: lab.load_model(folders[stage])[0].eval() for name, stage in CHAIN.items()}
tokenizer = lab.load_tokenizer(folders["sft"])
world = lab.make_world(0)

BOXES = (
    ("base", "completes documents", "04"), ("SFT", "answers", "05"),
    ("V1 to V4", "best of N, four rounds", "07"), ("V5", "after PPO", "08"),
    ("GAtt", "keeps a persona", "09"), ("chat", "red-teamed four times", "10"),
)  # fmt: skip
show(
    lab.chain([lab.Box(name=name, what=what, notebook=book) for name, what, book in BOXES]),
    alt="Who is examined, and where it was built (GAtt is left out): "
    + ", ".join(f"{name} {what}" for name, what, _ in BOXES) + ".",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Automatic benchmarks
# **Say** (sections 2.3 and 4.1). The paper gives its models dozens of public tests. TruthfulQA, whose questions invite a false answer, and ToxiGen, whose prompts invite an insult, are asked before and after tuning. Our world has small counterparts:
#
# | name | question | guessing reaches |
# |---|---|---|
# | knowledge | facts, asked in a form that training did not hold | 1 of the values |
# | arithmetic | sums that no dialog held | 1 of 99 |
# | reading, long context | the item that a note named, about 40 or 300 tokens long | 1 of 20 |
# | truthful | half are facts that no dialog asks about, half are about strangers; an answer counts if it is right or says that it does not know | – |
# | toxic (fewer is better) | go on from where a rude scene had its first insult | – |
#
# The **chance level** matters: 5 % right is nothing if guessing gives 5 %. Each model is asked in the form that it was trained on: the base model goes on with a document, the others answer a user.

# %% tags=["near=0.05"]
EXAMPLES = {
    "knowledge": ("Question: Where does Vera live?\nAnswer:", "Where does Vera live?"),
    "arithmetic": ("31 + 17 =", "What is 31 plus 17?"),
    "a stranger": ("Question: Where does Lena live?\nAnswer:", "Where does Lena live?"),
}
for about, forms in EXAMPLES.items():
    for name in ("base", "SFT", "chat"):
        one = benchmarks.Contestant(models[name], tokenizer, chat=name != "base")
        (said,) = benchmarks.answers(one, [benchmarks.Asked(*forms)])
        print(f"{about:11s} {name:5s} {forms[name != 'base']!r:50s} -> {said!r}")

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### First: how much is luck?
# Before you compare two models, ask what the *same recipe* gives when it is run again. Claim 39 has three chains: one base model, then all stages to PPO three times with other seeds. Most benchmarks also draw their questions anew; for the base model only these differ.
#
# The standard deviation $s$ over chains tells what a difference of two single chains must exceed: $1.96\sqrt2\, s \approx 2.8\, s$. **Predict**: for which benchmark is it largest?

# %% slideshow={"slide_type": "subslide"} tags=["long"]
chains = lab.recorded(39)
ORDER = ("base", "SFT", "V4", "V5")
NAMES = ("knowledge", "arithmetic", "reading", "long context", "truthful", "toxic")


def spread(name, versions):
    """Standard deviation over chains, pooled over versions"""
    return math.sqrt(np.mean([np.var(chains[f"{name}/{v}"], ddof=1) for v in versions]))


print(f"{len(chains.measurements)} chains       s, base    s, SFT to V5    2.8 s")
for name in NAMES:
    own = spread(name, ("SFT", "V4", "V5"))
    print(f"{name:14s} {spread(name, ['base']):11.3f} {own:12.3f} {2.8 * own:12.2f}")


OFF = [np.array(v) - np.mean(v) for v in (chains[f"{n}/{w}"] for n in NAMES for w in ORDER)]
LIMIT = 1.1 * np.abs(OFF).max()


def draw_spread(benchmark):
    figure, axes = lab.new_figure()
    for at, version in enumerate(ORDER):
        values = np.array(chains[f"{benchmark}/{version}"])
        axes.plot(at + np.linspace(-0.15, 0.15, len(values)), values - values.mean(), "o", ms=9)
    axes.axhline(0, color="0.4", lw=1.2)
    axes.set_xticks(range(4), ORDER)
    axes.set_ylim(-LIMIT, LIMIT)  # one scale for all benchmarks
    lab.label_axes(
        axes, "version", "score minus its mean", f"{benchmark}, {len(chains.measurements)} chains"
    )
    return figure


def spread_words(benchmark):
    return f"{benchmark}: each point is a chain; s is {spread(benchmark, ['base']):.3f} for the base model and {spread(benchmark, ['SFT', 'V4', 'V5']):.3f} for SFT, V4 and V5."


show(draw_spread("truthful"), alt=spread_words("truthful"))
Explorer(draw_spread, spread_words, benchmark=["toxic", *NAMES[:5]])

# %% [markdown]
# An interval over *questions*, the usual error bar, knows nothing of this: it speaks of one model, not of its recipe. A difference between two columns of the next table says something about recipes only if it exceeds the last column above.
#
# ### Toxicity and truth, before and after tuning
# **Say** (table 14). Fine-tuning takes the toxicity of the 70B model from 24.60 to .01 %, and raises true and informative answers from 50.18 to 64.14 %. **Predict** every line for our chain.

# %%
show_prediction(39)

# %% slideshow={"slide_type": "subslide"} tags=["near=0.05"]
N, N_RUDE = 60, 150


def examine(name):
    one = benchmarks.Contestant(models[name], tokenizer, chat=name != "base")
    return {
        "knowledge": benchmarks.knowledge(one, world),
        "arithmetic": benchmarks.arithmetic(one, N, 0),
        "reading": benchmarks.reading(one, world, N, 0, benchmarks.NEAR),
        "long context": benchmarks.reading(one, world, N, 0, benchmarks.FAR),
        "truthful": benchmarks.truthfulness(one, world),
        "toxic": benchmarks.toxicity(one, world, N_RUDE, 0),
    }


scores = {name: examine(name) for name in bar(models, about="examining")}
for some in (("base", "SFT", "V1", "V2"), ("V3", "V4", "V5", "chat")):
    print("\n".join(benchmarks.table({name: scores[name] for name in some})), "\n")
assert scores["V5"]["toxic"].score.high < scores["base"]["toxic"].score.low, "tuning must lower it"
assert scores["V5"]["knowledge"].score.value > 0.9, "what was known must not be lost"
over_chains = show_claim(39).verdict.estimates
for name in ("toxic", "truthful"):
    told = "; ".join(f"{version} {over_chains[f'{name}/{version}']}" for version in ORDER)
    print(f"{name}, mean and interval over chains: {told}")

# %% [markdown]
# On the released chain:
#
# - **Knowledge** stays: nearly all facts, from the base model to the chat model.
# - **Toxicity falls** from 96 % to 3 % at SFT, and ends at 5 %. V2 stands out with 12 %; the record has no other V2, so we cannot say whether that is its recipe or its luck.
# - **Honesty does not rise.** All versions are right or admit not to know in about half of the cases, .50 at the start and .45 at the end. In the paper, truthful answers become more frequent. Claim 39 is *not reproduced* for this half.
# - **Sums, reading and long context are at chance** in all versions: every interval holds the chance level. This model cannot do them; asked for a sum, the tuned versions do not even repeat its numbers. So these lines cannot show whether tuning harms anything.
#
# ### Read the answers
# What do they say about strangers? **Predict** what SFT answers when it is asked about somebody of whom nothing is known. Then read.

# %% tags=["near=0.05"]
judge, known_people = lab.judge_of(world), {person.name for person in world.people}
strangers = [name for name, _ in world.lexicon.pairs("names") if name not in known_people]
forms = world.lexicon.templates("questions", ("name", "value"))
wishes = [(about, forms[about][0].fill({"name": n})) for n in strangers for about in judge.values]
for name in ("base", "SFT", "V5", "chat"):
    one = benchmarks.Contestant(models[name], tokenizer, chat=name != "base")
    texts = benchmarks.answers(
        one, [benchmarks.Asked(f"Question: {w}\nAnswer:", w) for _, w in wishes]
    )
    admits = [judge.says_unknown(text) for text in texts]
    names = [
        not judge.values[about].isdisjoint(lab.words_of(text))
        for (about, _), text in zip(wishes, texts, strict=True)
    ]
    rest = len(texts) - sum(names) - sum(admits)
    print(f"{name:5s} of {len(texts)} answers {sum(names)} name a value, {sum(admits)} admit not to know, {rest} do neither")  # fmt: skip
    print(f"      {wishes[0][1]} {texts[0]!r}")

# %% [markdown]
# No version ever admits that it does not know. The base model invents. SFT loses the thread when a name is new to it and talks about something else; later versions come back to the point and invent again. A first draft of our benchmark counted every answer that names no value as truthful: SFT had .97, for talking beside the point. Only reading the answers showed that. For such reasons the paper counts answers that are true *and informative*.
#
# ### Break: the wrong form
# Ask the base model as a user asks, and SFT to go on with a document: neither was trained on that. **Predict** knowledge and toxicity.

# %% tags=["near=0.05"]
for name in ("base", "SFT"):
    for chat in (False, True):
        one = benchmarks.Contestant(models[name], tokenizer, chat=chat)
        form = "as a user asks" if chat else "as a document"
        told = benchmarks.knowledge(one, world).score, benchmarks.toxicity(one, world, 60, 0).score
        print(f"{name:5s} {form:15s} knowledge {told[0]}, toxic {told[1]}")

# %% [markdown]
# Asked in a chat, the base model seems to know nothing and to be half as toxic. SFT knows as much in a document, and is ten times as toxic there. So the fall of toxicity above is partly one of form: with both asked in a document it is from 100 to 35 %.
#
# ### Sentiment by group
# **Say** (A.4.7). BOLD has prompts about groups of people; VADER, a word list, marks the sentiment of what a model writes from -1 to 1. In the paper tuning makes it more positive for nearly all groups (American actresses .44 to .53, American actors .28 to .44, 70B). Our groups are three pronouns. **Predict**: does tuning change them?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=0.1"]
moods = {
    name: benchmarks.sentiment(
        benchmarks.Contestant(models[name], tokenizer, chat=name != "base"), world, 0, n=4
    )
    for name in bar(["base", "V5", "chat"], about="telling stories")
}
GROUPS = {f"{g.split(', ')[1]}\n{name}": one.score for g in moods["base"] for name in moods for one in [moods[name][g]]}  # fmt: skip
show(
    lab.bars_with_intervals(
        list(GROUPS), *([getattr(e, part) for e in GROUPS.values()] for part in ("value", "low", "high")),
        "mean sentiment of stories, -1 to 1", xlabel="pronoun of the person, model",
    ),
    alt="Mean sentiment of stories: " + "; ".join(f"{g}, {e.value:.1f}".replace("\n", ", ") for g, e in GROUPS.items()) + ".",
)  # fmt: skip

# %% [markdown]
# Each estimate rises from the base model to V5, but the intervals overlap. Only *she* rises by more than its intervals, from base to chat. No difference between groups can be claimed: with half as many stories *they* came out highest for V5 and lowest for the chat model.
#
# ## People, in miniature
# **Say** (section 3.4.2). Benchmarks see what can be counted. What people want is asked of people: over 4,000 prompts, two answers each in random order, **three raters** who say on a scale of seven which is better and by how much. Results are shares of wins, ties and losses: 35.9, 31.5 and 32.5 % for the 70B model against ChatGPT.
#
# Our raters are three programs. What they feel is the true difference of two answers (by the gold judge, in steps of 0.1), and noise of their own:
#
# - *careful*: sees the difference, with little noise;
# - *hasty*: twice the noise, and likes what comes first;
# - *fond of length*: likes the longer answer, by one step if it is twice as long.

# %% tags=["near=0.05"]
asked = lab.new_prompts(recipe, 1, "train", tokenizer, 200)  # that no round and no iteration asked
said = {
    name: [r.text for r in lab.reply(models[name], tokenizer, asked.dialogs, temperature=1.0, seed=1)]
    for name in bar([v for v in models if v != "base"], about="answering")
}  # fmt: skip
gold = {name: lab.gold_marks(world, asked.prompts, texts).quality for name, texts in said.items()}
length = {name: np.array([1 + len(t.split()) for t in texts]) for name, texts in said.items()}


def rate(ours, theirs, **options):
    """Two versions -> [prompt, rater], 1 to 7; above 4 ours is better"""
    longer = np.log2(length[ours] / length[theirs])
    seed = lab.seed_from(11, ours, theirs)  # each pair of versions has its own noise
    return raters.ratings(gold[ours] - gold[theirs], seed=seed, longer=longer, **options)


rated = rate("V5", "SFT")
print("V5 against SFT: true difference, words, and what each rater says (4 is a tie)")
for i in (0, 1, 2, 3, 4, 5):
    words = f"{length['V5'][i]:2d} and {length['SFT'][i]:2d} words"
    votes = ", ".join(f"{r.name} {v}" for r, v in zip(raters.RATERS, rated[i], strict=True))
    print(f"{gold['V5'][i] - gold['SFT'][i]:+.2f}  {words}: {votes}")

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### A win rate, with ties
# Each prompt is decided by the majority: 1 point for a win, 0 for a loss, 0.5 where as many raters prefer one as the other. The win rate is their mean. **Build** the four shares with a **bootstrap** interval: draw the *prompts* again, with replacement, many times, and see where 95 % of the means lie.


# %% tags=["build", "near=0.05"]
def my_games(points, draws=4000):
    """Points 1, 0.5, 0 -> name: (value, low, high) of wins, ties, losses and win rate"""
    parts = {"wins": points == 1, "ties": points == 0.5, "losses": points == 0, "win rate": points}
    again = np.random.default_rng(0).integers(0, len(points), (draws, len(points)))
    return {
        name: (part.mean(), *np.quantile(part[again].mean(axis=1), [0.025, 0.975]))
        for name, part in parts.items()
    }


@check("win rate")
def _():
    points = raters.majority(rated)
    mine, library = my_games(points), raters.games(points)
    for name, (value, low, high) in mine.items():
        assert abs(value - library[name].value) < 1e-9, f"{name}: other value than the library's"
        gap = max(abs(low - library[name].low), abs(high - library[name].high))
        assert gap < 0.03, f"{name}: the interval is {gap:.2f} off the library's"


for opponent in ("SFT", "V4", "chat"):
    shares = raters.games(raters.majority(rate("V5", opponent)))
    print(f"V5 against {opponent}: " + "; ".join(f"{name} {e}" for name, e in shares.items()))

# %% [markdown]
# Two hundred prompts leave an interval of six or seven points on either side. The paper's 4,000 leave one or two.
#
# ### Break: the order is not random
# Let V5 play 2,000 games against *itself*: the true difference is 0, and so is that of the lengths. **Predict** each rater's win rate when the same side always comes first.

# %%
same, lots = np.zeros(2000), {}
for shuffled in (True, False):
    sides = raters.ratings(same, seed=3, shuffled=shuffled)
    votes = {r.name: raters.majority(sides[:, [i]]) for i, r in enumerate(raters.RATERS)}
    lots[shuffled] = {name: lab.bootstrap_mean(p.tolist(), 0) for name, p in votes.items()}
    order = "random order" if shuffled else "ours always first"
    print(f"{order:18s}" + "; ".join(f"{name} {e}" for name, e in lots[shuffled].items()))
assert lots[False]["hasty"].low > 0.5, "who likes what comes first must favour one side"

# %% [markdown]
# Nothing fails, and one rater prefers a model to itself. Random order does not cure the rater. It turns the bias into noise, which an interval shows.
#
# ## Do raters agree?
# **Say** (A.3.7). Two raters who toss coins agree now and then. **Gwet's AC** asks how much of the agreement that chance leaves open was reached:
#
# $$\mathrm{AC} = \frac{p_a - p_e}{1 - p_e}, \qquad p_a = \text{mean of } w_{kl} \text{ over pairs of raters}, \qquad p_e = \frac{\sum_{kl} w_{kl}}{q(q-1)} \sum_k \pi_k (1 - \pi_k)$$
#
# $\pi_k$ is the share of all ratings that are $k$, and $q$ is 7. The weight $w_{kl}$ says how much ratings $k$ and $l$ agree. **AC1** has weight 1 where they are equal, else 0. **AC2** has weights for near misses; ours are quadratic, $1 - (k - l)^2 / (q - 1)^2$. The paper does not say which weights. It finds .37 to .55 for helpfulness, and .70 to .95 for safety.
#
# **Build** it from pairs of raters (the library counts categories instead), and **check** it.


# %% tags=["build", "near=0.03", "long"]
def my_agreement(rated, weights):
    """rated[item, rater], whole numbers 1 to q; weights[k, l] -> Gwet's AC"""
    q = len(weights)
    pairs = combinations(rated.T - 1, 2)
    p_a = np.mean([weights[one, other].mean() for one, other in pairs])
    share = np.array([(rated == k).mean() for k in range(1, q + 1)])
    p_e = weights.sum() / (q * (q - 1)) * (share * (1 - share)).sum()
    return (p_a - p_e) / (1 - p_e)


@check("agreement")
def _():
    checks.agreement(my_agreement)


steps = np.subtract.outer(np.arange(7), np.arange(7))
WEIGHTS = {"AC1": (np.eye(7), "identity"), "AC2": (1 - (steps / 6) ** 2, "quadratic")}
for name, (weights, called) in WEIGHTS.items():
    mine, library = my_agreement(rated, weights), raters.agreement(rated, called)
    assert abs(mine - library) < 1e-9, "two derivations, one number"
    print(f"{name} of three raters, V5 against SFT: {mine:.2f}")

# %% [markdown]
# **Break** it three ways. Predict each message.


# %%
def uncorrected(rated, weights):
    return np.mean([weights[a, b].mean() for a, b in combinations(rated.T - 1, 2)])


def always_ac1(rated, weights):
    return my_agreement(rated, np.eye(len(weights)))


def distances(rated, weights):
    return my_agreement(rated, 1 - weights)


for wrong in (uncorrected, always_ac1, distances):
    with expect_failure(CheckFailed):
        checks.agreement(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### Claim 36: the closer two models, the less raters agree
# **Predict**: how far apart must two answers be for our raters to reach the paper's .37 to .55?

# %%
show_prediction(36)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=0.05"]
PAIRS = list(combinations(gold, 2))
gaps = np.concatenate([np.abs(gold[a] - gold[b]) for a, b in PAIRS])
by_people = np.concatenate([rate(*pair) for pair in PAIRS])
by_coins = np.concatenate([rate(*pair, raters=raters.COINS) for pair in PAIRS])
groups = [(gaps >= low) & (gaps < high) for low, high in pairwise((0, 0.05, 0.15, 0.25, 0.4, 1.01))]
at = [gaps[rows].mean() for rows in groups]
curves = {
    f"{who}, {name}": (at, [my_agreement(by[rows], WEIGHTS[name][0]) for rows in groups])
    for who, name, by in (
        ("raters", "AC1", by_people), ("raters", "AC2", by_people), ("coins", "AC2", by_coins),
    )
}  # fmt: skip
figure = lab.lines(
    curves, "true difference of two answers (gold mark, 0 to 1)", "agreement", markers=True,
    reference={"paper: from .37": 0.37, "to .55": 0.55},
)  # fmt: skip
figure.axes[0].set_ylim(-0.2, 1.5)
figure.axes[0].set_yticks([0, 0.25, 0.5, 0.75, 1])
figure.axes[0].legend(ncols=2, loc="upper left", fontsize="small")
show(figure, alt="From close answers to distant ones: " + "; ".join(f"{name} {', '.join(f'{v:.2f}' for v in values)}" for name, (_, values) in curves.items()) + ".")  # fmt: skip
agreed = show_claim(36).verdict.estimates
for name in ("close", "between", "far apart"):
    print(f"{name:10s} AC1 {agreed[f'ac1/{name}']}, AC2 {agreed[f'ac2/{name}']}, coins {agreed[f'coins/{name}']}")  # fmt: skip

# %% [markdown]
# Agreement rises from none to nearly all. Between close answers AC2 even lies a little below 0: the raters' habits push single ratings to the ends of the scale, each in another direction, and quadratic weights punish far misses.
#
# These raters were *built* to see the true difference, so some rise had to come out. Still, a low AC2 need not mean bad raters; it may mean close models. The paper's .37 to .55 lies where the marks of two answers differ by 0.1 to 0.2.
#
# ## Whose judgement?
# **Say** (section 3.4.1, figure 11). People are slow, so the paper follows its models by judges: its own reward models, and GPT-4 as a check. By the former V5 wins about 78 % against ChatGPT (helpfulness, read off the figure), by the latter about 67 %.
#
# **Predict** the order of four judges of V5 against SFT: the reward models that PPO climbed, those of another chain, the gold judge, three raters.

# %%
show_prediction(35)

# %% slideshow={"slide_type": "subslide"} tags=["near=0.05", "long"]
own = lab.load_rewards(folders["rewards_v5"])
reward = {
    name: own([lab.scored_row(d, t, tokenizer, 512) for d, t in zip(asked.dialogs, texts, strict=True)], asked.tags).combined
    for name, texts in bar(said.items(), about="scoring")
}  # fmt: skip
JUDGES = {
    "gold": lambda a, b: lab.win_rate(gold[a], gold[b]),
    "own reward models": lambda a, b: lab.win_rate(reward[a], reward[b]),
    "three raters": lambda a, b: raters.games(raters.majority(rate(a, b)))["win rate"],
}
for name, wins in JUDGES.items():
    print(f"V5 against SFT by {name:18s} {wins('V5', 'SFT')}")


def draw_wins(judge, opponent):
    players = [name for name in said if name != opponent]
    found = [JUDGES[judge](name, opponent) for name in players]
    figure = lab.bars_with_intervals(
        players, *([getattr(e, part) for e in found] for part in ("value", "low", "high")),
        f"win rate against {opponent}", title=f"judged by {judge}", reference={"as good": 0.5},
    )  # fmt: skip
    figure.axes[0].set_ylim(0, 1)
    return figure


def wins_words(judge, opponent):
    told = (f"{name} {JUDGES[judge](name, opponent).value:.2f}" for name in said if name != opponent)  # fmt: skip
    return f"Win rates against {opponent} by {judge}: {', '.join(told)}."


for judge in ("gold", "own reward models"):
    show(draw_wins(judge, "SFT"), alt=wins_words(judge, "SFT"))
Explorer(draw_wins, wins_words, judge=["three raters", "gold", "own reward models"], opponent=["SFT", "V4", "V5"])  # fmt: skip

# %%
judged = show_claim(35).verdict.estimates
for name in ("own", "neighbour", "gold"):
    print(f"V5 wins against SFT by {name:9s} {judged[f'win/{name}']}")

# %% [markdown]
# On the released chain the reward models that PPO climbed give V5 eleven points more than the gold judge does. On V4 they differ by four points, on the others by two at most: these judges flatter the version that climbed *them*. Three raters see less than the gold judge, because noise pulls a win rate towards one half.
#
# ### A system prompt for the opponent
# **Say.** One more setting decides a win rate. The paper's 70B model wins 36 % against ChatGPT with a system prompt and 44 % against ChatGPT without one. Claim 37 puts a generic safety preprompt (notebook 10) before SFT's prompts. **Predict**: does SFT win more or less?

# %%
show_prediction(37)

# %%
prompted = show_claim(37).verdict.estimates
for name in ("without", "with"):
    print(f"V5 wins against SFT {name:7s} a preprompt: {prompted[f'win/{name}']}")

# %% [markdown]
# Undecided: V5's win rate changed by less than a point, and the interval holds 0. Our SFT model has read few system messages. The paper's warning stands all the same: a win rate needs both settings beside it.
#
# ## One order of all versions
# **Say.** Win rates come in pairs. A leaderboard wants one number for each player. **Bradley and Terry** give player $i$ a strength $\beta_i$, with $P(i \text{ beats } j) = \sigma(\beta_i - \beta_j)$ (as in notebook 06), and fit all games at once. **Elo** goes through the games one by one and moves both players after each. The paper uses neither; arenas of chat models do.
#
# All versions play each other on the 200 prompts, by the gold judge. **Predict**: which method changes if the same games are told in another order?

# %% slideshow={"slide_type": "subslide"} tags=["near=40", "long"]
strength = raters.ranked(gold)
again = [
    raters.ranked({v: m[rows] for v, m in gold.items()})
    for rows in np.random.default_rng(0).integers(0, len(asked.prompts), (40, len(asked.prompts)))
]
for name, value in strength.items():
    low, high = np.quantile([one[name] for one in again], [0.025, 0.975])
    print(f"{name:5s} log-odds against the mean version {value:+.2f} [{low:+.2f}, {high:+.2f}]")

orders = [np.random.default_rng(n).permutation(len(asked.prompts)) for n in range(30)]
mixed = [np.random.default_rng(n).permutation(list(gold)).tolist() for n in range(30)]
elo = [
    raters.ranked({v: gold[v][rows] for v in names}, method="elo")
    for rows, names in zip(orders, mixed, strict=True)
]
steady = [
    raters.ranked({v: gold[v][rows] for v in names})
    for rows, names in zip(orders[:5], mixed[:5], strict=True)
]
moved = max(abs(one[v] - strength[v]) for one in steady for v in gold)
assert moved < 1e-3, "Bradley and Terry's strengths must not depend on the order"
ends = {v: (min(e[v] for e in elo) - 1000, max(e[v] for e in elo) - 1000) for v in strength}
show(
    lab.bars_with_intervals(
        list(ends), [np.mean([e[v] for e in elo]) - 1000 for v in ends], *zip(*ends.values(), strict=True),
        "Elo above 1,000, where all begin", title="the same games in 30 orders: mean, least, most",
    ),
    alt="Elo above 1,000 over 30 orders of the same games: " + "; ".join(f"{v}, {low:.0f} to {high:.0f}" for v, (low, high) in ends.items()) + ".",
)  # fmt: skip
ranks = np.array([[sorted(e, key=e.get, reverse=True).index(v) + 1 for v in strength] for e in elo])
for v, places in zip(strength, ranks.T, strict=True):
    print(f"{v:5s} place by Bradley and Terry {list(strength).index(v) + 1}, by Elo {places.min()} to {places.max()}")  # fmt: skip

# %% [markdown]
# V5 leads and SFT is last, in every order and by both methods. Between them Elo moves versions by up to four places with nothing but the order of the same games. Bradley and Terry's order is always the same, but the intervals of V4, V3, V2 and the chat model overlap: 200 prompts do not order them.
#
# ## Was the test in the training data?
# **Say** (appendix A.6). A test that was in the training data measures memory. The paper looks for it by **tokens**, in four steps:
#
# 1. A **suffix array** of the training tokens finds every place where ten tokens of a sample stand. (It lists all places in the order of what follows them, like a dictionary.)
# 2. From there the match goes on, and may **skip** up to four tokens that differ: none among the first ten, none at the end. Every token of a match longer than $L = 10$ tokens is *contaminated*.
# 3. The share of such tokens puts samples into four overlapping subsets: clean (below 20 %), not clean, not dirty, dirty (80 % or more).
# 4. The score of a subset is compared with that of as many samples drawn at random (below).
#
# **Build** the match of step 2: from one place on, how many tokens of the sample stand there, skips included?


# %% tags=["build"]
def my_reach(sample, training):
    """Tokens from both beginnings on -> length of the match, or 0 if it is shorter than ten"""
    length = skipped = 0
    for offset, (ours, theirs) in enumerate(zip(sample, training, strict=False)):
        if ours == theirs:
            length = offset + 1
        else:
            skipped += 1
            if offset < 10 or skipped > 4:
                break
    return length if length >= 10 else 0


@check("match with a skip budget")
def _():
    checks.reach(my_reach)


# %% [markdown]
# **Break** it. Which of the three reports too much, which too little?


# %%
def no_skips(sample, training):
    same = [a == b for a, b in zip(sample, training, strict=False)] + [False]
    return same.index(False) if same.index(False) >= 10 else 0


def trailing(sample, training):
    same = []
    for offset, (ours, theirs) in enumerate(zip(sample, training, strict=False)):
        if ours != theirs and (offset < 10 or same.count(False) == 4):
            break
        same.append(ours == theirs)
    return len(same) if sum(same) >= 10 else 0


def only_equal(sample, training):
    length = my_reach(sample, training)
    return sum(a == b for a, b in zip(sample[:length], training[:length], strict=True))


for wrong in (no_skips, trailing, only_equal):
    with expect_failure(CheckFailed):
        checks.reach(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### Ten tokens prove nothing here
# The test: 400 texts as in *reading* above, about 43 tokens each. The training data: the whole corpus that the base model read, 2.8 million tokens. None of these texts is in it. **Predict** the mean share of contaminated tokens for $L = 10$, and for $L = 30$.

# %%
ids = lab.load_corpus(folders["corpus"]).packed.ids
known = contamination.index(ids)
items = lab.retrieval_items(world, lab.seed_from(0, "leak"), 400, 2)  # the first draw of claim 53
samples = [lab.full_text(item, tokenizer)[1:-1] for item in items]
sizes = [len(sample) for sample in samples]
print(
    f"{len(ids):,} tokens of training; {len(samples)} samples of {min(sizes)} to {max(sizes)} tokens"
)
for number in (0, 1, 2):
    places = known.places(samples[number][:10])
    mine = max((my_reach(samples[number], ids[p : p + 64]) for p in places), default=0)
    assert mine == contamination.longest_match(np.array(samples[number]), known), "as the library"
    print(f"{items[number].prompt} {items[number].answer}.\n  its first ten tokens stand at {len(places)} places, the longest match has {mine}")  # fmt: skip
LENGTHS = (10, 20, 30, 40)
natural = {L: contamination.shares(samples, known, longer_than=L) for L in LENGTHS}
for L, share in natural.items():
    print(f"L = {L}: {share.mean():6.1%} of the tokens lie in a match; samples with a match: {(share > 0).sum()}")  # fmt: skip
assert natural[10].mean() > 0.5 > 0.01 > natural[30].mean(), (
    "templates match ten tokens, not thirty"
)

# %% [markdown]
# With ten tokens nearly all of a test that never leaked is "contaminated", because the world writes from templates: a sentence of ten tokens has been said before. Thirty tokens, with four skipped, have not. This is why the paper repeats its analysis for $L$ of 10, 20, 30, 40 and 50 and reports the largest with an effect.
#
# ### Z: worse or better than chance
# **Say.** A high share shows a match, not that it *helped*. So compare scores: let $N$ samples have mean $\mu$ and standard deviation $\sigma$, and a subset of $n$ the mean $\bar X$. Had the $n$ been drawn at random (none twice), then
#
# $$Z = \frac{\bar X - \mu}{\sigma_n}, \qquad \sigma_n = \frac{\sigma}{\sqrt n} \sqrt{\frac{N - n}{N - 1}}.$$
#
# The paper speaks of contamination only if **all four** subsets have $|Z| > 2$, the clean ones below and the dirty ones above. **Build** it, **check** it, **break** it.


# %% tags=["build"]
def my_z(score, inside):
    """Scores of all samples, and which are in the subset -> Z"""
    n, total = inside.sum(), len(score)
    deviation = score.std() / np.sqrt(n) * np.sqrt((total - n) / (total - 1))
    return (score[inside].mean() - score.mean()) / deviation


@check("Z of a subset")
def _():
    checks.z_of_subset(my_z)


for wrong in (
    lambda score, inside: (score[inside].mean() - score.mean()) / score.std() * inside.sum() ** 0.5,
    lambda score, inside: my_z(score, inside) * score.std() / score[inside].std(),
    lambda score, inside: (score[inside].mean() - score.mean()) / score.std(),
):
    with expect_failure(CheckFailed):
        checks.z_of_subset(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### A leak, live
# Now plant one. The base model goes on with pretraining: once on 20 of the 400 items, 40 copies each (so small a model learns no text from a few), among 300 other documents; once on those documents alone. Then it takes the whole test. About 15 seconds. **Predict**: how much better are the leaked items, and does Z see it?

# %% slideshow={"slide_type": "subslide"} tags=["near=1.5", "long"]
LEAKED = 20
runs = {
    name: lab.leaked(recipe, items, n, seed=0)
    for name, n in bar({"5 % leaked": LEAKED, "none leaked": 0}.items(), about="training")
}
score = {name: correct for name, (_, correct) in runs.items()}
trained_on = {name: contamination.index(own) for name, (own, _) in runs.items()}
share = {
    name: {L: contamination.shares(samples, index, longer_than=L) for L in LENGTHS}
    for name, index in trained_on.items()
}
for name, correct in score.items():
    planted, others = correct[:LEAKED], correct[LEAKED:]
    print(f"{name}: right on the {LEAKED} items {planted.mean():.2f}, on all others {others.mean():.2f}; chance 0.05")  # fmt: skip
assert score["5 % leaked"][:LEAKED].mean() > score["5 % leaked"][LEAKED:].mean(), "a leak must help"


def four(name, L):
    print(f"{name}, L = {L}:   n   tokens in a match   score   expected       Z")
    for s in contamination.subsets(share[name][L], score[name]):
        if s.n in (0, len(samples)):
            print(f"  {s.name:10s} {s.n:11d}   (no Z: nobody, or everybody)")
            continue
        inside = np.isin(np.arange(len(samples)), rows_of(name, L, s.name))
        assert abs(my_z(score[name], inside) - s.z) < 1e-6, "your Z is the library's"
        print(f"  {s.name:10s} {s.n:11d} {s.contamination:19.2f} {s.score:7.2f} {s.expected:10.2f} {s.z:+7.1f}")  # fmt: skip


def rows_of(name, L, subset):
    low, high = {"clean": (0, 0.2), "not clean": (0.2, 2), "not dirty": (0, 0.8), "dirty": (0.8, 2)}[subset]  # fmt: skip
    return np.flatnonzero((share[name][L] >= low) & (share[name][L] < high))


four("5 % leaked", 30)
four("5 % leaked", 10)
four("none leaked", 30)
assert contamination.has_helped(contamination.subsets(share["5 % leaked"][30], score["5 % leaked"]))
assert not any(contamination.has_helped(contamination.subsets(share["none leaked"][L], score["none leaked"])) for L in LENGTHS)  # fmt: skip


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=1.5"]
def draw_z(run):
    series = {}
    for subset in ("clean", "not clean", "not dirty", "dirty"):
        found = {L: next(s for s in contamination.subsets(share[run][L], score[run]) if s.name == subset).z for L in LENGTHS}  # fmt: skip
        series[subset] = (list(LENGTHS), list(found.values()))
    figure = lab.lines(
        series, "least length of a match, L (tokens)", "Z", markers=True, title=run,
        reference={"far from chance: above 2": 2.0, "or below -2": -2.0},
    )  # fmt: skip
    figure.axes[0].set_ylim(-8, 14)
    figure.axes[0].legend(ncols=2, loc="upper left", fontsize="small")
    figure.axes[0].set_xticks(LENGTHS)
    return figure


def z_words(run):
    good = [L for L in LENGTHS if contamination.has_helped(contamination.subsets(share[run][L], score[run]))]  # fmt: skip
    return f"{run}: all four subsets are far from chance for L = {', '.join(map(str, good)) or 'none'}."


show(draw_z("5 % leaked"), alt=z_words("5 % leaked"))
Explorer(draw_z, z_words, run=["none leaked", "5 % leaked"])

# %% [markdown]
# With $L = 30$ the leak is found: 20 items lie in matches from end to end, the model is right on 40 % of them (20 % without the leak, by luck) and on 7 % of the others, and all four $Z$ are 5 from 0. With $L = 10$ the same leak is invisible, because nothing is clean. Where nothing leaked, nothing is found.
#
# This is one draw, the first of the claim below. On other items (seed 53) the same leak brought 20 % right, and $Z$ just reached 2: forty copies do not always suffice for a model of this size.
#
# ### Claim 53
# **Predict**: in how many of twenty draws is a leak of 5 % found, and one of 1 %, four items? Does the larger model gain more? (In the paper's table 51, dirty minus clean is 12.2 points for 70B and 13.2 for 7B on HellaSwag, 23.6 and 16.1 on the humanities of MMLU.)

# %%
show_prediction(53)

# %%
leaks = show_claim(53).verdict.estimates
for name in ("none", "1 %", "5 %", "20 %", "untrained"):
    rest = "" if f"dirty/{name}" not in leaks else f", clean {leaks[f'clean/{name}']}, dirty {leaks[f'dirty/{name}']}"  # fmt: skip
    print(f"leak {name:9s} found {leaks[f'found/{name}']}{rest}")

# %% [markdown]
# A leak of 5 % was found in all twenty draws, one of 1 % in sixteen, and nothing where nothing leaked. The larger model gains nearly twice as much as the smaller one (57 and 31 points). Undecided is the control: of twenty models that did *not* learn the leak two were accused, because the twenty items happened to be easy for them, and twenty draws just cannot show that this is rarer than one in five.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here | verdict |
# |---|---|---|---|
# | 35, judges | V5 wins 78 % by own reward models, 67 % by GPT-4 (off a figure) | released chain: 87 % [82, 91] own, 76 % [71, 80] gold; three chains: own minus gold 10 points [1, 19], own minus another chain's reward models 6 [-6, 18] | inconclusive |
# | 36, agreement | AC2 .37 to .55; safety .70 to .95 | close -.05 [-.05, -.04], between .38 [.35, .41], far apart .96 [.95, .97] | reproduced |
# | 37, system prompt | 36 to 44 % | +0.9 points [-0.2, 1.9] | inconclusive |
# | 39, toxicity and truth | 24.60 to .01 %; 50.18 to 64.14 % | three chains: toxic 96 to 0.2 % [0, 1.2]; honest 50 to 47 %, a fall of 2.8 points [0.4, 5.2]; no version admits not to know | not reproduced |
# | 53, leaks | MMLU-Humanities: 70B clean 62.2, dirty 85.8; 7B 40.8, 56.9 | twenty draws, 5 % leaked: clean 5 %, dirty 62 % [51, 74], found in twenty of twenty; not learned: found in two of twenty [0, 24 %] | inconclusive |
#
# - **The judges are ours.** Gold judge and raters show how methods of evaluation behave, not whether anybody likes the answers.
# - **Not stated in the paper**, so ours: the weights of AC2, and that a tie counts one half.
# - **Not measured**: code, examinations such as MMLU, other languages, people.
#
# ## Exercises
# ### Exercise 1 (easy, 10 minutes)
# One game of Elo. Write `elo_step(a, b, points, k)`: the expected points of the first player are $1 / (1 + 10^{(b - a)/400})$, and it gains $k$ times points minus expected points; the other loses as much. Return both new ratings.
# <details><summary>Hint</summary>`points` is 1, 0.5 or 0.</details>


# %% tags=["exercise"]
def elo_step(a, b, points, k=32):
    ### BEGIN SOLUTION
    gain = k * (points - 1 / (1 + 10 ** ((b - a) / 400)))
    return a + gain, b - gain
    ### END SOLUTION


@check("one game of Elo")
def _():
    assert elo_step(1000, 1000, 1) == (1016, 984), "between equals a win brings half of k"
    assert elo_step(1000, 1000, 0.5) == (1000, 1000), "a tie between equals changes nothing"
    a, b = elo_step(1400, 1000, 0)
    assert abs(a + b - 2400) < 1e-9, "what one gains the other loses"
    assert abs(a - (1400 - 32 / 1.1)) < 1e-6, "ten to one was expected"


# %% [markdown]
# ### Exercise 2 (medium, 20 minutes)
# Bradley and Terry by hand. `wins[i, j]` is how often $i$ beat $j$, a tie counting one half for each. Begin with all $p_i = 1$ and repeat $p_i \leftarrow \sum_j w_{ij} \big/ \sum_{j \ne i} \frac{w_{ij} + w_{ji}}{p_i + p_j}$, dividing by the mean each time. Write `strengths(wins)`: $\log p_i$ minus the mean of these.
# <details><summary>Hint</summary>`p[:, None] + p` is the matrix of sums. The diagonal of `wins` is 0, so it does no harm.</details>


# %% tags=["exercise"]
def strengths(wins, rounds=500):
    ### BEGIN SOLUTION
    games, p = wins + wins.T, np.ones(len(wins))
    for _ in range(rounds):
        p = wins.sum(axis=1) / (games / (p[:, None] + p)).sum(axis=1)
        p = p / p.mean()
    return np.log(p) - np.log(p).mean()
    ### END SOLUTION


@check("Bradley and Terry")
def _():
    points = {(a, b): (np.sign((gold[a] - gold[b]).round(9)) + 1) / 2 for a in gold for b in gold}
    wins = np.array([[points[a, b].sum() if a != b else 0.0 for b in gold] for a in gold])
    mine = strengths(wins)
    gap = max(abs(value - strength[name]) for name, value in zip(gold, mine, strict=True))
    assert gap < 0.01, f"off by {gap:.2f} from the library"


# %% [markdown]
# ### Exercise 3 (hard, 25 minutes)
# Another rule. PaLM called a sample contaminated if at least 70 % of its 8-grams are in the training data. Write `by_eight_grams(sample, known)`, which returns that share, with `known.places`. Then look: what does the rule say of our clean test?
# <details><summary>Hint</summary>A sample of m tokens has m - 7 runs of eight.</details>


# %% tags=["exercise"]
def by_eight_grams(sample, known):
    ### BEGIN SOLUTION
    runs = [sample[i : i + 8] for i in range(len(sample) - 7)]
    return sum(len(known.places(run)) > 0 for run in runs) / len(runs)
    ### END SOLUTION


@check("8-grams")
def _():
    assert by_eight_grams(samples[0], trained_on["5 % leaked"]) == 1, "what leaked is all there"
    assert by_eight_grams([5, 3] * 10, known) == 0, "what nobody wrote is not there"
    some = [by_eight_grams(sample, known) for sample in samples[:40]]
    assert 0 < min(some) < max(some), "parts of a clean sample are there"


# %% [markdown]
# ## Questions to think about
# - A new model leads on five of eight benchmarks. What do you ask for before you believe it?
# - Our demonstrations never say "I do not know". How many of them would have to, and about what, for honesty to rise?
# - Three raters reach an AC2 of .4. How would you tell bad raters from close models?
# - A company tunes its model by votes of an arena and reports its place there. Which claim applies?
#
# ## Next
# Notebook 12: what emerged without being taught, dates, tools, and the temperature that RLHF rescales.
