# %% [markdown] slideshow={"slide_type": "slide"}
# # Data and tokenizer
# A language model never sees text. It sees numbers, one for each **piece** of text. Here you meet the text
# of this course, build the tokenizer that cuts it into pieces, and count what the text is made of.
#
# - **You will be able to explain** how byte-pair encoding learns its pieces and applies them, why Llama 2 splits
#   numbers into digits and falls back to bytes, what a larger vocabulary buys and costs, and how far a count of
#   words can be trusted as a description of a corpus.
# - **Prerequisites:** Python. **Paper sections:** 2.1, 2.2, 4.1.
# - **Minutes:** 60 to read, 50 for the exercises, 1 to run, on two cores.

# %% tags=["long"]
import dataclasses
import re
import tempfile
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from llama2_lib import lesson as lab
from llama2_lib.teaching import tokenizer
from llama2_lib.teaching.check import CheckFailed, check, expect_failure, start
from llama2_lib.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from llama2_lib.widgets import Explorer, bar, show, show_claim, show_prediction
from llama2_lib.world import SHARES, documents, make_world

folders = start("01_data_and_tokenizer", needs=["tokenizer"], recipe=lab.nano())

# %% [markdown]
# **See** the way of a text into a model. What is trained is blue, what is only read is grey.

# %% tags=["hide-input"]
show(
    lab.diagram(
        {
            "world": lab.Node(0, 0, "facts, families,\nevents, by a seed", "data"),
            "documents": lab.Node(1, 0, "40,000 of them", "data"),
            "tokenizer": lab.Node(2, 0, "learns which pieces\nto merge", "trained"),
            "model": lab.Node(0, 1, "sees numbers alone", "trained"),
            "ids": lab.Node(1, 1, "a number for each", "data"),
            "pieces": lab.Node(2, 1, "letters, words, bytes", "data"),
        },
        [
            ("world", "documents", "writes"),
            ("documents", "tokenizer", "counts"),
            ("tokenizer", "pieces", "cuts"),
            ("pieces", "ids", ""),
            ("ids", "model", ""),
        ],
    ),
    alt="From the world over documents to a tokenizer, which cuts them into pieces; pieces become ids, and the model reads those.",
)  # fmt: skip

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The world
# **Say** (section 2.1). Llama 2 learned from 2 trillion tokens of public text. Meta names no source and no share. It says that
# the most factual sources were up-sampled, and (section 4.1) that toxic text was *not* filtered out.
#
# Nobody can check what a model knows of so much text. So the course invents a small **world** in which the truth is known: thirty people with
# five facts each, and some dated events. One seed gives one world. Everything a model reads here is written about that world.

# %%
world = make_world(seed=0)
person = world.people[0]
for fact in world.facts[:5]:
    print(f"{fact.subject:6s} {fact.relation:6s} {fact.value}")
print(f"\n{len(world.people)} people, {len(world.facts)} facts, {len(world.events)} events")
for event in world.events[:2]:
    print(event.year, "in", event.place + ":", event.what)

# %% [markdown]
# From the facts, programs write **documents** of thirteen kinds, as many as we ask for. Each says in which kind and language it was written.
# A tokenizer and a model get the text only; the labels are kept for judging.

# %%
texts = list(documents(world, seed=0, n=2000))
shortest = {
    kind: min((d for d in texts if d.kind == kind), key=lambda d: len(d.text)) for kind in SHARES
}
for kind in ("biography", "questions", "hazard", "rude", "language_a", "language_b"):
    print(f"--- {kind}, language {shortest[kind].language}")
    print(shortest[kind].text)

# %% [markdown]
# **See** the mixture. A share needs a unit: the same mixture looks different in documents, in characters and in tokens. Training cost goes by tokens.

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
tok = load_tokenizer(folders["tokenizer"])  # the course's own; you build one like it below
weight = {
    "documents": [1] * len(texts),
    "characters": [len(d.text) for d in texts],
    "tokens": [len(ids) for ids in tok.encode_batch([d.text for d in texts])],
}


def mixture(unit):
    counts = Counter()
    for d, amount in zip(texts, weight[unit], strict=True):
        counts[d.kind] += amount
    return {kind: 100 * counts[kind] / counts.total() for kind in SHARES}


def draw_mixture(unit):
    figure, axes = lab.new_figure(8, 4.6)
    axes.barh(list(SHARES), mixture(unit).values())
    axes.invert_yaxis()
    axes.set(xlabel=f"share of the {unit} (%)", ylabel="kind of document", xlim=(0, 35))
    return figure


def say_mixture(unit):
    shares = mixture(unit)
    return f"Of the {unit}, {shares['questions']:.0f} % are in lists of questions, {shares['biography']:.0f} % in biographies, {shares['lookalike']:.0f} % in look-alikes and {shares['sums']:.0f} % in sums."


show(draw_mixture("documents"), alt=say_mixture("documents"))
Explorer(draw_mixture, say_mixture, unit=list(weight))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Byte-pair encoding by hand
# **Say** (section 2.2). Words are too many to number; characters make sequences too long. **Byte-pair encoding** (BPE) lies between:
#
# 1. Write every word as a row of characters. A space belongs to the word after it, and is written `▁` (U+2581).
# 2. Count all pairs of neighbours. The most frequent pair becomes a new piece.
# 3. Merge that pair wherever it occurs. Repeat from 2 until there are enough pieces.
#
# Llama 2 uses the implementation SentencePiece. We build the same thing, and want the *same pieces in the same order*.
#
# **Build** the words first. A line break always ends a text for the tokenizer.

# %% tags=["build"]
SPACE = "▁"


def words_of(texts):
    """Texts -> Counter of their words, each with SPACE before it"""
    # Lines come first: no word runs over the end of a line.
    lines_ = [line for text in texts for line in text.split("\n") if line]
    return Counter(SPACE + word for line in lines_ for word in line.split(" "))


corpus = [d.text for d in texts[:1000]]
words = words_of(corpus)
print(f"{sum(words.values())} words, {len(words)} different ones")
print(words.most_common(4))

# %% [markdown]
# Not every pair may merge. Llama's settings forbid four things:
#
# - a piece that runs across a space: `▁` may only be its first character,
# - a piece of several characters with a digit in it (*split digits*),
# - a piece that mixes letters with punctuation (they count as different scripts),
# - a piece of more than 16 characters.


# %%
def allowed(piece):
    body = piece.removeprefix(SPACE)
    if SPACE in body or len(piece) > 16:
        return False
    if len(piece) > 1 and any(c.isdigit() for c in piece):
        return False
    return len({c.isalpha() for c in body}) <= 1  # letters only, or signs only


@check("allowed")
def _():
    tokenizer.allows(allowed)


# %% [markdown]
# Now the loop. Two pairs are often equally frequent; SentencePiece then takes the shorter piece, and of equally long ones the first in the alphabet.
# It never learns the same piece twice, though `th`+`e` and `t`+`he` both spell `the`.


# %%
def merge(word, left, right):
    out, i = [], 0
    while i < len(word):
        step = 2 if word[i : i + 2] == (left, right) else 1
        out.append("".join(word[i : i + step]))
        i += step
    return tuple(out)


word = tuple(SPACE + "shepherd")
for pair in (("h", "e"), (SPACE, "s"), (SPACE + "s", "he"), ("he", "r"), ("her", "d")):
    print("  ".join(word))
    word = merge(word, *pair)
print("  ".join(word))


# %%
def learn(words, n_merges):
    corpus, pieces = {tuple(word): number for word, number in words.items()}, []
    while len(pieces) < n_merges:
        pairs = Counter()
        for word, number in corpus.items():
            for pair in pairwise(word):
                pairs[pair] += number
        new = {p: p[0] + p[1] for p in pairs}
        candidates = [p for p in pairs if allowed(new[p]) and new[p] not in pieces]
        if not candidates:
            break
        left, right = min(candidates, key=lambda p: (-pairs[p], len(new[p]), new[p]))
        pieces.append(left + right)
        corpus = {merge(word, left, right): number for word, number in corpus.items()}
    return pieces


# %% [markdown]
# **Check** against SentencePiece, trained with Llama's settings on the same few lines.


# %%
@check("learn")
def _():
    tokenizer.learns(learn)


# %% [markdown] slideshow={"slide_type": "subslide"}
# **The whole corpus.** 250 merges by hand on a thousand documents (some seconds), and SentencePiece on the same ones. Its vocabulary is: three control ids, 256 bytes, the merges in the order in which they were learned,
# then single characters by frequency. The rarest characters are left out: 99.995 % of the text must be spelled (*character coverage*), the rest is left to the bytes.
# The first pieces are pairs of letters, then come endings, then whole words.


# %%
def train(texts, **settings):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        return load_tokenizer(train_tokenizer(texts, TokenizerConfig(**settings), path))


pieces = learn(words, 250)
n_characters = len(tokenizer.characters_kept(words))
theirs = train(corpus, vocab_size=259 + 250 + n_characters)
print([theirs.piece(i) for i in (0, 1, 2, 3, 258)])
for first in (0, 50, 150, 240):
    print(f"{first:4d}:", "  ".join(pieces[first : first + 10]))
agree = sum(mine == other for mine, other in zip(pieces, tokenizer.merges_of(theirs), strict=True))
assert agree == 250, f"all 250 merges must be SentencePiece's; {agree} are"
print(f"{agree} of {len(pieces)} pieces are SentencePiece's at the same place")

# %% [markdown]
# **Break.** Count every *different* word once, instead of as often as it occurs. Which pieces would be missing first? And what changes if ties go to whichever pair was met first? Predict the messages.

# %%
with expect_failure(CheckFailed):
    tokenizer.learns(lambda words, n: learn(dict.fromkeys(words, 1), n))
with expect_failure(CheckFailed):
    tokenizer.learns(tokenizer.LEARN_MISTAKES["ties go to the pair that was seen first"])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Applying the pieces
# **Say.** To cut a new text, start with its characters again, and put one `▁` before it (the *dummy prefix*: a word at the start of a text is the same word as in the middle). Then:
# of all neighbours that form a known piece, merge the pair whose piece was learned **first**; repeat until no pair is left. The learned order is all that training leaves behind. (`segment` looks at all pairs again after each merge; SentencePiece keeps them in a heap, which is faster and gives the same pieces.)
#
# **Build.**


# %% tags=["build"]
def segment(text, pieces):
    """A line and the learned pieces, in order -> the pieces that it is cut into"""
    # Begin with single characters; join the neighbours whose piece was learned first, again and again.
    rank = {piece: index for index, piece in enumerate(pieces)}
    parts = list(SPACE + text.replace(" ", SPACE))
    while True:
        known = [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in rank]
        if not known:
            return parts
        i = min(known)[1]  # the earliest merge; of equal ones the leftmost
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@check("segment")
def _():
    tokenizer.segments(segment)


fresh = [line for d in documents(world, 5, 150) for line in d.text.split("\n")]
same = [segment(line, pieces) == theirs.pieces(line) for line in fresh]
print(f"{len(fresh)} lines from another stream; cut exactly as SentencePiece does: {sum(same)}")

# %% [markdown]
# **See.** One sentence, after 0 to 250 merges. Where do words become whole? Which never do?

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
sentence = f"{person.name} was a shepherd in Oakford and counted 128 sheep."


def draw_merges(merges):
    return lab.piece_boxes({f"after {merges} merges": segment(sentence, pieces[:merges])})


def say_merges(merges):
    cut = segment(sentence, pieces[:merges])
    return (
        f"After {merges} merges the sentence of {len(sentence)} characters has {len(cut)} pieces."
    )


show(draw_merges(250), alt=say_merges(250))
Explorer(draw_merges, say_merges, merges=(0, 250, 10))

# %% [markdown]
# **Break.** Another way is to take the longest known piece from the left, again and again. It sounds equivalent. Will the check notice?

# %%
longest = tokenizer.SEGMENT_MISTAKES[
    "the longest piece is taken from the left, not the earliest merge first"
]
with expect_failure(CheckFailed):
    tokenizer.segments(longest)
differ = [line for line in fresh if longest(line, pieces) != theirs.pieces(line)]
print(f"{len(differ)} of {len(fresh)} lines are cut differently")

# %% [markdown]
# A model that learned from one way of cutting gets unfamiliar sequences from another, although the pieces are the same.
#
# **Use.** From here on we take the library's tokenizer: SentencePiece with 1,024 pieces, trained on the world's documents and on dialogs. The paper has 32,000.

# %%
print(tok.vocab_size, "pieces; BOS", tok.bos_id, "EOS", tok.eos_id, "unknown", tok.unk_id)
print(tok.pieces(sentence))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Numbers are split into digits
# **Say** (section 2.2): "we split all numbers into individual digits". Without that rule, BPE learns frequent numbers as pieces: 18 and 19 from the years, some sums, and not others. Then 128 may be one piece and 129 two.
# With it, every number is spelled with the same ten digit pieces.
#
# **See** both: the same texts, with the rule and without.

# %%
sums = [d.text for d in documents(world, 1, 3000, {**dict.fromkeys(SHARES, 0), "sums": 1.0})]
split, joined = (train(sums + corpus, vocab_size=700, split_digits=rule) for rule in (True, False))
for number in ("7", "45", "46", "128", "1952"):
    print(f"{number:5s} split: {split.pieces(number)!s:32s} joined: {joined.pieces(number)}")

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
line = "45 + 46 = 91"
show(
    lab.piece_boxes({"digits split": split.pieces(line), "digits joined": joined.pieces(line)}),
    alt=f"The sum {line} has {len(split.pieces(line))} pieces with digits split and {len(joined.pieces(line))} without.",
)
long_numbers = [p for p in map(joined.piece, range(259, 700)) if sum(c.isdigit() for c in p) > 1]
print(len(long_numbers), "pieces of two digits or more, such as", long_numbers[:8])
two_digits = sum(f"▁{n}" in long_numbers for n in range(10, 100))
print(f"{two_digits} of the 90 numbers from 10 to 99 are one piece")

# %% [markdown]
# Split digits cost more tokens. In return, a model sees the same ten digits everywhere. Whether it then adds better must be measured: claim 3, below.
#
# **Break.** Allow digits to join in your own rule. What will the check of `allowed` say?

# %%
with expect_failure(CheckFailed):
    tokenizer.allows(lambda piece: allowed(piece) or piece.removeprefix(SPACE).isdigit())

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Unknown characters fall back to bytes
# **Say.** Our world holds some seventy characters; Unicode has about 150 thousand. A character that is no piece is written as its **UTF-8 bytes**, one to four pieces of the form `<0xF0>`. The 256 byte pieces are ids 3 to 258.
# So there is never an unknown token, and every text can be recovered exactly. Line breaks are bytes too: `<0x0A>`.
#
# **Build.** The whole encoder: BOS, then the id of each piece, or of its bytes. (`tokenizer.merges_of` reads the merges of a trained tokenizer, in the order in which they were learned.)


# %% tags=["build"]
def encode(text, tok):
    """A text -> BOS and the ids of its pieces"""
    # A piece without an id is spelled in bytes; byte b has the id 3 + b.
    ids = [tok.bos_id]
    for piece in segment(text, tokenizer.merges_of(tok)):
        index = tok.processor.piece_to_id(piece)
        ids += [3 + byte for byte in piece.encode("utf-8")] if index == tok.unk_id else [index]
    return ids


@check("encode")
def _():
    tokenizer.encodes(encode)


# %% [markdown]
# **See**, and **check** on text of a kind the world never holds, with the bytes and without.

# %%
for text in ("naïve", "你好", "🙂", "two\nlines"):
    print(f"{text!r:12} {tok.pieces(text)}")
without = train(corpus, vocab_size=500, byte_fallback=False)
print(f"\n{len(lab.UNSEEN_TEXTS)} texts, such as {lab.UNSEEN_TEXTS[1]!r}")
for name, kind in (("with bytes", tok), ("without", without)):
    unknown = sum(kind.encode(text).count(kind.unk_id) for text in lab.UNSEEN_TEXTS)
    back = sum(kind.decode(kind.encode(text)) == text for text in lab.UNSEEN_TEXTS)
    print(f"{name:10s} unknown tokens: {unknown:2d}   texts that come back: {back}")

# %% [markdown]
# **Break.** Two common slips: `<unk>` in place of bytes, and BOS twice, because both the tokenizer and the caller add it. The second one raises no error anywhere: the model just meets a start it never saw in training.


# %%
def encode_unknown(text, tok):
    parts = segment(text, tokenizer.merges_of(tok))
    return [tok.bos_id] + [tok.processor.piece_to_id(piece) for piece in parts]


with expect_failure(CheckFailed):
    tokenizer.encodes(encode_unknown)
with expect_failure(CheckFailed):
    tokenizer.encodes(lambda text, tok: [tok.bos_id, *encode(text, tok)])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Back to text
# **Say.** Decoding joins the pieces, turns `▁` into spaces, and takes off the one space that was put before the text. Bytes must be joined **before** they are read as UTF-8.
#
# **Build.**


# %% tags=["build"]
def decode(pieces):
    """Pieces as strings -> the text"""
    # Collect bytes, and decode them at the end: one letter may be several pieces.
    raw = b""
    for piece in pieces:
        is_byte = piece.startswith("<0x") and len(piece) == 6
        raw += bytes([int(piece[3:5], 16)]) if is_byte else piece.encode("utf-8")
    return raw.decode("utf-8", errors="replace").replace(SPACE, " ").removeprefix(" ")


@check("decode")
def _():
    tokenizer.decodes(decode)


# %% [markdown]
# **Break.** Decode each piece by itself, as a chat window does when it shows every token at once. What happens to 🙂? And what happens to the text if nobody puts the spaces back?

# %%
with expect_failure(CheckFailed):
    tokenizer.decodes(lambda pieces: "".join(decode([" ", p]) for p in pieces).removeprefix(" "))
with expect_failure(CheckFailed):
    tokenizer.decodes(lambda pieces: decode(pieces).replace(" ", ""))
print("piece by piece:", [decode([piece]) for piece in tok.pieces("🙂")])
print("together:      ", decode(tok.pieces("🙂")))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What a chat costs
# **Say.** Llama 2-Chat marks turns with the strings `[INST]`, `[/INST]`, `<<SYS>>` and `<</SYS>>`. They are ordinary text, cut into ordinary pieces; only BOS and EOS are control ids. Letters and punctuation never merge, so a tag is never one piece: with Meta's vocabulary `[INST]` is `▁[`, `INST`, `]`.
# Ours learned from dialogs of this format too, so `INST` and `SYS` are pieces here as well. **Predict:** which share of a chat's tokens are the tags of its turns?
#
# **See** one turn of ours.

# %%
dialog = next(d for d in lab.dialogs(world, 3) if len(d) == 3)
print(lab.render(dialog), end="\n\n")
for tag in ("[INST]", "[/INST]", "<<SYS>>\n", "\n<</SYS>>\n\n"):
    print(f"{tag!r:20} {len(tok.pieces(tag))} pieces: {tok.pieces(tag)}")
many = list(islice(lab.dialogs(world, 4), 300))
n_turns = sum(m["role"] == "user" for d in many for m in d)
of_tags = n_turns * (len(tok.pieces("[INST]")) + len(tok.pieces("[/INST]")))
everything = sum(len(lab.encode_example(d, tok)[0]) for d in many)
print(f"\nin {len(many)} dialogs the turn tags take {of_tags / everything:.0%} of the pieces")

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
ids, targets = lab.encode_example(dialog, tok)
turn = [tok.piece(i) for i in ids]
show(
    lab.piece_boxes({"one turn, as the model reads it": turn}),
    alt=f"One turn with a system message has {len(ids)} pieces, of which {sum(targets)} belong to the answer.",
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Compression against vocabulary
# **Say.** More pieces make shorter sequences: fewer steps for the same text, more text in the same context. Each piece also costs two rows of weights, one in the embedding and one in the output layer. In a small model that soon outweighs the rest.
#
# **Measure** on fresh text: characters per token, for six vocabularies trained on the same 2,000 documents (a second or two each). **Predict:** does doubling the vocabulary double the characters per token?

# %%
held_out = [d.text for d in documents(world, 8, 400)]
n_characters = sum(map(len, held_out))
sizes = [384, 512, 768, 1024, 1536, 2048]
by_size = {size: train([d.text for d in texts], vocab_size=size) for size in bar(sizes)}
compression = {
    size: n_characters / sum(map(len, t.encode_batch(held_out))) for size, t in by_size.items()
}
model = lab.nano().model
share = {
    size: 2 * size * model.dim / dataclasses.replace(model, vocab_size=size).n_parameters
    for size in sizes
}
for size in sizes:
    print(
        f"{size:5d} pieces: {compression[size]:.2f} characters per token; {share[size]:.0%} of nano's weights"
    )

# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
show(
    lab.lines(
        {"fresh text of the world": (sizes, [compression[s] for s in sizes])},
        "vocabulary (pieces)", "characters per token", markers=True,
    ),
    alt="Compression grows with the vocabulary, steeply up to about a thousand pieces and more slowly beyond.",
)  # fmt: skip


def draw_vocabulary(pieces):
    return lab.piece_boxes({f"vocabulary of {pieces}": by_size[pieces].pieces(sentence)})


Explorer(
    draw_vocabulary,
    lambda pieces: (
        f"With {pieces} pieces the sentence takes {len(by_size[pieces].pieces(sentence))} tokens, and embedding and output hold {share[pieces]:.0%} of nano's weights."
    ),
    pieces=sizes,
)

# %% [markdown]
# The curve bends where the world's words run out: it has about 750 English word forms. Real text has no such end, and 32,000 pieces are still few for it. In Llama 2 7B the two tables are a small part of the weights:

# %%
print(
    f"7B: {2 * lab.LLAMA2_7B.vocab_size * lab.LLAMA2_7B.dim / lab.LLAMA2_7B.n_parameters:.1%} of the weights"
)
# %% [markdown] slideshow={"slide_type": "slide"}
# ## Claim 3: what splitting and bytes do
# **Say.** The paper states both rules and tests neither. We can: two tokenizers of 1,024 pieces, one with digits split, one without; the same documents, all of them sums; the same small model, three seeds each. Then both answer 600 sums that were not in the training text.
#
# The two cut an answer into different pieces, so their losses per token cannot be compared. Whatever the pieces, they spell the same characters. So we compare **nats per character** of the answers,
# $$\frac{-\ln p(\text{question, answer}) + \ln p(\text{question})}{\text{characters of the answer}}.$$
#
# The comparison is not quite fair to the paper's rule: both models train for the same number of *tokens*, and a sum takes fewer tokens when digits are joined, so that model sees more sums.
#
# **Predict** the outcome from the rule. Six small models take a minute and more to train, so the measurement is **recorded**: it was made once by the code of this course and is kept in its ledger, `data/claims.json`. `llama2 claims 3` makes it anew.

# %%
show_prediction(3)

# %%
result = show_claim(3)

# %%
for arm in ("split", "joined"):
    loss = ", ".join(f"{value:.2f}" for value in result[f"sums/{arm}"])
    right = ", ".join(f"{value:.0%}" for value in result[f"right/{arm}"])
    print(f"digits {arm:6s} {loss} nats per character; {right} of the sums right, by seed")
print(f"unknown tokens in {len(lab.UNSEEN_TEXTS)} texts: {result['unk'][0]:.0f}, without bytes {result['unk_without_bytes'][0]:.0f}")  # fmt: skip

# %% [markdown]
# The bytes do exactly what was promised: no token is unknown, and every text comes back. On the sums the claim is undecided: the interval of the difference contains 0.
#
# The shares of right answers tell why: **neither model has learned to add**. An answer of two digits and a line end has three characters; a model that knows the first digit and guesses the second
# pays $\frac13 \ln 10 = 0.77$ nats per character, and ours pay more. So the losses say little about what the rule is for. Whether split digits help a model that *can* add, a model of this size, trained this briefly, cannot show. Exercise for a longer evening: give it ten times the steps.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What is in the corpus?
# **Say** (section 4.1). Before release Meta *audited* the pretraining text with counters: which share of the documents names She or He, which identities, which languages, how much is toxic. A counter sees words and nothing else.
#
# **Build** one: the share of texts that hold a word of a list. The library's counters are made in the same way. Unlike Meta, we know how each document was made, so we can audit the audit.


# %% tags=["build"]
def names(text, words):
    """Does a text hold one of these words?"""
    return not words.isdisjoint(re.findall("[a-z]+", text.lower()))


audited = list(documents(world, 0, 6000))
report = lab.audit(audited)


@check("counter of pronouns")
def _():
    # the library counts the documents that it takes for English: those with known words
    texts = [d.text for d in audited if lab.audit([d]).n_english]
    mine = sum(names(text, {"she", "her", "hers", "herself"}) for text in texts) / len(texts)
    assert abs(mine - report.pronouns["she"]) < 1e-9, f"the library finds {report.pronouns['she']:.2%}, you {mine:.2%}"  # fmt: skip


# %%
paper = {
    "she": 28.45,
    "he": 50.73,
    "unspecified": 86.38,
    "any person": 94.47,
    "first person": 70.71,
    "second person": 61.80,
    "third person": 93.07,
}
print("share of the English documents (%)   here   paper")
for name, value in paper.items():
    print(f"{name:35s} {100 * report.pronouns[name]:5.1f}   {value:5.2f}")
print("share of all documents (%)")
print(f"{'English':35s} {100 * report.languages['en']:5.1f}   89.70")
print(f"{'unknown language':35s} {100 * report.languages['unknown']:5.1f}    8.38")
print(f"{'toxic (here: rude)':35s} {100 * report.rude_by_mean:5.1f}    about 0.2")

# %% [markdown]
# The two columns describe different texts and *must not* be compared. What can be judged is the method. (Mind the paper's table: its header says 75.23 % of documents have gendered pronouns, and the caption calls She a share *within* those; for the other rows it does not say. Ours are shares of all English documents.)
#
# **Check the counters.** *Precision*: of the documents that were flagged, how many rightly? *Recall*: of the documents that should be flagged, how many were?

# %%
for name, quality in report.language_quality.items():
    print(f"language {name:7s} precision {quality.precision:.2f}  recall {quality.recall:.2f}")
for name, quality in report.rude_quality.items():
    print(f"rude, {name:11s} precision {quality.precision:.2f}  recall {quality.recall:.2f}")
missed = [d.text for d in audited if d.language == "en" and lab.audit([d]).languages.get("unknown")]
print("\nEnglish documents without a language:", len(missed), "such as", repr(missed[0]))

# %% [markdown]
# Lines of digits have no words, hence no language: that is our "unknown", as code is part of the paper's. The mean over lines, which the paper uses, misses a rude line among friendly ones; the worst line finds it.
# And mind the share of rude documents above: it is nearly right, though a quarter of the flags are wrong and a third of the rude documents are missed. The two mistakes cancel. A share can be right by luck.
#
# For pronouns and identities there is a neat way to the truth. Write **the same documents again in a world that differs in one thing**: everyone whose pronoun is *she* gets the pronoun *he*, or every trade gets another name. A document speaks of someone whose pronoun is *she* exactly if it changes.
# **Predict:** which counter is farthest from the truth, and why?

# %%
true = lab.true_shares(world, 0, audited)
counted = {
    "pronouns": {name: report.pronouns[name] for name in true["pronouns"]},
    "identities": {name: report.identities[name] for name in true["identities"]},
    "languages": report.languages,
    "toxicity": {"rude": report.rude_by_mean},
}
true |= {"languages": report.true_languages, "toxicity": {"rude": report.true_rude}}
for counter, shares in counted.items():
    gap, name = max((abs(shares[name] - true[counter].get(name, 0)), name) for name in shares)
    print(f"{counter:11s} largest gap {100 * gap:4.1f} points, at {name!r}")


# %% slideshow={"slide_type": "subslide"} tags=["hide-input"]
def draw_audit(counter):
    figure, axes = lab.new_figure(7, 3.6)
    names = list(counted[counter])
    at = np.arange(len(names))
    axes.bar(at - 0.2, [100 * counted[counter][n] for n in names], 0.4, label="counted")
    axes.bar(at + 0.2, [100 * true[counter].get(n, 0) for n in names], 0.4, label="true")
    axes.set_xticks(at, names)
    axes.set_ylabel("share of documents (%)")
    axes.set_xlabel(counter)
    axes.legend()
    return figure


def say_audit(counter):
    parts = [
        f"{n} {100 * s:.1f} % counted, {100 * true[counter].get(n, 0):.1f} % true"
        for n, s in counted[counter].items()
    ]
    return "; ".join(parts) + "."


show(draw_audit("identities"), alt=say_audit("identities"))
Explorer(draw_audit, say_audit, counter=list(counted))

# %%
for phrase in ("cook for", "the old mill", "a little salt"):
    text = next(d.text for d in audited if phrase in d.text)
    print(f"{phrase:14s}", next(line for line in text.split("\n") if phrase in line)[-90:])

# %% [markdown]
# "Old" is said of people and of mills, "little" of salt: so the counter of age finds five times as many documents as there are. "Cook" is a trade and a verb. Meta met the same and removed a few ambiguous terms (*straight, white, black*) from its lists. In exercise 3 you mend our counter of trades.
#
# **Measure** claim 38 on three worlds. **Predict** which of the four counters are within one point.

# %%
show_prediction(38)

# %%
claim = lab.CLAIMS[38]
measured = [claim.measure(lab.nano(), seed) for seed in bar(range(3), about="three worlds")]
verdict = claim.verdict(measured)
for name in ("pronouns", "identities", "languages", "toxicity"):
    e = verdict.estimates[f"error/{name}"]
    print(f"{name:10s} largest gap {100 * e.value:.1f} points, 95 % interval {100 * e.low:.1f} to {100 * e.high:.1f}")  # fmt: skip
print("verdict:", verdict.outcome)

# %% [markdown]
# The claim is not reproduced: only the count of rude documents is within one point of the truth. The method *does* transfer, with a warning: a word counter measures words. How far words are from what they stand for must be checked on text whose composition is known, as here, or by people who read a sample.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the paper reported, what we measured, what we could not
# | claim | paper | here |
# |---|---|---|
# | 3, digits and bytes | 32k pieces, both rules stated, no test of either | no unknown token and no lost text (exact); loss on sums, joined minus split, -0.06 [-0.21, 0.09] nats per character: inconclusive, neither model learned to add |
# | 38, audit: largest gap between counted and true share | not measured | pronouns 5.0 points [4.1, 6.0], identities 7.2 [5.6, 8.8], languages 4.9 [4.5, 5.3], rude 0.3 [0.2, 0.5]: not reproduced |
# | 38, shares | She 28.45 %, He 50.73 %, English 89.70 %, about 0.2 % toxic | She 16.6 %, He 12.6 %, English 90.3 %, rude 1.7 %, of 6,000 documents (She and He: of the English ones); another text |
# | BPE | SentencePiece | 250 merges by hand, the same pieces in the same order (exact) |
#
# - We could not audit Meta's corpus: it is not public, nor are its sources, shares and cleaning.
# - Meta's toxicity score is a trained classifier and its language score is fastText; ours are word lists. What we found wrong with ours need not be wrong with theirs.
# - Pronouns were drawn evenly in our world, so the paper's finding that He is more frequent than She cannot be repeated.
# - 1,024 pieces suffice for a world of 750 word forms. We did not measure how 32,000 pieces do on real text.
#
# ## Exercises
# ### Exercise 1 (easy, 5 minutes)
# BPE on paper. The corpus of Sennrich et al. (2016), with our `▁`: `▁low` 5 times, `▁lower` 2, `▁newest` 6, `▁widest` 3. Return the first three pieces **without running `learn`**: count by hand. Remember how ties are broken.
# <details><summary>Hint</summary>Which pairs occur 9 times? Of two pieces of one length, the first in the alphabet wins.</details>
# <details><summary>Second hint</summary>After the first merge, `s` followed by `t` is gone: the neighbour of `t` is now the new piece.</details>


# %% tags=["exercise"]
def first_three_merges():
    ### BEGIN SOLUTION
    return ["es", "est", "lo"]
    ### END SOLUTION


@check("first_three_merges")
def _():
    answer = first_three_merges()
    toy = {"▁low": 5, "▁lower": 2, "▁newest": 6, "▁widest": 3}
    right = learn(toy, 3)
    wrong = [i for i in range(3) if list(answer)[i : i + 1] != right[i : i + 1]]
    assert not wrong, f"merge {wrong[0] + 1} is another one; count the pairs again"


# %% [markdown]
# ### Exercise 2 (easy, 10 minutes)
# *Fertility*: write `tokens_per_word(texts, tok)`, the number of tokens divided by the number of words, where words are what stands between spaces or line breaks. Then compare English with the two small languages of the world.
# <details><summary>Hint</summary>`text.split()` gives the words. Sum over texts first, divide once.</details>


# %% tags=["exercise"]
def tokens_per_word(texts, tok):
    ### BEGIN SOLUTION
    n_tokens = sum(len(tok.encode(text)) for text in texts)
    return n_tokens / sum(len(text.split()) for text in texts)
    ### END SOLUTION


@check("tokens_per_word")
def _():
    assert tokens_per_word(["Mara"], tok) == len(tok.encode("Mara"))
    pair = tokens_per_word(["a", "a a a"], tok)
    assert pair == 1.0, "sum the tokens of all texts, sum the words, then divide"
    spoken = {k: [d.text for d in texts if d.kind == k] for k in ("story", "language_b")}
    values = {k: tokens_per_word(t, tok) for k, t in spoken.items()}
    assert values["language_b"] > values["story"], "the rarer language must cost more per word"


# %% [markdown]
# ### Exercise 3 (medium, 15 minutes)
# Mend the counter of trades. `names_a_trade(text, trades)` says whether a text names somebody's trade. "What should I cook for Mara?" does not; "Mara was a cook." does. The share it finds must lie within half a point of the true one.
# <details><summary>Hint</summary>What stands before the word when it is a person? Look at the documents first: `[d.text for d in audited if "cook" in d.text][:20]`.</details>
# <details><summary>Second hint</summary>Only `cook` is ambiguous. Or do as Meta did and drop it from the list; how far off is the share then?</details>


# %% tags=["exercise"]
def names_a_trade(text, trades):
    ### BEGIN SOLUTION
    found = text.lower().replace(".", " ").replace(",", " ").replace("?", " ").split()
    persons = {"a", "the", "an"}
    return any(
        word in trades and (word != "cook" or before in persons)
        for before, word in zip(["", *found], found, strict=False)
    )
    ### END SOLUTION


@check("names_a_trade")
def _():
    assert not names_a_trade("Question: What should I cook for Mara?", world.trades)
    assert names_a_trade("Mara was a cook.", world.trades)
    english = [d.text for d in audited if d.language == "en"]
    found = sum(names_a_trade(text, world.trades) for text in english) / len(english)
    gap = found - true["identities"]["trade"]
    assert abs(gap) < 0.005, f"counted {found:.1%}, {100 * gap:+.1f} points from the truth"


# %% [markdown]
# ### Exercise 4 (hard, 20 minutes)
# A chat window shows text while it is written. Write the generator `stream(pieces)`: for every piece it yields the text that has become certain, maybe `""`, so that all yields joined are exactly the decoded text, without the first space. No `�` may ever appear for a valid text.
# <details><summary>Hint</summary>Keep the bytes that do not form a whole character yet. `codecs.getincrementaldecoder("utf-8")` does that for you.</details>
# <details><summary>Second hint</summary>The space that was put before the text is the first character that comes out. Drop it once.</details>


# %% tags=["exercise"]
def stream(pieces):
    ### BEGIN SOLUTION
    import codecs

    decoder, begun = codecs.getincrementaldecoder("utf-8")(), False
    for piece in pieces:
        is_byte = piece.startswith("<0x") and len(piece) == 6
        raw = bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(SPACE, " ").encode()
        text = decoder.decode(raw)
        yield text if begun else text.removeprefix(" ")
        begun = begun or bool(text)
    ### END SOLUTION


@check("stream")
def _():
    for text in ("Mara was a cook.", "na\u00efve 🙂 你好", " two  spaces", "line\nline"):
        cut = tok.pieces(text)
        shown = list(stream(cut))
        assert len(shown) == len(cut), "one yield for every piece, empty where nothing is certain"
        assert "�" not in "".join(shown), "a character was shown before its last byte came"
        assert "".join(shown) == text, f"{text!r} must come back; got {''.join(shown)!r}"


# %% [markdown]
# ## Questions to think about
# - The tokenizer learned from dialogs of the chat format too. What would a model trained on a tokenizer without them pay in every turn?
# - `▁` stands before the text even when the text begins a chat. Where does that space go when a model answers?
# - A language that is rare in the training text costs more tokens per word. What does that mean for its speakers, in price and in context length?
# - Reversed digits (`54` for 45) would let a model add from the right, carrying as we do on paper. What speaks against it?
# - We judged counters by documents whose truth we made. What would you do for a corpus of 2 trillion tokens that nobody can read?
#
# ## Next
# `02_transformer`: what happens to the ids.
