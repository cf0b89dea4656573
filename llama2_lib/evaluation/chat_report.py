"""One table of what a finished chat model must do at once: decline, help, keep a persona, know.

Each part has an evaluation of its own; a model that gains in one of them by losing another shows
it here.
"""

from collections.abc import Callable, Mapping
from itertools import islice

import numpy as np

from llama2_lib import rng
from llama2_lib.evaluation.consistency import cases, on_neutral_history, on_own_history
from llama2_lib.evaluation.judged import marks_of
from llama2_lib.evaluation.language import chat_recall
from llama2_lib.evaluation.statistics import Estimate, bootstrap_mean, proportion_exact
from llama2_lib.model.chat import fits, room
from llama2_lib.model.transformer import Transformer
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world.facts import World, recall_items
from llama2_lib.world.instructions import MOST_TURNS
from llama2_lib.world.judges import SAFE
from llama2_lib.world.prompts import adversarial_prompts, borderline_prompts, helpful_prompts
from llama2_lib.world.risks import held_out_hazards

WORDINGS = {"train": "known wording", "held out": "new wording"}
"""Half of the adversarial prompts in new wordings ask for hazards that no training prompt named;
they have lines of their own as well."""
FAMILIES: dict[str, Callable] = {
    "helpful": helpful_prompts,
    "adversarial": adversarial_prompts,
    "borderline": borderline_prompts,
}
"""What draws prompts of each family."""


def report(
    model: Transformer, tokenizer: Tokenizer, world: World, *, n: int = 200,
    n_turns: int = MOST_TURNS, seed: int = 0, max_new_tokens: int = 96,
) -> dict[str, Estimate]:  # fmt: skip
    """Return what a chat model does, each line with a 95 % interval over prompts or dialogs.

    Shares come with Clopper and Pearson's bounds, the mark of helpfulness with a bootstrap. The
    model answers `n` prompts of each family and wording once at temperature 1, and half as many
    dialogs of `n_turns` greedily. One seed draws the same prompts for every model compared.
    """
    lines: dict[str, Estimate] = {}
    unnamed, longest = held_out_hazards(world), room(model, max_new_tokens)
    for split, wording in WORDINGS.items():
        marks, new = {}, np.zeros(0, dtype=bool)
        for family, draw in FAMILIES.items():
            stream = draw(world, rng.seed_from(seed, "chat model"), split=split)
            prompts = list(islice((p for p in stream if fits(p.dialog, tokenizer, longest)), n))
            marks[family] = marks_of(
                model, tokenizer, world, prompts, seed=seed, max_new_tokens=max_new_tokens
            )
            if family == "adversarial":
                new = np.array([prompt.hazard in unnamed for prompt in prompts], dtype=bool)
        help_, harm, alike = (marks[family] for family in FAMILIES)
        lines |= {
            f"declines what asks for harm, {wording}": share(harm.refuses),
            f"violates, {wording}": share(harm.safety < SAFE),
            f"declines what only sounds harmful, {wording}": share(alike.refuses),
            f"declines what is harmless, {wording}": share(help_.refuses),
            f"helps (mark), {wording}": bootstrap_mean(help_.helpfulness.tolist(), seed),
        }
        if new.any():
            lines |= {
                "declines what asks for harm, new hazard": share(harm.refuses[new]),
                "violates, new hazard": share(harm.safety[new] < SAFE),
            }
    dialogs = cases(world, rng.seed_from(seed, "persona"), max(2, n // 2), n_turns=n_turns)
    own = on_own_history(model, tokenizer, dialogs)
    neutral = on_neutral_history(model, tokenizer, dialogs, (n_turns,))
    # Of all dialogs: a model that has filled its context with chatter by then keeps nothing.
    obeyed, right = own.obeyed[:, n_turns - 1], own.right[:, n_turns - 1]
    lines |= {
        f"keeps an instruction, turn {n_turns}": share(obeyed),
        f"the same, neutral history, turn {n_turns}": neutral.obedience(n_turns),
        "keeps it at all turns": share(np.asarray(own.obeyed.all(axis=1))),
        f"right answers meanwhile, turn {n_turns}": share(right),
    }
    recalled = chat_recall(model, tokenizer, recall_items(world))
    return lines | {f"knows facts, {exposure}": told for exposure, told in recalled.items()}


def share(hits: np.ndarray) -> Estimate:
    """Return the share of hits, with Clopper and Pearson's bounds."""
    return proportion_exact(int(hits.sum()), len(hits))


def table(reports: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """Return the lines of a table: what is asked down, models across; shares in per cent."""
    names = list(reports)
    width = max(map(len, reports[names[0]]))
    lines = [" " * width + "".join(f"{name:>20s}" for name in names)]
    for what in reports[names[0]]:
        scale = 1 if "mark" in what else 100
        cells = (reports[name][what] for name in names)
        lines.append(f"{what:{width}s}" + "".join(f"{_cell(cell, scale):>20s}" for cell in cells))
    return lines


def _cell(estimate: Estimate, scale: int) -> str:
    digits = 0 if scale == 100 else 2
    parts = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{scale * part:.{digits}f}" for part in parts)
    return f"{value}{' %' if scale == 100 else ''} [{low}, {high}]"
