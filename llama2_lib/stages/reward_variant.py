"""Reward models on the world's pairs alone, made to be compared (paper section 3.2.2).

No policy has to exist. Variants with the same seed learn from the same pairs, as far as they
learn from as many, and are tested on the same ones.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from llama2_lib import rng
from llama2_lib.stages.reward import RewardConfig, answered, world_pairs
from llama2_lib.text.dialog import Encoder
from llama2_lib.world import make_world
from llama2_lib.world.pairs import STREAMS, Pair, helpfulness_pairs, safety_pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardVariant:
    """One reward model to be compared with others."""

    reward: RewardConfig
    """Stream, number of pairs, margin, auxiliary loss, rates; without fresh pairs."""
    own_share: float
    """Share of its own stream in the training pairs; the rest is the other stream."""
    coin_toss: bool = False
    """Whether a coin decides which answer is called the chosen one: a control that can learn
    nothing. There are no safety labels then."""
    n_helpfulness: int = 0
    """Held-out pairs of the helpfulness stream that it is tested on."""
    n_safety: int = 0
    """The same of the safety stream."""

    def __post_init__(self) -> None:
        if not 0 < self.own_share <= 1:
            raise ValueError(f"own_share must lie above 0, 1 at most; got {self.own_share}.")
        if self.reward.n_fresh or self.reward.n_fresh_later:
            raise ValueError(
                "a variant learns from the world's pairs alone; got n_fresh="
                f"{self.reward.n_fresh} and n_fresh_later={self.reward.n_fresh_later}. Set both "
                "to 0."
            )
        if min(self.n_helpfulness, self.n_safety) < 0 or not self.tested:
            raise ValueError(
                "a variant must be tested on some pairs; got n_helpfulness="
                f"{self.n_helpfulness} and n_safety={self.n_safety}."
            )

    @property
    def tested(self) -> dict[str, int]:
        """Numbers of held-out pairs by stream, without streams that have none."""
        numbers = zip(STREAMS, (self.n_helpfulness, self.n_safety), strict=True)
        return {stream: n for stream, n in numbers if n}


def variant_pairs(variant: RewardVariant, world_seed: int) -> list[Pair]:
    """Return the training pairs, those of its own stream first."""
    config = variant.reward
    other = next(name for name in STREAMS if name != config.stream)
    n_own = round(variant.own_share * config.n_pairs)
    pairs = world_pairs(config.stream, world_seed, config.seed, n_own, "train")
    pairs += world_pairs(other, world_seed, config.seed, config.n_pairs - n_own, "train")
    if not variant.coin_toss:
        return pairs
    coin = rng.random_source(config.seed, "coin toss")
    return [_unlabelled(pair, coin.random() < 0.5) for pair in pairs]


def _unlabelled(pair: Pair, exchanged: bool) -> Pair:
    if not exchanged:
        return dataclasses.replace(pair, safety_bin="")
    return dataclasses.replace(
        pair, chosen=pair.rejected, rejected=pair.chosen, gap=-pair.gap, safety_bin=""
    )


def held_out_pairs(
    stream: str, world_seed: int, seed: int, n: int, tok: Encoder, longest: int
) -> list[Pair]:
    """Return the first n pairs of the held-out split with no more than `longest` tokens each.

    Fewer of them are a beginning of more. Few pairs are too long, except for tiny contexts.
    """
    draw = helpfulness_pairs if stream == "helpfulness" else safety_pairs
    endless: Iterator[Pair] = draw(make_world(world_seed), seed, None, "held out")
    short = (pair for pair in endless if _length(pair, tok) <= longest)
    return list(islice(short, n))


def _length(pair: Pair, tok: Encoder) -> int:
    return max(len(answered(pair, text, tok)) for text in (pair.chosen, pair.rejected))
