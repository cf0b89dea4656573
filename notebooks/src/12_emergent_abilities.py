# %% [markdown] slideshow={"slide_type": "slide"}
# # Emergent abilities
# The paper's discussion lists what its authors did not plan. The chat model seems to have a sense of time, it calls tools that nobody trained it to call, and it responds to temperature in context: at a high temperature, facts stay the same and stories vary.
# An ability **emerges** if it appears without having been taught. This notebook asks for each of the three: is it there untaught? If we teach it, what exactly is learned? The three answers differ.
#
# - **You will be able to explain** how a sense of time is taught and tested, why 50 % may be the wrong idea of chance, what of a tool call is a target of the loss and what is only read, how an executor runs calls, how Self-BLEU measures variety,
#   and which of these abilities a small model has.
# - **Prerequisites:** notebooks 05, 08 and 10. **Paper section:** 5.1, with figures 21 to 23 and table 15.
# - **Minutes:** 50 to read, 70 for the exercises, 2 to run on two cores. The models are those of the released chain.

# %% tags=["long"]
import re
from collections import Counter
from copy import deepcopy
from functools import partial

import numpy as np

from llama2_lib import lesson as lab
from llama2_lib.model.tools import called, reply_with_tools, tool_example
from llama2_lib.teaching import emergent as checks
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, bar, show, show_claim, show_prediction
from llama2_lib.world import dates, tools

CHAIN = {
    "pretrained": "pretrain", "SFT": "sft", "V5": "ppo", "chat model": "red_team_v4",
    "dates": "dates", "tools": "tools",
}  # fmt: skip
recipe = lab.nano()
folders = start("12_emergent_abilities", needs=list(CHAIN.values()), recipe=recipe, minutes=30)
models = {name: lab.load_model(folders[stage])[0].eval() for name, stage in CHAIN.items()}
tokenizer = lab.load_tokenizer(folders["tools"])
world = lab.make_world(0)


def percent(hits):
    """Ones and zeros -> their share with its interval, in per cent"""
    share = lab.proportion(int(np.sum(hits)), len(hits))
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


# %% [markdown]
# **See** where each ability could come from. Two branches leave the finished chat model: one copy of it is shown 1,000 dated questions twenty times; another one 2,000 dialogs with tools, three times. Each is compared with the chat model that saw none of them.

# %% tags=["hide-input"]
show(
    lab.chain(
        [
            lab.Box(name="pretraining", what="documents with years", notebook="04"),
            lab.Box(name="SFT", what="the form of answers", notebook="05"),
            lab.Box(name="V5", what="temperature?", notebook="08"),
            lab.Box(name="chat model", what="safe, keeps a persona", notebook="10"),
            lab.Box(name="dates, or tools", what="two branches, taught here", notebook="12"),
        ]
    ),
    alt="From pretraining over SFT, V5 and the chat model to two branches: one learns dates, the other tools.",
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A sense of time
# **Say** (section 5.1, figure 22). The authors took 1,000 questions that are tied to dates, with the date of the question and the date of the event, and fine-tuned on them. Afterwards, they report, the model organised its knowledge by time: told that the year is 1940, it could not say who won the war. They looked at dozens of examples and give no score.
#
# Here the system message tells the year, and the user asks about an event or a birth. If it has happened, the answer tells when. If it is still to come, the model must **abstain**: it may not tell the year, even if it knows it. The year of the event is nowhere in the dialog; the model has read it in pretraining.

# %%
for one in dates.dated_questions(world, 3, 4):
    print(f"{one.dialog[0]['content']:26s} {one.dialog[1]['content']}")
    print(f"{'':26s} {one.answer}   (the year was {one.year})")

# %% [markdown]
# Two sets test what was learned. Of **held-out dates** no training dialog ever named today's year; of **held-out events** none asked about the event, either.
#
# A model that was never shown such answers does not begin with "Yes" or "No". To be fair to it we also compare the probabilities of the two answers that the world would give: is the right one likelier?
#
# **Predict**: how often is the untaught chat model right by that measure? How often is the taught one?

# %% tags=["long", "near=3"]
asked = {split: list(dates.dated_questions(world, 99, 300, split)) for split in dates.SPLITS}
senses = {}
for who, split in bar([(w, s) for w in ("chat model", "dates") for s in dates.SPLITS[1:]], about="asking"):  # fmt: skip
    senses[who, split] = lab.time_sense((models[who], tokenizer), asked[split])
    to_come = np.array([not one.happened for one in asked[split]])
    print(f"{who}, {split}:")
    print(f"  begins with the right word {percent(senses[who, split]['right'])}")
    print(f"  right answer is likelier   {percent(senses[who, split]['likelier'])}")
    print(f"  tells the year beforehand  {percent(senses[who, split]['told'][to_come])}")

# %% [markdown]
# The untaught model has no sense of time: its likelihoods are at chance. The taught one says the right word to more than four of five questions with a new date, and to nearly two of three about new events. Most of the time it keeps the year to itself until the event.
#
# What *is* chance here? **Build** a rule that knows no event at all and looks only at the year it is told. If that is late, it says Yes. `best_year` finds the year from which to say so, on questions of training.


# %% tags=["build", "long"]
def best_year(todays, happened):
    """Years told and whether the event had happened -> the year from which Yes is right most often"""
    todays, happened = np.asarray(todays), np.asarray(happened)
    candidates = np.unique(todays)
    return int(max(candidates, key=lambda year: np.mean((todays >= year) == happened)))


@check("best year")
def _():
    assert best_year([1800, 1850, 1900, 1950], [False, False, True, True]) == 1900
    assert best_year([1950, 1800, 1900, 1850], [True, False, False, False]) == 1950
    noisy = best_year([1800, 1810, 1820, 1900, 1910, 1920], [False, True, False, False, True, True])
    assert noisy == 1910, "most often right, not always"


practice = list(dates.dated_questions(world, 1, 2000))
year = best_year([one.today for one in practice], [one.happened for one in practice])
ruled = {
    split: np.array([(one.today >= year) == one.happened for one in asked[split]])
    for split in dates.SPLITS
}
print(f"say Yes from the year {year} on:")
for split, hits in ruled.items():
    print(f"  {split:15s} {percent(hits)} right")

# %% [markdown]
# So chance is not 50 %. Events lie between 1800 and 1999, and in 2050 all of them have happened. The rule knows nothing of the village. On new dates the taught model is well ahead of it, so it does compare; on new events its lead is within the intervals. Compared with a coin only, a model that had learned nothing but this rule would look as if it had a sense of time.
#
# The **control** of claim 51 is trained on the same dialogs with the dates exchanged between them. Then the year that is told says nothing about the answer. Mind what this control can show and what it cannot: a model that learned only our rule would beat it, too.
#
# **Measure.** The ledger has five seeds of both trainings, twenty passes each.

# %%
show_prediction(51)

# %%
time_claim = show_claim(51)
for what, estimate in time_claim.verdict.estimates.items():
    if what.startswith(("right/taught", "right/shuffled")):
        print(f"{what}: {estimate}")

# %% [markdown] slideshow={"slide_type": "subslide"}
# Two of the three inequalities hold. The taught models are right on 85 % of questions with a new date, the controls on a coin's half; on new events they are ahead, too, by 12 points. Undecided is how often they tell a year beforehand: three trainings told it to one question in twenty, two to one in seven, so that the interval lies on both sides of a tenth. The recipe was given its twenty passes after a look at seed 0; the four other seeds agree with it.
#
# ### What was learned?
# To answer well a model must know the year of the event, *and* compare it with the year it is told. **Ask** for the first part alone. We begin the sentence ourselves, up to the year, and let the model continue: in the words of a chronicle, which it read in pretraining, and in the words of the dated answers.
#
# **Predict**: which model knows the years best?


# %% tags=["near=4", "long"]
def continued(model, prompts):
    found = lab.generate(
        model, prompts, max_new_tokens=8, temperature=0.0, seed=[0] * len(prompts),
        stop_ids={tokenizer.eos_id},
    )  # fmt: skip
    return [tokenizer.decode(list(one.ids)) for one in found]


BORN = {p.name: world.value(p.name, "born") for p in world.people}
HAPPENED = {(e.what, e.place): str(e.year) for e in world.events}
YEARS = [*BORN.values(), *HAPPENED.values()]
in_chronicle = [f"Chronicle\n{name} was born in" for name in BORN]
in_chronicle += [f"Chronicle\n{what.capitalize()} in {place} in" for what, place in HAPPENED]
system = {"role": "system", "content": "It is the year 2059."}
in_chat = [(f"Has {name} been born?", f"Yes, {name} was born in") for name in BORN]
in_chat += [(f"Is it true that {w} in {p}?", "Yes, that was in") for w, p in HAPPENED]
as_chat = [
    lab.encode_prompt([system, {"role": "user", "content": question}], tokenizer)
    + tokenizer.encode(beginning)
    for question, beginning in in_chat
]
as_documents = [tokenizer.encode(text, bos=True) for text in in_chronicle]
for who, prompts in (
    ("pretrained", as_documents), ("chat model", as_documents), ("chat model", as_chat),
    ("dates", as_chat),
):  # fmt: skip
    hits = [year in text for year, text in zip(YEARS, continued(models[who], prompts), strict=True)]
    form = "chronicle" if prompts is as_documents else "answer"
    births, events = hits[: len(BORN)], hits[len(BORN) :]
    print(f"{who:10s} {form:9s} births {sum(births):2d} of {len(births)}, events {sum(events):2d} of {len(events)}")  # fmt: skip

of_births = ["born" in one.dialog[1]["content"] for one in asked["held-out dates"]]
print("dates, held-out dates, births only:", percent(senses["dates", "held-out dates"]["right"][of_births]), "right")  # fmt: skip

# %% [markdown]
# One half had been forgotten. The pretrained model knows most years of events, in the form in which it read them. No dialog ever asks for them, so fine-tuning let them go; the dates branch learned those of its 1,000 examples anew. Births are asked for in dialogs, and they are still there.
#
# The other half is the comparison. Digits are pieces of their own (notebook 01): to compare 1930 with 1907 is to look up one year, line up eight digits and find the first that differs.
#
# The stage goes through its 1,000 examples twenty times, with rehearsed dialogs between them. The paper does not say how often its examples were shown. How much does that matter? **Run** the training: ten passes over the same 1,000 examples, nothing rehearsed, and 150 questions of each set after every pass. This takes about 40 seconds. **Predict** the curve.

# %% tags=["nbval-ignore-output", "long"]
taught_dialogs = dates.dated_dialogs(world, recipe.dates.seed, recipe.dates.n_dialogs)
packed = lab.PackedDialogs(lab.examples(taught_dialogs, tokenizer), seq_len=512, seed=1)
PASSES, A_PASS = 10, packed.batches_per_epoch(4)
panel = {split: asked[split][:150] for split in dates.SPLITS[1:]}
hits = {split: [] for split in panel}
patient = deepcopy(models["chat model"])
run = lab.optimize(
    patient, lab.adamw(patient, weight_decay=0.1), packed.batches(batch_size=4),
    lab.dialog_loss(isolate_documents=True),
    lab.warmup_then_cosine(
        peak=recipe.dates.peak_lr, steps=PASSES * A_PASS, warmup=A_PASS // 2, floor=0.1
    ),
    steps=range(PASSES * A_PASS),
)  # fmt: skip
losses = []
for step in bar(run, total=PASSES * A_PASS, about="training"):
    losses.append(step.loss)
    if len(losses) % A_PASS == 0:
        for split, questions in panel.items():
            said = lab.reply(
                patient.eval(), tokenizer, [q.dialog for q in questions], max_new_tokens=16
            )
            hits[split].append(
                [s.text[:2] == q.answer[:2] for s, q in zip(said, questions, strict=True)]
            )
        told = ", ".join(f"{split} {np.mean(found[-1]):.0%}" for split, found in hits.items())
        print(
            f"pass {len(losses) // A_PASS:2d}: loss {np.mean(losses[-A_PASS:]):.3f}, right: {told}"
        )

# %% tags=["hide-input", "near=10"]
series, chance = {}, {}
for split, found in hits.items():
    shares = [lab.proportion(sum(one), len(one)) for one in found]
    series[split] = (
        range(1, PASSES + 1),
        *(100 * np.array([getattr(s, end) for s in shares]) for end in ("value", "low", "high")),
    )
    chance[f"rule, {split}"] = 100 * ruled[split][:150].mean()
told = [f"{split} {series[split][1][-1]:.0f} % (rule {chance[f'rule, {split}']:.0f} %)" for split in panel]  # fmt: skip
show(
    lab.lines(
        series, "passes over the 1,000 examples", "right (%)", markers=True, reference=chance
    ),
    alt=f"After one pass the model is behind the rule; after the last one {' and '.join(told)} are right.",
)
gap = np.mean(hits["held-out dates"][-1]) - ruled["held-out dates"][:150].mean()
assert gap > 0, f"on held-out dates ten passes must beat the rule; the gap is {gap:.2f}"

# %% [markdown]
# For three passes nothing seems to happen, while the loss falls: nearly all targets are words that are easy to say, and only one, the Yes or No, needs the comparison. Then it is learned. A first version of the stage stopped after three passes, and had no sense of time at all. So the paper's number can suffice: shown often enough, 1,000 examples give our model a sense of time for **new dates**.
#
# On **new events** the model is hardly better than the rule. It has learned of each event in its examples when to begin to say Yes. It has not learned to look up any year that it knows and compare it. The paper's model had surely compared years before it saw the first example; a thousand examples were enough to show it when to use that. This is the difference between **teaching** an ability and **eliciting** it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Tools
# **Say** (section 5.1, figure 23 and table 15). Nobody trained the paper's model to call tools. Described in a prompt, a search engine and a calculator were called in the right order and with the right arguments. With a calculator it solved 67.1, 69.2 and 82.4 % of ASDiv, SVAMP and MAWPS, three sets of school sums. The score without one is not stated, so that table cannot say how much the tool brings. Ours will.
#
# In our world the system message lists up to three tools. A **call** is a line of the answer, `name: arguments =`. The executor, the program that runs the model, writes the result behind it, and the model continues. Sometimes no tool fits; then the model must say so.

# %%
for task in tools.tool_tasks(world, 4, 4):
    print(task.dialog[0]["content"])
    print(f"  {task.dialog[1]['content']}")
    print(f"  {task.call + ' ' + task.result if task.tool else tools.NO_TOOL}")

# %% [markdown]
# Four parts, and three writers:
#
# | who | writes |
# |---|---|
# | the prompt | Tools: scale weighs an animal. How heavy is the goose? |
# | the model | `scale: goose =`, and sampling stops at the sign `=` |
# | the executor | `39` and a line break |
# | the model | `The scale says 39.` and EOS |

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### What is learned of a call
# **Say.** The result comes from outside. It belongs to the context, like the prompt, and must not be a target. With a mask $m_t$ of targets the loss is the one of notebook 05:
#
# $$\mathcal{L} = -\sum_t m_t \log p(x_t \mid x_{<t}), \qquad m_t = 1 \text{ in the call, the rest and EOS},\quad m_t = 0 \text{ in the prompt and the result.}$$
#
# **Build** ids and mask from lists of ids, and **check** them.


# %% tags=["build"]
def my_example(prompt, call, result, rest, eos):
    """Lists of ids -> ids and loss mask"""
    # What a tool said is no target.
    ids = [*prompt, *call, *result, *rest, eos]
    mask = [False] * len(prompt) + [True] * len(call)
    mask += [False] * len(result) + [True] * (len(rest) + 1)
    return ids, mask


@check("example with a call")
def _():
    checks.call_example(my_example)


# %% [markdown]
# **See** it on a real dialog. The menus choose the tool and the mask.

# %% tags=["hide-input", "long"]
MASKS = ("result only read", "result a target")


def parts_of(task):
    """Ids of prompt, call, result, rest; the last one without EOS"""
    return (
        lab.encode_prompt(task.dialog, tokenizer), tokenizer.encode(task.call),
        tokenizer.encode(f"{task.result}\n"), tokenizer.encode(f"{task.answer} "),
    )  # fmt: skip


def draw_call(tool, mask):
    task = next(tools.tool_tasks(world, 8, 1, only=tool))
    parts = parts_of(task)
    ids, targets = my_example(*parts, tokenizer.eos_id)
    assert (ids, targets) == tool_example(
        task.dialog, task.call, task.result, task.answer, tokenizer
    ), "the library's example must be the same"
    if mask == MASKS[1]:
        targets = [at >= len(parts[0]) for at in range(len(ids))]
    return lab.masked_pieces([tokenizer.piece(i) for i in ids], targets, title=f"{tool}, {mask}")


def call_words(tool, mask):
    *_, result, _ = parts_of(next(tools.tool_tasks(world, 8, 1, only=tool)))
    verb = "are" if mask == MASKS[1] else "are not"
    return f"The call, the rest and EOS are targets; the {len(result)} pieces of what the {tool} says {verb}."


show(draw_call("scale", MASKS[0]), alt=call_words("scale", MASKS[0]))
Explorer(draw_call, call_words, mask=list(MASKS[::-1]), tool=sorted(set(tools.TOOLS) - {"window"}))

# %% [markdown]
# **Break** it. **Predict** what the check says, and what a model trained in this way would do.


# %%
def result_too(prompt, call, result, rest, eos):
    ids, mask = my_example(prompt, [*call, *result], [], rest, eos)
    return ids, mask


def only_the_call(prompt, call, result, rest, eos):
    ids, mask = my_example(prompt, call, result, rest, eos)
    return ids, [marked and at < len(prompt + call) for at, marked in enumerate(mask)]


for wrong in (result_too, only_the_call):
    with expect_failure(CheckFailed):
        checks.call_example(wrong)

# %% [markdown]
# What would the first mistake teach? Look at the loss that each part would have, under the model that was trained rightly, on dialogs like those of training.

# %% tags=["near=0.2"]
known = [task for task in tools.tool_tasks(world, 7, 150) if task.tool]
loss = Counter()
for name, place in {"call": 1, "result": 2, "rest": 3}.items():
    documents, targets = [], []
    for task in known:
        parts = parts_of(task)
        documents.append([token for part in parts for token in part])
        targets.append([at == place for at, part in enumerate(parts) for _ in part])
    scored = lab.document_nats(models["tools"], documents, targets=targets)
    loss[name] = scored.nats.sum()
    print(f"{name:6s} {loss[name] / sum(map(sum, targets)):6.3f} nats per target, {np.mean([sum(t) for t in targets]):.1f} targets per dialog")  # fmt: skip
print(
    f"if the results were targets, {100 * loss['result'] / loss.total():.1f} % of the loss would be theirs"
)

# %% [markdown]
# Nearly all of the loss would lie in the results, and would drive the training. What the shop will say cannot be known from the question, so the model could only memorise what it said in training, and answer new questions with something that looks like a price. That is training a model to make results up. With the mask it has nothing to lose by stopping at `=`.
#
# What does our model write there if nobody runs the call?

# %% tags=["near=5"]
alone = lab.reply(
    models["tools"], tokenizer, [t.dialog for t in known], max_new_tokens=40
)  # no executor
for task, said in list(zip(known, alone, strict=True))[:5]:
    print(f"{task.call:28s} true {task.result:10s} it writes {said.text.replace(chr(10), ' / ')!r}")
made_up = [s.text.partition("=")[2].split("\n")[0].strip() for s in alone]
print("results that are right:", percent([a == t.result for a, t in zip(made_up, known, strict=True)]))  # fmt: skip

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### The executor
# The model stops at `=`, or it writes a number, and none of these is right. It was trained to wait for somebody.
#
# **Say.** The executor's loop is short: sample until `=` or EOS; if the text ends with a call, run it, write the result and a line break behind it, and sample on; otherwise stop. The delicate part is to find the call. It is the **last line**, and it ends in `=`.
#
# **Build** that part: return what the tool says, or None where the text ends with no call. **Check** it.


# %% tags=["build"]
def my_step(text, run):
    """The text so far -> what the tool says, or None if its last line is no call"""
    # A call looks like `calculator: 3 + 4 =`.
    line = text.split("\n")[-1]
    name, colon, rest = line.partition(": ")
    if not (colon and rest.endswith(" =") and name.isidentifier()):
        return None
    return run(name, rest.removesuffix(" ="))


@check("one step of the executor")
def _():
    checks.tool_step(my_step)


# %% [markdown]
# **Break** it in two ways that work in most tests by hand. Why would the first one run the same call again and again?


# %%
def looks_everywhere(text, run):
    found = re.search(r"(\w+): (.+) =", text)
    return run(*found.groups()) if found else None


def one_word_only(text, run):
    line = text.split("\n")[-1]
    return my_step(text, run) if len(line.split()) == 3 else None


for wrong in (looks_everywhere, one_word_only):
    with expect_failure(CheckFailed):
        checks.tool_step(wrong)

# %% [markdown]
# **Use** the library's loop from here on. Six requests with words or sums that no training dialog held:

# %% tags=["near=3"]
run_tool = partial(tools.run_tool, world)
new_words = list(tools.tool_tasks(world, 7, 300, "held-out words"))
some = new_words[:6]
for task, said in zip(some, reply_with_tools(models["tools"], tokenizer, [t.dialog for t in some], run_tool), strict=True):  # fmt: skip
    print(f"{task.dialog[1]['content']:40s} {said.text.replace(chr(10), ' / ')}")

# %% [markdown]
# **Predict** the shares: held-out sums that are right with the calculator, and without it. Right calls for other held-out words: some of them stood in training calls of *another* tool, because `map`, `clock` and `window` are all asked about towns; the rest stood in no call at all. And right calls of the **window**, which no training dialog ever offered; the system message says that it tells the weather in a town.

# %% tags=["long", "near=4"]
shown = {
    task.arguments
    for task in tools.tool_tasks(world, recipe.tools.seed, recipe.tools.n_dialogs)
    if task.tool
}  # the words of all calls in training
asks_a_word = [task for task in new_words if task.tool not in (None, "calculator")]
TASKS = {
    "held-out sums": list(tools.tool_tasks(world, 7, 100, "held-out words", only="calculator")),
    "word of another tool": [task for task in asks_a_word if task.arguments in shown],
    "word of no call": [task for task in asks_a_word if task.arguments not in shown],
    "tool only described": list(tools.tool_tasks(world, 7, 100, "held-out tool")),
}
use, made = {}, {}
for kind, tasks in bar(list(TASKS.items()), about="asking"):
    for who in ("chat model", "tools"):
        use[who, kind] = lab.tool_use((models[who], tokenizer), world, tasks)
        print(f"{who:10s} {kind:21s} right call {percent(use[who, kind]['called']):18s} right answer {percent(use[who, kind]['right'])}")  # fmt: skip
    said = reply_with_tools(models["tools"], tokenizer, [t.dialog for t in tasks], run_tool)
    made[kind] = [reply.calls[0] if reply.calls else None for reply in said]
bare = [[task.dialog[1]] for task in TASKS["held-out sums"]]
said = lab.reply(models["tools"], tokenizer, bare, max_new_tokens=24)
unaided = [
    s.text.rstrip(".").split()[-1:] == [t.result]
    for s, t in zip(said, TASKS["held-out sums"], strict=True)
]
print(f"tools      held-out sums without the calculator: right {percent(unaided)}")
gain = use["tools", "held-out sums"]["right"].mean() - np.mean(unaided)
assert gain > 0.5, f"the calculator must help; it brought {gain:.2f}"

for kind, tasks in TASKS.items():
    pairs = list(zip(made[kind], tasks, strict=True))
    tool_right = [call is not None and call.name == task.tool for call, task in pairs]
    word_right = [call is not None and call.arguments == task.arguments for call, task in pairs]
    print(f"{kind:21s} right tool {percent(tool_right):18s} right arguments {percent(word_right)}")

# %% [markdown]
# - **Sums.** The calculator is called with the right digits and the answers are right. Without it the model has nearly all of them wrong. This is table 15 with the column that the paper leaves out.
# - **Other words.** The right tool is nearly always called. A word that training put into the call of another tool is nearly always copied rightly; a word that stood in no call never is. In its place the model writes one that it has written there before, and then reports, politely, the price of something else. It knows foods, animals and towns from pretraining. What it has learned is not to copy, but to write certain words and digits in a call.
# - **The tool only described.** It is never called. The model says that it has no tool, calls another one, or begins a name that no tool has. It does not use the description; it knows six tools by heart. The untaught chat model makes no right call of any tool.
#
# **Measure** with three seeds.

# %%
show_prediction(52)

# %%
tool_claim = show_claim(52)
for what, estimate in tool_claim.verdict.estimates.items():
    if what.startswith(("called/taught", "alone")):
        print(f"{what}: {estimate}")

# %% [markdown] slideshow={"slide_type": "slide"}
# Not reproduced, because the claim has two halves. On every seed the calculator makes nearly all sums right; on none is the described tool ever called rightly. (Its "held-out words" mix the two kinds above.)
#
# ## Temperature in context
# **Say** (figure 21). Sampling at temperature $T$ draws from $p_T(x) \propto \exp(z_x / T)$, with $z$ the logits: a higher $T$ flattens the distribution. The paper finds that RLHF changes what this does. Asked for a fact, the later versions give the same answer even at a high temperature; asked for something creative, they vary as before. Nobody put such a thing into the reward.
#
# Variety is measured with **Self-BLEU**: each of $k$ samples of one prompt is scored against the other $k - 1$,
#
# $$\text{Self-BLEU} = \frac1k \sum_i b_i \Big(\prod_{n=1}^{4} p_{i,n}\Big)^{1/4}, \qquad p_{i,n} = \frac{\sum_{g} \min\big(c_i(g),\ \max_{j \ne i} c_j(g)\big)}{\sum_{g} c_i(g)},$$
#
# with $c_i(g)$ the number of times that the run $g$ of $n$ words occurs in sample $i$, and $b_i$ a penalty for samples that are shorter than the others. Self-BLEU is 1 if all samples are the same. **Build** $p_{i,n}$, the clipped precision.


# %% tags=["build"]
def clipped(text, others, n):
    """A text and others of the same prompt -> share of its runs of n words that another has"""

    def runs(one):
        words = one.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    own, most = runs(text), Counter()
    for other in others:
        most |= runs(other)  # the larger count of both
    return (own & most).total() / own.total()


@check("clipped precision")
def _():
    assert clipped("the the the", ["the cat"], 1) == 1 / 3, "'the' counts as often as elsewhere"
    assert clipped("a b a b", ["a b", "a a"], 1) == 3 / 4, "the largest count, not the sum"
    assert clipped("a b c d", ["x b c y"], 2) == 1 / 3, "of three pairs one is in the other"
    same = ["a b c d e"] * 3
    assert lab.self_bleu(same) == clipped(same[0], same[1:], 4) == 1.0, "equal samples"


# %% [markdown]
# **See** it: 30 prompts of each kind, 10 samples of each. (With ten prompts, as in the paper, a first trial left the difference open.) The band is one standard deviation over the prompts, as in figure 21. **Predict** the curves of SFT and V5.

# %% tags=["long", "near=0.1"]
HEATS = (0.4, 0.8, 1.2)
forms = world.lexicon.templates("questions", ("name", "value"))["home"]
PROMPTS = {
    "factual": [forms[i % 4].fill({"name": p.name}) for i, p in enumerate(world.people)],
    "creative": [f"Tell me a story about {person.name}." for person in world.people],
}


def variety(who, kind, heat, k=10):
    """Self-BLEU of k samples of each prompt"""
    rows = [[{"role": "user", "content": text}] for text in PROMPTS[kind] for _ in range(k)]
    said = lab.reply(models[who], tokenizer, rows, temperature=heat, seed=1, max_new_tokens=48)
    texts = [one.text for one in said]
    return [lab.self_bleu(texts[i : i + k]) for i in range(0, len(texts), k)]


WHO = ("SFT", "V5", "chat model")
curves, slopes = {}, {}
for who, kind in bar([(who, kind) for who in WHO for kind in PROMPTS], about="sampling"):
    points = np.array([variety(who, kind, heat) for heat in HEATS])
    curves[who, kind], slopes[who, kind] = points, np.polyfit(HEATS, points, 1)[0]
    told = "  ".join(f"T {h:g}: {p.mean():.2f}" for h, p in zip(HEATS, points, strict=True))
    print(f"{who:10s} {kind:8s} Self-BLEU at {told}  slope {slopes[who, kind].mean():.2f}")
for who in WHO[1:]:
    for kind in PROMPTS:
        gap = lab.paired_difference(slopes[who, kind], slopes["SFT", kind]).estimate
        print(f"slope, {who} minus SFT, {kind}: {gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]")


# %% tags=["hide-input", "long", "near=0.15"]
def draw_heat(kinds, models=("SFT", "V5")):
    series = {}
    for who in models:
        for kind in kinds:
            middle, spread = curves[who, kind].mean(1), curves[who, kind].std(1)
            series[f"{who}, {kind}"] = (HEATS, middle, middle - spread, middle + spread)
    return lab.lines(series, "temperature", "Self-BLEU (1: all alike)", markers=True)


def heat_words(kinds, models=("SFT", "V5")):
    told = [
        f"{who}, {kind} from {curves[who, kind][0].mean():.2f} to {curves[who, kind][-1].mean():.2f}"
        for who in models for kind in kinds
    ]  # fmt: skip
    return f"Self-BLEU from temperature {HEATS[0]:g} to {HEATS[-1]:g}: {'; '.join(told)}."


show(draw_heat(list(PROMPTS)), alt=heat_words(list(PROMPTS)))
Explorer(
    lambda model: draw_heat(list(PROMPTS), [model]),
    lambda model: heat_words(list(PROMPTS), [model]),
    model=list(WHO[::-1]),
)

# %% [markdown]
# On facts V5's curve is flatter than SFT's, by about a quarter, and the interval of the difference lies above 0. On stories the two cannot be told apart. In the chat model, whose later stages use no PPO, the gap is wider still: facts depend on the temperature even less, and stories more. (The intervals are over prompts of one chain.)
#
# It did emerge, in part: no reward ever saw a temperature. A plain reason may suffice. Where one answer is right, nearly every sample that differs scores lower, so training sharpens the distribution there. Among stories many score alike, and nothing pushes them together.
#
# **Measure** with ten prompts of each kind, 25 samples, five temperatures and the chains of three seeds.

# %%
show_prediction(50)

# %%
heat_claim = show_claim(50)
for what, estimate in heat_claim.verdict.estimates.items():
    if what.startswith("slope"):
        print(f"{what}: {estimate}")

# %% [markdown] slideshow={"slide_type": "slide"}
# Reproduced. V4's slope on facts is still like SFT's; it is PPO that flattens it.
#
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here, in this notebook (seed 0) | does it emerge? |
# |---|---|---|---|
# | 50, temperature in context | figure 21: on factual prompts the slope flattens from version to version, on creative ones it stays | slope on facts nearer to 0 in V5, more so in the chat model; on stories V5 is like SFT; *reproduced* | yes, in part |
# | 51, sense of time | 1,000 examples; dozens of tests by hand, no score | new dates 85 % right [82, 89], control 47 % [42, 52]; new events 63 % [61, 65], control 51 %; a rule that knows no event has 66 and 58 %; *inconclusive*, since the year is told too early by some seeds | no, but 1,000 examples teach half of it |
# | 52, sums with a calculator | 67.1, 69.2, 82.4 %; without it not stated | nearly all right with it, nearly none without | no, but 2,000 dialogs teach it |
# | 52, a tool only described | called untaught | never called; a word that stood in no call of training is never copied, either; *not reproduced* | no |
#
# - **Emerging depends on scale.** The paper's abilities rest on what 7 to 70 billion weights learned from two trillion tokens: comparing numbers, copying a new word, reading an instruction. Ours has none of these in general, so a description of a tool says nothing to it. None of this is evidence against the paper.
# - **Compare with a rule, not with a coin**, before you speak of an ability.
# - **Not measured**: chains of several tools (figure 23), real arithmetic benchmarks, what people once believed.
#
# ## Exercises
# ### Exercise 1 (easy, 10 minutes)
# How much of a score is the rule's? Write `above_rule(right, ruled)`: marks of a model and of the rule on the same questions, both 0 or 1. Return the mean difference, model minus rule, and its standard error over questions ($s / \sqrt n$, with $n - 1$ in $s$).
# <details><summary>Hint</summary>The questions are the same, so take the difference for each question first.</details>


# %% tags=["exercise"]
def above_rule(right, ruled):
    ### BEGIN SOLUTION
    gaps = np.asarray(right, dtype=float) - np.asarray(ruled, dtype=float)
    return gaps.mean(), gaps.std(ddof=1) / np.sqrt(len(gaps))
    ### END SOLUTION


@check("above the rule")
def _():
    gap, error = above_rule([1, 1, 0, 1], [1, 0, 0, 0])
    assert abs(gap - 0.5) < 1e-9, f"two of four questions more; got {gap}"
    assert abs(error - 0.288675) < 1e-5, f"the differences are 0, 1, 0, 1; got {error}"
    assert above_rule([1, 0] * 5, [1, 0] * 5)[1] == 0, "equal marks differ nowhere"


# %% [markdown]
# ### Exercise 2 (medium, 15 minutes)
# Leave only the comparison. Write `stated(question)`: take a `Dated` question and return a training dialog whose user's message tells the year of the event, " in 1930" before the question mark, followed by the right answer of the assistant. Leave the question itself as it is. With such dialogs and the loop above you can find out whether the comparison alone is learned in fewer passes, and whether it then works for new events.
# <details><summary>Hint</summary>`question.dialog` has two messages; make new ones with `{**message, "content": ...}`.</details>


# %% tags=["exercise"]
def stated(question):
    ### BEGIN SOLUTION
    system, user = question.dialog
    told = user["content"].replace("?", f" in {question.year}?")
    answer = {"role": "assistant", "content": question.answer}
    return [system, {**user, "content": told}, answer]
    ### END SOLUTION


@check("the year is stated")
def _():
    for one in asked["train"][:20]:
        before = [dict(message) for message in one.dialog]
        dialog = stated(one)
        assert [m["role"] for m in dialog] == ["system", "user", "assistant"], "three messages"
        assert dialog[1]["content"].endswith(f" in {one.year}?"), dialog[1]["content"]
        assert dialog[2]["content"] == one.answer, "the answer is the world's"
        assert one.dialog == before, "the question must stay as it was"
        assert len(lab.encode_example(dialog, tokenizer)) == 2, "it can be trained on"


# %% [markdown]
# ### Exercise 3 (medium, 20 minutes)
# A tool of your own. Write the function `mirror(arguments)`, which returns a word backwards, and `offer(request)`, a dialog whose system message describes two tools, `mirror writes a word backwards` and `scale weighs an animal`, in the words of `tools.offered`. `try_out` lets the model answer with your tool at hand. **Predict** which tool it calls, then print what it says to "Write goose backwards." and to requests of your own.
# <details><summary>Hint</summary>The system message reads "Tools: mirror writes a word backwards; scale weighs an animal."</details>


# %% tags=["exercise"]
def mirror(arguments):
    ### BEGIN SOLUTION
    return arguments[::-1]
    ### END SOLUTION


def offer(request):
    ### BEGIN SOLUTION
    known = "Tools: mirror writes a word backwards; scale weighs an animal."
    return [{"role": "system", "content": known}, {"role": "user", "content": request}]
    ### END SOLUTION


def try_out(requests):
    """What the model replies, your tool at hand"""
    run = lambda name, word: mirror(word) if name == "mirror" else run_tool(name, word)  # noqa: E731
    return reply_with_tools(models["tools"], tokenizer, [offer(r) for r in requests], run)


@check("a tool of your own")
def _():
    assert mirror("goose") == "esoog", f"got {mirror('goose')!r}"
    usual = next(tools.tool_tasks(world, 0, 1, only="scale")).dialog[0]["content"]
    system = offer("How heavy is the goose?")[0]["content"]
    assert system[:7] == usual[:7], "begin like the system messages of training"
    assert "mirror writes a word backwards" in system, "describe your tool"
    assert called("mirror: goose =", lambda _, word: mirror(word)).result == "esoog"
    known, new = try_out(["How heavy is the goose?", "Write goose backwards."])
    assert known.calls[0].name == "scale", f"it must still weigh the goose; it says {known.text!r}"
    assert not new.calls, f"it never called our mirror; with yours it says {new.text!r}: tell us"


# %% [markdown]
# ### Exercise 4 (hard, 25 minutes)
# The whole loop. Write `answer(write, run, most_calls)`: `write(text)` is the model; it returns what it writes after `text`, up to a `=` or to its end. Run what it calls with your `my_step`, write the result and a line break behind it, and let it continue, with at most `most_calls` calls. After them a further call stays as it is. Return the whole text. The check chains two calls, as the paper's model did.
# <details><summary>Hint</summary>Loop `most_calls + 1` times; leave the loop where `my_step` returns None, or where the calls are used up. The space before the result makes the text read like ours: `f" {result}\n"`.</details>


# %% tags=["exercise"]
def answer(write, run, most_calls):
    ### BEGIN SOLUTION
    text = ""
    for turn in range(most_calls + 1):
        text += write(text)
        result = my_step(text, run)
        if result is None or turn == most_calls:
            break
        text += f" {result}\n"
    return text
    ### END SOLUTION


@check("the whole loop")
def _():
    script = {
        0: "calculator: 3 plus 4 =",
        1: "calculator: 7 plus 5 =",
        2: "The calculator says 12.",
    }
    run = partial(tools.run_tool, world)
    done = answer(lambda text: script[text.count("\n")], run, 2)
    assert done.split("\n")[:2] == ["calculator: 3 plus 4 = 7", "calculator: 7 plus 5 = 12"], done
    assert done.endswith("says 12."), f"after two calls it must still write; got {done!r}"
    stubborn = answer(lambda text: "scale: goose =", run, 3)
    assert stubborn.count("=") == 4, "three calls are run, the fourth stays"
    assert stubborn.endswith("="), "no result behind the last one"
    assert answer(lambda text: "Hello.", run, 2) == "Hello.", "no call, no result"


# %% [markdown]
# ## Questions to think about
# - Our questions let a rule get about 60 % right. How would you draw dates and events so that today's year alone says nothing?
# - The model knew the years of events after pretraining and lost them in fine-tuning. Which stage of the chain would you change, and what would you mix in?
# - The model writes only words into a call that it has written there before. Which training data would teach it to copy any word?
# - "It emerged" can mean: nobody taught it, or nobody noticed what taught it. How would you tell them apart?
#
# ## Next
# `13_scale_out`: what changes when the model no longer fits on one processor.
