# %% [markdown] slideshow={"slide_type": "slide"}
# # Ghost Attention
# "Always act as Ada." One turn later the model has forgotten it. **Ghost Attention** (GAtt) is the paper's cure, and it is a trick with data, not with attention: the model is shown dialogs in which the instruction stands once, at the beginning, and the last answer obeys it all the same.
# You build those dialogs step by step, look at what is learned from them and what is not, measure obedience from turn 1 to turn 20, and then take the trick apart to see which part carries it.
#
# - **You will be able to explain** how the training dialogs are made, where the answers come from, why the loss is zero on all turns but the last, why a model must be tested on a history that does not obey,
#   what a bound on a share of 100 % is worth, what a new skill costs the old ones, and what a picture of attention does and does not show.
# - **Prerequisites:** notebooks 05 and 07; the attention weights of 02. **Paper sections:** 3.3, A.3.5.
# - **Minutes:** 70 to read, 2 to run, on two cores (25 more if models must first be trained).

# %% tags=["long"]
import json
import math
from copy import deepcopy

import ipywidgets
import numpy as np
import torch

from llama2_lib import lesson as lab
from llama2_lib.evaluation.consistency import (
    Case,
    attention_by_turn,
    cases,
    converse,
    maximum_attention,
    on_neutral_history,
    on_own_history,
    spans,
    switched,
)
from llama2_lib.stages.ghost_attention import (
    ghost_example,
    on_every_turn,
    on_first_turn_only,
    with_instruction,
)
from llama2_lib.teaching import ghost_attention as checks
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, bar, show

folders = start(
    "09_ghost_attention",
    needs=["ppo", "rewards_v5", "instructed", "ghost_attention"],
    recipe=lab.nano(),
    minutes=25,
)
models = {
    "before": lab.load_model(folders["instructed"])[0].eval(),
    "GAtt": lab.load_model(folders["ghost_attention"])[0].eval(),
}
tokenizer = lab.load_tokenizer(folders["ghost_attention"])
world = lab.make_world(0)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## An instruction that should last
# **Say** (section 3.3). Some instructions are meant for a whole dialog: answer briefly, speak German, act as Napoleon. The paper's first RLHF models obeyed them for a turn or two. Its figure 9 shows one that should answer with emojis only and writes sentences at turn 2.
#
# Our V5 never saw such an instruction, so a step of ours comes first, the stage `instructed`: V5 learns from dialogs to obey an instruction **in the message that holds it and in the next one**, and then to go on without. That it forgets after two turns, as the paper's did, is how we taught it. The forgetting is a premise here; only the cure is a finding.
#
# **See.** One dialog, held by the model *before* GAtt. The user gives the instruction once.


# %% tags=["nbval-ignore-output"]
def print_dialog(case, said, first=8):
    for user, text in list(zip(case.requests(), said, strict=True))[:first]:
        mark = "obeys" if lab.obeys(case.instructions, text or "") else "-"
        print(f"{user:58s} {text or '(context full)':34s} {mark}")


ada = lab.Instruction(kind="figure", value="Ada", text="Always act as Ada.")
case = Case(instructions=(ada,), turns=next(lab.briefs(world, 3, 1, fewest=20)))
forgetful = converse(models["before"], tokenizer, [case.requests()])[0]
print_dialog(case, forgetful)

# %%
obeyed = [lab.obeys(case.instructions, text or "") for text in forgetful]
print("first answer obeys:", obeyed[0])
print("answers 4 to 20 that obey, fewer than three:", sum(obeyed[3:]) < 3)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Instructions that a program can check
# **Say.** The paper made its instructions up: hobbies, languages, public figures, combined at random, and half of them made **terse** ("Figure: Napoleon"). People then looked at the answers. We want to count thousands, so every kind must show in a few letters:
#
# | kind | asked | an answer that obeys |
# |---|---|---|
# | figure | Always act as Ada. | Ada: Oakford. |
# | hobby | You like the river. | river! Oakford. |
# | language | Speak Lumi. | Vero, Oakford. |
# | ending | End: Well done! | Oakford. Well done! |
# | format, *held out* | Answer in brackets. | (Oakford.) |
# | capitals, *held out* | Style: capital letters | OAKFORD. |
#
# "Speaking Lumi" is only its opening word: a model of a million weights does not translate. GAtt's training dialogs never hold the last two kinds, nor a few values of the other kinds. They will tell whether the model learned to keep *these* instructions or to keep instructions.

# %%
for given in lab.instructions(world, seed=6, n=8):
    kinds = " + ".join(instruction.kind for instruction in given)
    print(f"{kinds:20s} {lab.worded(given)}")

drawn = list(lab.instructions(world, seed=1, n=2000))
single = [instruction for given in drawn for instruction in given]
print("pairs, about half:", 0.45 < sum(len(given) == 2 for given in drawn) / 2000 < 0.55)
print(
    "terse, about half:",
    0.45 < np.mean([one.text.split()[0].endswith(":") for one in single]) < 0.55,
)

# %% [markdown]
# **Build** the check for one kind. An answer acts as a figure if it begins with the figure's name and a colon. Other instructions may wrap it: quotes, brackets, stars or a dash around the whole. Big or small letters do not matter.


# %%
def acts_as(figure, text):
    core = text.strip().strip('"()*- ')
    return core.casefold().startswith(f"{figure.casefold()}: ")


@check("acts as")
def _():
    for text, right in {
        "Ada: Oakford.": True, '"Ada: Oakford."': True, "- ADA: OAKFORD.": True, "Oakford.": False,
        "Adam: Oakford.": False, "I am Ada: hello": False, "Rosa: Ada": False,
    }.items():  # fmt: skip
        assert acts_as("Ada", text) == right, f"{text!r} should give {right}"
        assert ada.obeys(text) == right, f"the library disagrees on {text!r}"


# %% [markdown] slideshow={"slide_type": "slide"}
# ## Step 1: the instruction in every turn
# **Say.** Take a dialog $[u_1, a_1, \dots, u_n]$ and an instruction $\text{inst}$ that makes sense throughout. Put it before **every** message of the user: $[\text{inst} + u_1, a_1, \text{inst} + u_2, a_2, \dots, \text{inst} + u_n]$. Asked so, even a forgetful model obeys in its last answer, because the instruction stands right there. This prompt is the **teacher's**.
#
# **Build** it from lists of ids. A turn is a pair (user, answer); every turn begins with BOS, every answer ends with EOS; the last answer is what is to be sampled, so it is left out.


# %%
def my_teacher(turns, instruction, bos, eos):
    ids = []
    for user, said in turns[:-1]:
        ids += [bos, *instruction, *user, *said, eos]
    return [*ids, bos, *instruction, *turns[-1][0]]


@check("teacher's prompt")
def _():
    checks.teacher_prompt(my_teacher)


# %% [markdown]
# The same on dialogs of text, with the library's function. In a real prompt the paper could have used the system message for the first turn; only a first message can carry those tags, so here the instruction is plain text everywhere.

# %%
given = (ada,)
plain = lab.as_dialog(next(lab.briefs(world, 21, 1, fewest=3, most=3)), open_end=True)
teacher = on_every_turn(plain, lab.worded(given))
for message in teacher:
    print(f"{message['role']:10s} {message['content']}")

# %% [markdown]
# **Break.** The instruction only in the first turn: that is how the model will be *used*, and what the teacher must not be asked. Before you run this: what would the sampled answers look like, and what would the model learn from them?

# %%
with expect_failure(CheckFailed):
    checks.teacher_prompt(
        lambda turns, instruction, bos, eos: my_teacher(
            [(list(instruction) + list(turns[0][0]), turns[0][1]), *turns[1:]], [], bos, eos
        )
    )

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Step 2: the newest model answers, the best sample is kept
# **Say.** The answers come from the newest RLHF model itself, and the best of several by reward is kept, as in rejection sampling (notebook 07). Nobody writes the right answers.
#
# The paper's reward models have read instructions; ours have not, and like an answer that obeys no better. So samples that disobey are dropped first, by the program, and the reward chooses among the rest. That is help the paper did not have.
#
# **Use**: four samples for each of three prompts.


# %% tags=["nbval-ignore-output", "long"]
def draw_best(dialogs, asked, n=4):
    rows = [dialog for dialog in dialogs for _ in range(n)]
    said = lab.reply(models["before"], tokenizer, rows, temperature=0.7, max_new_tokens=24, seed=2)
    scored = lab.load_rewards(folders["rewards_v5"])(
        [lab.scored_row(d, s.text or ".", tokenizer, 512) for d, s in zip(rows, said, strict=True)],
        [False] * len(rows),
    ).combined
    chosen = []
    for i, given in enumerate(asked):
        own = range(i * n, (i + 1) * n)
        kept = [j for j in own if lab.obeys(given, said[j].text)]
        best = max(kept, key=lambda j: scored[j], default=None)
        for j in own:
            note = "kept" if j == best else "dropped" if j not in kept else ""
            print(f"{said[j].text:34s} reward {scored[j]:5.2f}  {note}")
        print()
        chosen.append(said[best].text if best is not None else None)
    return chosen


few = list(lab.instructions(world, seed=11, n=3, combined=0.0))
few_dialogs = [
    lab.as_dialog(turns, open_end=True) for turns in lab.briefs(world, 11, 3, fewest=2, most=6)
]
teachers = [on_every_turn(d, lab.worded(g)) for d, g in zip(few_dialogs, few, strict=True)]
chosen = draw_best(teachers, few)

# %%
kept = [lab.obeys(g, text) for g, text in zip(few, chosen, strict=True) if text is not None]
print("what is kept obeys:", all(kept))
ghosts = [
    json.loads(line)
    for line in (folders["ghost_attention"] / "ghosts.jsonl").read_text().splitlines()
]
counts = lab.read_metrics(folders["ghost_attention"] / "metrics.jsonl")[0]
print("of the stage's samples most obeyed:", counts["obeying samples"] > 0.5 * counts["samples"])
print("its training dialogs, more than 300:", len(ghosts) > 300)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Steps 3 and 4: the instruction once, the loss on the last answer
# **Say.** For training, $\text{inst}$ is dropped from all turns but the first: $[\text{inst} + u_1, a_1, u_2, a_2, \dots, u_n, a_n^\ast]$, with $a_n^\ast$ the sampled answer. Now something is wrong on purpose: the earlier answers $a_1 \dots a_{n-1}$ obey nothing. A loss on them would teach exactly what we want to cure. So
#
# $$\mathcal{L} = -\sum_{t \in a_n^\ast} \log p(x_t \mid x_{<t})$$
#
# with EOS counted as part of the answer, and **zero loss on every token of every earlier turn**, answers included.
#
# **Build** ids and mask. `mask[t]` says that token $t$ is a target.


# %%
def my_example(turns, instruction, sampled, bos, eos):
    ids, mask = [], []
    for index, (user, history) in enumerate(turns):
        last = index == len(turns) - 1
        prompt = [bos, *(instruction if index == 0 else []), *user]
        said = [*(sampled if last else history), eos]
        ids += prompt + said
        mask += [False] * len(prompt) + [last] * len(said)
    return ids, mask


@check("training example")
def _():
    checks.training_example(my_example)


# %% [markdown] slideshow={"slide_type": "subslide"}
# **See** a real one. Most of what the model reads it does not learn from: a dialog of ten turns has a handful of targets. The slider changes the number of turns, the menu what the loss is on.


# %% tags=["hide-input"]
def example_of(n_turns, loss_on):
    turns = next(lab.briefs(world, 5, 1, fewest=n_turns, most=n_turns))
    dialog = on_every_turn(lab.as_dialog(turns, open_end=True), lab.worded(given))
    return ghost_example(
        on_first_turn_only(dialog, lab.worded(given)),
        f"Ada: {turns[-1].answer}",
        tokenizer,
        loss_on,
    )


LOSSES = {"last answer (GAtt)": "last", "all answers": "all", "all tokens": "everything"}


def draw_example(turns, loss):
    ids, mask = example_of(turns, LOSSES[loss])
    pieces = [tokenizer.piece(i) for i in ids]
    return lab.masked_pieces(pieces[:150], mask[:150], title=f"{turns} turns, loss on {loss}")


def example_words(turns, loss):
    _, mask = example_of(turns, LOSSES[loss])
    return (
        f"With {turns} turns and the loss on {loss}, {sum(mask)} of {len(mask)} tokens are targets."
    )


show(
    draw_example(4, "last answer (GAtt)"),
    alt="Four turns; the instruction stands in the first; only the last answer and its EOS are targets.",
)
Explorer(draw_example, example_words, turns=ipywidgets.IntSlider(4, 1, 7), loss=list(LOSSES))

# %% [markdown]
# **Break.** Twelve ways to get the example wrong. **Predict** for each: would a training run crash, would its loss curve look odd, or would you see nothing until someone talks to the model?

# %%
for wrong in checks.EXAMPLE_MISTAKES.values():
    with expect_failure(CheckFailed):
        checks.training_example(wrong)

# %% [markdown]
# None of them crashes. The first gives the *lowest* loss of all: with the instruction in every turn there is nothing to remember.
#
# Three things must hold exactly, whatever the dialog. They are the library's invariants, checked here on 50 dialogs:
# 1. the teacher's prompt holds the instruction once a turn, the example once in all, and the example's prompt is the plain dialog with the instruction in its first turn;
# 2. changing any earlier *label* leaves the loss as it was, to the bit;
# 3. a dialog of one turn gives the same example as ordinary fine-tuning.

# %% tags=["long"]
for turns, drawn_for in zip(lab.briefs(world, 8, 50), lab.instructions(world, 8, 50), strict=True):
    text, dialog = lab.worded(drawn_for), lab.as_dialog(turns, open_end=True)
    asked = on_every_turn(dialog, text)
    student = on_first_turn_only(asked, text)
    count = lambda messages: sum(m["content"].startswith(f"{text} ") for m in messages)  # noqa: E731
    assert (count(asked), count(student)) == (len(turns), 1)
    assert student == [with_instruction(dialog[0], text), *dialog[1:]]
    ids, mask = ghost_example(student, "Oakford.", tokenizer)
    assert sum(mask) == len(ids) - len(lab.encode_prompt(student, tokenizer))
    whole = [*student, {"role": "assistant", "content": "Oakford."}]
    same = ghost_example(student, "Oakford.", tokenizer) == lab.encode_example(whole, tokenizer)
    assert same == (len(turns) == 1)
print("invariants 1 and 3 hold on 50 dialogs")

ids, mask = example_of(4, "last")
logits = models["before"](torch.tensor([ids[:-1]]))[0]
labels, targets = torch.tensor(ids[1:]), torch.tensor(mask[1:])
other = torch.where(targets, labels, (labels + 1) % tokenizer.vocab_size)


def masked_nats(wanted):
    nats = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return nats[targets].sum().item()


print("loss unchanged by other earlier labels:", masked_nats(labels) == masked_nats(other))
print(
    "loss changed by another last label:",
    masked_nats(labels) != masked_nats((labels + 1) % tokenizer.vocab_size),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Where do the earlier answers come from?
# The paper leaves this open, and the two readings teach different things.
#
# - **Reading A** (ours): $a_1 \dots a_{n-1}$ are those of the plain dialog. They obey nothing. The paper speaks of a "mismatch" between the system message and the earlier answers, and of the mask as its cure: that fits A. The only way to get $a_n^\ast$ right is to look back at turn 1.
# - **Reading B**: all answers are sampled with the instruction, turn after turn. They obey, so there is little mismatch, and the mask hardly matters. But there is a shortcut: copy the style of your own last answer.
#
# The shortcut is invisible in a normal test, in which the model meets its own obedient answers. It shows on a **neutral history**: the model is given a dialog in which no earlier answer obeys, and is asked for the next. So everything below is measured on both: *own* history, as a user meets it, and *neutral* history, which only memory of turn 1 can pass.
#
# Neither is simply the easier one. Obedient answers are longer ("Oakford. That is all!"), so twenty turns of own history reach farther back than the plain ones of reading A: 480 tokens against 400. Training dialogs of twenty turns left one in twenty dialogs forgotten there, in the last two turns. Ours have up to 24.
#
# | the user says | reading A | reading B |
# |---|---|---|
# | Always act as Ada. Where does Mara live? | Oakford. *(no loss)* | Ada: Oakford. *(no loss)* |
# | What is the trade of Mara? | A baker. *(no loss)* | Ada: A baker. *(no loss)* |
# | What pet does Mara have? | **Ada: A rabbit.** *(target; only turn 1 tells)* | **Ada: A rabbit.** *(target; the line above tells, too)* |

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same dialog, with Ghost Attention
# **See** the dialog of the beginning again, held by the model after the stage `ghost_attention`.

# %% tags=["nbval-ignore-output"]
faithful = converse(models["GAtt"], tokenizer, [case.requests()])[0]
print_dialog(case, faithful, first=20)

# %%
kept_turns = [lab.obeys(case.instructions, text or "") for text in faithful]
print("answers 4 to 20 that obey, at least 14 of 17:", sum(kept_turns[3:]) >= 14)
print("more than before:", sum(kept_turns) > sum(obeyed))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 31: obedience by turn
# **Say** (table 30). People asked the paper's models about their figure or hobby at turns 2 to 20:
#
# | turn | before | with GAtt |
# |---|---|---|
# | 2 | 100 % | 100 % |
# | 4 | 10 % | 100 % |
# | 6 | 0 % | 100 % |
# | 20 | 0 % | 100 % |
#
# How many dialogs that were it does not say, so how sure is "100 %"? With $k$ successes of $n$, **Clopper and Pearson**'s lower bound is the smallest share $p$ under which $k$ or more successes still have a probability of 2.5 %. For $k = n$ that is $p^n = 0.025$: ten of ten leave everything above 69 % possible.
#
# **Build** the bound for $k = n$, and compare.


# %%
def lower_bound(n):
    return 0.025 ** (1 / n)


@check("bound of a perfect score")
def _():
    for n in (1, 10, 120):
        assert math.isclose(lower_bound(n), lab.proportion_exact(n, n).low, rel_tol=1e-6)


print("of 10, 50, 200 perfect dialogs:", [f"{lower_bound(n):.3f}" for n in (10, 50, 200)])

# %% [markdown]
# **Measure**, live: 60 new dialogs, one instruction each, on neutral history at turns 1, 2, 4, 6, 10 and 20; 30 of them on the model's own history, all turns. Both models. About 30 seconds.

# %% tags=["nbval-ignore-output"]
TURNS = (1, 2, 4, 6, 10, 20)
panel = cases(world, 9, 60)
found = {}
for name, model in bar(list(models.items()), about="talking"):
    found[name, "neutral"] = on_neutral_history(model, tokenizer, panel, TURNS)
    found[name, "own"] = on_own_history(model, tokenizer, panel[:30])
for (name, history), marks in found.items():
    row = "  ".join(f"{marks.obedience(turn).value:4.0%}" for turn in TURNS)
    print(f"{name:8s} {history:8s} {row}")

# %%
for history in ("neutral", "own"):
    old, new = found["before", history], found["GAtt", history]
    print(f"{history}: before, obeys at once:", old.obedience(1).value > 0.8)
    print(
        f"{history}: before, at turn 20:", "forgotten" if old.obedience(20).high < 0.3 else "kept"
    )
    print(f"{history}: GAtt above before at turns 4 to 20:", all(
        new.obedience(t).low > old.obedience(t).high for t in TURNS[2:]
    ))  # fmt: skip

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
PAPER = {"before": {2: 1.0, 4: 0.1, 6: 0.0, 20: 0.0}, "GAtt": {2: 1.0, 4: 1.0, 6: 1.0, 20: 1.0}}


def at_turns(figure, turns=TURNS):
    figure.axes[0].set_xticks(turns, [str(turn) for turn in turns])
    return figure


def draw_obedience(history):
    series = {}
    for name in models:
        marks = found[name, history]
        own = [marks.obedience(turn) for turn in TURNS]
        series[f"{name}, ours"] = (
            TURNS, [e.value for e in own], [e.low for e in own], [e.high for e in own],
        )  # fmt: skip
        series[f"{name}, paper"] = (list(PAPER[name]), list(PAPER[name].values()))
    return at_turns(
        lab.lines(
            series, "turn of the dialog", "share that obeys", markers=True,
            title=f"{history} history",
        )
    )  # fmt: skip


show(
    draw_obedience("neutral"),
    alt="After plain answers: before GAtt obedience is gone after two turns; with GAtt it stays high up to turn 20.",
)
show(draw_obedience("own"), alt="On the model's own history: the same picture.")


def draw_kind(kind, history):
    rows = panel if history == "neutral" else panel[:30]
    series = {}
    for name in models:
        marks = found[name, history]
        own = [i for i, c in enumerate(rows) if kind in ("all", c.instructions[0].kind)]
        there = [[i for i in own if marks.reached[i, t - 1]] for t in TURNS]
        shares = [marks.obeyed[r, t - 1].mean() for r, t in zip(there, TURNS, strict=True)]
        series[name] = (TURNS, shares)
    return at_turns(
        lab.lines(
            series, "turn of the dialog", "share that obeys", markers=True,
            title=f"{kind}, {history} history",
        )
    )  # fmt: skip


def kind_words(kind, history):
    return f"Obedience by turn of instructions of kind '{kind}', {history} history, before and with GAtt."


Explorer(
    draw_kind,
    kind_words,
    kind=["all", "figure", "hobby", "language", "ending"],
    history=["neutral", "own"],
)

# %% [markdown]
# The numbers that count are those of the ledger: three seeds, each with its own dialogs, instructions and samples, 120 dialogs for each turn and history. They take too long for a notebook; `llama2 claims 31` measures them anew.


# %% tags=["nbval-ignore-output"]
def from_ledger(number, *words):
    """Show a recorded claim: what was declared, the estimates that contain one of the words, the verdict"""
    result = lab.recorded(number)
    print("predicted:", result.declared["prediction"])
    print("threshold:", result.declared["threshold"])
    print("paper:    ", result.declared["paper_value"])
    for name, estimate in result.verdict.estimates.items():
        if not words or any(word in name for word in words):
            print(f"  {name:44s} {estimate}")
    print("verdict:  ", result.verdict.outcome, "|", result.verdict.reason)
    return result


keeping = from_ledger(31)

# %%
VERDICTS = ("reproduced", "not reproduced", "inconclusive", "cannot show at this scale")
print(
    "claim 31 has a verdict; seeds:", keeping.verdict.outcome in VERDICTS, len(keeping.measurements)
)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### And are the answers still right?
# A model that says "Ada: " before nonsense obeys. **Measure** how many of the same answers name the right fact, obeying or not.

# %% tags=["nbval-ignore-output"]
for (name, history), marks in found.items():
    row = "  ".join(f"{marks.correctness(turn).value:4.0%}" for turn in TURNS)
    print(f"{name:8s} {history:8s} {row}")

# %%
right = {key: np.mean([m.correctness(t).value for t in TURNS[1:]]) for key, m in found.items()}
print("most answers are right:", all(value > 0.7 for value in right.values()))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 32: take the mask away
# **Say.** The paper asserts that the mask is needed and shows no run without it. **Break** it here: the forgetful model, the stage's own training dialogs (reading A), three runs that differ only in what the loss is on, on a part of those dialogs, once. **Predict**: which run ends with the lowest training loss? Which one keeps the instruction? About 30 seconds.
#
# The ledger holds the stage itself, at full length, three seeds, with two more arms that are only shown: training dialogs of at most six turns, asked at turn 20, and reading B.


# %% tags=["long"]
def encoded(loss_on, n=320):
    rows = []
    for ghost in ghosts[:n]:
        text = " ".join(one["text"] for one in ghost["instructions"])
        rows.append(
            ghost_example(
                on_first_turn_only(ghost["prompt"], text), ghost["answer"], tokenizer, loss_on
            )
        )
    return rows


def train(loss_on, rate=2e-3):
    packed = lab.PackedDialogs(encoded(loss_on), seq_len=512, seed=1)
    model = deepcopy(models["before"]).train()
    steps = packed.batches_per_epoch(2)
    schedule = lab.warmup_then_cosine(peak=rate, steps=steps, warmup=5, floor=0.1)
    run = lab.optimize(
        model, lab.adamw(model, weight_decay=0.1), packed.batches(batch_size=2),
        lab.dialog_loss(isolate_documents=True), schedule, steps=range(steps), clip_norm=1.0,
    )  # fmt: skip
    losses = [step.loss for step in run]
    return model.eval(), losses


trained = {loss: train(kind) for loss, kind in bar(list(LOSSES.items()), about="training")}

# %% tags=["nbval-ignore-output"]
short = {
    loss: on_neutral_history(model, tokenizer, panel[:40], (2, 6, 20))
    for loss, (model, _) in trained.items()
}
for loss, marks in short.items():
    row = "  ".join(f"turn {t}: {marks.obedience(t).value:4.0%}" for t in (2, 6, 20))
    print(f"loss on {loss:20s} {row}   last loss {np.mean(trained[loss][1][-5:]):.2f}")
masking = from_ledger(32)

# %%
mean = {
    loss: np.mean([marks.obedience(t).value for t in (2, 6, 20)]) for loss, marks in short.items()
}
masked, unmasked = mean["last answer (GAtt)"], max(mean["all answers"], mean["all tokens"])
print("with the mask more is kept than without:", masked > unmasked)
print(
    "claim 32 has a verdict; seeds:", masking.verdict.outcome in VERDICTS, len(masking.measurements)
)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
ARMS = ("all answers", "no mask", "short dialogs", "reading B")


def draw_arms(history):
    own = [masking.verdict.estimates[f"{arm}, {history} history, turn 20"] for arm in ARMS]
    kept = keeping.verdict.estimates[f"GAtt, {history} history, turn 20"]
    rows = [kept, *own]
    return lab.bars_with_intervals(
        ["GAtt", *ARMS], [e.value for e in rows], [e.low for e in rows], [e.high for e in rows],
        "share that obeys at turn 20",
    )  # fmt: skip


show(
    draw_arms("neutral"),
    alt="Recorded runs, neutral history, turn 20: GAtt beside four variants of it.",
)
show(draw_arms("own"), alt="The same on the model's own history.")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the new skill costs
# **Say.** The three small runs above saw nothing but dialogs with instructions. A model forgets what it no longer practises. So in the stages `instructed` and `ghost_attention` three more things stand beside such dialogs: new prompts with **V5's own answers**, which pull the model nowhere; **documents of pretraining**, for what no dialog asks about (notebook 10, last table); and demonstrations of look-alikes, harmless requests that V5 wrongly declines. The paper does not say what else is in the mixture.
#
# **Predict**, then **measure**: how helpful and how safe are V5, the stage's model, and the small run with the right mask? Gold marks, 240 held-out prompts. About 15 seconds.

# %% tags=["nbval-ignore-output"]
panel_of = {
    "helpfulness": list(lab.helpful_prompts(world, 12, 120, split="held out")),
    "safety": list(lab.adversarial_prompts(world, 12, 120, split="held out")),
}
policies = {
    "V5": lab.load_model(folders["ppo"])[0].eval(),
    "GAtt": models["GAtt"],
    "GAtt, nothing rehearsed": trained["last answer (GAtt)"][0],
}
qualities = {}
for name, policy in bar(list(policies.items()), about="asking"):
    for quality, some in panel_of.items():
        marks = getattr(lab.marks_of(policy, tokenizer, world, some, seed=2), quality)
        qualities[name, quality] = lab.bootstrap_mean(marks.tolist(), 0)
for (name, quality), mark in qualities.items():
    print(f"{name:26s} {quality:12s} {mark}")

# %%
rehearsed, alone = (
    sum(qualities[name, quality].value for quality in panel_of)
    for name in ("GAtt", "GAtt, nothing rehearsed")
)
print("without rehearsal much is lost:", alone < rehearsed - 0.2)

# %% [markdown]
# A test of obedience alone would have called the small run a success. `docs/log.md` has the table of what was tried.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 33: instructions it never trained on
# **Say** (figure 28). The paper's model kept constraints that were not in GAtt's data: answer in haiku, in one sentence. **Measure** values held out of known kinds (another figure, another language), and two kinds held out altogether. The step before GAtt taught what they *mean*, the two kinds in dialogs of one or two turns only; what is new is *keeping* them.

# %% tags=["nbval-ignore-output"]
SPLITS = {"trained": "train", "other values": "held-out values", "other kinds": "held-out kinds"}
zero_shot = {
    (name, label): on_neutral_history(
        model, tokenizer, cases(world, 10, 60, split=split), (2, 6, 20)
    )
    for name, model in bar(list(models.items()), about="asking")
    for label, split in SPLITS.items()
}
for (name, label), marks in zero_shot.items():
    print(f"{name:8s} {label:14s} " + "  ".join(str(marks.obedience(t)) for t in (2, 6, 20)))
held_out = from_ledger(33)

# %%
print(
    "trained instructions are kept at turn 20:",
    zero_shot["GAtt", "trained"].obedience(20).value > 0.7,
)
print(
    "claim 33 has a verdict; seeds:",
    held_out.verdict.outcome in VERDICTS,
    len(held_out.measurements),
)


# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
def draw_zero_shot(turn):
    rows = [zero_shot[name, label].obedience(turn) for label in SPLITS for name in models]
    return lab.bars_with_intervals(
        ["\n".join((*label.split(), name)) for label in SPLITS for name in models],
        [e.value for e in rows], [e.low for e in rows], [e.high for e in rows],
        f"share that obeys at turn {turn}",
    )  # fmt: skip


show(
    draw_zero_shot(6),
    alt="At turn 6, after plain answers: obedience before and with GAtt, for trained instructions, held-out values and held-out kinds.",
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 34: who looks back?
# **Say** (figure 10). The paper draws the **maximum attention**: for each position, the largest weight that any head of any layer gives to the tokens of the system message. With GAtt they stay bright for much longer.
#
# **Build** it for one layer. `weights` has shape (heads, queries, keys); `keys` is the range of positions of the instruction.


# %%
def my_maximum(weights, keys):
    return weights[:, :, keys.start : keys.stop].amax(dim=(0, 2))


@check("maximum attention")
def _():
    model = models["GAtt"]
    own = spans(lab.plain_dialog(case), ada.text, tokenizer)
    ids = torch.tensor(own.ids[:60])
    with torch.no_grad():
        h = model.tok_embeddings(ids[None])
        rotation = model.rotation(h)
        visible = torch.ones(1, 60, 60, dtype=torch.bool).tril()
        largest = torch.zeros(60)
        for layer in model.layers:
            q, k, _ = layer.attention.project(layer.attention_norm(h), rotation)
            weights = lab.attention_weights(q, k, visible)[0]
            largest = torch.maximum(largest, my_maximum(weights, own.instruction))
            h = layer(h, rotation)
    theirs = maximum_attention(model, ids, own.instruction)
    assert torch.allclose(largest, theirs, rtol=1e-4, atol=1e-6), "every layer, every head"


# %% [markdown]
# **Measure.** Twelve dialogs with plain answers, the same for both models; for each turn the mean over the positions that *write* the answer. What writes a token is the position before it, so the range begins one earlier.

# %% tags=["nbval-ignore-output"]
attended = {
    name: np.stack(
        [
            attention_by_turn(model, tokenizer, lab.plain_dialog(c), lab.worded(c.instructions))
            for c in panel[:12]
        ]
    )
    for name, model in models.items()
}
for name, rows in attended.items():
    print(f"{name:8s}", "  ".join(f"turn {t}: {rows[:, t - 1].mean():.2f}" for t in (1, 2, 6, 20)))
attention = from_ledger(34, "from turn 2 on", "turn 20")

# %%
higher = attended["GAtt"][:, 1:].mean() - attended["before"][:, 1:].mean()
print("GAtt attends more to the instruction after turn 1:", higher > 0)
print(
    "claim 34 has a verdict; seeds:",
    attention.verdict.outcome in VERDICTS,
    len(attention.measurements),
)


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
def draw_attention(dialog, what):
    c = panel[dialog]
    if what == "by turn":
        turns = np.arange(1, 21)
        series = {name: (turns, rows[dialog]) for name, rows in attended.items()}
        return at_turns(
            lab.lines(
                series, "turn of the dialog", "maximum attention to the instruction", markers=True,
                title=lab.worded(c.instructions),
            ),
            range(1, 21),
        )  # fmt: skip
    own = spans(lab.plain_dialog(c), lab.worded(c.instructions), tokenizer)
    figure, axes = lab.new_figure(8.0, 3.6, rows=2, columns=1)
    for axis, (name, model) in zip(axes, models.items(), strict=True):
        largest = maximum_attention(model, torch.tensor(own.ids), own.instruction).numpy()
        axis.imshow(largest[None], aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        axis.set_yticks([])
        lab.label_axes(axis, "position (tokens)", name, lab.worded(c.instructions))
    return figure


def attention_words(dialog, what):
    return f"Dialog {dialog}, maximum attention to the instruction {what}, before and with GAtt."


show(
    draw_attention(0, "by turn"),
    alt="Maximum attention to the instruction by turn, for one dialog, before and with GAtt.",
)
show(
    draw_attention(0, "by position"),
    alt="The same by position, as in the paper's figure 10: brighter columns are more attention.",
)
Explorer(
    draw_attention,
    attention_words,
    dialog=ipywidgets.IntSlider(0, 0, 11),
    what=["by turn", "by position"],
)

# %% [markdown]
# Read such pictures with care. A large weight shows that a head *could* read the instruction, not that the answer depends on it; and a model may also carry an instruction forward through later positions without looking back. The picture agrees with the counts above; alone it would prove little.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What if the instruction changes?
# **Say.** "Vanilla" GAtt, the paper warns, does not cover a system message that changes in the middle. **Predict**: the user says "act as Ada" at turn 1 and "act as Hugo" at turn 5. Who answers at turn 5? At turn 6?

# %% tags=["nbval-ignore-output"]
changed = switched(models["GAtt"], tokenizer, world, at=5, n=40, n_turns=8, seed=4)
for turn in range(1, 9):
    old, new = (marks.obedience(turn).value for marks in (changed.old, changed.new))
    print(f"turn {turn}:  old instruction {old:4.0%}   new instruction {new:4.0%}")

# %%
print("before the switch, the old one:", changed.old.obedience(4).value > 0.7)
print("before the switch, never the new one:", changed.new.obedience(4).value < 0.1)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here |
# |---|---|---|
# | 31, kept for 20 turns | table 30: 100, 10, 0, 0 % before; 100 % with GAtt | obedience and right answers at turns 2, 4, 6, 20 on two histories; verdict above |
# | 32, the mask | asserted | loss on all answers and on all tokens, beside it; verdict above |
# | 33, other instructions | examples | held-out values and kinds, bounds compared; verdict above |
# | 34, attention | figure 10, one dialog | mean over dialogs and turns; verdict above |
#
# - **The premise.** Our base model forgets after two turns because it was taught to. The paper's forgot by itself. Its decay is not reproduced, it is built in.
# - **Help.** Samples that disobey are thrown away by a program. Our instructions show in a word, and a dialog of twenty turns is 450 tokens; the paper's are thousands.
# - **When.** GAtt came after RLHF V3 in the paper; here after V5.
# - **Not stated in the paper**, so ours: reading A, learning rate, size of the data, what is rehearsed beside it, how often dialogs have how many turns, how many samples.
# - **Not measured**: people's judgement; personas that show in content rather than in form.
#
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# Half of the instructions are made terse. Write `terse(kind, value)`: "figure", "Ada" becomes `Figure: Ada`. Only "ending" is shortened, too: `End: Thank you!`.
# <details><summary>Hint</summary>`str.capitalize`, and one exception.</details>


# %% tags=["exercise"]
def terse(kind, value):
    ### BEGIN SOLUTION
    return f"{'End' if kind == 'ending' else kind.capitalize()}: {value}"
    ### END SOLUTION


@check("terse wording")
def _():
    assert terse("figure", "Ada") == "Figure: Ada"
    for given in lab.instructions(world, 4, 30, terse=1.0):
        for one in given:
            assert terse(one.kind, one.value) == one.text, (
                f"{one.text!r} is what the library writes"
            )


# %% [markdown]
# ### Exercise 2 (easy, 10 minutes)
# How many dialogs without a single failure does it take for a lower bound of 90 %? Of 98 %? Write `dialogs_needed(bound)`, the smallest such $n$.
# <details><summary>Hint</summary>$p^n = 0.025$ has the solution $n = \ln 0.025 / \ln p$; round up.</details>


# %% tags=["exercise"]
def dialogs_needed(bound):
    ### BEGIN SOLUTION
    return math.ceil(math.log(0.025) / math.log(bound))
    ### END SOLUTION


@check("dialogs needed")
def _():
    for bound in (0.5, 0.9, 0.98):
        n = dialogs_needed(bound)
        assert lab.proportion_exact(n, n).low >= bound > lab.proportion_exact(n - 1, n - 1).low, (
            f"for {bound}: {n} is not the smallest"
        )


# %% [markdown]
# ### Exercise 3 (medium, 20 minutes)
# How far back does a target look? Write `distances(ids, mask, keys)`: for each target the number of positions between the last token of the instruction (`keys.stop - 1`) and the position that *predicts* the target. Which distances does training on at most six turns never see?
# <details><summary>Hint</summary>Token $t$ is predicted at position $t - 1$.</details>


# %% tags=["exercise"]
def distances(ids, mask, keys):
    ### BEGIN SOLUTION
    return [t - 1 - (keys.stop - 1) for t in range(len(ids)) if mask[t]]
    ### END SOLUTION


@check("distances")
def _():
    ids, mask = [1, 7, 8, 9, 4, 2], [False, False, False, False, True, True]
    assert distances(ids, mask, range(1, 3)) == [1, 2], "the target at 4 is predicted at 3"
    far = []
    for n_turns in (6, 20):
        turns = next(lab.briefs(world, 2, 1, fewest=n_turns, most=n_turns))
        dialog = [
            with_instruction(m, ada.text) if i == 0 else m
            for i, m in enumerate(lab.as_dialog(turns))
        ]
        own = spans(dialog, ada.text, tokenizer)
        last = lab.encode_example(dialog, tokenizer, loss_on="last")
        far.append(max(distances(own.ids, last[1], own.instruction)))
    assert far[1] > 2 * far[0], "twenty turns reach much farther than six"


# %% [markdown]
# ### Exercise 4 (hard, 25 minutes)
# Is a score on the own history evidence of memory? Write `copier(dialog)`: a "model" that never looks at turn 1 and still obeys on its own history. It gets a dialog that ends with the user and returns what its last answer *began* with (up to and including the first colon and a space), then the word "Yes."; without an earlier answer it returns "Ada: Yes.".
# <details><summary>Hint</summary>`partition(": ")`; an answer without a colon has no such beginning.</details>


# %% tags=["exercise"]
def copier(dialog):
    ### BEGIN SOLUTION
    if len(dialog) == 1:
        return "Ada: Yes."
    name, colon, _ = dialog[-2]["content"].partition(": ")
    return f"{name}: Yes." if colon else "Yes."
    ### END SOLUTION


@check("a copier passes one test and fails the other")
def _():
    def talk(neutral):
        dialog, said = [], []
        for turn in case.turns:
            dialog.append({"role": "user", "content": turn.request})
            said.append(copier(dialog))
            dialog.append({"role": "assistant", "content": turn.answer if neutral else said[-1]})
        return [ada.obeys(text) for text in said]

    assert all(talk(neutral=False)), "on its own history it obeys at every turn"
    assert sum(talk(neutral=True)) == 1, "on a neutral history at the first turn only"


# %% [markdown]
# ## Questions to think about
# - Ghost Attention is **context distillation**: a model learns to behave without a text as it does with it. What is distilled, and what is left in the prompt?
# - Under reading B the mask hardly matters. Does that make B the better reading? What would you ask the authors?
# - The base model was taught to forget. How would you build one that forgets by itself?
# - Samples that disobey were dropped by a program. What would a reward model have to see in training to do that job, and how could a policy fool it?
# - In this world every instruction shows in a word. How would you count obedience to "be kind", and how many people would it take?
# - A user asks at turn 7 to ignore the instruction of turn 1. Who should win? What would you train for it?
#
# ## Next
# `10_safety`: the same trick, a text that is there in training and gone in use, now for answers that do no harm.
