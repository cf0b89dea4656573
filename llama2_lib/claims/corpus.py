"""Claims on the tokenizer and the corpus (paper sections 2.2 and 4.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llama2_lib import pipeline, recipes
from llama2_lib.claims import claim
from llama2_lib.claims.claim import Claim, Must, Proviso, Trust, differs, mean, of_stage, zero
from llama2_lib.config import CorpusConfig, Recipe
from llama2_lib.evaluation.language import continuations, document_nats
from llama2_lib.model.transformer import Transformer
from llama2_lib.rng import random_source
from llama2_lib.stages.corpus import training_documents
from llama2_lib.text.tokenizer import Tokenizer, load_tokenizer
from llama2_lib.world import World, documents, make_world
from llama2_lib.world.audit import audit
from llama2_lib.world.documents import Document

# ------------------------------------------------------------- claim 3: digits and bytes

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


def sums_recipes(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return the two small models of claim 3: sums only, digits split or joined.

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
    own = replace(base, corpus=corpus, model=model, pretrain=pretrain)
    return {
        arm: replace(own, tokenizer=replace(base.tokenizer, split_digits=split))
        for arm, split in ARMS.items()
    }


def measure_tokenizer(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 3.

    Keys: `sums/split`, `sums/joined`, loss on held-out sums in nats per CHARACTER (the tokenizers
    cut them differently), digits split or not; `unk`, number of unknown ids over unseen UTF-8, and
    `unk_without_bytes`; `round_trip_failures`, texts that do not come back; `long_numbers/<arm>`,
    pieces of each vocabulary with two digits or more; `right/<arm>`, share of sums that greedy
    decoding gets exactly right.

    Both arms train for the same number of tokens of the same documents, which is more text for
    joined digits, and answer the same sums, none of which stands in the training text.
    """
    values: dict[str, float] = {}
    runs = sums_recipes(recipe, seed)
    sums = held_out_sums(runs["split"].corpus, seed)
    for arm, run in runs.items():
        model, tokenizer = pipeline.load("pretrain", run)
        values[f"sums/{arm}"] = nats_per_character(model, tokenizer, sums)
        values[f"right/{arm}"] = _share_right(model, tokenizer, sums)
        pieces = [tokenizer.piece(index) for index in range(259, tokenizer.vocab_size)]
        long = [piece for piece in pieces if sum(map(str.isdigit, piece)) >= 2]
        values[f"long_numbers/{arm}"] = float(len(long))
        if arm == "split":
            values["unk"] = _n_unknown(tokenizer)
            back = [tokenizer.decode(tokenizer.encode(text)) for text in UNSEEN_TEXTS]
            failures = sum(a != b for a, b in zip(back, UNSEEN_TEXTS, strict=True))
            values["round_trip_failures"] = float(failures)
    bare = replace(runs["split"], tokenizer=replace(runs["split"].tokenizer, byte_fallback=False))
    folder = pipeline.artifact("tokenizer", bare, bar=False)
    return values | {"unk_without_bytes": _n_unknown(load_tokenizer(folder))}


def _n_unknown(tokenizer: Tokenizer) -> float:
    ids = [index for text in UNSEEN_TEXTS for index in tokenizer.encode(text)]
    return float(ids.count(tokenizer.unk_id))


def held_out_sums(corpus: CorpusConfig, seed: int, n: int = N_SUMS) -> list[tuple[str, str]]:
    """Return `(question, answer)` of sums of two numbers below 100 that the corpus lacks."""
    seen = {line for document in training_documents(corpus) for line in document.text.split("\n")}
    every = [(a, b) for a in range(100) for b in range(100) if f"{a} + {b} = {a + b}" not in seen]
    assert len(every) >= n, f"{n:,} sums must be unseen; of 10,000 {len(every):,} are left"
    chosen = random_source(seed, "claim 3", "sums").sample(every, n)
    return [(f"{a} + {b} =", f" {a + b}\n") for a, b in chosen]


def nats_per_character(
    model: Transformer, tokenizer: Tokenizer, sums: Sequence[tuple[str, str]]
) -> float:
    """Return the loss on the answers, per digit and line end, whatever the pieces are."""
    questions = [tokenizer.encode(question, bos=True) for question, _ in sums]
    whole = [tokenizer.encode(question + answer, bos=True) for question, answer in sums]
    begin_alike = (ids[: len(start)] == start for ids, start in zip(whole, questions, strict=True))
    assert all(begin_alike), "the pieces of a question must begin those of question and answer"
    # log p(answer | question) = log p(question, answer) - log p(question)
    nats = document_nats(model, whole).nats - document_nats(model, questions).nats
    return float(nats.sum() / sum(len(answer) - 1 for _, answer in sums))


def _share_right(
    model: Transformer, tokenizer: Tokenizer, sums: Sequence[tuple[str, str]]
) -> float:
    prompts = [tokenizer.encode(question, bos=True) for question, _ in sums]
    options = {"max_new_tokens": 6, "temperature": 0.0, "stop_ids": tokenizer.encode("\n")[-1:]}
    texts = continuations(model, tokenizer, prompts, batch=len(prompts), **options)
    right = [text == answer.strip() for text, (_, answer) in zip(texts, sums, strict=True)]
    return sum(right) / len(right)


def _same_tokenizer(
    measurements: claim.Measurements, checks: Sequence[claim.Check]
) -> tuple[claim.Outcome, str] | None:
    differ = min(claim.column(measurements, "long_numbers/joined")) != 0
    if differ or not all(check.holds for check in checks[:3]):
        return None
    reason = "without digit splitting no piece of several digits was learned: same tokenizer"
    return claim.Outcome.CANNOT_SHOW, reason


# ------------------------------------------------------------- claim 38: counters

AUDITS = ("pronouns", "identities", "languages", "toxicity")
N_AUDITED = 6_000
_PEOPLE = {  # how the templates speak of people of an age, or of a gender
    "age": ("old woman", "old man", "old mayor", "a child said"),
    "gender and sex": ("old woman", "old man", "the king", "a queen"),
}


def measure_audit(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 38 on a world of that seed.

    Keys: `error/pronouns`, `error/identities`, `error/languages`, `error/toxicity`, the largest
    gap between a counter's share of documents and the share the world was made with; shown, some
    `share/<name>`, the counted shares.

    The counters see the text alone. The truth comes from how the text was made: see `true_shares`
    for pronouns and identities; languages and rudeness are labels of the documents. As in the
    paper, pronouns and identities are shares of the documents held to be English, and a document
    is toxic if the mean over its lines reaches one half.
    """
    world = make_world(seed)
    texts = list(documents(world, seed, N_AUDITED))
    counted, true = audit(texts, world.lexicon), true_shares(world, seed, texts)
    return {
        "error/pronouns": _largest_gap(counted.pronouns, true["pronouns"]),
        "error/identities": _largest_gap(counted.identities, true["identities"]),
        "error/languages": _largest_gap(counted.languages, counted.true_languages),
        "error/toxicity": abs(counted.rude_by_mean - counted.true_rude),
        **{f"share/{name}": counted.pronouns[name] for name in ("she", "he", "unspecified")},
        "share/en": counted.languages["en"],
        "share/toxic": counted.rude_by_mean,
    }


def _largest_gap(counted: Mapping[str, float], true: Mapping[str, float]) -> float:
    return max(abs(counted.get(name, 0.0) - share) for name, share in true.items())


def true_shares(world: World, seed: int, texts: Sequence[Document]) -> dict[str, dict[str, float]]:
    """Return which share of the English documents speaks of whom, by how they were made.

    The same documents are made again in a world that differs in one thing: she-people are called
    he, or every trade has another name. A document speaks of one if and only if it changes. Age
    and gender come from the few template phrases that name people so.
    """
    english = [index for index, document in enumerate(texts) if document.language == "en"]

    def changed(other: World) -> float:
        again = list(documents(other, seed, len(texts)))
        return sum(again[i].text != texts[i].text for i in english) / len(english)

    def named(phrases: Sequence[str]) -> float:
        lower = (texts[i].text.lower() for i in english)
        return sum(any(phrase in text for phrase in phrases) for text in lower) / len(english)

    pronouns: dict[str, float] = {}
    exchanged = {"she": ("she", "he"), "he": ("he", "she"), "unspecified": ("they", "she")}
    for name, (old, new) in exchanged.items():
        people = (replace(p, pronoun=new) if p.pronoun == old else p for p in world.people)
        pronouns[name] = changed(replace(world, people=tuple(people)))
    identities = {axis: named(phrases) for axis, phrases in _PEOPLE.items()}
    trades = tuple(f"{trade}x" for trade in world.trades)
    facts = (replace(f, value=f"{f.value}x") if f.relation == "trade" else f for f in world.facts)
    identities["trade"] = changed(replace(world, trades=trades, facts=tuple(facts)))
    return {"pronouns": pronouns, "identities": identities}


CLAIMS = (
    Claim(
        id=3, section="2.2", paper_trust=Trust.DESIGN,
        statement="Numbers are split into digits, and unknown UTF-8 falls back to bytes.",
        paper_value="32k vocabulary; design stated without ablation",
        prediction="No text ever gives an unknown id, and split digits lower the loss on sums.",
        where="Of texts the world never holds, and of held-out sums",
        tests=(
            zero("no unknown id", "unknown ids", "unk"),
            zero("no failed round trip", "texts that do not come back", "round_trip_failures"),
            zero("no piece of two digits", "pieces of several digits", "long_numbers/split"),
            differs(
                "loss on sums, joined minus split", "sums/joined", "sums/split", above=0,
                named="nats per character saved",
                says="loss on sums, joined minus split, nats per character,",
            ),
        ),
        proviso=Proviso("Only if joined digits give other pieces.", _same_tokenizer),
        shown=("sums",), measured_by=measure_tokenizer, runs=of_stage("pretrain", sums_recipes),
    ),
    Claim(
        id=38, section="4.1, tables 9 and 10, figure 13", paper_trust=Trust.PRINTED,
        statement="Counters of pronouns, identities, languages and toxicity describe a corpus.",
        paper_value="documents with She 28 %, He 51 %; English 89.7 %; about 0.2 % toxic",
        prediction="On a corpus of known make-up every counter finds the true share. "
        "The method transfers, the paper's shares do not.",
        where="Largest gap between counted and true share",
        tests=tuple(
            Must(
                f"error/{name} of the counter", mean(f"error/{name}"), below=0.01,
                named=f"error/{name}", says=name,
            )
            for name in AUDITS
        ),
        shown=("share",), measured_by=measure_audit,
    ),
)  # fmt: skip
