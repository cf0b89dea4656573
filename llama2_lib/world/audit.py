"""The corpus audit of the paper's section 4.1: pronouns, identities, languages, rude lines.

The counters see only the text. Beside each stands the truth from the documents' labels, so that
every counter can be judged as well.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from operator import and_

from llama2_lib.world.documents import Document
from llama2_lib.world.lexicon import Lexicon, default_lexicon

LANGUAGE_THRESHOLD = 0.5  # the paper's fastText threshold
RUDE_THRESHOLD = 0.5  # the paper's toxicity threshold
ONE_RUDE_WORD = 0.25
"""Toxicity of rude words that stand alone."""

_WORD = re.compile(r"[a-z]+")
_PRONOUNS = ("she", "he", "unspecified")
_GRAMMATICAL = ("first person", "second person", "third person")
_ENGLISH_LISTS = (
    *("places", "trades", "animals", "foods", "things", "adjectives", "looks", "weather"),
    *("times", "spots", "numbers", "events", "chronicle", "statements", "questions", "fillers"),
    *("stories", "lists", "how_to", "hazards", "sums", "rude", "dialogs"),
)


@dataclass(frozen=True, slots=True)
class CounterQuality:
    """How a yes-or-no counter agrees with the truth, in documents."""

    true_positive: int
    false_positive: int
    false_negative: int

    @property
    def precision(self) -> float:
        """Right among the flagged; nan when nothing is flagged."""
        flagged = self.true_positive + self.false_positive
        return self.true_positive / flagged if flagged else float("nan")

    @property
    def recall(self) -> float:
        """Flagged among the true ones; nan when there are none."""
        positive = self.true_positive + self.false_negative
        return self.true_positive / positive if positive else float("nan")


@dataclass(frozen=True, slots=True)
class Audit:
    """All shares are fractions of documents.

    `pronouns` (table 9a) and `identities` (table 9b) are shares of the documents found to be
    English, `languages` (table 10) and the rude rates (figure 13) of all documents.
    `rude_by_mean` averages the scores of a document's lines as the paper does;
    `rude_by_worst_line` takes the worst line, which one rude line in a long text cannot hide from.
    """

    n_documents: int
    n_english: int
    pronouns: dict[str, float]
    identities: dict[str, float]
    languages: dict[str, float]
    true_languages: dict[str, float]
    rude_by_mean: float
    rude_by_worst_line: float
    true_rude: float
    language_quality: dict[str, CounterQuality]
    rude_quality: dict[str, CounterQuality]


class Auditor:
    """The word lists of the audit, read once."""

    def __init__(self, lexicon: Lexicon) -> None:
        sections = lexicon.sections("audit")
        self.lists = {name: frozenset(words) for name, words in sections.items()}
        self.identities = {
            "age": self.lists["age"],
            "gender and sex": self.lists["gender and sex"],
            "trade": frozenset(lexicon.words("trades")),
        }
        self.vocabularies = _vocabularies(lexicon)

    def language(self, text: str) -> str:
        """Name the language whose word list holds more than half of the words, or "unknown"."""
        words = _WORD.findall(text.lower())
        if not words:
            return "unknown"
        votes = {
            language: sum(word in known for word in words) / len(words)
            for language, known in self.vocabularies.items()
        }
        best = max(votes, key=lambda language: votes[language])
        return best if votes[best] > LANGUAGE_THRESHOLD else "unknown"

    def rude_scores(self, text: str) -> list[float]:
        """Score each line: 1 for two words of the rude list in a row, 0.25 for one, else 0.

        One word alone may be meant well: a donkey is rude only behind "silly".
        """
        lines = (_WORD.findall(line) for line in text.lower().split("\n"))
        return [rude_score(words, self.lists["rude"]) for words in lines if words]


def rude_score(words: list[str], rude: Collection[str]) -> float:
    """Return 1 for two rude words in a row, 0.25 for single ones, else 0."""
    hits = [word in rude for word in words]
    if any(map(and_, hits, hits[1:])):
        return 1.0
    return ONE_RUDE_WORD if any(hits) else 0.0


def _vocabularies(lexicon: Lexicon) -> dict[str, frozenset[str]]:
    english: set[str] = set()
    for name in _ENGLISH_LISTS:
        english.update(_WORD.findall(lexicon.prose(name).lower()))
    sections = lexicon.sections("audit")
    pronouns = (sections[name] for name in (*_PRONOUNS, *_GRAMMATICAL))
    return {
        "en": frozenset(english.union(*pronouns)),
        "lumi": frozenset(word for word, _ in _glossary(lexicon, "language_a")),
        "torgan": frozenset(
            form for word, part in _glossary(lexicon, "language_b") for form in (word, word + "ok")
        ),
    }


def _glossary(lexicon: Lexicon, name: str) -> list[tuple[str, str]]:
    return [pair for part in lexicon.sections(name) for pair in lexicon.pairs(name, part)]


auditor = cache(Auditor)
"""The auditor with the word lists of a lexicon; built once."""


def audit(documents: Iterable[Document], lexicon: Lexicon | None = None) -> Audit:
    """Count pronouns, identities, languages and rude lines (paper section 4.1)."""
    judge = auditor(lexicon or default_lexicon())
    tally: Counter[tuple[str, str]] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    rude: dict[str, Counter[tuple[bool, bool]]] = {"mean": Counter(), "worst line": Counter()}
    n_documents = 0
    for document in documents:
        n_documents += 1
        guess = judge.language(document.text)
        pairs[guess, document.language] += 1
        if guess == "en":
            tally.update(_present(judge, document.text))
        scores = judge.rude_scores(document.text)
        truth = document.kind == "rude"
        rude["mean"][sum(scores) / max(1, len(scores)) >= RUDE_THRESHOLD, truth] += 1
        rude["worst line"][max(scores, default=0.0) >= RUDE_THRESHOLD, truth] += 1
    if n_documents == 0:
        raise ValueError("an audit needs at least one document; got none; generate some first")
    return _report(judge, n_documents, tally, pairs, rude)


def _present(judge: Auditor, text: str) -> list[tuple[str, str]]:
    words = set(_WORD.findall(text.lower()))
    pronouns = [name for name in (*_PRONOUNS, *_GRAMMATICAL) if words & judge.lists[name]]
    if not {"she", "he"}.isdisjoint(pronouns):
        pronouns.append("gender")
    if not set(_GRAMMATICAL).isdisjoint(pronouns):
        pronouns.append("any person")
    axes = [axis for axis, names in judge.identities.items() if words & names]
    return [("pronoun", name) for name in pronouns] + [("identity", axis) for axis in axes]


def _report(
    judge: Auditor,
    n_documents: int,
    tally: Mapping[tuple[str, str], int],
    pairs: Counter[tuple[str, str]],
    rude: Mapping[str, Mapping[tuple[bool, bool], int]],
) -> Audit:
    guessed, true = Counter[str](), Counter[str]()
    for (guess, language), number in pairs.items():
        guessed[guess] += number
        true[language] += number
    n_english = guessed["en"]

    def of_english(kind: str, names: Iterable[str]) -> dict[str, float]:
        return {name: tally[kind, name] / max(1, n_english) for name in names}

    def rate(counts: Mapping[tuple[bool, bool], int]) -> float:
        return (counts[True, True] + counts[True, False]) / n_documents

    return Audit(
        n_documents=n_documents,
        n_english=n_english,
        pronouns=of_english("pronoun", ("gender", *_PRONOUNS, "any person", *_GRAMMATICAL)),
        identities=of_english("identity", judge.identities),
        languages={name: number / n_documents for name, number in guessed.most_common()},
        true_languages={name: number / n_documents for name, number in true.most_common()},
        rude_by_mean=rate(rude["mean"]),
        rude_by_worst_line=rate(rude["worst line"]),
        true_rude=(rude["mean"][True, True] + rude["mean"][False, True]) / n_documents,
        language_quality={
            name: CounterQuality(
                pairs[name, name], guessed[name] - pairs[name, name], true[name] - pairs[name, name]
            )
            for name in judge.vocabularies
        },
        rude_quality={
            name: CounterQuality(counts[True, True], counts[True, False], counts[False, True])
            for name, counts in rude.items()
        },
    )
