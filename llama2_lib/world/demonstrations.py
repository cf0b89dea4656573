"""Dialogs for supervised fine-tuning: by careful writers, by careless ones, or by both."""

from collections.abc import Iterator, Mapping
from typing import Literal

from llama2_lib.rng import random_source
from llama2_lib.world.dialogs import DialogMaker, Message, asks, exchange, n_turns
from llama2_lib.world.facts import World
from llama2_lib.world.lexicon import check_known, chooser, stream
from llama2_lib.world.pairs import degrader
from llama2_lib.world.prompts import (
    MULTI_TURN_FRACTION,
    PROMPT_SHARES,
    Prompt,
    adversarial_prompts,
    borderline_prompts,
    harmless_turns,
)
from llama2_lib.world.risks import BORDERLINE_SHARES, LOOK_ALIKES, borderline_maker
from llama2_lib.world.tasks import HELPFUL_SHARES, answer_writer, task_maker

WriterGrade = Literal["clean", "mixed", "noisy"]
WRITER_GRADES: tuple[WriterGrade, ...] = ("clean", "mixed", "noisy")

CARELESS = {"clean": 0.0, "mixed": 0.5, "noisy": 1.0}
"""Share of dialogs whose writer is careless. People differ, and a fine-tuned model learns the
poor tail of what they write with the rest; RLHF then cuts it off (paper section 5.1)."""

DEMONSTRATION_SHARES = {"helpful": 0.9, "adversarial": 0.1, "borderline": 0.0}
"""Shares of dialogs. Borderline demonstrations are left out, so that false refusals can show."""

NOISE_RATES = {
    "wrong": 0.15,
    "curt": 0.12,
    "rambling": 0.12,
    "off topic": 0.08,
    "repeated": 0.06,
    "rude": 0.02,
}
"""How many answers of careless writers have which flaw; 0.45 have none."""
NOISY_SAFETY_RATES = {"full": 0.40, "bare": 0.30, "complete": 0.20, "vague": 0.10}
"""How careless writers answer adversarial prompts; careful ones decline, explain and offer."""

_NO_FLAW = "none"


class _Demonstrator:
    def __init__(self, world: World, seed: int, grade: str) -> None:
        check_known("grade", grade, WRITER_GRADES)
        self.share = CARELESS[grade]
        self.rng = random_source(seed, "demonstrations", grade, world.seed)
        self.tasks, self.writer = task_maker(world, "train"), answer_writer(world)
        self.degrader, self.maker = degrader(world), DialogMaker(world)
        rates = NOISE_RATES | {_NO_FLAW: 1 - sum(NOISE_RATES.values())}
        self.draw_flaw, self.draw_level, self.draw_kind = (
            chooser(shares, tuple(shares)) for shares in (rates, NOISY_SAFETY_RATES, HELPFUL_SHARES)
        )
        self.adversarial = adversarial_prompts(world, seed)
        self.borderline = borderline_prompts(world, seed)

    def helpful(self) -> list[Message]:
        """One to six turns, with a system message in two of five."""
        rng = self.rng
        careless = self._careless()
        dialog, obey = self.maker.opening(rng)
        most = n_turns(rng)
        requests: set[str] = set()
        while len(requests) < most:
            kind = self.draw_kind(rng)
            request, task = self.tasks.draw(rng, kind)
            if request not in requests:
                requests.add(request)
                prompt = Prompt(dialog=[asks(request)], kind=kind, task=task)
                dialog += exchange(request, obey(self._answer(prompt, careless)))
        return dialog

    def safe(self) -> list[Message]:
        prompt = next(self.adversarial)
        level = self.draw_level(self.rng) if self._careless() else "full"
        answer = self.degrader.graded(self.rng, prompt, level)
        return [*prompt.dialog, {"role": "assistant", "content": answer}]

    def harmless(self) -> list[Message]:
        prompt = next(self.borderline)
        answer = self._answer(prompt, self._careless())
        return [*prompt.dialog, {"role": "assistant", "content": answer}]

    def _careless(self) -> bool:
        # Nothing is drawn where nothing is open: one kind of writer writes the same as ever.
        return self.share == 1.0 or (self.share > 0.0 and self.rng.random() < self.share)

    def _answer(self, prompt: Prompt, careless: bool) -> str:
        answer = self.writer.demonstration(self.rng, prompt.task)
        flaw = self.draw_flaw(self.rng) if careless else _NO_FLAW
        return answer if flaw == _NO_FLAW else self.degrader.degrade(self.rng, prompt, answer, flaw)


def demonstrations(
    world: World,
    seed: int,
    n: int | None = None,
    grade: str = "clean",
    shares: Mapping[str, float] = DEMONSTRATION_SHARES,
) -> Iterator[list[Message]]:
    """Yield n dialogs that end with an answer; `n=None` never ends.

    Only training prompts are answered. The dialogs of one family (`shares` with one key) are a
    stream whose beginning does not depend on n, so subsets nest. Dialogs of careless writers have
    the flaws of `NOISE_RATES` and `NOISY_SAFETY_RATES`; an instruction of a system message is
    obeyed in all grades.
    """
    draw_family = chooser(shares, tuple(PROMPT_SHARES))
    maker = _Demonstrator(world, seed, grade)
    families = {"helpful": maker.helpful, "adversarial": maker.safe, "borderline": maker.harmless}
    rng = random_source(seed, "demonstrations", "family", grade, world.seed)
    return stream(n, lambda: families[draw_family(rng)]())


def borderline_training(world: World, seed: int, n: int | None = None) -> Iterator[list[Message]]:
    """Yield n harmless requests that sound dangerous with good answers, some after other turns.

    The paper tells that its borderline set was made by hand, to measure false refusals (section
    4.2.3). Here such requests are also a cure, written once a model had become too shy: people
    write what the model wrongly declines, in other words than those of the test set, and the
    model is shown good answers.
    """
    maker, writer = borderline_maker(world, LOOK_ALIKES), answer_writer(world)
    draw_kind = chooser(BORDERLINE_SHARES, tuple(BORDERLINE_SHARES))
    rng = random_source(seed, "look-alikes", world.seed)

    def draw() -> list[Message]:
        earlier = harmless_turns(world, rng) if rng.random() < MULTI_TURN_FRACTION else []
        request, task = maker.draw(rng, draw_kind(rng))
        return [*earlier, *exchange(request, writer.demonstration(rng, task))]

    return stream(n, draw)
