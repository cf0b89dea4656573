"""Claims on abilities that emerge, or must be taught (paper section 5.1).

Claim 50 asks the chains of claims 23, 26 and 49. Claims 51 and 52 show one chat model examples in
another order for each seed, and set it beside a control: the same examples with dates exchanged,
and the model that was shown none.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from scipy import stats

from llama2_lib import pipeline, rng
from llama2_lib.claims import claim
from llama2_lib.claims.chain import RLHF_VERSIONS, V4, V5, chain, chain_runs
from llama2_lib.claims.claim import SHARE, Claim, Must, Trust, bounded, differs, mean
from llama2_lib.config import VERSIONS, Recipe
from llama2_lib.evaluation.benchmarks import Asked, Contestant, answers
from llama2_lib.evaluation.emergent import Model, self_bleu, time_sense, tool_use
from llama2_lib.model.chat import reply
from llama2_lib.world import dates, make_world, tools
from llama2_lib.world.tools import ToolTask

CHAT = VERSIONS["chat"]

# ------------------------------------------------------------- claim 50: temperature in context

N_EACH, N_SAMPLES = 10, 25
"""Prompts of each kind, and samples of each prompt [10 and 25]."""
HEATS = (0.4, 0.6, 0.8, 1.0, 1.2)
FACTUAL, CREATIVE = "factual", "creative"
COMPARED = ("SFT", V4, V5)


def heated_prompts(seed: int) -> dict[str, list[str]]:
    """Return requests that have one right answer, and requests for stories."""
    world = make_world(0)
    people = rng.random_source(seed, "heated").sample(world.people, N_EACH)
    forms = world.lexicon.templates("questions", ("name", "value"))
    return {
        FACTUAL: [forms["home"][i % 4].fill({"name": p.name}) for i, p in enumerate(people)],
        CREATIVE: [f"Tell me a story about {person.name}." for person in people],
    }


def measure_heat(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 50.

    Keys: `bleu/<version>/<kind>/<temperature>`, mean Self-BLEU of the samples of a prompt, and
    `slope/<version>/<kind>`, its change per unit of temperature by least squares.
    """
    own, values = chain(recipe, seed), dict[str, float]()
    for version in COMPARED:
        model, tokenizer = pipeline.load(RLHF_VERSIONS[version], own)
        for kind, requests in heated_prompts(seed).items():
            curve = []
            for heat in HEATS:
                dialogs = [
                    [{"role": "user", "content": r}] for r in requests for _ in range(N_SAMPLES)
                ]
                said = reply(model, tokenizer, dialogs, temperature=heat, seed=seed)  # type: ignore[arg-type]
                texts = [one.text for one in said]
                groups = (texts[i : i + N_SAMPLES] for i in range(0, len(texts), N_SAMPLES))
                curve.append(float(np.mean([self_bleu(group) for group in groups])))
                values[f"bleu/{version}/{kind}/{heat:g}"] = curve[-1]
            values[f"slope/{version}/{kind}"] = float(stats.linregress(HEATS, curve).slope)
    return values


# ------------------------------------------------------------- claim 51: a sense of time

N_DATED = 400


def dated_runs(recipe: Recipe, seed: int) -> dict[str, claim.Request]:
    """Return the two trainings of claim 51 for one seed, and the model that was shown none."""
    taught = replace(recipe.dates, seed=seed)
    return {
        "taught": ("dates", replace(recipe, dates=taught)),
        "shuffled": ("dates", replace(recipe, dates=replace(taught, shuffled=True))),
        "untaught": (CHAT, recipe),
    }


def measure_time(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 51: `<what>/<arm>/<split>`, means of what `time_sense` returns.

    `told before` are the years told of events that are still to come.
    """
    world, values = make_world(recipe.corpus.world_seed), dict[str, float]()
    for split in dates.SPLITS[1:]:
        asked = list(dates.dated_questions(world, rng.seed_from(seed, "asked"), N_DATED, split))
        to_come = np.array([not question.happened for question in asked])
        for arm, request in dated_runs(recipe, seed).items():
            sense = time_sense(pipeline.load(*request), asked)
            values |= {f"{what}/{arm}/{split}": float(hits.mean()) for what, hits in sense.items()}
            values[f"told before/{arm}/{split}"] = float(sense["told"][to_come].mean())
    return values


# ------------------------------------------------------------- claim 52: tools

N_TASKS = 200
SUMS, UNSEEN = "held-out sums", "held-out tool"


def tool_runs(recipe: Recipe, seed: int) -> dict[str, claim.Request]:
    """Return the training of claim 52 for one seed, and the model that was shown none."""
    own = replace(recipe, tools=replace(recipe.tools, seed=seed))
    return {"taught": ("tools", own), "untaught": (CHAT, recipe)}


def measure_tools(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 52.

    Keys: `<what>/<arm>/<kind>`, means of what `tool_use` returns, of the taught model and of the
    untaught one, which reads the same system messages: on sums that no training dialog holds, on
    other held-out words, on the tool that no training dialog offers. `alone/<arm>`: the same sums
    right without any tool at hand.
    """
    world, values = make_world(recipe.corpus.world_seed), dict[str, float]()
    source = rng.seed_from(seed, "tasks")
    draw = partial(tools.tool_tasks, world, source)
    asked: dict[str, list[ToolTask]] = {
        SUMS: list(draw(N_TASKS, "held-out words", only="calculator")),
        "held-out words": list(draw(N_TASKS, "held-out words")),
        UNSEEN: list(draw(N_TASKS, "held-out tool")),
    }
    for arm, request in tool_runs(recipe, seed).items():
        model = pipeline.load(*request)
        for kind, tasks in asked.items():
            use = tool_use(model, world, tasks)
            values |= {f"{what}/{arm}/{kind}": float(hits.mean()) for what, hits in use.items()}
        values[f"alone/{arm}"] = _alone(model, asked[SUMS])
    return values


def _alone(model: Model, sums: Sequence[ToolTask]) -> float:
    asked = [Asked("", task.dialog[-1]["content"]) for task in sums]
    said = answers(Contestant(*model, chat=True), asked)
    results = (text.rstrip(".").split()[-1:] for text in said)
    return float(np.mean([last == [t.result] for last, t in zip(results, sums, strict=True)]))


def _slope(version: str, kind: str) -> str:
    return f"slope/{version}/{kind}"


CLAIMS = (
    Claim(
        id=50, section="5.1, figure 21", paper_trust=Trust.FIGURE,
        statement="RLHF learns what temperature is for: facts stay the same, stories still vary.",
        paper_value="figure 21: with each version the Self-BLEU of factual prompts falls less with "
        "temperature, that of creative prompts as before",
        prediction="From SFT to V5 the slope of Self-BLEU over temperature comes nearer to 0 on "
        "factual prompts, and on creative ones it stays below 0, steeper than on factual ones.",
        where=f"Slope of Self-BLEU over temperatures {HEATS[0]:g} to {HEATS[-1]:g}",
        tests=(
            differs("factual, V5 minus SFT", _slope(V5, FACTUAL), _slope("SFT", FACTUAL), above=0),
            Must("creative, V5", mean(_slope(V5, CREATIVE)), below=0),
            differs("V5, creative minus factual", _slope(V5, CREATIVE), _slope(V5, FACTUAL),
                    below=0),
        ),
        shown=("slope", "bleu"),
        measured_by=measure_heat, runs=chain_runs,
    ),
    Claim(
        id=51, section="5.1, figure 22", paper_trust=Trust.DESIGN,
        statement="A thousand dated examples give a sense of time.",
        paper_value="1,000 examples; the model then organises knowledge by time, and knows nothing "
        "of what lies after the date of the question",
        prediction="On years and events that no example held, the model tells better whether an "
        "event lies before today than the control, whose dates were exchanged; before the event it "
        "does not tell the year. Seed 0 was looked at before this was declared: after three passes "
        "it was at chance, so that the recipe was given twenty.",
        where="Right decisions, examples as they are minus dates exchanged",
        tests=(
            *(
                differs(split, f"right/taught/{split}", f"right/shuffled/{split}", above=bound)
                for split, bound in (("held-out dates", 0.1), ("held-out events", 0))
            ),
            Must("years told before the event, held-out dates",
                 mean("told before/taught/held-out dates", bounds=SHARE), below=0.1),
        ),
        shown=(bounded("right", "likelier", "told before"),),
        measured_by=measure_time,
        runs=dated_runs,
    ),
    Claim(
        id=52, section="5.1, table 15, figure 23", paper_trust=Trust.PRINTED,
        statement="With a calculator sums are right, and a tool is called that is only described.",
        paper_value="ASDiv, SVAMP, MAWPS with a calculator: 67.1, 69.2, 82.4 %; tools are called "
        "from a description alone, untaught",
        prediction="Shown calls of six tools, the model has sums right with the calculator that it "
        "has wrong alone. It also calls a tool that no example held, described in the prompt. Seed "
        "0 was looked at before this was declared: it never called that one.",
        where="Shares of requests",
        tests=(
            differs("held-out sums right, with the calculator minus alone",
                    f"right/taught/{SUMS}", "alone/taught", above=0.5),
            Must("right calls of the tool only described",
                 mean(f"called/taught/{UNSEEN}", bounds=SHARE), above=0.1),
        ),
        shown=(bounded("called", "right", "alone"),),
        measured_by=measure_tools,
        runs=tool_runs,
    ),
)  # fmt: skip
