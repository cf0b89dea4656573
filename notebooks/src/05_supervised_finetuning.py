# %% [markdown] slideshow={"slide_type": "slide"}
# # Supervised fine-tuning
# The pretrained model continues a text; it does not answer. **Supervised fine-tuning** (SFT) shows it dialogs with good answers and trains it to write the answers.
# The loss is the one you know; what is new is *which tokens it counts*. You build the mask, the loss, the rows and the training, turn a model that continues texts into one that answers questions,
# and measure three of the paper's claims. Two of them do not come out as the paper says, and you find out why.
#
# - **You will be able to explain** the chat format token by token, the loss mask and what its usual mistakes do to a model, why a step's loss is divided by its target tokens, how whole dialogs are packed and kept apart,
#   and what quality, quantity and the number of steps each contribute.
# - **Prerequisites:** notebooks 01 and 04. **Paper sections:** 3.1 with table 5, 5.1.
# - **Minutes:** 70 to read, 40 for the exercises, 2 to run on two cores. The models are those of the released chain.

# %% tags=["long"]
import copy
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from llama2_lib import lesson as lab
from llama2_lib.claims.finetuning import compared, demonstrated, mark, pooled
from llama2_lib.teaching import sft as checks
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.training.batches import PackedDialogs, check_example, first_fit, isolate, shorten
from llama2_lib.widgets import Explorer, bar, show, show_claim, show_prediction

folders = start("05_supervised_finetuning", needs=["pretrain", "sft"], recipe=lab.nano(), minutes=7)
base, config = lab.load_model(folders["pretrain"])
chat, _ = lab.load_model(folders["sft"])
tokenizer = lab.load_tokenizer(folders["sft"])
world = lab.make_world(0)
judge = lab.judge_of(world)


def of(share):
    """A share, as counts with its interval"""
    return f"{share.value * share.n:.0f} of {share.n} ({100 * share.low:.0f} to {100 * share.high:.0f} %)"


# %% [markdown]
# **See** what becomes of a dialog on its way into the model. Blue boxes are trained.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "dialog": lab.Node(0, 0, "system, user, assistant", "data"),
            "ids and mask": lab.Node(1, 0, "targets: the answers alone", "data"),
            "rows": lab.Node(2, 0, "whole dialogs, packed", "data"),
            "chat model": lab.Node(1, 1, "SFT", "trained"),
            "pretrained model": lab.Node(2, 1, "reads the rows", "trained"),
        },
        [
            ("dialog", "ids and mask", "chat format"),
            ("ids and mask", "rows", ""),
            ("rows", "pretrained model", "loss on targets"),
            ("pretrained model", "chat model", "two epochs"),
        ],
    ),
    alt="A dialog becomes ids with a mask, dialogs are packed into rows, and on these the pretrained model becomes a chat model.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From continuing to answering
# **Say** (section 3.1). A pretrained model knows things, but it has only ever continued documents. When a chat asks it something, it does the same: it continues, with a bit of a story, or with nonsense.
#
# **See** the same questions put to nano before and after fine-tuning. Neither model was trained on these dialogs; their wordings are held out. Before you run it: in what way will the first model fail? Will it be silent, be wrong, or be off the point?
#
# The marks come from the **gold judge**, a program that knows the world's truth. Its score of **helpfulness** is a weighted mean of six marks between 0 and 1: correctness (0.30), politeness (0.20), relevance (0.15), completeness (0.15), brevity (0.10) and no repetition (0.10). No model is ever trained on it directly; here it is our measuring rod. Mind the weights: a polite, short sentence on the subject keeps up to 0.70 even if what it says is false. So the score alone does not tell whether a model is right, and we often look at correctness by itself.

# %%
first = list(lab.helpful_prompts(world, 5, 8, "held out", shares={"question": 1.0}, multi_turn=0.0))
before, after = (lab.reply(m, tokenizer, [p.dialog for p in first]) for m in (base, chat))
for prompt, old, new in list(zip(first, before, after, strict=True))[:4]:
    print("user:        ", prompt.request)
    print("  pretrained:", old.text.replace("\n", " / ")[:90])
    print("  fine-tuned:", new.text)

# %%
right = {
    name: sum(
        judge.helpfulness(p, a.text).correctness == 1 for p, a in zip(first, said, strict=True)
    )
    for name, said in (("pretrained", before), ("fine-tuned", after))
}
for name, n in right.items():
    print(f"{name}: right answers {of(lab.proportion(n, len(first)))}")
assert right["pretrained"] < 4 < right["fine-tuned"], f"fine-tuning must help; got {right}"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Demonstrations
# **Say.** A **demonstration** is a dialog whose answers show what is wanted. In the paper people wrote them, prompt and answer both (table 5 shows one on helpfulness and one on safety). The authors stopped at **27,540**.
# Here the world's own writers, who know every fact, write 4,000. One dialog in ten asks for something harmful; a careful writer declines, says why, and offers something else.
#
# Half of the dialogs have a **careless** writer. More than half of that writer's answers (55 %) have a flaw: wrong, curt, rambling, off the topic, said twice, or rude. Three in ten of the careless answers to harmful requests give help. That is on purpose. The paper's annotators varied too, and its section 5.1 says what follows: a fine-tuned model learns the poor tail with the rest. What RLHF does about it is the subject of notebooks 06 to 08.
#
# **See** three of them in the format of notebook 01: `<s>` and `</s>` stand for the control tokens BOS and EOS, which begin and end each turn. Which one has the careless writer?

# %%
dialogs = lab.training_dialogs(lab.nano().sft, 0)
for index in (16, 18, 20):
    print(lab.render(dialogs[index]), "\n")
turns = [sum(m["role"] == "assistant" for m in dialog) for dialog in dialogs]
print(f"{len(dialogs):,} dialogs, {sum(turns):,} answers, up to {max(turns)} in a dialog")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loss mask
# **Say** (section 3.1). The paper sets the loss to zero on the tokens of the user's prompt: only answers are learned. So each token carries a mark: is it a **target**?
#
# Convention, here and in the library: `mask[t]` says that token `t` **is to be predicted**. Its loss is computed from the logits of position `t - 1`. Many mistakes come from mixing these two up.
#
# What exactly belongs to the answer?
# - the pieces of the answer, **and EOS**: a model that never learns to write EOS never stops;
# - in Meta's format, the space before EOS too, or the model would never get to the place where it should stop;
# - not BOS, not `[INST]`, not `[/INST]`, no word of the user, no word of the system message.
#
# In a dialog of several turns every answer is a target. (Ghost Attention, notebook 09, keeps only the last.)
#
# **Build.** A turn is a pair of lists of ids: prompt (with its tags) and answer.


# %% tags=["build", "long"]
def my_mask(turns, bos, eos):
    """[(prompt ids, answer ids), ...] -> ids, and for each of them: is it a target?"""
    ids, mask = [], []
    for prompt, said in turns:
        ids += [bos, *prompt, *said, eos]
        mask += [False] * (1 + len(prompt)) + [True] * (len(said) + 1)
    return ids, mask


def my_turns(dialog):
    """A finished dialog -> its turns, as lists of ids, in Meta's format"""
    texts = [message["content"].strip() for message in dialog]
    if dialog[0]["role"] == "system":
        texts[:2] = [f"<<SYS>>\n{texts[0]}\n<</SYS>>\n\n{texts[1]}"]
    turns = []
    for user, assistant in zip(texts[0::2], texts[1::2], strict=True):
        prompt = tokenizer.encode(f"[INST] {user} [/INST]")
        whole = tokenizer.encode(f"[INST] {user} [/INST] {assistant} ")
        turns.append((prompt, whole[len(prompt) :]))
    return turns


@check("loss mask")
def _():
    checks.loss_mask(my_mask)


@check("the library's ids and masks, for 300 dialogs")
def _():
    for dialog in dialogs[:300]:
        mine = my_mask(my_turns(dialog), tokenizer.bos_id, tokenizer.eos_id)
        assert mine == lab.encode_example(dialog, tokenizer), (
            f"they differ for {lab.render(dialog)}"
        )


# %% [markdown]
# **See** it: one box per token. Filled boxes are learned, pale ones are only read. `▁` is the tokenizer's sign for a space. Move through the dialogs, then choose a wrong mask and look for what is wrong before you read the sentence.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
NAMES = {tokenizer.bos_id: "BOS", tokenizer.eos_id: "EOS"}
SHOWN = [20, 15, 44, 22, 11]


def marked(turns, which):
    """One way to mark the tokens of turns, right or wrong"""
    ids, mask = my_mask(turns, tokenizer.bos_id, tokenizer.eos_id)
    if which == "everything":
        mask = [True] * len(mask)
    elif which == "without EOS":
        mask = [m and i != tokenizer.eos_id for m, i in zip(mask, ids, strict=True)]
    elif which == "one too early":
        mask = [*mask[1:], False]
    elif which == "last answer only":
        cut = len(mask) - len(turns[-1][1]) - 1
        mask = [m and t >= cut for t, m in enumerate(mask)]
    return ids, mask


WHAT = {
    "right": "answers, each with its space and EOS, are learned",
    "everything": "the user's words are learned too: the model learns to ask",
    "without EOS": "EOS is left out: the model will not learn to stop",
    "one too early": "the last token of each prompt is learned, and EOS is not: inputs were marked in place of targets",
    "last answer only": "earlier answers are read only, which wastes them here",
}


def draw_mask(dialog, mask):
    ids, targets = marked(my_turns(dialogs[SHOWN[dialog]]), mask)
    names = [NAMES.get(i, tokenizer.piece(i)) for i in ids]
    return lab.masked_pieces(names[:150], targets[:150], title=f"dialog {dialog}, mask: {mask}")


def mask_words(dialog, mask):
    ids, targets = marked(my_turns(dialogs[SHOWN[dialog]]), mask)
    return f"Dialog {dialog}, {sum(targets)} of {len(ids)} tokens marked: {WHAT[mask]}."


show(draw_mask(0, "right"), alt=mask_words(0, "right"))
Explorer(draw_mask, mask_words, dialog=list(range(len(SHOWN))), mask=list(WHAT))

# %% [markdown]
# **Break.** Give three of these masks to the check. Predict each message. A harder question: which of them would you notice in the loss curve?
# <details><summary>Answer</summary>None. Each gives a smooth curve that falls. Only what the model says shows the fault; you will train one of them below.</details>


# %%
def shifted(turns, bos, eos):
    ids, mask = my_mask(turns, bos, eos)
    return ids, [*mask[1:], False]


for wrong in (
    shifted,
    lambda turns, bos, eos: (my_mask(turns, bos, eos)[0], [True] * len(my_mask(turns, bos, eos)[0])),
    lambda turns, bos, eos: (
        my_mask(turns, bos, eos)[0],
        [m and i != eos for i, m in zip(*my_mask(turns, bos, eos), strict=True)],
    ),
):  # fmt: skip
    with expect_failure(CheckFailed):
        checks.loss_mask(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### Who owns the space?
# When the model is asked, it gets the ids of the prompt alone. In training it saw prompt and answer encoded together. The two must agree: **the ids of the prompt must be a prefix of the ids of the whole.**
#
# **Break.** End the prompt with a space, as one would when joining strings: `"[INST] Hello! [/INST] "`. How many of its ids does the whole still begin with?
# <details><summary>What follows</summary>All but the last: it is no prefix any more. The space is the beginning of the answer's first piece, and a prompt with its own space asks the model to continue after a token that it never saw there. Nothing fails; the answers only get worse. So the answer owns the space, and `lab.encode_example` refuses a tokenizer for which the prefix rule does not hold.</details>

# %%
whole = tokenizer.encode("[INST] Hello! [/INST] Hello! How can I help you? ")
for prompt in ("[INST] Hello! [/INST]", "[INST] Hello! [/INST] "):
    ids = tokenizer.encode(prompt)
    same = sum(ids[:k] == whole[:k] for k in range(1, len(ids) + 1))
    print(f"{prompt!r:27} ends with {tokenizer.piece(ids[-1])!r:8}", end="")
    print(f"the whole begins with {same} of its {len(ids)} ids")
ids = tokenizer.encode("[INST] Hello! [/INST]")
print("the whole continues with", repr(tokenizer.piece(whole[len(ids)])))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loss on answers
# **Say.** With marks $m_t \in \{0, 1\}$:
#
# $$L = -\frac{\sum_t m_t \log p(x_t \mid x_{<t})}{\sum_t m_t}$$
#
# The sum runs over targets, and so does the divisor. With all $m_t = 1$ it is the loss of pretraining.
#
# **Build.** `logits[:, t]` predicts `ids[:, t + 1]`: the mask is shifted together with the targets.


# %% tags=["build"]
def my_masked_loss(logits, ids, mask):
    """logits (b, s, vocab), ids and mask (b, s + 1) -> nats per target"""
    nats = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return nats[mask[:, 1:]].mean()


@check("loss on answers")
def _():
    checks.masked_loss(my_masked_loss)


# %% [markdown]
# **Break** it in three ways: forget that shift; divide by all tokens; take the mean of the rows' means. Predict the messages.


# %%
def mean_of_rows(logits, ids, mask):
    rows = zip(logits.split(1), ids.split(1), mask.split(1), strict=True)
    return torch.stack([my_masked_loss(*row) for row in rows]).mean()


for wrong in (
    lambda logits, ids, mask: my_masked_loss(logits, ids, mask.roll(1, dims=1)),
    lambda logits, ids, mask: my_masked_loss(logits, ids, mask) * mask.sum() / mask[:, 1:].numel(),
    mean_of_rows,
):
    with expect_failure(CheckFailed):
        checks.masked_loss(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **See** what reaches the model: the derivative of the loss with respect to the logits, position by position, for the dialog above. Where a word of the user is predicted it is exactly zero. Where a target is predicted, the largest derivative is that of the right token's own logit, $(p - 1) / n$, with $n$ targets and the probability $p$ that the model gives the token. The pretrained model gives most of these tokens next to nothing, so most bars have the height $1 / n$. The exception is the food: after "Bram likes" the model is back in a sentence of its documents, and knows how it ends.
#
# Does the prompt then teach nothing? Think before you run: is the gradient of the *embedding* of a token that occurs only in the prompt zero as well?
# <details><summary>Answer</summary>No. The prompt is not *predicted*, but it is *read*: its gradient comes through attention, from the answers. The model learns what a question means for its answer; it does not learn to ask.</details>


# %% tags=["hide-input", "long", "near=0.001"]
def gradients(dialog, which):
    ids, mask = marked(my_turns(dialog), which)
    x, m = torch.tensor([ids]), torch.tensor([mask])
    m[:, 0] = False  # nothing comes before the first
    model = copy.deepcopy(base)
    logits = model(x[:, :-1])
    logits.retain_grad()
    my_masked_loss(logits, x, m).backward()
    return logits.grad[0].abs().amax(-1), m[0, 1:], model.tok_embeddings.weight.grad


def draw_gradients(mask):
    size, targets, _ = gradients(dialogs[SHOWN[0]], mask)
    ids, _ = marked(my_turns(dialogs[SHOWN[0]]), mask)
    names = [NAMES.get(i, tokenizer.piece(i)) for i in ids[1:]]
    figure, axes = lab.new_figure(9.0, 3.6)
    axes.bar(range(len(size)), size, color=lab.LEARNED, edgecolor="0.4")
    axes.set_xticks(range(len(size)), names, rotation=90, size=9)
    axes.axhline(1 / int(targets.sum()), color="0.35", linestyle="--", label="1 / targets")
    axes.legend(loc="upper left")
    lab.label_axes(axes, "token that is predicted", "largest |dL / dlogit|", f"mask: {mask}")
    return figure


def gradient_words(mask):
    size, targets, _ = gradients(dialogs[SHOWN[0]], mask)
    return f"Mask {mask}: {int((size > 0).sum())} of {len(size)} positions get a gradient, {int(targets.sum())} are marked."


show(draw_gradients("right"), alt=gradient_words("right"))
size, targets, embedding = gradients(dialogs[SHOWN[0]], "right")
inst = tokenizer.encode("[INST]")[-1]
at_prompt, at_answer = float(size[~targets].max()), float(size[targets].min())
assert at_prompt == 0 < at_answer, "only answers may get a gradient"
print(f"largest gradient where a prompt is predicted:   {at_prompt:g}")
print(f"smallest gradient where an answer is predicted: {at_answer:.4f}")
print(
    f"largest gradient of the embedding of {tokenizer.piece(inst)!r}: {embedding[inst].abs().max():.1f}"
)
Explorer(draw_gradients, gradient_words, mask=list(WHAT))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Guards
# **Say.** Two masks are always mistakes, and both arise easily: the empty one (a long prompt was cut off before its answer began), and the full one (a wrong separator, so that no prompt was found). The first divides zero by zero. The second trains silently on the wrong thing. A library must refuse both.
#
# **Break** it first: what does an empty mask give? Then **build** the guard, and **use** the library's. One `nan` in a gradient makes every weight `nan`, so a message that names the example is better.


# %% tags=["build"]
def my_guard(ids, mask):
    """Refuse, with a ValueError, an example that teaches nothing or the wrong thing"""
    if len(ids) != len(mask):
        raise ValueError(f"{len(ids)} ids and {len(mask)} marks")
    if not any(mask):
        raise ValueError("no token is a target: was the answer cut off?")
    if all(mask) or mask[0]:
        raise ValueError("a prompt, or a first token, is a target")


@check("guard")
def _():
    my_guard([1, 5, 6, 2], [False, False, True, True])  # a good one passes
    for mask in ([False] * 4, [True] * 4, [True, False, False, True], [False, True]):
        try:
            my_guard([1, 5, 6, 2], mask)
        except ValueError:
            continue
        raise CheckFailed(f"this mask must be refused: {mask}")


nothing = my_masked_loss(torch.zeros(1, 4, 9), torch.ones(1, 5).long(), torch.zeros(1, 5).bool())
print("loss of an empty mask:", nothing.item())
for mask in ([False] * 4, [True] * 4):
    with expect_failure(ValueError):
        check_example(([1, 5, 6, 2], mask), index=17)
with expect_failure(ValueError):
    lab.masked_loss(torch.zeros(1, 4, 9), torch.ones(1, 5).long(), torch.zeros(1, 5).bool())

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One step, many micro-batches
# **Say.** In pretraining every row had about the same number of targets. Now rows differ: one holds a story, another "Hello!". If each micro-batch takes its own mean, and the means are averaged, a token weighs more where targets are few. The correct version divides all the nats of a step by all its targets.
#
# $$L_\text{step} = \frac{\sum_k \text{nats}_k}{\sum_k n_k} \qquad\text{not}\qquad \frac{1}{K} \sum_k \frac{\text{nats}_k}{n_k}$$
#
# Widely used training libraries have shipped the second.
#
# **Build** both. **Check**, with real gradients: however a batch is split into micro-batches, the right one gives the same step.


# %% tags=["long", "near=0.01"]
made = lab.examples(dialogs, tokenizer)
short = [example for example in made if len(example[0]) <= 128]
small = lab.initialise(lab.Transformer(replace(lab.grid().model, dim=32)), seed=0)


def one_a_row(some, width=129):
    """Dialogs -> ids and mask (n, width), one dialog per row, the rest padding"""
    ids, mask = torch.zeros(len(some), width).long(), torch.zeros(len(some), width).bool()
    for row, (own_ids, own_mask) in enumerate(some):
        ids[row, : len(own_ids)] = torch.tensor(own_ids)
        mask[row, : len(own_mask)] = torch.tensor(own_mask)
    return ids, mask


def step_gradient(ids, mask, parts, mean_of_means=False):
    small.zero_grad()
    for i, m in zip(ids.tensor_split(parts), mask.tensor_split(parts), strict=True):
        loss = my_masked_loss(small(i[:, :-1]), i, m)
        weight = 1 / parts if mean_of_means else m.sum() / mask.sum()
        (loss * weight).backward()
    return torch.cat([p.grad.flatten() for p in small.parameters()])


ids, mask = one_a_row(short[:8])
right = step_gradient(ids, mask, parts=1)


@check("the split into micro-batches changes nothing")
def _():
    for parts in (2, 4, 8):
        assert torch.allclose(step_gradient(ids, mask, parts), right, rtol=1e-3, atol=1e-6), parts


wrong = step_gradient(ids, mask, parts=8, mean_of_means=True)
print("targets in each row:", mask.sum(1).tolist())
off = float((wrong - right).norm() / right.norm())
print(f"mean of means: the gradient is off by {off:.2f} of its length")
assert off > 0.1, f"the mean of means must be visibly wrong; it is off by {off:.3f}"

# %% [markdown]
# **See** how much a token weighs under the mean of means, compared with its right weight, if each row is a micro-batch. With one dialog per row the spread is huge. Packed rows hold several dialogs each, so the fault is smaller and hides better.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
PACKED = PackedDialogs(made[:600], seq_len=512)
TARGETS = {
    "one dialog per row": np.array([sum(m) for _, m in made[:32]]),
    "packed rows of 512": PACKED.loss_mask.sum(1)[:32],
}


def draw_weights(rows, micro_batch):
    counts = TARGETS[rows].reshape(-1, micro_batch).sum(1)
    weight = counts.mean() / counts
    return lab.lines(
        {"a token's weight": (np.sort(counts), weight[np.argsort(counts)])},
        "targets in the micro-batch", "weight / right weight", yscale="log", markers=True,
        reference={"right": 1.0}, title=f"{rows}, {micro_batch} per micro-batch",
    )  # fmt: skip


def weight_words(rows, micro_batch):
    counts = TARGETS[rows].reshape(-1, micro_batch).sum(1)
    return f"{rows.capitalize()}, {micro_batch} per micro-batch: under the mean of means some tokens weigh about {counts.max() / counts.min():.0f} times as much as others."


show(draw_weights("one dialog per row", 1), alt=weight_words("one dialog per row", 1))
Explorer(draw_weights, weight_words, rows=list(TARGETS), micro_batch=[1, 2, 4, 8])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Packing dialogs
# **Say** (section 3.1). The paper concatenates all prompts and answers, so that every row is filled. A special token, which it does not name, separates a prompt from its answer; in the released format the tag `[/INST]` does so.
#
# Pretraining cuts the stream wherever a row ends (notebook 04). Here a dialog stays whole: an answer cut off from its question teaches nothing. **First fit**: each dialog goes into the first row that still has room. What is left of a row is padding, and is never a target.
#
# **Build** one row, then the choice of rows.


# %% tags=["build", "long"]
def my_row(examples, length):
    """(ids, mask) of each dialog -> ids, mask, number of the dialog, each of `length`"""
    ids, mask = torch.zeros(length).long(), torch.zeros(length).bool()
    document = torch.full((length,), -1)  # padding is nobody's
    begin = 0
    for number, (own_ids, own_mask) in enumerate(examples):
        here = slice(begin, begin + len(own_ids))
        ids[here], mask[here] = torch.tensor(own_ids), torch.tensor(own_mask)
        document[here] = number
        begin += len(own_ids)
    return ids, mask, document


def my_first_fit(lengths, capacity):
    """-> rows of indices"""
    rows, room = [], []
    for index, length in enumerate(lengths):
        row = next((r for r, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows, room = [*rows, []], [*room, capacity]
        rows[row].append(index)
        room[row] -= length
    return rows


@check("a row of dialogs")
def _():
    checks.packed_row(my_row)


@check("first fit")
def _():
    sizes = [len(ids) for ids, _ in made[:400] if len(ids) <= 300]
    assert my_first_fit([5, 4, 3, 2, 2], 8) == [[0, 2], [1, 3, 4]]
    assert my_first_fit(sizes, 300) == first_fit(sizes, 300), "the library's rows"


# %% [markdown]
# **Break** the row in two ways. First, the first token of each dialog becomes a target, though it would be predicted from another dialog. Then all dialogs get the same number. Predict both messages.


# %%
def with_border(examples, length):
    ids, mask, document = my_row(examples, length)
    mask[1:] |= (document[1:] != document[:-1]) & (document[1:] >= 0)
    return ids, mask, document


for bad in (
    with_border,
    lambda examples, length: (*my_row(examples, length)[:2], my_row(examples, length)[2].clamp(max=0)),
):  # fmt: skip
    with expect_failure(CheckFailed):
        checks.packed_row(bad)

# %% [markdown]
# **See** the rows, and what is empty in them. Try short rows: then some dialogs are too long. The library cuts such a dialog after its last *whole* answer, and drops it if there is none. It never cuts inside an answer, and never writes EOS over a cut: that would teach the model to stop in the middle of a sentence. Both are counted.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
SOME = made[:600]


def rows_of(length, packed):
    fitting = [e for e in (shorten(example, length + 1) for example in SOME) if e]
    if packed:
        rows = PackedDialogs(fitting, seq_len=length)
        return rows.loss_mask, rows.document, rows.n_dialogs
    _ids, mask = one_a_row(fitting, length + 1)
    sizes = torch.tensor([len(own) for own, _ in fitting])[:, None]
    return mask, torch.where(torch.arange(length + 1) < sizes, 0, -1), len(fitting)


def waste(length, packed):
    return float((torch.as_tensor(rows_of(length, packed)[1]) < 0).float().mean())


def draw_rows(length, packed):
    mask, document, _ = rows_of(length, packed)
    return lab.dialog_rows(
        mask[:12],
        document[:12],
        title=f"rows of {length}, " + ("packed" if packed else "one dialog per row"),
    )


def rows_words(length, packed):
    mask, _, kept = rows_of(length, packed)
    way = "packed" if packed else "one dialog per row"
    return f"Rows of {length}, {way}: {len(mask)} rows, {waste(length, packed):.0%} of the positions empty; {len(SOME) - kept} of {len(SOME)} dialogs do not fit."


show(draw_rows(512, False), alt=rows_words(512, False))
show(draw_rows(512, True), alt=rows_words(512, True))
Explorer(draw_rows, rows_words, length=[256, 128, 512, 1024], packed=[True, False])

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### May dialogs in a row see each other?
# The paper packs and does not say. Our stage has a switch for it, `isolate_documents`, and it is on: attention ends and positions restart where a dialog begins, as in notebook 04. Then a dialog in a row gets the logits that it gets alone, which is how the model will be asked. On a CPU the library needs no mask for it: each dialog attends by itself (`apart`), so attention costs the squares of the dialogs' lengths and not of the row's.
#
# **Check**: replace the first dialog of a row by other tokens. How far do the logits of its neighbours move? Then the price: how well are answers predicted when other dialogs stand in front of them, by a model that was trained with the switch on? Predict both before you run it.

# %% tags=["long", "near=0.01"]
held = PackedDialogs(
    lab.examples(
        lab.training_dialogs(replace(lab.nano().sft, n_dialogs=4060), 0)[4000:], tokenizer
    ),
    seq_len=512,
)
batch = next(held.batches(batch_size=4))
moved, nats = {}, {}
with torch.no_grad():
    for switch in (True, False):
        positions, visible = isolate(batch.document[:, :-1])
        seen = {"positions": positions, "attend": lab.masked(visible)} if switch else {}
        x = batch.ids[:, :-1]
        other = torch.where(batch.document[:, :-1] == 0, (x + 7) % 1024, x)
        far = (chat(x, **seen) - chat(other, **seen)).abs().amax(-1)
        moved[switch] = float(far[batch.document[:, :-1] > 0].max())
        loss = lab.dialog_loss(switch)(chat, batch)
        nats[switch] = float(loss.total / loss.count)
for switch, name in ((True, "isolated"), (False, "plain")):
    print(f"{name:8s}  neighbours' logits move by up to {moved[switch]:.2f};", end="")
    print(f"  loss on answers {nats[switch]:.2f} nats per target")
assert moved[True] == 0, f"isolated dialogs must not see each other; logits moved by {moved[True]}"
assert nats[False] > nats[True], f"strangers must cost something; got {nats}"

# %% [markdown]
# Isolated, a neighbour changes nothing at all. In plain rows it moves the logits far, and the answers are predicted a little worse.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Train
# **Say.** The paper's settings beside nano's:
#
# | | paper | nano |
# |---|---|---|
# | demonstrations | 27,540 | 4,000 |
# | epochs | 2 | 2 |
# | learning rate | cosine from 2e-5; warm-up and final value not stated | cosine from 2e-3 to 10 % of it, 10 steps of warm-up |
# | weight decay | 0.1 | 0.1 |
# | batch size, sequence length | 64 rows of 4,096 tokens | 4 rows of 512 tokens |
# | dialogs in a row see each other | not stated | no |
#
# An **epoch** is one pass over all the data. The learning rate is smaller than in pretraining: a fifteenth in the paper (3e-4 for 7B), half for nano. The weights hold knowledge that must not be lost.
#
# **Build** the loop from your parts. **Check** it against the library's, weight by weight, on a small model.


# %% tags=["build", "long"]
def my_training(model, rows, steps, batch_size=2, peak=2e-3):
    """Yield the loss of each step; the weights change between"""
    optimizer = lab.adamw(model, weight_decay=0.1)
    rate = lab.warmup_then_cosine(peak=peak, steps=steps, warmup=steps // 4)
    for i, batch in enumerate(islice(rows.batches(batch_size=batch_size), steps)):
        positions, visible = isolate(batch.document[:, :-1])
        logits = model(batch.ids[:, :-1], positions=positions, attend=lab.masked(visible))
        loss = my_masked_loss(logits, batch.ids, batch.loss_mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(i)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


rows = PackedDialogs(made[:500], seq_len=256)


@check("your loop and the library's")
def _():
    mine, theirs = (lab.initialise(lab.Transformer(lab.grid().model), seed=0) for _ in range(2))
    losses = list(my_training(mine, rows, 8))
    rate = lab.warmup_then_cosine(peak=2e-3, steps=8, warmup=2)
    batches = rows.batches(batch_size=2)
    done = lab.optimize(
        theirs, lab.adamw(theirs), batches, lab.dialog_loss(True), rate, steps=range(8)
    )
    assert np.allclose(losses, [step.loss for step in done], rtol=1e-4, atol=1e-5), "losses differ"
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4), f"{name} differs"


# %% [markdown] slideshow={"slide_type": "subslide"}
# **Run it** on the pretrained nano: 100 steps, about 50 thousand tokens of 500 dialogs, 5 to 10 seconds on one core. The model is asked the same question on the way. What will it learn first: to stop, the form of an answer, or the right person?

# %% tags=["nbval-ignore-output"]
QUESTION = first[3]


def says(model, dialog=QUESTION.dialog):
    (said,) = lab.reply(model.eval(), tokenizer, [dialog], max_new_tokens=40)
    model.train()
    return said.text.replace("\n", " / ")[:80] + ("" if said.ended else " ...")


print("user:    ", QUESTION.request)
live = copy.deepcopy(base)
print("step   0:", says(live))
losses = []
try:
    for i, loss in enumerate(bar(my_training(live, rows, 100), total=100, about="tuning"), start=1):
        losses.append(loss)
        if i in (10, 30, 100):
            print(f"step {i:3d}:", says(live))
except KeyboardInterrupt:
    print("interrupted after", len(losses), "steps")
print("nano    :", says(chat))

# %% tags=["near=0.1"]
print(f"loss on answers: {losses[0]:.2f} nats at the first step, ", end="")
print(f"{np.mean(losses[-10:]):.2f} on average over the last ten")
assert np.mean(losses[-10:]) < losses[0] / 2, "the loss must fall by half"

# %% [markdown]
# The form comes within a hundred steps. The facts were there before: SFT teaches the model *in which form* it is asked for them.
#
# **Break.** Train again, on masks without EOS. Everything else is right. Predict: does the loss curve show it? What will the answers look like?

# %% slideshow={"slide_type": "subslide"} tags=["nbval-ignore-output"]
endless = [
    (ids, [m and i != tokenizer.eos_id for i, m in zip(ids, mask, strict=True)])
    for ids, mask in made[:500]
]
mute = copy.deepcopy(base)
curve = list(
    bar(my_training(mute, PackedDialogs(endless, seq_len=256), 100), total=100, about="tuning")
)
print("user:       ", QUESTION.request)
print("without EOS:", says(mute))

# %% tags=["near=3"]
asked = list(lab.helpful_prompts(world, 6, 30, "held out"))
ended = {
    name: sum(a.ended for a in lab.reply(m.eval(), tokenizer, [p.dialog for p in asked]))
    for name, m in (("right mask", live), ("without EOS", mute))
}
for name, n in ended.items():
    print(f"{name:11s}: {n} of {len(asked)} answers end within 96 tokens")
assert ended["without EOS"] < 6 < 20 < ended["right mask"], (
    f"only EOS lets answers end; got {ended}"
)

# %% tags=["hide-input", "near=0.2"]
show(
    lab.lines(
        {"right mask": (range(1, len(losses) + 1), losses), "without EOS": (range(1, 101), curve)},
        "step", "loss on answers (nats per target)",
    ),
    alt=f"Both losses fall alike, from {losses[0]:.1f} and {curve[0]:.1f} nats to {np.mean(losses[-10:]):.1f} and {np.mean(curve[-10:]):.1f}; the curves do not tell which mask is wrong.",
)  # fmt: skip

# %% [markdown]
# The curves do not show the fault, and the answers do: without EOS as a target the model answers and then continues until it is cut off. Single steps are noisy: two short rows hold few answers.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Before and after
# **See** the whole run of nano: 4,000 dialogs, two epochs. The 200 validation dialogs are held out, and all are by careful writers; the loss counts their answers only.
#
# Where will the loss begin? Remember that the model speaks the language well, but that it never met the tags `[INST]` and `[/INST]` in a text, and hardly any capital letters, in which some answers are written.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
log = lab.read_metrics(folders["sft"] / "metrics.jsonl")
run = np.array([row["loss"] for row in log if "loss" in row])
probe = [(row["step"], row["validation_loss"]) for row in log if "validation_loss" in row]
smooth = np.convolve(run, np.ones(15) / 15, mode="valid")
figure = lab.lines(
    {"training (mean of 15 steps)": (np.arange(len(smooth)) + 15, smooth)},
    "step", "loss on answers (nats per target)", reference={"knowing nothing, ln V": math.log(1024)},
)  # fmt: skip
figure.axes[0].plot(*zip(*probe, strict=True), "o", color="C1", ms=8, label="validation")
figure.axes[0].legend()
show(
    figure,
    alt=f"The loss on held-out answers falls from {probe[0][1]:.2f} nats, against {math.log(1024):.2f} for knowing nothing, to {probe[1][1]:.2f} after {probe[1][0]} steps and {probe[-1][1]:.2f} after {probe[-1][0]}; training ends at {smooth[-1]:.2f}.",
)
assert probe[-1][1] < 1 < 5 < probe[0][1], f"the loss must fall; got {probe[0]} and {probe[-1]}"

# %% [markdown]
# The first point is not far below the loss of knowing nothing, and a hundred steps remove most of it. In the second epoch, the second half of the run, the validation loss still falls: two epochs do not overfit here. It ends a little below the training loss, probably because careful writers are easier to predict than mixed ones.
#
# **See** answers with their marks: the same held-out prompts for both models, and below them what a careful writer of demonstrations would say. The picture shows the first prompt on which the fine-tuned model has a lower score than the writer. Move the slider to compare prompts where it is right, and where it fails in an interesting way.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
HELD = list(lab.helpful_prompts(world, 7, 24, "held out", multi_turn=0.0))
SAID = {
    name: [a.text for a in lab.reply(m, tokenizer, [p.dialog for p in HELD], max_new_tokens=128)]
    for name, m in (("pretrained", base), ("fine-tuned", chat))
}
SAID["demonstration"] = demonstrated(lab.nano(), HELD, 7, "first")


def parts(prompt, text):
    marks = judge.helpfulness(prompt, text)
    return {name.replace("_", " "): getattr(marks, name) for name in (*lab.WEIGHTS, "score")}


def draw_answers(prompt):
    chosen = HELD[prompt]
    said = {
        n: lab.MarkedAnswer(texts[prompt], parts(chosen, texts[prompt]))
        for n, texts in SAID.items()
    }
    return lab.marked_answers(f"{chosen.kind}: {chosen.request}", said)


def answers_words(prompt):
    score = {n: parts(HELD[prompt], texts[prompt])["score"] for n, texts in SAID.items()}
    return (
        f"Prompt {prompt}, {HELD[prompt].kind}: scores "
        + ", ".join(f"{n} {s:.2f}" for n, s in score.items())
        + "."
    )


scores = {
    n: [mark(judge, *pair) for pair in zip(HELD, texts, strict=True)] for n, texts in SAID.items()
}
behind = next(n for n in range(24) if scores["fine-tuned"][n] < scores["demonstration"][n] - 0.01)
show(draw_answers(behind), alt=answers_words(behind))
Explorer(draw_answers, answers_words, prompt=(0, 23))

# %% [markdown]
# Now with numbers. Nothing was tuned on these prompts: their wordings and sums are held out. The facts are asked for in a chat, and, of the pretrained model, in the form of its documents too. *Seen form* are questions that the documents ask in just this form, *unseen form* are other forms of the same questions, and *never asked* are facts that no training question asks for, neither in a document nor in a dialog. About 5 seconds. Predict: which facts can the pretrained model tell in its own form, and which in a chat?

# %% tags=["near=0.02"]
many = list(lab.helpful_prompts(world, 8, 150, "held out"))
asked_facts = [
    item
    for n, item in enumerate(lab.recall_items(world))
    if item.exposure == "never asked" or n % 4 == 0
]
table = {}
for name, m in (("pretrained", base), ("fine-tuned", chat)):
    said = lab.reply(m, tokenizer, [p.dialog for p in many], max_new_tokens=128)
    marks = [judge.helpfulness(p, a.text) for p, a in zip(many, said, strict=True)]
    table[name] = {
        "helpfulness": lab.mean_interval([one.score for one in marks]),
        "correctness": lab.mean_interval([one.correctness for one in marks]),
        "ended": lab.ended_share(said),
    } | lab.chat_recall(m, tokenizer, asked_facts)
table["pretrained, asked in the form of its documents"] = lab.fact_recall(
    base, tokenizer, asked_facts
)
for name, row in table.items():
    print(name)
    for key, e in row.items():
        print(f"  {key:12s} {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]  (n = {e.n})")

# %% [markdown]
# **What it shows.** The pretrained model knew every one of these facts when it was asked in the form of its documents, and could retrieve almost none of them in chat form. The fine-tuned model tells them all, also those that no dialog ever asks for: the knowledge was there, and SFT taught the form that reaches it. It could have been lost. While the weights move, what no dialog asks for can be forgotten; this **forgetting** is why the learning rate is small, and it comes back in notebook 07.
#
# Correctness over all prompts is well below 1 all the same. Facts are only a part of what is asked; claim 10 shows which kinds of request nano cannot do. And nearly all answers of the *pretrained* model end, too: it stops as its documents stop, without having answered.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 8: quality against quantity
# **Say** (section 3.1, "Quality Is All You Need"). The authors put millions of examples from other sources aside, and used fewer but better ones of their own: results improved notably. The paper gives no numbers for it, and reports that tens of thousands of examples are enough.
#
# **Measure.** Four arms, all from nano's pretrained weights: 120 clean dialogs for 2 epochs; the same for 8; 120 noisy; 480 noisy for 2. *Noisy* means that every writer is careless. So there are two fair comparisons: *equal epochs*, as the paper trains, and *equal steps*, since four times the dialogs are four times the steps.
# Answers are sampled at temperature 0.6 and top-p 0.9, the settings of Meta's example script. Three seeds. Twelve trainings take minutes, so the measurement is **recorded**: made once by the code of this course, and kept in its ledger, `data/claims.json`. `llama2 claims 8` makes it anew.
#
# First **see** the noise: one question, answered well and with each flaw of the noisy set. Beside each flaw stands its share of the noisy answers, its mark here, and its mean mark over 200 other prompts. Harmful requests are declined in seven of ten noisy dialogs, often curtly; in the rest they are not.
#
# Before you look at the marks: what does a lie cost, and what does an insult cost?

# %% tags=["long"]
(sample,) = lab.helpful_prompts(world, 11, 1, shares={"question": 1.0}, multi_turn=0.0)
several = list(lab.helpful_prompts(world, 12, 200, "held out"))
texts = demonstrated(lab.nano(), [sample, *several], 3, "first")
source = lab.random_source(0, "flaws")
rates = {"no flaw": 1 - sum(lab.NOISE_RATES.values()), **lab.NOISE_RATES}
print("user:", sample.request)
print("flaw        share  mark  mean mark")
means = {}
for flaw, share in rates.items():
    said = [
        text if flaw == "no flaw" else lab.degrader(world).degrade(source, prompt, text, flaw)
        for prompt, text in zip([sample, *several], texts, strict=True)
    ]
    marks = [mark(judge, *pair) for pair in zip([sample, *several], said, strict=True)]
    means[flaw] = np.mean(marks[1:])
    print(f"{flaw:10s}  {share:5.0%}  {marks[0]:.2f}  {means[flaw]:.2f}       {said[0]!r}"[:120])
noisy = sum(share * means[flaw] for flaw, share in rates.items())
print(f"a perfect copy of the careful writers scores {means['no flaw']:.2f},", end=" ")
print(f"one of the careless writers {noisy:.2f}: {means['no flaw'] - noisy:.2f} are at stake")

# %% [markdown]
# Keep the last line in mind: even a model that copied the careless writers perfectly would not lose more than that.
#
# **Predict** both signs, clean minus noisy, at equal epochs and at equal steps. Then predict the same for safety.

# %%
show_prediction(8)

# %%
quality = show_claim(8)


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
ARMS = {
    "few_noisy": "120 noisy\n2 epochs",
    "few_clean": "120 clean\n2 epochs",
    "few_clean_longer": "120 clean\n8 epochs",
    "many_noisy": "480 noisy\n2 epochs",
}
KINDS = ["question", "all", "safety", "sum", "talk", "story", "list", "how_to"]


def arm_values(arm, what):
    key = {"all": f"help/{arm}", "safety": f"safety/{arm}"}.get(what, f"kind/{arm}/{what}")
    return np.array(quality[key])


def clean_minus_noisy(arm, what):
    gap = lab.mean_interval(arm_values(arm, what) - arm_values("many_noisy", what))
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def draw_arms(what):
    values = [arm_values(arm, what) for arm in ARMS]
    name = "safety" if what == "safety" else "helpfulness"
    return lab.bars_with_intervals(
        list(ARMS.values()), np.mean(values, 1), np.min(values, 1), np.max(values, 1),
        f"{name} (gold judge, 0 to 1)", title=f"{what}; bars: mean, lines: range of three seeds",
    )  # fmt: skip


def arms_words(what):
    means = [f"{ARMS[arm]} {arm_values(arm, what).mean():.2f}".replace("\n", ", ") for arm in ARMS]
    return f"Judged on {what}: " + "; ".join(means) + "."


show(draw_arms("all"), alt=arms_words("all"))
show(draw_arms("safety"), alt=arms_words("safety"))
print("120 clean minus 480 noisy: mean over three seeds, 95 % interval")
for what in ("all", "safety"):
    for arm, equal in (("few_clean", "equal epochs"), ("few_clean_longer", "equal steps")):
        name = "safety" if what == "safety" else "helpfulness"
        print(f"  {name:11s}  {equal:12s}  {clean_minus_noisy(arm, what)}")
gain = np.mean(arm_values("few_clean_longer", "all") - arm_values("few_clean", "all"))
assert gain > 0, f"the clean arm must gain by more epochs; got {gain:.3f}"
Explorer(draw_arms, arms_words, what=KINDS)

# %% [markdown]
# **The claim is inconclusive here**: at equal epochs the many noisy dialogs seem to give the more helpful model, but the interval just reaches 0, and at equal steps the two are level. On an earlier chain the first difference was decided, and the claim was not reproduced. Only safety is better with the few clean dialogs at equal steps. The bars and the marks above give the reasons.
#
# - *The marks of the flaws:* by this judge's weights the flaws cost little, so there is not much to win by leaving them out.
# - *First and second bar:* dialog for dialog, clean dialogs are worth more than noisy ones, by 0.08.
# - *First and last bar:* four times as many dialogs bring at least what the noise costs. A part of that is simply steps: given equal steps, the clean ones draw level.
# - *The drop-down,* which begins with questions: there the many noisy dialogs stay ahead at equal steps. A likely reason is variety: 480 dialogs ask for more facts, in more wordings, than 120.
#
# The first two bars are closer together than the marks of perfect copies of the two kinds of writers. Why does a model that learned from careless writers lose less than they do? More than half of their answers have a flaw, but nearly half have none, and no single flaw has more than 15 %. So at each word the flawless continuation is usually the likeliest one. A model that is sampled at low temperature follows the likeliest, and flaws that fall at random do not add up.
#
# **Predict**: the two arms of equal steps, sampled at temperature 0, 0.6 and 1. At 1 a model writes each continuation as often as its data did. (Recorded, too: 100 held-out prompts, the three seeds of each arm.)

# %% slideshow={"slide_type": "subslide"}
heat = lab.TEMPERATURES
# arm -> (seeds, temperatures)
by_heat = {arm: np.array(v) for arm, v in lab.recorded_run("helpfulness by temperature").items()}
show(
    lab.lines(
        {ARMS[a].replace("\n", ", "): (heat, v.mean(0), v.min(0), v.max(0)) for a, v in by_heat.items()},
        "sampling temperature", "helpfulness (gold judge, 0 to 1)", markers=True,
        title="equal steps; mean and range of three seeds",
    ),
    alt="Helpfulness at temperatures 0, 0.6 and 1: " + "; ".join(
        ARMS[a].replace("\n", ", ") + " " + ", ".join(f"{x:.2f}" for x in v.mean(0))
        for a, v in by_heat.items()
    ) + ".",
)  # fmt: skip
for arm, v in by_heat.items():
    lost = v[:, 0] - v[:, 2]
    print(f"{arm.replace('_', ' '):17s} loses {lost.mean():.2f} from 0 to 1", end=" ")
    print(f"({lost.min():.2f} to {lost.max():.2f} over seeds)")
ahead = (by_heat["few_clean_longer"] - by_heat["many_noisy"])[:, 2]
print(
    f"at 1 the few clean are ahead by {ahead.mean():.2f} ({ahead.min():.2f} to {ahead.max():.2f})"
)
assert ahead.mean() > 0.02, "at temperature 1 the noise must show"

# %% [markdown]
# So the noise was learned; at low temperature it is only rarely *said*. At temperature 1, with equal steps, the clean arm is ahead with every seed. The rule was declared for 0.6, and the verdict stays.
#
# Low temperature cannot hide two things. One is **safety**, where the noisy set gives dangerous answers to the same kinds of request again and again. The other is a set whose flaws are not random but a habit of its source. The paper says that its millions of third-party examples lacked diversity and quality; they may have had such habits, and our noise has none. In that way our test is easier on noise than the paper's.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 9: answers only, and packed
# **Measure** on real rows of nano's training: the gradient at prompts, with the mask and without it, and the empty share of the rows. Exact, so one seed is enough. The model is untrained: nothing here depends on what it knows. Predict the gradient at prompts, and how much of a row is empty with one dialog per row.

# %%
show_prediction(9)

# %% tags=["near=0.0001"]
packing = lab.CLAIMS[9].measure(lab.nano(), 0)
share = packing.values
print(f"largest gradient at prompts {share['gradient/prompt']:g};", end=" ")
print(f"smallest at answers {share['gradient/answer']:.4f}")
print(f"largest gradient at prompts without the mask {share['gradient/unmasked']:.4f}")
words = {"packed": "packed", "longest": "padded to the longest", "alone": "one dialog per row"}
for way, name in words.items():
    print(f"empty positions, {name:22s} {share[f'waste/{way}']:.3f}")
print("verdict:", lab.CLAIMS[9].verdict([packing]).outcome)

# %% [markdown]
# **Reproduced, and exactly so**: no gradient at all comes from prompts, and packing fills nearly every position. This checks the mechanism, not whether it makes a better model; the paper does not measure that either.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 10: samples against people
# **Say** (section 3.1). The authors looked at 180 examples and found the model's samples often as good as the answers that people had written. So they put more of their effort into preferences: the next notebook.
#
# **Measure.** As many prompts per seed, 180, all held out; for each one sample of nano and one demonstration by a careful writer. The gold judge marks both: safety for requests for harm, helpfulness for the rest. The **win rate** counts a tie as half, so 50 % means: as good as the demonstrations.
# Two controls: the pretrained model, and a *second* demonstration, which must come to 50 %. Predict nano's win rate, and on which kind of prompt it is worst. About 10 seconds.

# %%
show_prediction(10)

# %% tags=["near=0.02"]
rivals = [lab.CLAIMS[10].measure(lab.nano(), seed) for seed in bar(range(3), about="comparing")]
rival_verdict = lab.CLAIMS[10].verdict(rivals)
who_is = {"sft": "fine-tuned nano", "base": "pretrained nano", "control": "second demonstration"}
for who, name in who_is.items():
    e = lab.mean_interval(pooled(rivals, who))
    print(f"win rate of {name:20s} {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]  (n = {e.n})")
    assert who != "control" or abs(e.value - 0.5) < 0.06, "demonstrations must be level"
print("verdict:", rival_verdict.outcome, "|", rival_verdict.reason)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long", "near=2"]
kinds = sorted({key for m in rivals for key in m.values if key.startswith("win/")})
by_kind = {key[4:]: [100 * m.values[key] for m in rivals if key in m.values] for key in kinds}
order = sorted(by_kind, key=lambda kind: -np.mean(by_kind[kind]))
names = [
    {"adversarial": "harm", "how_to": "how to", "rewrite": "capitals"}.get(k, k) for k in order
]
figure = lab.bars_with_intervals(
    names,
    [np.mean(by_kind[k]) for k in order], [min(by_kind[k]) for k in order], [max(by_kind[k]) for k in order],
    "win rate, ties count half (%)", title="mean and range of three seeds", reference={"as good as a demonstration": 50},
)  # fmt: skip
figure.axes[0].tick_params(axis="x", rotation=35)
show(
    figure,
    alt="Win rate by kind of prompt, in percent: "
    + ", ".join(f"{name} {np.mean(by_kind[k]):.0f}" for name, k in zip(names, order, strict=True))
    + ".",
)

# %% [markdown]
# Why is even the best kind not at 50 %? Compare the marks of nano's answers to questions with those of the demonstrations, part by part. Predict which part makes the difference: is it the facts, or the manners?

# %% tags=["near=0.02"]
of_facts = [p for p in many if p.kind == "question"]
said = lab.reply(
    chat, tokenizer, [p.dialog for p in of_facts], max_new_tokens=128, temperature=0.6, top_p=0.9
)
gold = demonstrated(lab.nano(), of_facts, 0, "first")
print(f"means over {len(of_facts)} questions: nano, demonstration")
for part in (*lab.WEIGHTS, "score"):
    ours, theirs = (
        np.mean(
            [getattr(judge.helpfulness(*pair), part) for pair in zip(of_facts, texts, strict=True)]
        )
        for texts in ([a.text for a in said], gold)
    )
    print(f"  {part.replace('_', ' '):14s} {ours:.2f}  {theirs:.2f}")

# %% [markdown]
# **Not reproduced: about one win in four, where one in two would be level.** The figure and the table point to two reasons; a third is likely, but was not tested here.
#
# - *Skill.* Nano cannot add numbers that it never saw, nor write a sentence of new names in capital letters, and its small talk misses the point in wordings that it never met: a million weights and 4,000 dialogs do not teach that. The paper's model had learned such skills before SFT began.
# - *Manners.* On questions nearly every answer is right; politeness makes the difference. The demonstrations often begin with a polite phrase, and nano hardly ever does. Probably the plain sentence is the likeliest wording, which low temperature prefers.
# - *Teachers.* Nano learned from careless writers too, while the demonstrations that it meets here are all by careful ones. The careless ones sometimes help with harm, which may be why nano seldom wins there.
#
# A win rate against demonstrations thus measures two things at once: how well the *form* was learned, and how much the model *can do*. Keep them apart when you read one.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here |
# |---|---|---|
# | 8, quality | 27,540 of its own examples in place of millions of others': results improved notably; no number | inconclusive: helpfulness of 120 clean minus 480 noisy is -0.061 [-0.123, 0.002] at equal epochs and -0.004 [-0.043, 0.035] at equal steps; safety at equal steps is +0.16 [0.04, 0.29] (95 % over three seeds) |
# | 9, mask and packing | loss zeroed on prompts; prompts and answers concatenated; no numbers | reproduced: the gradient at prompts is exactly 0; 1.8 % of the positions of packed rows are empty, 77 % with one dialog per row (exact counts, no interval) |
# | 10, samples | 180 examples looked at, samples often as good; no number | not reproduced: win rate 0.25 [0.23, 0.28] against careful demonstrations (95 % over 540 prompts); 0.38 on questions, 0.02 on sums |
#
# - **Claim 8** was first run on the smallest model of our grids (400 and 1,600 dialogs), with no clear result, because that model answers next to nothing. It was then moved to nano, with the same rule. The three seeds share one pretrained model and one set of dialogs; they differ in the order of training, in prompts and in samples.
# - **Quality** in the paper means more than flaws: variety, style, the care of a vendor. Ours is six kinds of flaw at known rates, and unsafe answers.
# - **Claim 10**: the paper's judges were people, and knew what they looked for; ours is a program that sees the world's truth and penalises every wrong sum.
# - **Not stated in the paper**, so ours: warm-up, final learning rate and clipping in fine-tuning, whether packed dialogs see each other, the sampling temperature of claim 10, the shares of helpfulness and safety among the 27,540.
#
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# Write `last_only(ids, mask)`: the mask of Ghost Attention, which keeps only the last answer's targets. `mask` is a list of bools with one run of `True` for each answer.
# <details><summary>Hint</summary>Walk backwards from the end while the mask is True. Everything before becomes False.</details>


# %% tags=["exercise"]
def last_only(ids, mask):
    ### BEGIN SOLUTION
    begin = len(mask)
    while begin > 0 and mask[begin - 1]:
        begin -= 1
    return [False] * begin + list(mask[begin:])
    ### END SOLUTION


@check("last_only")
def _():
    assert (
        last_only([1, 5, 2, 1, 6, 2], [False, True, True, False, True, True])
        == [False] * 4 + [True] * 2
    )
    for dialog in dialogs[:100]:
        ids, mask = lab.encode_example(dialog, tokenizer)
        assert last_only(ids, mask) == lab.encode_example(dialog, tokenizer, loss_on="last")[1], (
            "must agree with the library's loss_on='last'"
        )


# %% [markdown]
# ### Exercise 2 (medium, 15 minutes)
# A dialog is longer than a row. Write `cut(ids, mask, longest)`: keep as many *whole* answers as fit into `longest` tokens and cut after the last of them, EOS included; return `None` if not even the first fits. No token may be changed.
# <details><summary>Hint</summary>An answer ends at `t` if `mask[t]` is True and `mask[t + 1]` is not (or there is no `t + 1`).</details>


# %% tags=["exercise"]
def cut(ids, mask, longest):
    ### BEGIN SOLUTION
    ends = [t + 1 for t in range(len(ids)) if mask[t] and (t + 1 == len(ids) or not mask[t + 1])]
    fitting = [end for end in ends if end <= longest]
    return (ids[: fitting[-1]], mask[: fitting[-1]]) if fitting else None
    ### END SOLUTION


@check("cut")
def _():
    ids, mask = [1, 7, 8, 2, 1, 9, 5, 2], [False, False, True, True, False, False, True, True]
    assert cut(ids, mask, 8) == (ids, mask), "what fits stays as it is"
    assert cut(ids, mask, 7) == (ids[:4], mask[:4]), "never inside an answer"
    assert cut(ids, mask, 3) is None, "the first answer does not fit"
    for example in made[:200]:
        assert cut(*example, 90) == shorten(example, 90), "must agree with the library's"


# %% [markdown]
# ### Exercise 3 (hard, 20 minutes)
# Does the temperature matter for a win rate? Write `win_rate(model, temperature, asked)`: sample one answer of `model` to each prompt in `asked` (with `top_p=1.0`, `seed=0`, `max_new_tokens=128`), and return its win rate against the demonstrations of `demonstrated(lab.nano(), asked, 0, "first")`; ties count half. Then compare 0 with 2 for the fine-tuned nano.
# <details><summary>Hint</summary>`lab.reply(model, tokenizer, [p.dialog for p in asked], ...)` gives objects with a `text`; `compared(judge, asked, texts, gold)` gives 1, 0.5 or 0 for each.</details>


# %% tags=["exercise"]
def win_rate(model, temperature, asked):
    ### BEGIN SOLUTION
    said = lab.reply(
        model,
        tokenizer,
        [prompt.dialog for prompt in asked],
        max_new_tokens=128,
        temperature=temperature,
        top_p=1.0,
        seed=0,
    )
    gold = demonstrated(lab.nano(), asked, 0, "first")
    results = compared(judge, asked, [a.text for a in said], gold)
    return sum(results) / len(results)
    ### END SOLUTION


@check("win_rate")
def _():
    asked = list(lab.prompts(world, 9, 60, "held out", shares={"helpful": 1.0}))
    cold, hot = (win_rate(chat, temperature, asked) for temperature in (0.0, 2.0))
    assert 0.03 < cold < 0.6, f"nano wins about one in four at temperature 0; got {cold:.2f}"
    assert hot < cold, "at temperature 2 it babbles, and wins less"


# %% [markdown]
# ## Questions to think about
# - A colleague trains on prompts too and reports a lower loss. Why does that say nothing? Which number would you ask for?
# - Your noisy set has one flaw only, in 55 % of its answers: each of them ends with "I hope that helps. I hope that helps." What would the curves over temperature look like now?
# - One model saw 120 clean dialogs eight times. What can a model learn from 480 different flawed ones that it cannot learn from 120 good ones, however long it trains?
# - Two runs have the same loss on answers; one was trained with isolated dialogs, one without. Which would you rather ask a question, and why?
# - The paper moved to preferences when samples rivalled people. Nano's do not yet, on sums. Would preferences teach it to add?
#
# ## Next
# `06_reward_models`: from answers that are shown to answers that are compared.
