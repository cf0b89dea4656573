"""Fresh comparisons before every round: answers of the newest models, annotated (section 3.2.1).

An annotator writes a prompt and sees two answers, from two model variants at different
temperatures. The accuracy of a reward model decays on answers unlike those it was trained on, so
every round begins with comparisons of the newest policy's answers.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama2_lib import rng, storage
from llama2_lib.evaluation.chat import answer
from llama2_lib.model.transformer import Transformer
from llama2_lib.stages.asked import ask
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.annotators import GRADES, TAU, Annotator
from llama2_lib.world.facts import World
from llama2_lib.world.pairs import EXCLUDED, HELPFUL_STREAM, Pair, annotate
from llama2_lib.world.prompts import Prompt
from llama2_lib.world.tasks import Task

TEMPERATURES = (0.8, 1.2)
"""Of the two variants; the paper varies temperature and does not say how."""
SAFETY_STREAM = {"adversarial": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """The comparisons of one stream, and what became of the prompts."""

    pairs: list[Pair]
    n_prompts: int
    n_too_long: int
    """Prompts that were passed over because they leave no room for an answer."""
    n_identical: int
    """Both variants said the same: there is nothing to choose."""
    n_excluded: int
    """The annotators preferred an unsafe answer to a safe one (paper section 3.2.2)."""

    def counts(self) -> dict[str, int | float]:
        """Return the counts and the share of each grade, for the log."""
        grades = Counter(pair.grade for pair in self.pairs)
        shares = {f"share of {grade}": grades[grade] / len(self.pairs) for grade in GRADES}
        return {
            "prompts": self.n_prompts,
            "too long": self.n_too_long,
            "fresh pairs": len(self.pairs),
            "identical answers": self.n_identical,
            "excluded": self.n_excluded,
            **shares,
        }


def collect(
    variants: tuple[Transformer, Transformer],
    tokenizer: Tokenizer,
    world: World,
    stream: str,
    n_prompts: int,
    *,
    seed: int,
    max_new_tokens: int = 96,
) -> Collected:
    """Let two model variants answer training prompts, and annotators choose.

    Args:
        variants: The newest policy and the one before it; in the first round twice the same.
        tokenizer: Of both.
        world: Where the prompts, the annotators and the truth are.
        stream: helpfulness or safety.
        n_prompts: Prompts that are answered.
        seed: Of prompts, answers and annotators.
        max_new_tokens: Length of an answer at most.

    Raises:
        ValueError: The two variants agree on every prompt.
    """
    asked = ask(
        world, seed, n_prompts, tokenizer,
        longest=variants[0].config.max_seq_len - max_new_tokens,
        shares=HELPFUL_STREAM if stream == "helpfulness" else SAFETY_STREAM,
    )  # fmt: skip
    said = [
        [
            reply.text
            for reply in answer(
                model, tokenizer, asked.dialogs, max_new_tokens=max_new_tokens,
                temperature=temperature, seed=rng.seed_from(seed, stream, place),
            )
        ]
        for place, (model, temperature) in enumerate(zip(variants, TEMPERATURES, strict=True))
    ]  # fmt: skip
    annotator = Annotator(seed, f"fresh {stream}", TAU)
    answered = zip(asked.prompts, *said, strict=True)
    different = [(p, a, b) for p, a, b in answered if a and b and a != b]
    found = [annotate(world, p, a, b, annotator, stream) for p, a, b in different]
    pairs = [pair for pair in found if pair.safety_bin != EXCLUDED]
    if not pairs:
        raise ValueError(
            f"no pair is left of {n_prompts} prompts: {n_prompts - len(different)} got the same or "
            f"an empty answer twice, {len(found)} were excluded as unsafe before safe. Sample "
            "hotter, or ask for more."
        )
    return Collected(
        pairs=pairs,
        n_prompts=n_prompts,
        n_too_long=asked.n_too_long,
        n_identical=n_prompts - len(different),
        n_excluded=len(found) - len(pairs),
    )


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as JSON lines that people can read and `read_pairs` can, too."""
    storage.write_atomically(path, "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))


def read_pairs(path: Path) -> list[Pair]:
    """Return what `write_pairs` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not a pair.
    """
    return list(_read(path))


def _read(path: Path) -> Iterator[Pair]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row: dict[str, Any] = json.loads(line)
            task = Task(**row["prompt"].pop("task"))
            yield Pair(prompt=Prompt(task=task, **row.pop("prompt")), **row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} line {number} must be a pair as `write_pairs` writes it; {error!r}."
            ) from None
