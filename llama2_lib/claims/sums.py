"""What claim 3 measures: the same sums learned with digits split and joined, and the bytes."""

from collections.abc import Sequence
from dataclasses import replace

from llama2_lib import pipeline, recipes
from llama2_lib.claims.claim import Measurement
from llama2_lib.evaluation.language import document_nats
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import Recipe
from llama2_lib.rng import random_source
from llama2_lib.stages.corpus import CorpusConfig, training_documents
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer

ARMS = {"split": True, "joined": False}
"""Whether digits are split."""

N_SUM_DOCUMENTS, N_SUMS = 12_000, 600
UNSEEN_TEXTS = (
    "\N{SLIGHTLY SMILING FACE} \N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}",
    "\u03b1\u03b2\u03b3 \u0436\u0438\u0437\u043d\u044c \u4f60\u597d",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "na\u00efve caf\u00e9, \u00bd \u20ac \u2192 \u221e",
    "e\u0301 is not \u00e9",
    "<s> [INST] </s> {~} #@%^&* \\ `code` |",
    "tab\tand  two spaces, \u00a0no break",
    "3.14159 and \u0663\u0664 and 2\u00b3",
)
"""What the world's text never holds: emoji, other scripts, accents, signs."""


def sums_recipe(recipe: Recipe, seed: int, arm: str) -> Recipe:
    """Return the small model of one arm of claim 3: sums only, digits split or joined.

    With other texts beside the sums, or at the grid's own size, no arm learned to add. Of the
    settings tried with another seed at about 13 core-seconds a run, this one, with many small
    steps of a narrow model, had the lowest loss averaged over both arms. More documents would
    leave too few unseen sums.
    """
    base = recipes.grid(seed) if recipe.name == "nano" else recipe
    model, pretrain = base.model, replace(base.pretrain, seed=seed)
    if base.name == "grid":
        model = replace(model, dim=32)
        pretrain = replace(
            pretrain, steps=1500, batch_size=8, seq_len=64, warmup=75, eval_every=1500,
            save_every=1500,
        )  # fmt: skip
    corpus = replace(
        base.corpus,
        n_documents=min(N_SUM_DOCUMENTS, base.corpus.n_documents),
        n_validation=min(200, base.corpus.n_validation),
        shares=(("sums", 1.0),),
    )
    tokenizer = replace(base.tokenizer, split_digits=ARMS[arm])
    return replace(base, corpus=corpus, tokenizer=tokenizer, model=model, pretrain=pretrain)


def tokenizer_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the runs that claim 3 compares."""
    return [("pretrain", sums_recipe(recipe, seed, arm)) for seed in seeds for arm in ARMS]


def measure_tokenizer(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 3. Keys: those of `judge_tokenizer`, `unk_without_bytes`, `right/<arm>`.

    The last is the share of sums that greedy decoding gets exactly right (shown, not judged).

    Both arms train for the same number of tokens of the same documents, which is more text for
    joined digits, and answer the same sums, none of which stands in the training text.
    """
    values: dict[str, float] = {}
    runs = {arm: sums_recipe(recipe, seed, arm) for arm in ARMS}
    sums = held_out_sums(runs["split"].corpus, seed)
    for arm, run in runs.items():
        model, tokenizer = pipeline.load("pretrain", run)
        values[f"sums/{arm}"] = nats_per_character(model, tokenizer, sums)
        values[f"right/{arm}"] = _share_right(model, tokenizer, sums)
        pieces = [tokenizer.piece(index) for index in range(259, tokenizer.vocab_size)]
        digits = [sum(character.isdigit() for character in piece) for piece in pieces]
        values[f"long_numbers/{arm}"] = float(sum(n >= 2 for n in digits))
        if arm == "split":
            values |= {"unk": _n_unknown(tokenizer)}
            came_back = [tokenizer.decode(tokenizer.encode(text)) for text in UNSEEN_TEXTS]
            failures = sum(a != b for a, b in zip(came_back, UNSEEN_TEXTS, strict=True))
            values |= {"round_trip_failures": float(failures)}
    bare = replace(runs["split"], tokenizer=replace(runs["split"].tokenizer, byte_fallback=False))
    folder = pipeline.artifact("tokenizer", bare, bar=False)
    return Measurement(
        values={**values, "unk_without_bytes": _n_unknown(load_tokenizer(folder))}, seed=seed
    )


def _n_unknown(tokenizer: Tokenizer) -> float:
    ids = [index for text in UNSEEN_TEXTS for index in tokenizer.encode(text)]
    return float(ids.count(tokenizer.unk_id))


def held_out_sums(corpus: CorpusConfig, seed: int, n: int = N_SUMS) -> list[tuple[str, str]]:
    """Return `(question, answer)` of sums of two numbers below 100 that the corpus lacks.

    Raises:
        ValueError: The training text leaves fewer than `n` of them.
    """
    seen = {line for document in training_documents(corpus) for line in document.text.split("\n")}
    every = [(a, b) for a in range(100) for b in range(100) if f"{a} + {b} = {a + b}" not in seen]
    if len(every) < n:
        raise ValueError(
            f"{n:,} sums must be unseen; the training text of {corpus.n_documents:,} documents "
            f"leaves {len(every):,} of 10,000. Train on fewer documents, or ask fewer sums."
        )
    chosen = random_source(seed, "claim 3", "sums").sample(every, n)
    return [(f"{a} + {b} =", f" {a + b}\n") for a, b in chosen]


def nats_per_character(
    model: Transformer, tokenizer: Tokenizer, sums: Sequence[tuple[str, str]]
) -> float:
    """Return the loss on the answers, per digit and line end, whatever the pieces are."""
    questions = [tokenizer.encode(question, bos=True) for question, _ in sums]
    whole = [tokenizer.encode(question + answer, bos=True) for question, answer in sums]
    if any(ids[: len(start)] != start for ids, start in zip(whole, questions, strict=True)):
        raise ValueError(
            "the pieces of a question must begin those of question and answer; they do not. "
            "Train the tokenizer with split_by_whitespace=True, as TokenizerConfig does."
        )
    # log p(answer | question) = log p(question, answer) - log p(question)
    nats = document_nats(model, whole).nats - document_nats(model, questions).nats
    return float(nats.sum() / sum(len(answer) - 1 for _, answer in sums))


def _share_right(
    model: Transformer, tokenizer: Tokenizer, sums: Sequence[tuple[str, str]]
) -> float:
    prompts = [tokenizer.encode(question, bos=True) for question, _ in sums]
    done = generate(
        model, prompts, max_new_tokens=6, temperature=0.0, stop_ids=tokenizer.encode("\n")[-1:]
    )
    found = [tokenizer.decode(completion.ids).strip() for completion in done]
    return sum(text == answer.strip() for text, (_, answer) in zip(found, sums, strict=True)) / len(
        sums
    )
