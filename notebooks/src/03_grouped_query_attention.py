# %% [markdown] slideshow={"slide_type": "slide"}
# # Grouped-query attention, the cache, and generation
# To generate each token, a model needs the keys and values of all earlier tokens. With many conversations at once they take more memory than the weights.
# The 34B and 70B models of Llama 2 share keys and values between heads; the 70B model keeps 8 times fewer. You build that, the cache that holds them, and generation; then you measure
# what the paper claims: how much memory is saved, how much throughput is won, and what it costs in quality.
#
# - **You will be able to explain** multi-head, multi-query and grouped-query attention as one piece of code, what a key/value cache
#   holds and how many bytes, why fewer keys and values mean higher throughput, and how to tell from three seeds whether quality suffered.
# - **Prerequisites:** notebook 02. **Paper sections:** 2.2, A.2.1 with table 18 and figure 24.
# - **Minutes:** 60 to read, 45 for the exercises, 1 to run on two cores.

# %% tags=["long"]
import dataclasses
import math

import torch
from scipy import stats

from llama2_lib import lesson as lab
from llama2_lib import rng
from llama2_lib.model.generate import nucleus
from llama2_lib.model.transformer import attention_weights, masked
from llama2_lib.teaching import attention
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.widgets import Explorer, Stepper, bar, show, show_claim, show_prediction

folders = start("03_grouped_query_attention", needs=["pretrain"], recipe=lab.nano())
model, config = lab.load_model(folders["pretrain"])
tokenizer = lab.load_tokenizer(folders["pretrain"])
_ = torch.set_grad_enabled(False)  # nothing is trained in this notebook's own cells

# %% [markdown]
# **See** who reads whose keys. Our model has four query heads and two heads of keys and values, so that two queries share each.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "q 1": lab.Node(0, 0, "", "trained"),
            "q 2": lab.Node(1, 0, "", "trained"),
            "q 3": lab.Node(2, 0, "", "trained"),
            "q 4": lab.Node(3, 0, "", "trained"),
            "k, v 1": lab.Node(0.5, 1, "kept in the cache", "trained"),
            "k, v 2": lab.Node(2.5, 1, "kept in the cache", "trained"),
        },
        [
            ("q 1", "k, v 1", ""),
            ("q 2", "k, v 1", ""),
            ("q 3", "k, v 2", ""),
            ("q 4", "k, v 2", ""),
        ],
    ),
    alt="Query heads 1 and 2 read the first head of keys and values, query heads 3 and 4 the second.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One code for three kinds of attention
# **Say** (sections 2.2, A.2.1). `n_heads` query heads share `n_kv_heads` heads of keys and values:
#
# | | `n_kv_heads` | each key/value head serves |
# |---|---|---|
# | multi-head (MHA): 7B, 13B | `n_heads` | one query head |
# | grouped-query (GQA): 34B, 70B | 8 | a **group** of `n_heads / n_kv_heads` query heads |
# | multi-query (MQA) | 1 | all query heads |
#
# Query head $h$ reads key/value head $\lfloor h / \mathrm{group} \rfloor$: neighbours share. The three kinds differ in one number of the configuration.
#
# **Build**, twice. First as Meta does: repeat each key/value head for its group, then do what notebook 02 did. Then without repeating anything: give the group an axis of its own.


# %% tags=["build"]
def gqa_repeated(q, k, v, visible):
    """q (b, s, heads, d); k, v (b, keys, kv_heads, d); visible (b, s, keys) -> like q"""
    group = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(group, dim=2) for t in (k, v))  # heads 0 0 0 1 1 1 2 2 2
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible[:, None], -math.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def gqa_grouped(q, k, v, visible):
    """The same shapes; keys and values are not repeated"""
    # `q.unflatten(2, (kv_heads, -1))` puts the heads of a group side by side.
    grouped = q.unflatten(2, (k.shape[2], -1))  # (b, s, kv_heads, group, d)
    scores = torch.einsum("bqngd,bknd->bngqk", grouped, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible[:, None, None], -math.inf).softmax(-1)
    return torch.einsum("bngqk,bknd->bqngd", weights, v).flatten(2, 3)


@check("GQA with repeated heads")
def _():
    attention.attention(gqa_repeated)


@check("GQA with an axis for the group")
def _():
    attention.attention(gqa_grouped)


# %% [markdown]
# **See.** Who reads whom, for 8 query heads. Move the slider through the three kinds.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
def draw_groups(n_kv_heads):
    figure, axes = lab.new_figure(8.0, 2.6)
    group = 8 // n_kv_heads
    box = {"boxstyle": "round", "fc": "white", "ec": "0.4"}
    for head in range(8):
        shared = head // group
        middle = (shared + 0.5) * group - 0.5  # the key/value head stands below its group
        axes.plot([head, middle], [1, 0], color=f"C{shared}")
        axes.text(head, 1, f"q{head}", ha="center", va="center", bbox=box)
        axes.text(middle, 0, f"kv{shared}", ha="center", va="center", bbox=box)
    kind = {8: "MHA", 1: "MQA"}.get(n_kv_heads, "GQA")
    axes.set(
        xlim=(-0.5, 7.5),
        ylim=(-0.3, 1.3),
        title=f"{kind}: 8 query heads (q), {n_kv_heads} key/value heads (kv)",
    )
    axes.set_axis_off()
    return figure


def group_words(n_kv_heads):
    return f"Key/value heads: {n_kv_heads}. Each serves {8 // n_kv_heads} of the 8 query heads; neighbours share."


show(draw_groups(2), alt=group_words(2))
Explorer(draw_groups, group_words, n_kv_heads=[4, 8, 2, 1])

# %% [markdown]
# **Break.** `repeat` instead of `repeat_interleave` gives heads 0 1 2 0 1 2 in place of 0 0 1 1 2 2; the shapes are the same. Two mistakes of notebook 02 follow: no scaling, no mask. Predict the three messages.


# %%
def tiled(q, k, v, visible):
    group = q.shape[2] // k.shape[2]
    return gqa_repeated(q, k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1), visible)


for wrong in (
    tiled,
    lambda q, k, v, visible: gqa_grouped(q * q.shape[-1] ** 0.5, k, v, visible),
    lambda q, k, v, visible: gqa_grouped(q, k, v, torch.ones_like(visible)),
):
    with expect_failure(CheckFailed):
        attention.attention(wrong)

# %% [markdown] slideshow={"slide_type": "subslide"}
# **MHA can do all that GQA can.** Give each query head of the trained model its own copy of the keys and values it shared. The result is an MHA model with more weights and the same logits.
# The reverse does not hold; exercise 3 tries.


# %%
def as_multi_head(model):
    c = model.config
    group = c.n_heads // c.n_kv_heads
    wide = {}
    for name, w in model.state_dict().items():
        if name.endswith(("wk.weight", "wv.weight")):
            w = (
                w.unflatten(0, (c.n_kv_heads, c.head_dim))
                .repeat_interleave(group, dim=0)
                .flatten(0, 1)
            )
        wide[name] = w
    return lab.build(dataclasses.replace(c, n_kv_heads=c.n_heads), wide)


ids = torch.randint(config.vocab_size, (2, 30), generator=rng.generator(0, "ids"))
multi_head = as_multi_head(model)
gap = float((multi_head(ids) - model(ids)).abs().max())
assert gap < 1e-3, f"both models must give the same logits; they differ by {gap}"
print(f"largest difference between the logits: {gap:.3f}")
print(f"weights: {config.n_parameters:,} as GQA, {multi_head.config.n_parameters:,} as MHA")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The key/value cache
# **Say.** To write token $t$, the model needs the keys and values of tokens $1 \ldots t-1$ in every layer. Attention is causal, so those never change: compute them once and keep them.
# Without a cache, an answer of $n$ tokens after a prompt of $p$ sends $p + (p+1) + \dots + (p+n-1)$ tokens through the model; with one, $p + n - 1$.
#
# - **Prefill**: the prompt goes through at once and fills the first $p$ slots.
# - **Decode**: each new token goes through alone. It writes its key and value into the next slot and reads all slots up to its own.
#
# **Build.** One cache per layer. Keys are stored *after* rotation: a key's position does not change.


# %% tags=["build"]
class MyCache:
    """Keys and values of one layer, (batch, slots, kv_heads, head_dim), filled from the left."""

    def __init__(self, config, batch, slots):
        shape = (batch, slots, config.n_kv_heads, config.head_dim)
        self.k, self.v = torch.zeros(shape), torch.zeros(shape)

    def add(self, k, v, start):
        end = start + k.shape[1]
        self.k[:, start:end], self.v[:, start:end] = k, v
        return self.k[:, :end], self.v[:, :end]


def step(model, ids, caches, start, positions=None, visible=None):
    """Logits of the tokens `ids`, which go into the slots start, start + 1, ... of the caches."""
    new = ids.shape[1]
    if visible is None:  # row i stands in slot start + i and sees the slots up to its own
        visible = torch.ones(1, new, start + new, dtype=torch.bool).tril(start)
    h = model.tok_embeddings(ids)
    rotation = model.rotation(h, positions, start)
    for layer, cache in zip(model.layers, caches, strict=True):
        q, k, v = layer.attention.project(layer.attention_norm(h), rotation)  # q and k rotated
        keys, values = cache.add(k, v, start)
        h = h + layer.attention.wo(gqa_grouped(q, keys, values, visible).flatten(-2))
        h = h + layer.feed_forward(layer.ffn_norm(h))
    return model.logits(model.norm(h))


# %% [markdown]
# **Check.** The prompt at once, then one token at a time, must give the logits of a single pass without a cache. The check also counts the tokens that went through.


# %% tags=["build"]
def my_cached(model, ids, n_prompt, step=step, Cache=MyCache):
    """ids (1, s) -> logits (1, s, vocab), the prompt at once and the rest one by one"""
    caches = [Cache(model.config, 1, ids.shape[1]) for _ in model.layers]
    logits = [step(model, ids[:, :n_prompt], caches, 0)]
    logits += [step(model, ids[:, t : t + 1], caches, t) for t in range(n_prompt, ids.shape[1])]
    return torch.cat(logits, dim=1)


@check("cached decoding")
def _():
    attention.cached(my_cached)


# %% [markdown]
# **See** the cache fill: the first layer's keys, one column per slot. Step 0 is the prefill; each further step adds one column and touches no other.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
item = lab.recall_items(lab.make_world(0))[0]
question = item.prompt
prompt = tokenizer.encode(question, bos=True)[:12]
caches = [MyCache(config, 1, len(prompt) + 8) for _ in model.layers]
logits, states = step(model, torch.tensor([prompt]), caches, 0), []
for slot in range(len(prompt), len(prompt) + 9):
    states.append(caches[0].k[0].flatten(1).T.clone())
    if slot < len(prompt) + 8:
        logits = step(model, logits[:, -1:].argmax(-1), caches, slot)


def draw_cache(step):
    return lab.heatmap(
        states[step], "slot", "number within the key", "value", centre=0.0,
        columns=[str(slot) for slot in range(len(prompt) + 8)],
        title=f"{len(prompt) + step} of {len(prompt) + 8} slots filled",
    )  # fmt: skip


def cache_words(step):
    return (
        f"After {step} new tokens {len(prompt) + step} slots hold a key; the rest are still zero."
    )


show(draw_cache(3), alt=cache_words(3))
Stepper(draw_cache, cache_words, last=8)

# %% tags=["hide-input"]
lengths = torch.arange(1, 513)


def draw_cost(prompt_length):
    without = (prompt_length + lengths - 1).cumsum(0)
    return lab.lines(
        {"without a cache": (lengths, without), "with a cache": (lengths, prompt_length + lengths - 1)},
        "length of the answer (tokens)", "tokens sent through the model", yscale="log",
        title=f"prompt of {prompt_length} tokens",
    )  # fmt: skip


def cost_words(prompt_length):
    without = int((prompt_length + lengths - 1).sum())
    return f"After a prompt of {prompt_length}, 512 new tokens send {without:,} tokens through the model without a cache, {prompt_length + 511:,} with one."


show(draw_cost(64), alt=cost_words(64))
Explorer(draw_cost, cost_words, prompt_length=[256, 16, 1024])

# %% [markdown]
# **Break.** Two common mistakes in the decode loop. In the first, positions start at 0 with every new token, so the key of each new token is rotated as if it came first. In the second, the slot is one too early, so each new key overwrites the one before it. Predict: which of the two shows already in the logits of the first new token?
# <details><summary>Answer</summary>Both. In the first, the new token is rotated wrongly; in the second, it has overwritten the last token of the prompt.</details>


# %%
def restarting(model, ids, caches, start):
    return step(model, ids, caches, start, positions=torch.arange(ids.shape[1])[None])


class EarlyCache(MyCache):
    def add(self, k, v, start):
        super().add(k, v, max(0, start - 1))
        return self.k[:, : start + k.shape[1]], self.v[:, : start + k.shape[1]]


with expect_failure(CheckFailed):
    attention.cached(lambda model, ids, n: my_cached(model, ids, n, step=restarting))
with expect_failure(CheckFailed):
    attention.cached(lambda model, ids, n: my_cached(model, ids, n, Cache=EarlyCache))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Generation
# **Say.** Prefill, take a token from the logits of the last position, send it back in, and so on. **Greedy** decoding takes the token with the largest logit.
#
# A batch holds prompts of different lengths. They are padded **on the left**, so that all of them end in the same column and the next slot is the same for all.
# Two things must know of the padding: the mask, so that no real token sees it, and the positions, so that the first real token of each row stands at 0.
#
# **Build.**


# %% tags=["build"]
def pad_left(prompts):
    """-> ids (batch, longest), padding (batch, 1): how many ids of padding each row begins with"""
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(p)) + list(p) for p in prompts]
    return torch.tensor(rows), torch.tensor([[longest - len(p)] for p in prompts])


def visible_slots(padding, start, new):
    """True where the tokens in slots start ... start + new - 1 may look; (batch, new, start + new)"""
    slot, own = torch.arange(start + new), torch.arange(start, start + new)[:, None]
    real = slot >= padding[:, :, None]
    return ((slot <= own) & real) | (slot == own)  # a padding token sees itself: no empty softmax


def my_greedy(model, prompts, n_new):
    """Prompts of unequal length -> n_new ids for each"""
    ids, padding = pad_left(prompts)
    caches = [MyCache(model.config, len(prompts), ids.shape[1] + n_new) for _ in model.layers]
    start, answer = 0, []
    while len(answer) < n_new:
        own = torch.arange(start, start + ids.shape[1])
        positions = (own - padding).clamp(min=0)
        visible = visible_slots(padding, start, ids.shape[1])
        logits = step(model, ids, caches, start, positions, visible)
        start, ids = start + ids.shape[1], logits[:, -1:].argmax(-1)
        answer.append(ids)
    return torch.cat(answer, dim=1).tolist()


# %% [markdown]
# **Check** on random weights and ragged prompts. Then on the trained model, exactly, id by id: your loop, a loop with no cache at all, and the library's `lab.generate`.


# %%
@check("greedy generation of a ragged batch")
def _():
    attention.greedy(my_greedy)


def without_cache(model, prompt, n_new):
    ids = list(prompt)
    for _ in range(n_new):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@check("three ways, one answer")
def _():
    questions = [item.prompt for item in lab.recall_items(lab.make_world(0))[:200:40]]
    prompts = [tokenizer.encode(text, bos=True) for text in questions]
    ours = my_greedy(model, prompts, 12)
    library = lab.generate(model, prompts, max_new_tokens=12, temperature=0.0)
    assert ours == [without_cache(model, prompt, 12) for prompt in prompts], (
        "cache and no cache differ"
    )
    assert ours == [done.ids for done in library], "ours and the library differ"


# %% [markdown]
# **See** the mask of a ragged batch: one prompt has 6 tokens, and the other is padded to that length. Rows are queries, columns are keys.


# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
def draw_mask(length):
    seen = visible_slots(torch.tensor([[6 - length]]), 0, 8)[0]
    return lab.heatmap(
        seen, "slot of the key", "slot of the query", "visible / hidden",
        title=f"prompt of {length} tokens, {6 - length} of padding, 2 new tokens",
    )  # fmt: skip


def mask_words(length):
    return f"With {6 - length} slots of padding, slots {6 - length} to 7 see a triangle among themselves; each padding slot sees only itself."


show(draw_mask(4), alt=mask_words(4))
Explorer(draw_mask, mask_words, length=(1, 6))

# %% [markdown]
# **Break.** Three changes to the padding. Predict for each: right or wrong?
#
# 1. The mask forgets the padding.
# 2. The prompt's positions leave the padding out; those of the new tokens count it.
# 3. All positions count the padding, in the prompt and after.


# %%
def greedy_with(mask_knows, prompt_knows, new_knows):
    def run(model, prompts, n_new):
        ids, padding = pad_left(prompts)
        longest = ids.shape[1]
        for _ in range(n_new):
            slot = torch.arange(ids.shape[1])
            shift = torch.where(slot < longest, padding * prompt_knows, padding * new_knows)
            visible = visible_slots(padding * mask_knows, 0, ids.shape[1])
            logits = model(ids, positions=(slot - shift).clamp(min=0), attend=masked(visible))
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        return ids[:, longest:].tolist()

    return run


with expect_failure(CheckFailed):
    attention.greedy(greedy_with(mask_knows=False, prompt_knows=True, new_knows=True))
with expect_failure(CheckFailed):
    attention.greedy(greedy_with(mask_knows=True, prompt_knows=True, new_knows=False))


@check("all positions shifted alike")
def _():
    attention.greedy(greedy_with(mask_knows=True, prompt_knows=False, new_knows=False))


# %% [markdown]
# The third is right: rotary scores depend on distances only (notebook 02), and a common shift changes no distance. With learned position vectors, as in GPT-2, it would be wrong.
# We leave the padding out all the same: then the first token is always at position 0, as in training, and no position runs past the table.

# %% [markdown] slideshow={"slide_type": "subslide"}
# **Sampling** draws the next token at random. The **temperature** divides the logits first: below 1 it sharpens the distribution, above 1 it flattens it, and 0 means greedy.
# **Top-p** then keeps the smallest set of tokens whose probabilities reach $p$, and drops the rest.
#
# **Build** it: sort, add up from the largest, keep what begins below $p$, and make the rest sum to 1.


# %% tags=["build"]
def my_top_p(logits, temperature, top_p):
    """logits (vocab) -> probabilities of the tokens that may be drawn, 0 for the others"""
    p, order = (logits / temperature).softmax(-1).sort(descending=True)
    kept = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    return torch.zeros_like(p).scatter(-1, order, kept / kept.sum())


@check("temperature and top-p")
def _():
    logits = torch.randn(50, generator=rng.generator(0, "top-p"))
    for temperature, top_p in ((1.0, 0.9), (0.5, 0.5), (2.0, 1.0)):
        wanted = nucleus((logits / temperature).softmax(-1)[None], top_p)[0]
        mine = my_top_p(logits, temperature, top_p)
        assert torch.allclose(mine, wanted / wanted.sum(), rtol=1e-4, atol=1e-6), (
            f"the probabilities must be the library's at temperature {temperature}, top-p {top_p}"
        )


# %% [markdown]
# **Use.** The library's `lab.generate` combines all of this: cache, padding, temperature and top-p. The model is nano, pretrained only; it continues a text and does not stop after the answer.

# %%
texts = ["One morning", question]
prompts = [tokenizer.encode(text, bos=True) for text in texts]
for temperature in (0.0, 0.7, 1.3):
    done = lab.generate(
        model, prompts, max_new_tokens=30, temperature=temperature, top_p=0.9, seed=0,
        stop_ids={tokenizer.eos_id},
    )  # fmt: skip
    for prompt, completion in zip(prompts, done, strict=True):
        text = tokenizer.decode([*prompt, *completion.ids]).replace("\n", " / ")
        print(f"[temperature {temperature}] {text}")

# %%
again = [lab.generate(model, prompts, max_new_tokens=9, seed=5) for _ in range(2)]
alone = lab.generate(model, prompts[:1], max_new_tokens=9, seed=5)[0]
first, second = ([i for done in both for i in done.ids] for both in again)
equal = sum(a == b for a, b in zip(first, second, strict=True))
of_row = sum(a == b for a, b in zip(again[0][0].ids, alone.ids, strict=True))
assert first == second, "one seed must give one text"
assert again[0][0].ids == alone.ids, "what a row samples must not depend on the rest of the batch"
print(f"sampled twice with seed 5: {equal} of {len(first)} tokens are equal")
print(f"sampled alone and in a batch: {of_row} of {len(alone.ids)} tokens are equal")

# %% tags=["hide-input"]
TOY_LOGITS = torch.tensor([4.0, 3.2, 3.0, 2.0, 1.0, 0.5, 0.0, -1.0])


def draw_sampling(temperature, top_p):
    figure, axes = lab.new_figure()
    axes.bar([str(i) for i in range(8)], my_top_p(TOY_LOGITS, temperature, top_p), width=0.6)
    title = f"temperature {temperature:g}, top-p {top_p:g}"
    lab.label_axes(axes, "token, most likely first", "probability", title)
    return figure


def sampling_words(temperature, top_p):
    p = my_top_p(TOY_LOGITS, temperature, top_p)
    return f"At temperature {temperature:g} and top-p {top_p:g}, {int((p > 0).sum())} of 8 tokens can be drawn; the first has {float(p[0]):.0%}."


show(draw_sampling(1.0, 0.9), alt=sampling_words(1.0, 0.9))
Explorer(draw_sampling, sampling_words, temperature=[0.5, 1.0, 2.0], top_p=[1.0, 0.9, 0.5])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 6: the size of the cache
# **Say.** One key and one value, per layer, per key/value head, of `head_dim` numbers each:
#
# $$\mathrm{bytes\ per\ token} = 2 \cdot n_\mathrm{layers} \cdot n_\mathrm{kv\_heads} \cdot \mathrm{head\_dim} \cdot \mathrm{bytes\ per\ number}$$
#
# **Measure.** We compare real caches, filled by a forward pass (nano) or allocated (70B, in 16 bits), with the formula. This is arithmetic, not an estimate: it holds exactly or there is a bug.
# The prediction and its rule were declared in the library before anything was run. Before you go on, compute the KiB per token of the 70B model: 80 layers, 8 key/value heads of 128 numbers, 2 bytes each.

# %%
show_prediction(6)


# %%
def cache_bytes(c, bytes_per_number=2):
    return 2 * c.n_layers * c.n_kv_heads * c.head_dim * bytes_per_number


claim = lab.CLAIMS[6]
measurement = claim.measure(lab.nano(), 0)
print("bytes per token  measured    formula")
for shape in ("recipe gqa", "70B mha", "70B gqa", "70B mqa"):
    held, formula = (measurement[f"{kind}/{shape}"] for kind in ("measured", "formula"))
    print(f"{shape.replace('recipe', 'nano'):15s} {held:9,.0f} {formula:10,.0f}")
print(f"70B, MHA over GQA: {measurement['ratio/70B']:g} times")
print("verdict:", claim.verdict([measurement]).outcome)

# %% [markdown]
# The caches hold exactly what the formula says, 320 KiB per token for 70B, and sharing shrinks them by the number of query heads per key/value head, 8 for 70B. So the claim holds exactly; no seed or sample is involved.

# %%
print("fp16, KiB per token  as it is      if it were MHA      4,096 tokens, GiB")
for size, c in lab.FAMILY.items():
    mha = dataclasses.replace(c, n_kv_heads=c.n_heads)
    print(
        f"{size:>12s} {cache_bytes(c) / 1024:>15.0f} {cache_bytes(mha) / 1024:>19.0f} {4096 * cache_bytes(c) / 2**30:>22.2f}"
    )

# %% [markdown]
# The paper prints no shapes; that of 34B is taken from Code Llama 34B, which was trained from Llama 2's weights.
#
# **See.** Memory against the number of conversations that are served at once, each with 4,096 tokens. Where is the cache larger than the weights?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
batches = 2 ** torch.arange(0, 8)


def gib(size, kv_heads):
    return 4096 * cache_bytes(dataclasses.replace(lab.FAMILY[size], n_kv_heads=kv_heads)) / 2**30


def draw_family(size):
    heads = {"MHA": lab.FAMILY[size].n_heads, "GQA, 8 heads": 8, "MQA": 1}
    return lab.lines(
        {kind: (batches, gib(size, n) * batches) for kind, n in heads.items()},
        "conversations of 4,096 tokens", "cache (GiB, fp16)", xscale="log", yscale="log", markers=True,
        title=size, reference={"weights": 2 * lab.FAMILY[size].n_parameters / 2**30},
    )  # fmt: skip


def family_words(size):
    weights = 2 * lab.FAMILY[size].n_parameters / 2**30
    counts = [math.ceil(weights / gib(size, n)) for n in (lab.FAMILY[size].n_heads, 8)]
    return f"{size}: the cache outgrows the weights at {counts[0]} conversations with MHA, at {counts[1]} with 8 key/value heads."


show(draw_family("70B"), alt=family_words("70B"))
Explorer(draw_family, family_words, size=["7B", "13B", "34B", "70B"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 7: throughput against the batch
# **Say** (figure 24). A decode step reads all weights once, whatever the batch. So a larger batch gives more tokens per second, until the memory for the caches runs out. The paper doubled the batch from 1: MHA
# ran out at 1,024 (context 256) and at 128 (context 2k), where GQA and MQA still ran.
#
# **Measure.** Here the memory that runs out is a **budget** in bytes for the cache: room for 16 sequences of MHA. So every machine runs out at the same batch. All three models have the same number of weights
# (the next section says how). The batch doubles from 1 as long as the cache fits. At each batch we time the last 8 tokens of a nearly full context, several times, and keep the best time: the models take turns, so that a busy moment of the machine hits all. The code is `measure_throughput` and `_decode` in `llama2_lib/claims/attention.py`.
#
# GQA has half the key/value heads of MHA here, and MQA a quarter. Predict the largest batch of each.

# %%
show_prediction(7)

# %% [markdown]
# "Alike at the smallest batch" is decided by **two one-sided tests**: the whole 90 % interval of the ratio must lie within the declared factor. The cell takes about 20 seconds. Times depend on your machine, so they are not compared by the tests; the batches are.

# %% slideshow={"slide_type": "subslide"} tags=["nbval-ignore-output"]
claim = lab.CLAIMS[7]
timed = [claim.measure(lab.nano(), seed) for seed in bar(range(3), about="timing")]
curves = {}
for kind in ("mha", "gqa", "mqa"):
    keys = [key for key in timed[0].values if key.startswith(f"tokens_per_s/{kind}/")]
    rates = torch.tensor([[m.values[key] for key in keys] for m in timed])
    sizes = [int(key.split("/")[2]) for key in keys]
    curves[kind.upper()] = (sizes, rates.mean(0), rates.amin(0), rates.amax(0))
figure = lab.lines(
    curves, "batch (sequences)", "tokens per second", xscale="log", markers=True,
    title="the last point of each curve is the last batch that fits",
)  # fmt: skip
ends = ", ".join(f"{kind} at {x[-1]}" for kind, (x, *_) in curves.items())
show(
    figure,
    alt=f"Tokens per second, mean and range of three seeds. The largest batch that fits ends each curve: {ends}.",
)
verdict = claim.verdict(timed)
for name, words in (("peak, gqa over mha", "95 %"), ("batch 1, gqa over mha", "90 %")):
    e = verdict.estimates[name]
    print(f"tokens per second, {name}: {e.value:.2f} times, {e.low:.2f} to {e.high:.2f} ({words})")
print("verdict:", verdict.outcome)

# %%
largest = {kind: int(timed[0][f"max_batch/{kind}"]) for kind in ("mha", "gqa", "mqa")}
assert largest["gqa"] > largest["mha"], f"GQA must fit a larger batch than MHA; got {largest}"
for kind, batch in largest.items():
    print(f"{kind.upper()}: largest batch in the same memory {batch}")

# %% [markdown]
# That GQA fits twice the batch is arithmetic, because each sequence takes half the bytes, and holds on every machine. Whether its peak is higher is a measurement; the verdict above is of the machine that ran the cell. We ran it twice while other programs were running. Once the claim was reproduced; once it was inconclusive, because the seeds differed so much that the interval of the ratio included 1. Close other programs before you trust it.
#
# Two effects add up. GQA's batch can grow further, and even at the same batch it reads fewer bytes of cache per step. At batch 1 the weights dominate and all three are alike; the paper says the same of latency.
# MQA fits still larger batches on our single device. On the paper's 8 GPUs its one key/value head had to be copied to each, so that it gained nothing over GQA with 8 heads.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 5: what does it cost in quality?
# **Say** (table 18). Three 30B models on 150B tokens. Fewer key/value heads free weights, so the feed-forward width is raised (1.3 times for GQA, 1.33 for MQA) to keep the total. The 70B model has `ffn_dim_multiplier` 1.3, the same factor; the paper does not connect the two.
# The table has eleven tasks and no means. The paper says that GQA does as well as MHA on most tasks and better than MQA on average.
#
# First, how sure can one be from that table? Here are its rows; the means are ours, of eleven unlike scores. We compare models task by task, as pairs. The **p-value** says how often chance alone would give a mean difference at least as large.

# %%
# BoolQ PIQA SIQA HellaSwag ARC-e ARC-c NQ TQA MMLU GSM8K HumanEval
TABLE_18 = {
    "MHA": [71.0, 79.3, 48.2, 75.1, 71.2, 43.0, 12.4, 44.7, 28.0, 4.9, 7.9],
    "MQA": [70.6, 79.0, 47.9, 74.5, 71.6, 41.9, 14.5, 42.8, 26.5, 4.8, 7.3],
    "GQA": [69.4, 78.8, 48.6, 75.4, 72.1, 42.5, 14.0, 46.2, 26.9, 5.3, 7.9],
}
for kind, row in TABLE_18.items():
    print(f"{kind}: mean of 11 tasks {sum(row) / 11:.2f}")
for other in ("MHA", "MQA"):
    gap = lab.paired_difference(TABLE_18["GQA"], TABLE_18[other])
    print(
        f"GQA minus {other}: {gap.estimate.value:+.2f}, 95 % interval {gap.estimate.low:+.2f} to {gap.estimate.high:+.2f}, p = {gap.p_value:.2f}"
    )

# %% [markdown]
# Both intervals include 0. One run of each model on eleven tasks cannot tell the three apart. They are comparable; the order of GQA and MQA is within the noise of the tasks.
#
# **Build.** Equal size, by the feed-forward width. GQA stays as it is; MHA must be narrower and MQA wider, each by what its keys and values add or save.


# %% tags=["build"]
def same_size(c, n_kv_heads):
    """A shape -> one with as many weights and other key/value heads"""
    # What wk and wv save goes into the hidden width.
    saved = 2 * c.dim * c.head_dim * (c.n_kv_heads - n_kv_heads)  # per layer: wk and wv
    width = c.hidden_dim + round(saved / (3 * c.dim))  # three matrices of dim x width
    rule = int(2 * 4 * c.dim / 3)  # what Meta's rule starts from
    return dataclasses.replace(
        c, n_kv_heads=n_kv_heads, multiple_of=1, ffn_dim_multiplier=(width + 0.5) / rule
    )


@check("three models of one size")
def _():
    for c in (lab.grid().model, lab.LLAMA2_70B):
        sizes = [same_size(c, n).n_parameters for n in (c.n_heads, c.n_kv_heads, 1)]
        assert max(sizes) / min(sizes) < 1.01, "sizes must agree within 1 %"
        for n in (c.n_heads, 1):
            assert same_size(c, n).n_parameters == lab.at_equal_size(c, n).n_parameters


# %% [markdown] slideshow={"slide_type": "subslide"}
# **Measure.** Nine small models: three kinds, three seeds each, every one trained on the same 600 thousand tokens. That takes minutes, so the measurement is **recorded**: made once by the code of this course, and kept in its ledger, `data/claims.json`. `llama2 claims 5` makes it anew. Lower loss is better.
#
# Predict before you run the cells: which kind has the lowest loss, and how large a gap would you expect between seeds of one kind?

# %%
show_prediction(5)

# %%
quality = show_claim(5)
e = quality.verdict.estimates["mqa - gqa"]
print(f"MQA minus GQA: {e.value:+.3f} nats, 95 % interval {e.low:+.3f} to {e.high:+.3f}")

# %% [markdown]
# The claim is not reproduced at this size: GQA's loss is higher than MHA's on every seed, and the whole 90 % interval of the gap lies beyond the margin. Whether MQA is worse than GQA stays undecided, because that gap changes its sign from seed to seed and its interval includes 0.
#
# **See** the nine models, each as the difference from MHA of the same seed. One line joins the models of one seed; the band is the margin that was declared beforehand.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
kinds = ["mha", "gqa", "mqa"]
losses = torch.tensor([quality[kind] for kind in kinds])  # (kinds, seeds)
figure, axes = lab.new_figure()
axes.axhspan(-0.03, 0.03, color="0.85", label="margin for GQA")
for seed, line in enumerate((losses - losses[0]).T):
    axes.plot(["MHA", "GQA", "MQA"], line, marker="o", label=f"seed {seed}")
lab.label_axes(axes, "kind of attention", "loss minus MHA's (nats per token)", "lower is better")
axes.legend()
above = (losses[1] - losses[0] > 0.03).sum()
show(
    figure,
    alt=f"GQA's loss lies above MHA's by more than the margin of 0.03 nats on {above} of 3 seeds; MQA's differences from GQA have both signs.",
)

# %%
sizes = {kind: int(quality[f"parameters/{kind}"][0]) for kind in kinds}
apart = max(sizes.values()) / min(sizes.values()) - 1
assert apart < 0.01, f"sizes must agree within 1 %; got {sizes}"
print("weights:", ", ".join(f"{kind.upper()} {n:,}" for kind, n in sizes.items()))
print(f"sizes agree within {apart:.2%}")
print(
    f"highest of the nine losses: {losses.max():.2f} nats; untrained: ln 1,024 = {math.log(1024):.2f}"
)

# %% [markdown]
# What does this say about the paper? Little. 600 thousand tokens are very few: the loss still falls steeply when training stops, so a kind that merely learns *sooner* looks better. The model has 2 layers and 4 heads of 16 numbers; halving 4 key/value heads may hurt more than going down to 8 in a 30B model.
# The seeds matter too. In table 18 each model was trained once; here two seeds of one kind can differ by as much as two kinds do, and only pairing by seed makes the gap between GQA and MHA visible.
# The last question below asks you to train longer and see what becomes of the gap.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Where does the trained model look?
# The library's model runs a **fused** kernel: one operation that computes attention without ever storing its weights. We compute them from the projections, layer by layer, for one question and the first tokens of the model's answer.
# `attention_weights` is the definition from above with the group axis.

# %% slideshow={"slide_type": "subslide"}
asked = tokenizer.encode(question, bos=True)
tokens = asked + lab.generate(model, [asked], max_new_tokens=4, temperature=0.0)[0].ids
labels = ["BOS", *(repr(tokenizer.decode([i]))[1:-1] for i in tokens[1:])]
h = model.tok_embeddings(torch.tensor([tokens]))
rotation = model.rotation(h)
visible = torch.ones(1, len(tokens), len(tokens), dtype=torch.bool).tril()
maps = []
for layer in model.layers:
    q, k, v = layer.attention.project(layer.attention_norm(h), rotation)
    maps.append(attention_weights(q, k, visible)[0])
    h = layer(h, rotation)
maps = torch.stack(maps)  # (layers, heads, queries, keys)


@check("the maps")
def _():
    assert maps.shape == (config.n_layers, config.n_heads, len(tokens), len(tokens))
    assert torch.allclose(maps.sum(-1), torch.ones(maps.shape[:3]), rtol=0, atol=1e-5), (
        "rows must sum to 1"
    )
    assert float(maps.triu(1).abs().max()) == 0.0, "nothing may be seen of the future"
    assert torch.allclose(
        model.logits(model.norm(h)), model(torch.tensor([tokens])), rtol=1e-3, atol=1e-3
    )


# %% [markdown]
# Many models have heads of these three kinds: heads that look **one token back**, heads that park on the **first token** (a place to look when there is nothing to look for), and heads that go back to **the name** in the question when it is about to be written again.
# Which of nano's heads does each best? The first two are ranked by the mean weight that all tokens give there, the third by the weight that the last token of the prompt, the colon, gives to the name. Predict: in which layers are they?

# %% tags=["near=0.02"]
before = question[: question.index(item.fact.subject) - 1]
name = range(
    len(tokenizer.encode(before, bos=True)),
    len(tokenizer.encode(f"{before} {item.fact.subject}", bos=True)),
)
kept = {  # each (layers, heads)
    "one token back": maps.diagonal(-1, dim1=-2, dim2=-1).mean(-1),
    "the first token": maps[..., 2:, 0].mean(-1),
    "the name": maps[:, :, len(asked) - 1, name].sum(-1),  # from the last token of the prompt
}
best = {what: divmod(int(score.argmax()), config.n_heads) for what, score in kept.items()}
for what, (layer, head) in best.items():
    share, mean = kept[what][layer, head], kept[what].mean()
    print(
        f"{what}: layer {layer}, head {head} gives it {share:.2f} of its weight (all heads: {mean:.2f})"
    )
heads = ", ".join(f"{share:.2f}" for share in kept["the name"][layer])
print(f"the name, all heads of layer {layer}: {heads}")

# %% tags=["hide-input"]
figure, panels = lab.new_figure(15.0, 6.0, columns=3, sharey=True)
for axes, (what, (layer, head)) in zip(panels, best.items(), strict=True):
    axes.imshow(maps[layer, head], vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=10)
    axes.set_yticks(range(len(labels)), labels, fontsize=10)
    lab.label_axes(axes, "key", "query", f"{what}: layer {layer}, head {head}")
show(
    figure,
    alt="The best head of each kind; bright is a large weight. Neither the diagonal nor the first column is bright throughout. In the third map the row of the last colon is bright at the name in the question.",
)


def draw_map(layer, head):
    return lab.attention_map(maps[layer, head], labels, title=f"layer {layer}, query head {head}")


def map_words(layer, head):
    kv_head = head // (config.n_heads // config.n_kv_heads)
    return f"Layer {layer}, query head {head}, which reads key/value head {kv_head}: each row shows where one token looks; nothing lies above the diagonal."


Explorer(draw_map, map_words, layer=(0, config.n_layers - 1), head=(0, config.n_heads - 1))

# %% [markdown]
# Nano has no pure heads of the first two kinds: even the best of them give most of their weight elsewhere. The third kind is clear. Nano's answer begins with the name, and at the colon before it three of the four heads of layer 2 look almost only at the name in the question.
# Heads that share keys and values, 0 and 1 for instance, may still look at different places: their queries differ.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here |
# |---|---|---|
# | 6, cache | 64 query heads on 8 key/value heads in 70B: 8 times less | exactly 8 times less, 2,560 against 320 KiB per token; measured bytes equal the formula |
# | 7, throughput | MHA out of memory at batch 1,024 and 128; GQA and MQA continue and peak higher | largest batches 16, 32 and 64 for MHA, GQA and MQA; peak throughput of GQA over MHA in two runs on two busy cores: 1.62 times, 95 % interval 1.51 to 1.75, and 1.37 times, 0.93 to 2.04, undecided |
# | 5, quality | means of eleven tasks, ours: MHA 44.15, GQA 44.28, MQA 43.76; one run each | not reproduced: GQA minus MHA +0.061 nats, 90 % interval 0.033 to 0.089, beyond the margin of 0.03; MQA minus GQA -0.009, 95 % interval -0.145 to 0.128, undecided |
#
# - We could not repeat 30B models on 150B tokens, nor the eleven tasks; our quality is validation loss on the small world, at 230 thousand weights.
# - The paper's throughput includes 8 GPUs in parallel. Ours is one process, so the reason why MQA gains nothing there (its head is copied to every GPU) does not exist here.
# - The geometry of the 30B models is not stated. If it is that of Llama 1's 33B, which is our assumption, a factor of 1.3 adds more weights than GQA saves: the total grows by about 6 %.
#
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# How many conversations fit? Write `fits(config, context, gigabytes)`: the largest whole number of sequences of `context` tokens whose fp16 cache fits beside the fp16 weights. A gigabyte here is $10^9$ bytes. (A card sold as "80 GB" may hold 80 GiB, which is 7 % more.)
# <details><summary>Hint</summary>What is left after `2 * config.n_parameters` bytes, divided by the bytes of one sequence. It may be negative: then nothing fits.</details>


# %% tags=["exercise"]
def fits(config, context, gigabytes):
    ### BEGIN SOLUTION
    left = gigabytes * 10**9 - 2 * config.n_parameters
    return max(0, left // config.kv_cache_bytes(context, bytes_per_number=2))
    ### END SOLUTION


@check("fits")
def _():
    assert fits(lab.FAMILY["7B"], 4096, 80) == 30, "7B in 80 gigabytes: 30 conversations"
    assert fits(lab.LLAMA2_70B, 4096, 80) == 0, "the weights of 70B alone do not fit in 80"
    assert fits(lab.LLAMA2_70B, 4096, 160) == 16
    assert fits(dataclasses.replace(lab.LLAMA2_70B, n_kv_heads=64), 4096, 160) == 0, (
        "as MHA it is larger, too"
    )


# %% [markdown]
# ### Exercise 2 (medium, 15 minutes)
# Does `lab.generate` sample from the model's own distribution? Write `sampling_p_value(counts, probabilities)`. Use Pearson's **chi-square test**: it adds up (observed - expected)² / expected over the ids, and its p-value says how often chance alone gives as large a sum. Ids that are expected fewer than 5 times are
# put together into one class, as the test requires.
# <details><summary>Hint</summary>`expected = counts.sum() * probabilities`; split by `expected >= 5`; append the two sums of the rest; `scipy.stats.chisquare(observed, expected).pvalue`.</details>
# <details><summary>Second hint</summary>`chisquare` wants both sums to agree to 8 digits: work in double precision and rescale `expected` to the sum of `observed`.</details>


# %% tags=["exercise"]
def sampling_p_value(counts, probabilities):
    """counts (vocab), probabilities (vocab) -> p-value of: drawn from these probabilities"""
    ### BEGIN SOLUTION
    counts, probabilities = counts.double(), probabilities.double()
    expected = counts.sum() * probabilities / probabilities.sum()
    often = expected >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    wanted = wanted * observed.sum() / wanted.sum()
    return float(stats.chisquare(observed.numpy(), wanted.numpy()).pvalue)
    ### END SOLUTION


@check("sampling_p_value")
def _():
    small = attention.small_model()
    prompt, draws = [1, 2, 3], 4000
    done = lab.generate(small, [prompt] * draws, max_new_tokens=1, temperature=2.0, seed=0)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in done]), minlength=53)
    logits = small(torch.tensor([prompt]))[0, -1]
    right = sampling_p_value(counts, (logits / 2.0).softmax(-1))
    wrong = sampling_p_value(counts, (logits / 1.5).softmax(-1))
    assert right > 0.001, "samples at temperature 2 must fit the probabilities at temperature 2"
    assert wrong < 1e-6, "and must not fit those at temperature 1.5"
    assert 0 <= right <= 1


# %% [markdown]
# ### Exercise 3 (medium, 10 minutes)
# Turn MHA into GQA. `w` is `wk` or `wv` of an MHA model, (heads * head_dim, dim). Return the projection of `n_kv_heads` heads, each the **mean** of its group: the start that Ainslie et al. (2023) give to a model that is
# then trained a little further.
# <details><summary>Hint</summary>`w.unflatten(0, (n_kv_heads, group, head_dim))`, then a mean over one axis.</details>


# %% tags=["exercise"]
def pool_heads(w, n_kv_heads, head_dim):
    ### BEGIN SOLUTION
    return w.unflatten(0, (n_kv_heads, -1, head_dim)).mean(dim=1).flatten(0, 1)
    ### END SOLUTION


@check("pool_heads")
def _():
    narrow = model.layers[0].attention.wk.weight
    wide = multi_head.layers[0].attention.wk.weight
    pooled = pool_heads(wide, config.n_kv_heads, config.head_dim)
    assert pooled.shape == narrow.shape, f"the shape must be {tuple(narrow.shape)}"
    assert torch.allclose(pooled, narrow, rtol=1e-5, atol=1e-6), (
        "the mean of equal heads is that head"
    )
    noise = torch.randn(8 * 4, 3, generator=rng.generator(0, "pool"))
    assert torch.allclose(
        pool_heads(noise, 2, 4)[0], noise[[0, 4, 8, 12]].mean(0), rtol=1e-5, atol=1e-6
    ), "neighbours form a group"


# %% [markdown]
# ### Exercise 4 (hard, 15 minutes)
# Prefill in pieces. A long prompt can be sent through the model in **chunks**; later chunks read the cache of earlier ones. Write `chunked(model, ids, chunk)`, which returns the logits of every position of `ids`, (1, seq, vocab),
# sending at most `chunk` tokens at a time. Use `step` and `MyCache`.
# <details><summary>Hint</summary>`my_cached` is nearly it: a first piece, then pieces of one token. The last chunk may be shorter.</details>
# <details><summary>Second hint</summary>What is the mask of a chunk that does not start at 0? `step` builds it when you leave `visible` out; look how.</details>


# %% tags=["exercise"]
def chunked(model, ids, chunk):
    ### BEGIN SOLUTION
    caches = [MyCache(model.config, 1, ids.shape[1]) for _ in model.layers]
    starts = range(0, ids.shape[1], chunk)
    return torch.cat([step(model, ids[:, s : s + chunk], caches, s) for s in starts], dim=1)
    ### END SOLUTION


@check("chunked")
def _():
    ids = torch.randint(53, (1, 11), generator=rng.generator(0, "chunked"))
    small, portions = attention.small_model(), []
    hook = small.tok_embeddings.register_forward_hook(
        lambda m, x, y: portions.append(x[0].shape[1])
    )
    logits = chunked(small, ids, 4)
    hook.remove()
    assert portions == [4, 4, 3], f"chunks of 4, 4 and 3 tokens are wanted; got {portions}"
    assert torch.allclose(logits, small(ids), rtol=1e-3, atol=1e-4), (
        "the logits must be those of one pass"
    )


# %% [markdown]
# ## Questions to think about
# - Keys are cached after rotation. What would have to be done at every step if they were cached before?
# - The keys of a group are shared by its query heads. What do the heads of a group still have of their own?
# - The cache holds 2 numbers per head and dimension. What could be stored with fewer bits, and how would you test that it does no harm?
# - With 8 GPUs, why are 8 key/value heads a natural choice, and 1 an awkward one?
# - Train the three kinds four times as long: `dataclasses.replace(recipe, pretrain=dataclasses.replace(recipe.pretrain, steps=1200))` for each recipe of `llama2_lib.claims.attention.quality_recipes(lab.nano(), seed)`. Does the gap between GQA and MHA grow or shrink? What does that say about a comparison at few tokens?
#
# ## Next
# `04_pretraining`: packing, AdamW, the schedule, and what more size and more context buy.
