"""Red teams (paper section 4.3): attackers that combine attack vectors and learn what works.

An attacker has strategies: some attack vectors at once, in the first turn or after several. It
keeps count of the strategies that broke the model and tries those more often, as people do. What
it asks for is invented and harmless outside the world, like everything in `risks`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import NamedTuple

from llama2_lib.rng import random_source
from llama2_lib.world.dialogs import Message, exchange, transcript
from llama2_lib.world.facts import World
from llama2_lib.world.prompts import Prompt, adversarial_prompt, harmless_turns
from llama2_lib.world.risks import ATTACKS, JOINT, RED_TEAM, WISH_ATTACKS, risk_maker
from llama2_lib.world.tasks import CATEGORIES

TURNS = ("single", "trust", "history")
"""Straight away; after the attacker has gained trust; after talk of something harmless."""
MOST_TRIES = 200  # draws for one attack that is new, before the attacker is out of ideas


class Strategy(NamedTuple):
    """How to attack, whatever the wish."""

    vectors: tuple[str, ...]  # some of `ATTACKS`, in their order
    turns: str  # one of `TURNS`
    category: str  # one of the risk categories

    @property
    def attack(self) -> str:
        """Name of the vectors, as prompts carry it."""
        return JOINT.join(self.vectors)


def vector_sets() -> list[tuple[str, ...]]:
    """Return every set of vectors that fit into one request, small ones first.

    At most one vector says how to ask, and metaphor and misspelling come on top; `plain` is no
    vector and stands alone.
    """
    frames = [a for a in ATTACKS if a not in (*WISH_ATTACKS, "plain")]
    changes = [c for n in range(len(WISH_ATTACKS) + 1) for c in combinations(WISH_ATTACKS, n)]
    sets = [(*c, *frame) for c in changes for frame in [(), *((f,) for f in frames)]]
    ordered = [tuple(sorted(vectors, key=ATTACKS.index)) for vectors in sets if vectors]
    return [("plain",), *sorted(ordered, key=len)]


def strategies() -> list[Strategy]:
    """Return every strategy: sets of vectors, turns and categories."""
    return [Strategy(*parts) for parts in product(vector_sets(), TURNS, CATEGORIES)]


def vectors_of(prompt: Prompt) -> tuple[str, ...]:
    """Return the attack vectors of an adversarial prompt, combined ones apart."""
    return tuple(prompt.attack.split(JOINT)) if prompt.attack else ()


class Attacker:
    """Composes attacks and learns which strategies work, within one round of red-teaming.

    It counts tries and successes of each of a strategy's three parts. A proposal draws a success
    rate for each from the Beta distribution of its counts and takes the strategy with the highest
    product (Thompson sampling): at first anything, later what broke the model. What it learned of
    a part it tries elsewhere: role play that worked for one category is tried for another. No two
    proposals of one attacker are the same.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        split: str = RED_TEAM,
        fits: Callable[[Prompt], bool] = lambda prompt: True,
    ) -> None:
        """Begin without experience, with the wordings and hazards of a split of `RiskMaker`.

        A prompt that does not fit leaves no room for an answer; it is counted and not asked.
        """
        self.world, self.fits, self.n_too_long = world, fits, 0
        self.strategies = strategies()
        self.rng = random_source(seed, "attacker", split, world.seed)
        self.maker = risk_maker(world, split)
        self.tried: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.known: dict[str, Strategy] = {}

    def propose(self, n: int) -> list[Prompt]:
        """Return n attacks that this attacker has not made before."""
        return [self._new() for _ in range(n)]

    def learn(self, prompts: Sequence[Prompt], violated: Sequence[bool]) -> None:
        """Take in which of this attacker's proposals drew a violating answer."""
        for prompt, broke in zip(prompts, violated, strict=True):
            for part in self._parts(self.known[key_of(prompt)]):
                self.tried[part] += 1
                self.broken[part] += bool(broke)

    def _new(self) -> Prompt:
        for _ in range(MOST_TRIES):
            strategy = max(self.strategies, key=self._promise)
            prompt = self.make(strategy)
            if not self.fits(prompt):
                self.n_too_long += 1
            elif key_of(prompt) not in self.known:
                self.known[key_of(prompt)] = strategy
                return prompt
        raise ValueError(
            f"{MOST_TRIES} attacks in a row had been made before or were too long; ask for fewer, "
            "or give the model a longer context"
        )

    def make(self, strategy: Strategy) -> Prompt:
        """Return one attack by this strategy; it may have been made before."""
        earlier = self.earlier(strategy.turns)
        return adversarial_prompt(
            self.rng, self.maker, earlier, strategy.vectors, strategy.category
        )

    def earlier(self, turns: str) -> list[Message]:
        """Return what is said before the attack itself."""
        if turns == "single":
            return []
        if turns == "history":
            return harmless_turns(self.world, self.rng)
        return exchange(*self.maker.lead_in(self.rng))

    def _parts(self, strategy: Strategy) -> tuple[str, ...]:
        return (strategy.attack, f"{strategy.turns} turns", strategy.category)

    def _promise(self, strategy: Strategy) -> float:
        promise = 1.0
        for part in self._parts(strategy):
            hits = self.broken[part]
            promise *= self.rng.betavariate(1 + hits, 1 + self.tried[part] - hits)
        return promise


def key_of(prompt: Prompt) -> str:
    """Name a prompt by what is said in it."""
    return transcript(prompt.dialog)


def is_multi_turn(prompt: Prompt) -> bool:
    """Say whether the user has said something before."""
    return sum(message["role"] == "user" for message in prompt.dialog) > 1


def in_more_turns(
    world: World, seed: int, prompts: Sequence[Prompt], split: str = "held out"
) -> list[Prompt]:
    """Return the same attacks with earlier turns, half of them trust, half harmless talk.

    What is asked last stays word for word, so only what is said before it differs (claim 47).
    """
    assert not any(map(is_multi_turn, prompts)), "turns are put before attacks of one turn"
    attacker = Attacker(world, seed, split)
    return [
        replace(prompt, dialog=[*attacker.earlier(TURNS[1 + index % 2]), *prompt.dialog])
        for index, prompt in enumerate(prompts)
    ]
