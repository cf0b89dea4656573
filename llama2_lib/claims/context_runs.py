"""What claim 4 measures: a short and a long window, on questions whose answer lies near or far."""

from collections.abc import Sequence
from dataclasses import replace

from llama2_lib import pipeline
from llama2_lib.claims.claim import CannotShow, Measurement
from llama2_lib.device import choose_device
from llama2_lib.evaluation.language import document_nats
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import Recipe, grid
from llama2_lib.stages.corpus import CorpusConfig, load_corpus
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.lookalike import RetrievalItem, retrieval_items

SHARES = (("reminder", 0.6), ("lookalike", 0.2), ("story", 0.2))
STEPS, TOKENS_PER_STEP = 800, 1024
N_PER_DISTANCE, MOST_FILLERS = 12, 30
ANSWER_TOKENS = 6


def context_recipes(recipe: Recipe, seed: int) -> dict[str, Recipe]:
    """Return the two runs of one seed: rows of half the context and of all of it, equal tokens.

    One layer is enough, as a note is the only place where its item stands; with two the model
    sat on the plateau before the first answer for more than twice as many steps. Documents of
    a pack do not see each other: their notes would be wrong answers in reach.
    """
    if recipe.name == "nano":
        point = grid(seed)
        base = replace(
            point,
            model=replace(point.model, n_layers=1),
            pretrain=replace(point.pretrain, steps=STEPS, eval_every=STEPS, save_every=STEPS),
        )
    else:
        base = replace(recipe, pretrain=replace(recipe.pretrain, seed=seed))
    long = base.model.max_seq_len
    return {
        name: replace(
            base,
            corpus=CorpusConfig(n_documents=6_000, n_validation=600, shares=SHARES),
            pretrain=replace(
                base.pretrain,
                seq_len=window,
                batch_size=TOKENS_PER_STEP // window,
                isolate_documents=True,
            ),
        )
        for name, window in (("short", long // 2), ("long", long))
    }


def context_requests(recipe: Recipe, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Return the runs of claim 4."""
    return [("pretrain", r) for seed in seeds for r in context_recipes(recipe, seed).values()]


def measure_context(recipe: Recipe, seed: int) -> Measurement:
    """Measure claim 4. Keys: those of its judge, and `at/<model>/<fillers>`, shown by distance.

    Each model sees as many of the last tokens as its rows had. A question is near if all of it
    fits the short window, and far if the note lies before that window and still in the long one.

    Raises:
        CannotShow: The tokenizer's pieces are so long or short that one of the two is empty.
    """
    runs = context_recipes(recipe, seed)
    pipeline.artifacts([("pretrain", run) for run in runs.values()])
    world = make_world(recipe.corpus.world_seed)
    asked = {n: retrieval_items(world, seed, N_PER_DISTANCE, n) for n in range(MOST_FILLERS + 1)}
    short = runs["short"].pretrain.seq_len - ANSWER_TOKENS
    long = runs["long"].pretrain.seq_len - ANSWER_TOKENS
    values: dict[str, float] = {}
    for name, run in runs.items():
        model, tokenizer = pipeline.load("pretrain", run)
        right: dict[str, list[bool]] = {"near": [], "far": []}
        for n_filler, items in asked.items():
            hits = answered(model, tokenizer, items, run.pretrain.seq_len - ANSWER_TOKENS)
            values[f"at/{name}/{n_filler}"] = sum(hits) / len(hits)
            for item, hit in zip(items, hits, strict=True):
                end_of_note, length = _lengths(tokenizer, item)
                if length <= short:
                    right["near"].append(hit)
                elif length - end_of_note >= short and length <= long:
                    right["far"].append(hit)
        for task, hits in right.items():
            if not hits:
                raise CannotShow(
                    f"no question is {task} for windows of {short} and {long} tokens; choose a "
                    "recipe with a longer context or a larger vocabulary"
                )
            values[f"{task}/{name}"] = sum(hits) / len(hits)
        split = load_corpus(pipeline.artifact("corpus", run), "validation")
        documents = [split.document(index) for index in range(split.packed.n_documents)]
        fitting = [ids for ids in documents if len(ids) <= short]
        nats = document_nats(model, fitting)
        values[f"short_task/{name}"] = float(nats.nats.sum() / nats.tokens.sum())
    return Measurement(values=values, seed=seed, device=str(choose_device()))


def _lengths(tokenizer: Tokenizer, item: RetrievalItem) -> tuple[int, int]:
    """Return the tokens of the note and of the whole prompt, BOS included."""
    note = item.prompt[: item.prompt.index(".") + 1]
    return len(tokenizer.encode(note, bos=True)), len(tokenizer.encode(item.prompt, bos=True))


def answered(
    model: Transformer, tokenizer: Tokenizer, items: Sequence[RetrievalItem], window: int
) -> list[bool]:
    """Return which items the model completes rightly (greedy), seeing `window` tokens at most."""
    prompts = [tokenizer.encode(item.prompt, bos=True)[-window:] for item in items]
    completions = generate(model, prompts, max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    texts = [tokenizer.decode(completion.ids).strip() for completion in completions]
    return [text.startswith(f"{item.answer}.") for text, item in zip(texts, items, strict=True)]
