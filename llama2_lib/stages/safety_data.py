"""How much safety data: fine-tuning with nested parts of it (paper section 4.2.3, figure 15)."""

from dataclasses import dataclass
from typing import cast

from llama2_lib.text.dialog import Message
from llama2_lib.world import make_world
from llama2_lib.world.demonstrations import GRADES, demonstrations

FRACTIONS = (0.0, 0.01, 0.10, 0.25, 0.50, 1.0)
"""Shares of the safety data in the paper's six variants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyData:
    """One variant: all helpfulness data, and a part of the safety data."""

    fraction: float
    """Share of the safety dialogs [0, 1, 10, 25, 50, 100 %]."""
    n_helpful: int
    """Helpful dialogs, the same in all variants [about 900,000]."""
    n_safety: int
    """All safety dialogs [about 100,000]."""
    helpful_grade: str = "mixed"
    """Of the helpful demonstrations. Those of safety are clean."""
    seed: int = 0
    """Of the dialogs, so that all variants of one seed nest."""

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must lie between 0 and 1; got {self.fraction}.")
        for name in ("n_helpful", "n_safety"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.helpful_grade not in GRADES:
            raise ValueError(f"helpful_grade must be one of {GRADES}; got {self.helpful_grade!r}.")
        if self.fraction and not self.n_kept:
            raise ValueError(
                f"a fraction of {self.fraction} of {self.n_safety} safety dialogs is none; take "
                f"{round(1 / self.fraction)} or more."
            )

    @property
    def n_kept(self) -> int:
        """How many safety dialogs this variant learns from."""
        return round(self.fraction * self.n_safety)


def safety_dialogs(config: SafetyData, world_seed: int) -> list[list[Message]]:
    """Return this variant's part of the safety dialogs: those of less are a beginning of more.

    Adversarial prompts with clean demonstrations, which decline, explain and offer.
    """
    world = make_world(world_seed)
    stream = demonstrations(world, config.seed, config.n_kept, "clean", shares={"adversarial": 1.0})
    return cast(list[list[Message]], list(stream))


def mixed_dialogs(config: SafetyData, world_seed: int) -> list[list[Message]]:
    """Return all training dialogs of a variant: the helpful ones first, then its safety ones."""
    world = make_world(world_seed)
    helpful = demonstrations(
        world, config.seed, config.n_helpful, config.helpful_grade, shares={"helpful": 1.0}
    )
    return [*cast(list[list[Message]], list(helpful)), *safety_dialogs(config, world_seed)]
