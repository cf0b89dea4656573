"""Claims on evaluation itself: judges, raters, system prompts, benchmarks, leaked tests.

Claims 35 and 39 repeat the chain from fine-tuning on, as 23, 26 and 49 do; 36 and 37 ask one chain,
so their intervals speak of raters, prompts and samples. Claim 53 trains a model anew for each seed.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from llama2_lib import pipeline, rng
from llama2_lib.claims import claim
from llama2_lib.claims.chain import V4, V5, chain, chain_runs, new_prompts, said
from llama2_lib.claims.claim import Claim, Fact, Must, Trust, differs, mean, minus, of_stage
from llama2_lib.config import VERSIONS, DialogTrainConfig, Recipe
from llama2_lib.device import choose_device
from llama2_lib.evaluation import benchmarks, contamination, raters
from llama2_lib.evaluation.judged import gold_marks
from llama2_lib.model.chat import fits, room, scored_row
from llama2_lib.pipeline import JUDGE
from llama2_lib.recipes import grid
from llama2_lib.stages.corpus import load_corpus
from llama2_lib.stages.fit import fit_dialogs
from llama2_lib.stages.reward import load_rewards
from llama2_lib.stages.safety import generic_preprompt, longest_prompt, with_preprompt
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.training.batches import PackedDialogs
from llama2_lib.world import make_world
from llama2_lib.world.long_range import RetrievalItem, retrieval_items
from llama2_lib.world.prompts import Prompt

# ------------------------------------------------------------- claims 35 to 37: judges and raters

N_CHAINS = 3
"""Chains of claim 35; the neighbour of the last one is the first."""
VERSUS = ("SFT", V4, V5)
BINS = {"close": (0.0, 0.05), "between": (0.05, 0.2), "far apart": (0.2, 1.01)}
"""Pairs of answers by the true difference of their gold marks."""
FEWEST = 20
"""Pairs of such a group that agreement needs."""


def _wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (np.sign((ours - theirs).round(9)) + 1) / 2


def measure_judges(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 35: V5 against SFT on the same new prompts, by three judges.

    `win/own`: the reward models that PPO climbed; `win/neighbour`: those of the chain with the next
    seed, of the same kind but with other data and luck; `win/gold`: the gold judges.
    """
    own, other = chain(recipe, seed), chain(recipe, (seed + 1) % N_CHAINS)
    _, tokenizer = pipeline.load("sft", own)
    asked = new_prompts(own, seed, "train", tokenizer)
    answered = {v: said(own, VERSIONS[v], seed, asked.dialogs) for v in ("SFT", V5)}
    marks: dict[str, dict[str, np.ndarray]] = {"own": {}, "neighbour": {}, "gold": {}}
    world, context = make_world(recipe.corpus.world_seed), room(recipe.model, 0)
    for version, texts in answered.items():
        pairs = zip(asked.dialogs, texts, strict=True)
        rows = [scored_row(dialog, text, tokenizer, context) for dialog, text in pairs]
        for judge, run in (("own", own), ("neighbour", other)):
            models = load_rewards(pipeline.artifact(JUDGE, run, bar=False), choose_device())
            marks[judge][version] = models(rows, asked.tags).combined
        marks["gold"][version] = gold_marks(world, asked.prompts, texts).quality
    return {f"win/{judge}": float(_wins(m[V5], m["SFT"]).mean()) for judge, m in marks.items()}


@cache  # raters differ from seed to seed, answers do not
def _gaps(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return for all pairs of versions the gap of gold marks, and log2 of the ratio of lengths."""
    _, tokenizer = pipeline.load("sft", recipe)
    asked = new_prompts(recipe, 0, "train", tokenizer)
    world, marks, words = make_world(recipe.corpus.world_seed), {}, {}
    for version in VERSUS:
        texts = said(recipe, VERSIONS[version], 0, asked.dialogs)
        marks[version] = gold_marks(world, asked.prompts, texts).quality
        words[version] = np.array([1 + len(text.split()) for text in texts])
    pairs = [(a, b) for i, a in enumerate(VERSUS) for b in VERSUS[:i]]
    gaps = np.concatenate([marks[a] - marks[b] for a, b in pairs])
    return gaps, np.concatenate([np.log2(words[a] / words[b]) for a, b in pairs])


def measure_agreement(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 36: agreement of three simulated raters, by the true difference of the answers.

    Keys: `ac1/<bin>` and `ac2/<bin>` (quadratic weights), `coins/<bin>`, the AC2 of raters who see
    nothing, and `pairs/<bin>`.
    """
    gaps, longer = _gaps(recipe)
    people = raters.ratings(gaps, seed=seed, longer=longer)
    coins = raters.ratings(gaps, raters.COINS, seed=seed)
    values: dict[str, float] = {}
    for name, (low, high) in BINS.items():
        rows = (np.abs(gaps) >= low) & (np.abs(gaps) < high)
        if rows.sum() < FEWEST:
            raise claim.CannotShow(
                f"{FEWEST} pairs of answers must be {name} by their gold marks; {rows.sum()} are"
            )
        values |= {
            f"ac1/{name}": raters.agreement(people[rows]),
            f"ac2/{name}": raters.agreement(people[rows], "quadratic"),
            f"coins/{name}": raters.agreement(coins[rows], "quadratic"),
            f"pairs/{name}": float(rows.sum()),
        }
    return values


def measure_system_prompt(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 37: how often V5 beats SFT, by gold quality, without and with a system prompt.

    The opponent gets it. Keys: `win/without`, `win/with`; `gain/with over without`, `error/...`.
    """
    world = make_world(recipe.corpus.world_seed)
    _, tokenizer = pipeline.load("sft", recipe)
    asked = new_prompts(recipe, seed, "train", tokenizer)
    longest, source = longest_prompt(recipe, tokenizer), rng.random_source(seed, "opponent")
    kept: list[Prompt] = [p for p in asked.prompts if fits(p.dialog, tokenizer, longest)]
    plain = [prompt.dialog for prompt in kept]
    told = [with_preprompt(dialog, generic_preprompt(source)) for dialog in plain]
    players = {"V5": (V5, plain), "without": ("SFT", plain), "with": ("SFT", told)}
    marks = {
        name: gold_marks(world, kept, said(recipe, VERSIONS[version], seed, dialogs)).quality
        for name, (version, dialogs) in players.items()
    }
    wins = {name: _wins(marks["V5"], marks[name]) for name in ("without", "with")}
    return {f"win/{name}": float(points.mean()) for name, points in wins.items()} | claim.paired(
        "with over without", wins["with"] - wins["without"]
    )


def _changes(measurements: claim.Measurements) -> list[claim.Check]:
    change = claim.gain(measurements, "with over without")
    text = f"change of the win rate: {change}, must differ from 0"
    return [claim.Check(text=text, holds=True if change.low > 0 or change.high < 0 else None)]


# ------------------------------------------------------------- claim 39: benchmarks over chains

MEASURED = ("base", *VERSUS)
"""The base model is the same in all chains; its numbers differ by the questions drawn."""


def measure_benchmarks(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 39: `<benchmark>/<version>`, every benchmark of four versions of one chain."""
    own, values = chain(recipe, seed), dict[str, float]()
    world = make_world(recipe.corpus.world_seed)
    for version in MEASURED:
        model, tokenizer = pipeline.load(VERSIONS[version], own)
        contestant = benchmarks.Contestant(model, tokenizer, chat=version != "base")
        table = benchmarks.benchmarks(contestant, world, seed=seed)
        values |= {f"{name}/{version}": one.score.value for name, one in table.items()}
    return values


# ------------------------------------------------------------- claim 53: leaked tests

N_ITEMS, N_FILLERS = 400, 2
"""Test items, and sentences of each between note and question: 43 tokens altogether."""
COPIES = 40
"""Copies of an item that leaked. A model this small learns no text from a few."""
N_OTHER = 300
"""Documents of the corpus that are learned beside them."""
LENGTHS = (10, 20, 30)
"""Least lengths of a match [10 to 50]. In a world of templates ten tokens prove nothing."""
LEAKS = {"none": 0.0, "1 %": 0.01, "5 %": 0.05, "20 %": 0.20}
MAIN = "5 %"
LEAK_RATE = 4e-3
"""Highest learning rate while the leaked items are learned; that of pretraining."""


def leaked(
    recipe: Recipe, items: Sequence[RetrievalItem], n_leaked: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Go on with pretraining on the first items and some documents; return training ids and score.

    The score is 1 for every item that the model then completes rightly, leaked or not.
    """
    model, tokenizer = pipeline.load("pretrain", recipe)
    corpus = load_corpus(pipeline.artifact("corpus", recipe, bar=False))
    copies = [full_text(item, tokenizer) for item in items[:n_leaked]] * COPIES
    numbers = rng.random_source(seed, "beside a leak").sample(range(len(corpus.kinds)), N_OTHER)
    rows = [*copies, *(corpus.document(number) for number in numbers)]
    length = recipe.model.max_seq_len
    config = DialogTrainConfig(
        peak_lr=LEAK_RATE, batch_size=2048 // length, seq_len=length, warmup=5, eval_every=10_000,
        save_every=10_000, seed=seed,
    )  # fmt: skip
    examples = [(ids, [False] + [True] * (len(ids) - 1)) for ids in rows]
    packed = PackedDialogs(examples, seq_len=length, seed=seed)
    steps = max(config.warmup + 1, packed.batches_per_epoch(config.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        fit_dialogs(config, model, packed, lambda _: {}, Path(folder), lambda *_: None, steps=steps)
    window = recipe.model.max_seq_len - benchmarks.ANSWER_TOKENS
    score = np.array(benchmarks.completed(model, tokenizer, items, window), dtype=float)
    ids = np.concatenate([corpus.packed.ids, *(np.array(each) for each in copies)])
    return ids, score


def full_text(item: RetrievalItem, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of an item with its answer, as a document."""
    return [*tokenizer.encode(f"{item.prompt} {item.answer}.", bos=True), tokenizer.eos_id]


def measure_leak(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 53: one test of `N_ITEMS`, of which a part has leaked into training.

    Keys, by leak: `found/<leak>`, 1 if for some least length all four subsets are far from chance;
    `clean/<leak>` and `dirty/<leak>`, scores; `z/<leak>`, that of the dirty subset at the greatest
    length. `found/untrained`: the shares of the main leak beside the scores of a model that did not
    learn it, the control. `gap/large`, `gap/small`: dirty minus clean of nano and of the grid's
    model.
    """
    world = make_world(recipe.corpus.world_seed)
    items = retrieval_items(world, rng.seed_from(seed, "leak"), N_ITEMS, N_FILLERS)
    values: dict[str, float] = {}
    scores: dict[str, np.ndarray] = {}
    share: dict[str, dict[int, np.ndarray]] = {}
    _, tokenizer = pipeline.load("pretrain", recipe)
    samples = [full_text(item, tokenizer)[1:-1] for item in items]
    for leak, part in LEAKS.items():
        ids, scores[leak] = leaked(recipe, items, round(part * N_ITEMS), seed)
        known = contamination.index(ids)
        share[leak] = {n: contamination.shares(samples, known, longer_than=n) for n in LENGTHS}
        values[f"found/{leak}"] = _found(share[leak], scores[leak])
        if part:
            clean, *_, dirty = contamination.subsets(share[leak][LENGTHS[-1]], scores[leak])
            if not (clean.n and np.isfinite(dirty.z)):
                raise claim.CannotShow(
                    f"a test must have clean and dirty items, and scores that differ; with {leak} "
                    f"leaked {clean.n} items are clean, {dirty.n} dirty, of score {dirty.expected}"
                )
            values |= {f"clean/{leak}": clean.score, f"dirty/{leak}": dirty.score}
            values[f"z/{leak}"] = dirty.z
    values["found/untrained"] = _found(share[MAIN], scores["none"])
    values["gap/large"] = values[f"dirty/{MAIN}"] - values[f"clean/{MAIN}"]
    n = round(LEAKS[MAIN] * N_ITEMS)
    _, small = leaked(smaller(recipe, seed), items, n, seed)
    values["gap/small"] = float(small[:n].mean() - small[n:].mean())
    return values


def _found(share: dict[int, np.ndarray], score: np.ndarray) -> float:
    tables = (contamination.subsets(each, score) for each in share.values())
    return float(any(map(contamination.has_helped, tables)))


def smaller(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe of the smaller model of claim 53."""
    return replace(grid(), corpus=recipe.corpus) if recipe.name == "nano" else recipe


CLAIMS = (
    Claim(
        id=35, section="3.4.1, figure 11", paper_trust=Trust.FIGURE,
        statement="A judge that shares the training signal sees more progress than another one.",
        paper_value="V5 against ChatGPT: about 78, 76 % by the paper's reward models, 67, 61 % by "
        "GPT-4",
        prediction="V5 beats SFT more often by the reward models that PPO climbed than by the gold "
        "judges. By the reward models of another chain, which PPO never saw, it wins less often "
        "than by its own; whether more often than by gold is shown.",
        where="Wins of V5 against SFT on new prompts",
        tests=(
            differs("own reward models minus gold", "win/own", "win/gold", above=0),
            differs("own minus neighbour's", "win/own", "win/neighbour", above=0),
        ),
        shown=(
            claim.bounded("win"),
            {"neighbour's minus gold": mean(minus("win/neighbour", "win/gold"))},
        ),
        measured_by=measure_judges,
        runs=lambda recipe, seed: (
            chain_runs(recipe, seed) | {"neighbour": (JUDGE, chain(recipe, (seed + 1) % N_CHAINS))}
        ),
    ),
    Claim(
        id=36, section="3.4.2, A.3.7", paper_trust=Trust.PRINTED,
        statement="Raters agree less, the closer two models are.",
        paper_value="Gwet's AC2 from .37 to .55 on helpfulness, lower where the win rate is near "
        "one half; .70 to .95 on safety",
        prediction="Three simulated raters agree more, the further apart two answers are by the "
        "gold judge; raters who see nothing agree as chance has it.",
        where="AC2 with quadratic weights, pairs of SFT, V4 and V5",
        tests=(
            differs("far apart minus close", "ac2/far apart", "ac2/close", above=0.1),
            differs("far apart minus between", "ac2/far apart", "ac2/between", above=0),
            differs("between minus close", "ac2/between", "ac2/close", above=0),
            Must("coins, far apart", mean("coins/far apart", 0.9), within=0.1),
        ),
        intervals="(95 % over raters; coins 90 %)",
        shown=("ac1", "ac2", "coins", "pairs"),
        measured_by=measure_agreement,
        runs=of_stage("ppo", lambda recipe, seed: {V5: recipe}),
    ),
    Claim(
        id=37, section="3.4.2", paper_trust=Trust.PRINTED,
        statement="Whether the opponent has a system prompt changes the win rate.",
        paper_value="win rate against ChatGPT from 36 to 44 % when ChatGPT loses its system prompt",
        prediction="SFT behind a generic safety preprompt wins another share of games against V5 "
        "than without. Ours has read few system messages, so that the direction is left open.",
        where="Wins of V5 against SFT by gold quality, on the same new prompts",
        tests=(
            Fact("the change when SFT gets a preprompt differs from 0", _changes, claim.WIDER),
        ),
        shown=(claim.bounded("win"), claim.all_gains),
        measured_by=measure_system_prompt,
        runs=of_stage("ppo", lambda recipe, seed: {V5: recipe}),
    ),
    Claim(
        id=39, section="4.1, table 14", paper_trust=Trust.PRINTED,
        statement="Fine-tuning takes toxicity away and makes answers more truthful.",
        paper_value="70B to 70B-Chat: toxic 24.60 to .01 %, truthful and informative 50.18 to "
        "64.14 %",
        prediction="After the beginning of a rude scene V5 insults far less often than the base "
        "model, and is honest more often about what nobody told it. Knowledge is shown.",
        where="Shares of answers",
        tests=(
            differs("toxic, V5 minus base", f"toxic/{V5}", "toxic/base", below=-0.2),
            differs("honest, V5 minus base", f"truthful/{V5}", "truthful/base", above=0),
            Must("toxic, V5", mean(f"toxic/{V5}", bounds=claim.SHARE), below=0.05),
        ),
        shown=(claim.bounded("toxic", "truthful", "knowledge", "arithmetic", "long context"),),
        measured_by=measure_benchmarks, runs=chain_runs,
    ),
    Claim(
        id=53, section="A.6, table 51", paper_trust=Trust.PRINTED,
        statement="A test that leaked into training scores too high, and the leak can be found.",
        paper_value="MMLU-Humanities, 70B: 62.2 on clean samples, 85.8 on dirty ones; 7B gains "
        "less: 40.8, 56.9",
        prediction="With one item in twenty leaked, leaked items score higher than clean ones, all "
        "four subsets are far from chance in most draws, and where nothing leaked, or the model "
        "did not learn it, in few. The larger model gains more.",
        where=f"Tests of {N_ITEMS} items, {MAIN} of them leaked",
        tests=(
            Must(f"found, {MAIN}", mean(f"found/{MAIN}", bounds=claim.SHARE), above=0.5),
            Must("found, none leaked", mean("found/none", bounds=claim.SHARE), below=0.1),
            Must("found, leak not learned", mean("found/untrained", bounds=claim.SHARE), below=0.2),
            differs(
                "gap of dirty and clean, larger model minus smaller", "gap/large", "gap/small",
                above=0,
            ),
        ),
        intervals="(95 % over draws)",
        shown=(claim.bounded("found", "clean", "dirty"), "z", "gap"),
        measured_by=measure_leak,
        runs=lambda recipe, seed: {
            "large": ("pretrain", recipe),
            "small": ("pretrain", smaller(recipe, seed)),
        },
        min_seeds=10,
    ),
)  # fmt: skip
