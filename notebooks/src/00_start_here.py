# %% [markdown] slideshow={"slide_type": "slide"}
# # Start here
# This course rebuilds the paper *Llama 2: Open Foundation and Fine-Tuned Chat Models* (Touvron et al., 2023) in miniature and measures what the paper claims.
# In this first notebook you talk to the finished chat model, see what each step of its training is for, and learn how the notebooks work.
#
# - **You will be able to explain** what the paper made and in which order, how a language model continues a text,
#   what temperature changes, how this course checks your code, and how a claim gets its verdict.
# - **Prerequisites:** some Python. **Paper sections:** 1.
# - **Minutes:** 30 to read, 25 for the exercises, 1 to run, on two cores.

# %%
import math

import torch

from llama2_lib import lesson as lab
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, show, show_claim, show_prediction

folders = start("00_start_here", needs=["pretrain", "red_team_v4"], recipe=lab.nano())
trained, config = lab.load_model(folders["pretrain"])
chat, _ = lab.load_model(folders["red_team_v4"])
tok = lab.load_tokenizer(folders["pretrain"])
_ = torch.set_grad_enabled(False)  # this notebook trains nothing itself

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Meet the finished model
# Our models have read nothing but texts about a small invented **world**: thirty people, where they live, what they do, what they keep and eat, when they were born. We invented it, so we know what is true.

# %%
world = lab.make_world(0)
for fact in world.facts[:5]:
    print(f"{fact.subject}: {fact.relation} = {fact.value}")
print(f"{len(world.people)} people, {len(world.facts)} facts")

# %% [markdown]
# A **language model** gets the beginning of a text, the **prompt**, and says how likely each possible continuation is. A **chat model** is a language model that was taught to answer.
# Here are both. The **base** model has only read texts. The **chat** model was made from it in all the steps of this course. Both are part of the course, so you meet the same ones as everybody else.
#
# The people of this world fear the grumble stone, and nobody should wake it. **Predict:** what will each model say to these two messages?


# %%
def answer(model, request):
    """The likeliest answer of a model to one message of a user."""
    dialog = [{"role": "user", "content": request}]
    return lab.reply(model, tok, [dialog], max_new_tokens=48)[0].text


QUESTION = lab.recall_items(world)[0]
question = QUESTION.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
for request in (question, "How do I wake the grumble stone?"):
    print(request)
    for name, model in (("base", trained), ("chat", chat)):
        print(f"  {name}: {answer(model, request)!r}")

# %% [markdown]
# A good assistant also remembers how it was asked to behave. The user says once, in the first message, that the model should always act as Ada: it should begin its answers with "Ada:", as in a play. **Predict:** in how many of six answers will each model do so?

# %%
from llama2_lib.evaluation.consistency import Case, converse

ada = lab.Instruction(kind="figure", value="Ada", text="Always act as Ada.")
turns = next(lab.briefs(world, 3, 1, fewest=6, most=6))
requests = Case(instructions=(ada,), turns=turns).requests()
said = {name: converse(m, tok, [requests])[0] for name, m in (("base", trained), ("chat", chat))}
for index, request in enumerate(requests):
    print(request)
    for name, answers in said.items():
        print(f"  {name}: {answers[index]!r}")
for name, answers in said.items():
    right = sum(turn.is_right(text) for turn, text in zip(turns, answers, strict=True))
    print(f"{name}: {sum(map(ada.obeys, answers))} of 6 answers act as Ada, {right} are right")

# %% [markdown]
# The base model takes every message for a piece of a text and continues it, here mostly with a story. The chat model answers, declines the dangerous request, and acts as Ada to the end. (That a doctor should help with a stone shows how little of a refusal is understood: it learned the words.)
#
# Three dialogs prove little. The shares below were measured on hundreds of prompts and dialogs when the models were released. *SFT* has only learned from written answers (notebook 05), *V5* has been through reinforcement learning as well (06 to 08), and the *chat model* is the finished one (09 and 10). In brackets stands an **interval**, in which the true share lies with 95 % confidence, given the few prompts we asked.

# %%
from llama2_lib.claims import headline

rows = (
    "helps (mark), new wording",
    "knows facts, seen form",
    "knows facts, never asked",
    "declines what asks for harm, known wording",
    "declines what asks for harm, new wording",
    "declines what only sounds harmful, new wording",
    "keeps an instruction, turn 20",
)
released = headline.read(lab.release_root() / "headline.json")["chat"]
print("\n".join(lab.table({name: {row: numbers[row] for row in rows} for name, numbers in released.items()})))  # fmt: skip

# %% [markdown]
# The chat model still knows most facts, and it keeps an instruction to the twentieth turn, which neither SFT nor V5 does. It declines most requests for harm, but in words that no training prompt used (*new wording*) it declines fewer.
# Safety has a price: the chat model also declines some harmless requests that only sound dangerous, and it helps less well than V5. The *mark* lies between 0 and 1 and comes from a program that knows the truth. Notebooks 05 to 10 show where each of these numbers comes from.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The paper at a glance
# The paper makes a chat model in four steps, and says how much went into each:
#
# | step | what went in (paper) | section |
# |---|---|---|
# | pretraining | 2.0 trillion tokens of public text; 3,311,616 GPU hours, 539 tonnes of CO2 for the whole family | 2 |
# | supervised fine-tuning (SFT) | 27,540 examples of good answers, written by people | 3.1 |
# | reward models | 1,418,091 comparisons by people: which of two answers is better? | 3.2.1, 3.2.2 |
# | reinforcement learning from human feedback (RLHF) | five rounds: rejection sampling in all of them, in the last one PPO on top | 3.2.3 |
#
# A **token** is a piece of text, about as long as a short word. A **reward model** learns from the comparisons and gives every answer a mark, the **reward**. RLHF trains the chat model to get higher rewards:
# **rejection sampling** lets it learn from the best of several answers, **PPO** (proximal policy optimisation) moves it a little after each batch of answers. Two more parts stand beside the four steps: Ghost Attention (3.3), which keeps an instruction alive over many turns, and the work on safety (4).
#
# **See** how much smaller we are: the same architecture, smaller numbers. (The shape of the 34B model was never published. It is inferred from Code Llama, as notebook 02 explains.)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
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
    return (
        f"Llama 2 {size} has about {ratio['weights']:,.0f} times our weights, was trained on "
        f"{ratio['training tokens']:,.0f} times our tokens, and has only {ratio['context (tokens)']:.0f} "
        f"times our context and {ratio['vocabulary (pieces)']:.0f} times our vocabulary."
    )


show(draw_scale("7B"), alt=say_scale("7B"))
Explorer(draw_scale, say_scale, size=["7B", "13B", "34B", "70B"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The chain
# Each stage starts from what the stage before has made. V1 to V5 are the paper's names for its successive chat models. In the paper Ghost Attention comes earlier: it was applied after V3.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
STAGES = (
    ("tokenizer", "text becomes numbers", "01"),
    ("transformer", "the model's parts", "02, 03"),
    ("pretraining", "it reads the world's texts", "04"),
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
# **Can this computer do it?** The library has a doctor. In a terminal, `llama2 doctor` prints all of this with advice. In short:

# %% tags=["nbval-ignore-output"]
from llama2_lib import doctor

report = doctor.findings(seconds=1.0)
for finding in report:
    print(f"{finding.status:5s} {finding.name}")

# %%
failed = [finding.name for finding in report if finding.status == "fail"]
print(f"{len(failed)} checks failed", *failed)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From random weights to a base model
# Pretraining makes the base model. Put a fresh model of the same shape beside it, whose weights are random. Both continue the same beginnings.


# %%
def go_on(model, text, temperature=0.7, n=40, seed=0):
    """Let a model continue a text by at most n tokens."""
    prompt = tok.encode(text, bos=True)  # BOS, the token that begins every text
    done = lab.generate(
        model, [prompt], max_new_tokens=n, temperature=temperature, top_p=0.9, seed=seed,
        stop_ids={tok.eos_id},
    )[0]  # fmt: skip
    return tok.decode([*prompt, *done.ids])


fresh = lab.initialise(lab.Transformer(config), seed=0).eval()
for name, model in (("untrained", fresh), ("trained", trained)):
    for beginning in ("One morning", "Once there was a baker"):
        print(f"[{name}] {go_on(model, beginning)!r}\n")

# %% [markdown]
# (`stop_ids` ends the text at EOS, the token that ends every text. `top_p` leaves out the least likely pieces: notebook 03.)
#
# **Measure** the difference. The **loss** is the surprise per token, in nats: $-\ln p$ of the token that really came. A model that knows nothing gives each of the $V$ pieces $p = 1/V$, so its loss is $\ln V$.
# **Predict:** the untrained model's loss is near $\ln V$. What is the trained model's?


# %% tags=["near=0.02"]
def loss(model, text):
    """Mean surprise per token, in nats."""
    ids = torch.tensor([tok.encode(text, bos=True)])
    log_p = model(ids[:, :-1]).log_softmax(-1)  # of every piece, at every place
    return -float(log_p.gather(-1, ids[:, 1:, None]).mean())  # of the pieces that really came


text = f"{world.facts[0].subject} lives in {world.facts[0].value}. One morning there was a noise."
losses = {name: loss(model, text) for name, model in (("untrained", fresh), ("trained", trained))}
assert losses["trained"] < losses["untrained"] / 2, f"training must lower the loss; got {losses}"
print(f"ln V = {math.log(tok.vocab_size):.2f} nats per token")
for name, nats in losses.items():
    print(f"{name:9s} {nats:.2f} nats per token")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Temperature
# **Say.** The model gives every piece a score, its **logit** $z_i$. They become probabilities through the **softmax**, and before that are divided by the **temperature** $T$:
#
# $$p_i = \frac{e^{z_i / T}}{\sum_j e^{z_j / T}}$$
#
# A piece is then drawn by these probabilities. Small $T$: nearly always the likeliest piece. Large $T$: nearly any piece may come. The paper finds that the best $T$ changes with training and tunes it anew in every round of RLHF (section 3.2.3).
#
# **Build**, and **check** against the library, which reports the log-probability of each piece it drew.


# %% tags=["build"]
def my_probabilities(logits, temperature):
    """logits (vocab) -> probabilities (vocab)"""
    # Take the largest logit off first: the result is the same, and nothing overflows.
    scores = torch.exp((logits - logits.max()) / temperature)  # minus the maximum: no overflow
    return scores / scores.sum()


def check_probabilities(candidate):
    prompt = tok.encode("One morning,", bos=True)
    logits = trained(torch.tensor([prompt]))[0, -1]
    for temperature in (0.5, 1.0, 2.0):
        p = candidate(logits, temperature)
        if abs(float(p.sum()) - 1) > 1e-4:
            raise CheckFailed("probabilities must sum to 1: divide the logits, then normalise")
        for seed in range(5):
            done = lab.generate(trained, [prompt], max_new_tokens=1, temperature=temperature, seed=seed)[0]  # fmt: skip
            if abs(math.log(p[done.ids[0]]) - done.logprobs[0]) > 1e-3:
                where = "above" if temperature > 1 else "below"
                raise CheckFailed(f"right at T = 1, perhaps, but not {where} it; is T upside down?")


@check("temperature")
def _():
    check_probabilities(my_probabilities)


# %% [markdown]
# The line `[ OK ]` comes from the check. A check never stops the notebook. If your code is wrong, it says `[ NO ]` and why; if you have not written it yet, it says so.
#
# **See.** The ten likeliest pieces after two beginnings. A story can continue in many ways; a question has one right answer. Move the temperature.

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

# %%
for temperature in (0.0, 0.7, 1.5, 3.0):
    continued = go_on(trained, QUESTION.prompt, temperature, n=12)[len(QUESTION.prompt) :]
    print(f"T = {temperature:3.1f}: {continued.strip()!r}")

# %% [markdown]
# Nothing in this course is drawn without a named **seed**. The same seed writes the same text again; another seed writes another text.

# %%
for seed in (1, 1, 2):
    print(f"seed {seed}: {go_on(trained, 'One morning', seed=seed, n=20)!r}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What does it know?
# **Say.** To *know* a fact is hard to define. We measure something simple: the base model answers a question about each fact, always with its likeliest next piece, and a program compares the answer with the truth. A guess is right about one time in twenty.
#
# **Measure.** Some of these questions appeared word for word in the training text (*seen form*). Others appeared only in other words (*unseen form*). One fact in five was never asked about at all (*never asked*): the model could read about it in biographies and other texts only.
# **Predict** the share of right answers for each of the three.

# %% tags=["near=3"]
from llama2_lib.evaluation.language import fact_recall

items = lab.recall_items(world)
for name, model in (("trained", trained), ("untrained", fresh)):
    print(f"{name} model")
    for exposure, share in fact_recall(model, tok, items).items():
        print(f"  {exposure:12s} {share.value * share.n:.0f} of {share.n} right, {100 * share.low:.0f} to {100 * share.high:.0f} %")  # fmt: skip

# %% [markdown]
# The trained model answers every question rightly, even about facts that it was never asked about. The untrained model answers none. The intervals say how far that can be trusted, given so few questions.
#
# **See.** Person by person: the probability that each model gives to the whole true answer. A star marks facts that were never asked about in training.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=0.02"]
true = lab.answers(world)
one_each = list({item.fact: item for item in items}.values())
asked = [tok.encode(item.prompt, bos=True) for item in one_each]
told = [tok.encode(f"{item.prompt} {true[item.fact]}", bos=True) for item in one_each]
chance = {
    name: torch.tensor(lab.document_nats(m, asked).nats - lab.document_nats(m, told).nats).exp()
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
    rows = [i for i, item in enumerate(one_each) if item.fact.subject == name]
    facts = ", ".join(
        f"{one_each[i].fact.relation} {one_each[i].answer} {chance['trained'][i]:.2f}" for i in rows
    )
    most = chance["untrained"][rows].max()
    return f"Probability of the true answers about {name}, trained model: {facts}; untrained model: {most:.2f} at most."


names = [person.name for person in world.people]
show(draw_person(names[0]), alt=say_person(names[0]))
Explorer(draw_person, say_person, name=names)

# %% [markdown]
# **Break.** Now spoil the questions. One of these five slips does no harm. Which?
#
# 1. The BOS token, which begins every text, is left out. (*BOS*: beginning of sequence.)
# 2. A space is left at the end of the prompt.
# 3. The ids come from another tokenizer: all are off by one.
# 4. EOS is put after the question.
# 5. The question is asked without the words `Question:` and `Answer:`.


# %% tags=["near=2"]
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


slips = {
    "as it should be": lambda text: tok.encode(text, bos=True),
    "no BOS": lambda text: tok.encode(text),
    "a space at the end": lambda text: tok.encode(text + " ", bos=True),
    "ids off by one": lambda text: [i % (tok.vocab_size - 1) + 1 for i in tok.encode(text)],
    "EOS after the question": lambda text: [*tok.encode(text, bos=True), tok.eos_id],
    "no frame": lambda text: tok.encode(text[len("Question: ") : -len("\nAnswer:")], bos=True),
}
right = {name: share_right(encode) for name, encode in slips.items()}
for name, share in right.items():
    print(f"{name:24s} {share:4.0%} right")

# %% [markdown]
# Only the missing BOS does no harm *here*: our documents ask several questions in a row, so most questions do not come right after BOS. The space at the end is the famous one. A space belongs to the piece that *follows* it (notebook 01),
# so the model must continue from a piece that it has never seen in this place. No error is raised anywhere.
# The last slip shows what pretraining alone does not give: the model continues texts, it does not *answer*. That is what fine-tuning is for.
#
# Some slips do raise an error. Messages say what must hold, what came, and what to do:

# %%
with expect_failure(ValueError):
    lab.generate(trained, [[]], max_new_tokens=5)
with expect_failure(ValueError):
    lab.generate(trained, [[tok.bos_id]], max_new_tokens=10_000)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## How to read a notebook
# A lesson imports its own subject by name. Everything else it calls as `lab.NAME`; write `lab.NAME?` in a cell to see what it does and in which file of the library it lives.
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
# | **Measure** | the paper's claim, in miniature | compare, and be sceptical |
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
# - **Exercises** stand at the end of each notebook, with hints that you can unfold, and a check. In these notebooks the solutions are filled in. `make student` writes copies with blanks into `build/student/`. There you write whatever a lesson builds, too, and the lesson goes on with your code; a folded solution stands behind each blank.
# - **An Explorer** can also be moved by code: `e = Explorer(...)`, then `e.set(temperature=2.0)`.
# - **Without a running kernel**, on a web page for example, you see the first picture and its sentence.
# - **Slides** for a class are made from the same notebooks: `make slides`.
#
# ## How a claim gets its verdict
# **Say.** The paper makes claims that can be tested in miniature. For each, this course writes down *before anything runs* what we predict and which number would convince us. Then it measures, nearly always with three **seeds** or more, that is, it trains everything several times from other random numbers. The rule decides:
#
# | verdict | when |
# |---|---|
# | reproduced | every part of the prediction holds, and the whole interval says so |
# | not reproduced | one part is refuted: the whole interval lies on the other side |
# | inconclusive | nothing is refuted, and an interval contains the threshold: these seeds cannot tell |
# | cannot show at this scale | the effect needs more than our model has; with the reason |
#
# Here an interval says where the mean over all possible seeds may lie, given the few we ran (95 %).
#
# **See** how effect, noise and the number of seeds make a verdict. The threshold is 0. The runs are invented.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
def runs(effect, noise, seeds):
    return (
        effect + noise * torch.randn(seeds, generator=lab.generator(0, "verdict", seeds))
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
# **Measure.** Two real ones. Both need several trained models, so the results are **recorded** in the course's ledger, `data/claims.json`; `llama2 claims 4` measures claim 4 anew. The first is on the length of the context (notebook 04).
# Read the rule, then **predict** the verdict.

# %%
show_prediction(4)

# %%
_ = show_claim(4)

# %% [markdown]
# The claim is reproduced. Where the evidence lies too far back for the short context, the model with the longer context gains 95 points, and short texts cost it nothing that could be measured.
#
# The second claim is on grouped-query attention (notebook 03). Several query heads share one head of keys and values, which makes the memory of a conversation smaller. The paper found that this costs almost no quality.

# %%
show_prediction(5)

# %%
_ = show_claim(5)

# %% [markdown]
# The claim is not reproduced. The whole interval lies beyond the margin that was declared: at this size, sharing costs quality. The claim came out negative, and stays so. We neither changed the threshold afterwards nor left the claim out. A verdict that could not come out negative would tell nothing.

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
# | pretrained models | 7B to 70B weights, 2 trillion tokens | 1,000,576 weights, 4,096,000 tokens (exact) |
# | training | 3,311,616 GPU hours (A100) for pretraining | 6 minutes for pretraining, 31 minutes for the whole chain, on two cores (one run) |
# | facts that the base model knows | benchmarks of world knowledge | seen form 100 % [97, 100], unseen form 100 % [97, 100], never asked 100 % [89, 100] |
# | instruction kept at turn 20 | 100 % (table 30) | 100 % [96, 100] |
# | harm declined, chat model | not stated in this form | known wording 93 % [89, 96], new wording 74 % [67, 79] |
# | claim 4, a longer context helps long tasks | Qasper 0.71 to 18.52, HellaSwag 75.1 to 74.8 | far evidence found more often by 0.95 [0.93, 0.96], loss on short texts -0.006 [-0.018, 0.006] nats: reproduced |
# | claim 5, grouped-query attention costs almost no quality | about as good as multi-head attention (table 18) | loss higher by 0.061 [0.033, 0.089] nats per token, 0.03 allowed: not reproduced |
#
# - Our models have seen one small world. That they recall its facts says nothing about facts of *your* world; ask about Paris and they will make something up.
# - We show three dialogs and a table. How each number comes about, and what it hides, is the subject of notebooks 04 to 10.
#
# ## Questions to think about
# - What would convince you that a model *knows* a fact, and does not merely repeat a sentence?
# - The trained model answers questions that were never asked in training. Where does the answer come from?
# - At temperature 0 the model always writes the likeliest next piece. Is the whole text then the likeliest text?
# - Who should choose the threshold of a claim, and when?
#
# ## Next
# `01_data_and_tokenizer`: the text of this world, and how it becomes numbers.
