"""Claims on the tokenizer and the corpus (paper sections 2.2 and 4.1)."""

from collections.abc import Sequence

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

AUDITS = ("pronouns", "identities", "languages", "toxicity")


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
    ),
)
