"""Generations of a finished model, for people to read."""

from llama2_lib.evaluation.language import recall_answers
from llama2_lib.model.generate import generate
from llama2_lib.model.transformer import Transformer
from llama2_lib.recipes import Recipe
from llama2_lib.text.tokenizer import Tokenizer
from llama2_lib.world import make_world
from llama2_lib.world.questions import recall_items

STORY_STARTS = ("One morning", "Once there was", "It was a", "The", "In the evening")


def write_samples(model: Transformer, tokenizer: Tokenizer, recipe: Recipe) -> str:
    """Return ten generations for people to read: five stories and five answers."""
    starts = [tokenizer.encode(text, bos=True) for text in STORY_STARTS]
    room = min(96, recipe.model.max_seq_len - max(map(len, starts)))
    stories = generate(
        model, starts, max_new_tokens=room, temperature=0.7, top_p=0.9,
        seed=recipe.pretrain.seed, stop_ids={tokenizer.eos_id},
    )  # fmt: skip
    lines = [
        f"{text}{tokenizer.decode([*start, *done.ids])[len(text) :]}"
        for text, start, done in zip(STORY_STARTS, starts, stories, strict=True)
    ]
    if recipe.corpus.data is None:
        items = recall_items(make_world(recipe.corpus.world_seed))[::31][:5]
        answers = recall_answers(model, tokenizer, items)
        lines += [
            f"{item.prompt} {answer}   [right: {item.answer}; {item.exposure}]"
            for item, answer in zip(items, answers, strict=True)
        ]
    return "\n---\n".join(lines) + "\n"
