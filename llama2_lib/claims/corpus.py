"""Claims on the tokenizer and the corpus (paper sections 2.2 and 4.1)."""

from collections.abc import Sequence
from dataclasses import replace

from llama2_lib.claims.claim import (
    Check,
    Claim,
    Measurement,
    Outcome,
    Threshold,
    Trust,
    Verdict,
    above,
    average,
    below,
    column,
    decide,
    difference,
    keys_under,
    threshold,
)
from llama2_lib.claims.sums import measure_tokenizer, tokenizer_requests
from llama2_lib.recipes import Recipe
from llama2_lib.world import World, documents, make_world
from llama2_lib.world.audit import Audit, audit
from llama2_lib.world.documents import Document

AUDITS = ("pronouns", "identities", "languages", "toxicity")
N_AUDITED = 6_000
_PEOPLE = {  # how the templates speak of people of an age, or of a gender
    "age": ("old woman", "old man", "old mayor", "a child said"),
    "gender and sex": ("old woman", "old man", "the king", "a queen"),
}


def _never(measurements: Sequence[Measurement], key: str, text: str) -> Check:
    worst = max(column(measurements, key))
    return Check(text=f"{text}: {worst:g}, must be 0", holds=worst == 0)


def judge_tokenizer(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 3.

    Keys: `sums/split`, `sums/joined`, loss on held-out sums in nats per CHARACTER (the tokenizers
    cut them differently), digits split or not; `unk`, number of unknown ids over unseen UTF-8;
    `round_trip_failures`, texts that do not come back; `long_numbers/split` and
    `long_numbers/joined`, pieces of each vocabulary with two digits or more.
    """
    estimates = {f"sums/{arm}": average(measurements, f"sums/{arm}") for arm in ("split", "joined")}
    checks = [
        _never(measurements, "unk", "unknown ids"),
        _never(measurements, "round_trip_failures", "texts that do not come back"),
        _never(measurements, "long_numbers/split", "pieces of several digits"),
    ]
    if min(column(measurements, "long_numbers/joined")) == 0 and all(c.holds for c in checks):
        reason = "without digit splitting no piece of several digits was learned: same tokenizer"
        return Verdict(outcome=Outcome.CANNOT_SHOW, reason=reason, estimates=estimates)
    saved = difference(measurements, "sums/joined", minus="sums/split")
    estimates["nats per character saved"] = saved
    checks.append(above("loss on sums, joined minus split", saved, limit["saved"]))
    return decide(checks, estimates)


def measure_audit(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 38 on a world of that seed. Keys: those of `judge_audit`.

    The counters see the text alone. The truth comes from how the text was made: see `true_shares`
    for pronouns and identities; languages and rudeness are labels of the documents. As in the
    paper, pronouns and identities are shares of the documents held to be English, and a document
    is toxic if the mean over its lines reaches one half.
    """
    world = make_world(seed)
    texts = list(documents(world, seed, N_AUDITED))
    counted, true = audit(texts, world.lexicon), true_shares(world, seed, texts)
    errors = {
        "pronouns": _largest_gap(counted.pronouns, true["pronouns"]),
        "identities": _largest_gap(counted.identities, true["identities"]),
        "languages": _largest_gap(counted.languages, counted.true_languages),
        "toxicity": abs(counted.rude_by_mean - counted.true_rude),
    }
    return Measurement(
        values={f"error/{name}": gap for name, gap in errors.items()} | _shown(counted), seed=seed
    )


def _shown(counted: Audit) -> dict[str, float]:
    pronouns = {f"share/{name}": counted.pronouns[name] for name in ("she", "he", "unspecified")}
    return pronouns | {"share/en": counted.languages["en"], "share/toxic": counted.rude_by_mean}


def _largest_gap(counted: dict[str, float], true: dict[str, float]) -> float:
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

    swapped = {"she": "he", "he": "she", "they": "she"}
    pronouns = {name: changed(_with_pronoun(world, name, other)) for name, other in swapped.items()}
    pronouns["unspecified"] = pronouns.pop("they")
    identities = {axis: named(phrases) for axis, phrases in _PEOPLE.items()}
    identities["trade"] = changed(_with_other_trades(world))
    return {"pronouns": pronouns, "identities": identities}


def _with_pronoun(world: World, old: str, new: str) -> World:
    people = (replace(p, pronoun=new) if p.pronoun == old else p for p in world.people)
    return replace(world, people=tuple(people))


def _with_other_trades(world: World) -> World:
    facts = (replace(f, value=f"{f.value}x") if f.relation == "trade" else f for f in world.facts)
    return replace(world, trades=tuple(f"{t}x" for t in world.trades), facts=tuple(facts))


def judge_audit(measurements: Sequence[Measurement], limit: Threshold) -> Verdict:
    """Judge claim 38.

    Keys: `error/pronouns`, `error/identities`, `error/languages`, `error/toxicity`, the largest
    gap between a counter's share of documents and the share the world was made with, as a
    fraction; any `share/<name>`, the counted shares (shown, not judged).
    """
    shown = [f"share/{name}" for name in keys_under(measurements, "share")]
    keys = [f"error/{name}" for name in AUDITS]
    estimates = {key: average(measurements, key) for key in keys + shown}
    checks = [below(f"{key} of the counter", estimates[key], limit["error"]) for key in keys]
    return decide(checks, estimates)


CLAIMS = (
    Claim(
        id=3,
        section="2.2",
        statement="Numbers are split into digits, and unknown UTF-8 falls back to bytes.",
        paper_value="32k vocabulary; design stated without ablation",
        paper_trust=Trust.DESIGN,
        prediction="No text ever gives an unknown id, and split digits lower the loss on sums.",
        threshold=threshold(
            "No unknown id, no failed round trip, no piece of two digits; loss on sums, joined "
            "minus split, above {saved:g} nats per character (95 % interval over seeds).",
            saved=0.0,
        ),
        judge=judge_tokenizer,
        measure=measure_tokenizer,
        requests=tokenizer_requests,
    ),
    Claim(
        id=38,
        section="4.1, tables 9 and 10, figure 13",
        statement="Counters of pronouns, identities, languages and toxicity describe a corpus.",
        paper_value="documents with She 28 %, He 51 %; English 89.7 %; about 0.2 % toxic",
        paper_trust=Trust.PRINTED,
        prediction="On a corpus of known make-up every counter finds the true share. "
        "The method transfers, the paper's shares do not.",
        threshold=threshold(
            "Largest gap between counted and true share below {error:g}, for each of the four "
            "counters (95 % interval over seeds).",
            error=0.01,
        ),
        judge=judge_audit,
        measure=measure_audit,
    ),
)
