"""From a two-second speed reading to the minutes that training will take."""

from collections.abc import Sequence
from typing import Any

# The speed reading of the machine for which `pipeline.STAGES` holds seconds: 2 cores, quiet, fp32.
REFERENCE_TOKENS_PER_SECOND = 14_200.0
NOTEBOOK_SECONDS = 480.0
"""All notebooks on that machine, two at a time."""


def missing(requests: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return every stage that these requests still need, each once, in order."""
    from llama2_lib import pipeline

    stages: dict[tuple[str, str], tuple[str, Any]] = {}
    for stage, recipe in requests:
        names = pipeline.fingerprints(stage, recipe)
        for name in pipeline.missing(stage, recipe):
            stages.setdefault((name, names[name]), (name, recipe))
    return list(stages.values())


def stage_seconds(stage: str, recipe: Any, tokens_per_second: float) -> float:
    """Return about how long a stage of a recipe takes on a quiet CPU with this speed reading.

    Another recipe than nano is scaled by what its pretraining costs, which is rough.
    """
    from llama2_lib.pipeline import STAGES
    from llama2_lib.recipes import nano

    def cost(recipe: Any) -> float:
        return recipe.model.n_parameters * recipe.pretrain.n_tokens

    seconds = STAGES[stage].seconds * REFERENCE_TOKENS_PER_SECOND / tokens_per_second
    made_of_text = stage in ("tokenizer", "corpus")
    return seconds * (1.0 if made_of_text else cost(recipe) / cost(nano()))


def duration(seconds: float) -> str:
    """Return a length of time as people say it, rounded as an estimate deserves."""
    if seconds < 100:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
