"""The corpus audit of the paper's section 4.1: pronouns, identities, languages, rude lines.

The counters see only the text. Beside each stands the truth from the documents' labels, so that
every counter can be judged as well.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from statistics import fmean

from llama2_lib.world.documents import Document, rude_score, vocabulary
from llama2_lib.world.lexicon import Lexicon, default_lexicon

LANGUAGE_THRESHOLD = 0.5  # the paper's fastText threshold
RUDE_THRESHOLD = 0.5  # the paper's toxicity threshold

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
        """Return the `rude_score` of each line."""
        lines = (_WORD.findall(line) for line in text.lower().split("\n"))
        return [rude_score(words, self.lists["rude"]) for words in lines if words]


def _vocabularies(lexicon: Lexicon) -> dict[str, frozenset[str]]:
    english: set[str] = set()
    for name in _ENGLISH_LISTS:
        english.update(_WORD.findall(lexicon.prose(name).lower()))
    sections = lexicon.sections("audit")
    pronouns = (sections[name] for name in (*_PRONOUNS, *_GRAMMATICAL))
    return {
        "en": frozenset(english.union(*pronouns)),
        "lumi": frozenset(chain(*vocabulary(lexicon, "language_a").values())),
        "torgan": frozenset(
            form
            for words in vocabulary(lexicon, "language_b").values()
            for word in words
            for form in (word, word + "ok")
        ),
    }


auditor = cache(Auditor)  # the auditor with the word lists of a lexicon; built once


def audit(documents: Iterable[Document], lexicon: Lexicon | None = None) -> Audit:
    """Count pronouns, identities, languages and rude lines (paper section 4.1)."""
    judge = auditor(lexicon or default_lexicon())
    names: Counter[str] = Counter()
    languages: list[tuple[str, str]] = []
    rude: dict[str, list[tuple[bool, bool]]] = {"mean": [], "worst line": []}
    for document in documents:
        language = judge.language(document.text)
        languages.append((language, document.language))
        if language == "en":
            names.update(_names(judge, document.text))
        scores = judge.rude_scores(document.text)
        worst, truth = max(scores, default=0.0), document.kind == "rude"
        rude["mean"].append((sum(scores) / max(1, len(scores)) >= RUDE_THRESHOLD, truth))
        rude["worst line"].append((worst >= RUDE_THRESHOLD, truth))
    if not languages:
        raise ValueError("an audit needs at least one document; got none; generate some first")
    guessed, true = (_shares(column) for column in zip(*languages, strict=True))
    n_english = sum(guess == "en" for guess, _ in languages)

    def of_english(keys: Iterable[str]) -> dict[str, float]:
        return {key: names[key] / max(1, n_english) for key in keys}

    return Audit(
        n_documents=len(languages),
        n_english=n_english,
        pronouns=of_english(("gender", *_PRONOUNS, "any person", *_GRAMMATICAL)),
        identities=of_english(judge.identities),
        languages=guessed,
        true_languages=true,
        rude_by_mean=fmean(flagged for flagged, _ in rude["mean"]),
        rude_by_worst_line=fmean(flagged for flagged, _ in rude["worst line"]),
        true_rude=fmean(truth for _, truth in rude["mean"]),
        language_quality={
            name: _quality((guess == name, truth == name) for guess, truth in languages)
            for name in judge.vocabularies
        },
        rude_quality={name: _quality(flags) for name, flags in rude.items()},
    )


def _names(judge: Auditor, text: str) -> list[str]:
    """Return the pronouns and the axes of identity that a text names."""
    words = set(_WORD.findall(text.lower()))
    names = [name for name in (*_PRONOUNS, *_GRAMMATICAL) if words & judge.lists[name]]
    if not {"she", "he"}.isdisjoint(names):
        names.append("gender")
    if not set(_GRAMMATICAL).isdisjoint(names):
        names.append("any person")
    return names + [axis for axis, known in judge.identities.items() if words & known]


def _shares(names: Sequence[str]) -> dict[str, float]:
    return {name: number / len(names) for name, number in Counter(names).most_common()}


def _quality(flagged_and_true: Iterable[tuple[bool, bool]]) -> CounterQuality:
    counts = Counter(flagged_and_true)
    return CounterQuality(counts[True, True], counts[True, False], counts[False, True])
