"""Claims on rejection sampling (paper section 3.2.3): best of N, temperature, pool, distillation.

Claims 21 and 22 look at one chain, and 24 at its pools: their seeds draw prompts, samples and the
order of training, so the intervals say nothing of what another chain would give. Each takes one to
three minutes of a core, most of it to draw and score samples, so the ledger holds them.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy.special import comb, expit

from llama2_lib import pipeline, rng
from llama2_lib.claims import claim
from llama2_lib.claims.attention import quality_recipes
from llama2_lib.claims.claim import Claim, Fact, Must, Trust, average, gains, mean, paired
from llama2_lib.claims.finetuning import Model, fitting
from llama2_lib.config import ROUNDS, Recipe
from llama2_lib.device import choose_device
from llama2_lib.evaluation.judged import Marks, gold_marks, marks_of
from llama2_lib.evaluation.reward import best_of_n
from llama2_lib.evaluation.statistics import Estimate
from llama2_lib.model.chat import Reply, answer_room, room, scored_row
from llama2_lib.pipeline import JUDGE
from llama2_lib.stages import rejection
from llama2_lib.stages.fit import dialog_loss
from llama2_lib.stages.prompts import PromptSet, sample_prompts
from llama2_lib.stages.rejection import Sample
from llama2_lib.stages.reward import RewardModels, load_rewards
from llama2_lib.storage import read_rows
from llama2_lib.text.tokenizer import load_tokenizer
from llama2_lib.training.batches import PackedDialogs
from llama2_lib.training.optim import adamw, optimize, warmup_then_cosine
from llama2_lib.world import make_world
from llama2_lib.world.prompts import Prompt, adversarial_prompts, helpful_prompts
from llama2_lib.world.prompts import prompts as prompts_of
from llama2_lib.world.source import WorldSource
from llama2_lib.world.tasks import HELPFUL_SHARES

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Of the maximum in claim 21 [the paper: 1 to 100]. The median is taken of one sample less, since
of an even number it is no sample."""
N_PROMPTS, N_HEATED = 40, 20
"""Training prompts a seed in claims 21 and 22, as a round asks them."""
TEMPERATURE = 1.0
"""Of claim 21; the paper states none."""
TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
"""Of claim 22 [0.6 to 1.5]."""
MANY = 16
"""Samples a prompt and temperature in claim 22 [1 to 100]."""
SAME = 0.1
"""Best temperatures that are shown to differ by less count as the same in claim 22."""
POLICIES = {"SFT": "sft", "V4": f"rejection_v{ROUNDS}"}
"""Stages of claim 22."""
FIRST = "rewards_v1"
HALF = 8
"""Half of the doublings of claim 21 end here."""
NEWEST = f"rejection_v{ROUNDS}"
FORMS = ("list", "story", "how_to")
"""What must be written in a form of its own, as the rhymes that the paper's V3 had lost."""
LOST = (*FORMS, "adversarial")
"""Kinds of prompts that nobody sends in the last round of claim 24."""
STEPS, ROWS, ROW_LENGTH = 120, 3, 256
"""Of every arm of claims 24 and 25: equal steps from the pretrained model."""
N_HELD_OUT = 150
"""Prompts a seed of each family of claim 24; claim 25 has twice as many, of all kinds."""
N_ASKED, N_SAMPLES = 240, 6
"""Training prompts of claim 25 and samples of each, as many as a round of the chain draws."""
SAMPLING, ANSWERING = 0.8, 0.6
"""Temperatures of the samples that are learned from, and of the answers that are marked."""
COMPARED = (
    ("big best", "own best"),
    ("big random", "own random"),
    ("big best", "big random"),
    ("own best", "own random"),
    ("own best", "SFT"),
    ("own random", "SFT"),
)
"""Pairs of arms; the first is judged, those with `random` are the controls."""
PerSample = Float[np.ndarray, "prompts samples"]


# ------------------------------------------------------------- prompts, samples, marks


def training_prompts(recipe: Recipe, seed: int, n: int, *policies: Model) -> PromptSet:
    """Draw prompts as a round of rejection sampling asks them, such as all policies can answer."""
    source, tokenizer = WorldSource(make_world(recipe.corpus.world_seed)), policies[0][1]
    most = recipe.rejection.max_new_tokens
    longest = min(room(model, answer_room(model, most)) for model, _ in policies)
    return sample_prompts(source, seed, n, tokenizer, longest=longest)


def key_of(prompt: Prompt) -> str:
    """Return the key of all samples of a prompt."""
    return Sample(prompt.dialog, prompt.is_safety, "", 1, 0.0).key


def samples(
    recipe: Recipe, policy: Model, judge: RewardModels, prompt_set: PromptSet, k: int,
    temperature: float, seed: int, keep: Callable[[list[Reply]], list[Reply]] = list,
) -> list[Sample]:  # fmt: skip
    """Draw k answers to each prompt, and score those that are kept: all, unless said otherwise."""
    model, tokenizer = policy
    most = answer_room(model, recipe.rejection.max_new_tokens)
    drawn = rejection.draw(
        model, tokenizer, prompt_set.dialogs, k, temperature, seed=seed, max_new_tokens=most
    )
    fresh = [
        Sample(prompt.dialog, prompt.is_safety, answer.text, 1, 0.0)
        for prompt, answers in zip(prompt_set.prompts, drawn, strict=True)
        for answer in keep(answers)
    ]
    longest = room(judge.helpfulness, 0)

    def score(entries: Sequence[Sample]) -> Float[np.ndarray, " answers"]:
        rows = [scored_row(entry.dialog, entry.answer, tokenizer, longest) for entry in entries]
        return judge(rows, [entry.is_safety for entry in entries]).combined

    return rejection.rescored(fresh, score)


def marked(policy: Model, recipe: Recipe, prompts: Sequence[Prompt], seed: int) -> Marks:
    """Let the gold judges mark one answer to each prompt."""
    world = make_world(recipe.corpus.world_seed)
    most = answer_room(policy[0], recipe.rejection.max_new_tokens)
    return marks_of(*policy, world, prompts, temperature=ANSWERING, seed=seed, max_new_tokens=most)


# ------------------------------------------------------------- claims 21 and 22: best of N


def worth(
    recipe: Recipe, prompt_set: PromptSet, drawn: Sequence[Sample]
) -> tuple[PerSample, PerSample]:
    """Return rewards after the sigmoid, 0 to 1 as in the paper's figures, and gold marks."""
    k = len(drawn) // len(prompt_set.prompts)
    repeated = [prompt for prompt in prompt_set.prompts for _ in range(k)]
    world, texts = make_world(recipe.corpus.world_seed), [sample.answer for sample in drawn]
    gold = gold_marks(world, repeated, texts).quality
    return expit([sample.score for sample in drawn]).reshape(-1, k), gold.reshape(-1, k)


def median_of_n(scores: PerSample, n: int) -> Float[np.ndarray, " prompts"]:
    """Return the expected median of an odd n of samples, exact over all subsets of those drawn."""
    k, middle = scores.shape[1], (n + 1) // 2
    assert n % 2 == 1, f"n must be odd; got {n}"
    assert 1 <= n <= k, f"n must be 1 to {k}; got {n}"
    rank = np.arange(1, k + 1)
    shares = comb(rank - 1, middle - 1) * comb(k - rank, n - middle) / comb(k, n)
    return np.sort(scores, axis=1) @ shares


def measure_curve(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 21 on samples of round 1: the fine-tuned model's, scored by its reward models.

    Keys: expected `max/<n>` and `median/<n>` of n rewards; shown, gold marks of the sample with the
    highest reward, `gold/<n>`, and of the one that the gold judges would choose, `ceiling/<n>`.
    """
    judge = load_rewards(pipeline.artifact(FIRST, recipe), choose_device())
    policy = pipeline.load("sft", recipe)
    prompt_set = training_prompts(recipe, rng.seed_from(seed, "best of n"), N_PROMPTS, policy)
    drawn = samples(recipe, policy, judge, prompt_set, SIZES[-1], TEMPERATURE, seed)
    reward, gold = worth(recipe, prompt_set, drawn)
    curves = {"max": best_of_n(reward), "gold": best_of_n(reward, gold), "ceiling": best_of_n(gold)}
    values: dict[str, float] = {}
    for n in SIZES:
        values |= {f"{name}/{n}": float(curve[:, n - 1].mean()) for name, curve in curves.items()}
        odd = max(1, n - 1)
        values[f"median/{odd}"] = float(median_of_n(reward, odd).mean())
    return values


def measure_temperatures(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 22 on the same prompts for all policies, by the newest reward models.

    Keys: `reward/<policy>/<n>/<temperature>`, expected maximum of n rewards; shown, `gold/...`, the
    gold mark of the sample that is chosen.
    """
    judge = load_rewards(pipeline.artifact(JUDGE, recipe), choose_device())
    values: dict[str, float] = {}
    for name, stage in POLICIES.items():
        policy = pipeline.load(stage, recipe)
        prompt_set = training_prompts(recipe, rng.seed_from(seed, "best of n"), N_HEATED, policy)
        for heat in TEMPERATURES:
            drawn = samples(recipe, policy, judge, prompt_set, MANY, heat, seed)
            reward, gold = worth(recipe, prompt_set, drawn)
            curves = {"reward": best_of_n(reward), "gold": best_of_n(reward, gold)}
            for n in (1, MANY):
                for what, curve in curves.items():
                    values[f"{what}/{name}/{n}/{heat}"] = float(curve[:, n - 1].mean())
    return values


def best_temperature(curve: Mapping[float, float]) -> float:
    """Return where a curve over temperatures is highest, finer than its grid.

    The top of the parabola through the highest point and its two neighbours, which must be
    equally far; at an end of the grid the end itself, for what lies beyond was not tried.
    """
    at = sorted(curve)
    top = max(range(len(at)), key=lambda i: curve[at[i]])
    if top in (0, len(at) - 1):
        return at[top]
    left, middle, right = (curve[at[i]] for i in (top - 1, top, top + 1))
    bend = left - 2 * middle + right
    step = (at[top + 1] - at[top - 1]) / 2
    return at[top] + (0.5 * step * (left - right) / bend if bend else 0.0)


_rise = claim.minus(f"max/{SIZES[-1]}", f"max/{SIZES[0]}")


def _bend(measurement: claim.Measurement) -> float:
    one, half, end = (measurement[f"max/{n}"] for n in (SIZES[0], HALF, SIZES[-1]))
    return 2 * half - one - end


def _drift(measurement: claim.Measurement) -> float:
    moved = measurement[f"median/{SIZES[-1] - 1}"] - measurement[f"max/{SIZES[0]}"]
    return moved / _rise(measurement)


def _peak(what: str, name: str, n: int, measurement: claim.Measurement) -> float:
    """Return the best temperature of a seed."""
    return best_temperature({t: measurement[f"{what}/{name}/{n}/{t}"] for t in TEMPERATURES})


def _margin_of_hottest(name: str, measurement: claim.Measurement) -> float:
    """Return by how much single samples at the hottest are worse than at any other."""
    *others, hot = (measurement[f"reward/{name}/1/{t}"] for t in TEMPERATURES)
    return min(others) - hot


def _hotter(name: str, measurement: claim.Measurement) -> float:
    return _peak("reward", name, MANY, measurement) - _peak("reward", name, 1, measurement)


def _shift(measurement: claim.Measurement) -> float:
    """Return how far the best temperature of many samples moves from SFT to V4."""
    before, after = (_peak("reward", name, MANY, measurement) for name in POLICIES)
    return after - before


def _moved(measurements: claim.Measurements) -> list[claim.Check]:
    shift, near = average(measurements, _shift), average(measurements, _shift, 0.9)
    apart = shift.low > 0 or shift.high < 0
    same = max(-near.low, near.high) < SAME
    text = f"best temperature of {MANY}, V4 minus SFT: {shift}, must differ from 0"
    return [claim.Check(text=text, holds=False if same else True if apart else None)]


PEAKS: dict[str, claim.Quantity] = {
    f"best temperature/{what}/{name}/{n}": mean(partial(_peak, what, name, n))
    for what, name, n in itertools.product(("reward", "gold"), POLICIES, (1, MANY))
} | {"shift of the best temperature": mean(_shift)}
"""What claim 22 shows."""


# ------------------------------------------------------------- claims 24 and 25: whose answers


def tuned(base: Model, entries: Sequence[Sample], rate: float, seed: int) -> Model:
    """Train a pretrained model, in place, to give the answers of a pool."""
    model, tokenizer = base
    device = next(model.parameters()).device
    length = min(ROW_LENGTH, model.config.max_seq_len)
    packed = PackedDialogs(rejection.encoded(entries, tokenizer), seq_len=length, seed=seed)
    rows = packed.batches(batch_size=ROWS)
    batches = (type(batch)(*(part.to(device) for part in batch)) for batch in rows)
    schedule = warmup_then_cosine(peak=rate, steps=STEPS, warmup=min(10, STEPS - 1))
    loss, steps = dialog_loss(isolate_documents=True), range(STEPS)
    for _ in optimize(model, adamw(model), batches, loss, schedule, steps=steps):
        pass
    return model.eval(), tokenizer


def kinds_of_pool(recipe: Recipe) -> dict[str, str]:
    """Return what each prompt of the pool asks for: the rounds' prompts, drawn again."""
    tokenizer = load_tokenizer(pipeline.artifact("tokenizer", recipe, bar=False))
    rounds = (rejection.round_prompts(i, recipe, tokenizer) for i in range(1, ROUNDS + 1))
    return {key_of(prompt): prompt.kind for prompt_set in rounds for prompt in prompt_set.prompts}


def pools(recipe: Recipe) -> dict[str, list[Sample]]:
    """Return what the four arms of claim 24 learn from.

    `last` has the chosen answers of the last round, `all` the best ones of all rounds; in `...,
    kinds missing` the last round has no prompt of those kinds, as if nobody had sent any.
    """
    entries = read_rows(pipeline.artifact(NEWEST, recipe) / "pool.jsonl.gz", Sample)
    kinds, last = kinds_of_pool(recipe), max(entry.round for entry in entries)
    without = [e for e in entries if e.round < last or kinds[e.key] not in LOST]
    arms = {"all": entries, "all, kinds missing": without}
    for name in list(arms):
        arms[name.replace("all", "last")] = [e for e in arms[name] if e.round == last]
    return {name: rejection.best(arm) for name, arm in arms.items()}


def measure_pools(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 24: the pretrained model tuned on each of `pools`, without demonstrations.

    Keys: gains of gold marks on a family of prompts, `pool over last`, in both of which the last
    round lacks some kinds, and `missing`, what that changes if there is only the last round. Shown:
    `natural`, all rounds less the last with nothing missing, on all prompts, and means.
    """
    values: dict[str, float] = {}
    quality: dict[str, dict[str, np.ndarray]] = {}
    for name, entries in pools(recipe).items():
        policy = tuned(pipeline.load("pretrain", recipe), entries, recipe.sft.peak_lr, seed)
        quality[name] = {
            family: marked(policy, recipe, prompts, seed).quality
            for family, prompts in families(recipe, seed, policy).items()
        }
        values[f"answers/{name}"] = float(len(entries))
        values |= {f"quality/{name}/{key}": float(v.mean()) for key, v in quality[name].items()}
    rich, poor = (quality[f"{name}, kinds missing"] for name in ("all", "last"))
    for family in rich:
        values |= paired(f"{family}/pool over last", rich[family] - poor[family])
        values |= paired(f"{family}/missing", poor[family] - quality["last"][family])
        values |= paired(f"{family}/missing in the pool", rich[family] - quality["all"][family])
    every = {name: np.concatenate(list(parts.values())) for name, parts in quality.items()}
    return values | paired("natural", every["all"] - every["last"])


def families(recipe: Recipe, seed: int, policy: Model) -> dict[str, list[Prompt]]:
    """Return held-out prompts: two families of missing kinds, `form` and `harm`, and `other`."""
    world, split = make_world(recipe.corpus.world_seed), "held out"
    forms = {kind: HELPFUL_SHARES[kind] for kind in FORMS}
    others = {kind: share for kind, share in HELPFUL_SHARES.items() if kind not in FORMS}
    streams = {
        "form": helpful_prompts(world, seed, split=split, shares=forms),
        "harm": adversarial_prompts(world, seed, split=split),
        "other": helpful_prompts(world, seed, split=split, shares=others),
    }
    return {name: fitting(policy, stream, N_HELD_OUT) for name, stream in streams.items()}


def pupil(recipe: Recipe, seed: int) -> Recipe:
    """Return the small model of claim 25: a grid's point with the recipe's world and writers."""
    small = quality_recipes(recipe, seed)["gqa"]
    return replace(small, sft=replace(small.sft, grade=recipe.sft.grade, seed=seed))


def measure_distillation(recipe: Recipe, seed: int) -> dict[str, float]:
    """Measure claim 25.

    Two fine-tuned models, the recipe's `big` one and a small one, answer the same prompts; of each
    one's answers to a prompt round 1's reward models choose the `best`, and chance a `random` one,
    the control. Four copies of the small pretrained model learn from what was chosen, and their
    gold marks are compared. Shown: mean marks, of what was learned from, too (`pool`).
    """
    small, world = pupil(recipe, seed), make_world(recipe.corpus.world_seed)
    judge = load_rewards(pipeline.artifact(FIRST, recipe), choose_device())
    policies = {"big": pipeline.load("sft", recipe), "own": pipeline.load("sft", small)}
    drawn_by = rng.seed_from(seed, "distil")
    prompt_set = training_prompts(recipe, drawn_by, N_ASKED, *policies.values())
    draw = partial(samples, recipe, k=N_SAMPLES, temperature=SAMPLING, keep=rejection.distinct)
    drawn = {who: draw(policy, judge, prompt_set, seed=seed) for who, policy in policies.items()}
    answered = set.intersection(*({entry.key for entry in entries} for entries in drawn.values()))
    prompts = {key_of(prompt): prompt for prompt in prompt_set.prompts}
    values = {"answers": float(len(answered))}
    marks = {"SFT": _marked_held_out(policies["own"], small, seed)}
    for who, select in itertools.product(drawn, ("best", "random")):
        usable = [entry for entry in drawn[who] if entry.key in answered]
        targets, name = rejection.chosen(usable, select, seed), f"{who} {select}"
        gold = gold_marks(world, [prompts[e.key] for e in targets], [e.answer for e in targets])
        values[f"pool/{name}"] = float(gold.quality.mean())
        policy = tuned(pipeline.load("pretrain", small), targets, small.sft.peak_lr, seed)
        marks[name] = _marked_held_out(policy, small, seed)
    for name, own in marks.items():
        values[f"quality/{name}"] = float(own.quality.mean())
        values[f"help/{name}"] = float(own.helpfulness[~own.adversarial].mean())
        values[f"safety/{name}"] = float(own.safety[own.adversarial].mean())
    for after, before in COMPARED:
        values |= paired(f"{after} over {before}", marks[after].quality - marks[before].quality)
    return values


def _learned_from(measurements: claim.Measurements) -> dict[str, Estimate]:
    marks = claim.averages(measurements, "pool")
    return {key.replace("pool", "learned from", 1): mark for key, mark in marks.items()}


def _marked_held_out(policy: Model, small: Recipe, seed: int) -> Marks:
    stream = prompts_of(make_world(small.corpus.world_seed), seed, split="held out")
    return marked(policy, small, fitting(policy, stream, 2 * N_HELD_OUT), seed)


CLAIMS = (
    Claim(
        id=21, section="3.2.3", paper_trust=Trust.FIGURE,
        statement="The best of N samples has the higher reward the more samples there are; the "
        "median stays.",
        paper_value="figure 7: maximum from about .54 to .67, median about .54",
        prediction="The maximum rises, less with each doubling, and the median stays. That it "
        "rises is so by construction; how far, how bent, and how level the median is, is not.",
        where="Rewards after the sigmoid, training prompts",
        tests=(
            Must(
                "rise of the maximum, 1 to 64", mean(_rise), above=0.05,
                says="maximum of 64 minus that of one",
            ),
            Must("early minus late doublings", mean(_bend), above=0),
            Must("drift of the median, in rises (90 %)", mean(_drift, 0.9), within=0.25, named=""),
        ),
        intervals="(95 % over seeds, that is over prompts and samples)",
        shown=(
            {"drift of the median, in rises": mean(_drift)},
            *("max", "median", "gold", "ceiling"),
        ),
        measured_by=measure_curve,
        runs=lambda recipe, seed: {"judges": (FIRST, recipe), "SFT": ("sft", recipe)},
    ),
    Claim(
        id=22, section="3.2.3", paper_trust=Trust.PRINTED,
        statement="The best sampling temperature depends on N, and shifts as the model is tuned.",
        paper_value="1.2 to 1.3 best for the RLHF model with 10 to 100 samples; none for SFT",
        prediction="One by one the hottest samples are the worst; with 16 samples a higher "
        "temperature is best than with one; and the best one is another for V4 than for SFT.",
        where="Of temperatures 0.4 to 1.4, by the newest reward models after the sigmoid",
        tests=(
            *(
                test
                for name in POLICIES
                for test in (
                    Must(
                        f"next worst minus hottest, N = 1, {name}",
                        mean(partial(_margin_of_hottest, name)), above=0,
                        named=f"next worst minus hottest/{name}/1",
                    ),
                    Must(
                        f"best temperature, N = {MANY} minus N = 1, {name}",
                        mean(partial(_hotter, name)), above=0,
                        named=f"best temperature of {MANY} minus of 1/{name}",
                    ),
                )
            ),
            Fact(
                f"at N = {MANY} the best of V4 differs from that of SFT (it is the same if it is "
                f"shown to differ by less than {SAME:g}, 90 %)",
                _moved,
            ),
        ),
        intervals="(95 % over seeds, that is over prompts and samples)",
        shown=(PEAKS,), measured_by=measure_temperatures,
        runs=lambda recipe, seed: {
            "judges": (JUDGE, recipe),
            **{name: (stage, recipe) for name, stage in POLICIES.items()},
        },
    ),
    Claim(
        id=24, section="3.2.3", paper_trust=Trust.DESIGN,
        statement="Samples of all rounds keep skills that the last round's samples lack.",
        paper_value="V3, tuned on the last round only, was worse at rhymes; no number",
        prediction="If the last round had no prompt for lists, stories and how-tos, and none that "
        "asks for harm, a model tuned on it answers those worse than one tuned on the pool, and "
        "worse than one whose last round had them. Equal steps, no demonstrations.",
        where="Gold marks on held-out prompts of both families, forms and harm",
        tests=tuple(
            test
            for family in ("form", "harm")
            for test in (
                gains(f"{family}: pool minus last round", f"{family}/pool over last", above=0),
                gains(f"{family}: last round without minus with it", f"{family}/missing", below=0),
            )
        ),
        shown=("quality",), measured_by=measure_pools,
        runs=lambda recipe, seed: {NEWEST: (NEWEST, recipe)},  # its pool holds all rounds
    ),
    Claim(
        id=25, section="3.2.3", paper_trust=Trust.DESIGN,
        statement="The big model's best samples teach a small model more than its own best.",
        paper_value="all sizes but 70B were tuned on the 70B's samples; effect not analysed",
        prediction="A small model tuned on the big one's best of 6 answers better than one tuned "
        "on its own best of 6: same prompts, same number of answers, equal steps. Shown beside, "
        "the control: one of the 6 at random.",
        where="Gold mark on held-out prompts",
        tests=(gains("small model, big's best minus its own", "big best over own best", above=0),),
        shown=("quality", _learned_from), measured_by=measure_distillation,
        runs=lambda recipe, seed: {"big": (FIRST, recipe), "small": ("sft", pupil(recipe, seed))},
    ),
)  # fmt: skip
