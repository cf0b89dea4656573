# %% [markdown] slideshow={"slide_type": "slide"}
# # Ghost Attention
# "Always act as Ada." A few turns later the model has forgotten it. **Ghost Attention** (GAtt) is the paper's cure, and it is a trick with data, not with attention: the model is trained on dialogs in which the instruction stands once, at the beginning, and the last answer still obeys it.
# You build those dialogs step by step, look at what is learned from them and what is not, measure obedience from turn 1 to turn 20, and then take the trick apart to see which part makes it work.
#
# - **You will be able to explain** how the training dialogs are made, where the answers come from, why the loss is zero on all turns but the last, why a model must be tested on a history that does not obey,
#   what a bound on a share of 100 % is worth, what a new skill costs the old ones, and what a picture of attention does and does not show.
# - **Prerequisites:** notebooks 05, 07 and 08; the attention weights of 02. **Paper sections:** 3.3, A.3.5.
# - **Minutes:** 70 to read, 2 to run, on two cores; the models are those of the released chain.

# %% tags=["long"]
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
from llama2_lib.widgets import Explorer, bar, show, show_claim, show_prediction

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

# %% [markdown]
# **See** the trick. The teacher is told in every turn, the student in the first turn only, and both have the same last answer. Blue boxes are trained, grey ones are only asked.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "dialog of the teacher": lab.Node(0, 0, "the instruction\nin every turn", "data"),
            "RLHF model": lab.Node(1, 0, "answers the last turn", "frozen"),
            "last answer": lab.Node(2, 0, "the best sample\nby reward", "data"),
            "dialog of the student": lab.Node(0, 1, "the instruction\nin turn one only", "data"),
            "student": lab.Node(1, 1, "learns the last answer", "trained"),
        },
        [
            ("dialog of the teacher", "RLHF model", ""),
            ("RLHF model", "last answer", "samples"),
            ("dialog of the teacher", "dialog of the student", "the rest is dropped"),
            ("dialog of the student", "student", "context"),
            ("last answer", "student", "target"),
        ],
    ),
    alt="The teacher reads the instruction in every turn and gives the last answer; the student reads it in turn one only and learns that answer.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## An instruction that should last
# **Say** (section 3.3). Some instructions are meant for a whole dialog: answer briefly, speak German, act as Napoleon. The paper's first RLHF models forgot them after a few turns. Its figure 9 shows one that should answer with emojis only and writes sentences at turn 2. The cure was inspired by **context distillation**, as the paper says (it cites Bai et al., 2022b): a model learns to behave without a text as it does with it.
#
# Our V5, the model after PPO (notebook 08), never saw such an instruction. So a step of ours comes first, the stage `instructed`: V5 learns from dialogs to obey an instruction **in the message that holds it and in the next one**, and then to continue without it. It forgets after two turns because we taught it to. The forgetting is a premise here; only the cure is a finding.
#
# **See.** One dialog, held by the model *before* GAtt. The user gives the instruction once.


# %%
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
print(f"{sum(obeyed)} of {len(obeyed)} answers obey; of answers 4 to 20, {sum(obeyed[3:])}")
assert obeyed[0], "the first answer must obey, or there is nothing to forget"
assert sum(obeyed[3:]) < 3, f"answers 4 to 20 must hardly obey; {sum(obeyed[3:])} did"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Instructions that a program can check
# **Say.** The paper made its instructions up: hobbies, languages, public figures, combined at random, and half of the time reworded to be **terse** ("Figure: Napoleon"). People then judged the answers. We want a program to count thousands of answers, so for every kind a few letters must show whether an answer obeys:
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
# "Speaking Lumi" means no more than its opening word: a model of a million weights does not translate. The dialogs that GAtt builds never hold the last two kinds, nor a few values of the other kinds. (Short dialogs of one or two turns, mixed in as a rehearsal, do hold them; nothing has to be *kept* there.) They will tell whether the model learned to keep *these* instructions or to keep instructions.

# %%
for given in lab.instructions(world, seed=6, n=8):
    kinds = " + ".join(instruction.kind for instruction in given)
    print(f"{kinds:20s} {lab.worded(given)}")

drawn = list(lab.instructions(world, seed=1, n=2000))
single = [instruction for given in drawn for instruction in given]
pairs = np.mean([len(given) == 2 for given in drawn])
short_words = np.mean([one.text.split()[0].endswith(":") for one in single])
print(
    f"of {len(drawn)} draws {pairs:.1%} are pairs; {short_words:.1%} of the instructions are terse"
)
assert max(abs(pairs - 0.5), abs(short_words - 0.5)) < 0.05, "both shares must be about half"

# %% [markdown]
# **Build** the check for one kind. An answer acts as a figure if it begins with the figure's name and a colon. Other instructions may wrap the answer in quotes, brackets or stars, or put a dash before it. Capital or small letters make no difference.


# %% tags=["build"]
def acts_as(figure, text):
    """Does an answer begin with the name of the figure and a colon?"""
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
# **Say.** Take a dialog $[u_1, a_1, \dots, u_n]$ and an instruction $\text{inst}$ that makes sense throughout. Put it before **every** message of the user, the last one included: $[\text{inst} + u_1, a_1, \text{inst} + u_2, a_2, \dots, \text{inst} + u_n]$. Even a forgetful model obeys this prompt in its last answer, because the instruction stands right there. We call it the **teacher's prompt**.
#
# **Build** it from lists of ids. A turn is a pair (user, answer); every turn begins with BOS, every answer ends with EOS; the last answer is what is to be sampled, so it is left out.


# %% tags=["build"]
def my_teacher(turns, instruction, bos, eos):
    """Turns of (user ids, answer ids) -> prompt ids, the instruction before every user message"""
    ids = []
    for user, said in turns[:-1]:
        ids += [bos, *instruction, *user, *said, eos]
    return [*ids, bos, *instruction, *turns[-1][0]]


@check("teacher's prompt")
def _():
    checks.teacher_prompt(my_teacher)


# %% [markdown]
# The same for dialogs of text, with the library's function. The paper speaks of a *system message*. In the chat format (notebook 05) system tags can stand in the first message only, but the teacher needs the instruction in every message. So our instruction is plain text before the user's words, in every turn and in use. This is a departure of ours.

# %%
given = (ada,)
of_facts = (t for t in lab.briefs(world, 21, fewest=3, most=3) if all(one.value for one in t))
plain = lab.as_dialog(next(of_facts), open_end=True)
teacher = on_every_turn(plain, lab.worded(given))
for message in teacher:
    print(f"{message['role']:10s} {message['content']}")

# %% [markdown]
# **Break.** Put the instruction in the first turn only. That is how the model will be *used*, but a teacher asked in this way forgets as well. **Predict** before you run this: what would the sampled answers look like, and what would the model learn from them?

# %%
with expect_failure(CheckFailed):
    checks.teacher_prompt(
        lambda turns, instruction, bos, eos: my_teacher(
            [(list(instruction) + list(turns[0][0]), turns[0][1]), *turns[1:]], [], bos, eos
        )
    )

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Step 2: the newest model answers, the best sample is kept
# **Say.** The newest RLHF model itself writes the answers; of several samples the one with the highest reward is kept, as in rejection sampling (notebook 07). No person writes an answer.
#
# Our reward models never read such an instruction in training and do not prefer an answer that obeys. So a program first drops the samples that disobey, and the reward chooses among the rest. The paper mentions no such help.
#
# **Use**: four samples for each of three prompts. The temperature is 1.3 here, so that samples differ; the stage itself draws two samples per prompt at 0.7.


# %% tags=["near=0.03", "long"]
def draw_best(dialogs, asked, n=4):
    rows = [dialog for dialog in dialogs for _ in range(n)]
    said = lab.reply(models["before"], tokenizer, rows, temperature=1.3, max_new_tokens=24, seed=2)
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
for wanted, text in zip(few, chosen, strict=True):
    assert text is None or lab.obeys(wanted, text), f"what is kept must obey; got {text!r}"
ghosts = lab.read_rows(folders["ghost_attention"] / "ghosts.jsonl.gz", dict)
counts = lab.read_metrics(folders["ghost_attention"] / "metrics.jsonl")[0]
print(
    f"the stage drew {counts['samples']:.0f} samples for {counts['prompts']:.0f} prompts; "
    f"{counts['obeying samples']:.0f} obeyed"
)
rivals = sum(ghost["score"] is not None for ghost in ghosts)
print(f"{len(ghosts)} dialogs kept a sample; in {rivals} of them the reward had a choice")
assert counts["obeying samples"] > 0.5 * counts["samples"], "most samples must obey"
assert len(ghosts) >= 320, f"the small runs below need 320 dialogs; got {len(ghosts)}"

# %% [markdown]
# So the choice by reward is nearly idle here. Nearly every sample obeys, and the obeying samples of a prompt are nearly always one and the same text: the instruction and a short fact leave little room for another. Even at temperature 1.3 what differs is mostly what gets dropped.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Steps 3 and 4: the instruction once, the loss on the last answer
# **Say.** For training, $\text{inst}$ is removed from all turns but the first: $[\text{inst} + u_1, a_1, u_2, a_2, \dots, u_n, a_n^\ast]$, with $a_n^\ast$ the sampled answer. Now the earlier answers $a_1 \dots a_{n-1}$ do not obey the instruction. A loss on them would teach exactly what we want to cure. So
#
# $$\mathcal{L} = -\sum_{t \in a_n^\ast} \log p(x_t \mid x_{<t})$$
#
# with EOS counted as part of the answer, and **zero loss on every token of every earlier turn**, answers included.
#
# **Build** ids and mask. `mask[t]` says that token $t$ is a target.


# %% tags=["build"]
def my_example(turns, instruction, sampled, bos, eos):
    """The same -> ids and loss mask; the instruction stands before the first message alone"""
    # Only the last answer is a target, EOS with it.
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
# **See** a real example. The model learns from few of the tokens that it reads: a dialog of any length has one answer as its target. The slider changes the number of turns, the menu what the loss is on.


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
# **Break.** Here are twelve ways to get the example wrong.

# %%
for number, mistake in enumerate(checks.EXAMPLE_MISTAKES, 1):
    print(f"{number:2d}. {mistake}")

# %% [markdown]
# **Predict** for each: would a training run crash, would its loss curve look odd, or would you see nothing until someone talks to the model?

# %%
named = 0
for mistake, wrong in checks.EXAMPLE_MISTAKES.items():
    try:
        checks.training_example(wrong)
    except CheckFailed as failure:
        named += mistake in str(failure)
print(
    f"{named} of {len(checks.EXAMPLE_MISTAKES)} mistakes run without an error; the check names them"
)
assert named == len(checks.EXAMPLE_MISTAKES), "the check must know every mistake"

# %% [markdown]
# None of them crashes. The first should even start at a low loss: the model itself wrote these answers to this very prompt, so there is little left to learn.
#
# Three things must hold exactly, whatever the dialog. They are invariants of the library; the first and the third are checked here on 50 dialogs:
# 1. the teacher's prompt holds the instruction once per turn, the example holds it once in all, and the example's prompt is the plain dialog with the instruction in its first turn;
# 2. changing any earlier *label* leaves the loss as it was, to the last bit (checked on one dialog);
# 3. a dialog of one turn gives the same example as ordinary fine-tuning.

# %% tags=["long", "near=0.05"]
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


print(f"loss of the last answer: {masked_nats(labels):.2f} nats")
print(f"with other labels in the earlier turns: {masked_nats(other):.2f} nats")
changed_last = masked_nats((labels + 1) % tokenizer.vocab_size)
print(f"with other labels in the last answer: {changed_last:.2f} nats")
assert masked_nats(labels) == masked_nats(other) != changed_last, "only the last answer may count"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Where do the earlier answers come from?
# The paper does not say it clearly, and the two possible readings teach different things.
#
# - **Reading A** (ours): $a_1 \dots a_{n-1}$ are those of the plain dialog. They do not obey. The paper speaks of a "mismatch" between the system message and the earlier answers, and of the mask as its cure, which fits A. The only way to get $a_n^\ast$ right is to use turn 1.
# - **Reading B**: all answers are sampled with the instruction, turn after turn. They obey, so there is little mismatch, and the mask hardly matters. But there is a shortcut: copy the style of your own last answer.
#
# The shortcut is invisible in a normal test, in which the model meets its own obedient answers. It shows on a **neutral history**: the model is given a dialog in which no earlier answer obeys, and is asked for the next answer. So obedience below is measured on two histories: the model's *own* history, which a user meets, and a *neutral* history, on which a model can obey only by using turn 1.
#
# Own history is not always the easier one. Obedient answers are longer ("Oakford. That is all!"), so twenty turns of own history take more tokens than the plain ones of reading A: up to about 490 instead of 410. In a trial with training dialogs of at most twenty turns, about one dialog in twenty lost its instruction there in the last turns. So ours have up to 24 turns.
#
# | the user says | reading A | reading B |
# |---|---|---|
# | Always act as Ada. Where does Mara live? | Oakford. *(no loss)* | Ada: Oakford. *(no loss)* |
# | What is the trade of Mara? | A baker. *(no loss)* | Ada: A baker. *(no loss)* |
# | What pet does Mara have? | **Ada: A rabbit.** *(target; only turn 1 tells)* | **Ada: A rabbit.** *(target; the line above tells, too)* |

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same dialog, with Ghost Attention
# **See** the dialog of the beginning again, held by the model after the stage `ghost_attention`.

# %%
faithful = converse(models["GAtt"], tokenizer, [case.requests()])[0]
print_dialog(case, faithful, first=20)

# %%
kept_turns = [lab.obeys(case.instructions, text or "") for text in faithful]
print(f"{sum(kept_turns)} of {len(kept_turns)} answers obey; before GAtt it was {sum(obeyed)}")
assert sum(kept_turns[3:]) >= 14, (
    f"most of answers 4 to 20 must obey; {sum(kept_turns[3:])} of 17 did"
)

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
# The paper does not say how many dialogs these were, so how sure is "100 %"? With $k$ successes of $n$, **Clopper and Pearson**'s lower bound is the smallest share $p$ under which $k$ or more successes still have a probability of 2.5 %. For $k = n$ it solves $p^n = 0.025$: ten successes of ten leave every share above 69 % possible.
#
# **Build** the bound for $k = n$, and compare.


# %% tags=["build"]
def lower_bound(n):
    """n successes of n -> lower end of the exact 95 % interval"""
    return 0.025 ** (1 / n)


@check("bound of a perfect score")
def _():
    for n in (1, 10, 120):
        assert math.isclose(lower_bound(n), lab.proportion_exact(n, n).low, rel_tol=1e-6)


for n in (10, 50, 200):
    print(f"{n} of {n} dialogs: at least {lower_bound(n):.1%}")

# %% [markdown]
# **Predict**: from which turn on has the model before GAtt forgotten, and does the model with GAtt keep the instruction for twenty turns on both histories? Here is what we declared before we measured.

# %%
show_prediction(31)

# %% [markdown]
# **Measure**, live: 60 new dialogs with one instruction each, on neutral history at turns 1, 2, 4, 6, 10 and 20; 30 of them on the model's own history, all turns. Both models are asked. It takes about 30 seconds. A bracket is the exact 95 % interval.


# %% tags=["near=6"]
def percent(share):
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


TURNS = (1, 2, 4, 6, 10, 20)
panel = cases(world, 9, 60)
found = {}
for name, model in bar(list(models.items()), about="talking"):
    found[name, "neutral"] = on_neutral_history(model, tokenizer, panel, TURNS)
    found[name, "own"] = on_own_history(model, tokenizer, panel[:30])
print("share that obeys at turns", *TURNS)
for (name, history), marks in found.items():
    row = "  ".join(f"{marks.obedience(turn).value:4.0%}" for turn in TURNS)
    print(f"{name:8s} {history:8s} {row}   turn 20: {percent(marks.obedience(20))}")
for history in ("neutral", "own"):
    old, new = found["before", history], found["GAtt", history]
    assert old.obedience(1).value > 0.8, f"{history}: before GAtt it must obey at once"
    assert old.obedience(20).high < 0.3, f"{history}: before GAtt it must have forgotten at turn 20"
    for t in TURNS[2:]:
        assert new.obedience(t).low > old.obedience(t).high, f"{history}, turn {t}: GAtt not above"

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=4"]
PAPER = {"before": {2: 1.0, 4: 0.1, 6: 0.0, 20: 0.0}, "GAtt": {2: 1.0, 4: 1.0, 6: 1.0, 20: 1.0}}


def at_turns(figure, turns=TURNS):
    figure.axes[0].set_xticks(turns, [str(turn) for turn in turns])
    return figure


def draw_obedience(history):
    series = {}
    for name in models:
        marks = found[name, history]
        own = [marks.obedience(turn) for turn in TURNS]
        series[f"{name}{' (taught to forget)' * (name == 'before')}, ours"] = (
            TURNS, [e.value for e in own], [e.low for e in own], [e.high for e in own],
        )  # fmt: skip
        series[f"{name}, paper"] = (list(PAPER[name]), list(PAPER[name].values()))
    return at_turns(
        lab.lines(
            series, "turn of the dialog", "share that obeys", markers=True,
            title=f"{history} history",
        )
    )  # fmt: skip


def obedience_words(history):
    kept_at = {
        (name, t): found[name, history].obedience(t).value for name in models for t in (4, 20)
    }
    return (
        f"On {history} history {kept_at['before', 4]:.0%} obey at turn 4 before GAtt, which was taught to "
        f"forget, and {kept_at['GAtt', 4]:.0%} with it; at turn 20 {kept_at['before', 20]:.0%} and "
        f"{kept_at['GAtt', 20]:.0%}. The paper does not say which history its table has."
    )


show(draw_obedience("neutral"), alt=obedience_words("neutral"))
show(draw_obedience("own"), alt=obedience_words("own"))


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
# The live dialogs are few and of one seed. The verdict comes from the ledger: three seeds, each with its own dialogs, instructions and samples, 120 dialogs for each turn and history. That takes too long for a notebook; `llama2 claims 31` measures it anew.

# %%
keeping = show_claim(31)

# %% [markdown]
# The cure works here as in the paper: with GAtt nearly every dialog keeps its instruction to turn 20, on both histories, and right answers did not fall. The live dialogs of the released model above agree with the record. That nothing is kept before GAtt was our premise and counts for nothing.

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### And are the answers still right?
# A model that says "Ada: " before nonsense obeys. **Measure** how many of the same answers name the right fact, whether they obey or not.

# %% tags=["near=6"]
print("share of right answers at turns", *TURNS)
for (name, history), marks in found.items():
    row = "  ".join(f"{marks.correctness(turn).value:4.0%}" for turn in TURNS)
    print(f"{name:8s} {history:8s} {row}   turn 20: {percent(marks.correctness(20))}")
    mean_right = np.mean([marks.correctness(turn).value for turn in TURNS[1:]])
    assert mean_right > 0.7, f"{name}, {history}: most answers must be right; {mean_right:.0%} are"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 32: take the mask away
# **Say.** The paper says that the mask is needed and shows no run without it. **Break** it here: take the forgetful model and 320 of the stage's own training dialogs (reading A), and train three times for one epoch; the runs differ only in what the loss is on. **Predict**: which run ends with the lowest training loss? Which one keeps the instruction?

# %%
show_prediction(32)

# %% [markdown]
# The three runs take about 30 seconds.


# %% tags=["long", "near=0.03"]
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
for loss, (_, losses) in trained.items():
    print(
        f"loss on {loss:20s} mean of the last five steps {np.mean(losses[-5:]):.2f} nats per target"
    )

# %% tags=["near=15"]
short = {
    loss: on_neutral_history(model, tokenizer, panel[:40], (2, 6, 20))
    for loss, (model, _) in trained.items()
}
for loss, marks in short.items():
    row = "  ".join(f"turn {t}: {percent(marks.obedience(t)):16s}" for t in (2, 6, 20))
    print(f"loss on {loss:20s} {row}")
mean = {
    loss: np.mean([marks.obedience(t).value for t in (2, 6, 20)]) for loss, marks in short.items()
}
masked, unmasked = mean["last answer (GAtt)"], max(mean["all answers"], mean["all tokens"])
assert masked > unmasked, (
    f"the mask must keep more; it kept {masked:.0%} and without {unmasked:.0%}"
)

# %% [markdown]
# The losses of the three runs cannot be compared: each is a mean over other targets. A low loss without the mask says that plain answers are easy to predict, not that the instruction is kept.
#
# The ledger holds the stage itself, at full length, with three seeds, and two more variants that are only shown: training dialogs of at most six turns, asked at turn 20, and reading B.

# %%
masking = show_claim(32)

# %% [markdown]
# Without the mask nearly everything is forgotten, as the paper says, if the earlier answers do not obey (reading A); the small runs on the released model show the same. We measured no run of reading B without the mask.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
ARMS = ("all answers", "no mask", "short dialogs", "reading B")


def draw_arms(history):
    own = [masking.verdict.estimates[f"{arm}, {history} history, turn 20"] for arm in ARMS]
    kept = keeping.verdict.estimates[f"GAtt, {history} history, turn 20"]
    rows = [kept, *own]
    return lab.bars_with_intervals(
        ["GAtt", *ARMS], [e.value for e in rows], [e.low for e in rows], [e.high for e in rows],
        "share that obeys at turn 20", title=f"recorded runs, {history} history",
    )  # fmt: skip


def arms_words(history):
    shares = {arm: masking.verdict.estimates[f"{arm}, {history} history, turn 20"] for arm in ARMS}
    shares |= {"GAtt": keeping.verdict.estimates[f"GAtt, {history} history, turn 20"]}
    return f"Recorded runs, {history} history, share that obeys at turn 20: " + "; ".join(
        f"{arm} {percent(share)}" for arm, share in shares.items()
    )


show(draw_arms("neutral"), alt=arms_words("neutral"))
show(draw_arms("own"), alt=arms_words("own"))

# %% [markdown]
# Short training dialogs do not reach turn 20: what was never trained at a distance is not kept there. Reading B passes on its own history and fails in more than half of the dialogs on a neutral one. That is what the shortcut would give: a model that copies the style of its last answer.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the new skill costs
# **Say.** The three small runs above saw nothing but dialogs with instructions, and a model forgets what it no longer practises. So the stages `instructed` and `ghost_attention` **rehearse**, that is, they mix in other examples: new prompts with **V5's own answers**, which do not change what V5 does; **documents of pretraining**, for facts that no dialog asks about; and demonstrations, most of them of look-alikes, harmless requests that V5 wrongly declines. GAtt also rehearses short dialogs of the stage `instructed`. The paper does not say what else is in its mixture.
#
# **Predict**, then **measure**: how helpful and how safe are V5, the stage's model, and the small run with the right mask? The marks are those of the gold judges, from 0 to 1, on 120 held-out prompts each. It takes about 15 seconds.

# %% tags=["near=0.05"]
panel_of = {
    "helpfulness": list(lab.helpful_prompts(world, 12, 120, split="held out")),
    "safety": list(lab.adversarial_prompts(world, 12, 120, split="held out")),
}
policies = {
    "V5": lab.load_model(folders["ppo"])[0].eval(),
    "GAtt": models["GAtt"],
    "GAtt, nothing rehearsed": trained["last answer (GAtt)"][0],
}
qualities, each = {}, {}
for name, policy in bar(list(policies.items()), about="asking"):
    for quality, some in panel_of.items():
        marks = getattr(lab.marks_of(policy, tokenizer, world, some, seed=2), quality)
        each[name, quality] = marks
        qualities[name, quality] = lab.bootstrap_mean(marks.tolist(), 0)
for quality in panel_of:
    change = each["GAtt", quality] - each["V5", quality]
    qualities["GAtt minus V5", quality] = lab.bootstrap_mean(change.tolist(), 0)
for (name, quality), mark in qualities.items():
    print(f"{name:26s} {quality:12s} {mark.value:.2f} [{mark.low:.2f}, {mark.high:.2f}]")
rehearsed, alone = (
    sum(qualities[name, quality].value for quality in panel_of)
    for name in ("GAtt", "GAtt, nothing rehearsed")
)
assert alone < rehearsed - 0.2, f"without rehearsal much must be lost; {alone:.2f}, {rehearsed:.2f}"

# %% [markdown]
# Without rehearsal much is lost. Rehearsal saves most of it, not all: on the same prompts the released model is a little less helpful and less safe than V5, and both intervals exclude zero. Two stages lie between them, `instructed` and GAtt, and we did not measure which one costs how much. A test of obedience alone would have called the small run a success. `docs/log.md` has a table of what was tried.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 33: instructions it never trained on
# **Say** (figure 28). The paper's model kept constraints that were not in GAtt's data: answer in haiku, in one sentence. We test held-out values of known kinds (another figure, another language), and two kinds held out altogether. The stage `instructed` taught what they *mean*, the two kinds in dialogs of one or two turns only, and GAtt rehearses such short dialogs. What is new is *keeping* them. **Predict**: how many of each are kept at turns 6 and 20?

# %%
show_prediction(33)

# %% [markdown]
# **Measure**, live: 60 dialogs for each row, on neutral history.

# %% tags=["near=3"]
SPLITS = {"trained": "train", "other values": "held-out values", "other kinds": "held-out kinds"}
zero_shot = {
    (name, label): on_neutral_history(
        model, tokenizer, cases(world, 10, 60, split=split), (2, 6, 20)
    )
    for name, model in bar(list(models.items()), about="asking")
    for label, split in SPLITS.items()
}
print(f"{'share that obeys at turn':24s} {'2':18s} {'6':18s} {'20':18s}")
for (name, label), marks in zero_shot.items():
    row = " ".join(f"{percent(marks.obedience(t)):18s}" for t in (2, 6, 20))
    print(f"{name:8s} {label:15s} {row}")
kept_trained = zero_shot["GAtt", "trained"].obedience(20).value
assert kept_trained > 0.7, f"trained instructions must be kept at turn 20; {kept_trained:.0%} are"


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=2"]
def draw_zero_shot():
    series = {}
    for (name, label), marks in zero_shot.items():
        own = [marks.obedience(t) for t in (2, 6, 20)]
        band = [[e.low for e in own], [e.high for e in own]] if name == "GAtt" else []
        series[f"{name}, {label}"] = ((2, 6, 20), [e.value for e in own], *band)
    figure = lab.lines(
        series, "turn of the dialog", "share that obeys", markers=True, title="neutral history"
    )
    return at_turns(figure, (2, 6, 20))


at_20 = {key: f"{marks.obedience(20).value:.0%}" for key, marks in zero_shot.items()}
show(
    draw_zero_shot(),
    alt="Obedience after plain answers. At turn 20, with GAtt: "
    + ", ".join(f"{label} {at_20['GAtt', label]}" for label in SPLITS)
    + "; before: " + ", ".join(f"{label} {at_20['before', label]}" for label in SPLITS) + ".",
)  # fmt: skip

# %%
_ = show_claim(33)

# %% [markdown]
# Read this verdict with care. Held-out *values* are mostly kept, in the record and by the released model. Held-out *kinds* are not: the rule asked only for more than before GAtt, and the record met it with one dialog in thirteen at turn 6 and one in seventy at turn 20. The released model above keeps none, so for kinds the prediction failed live. The paper shows new kinds of constraints that hold; that we do not see. Our model learned to keep the kinds that it trained on.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 34: who looks back?
# **Say** (figure 10). The paper draws the **maximum attention** over the whole network, with neighbouring tokens put together. Here it is, for each position, the largest weight that any head of any layer gives to the tokens of the instruction. In the paper's picture the columns of the system message stay bright for much more of the dialog with GAtt.
#
# **Build** it for one layer. `weights` has shape (heads, queries, keys); `keys` is the range of positions of the instruction.


# %% tags=["build"]
def my_maximum(weights, keys):
    """weights (layers, heads, queries, keys), keys a slice -> for each head the largest over layers and queries..."""
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
# **Predict**: does a model that keeps the instruction look at it more? And what does the forgetful model do at turn 20, where it obeys no longer?

# %%
show_prediction(34)

# %% [markdown]
# **Measure** on twelve dialogs with plain answers, the same for both models. For each turn we take the mean over the positions that *write* the answer. A token is written at the position before it, so the range begins one position earlier.

# %% tags=["near=0.02"]
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
higher = lab.paired_difference(
    attended["GAtt"][:, 1:].mean(axis=1), attended["before"][:, 1:].mean(axis=1), (-1, 1)
).estimate
print(f"turns 2 to 20, GAtt minus before: {higher.value:.2f} [{higher.low:.2f}, {higher.high:.2f}]")
assert higher.value > 0, f"GAtt must attend more after turn 1; the difference is {higher.value:.2f}"

# %%
looking = show_claim(34)
for turn in (6, 20):
    weight = looking.verdict.estimates[f"maximum attention, before, turn {turn}"]
    share = keeping.verdict.estimates[f"before, neutral history, turn {turn}"]
    print(f"recorded, before GAtt, turn {turn}: weight {weight.value:.2f}, {percent(share)} obey")

# %% [markdown]
# With GAtt the instruction gets more attention from turn 2 on, live and in the record, in the direction of the paper's picture; the paper gives no number to compare with.


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
        image = axis.imshow(largest[None], aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        axis.set_yticks([])
        lab.label_axes(axis, "position (tokens)", name, lab.worded(c.instructions))
    figure.colorbar(image, ax=axes, label="largest weight\non the instruction")
    return figure


def attention_words(dialog, what):
    return f"Dialog {dialog}, maximum attention to the instruction {what}, before and with GAtt."


show(
    draw_attention(0, "by turn"),
    alt="Maximum attention to the instruction by turn, for one dialog, before and with GAtt.",
)
show(
    draw_attention(0, "by position"),
    alt="The same dialog by position, as in the paper's figure 10: brighter columns are more attention.",
)
Explorer(
    draw_attention,
    attention_words,
    dialog=ipywidgets.IntSlider(0, 0, 11),
    what=["by position", "by turn"],
)

# %% [markdown]
# Read such pictures with care. A large weight shows that a head *could* read the instruction, not that the answer depends on it; and a model may also carry an instruction forward through later positions without looking back. Here the picture agrees with the counts, live and in the record: the weight of the forgetful model falls to nearly nothing where it obeys no longer. In runs of an earlier recipe it did not: there the weight of the forgetful model was larger at turn 20 than at turn 6, and still no answer obeyed. So the picture alone proves little.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What if the instruction changes?
# **Say.** The paper calls its GAtt "vanilla": for example, it does not teach a model that the system message may change during a dialog. **Predict**: the user says "act as Ada" at turn 1 and "act as Hugo" at turn 5. Who answers at turn 5? At turn 6? We hold 40 such dialogs, with instructions of all four kinds.

# %% tags=["near=5"]
changed = switched(models["GAtt"], tokenizer, world, at=5, n=40, n_turns=8, seed=4)
for turn in range(1, 9):
    old, new = (percent(marks.obedience(turn)) for marks in (changed.old, changed.new))
    print(f"turn {turn}:  old instruction {old:18s} new instruction {new}")
assert changed.old.obedience(4).value > 0.7, "before the switch the old instruction must be kept"
assert changed.new.obedience(4).value < 0.1, "before the switch nobody can obey the new one"

# %% [markdown]
# The released model does not follow the user. At turn 5, whose message holds the new instruction, about half of the answers obey each; after that the old one wins in most dialogs. GAtt trained the model to look back at the first turn, and never showed it a change.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# Shares at turn 20 are on neutral history unless said otherwise. The ledger has three seeds, those of claim 32 of an earlier recipe; "live" is the one released chain, in this notebook. Brackets hold 95 %.
#
# | claim | paper | ledger | live | verdict of the ledger |
# |---|---|---|---|---|
# | 31, kept for 20 turns | table 30, turns 2, 4, 6, 20: 100, 10, 0, 0 % before; 100 % with GAtt | turn 20: before 0 % [0, 1.0]; GAtt 100 % [99.0, 100], own history 99.7 % [98.5, 100]; right answers, GAtt minus before, 0.0 points [-0.3, 0.3] | turn 20: before 0 % [0, 6]; GAtt 100 % [94, 100], own history 100 % [88, 100] | reproduced |
# | 32, the mask | asserted | turn 20, loss on all answers: 8.3 % [4.7, 13.4]; on all tokens: 5.0 % [2.3, 9.3] | small runs, turn 20: with the mask 85 % [70, 94], without 0 % [0, 9] | reproduced |
# | 33, other instructions | examples that hold (figure 28) | turn 20: values 96 % [95, 98]; kinds 1.4 % [0.7, 2.5]; before 0 % [0, 0.5] | turn 20: values 90 % [79, 96]; kinds 0 % [0, 6] | reproduced by the rule; live, kinds are not kept |
# | 34, attention | figure 10, one dialog | turns 2 to 20, GAtt minus before: 0.25 [0.22, 0.28] | 0.24 [0.22, 0.26] | reproduced |
#
# - **The premise.** Our base model forgets after two turns because it was taught to. The paper's forgot by itself. Its decay is not reproduced, it is built in.
# - **Help.** A program drops samples that disobey. Our instructions show in a word, and a dialog of twenty turns has at most about 490 tokens; the paper tests up to 4,048 (its number).
# - **When.** The paper applied GAtt after RLHF V3; we do after V5.
# - **Where.** Our instruction is plain text before the user's words, not a system message.
# - **Not stated in the paper**, so ours: reading A, learning rate, size of the data, what is rehearsed beside it (short dialogs with every kind of instruction among it), how many turns the dialogs have, how many samples are drawn, and that a teacher whose prompt does not fit answers without the first turns.
# - **Not measured**: people's judgement; personas that show in content rather than in form.
#
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# Half of the instructions are made terse. Write `terse(kind, value)`: "figure", "Ada" becomes `Figure: Ada`. Only the name of the kind "ending" is shortened as well: `End: Thank you!`.
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
# - Ghost Attention is a form of context distillation. What is distilled, and what is left in the prompt?
# - Under reading B the mask hardly matters. Does that make B the better reading? What would you ask the authors?
# - The base model was taught to forget. How would you build one that forgets by itself?
# - Samples that disobey were dropped by a program. What would a reward model have to see in training to do that job, and how could a policy fool it?
# - In this world every instruction shows in a word. How would you count obedience to "be kind", and how many people would you need?
# - A user asks at turn 7 to ignore the instruction of turn 1. Who should win? What would you train for it?
#
# ## Next
# `10_safety`: the same trick again: the teacher reads a text that the trained model does not. There it serves to make answers safe.
