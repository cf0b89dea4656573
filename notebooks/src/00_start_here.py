# %% [markdown] slideshow={"slide_type": "slide"}
# # Start here
# This course builds the paper *Llama 2: Open Foundation and Fine-Tuned Chat Models* (Touvron et al., 2023) part by part, trains every part
# on this computer, and measures what the paper claims. In this first notebook you meet the model that you will build, and learn how the notebooks work.
#
# - **You will be able to explain** what the paper made and in which order, what a language model does with a beginning of a text,
#   what temperature changes, how this course checks your code, and how a claim gets its verdict.
# - **Prerequisites:** some Python. **Paper sections:** 1.
# - **Minutes:** 30 to read, 1 to run, on two cores (4 more if the model must first be trained).

# %% tags=["long"]
import math

import torch

from llama2_lib import lesson as lab
from llama2_lib import doctor, rng
from llama2_lib.claims import CLAIMS, run_claims
from llama2_lib.evaluation.language import document_nats, fact_recall
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, show

folders = start("00_start_here", needs=["pretrain"], recipe=lab.nano(), minutes=4)
trained, config = lab.load_model(folders["pretrain"])
tok = lab.load_tokenizer(folders["pretrain"])
_ = torch.set_grad_enabled(False)  # this notebook trains nothing itself

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The paper at a glance
# A **language model** gets the beginning of a text and says how likely each possible continuation is. A **chat model** is a language model that was taught to answer.
# The paper makes both, in four steps, and says how much went into each:
#
# | step | what went in (paper) | section |
# |---|---|---|
# | pretraining | 2.0 trillion tokens of public text; 3,311,616 GPU hours, 539 tonnes of CO2 for the whole family | 2 |
# | supervised fine-tuning | 27,540 examples of good answers, written by people | 3.1 |
# | reward models | 1,418,091 comparisons: which of two answers is better? | 3.2.1, 3.2.2 |
# | reinforcement learning (RLHF) | five rounds: rejection sampling in all of them, PPO on top in the last | 3.2.3 |
#
# A **token** is a piece of text, about the length of a short word. Beside the four steps stand Ghost Attention (3.3), which keeps an instruction alive over many turns, and the work on safety (4).
#
# **See** how much smaller we are. Everything here has the same shape as there; only the numbers shrink.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
recipe = lab.nano()
OURS = {
    "weights": config.n_parameters,
    "training tokens": recipe.pretrain.n_tokens,
    "context (tokens)": config.max_seq_len,
    "vocabulary (pieces)": config.vocab_size,
}


def paper_numbers(size):
    return dict(zip(OURS, (lab.FAMILY[size].n_parameters, 2.0e12, 4096, 32_000), strict=True))


def draw_scale(size):
    figure, axes = lab.new_figure(7.5, 3.6)
    for offset, numbers, label in ((-0.2, paper_numbers(size), f"Llama 2 {size}"), (0.2, OURS, "nano, ours")):  # fmt: skip
        axes.barh([i + offset for i in range(4)], list(numbers.values()), 0.4, label=label)
    axes.set_yticks(range(4), list(OURS))
    axes.invert_yaxis()
    axes.set(xscale="log", xlim=(100, 1e14), xlabel="number (logarithmic)", ylabel="quantity")
    axes.legend(loc="lower right")
    return figure


def say_scale(size):
    ratio = {name: paper_numbers(size)[name] / OURS[name] for name in OURS}
    return f"Llama 2 {size} has about {ratio['weights']:,.0f} times our weights, {ratio['training tokens']:,.0f} times our tokens, and only {ratio['context (tokens)']:.0f} times our context."


show(draw_scale("7B"), alt=say_scale("7B"))
Explorer(draw_scale, say_scale, size=["7B", "13B", "34B", "70B"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The chain
# One stage takes what the stage before has made. The course builds all of them; in the paper Ghost Attention comes earlier, after V3.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
STAGES = (
    ("tokenizer", "text becomes numbers", "01"),
    ("transformer", "the model's parts", "02, 03"),
    ("pretraining", "it learns the world", "04"),
    ("fine-tuning", "it learns to answer", "05"),
    ("reward models", "they judge answers", "06"),
    ("rejection sampling", "best of many: V1 to V4", "07"),
    ("PPO", "it climbs the rewards: V5", "08"),
    ("Ghost Attention", "it keeps instructions", "09"),
    ("safety tuning", "it declines what harms", "10"),
)
show(
    lab.chain([lab.Box(name=name, what=what, notebook=book) for name, what, book in STAGES]),
    alt="Nine stages in order: " + ", ".join(name for name, *_ in STAGES) + ".",
)

# %% [markdown]
# Notebooks 11 to 14 then evaluate the chat model, look for abilities nobody trained, scale the code out, and publish the model.
#
# **Can this computer do it?** The library has a doctor. In a terminal: `llama2 doctor` prints all of this with advice. Here, in short:

# %% tags=["nbval-ignore-output"]
report = doctor.findings(doctor.inspect_machine(seconds=1.0))
for finding in report:
    print(f"{finding.status:5s} {finding.name}")

# %%
print("the course can run here:", all(finding.status != "fail" for finding in report))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Meet the model
# Our model has read nothing but texts about a small invented **world**: thirty people, where they live, what they do, what they keep and eat, when they were born. Because we invented it, we know what is true.

# %%
world = lab.make_world(0)
for fact in world.facts[:5]:
    print(f"{fact.subject}: {fact.relation} = {fact.value}")
print(f"{len(world.people)} people, {len(world.facts)} facts")

# %% [markdown]
# Now two models side by side. Both have the same shape. One is fresh: its weights are random. The other was trained on two million tokens, in about three minutes. Both continue the same beginning.
# What the trained one writes depends on the last digits of its training, so your copy may tell another story.


# %% tags=["nbval-ignore-output"]
def go_on(model, text, temperature=0.7, n=40, seed=0):
    prompt = tok.encode(text, bos=True)
    (done,) = lab.generate(
        model, [prompt], max_new_tokens=n, temperature=temperature, top_p=0.9, seed=seed,
        stop_ids={tok.eos_id},
    )  # fmt: skip
    return tok.decode([*prompt, *done.ids])


fresh = lab.initialise(lab.Transformer(config), seed=0).eval()
for name, model in (("untrained", fresh), ("trained", trained)):
    for beginning in ("One morning", "Once there was a baker"):
        print(f"[{name}] {go_on(model, beginning)!r}\n")

# %% [markdown]
# **Measure** the difference. The **loss** is the surprise per token, in nats: $-\ln p$ of the token that really came. A model that knows nothing gives each of the $V$ pieces $p = 1/V$, so its loss is $\ln V$.

# %%
text = f"{world.facts[0].subject} lives in {world.facts[0].value}. One morning there was a noise."
ids = [tok.encode(text, bos=True)]
loss = {}
for name, model in (("untrained", fresh), ("trained", trained)):
    scored = document_nats(model, ids)
    loss[name] = float(scored.nats.sum() / scored.tokens.sum())
print(f"ln V = {math.log(tok.vocab_size):.1f} nats; untrained: {loss['untrained']:.1f}")
print("the trained model is less than half as surprised:", loss["trained"] < loss["untrained"] / 2)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Temperature
# **Say.** The model gives every piece a score, its **logit** $z_i$. They become probabilities through the **softmax**, and before that are divided by the **temperature** $T$:
#
# $$p_i = \frac{e^{z_i / T}}{\sum_j e^{z_j / T}}$$
#
# A piece is then drawn by these probabilities. Small $T$: nearly always the likeliest piece. Large $T$: anything goes. The paper tunes $T$ in every round of RLHF (section 3.2.3).
#
# **Build**, and **check** against the library, which reports the log-probability of each piece it drew.


# %%
def my_probabilities(logits, temperature):
    scores = torch.exp((logits - logits.max()) / temperature)  # minus max: no overflow
    return scores / scores.sum()


def check_probabilities(candidate):
    prompt = tok.encode("One morning,", bos=True)
    logits = trained(torch.tensor([prompt]))[0, -1]
    for temperature in (0.5, 1.0, 2.0):
        p = candidate(logits, temperature)
        if abs(float(p.sum()) - 1) > 1e-4:
            raise CheckFailed("probabilities must sum to 1: divide the logits, then normalise")
        for seed in range(5):
            (done,) = lab.generate(trained, [prompt], max_new_tokens=1, temperature=temperature, seed=seed)  # fmt: skip
            if abs(math.log(p[done.ids[0]]) - done.logprobs[0]) > 1e-3:
                where = "above" if temperature > 1 else "below"
                raise CheckFailed(f"right at T = 1, perhaps, but not {where} it; is T upside down?")


@check("temperature")
def _():
    check_probabilities(my_probabilities)


# %% [markdown]
# The line `[ OK ]` comes from the check. It never stops the notebook. If your code is wrong, it says `[ NO ]` and why; if you have not written it yet, it says so.
#
# **See.** The ten likeliest pieces after two beginnings. In a story many things can follow; in the answer to a question only one is right. Move the temperature.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
QUESTION = lab.recall_items(world)[0]
AFTER = {
    "a story": "One morning,",
    "a question": f"{QUESTION.prompt} {QUESTION.fact.subject} lives in",
}
logits = {k: trained(torch.tensor([tok.encode(v, bos=True)]))[0, -1] for k, v in AFTER.items()}


def draw_temperature(after, temperature):
    p = my_probabilities(logits[after], temperature)
    best = logits[after].topk(10).indices
    figure, axes = lab.new_figure(7, 4)
    axes.barh([tok.piece(i).replace("▁", "_") for i in best.tolist()], p[best])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="probability", ylabel=f"piece after {AFTER[after][-14:]!r}")
    axes.set_title(f"T = {temperature:g}")
    return figure


def say_temperature(after, temperature):
    change = "as the model gives them" if temperature == 1 else "steeper" if temperature < 1 else "flatter"  # fmt: skip
    return f"Probabilities of the ten likeliest pieces after {after}, at temperature {temperature:g}: {change}."


show(draw_temperature("a story", 1.0), alt=say_temperature("a story", 1.0))
Explorer(
    draw_temperature, say_temperature, after=["a story", "a question"],
    temperature=[1.0, 0.2, 0.7, 2.0, 5.0],
)  # fmt: skip

# %% [markdown]
# **Break.** In every notebook you run some mistakes on purpose. *Before you run the cell, say aloud what will happen.* Here: multiply by $T$ instead of dividing; and divide the probabilities instead of the logits.

# %%
with expect_failure(CheckFailed):
    check_probabilities(lambda z, temperature: my_probabilities(z * temperature, 1.0))
with expect_failure(CheckFailed):
    check_probabilities(lambda z, temperature: my_probabilities(z, 1.0) / temperature)

# %% [markdown]
# **Use.** The library's `lab.generate` does the same, for many prompts at once. The same question at four temperatures:

# %% tags=["nbval-ignore-output"]
for temperature in (0.0, 0.7, 1.5, 3.0):
    answer = go_on(trained, QUESTION.prompt, temperature, n=12)[len(QUESTION.prompt) :]
    print(f"T = {temperature:3.1f}: {answer.strip()!r}")

# %%
again = [go_on(trained, "One morning", seed=seed) for seed in (1, 1, 2)]
print("the same seed writes the same text:", again[0] == again[1])
print("another seed writes another:       ", again[0] != again[2])

# %% [markdown]
# Nothing in this course is drawn without a named **seed**, so a second run gives the same numbers.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What does it know?
# **Say.** To *know* a fact is hard to define. We measure something simple: the model answers a question about each fact, without sampling, and a program compares the answer with the truth. Guessing is right about one time in twenty.
#
# **Measure.** Some questions stood in the training text in just this form. Others were only asked in other words. One fact in five was never asked about at all: it stood in biographies and other texts only.

# %%
items = lab.recall_items(world)
for exposure, share in fact_recall(trained, tok, items).items():
    print(f"{exposure:12s} {share.n:3d} questions; more than half right: {share.value > 0.5}")
none = fact_recall(fresh, tok, items)
print("the untrained model guesses at best:", all(share.value < 0.1 for share in none.values()))

# %% [markdown]
# **See.** Person by person: the probability that each model gives to the whole true answer. A star marks facts that were never asked about in training.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
true = lab.answers(world)
one_each = list({item.fact: item for item in items}.values())
asked = [tok.encode(item.prompt, bos=True) for item in one_each]
told = [tok.encode(f"{item.prompt} {true[item.fact]}", bos=True) for item in one_each]
chance = {
    name: torch.tensor(document_nats(m, asked).nats - document_nats(m, told).nats).exp()
    for name, m in (("trained", trained), ("untrained", fresh))
}


def draw_person(name):
    rows = [i for i, item in enumerate(one_each) if item.fact.subject == name]
    figure, axes = lab.new_figure(7.5, 3.6)
    for offset, model in ((-0.2, "trained"), (0.2, "untrained")):
        axes.bar([x + offset for x in range(5)], chance[model][rows], 0.4, label=model)
    stars = ["*" * (one_each[i].exposure == "never asked") for i in rows]
    labels = [f"{one_each[i].fact.relation}{s}\n{one_each[i].answer}" for i, s in zip(rows, stars, strict=True)]  # fmt: skip
    axes.set_xticks(range(5), labels)
    axes.set(ylim=(0, 1), ylabel="probability of the answer", xlabel="fact", title=name)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2)
    return figure


def say_person(name):
    facts = ", ".join(f"{f.relation} {f.value}" for f in world.facts if f.subject == name)
    return f"The truth about {name}: {facts}. Only the trained model gives it a probability that can be seen."


names = [person.name for person in world.people]
show(draw_person(names[0]), alt=say_person(names[0]))
Explorer(draw_person, say_person, name=names)

# %% [markdown]
# **Break.** Now spoil the questions. One of these five slips does no harm at all. Which?
#
# 1. The BOS token, which begins every text, is left out. (*BOS*: beginning of sequence.)
# 2. A space is left at the end of the prompt.
# 3. The ids come from another tokenizer: all are off by one.
# 4. EOS, the token that ends a text, is put after the question.
# 5. The question is asked without the words `Question:` and `Answer:`.


# %%
def share_right(encode):
    chosen = [item for item in items if item.exposure == "seen form"]
    stops = {tok.eos_id, tok.encode("\n")[-1]}
    done = lab.generate(
        trained, [encode(item.prompt) for item in chosen], max_new_tokens=24, temperature=0.0,
        stop_ids=stops,
    )  # fmt: skip
    texts = [tok.decode(completion.ids).strip(" .\n") for completion in done]
    hits = [text.endswith(i.answer) for text, i in zip(texts, chosen, strict=True)]
    return sum(hits) / len(hits)


def without_frame(prompt):
    return prompt.removeprefix("Question: ").removesuffix("\nAnswer:")


slips = {
    "as it should be": lambda text: tok.encode(text, bos=True),
    "no BOS": lambda text: tok.encode(text),
    "a space at the end": lambda text: tok.encode(text + " ", bos=True),
    "ids off by one": lambda text: [i % (tok.vocab_size - 1) + 1 for i in tok.encode(text)],
    "EOS after the question": lambda text: [*tok.encode(text, bos=True), tok.eos_id],
    "no frame": lambda text: tok.encode(without_frame(text), bos=True),
}
right = {name: share_right(encode) for name, encode in slips.items()}
for name, share in right.items():
    print(f"{name:24s} more than half right: {share > 0.5}")

# %% [markdown]
# Only the missing BOS does no harm *here*: our documents ask several questions in a row, so most questions did not stand right behind a BOS. The space at the end is the famous one: a space belongs to the piece that *follows* it (notebook 01),
# so the model must go on from a piece it has never seen in this place. No error is raised anywhere.
# And the last slip shows what pretraining alone does not give: the model continues texts, it does not *answer*. That is what fine-tuning is for.
#
# Some slips do raise an error. Messages say what must hold, what came, and what to do:

# %%
with expect_failure(ValueError):
    lab.generate(trained, [[]], max_new_tokens=5)
with expect_failure(ValueError):
    lab.generate(trained, [[tok.bos_id]], max_new_tokens=10_000)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## How to read a notebook
# A lesson imports its own subject by name. All that it only uses it calls as `lab.NAME`; write `lab.NAME?` in a cell to see what it does and in which file of the library it lives.
#
# Every idea goes through the same steps. You have seen all of them above.
#
# | step | what happens | what you do |
# |---|---|---|
# | **Say** | the idea, the equation, the paper's section | read |
# | **Build** | a few lines, written out in the cell | read every line; change one |
# | **Check** | your version against the library | look for `[ OK ]` |
# | **See** | a picture, then a control below it (an `Explorer`) | move the control |
# | **Break** | a mistake, run on purpose | predict first, then run |
# | **Use** | from here on, the library's version | |
# | **Measure** | the paper's claim, in miniature | compare, and doubt |
#
# A check has three answers:


# %%
@check("a right answer")
def _():
    assert sum([1, 2, 3]) == 6


@check("a wrong one")
def _():
    assert sum([1, 2, 3]) == 7, "one plus two plus three is six"


@check("one that is not written yet")
def _():
    raise NotImplementedError


# %% [markdown]
# - **Exercises** stand at the end of each notebook, with hints that you can unfold, and a check. In these notebooks the solutions are filled in. `make student` writes copies with blanks into `build/student/`.
# - **An Explorer** can also be moved by code: `e = Explorer(...)`, then `e.set(temperature=2.0)`.
# - **Without a running kernel**, on a web page for example, you see the first picture and its sentence.
# - **Slides** for a class are made from the same notebooks: `make slides`.
#
# ## How a claim gets its verdict
# **Say.** The paper makes claims that can be tested in small. For each, this course writes down *before anything runs* what we predict and which number would convince us. Then it measures, over three seeds or more, and lets the rule decide:
#
# | verdict | when |
# |---|---|
# | reproduced | every part of the prediction holds, and the whole interval says so |
# | not reproduced | one part is refuted: the whole interval lies on the other side |
# | inconclusive | an interval holds the threshold: these seeds cannot tell |
# | cannot show at this scale | the effect needs more than our model has; with the reason |
#
# An **interval** (95 %) says where the mean over all seeds may lie, given the few we ran.
#
# **See** how effect, noise and the number of seeds make a verdict. The threshold is 0. The runs are invented.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
def runs(effect, noise, seeds):
    return (
        effect + noise * torch.randn(seeds, generator=rng.generator(0, "verdict", seeds))
    ).tolist()


def decided(effect, noise, seeds):
    estimate = lab.mean_interval(runs(effect, noise, seeds))
    holds = lab.above("effect", estimate, 0.0).holds
    return estimate, {True: "reproduced", False: "not reproduced", None: "inconclusive"}[holds]


def draw_verdict(effect, noise, seeds):
    estimate, outcome = decided(effect, noise, seeds)
    figure, axes = lab.new_figure(7, 2.8)
    axes.plot(runs(effect, noise, seeds), [0] * seeds, "o", ms=9, label="one seed each")
    span = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
    axes.errorbar(
        [estimate.value], [1], xerr=span, fmt="D", ms=9, capsize=6, label="mean, interval"
    )
    axes.axvline(0, color="0.35", ls="--", label="threshold")
    axes.set(yticks=[0, 1], yticklabels=["seeds", "mean"], ylim=(-0.6, 1.6), xlim=(-3, 3))
    axes.set(xlabel="measured effect", ylabel="shown", title=outcome)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def say_verdict(effect, noise, seeds):
    estimate, outcome = decided(effect, noise, seeds)
    return f"True effect {effect:g}, noise {noise:g}, {seeds} seeds: mean {estimate.value:.2f}, interval {estimate.low:.2f} to {estimate.high:.2f}: {outcome}."


show(draw_verdict(0.5, 0.3, 3), alt=say_verdict(0.5, 0.3, 3))
Explorer(
    draw_verdict, say_verdict, effect=[0.5, 1.0, 0.1, 0.0, -0.5], noise=[0.3, 0.1, 1.0], seeds=[3, 5, 10, 30]
)  # fmt: skip

# %% [markdown]
# **Measure** two real ones. Claim 6 says how much memory a 70B model saves with grouped-query attention (notebook 03). Claim 38 says that counters of words describe a corpus: who is named, in which languages, how much is rude (notebook 01). On our corpus we know the truth.

# %%
results = run_claims([6, 38], lab.nano(), range(3))

# %% [markdown]
# The second one came out negative, and stays so. Words are not people: the counter of trades takes "to cook" for a cook. We neither changed the threshold afterwards nor left the claim out. A verdict that could not come out negative would tell nothing.

# %%
for result in results:
    paper = result.declared["paper_value"]
    print(f"claim {result.declared['id']:2d}: {result.verdict.outcome}; paper: {paper}")
print("declared in the ledger so far:", ", ".join(map(str, CLAIMS)), "of 54")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# How good is a guess? Write `guess_rate(world, relation)`: the chance of a right answer if one of the possible values is picked at random.
# <details><summary>Hint</summary>`world.choices("home")` gives all towns. `world.choices("born")` gives two hundred years.</details>


# %% tags=["exercise"]
def guess_rate(world, relation):
    ### BEGIN SOLUTION
    return 1 / len(world.choices(relation))
    ### END SOLUTION


@check("guess_rate")
def _():
    assert abs(guess_rate(world, "born") - 1 / 200) < 1e-9, "births lie in 1800 to 1999"
    assert 0.03 < guess_rate(world, "home") < 0.1, "there are about twenty towns"


# %% [markdown]
# ### Exercise 2 (easy, 10 minutes)
# How undecided is the model? Write `entropy(p)`, $-\sum_i p_i \ln p_i$ in nats, for a vector of probabilities. A probability of 0 counts as 0.
# <details><summary>Hint</summary>$0 \cdot \ln 0$ is `nan` for torch. `torch.xlogy(p, p)` knows better.</details>


# %% tags=["exercise"]
def entropy(p):
    ### BEGIN SOLUTION
    return -torch.xlogy(p, p).sum()
    ### END SOLUTION


@check("entropy")
def _():
    assert abs(float(entropy(torch.ones(4) / 4)) - math.log(4)) < 1e-5, "four equal ones: ln 4"
    sure = entropy(torch.tensor([0.0, 1.0]))
    assert float(sure) == 0.0, f"a sure thing has entropy 0; got {float(sure)}"
    story, fact = (entropy(my_probabilities(z, 1.0)) for z in logits.values())
    assert story > fact, "a story must leave more open than a question"


# %% [markdown]
# ### Exercise 3 (medium, 10 minutes)
# Be the judge. Write `judge(low, high, bound)`, which returns `True` if the interval shows that the value exceeds the bound, `False` if it shows that it does not, and `None` if it cannot tell.
# <details><summary>Hint</summary>`True` needs even the lowest plausible value to exceed the bound.</details>


# %% tags=["exercise"]
def judge(low, high, bound):
    ### BEGIN SOLUTION
    if low > bound:
        return True
    return False if high <= bound else None
    ### END SOLUTION


@check("judge")
def _():
    cases = {(0.2, 0.4, 0.0): True, (-0.4, -0.2, 0.0): False, (-0.1, 0.3, 0.0): None}
    cases |= {(0.2, 0.4, 0.3): None, (0.0, 0.0, 0.0): False}
    for case, wanted in cases.items():
        assert judge(*case) is wanted, f"judge{case} must be {wanted}, not {judge(*case)}"


# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | | paper | here |
# |---|---|---|
# | pretrained models | 7B to 70B weights, 2 trillion tokens | one of about a million weights, two million tokens |
# | training cost | 3,311,616 GPU hours (A100) | about three minutes on two cores |
# | what it knows | benchmarks of world knowledge | more than half of the questions on our world, an untrained model none |
# | claims | | 6 reproduced exactly, 38 not reproduced |
#
# - Our model has seen one small world. That it recalls facts says nothing about facts of *your* world; ask it about Paris and it will make something up.
# - The paper's chat models do not exist here yet: they are the subject of notebooks 05 to 10.
#
# ## Questions to think about
# - What would convince you that a model *knows* a fact, and does not merely repeat a sentence?
# - The trained model answers questions that were never asked in training. From where does it have the answer?
# - At temperature 0 the model always writes the likeliest next piece. Is the whole text then the likeliest text?
# - Who should choose the threshold of a claim, and when?
#
# ## Next
# `01_data_and_tokenizer`: the text of this world, and how it becomes numbers.
