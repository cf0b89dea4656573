"""The pretraining documents: an endless stream, the same for the same world and seed."""

from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, count

from llama2_lib.rng import random_source
from llama2_lib.world.facts import World
from llama2_lib.world.lookalike import lookalike_writer, reminder_writer
from llama2_lib.world.practical import guide_writer, list_writer, sums_writer
from llama2_lib.world.questions import question_writer
from llama2_lib.world.statements import Writer, biography_writer, chronicle_writer, fact_writer
from llama2_lib.world.stories import rude_writer, story_writer
from llama2_lib.world.tongues import LANGUAGES, lumi_writer, torgan_writer

SHARES: dict[str, float] = {  # share of documents, not of characters
    "biography": 0.20,
    "facts": 0.14,
    "questions": 0.22,
    "story": 0.16,
    "sums": 0.08,
    "list": 0.03,
    "how_to": 0.03,
    "hazard": 0.02,
    "chronicle": 0.035,
    "rude": 0.02,
    "language_a": 0.03,
    "language_b": 0.015,
    "lookalike": 0.02,
}
KINDS = (*SHARES, "reminder")
"""What shares may name. Reminders are made for claim 4 alone; no other corpus holds them."""

_BLOCK = 512  # documents that share one random stream


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `kind` and `language` are the truth an audit is measured against."""

    kind: str
    text: str
    language: str


@lru_cache(maxsize=4)
def writers(world: World) -> dict[str, Writer]:
    """Return the writer of each kind of document."""
    return {
        "biography": biography_writer(world),
        "facts": fact_writer(world),
        "questions": question_writer(world),
        "story": story_writer(world),
        "sums": sums_writer(world),
        "list": list_writer(world),
        "how_to": guide_writer(world, "how_to"),
        "hazard": guide_writer(world, "hazards"),
        "chronicle": chronicle_writer(world),
        "rude": rude_writer(world),
        "language_a": lumi_writer(world),
        "language_b": torgan_writer(world),
        "lookalike": lookalike_writer(world),
        "reminder": reminder_writer(world),
    }


def documents(
    world: World,
    seed: int,
    n: int | None = None,
    shares: Mapping[str, float] = SHARES,
    start: int = 0,
) -> Iterator[Document]:
    """Yield documents `start` to `start + n` of the stream; `n=None` never ends.

    Document i depends on the world, the seed, the shares and i only. `shares` are the shares
    of documents by kind.

    Raises:
        ValueError: If the shares do not sum to 1, a kind is unknown, or a number is negative.
    """
    check_shares(shares)
    if start < 0 or (n is not None and n < 0):
        raise ValueError(f"start and n must not be negative; got start={start} and n={n}")
    return _stream(world, seed, n, shares, start)


def check_shares(shares: Mapping[str, float]) -> None:
    """Refuse shares that are not a distribution over the kinds."""
    unknown = set(shares) - set(KINDS)
    if unknown:
        raise ValueError(f"shares must name known kinds; got {sorted(unknown)}; use {list(KINDS)}")
    if min(shares.values(), default=-1) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must be 0 or more and sum to 1; got {dict(shares)}; rescale them")


def _stream(
    world: World, seed: int, n: int | None, shares: Mapping[str, float], start: int
) -> Iterator[Document]:
    kinds = [kind for kind, share in shares.items() if share > 0]
    bounds = list(accumulate(shares[kind] for kind in kinds))[:-1]
    plan = [(kind, writers(world)[kind], LANGUAGES.get(kind, "en")) for kind in kinds]
    end = None if n is None else start + n
    for block in count(start // _BLOCK):
        rng = random_source(seed, "documents", world.seed, block)
        for index in range(block * _BLOCK, (block + 1) * _BLOCK):
            if end is not None and index >= end:
                return
            kind, write, language = plan[bisect(bounds, rng.random())]
            text = write(rng)
            if index >= start:
                yield Document(kind, text, language)
