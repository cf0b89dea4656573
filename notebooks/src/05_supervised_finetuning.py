# %% [markdown] slideshow={"slide_type": "slide"}
# # Supervised fine-tuning
# The pretrained model goes on with a text. It does not answer. **Supervised fine-tuning** (SFT) shows it dialogs with good answers and trains it to write the answers.
# The loss is the one you know; what is new is *which tokens it counts*. You build the mask, the loss, the rows and the training, turn a model that tells half a story into one that answers and stops,
# and measure three of the paper's claims. Two of them do not come out as the paper says, and you find out why.
#
# - **You will be able to explain** the chat format token by token, the loss mask and what its usual mistakes do to a model, why a step is normalised by its target tokens, how whole dialogs are packed and kept apart,
#   and what quality, quantity and the number of steps each contribute.
# - **Prerequisites:** notebooks 01 and 04. **Paper sections:** 3.1, table 5.
# - **Minutes:** 70 to read, 2 to run, on two cores (7 more if models must first be trained).

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
from llama2_lib.widgets import Explorer, bar, show

folders = start("05_supervised_finetuning", needs=["pretrain", "sft"], recipe=lab.nano(), minutes=7)
base, config = lab.load_model(folders["pretrain"])
chat, _ = lab.load_model(folders["sft"])
tokenizer = lab.load_tokenizer(folders["sft"])
world = lab.make_world(0)
judge = lab.judge_of(world)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From going on to answering
# **Say** (section 3.1). A pretrained model knows things, but it has only ever gone on with documents. Asked in the form of a chat it does what it knows: it goes on, with a bit of a story, or with nonsense.
#
# **See** the same questions put to nano before and after fine-tuning. Neither was trained on these dialogs; their wordings are held out. Before you run it: in what way will the first model fail? Will it be silent, be wrong, or be off the point?
#
# The marks come from the **gold judge**, a program that knows the world's truth. It marks correctness, which counts most, relevance, completeness, brevity, politeness, and no repetition; the score is their weighted mean. No model is ever trained on it directly; here it is our measuring rod.

# %% tags=["nbval-ignore-output"]
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
print("pretrained, fewer than half are right:", right["pretrained"] < 4)
print("fine-tuned, more than half are right:", right["fine-tuned"] > 4)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Demonstrations
# **Say.** A **demonstration** is a dialog whose answers show what is wanted. In the paper people wrote them, prompt and answer both (table 5 shows one on helpfulness and one on safety). The authors stopped at **27,540**.
# Here the world's own writers, who know every fact, write 2,000. One dialog in ten asks for something harmful; a careful writer declines, says why, and offers something else.
#
# Half of the dialogs have a **careless** writer. Nearly half of their answers (45 %) have a flaw: wrong, curt, rambling, off the topic, said twice, or rude; asked for harm, they sometimes help. That is on purpose. The paper's writers varied too, and its section 5.1 says what follows: a fine-tuned model learns the poor tail with the rest. What RLHF does about it is the subject of notebooks 06 to 08.
#
# **See** three of them, one of them careless, in the format of notebook 01: `<s>` and `</s>` stand for the control tokens BOS and EOS, which begin and end each turn.

# %%
dialogs = lab.training_dialogs(lab.nano().sft, 0)
for index in (16, 18, 20):
    print(lab.render(dialogs[index]), "\n")
turns = [sum(m["role"] == "assistant" for m in dialog) for dialog in dialogs]
print(f"{len(dialogs):,} dialogs, {sum(turns):,} answers, up to {max(turns)} in a dialog")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loss mask
# **Say** (section 3.1). The loss is set to zero on the tokens of the user: only answers are learned. So each token carries a mark: is it a **target**?
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


# %% tags=["long"]
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
# **See** it: one box a token. What is filled is learned, what is pale is only read. `▁` is the tokenizer's sign for a space. Move through the dialogs, then choose a wrong mask and look for what is wrong before you read the sentence.


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
# **Break.** Three of these masks, put to the check. Predict each message. And a harder one: which of them would you notice in the loss curve?
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
# ### To whom does the space belong?
# When the model is asked, it gets the ids of the prompt alone. In training it saw prompt and answer encoded together. The two must agree: **the ids of the prompt must be a prefix of the ids of the whole.**
#
# **Break.** End the prompt with a space, as one would when writing strings together: `"[INST] Hello! [/INST] "`. Is it still a prefix?
# <details><summary>What follows</summary>It is not. The space is the beginning of the answer's first piece, and a prompt with a space of its own asks the model to go on after a token that it never saw there. Nothing fails; the answers only get worse. So the space stands on the answer's side, and `lab.encode_example` refuses a tokenizer for which the prefix rule does not hold.</details>

# %%
whole = tokenizer.encode("[INST] Hello! [/INST] Hello! How can I help you? ")
for prompt in ("[INST] Hello! [/INST]", "[INST] Hello! [/INST] "):
    ids = tokenizer.encode(prompt)
    print(f"{prompt!r:27} ends with {tokenizer.piece(ids[-1])!r:8}", end="")
    print("prefix of the whole:", whole[: len(ids)] == ids)
print(
    "the whole goes on with",
    repr(tokenizer.piece(whole[len(tokenizer.encode("[INST] Hello! [/INST]"))])),
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loss on answers
# **Say.** With marks $m_t \in \{0, 1\}$:
#
# $$L = -\frac{\sum_t m_t \log p(x_t \mid x_{<t})}{\sum_t m_t}$$
#
# The sum runs over targets, and so does the divisor. With all $m_t = 1$ it is the loss of pretraining.
#
# **Build.** `logits[:, t]` predicts `ids[:, t + 1]`: the mask is shifted together with the targets. Then **break** it: forget that shift; divide by all tokens; take the mean of each row's mean. Predict the messages.


# %%
def my_masked_loss(logits, ids, mask):
    """logits (b, s, vocab), ids and mask (b, s + 1) -> nats per target"""
    nats = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return nats[mask[:, 1:]].mean()


@check("loss on answers")
def _():
    checks.masked_loss(my_masked_loss)


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
# **See** what reaches the model. The derivative of the loss by the logits, position by position, for the dialog above: at positions that predict a word of the user it is zero. Not small: zero.
#
# Does the prompt then teach nothing? Think before you run: is the gradient of the *embedding* of a token that occurs only in the prompt zero as well?
# <details><summary>Answer</summary>No. The prompt is not *predicted*, but it is *read*: its gradient comes through attention, from the answers. The model learns what a question means for its answer; it does not learn to ask.</details>


# %% tags=["hide-input", "long"]
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
    figure, axes = lab.new_figure(8.0, 3.4)
    at = np.arange(1, len(size) + 1)
    axes.bar(at, size, color=[lab.LEARNED if t else "0.4" for t in targets], edgecolor="0.4")
    lab.label_axes(axes, "token that is predicted", "largest |dL / dlogit|", f"mask: {mask}")
    return figure


def gradient_words(mask):
    size, targets, _ = gradients(dialogs[SHOWN[0]], mask)
    return f"Mask {mask}: {int((size > 0).sum())} of {len(size)} positions get a gradient, {int(targets.sum())} are marked."


show(draw_gradients("right"), alt=gradient_words("right"))
size, targets, embedding = gradients(dialogs[SHOWN[0]], "right")
print("gradient at prompts is exactly zero:", float(size[~targets].abs().max()) == 0.0)
print("gradient at every answer token is not:", bool((size[targets] > 0).all()))
inst = tokenizer.encode("[INST]")[-1]
print("embedding of a piece of [INST] gets a gradient:", bool(embedding[inst].abs().max() > 0))
Explorer(draw_gradients, gradient_words, mask=list(WHAT))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Guards
# **Say.** Two masks are never meant, and both arise easily: the empty one (a long prompt was cut off before its answer began), and the full one (a wrong separator, so that no prompt was found). The first divides zero by zero. The second trains, silently, on the wrong thing. A library must refuse both.
#
# **Break** it first: what does an empty mask give? Then **build** the guard, and **use** the library's. One `nan` in a gradient makes every weight `nan`: better a message that names the example.


# %%
nothing = my_masked_loss(torch.zeros(1, 4, 9), torch.ones(1, 5).long(), torch.zeros(1, 5).bool())
print("loss of an empty mask:", nothing.item())


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


for mask in ([False] * 4, [True] * 4):
    with expect_failure(ValueError):
        check_example(([1, 5, 6, 2], mask), index=17)
with expect_failure(ValueError):
    lab.masked_loss(torch.zeros(1, 4, 9), torch.ones(1, 5).long(), torch.zeros(1, 5).bool())

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One step, many micro-batches
# **Say.** In pretraining every row had about the same number of targets. Now rows differ: one holds a story, another "Hello!". If each micro-batch takes its own mean, and the means are averaged, a token weighs more where targets are few. Right is: all nats of the step, divided by all targets of the step.
#
# $$L_\text{step} = \frac{\sum_k \text{nats}_k}{\sum_k n_k} \qquad\text{not}\qquad \frac{1}{K} \sum_k \frac{\text{nats}_k}{n_k}$$
#
# Widely used training codes have shipped the second.
#
# **Build** both. **Check**, with real gradients: however a batch is split into micro-batches, the right one gives the same step.


# %% tags=["long"]
made = lab.examples(dialogs, tokenizer)
short = [example for example in made if len(example[0]) <= 128]
small = lab.initialise(lab.Transformer(replace(lab.grid().model, dim=32)), seed=0)


def one_a_row(some, width=129):
    """Dialogs -> ids and mask (n, width), one dialog a row, the rest padding"""
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
print("mean of means: the gradient is off by more than 10 % of its length:", off > 0.1)

# %% [markdown]
# **See** how much a token weighs under the mean of means, compared with its right weight, if each row is a micro-batch. With one dialog a row the spread is huge. Packed rows hold several dialogs each, so the fault hides; it is still there.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
PACKED = PackedDialogs(made[:600], seq_len=512)
TARGETS = {
    "one dialog a row": np.array([sum(m) for _, m in made[:32]]),
    "packed rows of 512": PACKED.loss_mask.sum(1)[:32],
}


def draw_weights(rows, micro_batch):
    counts = TARGETS[rows].reshape(-1, micro_batch).sum(1)
    weight = counts.mean() / counts
    return lab.lines(
        {"a token's weight": (np.sort(counts), weight[np.argsort(counts)])},
        "targets in the micro-batch", "weight / right weight", yscale="log", markers=True,
        reference={"right": 1.0}, title=f"{rows}, {micro_batch} a micro-batch",
    )  # fmt: skip


def weight_words(rows, micro_batch):
    counts = TARGETS[rows].reshape(-1, micro_batch).sum(1)
    return f"{rows.capitalize()}, {micro_batch} a micro-batch: under the mean of means some tokens weigh about {counts.max() / counts.min():.0f} times as much as others."


show(draw_weights("one dialog a row", 1), alt=weight_words("one dialog a row", 1))
Explorer(draw_weights, weight_words, rows=list(TARGETS), micro_batch=[1, 2, 4, 8])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Packing dialogs
# **Say** (section 3.1). The paper concatenates all prompts and answers, so that every row is filled. A special token, which it does not name, separates a prompt from its answer; in the released format that is the work of the tag `[/INST]`.
#
# Pretraining cuts the stream wherever a row ends (notebook 04). Here a dialog stays whole: an answer cut off from its question teaches nothing. **First fit**: each dialog goes into the first row that still has room. What is left of a row is padding, and is never a target.
#
# **Build** one row, then the choice of rows. **Break** the row: a target at the first token of a dialog, which would be predicted from a stranger's dialog; and one number for all.


# %% tags=["long"]
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
# **See** the rows, and what is empty in them. Try short rows: then dialogs are too long to fit. The library cuts such a dialog after its last *whole* answer, and drops it if there is none. It never cuts inside an answer, and never writes EOS over a cut: that would teach the model to stop in the middle of a sentence. Both are counted.


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
        title=f"rows of {length}, " + ("packed" if packed else "one dialog a row"),
    )


def rows_words(length, packed):
    mask, _, kept = rows_of(length, packed)
    way = "packed" if packed else "one dialog a row"
    return f"Rows of {length}, {way}: {len(mask)} rows, {waste(length, packed):.0%} of them empty; {len(SOME) - kept} of {len(SOME)} dialogs do not fit."


show(draw_rows(512, False), alt=rows_words(512, False))
show(draw_rows(512, True), alt=rows_words(512, True))
Explorer(draw_rows, rows_words, length=[256, 128, 512, 1024], packed=[True, False])

# %% [markdown] slideshow={"slide_type": "subslide"}
# ### May dialogs in a row see each other?
# The paper packs and does not say. It is a switch of our stage, `isolate_documents`, and it is on: the mask ends and the positions restart where a dialog begins, as in notebook 04. Then a dialog in a row gets the logits that it gets alone, which is how the model will be asked. On a CPU the library reaches them without a mask: each dialog attends by itself (`apart`), which takes a fifth to a third less time.
#
# **Check**: replace the first dialog of a row by other tokens. How far do the logits of its neighbours move? Then the price: how well are answers predicted if strangers stand in front of them, by a model that was trained with the switch on?

# %% tags=["long"]
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
print("isolated, the logits of neighbours do not move at all:", moved[True] == 0.0)
print("plain, they move by more than 1:", moved[False] > 1)
print("with strangers in view, answers are predicted worse:", nats[False] > nats[True])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Train
# **Say.** The paper's settings beside nano's:
#
# | | paper | nano |
# |---|---|---|
# | demonstrations | 27,540 | 4,000 |
# | epochs | 2 | 2 |
# | schedule | cosine from 2e-5; warm-up and floor not stated | cosine from 2e-3 to 10 %, 10 steps of warm-up |
# | weight decay | 0.1 | 0.1 |
# | batch, length | 64 rows of 4,096 | 4 rows of 512 |
# | dialogs in a row see each other | not stated | no |
#
# The rate is small beside that of pretraining: a fifteenth in the paper (3e-4 for 7B), half for nano. The weights hold knowledge that is to stay.
#
# **Build** the loop from your parts. **Check** it against the library's, weight by weight, on a small model.


# %% tags=["long"]
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
# **Run it** on the pretrained nano: 100 steps, about 50 thousand tokens of 500 dialogs, 5 to 10 seconds on one core. The same question is put to the model on the way. What will it learn first: to stop, the form of an answer, or the right person?

# %% tags=["nbval-ignore-output"]
QUESTION = first[2]


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

# %%
print("the loss on answers began above 3 nats:", losses[0] > 3)
print("and fell by more than half:", np.mean(losses[-10:]) < losses[0] / 2)

# %% [markdown]
# The form comes within a hundred steps. The facts were there before: SFT teaches the model *in which form* it is asked for them.
#
# **Break.** Train again, on masks without EOS. Everything else is right. Predict: does the loss curve show it? What will the answers look like? (The spike in both curves is a story told in capital letters, as its system message asks.)

# %% slideshow={"slide_type": "subslide"} tags=["nbval-ignore-output"]
endless = [
    (ids, [m and i != tokenizer.eos_id for i, m in zip(ids, mask, strict=True)])
    for ids, mask in made[:500]
]
mute = copy.deepcopy(base)
curve = list(
    bar(my_training(mute, PackedDialogs(endless, seq_len=256), 100), total=100, about="tuning")
)
asked = list(lab.helpful_prompts(world, 6, 30, "held out"))
replies = {
    name: lab.reply(m.eval(), tokenizer, [p.dialog for p in asked], max_new_tokens=96)
    for name, m in (("right", live), ("without EOS", mute))
}
print("user:", QUESTION.request, "| without EOS:", says(mute))
show(
    lab.lines(
        {"right": (range(1, len(losses) + 1), losses), "without EOS": (range(1, 101), curve)},
        "step", "loss on answers (nats per target)",
    ),
    alt="Both losses fall alike from about 6 nats to about 1; nothing in the curves tells which mask is wrong.",
)  # fmt: skip
for name, said in replies.items():
    print(f"{name:12s} answers that end: {lab.ended_share(said)}")

# %%
print("right mask, most answers end:", lab.ended_share(replies["right"]).value > 0.7)
print("without EOS, hardly any ends:", lab.ended_share(replies["without EOS"]).value < 0.2)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Before and after
# **See** the whole run of nano: 2,000 dialogs, two epochs. The validation dialogs are other ones, all by careful writers; the loss counts their answers only.
#
# It begins near the loss of knowing nothing, although the model speaks the language well: the tags `[INST]` and `[/INST]` were pieces it had never met in a text. Some answers are in capital letters besides, which it hardly knew.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
log = lab.read_metrics(folders["sft"] / "metrics.jsonl")
run = np.array([row["loss"] for row in log if "loss" in row])
probe = [(row["step"], row["validation_loss"]) for row in log if "validation_loss" in row]
smooth = np.convolve(run, np.ones(15) / 15, mode="valid")
show(
    lab.lines(
        {"training (mean of 15 steps)": (np.arange(len(smooth)) + 15, smooth), "validation": tuple(zip(*probe, strict=True))},
        "step", "loss on answers (nats per target)", reference={"knowing nothing, ln V": math.log(1024)},
    ),
    alt="The loss on answers falls from about 6 nats, nearly that of knowing nothing, to about half a nat; training and validation stay together.",
)  # fmt: skip
before_loss, after_loss = probe[0][1], probe[-1][1]
print("before, answers in chat form were nearly unpredictable, above 5 nats:", before_loss > 5)
print("after, below 1 nat:", after_loss < 1)

# %% [markdown]
# **See** answers with their marks: the same held-out prompts for both models, and beside them what the demonstration's writer would say. Look for prompts where the fine-tuned model is right, and where it fails in an interesting way.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
HELD = list(lab.helpful_prompts(world, 7, 24, "held out", multi_turn=0.0))
SAID = {
    name: [a.text for a in lab.reply(m, tokenizer, [p.dialog for p in HELD], max_new_tokens=128)]
    for name, m in (("pretrained", base), ("fine-tuned", chat))
}
SAID["demonstration"] = demonstrated(lab.nano(), HELD, 7, "first")


def parts(prompt, text):
    marks = judge.helpfulness(prompt, text)
    names = ("correctness", "relevance", "completeness", "politeness", "score")
    return {name: getattr(marks, name) for name in names}


def draw_answers(prompt):
    chosen = HELD[prompt]
    said = {
        n: lab.MarkedAnswer(texts[prompt], parts(chosen, texts[prompt]))
        for n, texts in SAID.items()
    }
    return lab.marked_answers(f"{chosen.kind}: {chosen.request}", said)


def answers_words(prompt):
    return f"Prompt {prompt}, {HELD[prompt].kind}: what the pretrained model, the fine-tuned one and a writer say, each with its marks."


show(draw_answers(0), alt=answers_words(0))
Explorer(draw_answers, answers_words, prompt=(0, 23))

# %% [markdown]
# Now with numbers. Nothing here was tuned on: prompts, wordings and sums are held out. The facts are asked for in a chat, and, of the pretrained model, in the form of its documents too. *Never asked* are facts that no training question asks for, neither in a document nor in a dialog. About 5 seconds.
# <details><summary>What it shows</summary>The pretrained model knew the facts, asked in its own form, and could say hardly any in a chat. Fine-tuning opened the door, also to facts that no dialog asks for: the form was new, the knowledge was there. That it is still there is not a matter of course. While the weights move, what no dialog asks for can be lost; this <b>forgetting</b> is why the rate is small, and it comes back in notebook 07.</details>

# %% tags=["nbval-ignore-output"]
many = list(lab.helpful_prompts(world, 8, 150, "held out"))
asked_facts = [
    item
    for n, item in enumerate(lab.recall_items(world))
    if item.exposure == "never asked" or n % 4 == 0
]
table = {}
for name, m in (("pretrained", base), ("fine-tuned", chat)):
    said = lab.reply(m, tokenizer, [p.dialog for p in many], max_new_tokens=128)
    scores = [judge.helpfulness(p, a.text).score for p, a in zip(many, said, strict=True)]
    table[name] = {"helpfulness": lab.mean_interval(scores), "ended": lab.ended_share(said)}
    table[name] |= lab.chat_recall(m, tokenizer, asked_facts)
as_text = lab.fact_recall(base, tokenizer, asked_facts)
for name, row in table.items():
    print(name)
    for key, estimate in row.items():
        print(f"  {key:14s} {estimate}")
print("pretrained, facts asked for in the form of its documents:")
for key, estimate in as_text.items():
    print(f"  {key:14s} {estimate}")

# %%
old, new = table["pretrained"], table["fine-tuned"]
print(
    "helpfulness rises by more than 0.25:", new["helpfulness"].low - old["helpfulness"].high > 0.25
)
print("facts in chat form, before: fewer than a third:", old["seen form"].value < 1 / 3)
print("after: most of those it was ever asked for:", new["seen form"].value > 0.6)
print("nearly all answers end:", new["ended"].value > 0.9)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 8: quality against quantity
# **Say** (section 3.1, "Quality Is All You Need"). The authors put millions of examples of other sources aside, and used fewer but better ones of their own: results improved notably. The paper gives no numbers for it, and sets "tens of thousands" of examples as enough.
#
# **Measure.** Four arms, all from nano's pretrained weights: 120 clean dialogs for 2 epochs; the same for 8; 120 noisy; 480 noisy for 2. So there are two fair comparisons: *equal epochs*, as the paper trains, and *equal steps*, since four times the dialogs are four times the steps.
# Answers are sampled at temperature 0.6 and top-p 0.9, the settings of Meta's example script. Three seeds. Twelve trainings take minutes, so the measurement is **recorded**: made once by the code of this course, and kept in its ledger, `data/claims.json`. `llama2 claims 8` makes it anew.
#
# First **see** the noise: one question, answered well and with each flaw of the noisy set; beside each, its share and its mark. Harmful requests are declined in seven of ten noisy dialogs, often curtly; in the rest they are not.
#
# Predict both signs. Then predict the same for safety.

# %%
(sample,) = lab.helpful_prompts(world, 11, 1, shares={"question": 1.0}, multi_turn=0.0)
source = lab.random_source(0, "flaws")
(good,) = demonstrated(lab.nano(), [sample], 3, "first")
print("user:", sample.request)
print(f"{'no flaw':10s} 45 %  mark {mark(judge, sample, good):.2f}  {good}")
for flaw, share in lab.NOISE_RATES.items():
    bad = lab.degrader(world).degrade(source, sample, good, flaw)
    print(f"{flaw:10s} {share:3.0%}  mark {mark(judge, sample, bad):.2f}  {bad!r}"[:110])

# %%
claim = lab.CLAIMS[8]
print("predicted:", claim.prediction)
print("threshold:", claim.threshold)
data, data_verdict = lab.recorded(8).measurements, lab.recorded(8).verdict
for name, estimate in data_verdict.estimates.items():
    print(f"{name:24s} {estimate}")
print("paper:", claim.paper_value)
print("verdict:", data_verdict.outcome, "|", data_verdict.reason)


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
    return [m.values[key] for m in data]


def draw_arms(what):
    values = [arm_values(arm, what) for arm in ARMS]
    name = "safety" if what == "safety" else "helpfulness"
    return lab.bars_with_intervals(
        list(ARMS.values()), np.mean(values, 1), np.min(values, 1), np.max(values, 1),
        f"{name} (gold judge, 0 to 1)", title=f"{what}; bars: mean, lines: range of three seeds",
    )  # fmt: skip


def arms_words(what):
    longer, noisy = (np.mean(arm_values(arm, what)) for arm in ("few_clean_longer", "many_noisy"))
    return f"Judged on {what}: at equal steps, clean minus noisy is {'positive' if longer > noisy else 'negative'}."


show(
    draw_arms("all"),
    alt="Helpfulness: 120 noisy dialogs are worst, then 120 clean, then the same for longer; 480 noisy dialogs are best or level.",
)
show(
    draw_arms("safety"),
    alt="Safety: at equal steps the clean dialogs are far ahead of the noisy ones.",
)
gap = {arm: np.array(arm_values(arm, "all")) - arm_values("many_noisy", "all") for arm in ARMS}
safer = np.array(arm_values("few_clean_longer", "safety")) - arm_values("many_noisy", "safety")
print("equal epochs: the many noisy answer better, each seed:", bool((gap["few_clean"] < 0).all()))
print(
    "equal steps: that lead shrinks, each seed:",
    bool((gap["few_clean_longer"] > gap["few_clean"]).all()),
)
print("equal steps: the few clean are safer, each seed:", bool((safer > 0.05).all()))
Explorer(draw_arms, arms_words, what=KINDS)

# %% [markdown]
# **The claim is not reproduced here.** The bars tell a part of the reason.
#
# - *First and second bar:* number for number, clean dialogs are worth more than noisy ones, but not by much.
# - *First and last bar:* four times as many dialogs bring more than the noise costs. A part of that is simply steps: given equal steps, the clean ones come close.
# - *The drop-down:* what is left of the lead comes from questions. 480 dialogs ask for more facts, in more wordings, than 120: variety, which no number of epochs replaces.
#
# But why does the noise cost so little, when more than half of the answers have a flaw? Nearly half have none, and no single flaw has more than 15 %. So at each word the clean continuation is the likeliest one. A model that writes what is likely follows the majority, and flaws that fall at random outvote each other.
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
    alt="At temperature 0 the two arms are close together; at 1 the model tuned on noisy dialogs has lost much more.",
)  # fmt: skip
lost = {arm: values[:, 0] - values[:, 2] for arm, values in by_heat.items()}
print(
    "from 0 to 1 the noisy arm loses more, each seed:",
    bool((lost["many_noisy"] > lost["few_clean_longer"]).all()),
)
ahead = (by_heat["few_clean_longer"] - by_heat["many_noisy"])[:, 2]
print("at 1 the clean arm is ahead, on average:", ahead.mean() > 0.02)

# %% [markdown]
# So the noise was learned; at low temperature it is only rarely *said*. At temperature 1, with equal steps, the clean arm is well ahead. The rule was declared for 0.6, and the verdict stays.
#
# Two things that this cannot hide: **safety**, where the noisy set gives dangerous answers to the same kind of request again and again, and a set whose flaws are not random but a habit of its source. The paper's millions of third-party examples had such habits; our noise has none. That is one way in which our test is easier on noise than the paper's world was.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 9: answers only, and packed
# **Measure** on real rows of nano's training: the gradient at prompts, with the mask and without it, and the empty share of the rows. Exact, so one seed is enough. The model is untrained: nothing here depends on what it knows.

# %%
claim = lab.CLAIMS[9]
print("predicted:", claim.prediction)
print("threshold:", claim.threshold)
packing = claim.measure(lab.nano(), 0)
packing_verdict = claim.verdict([packing])
share = packing.values
print("paper:", claim.paper_value)
print("gradient at prompts, exactly zero:", share["gradient/prompt"] == 0.0)
print("without the mask it is not:", share["gradient/unmasked"] > 0)
for way in ("packed", "longest", "alone"):
    words = {"packed": "packed", "longest": "padded to the longest", "alone": "one dialog a row"}
    print(f"empty, {words[way]:22s} {share[f'waste/{way}']:.0%}")
print("verdict:", packing_verdict.outcome)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 10: samples against people
# **Say** (section 3.1). The authors looked at 180 examples and found the model's samples often as good as the answers that people had written. They concluded that more writing would not help much, and put their effort into preferences: the next notebook.
#
# **Measure.** The same 180 prompts a seed, held out; one sample of nano and one demonstration each. The gold judge marks both: safety for requests for harm, helpfulness for the rest. The **win rate** counts a tie as half, so 50 % means: as good as the demonstrations.
# Two controls: the pretrained model, and a *second* demonstration, which must come to 50 %. Predict nano's win rate, and on which kind of prompt it is worst. About 10 seconds.

# %% tags=["nbval-ignore-output"]
claim = lab.CLAIMS[10]
print("predicted:", claim.prediction)
print("threshold:", claim.threshold)
rivals = [claim.measure(lab.nano(), seed) for seed in bar(range(3), about="comparing")]
rival_verdict = claim.verdict(rivals)
for name, estimate in rival_verdict.estimates.items():
    print(f"{name:20s} {estimate}")
print("paper:", claim.paper_value)
print("verdict:", rival_verdict.outcome, "|", rival_verdict.reason)

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
kinds = sorted({key for m in rivals for key in m.values if key.startswith("win/")})
by_kind = {key[4:]: [100 * m.values[key] for m in rivals if key in m.values] for key in kinds}
order = sorted(by_kind, key=lambda kind: -np.mean(by_kind[kind]))
LABELS = {
    "adversarial": "harm",
    "how_to": "how\nto",
    "question": "ques-\ntion",
    "summary": "sum-\nmary",
    "rewrite": "capi-\ntals",
}
figure = lab.bars_with_intervals(
    [LABELS.get(kind, kind) for kind in order],
    [np.mean(by_kind[k]) for k in order], [min(by_kind[k]) for k in order], [max(by_kind[k]) for k in order],
    "win rate, ties half (%)", title="mean and range of three seeds", reference={"as good as a demonstration": 50},
)  # fmt: skip
figure.axes[0].set_ylim(0, 70)
show(
    figure,
    alt="Win rate by kind of prompt: stories and questions come near 50 percent; sums and capital letters stay near 0.",
)
rates = {who: np.mean(pooled(rivals, who)) for who in ("sft", "base", "control")}
print("a second demonstration comes to one half:", abs(rates["control"] - 0.5) < 0.06)
print("the pretrained model never rivals one:", rates["base"] < 0.05)
print("nano is clearly between the two:", 0.1 < rates["sft"] < 0.4)
print(
    "on questions it wins more than a fifth:",
    np.mean(by_kind["question"]) > 20,
    "| on sums much less:",
    np.mean(by_kind["sum"]) < 15,
)

# %% [markdown]
# **Not reproduced, and the reason is skill, not form.** Where the model knows the answer, its sample is as good as a demonstration, up to a polite word. It cannot add numbers that it never saw, nor write a sentence of new names in capital letters: a million weights and 2,000 dialogs do not teach that. And it learned from careless writers too, while the demonstrations it meets here are all careful ones. The paper's model had learned such skills before SFT began.
#
# A win rate against demonstrations thus measures two things at once: how well the *form* was learned, and how much the model *can do*. Keep them apart when you read one.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here |
# |---|---|---|
# | 8, quality | 27,540 of its own examples in place of millions of others': results improved notably; no number | 120 clean against 480 noisy: the many are more helpful at equal epochs, about level at equal steps; the clean are safer; verdict above |
# | 9, mask and packing | loss zeroed on prompts; prompts and answers concatenated; no numbers | exact zeros at prompts; about 2 % of packed rows empty, about 78 % with one dialog a row |
# | 10, samples | 180 examples looked at, samples often as good; no number | win rate about one in five against careful demonstrations; near one half on what the model can do |
#
# - **Claim 8** was first run on the smallest model of our grids (400 and 1,600 dialogs), with no clear result, because that model answers next to nothing. It was then moved to nano, with the same rule. The three seeds share one pretrained model and one set of dialogs; they differ in the order of training, in prompts and in samples.
# - **Quality** in the paper means more than flaws: variety, style, the care of a vendor. Ours is six kinds of flaw at known rates, and unsafe answers.
# - **Claim 10**: the paper's judges were people, and knew what they looked for; ours is a program that sees the world's truth and is hard on every wrong sum.
# - **Not stated in the paper**, so ours: warm-up, final rate, clipping, whether packed dialogs see each other, the sampling temperature of claim 10, the shares of helpfulness and safety among the 27,540.
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
# Does the temperature matter for a win rate? Write `win_rate(model, temperature, asked)`: sample one answer of `model` to each prompt in `asked` (with `top_p=1.0`, `seed=0`, `max_new_tokens=128`), and return its win rate against the demonstrations of `demonstrated(lab.nano(), asked, 0, "first")`, ties half. Then compare 0 with 2 for the fine-tuned nano.
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
# - Your noisy set has one flaw only, in 55 % of its answers: each ends with "I hope that helps. I hope that helps." What would the curves over temperature look like now?
# - The clean set had seen 120 dialogs eight times. What can a model learn from 480 different flawed ones that it cannot learn from 120 good ones, however long it looks?
# - Two runs have the same loss on answers; one was trained with isolated dialogs, one without. Which would you rather ask a question, and why?
# - The paper moved to preferences when samples rivalled people. Nano's do not yet, on sums. Would preferences teach it to add?
#
# ## Next
# `06_reward_models`: from answers that are shown to answers that are compared.
