# %% [markdown] slideshow={"slide_type": "slide"}
# # Scale out: other people's weights, several processes, seventy billion
# Everything so far ran on two cores, with a million weights. What of it holds for Meta's models? The architecture and the losses do, line by line. What changes is where numbers lie: in which order a file stores them, on how many machines, and what must be sent between these before a step can be taken.
# You build the order of rotary pairs that differs between two file formats, the memory of a training step, and the division of a batch among processes that leaves the gradient as it was.
#
# - **You will be able to explain** why a converted checkpoint can be wrong in a way that no shape shows, what Meta's eight shards of 70B hold, what takes the memory of a training step, how many GPUs hold it, and why a mean of means is not the mean.
# - **Prerequisites:** notebooks 02, 03 and 04. **Paper sections:** 2.2.1, 3.2.3; tables 1 and 2.
# - **Minutes:** 45 to read, 30 for the exercises, 1 to run on two cores.

# %% tags=["long"]
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from llama2_lib import lesson as lab
from llama2_lib.export import convert
from llama2_lib.model import config as shapes
from llama2_lib.model import weights
from llama2_lib.teaching.check import check, expect_failure, start
from llama2_lib.bench import memory
from llama2_lib.widgets import Explorer, show, show_claim, show_prediction

folders = start("13_scale_out", needs=["pretrain", "sft"], recipe=lab.nano(), minutes=20)
model, config = lab.load_model(folders["sft"])
tokenizer = lab.load_tokenizer(folders["sft"])
here = Path(tempfile.mkdtemp())
ids = torch.tensor([tokenizer.encode("One morning Remy went to the mill.", bos=True)])

# %% [markdown]
# **See** the way of a checkpoint. Blue boxes are programs that compute, white ones are files.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "Meta's files": lab.Node(0, 0, "params.json,\nconsolidated.00 to 07"),
            "Hugging Face's": lab.Node(0, 1, "config.json,\nsafetensors in shards"),
            "llama2.c, llama.cpp": lab.Node(0, 2, "one .bin, one .gguf"),
            "load_model": lab.Node(1, 1, "one weight after another", "trained"),
            "our model": lab.Node(2, 1, "notebook 02", "trained"),
            "convert": lab.Node(2, 2, "into any layout", "trained"),
        },
        [
            ("Meta's files", "load_model", ""),
            ("Hugging Face's", "load_model", ""),
            ("llama2.c, llama.cpp", "load_model", ""),
            ("load_model", "our model", ""),
            ("our model", "convert", ""),
        ],
    ),
    alt="Files of Meta, Hugging Face, llama2.c and llama.cpp are read by load_model into our model, and convert writes it in any layout.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A checkpoint that loads and is wrong
# **Say.** Rotary positions turn *pairs* of numbers of a head (notebook 02). Meta's code pairs neighbours: 0 with 1, 2 with 3. The code of Hugging Face pairs halves: with eight numbers 0 with 4, 1 with 5. Both are the same model if the rows of $W_q$ and $W_k$ are put in another order, since a row makes a number. So whoever carries weights from one to the other must reorder these rows, in every head, and nothing else.
#
# **Build** `neighbours(rows, head_dim)`: from halves to neighbours. `rows` has shape (heads x head_dim, width).


# %%
def neighbours(rows, head_dim):
    ### BEGIN SOLUTION
    heads = rows.view(-1, 2, head_dim // 2, rows.shape[1])  # head, half, pair
    return heads.transpose(1, 2).reshape(rows.shape)
    ### END SOLUTION


@check("from halves to neighbours")
def _():
    rows = torch.arange(16.0)[:, None].repeat(1, 3)  # two heads of eight
    mine = neighbours(rows, 8)
    assert mine.shape == rows.shape, (
        f"the shape must stay {tuple(rows.shape)}; got {tuple(mine.shape)}"
    )
    order = mine[:, 0].int().tolist()
    assert order != list(range(16)), "nothing was reordered"
    assert order != [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15], (
        "this is the way back, from neighbours to halves"
    )
    assert order[:2] != [0, 8], "rows of two heads were mixed: reorder within each head"
    assert order == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15], f"got the order {order}"


# %% [markdown]
# **Measure** with our fine-tuned model. It is written in Hugging Face's layout, and its weights are read again, once as the library reorders them, as your function does, and once as they stand in the file. **Predict**: will the wrong one refuse to load? How large is the difference of its logits, which have a spread of about 3?

# %% tags=["near=0.05"]
folder = convert(folders["sft"], here / "hugging-face")
theirs = weights.to_hugging_face(model.state_dict(), config)
reordered = weights.from_hugging_face(theirs, config)
unordered = dict(reordered)
for layer in range(config.n_layers):
    for ours, name in (("wq", "q_proj"), ("wk", "k_proj")):
        stored = theirs[f"model.layers.{layer}.self_attn.{name}.weight"]
        unordered[f"layers.{layer}.attention.{ours}.weight"] = stored
with torch.no_grad():
    right = model(ids)
    for name, held in (("reordered", reordered), ("as stored", unordered)):
        gap = (weights.build(config, held)(ids) - right).abs().max()
        print(f"{name:10s} loads; largest difference of a logit {gap.item():.2g}")
with torch.no_grad():
    again = lab.load_model(folder)[0](ids)
print("the library reads its own folder with a difference of", (again - right).abs().max().item())

# %% [markdown]
# The wrong one loads without a word: all shapes fit. It even writes something. Only a comparison of logits shows it, so every converter of the course is tested by logits, and for all three kinds of attention.
#
# ## Shards
# **Say.** Large models are cut. The file of 70B would be 138 GB; Meta released eight, one for each GPU of a node. A rank holds some *columns* of the computation: of $W_q, W_k, W_v, W_1, W_3$ a part of the outputs, of $W_o, W_2$ a part of the inputs, so that a block needs two sums between GPUs and no more. Eight key/value heads on eight GPUs are one for each.
#
# **See** our model in two such shards. **Predict** the shapes of `wq`, `wk`, `wo` and `w2`.

# %%
two = convert(folders["sft"], here / "meta", "meta", shards=2)
shard = torch.load(two / "consolidated.01.pth")
for name in ("attention.wq", "attention.wk", "attention.wo", "feed_forward.w2", "attention_norm"):
    key = f"layers.0.{name}.weight"
    whole, part = tuple(model.state_dict()[key].shape), tuple(shard[key].shape)
    print(f"{name:17s} whole {whole!s:11s} in each of two shards {part}")
with torch.no_grad():
    gap = (lab.load_model(two)[0](ids) - right).abs().max().item()
print("merged again, the largest difference of a logit is", gap)

# %% [markdown]
# **Break.** Shards are copied by hand, and one is forgotten, or comes from another model.

# %% tags=["long"]
(two / "consolidated.00.pth").rename(here / "aside.pth")
with expect_failure(FileNotFoundError):
    try:
        lab.load_model(two)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace(str(here), "...")) from None
foreign = {**torch.load(here / "aside.pth"), "layers.0.attention.wq.bias": torch.zeros(4)}
torch.save(foreign, two / "consolidated.00.pth")
with expect_failure(ValueError):
    lab.load_model(two)

# %% [markdown]
# ### Your own copy of Llama 2
# Have you got weights of a Llama 2, or of one of its family? Name their folder in the variable `LLAMA_FOLDER` of the environment before you start JupyterLab; without it this cell tells only that. Nothing is downloaded.

# %% tags=["nbval-ignore-output"]
if place := os.environ.get("LLAMA_FOLDER"):
    large, large_config = lab.load_model(place, dtype=None)
    speaks = lab.load_tokenizer(place)
    beginning = speaks.encode("The llama is an animal that", bos=True)
    [said] = lab.generate(large.eval(), [beginning], max_new_tokens=20, temperature=0.0)
    print(large_config, speaks.decode([*beginning, *said.ids]), sep="\n")
else:
    print("LLAMA_FOLDER is not set: the cells below need no weights.")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What a step needs
# **Say.** A training step keeps four things for every weight: the weight, its gradient, and AdamW's two moments, each in fp32. Beside them it keeps what the backward pass will read again, the **activations**, for every token of the batch.
#
# **Build** `state_bytes(n_weights, gpus)`: the bytes of the first four on each of several GPUs that divide them evenly.


# %%
def state_bytes(n_weights, gpus=1):
    ### BEGIN SOLUTION
    return 4 * 4 * -(-n_weights // gpus)
    ### END SOLUTION


@check("bytes of a training state")
def _():
    assert state_bytes(1000) != 4000, "weights alone: gradients and two moments are missing"
    assert state_bytes(1000) != 12_000, "AdamW keeps two moments, not one"
    assert state_bytes(1000) == 16_000, f"16 bytes a weight; got {state_bytes(1000) / 1000:g}"
    assert state_bytes(1000, 8) == 2000, "each GPU holds its share alone"
    for size in shapes.FAMILY.values():
        made = memory.plan(size, gpus=7)
        assert (
            abs(state_bytes(size.n_parameters, 7) - made.weights - made.gradients - made.optimizer)
            < 64
        )


# %%
for name, size in shapes.FAMILY.items():
    made = memory.plan(size)
    state, alone = made.weights + made.gradients + made.optimizer, 2 * size.n_parameters
    print(f"{name:4s} {size.n_parameters / 1e9:5.1f} billion weights: {state / 1e9:7.1f} GB to train, {alone / 1e9:6.1f} GB to run in bf16")  # fmt: skip

# %% [markdown]
# A GPU of the paper's has 80 GB. Even 7B cannot be trained on one in this way; 70B needs 14 for its state alone. So the state is divided among the GPUs (**FSDP**, or ZeRO stage 3): each keeps a part, and gathers the matrices of a block just before it works.
#
# Activations are not divided: each GPU has its own rows. The usual way out is to keep the input of every block only, and to compute the block again on the way back (**activation checkpointing**): a third more operations.
#
# **Predict**: with 4,096 tokens on each, on how many GPUs does 70B fit? Then move the sliders.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
PARTS = {
    "weights": "weights", "gradients": "gradients", "AdamW": "optimizer",
    "gathered": "gathered", "activations": "activations", "logits": "logits",
}  # fmt: skip


def planned(size, gpus, tokens, recompute):
    made = memory.plan(shapes.FAMILY[size], gpus=gpus, tokens=tokens, recompute=recompute)
    return made, [getattr(made, name) / 1e9 for name in PARTS.values()]


def draw_plan(size, gpus, tokens, recompute):
    made, parts = planned(size, gpus, tokens, recompute)
    figure, axes = lab.new_figure(7, 3.6)
    names, values = [*PARTS, "together"], [*parts, made.total / 1e9]
    drawn = axes.barh(names, values, color=["#3f90da"] * len(parts) + ["#1b4b82"])
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.axvline(80, color="0.3", linestyle="--")
    axes.annotate("a GPU of 80 GB", (80, 0), xytext=(-4, 0), textcoords="offset points", ha="right")
    axes.set(xlim=(0, 1.12 * max(*values, 80)), xlabel="GB on each GPU, by the plan")
    axes.set_title(f"{size}, {gpus} GPUs, {tokens:,} tokens on each")
    axes.invert_yaxis()
    return figure


def plan_words(size, gpus, tokens, recompute):
    made, parts = planned(size, gpus, tokens, recompute)
    largest = list(PARTS)[int(np.argmax(parts))]
    fits = "fits into" if made.total < 80e9 else "exceeds"
    return f"{made.total / 1e9:.0f} GB on each GPU, which {fits} 80; most is {largest} ({max(parts):.0f} GB)."


show(draw_plan("70B", 16, 4096, True), alt=plan_words("70B", 16, 4096, True))
Explorer(
    draw_plan, plan_words, size=list(shapes.FAMILY), gpus=[1, 2, 8, 16, 24, 64, 256, 2048],
    tokens=[512, 2048, 4096, 16384], recompute=[True, False],
)  # fmt: skip

# %%
for gpus in (8, 16, 24, 64):
    made = memory.plan(shapes.LLAMA2_70B, gpus=gpus, tokens=4096)
    print(f"70B on {gpus:2d} GPUs: {made.total / 1e9:6.1f} GB each; a step computes {made.compute_seconds:.1f} s and moves weights for {made.transfer_seconds:.1f} s")  # fmt: skip
everything = memory.plan(shapes.LLAMA2_70B, gpus=64, tokens=4096, recompute=False)
print(f"without computing again: activations of {everything.activations / 1e9:.0f} GB")

# %% [markdown]
# Sixteen GPUs are not quite enough, twenty-four are. The formula is no guess: its counts lie within three per cent of the bytes that PyTorch keeps for our models (`tests/test_memory.py`). The seconds assume 40 % of an A100's peak and 25 GB a second between GPUs.
#
# ### From hours to utilisation
# **Say** (table 2). 70B took 1,720,320 GPU hours for 2 trillion tokens. A weight costs about 6 operations per token: two forward, four backward. **Predict**: which share of the peak of 312 TFLOP/s was reached?

# %%
HOURS = {"7B": 184_320, "13B": 368_640, "34B": 1_038_336, "70B": 1_720_320}
for name, size in shapes.FAMILY.items():
    operations = 6 * size.n_parameters * 2e12
    reached = operations / (HOURS[name] * 3600)
    print(f"{name:4s} {reached / 1e12:5.0f} TFLOP/s per GPU, {reached / 312e12:.0%} of the peak")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One batch on several processes
# **Say.** Processes that hold the same weights can divide the rows of a batch: each computes the gradient of its rows, the gradients are added up, and all take the same step. This must not change what is learned. The loss is a mean over **counted tokens**, and the parts have different numbers of them: fine-tuning counts answers only. A mean of two means is then another number.
#
# **Build** `together(sums, counts)`: the loss of the whole batch from each process's sum of losses and number of counted tokens.


# %%
def together(sums, counts):
    ### BEGIN SOLUTION
    return sum(sums) / sum(counts)
    ### END SOLUTION


@check("the loss of all processes")
def _():
    assert together([6.0], [3]) == 2.0
    mine = together([10.0, 3.0], [10, 1])
    assert mine != 2.0, (
        "this is the mean of both means: a process with one token counts as much as one with ten"
    )
    assert mine != 13.0 / 2, "divide by the counted tokens, not by the processes"
    assert abs(mine - 13 / 11) < 1e-12, f"(10 + 3) / (10 + 1) is 1.18; got {mine:.3f}"


# %% [markdown]
# **Measure** on real dialogs: one batch of answers, divided into two halves in order of their length, as two unlucky processes might get them. How far is the gradient of each rule from that of the whole batch?

# %% tags=["long", "near=0.05"]
dialogs = list(lab.WorldSource(lab.make_world(0)).dialogs(5, 24))
examples = sorted(lab.examples(dialogs, tokenizer), key=lambda one: sum(one[1]))


def gradient(rows):
    """Gradient of the summed loss of some examples, how many tokens they count, and the loss"""
    model.zero_grad()
    total, count = 0.0, 0
    for row, mask in rows:
        loss = torch.nn.functional.cross_entropy(
            model(torch.tensor([row[:-1]]))[0], torch.tensor(row[1:]), reduction="none"
        )
        counted = torch.tensor(mask[1:])
        loss[counted].sum().backward()
        total, count = total + loss[counted].sum().item(), count + int(counted.sum())
    return torch.cat([p.grad.flatten() for p in model.parameters()]), count, total


whole, n, total = gradient(examples)
first, second = (gradient(part) for part in (examples[:12], examples[12:]))
print(f"counted tokens: {first[1]} and {second[1]}")
exact = (first[0] + second[0]) / (first[1] + second[1])
means = (first[0] / first[1] + second[0] / second[1]) / 2
for name, rule in (("sums over all counts", exact), ("mean of means", means)):
    apart = (rule - whole / n).norm() / (whole / n).norm()
    print(f"{name:21s} gradient {apart.item():.1%} away from that of the whole batch")
print(f"loss by sums {(first[2] + second[2]) / n:.4f}, by means {(first[2] / first[1] + second[2] / second[1]) / 2:.4f}, of the whole batch {total / n:.4f}")  # fmt: skip

# %% [markdown]
# The rule of sums is exact up to rounding; the mean of means learns another thing, mostly from short answers. This is why every loss of the course is a sum with its count (notebook 04), and why the loop divides once, after everything was added up.
#
# ### Divided weights, and a model that speaks
# **Say** (section 3.2.3). FSDP also divides the weights. In training that costs one gathering a block, forward and backward. Generation is another matter: every *token* needs all blocks, so that every token would gather the whole model. The authors found generation about 20 times slower so, even with large batches and a cache, and gathered the weights once before sampling, then dropped them.
#
# Claim 30 measures both ways in two real processes of this machine, which PyTorch's `torchrun` starts. Less is moved here than in the paper, and less far. **Predict** the factor.

# %%
show_prediction(30)

# %%
_ = show_claim(30)

# %% [markdown]
# Reproduced in its direction: from divided weights the same answers take almost four times as long. It is not the paper's 20: a million weights are gathered within one machine, and no network is in between. With 28 million weights (the recipe `small`) the factor was 4.4.
#
# With `torchrun --nproc-per-node 2 -m llama2_lib run STAGE` any stage of the course trains in this way, its checkpoints readable by any number of processes.
#
# ## What the paper reported, what we measured
# | what | the paper | here |
# |---|---|---|
# | utilisation in pretraining | not stated; from table 2: 39, 38, 35 and 43 % | computed above |
# | shards released | 1, 2 and 8 for 7B, 13B and 70B | any number that divides the heads; logits of merged shards equal |
# | generation under FSDP | about 20 times slower, cured by gathering the weights once (section 3.2.3) | two processes, a million weights: 3.7 times [3.2, 4.3]; *reproduced* in its direction |
# | memory of a step | not stated | formula within 3 % of PyTorch's bytes at our sizes |
#
# - **Not stated in the paper**, so ours: the number of GPUs, how weights were divided, whether activations were computed again.
# - **Not measured here**: a GPU. Where there is one, `llama2 bench gpu --device cuda` measures it: 1.1 billion weights in training and 7 billion in decoding, ours and those of the `transformers` library, each as a share of what the same GPU reaches in a plain product and in copying; `llama2 replay --device cuda` holds every stage to what the release's CPU made. How the whole chain would run at 70B stands in `docs/design/0019-at-seventy-billion.md`.
#
# ## Exercises
# ### Exercise 1 (easy, 10 minutes)
# Write `cache_gb(size, n_texts, length)`: gigabytes of keys and values in bf16 for `n_texts` texts of `length` tokens. `size` is a configuration with `n_layers`, `n_kv_heads` and `head_dim`.
# <details><summary>Hint</summary>Keys and values, two bytes each.</details>


# %% tags=["exercise"]
def cache_gb(size, n_texts, length):
    ### BEGIN SOLUTION
    return 2 * 2 * size.n_layers * size.n_kv_heads * size.head_dim * n_texts * length / 1e9
    ### END SOLUTION


@check("the cache of many texts")
def _():
    mine = cache_gb(shapes.LLAMA2_70B, 256, 700)
    assert abs(mine - 8 * 58.7) > 1, "70B has 8 heads of keys and values, not 64"
    assert abs(mine - 29.4) > 0.1, "keys and values: two tensors"
    assert abs(mine - 58.72) < 0.01, f"256 texts of 700 tokens need 58.7 GB; got {mine:.1f}"


# %% [markdown]
# ### Exercise 2 (medium, 10 minutes)
# The way back: `halves(rows, head_dim)` puts Meta's order into Hugging Face's.
# <details><summary>Hint</summary>Your function above, with `half` and `pair` exchanged.</details>


# %% tags=["exercise"]
def halves(rows, head_dim):
    ### BEGIN SOLUTION
    heads = rows.view(-1, head_dim // 2, 2, rows.shape[1])
    return heads.transpose(1, 2).reshape(rows.shape)
    ### END SOLUTION


@check("there and back")
def _():
    rows = torch.randn(24, 5)
    assert not torch.equal(halves(rows, 8), rows), "nothing was reordered"
    assert halves(torch.arange(8.0)[:, None], 8)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7], (
        "one head of eight: even rows, then odd ones"
    )
    key = "layers.1.attention.wk.weight"
    stored = theirs["model.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(halves(model.state_dict()[key], config.head_dim), stored), (
        "not the file's order"
    )


# %% [markdown]
# ### Exercise 3 (hard, 15 minutes)
# Write `fewest(size, tokens)`: the smallest number of GPUs of 80 GB, leaving a tenth free, that can train `size` with `tokens` tokens on each, blocks computed again; None where no number does.
# <details><summary>Hint</summary>`memory.plan(size, gpus=n, tokens=tokens).total` falls with n, but not to zero.</details>


# %% tags=["exercise"]
def fewest(size, tokens):
    ### BEGIN SOLUTION
    fitting = (n for n in range(1, 5000) if memory.plan(size, gpus=n, tokens=tokens).total <= 72e9)
    return next(fitting, None)
    ### END SOLUTION


@check("the fewest GPUs")
def _():
    assert fewest(shapes.LLAMA2_7B, 4096) == 2, "7B: its 108 GB of state alone need two"
    assert fewest(shapes.LLAMA2_70B, 4096) > fewest(shapes.LLAMA2_70B, 512), (
        "fewer tokens need less"
    )
    assert fewest(shapes.LLAMA2_70B, 100_000) is None, (
        "activations are not divided: no number of GPUs helps"
    )
    n = fewest(shapes.LLAMA2_70B, 4096)
    assert (
        memory.plan(shapes.LLAMA2_70B, gpus=n, tokens=4096).total
        <= 72e9
        < memory.plan(shapes.LLAMA2_70B, gpus=n - 1, tokens=4096).total
    ), f"{n} is not the fewest"


# %% [markdown]
# ## Questions to think about
# - Which two bugs of this notebook would a test of shapes find, and which would it not?
# - With 2,048 GPUs and a batch of 4 million tokens each GPU has 2,048 tokens per step. Why does the plan above say that dividing the weights among all of them would be slow? What do eight shards change?
# - Two processes with the same number of rows: when is the mean of means right after all?
# - A reward model, a reference, a value function and a policy of 70B: which of them need gradients, and how many GPUs would you ask for?
#
# ## Next
# Notebook 14 gives the models away, and you talk to all of them.
