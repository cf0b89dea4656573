"""What a training run learns from: the five things that the invented world supplies.

A stage asks a `Source` for texts, prompts, pairs and marks, and never asks how they are made, so
that a data set of another origin needs one class and no change of a stage.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from llama2_lib.world.demonstrations import DEMONSTRATION_SHARES, demonstrations
from llama2_lib.world.dialogs import Message
from llama2_lib.world.documents import SHARES, Document, documents
from llama2_lib.world.facts import World
from llama2_lib.world.judges import Judge, judge_of
from llama2_lib.world.lexicon import check_known
from llama2_lib.world.pairs import STREAMS, Pair, helpfulness_pairs, safety_pairs
from llama2_lib.world.prompts import PROMPT_SHARES, Prompt, prompts

Shares = Mapping[str, float] | None  # how much of which kind; None for the source's own


@runtime_checkable
class Source(Protocol):
    """Supplies what the stages learn from.

    Every stream is decided by its arguments alone: the same seed gives the same texts in the same
    order, `n` of them are the beginning of more, and `n=None` never ends.
    """

    def documents(
        self, seed: int, n: int | None = None, shares: Shares = None
    ) -> Iterator[Document]:
        """Yield texts to pretrain on (section 2.1)."""
        ...

    def dialogs(
        self, seed: int, n: int | None = None, grade: str = "clean", shares: Shares = None
    ) -> Iterator[list[Message]]:
        """Yield demonstrations: dialogs that end with an answer to imitate (section 3.1).

        `grade` says how careful their writers are.
        """
        ...

    def prompts(
        self, seed: int, n: int | None = None, split: str = "train", shares: Shares = None
    ) -> Iterator[Prompt]:
        """Yield prompts without answers; none held out is one of training."""
        ...

    def pairs(
        self, stream: str, seed: int, n: int | None = None, split: str = "train"
    ) -> Iterator[Pair]:
        """Yield preferences: two answers to a prompt, ranked (section 3.2.1).

        `stream` is "helpfulness" or "safety".
        """
        ...

    @property
    def judge(self) -> Judge | None:
        """Marks any answer to any of the prompts; None where nobody knows the truth."""
        ...


@dataclass(frozen=True, slots=True)
class WorldSource:
    """The invented world as a source."""

    world: World

    def documents(
        self, seed: int, n: int | None = None, shares: Shares = None
    ) -> Iterator[Document]:
        """Yield what `world.documents` writes."""
        return documents(self.world, seed, n, SHARES if shares is None else shares)

    def dialogs(
        self, seed: int, n: int | None = None, grade: str = "clean", shares: Shares = None
    ) -> Iterator[list[Message]]:
        """Yield what `world.demonstrations` writes."""
        chosen = DEMONSTRATION_SHARES if shares is None else shares
        return demonstrations(self.world, seed, n, grade, chosen)

    def prompts(
        self, seed: int, n: int | None = None, split: str = "train", shares: Shares = None
    ) -> Iterator[Prompt]:
        """Yield what `world.prompts` asks."""
        return prompts(self.world, seed, n, split, PROMPT_SHARES if shares is None else shares)

    def pairs(
        self, stream: str, seed: int, n: int | None = None, split: str = "train"
    ) -> Iterator[Pair]:
        """Yield the pairs of one of `world.pairs.STREAMS`."""
        check_known("stream", stream, STREAMS)
        draw = helpfulness_pairs if stream == "helpfulness" else safety_pairs
        return draw(self.world, seed, n, split)

    @property
    def judge(self) -> Judge:
        """The program that knows the truth."""
        return judge_of(self.world)
