"""All claims that have been declared, by id."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from llama2_lib.claims import (
    alignment,
    attention,
    corpus,
    finetuning,
    ghost_attention,
    ppo,
    pretraining,
    red_team,
    rejection,
    rewards,
    safety,
)
from llama2_lib.claims.claim import Claim
from llama2_lib.claims.rewards_arms import shown_requests
from llama2_lib.claims.safety_runs import shown_arm


def collect(*groups: tuple[Claim, ...]) -> Mapping[int, Claim]:
    """Return the claims of all groups by id, in the order of the ids.

    Raises:
        ValueError: Two claims share an id.
    """
    claims = sorted((claim for group in groups for claim in group), key=lambda claim: claim.id)
    by_id = {claim.id: claim for claim in claims}
    if len(by_id) < len(claims):
        ids = [claim.id for claim in claims]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise ValueError(f"every claim needs its own id; {twice} came twice. Renumber one.")
    return MappingProxyType(by_id)


CLAIMS = collect(
    pretraining.CLAIMS,
    corpus.CLAIMS,
    attention.CLAIMS,
    finetuning.CLAIMS,
    rewards.CLAIMS,
    rejection.CLAIMS,
    alignment.CLAIMS,
    ppo.CLAIMS,
    ghost_attention.CLAIMS,
    safety.CLAIMS,
    red_team.CLAIMS,
)


def of_course(claims: Mapping[int, Claim] = CLAIMS) -> Mapping[int, Claim]:
    """Return the claims that the course measures itself, over all seeds."""
    return MappingProxyType({i: claim for i, claim in claims.items() if not claim.recorded})


def grid_requests(
    recipe: Any, seeds: Sequence[int] = range(3), claims: Mapping[int, Claim] = CLAIMS
) -> list[tuple[str, Any]]:
    """Return every run that some claim needs, each once: what `pipeline.artifacts` can train."""
    needed = [
        request
        for claim in claims.values()
        if claim.requests is not None
        for request in claim.requests(recipe, seeds)
    ]
    return list(dict.fromkeys(needed))


def course_requests(recipe: Any) -> list[tuple[str, Any]]:
    """Return the small runs of the course: those of its claims, and one seed of what it shows.

    Notebooks 06 and 10 look into single runs of claims that are recorded over all seeds.
    """
    shown = [*shown_requests(recipe), *shown_arm(recipe)]
    return list(dict.fromkeys([*grid_requests(recipe, claims=of_course()), *shown]))
