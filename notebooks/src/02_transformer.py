# %% [markdown] slideshow={"slide_type": "slide"}
# # The transformer
# Llama 2 is a stack of identical blocks. In this notebook you build each part from plain tensor operations,
# check it against the library, look at it, and break it. At the end your parts compute the same
# numbers as the library, from weights with Meta's names.
#
# - **You will be able to explain** what RMSNorm, rotary positions, SwiGLU and causal attention compute,
#   why residual paths are there, where the 6,738,415,616 weights of "7B" sit, and which loss an
#   untrained model has.
# - **Prerequisites:** matrix products, softmax, the tokens of notebook 01; tensors in PyTorch. **Paper sections:** 2.2, table 1.
# - **Minutes:** 60 to read, 50 for the exercises, 1 to run, on two cores.

# %%
import dataclasses
import math
from functools import partial

import torch
import torch.nn.functional as F

from llama2_lib import lesson as lab
from llama2_lib import rng
from llama2_lib.figures.curves import rotations, shares
from llama2_lib.model.transformer import Transformer, apply_rotary, initialise, rotary_table
from llama2_lib.teaching import attention, transformer
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, show

folders = start("02_transformer")

# %% [markdown]
# **See** one block. It has two steps, and each adds something to the **residual stream** that runs through all blocks.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "x": lab.Node(0, 0, "residual stream", "data"),
            "RMSNorm": lab.Node(1, 0, "sets the size to 1", "trained"),
            "attention": lab.Node(2, 0, "looks back, with RoPE", "trained"),
            "h = x + attention": lab.Node(0, 1.3, "", "data"),
            "RMSNorm ": lab.Node(1, 1.3, "with gains of its own", "trained"),
            "SwiGLU": lab.Node(2, 1.3, "each position for itself", "trained"),
            "out = h + SwiGLU": lab.Node(0, 2.6, "to the next block", "data"),
        },
        [
            ("x", "RMSNorm", ""),
            ("RMSNorm", "attention", ""),
            ("x", "h = x + attention", "as it was"),
            ("attention", "h = x + attention", "is added"),
            ("h = x + attention", "RMSNorm ", ""),
            ("RMSNorm ", "SwiGLU", ""),
            ("h = x + attention", "out = h + SwiGLU", "as it was"),
            ("SwiGLU", "out = h + SwiGLU", "is added"),
        ],
    ),
    alt="x goes through RMSNorm and attention, and the result is added to x; the sum goes through another RMSNorm and SwiGLU, and the result is added again.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The architecture at a glance
# ```text
# ids -> tok_embeddings -> block -> block -> ... -> norm -> output -> logits
#
# one block:
#
#  x --+--> attention_norm -> attention (wq wk wv wo) --> (+) --+--> ffn_norm -> feed_forward (w1 w2 w3) --> (+) -->
#      |                                                   |    |                                           |
#      +------------------ residual path ------------------+    +-------------- residual path --------------+
# ```
# - A **token id** is a row number. `tok_embeddings` turns it into a vector of `dim` numbers.
# - The row of vectors that runs from left to right is the **residual stream**. Each block adds to it.
# - The **logits** are one score per token of the vocabulary, at every position: a score for what comes next.
#
# The names in the picture are the names in Meta's weight files. We use a small model; no two of its sizes are equal,
# so that a swapped axis cannot hide.

# %%
config = lab.ModelConfig(
    vocab_size=90, dim=48, n_layers=3, n_heads=4, n_kv_heads=4, multiple_of=20, max_seq_len=64
)
weights = transformer.random_weights(config)  # by Meta's names; every number random
for name, tensor in weights.items():
    if not name.startswith(("layers.1", "layers.2")):
        print(f"{name:34s} {tuple(tensor.shape)}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## RMSNorm
# **Say** (section 2.2; Zhang and Sennrich, 2019). The numbers in the residual stream grow from block to block. So each sublayer first divides its input
# by its **root mean square**, and multiplies by a learned **gain** $g$:
#
# $$y = g \odot \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}$$
#
# $\odot$ multiplies number by number. $\epsilon = 10^{-5}$ prevents a division by zero.
# LayerNorm, which came before, subtracts the mean as well; RMSNorm leaves that out.
#
# **Build.**


# %% tags=["build"]
def my_rms_norm(x, gain, eps):
    """x (..., dim), gain (dim) -> (..., dim)"""
    # The mean runs over the last axis; `keepdim=True` keeps it, so that the division fits.
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return gain * x / torch.sqrt(mean_square + eps)


@check("RMSNorm")
def _():
    transformer.rms_norm(my_rms_norm)


# %% [markdown]
# **See.** How large is the output as the input grows? Where the line is flat, the size of the input is forgotten and only its
# direction is kept. Below $\sqrt\epsilon$ the constant takes over and small inputs stay small.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
sizes = torch.logspace(-6, 3, 60)
direction = F.normalize(torch.randn(48, generator=rng.generator(0, "direction")), dim=0) * 48**0.5


def output_size(eps):
    y = my_rms_norm(sizes[:, None] * direction, torch.ones(48), eps)
    return y.square().mean(-1).sqrt()


def draw_norm(eps):
    series = {"with RMSNorm": (sizes, output_size(eps)), "without": (sizes, sizes)}
    return lab.lines(
        series, "root mean square of the input", "root mean square of the output", xscale="log", yscale="log",
        title=f"eps = {eps:g}",
    )  # fmt: skip


show(draw_norm(1e-5), alt="The output has size 1 for every input larger than about 0.003.")
Explorer(
    draw_norm,
    lambda eps: f"With eps {eps:g}, inputs smaller than {eps**0.5:.1g} are damped.",
    eps=[1e-5, 1e-8, 1e-2, 1.0],
)

# %% [markdown]
# **Break.** Three slips: eps outside the root, the gain left out, the mean subtracted. With ordinary inputs and fresh
# gains (all 1) the first two change next to nothing. Would you notice them in training? Predict what the check says.

# %%
with expect_failure(CheckFailed):
    transformer.rms_norm(lambda x, g, eps: g * x / (x.square().mean(-1, keepdim=True).sqrt() + eps))
with expect_failure(CheckFailed):
    transformer.rms_norm(lambda x, g, eps: my_rms_norm(x, torch.ones_like(g), eps))
with expect_failure(CheckFailed):
    transformer.rms_norm(lambda x, g, eps: my_rms_norm(x - x.mean(-1, keepdim=True), g, eps))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Rotary positions (RoPE)
# **Say** (section 2.2; Su et al., 2021). Attention compares a query with a key by a dot product, and a dot product knows nothing of order.
# RoPE adds order by **turning**. The `head_dim` numbers of a head form pairs of neighbours. At position $m$, pair $j$ is turned by the angle
#
# $$m\,\theta_j, \qquad \theta_j = 10000^{-2j/\mathrm{head\_dim}}, \qquad
# \begin{pmatrix} a' \\ b' \end{pmatrix} = \begin{pmatrix} \cos m\theta_j & -\sin m\theta_j \\ \sin m\theta_j & \cos m\theta_j \end{pmatrix} \begin{pmatrix} a \\ b \end{pmatrix}$$
#
# Queries and keys are turned, values are not. The first pair turns by 1 radian per token, the last ones hardly at all. The number 10,000 is the **base** (`theta` in the code).
#
# **Build.** Meta's code and ours multiply complex numbers. You write the 2 x 2 rotation out with sines and cosines.


# %% tags=["build"]
def my_rotary(x, positions, theta):
    """x (batch, seq, heads, head_dim), positions (seq) -> like x"""
    # x[..., 0::2] holds the first number of every pair, x[..., 1::2] the second.
    head_dim = x.shape[-1]
    speeds = theta ** (-torch.arange(0, head_dim, 2, dtype=x.dtype) / head_dim)  # one per pair
    angle = positions[:, None, None] * speeds  # (seq, 1, pairs): the same for every head
    a, b = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([angle.cos() * a - angle.sin() * b, angle.sin() * a + angle.cos() * b], -1)
    return turned.flatten(-2)


@check("RoPE")
def _():
    transformer.rotary(my_rotary)


# %% tags=["near=0.000001"]
x = torch.randn(1, 50, 2, 16, dtype=torch.float64, generator=rng.generator(0, "rope"))
complex_numbers = apply_rotary(x, rotary_table(16, 50, 10_000.0, torch.complex128)[None])
gap = (my_rotary(x, torch.arange(50), 10_000.0) - complex_numbers).abs().max()
assert gap < 1e-12, f"both derivations must agree but for rounding; they differ by {gap}"
print(f"largest difference between the two derivations: {float(gap):.1g}")

# %% [markdown]
# **See.** Each clock is one pair of a head with 8 numbers. The first turns fast, the last one slowly, like the hands for seconds, minutes and hours: so the head can measure distances
# on several scales.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
speeds = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)


def draw_clocks(position):
    return rotations(position * speeds, title=f"position {position}")


show(
    draw_clocks(3),
    alt="At position 3 pair 0 has turned by 3 radians, pair 1 by 0.3, the last by 0.003.",
)
Explorer(
    draw_clocks,
    lambda position: (
        f"At position {position} the four pairs have turned by "
        + ", ".join(f"{position * speed:.2f}" for speed in speeds.tolist())
        + " radians."
    ),
    position=(0, 20),
)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **Measure: scores depend on the distance only.** Turning $q$ by $m\theta_j$ and $k$ by $n\theta_j$ leaves the angle $(m-n)\theta_j$ between them.
# So $q_m \cdot k_n$ must be the same wherever the two stand, and must change when their distance does.
# **Predict:** what does the matrix of all $q_m \cdot k_n$ look like, for one vector $q$ and one vector $k$ at 40 positions each?

# %% tags=["near=0.01"]
generator = rng.generator(0, "distance")
q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=generator).unbind(0)
at = torch.arange(40)
turned_q = my_rotary(q.expand(1, 40, 1, 16), at, 10_000.0)[0, :, 0]
turned_k = my_rotary(k.expand(1, 40, 1, 16), at, 10_000.0)[0, :, 0]
scores = turned_q @ turned_k.T  # scores[m, n]
diagonals = [scores.diagonal(-distance) for distance in range(20)]
spread = max(float(d.max() - d.min()) for d in diagonals)
assert spread < 1e-12, f"scores at one distance must be equal but for rounding; got {spread}"
print(f"at one distance the scores differ by at most {spread:.0e}")
for far in (0, 1, 2, 10):
    print(f"score at distance {far:2d}: {float(diagonals[far][0]):6.2f}")

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
show(
    lab.heatmap(scores, "position of the key", "position of the query", "score", centre=0.0),
    alt="Along every diagonal the score is the same: it depends on the distance of query and key alone.",
)

# %% [markdown]
# How does the score decay with the distance? If $q = k$, the score is $\sum_j r_j^2\cos((m-n)\theta_j)$, where $r_j$ is the length of pair $j$.
# It is largest at distance 0 and, on the whole, falls. A larger base slows every pair but the first; later models reach longer contexts that way.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
distance = torch.arange(0, 4096, 4)


def kept(base, head_dim=128):
    speeds = base ** (-torch.arange(0, head_dim, 2) / head_dim)
    return (distance[:, None] * speeds).cos().mean(-1)


def draw_decay(base):
    return lab.lines(
        {"all pairs of equal length": (distance, kept(base))}, "distance (tokens)",
        "score, share of its value at distance 0", title=f"base {base:,}", reference={"0": 0.0},
    )  # fmt: skip


def decay_words(base):
    return f"With base {base:,}, {float(kept(base)[250:].mean()):.0%} of the score is left beyond 1,000 tokens, on average."


show(draw_decay(10_000), alt=decay_words(10_000))
Explorer(draw_decay, decay_words, base=[10_000, 100, 1_000_000])

# %% [markdown] slideshow={"slide_type": "subslide"}
# **Break: halves instead of neighbours.** Hugging Face's code pairs number $j$ with number $j + \mathrm{head\_dim}/2$. That is just as good a rotation,
# but weights that were trained with one layout are wrong for the other. Predict: will the shapes complain?


# %%
def rotary_halves(x, positions, theta):
    head_dim = x.shape[-1]
    speeds = theta ** (-torch.arange(0, head_dim, 2, dtype=x.dtype) / head_dim)
    angle = positions[:, None, None] * speeds
    a, b = x.chunk(2, dim=-1)
    return torch.cat([angle.cos() * a - angle.sin() * b, angle.sin() * a + angle.cos() * b], -1)


with expect_failure(CheckFailed):
    transformer.rotary(rotary_halves)

# %% [markdown]
# No shape complains. The cure is to reorder the rows of `wq` and `wk` once, when the weights are converted; then the two
# layouts give the same scores. The library's converter does so. Here both are run, side by side.

# %% tags=["near=0.01"]
h = torch.randn(1, 9, 48, generator=rng.generator(0, "layout"))
at = torch.arange(9)
name = "layers.0.attention."
meta, hugging_face = weights, lab.to_hugging_face(weights, config)


def layout_scores(wq, wk, rotary):
    q, k = ((h @ w.T).unflatten(-1, (4, 12)) for w in (wq, wk))
    return torch.einsum("bqhd,bkhd->bhqk", rotary(q, at, 10_000.0), rotary(k, at, 10_000.0))


neighbours = layout_scores(meta[name + "wq.weight"], meta[name + "wk.weight"], my_rotary)
name = "model.layers.0.self_attn."
halves = layout_scores(
    hugging_face[name + "q_proj.weight"], hugging_face[name + "k_proj.weight"], rotary_halves
)
mixed_up = layout_scores(
    hugging_face[name + "q_proj.weight"], hugging_face[name + "k_proj.weight"], my_rotary
)
print(
    f"scores with Meta's weights, neighbours: from {neighbours.min():.2f} to {neighbours.max():.2f}"
)
for name, others in (("halves", halves), ("neighbours, the usual bug", mixed_up)):
    apart = (neighbours - others).abs().max()
    print(f"converted weights, {name}: scores differ by up to {apart:.2f}")
assert torch.allclose(neighbours, halves, rtol=1e-4, atol=1e-4), "the converter must reorder rows"

# %% [markdown] slideshow={"slide_type": "slide"}
# ## SwiGLU
# **Say** (section 2.2; Shazeer, 2020). After attention has moved information between positions, the feed-forward layer works on each position by itself:
#
# $$\mathrm{FFN}(x) = W_2\big(\mathrm{SiLU}(W_1 x) \odot W_3 x\big), \qquad \mathrm{SiLU}(a) = a\,\sigma(a) = \frac{a}{1 + e^{-a}}$$
#
# $W_3 x$ is what could be passed on; $\mathrm{SiLU}(W_1 x)$ is the **gate**, which decides how much of it is passed on. There are no biases, here or anywhere in Llama 2.
#
# **Build.** Weights are stored (out, in), as `nn.Linear` does.


# %% tags=["build"]
def my_swiglu(x, w1, w2, w3):
    """x (..., dim), w1 and w3 (hidden, dim), w2 (dim, hidden) -> (..., dim)"""
    # `torch.sigmoid` is the sigma of the formula.
    gate, content = x @ w1.T, x @ w3.T
    return (gate * torch.sigmoid(gate) * content) @ w2.T


@check("SwiGLU")
def _():
    transformer.swiglu(my_swiglu)


# %% [markdown]
# **See.** SiLU beside its relatives. Then one hidden unit: the gate's input on the axis, the content on the slider.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
a = torch.linspace(-5, 3, 200)
show(
    lab.lines(
        {"SiLU": (a, F.silu(a)), "GELU": (a, F.gelu(a)), "ReLU": (a, F.relu(a))},
        "input of the gate", "output of the gate",
    ),
    alt="SiLU and GELU are smooth forms of ReLU; SiLU dips to -0.28 and comes back to zero more slowly.",
)  # fmt: skip
Explorer(
    lambda content: lab.lines(
        {"SiLU(gate) * content": (a, F.silu(a) * content)}, "input of the gate", "output of the unit",
        title=f"content {content:g}", reference={"0": 0.0},
    ),
    lambda content: f"With content {content:g}, a gate of -5 lets {abs(float(F.silu(a[0]) * content)):.2f} through, a gate of 3 {float(F.silu(a[-1]) * content):.2f}.",
    content=[1.0, -1.0, 2.0, 0.0],
)  # fmt: skip

# %% [markdown]
# **Break.** Put GELU, from GPT-2, in place of SiLU. The curves nearly coincide; will the check notice?

# %%
with expect_failure(CheckFailed):
    transformer.swiglu(lambda x, w1, w2, w3: (F.gelu(x @ w1.T) * (x @ w3.T)) @ w2.T)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **The hidden width.** A classic feed-forward layer has two matrices and a hidden width of $4\cdot\mathrm{dim}$: $8\,\mathrm{dim}^2$ weights.
# SwiGLU has three matrices, so two thirds of that width cost the same: $3 \cdot \tfrac{8}{3}\mathrm{dim}\cdot\mathrm{dim} = 8\,\mathrm{dim}^2$.
# Meta's rule: cut $2\cdot 4\,\mathrm{dim}/3$ to a whole number, multiply by `ffn_dim_multiplier` and cut again, round **up** to a multiple of `multiple_of`.
# The multiplier is 1.3 in the 70B model; the next notebook comes back to it.


# %% tags=["build"]
def my_hidden_width(dim, multiple_of, multiplier):
    """Three numbers -> the hidden width, a whole number"""
    # `int` cuts, `math.ceil` rounds up.
    width = int(2 * 4 * dim / 3)
    width = int(multiplier * width)
    return multiple_of * math.ceil(width / multiple_of)


@check("hidden width")
def _():
    transformer.hidden_width(my_hidden_width)


# %%
for size, c in lab.FAMILY.items():
    print(
        f"{size:>4s}: dim {c.dim}, width {my_hidden_width(c.dim, c.multiple_of, c.ffn_dim_multiplier)}"
    )

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Causal attention
# **Say** (section 2.2). Every position asks a **query**, offers a **key** and holds a **value**. The answer is a weighted mean of values:
#
# $$\mathrm{out}_i = \sum_{j \le i} w_{ij}\,v_j, \qquad w_{ij} = \frac{e^{s_{ij}}}{\sum_{j' \le i} e^{s_{ij'}}}, \qquad s_{ij} = \frac{q_i \cdot k_j}{\sqrt{\mathrm{head\_dim}}}$$
#
# $j \le i$ makes it **causal**: a token sees itself and earlier ones. Because of that, one pass can train all positions at once. Several **heads** do this side by side, each in its own slice of the vector.
#
# **Build.** `visible[b, i, j]` is True where position $i$ may look at position $j$. A score of minus infinity becomes a weight of 0.
# `torch.einsum("bqhd,bkhd->bhqk", q, k)` names the axes of both tensors by letters, multiplies, and sums over the letter that the result lacks, here `d`.


# %% tags=["build"]
def my_attention_weights(q, k, visible):
    """q, k (batch, seq, heads, head_dim), visible (batch, seq, seq) -> (batch, heads, seq, seq)"""
    # Take the largest score off before the exponential, or large scores overflow.
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~visible[:, None], -math.inf)
    powers = (scores - scores.amax(-1, keepdim=True)).exp()  # the largest becomes 1: no overflow
    return powers / powers.sum(-1, keepdim=True)


def my_attention(q, k, v, visible):
    """q, k, v (batch, seq, heads, head_dim), visible (batch, seq, seq) -> like q"""
    return torch.einsum("bhqk,bkhd->bqhd", my_attention_weights(q, k, visible), v)


@check("causal attention")
def _():
    attention.multi_head(my_attention)


# %% [markdown]
# **See** the weights of one head, from random queries and keys. Each row is a query and sums to 1. The upper triangle is the future.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
q, k = torch.randn(2, 1, 12, 1, 16, generator=rng.generator(0, "triangle")).unbind(0)
triangle = my_attention_weights(q, k, torch.ones(1, 12, 12, dtype=torch.bool).tril())[0, 0]
show(
    lab.attention_map(triangle, [str(i) for i in range(12)]),
    alt="A lower triangle. The first token can look at itself only, with weight 1; later rows share the weight 1 among more and more keys.",
)

# %% [markdown]
# **See.** Why divide by $\sqrt{\mathrm{head\_dim}}$? The dot product of two vectors of $d$ independent standard normal numbers has a standard deviation of $\sqrt d$. Without the division, wide heads
# have huge scores, the softmax puts nearly all weight on one key, and almost no gradient flows through it.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "long"]
widths = [2, 4, 8, 16, 32, 64, 128, 256]


def largest_weight(width, scaled):
    generator = rng.generator(0, "softmax", width)
    q, k = torch.randn(2, 64, 16, 4, width, generator=generator).unbind(0)
    seen = torch.ones(1, 16, 16, dtype=torch.bool)
    q = q if scaled else q * width**0.5
    return float(my_attention_weights(q, k, seen).amax(-1).mean())


largest = {scaled: [largest_weight(w, scaled) for w in widths] for scaled in (True, False)}
show(
    lab.lines(
        {"divided by sqrt(head_dim)": (widths, largest[True]), "not divided": (widths, largest[False])},
        "head_dim (numbers)", "largest of 16 weights, mean", xscale="log", markers=True,
        reference={"all weights equal": 1 / 16},
    ),
    alt=f"Divided, the largest weight is about {largest[True][-1]:.1f} at every width; not divided, it rises to {largest[False][-1]:.1f}.",
)  # fmt: skip
keys = torch.randn(16, 256, generator=rng.generator(0, "keys"))
query = torch.randn(256, generator=rng.generator(0, "query"))


def sharp(head_dim, divided):
    scores = keys[:, :head_dim] @ query[:head_dim] / (head_dim**0.5 if divided else 1.0)
    return scores.softmax(-1)


def draw_sharp(head_dim, divided):
    figure, axes = lab.new_figure()
    axes.bar(range(16), sharp(head_dim, divided))
    axes.set(xlabel="key (number)", ylabel="attention weight", ylim=(0, 1))
    axes.set_title(f"head_dim {head_dim}, {'divided' if divided else 'not divided'}")
    return figure


Explorer(
    draw_sharp,
    lambda head_dim, divided: (
        f"At head_dim {head_dim}, {'divided' if divided else 'not divided'}, the largest weight is {float(sharp(head_dim, divided).max()):.2f}."
    ),
    head_dim=[128, 4, 16, 256],
    divided=True,
)

# %% [markdown]
# **Break.** The mask is off by one: each token also sees the next. Predict what happens to the training loss, and to the text that the model writes.
# <details><summary>Answer</summary>The loss would look wonderful, because the answer can be copied from the next position. When the model writes, there is no next token
# yet, and the text is rubbish. If a loss is too good, test the mask.</details>

# %%
with expect_failure(CheckFailed):
    attention.multi_head(
        lambda q, k, v, visible: my_attention(q, k, v, visible | visible.roll(1, -1).tril(1))
    )
with expect_failure(CheckFailed):
    attention.multi_head(
        lambda q, k, v, visible: my_attention(q * q.shape[-1] ** 0.5, k, v, visible)
    )

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The block
# **Say** (section 2.2). Two sublayers, each behind a norm and beside a **residual path** that carries its input past it:
#
# $$h = x + \mathrm{Attention}(\mathrm{norm}_1(x)), \qquad \mathrm{out} = h + \mathrm{FFN}(\mathrm{norm}_2(h))$$
#
# The norm stands **before** the sublayer (*pre-norm*), so the residual path runs from the embedding to the last norm with nothing on it but additions.
#
# **Build.** The block, with its parts as arguments.


# %% tags=["build"]
def my_block(x, attend, feed, norm_1, norm_2):
    """x (batch, seq, dim), four functions that keep its shape -> like x"""
    h = x + attend(norm_1(x))
    return h + feed(norm_2(h))


@check("block")
def _():
    transformer.block(my_block)


# %% [markdown]
# **Break.** Two other arrangements: the norm after each addition (*post-norm*, as in the transformer of 2017), and no residual paths. Predict what the check says.


# %%
def post_norm_block(x, attend, feed, norm_1, norm_2):
    h = norm_1(x + attend(x))
    return norm_2(h + feed(h))


def bare_block(x, attend, feed, norm_1, norm_2):
    return feed(norm_2(attend(norm_1(x))))


for wrong in (post_norm_block, bare_block):
    with expect_failure(CheckFailed):
        transformer.block(wrong)

# %% [markdown]
# **Measure.** What are the residual paths for? Three models of 12 of the library's blocks, arranged in the three ways, start from the same small random weights and learn the world's texts letter by letter for 100 steps.
# We watch the loss, and the size of the **gradient** of the loss at the entrance of each block in the first step. (How training works is the subject of notebook 04.)
#
# **Predict:** which of the three learn anything? Without residual paths, does the gradient explode or vanish on its way down to the first block?


# %%
letters = "\n".join(document.text for document in lab.documents(lab.make_world(0), 0, 400))
alphabet = sorted(set(letters))
assert len(alphabet) <= config.vocab_size, f"{len(alphabet)} letters need as many rows"
letter_ids = torch.tensor([alphabet.index(letter) for letter in letters])


def logits_of(model, ids, arrange):
    """The model's logits with its parts in this arrangement, and the input of each block."""
    h, inputs = model.tok_embeddings(ids), []
    rotation = model.rotation(h)
    for layer in model.layers:
        h.retain_grad()
        inputs.append(h)
        h = arrange(
            h, lambda x, layer=layer: layer.attention(x, rotation),
            layer.feed_forward, layer.attention_norm, layer.ffn_norm,
        )  # fmt: skip
    return model.output(model.norm(h)), inputs


# %%
def train_deep(arrange, steps=100):
    model = initialise(Transformer(dataclasses.replace(config, n_layers=12)), seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source, losses = rng.generator(0, "deep"), []
    for step in range(steps):
        start_at = torch.randint(len(letter_ids) - 33, (16, 1), generator=source)
        ids = letter_ids[start_at + torch.arange(33)]
        logits, inputs = logits_of(model, ids[:, :-1], arrange)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            gradient = [float(h.grad.norm()) for h in inputs]
        optimiser.step()
        losses.append(loss.item())
    return {"loss": losses, "gradient": gradient}


# %% tags=["near=0.1"]
arrangements = {
    "pre-norm (Llama 2)": my_block,
    "post-norm": post_norm_block,
    "no residual paths": bare_block,
}
followed = {name: train_deep(arrange) for name, arrange in arrangements.items()}
print("loss, nats per letter         first step   last 10 steps")
for name, found in followed.items():
    print(f"{name:30s}{found['loss'][0]:10.2f}{sum(found['loss'][-10:]) / 10:16.2f}")
print("gradient                         block 1        block 12")
for name, found in followed.items():
    print(f"{name:30s}{found['gradient'][0]:10.3f}{found['gradient'][-1]:16.3f}")


# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=0.1"]
def draw_depth(what):
    series = {name: (range(1, len(y[what]) + 1), y[what]) for name, y in followed.items()}
    if what == "loss":
        return lab.lines(series, "step", "loss (nats per letter)")
    return lab.lines(series, "block (1 is nearest to the embedding)", "size of the gradient in the first step", markers=True)  # fmt: skip


ends = ", ".join(f"{sum(y['loss'][-10:]) / 10:.2f} with {name}" for name, y in followed.items())
DEPTH = {
    "loss": f"Loss over the last 10 of 100 steps, nats per letter: {ends}.",
    "gradient": "With pre-norm the gradient is nearly the same at all blocks. With post-norm it is the same from block 2 on. Without residual paths it is 0 at every block.",
}
show(draw_depth("loss"), alt=DEPTH["loss"])
Explorer(draw_depth, lambda what: DEPTH[what], what=["gradient", "loss"])

# %% [markdown]
# Without residual paths the gradient **vanishes**, and the model learns nothing: its loss stays at $\ln 90 = 4.50$. Each sublayer shrinks its input. The norms make up for that until $\epsilon$ outweighs the tiny mean squares; a few blocks later all numbers are 0, whatever the text was, and so is the gradient.
# With residual paths each block's input reaches the end, and the gradient reaches each block. Both orders of norm and sublayer learn. Here post-norm even learns *faster*: pre-norm is the choice of the paper, not a finding of ours, and one seed of a toy decides nothing. (With post-norm the gradient at block 1 is larger because the first norm enlarges the small embeddings about fiftyfold.)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The whole transformer
# **Build.** You have now built every part. The attention layer projects, turns queries and keys, attends, and projects back. `w` holds the weights of one block.
#
# **Check** against the library's `Transformer`, which loads the same state dict. Then check two properties that every causal model must have: a token never changes the logits before it, and it does
# change those after it.


# %% tags=["build", "long"]
def my_attention_layer(x, w, visible, config, attend, rotary):
    """x (batch, seq, dim), w the block's weights by name -> like x"""
    # `unflatten(-1, (heads, head_dim))` makes heads of a vector, `flatten(-2)` a vector of heads.
    q, k, v = (
        (x @ w[f"attention.{name}.weight"].T).unflatten(-1, (config.n_heads, config.head_dim))
        for name in ("wq", "wk", "wv")
    )
    q, k = (rotary(t, torch.arange(x.shape[1]), config.rope_theta) for t in (q, k))  # not v
    return attend(q, k, v, visible).flatten(-2) @ w["attention.wo.weight"].T


def my_transformer(
    ids, weights, config, block=my_block, norm=my_rms_norm, attend=my_attention, rotary=my_rotary
):
    """ids (batch, seq) -> logits (batch, seq, vocab)"""
    # Look up the embeddings; go through the blocks; norm; multiply by the output matrix.
    visible = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    h = weights["tok_embeddings.weight"][ids]
    for i in range(config.n_layers):
        w = {name.removeprefix(f"layers.{i}."): t for name, t in weights.items()}
        h = block(
            h,
            lambda x, w=w: my_attention_layer(x, w, visible, config, attend, rotary),
            lambda x, w=w: my_swiglu(x, *(w[f"feed_forward.w{n}.weight"] for n in (1, 2, 3))),
            lambda x, w=w: norm(x, w["attention_norm.weight"], config.norm_eps),
            lambda x, w=w: norm(x, w["ffn_norm.weight"], config.norm_eps),
        )
    return norm(h, weights["norm.weight"], config.norm_eps) @ weights["output.weight"].T


# %%
@check("the whole transformer")
def _():
    transformer.whole(my_transformer)


@check("it is causal")
def _():
    ids = torch.randint(90, (1, 10), generator=rng.generator(0, "causal"))
    other = ids.clone()
    other[0, 6] = (other[0, 6] + 1) % 90
    change = (my_transformer(ids, weights, config) - my_transformer(other, weights, config)).abs()
    assert change[0, :6].max() == 0.0, "a token must not change the logits before it"
    assert change[0, 6:].amax(-1).min() > 1e-3, "it must change those at its place and after it"


# %% tags=["near=0.00001"]
model = lab.build(config, weights)
ids = torch.randint(90, (3, 20), generator=rng.generator(0, "ids"))
difference = (my_transformer(ids, weights, config) - model(ids)).abs().max()
difference = (difference / model(ids).abs().max()).item()
assert difference < 1e-5, f"both must agree but for rounding; the difference is {difference}"
print(f"largest difference to the library: {difference:.0e} of the largest logit")

# %% [markdown] slideshow={"slide_type": "subslide"}
# **Break** the whole model. Four mistakes that raise no error: values are turned, too; the rotation is that of halves; no residual paths; a norm without gains. Which one would you find by looking at the loss of the first step?
# <details><summary>Answer</summary>None. An untrained model is equally lost with any of these. They cost quality later, or spoil weights that someone else has trained.
# That is why parts are checked one by one.</details>


# %%
def rotates_values(q, k, v, visible):
    return my_attention(q, k, my_rotary(v, torch.arange(v.shape[1]), 10_000.0), visible)


def without_gain(x, gain, eps):
    return my_rms_norm(x, torch.ones_like(gain), eps)


for mistake in (
    {"attend": rotates_values},
    {"rotary": rotary_halves},
    {"block": bare_block},
    {"norm": without_gain},
):
    with expect_failure(CheckFailed):
        transformer.whole(partial(my_transformer, **mistake))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loss before the first step
# **Use.** From here on we call the library: `Transformer(config)`, `initialise`, `lab.build(config, weights)`.
#
# **Say.** The loss is the mean of $-\ln p(\text{next token})$, in **nats**. If all logits were 0, all $V$ tokens would be equally likely, and the loss would be $-\ln\tfrac1V = \ln V$. Fresh weights are small but not 0. Behind the last norm each vector has `dim` numbers of size about 1.
# If the output weights are normal with standard deviation $\sigma$, the logits are normal with standard deviation $s = \sigma\sqrt{\mathrm{dim}}$. They know nothing of the next token, so their spread only costs. For a large vocabulary the loss is about
#
# $$\ln V + \frac{s^2}{2} = \ln V + \frac{\sigma^2\,\mathrm{dim}}{2}.$$
#
# That is a cheap test of a new model. In a small model the second term can be neglected. In the shape of the 7B model, `dim` is 4096, and with $\sigma = 0.02$ the term is 0.82 nats.
#
# **Measure.** The library starts with $\sigma = 0.02$. **Predict** the loss above $\ln V$ for each of three widths.


# %% tags=["near=0.02"]
def first_loss(vocab_size, std=0.02, dim=48):
    small = dataclasses.replace(config, vocab_size=vocab_size, dim=dim, n_layers=1)
    fresh = initialise(Transformer(small), seed=0)
    ids = torch.randint(vocab_size, (16, 33), generator=rng.generator(0, "first loss"))
    with torch.no_grad():
        fresh.output.weight *= std / 0.02
        logits = fresh(ids[:, :-1])
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


V = 4096
print(f"V = {V}, ln V = {math.log(V):.2f} nats per token")
for dim in (48, 256, 1024):
    above = first_loss(V, dim=dim) - math.log(V)
    print(
        f"dim {dim:4d}: measured ln V + {above:.2f}, by the formula ln V + {0.02**2 * dim / 2:.2f}"
    )

# %% [markdown]
# **See.** If the output weights are too large, the untrained model is confident, and wrong. Training must unlearn that first.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input", "near=1"]
spreads = [0.03, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0]  # of the logits: s
losses = {v: [first_loss(v, s / 48**0.5) for s in spreads] for v in (90, 1024)}


def draw_first_loss(vocab_size):
    formula = [(s, math.log(vocab_size) + s**2 / 2) for s in spreads if s <= 5]
    return lab.lines(
        {"measured": (spreads, losses[vocab_size]), "ln V + s²/2": tuple(zip(*formula, strict=True))},
        "s, standard deviation of the logits", "loss (nats per token)", markers=True,
        reference={"ln V": math.log(vocab_size)}, title=f"V = {vocab_size}",
    )  # fmt: skip


def first_loss_words(vocab_size):
    return f"With {vocab_size} tokens the loss is near ln V = {math.log(vocab_size):.1f} nats for logits near 0, and about {losses[vocab_size][-1]:.0f} where their standard deviation is 7."


show(draw_first_loss(1024), alt=first_loss_words(1024))
Explorer(draw_first_loss, first_loss_words, vocab_size=[90, 1024])

# %% [markdown]
# For small $s$ the loss follows the formula. Where the logits spread widely, a few large ones dominate, and the loss grows more slowly than $s^2/2$.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The sizes of the family
# **Say** (table 1). The paper names four sizes: 7B, 13B, 34B, 70B. The shapes are in Meta's released configurations (34B: inferred from Code Llama, which started from it).
# **Build.** Count the weights from the shapes, before anything is allocated. Key/value heads may be fewer than query heads, as notebook 03 explains.
#
# **Check** on a model that exists, then on all four of the family. PyTorch's *meta* device makes tensors with a shape and no memory, so even the 70B model can be "built" here.


# %% tags=["build"]
def count(c):
    """Weights by part, from the shapes alone."""
    wide, narrow = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    return {
        "embedding": c.vocab_size * c.dim,
        "attention": c.n_layers * c.dim * (2 * wide + 2 * narrow),  # wq and wo, wk and wv
        "feed-forward": c.n_layers * 3 * c.dim * c.hidden_dim,
        "norms": c.n_layers * 2 * c.dim + c.dim,
        "output": c.dim * c.vocab_size,
    }


@check("count of the weights")
def _():
    assert sum(count(config).values()) == sum(w.numel() for w in weights.values())
    for size, c in lab.FAMILY.items():
        with torch.device("meta"):
            shapes = [p.numel() for p in Transformer(c).parameters()]
        assert sum(count(c).values()) == sum(shapes) == c.n_parameters, f"{size} is counted wrong"


# %% [markdown]
# **Measure.** The paper's names beside the count.

# %%
print("paper   weights from the shapes   dim  layers  heads  kv heads  width")
for size, c in lab.FAMILY.items():
    print(
        f"{size:>5s} {sum(count(c).values()):>25,d} {c.dim:>5d} {c.n_layers:>7d} {c.n_heads:>6d} "
        f"{c.n_kv_heads:>9d} {c.hidden_dim:>6d}"
    )
rounded = {size: sum(count(c).values()) / 1e9 for size, c in lab.FAMILY.items()}
away = ", ".join(f"{s} {count_ / float(s[:-1]) - 1:+.1%}" for s, count_ in rounded.items())
print(f"count minus name: {away}")

# %% [markdown]
# **See.** Where do the weights sit?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
models = {"this one": config, **lab.FAMILY}
by_part = {part: [count(c)[part] for c in models.values()] for part in count(config)}
feed_share = {s: count(c)["feed-forward"] / c.n_parameters for s, c in lab.FAMILY.items()}
show(
    shares(by_part, list(models), "model"),
    alt=f"The feed-forward layers hold {feed_share['7B']:.0%} of the 7B model and {feed_share['70B']:.0%} of the 70B model; embedding and output weigh in small models only.",
)

BYTES = {"fp32": 4, "fp16 / bf16": 2, "int8": 1}


def memory(size, number):
    return lab.FAMILY[size].n_parameters * BYTES[number] / 2**30


def draw_memory(size, number):
    parts = {part: n * BYTES[number] / 2**30 for part, n in count(lab.FAMILY[size]).items()}
    figure, axes = lab.new_figure()
    axes.barh(list(parts), list(parts.values()))
    axes.set(xlabel="memory (GiB)", ylabel="part")
    axes.set_title(f"{size} in {number}: {memory(size, number):.1f} GiB")
    return figure


Explorer(
    draw_memory,
    lambda size, number: (
        f"{size} in {number} takes {memory(size, number):.1f} GiB of weights; an A100 of '80 GB' has 80 GiB for weights, cache and activations."
    ),
    size=["7B", "13B", "34B", "70B"],
    number=["fp16 / bf16", "fp32", "int8"],
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | | paper | here |
# |---|---|---|
# | sizes (table 1) | 7B, 13B, 34B, 70B | 6.74, 13.02, 33.74, 68.98 billion, counted from the shapes (exact) |
# | architecture (section 2.2) | pre-norm RMSNorm, SwiGLU, RoPE | each built twice, here and in the library; equal but for rounding, below 1e-6 of the largest logit |
# | feed-forward width | not printed; Meta's code | 11008, 13824, 22016, 28672 from the rule (exact) |
# | initialisation | not stated | normal, 0.02, as is common: first loss at V = 4096, one seed: ln V + 0.01 nats at dim 48, + 0.05 at dim 256, + 0.23 at dim 1024 |
# | pre-norm | not compared | 12 blocks, 100 steps, one seed, no interval: 2.64 nats per letter with pre-norm, 2.03 with post-norm, 4.50 without residual paths |
#
# - The paper prints no shapes. Ours are those of the released configurations; the 34B row was never released and is taken from Code Llama 34B.
# - That these choices are *better* than others (SwiGLU than GELU, pre-norm than post-norm) the paper takes over from earlier work and does not measure. Our only test is the one above: a toy model, one seed, 100 steps.
#
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# Write `unrotate`, which undoes RoPE: `unrotate(my_rotary(x, p, theta), p, theta)` gives `x` back.
# <details><summary>Hint</summary>What does a rotation by the opposite angle do? You may call `my_rotary`.</details>


# %% tags=["exercise"]
def unrotate(x, positions, theta):
    ### BEGIN SOLUTION
    return my_rotary(x, -positions, theta)
    ### END SOLUTION


@check("unrotate")
def _():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=rng.generator(1, "exercise"))
    at = torch.tensor([0, 3, 4, 9, 20])
    back = unrotate(my_rotary(x, at, 100.0), at, 100.0)
    assert back.shape == x.shape, "the shape must stay"
    assert torch.allclose(back, x, rtol=0, atol=1e-12), "turning there and back must change nothing"
    assert not torch.allclose(unrotate(x, at, 100.0), x, rtol=0, atol=1e-3), (
        "it must turn something"
    )


# %% [markdown]
# ### Exercise 2 (medium, 10 minutes)
# How wide can a model be? Write `widest(budget)`: the largest `dim`, a multiple of 64, for which a model with 12 layers, heads of 64 numbers, as many key/value heads as
# query heads, `multiple_of=64` and a vocabulary of 32,000 has at most `budget` weights.
# <details><summary>Hint</summary>`lab.ModelConfig(...).n_parameters` counts; it grows with `dim`. Try 64, 128, ... until it is too large.</details>


# %% tags=["exercise"]
def widest(budget):
    ### BEGIN SOLUTION
    dim = 0
    while True:
        wider, heads = dim + 64, (dim + 64) // 64
        c = lab.ModelConfig(
            vocab_size=32_000,
            dim=wider,
            n_layers=12,
            n_heads=heads,
            n_kv_heads=heads,
            multiple_of=64,
        )
        if c.n_parameters > budget:
            return dim
        dim = wider
    ### END SOLUTION


@check("widest")
def _():
    assert widest(100_000_000) == 576, (
        "100 million weights: check the vocabulary; there are two tables of it"
    )
    assert widest(1_000_000_000) == 2368
    assert widest(5_000_000) == 64


# %% [markdown]
# ### Exercise 3 (medium, 15 minutes)
# Convert one projection from Hugging Face's layout to Meta's. `w` is `wq` or `wk`, (heads * head_dim, dim). In Hugging Face's layout the rows of a head are first all first members of the
# pairs, then all second members; in Meta's each first member is followed by its second.
# <details><summary>Hint</summary>Split the rows into (heads, 2, head_dim / 2), swap the last two of these axes, and flatten again. `unflatten`, `transpose`, `flatten`.</details>
# <details><summary>Second hint</summary>With einops: `rearrange(w, "(head half pair) dim -> (head pair half) dim", ...)`.</details>


# %% tags=["exercise"]
def to_meta(w, n_heads):
    ### BEGIN SOLUTION
    rows = w.unflatten(0, (n_heads, 2, -1))
    return rows.transpose(1, 2).flatten(0, 2)
    ### END SOLUTION


@check("to_meta")
def _():
    for layer, ours, theirs in ((0, "wq", "q_proj"), (2, "wk", "k_proj")):
        stored = hugging_face[f"model.layers.{layer}.self_attn.{theirs}.weight"]
        wanted = weights[f"layers.{layer}.attention.{ours}.weight"]
        found = to_meta(stored, 4)
        assert found.shape == wanted.shape, f"the shape must stay {tuple(wanted.shape)}"
        assert not torch.equal(found, stored), "the rows must be reordered"
        assert torch.equal(found, wanted), "the rows are in another order than Meta's"


# %% [markdown]
# ### Exercise 4 (hard, 20 minutes)
# Find the bug. `weights_from_a_colleague` loads without a word, and its logits are wrong. Exactly one tensor differs from `weights`, and only in how it is laid out.
# Write `culprit(good, bad, ids)`, which returns the number of the first block whose output differs. It must run the models, not compare the weights.
# <details><summary>Hint</summary>Run both models block by block: `model.tok_embeddings`, then `layer(h, model.rotation(h))` for each of `model.layers`. Compare after each block.</details>

# %% tags=["exercise"]
weights_from_a_colleague = dict(weights)
weights_from_a_colleague["layers.1.attention.wv.weight"] = weights[
    "layers.1.attention.wv.weight"
].T.contiguous()


def culprit(good, bad, ids):
    ### BEGIN SOLUTION
    a, b = good.tok_embeddings(ids), bad.tok_embeddings(ids)
    rotation = good.rotation(a)
    for index, (layer, other) in enumerate(zip(good.layers, bad.layers, strict=True)):
        a, b = layer(a, rotation), other(b, rotation)
        if not torch.allclose(a, b, rtol=1e-5, atol=1e-5):
            return index
    return None
    ### END SOLUTION


@check("culprit")
def _():
    with torch.no_grad():
        assert culprit(model, lab.build(config, weights_from_a_colleague), ids) == 1, (
            "look at the output of each block"
        )
        swapped = dict(weights) | {
            "layers.2.ffn_norm.weight": weights["layers.2.ffn_norm.weight"].flip(0)
        }
        assert culprit(model, lab.build(config, swapped), ids) == 2, (
            "it must work for other bugs too"
        )


# %% [markdown]
# ## Questions to think about
# - RMSNorm forgets the length of its input. What, in the residual stream, can the model still express by length?
# - Why is the value not rotated? What would the output of attention mean if it were?
# - The first pair of RoPE turns by a radian per token. What is a head that looks only at the first pairs good for, and a head that looks only at the last pairs?
# - In the 70B model the feed-forward width is 3.5 times `dim`, in the 7B model 2.69 times. What was saved elsewhere?
# - Embedding and output are two separate tables. In the course's nano model they are 26 % of the weights, in the 7B model 4 %. What speaks for sharing one table, what against?
#
# ## Next
# `03_grouped_query_attention`: fewer keys and values, the cache, and how text is generated.
